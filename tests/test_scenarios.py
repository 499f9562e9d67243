"""Closed loops, Poisson arrivals and a camera under a scripted clock, against hand calculations and queueing theory."""

from __future__ import annotations

import gc
import itertools
import math
from dataclasses import dataclass, replace

import numpy as np
import pytest

from edgebench import instrument, latency, percentiles, scenario_scores, scenarios
from edgebench.errors import CannotMeasure, UsageError
from edgebench.latency import Budget
from edgebench.observed import Observed
from edgebench.record import decode, read_json, write_json
from edgebench.timing_types import DeviceTrace, QueryTrace
from tests.scripted import MS, World

TINY = Budget(name="tiny", warmup_count=1, warmup_s=0.0, min_count=3, min_batches=2, min_s=0.0, max_s=100.0,
              server_queries=100, warmup_max_s=0.0)


def closed(scenario, world, budget=TINY, **more):
    return scenarios.closed_loop(scenario, world.infer, budget, images_per_query=more.pop("images_per_query", 1), threads=2,
                                 clock=world.clock, **more)


def camera(world, fps, **more):
    return scenarios.camera(world.infer, fps, more.pop("budget", TINY), threads=1, clock=world.clock, sleep=world.sleep,
                            spin_s=0.0, **more)


def served(world, rate_hz, bound_s=0.01, **more):
    return scenarios.server(world.infer, rate_hz, bound_s, more.pop("budget", TINY), threads=1, clock=world.clock,
                            sleep=world.sleep, spin_s=0.0, **more)


class TestClosedLoops:
    def test_queries_follow_each_other_and_all_times_count_from_the_beginning(self):
        world = World([9 * MS, 1 * MS, 2 * MS, 3 * MS], start=500)
        found = closed("single-stream", world)
        assert (500 + 9 * MS, (0.009,)) == (found.begin_ns, found.warmup_s)
        assert ((0.0, 0.001, 0.003), (0.001, 0.003, 0.006)) == (found.start_s, found.end_s)
        assert pytest.approx((0.001, 0.002, 0.003)) == found.latency_s
        assert found.issue_s == found.start_s

    def test_offline_counts_batches_and_multi_stream_queries(self):
        assert 2 == len(closed("offline", World(MS), images_per_query=16).end_s)
        found = closed("multi-stream", World(MS), images_per_query=scenarios.MULTI_STREAM_IMAGES)
        assert (3, 8) == (len(found.end_s), found.images_per_query)

    def test_time_is_up_at_the_maximum(self):
        found = closed("single-stream", World(300 * MS), replace(TINY, min_count=100, max_s=1.0))
        assert (4, "max-duration") == (len(found.end_s), found.stopped)

    def test_duration_and_count_are_both_reached(self):
        found = closed("single-stream", World(100 * MS), replace(TINY, min_s=0.75))
        assert (8, "count-and-duration") == (len(found.end_s), found.stopped)

    def test_warm_up_is_lengthened_by_its_factor(self):
        assert 4 == len(closed("single-stream", World(MS), warmup_factor=4.0).warmup_s)

    def test_preprocessing_is_recorded(self):
        assert "included" == closed("single-stream", World(MS), preprocessing="included").preprocessing

    def test_progress_is_told_once_a_second_at_most(self):
        told = []
        closed("single-stream", World(300 * MS), replace(TINY, min_count=10), progress=told.append)
        assert [0.4, 0.8] == pytest.approx(told)

    def test_garbage_collector_is_off_meanwhile_and_on_again_after_a_failure(self):
        seen = []

        def infer():
            seen.append(gc.isenabled())
            raise CannotMeasure("broken")

        with pytest.raises(CannotMeasure):
            scenarios.closed_loop("single-stream", infer, TINY, images_per_query=1, threads=1)
        assert ([False], True) == (seen, gc.isenabled())

    def test_open_loops_are_refused(self):
        with pytest.raises(UsageError, match="server is no closed loop"):
            closed("server", World(MS))

    def test_a_trace_survives_its_file(self, tmp_path):
        found = replace(closed("single-stream", World(MS)), device=scenarios.device_times(Times, 3, clock=World(MS).clock))
        write_json(tmp_path / "trace.json", found)
        assert found == decode(QueryTrace, read_json(tmp_path / "trace.json"), "trace.json")


class TestServer:
    def test_latency_counts_from_the_scheduled_arrival(self):
        world = World(10 * MS)
        found = served(world, 150.0, queries=50, seed=3)
        due = np.cumsum(np.random.default_rng(3).exponential(1 / 150, 50))
        # Lindley's recursion, in plain lines.
        free, expected = 0.0, []
        for arrival in due:
            free = max(free, arrival) + 0.010
            expected.append(free - arrival)
        assert pytest.approx(expected, abs=1e-7) == found.latency_s
        assert pytest.approx([0.010] * 50) == found.service_s

    def test_mean_waiting_time_is_that_of_queueing_theory(self):
        # M/D/1: rho * s / (2 (1 - rho)).
        world = World(MS)
        found = served(world, 600.0, queries=60_000, seed=1, budget=replace(TINY, max_s=1e6))
        waiting = np.mean(found.latency_s) - 0.001
        assert 0.6 * 0.001 / (2 * 0.4) == pytest.approx(waiting, rel=0.05)

    def test_sleeps_until_arrivals_and_an_oversleep_counts_as_latency(self):
        world = World(MS, oversleep=50_000)
        found = served(world, 1.0, queries=5)
        assert pytest.approx([0.001_05] * 5, abs=1e-8) == found.latency_s
        assert 5 == len(world.slept)

    def test_the_last_stretch_is_spent_asking_the_clock(self):
        asked = []
        world = World(MS)

        def clock():
            asked.append(world.now)
            world.now += 10_000
            return world.now

        scenarios.server(world.infer, 10.0, 0.01, TINY, queries=3, threads=1, clock=clock, sleep=world.sleep, spin_s=200e-6)
        assert len(asked) > 3 * 15

    def test_gives_up_as_soon_as_too_many_queries_are_late(self):
        found = served(World(10 * MS), 500.0, bound_s=0.015, queries=1000, give_up=True)
        late = sum(value > 0.015 for value in found.latency_s)
        assert ("given-up", percentiles.late_allowed(1000, 0.99) + 1) == (found.stopped, late)
        assert len(found.end_s) < 100

    def test_time_is_up_at_the_maximum(self):
        found = served(World(10 * MS), 10.0, queries=1000, budget=replace(TINY, max_s=2.0))
        assert ("max-duration", True) == (found.stopped, len(found.end_s) < 40)

    def test_queries_last_the_minimum_duration_and_are_as_many_as_the_budget_says(self):
        asked = replace(TINY, min_s=2.0)
        assert [100, 2000] == [len(served(World(MS), rate, budget=asked).end_s) for rate in (10.0, 1000.0)]
        assert 5 == len(served(World(MS), 1000.0, budget=asked, queries=5).end_s)

    def test_the_same_seed_gives_the_same_arrivals(self):
        one, two, other = (served(World(MS), 100.0, seed=seed).issue_s for seed in (7, 7, 8))
        assert one == two != other

    @pytest.mark.parametrize(("rate", "bound"), [(0.0, 0.01), (10.0, 0.0), (math.inf, 0.01)])
    def test_impossible_rates_and_bounds_are_refused(self, rate, bound):
        with pytest.raises(UsageError, match="expected a rate and a latency bound above 0"):
            served(World(MS), rate, bound)


def search(service_ns=MS, bound_s=0.005, queries=3000, **more):
    def run(rate_hz, seed, left_s):
        return served(World(service_ns), rate_hz, bound_s, queries=queries, give_up=True, seed=seed,
                      budget=replace(TINY, max_s=min(1e6, left_s)))

    return scenarios.search_server(run, bound_s, service_s=[service_ns / 1e9] * 10, **more)


def true_quantile_rate(service_s: float, bound_s: float, q: float) -> float:
    """Return by simulation the arrival rate of M/D/1 whose q quantile of the latency is the bound."""
    gaps = np.random.default_rng(99).exponential(1.0, 200_000)
    low, high = 0.05 / service_s, 1.0 / service_s
    for _ in range(12):
        middle = (low + high) / 2
        arrivals = np.cumsum(gaps / middle)
        # Completion k is the latest of arrival j plus the service of j to k.
        steps = np.arange(1, gaps.size + 1) * service_s
        done = steps + np.maximum.accumulate(arrivals - (steps - service_s))
        low, high = (middle, high) if np.quantile(done - arrivals, q) <= bound_s else (low, middle)
    return low


class TestServerSearch:
    def test_finds_nearly_the_rate_that_the_queue_can_hold(self):
        found = search()
        truth = true_quantile_rate(0.001, 0.005, 0.99)
        # Shown at 99 % confidence by 3,000 queries, so somewhat below.
        assert 0.8 * truth < found.rate_hz <= 1.02 * truth
        assert found.reason.startswith("confirmed with other arrivals")

    def test_trials_are_bounded_and_kept(self):
        found = search(max_trials=4)
        assert 4 == len(found.trials)
        assert "4 trials were used up" in found.reason

    def timed(self, max_s, *, failing_above_hz=math.inf):
        """Search where each trial takes 1000 / rate seconds, or what is left."""
        world = World(MS)

        def run(rate_hz, seed, left_s):
            needed_s = 1000 / rate_hz
            world.now += round(min(needed_s, left_s) * 1e9)
            n = 1000 if needed_s <= left_s else 10
            ends = np.arange(1, n + 1) * 0.01
            waited = 0.009 if rate_hz > failing_above_hz else 0.001
            return QueryTrace(scenario="server", images_per_query=1, threads=1, budget="t", clock="c", clock_resolution_s=0,
                              begin_ns=0, warmup_s=(), warmup_settled=True, issue_s=tuple(ends - waited),
                              start_s=tuple(ends - 0.001), end_s=tuple(ends),
                              stopped="count-and-duration" if needed_s <= left_s else "max-duration")

        return scenarios.search_server(run, 0.005, service_s=[0.001], max_s=max_s, clock=world.clock)

    def test_the_search_ends_with_the_time_that_the_budget_gives_it(self):
        # Half of 1000 per second holds after 2 s, then 707 after 1.41 s; the third trial would need 1.19 s.
        found = self.timed(3.9)
        assert (True, [500.0, 707.1, 840.9]) == (found.cut, [round(one.rate_hz, 1) for one in found.trials])
        assert (pytest.approx(707.1, abs=0.1), None) == (found.rate_hz, found.lowest_failing_hz), "the cut trial says nothing"
        assert found.reason == ("the 3.9 s that the budget gives to the search ran out after 2 finished trials; the rate is not "
                                "confirmed with other arrivals, and a higher one may hold")

    def test_time_that_runs_out_between_two_trials_ends_the_search_too(self):
        found = self.timed(2.0)
        assert (True, 1, 500.0) == (found.cut, len(found.trials), found.rate_hz)

    def test_a_search_whose_time_ran_out_before_anything_held_reports_no_rate(self):
        found = self.timed(7.0, failing_above_hz=1.0)
        assert (True, None, 250.0) == (found.cut, found.rate_hz, found.lowest_failing_hz)
        assert found.reason.endswith("after 2 finished trials; none of them showed the bound to hold")

    def test_a_search_with_time_enough_is_not_cut(self):
        found = self.timed(1e6, failing_above_hz=600.0)
        assert (False, True) == (found.cut, found.reason.startswith("confirmed with other arrivals"))
        assert 582.0 < found.rate_hz <= 600.0

    def limited(self, service_ns, bound_s, *, queries, max_s):
        """Search where every trial is cut after `max_s`, as a caller may want it, and the search itself is not."""
        def run(rate_hz, seed, left_s):
            return served(World(service_ns), rate_hz, bound_s, queries=queries, seed=seed, give_up=True,
                          budget=replace(TINY, max_s=max_s))

        return scenarios.search_server(run, bound_s, service_s=[service_ns / 1e9])

    def test_a_trial_that_was_cut_short_counts_where_its_queries_suffice(self):
        # 50 ms each: at 10 per second 60 s hold 600 of the 2,000 queries, and 459 show a bound that none exceeds.
        found = self.limited(50 * MS, 1.0, queries=2000, max_s=60.0)
        assert {"max-duration"} == {one.stopped for one in found.trials if one.holds}
        assert 10.0 <= found.rate_hz < 20.0

    def test_trials_too_short_to_tell_end_the_search_and_are_no_failures(self):
        found = self.limited(50 * MS, 1.0, queries=2000, max_s=30.0)
        assert (None, None, 1, False) == (found.rate_hz, found.lowest_failing_hz, len(found.trials), found.cut)
        assert (0, "cannot tell") == (found.trials[0].late, found.trials[0].said)
        assert found.reason == (f"cannot tell: time was up after {found.trials[0].queries} queries at 10 per second, and it takes 459 "
                                "to show any bound at the 0.99 quantile")

    def test_rates_whose_trials_were_given_up_do_not_blame_the_number_of_queries(self):
        # The median is 1 ms, but every tenth inference takes 9 ms: no rate keeps 5 ms at the 99th percentile.
        def run(rate_hz, seed, left_s):
            return served(World(itertools.cycle([MS] * 9 + [9 * MS])), rate_hz, 0.005, queries=2000, give_up=True, seed=seed,
                          budget=replace(TINY, max_s=1e6))

        found = scenarios.search_server(run, 0.005, service_s=[0.001] * 9 + [0.009])
        assert {"given-up"} == {one.stopped for one in found.trials}
        assert max(one.queries for one in found.trials) < 459
        assert found.reason.startswith("the bound was shown to hold at none of 12 rates")

    def test_the_reported_rate_held_twice(self):
        found = search()
        assert 2 == sum(one.holds for one in found.trials if one.rate_hz == found.rate_hz)
        assert found.lowest_failing_hz > found.rate_hz

    def test_an_inference_slower_than_the_bound_needs_no_trial(self):
        found = search(service_ns=20 * MS)
        assert (None, (), "a single inference takes 20.000 ms, above the bound of 5.000 ms") == (
            found.rate_hz, found.trials, found.reason)

    def test_too_few_queries_to_show_a_bound_are_named(self):
        found = search(queries=100, max_trials=3)
        assert (None, "100 queries cannot show any bound at the 0.99 quantile: it takes 459") == (found.rate_hz, found.reason)

    def test_a_rate_that_fails_its_confirmation_is_not_reported(self):
        calls = []

        def run(rate_hz, seed, left_s):
            calls.append(rate_hz)
            fine = rate_hz < 300 or (rate_hz < 700 and calls.count(rate_hz) == 1 and rate_hz > 400)
            n = 700
            ends = np.arange(1, n + 1) * 0.01
            return QueryTrace(scenario="server", images_per_query=1, threads=1, budget="t", clock="c", clock_resolution_s=0,
                              begin_ns=0, warmup_s=(), warmup_settled=True, issue_s=tuple(ends - (0.001 if fine else 0.009)),
                              start_s=tuple(ends - 0.001), end_s=tuple(ends), stopped="count-and-duration")

        found = scenarios.search_server(run, 0.005, service_s=[0.001], max_trials=40)
        assert found.rate_hz < 300


class TestCamera:
    def test_a_fast_session_answers_every_frame_on_time(self):
        world = World(5 * MS)
        found = camera(world, 50.0, frames=10)
        assert pytest.approx([0.02 * k for k in range(10)]) == found.issue_s
        assert pytest.approx([0.005] * 10) == found.latency_s
        seen = scenario_scores.camera_summary(found)
        assert (10, 0, 0.0, 0, 0.0) == (seen.frames, seen.dropped, seen.miss_rate, seen.queue_max, pytest.approx(seen.jitter_s, abs=1e-9))
        # Ages run from 5 ms to 25 ms between two results.
        assert (0.015, 0.025, 0.025) == pytest.approx((seen.age_mean_s, seen.age_peak_mean_s, seen.age_peak_max_s))

    def test_newest_drops_what_a_slow_session_cannot_take(self):
        # 25 ms per inference, a frame each 10 ms: frames 0, 2, 5, 7, 10 …
        found = camera(World(25 * MS), 100.0, frames=11, policy="newest", deadline_s=0.030)
        assert pytest.approx([0.0, 0.02, 0.05, 0.07, 0.10]) == found.issue_s
        assert pytest.approx([0.01, 0.03, 0.04, 0.06, 0.08, 0.09]) == found.dropped_s
        assert pytest.approx([0.025, 0.030, 0.025, 0.030, 0.025]) == found.latency_s
        seen = scenario_scores.camera_summary(found)
        assert (11, 6) == (seen.frames, seen.dropped)
        assert 6 / 11 == pytest.approx(seen.miss_rate)
        assert 0.005 == pytest.approx(seen.jitter_s)

    def test_queue_answers_all_frames_later_and_later(self):
        found = camera(World(15 * MS), 100.0, frames=6, policy="queue")
        assert pytest.approx([0.015 + 0.005 * k for k in range(6)]) == found.latency_s
        seen = scenario_scores.camera_summary(found)
        # Frame k arrives at 10 k ms; starts are 15 j ms, so those waiting then are k - 1 - floor(10 k / 15).
        expected = [max(0, k - 1 - (10 * k) // 15) for k in range(6)]
        assert (sum(expected) / 6, max(expected)) == (pytest.approx(seen.queue_mean), seen.queue_max)
        assert (1.0, 0) == (seen.miss_rate, seen.dropped)

    def test_age_of_information_is_the_area_under_its_saw_teeth(self):
        world = World([0, 5 * MS, 30 * MS, 12 * MS, 7 * MS, 22 * MS])
        found = camera(world, 60.0, frames=5, policy="queue")
        grid = np.linspace(found.end_s[0], found.end_s[-1], 200_001)[:-1]
        newest = np.searchsorted(found.end_s, grid, side="right") - 1
        ages = grid - np.array(found.issue_s)[newest]
        seen = scenario_scores.camera_summary(found)
        assert ages.mean() == pytest.approx(seen.age_mean_s, rel=1e-4)
        assert ages.max() == pytest.approx(seen.age_peak_max_s, rel=1e-3)

    def test_deadline_is_a_frame_period_unless_it_is_given(self):
        assert 0.02 == camera(World(MS), 50.0, frames=2).limit_s
        assert 0.1 == camera(World(MS), 50.0, frames=2, deadline_s=0.1).limit_s

    def test_a_result_exactly_at_the_deadline_is_in_time(self):
        assert 0.0 == scenario_scores.camera_summary(camera(World(20 * MS), 50.0, frames=30)).miss_rate

    @pytest.mark.parametrize("fps", [30.0, 59.94, 7.0])
    def test_no_frame_is_lost_or_taken_twice_at_any_rate(self, fps):
        generator = np.random.default_rng(0)
        world = World(int(value) for value in generator.integers(1, 300 * MS, 1000))
        found = camera(world, fps, frames=300)
        frames = sorted(round(moment * fps) for moment in (*found.issue_s, *found.dropped_s))
        assert list(range(300)) == frames
        assert all(start >= issue for issue, start in zip(found.issue_s, found.start_s, strict=True))

    def test_frames_last_as_long_as_the_budget_says(self):
        assert 120 == len(camera(World(MS), 60.0, budget=replace(TINY, min_s=2.0)).end_s)

    @pytest.mark.parametrize(("fps", "deadline"), [(0.0, None), (30.0, -1.0)])
    def test_impossible_rates_and_deadlines_are_refused(self, fps, deadline):
        with pytest.raises(UsageError, match="expected a frame rate and a deadline above 0"):
            camera(World(MS), fps, deadline_s=deadline)

    def test_one_result_has_no_jitter_and_no_age(self):
        seen = scenario_scores.camera_summary(camera(World(MS), 50.0, frames=1))
        assert (None, None, None) == (seen.jitter_s, seen.age_mean_s, seen.age_peak_max_s)


@dataclass(frozen=True)
class Times:
    h2d_s: float = 0.001
    compute_s: float = 0.010
    d2h_s: float = 0.002
    enqueue_s: float = 0.0005


class TestDeviceTimes:
    def test_parts_stand_beside_the_wall_time_of_the_same_inferences(self):
        world = World(15 * MS)

        def timed():
            world.infer()
            return Times()

        found = scenarios.device_times(timed, 3, clock=world.clock)
        assert ((0.015,) * 3, (0.010,) * 3, (0.001,) * 3) == (found.wall_s, found.compute_s, found.h2d_s)

    def test_events_out_of_order_are_refused(self):
        with pytest.raises(CannotMeasure, match="out of order"):
            scenarios.device_times(lambda: Times(compute_s=-1e-6), 1, clock=World(MS).clock)

    @pytest.mark.parametrize(("times", "code"), [
        (Times(enqueue_s=0.009), "enqueue-bound"), (Times(h2d_s=0.009), "copy-bound")])
    def test_what_bounds_the_device_is_a_caveat(self, times, code):
        device = DeviceTrace(h2d_s=(times.h2d_s,), compute_s=(times.compute_s,), d2h_s=(times.d2h_s,),
                             enqueue_s=(times.enqueue_s,), wall_s=(0.015,))
        assert [code] == [one.code for one in instrument.caveats(Observed(device_times=device), 0.95)]

    def test_compute_times_that_vary_are_a_caveat(self):
        device = DeviceTrace(h2d_s=(0.0,) * 2, compute_s=(0.010, 0.012), d2h_s=(0.0,) * 2, enqueue_s=(0.0,) * 2,
                             wall_s=(0.015,) * 2)
        assert ["device-unstable"] == [one.code for one in instrument.caveats(Observed(device_times=device), 0.95)]


class TestScores:
    def test_names_tell_the_scenario_and_single_stream_keeps_the_plain_ones(self):
        plain = [one.name for one in scenario_scores.scores(closed("single-stream", World(MS)))]
        assert ["latency_p50", "latency_p90", "latency_p95", "latency_p99"] == plain
        assert "server_latency_p99" in [one.name for one in scenario_scores.scores(served(World(MS), 10.0))]
        found = {one.name: one for one in scenario_scores.scores(closed("offline", World(100 * MS), images_per_query=16))}
        assert 160.0 == pytest.approx(found["throughput_offline"].value)
        found = {one.name: one for one in scenario_scores.scores(camera(World(MS), 50.0, frames=20))}
        assert {"camera_latency_p50", "camera_miss_rate", "camera_jitter", "camera_age_mean", "camera_age_peak"} <= set(found)

    def test_an_end_that_is_missing_has_a_reason(self):
        found = {one.name: one for one in scenario_scores.scores(closed("single-stream", World(MS), replace(TINY, min_count=100)))}
        assert found["latency_p99"].unbounded
        assert found["latency_p99"].reason
        assert found["latency_p50"].reason is None

    def test_a_budget_that_was_cut_is_a_caveat(self):
        cut = scenario_scores.caveats(closed("single-stream", World(MS), replace(TINY, min_count=9999, max_s=0.4)))
        assert ["max-duration"] == [one.code for one in cut]

    def test_a_loop_that_cannot_keep_the_schedule_is_a_caveat(self):
        world = World(MS, oversleep=5 * MS)
        found = scenario_scores.caveats(camera(world, 50.0, frames=400))
        assert "late-issue" in [one.code for one in found]
        punctual = scenario_scores.caveats(camera(World(MS), 50.0, frames=400))
        assert "late-issue" not in [one.code for one in punctual]

    def test_a_warm_up_that_did_not_settle_is_a_caveat(self):
        restless = itertools.chain(itertools.islice(itertools.cycle([5 * MS] * 20 + [9 * MS] * 20), 200), itertools.repeat(MS))
        plan = replace(TINY, warmup_max_s=1.0, min_count=400)
        assert "warm-up" in [one.code for one in scenario_scores.caveats(closed("single-stream", World(restless), plan))]


class TestBudgets:


    @pytest.mark.parametrize(("name", "confidence"), [("quick", 0.95), ("standard", 0.95), ("mlperf", 0.99)])
    def test_each_states_a_confidence_that_its_count_can_bound_p99_with(self, name, confidence):
        plan = latency.budget(name)
        assert confidence == plan.confidence
        assert percentiles.bound(np.arange(1.0, plan.min_count + 1), 0.99, confidence, independent=True).met

    @pytest.mark.parametrize("name", ["quick", "standard", "mlperf"])
    def test_each_has_queries_enough_to_show_a_server_bound_at_p99(self, name):
        assert latency.budget(name).server_queries >= percentiles.early_stopping_count(0.99, 0)
