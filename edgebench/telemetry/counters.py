"""Counters that tell whether the device was slowed down between two looks, and what sampled throttle channels tell.

Of counters only the growth means anything: over-current events of Jetson (``soctherm_oc``), throttle counts of x86
processors, the container's CPU quota, and the Raspberry Pi's flags. ``oc1`` (under-voltage) and ``oc2`` (average
over-current) invalidate timings; ``oc3`` (instantaneous) also rises without any visible effect in the widest power
modes and is reported as a rate.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from edgebench.telemetry import pi
from edgebench.telemetry.clocks import residency, time_in_state
from edgebench.telemetry.commands import Runner
from edgebench.telemetry.files import hwmons, integer, numbered, text
from edgebench.telemetry.nvml import throttle_reasons
from edgebench.telemetry.types import (
    NVML_POWER_CAP,
    NVML_SLOWDOWNS,
    PI_SLOWDOWNS,
    Residency,
    Series,
    ThrottleEvent,
)

OVER_CURRENT = {"oc1": ("under-voltage", True), "oc2": ("over-current-average", True),
                "oc3": ("over-current-instantaneous", False)}
QUOTA_SHARE = 0.01
"""Of the periods in which the quota stopped the container; above it the 99th percentile is made of them."""
CAP_SHARE = 0.05
"""Of a stretch's readings with a power cap; below it the cap is stated, wherever it lies."""
PARTS = 4
"""Of a stretch; a power cap that all of them show is the card's normal state under this load."""
CAP_READINGS = 20
"""With fewer, a part without a cap may be chance: a card that is held at its limit shows it on and off."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Counters:
    """One look at everything that counts."""

    over_current: dict[str, int] = field(default_factory=dict)
    """``soctherm_oc`` events since boot, by alarm (``oc1`` …)."""
    cpu_thermal: dict[str, int] = field(default_factory=dict)
    """Throttle counts of x86 processors: ``core 0`` …, ``package 0`` …."""
    quota_stops: int | None = None
    """Periods in which the container's CPU quota stopped it; None without a quota's counters."""
    quota_periods: int | None = None
    """All periods of the quota."""
    pi_flags: int | None = None
    """``vcgencmd get_throttled``."""
    cpu_ticks: dict[str, dict[int, int]] = field(default_factory=dict)
    """`edgebench.telemetry.clocks.time_in_state`."""


def look(root: Path, runner: Runner | None = None) -> Counters:
    """Return all counters now.

    Args:
        root: Where ``sys`` hangs.
        runner: Runs ``vcgencmd``; None: this is no Raspberry Pi.
    """
    return Counters(
        over_current=_over_current(root), cpu_thermal=_cpu_thermal(root), quota_stops=_quota(root, "nr_throttled"),
        quota_periods=_quota(root, "nr_periods"),
        pi_flags=pi.parse_throttled(runner(("vcgencmd", "get_throttled")).output) if runner else None,
        cpu_ticks=time_in_state(root))


def _over_current(root: Path) -> dict[str, int]:
    found = {}
    for folder in hwmons(root):
        if text(folder / "name") == "soctherm_oc":
            for path in numbered(folder, "oc*_event_cnt"):
                count = integer(path)
                if count is not None:
                    found[path.name.partition("_")[0]] = count
    return found


def _cpu_thermal(root: Path) -> dict[str, int]:
    found: dict[str, int] = {}
    for cpu in numbered(root / "sys/devices/system/cpu", "cpu[0-9]*"):
        core = integer(cpu / "thermal_throttle/core_throttle_count")
        package = integer(cpu / "thermal_throttle/package_throttle_count")
        place = text(cpu / "topology/physical_package_id") or "0"
        if core is not None:
            found[f"core {cpu.name[3:]}"] = core
        if package is not None:
            # Every CPU of a package shows the package's count.
            found[f"package {place}"] = max(package, found.get(f"package {place}", 0))
    return found


def _quota(root: Path, counter: str) -> int | None:
    for path in ("sys/fs/cgroup/cpu.stat", "sys/fs/cgroup/cpu/cpu.stat", "sys/fs/cgroup/cpu,cpuacct/cpu.stat"):
        found = re.search(rf"^{counter} (\d+)$", text(root / path) or "", re.MULTILINE)
        if found:
            return int(found[1])
    return None


def events(before: Counters, after: Counters, duration_s: float) -> tuple[ThrottleEvent, ...]:
    """Return what happened between two looks; nothing where every counter stood still."""
    found: list[ThrottleEvent] = []
    for alarm, grown in _growth(before.over_current, after.over_current):
        code, invalidates = OVER_CURRENT.get(alarm, (f"over-current-{alarm}", False))
        rate = grown / duration_s if duration_s > 0 else None
        found.append(ThrottleEvent(
            code=code, invalidates=invalidates, count=grown, rate_hz=rate,
            message=f"soctherm_oc counted {grown} {code.replace('-', ' ')} events ({alarm}_event_cnt)"))
    for place, grown in _growth(before.cpu_thermal, after.cpu_thermal):
        found.append(ThrottleEvent(code="cpu-thermal", invalidates=True, count=grown,
                                   message=f"{place} was throttled {grown} times because of heat (thermal_throttle)"))
    if before.quota_stops is not None and after.quota_stops is not None:
        grown = after.quota_stops - before.quota_stops
        periods = (after.quota_periods or 0) - (before.quota_periods or 0)
        if grown > 0:
            found.append(ThrottleEvent(
                code="cpu-quota", invalidates=grown > QUOTA_SHARE * periods, count=grown,
                message=f"the container's CPU quota stopped it in {grown} of {periods} periods (nr_throttled)"))
    found += _pi_events(before.pi_flags, after.pi_flags)
    return tuple(found)


def cpu_residency(before: Counters, after: Counters) -> tuple[Residency, ...]:
    """Return how long each CPU cluster stayed at each frequency between two looks."""
    return residency(before.cpu_ticks, after.cpu_ticks)


def _growth(before: Mapping[str, int], after: Mapping[str, int]) -> Iterable[tuple[str, int]]:
    # A counter that fell was reset, by a reboot or a driver; its growth is unknown and at least what it shows now.
    for name, count in after.items():
        grown = count - before.get(name, 0) if count >= before.get(name, 0) else count
        if name in before and grown > 0:
            yield name, grown


def _pi_events(before: int | None, after: int | None) -> list[ThrottleEvent]:
    if before is None or after is None:
        return []
    # What has happened since boot stays set: only a bit that was clear before tells of this run. What is in force now
    # tells in any case.
    fresh = set(pi.throttled_since_boot(after)) - set(pi.throttled_since_boot(before))
    active = set(pi.throttled_now(before)) | set(pi.throttled_now(after))
    return [ThrottleEvent(code=name, invalidates=True, message=f"the Raspberry Pi's firmware reports {name} during the "
                          f"run (get_throttled 0x{before:x}, then 0x{after:x})") for name in sorted(fresh | active)]


def series_events(series: Iterable[Series], windows: Mapping[str, tuple[int, int]]) -> tuple[ThrottleEvent, ...]:
    """Return what sampled flags and cooling devices tell of some stretches of time: reasons in force, and how often.

    Heat, a power brake and a lowered limit invalidate the timings of a stretch. A power cap is how many cards run under
    load, a condition to be stated; it invalidates where one part of the stretch shows it and another does not, for its
    timings are then of two states.

    Args:
        series: Throttle channels.
        windows: Begin and end (ns, on the series' clock) of every stretch, by what ran in it.
    """
    return tuple(event for one in series for what, window in windows.items()
                 for event in _window_events(one, what, window))


def _window_events(one: Series, what: str, window: tuple[int, int]) -> Iterable[ThrottleEvent]:
    inside = [(at, value) for at, value in zip(one.t_ns, one.values, strict=True) if window[0] <= at <= window[1]]

    def event(code: str, message: str, active: list[bool], *, invalidates: bool = True) -> Iterable[ThrottleEvent]:
        if any(active):
            yield ThrottleEvent(code=code, invalidates=invalidates, count=sum(active),
                                message=f"{message} in {sum(active)} of {len(active)} readings of {what}")

    def bit_set(bit: int) -> list[bool]:
        return [bool(int(value) & bit) for _, value in inside]

    name = one.channel.name
    if one.channel.quantity == "level":
        yield from event("clock-limit" if name.startswith("limit/") else "cooling-alert",
                         f"{one.channel.label} was in force", [value > 0 for _, value in inside])
    elif name.startswith("nvml/"):
        for bit in _bits(NVML_SLOWDOWNS):
            reason, = throttle_reasons(bit)
            yield from event(f"gpu-{reason.replace(' ', '-')}", f"NVML: {reason}", bit_set(bit))
        capped = bit_set(NVML_POWER_CAP)
        span = (window[1] - window[0]) // PARTS + 1
        parts = {(at - window[0]) // span for at, _ in inside}
        shown = {(at - window[0]) // span for (at, _), cap in zip(inside, capped, strict=True) if cap}
        passing = len(capped) >= CAP_READINGS and sum(capped) > CAP_SHARE * len(capped) and parts != shown
        yield from event("gpu-power-cap", f"NVML: power cap{' in a part of the time only,' if passing else ''}", capped,
                         invalidates=passing)
    else:
        for bit in _bits(PI_SLOWDOWNS):
            limit, = pi.throttled_now(bit)
            yield from event(limit, f"get_throttled showed {limit}", bit_set(bit))


def _bits(mask: int) -> list[int]:
    return [1 << place for place in range(mask.bit_length()) if mask >> place & 1]
