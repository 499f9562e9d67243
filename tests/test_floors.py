"""Noise floors: from runs of equals, on every timing metric that a rule may name, and only where a run was timed alike."""

from __future__ import annotations

import math
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from edgebench import cli, evidence, floors, metric_names, profiler, reading, stats
from edgebench.artifacts import write_manifest
from edgebench.errors import CannotMeasure, InvalidInput
from edgebench.record import Run, Score, write_json
from edgebench.timing_types import DeviceTrace, NoiseFloor, TimingPlan
from tests import builders
from tests import observations as ob
from tests.test_gate import floor, judged, spread

scipy_stats = pytest.importorskip("scipy.stats")
TIMING = sorted(name for name in metric_names.METRICS[metric_names.PERFORMANCE] if metric_names.is_timing(name))


def measured(name: str, value: float) -> Run:
    """Return a run whose one score of performance is this, with what it has of an interval in a real run."""
    unit = metric_names.unit(metric_names.PERFORMANCE, name)
    higher = name in ("throughput_offline", "multi_stream_throughput", "server_rate")
    run = builders.run(latency_s=None)
    n, arm = 400, 0.02 * value
    score = Score(name=name, value=value, low=value - arm, high=value + arm, unit=unit, better="higher" if higher else "lower",
                  n=n, method="m")
    if evidence._ONE_PER_RUN.count(name) or name.endswith("_time"):
        score = replace(score, low=None, high=None, n=1 if name.endswith("_time") else 7, reason="one value per run")
    times = (value * np.exp(np.random.default_rng(3).normal(0, 0.01, n))).tolist()
    if name == "latency_mean":
        score = replace(score, value=float(np.mean(times)), low=None, high=None, reason="percentiles carry the intervals")
        run = replace(run, traces=(builders.single_stream(times),))
    if metric_names.device_part(name):
        score = replace(score, value=float(np.median(times)), low=None, high=None, reason="beside the wall times")
        run = replace(run, observed=ob.Observed(device_times=DeviceTrace(
            h2d_s=tuple(times), compute_s=tuple(times), d2h_s=tuple(times), enqueue_s=tuple(times), wall_s=tuple(times))))
    return replace(run, performance=(score,))


class TestEveryTimingMetricCanFail:
    @pytest.mark.parametrize("name", TIMING)
    def test_against_a_baseline_beyond_a_known_floor_and_not_without(self, name):
        unit = metric_names.unit(metric_names.PERFORMANCE, name)
        base = 0.2 if unit == "fraction" else 10.0
        higher = measured(name, base).performance[0].better == "higher"
        run, baseline = measured(name, base / 3 if higher else base * 3), measured(name, base)
        limit = "max_decrease_relative = 0.3" if higher else "max_increase_relative = 0.3"
        body = f'metric = "{name}"\nagainst = "baseline"\n{limit}'
        unknown = judged(body, run, baseline=baseline)
        assert ("inconclusive", 2) == (unknown.status, unknown.hint.count("--noise-floor"))
        assert "fail" == judged(body, run, baseline=baseline, floors=floor(name, 0.2)).status
        assert "pass" == judged(body, baseline, baseline=baseline, floors=floor(name, 0.2)).status
        low = judged(body, run, baseline=baseline, floors=floor(name, 0.4))
        assert ("error", True) == (low.status, "40.00%" in low.hint)

    @pytest.mark.parametrize("name", TIMING)
    def test_as_a_budget_it_is_decided(self, name):
        value = 0.2 if metric_names.unit(metric_names.PERFORMANCE, name) == "fraction" else 10.0
        run = measured(name, value)
        kinds = [judged(f'metric = "{name}"\nmax = {limit}', run).status for limit in (value * 1.5, value / 1.5)]
        assert ["pass", "fail"] == kinds

    def test_the_instruments_device_times_have_intervals(self):
        found = judged('metric = "device_compute_p50"\nmax = 20.0', measured("device_compute_p50", 10.0))
        assert found.low < 10.0 < found.high

    def test_the_mean_of_latency_against_the_reference(self):
        reference = builders.run("ort-fp32", latency_s=spread(0.010))
        run = builders.run("ort-int8", latency_s=spread(0.013), reference=reference)
        found = judged('metric = "latency_mean"\nagainst = "reference"\nmax_increase_relative = 0.1', run, reference=reference)
        assert ("fail", True) == (found.status, found.low < 0.3 < found.high)


class TestAbsoluteFloors:
    BODY = 'metric = "camera_miss_rate"\nagainst = "baseline"\nmax_increase_absolute = 0.05'

    def test_decide_differences_also_where_the_baseline_missed_nothing(self):
        baseline = replace(measured("camera_miss_rate", 0.1), performance=(Score(
            name="camera_miss_rate", value=0.0, low=0.0, high=0.01, unit="fraction", better="lower", n=400, method="m", count=0),))
        run = measured("camera_miss_rate", 0.3)
        known = floor("camera_miss_rate", None, 0.04, "fraction")
        assert "fail" == judged(self.BODY, run, baseline=baseline, floors=known).status
        assert "error" == judged(self.BODY, run, baseline=baseline, floors=floor("camera_miss_rate", None, 0.06, "fraction")).status

    def test_without_a_relative_one_a_relative_limit_is_an_error_with_the_way_out(self):
        body = self.BODY.replace("absolute", "relative")
        found = judged(body, measured("camera_miss_rate", 0.3), baseline=measured("camera_miss_rate", 0.1),
                       floors=floor("camera_miss_rate", None, 0.04, "fraction"))
        assert ("error", True) == (found.status, "absolute" in found.hint)


class TestFromRuns:
    def scores(self, values: list[list[float]], names=("latency_p50", "latency_p99")) -> list[tuple[Score, ...]]:
        return [tuple(Score(name=name, value=value, unit="s", better="lower", n=9, method="m")
                      for name, value in zip(names, row, strict=True)) for row in values]

    def test_a_floor_covers_what_it_says_of_further_pairs(self):
        generator, covered, run = np.random.default_rng(4), 0, builders.run()
        for _ in range(2000):
            values = np.exp(0.01 * generator.normal(size=8))
            (one,) = floors.from_runs(run, self.scores([[v] for v in values], ("latency_p90",)))
            covered += math.erf(math.log1p(one.floor) / 0.01 / 2.0) >= 0.95
        assert covered / 2000 >= 0.94

    def test_it_is_at_least_the_largest_difference_seen_and_of_each_metric(self):
        found = {one.metric: one for one in floors.from_runs(builders.run(), self.scores([[1.0, 2.0], [1.0, 2.0], [1.0, 3.0]]))}
        assert 0.0 == found["latency_p50"].floor == found["latency_p50"].absolute
        assert found["latency_p99"].floor >= 0.5
        assert found["latency_p99"].absolute >= 1.0
        assert (2.0, 2.0, 3.0) == found["latency_p99"].values

    def test_sizes_and_what_a_run_lacks_have_none_and_zero_has_no_relative_one(self):
        rows = [(Score(name="artifact_size", value=1.0, unit="bytes", better="lower", n=1, method="m"),
                 Score(name="camera_miss_rate", value=share, unit="fraction", better="lower", n=9, method="m"),
                 Score(name="energy_per_inference", value=None if share else 1.0, unit="J", better="lower", n=9, method="m", reason="r"))
                for share in (0.0, 0.1, 0.0)]
        (one,) = floors.from_runs(builders.run(), rows)
        assert ("camera_miss_rate", None, True) == (one.metric, one.floor, one.absolute >= 0.1)

    def test_too_few_runs_are_refused(self):
        with pytest.raises(CannotMeasure, match="2 runs of equals do not bound the noise"):
            floors.from_runs(builders.run(), self.scores([[1.0, 1.0]] * 2))

    @pytest.mark.parametrize("degrees", [2, 3, 8, 20, 100])
    @pytest.mark.parametrize("p", [0.05, 0.2])
    def test_chi_square_quantile_is_near_scipys(self, p, degrees):
        assert scipy_stats.chi2.ppf(p, degrees) == pytest.approx(stats.chi_square_quantile(p, degrees), rel=1e-9)


class TestConditions:
    def known(self, metric: str = "latency_p99", relative: float = 0.1, run: Run | None = None) -> NoiseFloor:
        of = run or builders.run()
        return replace(floor(metric, relative)[metric], conditions=floors.conditions(of, metric))

    @pytest.mark.parametrize(("change", "what"), [
        (lambda run: replace(run, environment=replace(run.environment, governor="performance")), "governor"),
        (lambda run: replace(run, environment=replace(run.environment, governor=None)), "governor"),
        (lambda run: replace(run, settings=replace(run.settings, budget="smoke")), "budget"),
        (lambda run: replace(run, settings=replace(run.settings, threads=1)), "threads"),
        (lambda run: replace(run, environment=replace(run.environment, packages={**run.environment.packages, "onnxruntime": "1.20.0"})),
         "onnxruntime"),
        (lambda run: replace(run, environment=replace(run.environment, gpu_governor="x")), "GPU governor"),
        (lambda run: replace(run, environment=replace(run.environment, power_mode="15W")), "power mode"),
        (lambda run: replace(run, environment=replace(run.environment, clocks_pinned={"cpu": True})), "clocks"),
        (lambda run: replace(run, settings=replace(run.settings, timing=TimingPlan(preprocessing=True))), "preprocessing"),
        (lambda run: replace(run, device=replace(run.device, id="jetson")), "device"),
        (lambda run: replace(run, artifact=replace(run.artifact, recipe=builders.recipe("openvino-fp32"))), "runtime"),
        (lambda run: replace(run, artifact=replace(run.artifact, recipe=builders.recipe("ort-cuda-fp32"))), "processor")])
    def test_of_the_floor_are_those_of_the_run_or_it_is_not_used(self, change, what):
        assert ({"latency_p99"}, ()) == (floors.fitting([self.known()], builders.run())[0].keys(),
                                         floors.fitting([self.known()], builders.run())[1])
        found, notes = floors.fitting([self.known()], change(builders.run()))
        assert ({}, 1) == (found, len(notes))
        assert f"{what} is " in notes[0]

    def test_of_a_scenario_matter_for_its_metrics_alone(self):
        run = builders.run()
        slow = replace(run, settings=replace(run.settings, batch=64, timing=TimingPlan(fps=15.0, latency_bound_s=0.1)))
        for metric, fits in (("latency_p99", True), ("throughput_offline", False), ("camera_jitter", False), ("server_rate", False)):
            assert fits == bool(floors.fitting([self.known(metric)], slow)[0])

    def test_of_two_that_fit_the_larger_is_used_in_either_order(self):
        two = [self.known(relative=0.3), self.known(relative=0.1)]
        for order in (two, two[::-1]):
            assert 0.3 == floors.fitting(order, builders.run())[0]["latency_p99"].floor


class TestFile:
    def test_is_read_back_and_older_ones_of_one_floor_are_too(self, tmp_path):
        one = floor("latency_p50", 0.1)["latency_p50"]
        floors.save(tmp_path / "new.json", [one, replace(one, metric="latency_p99")])
        assert (one, replace(one, metric="latency_p99")) == floors.load(tmp_path / "new.json")
        write_json(tmp_path / "old.json", {
            "device": "cpu", "metric": "latency_p50", "floor": 0.2, "confidence": 0.95, "content": 0.95, "n": 5,
            "conditions": {}, "ratios": [1.0], "false_differences": 0, "measured_at": "2026-01-01"})
        assert [0.2] == [each.floor for each in floors.load(tmp_path / "old.json")]

    @pytest.mark.parametrize("text", ["[]", "{}", '{"schema": "edgebench.run/1"}', '{"schema": "edgebench.noise-floors/9", "floors": []}'])
    def test_another_file_is_refused(self, tmp_path, text):
        (tmp_path / "floor.json").write_text(text)
        with pytest.raises(InvalidInput) as caught:
            floors.load(tmp_path / "floor.json")
        assert "--noise-floor" in caught.value.hint


class TestTheCommandOfTheHint:
    def asked(self, monkeypatch, words: str) -> profiler.Request:
        """Run the printed command up to the library call, and return what it asks for."""
        seen = []

        def profile(request, *_, **__):
            seen.append(request)
            raise CannotMeasure("far enough")

        monkeypatch.setattr(profiler, "profile", profile)
        program, *rest = shlex.split(words)
        done = CliRunner().invoke(cli.cli, rest)
        assert ("edgebench", CannotMeasure) == (program, type(done.exception)), done.output
        return seen[0]

    def test_measures_the_same_scenarios_at_the_same_settings(self, monkeypatch):
        plan = TimingPlan(scenarios=("single-stream", "camera"), fps=15.0, deadline_s=0.05, drop="queue")
        run = builders.run("ort-int8")
        run = replace(run, settings=replace(run.settings, timing=plan, budget="quick", threads=3, batch=4))
        request = self.asked(monkeypatch, floors.command(run, None))
        assert (("demo:inspection",), ("ort-int8",), "quick", 3, 4, "cpu") == (
            request.models, request.recipes, request.budget, request.threads, request.batch, request.device)
        assert plan == replace(request.timing, control=plan.control)
        assert Path("noise-floor.json") == request.noise_floor
        assert ("none",) == tuple(request.properties)

    def test_names_the_artifact_where_it_lies_beside_the_run(self, tmp_path):
        run = builders.run()
        place = tmp_path / "artifacts" / "demo-inspection--ort-fp32"
        place.mkdir(parents=True)
        write_manifest(place, run.artifact)
        words = shlex.split(floors.command(run, tmp_path / run.variant))
        assert str(place) == words[2]
        assert "--recipe" not in words


def test_percentiles_of_every_scenario_are_held_to_their_own_raw_timings(tmp_path):
    camera = ob.query("camera", [0.02 + 0.001 * (k % 7) for k in range(90)], rate_hz=30.0, limit_s=1 / 30, policy="newest")
    run = ob.watched(builders.run(), queries=(camera,))
    reading.refuse_other_timings(run, tmp_path / "run.json")
    for name in ("camera_latency_p90", "latency_p50"):
        forged = replace(run, performance=tuple(
            replace(one, value=one.value / 3, low=None, reason="r") if one.name == name else one for one in run.performance))
        with pytest.raises(InvalidInput, match=f"{name} of "):
            reading.refuse_other_timings(forged, tmp_path / "run.json")
