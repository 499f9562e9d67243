"""Source → FP32 ONNX graph, and what the model itself answers: what every recipe starts from and is checked against."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgebench import backends, builder, graphs, intake
from edgebench.artifacts import pad, run_batches
from edgebench.backends import onnxruntime
from edgebench.datasets import ImageSet
from edgebench.errors import CannotMeasure, InvalidInput, require
from edgebench.evaluate import FEATURES
from edgebench.imagecache import cached, normalize
from edgebench.outputs import largest_difference, magnitude
from edgebench.recipe import Recipe
from edgebench.runtime_messages import useful
from edgebench.sources import Source, quiet

PARITY_IMAGES = 16
# FP32 graphs must agree with the model within this share of its largest logit.
PARITY_TOLERANCE = 1e-3
INPUT, OUTPUT = "image", "logits"
PLAIN = Recipe(id="reference", title="", purpose="", checked_on="", backend="onnxruntime", precision="fp32")
"""The graph as it is, in ONNX Runtime on the CPU."""


def open_here(entry: Path, recipe: Recipe, *, batch: int, threads: int) -> backends.Session:
    """Open built files by their own runtime where that runs here, else by ONNX Runtime's CPU, Q/DQ nodes in float.

    What the runtime builds on the device is built first, in a process of its own.
    """
    backend = backends.get(recipe.backend)
    if backend.reason_against(recipe) is None:
        with tempfile.TemporaryDirectory() as scratch:
            builder.prepare([builder.PrepareJob(entry=str(entry), recipe=recipe, batch=batch)], Path(scratch))
        return backend.open_session(entry, recipe, batch=batch, threads=threads)
    return onnxruntime.open_in_float(entry, batch=batch, threads=threads)


@dataclass(frozen=True)
class Samples:
    """Inputs (N, 3, H, W) that parity is checked on, and what they are."""

    inputs: np.ndarray
    what: str
    real: bool
    """Whether they are images; noise otherwise."""
    names: tuple[str, ...] = ()
    """Of the images."""


def samples(images: ImageSet | None, source: Source, seed: int = 0) -> Samples:
    """Return inputs for parity: images where there are any and preprocessing is known, else seeded noise."""
    size = source.size_px or _onnx_size(source)
    if images is not None and source.preprocess is not None:
        spread = images.items[:: max(1, len(images.items) // PARITY_IMAGES)][:PARITY_IMAGES]
        found = cached(spread, source.preprocess)
        pixels = found.pixels()
        return Samples(normalize(pixels, source.preprocess), f"{len(pixels)} images of {images.source}", real=True,
                       names=tuple(spread[k].id for k in found.kept))
    noise = np.random.default_rng(seed).standard_normal((PARITY_IMAGES, 3, *size), np.float32)
    return Samples(noise, f"seeded noise ({PARITY_IMAGES} inputs): no images were given", real=False)


def output_widths(source: Source) -> dict[str, int]:
    """Return how many logits, and features where there are any, a library's model gives for an image, by output name.

    Raises:
        InvalidInput: Its first output is no (N, classes).
    """
    torch = require("torch", "export")
    assert source.size_px is not None
    with torch.inference_mode():
        output = source.program(torch.zeros(2, 3, *source.size_px))
    given = list(output) if source.features else [output]
    if not given or not all(torch.is_tensor(value) and value.ndim == 2 for value in given):
        shapes = ", ".join(str(tuple(value.shape)) if torch.is_tensor(value) else type(value).__name__
                           for value in given)
        raise InvalidInput(f"{source.identity.id} has no logits: expected a first output (N, classes), got "
                           f"{shapes or 'none'}", "export the classifier, with its logits as the first output")
    return {name: int(value.shape[1]) for name, value in zip((OUTPUT, FEATURES), given, strict=False)}


def to_onnx(source: Source, opset: int, folder: Path) -> Path:
    """Write the FP32 graph with one image input and one logits output; returns the file.

    Raises:
        InvalidInput: No image input, no logits, missing external data, or the exporter cannot translate the model.
    """
    target = folder / f"base-{opset}.onnx"
    if source.onnx is not None:
        _take_in(source, source.onnx, target, _onnx_size(source))
        return target
    torch = require("torch", "export")
    require("onnxscript", "export")
    assert source.size_px is not None
    example = torch.randn(2, 3, *source.size_px)
    exported = isinstance(source.program, torch.export.ExportedProgram)
    if not exported:
        output_widths(source)
    try:
        with quiet():
            if exported:
                program = torch.onnx.export(source.program, opset_version=opset, input_names=[INPUT],
                                            output_names=_program_outputs(source), dynamo=True, verbose=False)
            else:
                program = torch.onnx.export(
                    source.program, (example,), opset_version=opset, input_names=[INPUT],
                    output_names=[OUTPUT, *[FEATURES] * source.features],
                    dynamic_shapes=({0: torch.export.Dim(intake.BATCH, min=1, max=4096)},), dynamo=True, verbose=False)
            program.save(str(target))
    except torch.onnx.errors.OnnxExporterError as error:
        raise InvalidInput(f"torch.onnx cannot export {source.identity.id}: {useful(error)}",
                           "export it to ONNX yourself and pass the .onnx file") from error
    before = graphs.load(target).graph.output[0].name
    try:
        model = graphs.load_checked(target, run=False, output=source.output, classes=_class_count(source))
    except InvalidInput as error:
        # The graph is a scratch file of ours: what is wrong with it is wrong with the model.
        raise InvalidInput(error.message.replace(str(target), source.identity.id), error.hint) from error
    if graphs.name_batch(model) or model.graph.output[0].name != before:
        graphs.save(model, target)
    return target


def _class_count(source: Source) -> int | None:
    return len(source.classes.ids) if source.classes is not None else None


def _take_in(source: Source, given: Path, target: Path, size_px: tuple[int, int]) -> None:
    model = graphs.load_checked(given, size_px, output=source.output, classes=_class_count(source))
    graphs.name_batch(model)
    graphs.note_size(model, size_px)
    graphs.save(model, target)


def _program_outputs(source: Source) -> list[str]:
    """Return what the outputs of an exported program are called in its graph: by their keys where it gives a dict."""
    pytree = require("torch.utils._pytree", "export")
    given = source.program.graph_signature.user_outputs
    places = pytree.tree_unflatten(list(range(len(given))), source.program.call_spec.out_spec)
    keys = list(places) if isinstance(places, dict) else []
    if keys and sorted(places.values()) == list(range(len(given))) and all(isinstance(key, str) for key in keys):
        named = {place: key for key, place in places.items()}
        return [named[place] for place, name in enumerate(given) if isinstance(name, str)]
    count = sum(isinstance(name, str) for name in given)
    return [OUTPUT, *(f"output_{place}" for place in range(1, count))]


def _run_program(program: Any, module: Any, image: Any) -> list[Any]:
    """Return the tensors that an exported program gives for an image, with its constant arguments filled in."""
    torch = require("torch", "export")
    pytree = require("torch.utils._pytree", "export")
    flat = [spec.arg.value if hasattr(spec.arg, "value") else image for spec in program.graph_signature.input_specs
            if spec.kind.name == "USER_INPUT"]
    args, kwargs = pytree.tree_unflatten(flat, program.call_spec.in_spec)
    return [value for value in pytree.tree_leaves(module(*args, **kwargs)) if torch.is_tensor(value)]


def reference_outputs(source: Source, base: Path, inputs: np.ndarray) -> dict[str, np.ndarray]:
    """Return the model's own outputs by name, from eager PyTorch, or from ONNX Runtime for an ONNX file.

    Args:
        source: The model.
        base: Its FP32 graph.
        inputs: Float32 (N, 3, H, W).

    Returns:
        Logits (N, K), and features (N, D) where the source has them.
    """
    first = graphs.image_input(base).shape[0]
    if source.program is None:
        size = first if isinstance(first, int) else len(inputs)
        session = backends.get("onnxruntime").open_session(base, PLAIN, batch=size, threads=1)
        return run_batches(lambda n: session, {session.inputs[0].name: inputs}, size)
    torch = require("torch", "export")
    exported = isinstance(source.program, torch.export.ExportedProgram)
    module = source.program.module() if exported else source.program
    size = first if isinstance(first, int) else 8
    # The scored output of a program with several was put first in its graph.
    chosen = graphs.load(base).graph.output[0].name
    names = _program_outputs(source) if exported else [chosen, FEATURES][: 1 + source.features]
    order = sorted(range(len(names)), key=lambda place: names[place] != chosen)
    rows: list[list[np.ndarray]] = []
    with torch.inference_mode():
        for start in range(0, len(inputs), size):
            image = torch.from_numpy(pad(inputs[start:start + size], size))
            if exported:
                parts = _run_program(source.program, module, image)
            else:
                output = module(image)
                parts = list(output) if source.features else [output]
            rows.append([part[: len(inputs) - start].numpy() for part in parts])
    return {names[place]: np.concatenate([row[place] for row in rows]) for place in order}


def base_at(source: Source, opset: int, size: int, folder: Path) -> Path:
    """Write the FP32 graph for inputs of `size` × `size` pixels, checked against the model itself; returns the file.

    Raises:
        InvalidInput: The model cannot take that size.
        CannotMeasure: The graph is not the model.
    """
    assert source.at_size is not None
    try:
        program = source.at_size(size)
    except (ValueError, RuntimeError, AssertionError, TypeError) as error:
        raise InvalidInput(f"{source.identity.id} cannot take inputs of {size}×{size}: "
                           f"{useful(error)}",
                           "leave that size out of --resolutions") from error
    place = folder / f"at-{size}"
    place.mkdir(exist_ok=True)
    sized = replace(source, program=program, size_px=(size, size), preprocess=None)
    base = to_onnx(sized, opset, place)
    noise = samples(None, sized)
    session = backends.get("onnxruntime").open_session(base, PLAIN, batch=len(noise.inputs), threads=1)
    own = next(iter(reference_outputs(sized, base, noise.inputs).values()))
    got = session.infer({session.inputs[0].name: noise.inputs})[session.outputs[0].name]
    difference = largest_difference(got, own)
    if difference > PARITY_TOLERANCE * max(1.0, magnitude(own)):
        raise CannotMeasure(f"{source.identity.id} at {size} px: the exported model is not the model: outputs "
                            f"differ by up to {difference:.3g}", "leave that size out of --resolutions")
    return base


def _onnx_size(source: Source) -> tuple[int, int]:
    assert source.onnx is not None
    height, width = graphs.image_input(source.onnx).shape[2:]
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
