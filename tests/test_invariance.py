"""Transformation invariance: plain lines of the definitions, other libraries, and what must hold for any model."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest
from scipy.integrate import trapezoid
from scipy.spatial.distance import jensenshannon
from scipy.special import softmax
from scipy.stats import binomtest, norm

from edgebench import metrics, properties, stats
from edgebench.errors import InvalidInput
from edgebench.properties import Pass, Predictions, invariance
from edgebench.properties.invariance import retention_weights
from edgebench.record import DatasetIdentity, Evaluation, Score
from edgebench.transforms import levels

N, K = 240, 7
IDS = np.array([f"class/{k:04d}.png" for k in range(N)])
TARGETS = np.random.default_rng(0).integers(0, K, N)
CLEAN = np.random.default_rng(1).normal(0.0, 1.0, (N, K)).astype(np.float32)
CLEAN[np.arange(N), TARGETS] += 2.0
SHIFTS = levels("shift", "native")


def noisy(seed: int, spread: float) -> np.ndarray:
    return (CLEAN + np.random.default_rng(seed).normal(0.0, spread, CLEAN.shape)).astype(np.float32)


def one_pass(logits: np.ndarray, images: Sequence[int] | np.ndarray = range(N), digest: str = "") -> Predictions:
    """Predictions whose row i is of image `images[i]`."""
    chosen = np.asarray(images)
    identity = DatasetIdentity(name="mine", source="folder", images=len(chosen), classes=K,
                               digest=digest or str(abs(hash(tuple(chosen.tolist())))))
    return Predictions(dataset=identity, logits=logits, targets=TARGETS[chosen], ids=IDS[chosen])


def compacted(found: Predictions) -> Predictions:
    return replace(found, logits=np.empty((len(found.ids), 0), np.float32), stored_outcomes=found.outcomes)


def under(conditions: Mapping[str, np.ndarray], preset: str = "native", dataset: str = "mine") -> dict[Pass, Predictions]:
    return {Pass(dataset, condition, preset): one_pass(logits) for condition, logits in conditions.items()}


def scale_passes(seed: int = 10) -> dict[Pass, Predictions]:
    """Clean, and more noise the less is visible."""
    return under({"clean": CLEAN, **{f"scale:{level}": noisy(seed + k, 0.5 * k) for k, level in
                                     enumerate(levels("scale", "native"))}})


def evaluate(mine: Mapping[Pass, Predictions], theirs: Mapping[Pass, Predictions] | None = None,
             family: str = "scale") -> Evaluation:
    found, = [one for one in invariance.score(mine, theirs) if one.condition == family]
    return found


def named(scores: Sequence[Score]) -> dict[str, Score]:
    found = {one.name: one for one in scores}
    assert len(found) == len(scores)
    return found


def value(scores: Sequence[Score], name: str) -> float:
    found = named(scores)[name].value
    assert found is not None
    return found


class TestPasses:
    def test_every_level_of_every_sweep_over_plain_sets_alone(self) -> None:
        found = invariance.passes(["imagenet-val", "cue-conflict", "pug/Worlds", "mine", "imagenet-r"])
        assert {"imagenet-val", "mine"} == {one.dataset for one in found}
        assert {"clean", *(f"scale:{one}" for one in ("1", "0.875", "0.7", "0.5", "0.33")), *(f"shift:{one}" for one in SHIFTS),
                *(f"resolution:{one}" for one in ("112", "160", "224", "288", "336"))} == {
            one.condition for one in found if one.dataset == "mine"}
        assert {"native"} == {one.preset for one in found}
        assert len(set(found)) == len(found) == 2 * 19

    def test_the_paper_preset_has_the_published_levels(self) -> None:
        found = {one.condition for one in invariance.passes(["mine"], "paper")}
        assert {"clean", "scale:1", "scale:3", "shift:0", "shift:100", "resolution:640"} <= found
        assert 16 == len(found)

    def test_each_has_a_file_of_its_own(self) -> None:
        files = {one.file for one in invariance.passes(["mine"])}
        assert 19 == len(files)
        assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-./") for name in files)

    def test_it_is_a_property(self) -> None:
        assert invariance is properties.get("invariance")


class TestMetrics:
    """Each against the definition in plain lines."""

    def test_accuracy_consistency_and_retention(self) -> None:
        mine = scale_passes()
        scores = evaluate(mine).scores
        right = {one: mine[Pass("mine", f"scale:{one}")].logits.argmax(axis=1) for one in levels("scale", "native")}
        base = right.pop("1")
        assert np.mean(base == TARGETS) == value(scores, "accuracy@1")
        for level, predicted in right.items():
            assert np.mean(predicted == TARGETS) == value(scores, f"accuracy@{level}")
            assert np.mean(predicted == base) == value(scores, f"consistency@{level}")
            assert np.sum(predicted == TARGETS) / np.sum(base == TARGETS) == pytest.approx(value(scores, f"retention@{level}"))
        shares = [np.mean(predicted == base) for predicted in right.values()]
        assert np.mean(shares) == pytest.approx(value(scores, "consistency_mean"))
        assert min(shares) == pytest.approx(value(scores, "consistency_worst"))
        assert "0.33" == named(scores)["consistency_worst"].level
        assert np.mean([np.mean(one == TARGETS) for one in right.values()]) == pytest.approx(value(scores, "accuracy_mean"))

    def test_mean_probability_of_the_target(self) -> None:
        mine = scale_passes()
        for level in levels("scale", "native"):
            expected = softmax(mine[Pass("mine", f"scale:{level}")].logits.astype(float), axis=1)[np.arange(N), TARGETS].mean()
            assert expected == pytest.approx(value(evaluate(mine).scores, f"p_true@{level}"), rel=1e-12)

    def test_divergence_is_scipys_distance_squared(self) -> None:
        mine = scale_passes()
        scores = evaluate(mine).scores
        base = softmax(mine[Pass("mine", "scale:1")].logits.astype(float), axis=1)
        for level in levels("scale", "native")[1:]:
            other = softmax(mine[Pass("mine", f"scale:{level}")].logits.astype(float), axis=1)
            assert (jensenshannon(base, other, axis=1) ** 2).mean() == pytest.approx(value(scores, f"js_divergence@{level}"))

    def test_the_untransformed_level_has_only_what_is_not_trivial_there(self) -> None:
        names = set(named(evaluate(scale_passes()).scores))
        assert {"accuracy@1", "p_true@1"} == {one for one in names if one.endswith("@1")}

    def test_area_of_scale_is_the_trapezoid_over_the_visible_share(self) -> None:
        scores = evaluate(scale_passes()).scores
        visible = [1.0, 0.875, 0.7, 0.5, 0.33]
        kept = [1.0, *(value(scores, f"retention@{one}") for one in levels("scale", "native")[1:])]
        expected = abs(trapezoid(kept, visible)) / 0.67
        assert expected == pytest.approx(value(scores, "retention_area"))
        assert "1, 0.875, 0.7, 0.5, 0.33" == named(scores)["retention_area"].facts["levels"]

    def test_area_of_shift_is_over_the_mean_of_the_directions(self) -> None:
        mine = under({"clean": CLEAN, **{f"shift:{one}": noisy(k, 0.3 * k) for k, one in enumerate(SHIFTS)}})
        scores = evaluate(mine, family="shift").scores
        small, large = (np.mean([value(scores, f"retention@{one}") for one in SHIFTS if one.startswith(fraction)])
                        for fraction in ("0.125", "0.25"))
        assert (1 + small) / 4 + (small + large) / 4 == pytest.approx(value(scores, "retention_area"))
        assert "after the mean over the directions of each shift" in named(scores)["retention_area"].method

    def test_weights_of_the_papers_scales(self) -> None:
        assert [0.0625, 0.125, 0.1875, 0.375, 0.25] == pytest.approx(retention_weights([1, 1.25, 1.5, 2, 3]).tolist())

    @pytest.mark.parametrize("seed", range(5))
    def test_weights_are_those_of_scipys_trapezoid_in_any_order(self, seed: int) -> None:
        generator = np.random.default_rng(seed)
        x, y = generator.random(6), generator.random(6)
        order = np.argsort(x)
        expected = trapezoid(y[order], x[order]) / (x.max() - x.min())
        assert expected == pytest.approx(float(retention_weights(x.tolist()) @ y))
        assert 1.0 == pytest.approx(retention_weights([*x, x[0], x[3], x[3]]).sum())

    def test_answers_that_change_both_ways_cost_consistency_but_no_accuracy(self) -> None:
        right = np.eye(K, dtype=np.float32)[TARGETS] * 5
        wrong = np.eye(K, dtype=np.float32)[(TARGETS + 1) % K] * 5
        half = np.arange(N) < N // 2
        mine = under({"clean": np.where(half[:, None], right, wrong),
                      **{f"shift:{one}": np.where(half[:, None], wrong, right) for one in SHIFTS}})
        scores = evaluate(mine, family="shift").scores
        for level in SHIFTS:
            assert (0.5, 1.0, 0.0) == tuple(value(scores, f"{one}@{level}") for one in ("accuracy", "retention", "consistency"))
        assert (1.0, 0.0) == (value(scores, "retention_area"), value(scores, "consistency_mean"))

    def test_a_model_that_ignores_shifts(self) -> None:
        scores = named(evaluate(under({"clean": CLEAN, **{f"shift:{one}": CLEAN for one in SHIFTS}}), family="shift").scores)
        for name in ("retention_area", "consistency_mean", "consistency_worst", *(f"consistency@{one}" for one in SHIFTS),
                     *(f"retention@{one}" for one in SHIFTS)):
            assert 1.0 == pytest.approx(scores[name].value, rel=1e-12)
        assert all(0.0 == scores[f"js_divergence@{one}"].value for one in SHIFTS)
        # Wilson still knows that 240 images are not all; resampling identical answers knows nothing.
        assert scores["consistency@0.25up"].low == pytest.approx(N / (N + 1.959964**2))
        assert (None, "every resample gives the same: resampling cannot bound it") == (
            scores["retention_area"].low, scores["retention_area"].reason)


class TestIntervals:
    def test_shares_have_wilsons(self) -> None:
        for name in ("accuracy@0.5", "consistency@0.5"):
            found = named(evaluate(scale_passes()).scores)[name]
            assert found.value is not None
            interval = binomtest(round(found.value * N), N).proportion_ci(method="wilson")
            assert (interval.low, interval.high) == pytest.approx((found.low, found.high), rel=1e-5)

    def test_retention_has_the_width_that_the_delta_method_says(self) -> None:
        mine = scale_passes()
        found = named(evaluate(mine).scores)["retention@0.5"]
        assert found.value is not None
        assert found.low is not None
        assert found.high is not None
        before, after = ((mine[Pass("mine", f"scale:{one}")].logits.argmax(axis=1) == TARGETS).astype(float) for one in ("1", "0.5"))
        error = np.std(after - found.value * before) / before.mean() / math.sqrt(N)
        assert 2 * norm.ppf(0.975) * error == pytest.approx(found.high - found.low, rel=0.1)
        assert found.low < found.value < found.high

    def test_an_image_stays_together_under_all_levels(self) -> None:
        # Every level misses the same images: the mean is as uncertain as one level, not as four independent ones.
        changed = CLEAN.copy()
        changed[:40] = np.roll(changed[:40], 1, axis=1)
        mine = under({"scale:1": CLEAN, **{f"scale:{one}": changed for one in levels("scale", "native")[1:]}})
        scores = named(evaluate(mine).scores)
        found, single = scores["consistency_mean"], scores["consistency@0.5"]
        assert None not in (found.low, found.high, single.low, single.high)
        assert single.high - single.low == pytest.approx(found.high - found.low, rel=0.1)  # type: ignore[operator]

    def test_the_worst_of_equal_levels_is_not_pushed_down_by_resampling(self) -> None:
        # Each level misses its own 24 images: in any resample one of the eight is hit harder than the sample was.
        mine = under({"clean": CLEAN})
        for k, level in enumerate(SHIFTS):
            changed = CLEAN.copy()
            changed[24 * k:24 * k + 24] = np.roll(changed[24 * k:24 * k + 24], 1, axis=1)
            mine |= under({f"shift:{level}": changed})
        found = named(evaluate(mine, family="shift").scores)["consistency_worst"]
        assert 0.9 == found.value
        assert None not in (found.low, found.high)
        assert 0.9 == pytest.approx((found.low + found.high) / 2, abs=0.008)  # type: ignore[operator]

    def test_every_score_lies_in_its_interval_or_says_why_it_has_none(self) -> None:
        mine = {**scale_passes(), **under({f"shift:{one}": noisy(50 + k, 1.0) for k, one in enumerate(SHIFTS)}),
                **under({f"resolution:{one}": noisy(80 + k, 1.5) for k, one in enumerate(("112", "160"))})}
        theirs = {key: replace(found, logits=found.logits + np.float32(0.4) * noisy(99, 1.0)) for key, found in mine.items()}
        for evaluation in invariance.score(mine, theirs):
            for one in (*evaluation.scores, *evaluation.reference_scores):
                if one.low is None or one.high is None:
                    assert one.reason or one.name.startswith("mcnemar")
                else:
                    assert one.value is not None
                    assert one.low <= one.value <= one.high
                assert N == one.n

    def test_the_same_scores_every_time(self) -> None:
        assert evaluate(scale_passes()) == evaluate(scale_passes())


class TestMissingPasses:
    def test_levels_that_are_not_there_are_left_out(self) -> None:
        mine = under({"clean": CLEAN, "resolution:112": noisy(1, 1.5), "resolution:336": noisy(2, 0.5)})
        found = evaluate(mine, family="resolution")
        assert {"native", "112", "336"} == {one.name.partition("@")[2] for one in found.scores} - {""}
        assert ("predictions/mine--clean--native.npz", "predictions/mine--resolution-112--native.npz",
                "predictions/mine--resolution-336--native.npz") == found.predictions

    def test_the_native_resolution_has_no_place_on_the_curve(self) -> None:
        mine = under({"clean": CLEAN, "resolution:112": noisy(1, 1.5), "resolution:160": noisy(3, 1.0),
                      "resolution:336": noisy(2, 0.5)})
        scores = evaluate(mine, family="resolution").scores
        kept = [value(scores, f"retention@{one}") for one in ("112", "160", "336")]
        assert trapezoid(kept, [112, 160, 336]) / 224 == pytest.approx(value(scores, "retention_area"))
        assert "112, 160, 336" == named(scores)["retention_area"].facts["levels"]

    def test_one_resolution_has_no_area(self) -> None:
        found = named(evaluate(under({"clean": CLEAN, "resolution:112": noisy(1, 1.5)}), family="resolution").scores)
        assert (None, "a single point has no area under it") == (found["retention_area"].value, found["retention_area"].reason)
        assert found["consistency_worst"].value == found["consistency_mean"].value == found["consistency@112"].value

    def test_a_family_without_a_transformed_level_is_left_out(self) -> None:
        assert () == invariance.score(under({"clean": CLEAN}), None)
        assert () == invariance.score(under({"clean": CLEAN, "scale:1": CLEAN}), None)
        assert ["scale"] == [one.condition for one in invariance.score(under({"clean": CLEAN, "scale:0.5": noisy(1, 1)}), None)]
        assert () == invariance.score({}, None)

    @pytest.mark.parametrize(("family", "level"), [("scale", "0.5"), ("shift", "0.25up"), ("resolution", "112")])
    def test_without_the_untransformed_pass_there_is_accuracy_alone(self, family: str, level: str) -> None:
        mine = under({f"{family}:{level}": noisy(1, 1.0)})
        scores = named(evaluate(mine, family=family).scores)
        logits = mine[Pass("mine", f"{family}:{level}")].logits
        assert np.mean(logits.argmax(axis=1) == TARGETS) == scores[f"accuracy@{level}"].value
        assert scores[f"p_true@{level}"].value is not None
        for name in (f"consistency@{level}", f"js_divergence@{level}", f"retention@{level}", "retention_area",
                     "consistency_mean", "consistency_worst"):
            assert (None, "the untransformed images were not measured") == (scores[name].value, scores[name].reason)
        assert not [name for name in scores if name.endswith(("@1", "@0", "@native"))]

    def test_some_directions_of_a_shift(self) -> None:
        mine = under({"clean": CLEAN, "shift:0.125up": noisy(1, 0.5), "shift:0.25left": noisy(2, 1.0),
                      "shift:0.25right": noisy(3, 1.5)})
        scores = evaluate(mine, family="shift").scores
        up, left, right = (value(scores, f"retention@{one}") for one in ("0.125up", "0.25left", "0.25right"))
        assert (1 + up) / 4 + (up + (left + right) / 2) / 4 == pytest.approx(value(scores, "retention_area"))

    def test_a_model_that_is_always_wrong_retains_nothing(self) -> None:
        wrong = np.eye(K, dtype=np.float32)[(TARGETS + 1) % K] * 5
        scores = named(evaluate(under({"scale:1": wrong, "scale:0.5": noisy(1, 1.0)})).scores)
        for name in ("retention@0.5", "retention_area"):
            assert (None, "no untransformed image is answered right: there is nothing to retain") == (
                scores[name].value, scores[name].reason)
        assert scores["consistency@0.5"].value is not None

    def test_where_few_are_right_the_retention_has_no_interval(self) -> None:
        mostly_wrong = np.eye(K, dtype=np.float32)[(TARGETS + (np.arange(N) > 1)) % K] * 5
        found = named(evaluate(under({"scale:1": mostly_wrong, "scale:0.5": noisy(1, 1.0)})).scores)["retention@0.5"]
        assert found.value is not None
        assert (None, "in some resamples no untransformed image is answered right") == (found.low, found.reason)


class TestImages:
    def test_a_subset_in_another_order_is_aligned_by_id(self) -> None:
        chosen = np.random.default_rng(5).permutation(N)[:90]
        logits = noisy(6, 1.2)
        mine = {Pass("mine"): one_pass(CLEAN), **{Pass("mine", f"shift:{one}"): one_pass(logits[chosen], chosen) for one in SHIFTS}}
        found = evaluate(mine, family="shift")
        before, after = CLEAN[chosen].argmax(axis=1), logits[chosen].argmax(axis=1)
        assert np.mean(before == after) == value(found.scores, "consistency@0.25down")
        assert np.mean(before == TARGETS[chosen]) == value(found.scores, "accuracy@0")
        distance = jensenshannon(softmax(CLEAN[chosen].astype(float), axis=1), softmax(logits[chosen].astype(float), axis=1), axis=1)
        assert (distance**2).mean() == pytest.approx(value(found.scores, "js_divergence@0.125left"))
        assert {90} == {one.n for one in found.scores}
        assert mine[Pass("mine", "shift:0.25up")].dataset == found.dataset

    def test_levels_that_lost_images_are_scored_on_what_all_share(self) -> None:
        mine = {Pass("mine", "scale:1"): one_pass(CLEAN[:200], range(200)),
                Pass("mine", "scale:0.7"): one_pass(noisy(1, 1.0)[50:], range(50, N)),
                Pass("mine", "scale:0.5"): one_pass(noisy(2, 1.0))}
        scores = evaluate(mine).scores
        shared = slice(50, 200)
        assert {150} == {one.n for one in scores}
        assert np.mean(noisy(1, 1.0)[shared].argmax(axis=1) == CLEAN[shared].argmax(axis=1)) == value(scores, "consistency@0.7")
        assert np.mean(noisy(2, 1.0)[shared].argmax(axis=1) == TARGETS[shared]) == value(scores, "accuracy@0.5")

    def test_passes_without_a_common_image_say_so(self) -> None:
        mine = {Pass("mine", "scale:1"): one_pass(CLEAN[:100], range(100)),
                Pass("mine", "scale:0.5"): one_pass(CLEAN[100:], range(100, N))}
        found, = evaluate(mine, mine).scores
        assert ("consistency_mean", None, 0, "the passes have no image in common") == (found.name, found.value, found.n, found.reason)

    def test_one_image(self) -> None:
        mine = {Pass("mine", f"scale:{one}"): one_pass(CLEAN[:1], [0]) for one in ("1", "0.5")}
        found = named(evaluate(mine, mine).scores)
        assert 1.0 == found["consistency@0.5"].value
        assert found["consistency_mean"].low is None

    def test_data_sets_presets_and_families_are_kept_apart(self) -> None:
        mine = {**scale_passes(), **under({"scale:1": CLEAN, "scale:3": noisy(1, 2.0)}, "paper"),
                **under({"clean": CLEAN, "shift:0.25up": noisy(2, 1.0), "scale:1": CLEAN, "scale:0.5": noisy(3, 1.0)}, dataset="other")}
        found = {(one.dataset.name, one.preset, one.condition, one.predictions[0]) for one in invariance.score(mine, None)}
        assert {("mine", "native", "scale", "predictions/mine--scale-1--native.npz"),
                ("mine", "paper", "scale", "predictions/mine--scale-1--paper.npz"),
                ("mine", "native", "scale", "predictions/other--scale-1--native.npz"),
                ("mine", "native", "shift", "predictions/other--clean--native.npz")} == found
        assert {"invariance"} == {one.property for one in invariance.score(mine, None)}

    def test_compact_predictions_lack_the_divergence_alone(self) -> None:
        full = scale_passes()
        part = {key: compacted(found) for key, found in full.items()}
        found = named(evaluate(part).scores)
        for name, one in named(evaluate(full).scores).items():
            if name.startswith("js_divergence"):
                assert (None, "the predictions were stored in compact form") == (found[name].value, found[name].reason)
            else:
                assert one == found[name]

    def test_divergence_needs_the_logits_of_both_passes(self) -> None:
        full = scale_passes()
        key = Pass("mine", "scale:0.7")
        found = named(evaluate({**full, key: compacted(full[key])}).scores)
        assert ["js_divergence@0.7"] == [name for name, one in found.items() if one.reason == "the predictions were stored in compact form"]


class TestPaperPreset:
    def test_its_own_shift_of_zero_is_untransformed_not_the_clean_pass(self) -> None:
        mine = under({"clean": noisy(9, 3.0), "shift:0": CLEAN, "shift:5": CLEAN, "shift:100": noisy(1, 1.0)}, "paper")
        found = evaluate(mine, family="shift")
        assert 1.0 == value(found.scores, "consistency@5")
        assert "predictions/mine--shift-0--paper.npz" == found.predictions[0]
        assert "predictions/mine--clean--paper.npz" not in found.predictions
        kept = [1.0, 1.0, value(found.scores, "retention@100")]
        assert trapezoid(kept, [0, 0.05, 1]) == pytest.approx(value(found.scores, "retention_area"))
        assert "directions" not in named(found.scores)["retention_area"].method

    def test_without_it_the_clean_pass_does_not_take_its_place(self) -> None:
        mine = under({"clean": CLEAN, "shift:5": CLEAN}, "paper")
        assert "the untransformed images were not measured" == named(evaluate(mine, family="shift").scores)["consistency@5"].reason

    def test_the_clean_pass_is_the_resolution_of_224(self) -> None:
        mine = under({"clean": CLEAN, "resolution:112": noisy(1, 1.0), "resolution:640": noisy(2, 1.0)}, "paper")
        scores = evaluate(mine, family="resolution").scores
        assert np.mean(CLEAN.argmax(axis=1) == TARGETS) == value(scores, "accuracy@224")
        kept = [value(scores, "retention@112"), 1.0, value(scores, "retention@640")]
        assert trapezoid(kept, [112, 224, 640]) / 528 == pytest.approx(value(scores, "retention_area"))

    def test_the_clean_pass_of_a_model_of_another_size_is_called_and_placed_by_that_size(self) -> None:
        mine = under({"clean": CLEAN, "resolution:112": noisy(1, 1.0), "resolution:640": noisy(2, 1.0)}, "paper")
        mine = {key: replace(found, size_px=(240, 240) if key.condition == "clean" else None) for key, found in mine.items()}
        scores = evaluate(mine, family="resolution").scores
        assert np.mean(CLEAN.argmax(axis=1) == TARGETS) == value(scores, "accuracy@240")
        assert "accuracy@224" not in named(scores)
        kept = [value(scores, "retention@112"), 1.0, value(scores, "retention@640")]
        assert trapezoid(kept, [112, 240, 640]) / 528 == pytest.approx(value(scores, "retention_area"))

    def test_a_model_of_another_size_has_224_as_a_level(self) -> None:
        mine = under({"clean": CLEAN, "resolution:224": noisy(1, 1.0)}, "paper")
        names = named(evaluate(mine, family="resolution").scores)
        assert {"accuracy@native", "accuracy@224", "consistency@224"} <= set(names)


class TestReference:
    @staticmethod
    def pair() -> tuple[dict[Pass, Predictions], dict[Pass, Predictions]]:
        theirs = scale_passes()
        return {key: replace(found, logits=(found.logits + np.random.default_rng(k).normal(0, 0.8, found.logits.shape)).astype(np.float32))
                for k, (key, found) in enumerate(theirs.items())}, theirs

    def changes(self, mine: Mapping[Pass, Predictions], theirs: Mapping[Pass, Predictions]) -> dict[str, Score]:
        return named(evaluate(mine, theirs).reference_scores)

    def test_changes_are_differences_of_the_scores(self) -> None:
        mine, theirs = self.pair()
        after, before, changes = evaluate(mine).scores, evaluate(theirs).scores, self.changes(mine, theirs)
        names = ("retention_area", "accuracy_mean", "consistency_mean", "accuracy@1",
                 *(f"{what}@{one}" for what in ("accuracy", "retention", "consistency") for one in ("0.875", "0.7", "0.5", "0.33")))
        for name in names:
            what, at, level = name.partition("@")
            assert value(after, name) - value(before, name) == pytest.approx(changes[f"{what}_change{at}{level}"].value, abs=1e-12)
        assert {f"{one.partition('@')[0]}_change{''.join(one.partition('@')[1:])}" for one in names} == {
            one for one in changes if not one.startswith("mcnemar")}

    def test_mcnemar_per_level_and_adjusted_for_all(self) -> None:
        mine, theirs = self.pair()
        changes = self.changes(mine, theirs)
        raw = []
        for level in levels("scale", "native"):
            before, after = (one[Pass("mine", f"scale:{level}")].outcomes.correct for one in (theirs, mine))
            lost, won = int(np.sum(before & ~after)), int(np.sum(~before & after))
            raw.append(binomtest(lost, lost + won).pvalue)
            assert raw[-1] == pytest.approx(changes[f"mcnemar_p@{level}"].value)
        # Holm in plain lines.
        order, running, adjusted = np.argsort(raw), 0.0, {}
        for rank, k in enumerate(order):
            running = max(running, min(1.0, (len(raw) - rank) * raw[k]))
            adjusted[levels("scale", "native")[k]] = running
        for level, expected in adjusted.items():
            assert expected == pytest.approx(changes[f"mcnemar_p_holm@{level}"].value)
        assert any(changes[f"mcnemar_p@{one}"].value != changes[f"mcnemar_p_holm@{one}"].value for one in adjusted)

    def test_pairing_makes_intervals_narrower_than_two_apart(self) -> None:
        theirs = scale_passes()
        mine = {key: replace(found, logits=found.logits + np.random.default_rng(3).normal(0, 0.1, found.logits.shape).astype(np.float32))
                for key, found in theirs.items()}
        apart, together = named(evaluate(mine).scores)["retention_area"], self.changes(mine, theirs)["retention_area_change"]
        assert None not in (apart.low, apart.high, together.low, together.high)
        assert together.high - together.low < 0.6 * (apart.high - apart.low)  # type: ignore[operator]

    def test_a_reference_that_answers_the_same_changes_nothing(self) -> None:
        theirs = scale_passes()
        mine = {key: replace(found, logits=found.logits * np.float32(0.5)) for key, found in theirs.items()}
        for name, one in self.changes(mine, theirs).items():
            assert (1.0 if name.startswith("mcnemar") else 0.0) == one.value
            if name.startswith(("accuracy_change", "consistency_change")):
                assert one.low is not None
                assert one.low < 0 < one.high  # type: ignore[operator]
            elif not name.startswith("mcnemar"):
                assert (None, "every resample gives the same: resampling cannot bound it") == (one.low, one.reason)

    def test_only_levels_that_both_have_are_compared(self) -> None:
        mine, theirs = self.pair()
        fewer = {key: found for key, found in theirs.items() if key.condition not in ("scale:0.7", "scale:0.33")}
        found = self.changes(mine, fewer)
        assert {"1", "0.875", "0.5"} == {name.partition("@")[2] for name in found} - {""}
        assert "1, 0.875, 0.5" == found["retention_area_change"].facts["levels"]
        kept = []
        for one in (mine, theirs):
            scores = evaluate(one).scores
            kept.append(abs(trapezoid([1.0, value(scores, "retention@0.875"), value(scores, "retention@0.5")], [1, 0.875, 0.5])) / 0.5)
        assert kept[0] - kept[1] == pytest.approx(found["retention_area_change"].value)

    def test_without_the_references_untransformed_pass_accuracy_alone_is_compared(self) -> None:
        mine, theirs = self.pair()
        found = self.changes(mine, {key: one for key, one in theirs.items() if key.condition != "scale:1"})
        assert found["accuracy_change@0.5"].value is not None
        assert "accuracy_change@1" not in found
        for name in ("retention_change@0.5", "retention_area_change", "consistency_change@0.5", "consistency_mean_change"):
            assert (None, "the untransformed images were not measured, here or there") == (found[name].value, found[name].reason)

    @pytest.mark.parametrize("theirs", [None, {}, under({"clean": CLEAN}), under({"scale:1": CLEAN}), under({"scale:0.5": CLEAN}, "paper")])
    def test_without_anything_in_common_nothing_is_compared(self, theirs: dict[Pass, Predictions] | None) -> None:
        assert () == evaluate(scale_passes(), theirs).reference_scores

    def test_other_images_are_refused(self) -> None:
        mine, theirs = self.pair()
        key = Pass("mine", "scale:0.5")
        other = replace(theirs[key], dataset=replace(theirs[key].dataset, digest="other"))
        with pytest.raises(InvalidInput, match="other images"):
            invariance.score(mine, {**theirs, key: other})

    def test_subsets_are_paired_by_id(self) -> None:
        chosen = np.random.default_rng(8).permutation(N)[:100]
        after, before = noisy(1, 1.0)[chosen], noisy(2, 1.0)[chosen]

        def sweep(clean: np.ndarray, logits: np.ndarray) -> dict[Pass, Predictions]:
            return {Pass("mine"): one_pass(clean), Pass("mine", "shift:0.25up"): one_pass(logits, chosen)}

        base_after = noisy(3, 0.5)
        found = named(evaluate(sweep(base_after, after), sweep(CLEAN, before), "shift").reference_scores)
        mine = np.mean(after.argmax(axis=1) == base_after[chosen].argmax(axis=1))
        theirs = np.mean(before.argmax(axis=1) == CLEAN[chosen].argmax(axis=1))
        assert mine - theirs == pytest.approx(found["consistency_change@0.25up"].value)
        assert np.mean(base_after[chosen].argmax(1) == TARGETS[chosen]) - np.mean(CLEAN[chosen].argmax(1) == TARGETS[chosen]) == \
            pytest.approx(found["accuracy_change@0"].value)

    def test_compact_predictions_are_compared_all_the_same(self) -> None:
        mine, theirs = self.pair()
        assert evaluate(mine, theirs).reference_scores == evaluate(
            {key: compacted(one) for key, one in mine.items()}, {key: compacted(one) for key, one in theirs.items()}).reference_scores


def test_logits_are_read_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    original: Callable[..., stats.FloatArray] = metrics.js_divergences
    monkeypatch.setattr(metrics, "row_blocks", lambda n: (slice(k, k + 64) for k in range(0, n, 64)))
    monkeypatch.setattr(metrics, "js_divergences", lambda a, b: taken.append(len(a)) or original(a, b))
    whole = evaluate(scale_passes())
    assert max(taken) <= 64
    monkeypatch.undo()
    assert whole == evaluate(scale_passes())
