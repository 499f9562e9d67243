"""Processes of our own: what they tell, how they fail, how long they may take."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from edgebench import child
from edgebench.errors import CannotMeasure, InvalidInput
from tests.commands import TIME_LIMIT_S


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


def ended(pid: int) -> bool:
    """Return whether a process has ended, whether or not its parent has noticed."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIME_LIMIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def written(path: Path, text: str) -> str:
    """Code that writes `text`, an expression, into a file that is either whole or not there."""
    return f"Path({str(path) + '.new'!r}).write_text(str({text})); os.rename({str(path) + '.new'!r}, {str(path)!r}); "


@pytest.fixture
def clock_from(monkeypatch):
    """A function after whose call a second passes at each look of the parent, as soon as the file is there, and none before.

    A busy machine may take any time until then.
    """
    def begin(file: Path) -> None:
        now = [0.0]

        def clock() -> float:
            now[0] += file.exists()
            return now[0]

        monkeypatch.setattr(child, "clock", clock)
        monkeypatch.setattr(child, "POLL_S", 0.5)

    return begin


def test_what_hangs_is_stopped_with_all_that_it_started(run, tmp_path, clock_from):
    started = tmp_path / "pid"
    clock_from(started)
    with pytest.raises(CannotMeasure, match="time limit of 2 s") as caught:
        run("import subprocess; p = subprocess.Popen(['sleep', '1000']); " + written(started, "p.pid") + "time.sleep(1000)",
            limits=child.Limits(time_s=2.0, hint="leave it out"))
    assert "leave it out" == caught.value.hint
    wait_for(lambda: ended(int(started.read_text())))


@pytest.mark.parametrize("hang", ["time.sleep(1000)", "os.kill(os.getpid(), signal.SIGSTOP)",
                                  "os.close(1); time.sleep(1000)"], ids=["asleep", "stopped", "closed"])
def test_what_says_nothing_is_stopped(hang, run, tmp_path, clock_from):
    # One without a time limit, as a worker is: how long it may take depends on its data.
    silent = tmp_path / "silent"
    clock_from(silent)
    with pytest.raises(CannotMeasure, match="building x was stopped: it made no progress for 2 s"):
        run("child.send({'n': 1}); " + written(silent, "1") + hang, limits=child.Limits(silence_s=2.0))


def test_what_goes_on_telling_is_not_stopped(run, tmp_path, monkeypatch):
    monkeypatch.setattr(child, "POLL_S", 0.01)
    now = [0.0]
    monkeypatch.setattr(child.Watch, "heard", lambda self, heard=child.Watch.heard: (now.append(1.0), heard(self)))
    told = run("[child.send({'n': n}) for n in range(50)]", limits=child.Limits(silence_s=TIME_LIMIT_S))
    assert 50 == len([one for one in told if one]) == len(now) - 1


def test_time_in_which_the_parent_itself_was_stopped_does_not_count(run, monkeypatch):
    # The machine slept for an hour between two looks.
    moments = iter([0.0] + [3600.0 * k for k in range(1, 10**6) for _ in range(2)])
    monkeypatch.setattr(child, "clock", lambda: next(moments))
    monkeypatch.setattr(child, "POLL_S", 0.01)
    assert [{"n": 1}] == run("time.sleep(1); child.send({'n': 1})", limits=child.Limits(silence_s=TIME_LIMIT_S))


def test_what_takes_more_memory_than_there_is_is_stopped(run, monkeypatch):
    monkeypatch.setattr(child, "POLL_S", 0.02)
    with pytest.raises(CannotMeasure, match="building x was stopped when it had taken") as caught:
        run("taken = b'x' * 400_000_000; time.sleep(1000)", limits=child.Limits(memory_bytes=300_000_000))
    assert "--batch" in caught.value.hint


def test_memory_of_what_a_process_started_counts_and_mapped_files_do_not(tmp_path):
    code = ("import mmap, subprocess, sys\n"
            "file = open(sys.argv[1], 'rb'); view = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ); sum(view[::4096])\n"
            "other = subprocess.Popen([sys.executable, '-c', 'taken = b\"x\" * 200_000_000; print(1, flush=True); input()'],"
            " stdin=subprocess.PIPE)\ninput(); other.communicate(b'')\n")
    (tmp_path / "file").write_bytes(bytes(200_000_000))
    with subprocess.Popen([sys.executable, "-c", code, tmp_path / "file"], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        assert 200_000_000 < child.memory_bytes(process.pid) < 300_000_000
        process.communicate(b"\n")
    assert 0 == child.memory_bytes(process.pid)


PARENT = """
import os, sys
from pathlib import Path
from edgebench import child, paired_worker
from edgebench.telemetry import commands
folder = Path(sys.argv[1])
{start}
"""
STARTS = {
    "child": "child.run('job', folder / 'job.json', folder / 'job.log', print, what='x')",
    "limited child": "child.run('job', folder / 'job.json', folder / 'job.log', print, what='x', "
                     "limits=child.Limits(silence_s=1000.0))",
    "paired": "with paired_worker.process('x', (sys.executable, '-m', 'job', str(folder / 'job.json')), folder / 'log'): pass",
    "tool": "commands.run(('sh', '-c', 'echo $$ > {0}.new; mv {0}.new {0}; exec sleep 1000'.format(folder / 'pid')))",
}


@pytest.mark.parametrize("how", STARTS)
def test_nothing_outlives_a_parent_that_is_killed(how, tmp_path, monkeypatch):
    if how == "tool" and shutil.which("setpriv") is None:
        pytest.skip("util-linux is missing: tools end by their time limit alone")
    module(tmp_path, monkeypatch, written(tmp_path / "pid", "os.getpid()") + "\n    while True: pass")
    (tmp_path / "job.json").write_text("{}")
    with subprocess.Popen([sys.executable, "-c", PARENT.format(start=STARTS[how]), tmp_path]) as parent:
        wait_for((tmp_path / "pid").exists)
        pid = int((tmp_path / "pid").read_text())
        assert not ended(pid)
        parent.kill()
    wait_for(lambda: ended(pid))


def test_a_process_whose_parent_has_ended_before_it_could_be_bound_ends_at_once(tmp_path, monkeypatch):
    module(tmp_path, monkeypatch, written(tmp_path / "worked", "1"))
    done = subprocess.run([sys.executable, "-m", "job", "job.json"], check=False, env={**os.environ, child.PARENT: "1"})
    assert (3, False) == (done.returncode, (tmp_path / "worked").exists())


def test_a_process_that_is_started_by_hand_works(tmp_path, monkeypatch):
    module(tmp_path, monkeypatch, written(tmp_path / "worked", "1"))
    assert 0 == subprocess.run([sys.executable, "-m", "job", "job.json"], check=False).returncode
    assert (tmp_path / "worked").exists()


def test_children_ask_no_questions_and_are_the_first_to_go_where_memory_runs_out(run):
    told = run("child.send({'input': sys.stdin.read(), 'score': Path('/proc/self/oom_score_adj').read_text()})")
    assert [{"input": "", "score": "1000\n"}] == told


def test_what_a_finished_job_leaves_running_ends_with_it(run, tmp_path):
    run("import subprocess; p = subprocess.Popen(['sleep', '1000'], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL); "
        + written(tmp_path / "pid", "p.pid") + "os._exit(0)")
    wait_for(lambda: ended(int((tmp_path / "pid").read_text())))


def test_an_interrupted_parent_ends_a_child_that_does_not_listen(tmp_path, monkeypatch):
    module(tmp_path, monkeypatch, "signal.signal(signal.SIGTERM, signal.SIG_IGN); " + written(tmp_path / "pid", "os.getpid()")
           + "child.send({'pid': os.getpid()}); time.sleep(1000)")
    (tmp_path / "job.json").write_text("{}")
    waits: list[float] = []

    def impatient(process, timeout=None, wait=subprocess.Popen.wait):
        if timeout is not None:
            waits.append(timeout)
            raise subprocess.TimeoutExpired("job", timeout)
        return wait(process)

    monkeypatch.setattr(subprocess.Popen, "wait", impatient)

    def interrupted(_: child.Message) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        child.run("job", tmp_path / "job.json", tmp_path / "job.log", interrupted, what="x")
    assert waits
    wait_for(lambda: ended(int((tmp_path / "pid").read_text())))


def test_an_empty_log_goes_away(run, tmp_path):
    run("child.send({})")
    assert not (tmp_path / "job.log").exists()
