"""NVIDIA GPUs through NVML: energy counter, power, clocks, temperature, throttle reasons.

On Jetson NVML is absent (Orin up to JetPack 6) or starts and answers NOT_SUPPORTED to nearly everything (Thor, Orin
with JetPack 7): each field is tried once and is absent with NVML's own words where it does not answer.

Source: NVML API reference, device queries and clock event reasons.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from types import ModuleType
from typing import Any

from edgebench.errors import CannotMeasure, MissingDependency, require
from edgebench.telemetry.files import Reading
from edgebench.telemetry.types import NVML_POWER_CAP, Absent, Channel, Quantity

REASONS = {0x01: "idle", 0x02: "clocks set by the user", NVML_POWER_CAP: "power cap", 0x08: "hardware slowdown",
           0x10: "synchronized with other GPUs", 0x20: "software thermal slowdown", 0x40: "hardware thermal slowdown",
           0x80: "power brake from outside", 0x100: "display clocks"}
"""Meaning of each bit of the clock event reasons."""


def throttle_reasons(mask: int) -> tuple[str, ...]:
    """Return the meaning of every set bit."""
    return tuple(REASONS.get(1 << bit, f"unknown bit {bit}") for bit in range(64) if mask >> bit & 1)


def gpu_names(nvml: ModuleType | Any | None = None) -> tuple[str, ...]:
    """Return what NVML calls each GPU.

    Raises:
        MissingDependency: ``nvidia-ml-py`` is not installed.
        CannotMeasure: There is no driver or no GPU.
    """
    module = nvml if nvml is not None else require("pynvml", "nvml")
    try:
        module.nvmlInit()
    except module.NVMLError as error:
        raise CannotMeasure(f"NVML does not start: {error}", "without an NVIDIA driver no GPU can be seen") from error
    try:
        return tuple(str(module.nvmlDeviceGetName(module.nvmlDeviceGetHandleByIndex(index)))
                     for index in range(module.nvmlDeviceGetCount()))
    except module.NVMLError as error:
        raise CannotMeasure(f"NVML lists no GPU: {error}") from error
    finally:
        module.nvmlShutdown()


def gpus_seen() -> tuple[str, ...]:
    """Return what NVML calls each GPU; none without a driver, or without the package."""
    try:
        return gpu_names()
    except (CannotMeasure, MissingDependency):
        return ()


def used_gpu(library: str = "libcuda.so.1") -> str | None:
    """Return the PCI bus id of the first GPU that CUDA shows this process; None where its driver does not tell.

    CUDA counts in another order than NVML, and ``CUDA_VISIBLE_DEVICES`` hides GPUs from CUDA alone. No context is made.

    Args:
        library: The driver's library.
    """
    try:
        driver = ctypes.CDLL(library)
    except OSError:
        return None
    device, place = ctypes.c_int(), ctypes.create_string_buffer(32)
    failed = driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(device), 0) \
        or driver.cuDeviceGetPCIBusId(place, len(place), device)
    return None if failed else place.value.decode()


class NvmlGpu:
    """One GPU; `close` must be called.

    Args:
        gpu: Index as ``nvidia-smi`` counts, PCI bus id, or UUID.
        nvml: The module ``pynvml``; another with the same functions in tests.

    Raises:
        MissingDependency: ``nvidia-ml-py`` is not installed.
        CannotMeasure: There is no driver, or no such GPU.
    """

    interval_s = 0.05
    """Boards refresh their power figure every 20 to 100 ms."""

    def __init__(self, gpu: int | str = 0, nvml: ModuleType | Any | None = None) -> None:
        self._nvml = nvml if nvml is not None else require("pynvml", "nvml")
        self._absent: list[Absent] = []
        self._fields: list[tuple[Channel, Callable[[], float]]] = []
        try:
            self._nvml.nvmlInit()
        except self._nvml.NVMLError as error:
            raise CannotMeasure(f"NVML does not start: {error}",
                                "without an NVIDIA driver no GPU can be seen") from error
        try:
            handle = self._nvml.nvmlDeviceGetHandleByIndex(gpu) if isinstance(gpu, int) \
                else self._nvml.nvmlDeviceGetHandleByPciBusId(gpu) if ":" in gpu \
                else self._nvml.nvmlDeviceGetHandleByUUID(gpu)
            self.name = str(self._nvml.nvmlDeviceGetName(handle))
        except self._nvml.NVMLError as error:
            self._nvml.nvmlShutdown()
            raise CannotMeasure(f"NVML has no GPU {gpu!r}: {error}") from error
        self.compute_capability = self._capability(handle)
        nv, prefix = self._nvml, f"nvml/{gpu}"
        reasons = getattr(nv, "nvmlDeviceGetCurrentClocksEventReasons", None) \
            or nv.nvmlDeviceGetCurrentClocksThrottleReasons
        self._try(f"{prefix}/energy", "energy_j", lambda: nv.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3)
        # The reference: averaged over 1 s from Ampere on, GA100 (8.0) excepted.
        smooth = self.compute_capability is not None and self.compute_capability > (8, 0)
        self._try(f"{prefix}/power", "power_w", lambda: nv.nvmlDeviceGetPowerUsage(handle) / 1e3,
                  averaging_s=1.0 if smooth else None)
        self._try(f"{prefix}/sm-clock", "clock_hz",
                  lambda: nv.nvmlDeviceGetClockInfo(handle, nv.NVML_CLOCK_SM) * 1e6)
        self._try(f"{prefix}/memory-clock", "clock_hz",
                  lambda: nv.nvmlDeviceGetClockInfo(handle, nv.NVML_CLOCK_MEM) * 1e6)
        self._try(f"{prefix}/temperature", "temperature_c",
                  lambda: float(nv.nvmlDeviceGetTemperature(handle, nv.NVML_TEMPERATURE_GPU)))
        self._try(f"{prefix}/throttle-reasons", "flags", lambda: float(reasons(handle)))

    @property
    def channels(self) -> tuple[Channel, ...]:
        """Fields that answered when they were tried."""
        return tuple(channel for channel, _ in self._fields)

    @property
    def absent(self) -> tuple[Absent, ...]:
        """Fields that did not, in NVML's words."""
        return tuple(self._absent)

    def read(self) -> tuple[Reading, ...]:
        """Return one reading per field."""
        readings: list[Reading] = []
        for _, ask in self._fields:
            try:
                readings.append(ask())
            except self._nvml.NVMLError as error:
                readings.append(f"NVML: {error}")
        return tuple(readings)

    def close(self) -> None:
        """Shut NVML down; it counts how often it was started."""
        self._nvml.nvmlShutdown()

    def _capability(self, handle: Any) -> tuple[int, int] | None:
        try:
            major, minor = self._nvml.nvmlDeviceGetCudaComputeCapability(handle)
        except self._nvml.NVMLError as error:
            self._absent.append(Absent(what="compute capability", reason=f"NVML: {error}"))
            return None
        return int(major), int(minor)

    def _try(self, name: str, quantity: Quantity, ask: Callable[[], float],
             averaging_s: float | None = None) -> None:
        try:
            ask()
        except self._nvml.NVMLError as error:
            self._absent.append(Absent(what=name, reason=f"NVML: {error}"))
            return
        powered = quantity in ("power_w", "energy_j")
        self._fields.append((Channel(
            name=name, label=f"{self.name} {name.rpartition('/')[2]}", quantity=quantity, source="NVML",
            scope="board" if powered else None, meaning="the whole card, memory included" if powered else "",
            resolution=1e-3 if powered else None, averaging_s=averaging_s), ask))
