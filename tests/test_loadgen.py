"""LoadGen driving our inference: real runs on a timed stand-in, its summaries, its early stopping against ours."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from edgebench import latency, loadgen, percentiles, report, timing_tables
from edgebench.errors import CannotMeasure, MissingDependency, UsageError
from edgebench.record import load
from edgebench.timing_types import LoadGenResult
from tests import builders
from tests import observations as ob
from tests.commands import cli
from tests.models import class_file, onnx_file, preprocess_file

SHORT = replace(latency.budget("smoke"), min_count=100, server_queries=100, min_s=0.3, max_s=20.0)
PAUSE_S = 0.002

SINGLE = """================================================
MLPerf Results Summary
================================================
SUT name : PySUT
Scenario : SingleStream
Mode     : PerformanceOnly
90.0th percentile latency (ns) : 2152968
Result is : VALID
  Min duration satisfied : Yes
  Min queries satisfied : Yes
  Early stopping satisfied: Yes
Early Stopping Result:
 * Processed at least 64 queries (421).
 * Would discard 26 highest latency queries.
 * Early stopping 90.0th percentile estimate: 3798513
 * Not enough queries processed for 99.0th percentile
 early stopping estimate (would need to process at
 least 662 total queries).

================================================
Additional Stats
================================================
QPS w/ loadgen overhead         : 419.83
QPS w/o loadgen overhead        : 421.75

Min latency (ns)                : 2055605
Max latency (ns)                : 13875809
Mean latency (ns)               : 2371055
50.00 percentile latency (ns)   : 2111720
90.00 percentile latency (ns)   : 2152968
99.90 percentile latency (ns)   : 13875809

================================================
Test Parameters Used
================================================
samples_per_query : 1
target_latency (ns): 0
min_duration (ms): 1000
"""


class TestSummary:
    def test_what_it_says_is_read_in_seconds(self):
        found = loadgen.parse_summary(SINGLE, "single-stream", "6.0.17")
        assert (True, (), 421, 0.9) == (found.valid, found.reasons, found.queries, found.early_stopping_q)
        assert (0.003798513, 0.002371055, 421.75) == (found.early_stopping_s, found.mean_s, found.throughput_hz)
        assert {"p50": 0.00211172, "p90": 0.002152968, "p99.9": 0.013875809} == found.percentiles_s
        assert {"samples_per_query": "1", "target_latency (ns)": "0", "min_duration (ms)": "1000"} == found.settings

    def test_an_invalid_run_says_why(self):
        text = SINGLE.replace("VALID", "INVALID").replace("Min duration satisfied : Yes", "Min duration satisfied : NO")
        assert ("Min duration satisfied : NO",) == loadgen.parse_summary(text, "single-stream", "6").reasons

    def test_something_else_is_refused(self):
        with pytest.raises(CannotMeasure, match="names no result"):
            loadgen.parse_summary("nothing", "single-stream", "6")

    def test_disagreement_is_relative_to_the_own_loop(self):
        found = loadgen.parse_summary(SINGLE, "single-stream", "6")
        assert 0.01 == pytest.approx(loadgen.disagreement(0.002152968 / 1.01, found))
        with pytest.raises(CannotMeasure, match="no 90th percentile"):
            loadgen.disagreement(0.002, replace(found, percentiles_s={}))


class Timed:
    """Sleeps, and notes how long each query took by the same clock that our loops use."""

    def __init__(self) -> None:
        self.latency_s: list[float] = []
        self.queries: list[list[int]] = []

    def __call__(self, numbers) -> None:
        begin = time.perf_counter_ns()
        time.sleep(PAUSE_S)
        self.queries.append(list(numbers))
        self.latency_s.append((time.perf_counter_ns() - begin) / 1e9)


class TestRealRuns:
    def test_single_stream_agrees_with_what_the_inference_itself_saw(self):
        infer = Timed()
        found = loadgen.run(infer, "single-stream", SHORT, expected_s=PAUSE_S)
        assert found.queries == len(infer.latency_s) >= 100
        assert found.percentiles_s["p50"] == pytest.approx(sorted(infer.latency_s)[found.queries // 2], rel=0.05)
        assert found.version.startswith("6.")
        assert all(len(one) == 1 and 0 <= one[0] < 8 for one in infer.queries)

    def test_its_early_stopping_estimate_is_ours_of_the_same_latencies(self):
        infer = Timed()
        found = loadgen.run(infer, "single-stream", SHORT, expected_s=PAUSE_S)
        ours = percentiles.early_stopping_estimate(infer.latency_s, 0.9)
        # Its own clock stops a little later than the inference's: a thread may be put aside in between.
        assert ours == pytest.approx(found.early_stopping_s, rel=0.25)

    def test_multi_stream_asks_for_eight_images_per_query(self):
        infer = Timed()
        found = loadgen.run(infer, "multi-stream", SHORT, expected_s=PAUSE_S)
        assert {8} == {len(one) for one in infer.queries}
        assert not found.valid
        assert any("at least 662 queries" in reason for reason in found.reasons)

    def test_offline_is_one_query_in_our_batches(self):
        infer = Timed()
        found = loadgen.run(infer, "offline", SHORT, expected_s=PAUSE_S, batch=16)
        assert (1, 16) == (found.queries, max(len(one) for one in infer.queries))
        images, seconds = sum(map(len, infer.queries)), sum(infer.latency_s)
        assert 0.5 * images / seconds < found.throughput_hz <= 1.01 * images / seconds

    def test_server_keeps_an_easy_bound(self):
        found = loadgen.run(Timed(), "server", SHORT, expected_s=PAUSE_S, rate_hz=50.0, bound_s=5.0, q=0.5)
        assert (True, 100) == (found.valid, found.queries)

    def test_an_inference_that_fails_ends_the_run_with_its_own_error(self):
        def fail(numbers):
            raise CannotMeasure("the device is gone")

        with pytest.raises(CannotMeasure, match="the device is gone"):
            loadgen.run(fail, "single-stream", SHORT, expected_s=PAUSE_S)

    def test_logs_stay_where_they_are_asked_for_and_nowhere_else(self, tmp_path, monkeypatch):
        here = tmp_path / "here"
        here.mkdir()
        # LoadGen would obey this file in the working directory.
        (here / "audit.config").write_text("*.*.min_query_count = 7000\n")
        monkeypatch.chdir(here)
        found = loadgen.run(Timed(), "single-stream", SHORT, expected_s=PAUSE_S, folder=tmp_path / "logs")
        assert "100" == found.settings["min_query_count"]
        assert (tmp_path / "logs/mlperf_log_summary.txt").exists()
        assert [Path("audit.config")] == [path.relative_to(here) for path in here.iterdir()]


class TestRefusals:
    def test_a_camera_is_unknown_to_it(self):
        with pytest.raises(UsageError, match="LoadGen has no scenario 'camera'"):
            loadgen.run(Timed(), "camera", SHORT, expected_s=PAUSE_S)

    def test_server_needs_rate_and_bound(self):
        with pytest.raises(UsageError, match="needs an arrival rate"):
            loadgen.run(Timed(), "server", SHORT, expected_s=PAUSE_S, rate_hz=10.0)

    def test_without_it_the_hint_names_the_extra(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "mlperf_loadgen", None)
        with pytest.raises(MissingDependency) as caught:
            loadgen.run(Timed(), "single-stream", SHORT, expected_s=PAUSE_S)
        assert "edgebench[loadgen]" in caught.value.hint


def result(p90_s: float | None, **more) -> LoadGenResult:
    return LoadGenResult(**{"scenario": "single-stream", "version": "6.0", "valid": True, "reasons": (), "queries": 500,
                            "early_stopping_s": 0.012, "early_stopping_q": 0.9, "mean_s": 0.01, "throughput_hz": 100.0, "settings": {},
                            "percentiles_s": {} if p90_s is None else {"p90": p90_s}, **more})


class TestBesideTheOwnTimings:
    OWN = builders.single_stream([0.010 + 1e-6 * (k % 100) for k in range(1000)])

    def test_a_p90_within_the_own_interval_and_one_percent_raises_no_doubt(self):
        assert [] == loadgen.caveats(self.OWN, result(0.01009), 0.95)
        assert [] == loadgen.caveats(self.OWN, result(0.01009 * 1.009), 0.95)

    @pytest.mark.parametrize(("p90_s", "told"), [(0.0120, "+18.9%"), (0.0080, "-20.7%")])
    def test_one_far_from_it_is_a_caveat(self, p90_s, told):
        caveat, = loadgen.caveats(self.OWN, result(p90_s), 0.95)
        assert "loadgen-disagrees" == caveat.code
        assert told in caveat.message

    def test_scores_say_whether_loadgen_calls_its_run_valid(self):
        found = {one.name: one for one in loadgen.scores(result(0.011))}
        assert (0.011, 0.012) == (found["loadgen_latency_p90"].value, found["loadgen_early_stopping_p90"].value)
        broken = result(None, valid=False, reasons=("Need to process at least 64 queries",), early_stopping_s=None)
        for one in loadgen.scores(broken):
            assert (None, "LoadGen calls its run invalid: Need to process at least 64 queries") == (one.value, one.reason)

    def test_the_report_sets_both_side_by_side(self):
        run = ob.watched(builders.run(latency_s=self.OWN.latency_s), loadgen=result(0.0111))
        table = next(one for one in timing_tables.timing_tables(report._variants([run])) if one.title == "Single-stream by LoadGen")
        (_, cells), = table.rows
        ours = percentiles.early_stopping_estimate(self.OWN.latency_s, 0.9)
        assert ["10.1 ms", "11.1 ms", "+10.0 %", f"{ours * 1e3:.1f} ms", "12.0 ms", "500", "valid"] == [one.text for one in cells]
        assert (0.0111, True) == tuple(report.summary([run])["variants"][0]["loadgen"][key] for key in ("latency_p90", "valid"))


@pytest.fixture(scope="module")
def artifact(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("artifact")
    done = cli("export", onnx_file(root / "tiny.onnx"), "--recipe", "ort-fp32", "--out", root, "--classes", class_file(root),
               "--preprocess", preprocess_file(root))
    assert 0 == done.returncode, done.stderr
    return next(root.glob("*--ort-fp32"))


class TestCommand:
    def test_profile_keeps_what_loadgen_saw_on_the_same_session(self, artifact, tmp_path):
        done = cli("profile", artifact, "--loadgen", "--budget", "smoke", "--scenario", "single-stream", "--no-telemetry", "--properties",
                   "none", "--out", tmp_path / "out")
        assert 0 == done.returncode, done.stderr
        run = load(next((tmp_path / "out").glob("*/run.json")).parent)
        found = run.observed.loadgen
        assert ("single-stream", True) == (found.scenario, found.queries >= 5)
        assert found.percentiles_s["p90"] == run.score("loadgen_latency_p90").value > 0
        assert "Single-stream by LoadGen" in (tmp_path / "out/report.html").read_text()

    def test_it_needs_single_stream_timings(self, artifact, tmp_path):
        done = cli("profile", artifact, "--loadgen", "--scenario", "offline", "--out", tmp_path / "out")
        assert (2, True) == (done.returncode, "add single-stream to --scenario" in done.stderr)

    def test_without_the_extra_one_line_says_what_to_install_before_anything_is_timed(self, artifact, tmp_path):
        (tmp_path / "mlperf_loadgen.py").write_text("raise ModuleNotFoundError(\"No module named 'mlperf_loadgen'\", name='mlperf_loadgen')\n")
        path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
        done = cli("profile", artifact, "--loadgen", "--budget", "smoke", "--out", tmp_path / "out",
                   env={"PYTHONPATH": path}, fresh=True)
        assert 3 == done.returncode
        assert "pip install 'edgebench[loadgen]'" in done.stderr
        assert not (tmp_path / "out").exists()
