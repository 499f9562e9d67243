"""Reading the small files of sysfs and procfs: a value, or the reason why there is none."""

from __future__ import annotations

import errno
import math
import os
import re
from pathlib import Path
from typing import Protocol

from edgebench.telemetry.types import Absent, Channel

Reading = float | str
"""A number, or the reason in words why there is none."""

_REASONS = {
    errno.ENOENT: "is not there", errno.ENODEV: "the sensor is gone", errno.ENXIO: "the sensor is gone",
    errno.EACCES: "only root may read it", errno.EPERM: "only root may read it",
    errno.EAGAIN: "the sensor is switched off at the moment", errno.EINVAL: "the sensor is switched off at the moment",
    errno.ENODATA: "the sensor has no data",
}


class Sensor(Protocol):
    """Something that is read at intervals; `read` returns one reading per channel and never raises for a bad sensor."""

    @property
    def channels(self) -> tuple[Channel, ...]:
        """What it reports, in the order of `read`."""

    @property
    def interval_s(self) -> float:
        """How often it is worth reading."""

    @property
    def absent(self) -> tuple[Absent, ...]:
        """What was looked for and is not there."""

    def read(self) -> tuple[Reading, ...]:
        """Return one reading per channel."""

    def close(self) -> None:
        """Give back what it holds."""


def because(path: Path, error: OSError) -> str:
    """Return why a file could not be read, in words that name it."""
    return f"{path.name}: {_REASONS.get(error.errno or 0, error.strerror or 'cannot be read')}"


def text(path: Path) -> str | None:
    """Return the file's text without trailing space and NULs; None where it cannot be read or is empty."""
    try:
        found = path.read_text(encoding="utf-8", errors="replace").strip().strip("\0").strip()
    except OSError:
        return None
    return found or None


def raw(path: Path) -> bytes:
    """Return the beginning of a file, up to 4 KiB: a fifth of the time of `Path.read_text`, many times a second.

    Raises:
        OSError: It cannot be read.
    """
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(handle, 4096)
    finally:
        os.close(handle)


def number(path: Path, scale: float = 1.0) -> Reading:
    """Return the file's number times `scale`, or the reason why there is none."""
    try:
        found = raw(path)
    except OSError as error:
        return because(path, error)
    try:
        value = float(found)
    except ValueError:
        value = math.nan
    if math.isfinite(value):
        return value * scale
    return f"{path.name}: expected a number, got {found.decode('utf-8', 'replace').strip()[:40]!r}"


def integer(path: Path) -> int | None:
    """Return the file's whole number; None where there is none."""
    found = text(path)
    return int(found) if found is not None and re.fullmatch(r"-?\d+", found) else None


def numbered(folder: Path, pattern: str) -> list[Path]:
    """Return the paths below `folder` that match, those with numbers in them in the order of their numbers."""
    def key(path: Path) -> list[int | str]:
        return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", str(path))]
    return sorted(folder.glob(pattern), key=key) if folder.is_dir() else []


def hwmons(root: Path) -> list[Path]:
    """Return the folders of all hardware monitors, each once: by class, then those that only their driver shows."""
    found: dict[Path, Path] = {}
    for path in (*numbered(root / "sys/class/hwmon", "hwmon*"),
                 *numbered(root / "sys/bus/i2c/drivers", "ina*/*/hwmon/hwmon*")):
        found.setdefault(path.resolve(), path)
    return list(found.values())
