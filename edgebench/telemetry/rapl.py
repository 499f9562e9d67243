"""Energy counters of x86 processors (RAPL), which wrap around and which only root may read since 2020.

Source: kernel documentation, power/powercap. AMD processors show the same files under the same name.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from edgebench.device import Scope
from edgebench.telemetry import files
from edgebench.telemetry.files import Reading, because, integer, numbered, text
from edgebench.telemetry.types import Absent, Channel

SCOPES: dict[str, Scope] = {"package": "package", "psys": "board", "core": "rail", "uncore": "rail", "dram": "rail"}
MEANINGS = {"package": "one processor package: cores, caches, memory controller; not the memory modules",
            "psys": "the whole platform, as far as its maker wired it", "core": "the cores of one package",
            "uncore": "graphics of one package", "dram": "memory modules of one package"}
HINT = "/sys/class/powercap/intel-rapl*/energy_uj"
ALL_PACKAGES = Channel(name="rapl/packages", label="all packages", quantity="energy_j", source="sum of packages",
                       scope="package", meaning=f"every processor; {MEANINGS['package']}")


class Rapl:
    """Energy since the first reading, per package and domain, in joules.

    Args:
        root: Where ``sys`` hangs.
        clock: Monotonic nanoseconds, to notice pauses in which a counter may have wrapped more than once.
    """

    interval_s = 0.1
    """Counters step every millisecond; at this rate they cannot wrap unseen."""

    def __init__(self, root: Path, clock: Callable[[], int] = time.perf_counter_ns) -> None:
        self._zones: list[tuple[Channel, Path, int]] = []
        self._absent: list[Absent] = []
        self._clock = clock
        folder = root / "sys/class/powercap"
        # intel-rapl-mmio counts the same packages a second time.
        found = [zone for zone in numbered(folder, "intel-rapl:*") if (zone / "energy_uj").exists()]
        if not found:
            self._absent.append(Absent(what="RAPL", reason="the kernel shows no intel-rapl zone: no x86 processor with "
                                       "energy counters, or a virtual machine"))
        for zone in found:
            label = text(zone / "name") or zone.name
            parent = text(zone.parent / zone.name.rpartition(":")[0] / "name") if zone.name.count(":") > 1 else None
            limit = integer(zone / "max_energy_range_uj")
            try:
                files.raw(zone / "energy_uj")
            except OSError as error:
                why = because(zone / "energy_uj", error)
                self._absent.append(Absent(what=f"RAPL {label}", reason=f"{why}; as root: chmod o+r {HINT}"))
                continue
            if limit is None or limit <= 0:
                self._absent.append(Absent(what=f"RAPL {label}", reason="max_energy_range_uj is missing, so that a "
                                           "wrapped counter could not be told"))
                continue
            domain = label.partition("-")[0]
            channel = Channel(name=f"rapl/{parent}/{label}" if parent else f"rapl/{label}", label=label,
                              quantity="energy_j", source=str(zone / "energy_uj"), scope=SCOPES.get(domain, "rail"),
                              meaning=MEANINGS.get(domain, ""))
            self._zones.append((channel, zone / "energy_uj", limit))
        self._last: dict[str, int] = {}
        self._sum: dict[str, int] = {}
        self._seen_ns: dict[str, int] = {}
        self._broken: dict[str, str] = {}

    @property
    def channels(self) -> tuple[Channel, ...]:
        """One per zone that can be read; then the sum of the packages where there are several."""
        found = tuple(channel for channel, _, _ in self._zones)
        return (*found, ALL_PACKAGES) if len(self.packages) > 1 else found

    @property
    def absent(self) -> tuple[Absent, ...]:
        """Zones that cannot be read, with what to do."""
        return tuple(self._absent)

    @property
    def packages(self) -> tuple[str, ...]:
        """Names of the channels of whole packages."""
        return tuple(channel.name for channel, _, _ in self._zones if channel.scope == "package")

    @property
    def total(self) -> str | None:
        """The channel of all packages; None where none can be read."""
        return ALL_PACKAGES.name if len(self.packages) > 1 else next(iter(self.packages), None)

    def read(self) -> tuple[Reading, ...]:
        """Return joules since the first reading, wrap-around added up."""
        readings = {channel.name: self._one(channel, path, limit) for channel, path, limit in self._zones}
        if len(self.packages) < 2:
            return tuple(readings.values())
        parts = [readings[name] for name in self.packages]
        broken = next((part for part in parts if isinstance(part, str)), None)
        return (*readings.values(),
                broken if broken is not None else sum(part for part in parts if not isinstance(part, str)))

    def close(self) -> None:
        """Nothing is held open."""

    def _one(self, channel: Channel, path: Path, limit: int) -> Reading:
        if channel.name in self._broken:
            return self._broken[channel.name]
        now = self._clock()
        try:
            raw = int(files.raw(path))
        except OSError as error:
            return because(path, error)
        except ValueError:
            return f"{path.name}: expected a number"
        if not 0 <= raw <= limit:
            return f"{path.name}: expected 0 to {limit}, got {raw}"
        last = self._last.get(channel.name, raw)
        grown = raw - last if raw >= last else raw + limit - last
        self._sum[channel.name] = self._sum.get(channel.name, 0) + grown
        self._last[channel.name] = raw
        before, self._seen_ns[channel.name] = self._seen_ns.get(channel.name, now), now
        if (now - before) / 1e9 > limit / 1e6 / 1000:
            # At 1 kW a counter of 262 kJ comes round in 262 s; after a longer pause the turns cannot be counted any
            # more, and every later sum would be too low.
            self._broken[channel.name] = (f"{path.name}: not read for {(now - before) / 1e9:.0f} s, it may have "
                                          "wrapped more than once")
            return self._broken[channel.name]
        return self._sum[channel.name] / 1e6
