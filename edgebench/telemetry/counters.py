"""Counters that tell whether the device was slowed down between two looks: only their growth means anything.

Over-current events of Jetson (``soctherm_oc``), throttle counts of x86 processors, the container's CPU quota, and the
Raspberry Pi's flags. ``oc1`` (under-voltage) and ``oc2`` (average over-current) invalidate timings; ``oc3``
(instantaneous) also rises without any visible effect in the widest power modes and is reported as a rate.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from edgebench.telemetry import pi
from edgebench.telemetry.clocks import Residency, residency, time_in_state
from edgebench.telemetry.commands import Runner
from edgebench.telemetry.files import hwmons, integer, numbered, text
from edgebench.telemetry.nvml import throttle_reasons
from edgebench.telemetry.types import Series, ThrottleEvent

OVER_CURRENT = {"oc1": ("under-voltage", True), "oc2": ("over-current-average", True),
                "oc3": ("over-current-instantaneous", False)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Counters:
    """One look at everything that counts."""

    over_current: dict[str, int] = field(default_factory=dict)
    """``soctherm_oc`` events since boot, by alarm (``oc1`` …)."""
    cpu_thermal: dict[str, int] = field(default_factory=dict)
    """Throttle counts of x86 processors: ``core 0`` …, ``package 0`` …."""
    quota_periods: int | None = None
    """Periods in which the container's CPU quota stopped it; None without a quota's counters."""
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
        over_current=_over_current(root), cpu_thermal=_cpu_thermal(root), quota_periods=_quota_periods(root),
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


def _quota_periods(root: Path) -> int | None:
    for path in ("sys/fs/cgroup/cpu.stat", "sys/fs/cgroup/cpu/cpu.stat", "sys/fs/cgroup/cpu,cpuacct/cpu.stat"):
        found = re.search(r"^nr_throttled (\d+)$", text(root / path) or "", re.MULTILINE)
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
    if before.quota_periods is not None and after.quota_periods is not None:
        grown = after.quota_periods - before.quota_periods
        if grown > 0:
            found.append(ThrottleEvent(code="cpu-quota", invalidates=True, count=grown, message=f"the container's CPU "
                                       f"quota stopped it in {grown} periods (cpu.stat nr_throttled)"))
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


def series_events(series: Iterable[Series]) -> tuple[ThrottleEvent, ...]:
    """Return what sampled flags and cooling devices tell: reasons in force in some of the readings, and their share."""
    found: list[ThrottleEvent] = []
    for one in series:
        total = len(one.values)
        if one.channel.quantity == "level":
            active = sum(value > 0 for value in one.values)
            if active:
                found.append(ThrottleEvent(code="cooling-alert", invalidates=True, count=active,
                                           message=f"{one.channel.label} was in force in {active} of {total} readings"))
        elif one.channel.quantity == "flags" and one.channel.name.startswith("nvml/"):
            counts: dict[tuple[str, bool], int] = {}
            for value in one.values:
                for reason in throttle_reasons(int(value)):
                    counts[reason] = counts.get(reason, 0) + 1
            found += [ThrottleEvent(code=f"gpu-{name.replace(' ', '-')}", invalidates=invalidates, count=count,
                                    message=f"NVML: {name} in {count} of {total} readings")
                      for (name, invalidates), count in counts.items() if invalidates]
        elif one.channel.name == "pi/throttled":
            limits = sorted({name for value in one.values for name in pi.throttled_now(int(value))})
            found += [ThrottleEvent(code=name, invalidates=True, message=f"get_throttled showed {name} meanwhile")
                      for name in limits]
    return tuple(found)
