"""All properties from the command line, on a whole data root in miniature and on a user's own folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from edgebench import corruptions, evaluate, properties
from edgebench.class_subsets import IMAGENET_A, IMAGENET_R
from edgebench.datasets import imagenet_wnids
from edgebench.properties import Pass
from edgebench.record import Run, load
from tests.commands import cli, interrupt
from tests.conftest import picture
from tests.models import CLASSES, class_file, tiny_weights

WNIDS = imagenet_wnids()
MODEL = "timm:test_efficientnet"


def put(folder: Path, *names: str, first: int = 0) -> None:
    for seed, name in enumerate(names, first):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        picture(seed, 190, 170).save(folder / name)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with every set that is known, a handful of pictures in each."""
    folder = tmp_path_factory.mktemp("root") / "data"
    put(folder / "imagenet" / "val", *(f"{WNIDS[k]}/ILSVRC2012_val_{number:08d}.JPEG" for k, number in
                                       ((65, 1), (970, 2), (230, 3), (809, 4), (516, 5), (57, 6))))
    put(folder / "imagenet-v2", "0/a.jpeg", "10/b.jpeg", "2/c.jpeg", first=10)
    put(folder / "imagenet-a", *(f"{WNIDS[k]}/x.jpg" for k in IMAGENET_A[:3]), first=20)
    put(folder / "imagenet-r", *(f"{WNIDS[k]}/x.jpg" for k in IMAGENET_R[:40]), first=30)
    put(folder / "imagenet-sketch", f"{WNIDS[4]}/x.jpg", f"{WNIDS[5]}/y.jpg", first=80)
    for kind, severity in (("fog", 1), ("fog", 2), ("jpeg_compression", 5)):
        put(folder / "imagenet-c" / kind / str(severity), f"{WNIDS[4]}/x.JPEG", f"{WNIDS[5]}/y.JPEG", first=90)
    put(folder / "imagenet-hard", "a.png", "b.png", first=100)
    (folder / "imagenet-hard" / "labels.jsonl").write_text(
        json.dumps({"file": "a.png", "labels": list(range(12))}) + "\n" + json.dumps({"file": "b.png", "labels": [7]}))
    put(folder / "cue-conflict", "cat/cat1-dog1.png", "cat/cat2-cat1.png", "dog/dog1-truck2.png", "truck/truck1-cat3.png",
        first=110)
    put(folder / "pug_imagenet", "Worlds/Wolf/a.png", "Worlds/Shirt/b.png", "Scene_Light/Wolf/c.png", first=120)
    (folder / "pug_imagenet" / "class_to_imagenet_idx.json").write_text(
        json.dumps({"Wolf": [269, 270, 271, 272], "Shirt": [841]}))
    for split, count in (("train800", 6), ("val200", 3), ("test", 4)):
        put(folder / "vtab" / "dtd" / split, *(f"{name}/{k}.png" for name in ("banded", "dotted") for k in range(count)),
            first=130)
    put(folder / "imagenet-o", "n1/a.png", "n2/b.png", "n2/c.png", first=160)
    return folder


@pytest.fixture(scope="module")
def profiled(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An FP32 and an INT8 variant of a 1,000-class network on the whole root."""
    folder = tmp_path_factory.mktemp("seven")
    put(folder / "calibration", *(f"x/{k}.png" for k in range(8)), first=500)
    done = cli("profile", MODEL, "--weights", tiny_weights(folder, 1000), "--data", root, "--calibration-data",
               folder / "calibration", "--recipe", "ort-fp32,ort-int8", "--budget", "smoke", "--sweep-images", "4",
               "--resolutions", "112,224", "--out", folder / "out")
    assert 0 == done.returncode, done.stderr
    (folder / "out" / "stderr.txt").write_text(done.stderr)
    return folder / "out"


def run_of(out: Path, recipe: str) -> tuple[Run, Path]:
    (file,) = out.glob(f"*--{recipe}--*/run.json")
    return load(file), file.parent


def evaluated(run: Run, name: str) -> set[tuple[str, str]]:
    return {(one.dataset.name, one.condition) for one in run.evaluations if one.property == name}


class TestAWholeRoot:
    def test_every_property_is_scored(self, profiled):
        run, _ = run_of(profiled, "ort-int8")
        assert set(properties.NAMES) == {one.property for one in run.evaluations}

    def test_each_property_sees_its_own_sets(self, profiled):
        run, _ = run_of(profiled, "ort-fp32")
        assert {("imagenet-val", "clean")} == evaluated(run, "accuracy") == evaluated(run, "mistakes")
        assert {("imagenet-val", "clean"), ("imagenet-r", "clean")} == evaluated(run, "calibration")
        assert {("cue-conflict", "clean")} == evaluated(run, "shape-bias")
        assert {"imagenet-v2", "imagenet-a", "imagenet-r", "imagenet-sketch", "imagenet-hard", "imagenet-c"} <= {
            name for name, _ in evaluated(run, "robustness")}
        assert {("imagenet-val", family) for family in ("scale", "shift", "resolution")} == evaluated(run, "invariance")
        assert {"pug/Worlds", "pug/Scene_Light"} <= {name for name, _ in evaluated(run, "synthetic")}

    def test_a_pass_serves_every_property_that_needs_it_once(self, profiled):
        run, folder = run_of(profiled, "ort-fp32")
        keys = [(one.dataset.name, one.condition, one.preset) for one in run.passes]
        assert len(set(keys)) == len(keys) == len(list((folder / "predictions").glob("*.npz")))
        assert 1 == keys.count(("imagenet-val", "clean", "native"))

    def test_where_imagenet_c_is_on_disk_none_is_generated(self, profiled):
        run, _ = run_of(profiled, "ort-fp32")
        corrupted = {(one.dataset.name, one.condition) for one in run.passes if corruptions.parse(one.condition)}
        assert {("imagenet-c", "fog:1"), ("imagenet-c", "fog:2"), ("imagenet-c", "jpeg_compression:5")} == corrupted

    def test_files_of_imagenet_c_that_are_resized_for_the_model_are_said_to_be(self, profiled):
        run, _ = run_of(profiled, "ort-int8")
        (skip,) = [one for one in run.skips if one.what == "imagenet-c without resizing"]
        assert "the model takes 160×160 pixels" in skip.reason

    def test_no_doubt_is_told_twice(self, profiled):
        run, _ = run_of(profiled, "ort-fp32")
        assert len(set(run.caveats)) == len(run.caveats)

    def test_resolutions_run_on_graphs_of_their_own_and_the_rest_is_skipped_with_the_way_to_it(self, profiled):
        run, _ = run_of(profiled, "ort-int8")
        assert {112, 224} == {one.size_px for one in run.artifact.resolutions}
        assert {"resolution:112", "resolution:224"} == {
            one.condition for one in run.passes if one.condition.startswith("resolution")}
        (skip,) = [one for one in run.skips if one.what.startswith("resolution")]
        assert "export with --resolutions" in skip.reason
        deployed = [entry.path for entry in run.artifact.files if entry.deployed]
        assert not any("resolutions" in path for path in deployed)

    def test_stored_targets_and_labels_are_those_of_the_folders(self, profiled):
        run, folder = run_of(profiled, "ort-fp32")
        stored = evaluate.load_passes(folder, run.passes, run.artifact.digest)
        v2 = stored[Pass("imagenet-v2")]
        assert {"0/a.jpeg": 0, "10/b.jpeg": 10, "2/c.jpeg": 2} == dict(zip(v2.ids.tolist(), v2.targets.tolist(), strict=True))
        hard = stored[Pass("imagenet-hard")].labels
        assert hard is not None
        assert [list(range(12)), [7] + [-1] * 11] == hard.tolist()
        wolf = stored[Pass("pug/Worlds")].labels
        assert wolf is not None
        assert [[841, -1, -1, -1], [269, 270, 271, 272]] == wolf.tolist()

    def test_the_probe_reads_what_the_head_reads(self, profiled):
        import torch

        from edgebench.sources import open_source

        run, folder = run_of(profiled, "ort-fp32")
        stored = evaluate.load_passes(folder, run.passes, run.artifact.digest)[Pass("vtab/dtd/test")]
        assert stored.features is not None
        source = open_source(MODEL, weights=str(profiled.parent / "tiny-1000.pth"))
        head = source.program.network.get_classifier()
        with torch.inference_mode():
            logits = head(torch.from_numpy(np.array(stored.features))).numpy()
        np.testing.assert_allclose(stored.logits, logits, atol=1e-3)

    def test_rescoring_without_a_device_gives_the_stored_scores(self, profiled):
        done = cli("report", profiled, "--rescore", "--json")
        assert 0 == done.returncode, done.stderr
        again = json.loads(done.stdout)
        assert again["variants"] == json.loads((profiled / "summary.json").read_text())["variants"]
        run, folder = run_of(profiled, "ort-int8")
        reference, place = run_of(profiled, "ort-fp32")
        afresh = evaluate.rescore(run, folder, (reference, place))
        assert afresh == run.evaluations

    def test_the_report_shows_it(self, profiled):
        text = (profiled / "report.html").read_text()
        for word in ("Robustness", "Invariance", "shape bias"):
            assert word.lower() in text.lower()

    def test_resume_runs_lost_passes_alone(self, profiled, root, tmp_path):
        import shutil

        copy = tmp_path / "out"
        shutil.copytree(profiled, copy)
        run, folder = run_of(copy, "ort-fp32")
        (folder / "run.json").unlink()
        lost = [folder / Pass("imagenet-a").file, folder / Pass("imagenet-val", "scale:0.5").file]
        for file in lost:
            file.unlink()
        kept = {file: file.stat().st_mtime_ns for file in (folder / "predictions").glob("*.npz")}
        words = ["profile", MODEL, "--weights", profiled.parent / "tiny-1000.pth", "--data", root, "--calibration-data",
                 profiled.parent / "calibration", "--recipe", "ort-fp32,ort-int8", "--budget", "smoke", "--sweep-images",
                 "4", "--resolutions", "112,224", "--out", copy, "--resume"]
        done = cli(*words)
        assert 0 == done.returncode, done.stderr
        assert all(file.exists() for file in lost)
        assert kept == {file: file.stat().st_mtime_ns for file in kept}
        assert run.evaluations == run_of(copy, "ort-fp32")[0].evaluations


@pytest.fixture(scope="module")
def factory(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A user's own folder of three classes, and pictures of something else."""
    folder = tmp_path_factory.mktemp("factory")
    put(folder / "parts", *(f"{name}/{k}.png" for name in CLASSES for k in range(8)))
    put(folder / "elsewhere", *(f"{k}.png" for k in range(6)), first=700)
    return {"data": folder / "parts", "ood": folder / "elsewhere", "weights": tiny_weights(folder),
            "classes": class_file(folder), "folder": folder}


@pytest.fixture(scope="module")
def out(factory: dict[str, Path]) -> Path:
    """The folder's run with every property that it allows."""
    model = [MODEL, "--weights", factory["weights"], "--classes", factory["classes"], "--recipe", "ort-fp32"]
    done = cli(*user_words(factory, model, factory["folder"] / "out"))
    assert 0 == done.returncode, done.stderr
    return factory["folder"] / "out"


def user_words(factory: dict[str, Path], model: Sequence[str | Path], out: Path, *more: str | Path) -> list[str | Path]:
    return ["profile", *model, "--data", factory["data"], "--ood", factory["ood"], "--budget", "smoke", "--sweep-images",
            "6", "--out", out, *more]


@pytest.fixture
def again(factory: dict[str, Path], out: Path) -> Callable[..., list[str | Path]]:
    """The words that profile the artifact of that run into another folder."""
    return partial(user_words, factory, [*(out / "artifacts").iterdir()])


class TestAUsersOwnFolder:
    def test_everything_that_makes_sense_works_without_any_imagenet(self, out):
        run, _ = run_of(out, "ort-fp32")
        assert {"accuracy", "calibration", "robustness", "transfer", "invariance"} == {
            one.property for one in run.evaluations}
        assert ("parts", "imagenet-c-generated") in evaluated(run, "robustness")
        assert ("ood/elsewhere", "ood:parts") in evaluated(run, "robustness")

    def test_what_has_no_data_is_a_skip_with_the_expected_layout(self, out):
        run, _ = run_of(out, "ort-fp32")
        reasons = {one.what: one.reason for one in run.skips}
        for name, layout in (("mistakes", "imagenet/val/<wnid>"), ("shape-bias", "cue-conflict/<shape>"),
                             ("synthetic", "pug_imagenet/<Subset>")):
            assert layout in reasons[name]

    def test_all_nineteen_corruptions_are_made_at_five_severities(self, out):
        run, _ = run_of(out, "ort-fp32")
        made = [one for one in run.passes if corruptions.parse(one.condition)]
        assert 19 * 5 == len(made)
        assert {6} == {one.dataset.images for one in made}

    def test_the_compact_form_takes_less_room_and_says_what_it_lacks(self, again, out, tmp_path):
        done = cli(*again(tmp_path / "compact", "--store", "compact", "--properties", "accuracy,calibration"))
        assert 0 == done.returncode, done.stderr
        compact, _ = run_of(tmp_path / "compact", "ort-fp32")
        whole, _ = run_of(out, "ort-fp32")
        for name in ("accuracy_top1", "ece15_ew", "nll", "brier", "aurc"):
            mine, theirs = compact.score(name), whole.score(name)
            assert mine is not None
            assert mine == theirs
        lost = compact.score("cwece")
        assert lost is not None
        assert (None, True) == (lost.value, "compact" in (lost.reason or ""))

    def test_an_unknown_preset_or_store_is_a_usage_error(self, again, tmp_path):
        for option, value, known in (("--preset", "papre", "paper"), ("--store", "compcat", "compact")):
            done = cli(*again(tmp_path / "out", option, value))
            assert (2, True) == (done.returncode, known in done.stderr)

    def test_a_kill_loses_at_most_one_pass(self, again, tmp_path):
        killed = tmp_path / "out"
        words = again(killed, "--properties", "robustness")
        code, errors = interrupt(*words, when=lambda: len(list(killed.glob("*/predictions/*.npz"))) >= 20)
        assert 3 == code, errors
        kept = {file: file.stat().st_mtime_ns for file in killed.glob("*/predictions/*.npz")}
        assert len(kept) >= 20
        done = cli(*words, "--resume")
        assert 0 == done.returncode, done.stderr
        after = {file: file.stat().st_mtime_ns for file in killed.glob("*/predictions/*.npz")}
        assert kept.items() <= after.items()
