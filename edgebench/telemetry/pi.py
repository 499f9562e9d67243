"""Raspberry Pi: the power management chip's rails, and the firmware's throttle flags, both through ``vcgencmd``.

The chip sees its own rails, not the 5 V that USB devices and the board draw past it: the estimate of the whole board is
a community fit, 1.1451 times the sum of the rails plus 0.5879 W, and is marked as an estimate. A USB-C meter is better.
"""

from __future__ import annotations

import re

from edgebench.telemetry.commands import Runner
from edgebench.telemetry.files import Reading
from edgebench.telemetry.types import Absent, Channel

FIT_SLOPE, FIT_OFFSET_W = 1.1451, 0.5879
LINE = re.compile(r"\s*(\S+)_([AV])\s+(?:current|volt)\(\d+\)=(-?\d+(?:\.\d+)?)([AV])\s*")
FLAGS = {0: "under-voltage", 1: "frequency-capped", 2: "throttled", 3: "soft-temperature-limit"}
"""Now; the same 16 bits higher: has happened since boot."""


def parse_adc(output: str) -> dict[str, float]:
    """Return watts by rail from ``vcgencmd pmic_read_adc``: rails with both a current and a voltage."""
    amperes: dict[str, float] = {}
    volts: dict[str, float] = {}
    for line in output.splitlines():
        found = LINE.fullmatch(line)
        if found and found[2] == found[4]:
            (amperes if found[2] == "A" else volts)[found[1]] = float(found[3])
    return {rail: amperes[rail] * volts[rail] for rail in amperes if rail in volts}


def parse_throttled(output: str) -> int | None:
    """Return the bit mask from ``vcgencmd get_throttled`` (``throttled=0x50000``); None where there is none."""
    found = re.search(r"throttled=0x([0-9a-fA-F]+)", output)
    return int(found[1], 16) if found else None


def throttled_now(mask: int) -> tuple[str, ...]:
    """Return what limits the board at this moment."""
    return tuple(name for bit, name in FLAGS.items() if mask >> bit & 1)


def throttled_since_boot(mask: int) -> tuple[str, ...]:
    """Return what has limited it since boot."""
    return throttled_now(mask >> 16)


class PiPower:
    """The rails of a Raspberry Pi 5, their sum and the estimate of the whole board, in watts; and the throttle flags.

    Args:
        runner: Runs ``vcgencmd``.
    """

    interval_s = 0.5
    """Each reading starts two processes."""

    def __init__(self, runner: Runner) -> None:
        self._run = runner
        self._absent: list[Absent] = []
        found = runner(("vcgencmd", "pmic_read_adc"))
        self._rails = tuple(parse_adc(found.output)) if found.code == 0 else ()
        self._flags = parse_throttled(runner(("vcgencmd", "get_throttled")).output) is not None
        if not self._rails:
            self._absent.append(Absent(what="power of the Raspberry Pi", reason=_why(found.code, found.output)))

    @property
    def channels(self) -> tuple[Channel, ...]:
        """Rails, sum, estimate, flags: those that answered."""
        source = "vcgencmd pmic_read_adc"
        rails = [Channel(name=f"pmic/{rail}", label=rail, quantity="power_w", source=source, scope="rail")
                 for rail in self._rails]
        sums = [Channel(name="pmic/estimate", label="board, estimated", quantity="power_w", source=source,
                        scope="board", estimate=True, meaning=f"{FIT_SLOPE} × sum of rails + {FIT_OFFSET_W} W, a "
                        "community fit; USB devices are not in it")] if self._rails else []
        flags = [Channel(name="pi/throttled", label="get_throttled", quantity="flags",
                         source="vcgencmd get_throttled")] if self._flags else []
        return (*rails, *sums, *flags)

    @property
    def absent(self) -> tuple[Absent, ...]:
        """Why there is no power."""
        return tuple(self._absent)

    def read(self) -> tuple[Reading, ...]:
        """Return watts per rail, the estimate, and the flags."""
        readings: list[Reading] = []
        if self._rails:
            found = self._run(("vcgencmd", "pmic_read_adc"))
            watts = parse_adc(found.output) if found.code == 0 else {}
            lost = _why(found.code, found.output)
            readings += [watts.get(rail, lost) for rail in self._rails]
            complete = all(rail in watts for rail in self._rails)
            readings.append(FIT_SLOPE * sum(watts[rail] for rail in self._rails) + FIT_OFFSET_W if complete else lost)
        if self._flags:
            mask = parse_throttled(self._run(("vcgencmd", "get_throttled")).output)
            readings.append(float(mask) if mask is not None else "get_throttled gave no mask")
        return tuple(readings)

    def close(self) -> None:
        """Nothing is held open."""


def _why(code: int, output: str) -> str:
    if code == 127:
        return "vcgencmd is not installed"
    first = output.strip().splitlines()[0] if output.strip() else "no output"
    if "vchiq" in output or "vcio" in output:
        return f"vcgencmd: {first}; add the user to the group video"
    return f"vcgencmd pmic_read_adc: no rail with current and voltage ({first[:60]})"
