"""Robustness: published tables, plain-Python repetitions of the definitions, and constructed sets."""

from __future__ import annotations

import importlib.machinery
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import chi2

from edgebench import class_subsets, evaluate, stats
from edgebench.corruptions import CORRUPTIONS, HELD_OUT
from edgebench.datasets import imagenet_wnids
from edgebench.errors import InvalidInput
from edgebench.properties import Pass, Predictions, calibration, load_predictions, mistakes, robustness
from edgebench.properties.robustness import (
    ALEXNET,
    ALEXNET_CLEAN,
    SEVEN,
    clustered_mcnemar,
    real_labels_at_hand,
    real_outcome,
)
from edgebench.record import DatasetIdentity, Evaluation, Score

ALL = (*CORRUPTIONS, *HELD_OUT)
V2, A, R, C, SKETCH, HARD = (Pass(f"imagenet-{name}") for name in ("v2", "a", "r", "c", "sketch", "hard"))
VAL = Pass("imagenet-val")
WNIDS = imagenet_wnids()
# By severity, from issue 10 of hendrycks/robustness; the last corruption is not among them.
ALEXNET_BY_SEVERITY = {
    "gaussian_noise": (0.69528, 0.82542, 0.93554, 0.98138, 0.99452), "shot_noise": (0.71224, 0.85108, 0.93574, 0.98182, 0.99146),
    "impulse_noise": (0.78374, 0.89808, 0.9487, 0.9872, 0.99548), "defocus_blur": (0.65624, 0.73202, 0.85036, 0.91364, 0.94714),
    "glass_blur": (0.64308, 0.75054, 0.88806, 0.91622, 0.93344), "motion_blur": (0.5843, 0.70048, 0.82108, 0.8975, 0.92638),
    "zoom_blur": (0.70008, 0.76992, 0.80784, 0.84198, 0.87198), "snow": (0.71726, 0.88392, 0.86468, 0.9187, 0.94952),
    "frost": (0.6139, 0.79734, 0.8879, 0.89942, 0.9343), "fog": (0.67474, 0.7605, 0.84378, 0.8726, 0.945),
    "brightness": (0.4514, 0.48502, 0.54048, 0.62166, 0.7244), "contrast": (0.64548, 0.7615, 0.88874, 0.9776, 0.9927),
    "elastic_transform": (0.52596, 0.70116, 0.55686, 0.64076, 0.80554), "pixelate": (0.52218, 0.5462, 0.73728, 0.87092, 0.91262)}
# Percent, from the figures of the paper's project page: V2, A, C, Hard, R, Sketch, ReaL, and their mean.
PAPER = {"ViT-sup": (76.2, 60.0, 59.8, 28.5, 61.6, 46.1, 89.2, 60.2), "ConvNeXt-sup": (75.6, 52.9, 66.8, 29.4, 62.3, 48.6, 89.5, 60.7),
         "ViT-clip": (59.5, 33.2, 40.8, 5.5, 77.8, 52.3, 74.3, 49.1), "ConvNeXt-clip": (58.6, 30.9, 39.0, 5.8, 75.8, 52.0, 73.8, 48.0)}


def val_id(number: int, label: int = 0) -> str:
    return f"{WNIDS[label]}/ILSVRC2012_val_{number:08d}.JPEG"


def predictions(key: Pass, predicted: Sequence[int], targets: Sequence[int], *, ids: Sequence[str] | None = None,
                classes: int = 1000, labels: Sequence[Sequence[int]] | None = None, source: str = "data",
                digest: str = "a") -> Predictions:
    n = len(predicted)
    logits = np.zeros((n, classes), np.float32)
    logits[np.arange(n), predicted] = 5.0
    padded = None
    if labels is not None:
        padded = np.full((n, max(map(len, labels))), -1, np.int64)
        for row, some in enumerate(labels):
            padded[row, :len(some)] = some
    identity = DatasetIdentity(name=key.dataset, source=source, images=n, classes=classes, digest=(key.dataset + digest).ljust(64, "0"))
    return Predictions(dataset=identity, logits=logits, targets=np.array(targets, np.int64), labels=padded,
                       ids=np.array(ids if ids is not None else [f"{k:05d}.png" for k in range(n)]))


def answers(key: Pass, right: Sequence[bool] | np.ndarray, *, target: int = 6, wrong: int = 11, **more: object) -> Predictions:
    """Predictions of images of class `target`, which is both in ImageNet-A and -R; wrong ones say `wrong`."""
    return predictions(key, [target if one else wrong for one in right], [target] * len(right), **more)  # type: ignore[arg-type]


def rights(count: int, n: int) -> np.ndarray:
    return np.arange(n) < count


def by_name(scores: Iterable[Score]) -> dict[str, Score]:
    listed = list(scores)
    named = {one.name: one for one in listed}
    assert len(named) == len(listed)
    return named


def only(evaluations: Sequence[Evaluation], dataset: str, condition: str = "clean") -> Evaluation:
    found, = (one for one in evaluations if (one.dataset.name, one.condition) == (dataset, condition))
    return found


class Random:
    """A variant's answers under all corruptions of a set: class 0 to 3, drawn by image and condition."""

    def __init__(self, seed: int, n: int = 40, dataset: str = "mine", names: Sequence[str] = ALL, skill: float = 0.5) -> None:
        generator = np.random.default_rng(seed)
        self.dataset, self.n, self.names = dataset, n, names
        self.targets = np.random.default_rng(99).integers(0, 4, n)
        self.ids = [val_id(k + 1, int(self.targets[k])) for k in range(n)]

        def draw(chance: float) -> np.ndarray:
            return np.where(generator.random(n) < chance, self.targets, generator.integers(0, 4, n))

        self.clean = draw(0.8)
        self.predicted = {(name, severity): draw(skill - 0.08 * severity) for name in names for severity in range(1, 6)}

    def passes(self, *, clean: bool = True, **more: object) -> dict[Pass, Predictions]:
        base = Pass("imagenet-val" if self.dataset == "imagenet-c" else self.dataset)
        found = {Pass(self.dataset, f"{name}:{severity}"): self.one(Pass(self.dataset), predicted, **more)
                 for (name, severity), predicted in self.predicted.items()}
        return {base: self.one(base, self.clean, **more), **found} if clean else found

    def one(self, key: Pass, predicted: np.ndarray, **more: object) -> Predictions:
        return predictions(key, predicted, self.targets, ids=self.ids, classes=4, **more)  # type: ignore[arg-type]

    def accuracy(self, name: str) -> float:
        return sum(int(one == wanted) for severity in range(1, 6)
                   for one, wanted in zip(self.predicted[name, severity], self.targets, strict=True)) / (5 * self.n)

    def mean(self, names: Sequence[str] = CORRUPTIONS) -> float:
        return sum(self.accuracy(name) for name in names) / len(names)

    @property
    def clean_accuracy(self) -> float:
        return float((self.clean == self.targets).mean())


@pytest.fixture
def no_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither imagenet-x nor timm is installed."""
    monkeypatch.setattr(robustness, "find_spec", lambda name: None)


@pytest.fixture
def data_root(tmp_path: Path, no_packages: None) -> Callable[[dict[int, list[int]]], str]:
    """A function that writes real.json with the labels of some file numbers, and returns the images' folder."""
    def make(labels: dict[int, list[int]]) -> str:
        (tmp_path / "real.json").write_text(json.dumps([labels.get(number, []) for number in range(1, 50_001)]))
        return str(tmp_path / "imagenet" / "val")

    return make


class TestClassSubsets:
    @pytest.mark.parametrize(("classes", "total", "digest"), [
        (class_subsets.IMAGENET_A, 102_178, "973e8c3e530bf5db"), (class_subsets.IMAGENET_R, 86_135, "a1d9a9ace3098120")])
    def test_sums_and_digests_are_the_published_ones(self, classes: tuple[int, ...], total: int, digest: str) -> None:
        assert (200, total) == (len(classes), sum(classes))
        assert sorted(set(classes)) == list(classes)
        assert class_subsets.digest(classes).startswith(digest)

    @pytest.mark.parametrize(("classes", "letter"), [(class_subsets.IMAGENET_A, "a"), (class_subsets.IMAGENET_R, "r")])
    def test_they_are_timms(self, classes: tuple[int, ...], letter: str) -> None:
        timm = find_spec("timm")
        if timm is None or not timm.submodule_search_locations:
            pytest.skip("timm is not installed")
        folder = Path(timm.submodule_search_locations[0]) / "data" / "_info"
        assert [int(line) for line in (folder / f"imagenet_{letter}_indices.txt").read_text().split()] == list(classes)
        wnids = (folder / f"imagenet_{letter}_synsets.txt").read_text().split()
        assert sorted(wnids) == [WNIDS[index] for index in classes]

    def test_86_classes_are_in_both(self) -> None:
        assert 86 == len(set(class_subsets.IMAGENET_A) & set(class_subsets.IMAGENET_R))


class TestPasses:
    def test_a_users_own_images_are_corrupted_95_ways(self) -> None:
        found = robustness.passes(["mine"])
        assert [Pass("mine"), *(Pass("mine", f"{name}:{severity}") for name in ALL for severity in range(1, 6))] == list(found)
        assert 96 == len(set(found))

    def test_validation_images_are_corrupted_only_where_imagenet_c_is_not_at_hand(self) -> None:
        assert 96 == len(robustness.passes(["imagenet-val"]))
        assert {VAL} == {one for one in robustness.passes(["imagenet-c", "imagenet-val", "mine"]) if one.dataset == "imagenet-val"}
        found = {one.dataset: one for one in robustness.passes(["imagenet-c", "imagenet-val", "mine"]) if one.condition == "fog:3"}
        assert {"imagenet-c", "mine"} == set(found)

    def test_imagenet_c_has_no_clean_images(self) -> None:
        found = robustness.passes(["imagenet-c"])
        assert (95, True) == (len(found), all(":" in one.condition for one in found))

    def test_shifted_and_foreign_sets_are_seen_as_they_are(self) -> None:
        names = ["cue-conflict", "imagenet-a", "imagenet-hard", "imagenet-r", "imagenet-sketch", "imagenet-v2", "ood/o",
                 "pug/Worlds", "vtab/pets/test"]
        assert [Pass(name, preset="paper") for name in names[1:7]] == list(robustness.passes(names, "paper"))


class TestRealLabels:
    def test_46837_images_have_labels_and_the_first_two_entries_belong_to_files_1_and_2(self) -> None:
        lists = real_labels_at_hand()
        if lists is None:
            pytest.skip("neither imagenet-x nor timm is installed")
        assert (50_000, 46_837) == (len(lists), sum(map(bool, lists)))
        assert ((), (970, 795)) == lists[:2]

    @pytest.mark.parametrize("package", ["imagenet_x", "timm"])
    def test_either_package_is_enough_and_is_not_imported(self, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
        if find_spec(package) is None or find_spec("imagenet_x") is None:
            pytest.skip(f"{package} is not installed")
        monkeypatch.setattr(robustness, "find_spec", lambda name: find_spec(name) if name == package else None)
        monkeypatch.setitem(sys.modules, "pandas", None)
        assert mistakes.real_labels(mistakes.annotation_folder()) == real_labels_at_hand()

    def test_without_any_file_there_are_none(self, no_packages: None, tmp_path: Path) -> None:
        assert real_labels_at_hand() is None
        assert real_labels_at_hand(tmp_path / "imagenet" / "val") is None

    def test_a_package_without_the_file_is_passed_over(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        spec = importlib.machinery.ModuleSpec("timm", None, is_package=True)
        spec.submodule_search_locations = [str(tmp_path)]
        monkeypatch.setattr(robustness, "find_spec", lambda name: spec)
        assert real_labels_at_hand() is None

    @pytest.mark.parametrize("place", ["real.json", "imagenet-x/real.json", "imagenet-x/imagenet_real_labels.jsonl"])
    def test_the_data_roots_copy_comes_first(self, tmp_path: Path, place: str) -> None:
        (tmp_path / place).parent.mkdir(exist_ok=True)
        (tmp_path / place).write_text(json.dumps([[number % 1000] for number in range(50_000)]))
        found = real_labels_at_hand(tmp_path / "imagenet" / "val")
        assert found is not None
        assert ((0,), (1,)) == found[:2]

    @pytest.mark.parametrize(("content", "message"), [
        ("[[1], [2]]", "expected 50,000 lists of labels, got 2"), ("[[1", "cannot read"), ('{"1": [2]}', "cannot read")])
    def test_a_damaged_file_is_refused(self, tmp_path: Path, content: str, message: str) -> None:
        (tmp_path / "real.json").write_text(content)
        with pytest.raises(InvalidInput, match=message):
            real_labels_at_hand(tmp_path / "imagenet" / "val")


class TestRealOutcome:
    def test_any_label_counts_images_without_are_left_out_and_order_does_not_matter(self, data_root) -> None:
        source = data_root({3: [5, 7], 9: [2], 50_000: [0]})
        found = predictions(VAL, [2, 7, 0, 5, 9], [0] * 5, ids=[val_id(k) for k in (9, 3, 1, 50_000, 3)], source=source)
        outcome = real_outcome(found)
        assert outcome is not None
        correct, has_labels = outcome
        assert [True, True, False, False, False] == correct.tolist()
        assert [True, True, False, True, True] == has_labels.tolist()

    def test_names_without_a_file_number_have_no_labels(self, data_root) -> None:
        source = data_root({1: [6]})
        found = answers(VAL, [True, True], ids=[val_id(1, 6), f"{WNIDS[6]}/cat.jpg"], source=source)
        outcome = real_outcome(found)
        assert outcome is not None
        assert [[True, False], [True, False]] == [one.tolist() for one in outcome]

    @pytest.mark.parametrize(("classes", "label"), [(999, 6), (1000, 7)])
    def test_classes_other_than_imagenets_in_order_have_none(self, data_root, classes: int, label: int) -> None:
        # The folder's class 7 is called 6 by this model, or the model has another number of classes.
        source = data_root({1: [6]})
        outcome = real_outcome(answers(VAL, [True], ids=[val_id(1, label)], classes=classes, source=source))
        assert outcome is not None
        assert [[False], [False]] == [one.tolist() for one in outcome]

    def test_no_file_at_hand_is_none(self, no_packages: None) -> None:
        assert real_outcome(answers(VAL, [True], ids=[val_id(1, 6)])) is None


class TestShiftedSets:
    @pytest.mark.parametrize("key", [V2, SKETCH])
    def test_v2_and_sketch_have_top_1_and_top_5_among_all_classes(self, key: Pass) -> None:
        logits = np.tile(np.arange(1000, dtype=np.float32), (4, 1))
        found = predictions(key, [999] * 4, [999, 999, 997, 3])
        found = Predictions(dataset=found.dataset, logits=logits, targets=found.targets, ids=found.ids)
        scores = by_name(only(robustness.score({key: found}, None), key.dataset).scores)
        assert {"accuracy_top1": 0.5, "accuracy_top5": 0.75} == {name: one.value for name, one in scores.items()}
        assert stats.wilson(2, 4) == (scores["accuracy_top1"].low, scores["accuracy_top1"].high)

    @pytest.mark.parametrize(("key", "inside", "outside"), [(A, 6, 1), (R, 1, 5)])
    def test_a_and_r_take_the_largest_logit_of_their_classes_alone(self, key: Pass, inside: int, outside: int) -> None:
        # Everywhere the largest logit is of a class that the set does not have.
        logits = np.zeros((3, 1000), np.float32)
        logits[:, outside], logits[:2, inside], logits[2, 11] = 9.0, 5.0, 5.0
        found = answers(key, [True] * 3, target=inside)
        found = Predictions(dataset=found.dataset, logits=logits, targets=found.targets, ids=found.ids)
        score, = only(robustness.score({key: found}, None), key.dataset).scores
        assert not found.outcomes.correct.any()
        assert ("accuracy_top1", 3) == (score.name, score.n)
        assert score.value == pytest.approx(2 / 3)
        assert "200 classes alone" in score.method

    def test_a_folder_of_another_class_leaves_the_set_without_score(self) -> None:
        score, = only(robustness.score({A: answers(A, [True], target=0)}, None), "imagenet-a").scores
        assert (None, "imagenet-a: class 0 is none of the 200 of this set") == (score.value, score.reason)

    def test_compact_predictions_do_for_all_but_a_and_r(self) -> None:
        found = {}
        for key in (V2, A):
            one = answers(key, [True, False])
            found[key] = Predictions(dataset=one.dataset, logits=np.empty((2, 0), np.float32), targets=one.targets, ids=one.ids,
                                     stored_outcomes=one.outcomes)
        evaluations = robustness.score(found, None)
        assert 0.5 == only(evaluations, "imagenet-v2").scores[0].value
        score, = only(evaluations, "imagenet-a").scores
        assert (None, "the predictions were stored in compact form") == (score.value, score.reason)

    @pytest.mark.parametrize("key", [A, R], ids=lambda key: key.dataset)
    def test_the_compact_form_of_a_and_r_is_among_their_classes_and_scores_the_same(self, key, tmp_path, monkeypatch) -> None:
        whole_bootstrap = stats.bootstrap
        monkeypatch.setattr(stats, "bootstrap", lambda *given, **named: whole_bootstrap(*given, **{"resamples": 20, **named}))
        generator = np.random.default_rng(7)
        classes = class_subsets.BY_DATASET[key.dataset]
        targets = generator.choice(classes, 120)
        whole = answers(key, [True] * 120)
        logits = generator.normal(0, 2, (120, 1000)).astype(np.float32)
        # An answer outside of the set, that counts nowhere: the largest logit of all.
        logits[np.arange(120), targets] += 5.0
        logits[:40, 0] = 99.0
        whole = replace(whole, logits=logits, targets=targets)
        file = tmp_path / key.file
        evaluate.save_predictions(file, [(logits[:50], None), (logits[50:], None)], targets=targets.tolist(), compact=True,
                                  ids=whole.ids.tolist(), dataset=whole.dataset, artifact_digest="f" * 64)
        stored = load_predictions(file, whole.dataset, "f" * 64)
        assert (True, 200) == (stored.compact, stored.outcomes.classes)
        assert 120 * 1000 * 4 > 10 * file.stat().st_size
        assert only(robustness.score({key: whole}, None), key.dataset) == only(robustness.score({key: stored}, None), key.dataset)
        assert 0.3 < only(robustness.score({key: stored}, None), key.dataset).scores[0].value
        if key == R:
            expected, found = (calibration.score({key: one}, None)[0] for one in (whole, stored))
            lost = {"distinct_logits", "cwece", "cwece_thresholded", "temperature", "ece15_ew_scaled", "nll_scaled"}
            assert [one for one in expected.scores if one.name not in lost] == [
                one for one in found.scores if one.name not in lost]
            assert expected.reliability == found.reliability
        with pytest.raises(InvalidInput, match="among other classes"):
            stored.within(range(200))

    def test_hard_accepts_any_of_its_labels_however_many(self) -> None:
        many = list(range(100, 113))
        found = predictions(HARD, [7, 3, 112, 99, 0], [5, 3, 100, 100, 5], labels=[[5, 7], [3], many, many, [5]])
        score, = only(robustness.score({HARD: found}, None), "imagenet-hard").scores
        assert (0.6, 5) == (score.value, score.n)
        assert found.outcomes.correct.mean() == 0.2

    def test_hard_without_its_labels_has_no_score(self) -> None:
        score, = only(robustness.score({HARD: answers(HARD, [True])}, None), "imagenet-hard").scores
        assert (None, "the lists of accepted classes were not stored") == (score.value, score.reason)

    def test_real_is_counted_over_images_with_labels(self, data_root) -> None:
        source = data_root({1: [6, 1], 2: [1], 3: [], 4: [6]})
        found = answers(VAL, [True, True, True, False], ids=[val_id(k, 6) for k in (1, 2, 3, 4)], source=source)
        score, = only(robustness.score({VAL: found}, None), "imagenet-val").scores
        assert ("accuracy_real", 3) == (score.name, score.n)
        assert score.value == pytest.approx(1 / 3)
        assert stats.wilson(1, 3) == (score.low, score.high)

    def test_real_says_why_it_is_absent(self, no_packages: None, data_root) -> None:
        found = answers(VAL, [True], ids=[val_id(1, 6)])
        score, = only(robustness.score({VAL: found}, None), "imagenet-val").scores
        assert "the ReaL labels are missing" in (score.reason or "")
        found = answers(VAL, [True], ids=["n01443537/cat.jpg"], source=data_root({1: [6]}))
        score, = only(robustness.score({VAL: found}, None), "imagenet-val").scores
        assert "none of these images has a ReaL label" in (score.reason or "")

    def test_real_image_files_meet_their_real_labels(self, imagenet_800: Path) -> None:
        # The original label of a clear image is among the reassessed ones; 87 to 88 % of all labelled images are such.
        if real_labels_at_hand() is None:
            pytest.skip("neither imagenet-x nor timm is installed")
        ids = sorted(path.relative_to(imagenet_800).as_posix() for path in imagenet_800.glob("*/*.JPEG"))
        targets = [WNIDS.index(name.partition("/")[0]) for name in ids]
        outcome = real_outcome(predictions(VAL, targets, targets, ids=ids))
        assert outcome is not None
        correct, has_labels = outcome
        assert 0.85 < correct[has_labels].mean() < 0.95
        assert 0.90 < has_labels.mean() < 0.97


class TestShiftedSetsAgainstTheReference:
    def test_flips_change_and_tests_are_counted_on_the_same_images(self) -> None:
        before, after = np.array([True] * 60 + [False] * 40), np.array([True] * 50 + [False] * 44 + [True] * 6)
        found = only(robustness.score({V2: answers(V2, after)}, {V2: answers(V2, before, wrong=13)}), "imagenet-v2")
        changes = by_name(found.reference_scores)
        assert ["accuracy_top1_change", "negative_flips", "positive_flips", "disagreement", "mcnemar_p", "mcnemar_p_holm"] == list(changes)
        assert changes["accuracy_top1_change"].value == pytest.approx(-0.04)
        assert stats.paired_interval(6, 10, 100) == (changes["accuracy_top1_change"].low, changes["accuracy_top1_change"].high)
        assert (0.10, 0.06) == (changes["negative_flips"].value, changes["positive_flips"].value)
        # All wrong answers differ in class too.
        assert changes["disagreement"].value == 0.50
        assert changes["mcnemar_p"].value == stats.mcnemar_exact(10, 6) == changes["mcnemar_p_holm"].value

    def test_p_values_are_adjusted_over_the_sets_that_were_compared(self, data_root) -> None:
        source = data_root({number: [6] for number in range(1, 101)})
        val = {"ids": [val_id(k, 6) for k in range(1, 101)], "source": source}
        wins = {V2: 10, R: 2, SKETCH: 7}
        mine = {key: answers(key, rights(50 + up, 100)) for key, up in wins.items()} | {
            VAL: answers(VAL, rights(59, 100), **val), A: answers(A, rights(3, 100))}
        theirs = {key: answers(key, rights(50, 100)) for key in wins} | {VAL: answers(VAL, rights(50, 100), **val)}
        evaluations = robustness.score(mine, theirs)
        assert () == only(evaluations, "imagenet-a").reference_scores
        order = ["imagenet-v2", "imagenet-r", "imagenet-sketch", "imagenet-val"]
        found = [by_name(only(evaluations, name).reference_scores) for name in order]
        raw = [stats.mcnemar_exact(0, up) for up in (10, 2, 7, 9)]
        assert raw == [one["mcnemar_p"].value for one in found]
        assert stats.holm(raw) == tuple(one["mcnemar_p_holm"].value for one in found)
        assert [{"tests": 4}] * 4 == [one["mcnemar_p_holm"].facts for one in found]
        assert found[3]["accuracy_real_change"].value == pytest.approx(0.09)

    def test_masked_sets_compare_masked_answers(self) -> None:
        # The two variants differ in a class that ImageNet-A does not have: among its classes they agree.
        mine, theirs = answers(A, [True] * 4), answers(A, [True] * 4)
        mine.logits[:, 0] = 9.0
        changes = by_name(only(robustness.score({A: mine}, {A: theirs}), "imagenet-a").reference_scores)
        assert (0.0, 0.0) == (changes["disagreement"].value, changes["accuracy_top1_change"].value)

    def test_a_reference_of_other_images_is_refused(self) -> None:
        with pytest.raises(InvalidInput, match="imagenet-v2: the reference was evaluated on other images"):
            robustness.score({V2: answers(V2, [True])}, {V2: answers(V2, [True], digest="b")})


class TestAlexNet:
    def test_the_table_is_the_mean_of_the_published_errors_by_severity(self) -> None:
        assert CORRUPTIONS == tuple(ALEXNET)
        for name, errors in ALEXNET_BY_SEVERITY.items():
            assert ALEXNET[name] == pytest.approx(sum(errors) / 5, abs=1e-6)

    def test_its_own_errors_give_1_for_every_corruption_and_100_for_the_mean(self) -> None:
        n = 2000
        found: dict[Pass, Predictions] = {VAL: answers(VAL, rights(n - round(ALEXNET_CLEAN * n), n), classes=12)}
        for name in CORRUPTIONS:
            wrong = round(ALEXNET[name] * 5 * n)
            for severity in range(1, 6):
                # As many wrong answers per severity as add up to the table's mean.
                count = wrong // 5 + (severity <= wrong % 5)
                found[Pass("imagenet-c", f"{name}:{severity}")] = answers(C, rights(n - count, n), classes=12)
        scores = by_name(only(robustness.score(found, None), "imagenet-c", "corruptions").scores)
        for name in CORRUPTIONS:
            assert scores[f"ce@{name}"].value == pytest.approx(1.0, abs=0.5 / (5 * n * 0.56))
            assert scores[f"corruption_error@{name}"].value == pytest.approx(ALEXNET[name], abs=0.5 / (5 * n))
        assert scores["mean_ce"].value == pytest.approx(100.0, abs=0.01)
        assert scores["relative_mean_ce"].value == pytest.approx(100.0, abs=0.1)
        assert scores["mean_corruption_accuracy"].value == pytest.approx(1 - sum(ALEXNET.values()) / 15, abs=1e-4)


class TestImageNetC:
    def test_every_number_repeats_its_definition(self) -> None:
        one = Random(1, dataset="imagenet-c")
        evaluation = only(robustness.score(one.passes(), None), "imagenet-c", "corruptions")
        scores = by_name(evaluation.scores)
        errors = {name: 1 - one.accuracy(name) for name in CORRUPTIONS}
        clean = 1 - one.clean_accuracy
        expected = {f"accuracy@{name}": one.accuracy(name) for name in ALL} | {
            f"accuracy@{name}:{severity}": float((one.predicted[name, severity] == one.targets).mean())
            for name in ALL for severity in range(1, 6)} | {
            f"consistency@{name}": float(np.mean([one.predicted[name, severity] == one.clean for severity in range(1, 6)]))
            for name in ALL} | {
            f"corruption_error@{name}": error for name, error in errors.items()} | {
            f"ce@{name}": error / ALEXNET[name] for name, error in errors.items()} | {
            "mean_corruption_accuracy": one.mean(), "held_out_corruption_accuracy": one.mean(HELD_OUT),
            "relative_corruption_accuracy": one.mean() / one.clean_accuracy,
            "mean_ce": 100 * sum(errors[name] / ALEXNET[name] for name in CORRUPTIONS) / 15,
            "relative_mean_ce": 100 * sum((errors[name] - clean) / (ALEXNET[name] - 0.4348) for name in CORRUPTIONS) / 15}
        expected["mean_consistency"] = sum(expected[f"consistency@{name}"] for name in CORRUPTIONS) / 15
        assert set(expected) == set(scores)
        for name, value in expected.items():
            assert scores[name].value == pytest.approx(value, abs=1e-9), name
            assert scores[name].low < scores[name].value < scores[name].high, name
            assert 40 == scores[name].n
        assert 96 == len(evaluation.predictions)
        assert VAL.file in evaluation.predictions

    def test_a_subset_of_the_images_is_named_in_every_score(self) -> None:
        evaluation = only(robustness.score(Random(1, dataset="imagenet-c").passes(), None), "imagenet-c", "corruptions")
        assert all((40, {"subset_of": 50_000}) == (one.n, one.facts) for one in evaluation.scores)

    def test_held_out_corruptions_are_in_no_mean(self) -> None:
        with_them, without = Random(1, dataset="imagenet-c"), Random(1, dataset="imagenet-c")
        without.predicted = {key: one for key, one in without.predicted.items() if key[0] in CORRUPTIONS}
        first, second = (by_name(only(robustness.score(one.passes(), None), "imagenet-c", "corruptions").scores)
                         for one in (with_them, without))
        for name in ("mean_ce", "relative_mean_ce", "mean_corruption_accuracy", "mean_consistency", "relative_corruption_accuracy"):
            assert first[name] == second[name]
        absent = second["held_out_corruption_accuracy"]
        assert (None, f"not measured at all five severities: {', '.join(HELD_OUT)}") == (absent.value, absent.reason)
        assert not any(name.partition("@")[2].partition(":")[0] in HELD_OUT for name in second)

    def test_a_missing_severity_leaves_its_corruption_and_the_means_without_value(self) -> None:
        found = Random(1, dataset="imagenet-c").passes()
        del found[Pass("imagenet-c", "fog:4")]
        scores = by_name(only(robustness.score(found, None), "imagenet-c", "corruptions").scores)
        assert "accuracy@fog:4" not in scores
        assert scores["accuracy@fog:5"].value is not None
        assert (None, "not measured at all five severities") == (scores["accuracy@fog"].value, scores["accuracy@fog"].reason)
        for name in ("mean_corruption_accuracy", "mean_ce"):
            assert (None, "not measured at all five severities: fog") == (scores[name].value, scores[name].reason)
        assert scores["ce@snow"].value is not None
        assert "ce@fog" not in scores
        assert scores["held_out_corruption_accuracy"].value is not None

    def test_a_single_pass_is_scored(self) -> None:
        key = Pass("imagenet-c", "fog:4")
        scores = by_name(only(robustness.score({key: answers(C, rights(3, 4))}, {key: answers(C, rights(2, 4))}), "imagenet-c", "corruptions").scores)
        assert 0.75 == scores["accuracy@fog:4"].value
        assert {None} == {one.value for name, one in scores.items() if name != "accuracy@fog:4"}

    def test_without_validation_images_nothing_is_relative(self) -> None:
        scores = by_name(only(robustness.score(Random(1, dataset="imagenet-c").passes(clean=False), None), "imagenet-c", "corruptions").scores)
        absent = scores["relative_mean_ce"]
        assert (None, "not all of these images were measured uncorrupted") == (absent.value, absent.reason)
        assert not any("consistency" in name for name in scores)
        assert scores["mean_ce"].value is not None

    def test_images_are_matched_by_name_not_by_order(self) -> None:
        one = Random(1, dataset="imagenet-c")
        found = one.passes()
        turned = np.random.default_rng(0).permutation(one.n)
        for key in (VAL, Pass("imagenet-c", "snow:2"), Pass("imagenet-c", "speckle_noise:5")):
            old = found[key]
            found[key] = Predictions(dataset=old.dataset, logits=old.logits[turned], targets=old.targets[turned], ids=old.ids[turned])
        same = [only(robustness.score(passes, None), "imagenet-c", "corruptions").scores for passes in (one.passes(), found)]
        assert [score.value for score in same[0]] == pytest.approx([score.value for score in same[1]])

    def test_images_that_a_pass_lacks_are_left_out_everywhere(self) -> None:
        one = Random(1, dataset="imagenet-c")
        found = one.passes()
        key, kept = Pass("imagenet-c", "snow:2"), np.arange(one.n) != 7
        old = found[key]
        found[key] = Predictions(dataset=old.dataset, logits=old.logits[kept], targets=old.targets[kept], ids=old.ids[kept])
        scores = by_name(only(robustness.score(found, None), "imagenet-c", "corruptions").scores)
        assert 39 == scores["accuracy@fog:1"].n
        assert scores["accuracy@fog:1"].value == pytest.approx((one.predicted["fog", 1] == one.targets)[kept].mean())
        assert scores["relative_corruption_accuracy"].value is not None

    def test_passes_without_a_common_image_say_so(self) -> None:
        first, second = Pass("imagenet-c", "fog:1"), Pass("imagenet-c", "fog:2")
        found = {first: answers(C, [True], ids=["a.JPEG"]), second: answers(C, [True], ids=["b.JPEG"]), V2: answers(V2, [True])}
        score, = only(robustness.score(found, found), "imagenet-c", "corruptions").scores
        assert (None, "the passes have no image in common") == (score.value, score.reason)


class TestGeneratedCorruptions:
    def test_own_images_are_never_held_against_alexnet(self) -> None:
        one = Random(2)
        evaluations = robustness.score(one.passes(), None)
        evaluation, = evaluations
        assert ("robustness", "mine", "imagenet-c-generated") == (evaluation.property, evaluation.dataset.name, evaluation.condition)
        scores = by_name(evaluation.scores)
        assert not any(name.partition("@")[0] in {"ce", "mean_ce", "relative_mean_ce", "corruption_error"} for name in scores)
        assert not any("AlexNet" in score.method for score in evaluation.scores)
        assert scores["mean_corruption_accuracy"].value == pytest.approx(one.mean())
        assert scores["relative_corruption_accuracy"].value == pytest.approx(one.mean() / one.clean_accuracy)
        assert all("made here, not the files of ImageNet-C" in score.method for score in evaluation.scores)

    def test_validation_images_are_corrupted_here_beside_their_real_labels(self, no_packages: None) -> None:
        found = robustness.score(Random(2, dataset="imagenet-val").passes(), None)
        assert [("imagenet-val", "clean"), ("imagenet-val", "imagenet-c-generated")] == [(one.dataset.name, one.condition) for one in found]

    def test_the_clean_pass_may_hold_more_images(self) -> None:
        one = Random(2)
        found = one.passes()
        more = Random(2, n=60)
        extra = predictions(Pass("mine"), np.append(one.clean, more.clean[40:]), np.append(one.targets, more.targets[40:]),
                            ids=[*one.ids, *(f"more/{k}.png" for k in range(20))], classes=4)
        scores = [robustness.score({**found, Pass("mine"): clean}, None)[-1].scores for clean in (found[Pass("mine")], extra)]
        assert scores[0] == scores[1]

    def test_where_an_image_was_not_measured_uncorrupted_nothing_is_relative(self) -> None:
        one = Random(2)
        found, less = one.passes(), slice(0, 39)
        found[Pass("mine")] = predictions(Pass("mine"), one.clean[less], one.targets[less], ids=one.ids[less], classes=4)
        scores = by_name(robustness.score(found, None)[0].scores)
        absent = scores["relative_corruption_accuracy"]
        assert (None, "not all of these images were measured uncorrupted") == (absent.value, absent.reason)
        assert not any("consistency" in name for name in scores)
        assert 40 == scores["mean_corruption_accuracy"].n

    def test_where_no_uncorrupted_image_is_right_nothing_is_relative(self) -> None:
        one = Random(2)
        one.clean = (one.targets + 1) % 4
        scores = by_name(robustness.score(one.passes(), None)[0].scores)
        absent = scores["relative_corruption_accuracy"]
        assert (None, "no uncorrupted image is right") == (absent.value, absent.reason)
        assert scores["mean_consistency"].value is not None

    def test_answers_that_are_always_right_have_no_interval_but_wilsons(self) -> None:
        one = Random(2)
        one.predicted = dict.fromkeys(one.predicted, one.targets)
        scores = by_name(robustness.score(one.passes(), None)[0].scores)
        assert (1.0, None) == (scores["accuracy@fog"].value, scores["accuracy@fog"].low)
        assert "resampling cannot bound it" in (scores["accuracy@fog"].reason or "")
        assert (stats.wilson(40, 40)[0], 1.0) == (scores["accuracy@fog:1"].low, scores["accuracy@fog:1"].high)

    def test_an_image_stays_together_under_all_its_corruptions(self) -> None:
        # Ten images right under everything, thirty under nothing: 40 clusters, not 3,000 answers.
        one = Random(2)
        one.predicted = dict.fromkeys(one.predicted, np.where(np.arange(40) < 10, one.targets, (one.targets + 1) % 4))
        score = by_name(robustness.score(one.passes(), None)[0].scores)["mean_corruption_accuracy"]
        assert score.value == pytest.approx(0.25)
        assert score.high - score.low == pytest.approx(2 * 1.96 * np.sqrt(0.25 * 0.75 / 40), rel=0.15)


class TestCorruptionsAgainstTheReference:
    @pytest.mark.parametrize("dataset", ["mine", "imagenet-c"])
    def test_changes_are_the_differences_of_the_scores(self, dataset: str) -> None:
        mine, theirs = Random(1, dataset=dataset, skill=0.5), Random(2, dataset=dataset, skill=0.6)
        evaluation = robustness.score(mine.passes(), theirs.passes())[-1]
        after = by_name(evaluation.scores)
        before = by_name(robustness.score(theirs.passes(), None)[-1].scores)
        changes = by_name(evaluation.reference_scores)
        differences = {name: one for name, one in changes.items() if "_change" in name}
        assert {f"{name.partition('@')[0]}_change{''.join(name.partition('@')[1:])}" for name in after} == set(differences)
        for name, one in after.items():
            metric, at, level = name.partition("@")
            change = changes[f"{metric}_change{at}{level}"]
            assert change.value == pytest.approx(one.value - before[name].value, abs=1e-9), name
            assert change.low <= change.value <= change.high, name
            assert change.better == one.better

    def test_flips_of_one_condition_have_tangos_interval(self) -> None:
        mine, theirs = Random(1), Random(2)
        change = by_name(robustness.score(mine.passes(), theirs.passes())[0].reference_scores)["accuracy_change@fog:3"]
        after, before = (one.predicted["fog", 3] == one.targets for one in (mine, theirs))
        assert stats.paired_interval(int((after & ~before).sum()), int((before & ~after).sum()), 40) == (change.low, change.high)

    def test_disagreement_and_tests_are_by_corruption_over_severities(self) -> None:
        mine, theirs = Random(1, skill=0.45), Random(2, skill=0.9)
        changes = by_name(robustness.score(mine.passes(), theirs.passes())[0].reference_scores)
        raw = []
        for name in ALL:
            differs = [mine.predicted[name, severity] != theirs.predicted[name, severity] for severity in range(1, 6)]
            assert changes[f"disagreement@{name}"].value == pytest.approx(np.mean(differs))
            gain = sum((mine.predicted[name, severity] == mine.targets).astype(int)
                       - (theirs.predicted[name, severity] == mine.targets) for severity in range(1, 6))
            raw.append(float(chi2.sf(gain.sum() ** 2 / (gain ** 2).sum(), 1)))
        assert raw == pytest.approx([changes[f"mcnemar_p@{name}"].value for name in ALL])
        assert stats.holm(raw) == pytest.approx([changes[f"mcnemar_p_holm@{name}"].value for name in ALL])
        assert min(raw) < 0.001

    def test_the_same_answers_change_nothing(self) -> None:
        one = Random(1)
        for score in robustness.score(one.passes(), one.passes())[0].reference_scores:
            assert score.value == (1.0 if score.name.startswith("mcnemar") else 0.0)
            assert score.reason or score.name.startswith(("mcnemar", "accuracy_change@"))

    def test_conditions_that_the_reference_lacks_are_left_out_of_the_changes(self) -> None:
        mine, theirs = Random(1), Random(2).passes()
        theirs = {key: one for key, one in theirs.items() if key.condition.startswith(("snow", "fog:2"))}
        changes = by_name(robustness.score(mine.passes(), theirs)[0].reference_scores)
        assert {"accuracy_change@fog:2", *(f"accuracy_change@snow:{severity}" for severity in range(1, 6)), "accuracy_change@snow",
                "disagreement@snow", "mcnemar_p@snow", "mcnemar_p_holm@snow"} == set(changes)


class TestClusteredMcNemar:
    @pytest.mark.parametrize(("negative", "positive"), [(30, 12), (5, 5), (1, 0), (200, 160)])
    def test_with_one_view_it_is_mcnemars_without_correction(self, negative: int, positive: int) -> None:
        gains = [-1] * negative + [1] * positive + [0] * 50
        assert clustered_mcnemar(gains) == pytest.approx(chi2.sf((negative - positive) ** 2 / (negative + positive), 1))

    def test_repeating_each_view_adds_no_evidence(self) -> None:
        gains = np.array([-1] * 12 + [1] * 4)
        assert clustered_mcnemar(5 * gains) == pytest.approx(clustered_mcnemar(gains))

    def test_no_flip_is_no_evidence(self) -> None:
        assert clustered_mcnemar([0, 0, 0]) == 1.0

    def test_chance_alone_falls_below_5_percent_in_5_percent_of_cases(self) -> None:
        # Views of one image flip the same way: taken one by one they would seem significant far too often.
        generator = np.random.default_rng(0)
        sign = generator.choice([-1, 1], (2000, 200))
        flips = (generator.random((2000, 200, 5)) < 0.4).sum(axis=2) * sign
        found = np.array([clustered_mcnemar(one) for one in flips])
        assert 0.035 < (found < 0.05).mean() < 0.065


class TestMeanOfSeven:
    def sets(self, accuracies: Sequence[float], source: str, n: int = 1000) -> dict[Pass, Predictions]:
        """All seven sets with these accuracies (V2, A, C, Hard, R, Sketch, ReaL), in percent."""
        v2, a, c, hard, r, sketch, real = (round(one / 100 * n) for one in accuracies)
        found = {key: answers(key, rights(count, n)) for key, count in ((V2, v2), (A, a), (R, r), (SKETCH, sketch))}
        found[HARD] = answers(HARD, rights(hard, n), labels=[[6, 7]] * n)
        ids = [val_id(k + 1, 6) for k in range(n)]
        found[VAL] = answers(VAL, rights(real, n), ids=ids, source=source)
        under = answers(C, rights(c, n), ids=ids, classes=12)
        return found | {Pass("imagenet-c", f"{name}:{severity}"): under for name in CORRUPTIONS for severity in range(1, 6)}

    @pytest.mark.parametrize("model", PAPER)
    def test_it_is_the_papers_without_validation_accuracy(self, model: str, data_root) -> None:
        *accuracies, mean = PAPER[model]
        source = data_root({number: [6] for number in range(1, 1001)})
        evaluation = robustness.score(self.sets(accuracies, source), None)[-1]
        score, = evaluation.scores
        assert ("imagenet-shifts", "summary", "mean_of_seven") == (evaluation.dataset.name, evaluation.condition, score.name)
        assert round(100 * score.value, 1) == mean
        assert {"subset_of_imagenet_c": 50_000} == score.facts
        assert score.low < score.value < score.high

    def test_the_interval_takes_images_of_c_and_real_together(self, data_root) -> None:
        n = 1000
        source = data_root({number: [6] for number in range(1, n + 1)})
        accuracies = [0.0, 0.0, 50.0, 0.0, 0.0, 0.0, 50.0]
        score, = robustness.score(self.sets(accuracies, source), None)[-1].scores
        # The same half of the images is right in both: the sum of two equal terms, not of two independent ones.
        assert score.high - score.low == pytest.approx(2 * 1.96 * 2 * 0.5 / np.sqrt(n) / 7, rel=1e-3)

    def test_what_is_missing_is_named(self, no_packages: None) -> None:
        evaluation = robustness.score({V2: answers(V2, [True]), HARD: answers(HARD, [True])}, None)[-1]
        score, = evaluation.scores
        assert (None, "not measured: imagenet-a, imagenet-r, imagenet-c, imagenet-sketch, imagenet-hard, ReaL") == (score.value, score.reason)
        assert (V2.file,) == evaluation.predictions

    def test_without_a_shifted_set_there_is_no_summary(self) -> None:
        assert not any(one.condition == "summary" for one in robustness.score(Random(1, dataset="imagenet-c").passes(), None))

    def test_its_change_is_paired(self, data_root) -> None:
        source = data_root({number: [6] for number in range(1, 1001)})
        *accuracies, _ = PAPER["ViT-sup"]
        theirs = self.sets(accuracies, source)
        mine = self.sets([one - 1.0 for one in accuracies], source)
        evaluation = robustness.score(mine, theirs)[-1]
        change, = evaluation.reference_scores
        assert ("mean_of_seven_change", "higher") == (change.name, change.better)
        assert change.value == pytest.approx(-0.01)
        assert change.high - change.low < 0.25 * (evaluation.scores[0].high - evaluation.scores[0].low)
        del theirs[V2]
        assert () == robustness.score(mine, theirs)[-1].reference_scores

    def test_presets_are_not_mixed(self, data_root) -> None:
        source = data_root({number: [6] for number in range(1, 1001)})
        found = self.sets([50.0] * 7, source)
        other = Pass("imagenet-v2", preset="paper")
        mixed = {**{key: one for key, one in found.items() if key != V2}, other: found[V2]}
        summaries = {one.preset: one.scores[0] for one in robustness.score(mixed, None) if one.condition == "summary"}
        assert ("not measured: imagenet-v2", None) == (summaries["native"].reason, summaries["native"].value)
        assert 6 == len((summaries["paper"].reason or "").split(", "))

    def test_the_seven_are_the_papers(self) -> None:
        assert ("imagenet-v2", "imagenet-a", "imagenet-r", "imagenet-c", "imagenet-sketch", "imagenet-hard", "ReaL") == SEVEN
