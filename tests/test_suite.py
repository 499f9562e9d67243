"""The suite itself: a process that dies ends the run by name, and no test leaves anything behind for the next."""

from __future__ import annotations

import gc
import os
import resource
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests import leftovers
from tests.commands import PROJECT, TIME_LIMIT_S

HEALTHY = "import time\nimport pytest\n@pytest.mark.parametrize('n', range(20))\ndef test_it(n): time.sleep(0.01)\n"
DYING = "import os, signal\n" + HEALTHY + "@pytest.mark.parametrize('n', range(3))\ndef test_dies(n):\n    {}\n"


def session(folder: Path, *options: str, plugin: str = "tests.lost_workers", **files: str) -> tuple[int, str]:
    """Run pytest on files of tests in processes of their own; returns its exit code and its output."""
    for name, text in files.items():
        (folder / f"test_{name}.py").write_text(text)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", plugin, "-p", "no:cacheprovider", "-c", os.devnull, "--rootdir", folder,
         *options, folder], capture_output=True, text=True, cwd=folder, timeout=TIME_LIMIT_S, check=False,
        env={**{name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")},
             "PYTHONPATH": str(PROJECT)})
    return done.returncode, done.stdout + done.stderr


def last(output: str) -> str:
    """Return the line that says why the run was ended."""
    return next(line for line in output.splitlines() if "Exit: test process" in line)


@pytest.mark.parametrize("end", ["os.kill(os.getpid(), signal.SIGKILL)", "os._exit(0)",
                                 "signal.signal(2, signal.SIG_DFL); os.kill(os.getpid(), 2)"], ids=["killed", "left", "sigint"])
def test_a_test_process_that_dies_ends_the_run_with_its_name_and_test(end, tmp_path):
    code, output = session(tmp_path, "-n", "2", "--dist", "loadfile", "--no-loadscope-reorder",
                           a=HEALTHY, b=DYING.format(end), c=HEALTHY, d=HEALTHY)
    assert 3 == code, output
    line = last(output)
    assert "test_b.py::test_dies[0]" in line
    assert " gw0 died" in line or " gw1 died" in line
    # It counts as failed too.
    assert "1 failed" in output


def test_one_that_dies_outside_of_tests_ends_the_run_too(tmp_path):
    (tmp_path / "conftest.py").write_text(
        "import os\ndef pytest_collection(session):\n"
        "    if os.environ.get('PYTEST_XDIST_WORKER') == 'gw1': os._exit(7)\n")
    code, output = session(tmp_path, "-n", "2", "--dist", "loadfile", a=HEALTHY, b=HEALTHY, c=HEALTHY)
    assert 3 == code, output
    assert "gw1 died while running no test" in last(output)


def test_a_run_in_which_none_dies_ends_as_ever(tmp_path):
    assert 0 == session(tmp_path, "-n", "2", "--dist", "loadfile", a=HEALTHY, b=HEALTHY)[0]
    assert 0 == session(tmp_path, "-p", "no:xdist", a=HEALTHY)[0]


CHANGES = {
    "handler": ("signal.signal(signal.SIGUSR1, lambda *_: None)", "handler of signal 10"),
    "ignored": ("signal.signal(signal.SIGINT, signal.SIG_IGN)", "handler of signal 2"),
    "blocked": ("signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])", "SigBlk"),
    "native": ("ctypes.CDLL(None).signal(12, ctypes.c_void_p(1))", "native handler of signal 12"),
    "replaced": ("ctypes.CDLL(None).signal(2, ctypes.cast(ctypes.CDLL(None).abort, ctypes.c_void_p))", "native handler of signal 2"),
    "environment": ("os.environ['LEFT'] = '1'", "environment variable LEFT: None → '1'"),
    "removed": ("del os.environ['HOME']", "environment variable HOME"),
    "folder": ("os.chdir('/')", "working folder"),
    "limit": ("resource.setrlimit(resource.RLIMIT_FSIZE, (10**9, 10**9))", "RLIMIT_FSIZE"),
    "umask": ("os.umask(0o077)", "Umask"),
    "collector": ("gc.disable()", "garbage collector"),
    "thread": ("threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()", "thread"),
    "child": ("globals().update(p=subprocess.Popen(['sleep', '1000']))", "process"),
    "orphan": ("subprocess.run(['sh', '-c', 'sleep 1000 > /dev/null 2>&1 &'])", "process"),
}


def test_what_a_test_leaves_behind_fails_it(tmp_path):
    (tmp_path / "conftest.py").write_text(
        "from tests import leftovers\nleftovers.PATIENCE_S = 0.1\nleftovers.adopt_orphans()\n"
        "from tests.leftovers import _nothing_left_behind, _nothing_left_behind_by_the_file\n"
        "def pytest_unconfigure():\n    import os\n    [os.kill(pid, 9) for pid in leftovers.children()]\n")
    text = "import ctypes, gc, os, resource, signal, subprocess, threading, time\n" + "".join(
        f"def test_{name}():\n    {change}\ndef test_after_{name}(): pass\n" for name, (change, _) in CHANGES.items()) + "def test_last(): pass\n"
    code, output = session(tmp_path, "-p", "no:xdist", "-v", a=text)
    assert 1 == code, output
    for name, (_, said) in CHANGES.items():
        section = output.partition(f"ERROR at teardown of test_{name} ")[2].partition("\n___")[0]
        assert f"the test left behind: {said}" in section, name
        assert f"ERROR at teardown of test_after_{name} " not in output
    assert f"{2 * len(CHANGES) + 1} passed, {len(CHANGES) + 1} errors" in output


def test_what_is_set_back_is_nothing_left(tmp_path, monkeypatch):
    before = leftovers.state()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LEFT", "1")
        patch.chdir(tmp_path)
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limits[0] - 1, limits[1]))
        gc.disable()
        left = leftovers.differences(before, patience_s=0.0)
        gc.enable()
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert {"environment variable LEFT", "working folder", "RLIMIT_NOFILE", "garbage collector runs"} <= {
        one.partition(":")[0] for one in left}
    thread = threading.Thread(target=threading.Event().wait, args=(0.2,))
    thread.start()
    # It is given the time to end.
    assert [] == leftovers.differences(before)
    thread.join()


def test_ctrl_c_is_taken_wherever_the_run_was_begun():
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    status = Path("/proc/self/status").read_text().splitlines()
    caught = int(next(line for line in status if line.startswith("SigCgt")).split()[1], 16)
    assert caught >> (signal.SIGINT - 1) & 1
