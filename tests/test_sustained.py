"""Half an hour in a microsecond: minutes, joined channels, the moment of throttling, the order of the variants."""

from __future__ import annotations

import gc
import itertools
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats as scipy_stats

from edgebench import sustained
from edgebench.errors import CannotMeasure, InvalidInput
from edgebench.record import decode, read_json, write_json
from edgebench.sustained import ChannelData, Timings
from edgebench.telemetry.types import Channel, Series, Telemetry, ThrottleEvent, ThrottleTrace
from edgebench.timing_types import Sustained
from tests.scripted import MS, World

S = 1_000_000_000


def timings_of(durations_ns) -> Timings:
    durations = np.asarray(durations_ns, np.int64)
    ends = np.cumsum(durations) + 5 * S
    return Timings(ends - durations, durations)


class TestLoop:
    def test_runs_for_the_time_asked_and_keeps_every_inference(self):
        world = World(100 * MS)
        found = sustained.run(world.infer, 30.0, clock=world.clock)
        assert 300 == found.duration_ns.size == found.start_ns.size
        assert {100 * MS} == set(found.duration_ns.tolist())
        assert 1_000 == found.start_ns[0]

    def test_half_an_hour_is_the_default(self):
        world = World(S)
        assert 1800 == sustained.run(world.infer, clock=world.clock).duration_ns.size

    def test_progress_and_the_question_whether_to_stop_come_once_a_second(self):
        world, told = World(400 * MS), []
        found = sustained.run(world.infer, 100.0, clock=world.clock, progress=told.append, stop=lambda: len(told) == 3)
        assert 9 == found.duration_ns.size
        assert [0.012, 0.024, 0.036] == pytest.approx(told)

    def test_garbage_collector_is_on_again_after_a_failure(self):
        def fail():
            raise CannotMeasure("gone")

        with pytest.raises(CannotMeasure):
            sustained.run(fail, 1.0)
        assert gc.isenabled()


class TestMinutes:
    def test_percentiles_and_counts_per_minute(self):
        # 600 inferences of 100 ms, then 300 of 200 ms, then 50 of 200 ms: two minutes and a rest of ten seconds.
        found = sustained.summarize("int8", timings_of([100 * MS] * 600 + [200 * MS] * 300 + [200 * MS] * 50), 180.0)
        assert [(0.0, 60.0, 600), (60.0, 60.0, 300), (120.0, pytest.approx(10.0), 50)] == [
            (one.begin_s, one.duration_s, one.inferences) for one in found.minutes]
        assert [0.1, 0.2, 0.2] == [one.p50_s for one in found.minutes]
        assert [10.0, 5.0, 5.0] == pytest.approx([one.throughput_hz for one in found.minutes])
        assert (1.0, 130.0, 180.0) == pytest.approx((found.slowdown, found.duration_s, found.asked_s))

    def test_percentiles_are_order_statistics(self):
        durations = np.random.default_rng(0).permutation(np.arange(1, 101)) * MS
        (minute,) = sustained.summarize("x", timings_of(durations), 60.0).minutes
        assert (0.050, 0.090, 0.099, 0.100) == (minute.p50_s, minute.p90_s, minute.p99_s, minute.max_s)

    def test_it_survives_its_file(self, tmp_path):
        found = sustained.summarize("x", timings_of([100 * MS] * 700), 60.0, {
            "vdd": ChannelData(t_ns=[5 * S, 80 * S], values=[3.0, 3.0], kind="rate")})
        write_json(tmp_path / "s.json", found)
        assert found == decode(Sustained, read_json(tmp_path / "s.json"), "s.json")

    def test_raw_timings_beside_the_run_give_the_same_analysis_again(self, tmp_path):
        generator = np.random.default_rng(0)
        durations, gaps = (generator.integers(low, high, 5000) for low, high in ((20 * MS, 60 * MS), (100, 900)))
        starts = np.cumsum(durations + gaps) + 7 * S
        timings = Timings(starts, durations)
        event = ThrottleEvent(code="cpu-thermal", message="m", invalidates=False)
        found = replace(sustained.summarize("x", timings, 200.0), file=sustained.save(tmp_path, timings), events=(event,))
        again = sustained.load(tmp_path, found)
        assert (starts.tolist(), durations.tolist()) == (again.start_ns.tolist(), again.duration_ns.tolist())
        altered = replace(found, minutes=tuple(replace(one, p99_s=0.0) for one in found.minutes), slowdown=9.0)
        assert found == sustained.afresh(tmp_path, altered, None)
        assert (tmp_path / "sustained.npz").stat().st_size < 0.6 * 16 * 5000, "even random timings compress"

    def test_raw_timings_that_are_missing_damaged_or_another_runs_are_refused(self, tmp_path):
        found = sustained.summarize("x", timings_of([100 * MS] * 50), 5.0)
        with pytest.raises(InvalidInput, match="raw timings of the sustained load are missing"):
            sustained.load(tmp_path, found)
        sustained.save(tmp_path, timings_of([100 * MS] * 51))
        with pytest.raises(InvalidInput, match="holds the timings of another run"):
            sustained.load(tmp_path, found)
        (tmp_path / "sustained.npz").write_bytes(b"PK\x03\x04 cut short")
        with pytest.raises(InvalidInput, match="is damaged"):
            sustained.load(tmp_path, found)

    def test_nothing_is_refused(self):
        with pytest.raises(CannotMeasure, match="without any inference"):
            sustained.summarize("x", timings_of([]), 60.0)


class TestChannels:
    def test_power_adds_up_to_energy(self):
        # 4 W throughout, read each second: 240 J in a minute.
        channel = ChannelData(t_ns=[k * S for k in range(121)], values=[4.0] * 121, kind="rate")
        found = sustained.channel_minute("x", channel, 10 * S, 70 * S)
        assert (4.0, 4.0, 4.0, 240.0) == pytest.approx((found.mean, found.low, found.high, found.integral))

    def test_a_ramp_is_integrated_exactly_between_readings(self):
        channel = ChannelData(t_ns=[0, 30 * S, 60 * S], values=[0.0, 3.0, 6.0], kind="rate")
        found = sustained.channel_minute("x", channel, 15 * S, 45 * S)
        assert (90.0, 3.0) == pytest.approx((found.integral, found.mean))

    def test_the_mean_weights_readings_by_time(self):
        # One degree more for 50 s, read at odd moments.
        channel = ChannelData(t_ns=[0, 1 * S, 2 * S, 3 * S, 10 * S, 60 * S], values=[50.0, 50.0, 50.0, 50.0, 51.0, 51.0])
        found = sustained.channel_minute("x", channel, 0, 60 * S)
        assert (3 * 50 + 7 * 50.5 + 50 * 51) / 60 == pytest.approx(found.mean)
        assert found.integral is None, "degrees do not add up"

    def test_a_counter_tells_its_growth(self):
        channel = ChannelData(t_ns=[0, 40 * S, 80 * S], values=[1000.0, 1400.0, 1800.0], kind="counter")
        found = sustained.channel_minute("x", channel, 10 * S, 70 * S)
        assert (600.0, 10.0, None) == (pytest.approx(found.integral), pytest.approx(found.mean), found.low)

    def test_a_counter_that_was_set_back_tells_nothing(self):
        channel = ChannelData(t_ns=[0, 40 * S, 80 * S], values=[1000.0, 3.0, 400.0], kind="counter")
        assert sustained.channel_minute("x", channel, 0, 80 * S).integral is None

    def test_readings_that_leave_a_part_out_give_no_energy(self):
        channel = ChannelData(t_ns=[k * S for k in range(20)], values=[4.0] * 20, kind="rate")
        found = sustained.channel_minute("x", channel, 0, 60 * S)
        assert (None, 4.0) == (found.integral, pytest.approx(found.mean))

    def test_no_reading_is_none_and_not_zero(self):
        found = sustained.channel_minute("x", ChannelData(t_ns=[500 * S], values=[4.0]), 0, 60 * S)
        assert (None, None, None, None) == (found.mean, found.low, found.high, found.integral)

    def test_minutes_carry_all_channels_but_flags(self):
        begin = 5 * S
        channels = {"temperature": ChannelData(t_ns=[begin + k * S for k in range(121)], values=[40.0 + k for k in range(121)]),
                    "flags": ChannelData(t_ns=[begin], values=[0], kind="flag")}
        found = sustained.summarize("x", timings_of([100 * MS] * 1200), 120.0, channels)
        assert [70.0, 130.0] == pytest.approx([one.channels[0].mean for one in found.minutes])
        assert ["temperature"] == [one.name for one in found.minutes[0].channels]


def noisy(levels_and_seconds, seed=0) -> Timings:
    generator = np.random.default_rng(seed)
    durations: list[int] = []
    for level_s, seconds in levels_and_seconds:
        count = round(seconds / level_s)
        durations += (level_s * 1e9 * generator.normal(1, 0.02, count)).astype(int).tolist()
    return timings_of(durations)


class TestThrottling:
    def test_a_lasting_rise_is_dated(self):
        found = sustained.throttling(noisy([(0.02, 400), (0.026, 500)]), {})
        assert "latency" == found.evidence
        assert 400 == pytest.approx(found.after_s, abs=20)
        assert "stayed up" in found.message

    def test_a_rise_that_passes_is_none(self):
        assert sustained.throttling(noisy([(0.02, 300), (0.026, 100), (0.02, 400)]), {}) is None

    def test_a_slow_start_is_none(self):
        assert sustained.throttling(noisy([(0.03, 100), (0.02, 600)]), {}) is None

    @pytest.mark.parametrize("seed", range(10))
    def test_a_steady_run_is_none(self, seed):
        assert sustained.throttling(noisy([(0.02, 600)], seed), {}) is None

    def test_a_raised_flag_comes_before_what_latency_shows(self):
        timings = noisy([(0.02, 400), (0.026, 500)])
        flags = ChannelData(t_ns=[5 * S + k * S for k in range(900)], values=[0 if k < 300 else 8 for k in range(900)], kind="flag")
        found = sustained.throttling(timings, {"nvml": flags})
        assert ("flag", 300.0, "nvml was raised after 300 s") == (found.evidence, pytest.approx(found.after_s, abs=0.1), found.message)

    def found(self, name, values, begin_s=5.0):
        """When throttling is dated by one reading a second, from what telemetry recorded."""
        quantity = "flags" if name.startswith(("nvml/", "pi/")) else "level"
        channel = Channel(name=name, label=name, quantity=quantity, source="test", scope=None)
        series = Series(channel=channel, interval_s=1.0, t_ns=tuple(round((begin_s + k) * S) for k in range(len(values))),
                        values=tuple(map(float, values)))
        recorded = Telemetry(begin_ns=0, end_ns=1000 * S, throttle=ThrottleTrace(series=(series,)))
        throttling = sustained.throttling(noisy([(0.02, 60)]), sustained.channels(recorded))
        return None if throttling is None else round(throttling.after_s)

    @pytest.mark.parametrize(("name", "harmless", "throttled"), [
        ("nvml/0/throttle-reasons", 0x1 | 0x2 | 0x4 | 0x10 | 0x100, 0x20), ("nvml/0/throttle-reasons", 0x4, 0x84),
        ("pi/throttled", 0x50000, 0x50004), ("cooling/gpu-throttle-alert", 0, 1), ("limit/cpu/policy0", 0, 2e8)])
    def test_what_throttles_is_told_from_what_does_not(self, name, harmless, throttled):
        assert self.found(name, [harmless] * 40) is None
        assert 20 == self.found(name, [harmless] * 20 + [throttled] * 20)

    def test_readings_before_and_after_the_load_do_not_count(self):
        assert self.found("cooling/gpu-throttle-alert", [1, 1, 1, 1] + [0] * 40, begin_s=0.5) is None
        assert self.found("cooling/gpu-throttle-alert", [0] * 64 + [1] * 9) is None

    def test_bits_that_are_no_throttling_are_ignored(self):
        flags = ChannelData(t_ns=[5 * S], values=[1], kind="flag", ignored_bits=1)
        assert sustained.throttling(noisy([(0.02, 120)]), {"nvml": flags}) is None


def run_of(variant: str, first_s: float, last_s: float) -> Sustained:
    return sustained.summarize(variant, noisy([(first_s, 60), ((first_s + last_s) / 2, 60), (last_s, 70)]), 190.0)


class TestRanks:
    def test_an_order_that_turns_is_named(self):
        found = sustained.rank_stability([run_of("fp32", 0.05, 0.052), run_of("int8", 0.02, 0.06), run_of("fp16", 0.03, 0.031)])
        assert (("int8", "fp16", "fp32"), ("fp16", "fp32", "int8")) == (found.first, found.last)
        assert {("fp32", "int8"), ("int8", "fp16")} == set(found.swapped)
        assert scipy_stats.kendalltau([0.05, 0.02, 0.03], [0.052, 0.06, 0.031]).statistic == pytest.approx(found.tau)

    def test_an_order_that_stays_has_a_tau_of_one(self):
        found = sustained.rank_stability([run_of("a", 0.02, 0.03), run_of("b", 0.04, 0.06)])
        assert (1.0, ()) == (found.tau, found.swapped)

    def test_one_variant_has_no_order(self):
        assert sustained.rank_stability([run_of("a", 0.02, 0.03)]).tau is None

    def test_tau_is_scipys_for_many_variants(self):
        generator = np.random.default_rng(2)
        first, last = generator.uniform(0.02, 0.09, (2, 5))
        found = sustained.rank_stability([run_of(str(k), a, b) for k, (a, b) in enumerate(zip(first, last, strict=True))])
        assert scipy_stats.kendalltau(first, last).statistic == pytest.approx(found.tau)
        assert len(found.swapped) == sum((first[a] - first[b]) * (last[a] - last[b]) < 0 for a, b in itertools.combinations(range(5), 2))
