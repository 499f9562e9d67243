"""What a file says is believed only as far as it can be: names, paths, links, seals, ranges and digests."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgebench import artifacts, baselines, record
from edgebench.checks import is_inner_path, is_name
from edgebench.errors import InvalidInput, UsageError
from edgebench.recipe import Recipe
from edgebench.record import FileEntry, ResolutionEntry
from tests import builders
from tests.commands import cli
from tests.finished_runs import INT8, write_pair

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
