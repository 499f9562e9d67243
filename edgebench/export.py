"""Source + recipe → artifact: convert, quantize, check parity and precision, keep golden tensors, hash, write."""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgebench import backends, builder, graphs, intake, outputs, parity, roofline
from edgebench.artifacts import (
    GOLDEN,
    MANIFEST,
    RESOLUTIONS,
    is_artifact,
    list_files,
    pad,
    run_batches,
    session_batch,
    verify,
    write_manifest,
)
from edgebench.backends import Session
from edgebench.conversion import (
    INPUT,
    PARITY_TOLERANCE,
    Samples,
    base_at,
    open_here,
    output_widths,
    reference_outputs,
    samples,
    to_onnx,
)
from edgebench.datasets import ImageSet, doubts
from edgebench.errors import CannotMeasure, EdgebenchError, InvalidInput, UsageError, writing
from edgebench.imagecache import ImageCache, cached
from edgebench.metrics import broken
from edgebench.outputs import largest_difference, magnitude
from edgebench.properties import CLEAN
from edgebench.recipe import Quantization, Recipe
from edgebench.record import (
    ARTIFACT_SCHEMA,
    Artifact,
    CalibrationSet,
    Caveat,
    ExecutedPrecision,
    Parity,
    ResolutionEntry,
    ScoredOutput,
    TensorSpec,
    load_artifact,
    plain_name,
    write_bytes,
)
from edgebench.sources import Progress, Source
from edgebench.timing_types import GraphWork

if TYPE_CHECKING:
    from typing_extensions import Self

GOLDEN_IMAGES = 4
MIN_CALIBRATION_IMAGES = 100
# Below, an artifact answers like another model: residual additions in INT8 bring a ViT to 5 %.
MIN_AGREEMENT = 0.8


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What is exported beside the recipe."""

    calibration: ImageSet | None = None
    """Quantization-calibration images for INT8 and FP8 recipes; the source's own where None."""
    images: ImageSet | None = None
    """Images for the parity check where there are no calibration images."""
    resolutions: tuple[int, ...] = ()
    """Other input sizes (px) to build for, for the resolution sweep; ranges are chosen anew."""
    allow_precision_fallback: bool = False
    """Whether a precision that was not achieved is a caveat instead of an error."""


def variant_folder(model: str, recipe: Recipe) -> str:
    """Return ``<model>--<recipe>`` with nothing in it that a file system could mind."""
    return f"{plain_name(model)}--{recipe.id}"


def unlike_file(source: Source, recipe: Recipe) -> InvalidInput | None:
    """Return why a recipe would put a false name on a file that another tool wrote; None where it does not.

    A file that is not FP32 is taken by recipes of its own precision alone: a half-precision file by those of that
    precision, an INT8 file by those that take it as it is.
    """
    written, name = source.written, source.identity.id
    is_fp32 = written.precision == "fp32"
    if recipe.as_given and is_fp32:
        return InvalidInput(f"{recipe.id} takes files that are quantized already, and {name} is FP32",
                            "leave the recipe out, or quantize the file with another one")
    if is_fp32 or (written.precision == recipe.precision and (recipe.as_given or recipe.quantization is None)):
        return None
    kind = written.precision.upper()
    verb = "would quantize it a second time" if recipe.quantization is not None else \
        f"would name it {recipe.precision.upper()}"
    half = "ort-fp16" if written.precision == "fp16" else "openvino-bf16"
    advice = {"int8": "--recipe ort-int8-given or openvino-int8-given takes it as it is",
              "fp8": "give the FP32 file that it was made from"}.get(
        written.precision, f"give the FP32 file that it was made from, or choose a recipe for {kind} such as {half} "
                           "(--allow-precision-fallback where the CPU has no such kernels)")
    return InvalidInput(f"{name} is {kind} already ({written.evidence}), and {recipe.id} {verb}", advice)


class Exporter:
    """Exports one source by several recipes: its FP32 graph, inputs for parity and reference outputs are made once.

    Use it as a context manager: its scratch folder lies in `root` and goes away with it.
    """

    def __init__(self, source: Source, root: Path, wanted: Wanted) -> None:
        self._source, self._root = source, root
        self._wanted = replace(wanted, calibration=wanted.calibration or source.calibration)
        self._bases: dict[int, tuple[Path, dict[str, np.ndarray]]] = {}
        self._scored: dict[int, ScoredOutput] = {}
        self._works: dict[int, GraphWork | None] = {}
        self._sized: dict[tuple[int, int], Path] = {}
        self._drawn: dict[tuple[int, int, str], tuple[CalibrationSet, Path]] = {}
        self._sizes = _other_sizes(source, wanted.resolutions)

    def __enter__(self) -> Self:
        self._checked = samples(self._wanted.calibration or self._wanted.images, self._source)
        with writing(self._root):
            self._root.mkdir(parents=True, exist_ok=True)
            self._temporary = tempfile.TemporaryDirectory(dir=self._root, prefix=".part-", ignore_cleanup_errors=True)
        self.scratch = Path(self._temporary.name)
        return self

    def __exit__(self, *_: object) -> None:
        self._temporary.cleanup()

    def base(self, opset: int) -> Path:
        """Return the FP32 graph."""
        return self._base(opset)[0]

    def export(self, recipe: Recipe, *, force: bool = False) -> Path:
        """Export by a recipe into ``root/<model>--<recipe>``; an artifact that is already there, unchanged, is kept.

        Args:
            recipe: How.
            force: Replace another artifact in the way.

        Raises:
            EdgebenchError: It cannot be built, or is not what the recipe promises.
        """
        reason = unlike_file(self._source, recipe)
        if reason is not None:
            raise reason
        folder = self._root / variant_folder(self._source.identity.id, recipe)
        drawn = self.draw(recipe.quantization) if recipe.quantization else None
        if self._is_same(folder, recipe, drawn[0] if drawn else None):
            return folder
        _make_room(folder, force=force, remove=False)
        with writing(folder):
            part = self.scratch / recipe.id
            part.mkdir()
            self._fill(part, recipe, drawn)
            _make_room(folder, force=force)
            part.rename(folder)
        return folder

    def promised(self, recipe: Recipe) -> Artifact:
        """Return what `export` will write, as far as that is settled before anything is built: no files, no parity.

        Raises:
            EdgebenchError: The model, the class list, or the calibration images cannot be used.
        """
        source = self._source
        reason = unlike_file(source, recipe)
        if reason is not None:
            raise reason
        meaning = None
        if source.file is not None:
            inputs, given = graphs.interface(self.base(recipe.opset))
            meaning = self.scored(recipe.opset)
        else:
            # Translating a library's model takes minutes; what its classifier gives is known before.
            assert source.size_px is not None
            inputs = (TensorSpec(name=INPUT, shape=(intake.BATCH, 3, *source.size_px), dtype="float32"),)
            given = tuple(TensorSpec(name=name, shape=(intake.BATCH, width), dtype="float32")
                            for name, width in output_widths(source).items())
        artifact = Artifact(
            schema=ARTIFACT_SCHEMA, model=source.identity, recipe=recipe, entry="unbuilt", files=(), inputs=inputs,
            outputs=given, scored=meaning, preprocess=source.preprocess, classes=source.classes,
            calibration=self.draw(recipe.quantization)[0] if recipe.quantization else None, parity=None, golden=None,
            tools=tools(recipe), created_at="",
            resolutions=tuple(ResolutionEntry(size_px=size, entry="unbuilt") for size in self._sizes))
        _refuse_wrong_classes(artifact)
        return artifact

    def refuse_occupied(self, recipe: Recipe, *, force: bool) -> None:
        """Refuse, before anything is built, a folder in which the artifact may not be written.

        Raises:
            UsageError: Another artifact lies there, without `force`, or a file that is no part of one.
        """
        folder = self._root / variant_folder(self._source.identity.id, recipe)
        drawn = self.draw(recipe.quantization)[0] if recipe.quantization and not force else None
        if force or not self._is_same(folder, recipe, drawn):
            _make_room(folder, force=force, remove=False)

    def draw(self, quantization: Quantization, condition: str = CLEAN) -> tuple[CalibrationSet, Path]:
        """Return the identity of the quantization-calibration images, and a file of their pixels (N, H, W, 3).

        Raises:
            InvalidInput: No images, or images without content: ranges from noise would be worse than none.
        """
        key = (quantization.images, quantization.seed, condition)
        if key not in self._drawn:
            identity, pixels = _draw(self._wanted.calibration, quantization, self._source, condition)
            file = self.scratch / f"pixels-{len(self._drawn)}.npy"
            with writing(file):
                np.save(file, pixels)
            self._drawn[key] = identity, file
        return self._drawn[key]

    def scored(self, opset: int) -> ScoredOutput:
        """Return which output of the graph is scored, and what it holds."""
        base, reference = self._base(opset)
        if opset not in self._scored:
            self._scored[opset] = outputs.scored(graphs.load(base), next(iter(reference.values())), self._source.output)
        return self._scored[opset]

    def build(self, recipe: Recipe, base: Path, folder: Path, condition: str = CLEAN) -> str:
        """Build the recipe's files from a graph in a process of its own; returns the file that its runtime opens."""
        drawn = self.draw(recipe.quantization, condition) if recipe.quantization else None
        return builder.build(builder.BuildJob(
            base=str(base), model=self._source.identity.id, recipe=recipe, pixels=str(drawn[1]) if drawn else None,
            preprocess=self._source.preprocess, folder=str(folder)), self.scratch)

    def _base(self, opset: int) -> tuple[Path, dict[str, np.ndarray]]:
        if opset not in self._bases:
            base = to_onnx(self._source, opset, self.scratch)
            own = reference_outputs(self._source, base, self._checked.inputs)
            _refuse_unanswered(next(iter(own.values())), self._checked, self._source)
            self._bases[opset] = base, own
        return self._bases[opset]

    def _work(self, recipe: Recipe) -> GraphWork | None:
        if recipe.opset not in self._works:
            self._works[recipe.opset] = roofline.graph_work(self.base(recipe.opset))
        counted = self._works[recipe.opset]
        return None if counted is None else roofline.in_precision(counted, recipe.precision)

    def _is_same(self, folder: Path, recipe: Recipe, calibration: CalibrationSet | None) -> bool:
        if not is_artifact(folder):
            return False
        try:
            there = verify(folder)
        except InvalidInput:
            return False
        source = self._source
        return (there.model, there.recipe, there.preprocess, there.classes, there.calibration) == (
            source.identity, recipe, source.preprocess, source.classes, calibration) \
            and there.scored is not None and there.scored.given == (source.output or "") \
            and there.tools == tools(recipe) and set(self._sizes) <= {one.size_px for one in there.resolutions} \
            and (self._wanted.allow_precision_fallback
                 or not any(one.code == parity.NOT_ACHIEVED for one in there.caveats))

    def _fill(self, folder: Path, recipe: Recipe, drawn: tuple[CalibrationSet, Path] | None) -> None:
        source, checked = self._source, self._checked
        base, reference = self._base(recipe.opset)
        entry = self.build(recipe, base, folder)
        resolutions = [self._at_size(folder, recipe, size) for size in self._sizes]
        first = graphs.image_input(base).shape[0]
        opened = _Opened(folder / entry, recipe, first)
        manifest = Artifact(
            schema=ARTIFACT_SCHEMA, model=source.identity, recipe=recipe, entry=entry, files=(),
            inputs=_with_batch(opened.inputs, first), outputs=_with_batch(opened.outputs, first),
            scored=self.scored(recipe.opset), preprocess=source.preprocess, classes=source.classes,
            calibration=drawn[0] if drawn else None, parity=None,
            golden=GOLDEN, tools=tools(recipe), created_at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            resolutions=tuple(resolutions), work=self._work(recipe),
            family=graphs.family(graphs.load(base)) if drawn else None)
        _refuse_wrong_classes(manifest)
        answers = opened.run(checked.inputs)
        measured = _parity(answers, reference, checked, source, opened.runtime, recipe,
                           self.scored(recipe.opset)) if answers is not None else None
        precision = opened.precision(checked.inputs)
        written = graphs.static_precision(graphs.load(folder / entry), recipe.precision) \
            if entry.endswith(".onnx") else None
        doubt = parity.not_achieved(precision, recipe, written)
        if doubt is not None and opened.reason is not None and recipe.build is not None \
                and recipe.build.typing == "weak":
            doubt = _unproven(recipe, opened.reason)
        elif doubt is not None and not self._wanted.allow_precision_fallback:
            raise CannotMeasure(doubt.message, doubt.hint)
        if recipe.precision == "fp32" and measured is not None:
            _refuse_disparity(measured, next(iter(reference.values())), recipe)
        caveats = [*source.caveats, *_given_caveats(source, base), *_meaning_caveats(manifest),
                   *_calibration_caveats(drawn[0] if drawn else None, self._wanted.calibration),
                   *([doubt] if doubt else []), *_parity_caveats(measured, recipe)]
        own = next(iter(reference.values()))
        golden = io.BytesIO()
        np.savez_compressed(
            golden, inputs=checked.inputs[:GOLDEN_IMAGES], reference=own[:GOLDEN_IMAGES],
            outputs=(own if answers is None else answers[manifest.outputs[0].name])[:GOLDEN_IMAGES])
        write_bytes(folder / GOLDEN, golden.getvalue())
        write_manifest(folder, replace(manifest, files=list_files(folder), parity=measured, caveats=tuple(caveats),
                                       precision=replace(precision, profile=())))

    def _at_size(self, folder: Path, recipe: Recipe, size: int) -> ResolutionEntry:
        if (recipe.opset, size) not in self._sized:
            self._sized[recipe.opset, size] = base_at(self._source, recipe.opset, size, self.scratch)
        place = folder / RESOLUTIONS / str(size)
        place.mkdir(parents=True)
        made = self.build(recipe, self._sized[recipe.opset, size], place, f"resolution:{size}")
        return ResolutionEntry(size_px=size, entry=(place / made).relative_to(folder).as_posix())


def export_all(source: Source, recipes: Sequence[Recipe], root: Path, wanted: Wanted | None = None, *,
               force: bool = False, progress: Progress = lambda what, done, total: None,
               ) -> Iterator[tuple[Recipe, Path | EdgebenchError]]:
    """Export `source` by each recipe; yields the artifact's folder or why there is none.

    Args:
        source: What to export.
        recipes: How.
        root: Folder of the artifact folders.
        wanted: Images, resolutions, what is forgiven; nothing of it where None.
        force: Replace other artifacts in the way.
        progress: Told about the steps.
    """
    with Exporter(source, root, wanted or Wanted()) as exporter:
        for done, recipe in enumerate(recipes):
            progress(f"exporting {recipe.id}", done, len(recipes))
            try:
                yield recipe, exporter.export(recipe, force=force)
            except EdgebenchError as error:
                yield recipe, error
        progress("exported", len(recipes), len(recipes))


class _Opened:
    """Built files, opened by their own runtime where that runs here; else the ONNX file by ONNX Runtime's CPU."""

    def __init__(self, entry: Path, recipe: Recipe, first: int | str) -> None:
        own = backends.get(recipe.backend)
        self._entry, self._recipe, self._first = entry, recipe, first
        self.reason = own.reason_against(recipe)
        """Why the recipe's own runtime does not run here; None where it does."""
        if self.reason is not None and entry.suffix != ".onnx":
            raise CannotMeasure(f"nothing here can check the built files: {self.reason}",
                                "export it on a machine like the target")
        self.runtime = recipe.backend if self.reason is None else \
            f"ONNX Runtime on the CPU, integers in float, for {recipe.backend} cannot run here: {self.reason}"
        self._open: Callable[[int], Session] | None
        self._open = lambda batch: open_here(entry, recipe, batch=batch, threads=1)
        if self.reason is not None and (recipe.precision in ("bf16", "fp8") or recipe.float_precision == "bf16"):
            # ONNX Runtime's CPU kernels know neither.
            self._open = None
        if self._open is not None:
            session = self._open(session_batch(recipe, first, 1))
            self.inputs, self.outputs = session.inputs, session.outputs
        else:
            self.inputs, self.outputs = graphs.interface(entry)

    def run(self, inputs: np.ndarray) -> dict[str, np.ndarray] | None:
        """Return the outputs (N, …) for `inputs` (N, 3, H, W); None where nothing here can run the files."""
        if self._open is None:
            return None
        batch = session_batch(self._recipe, self._first, len(inputs))
        return run_batches(self._open, {self.inputs[0].name: inputs}, batch)

    def precision(self, inputs: np.ndarray) -> ExecutedPrecision:
        """Return what was built: from the runtime where it runs here, else from the element types in the file."""
        if self.reason is None:
            batch = session_batch(self._recipe, self._first, 1)
            feeds = {self.inputs[0].name: pad(inputs[:batch], batch)}
            return backends.get(self._recipe.backend).executed_precision(self._entry, self._recipe, feeds, threads=1)
        return graphs.static_precision(graphs.load(self._entry), self._recipe.precision)


def _refuse_unanswered(values: np.ndarray, checked: Samples, source: Source) -> None:
    wrong = np.flatnonzero(broken(values))
    if wrong.size:
        names = [checked.names[k] for k in wrong[:3] if k < len(checked.names)]
        raise InvalidInput(
            f"{source.identity.id} itself gives NaN or infinity for {wrong.size} of {checked.what}"
            + (f": {', '.join(names)}" if names else ""),
            "check its weights and the preprocessing" if wrong.size == len(values) or not checked.real else
            "it may divide by the spread of a constant image: repair it, or take these images away")


def _meaning_caveats(manifest: Artifact) -> tuple[Caveat, ...]:
    """Return what is doubtful about what the outputs were taken for."""
    scored = manifest.scored
    assert scored is not None
    name = f"{manifest.model.id}: {scored.reason}"
    if scored.kind == "sigmoid_scores":
        return (Caveat(code="sigmoid-scores", message=f"{name}: top-1 is the largest of them, scores of confidence are "
                       "absent", hint="export the logits of a softmax classifier, or --output NAME=logits, for "
                       "calibration"),)
    if scored.single:
        return (Caveat(code="one-output", message=name, hint="two folders in the order negative, positive are needed; "
                       "--classes FILE fixes the order"),)
    if scored.evidence == "values":
        return (Caveat(code="inferred-outputs", message=f"{name}; the operators do not say it",
                       hint=f"--output {scored.name}={scored.kind} confirms it, or names another kind"),)
    return ()


def _parity(answers: dict[str, np.ndarray], reference: dict[str, np.ndarray], checked: Samples, source: Source,
            runtime: str, recipe: Recipe, scored: ScoredOutput) -> Parity:
    # An ONNX file's outputs keep their names; a traced model's are named alike on both sides.
    logits, own = next(iter(answers.values())), next(iter(reference.values()))
    compared = parity.compare(answers, reference, recipe.precision)
    return Parity(
        reference="eager PyTorch" if source.program is not None else "the given ONNX file in ONNX Runtime",
        inputs=checked.what, images=len(logits), max_abs_difference=largest_difference(logits, own),
        top1_agreement=parity.top1_agreement(*(outputs.scores(one, scored) for one in (logits, own))),
        real_images=checked.real, runtime=runtime, outputs=compared)


def _refuse_disparity(measured: Parity, reference: np.ndarray, recipe: Recipe) -> None:
    allowed = PARITY_TOLERANCE * max(1.0, magnitude(reference))
    if measured.max_abs_difference > allowed:
        raise CannotMeasure(
            f"{recipe.id}: the exported model is not the model: outputs differ by up to "
            f"{measured.max_abs_difference:.3g} (expected at most {allowed:.3g}) on {measured.inputs}",
            "the exporter mistranslated an operator: report it with the model's name")


def _parity_caveats(measured: Parity | None, recipe: Recipe) -> tuple[Caveat, ...]:
    if measured is None:
        return (Caveat(code="parity-unchecked", hint="profile it on its device: golden outputs are compared there",
                       message=f"{recipe.id}: nothing on the exporting machine runs {recipe.precision} files, so the "
                               "outputs are not compared with the model's"),)
    if measured.top1_agreement < MIN_AGREEMENT:
        return (Caveat(
            code="low-agreement", hint="see edgebench export --explain; --max-drop returns layers to float",
            message=f"{recipe.id}: {measured.top1_agreement:.0%} of {measured.inputs} get the model's own answer"),)
    return ()


def _unproven(recipe: Recipe, reason: str) -> Caveat:
    return Caveat(
        code="precision-unproven", hint="profile it on its device: the precision is proven there, or refused",
        message=f"{recipe.id}: with weak typing the file stays FP32 and TensorRT chooses the types where it builds; "
                f"nothing here can prove {recipe.precision}: {reason}")


def _refuse_wrong_classes(manifest: Artifact) -> None:
    count = outputs.classes(manifest)
    if manifest.classes is not None and count is not None and len(manifest.classes.ids) != count:
        raise InvalidInput(f"the class map has {len(manifest.classes.ids)} classes, the model {count} outputs",
                           "one line per output in the --classes file")


def _with_batch(found: tuple[TensorSpec, ...], first: int | str) -> tuple[TensorSpec, ...]:
    """Restore the batch dimension that opening the session for one image fixed."""
    batch = first if isinstance(first, int) else intake.BATCH
    return tuple(TensorSpec(name=spec.name, dtype=spec.dtype, shape=(batch, *spec.shape[1:])) for spec in found)


def _make_room(folder: Path, *, force: bool, remove: bool = True) -> None:
    """Remove an earlier artifact; anything else in the way stays.

    Raises:
        UsageError: Something is there that may not be removed.
    """
    if not folder.exists():
        return
    ours = {MANIFEST}
    if is_artifact(folder):
        try:
            ours |= {entry.path for entry in load_artifact(folder).files}
        except InvalidInput:
            ours |= {GOLDEN, "model.onnx", "model.onnx.data", "model.xml", "model.bin"}
    foreign = [path for path in folder.rglob("*") if path.is_file() and path.relative_to(folder).as_posix() not in ours]
    if foreign:
        raise UsageError(f"{folder} holds {foreign[0].name}, which is no part of an artifact",
                         "move it away, or choose another --out")
    if not force:
        raise UsageError(f"{folder} already holds another artifact", "--force replaces it, --out DIR writes elsewhere")
    if remove:
        shutil.rmtree(folder)


def _other_sizes(source: Source, resolutions: Sequence[int]) -> tuple[int, ...]:
    """Return the sizes to build for beside the model's own.

    Raises:
        UsageError: A size that is none, or a source that has only one.
    """
    own = source.size_px or ()
    sizes = tuple(sorted({size for size in resolutions if (size, size) != own}))
    wrong = next((size for size in sizes if not 8 <= size <= 4096), None)
    if wrong is not None:
        raise UsageError(f"--resolutions: expected sizes from 8 to 4096 pixels, got {wrong}")
    if sizes and source.at_size is None:
        raise UsageError(f"{source.identity.id} has one size of input: --resolutions needs a timm, open_clip or demo "
                         "model", "or an ONNX file whose height and width may vary")
    return sizes


def tools(recipe: Recipe) -> dict[str, str]:
    """Return the versions of the installed packages that decide what a recipe builds."""
    wanted = ["edgebench", "torch", "timm", "open_clip_torch", "onnx", "onnxscript", "onnxruntime", "numpy", "pillow"]
    if recipe.backend == "openvino":
        wanted += ["openvino", "nncf"]
    found = {}
    for name in wanted:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _draw(calibration: ImageSet | None, quantization: Quantization, source: Source, condition: str = CLEAN,
          ) -> tuple[CalibrationSet, np.ndarray]:
    """Return the identity and pixels (N, H, W, 3) of the quantization-calibration images.

    Raises:
        InvalidInput: No images, or images without content: ranges from noise would be worse than none.
    """
    if source.preprocess is None:
        raise InvalidInput(f"the preprocessing of {source.identity.id} is unknown, so INT8 ranges cannot be chosen",
                           "pass --preprocess FILE")
    if calibration is None:
        raise InvalidInput("INT8 needs quantization-calibration images: ranges are never chosen from random numbers",
                           "pass --calibration-data DIR with a few hundred images like those seen in use")
    order = np.random.default_rng(quantization.seed).permutation(len(calibration.items))[: quantization.images]
    chosen = [calibration.items[k] for k in sorted(order)]
    cache: ImageCache = cached(chosen, source.preprocess, condition=condition)
    pixels = np.array(cache.pixels())
    if pixels.std() == 0:
        raise InvalidInput(f"all quantization-calibration images of {calibration.source} are one colour",
                           "pass images like those seen in use")
    hashes = tuple(sorted(cache.hashes[k] for k in cache.kept))
    return CalibrationSet(source=calibration.source, images=len(hashes), seed=quantization.seed,
                          digest=hashlib.sha256("".join(hashes).encode()).hexdigest(), image_sha256=hashes), pixels


def _given_caveats(source: Source, base: Path) -> tuple[Caveat, ...]:
    """Return the doubts about a file that another tool put into fewer bits."""
    if source.written.precision == "fp32":
        return ()
    found = [Caveat(
        code="given-precision", hint="profile the FP32 file that it was made from, to see what that cost",
        message=f"{source.identity.id} came as {source.written.precision.upper()} ({source.written.evidence}): parity "
                "and scores compare it with itself, and not with an FP32 model")]
    if graphs.ranges_follow_batch(graphs.load(base)):
        found.append(Caveat(
            code="batch-dependent", hint="evaluate with --batch 1 where the device takes one image at a time",
            message=f"{source.identity.id} chooses its ranges while it runs: an answer depends on the other images of "
                    "the batch"))
    return tuple(found)


def _calibration_caveats(calibration: CalibrationSet | None, images: ImageSet | None) -> tuple[Caveat, ...]:
    if calibration is None or images is None:
        return ()
    few = (Caveat(code="few-calibration-images", hint="pass more images with --calibration-data",
                  message=f"INT8 ranges come from {calibration.images} images; {MIN_CALIBRATION_IMAGES} or more are "
                          "usual"),) if calibration.images < MIN_CALIBRATION_IMAGES else ()
    return (*few, *(replace(one, message=f"calibration images of {one.message}") for one in doubts(images)
                    if one.code == "images-passed-over"))
