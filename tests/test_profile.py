"""`edgebench profile` and its relatives from the command line, end to end, on small models and real processes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgebench import catalog, profiler
from edgebench.artifacts import write_manifest
from edgebench.record import Caveat, load, load_artifact, run_schema
from edgebench.timing_types import Control, TimingPlan
from tests.commands import cli, interrupt
from tests.conftest import picture
from tests.models import CLASSES, class_file, onnx_file, preprocess_file, tiny_weights

RECIPES = "ort-fp32,ort-int8,openvino-fp32,openvino-int8"
MODEL = "timm:test_efficientnet"
# What is asked about processes, files and options needs no more than one pass.
ACCURACY = ("--properties", "accuracy")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A weights file, a class file, evaluation images and separate calibration images."""
    root = tmp_path_factory.mktemp("inputs")
    for part, first in (("data", 0), ("calibration", 1000)):
        for k, name in enumerate(CLASSES):
            (root / part / name).mkdir(parents=True)
            for number in range(14):
                picture(first + 100 * k + number, 190, 180).save(root / part / name / f"{number}.png")
    return {"weights": tiny_weights(root), "classes": class_file(root), "data": root / "data",
            "calibration": root / "calibration"}


def words(inputs: dict[str, Path], out: Path, *more: str | Path, recipes: str = RECIPES) -> list[str | Path]:
    return ["profile", MODEL, "--weights", inputs["weights"], "--classes", inputs["classes"], "--data", inputs["data"],
            "--calibration-data", inputs["calibration"], "--budget", "smoke", "--recipe", recipes, "--out", out,
            "--properties", "accuracy,calibration", *more]


@pytest.fixture(scope="module")
def profiled(inputs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "tiny"
    done = cli(*words(inputs, out), fresh=True)
    assert 0 == done.returncode, done.stderr
    (out / "stdout.txt").write_text(done.stdout)
    (out / "stderr.txt").write_text(done.stderr)
    return out


def variant(out: Path, recipe: str) -> Path:
    return next(out.glob(f"*--{recipe}--*"))


def error_line(done: subprocess.CompletedProcess[str]) -> str:
    assert "Traceback" not in done.stderr, done.stderr
    return next(line for line in done.stderr.splitlines() if line.startswith("error: "))


def test_every_variant_has_a_run_that_fits_the_published_schema(profiled: Path) -> None:
    import jsonschema

    files = sorted(profiled.glob("*/run.json"))
    assert 4 == len(files)
    for file in files:
        jsonschema.validate(json.loads(file.read_text()), run_schema())


def test_the_terminal_shows_the_variants_and_where_the_report_lies(profiled: Path) -> None:
    text = (profiled / "stdout.txt").read_text()
    assert f"report  {profiled / 'report.html'}" in text
    for label in ("FP32 · ONNX Runtime", "INT8 · OpenVINO"):
        assert label in text


def test_progress_goes_to_standard_error_in_plain_lines(profiled: Path) -> None:
    text = (profiled / "stderr.txt").read_text()
    assert "labelled image folder: 42 images in 3 classes" in text
    assert "timing single-stream" in text
    assert "\x1b" not in text


def test_each_run_holds_raw_timings_and_the_executed_precision(profiled: Path) -> None:
    for recipe, precision in (("ort-fp32", "fp32"), ("openvino-int8", "int8")):
        run = load(variant(profiled, recipe))
        assert precision == run.precision.executed
        assert ["single-stream", "offline"] == [trace.scenario for trace in run.traces]
        assert min(len(trace.latency_s) for trace in run.traces) >= 2
        median = sorted(run.traces[0].latency_s)[(len(run.traces[0].latency_s) - 1) // 2]
        assert median == run.score("latency_p50").value
        assert run.peak_host_memory_bytes > 10_000_000
        assert run.cold_start.load_s > 0


def test_the_int8_runs_are_paired_with_the_fp32_run_of_their_own_backend(profiled: Path) -> None:
    for backend in ("ort", "openvino"):
        run = load(variant(profiled, f"{backend}-int8"))
        assert run.reference.variant == variant(profiled, f"{backend}-fp32").name
    assert load(variant(profiled, "ort-fp32")).reference is None


def test_flips_and_mcnemar_follow_from_the_stored_logits(profiled: Path) -> None:
    from scipy.stats import binomtest

    def read(recipe: str) -> tuple[np.ndarray, np.ndarray]:
        with np.load(next((variant(profiled, recipe) / "predictions").glob("*.npz"))) as arrays:
            return arrays["logits"].argmax(1), arrays["targets"]

    (reference, targets), (mine, _) = read("ort-fp32"), read("ort-int8")
    negative = int(((reference == targets) & (mine != targets)).sum())
    positive = int(((reference != targets) & (mine == targets)).sum())
    run = load(variant(profiled, "ort-int8"))
    assert negative / 42 == run.score("negative_flips").value
    assert positive / 42 == run.score("positive_flips").value
    assert pytest.approx((positive - negative) / 42) == run.score("accuracy_top1_change").value
    expected = binomtest(negative, negative + positive).pvalue if negative + positive else 1.0
    assert pytest.approx(expected) == run.score("mcnemar_p").value


def test_the_two_runtimes_agree_on_fp32(profiled: Path) -> None:
    logits = []
    for recipe in ("ort-fp32", "openvino-fp32"):
        with np.load(next((variant(profiled, recipe) / "predictions").glob("*.npz"))) as arrays:
            logits.append(arrays["logits"])
    np.testing.assert_allclose(*logits, atol=1e-3)


def test_targets_follow_the_class_file_and_not_the_folders_position(profiled: Path) -> None:
    with np.load(next((variant(profiled, "ort-fp32") / "predictions").glob("*.npz"))) as arrays:
        assert [CLASSES.index(str(name).split("/")[0]) for name in arrays["ids"]] == arrays["targets"].tolist()


def test_the_report_needs_no_runtime_and_rescoring_gives_the_stored_scores(profiled: Path, tmp_path: Path) -> None:
    blocked = tmp_path / "blocked"
    blocked.mkdir()
    for name in ("torch", "onnxruntime", "openvino", "timm", "onnx"):
        (blocked / f"{name}.py").write_text("raise ImportError('blocked')\n")
    env = {"PYTHONPATH": str(blocked)}
    plain = cli("report", profiled, "--json", env=env, fresh=True)
    again = cli("report", profiled, "--json", "--rescore", env=env, fresh=True)
    assert (0, 0) == (plain.returncode, again.returncode), plain.stderr + again.stderr
    assert json.loads(plain.stdout) == json.loads(again.stdout)


def test_reports_are_written_where_asked(profiled: Path, tmp_path: Path) -> None:
    done = cli("report", profiled, "--html", tmp_path / "r.html", "--markdown", tmp_path / "r.md")
    assert 0 == done.returncode
    assert "<html" in (tmp_path / "r.html").read_text()[:200]
    assert "| INT8 · OpenVINO" in (tmp_path / "r.md").read_text()


def test_finished_results_are_not_overwritten_unasked(profiled: Path, inputs: dict[str, Path]) -> None:
    done = cli(*words(inputs, profiled))
    assert 2 == done.returncode
    assert "already holds results" in error_line(done)
    assert "--resume" in done.stderr


def test_resume_keeps_what_is_finished(profiled: Path, inputs: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "copy"
    shutil.copytree(profiled, out)
    before = {file: file.read_bytes() for file in out.glob("*/run.json")}
    shutil.rmtree(variant(out, "openvino-int8"))
    done = cli(*words(inputs, out, "--resume"))
    assert 0 == done.returncode, done.stderr
    after = {file: file.read_bytes() for file in out.glob("*/run.json")}
    assert set(before) == set(after)
    changed = [file.parent.name for file in before if before[file] != after[file]]
    assert [variant(out, "openvino-int8").name] == changed


@pytest.mark.parametrize(("other", "told"), [
    (("--threads", "1"), "threads"), (("--scenario", "single-stream"), "timing"), (("--sustained", "1"), "timing"),
    (("--fps", "15"), "timing"), (("--governor", "performance"), "timing")])
def test_resume_with_other_settings_is_refused(profiled: Path, inputs: dict[str, Path], other, told, monkeypatch) -> None:
    # No governor of this machine is set.
    monkeypatch.setattr(profiler.control, "controlled", lambda wanted: nullcontext(()))
    artifact = next((profiled / "artifacts").glob("*--ort-fp32"))
    command = ["profile", artifact, "--data", inputs["data"], "--budget", "smoke", "--properties", "accuracy,calibration",
               "--out", profiled, "--resume"]
    assert 0 == cli(*command).returncode
    done = cli(*command, *other)
    assert 2 == done.returncode
    assert f"other settings ({told})" in error_line(done)


def test_interrupting_keeps_finished_variants_and_says_how_to_go_on(profiled: Path, inputs: dict[str, Path],
                                                                    tmp_path: Path) -> None:
    out = tmp_path / "run"
    artifacts = [next((profiled / "artifacts").glob(f"*--ort-{name}")) for name in ("fp32", "int8")]
    # Some seconds each: the interruption comes while the second variant is timed.
    command = ["profile", *artifacts, "--data", inputs["data"], *ACCURACY, "--scenario", "single-stream", "--budget",
               "quick", "--out", out]
    code, errors = interrupt(*command, when=lambda: bool(list(out.glob("*--ort-fp32--*/run.json"))))
    assert 3 == code, errors
    assert "error: interrupted" in errors
    assert "--resume" in errors
    kept = variant(out, "ort-fp32") / "run.json"
    content = kept.read_bytes()
    done = cli(*command, "--resume")
    assert 0 == done.returncode, done.stderr
    assert content == kept.read_bytes()
    assert 2 == len(list(out.glob("*/run.json")))


def test_a_worker_that_is_killed_is_reported_and_the_others_go_on(profiled: Path, inputs: dict[str, Path],
                                                                  tmp_path: Path) -> None:
    artifacts = sorted((profiled / "artifacts").iterdir())
    fp32, int8 = (next(one for one in artifacts if one.name.endswith(name)) for name in ("--ort-fp32", "--ort-int8"))
    # Python runs this file first; it kills the worker of the INT8 variant, and nothing else.
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\n"
        "if any('--ort-int8--' in word and word.endswith('job.json') for word in sys.orig_argv):\n"
        "    os.kill(os.getpid(), 9)\n")
    done = cli("profile", *ACCURACY, fp32, int8, "--data", inputs["data"], "--budget", "smoke", "--out",
               tmp_path / "out", env={"PYTHONPATH": str(tmp_path)})
    assert 3 == done.returncode
    assert "was killed by signal 9" in error_line(done)
    assert "out of memory" in done.stderr
    assert 1 == len(list((tmp_path / "out").glob("*/run.json")))
    assert (tmp_path / "out" / "report.html").exists()


def test_artifacts_are_profiled_and_evaluated_alone(profiled: Path, inputs: dict[str, Path], tmp_path: Path) -> None:
    artifact = next((profiled / "artifacts").glob("*--ort-int8"))
    done = cli("evaluate", *ACCURACY, artifact, "--data", inputs["data"], "--out", tmp_path / "out", "--json")
    assert 0 == done.returncode, done.stderr
    run = load(next((tmp_path / "out").glob("*--ort-int8--*")))
    assert ((), None) == (run.traces, run.reference)
    assert ["not asked for"] == [skip.reason for skip in run.skips if skip.what == "latency"]
    assert any("no FP32 sibling" in skip.reason for skip in run.skips)
    assert run.score("accuracy_top1").value == load(variant(profiled, "ort-int8")).score("accuracy_top1").value
    assert "edgebench.summary/1" == json.loads(done.stdout)["schema"]


def test_an_altered_artifact_is_refused(profiled: Path, tmp_path: Path) -> None:
    copy = tmp_path / "artifact"
    shutil.copytree(next((profiled / "artifacts").glob("*--ort-fp32")), copy)
    (copy / "model.onnx").write_bytes(b"other")
    done = cli("profile", copy, "--properties", "none", "--budget", "smoke", "--out", tmp_path / "out")
    assert 3 == done.returncode
    assert "was changed after export" in error_line(done)


def test_random_weights_are_timed_and_not_judged(tmp_path: Path) -> None:
    done = cli("profile", MODEL, "--weights", "random", "--recipe", "ort-fp32", "--budget", "smoke", "--out", tmp_path)
    assert 0 == done.returncode, done.stderr
    run = load(next(tmp_path.glob("*/run.json")))
    assert () == run.evaluations
    assert any("random weights" in skip.reason for skip in run.skips)


def test_random_weights_with_a_property_asked_for_are_a_usage_error(inputs: dict[str, Path], tmp_path: Path) -> None:
    done = cli("profile", MODEL, "--weights", "random", "--recipe", "ort-fp32", "--budget", "smoke", "--properties",
               "accuracy", "--data", inputs["data"], "--out", tmp_path)
    assert 2 == done.returncode
    assert "random" in error_line(done)


def test_an_onnx_file_with_preprocessing_is_profiled_with_images(tmp_path: Path, inputs: dict[str, Path]) -> None:
    done = cli("profile", *ACCURACY, onnx_file(tmp_path / "m.onnx"), "--preprocess", preprocess_file(tmp_path), "--data",
               inputs["data"], "--recipe", "ort-fp32", "--budget", "smoke", "--out", tmp_path / "out")
    assert 0 == done.returncode, done.stderr
    run = load(next((tmp_path / "out").glob("*/run.json")))
    assert "assumed-classes" in [caveat.code for caveat in run.caveats]


def test_an_onnx_file_without_preprocessing_is_timed_but_not_fed_with_images(tmp_path: Path, inputs: dict[str, Path]) -> None:
    file = onnx_file(tmp_path / "m.onnx", external=True)
    refused = cli("profile", file, "--data", inputs["data"], "--recipe", "ort-fp32", "--out", tmp_path / "a")
    assert 3 == refused.returncode
    assert "preprocessing of m.onnx is unknown" in error_line(refused)
    timed = cli("profile", file, "--properties", "none", "--recipe", "ort-fp32", "--budget", "smoke", "--out",
                tmp_path / "b")
    assert 0 == timed.returncode, timed.stderr


def test_images_that_chose_the_ranges_are_left_out_of_the_evaluation(profiled: Path, inputs: dict[str, Path],
                                                                      tmp_path: Path) -> None:
    both = tmp_path / "both"
    shutil.copytree(inputs["data"], both)
    for name in CLASSES:
        for file in sorted((inputs["calibration"] / name).iterdir())[:2]:
            shutil.copy(file, both / name / f"again-{file.name}")
    artifact = next((profiled / "artifacts").glob("*--ort-int8"))
    done = cli("evaluate", *ACCURACY, artifact, "--data", both, "--out", tmp_path / "out")
    assert 0 == done.returncode, done.stderr
    run = load(next((tmp_path / "out").glob("*/run.json")))
    assert 42 == run.evaluations[0].dataset.images
    assert any("6 images chose the INT8 ranges" in caveat.message for caveat in run.caveats)


def test_a_broken_image_is_left_out_and_named(profiled: Path, inputs: dict[str, Path], tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(inputs["data"], data)
    whole = (data / "cat" / "0.png").read_bytes()
    (data / "cat" / "0.png").write_bytes(whole[: len(whole) // 2])
    artifact = next((profiled / "artifacts").glob("*--ort-fp32"))
    done = cli("evaluate", *ACCURACY, artifact, "--data", data, "--out", tmp_path / "out")
    assert 0 == done.returncode, done.stderr
    assert "1 of 42 images left out, the first: cat/0.png" in done.stderr


@pytest.mark.parametrize(("options", "code", "message"), [
    (["--recipe", "ort-int9"], 2, "unknown recipe 'ort-int9'; did you mean 'ort-int8'?"),
    (["--device", "jetson"], 3, "this host is no Jetson"),
    (["--scenario", "singel-stream"], 2, "unknown scenario 'singel-stream'; did you mean 'single-stream'?"),
    (["--sustained", "0"], 2, "--sustained: expected a number above 0, got 0"),
    (["--device", "cpus"], 2, "unknown device 'cpus'; did you mean 'cpu'?"),
    (["--backend", "onnxruntim"], 2, "unknown backend 'onnxruntim'; did you mean 'onnxruntime'?"),
    (["--precision", "int7"], 2, "unknown precision 'int7'; did you mean 'int8'?"),
    (["--properties", "accurracy"], 2, "unknown property 'accurracy'; did you mean 'accuracy'?"),
    (["--budget", "quik"], 2, "unknown budget 'quik'; did you mean 'quick'?"),
    (["--threads", "0"], 2, "--threads: expected 1 or more, got 0"),
    (["--data", "/nowhere"], 2, "no such folder: /nowhere"),
    (["--preset", "papers"], 2, "unknown preset 'papers'; did you mean 'paper'?"),
    (["--no-such-option"], 2, "--no-such-option"),
    (["--recipe", "nowhere.toml"], 3, "cannot read nowhere.toml"),
    (["--preprocess", "nowhere.toml"], 3, "cannot read nowhere.toml"),
    (["--weights", "nowhere.pth"], 2, "no such file: nowhere.pth"),
])
def test_a_wrong_option_is_one_line_with_the_contracts_exit_code(tmp_path: Path, options: list[str], code: int,
                                                                 message: str) -> None:
    done = cli("profile", MODEL, "--out", tmp_path / "out", *options)
    assert code == done.returncode, done.stderr
    assert message in error_line(done)


def test_class_folders_that_the_model_does_not_know_are_refused_before_any_timing(inputs: dict[str, Path],
                                                                                  tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(inputs["data"], data)
    (data / "dog").rename(data / "dogg")
    done = cli("profile", MODEL, "--weights", inputs["weights"], "--classes", inputs["classes"], "--data", data,
               "--recipe", "ort-fp32", "--out", tmp_path / "out")
    assert 3 == done.returncode
    assert "folder 'dogg' is none of the model's 3 classes; did you mean 'dog'?" in error_line(done)
    assert "timing" not in done.stderr


def test_a_folder_without_classes_says_what_is_expected(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    picture(1).save(tmp_path / "images" / "a.png")
    done = cli("data", "check", tmp_path / "images")
    assert 3 == done.returncode
    assert "has no class folders" in error_line(done)
    assert "1 images directly in it" in error_line(done)


def test_an_output_folder_that_cannot_be_written_is_named(inputs: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = cli(*words(inputs, tmp_path / "file" / "out"))
    assert 3 == done.returncode
    assert f"cannot write {tmp_path / 'file'}" in error_line(done)


def test_a_full_disk_is_one_line_and_loses_nothing(profiled: Path, inputs: dict[str, Path], tmp_path: Path) -> None:
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("mounting a small file system to fill needs root")
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(small)], capture_output=True,
                             check=False)
    if mounted.returncode != 0:
        pytest.skip(f"mounting is not allowed here: {mounted.stderr.decode().strip()}")
    try:
        fp32 = next((profiled / "artifacts").glob("*--ort-fp32"))
        done = cli("profile", *ACCURACY, fp32, "--data", inputs["data"], "--budget", "smoke", "--out", small / "out")
        assert 3 == done.returncode
        assert "No space left on device" in error_line(done)
        assert "--resume" in done.stderr
        for file in (small / "out").glob("*/run.json"):
            load(file)
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_a_model_folder_that_is_no_artifact_is_a_usage_error(tmp_path: Path) -> None:
    done = cli("profile", tmp_path, "--out", tmp_path / "out")
    assert 2 == done.returncode
    assert "is a folder but no artifact" in error_line(done)


@pytest.mark.parametrize("command", ["recipes", "devices", "properties", "doctor"])
def test_every_listing_has_a_table_and_json(command: str) -> None:
    table, data = cli(command), cli(command, "--json")
    assert (0, 0) == (table.returncode, data.returncode), table.stderr + data.stderr
    rows = json.loads(data.stdout)
    assert rows
    assert next(iter(rows[0].values())) in table.stdout


def test_the_power_mode_is_that_of_the_measurement_and_not_the_one_before_it(monkeypatch, tmp_path: Path) -> None:
    mode = ["15W"]
    device = catalog.device("jetson-orin-nano-8gb")

    @contextmanager
    def controlled(wanted: Control):
        mode.append(wanted.power_mode)
        yield (f"power mode 15W → {wanted.power_mode}",)
        mode.pop()

    seen = []
    monkeypatch.setattr(profiler, "resolve_device", lambda name: (device, (Caveat(code=mode[-1], message="m", hint="h"),), mode[-1]))
    monkeypatch.setattr(profiler.control, "controlled", controlled)
    monkeypatch.setattr(profiler, "_interleave", lambda shared, *rest: seen.append(shared))
    profiler.profile(profiler.Request(models=(), out=tmp_path, properties=("none",),
                                       timing=TimingPlan(control=Control(power_mode="25W"))))
    assert [("25W", ["25W"])] == [(one.power_mode, [doubt.code for doubt in one.doubts]) for one in seen]


def test_a_mistyped_command_suggests_the_right_one() -> None:
    done = cli("profil")
    assert 2 == done.returncode
    assert "unknown command 'profil'; did you mean 'profile'?" in error_line(done)


def test_export_prints_where_the_artifacts_are(inputs: dict[str, Path], tmp_path: Path) -> None:
    done = cli("export", MODEL, "--weights", inputs["weights"], "--classes", inputs["classes"], "--recipe",
               "ort-fp32,ort-int8", "--out", tmp_path)
    assert 3 == done.returncode, "INT8 without calibration data must fail"
    assert "never chosen from random numbers" in error_line(done)
    assert (tmp_path / "timm-test_efficientnet--ort-fp32" / "manifest.json").exists()


def test_a_precision_that_is_not_executed_is_an_error(profiled: Path, tmp_path: Path) -> None:
    copy = tmp_path / "artifact"
    shutil.copytree(next((profiled / "artifacts").glob("*--ort-fp32")), copy)
    artifact = load_artifact(copy)
    write_manifest(copy, replace(artifact, recipe=replace(artifact.recipe, precision="bf16")))
    done = cli("profile", copy, "--properties", "none", "--budget", "smoke", "--out", tmp_path / "out")
    assert 3 == done.returncode
    assert "asked for bf16, but fp32 was executed" in error_line(done)


def test_a_file_name_that_is_not_utf8_goes_through_the_whole_line(profiled: Path, inputs: dict[str, Path],
                                                                  tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(inputs["data"], data)
    try:
        (data / "cat" / "0.png").rename(data / "cat" / os.fsdecode(b"caf\xe9.png"))
    except OSError:
        pytest.skip("this file system takes no such names")
    artifact = next((profiled / "artifacts").glob("*--ort-fp32"))
    done = cli("evaluate", *ACCURACY, artifact, "--data", data, "--out", tmp_path / "out",
               env={"PYTHONUTF8": "1"}, fresh=True)
    assert 0 == done.returncode, done.stderr
    assert 42 == load(next((tmp_path / "out").glob("*/run.json"))).evaluations[0].dataset.images


def test_a_reader_that_goes_away_is_no_failed_rule(profiled: Path) -> None:
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m edgebench report {profiled} --json | true; echo ${{PIPESTATUS[0]}}"],
        capture_output=True, text=True, check=False)
    assert "" == done.stderr
    assert int(done.stdout) in (0, 128 + signal.SIGPIPE)


def test_two_data_sets_of_one_name_are_two_results_and_one_given_twice_is_refused(
        profiled: Path, inputs: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(inputs["data"], tmp_path / "data")
    artifact = next((profiled / "artifacts").glob("*--ort-fp32"))
    words_ = ("evaluate", *ACCURACY, artifact, "--data", inputs["data"], "--data", tmp_path / "data", "--out",
              tmp_path / "out")
    done = cli(*words_, "--data", inputs["data"])
    assert 2 == done.returncode
    assert "is given twice" in error_line(done)
    assert 0 == cli(*words_).returncode
    file = next((tmp_path / "out").glob("*/run.json"))
    names = {one.dataset.name for one in load(file).evaluations}
    assert {f"data@{inputs['data'].parent.name}", f"data@{tmp_path.name}"} == names


def test_two_data_sets_are_both_scored_and_resumed(profiled: Path, inputs: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(inputs["data"], tmp_path / "more")
    artifact = next((profiled / "artifacts").glob("*--ort-fp32"))
    words_ = ("evaluate", *ACCURACY, artifact, "--data", inputs["data"], "--data", tmp_path / "more", "--out",
              tmp_path / "out")
    assert 0 == cli(*words_).returncode
    file = next((tmp_path / "out").glob("*/run.json"))
    assert {"data", "more"} == {one.dataset.name for one in load(file).evaluations}
    content = file.read_bytes()
    assert 0 == cli(*words_, "--resume").returncode
    assert content == file.read_bytes()


def test_rescoring_keeps_runs_of_one_name_in_two_folders_apart(profiled: Path, inputs: dict[str, Path], tmp_path: Path) -> None:
    artifact = next((profiled / "artifacts").glob("*--ort-fp32"))
    half = tmp_path / "half"
    for name in CLASSES[:2]:
        shutil.copytree(inputs["data"] / name, half / name)
    assert 0 == cli("evaluate", *ACCURACY, artifact, "--data", half, "--out", tmp_path / "other").returncode
    found = [json.loads(cli("report", variant(profiled, "ort-fp32"), tmp_path / "other", "--json", *more).stdout)
             for more in ((), ("--rescore",))]
    assert found[0] == found[1]
    assert 2 == len({json.dumps(one["scores"]["accuracy_top1"]) for one in found[0]["variants"]})


def test_a_reference_that_comes_later_is_compared_with_on_resume(profiled: Path, inputs: dict[str, Path],
                                                                  tmp_path: Path) -> None:
    fp32, int8 = (next((profiled / "artifacts").glob(f"*--ort-{name}")) for name in ("fp32", "int8"))
    more = (*ACCURACY, "--data", inputs["data"], "--out", tmp_path / "out")
    assert 0 == cli("evaluate", int8, *more).returncode
    assert load(variant(tmp_path / "out", "ort-int8")).reference is None
    assert 0 == cli("evaluate", fp32, int8, *more, "--resume").returncode
    assert load(variant(tmp_path / "out", "ort-int8")).reference is not None
    assert 2 == len(json.loads((tmp_path / "out" / "summary.json").read_text())["variants"])


def test_force_with_unfit_data_leaves_the_old_results(profiled: Path, inputs: dict[str, Path], tmp_path: Path) -> None:
    out, data = tmp_path / "copy", tmp_path / "data"
    shutil.copytree(profiled, out)
    shutil.copytree(inputs["data"], data)
    (data / "dog").rename(data / "dogg")
    before = {file: file.read_bytes() for file in out.glob("*/run.json")}
    artifact = next((out / "artifacts").glob("*--ort-fp32"))
    assert 3 == cli("profile", artifact, "--data", data, "--budget", "smoke", "--out", out, "--force").returncode
    assert before == {file: file.read_bytes() for file in out.glob("*/run.json")}


def test_one_bad_artifact_does_not_stop_the_others(profiled: Path, tmp_path: Path) -> None:
    copy = tmp_path / "artifact"
    shutil.copytree(next((profiled / "artifacts").glob("*--ort-int8")), copy)
    (copy / "model.onnx").write_bytes(b"other")
    good = next((profiled / "artifacts").glob("*--ort-fp32"))
    done = cli("profile", copy, good, "--properties", "none", "--budget", "smoke", "--out", tmp_path / "out")
    assert 3 == done.returncode
    assert "was changed after export" in error_line(done)
    assert 1 == len(list((tmp_path / "out").glob("*/run.json")))


def test_evaluating_without_images_is_not_a_success(profiled: Path, tmp_path: Path) -> None:
    done = cli("evaluate", next((profiled / "artifacts").glob("*--ort-fp32")), "--out", tmp_path / "out")
    assert 3 == done.returncode
    assert "no labelled images were given" in error_line(done)


def test_cut_short_predictions_are_made_again(profiled: Path, inputs: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "copy"
    shutil.copytree(profiled, out)
    file = next((variant(out, "ort-fp32") / "predictions").glob("*.npz"))
    file.write_bytes(file.read_bytes()[:500])
    refused = cli("report", out, "--rescore")
    assert 3 == refused.returncode
    assert str(file) in error_line(refused)
    kept = cli(*words(inputs, out, "--resume"))
    assert (3, True) == (kept.returncode, str(file) in kept.stderr)
    (variant(out, "ort-fp32") / "run.json").unlink()
    done = cli(*words(inputs, out, "--resume"))
    assert 0 == done.returncode, done.stderr


def test_a_narrow_terminal_drops_columns_instead_of_digits(profiled: Path) -> None:
    from edgebench import report
    from edgebench.terminal import _fitting

    content = report.table(report.discover([profiled]))
    assert len(content.headers) == len(_fitting(content, 200))
    shown = [content.headers[k] for k in _fitting(content, 80)]
    assert "Size MB" not in shown
    assert {"Variant", "Top-1 %", "p50 ms"} <= set(shown)
