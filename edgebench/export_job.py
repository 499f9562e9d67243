"""What ``edgebench export`` does with one model: artifacts, explanations, searches, and draws compared."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from edgebench import backoff, catalog, graphs, outputs, quantize
from edgebench.datasets import CUE_CONFLICT, ImageSet, open_images
from edgebench.errors import CannotMeasure, EdgebenchError, InvalidInput, MissingDependency, UsageError, require
from edgebench.export import Exporter, Wanted
from edgebench.recipe import Recipe
from edgebench.record import load_artifact, to_builtins, write_bytes
from edgebench.sources import Progress, Source, open_source
from edgebench.user_files import read_classes, read_preprocess, read_templates


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportRequest:
    """What to export, and how."""

    model: str
    recipes: tuple[str, ...]
    out: Path
    weights: str | None = None
    calibration_data: str | None = None
    tuning_data: str | None = None
    """Labelled images that judge candidates and draws; those of `calibration_data` that chose no ranges where None."""
    classes: Path | None = None
    templates: Path | None = None
    preprocess: Path | None = None
    resolutions: tuple[int, ...] = ()
    output: str | None = None
    """Which output is scored, as ``NAME`` or ``NAME=KIND``; None: the rule of `edgebench.outputs.put_first`."""
    family: str | None = None
    """Whose quantization rules to follow, instead of those of the family that the graph shows."""
    max_drop: float | None = None
    """Margin of the accuracy-aware back-off, as a fraction; None: none is done."""
    keep: tuple[str, ...] = ()
    """Measures to keep beside accuracy, each with a margin of its own after ``=``, or with `max_drop`."""
    max_trials: int = 8
    draws: int = 1
    """Draws of quantization-calibration images to compare."""
    allow_precision_fallback: bool = False
    force: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawSpread:
    """What the choice of quantization-calibration images decides, over several draws."""

    recipe: str
    images: int
    """Labelled images that judged; none of them is in any draw."""
    top1_reference: float
    """FP32's accuracy on them, as a fraction."""
    top1: tuple[float, ...]
    """Accuracy of each draw's artifact."""
    agreement: tuple[float, ...]
    """Share of images with FP32's answer, for each draw."""

    @property
    def top1_std(self) -> float:
        """Standard deviation of the accuracy over draws, as a fraction."""
        return float(np.std(self.top1, ddof=1))


@dataclass(slots=True, kw_only=True)
class ExportResult:
    """What an export leaves."""

    artifacts: list[tuple[str, Path]] = field(default_factory=list)
    """Recipe id and folder."""
    recipes: list[Path] = field(default_factory=list)
    """Recipe files that searches wrote."""
    searches: list[backoff.Outcome] = field(default_factory=list)
    draws: list[DrawSpread] = field(default_factory=list)
    failures: list[tuple[str, EdgebenchError]] = field(default_factory=list)


def opened(request: ExportRequest, progress: Progress,
           note: Callable[[str], None]) -> tuple[Source, tuple[Recipe, ...]]:
    """Return the model and the recipes that a request names.

    Raises:
        EdgebenchError: One of them cannot be opened.
    """
    recipes = tuple(_with_family(catalog.recipe(name), request.family) for name in request.recipes)
    source = open_source(
        request.model, weights=request.weights, classes=read_classes(request.classes) if request.classes else None,
        templates=read_templates(request.templates) if request.templates else None,
        preprocess=read_preprocess(request.preprocess) if request.preprocess else None,
        output=request.output, progress=progress)
    for caveat in source.caveats:
        note(f"{caveat.message}; {caveat.hint}")
    return source, recipes


def export(request: ExportRequest, progress: Progress = lambda what, done, total: None,
           note: Callable[[str], None] = lambda text: None) -> ExportResult:
    """Export a model by every recipe; what fails does not stop the rest.

    Raises:
        UsageError: An option that does not fit.
        InvalidInput: The model, or images, cannot be used.
    """
    wanted = _search(request)
    if request.draws < 1:
        raise UsageError(f"--draws: expected 1 or more, got {request.draws}")
    source, recipes = opened(request, progress, note)
    calibration = open_images(request.calibration_data) if request.calibration_data else source.calibration
    result, said = ExportResult(), set[str]()
    judging = _judging(request, calibration) if wanted is not None or (
        request.draws > 1 and any(recipe.quantization for recipe in recipes)) else None
    with Exporter(source, request.out, Wanted(
            calibration=calibration, resolutions=request.resolutions,
            allow_precision_fallback=request.allow_precision_fallback)) as exporter:
        if wanted is None:
            # A folder in the way of one recipe is refused before another is built.
            for recipe in recipes:
                with suppress(InvalidInput, CannotMeasure, MissingDependency):
                    exporter.refuse_occupied(recipe, force=request.force)
        for number, recipe in enumerate(recipes):
            try:
                if recipe.quantization is not None and request.draws > 1 and judging is not None:
                    result.draws.append(compare_draws(source, recipe, exporter, judging, request.draws, progress))
                chosen = recipe
                if wanted is not None and judging is not None:
                    outcome = backoff.search(source, recipe, exporter, request.out, judging, wanted, progress, note)
                    result.searches.append(outcome)
                    chosen = outcome.recipe
                    result.recipes.append(write_recipe(chosen, request.out))
                progress(f"exporting {chosen.id}", number, len(recipes))
                folder = exporter.export(chosen, force=request.force)
                result.artifacts.append((chosen.id, folder))
                told = outputs.sentence(load_artifact(folder))
                if told and told not in said:
                    said.add(told)
                    note(told)
                note(f"{chosen.id}: {folder}")
            except EdgebenchError as error:
                result.failures.append((recipe.id, error))
    return result


def _search(request: ExportRequest) -> backoff.Search | None:
    if request.max_drop is None:
        if request.keep:
            raise UsageError("--keep needs a margin: --max-drop FRACTION", "--max-drop 0.005 is half a point")
        return None
    return backoff.Search(margins=backoff.margins(request.max_drop, request.keep), max_trials=request.max_trials)


def _judging(request: ExportRequest, calibration: ImageSet | None) -> ImageSet:
    images = open_images(request.tuning_data) if request.tuning_data else calibration
    if images is None:
        raise InvalidInput("there are no labelled images to judge by",
                           "pass --tuning-data DIR, as ROOT/<class>/<image>")
    if images.name == CUE_CONFLICT:
        raise InvalidInput(f"{images.source} is labelled by shapes, not by the model's classes",
                           "pass --tuning-data DIR with the model's classes as folders")
    return images


def _with_family(recipe: Recipe, family: str | None) -> Recipe:
    if family is None or recipe.quantization is None:
        return recipe
    return replace(recipe, quantization=replace(recipe.quantization, family=graphs.family_named(family)))


def explain(request: ExportRequest, progress: Progress = lambda what, done, total: None,
            note: Callable[[str], None] = lambda text: None) -> tuple[
        tuple[Recipe, quantize.Plan | None], ...]:
    """Return, for every recipe, what it will do to this model's graph; None where it quantizes nothing.

    Raises:
        EdgebenchError: The model cannot be opened or converted.
    """
    source, recipes = opened(request, progress, note)
    found: list[tuple[Recipe, quantize.Plan | None]] = []
    with Exporter(source, request.out, Wanted()) as exporter:
        for recipe in recipes:
            if recipe.quantization is None:
                found.append((recipe, None))
                continue
            prepared = quantize.prepare(exporter.base(recipe.opset), exporter.scratch)
            found.append((recipe, quantize.plan(graphs.load(prepared), recipe)))
    return tuple(found)


def compare_draws(source: Source, recipe: Recipe, exporter: Exporter, images: ImageSet, draws: int,
                  progress: Progress) -> DrawSpread:
    """Quantize with several draws of calibration images, and judge each on the same labelled images.

    Raises:
        EdgebenchError: A draw cannot be built or judged.
    """
    assert recipe.quantization is not None
    drawn = [replace(recipe, quantization=replace(recipe.quantization, seed=recipe.quantization.seed + k))
             for k in range(draws)]
    used = [digest for one in drawn if one.quantization for digest in exporter.draw(one.quantization)[0].image_sha256]
    base = exporter.base(recipe.opset)
    judge = backoff.Judge(source, base, images, used, exporter.scored(recipe.opset))
    top1, agreement = [], []
    for number, one in enumerate(drawn):
        progress(f"draw {number + 1} of {draws} for {recipe.id}", number, draws)
        with tempfile.TemporaryDirectory(dir=exporter.scratch, prefix="draw-") as scratch:
            folder = Path(scratch)
            logits = judge.answers(folder / exporter.build(one, base, folder), one)
        mine = judge.outcomes(logits)
        top1.append(float(mine.correct.mean()))
        agreement.append(float((mine.predicted == judge.reference.argmax(1)).mean()))
    return DrawSpread(recipe=recipe.id, images=len(judge.targets), top1=tuple(top1), agreement=tuple(agreement),
                      top1_reference=float(judge.outcomes(judge.reference).correct.mean()))


def write_recipe(recipe: Recipe, folder: Path) -> Path:
    """Write a recipe as ``folder/<id>.toml``, to be committed or named with ``--recipe``; returns the file."""
    data = {key: value for key, value in to_builtins(recipe).items() if value not in (None, (), [], {})}
    if "quantization" in data:
        data["quantization"] = {key: value for key, value in data["quantization"].items() if value not in ((), [])}
    if "build" in data:
        data["build"] = {key: value for key, value in data["build"].items() if value not in (None, (), [])}
    file = folder / f"{recipe.id}.toml"
    write_bytes(file, require("tomli_w", "export").dumps(data).encode())
    return file
