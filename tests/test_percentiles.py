"""Percentiles with a confidence that is kept, and MLPerf's table of early stopping."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest
from scipy import special
from scipy import stats as scipy_stats
from scipy.signal import lfilter

from edgebench import percentiles, stats


class TestEarlyStopping:
    @pytest.mark.parametrize(("q", "counts"), [
        (0.90, (44, 64, 81, 127, 197)), (0.95, (90, 130, 165, 259, 398)), (0.97, (152, 219, 277, 433, 667)),
        (0.99, (459, 662, 838, 1307, 2010)), (0.999, (4603, 6636, 8403, 13105, 20140))])
    def test_minimum_counts_are_those_of_mlperf(self, q, counts):
        assert counts == tuple(percentiles.early_stopping_count(q, late) for late in (0, 1, 2, 5, 10))

    @pytest.mark.parametrize("q", [0.5, 0.9, 0.99])
    @pytest.mark.parametrize("late", [0, 3, 26])
    def test_minimum_count_is_the_smallest_by_the_incomplete_beta_function(self, q, late):
        n = percentiles.early_stopping_count(q, late)
        assert special.betainc(n - late, late + 1, q) <= 0.01 < special.betainc(n - 1 - late, late + 1, q)

    def test_estimate_drops_all_but_one_of_the_allowed_late_queries(self):
        # LoadGen 6.0.17 on 421 queries at 90 %: "Would discard 26 highest latency queries".
        assert 27 == percentiles.late_allowed(421, 0.9)
        assert 421 - 26 == percentiles.early_stopping_estimate(np.arange(1, 422), 0.9)

    def test_there_is_no_estimate_from_fewer_queries_than_one_late_one_needs(self):
        assert percentiles.early_stopping_estimate(np.arange(661), 0.99) is None
        assert 661 == percentiles.early_stopping_estimate(np.arange(662), 0.99)

    def test_a_bound_holds_exactly_up_to_the_allowed_number_of_late_queries(self):
        assert percentiles.holds(1, 662, 0.99)
        assert not percentiles.holds(2, 662, 0.99)
        assert not percentiles.holds(0, 458, 0.99)

    def test_estimate_is_above_the_true_quantile_as_often_as_it_promises(self):
        generator = np.random.default_rng(2)
        truth = -math.log(0.1)
        above = sum(percentiles.early_stopping_estimate(generator.exponential(size=500), 0.9) >= truth
                    for _ in range(2000))
        assert above / 2000 >= 0.985

    @pytest.mark.parametrize(("q", "late", "confidence"), [(1.0, 0, 0.99), (0.9, -1, 0.99), (0.9, 0, 1.0)])
    def test_arguments_out_of_range_are_refused(self, q, late, confidence):
        with pytest.raises(ValueError, match="expected q and confidence"):
            percentiles.early_stopping_count(q, late, confidence)


def autocorrelated(generator, phi: float, shape: tuple[int, int]) -> np.ndarray:
    """Return standard normal values whose neighbours in a row are correlated by phi."""
    noise = generator.normal(size=(shape[0], shape[1] + 300))
    return lfilter([1], [1, -phi], noise, axis=1)[:, 300:] * math.sqrt(1 - phi**2)


class TestBounds:
    @pytest.mark.parametrize("q", [0.5, 0.9, 0.99])
    def test_independent_timings_have_the_interval_of_binomial_order_statistics(self, q):
        values = np.random.default_rng(0).lognormal(size=700)
        found = percentiles.bound(values, q, independent=True)
        assert stats.quantile_interval(values, q) == (found.low_s, found.high_s)
        assert (700, 700) == (found.n, found.effective_n)

    def test_achieved_confidence_is_the_binomial_probability_between_the_ends(self):
        values = np.arange(1.0, 101.0)
        found = percentiles.bound(values, 0.5, independent=True)
        # x(40) to x(61): at least 40 and at most 60 of 100 lie below the median.
        assert (40.0, 61.0) == (found.low_s, found.high_s)
        expected = scipy_stats.binom.cdf(60, 100, 0.5) - scipy_stats.binom.cdf(39, 100, 0.5)
        assert expected == pytest.approx(found.achieved, abs=1e-12)

    def test_too_few_timings_say_how_sure_they_are_at_best(self):
        found = percentiles.bound(np.arange(1.0, 101.0), 0.99, independent=True)
        assert (None, False) == (found.high_s, found.met)
        low = round(found.low_s)
        # From that order statistic to the largest one.
        assert scipy_stats.binom.cdf(99, 100, 0.99) - scipy_stats.binom.cdf(low - 1, 100, 0.99) == pytest.approx(found.achieved)
        assert ("p99 has no upper bound at 95 % confidence from 100 timings; 368 independent timings are needed"
                == percentiles.words(found))

    def test_words_state_the_interval_with_asked_and_achieved_confidence(self):
        found = percentiles.bound(np.arange(1.0, 101.0) / 1e3, 0.5, independent=True)
        assert ("p50 is 50.000 ms, between 40.000 and 61.000 ms with 96.4 % confidence (95 % requested, 100 timings)"
                == percentiles.words(found))

    def test_words_round_a_confidence_down(self):
        found = percentiles.bound(np.arange(1.0, 200.0), 0.5, 0.9999, independent=True)
        assert "99.9 % requested" in percentiles.words(found)

    @pytest.mark.parametrize(("phi", "least"), [(0.0, 0.94), (0.5, 0.92), (0.8, 0.91)])
    @pytest.mark.parametrize("q", [0.5, 0.9])
    def test_intervals_hold_their_confidence_on_autocorrelated_timings(self, phi, least, q):
        rows = np.exp(autocorrelated(np.random.default_rng(5), phi, (600, 1000)))
        truth = math.exp(NormalDist().inv_cdf(q))
        found = [percentiles.bound(row, q) for row in rows]
        held = np.mean([one.met and one.low_s <= truth <= one.high_s for one in found])
        assert held >= least

    def test_taking_such_timings_as_independent_would_not_hold_it(self):
        rows = np.exp(autocorrelated(np.random.default_rng(5), 0.8, (600, 1000)))
        found = [percentiles.bound(row, 0.5, independent=True) for row in rows]
        assert np.mean([one.low_s <= 1.0 <= one.high_s for one in found]) < 0.7

    @pytest.mark.parametrize("draw", ["lognormal", "standard_cauchy", "standard_exponential"])
    def test_intervals_hold_their_confidence_for_any_distribution(self, draw):
        generator = np.random.default_rng(8)
        truth = {"lognormal": 1.0, "standard_cauchy": 0.0, "standard_exponential": math.log(2)}[draw]
        found = [percentiles.bound(getattr(generator, draw)(size=300), 0.5) for _ in range(1000)]
        assert np.mean([one.low_s <= truth <= one.high_s for one in found]) >= 0.94

    @pytest.mark.parametrize(("phi", "worth"), [(0.0, 1.0), (0.5, 1 / 3), (0.9, 1 / 19)])
    def test_effective_count_is_that_of_a_first_order_process(self, phi, worth):
        # (1 - phi)/(1 + phi) of the count, for the mean of such a process.
        rows = autocorrelated(np.random.default_rng(1), phi, (50, 4000))
        counts = [percentiles.effective_count(row) for row in rows]
        assert 4000 * worth == pytest.approx(np.median(counts), rel=0.15)

    def test_constant_timings_are_worth_all_of_them(self):
        found = percentiles.bound([2.0] * 500, 0.9)
        assert (500, 2.0, 2.0) == (found.effective_n, found.low_s, found.high_s)

    def test_counts_beyond_what_factorials_hold_are_exact(self):
        assert scipy_stats.binom.pmf(99_000, 100_000, 0.99) == pytest.approx(percentiles._binomial(100_000, 0.99)[99_000], rel=1e-8)
