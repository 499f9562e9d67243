"""A CUDA runtime without a GPU: memory is real (host) memory, streams run at once, every call is kept, and calls fail on
request. Leaks, double frees, copies beyond an allocation and use of what was given back are errors."""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

from edgebench.backends.cuda import CudaError, Gpu

ORIN = Gpu(name="Orin", compute_capability=(8, 7), memory_bytes=8 * 10**9, driver="12.6", runtime="12.6")
ADA = Gpu(name="NVIDIA L4", compute_capability=(8, 9), memory_bytes=24 * 10**9, driver="13.0", runtime="13.0")
NAMES = {"cudaErrorMemoryAllocation": "out of memory", "cudaErrorNoDevice": "no CUDA-capable device is detected",
         "cudaErrorStreamCaptureInvalidated": "operation failed due to a previous error during capture",
         "cudaErrorIllegalAddress": "an illegal memory access was encountered"}


@dataclass
class Stream:
    number: int
    capturing: list[Callable[[], None]] | None = None


@dataclass
class FakeCuda:
    """Implements `edgebench.backends.cuda.Cuda`.

    Attributes:
        fail: Name of a CUDA error by (method, how many calls of it succeed before).
        tick_s: Device time that each enqueued operation takes.
    """

    device: Gpu | None = ADA
    fail: dict[tuple[str, int], str] = field(default_factory=dict)
    tick_s: float = 0.001
    calls: list[str] = field(default_factory=list)

    def __post_init__(self):
        self._counts: dict[str, int] = {}
        self._memory: dict[int, tuple[str, ctypes.Array]] = {}
        self._handles: dict[int, object] = {}
        self._numbers = itertools.count(1)
        self.clock_s = 0.0
        self.bytes_now = 0

    # -- bookkeeping ---------------------------------------------------------------------------------------------

    def _called(self, name: str) -> None:
        count = self._counts.get(name, 0)
        self._counts[name] = count + 1
        self.calls.append(name)
        failure = self.fail.get((name, count))
        if failure is not None:
            raise CudaError(failure, NAMES[failure], name)

    @property
    def held(self) -> dict[str, int]:
        """What has not been given back."""
        found: dict[str, int] = {}
        for kind, _ in self._memory.values():
            found[kind] = found.get(kind, 0) + 1
        for handle in self._handles.values():
            kind = type(handle).__name__
            found[kind] = found.get(kind, 0) + 1
        return found

    def _allocate(self, kind: str, size: int) -> int:
        block = ctypes.create_string_buffer(max(size, 1))
        address = ctypes.addressof(block)
        self._memory[address] = kind, block
        self.bytes_now += size
        return address

    def _give_back(self, kind: str, address: int) -> None:
        found, block = self._memory.pop(address)  # a KeyError is a double free
        assert found == kind
        self.bytes_now -= len(block)

    def _check(self, kind: str, address: int, size: int) -> None:
        found, block = self._memory[address]
        assert found == kind, f"{kind} address expected, got {found}"
        assert size <= len(block), f"{size} bytes into {len(block)}"

    def _new(self, handle):
        self._handles[id(handle)] = handle
        return handle

    def _live(self, handle):
        assert id(handle) in self._handles, "used after it was given back"
        return handle

    def enqueue(self, stream: Stream, work: Callable[[], None]) -> None:
        """Do `work` in stream order: at once, or when the captured graph is launched."""
        if stream.capturing is not None:
            stream.capturing.append(work)
            return
        work()
        self.clock_s += self.tick_s

    def stream_of(self, address: int) -> Stream:
        """Return the stream that TensorRT was told of by its number."""
        return next(one for one in self._handles.values() if isinstance(one, Stream) and one.number == address)

    # -- the protocol ----------------------------------------------------------------------------------------------

    def gpu(self) -> Gpu:
        self._called("gpu")
        if self.device is None:
            raise CudaError("cudaErrorNoDevice", NAMES["cudaErrorNoDevice"], "cudaGetDeviceCount")
        return self.device

    def malloc(self, size_bytes: int) -> int:
        self._called("malloc")
        return self._allocate("device", size_bytes)

    def free(self, address: int) -> None:
        self._called("free")
        self._give_back("device", address)

    def host_alloc(self, size_bytes: int) -> int:
        self._called("host_alloc")
        return self._allocate("pinned", size_bytes)

    def host_free(self, address: int) -> None:
        self._called("host_free")
        self._give_back("pinned", address)

    def copy_in(self, device: int, host: int, size_bytes: int, stream: Stream) -> None:
        self._called("copy_in")
        self._check("device", device, size_bytes)
        self._check("pinned", host, size_bytes)
        self.enqueue(self._live(stream), lambda: ctypes.memmove(device, host, size_bytes))

    def copy_out(self, host: int, device: int, size_bytes: int, stream: Stream) -> None:
        self._called("copy_out")
        self._check("device", device, size_bytes)
        self._check("pinned", host, size_bytes)
        self.enqueue(self._live(stream), lambda: ctypes.memmove(host, device, size_bytes))

    def copy_within(self, target: int, source: int, size_bytes: int, stream: Stream) -> None:
        self._called("copy_within")
        self._check("device", target, size_bytes)
        self._check("device", source, size_bytes)
        self.enqueue(self._live(stream), lambda: ctypes.memmove(target, source, size_bytes))

    def stream(self) -> Stream:
        self._called("stream")
        return self._new(Stream(next(self._numbers)))

    def stream_address(self, stream: Stream) -> int:
        return self._live(stream).number

    def synchronize(self, stream: Stream) -> None:
        self._called("synchronize")
        assert self._live(stream).capturing is None, "synchronized while capturing"

    def stream_destroy(self, stream: Stream) -> None:
        self._called("stream_destroy")
        del self._handles[id(stream)]

    def event(self) -> Event:
        self._called("event")
        return self._new(Event())

    def record(self, event: Event, stream: Stream) -> None:
        self._called("record")
        assert self._live(stream).capturing is None
        self._live(event).at_s = self.clock_s

    def elapsed_s(self, begin: Event, end: Event) -> float:
        self._called("elapsed")
        assert begin.at_s is not None
        assert end.at_s is not None
        return end.at_s - begin.at_s

    def event_destroy(self, event: Event) -> None:
        self._called("event_destroy")
        del self._handles[id(event)]

    def begin_capture(self, stream: Stream) -> None:
        self._called("begin_capture")
        self._live(stream).capturing = []

    def end_capture(self, stream: Stream) -> Graph:
        work, stream.capturing = self._live(stream).capturing, None
        self._called("end_capture")
        return self._new(Graph(work or []))

    def launch(self, graph: Graph, stream: Stream) -> None:
        self._called("launch")
        for work in self._live(graph).work:
            self.enqueue(self._live(stream), work)

    def graph_destroy(self, graph: Graph) -> None:
        self._called("graph_destroy")
        del self._handles[id(graph)]


@dataclass(eq=False)
class Event:
    at_s: float | None = None


@dataclass(eq=False)
class Graph:
    work: list[Callable[[], None]]
