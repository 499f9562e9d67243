"""Every misfit of an ONNX file has a sentence and a hint of its own, and what only looks odd comes in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.helper as oh
import onnxruntime.quantization as tools
import pytest
from onnx import TensorProto

from edgebench import artifacts, catalog, export, graphs, intake, patterns, sources, typed
from edgebench.errors import InvalidInput
from tests import networks

WEIGHT = np.random.default_rng(5).standard_normal((3, 5)).astype(np.float32)
POOL = (oh.make_node("GlobalAveragePool", ["pixels"], ["pooled"]), oh.make_node("Flatten", ["pooled"], ["flat"]))
HEAD = oh.make_node("MatMul", ["flat", "weight"], ["logits"])


def value(name: str, kind: int = TensorProto.FLOAT, shape: object = ("n", 3, 6, 10)) -> onnx.ValueInfoProto:
    return oh.make_tensor_value_info(name, kind, shape)


def classifier(before=(), *, name: str = "pixels", image: onnx.ValueInfoProto | None = None, after=(), inputs=None,
               outputs=None, constants=(), opset: int = 17, ir: int = 8) -> onnx.ModelProto:
    """Return pooling and a product with 5 classes; `before` makes "pixels", `after` makes "logits" from "raw"."""
    head = oh.make_node("MatMul", ["flat", "weight"], ["raw" if after else "logits"])
    graph = oh.make_graph(
        [*before, *POOL, head, *after], "made",
        inputs if inputs is not None else [value(name) if image is None else image],
        outputs if outputs is not None else [value("logits", shape=("n", 5))],
        [onnx.numpy_helper.from_array(WEIGHT, "weight"), *constants])
    return oh.make_model(graph, opset_imports=[oh.make_opsetid("", opset)], ir_version=ir)


def written(folder: Path, model: onnx.ModelProto) -> Path:
    path = folder / "photo.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def refused(folder: Path, model: onnx.ModelProto) -> InvalidInput:
    path = written(folder, model)
    with pytest.raises(InvalidInput) as caught:
        graphs.load_checked(path, (6, 10))
    assert caught.value.hint
    for secret in ("::", ".cc", ".cpp", "\n", "tmp", "ONNXRuntimeError"):
        assert secret not in caught.value.message.replace(str(path), "")
    return caught.value


def sequence(name: str) -> onnx.ValueInfoProto:
    return oh.make_tensor_sequence_value_info(name, TensorProto.FLOAT, ["n", 3, 6, 10])


def optional(name: str) -> onnx.ValueInfoProto:
    return oh.make_value_info(name, oh.make_optional_type_proto(oh.make_tensor_type_proto(TensorProto.FLOAT, ["n", 3, 6, 10])))


MISFITS = {
    "grey": value("pixels", shape=("n", 1, 6, 10)), "four": value("pixels", shape=("n", 4, 6, 10)),
    "thirteen": value("pixels", shape=(1, 13, 6, 10)), "last": value("pixels", shape=("n", 6, 10, 3)),
    "last, all free but the channels": value("pixels", shape=("n", "h", "w", 3)),
    "last and grey": value("pixels", shape=("n", 28, 28, 1)),
    "half": value("pixels", TensorProto.FLOAT16), "brain": value("pixels", TensorProto.BFLOAT16),
    "double": value("pixels", TensorProto.DOUBLE), "byte": value("pixels", TensorProto.UINT8),
    "int8": value("pixels", TensorProto.INT8), "int64": value("pixels", TensorProto.INT64),
    "bool": value("pixels", TensorProto.BOOL), "text": value("pixels", TensorProto.STRING),
    "byte and last": value("pixels", TensorProto.UINT8, ("n", 6, 10, 3)),
    "scalar": value("pixels", shape=()), "vector": value("pixels", shape=("n",)),
    "table": value("pixels", shape=("n", 12)), "no batch": value("pixels", shape=(3, 6, 10)),
    "tokens": value("pixels", shape=("n", 128, 64)), "clip": value("pixels", shape=("n", 3, 4, 6, 10)),
    "sequence": sequence("pixels"), "optional": optional("pixels")}


class TestInput:
    @pytest.mark.parametrize("name", MISFITS)
    def test_a_misfit_is_refused_before_its_size_is_looked_at(self, tmp_path, name):
        path = written(tmp_path, classifier(image=MISFITS[name]))
        with pytest.raises(InvalidInput) as caught:
            graphs.image_input(path)
        assert caught.value.hint
        assert "width" not in caught.value.message

    def test_no_two_kinds_of_misfits_share_a_sentence(self, tmp_path):
        kinds = ("grey", "four", "thirteen", "last", "half", "brain", "double", "byte", "int64", "bool", "text", "table",
                 "no batch", "tokens", "clip", "sequence", "optional")
        told = {}
        for name in kinds:
            message = refused(tmp_path, classifier(image=MISFITS[name])).message
            told[name] = message.partition("photo.onnx ")[2].partition(": expected")[0]
        assert len(kinds) == len(set(told.values()))

    def test_two_misfits_at_once_are_both_named(self, tmp_path):
        error = refused(tmp_path, classifier(image=MISFITS["byte and last"]))
        for part in (refused(tmp_path, classifier(image=MISFITS[one])) for one in ("byte", "last")):
            assert part.hint in error.hint

    def test_the_remedy_for_channels_last_works(self, tmp_path):
        refused(tmp_path, classifier([oh.make_node("Transpose", ["photo"], ["pixels"], perm=[0, 3, 1, 2])],
                                     image=value("photo", shape=("n", 6, 10, 3))))
        turned = classifier([oh.make_node("Transpose", ["photo"], ["last"], perm=[0, 2, 3, 1]),
                             oh.make_node("Transpose", ["last"], ["pixels"], perm=[0, 3, 1, 2])], image=value("photo"))
        graphs.load_checked(written(tmp_path, turned))

    def test_the_remedy_for_bytes_works(self, tmp_path):
        cast = oh.make_node("Cast", ["photo"], ["pixels"], to=TensorProto.FLOAT)
        refused(tmp_path, classifier([cast], image=value("photo", TensorProto.UINT8)))
        graphs.load_checked(written(tmp_path, classifier([cast], image=value("photo"))))

    def test_none_at_all(self, tmp_path):
        constant = oh.make_node("ConstantOfShape", ["sizes"], ["pixels"])
        sizes = onnx.numpy_helper.from_array(np.array([1, 3, 6, 10], np.int64), "sizes")
        assert "has no input" in refused(tmp_path, classifier([constant], inputs=[], constants=[sizes])).message

    def test_several_that_are_read_and_one_that_is_not(self, tmp_path):
        scaled = oh.make_node("Mul", ["photo", "gain"], ["pixels"])
        both = refused(tmp_path, classifier([scaled], inputs=[value("photo"), value("gain", shape=(1,))]))
        unread = refused(tmp_path, classifier(inputs=[value("pixels"), value("seed", TensorProto.INT64, (1,))]))
        assert both.hint != unread.hint
        assert "'seed'" in unread.message

    def test_one_with_a_default_is_a_constant(self, tmp_path):
        scaled = oh.make_node("Mul", ["photo", "gain"], ["pixels"])
        gain = onnx.numpy_helper.from_array(np.full(1, 3, np.float32), "gain")
        model = graphs.load_checked(written(tmp_path, classifier(
            [scaled], inputs=[value("gain", shape=(1,)), value("photo")], constants=[gain])))
        assert ["photo"] == [one.name for one in model.graph.input]


class TestSizes:
    @pytest.mark.parametrize("name", ["None", "?", "unk__7", "-1", "batch", "x"])
    def test_one_name_for_several_sizes_ties_nothing_together(self, tmp_path, name):
        image = value("pixels", shape=(name, 3, name, name))
        path = written(tmp_path, classifier(image=image, outputs=[value("logits", shape=(name, name))]))
        model = graphs.load_checked(path, (6, 10))
        graphs.name_batch(model)
        onnx.save(model, str(path))
        pixels = np.random.default_rng(0).standard_normal((7, 3, 6, 10)).astype(np.float32)
        np.testing.assert_allclose(pixels.mean((2, 3)) @ WEIGHT, networks.answers(path, pixels), atol=1e-5)
        shape = patterns.dims(model.graph.input[0])
        assert ["batch", 3] == shape[:2]
        assert "batch" not in shape[2:]
        assert ["batch", 5] == patterns.dims(model.graph.output[0])

    @pytest.mark.parametrize("shape", [None, (-1, 5), (0, 0), ("n", "k"), ("n", -1), (None, None)])
    def test_an_output_gets_the_sizes_that_it_has(self, tmp_path, shape):
        model = classifier(outputs=[value("logits", shape=shape)])
        assert 5 == patterns.dims(graphs.load_checked(written(tmp_path, model)).graph.output[0])[1]

    @pytest.mark.parametrize("first", [-1, 0, None, 3, "n"])
    def test_a_batch_that_is_free_in_any_notation_or_fixed(self, tmp_path, first):
        model = classifier(image=value("pixels", shape=(first, 3, 6, 10)), outputs=[value("logits", shape=(first, 5))])
        shape = patterns.dims(graphs.load_checked(written(tmp_path, model)).graph.input[0])
        assert (3 if first == 3 else str) in (shape[0], type(shape[0]))

    def test_free_channels_and_an_input_without_a_shape_are_rgb(self, tmp_path):
        for shape in (("a", "b", "c", "d"), None):
            model = graphs.load_checked(written(tmp_path, classifier(image=value("pixels", shape=shape))), (6, 10))
            assert 3 == patterns.dims(model.graph.input[0])[1]

    def test_a_graph_frozen_to_one_image_behind_a_free_batch(self, tmp_path):
        row = onnx.numpy_helper.from_array(np.array([1, 5], np.int64), "row")
        error = refused(tmp_path, classifier(after=[oh.make_node("Reshape", ["raw", "row"], ["logits"])], constants=[row]))
        assert "frozen to 1 image" in error.message

    def test_a_size_that_does_not_fit_the_graph(self, tmp_path):
        rows = onnx.numpy_helper.from_array(np.zeros((1, 3, 8, 8), np.float32), "rows")
        error = refused(tmp_path, classifier([oh.make_node("Add", ["photo", "rows"], ["pixels"])], constants=[rows],
                                             image=value("photo", shape=("n", 3, "h", "w"))))
        assert "(2, 3, 6, 10)" in error.message


def dropout(*inputs: str, opset: int = 17, constants=(), before=(), **attributes) -> onnx.ModelProto:
    return classifier(after=[*before, oh.make_node("Dropout", ["raw", *inputs], ["logits"], name="drop", **attributes)],
                      constants=constants, opset=opset)


HALF, YES, NO = (onnx.numpy_helper.from_array(np.array(one), name) for one, name in (
    (np.float32(0.5), "half"), (True, "yes"), (False, "no")))
ONES = [onnx.numpy_helper.from_array(np.full(3, number, np.float32), name) for name, number in (
    ("scale", 1.5), ("shift", 0.25), ("mean", 0.1), ("variance", 2.0))]
STATISTICS = ["photo", "scale", "shift", "mean", "variance"]


class TestSteadiness:
    @pytest.mark.parametrize("model", [
        dropout("half", "yes", constants=[HALF, YES]), dropout("", "yes", constants=[YES]),
        dropout("half", "made", constants=[HALF], before=[oh.make_node("Constant", [], ["made"], value=YES)]),
        dropout("half", "same", constants=[HALF, YES], before=[oh.make_node("Identity", ["yes"], ["same"])]),
        dropout("half", "flag", constants=[HALF, onnx.numpy_helper.from_array(np.array(1), "one")],
                before=[oh.make_node("Cast", ["one"], ["flag"], to=TensorProto.BOOL)]),
        classifier([oh.make_node("BatchNormalization", STATISTICS, ["pixels", "m", "v"], training_mode=1)],
                   image=value("photo"), constants=ONES),
        classifier([oh.make_node("BatchNormalization", STATISTICS, ["pixels", "m", "v"])],
                   image=value("photo"), constants=ONES, opset=11),
        classifier([oh.make_node("BatchNormalization", STATISTICS, ["pixels"], is_test=0)],
                   image=value("photo"), constants=ONES, opset=6),
    ], ids=["initializer", "default ratio", "Constant", "Identity", "Cast", "batch norm", "batch norm of opset 11",
            "batch norm of opset 6"])
    def test_training_mode_is_refused(self, tmp_path, model):
        error = refused(tmp_path, model)
        assert "training mode" in error.message
        assert "model.eval()" in error.hint

    @pytest.mark.parametrize("model", [
        dropout("half", "no", constants=[HALF, NO]), dropout("half", constants=[HALF]), dropout(opset=11, ratio=0.5),
        dropout("nothing", "yes", constants=[onnx.numpy_helper.from_array(np.float32(0), "nothing"), YES]),
        classifier([oh.make_node("BatchNormalization", STATISTICS, ["pixels"])], image=value("photo"), constants=ONES),
        classifier([oh.make_node("BatchNormalization", STATISTICS, ["pixels"])], image=value("photo"), constants=ONES,
                   opset=8)])
    def test_what_is_off_comes_in(self, tmp_path, model):
        graphs.load_checked(written(tmp_path, model))

    @pytest.mark.parametrize("node", [
        oh.make_node("RandomNormalLike", ["raw"], ["noise"]), oh.make_node("RandomUniformLike", ["raw"], ["noise"], seed=1.0),
        oh.make_node("RandomNormal", [], ["noise"], shape=[1, 5]), oh.make_node("RandomUniform", [], ["noise"], shape=[1, 5])])
    def test_random_numbers_are_refused(self, tmp_path, node):
        model = classifier(after=[node, oh.make_node("Add", ["raw", "noise"], ["logits"])])
        assert node.op_type in refused(tmp_path, model).message

    def test_random_numbers_that_nothing_reads_do_not_matter(self, tmp_path):
        unread = oh.make_node("RandomNormal", [], ["noise"], shape=[1, 5])
        graphs.load_checked(written(tmp_path, classifier([unread])))

    def test_random_numbers_in_a_branch_are_refused(self, tmp_path):
        branches = {name: oh.make_graph([node], name, [], [value(name, shape=None)]) for name, node in (
            ("even", oh.make_node("Identity", ["raw"], ["even"])),
            ("odd", oh.make_node("Bernoulli", ["raw"], ["odd"])))}
        model = classifier(after=[oh.make_node("If", ["yes"], ["logits"], then_branch=branches["even"],
                                               else_branch=branches["odd"])], constants=[YES])
        assert "Bernoulli" in refused(tmp_path, model).message

    def test_a_mean_over_the_batch_is_refused(self, tmp_path):
        model = classifier(after=[oh.make_node("ReduceMean", ["raw"], ["middle"], axes=[0], keepdims=1),
                                  oh.make_node("Sub", ["raw", "middle"], ["logits"])])
        assert "other images of the batch" in refused(tmp_path, model).message

    def test_infinite_logits_are_steady(self, tmp_path):
        mask = onnx.numpy_helper.from_array(np.array([0, 0, -np.inf, 0, 0], np.float32), "mask")
        for opset in (11, 17):
            graphs.load_checked(written(tmp_path, classifier(
                after=[oh.make_node("Add", ["raw", "mask"], ["logits"])], constants=[mask], opset=opset)))


class TestVersions:
    def test_the_installed_runtime_says_what_it_knows(self):
        ir, opset, words = intake._newest_versions()
        assert 10 <= ir <= onnx.IR_VERSION
        assert 22 <= opset <= onnx.defs.onnx_opset_version()
        assert onnx.__version__ in words

    @pytest.mark.parametrize(("opset", "ir", "number"), [(17, 77, "77"), (1234, 8, "1234")])
    def test_too_new_names_the_number_and_the_newest_that_is_known(self, tmp_path, opset, ir, number):
        message = refused(tmp_path, classifier(opset=opset, ir=ir)).message
        assert number in message
        assert str(intake._newest_versions()[ir == 8]) in message

    def test_the_newest_that_are_known_work(self, tmp_path):
        ir, opset, _ = intake._newest_versions()
        for version in range(21, opset + 1):
            graphs.load_checked(written(tmp_path, classifier(opset=version, ir=ir)))

    def test_an_old_file_is_compared_at_the_size_of_the_images(self, tmp_path):
        rows = onnx.numpy_helper.from_array(np.ones((1, 1, 6, 10), np.float32), "rows")
        model = classifier([oh.make_node("Mul", ["photo", "rows"], ["pixels"])], constants=[rows], opset=11,
                           image=value("photo", shape=("n", 3, "h", "w")))
        made = graphs.load_checked(written(tmp_path, model), (6, 10))
        assert graphs.OPSET == patterns.opset(made)

    def test_the_size_stays_known_for_later_conversions(self, tmp_path):
        rows = onnx.numpy_helper.from_array(np.ones((1, 1, 6, 10), np.float32), "rows")
        model = graphs.load_checked(written(tmp_path, classifier(
            [oh.make_node("Mul", ["photo", "rows"], ["pixels"])], constants=[rows], opset=14,
            image=value("photo", shape=("n", 3, "h", "w")))), (6, 10))
        graphs.note_size(model, (6, 10))
        assert 20 == patterns.opset(graphs.at_opset("it", model, 20))


    @pytest.mark.parametrize(("opset", "place"), [(9, 0), (9, 1), (17, 0)])
    def test_ir_version_3_with_its_weights_among_the_inputs(self, tmp_path, opset, place):
        model = classifier(opset=opset, ir=3)
        model.graph.input.insert(place, value("weight", shape=(3, 5)))
        loaded = graphs.load_checked(written(tmp_path, model))
        assert ["pixels"] == [one.name for one in loaded.graph.input]
        onnx.checker.check_model(loaded)


class TestOutputs:
    def test_none(self, tmp_path):
        assert "has no output" in refused(tmp_path, classifier(outputs=[])).message

    def test_sequences_alone_and_beside_logits(self, tmp_path):
        node = oh.make_node("SequenceConstruct", ["raw"], ["several"])
        several = oh.make_tensor_sequence_value_info("several", TensorProto.FLOAT, None)
        assert "containers" in refused(tmp_path, classifier(after=[node], outputs=[several])).message
        beside = classifier(after=[oh.make_node("Identity", ["raw"], ["logits"]), node],
                            outputs=[value("logits", shape=("n", 5)), several])
        assert "logits" == graphs.load_checked(written(tmp_path, beside)).graph.output[0].name


class TestOperators:
    def test_those_of_onnx_runtime_come_in_with_and_without_their_domain(self, tmp_path):
        for imports in ([], [oh.make_opsetid("com.microsoft", 1)]):
            model = classifier(after=[oh.make_node("QuickGelu", ["raw"], ["logits"], domain="com.microsoft")])
            model.opset_import.extend(imports)
            graphs.load_checked(written(tmp_path, model))

    def test_a_strange_one_in_a_branch_is_named(self, tmp_path):
        branch = oh.make_graph([oh.make_node("Odd", ["raw"], ["t"], domain="mine")], "b", [], [value("t", shape=None)])
        model = classifier(after=[oh.make_node("If", ["yes"], ["logits"], then_branch=branch, else_branch=branch)],
                           constants=[YES])
        model.opset_import.append(oh.make_opsetid("mine", 1))
        assert "mine:Odd (2×)" in refused(tmp_path, model).message


class TestSubgraphs:
    @staticmethod
    def branching() -> onnx.ModelProto:
        branches = [oh.make_graph([oh.make_node("Mul", ["raw", "twice"], [name])], name, [], [value(name, shape=None)])
                    for name in ("even", "odd")]
        twice = onnx.numpy_helper.from_array(np.full(1, 2, np.float32), "twice")
        return classifier(after=[oh.make_node("If", ["yes"], ["logits"], name="if", then_branch=branches[0],
                                              else_branch=branches[1])], constants=[twice, YES])

    def test_what_a_branch_alone_reads_stays_and_keeps_its_type(self, tmp_path):
        model = graphs.load_checked(written(tmp_path, self.branching()))
        pixels = np.random.default_rng(0).standard_normal((2, 3, 6, 10)).astype(np.float32)
        half = typed.convert(model, "fp16")
        assert "twice" in {tensor.name for tensor in half.graph.initializer}
        np.testing.assert_allclose(2 * pixels.mean((2, 3)) @ WEIGHT, networks.answers(half, pixels), atol=0.02)


class TestNames:
    @pytest.mark.parametrize(("given", "made"), [
        ("serving:0", "Identity:0"), ("/a/b", "/c/d:1"), ("an image, (1)", "log its"), ("图", "クラス"), ("batch", "features"),
        ("0", "1"), ("a.b", "c,d"), ("a'b\"c", "<d>")])
    def test_any_name_of_a_tensor_works(self, tmp_path, given, made):
        model = classifier([oh.make_node("Identity", [given], ["pixels"])], name=given,
                           after=[oh.make_node("Identity", ["raw"], [made])], outputs=[value(made, shape=("n", 5))])
        loaded = graphs.load_checked(written(tmp_path, model))
        graphs.name_batch(loaded)
        assert [given, made] == [loaded.graph.input[0].name, loaded.graph.output[0].name]


def shrunk(model: onnx.ModelProto, kind: int, *, compute: bool) -> onnx.ModelProto:
    """Return the classifier with its weight in half precision: cast up before the product, or the product cast down."""
    place = next(k for k, node in enumerate(model.graph.node) if node.op_type == "MatMul")
    product = model.graph.node[place]
    stored = WEIGHT.astype(oh.tensor_dtype_to_np_dtype(kind))
    model.graph.initializer[0].CopyFrom(oh.make_tensor("weight", kind, WEIGHT.shape, stored.tobytes(), raw=True))
    if compute:
        output = product.output[0]
        added = [oh.make_node("Cast", ["flat"], ["flat_half"], to=kind),
                 oh.make_node("MatMul", ["flat_half", "weight"], ["half_logits"]),
                 oh.make_node("Cast", ["half_logits"], [output], to=TensorProto.FLOAT)]
    else:
        added = [oh.make_node("Cast", ["weight"], ["weight_full"], to=TensorProto.FLOAT),
                 oh.make_node("MatMul", ["flat", "weight_full"], [product.output[0]])]
    del model.graph.node[place]
    for extra, node in enumerate(added):
        model.graph.node.insert(place + extra, node)
    return model


def quantized(folder: Path, form: str) -> Path:
    source, target = written(folder, classifier()), folder / f"{form}.onnx"
    if form == "dynamic":
        tools.quantize_dynamic(str(source), str(target))
        return target
    generator = np.random.default_rng(0)
    feeds = iter([{"pixels": generator.standard_normal((2, 3, 6, 10)).astype(np.float32)} for _ in range(4)])

    class Reader(tools.CalibrationDataReader):
        def get_next(self):
            return next(feeds, None)

    tools.quantize_static(str(source), str(target), Reader(), quant_format=tools.QuantFormat[form])
    return target


class TestNamesInOpenvino:
    def test_folded_layers_leave_the_names_of_inputs_and_outputs_alone(self, tmp_path):
        model = classifier([oh.make_node("BatchNormalization", STATISTICS, ["pixels"])], image=value("photo"), constants=[
            onnx.numpy_helper.from_array(np.full(3, number, np.float32), name)
            for name, number in (("scale", 1), ("shift", 0), ("mean", 0), ("variance", 1))],
            after=[oh.make_node("Identity", ["raw"], ["a"]), oh.make_node("Identity", ["a"], ["logits"])])
        model.graph.node[0].attribute.append(oh.make_attribute("epsilon", 0.0))
        source = sources.open_source(str(written(tmp_path, model)))
        with export.Exporter(source, tmp_path / "out", export.Wanted()) as exporter:
            made = artifacts.verify(exporter.export(catalog.recipe("openvino-fp32")))
        assert ["photo", "logits"] == [spec.name for spec in (*made.inputs, *made.outputs)]


class TestPrecisionOfTheFile:
    @pytest.mark.parametrize(("kind", "precision"), [(TensorProto.FLOAT16, "fp16"), (TensorProto.BFLOAT16, "bf16")])
    @pytest.mark.parametrize("compute", [True, False])
    def test_weights_or_arithmetic_in_half_precision_name_the_file(self, kind, precision, compute):
        assert precision == graphs.written_precision(shrunk(classifier(), kind, compute=compute)).precision

    @pytest.mark.parametrize("form", ["QDQ", "QOperator", "dynamic"])
    def test_integers_in_any_form_name_the_file(self, tmp_path, form):
        assert "int8" == graphs.written_precision(graphs.load(quantized(tmp_path, form))).precision

    def test_all_others_are_fp32(self):
        for name in networks.NAMES:
            assert "fp32" == graphs.written_precision(graphs.load(networks.graph(name))).precision

    @pytest.mark.parametrize("form", ["QDQ", "QOperator", "dynamic"])
    def test_it_is_neither_called_fp32_nor_quantized_again_but_taken_as_it_is(self, tmp_path, form):
        source = sources.open_source(str(quantized(tmp_path, form)))
        with export.Exporter(source, tmp_path / "out", export.Wanted()) as exporter:
            for name in ("ort-fp32", "openvino-fp32", "ort-int8", "openvino-int8-nncf", "ort-fp16"):
                with pytest.raises(InvalidInput) as caught:
                    exporter.export(catalog.recipe(name))
                assert "given" in caught.value.hint
            made = artifacts.verify(exporter.export(catalog.recipe("ort-int8-given")))
        assert ("int8", "int8") == (made.recipe.precision, made.precision.executed)
        assert {"given-precision", *(["batch-dependent"] if form == "dynamic" else [])} <= {one.code for one in made.caveats}
        assert made.calibration is None

    def test_a_half_precision_file_is_taken_by_recipes_of_its_own_alone(self, tmp_path):
        path = written(tmp_path, shrunk(classifier(), TensorProto.FLOAT16, compute=True))
        source = sources.open_source(str(path))
        refused_by = {one.id for one in catalog.recipes().values() if export.unlike_file(source, one) is not None}
        assert {one.id for one in catalog.recipes().values() if one.precision != "fp16"} == refused_by

    def test_an_fp32_file_is_refused_by_recipes_for_quantized_ones_alone(self, tmp_path):
        source = sources.open_source(str(written(tmp_path, classifier())))
        refused_by = {one.id for one in catalog.recipes().values() if export.unlike_file(source, one) is not None}
        assert {"ort-int8-given", "openvino-int8-given"} == refused_by
