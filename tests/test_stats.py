"""Intervals, tests and trends against SciPy, exact arithmetic, simulation and published numbers."""

from __future__ import annotations

import math
import warnings
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgebench import stats

scipy_stats = pytest.importorskip("scipy.stats")
FINITE = st.floats(-1e6, 1e6)


class TestWilson:
    @pytest.mark.parametrize(("successes", "n"), [(0, 10), (1, 10), (5, 10), (10, 10), (38_065, 50_000), (799, 800)])
    @pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
    def test_agrees_with_scipy(self, successes, n, confidence):
        expected = scipy_stats.binomtest(successes, n).proportion_ci(confidence_level=confidence, method="wilson")
        assert (expected.low, expected.high) == pytest.approx(stats.wilson(successes, n, confidence), abs=1e-12)

    def test_agrees_with_the_textbook_root_of_the_score_equation(self):
        # Both ends solve (p - share)^2 = z^2 p (1 - p) / n.
        for end in stats.wilson(83, 100):
            assert (end - 0.83) ** 2 == pytest.approx(1.959963984540054**2 * end * (1 - end) / 100)

    def test_ends_are_exact_where_all_or_none_succeed(self):
        assert 0.0 == stats.wilson(0, 37)[0]
        assert 1.0 == stats.wilson(37, 37)[1]

    @given(st.integers(1, 10**6), st.data())
    def test_holds_the_share_and_stays_between_zero_and_one(self, n, data):
        successes = data.draw(st.integers(0, n))
        low, high = stats.wilson(successes, n)
        assert 0.0 <= low <= successes / n <= high <= 1.0

    @pytest.mark.parametrize(("successes", "n", "confidence"), [(0, 0, .95), (-1, 5, .95), (6, 5, .95), (1, 5, 1.0)])
    def test_impossible_counts_are_refused(self, successes, n, confidence):
        with pytest.raises(ValueError, match=r"expected .* got"):
            stats.wilson(successes, n, confidence)


class TestNormalQuantile:
    @pytest.mark.parametrize("p", [1e-9, 0.025, 0.5, 0.95, 0.975])
    def test_agrees_with_scipy(self, p):
        assert scipy_stats.norm.ppf(p) == pytest.approx(stats.normal_quantile(p), abs=1e-12)

    @pytest.mark.parametrize("p", [0.0, 1.0, math.nan])
    def test_refuses_what_has_no_quantile(self, p):
        with pytest.raises(ValueError, match="expected p between 0 and 1"):
            stats.normal_quantile(p)


class TestBootstrap:
    def test_of_means_agrees_with_the_normal_interval(self):
        values = np.random.default_rng(0).normal(size=(2000, 2)) * [1.0, 3.0] + [5.0, 0.0]
        low, high = stats.bootstrap(lambda indices: values[indices].mean(axis=0), 2000, resamples=2000)
        half = 1.96 * values.std(axis=0) / math.sqrt(2000)
        np.testing.assert_allclose(low, values.mean(axis=0) - half, atol=0.08 * half.max())
        np.testing.assert_allclose(high, values.mean(axis=0) + half, atol=0.08 * half.max())

    def test_agrees_with_scipys_percentile_bootstrap(self):
        values = np.random.default_rng(1).exponential(size=400)
        theirs = scipy_stats.bootstrap((values,), np.median, n_resamples=3000, method="percentile", rng=0)
        low, high = stats.bootstrap(lambda indices: np.array([np.median(values[indices])]), 400, resamples=3000)
        assert theirs.confidence_interval.low == pytest.approx(low.item(), abs=0.01)
        assert theirs.confidence_interval.high == pytest.approx(high.item(), abs=0.01)

    def test_every_resample_has_n_indices_in_order_drawn_uniformly(self):
        seen = []
        stats.bootstrap(lambda indices: (seen.append(indices), np.zeros(1))[1], 50, resamples=400)
        drawn = np.stack(seen)
        assert (400, 50) == drawn.shape
        assert (np.diff(drawn, axis=1) >= 0).all()
        assert scipy_stats.chisquare(np.bincount(drawn.ravel(), minlength=50)).pvalue > 1e-3
        distinct = np.mean([len(set(row)) for row in drawn.tolist()])
        assert 50 * (1 - (1 - 1 / 50) ** 50) == pytest.approx(distinct, rel=0.02)

    def test_same_seed_same_interval(self):
        values = np.random.default_rng(2).normal(size=100)
        first, second, other = (stats.bootstrap(lambda indices: values[indices][:1], 100, resamples=50, seed=seed)
                                for seed in (7, 7, 8))
        assert first == second
        assert first != other

    def test_one_statistic_that_is_nan_once_loses_its_ends_and_the_others_keep_theirs(self):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            low, high = stats.bootstrap(lambda indices: np.array([np.nan if 0 in indices else 1.0, 2.0]), 5)
        assert [True, False] == np.isnan(low).tolist() == np.isnan(high).tolist()
        assert 2.0 == low[1] == high[1]

    def test_covers_the_truth_about_as_often_as_it_says(self):
        hits = 0
        for seed in range(200):
            values = np.random.default_rng(seed).normal(size=100)
            low, high = stats.bootstrap(lambda indices, v=values: v[indices].mean(keepdims=True), 100, resamples=200)
            hits += low.item() <= 0.0 <= high.item()
        assert 0.90 <= hits / 200 <= 0.99

    @pytest.mark.parametrize("bad", [{"n": 0}, {"resamples": 0}, {"confidence": 1.0}])
    def test_impossible_requests_are_refused(self, bad):
        with pytest.raises(ValueError, match=r"expected .* got"):
            stats.bootstrap(lambda indices: indices[:1] * 1.0, **{"n": 3, **bad})


class TestPaired:
    def test_example_of_the_specification(self):
        change, error = stats.paired_change(300, 200, 50_000)
        assert pytest.approx(-0.002) == change
        assert pytest.approx(0.000447, abs=5e-7) == error

    def test_standard_error_is_that_of_the_mean_of_per_image_differences(self):
        generator = np.random.default_rng(0)
        before, after = generator.random(700) < 0.8, generator.random(700) < 0.7
        difference = after.astype(float) - before.astype(float)
        change, error = stats.paired_change(int((before & ~after).sum()), int((~before & after).sum()), 700)
        assert difference.mean() == pytest.approx(change)
        assert difference.std() / math.sqrt(700) == pytest.approx(error)

    def test_no_flips_and_all_flips_have_no_error(self):
        assert (0.0, 0.0) == stats.paired_change(0, 0, 10)
        assert (-1.0, 0.0) == stats.paired_change(10, 0, 10)

    @pytest.mark.parametrize(("negative", "positive"), [(0, 0), (0, 1), (5, 5), (9, 1), (1, 9), (300, 200), (0, 60),
                                                        (1500, 1400), (20_000, 20_500), (12_000, 30_000)])
    def test_mcnemar_agrees_with_scipys_exact_binomial_test(self, negative, positive):
        n = negative + positive
        expected = scipy_stats.binomtest(negative, n).pvalue if n else 1.0
        assert expected == pytest.approx(stats.mcnemar_exact(negative, positive), rel=1e-8)

    def test_mcnemar_agrees_with_integer_arithmetic(self):
        exact = Fraction(2 * sum(math.comb(500, k) for k in range(201)), 2**500)
        assert float(exact) == pytest.approx(stats.mcnemar_exact(300, 200), rel=1e-11)

    @given(st.integers(0, 300), st.integers(0, 300))
    def test_mcnemar_is_symmetric_and_a_probability(self, negative, positive):
        p = stats.mcnemar_exact(negative, positive)
        assert p == stats.mcnemar_exact(positive, negative)
        assert 0.0 <= p <= 1.0

    @pytest.mark.parametrize(("negative", "positive", "n"), [(-1, 0, 5), (0, -1, 5), (3, 3, 5), (0, 0, 0)])
    def test_impossible_counts_are_refused(self, negative, positive, n):
        with pytest.raises(ValueError, match=r"expected .* got"):
            stats.paired_change(negative, positive, n)

    def test_mcnemar_refuses_negative_counts(self):
        with pytest.raises(ValueError, match="expected counts of 0 or more"):
            stats.mcnemar_exact(-1, 3)


class TestHolm:
    def test_example_worked_by_hand(self):
        # In order .005, .01, .03, .04 times 4, 3, 2, 1, and never below the one before.
        assert (0.03, 0.06, 0.06, 0.02) == pytest.approx(stats.holm([0.01, 0.04, 0.03, 0.005]))

    @given(st.lists(st.floats(0.0, 1.0), max_size=12), st.floats(0.001, 0.999))
    def test_adjusted_values_reject_what_the_step_down_procedure_rejects(self, p_values, level):
        rejected, waiting = set(), sorted(range(len(p_values)), key=p_values.__getitem__)
        while waiting and len(waiting) * p_values[waiting[0]] <= level:
            rejected.add(waiting.pop(0))
        assert rejected == {k for k, adjusted in enumerate(stats.holm(p_values)) if adjusted <= level}

    def test_one_test_needs_no_adjustment_and_none_is_none(self):
        assert (0.04,) == stats.holm([0.04])
        assert () == stats.holm([])


class TestPairedInterval:
    def test_published_example(self):
        # Airway hyper-responsiveness, 21 children, 1 and 7 changes: Fagerland, Lydersen & Laake 2014, Stat Med 33:2850.
        low, high = stats.paired_interval(1, 7, 21)
        assert (-0.517, -0.026) == (round(low, 3), round(high, 3))

    @pytest.mark.parametrize("n", [1, 40, 46_110])
    def test_without_any_change_it_still_has_a_width(self, n):
        z2 = stats.normal_quantile(0.975) ** 2
        assert pytest.approx((-z2 / (n + z2), z2 / (n + z2))) == stats.paired_interval(0, 0, n)

    @pytest.mark.parametrize(("up", "down", "n"), [(3, 9, 60), (300, 200, 50_000), (5, 0, 40), (0, 7, 7), (10, 10, 20)])
    def test_ends_are_where_the_score_test_turns(self, up, down, n):
        low, high = stats.paired_interval(up, down, n)
        assert -1.0 <= low <= (up - down) / n <= high <= 1.0
        assert pytest.approx((-high, -low)) == stats.paired_interval(down, up, n)
        for end in (low, high):
            if abs(end) < 1.0:
                assert 1.959964 == pytest.approx(abs(score_statistic(up, down, n, end)), rel=1e-4)

    def test_large_samples_agree_with_the_normal_interval(self):
        change, error = stats.paired_change(300, 200, 50_000)
        low, high = stats.paired_interval(200, 300, 50_000)
        assert pytest.approx((change - 1.96 * error, change + 1.96 * error), abs=3e-5) == (low, high)

    @pytest.mark.parametrize(("up", "down", "n"), [(-1, 0, 5), (0, -1, 5), (0, 0, 0), (3, 3, 5)])
    def test_impossible_counts_are_refused(self, up, down, n):
        with pytest.raises(ValueError, match="expected counts"):
            stats.paired_interval(up, down, n)


def score_statistic(up, down, n, change):
    """Return the score statistic with the restricted likelihood maximised on a fine grid instead of in closed form."""
    shares = np.linspace(max(0.0, -change), (1.0 - change) / 2.0, 2_000_001)[1:-1]
    with np.errstate(divide="ignore", invalid="ignore"):
        likelihood = sum(np.where(count > 0, count * np.log(share), 0.0) for count, share in (
            (up, shares + change), (down, shares), (n - up - down, 1.0 - change - 2.0 * shares)))
    share = float(shares[np.nanargmax(likelihood)])
    return (up - down - n * change) / math.sqrt(n * (2.0 * share + change - change * change))


class TestQuantile:
    @pytest.mark.parametrize(("q", "expected"), [(0.5, 50.0), (0.501, 51.0), (0.9, 90.0), (0.99, 99.0), (0.999, 100.0),
                                                 (0.07, 7.0), (0.001, 1.0)])
    def test_is_the_order_statistic_at_the_rounded_up_rank(self, q, expected):
        # 0.07 * 100 is 7.000000000000001 in floating point: naive rounding up gave the 8th value.
        assert expected == stats.quantile(np.random.default_rng(0).permutation(np.arange(1.0, 101.0)), q)

    @given(st.lists(FINITE, min_size=1, max_size=60), st.integers(1, 999).map(lambda k: k / 1000))
    def test_at_least_a_share_q_lies_at_or_below_and_less_lies_below(self, values, q):
        found = stats.quantile(values, q)
        assert found in values
        share = Fraction(str(q)) * len(values)
        assert sum(value <= found for value in values) >= share > sum(value < found for value in values)

    def test_agrees_with_numpys_inverted_cdf(self):
        values = np.random.default_rng(1).lognormal(size=1237)
        for q in (0.05, 0.5, 0.9, 0.99, 0.999):
            assert np.quantile(values, q, method="inverted_cdf") == stats.quantile(values, q)

    @pytest.mark.parametrize(("values", "q"), [([], 0.5), ([1.0, math.nan], 0.5), ([[1.0]], 0.5), ([1.0], 0.0),
                                               ([1.0], 1.0)])
    def test_impossible_requests_are_refused(self, values, q):
        with pytest.raises(ValueError, match=r"expected .* got"):
            stats.quantile(values, q)
        with pytest.raises(ValueError, match=r"expected .* got"):
            stats.quantile_interval(values, q)


class TestQuantileInterval:
    @pytest.mark.parametrize(("n", "q", "confidence"), [(50, 0.5, 0.95), (1000, 0.9, 0.95), (400, 0.99, 0.95),
                                                        (5000, 0.999, 0.9), (37, 0.25, 0.99), (20_000, 0.99, 0.99)])
    def test_ends_are_the_tightest_order_statistics_that_scipys_binomial_allows(self, n, q, confidence):
        low, high = stats.quantile_interval(np.arange(1, n + 1), q, confidence)
        tail, below = (1 - confidence) / 2, scipy_stats.binom(n, q)
        assert below.cdf(low - 1) <= tail < below.cdf(low)
        assert below.sf(high - 1) <= tail < below.sf(high - 2)

    def test_agrees_with_scipys_quantile_test(self):
        values = np.random.default_rng(0).gamma(2.0, size=800)
        for q in (0.1, 0.5, 0.95):
            theirs = scipy_stats.quantile_test(values, q=0.0, p=q).confidence_interval(confidence_level=0.95)
            assert (theirs.low, theirs.high) == stats.quantile_interval(values, q)

    @pytest.mark.parametrize("q", [0.5, 0.9, 0.99])
    def test_covers_the_true_quantile_at_least_as_often_as_it_says(self, q):
        samples = np.random.default_rng(2).lognormal(size=(1000, 500))
        truth = math.exp(stats.normal_quantile(q))
        ends = [stats.quantile_interval(sample, q) for sample in samples]
        # Three standard errors of a share of 0.95 over 1,000 samples.
        assert np.mean([low <= truth <= high for low, high in ends]) >= 0.95 - 3 * math.sqrt(0.95 * 0.05 / 1000)
        assert np.mean([truth < low for low, _ in ends]) <= 0.025 + 3 * math.sqrt(0.025 * 0.975 / 1000)
        assert np.mean([truth > high for _, high in ends]) <= 0.025 + 3 * math.sqrt(0.025 * 0.975 / 1000)

    def test_covers_with_ties_too(self):
        # A coarse clock: values on a grid, where the median is 5 by symmetry.
        samples = np.random.default_rng(3).binomial(10, 0.5, size=(1000, 60)).astype(float)
        ends = [stats.quantile_interval(sample, 0.5) for sample in samples]
        assert np.mean([low <= 5.0 <= high for low, high in ends]) >= 0.95

    @pytest.mark.parametrize(("q", "n"), [(0.5, 6), (0.9, 36), (0.95, 72), (0.99, 368), (0.999, 3688), (0.01, 368)])
    def test_timings_needed_is_exactly_where_the_last_end_appears(self, q, n):
        # The smallest n with max(q, 1 - q)^n <= 2.5 %, in exact arithmetic.
        base, tail = max(Fraction(str(q)), 1 - Fraction(str(q))), Fraction(25, 1000)
        assert base**n <= tail < base ** (n - 1)
        assert n == stats.timings_needed(q)
        assert None not in stats.quantile_interval(np.arange(n), q)
        assert None in stats.quantile_interval(np.arange(n - 1), q)

    @given(st.integers(1, 999).map(lambda k: k / 1000), st.sampled_from([0.5, 0.8, 0.9, 0.95, 0.99]))
    @settings(deadline=None, max_examples=50)
    def test_timings_needed_and_the_interval_agree(self, q, confidence):
        n = stats.timings_needed(q, confidence)
        assert None not in stats.quantile_interval(np.arange(n), q, confidence)
        assert n == 1 or None in stats.quantile_interval(np.arange(n - 1), q, confidence)

    def test_an_end_out_of_reach_is_none_and_the_other_stays(self):
        low, high = stats.quantile_interval(np.arange(100), 0.99)
        assert low is not None
        assert high is None
        low, high = stats.quantile_interval(np.arange(100), 0.01)
        assert low is None
        assert high is not None
        assert (None, None) == stats.quantile_interval([1.0], 0.5)

    @given(st.lists(FINITE, min_size=1, max_size=80), st.floats(0.01, 0.99))
    @settings(deadline=None)
    def test_holds_the_sample_quantile(self, values, q):
        low, high = stats.quantile_interval(values, q)
        assert low is None or low <= stats.quantile(values, q)
        assert high is None or high >= stats.quantile(values, q)


class TestTrend:
    @pytest.mark.parametrize("seed", range(5))
    def test_agree_with_scipy(self, seed):
        values = np.random.default_rng(seed).normal(size=120) + 0.01 * seed * np.arange(120)
        assert scipy_stats.theilslopes(values).slope == pytest.approx(stats.theil_sen(values))
        assert scipy_stats.kendalltau(np.arange(120), values).statistic == pytest.approx(stats.kendall_tau(values))

    def test_agree_with_scipy_under_ties(self):
        values = np.random.default_rng(9).integers(0, 4, 60).astype(float)
        assert scipy_stats.theilslopes(values).slope == pytest.approx(stats.theil_sen(values))
        assert scipy_stats.kendalltau(np.arange(60), values).statistic == pytest.approx(stats.kendall_tau(values))

    def test_outliers_do_not_carry_the_slope_away(self):
        values = 2.0 * np.arange(50)
        values[::5] += 1e6
        assert 2.0 == stats.theil_sen(values)

    def test_steady_rise_and_fall_are_the_ends_of_the_scale(self):
        assert 1.0 == stats.kendall_tau([1.0, 2.0, 5.0])
        assert -1.0 == stats.kendall_tau([5.0, 2.0, 1.0])

    def test_of_equal_values_there_is_no_trend(self):
        assert 0.0 == stats.kendall_tau([3.0] * 10) == stats.theil_sen([3.0] * 10)

    @pytest.mark.parametrize("trend", [stats.theil_sen, stats.kendall_tau])
    @pytest.mark.parametrize("values", [[1.0], [1.0, math.inf], np.zeros(stats.MAX_TREND_POINTS + 1)])
    def test_refuses_what_it_cannot_judge(self, trend, values):
        with pytest.raises(ValueError, match=r"expected .* got"):
            trend(values)
