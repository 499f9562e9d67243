"""What a file says is believed only as far as it can be: names, paths, links, seals, ranges and digests."""

from __future__ import annotations

import io
import json
import shutil
import time
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import onnx
import pytest

from edgebench import arrays, artifacts, baselines, decisions, evaluate, finished, floors, history, record
from edgebench.checks import is_inner_path, is_name
from edgebench.errors import InvalidInput, UsageError
from edgebench.recipe import Recipe
from edgebench.record import FileEntry, ResolutionEntry
from edgebench.timing_types import NoiseFloor
from tests import builders
from tests.commands import cli
from tests.finished_runs import ACCURACY, FLIPS, FP32, INT8, KEY, logits, names, policy_file, write_pair

OUTSIDE = ["../x", "a/../../x", "/etc/x", "..", ".", "", "a//b", "a/", "./a", "a\\b", "a\nb", "a\0b", "x" * 1100]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An artifact of two files and one for another size, whose manifest is whole."""
    place = tmp_path / "artifact"
    (place / "resolutions" / "96").mkdir(parents=True)
    for name in ("model.onnx", "golden.npz", "resolutions/96/model.onnx"):
        (place / name).write_bytes(name.encode())
    made = builders.artifact(builders.recipe("ort-fp32"))
    artifacts.write_manifest(place, replace(made, files=artifacts.list_files(place), resolutions=(
        ResolutionEntry(size_px=96, entry="resolutions/96/model.onnx"),)))
    return place


def edit(file: Path, change: Callable[[Any], object], *, reseal: bool = False) -> None:
    """Change a JSON file as an attacker would, who may compute its seal again."""
    data = json.loads(file.read_text())
    change(data)
    if reseal and "sealed" in data:
        data["sealed"] = record.seal_of(data)
    file.write_text(json.dumps(data))


class TestNames:
    @pytest.mark.parametrize("text", ["resnet50--ort-int8--onnxruntime", "a", "ü", "v1.2_x+y", "x" * 200])
    def test_a_name_is_one_component_of_a_path(self, text: str) -> None:
        assert is_name(text)

    @pytest.mark.parametrize("text", ["", ".", "..", ".x", "-x", "a/b", "a\\b", "a:b", "a\nb", "a\x7f", "a\0", "\ud800",
                                      "x" * 201, "ü" * 101, "a\u2028b"])
    def test_nothing_else_is_a_name(self, text: str) -> None:
        assert not is_name(text)

    @pytest.mark.parametrize("text", OUTSIDE)
    def test_a_path_that_leaves_its_folder_is_refused(self, text: str) -> None:
        assert not is_inner_path(text)
        with pytest.raises(ValueError, match="expected path to be a relative path inside its folder"):
            FileEntry(path=text, sha256="0" * 64, size_bytes=1)

    @pytest.mark.parametrize("key", [
        ("variant",), ("reference", "variant"), ("device", "id"), ("artifact", "recipe", "id"), ("artifact", "entry"),
        ("artifact", "golden"), ("artifact", "files", 0, "path"), ("evaluations", 0, "predictions", 0)])
    def test_a_run_that_names_a_place_outside_is_refused_with_the_field(self, tmp_path: Path, key: tuple[Any, ...]) -> None:
        file = write_pair(tmp_path, images=30) / INT8 / "run.json"

        def change(data: Any) -> None:
            for part in key[:-1]:
                data = data[part]
            data[key[-1]] = "../../../x"

        edit(file, change, reseal=True)
        with pytest.raises(InvalidInput) as refused:
            record.load(file)
        assert str(file) in refused.value.message
        assert "../../../x" in refused.value.message

    def test_promote_writes_nothing_outside_the_history(self, tmp_path: Path) -> None:
        run = write_pair(tmp_path / "out", images=30) / INT8 / "run.json"
        edit(run, lambda data: data.update(variant="../../../escaped"), reseal=True)
        before = sorted(tmp_path.rglob("*"))
        done = cli("baseline", "promote", run, "--why", "x", "--by", "y", "--history", tmp_path / "a" / "b" / "history")
        assert 3 == done.returncode
        assert before == sorted(tmp_path.rglob("*"))

    @pytest.mark.parametrize("name", ["../x", "a/b", "", ".x", "-x", "a\nb"])
    def test_a_baseline_has_a_name(self, tmp_path: Path, name: str) -> None:
        file = write_pair(tmp_path / "out", images=30) / INT8 / "run.json"
        with pytest.raises(UsageError):
            baselines.promote(record.load(file), file, location=str(tmp_path / "history"), why="x", by="y", name=name)
        assert not (tmp_path / "history").exists()

    @pytest.mark.parametrize("run", ["../elsewhere/run.json", "/tmp/run.json", "memory://x/run.json"])
    def test_a_promotion_that_points_elsewhere_is_refused(self, tmp_path: Path, run: str) -> None:
        file = write_pair(tmp_path / "out", images=30) / INT8 / "run.json"
        history = tmp_path / "history"
        baselines.promote(record.load(file), file, location=str(history), why="x", by="y")
        edit(history / baselines.PROMOTIONS, lambda data: data["promotions"][0].update(run=run))
        with pytest.raises(InvalidInput, match="run"):
            baselines.promotions(str(history))

    def test_a_promoted_run_behind_a_link_out_of_the_history_is_refused(self, tmp_path: Path) -> None:
        file = write_pair(tmp_path / "out", images=30) / INT8 / "run.json"
        history = tmp_path / "history"
        baselines.promote(record.load(file), file, location=str(history), why="x", by="y")
        shutil.move(history / baselines.PROMOTED, tmp_path / "elsewhere")
        (history / baselines.PROMOTED).symlink_to(tmp_path / "elsewhere")
        with baselines.Baselines("promoted", str(history)) as known, pytest.raises(InvalidInput, match="out of the history"):
            known.of(record.load(file))

    @pytest.mark.parametrize("options", [
        {"trt_engine_cache_path": "here"}, {"trt_extra_plugin_lib_paths": "evil.so"}, {"backend_path": "x"},
        {"cache_dir": "x"}, {"anything": "/etc/x"}])
    def test_a_recipe_chooses_no_files_of_a_provider(self, options: dict[str, str]) -> None:
        one = builders.recipe("ort-fp32")
        with pytest.raises(ValueError, match="without paths or libraries"):
            Recipe(**{**{name: getattr(one, name) for name in one.__slots__}, "providers": ("TensorrtExecutionProvider",),
                      "provider_options": {"TensorrtExecutionProvider": options}})


class TestArtifacts:
    def test_a_whole_one_is_taken(self, folder: Path) -> None:
        assert 3 == len(artifacts.verify(folder).files)

    @pytest.mark.parametrize(("field", "value"), [
        ("entry", "other.onnx"), ("golden", "other.npz"), ("resolutions", [{"size_px": 96, "entry": "other.onnx"}]),
        ("files", [])])
    def test_what_it_names_is_listed(self, folder: Path, field: str, value: object) -> None:
        edit(folder / "manifest.json", lambda data: data.update({field: value}), reseal=True)
        with pytest.raises(InvalidInput) as refused:
            artifacts.verify(folder)
        assert "manifest.json" in refused.value.message
        assert "not one of its files" in refused.value.message

    @pytest.mark.parametrize("name", ["notes.txt", ".hidden", "engine/engine.json", "resolutions/96/manifest.json", "x/y/z"])
    def test_an_unlisted_file_is_refused(self, folder: Path, name: str) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
        with pytest.raises(InvalidInput, match=r"is not listed in manifest\.json"):
            artifacts.verify(folder)

    def test_an_unlisted_link_to_a_folder_is_refused(self, folder: Path, tmp_path: Path) -> None:
        (folder / "more").symlink_to(tmp_path)
        with pytest.raises(InvalidInput, match="is not listed"):
            artifacts.verify(folder)

    def test_a_link_out_of_the_folder_is_refused_even_to_the_same_bytes(self, folder: Path, tmp_path: Path) -> None:
        shutil.move(folder / "model.onnx", tmp_path / "blob")
        (folder / "model.onnx").symlink_to(tmp_path / "blob")
        with pytest.raises(InvalidInput, match="leads out of the artifact folder"):
            artifacts.verify(folder)

    def test_the_folder_itself_may_be_reached_by_a_link(self, folder: Path, tmp_path: Path) -> None:
        (tmp_path / "short").symlink_to(folder)
        assert artifacts.verify(folder) == artifacts.verify(tmp_path / "short")

    @pytest.mark.parametrize("change", [
        {"created_at": "2020-01-01T00:00:00+00:00"}, {"tools": {}}, {"golden": None}, {"family": "convnet"}, {"caveats": [
            {"code": "a", "message": "b", "hint": "c"}]}, {"parity": None}])
    def test_the_seal_covers_every_field(self, folder: Path, change: dict[str, object]) -> None:
        edit(folder / "manifest.json", lambda data: data.update(change))
        with pytest.raises(InvalidInput, match="its seal does not match"):
            artifacts.verify(folder)

    def test_the_seal_covers_what_ships(self, folder: Path) -> None:
        edit(folder / "manifest.json", lambda data: data["files"][0].update(deployed=False, size_bytes=1))
        with pytest.raises(InvalidInput, match="its seal does not match"):
            artifacts.verify(folder)

    def test_one_sealed_by_an_earlier_version_is_taken(self, folder: Path) -> None:
        artifact = record.load_artifact(folder)
        edit(folder / "manifest.json", lambda data: data.update(sealed=artifact.digest))
        assert artifact.digest == artifacts.verify(folder).digest
        edit(folder / "manifest.json", lambda data: data["inputs"][0].update(name="other"))
        with pytest.raises(InvalidInput, match="its seal does not match"):
            artifacts.verify(folder)

    def test_profile_refuses_before_any_measurement(self, folder: Path, tmp_path: Path) -> None:
        (folder / "extra.bin").write_bytes(b"x")
        done = cli("profile", folder, "--out", tmp_path / "out", "--budget", "smoke")
        assert 3 == done.returncode
        assert "extra.bin" in done.stderr


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """An FP32 run and its INT8 sibling with their predictions, as `profile` leaves them."""
    out = write_pair(tmp_path / "out", lost=10)
    for file in out.glob("*/run.json"):
        run = record.load(file)
        record.dump(replace(run, passes=evaluate.hashed(file.parent, run.passes)), file)
    return out


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    return policy_file(tmp_path, FLIPS, ACCURACY, '[[rules]]\nid = "p50"\nmetric = "latency_p50"\nmax = 1.0\n')


def gate(out: Path, rules: Path):
    return cli("gate", out, "--policy", rules)


def set_score(name: str, **changes: object) -> Callable[[Any], None]:
    """Return a change of every score of that name in a run file."""
    def change(data: Any) -> None:
        pools = [data["performance"], *(one[kind] for one in data["evaluations"] for kind in ("scores", "reference_scores"))]
        named = [score for pool in pools for score in pool if score["name"] == name]
        assert named
        for score in named:
            score.update(changes)

    return change


class TestRuns:
    def test_a_whole_pair_passes(self, out: Path, rules: Path) -> None:
        assert 0 == gate(out, rules).returncode

    @pytest.mark.parametrize("change", [
        set_score("accuracy_top1", value=7.0, low=None, high=None, count=None, reason="x"),
        set_score("accuracy_top1", value=-0.1, low=None, high=None, count=None, reason="x"),
        set_score("accuracy_top1", value=0.5),
        set_score("accuracy_top1", low=0.99, high=0.5),
        set_score("accuracy_top1", n=10**6),
        set_score("accuracy_top1", n=-1, count=None),
        set_score("accuracy_top1", confidence=1.5),
        set_score("accuracy_top1", count=None, value=0.97, low=0.96, high=0.98),
        set_score("accuracy_top1_change", value=0.0, low=-0.01, high=0.01),
        set_score("negative_flips", value=0.0, count=0, low=0.0, high=0.01),
        set_score("mcnemar_p", value=1.5),
        set_score("latency_p50", value=-5.0, low=None, high=None, reason="x"),
        set_score("latency_p50", value=1e-4, low=None, high=None, reason="x"),
        set_score("latency_mean", value=1e-4),
        set_score("artifact_size", value=-1.0),
        lambda data: data["traces"][0]["latency_s"].__setitem__(0, -1.0),
        lambda data: data["traces"][0].update(latency_s=[t / 9 for t in data["traces"][0]["latency_s"]]),
        lambda data: data["traces"][0].update(batch=0),
        lambda data: data.update(golden_max_abs_difference=-1.0),
        lambda data: data.update(peak_host_memory_bytes=-1),
        lambda data: data["precision"].update(time_share={"int8": 7.0}),
        lambda data: data["precision"].update(layers={"int8": -1}),
        lambda data: data["evaluations"][0]["dataset"].update(images=-5),
    ])
    def test_numbers_that_cannot_be_end_with_3_and_the_file_even_under_a_new_seal(
            self, out: Path, rules: Path, change: Callable[[Any], object]) -> None:
        file = out / INT8 / "run.json"
        edit(file, change, reseal=True)
        done = gate(out, rules)
        assert 3 == done.returncode, done.stdout
        assert "run.json" in done.stdout.replace("\n", "") + done.stderr

    @pytest.mark.parametrize("change", [
        set_score("accuracy_top1", method="another"), lambda data: data.update(caveats=[]) or data.update(created_at="2020"),
        lambda data: data["environment"].update(cpu="faster"), lambda data: data["settings"].update(threads=64)])
    def test_an_edit_breaks_the_seal(self, out: Path, change: Callable[[Any], object]) -> None:
        file = out / INT8 / "run.json"
        edit(file, change)
        with pytest.raises(InvalidInput, match="its seal does not match"):
            record.load(file)

    def test_a_run_without_a_seal_as_earlier_versions_wrote_it_loads(self, out: Path, rules: Path) -> None:
        for file in out.glob("*/run.json"):
            edit(file, lambda data: (data.pop("sealed"), [one.pop("sha256") for one in data["passes"]]))
        assert 0 == gate(out, rules).returncode

    @pytest.mark.parametrize("number", ["1e999", "-1e999", "NaN", "Infinity"])
    def test_what_is_not_finite_is_refused(self, out: Path, number: str) -> None:
        file = out / INT8 / "run.json"
        file.write_text(file.read_text().replace('"cpus_online": 8', f'"cpus_online": 8, "x": {number}'))
        with pytest.raises(InvalidInput, match=r"run\.json"):
            record.load(file)

    @pytest.mark.parametrize("which", [INT8, FP32])
    @pytest.mark.parametrize("damage", ["a bit", "NaN", "truncated", "another artifact's", "empty"])
    def test_predictions_that_are_not_the_runs_end_with_3(self, out: Path, rules: Path, which: str, damage: str) -> None:
        file = out / which / KEY.file
        content = file.read_bytes()
        if damage == "a bit":
            file.write_bytes(content[:2000] + bytes([content[2000] ^ 1]) + content[2001:])
        elif damage == "NaN":
            run = record.load(out / which / "run.json")
            values = logits(800)
            values[:5] = np.nan
            evaluate.save_predictions(file, [(values, None)], targets=np.arange(800) % 3, ids=names(800).tolist(),
                                      dataset=run.passes[0].dataset, artifact_digest=run.artifact.digest)
        elif damage == "truncated":
            file.write_bytes(content[:-100])
        elif damage == "empty":
            file.write_bytes(b"")
        else:
            shutil.copy(out / (FP32 if which == INT8 else INT8) / KEY.file, file)
        done = gate(out, rules)
        assert 3 == done.returncode, done.stdout

    def test_nan_in_predictions_of_an_earlier_version_ends_with_3(self, out: Path, rules: Path) -> None:
        run = record.load(out / INT8 / "run.json")
        values = logits(800)
        values[-1] = np.nan
        evaluate.save_predictions(out / INT8 / KEY.file, [(values, None)], targets=np.arange(800) % 3, ids=names(800).tolist(),
                                  dataset=run.passes[0].dataset, artifact_digest=run.artifact.digest)
        edit(out / INT8 / "run.json", lambda data: (data.pop("sealed"), data["passes"][0].pop("sha256")))
        assert 3 == gate(out, rules).returncode

    def test_absent_predictions_are_said(self, out: Path, rules: Path) -> None:
        (out / INT8 / KEY.file).unlink()
        found = finished.judge(out, str(rules))
        assert any(KEY.file in note for note in found.notes)

    def test_compare_refuses_what_the_predictions_contradict(self, out: Path) -> None:
        edit(out / INT8 / "run.json", set_score("accuracy_top1", count=None, value=0.97, low=0.96, high=0.98), reseal=True)
        assert 3 == cli("compare", out / FP32, out / INT8).returncode

    def test_a_report_refuses_percentiles_that_the_timings_contradict(self, out: Path) -> None:
        edit(out / INT8 / "run.json", set_score("latency_p99", value=1e-4, low=None, high=None, reason="x"), reseal=True)
        assert 3 == cli("report", out).returncode

    def test_unchanged_predictions_are_hashed_once_for_all_that_read_them(self, out: Path, rules: Path,
                                                                         monkeypatch: pytest.MonkeyPatch) -> None:
        # The time of an inode's own change cannot be set: the clock is.
        monkeypatch.setattr(record, "time", SimpleNamespace(time_ns=lambda: time.time_ns() + 3_600_000_000_000))
        read = []
        hashing = record.sha256_file
        monkeypatch.setattr(record, "sha256_file", lambda path: read.append(path) or hashing(path))
        finished.judge(out, str(rules), baseline=str(out))
        predictions = [file for file in read if file.suffix == ".npz"]
        assert 2 == len(predictions) == len(set(predictions))


class TestArrays:
    def save(self, path: Path, **changes: np.ndarray) -> Path:
        np.savez(path, **{"a": np.arange(4), **changes})
        return path

    def test_plain_arrays_are_taken(self, tmp_path: Path) -> None:
        arrays.refuse_unfit(self.save(tmp_path / "x.npz", b=np.array(["x"]), c=np.float32(3)), {"a", "b", "c"})

    def test_objects_are_refused(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "x.npz", a=np.array([{}], object))
        with pytest.raises(ValueError, match="objects"):
            arrays.refuse_unfit(tmp_path / "x.npz")

    def test_unknown_members_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="none of its arrays"):
            arrays.refuse_unfit(self.save(tmp_path / "x.npz", extra=np.arange(2)), {"a"})

    def test_more_members_than_any_file_has_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="at most"):
            arrays.refuse_unfit(self.save(tmp_path / "x.npz", **{f"m{k}": np.arange(1) for k in range(100)}))

    def test_a_bomb_is_refused_before_it_expands(self, tmp_path: Path) -> None:
        with zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("a.npy", bytes(50_000_000))
        with pytest.raises(ValueError, match="expands"):
            arrays.refuse_unfit(tmp_path / "x.npz")

    def test_a_header_that_promises_more_than_there_is_is_refused(self, tmp_path: Path) -> None:
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (10**12,)})
        with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
            archive.writestr("a.npy", header.getvalue() + bytes(80))
        with pytest.raises(ValueError, match="header"):
            arrays.refuse_unfit(tmp_path / "x.npz")


class TestCaches:
    CONTENT: ClassVar = {"weight": np.arange(6, dtype=np.float32).reshape(2, 3), "bias": np.zeros(2, np.float32)}

    def test_what_was_kept_comes_back(self, tmp_path: Path) -> None:
        arrays.save_cache(tmp_path / "a" / "x.npz", self.CONTENT, "")
        found = arrays.load_cache(tmp_path / "a" / "x.npz", ("weight", "bias"))
        assert found is not None
        assert all(np.array_equal(found[name], self.CONTENT[name]) for name in self.CONTENT)

    @pytest.mark.parametrize("other", [{"weight": np.ones((2, 3), np.float32)}, {"bias": np.zeros(3, np.float32)},
                                       {"bias": np.zeros(2, np.float64)}, {"more": np.zeros(2, np.float32)}])
    def test_what_is_not_as_it_was_written_is_made_again(self, tmp_path: Path, other: dict[str, np.ndarray]) -> None:
        arrays.save_cache(tmp_path / "x.npz", self.CONTENT, "")
        with np.load(tmp_path / "x.npz") as content:
            stored = {name: content[name] for name in content.files}
        np.savez(tmp_path / "x.npz", **{**stored, **other})
        assert arrays.load_cache(tmp_path / "x.npz", ("weight", "bias")) is None

    @pytest.mark.parametrize("content", [b"", b"PK", b"\x93NUMPY", b"x" * 1000])
    def test_what_is_no_cache_is_none(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "x.npz").write_bytes(content)
        assert arrays.load_cache(tmp_path / "x.npz", ("weight",)) is None
        assert arrays.load_cache(tmp_path / "absent.npz", ("weight",)) is None

    def test_a_decision_file_that_was_edited_ends_with_its_name(self, tmp_path: Path) -> None:
        file = decisions.DecisionFile(schema=decisions.DECISIONS_SCHEMA, policy="mine", paths=())
        record.write_sealed(tmp_path / decisions.DECISIONS, file)
        assert file == decisions.load(tmp_path)
        edit(tmp_path / decisions.DECISIONS, lambda data: data.update(policy="other"))
        with pytest.raises(InvalidInput, match="its seal does not match"):
            decisions.load(tmp_path)


    FLOOR: ClassVar = NoiseFloor(device="cpu", metric="latency_p50", floor=0.05, confidence=0.9, content=0.9, n=20,
                                 conditions={}, measured_at="2026-03-14T10:30:00+00:00")

    @pytest.mark.parametrize("reseal", [False, True])
    def test_a_noise_floor_below_zero_or_edited_is_refused(self, tmp_path: Path, *, reseal: bool) -> None:
        file = tmp_path / "floors.json"
        floors.save(file, (self.FLOOR,))
        assert (self.FLOOR,) == floors.load(file)
        edit(file, lambda data: data["floors"][0].update(floor=-1.0), reseal=reseal)
        with pytest.raises(InvalidInput) as refused:
            floors.load(file)
        assert (str(file) in refused.value.message, reseal) == (True, "floor of 0 or more" in refused.value.message)


class TestHistory:
    def test_an_edited_run_is_not_a_point_of_a_series(self, out: Path) -> None:
        assert history.series(str(out), "latency_p50").series
        edit(out / INT8 / "run.json", set_score("latency_p50", value=1e-4, low=None, high=None, reason="x"))
        with pytest.raises(InvalidInput, match="its seal does not match"):
            history.series(str(out), "latency_p50")


class TestExternalWeights:
    @pytest.mark.parametrize("location", ["../secret.bin", "/etc/hostname", "absent.bin"])
    def test_an_artifact_whose_graph_keeps_weights_elsewhere_is_not_measured(self, folder: Path, tmp_path: Path,
                                                                            location: str) -> None:
        (tmp_path / "secret.bin").write_bytes(bytes(64))
        tensor = onnx.TensorProto(name="w", data_type=onnx.TensorProto.FLOAT, dims=[4],
                                  data_location=onnx.TensorProto.EXTERNAL)
        tensor.external_data.add(key="location", value=location)
        values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [4]) for name in ("x", "y")]
        graph = onnx.helper.make_graph([onnx.helper.make_node("Add", ["x", "w"], ["y"])], "g", values[:1], values[1:], [tensor])
        model = onnx.helper.make_model(graph, ir_version=10, opset_imports=[onnx.helper.make_opsetid("", 20)])
        for name in ("model.onnx", "resolutions/96/model.onnx"):
            (folder / name).write_bytes(model.SerializeToString())
        artifact = record.load_artifact(folder)
        artifacts.write_manifest(folder, replace(artifact, files=artifacts.list_files(folder)))
        done = cli("profile", folder, "--out", tmp_path / "out", "--budget", "smoke", "--properties", "none")
        assert 3 == done.returncode
        assert Path(location).name in done.stderr
        assert not list((tmp_path / "out").glob("*/run.json"))
