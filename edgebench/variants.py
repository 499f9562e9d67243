"""From models and artifact folders to the variants of a job: all are opened, named and checked before any export."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgebench import artifacts, backends, catalog, environment, evaluate
from edgebench.datasets import ImageSet, open_images
from edgebench.errors import CannotMeasure, EdgebenchError, InvalidInput, UsageError
from edgebench.named_sets import open_sets
from edgebench.recipe import Recipe
from edgebench.record import Artifact, Device, Skip, load, load_artifact, plain_name

if TYPE_CHECKING:
    from typing_extensions import Self

    from edgebench.export import Exporter
    from edgebench.profiler import Request
    from edgebench.sources import Source

_DIGEST_DIGITS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """What is measured under one name."""

    name: str
    artifact: Artifact
    """The manifest; before the export, what is settled of it without building anything."""
    folder: Path | None
    """Of the artifact; None before it is exported."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A variant that could not be exported or measured."""

    what: str
    error: EdgebenchError


@dataclass(frozen=True, slots=True, kw_only=True)
class _Planned:
    variant: Variant
    recipe: Recipe
    exporter: Exporter


@dataclass(slots=True, kw_only=True)
class Roster:
    """All models and artifacts of a request, opened and named; a context, for exporters keep scratch files.

    Entering it opens everything and raises what can be refused; nothing is exported before `export`.
    """

    request: Request
    device: Device
    images: Sequence[ImageSet]
    progress: Callable[[str, float], None]
    note: Callable[[str], None]
    failures: list[Failure] = field(default_factory=list)
    skips: list[Skip] = field(default_factory=list)
    _ready: list[Variant] = field(default_factory=list)
    _planned: list[_Planned] = field(default_factory=list)
    _stack: ExitStack = field(default_factory=ExitStack)

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._open_artifacts()
            models = [model for model in self.request.models if not artifacts.is_artifact(Path(model))]
            if models:
                self._open_models(models, stack)
            self._stack = stack.pop_all()
        counted = Counter(variant.name for variant in self.promised)
        twice = next((name for name, count in counted.items() if count > 1), None)
        if twice is not None:
            self._stack.close()
            raise UsageError(f"two artifacts are the same variant: {twice}",
                             "profile them into different --out folders")
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def promised(self) -> tuple[Variant, ...]:
        """All variants in the order in which they are measured, the references first."""
        return _ordered([*self._ready, *(planned.variant for planned in self._planned)])

    def answers(self, artifact: Artifact, inputs: np.ndarray) -> np.ndarray:
        """Return the logits (n, classes) of a variant for inputs (n, 3, H, W); of its FP32 graph before the export."""
        for planned in self._planned:
            if planned.variant.artifact == artifact:
                opset, exporter = planned.recipe.opset, planned.exporter
                plain = replace(planned.recipe, backend="onnxruntime", precision="fp32", float_precision="fp32",
                                providers=(), provider_options={}, quantization=None, build=None)
                return evaluate.answers(exporter.base(opset), replace(
                    artifact, recipe=plain, scored=exporter.scored(opset)), inputs)
        folder = next(variant.folder for variant in self._ready if variant.artifact == artifact)
        assert folder is not None
        return evaluate.answers(folder / artifact.entry, artifact, inputs)

    def export(self) -> tuple[Variant, ...]:
        """Export what is a model; returns all variants, in the order in which they are measured."""
        built = list(self._ready)
        for done, planned in enumerate(self._planned):
            self.progress(f"exporting {planned.recipe.id}", done / len(self._planned))
            try:
                folder = planned.exporter.export(planned.recipe, force=True)
            except EdgebenchError as error:
                self._failed(planned.recipe.id, error)
            else:
                built.append(replace(planned.variant, folder=folder, artifact=artifacts.verify(folder)))
        return _ordered(built)

    def _failed(self, what: str, error: EdgebenchError) -> None:
        self.failures.append(Failure(what=what, error=error))
        self.note(f"{what}: {error.message}")

    def _open_artifacts(self) -> None:
        for folder in map(Path, self.request.models):
            if not artifacts.is_artifact(folder):
                continue
            try:
                artifact = artifacts.verify(folder)
                _refuse_outer_weights(folder, artifact)
                backends.get(artifact.recipe.backend)
            except EdgebenchError as error:
                self._failed(folder.name, error)
            else:
                self._ready.append(Variant(name=_name(artifact), artifact=artifact, folder=folder))

    def _open_models(self, models: Sequence[str], stack: ExitStack) -> None:
        # Imported here: the board side has no torch, and needs none for artifacts.
        from edgebench import export, sources
        from edgebench.user_files import read_classes, read_preprocess, read_templates

        request = self.request
        wanted = catalog.select_recipes(self.device, request.recipes, request.backends, request.precisions)
        calibration = open_images(request.calibration_data) if request.calibration_data else None
        classes = read_classes(request.classes) if request.classes else None
        templates = read_templates(request.templates) if request.templates else None
        preprocess = read_preprocess(request.preprocess) if request.preprocess else None
        opened = []
        for model in models:
            if Path(model).is_dir():
                raise UsageError(f"{model} is a folder but no artifact: it has no {artifacts.MANIFEST}",
                                 "pass a folder that edgebench export wrote, or a model")
            opened.append(sources.open_source(
                model, weights=request.weights, classes=classes, templates=templates, preprocess=preprocess,
                output=request.output, progress=lambda what, done, total: self.progress(what, done / max(total, 1))))
        for source in self._identified(opened, wanted):
            for caveat in source.caveats:
                self.note(f"{caveat.message}; {caveat.hint}")
            images = self.images or (open_sets(source.evaluation) if source.evaluation is not None else ())
            exporter = stack.enter_context(export.Exporter(source, request.out / "artifacts", export.Wanted(
                calibration=calibration, images=images[0] if images else None, resolutions=request.resolutions,
                allow_precision_fallback=request.allow_precision_fallback)))
            for recipe in self._possible(source, wanted, has_calibration=bool(calibration or source.calibration)):
                try:
                    artifact = exporter.promised(recipe)
                    exporter.refuse_occupied(recipe, force=True)
                except EdgebenchError as error:
                    self._failed(recipe.id, error)
                else:
                    self._planned.append(_Planned(recipe=recipe, exporter=exporter, variant=Variant(
                        name=_name(artifact), artifact=artifact, folder=None)))

    def _possible(self, source: Source, wanted: Sequence[Recipe], *, has_calibration: bool) -> Iterator[Recipe]:
        from edgebench.export import unlike_file

        request, possible = self.request, 0
        explicit = bool(request.recipes or request.backends or request.precisions)
        for recipe in wanted:
            unlike = None if request.recipes else unlike_file(source, recipe)
            if unlike is not None:
                # Of a file in FP32, the recipes for files of others are no news.
                if source.written.precision != "fp32":
                    self.skips.append(Skip(what=recipe.id, reason=unlike.message, subject="variant", code="unfit"))
                    self.note(f"skipped {recipe.id}: {unlike.message}")
                continue
            reason = _reason_against(recipe, has_calibration=has_calibration)
            if reason and not explicit:
                self.skips.append(Skip(what=recipe.id, reason=reason, subject="variant", code="unfit"))
                self.note(f"skipped {recipe.id}: {reason}")
            else:
                possible += 1
                yield recipe
        if not possible:
            raise CannotMeasure(f"no recipe for {source.identity.id} can be built and run here",
                                "; ".join(f"{skip.what}: {skip.reason}" for skip in self.skips))

    def _identified(self, opened: Sequence[Source], recipes: Sequence[Recipe]) -> Iterator[Source]:
        """Yield the sources, model files of one name but other content under names that tell them apart.

        Raises:
            UsageError: The same model is given twice.
        """
        alike: dict[str, list[Source]] = {}
        for source in opened:
            alike.setdefault(plain_name(source.identity.id), []).append(source)
        for source in opened:
            rivals = [other for other in alike[plain_name(source.identity.id)] if other is not source]
            same = next((other for other in rivals if other.identity == source.identity), None)
            if same is not None:
                places = [str(one.file or one.identity.id) for one in (same, source)]
                raise UsageError(f"{' and '.join(places)} are the same model" if places[0] != places[1] else
                                 f"{places[0]} is given twice", "name it once")
            name = self._free_name(source, rivals, recipes)
            if name != source.identity.id:
                self.note(f"model: {source.file} is called {name!r} here, to tell it from another "
                          f"{source.identity.id!r}")
            yield replace(source, identity=replace(source.identity, id=name))

    def _free_name(self, source: Source, rivals: Sequence[Source], recipes: Sequence[Recipe]) -> str:
        """Return the shortest name of a model file that no file of other content has, here and in the output folder."""
        if source.file is None:
            return source.identity.id
        place = source.file.absolute()
        digest = (source.identity.weights_sha256 or "")[:_DIGEST_DIGITS]
        names = ["/".join(place.parts[-depth:]) for depth in range(1, min(len(place.parts), 4))]
        names.append(f"{source.file.name}@{digest}")
        # A model that was measured here before keeps the name that it had.
        kept = next((name for name in names if self._held_by(name, recipes) == source.identity.weights_sha256), None)
        if kept is not None:
            return kept
        others = {plain_name("/".join(other.file.absolute().parts[-depth:])) for other in rivals if other.file
                  for depth in range(1, 4)}
        for name in names[:-1]:
            held = None if self.request.force else self._held_by(name, recipes)
            if plain_name(name) not in others and held is None:
                return name
        return names[-1]

    def _held_by(self, name: str, recipes: Sequence[Recipe]) -> str | None:
        """Return the content hash of the model that has a name in the output folder; None where none has."""
        for recipe in recipes:
            file = self.request.out / f"{plain_name(name)}--{recipe.id}--{recipe.backend}" / "run.json"
            manifest = self.request.out / "artifacts" / f"{plain_name(name)}--{recipe.id}"
            try:
                if file.is_file():
                    return load(file).artifact.model.weights_sha256 or ""
                if artifacts.is_artifact(manifest):
                    return load_artifact(manifest).model.weights_sha256 or ""
            except InvalidInput:
                # What cannot be read is no result; what is to be done with it is decided where it is replaced.
                continue
        return None


def _refuse_outer_weights(folder: Path, artifact: Artifact) -> None:
    """Raise InvalidInput where an ONNX file of an artifact keeps weights that the manifest does not list.

    Without the package onnx the runtimes alone refuse weights outside the folder.
    """
    if not backends.is_installed("onnx"):
        return
    from edgebench import graphs

    listed = {folder / entry.path for entry in artifact.files}
    for file in sorted(one for one in listed if one.suffix == ".onnx"):
        stray = next((data for data in graphs.external_data(file) if data not in listed), None)
        if stray is not None:
            raise InvalidInput(f"{file} keeps weights in {stray.name}, which {artifacts.MANIFEST} does not list",
                               "export again")


def _ordered(variants: Sequence[Variant]) -> tuple[Variant, ...]:
    return tuple(sorted(variants, key=lambda variant: variant.artifact.recipe.precision != "fp32"))


def _name(artifact: Artifact) -> str:
    return f"{plain_name(artifact.model.id)}--{artifact.recipe.id}--{artifact.recipe.backend}"


def _reason_against(recipe: Recipe, *, has_calibration: bool) -> str | None:
    if not backends.installed(recipe.backend):
        return f"{recipe.backend} is not installed: pip install 'edgebench[{recipe.backend}]'"
    reason = backends.get(recipe.backend).reason_against(recipe)
    if reason is not None:
        return reason
    quantization = recipe.quantization
    if quantization is not None and quantization.activations == "uint8" and environment.lacks_vnni() \
            == (not quantization.reduce_range) and environment.is_x86():
        return "this CPU has no VNNI, and INT8 products would saturate: the recipes ending in -avx2 are for it" \
            if environment.lacks_vnni() else "this CPU has VNNI and needs no weights of 7 bits"
    if recipe.quantization is not None and not has_calibration:
        return "INT8 needs images like those seen in use: pass --calibration-data DIR"
    return None
