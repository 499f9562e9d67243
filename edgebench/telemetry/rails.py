"""Power rails of Jetson modules: INA3221 and INA238 sensors, found by label and never by number.

JetPack 4 shows them through iio (``rail_name_N`` and ``in_powerN_input`` in mW), JetPack 5 and later through hwmon
(``inN_label``, ``inN_input`` in mV, ``currN_input`` in mA: power is their product), Thor's input also through an
INA238 that reports µW. ``in7`` of an INA3221 is a sum of shunt voltages and no rail. Whether a rail contains others,
and which sum is the whole, differs from board to board and stands in the device file.

Source: kernel documentation of the ina3221 and ina238 drivers; NVIDIA Jetson Linux Developer Guide, power monitors.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgebench.device import Device, Rail
from edgebench.telemetry.files import Reading, hwmons, number, numbered, text
from edgebench.telemetry.types import Absent, Channel

NOT_A_RAIL = ("sum of shunt voltages", "nc")
SHUNT_STEP_V = 40e-6
"""One step of the INA3221's shunt voltage, from its datasheet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Source:
    channel: Channel
    power: Path | None
    """Power itself, else the product of the other two."""
    scale: float = 1.0
    volts: Path | None = None
    amperes: Path | None = None

    def read(self) -> Reading:
        if self.power is not None:
            return number(self.power, self.scale)
        assert self.volts is not None
        assert self.amperes is not None
        volts, amperes = number(self.volts, 1e-3), number(self.amperes, 1e-3)
        if isinstance(volts, str):
            return volts
        return amperes if isinstance(amperes, str) else volts * amperes


class PowerRails:
    """All rails with a sensor, and their total where the device file says how it is made.

    Args:
        root: Where ``sys`` hangs.
        device: Declares the rails and the total; without it every rail is reported and no total.
    """

    interval_s = 0.1
    """Each INA3221 channel takes tens of milliseconds to convert and average; faster reading repeats values."""

    def __init__(self, root: Path, device: Device | None = None) -> None:
        declared = {rail.label: rail for rail in device.rails} if device else {}
        self._absent: list[Absent] = []
        self._sources: list[_Source] = []
        for folder in hwmons(root):
            self._hwmon(folder, declared)
        for folder in numbered(root / "sys/bus/i2c/drivers", "ina3221*/*/iio:device*"):
            self._iio(folder, declared)
        seen = {source.channel.label for source in self._sources}
        reported = {one.what for one in self._absent}
        self._absent += [Absent(what=f"rail {label}", reason="no sensor with this label")
                         for label in declared if label not in seen and f"rail {label}" not in reported]
        self.total: str | None = None
        self.total_reason = ""
        self._sum: list[int] = []
        self._total(device)

    @property
    def channels(self) -> tuple[Channel, ...]:
        """The rails in the order found, then the computed total where there is one."""
        found = tuple(source.channel for source in self._sources)
        return (*found, self._total_channel) if self._sum else found

    @property
    def absent(self) -> tuple[Absent, ...]:
        """Declared rails without a sensor, and sensors without a reading."""
        return tuple(self._absent)

    def read(self) -> tuple[Reading, ...]:
        """Return power per channel in watts; the total is missing where one of its rails is."""
        readings = [source.read() for source in self._sources]
        if not self._sum:
            return tuple(readings)
        parts = [readings[index] for index in self._sum]
        broken = next((part for part in parts if isinstance(part, str)), None)
        total = broken if broken is not None else sum(part for part in parts if not isinstance(part, str))
        return (*readings, total)

    def close(self) -> None:
        """Nothing is held open."""

    def _hwmon(self, folder: Path, declared: dict[str, Rail]) -> None:
        chip = text(folder / "name") or ""
        if not chip.startswith("ina"):
            return
        channels = {path.name[2:-6]: text(path) for path in numbered(folder, "in*_label")}
        if not channels and (folder / "power1_input").exists():
            nameless = next((rail.label for rail in declared.values() if rail.chip == chip), None)
            channels = {"1": text(folder / "label") or nameless or chip}
        for index, label in channels.items():
            if label is None or label.lower() in NOT_A_RAIL:
                continue
            power, volts, amperes = (folder / f"{kind}{index}_input" for kind in ("power", "in", "curr"))
            if not power.exists() and not (volts.exists() and amperes.exists()):
                lacking = amperes if volts.exists() else volts
                self._absent.append(Absent(what=f"rail {label}", reason=f"{chip} shows no {lacking.name}"))
                continue
            channel = self._channel(chip, label, declared, power if power.exists() else volts,
                                    _resolution(folder, index, volts) if chip == "ina3221" else None)
            self._sources.append(_Source(channel=channel, power=power, scale=1e-6) if power.exists() else
                                 _Source(channel=channel, power=None, volts=volts, amperes=amperes))

    def _iio(self, folder: Path, declared: dict[str, Rail]) -> None:
        for path in numbered(folder, "rail_name_*"):
            label = text(path)
            if label is None or label.lower() in NOT_A_RAIL:
                continue
            power = folder / f"in_power{path.name.rpartition('_')[2]}_input"
            if not power.exists():
                self._absent.append(Absent(what=f"rail {label}", reason=f"ina3221x shows no {power.name}"))
                continue
            self._sources.append(_Source(channel=self._channel("ina3221x", label, declared, power, 1e-3), power=power,
                                         scale=1e-3))

    def _channel(self, chip: str, label: str, declared: dict[str, Rail], path: Path,
                 resolution: float | None) -> Channel:
        rail = declared.get(label)
        name = f"{chip}/{label}"
        taken = sum(source.channel.name.partition("#")[0] == name for source in self._sources)
        return Channel(name=f"{name}#{taken + 1}" if taken else name, label=label, quantity="power_w", source=str(path),
                       scope=rail.scope if rail else "rail", meaning=rail.meaning if rail else "",
                       resolution=resolution)

    def _total(self, device: Device | None) -> None:
        rule = device.total_power if device else None
        if not self._sources:
            self.total_reason = "no INA3221 or INA238 power sensor is shown under /sys"
            return
        if device is None or rule is None:
            why = device.total_power_reason if device else ""
            self.total_reason = why or "no device file says how the rails add up"
            return
        places: dict[str, int] = {}
        for place, source in enumerate(self._sources):
            places.setdefault(source.channel.label, place)
        missing = [label for label in rule.labels if label not in places]
        if missing:
            self.total_reason = f"no sensor for rail {' and '.join(missing)}, which the total is made of"
            return
        if len(rule.labels) == 1:
            self.total = self._sources[places[rule.labels[0]]].channel.name
            return
        self._sum = [places[label] for label in rule.labels]
        self._total_channel = Channel(name="total", label=" + ".join(rule.labels), quantity="power_w",
                                      source="sum of rails", scope=rule.scope, meaning=rule.meaning)
        self.total = "total"


def _resolution(folder: Path, index: str, volts: Path) -> float | None:
    """Return one step of power in watts: the step of the shunt voltage over the shunt, times the supply's voltage."""
    shunt, volt = number(folder / f"shunt{index}_resistor", 1e-6), number(volts, 1e-3)
    if isinstance(shunt, str) or isinstance(volt, str) or shunt <= 0:
        return None
    return SHUNT_STEP_V / shunt * abs(volt)
