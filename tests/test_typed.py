"""FP16 and BF16 graphs: valid, near the FP32 ones, float where they must be, and taken by TensorRT's own builder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx.helper as oh
import pytest
from onnx import TensorProto

from edgebench import graphs, patterns, quantize, typed
from edgebench.errors import InvalidInput
from tests import networks
from tests.test_quantize import FLOAT8, TENSORRT, recipe

FP16_EPSILON = 2.0 ** -11


def converted(name: str, precision: typed.Half, **options) -> onnx.ModelProto:
    return typed.convert(graphs.load_checked(networks.graph(name)), precision, **options)


def small(nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray], *, opset: int = 22) -> onnx.ModelProto:
    """Return a model of `nodes` from ``x`` (2, 4) to ``y`` (2, 4)."""
    return oh.make_model(oh.make_graph(
        nodes, "g", [oh.make_tensor_value_info("x", TensorProto.FLOAT, [2, 4])],
        [oh.make_tensor_value_info("y", TensorProto.FLOAT, [2, 4])],
        [onnx.numpy_helper.from_array(np.asarray(value, np.float32), name) for name, value in constants.items()]),
        opset_imports=[oh.make_opsetid("", opset)], ir_version=10)


def kinds(model: onnx.ModelProto) -> dict[str, int]:
    """Return the element types that onnx's own strict inference finds."""
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    found = {tensor.name: tensor.data_type for tensor in inferred.initializer}
    return found | {value.name: value.type.tensor_type.elem_type
                    for value in (*inferred.value_info, *inferred.input, *inferred.output)}


class TestHalf:
    @pytest.mark.parametrize("name", networks.NAMES)
    def test_fp16_answers_are_near_fp32s(self, name):
        model = converted(name, "fp16")
        onnx.checker.check_model(model, full_check=True)
        images = networks.noise(8)
        # A hundredth of the logits, which are so small with random weights that FP16 has few bits left for some.
        assert networks.sqnr_db(networks.answers(networks.graph(name), images), networks.answers(model, images)) > 38

    @pytest.mark.parametrize("precision", ["fp16", "bf16"])
    @pytest.mark.parametrize("name", ["vit", "clip-convnext"])
    def test_inputs_and_outputs_stay_float32_and_layers_do_not(self, name, precision):
        model = converted(name, precision)
        onnx.checker.check_model(model, full_check=True)
        assert {TensorProto.FLOAT} == {value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)}
        half = TensorProto.FLOAT16 if precision == "fp16" else TensorProto.BFLOAT16
        found, sensitive = kinds(model), typed.sensitive(patterns.index(model))
        for node in model.graph.node:
            if node.op_type in ("Conv", "MatMul", "Gemm"):
                assert (TensorProto.FLOAT if node.name in sensitive else half) == found[node.output[0]]
            if node.op_type == "LayerNormalization":
                assert TensorProto.FLOAT == found[node.output[0]]
        assert precision == graphs.static_precision(model, precision).executed

    def test_hard_swish_stays_float32_among_bf16(self):
        found = {node.op_type: kind for model in [converted("mobilenet", "bf16")] for kinds_ in [kinds(model)]
                 for node in model.graph.node for kind in [kinds_[node.output[0]]]}
        assert (TensorProto.FLOAT, TensorProto.BFLOAT16) == (found["HardSwish"], found["Conv"])

    def test_the_head_of_clip_computes_as_in_fp32(self):
        model = converted("clip-vit", "fp16")
        head = typed.sensitive(patterns.index(model))
        found = kinds(model)
        for node in model.graph.node:
            if node.name in head and node.op_type in ("ReduceL2", "Div", "MatMul"):
                assert TensorProto.FLOAT == found[node.output[0]]

    def test_weights_are_rounded_to_the_nearest(self):
        weight = np.random.default_rng(0).standard_normal((4, 4)).astype(np.float32)
        model = typed.convert(small([oh.make_node("MatMul", ["x", "w"], ["y"], name="m")], {"w": weight}), "bf16")
        stored = next(tensor for tensor in model.graph.initializer if tensor.data_type == TensorProto.BFLOAT16)
        # BF16 is the upper half of FP32, rounded to even: by hand from the bits.
        bits = weight.view(np.uint32)
        expected = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16 << 16).astype(np.uint32).view(np.float32)
        np.testing.assert_array_equal(expected, onnx.numpy_helper.to_array(stored).astype(np.float32))

    def test_nodes_named_stay_float32(self):
        nodes = [oh.make_node("MatMul", ["x", "w"], ["a"], name="first"), oh.make_node("MatMul", ["a", "w"], ["y"], name="second")]
        model = typed.convert(small(nodes, {"w": np.eye(4)}), "fp16", keep=["second"])
        found = kinds(model)
        types = {node.name: found[node.output[0]] for node in model.graph.node if node.op_type == "MatMul"}
        assert {"first": TensorProto.FLOAT16, "second": TensorProto.FLOAT} == types

    def test_a_value_that_several_nodes_read_is_cast_once(self):
        nodes = [oh.make_node("Relu", ["x"], ["a"], name="r"), oh.make_node("Exp", ["a"], ["b"], name="b"),
                 oh.make_node("Neg", ["a"], ["c"], name="c"), oh.make_node("Add", ["b", "c"], ["y"], name="s")]
        model = typed.convert(small(nodes, {}), "fp16", keep=["b", "c"])
        onnx.checker.check_model(model, full_check=True)
        # x down, a up, b and c down, y up.
        assert 5 == sum(node.op_type == "Cast" for node in model.graph.node)

    def test_an_output_that_others_read_too_keeps_its_name_and_type(self):
        nodes = [oh.make_node("Relu", ["x"], ["y"], name="r"), oh.make_node("Neg", ["y"], ["z"], name="n")]
        model = small(nodes, {})
        model.graph.output.append(oh.make_tensor_value_info("z", TensorProto.FLOAT, [2, 4]))
        model = typed.convert(model, "fp16")
        onnx.checker.check_model(model, full_check=True)
        x = np.float32([[1, -2, 3, -4], [0.1, 0.2, 0.3, 0.4]])
        import onnxruntime

        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        y, z = session.run(["y", "z"], {"x": x})
        np.testing.assert_allclose(np.maximum(x, 0), y, rtol=FP16_EPSILON)
        np.testing.assert_array_equal(-y, z)


class TestRange:
    def test_constants_beyond_fp16_keep_their_node_in_float32(self):
        nodes = [oh.make_node("Mul", ["x", "large"], ["a"], name="large"), oh.make_node("Mul", ["a", "small"], ["y"], name="back")]
        constants = {"large": np.float32([1e6]), "small": np.float32([1e-6])}
        model = typed.convert(small(nodes, constants), "fp16")
        found = kinds(model)
        assert TensorProto.FLOAT == found[next(node for node in model.graph.node if node.name == "large").output[0]]
        assert not any(tensor.data_type == TensorProto.FLOAT16 and np.isinf(onnx.numpy_helper.to_array(tensor)).any()
                       for tensor in model.graph.initializer)

    def test_a_lone_number_that_would_vanish_keeps_its_node_in_float32(self):
        model = typed.convert(small([oh.make_node("Max", ["x", "least"], ["y"], name="m")], {"least": np.float32(1e-12)}), "fp16")
        import onnxruntime

        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        assert np.float32(1e-12) == session.run(None, {"x": np.full((2, 4), -1, np.float32)})[0][0, 0]

    def test_bf16_has_the_range(self):
        model = typed.convert(small([oh.make_node("Mul", ["x", "large"], ["y"], name="m")], {"large": np.float32([1e30])}), "bf16")
        assert {TensorProto.BFLOAT16} == {tensor.data_type for tensor in model.graph.initializer}

    def test_not_a_number_is_refused(self):
        with pytest.raises(InvalidInput, match="'w' hold NaN"):
            typed.convert(small([oh.make_node("MatMul", ["x", "w"], ["y"])], {"w": np.full((4, 4), np.nan)}), "fp16")

    def test_masks_of_infinity_stay(self):
        model = typed.convert(small([oh.make_node("Add", ["x", "mask"], ["y"])], {"mask": np.float32([0, 0, 0, -np.inf])}), "fp16")
        stored = next(tensor for tensor in model.graph.initializer)
        assert TensorProto.FLOAT16 == stored.data_type
        assert -np.inf == onnx.numpy_helper.to_array(stored)[3]

    def test_an_older_opset_is_lifted_where_convolutions_do_not_know_the_type(self):
        weight = np.ones((4, 4))
        model = typed.convert(small([oh.make_node("MatMul", ["x", "w"], ["y"])], {"w": weight}, opset=20), "fp16")
        assert 20 == patterns.opset(model)
        model = converted("resnet", "bf16")
        assert 22 == patterns.opset(model)


class TestQuantizedAndTyped:
    @pytest.mark.parametrize("quantization", [TENSORRT, FLOAT8], ids=["int8", "fp8"])
    def test_dequantized_values_have_the_float_precision(self, quantization, tmp_path):
        quantize.quantize(networks.graph("vit"), recipe(quantization, float_precision="fp16"),
                          networks.batches(networks.noise(4)), tmp_path / "q.onnx")
        model = onnx.load(str(tmp_path / "q.onnx"))
        onnx.checker.check_model(model, full_check=True)
        found = kinds(model)
        assert {TensorProto.FLOAT16} == {found[node.output[0]] for node in model.graph.node
                                         if node.op_type == "DequantizeLinear"}
        expected = "int8" if quantization is TENSORRT else "fp8"
        assert expected == graphs.static_precision(model, expected).executed

    def test_scales_too_small_for_fp16_are_raised_and_weights_stored_anew(self):
        scale, stored = np.float32([1e-9, 0.01]), np.int8([[127, 100], [-127, -100]])
        nodes = [oh.make_node("DequantizeLinear", ["w", "s", "z"], ["wf"], axis=1, name="d"),
                 oh.make_node("Gemm", ["x", "wf"], ["y"], name="g")]
        model = small(nodes, {"s": scale})
        model.graph.initializer.extend([onnx.numpy_helper.from_array(stored, "w"),
                                        onnx.numpy_helper.from_array(np.zeros(2, np.int8), "z")])
        model = typed.convert(model, "fp16")
        values = {tensor.name: onnx.numpy_helper.to_array(tensor).astype(np.float32) for tensor in model.graph.initializer}
        node = next(node for node in model.graph.node if node.op_type == "DequantizeLinear")
        got = values[node.input[0]] * values[node.input[1]]
        assert (values[node.input[1]] > 0).all()
        np.testing.assert_allclose(stored * scale, got, atol=2e-6, rtol=1e-3)


def parse_and_build(file: Path) -> int:
    """Return the bytes of the engine that TensorRT-RTX builds, strongly typed, for compute capability 8.9."""
    import tensorrt_rtx as trt

    builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, trt.Logger(trt.Logger.ERROR))
    assert parser.parse_from_file(str(file)), [str(parser.get_error(k)) for k in range(parser.num_errors)]
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM89, 0)
    profile = builder.create_optimization_profile()
    shape = list(network.get_input(0).shape)[1:]
    profile.set_shape(network.get_input(0).name, [1, *shape], [4, *shape], [8, *shape])
    config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    assert engine is not None
    return int(engine.nbytes)


class TestTensorrtTakesIt:
    @pytest.fixture(autouse=True)
    def _builder(self):
        pytest.importorskip("tensorrt_rtx", reason="pip install tensorrt-rtx-cu13")

    @pytest.mark.parametrize("precision", ["fp16", "bf16"])
    @pytest.mark.parametrize("name", networks.NAMES)
    def test_typed(self, name, precision, tmp_path):
        graphs.save(converted(name, precision), tmp_path / "m.onnx")
        assert parse_and_build(tmp_path / "m.onnx") > 100_000

    @pytest.mark.parametrize("quantization", [TENSORRT, FLOAT8], ids=["int8", "fp8"])
    @pytest.mark.parametrize("name", networks.NAMES)
    def test_quantized_with_fp16_around_it(self, name, quantization, tmp_path):
        quantize.quantize(networks.graph(name), recipe(replace(quantization), float_precision="fp16"),
                          networks.batches(networks.noise(4)), tmp_path / "q.onnx")
        assert parse_and_build(tmp_path / "q.onnx") > 50_000

    def test_the_dialect_of_cpus_is_refused(self, tmp_path):
        import tensorrt_rtx as trt

        quantize.quantize(networks.graph("resnet"), recipe(), networks.batches(networks.noise(4)), tmp_path / "q.onnx")
        builder = trt.Builder(trt.Logger(trt.Logger.INTERNAL_ERROR))
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        assert not trt.OnnxParser(network, trt.Logger(trt.Logger.INTERNAL_ERROR)).parse_from_file(str(tmp_path / "q.onnx"))
