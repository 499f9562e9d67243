"""Builds in a process of their own: a builder that crashes, hangs or fills the disk leaves its siblings alone."""

from __future__ import annotations

import os
import resource
import textwrap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgebench import builder, catalog, child, paired_worker, sources, worker
from edgebench.datasets import open_images
from edgebench.errors import CannotMeasure, EdgebenchError, InvalidInput
from edgebench.export import Wanted, export_all
from edgebench.recipe import Build, Recipe
from edgebench.record import Preprocess
from edgebench.timing_types import TimingPlan
from tests.models import onnx_file

BACKEND = """
import os, signal, time
from pathlib import Path
from edgebench.backends.onnxruntime import executed_precision, open_session, reason_against

def packages():
    return {}

def built_on_opening(recipe, batch):
    return f"the engine for batch {batch}" if recipe.id.startswith("prepares") else None

def prepare(entry, recipe, *, batch, build_number=0):
    if recipe.id == "prepares-forever":
        time.sleep(600)
    with open(os.environ["MOODY_LOG"], "a") as log:
        print(os.getpid(), Path(entry).name, batch, build_number, file=log)

def build(base, recipe, calibration, folder):
    if recipe.id == "litters":
        import tempfile
        Path(folder, "place").write_text(tempfile.gettempdir())
        Path(tempfile.mkdtemp(prefix="ort.quant."), "weights").write_bytes(b"x")
    if recipe.id in ("crashes", "litters"):
        os.kill(os.getpid(), signal.SIGSEGV)
    if recipe.id == "hangs":
        time.sleep(600)
    if recipe.id == "raises":
        raise KeyError("node_conv_7")
    if recipe.id == "hungry":
        raise MemoryError
    if recipe.id == "full":
        raise OSError(28, "No space left on device", str(folder / "model.onnx"))
    if recipe.id == "calibrated":
        batches = list(calibration())
        Path(folder, "seen").write_text(repr([(name, value.shape, str(value.dtype), float(value.max()))
                                              for batch in batches for name, value in batch.items()]))
    Path(folder, "model.onnx").write_bytes(base.read_bytes())
    return "model.onnx"
"""


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A third party's backend called ``moody``, as an installed package brings it."""
    site = tmp_path / "site"
    (site / "moody-1.dist-info").mkdir(parents=True)
    (site / "moody-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: moody\nVersion: 1\n")
    (site / "moody-1.dist-info" / "entry_points.txt").write_text("[edgebench.backends]\nmoody = moody_backend\n")
    (site / "moody_backend.py").write_text(textwrap.dedent(BACKEND))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("MOODY_LOG", str(tmp_path / "prepared"))


def prepared(folder: Path) -> list[str]:
    """Return file, batch and number of what was built on the device, in order; each in a process of its own."""
    rows = [line.split(" ", 1) for line in (folder / "prepared").read_text().splitlines()]
    assert len(rows) == len({pid for pid, _ in rows} - {str(os.getpid())})
    return [what for _, what in rows]


def moody(name: str, **options) -> Recipe:
    return Recipe(id=name, title="", purpose="", checked_on="", backend="moody", precision="fp32", **options)


@pytest.fixture
def build(tmp_path: Path, plugin) -> Callable[..., str]:
    def run(recipe: Recipe, **options) -> str:
        folder, scratch = tmp_path / "built", tmp_path / "scratch"
        folder.mkdir()
        scratch.mkdir()
        return builder.build(builder.BuildJob(
            base=str(onnx_file(tmp_path / "base.onnx")), model="tiny", recipe=recipe, folder=str(folder),
            **{"pixels": None, "preprocess": None, **options}), scratch)

    return run


@pytest.mark.parametrize(("recipe", "kind", "message"), [
    ("crashes", CannotMeasure, "building crashes was killed by signal 11"),
    ("raises", InvalidInput, "raises cannot be built from tiny: KeyError: 'node_conv_7'"),
    ("hungry", CannotMeasure, "building hungry ran out of memory"),
    ("full", InvalidInput, "model.onnx: No space left on device")])
def test_a_builder_that_fails_is_one_clear_error(build, recipe: str, kind: type[EdgebenchError], message: str) -> None:
    with pytest.raises(kind) as caught:
        build(moody(recipe))
    assert message in caught.value.message
    assert caught.value.hint


def test_a_builder_that_hangs_is_stopped_after_the_recipes_time_limit(build) -> None:
    with pytest.raises(CannotMeasure, match="building hangs was stopped after its time limit of 3 s"):
        build(moody("hangs", build=Build(time_limit_s=3.0)))


def test_a_killed_builder_leaves_no_temporary_files(build, tmp_path: Path) -> None:
    with pytest.raises(CannotMeasure, match="killed by signal 11"):
        build(moody("litters"))
    place = Path((tmp_path / "built" / "place").read_text())
    assert tmp_path / "scratch" == place.parent
    assert ["build-litters.json"] == [path.name for path in (tmp_path / "scratch").iterdir() if path.suffix != ".log"]


def test_engines_are_built_once_each_in_processes_of_their_own(plugin, tmp_path: Path) -> None:
    told = []
    jobs = [builder.PrepareJob(entry="m.onnx", recipe=moody(recipe), batch=batch, build_number=number)
            for recipe, batch, number in (("prepares", 1, 0), ("prepares", 8, 0), ("works", 8, 0), ("prepares", 1, 0),
                                          ("prepares", 1, 2))]
    builder.prepare(jobs, tmp_path / "scratch", told.append)
    assert ["m.onnx 1 0", "m.onnx 8 0", "m.onnx 1 2"] == prepared(tmp_path)
    assert ["building the engine for batch 1 for this device", "building the engine for batch 8 for this device",
            "building the engine for batch 1 for this device"] == told
    assert [] == list((tmp_path / "scratch").iterdir())


def test_an_engine_that_is_not_built_within_the_time_limit_is_given_up(plugin, tmp_path: Path) -> None:
    # It was built in the measuring process, which has no limit.
    job = builder.PrepareJob(entry="m.onnx", recipe=moody("prepares-forever", build=Build(time_limit_s=3.0)), batch=1)
    with pytest.raises(CannotMeasure, match=r"building the engine for batch 1 of prepares-forever was stopped after its "
                                            r"time limit of 3 s"):
        builder.prepare([job], tmp_path / "scratch")


def test_what_export_opens_is_built_elsewhere_first(plugin, tmp_path: Path) -> None:
    (_, built), = export_all(sources.open_source(str(onnx_file(tmp_path / "m.onnx"))), [moody("prepares")], tmp_path / "out")
    assert isinstance(built, Path), built
    assert "model.onnx 1 0" in prepared(tmp_path)


def test_all_that_is_measured_is_built_before_the_measuring_process_starts(plugin, tmp_path: Path, monkeypatch) -> None:
    source = sources.open_source(str(onnx_file(tmp_path / "m.onnx")))
    (_, folder), = export_all(source, [moody("prepares")], tmp_path / "out")
    (tmp_path / "prepared").unlink()
    run, started = child.run, []

    def noted(module: str, *arguments, **options) -> None:
        if module == "edgebench.builder":
            run(module, *arguments, **options)
        else:
            started.append(prepared(tmp_path))

    monkeypatch.setattr(child, "run", noted)
    job = worker.Job(artifact=str(folder), out=str(tmp_path / "run"), threads=1, batch=16, budget="smoke", passes=(),
                     device=catalog.device("cpu"), builds=2,
                     timing=TimingPlan(scenarios=("single-stream", "offline", "multi-stream")))
    worker.run_worker(job, lambda what, share: None)
    # One image, the offline batch, a multi-stream query, the golden images, and each further build.
    assert [["model.onnx 1 0", "model.onnx 16 0", "model.onnx 8 0", "model.onnx 4 0", "model.onnx 1 1", "model.onnx 1 2"]] \
        == started


def test_what_is_timed_in_turns_is_built_before_its_processes_start(plugin, tmp_path: Path) -> None:
    # They are given up on after ten minutes, which an engine may take.
    (_, folder), = export_all(sources.open_source(str(onnx_file(tmp_path / "m.onnx"))), [moody("prepares")], tmp_path / "out")
    (tmp_path / "prepared").unlink()
    job = paired_worker.PairedJob(artifact=str(folder), threads=1, batch=2, warmup_s=0.0, warmup_max_s=0.1)
    with paired_worker.opener({"a": job}, tmp_path / "turns")(["a"]) as sessions:
        assert ["a"] == list(sessions)
        assert ["model.onnx 2 0"] == prepared(tmp_path)


def test_calibration_arrives_normalized_and_batch_by_batch(build, tmp_path: Path) -> None:
    pixels = np.full((11, 8, 8, 3), 255, np.uint8)
    np.save(tmp_path / "pixels.npy", pixels)
    preprocess = Preprocess(size_px=(8, 8), mean=(0.5,) * 3, std=(0.25,) * 3, resize="none")
    assert "model.onnx" == build(moody("calibrated"), pixels=str(tmp_path / "pixels.npy"), preprocess=preprocess)
    seen = eval((tmp_path / "built" / "seen").read_text())  # written by this file's own backend
    assert [("image", (8, 3, 8, 8), "float32", 2.0), ("image", (3, 3, 8, 8), "float32", 2.0)] == seen


def test_siblings_of_a_crash_are_exported(plugin, tmp_path: Path) -> None:
    source = sources.open_source(str(onnx_file(tmp_path / "m.onnx")), preprocess=Preprocess(
        size_px=(8, 8), mean=(0.5,) * 3, std=(0.5,) * 3, resize="none"))
    found = {recipe.id: built for recipe, built in export_all(
        source, [moody("crashes"), moody("works"), catalog.recipe("ort-fp32")], tmp_path / "out")}
    assert isinstance(found["crashes"], CannotMeasure)
    assert isinstance(found["works"], Path)
    assert isinstance(found["ort-fp32"], Path)
    assert ["m.onnx--ort-fp32", "m.onnx--works"] == sorted(path.name for path in (tmp_path / "out").iterdir())


def test_a_full_disk_during_a_build_leaves_no_half_artifact(tmp_path: Path, image_folder) -> None:
    # A limit on the size of files is what a full disk is to the writer; Python ignores its signal.
    source = sources.open_source(str(onnx_file(tmp_path / "m.onnx")), preprocess=Preprocess(
        size_px=(8, 8), mean=(0.5,) * 3, std=(0.5,) * 3, resize="squash"))
    images = open_images(str(image_folder({"0": 4, "1": 4})))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (700, limits[1]))
    try:
        (_, built), = export_all(source, [catalog.recipe("ort-int8")], tmp_path / "out", Wanted(calibration=images))
    except EdgebenchError as error:
        built = error
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert isinstance(built, EdgebenchError)
    assert [] == [path for path in (tmp_path / "out").glob("*") if not path.name.endswith(".jsonl")]
    recipe = replace(catalog.recipe("ort-int8"), id="again")
    (_, again), = export_all(source, [recipe], tmp_path / "out", Wanted(calibration=images))
    assert isinstance(again, Path), again
