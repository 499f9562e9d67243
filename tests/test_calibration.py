"""The errors of `calibration_errors`, and the calibration property end to end on synthetic predictions."""

from __future__ import annotations

import csv
import itertools
import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgebench import calibration_errors, class_subsets, metrics, record, report, selective, stats, temperature
from edgebench.errors import InvalidInput
from edgebench.properties import Pass, Predictions, calibration
from edgebench.record import DatasetIdentity
from tests import builders

KEY = Pass("things")
WITH_NULL = {"ece15_ew_null", "certain_images", "distinct_logits"}
CLASSWISE = {"cwece", "cwece_thresholded"}
OWN_SCALING = {"temperature", "ece15_ew_scaled", "nll_scaled"}
PAIRS = st.lists(st.tuples(st.floats(0.0, 1.0), st.booleans()), min_size=1, max_size=60)


@pytest.fixture
def few_resamples(monkeypatch):
    """Intervals from 20 resamples: quick, where only the values matter."""
    whole = stats.bootstrap
    monkeypatch.setattr(stats, "bootstrap", lambda *given, **named: whole(*given, **{"resamples": 20, **named}))


def arrays(pairs):
    return np.array([pair[0] for pair in pairs]), np.array([pair[1] for pair in pairs], dtype=bool)


def calibrated(n, seed, power=1.0):
    generator = np.random.default_rng(seed)
    confidence = generator.beta(5, 1, n)
    return confidence, generator.random(n) < confidence**power


def labelled(n, classes, seed, sharpness=1.0):
    generator = np.random.default_rng(seed)
    logits = generator.normal(scale=2.0, size=(n, classes))
    targets = (logits + generator.gumbel(size=logits.shape)).argmax(axis=1)
    return (logits * sharpness).astype(np.float32), targets


def predictions(logits, targets):
    n, classes = logits.shape
    identity = DatasetIdentity(name="things", source="nowhere", images=n, classes=classes, digest="d" * 64)
    return {KEY: Predictions(dataset=identity, logits=logits, targets=targets,
                             ids=np.array([f"thing/{k:05d}.png" for k in range(n)]))}


def compact(found):
    return {KEY: replace(found[KEY], logits=np.empty((len(found[KEY].ids), 0), np.float32),
                         stored_outcomes=found[KEY].outcomes)}


def scores_of(mine, reference=None):
    (evaluation,) = calibration.score(mine, reference)
    # What a run file holds must survive being written and read.
    again = record.decode(record.Evaluation, record.to_builtins(evaluation), "evaluation")
    assert again == evaluation
    return ({score.name: score for score in evaluation.scores},
            {score.name: score for score in evaluation.reference_scores})


def smoothed_by_quadrature(confidence, correct, width, points=20_000):
    """Definition: residuals times Gaussians around them and all their mirror images, integrated by the midpoint rule."""
    t, total = (np.arange(points) + 0.5) / points, np.zeros(points)
    reach = 2 * math.ceil(3 * width)
    for c, y in zip(confidence, correct, strict=True):
        for centre in (mirrored + image for image in range(-reach, reach + 1, 2) for mirrored in (c, -c)):
            total += (c - y) * np.exp(-0.5 * ((t - centre) / width) ** 2)
    return np.abs(total).mean() / (width * math.sqrt(2 * math.pi) * len(confidence))


def smece_by_quadrature(confidence, correct):
    low, high = 1e-4, 1.0
    for _ in range(20):
        middle = (low + high) / 2
        larger = smoothed_by_quadrature(confidence, correct, middle) > middle
        low, high = (middle, high) if larger else (low, middle)
    return (low + high) / 2


def sweep_by_loop(confidence, correct):
    order = np.argsort(confidence, kind="stable")
    kept = None
    for bins in range(1, len(order) + 1):
        parts = np.array_split(order, bins)
        shares = [correct[part].mean() for part in parts]
        if any(b < a for a, b in itertools.pairwise(shares)):
            break
        kept = parts
    return sum(abs(confidence[part].sum() - correct[part].sum()) for part in kept) / len(order)


def classwise_by_loop(logits, targets, threshold):
    probabilities = metrics.softmax(logits)
    n, classes = probabilities.shape
    every = likely = count = 0
    for k in range(classes):
        for b in range(15):
            inside = [i for i in range(n) if b / 15 < probabilities[i, k] <= (b + 1) / 15]
            every += abs(sum(probabilities[i, k] - (targets[i] == k) for i in inside))
            inside = [i for i in inside if probabilities[i, k] > threshold]
            likely += abs(sum(probabilities[i, k] - (targets[i] == k) for i in inside))
            count += len(inside)
    return every / (n * classes), likely / count


def brier_by_loop(confidence, correct):
    """Reliability, resolution, uncertainty, and the rest as variance less twice the covariance within bins."""
    n, overall = len(confidence), correct.mean()
    reliability = resolution = rest = 0.0
    for k in range(15):
        inside = [i for i in range(n) if k / 15 < confidence[i] <= (k + 1) / 15]
        if inside:
            c, a = confidence[inside], correct[inside].astype(float)
            reliability += len(inside) / n * (c.mean() - a.mean()) ** 2
            resolution += len(inside) / n * (a.mean() - overall) ** 2
            rest += len(inside) / n * (c.var() - 2 * ((c - c.mean()) * (a - a.mean())).mean())
    return reliability, resolution, overall * (1 - overall), rest


def published(shared_data, network):
    with (shared_data / "imagenet-x-predictions" / f"{network}.csv").open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    predicted = np.array([int(row["predicted_class"]) for row in rows])
    return np.array([float(row["predicted_probability"]) for row in rows]), predicted == np.arange(50_000) // 50


@pytest.fixture(scope="module")
def relplot():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("relplot", reason="pip install relplot")


class TestSmooth:
    @pytest.mark.parametrize(("n", "power"), [(1, 1.0), (2, 1.0), (9, 1.0), (60, 1.0), (60, 3.0)])
    def test_agrees_with_the_definition(self, n, power):
        confidence, correct = calibrated(n, n, power)
        assert smece_by_quadrature(confidence, correct) == pytest.approx(
            calibration_errors.smece(confidence, correct), abs=2e-5)

    @pytest.mark.parametrize(("n", "power"), [(1, 1.0), (7, 0.3), (120, 5.0), (900, 1.0), (900, 30.0)])
    def test_the_search_ends_where_bisection_does(self, n, power):
        confidence, correct = calibrated(n, n, power)
        spectrum = calibration_errors._residual_spectrum(confidence, correct)
        low, high = 0, 4096
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if calibration_errors._excess(spectrum, middle / 4096) > 0 else (low, middle)
        above, below = (calibration_errors._excess(spectrum, end / 4096) for end in (low, high))
        assert (low + above / (above - below)) / 4096 == pytest.approx(calibration_errors.smece(confidence, correct), abs=1e-15)

    def test_agrees_with_the_definition_at_both_ends(self):
        confidence = np.array([0.0, 0.0, 1.0, 1.0, 1.0, 0.5])
        correct = np.array([True, False, True, False, False, True])
        assert smece_by_quadrature(confidence, correct) == pytest.approx(
            calibration_errors.smece(confidence, correct), abs=2e-5)

    @pytest.mark.parametrize("power", [1.0, 1.3, 3.0])
    def test_agrees_with_the_authors_package(self, relplot, monkeypatch, power):
        # On its own 200 points, both ends counted in full, its integral is off by some 3e-4.
        monkeypatch.setattr(relplot.config, "smECE_mesh_pts", 4000)
        confidence, correct = calibrated(3000, 1, power)
        confidence *= 0.99
        mine = calibration_errors.smece(confidence, correct)
        # Its bisection stops within 1/1024 above the fixed point, where the integral is no larger.
        assert relplot.smECE(confidence, correct.astype(float)) == pytest.approx(mine, abs=1e-3)
        assert relplot.smECE_sigma(confidence, correct.astype(float), mine) == pytest.approx(mine, abs=1e-4)

    def test_gaps_of_one_sign_are_the_signed_gap(self):
        confidence = np.random.default_rng(0).random(500)
        assert 1 - confidence.mean() == pytest.approx(calibration_errors.smece(confidence, np.ones(500, dtype=bool)))

    @pytest.mark.parametrize(("confidence", "correct", "expected"), [(1.0, True, 0.0), (0.0, True, 1.0),
                                                                    (1.0, False, 1.0), (0.0, False, 0.0)])
    def test_one_image_at_an_end(self, confidence, correct, expected):
        found = calibration_errors.smece(np.array([confidence]), np.array([correct]))
        assert expected == pytest.approx(found, abs=1e-12)

    @given(PAIRS)
    @settings(deadline=None)
    def test_lies_between_the_signed_gap_and_the_mean_residual(self, pairs):
        confidence, correct = arrays(pairs)
        found = calibration_errors.smece(confidence, correct)
        assert abs(metrics.signed_gap(confidence, correct)) - 1e-9 <= found
        assert found <= np.abs(confidence - correct).mean() + 1e-5

    @given(PAIRS)
    @settings(deadline=None)
    def test_a_tiny_change_of_a_confidence_changes_it_by_little(self, pairs):
        confidence, correct = arrays(pairs)
        moved = np.nextafter(confidence, 0.5)
        assert calibration_errors.smece(confidence, correct) == pytest.approx(
            calibration_errors.smece(moved, correct), abs=1e-9)

    def test_one_wrong_argument_is_refused(self):
        with pytest.raises(ValueError, match="expected"):
            calibration_errors.smece(np.array([0.5, 1.2]), np.array([True, False]))


class TestSweep:
    @pytest.mark.parametrize("n", [1, 2, 5, 50, 99, 700])
    @pytest.mark.parametrize("power", [1.0, 4.0])
    def test_agrees_with_a_loop_from_the_definition(self, n, power):
        confidence, correct = calibrated(n, n, power)
        assert sweep_by_loop(confidence, correct) == pytest.approx(calibration_errors.ece_sweep(confidence, correct))

    def test_perfect_separation_uses_every_bin_allowed(self):
        confidence = np.linspace(0.0, 1.0, 60)
        correct = confidence > 0.45
        assert np.abs(confidence - correct).mean() == pytest.approx(calibration_errors.ece_sweep(confidence, correct))
        assert metrics.ece_equal_mass(confidence, correct, bins=7) == pytest.approx(
            calibration_errors.ece_sweep(confidence, correct, most=7))

    def test_one_bin_is_the_signed_gap(self):
        confidence, correct = np.array([0.6, 0.9]), np.array([True, False])
        assert pytest.approx(0.25) == calibration_errors.ece_sweep(confidence, correct)

    @given(PAIRS)
    @settings(deadline=None)
    def test_lies_between_the_signed_gap_and_one(self, pairs):
        confidence, correct = arrays(pairs)
        found = calibration_errors.ece_sweep(confidence, correct)
        assert abs(metrics.signed_gap(confidence, correct)) - 1e-9 <= found <= 1 + 1e-9


class TestLargestGap:
    def test_passes_over_small_bins(self):
        # 49 images with a gap of 0.9, 50 with 0.3, 100 with 0.1.
        confidence = np.repeat([0.9, 0.7, 0.5], [49, 50, 100])
        correct = np.concatenate((np.zeros(49), np.arange(50) < 20, np.arange(100) < 40)).astype(bool)
        assert pytest.approx(0.3) == calibration_errors.mce(confidence, correct)
        assert pytest.approx(0.9) == calibration_errors.mce(confidence, correct, at_least=49)
        assert math.isnan(calibration_errors.mce(confidence, correct, at_least=101))

    def test_agrees_with_torchmetrics_where_every_bin_is_full(self):
        torch = pytest.importorskip("torch")
        functional = pytest.importorskip("torchmetrics.functional.classification")
        generator = np.random.default_rng(0)
        confidence = generator.random(20_000)
        correct = generator.random(20_000) < confidence**1.5
        other = functional.binary_calibration_error(torch.from_numpy(confidence), torch.from_numpy(correct).int(),
                                                    n_bins=15, norm="max")
        assert other.item() == pytest.approx(calibration_errors.mce(confidence, correct), abs=1e-5)


class TestBrierParts:
    @pytest.mark.parametrize(("n", "power"), [(1, 1.0), (3, 1.0), (400, 1.0), (400, 3.0)])
    def test_agree_with_a_loop_from_the_definition(self, n, power):
        confidence, correct = calibrated(n, n, power)
        found = calibration_errors.brier_parts(metrics.reliability_bins(confidence, correct),
                                               ((confidence - correct) ** 2).mean())
        assert brier_by_loop(confidence, correct) == pytest.approx(found, abs=1e-12)

    def test_add_up_to_scikit_learns_brier_score(self):
        sklearn_metrics = pytest.importorskip("sklearn.metrics")
        confidence, correct = calibrated(700, 0, 2.0)
        brier = sklearn_metrics.brier_score_loss(correct, confidence)
        parts = calibration_errors.brier_parts(metrics.reliability_bins(confidence, correct), brier)
        assert brier == pytest.approx(parts.reliability - parts.resolution + parts.uncertainty + parts.within_bins)
        assert 0.0 != parts.within_bins

    def test_forecasts_equal_within_bins_leave_no_rest(self):
        # Murphy's own case: the forecast is one number per bin.
        confidence = np.repeat([0.1, 0.5, 0.9], 40)
        correct = np.random.default_rng(0).random(120) < confidence**2
        found = calibration_errors.brier_parts(metrics.reliability_bins(confidence, correct),
                                               ((confidence - correct) ** 2).mean())
        assert 0.0 == pytest.approx(found.within_bins, abs=1e-15)

    def test_always_stating_the_accuracy_is_reliable_and_resolves_nothing(self):
        correct = np.arange(50) < 35
        found = calibration_errors.brier_parts(metrics.reliability_bins(np.full(50, 0.7), correct), 0.21)
        assert (0.0, 0.0, 0.21, 0.0) == pytest.approx(found, abs=1e-12)


class TestClasswise:
    @pytest.mark.parametrize(("n", "classes", "threshold"), [(60, 5, 1e-3), (60, 2, 1e-3), (25, 40, 1e-2), (1, 3, 1e-3)])
    def test_agrees_with_a_loop_from_the_definition(self, n, classes, threshold):
        logits, targets = labelled(n, classes, n, sharpness=2.0)
        every, likely = classwise_by_loop(logits, targets, threshold)
        found = calibration_errors.classwise(logits, targets, threshold=threshold)
        assert every == pytest.approx(found.every)
        assert likely == pytest.approx(found.likely)

    def test_row_blocks_do_not_show(self):
        logits, targets = labelled(2 * metrics._ROWS + 5, 4, 0)
        found = calibration_errors.classwise(logits, targets)
        order = np.random.default_rng(1).permutation(len(targets))
        again = calibration_errors.classwise(logits[order], targets[order])
        np.testing.assert_allclose(found, again, rtol=1e-9)

    def test_two_classes_are_the_binary_error_of_either(self):
        logits, targets = labelled(500, 2, 2)
        probability = metrics.softmax(logits)[:, 1]
        by_class = [metrics.ece_equal_width(probability, targets == 1),
                    metrics.ece_equal_width(1 - probability, targets == 0)]
        assert np.mean(by_class) == pytest.approx(calibration_errors.classwise(logits, targets).every, abs=1e-9)

    def test_certain_and_right_is_no_error(self):
        logits = np.full((30, 3), -1e4, dtype=np.float32)
        targets = np.arange(30) % 3
        logits[np.arange(30), targets] = 0.0
        assert (0.0, 0.0) == calibration_errors.classwise(logits, targets)

    def test_a_target_thought_impossible_counts_where_it_was_seen(self):
        logits = np.array([[100.0, 0.0]], dtype=np.float32)
        found = calibration_errors.classwise(logits, np.array([1]))
        # Both probabilities are off by 1; only the one above the threshold counts in the second.
        assert (1.0, 1.0) == pytest.approx(found)
        assert 1.0 == pytest.approx(calibration_errors.classwise(np.array([[100.0, 0.0, 0.0]]), np.array([1])).likely)

    def test_nothing_above_the_threshold_is_not_a_number(self):
        found = calibration_errors.classwise(np.zeros((4, 2000), dtype=np.float32), np.arange(4))
        assert math.isnan(found.likely)
        assert found.every > 0

    def test_thresholds_beyond_the_first_bin_and_broken_logits_are_refused(self):
        logits, targets = labelled(4, 3, 3)
        with pytest.raises(ValueError, match="threshold"):
            calibration_errors.classwise(logits, targets, threshold=0.1)
        logits[0, 0] = np.inf
        with pytest.raises(InvalidInput, match="for 1 of 4 images"):
            calibration_errors.classwise(logits, targets)


class TestOnPublishedPredictions:
    def test_smooth_error_agrees_with_the_definition(self, shared_data):
        confidence, correct = published(shared_data, "ResNet50")
        confidence, correct = confidence[::25], correct[::25]
        width = calibration_errors.smece(confidence, correct)
        assert width == pytest.approx(smoothed_by_quadrature(confidence, correct, width, points=2000), abs=1e-5)

    @pytest.mark.parametrize("network", ["ResNet50", "SimCLR"])
    def test_smooth_error_agrees_with_the_authors_package_once_its_ends_count_in_full(
            self, shared_data, relplot, monkeypatch, network):
        confidence, correct = published(shared_data, network)
        mine = calibration_errors.smece(confidence, correct)
        monkeypatch.setattr(relplot.config, "smECE_mesh_pts", 4000)
        # 16 % of these confidences are above 0.999, in its last grid cell: their residuals are half lost.
        assert relplot.smECE(confidence, correct.astype(float)) == pytest.approx(1.055 * mine, rel=0.01)
        kernel = relplot.kernels.ReflectedGaussianKernel
        as_shipped = kernel.convolve

        def in_full(self, values, eval_points):
            values = values.copy()
            values[[0, -1]] *= 2.0
            return as_shipped(self, values, eval_points)

        monkeypatch.setattr(kernel, "convolve", in_full)
        assert relplot.smECE_sigma(confidence, correct.astype(float), mine) == pytest.approx(mine, abs=3e-5)
        assert relplot.smECE(confidence, correct.astype(float)) == pytest.approx(mine, abs=2e-4)

    @pytest.mark.parametrize("network", ["ResNet50", "SimCLR"])
    def test_at_this_size_all_estimators_tell_the_same_story(self, shared_data, network):
        confidence, correct = published(shared_data, network)
        binned = metrics.ece_equal_mass(confidence, correct)
        assert binned == pytest.approx(calibration_errors.ece_sweep(confidence, correct), rel=0.1)
        assert binned == pytest.approx(calibration_errors.smece(confidence, correct), rel=0.1)
        assert sweep_by_loop(confidence, correct) == pytest.approx(calibration_errors.ece_sweep(confidence, correct))
        gaps = metrics.reliability_bins(confidence, correct)
        largest = max(abs(c - a) for c, a, n in zip(gaps.confidence, gaps.accuracy, gaps.n, strict=True) if n >= 50)
        assert largest == pytest.approx(calibration_errors.mce(confidence, correct))


class TestProperty:
    def test_every_score_is_there_once_with_method_and_direction(self, few_resamples):
        logits, targets = labelled(400, 6, 0, 1.8)
        scores, changes = scores_of(predictions(logits, targets))
        names = {one.name for one in calibration.ESTIMATORS}
        assert names | WITH_NULL | CLASSWISE | OWN_SCALING == set(scores)
        assert {} == changes
        assert all(score.method and score.n == 400 for score in scores.values())
        better = {name for name, score in scores.items() if score.better == "higher"}
        assert {"auroc_fd", "coverage_at_5_risk", "brier_resolution"} == better
        undirected = {name for name, score in scores.items() if score.better is None}
        assert {"signed_gap", "temperature", "brier_uncertainty", "brier_within_bins"} | WITH_NULL == undirected

    def test_values_are_those_of_the_functions(self, few_resamples):
        logits, targets = labelled(400, 6, 1, 1.8)
        scores, _ = scores_of(predictions(logits, targets))
        seen = metrics.outcomes(logits, targets)
        errors = selective.expected_errors(seen.confidence, seen.correct)
        expected = {
            "ece15_ew": metrics.ece_equal_width(seen.confidence, seen.correct),
            "smece": calibration_errors.smece(seen.confidence, seen.correct),
            "ece_sweep": calibration_errors.ece_sweep(seen.confidence, seen.correct),
            "mce": calibration_errors.mce(seen.confidence, seen.correct),
            "nll": seen.nll.mean(), "brier": seen.brier.mean(), "distinct_logits": len(set(logits.ravel().tolist())),
            "cwece": calibration_errors.classwise(logits, targets).every,
            "cwece_thresholded": calibration_errors.classwise(logits, targets).likely,
            "aurc": selective.aurc(errors), "e_aurc": selective.e_aurc(errors), "augrc": selective.augrc(errors),
            "auroc_fd": selective.auroc(errors), "coverage_at_5_risk": selective.coverage_at_risk(errors, 0.05),
            "risk_at_80_coverage": selective.risk_at_coverage(errors, 0.8)}
        for name, value in expected.items():
            assert value == pytest.approx(scores[name].value, rel=1e-9), name
        parts = (scores[f"brier_{name}"].value for name in ("reliability", "resolution", "uncertainty", "within_bins"))
        assert brier_by_loop(seen.confidence, seen.correct) == pytest.approx(tuple(parts))

    def test_an_output_of_8_bits_shows_in_the_count_of_distinct_logits(self, few_resamples):
        logits, targets = labelled(300, 20, 13)
        scores, _ = scores_of(predictions((np.round(logits * 8).clip(-128, 127) / 8).astype(np.float32), targets))
        assert scores["distinct_logits"].value < 256 < len(np.unique(logits))

    def test_intervals_hold_the_values_and_stay_within_bounds(self):
        logits, targets = labelled(300, 4, 2, 1.8)
        scores, changes = scores_of(predictions(logits, targets), predictions(logits * np.float32(0.5), targets))
        for name, score in {**scores, **changes}.items():
            # Half the logits: after scaling nothing is left of it, in any resample.
            if name in CLASSWISE | WITH_NULL | {"ece15_ew_scaled_change", "nll_scaled_change"}:
                assert score.low is None
                assert score.reason
                continue
            assert score.low is not None, name
            assert score.low <= score.value <= score.high, name
            if score.unit == "fraction" and not name.endswith("_change") and name not in ("signed_gap", "ece_debiased_l1"):
                assert 0 <= score.low, name
                assert score.high <= 1, name

    def test_the_temperature_scores_are_those_of_the_cross_fit(self, few_resamples):
        logits, targets = labelled(600, 5, 3, 2.5)
        mine = predictions(logits, targets)
        scores, _ = scores_of(mine)
        found = temperature.fit(logits, targets, temperature.halves(mine[KEY].ids))
        confidence, nll = temperature.scaled(logits, targets, found.unseen)
        assert found.value == pytest.approx(scores["temperature"].value)
        assert 2.5 == pytest.approx(scores["temperature"].value, rel=0.15)
        assert nll.mean() == pytest.approx(scores["nll_scaled"].value)
        correct = mine[KEY].outcomes.correct
        assert metrics.ece_equal_width(confidence, correct) == pytest.approx(scores["ece15_ew_scaled"].value)
        assert scores["nll_scaled"].value < scores["nll"].value

    def test_a_factor_on_all_logits_is_seen_in_the_temperatures_alone(self, few_resamples):
        logits, targets = labelled(800, 5, 4)
        scores, changes = scores_of(predictions(logits * np.float32(1.5), targets), predictions(logits, targets))
        ratio = changes["temperature_ratio"]
        assert 1.5 == pytest.approx(ratio.value, rel=1e-6)
        assert 1.5 == pytest.approx(ratio.low, rel=1e-5)
        assert 0.0 == pytest.approx(changes["nll_scaled_change"].value, abs=1e-6)
        assert 0.0 == pytest.approx(changes["ece15_ew_scaled_change"].value, abs=2e-3)
        # Scaled by the reference's temperature it stays over-confident.
        assert changes["nll_scaled_by_reference"].value > scores["nll_scaled"].value
        assert changes["nll_change"].value > 0
        assert changes["ece15_ew_scaled_by_reference"].value > scores["ece15_ew_scaled"].value

    def test_against_itself_nothing_changes(self, few_resamples):
        mine = predictions(*labelled(300, 5, 5, 1.5))
        scores, changes = scores_of(mine, mine)
        assert {f"{one.name}_change" for one in calibration.ESTIMATORS if one.compared} | {
            "temperature_ratio", "ece15_ew_scaled_by_reference", "nll_scaled_by_reference", "ece15_ew_scaled_change",
            "nll_scaled_change"} == set(changes)
        for name, score in changes.items():
            if name.endswith("_change"):
                # No resample differs from another: an interval of no width would claim certainty.
                assert (0.0, None, None, True) == (
                    score.value, score.low, score.high, "resampling cannot bound it" in score.reason), name
        ratio = changes["temperature_ratio"]
        assert (1.0, None, True) == (ratio.value, ratio.low, "resampling cannot bound it" in ratio.reason)
        assert scores["nll_scaled"].value == changes["nll_scaled_by_reference"].value

    def test_paired_intervals_agree_with_resampling_both_by_hand(self, monkeypatch):
        logits, targets = labelled(250, 5, 6, 1.5)
        noisy = logits + np.random.default_rng(0).normal(scale=0.7, size=logits.shape).astype(np.float32)
        _, changes = scores_of(predictions(noisy, targets), predictions(logits, targets))
        mine, theirs = metrics.outcomes(noisy, targets), metrics.outcomes(logits, targets)
        # The same draws, in the order that the property gives the images.
        order = np.argsort(mine.confidence, kind="stable")

        def change(chosen):
            one, two = mine.take(order[chosen]), theirs.take(order[chosen])
            return np.array([
                metrics.ece_equal_width(one.confidence, one.correct) - metrics.ece_equal_width(two.confidence, two.correct),
                calibration_errors.smece(one.confidence, one.correct) - calibration_errors.smece(two.confidence, two.correct),
                selective.augrc(selective.expected_errors(one.confidence, one.correct))
                - selective.augrc(selective.expected_errors(two.confidence, two.correct))])

        low, high = stats.bootstrap(change, 250, estimate=change(np.arange(250)))
        for place, name in enumerate(("ece15_ew_change", "smece_change", "augrc_change")):
            assert low[place] == pytest.approx(changes[name].low, abs=1e-9)
            assert high[place] == pytest.approx(changes[name].high, abs=1e-9)

    @pytest.mark.parametrize("n", [1, 2, 5, 29, 30, 60])
    @pytest.mark.parametrize("classes", [2, 6])
    def test_few_images_give_what_they_can_and_say_why_not_more(self, few_resamples, n, classes):
        logits, targets = labelled(n, classes, n)
        scores, changes = scores_of(predictions(logits, targets), predictions(logits[::-1].copy(), targets))
        for score in (*scores.values(), *changes.values()):
            assert score.value is not None or score.reason
            assert score.low is not None or score.reason
        assert (scores["ece_debiased_l2"].value is None) == (n < 30)
        assert f"{n} images are too few: at least 100 are needed" == scores["temperature"].reason
        assert scores["temperature"].reason == changes["temperature_ratio"].reason
        if n < 50:
            assert scores["mce"].value is None
            assert "no confidence bin holds 50 images" == scores["mce"].reason

    def test_all_right_leaves_nothing_to_tell_apart(self, few_resamples):
        logits, _ = labelled(150, 4, 7, 2.0)
        scores, changes = scores_of(predictions(logits, logits.argmax(axis=1)), predictions(-logits, logits.argmax(axis=1)))
        assert scores["auroc_fd"].value is None
        assert "every answer is right" in scores["auroc_fd"].reason
        assert 0.0 == scores["aurc"].value == scores["e_aurc"].value == scores["risk_at_80_coverage"].value
        assert 1.0 == scores["coverage_at_5_risk"].value
        assert scores["temperature"].reason.startswith("no temperature minimises the NLL")
        assert changes["temperature_ratio"].value is None
        assert changes["auroc_fd_change"].value is None

    def test_only_the_side_without_a_temperature_is_named(self, few_resamples):
        logits, targets = labelled(200, 4, 8)
        good, perfect = predictions(logits, targets), logits.copy()
        perfect[np.arange(200), targets] = 30.0
        scores, changes = scores_of(good, predictions(perfect, targets))
        assert scores["temperature"].value is not None
        assert changes["temperature_ratio"].reason.startswith("the reference: no temperature")
        assert changes["nll_scaled_by_reference"].value is None
        scores, changes = scores_of(predictions(perfect, targets), good)
        assert scores["temperature"].value is None
        assert changes["temperature_ratio"].reason.startswith("this variant: no temperature")
        assert changes["nll_scaled_by_reference"].value is not None

    def test_a_statistic_that_some_resamples_lack_has_a_value_and_no_interval(self, few_resamples):
        logits, targets = labelled(120, 3, 9, 4.0)
        targets = logits.argmax(axis=1)
        targets[0] = (targets[0] + 1) % 3
        scores, _ = scores_of(predictions(logits, targets))
        score = scores["auroc_fd"]
        assert score.value is not None
        assert score.low is None
        assert "in some resamples it is not defined" == score.reason

    def test_order_of_the_images_shows_only_in_equal_mass_bins(self, few_resamples):
        logits, targets = labelled(300, 3, 10)
        logits = np.round(logits)  # Many ties.
        order = np.random.default_rng(0).permutation(300)
        one, two = predictions(logits, targets), predictions(logits[order], targets[order])
        two = {KEY: Predictions(dataset=two[KEY].dataset, logits=two[KEY].logits, targets=two[KEY].targets,
                                ids=one[KEY].ids[order])}
        first, second = scores_of(one)[0], scores_of(two)[0]
        cut = {"ece_em", "ece_sweep", "ece_debiased_l2", "ece_debiased_l2_squared", "ece_debiased_l1", "ece15_ew_null"}
        for name in set(first) - cut:
            assert first[name].value == pytest.approx(second[name].value, rel=1e-6, abs=1e-12), name

    def test_saturated_outputs_are_no_trouble(self, few_resamples):
        logits, targets = labelled(200, 3, 11, 1000.0)
        scores, _ = scores_of(predictions(logits, targets))
        assert scores["certain_images"].value > 150
        assert all(score.value is None or math.isfinite(score.value) for score in scores.values())

    def test_without_stored_logits_all_that_outcomes_allow_is_there(self, few_resamples):
        logits, targets = labelled(300, 6, 14, 1.5)
        mine, theirs = predictions(logits, targets), predictions(logits * np.float32(0.8), targets)
        needs_logits = {"distinct_logits", "cwece", "cwece_thresholded", "temperature", "ece15_ew_scaled", "nll_scaled"}
        both_logits = {"temperature_ratio", "ece15_ew_scaled_by_reference", "nll_scaled_by_reference",
                       "ece15_ew_scaled_change", "nll_scaled_change"}
        whole, whole_changes = scores_of(mine, theirs)
        for one, other in ((compact(mine), compact(theirs)), (compact(mine), theirs), (mine, compact(theirs))):
            scores, changes = scores_of(one, other)
            for name, score in scores.items():
                if name in needs_logits and one is not mine:
                    assert (None, "the predictions were stored in compact form") == (score.value, score.reason), name
                else:
                    assert whole[name] == score
            for name, score in changes.items():
                if name in both_logits:
                    assert (None, "the predictions were stored in compact form") == (score.value, score.reason), name
                else:
                    assert whole_changes[name] == score
            assert (set(whole), set(whole_changes)) == (set(scores), set(changes))

    def test_imagenet_r_is_scored_among_its_200_classes(self, few_resamples):
        generator = np.random.default_rng(15)
        targets = generator.choice(class_subsets.IMAGENET_R, 300)
        logits = generator.normal(size=(300, 1000)).astype(np.float32)
        logits[np.arange(300), targets] += generator.normal(3.0, 1.0, 300)
        # The rest of the classes must not count, however large.
        logits[:, next(k for k in range(1000) if k not in class_subsets.IMAGENET_R)] += 20.0
        key = Pass("imagenet-r", preset="paper")
        (whole,), (theirs,) = predictions(logits, targets).values(), predictions(logits[:, ::-1].copy(), targets).values()
        (evaluation,) = calibration.score({key: whole}, {key: theirs})
        scores = {score.name: score.value for score in evaluation.scores}
        powers = np.exp(logits[:, class_subsets.IMAGENET_R].astype(float))
        probabilities = powers / powers.sum(axis=1, keepdims=True)
        place = [class_subsets.IMAGENET_R.index(target) for target in targets]
        assert -np.log(probabilities[np.arange(300), place]).mean() == pytest.approx(scores["nll"])
        gap = probabilities.max(axis=1).mean() - (probabilities.argmax(axis=1) == place).mean()
        assert gap == pytest.approx(scores["signed_gap"])
        assert metrics.ece_equal_width(probabilities.max(axis=1), probabilities.argmax(axis=1) == place) == pytest.approx(
            scores["ece15_ew"])
        assert ("imagenet-r--clean--paper", "paper") == (evaluation.predictions[0].split("/")[1][:-4], evaluation.preset)
        assert evaluation.reference_scores

    def test_passes_are_the_labelled_sets_and_imagenet_r_where_it_is(self):
        sets = ["mine", "imagenet-r", "imagenet-a", "imagenet-val", "pug/Worlds"]
        assert (Pass("mine"), Pass("imagenet-val"), Pass("imagenet-r")) == calibration.passes(sets)
        assert (Pass("mine", preset="paper"),) == calibration.passes(["mine"], "paper")

    def test_the_report_takes_every_score(self, few_resamples):
        logits, targets = labelled(150, 4, 12, 1.5)
        mine = predictions(logits, targets)
        run = builders.run(evaluations=calibration.score(mine, predictions(logits * np.float32(0.8), targets)))
        page = report.html([run])
        for title in ("Smooth ECE", "AURC", "AUGRC", "Coverage at 5 % risk", "Temperature ratio", "Class-wise ECE"):
            assert title in page
        assert "every resample would need all probabilities" in page
        assert report.markdown([run])
