"""Exact scores, and every doubt raised where it is due and nowhere else."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pytest

from edgebench import environment, latency, percentiles
from edgebench.errors import ExitCode, UsageError
from edgebench.record import LatencyTrace


class TestClock:
    def test_resolution_is_the_smallest_step_of_the_clock_that_moves(self):
        # Steps of 0, 300 and 100 ns in turn; standing still is no resolution.
        steps = itertools.cycle([0, 300, 100])
        state = {"now": 0, "read": 0}

        def clock():
            state["read"] += 1
            if state["read"] % 2 == 0:
                state["now"] += next(steps)
            return state["now"]

        assert 100e-9 == pytest.approx(latency.clock_resolution_s(clock))

    def test_the_clock_of_this_machine_is_finer_than_a_tenth_of_a_millisecond(self):
        assert 0 < latency.clock_resolution_s() < 1e-4


class TestBudgets:
    @pytest.mark.parametrize("name", ["quick", "standard", "mlperf"])
    def test_bound_the_99th_percentile_in_single_stream(self, name):
        # 368 is the smallest n with 0.99^n <= 0.025.
        assert 368 == math.ceil(math.log(0.025) / math.log(0.99))
        assert latency.budget(name).min_count >= 368

    @pytest.mark.parametrize("name", ["quick", "standard", "mlperf"])
    def test_leave_time_for_what_they_ask(self, name):
        one = latency.budget(name)
        assert one.name == name
        assert 0 < one.warmup_s < one.min_s < one.max_s

    def test_mlperf_runs_the_minimum_duration_and_queries_of_mlperf(self):
        assert (600.0, 1024) == (latency.budget("mlperf").min_s, latency.budget("mlperf").min_count)

    @pytest.mark.parametrize(("batch", "batches"), [(1, 24576), (16, 1536), (50, 492), (64, 384), (1000, 100)])
    def test_mlperf_times_its_offline_images_at_any_batch(self, batch, batches):
        assert batches == latency.budget("mlperf").batches(batch)
        assert batches * batch >= 24576
        assert 20 == latency.budget("quick").batches(batch)

    def test_unknown_budget_is_a_usage_error_with_a_suggestion(self):
        with pytest.raises(UsageError) as caught:
            latency.budget("quik")
        assert "unknown budget 'quik'; did you mean 'quick'?" == caught.value.message
        assert f"known: {', '.join(sorted(latency.BUDGETS))}" == caught.value.hint
        assert {"quick", "standard", "mlperf"} <= set(latency.BUDGETS)
        assert ExitCode.USAGE == caught.value.exit_code


def trace_of(values: Iterable[float], **changes) -> LatencyTrace:
    """Return a trace of these timings (s) with nothing else to complain about."""
    fields = {"scenario": "single-stream", "batch": 1, "threads": 1, "clock": "scripted", "clock_resolution_s": 1e-8,
              "warmup_s": (), "latency_s": tuple(float(value) for value in values), "stopped": "count-and-duration"}
    return LatencyTrace(**{**fields, **changes})


def by_name(trace: LatencyTrace, confidence: float = 0.95) -> dict:
    return {score.name: score for score in latency.scores(trace, confidence)}


def mixed(n: int) -> np.ndarray:
    """Return 1 to n milliseconds in an order in which no percentile sees neighbours that follow each other."""
    return np.random.default_rng(6).permutation(np.arange(1, n + 1)) / 1000


def follow_each_other(generator: np.random.Generator, n: int, correlation: float = 0.9) -> np.ndarray:
    """Return a first-order process of standard normal values."""
    steps = generator.normal(size=n) * math.sqrt(1 - correlation**2)
    values = [float(generator.normal())]
    for step in steps[1:]:
        values.append(correlation * values[-1] + step)
    return np.array(values)


class TestScores:
    def test_percentiles_of_a_hundred_are_the_order_statistics_of_the_textbook(self):
        milliseconds = np.random.default_rng(0).permutation(np.arange(1, 101))
        found = by_name(trace_of(milliseconds / 1000))
        assert {"latency_p50": 0.050, "latency_p90": 0.090, "latency_p95": 0.095, "latency_p99": 0.099,
                "latency_mean": 0.0505} == pytest.approx({name: score.value for name, score in found.items()})

    def test_interval_of_the_median_of_a_hundred_is_that_of_the_tables(self):
        # Conover 1999, and every table of binomial order statistics: x(40) to x(61) for n = 100 at 95 %.
        median = by_name(trace_of(mixed(100)))["latency_p50"]
        assert (0.040, 0.061, 0.95) == (median.low, median.high, median.confidence)

    def test_end_that_cannot_be_bounded_is_absent_with_a_reason(self):
        p99 = by_name(trace_of(mixed(100)))["latency_p99"]
        assert p99.high is None
        assert p99.unbounded
        assert p99.reason is not None
        assert p99.low < p99.value

    @pytest.mark.parametrize(("n", "bounded"), [(367, False), (368, True)])
    def test_the_99th_percentile_is_bounded_from_368_timings_on(self, n, bounded):
        p99 = by_name(trace_of(mixed(n)))["latency_p99"]
        assert bounded is (p99.high is not None)
        assert bounded is (p99.reason is None)

    def test_intervals_are_as_sure_as_the_budget_asks_and_say_how_sure_they_are(self):
        for confidence in (0.95, 0.99):
            for name, score in by_name(trace_of(iid(0)), confidence).items():
                if name != "latency_mean":
                    q = int(name.removeprefix("latency_p")) / 100
                    bound = percentiles.bound(iid(0), q, confidence)
                    assert (bound.low_s, bound.high_s, confidence) == (score.low, score.high, score.confidence)
                    assert (bound.effective_n, bound.achieved) == (score.n_effective, score.confidence_reached)
        sure, surer = (latency.scores(trace_of(iid(0), scenario="offline"), one)[0] for one in (0.95, 0.99))
        assert (0.99, True) == (surer.confidence, surer.low < sure.low < sure.high < surer.high)

    def test_intervals_of_timings_that_follow_each_other_hold_the_truth(self):
        # Intervals that take such timings as independent miss the median in more than half of the runs.
        generator, missed, slower = np.random.default_rng(4), 0, 0
        for _ in range(100):
            values = 0.01 * (1.0 + 0.02 * follow_each_other(generator, 1000))
            median = by_name(trace_of(values))["latency_p50"]
            missed += not median.low <= 0.01 <= median.high
            rate, = latency.scores(trace_of(values, scenario="offline", batch=1))
            slower += not rate.low <= 100.0 <= rate.high
        assert max(missed, slower) <= 15

    def test_single_stream_scores_are_seconds_that_should_be_low_and_know_their_n(self):
        for score in latency.scores(trace_of([0.002, 0.001, 0.003])):
            assert ("s", "lower", 3) == (score.unit, score.better, score.n)
            assert score.method

    def test_of_one_timing_every_percentile_is_that_timing(self):
        found = by_name(trace_of([0.0042]))
        assert {0.0042} == {score.value for score in found.values()}
        assert all(score.high is None and score.reason for score in found.values())
        # It lies below the 99th percentile with probability 0.99, so it is a lower end there, and nowhere else.
        assert [None, None, None, 0.0042] == [found[f"latency_p{q}"].low for q in (50, 90, 95, 99)]

    def test_throughput_is_images_over_mean_time_not_the_mean_of_rates(self):
        (score,) = latency.scores(trace_of([0.1, 0.3], scenario="offline", batch=8))
        # 16 images in 0.4 s; the mean of 80 and 26.7 images per second would be 53.3.
        assert 40.0 == pytest.approx(score.value)
        assert ("throughput_offline", "images/s", "higher", 2) == (score.name, score.unit, score.better, score.n)

    def test_interval_of_throughput_holds_it_and_agrees_with_the_delta_method(self):
        values = np.random.default_rng(5).gamma(40.0, 0.001, 400)
        (score,) = latency.scores(trace_of(values, scenario="offline", batch=4))
        half = 1.96 * values.std() / math.sqrt(len(values)) / values.mean()
        assert score.value * (1 - half) == pytest.approx(score.low, rel=0.005)
        assert score.value * (1 + half) == pytest.approx(score.high, rel=0.005)

    def test_constant_timings_have_an_interval_of_no_width(self):
        (score,) = latency.scores(trace_of([0.02] * 30, scenario="offline", batch=2))
        assert (100.0, 100.0, 100.0) == pytest.approx((score.low, score.value, score.high))


def iid(seed: int, n: int = 1000, spread: float = 0.02) -> np.ndarray:
    """Return clean timings around a millisecond."""
    return 1e-3 * np.random.default_rng(seed).normal(1.0, spread, n)


def codes(values: Iterable[float], **changes) -> set[str]:
    return {caveat.code for caveat in latency.caveats(trace_of(values, **changes))}


# Timings that are independent of each other, but far from a narrow hump: 400 each, as a quick budget gives.
WIDE = {
    "lognormal 0.3": lambda g: g.lognormal(0.0, 0.3, 400),
    "lognormal 0.5": lambda g: g.lognormal(0.0, 0.5, 400),
    "two states, half": lambda g: g.normal(1.0, 0.02, 400) * np.where(g.random(400) < 0.5, 1.5, 1.0),
    "two states, two fifths": lambda g: g.normal(1.0, 0.02, 400) * np.where(g.random(400) < 0.4, 2.0, 1.0),
}


class TestCaveats:
    @pytest.mark.parametrize("seed", range(5))
    @pytest.mark.parametrize("n", [400, 1000, 5000])
    def test_clean_trace_raises_none(self, seed, n):
        assert set() == codes(iid(seed, n))

    def test_constant_trace_raises_none(self):
        assert set() == codes([1e-3] * 500)

    def test_rare_outliers_raise_none(self):
        values = iid(0)
        values[::100] *= 5
        assert set() == codes(values)

    @pytest.mark.parametrize(("n", "expected"), [(367, {"few-timings"}), (368, set())])
    def test_few_timings_for_the_99th_percentile(self, n, expected):
        assert expected == codes(iid(0, n))

    @pytest.mark.parametrize(("n", "expected"), [(1, {"few-timings"}), (19, {"few-timings"}), (20, set()), (100, set())])
    def test_a_throughput_from_fewer_than_twenty_batches_is_not_passed_without_a_doubt(self, n, expected):
        assert expected == codes(iid(0, n), scenario="offline", batch=16)

    @pytest.mark.parametrize("scenario", ["single-stream", "offline"])
    @pytest.mark.parametrize("values", [[0.0] * 400, [0.0] * 300 + [1e-3] * 100, [0.0]], ids=["all", "most", "one"])
    def test_a_clock_that_does_not_advance_is_a_doubt_not_a_division_by_zero(self, scenario, values):
        (caveat,) = latency.caveats(trace_of(values, scenario=scenario))
        assert ("coarse-clock", f"{scenario}: the clock did not advance during an inference") == (
            caveat.code, caveat.message)
        assert caveat.hint

    @pytest.mark.parametrize(("resolution", "expected"), [(9.9e-6, set()), (1.1e-5, {"coarse-clock"})])
    def test_clock_coarser_than_a_hundredth_of_the_median(self, resolution, expected):
        assert expected == codes(iid(1), clock_resolution_s=resolution)

    def test_time_that_ran_out(self):
        assert {"max-duration"} == codes(iid(1), stopped="max-duration")

    @pytest.mark.parametrize(("factor", "expected"), [(1.05, set()), (1.2, {"slow-start"}), (3.0, {"slow-start"})])
    def test_slow_start_of_the_first_twentieth(self, factor, expected):
        values = iid(2)
        values[:50] *= factor
        assert expected == codes(values) - {"few-timings"}

    def test_slow_start_says_by_how_much(self):
        values = np.full(1000, 1e-3)
        values[:50] = 1.5e-3
        few, caveat = latency.caveats(trace_of(values))
        assert "single-stream: the first twentieth is 50% slower than the rest" == caveat.message
        assert "few-timings" == few.code, "the slowest fifty followed each other"

    @pytest.mark.parametrize("draw", WIDE.values(), ids=list(WIDE))
    def test_independent_timings_that_spread_widely_are_not_taken_for_a_slow_start(self, draw):
        generator = np.random.default_rng(11)
        alarms = sum("slow-start" in codes(1e-3 * draw(generator)) for _ in range(200))
        assert alarms < 0.05 * 200

    @pytest.mark.parametrize("draw", WIDE.values(), ids=list(WIDE))
    def test_a_real_slow_start_is_not_lost_among_timings_that_spread_widely(self, draw):
        generator, raised = np.random.default_rng(12), 0
        for _ in range(200):
            values = 1e-3 * draw(generator)
            values[:20] *= 3
            raised += "slow-start" in codes(values)
        assert raised >= 0.95 * 200

    @pytest.mark.parametrize(("change", "expected"), [(0.02, set()), (0.12, {"drift"}), (-0.12, {"drift"})])
    def test_drift_over_the_run(self, change, expected):
        assert expected == codes(iid(3) * np.linspace(1, 1 + change, 1000)) - {"few-timings"}

    def test_drift_says_direction_and_size(self):
        rising = latency.caveats(trace_of(1e-3 * np.linspace(1.0, 1.1, 1000)))
        falling = latency.caveats(trace_of(1e-3 * np.linspace(1.1, 1.0, 1000)))
        # 20 window medians span 0.95 of the ramp, seen over 19 steps; the ramp of 0.1 on a median of 1.05.
        assert ["single-stream: latency rose by 9% during the run"] == [caveat.message for caveat in rising if caveat.code == "drift"]
        assert ["single-stream: latency fell by 9% during the run"] == [caveat.message for caveat in falling if caveat.code == "drift"]

    def test_step_in_the_middle_is_a_drift(self):
        values = iid(4)
        values[500:] *= 1.1
        assert "drift" in codes(values)

    def test_heavy_noise_alone_is_no_drift(self):
        assert "drift" not in codes(iid(5, spread=0.2))

    @pytest.mark.parametrize(("share", "shift"), [(0.5, 1.3), (0.5, 1.15), (0.2, 1.3), (0.8, 1.3)])
    def test_two_separate_states_are_bimodal(self, share, shift):
        generator = np.random.default_rng(6)
        values = iid(6) * np.where(generator.random(1000) < share, shift, 1.0)
        assert "bimodal" in codes(values)

    def test_bimodal_says_where_the_states_are_and_how_many_are_in_the_slow_one(self):
        values = np.where(np.arange(1000) % 4 == 0, 2e-3, 1e-3)
        caveat = next(one for one in latency.caveats(trace_of(values)) if one.code == "bimodal")
        assert caveat.message.startswith("single-stream: two states, 1.00 ms and 2.00 ms (2")

    def test_states_closer_than_a_twentieth_are_not_worth_a_word(self):
        values = iid(7, spread=0.001) * np.where(np.random.default_rng(7).random(1000) < 0.5, 1.03, 1.0)
        assert "bimodal" not in codes(values)

    @pytest.mark.parametrize("draw", [
        lambda g, n: g.uniform(1.0, 2.0, n), lambda g, n: g.lognormal(0.0, 0.1, n), lambda g, n: g.lognormal(0.0, 0.5, n),
        lambda g, n: g.lognormal(0.0, 1.0, n), lambda g, n: 1.0 + g.exponential(0.2, n),
        lambda g, n: 1.0 + 0.05 * g.pareto(1.5, n), lambda g, n: g.triangular(1.0, 1.1, 2.0, n)],
        ids=["uniform", "lognormal 0.1", "lognormal 0.5", "lognormal 1", "exponential", "Pareto", "triangular"])
    @pytest.mark.parametrize("n", [100, 1000])
    def test_distributions_with_one_hump_are_not_bimodal(self, draw, n):
        alarms = sum("bimodal" in codes(1e-3 * draw(np.random.default_rng(seed), n)) for seed in range(20))
        assert 0 == alarms

    @pytest.mark.parametrize(("spread", "expected"), [(0.08, set()), (0.15, {"noisy"})])
    def test_noisy_when_the_middle_half_spreads(self, spread, expected):
        # The middle half of a normal distribution is 1.35 standard deviations wide: 0.108 and 0.2 against 0.15.
        assert expected == codes(iid(8, spread=spread))

    def test_every_doubt_names_the_scenario_and_what_to_do(self):
        found = latency.caveats(trace_of(iid(9, 200, 0.3), scenario="offline", stopped="max-duration",
                                         clock_resolution_s=1e-3))
        assert {"max-duration", "coarse-clock", "noisy"} <= {caveat.code for caveat in found}
        for caveat in found:
            assert caveat.message.startswith("offline: ")
            assert caveat.hint

    @pytest.mark.parametrize("draw", [lambda g: g.normal(1.0, 0.1, 400), lambda g: g.lognormal(0.0, 0.3, 400),
                                      lambda g: g.normal(1.0, 0.03, 400) + (g.random(400) < 0.02) * 2.0],
                             ids=["normal", "lognormal", "outliers"])
    def test_false_alarms_on_independent_timings_are_rare(self, draw):
        generator = np.random.default_rng(10)
        raised = [codes(1e-3 * draw(generator)) for _ in range(300)]
        for code in ("drift", "bimodal"):
            assert sum(code in one for one in raised) <= 6, code


class TestEnvironmentCaveats:
    @pytest.fixture
    def quiet(self, tmp_path):
        """This machine's environment with everything that the caveats read made quiet."""
        return replace(environment.observe({}, root=tmp_path), governor="performance", load_before=0.1, cpus_usable=4)

    def found(self, environment_, threads=4) -> list[str]:
        return [caveat.code for caveat in latency.environment_caveats(environment_, threads)]

    def test_quiet_machine_raises_none(self, quiet):
        assert [] == self.found(quiet)

    @pytest.mark.parametrize(("governor", "expected"), [
        ("performance", []), ("powersave", ["governor"]), ("schedutil", ["governor"]), (None, [])])
    def test_governor_that_is_not_fixed(self, quiet, governor, expected):
        assert expected == self.found(replace(quiet, governor=governor))

    @pytest.mark.parametrize(("governor", "pinned", "expected"), [
        ("nvhost_podgov", {"gpu": False}, ["gpu-governor"]), ("nvhost_podgov", {}, ["gpu-governor"]),
        ("nvhost_podgov", {"gpu": True}, []), ("performance", {"gpu": False}, []), (None, {}, [])])
    def test_gpu_clock_that_is_not_pinned(self, quiet, governor, pinned, expected):
        assert expected == self.found(replace(quiet, gpu_governor=governor, clocks_pinned=pinned))

    def test_no_governor_moves_a_pinned_clock(self, quiet):
        assert [] == self.found(replace(quiet, governor="schedutil", clocks_pinned={"cpu": True}))

    @pytest.mark.parametrize(("load", "expected"), [(0.6, []), (0.7, ["other-load"]), (None, [])])
    def test_load_above_half_of_the_usable_cpus(self, quiet, load, expected):
        assert expected == self.found(replace(quiet, load_before=load))

    @pytest.mark.parametrize(("threads", "expected"), [(1, []), (4, []), (5, ["oversubscribed"])])
    def test_more_threads_than_usable_cpus(self, quiet, threads, expected):
        assert expected == self.found(quiet, threads)

    def test_messages_hold_the_numbers(self, quiet):
        loud = replace(quiet, governor="powersave", load_before=3.25)
        assert ["the CPU frequency governor is 'powersave'", "other work kept 3.2 of 4 CPUs busy before timing",
                "8 threads on 4 usable CPUs"] == [one.message for one in latency.environment_caveats(loud, 8)]
