"""The CUDA runtime behind its protocol, and sessions of engines on it: what is called in which order, and what is left."""

from __future__ import annotations

import inspect
import re
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest

from edgebench.backends import cuda as cuda_module
from edgebench.backends.cuda import CudaError, CudaRuntime, from_bfloat16, to_bfloat16, view
from edgebench.backends.engine_session import EngineSession
from edgebench.errors import KINDS, CannotMeasure, InvalidInput, UsageError
from tests.fake_cuda import FakeCuda
from tests.gpu import REASON, gpu

NUMPY = {"FLOAT": np.float32, "HALF": np.float16, "BF16": np.uint16, "INT64": np.int64}


class DoublingEngine:
    """logits = 2 · image, summed over everything but the batch, in the engine's own types; batches of 1 to 4."""

    device_memory_size_v2 = 12_345

    def __init__(self, cuda: FakeCuda, *, inputs: str = "FLOAT", outputs: str = "FLOAT", shape=(-1, 3, 2, 2), rows: int = 1):
        self.cuda, self.kinds, self.shape, self.rows = cuda, {"image": inputs, "logits": outputs}, shape, rows
        self.num_io_tensors = 2
        self.accepts, self.accepts_capture, self.shapes, self.addresses, self.runs = True, True, {}, {}, 0

    # -- the engine
    def get_tensor_name(self, k):
        return ("image", "logits")[k]

    def get_tensor_mode(self, name):
        return SimpleNamespace(name={"image": "INPUT", "logits": "OUTPUT"}[name])

    def get_tensor_dtype(self, name):
        return SimpleNamespace(name=self.kinds[name])

    def get_tensor_shape(self, name):
        return self.shapes.get(name) or (self.shape if name == "image" else (self.shapes.get("image", (-1,))[0], self.rows))

    def get_tensor_profile_shape(self, name, profile):
        return [(size, *self.shape[1:]) for size in (1, 2, 4)]

    # -- its context
    def set_input_shape(self, name, shape):
        self.shapes[name] = shape
        return True

    def infer_shapes(self):
        return []

    def set_tensor_address(self, name, address):
        self.addresses[name] = address
        return True

    def execute_async_v3(self, number):
        stream = self.cuda.stream_of(number)
        if not self.accepts or (stream.capturing is not None and not self.accepts_capture):
            return False
        self.cuda.enqueue(stream, self._compute)
        return True

    def _compute(self):
        self.runs += 1

        def raw(name):
            return view(self.addresses[name], tuple(self.get_tensor_shape(name)), NUMPY[self.kinds[name]])

        values = from_bfloat16(raw("image")) if self.kinds["image"] == "BF16" else raw("image").astype(np.float32)
        result = 2 * values.sum((1, 2, 3), keepdims=False).reshape(-1, 1)
        np.copyto(raw("logits"), to_bfloat16(result) if self.kinds["logits"] == "BF16" else result, casting="unsafe")


def opened(cuda: FakeCuda, *, batch: int = 2, graph: bool = False, **engine) -> tuple[EngineSession, DoublingEngine]:
    made = DoublingEngine(cuda, **engine)
    return EngineSession(made, made, cuda, batch=batch, cuda_graph=graph, log=lambda: "what the log said"), made


IMAGES = np.random.default_rng(0).integers(-4, 5, (2, 3, 2, 2)).astype(np.float32)
DOUBLED = 2 * IMAGES.sum((1, 2, 3)).reshape(2, 1)


class TestRuntime:
    @pytest.mark.skipif(not REASON, reason="there is a GPU")
    def test_without_a_gpu_the_error_carries_cudas_name(self):
        with pytest.raises(CudaError, match="cudaGetDeviceCount failed with cudaError") as caught:
            CudaRuntime().gpu()
        assert caught.value.name in ("cudaErrorInsufficientDriver", "cudaErrorNoDevice")
        assert caught.value.hint

    def test_a_driver_older_than_cuda_python_is_named_with_the_package_for_it(self):
        hint = CudaError("cudaErrorInsufficientDriver", "CUDA driver version is insufficient", "cudaGetDeviceCount").hint
        assert "cuda-python<13" in hint

    @gpu
    def test_the_gpu_is_described(self):
        found = CudaRuntime().gpu()
        assert found.name
        assert found.compute_capability >= (3, 0)
        assert found.memory_bytes > 2**30

    @gpu
    def test_copies_events_and_page_locked_memory_work_on_the_device(self):
        cuda = CudaRuntime()
        stream, begin, end = cuda.stream(), cuda.event(), cuda.event()
        host, device = cuda.host_alloc(1 << 20), cuda.malloc(1 << 20)
        view(host, (1 << 18,), np.float32)[:] = np.arange(1 << 18)
        cuda.record(begin, stream)
        cuda.copy_in(device, host, 1 << 20, stream)
        cuda.synchronize(stream)
        view(host, (1 << 18,), np.float32)[:] = 0
        cuda.copy_out(host, device, 1 << 20, stream)
        cuda.record(end, stream)
        assert cuda.elapsed_s(begin, end) > 0
        assert np.array_equal(np.arange(1 << 18, dtype=np.float32), view(host, (1 << 18,), np.float32))
        cuda.free(device)
        cuda.host_free(host)
        cuda.event_destroy(begin)
        cuda.event_destroy(end)
        cuda.stream_destroy(stream)

    def test_every_name_it_uses_exists_in_cuda_python(self):
        from cuda.bindings import runtime

        names = set(re.findall(r'"(cuda[A-Z]\w+)"', inspect.getsource(CudaRuntime))) | set(
            re.findall(r"_cuda\.(cuda[A-Z]\w+)", inspect.getsource(CudaRuntime)))
        names -= {name for name in names if name.startswith("cudaError")}
        assert len(names) > 20
        assert set() == {name for name in names if not hasattr(runtime, name)}
        for attribute in ("cudaDevAttrComputeCapabilityMajor", "cudaDevAttrComputeCapabilityMinor"):
            assert hasattr(runtime.cudaDeviceAttr, attribute)

    def test_errors_with_hints_are_errors_of_cuda(self):
        from cuda.bindings import runtime

        assert set() == {name for name in cuda_module._HINTS if not hasattr(runtime.cudaError_t, name)}

    def test_failed_calls_are_not_reported_by_the_next_one(self, monkeypatch):
        cleared = []

        class Status(int):
            pass

        double = SimpleNamespace(
            cudaMalloc=lambda size: (Status(2), None), cudaGetLastError=lambda: cleared.append(1),
            cudaGetErrorName=lambda status: (0, b"cudaErrorMemoryAllocation"),
            cudaGetErrorString=lambda status: (0, b"out of memory"))
        monkeypatch.setattr(cuda_module, "require", lambda module, extra: double)
        with pytest.raises(CudaError, match=r"cudaMalloc of 12\.0 MB failed with cudaErrorMemoryAllocation") as caught:
            CudaRuntime().malloc(12_000_000)
        assert [1] == cleared
        assert "smaller --batch" in caught.value.hint

    def test_the_error_reaches_a_parent_process_as_one_of_its_kinds(self):
        assert KINDS.get(CudaError.__name__, CannotMeasure) is CannotMeasure


class TestBfloat16:
    def test_rounding_is_that_of_ml_dtypes(self):
        generator = np.random.default_rng(1)
        bits = generator.integers(0, 2**32, 200_000, dtype=np.uint32)
        # Ties, the largest finite numbers and infinities besides random bit patterns.
        bits = np.concatenate([bits, np.array([0x3F808000, 0x3F818000, 0x7F7FFFFF, 0xFF7FFFFF, 0x7F800000, 0], np.uint32)])
        values = bits.view(np.float32)
        with np.errstate(invalid="ignore"):
            expected = values.astype(ml_dtypes.bfloat16)
        got = to_bfloat16(values)
        finite = ~np.isnan(values)
        assert np.array_equal(expected.view(np.uint16)[finite], got[finite])
        assert np.isnan(from_bfloat16(got[~finite])).all()

    def test_reading_is_that_of_ml_dtypes(self):
        halves = np.arange(2**16, dtype=np.uint16)
        assert np.array_equal(halves.view(ml_dtypes.bfloat16).astype(np.float32), from_bfloat16(halves), equal_nan=True)


class TestInference:
    def test_outputs_are_those_of_the_engine(self):
        session, _ = opened(FakeCuda())
        assert np.array_equal(DOUBLED, session.infer({"image": IMAGES})["logits"])
        other = IMAGES[::-1].copy()
        assert np.array_equal(DOUBLED[::-1], session.infer({"image": other})["logits"])

    def test_copies_and_computation_are_in_stream_order(self):
        cuda = FakeCuda()
        session, engine = opened(cuda)
        cuda.calls.clear()
        before = engine.runs
        session.infer({"image": IMAGES})
        assert ["copy_in", "copy_out", "synchronize"] == cuda.calls
        assert before + 1 == engine.runs

    def test_nothing_is_allocated_once_the_session_is_open(self):
        cuda = FakeCuda()
        session, _ = opened(cuda, graph=True)
        before = cuda.held
        for _ in range(3):
            session.infer({"image": IMAGES})
            session.timed_infer({"image": IMAGES})
        assert before == cuda.held

    @pytest.mark.parametrize("kind", ["HALF", "BF16"])
    def test_half_precision_inputs_and_outputs_are_float32_outside(self, kind):
        session, _ = opened(FakeCuda(), inputs=kind, outputs=kind)
        assert ["float32", "float32"] == [session.inputs[0].dtype, session.outputs[0].dtype]
        got = session.infer({"image": IMAGES})["logits"]
        assert got.dtype == np.float32
        assert np.array_equal(DOUBLED, got)

    def test_specifications_are_those_of_the_opened_batch(self):
        session, _ = opened(FakeCuda(), batch=2)
        assert ("image", (2, 3, 2, 2)) == (session.inputs[0].name, session.inputs[0].shape)
        assert ("logits", (2, 1)) == (session.outputs[0].name, session.outputs[0].shape)

    def test_its_memory_is_weights_scratch_and_buffers(self):
        cuda = FakeCuda()
        made = DoublingEngine(cuda)
        session = EngineSession(made, made, cuda, batch=2, cuda_graph=False, weights_bytes=1_000_000)
        # Two images of 3 · 2 · 2 floats, and two logits.
        assert 1_000_000 + 12_345 + 4 * (2 * 12 + 2) == session.device_memory_bytes

    def test_device_times_are_the_events(self):
        cuda = FakeCuda(tick_s=0.002)
        session, _ = opened(cuda)
        cuda.calls.clear()
        times = session.timed_infer({"image": IMAGES})
        assert pytest.approx((0.002, 0.002, 0.002)) == (times.h2d_s, times.compute_s, times.d2h_s)
        assert 0 < times.enqueue_s < 1
        assert ["record", "copy_in", "record", "record", "copy_out", "record"] == cuda.calls[:6]

    @pytest.mark.parametrize(("feeds", "message"), [
        ({"image": IMAGES[:1]}, "shape"), ({}, "missing"), ({"picture": IMAGES}, "no input 'picture'")])
    def test_wrong_inputs_are_refused_by_name(self, feeds, message):
        session, _ = opened(FakeCuda())
        with pytest.raises(InvalidInput, match=message):
            session.infer(feeds)

    def test_a_batch_outside_the_profile_is_refused_with_its_range(self):
        cuda = FakeCuda()
        with pytest.raises(UsageError, match="1 to 4 images per inference, not 5"):
            opened(cuda, batch=5)
        assert {} == cuda.held

    def test_a_fixed_batch_is_named(self):
        with pytest.raises(UsageError, match="exactly 3 images"):
            opened(FakeCuda(), batch=2, shape=(3, 3, 2, 2))

    def test_an_engine_that_does_not_run_tells_why(self):
        session, engine = opened(FakeCuda())
        engine.accepts = False
        with pytest.raises(CannotMeasure, match="what the log said"):
            session.infer({"image": IMAGES})


class TestCudaGraph:
    def test_inferences_replay_what_was_captured(self):
        cuda = FakeCuda()
        session, engine = opened(cuda, graph=True)
        assert session.cuda_graph
        assert () == session.notes
        # The first inference ran before the capture, the capture itself runs nothing.
        assert 1 == engine.runs
        cuda.calls.clear()
        assert np.array_equal(DOUBLED, session.infer({"image": IMAGES})["logits"])
        assert ["copy_in", "launch", "copy_out", "synchronize"] == cuda.calls

    def test_a_failed_capture_is_noted_and_inference_goes_on(self):
        cuda = FakeCuda(fail={("end_capture", 0): "cudaErrorStreamCaptureInvalidated"})
        session, _ = opened(cuda, graph=True)
        assert not session.cuda_graph
        assert "cudaErrorStreamCaptureInvalidated" in session.notes[0]
        assert np.array_equal(DOUBLED, session.infer({"image": IMAGES})["logits"])
        session.close()
        assert {} == cuda.held

    def test_an_engine_that_refuses_to_be_captured_is_noted(self):
        cuda = FakeCuda()
        made = DoublingEngine(cuda)
        made.accepts_capture = False
        session = EngineSession(made, made, cuda, batch=2, cuda_graph=True, log=lambda: "a reason")
        assert not session.cuda_graph
        assert "a reason" in session.notes[0]
        assert np.array_equal(DOUBLED, session.infer({"image": IMAGES})["logits"])
        session.close()
        assert {} == cuda.held

    def test_an_engine_that_says_so_beforehand_is_not_captured(self):
        cuda = FakeCuda()
        made = DoublingEngine(cuda)
        made.is_stream_capturable = lambda stream: False
        session = EngineSession(made, made, cuda, batch=2, cuda_graph=True)
        assert not session.cuda_graph
        assert "begin_capture" not in cuda.calls


class TestNothingLeaks:
    def test_closing_gives_everything_back_once(self):
        cuda = FakeCuda()
        session, _ = opened(cuda, graph=True)
        assert {"device": 2, "pinned": 2, "Stream": 1, "Event": 4, "Graph": 1} == cuda.held
        session.close()
        session.close()
        assert {} == cuda.held
        assert 0 == cuda.bytes_now

    def test_a_closed_session_says_so(self):
        session, _ = opened(FakeCuda())
        session.close()
        with pytest.raises(UsageError, match="closed"):
            session.infer({"image": IMAGES})

    def test_a_forgotten_session_is_given_back(self):
        cuda = FakeCuda()
        session, _ = opened(cuda)
        del session
        assert {} == cuda.held

    @pytest.mark.parametrize("call", [("stream", 0), ("malloc", 0), ("host_alloc", 0), ("malloc", 1), ("host_alloc", 1),
                                      ("event", 2)])
    def test_running_out_of_memory_while_opening_leaves_nothing(self, call):
        cuda = FakeCuda(fail={call: "cudaErrorMemoryAllocation"})
        with pytest.raises(CudaError, match="cudaErrorMemoryAllocation") as caught:
            opened(cuda)
        assert {} == cuda.held
        assert "memory is used up" in caught.value.hint

    def test_one_failing_release_does_not_keep_the_rest(self):
        cuda = FakeCuda(fail={("event_destroy", 0): "cudaErrorIllegalAddress"})
        session, _ = opened(cuda)
        with pytest.raises(CudaError, match="cudaErrorIllegalAddress"):
            session.close()
        assert {"Event": 1} == cuda.held
