"""Unstable traces are called so with a diagnosis, steady ones rarely; tries are bounded and all kept."""

from __future__ import annotations

import gc
import itertools
import math
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats as scipy_stats
from scipy.signal import lfilter

from edgebench import builds, paired_worker, roofline, scenarios, steady
from edgebench.timing_types import QueryTrace
from tests.scripted import MS, World

N = 400


def autocorrelated(generator, phi: float, n: int) -> np.ndarray:
    noise = generator.normal(size=n + 300)
    return lfilter([1], [1, -phi], noise)[300:] * math.sqrt(1 - phi**2)


def verdicts(make, count: int = 200, seed: int = 1) -> Counter:
    generator = np.random.default_rng(seed)
    found: Counter = Counter()
    for _ in range(count):
        verdict = steady.judge(1e-3 * make(generator))
        found[verdict.verdict] += 1
        found.update(one.code for one in verdict.findings if one.unstable)
    return found


CLEAN = {
    "independent": lambda g: np.exp(0.02 * g.normal(size=N)),
    "autocorrelated by 0.5": lambda g: np.exp(0.05 * autocorrelated(g, 0.5, N)),
    "autocorrelated by 0.9": lambda g: np.exp(0.02 * autocorrelated(g, 0.9, N)),
    "heavy-tailed": lambda g: 1 + 0.02 * np.abs(g.standard_t(2, N)),
    "wide": lambda g: g.lognormal(0, 0.3, N),
}
UNSTABLE = {
    "two states, half and half": (lambda g: g.normal(1, 0.02, N) * np.where(g.random(N) < 0.5, 1.5, 1), "bimodal"),
    "two states, 10 % apart": (lambda g: g.normal(1, 0.01, N) * np.where(g.random(N) < 0.5, 1.1, 1), "bimodal"),
    "ramp of 10 %": (lambda g: g.normal(1, 0.02, N) * np.linspace(1, 1.1, N), "trend"),
    "autocorrelated ramp of 8 %": (lambda g: np.exp(0.02 * autocorrelated(g, 0.5, N)) * np.linspace(1, 1.08, N), "trend"),
    "step of 10 %": (lambda g: g.normal(1, 0.03, N) * np.where(np.arange(N) < 240, 1.1, 1), "level-shift"),
    "slow start": (lambda g: g.normal(1, 0.03, N) * np.where(np.arange(N) < 40, 1.2, 1), "slow-start"),
    "spike at the end": (lambda g: g.normal(1, 0.01, N) * np.where(np.arange(N) >= 380, 1.3, 1), "windows"),
}


class TestVerdict:
    @pytest.mark.parametrize("name", CLEAN)
    def test_clean_traces_are_called_unstable_in_less_than_one_case_of_twenty_and_independent_ones_of_a_hundred(self, name):
        assert verdicts(CLEAN[name])["unstable"] <= (2 if name == "independent" else 10)

    @pytest.mark.parametrize(("make", "code"), UNSTABLE.values(), ids=UNSTABLE)
    def test_unstable_traces_are_called_so_with_their_diagnosis(self, make, code):
        found = verdicts(make, 50)
        assert (50, 50) == (found["unstable"], found[code])

    def test_diagnosis_and_hint_are_words(self):
        values = np.where(np.arange(1000) % 2, 0.001, 0.002) + np.linspace(0, 1e-6, 1000)
        verdict = steady.judge(values)
        assert "two states, 1.000 ms and 2.000 ms (50% of the timings)" in verdict.diagnosis.replace("1.001", "1.000").replace("2.001", "2.000")
        assert "pin the clocks" in verdict.hint

    def test_constant_trace_is_steady_from_the_start(self):
        verdict = steady.judge([1e-3] * 500)
        assert ("steady", 0, (), 0.0, 1.0) == (verdict.verdict, verdict.settled_from, verdict.change_points,
                                               verdict.outlier_share, verdict.window_ratio)

    def test_slow_start_tells_from_where_on_the_trace_is_steady(self):
        values = np.where(np.arange(N) < 40, 1.2e-3, 1e-3) * np.random.default_rng(0).normal(1, 0.01, N)
        verdict = steady.judge(values)
        assert ("unstable", 40) == (verdict.verdict, verdict.settled_from)
        assert "the first 40 timings are 20% slower than the rest" == verdict.diagnosis

    def test_a_few_timings_are_undecided(self):
        verdict = steady.judge([1e-3] * 20)
        assert "undecided" == verdict.verdict
        assert "20 timings do not show whether the state is steady; 60 are the least" == verdict.diagnosis

    def test_outliers_are_named_but_leave_the_trace_steady(self):
        values = np.random.default_rng(0).normal(1, 0.01, 1000)
        values[::30] = 3
        verdict = steady.judge(values)
        assert ("steady", ["outliers"]) == (verdict.verdict, [one.code for one in verdict.findings])
        assert 0.034 == pytest.approx(verdict.outlier_share)

    def test_a_clock_that_stands_still_is_unstable(self):
        assert "the clock did not advance during most inferences" == steady.judge([0.0] * 100).diagnosis

    @pytest.mark.parametrize("values", [[], [1.0, float("nan")], [[1.0, 2.0]]])
    def test_what_is_no_trace_is_refused(self, values):
        with pytest.raises(ValueError, match="expected finite values"):
            steady.judge(values)


class TestTrend:
    def test_p_value_without_autocorrelation_is_near_that_of_kendalls_tau(self):
        generator = np.random.default_rng(4)
        for _ in range(20):
            values = generator.normal(size=40)
            # The correction takes in what correlation of ranks seems significant by chance, so it is never smaller.
            assert steady.mann_kendall_p(values) >= scipy_stats.kendalltau(np.arange(40), values, method="asymptotic").pvalue - 0.02

    def test_false_alarms_on_autocorrelated_windows_stay_near_the_level(self):
        generator = np.random.default_rng(6)
        p_values = [steady.mann_kendall_p(autocorrelated(generator, 0.4, 40)) for _ in range(500)]
        plain = [scipy_stats.kendalltau(np.arange(40), autocorrelated(generator, 0.4, 40)).pvalue for _ in range(500)]
        assert np.mean(np.array(p_values) < 0.01) <= 0.03
        assert np.mean(np.array(plain) < 0.01) > 0.05, "without the correction they would not"

    def test_all_ties_are_no_trend(self):
        assert 1.0 == steady.mann_kendall_p([1.0] * 20)

    def test_a_clear_trend_has_a_small_p_value(self):
        assert steady.mann_kendall_p(np.arange(20.0)) < 1e-6


class TestChangePoints:
    def test_levels_are_found_where_they_begin(self):
        values = np.repeat([1.0, 1.2, 0.9], [200, 300, 500]) * np.random.default_rng(0).normal(1, 0.02, 1000)
        assert [200, 500] == pytest.approx(steady.change_points(values), abs=10)

    def test_partition_is_the_cheapest_of_all(self):
        values = np.random.default_rng(3).normal(size=9) + np.repeat([0, 3, 1], 3)
        penalty = 2.0

        def cost(edges):
            bounds = (0, *edges, 9)
            return sum(((values[a:b] - values[a:b].mean())**2).sum() for a, b in itertools.pairwise(bounds)) + penalty * len(edges)

        allowed = [edges for k in range(5) for edges in itertools.combinations(range(1, 9), k)
                   if all(b - a >= 2 for a, b in itertools.pairwise((*edges, 9)))]
        best = min(allowed, key=cost)
        assert cost(best) == pytest.approx(cost(tuple(steady._partition(values, penalty))))

    def test_single_outliers_are_no_change(self):
        values = np.random.default_rng(0).normal(1, 0.01, 500)
        values[100] = values[300] = 50
        assert () == steady.change_points(values)

    def test_short_traces_have_none(self):
        assert () == steady.change_points(np.arange(50.0))


class TestWarmUp:
    def test_goes_on_until_three_windows_agree(self):
        # Windows of 0.1 s: five inferences, ten, then three times twenty that agree.
        world = World(itertools.chain([20 * MS] * 5, [10 * MS] * 10, itertools.repeat(5 * MS)))
        found = steady.warm_up(world.infer, min_count=1, min_s=0.0, max_s=60.0, clock=world.clock)
        assert (5 + 10 + 60, True) == (len(found.durations_ns), found.settled)

    def test_count_and_duration_are_reached_first(self):
        world = World(5 * MS)
        found = steady.warm_up(world.infer, min_count=10, min_s=2.0, max_s=60.0, clock=world.clock)
        assert (400, True) == (len(found.durations_ns), found.settled)

    def test_is_cut_at_the_maximum_and_says_that_it_did_not_settle(self):
        world = World(itertools.cycle([5 * MS] * 20 + [9 * MS] * 20))
        found = steady.warm_up(world.infer, min_count=1, min_s=0.0, max_s=3.0, clock=world.clock)
        assert not found.settled
        assert 3.0 == pytest.approx(sum(found.durations_ns) / 1e9, abs=0.01)

    def test_without_time_the_count_alone_decides(self):
        world = World(7)
        assert 3 == len(steady.warm_up(world.infer, min_count=3, min_s=0.0, max_s=0.0, clock=world.clock).durations_ns)


def trace(latencies) -> QueryTrace:
    ends = np.cumsum(latencies)
    starts = ends - latencies
    return QueryTrace(scenario="single-stream", images_per_query=1, threads=1, budget="test", clock="scripted",
                      clock_resolution_s=0.0, begin_ns=0, warmup_s=(), warmup_settled=True, issue_s=tuple(starts),
                      start_s=tuple(starts), end_s=tuple(ends), stopped="count-and-duration")


class TestRetries:
    def test_stops_at_the_first_steady_trace_and_keeps_all(self):
        ramp, level = np.linspace(1, 1.5, 200) * 1e-3, np.full(200, 1e-3)
        factors, slept, told = [], [], []
        waiting = iter([ramp, level, level])

        def measure(factor):
            factors.append(factor)
            return trace(next(waiting))

        found = steady.measure_until_steady(measure, retries=3, pause_s=10.0, sleep=slept.append, told=told.append)
        assert ([1.0, 2.0], [10.0], 2, True) == (factors, slept, len(found.traces), found.steady)
        assert ["unstable", "steady"] == [one.verdict for one in told]

    def test_gives_up_after_the_retries_with_the_last_verdict(self):
        slept = []
        found = steady.measure_until_steady(lambda factor: trace(np.linspace(1, 1.5, 200) * 1e-3), retries=2, pause_s=1.0,
                                            sleep=slept.append)
        assert (3, False, [1.0, 2.0]) == (len(found.traces), found.steady, slept)

    def test_an_undecided_trace_is_not_tried_again(self):
        assert 1 == len(steady.measure_until_steady(lambda factor: trace(np.full(5, 1e-3))).traces)


@pytest.mark.parametrize("slope", [0.0, 0.01], ids=["level", "rising"])
def test_every_number_of_timings_is_judged(slope: float) -> None:
    generator = np.random.default_rng(3)
    for n in range(1, 140):
        verdict = steady.judge(1e-3 * (1 + slope * np.arange(n) + 0.01 * generator.random(n)))
        assert n == verdict.n
        assert (verdict.trend_p is None) == (n < steady.ENOUGH)


class TestCollector:
    """The garbage collector never runs within a timing, and is set back afterwards."""

    @staticmethod
    def in_turns(infer):
        job = paired_worker.PairedJob(artifact="", threads=1, settle_s=0.0, warmup_count=1, warmup_s=0.0, warmup_max_s=0.0)
        ready = []
        paired_worker.answer(lambda: infer() if ready else None, job, iter(['{"run": 3}', '{"run": 2}']), ready.append)

    @staticmethod
    def between_builds(infer):
        class Build:
            def __init__(self):
                self.inferred = 0

            def infer(self, feeds):
                self.inferred += 1
                # Answers and warm-up come first, and are not timed.
                if self.inferred > 1 + builds.WARM_UP:
                    infer()
                return {"logits": np.zeros((1, 2), np.float32)}

        builds.spread([Build(), Build()], [{"image": np.zeros((1, 2))}], "logits", rounds=2)

    @staticmethod
    def by_the_device(infer):
        scenarios.device_times(lambda: infer() or SimpleNamespace(h2d_s=0.0, compute_s=1e-3, d2h_s=0.0, enqueue_s=0.0), 3)

    @staticmethod
    def of_ceilings(infer):
        moments = itertools.count(step=1000)
        warm = []
        roofline.best_rate(lambda: infer() if warm else warm.append(1), 1.0, repeats=3, min_s=0.0, clock=lambda: next(moments))

    @pytest.mark.parametrize("enabled", [True, False])
    @pytest.mark.parametrize("timings", ["in_turns", "between_builds", "by_the_device", "of_ceilings"])
    def test_it_does_not_run_within_timings(self, timings, enabled):
        seen = []
        before = gc.isenabled()
        (gc.enable if enabled else gc.disable)()
        try:
            getattr(self, timings)(lambda: seen.append(gc.isenabled()))
            assert enabled == gc.isenabled()
        finally:
            (gc.enable if before else gc.disable)()
        assert {False} == set(seen)
