"""What telemetry observed, ready for a run file: series on the latency's clock, gaps with reasons, counters.

Times are nanoseconds of ``time.perf_counter_ns``, the clock of the latency traces.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edgebench.checks import check
from edgebench.device import Scope

Quantity = Literal["power_w", "energy_j", "temperature_c", "clock_hz", "flags", "level"]
"""``energy_j``: a counter that only grows; ``flags``: a bit mask; ``level``: steps of a cooling device, or the hertz by
which a clock's limit was lowered."""
NVML_POWER_CAP = 0x04
NVML_SLOWDOWNS = 0x08 | 0x20 | 0x40 | 0x80
"""Hardware slowdown, heat by software and by hardware, power brake: reasons that no card shows in its normal state."""
PI_SLOWDOWNS = 0x0F
"""In force now; the same bits 16 higher tell of the time since boot."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Channel:
    """One quantity that a sensor reports."""

    name: str
    """Unique within a recording, such as ``ina3221/VDD_IN``."""
    label: str
    """As the sensor calls it, such as ``VDD_IN``."""
    quantity: Quantity
    source: str
    """File or call that is read."""
    scope: Scope | None = None
    """What a power or energy covers; None for other quantities."""
    meaning: str = ""
    """What the rail or zone is, where it is known."""
    estimate: bool = False
    """Computed by a fit instead of measured."""
    resolution: float | None = None
    """Smallest step of the reading in its own unit; None where it is unknown."""
    averaging_s: float | None = None
    """Time over which the sensor itself averages; None where it is unknown."""
    alignment_s: float | None = None
    """How far the times of its readings may be off the latency's clock; None where they are taken by that clock."""

    def __post_init__(self) -> None:
        check((self.scope is not None) == (self.quantity in ("power_w", "energy_j")),
              "a scope for power and energy alone", (self.quantity, self.scope))


def slowdown_bits(channel: Channel) -> int:
    """Return the bits of a throttle channel that say that something slows the device down: of a level, all."""
    if channel.quantity != "flags":
        return -1
    return PI_SLOWDOWNS if channel.name.startswith("pi/") else NVML_SLOWDOWNS


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """A stretch of time without a reading."""

    begin_ns: int
    end_ns: int
    """When the next reading came, or sampling ended."""
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """Readings of one channel."""

    channel: Channel
    interval_s: float
    """Asked for; what was reached follows from `t_ns`."""
    t_ns: tuple[int, ...] = ()
    """Middle of each reading, ascending."""
    values: tuple[float, ...] = ()
    """In the unit of the channel's quantity; as many as `t_ns`."""
    gaps: tuple[Gap, ...] = ()

    def __post_init__(self) -> None:
        check(len(self.t_ns) == len(self.values), "as many times as values", (len(self.t_ns), len(self.values)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Absent:
    """Something that could not be observed."""

    what: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerTrace:
    """Power and energy counters, and which of them is the total."""

    series: tuple[Series, ...] = ()
    total: str | None = None
    """Name of the channel that stands for the widest known scope; None where none does."""
    total_reason: str = ""
    """Why there is none."""

    def __post_init__(self) -> None:
        check(self.total is None or self.total in {one.channel.name for one in self.series},
              "a total among the channels", self.total)

    def channel(self, name: str | None) -> Series | None:
        """Return the series of that channel; None where there is none."""
        return next((one for one in self.series if one.channel.name == name), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class ThermalTrace:
    """Temperatures, and the trip points that the kernel states."""

    series: tuple[Series, ...] = ()
    critical_c: dict[str, float] | None = None
    """Critical trip point by zone; None where no zone states one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClockTrace:
    """Clocks of GPU and CPU."""

    series: tuple[Series, ...] = ()
    governors: dict[str, str] | None = None
    """Governor by clock, when sampling began; None where none is shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ThrottleTrace:
    """Throttle reasons (bit masks) and cooling devices (steps) over time."""

    series: tuple[Series, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplerCost:
    """What sampling itself took."""

    samples: int
    """Readings of whole sensors."""
    duration_s: float
    mean_s: float | None
    """Wall time per reading of a sensor; None before the first."""
    max_s: float | None
    cpu_share: float | None
    """CPU time of the sampling thread over the duration: 1.0 is one CPU kept busy. None where it cannot be told."""
    late: int = 0
    """Readings that began later than one interval after they were due."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Telemetry:
    """Everything that one recording holds."""

    begin_ns: int
    end_ns: int
    power: PowerTrace = PowerTrace()
    thermal: ThermalTrace = ThermalTrace()
    clocks: ClockTrace = ClockTrace()
    throttle: ThrottleTrace = ThrottleTrace()
    cost: SamplerCost | None = None
    absent: tuple[Absent, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Residency:
    """Share of time that one CPU cluster spent at each frequency between two looks."""

    policy: str
    shares: dict[str, float]
    """By frequency in kHz, as the kernel writes it; 0 to 1, frequencies that were not used left out."""
    top_share: float
    """Share at the highest frequency that the kernel lists."""
    mean_hz: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Energy:
    """Energy over a stretch of time, or the reason why it is unknown."""

    joules: float | None
    uncertainty_j: float | None
    """Standard uncertainty (k = 1) from sampling, edges and resolution; the sensor's own error is not in it."""
    scope: Scope | None
    method: Literal["counter", "trapezoid", "none"]
    readings: int = 0
    """Readings that lie inside."""
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class EnergyPerInference:
    """Gross: everything drawn meanwhile. Net: what was drawn above idle."""

    gross_j: float | None
    gross_uncertainty_j: float | None
    net_j: float | None
    net_uncertainty_j: float | None
    idle_w: float | None
    inferences: int
    scope: Scope | None
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ThrottleEvent:
    """Evidence that the device was slowed down."""

    code: str
    """Such as ``over-current-average`` or ``cpu-thermal``."""
    message: str
    """What was counted, from where."""
    invalidates: bool
    """Whether timings taken meanwhile must not be used."""
    count: int | None = None
    rate_hz: float | None = None
