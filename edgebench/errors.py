"""The one error type, its few kinds, and the helpers that phrase errors alike everywhere.

Library code raises; only ``edgebench.cli`` prints. Every error says what happened (with what was expected and
received) and, where something can be done about it, a hint.
"""

from __future__ import annotations

import difflib
import enum
import errno
import importlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType


class ExitCode(enum.IntEnum):
    """Exit codes of every command. A finding and a breakage never share a code."""

    PASSED = 0
    FAILED = 1
    USAGE = 2
    UNMEASURABLE = 3
    INCONCLUSIVE = 4


class EdgebenchError(Exception):
    """Something that a user can act on.

    Args:
        message: One line: what happened, what was expected and what was received.
        hint: One line: what to do next; empty where there is nothing to advise.
    """

    exit_code = ExitCode.UNMEASURABLE

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(EdgebenchError):
    """An option, name or file handed to a command that it cannot take."""

    exit_code = ExitCode.USAGE


class InvalidInput(EdgebenchError):
    """A file, folder, model or artifact that is unreadable, altered or not of the expected form."""


class MissingDependency(EdgebenchError):
    """An optional package that this step needs is not installed."""


class CannotMeasure(EdgebenchError):
    """The environment does not allow an honest measurement."""


class Unending(CannotMeasure):
    """An inference that had to be stopped."""


KINDS: dict[str, type[EdgebenchError]] = {
    kind.__name__: kind for kind in (UsageError, InvalidInput, MissingDependency, CannotMeasure)
}


def require(module: str, extra: str) -> ModuleType:
    """Import and return `module`, which the optional `extra` brings.

    Raises:
        MissingDependency: The module, or something it imports, is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        missing = (getattr(error, "name", None) or module).partition(".")[0]
        raise MissingDependency(
            f"{package} is not installed" if missing == package else f"{module} cannot be imported: {error}",
            f"install it with: pip install 'edgebench[{extra}]'",
        ) from error


def suggest(word: str, known: Iterable[str]) -> str:
    """Return ``; did you mean 'x'?`` for the nearest known word, or an empty string."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""


def unknown(kind: str, word: str, known: Iterable[str], hint: str = "") -> UsageError:
    """Return the error for a name that is not in the list of known names."""
    names = sorted(known)
    return UsageError(
        f"unknown {kind} {word!r}{suggest(word, names)}",
        hint or (f"known: {', '.join(names)}" if names else ""),
    )


@contextmanager
def writing(path: Path, hint: str = "") -> Iterator[None]:
    """Turn a failed write below `path` into an `InvalidInput` that names the path and the cause.

    Args:
        path: What is written, where the error itself does not name a file.
        hint: Instead of the hint for an output folder.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        usual = {
            errno.ENOSPC: "free some space, then go on with --resume: finished parts are kept",
            errno.EDQUOT: "the disk quota is used up: free some space, then go on with --resume",
            errno.EACCES: "choose a folder you may write to with --out",
            errno.EROFS: "choose a folder on a writable file system with --out",
            errno.EPERM: "choose a folder you may write to with --out",
            errno.ENOTDIR: "a part of this path is a file: choose another folder with --out",
            errno.EEXIST: "a part of this path is a file: choose another folder with --out",
        }.get(error.errno, "")
        raise InvalidInput(f"cannot write {error.filename or path}: {error.strerror}", hint or usual) from error
