"""Detection of foreign images: against scikit-learn and torchmetrics, with ties, and through the property."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve
from torchmetrics.functional.classification import (
    binary_auroc,
    binary_average_precision,
    binary_specificity_at_sensitivity,
)

from edgebench import metrics
from edgebench.errors import InvalidInput
from edgebench.properties import Pass, Predictions, ood, robustness
from edgebench.properties.ood import CERTAINTIES, certainties, detection
from edgebench.record import DatasetIdentity, Evaluation, Score

METRICS = ("auroc", "aupr_in", "aupr_out", "fpr95")
INSIDE, OUTSIDE = Pass("textiles"), Pass("ood/noise")


def numbers(seed: int, inside: int = 400, outside: int = 150, decimals: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Overlapping normal samples; few decimals make ties within and across the sets."""
    generator = np.random.default_rng(seed)
    both = generator.normal(1.0, 1.0, inside), generator.normal(0.0, 1.0, outside)
    return both if decimals is None else tuple(np.round(one, decimals) + 0.0 for one in both)  # type: ignore[return-value]


def predictions(key: Pass, logits: np.ndarray, digest: str = "a", targets: Sequence[int] | None = None) -> Predictions:
    identity = DatasetIdentity(name=key.dataset, source=f"data/{key.dataset}", images=len(logits), classes=logits.shape[1],
                               digest=digest * 64)
    return Predictions(dataset=identity, logits=logits.astype(np.float32),
                       targets=np.zeros(len(logits), np.int64) if targets is None else np.array(targets),
                       ids=np.array([f"{k:04d}.png" for k in range(len(logits))]))


def pair(seed: int, noise: float = 0.0) -> dict[Pass, Predictions]:
    """300 images with a clear answer, 120 with a fainter one; `noise` on top, as another variant would have."""
    generator, disturbed = np.random.default_rng(seed), np.random.default_rng(seed + 1)
    found = {}
    for key, n, size in ((INSIDE, 300, 3.0), (OUTSIDE, 120, 1.5)):
        logits = generator.normal(0.0, 1.0, (n, 7))
        logits[np.arange(n), generator.integers(0, 7, n)] += size
        found[key] = predictions(key, logits + noise * disturbed.normal(0.0, 1.0, logits.shape))
    return found


def detections(found: dict[Pass, Predictions], theirs: dict[Pass, Predictions] | None = None) -> Evaluation:
    evaluation, = (one for one in robustness.score(found, theirs) if one.condition.startswith("ood:"))
    return evaluation


def by_name(scores: Sequence[Score]) -> dict[str, Score]:
    named = {one.name: one for one in scores}
    assert len(named) == len(scores)
    return named


class TestDetection:
    @pytest.mark.parametrize("decimals", [None, 1, 0])
    @pytest.mark.parametrize("sizes", [(400, 150), (37, 211), (20, 1), (1, 20)])
    def test_it_agrees_with_scikit_learn(self, sizes: tuple[int, int], decimals: int | None) -> None:
        inside, outside = numbers(3, *sizes, decimals)
        values, positive = np.concatenate([inside, outside]), np.repeat([1, 0], sizes)
        false, true, _ = roc_curve(positive, values, drop_intermediate=False)
        found = detection(inside, outside)
        assert found.auroc == pytest.approx(roc_auc_score(positive, values), abs=1e-12)
        assert found.aupr_in == pytest.approx(average_precision_score(positive, values), abs=1e-12)
        assert found.aupr_out == pytest.approx(average_precision_score(1 - positive, -values), abs=1e-12)
        assert found.fpr95 == pytest.approx(false[np.argmax(true >= 0.95 - 1e-12)], abs=1e-12)

    @pytest.mark.parametrize("decimals", [None, 1, 0])
    def test_it_agrees_with_torchmetrics(self, decimals: int | None) -> None:
        # torchmetrics takes numbers outside of 0 to 1 for logits and squashes them: ranks between 0 and 1 stay as they are.
        inside, outside = numbers(5, decimals=decimals)
        both = np.concatenate([inside, outside])
        ranks = torch.tensor(np.unique(both, return_inverse=True)[1].reshape(-1) / (2.0 * both.size))
        positive = torch.tensor([1] * inside.size + [0] * outside.size)
        found = detection(inside, outside)
        assert found.auroc == pytest.approx(binary_auroc(ranks, positive).item(), abs=1e-6)
        assert found.aupr_in == pytest.approx(binary_average_precision(ranks, positive).item(), abs=1e-6)
        assert found.aupr_out == pytest.approx(binary_average_precision(1.0 - ranks, 1 - positive).item(), abs=1e-6)
        # It calls sensitivity what is the true positive rate here, and gives 1 less the false positive rate.
        specificity, _ = binary_specificity_at_sensitivity(ranks, positive, min_sensitivity=0.95)
        assert found.fpr95 == pytest.approx(1.0 - specificity.item(), abs=1e-6)

    def test_auroc_is_the_share_of_pairs_in_the_right_order_ties_counted_half(self) -> None:
        inside, outside = numbers(9, 40, 30, 0)
        pairs = [1.0 if mine > other else 0.5 if mine == other else 0.0 for mine in inside for other in outside]
        assert 0.5 in pairs
        assert detection(inside, outside).auroc == pytest.approx(sum(pairs) / len(pairs), abs=1e-12)

    def test_the_threshold_is_the_highest_that_keeps_95_of_100(self) -> None:
        inside = np.arange(100.0)
        # 5 is reached by 95 images, 6 by 94 only: what reaches 5 counts as accepted.
        assert detection(inside, np.array([4.9, 5.0, 5.5, 6.0])).fpr95 == 0.75
        # 18 of 19 are 94.7 %: all are needed.
        assert detection(inside[:19], np.array([-0.5, 0.0, 0.5])).fpr95 == pytest.approx(2 / 3)
        # 19 of 20 are 95 % exactly.
        assert detection(inside[:20], np.array([0.5, 1.0, 1.5])).fpr95 == pytest.approx(2 / 3)

    def test_all_numbers_equal_tell_nothing(self) -> None:
        assert detection(np.ones(30), np.ones(10)) == (0.5, 0.75, 0.25, 1.0)

    def test_separated_sets_are_told_apart_without_error_and_swapped_ones_never(self) -> None:
        high, low = np.array([3.0, 4.0, 5.0]), np.array([0.0, 1.0])
        assert detection(high, low) == (1.0, 1.0, 1.0, 0.0)
        assert detection(low, high).auroc == 0.0
        assert detection(low, high).fpr95 == 1.0

    def test_only_the_order_matters(self) -> None:
        inside, outside = numbers(13, decimals=1)
        assert detection(inside, outside) == detection(np.exp(inside), np.exp(outside))

    @pytest.mark.parametrize(("inside", "outside"), [(0, 3), (3, 0)])
    def test_a_set_without_images_is_refused(self, inside: int, outside: int) -> None:
        with pytest.raises(ValueError, match=f"got {inside} and {outside}"):
            detection(np.ones(inside), np.ones(outside))


class TestCertainties:
    def test_they_follow_their_definitions(self) -> None:
        logits = np.random.default_rng(1).normal(0.0, 4.0, (50, 6)).astype(np.float32)
        found = dict(zip(CERTAINTIES, certainties(metrics.outcomes(logits, np.zeros(50, np.int64))), strict=True))
        powers = np.exp(logits.astype(np.float64))
        shares = powers / powers.sum(axis=1, keepdims=True)
        assert found["msp"] == pytest.approx(shares.max(axis=1))
        assert found["max_logit"] == pytest.approx(logits.max(axis=1))
        assert found["energy"] == pytest.approx(np.log(powers.sum(axis=1)))
        assert found["entropy"] == pytest.approx((shares * np.log(shares)).sum(axis=1))

    def test_they_stay_finite_where_the_softmax_saturates(self) -> None:
        logits = np.array([[5e4, 0.0, 0.0], [-5e4, -5e4, -5e4]], np.float32)
        found = certainties(metrics.outcomes(logits, np.zeros(2, np.int64)))
        assert np.isfinite(found).all()
        assert found[:, 0].tolist() == [1.0, 5e4, 5e4, 0.0]


class TestScores:
    def test_each_pair_of_sets_has_its_own_evaluation(self) -> None:
        found = {**pair(0), Pass("imagenet-val"): pair(2)[INSIDE], Pass("ood/art"): pair(4)[OUTSIDE],
                 Pass("imagenet-v2"): pair(6)[INSIDE], Pass("textiles", "fog:1"): pair(8)[INSIDE],
                 Pass("textiles", preset="paper"): pair(0)[INSIDE]}
        evaluations = ood.evaluations(found, None)
        assert {(one.dataset.name, one.condition) for one in evaluations} == {
            ("ood/noise", "ood:textiles"), ("ood/noise", "ood:imagenet-val")}
        # pair(4)'s identity still says ood/noise: the pass is what counts.
        assert [one.predictions for one in evaluations] == [
            (inside.file, outside.file) for outside in (OUTSIDE, Pass("ood/art")) for inside in (INSIDE, Pass("imagenet-val"))]

    def test_values_are_those_of_scikit_learn_on_definitions_written_out(self) -> None:
        found = pair(0)
        scores = by_name(detections(found).scores)
        assert set(scores) == {f"{metric}_{number}" for metric in METRICS for number in CERTAINTIES}
        powers = [np.exp(found[key].logits.astype(np.float64)) for key in (INSIDE, OUTSIDE)]
        shares = np.concatenate([one / one.sum(axis=1, keepdims=True) for one in powers])
        positive = np.repeat([1, 0], [300, 120])
        entropy = -(shares * np.log(shares)).sum(axis=1)
        assert scores["auroc_msp"].value == pytest.approx(roc_auc_score(positive, shares.max(axis=1)))
        assert scores["aupr_out_entropy"].value == pytest.approx(average_precision_score(1 - positive, entropy))
        energy = np.concatenate([np.log(one.sum(axis=1)) for one in powers])
        assert scores["aupr_in_energy"].value == pytest.approx(average_precision_score(positive, energy))
        assert scores["auroc_energy"].value != pytest.approx(scores["auroc_msp"].value, abs=1e-3)

    def test_each_says_which_way_is_better_and_how_many_images_of_each_set(self) -> None:
        for one in detections(pair(0)).scores:
            assert one.better == ("lower" if one.name.startswith("fpr95") else "higher")
            assert one.n == 420
            assert {"in_distribution": 300, "out_of_distribution": 120} == one.facts

    def test_intervals_have_the_width_that_theory_gives(self) -> None:
        # Hanley & McNeil 1982 give the standard error of an AUROC from the two sets' sizes, for exponential samples.
        found = pair(0)
        one = by_name(detections(found).scores)["auroc_max_logit"]
        assert one.value is not None
        assert one.low is not None
        assert one.high is not None
        area = one.value
        first, second = area / (2 - area), 2 * area**2 / (1 + area)
        error = np.sqrt((area * (1 - area) + 299 * (first - area**2) + 119 * (second - area**2)) / (300 * 120))
        assert one.low < area < one.high
        assert one.high - one.low == pytest.approx(2 * 1.96 * error, rel=0.2)

    def test_perfect_separation_has_a_value_and_a_reason_instead_of_an_interval(self) -> None:
        inside, outside = np.zeros((20, 3)), np.zeros((10, 3))
        inside[:, 1], outside[:, 1] = np.arange(20) + 9.0, np.arange(10) / 10.0
        scores = by_name(detections({INSIDE: predictions(INSIDE, inside), OUTSIDE: predictions(OUTSIDE, outside)}).scores)
        for one in scores.values():
            assert one.value == (0.0 if one.name.startswith("fpr95") else 1.0)
            assert (one.low, one.high) == (None, None)
            assert one.reason == "every resample gives the same: resampling cannot bound it"

    def test_compact_predictions_are_enough(self) -> None:
        found = pair(0)
        compact = {key: Predictions(dataset=one.dataset, logits=np.empty((len(one.ids), 0), np.float32), targets=one.targets,
                                    ids=one.ids, stored_outcomes=one.outcomes) for key, one in found.items()}
        assert detections(found).scores == detections(compact).scores

    def test_without_foreign_or_labelled_images_there_is_nothing(self) -> None:
        found = pair(0)
        assert ood.evaluations({INSIDE: found[INSIDE]}, None) == ()
        assert ood.evaluations({OUTSIDE: found[OUTSIDE]}, None) == ()


class TestAgainstTheReference:
    def test_a_change_is_the_difference_of_the_two_values_with_a_narrower_interval(self) -> None:
        theirs, mine = pair(0), pair(0, noise=0.2)
        evaluation = detections(mine, theirs)
        after, before = by_name(evaluation.scores), by_name(detections(theirs).scores)
        changes = by_name(evaluation.reference_scores)
        assert set(changes) == {f"{name}_change" for name in after}
        for name, one in after.items():
            change = changes[f"{name}_change"]
            assert change.value == pytest.approx(one.value - before[name].value, abs=1e-12)
            assert change.low <= change.value <= change.high
            assert change.better == one.better
        paired = changes["auroc_energy_change"]
        assert paired.high - paired.low < 0.6 * (after["auroc_energy"].high - after["auroc_energy"].low)

    def test_the_same_predictions_change_nothing(self) -> None:
        for one in detections(pair(0), pair(0)).reference_scores:
            assert (one.value, one.low, one.high) == (0.0, None, None)
            assert one.reason

    def test_a_reference_with_one_of_the_sets_alone_gives_no_change(self) -> None:
        found = pair(0)
        assert detections(found, {INSIDE: found[INSIDE]}).reference_scores == ()

    def test_other_images_are_refused(self) -> None:
        found = pair(0)
        other = predictions(OUTSIDE, found[OUTSIDE].logits, "b")
        with pytest.raises(InvalidInput, match="ood/noise: the reference was evaluated on other images"):
            detections(found, {**found, OUTSIDE: other})
