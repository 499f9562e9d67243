"""Two runs side by side: what is refused, paired changes against plain counting, and which images flipped."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from edgebench import compare, evaluate, latency, properties, stats
from edgebench.errors import InvalidInput, UsageError
from edgebench.properties import Pass, Predictions, accuracy
from edgebench.reading import Difference
from edgebench.record import DatasetIdentity, PassRecord, Score, dump
from edgebench.tails import Ends
from edgebench.timing_types import ServerSearch, TimingPlan
from tests import builders
from tests import observations as ob

IMAGES = 300
DATA = DatasetIdentity(name="inspection", source="demo", images=IMAGES, classes=3, digest="e" * 64)


def logits(seed: int, flipped: int = 0) -> np.ndarray:
    """Return logits of a model that is right on most images; the first `flipped` are answered otherwise."""
    generator = np.random.default_rng(seed)
    found = generator.normal(0, 1, (IMAGES, 3)).astype(np.float32)
    found[np.arange(IMAGES), np.arange(IMAGES) % 3] += 3.0
    found[:flipped] = np.roll(found[:flipped], 1, axis=1)
    return found


def stored(folder, values: np.ndarray, recipe: str = "ort-fp32", **changes):
    """Write a run with these logits as its predictions, and return it with its folder."""
    key = Pass("inspection")
    found = Predictions(dataset=DATA, logits=values, targets=np.arange(IMAGES) % 3,
                        ids=np.array([f"test/{k:04d}.png" for k in range(IMAGES)]))
    run = builders.run(recipe, evaluations=accuracy.score({key: found}, None), latency_s=timings(0.011))
    run = replace(run, passes=(PassRecord(dataset=DATA, condition="clean", preset="native"),), **changes)
    evaluate.save_predictions(folder / key.file, [(values, None)], targets=found.targets, ids=found.ids.tolist(),
                              dataset=DATA, artifact_digest=run.artifact.digest)
    dump(run, folder / "run.json")
    return run, folder


def timings(median: float) -> list[float]:
    """Return latencies a fifth of the median wide, in no order."""
    return (median * np.random.default_rng(3).permutation(np.linspace(0.91, 1.09, 400))).tolist()


def wave(generator: np.random.Generator, n: int = 1000) -> list[float]:
    """Return latencies around 10 ms whose neighbours correlate by 0.9."""
    noise = [float(generator.normal())]
    for step in generator.normal(0, math.sqrt(1 - 0.9**2), n - 1):
        noise.append(0.9 * noise[-1] + step)
    return (0.01 * np.exp(0.2 * np.array(noise))).tolist()


def with_stored_interval(run, latency_s: list[float]):
    """Return the run with these timings, and the interval of their median as version 0.1 stored it."""
    trace = builders.single_stream(latency_s)
    low, high = stats.quantile_interval(latency_s, 0.5)
    return replace(run, traces=(trace,), performance=tuple(
        replace(score, low=low, high=high) for score in latency.scores(trace) if score.name == "latency_p50"))


@pytest.fixture
def pair(tmp_path):
    return stored(tmp_path / "a", logits(0)), stored(tmp_path / "b", logits(0, 12), "ort-int8")


def test_a_reference_is_read_once_for_all_that_are_compared_with_it(pair, monkeypatch):
    (run, folder), (other, elsewhere) = pair
    read = []
    whole = evaluate.load_predictions
    monkeypatch.setattr(evaluate, "load_predictions", lambda path, *given: read.append(path) or whole(path, *given))
    shelf = evaluate.Shelf()
    first, again = (shelf.load(folder, run.passes, run.artifact.digest) for _ in range(2))
    assert 1 == len(read)
    assert [id(one) for one in first.values()] == [id(one) for one in again.values()]
    (of_other,) = shelf.load(elsewhere, other.passes, other.artifact.digest).values()
    assert logits(0, 12).tolist() == of_other.logits.tolist()
    assert {} == shelf.load(elsewhere, (), other.artifact.digest)


class TestRefusing:
    @pytest.mark.parametrize(("change", "words"), [
        (lambda run: replace(run, device=replace(run.device, id="jetson")), "device: cpu against jetson"),
        (lambda run: replace(run, environment=replace(run.environment, cpu="Other CPU")),
         "cpu: AMD Ryzen Embedded V3C18I against Other CPU"),
        (lambda run: replace(run, environment=replace(run.environment, governor=None)), "governor: schedutil against unknown"),
        (lambda run: replace(run, settings=replace(run.settings, threads=1)), "threads: 4 against 1"),
        (lambda run: replace(run, traces=tuple(replace(one, batch=8) for one in run.traces)), r"batch \(single-stream\): 1 against 8"),
        (lambda run: replace(run, traces=tuple(replace(one, boundary="compute") for one in run.traces)),
         r"boundary \(single-stream\): host_to_host against compute"),
        (lambda run: replace(run, traces=(builders.offline((0.1,)),)), "scenario: single-stream against offline"),
        (lambda run: replace(run, evaluations=tuple(replace(one, dataset=replace(one.dataset, digest="f" * 64))
                                                    for one in run.evaluations)),
         r"dataset \(inspection\): 300 images, digest eeeeeeeeeeee against 300 images, digest ffffffffffff"),
        (lambda run: replace(run, evaluations=tuple(replace(one, preset="paper") for one in run.evaluations)),
         r"preset \(accuracy on inspection\): native against paper"),
        (lambda run: replace(run, performance=tuple(replace(one, method_id="by-hand") for one in run.performance[:1])),
         r"method \(latency_p50\): 'order-statistic' against 'by-hand'"),
        (lambda run: replace(run, artifact=replace(run.artifact, classes=replace(run.artifact.classes, ids=("a", "b", "c")))),
         r"classes: 3 classes, digest \w{12} against 3 classes, digest \w{12}"),
    ])
    def test_what_is_not_comparable_is_refused_with_both_values(self, pair, change, words):
        (one, folder), (two, other) = pair
        with pytest.raises(InvalidInput, match=rf"are not comparable: .*{words}") as caught:
            compare.compare((one, folder), (change(two), other))
        assert "--allow" in caught.value.hint

    def test_free_clocks_and_another_governor_of_the_gpu_are_refused(self, pair):
        (one, folder), (two, other) = pair
        free, pinned = (replace(run, environment=replace(run.environment, gpu_governor=governor, clocks_pinned={"gpu": fixed}))
                        for run, governor, fixed in ((one, "nvhost_podgov", False), (two, "performance", True)))
        with pytest.raises(InvalidInput, match=r"GPU governor: nvhost_podgov against performance; clocks \(gpu\): not pinned against pinned"):
            compare.compare((free, folder), (pinned, other))
        assert compare.compare((free, folder), (pinned, other), allow=("GPU governor", "clocks"))
        assert compare.compare((one, folder), (pinned, other)), "older runs do not tell"

    def test_a_run_that_stopped_early_is_compared_on_the_images_that_it_saw(self, pair):
        (run, folder), other = pair
        key, short = Pass("inspection"), replace(run.passes[0].dataset, images=100, digest="5" * 64)
        known = properties.load_predictions(folder / key.file, run.passes[0].dataset, run.artifact.digest)
        evaluate.save_predictions(folder / key.file, [(known.logits[:100], None)], targets=known.targets[:100],
                                  ids=known.ids[:100].tolist(), dataset=short, artifact_digest=run.artifact.digest)
        stopped = replace(
            run, passes=tuple(replace(one, dataset=short, part_of=one.dataset) for one in run.passes),
            evaluations=tuple(replace(one, dataset=short) for one in run.evaluations)), folder
        for first, second in ((stopped, other), (other, stopped)):
            assert 100 == compare.compare(first, second).flips[0].total.images

    def test_every_difference_is_named_at_once(self, pair):
        (one, folder), (two, other) = pair
        changed = replace(two, settings=replace(two.settings, threads=1), device=replace(two.device, id="jetson"))
        with pytest.raises(InvalidInput, match="device: cpu against jetson; threads: 4 against 1"):
            compare.compare((one, folder), (changed, other))

    def test_exceptions_are_let_pass_by_name_and_recorded(self, pair):
        (one, folder), (two, other) = pair
        changed = replace(two, settings=replace(two.settings, threads=1))
        found = compare.compare((one, folder), (changed, other), allow=["threads"])
        assert (Difference(what="threads", where="", first="4", second="1"),) == found.allowed

    def test_an_unknown_exception_is_refused_with_the_nearest(self, pair):
        with pytest.raises(UsageError, match="unknown field 'thread' to allow; did you mean 'threads'"):
            compare.compare(*pair, allow=["thread"])

    def test_other_images_are_not_paired_even_where_allowed(self, pair):
        (one, folder), (two, other) = pair
        changed = replace(
            two, passes=tuple(replace(p, dataset=replace(p.dataset, digest="f" * 64)) for p in two.passes),
            evaluations=tuple(replace(e, dataset=replace(e.dataset, digest="f" * 64)) for e in two.evaluations))
        found = compare.compare((one, folder), (changed, other), allow=["dataset"])
        assert {"performance"} == {item.of for item in found.items}
        assert () == found.flips


class TestComparing:
    def test_change_of_accuracy_is_counted_image_by_image(self, pair):
        found = compare.compare(*pair)
        (item,) = [one for one in found.items if one.metric == "accuracy_top1"]
        before, after = logits(0).argmax(axis=1), logits(0, 12).argmax(axis=1)
        targets = np.arange(IMAGES) % 3
        expected = (after == targets).mean() - (before == targets).mean()
        assert expected == pytest.approx(item.change)
        assert (before == targets).mean() == pytest.approx(item.first)
        assert item.low < expected < item.high
        assert "worse" == item.outcome
        assert 1 == len([one for one in found.items if one.metric == "artifact_size"])

    def test_flips_are_counted_by_band_and_class_and_images_named(self, pair):
        (flips,) = compare.compare(*pair).flips
        before, after = logits(0), logits(0, 12)
        changed = np.flatnonzero(before.argmax(axis=1) != after.argmax(axis=1))
        assert {f"test/{k:04d}.png" for k in changed} == {one.id for one in flips.changed}
        assert len(changed) == flips.total.changed == sum(one.changed for one in flips.bands)
        assert IMAGES == sum(one.images for one in flips.bands)
        right = before.argmax(axis=1) == np.arange(IMAGES) % 3
        assert int((right & (before.argmax(axis=1) != after.argmax(axis=1))).sum()) == flips.total.negative
        assert flips.total.negative == sum(one.negative for one in flips.classes)
        confidences = [one.first_confidence for one in flips.changed]
        assert confidences == sorted(confidences, reverse=True)
        kinds = {one.id: one.kind for one in flips.changed}
        assert all(kinds[f"test/{k:04d}.png"] == "negative" for k in changed if right[k])

    def test_a_run_against_itself_is_the_same_everywhere(self, pair):
        found = compare.compare(pair[0], pair[0])
        outcomes = {one.metric: one.outcome for one in found.items}
        assert "same" == outcomes["artifact_size"]
        assert set(outcomes.values()) <= {"same", "inconclusive"}
        assert 0 == found.flips[0].total.changed

    def test_a_clear_speed_up_is_better_and_says_by_how_much(self, pair):
        (one, folder), (two, other) = pair
        fast = builders.run("ort-int8", latency_s=timings(0.0055))
        found = compare.compare((one, folder), (replace(two, traces=fast.traces, performance=fast.performance), other))
        (item,) = [one for one in found.items if one.metric == "latency_p50"]
        assert -0.5 == pytest.approx(item.change, abs=0.001)
        assert item.relative
        assert "better" == item.outcome
        assert item.low < item.change < item.high < 0

    def test_equal_runs_whose_timings_follow_each_other_are_not_called_different(self, pair):
        # With intervals that take the timings as independent, as earlier versions stored them, half of such pairs are.
        generator = np.random.default_rng(8)
        (one, folder), (two, other) = pair
        found = [compare.compare((with_stored_interval(one, wave(generator)), folder),
                                 (with_stored_interval(two, wave(generator)), other)) for _ in range(40)]
        medians = [item for comparison in found for item in comparison.items if item.metric == "latency_p50"]
        assert 40 == len(medians)
        assert sum(item.outcome in {"better", "worse"} for item in medians) <= 5

    def test_intervals_of_different_levels_are_brought_to_one(self, pair):
        (one, folder), (two, other) = pair
        stored = Score(name="throughput_offline", value=100.0, low=98.0, high=102.0, unit="images/s", better="higher", n=100,
                       method="a batch over its mean time")
        wider = replace(stored, confidence=0.99, low=100 - 2 * 2.5758 / 1.95996, high=100 + 2 * 2.5758 / 1.95996)
        ends = []
        for score in (stored, wider):
            found = compare.compare((replace(one, performance=(score,)), folder), (replace(two, performance=(stored,)), other))
            ends.append(next((item.low, item.high) for item in found.items if item.metric == "throughput_offline"))
        assert ends[0] == pytest.approx(ends[1], abs=1e-4)

    def test_damaged_predictions_are_an_error(self, pair):
        (one, folder), second = pair
        file = folder / Pass("inspection").file
        file.write_bytes(file.read_bytes()[:2000])
        with pytest.raises(InvalidInput, match="cannot read the predictions"):
            compare.compare((one, folder), second)


class TestScenarios:
    def filmed(self, **more):
        camera = ob.query("camera", [0.01] * 100, **{"rate_hz": 30.0, "limit_s": 1 / 30, "policy": "newest", **more})
        return ob.watched(builders.run(), queries=(camera,))

    @pytest.mark.parametrize(("more", "told"), [
        ({"rate_hz": 15.0}, "frame rate (camera): 30.0 against 15.0"), ({"policy": "queue"}, "drop (camera): newest against queue"),
        ({"limit_s": 0.05}, "deadline (camera): 33.3333 ms against 50 ms"),
        ({"preprocessing": "included"}, "preprocessing (camera): excluded against included")])
    def test_cameras_that_were_issued_otherwise_are_not_comparable(self, more, told):
        assert told == compare.timing_differences(self.filmed(), self.filmed(**more))[0].words
        assert () == compare.timing_differences(self.filmed(), self.filmed())

    def served(self, bound_s: float, asked_s: float | None):
        search = ServerSearch(rate_hz=50.0, reason="confirmed", bound_s=bound_s, q=0.99, confidence=0.99, lowest_failing_hz=60.0,
                              trials=())
        run = ob.watched(builders.run(), server=search)
        return replace(run, settings=replace(run.settings, timing=TimingPlan(scenarios=("server",), latency_bound_s=asked_s)))

    def differences(self, one, two):
        return [found.words for found in (*compare.timing_differences(one, two), *compare.data_differences(one, two))]

    def test_bounds_that_follow_from_each_runs_own_median_are_no_difference(self):
        assert [] == self.differences(self.served(0.101, None), self.served(0.102, None))

    def test_bounds_that_were_asked_for_are(self):
        assert ["latency bound (server): 100 ms against 50 ms"] == self.differences(self.served(0.1, 0.1), self.served(0.05, 0.05))
        assert ["latency bound (server): 100 ms against by the median latency"] == self.differences(
            self.served(0.1, 0.1), self.served(0.1, None))


class TestOutcome:
    @pytest.mark.parametrize(("ends", "better", "expected"), [
        ((0.001, -0.004, 0.005), "higher", "same"), ((0.02, 0.01, 0.03), "higher", "better"),
        ((0.02, 0.01, 0.03), "lower", "worse"), ((-0.02, -0.03, -0.001), "higher", "worse"),
        ((0.02, -0.01, 0.05), "higher", "inconclusive"), ((0.02, 0.01, 0.03), None, "changed"),
        ((0.003, 0.001, 0.004), "lower", "same")])
    def test_follows_the_interval(self, ends, better, expected):
        assert expected == compare.outcome(Ends(*ends), better, 0.005)

    def test_without_an_interval_nothing_is_said(self):
        assert "inconclusive" == compare.outcome(None, "lower", 0.01)


class TestNothingIsLeftOut:
    def scored(self, folder, values: dict[str, tuple[float | None, str]], recipe: str = "ort-fp32"):
        """Return a stored run with these further scores of performance: name to value and unit."""
        run, place = stored(folder, logits(0), recipe)
        more = tuple(Score(name=name, value=value, unit=unit, better="lower", n=100, method="m",
                           low=None if value is None else value - 0.001 if value < 0 else max(0.0, value - 0.001), high=None if value is None else value + 0.001,
                           reason="no sensor" if value is None else None) for name, (value, unit) in values.items())
        return replace(run, performance=(*run.performance, *more)), place

    def items(self, tmp_path, before, after):
        found = compare.compare(self.scored(tmp_path / "a", before), self.scored(tmp_path / "b", after))
        return {item.metric: item for item in found.items}

    @pytest.mark.parametrize(("name", "unit", "first", "second", "outcome"), [
        ("camera_miss_rate", "fraction", 0.0, 0.3, "worse"), ("camera_miss_rate", "fraction", 0.3, 0.0, "better"),
        ("camera_jitter", "s", 0.0, 0.004, "worse"), ("energy_per_inference_net", "J", -0.01, 0.02, "worse"),
        ("build_disagreement", "fraction", 0.0, 0.05, "worse")])
    def test_what_was_zero_or_below_is_compared_by_difference(self, tmp_path, name, unit, first, second, outcome):
        item = self.items(tmp_path, {name: (first, unit)}, {name: (second, unit)})[name]
        assert (False, first, second) == (item.relative, item.first, item.second)
        assert second - first == pytest.approx(item.change)
        assert (outcome, True) == (item.outcome, item.low < item.change < item.high)

    @pytest.mark.parametrize(("before", "after"), [
        ({"energy_per_inference": (0.2, "J")}, {"energy_per_inference": (None, "J")}),
        ({"energy_per_inference": (None, "J")}, {"energy_per_inference": (0.2, "J")}),
        ({"server_latency_p99": (0.2, "s")}, {}), ({}, {"server_latency_p99": (0.2, "s")})])
    def test_what_only_one_run_has_is_listed_with_the_reason(self, tmp_path, before, after):
        items = self.items(tmp_path, before, after)
        item = items[next(iter({**before, **after}))]
        assert ("changed", None, 1) == (item.outcome, item.change, sum(one is not None for one in (item.first, item.second)))
        assert item.reason

    def test_a_share_changes_in_points_also_where_it_was_above_zero(self, tmp_path):
        item = self.items(tmp_path, {"camera_miss_rate": (0.01, "fraction")}, {"camera_miss_rate": (0.02, "fraction")})["camera_miss_rate"]
        assert (False, "worse") == (item.relative, item.outcome)
        assert 0.01 == pytest.approx(item.change)

    def test_a_score_of_quality_that_vanished_is_listed(self, pair):
        (one, folder), (two, other) = pair
        lost = replace(two, evaluations=tuple(replace(each, scores=tuple(
            replace(score, value=None, low=None, high=None, reason="lost") if score.name == "accuracy_top1" else score
            for score in each.scores)) for each in two.evaluations))
        found = [item for item in compare.compare((one, folder), (lost, other)).items
                 if item.metric == "accuracy_top1" and item.outcome == "changed"]
        assert [(None, True)] == [(item.second, "lost" in item.reason) for item in found]

    def test_an_evaluation_of_one_run_alone_is_named(self, pair):
        (one, folder), (two, other) = pair
        more = replace(two.evaluations[0], property="robustness", condition="fog:3")
        found = compare.compare((one, folder), (replace(two, evaluations=(*two.evaluations, more)), other))
        assert ("robustness on inspection, fog:3: only in the second run",) == found.left_out


class TestScenarioLists:
    def test_runs_are_compared_in_what_both_were_timed_in(self, pair):
        (one, folder), (two, other) = pair
        both = replace(two, traces=(*two.traces, builders.offline([0.1] * 30)))
        assert () == compare.timing_differences(one, both)
        assert any(item.metric == "latency_p50" and item.change is not None
                   for item in compare.compare((one, folder), (both, other)).items)

    def test_another_scenarios_circumstances_do_not_matter_for_a_metric(self):
        filmed = [ob.watched(builders.run(), queries=(ob.query("camera", [0.01] * 100, rate_hz=rate, limit_s=1 / 30, policy="newest"),))
                  for rate in (30.0, 15.0)]
        assert () == compare.timing_differences(*filmed, metrics={"latency_p99"})
        for metric in ("camera_miss_rate", "camera_latency_p99"):
            assert ["frame rate"] == [one.what for one in compare.timing_differences(*filmed, metrics={metric})]

    def test_runs_that_share_no_scenario_are_refused_for_timings_alone(self):
        one, two = builders.run(), builders.run(latency_s=None, batch_s=[0.1] * 30)
        assert ["scenario"] == [each.what for each in compare.timing_differences(one, two, metrics={"latency_p50"})]
        assert () == compare.timing_differences(one, two, metrics={"artifact_size"})

    def test_cpu_and_gpu_are_told_apart(self):
        assert ["processor: cpu against gpu"] == [
            one.words for one in compare.timing_differences(builders.run("ort-fp32"), builders.run("ort-cuda-fp32"))
            if one.what == "processor"]
        for one, two in (("ort-fp32", "openvino-fp32"), ("ort-cuda-fp32", "tensorrt-fp32"), ("ort-cuda-fp32", "ort-trt-int8")):
            assert builders.recipe(one).processor == builders.recipe(two).processor
