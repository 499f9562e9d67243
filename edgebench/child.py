"""Processes of our own that do one job: what they tell, how they fail, how long they may take.

A job is a module that reads a JSON file and tells its parent how far it is in JSON lines on its standard output. What
crashes, hangs or runs out of memory there leaves the parent and its other jobs alone.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from edgebench import privacy
from edgebench.errors import KINDS, CannotMeasure, EdgebenchError, ExitCode, writing

Message = dict[str, object]
PARENT = "EDGEBENCH_PARENT"
"""Environment variable with the process id of the parent, by which a child sees that it came too late to be bound."""
PR_SET_PDEATHSIG = 1
POLL_S = 1.0
"""Between two looks at a child; one takes the parent some 50 microseconds."""
clock = time.monotonic
OWN_MEMORY = ("RssAnon", "RssShmem", "VmSwap")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """When a process is ended, with all that it started; None: never for this reason."""

    time_s: float | None = None
    """After it began."""
    silence_s: float | None = None
    """After its last message."""
    memory_bytes: int | None = None
    """Of its own, in memory and swap together; mapped files do not count."""
    hint: str = ""
    """What helps against the first two."""


UNLIMITED = Limits()


def send(message: Message) -> None:
    """Tell the parent something; called in the child."""
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def serve(work: Callable[[Path], None]) -> None:
    """Run `work` on the job file named on the command line, in the child; its errors reach the parent."""
    _bind_to_parent()
    try:
        work(Path(sys.argv[1]))
    except EdgebenchError as error:
        send({"error": type(error).__name__, "message": error.message, "hint": error.hint})
        sys.exit(ExitCode.UNMEASURABLE)
    except KeyboardInterrupt:
        sys.exit(ExitCode.UNMEASURABLE)


def _bind_to_parent() -> None:
    """Have the kernel end this process when its parent ends, and make it the first to go where memory runs out."""
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    parent = os.environ.pop(PARENT, None)
    if parent is None or sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != int(parent):
        # It ended before the kernel was asked.
        os._exit(ExitCode.UNMEASURABLE)


def start(command: Sequence[str], errors: IO[bytes], *, stdin: int = subprocess.DEVNULL,
          temporary: Path | None = None) -> subprocess.Popen[str]:
    """Start a process of ours, which calls `serve`, in a session of its own; it ends when this one ends, killed or not.

    Args:
        command: What to run.
        errors: Where its standard error goes.
        stdin: Its standard input, as for `subprocess`.
        temporary: Folder for its temporary files; the system's where None.
    """
    environment = {**os.environ, **privacy.SWITCHES, "PYTHONSAFEPATH": "1", PARENT: str(os.getpid())}
    if temporary is not None:
        environment["TMPDIR"] = str(temporary)
    return subprocess.Popen(list(command), stdin=stdin, stdout=subprocess.PIPE, stderr=errors, text=True,
                            env=environment, start_new_session=True)


def run(module: str, job: Path, log: Path, told: Callable[[Message], None], *, what: str, limits: Limits = UNLIMITED,
        temporary: Path | None = None) -> None:
    """Run ``python -m module job`` to its end.

    Args:
        module: The job's module.
        job: Its JSON file.
        log: Where its standard error goes; removed where it stays empty.
        told: Receives its messages.
        what: The process in words, for errors.
        limits: When it is ended.
        temporary: Folder for its temporary files, which a killed process leaves behind; the system's where None.

    Raises:
        EdgebenchError: What the job raised, or that it died or went beyond a limit.
    """
    failure: dict[str, str] = {}
    with writing(log), log.open("wb") as errors, \
            start((sys.executable, "-m", module, str(job)), errors, temporary=temporary) as process, \
            watched(process, limits, what) as watch, _stopped_on_error(process):
        assert process.stdout is not None
        for line in process.stdout:
            watch.heard()
            message = parse(line)
            if "error" in message:
                failure = {key: str(value) for key, value in message.items()}
            else:
                told(message)
        # A process may close its output and hang afterwards: it is watched to its end.
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        # What it leaves running ends with it; until it is waited for, nothing else can have its number.
        kill(process)
    if watch.exceeded is not None:
        raise watch.exceeded
    if failure:
        raise KINDS.get(failure["error"], CannotMeasure)(failure["message"], failure["hint"])
    status = process.wait()
    if status != 0:
        last = log.read_text(errors="replace").strip().splitlines()[-1:]
        died = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
        raise CannotMeasure(f"{what} {died}" + (f": {last[0]}" if last else ""),
                            "out of memory? try a smaller --batch" if status == -9 else f"its log is {log}")
    if not log.stat().st_size:
        log.unlink()


@contextmanager
def _stopped_on_error(process: subprocess.Popen[str]) -> Iterator[None]:
    try:
        yield
    except BaseException:
        # The session is the child's own, so that Ctrl-C reaches the parent first, which then ends the child.
        try:
            process.terminate()
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            pass
        finally:
            kill(process)
        raise


@contextmanager
def watched(process: subprocess.Popen[str], limits: Limits, what: str) -> Iterator[Watch]:
    """Look at a process now and then, from a thread of its own, and end it when it goes beyond a limit.

    Args:
        process: Leads a session of its own.
        limits: When it is ended.
        what: The process in words, for errors.
    """
    watch = Watch(process, limits, what)
    over = threading.Event()
    thread = threading.Thread(target=watch.look, args=(over,), name="edgebench-watch", daemon=True)
    if limits != UNLIMITED:
        thread.start()
    try:
        yield watch
    finally:
        over.set()
        if limits != UNLIMITED:
            thread.join()


class Watch:
    """How long a process has run and said nothing, and which limit it went beyond."""

    def __init__(self, process: subprocess.Popen[str], limits: Limits, what: str) -> None:
        self._process, self._limits, self._what = process, limits, what
        self._running_s = self._silent_s = 0.0
        self.exceeded: CannotMeasure | None = None
        """Why the process was ended; None where it was not."""

    def heard(self) -> None:
        """Note that the process has said something."""
        self._silent_s = 0.0

    def look(self, over: threading.Event) -> None:
        """Look until `over`, or until the process had to be ended."""
        before = clock()
        while not over.wait(POLL_S):
            # While this process was stopped or the machine asleep, nothing could be heard.
            passed, before = min(clock() - before, 2 * POLL_S), clock()
            self._running_s += passed
            self._silent_s += passed
            self.exceeded = self._beyond()
            if self.exceeded is not None:
                kill(self._process)
                return

    def _beyond(self) -> CannotMeasure | None:
        limits = self._limits
        if limits.time_s is not None and self._running_s > limits.time_s:
            return CannotMeasure(f"{self._what} was stopped after its time limit of {limits.time_s:g} s", limits.hint)
        if limits.silence_s is not None and self._silent_s > limits.silence_s:
            return CannotMeasure(f"{self._what} was stopped: it made no progress for {limits.silence_s:g} s",
                                 limits.hint)
        if limits.memory_bytes is not None and (used := memory_bytes(self._process.pid)) > limits.memory_bytes:
            return CannotMeasure(f"{self._what} was stopped when it had taken {used / 1e9:.1f} GB: that is all the "
                                 "memory that was free", "try a smaller --batch, or a machine with more memory")
        return None


def memory_bytes(pid: int) -> int:
    """Return the memory and swap that a process and all that it started have of their own; 0 where it has ended."""
    total, waiting = 0, [pid]
    while waiting:
        place = Path("/proc") / str(waiting.pop())
        with suppress(OSError):
            lines = dict(line.split(":", 1) for line in (place / "status").read_text().splitlines())
            total += sum(1024 * int(lines[name].split()[0]) for name in OWN_MEMORY if name in lines)
            for task in (place / "task").iterdir():
                waiting += map(int, (task / "children").read_text().split())
    return total


def kill(process: subprocess.Popen[str]) -> None:
    """End a process and all that it started; it leads a session of its own."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def parse(line: str) -> Message:
    """Return a child's message; runtimes write to standard output too, and that is passed over."""
    try:
        message = json.loads(line)
    except json.JSONDecodeError:
        return {}
    return message if isinstance(message, dict) else {}
