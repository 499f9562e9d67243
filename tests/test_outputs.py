"""What a model's outputs mean: probabilities, sigmoids, single values, several outputs, excluded classes."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import get_args

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, numpy_helper
from onnx import helper as oh
from PIL import Image
from scipy import special

from edgebench import conversion, gate, graphs, metrics, outputs, policy, record, sources, temperature
from edgebench.errors import InvalidInput, UsageError
from edgebench.evaluate import save_predictions
from edgebench.properties import Pass, Predictions, calibration, load_predictions, ood
from edgebench.properties.fidelity import fidelity
from edgebench.record import DatasetIdentity, ScoredOutput
from tests import builders
from tests.commands import cli

CLASSES = ("ash", "birch", "cedar", "date", "elm")
K = len(CLASSES)
SIZE = 8
WEIGHT = np.random.default_rng(11).standard_normal((3, K)).astype(np.float32) * 12
WEIGHT -= WEIGHT.mean(axis=1, keepdims=True)
BIAS = -(WEIGHT * 0.5).sum(axis=0)


def number(name, value):
    return numpy_helper.from_array(np.asarray(value, np.float32), name)


def whole(name, *values):
    return numpy_helper.from_array(np.array(values, np.int64), name)


def model(nodes=(), out=(("logits", ["n", K]),), *, more=(), weight=WEIGHT, bias=BIAS, kind=TensorProto.FLOAT, opset=17):
    """Return a classifier by colour: mean over space, then a linear layer into 'z'; `nodes` make the outputs of it."""
    nodes = nodes or [oh.make_node("Identity", ["z"], [out[0][0]])]
    graph = oh.make_graph(
        [oh.make_node("GlobalAveragePool", ["image"], ["pooled"]), oh.make_node("Flatten", ["pooled"], ["flat"]),
         oh.make_node("Gemm", ["flat", "weight", "bias"], ["z"]), *nodes], "colours",
        [oh.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, SIZE, SIZE])],
        [oh.make_tensor_value_info(name, kind, shape) for name, shape in out],
        [number("weight", weight), number("bias", bias), *more])
    return oh.make_model(graph, opset_imports=[oh.make_opsetid("", opset)], ir_version=8)


def checked(built, folder, **options):
    """Return the model as it comes in, and what its scored output means."""
    file = folder / "model.onnx"
    onnx.save(built, str(file))
    ready = graphs.load_checked(file, **options)
    return ready, outputs.scored(ready, answers(ready, 16), options.get("output"))


def answers(built, count):
    """Return the first output for some images, by ONNX Runtime."""
    session = onnxruntime.InferenceSession(built.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"image": images(count)})[0]


def pictures(count, seed=0):
    """Return noisy one-colour pixels (count, SIZE, SIZE, 3) uint8."""
    generator = np.random.default_rng(seed)
    colour = generator.uniform(0.1, 0.9, (count, 1, 1, 3))
    return (np.clip(colour + generator.normal(0, 0.04, (count, SIZE, SIZE, 3)), 0, 1) * 255).round().astype(np.uint8)


def images(count, seed=0):
    return (pictures(count, seed) / 255).astype(np.float32).transpose(0, 3, 1, 2)


SOFTMAX = oh.make_node("Softmax", ["z"], ["p"], axis=1)
EXPONENTS = [oh.make_node("ReduceMax", ["z"], ["top"], axes=[1]), oh.make_node("Sub", ["z", "top"], ["less"]),
             oh.make_node("Exp", ["less"], ["powers"]), oh.make_node("ReduceSum", ["powers", "one"], ["total"])]
KINDS = {
    "softmax": ([SOFTMAX], [], "probabilities", 1.0, "graph"),
    "cast and identity": ([SOFTMAX, oh.make_node("Cast", ["p"], ["q"], to=10), oh.make_node("Cast", ["q"], ["r"], to=1),
                           oh.make_node("Identity", ["r"], ["out"])], [], "probabilities", 1.0, "graph"),
    "clip": ([SOFTMAX, oh.make_node("Clip", ["p", "low", "high"], ["out"])], [number("low", 1e-7), number("high", 1)],
             "probabilities", 1.0, "graph"),
    "dropout": ([SOFTMAX, oh.make_node("Dropout", ["p"], ["out"])], [], "probabilities", 1.0, "graph"),
    "percent": ([SOFTMAX, oh.make_node("Mul", ["p", "hundred"], ["out"])], [number("hundred", 100.0)], "probabilities",
                100.0, "graph"),
    "quantized": ([SOFTMAX, oh.make_node("QuantizeLinear", ["p", "step", "zero"], ["q"]),
                   oh.make_node("DequantizeLinear", ["q", "step", "zero"], ["out"])],
                  [number("step", 1 / 255), numpy_helper.from_array(np.uint8(0), "zero")], "probabilities", 1.0, "graph"),
    "written out": ([*EXPONENTS, oh.make_node("Div", ["powers", "total"], ["out"])], [whole("one", 1)], "probabilities",
                    1.0, "graph"),
    "exp of log": ([oh.make_node("LogSoftmax", ["z"], ["l"], axis=1), oh.make_node("Exp", ["l"], ["out"])], [],
                   "probabilities", 1.0, "graph"),
    "mean of two": ([SOFTMAX, oh.make_node("Neg", ["z"], ["minus"]), oh.make_node("Softmax", ["minus"], ["p2"], axis=1),
                     oh.make_node("Mean", ["p", "p2"], ["out"])], [], "probabilities", 1.0, "values"),
    "log-softmax": ([oh.make_node("LogSoftmax", ["z"], ["out"], axis=1)], [], "log_probabilities", 1.0, "graph"),
    "log of softmax": ([SOFTMAX, oh.make_node("Add", ["p", "tiny"], ["q"]), oh.make_node("Log", ["q"], ["out"])],
                       [number("tiny", 1e-9)], "log_probabilities", 1.0, "graph"),
    "less log-sum": ([*EXPONENTS, oh.make_node("Log", ["total"], ["l"]), oh.make_node("Sub", ["less", "l"], ["out"])],
                     [whole("one", 1)], "log_probabilities", 1.0, "graph"),
    "sigmoid": ([oh.make_node("Sigmoid", ["z"], ["out"])], [], "sigmoid_scores", 1.0, "graph"),
    "hard sigmoid": ([oh.make_node("HardSigmoid", ["z"], ["out"])], [], "sigmoid_scores", 1.0, "graph"),
    "sigmoid written out": ([oh.make_node("Neg", ["z"], ["m"]), oh.make_node("Exp", ["m"], ["e"]),
                             oh.make_node("Add", ["e", "unit"], ["d"]), oh.make_node("Div", ["unit", "d"], ["out"])],
                            [number("unit", 1.0)], "sigmoid_scores", 1.0, "graph"),
    "scaled logits": ([oh.make_node("Mul", ["z", "hundred"], ["out"])], [number("hundred", 100.0)], "logits", 1.0,
                      "assumed"),
}


class TestKinds:
    @pytest.mark.parametrize("name", KINDS)
    def test_the_graph_or_the_values_say_what_an_output_is(self, name, tmp_path):
        nodes, more, kind, scale, evidence = KINDS[name]
        out = nodes[-1].output[0]
        _, scored = checked(model(nodes, ((out, ["n", K]),), more=more), tmp_path)
        assert (out, kind, evidence, False) == (scored.name, scored.kind, scored.evidence, scored.single)
        assert scale == pytest.approx(scored.scale)

    @pytest.mark.parametrize("axis", [0, 2, 3])
    def test_a_softmax_over_another_axis_than_the_classes_is_refused(self, axis, tmp_path):
        shape = ["n", K, 1, 1]
        built = model([oh.make_node("Reshape", ["z", "four"], ["r"]), oh.make_node("Softmax", ["r"], ["out"], axis=axis)],
                      (("out", shape),), more=[whole("four", -1, K, 1, 1)])
        with pytest.raises(InvalidInput, match="another axis" if axis else "batch"):
            checked(built, tmp_path)

    @pytest.mark.parametrize("shape", [(K, 1, 1), (1, K), (1, 1, K)])
    @pytest.mark.parametrize("last", ["Identity", "Softmax"])
    def test_axes_of_one_do_not_matter(self, shape, last, tmp_path):
        axis = {"axis": 1 + shape.index(K)} if last == "Softmax" else {}
        built = model([oh.make_node("Reshape", ["z", "form"], ["r"]), oh.make_node(last, ["r"], ["out"], **axis)],
                      (("out", ["n", *shape]),), more=[whole("form", -1, *shape)])
        ready, scored = checked(built, tmp_path)
        raw = answers(ready, 9)
        stored = outputs.scores(raw, scored)
        plain = answers(model(), 9)
        assert (9, K) == stored.shape
        np.testing.assert_allclose(metrics.probabilities(stored, scored.kind), special.softmax(plain.astype(float), axis=1),
                                   rtol=1e-4, atol=1e-7)

    def test_the_option_overrides_what_is_recognised(self, tmp_path):
        _, scored = checked(model([SOFTMAX], (("p", ["n", K]),)), tmp_path, output="p=logits")
        assert ("logits", "option", "p=logits") == (scored.kind, scored.evidence, scored.given)

    def test_an_unknown_kind_is_a_usage_error_with_the_known_ones(self):
        with pytest.raises(UsageError) as caught:
            outputs.refuse_unfit_option("p=odds")
        assert "sigmoid_scores" in caught.value.hint

    @pytest.mark.parametrize(("inside", "kind"), [(True, "probabilities"), (False, "logits")])
    @pytest.mark.parametrize("flat", [True, False])
    def test_one_value_per_image_tells_two_classes_apart(self, inside, kind, flat, tmp_path):
        nodes = [oh.make_node("Sigmoid" if inside else "Identity", ["z"], ["s"])]
        shape = ["n"] if flat else ["n", 1]
        nodes.append(oh.make_node("Squeeze", ["s", "one"], ["out"]) if flat else oh.make_node("Identity", ["s"], ["out"]))
        built = model(nodes, (("out", shape),), weight=np.array([[30.0], [-30.0], [0.0]]), bias=np.zeros(1),
                      more=[whole("one", 1)] if flat else [])
        ready, scored = checked(built, tmp_path)
        raw = answers(ready, 40)
        logit = answers(built, 40).reshape(-1)
        positive = logit if inside else special.expit(logit.astype(float))
        assert (kind, True) == (scored.kind, scored.single)
        np.testing.assert_allclose(metrics.probabilities(outputs.scores(raw, scored), scored.kind)[:, 1], positive,
                                   rtol=1e-5)

    def test_a_softmax_over_one_value_is_refused(self, tmp_path):
        built = model([SOFTMAX], (("p", ["n", 1]),), weight=WEIGHT[:, :1], bias=BIAS[:1])
        with pytest.raises(InvalidInput, match="one value"):
            checked(built, tmp_path)


def several(*made, more=()):
    """Return a model with the outputs of (node, shape) pairs, in that order."""
    return model([node for node, _ in made], tuple((node.output[0], shape) for node, shape in made), more=more)


EMBEDDING = (oh.make_node("MatMul", ["flat", "projection"], ["embedding"]), ["n", 7])
PROJECTION = number("projection", np.random.default_rng(3).standard_normal((3, 7)))
LOGITS = (oh.make_node("Identity", ["z"], ["logits"]), ["n", K])


class TestChoice:
    @pytest.mark.parametrize(("made", "chosen"), [
        ((EMBEDDING, LOGITS), "logits"),
        (((SOFTMAX, ["n", K]), LOGITS), "logits"),
        (((oh.make_node("Identity", ["flat"], ["output_0"]), ["n", 3]), LOGITS, (SOFTMAX, ["n", K])), "logits"),
        (((oh.make_node("Identity", ["flat"], ["output_0"]), ["n", 3]),
          (oh.make_node("Softmax", ["z"], ["output_1"], axis=1), ["n", K])), "output_1"),
        (((oh.make_node("Neg", ["z"], ["aux_logits"]), ["n", K]), LOGITS), "logits"),
        (((oh.make_node("Relu", ["image"], ["features"]), ["n", 3, SIZE, SIZE]),
          (oh.make_node("Identity", ["z"], ["output"]), ["n", K])), "output"),
    ], ids=["embedding", "softmax of it", "all three", "layer before", "auxiliary head", "feature map"])
    def test_the_class_scores_are_found_among_several(self, made, chosen, tmp_path):
        ready, scored = checked(several(*made, more=[PROJECTION] if made[0] is EMBEDDING else []), tmp_path)
        assert (chosen, chosen) == (scored.name, ready.graph.output[0].name)
        assert len(made) == len(ready.graph.output)

    def test_two_heads_that_nothing_tells_apart_are_refused_by_name_until_one_is_named(self, tmp_path):
        made = [(oh.make_node("Identity", ["z"], ["output_0"]), ["n", K]), (oh.make_node("Neg", ["z"], ["output_1"]), ["n", K])]
        with pytest.raises(InvalidInput, match=r"output_0.*output_1") as caught:
            checked(several(*made), tmp_path)
        assert "--output" in caught.value.hint
        _, scored = checked(several(*made), tmp_path, output="output_1")
        assert ("output_1", "logits", "output_1") == (scored.name, scored.kind, scored.given)

    def test_the_class_map_tells_heads_of_different_width_apart(self, tmp_path):
        made = [(oh.make_node("MatMul", ["flat", "projection"], ["output_0"]), ["n", 7]),
                (oh.make_node("Identity", ["z"], ["output_1"]), ["n", K])]
        assert "output_1" == checked(several(*made, more=[PROJECTION]), tmp_path, classes=K)[1].name
        assert "output_0" == checked(several(*made, more=[PROJECTION]), tmp_path, classes=7)[1].name

    def test_a_name_that_no_output_has_is_a_usage_error(self, tmp_path):
        with pytest.raises(UsageError, match="logits"):
            checked(model(), tmp_path, output="lgits")

    def test_an_answer_beside_the_scores_is_passed_over(self, tmp_path):
        built = several(LOGITS)
        built.graph.node.append(oh.make_node("ArgMax", ["z"], ["label"], axis=1, keepdims=0))
        built.graph.output.insert(0, oh.make_tensor_value_info("label", TensorProto.INT64, ["n"]))
        assert "logits" == checked(built, tmp_path)[1].name

    @pytest.mark.parametrize(("node", "shape", "kind", "word"), [
        (oh.make_node("ArgMax", ["z"], ["out"], axis=1), ["n", 1], TensorProto.INT64, "ArgMax"),
        (oh.make_node("TopK", ["z", "one"], ["out", "rank"], axis=1), ["n", 1], TensorProto.FLOAT, "TopK"),
        (oh.make_node("Hardmax", ["z"], ["out"], axis=1), ["n", K], TensorProto.FLOAT, "Hardmax"),
        (oh.make_node("Cast", ["z"], ["out"], to=TensorProto.INT32), ["n", K], TensorProto.INT32, "int32"),
    ])
    def test_answers_and_integers_alone_are_no_scores(self, node, shape, kind, word, tmp_path):
        with pytest.raises(InvalidInput, match=word):
            checked(model([node], (("out", shape),), kind=kind, more=[whole("one", 1)] if word == "TopK" else []), tmp_path)


class TwoHeads(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, K)

    def forward(self, image):
        return image.relu(), self.layer(image.mean(dim=(2, 3))).softmax(dim=1)


def test_the_scored_output_of_an_exported_program_need_not_be_its_first(tmp_path):
    program = torch.export.export(TwoHeads().eval(), (torch.zeros(2, 3, SIZE, SIZE),))
    torch.export.save(program, str(tmp_path / "m.pt2"))
    source = sources.open_source(str(tmp_path / "m.pt2"))
    base = conversion.to_onnx(source, 20, tmp_path)
    own = conversion.reference_outputs(source, base, images(6))
    got = next(iter(own.values()))
    assert (6, K) == got.shape
    assert "probabilities" == outputs.scored(graphs.load(base), got).kind


TRUE = special.softmax(np.random.default_rng(4).normal(0, 2, (400, K)), axis=1)
TARGETS = np.array([np.random.default_rng(k).choice(K, p=row) for k, row in enumerate(TRUE)])
DATA = DatasetIdentity(name="mine", source="x", images=400, classes=K, digest="d")
IDS = np.array([f"{k:03d}" for k in range(400)])


def scored_as(kind, **changes):
    return ScoredOutput(name="out", kind=kind, evidence="graph", reason="output 'out'", **changes)


def predictions(values, kind, **changes):
    return replace(Predictions(dataset=DATA, logits=outputs.scores(values, scored_as(kind, **changes)), targets=TARGETS,
                               ids=IDS, kind=kind))


def named(evaluation):
    return {one.name: one for one in evaluation.scores}


class TestScores:
    def test_probabilities_are_scored_as_the_logits_that_they_come_from(self):
        logits = np.log(TRUE).astype(np.float32) * 1.7 + 3
        given = special.softmax(logits.astype(float), axis=1).astype(np.float32)
        key = Pass("mine")
        expected, = calibration.score({key: predictions(logits, "logits")}, None)
        for found in (predictions(given, "probabilities"), predictions(np.log(given), "log_probabilities"),
                      predictions(given * 100, "probabilities", scale=100.0)):
            got, = calibration.score({key: found}, None)
            for one in expected.scores:
                if one.name != "distinct_logits":
                    assert one.value == pytest.approx(named(got)[one.name].value, rel=1e-3, abs=1e-5), one.name

    def test_probabilities_in_steps_of_8_bits_are_what_the_model_says(self):
        coarse = np.round(TRUE * 255) / 255
        seen = metrics.outcomes(outputs.scores(coarse, scored_as("probabilities")), TARGETS, "probabilities")
        rows = np.arange(len(TARGETS))
        # The sums of such rows miss 1: nothing is shared out again.
        assert np.abs(coarse.sum(axis=1) - 1).max() > 1e-3
        np.testing.assert_allclose(seen.confidence, coarse.max(axis=1), rtol=1e-6)
        one_hot = np.eye(K)[TARGETS]
        np.testing.assert_allclose(seen.brier, ((coarse - one_hot) ** 2).sum(axis=1), rtol=1e-5, atol=1e-9)
        with np.errstate(divide="ignore"):
            np.testing.assert_allclose(seen.nll, -np.log(coarse[rows, TARGETS]), rtol=1e-5, atol=1e-7)

    def test_a_target_of_probability_0_leaves_nll_absent_with_the_reason(self):
        given = TRUE.copy()
        given[7, TARGETS[7]] = 0.0
        scores = named(calibration.score({Pass("mine"): predictions(given, "probabilities")}, None)[0])
        assert (None, None) == (scores["nll"].value, scores["temperature"].value)
        assert "infinite" in scores["nll"].reason
        assert scores["brier"].value > 0
        assert scores["ece15_ew"].value > 0

    def test_sigmoid_scores_have_answers_and_no_confidences(self):
        found = predictions(special.expit(np.log(TRUE)), "sigmoid_scores")
        assert (found.outcomes.predicted == TRUE.argmax(axis=1)).all()
        evaluation, = calibration.score({Pass("mine"): found}, None)
        assert {None} == {one.value for one in evaluation.scores}
        assert not evaluation.reliability
        by_name = {one.name: one for one in fidelity(found, found)}
        assert 0.0 == by_name["disagreement"].value
        assert {None} == {by_name[name].value for name in ("kl_divergence", "confidence_difference", "logit_difference")}

    def test_probabilities_have_no_energy_and_no_largest_logit(self):
        inside = predictions(TRUE, "probabilities")
        outside = replace(inside, dataset=replace(DATA, name="ood/other"), logits=inside.logits[::-1] * 0.2)
        given = {Pass("mine"): inside, Pass("ood/other"): outside}
        scores = named(ood.evaluations(given, None)[0])
        assert {None} == {scores[f"auroc_{name}"].value for name in ("energy", "max_logit")}
        assert scores["auroc_msp"].value is not None
        assert scores["auroc_entropy"].value is not None

    def test_the_temperature_of_log_probabilities_is_that_of_their_logits(self):
        logits = np.log(TRUE) * 2.0
        half = temperature.halves(IDS)
        one = temperature.fit(logits, TARGETS, half)
        two = temperature.fit(special.log_softmax(logits, axis=1), TARGETS, half)
        assert one.value == pytest.approx(two.value, rel=1e-6)
        assert one.value == pytest.approx(2.0, rel=0.15)

    @pytest.mark.parametrize("kind", ["probabilities", "sigmoid_scores", "logits"])
    @pytest.mark.parametrize("compact", [True, False])
    def test_what_is_stored_says_its_kind(self, kind, compact, tmp_path):
        stored = outputs.scores(TRUE, scored_as(kind))
        file = tmp_path / "p.npz"
        save_predictions(file, [(stored[:150], None), (stored[150:], None)], targets=TARGETS.tolist(), ids=IDS.tolist(),
                         dataset=DATA, artifact_digest="a", compact=compact, kind=kind)
        found = load_predictions(file, DATA, "a")
        assert (kind, kind) == (found.kind, found.outcomes.kind)
        np.testing.assert_array_equal(found.outcomes.confidence, metrics.outcomes(stored, TARGETS, kind).confidence)

    def test_files_of_earlier_versions_are_recognised_by_their_values(self, tmp_path):
        for name, values, kind in (("p", TRUE, "probabilities"), ("z", np.log(TRUE) * 2, "logits")):
            np.savez(tmp_path / f"{name}.npz", logits=values.astype(np.float32), targets=TARGETS, ids=IDS,
                     dataset=np.asarray("d"), artifact=np.asarray("a"))
            found = load_predictions(tmp_path / f"{name}.npz", DATA, "a")
            assert kind == found.kind
            expected = TRUE.max(axis=1) if kind == "probabilities" else special.softmax(values, axis=1).max(axis=1)
            np.testing.assert_allclose(found.outcomes.confidence, expected, rtol=1e-5)

    def test_among_some_classes_probabilities_are_shared_out_anew(self):
        found = predictions(TRUE, "probabilities")
        two = replace(found, targets=TARGETS % 2).within([0, 1])
        np.testing.assert_allclose(two.outcomes.confidence, TRUE[:, :2].max(axis=1) / TRUE[:, :2].sum(axis=1), rtol=1e-5)


class TestExcludedClasses:
    def masked(self, seed=2):
        logits = np.random.default_rng(seed).normal(0, 2, (300, K)).astype(np.float32)
        logits[:, 3] = -np.inf
        return logits, np.random.default_rng(seed + 1).choice([0, 1, 2, 4], 300)

    def test_minus_infinity_is_a_class_of_probability_0(self):
        logits, targets = self.masked()
        rest = np.delete(logits, 3, axis=1)
        seen = metrics.outcomes(logits, targets)
        alone = metrics.outcomes(rest, np.where(targets == 4, 3, targets))
        for name in ("confidence", "nll", "brier", "energy", "max_logit", "entropy", "runner_up"):
            np.testing.assert_allclose(getattr(seen, name), getattr(alone, name), rtol=1e-12, err_msg=name)
        assert (np.sort(seen.top5, axis=1) == np.arange(K)).all()
        assert seen.in_top5.all()

    def test_divergences_of_excluded_classes_are_those_of_the_others(self):
        one, two = self.masked(2)[0], self.masked(5)[0]
        found = metrics.divergences(one, two)
        alone = metrics.divergences(np.delete(one, 3, axis=1), np.delete(two, 3, axis=1))
        np.testing.assert_allclose(found.kl, alone.kl, rtol=1e-9)
        np.testing.assert_allclose(found.js, alone.js, rtol=1e-9)
        np.testing.assert_allclose(metrics.js_divergences(one, [two])[0], alone.js, rtol=1e-9)
        np.testing.assert_allclose(found.logit_max, alone.logit_max)

    def test_a_class_that_one_side_alone_excludes_makes_the_divergence_infinite(self):
        one, targets = self.masked()
        two = np.where(np.isinf(one), -1.0, one).astype(np.float32)
        assert np.isinf(metrics.divergences(two, one).kl).all()
        assert np.isfinite(metrics.divergences(one, two).kl).all()
        assert (metrics.divergences(two, one).js <= np.log(2)).all()

        def given(logits):
            data = replace(DATA, images=300)
            return Predictions(dataset=data, logits=logits, targets=targets, ids=IDS[:300])

        by_name = {score.name: score for score in fidelity(given(one), given(two))}
        assert (None, None) == (by_name["kl_divergence"].value, by_name["logit_difference_max"].value)
        assert by_name["js_divergence"].value > 0

    def test_the_temperature_does_not_see_excluded_classes(self):
        logits, targets = self.masked()
        answers = np.delete(logits, 3, axis=1).argmax(axis=1)
        targets = np.where(np.arange(300) % 3 > 0, np.array([0, 1, 2, 4])[answers], targets)
        half = np.arange(300) % 2
        found = temperature.fit(logits, targets, half)
        alone = temperature.fit(np.delete(logits, 3, axis=1), np.where(targets == 4, 3, targets), half)
        np.testing.assert_allclose(found.fitted, alone.fitted, rtol=1e-6)
        targets[0] = 3
        assert temperature.fit(logits, targets, half) is None

    def test_differences_leave_out_what_excludes_on_both_sides(self):
        one, two = np.array([[1.0, -np.inf]]), np.array([[1.5, -1e9]])
        assert 0.5 == outputs.largest_difference(one, two)
        assert np.inf == outputs.largest_difference(one, np.array([[1.0, 0.0]]))
        assert np.inf == outputs.largest_difference(np.array([[np.nan, 1.0]]), np.ones((1, 2)))


class TestManifest:
    def test_numbers_and_files_know_the_same_kinds(self):
        assert get_args(metrics.OutputKind) == get_args(record.OutputKind)

    def test_manifests_of_earlier_versions_keep_their_digest_and_are_recognised_from_golden_outputs(self, tmp_path):
        old = builders.artifact(builders.recipe("ort-fp32"))
        assert old.scored is None
        new = replace(old, scored=scored_as("probabilities"))
        assert old.digest != new.digest
        assert "scored" not in json.dumps(record._stated(old))
        assert "logits" == outputs.recognised(old, np.log(TRUE) * 2).kind
        assert "probabilities" == outputs.recognised(old, TRUE).kind
        assert "probabilities" == outputs.recognised(new, np.log(TRUE) * 2).kind

    def test_values_that_contradict_the_kind_are_seen_image_by_image(self):
        given = TRUE.copy()
        given[3] *= 2
        given[5, 0] = -0.3
        found = outputs.contradicts(given, scored_as("probabilities"), floats=True)
        assert [3, 5] == np.flatnonzero(found).tolist()
        assert not outputs.contradicts(np.round(TRUE * 255) / 255, scored_as("probabilities"), floats=False).any()


RULE = ('id = "p"\ntitle = "t"\npurpose = "why"\n[[rules]]\nid = "calibrated"\nmetric = "ece15_ew"\nof = "calibration"\n'
        'against = "reference"\nmax_increase_absolute = 0.01\n')


class TestGate:
    def verdict(self, kind, before, after):
        key = Pass("mine")
        mine, theirs = predictions(after, kind), predictions(before, kind)
        reference = builders.run("ort-fp32", evaluations=calibration.score({key: theirs}, None))
        run = builders.run("ort-int8", reference=reference, evaluations=calibration.score({key: mine}, {key: theirs}))
        judged = gate.judge(policy.parse(RULE, "p.toml"), (run, None), reference=(reference, None))
        return judged.verdicts[0], gate.exit_code([judged])

    def test_an_overconfident_int8_fails_although_a_second_softmax_would_hide_it(self):
        sharp = special.softmax(np.log(TRUE) * 4.0, axis=1)
        right = sharp.argmax(axis=1) == TARGETS
        twice = [metrics.ece_equal_width(special.softmax(one, axis=1).max(axis=1), right) for one in (TRUE, sharp)]
        assert twice[1] < twice[0]
        verdict, code = self.verdict("probabilities", TRUE, sharp)
        assert ("fail", 1) == (verdict.status, code)

    def test_confidences_that_do_not_exist_cannot_be_judged(self):
        verdict, code = self.verdict("sigmoid_scores", special.expit(np.log(TRUE)), special.expit(np.log(TRUE) * 2))
        assert ("error", 3) == (verdict.status, code)


@dataclass(frozen=True)
class Case:
    """A folder with labelled images whose labels are drawn from the model's own probabilities, and what they are."""

    root: object
    truth: np.ndarray
    targets: np.ndarray

    def profile(self, built, *more, data="val"):
        onnx.save(built, str(self.root / "m.onnx"))
        return cli("profile", "m.onnx", "--preprocess", "pre.toml", "--data", data, "--budget", "smoke", "--recipe",
                   "ort-fp32", "--out", "out", "--force", *more, cwd=self.root)

    def run(self):
        return record.load(self.root / "out" / "m.onnx--ort-fp32--onnxruntime")


@pytest.fixture
def case(tmp_path):
    seen = pictures(240, 9)
    z = (seen / 255).mean(axis=(1, 2)) @ WEIGHT + BIAS
    truth = special.softmax(z, axis=1)
    generator = np.random.default_rng(0)
    targets = np.array([generator.choice(K, p=row) for row in truth])
    for place, (pixels, target) in enumerate(zip(seen, targets, strict=True)):
        folder = tmp_path / "val" / CLASSES[target]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{place:04d}.png")
    (tmp_path / "pre.toml").write_text(f'size_px = [{SIZE}, {SIZE}]\nmean = [0.0, 0.0, 0.0]\nstd = [1.0, 1.0, 1.0]\n'
                                       'resize = "none"\n')
    return Case(tmp_path, truth, targets)


class TestProfile:
    def test_probabilities_in_percent_are_scored_as_the_model_says(self, case):
        done = case.profile(model([SOFTMAX, oh.make_node("Mul", ["p", "hundred"], ["out"])], (("out", ["n", K]),),
                                  more=[number("hundred", 100.0)]), "--properties", "accuracy,calibration")
        assert 0 == done.returncode, done.stderr
        run = case.run()
        assert ("out", "probabilities") == (run.artifact.scored.name, run.artifact.scored.kind)
        nll = -np.log(case.truth[np.arange(240), case.targets]).mean()
        assert nll == pytest.approx(run.score("nll").value, rel=0.02)
        expected = metrics.ece_equal_width(case.truth.max(axis=1), case.truth.argmax(axis=1) == case.targets)
        assert expected == pytest.approx(run.score("ece15_ew").value, abs=0.03)
        assert 1 == done.stderr.count("scored in m.onnx")

    def test_images_without_an_answer_are_named_and_counted(self, case):
        nodes = [oh.make_node("ReduceMean", ["image"], ["mean"], axes=[1, 2, 3]),
                 oh.make_node("Div", ["mean", "mean"], ["unit"]),
                 oh.make_node("Reshape", ["unit", "form"], ["column"]), oh.make_node("Mul", ["z", "column"], ["out"])]
        for name in ("black", "dark"):
            Image.new("RGB", (SIZE, SIZE)).save(case.root / "val" / "ash" / f"z-{name}.png")
        done = case.profile(model(nodes, (("out", ["n", K]),), more=[whole("form", -1, 1)]), "--properties", "accuracy")
        assert 3 == done.returncode
        assert "2 of 242 images" in done.stderr
        assert "ash/z-black.png, ash/z-dark.png" in done.stderr
        assert "16-bit" not in done.stderr

    def test_a_feature_map_called_features_is_refused_before_anything_is_timed(self, case):
        built = model([oh.make_node("Identity", ["z"], ["logits"]), oh.make_node("Relu", ["image"], ["features"])],
                      (("logits", ["n", K]), ("features", ["n", 3, SIZE, SIZE])))
        done = case.profile(built, "--properties", "transfer")
        assert 3 == done.returncode
        assert "(N, D)" in done.stderr
        assert not (case.root / "out" / "m.onnx--ort-fp32--onnxruntime").exists()
