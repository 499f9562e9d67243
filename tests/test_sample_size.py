"""Planned numbers against a published table, exact power by SciPy, and simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest

from edgebench import sample_size, sequential, tails

scipy_stats = pytest.importorskip("scipy.stats")

# Images needed to prove non-inferiority, one-sided 5 %, power 80 %, true difference 0, by margin and discordant share;
# computed with the quantiles rounded to 1.645 and 0.842, hence up to one in a thousand above ours.
TABLE = {0.01: (1_238, 2_475, 5_567), 0.005: (4_949, 9_897, 22_267), 0.003: (13_745, 27_490, 61_852)}


class TestDifference:
    @pytest.mark.parametrize("margin", TABLE)
    def test_reproduces_the_table_for_two_four_and_nine_percent(self, margin):
        for share, expected in zip((0.02, 0.04, 0.09), TABLE[margin], strict=True):
            assert expected == math.ceil(2.487**2 * share / margin**2 * (1 - 1e-9))
            assert expected == pytest.approx(sample_size.difference(margin, share), rel=1e-3)

    def test_gives_the_power_it_promises_to_the_score_test_that_decides(self):
        margin, share = 0.01, 0.03
        n = sample_size.difference(margin, share)
        flips = np.random.default_rng(0).multinomial(n, [share / 2, share / 2, 1 - share], 4000)
        passed = np.mean([tails.paired_change(int(b), int(c), n, -margin).above <= 0.05 for b, c, _ in flips])
        assert 0.77 < passed < 0.84

    def test_without_any_flip_still_asks_for_what_the_score_interval_needs(self):
        n = sample_size.difference(0.01, 0.0)
        assert tails.paired_change(0, 0, n, -0.01).above <= 0.05 < tails.paired_change(0, 0, n - 1, -0.01).above

    def test_a_loss_as_large_as_the_margin_is_never_decided(self):
        assert sample_size.difference(0.01, 0.02, loss=0.01) is None
        assert sample_size.difference(0.01, 0.02, loss=0.005) > 3 * sample_size.difference(0.01, 0.02)


class TestRate:
    @pytest.mark.parametrize(("limit", "expected"), [(0.02, 0.01), (0.03, 0.012), (0.02, 0.035), (0.5, 0.4)])
    def test_gives_about_the_power_it_promises_to_the_exact_test(self, limit, expected):
        n = sample_size.rate(limit, expected)
        counts = np.arange(n + 1)
        side = scipy_stats.binom.cdf(counts, n, limit) if expected < limit else scipy_stats.binom.sf(counts - 1, n, limit)
        power = scipy_stats.binom.pmf(counts, n, expected)[side <= 0.05].sum()
        assert 0.74 < power < 0.86

    def test_with_no_hit_at_all_asks_for_the_rule_of_three(self):
        assert 299 == sample_size.rate(0.01, 0.0)
        assert 0.99**299 <= 0.05 < 0.99**298

    def test_at_the_limit_itself_nothing_decides(self):
        assert sample_size.rate(0.02, 0.02) is None

    @pytest.mark.parametrize(("limit", "expected"), [(0.0, 0.1), (1.0, 0.1), (0.5, 1.5)])
    def test_impossible_rates_are_refused(self, limit, expected):
        with pytest.raises(ValueError, match=r"expected .* got"):
            sample_size.rate(limit, expected)


class TestTimings:
    def test_a_percentile_that_all_timings_keep_needs_the_rule_of_three(self):
        assert 299 == sample_size.quantile(0.99, 1.0)

    def test_a_percentile_is_a_rate_of_timings_beyond(self):
        assert sample_size.rate(0.1, 0.04) == sample_size.quantile(0.9, 0.96)

    def test_pairs_for_a_ratio_give_the_power_they_promise(self):
        margin, spread = 0.03, 0.08
        pairs = sample_size.ratio(margin, spread)
        generator = np.random.default_rng(1)
        below = (generator.normal(0, spread, (4000, pairs)) < math.log1p(margin)).sum(axis=1)
        passed = np.mean([tails.rate(int(count), pairs, 0.5).above <= 0.05 for count in below])
        assert 0.74 < passed < 0.87

    def test_an_arm_shrinks_with_the_root_of_the_number(self):
        # An arm of 1.96 standard errors at 100; (1.645 + 0.842) errors have to fit into half an error's distance.
        found = sample_size.from_interval(100, 1.959964, 0.95, 0.5)
        assert 100 * (2.486475 / 0.5) ** 2 == pytest.approx(found, rel=1e-3)
        assert sample_size.from_interval(100, 1.0, 0.95, 0.0) is None


class TestSequentialFloor:
    def test_no_sequential_test_saves_two_thirds_where_the_truth_is_as_planned(self):
        assert 2 * math.log(20) / (1.6448536 + 0.8416212) ** 2 == pytest.approx(sample_size.sequential_floor(0.95, 0.8))

    def test_a_gambler_with_the_best_bet_comes_close_to_it(self):
        # A difference with variance d and margin m grows capital at m^2/(2d) per image.
        margin, share = 0.01, 0.04
        generator, looks = np.random.default_rng(2), np.arange(50, 20_001, 50)
        drawn = generator.multinomial(50, [share / 2, share / 2, 1 - share], (200, looks.size)).cumsum(axis=1)
        log = sequential.difference_evidence(drawn[..., 0], drawn[..., 1], looks, -margin, "above")
        needed = looks[(log >= math.log(20)).argmax(axis=1)]
        floor = sample_size.sequential_floor(0.95, 0.8) * sample_size.difference(margin, share)
        assert 0.8 * floor < np.median(needed) < 1.8 * floor
