"""What the instrument observed around a variant's timings: steadiness, scenarios, heat, clocks, power, events."""

from __future__ import annotations

from dataclasses import dataclass

from edgebench.telemetry.types import EnergyPerInference, Residency, Telemetry, ThrottleEvent
from edgebench.timing_types import (
    Ceilings,
    DeviceTrace,
    LoadGenResult,
    QueryTrace,
    ServerSearch,
    SteadyVerdict,
    Sustained,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Steadiness:
    """How often a scenario was tried until its timings were steady, and what was found each time."""

    scenario: str
    verdicts: tuple[SteadyVerdict, ...]
    """In order; the results come from the last try."""

    @property
    def steady(self) -> bool:
        """Whether the last try was not unstable."""
        return self.verdicts[-1].verdict != "unstable"


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryTaken:
    """How far the machine's free memory fell between two moments."""

    available_bytes: int | None
    """Of ``MemAvailable``; below 0 where others gave back more meanwhile. None where the kernel does not tell."""
    contiguous_bytes: int | None
    """Of ``CmaFree``; None where there is no such area."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """Everything beside the plain timings."""

    steadiness: tuple[Steadiness, ...] = ()
    queries: tuple[QueryTrace, ...] = ()
    """Scenarios other than single-stream and offline."""
    server: ServerSearch | None = None
    device_times: DeviceTrace | None = None
    """Copies, computation and enqueueing by the device's own clock; None where the runtime does not tell."""
    telemetry: Telemetry | None = None
    events: tuple[ThrottleEvent, ...] = ()
    """What slowed the device down while the scenarios were timed, or may have."""
    residency: tuple[Residency, ...] = ()
    """Where the CPU clusters' time went meanwhile; empty where the kernel keeps no count."""
    energy: EnergyPerInference | None = None
    """Of the single-stream inferences."""
    sustained: Sustained | None = None
    loadgen: LoadGenResult | None = None
    """MLPerf's LoadGen on the same session, right after the scenarios; None where it was not asked for."""
    device_memory_bytes: int | None = None
    """Weights, scratch memory and buffers of the session on the device; None where the runtime does not tell."""
    shared_memory: MemoryTaken | None = None
    """From before the artifact was opened until after its first inference, where CPU and GPU share one memory."""
    ambient_c: float | None = None
    """Temperature of the room, as the user gave it."""
    ceilings: Ceilings | None = None
    """What this machine reached at best, measured earlier by ``edgebench doctor --ceilings``."""
    settings: tuple[str, ...] = ()
    """What was set for the measurement and set back, in words."""

    @property
    def invalid(self) -> tuple[ThrottleEvent, ...]:
        """The events that forbid using the timings."""
        return tuple(one for one in self.events if one.invalidates)
