"""Sensors of every board, read from trees of files: the same checks over all of them, and what goes wrong with each."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys

import pytest

from edgebench import catalog
from edgebench.errors import CannotMeasure, MissingDependency
from edgebench.telemetry import clocks, counters, nvml, pi, tegrastats
from edgebench.telemetry.commands import Outcome, run
from edgebench.telemetry.counters import Counters
from edgebench.telemetry.rails import PowerRails
from edgebench.telemetry.rapl import Rapl
from edgebench.telemetry.thermal import CoolingDevices, ThermalZones
from edgebench.telemetry.types import Channel, Series
from tests import trees
from tests.fake_nvml import Fake
from tests.trees import BOARDS, JETSONS, grow

DEVICES = catalog.devices()
EVERY = pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.name)
JETSON = pytest.mark.parametrize("board", JETSONS, ids=lambda board: board.name)


def by_label(sensor):
    return {channel.label: reading for channel, reading in zip(sensor.channels, sensor.read(), strict=True)}


def rails_of(board, root):
    return PowerRails(grow(root, board.files), DEVICES[board.device])


class TestRails:
    @JETSON
    def test_every_rail_is_found_by_its_label_and_read_in_watts(self, board, tmp_path):
        found = by_label(rails_of(board, tmp_path))
        assert pytest.approx(board.watts) == {label: found[label] for label in board.watts}

    @JETSON
    def test_nothing_but_rails_is_found(self, board, tmp_path):
        sensor = rails_of(board, tmp_path)
        assert set(board.watts) == {channel.label for channel in sensor.channels if channel.source != "sum of rails"}

    @JETSON
    def test_total_follows_the_rule_of_the_board(self, board, tmp_path):
        sensor = rails_of(board, tmp_path)
        place = [channel.name for channel in sensor.channels].index(sensor.total)
        assert pytest.approx(board.total_w) == sensor.read()[place]
        assert board.total_scope == sensor.channels[place].scope

    @JETSON
    def test_declared_rails_carry_scope_and_meaning(self, board, tmp_path):
        for channel in rails_of(board, tmp_path).channels:
            assert channel.scope in ("rail", "module", "board")
            assert channel.meaning

    def test_numbers_of_hwmon_do_not_matter(self, tmp_path):
        files = trees.ina3221("sys/class/hwmon/hwmon17", [("VDD_SOC", 5000, 100), ("VDD_IN", 5000, 900)])
        sensor = PowerRails(grow(tmp_path, files), DEVICES["jetson-orin-nano-8gb"])
        assert pytest.approx(4.5) == by_label(sensor)["VDD_IN"]

    def test_the_same_sensor_seen_by_class_and_by_driver_counts_once(self, tmp_path):
        grow(tmp_path, trees.ina3221("sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon3", [("VDD_IN", 5000, 900)]))
        (tmp_path / "sys/class/hwmon").mkdir(parents=True)
        (tmp_path / "sys/class/hwmon/hwmon3").symlink_to(tmp_path / "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon3")
        assert ["ina3221/VDD_IN"] == [channel.name for channel in PowerRails(tmp_path).channels]

    def test_without_a_device_file_there_is_no_total_and_the_reason_says_so(self, tmp_path):
        sensor = PowerRails(grow(tmp_path, trees.AGX_ORIN_JP6.files))
        assert (None, "no device file says how the rails add up") == (sensor.total, sensor.total_reason)

    def test_a_rail_that_the_total_needs_and_that_is_missing_leaves_no_total(self, tmp_path):
        # L4T 39.2 was seen without the INA238 of the carrier board.
        files = {name: value for name, value in trees.THOR_JP7.files.items() if "hwmon3" not in name}
        sensor = PowerRails(grow(tmp_path, files), DEVICES["jetson-agx-thor-t5000"])
        assert sensor.total is None
        assert "VIN" in sensor.total_reason
        assert ["rail VIN"] == [one.what for one in sensor.absent]

    def test_a_label_of_the_ina238_is_taken_where_there_is_one(self, tmp_path):
        files = trees.hwmon("sys/class/hwmon/hwmon0", "ina238", {"label": "VIN", "power1_input": 21_500_000})
        assert {"VIN": pytest.approx(21.5)} == by_label(PowerRails(grow(tmp_path, files)))

    def test_a_rail_without_a_current_is_absent_not_zero(self, tmp_path):
        files = trees.hwmon("sys/class/hwmon/hwmon0", "ina3221", {"in1_label": "VIN_SYS_5V0", "in1_input": 5016})
        sensor = PowerRails(grow(tmp_path, files))
        assert () == sensor.channels
        assert ["ina3221 shows no curr1_input"] == [one.reason for one in sensor.absent]

    @pytest.mark.parametrize(("content", "reason"), [("", "expected a number"), ("garbage", "expected a number"),
                                                     ("nan", "expected a number"), ("inf", "expected a number")])
    def test_garbage_is_a_reason_not_a_number(self, content, reason, tmp_path):
        sensor = rails_of(trees.ORIN_NANO_JP6, tmp_path)
        (tmp_path / "sys/class/hwmon/hwmon3/curr1_input").write_text(content)
        assert reason in by_label(sensor)["VDD_IN"]
        assert isinstance(by_label(sensor)["VDD_SOC"], float)

    def test_a_sensor_that_vanishes_is_a_reason(self, tmp_path):
        sensor = rails_of(trees.AGX_ORIN_JP6, tmp_path)
        (tmp_path / "sys/class/hwmon/hwmon3/curr2_input").unlink()
        found = by_label(sensor)
        assert "curr2_input: is not there" == found["VDD_CPU_CV"]
        assert "curr2_input: is not there" == found["VDD_GPU_SOC + VDD_CPU_CV + VIN_SYS_5V0"]

    @pytest.mark.parametrize(("number", "words"), [
        (errno.EACCES, "only root may read it"), (errno.ENODEV, "the sensor is gone"),
        (errno.EIO, "Input/output error"), (errno.EAGAIN, "switched off")])
    def test_every_failure_to_read_is_told_in_words(self, number, words, tmp_path, monkeypatch):
        sensor = rails_of(trees.ORIN_NANO_JP6, tmp_path)
        trees.forbid(monkeypatch, tmp_path / "sys/class/hwmon/hwmon3/in1_input", number)
        assert words in by_label(sensor)["VDD_IN"]

    def test_step_of_the_power_follows_from_the_shunt(self, tmp_path):
        # 40 µV over 5 mΩ are 8 mA; at 4.984 V that is 39.9 mW.
        (channel, *_) = rails_of(trees.ORIN_NANO_JP6, tmp_path).channels
        assert pytest.approx(0.008 * 4.984) == channel.resolution


class TestTemperatures:
    @EVERY
    def test_zones_are_read_in_celsius_and_those_that_are_off_are_not(self, board, tmp_path):
        found = by_label(ThermalZones(grow(tmp_path, board.files)))
        assert board.celsius == {label: value for label, value in found.items() if not isinstance(value, str)}
        assert set(board.off) == {label for label, value in found.items() if isinstance(value, str)}

    def test_critical_trip_points_are_kept(self, tmp_path):
        assert 114.5 == ThermalZones(grow(tmp_path, trees.THOR_JP7.files)).critical_c["zone/tj-thermal"]

    def test_processor_sensors_stand_in_where_no_zone_shows_the_package(self, tmp_path):
        files = trees.hwmon("sys/class/hwmon/hwmon1", "k10temp", {"temp1_input": 55125, "temp1_label": "Tctl"})
        assert {"Tctl": 55.125} == by_label(ThermalZones(grow(tmp_path, files)))

    def test_two_zones_of_one_type_have_two_names(self, tmp_path):
        sensor = ThermalZones(grow(tmp_path, trees.zones([("acpitz", 30000), ("acpitz", 31000)])))
        assert ["zone/acpitz", "zone/acpitz#2"] == [channel.name for channel in sensor.channels]

    @pytest.mark.parametrize(("board", "found"), [
        (trees.ORIN_NANO_JP6, {"gpu-throttle-alert": 0.0, "devfreq-17000000.gpu": 0.0}), (trees.THOR_JP7, {"gpu-throttle-alert": 0.0}),
        (trees.NANO, {"cpu-balanced": 0.0, "gpu-balanced": 3.0}), (trees.PI, {})], ids=lambda one: getattr(one, "name", None))
    def test_cooling_devices_that_slow_something_down_are_read_and_fans_are_not(self, board, found, tmp_path):
        assert found == by_label(CoolingDevices(grow(tmp_path, board.files)))

    def test_two_cooling_devices_of_one_type_have_two_names(self, tmp_path):
        types = {f"sys/class/thermal/cooling_device{k}/type": "cpufreq-cpu0" for k in (2, 5)}
        assert ["cooling/cpufreq-cpu0", "cooling/cpufreq-cpu0#5"] == [
            channel.name for channel in CoolingDevices(grow(tmp_path, types)).channels]


class TestClocks:
    @EVERY
    def test_gpu_clock_is_found_under_every_name(self, board, tmp_path):
        found = by_label(clocks.Clocks(grow(tmp_path, board.files)))
        assert board.gpu_clock_hz == {label: value for label, value in found.items() if not label.startswith("policy")}

    def test_cpu_clock_and_governor(self, tmp_path):
        sensor = clocks.Clocks(grow(tmp_path, trees.PI.files))
        assert {"policy0": 2.4e9} == by_label(sensor)
        assert {"cpu/policy0": "ondemand"} == sensor.governors

    def test_clocks_with_one_frequency_to_choose_are_pinned(self, tmp_path):
        root = grow(tmp_path, trees.ORIN_NANO_JP6.files)
        assert {"gpu": False, "cpu": False} == clocks.pinned(root)
        grow(root, {"sys/class/devfreq/17000000.gpu/min_freq": "918000000",
                    "sys/devices/system/cpu/cpufreq/policy0/scaling_min_freq": "1510400"})
        assert {"gpu": True, "cpu": False} == clocks.pinned(root), "one cluster of two"
        (root / "sys/class/devfreq/17000000.gpu/min_freq").unlink()
        assert {"cpu": False} == clocks.pinned(root)

    def test_governors_by_kind(self, tmp_path):
        root = grow(tmp_path, {**trees.ORIN_NANO_JP6.files, **trees.cpufreq(4, 729600, "performance")})
        assert ("nvhost_podgov", "schedutil, performance") == (clocks.governor(root, "gpu"), clocks.governor(root, "cpu"))
        assert clocks.governor(root / "none", "gpu") is None

    def test_a_limit_that_falls_below_its_value_at_the_start_is_told_in_hertz(self, tmp_path):
        sensor = clocks.ClockLimits(grow(tmp_path, trees.ORIN_NANO_JP6.files))
        names = ["limit/gpu/17000000.gpu", "limit/cpu/policy0", "limit/cpu/policy4"]
        assert (names, (0.0, 0.0, 0.0)) == ([channel.name for channel in sensor.channels], sensor.read())
        grow(tmp_path, {"sys/class/devfreq/17000000.gpu/max_freq": "612000000",
                        "sys/devices/system/cpu/cpufreq/policy4/scaling_max_freq": "1728000"})
        assert (306e6, 0.0, 0.0) == sensor.read(), "one that rose limits nothing"
        (tmp_path / "sys/class/devfreq/17000000.gpu/max_freq").unlink()
        assert "max_freq: is not there" == sensor.read()[0]

    def test_policies_that_are_linked_into_each_cpu_count_once(self, tmp_path):
        place = tmp_path / "sys/devices/system/cpu"
        grow(tmp_path, {"sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "1000"})
        (place / "cpu1").mkdir()
        (place / "cpu1/cpufreq").symlink_to(place / "cpu0/cpufreq")
        assert ["cpu0"] == list(clocks.policies(tmp_path))

    def test_time_at_each_frequency_is_a_difference(self):
        before = {"policy0": {115200: 5000, 729600: 2000, 1510400: 300}}
        after = {"policy0": {115200: 5000, 729600: 2100, 1510400: 600}}
        (found,) = clocks.residency(before, after)
        assert {"729600": 0.25, "1510400": 0.75} == found.shares
        assert 0.75 == found.top_share
        assert pytest.approx((729600 * 0.25 + 1510400 * 0.75) * 1e3) == found.mean_hz

    def test_a_cluster_that_was_switched_off_in_between_is_left_out(self):
        assert () == clocks.residency({"policy4": {729600: 100}}, {"policy4": {729600: 3}})


class TestCounters:
    def test_all_counters_of_a_jetson(self, tmp_path):
        found = counters.look(grow(tmp_path, trees.ORIN_NANO_JP6.files))
        assert {"oc1": 0, "oc2": 3, "oc3": 41} == found.over_current
        assert {115200: 5000, 729600: 2000, 1510400: 300} == found.cpu_ticks["policy4"]

    def test_all_counters_of_a_server(self, tmp_path):
        found = counters.look(grow(tmp_path, trees.X86.files))
        assert {"core 0": 4, "package 0": 12, "core 1": 0} == found.cpu_thermal
        assert 5 == found.quota_stops

    def test_limits_of_cgroup_version_1(self, tmp_path):
        grow(tmp_path, {"sys/fs/cgroup/cpu/cpu.stat": "nr_periods 10\nnr_throttled 7\nthrottled_time 99"})
        found = counters.look(tmp_path)
        assert (7, 10) == (found.quota_stops, found.quota_periods)

    @pytest.mark.parametrize(("alarm", "code", "invalidates"), [
        ("oc1", "under-voltage", True), ("oc2", "over-current-average", True),
        ("oc3", "over-current-instantaneous", False)])
    def test_over_current_events_are_differences_and_only_the_third_kind_is_harmless(self, alarm, code, invalidates):
        (event,) = counters.events(Counters(over_current={alarm: 41}), Counters(over_current={alarm: 44}), 6.0)
        assert (code, invalidates, 3, 0.5) == (event.code, event.invalidates, event.count, event.rate_hz)

    def test_counters_that_stand_still_tell_nothing(self):
        same = Counters(over_current={"oc2": 3}, cpu_thermal={"core 0": 9}, quota_stops=4, quota_periods=90, pi_flags=0x50000)
        assert () == counters.events(same, same, 1.0)

    def test_a_counter_that_was_reset_counts_from_zero(self):
        (event,) = counters.events(Counters(cpu_thermal={"core 0": 90}), Counters(cpu_thermal={"core 0": 2}), 1.0)
        assert 2 == event.count

    @pytest.mark.parametrize(("periods", "invalidates"), [(400, False), (399, True), (4, True)])
    def test_quota_of_a_container_invalidates_above_one_period_in_a_hundred(self, periods, invalidates):
        (event,) = counters.events(Counters(quota_stops=5, quota_periods=10), Counters(quota_stops=9, quota_periods=10 + periods), 1.0)
        assert ("cpu-quota", 4, invalidates) == (event.code, event.count, event.invalidates)
        assert f"in 4 of {periods} periods" in event.message

    def test_flags_of_the_raspberry_pi_tell_of_this_run_alone(self):
        # 0x50000: under-voltage and throttled have happened since boot, before the run began.
        assert () == counters.events(Counters(pi_flags=0x50000), Counters(pi_flags=0x50000), 1.0)
        (event,) = counters.events(Counters(pi_flags=0x50000), Counters(pi_flags=0xD0000), 1.0)
        assert "soft-temperature-limit" == event.code
        active = counters.events(Counters(pi_flags=0x0), Counters(pi_flags=0x50005), 1.0)
        assert ["throttled", "under-voltage"] == [one.code for one in active]

    def sampled(self, name, values, window=None):
        """What some readings, one per 100 ns, tell of a stretch; of all of them by default."""
        quantity = "flags" if name.startswith(("nvml/", "pi/")) else "level"
        channel = Channel(name=name, label=name.rpartition("/")[2], quantity=quantity, source="test")
        series = Series(channel=channel, interval_s=1e-7, t_ns=tuple(range(0, 100 * len(values), 100)), values=tuple(map(float, values)))
        return counters.series_events([series], {"single-stream": window or (0, 100 * len(values))})

    @pytest.mark.parametrize(("name", "values", "code", "count"), [
        ("nvml/0/throttle-reasons", (1, 0, 0x41, 0x40), "gpu-hardware-thermal-slowdown", 2),
        ("nvml/0/throttle-reasons", (0, 0x80), "gpu-power-brake-from-outside", 1),
        ("cooling/gpu-throttle-alert", (0, 1, 0), "cooling-alert", 1), ("limit/cpu/policy0", (0, 0, 4e8, 4e8), "clock-limit", 2),
        ("pi/throttled", (0x0, 0x2, 0x20000), "frequency-capped", 1)])
    def test_reasons_that_were_sampled(self, name, values, code, count):
        (event,) = self.sampled(name, values)
        assert (code, count, True) == (event.code, event.count, event.invalidates)
        assert event.message.endswith(f"in {count} of {len(values)} readings of single-stream")

    @pytest.mark.parametrize("name", ["nvml/0/throttle-reasons", "pi/throttled"])
    def test_what_slows_nothing_down_and_what_was_before_tells_nothing(self, name):
        assert () == self.sampled(name, (0x100, 0x10000, 0x50000) if name.startswith("pi") else (1, 2, 0x10, 0x100))
        assert () == self.sampled(name, (8, 8, 8, 0, 0, 0, 0, 8), window=(300, 600)), "outside the stretch"

    @pytest.mark.parametrize(("capped", "count", "invalidates"), [
        ([0] * 40, 0, None), ([4] * 40, 40, False),
        # A card that is held at its limit shows the cap on and off all the time.
        ([4, 0, 4, 4] * 10, 30, False), ([0, 0, 0, 4] * 10, 10, False),
        ([0] * 20 + [4] * 20, 20, True), ([4] * 5 + [0] * 35, 5, True),
        ([0, 0, 4, 0], 1, False), ([0] * 39 + [4], 1, False), ([0] * 20 + [4, 4] + [0] * 18, 2, False), ([0] * 20 + [4, 4, 4] + [0] * 17, 3, True)])
    def test_a_power_cap_is_a_condition_unless_it_is_there_in_a_part_of_the_time(self, capped, count, invalidates):
        found = self.sampled("nvml/0/throttle-reasons", capped)
        assert [("gpu-power-cap", count, invalidates)] * (count > 0) == [(one.code, one.count, one.invalidates) for one in found]

    def test_each_scenario_is_judged_by_its_own_readings(self):
        channel = Channel(name="nvml/0/throttle-reasons", label="x", quantity="flags", source="test")
        series = Series(channel=channel, interval_s=1e-7, t_ns=tuple(range(8)), values=(0.0,) * 4 + (4.0,) * 4)
        found = counters.series_events([series], {"single-stream": (0, 3), "offline": (4, 7)})
        assert [("NVML: power cap in 4 of 4 readings of offline", False)] == [(one.message, one.invalidates) for one in found]


class TestRapl:
    def test_zones_with_scope_and_the_sum_of_packages(self, tmp_path):
        sensor = Rapl(grow(tmp_path, trees.X86.files))
        assert [("rapl/package-0", "package"), ("rapl/package-0/dram", "rail"), ("rapl/package-1", "package"),
                ("rapl/package-1/dram", "rail"), ("rapl/packages", "package")] == [
            (channel.name, channel.scope) for channel in sensor.channels]
        assert "rapl/packages" == sensor.total

    def test_counter_that_wraps_around_goes_on(self, tmp_path):
        sensor = Rapl(grow(tmp_path, trees.X86.files))
        assert 0.0 == by_name(sensor)["rapl/package-0"]
        (tmp_path / "sys/class/powercap/intel-rapl:0/energy_uj").write_text("2000000")
        # 1 J up to the end of the range, 2 J after it.
        assert pytest.approx(3.0) == by_name(sensor)["rapl/package-0"]
        (tmp_path / "sys/class/powercap/intel-rapl:0/energy_uj").write_text("2500000")
        assert pytest.approx(3.5) == by_name(sensor)["rapl/package-0"]
        assert pytest.approx(3.5) == by_name(sensor)["rapl/packages"]

    def test_a_pause_in_which_it_may_have_wrapped_twice_ends_it(self, tmp_path):
        times = iter([0, 1_000_000_000, 400_000_000_000, 401_000_000_000])
        files = trees.rapl("intel-rapl:0", "package-0", 10)
        sensor = Rapl(grow(tmp_path, files), clock=lambda: next(times))
        assert isinstance(sensor.read()[0], float)
        assert isinstance(sensor.read()[0], float)
        assert "wrapped more than once" in sensor.read()[0]
        assert "wrapped more than once" in sensor.read()[0]

    def test_that_only_root_may_read_it_is_said_with_what_to_do(self, tmp_path, monkeypatch):
        grow(tmp_path, trees.rapl("intel-rapl:0", "package-0", 10))
        trees.forbid(monkeypatch, tmp_path / "sys/class/powercap/intel-rapl:0/energy_uj")
        sensor = Rapl(tmp_path)
        assert () == sensor.channels
        assert "only root may read it; as root: chmod o+r" in sensor.absent[0].reason
        assert sensor.total is None

    def test_values_outside_the_range_are_garbage(self, tmp_path):
        grow(tmp_path, trees.rapl("intel-rapl:0", "package-0", 10))
        sensor = Rapl(tmp_path)
        (tmp_path / "sys/class/powercap/intel-rapl:0/energy_uj").write_text(str(trees.RAPL_MAX + 1))
        assert "expected 0 to" in sensor.read()[0]

    def test_the_second_door_to_the_same_counters_is_left_alone(self, tmp_path):
        grow(tmp_path, {**trees.rapl("intel-rapl:0", "package-0", 10), **trees.rapl("intel-rapl-mmio:0", "package-0", 10)})
        assert ["rapl/package-0"] == [channel.name for channel in Rapl(tmp_path).channels]


def by_name(sensor):
    return {channel.name: reading for channel, reading in zip(sensor.channels, sensor.read(), strict=True)}


class TestNvml:
    def test_fields_in_si_units(self):
        gpu = nvml.NvmlGpu(0, Fake())
        assert {"nvml/0/energy": 1234.567, "nvml/0/power": 65.432, "nvml/0/sm-clock": 1.98e9,
                "nvml/0/memory-clock": 2.619e9, "nvml/0/temperature": 41.0, "nvml/0/throttle-reasons": 4.0} == pytest.approx(
            by_name(gpu))
        assert {"board"} == {channel.scope for channel in gpu.channels if channel.quantity in ("power_w", "energy_j")}
        gpu.close()

    def test_power_is_said_to_be_an_average_where_it_is_one(self):
        averaging = {name: next(channel.averaging_s for channel in nvml.NvmlGpu(0, Fake(capability=cc)).channels
                                if channel.quantity == "power_w")
                     for name, cc in {"T4": (7, 5), "A100": (8, 0), "A10": (8, 6), "H100": (9, 0)}.items()}
        assert {"T4": None, "A100": None, "A10": 1.0, "H100": 1.0} == averaging

    def test_a_jetson_that_supports_nothing_leaves_reasons_and_no_zero(self):
        gpu = nvml.NvmlGpu(0, Fake(unsupported=("Energy", "Power", "Clock", "Temperature", "Reasons")))
        assert () == gpu.channels
        assert {"NVML: Not Supported"} == {one.reason for one in gpu.absent}
        assert 6 == len(gpu.absent)

    def test_a_gpu_that_falls_off_the_bus_midway_is_a_reason(self):
        fake = Fake()
        gpu = nvml.NvmlGpu(0, fake)
        fake.lost = True
        assert {"NVML: GPU is lost"} == set(gpu.read())

    def test_without_a_driver_nothing_is_measured(self):
        with pytest.raises(CannotMeasure, match="NVML does not start: Shared Library Not Found"):
            nvml.NvmlGpu(0, Fake(driver=False))

    def test_a_gpu_that_does_not_exist_shuts_nvml_down_again(self):
        fake = Fake()
        with pytest.raises(CannotMeasure, match="NVML has no GPU 3"):
            nvml.NvmlGpu(3, fake)
        assert 0 == fake.started

    def test_names_of_all_gpus(self):
        fake = Fake(names=("NVIDIA L4", "NVIDIA A10"))
        assert ("NVIDIA L4", "NVIDIA A10") == nvml.gpu_names(fake)
        assert 0 == fake.started

    def test_a_gpu_is_found_by_its_pci_address(self):
        gpu = nvml.NvmlGpu("0000:02:00.0", Fake(names=("NVIDIA L4", "NVIDIA A10")))
        assert ("NVIDIA A10", "nvml/0000:02:00.0/energy") == (gpu.name, gpu.channels[0].name)

    def driver(self, folder, body):
        """A library with the three functions of CUDA's driver that are asked."""
        source, library = folder / "cuda.c", folder / "libcuda.so"
        source.write_text("#include <string.h>\nint cuInit(unsigned f) {return 0;}\nint cuDeviceGet(int *d, int k) {*d = 7 + k; return 0;}\n"
                          f"int cuDeviceGetPCIBusId(char *p, int n, int d) {{{body}}}\n")
        subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True)
        return str(library)

    @pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
    @pytest.mark.parametrize(("body", "found"), [
        ('strncpy(p, d == 7 && n > 12 ? "0000:65:00.0" : "wrong", n); return 0;', "0000:65:00.0"), ("return 101;", None)])
    def test_the_gpu_in_use_is_asked_of_cuda(self, body, found, tmp_path):
        assert found == nvml.used_gpu(self.driver(tmp_path, body))

    def test_without_cudas_driver_the_gpu_in_use_is_unknown(self):
        assert nvml.used_gpu("libno-such-driver.so.1") is None

    def test_bits_of_the_reasons(self):
        assert ("idle", "power cap", "unknown bit 20") == nvml.throttle_reasons(0x100005)

    def test_the_real_library_agrees_on_the_bits_and_the_functions(self):
        pynvml = pytest.importorskip("pynvml")
        assert pynvml.nvmlClocksEventReasonHwThermalSlowdown == 0x40
        assert pynvml.nvmlClocksEventReasonSwThermalSlowdown == 0x20
        assert pynvml.nvmlClocksEventReasonSwPowerCap == 0x4
        assert pynvml.nvmlClocksEventReasonHwPowerBrakeSlowdown == 0x80
        assert pynvml.nvmlClocksEventReasonHwSlowdown == 0x8
        for name in dir(Fake):
            if name.startswith("nvml"):
                assert callable(getattr(pynvml, name))

    def test_here_it_works_or_says_why_not(self):
        failure = None
        try:
            nvml.NvmlGpu().close()
        except (CannotMeasure, MissingDependency) as error:
            failure = error
        assert failure is None or failure.hint


class TestRaspberryPi:
    def test_rails_pair_by_name_and_the_board_is_an_estimate(self):
        tools = trees.Tools(trees.PI.tools)
        found = by_label(pi.PiPower(tools))
        assert pytest.approx(trees.PI.watts) == {label: found[label] for label in trees.PI.watts}
        assert pytest.approx(trees.PI.total_w) == found["board, estimated"]
        assert "EXT5V" not in found
        (estimate,) = [channel for channel in pi.PiPower(tools).channels if channel.scope == "board"]
        assert estimate.estimate

    def test_without_the_tool_the_reason_is_told(self):
        sensor = pi.PiPower(trees.Tools())
        assert () == sensor.channels
        assert "vcgencmd is not installed" == sensor.absent[0].reason

    def test_without_rights_the_reason_says_what_to_do(self):
        broken = Outcome(code=255, output="VCHI initialization failed: can't open /dev/vcio")
        sensor = pi.PiPower(trees.Tools({("vcgencmd",): broken}))
        assert "add the user to the group video" in sensor.absent[0].reason

    def test_a_board_without_the_chip_has_no_power(self):
        tools = trees.Tools({("vcgencmd", "pmic_read_adc"): "error=1 error_msg=\"Command not registered\"",
                             ("vcgencmd", "get_throttled"): "throttled=0x50005"})
        sensor = pi.PiPower(tools)
        assert {"get_throttled": float(0x50005)} == by_label(sensor)
        assert "no rail" in sensor.absent[0].reason

    def test_a_rail_that_vanishes_leaves_no_estimate(self):
        tools = trees.Tools(trees.PI.tools)
        sensor = pi.PiPower(tools)
        tools.answers["vcgencmd", "pmic_read_adc"] = trees.PMIC.replace("VDD_CORE_A", "VDD_CORE_B")
        found = by_label(sensor)
        assert isinstance(found["VDD_CORE"], str)
        assert isinstance(found["board, estimated"], str)
        assert isinstance(found["HDMI"], float)

    @pytest.mark.parametrize(("mask", "now", "since"), [
        (0x0, (), ()), (0x1, ("under-voltage",), ()), (0x50000, (), ("under-voltage", "throttled")),
        (0xE0008, ("soft-temperature-limit",), ("frequency-capped", "throttled", "soft-temperature-limit"))])
    def test_bits_of_get_throttled(self, mask, now, since):
        assert mask == pi.parse_throttled(f"throttled=0x{mask:x}\n")
        assert (now, since) == (pi.throttled_now(mask), pi.throttled_since_boot(mask))

    def test_output_that_is_none_gives_no_mask(self):
        assert pi.parse_throttled("error=1") is None


class TestTegrastats:
    @pytest.mark.parametrize(("name", "watts", "utilization", "clocks_hz"), [
        ("jetpack4-nano", {"POM_5V_IN": 1.75, "POM_5V_GPU": 0.0, "POM_5V_CPU": 0.366}, 0.0, (76e6,)),
        ("jetpack5-xavier-nx", {"VDD_IN": 2.763, "VDD_CPU_GPU_CV": 0.65, "VDD_SOC": 0.65}, 0.0, (114e6,)),
        ("jetpack6-orin-nano", {"VDD_IN": 16.321, "VDD_CPU_GPU_CV": 7.104, "VDD_SOC": 3.12}, 0.99, (612e6,)),
        ("jetpack6-agx-orin", {"VDD_GPU_SOC": 2.34, "VDD_CPU_CV": 0.39, "VIN_SYS_5V0": 4.025, "VDDQ_VDD2_1V8AO": 0.301},
         0.0, (0.0, 0.0)),
        ("jetpack7-thor", {"VDD_GPU": 1.962, "VDD_CPU_SOC_MSS": 5.887, "VIN_SYS_5V0": 5.635, "VIN": 19.78}, None,
         (314e6, 314e6, 314e6)),
        ("jetpack7.2-thor", {"VDD_GPU": 37.939, "VDD_CPU_SOC_MSS": 30.059, "VIN_SYS_5V0": 15.486, "VIN": 124.486}, 0.87,
         (1574e6, 1574e6, 1574e6))])
    def test_lines_of_every_release(self, name, watts, utilization, clocks_hz):
        found = tegrastats.parse(trees.TEGRASTATS[name])
        assert (watts, utilization, clocks_hz) == (found.power_w, found.gpu_utilization, found.gpu_clocks_hz)
        assert trees.TEGRASTATS[name] == found.raw

    def test_zones_that_are_off_are_left_out_and_names_are_lower_case(self):
        found = tegrastats.parse(trees.TEGRASTATS["jetpack6-agx-orin"])
        assert {"cpu": 44.562, "tboard": 32.0, "tj": 44.343} == found.temperature_c

    def test_momentary_temperature_counts_where_there_are_two(self):
        assert 58.25 == tegrastats.parse(trees.TEGRASTATS["jetpack7.2-thor"]).temperature_c["cpu"]

    def test_memory_cores_and_their_clocks(self):
        found = tegrastats.parse(trees.TEGRASTATS["jetpack5-xavier-nx"])
        assert (3168 * 2**20, 6851 * 2**20) == (found.memory_used_bytes, found.memory_total_bytes)
        assert (0.23, 0.17, 0.16, 0.13, None, None) == found.cpu_utilization
        assert (1397e6, 1192e6, 1190e6, 1190e6, None, None) == found.cpu_clocks_hz
        assert 204e6 == found.memory_clock_hz

    @pytest.mark.parametrize("line", ["", "garbage", "RAM x/yMB CPU [] GR3D_FREQ", "VDD_IN mW/mW"])
    def test_lines_that_say_nothing_are_kept_raw(self, line):
        found = tegrastats.parse(line)
        assert (line, {}, {}, None) == (found.raw, found.power_w, found.temperature_c, found.gpu_utilization)


class TestCommands:
    def test_output_and_status(self):
        assert Outcome(code=3, output="out\nerr\n") == run(["sh", "-c", "echo out; echo err >&2; exit 3"])

    def test_a_question_is_answered_with_the_end_of_input(self):
        assert "got nothing\n" == run(["sh", "-c", "read answer || echo got nothing"]).output

    def test_ctrl_c_on_the_terminal_does_not_reach_it(self):
        """A second one would stop the restoring of clocks: it goes to the terminal's process group."""
        asked = "import os; print(os.getpgrp(), os.getsid(0))"
        group, session = map(int, run([sys.executable, "-S", "-c", asked]).output.split())
        assert (group, session) != (os.getpgrp(), os.getsid(0))
        assert group == session

    def test_a_command_that_does_not_exist(self):
        assert 127 == run(["no-such-command-anywhere"]).code

    def test_a_command_that_does_not_end(self, monkeypatch):
        monkeypatch.setattr("edgebench.telemetry.commands.TIMEOUT_S", 0.2)
        assert 124 == run(["sleep", "5"]).code
