"""What a job will measure is opened, named and refused before anything is exported or replaced."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from edgebench import builder, child, export_job, profiler, variants
from edgebench.errors import CannotMeasure, EdgebenchError, ExitCode, InvalidInput, UsageError
from edgebench.export import Exporter
from edgebench.profiler import Request, profile
from edgebench.record import plain_name, write_bytes
from tests.commands import cli
from tests.finished_runs import FLIPS, policy_file, write_pair
from tests.models import class_file, onnx_file, preprocess_file


class Exported(Exception):
    """Raised where a test wants nothing to be exported."""


@pytest.fixture
def no_export(monkeypatch: pytest.MonkeyPatch) -> None:
    def export(*_: object, **__: object) -> Path:
        raise Exported

    monkeypatch.setattr(Exporter, "export", export)


def roster(request: Request) -> tuple[variants.Roster, list[str]]:
    notes: list[str] = []
    device = profiler.resolve_device("cpu")[0]
    return variants.Roster(request=request, device=device, images=(), progress=lambda what, share: None,
                           note=notes.append), notes


def names(request: Request) -> list[str]:
    opened, _ = roster(request)
    with opened:
        return [variant.name for variant in opened.promised]


def two_models(folder: Path) -> list[str]:
    for seed, place in enumerate(("left", "right")):
        (folder / place).mkdir()
        onnx_file(folder / place / "net.onnx", seed=seed)
    return [str(folder / place / "net.onnx") for place in ("left", "right")]


def request(out: Path, *models: str, **more: object) -> Request:
    return Request(models=models, out=out, recipes=("ort-fp32",), **{"properties": ("none",), "budget": "smoke", **more})


class TestNames:
    def test_two_files_of_one_name_are_told_apart_and_that_is_said(self, tmp_path):
        opened, notes = roster(request(tmp_path / "out", *two_models(tmp_path)))
        with opened:
            found = [variant.name for variant in opened.promised]
        assert ["left-net.onnx--ort-fp32--onnxruntime", "right-net.onnx--ort-fp32--onnxruntime"] == found
        assert 2 == sum("left/net.onnx" in note or "right/net.onnx" in note for note in notes)

    def test_names_that_become_one_folder_are_told_apart(self, tmp_path):
        for seed, name in enumerate(("net:1.onnx", "net-1.onnx")):
            onnx_file(tmp_path / name, seed=seed)
        assert 2 == len(set(names(request(tmp_path / "out", *map(str, sorted(tmp_path.glob("*.onnx")))))))

    def test_external_weights_are_part_of_what_a_model_is(self, tmp_path):
        models = []
        for seed in (0, 1):
            (tmp_path / str(seed)).mkdir()
            models.append(str(onnx_file(tmp_path / str(seed) / "net.onnx", external=True, seed=seed)))
        assert Path(models[0]).read_bytes() == Path(models[1]).read_bytes()
        assert 2 == len(set(names(request(tmp_path / "out", *models))))

    def test_parents_of_one_name_leave_the_digest(self, tmp_path):
        models = []
        for seed in (0, 1):
            place = tmp_path / str(seed) / "x" / "y"
            place.mkdir(parents=True)
            models.append(str(onnx_file(place / "net.onnx", seed=seed)))
        found = names(request(tmp_path / "out", *models))
        assert 2 == len(set(found))
        assert all("net.onnx-" in name for name in found)

    @pytest.mark.parametrize("copied", [False, True])
    def test_the_same_model_twice_is_refused(self, tmp_path, no_export, copied):
        first, second = two_models(tmp_path)
        Path(second).write_bytes(Path(first).read_bytes())
        with pytest.raises(UsageError):
            profile(request(tmp_path / "out", first, second if copied else first))
        assert not (tmp_path / "out").exists()

    def test_one_after_the_other_in_one_folder_gives_two_rows_and_each_keeps_its_name(self, tmp_path):
        first, second = two_models(tmp_path)
        done = [profile(request(tmp_path / "out", model)) for model in (first, second)]
        assert ["net.onnx", "right/net.onnx"] == [run.artifact.model.id for result in done for run in result.runs]
        assert 2 == len({run.artifact.model.weights_sha256 for result in done for run in result.runs})
        assert 2 == len(list((tmp_path / "out").glob("*/run.json")))
        assert [run.variant for run in done[1].runs] == names(request(tmp_path / "out", second))
        assert [run.variant for run in done[0].runs] == names(request(tmp_path / "out", first))

    @pytest.mark.parametrize("name", ["a b(1)ü.onnx", "50%{x}.onnx", "x" * 400, "..", ".hidden.onnx", "日本.onnx", "a\udce9"])
    def test_folder_names_are_plain_short_and_not_hidden(self, name):
        plain = plain_name(name)
        assert plain.isascii()
        assert 0 < len(plain) <= 80
        assert not plain.startswith((".", "-"))

    def test_long_names_with_one_beginning_stay_apart(self):
        assert plain_name("x" * 300 + "1") != plain_name("x" * 300 + "2")


class TestRefusedBeforeAnyExport:
    """Each of these is refused although exporting would have worked, and nothing is left behind."""

    def refused(self, tmp_path: Path, kind: type[EdgebenchError], **more: object) -> None:
        with pytest.raises(kind):
            profile(request(tmp_path / "out", str(onnx_file(tmp_path / "net.onnx")), **more))
        assert not (tmp_path / "out").exists()

    def test_folders_that_are_none_of_the_classes(self, tmp_path, no_export, image_folder):
        self.refused(tmp_path, InvalidInput, data=(str(image_folder({"cat": 2, "dog": 2, "fox": 2})),),
                     properties=("accuracy",), classes=class_file(tmp_path), preprocess=preprocess_file(tmp_path))

    def test_another_number_of_classes(self, tmp_path, no_export):
        many = class_file(tmp_path, ("a", "b", "c", "d"))
        result = profile(request(tmp_path / "out", str(onnx_file(tmp_path / "net.onnx")), classes=many))
        assert [InvalidInput] == [type(failure.error) for failure in result.failures]

    def test_unknown_preprocessing_with_images(self, tmp_path, no_export, labelled_folder):
        self.refused(tmp_path, InvalidInput, data=(str(labelled_folder),), properties=("accuracy",))

    def test_calibration_folders_that_are_not_there(self, tmp_path, no_export):
        self.refused(tmp_path, UsageError, calibration_data=str(tmp_path / "nowhere"))

    def test_a_baseline_that_is_not_there(self, tmp_path, no_export, labelled_folder):
        (tmp_path / "policy.toml").write_text(
            'id = "p"\ntitle = "t"\npurpose = "p"\n[[rules]]\nid = "r"\nmetric = "accuracy_top1"\n'
            'against = "baseline"\nlimit = "-0.01"\n')
        self.refused(tmp_path, EdgebenchError, until=str(tmp_path / "policy.toml"), baseline=str(tmp_path / "gone"),
                     data=(str(labelled_folder),), properties=("accuracy",), classes=class_file(tmp_path),
                     preprocess=preprocess_file(tmp_path))

    def test_a_second_model_that_cannot_be_opened(self, tmp_path, no_export):
        (tmp_path / "bad.onnx").write_bytes(b"")
        with pytest.raises(InvalidInput):
            profile(request(tmp_path / "out", str(onnx_file(tmp_path / "net.onnx")), str(tmp_path / "bad.onnx")))
        assert not (tmp_path / "out").exists()

    def test_a_noise_floor_that_cannot_be_written(self, tmp_path, no_export):
        self.refused(tmp_path, InvalidInput, noise_floor=tmp_path)

    @pytest.mark.parametrize("more", [{}, {"resume": True}, {"resume": True, "threads": 1}])
    def test_finished_results_keep_their_artifact(self, tmp_path, more):
        model, out = str(onnx_file(tmp_path / "net.onnx")), tmp_path / "out"
        profile(request(out, model, threads=2))
        before = {file: file.read_bytes() for file in out.rglob("*") if file.is_file()}
        with pytest.raises(UsageError):
            profile(request(out, model, **{"threads": 2, "classes": class_file(tmp_path), **more}))
        assert before == {file: file.read_bytes() for file in out.rglob("*") if file.is_file()}

    def test_an_output_folder_below_a_file(self, tmp_path, no_export):
        (tmp_path / "file").touch()
        with pytest.raises(InvalidInput):
            profile(request(tmp_path / "file" / "out", str(onnx_file(tmp_path / "net.onnx"))))


def test_what_stands_in_the_way_of_nothing_is_exported(tmp_path: Path, no_export: Callable[[], None]) -> None:
    # The other tests would pass as well if nothing ever reached the export.
    with pytest.raises(Exported):
        profile(request(tmp_path / "out", str(onnx_file(tmp_path / "net.onnx"))))


class TestPrecisionBeforeTheBudget:
    def test_another_precision_is_refused_before_anything_is_timed(self, tmp_path, monkeypatch):
        started: list[str] = []
        run = child.run

        def watched(module: str, *arguments: object, **options: object) -> None:
            started.append(module)
            run(module, *arguments, **options)

        asked = builder.executed_precision

        def other(*arguments: object) -> object:
            return replace(asked(*arguments), executed="bf16", compute_layers={"bf16": 1})

        monkeypatch.setattr(child, "run", watched)
        monkeypatch.setattr(builder, "executed_precision", other)
        result = profile(request(tmp_path / "out", str(onnx_file(tmp_path / "net.onnx"))))
        assert [CannotMeasure] == [type(failure.error) for failure in result.failures]
        assert "edgebench.worker" not in started
        assert "edgebench.builder" in started


class TestOutputs:
    @pytest.mark.parametrize("option", ["--html", "--markdown"])
    def test_files_that_cannot_be_written_are_refused_before_anything_is_read(self, tmp_path, option):
        done = cli("report", tmp_path / "nowhere", option, tmp_path)
        assert ExitCode.UNMEASURABLE == done.returncode
        assert option in done.stderr

    def test_no_file_of_a_gate_is_written_where_another_cannot_be(self, tmp_path):
        write_pair(tmp_path / "out", images=60)
        done = cli("gate", tmp_path / "out", "--policy", policy_file(tmp_path, FLIPS), "--junit", tmp_path / "j.xml",
                   "--html", tmp_path)
        assert (ExitCode.UNMEASURABLE, "") == (done.returncode, done.stdout)
        assert not (tmp_path / "j.xml").exists()

    def test_profile_refuses_its_page_before_it_opens_a_model(self, tmp_path, no_export):
        done = cli("profile", onnx_file(tmp_path / "net.onnx"), "--out", tmp_path / "out", "--html", tmp_path)
        assert ExitCode.UNMEASURABLE == done.returncode
        assert not (tmp_path / "out").exists()

    def test_devices_are_written_to_and_links_are_kept(self, tmp_path):
        os.mkfifo(tmp_path / "pipe")
        reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
        write_bytes(tmp_path / "pipe", b"page")
        assert b"page" == os.read(reader, 10)
        os.close(reader)
        (tmp_path / "link.html").symlink_to("target.html")
        write_bytes(tmp_path / "link.html", b"page")
        assert (tmp_path / "link.html").is_symlink()
        assert b"page" == (tmp_path / "target.html").read_bytes()


class TestExport:
    def test_a_folder_in_the_way_of_the_second_recipe_is_refused_before_the_first_is_built(self, tmp_path, no_export):
        foreign = tmp_path / "out" / "net.onnx--openvino-fp32"
        foreign.mkdir(parents=True)
        (foreign / "notes.txt").write_text("mine")
        with pytest.raises(UsageError):
            export_job.export(export_job.ExportRequest(
                model=str(onnx_file(tmp_path / "net.onnx")), recipes=("ort-fp32", "openvino-fp32"),
                out=tmp_path / "out", force=True))
        assert "mine" == (foreign / "notes.txt").read_text()
