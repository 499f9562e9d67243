"""The command line for tests: in this process, or in one of its own."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[1]
# A hang ends here. No test says how fast a command is: a busy machine takes many times longer than a free one.
TIME_LIMIT_S = 1500


def cli(*words: str | Path, cwd: Path | None = None, env: Mapping[str, str] | None = None, fresh: bool = False,
        ) -> subprocess.CompletedProcess[str]:
    """Run the command line and return its exit code and output.

    It runs in this process, which has the heavy libraries imported already; the processes that build, time and evaluate
    are real ones all the same.

    Args:
        words: The arguments.
        cwd: Where it runs.
        env: Environment variables on top of the present ones.
        fresh: Start a Python of its own, for what the first imports, the interpreter or signals decide.
    """
    arguments = [*map(str, words)]
    if fresh:
        return subprocess.run([sys.executable, "-m", "edgebench", *arguments], capture_output=True, text=True, cwd=cwd,
                              env={**os.environ, "PYTHONPATH": str(PROJECT), **(env or {})}, timeout=TIME_LIMIT_S,
                              check=False)
    from edgebench.cli import main

    # Text over bytes as real streams are, so that what cannot be encoded fails here too.
    written = [io.BytesIO() for _ in range(2)]
    streams = [io.TextIOWrapper(one, encoding="utf-8", newline="\n") for one in written]
    code: object = 0
    with _as_a_process(["edgebench", *arguments], cwd, env or {}), contextlib.redirect_stdout(streams[0]), \
            contextlib.redirect_stderr(streams[1]):
        try:
            main()
        except SystemExit as ended:
            code = ended.code
    assert isinstance(code, int), code
    for stream in streams:
        stream.flush()
    output, errors = (one.getvalue().decode() for one in written)
    return subprocess.CompletedProcess(arguments, code, output, errors)


# What a shell starts in the background ignores Ctrl-C, and so does all that it starts. This sets the dispositions first.
LISTEN = "import os, signal, sys; [signal.signal(one, signal.SIG_DFL) for one in (1, 2, 15)]; os.execv(sys.argv[1], sys.argv[1:])"


def run_with_ctrl_c(command: Sequence[str | Path]) -> subprocess.CompletedProcess[str]:
    """Run a program that takes signals as one in a terminal does, whatever this process inherited."""
    return subprocess.run([sys.executable, "-S", "-c", LISTEN, *map(str, command)], capture_output=True, text=True,
                          timeout=TIME_LIMIT_S, check=False)


def interrupt(*words: str | Path, when: Callable[[], bool], number: int = signal.SIGINT) -> tuple[int, str]:
    """Start the command line, send it a signal once `when` holds, and return its exit code and standard error."""
    process = subprocess.Popen([sys.executable, "-S", "-c", LISTEN, sys.executable, "-m", "edgebench", *map(str, words)],
                               stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + TIME_LIMIT_S
    while not when() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)
    _, errors = process.communicate(timeout=TIME_LIMIT_S)
    return process.returncode, errors


@contextlib.contextmanager
def _as_a_process(argv: list[str], cwd: Path | None, env: Mapping[str, str]) -> Iterator[None]:
    """Set arguments, folder and environment for a while; the command changes what happens at signals as well."""
    before = {one: signal.getsignal(one) for one in (signal.SIGPIPE, signal.SIGTERM, signal.SIGHUP)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", argv)
        for name, value in env.items():
            patch.setenv(name, value)
        if cwd is not None:
            patch.chdir(cwd)
        try:
            yield
        finally:
            for one, handler in before.items():
                signal.signal(one, handler)
