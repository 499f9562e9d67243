"""The functions of ``pynvml`` that telemetry calls, with one or more made-up GPUs."""

from __future__ import annotations


class Fake:
    """Stands in for the module; fields named in `unsupported` answer as Jetson's NVML does."""

    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0

    class NVMLError(Exception):
        pass

    def __init__(self, *, names=("NVIDIA L4",), capability=(8, 9), unsupported=(), driver=True) -> None:
        self.names, self.capability, self.unsupported, self.driver = names, capability, unsupported, driver
        self.started = 0
        self.lost = False
        self.energy_mj = 1_234_567
        self.reasons = 0x4

    def _answer(self, field, value):
        if self.lost:
            raise self.NVMLError("GPU is lost")
        if field in self.unsupported:
            raise self.NVMLError("Not Supported")
        return value

    def nvmlInit(self):  # noqa: N802
        if not self.driver:
            raise self.NVMLError("Shared Library Not Found")
        self.started += 1

    def nvmlShutdown(self):  # noqa: N802
        self.started -= 1

    def nvmlDeviceGetCount(self):  # noqa: N802
        return len(self.names)

    def nvmlDeviceGetHandleByIndex(self, index):  # noqa: N802
        if index >= len(self.names):
            raise self.NVMLError("Invalid Argument")
        return index

    def nvmlDeviceGetHandleByUUID(self, uuid):  # noqa: N802
        return 0

    def nvmlDeviceGetHandleByPciBusId(self, place):  # noqa: N802
        return int(place.split(":")[1], 16) - 1

    def nvmlDeviceGetName(self, handle):  # noqa: N802
        return self.names[handle]

    def nvmlDeviceGetCudaComputeCapability(self, handle):  # noqa: N802
        return self.capability

    def nvmlDeviceGetTotalEnergyConsumption(self, handle):  # noqa: N802
        return self._answer("Energy", self.energy_mj)

    def nvmlDeviceGetPowerUsage(self, handle):  # noqa: N802
        return self._answer("Power", 65_432)

    def nvmlDeviceGetClockInfo(self, handle, which):  # noqa: N802
        return self._answer("Clock", {1: 1980, 2: 2619}[which])

    def nvmlDeviceGetTemperature(self, handle, which):  # noqa: N802
        return self._answer("Temperature", 41)

    def nvmlDeviceGetCurrentClocksEventReasons(self, handle):  # noqa: N802
        return self._answer("Reasons", self.reasons)
