"""What a test must not leave behind: signal handlers, environment, working folder, limits, threads and children.

A test that changes one of them decides what later tests of the same process see. Which ones follow depends on how files
are spread over workers, so that a failure far away would be all there is to see.
"""

from __future__ import annotations

import ctypes
import gc
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

# pytest writes and removes the first itself; torch, open_clip and scikit-learn set the others when they first need them.
OTHERS_VARIABLES = {"PYTEST_CURRENT_TEST", "TORCHINDUCTOR_CACHE_DIR", "TOKENIZERS_PARALLELISM", "KMP_DUPLICATE_LIB_OK",
                    "KMP_INIT_AT_FORK"}
# Names of classes of threads that libraries keep for the rest of the process: tqdm's looks for bars that stand still.
OTHERS_THREADS = {"TMonitor"}
# Of libraries that keep a process for the rest of this one: joblib's and multiprocessing's clean up shared memory.
OTHERS_CHILDREN = ("resource_tracker",)
# pytest-timeout gives each test a handler of its own for SIGALRM; above are those that the C library uses itself.
SIGNALS = tuple(sorted(one for one in signal.valid_signals() if one < signal.SIGRTMIN and one != signal.SIGALRM))
LIMITS = {name: getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")}
# A thread or process that was told to end gets this long; a busy machine takes its time.
PATIENCE_S = 10.0
PR_SET_CHILD_SUBREAPER = 36
LIBC = ctypes.CDLL(None)


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """What this process shares between tests."""

    handlers: Mapping[int, object]
    native: Mapping[int, int]
    """Addresses of what the kernel calls: a library may put its own function in the place of Python's."""
    masks: Mapping[str, int]
    """Signals that the kernel blocks, ignores and hands over; a library can change them past Python."""
    variables: Mapping[str, str]
    folder: str
    limits: Mapping[str, tuple[int, int]]
    collects: bool
    """Whether the garbage collector runs."""
    threads: frozenset[threading.Thread]
    children: frozenset[int]


def adopt_orphans() -> None:
    """Become the parent of processes whose own parents end, so that `state` sees what a child left behind."""
    with suppress(OSError, AttributeError):
        LIBC.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def state() -> State:
    """Return what there is now."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines()
                  if line.startswith(("SigBlk", "SigIgn", "SigCgt", "Umask")))
    standard = sum(1 << (one - 1) for one in SIGNALS)
    return State(
        handlers={one: signal.getsignal(one) for one in SIGNALS}, native={one: _address(one) for one in SIGNALS},
        masks={name: int(value, 8) if name == "Umask" else int(value, 16) & standard for name, value in status.items()},
        variables={name: value for name, value in os.environ.items() if name not in OTHERS_VARIABLES},
        folder=str(Path.cwd()), limits={name: resource.getrlimit(number) for name, number in LIMITS.items()},
        collects=gc.isenabled(), threads=frozenset(threading.enumerate()), children=children())


def _address(number: int) -> int:
    # The structure begins with the handler and is shorter than this on every system.
    action = ctypes.create_string_buffer(256)
    LIBC.sigaction(number, None, action)
    return int.from_bytes(action.raw[:ctypes.sizeof(ctypes.c_void_p)], sys.byteorder)


def children() -> frozenset[int]:
    """Return the processes that this one is the parent of and that have not ended."""
    running = set()
    for task in Path("/proc/self/task").iterdir():
        with suppress(OSError):
            running |= {int(word) for word in (task / "children").read_text().split()}
    return frozenset(pid for pid in running if not _ended(pid))


def _ended(pid: int) -> bool:
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return True


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""


def differences(before: State, after: Callable[[], State] = state, patience_s: float | None = None) -> list[str]:
    """Return in words what `after` has that `before` had not; threads and children get some time to end."""
    deadline = time.monotonic() + (PATIENCE_S if patience_s is None else patience_s)
    now = after()
    while (_new_threads(before, now) or _new_children(before, now)) and time.monotonic() < deadline:
        time.sleep(0.02)
        now = after()
    return [
        *(f"handler of signal {one}: {before.handlers[one]!r} → {now.handlers[one]!r}" for one in SIGNALS
          if before.handlers[one] != now.handlers[one]),
        *(f"native handler of signal {one}: {before.native[one]:#x} → {now.native[one]:#x}" for one in SIGNALS
          if before.native[one] != now.native[one] and before.handlers[one] == now.handlers[one]),
        *(f"{name}: {value:#x} → {now.masks[name]:#x}" for name, value in before.masks.items()
          if now.masks[name] != value),
        *(f"environment variable {name}: {before.variables.get(name)!r} → {now.variables.get(name)!r}"
          for name in sorted({*before.variables, *now.variables})
          if before.variables.get(name) != now.variables.get(name)),
        *([f"working folder: {before.folder} → {now.folder}"] if before.folder != now.folder else []),
        *(f"{name}: {value} → {now.limits[name]}" for name, value in before.limits.items() if now.limits[name] != value),
        *([f"garbage collector runs: {before.collects} → {now.collects}"] if before.collects != now.collects else []),
        *(f"thread {one}" for one in _new_threads(before, now)),
        *(f"process {one}: {_command(one)}" for one in _new_children(before, now))]


def _new_threads(before: State, now: State) -> list[threading.Thread]:
    return [one for one in now.threads - before.threads if type(one).__name__ not in OTHERS_THREADS]


def _new_children(before: State, now: State) -> list[int]:
    return [one for one in now.children - before.children if not any(word in _command(one) for word in OTHERS_CHILDREN)]


@pytest.fixture(autouse=True)
def _nothing_left_behind() -> Iterator[None]:
    before = state()
    yield
    left = differences(before)
    if left:
        pytest.fail("the test left behind: " + "; ".join(left), pytrace=False)


@pytest.fixture(autouse=True, scope="module")
def _nothing_left_behind_by_the_file() -> Iterator[None]:
    before = state()
    yield
    left = differences(before)
    if left:
        pytest.fail("the file's tests or fixtures left behind: " + "; ".join(left), pytrace=False)
