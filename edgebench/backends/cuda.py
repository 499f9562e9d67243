"""NVIDIA's CUDA runtime through cuda-python: the few calls that running an engine takes, and errors with names.

Everything that touches the device goes through `Cuda`, so that another implementation can stand in for it.
"""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from edgebench.errors import CannotMeasure, require

Handle = Any
"""A stream, event or graph: whatever the runtime hands out."""


class CudaError(CannotMeasure):
    """A CUDA call that failed.

    Args:
        name: CUDA's name of the error, such as ``cudaErrorMemoryAllocation``.
        what: CUDA's description of it.
        call: What was called, in words.
    """

    def __init__(self, name: str, what: str, call: str) -> None:
        super().__init__(f"CUDA: {call} failed with {name} ({what})", _HINTS.get(name, ""))
        self.name = name
        self.what = what


_HINTS = {
    "cudaErrorMemoryAllocation": "the GPU's memory is used up: a smaller --batch, or stop what else runs on it",
    # cuda-python brings the runtime of its own major version, and says this of a missing driver too.
    "cudaErrorInsufficientDriver": ("no NVIDIA driver, or one older than cuda-python's CUDA: install a newer one; "
                                    "with a driver of CUDA 12, such as JetPack 6's: pip install 'cuda-python<13'"),
    "cudaErrorNoDevice": "no GPU is visible: look at nvidia-smi and CUDA_VISIBLE_DEVICES",
    "cudaErrorNoKernelImageForDevice": "the engine holds no kernels for this GPU: build it here",
    "cudaErrorIllegalAddress": "the process's GPU memory is lost: start anew",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """The GPU that runs engines."""

    name: str
    compute_capability: tuple[int, int]
    memory_bytes: int
    driver: str
    """CUDA version that the driver supports."""
    runtime: str
    """CUDA version of the runtime library."""


class Cuda(Protocol):
    """What running an engine needs of the CUDA runtime; every call raises `CudaError` where it fails."""

    def gpu(self) -> Gpu:
        """Return the first visible GPU."""

    def malloc(self, size_bytes: int) -> int:
        """Return the address of new device memory."""

    def free(self, address: int) -> None:
        """Give device memory back."""

    def host_alloc(self, size_bytes: int) -> int:
        """Return the address of new page-locked host memory: copies from it need no staging."""

    def host_free(self, address: int) -> None:
        """Give page-locked host memory back."""

    def copy_in(self, device: int, host: int, size_bytes: int, stream: Handle) -> None:
        """Enqueue a copy from host to device memory."""

    def copy_out(self, host: int, device: int, size_bytes: int, stream: Handle) -> None:
        """Enqueue a copy from device to host memory."""

    def copy_within(self, target: int, source: int, size_bytes: int, stream: Handle) -> None:
        """Enqueue a copy from device to device memory."""

    def stream(self) -> Handle:
        """Return a new stream that does not wait for the default one."""

    def stream_address(self, stream: Handle) -> int:
        """Return the number that TensorRT knows a stream by."""

    def synchronize(self, stream: Handle) -> None:
        """Wait until everything enqueued on the stream is done."""

    def stream_destroy(self, stream: Handle) -> None:
        """Give a stream back."""

    def event(self) -> Handle:
        """Return a new event that keeps time."""

    def record(self, event: Handle, stream: Handle) -> None:
        """Enqueue a time stamp."""

    def elapsed_s(self, begin: Handle, end: Handle) -> float:
        """Return the device's time between two recorded events, waiting for the second."""

    def event_destroy(self, event: Handle) -> None:
        """Give an event back."""

    def begin_capture(self, stream: Handle) -> None:
        """Record what is enqueued on the stream from now on instead of running it."""

    def end_capture(self, stream: Handle) -> Handle:
        """Return what was recorded, ready to launch; the stream runs again, whether that worked or not."""

    def launch(self, graph: Handle, stream: Handle) -> None:
        """Enqueue a recorded graph."""

    def graph_destroy(self, graph: Handle) -> None:
        """Give a recorded graph back."""


class CudaRuntime:
    """`Cuda` by cuda-python.

    Raises:
        MissingDependency: cuda-python is not installed.
    """

    def __init__(self) -> None:
        self._cuda = require("cuda.bindings.runtime", "cuda")

    def _call(self, name: str, *arguments: Any, about: str = "") -> Any:
        status, *results = getattr(self._cuda, name)(*arguments)
        if int(status) != 0:
            error = self._error(status, f"{name}{about}")
            # Otherwise the same error would be reported by the next call too.
            self._cuda.cudaGetLastError()
            raise error
        return results[0] if results else None

    def _error(self, status: Any, call: str) -> CudaError:
        name, what = self._cuda.cudaGetErrorName(status)[1], self._cuda.cudaGetErrorString(status)[1]
        return CudaError(name.decode(), what.decode(), call)

    def gpu(self) -> Gpu:
        """Return the first visible GPU."""
        if self._call("cudaGetDeviceCount") < 1:
            raise CudaError("cudaErrorNoDevice", "no CUDA-capable device is detected", "cudaGetDeviceCount")
        self._call("cudaSetDevice", 0)
        kinds = self._cuda.cudaDeviceAttr
        major, minor = (int(self._call("cudaDeviceGetAttribute", kind, 0)) for kind in (
            kinds.cudaDevAttrComputeCapabilityMajor, kinds.cudaDevAttrComputeCapabilityMinor))
        name = self._call("cudaGetDeviceProperties", 0).name
        return Gpu(name=(name.decode(errors="replace") if isinstance(name, bytes) else str(name)).rstrip("\0"),
                   compute_capability=(major, minor), memory_bytes=int(self._memory()[1]),
                   driver=_version(self._call("cudaDriverGetVersion")),
                   runtime=_version(self._call("cudaRuntimeGetVersion")))

    def _memory(self) -> tuple[int, int]:
        status, free, total = self._cuda.cudaMemGetInfo()
        if int(status) != 0:
            raise self._error(status, "cudaMemGetInfo")
        return int(free), int(total)

    def malloc(self, size_bytes: int) -> int:
        """Return the address of new device memory."""
        return int(self._call("cudaMalloc", size_bytes, about=f" of {size_bytes / 1e6:.1f} MB"))

    def free(self, address: int) -> None:
        """Give device memory back."""
        self._call("cudaFree", address)

    def host_alloc(self, size_bytes: int) -> int:
        """Return the address of new page-locked host memory."""
        return int(self._call("cudaHostAlloc", size_bytes, self._cuda.cudaHostAllocDefault,
                              about=f" of {size_bytes / 1e6:.1f} MB"))

    def host_free(self, address: int) -> None:
        """Give page-locked host memory back."""
        self._call("cudaFreeHost", address)

    def copy_in(self, device: int, host: int, size_bytes: int, stream: Handle) -> None:
        """Enqueue a copy from host to device memory."""
        self._call("cudaMemcpyAsync", device, host, size_bytes, self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice,
                   stream)

    def copy_out(self, host: int, device: int, size_bytes: int, stream: Handle) -> None:
        """Enqueue a copy from device to host memory."""
        self._call("cudaMemcpyAsync", host, device, size_bytes, self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost,
                   stream)

    def copy_within(self, target: int, source: int, size_bytes: int, stream: Handle) -> None:
        """Enqueue a copy from device to device memory."""
        self._call("cudaMemcpyAsync", target, source, size_bytes, self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToDevice,
                   stream)

    def stream(self) -> Handle:
        """Return a new stream that does not wait for the default one."""
        return self._call("cudaStreamCreateWithFlags", self._cuda.cudaStreamNonBlocking)

    def stream_address(self, stream: Handle) -> int:
        """Return the number that TensorRT knows a stream by."""
        return int(stream)

    def synchronize(self, stream: Handle) -> None:
        """Wait until everything enqueued on the stream is done."""
        self._call("cudaStreamSynchronize", stream)

    def stream_destroy(self, stream: Handle) -> None:
        """Give a stream back."""
        self._call("cudaStreamDestroy", stream)

    def event(self) -> Handle:
        """Return a new event that keeps time."""
        return self._call("cudaEventCreateWithFlags", self._cuda.cudaEventDefault)

    def record(self, event: Handle, stream: Handle) -> None:
        """Enqueue a time stamp."""
        self._call("cudaEventRecord", event, stream)

    def elapsed_s(self, begin: Handle, end: Handle) -> float:
        """Return the device's time between two recorded events, waiting for the second."""
        self._call("cudaEventSynchronize", end)
        return float(self._call("cudaEventElapsedTime", begin, end)) * 1e-3

    def event_destroy(self, event: Handle) -> None:
        """Give an event back."""
        self._call("cudaEventDestroy", event)

    def begin_capture(self, stream: Handle) -> None:
        """Record what is enqueued on the stream from now on instead of running it."""
        # Thread-local: what other threads do to the device must not break the recording.
        self._call("cudaStreamBeginCapture", stream, self._cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal)

    def end_capture(self, stream: Handle) -> Handle:
        """Return what was recorded, ready to launch."""
        graph = self._call("cudaStreamEndCapture", stream)
        try:
            return self._call("cudaGraphInstantiate", graph, 0)
        finally:
            self._call("cudaGraphDestroy", graph)

    def launch(self, graph: Handle, stream: Handle) -> None:
        """Enqueue a recorded graph."""
        self._call("cudaGraphLaunch", graph, stream)

    def graph_destroy(self, graph: Handle) -> None:
        """Give a recorded graph back."""
        self._call("cudaGraphExecDestroy", graph)


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


def view(address: int, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Return an array of `shape` over host memory at `address`; it is valid as long as the memory is."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    memory = (ctypes.c_byte * size).from_address(address)
    array: npt.NDArray[Any] = np.frombuffer(memoryview(memory).cast("B"), dtype).reshape(shape)
    return array


def to_bfloat16(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """Return the upper halves of 32-bit floats, rounded to nearest with ties to even; NaN stays NaN."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    halves: npt.NDArray[np.uint16] = np.where(np.isnan(values), np.uint32(0x7FC0), rounded).astype(np.uint16)
    return halves


def from_bfloat16(halves: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
    """Return the 32-bit floats whose upper halves these are."""
    values: npt.NDArray[np.float32] = (halves.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return values
