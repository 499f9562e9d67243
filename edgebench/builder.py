"""The process that builds one artifact's files, or an engine, and nothing else: ``python -m edgebench.builder JOB``.

Quantizers and engine builders crash, hang and fill memory: there they do it alone, within the recipe's time limit.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgebench import backends, child, environment, graphs
from edgebench.artifacts import fixed_batch, golden_inputs, pad
from edgebench.backends import Batches, Feeds
from edgebench.errors import CannotMeasure, EdgebenchError, InvalidInput, writing
from edgebench.imagecache import normalize
from edgebench.recipe import Recipe
from edgebench.record import (
    ExecutedPrecision,
    Preprocess,
    decode,
    load_artifact,
    read_json,
    to_builtins,
    write_json,
)
from edgebench.runtime_messages import useful

TIME_LIMIT_S = 1800.0
CALIBRATION_BATCH = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildJob:
    """What is built from what."""

    base: str
    """The FP32 ONNX file."""
    model: str
    """The model in words, for errors."""
    recipe: Recipe
    pixels: str | None
    """Quantization-calibration images, ``.npy`` of uint8 (N, H, W, 3); None for recipes without ranges."""
    preprocess: Preprocess | None
    folder: str
    """Where the files go."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PrepareJob:
    """What a runtime is to build on this device and keep, so that a session finds it when it is opened."""

    entry: str
    """The file that is opened."""
    recipe: Recipe
    batch: int
    """Images per inference."""
    build_number: int = 0
    """Above 0: a build of its own of the same file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PrecisionJob:
    """An artifact whose executed precision is asked for."""

    folder: str
    threads: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    build: BuildJob | None = None
    prepare: PrepareJob | None = None
    precision: PrecisionJob | None = None


def _work(path: Path) -> None:
    job = decode(_Job, read_json(path), str(path))
    if job.build is not None:
        child.send({"entry": _build(job.build)})
    if job.prepare is not None:
        _prepare(job.prepare)
    if job.precision is not None:
        child.send({"precision": to_builtins(_precision(job.precision))})


def _precision(job: PrecisionJob) -> ExecutedPrecision:
    folder = Path(job.folder)
    artifact = load_artifact(folder)
    golden = golden_inputs(folder, artifact)
    image = artifact.inputs[0]
    inputs = golden[0][image.name] if golden is not None else np.random.default_rng(0).standard_normal(
        (1, *(size for size in image.shape[1:] if isinstance(size, int))), np.float32)
    batch = fixed_batch(artifact) or 1
    return backends.get(artifact.recipe.backend).executed_precision(
        folder / artifact.entry, artifact.recipe, {image.name: pad(inputs[:batch], batch)}, threads=job.threads)


def _prepare(job: PrepareJob) -> None:
    backend = backends.get(job.recipe.backend)
    assert isinstance(backend, backends.Preparing)
    backend.prepare(Path(job.entry), job.recipe, batch=job.batch, build_number=job.build_number)


def _build(job: BuildJob) -> str:
    batches = _batches(Path(job.base), Path(job.pixels), job.preprocess) if job.pixels and job.preprocess else None
    try:
        with writing(Path(job.folder)):
            return backends.get(job.recipe.backend).build(Path(job.base), job.recipe, batches, Path(job.folder))
    except EdgebenchError:
        raise
    except MemoryError as error:
        raise CannotMeasure(f"building {job.recipe.id} ran out of memory", "use a machine with more") from error
    except Exception as error:  # quantizers and converters raise anything; its kind and text are all there is to tell
        raise InvalidInput(f"{job.recipe.id} cannot be built from {job.model}: {type(error).__name__}: "
                           f"{useful(error)}",
                           "an old opset or an operator that the tool does not know? try another recipe") from error


def _batches(base: Path, file: Path, preprocess: Preprocess) -> Batches:
    image = graphs.image_input(base)
    first, name = image.shape[0], image.name
    size = first if isinstance(first, int) else CALIBRATION_BATCH
    pixels = np.load(file, mmap_mode="r")

    def batches() -> Iterator[Feeds]:
        for start in range(0, len(pixels), size):
            rows = normalize(np.array(pixels[start:start + size]), preprocess)
            yield {name: pad(rows, size) if isinstance(first, int) else rows}

    return batches


def build(job: BuildJob, scratch: Path) -> str:
    """Build in a process of its own; returns the file in the job's folder that the runtime opens.

    Args:
        job: What is built.
        scratch: Folder for the job's file, its log, and the temporary files of its tools while it runs.

    Raises:
        EdgebenchError: The build failed, crashed, or took longer than the recipe allows.
    """
    entry: list[str] = []

    def told(message: child.Message) -> None:
        if "entry" in message:
            entry.append(str(message["entry"]))

    _run(f"build-{job.recipe.id}", _Job(build=job), job.recipe, scratch, told, what=f"building {job.recipe.id}")
    return entry[0]


def executed_precision(folder: Path, threads: int, scratch: Path) -> ExecutedPrecision:
    """Ask an artifact's runtime, by a few inferences in a process of its own, which precision it executes.

    Args:
        folder: The artifact's.
        threads: CPU threads.
        scratch: Folder for the job's file and log.

    Raises:
        EdgebenchError: The runtime cannot open or run it.
    """
    found: list[ExecutedPrecision] = []

    def told(message: child.Message) -> None:
        if "precision" in message:
            found.append(decode(ExecutedPrecision, message["precision"], "executed precision"))

    recipe = load_artifact(folder).recipe
    _run(f"precision-{recipe.id}", _Job(precision=PrecisionJob(folder=str(folder), threads=threads)), recipe, scratch,
         told, what=f"asking for the precision of {recipe.id}")
    return found[0]


def _built_on_opening(recipe: Recipe, batch: int) -> str | None:
    backend = backends.get(recipe.backend)
    return backend.built_on_opening(recipe, batch) if isinstance(backend, backends.Preparing) else None


def builds_on_device(recipe: Recipe) -> bool:
    """Return whether opening a recipe's files builds something where they run."""
    return _built_on_opening(recipe, 1) is not None


def prepare(jobs: Iterable[PrepareJob], scratch: Path, progress: Callable[[str], None] = lambda what: None) -> None:
    """Have everything built that sessions would have to build when they are opened, each in a process of its own.

    What was built before is found again; where opening builds nothing, nothing is done.

    Args:
        jobs: What will be opened.
        scratch: Folder for the jobs' files and logs.
        progress: Told what is being built.

    Raises:
        EdgebenchError: A build failed, crashed, or took longer than the recipe allows.
    """
    done: set[tuple[str, int, str]] = set()
    for job in jobs:
        what = _built_on_opening(job.recipe, job.batch)
        if what is None or (job.entry, job.build_number, what) in done:
            continue
        done.add((job.entry, job.build_number, what))
        progress(f"building {what} for this device")
        _run(f"prepare-{job.recipe.id}", _Job(prepare=job), job.recipe, scratch, lambda _: None,
             what=f"building {what} of {job.recipe.id}")


def _run(name: str, job: _Job, recipe: Recipe, scratch: Path, told: Callable[[child.Message], None], *, what: str,
         ) -> None:
    file = scratch / f"{name}.json"
    write_json(file, job)
    limit = recipe.build.time_limit_s if recipe.build is not None else TIME_LIMIT_S
    # Quantizers keep gigabytes there, and one that is killed takes nothing away.
    with writing(scratch), \
            tempfile.TemporaryDirectory(dir=scratch, prefix="tmp-", ignore_cleanup_errors=True) as temporary:
        child.run("edgebench.builder", file, scratch / f"{name}.log", told, what=what, temporary=Path(temporary),
                  limits=child.Limits(time_s=limit, memory_bytes=environment.usable_memory_bytes(),
                                      hint="raise time_limit_s in the recipe's [build] table, or leave the recipe out"))
    file.unlink()


if __name__ == "__main__":
    child.serve(_work)
