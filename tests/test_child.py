"""Processes of our own: what they tell, how they fail, how long they may take."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from edgebench import child
from edgebench.errors import CannotMeasure, InvalidInput


def module(folder: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """Make ``job`` a module whose `work` holds `text`."""
    (folder / "job.py").write_text(
        "import os, sys, time, signal\nfrom pathlib import Path\nfrom edgebench import child\n"
        "from edgebench.errors import InvalidInput\n"
        f"def work(path):\n    {text}\n"
        "if __name__ == '__main__':\n    child.serve(work)\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]))


@pytest.fixture
def run(tmp_path, monkeypatch):
    def started(text: str, **options) -> list[child.Message]:
        module(tmp_path, monkeypatch, text)
        told: list[child.Message] = []
        (tmp_path / "job.json").write_text('"hello"')
        child.run("job", tmp_path / "job.json", tmp_path / "job.log", told.append, what="building x", **options)
        return told

    return started


def test_messages_arrive_in_order_and_other_output_is_passed_over(run):
    told = run("print('a runtime says hello'); child.send({'n': 1}); print('[1, 2]'); child.send({'n': 2})")
    assert [{"n": 1}, {"n": 2}] == [one for one in told if one]


def test_an_error_keeps_its_kind_message_and_hint(run):
    with pytest.raises(InvalidInput, match="no such layer") as caught:
        run("raise InvalidInput('no such layer', 'look again')")
    assert "look again" == caught.value.hint


def test_a_crash_names_the_signal(run):
    with pytest.raises(CannotMeasure, match="building x was killed by signal 11"):
        run("os.kill(os.getpid(), signal.SIGSEGV)")


def test_an_unforeseen_error_names_its_last_line_and_the_log(run, tmp_path):
    with pytest.raises(CannotMeasure, match="building x ended with status 1: ZeroDivisionError") as caught:
        run("1 / 0")
    assert str(tmp_path / "job.log") in caught.value.hint
    assert "Traceback" in (tmp_path / "job.log").read_text()


def test_what_hangs_is_stopped_with_all_that_it_started(run, tmp_path, monkeypatch):
    started = tmp_path / "pid"

    class Timer(threading.Thread):
        """Time is up when the grandchild runs: a busy machine may take any time until then."""

        def __init__(self, seconds: float, expire: Callable[[], None]) -> None:
            super().__init__()
            self.expire, self.cancelled = expire, threading.Event()

        def run(self) -> None:
            while not self.cancelled.wait(0.02):
                if started.exists():
                    self.expire()
                    return

        def cancel(self) -> None:
            self.cancelled.set()

    monkeypatch.setattr(threading, "Timer", Timer)
    with pytest.raises(CannotMeasure, match="time limit of 2 s"):
        run("import subprocess; p = subprocess.Popen(['sleep', '1000']); "
            f"Path({str(tmp_path / 'new')!r}).write_text(str(p.pid)); os.rename({str(tmp_path / 'new')!r}, {str(started)!r}); "
            "time.sleep(1000)", time_limit_s=2.0)
    pid = int(started.read_text())
    for _ in range(6000):
        if not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text().split()[2]:
            break
        time.sleep(0.05)
    else:
        pytest.fail("the grandchild still runs")


def test_an_empty_log_goes_away(run, tmp_path):
    run("child.send({})")
    assert not (tmp_path / "job.log").exists()
