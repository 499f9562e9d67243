"""Gates as tests: the fixture `edgebench_gate`, and a summary that tells what was not decided.

pytest loads this module wherever edgebench is installed, so that it imports nothing but pytest until it is used.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from edgebench.gate import Gate, Verdict

_TOLD = pytest.StashKey[list[str]]()
_OPTION = "--edgebench-strict"


class GateCheck:
    """What the fixture gives: call it with a run and a policy."""

    def __init__(self, request: pytest.FixtureRequest) -> None:
        self._request = request

    def __call__(self, run: str | Path, policy: str | Path, *, baseline: str | Path | None = None,
                 history: str = "runs", allow: Collection[str] = (), floors: Collection[str | Path] = (),
                 strict: bool | None = None) -> tuple[Gate, ...]:
        """Judge finished runs; the test fails where a rule fails, and where one cannot be judged.

        Inconclusive rules pass and are listed at the end of the session, unless `strict`. Relative paths are from the
        working folder. Verdicts are stored as properties of the test, which JUnit files of pytest hold.

        Args:
            run: A run.json, the folder that holds it, or an output folder of ``edgebench profile``.
            policy: A TOML file, or the name of a shipped policy.
            baseline: A run, ``latest:BRANCH`` or ``promoted[:NAME]``.
            history: Where the latter two look.
            allow: Fields in which the baseline and the reference may differ.
            floors: Files of noise floors of the device.
            strict: Whether what is inconclusive fails too; as ``--edgebench-strict`` says by default.

        Returns:
            The verdicts, a gate per run, for further assertions.

        Raises:
            EdgebenchError: Nothing to judge, or a name or file that is wrong.
        """
        __tracebackhide__ = True
        from edgebench import finished
        from edgebench.errors import ExitCode
        from edgebench.gate import conclusion, exit_code, spoken_totals, totals

        judgement = finished.judge(Path(run), str(policy), baseline=None if baseline is None else str(baseline),
                                   history=history, allow=allow, floors=[Path(file) for file in floors])
        config, node = self._request.config, self._request.node
        demanding = bool(config.getoption(_OPTION)) if strict is None else strict
        told = config.stash.setdefault(_TOLD, [])
        told += [f"{node.nodeid}: {note}" for note in judgement.notes]
        for gate in judgement.gates:
            for verdict in gate.verdicts:
                node.user_properties.append((f"edgebench.{gate.variant}.{verdict.rule}", verdict.outcome))
                if not _counts(verdict, strict=demanding) and verdict.status in ("inconclusive", "fail", "error"):
                    told.append(f"{node.nodeid}: {_line(gate, verdict)}")
        code = exit_code(judgement.gates, strict=demanding)
        if code != ExitCode.PASSED:
            lines = [_line(gate, one) for gate in judgement.gates for one in gate.verdicts
                     if _counts(one, strict=demanding)]
            found, counts = conclusion(judgement.gates, strict=demanding), spoken_totals(totals(judgement.gates))
            pytest.fail("\n".join([f"{found}  {judgement.policy.id}: {counts}", *lines]), pytrace=False)
        return judgement.gates


@pytest.fixture
def edgebench_gate(request: pytest.FixtureRequest) -> GateCheck:
    """Return a function that judges finished runs by a policy and fails the test where a rule does."""
    return GateCheck(request)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option of this plugin."""
    parser.getgroup("edgebench").addoption(_OPTION, action="store_true", help="Gates that are inconclusive fail.")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """List what gates left undecided, and warnings."""
    told = config.stash.get(_TOLD, [])
    if told:
        terminalreporter.section("edgebench gates: not decided, or a warning")
        for line in told:
            terminalreporter.write_line(line)


def _counts(verdict: Verdict, *, strict: bool) -> bool:
    return verdict.severity == "error" and (verdict.status in ("fail", "error")
                                            or (strict and verdict.status == "inconclusive"))


def _line(gate: Gate, verdict: Verdict) -> str:
    where = f" ({verdict.where})" if verdict.where else ""
    hint = f"; {verdict.hint}" if verdict.hint else ""
    return f"{verdict.outcome}: {gate.variant}: {verdict.rule}{where}: {verdict.message}{hint}"
