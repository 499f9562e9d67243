"""How value types refuse what is out of range, and what a file may use as a name or as a path."""

from __future__ import annotations

import math
import os
import unicodedata
from pathlib import PurePosixPath

MAX_NAME_BYTES = 200
"""Longest name that becomes a part of a path: file systems take 255, and suffixes are added."""
MAX_PATH_BYTES = 1024
_NOT_NEGATIVE = frozenset({"s", "bytes", "images/s", "1/s", "J", "W", "nat"})
_SIGNED = ("signed_gap", "_change", "_gain", "ece_debiased_l1", "energy_per_inference_net")
"""Parts of names of metrics that may be negative: changes, gaps, and what a baseline was subtracted from."""
_OVER_ONE = ("build_latency_spread",)
"""Fractions of something else than a whole."""


def check(condition: bool, expected: str, got: object) -> None:  # noqa: FBT001  # reads like assert
    """Raise ValueError with ``expected …, got …`` unless the condition holds."""
    if not condition:
        raise ValueError(f"expected {expected}, got {got!r}")


def is_name(text: str) -> bool:
    """Return whether a text can be one component of a path and nothing else.

    It has no separator, no leading dot or dash, no control character, and at most `MAX_NAME_BYTES` bytes.
    """
    return _fits(text, MAX_NAME_BYTES) and text[0] not in ".-" and not set(text) & set("/\\:")


def is_inner_path(text: str) -> bool:
    """Return whether a text is a relative POSIX path that stays inside the folder it starts from."""
    return (_fits(text, MAX_PATH_BYTES) and "\\" not in text and text != "." and not text.startswith("/")
            and ".." not in text.split("/") and PurePosixPath(text).as_posix() == text)


def check_name(text: str, what: str) -> None:
    """Raise ValueError unless `text` is a name; see `is_name`."""
    check(is_name(text), f"{what} without '/', '\\', ':', control characters or a leading '.' or '-', of at most "
                         f"{MAX_NAME_BYTES} bytes", _shortened(text))


def check_inner_path(text: str, what: str) -> None:
    """Raise ValueError unless `text` is a path inside its folder; see `is_inner_path`."""
    check(is_inner_path(text), f"{what} to be a relative path inside its folder", _shortened(text))


def bounds(metric: str, unit_: str) -> tuple[float, float]:
    """Return the least and the largest value that a metric of that unit can have."""
    if "mcnemar_p" in metric:
        return 0.0, 1.0
    high = 1.0 if unit_ == "fraction" and metric not in _OVER_ONE else math.inf
    signed = sum(part in metric for part in _SIGNED)
    if signed:
        # The change of what may be negative itself spans twice as much.
        return -high * signed, high * signed
    return (0.0 if unit_ == "fraction" or unit_ in _NOT_NEGATIVE else -math.inf), high


def _fits(text: str, most_bytes: int) -> bool:
    try:
        size = len(os.fsencode(text))
    except UnicodeEncodeError:
        # A lone surrogate that stands for no byte cannot be part of a file name.
        return False
    return 0 < size <= most_bytes and not any(unicodedata.category(char) in ("Cc", "Zl", "Zp") for char in text)


def _shortened(text: str, most: int = 80) -> str:
    return text if len(text) <= most else f"{text[:most]}…"
