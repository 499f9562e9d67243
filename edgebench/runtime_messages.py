"""What runtimes and converters say when they fail, cut to the first line that a user can act on.

Their texts hold C++ signatures, source locations, error codes and the paths of scratch files, none of which means
anything to a user.
"""

from __future__ import annotations

import re
from pathlib import Path

LIMIT = 200
"""Characters of a message that are kept."""
THE_MODEL = "the model"
"""What a scratch file is called."""
# Names of the folders that edgebench builds in, and of tempfile's.
_SCRATCH_PART = r"(?:\.(?:part|quantize|build|draw|write)-[\w-]*|(?:draw|tmp)-\w+|tmp\w{8})"
_SCRATCH = re.compile(_SCRATCH_PART)
_SCRATCH_PATH = re.compile(rf"(?<![\w.])(?:[\w.~-]*/)*{_SCRATCH_PART}(?:/[\w.+~-]+)*")
_CODE = re.compile(r"\[ONNXRuntimeError\] : |(?<!\S)\d+ : [A-Z_]{2,} : ")
_LOADING = re.compile(r"Load model from .*? failed:\s*")
_TERMINAL = re.compile(r"\x1b\[[\d;]*[A-Za-z]")
_ASSERTION = re.compile(r"\S+\.(?:h|hpp|cc|cpp|cxx):\d+:?\s+\S+:\s+Assertion\s+[`'].*?[`']\s+failed:?\s*")
_LOCATION = re.compile(r"\S*\.(?:h|hpp|cc|cpp|cxx):\d+:?\s*")
_SUFFIX = re.compile(r"\s*(?:const\b|noexcept\b|\[with [^\]]*\])")
# Lines that only say where in a program something failed.
_NOISE = re.compile(
    r"Exception from|Check '.*' failed( at|$)|FrontEnd API failed|While validating|-- |Summary:|Model wasn't fully "
    r"converted|\[ONNX Frontend\] Conversion failed|Failed operations detailed log|==> Context")


def useful(error: object, limit: int = LIMIT) -> str:
    """Return the first line of a runtime's or converter's message that says what is wrong, `limit` characters at most.

    Args:
        error: An exception, or its text.
        limit: Longer lines end in an ellipsis.
    """
    text = _TERMINAL.sub("", str(error))
    text = _CODE.sub("", _LOADING.sub("", text))
    lines = [_plain(line) for line in text.splitlines() if not _NOISE.match(line.strip())]
    told = next((line for line in lines if line), "") or (type(error).__name__ if isinstance(error, Exception) else "")
    return told if len(told) <= limit else f"{told[:limit].rstrip()}…"


def shown(path: Path) -> str:
    """Return a file's name for messages: its path, or `THE_MODEL` where it lies in a scratch folder."""
    return THE_MODEL if any(_SCRATCH.fullmatch(part) for part in path.parts) else str(path)


def _plain(line: str) -> str:
    line = _ASSERTION.sub("", line)
    while (place := _LOCATION.search(line)) is not None:
        line = line[:place.start()] + _after_signature(line[place.end():])
    return " ".join(_SCRATCH_PATH.sub(THE_MODEL, line).split())


def _after_signature(text: str) -> str:
    """Return what follows a C++ signature; the text itself where it begins with none."""
    rest = text
    while "(" in rest:
        head, _, _ = rest.partition("(")
        if rest is text and "::" not in head:
            return text
        depth = 0
        for place in range(len(head), len(rest)):
            depth += {"(": 1, ")": -1}.get(rest[place], 0)
            if depth == 0:
                break
        else:
            return text
        rest = rest[place + 1:]
        while (suffix := _SUFFIX.match(rest)) is not None:
            rest = rest[suffix.end():]
        if not rest.startswith(("::", "(", ">")):
            return rest
    return rest
