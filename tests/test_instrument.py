"""One variant under the clock, from a plan to traces and scores: scripted inferences, machines as small trees of files."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from edgebench import catalog, instrument, latency, scenarios
from edgebench.errors import MissingDependency, UsageError
from edgebench.observed import MemoryTaken
from edgebench.telemetry.observe import WHICH_GPU
from edgebench.telemetry.types import Absent, EnergyPerInference, ThrottleEvent
from edgebench.timing_types import DeviceTrace, TimingPlan
from tests import builders, trees
from tests import observations as ob

TINY = replace(latency.budget("smoke"), min_count=12, min_batches=3)
CPU = catalog.device("cpu")


class Answers(Mapping[str, Callable[[], object]]):
    """What answers a query of each scenario; counts the queries, and does more than that where it is told to."""

    def __init__(self, also: Callable[[str], object] = lambda scenario: None) -> None:
        self.asked: Counter[str] = Counter()
        self._also = also

    def __getitem__(self, scenario: str) -> Callable[[], object]:
        def infer() -> None:
            self.asked[scenario] += 1
            self._also(scenario)
            time.sleep(1e-4)

        return infer

    def __iter__(self):
        return iter(instrument.SCENARIOS)

    def __len__(self) -> int:
        return len(instrument.SCENARIOS)


def measure(plan: TimingPlan, answers: Answers, root: Path, budget=TINY, **more) -> instrument.Measured:
    return instrument.measure(plan, answers, budget, CPU, lambda what, share: None, root=root,
                              **{"batch": 5, "single": 1, "threads": 2, **more})


def quiet(*scenarios: str, **more) -> TimingPlan:
    return TimingPlan(scenarios=scenarios, telemetry=False, **more)


class TestScenarios:
    def test_each_is_asked_its_own_queries_and_comes_out_in_its_own_form(self, tmp_path):
        answers = Answers()
        found = measure(quiet("single-stream", "multi-stream", "offline", "camera", fps=500.0), answers, tmp_path)
        assert [("single-stream", 1), ("offline", 5)] == [(one.scenario, one.batch) for one in found.traces]
        assert [("multi-stream", 8), ("camera", 1)] == [(one.scenario, one.images_per_query) for one in found.observed.queries]
        # A warm-up query beside those that are timed.
        assert (13, 13, 4) == (answers.asked["single-stream"], answers.asked["multi-stream"], answers.asked["offline"])
        assert {"single-stream", "multi-stream", "offline", "camera"} == {one.scenario for one in found.observed.steadiness}
        assert {2} == {one.threads for one in (*found.traces, *found.observed.queries)}

    def test_a_batch_that_the_model_fixes_is_told(self, tmp_path):
        found = measure(quiet("single-stream", "camera", fps=500.0), Answers(), tmp_path, single=4)
        assert (4, 4) == (found.traces[0].batch, found.observed.queries[0].images_per_query)

    def test_too_few_queries_for_a_server_bound_are_told_without_any_trial(self, tmp_path):
        found = measure(quiet("single-stream", "server"), answers := Answers(), tmp_path, replace(TINY, server_queries=100)).observed
        assert ((), None, ()) == (found.queries, found.server.rate_hz, found.server.trials)
        assert "100 queries cannot show any bound on the 99th percentile: it takes 459" == found.server.reason
        assert 0 == answers.asked["server"]

    def test_a_server_finds_a_rate_and_measures_at_it(self, tmp_path):
        found = measure(quiet("server", latency_bound_s=5.0), Answers(), tmp_path, replace(TINY, server_queries=459)).observed
        trace, = found.queries
        assert found.server.rate_hz == trace.rate_hz > 0
        assert (459, 5.0) == (len(trace.end_s), trace.limit_s)
        assert len(found.server.trials) == trace.seed, "other arrivals than any trial's"

    def test_the_bound_is_ten_times_the_median_where_none_is_given(self, tmp_path):
        found = measure(quiet("single-stream", "server"), Answers(), tmp_path, replace(TINY, server_queries=100))
        ordered = sorted(found.traces[0].latency_s)
        assert 10 * ordered[len(ordered) // 2] == found.observed.server.bound_s

    def test_the_search_for_a_rate_ends_with_its_budget(self, tmp_path):
        budget = replace(TINY, server_queries=459, search_max_s=0.05)
        found = measure(quiet("server", latency_bound_s=5.0), Answers(), tmp_path, budget).observed.server
        assert (True, True) == (found.cut, len(found.trials) <= 2)
        assert found.reason.startswith("the 0.05 s that the budget gives to the search ran out")

    def test_a_trial_may_last_as_long_as_the_search(self, tmp_path, monkeypatch):
        limits, server = [], scenarios.server

        def watched(infer, rate_hz, bound_s, budget, **more):
            limits.append(budget.max_s)
            return server(infer, rate_hz, bound_s, budget, **more)

        monkeypatch.setattr(scenarios, "server", watched)
        budget = replace(TINY, server_queries=459, max_s=20.0, search_max_s=600.0)
        measure(quiet("server", latency_bound_s=5.0), Answers(), tmp_path, budget)
        *trials, at_the_rate = limits
        assert (True, 20.0) == (min(trials) > 500.0, at_the_rate), "500 queries at 10 per second take 50 s"

    def test_a_sustained_run_follows_and_leaves_its_raw_timings(self, tmp_path):
        found = measure(quiet("single-stream", sustained_s=0.1), answers := Answers(), tmp_path)
        assert answers.asked["single-stream"] == 13 + found.sustained.duration_ns.size
        assert found.sustained.start_ns[0] == found.observed.sustained.begin_ns
        assert found.sustained.duration_ns.size == sum(one.inferences for one in found.observed.sustained.minutes)

    def test_without_a_sustained_run_there_are_none(self, tmp_path):
        found = measure(quiet("single-stream"), Answers(), tmp_path)
        assert (None, None) == (found.sustained, found.observed.sustained)


class TestThrottling:
    def test_a_counter_that_grows_meanwhile_invalidates_the_timings(self, tmp_path):
        count = tmp_path / "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count"
        count.parent.mkdir(parents=True)
        count.write_text("7\n")
        found = measure(quiet("single-stream"), Answers(lambda scenario: count.write_text("9\n")), tmp_path).observed
        event, = found.invalid
        assert ("cpu-thermal", 2) == (event.code, event.count)
        assert ["throttled"] == [one.code for one in instrument.caveats(found, 0.95) if one.code == "throttled"]

    def test_what_a_sustained_load_brings_about_leaves_the_scenarios_valid(self, tmp_path):
        count = tmp_path / "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count"
        count.parent.mkdir(parents=True)
        count.write_text("7\n")
        answers = Answers(lambda scenario: answers.asked[scenario] > 13 and count.write_text("9\n"))
        found = measure(quiet("single-stream", sustained_s=0.1), answers, tmp_path).observed
        assert ((), ()) == (found.events, found.invalid)
        assert [("cpu-thermal", 2, False)] == [(one.code, one.count, one.invalidates) for one in found.sustained.events]

    def test_readings_count_for_the_scenario_that_was_timed_meanwhile(self, tmp_path):
        """Heat during the sustained load, told by a cooling device, is told there and nowhere else."""
        state = tmp_path / "sys/class/thermal/cooling_device0/cur_state"
        trees.grow(tmp_path, {"sys/class/thermal/cooling_device0/type": "cpufreq-cpu0", str(state.relative_to(tmp_path)): "0"})
        budget = replace(TINY, min_s=0.6, max_s=5.0)
        answers = Answers(lambda scenario: time.perf_counter() > answers.hot and state.write_text("3"))
        answers.hot = float("inf")

        def tell(what: str, share: float) -> None:
            answers.hot = 0.0 if what == "sustained load" else answers.hot

        plan = TimingPlan(scenarios=("single-stream",), sustained_s=2.5)
        found = instrument.measure(plan, answers, budget, CPU, tell, root=tmp_path, batch=5, single=1, threads=2).observed
        assert () == found.events
        (event,) = found.sustained.events
        assert ("cooling-alert", False) == (event.code, event.invalidates)
        assert event.message.endswith("readings of sustained load")
        assert "flag" == found.sustained.throttling.evidence

    def test_where_the_cpus_time_went_while_the_scenarios_were_timed(self, tmp_path):
        ticks = tmp_path / "sys/devices/system/cpu/cpufreq/policy0/stats/time_in_state"
        trees.grow(tmp_path, trees.cpufreq(0, 729600))
        answers = Answers(lambda scenario: ticks.write_text("115200 5000\n729600 2100\n1510400 600\n"))
        one, = measure(quiet("single-stream"), answers, tmp_path).observed.residency
        assert ("policy0", {"729600": 0.25, "1510400": 0.75}, 0.75) == (one.policy, one.shares, one.top_share)

    def test_one_that_stands_still_says_nothing(self, tmp_path):
        count = tmp_path / "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count"
        count.parent.mkdir(parents=True)
        count.write_text("7\n")
        assert () == measure(quiet("single-stream"), Answers(), tmp_path).observed.events

    def test_telemetry_covers_the_timings_on_their_clock(self, tmp_path):
        root = trees.grow(tmp_path, trees.PI.files)
        found = measure(TimingPlan(scenarios=("single-stream",)), Answers(), root, replace(TINY, min_s=0.1))
        begin = found.traces[0].begin_ns
        assert found.observed.telemetry.begin_ns < begin < begin + round(sum(found.traces[0].latency_s) * 1e9) < found.observed.telemetry.end_ns
        assert any(one.values for one in found.observed.telemetry.thermal.series)


class TestPlan:
    @pytest.mark.parametrize(("plan", "told"), [
        (TimingPlan(scenarios=("single-strem",)), "did you mean 'single-stream'"), (TimingPlan(fps=0.0), "--fps: expected a number above 0"),
        (TimingPlan(drop="oldest"), "--drop"), (TimingPlan(deadline_s=-0.1), "--deadline"),
        (TimingPlan(latency_bound_s=0.0), "--latency-bound"), (TimingPlan(sustained_s=-60.0), "--sustained"),
        (TimingPlan(scenarios=("offline",), loadgen=True), "--loadgen checks the single-stream timings")])
    def test_what_cannot_be_measured_is_refused(self, plan, told):
        with pytest.raises(UsageError) as caught:
            instrument.refuse_unfit(plan)
        assert told in f"{caught.value.message} {caught.value.hint}"

    def test_loadgen_is_looked_for_before_anything_is_timed(self, monkeypatch):
        instrument.refuse_unfit(TimingPlan(loadgen=True))
        monkeypatch.setitem(sys.modules, "mlperf_loadgen", None)
        with pytest.raises(MissingDependency, match="mlperf_loadgen"):
            instrument.refuse_unfit(TimingPlan(loadgen=True))


class TestScores:
    def scored(self, **parts) -> dict:
        return {one.name: one for one in instrument.scores(ob.watched(builders.run(), **parts).observed, 0.95)}

    def test_energy_carries_twice_what_sampling_leaves_open(self):
        energy = EnergyPerInference(gross_j=0.10, gross_uncertainty_j=0.01, net_j=0.04, net_uncertainty_j=0.02, idle_w=3.0,
                                    inferences=400, scope="board")
        found = self.scored(energy=energy)
        gross, net = found["energy_per_inference"], found["energy_per_inference_net"]
        assert (0.10, 0.08, 0.12, 400) == pytest.approx((gross.value, gross.low, gross.high, gross.n))
        assert (0.04, 0.0, 0.08) == pytest.approx((net.value, net.low, net.high))
        assert ("board", "energy-board") == (gross.facts["scope"], gross.method_id)

    def test_unknown_energy_has_its_reason_and_no_interval(self):
        energy = EnergyPerInference(gross_j=None, gross_uncertainty_j=None, net_j=None, net_uncertainty_j=None, idle_w=None,
                                    inferences=400, scope=None, reason="no sensor tells the total")
        assert (None, None, "no sensor tells the total") == tuple(
            getattr(self.scored(energy=energy)["energy_per_inference"], name) for name in ("value", "low", "reason"))

    def test_the_devices_own_times_are_medians(self):
        trace = DeviceTrace(h2d_s=(3e-4, 1e-4, 2e-4), compute_s=(0.02, 0.03, 0.01), d2h_s=(1e-5,) * 3, enqueue_s=(5e-4,) * 3, wall_s=(0.04,) * 3)
        found = self.scored(device_times=trace)
        assert (2e-4, 0.02) == (found["device_h2d_p50"].value, found["device_compute_p50"].value)

    @pytest.mark.parametrize(("taken", "value", "reason"), [
        (420_000_000, 420_000_000.0, "one process was observed"), (-5, None, "others gave back more"), (None, None, "no MemAvailable")])
    def test_memory_that_cpu_and_gpu_share(self, taken, value, reason):
        found = self.scored(shared_memory=MemoryTaken(available_bytes=taken, contiguous_bytes=None))["shared_memory"]
        assert (value, True, True) == (found.value, reason in found.reason, "overlaps" in found.method)

    def test_a_scenario_that_never_got_steady_is_a_caveat_with_the_diagnosis(self):
        verdict = replace(ob.STEADY, verdict="unstable", diagnosis="the level changes", hint="cool the device")
        caveat, = instrument.caveats(ob.watched(builders.run(), verdict=verdict).observed, 0.95)
        assert ("unstable", "cool the device") == (caveat.code, caveat.hint)
        assert "single-stream: not steady in 1 tries: the level changes" == caveat.message

    def test_a_gpu_that_may_be_another_one_is_a_caveat(self):
        telemetry = replace(ob.telemetry(4.0), absent=(Absent(what=WHICH_GPU, reason="NVML's first, NVIDIA T4, is watched"),))
        caveat, = instrument.caveats(ob.watched(builders.run(), telemetry=telemetry).observed, 0.95)
        assert ("gpu-unknown", "NVML's first, NVIDIA T4, is watched") == (caveat.code, caveat.message)

    def test_what_slowed_the_device_down_a_little_is_named_and_invalidates_nothing(self):
        event = ThrottleEvent(code="gpu-power-cap", message="NVML: power cap in 12 of 80 readings", invalidates=False)
        observed = ob.watched(builders.run(), events=(event,)).observed
        assert "compare with runs under the same limit" in instrument.caveats(observed, 0.95)[0].hint
        assert (["gpu-power-cap"], ()) == ([one.code for one in instrument.caveats(observed, 0.95)], observed.invalid)
