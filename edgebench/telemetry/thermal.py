"""Temperatures: thermal zones of the kernel, and processor sensors where no zone shows them.

Zones of parts that are switched off answer with an error or -256 °C; both mean that there is no temperature.
"""

from __future__ import annotations

import re
from pathlib import Path

from edgebench.telemetry.files import Reading, hwmons, number, numbered, text
from edgebench.telemetry.types import Absent, Channel

PLAUSIBLE_C = (-60.0, 200.0)
CHIPS = ("coretemp", "k10temp", "zenpower", "cpu_thermal")


class ThermalZones:
    """Every thermal zone, and the package sensor of x86 processors, in °C."""

    interval_s = 0.5
    """Silicon warms over seconds."""

    def __init__(self, root: Path) -> None:
        self._absent: list[Absent] = []
        self._channels: list[Channel] = []
        self._paths: list[Path] = []
        self.critical_c: dict[str, float] = {}
        for zone in numbered(root / "sys/class/thermal", "thermal_zone*"):
            label = text(zone / "type") or zone.name
            name = self._add(f"zone/{label}", label, zone / "temp")
            for trip in numbered(zone, "trip_point_*_type"):
                celsius = number(trip.with_name(trip.name.replace("_type", "_temp")), 1e-3)
                if text(trip) == "critical" and not isinstance(celsius, str):
                    self.critical_c[name] = celsius
        for folder in hwmons(root):
            chip = text(folder / "name")
            if chip in CHIPS and not any(channel.label == "x86_pkg_temp" for channel in self._channels):
                for path in numbered(folder, "temp*_input"):
                    label = text(path.with_name(path.name.replace("_input", "_label"))) or path.name[:-6]
                    if not label.startswith("Core "):
                        self._add(f"{chip}/{label}", label, path)
        if not self._channels:
            self._absent.append(Absent(what="temperatures", reason="the kernel shows no thermal zone and no processor "
                                       "sensor, as in most virtual machines"))

    @property
    def channels(self) -> tuple[Channel, ...]:
        """One per zone or sensor."""
        return tuple(self._channels)

    @property
    def absent(self) -> tuple[Absent, ...]:
        """That there is none at all."""
        return tuple(self._absent)

    def read(self) -> tuple[Reading, ...]:
        """Return °C per zone."""
        return tuple(_celsius(path) for path in self._paths)

    def close(self) -> None:
        """Nothing is held open."""

    def _add(self, name: str, label: str, path: Path) -> str:
        taken = sum(channel.name.partition("#")[0] == name for channel in self._channels)
        unique = f"{name}#{taken + 1}" if taken else name
        self._channels.append(Channel(name=unique, label=label, quantity="temperature_c", source=str(path)))
        self._paths.append(path)
        return unique


def _celsius(path: Path) -> Reading:
    found = number(path, 1e-3)
    if isinstance(found, str):
        return found
    if not PLAUSIBLE_C[0] <= found <= PLAUSIBLE_C[1]:
        return f"{path.name}: {found:g} °C means that the sensor is off"
    return found


THROTTLES = re.compile(r".*throttle-alert|.*[-_]balanced|(?:thermal-)?(?:cpufreq|devfreq)-.+")
"""Types of cooling devices that slow something down: alerts of Xavier, Orin and Thor, balanced throttling of JetPack 4
(``gpu-balanced``), and the kernel's own for CPU clusters and other clocks; fans and the like are none."""


class CoolingDevices:
    """Cooling devices that say that a limit is in force, such as ``gpu-throttle-alert`` of Orin and Thor."""

    interval_s = 0.5

    def __init__(self, root: Path) -> None:
        self._paths = [path for path in numbered(root / "sys/class/thermal", "cooling_device*")
                       if THROTTLES.fullmatch(text(path / "type") or "")]
        self._labels = [text(path / "type") or "" for path in self._paths]

    @property
    def channels(self) -> tuple[Channel, ...]:
        """One per device; a second one of a type carries its number."""
        return tuple(Channel(name=f"cooling/{label}" + (f"#{path.name[14:]}" if label in self._labels[:k] else ""),
                             label=label, quantity="level", source=str(path / "cur_state"))
                     for k, (label, path) in enumerate(zip(self._labels, self._paths, strict=True)))

    @property
    def absent(self) -> tuple[Absent, ...]:
        """Nothing: most machines have none."""
        return ()

    def read(self) -> tuple[Reading, ...]:
        """Return the step of each; 0 is no limit."""
        return tuple(number(path / "cur_state") for path in self._paths)

    def close(self) -> None:
        """Nothing is held open."""
