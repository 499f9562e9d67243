"""A deserialized TensorRT engine, ready to infer: buffers, streams, CUDA graph, and time by the device's own clock.

The engine's objects are handed in, so that this runs against any implementation of `edgebench.backends.cuda.Cuda`.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from edgebench.backends import Array, Feeds
from edgebench.backends.cuda import Cuda, CudaError, Handle, from_bfloat16, to_bfloat16, view
from edgebench.errors import CannotMeasure, InvalidInput, UsageError
from edgebench.record import TensorSpec

if TYPE_CHECKING:
    import tensorrt as trt

Log = Callable[[], str]
"""Returns what the library said since it was last asked."""
# NumPy types of TensorRT's; BF16 has none and travels as its bits.
_STORED = {"FLOAT": "float32", "HALF": "float16", "BF16": "uint16", "INT8": "int8", "UINT8": "uint8",
           "INT32": "int32", "INT64": "int64", "BOOL": "bool"}
_FLOATS = ("FLOAT", "HALF", "BF16")


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceTimes:
    """One inference by the device's clock, and what enqueueing it cost the host."""

    h2d_s: float
    """Copying the inputs to the device."""
    compute_s: float
    d2h_s: float
    """Copying the outputs back."""
    enqueue_s: float
    """Host time of the call that starts the computation; above `compute_s` the host is the bottleneck."""


@dataclass(frozen=True, slots=True)
class _Tensor:
    name: str
    kind: str
    """TensorRT's element type."""
    shape: tuple[int, ...]
    device: int
    host: int
    size_bytes: int

    @property
    def pinned(self) -> Array:
        return view(self.host, self.shape, _STORED[self.kind])


class _Owned:
    """Everything that must be given back, in reverse order of taking."""

    def __init__(self) -> None:
        self._undo: list[Callable[[], None]] = []

    def take(self, undo: Callable[[], None]) -> None:
        self._undo.append(undo)

    def release(self) -> None:
        failure: CudaError | None = None
        while self._undo:
            try:
                self._undo.pop()()
            except CudaError as error:  # the rest must be given back all the same
                failure = failure or error
        if failure is not None:
            raise failure


class EngineSession:
    """An engine with its buffers for one batch size.

    Args:
        engine: Deserialized.
        context: Its execution context, of this session alone.
        cuda: The runtime.
        batch: Images per inference.
        cuda_graph: Whether to replay a captured graph.
        weights_bytes: Of the engine, for `device_memory_bytes`.
        log: The library's messages, for errors.
        after_warm_up: Called once the first inference is done.

    Raises:
        UsageError: The engine does not take `batch`.
        InvalidInput: A type or shape that a vision model does not have.
        CudaError: No memory left, or the device is lost.
        CannotMeasure: The first inference failed.
    """

    def __init__(self, engine: trt.ICudaEngine, context: trt.IExecutionContext, cuda: Cuda, *, batch: int,
                 cuda_graph: bool, weights_bytes: int = 0, log: Log = lambda: "",
                 after_warm_up: Callable[[], None] = lambda: None) -> None:
        self._cuda, self._log = cuda, log
        # The context must go before its engine.
        self._alive: tuple[trt.IExecutionContext, trt.ICudaEngine] | None = context, engine
        owned = _Owned()
        self._close = weakref.finalize(self, owned.release)
        self.notes: tuple[str, ...] = ()
        """What did not go as asked, such as a CUDA graph that could not be captured."""
        self._graph: Handle | None = None
        try:
            self._stream = cuda.stream()
            owned.take(partial(cuda.stream_destroy, self._stream))
            self._set_shapes(engine, context, batch)
            self._inputs, self._outputs = (self._allocate(engine, mode, owned) for mode in ("INPUT", "OUTPUT"))
            self.device_memory_bytes = weights_bytes + int(engine.device_memory_size_v2) + sum(
                tensor.size_bytes for tensor in (*self._inputs, *self._outputs))
            """Weights, scratch memory of the execution context, and the buffers of inputs and outputs."""
            self._events = [self._event(owned) for _ in range(4)]
            for tensor in (*self._inputs, *self._outputs):
                context.set_tensor_address(tensor.name, tensor.device)
            self.inputs, self.outputs = (tuple(_spec(tensor) for tensor in tensors)
                                         for tensors in (self._inputs, self._outputs))
            # The first inference sets kernels up and may compile; a graph cannot be captured before it.
            self._run()
            cuda.synchronize(self._stream)
            after_warm_up()
            if cuda_graph:
                self._capture(owned)
        except BaseException:
            self.close()
            raise

    def _event(self, owned: _Owned) -> Handle:
        event = self._cuda.event()
        owned.take(partial(self._cuda.event_destroy, event))
        return event

    def _set_shapes(self, engine: trt.ICudaEngine, context: trt.IExecutionContext, batch: int) -> None:
        for name in _names(engine, "INPUT"):
            shape = sizes(engine.get_tensor_shape(name))
            if -1 in shape:
                low, _, high = (sizes(one) for one in engine.get_tensor_profile_shape(name, 0))
                if not low[0] <= batch <= high[0]:
                    raise UsageError(f"the engine takes {low[0]} to {high[0]} images per inference, not {batch}",
                                     "choose --batch in that range, or other batches in the recipe's [build] table")
                shape = tuple(batch if axis == 0 else size if size >= 0 else high[axis]
                              for axis, size in enumerate(shape))
            elif shape and shape[0] != batch:
                raise UsageError(f"the engine takes exactly {shape[0]} images per inference, not {batch}",
                                 f"choose --batch {shape[0]}, or export with a batch that may vary")
            if not context.set_input_shape(name, shape):
                raise InvalidInput(f"TensorRT does not take {name} with shape {shape}: {self._log()}")
        missing = list(context.infer_shapes())
        if missing:
            raise InvalidInput(f"TensorRT cannot tell the shapes of {', '.join(missing)}: {self._log()}")

    def _allocate(self, engine: trt.ICudaEngine, mode: str, owned: _Owned) -> tuple[_Tensor, ...]:
        cuda, found = self._cuda, []
        for name in _names(engine, mode):
            kind = str(engine.get_tensor_dtype(name).name)
            shape = sizes(self._context.get_tensor_shape(name))
            if kind not in _STORED or min(shape, default=1) < 0:
                raise InvalidInput(f"tensor {name} of the engine has type {kind} and shape {shape}: no such inputs or "
                                   "outputs are known of vision models")
            size = int(np.prod(shape, dtype=np.int64)) * np.dtype(_STORED[kind]).itemsize
            device = cuda.malloc(size)
            owned.take(partial(cuda.free, device))
            host = cuda.host_alloc(size)
            owned.take(partial(cuda.host_free, host))
            found.append(_Tensor(name, kind, shape, device, host, size))
        return tuple(found)

    def _capture(self, owned: _Owned) -> None:
        """Record the computation once; where that fails, inferences go on one launch at a time, and `notes` say so."""
        cuda, stream = self._cuda, self._stream
        capturable = getattr(self._context, "is_stream_capturable", None)
        if capturable is not None and not capturable(cuda.stream_address(stream)):
            self.notes += ("no CUDA graph: TensorRT says that this engine cannot be captured",)
            return
        try:
            cuda.begin_capture(stream)
            accepted = bool(self._context.execute_async_v3(cuda.stream_address(stream)))
            graph = cuda.end_capture(stream)
        except CudaError as error:
            self.notes += (f"no CUDA graph: {error.message}",)
            self._log()
            return
        owned.take(partial(cuda.graph_destroy, graph))
        if not accepted:
            self.notes += (f"no CUDA graph: TensorRT refused to be captured: {self._log()}",)
            return
        self._graph = graph

    def _run(self) -> None:
        if self._graph is not None:
            self._cuda.launch(self._graph, self._stream)
        elif not self._context.execute_async_v3(self._cuda.stream_address(self._stream)):
            raise CannotMeasure(f"TensorRT did not run the engine: {self._log() or 'it gave no reason'}")

    @property
    def _context(self) -> trt.IExecutionContext:
        if self._alive is None:
            raise UsageError("this session is closed")
        return self._alive[0]

    @property
    def cuda_graph(self) -> bool:
        """Whether inferences replay a captured graph."""
        return self._graph is not None

    def infer(self, feeds: Feeds) -> Feeds:
        """Run one batch from host memory to host memory; float32 outputs alias the session's buffers.

        Raises:
            InvalidInput: A missing, unknown or wrongly shaped input.
            CudaError: The device failed.
        """
        self._fill(feeds)
        for tensor in self._inputs:
            self._cuda.copy_in(tensor.device, tensor.host, tensor.size_bytes, self._stream)
        self._run()
        for tensor in self._outputs:
            self._cuda.copy_out(tensor.host, tensor.device, tensor.size_bytes, self._stream)
        self._cuda.synchronize(self._stream)
        return {tensor.name: _read(tensor) for tensor in self._outputs}

    def timed_infer(self, feeds: Feeds) -> DeviceTimes:
        """Run one batch and return its parts by CUDA events; converting types on the host is in none of them."""
        cuda, stream = self._cuda, self._stream
        self._fill(feeds)
        begin, copied, computed, end = self._events
        cuda.record(begin, stream)
        for tensor in self._inputs:
            cuda.copy_in(tensor.device, tensor.host, tensor.size_bytes, stream)
        cuda.record(copied, stream)
        before = time.perf_counter_ns()
        self._run()
        enqueue_s = (time.perf_counter_ns() - before) * 1e-9
        cuda.record(computed, stream)
        for tensor in self._outputs:
            cuda.copy_out(tensor.host, tensor.device, tensor.size_bytes, stream)
        cuda.record(end, stream)
        d2h_s = cuda.elapsed_s(computed, end)
        return DeviceTimes(h2d_s=cuda.elapsed_s(begin, copied), compute_s=cuda.elapsed_s(copied, computed),
                           d2h_s=d2h_s, enqueue_s=enqueue_s)

    def computing_s(self) -> float:
        """Run the computation alone on what lies in the buffers, and return its time by the device's own events."""
        begin, _, computed, _ = self._events
        # The device is busy when the first event comes: enqueueing is in none of the time.
        self._run()
        self._cuda.record(begin, self._stream)
        self._run()
        self._cuda.record(computed, self._stream)
        return self._cuda.elapsed_s(begin, computed)

    def compute_once(self) -> None:
        """Run the computation alone on what lies in the buffers, without a graph, and wait for it."""
        graph, self._graph = self._graph, None
        try:
            self._run()
            self._cuda.synchronize(self._stream)
        finally:
            self._graph = graph

    def _fill(self, feeds: Feeds) -> None:
        if self._alive is None:
            raise UsageError("this session is closed")
        unknown = sorted(set(feeds) - {tensor.name for tensor in self._inputs})
        if unknown:
            raise InvalidInput(f"the engine has no input {unknown[0]!r}",
                               f"its inputs: {', '.join(tensor.name for tensor in self._inputs)}")
        for tensor in self._inputs:
            if tensor.name not in feeds:
                raise InvalidInput(f"input {tensor.name!r} is missing")
            values = feeds[tensor.name]
            if values.shape != tensor.shape:
                raise InvalidInput(f"input {tensor.name!r} has shape {values.shape}, the session was opened for "
                                   f"{tensor.shape}", "open a session for that batch size")
            if tensor.kind == "BF16":
                np.copyto(tensor.pinned, to_bfloat16(np.asarray(values, np.float32)))
            else:
                np.copyto(tensor.pinned, values, casting="same_kind")

    def close(self) -> None:
        """Give buffers, graph, events and stream back; the session cannot be used afterwards."""
        self._alive = None
        self._graph = None
        self._close()


def sizes(dims: Any) -> tuple[int, ...]:
    """Return TensorRT's dimensions as numbers; -1 stands for one that may vary."""
    return tuple(int(size) for size in dims)


def _names(engine: trt.ICudaEngine, mode: str) -> list[str]:
    names = [engine.get_tensor_name(k) for k in range(engine.num_io_tensors)]
    return [name for name in names if engine.get_tensor_mode(name).name == mode]


def _spec(tensor: _Tensor) -> TensorSpec:
    """Return what `infer` takes and gives: float32 for every float type."""
    return TensorSpec(name=tensor.name, dtype="float32" if tensor.kind in _FLOATS else _STORED[tensor.kind],
                      shape=tensor.shape)


def _read(tensor: _Tensor) -> Any:
    if tensor.kind == "BF16":
        return from_bfloat16(tensor.pinned)
    return tensor.pinned.astype(np.float32) if tensor.kind == "HALF" else tensor.pinned
