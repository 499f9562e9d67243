"""Anytime-valid evidence against SciPy, integrals, plain loops, and simulated peeking after every batch."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgebench import sequential

scipy_stats = pytest.importorskip("scipy.stats")
scipy_integrate = pytest.importorskip("scipy.integrate")
ALPHA = 0.05
LIMIT = math.log(1 / ALPHA)


def share_above(n_paths: int, alpha: float) -> float:
    """Return the share of false alarms that a true rate of `alpha` exceeds in one of 10,000 simulations."""
    return scipy_stats.binom.ppf(0.9999, n_paths, alpha) / n_paths


class TestRateEvidence:
    @pytest.mark.parametrize(("successes", "n", "null"), [(3, 50, 0.02), (0, 200, 0.02), (70, 100, 0.5), (12, 900, 0.01)])
    def test_is_the_mean_likelihood_ratio_over_the_cut_prior(self, successes, n, null):
        a, b = sequential.STRENGTH * null, sequential.STRENGTH * (1 - null)
        prior = scipy_stats.beta(a, b)

        def ratio(rate: float) -> float:
            return math.exp(successes * math.log(rate / null) + (n - successes) * math.log((1 - rate) / (1 - null)))

        for side, (low, high) in (("above", (null, 1.0)), ("below", (0.0, null))):
            mass = prior.cdf(high) - prior.cdf(low)
            mean, _ = scipy_integrate.quad(lambda rate: ratio(rate) * prior.pdf(rate), low, high, limit=400, points=[
                min(max(successes / n, low + 1e-9), high - 1e-9)])
            assert math.log(mean / mass) == pytest.approx(float(sequential.rate_evidence(successes, n, null, side)), abs=1e-5)

    def test_upper_tail_of_the_beta_distribution_agrees_with_scipy(self):
        a = np.array([0.5, 2.0, 5.0, 50.0, 2000.0, 30_000.0, 700.0])
        b = np.array([0.5, 98.0, 500.0, 50.0, 48_000.0, 20_000.0, 99_300.0])
        for x in (0.005, 0.02, 0.05, 0.5, 0.61, 0.99):
            expected = scipy_stats.beta.logsf(x, a, b)
            ours = sequential._log_upper_beta(a, b, x)
            finite = expected > -650  # SciPy underflows beyond
            assert expected[finite] == pytest.approx(ours[finite], rel=1e-8, abs=1e-12)

    @given(st.integers(1, 3000), st.floats(0.005, 0.95), st.data())
    @settings(max_examples=60, deadline=None)
    def test_grows_with_successes_above_and_falls_below(self, n, null, data):
        few = data.draw(st.integers(0, n - 1))
        assert sequential.rate_evidence(few, n, null, "above") < sequential.rate_evidence(few + 1, n, null, "above")
        assert sequential.rate_evidence(few, n, null, "below") > sequential.rate_evidence(few + 1, n, null, "below")

    @pytest.mark.parametrize("null", [0.02, 0.5])
    @pytest.mark.parametrize("side", ["above", "below"])
    def test_expects_one_at_the_null_after_any_number(self, null, side):
        # A martingale's mean stays at its start: summed exactly over all counts.
        for n in (1, 7, 60):
            counts = np.arange(n + 1)
            chances = scipy_stats.binom.pmf(counts, n, null)
            assert 1.0 == pytest.approx(float(chances @ np.exp(sequential.rate_evidence(counts, n, null, side))))

    @pytest.mark.parametrize(("null", "side"), [(0.02, "above"), (0.02, "below"), (0.5, "above")])
    def test_raises_at_most_the_stated_share_of_false_alarms_when_looked_at_every_batch(self, null, side):
        generator, looks = np.random.default_rng(3), np.arange(20, 4001, 20)
        counts = generator.binomial(20, null, (4000, looks.size)).cumsum(axis=1)
        table = {n: sequential.rate_evidence(np.arange(n + 1), n, null, side) for n in looks}
        alarms = np.stack([table[n][counts[:, k]] >= LIMIT for k, n in enumerate(looks)], axis=1).any(axis=1)
        assert 0 < alarms.mean() <= share_above(4000, ALPHA)

    def test_impossible_counts_are_refused(self):
        with pytest.raises(ValueError, match=r"expected 0 <= successes <= n, got"):
            sequential.rate_evidence(5, 4, 0.1, "above")
        with pytest.raises(ValueError, match=r"expected null between 0 and 1"):
            sequential.rate_evidence(1, 4, 0.0, "above")


class TestRateInterval:
    @pytest.mark.parametrize(("successes", "n"), [(0, 100), (3, 100), (50, 100), (100, 100), (700, 1000)])
    def test_ends_solve_the_equation_of_the_prior_posterior_ratio(self, successes, n):
        prior, posterior = scipy_stats.beta(0.5, 0.5), scipy_stats.beta(0.5 + successes, 0.5 + n - successes)
        low, high = sequential.rate_interval(successes, n)
        assert low <= successes / n <= high
        for end in (low, high):
            if 0 < end < 1:
                assert prior.logpdf(end) - posterior.logpdf(end) == pytest.approx(LIMIT, abs=1e-6)

    def test_holds_the_rate_at_every_look_together(self):
        generator, looks = np.random.default_rng(5), np.arange(25, 2001, 25)
        rate = 0.03
        counts = generator.binomial(25, rate, (3000, looks.size)).cumsum(axis=1)
        missed = np.zeros(3000, bool)
        for k, n in enumerate(looks):
            ends = {int(count): sequential.rate_interval(int(count), int(n)) for count in np.unique(counts[:, k])}
            missed |= np.array([not ends[int(count)][0] <= rate <= ends[int(count)][1] for count in counts[:, k]])
        assert 0 < missed.mean() <= share_above(3000, ALPHA)


class TestDifferenceEvidence:
    def test_is_the_capital_of_a_gambler_bet_by_bet(self):
        generator, null = np.random.default_rng(0), -0.01
        scores = generator.choice([-1, 0, 1], 300, p=[0.04, 0.93, 0.03])
        capital = 0.0
        for bet, weight in zip(sequential._BETS, sequential._BET_WEIGHTS, strict=True):
            own = weight
            for score in scores:
                own *= 1 + bet * (score - null) / (1 + null)
            capital += own
        found = sequential.difference_evidence((scores < 0).sum(), (scores > 0).sum(), scores.size, null, "above")
        assert math.log(capital) == pytest.approx(float(found))

    def test_both_sides_mirror_each_other(self):
        assert sequential.difference_evidence(12, 30, 500, 0.01, "above") == pytest.approx(
            sequential.difference_evidence(30, 12, 500, -0.01, "below"))

    def test_weights_of_the_bets_sum_to_one(self):
        assert 1.0 == pytest.approx(float(sequential._BET_WEIGHTS.sum()))

    @pytest.mark.parametrize("side", ["above", "below"])
    @pytest.mark.parametrize("flips", [0.02, 0.1])
    def test_raises_at_most_the_stated_share_of_false_alarms_at_the_margin(self, side, flips):
        generator, looks, null = np.random.default_rng(11), np.arange(20, 4001, 20), -0.01
        chances = [(flips - null) / 2, (flips + null) / 2, 1 - flips]
        drawn = generator.multinomial(20, chances, (4000, looks.size)).cumsum(axis=1)
        log = sequential.difference_evidence(drawn[..., 0], drawn[..., 1], looks, null, side)
        assert 0 < (log >= LIMIT).any(axis=1).mean() <= share_above(4000, ALPHA)

    @given(st.integers(0, 40), st.integers(0, 40), st.integers(100, 2000))
    @settings(max_examples=40, deadline=None)
    def test_bounds_hold_the_estimate_and_are_where_evidence_is_just_enough(self, negative, positive, n):
        low, high = sequential.difference_bounds(negative, positive, n)
        assert low <= (positive - negative) / n <= high
        assert float(sequential.difference_evidence(negative, positive, n, low, "above")) == pytest.approx(LIMIT, abs=1e-3)
        assert float(sequential.difference_evidence(negative, positive, n, high, "below")) == pytest.approx(LIMIT, abs=1e-3)


class TestRatioEvidence:
    def test_counts_pairs_beyond_the_limit(self):
        ratios = np.log([1.2, 0.9, 1.1, 1.05, 1.3])
        expected = [sequential.rate_evidence(count, n, 0.5, "above", sequential.PAIR_STRENGTH) for n, count in enumerate((1, 1, 2, 2, 3), start=1)]
        assert [float(one) for one in expected] == pytest.approx(sequential.ratio_evidence(ratios, 1.05, "above").tolist())

    @pytest.mark.parametrize("side", ["above", "below"])
    def test_stays_quiet_for_equal_engines_on_heavy_tailed_timings(self, side):
        generator = np.random.default_rng(4)
        alarms = 0
        for _ in range(600):
            pairs = np.exp(generator.standard_t(2, (2, 1500)) * 0.05)
            alarms += bool((sequential.ratio_evidence(np.log(pairs[0] / pairs[1]), 1.0, side) >= LIMIT).any())
        assert alarms / 600 <= share_above(600, ALPHA)

    def test_finds_three_percent_within_some_hundred_pairs(self):
        generator = np.random.default_rng(9)
        needed = []
        for _ in range(40):
            ratios = generator.normal(math.log(1.03), 0.05, 3000)
            path = sequential.ratio_path(ratios, range(50, 3001, 50), 1.0)
            needed.append(sequential.steps_until_decision(path, ALPHA))
            assert "fail" == sequential.decision(path, ALPHA)
        assert np.median(needed) < 400


class TestQuantileBounds:
    @pytest.mark.parametrize("q", [0.5, 0.9, 0.99])
    def test_hold_the_quantile_at_every_look_together(self, q):
        generator, looks, missed = np.random.default_rng(8), np.arange(50, 2001, 50), np.zeros((2, 1500), bool)
        true = scipy_stats.lognorm.ppf(q, 0.5)
        ranks = [sequential.quantile_ranks(int(n), q) for n in looks]
        for path in range(1500):
            # The k-th smallest is above the true quantile exactly where fewer than k values are at or below it.
            counts = (generator.lognormal(0, 0.5, 2000) <= true).cumsum()[looks - 1]
            for below, (low, high) in zip(counts.tolist(), ranks, strict=True):
                missed[0, path] |= low is not None and below < low
                missed[1, path] |= high is not None and below >= high
        assert (missed.mean(axis=1) <= share_above(1500, ALPHA)).all()
        assert missed.any()

    def test_are_values_of_the_sample_and_absent_where_nothing_bounds(self):
        values = np.arange(1000.0)
        low, high = sequential.quantile_bounds(values, 0.5)
        assert low < 499 < high
        assert {low, high} <= set(values)
        assert (None, None) == sequential.quantile_bounds(values[:3], 0.5)
        assert sequential.quantile_bounds(values[:250], 0.99)[1] is None

    def test_are_wider_than_the_interval_of_a_single_look(self):
        from edgebench import stats

        values = np.random.default_rng(0).normal(size=2000)
        once, always = stats.quantile_interval(values, 0.9, 0.9), sequential.quantile_bounds(values, 0.9, 0.95)
        assert always[0] < once[0] < once[1] < always[1]


class TestMeanEvidence:
    @pytest.mark.parametrize("side", ["above", "below"])
    def test_is_that_of_paired_differences_where_values_are_such(self, side):
        values = np.random.default_rng(3).choice([-1, 0, 1], 400, p=[0.1, 0.8, 0.1])
        down, up, n = (values == -1).cumsum(), (values == 1).cumsum(), np.arange(1, 401)
        expected = sequential.difference_evidence(down, up, n, -0.02, side)
        assert np.allclose(expected, sequential.mean_evidence(values, -1.0, 1.0, -0.02, side))

    @pytest.mark.parametrize("side", ["above", "below"])
    def test_raises_at_most_the_stated_share_of_false_alarms_at_the_limit(self, side):
        generator, alarms = np.random.default_rng(12), 0
        for _ in range(600):
            values = generator.beta(0.3, 1.2, 1500)
            alarms += bool((sequential.mean_evidence(values, 0.0, 1.0, 0.2, side) >= LIMIT).any())
        assert alarms / 600 <= share_above(600, ALPHA)

    def test_the_path_decides_what_is_clear_and_shows_ends_around_the_estimate(self):
        values = np.random.default_rng(1).beta(0.3, 1.2, 1500)
        for limit, decided in ((0.3, "pass"), (0.1, "fail")):
            path = sequential.mean_path(values, 0.0, 1.0, range(100, 1501, 100), limit)
            assert decided == sequential.decision(path, ALPHA)
            assert all(step.low <= step.value <= step.high for step in path)

    def test_refuses_values_and_limits_outside_the_bounds(self):
        for values, null in (([0.5, 1.5], 0.2), ([0.5], 0.0)):
            with pytest.raises(ValueError, match="expected"):
                sequential.mean_evidence(values, 0.0, 1.0, null, "above")


class TestMeanBounds:
    def test_agree_with_the_published_recursion_in_plain_lines(self):
        x = np.random.default_rng(2).beta(2, 5, 200)
        total, squares, weighted, staked, price = 0.0, 0.0, 0.0, 0.0, 0.0
        mean, variance, best_low, best_high = 0.5, 0.25, 0.0, 1.0
        for t, value in enumerate(x, start=1):
            bet = min(0.5, math.sqrt(2 * math.log(1 / ALPHA) / (variance * t * math.log(1 + t))))
            price += 4 * (value - mean) ** 2 * (-math.log(1 - bet) - bet) / 4
            weighted, staked = weighted + bet * value, staked + bet
            total += value
            mean = (0.5 + total) / (t + 1)
            squares += (value - mean) ** 2
            variance = (0.25 + squares) / (t + 1)
            best_low = max(best_low, (weighted - math.log(1 / ALPHA) - price) / staked)
            best_high = min(best_high, (weighted + math.log(1 / ALPHA) + price) / staked)
        low, high = sequential.mean_bounds(x, 0.0, 1.0)
        assert (best_low, best_high) == pytest.approx((low[-1], high[-1]))

    def test_scale_with_their_bounds(self):
        x = np.random.default_rng(3).random(50)
        plain, scaled = sequential.mean_bounds(x, 0, 1), sequential.mean_bounds(2 * x - 1, -1, 1)
        assert (2 * plain[0] - 1).tolist() == pytest.approx(scaled[0].tolist())
        assert (2 * plain[1] - 1).tolist() == pytest.approx(scaled[1].tolist())

    def test_hold_the_mean_of_skewed_paired_scores_at_every_look_together(self):
        generator, missed = np.random.default_rng(6), np.zeros((2, 1500), bool)
        for path in range(1500):
            # Brier changes of a quantized model: mostly nothing, sometimes a lot; mean 0.
            scores = generator.choice([-0.4, 0.0, 0.02, 0.9], 1500, p=[0.03, 0.9, 0.0645, 0.0055])
            low, high = sequential.mean_bounds(scores, -2, 2)
            true = -0.4 * 0.03 + 0.02 * 0.0645 + 0.9 * 0.0055
            missed[0, path], missed[1, path] = (low > true).any(), (high < true).any()
        assert (missed.mean(axis=1) <= share_above(1500, ALPHA)).all()


class TestPaths:
    def test_of_a_difference_decides_as_its_evidence_does(self):
        generator = np.random.default_rng(1)
        before = generator.random(3000) < 0.8
        worse = before & (generator.random(3000) > 0.08)
        path = sequential.difference_path(before, worse, range(50, 3001, 50), 0.01)
        assert "fail" == sequential.decision(path, ALPHA)
        step = next(one for one in path if one.n == sequential.steps_until_decision(path, ALPHA))
        down = int((before & ~worse)[:step.n].sum())
        expected = math.exp(-float(sequential.difference_evidence(down, 0, step.n, -0.01, "below")))
        assert expected == pytest.approx(step.p_beyond)
        assert step.high < -0.01
        assert -down / step.n == pytest.approx(step.value)
        assert "pass" == sequential.decision(sequential.difference_path(before, before, range(50, 3001, 50), 0.01), ALPHA)

    def test_of_a_rate_decides_and_never_takes_evidence_back(self):
        hits = np.zeros(2000, bool)
        hits[1500:1600] = True
        path = sequential.rate_path(hits, range(100, 2001, 100), 0.02)
        assert "pass" == sequential.decision(path, ALPHA)
        within = [step.p_within for step in path]
        assert within == sorted(within, reverse=True)

    def test_without_enough_evidence_nothing_is_decided(self):
        path = sequential.rate_path(np.zeros(20, bool), [10, 20], 0.02)
        assert sequential.decision(path, ALPHA) is None
        assert sequential.steps_until_decision(path, ALPHA) is None

    def test_checkpoints_rise_to_the_total_and_share_the_error_budget(self):
        assert (200, 1000, 5000) == sequential.checkpoints(5000, 3)
        assert (150,) == sequential.checkpoints(150, 4)
        assert 0.0125 == sequential.split_alpha(0.05, 4)
