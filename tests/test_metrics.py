"""Metrics against loops from the definition, other libraries, published numbers and invariants."""

from __future__ import annotations

import csv
import math
import os
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgebench import metrics
from edgebench.errors import InvalidInput

DATA = Path(os.environ.get("EDGEBENCH_TEST_DATA", Path(__file__).parents[1] / ".." / "shared" / "data"))
# Vectors of the specification, with the values that it states.
SIX_CONFIDENCE = np.array([.95, 1.0, .55, .62, .31, .20])
SIX_CORRECT = np.array([1, 0, 1, 0, 0, 1], dtype=bool)
EQUAL_WIDTH_OR_MASS = pytest.mark.parametrize("ece", [metrics.ece_equal_width, metrics.ece_equal_mass])
DEBIASED = pytest.mark.parametrize("estimate", [metrics.ece_debiased_l2_squared, metrics.ece_debiased_l2,
                                                metrics.ece_debiased_l1])


def calibrated(n, seed):
    """Confidences with mean 5/6, like a supervised model's, and labels that they describe exactly."""
    generator = np.random.default_rng(seed)
    confidence = generator.beta(5, 1, n)
    return confidence, generator.random(n) < confidence


def random_logits(n, classes, seed):
    generator = np.random.default_rng(seed)
    return generator.normal(scale=3, size=(n, classes)).astype(np.float32), generator.integers(0, classes, n)


def published_predictions(network):
    """Top probability and correctness on all 50,000 validation images; the rows are in order of class, 50 each."""
    file = DATA / "imagenet-x-predictions" / f"{network}.csv"
    if not file.is_file():
        pytest.skip(f"{file} is absent: set EDGEBENCH_TEST_DATA to the folder that holds imagenet-x-predictions")
    with file.open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    predicted = np.array([int(row["predicted_class"]) for row in rows])
    return np.array([float(row["predicted_probability"]) for row in rows]), predicted == np.arange(50_000) // 50


def ece_by_loop(confidence, correct, bins=15):
    total = 0.0
    for k in range(bins):
        inside = [i for i, c in enumerate(confidence) if k / bins < c <= (k + 1) / bins or (k == 0 and c == 0)]
        if inside:
            gap = sum(confidence[i] for i in inside) / len(inside) - sum(correct[i] for i in inside) / len(inside)
            total += len(inside) / len(confidence) * abs(gap)
    return total


def mass_bins_by_loop(confidence, correct, bins=15):
    pairs = sorted(zip(confidence.tolist(), correct.tolist(), strict=True), key=lambda pair: pair[0])
    return [np.array(part) for part in np.array_split(pairs, bins)]


class TestOutcomes:
    def test_softmax_agrees_with_scipy(self):
        scipy_special = pytest.importorskip("scipy.special")
        logits, _ = random_logits(50, 7, 0)
        np.testing.assert_allclose(metrics.softmax(logits), scipy_special.softmax(logits.astype(float), axis=1),
                                   rtol=1e-14)
        np.testing.assert_allclose(metrics.log_softmax(logits),
                                   scipy_special.log_softmax(logits.astype(float), axis=1), rtol=1e-13)

    def test_softmax_of_float32_logits_is_float64_and_does_not_overflow(self):
        probabilities = metrics.softmax(np.array([[3e4, 0.0], [-3e4, -3e4]], dtype=np.float32))
        assert np.float64 == probabilities.dtype
        assert [[1.0, 0.0], [0.5, 0.5]] == probabilities.tolist()

    def test_nll_and_brier_agree_with_scikit_learn(self):
        sklearn_metrics = pytest.importorskip("sklearn.metrics")
        logits, targets = random_logits(500, 10, 1)
        probabilities = metrics.softmax(logits)
        seen = metrics.outcomes(logits, targets)
        assert sklearn_metrics.log_loss(targets, probabilities, labels=range(10)) == pytest.approx(seen.nll.mean())
        one_hot = np.eye(10)[targets]
        by_class = [sklearn_metrics.brier_score_loss(one_hot[:, k], probabilities[:, k]) for k in range(10)]
        assert sum(by_class) == pytest.approx(seen.brier.mean())

    def test_top5_agrees_with_scikit_learn(self):
        sklearn_metrics = pytest.importorskip("sklearn.metrics")
        logits, targets = random_logits(500, 20, 2)
        expected = sklearn_metrics.top_k_accuracy_score(targets, logits, k=5, labels=range(20))
        assert expected == pytest.approx(metrics.outcomes(logits, targets).in_top5.mean())

    def test_energy_and_entropy_agree_with_scipy(self):
        scipy_special, scipy_stats = pytest.importorskip("scipy.special"), pytest.importorskip("scipy.stats")
        logits, targets = random_logits(metrics._ROWS + 20, 12, 12)
        seen = metrics.outcomes(logits, targets)
        wide = logits.astype(float)
        np.testing.assert_allclose(seen.energy, scipy_special.logsumexp(wide, axis=1), rtol=1e-13)
        np.testing.assert_allclose(seen.entropy, scipy_stats.entropy(scipy_special.softmax(wide, axis=1), axis=1), rtol=1e-11)
        # As documented, the target's logit is in there.
        np.testing.assert_allclose(seen.energy - seen.nll, wide[np.arange(len(wide)), targets], rtol=1e-9, atol=1e-12)

    def test_largest_logits_and_margins_agree_with_sorting(self):
        logits, targets = random_logits(300, 9, 13)
        seen = metrics.outcomes(logits, targets)
        probabilities = np.sort(metrics.softmax(logits), axis=1)
        np.testing.assert_array_equal(seen.max_logit, logits.max(axis=1))
        np.testing.assert_allclose(seen.runner_up, probabilities[:, -2], rtol=1e-14)
        np.testing.assert_allclose(seen.margin, probabilities[:, -1] - probabilities[:, -2], rtol=1e-9, atol=1e-15)
        assert np.argsort(-logits, axis=1, kind="stable")[:, :5].tolist() == seen.top5.tolist()

    def test_what_is_stored_instead_of_logits_takes_less_than_100_bytes_per_image(self):
        logits, targets = random_logits(50, 1000, 14)
        seen = metrics.outcomes(logits, targets)
        assert 100 > sum(np.asarray(getattr(seen, field.name)).nbytes for field in fields(seen)) / 50
        assert 1000 == seen.classes

    def test_every_field_agrees_with_a_loop_from_the_definition(self):
        logits, targets = random_logits(40, 8, 3)
        logits = np.round(logits)  # Many ties.
        seen = metrics.outcomes(logits, targets)
        for i, (row, target) in enumerate(zip(logits.astype(float).tolist(), targets, strict=True)):
            ranking = sorted(range(8), key=lambda k: (-row[k], k))
            powers = [math.exp(z) for z in row]
            p = [power / sum(powers) for power in powers]
            assert ranking[0] == seen.predicted[i]
            assert (ranking[0] == target) == seen.correct[i]
            assert (target in ranking[:5]) == seen.in_top5[i]
            assert max(p) == pytest.approx(seen.confidence[i])
            assert -math.log(p[target]) == pytest.approx(seen.nll[i])
            assert sum((p[k] - (k == target)) ** 2 for k in range(8)) == pytest.approx(seen.brier[i])
            assert math.log(sum(powers)) == pytest.approx(seen.energy[i], rel=1e-9, abs=1e-12)
            assert max(row) == seen.max_logit[i]
            assert -sum(q * math.log(q) for q in p) == pytest.approx(seen.entropy[i])
            assert p[ranking[1]] == pytest.approx(seen.runner_up[i])
            assert ranking[:5] == seen.top5[i].tolist()

    def test_the_lowest_index_wins_a_tie(self):
        seen = metrics.outcomes(np.zeros((7, 7), dtype=np.float32), np.arange(7))
        assert [0] * 7 == seen.predicted.tolist()
        assert [True] + [False] * 6 == seen.correct.tolist()
        assert [True] * 5 + [False] * 2 == seen.in_top5.tolist()
        assert [[0, 1, 2, 3, 4]] * 7 == seen.top5.tolist()
        assert [0.0] * 7 == seen.margin.tolist()

    def test_with_fewer_than_five_classes_every_target_is_in_the_top_five(self):
        logits, targets = random_logits(30, 3, 4)
        seen = metrics.outcomes(logits, targets)
        assert seen.in_top5.all()
        assert [[0, 1, 2]] * 30 == np.sort(seen.top5, axis=1).tolist()

    def test_one_class_leaves_nothing_to_ask(self):
        seen = metrics.outcomes(np.array([[3.0], [-900.0]], dtype=np.float32), np.zeros(2, dtype=int))
        assert ([1.0, 1.0], [0.0, 0.0], [0.0, 0.0]) == tuple(
            getattr(seen, name).tolist() for name in ("confidence", "runner_up", "entropy"))
        assert ([3.0, -900.0], [[0], [0]]) == (seen.energy.tolist(), seen.top5.tolist())

    def test_saturated_and_extreme_logits_stay_finite(self):
        logits = np.array([[3e38, -3e38, 0.0], [1e4, 0.0, 0.0]], dtype=np.float32)
        seen = metrics.outcomes(logits, np.array([0, 1]))
        assert [0.0, 0.0] == seen.entropy.tolist() == seen.runner_up.tolist()
        assert logits[:, 0].astype(float).tolist() == seen.energy.tolist()
        assert np.isfinite(seen.nll).all()

    def test_row_blocks_do_not_show(self):
        logits, targets = random_logits(metrics._ROWS * 2 + 3, 6, 5)
        whole = metrics.outcomes(logits, targets)
        last = metrics.outcomes(logits[-5:], targets[-5:])
        for name in (field.name for field in fields(metrics.Outcomes) if field.name not in ("classes", "kind")):
            assert getattr(last, name).tolist() == getattr(whole, name)[-5:].tolist()
        assert whole.classes == last.classes
        assert 2 * metrics._ROWS + 3 == len(whole)

    def test_brier_of_a_certain_and_right_answer_is_not_negative(self):
        # sum(p^2) - 2 p_y + 1 gave -1e-16 here.
        logits = np.linspace(0, 60, 500, dtype=np.float32)[:, None] * np.array([[1, 0, 0]], dtype=np.float32)
        assert metrics.outcomes(logits, np.zeros(500, dtype=int)).brier.min() >= 0.0

    def test_confidences_of_exactly_one_are_counted(self):
        logits = np.array([[100, 0], [1, 0], [0, 80]], dtype=np.float32)
        assert 2 == metrics.outcomes(logits, np.array([0, 0, 0])).certain

    def test_take_repeats_and_reorders_images(self):
        logits, targets = random_logits(9, 4, 6)
        order = np.array([3, 3, 0])
        taken, direct = metrics.outcomes(logits, targets).take(order), metrics.outcomes(logits[order], targets[order])
        assert direct.nll.tolist() == taken.nll.tolist()
        assert direct.correct.tolist() == taken.correct.tolist()
        assert direct.top5.tolist() == taken.top5.tolist()
        assert direct.classes == taken.classes

    def test_parts_join_in_order_and_only_where_they_fit(self):
        logits, targets = random_logits(9, 4, 15)
        parts = [metrics.outcomes(logits[rows], targets[rows]) for rows in (slice(0, 2), slice(2, 9))]
        whole = metrics.outcomes(logits, targets)
        assert whole.nll.tolist() == metrics.joined(parts).nll.tolist()
        assert (9, 4) == (len(metrics.joined(parts)), metrics.joined(parts).classes)
        with pytest.raises(ValueError, match=r"same number of classes, got \[3, 4\]"):
            metrics.joined([whole, metrics.outcomes(logits[:, :3], targets.clip(max=2))])
        with pytest.raises(ValueError, match="same number of classes"):
            metrics.joined([])

    @pytest.mark.parametrize(("value", "column"), [(np.nan, 1), (np.inf, 1), (-np.inf, slice(None))])
    def test_non_finite_logits_are_refused_with_their_count(self, value, column):
        logits, targets = random_logits(8, 3, 7)
        logits[[2, 5], column] = value
        with pytest.raises(InvalidInput, match="for 2 of 8 images"):
            metrics.outcomes(logits, targets)
        with pytest.raises(InvalidInput, match="for 2 of 8 images"):
            metrics.divergences(np.zeros_like(logits), logits)

    @pytest.mark.parametrize(("shape", "targets"), [((0, 3), []), ((2, 3), [0]), ((2,), [0, 0]), ((2, 3), [0, 3]),
                                                    ((2, 3), [-1, 0])])
    def test_shapes_and_targets_that_do_not_fit_are_refused(self, shape, targets):
        with pytest.raises(ValueError, match=r"expected .* got"):
            metrics.outcomes(np.zeros(shape, dtype=np.float32), np.array(targets, dtype=int))


class TestDistinctValues:
    def test_counts_values_over_all_images_and_classes(self):
        logits = np.round(random_logits(3 * metrics._ROWS, 5, 0)[0] * 4) / 4
        assert len(set(logits.ravel().tolist())) == metrics.distinct_values(logits)

    def test_an_output_of_8_bits_has_at_most_256(self):
        levels = np.random.default_rng(0).integers(-128, 128, (500, 40))
        assert 256 == metrics.distinct_values((levels * np.float32(0.0372)).astype(np.float32))

    def test_stops_where_it_says_it_stops(self):
        logits = np.arange(4000, dtype=np.float32).reshape(2000, 2)
        assert (4000, 4000, 3999) == tuple(metrics.distinct_values(logits, most) for most in (4001, 4000, 3999))
        assert 2**16 == metrics.distinct_values(np.arange(2**17, dtype=np.float32).reshape(-1, 64))

    def test_both_zeros_are_one_value(self):
        assert 1 == metrics.distinct_values(np.array([[0.0, -0.0]], dtype=np.float32))


class TestCalibrationError:
    def test_unit_vectors_of_the_specification(self):
        assert pytest.approx(0.475) == metrics.ece_equal_width(np.array([0.95, 1.0]), np.array([True, False]))
        assert pytest.approx(0.521667, abs=1e-6) == metrics.ece_equal_width(SIX_CONFIDENCE, SIX_CORRECT)
        assert pytest.approx(0.268333, abs=1e-6) == metrics.ece_equal_mass(SIX_CONFIDENCE, SIX_CORRECT, bins=3)
        assert pytest.approx(-0.152375) == metrics.ece_debiased_l2_squared(SIX_CONFIDENCE, SIX_CORRECT, bins=3)
        assert 0.0 == metrics.ece_debiased_l2(SIX_CONFIDENCE, SIX_CORRECT, bins=3)

    def test_bins_are_left_open_and_right_closed(self):
        on_edges = np.arange(16) / 15
        bins = metrics.reliability_bins(on_edges, np.ones(16, dtype=bool))
        assert [2] + [1] * 14 == bins.n.tolist()  # 0 joins 1/15 in the first bin.
        just_above = np.nextafter(on_edges[:-1], 1)
        assert [1] * 15 == metrics.reliability_bins(just_above, np.ones(15, dtype=bool)).n.tolist()

    def test_reliability_bins_hold_the_means_and_empty_ones_hold_nan(self):
        bins = metrics.reliability_bins(np.array([0.1, 0.9, 0.7]), np.array([True, False, True]), bins=3)
        assert [1, 0, 2] == bins.n.tolist()
        np.testing.assert_allclose(bins.confidence, [0.1, np.nan, 0.8])
        np.testing.assert_allclose(bins.accuracy, [1.0, np.nan, 0.5])

    def test_equal_width_agrees_with_a_loop_from_the_definition(self):
        confidence, correct = calibrated(2000, 0)
        confidence[:200] = np.round(confidence[:200] * 15) / 15
        assert ece_by_loop(confidence, correct) == pytest.approx(metrics.ece_equal_width(confidence, correct))

    def test_equal_mass_agrees_with_a_loop_from_the_definition(self):
        confidence, correct = calibrated(2003, 1)
        expected = sum(len(part) / 2003 * abs(part[:, 0].mean() - part[:, 1].mean())
                       for part in mass_bins_by_loop(confidence, correct))
        assert expected == pytest.approx(metrics.ece_equal_mass(confidence, correct))

    def test_equal_mass_with_fewer_images_than_bins_gives_every_image_its_own_bin(self):
        expected = (0.05 + 1.0 + 0.45 + 0.62 + 0.31 + 0.80) / 6
        assert expected == pytest.approx(metrics.ece_equal_mass(SIX_CONFIDENCE, SIX_CORRECT))

    def test_equal_mass_cuts_ties_in_image_order(self):
        # Long enough for an unstable sort to show: short arrays are sorted by insertion, which is stable.
        confidence = np.resize([0.5, 0.25, 0.5, 0.75], 4000)
        halves = np.arange(4000) < 2000
        assert 0.5 == metrics.ece_equal_mass(np.full(4000, 0.5), halves, bins=2)
        expected = sum(len(part) / 4000 * abs(part[:, 0].mean() - part[:, 1].mean())
                       for part in mass_bins_by_loop(confidence, halves))
        assert expected == pytest.approx(metrics.ece_equal_mass(confidence, halves))

    def test_torchmetrics_agrees_away_from_bin_edges(self):
        torch = pytest.importorskip("torch")
        functional = pytest.importorskip("torchmetrics.functional.classification")
        confidence, correct = calibrated(3000, 2)
        other = functional.binary_calibration_error(torch.from_numpy(confidence), torch.from_numpy(correct).int(),
                                                    n_bins=15, norm="l1")
        assert other.item() == pytest.approx(metrics.ece_equal_width(confidence, correct), abs=1e-6)

    def test_torchmetrics_differs_at_one_because_it_closes_bins_on_the_left_and_has_a_hidden_16th(self):
        torch = pytest.importorskip("torch")
        functional = pytest.importorskip("torchmetrics.functional.classification")
        confidence, correct = np.array([0.95, 1.0]), np.array([True, False])
        other = functional.binary_calibration_error(torch.from_numpy(confidence), torch.from_numpy(correct).int(),
                                                    n_bins=15, norm="l1")
        assert pytest.approx(0.525) == other.item()
        assert pytest.approx(0.475) == metrics.ece_equal_width(confidence, correct)

    def test_debiased_l2_agrees_with_a_loop_from_the_definition(self):
        confidence, correct = calibrated(1003, 3)
        expected = 0.0
        for part in mass_bins_by_loop(confidence, correct):
            (c, a), n = part.mean(axis=0), len(part)
            expected += n / 1003 * ((c - a) ** 2 - a * (1 - a) / (n - 1))
        assert expected == pytest.approx(metrics.ece_debiased_l2_squared(confidence, correct), rel=1e-9, abs=1e-15)

    def test_debiased_l1_agrees_with_the_published_estimators_random_draws(self):
        confidence, correct = calibrated(900, 4)
        parts = mass_bins_by_loop(confidence**2, correct)
        weight = np.array([len(part) / 900 for part in parts])
        c, a = (np.array([part[:, column].mean() for part in parts]) for column in (0, 1))
        deviation = np.sqrt(a * (1 - a) / (weight * 900))
        draws = np.random.default_rng(0).normal(a, deviation, size=(20_000, 15))
        expected = 2 * weight @ np.abs(c - a) - (np.abs(draws - c) @ weight).mean()
        assert expected == pytest.approx(metrics.ece_debiased_l1(confidence**2, correct), abs=2e-4)

    def test_debiased_estimates_agree_with_the_package_uncertainty_calibration(self):
        calibration = pytest.importorskip("calibration", reason="pip install --no-deps uncertainty-calibration")
        confidence, correct = calibrated(900, 5)
        data = list(zip(confidence.tolist(), correct.astype(int).tolist(), strict=True))
        bins = calibration.utils.bin(data, calibration.utils.get_equal_bins(confidence.tolist(), num_bins=15))
        assert calibration.utils.unbiased_square_ce(bins) == pytest.approx(
            metrics.ece_debiased_l2_squared(confidence, correct))
        random_draws = calibration.utils.normal_debiased_ce(bins, power=1, resamples=2000)
        assert random_draws == pytest.approx(metrics.ece_debiased_l1(confidence, correct), abs=1e-3)

    def test_debiased_squared_l2_of_a_calibrated_model_is_centred_on_zero_and_the_plain_error_is_not(self):
        debiased, plain = np.array([(metrics.ece_debiased_l2_squared(*sample), metrics.ece_equal_mass(*sample))
                                    for sample in (calibrated(1000, seed) for seed in range(400))]).T
        assert abs(debiased.mean()) < 3 * debiased.std() / math.sqrt(400)
        assert plain.mean() > 0.02

    def test_debiased_l1_of_a_calibrated_model_keeps_the_share_of_the_bias_that_theory_says(self):
        # A gap d ~ N(0, s^2) has E|d| = s sqrt(2/pi); drawn anew its variance is 2 s^2: 2 - sqrt(2) of E|d| remains.
        debiased, plain = np.array([(metrics.ece_debiased_l1(*sample), metrics.ece_equal_mass(*sample))
                                    for sample in (calibrated(3000, seed) for seed in range(200))]).T
        assert 2 - math.sqrt(2) == pytest.approx(debiased.mean() / plain.mean(), abs=0.03)

    def test_debiased_l2_finds_the_error_of_a_model_that_is_off_by_a_constant(self):
        generator = np.random.default_rng(6)
        confidence = generator.uniform(0.3, 1.0, 50_000)
        correct = generator.random(50_000) < confidence - 0.1
        assert pytest.approx(0.1, abs=0.01) == metrics.ece_debiased_l2(confidence, correct)
        assert pytest.approx(0.1, abs=0.01) == metrics.ece_debiased_l1(confidence, correct)

    @DEBIASED
    def test_debiasing_needs_two_images_in_every_bin(self, estimate):
        enough = metrics.MIN_IMAGES_DEBIASED
        assert math.isfinite(estimate(*calibrated(enough, 7)))
        with pytest.raises(ValueError, match="at least 2 images in each bin"):
            estimate(*calibrated(enough - 1, 7))

    def test_signed_gap_is_positive_for_over_confidence(self):
        assert pytest.approx(0.45) == metrics.signed_gap(np.array([0.9, 1.0]), np.array([True, False]))
        assert pytest.approx(-0.4) == metrics.signed_gap(np.array([0.5, 0.7]), np.array([True, True]))

    @pytest.mark.parametrize(("confidence", "correct"), [([], []), ([0.5], [1, 0]), ([1.1], [1]), ([-0.1], [1]),
                                                         ([math.nan], [1])])
    @pytest.mark.parametrize("metric", [metrics.ece_equal_width, metrics.ece_equal_mass, metrics.signed_gap,
                                        metrics.ece_debiased_l1, metrics.reliability_bins])
    def test_unfit_confidences_are_refused(self, metric, confidence, correct):
        with pytest.raises(ValueError, match=r"expected .* got"):
            metric(np.array(confidence, dtype=float), np.array(correct, dtype=bool))

    @EQUAL_WIDTH_OR_MASS
    def test_fewer_than_one_bin_is_refused(self, ece):
        with pytest.raises(ValueError, match="expected at least 1 bin, got 0"):
            ece(SIX_CONFIDENCE, SIX_CORRECT, bins=0)

    def test_images_may_be_put_in_order_of_confidence_first(self):
        # Sorting images by confidence first, as the module recommends for speed, must change nothing.
        confidence, correct = calibrated(500, 8)
        order = np.argsort(confidence, kind="stable")
        for metric in (metrics.ece_equal_width, metrics.ece_equal_mass, metrics.ece_debiased_l1):
            assert metric(confidence, correct) == pytest.approx(metric(confidence[order], correct[order]), rel=1e-9)


class TestNullEce:
    @pytest.mark.parametrize(("n", "mean", "high"), [(500, .038, .056), (1000, .027, .040), (1200, .026, .037),
                                                     (5000, .012, .018), (50_000, .004, .006)])
    def test_within_a_tenth_of_the_specifications_table(self, n, mean, high):
        # The table's "confidence mix like a supervised model" at 83 % accuracy is not given; Beta(5, 1) has mean 0.833.
        found = metrics.null_ece(calibrated(n, 0)[0])
        assert (mean, high) == pytest.approx(found, rel=0.1)

    def test_agrees_with_a_direct_simulation(self):
        confidence, _ = calibrated(1000, 1)
        generator = np.random.default_rng(99)
        errors = [metrics.ece_equal_width(confidence, generator.random(1000) < confidence) for _ in range(2000)]
        mean, high = metrics.null_ece(confidence, draws=2000)
        assert np.mean(errors) == pytest.approx(mean, rel=0.02)
        assert np.quantile(errors, 0.975) == pytest.approx(high, rel=0.05)

    def test_is_zero_where_nothing_is_left_to_chance(self):
        assert (0.0, 0.0) == metrics.null_ece(np.ones(50))
        assert (0.0, 0.0) == metrics.null_ece(np.zeros(50))

    def test_of_one_even_coin_is_one_half(self):
        assert (0.5, 0.5) == metrics.null_ece(np.array([0.5]))

    def test_same_seed_same_numbers(self):
        confidence, _ = calibrated(300, 2)
        assert metrics.null_ece(confidence, seed=3) == metrics.null_ece(confidence, seed=3)
        assert metrics.null_ece(confidence, seed=3) != metrics.null_ece(confidence, seed=4)

    def test_no_draws_and_unfit_confidences_are_refused(self):
        with pytest.raises(ValueError, match="at least 1 draw"):
            metrics.null_ece(SIX_CONFIDENCE, draws=0)
        with pytest.raises(ValueError, match="between 0 and 1"):
            metrics.null_ece(np.array([1.5]))


class TestPaired:
    def test_flips_count_what_was_lost_and_what_was_won(self):
        reference = np.array([1, 1, 1, 0, 0, 1], dtype=bool)
        variant = np.array([0, 0, 1, 1, 0, 1], dtype=bool)
        assert (2, 1) == metrics.flips(reference, variant)
        assert (1, 2) == metrics.flips(variant, reference)

    def test_divergences_agree_with_scipy(self):
        scipy_stats, distance = pytest.importorskip("scipy.stats"), pytest.importorskip("scipy.spatial.distance")
        reference, _ = random_logits(metrics._ROWS + 10, 6, 0)
        variant = reference + np.random.default_rng(1).normal(scale=0.3, size=reference.shape).astype(np.float32)
        one, two = metrics.softmax(reference), metrics.softmax(variant)
        found = metrics.divergences(reference, variant)
        np.testing.assert_allclose(found.kl, scipy_stats.entropy(one, two, axis=1), rtol=1e-6, atol=1e-12)
        np.testing.assert_allclose(found.js, distance.jensenshannon(one, two, axis=1) ** 2, rtol=1e-6, atol=1e-12)
        gap = np.abs(reference.astype(float) - variant)
        np.testing.assert_allclose(found.logit_mean, gap.mean(axis=1), rtol=1e-12)
        np.testing.assert_array_equal(found.logit_max, gap.max(axis=1))

    def test_several_outputs_are_held_against_one_reference_as_each_alone(self):
        reference, _ = random_logits(metrics._ROWS + 10, 6, 0)
        variants = [reference + random_logits(len(reference), 6, seed)[0] / 3.0 for seed in (1, 2)]
        expected = [metrics.divergences(reference, one).js for one in variants]
        np.testing.assert_array_equal(expected, metrics.js_divergences(reference, variants))
        broken = reference.copy()
        broken[-1, 0] = np.nan
        with pytest.raises(InvalidInput, match="NaN or infinity for 1 of"):
            metrics.js_divergences(reference, [variants[0], broken])

    def test_divergences_are_zero_for_equal_logits_and_never_negative(self):
        logits, _ = random_logits(200, 50, 2)
        assert [0.0] * 200 == metrics.divergences(logits, logits).kl.tolist()
        assert 1e-15 > metrics.divergences(logits, logits).js.max()
        for other in (logits + np.float32(1e-6), np.nextafter(logits, np.float32(9))):
            assert metrics.divergences(logits, other).kl.min() >= 0.0
            assert metrics.divergences(logits, other).js.min() >= 0.0

    def test_kl_divergence_is_of_the_reference_from_the_variant_and_js_is_the_same_both_ways(self):
        sure, unsure = np.array([[math.log(0.9), math.log(0.1)]]), np.zeros((1, 2))
        expected = 0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5)
        assert expected == pytest.approx(metrics.divergences(sure, unsure).kl.item())
        assert expected != pytest.approx(metrics.divergences(unsure, sure).kl.item())
        assert metrics.divergences(unsure, sure).js.item() == pytest.approx(metrics.divergences(sure, unsure).js.item())

    def test_answers_certain_of_different_classes_are_ln_2_apart_and_finite(self):
        one, two = np.array([[1e30, 0.0, 0.0]], np.float32), np.array([[0.0, 1e30, 0.0]], np.float32)
        found = metrics.divergences(one, two)
        assert math.log(2) == pytest.approx(found.js.item())
        assert 1e30 == pytest.approx(found.kl.item())

    def test_adding_a_number_to_all_logits_changes_the_logits_alone(self):
        logits, _ = random_logits(20, 5, 3)
        found = metrics.divergences(logits, logits + np.float32(4.0))
        assert 1e-9 > max(found.kl.max(), found.js.max())
        np.testing.assert_allclose(found.logit_mean, 4.0, rtol=1e-6)

    def test_images_that_do_not_pair_up_are_refused(self):
        with pytest.raises(ValueError, match="the same images"):
            metrics.flips(np.zeros(2, dtype=bool), np.zeros(3, dtype=bool))
        with pytest.raises(ValueError, match="the same images"):
            metrics.divergences(np.zeros((2, 3)), np.zeros((2, 4)))


# Exact edges, their neighbours, both ends and repeated values: where binning goes wrong.
CONFIDENCES = st.one_of(
    st.integers(0, 15).map(lambda k: k / 15),
    st.integers(1, 14).map(lambda k: math.nextafter(k / 15, 1.0)),
    st.floats(0.0, 1.0),
)
PAIRS = st.lists(st.tuples(CONFIDENCES, st.booleans()), min_size=1, max_size=80)


def arrays(pairs):
    return np.array([pair[0] for pair in pairs]), np.array([pair[1] for pair in pairs], dtype=bool)


class TestInvariants:
    @given(PAIRS)
    @settings(deadline=None)
    def test_bins_partition_the_images_and_the_error_follows_from_them(self, pairs):
        confidence, correct = arrays(pairs)
        bins = metrics.reliability_bins(confidence, correct)
        assert len(pairs) == bins.n.sum()
        gap = np.nansum(bins.n * np.abs(bins.confidence - bins.accuracy)) / len(pairs)
        assert gap == pytest.approx(metrics.ece_equal_width(confidence, correct))
        assert ece_by_loop(confidence.tolist(), correct.tolist()) == pytest.approx(gap)

    @given(PAIRS)
    @settings(deadline=None)
    def test_errors_lie_between_the_signed_gap_and_one(self, pairs):
        confidence, correct = arrays(pairs)
        least = abs(metrics.signed_gap(confidence, correct)) - 1e-12
        for ece in (metrics.ece_equal_width, metrics.ece_equal_mass):
            assert least <= ece(confidence, correct) <= 1.0 + 1e-12

    @given(PAIRS, st.randoms())
    @settings(deadline=None)
    def test_the_order_of_images_does_not_matter(self, pairs, random):
        shuffled = random.sample(pairs, len(pairs))
        assert metrics.ece_equal_width(*arrays(pairs)) == pytest.approx(metrics.ece_equal_width(*arrays(shuffled)))
        # Equal-mass bins cut through ties in image order, so only distinct confidences are free of it.
        distinct = list({pair[0]: pair for pair in pairs}.values())
        shuffled = random.sample(distinct, len(distinct))
        assert metrics.ece_equal_mass(*arrays(distinct)) == pytest.approx(metrics.ece_equal_mass(*arrays(shuffled)))

    @given(st.lists(st.lists(st.floats(-60, 60, width=32), min_size=3, max_size=3), min_size=1, max_size=20),
           st.integers(0, 2), st.floats(-50, 50, width=32))
    @settings(deadline=None)
    def test_probabilities_sum_to_one_and_outcomes_stay_in_range(self, rows, target, shift):
        logits = np.array(rows, dtype=np.float32)
        np.testing.assert_allclose(metrics.softmax(logits).sum(axis=1), 1.0, rtol=1e-12)
        seen = metrics.outcomes(logits, np.full(len(rows), target))
        assert (seen.confidence >= 1 / 3).all()
        assert (seen.confidence <= 1).all()
        assert (seen.nll >= 0).all()
        assert (seen.brier >= 0).all()
        assert (seen.brier <= 2).all()
        assert (seen.in_top5 >= seen.correct).all()
        assert (seen.entropy >= 0).all()
        assert (seen.entropy <= math.log(3) + 1e-12).all()
        assert (seen.margin >= 0).all()
        assert (seen.energy >= seen.max_logit).all()
        moved = metrics.outcomes(logits.astype(float) + shift, np.full(len(rows), target))
        np.testing.assert_allclose(seen.nll, moved.nll, atol=1e-9)


class TestOnPublishedPredictions:
    """ResNet-50 of torchvision and SimCLR on the whole validation set."""

    def test_accuracy_of_resnet50_is_torchvisions_published_one(self):
        _, correct = published_predictions("ResNet50")
        assert 0.76130 == pytest.approx(correct.mean(), abs=1e-12)

    def test_ece_agrees_with_a_loop_from_the_definition(self):
        confidence, correct = published_predictions("ResNet50")
        expected = ece_by_loop(confidence.tolist(), correct.tolist())
        assert expected == pytest.approx(metrics.ece_equal_width(confidence, correct), rel=1e-9)
        assert pytest.approx(0.0373, abs=5e-5) == expected

    def test_resnet50_is_over_confident_beyond_what_chance_gives_a_calibrated_model(self):
        confidence, correct = published_predictions("ResNet50")
        _, chance = metrics.null_ece(confidence, draws=50)
        assert metrics.ece_equal_width(confidence, correct) > 5 * chance
        assert metrics.signed_gap(confidence, correct) == pytest.approx(confidence.mean() - 0.76130)

    def test_at_this_size_all_estimators_tell_the_same_story(self):
        confidence, correct = published_predictions("ResNet50")
        equal_width = metrics.ece_equal_width(confidence, correct)
        assert equal_width == pytest.approx(metrics.ece_equal_mass(confidence, correct), rel=0.05)
        assert equal_width == pytest.approx(metrics.ece_debiased_l1(confidence, correct), rel=0.05)
        assert metrics.ece_debiased_l2(confidence, correct) >= metrics.ece_debiased_l1(confidence, correct)

    def test_flips_account_for_the_whole_change_in_accuracy(self):
        (_, first), (_, second) = published_predictions("ResNet50"), published_predictions("SimCLR")
        negative, positive = metrics.flips(first, second)
        assert second.mean() - first.mean() == pytest.approx((positive - negative) / 50_000)
