"""Transfer: real digits against scikit-learn used directly, constructed drift, the split of one's own images."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from edgebench import probe, stats
from edgebench.errors import InvalidInput
from edgebench.properties import Pass, Predictions, transfer
from edgebench.properties.transfer import TEST, TRAIN, UNUSED, VAL, split
from edgebench.record import DatasetIdentity, Evaluation, Score

linear = pytest.importorskip("sklearn.linear_model", reason="the transfer extra brings scikit-learn")
Parts = dict[str, tuple[np.ndarray, np.ndarray]]


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    # Threads of the matrix products wait for each other where others are at work: minutes instead of seconds.
    with pytest.importorskip("threadpoolctl").threadpool_limits(1):
        yield


@pytest.fixture(scope="module")
def digits() -> Parts:
    """8 x 8 digits as features (n, 64) and labels, in the splits of a VTAB task."""
    x, y = pytest.importorskip("sklearn.datasets").load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(y))
    x, y = x[order].astype(np.float32), y[order].astype(np.int64)
    return {"train800": (x[:200], y[:200]), "val200": (x[200:300], y[200:300]), "test": (x[300:], y[300:])}


def blobs(seed: int, *, n: Sequence[int] = (60, 30, 200), dimensions: int = 12, classes: int = 3,
          distance: float = 0.5) -> Parts:
    """One centre per class and noise around it, in three splits."""
    generator = np.random.default_rng(seed)
    centres = generator.normal(size=(classes, dimensions)) * distance
    parts = {}
    for name, count in zip(transfer.SPLITS, n, strict=True):
        y = np.arange(count) % classes
        parts[name] = ((centres[y] + generator.normal(size=(count, dimensions))).astype(np.float32), y)
    return parts


def predictions(name: str, x: np.ndarray | None, y: np.ndarray, *, ids: Sequence[str] = (), digest: str = "",
                preset: str = "native") -> dict[Pass, Predictions]:
    identity = DatasetIdentity(name=name, source=f"data/{name}", images=len(y), classes=len(set(y.tolist())),
                               digest=digest or hashlib.sha256(name.encode()).hexdigest())
    # A VTAB task has more classes than the model may have outputs: nothing may look at the logits.
    return {Pass(name, preset=preset): Predictions(
        dataset=identity, logits=np.zeros((len(y), 2), np.float32), targets=y, features=x,
        ids=np.array(list(ids) or [f"{label}/{k:05d}.png" for k, label in enumerate(y.tolist())]))}


def task(parts: Parts, name: str = "dtd", *, change=lambda x: x, preset: str = "native") -> dict[Pass, Predictions]:
    found: dict[Pass, Predictions] = {}
    for part, (x, y) in parts.items():
        found |= predictions(f"vtab/{name}/{part}", change(x), y, preset=preset)
    return found


def noisy(amount: float, seed: int = 5):
    """A change of features like coarse rounding."""
    return lambda x: (x + np.random.default_rng(seed + len(x)).normal(size=x.shape) * amount).astype(np.float32)


def by_name(scores: Sequence[Score]) -> dict[str, Score]:
    named = {one.name: one for one in scores}
    assert len(named) == len(scores)
    return named


def scored(mine: dict[Pass, Predictions], theirs: dict[Pass, Predictions] | None = None,
           ) -> tuple[dict[str, Score], dict[str, Score]]:
    evaluation, = transfer.score(mine, theirs)
    return by_name(evaluation.scores), by_name(evaluation.reference_scores)


def reason(mine: dict[Pass, Predictions]) -> str:
    evaluation, = transfer.score(mine, mine)
    only, = evaluation.scores
    assert ("probe_accuracy", None, ()) == (only.name, only.value, evaluation.reference_scores)
    return only.reason


class TestDigits:
    def test_accuracy_and_recall_are_those_of_scikit_learn_at_the_chosen_strength(self, digits: Parts) -> None:
        metrics = pytest.importorskip("sklearn.metrics")
        pipeline = pytest.importorskip("sklearn.pipeline")
        scaler = pytest.importorskip("sklearn.preprocessing").StandardScaler().fit(digits["train800"][0])
        evaluation, = transfer.score(task(digits), None)
        scores = by_name(evaluation.scores)
        direct = linear.LogisticRegression(C=scores["probe_c"].value, max_iter=20_000, tol=1e-9)
        direct.fit(scaler.transform(np.concatenate([digits["train800"][0], digits["val200"][0]])),
                   np.concatenate([digits["train800"][1], digits["val200"][1]]))
        x, y = digits["test"]
        answers = pipeline.make_pipeline(scaler, direct).predict(x)
        assert np.mean(answers == y) == pytest.approx(scores["probe_accuracy"].value, abs=0.002)
        assert metrics.recall_score(y, answers, average="macro") == pytest.approx(scores["probe_recall"].value, abs=0.002)
        assert stats.wilson(round(scores["probe_accuracy"].value * 1497), 1497) == (
            scores["probe_accuracy"].low, scores["probe_accuracy"].high)
        assert {"train_images": 200, "val_images": 100, "test_images": 1497} == scores["probe_accuracy"].facts
        assert ("transfer", "probe", "native", ()) == (
            evaluation.property, evaluation.condition, evaluation.preset, evaluation.reference_scores)

    def test_the_evaluation_is_of_all_three_splits(self, digits: Parts) -> None:
        mine = task(digits)
        evaluation, = transfer.score(mine, None)
        assert ("vtab/dtd", 1797, 10) == (evaluation.dataset.name, evaluation.dataset.images, evaluation.dataset.classes)
        digests = "".join(mine[Pass(f"vtab/dtd/{part}")].dataset.digest for part in ("train800", "val200", "test"))
        assert hashlib.sha256(digests.encode()).hexdigest() == evaluation.dataset.digest
        assert "data/vtab/dtd" == evaluation.dataset.source
        assert {f"predictions/vtab-dtd-{part}--clean--native.npz" for part in transfer.SPLITS} == set(evaluation.predictions)

    def test_intervals_are_those_of_the_bootstrap_over_images(self, digits: Parts) -> None:
        mine, theirs = task(digits, change=noisy(3.0)), task(digits)
        scores, changes = scored(mine, theirs)
        x, y = mine[Pass("vtab/dtd/test")].features, digits["test"][1]
        arrays = [(one[Pass(f"vtab/dtd/{part}")].features, digits[part][1]) for one in (mine, theirs)
                  for part in ("train800", "val200")]
        right = probe.remembered(*arrays[0], *arrays[1]).predict(x) == y
        before = probe.remembered(*arrays[2], *arrays[3]).predict(digits["test"][0]) == y

        def statistics(chosen: np.ndarray) -> np.ndarray:
            recalls = [[flags[chosen][y[chosen] == k].mean() for k in range(10)] for flags in (right, before)]
            return np.array([np.mean(recalls[0]), np.mean(recalls[0]) - np.mean(recalls[1]),
                             right[chosen].mean() - before[chosen].mean()])

        low, high = stats.bootstrap(statistics, len(y))
        for k, one in enumerate((scores["probe_recall"], changes["probe_recall_change"], changes["probe_accuracy_change"])):
            assert pytest.approx((low[k], high[k]), abs=0.003) == (one.low, one.high), one.name
            assert statistics(np.arange(len(y)))[k] == pytest.approx(one.value), one.name


class TestSwapAndRefit:
    def test_features_in_other_units_hurt_the_swap_and_not_the_refit(self, digits: Parts) -> None:
        # Every second feature twice as large, and moved: each channel has its own quantization scale and zero point.
        factor = 1.0 + np.arange(64) % 2
        scores, changes = scored(task(digits, change=lambda x: (x * factor + 6 * factor).astype(np.float32)), task(digits))
        own = scored(task(digits))[0]["probe_accuracy"].value
        assert own == pytest.approx(scores["probe_accuracy"].value, abs=0.003)
        assert abs(changes["probe_accuracy_change"].value) < 0.003
        assert changes["probe_swap_accuracy"].value < own - 0.1
        assert changes["probe_swap_accuracy_change"].high < -0.1
        assert changes["probe_refit_gain"].low > 0.1
        assert changes["probe_swap_mcnemar_p"].value < 1e-6
        assert changes["probe_mcnemar_p"].value > 0.05

    def test_information_that_is_gone_is_gone_after_refitting_too(self, digits: Parts) -> None:
        def blind(x: np.ndarray) -> np.ndarray:
            return np.where(np.arange(64) % 8 < 5, 0.0, x).astype(np.float32)

        _, changes = scored(task(digits, change=blind), task(digits))
        assert changes["probe_accuracy_change"].high < -0.1
        assert changes["probe_swap_accuracy_change"].value < changes["probe_accuracy_change"].value
        assert changes["probe_refit_gain"].value == pytest.approx(
            changes["probe_accuracy_change"].value - changes["probe_swap_accuracy_change"].value)

    def test_the_same_features_change_nothing(self) -> None:
        scores, changes = scored(task(blobs(1)), task(blobs(1)))
        assert scores["probe_accuracy"].value == changes["probe_swap_accuracy"].value
        for name, one in changes.items():
            if "mcnemar" in name:
                assert 1.0 == one.value, name
            elif "recall" in name:
                assert (0.0, None, True) == (one.value, one.low, "resampling cannot bound it" in one.reason), name
            elif "flips" in name:
                assert 0.0 == one.value == one.low < one.high, name
            elif name != "probe_swap_accuracy":
                # As wide as no change among so many images leaves it.
                assert (0.0, *stats.paired_interval(0, 0, one.n)) == (one.value, one.low, one.high), name

    def test_flips_sum_up_to_the_change_and_feed_the_test(self) -> None:
        _, changes = scored(task(blobs(1), change=noisy(0.7)), task(blobs(1)))
        for stem in ("probe", "probe_swap"):
            lost, won = (changes[f"{stem}_{kind}_flips"].value for kind in ("negative", "positive"))
            change = changes[f"{stem}_accuracy_change"]
            assert lost > 0.0 < won
            assert pytest.approx(won - lost) == change.value
            assert change.low < change.value < change.high
            assert stats.mcnemar_exact(round(lost * 200), round(won * 200)) == changes[f"{stem}_mcnemar_p"].value

    def test_the_length_of_a_feature_vector_does_not_matter_to_the_normalised_probe(self, digits: Parts) -> None:
        def stretched(x: np.ndarray) -> np.ndarray:
            return (x * np.exp(np.random.default_rng(len(x)).normal(size=(len(x), 1)))).astype(np.float32)

        scores, changes = scored(task(digits, change=stretched), task(digits))
        plain = scored(task(digits))[0]
        assert plain["probe_accuracy_normalised"].value == pytest.approx(scores["probe_accuracy_normalised"].value, abs=0.003)
        assert scores["probe_accuracy"].value < plain["probe_accuracy"].value - 0.03
        assert abs(changes["probe_accuracy_normalised_change"].value) < 0.003

    def test_a_feature_vector_of_zeros_has_no_direction_and_does_no_harm(self) -> None:
        parts = blobs(1)
        for x, _ in parts.values():
            x[:2] = 0.0
        assert scored(task(parts))[0]["probe_accuracy_normalised"].value > 0.5

    def test_the_reference_is_fitted_once_for_all_variants(self, monkeypatch: pytest.MonkeyPatch) -> None:
        fits: list[int] = []
        fit = probe.fit
        monkeypatch.setattr(probe, "fit", lambda *arrays: fits.append(1) or fit(*arrays))
        monkeypatch.setattr(probe, "_probes", type(probe._probes)())
        reference = task(blobs(1))
        transfer.score(reference, None)
        assert 2 == len(fits)
        for seed in range(3):
            transfer.score(task(blobs(1), change=noisy(0.1, seed)), reference)
        assert 2 + 3 * 2 == len(fits)

    def test_a_reference_with_other_features_has_no_swap(self) -> None:
        wide = task(blobs(1), change=lambda x: np.hstack([x, x]))
        _, changes = scored(wide, task(blobs(1)))
        assert changes["probe_swap_accuracy"].value is None
        assert "12 features, this variant 24" in changes["probe_swap_accuracy"].reason
        assert changes["probe_accuracy_change"].value is not None
        assert not any(name.startswith(("probe_swap_accuracy_change", "probe_refit")) for name in changes)

    def test_a_reference_without_features_or_with_a_split_missing_has_none_either(self) -> None:
        mine, reference = task(blobs(1)), task(blobs(1))
        _, changes = scored(mine, {key: replace(one, features=None) for key, one in reference.items()})
        assert ["probe_swap_accuracy"] == list(changes)
        assert "no output `features`" in changes["probe_swap_accuracy"].reason
        del reference[Pass("vtab/dtd/val200")]
        assert {} == scored(mine, reference)[1]

    def test_a_reference_of_other_images_is_refused(self) -> None:
        mine, key = task(blobs(1)), Pass("vtab/dtd/val200")
        other = replace(mine[key], dataset=replace(mine[key].dataset, digest="e" * 64))
        with pytest.raises(InvalidInput, match="other images"):
            transfer.score(mine, {**mine, key: other})


class TestSeveralTasks:
    def several(self, change=lambda x: x) -> dict[Pass, Predictions]:
        return (task(blobs(1, n=(60, 30, 200)), "dtd", change=change) | task(blobs(2, n=(60, 30, 50)), "mine", change=change)
                | task(blobs(3, distance=0.3), "cifar100", change=change))

    def test_the_mean_is_over_tasks_and_says_which(self) -> None:
        *tasks, whole = transfer.score(self.several(), None)
        assert ["vtab/dtd", "vtab/mine", "vtab/cifar100"] == [one.dataset.name for one in tasks]
        only, = whole.scores
        assert np.mean([one.scores[0].value for one in tasks]) == pytest.approx(only.value)
        assert ("vtab_mean", 450) == (only.name, only.n)
        assert {"tasks": "cifar100, dtd", "of_vtab": "2 of 19", "other_tasks": "mine"} == only.facts
        assert ("vtab", "summary", "data/vtab", 720) == (
            whole.dataset.name, whole.condition, whole.dataset.source, whole.dataset.images)
        assert 9 == len(whole.predictions)
        assert () == whole.reference_scores
        # Shares of three independent samples.
        variance = sum(one.scores[0].value * (1 - one.scores[0].value) / one.scores[0].n for one in tasks) / 9
        assert pytest.approx(2 * 1.96 * variance**0.5, rel=0.1) == only.high - only.low

    def test_tasks_are_resampled_independently(self) -> None:
        one, _, whole = transfer.score(task(blobs(1), "dtd") | task(blobs(1), "svhn"), None)
        assert one.scores[0].value == whole.scores[0].value
        narrower = (whole.scores[0].high - whole.scores[0].low) / (one.scores[0].high - one.scores[0].low)
        assert pytest.approx(0.5**0.5, rel=0.1) == narrower

    def test_changes_against_the_reference(self) -> None:
        *tasks, whole = transfer.score(self.several(noisy(0.7)), self.several())
        changes = by_name(whole.reference_scores)
        each = [by_name(one.reference_scores) for one in tasks]
        for name, of in (("vtab_mean_change", "probe_accuracy_change"), ("vtab_swap_mean", "probe_swap_accuracy"),
                         ("vtab_swap_mean_change", "probe_swap_accuracy_change")):
            assert np.mean([one[of].value for one in each]) == pytest.approx(changes[name].value), name
            assert changes[name].low < changes[name].value < changes[name].high, name
            assert f" of {of};" in changes[name].method
        for stem in ("probe", "probe_swap"):
            p = [one[f"{stem}_mcnemar_p"].value for one in each]
            assert stats.holm(p) == tuple(one[f"{stem}_mcnemar_p_holm"].value for one in each)
            assert max(p) < 1.0

    def test_a_single_task_has_no_mean(self) -> None:
        assert 1 == len(transfer.score(task(blobs(1)), None))
        both = task(blobs(1)) | predictions("mine", *own(30))
        assert ["vtab/dtd", "mine"] == [one.dataset.name for one in transfer.score(both, None)]

    def test_a_task_without_probe_is_left_out_of_the_mean(self) -> None:
        mine = self.several()
        del mine[Pass("vtab/mine/test")]
        found = {one.dataset.name: one for one in transfer.score(mine, None)}
        assert found["vtab/mine"].scores[0].value is None
        assert "other_tasks" not in found["vtab"].scores[0].facts

    def test_presets_are_kept_apart(self) -> None:
        mine = task(blobs(1)) | task(blobs(2, distance=4.0), preset="paper")
        assert [("native", True), ("paper", False)] == [
            (one.preset, one.scores[0].value < 1.0) for one in transfer.score(mine, None)]


def own(per_class: int, *, classes: int = 3, seed: int = 1, dimensions: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Features and labels of one's own images, class after class."""
    parts = blobs(seed, n=(1, 1, per_class * classes), classes=classes, distance=2.0, dimensions=dimensions)
    x, y = parts["test"]
    order = np.argsort(y, kind="stable")
    return x[order], y[order].astype(np.int64)


class TestOwnImages:
    def test_are_split_by_their_names_and_read(self) -> None:
        x, y = own(20)
        mine = predictions("mine", x, y)
        evaluation, = transfer.score(mine, None)
        found = by_name(evaluation.scores)
        assert found["probe_accuracy"].value > 0.8
        assert 12 == found["probe_accuracy"].n
        assert "split 3 : 1 : 1 within each class" in found["probe_accuracy"].method
        assert {"train_images": 36, "val_images": 12, "test_images": 12} == found["probe_accuracy"].facts
        assert mine[Pass("mine")].dataset == evaluation.dataset
        assert ("predictions/mine--clean--native.npz",) == evaluation.predictions
        # The same probe, by hand.
        part = split(mine[Pass("mine")].ids.tolist(), y)
        by_hand = probe.fit(x[part == TRAIN], y[part == TRAIN], x[part == VAL], y[part == VAL])
        assert np.mean(by_hand.predict(x[part == TEST]) == y[part == TEST]) == found["probe_accuracy"].value

    def test_images_that_are_all_read_right_leave_the_recall_unbounded(self) -> None:
        found = scored(predictions("mine", *(lambda x, y: (x * 0.01 + y[:, None], y))(*own(20))))[0]
        assert (1.0, None) == (found["probe_recall"].value, found["probe_recall"].low)
        assert "cannot bound" in found["probe_recall"].reason
        assert found["probe_accuracy"].low < 1.0

    @pytest.mark.parametrize(("per_class", "parts"), [(5, (3, 1, 1)), (7, (5, 1, 1)), (8, (4, 2, 2)), (10, (6, 2, 2)), (100, (60, 20, 20))])
    def test_each_class_is_split_three_to_one_to_one(self, per_class: int, parts: tuple[int, int, int]) -> None:
        y = np.repeat([3, 7, 11], per_class)
        found = split([f"{k}.png" for k in range(len(y))], y)
        for label in (3, 7, 11):
            assert parts == tuple(np.count_nonzero(found[y == label] == which) for which in (TRAIN, VAL, TEST))

    def test_the_split_follows_from_the_names_alone(self) -> None:
        y = np.arange(300) % 4
        ids = [f"{label}/{k}.jpg" for k, label in enumerate(y.tolist())]
        found = split(ids, y)
        order = np.random.default_rng(3).permutation(300)
        assert found[order].tolist() == split([ids[k] for k in order], y[order]).tolist()
        assert found.tolist() == split(ids, y * 10 + 5).tolist()
        first = sorted((name for name in ids if name.startswith("2/")), key=lambda name: hashlib.sha256(name.encode()).digest())
        assert set(first[:15]) == {name for name, part in zip(ids, found, strict=True) if name.startswith("2/") and part == TEST}
        assert set(first[15:30]) == {name for name, part in zip(ids, found, strict=True) if name.startswith("2/") and part == VAL}

    def test_added_images_leave_the_other_classes_and_nearly_all_of_their_own_in_place(self) -> None:
        for count in range(5, 40):
            y = np.array([0] * count + [1] * 20)
            ids = [f"{label}/{k}.jpg" for k, label in enumerate(y.tolist())]
            before = split(ids, y)
            for name in ("0/new.jpg", "0/other.jpg", "0/third.jpg"):
                after = split([*ids, name], np.append(y, 0))[:-1]
                assert before[y == 1].tolist() == after[y == 1].tolist()
                assert np.count_nonzero(before != after) <= 3

    def test_train_images_of_many_classes_are_thinned_out(self) -> None:
        y = np.repeat([0, 1], [200, 30])
        ids = [f"{k}.png" for k in range(230)]
        whole, fewer = split(ids, y), split(ids, y, 50)
        assert (50, 18) == tuple(np.count_nonzero(fewer[y == label] == TRAIN) for label in (0, 1))
        assert 70 == np.count_nonzero(fewer == UNUSED)
        kept = fewer != UNUSED
        assert whole[kept].tolist() == fewer[kept].tolist()

    def test_thinning_out_is_said(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(transfer, "MANY_IMAGES", 40)
        monkeypatch.setattr(transfer, "MOST_PER_CLASS", 9)
        facts = scored(predictions("mine", *own(20)))[0]["probe_accuracy"].facts
        assert {"train_images": 27, "val_images": 12, "test_images": 12, "most_train_images_per_class": 9} == facts

    def test_more_than_200_classes_are_many(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(transfer, "LARGEST_FIT", 0)
        y = np.repeat(np.arange(201), 100)
        assert "10,050 train images of 201 classes" in reason(predictions("mine", np.zeros((len(y), 2), np.float32), y))
        y = np.repeat(np.arange(200), 100)
        assert "12,000 train images of 200 classes" in reason(predictions("mine", np.zeros((len(y), 2), np.float32), y))


class TestWhatCannotBeRead:
    def test_an_artifact_without_features(self) -> None:
        assert "no output `features`" in reason(predictions("mine", None, own(20)[1]))
        assert "no output `features`" in reason({key: replace(one, features=None) for key, one in task(blobs(1)).items()})

    def test_a_split_that_could_not_be_run(self) -> None:
        mine = task(blobs(1))
        del mine[Pass("vtab/dtd/train800")], mine[Pass("vtab/dtd/val200")]
        assert "train800 and val200" in reason(mine)

    def test_too_few_images_or_classes(self) -> None:
        assert "3 classes, the smallest with 4 images" in reason(predictions("mine", *own(4)))
        assert "1 classes, the smallest with 20" in reason(predictions("mine", *own(20, classes=1)))
        assert scored(predictions("mine", *own(5)))[0]["probe_accuracy"].n == 3

    def test_a_task_of_one_class(self) -> None:
        assert "train images of 1," in reason(task(blobs(1, classes=1)))

    @pytest.mark.parametrize("part", ["train800", "val200", "test"])
    def test_features_that_overflow(self, part: str) -> None:
        parts = blobs(1)
        parts[part][0][3, 3] = np.inf
        assert "overflows" in reason(task(parts))

    def test_a_fit_that_would_take_hours(self) -> None:
        # ImageNet's validation set: 30 train images for each of 1,000 classes.
        y = np.repeat(np.arange(1000), 50)
        x = np.broadcast_to(np.zeros(1280, np.float32), (50_000, 1280))
        assert "30,000 train images of 1,000 classes in 1,280 dimensions" in reason(predictions("imagenet-val", x, y))

    def test_a_fit_that_was_cut_off_is_said_where_the_strength_is(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert "cut off" not in scored(task(blobs(31)))[0]["probe_c"].reason
        monkeypatch.setattr(probe, "MAX_ITERATIONS", 1)
        assert "cut off after 1 iterations" in scored(task(blobs(32)))[0]["probe_c"].reason


def test_passes_are_the_plain_sets_and_all_splits() -> None:
    sets = ["imagenet-val", "mine", "imagenet-a", "cue-conflict", "pug/Worlds", "ood/x", "vtab/dtd/train800", "vtab/dtd/test"]
    assert ["imagenet-val", "mine", "vtab/dtd/train800", "vtab/dtd/test"] == [one.dataset for one in transfer.passes(sets)]
    assert {("clean", "paper")} == {(one.condition, one.preset) for one in transfer.passes(sets, "paper")}
    assert () == transfer.score({}, None)


def test_there_are_19_tasks() -> None:
    assert 19 == len(set(transfer.TASKS))


def test_no_method_depends_on_what_was_fitted() -> None:
    # Runs are compared only where the methods are the same.
    def methods(found: tuple[Evaluation, ...]) -> list[str]:
        return [one.method for evaluation in found for one in (*evaluation.scores, *evaluation.reference_scores)]

    reference = task(blobs(1))
    assert methods(transfer.score(task(blobs(1), change=noisy(0.1)), reference)) == methods(
        transfer.score(task(blobs(1), change=noisy(2.0)), reference))
