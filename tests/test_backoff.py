"""Accuracy-aware back-off: finds the layer that does the harm, judges by bounds, goes on after an interruption."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx.helper as oh
import onnxruntime
import pytest
import scipy.stats
from onnx.numpy_helper import from_array
from PIL import Image

from edgebench import backends, backoff, catalog, export_job, sources, stats
from edgebench.datasets import open_images
from edgebench.errors import CannotMeasure, InvalidInput, UsageError
from edgebench.export import Exporter, Wanted
from edgebench.recipe import Build
from edgebench.record import ClassMap, Preprocess
from tests.commands import cli

CLASSES = ("a", "b", "c", "d")
PREPROCESS = Preprocess(size_px=(16, 16), mean=(0.5,) * 3, std=(0.5,) * 3, resize="none")
IMAGES = 240


COLOURS = np.array([[220, 40, 40], [40, 220, 40], [40, 40, 220], [200, 200, 40]])


def pixels(number: int) -> np.ndarray:
    """Return picture `number` (16, 16, 3): noise around the colour of its class."""
    noise = np.random.default_rng(number).normal(0, 40, (16, 16, 3))
    return np.clip(COLOURS[number % 4] + noise, 0, 255).astype(np.uint8)


def network(path: Path) -> Path:
    """Write a small network that tells the colours apart, with a trap in its second convolution.

    That has weights of 100 for a channel that is always 0. They change no answer, but with one range for the whole
    tensor all other weights of the layer round to nothing.
    """
    generator = np.random.default_rng(3)
    first = generator.standard_normal((8, 3, 3, 3)).astype(np.float32) * 0.5
    second = generator.standard_normal((8, 8, 3, 3)).astype(np.float32) * 0.2
    first[7] = 0
    second[0, 7] = 100
    nodes = [oh.make_node("Conv", ["image", "w1"], ["c1"], "first", pads=[1] * 4), oh.make_node("Relu", ["c1"], ["r1"], "relu1"),
             oh.make_node("Conv", ["r1", "w2"], ["c2"], "second", pads=[1] * 4), oh.make_node("Relu", ["c2"], ["r2"], "relu2"),
             oh.make_node("GlobalAveragePool", ["r2"], ["p"], "pool"), oh.make_node("Flatten", ["p"], ["f"], "flat"),
             oh.make_node("Gemm", ["f", "w3", "b3"], ["logits"], "last", transB=1)]

    def save(weight: np.ndarray, bias: np.ndarray, output: str, width: int) -> None:
        graph = oh.make_graph(
            nodes, "small", [oh.make_tensor_value_info("image", onnx.TensorProto.FLOAT, ["batch", 3, 16, 16])],
            [oh.make_tensor_value_info(output, onnx.TensorProto.FLOAT, ["batch", width])],
            [from_array(value.astype(np.float32), name) for name, value in
             (("w1", first), ("w2", second), ("w3", weight), ("b3", bias))])
        onnx.save(oh.make_model(graph, opset_imports=[oh.make_opsetid("", 20)], ir_version=10), str(path))

    save(np.zeros((4, 8)), np.zeros(4), "f", 8)
    images = np.stack([(pixels(k) / 255 - 0.5) / 0.5 for k in range(1000, 1080)]).transpose(0, 3, 1, 2).astype(np.float32)
    features = onnxruntime.InferenceSession(str(path)).run(["f"], {"image": images})[0]
    # Ridge regression: small weights leave room for the rounding of INT8.
    known = np.c_[features, np.ones(80)]
    solved = np.linalg.solve(known.T @ known + np.eye(9), known.T @ (np.eye(4)[np.arange(80) % 4] * 10))
    save(solved[:-1].T, solved[-1], "logits", 4)
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return network(tmp_path_factory.mktemp("model") / "small.onnx")


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("labelled")
    for number in range(IMAGES):
        folder = root / CLASSES[number % 4]
        folder.mkdir(exist_ok=True)
        Image.fromarray(pixels(number)).save(folder / f"{number:03d}.png")
    return root


@pytest.fixture(scope="module")
def source(model: Path) -> sources.Source:
    return sources.open_source(str(model), classes=ClassMap(ids=CLASSES, names=CLASSES), preprocess=PREPROCESS)


def per_tensor(**changed):
    recipe = catalog.recipe("ort-int8")
    assert recipe.quantization is not None
    return replace(recipe, id="naive", quantization=replace(recipe.quantization, per_channel=False, images=40, **changed))


def find(source, labelled: Path, out: Path, margin: float = 0.05, keep=("flips=0.05",), trials: int = 4, recipe=None):
    recipe = recipe or per_tensor()
    images = open_images(str(labelled))
    with Exporter(source, out, Wanted(calibration=images)) as exporter:
        return backoff.search(source, recipe, exporter, out, images,
                              backoff.Search(margins=backoff.margins(margin, keep), max_trials=trials))


@pytest.fixture(scope="module")
def found(source, labelled, tmp_path_factory):
    out = tmp_path_factory.mktemp("found")
    return find(source, labelled, out), out


class TestTheSearch:
    def test_the_naive_recipe_is_caught_and_the_guilty_layer_returned_to_float(self, found):
        outcome, _ = found
        assert outcome.trials[0].keep_float == ()
        assert outcome.trials[0].excess > 0.05
        assert "holds" == outcome.verdict
        assert ("second",) == outcome.best.keep_float
        assert ("second",) == outcome.recipe.quantization.keep_float

    def test_images_that_chose_ranges_do_not_judge(self, found):
        assert IMAGES - 40 == found[0].images

    def test_everything_tried_stands_in_the_log(self, found):
        outcome, out = found
        lines = [json.loads(line) for line in (out / "small.onnx--naive.search.jsonl").read_text().splitlines()]
        assert [list(one.keep_float) for one in outcome.trials] == [line["keep_float"] for line in lines if "measured" in line]
        harm = {line["layer"]: line["kl_nat"] for line in lines if "layer" in line}
        assert {"first", "second", "last"} == set(harm)
        assert "second" == max(harm, key=harm.__getitem__)

    def test_a_search_goes_on_from_its_log(self, found, source, labelled, monkeypatch):
        outcome, out = found
        monkeypatch.setattr(Exporter, "build", lambda *_: pytest.fail("a candidate was built again"))
        assert outcome == find(source, labelled, out)

    def test_a_log_line_cut_short_is_measured_again(self, found, source, labelled, tmp_path):
        outcome, out = found
        log = (out / "small.onnx--naive.search.jsonl").read_text()
        (tmp_path / "small.onnx--naive.search.jsonl").write_text(log[: len(log) - 40])
        assert outcome.best == find(source, labelled, tmp_path).best

    def test_another_margin_is_another_search(self, found, source, labelled, tmp_path):
        _, out = found
        (tmp_path / "small.onnx--naive.search.jsonl").write_text((out / "small.onnx--naive.search.jsonl").read_text())
        loose = find(source, labelled, tmp_path, margin=0.9, keep=())
        assert ("holds", 1, ()) == (loose.verdict, len(loose.trials), loose.best.keep_float)

    def test_the_best_candidate_is_kept_where_none_holds(self, source, labelled, tmp_path):
        outcome = find(source, labelled, tmp_path, margin=0.0005, keep=(), trials=2)
        assert 2 == len(outcome.trials)
        assert outcome.verdict in ("inconclusive", "fails")
        assert outcome.best.excess == min(one.excess for one in outcome.trials)

    def test_what_could_settle_it_is_told(self, found):
        outcome, _ = found
        tight = replace(outcome.best, measured=tuple(replace(one, most=one.loss + (one.bound - one.loss) / 2)
                                                     for one in outcome.best.measured))
        assert 4 * outcome.images == pytest.approx(backoff.images_needed(tight, outcome.images), abs=1)
        hopeless = replace(tight, measured=tuple(replace(one, most=one.loss) for one in tight.measured))
        assert backoff.images_needed(hopeless, outcome.images) is None


class Scripted:
    """Builds and answers by script: candidates are told apart by the layers that they keep in float."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.built: list[tuple[str, ...]] = []
        """What each candidate kept in float."""
        self.fails: dict[tuple[str, ...], Exception] = {}
        self.wrong: dict[tuple[str, ...], float] = {}
        """Share of the answers that are wrong; NaN: all are NaN."""
        self.shown: list[np.ndarray] = []
        """Pixels that candidates were ranked on."""
        plain = backoff.Judge.answers

        def answers(judge, entry, recipe, pixels=None):
            if recipe is backoff.PLAIN:
                return plain(judge, entry, recipe, pixels)
            if pixels is not None:
                self.shown.append(pixels)
            logits = plain(judge, entry, backoff.PLAIN, pixels)
            share = self.wrong.get(self.built[-1], 0.0)
            if np.isnan(share):
                return logits * np.nan
            logits[:round(share * len(logits))] *= -1
            return logits

        def build(_, candidate, base, folder):
            kept = candidate.quantization.keep_float
            self.built.append(kept)
            if kept in self.fails:
                raise self.fails[kept]
            return shutil.copy(base, folder)

        monkeypatch.setattr(Exporter, "build", build)
        monkeypatch.setattr(backoff.Judge, "answers", answers)


ALONE = {name: tuple(one for one in ("first", "relu1", "second", "relu2", "pool", "flat", "last") if one != name)
         for name in ("first", "second", "last")}


@pytest.fixture
def scripted(monkeypatch) -> Scripted:
    """By default every candidate loses everything, and the second layer does the most harm alone, then the last."""
    made = Scripted(monkeypatch)
    made.wrong = {(): 1.0, ("second",): 1.0, ("second", "last"): 1.0,
                  ALONE["first"]: 0.0, ALONE["second"]: 0.8, ALONE["last"]: 0.4}
    return made


class TestCandidates:
    def test_all_layers_in_float_is_none(self, scripted, source, labelled, tmp_path):
        outcome = find(source, labelled, tmp_path, trials=8)
        assert [(), ("second",), ("second", "last")] == [one.keep_float for one in outcome.trials]
        assert ("fails", 3) == (outcome.verdict, outcome.layers)

    @pytest.mark.parametrize("failure", [CannotMeasure("stopped after its time limit"), InvalidInput("no kernel"), None])
    def test_one_that_fails_is_logged_with_its_reason_and_passed_over(self, failure, scripted, source, labelled, tmp_path):
        scripted.wrong |= {("second",): np.nan, ("second", "last"): 0.0}
        if failure is not None:
            scripted.fails[("second",)] = failure
        outcome = find(source, labelled, tmp_path, trials=8)
        assert ("holds", ("second", "last")) == (outcome.verdict, outcome.best.keep_float)
        reason = failure.message if failure else "naive gives NaN or infinity with 1 layers in float"
        assert [None, reason, None] == [one.failed for one in outcome.trials]
        lines = [json.loads(line) for line in (tmp_path / "small.onnx--naive.search.jsonl").read_text().splitlines()]
        assert [reason] == [line["failed"] for line in lines if line.get("keep_float") == ["second"]]
        assert reason in [one["failed"] for one in backoff.summary(outcome)["trials"]]

    def test_the_best_that_was_judged_is_kept_where_those_after_it_fail(self, scripted, source, labelled, tmp_path):
        scripted.fails = dict.fromkeys((("second",), ("second", "last")), CannotMeasure("out of memory"))
        scripted.wrong[()] = 0.1
        outcome = find(source, labelled, tmp_path)
        assert ("fails", ()) == (outcome.verdict, outcome.best.keep_float)
        assert outcome.recipe.quantization.keep_float == ()

    def test_a_layer_that_fails_alone_is_the_first_in_float(self, scripted, source, labelled, tmp_path):
        scripted.wrong |= {ALONE["first"]: np.nan, (): np.nan, ("first",): 0.0}
        assert ("first",) == find(source, labelled, tmp_path).best.keep_float

    def test_where_none_can_be_built_the_reason_is_the_error(self, scripted, source, labelled, tmp_path, monkeypatch):
        monkeypatch.setattr(backoff, "RANKING_FAILURES", 1)
        scripted.fails = dict.fromkeys(((), ("first",), ("first", "second"), *ALONE.values()), CannotMeasure("disk full"))
        with pytest.raises(CannotMeasure, match="no candidate of naive can be built and judged: disk full"):
            find(source, labelled, tmp_path)
        assert [(), ALONE["first"], ("first",), ("first", "second")] == scripted.built, "all layers were built alone"

    def test_those_that_failed_are_tried_again_and_no_others(self, scripted, source, labelled, tmp_path):
        scripted.fails = {("second",): CannotMeasure("out of memory"), ALONE["first"]: CannotMeasure("out of memory")}
        find(source, labelled, tmp_path)
        scripted.built.clear()
        scripted.fails.clear()
        scripted.wrong[("second",)] = 0.0
        outcome = find(source, labelled, tmp_path)
        assert [ALONE["first"], ("second",)] == scripted.built
        assert ("holds", ("second",)) == (outcome.verdict, outcome.best.keep_float)

    def test_layers_are_ranked_on_the_images_that_chose_the_ranges(self, scripted, source, labelled, tmp_path):
        images = open_images(str(labelled))
        find(source, labelled, tmp_path)
        with Exporter(source, tmp_path, Wanted(calibration=images)) as exporter:
            drawn = np.load(exporter.draw(per_tensor().quantization)[1])
        assert 3 == len(scripted.shown)
        known = {one.tobytes() for one in drawn}
        for pixels_ in scripted.shown:
            assert backoff.RANKING_IMAGES == len({one.tobytes() for one in pixels_} & known)
            assert {drawn[0].tobytes(), drawn[-1].tobytes()} < {one.tobytes() for one in pixels_}


class TestTheLog:
    def again(self, source, labelled, out: Path, scripted) -> int:
        """Return how many candidates the same search builds with that log."""
        scripted.built.clear()
        find(source, labelled, out)
        return len(scripted.built)

    def test_is_of_its_calibration_images(self, scripted, source, labelled, tmp_path):
        judging = open_images(str(labelled))
        calibration = [replace(judging, items=judging.items[start::3]) for start in (0, 1)]
        built = []
        for images in calibration:
            scripted.built.clear()
            with Exporter(source, tmp_path, Wanted(calibration=images)) as exporter:
                # The same images judge both times.
                backoff.search(source, per_tensor(), exporter, tmp_path, replace(judging, items=judging.items[2::3]),
                               backoff.Search(margins=backoff.margins(0.05, ()), max_trials=4))
            built.append(len(scripted.built))
        assert [6, 6] == built

    @pytest.mark.parametrize(("module", "name", "changed"), [
        (backoff, "tools", lambda recipe: {"onnxruntime": "9.9"}),
        (backoff.environment, "processor", lambda *_: ("another CPU", ())),
        (backoff.nvml, "gpus_seen", lambda: ("another GPU",))])
    def test_is_of_its_tools_and_machine(self, module, name, changed, scripted, source, labelled, tmp_path, monkeypatch):
        assert 6 == self.again(source, labelled, tmp_path, scripted)
        assert 0 == self.again(source, labelled, tmp_path, scripted)
        monkeypatch.setattr(module, name, changed)
        assert 6 == self.again(source, labelled, tmp_path, scripted)


class TestTooFewImages:
    def test_are_told_before_anything_is_built(self, scripted, source, labelled, tmp_path):
        told = []
        images = open_images(str(labelled))
        wanted = backoff.Search(margins=backoff.margins(0.005, ("flips=0.02",)), max_trials=8)
        scripted.wrong = {}
        with Exporter(source, tmp_path, Wanted(calibration=images)) as exporter:
            outcome = backoff.search(source, per_tensor(), exporter, tmp_path, images, wanted,
                                     note=lambda text: told.append((text, len(scripted.built))))
        ((text, built),) = told
        assert (0, "inconclusive") == (built, outcome.verdict)
        assert "200 labelled images are too few for a margin of 0.50%" in text
        assert f"{outcome.best.measured[0].bound:.2%}" in text
        assert f"{wanted.images_at_least:,} images" in text

    @pytest.mark.parametrize("trials", [1, 8])
    def test_enough_are_enough_where_nothing_changes(self, trials):
        wanted = backoff.Search(margins=backoff.margins(0.005, ("flips=0.02", "calibration=0.001")), max_trials=trials)
        least = wanted.images_at_least
        bounds = [stats.paired_interval(0, 0, n, 1 - 2 * wanted.alpha)[1] for n in (least, least - 1)]
        assert bounds[0] <= 0.005 < bounds[1]


def test_a_candidate_is_judged_in_batches_that_its_engine_takes(source, labelled, tmp_path, monkeypatch):
    backend, batches = backends.get("onnxruntime"), []
    real = backend.open_session

    def open_session(entry, recipe, *, batch, threads):
        if recipe.build is not None:
            batches.append(batch)
        return real(entry, recipe, batch=batch, threads=threads)

    monkeypatch.setattr(backend, "open_session", open_session)
    images = open_images(str(labelled))
    with Exporter(source, tmp_path, Wanted(calibration=images)) as exporter:
        judge = backoff.Judge(source, exporter.base(20), images, (), exporter.scored(20))
        found = judge.answers(exporter.base(20), replace(per_tensor(), build=Build(batches=(1, 2, 7))))
    assert [7] == batches
    np.testing.assert_allclose(judge.reference, found, atol=1e-4)


def test_a_layer_kept_float_is_not_quantized_by_onnx_runtime_when_it_loads_the_file(source, labelled, tmp_path):
    # Its optimizer quantizes weights behind a DequantizeLinear by itself: with it and without, answers must be alike.
    images = open_images(str(labelled))
    recipe = per_tensor(keep_float=("second",))
    with Exporter(source, tmp_path, Wanted(calibration=images)) as exporter:
        entry = tmp_path / exporter.build(recipe, exporter.base(20), tmp_path)
    inputs = np.stack([(pixels(k) / 255 - 0.5) / 0.5 for k in range(64)]).transpose(0, 3, 1, 2).astype(np.float32)
    plain = onnxruntime.SessionOptions()
    plain.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    optimized, as_written = (onnxruntime.InferenceSession(str(entry), options).run(None, {"image": inputs})[0]
                             for options in (None, plain))
    np.testing.assert_allclose(as_written, optimized, atol=0.15 * np.abs(as_written).max())
    assert (np.arange(64) % 4 == optimized.argmax(1)).all()


class TestJudging:
    def test_bounds_are_those_of_the_named_intervals(self, source, labelled, tmp_path):
        images = open_images(str(labelled))
        with Exporter(source, tmp_path, Wanted(calibration=images)) as exporter:
            judge = backoff.Judge(source, exporter.base(20), images, (), exporter.scored(20))
        logits = judge.reference.copy()
        # Seven answers are wrong now, all of them right before.
        for row in range(7):
            logits[row, judge.targets[row]] = logits[row].min() - 1
        accuracy, flips, disagreement = judge.judge(logits, backoff.margins(0.01, ("flips", "disagreement")), alpha=0.05)
        n = len(judge.targets)
        assert 7 / n == pytest.approx(accuracy.loss)
        wilson = scipy.stats.binomtest(7, n).proportion_ci(0.9, method="wilson")
        assert wilson.high == pytest.approx(flips.bound, abs=1e-9)
        assert flips.bound == pytest.approx(disagreement.bound)
        assert flips.loss < accuracy.bound < 0.1

    def test_calibration_is_kept_where_nothing_changed(self, source, labelled, tmp_path):
        images = open_images(str(labelled))
        with Exporter(source, tmp_path, Wanted(calibration=images)) as exporter:
            judge = backoff.Judge(source, exporter.base(20), images, (), exporter.scored(20))
        _, unchanged = judge.judge(judge.reference, backoff.margins(0.01, ("calibration",)), alpha=0.05)
        assert (0.0, 0.0) == (unchanged.loss, unchanged.bound)
        _, sharper = judge.judge(judge.reference * 0.2, backoff.margins(0.01, ("calibration",)), alpha=0.05)
        assert sharper.loss > 0.05
        assert sharper.bound > sharper.loss


@pytest.mark.parametrize(("drop", "keep", "complaint"), [
    (0.005, ("calibraton",), "did you mean 'calibration'"), (0.005, ("flips=much",), "expected a number after ="),
    (5.0, (), "a fraction between 0 and 1"), (0.01, ("flips=0",), "a fraction between 0 and 1")])
def test_margins_that_are_none_are_refused(drop, keep, complaint):
    with pytest.raises(UsageError, match=complaint):
        backoff.margins(drop, keep)


def test_a_recipe_without_quantization_has_nothing_to_return(source, labelled, tmp_path):
    with pytest.raises(UsageError, match="quantizes nothing"):
        find(source, labelled, tmp_path, recipe=catalog.recipe("ort-fp32"))


def test_all_images_in_the_draw_leave_none_to_judge_by(source, labelled, tmp_path):
    with pytest.raises(InvalidInput, match="none is left to judge by"):
        find(source, labelled, tmp_path, recipe=per_tensor() if IMAGES <= 40 else replace(
            per_tensor(), quantization=replace(per_tensor().quantization, images=IMAGES)))


def test_a_draw_that_fails_leaves_those_of_the_next_recipe_alone(source, labelled, tmp_path, monkeypatch):
    images, recipe = open_images(str(labelled)), per_tensor()

    def fails(*_):
        raise CannotMeasure("out of memory")

    def works(_, recipe, base, folder):
        return shutil.copy(base, folder)

    with Exporter(source, tmp_path, Wanted(calibration=images)) as exporter:
        def compare():
            return export_job.compare_draws(source, recipe, exporter, images, 2, lambda what, done, total: None)

        monkeypatch.setattr(Exporter, "build", fails)
        with pytest.raises(CannotMeasure, match="out of memory"):
            compare()
        monkeypatch.setattr(Exporter, "build", works)
        assert 2 == len(compare().top1)
        assert [] == list(exporter.scratch.glob("draw-*"))


@pytest.fixture
def words(model, labelled, tmp_path) -> list[str | Path]:
    (tmp_path / "classes.txt").write_text("\n".join(CLASSES))
    (tmp_path / "preprocess.toml").write_text('size_px = [16, 16]\nmean = [0.5, 0.5, 0.5]\nstd = [0.5, 0.5, 0.5]\nresize = "none"\n')
    export_job.write_recipe(per_tensor(), tmp_path)
    return ["export", model, "--recipe", tmp_path / "naive.toml", "--classes", tmp_path / "classes.txt", "--preprocess",
            tmp_path / "preprocess.toml", "--calibration-data", labelled, "--out", tmp_path / "out"]


class TestTheCommand:
    def test_the_result_is_a_recipe_that_the_command_takes_again(self, words, tmp_path):
        done = cli(*words, "--max-drop", "0.05", "--keep", "flips,calibration=0.1", "--max-trials", "4")
        assert 0 == done.returncode, done.stderr
        assert "holds" in done.stdout
        assert "1 of 3 layers in float" in done.stdout
        tuned = tmp_path / "out" / "naive-tuned.toml"
        assert ("second",) == catalog.recipe(str(tuned)).quantization.keep_float
        again = cli(*words[:3], tuned, *words[4:])
        assert 0 == again.returncode, again.stderr
        assert (tmp_path / "out" / "small.onnx--naive-tuned" / "manifest.json").exists()

    def test_draws_are_compared_as_json(self, words):
        done = cli(*words, "--draws", "3", "--json")
        assert 0 == done.returncode, done.stderr
        (draws,) = json.loads(done.stdout)["draws"]
        assert 3 == len(draws["top1"]) == len(draws["agreement"])
        assert 1.0 == draws["top1_reference"]
        assert float(np.std(draws["top1"], ddof=1)) == pytest.approx(draws["top1_std"])

    def test_explain_names_every_node_and_builds_nothing(self, words, tmp_path):
        done = cli(*words[:-2], "--explain", "--json")
        assert 0 == done.returncode, done.stderr
        (one,) = json.loads(done.stdout)
        reasons = {node["name"]: node["quantized"] for node in one["plan"]["decisions"]}
        assert all(reasons[name] for name in ("first", "second", "last"))
        assert "convnet" == one["plan"]["family"]
        plain = cli(*words[:-2], "--explain")
        assert "convnet" in plain.stdout
        assert not (tmp_path / "out").exists()

    def test_another_family_is_followed(self, words):
        done = cli(*words[:-2], "--explain", "--json", "--family", "transformer")
        assert "transformer" == json.loads(done.stdout)[0]["plan"]["family"]

    def test_keep_without_a_margin_is_a_usage_error(self, words):
        done = cli(*words, "--keep", "flips")
        assert (2, True) == (done.returncode, "--max-drop" in done.stderr)
