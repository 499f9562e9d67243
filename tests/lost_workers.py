"""A test process that dies ends the run, with its name and the test that it was running.

pytest-xdist starts another one in its place. Where files are handed out whole that may wait for ever, and what the dead
process had left undone would go unsaid.
"""

from __future__ import annotations

from typing import Any, NoReturn

import pytest

LOST = pytest.StashKey[str]()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object | None) -> None:
    """Note that a process has died; what it was running is reported next."""
    if error:
        node.config.stash[LOST] = node.gateway.id


@pytest.hookimpl(trylast=True)
def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """End the run once the terminal has the report of the test that a process died in."""
    node = getattr(report, "node", None)
    if node is not None and node.config.stash.get(LOST, None) == node.gateway.id:
        _end(node.gateway.id, f"while running {report.nodeid}")


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """End the run where a process is to take the place of one that was running no test."""
    lost = node.config.stash.get(LOST, None)
    if lost is not None:
        _end(lost, "while running no test")


def _end(worker: str, when: str) -> NoReturn:
    pytest.exit(f"test process {worker} died {when}: the remaining tests were not run", returncode=pytest.ExitCode.INTERNAL_ERROR)
