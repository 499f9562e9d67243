"""Shape bias: the published decisions are an exact oracle, constructed logits cover the rest."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from edgebench.errors import InvalidInput
from edgebench.properties import Pass, Predictions, shape_bias
from edgebench.properties.shape_bias import CATEGORIES, INDICES, decide, shape_bias_counts
from edgebench.record import DatasetIdentity, Evaluation, Score

KEY = Pass("cue-conflict")


def identity(images: int, digest: str = "c") -> DatasetIdentity:
    return DatasetIdentity(name="cue-conflict", source="data/cue-conflict", images=images, classes=16, digest=digest * 64)


def logits_for(names: Sequence[str]) -> np.ndarray:
    """Logits (N, 1000) that decide for these categories; NO_DECISION's place is taken by the lowest index."""
    logits = np.zeros((len(names), 1000), np.float32)
    for row, name in enumerate(names):
        logits[row, list(INDICES[name])] = 8.0
    return logits


def predictions(names: Sequence[str], ids: Sequence[str], digest: str = "c") -> dict[Pass, Predictions]:
    return {KEY: Predictions(dataset=identity(len(ids), digest), logits=logits_for(names),
                             targets=np.zeros(len(ids), np.int64), ids=np.array(ids))}


def scored(mine: dict[Pass, Predictions], theirs: dict[Pass, Predictions] | None = None) -> Evaluation:
    evaluation, = shape_bias.score(mine, theirs)
    return evaluation


def by_name(scores: Sequence[Score]) -> dict[str, Score]:
    named = {one.name: one for one in scores}
    assert len(named) == len(scores)
    return named


def full_set() -> list[str]:
    """1,280 ids like the published ones: 16 shapes with ten exemplars, each with eight of the textures."""
    ids = []
    for k, shape in enumerate(CATEGORIES):
        for number in range(1, 11):
            ids += [f"{shape}/{shape}{number}-{CATEGORIES[(k + 2 * step + number % 2) % 16]}{step % 3 + 1}.png" for step in range(8)]
    return ids


IDS = full_set()
CONFLICT = [name for name in IDS if name.split("/")[0] != name.rpartition("-")[2][:-5]]


def shape_of(name: str) -> str:
    return name.split("/")[0]


def texture_of(name: str) -> str:
    return name.rpartition("-")[2][:-5]


class TestCategories:
    def test_there_are_207_distinct_classes_in_16_categories(self) -> None:
        assert ["airplane", "bear", "bicycle", "bird", "boat", "bottle", "car", "cat", "chair", "clock", "dog", "elephant",
                "keyboard", "knife", "oven", "truck"] == list(CATEGORIES)
        assert [1, 4, 2, 49, 5, 7, 3, 6, 4, 3, 109, 2, 2, 1, 1, 8] == [len(indices) for indices in INDICES.values()]
        everything = [index for indices in INDICES.values() for index in indices]
        assert 207 == len(everything) == len(set(everything))
        assert 0 <= min(everything) <= max(everything) < 1000

    def test_classes_are_the_ones_their_wordnet_ids_name(self) -> None:
        from edgebench.datasets import imagenet_wnids

        wnids = imagenet_wnids()
        # Airliner, brown bear, cock's next-but-one neighbour the hen, tabby, African elephant, golden retriever.
        for category, wnid in (("airplane", "n02690373"), ("bear", "n02132136"), ("bird", "n01514859"), ("cat", "n02123045"),
                               ("elephant", "n02504458"), ("dog", "n02099601")):
            assert wnids.index(wnid) in INDICES[category]


class TestDecisions:
    def test_the_mean_probability_decides_not_the_sum(self) -> None:
        logits = np.full((1, 1000), -20.0, np.float32)
        # Twice airplane's probability, spread over 109 breeds: the sum would say dog.
        logits[0, 404] = 0.0
        logits[0, list(INDICES["dog"])] = np.log(2 / 109)
        assert ["airplane"] == decide(logits).names.tolist()

    def test_the_mean_is_of_probabilities_not_of_logits_and_not_the_largest(self) -> None:
        logits = np.full((2, 1000), -30.0, np.float32)
        # Clock: 1, e^-30, e^-30, mean 0.33; knife 0.5: the largest would say clock. Truck's mean logit is the lowest.
        logits[0, 409], logits[0, 499] = 0.0, np.log(0.5)
        logits[1, 555], logits[1, 499] = 10.0, -25.0
        assert ["knife", "truck"] == decide(logits).names.tolist()

    def test_equal_categories_are_a_tie_for_the_first_of_them(self) -> None:
        logits = np.zeros((3, 1000), np.float32)
        logits[0, [404, 499]] = 5.0
        logits[1, [499, 766]] = 5.0
        logits[2, 499] = 5.0
        found = decide(logits)
        assert ["airplane", "knife", "knife"] == found.names.tolist()
        assert [True, True, False] == found.tied.tolist()

    def test_probabilities_that_underflow_are_a_tie_of_all(self) -> None:
        logits = np.zeros((1, 1000), np.float32)
        logits[0, 0] = 2000.0
        found = decide(logits)
        assert (["airplane"], [True]) == (found.names.tolist(), found.tied.tolist())

    def test_float16_outputs_are_decided_in_float64(self) -> None:
        logits = np.zeros((1, 1000), np.float16)
        logits[0, list(INDICES["truck"])] = 12.0
        assert ["truck"] == decide(logits).names.tolist()

    def test_other_class_counts_are_refused(self) -> None:
        with pytest.raises(ValueError, match="1000"):
            decide(np.zeros((2, 10), np.float32))


class TestCounts:
    @pytest.mark.parametrize(("shape", "texture", "bias"), [
        (340, 513, 0.398593), (313, 627, 0.332979), (421, 485, 0.464680)])
    def test_acceptance_figures(self, shape: int, texture: int, bias: float) -> None:
        names = [shape_of(name) if k < shape else texture_of(name) if k < shape + texture else "na"
                 for k, name in enumerate(CONFLICT)]
        counts = shape_bias_counts(names, CONFLICT)
        assert (shape, texture, len(CONFLICT)) == (counts.shape, counts.texture, counts.conflict)
        assert bias == pytest.approx(counts.shape_bias, abs=5e-7)
        assert pytest.approx((shape + texture) / len(CONFLICT)) == counts.cue_accuracy

    def test_images_with_one_category_for_both_cues_are_left_out_of_the_bias(self) -> None:
        ids = ["cat/cat1-dog2.png", "cat/cat1-cat2.png", "cat/cat3-cat1.png"]
        counts = shape_bias_counts(["dog", "cat", "oven"], ids)
        assert (0, 1, 1) == (counts.shape, counts.texture, counts.conflict)
        assert (1, 2) == (counts.no_conflict_right, counts.no_conflict)
        assert 0.0 == counts.shape_bias

    def test_categories_are_those_of_the_shape(self) -> None:
        counts = shape_bias_counts(["cat", "dog", "dog"], ["cat1-dog2.png", "cat1-dog3.png", "dog4-cat1.png"])
        assert {"cat": (1, 1), "dog": (1, 0)} == {name: both for name, both in counts.by_category.items() if any(both)}

    def test_nothing_for_either_cue_has_no_bias(self) -> None:
        assert shape_bias_counts(["oven"], ["cat1-dog2.png"]).shape_bias is None
        assert shape_bias_counts([], []).cue_accuracy is None

    @pytest.mark.parametrize("name", ["cat/0001.png", "cat1-dog.png", "cow1-dog2.png", "cat1-cow2.png", ""])
    def test_other_names_are_refused(self, name: str) -> None:
        with pytest.raises(InvalidInput, match=r"airplane1-bicycle2\.png"):
            shape_bias_counts(["cat"], [name])

    def test_decisions_that_are_no_category_are_refused(self) -> None:
        with pytest.raises(InvalidInput, match="'tabby' is none of the 16 categories"):
            shape_bias_counts(["tabby"], ["cat1-dog2.png"])
        with pytest.raises(ValueError, match="as many decisions as ids"):
            shape_bias_counts(["cat"], ["cat1-dog2.png", "cat2-dog2.png"])


def published(shared_data: Path, name: str) -> tuple[list[str], list[str], list[str]]:
    with (shared_data / "cue-conflict-decisions" / f"{name}.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return tuple([row[key] for row in rows] for key in ("object_response", "imagename", "category"))


class TestPublishedDecisions:
    @pytest.mark.parametrize(("name", "shape", "texture", "agreeing", "correct", "mean", "low", "high"), [
        ("deit3-21k", 340, 513, 75, 0.32421875, 0.3749, 0.365, 0.431),
        ("convnext-base-21k", 313, 627, 78, 0.30546875, 0.3135, 0.303, 0.364),
        ("tv-resnet50", 170, 621, 64, 0.18281250, None, 0.186, 0.243)])
    def test_networks(self, shared_data: Path, name: str, shape: int, texture: int, agreeing: int, correct: float,
                      mean: float | None, low: float, high: float) -> None:
        decisions, images, category = published(shared_data, name)
        counts = shape_bias_counts(decisions, images)
        assert (shape, texture, 1200, 80, agreeing) == (
            counts.shape, counts.texture, counts.conflict, counts.no_conflict, counts.no_conflict_right)
        assert correct == np.mean([one == other for one, other in zip(decisions, category, strict=True)])
        if mean:
            assert mean == pytest.approx(np.mean([s / (s + t) for s, t in counts.by_category.values()]), abs=5e-5)
        scores = by_name(scored(predictions(decisions, images)).scores)
        assert shape / (shape + texture) == scores["shape_bias"].value
        # Their resamples and ours differ.
        assert pytest.approx((low, high), abs=0.004) == (scores["shape_bias"].low, scores["shape_bias"].high)
        wide = scores["shape_bias_by_exemplar"]
        assert 1.1 < (wide.high - wide.low) / (scores["shape_bias"].high - scores["shape_bias"].low) < 1.7

    @pytest.mark.parametrize("subject", ["01", "02", "03"])
    def test_people_follow_the_shape(self, shared_data: Path, subject: str) -> None:
        decisions, images, category = published(shared_data, f"cue-conflict_subject-{subject}_session_1")
        counts = shape_bias_counts(decisions, images)
        assert (1200, 80) == (counts.conflict, counts.no_conflict)
        # The range of all ten published subjects.
        assert 0.919 <= counts.shape_bias <= 0.988
        right = sum(one == other for one, other in zip(decisions, category, strict=True))
        assert right == counts.shape + counts.no_conflict_right

    def test_the_paired_change_is_narrower_than_the_difference_of_two_runs(self, shared_data: Path) -> None:
        decisions, images, _ = published(shared_data, "deit3-21k")
        conflict = [k for k, name in enumerate(images) if name.split("-")[0].rstrip("0123456789") != name.split("-")[1][:-5]]
        other = list(decisions)
        for k in conflict[::100]:
            other[k] = "oven" if decisions[k] != "oven" else "knife"
        found = scored(predictions(other, images), predictions(decisions, images))
        scores, changes = by_name(found.scores), by_name(found.reference_scores)
        assert 12 / 1200 == changes["decisions_switched"].value
        change = changes["shape_bias_change"]
        assert change.low <= change.value <= change.high
        assert change.high - change.low < 0.5 * (scores["shape_bias"].high - scores["shape_bias"].low)

    def test_names_of_the_stored_images_are_read(self, shared_data: Path) -> None:
        root = shared_data / "cue-conflict-640"
        if not root.is_dir():
            pytest.skip(f"no {root}")
        ids = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.png"))
        counts = shape_bias_counts([name.split("/")[0] for name in ids], ids)
        assert 640 == len(ids) == counts.shape + counts.no_conflict_right
        assert {40} == {sum(name.startswith(f"{category}/") for name in ids) for category in CATEGORIES}


class TestProperty:
    def test_the_pass_is_needed_only_where_the_images_are(self) -> None:
        assert (KEY,) == shape_bias.passes(["cue-conflict", "imagenet-val"])
        assert () == shape_bias.passes(["imagenet-val"])
        assert shape_bias.SUMMARY

    def test_scores_of_one_run(self) -> None:
        ids = CONFLICT[:400] + [name for name in IDS if shape_of(name) == texture_of(name)][:4]
        names = [shape_of(name) if k % 4 == 0 else texture_of(name) if k % 4 == 1 else "knife"
                 for k, name in enumerate(ids[:400])] + ["truck", *(shape_of(name) for name in ids[401:])]
        found = scored(predictions(names, ids))
        assert ("shape-bias", "clean", "native", ("predictions/cue-conflict--clean--native.npz",)) == (
            found.property, found.condition, found.preset, found.predictions)
        assert () == found.reference_scores
        scores, counts = by_name(found.scores), shape_bias_counts(names, ids)
        bias, wide = scores["shape_bias"], scores["shape_bias_by_exemplar"]
        assert counts.shape_bias == bias.value == wide.value
        assert bias.low < bias.value < bias.high
        assert wide.low < wide.value < wide.high
        assert counts.shape + counts.texture == bias.n
        assert (counts.cue_accuracy, 400, "higher") == (
            scores["cue_accuracy"].value, scores["cue_accuracy"].n, scores["cue_accuracy"].better)
        assert counts.shape / 400 == scores["shape_accuracy"].value
        assert counts.texture / 400 == scores["texture_accuracy"].value
        assert (0.75, 4) == (scores["no_conflict_accuracy"].value, scores["no_conflict_accuracy"].n)
        assert 0.0 == scores["decision_ties"].value
        for category in CATEGORIES:
            one, (shape, texture) = scores[f"shape_bias_{category}"], counts.by_category[category]
            assert shape + texture == one.n
            assert (one.value is None) == (one.n == 0)
        assert {None} == {one.better for name, one in scores.items() if name.startswith("shape_bias")}

    def test_ties_are_counted(self) -> None:
        mine = predictions(["cat", "dog", "cat"], ["cat1-dog2.png", "cat2-dog2.png", "cat3-cat2.png"])
        mine[KEY].logits[[0, 2]] = 0.0
        scores = by_name(scored(mine).scores)
        assert 2.0 == scores["decision_ties"].value

    def test_changes_against_the_reference_are_of_the_same_images(self) -> None:
        ids = CONFLICT[:200]
        theirs = [shape_of(name) if k < 100 else texture_of(name) for k, name in enumerate(ids)]
        mine = [texture_of(name) if k < 10 else "knife" if 100 <= k < 120 and "knife" not in name else theirs[k]
                for k, name in enumerate(ids)]
        lost = sum(k >= 100 and mine[k] != theirs[k] for k in range(200))
        assert lost
        changes = by_name(scored(predictions(mine, ids), predictions(theirs, ids)).reference_scores)
        assert pytest.approx(90 / (200 - lost) - 0.5) == changes["shape_bias_change"].value
        assert changes["shape_bias_change"].value == changes["shape_bias_change_by_exemplar"].value
        assert pytest.approx(-lost / 200) == changes["cue_accuracy_change"].value
        assert pytest.approx(-10 / 200) == changes["shape_accuracy_change"].value
        assert pytest.approx((10 - lost) / 200) == changes["texture_accuracy_change"].value
        assert pytest.approx((10 + lost) / 200) == changes["decisions_switched"].value
        assert pytest.approx(10 / 200) == changes["cues_swapped"].value
        for one in changes.values():
            assert one.low <= one.value <= one.high, one.name
        assert "higher" == changes["cue_accuracy_change"].better
        assert changes["shape_bias_change"].better is None

    def test_losing_texture_decisions_raises_the_bias_and_shows_in_the_cue_accuracy(self) -> None:
        theirs = [shape_of(name) if k % 2 else texture_of(name) for k, name in enumerate(CONFLICT)]
        mine = [next(one for one in CATEGORIES if one not in name) if k % 4 == 0 else theirs[k]
                for k, name in enumerate(CONFLICT)]
        changes = by_name(scored(predictions(mine, CONFLICT), predictions(theirs, CONFLICT)).reference_scores)
        assert changes["shape_bias_change"].low > 0.1
        assert changes["cue_accuracy_change"].high < -0.2

    def test_identical_decisions_do_not_change(self) -> None:
        names = [shape_of(name) if k % 3 else texture_of(name) for k, name in enumerate(CONFLICT)]
        for one in scored(predictions(names, CONFLICT), predictions(names, CONFLICT)).reference_scores:
            assert 0.0 == one.value, one.name
            if one.name in ("decisions_switched", "cues_swapped"):
                assert 0.0 == one.low < one.high, one.name
            else:
                # No resample differs from another: an interval of no width would claim certainty.
                assert (None, None, True) == (one.low, one.high, "resampling cannot bound it" in one.reason), one.name

    def test_a_reference_of_other_images_is_refused(self) -> None:
        with pytest.raises(InvalidInput, match="other images"):
            shape_bias.score(predictions(["cat"], ["cat1-dog2.png"]), predictions(["cat"], ["cat1-dog2.png"], "e"))

    def test_other_class_counts_have_a_reason_instead_of_a_value(self) -> None:
        mine = {KEY: Predictions(dataset=identity(2), logits=np.zeros((2, 10), np.float32), targets=np.zeros(2, np.int64),
                                 ids=np.array(["cat1-dog2.png", "cat2-dog2.png"]))}
        only, = scored(mine, mine).scores
        assert ("shape_bias", None) == (only.name, only.value)
        assert "the model has 10" in only.reason

    def test_other_images_have_a_reason_instead_of_a_value(self) -> None:
        only, = scored(predictions(["cat", "dog"], ["cat/001.png", "dog/001.png"])).scores
        assert only.value is None
        assert "'cat/001.png'" in only.reason

    @pytest.mark.parametrize(("names", "ids", "absent"), [
        (["oven"], ["cat1-dog2.png"], {"shape_bias", "shape_bias_by_exemplar", "no_conflict_accuracy"}),
        (["cat"], ["cat1-cat2.png"], {"shape_bias", "shape_bias_by_exemplar", "cue_accuracy", "shape_accuracy",
                                      "texture_accuracy"})])
    def test_what_the_images_cannot_tell_is_absent_with_a_reason(self, names: list[str], ids: list[str], absent: set[str]) -> None:
        found = scored(predictions(names, ids), predictions(names, ids))
        scores = {one.name: one for one in found.scores if not one.name.startswith("shape_bias_") or "exemplar" in one.name}
        assert absent == {name for name, one in scores.items() if one.value is None}
        assert all(one.reason for one in found.scores if one.value is None)
        assert by_name(found.reference_scores)["shape_bias_change"].value is None

    def test_a_share_that_resampling_cannot_bound_has_no_interval(self) -> None:
        ids = CONFLICT[:50]
        bias = by_name(scored(predictions([shape_of(name) for name in ids], ids)).scores)["shape_bias"]
        assert (1.0, None, None) == (bias.value, bias.low, bias.high)
        assert "same cue" in bias.reason
