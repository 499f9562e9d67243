"""`--until` from the command line, end to end: variants that stop early, one that does not, and what follows of it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from edgebench import decisions, gate, policy, properties, sequential, until
from edgebench.artifacts import write_manifest
from edgebench.properties import Pass
from edgebench.record import DatasetIdentity, Run, dump, load, load_artifact
from tests.commands import cli
from tests.finished_runs import ACCURACY, FLIPS, SINCE, policy_file
from tests.models import CLASSES, class_file, onnx_file, preprocess_file
from tests.test_report import Page

IMAGES = 900
LOSS = ACCURACY.replace("0.01", "0.03")
ECE = ('[[rules]]\nid = "ece"\nmetric = "ece15_ew"\nagainst = "reference"\nmax_increase_absolute = 0.05\n')


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labelled images, nearly all answered right by an FP32 artifact, and other artifacts of its model.

    ``same`` answers alike, ``broken`` names other classes, ``near`` loses three images of a hundred.
    """
    root = tmp_path_factory.mktemp("until")
    files = {name: onnx_file(root / f"{name}.onnx") for name in ("m", "same", "broken", "near")}
    weight = np.array([[4, 0, 0], [0, 4, 0], [0, 0, 4]], np.float32)
    # The last one names the second class where the first has a little less than its usual share.
    for name, matrix in (("m", weight), ("same", weight), ("broken", np.roll(weight, 1, axis=1)),
                         ("near", weight + np.array([[0, 2.8, 0], [0] * 3, [0] * 3], np.float32))):
        model = onnx.load(files[name])
        next(one for one in model.graph.initializer if one.name == "weight").CopyFrom(onnx.numpy_helper.from_array(matrix, "weight"))
        onnx.save(model, files[name])
    _images(root / "data")
    for name, file in files.items():
        done = cli("export", file, "--recipe", "ort-fp32", "--out", root / "artifacts" / name, "--preprocess",
                         preprocess_file(root), "--classes", class_file(root), cwd=root)
        assert 0 == done.returncode, done.stderr
    model = load_artifact(_artifact(root, "m")).model
    for name in ("same", "broken", "near"):
        folder = _artifact(root, name)
        one = load_artifact(folder)
        write_manifest(folder, replace(one, model=model, recipe=replace(one.recipe, id=f"ort-{name}", precision="bf16")))
    return root


def _images(folder: Path) -> None:
    generator = np.random.default_rng(0)
    for k in range(IMAGES):
        colour = generator.integers(0, 150, 3)
        right = k % 3
        colour[right] = 155 + generator.integers(0, 100)
        place = folder / CLASSES[(right + (k % 60 == 0)) % 3]
        place.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), tuple(int(one) for one in colour)).save(place / f"{k:04d}.png")


def _artifact(root: Path, name: str) -> Path:
    return next((root / "artifacts" / name).iterdir())


def evaluate(made: Path, out: Path, policy_: Path | str, *names: str, more: tuple[str, ...] = ()):
    return cli("evaluate", *(_artifact(made, name) for name in names), "--data", made / "data", "--until", policy_,
                     "--allow-precision-fallback", "--out", out, *more, cwd=out.parent)


@pytest.fixture(scope="module")
def evaluated(made: Path) -> Path:
    """An output folder with the reference and three variants, stopped by a policy of accuracy and flips."""
    out = made / "out"
    done = evaluate(made, out, policy_file(made, LOSS, FLIPS), "m", "same", "broken", "near")
    assert 0 == done.returncode, done.stderr
    (made / "stderr.txt").write_text(done.stderr)
    return out


def variant(out: Path, name: str) -> tuple[Run, Path]:
    folder = out / f"m.onnx--ort-{name}--onnxruntime"
    return load(folder), folder


def test_an_equal_variant_passes_and_a_broken_one_fails_long_before_all_images(evaluated: Path, made: Path) -> None:
    assert [IMAGES] == [one.dataset.images for one in variant(evaluated, "fp32")[0].passes]
    for name, status, code in (("same", "pass", 0), ("broken", "fail", 1)):
        run, folder = variant(evaluated, name)
        assert run.evaluations[0].dataset.images == run.passes[0].dataset.images < IMAGES / 2
        assert IMAGES == run.passes[0].part_of.images
        done = cli("gate", folder, "--policy", made / "policy.toml", "--json", cwd=made)
        assert code == done.returncode, done.stderr
        verdicts = json.loads(done.stdout)["gates"][0]["verdicts"]
        assert [status] * 2 == [one["status"] for one in verdicts]
        assert all("however often one looks" in one["message"] for one in verdicts)


def test_what_is_not_decided_uses_all_images_and_is_inconclusive(evaluated: Path, made: Path) -> None:
    run, folder = variant(evaluated, "near")
    assert (None, IMAGES) == (run.passes[0].part_of, run.passes[0].dataset.images)
    assert "stopped-early" not in [one.code for one in run.caveats]
    done = cli("gate", folder, "--policy", made / "policy.toml", "--strict", cwd=made)
    assert 4 == done.returncode, done.stdout + done.stderr
    assert f"not decided by {IMAGES} images" in done.stdout
    # Stored like any other whole pass: in the order of the data set.
    assert variant(evaluated, "fp32")[0].passes == run.passes
    theirs, mine = (np.load(variant(evaluated, name)[1] / "predictions" / "data--clean--native.npz")
                    for name in ("fp32", "near"))
    assert np.array_equal(theirs["ids"], mine["ids"])
    assert np.array_equal(theirs["targets"], mine["targets"])


def test_decisions_are_those_of_the_plain_functions_on_the_first_images_in_random_order(evaluated: Path) -> None:
    (reference, where), (run, folder) = variant(evaluated, "fp32"), variant(evaluated, "broken")
    key = Pass("data")
    before = properties.load_predictions(where / key.file, reference.passes[0].dataset, reference.artifact.digest)
    after = properties.load_predictions(folder / key.file, run.passes[0].dataset, run.artifact.digest)
    n = len(after.ids)
    order = until.image_order(IMAGES, 0)
    assert before.ids[order][:n].tolist() == after.ids.tolist()
    assert before.targets[order][:n].tolist() == after.targets.tolist()
    file = decisions.load(folder)
    paths = {one.rule: one for one in file.paths}
    looks = [step.n for step in paths["accuracy"].steps]
    assert n == looks[-1]
    expected = sequential.difference_path(before.outcomes.correct[order][:n], after.outcomes.correct, looks, 0.03)
    assert expected == paths["accuracy"].steps
    # Nothing was decided at the look before, or evaluation would have stopped there.
    assert max(sequential.steps_until_decision(one.steps, 0.05) for one in file.paths) == n


def test_scores_and_their_pairing_are_of_the_images_seen_and_computed_afresh_alike(evaluated: Path, made: Path) -> None:
    run, folder = variant(evaluated, "broken")
    n = run.passes[0].dataset.images
    assert n == run.score("negative_flips").n
    with np.load(folder / "predictions" / "data--clean--native.npz") as arrays:
        right = (arrays["logits"].argmax(1) == arrays["targets"]).mean()
    assert right == run.score("accuracy_top1").value
    plain, again = (cli("report", evaluated, "--json", *more, cwd=made) for more in ((), ("--rescore",)))
    assert (0, 0) == (plain.returncode, again.returncode), plain.stderr + again.stderr
    assert json.loads(plain.stdout) == json.loads(again.stdout)
    message = next(one.message for one in run.caveats if one.code == "stopped-early")
    assert f"stopped after {n} of {IMAGES} images" in message


def test_progress_tells_images_and_open_rules(evaluated: Path, made: Path) -> None:
    text = (made / "stderr.txt").read_text()
    assert "evaluating data: 2 of 2 rules open at 16 images" in text
    assert "evaluating data: 0 of 2 rules open at" in text


def test_pages_show_the_path_of_each_decision(evaluated: Path, made: Path) -> None:
    cli("gate", evaluated, "--policy", made / "policy.toml", "--html", made / "gate.html", cwd=made)
    for file in (made / "gate.html", evaluated / "report.html"):
        page = Page(file.read_text())
        assert 2 * 3 <= len([1 for tag, _ in page.tags if tag == "polygon"]), file
        assert "accuracy on data: pass after" in page.words


def test_another_policy_decides_nothing_on_what_was_stopped(evaluated: Path, made: Path) -> None:
    (made / "other").mkdir()
    other = policy_file(made / "other", LOSS.replace("0.03", "0.5"))
    for name, status in (("same", "inconclusive"), ("near", "pass")):
        run, folder = variant(evaluated, name)
        chosen = policy.load(other)
        fixed = gate.judge(chosen, (run, folder))
        assert ["pass"] == [one.status for one in fixed.verdicts]
        assert [status] == [one.status for one in decisions.decided(fixed, chosen, run, folder).verdicts]


def test_resuming_keeps_what_is_decided_and_goes_on_with_the_rest(evaluated: Path, made: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(evaluated, out)
    kept, lost = (out / f"m.onnx--ort-{name}--onnxruntime" for name in ("same", "broken"))
    stored = {folder: (folder / "predictions" / "data--clean--native.npz") for folder in (kept, lost)}
    before = {folder: (file.stat().st_mtime_ns, file.stat().st_ino) for folder, file in stored.items()}
    decided = {folder: (folder / "decisions.json").read_bytes() for folder in stored}
    # One was killed after its evaluation, the other between its decisions and its predictions.
    (kept / "run.json").unlink()
    (lost / "run.json").unlink()
    stored[lost].unlink()
    done = evaluate(made, out, made / "policy.toml", "m", "same", "broken", "near", more=("--resume",))
    assert 0 == done.returncode, done.stderr
    assert before[kept] == (stored[kept].stat().st_mtime_ns, stored[kept].stat().st_ino)
    assert decided == {folder: (folder / "decisions.json").read_bytes() for folder in stored}
    for name in ("same", "broken"):
        assert variant(evaluated, name)[0].evaluations == variant(out, name)[0].evaluations
    assert [] == list(out.glob("*/.until-*"))


def test_a_killed_evaluation_is_resumed_to_the_same_decisions(evaluated: Path, made: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    # Python runs this file first; it kills the worker of one variant while it looks at its rules.
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys, threading, time\nfrom pathlib import Path\n"
        "def watch(folder):\n"
        "    while not any(file.stat().st_size for file in folder.glob('.until-*/0')):\n"
        "        time.sleep(0.0002)\n"
        "    os.kill(os.getpid(), 9)\n"
        "job = next((Path(one) for one in sys.orig_argv if one.endswith('--ort-near--onnxruntime/job.json')), None)\n"
        "if job is not None:\n"
        "    threading.Thread(target=watch, args=(job.parent,), daemon=True).start()\n")
    words = ("evaluate", _artifact(made, "m"), _artifact(made, "near"), "--data", made / "data", "--until",
             made / "policy.toml", "--allow-precision-fallback", "--out", out)
    path = f"{tmp_path}:{Path(__file__).resolve().parents[1]}"
    done = cli(*words, cwd=tmp_path, env={"PYTHONPATH": path})
    assert 3 == done.returncode
    assert "was killed by signal 9" in done.stderr
    assert not (out / "m.onnx--ort-near--onnxruntime" / "decisions.json").exists()
    done = cli(*words, "--resume", cwd=tmp_path)
    assert 0 == done.returncode, done.stderr
    assert decisions.decision_paths(variant(evaluated, "near")[1]) == decisions.decision_paths(variant(out, "near")[1])


def test_partial_and_whole_are_never_mixed(evaluated: Path, made: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(evaluated, out)
    words = ("evaluate", _artifact(made, "m"), _artifact(made, "same"), "--data", made / "data", "--properties",
             "accuracy", "--allow-precision-fallback", "--out", out)
    done = cli(*words, "--resume", cwd=tmp_path)
    assert 2 == done.returncode
    assert "was measured with other settings" in done.stderr
    (out / "m.onnx--ort-same--onnxruntime" / "run.json").unlink()
    done = cli(*words, "--resume", cwd=tmp_path)
    assert 0 == done.returncode, done.stderr
    run, folder = variant(out, "same")
    assert (None, IMAGES, None) == (run.settings.until, run.passes[0].dataset.images, run.passes[0].part_of)
    assert not (folder / "decisions.json").exists()


@pytest.fixture(scope="module")
def release(made: Path) -> Path:
    """A run of the variant that answers alike, on all images."""
    out = made / "release"
    done = cli("evaluate", _artifact(made, "m"), _artifact(made, "same"), "--data", made / "data", "--out", out,
               "--allow-precision-fallback", cwd=made)
    assert 0 == done.returncode, done.stderr
    return variant(out, "same")[1]


def test_rules_against_a_baseline_are_followed_where_it_is_named(release: Path, made: Path, tmp_path: Path) -> None:
    ece = ECE.replace("ece", "ece-since", 1).replace('"reference"', '"baseline"')
    out, rules = tmp_path / "out", policy_file(tmp_path, FLIPS, SINCE.replace("0.02", "0.05"), ece)
    done = evaluate(made, out, rules, "m", "same", "broken", more=("--baseline", str(release)))
    assert 0 == done.returncode, done.stderr
    for name, status in (("same", "pass"), ("broken", "fail")):
        run, folder = variant(out, name)
        assert run.passes[0].dataset.images < IMAGES
        gated = cli("gate", folder, "--policy", rules, "--baseline", release, "--json", cwd=made)
        verdicts = {one["rule"]: one for one in json.loads(gated.stdout)["gates"][0]["verdicts"]}
        assert status == verdicts["since"]["status"]
        assert "however often one looks" in verdicts["since"]["message"]
        assert "checkpoints" in verdicts["ece-since"]["method"]
        path = next(one for one in decisions.decision_paths(folder) if one.rule == "since")
        before = properties.load_predictions(release / "predictions" / "data--clean--native.npz", load(release).passes[0].dataset,
                                             load(release).artifact.digest)
        after = np.load(folder / "predictions" / "data--clean--native.npz")
        rows = properties.rows_of(before.ids, after["ids"])
        right = before.outcomes.take(rows).correct
        again = sequential.difference_path(right, after["logits"].argmax(axis=1) == after["targets"], [one.n for one in path.steps],
                                           0.05)
        assert [one.value for one in again] == pytest.approx([one.value for one in path.steps])


def test_decisions_against_one_baseline_say_nothing_about_another(release: Path, made: Path, tmp_path: Path) -> None:
    out, rules = tmp_path / "out", policy_file(tmp_path, FLIPS, SINCE)
    assert 0 == evaluate(made, out, rules, "m", "same", more=("--baseline", str(release))).returncode
    other = tmp_path / "other"
    shutil.copytree(release, other)
    dump(replace(load(other), created_at="2026-01-01T00:00:00+00:00"), other / "run.json")
    gated = cli("gate", variant(out, "same")[1], "--policy", rules, "--baseline", other, "--json", cwd=made)
    verdicts = {one["rule"]: one for one in json.loads(gated.stdout)["gates"][0]["verdicts"]}
    assert ("pass", "inconclusive") == (verdicts["flips"]["status"], verdicts["since"]["status"])
    assert "was not followed" in verdicts["since"]["message"]


def test_a_baseline_of_other_images_stands_against_it(release: Path, evaluated: Path, made: Path, tmp_path: Path) -> None:
    stopped = variant(evaluated, "same")[1]
    done = evaluate(made, tmp_path / "out", policy_file(tmp_path, FLIPS, SINCE), "m", "same", more=("--baseline", str(stopped)))
    assert 3 == done.returncode
    assert "the baseline" in done.stderr
    assert "not all of them" in done.stderr


def test_a_baseline_without_a_policy_is_refused(release: Path, made: Path, tmp_path: Path) -> None:
    done = cli("evaluate", _artifact(made, "m"), "--data", made / "data", "--baseline", release, "--out", tmp_path / "o", cwd=made)
    assert 2 == done.returncode
    assert "--until" in done.stderr


def test_binned_errors_are_decided_at_checkpoints(made: Path, tmp_path: Path) -> None:
    done = evaluate(made, tmp_path / "out", policy_file(tmp_path, LOSS, ECE), "m", "same")
    assert 0 == done.returncode, done.stderr
    run, folder = variant(tmp_path / "out", "same")
    paths = {one.rule: one for one in decisions.decision_paths(folder)}
    # Checkpoints lie at 200, 330, 545 and 900 images; batches have 16.
    assert {208, 336, 560, IMAGES} >= {step.n for step in paths["ece"].steps}
    assert paths["ece"].steps[-1].n == run.passes[0].dataset.images < IMAGES
    assert paths["accuracy"].decision == paths["ece"].decision == "pass"
    assert "checkpoints" in paths["ece"].method


@pytest.mark.parametrize(("names", "rules", "more", "message"), [
    (("m", "same"), '[[rules]]\nid = "r"\nmetric = "latency_p50"\nmax = 1.0\n', (),
     "none of its rules can be decided while images come in"),
    (("same",), LOSS, (), "rule 'accuracy' compares with the FP32 reference, and none of"),
    (("m",), LOSS, (), "--until has nothing to stop"),
    (("m", "same"), LOSS + 'dataset = "elsewhere"\n', (), "no labelled images that its rules are about"),
    (("m", "same"), LOSS, ("--properties", "accuracy,invariance"), "cannot stop early where invariance is evaluated"),
    (("m", "same"), LOSS, ("--properties", "calibration"), "nothing that its rules are about is evaluated"),
])
def test_what_stands_against_it_is_one_line_before_anything_is_measured(made: Path, tmp_path: Path, names, rules, more,
                                                                        message: str) -> None:
    done = evaluate(made, tmp_path / "out", policy_file(tmp_path, rules), *names, more=more)
    assert 2 == done.returncode, done.stderr
    assert message in next(line for line in done.stderr.splitlines() if line.startswith("error: "))
    assert [] == list((tmp_path / "out").glob("*/measurement.json"))


def test_an_unknown_policy_is_named_with_the_nearest_one(made: Path, tmp_path: Path) -> None:
    done = evaluate(made, tmp_path / "out", "survive-quantization", "m", "same")
    assert 2 == done.returncode
    assert "unknown policy 'survive-quantization'; did you mean 'survives-quantization'?" in done.stderr


def test_predictions_of_some_images_are_taken_by_name(evaluated: Path) -> None:
    run, folder = variant(evaluated, "fp32")
    whole = properties.load_predictions(folder / Pass("data").file, run.passes[0].dataset, run.artifact.digest)
    rows = np.random.default_rng(1).permutation(IMAGES)[:10]
    name = DatasetIdentity(name="data", source="", images=10, classes=3, digest="0")
    found = properties.narrowed(whole, whole.ids[rows], name)
    assert np.array_equal(whole.logits[rows], found.logits)
    assert np.array_equal(whole.outcomes.correct[rows], found.outcomes.correct)
    with pytest.raises(properties.InvalidInput, match="did not see all of these 1 images"):
        properties.narrowed(whole, np.array(["cat/none.png"]), name)
