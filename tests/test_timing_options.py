"""The options of timing from the command line, end to end: one job with all of them, on one small model and real processes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from edgebench import floors, interleaved, latency, metric_names
from edgebench.cli import cli
from edgebench.record import Run, load
from tests.commands import cli as command
from tests.conftest import picture
from tests.finished_runs import policy_file
from tests.models import CLASSES, class_file, onnx_file, preprocess_file


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ...]:
    """An FP32 and an INT8 artifact of one network."""
    root = tmp_path_factory.mktemp("exported")
    for k, name in enumerate(CLASSES):
        (root / "images" / name).mkdir(parents=True)
        for number in range(3):
            picture(100 * k + number, 16, 16).save(root / "images" / name / f"{number}.png")
    done = command("export", onnx_file(root / "tiny.onnx"), "--recipe", "ort-fp32,ort-int8-avx2", "--classes", class_file(root),
                   "--preprocess", preprocess_file(root), "--calibration-data", root / "images", "--out", root / "artifacts",
                   "--allow-precision-fallback")
    assert 0 == done.returncode, done.stderr
    return tuple(next((root / "artifacts").glob(f"*--{recipe}")) for recipe in ("ort-fp32", "ort-int8-avx2"))


@pytest.fixture(scope="module")
def profiled(artifacts: tuple[Path, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what one job of every option left, its output, and the noise floor."""
    root = tmp_path_factory.mktemp("profiled")
    with pytest.MonkeyPatch.context() as patch:
        # As few processes as bound a floor: each starts an interpreter and a runtime.
        patch.setattr(floors, "RUNS", 3)
        done = CliRunner().invoke(cli, list(map(str, (
            "profile", *artifacts, "--budget", "smoke", "--properties", "none", "--out", root / "out", "--no-telemetry",
            "--scenario", "single-stream,server,camera", "--fps", "200", "--deadline", "50", "--latency-bound", "1000", "--builds", "2",
            "--sustained", "0.02", "--paired", "6", "--noise-floor", root / "floor.json", "--allow-precision-fallback"))))
    assert 0 == done.exit_code, done.output
    (root / "stdout.txt").write_text(done.stdout)
    return root


def runs(root: Path) -> dict[str, Run]:
    return {run.artifact.recipe.id: run for run in map(load, (root / "out").glob("*/run.json"))}


def test_turns_give_the_ratio_of_int8_to_fp32(profiled: Path) -> None:
    found = interleaved.load(profiled / "out")
    one, = found.comparisons
    recipes = {run.variant: recipe for recipe, run in runs(profiled).items()}
    assert ("ort-fp32", "ort-int8-avx2", 6) == (recipes[one.baseline], recipes[one.candidate], one.rounds)
    # From the raw blocks, in plain lines: the estimate lies among the rounds' own ratios.
    ratios = []
    for blocks in found.trace.rounds:
        base, mine = ([np.median(block.latency_s) for block in blocks if block.session == found.trace.names.index(name)]
                      for name in (one.baseline, one.candidate))
        ratios.append(np.sqrt(np.prod(mine) / np.prod(base)))
    assert min(ratios) <= one.ratio <= max(ratios)
    assert "Timed in turns" in (profiled / "out/report.html").read_text()


def test_the_noise_floor_is_a_file_that_gate_takes(profiled: Path) -> None:
    known = {one.metric: one for one in floors.load(profiled / "floor.json")}
    run = runs(profiled)["ort-fp32"]
    # Every timing metric of the run that a rule may name has a floor, and more than p50 are there.
    named = [score.name for score in run.performance if score.value is not None and metric_names.is_timing(score.name)]
    assert set(named) == set(known)
    assert {"latency_p50", "latency_p99", "latency_mean", "camera_miss_rate", "camera_jitter", "first_inference_time",
            "build_latency_spread"} <= set(known)
    assert {3} == {one.n for one in known.values()}
    assert all(one.values[0] == run.score(name).value for name, one in known.items())
    assert not (profiled / "out" / "noise-floor").exists()
    rule = '[[rules]]\nid = "fast"\nmetric = "latency_p50"\nmax = 10.0\n'
    judged = command("gate", profiled / "out", "--policy", policy_file(profiled, rule), "--noise-floor", profiled / "floor.json")
    assert 0 == judged.returncode, judged.stdout + judged.stderr
    assert "is not used" not in judged.stdout + judged.stderr, "the same machine, threads, budget, runtime and device"


def test_the_terminal_tells_turns_and_floor(profiled: Path) -> None:
    text = (profiled / "stdout.txt").read_text()
    assert "noise floor on " in text
    assert "3 runs of one artifact differ by up to" in text


def test_builds_are_compared_with_each_other(profiled: Path) -> None:
    for run in runs(profiled).values():
        assert (2, 2, 1) == (run.build_spread.builds, len(run.build_spread.p50_s), len(run.build_spread.disagreement))
        assert (0.0, 2) == (run.build_spread.disagreement[0], run.settings.builds), "ONNX Runtime builds the same twice"
        assert run.score("build_latency_spread").value is not None


def test_sustained_load_is_kept_raw_and_analysed_again_by_rescore(profiled: Path) -> None:
    for recipe, run in runs(profiled).items():
        found = run.observed.sustained
        assert ("sustained.npz", pytest.approx(1.2)) == (found.file, found.asked_s)
        assert found.duration_s > 1.1, "it lasts as long as asked, but for the moment before the first inference"
        folder = next((profiled / "out").glob(f"*--{recipe}--*"))
        with np.load(folder / found.file) as arrays:
            assert sum(one.inferences for one in found.minutes) == len(arrays["duration_ns"])
            assert found.minutes[0].max_s == arrays["duration_ns"].max() / 1e9
    again = command("report", profiled / "out", "--rescore", "--html", profiled / "again.html")
    assert 0 == again.returncode, again.stderr
    assert "Sustained load by minute" in (profiled / "again.html").read_text()


def test_rescore_says_so_where_the_raw_timings_are_gone(profiled: Path, tmp_path: Path) -> None:
    source = next((profiled / "out").glob("*--ort-fp32--*"))
    (tmp_path / "run.json").write_bytes((source / "run.json").read_bytes())
    assert 0 == command("report", tmp_path).returncode
    done = command("report", tmp_path, "--rescore")
    assert (3, True) == (done.returncode, "raw timings of the sustained load are missing" in done.stderr)


def test_a_camera_answers_by_its_deadline_and_the_report_shows_it(profiled: Path) -> None:
    for run in runs(profiled).values():
        trace = next(one for one in run.observed.queries if one.scenario == "camera")
        assert (200.0, 0.05, "newest") == (trace.rate_hz, trace.limit_s, trace.policy)
        assert latency.budget("smoke").min_count == len(trace.end_s) + len(trace.dropped_s), "as many frames as the budget says"
        assert 0 <= run.score("camera_miss_rate").value <= 1


def test_a_server_that_smoke_cannot_judge_says_how_many_queries_it_takes(profiled: Path) -> None:
    for run in runs(profiled).values():
        search = run.observed.server
        assert (None, 1.0) == (search.rate_hz, search.bound_s)
        assert run.score("server_rate").reason == "50 queries cannot show any bound on the 99th percentile: it takes 459"
