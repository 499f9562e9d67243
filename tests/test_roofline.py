"""Layer tables and their differences, FLOPs and bytes by hand, ceilings under a scripted clock and for real."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import onnx
import onnx.helper as oh
import onnxruntime
import pytest
import torch

from edgebench import roofline
from edgebench.errors import CannotMeasure, InvalidInput
from edgebench.timing_types import Ceiling
from tests.scripted import MS, World

FLOAT = onnx.TensorProto.FLOAT
TABLE = roofline.layer_table([("conv1", "Conv", "fp32", 0.003), ("relu", "Relu", "fp32", 0.001), ("conv2", "Conv", "int8", 0.004)])
TOP = Ceiling(precision="fp32", sparsity="dense", flops_per_s=100.0, bytes_per_s=10.0, method="test", repeats=1)


class TestLayerTable:
    def test_shares_are_of_all_layers_time(self):
        assert [0.375, 0.125, 0.5] == pytest.approx([one.share for one in TABLE])

    @pytest.mark.parametrize("rows", [[], [("a", "Conv", "fp32", -1.0)], [("a", "Conv", "fp32", math.nan)]])
    def test_no_times_or_impossible_ones_are_refused(self, rows):
        with pytest.raises(CannotMeasure, match="no layer times"):
            roofline.layer_table(rows)

    def test_differences_by_name_put_the_largest_first_and_keep_what_is_on_one_side_only(self):
        after = roofline.layer_table([("conv1", "Conv", "int8", 0.001), ("conv2", "Conv", "int8", 0.0052), ("cast", "Cast", "int8", 0.0005)])
        found = roofline.diff(TABLE, after)
        assert [("conv1", -0.002), ("conv2", 0.0012), ("relu", -0.001), ("cast", 0.0005)] == [
            (one.key, pytest.approx(one.change_s)) for one in found]
        first = found[0]
        assert ("fp32", "int8", 0.003, 0.001) == (first.before_precision, first.after_precision, first.before_s, first.after_s)
        assert (None, None) == (found[2].after_s, found[2].after_precision)

    def test_differences_by_type_add_up_layers_and_name_all_their_precisions(self):
        found = {one.key: one for one in roofline.diff(TABLE, TABLE, by="type")}
        assert (0.007, "fp32+int8", 0.0) == (pytest.approx(found["Conv"].before_s), found["Conv"].before_precision, found["Conv"].change_s)


class TestCeilings:
    def test_the_fastest_run_counts_and_the_first_does_not(self):
        world = World([1, 5 * MS, 2 * MS, 4 * MS])
        rate, runs = roofline.best_rate(world.infer, 1e6, repeats=3, min_s=0.0, clock=world.clock)
        assert (1e6 / 0.002, 3) == (pytest.approx(rate), runs)

    def test_it_lasts_the_seconds_asked_for(self):
        world = World(10 * MS)
        assert 50 == roofline.best_rate(world.infer, 1.0, repeats=3, min_s=0.5, clock=world.clock)[1]

    def test_a_clock_that_stands_still_is_refused(self):
        with pytest.raises(CannotMeasure, match="did not advance"):
            roofline.best_rate(lambda: None, 1.0, repeats=2, min_s=0.0, clock=lambda: 5)

    def test_a_real_product_is_faster_than_a_real_copy_can_feed_and_both_are_possible(self):
        flops, _ = roofline.best_rate(*roofline.numpy_gemm(256), repeats=5, min_s=0.0)
        copy, _ = roofline.best_rate(*roofline.numpy_copy(2**24), repeats=5, min_s=0.0)
        assert 1e8 < flops < 1e14
        assert 1e7 < copy < 1e12


class TestRoof:
    def test_the_datasheet_stands_beside_and_places_nothing(self):
        top = replace(TOP, datasheet_flops_per_s=9e15)
        assert roofline.point("x", 1e9, 1e6, 1.0, TOP) == roofline.point("x", 1e9, 1e6, 1.0, top)

    def test_without_a_product_there_is_no_roof(self):
        assert roofline.point("x", 1.0, 1.0, 1.0, replace(TOP, flops_per_s=None)) is None

    def test_below_the_ridge_memory_bounds(self):
        found = roofline.point("x", 50.0, 10.0, 2.0, TOP)
        assert (5.0, 25.0, 50.0, 0.5, "memory") == (found.intensity, found.flops_per_s, found.roof_flops_per_s, found.roof_share, found.bound)

    def test_above_the_ridge_compute_bounds(self):
        found = roofline.point("x", 1000.0, 10.0, 20.0, TOP)
        assert (100.0, 0.5, "compute") == (found.roof_flops_per_s, found.roof_share, found.bound)

    @pytest.mark.parametrize(("flops", "moved", "seconds"), [(0.0, 1.0, 1.0), (1.0, 0.0, 1.0), (1.0, 1.0, 0.0)])
    def test_without_work_or_time_there_is_no_point(self, flops, moved, seconds):
        assert roofline.point("x", flops, moved, seconds, TOP) is None


def save(path, nodes, inputs, outputs, weights=()):
    graph = oh.make_graph(nodes, "g", [oh.make_tensor_value_info(*one) for one in inputs],
                          [oh.make_tensor_value_info(*one) for one in outputs],
                          [onnx.numpy_helper.from_array(value, name) for name, value in weights])
    onnx.save(oh.make_model(graph, opset_imports=[oh.make_opsetid("", 17)], ir_version=8), str(path))
    return path


class TestWork:
    def test_a_grouped_convolution_by_hand(self, tmp_path):
        weight, bias = np.zeros((8, 2, 3, 3), np.float32), np.zeros(8, np.float32)
        file = save(tmp_path / "m.onnx", [oh.make_node("Conv", ["x", "w", "b"], ["y"], name="conv", group=2, pads=[1] * 4, strides=[2, 2])],
                    [("x", FLOAT, ["n", 4, 10, 12])], [("y", FLOAT, ["n", 8, 5, 6])], [("w", weight), ("b", bias)])
        (found,) = roofline.layer_work(file, batch=3)
        outputs = 3 * 8 * 5 * 6
        assert outputs * (2 * 2 * 9 + 1) == found.flops
        assert 4 * (3 * 4 * 10 * 12 + weight.size + 8 + outputs) == found.bytes_moved
        assert found.flops / found.bytes_moved == found.intensity

    def test_weights_that_lie_beside_are_counted_without_being_read(self, tmp_path):
        file = save(tmp_path / "m.onnx", [oh.make_node("MatMul", ["x", "a"], ["y"], name="matmul")], [("x", FLOAT, [5, 6])],
                    [("y", FLOAT, [5, 70])], [("a", np.zeros((6, 70), np.float32))])
        inline = roofline.layer_work(file)
        onnx.save(onnx.load(str(file)), str(file), save_as_external_data=True, location="m.data")
        (tmp_path / "m.data").unlink()
        assert inline == roofline.layer_work(file)

    def test_products_by_hand(self, tmp_path):
        nodes = [oh.make_node("MatMul", ["x", "a"], ["h"], name="matmul"), oh.make_node("Gemm", ["h", "b", "c"], ["y"], name="gemm", transB=1)]
        file = save(tmp_path / "m.onnx", nodes, [("x", FLOAT, [5, 6])], [("y", FLOAT, [5, 3])],
                    [("a", np.zeros((6, 7), np.float32)), ("b", np.zeros((3, 7), np.float32)), ("c", np.zeros(3, np.float32))])
        assert {"matmul": 2 * 5 * 6 * 7, "gemm": 2 * 5 * 7 * 3 + 15} == {one.name: one.flops for one in roofline.layer_work(file)}

    def test_quantized_tensors_count_their_own_bytes(self, tmp_path):
        file = tmp_path / "int8.onnx"
        roofline.write_matmul(file, "int8", 64)
        found = {one.type: one for one in roofline.layer_work(file)}
        # From float32 to uint8, with a float32 scale and a uint8 zero point.
        quantize = next(one for one in roofline.layer_work(file) if one.type == "QuantizeLinear")
        assert 64 * 64 * (4 + 1) + 4 + 1 == quantize.bytes_moved
        assert 2 * 64**3 == found["MatMul"].flops

    def test_a_product_whose_input_hides_its_shape_is_known_by_its_weights_and_output(self, tmp_path):
        nodes = [oh.make_node("Reshape", ["x", "to"], ["h"]), oh.make_node("Gemm", ["h", "w"], ["y"], name="gemm", transB=1)]
        file = save(tmp_path / "m.onnx", nodes, [("x", FLOAT, ["n", 7]), ("to", onnx.TensorProto.INT64, [2])], [("y", FLOAT, ["n", 3])],
                    [("w", np.zeros((3, 7), np.float32))])
        found = {one.name: one for one in roofline.layer_work(file, batch=2)}["gemm"]
        assert (2 * 2 * 7 * 3, 4 * (2 * 7 + 3 * 7 + 2 * 3), "") == (found.flops, found.bytes_moved, found.reason)

    def test_what_is_unknown_has_a_reason_and_no_flops(self, tmp_path):
        file = save(tmp_path / "m.onnx", [oh.make_node("Einsum", ["x", "x"], ["y"], name="e", equation="ij,ij->ij")],
                    [("x", FLOAT, [2, 2])], [("y", FLOAT, [2, 2])])
        (found,) = roofline.layer_work(file)
        assert (0, "no count is known for Einsum", 48) == (found.flops, found.reason, found.bytes_moved)

    def test_a_network_has_twice_the_multiply_accumulates_that_torch_counts(self, tmp_path):
        from torch.utils.flop_counter import FlopCounterMode
        torch.manual_seed(0)
        module = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, 2, 1), torch.nn.ReLU(), torch.nn.Conv2d(8, 8, 3, 1, 1, groups=8),
                                     torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(8, 5)).eval()
        image = torch.randn(1, 3, 32, 32)
        with FlopCounterMode(display=False) as counter:
            module(image)
        nodes = [oh.make_node("Conv", ["x", "w1", "b1"], ["h1"], pads=[1] * 4, strides=[2, 2]), oh.make_node("Relu", ["h1"], ["h2"]),
                 oh.make_node("Conv", ["h2", "w2", "b2"], ["h3"], pads=[1] * 4, group=8), oh.make_node("GlobalAveragePool", ["h3"], ["h4"]),
                 oh.make_node("Flatten", ["h4"], ["h5"]), oh.make_node("Gemm", ["h5", "w3", "b3"], ["y"], transB=1)]
        weights = zip(["w1", "b1", "w2", "b2", "w3", "b3"], (one.detach().numpy() for one in module.parameters()), strict=True)
        file = save(tmp_path / "m.onnx", nodes, [("x", FLOAT, [1, 3, 32, 32])], [("y", FLOAT, [1, 5])], list(weights))
        products = sum(one.flops for one in roofline.layer_work(file) if one.type in ("Conv", "Gemm"))
        biases = 8 * 16 * 16 * 2 + 5
        assert counter.get_total_flops() == products - biases

    @pytest.mark.parametrize("content", [b"no model", b""])
    def test_a_file_that_is_no_model_is_refused(self, tmp_path, content):
        file = tmp_path / "m.onnx"
        file.write_bytes(content)
        if content:
            with pytest.raises(InvalidInput, match="cannot read the shapes"):
                roofline.layer_work(file)
        else:
            assert () == roofline.layer_work(file)

    def test_a_missing_file_is_refused(self, tmp_path):
        with pytest.raises(InvalidInput, match="cannot read the shapes"):
            roofline.layer_work(tmp_path / "none.onnx")


class TestMatmulFile:
    @pytest.mark.parametrize("precision", ["fp32", "int8"])
    def test_a_runtime_computes_the_product(self, tmp_path, precision):
        file = tmp_path / "m.onnx"
        flops = roofline.write_matmul(file, precision, 64)
        assert 2 * 64**3 == flops
        weights = {one.name: onnx.numpy_helper.to_array(one) for one in onnx.load(str(file)).graph.initializer}
        x = np.random.default_rng(1).uniform(-1, 1, (64, 64)).astype(np.float32)
        (found,) = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"]).run(None, {"x": x})
        if precision == "fp32":
            assert x @ weights["w"] == pytest.approx(found, rel=1e-4, abs=1e-4)
        else:
            expected = (np.round(x / 0.05) * 0.05) @ (weights["w"] * 0.01)
            assert np.abs(found - expected).max() <= 0.5 + 1e-3
