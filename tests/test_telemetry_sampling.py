"""Sampling on a thread, energy with its uncertainty, external meters, and whole recordings of every board."""

from __future__ import annotations

import math
import os
import threading
import time

import numpy as np
import pytest

from edgebench import catalog
from edgebench.device import Device
from edgebench.errors import CannotMeasure, InvalidInput, UsageError
from edgebench.record import decode, to_builtins
from edgebench.telemetry.energy import energy, per_inference
from edgebench.telemetry.meter import Meter, MeterLines
from edgebench.telemetry.observe import WHICH_GPU, Observer
from edgebench.telemetry.sampler import Sampler
from edgebench.telemetry.types import Channel, Energy, Gap, PowerTrace, Series, Telemetry
from tests import trees
from tests.fake_nvml import Fake

DEVICES = catalog.devices()
S = 10**9


def power(**options):
    return Channel(**{"name": "p", "label": "p", "quantity": "power_w", "source": "test", "scope": "module", **options})


def series(times_s, values, *, interval_s=1.0, gaps=(), **options):
    return Series(channel=power(**options), interval_s=interval_s, t_ns=tuple(round(at * S) for at in times_s),
                  values=tuple(map(float, values)), gaps=gaps)


class Scripted:
    """A sensor that gives one prepared reading after the other, the last one for ever."""

    interval_s = 0.005
    absent = ()

    def __init__(self, *readings, name="p", delay_s=0.0, crash_after=None):
        self.channels = (power(name=name),)
        self.readings, self.calls, self.delay_s, self.crash_after = readings, 0, delay_s, crash_after
        self.closed = False

    def read(self):
        self.calls += 1
        if self.crash_after is not None and self.calls > self.crash_after:
            raise RuntimeError("a bug in this sensor")
        time.sleep(self.delay_s)
        return (self.readings[min(self.calls, len(self.readings)) - 1],)

    def close(self):
        self.closed = True


def until_read(sensor: Scripted, times: int) -> None:
    """Wait until a sensor was read so often, however busy the machine is."""
    for _ in range(60_000):
        if sensor.calls >= times:
            return
        time.sleep(0.005)
    pytest.fail(f"{sensor.calls} readings in five minutes")


class Once:
    """Drives a sampler's loop with a scripted clock: every wait advances it by what was waited for."""

    def __init__(self, sampler, until_ns):
        self.now = 0
        self.until_ns = until_ns
        sampler._clock = lambda: self.now
        sampler._stop = self

    def wait(self, seconds):
        self.now += max(1, round(seconds * 1e9))
        return self.now >= self.until_ns

    def set(self):
        pass


class TestSampler:
    def test_each_sensor_is_read_at_its_own_rate_and_once_at_each_end(self):
        fast, slow = Scripted(1.0, name="fast"), Scripted(2.0, name="slow")
        fast.interval_s, slow.interval_s = 0.1, 0.5
        sampler = Sampler([fast, slow])
        clock = Once(sampler, 1_050_000_000)
        sampler.start()
        found = {one.channel.name: one for one in sampler.stop().series}
        assert [0, *(tenth * S // 10 for tenth in range(1, 11)), clock.now] == pytest.approx(found["fast"].t_ns, abs=2)
        assert [0, S // 2, S, clock.now] == pytest.approx(found["slow"].t_ns, abs=2)

    def test_times_are_on_the_clock_of_the_latency(self):
        before = time.perf_counter_ns()
        with Sampler([Scripted(1.0)]) as sampler:
            time.sleep(0.03)
            recording = sampler.stop()
        (found,) = recording.series
        assert before <= recording.begin_ns <= found.t_ns[0] < found.t_ns[-1] <= recording.end_ns <= time.perf_counter_ns()
        assert list(found.t_ns) == sorted(found.t_ns)

    def test_a_sensor_that_vanishes_and_comes_back_leaves_a_gap_with_the_reason(self):
        sensor = Scripted(1.0, "gone", "gone", 4.0)
        with Sampler([sensor]) as sampler:
            until_read(sensor, 4)
            (found,) = sampler.stop().series
        assert (1.0, 4.0) == found.values[:2]
        (gap,) = found.gaps
        assert "gone" == gap.reason
        assert found.t_ns[0] < gap.begin_ns < gap.end_ns == found.t_ns[1]

    def test_a_gap_at_the_end_is_closed_by_the_end(self):
        sensor = Scripted(1.0, "first", "second")
        with Sampler([sensor]) as sampler:
            until_read(sensor, 3)
            recording = sampler.stop()
        first, second = recording.series[0].gaps
        assert ("first", "second") == (first.reason, second.reason)
        assert first.end_ns == second.begin_ns < second.end_ns == recording.end_ns

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    def test_numbers_that_are_none_become_gaps(self, value):
        with Sampler([Scripted(value)]) as sampler:
            (found,) = sampler.stop().series
        assert () == found.values
        assert "finite" in found.gaps[0].reason

    def test_a_bug_in_a_sensor_is_raised_where_the_recording_is_asked_for(self):
        sensor = Scripted(1.0, crash_after=2)
        sampler = Sampler([sensor])
        sampler.start()
        until_read(sensor, 3)
        with pytest.raises(RuntimeError, match="a bug in this sensor"):
            sampler.stop()

    def test_a_bug_in_the_first_reading_does_not_hang_the_start(self):
        sampler = Sampler([Scripted(1.0, crash_after=0)])
        sampler.start()
        with pytest.raises(RuntimeError, match="a bug in this sensor"):
            sampler.stop()

    def test_no_thread_is_left_behind(self):
        before = threading.active_count()
        with Sampler([Scripted(1.0)]):
            assert before + 1 == threading.active_count()
        assert before == threading.active_count()

    def test_its_own_cost_is_measured(self):
        sensor = Scripted(1.0, delay_s=0.002)
        with Sampler([sensor], interval_s=0.01) as sampler:
            until_read(sensor, 10)
            cost = sampler.stop().cost
        assert 0.002 <= cost.mean_s <= cost.max_s
        assert cost.samples >= 3
        # Sleeping costs no CPU.
        assert 0 <= cost.cpu_share < 0.5

    def test_what_was_missed_is_counted_and_not_made_up_for(self):
        slow = Scripted(1.0, delay_s=0.03)
        with Sampler([slow], interval_s=0.005) as sampler:
            until_read(slow, 5)
            recording = sampler.stop()
        assert recording.cost.late >= 2
        assert recording.cost.samples <= 2 + (recording.end_ns - recording.begin_ns) / 30e6

    def test_sensors_without_channels_are_never_read(self):
        class Empty(Scripted):
            @property
            def channels(self):
                return ()

            @channels.setter
            def channels(self, value):
                pass

        empty = Empty(1.0)
        with Sampler([empty]) as sampler:
            assert () == sampler.stop().series
        assert 0 == empty.calls

    @pytest.mark.parametrize("interval", [0.0, -1.0, 0.0001, math.nan, math.inf])
    def test_intervals_that_make_no_sense_are_refused(self, interval):
        with pytest.raises(UsageError, match="sampling interval"):
            Sampler([], interval_s=interval)

    def test_two_channels_of_one_name_are_refused(self):
        with pytest.raises(UsageError, match="two channels are called 'p'"):
            Sampler([Scripted(1.0), Scripted(2.0)])

    def test_stopping_what_was_not_started_is_refused(self):
        with pytest.raises(UsageError, match="not started"):
            Sampler([]).stop()


class TestEnergy:
    def test_constant_power(self):
        found = energy(series(range(11), [5.0] * 11), 2 * S, 8 * S)
        assert (30.0, 0.0, "trapezoid", 7) == (found.joules, found.uncertainty_j, found.method, found.readings)
        assert "module" == found.scope

    def test_straight_ramp_is_exact_between_readings_too(self):
        # Power t watts from 0.25 to 7.5 s: (7.5² - 0.25²) / 2.
        found = energy(series(range(11), range(11)), S // 4, 7.5 * S)
        assert pytest.approx((7.5**2 - 0.25**2) / 2) == found.joules

    def test_agrees_with_numpy_on_uneven_readings(self):
        random = np.random.default_rng(3)
        times = np.arange(200) * 0.3 + random.uniform(0, 0.2, 200)
        watts = 10 + 3 * np.sin(times)
        found = energy(series(times, watts, interval_s=0.3), round(times[3] * S), round(times[190] * S))
        assert pytest.approx(np.trapezoid(watts[3:191], times[3:191]), rel=1e-6) == found.joules

    def test_uncertainty_of_two_readings_by_hand(self):
        # One second from 2 W to 8 W: within ±3 J of the trapezoid, so 3 / √3.
        found = energy(series([0, 1], [2, 8]), 0, S)
        assert pytest.approx((5.0, 3 / math.sqrt(3))) == (found.joules, found.uncertainty_j)

    def test_faster_sampling_is_more_certain(self):
        def uncertainty(count):
            times = np.linspace(0, 10, count)
            return energy(series(times, 10 + 5 * np.sin(times), interval_s=10 / count), 0, 10 * S).uncertainty_j
        assert uncertainty(1000) < uncertainty(100) / 10 < uncertainty(20)

    def test_uncertainty_covers_the_error_of_random_power(self):
        # Power that jumps at random times: the standard uncertainty must be no smaller than the true error. (Jumps in step
        # with the sampling would not be independent of each other.)
        random = np.random.default_rng(5)
        errors, claims = [], []
        for _ in range(300):
            fine = np.repeat(random.uniform(2, 20, 60), random.integers(50, 150, 60))[:4000]  # in steps of 2.5 ms
            phase = int(random.integers(0, 40))
            times = np.arange(phase, 4000, 40)  # every 0.1 s
            begin, end = 400, 3600
            found = energy(series(times * 0.0025, fine[times], interval_s=0.1), round(begin * 2.5e6), round(end * 2.5e6))
            errors.append(found.joules - fine[begin:end].sum() * 0.0025)
            claims.append(found.uncertainty_j)
        assert np.sqrt(np.mean(np.square(errors))) <= 1.1 * np.sqrt(np.mean(np.square(claims)))
        assert np.sqrt(np.mean(np.square(errors))) > 0.2 * np.sqrt(np.mean(np.square(claims)))

    def test_resolution_and_averaging_of_the_sensor_add_to_it(self):
        times = range(11)
        stepped = energy(series(times, [5.0] * 11, resolution=0.04), 0, 10 * S)
        assert pytest.approx(0.04 / math.sqrt(12) * 10) == stepped.uncertainty_j
        plain = energy(series(times, range(11)), 0, 10 * S).uncertainty_j
        averaged = energy(series(times, range(11), averaging_s=1.0), 0, 10 * S).uncertainty_j
        assert pytest.approx(math.hypot(plain, 0.5 * 10 / math.sqrt(3))) == averaged

    def test_a_clock_that_is_off_adds_what_lies_around_the_edges(self):
        # 4 W until 5 s, 10 W from then on: half a second too late or early moves up to 3 J across the edge.
        watts = [4.0] * 50 + [10.0] * 50
        times = [k / 10 for k in range(100)]
        plain = energy(series(times, watts, interval_s=0.1), 5 * S, 8 * S)
        off = energy(series(times, watts, interval_s=0.1, alignment_s=0.5), 5 * S, 8 * S)
        assert (30.0, 30.0) == (pytest.approx(plain.joules), pytest.approx(off.joules))
        assert pytest.approx(math.hypot(plain.uncertainty_j, 0.5 * 6.0 / math.sqrt(3))) == off.uncertainty_j

    def test_a_counter_is_taken_as_a_counter(self):
        counter = series([0, 1, 2, 3, 4], [100, 110, 125, 150, 151], quantity="energy_j")
        exact = energy(counter, S, 3 * S)
        assert (40.0, 0.0, "counter") == (exact.joules, exact.uncertainty_j, exact.method)
        # From 110 + 15/2 to 125 + 25/2; each edge lies anywhere within its step.
        between = energy(counter, 1.5 * S, 2.5 * S)
        assert pytest.approx((20.0, math.sqrt((15**2 + 25**2) / 12))) == (between.joules, between.uncertainty_j)

    def test_a_counter_that_went_back_is_no_energy(self):
        found = energy(series([0, 1, 2], [100, 5, 6], quantity="energy_j"), 0, 2 * S)
        assert found.joules is None
        assert "went back" in found.reason

    def test_a_counter_must_have_been_read_before_and_after(self):
        found = energy(series([1, 2], [5, 6], quantity="energy_j"), S // 2, 2 * S)
        assert found.joules is None
        assert "before and after" in found.reason

    def test_a_stretch_shorter_than_the_sampling_is_unknown(self):
        found = energy(series(range(11), [5.0] * 11), round(2.2 * S), round(2.4 * S))
        assert found.joules is None
        assert "no reading within 0.2 s; the sensor is read every 1 s" == found.reason

    def test_a_long_hole_is_unknown_with_the_reason_of_the_gap(self):
        times = [*range(5), *range(15, 20)]
        holes = (Gap(begin_ns=5 * S, end_ns=15 * S, reason="the sensor is gone"),)
        found = energy(series(times, [5.0] * 10, gaps=holes), 0, 19 * S)
        assert found.joules is None
        assert "no reading for 11 s of 19 s: the sensor is gone" == found.reason

    def test_a_short_hole_only_widens_the_uncertainty(self):
        values = [4, 6, 4, 6, 4, 6, 4, 6, 4]
        whole = energy(series(range(9), values), 0, 8 * S)
        holed = energy(series([0, 1, 2, 6, 7, 8], [4, 6, 4, 4, 6, 4]), 0, 8 * S)
        assert holed.joules is not None
        assert holed.uncertainty_j > whole.uncertainty_j

    @pytest.mark.parametrize(("one", "begin", "end", "words"), [
        (series([], []), 0, S, "there is no reading"),
        (series([], [], gaps=(Gap(begin_ns=0, end_ns=1, reason="only root may read it"),)), 0, S, "only root"),
        (series([0, 1], [1, 1]), S, S, "no duration"),
        (series([0, 1], [1, 1], quantity="clock_hz", scope=None), 0, S, "no power")])
    def test_what_cannot_be_known_has_a_reason(self, one, begin, end, words):
        found = energy(one, begin, end)
        assert (None, None) == (found.joules, found.uncertainty_j)
        assert words in found.reason

    def test_gross_and_net_energy_of_one_inference(self):
        def known(joules, uncertainty, scope="module"):
            return Energy(joules=joules, uncertainty_j=uncertainty, scope=scope, method="trapezoid")
        # 100 J in 10 s for 500 inferences; idle 4 W: 40 J of the 100.
        found = per_inference(known(100.0, 3.0), 10.0, 500, known(20.0, 0.5), 5.0)
        assert (0.2, 0.12, 4.0) == pytest.approx((found.gross_j, found.net_j, found.idle_w))
        assert pytest.approx(3.0 / 500) == found.gross_uncertainty_j
        assert pytest.approx(math.hypot(3.0, 0.1 * 10) / 500) == found.net_uncertainty_j

    def test_without_idle_there_is_gross_alone(self):
        active = Energy(joules=10.0, uncertainty_j=1.0, scope="board", method="counter")
        found = per_inference(active, 1.0, 10)
        assert (1.0, None, "idle power was not measured") == (found.gross_j, found.net_j, found.reason)

    def test_idle_of_another_scope_is_not_subtracted(self):
        active = Energy(joules=10.0, uncertainty_j=1.0, scope="module", method="trapezoid")
        idle = Energy(joules=5.0, uncertainty_j=1.0, scope="wall", method="trapezoid")
        found = per_inference(active, 1.0, 10, idle, 1.0)
        assert (None, "idle was measured on another scope") == (found.net_j, found.reason)

    def test_unknown_energy_stays_unknown(self):
        active = Energy(joules=None, uncertainty_j=None, scope="module", method="none", reason="the sensor is gone")
        found = per_inference(active, 1.0, 10)
        assert (None, None, "the sensor is gone") == (found.gross_j, found.net_j, found.reason)


def lines(*text, arrivals=None, offset=lambda: 0):
    found = MeterLines("meter", offset)
    for index, line in enumerate(text):
        found.take(line, arrivals[index] if arrivals else 0)
    return found


class TestMeterLines:
    def test_a_monotonic_clock_is_taken_as_it_is(self):
        found = lines("# clock: monotonic", "# scope: board", "# meter: bench supply", "10.5,7.25", "11.5,7.5").result()
        assert ((10_500_000_000, 11_500_000_000), (7.25, 7.5)) == (found.series.t_ns, found.series.values)
        assert ("board", "bench supply", 0.0) == (found.series.channel.scope, found.meter, found.series.channel.alignment_s)
        assert 1.0 == found.series.interval_s

    def test_a_realtime_clock_is_shifted_and_its_drift_is_the_uncertainty(self):
        offsets = iter([1_000 * S, 1_000 * S + 4_000_000])
        found = lines("# clock: realtime", "1005.0,7", offset=lambda: next(offsets)).result()
        assert (5 * S - 2_000_000,) == found.series.t_ns
        assert pytest.approx(0.004) == found.series.channel.alignment_s

    def test_the_meters_own_clock_is_aligned_by_the_quickest_line(self):
        # Measured at 0, 1, 2 s of the meter, 50 s after our zero; delivered 80, 20 and 120 ms late.
        found = lines("0,5", "1,6", "2,7", arrivals=[50_080_000_000, 51_020_000_000, 52_120_000_000]).result()
        assert (50_020_000_000, 51_020_000_000, 52_020_000_000) == found.series.t_ns
        assert pytest.approx((0.06 + 0.1) / 2 / 2) == found.series.channel.alignment_s

    def test_one_line_alone_cannot_be_aligned(self):
        with pytest.raises(CannotMeasure, match="one reading, which cannot be set against this host's clock"):
            lines("0,5", arrivals=[10]).result()

    def test_lines_that_are_none_are_gaps_with_reasons(self):
        found = lines("# clock: monotonic", "1,5", "nonsense", "2,nan", "3,6", "4;5").result()
        assert (1.0, 3.0) == tuple(at / S for at in found.series.t_ns)
        assert ["expected 'seconds,watts', got 'nonsense'", "expected finite numbers, got '2,nan'",
                "expected 'seconds,watts', got '4;5'"] == [gap.reason for gap in found.series.gaps]

    def test_time_that_goes_backwards_is_refused(self):
        found = lines("# clock: monotonic", "5,1", "4,2", "6,3").result()
        assert (1.0, 3.0) == found.series.values
        assert "time went from 5 to 4 s" == found.series.gaps[0].reason

    @pytest.mark.parametrize("head", ["# clock: sundial", "# scope: planet"])
    def test_a_head_that_says_something_unknown_is_refused(self, head):
        with pytest.raises(InvalidInput, match=r"unknown (clock|scope)"):
            lines(head, "1,5").result()


class TestMeter:
    def test_a_fifo_is_read_meanwhile(self, tmp_path):
        path = tmp_path / "meter"
        os.mkfifo(path)
        meter = Meter(path)
        meter.start()
        with path.open("w") as writer:
            writer.write("# clock: monotonic\n# scope: wall\n")
            for step in range(5):
                writer.write(f"{time.perf_counter():.6f},{7 + step}\n")
                writer.flush()
                time.sleep(0.01)
        found = meter.stop()
        assert (7.0, 8.0, 9.0, 10.0, 11.0) == found.series.values
        assert "wall" == found.series.channel.scope

    def test_in_a_file_only_what_is_added_counts_but_its_head_holds(self, tmp_path):
        path = tmp_path / "log.csv"
        path.write_text("# clock: monotonic\n# scope: board\n1,99\n2,99\n")
        meter = Meter(path)
        meter.start()
        with path.open("a") as writer:
            writer.write("3,5\n4,6")  # the last line is not complete yet
        time.sleep(0.1)
        with path.open("a") as writer:
            writer.write(".5\n")
        found = meter.stop()
        assert (5.0, 6.5) == found.series.values
        assert "board" == found.series.channel.scope

    def test_a_meter_that_says_nothing_is_an_error_with_advice(self, tmp_path):
        path = tmp_path / "log.csv"
        path.write_text("")
        meter = Meter(path)
        meter.start()
        with pytest.raises(CannotMeasure, match="gave no reading: no line came") as caught:
            meter.stop()
        assert "start the meter's program first" in caught.value.hint

    @pytest.mark.parametrize("fifo", [False, True])
    def test_a_head_that_says_something_unknown_is_refused_before_anything_is_measured(self, tmp_path, fifo):
        path, head = tmp_path / "log.csv", "# clock: monotonic\n# scope: desk\n"
        if fifo:
            os.mkfifo(path)
            writer = os.open(path, os.O_RDWR)  # as the meter's program holds it open
            os.write(writer, head.encode())
        else:
            path.write_text(head)
        with pytest.raises(InvalidInput, match="unknown scope 'desk'"):
            Meter(path)

    def test_a_head_that_turns_out_unknown_later_costs_the_meter_alone(self, tmp_path):
        path = tmp_path / "log.csv"
        path.write_text("")
        with Observer(DEVICES["cpu"], tmp_path, meter=path) as observer, path.open("a") as writer:
            writer.write("# scope: desk\n1,5\n2,5\n")
        absent = {one.what: one.reason for one in observer.result().absent}
        assert absent["external meter"].endswith("unknown scope 'desk'")

    def test_a_meter_that_is_not_there_is_an_error(self, tmp_path):
        with pytest.raises(InvalidInput, match="cannot read the meter"):
            Meter(tmp_path / "nothing")

    def test_a_line_without_end_does_not_fill_the_memory(self, tmp_path):
        path = tmp_path / "log.csv"
        path.write_text("")
        meter = Meter(path)
        meter.start()
        with path.open("a") as writer:
            writer.write("7" * 5000)
        with pytest.raises(CannotMeasure, match="longer than 200 bytes"):
            meter.stop()


def record(board, root, **options):
    device = DEVICES[board.device]
    with Observer(device, trees.grow(root, board.files), runner=trees.Tools(board.tools), interval_s=0.01,
                  **options) as observer:
        time.sleep(0.05)
    return observer.result()


class TestObserver:
    @pytest.mark.parametrize("board", [one for one in trees.BOARDS if one.total_w is not None], ids=lambda one: one.name)
    def test_total_power_and_scope_of_every_board(self, board, tmp_path):
        found = record(board, tmp_path)
        total = found.power.channel(found.power.total)
        assert board.total_scope == total.channel.scope
        assert pytest.approx([board.total_w] * len(total.values)) == list(total.values)
        assert pytest.approx(board.total_w * 0.04) == energy(total, total.t_ns[0], total.t_ns[0] + 40_000_000).joules

    @pytest.mark.parametrize("board", trees.BOARDS, ids=lambda one: one.name)
    def test_what_was_recorded_survives_a_file(self, board, tmp_path):
        found = record(board, tmp_path)
        assert found == decode(Telemetry, to_builtins(found), "telemetry")

    @pytest.mark.parametrize("board", trees.BOARDS, ids=lambda one: one.name)
    def test_heat_and_clocks_of_every_board(self, board, tmp_path):
        found = record(board, tmp_path)
        heat = {one.channel.label: set(one.values) for one in found.thermal.series if one.values}
        assert {label: {value} for label, value in board.celsius.items()} == heat
        gpu = {one.channel.label: set(one.values) for one in found.clocks.series if one.channel.name.startswith("gpu/")}
        assert {label: {value} for label, value in board.gpu_clock_hz.items()} == gpu

    def test_a_server_counts_energy_per_package(self, tmp_path):
        board = trees.X86
        device = DEVICES[board.device]
        counter = tmp_path / "sys/class/powercap/intel-rapl:1/energy_uj"
        with Observer(device, trees.grow(tmp_path, board.files), interval_s=0.005) as observer:
            time.sleep(0.03)
            counter.write_text("9500000")
            time.sleep(0.03)
        found = observer.result()
        total = found.power.channel(found.power.total)
        assert ("energy_j", "package") == (total.channel.quantity, total.channel.scope)
        assert pytest.approx(2.5) == energy(total, total.t_ns[0], total.t_ns[-1]).joules

    def test_a_gpu_uses_its_energy_counter(self, tmp_path):
        fake = Fake()
        with Observer(DEVICES["l4"], tmp_path, nvml=fake, interval_s=0.005) as observer:
            fake.energy_mj += 3000
            time.sleep(0.02)
        found = observer.result()
        assert "nvml/0/energy" == found.power.total
        total = found.power.channel(found.power.total)
        assert pytest.approx(3.0) == energy(total, total.t_ns[0], total.t_ns[-1]).joules
        assert 0 == fake.started

    @pytest.mark.parametrize(("names", "used", "watched", "doubts"), [
        (("NVIDIA L4",), "0000:02:00.0", "nvml/0/energy", 0),  # one alone need not be asked for
        (("NVIDIA T4", "NVIDIA L4"), "0000:02:00.0", "nvml/0000:02:00.0/energy", 0), (("NVIDIA T4", "NVIDIA L4"), None, "nvml/0/energy", 1)])
    def test_of_several_gpus_the_one_that_cuda_uses_is_watched(self, names, used, watched, doubts, tmp_path, monkeypatch):
        monkeypatch.setattr("edgebench.telemetry.observe.used_gpu", lambda: used)
        with Observer(DEVICES["l4"], tmp_path, nvml=Fake(names=names), interval_s=0.01) as observer:
            pass
        found = observer.result()
        assert (watched, doubts) == (found.power.total, sum(one.what == WHICH_GPU for one in found.absent))

    def test_a_gpu_without_a_counter_integrates_its_power(self, tmp_path):
        with Observer(DEVICES["t4"], tmp_path, nvml=Fake(unsupported=("Energy",)), interval_s=0.01) as observer:
            pass
        found = observer.result()
        assert "nvml/0/power" == found.power.total
        assert ("nvml/0/energy", "NVML: Not Supported") in [(one.what, one.reason) for one in found.absent]

    def test_a_gpu_without_a_driver_leaves_power_unknown_with_the_reason(self, tmp_path):
        with Observer(DEVICES["t4"], tmp_path, nvml=Fake(driver=False), interval_s=0.01) as observer:
            pass
        found = observer.result()
        assert found.power.total is None
        assert "NVML does not start" in found.power.total_reason

    def test_an_external_meter_is_the_widest_scope(self, tmp_path):
        path = tmp_path / "meter.csv"
        path.write_text("# clock: monotonic\n")
        trees.grow(tmp_path, trees.ORIN_NANO_JP6.files)
        with Observer(DEVICES["jetson-orin-nano-8gb"], tmp_path, meter=path, interval_s=0.01) as observer, \
                path.open("a") as writer:
            for _ in range(4):
                writer.write(f"{time.perf_counter():.6f},11.5\n")
                writer.flush()
                time.sleep(0.01)
        found = observer.result()
        assert ("meter", "wall") == (found.power.total, found.power.channel("meter").channel.scope)
        assert found.power.channel("ina3221/VDD_IN") is not None

    def test_a_silent_meter_does_not_cost_the_other_sensors(self, tmp_path):
        path = tmp_path / "meter.csv"
        path.write_text("")
        trees.grow(tmp_path, trees.ORIN_NANO_JP6.files)
        with Observer(DEVICES["jetson-orin-nano-8gb"], tmp_path, meter=path, interval_s=0.01) as observer:
            pass
        found = observer.result()
        assert "ina3221/VDD_IN" == found.power.total
        assert "external meter" in [one.what for one in found.absent]

    def test_sensors_are_closed_after_an_error_too(self, tmp_path):
        fake = Fake()
        with pytest.raises(ZeroDivisionError), Observer(DEVICES["l4"], tmp_path, nvml=fake, interval_s=0.01):
            _ = 1 / 0
        assert 0 == fake.started

    @pytest.mark.parametrize("kind", ["jetson", "gpu", "board", "cpu"])
    def test_on_this_machine_everything_is_there_or_has_a_reason(self, kind):
        device = Device(id="x", title="x", backends=("onnxruntime",), source="none", kind=kind)
        with Observer(device, interval_s=0.02) as observer:
            time.sleep(0.05)
        found = observer.result()
        assert found.power.total is not None or found.power.total_reason
        assert all(one.reason for one in found.absent)
        assert found.cost.cpu_share < 0.5

    def test_on_an_empty_machine_everything_is_absent(self, tmp_path):
        with Observer(DEVICES["jetson-orin-nano-8gb"], tmp_path, interval_s=0.01) as observer:
            pass
        found = observer.result()
        assert PowerTrace(total_reason="no INA3221 or INA238 power sensor is shown under /sys") == found.power
        assert {"rail VDD_IN", "rail VDD_SOC", "temperatures", "CPU clock"} <= {one.what for one in found.absent}

    def test_nothing_is_there_before_it_was_recorded(self, tmp_path):
        with pytest.raises(CannotMeasure, match="nothing was recorded"):
            Observer(DEVICES["cpu"], tmp_path).result()
