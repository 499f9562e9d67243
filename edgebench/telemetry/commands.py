"""Running the boards' own tools, through one function that tests replace."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass

TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a command left."""

    code: int
    """Exit status; 127 where there is no such command, 124 where it did not end in time."""
    output: str
    """Standard output and standard error together."""


Runner = Callable[[Sequence[str]], Outcome]
"""Runs a command without a terminal and without standard input."""


def run(command: Sequence[str]) -> Outcome:
    """Run a command and return what it left; standard input is closed, so that a question is answered with its end."""
    program = shutil.which(command[0])
    if program is None:
        return Outcome(code=127, output=f"{command[0]}: no such command")
    # A tool that hangs ends with this process, should that be killed; without util-linux its time limit ends it.
    binder = shutil.which("setpriv")
    bound = (binder, "--pdeathsig", "KILL", "--", program) if binder is not None else (program,)
    try:
        # In a session of its own, where Ctrl-C does not reach it: what sets the clocks back must not be stopped.
        done = subprocess.run([*bound, *command[1:]], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True, errors="replace", timeout=TIMEOUT_S, check=False,
                              start_new_session=True)
    except subprocess.TimeoutExpired:
        return Outcome(code=124, output=f"{command[0]} did not end within {TIMEOUT_S:g} s")
    except OSError as error:
        return Outcome(code=126, output=f"{command[0]}: {error.strerror}")
    return Outcome(code=done.returncode, output=done.stdout)
