"""The process that builds one artifact's files, and nothing else: ``python -m edgebench.builder JOB``.

Quantizers and engine builders crash, hang and fill memory: there they do it alone, within the recipe's time limit.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgebench import backends, child, graphs
from edgebench.artifacts import pad
from edgebench.backends import Batches, Feeds
from edgebench.errors import CannotMeasure, EdgebenchError, InvalidInput, writing
from edgebench.imagecache import normalize
from edgebench.recipe import Recipe
from edgebench.record import Preprocess, decode, read_json, write_json

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


def _work(path: Path) -> None:
    job = decode(BuildJob, read_json(path), str(path))
    batches = _batches(Path(job.base), Path(job.pixels), job.preprocess) if job.pixels and job.preprocess else None
    try:
        with writing(Path(job.folder)):
            entry = backends.get(job.recipe.backend).build(Path(job.base), job.recipe, batches, Path(job.folder))
    except EdgebenchError:
        raise
    except MemoryError as error:
        raise CannotMeasure(f"building {job.recipe.id} ran out of memory", "use a machine with more") from error
    except Exception as error:  # quantizers and converters raise anything; its kind and text are all there is to tell
        raise InvalidInput(f"{job.recipe.id} cannot be built from {job.model}: {type(error).__name__}: "
                           f"{' '.join(str(error).split())[:300]}",
                           "an old opset or an operator that the tool does not know? try another recipe") from error
    child.send({"entry": entry})


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

    file = scratch / f"build-{job.recipe.id}.json"
    write_json(file, job)
    limit = job.recipe.build.time_limit_s if job.recipe.build is not None else TIME_LIMIT_S
    # Quantizers keep gigabytes there, and one that is killed takes nothing away.
    with writing(scratch), \
            tempfile.TemporaryDirectory(dir=scratch, prefix="tmp-", ignore_cleanup_errors=True) as temporary:
        child.run("edgebench.builder", file, scratch / f"build-{job.recipe.id}.log", told,
                  what=f"building {job.recipe.id}", time_limit_s=limit, temporary=Path(temporary))
    return entry[0]


if __name__ == "__main__":
    child.serve(_work)
