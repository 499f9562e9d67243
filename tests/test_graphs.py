"""Which ONNX files may come in, what kind of network they are, and in which types they are written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.helper as oh
import pytest
from onnx import TensorProto

from edgebench import backends, graphs, patterns
from edgebench.conversion import PLAIN
from edgebench.errors import InvalidInput, UsageError
from tests import networks
from tests.models import onnx_file


def edited(path: Path, change, *, keep: bool = False) -> Path:
    """Write a small classifier, or what `path` holds already, to `path` after `change` was made to its model."""
    model = onnx.load(str(path if keep else onnx_file(path)))
    onnx.save(change(model) or model, str(path))
    return path


def refusal(path: Path) -> InvalidInput:
    with pytest.raises(InvalidInput) as caught:
        graphs.load_checked(path)
    assert caught.value.hint
    assert "\n" not in caught.value.message
    return caught.value


class TestInterface:
    def test_a_classifier_with_a_batch_that_may_vary_is_taken(self, tmp_path):
        model = graphs.load_checked(onnx_file(tmp_path / "m.onnx"))
        assert [["n", 3, 8, 8], ["n", 3]] == [patterns.dims(model.graph.input[0]), patterns.dims(model.graph.output[0])]

    def test_a_fixed_batch_is_taken(self, tmp_path):
        path = onnx_file(tmp_path / "m.onnx", input_shape=[4, 3, 8, 8])
        graphs.load_checked(path)
        assert ("image", (4, 3, 8, 8), "float32") == (
            graphs.image_input(path).name, graphs.image_input(path).shape, graphs.image_input(path).dtype)

    def test_a_missing_batch_axis_has_a_line_of_its_own(self, tmp_path):
        error = refusal(onnx_file(tmp_path / "m.onnx", input_shape=[3, 8, 8]))
        assert "has no batch axis: expected one float input (N, 3, H, W), got image float (3, 8, 8)" in error.message

    def test_an_output_without_the_batch_is_refused(self, tmp_path):
        def one_row(model):
            model.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 1

        assert "has no batch axis in its output: n images come in, 1 rows" in refusal(
            edited(tmp_path / "m.onnx", one_row)).message

    def test_several_inputs_are_named(self, tmp_path):
        def another(model):
            model.graph.input.append(oh.make_tensor_value_info("mask", TensorProto.FLOAT, ["n", 4]))

        message = refusal(edited(tmp_path / "m.onnx", another)).message
        assert "has 2 inputs" in message
        assert "image float (n, 3, 8, 8), mask float (n, 4)" in message

    @pytest.mark.parametrize(("arguments", "text"), [
        ({"input_shape": ["n", 8, 8, 3]}, "expected one float input"), ({"dtype": TensorProto.UINT8}, "uint8"),
        ({"outputs": "features"}, "no logits")])
    def test_what_is_no_image_classifier_is_refused(self, tmp_path, arguments, text):
        assert text in refusal(onnx_file(tmp_path / "m.onnx", **arguments)).message


class TestBatch:
    @pytest.mark.parametrize("name", ["N", "n", "unk__12", "?", "batch"])
    def test_one_that_may_vary_gets_the_name_that_runtimes_fix_it_by(self, tmp_path, name):
        def unnamed(model):
            if name == "?":
                for value in (model.graph.input[0], model.graph.output[0]):
                    value.type.tensor_type.shape.dim[0].Clear()

        model = graphs.load_checked(edited(onnx_file(tmp_path / "m.onnx", input_shape=[name, 3, 8, 8]), unnamed, keep=True))
        assert (name != "batch") == graphs.name_batch(model)
        assert ["batch", 3, 8, 8] == patterns.dims(model.graph.input[0])
        graphs.save(model, tmp_path / "named.onnx")
        session = backends.get("onnxruntime").open_session(tmp_path / "named.onnx", PLAIN, batch=2, threads=1)
        assert [(2, 3, 8, 8), (2, 3)] == [session.inputs[0].shape, session.outputs[0].shape]

    def test_a_fixed_one_stays(self, tmp_path):
        model = graphs.load_checked(onnx_file(tmp_path / "m.onnx", input_shape=[4, 3, 8, 8]))
        assert not graphs.name_batch(model)
        assert [4, 3, 8, 8] == patterns.dims(model.graph.input[0])


class TestOperators:
    def test_operators_of_other_domains_are_named_and_counted(self, tmp_path):
        def fused(model):
            for node in model.graph.node:
                node.domain = "com.microsoft"
                node.op_type = f"Unheard{node.op_type}"
            model.opset_import.append(oh.make_opsetid("com.microsoft", 1))

        message = refusal(edited(tmp_path / "m.onnx", fused)).message
        assert "com.microsoft:UnheardMatMul (1×), com.microsoft:UnheardReduceMean (1×)" in message

    def test_operators_that_the_opset_does_not_have_are_named(self, tmp_path):
        def newer(model):
            model.graph.node[1].op_type = "Attention"

        assert "not ONNX's own at opset 20: Attention (1×)" in refusal(edited(tmp_path / "m.onnx", newer)).message

    def test_functions_that_the_file_defines_itself_are_put_in_place(self, tmp_path):
        def with_function(model):
            body = [oh.make_node("Relu", ["x"], ["y"])]
            model.functions.append(oh.make_function("local", "Mine", ["x"], ["y"], body, [oh.make_opsetid("", 20)]))
            model.opset_import.append(oh.make_opsetid("local", 1))
            model.graph.node[1].output[0] = "before"
            model.graph.node.append(oh.make_node("Mine", ["before"], ["logits"], domain="local"))

        model = graphs.load_checked(edited(tmp_path / "m.onnx", with_function))
        assert ["ReduceMean", "MatMul", "Relu"] == [node.op_type for node in model.graph.node]


class TestTypes:
    def test_float64_weights_are_refused_with_what_to_do(self, tmp_path):
        def double(model):
            weight = onnx.numpy_helper.to_array(model.graph.initializer[1])
            model.graph.initializer[1].CopyFrom(onnx.numpy_helper.from_array(weight.astype(np.float64), "weight"))
            cast = [oh.make_node("Cast", ["pooled"], ["wide"], to=TensorProto.DOUBLE),
                    oh.make_node("MatMul", ["wide", "weight"], ["product"]),
                    oh.make_node("Cast", ["product"], ["logits"], to=TensorProto.FLOAT)]
            del model.graph.node[1]
            model.graph.node.extend(cast)

        error = refusal(edited(tmp_path / "m.onnx", double))
        assert "1 float64 weights, such as 'weight'" in error.message
        assert "model.float()" in error.hint

    def test_int64_weights_of_a_product_are_refused_and_named(self, tmp_path):
        def integer(model):
            model.graph.initializer[1].CopyFrom(onnx.numpy_helper.from_array(np.ones((3, 3), np.int64), "weight"))
            del model.graph.node[1]
            model.graph.node.extend([
                oh.make_node("Cast", ["pooled"], ["whole"], to=TensorProto.INT64),
                oh.make_node("MatMul", ["whole", "weight"], ["product"], name="mm"),
                oh.make_node("Cast", ["product"], ["logits"], to=TensorProto.FLOAT)])

        assert "MatMul 'mm' multiplies by the int64 weights 'weight'" in refusal(
            edited(tmp_path / "m.onnx", integer)).message

    def test_int64_shapes_and_indices_are_as_they_should_be(self, tmp_path):
        model = graphs.load_checked(onnx_file(tmp_path / "m.onnx"))
        assert TensorProto.INT64 in {tensor.data_type for tensor in model.graph.initializer}


class TestOldOpsets:
    @staticmethod
    def old(path: Path, nodes, opset: int = 9) -> Path:
        made = oh.make_graph(
            nodes, "old", [oh.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, 8, 8])],
            [oh.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 3])],
            [onnx.numpy_helper.from_array(np.random.default_rng(0).standard_normal((3, 3)).astype(np.float32), "weight")])
        onnx.save(oh.make_model(made, opset_imports=[oh.make_opsetid("", opset)], ir_version=7), str(path))
        return path

    def test_an_old_file_is_converted_and_answers_the_same(self, tmp_path):
        nodes = [oh.make_node("ReduceMean", ["image"], ["pooled"], axes=[2, 3], keepdims=0),
                 oh.make_node("MatMul", ["pooled", "weight"], ["logits"])]
        path = self.old(tmp_path / "m.onnx", nodes)
        model = graphs.load_checked(path)
        assert graphs.OPSET == patterns.opset(model)
        image = np.random.default_rng(1).standard_normal((2, 3, 8, 8)).astype(np.float32)
        np.testing.assert_allclose(networks.answers(path, image), networks.answers(model, image), rtol=1e-5)

    def test_one_that_answers_otherwise_after_conversion_is_refused(self, tmp_path, monkeypatch):
        nodes = [oh.make_node("ReduceMean", ["image"], ["pooled"], axes=[2, 3], keepdims=0),
                 oh.make_node("MatMul", ["pooled", "weight"], ["logits"])]
        path = self.old(tmp_path / "m.onnx", nodes)
        right = onnx.version_converter.convert_version

        def wrong(model, version):
            converted = right(model, version)
            weight = next(one for one in converted.graph.initializer if one.name == "weight")
            weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight) * 1.01, "weight"))
            return converted

        monkeypatch.setattr(onnx.version_converter, "convert_version", wrong)
        assert "is of opset 9; converted to 20, its outputs differ" in refusal(path).message

    def test_one_that_cannot_be_converted_names_its_opset(self, tmp_path):
        nodes = [oh.make_node("Constant", [], ["one"], value=oh.make_tensor("one", TensorProto.FLOAT, [3], [1, 1, 1])),
                 oh.make_node("BatchNormalization", ["image", "one", "one", "one", "one"], ["normal"], spatial=0),
                 oh.make_node("ReduceMean", ["normal"], ["pooled"], axes=[2, 3], keepdims=0),
                 oh.make_node("MatMul", ["pooled", "weight"], ["logits"])]
        error = refusal(self.old(tmp_path / "m.onnx", nodes, opset=8))
        assert "opset 8 and cannot be converted to 20: " in error.message
        assert "spatial must have value 1" in error.message
        assert "opset_version=20" in error.hint


class TestExternalData:
    @staticmethod
    def moved(path: Path, location: str, **entries: str) -> Path:
        """Write a classifier whose weights are said to lie at `location`."""
        onnx_file(path, external=True)
        model = onnx.load(str(path), load_external_data=False)
        for tensor in model.graph.initializer:
            for item in tensor.external_data:
                item.value = location if item.key == "location" else entries.get(item.key, item.value)
        path.write_bytes(model.SerializeToString())
        return path

    def test_beside_the_file_it_is_read(self, tmp_path):
        path = onnx_file(tmp_path / "m.onnx", external=True)
        assert (tmp_path / "m.onnx.data",) == graphs.external_data(path)
        assert not graphs.load_checked(path).graph.initializer[1].external_data

    @pytest.mark.parametrize("location", ["../m.onnx.data", "a/../../m.onnx.data", "/etc/passwd", "C:\\x", "..\\m.data"])
    def test_outside_the_folder_is_refused_before_anything_is_read(self, tmp_path, location):
        folder = tmp_path / "inner"
        folder.mkdir()
        path = self.moved(folder / "m.onnx", location)
        for call in (graphs.external_data, graphs.load_checked):
            with pytest.raises(InvalidInput, match="outside its folder"):
                call(path)

    def test_links_into_one_folder_are_read_as_hub_caches_lay_them(self, tmp_path):
        store, shown = tmp_path / "store", tmp_path / "models" / "main"
        store.mkdir()
        shown.mkdir(parents=True)
        onnx_file(store / "m.onnx", external=True)
        for name, blob in (("m.onnx", "a1"), ("m.onnx.data", "b2")):
            (store / name).rename(store / blob)
            (shown / name).symlink_to(store / blob)
        plain = onnx.load(str(onnx_file(tmp_path / "plain.onnx")))
        assert plain.graph.initializer[1].raw_data == graphs.load_checked(shown / "m.onnx").graph.initializer[1].raw_data
        (store / "b2").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 36\n")
        assert "Git LFS" in refusal(shown / "m.onnx").message

    @pytest.mark.parametrize("content", [b"", b"<html>", b"Not found", bytes(99), b"PK\x03\x04", b"\x08\x0a\x12\xff"])
    def test_what_is_no_onnx_file_is_refused_without_another_tools_text(self, tmp_path, content):
        (tmp_path / "m.onnx").write_bytes(content)
        assert "pars" not in refusal(tmp_path / "m.onnx").message.lower()

    def test_a_link_that_leads_out_is_refused(self, tmp_path):
        folder = tmp_path / "inner"
        folder.mkdir()
        path = onnx_file(folder / "m.onnx", external=True)
        (folder / "m.onnx.data").rename(tmp_path / "elsewhere")
        (folder / "m.onnx.data").symlink_to(tmp_path / "elsewhere")
        with pytest.raises(InvalidInput, match="outside its folder"):
            graphs.load_checked(path)

    def test_missing_data_is_named(self, tmp_path):
        path = onnx_file(tmp_path / "m.onnx", external=True)
        (tmp_path / "m.onnx.data").unlink()
        assert f"{tmp_path / 'm.onnx.data'} is missing" in refusal(path).message

    def test_data_cut_short_is_told_by_its_size(self, tmp_path):
        path = onnx_file(tmp_path / "m.onnx", external=True)
        data = tmp_path / "m.onnx.data"
        data.write_bytes(data.read_bytes()[:-4])
        assert "is cut short: it has" in refusal(path).message

    @pytest.mark.parametrize("entries", [{"offset": "-8"}, {"length": "many"}, {"offset": "1e3"}])
    def test_places_that_are_no_numbers_are_refused(self, tmp_path, entries):
        path = self.moved(tmp_path / "m.onnx", "m.onnx.data", **entries)
        with pytest.raises(InvalidInput) as caught:
            graphs.load_checked(path)
        assert next(iter(entries.values())) in caught.value.message

    def test_what_is_no_onnx_file_is_told(self, tmp_path):
        file = tmp_path / "m.onnx"
        file.write_bytes(b"\x89PNG not a model")
        with pytest.raises(InvalidInput, match="is not a readable ONNX file"):
            graphs.load_checked(file)


class TestFamily:
    @pytest.mark.parametrize("name", networks.NAMES)
    def test_is_told_from_the_graph_alone(self, name):
        assert networks.FAMILIES[name] == graphs.family(graphs.load(networks.graph(name)))

    def test_layer_normalisation_written_out_counts_too(self):
        parts = [oh.make_node("ReduceMean", ["x"], ["m"], name="mean", axes=[-1]),
                 oh.make_node("Sub", ["x", "m"], ["d"], name="centre"),
                 oh.make_node("Pow", ["d", "two"], ["s"], name="square"),
                 oh.make_node("ReduceMean", ["s"], ["v"], name="variance", axes=[-1]),
                 oh.make_node("Add", ["v", "eps"], ["e"], name="eps"),
                 oh.make_node("Sqrt", ["e"], ["r"], name="root"), oh.make_node("Div", ["d", "r"], ["y"], name="divide")]
        model = oh.make_model(oh.make_graph(
            parts, "norm", [oh.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])],
            [oh.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])],
            [oh.make_tensor("two", TensorProto.FLOAT, [], [2]), oh.make_tensor("eps", TensorProto.FLOAT, [], [1e-6])]))
        (found,) = patterns.layer_norms(patterns.index(model))
        assert ["mean", "centre", "square", "variance", "eps", "root", "divide"] == [node.name for node in found]

    @pytest.mark.parametrize("name", ["clip-vit", "clip-convnext"])
    def test_normalisation_and_head_of_a_zero_shot_classifier_are_found(self, name):
        found = patterns.zero_shot_head(patterns.index(graphs.load(networks.graph(name))))
        assert "ReduceL2" == found[0].op_type
        assert ["Div", "MatMul"] == [node.op_type for node in found[-2:]]

    @pytest.mark.parametrize("name", ["vit", "resnet"])
    def test_other_networks_have_no_such_head(self, name):
        assert [] == patterns.zero_shot_head(patterns.index(graphs.load(networks.graph(name))))

    def test_attention_is_found_once_per_block(self):
        assert 2 == len(patterns.attentions(patterns.index(graphs.load(networks.graph("vit")))))

    def test_by_name(self):
        assert "convnext" == graphs.family_named("convnext")
        with pytest.raises(UsageError, match="did you mean 'convnet'"):
            graphs.family_named("convnet2")


class TestStaticPrecision:
    def test_of_an_fp32_file(self):
        found = graphs.static_precision(graphs.load(networks.graph("resnet")), "fp16")
        assert ("fp32", False, {}) == (found.executed, found.achieved, found.time_share)
        counted = [node for node in graphs.load(networks.graph("resnet")).graph.node if node.op_type in ("Conv", "Gemm")]
        assert {"fp32": len(counted)} == found.compute_layers

    def test_weights_alone_in_8_bits_are_no_int8_layer(self):
        nodes = [oh.make_node("DequantizeLinear", ["w8", "s", "z"], ["w"]), oh.make_node("MatMul", ["x", "w"], ["y"]),
                 oh.make_node("QuantizeLinear", ["y", "s", "z"], ["y8"]),
                 oh.make_node("DequantizeLinear", ["y8", "s", "z"], ["yf"]), oh.make_node("MatMul", ["yf", "w"], ["o"])]
        model = oh.make_model(oh.make_graph(
            nodes, "g", [oh.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2])],
            [oh.make_tensor_value_info("o", TensorProto.FLOAT, [1, 2])],
            [oh.make_tensor("w8", TensorProto.INT8, [2, 2], [1, 2, 3, 4]), oh.make_tensor("s", TensorProto.FLOAT, [], [0.1]),
             oh.make_tensor("z", TensorProto.INT8, [], [0])]))
        assert {"fp32": 1, "int8": 1} == graphs.static_precision(model, "int8").compute_layers
