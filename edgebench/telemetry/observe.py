"""Choosing the sensors of a device, and one context that records them all and hands back a `Telemetry`."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, final

from edgebench.device import Device
from edgebench.errors import CannotMeasure, InvalidInput, MissingDependency
from edgebench.telemetry.clocks import ClockLimits, Clocks
from edgebench.telemetry.commands import Runner, run
from edgebench.telemetry.files import Sensor
from edgebench.telemetry.meter import Meter, MeterSeries
from edgebench.telemetry.nvml import NvmlGpu, gpu_names, used_gpu
from edgebench.telemetry.pi import PiPower
from edgebench.telemetry.rails import PowerRails
from edgebench.telemetry.rapl import Rapl
from edgebench.telemetry.sampler import Recording, Sampler
from edgebench.telemetry.thermal import CoolingDevices, ThermalZones
from edgebench.telemetry.types import (
    Absent,
    ClockTrace,
    PowerTrace,
    Quantity,
    Series,
    Telemetry,
    ThermalTrace,
    ThrottleTrace,
)

WHICH_GPU = "GPU that is used"
"""What is absent where another GPU may have been watched."""


@final
class Observer:
    """Records power, heat, clocks and throttle reasons while it is entered; `result` afterwards returns them.

    Args:
        device: Decides which sensors there are and how rails add up.
        root: Where ``proc`` and ``sys`` hang.
        gpu: Index, PCI bus id or UUID for NVML, for devices of the kind ``gpu``; None: the one that CUDA uses.
        meter: FIFO or file of an external meter.
        interval_s: For all sensors alike; None: each at its own rate.
        runner: Runs the board's tools.
        nvml: The module ``pynvml``; another in tests.
    """

    def __init__(self, device: Device, root: Path = Path("/"), *, gpu: int | str | None = None,
                 meter: Path | None = None, interval_s: float | None = None, runner: Runner = run,
                 nvml: ModuleType | Any | None = None) -> None:
        self._absent: list[Absent] = []
        self._open = ExitStack()
        self._thermal, self._clocks = ThermalZones(root), Clocks(root)
        sensors: list[Sensor] = []
        self._total: str | None = None
        self._total_reason = "no sensor of this device measures power"
        rails = PowerRails(root, device)
        if device.kind == "jetson" or rails.channels:
            sensors.append(rails)
            self._total, self._total_reason = rails.total, rails.total_reason
        if device.kind == "board":
            power = PiPower(runner)
            sensors.append(power)
            self._choose([channel.name for channel in power.channels if channel.estimate], power)
        if device.kind == "gpu":
            self._gpu(gpu, nvml, sensors)
        if device.kind in ("cpu", "gpu"):
            packages = Rapl(root)
            sensors.append(packages)
            if device.kind == "cpu":
                self._choose([packages.total] if packages.total else [], packages)
        sensors += [self._thermal, self._clocks, CoolingDevices(root), ClockLimits(root)]
        self._sampler = Sampler(sensors, interval_s=interval_s)
        self._meter = Meter(meter) if meter is not None else None
        for sensor in sensors:
            self._open.callback(sensor.close)
        self._recorded: Recording | None = None
        self._metered: MeterSeries | None = None

    def __enter__(self) -> Observer:
        if self._meter is not None:
            self._meter.start()
        self._sampler.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 traceback: TracebackType | None) -> None:
        with self._open:
            self._sampler.__exit__(kind, error, traceback)
            self._recorded = self._sampler.stop()
            if self._meter is not None:
                self._stop_meter(self._meter)

    def result(self) -> Telemetry:
        """Return everything that was recorded.

        Raises:
            CannotMeasure: It was never entered and left.
        """
        if self._recorded is None:
            raise CannotMeasure("nothing was recorded yet")
        found = self._recorded

        def of(*quantities: Quantity) -> tuple[Series, ...]:
            return tuple(one for one in found.series if one.channel.quantity in quantities)

        power, total, why = of("power_w", "energy_j"), self._total, self._total_reason
        if self._metered is not None:
            power, total = (*power, self._metered.series), self._metered.series.channel.name
        return Telemetry(
            begin_ns=found.begin_ns, end_ns=found.end_ns, cost=found.cost, absent=(*self._absent, *found.absent),
            power=PowerTrace(series=power, total=total, total_reason="" if total else why),
            thermal=ThermalTrace(series=of("temperature_c"), critical_c=self._thermal.critical_c or None),
            clocks=ClockTrace(series=of("clock_hz"), governors=self._clocks.governors or None),
            throttle=ThrottleTrace(series=of("flags", "level")))

    def _gpu(self, gpu: int | str | None, nvml: ModuleType | Any | None, sensors: list[Sensor]) -> None:
        try:
            used = gpu
            if gpu is None:
                used = used_gpu() if len(gpu_names(nvml)) > 1 else 0
            card = NvmlGpu(0 if used is None else used, nvml)
            if used is None:
                self._absent.append(Absent(what=WHICH_GPU, reason="CUDA's driver does not tell which of the GPUs it "
                                           f"uses: NVML's first, {card.name}, is watched"))
        except (CannotMeasure, MissingDependency) as error:
            self._total_reason = f"{error.message}; {error.hint}" if error.hint else error.message
            self._absent.append(Absent(what="GPU", reason=self._total_reason))
            return
        sensors.append(card)
        # The counter before the power: its readings need no integration.
        kinds = {channel.quantity: channel.name for channel in reversed(card.channels)}
        self._choose([kinds[kind] for kind in ("energy_j", "power_w") if kind in kinds], card)

    def _choose(self, totals: list[str], sensor: Sensor) -> None:
        if totals:
            self._total, self._total_reason = totals[0], ""
        elif sensor.absent:
            self._total_reason = f"{sensor.absent[0].what}: {sensor.absent[0].reason}"

    def _stop_meter(self, meter: Meter) -> None:
        try:
            self._metered = meter.stop()
        except (CannotMeasure, InvalidInput) as error:
            # What was timed meanwhile is worth keeping.
            self._absent.append(Absent(what="external meter", reason=error.message))
