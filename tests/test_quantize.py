"""What is quantized and why, in every dialect; and that naive recipes are caught by agreement."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import onnx
import onnx.helper as oh
import pytest
from onnx import TensorProto

from edgebench import graphs, patterns, quantize
from edgebench.backends import onnxruntime as onnxruntime_backend
from edgebench.errors import InvalidInput
from edgebench.recipe import Quantization, Recipe
from tests import networks

CPU = Quantization(quantizer="onnxruntime")
TENSORRT = Quantization(quantizer="onnxruntime", activations="int8", bias="float")
FLOAT8 = Quantization(quantizer="onnxruntime", activations="float8", weights="float8", bias="float")


def recipe(quantization: Quantization = CPU, **changes) -> Recipe:
    backend = "onnxruntime" if quantization.activations == "uint8" else "tensorrt_rtx"
    precision = "fp8" if quantization.weights == "float8" else "int8"
    return replace(Recipe(id="r", title="", purpose="", checked_on="", backend=backend, precision=precision,
                          quantization=quantization), **changes)


def plan_of(name: str, quantization: Quantization = CPU, folder: Path = Path()) -> tuple[quantize.Plan, onnx.ModelProto]:
    prepared = quantize.prepare(networks.graph(name), folder)
    model = graphs.load(prepared)
    return quantize.plan(model, recipe(quantization)), model


def quantized(name: str, target: Path, of: Recipe, images: int = 8) -> quantize.Plan:
    return quantize.quantize(networks.graph(name), of, networks.batches(networks.noise(images)), target)


class TestPlan:
    @pytest.mark.parametrize("name", networks.NAMES)
    def test_every_node_has_a_name_and_a_reason(self, name, tmp_path):
        found, model = plan_of(name, folder=tmp_path)
        assert networks.FAMILIES[name] == found.family == found.detected
        assert [node.name for node in model.graph.node] == [one.name for one in found.decisions]
        assert len(model.graph.node) == len({one.name for one in found.decisions})
        assert all(one.reason for one in found.decisions)

    def test_names_are_the_same_at_every_call(self, tmp_path):
        folders = [tmp_path / "a", tmp_path / "b"]
        for folder in folders:
            folder.mkdir()
        first, second = (plan_of("mobilenet", folder=folder)[0] for folder in folders)
        assert first == second

    @pytest.mark.parametrize("quantization", [CPU, TENSORRT, FLOAT8])
    def test_of_a_transformer_only_stored_weights_are_quantized(self, quantization, tmp_path):
        found, model = plan_of("vit", quantization, tmp_path)
        graph = patterns.index(model)
        linear = {node.name for node in model.graph.node
                  if node.op_type in ("MatMul", "Gemm") and graph.weight(node) is not None}
        assert linear == set(found.quantized)
        reasons = {one.operator: one.reason for one in found.decisions if not one.quantized}
        assert "softmax" in reasons["Softmax"]
        assert "layer normalisation" in reasons["LayerNormalization"]
        assert "patch embedding" in reasons["Conv"]
        assert "two activations" in reasons["MatMul"]

    def test_residual_sums_of_a_transformer_are_told_from_biases(self, tmp_path):
        found, model = plan_of("vit", folder=tmp_path)
        constants = {tensor.name for tensor in model.graph.initializer}
        for node in model.graph.node:
            if node.op_type == "Add":
                reason = next(one.reason for one in found.decisions if one.name == node.name)
                bias = any(name in constants for name in node.input)
                assert ("bias" if bias else "residual Add") in reason

    def test_of_a_convnet_on_cpus_what_passes_int8_on_is_quantized_too(self, tmp_path):
        found, _ = plan_of("resnet", folder=tmp_path)
        assert {"Conv", "Add", "MaxPool", "Gemm"} <= {one.operator for one in found.decisions if one.quantized}

    def test_for_tensorrt_only_layers_with_weights_are(self, tmp_path):
        found, _ = plan_of("resnet", TENSORRT, tmp_path)
        assert {"Conv", "Gemm"} == {one.operator for one in found.decisions if one.quantized}

    def test_depthwise_networks_keep_squeeze_excite_float(self, tmp_path):
        found, model = plan_of("mobilenet", folder=tmp_path)
        kept = [one for one in found.decisions if "squeeze-excite" in one.reason]
        gates = sum(node.op_type == "HardSigmoid" for node in graphs.load(networks.graph("mobilenet")).graph.node)
        assert 2 * gates == sum(one.operator == "Conv" for one in kept)
        assert gates == sum(one.operator == "Mul" for one in kept)
        depthwise = [one for one in found.decisions if one.reason.startswith("depthwise")]
        graph = patterns.index(model)
        assert sum(patterns.is_depthwise(graph, node) for node in model.graph.node) == len(depthwise)
        assert all(one.quantized for one in depthwise)

    @pytest.mark.parametrize("name", ["clip-vit", "clip-convnext"])
    def test_normalisation_and_head_of_clip_stay_float(self, name, tmp_path):
        found, model = plan_of(name, folder=tmp_path)
        head = [one for one in found.decisions if "cosine is multiplied by 100" in one.reason]
        assert {"ReduceL2", "Div", "MatMul"} <= {one.operator for one in head}
        assert not any(one.quantized for one in head)
        last = next(node for node in model.graph.node if "logits" in node.output)
        assert last.name in {one.name for one in head}

    def test_of_convnext_convolutions_and_linear_layers_are_quantized(self, tmp_path):
        found, model = plan_of("convnext", folder=tmp_path)
        graph = patterns.index(model)
        depthwise = {node.name for node in model.graph.node if patterns.is_depthwise(graph, node)}
        assert depthwise
        # CPUs run them slower in INT8; TensorRT fuses them.
        assert set() == depthwise & set(found.quantized)
        assert depthwise <= set(plan_of("convnext", TENSORRT, tmp_path)[0].quantized)
        assert {"Conv", "Gemm"} == {one.operator for one in found.decisions if one.quantized}
        reasons = {one.operator: one.reason for one in found.decisions if not one.quantized}
        assert "layer normalisation" in reasons["LayerNormalization"]
        assert "activation function" in reasons["Gelu"]

    def test_the_user_may_name_nodes_that_stay_float(self, tmp_path):
        everything = plan_of("resnet", folder=tmp_path)[0].quantized
        stay = next(name for name in everything if "onv" in name)
        found = plan_of("resnet", replace(CPU, keep_float=(stay,)), tmp_path)[0]
        assert {stay} == set(everything) - set(found.quantized)
        assert "named in keep_float" == next(one.reason for one in found.decisions if one.name == stay)
        assert () == plan_of("resnet", replace(CPU, keep_float=("*",)), tmp_path)[0].quantized

    def test_a_name_that_no_node_has_is_an_error(self, tmp_path):
        with pytest.raises(InvalidInput, match="'nothing_like_it' names no node"):
            plan_of("resnet", replace(CPU, keep_float=("nothing_like_it",)), tmp_path)

    def test_the_user_may_name_operators_and_family(self, tmp_path):
        found = plan_of("vit", replace(CPU, operators=("Gemm",)), tmp_path)[0]
        assert {"Gemm"} == {one.operator for one in found.decisions if one.quantized}
        other = plan_of("vit", replace(CPU, family="convnet"), tmp_path)[0]
        assert ("convnet", "transformer") == (other.family, other.detected)

    def test_is_grouped_for_people_and_for_programs(self, tmp_path):
        found = plan_of("vit", folder=tmp_path)[0]
        groups = quantize.explain(found)
        assert len(found.decisions) == sum(len(group.nodes) for group in groups)
        assert groups[0].quantized
        assert not groups[-1].quantized
        assert len(groups) == len(msgspec.json.decode(msgspec.json.encode(groups)))
        text = quantize.explain_text(found)
        assert text.startswith(f"family transformer: {len(found.quantized)} nodes quantized")
        assert "residual Add" in text


class TestDialects:
    def test_on_cpus_activations_are_unsigned_and_biases_integers(self, tmp_path):
        quantized("resnet", tmp_path / "q.onnx", recipe())
        model = onnx.load(str(tmp_path / "q.onnx"))
        types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
        assert {TensorProto.UINT8} == {types[node.input[2]] for node in model.graph.node if node.op_type == "QuantizeLinear"}
        stored = {types[node.input[0]] for node in model.graph.node
                  if node.op_type == "DequantizeLinear" and node.input[0] in types}
        assert {TensorProto.INT8, TensorProto.INT32} == stored

    def test_for_tensorrt_zero_points_are_zero_and_biases_float(self, tmp_path):
        quantized("resnet", tmp_path / "q.onnx", recipe(TENSORRT))
        model = onnx.load(str(tmp_path / "q.onnx"))
        values = {tensor.name: tensor for tensor in model.graph.initializer}
        pairs = [node for node in model.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
        assert pairs
        for node in pairs:
            zero = onnx.numpy_helper.to_array(values[node.input[2]])
            assert np.int8 == zero.dtype
            assert not zero.any()
        convolutions = [node for node in model.graph.node if node.op_type == "Conv" and len(node.input) > 2]
        assert {TensorProto.FLOAT} == {values[node.input[2]].data_type for node in convolutions}

    def test_weights_have_a_range_per_output_channel(self, tmp_path):
        quantized("resnet", tmp_path / "q.onnx", recipe())
        model = onnx.load(str(tmp_path / "q.onnx"))
        values = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        base = {tensor.name: onnx.numpy_helper.to_array(tensor)
                for tensor in onnx.load(str(networks.graph("resnet"))).graph.initializer}
        node = next(node for node in model.graph.node if node.op_type == "DequantizeLinear"
                    and values.get(node.input[0], np.zeros(1)).ndim == 4)
        name = node.input[0].removesuffix("_quantized")
        expected = np.abs(base[name]).max(axis=(1, 2, 3)) / 127
        np.testing.assert_allclose(values[node.input[1]], expected, rtol=1e-3)

    def test_float8_weights_are_the_nearest_e4m3_numbers(self, tmp_path):
        import ml_dtypes

        quantized("vit", tmp_path / "q.onnx", recipe(FLOAT8))
        model = onnx.load(str(tmp_path / "q.onnx"))
        values = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        base = {tensor.name: onnx.numpy_helper.to_array(tensor)
                for tensor in onnx.load(str(networks.graph("vit"))).graph.initializer}
        checked = 0
        for node in model.graph.node:
            stored = values.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
            if stored is None:
                continue
            weight = base[node.input[0].removesuffix("_QuantizeLinear_Output")]
            axis = next(one.i for one in node.attribute if one.name == "axis")
            largest = np.abs(weight).max(axis=1 - axis, keepdims=True)
            expected = (weight / (largest / 448)).astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
            # Scales are rounded once more to FP32, so that a few numbers fall on the other side of a step.
            assert (expected != stored.astype(np.float32)).mean() < 0.01
            checked += 1
        assert checked == len(quantize.plan(graphs.load(quantize.prepare(networks.graph("vit"), tmp_path)),
                                            recipe(FLOAT8)).quantized)

    @pytest.mark.parametrize("quantization", [CPU, TENSORRT])
    def test_residual_streams_read_what_was_not_rounded(self, quantization, tmp_path):
        quantized("convnext", tmp_path / "q.onnx", recipe(quantization))
        model = onnx.load(str(tmp_path / "q.onnx"))
        graph = patterns.index(model)
        constants = set(graph.constants)
        sums = [node for node in model.graph.node if node.op_type == "Add" and not set(node.input) & constants]
        assert sums
        for node in sums:
            shortcut = [graph.producers.get(name) for name in node.input]
            # One side comes from the block's last layer, on CPUs through its own Q/DQ pair; the shortcut from none.
            assert any(made is None or made.op_type != "DequantizeLinear" for made in shortcut)

    @pytest.mark.parametrize("name", networks.NAMES)
    @pytest.mark.parametrize("quantization", [CPU, TENSORRT], ids=["cpu", "tensorrt"])
    def test_answers_stay_what_they_were(self, name, quantization, tmp_path):
        quantized(name, tmp_path / "q.onnx", recipe(quantization))
        onnx.checker.check_model(str(tmp_path / "q.onnx"), full_check=True)
        images = networks.noise(16, seed=5)
        reference, got = networks.answers(networks.graph(name), images), networks.answers(tmp_path / "q.onnx", images)
        # Errors of a seventh of the logits. Networks with random weights answer nearly alike to every input, so that the
        # largest of their logits says less.
        assert networks.sqnr_db(reference, got) > 17

    @pytest.mark.parametrize("name", ["resnet", "mobilenet", "vit"])
    def test_for_another_runtime_it_is_judged_by_what_it_says_not_by_this_cpus_integer_kernels(self, name, tmp_path):
        # Activations in [0, 6] take the upper half of a signed range's 255 steps: the worst case of 16-bit sums.
        quantized(name, tmp_path / "q.onnx", recipe(TENSORRT))
        session = onnxruntime_backend.open_in_float(tmp_path / "q.onnx", batch=4, threads=1)
        images = networks.noise(4, seed=6)
        node_by_node = networks.answers(tmp_path / "q.onnx", images)
        assert networks.sqnr_db(node_by_node, session.infer({"image": images})["logits"]) > 40

    def test_optimized_by_the_runtime_it_answers_the_same(self, tmp_path):
        import onnxruntime

        quantized("resnet", tmp_path / "q.onnx", recipe())
        session = onnxruntime.InferenceSession(str(tmp_path / "q.onnx"), providers=["CPUExecutionProvider"])
        images = networks.noise(4)
        assert networks.sqnr_db(networks.answers(tmp_path / "q.onnx", images), session.run(None, {"image": images})[0]) > 20


class TestCalibration:
    def refusal(self, batches, **changes) -> InvalidInput:
        with pytest.raises(InvalidInput) as caught:
            quantize.quantize(networks.graph("vit"), recipe(), batches, Path(changes["folder"]) / "q.onnx")
        return caught.value

    def test_none_are_refused(self, tmp_path):
        assert "no quantization-calibration images" in self.refusal(lambda: iter(()), folder=tmp_path).message

    def test_a_set_of_one_colour_is_refused(self, tmp_path):
        plain = np.ones((4, 3, 64, 64), np.float32)
        assert "one colour" in self.refusal(networks.batches(plain), folder=tmp_path).message

    def test_not_a_number_is_refused(self, tmp_path):
        broken = networks.noise(4)
        broken[2, 0, 0, 0] = np.nan
        assert "NaN or infinity" in self.refusal(networks.batches(broken), folder=tmp_path).message

    def test_empty_batches_are_refused(self, tmp_path):
        empty = np.zeros((0, 3, 64, 64), np.float32)
        assert "empty batch" in self.refusal(lambda: iter([{"image": empty}]), folder=tmp_path).message

    def test_a_single_white_image_among_others_is_none_of_this(self, tmp_path):
        images = networks.noise(3)
        images[2] = 1
        quantize.quantize(networks.graph("vit"), recipe(), networks.batches(images, 1), tmp_path / "q.onnx")

    def test_scales_are_those_of_the_largest_magnitudes(self, tmp_path):
        images = networks.noise(6)
        quantize.quantize(networks.graph("resnet"), recipe(TENSORRT), networks.batches(images), tmp_path / "q.onnx")
        model = onnx.load(str(tmp_path / "q.onnx"))
        values = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        first = next(node for node in model.graph.node if node.op_type == "QuantizeLinear" and node.input[0] == "image")
        np.testing.assert_allclose(values[first.input[1]], np.abs(images).max() / 127, rtol=1e-6)

    @pytest.mark.parametrize("percentile", [99.0, 99.9])
    def test_percentiles_are_of_the_magnitudes(self, percentile, tmp_path):
        images = networks.noise(6)
        of = recipe(replace(TENSORRT, calibrator="percentile", percentile=percentile))
        quantize.quantize(networks.graph("resnet"), of, networks.batches(images), tmp_path / "q.onnx")
        model = onnx.load(str(tmp_path / "q.onnx"))
        values = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        first = next(node for node in model.graph.node if node.op_type == "QuantizeLinear" and node.input[0] == "image")
        expected = np.percentile(np.abs(images), percentile) / 127
        # Histograms have 2,048 bins over the range.
        np.testing.assert_allclose(values[first.input[1]], expected, atol=np.abs(images).max() / 2048 / 127 * 2)

    def test_entropy_chooses_a_range_within_the_largest(self, tmp_path):
        images = networks.noise(6)
        of = recipe(replace(TENSORRT, calibrator="entropy"))
        quantize.quantize(networks.graph("resnet"), of, networks.batches(images), tmp_path / "q.onnx")
        model = onnx.load(str(tmp_path / "q.onnx"))
        values = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        first = next(node for node in model.graph.node if node.op_type == "QuantizeLinear" and node.input[0] == "image")
        assert 0 < values[first.input[1]] <= np.abs(images).max() / 127 * 1.001

    def test_how_images_are_batched_changes_nothing(self, tmp_path):
        images = networks.noise(6)
        for size in (1, 4, 6):
            quantize.quantize(networks.graph("vit"), recipe(), networks.batches(images, size), tmp_path / f"{size}.onnx")
        first, *others = (onnx.load(str(tmp_path / f"{size}.onnx")) for size in (1, 4, 6))
        assert all(first.graph == other.graph for other in others)

    def test_a_file_that_is_quantized_already_is_refused(self, tmp_path):
        quantized("vit", tmp_path / "q.onnx", recipe())
        with pytest.raises(InvalidInput, match="quantized already"):
            quantize.quantize(tmp_path / "q.onnx", recipe(), networks.batches(networks.noise(4)), tmp_path / "r.onnx")


class TestTraps:
    """Recipes that others use by default, and that agreement on a few inputs catches."""

    def test_one_range_for_all_channels_destroys_a_depthwise_network(self, tmp_path):
        base = networks.uneven_depthwise(tmp_path / "base.onnx")
        images = networks.noise(64, seed=2)
        reference = networks.answers(base, images)
        agreement = {}
        for per_channel in (True, False):
            target = tmp_path / f"{per_channel}.onnx"
            quantize.quantize(base, recipe(replace(CPU, per_channel=per_channel)), networks.batches(images[:16]), target)
            agreement[per_channel] = (networks.answers(target, images).argmax(1) == reference.argmax(1)).mean()
        assert agreement[True] >= 0.95
        assert agreement[False] < 0.8

    def test_quantized_residual_sums_destroy_a_transformer(self, tmp_path):
        # Trained ViTs carry single channels about a thousandfold the others through the residual stream.
        model = onnx.load(str(networks.graph("vit")))
        position = next(tensor for tensor in model.graph.initializer if tensor.name.endswith("pos_embed"))
        value = onnx.numpy_helper.to_array(position).copy()
        value[..., 7] += 1000
        position.CopyFrom(onnx.numpy_helper.from_array(value, position.name))
        base = tmp_path / "base.onnx"
        onnx.save(model, str(base))
        images = networks.noise(64, seed=2)
        reference = networks.answers(base, images)
        naive = replace(CPU, operators=("Add", "MatMul", "Gemm", "Conv"))
        found = {}
        for label, quantization in (("family", CPU), ("naive", naive)):
            target = tmp_path / f"{label}.onnx"
            quantize.quantize(base, recipe(quantization), networks.batches(images[:16]), target)
            found[label] = networks.sqnr_db(reference, networks.answers(target, images))
        assert found["family"] > 20
        assert found["naive"] < 10


def test_nncf_is_told_what_stays_float(tmp_path):
    found, model = plan_of("vit", folder=tmp_path)
    names, transformer = quantize.nncf_scope(found, model)
    assert transformer
    assert {one.name for one in found.decisions if not one.quantized} == set(names)


def test_weights_cannot_be_told_from_a_graph_without_any(tmp_path):
    node = oh.make_node("Flatten", ["image"], ["logits"], name="flat")
    model = oh.make_model(oh.make_graph(
        [node], "g", [oh.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 2, 2])],
        [oh.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 12])]), opset_imports=[oh.make_opsetid("", 20)],
        ir_version=10)
    onnx.save(model, str(tmp_path / "m.onnx"))
    with pytest.raises(InvalidInput, match="no layer"):
        quantize.quantize(tmp_path / "m.onnx", recipe(replace(TENSORRT)), networks.batches(networks.noise(2)),
                          tmp_path / "q.onnx")
