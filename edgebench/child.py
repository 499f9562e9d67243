"""Processes of our own that do one job: what they tell, how they fail, how long they may take.

A job is a module that reads a JSON file and tells its parent how far it is in JSON lines on its standard output. What
crashes, hangs or runs out of memory there leaves the parent and its other jobs alone.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from edgebench.errors import KINDS, CannotMeasure, EdgebenchError, ExitCode, writing

Message = dict[str, object]


def send(message: Message) -> None:
    """Tell the parent something; called in the child."""
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def serve(work: Callable[[Path], None]) -> None:
    """Run `work` on the job file named on the command line, in the child; its errors reach the parent."""
    try:
        work(Path(sys.argv[1]))
    except EdgebenchError as error:
        send({"error": type(error).__name__, "message": error.message, "hint": error.hint})
        sys.exit(ExitCode.UNMEASURABLE)
    except KeyboardInterrupt:
        sys.exit(ExitCode.UNMEASURABLE)


def run(module: str, job: Path, log: Path, told: Callable[[Message], None], *, what: str,
        time_limit_s: float | None = None, temporary: Path | None = None) -> None:
    """Run ``python -m module job`` to its end.

    Args:
        module: The job's module.
        job: Its JSON file.
        log: Where its standard error goes; removed where it stays empty.
        told: Receives its messages.
        what: The process in words, for errors.
        time_limit_s: It is killed, with all that it started, after this many seconds; None: never.
        temporary: Folder for its temporary files, which a killed process leaves behind; the system's where None.

    Raises:
        EdgebenchError: What the job raised, or that it died or took too long.
    """
    failure: dict[str, str] = {}
    expired = threading.Event()
    with writing(log), log.open("wb") as errors, subprocess.Popen(
            [sys.executable, "-m", module, str(job)], stdout=subprocess.PIPE, stderr=errors, text=True,
            env={**os.environ, "PYTHONSAFEPATH": "1", **({"TMPDIR": str(temporary)} if temporary else {})},
            start_new_session=True) as process:
        assert process.stdout is not None

        def expire() -> None:
            expired.set()
            kill(process)

        timer = threading.Timer(time_limit_s or 0.0, expire)
        timer.daemon = True
        try:
            if time_limit_s is not None:
                timer.start()
            for line in process.stdout:
                message = parse(line)
                if "error" in message:
                    failure = {key: str(value) for key, value in message.items()}
                else:
                    told(message)
        except BaseException:
            _stop(process)
            raise
        finally:
            timer.cancel()
        status = process.wait()
    if expired.is_set():
        raise CannotMeasure(f"{what} was stopped after its time limit of {time_limit_s:g} s",
                            "raise time_limit_s in the recipe's [build] table, or leave the recipe out")
    if failure:
        raise KINDS.get(failure["error"], CannotMeasure)(failure["message"], failure["hint"])
    if status != 0:
        last = log.read_text(errors="replace").strip().splitlines()[-1:]
        died = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
        raise CannotMeasure(f"{what} {died}" + (f": {last[0]}" if last else ""),
                            "out of memory? try a smaller --batch" if status == -9 else f"its log is {log}")
    if not log.stat().st_size:
        log.unlink()


def _stop(process: subprocess.Popen[str]) -> None:
    # The session is the child's own, so that Ctrl-C reaches the parent first, which then ends the child.
    process.terminate()
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        kill(process)


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
