"""Accuracy and its change against the reference: counted by hand, published predictions, and odd inputs."""

from __future__ import annotations

import csv
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest

from edgebench import record, stats
from edgebench.properties import Pass, Predictions, accuracy, fidelity, robustness
from edgebench.record import DatasetIdentity

THINGS, VALIDATION = Pass("things"), Pass("imagenet-val")


def predictions(predicted, targets, *, classes=10, ids=None, key=THINGS, source="nowhere"):
    """Predictions of these classes, surer by 3 than of any other; the rest falls with the class index."""
    n = len(predicted)
    logits = np.tile(np.linspace(0.0, -1.0, classes, dtype=np.float32), (n, 1))
    logits[np.arange(n), predicted] = 3.0
    identity = DatasetIdentity(name=key.dataset, source=source, images=n, classes=classes, digest="d" * 64)
    return {key: Predictions(dataset=identity, logits=logits, targets=np.asarray(targets, np.int64),
                             ids=np.array([f"{k:05d}.png" for k in range(n)] if ids is None else ids))}


def scored(mine, theirs=None):
    (evaluation,) = accuracy.score(mine, theirs)
    # What a run file holds must survive being written and read.
    assert record.decode(record.Evaluation, record.to_builtins(evaluation), "evaluation") == evaluation
    return ({score.name: score for score in evaluation.scores},
            {score.name: score for score in evaluation.reference_scores})


def compact(found):
    return {key: replace(one, logits=np.empty((len(one.ids), 0), np.float32), stored_outcomes=one.outcomes)
            for key, one in found.items()}


class TestAccuracy:
    def test_top1_and_top5_are_counted(self):
        # Behind the predicted class come the lowest indices: 0 to 3, and 4 where one of these is predicted.
        scores, changes = scored(predictions([0, 1, 2, 9, 9, 9, 9, 1], [0, 1, 3, 9, 3, 4, 8, 4]))
        assert (3 / 8, 8, *stats.wilson(3, 8)) == (
            scores["accuracy_top1"].value, scores["accuracy_top1"].n, scores["accuracy_top1"].low, scores["accuracy_top1"].high)
        assert 6 / 8 == scores["accuracy_top5"].value
        assert {} == changes
        assert {"accuracy_top1", "accuracy_top5"} == set(scores)

    def test_with_five_classes_there_is_no_top5_stored_or_not(self):
        found = predictions([0, 1], [0, 2], classes=5)
        for one in (found, compact(found)):
            score = scored(one)[0]["accuracy_top5"]
            assert (None, "with 5 classes the five largest logits always hold the target") == (score.value, score.reason)

    def test_passes_are_the_labelled_sets(self):
        sets = ["imagenet-r", "mine", "imagenet-val", "cue-conflict", "ood/textures"]
        assert (Pass("mine", preset="paper"), Pass("imagenet-val", preset="paper")) == accuracy.passes(sets, "paper")


class TestAgainstTheReference:
    def test_the_specifications_example_of_300_and_200_flips_on_50_000_images(self):
        predicted = np.zeros(50_000, np.int64)
        before, after = predicted.copy(), predicted.copy()
        after[:300], before[300:500] = 1, 1
        _, changes = scored(predictions(after, predicted, classes=2), predictions(before, predicted, classes=2))
        change = changes["accuracy_top1_change"]
        assert -0.002 == pytest.approx(change.value)
        # Its standard error is 0.0447 points; the score interval is all but the normal one.
        assert (change.value, 0.000447) == pytest.approx(stats.paired_change(300, 200, 50_000), rel=1e-3)
        assert (-0.002 - 1.96 * 0.000447, -0.002 + 1.96 * 0.000447) == pytest.approx((change.low, change.high), abs=2e-5)
        assert (300 / 50_000, 200 / 50_000) == (changes["negative_flips"].value, changes["positive_flips"].value)
        assert 500 / 50_000 == changes["disagreement"].value
        assert stats.mcnemar_exact(300, 200) == changes["mcnemar_p"].value
        assert 1e-5 > changes["mcnemar_p"].value

    def test_no_flip_at_all_still_leaves_a_doubt(self):
        found = predictions([0, 1, 2, 3] * 25, [0, 1, 2, 4] * 25)
        _, changes = scored(found, found)
        assert (0.0, 1.0) == (changes["accuracy_top1_change"].value, changes["mcnemar_p"].value)
        assert changes["accuracy_top1_change"].low < -0.03 < 0.03 < changes["accuracy_top1_change"].high

    def test_the_label_free_block_is_that_of_fidelity(self):
        mine, theirs = predictions([0, 1, 2, 9] * 10, [0, 1, 3, 9] * 10), predictions([0, 1, 3, 8] * 10, [0, 1, 3, 9] * 10)
        _, changes = scored(mine, theirs)
        for score in fidelity.fidelity(mine[THINGS], theirs[THINGS]):
            assert changes[score.name] == score
        assert {"accuracy_top1_change", "negative_flips", "positive_flips", "mcnemar_p", "mcnemar_p_holm"} == set(changes) - {
            score.name for score in fidelity.fidelity(mine[THINGS], theirs[THINGS])}

    def test_the_tests_on_all_data_sets_are_one_family(self):
        keys, after, before = [Pass("one"), Pass("two"), Pass("three")], {}, {}
        for key, lost in zip(keys, (12, 7, 3), strict=True):
            after |= predictions([1] * lost + [0] * (60 - lost), [0] * 60, key=key)
            before |= predictions([0] * 60, [0] * 60, key=key)
        found = [{score.name: score for score in one.reference_scores} for one in accuracy.score(after, before)]
        raw = [stats.mcnemar_exact(lost, 0) for lost in (12, 7, 3)]
        assert raw == [one["mcnemar_p"].value for one in found]
        assert list(stats.holm(raw)) == [one["mcnemar_p_holm"].value for one in found]
        assert {"tests": 3} == found[0]["mcnemar_p_holm"].facts

    def test_outcomes_stored_in_compact_form_lack_what_needs_logits_alone(self):
        mine, theirs = predictions([0, 1, 2, 9] * 10, [0, 1, 3, 9] * 10), predictions([0, 1, 3, 8] * 10, [0, 1, 3, 9] * 10)
        (scores, changes), (packed, packed_changes) = scored(mine, theirs), scored(compact(mine), compact(theirs))
        assert scores == packed
        absent = {name for name, score in packed_changes.items() if score.value is None}
        assert {"kl_divergence", "js_divergence", "logit_difference", "logit_difference_max"} == absent
        assert {"the predictions were stored in compact form"} == {packed_changes[name].reason for name in absent}
        for name in set(changes) - absent:
            assert changes[name].value == packed_changes[name].value, name


class TestReassessedLabels:
    """ReaL: several labels may be right, and images without any do not count."""

    OUTCOME = (np.array([True, False, True, False]), np.array([True, True, False, True]))

    def found(self, predicted):
        return predictions(predicted, [0, 1, 2, 3], key=VALIDATION)

    def test_only_images_with_labels_count(self, monkeypatch):
        monkeypatch.setattr(accuracy, "real_outcome", lambda found: self.OUTCOME)
        score = scored(self.found([0, 1, 2, 3]))[0]["accuracy_real"]
        assert (1 / 3, 3, *stats.wilson(1, 3), "higher") == (score.value, score.n, score.low, score.high, score.better)

    def test_the_change_is_paired_over_the_same_images(self, monkeypatch):
        before = (np.array([True, True, True, True]), self.OUTCOME[1])
        monkeypatch.setattr(accuracy, "real_outcome", lambda found: before if found.logits[0, 9] == 3.0 else self.OUTCOME)
        _, changes = scored(self.found([0, 1, 2, 3]), self.found([9, 1, 2, 3]))
        change = changes["accuracy_real_change"]
        assert (-2 / 3, 3, *stats.paired_interval(0, 2, 3)) == (change.value, change.n, change.low, change.high)
        assert stats.mcnemar_exact(2, 0) == changes["mcnemar_p_real"].value
        # Original labels and ReaL ones are tested on the same flips: two tests.
        assert min(1.0, 2 * stats.mcnemar_exact(2, 0)) == changes["mcnemar_p_real_holm"].value

    def test_without_the_labels_a_reason_stands_in_for_the_value(self, monkeypatch):
        monkeypatch.setattr(accuracy, "real_outcome", lambda found: None)
        scores, changes = scored(self.found([0, 1, 2, 3]), self.found([0, 1, 2, 3]))
        assert scores["accuracy_real"].value is None
        assert "real.json" in scores["accuracy_real"].reason
        assert not [name for name in changes if "real" in name]

    def test_images_without_any_label_have_a_reason_too(self, monkeypatch):
        monkeypatch.setattr(accuracy, "real_outcome", lambda found: (np.zeros(4, bool), np.zeros(4, bool)))
        score = scored(self.found([0, 1, 2, 3]))[0]["accuracy_real"]
        assert (None, 0) == (score.value, score.n)
        assert score.reason.startswith("none of these images has a ReaL label")

    def test_other_data_sets_have_none(self, monkeypatch):
        monkeypatch.setattr(accuracy, "real_outcome", lambda found: pytest.fail("ReaL labels are ImageNet's"))
        assert "accuracy_real" not in scored(predictions([0, 1], [0, 1]))[0]

    def test_published_predictions_have_the_accuracy_that_a_loop_finds(self, shared_data):
        if find_spec("imagenet_x") is None and find_spec("timm") is None:
            pytest.skip("neither imagenet-x nor timm is installed")
        with (shared_data / "imagenet-x-predictions" / "ResNet50.csv").open(newline="") as lines:
            rows = list(csv.DictReader(lines))
        # The rows are in order of class, 50 each; every tenth keeps 1,000 logits per image affordable.
        chosen = range(0, 50_000, 10)
        predicted, names = [int(rows[k]["predicted_class"]) for k in chosen], [rows[k]["file_name"] for k in chosen]
        lists = robustness.real_labels_at_hand()
        right = counted = 0
        for name, one in zip(names, predicted, strict=True):
            labels = lists[int(name[-13:-5]) - 1]
            counted += bool(labels)
            right += one in labels
        found = predictions(predicted, [k // 50 for k in chosen], classes=1000, ids=names, key=VALIDATION,
                            source="data/imagenet/val")
        score = scored(found)[0]["accuracy_real"]
        assert (right / counted, counted) == (score.value, score.n)
        assert 0.80 < score.value < 0.86
        assert score.value > scored(found)[0]["accuracy_top1"].value
