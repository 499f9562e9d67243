"""Source + recipe → artifact: convert, quantize, check parity, keep golden tensors, hash, write the manifest."""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from edgebench import backends
from edgebench.artifacts import (
    GOLDEN,
    MANIFEST,
    fixed_batch,
    is_artifact,
    list_files,
    pad,
    run_batches,
    verify,
    write_manifest,
)
from edgebench.backends import Batches, Feeds
from edgebench.datasets import ImageSet
from edgebench.errors import CannotMeasure, EdgebenchError, InvalidInput, UsageError, require, writing
from edgebench.evaluate import FEATURES
from edgebench.imagecache import ImageCache, cached, normalize
from edgebench.properties import CLEAN
from edgebench.recipe import Quantization, Recipe
from edgebench.record import (
    ARTIFACT_SCHEMA,
    Artifact,
    CalibrationSet,
    Caveat,
    Parity,
    ResolutionEntry,
    TensorSpec,
    load_artifact,
    write_bytes,
)
from edgebench.sources import Progress, Source, external_data, quiet

GOLDEN_IMAGES = 4
PARITY_IMAGES = 16
MIN_CALIBRATION_IMAGES = 100
# FP32 artifacts must agree with the reference within this share of its largest logit.
PARITY_TOLERANCE = 1e-3
INPUT, OUTPUT = "image", "logits"
RESOLUTIONS = "resolutions"
"""Folder within an artifact for the graphs of other input sizes."""


@dataclass(frozen=True)
class Samples:
    """Inputs (N, 3, H, W) that parity is checked on, and what they are."""

    inputs: np.ndarray
    what: str


def variant_folder(model: str, recipe: Recipe) -> str:
    """Return ``<model>--<recipe>`` with nothing in it that a file system could mind."""
    plain = "".join(char if char.isalnum() or char in "._-" else "-" for char in model)
    return f"{plain}--{recipe.id}"


def samples(images: ImageSet | None, source: Source, seed: int = 0) -> Samples:
    """Return inputs for parity: images where there are any and preprocessing is known, else seeded noise."""
    size = source.size_px or _onnx_size(source)
    if images is not None and source.preprocess is not None:
        spread = images.items[:: max(1, len(images.items) // PARITY_IMAGES)][:PARITY_IMAGES]
        pixels = cached(spread, source.preprocess).pixels()
        return Samples(normalize(pixels, source.preprocess), f"{len(pixels)} images of {images.source}")
    noise = np.random.default_rng(seed).standard_normal((PARITY_IMAGES, 3, *size), np.float32)
    return Samples(noise, f"seeded noise ({PARITY_IMAGES} inputs): no images were given")


def export_all(source: Source, recipes: Sequence[Recipe], root: Path, *, calibration: ImageSet | None,
               images: ImageSet | None, resolutions: Sequence[int] = (), force: bool = False,
               progress: Progress = lambda what, done, total: None) -> Iterator[tuple[Recipe, Path | EdgebenchError]]:
    """Export `source` by each recipe into ``root/<model>--<recipe>``; yields the folder or why there is none.

    The FP32 graph is made once. A folder that already holds the same artifact, unchanged, is kept.

    Args:
        source: What to export.
        recipes: How.
        root: Folder of the artifact folders.
        calibration: Quantization-calibration images for INT8 recipes; the source's own where None.
        images: Images for the parity check where there are no calibration images.
        resolutions: Other input sizes (px) to build for, for the resolution sweep; INT8 ranges are chosen anew.
        force: Replace another artifact in the way.
        progress: Told about the steps.
    """
    calibration = calibration or source.calibration
    with writing(root):
        root.mkdir(parents=True, exist_ok=True)
    with writing(root), tempfile.TemporaryDirectory(dir=root, prefix=".part-", ignore_cleanup_errors=True) as scratch:
        bases: dict[int, tuple[Path, np.ndarray]] = {}
        bases_at: dict[tuple[int, int], Path] = {}
        checked = samples(calibration or images, source)
        sizes = _other_sizes(source, resolutions)
        for done, recipe in enumerate(recipes):
            folder = root / variant_folder(source.identity.id, recipe)
            progress(f"exporting {recipe.id}", done, len(recipes))
            try:
                drawn = _draw(calibration, recipe.quantization, source) if recipe.quantization else None
                if _is_same(folder, source, recipe, drawn[0] if drawn else None, sizes):
                    yield recipe, folder
                    continue
                _make_room(folder, force=force, remove=False)
                if recipe.opset not in bases:
                    base = to_onnx(source, recipe.opset, Path(scratch))
                    bases[recipe.opset] = base, _reference(source, base, checked.inputs)
                part = Path(scratch) / recipe.id
                part.mkdir()
                sized = {size: _base_at(source, recipe.opset, size, Path(scratch), bases_at) for size in sizes}
                _export_one(source, recipe, *bases[recipe.opset], checked, drawn, part, sized, calibration)
                _make_room(folder, force=force)
                part.rename(folder)
                yield recipe, folder
            except EdgebenchError as error:
                yield recipe, error
        progress("exported", len(recipes), len(recipes))


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


def _base_at(source: Source, opset: int, size: int, folder: Path, made: dict[tuple[int, int], Path]) -> Path:
    """Return the FP32 graph for inputs of `size` × `size`, checked against the model itself."""
    if (opset, size) not in made:
        assert source.at_size is not None
        try:
            program = source.at_size(size)
        except (ValueError, RuntimeError, AssertionError, TypeError) as error:
            raise InvalidInput(f"{source.identity.id} cannot take inputs of {size}×{size}: "
                               f"{' '.join(str(error).split())[:200]}",
                               "leave that size out of --resolutions") from error
        place = folder / f"at-{size}"
        place.mkdir(exist_ok=True)
        sized = replace(source, program=program, size_px=(size, size), preprocess=None)
        base = to_onnx(sized, opset, place)
        noise = samples(None, sized)
        plain = Recipe(id="reference", title="", purpose="", checked_on="", backend="onnxruntime", precision="fp32")
        session = backends.get("onnxruntime").open_session(base, plain, batch=len(noise.inputs), threads=1)
        difference = np.abs(session.infer({session.inputs[0].name: noise.inputs})[session.outputs[0].name]
                            - _reference(sized, base, noise.inputs))
        if difference.max() > PARITY_TOLERANCE * max(1.0, float(np.abs(_reference(sized, base, noise.inputs)).max())):
            raise CannotMeasure(f"{source.identity.id} at {size} px: the exported model is not the model: outputs "
                                f"differ by up to {difference.max():.3g}", "leave that size out of --resolutions")
        made[opset, size] = base
    return made[opset, size]


def _is_same(folder: Path, source: Source, recipe: Recipe, calibration: CalibrationSet | None, sizes: Sequence[int],
             ) -> bool:
    if not is_artifact(folder):
        return False
    try:
        there = verify(folder)
    except InvalidInput:
        return False
    return (there.model, there.recipe, there.preprocess, there.classes, there.calibration) == (
        source.identity, recipe, source.preprocess, source.classes, calibration) and there.tools == _tools(recipe) \
        and set(sizes) <= {one.size_px for one in there.resolutions}


def _export_one(source: Source, recipe: Recipe, base: Path, reference: np.ndarray, checked: Samples,
                drawn: tuple[CalibrationSet, np.ndarray] | None, folder: Path, sized: Mapping[int, Path],
                calibration: ImageSet | None) -> None:
    backend = backends.get(recipe.backend)
    entry = _build(source, recipe, base, _batches(base, drawn[1], source) if drawn else None, folder)
    resolutions = []
    for size, other in sized.items():
        place = folder / RESOLUTIONS / str(size)
        place.mkdir(parents=True)
        drawn_there = _draw(calibration, recipe.quantization, source, f"resolution:{size}") if recipe.quantization \
            else None
        batches = _batches(other, drawn_there[1], source) if drawn_there else None
        made = _build(source, recipe, other, batches, place)
        resolutions.append(ResolutionEntry(size_px=size, entry=(place / made).relative_to(folder).as_posix()))
    session = backend.open_session(folder / entry, recipe, batch=1, threads=1)
    manifest = Artifact(
        schema=ARTIFACT_SCHEMA, model=source.identity, recipe=recipe, entry=entry, files=(),
        inputs=_with_batch(session.inputs, base), outputs=_with_batch(session.outputs, base),
        preprocess=source.preprocess, classes=source.classes, calibration=drawn[0] if drawn else None, parity=None,
        golden=GOLDEN, tools=_tools(recipe), created_at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        resolutions=tuple(resolutions), caveats=(*source.caveats, *_calibration_caveats(drawn[0] if drawn else None)))
    outputs_count = manifest.outputs[0].shape[-1]
    if source.classes is not None and isinstance(outputs_count, int) and len(source.classes.ids) != outputs_count:
        raise InvalidInput(f"the class map has {len(source.classes.ids)} classes, the model {outputs_count} outputs",
                           "one line per output in the --classes file")
    batch = fixed_batch(manifest) or len(checked.inputs)
    outputs = run_batches(lambda n: backend.open_session(folder / entry, recipe, batch=n, threads=1),
                          {manifest.inputs[0].name: checked.inputs}, batch)[manifest.outputs[0].name]
    parity = Parity(
        reference="eager PyTorch" if source.program is not None else "the given ONNX file in ONNX Runtime",
        inputs=checked.what, images=len(outputs), max_abs_difference=float(np.abs(outputs - reference).max()),
        top1_agreement=float((outputs.argmax(1) == reference.argmax(1)).mean()))
    allowed = PARITY_TOLERANCE * max(1.0, float(np.abs(reference).max()))
    if recipe.precision == "fp32" and parity.max_abs_difference > allowed:
        raise CannotMeasure(
            f"{recipe.id}: the exported model is not the model: outputs differ by up to "
            f"{parity.max_abs_difference:.3g} (expected at most {allowed:.3g}) on {checked.what}",
            "the exporter mistranslated an operator: report it with the model's name")
    golden = io.BytesIO()
    np.savez_compressed(golden, inputs=checked.inputs[:GOLDEN_IMAGES], outputs=outputs[:GOLDEN_IMAGES],
                        reference=reference[:GOLDEN_IMAGES])
    write_bytes(folder / GOLDEN, golden.getvalue())
    write_manifest(folder, Artifact(**{**{name: getattr(manifest, name) for name in Artifact.__slots__},
                                       "files": list_files(folder), "parity": parity}))


def _build(source: Source, recipe: Recipe, base: Path, batches: Batches | None, folder: Path) -> str:
    """Return the file in `folder` that the recipe's runtime opens."""
    try:
        with quiet():
            return backends.get(recipe.backend).build(base, recipe, batches, folder)
    except EdgebenchError:
        raise
    except Exception as error:  # quantizers and converters raise anything; one recipe must not stop others
        raise InvalidInput(f"{recipe.id} cannot be built from {source.identity.id}: {type(error).__name__}: "
                           f"{' '.join(str(error).split())[:300]}",
                           "an old opset or an operator that the tool does not know? try another recipe") from error


def _tools(recipe: Recipe) -> dict[str, str]:
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


def to_onnx(source: Source, opset: int, folder: Path) -> Path:
    """Write the FP32 graph with one image input and one logits output; returns the file.

    Raises:
        InvalidInput: No image input, no logits, missing external data, or the exporter cannot translate the model.
    """
    target = folder / f"base-{opset}.onnx"
    if source.onnx is not None:
        from edgebench.backends.onnxruntime import save_onnx

        save_onnx(_checked_onnx(source.onnx), target)
        return target
    torch = require("torch", "export")
    require("onnxscript", "export")
    assert source.size_px is not None
    example = torch.randn(2, 3, *source.size_px)
    exported = isinstance(source.program, torch.export.ExportedProgram)
    if not exported:
        with torch.inference_mode():
            output = _logits_of(source, source.program(example))
        if not torch.is_tensor(output) or output.ndim != 2:
            raise InvalidInput(f"{source.identity.id} has no logits: expected one output (N, classes), got "
                               f"{tuple(output.shape) if torch.is_tensor(output) else type(output).__name__}")
    try:
        with quiet():
            if exported:
                program = torch.onnx.export(source.program, opset_version=opset, input_names=[INPUT],
                                            output_names=[OUTPUT], dynamo=True, verbose=False)
            else:
                program = torch.onnx.export(
                    source.program, (example,), opset_version=opset, input_names=[INPUT],
                    output_names=[OUTPUT, *[FEATURES] * source.features],
                    dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=4096)},), dynamo=True, verbose=False)
            program.save(str(target))
    except torch.onnx.errors.OnnxExporterError as error:
        raise InvalidInput(f"torch.onnx cannot export {source.identity.id}: {str(error).strip().splitlines()[0]}",
                           "export it to ONNX yourself and pass the .onnx file") from error
    _checked_onnx(target)
    return target


def _logits_of(source: Source, output: Any) -> Any:
    return output[0] if source.features else output


def _checked_onnx(path: Path) -> Any:
    onnx = require("onnx", "export")
    for data in external_data(path):
        if not data.is_file():
            raise InvalidInput(f"{data} is missing: {path.name} keeps its weights there",
                               "copy the external-data file beside the .onnx file")
    model = onnx.load(str(path), load_external_data=False)
    if not model.graph.node:
        raise InvalidInput(f"{path} is not a readable ONNX file: it holds no graph")
    try:
        onnx.external_data_helper.load_external_data_for_model(model, str(path.parent))
        onnx.checker.check_model(model if model.ByteSize() < 2**31 - 2**20 else str(path))
    except (OSError, ValueError, onnx.checker.ValidationError) as error:
        raise InvalidInput(f"{path} is not a valid ONNX model: {' '.join(str(error).split())[:200]}",
                           "its external data may be cut short or belong to another export") from error
    initializers = {tensor.name for tensor in model.graph.initializer}
    inputs = [(value.name, value.type.tensor_type.elem_type, _dims(value)) for value in model.graph.input
              if value.name not in initializers]
    outputs = [(value.name, _dims(value)) for value in model.graph.output]
    if len(inputs) != 1 or len(inputs[0][2]) != 4 or inputs[0][2][1] != 3 or inputs[0][1] != onnx.TensorProto.FLOAT:
        got = ", ".join(f"{name} {onnx.TensorProto.DataType.Name(kind).lower()} {tuple(dims)}"
                        for name, kind, dims in inputs)
        raise InvalidInput(f"{path}: expected one float input (N, 3, H, W), got {got or 'none'}",
                           "channels-last and uint8 inputs need a Transpose or Cast in front of the graph")
    if not outputs or len(outputs[0][1]) != 2:
        got = ", ".join(f"{name} {tuple(dims)}" for name, dims in outputs)
        raise InvalidInput(f"{path} has no logits: expected a first output (N, classes), got {got or 'none'}",
                           "export the classifier, not its features or post-processing")
    return model


def _dims(value: Any) -> list[int | str]:
    return [dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else (dim.dim_param or "?")
            for dim in value.type.tensor_type.shape.dim]


def _onnx_size(source: Source) -> tuple[int, int]:
    assert source.onnx is not None
    height, width = _dims(_checked_onnx(source.onnx).graph.input[0])[2:]
    wanted = source.preprocess.size_px if source.preprocess else None
    for name, have, want in zip(("height", "width"), (height, width), wanted or (height, width), strict=True):
        if isinstance(have, int) and have != want:
            raise InvalidInput(f"{source.onnx} takes images of {name} {have}, the preprocessing gives {want}",
                               "change size_px in the --preprocess file")
    if wanted is not None:
        return wanted
    if isinstance(height, int) and isinstance(width, int):
        return height, width
    raise InvalidInput(f"{source.onnx}: its input size {height}×{width} may vary", "fix it with --preprocess FILE")


def _with_batch(found: tuple[TensorSpec, ...], base: Path) -> tuple[TensorSpec, ...]:
    """Restore the batch dimension that opening the session for one image fixed."""
    onnx = require("onnx", "export")
    graph = onnx.load(str(base), load_external_data=False).graph
    first = _dims(graph.input[0])[0]
    batch = first if isinstance(first, int) else "batch"
    return tuple(TensorSpec(name=spec.name, dtype=spec.dtype, shape=(batch, *spec.shape[1:])) for spec in found)


def _reference(source: Source, base: Path, inputs: np.ndarray) -> np.ndarray:
    """Return the model's own outputs (N, K), from eager PyTorch, or from ONNX Runtime for an ONNX file."""
    if source.program is None:
        from edgebench.backends import onnxruntime

        plain = Recipe(id="reference", title="", purpose="", checked_on="", backend="onnxruntime", precision="fp32")
        graph_batch = _dims(_checked_onnx(base).graph.input[0])[0]
        size = graph_batch if isinstance(graph_batch, int) else len(inputs)
        session = onnxruntime.open_session(base, plain, batch=size, threads=1)
        name = session.inputs[0].name
        return run_batches(lambda n: session, {name: inputs}, size)[session.outputs[0].name]
    torch = require("torch", "export")
    exported = isinstance(source.program, torch.export.ExportedProgram)
    module = source.program.module() if exported else source.program
    graph_batch = _dims(_checked_onnx(base).graph.input[0])[0]
    size = graph_batch if isinstance(graph_batch, int) else 8
    with torch.inference_mode():
        rows = [_logits_of(source, module(torch.from_numpy(pad(inputs[start:start + size], size))))[
                    : len(inputs) - start].numpy()
                for start in range(0, len(inputs), size)]
    return np.concatenate(rows)


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


def _calibration_caveats(calibration: CalibrationSet | None) -> tuple[Caveat, ...]:
    if calibration is None or calibration.images >= MIN_CALIBRATION_IMAGES:
        return ()
    return (Caveat(code="few-calibration-images", hint="pass more images with --calibration-data",
                   message=f"INT8 ranges come from {calibration.images} images; {MIN_CALIBRATION_IMAGES} or more are "
                           "usual"),)


def _batches(base: Path, pixels: np.ndarray, source: Source) -> Batches:
    graph = _checked_onnx(base).graph
    first = _dims(graph.input[0])[0]
    size, name = first if isinstance(first, int) else 8, graph.input[0].name
    assert source.preprocess is not None
    preprocess = source.preprocess

    def batches() -> Iterator[Feeds]:
        for start in range(0, len(pixels), size):
            rows = normalize(pixels[start:start + size], preprocess)
            yield {name: pad(rows, size) if isinstance(first, int) else rows}

    return batches
