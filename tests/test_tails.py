"""One-sided tests and joined intervals against SciPy, the intervals they invert, and simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgebench import stats, tails
from edgebench.tails import Ends

scipy_stats = pytest.importorskip("scipy.stats")


class TestRate:
    @pytest.mark.parametrize(("successes", "n", "limit"), [(0, 50, .02), (5, 100, .02), (20, 1000, .03), (300, 50_000, .007)])
    def test_agrees_with_scipys_exact_test(self, successes, n, limit):
        found = tails.rate(successes, n, limit)
        assert scipy_stats.binomtest(successes, n, limit, "greater").pvalue == pytest.approx(found.above, rel=1e-6)
        assert scipy_stats.binomtest(successes, n, limit, "less").pvalue == pytest.approx(found.below, rel=1e-6)

    @pytest.mark.parametrize(("successes", "n"), [(0, 50), (3, 800), (50, 50), (400, 800)])
    def test_interval_agrees_with_scipys_exact_interval(self, successes, n):
        expected = scipy_stats.binomtest(successes, n).proportion_ci(0.9, "exact")
        assert (expected.low, expected.high) == pytest.approx(tails.rate_interval(successes, n, 0.95), abs=1e-9)

    def test_ends_of_the_range_are_decided_as_they_stand(self):
        assert (0.0, 1.0) == tails.rate(1, 10, 0.0)
        assert (1.0, 1.0) == tails.rate(0, 10, 0.0)
        assert (1.0, 0.0) == tails.rate(9, 10, 1.0)


class TestPairedChange:
    @given(st.integers(0, 60), st.integers(0, 60), st.integers(130, 3000))
    @settings(max_examples=60, deadline=None)
    def test_is_just_significant_at_the_ends_of_tangos_interval(self, negative, positive, n):
        low, high = stats.paired_interval(positive, negative, n, 0.9)
        assert tails.paired_change(negative, positive, n, low).above == pytest.approx(0.05, abs=1e-4)
        assert tails.paired_change(negative, positive, n, high).below == pytest.approx(0.05, abs=1e-4)

    @pytest.mark.parametrize(("share", "n"), [(0.02, 800), (0.04, 2000), (0.1, 500)])
    def test_errs_about_as_often_as_it_says_at_the_margin(self, share, n):
        margin = 0.01
        drawn = np.random.default_rng(5).multinomial(n, [(share + margin) / 2, (share - margin) / 2, 1 - share], 6000)
        counts, times = np.unique(drawn, axis=0, return_counts=True)
        wrong = sum(k for (b, c, _), k in zip(counts, times, strict=True) if tails.paired_change(b, c, n, -margin).above <= 0.05)
        assert wrong / 6000 < 0.062


class TestQuantile:
    @pytest.mark.parametrize("q", [0.5, 0.9, 0.99])
    def test_is_just_significant_at_the_ends_of_the_binomial_interval(self, q):
        values = np.random.default_rng(3).lognormal(size=1200)
        low, high = stats.quantile_interval(values, q, 0.9)
        assert tails.quantile(values, q, np.nextafter(low, 0)).above <= 0.05
        assert tails.quantile(values, q, np.nextafter(high, np.inf)).below <= 0.05
        ordered = np.sort(values)
        inside = ordered[np.searchsorted(ordered, low) + 1], ordered[np.searchsorted(ordered, high) - 1]
        assert tails.quantile(values, q, inside[0]).above > 0.05
        assert tails.quantile(values, q, inside[1]).below > 0.05

    def test_takes_ties_at_the_limit_as_kept(self):
        # A timer's steps: half of the timings are exactly at the limit.
        values = np.array([1.0] * 50 + [2.0] * 50)
        assert tails.quantile(values, 0.9, 2.0).above > 0.99
        assert tails.quantile(values, 0.9, 1.9).above < 1e-6


class TestNormal:
    def test_agrees_with_the_normal_distribution_arm_by_arm(self):
        found = tails.normal(Ends(1.0, 0.0, 3.0), 0.95, 2.0)
        assert scipy_stats.norm.cdf(-1.959964 / 2) == pytest.approx(found.below, abs=1e-6)
        assert 1 - found.below == pytest.approx(found.above)
        assert scipy_stats.norm.sf(1.959964 * 0.5) == pytest.approx(tails.normal(Ends(1.0, 0.0, 3.0), 0.95, 0.5).above, abs=1e-6)

    def test_rescaling_to_the_same_level_changes_nothing_and_to_less_narrows(self):
        one = Ends(1.0, 0.2, 2.5)
        assert one == pytest.approx(tails.rescaled(one, 0.95, 0.95))
        assert tails.rescaled(one, 0.95, 0.9).low == pytest.approx(1 - 0.8 * 1.6448536 / 1.959964)

    def test_decides_as_it_stands_without_an_arm(self):
        assert (0.0, 1.0) == tails.normal(Ends(1.0, 1.0, 1.0), 0.95, 0.5)


class TestJoined:
    def test_difference_of_symmetric_intervals_adds_in_quadrature(self):
        assert (2.0, 2.0 - 5.0, 2.0 + 5.0) == pytest.approx(tails.difference(Ends(5, 2, 8), Ends(3, -1, 7)))

    def test_ratio_holds_the_true_ratio_of_medians_as_often_as_it_says(self):
        generator, held = np.random.default_rng(7), 0
        for _ in range(1500):
            pair = []
            for scale in (1.1, 1.0):
                values = scale * generator.lognormal(0, 0.2, 120)
                pair.append(Ends(stats.quantile(values, 0.5), *stats.quantile_interval(values, 0.5)))
            ratio = tails.ratio(*pair)
            held += ratio.low <= 1.1 <= ratio.high
        assert 0.94 < held / 1500 < 0.99

    def test_ratio_is_absent_where_anything_is_not_above_zero(self):
        assert tails.ratio(Ends(1, 0, 2), Ends(1, 0.5, 2)) is None

    def test_relative_change_of_a_certain_reference_is_the_change_over_it(self):
        found = tails.relative_change(Ends(-0.02, -0.03, -0.005), Ends(0.8, 0.8, 0.8))
        assert (-0.025, -0.0375, -0.00625) == pytest.approx(found)

    def test_relative_change_takes_in_the_doubt_about_the_reference(self):
        # -50 % of a reference between 0.5 and 2: only the reference is in doubt, by half of its value down and all of it up.
        found = tails.relative_change(Ends(-0.5, -0.5, -0.5), Ends(1.0, 0.5, 2.0))
        assert (-0.5, -0.75, 0.0) == pytest.approx(found)
        assert tails.relative_change(Ends(0.1, 0, 0.2), Ends(0.0, 0.0, 0.1)) is None


class TestBenjaminiHochberg:
    @given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
    def test_agrees_with_scipy(self, p_values):
        expected = scipy_stats.false_discovery_control(p_values)
        assert expected.tolist() == pytest.approx(list(tails.benjamini_hochberg(p_values)))

    def test_never_exceeds_holm(self):
        p_values = [0.01, 0.04, 0.03, 0.2]
        assert all(bh <= holm for bh, holm in zip(tails.benjamini_hochberg(p_values), stats.holm(p_values), strict=True))
        assert math.isclose(0.04, tails.benjamini_hochberg(p_values)[0])
