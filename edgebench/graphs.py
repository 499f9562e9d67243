"""ONNX graphs: which files may come in, what kind of network one is, and which types it is written in."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, cast, get_args

import numpy as np

from edgebench import files, intake, outputs
from edgebench.errors import CannotMeasure, InvalidInput, Unending, UsageError, require, unknown
from edgebench.intake import BATCH
from edgebench.patterns import COMPUTE, attentions, dims, index, is_depthwise, layer_norms, nodes, opset, types
from edgebench.recipe import Family, Precision, Recipe
from edgebench.record import ExecutedPrecision, TensorSpec
from edgebench.runtime_messages import THE_MODEL, useful

MIN_OPSET = 13
"""The first with Q/DQ nodes per channel; older files are converted."""
OPSET = 20
"""What older files are converted to."""
AGREEMENT = 1e-4
"""How far a converted file's outputs may be from the original's, as a share of the largest of them."""
# From the widest to the narrowest: a file is named after the narrowest.
_NARROWING = ("fp32", "bf16", "fp16", "fp8", "int8")
# Operators of integers: of the QOperator format, and those that choose their ranges while they run.
_INTEGER = re.compile(r"^(QLinear|QGemm|QAttention|ConvInteger|MatMulInteger|DynamicQuantizeMatMul)")
_PRODUCT = re.compile("Conv|MatMul|Gemm|Attention")
# How far two answers to one image may differ, as a share of the largest logit: kernels round by batch size.
_STEADY = 1e-3
_SIZE_KEY = "edgebench.input_px"
_ONE_FILE_BYTES = 2**31 - 2**20
"""protobuf's limit of 2 GB, with room for what is added."""


def load(path: Path) -> Any:
    """Return an ONNX model unchecked, without the weights that lie in other files: its graph, to be read.

    Raises:
        InvalidInput: Not a readable ONNX file.
    """
    return _read(path)


def load_whole(path: Path) -> Any:
    """Return an ONNX model unchecked, with its weights wherever they lie: to be written anew."""
    return require("onnx", "export").load(str(path))


def interface(path: Path) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Return the inputs and outputs of an ONNX file; dimensions that may vary have names."""
    onnx = require("onnx", "export")
    graph = _read(path).graph
    given = {tensor.name for tensor in graph.initializer}
    inputs, outputs = (tuple(
        TensorSpec(name=value.name, shape=tuple(dims(value)),
                   dtype=str(onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)))
        for value in values if value.name not in given) for values in (graph.input, graph.output))
    return inputs, outputs


def image_input(path: Path) -> TensorSpec:
    """Return the one input of a classifier's ONNX file.

    Raises:
        InvalidInput: Unreadable, or its input is no batch of float RGB images.
    """
    model = _readable(path)
    image = intake.image_inputs(model)[0]
    return TensorSpec(name=image.name, shape=tuple(dims(image)), dtype="float32")


def save(model: Any, target: Path) -> None:
    """Write a model as one file, or with its weights beside it where one file would exceed protobuf's 2 GB."""
    onnx = require("onnx", "export")
    if model.ByteSize() < _ONE_FILE_BYTES:
        onnx.save(model, str(target))
    else:
        beside = target.with_name(f"{target.name}.data")
        # onnx appends to what is there.
        beside.unlink(missing_ok=True)
        onnx.save(model, str(target), save_as_external_data=True, location=beside.name)


def name_batch(model: Any) -> bool:
    """Call a classifier's batch `BATCH`, where it may vary and has another name or none; returns whether it had."""
    first = intake.image_inputs(model)[0].type.tensor_type.shape.dim[0]
    was = first.dim_param
    if first.dim_value > 0 or was == BATCH:
        return False
    first.dim_param = BATCH
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if was and dim.dim_param == was:
                dim.dim_param = BATCH
    for value in model.graph.output:
        for dim in list(value.type.tensor_type.shape.dim)[:1]:
            if not dim.HasField("dim_value") and not dim.dim_param:
                dim.dim_param = BATCH
    return True


def _tensors(graph: Any) -> Iterator[Any]:
    """Yield every tensor that a graph holds: initializers, and those in attributes, in subgraphs too."""
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        for one in node.attribute:
            if one.HasField("t"):
                yield one.t
            yield from one.tensors
            for inner in (*([one.g] if one.HasField("g") else []), *one.graphs):
                yield from _tensors(inner)


def refuse_unreadable(path: Path) -> None:
    """Raise where a file cannot be an ONNX file, before any reader of ONNX sees it.

    Raises:
        UsageError: No such file.
        InvalidInput: It is no file, empty, or a pointer, a web page or an archive.
    """
    files.refuse_unreadable(path, "an ONNX file", missing=UsageError)
    files.refuse_stand_in(path, "an ONNX file")


def _read(path: Path) -> Any:
    onnx = require("onnx", "export")
    refuse_unreadable(path)
    try:
        return onnx.load(str(path), load_external_data=False, format="protobuf")
    except (OSError, require("google.protobuf.message", "export").DecodeError) as error:
        raise InvalidInput(f"{path} is not a readable ONNX file: its {path.stat().st_size:,} bytes are cut short or "
                           "of another format", "copy or download it again, or export it again") from error


def external_data(path: Path) -> tuple[Path, ...]:
    """Return the files in which an ONNX file keeps its weights, whether they are there or not.

    Raises:
        InvalidInput: Not a readable ONNX file, or it points at files outside its own folder.
    """
    return tuple(sorted({where for where, _, _ in _external(path, _read(path))}))


def _external(path: Path, model: Any) -> list[tuple[Path, Any, dict[str, str]]]:
    """Return (file, tensor, entries) of all tensors that lie outside the ONNX file."""
    found = []
    for tensor in _tensors(model.graph):
        entries = {item.key: item.value for item in tensor.external_data}
        if "location" not in entries:
            continue
        location = entries["location"]
        parts = (*PurePosixPath(location).parts, *PureWindowsPath(location).parts)
        where = path.parent / location
        outside = PurePosixPath(location).is_absolute() or bool(PureWindowsPath(location).anchor) or ".." in parts
        numbers = [entries[key] for key in ("offset", "length") if entries.get(key)]
        if not all(map(str.isdecimal, numbers)) or tensor.data_type not in tensor.DataType.values()[1:]:
            raise InvalidInput(f"{path} places its external weights {tensor.name!r} wrongly: type {tensor.data_type}, "
                               f"offset and length {', '.join(numbers) or 'absent'}", "export the model again")
        # A link may lead out although the name does not; in a hub's cache, both files are links into one folder.
        places = (path.parent.resolve(), path.resolve().parent)
        if outside or not any(where.resolve().is_relative_to(place) for place in places):
            raise InvalidInput(f"{path} points at {location!r}, outside its folder, for the weights {tensor.name!r}",
                               "external data must lie beside the .onnx file: copy it there and save the model anew")
        found.append((where, tensor, entries))
    return found


def _complete(path: Path, model: Any) -> None:
    """Refuse missing and shortened external data before anything of it is read."""
    seen: set[Path] = set()
    for where, tensor, entries in _external(path, model):
        if where not in seen:
            if not where.exists():
                raise InvalidInput(f"{where} is missing: {path.name} keeps its weights there",
                                   "copy the external-data file beside the .onnx file")
            files.refuse_unreadable(where, f"the weights of {path.name}")
            files.refuse_stand_in(where, f"the weights of {path.name}", binary=False)
            seen.add(where)
        needed = int(entries.get("offset") or 0) + _external_bytes(tensor, entries)
        if where.stat().st_size < needed:
            raise InvalidInput(f"{where} is cut short: it has {where.stat().st_size} bytes, {tensor.name!r} of "
                               f"{path.name} ends at byte {needed}",
                               "copy the external-data file again, from the same export as the .onnx file")


def _read_external(path: Path, model: Any) -> bool:
    """Put the external weights into the model; returns whether some of their files are links.

    onnx's own reader refuses links, which hub caches consist of; `_external` has refused those that lead outside.
    """
    kinds = require("onnx", "export").TensorProto
    linked = False
    for where, tensor, entries in _external(path, model):
        length = _external_bytes(tensor, entries)
        with where.open("rb") as file:
            file.seek(int(entries.get("offset") or 0))
            tensor.raw_data = file.read(length)
        del tensor.external_data[:]
        tensor.data_location = kinds.DEFAULT
        linked = linked or where.is_symlink()
    return linked


def _external_bytes(tensor: Any, entries: dict[str, str]) -> int:
    kind = require("onnx", "export").helper.tensor_dtype_to_np_dtype(tensor.data_type)
    return int(entries.get("length") or np.prod(tensor.dims, dtype=np.int64) * np.dtype(kind).itemsize)


def load_checked(path: Path, size_px: tuple[int, int] | None = None, *, run: bool = True, output: str | None = None,
                 classes: int | None = None) -> Any:
    """Return a classifier's ONNX model with its weights, if it is one that can be exported; its scored output first.

    Files of an opset below 13 are converted to opset 20, if their outputs stay what they were.

    Args:
        path: The file.
        size_px: Height and width of the images, where the file leaves them free.
        run: Whether it is run on noise, which settles the sizes of its outputs, and proves that an answer depends on
            one image alone.
        output: The output that is scored, as for `edgebench.outputs.put_first`; None: its rule decides.
        classes: Number of classes of the class map; None without one.

    Raises:
        UsageError: No output has the name asked for.
        InvalidInput: Unreadable, incomplete, unsupported operators or types, no single image input, or no logits.
    """
    onnx = require("onnx", "export")
    model = _readable(path)
    _complete(path, model)
    linked = _read_external(path, model)
    undeclared = [value for value in model.graph.output if value.type.WhichOneof("value") == "tensor_type"
                  and not value.type.tensor_type.HasField("shape")]
    for value in undeclared:
        # The checker wants a shape, and does not look at it.
        value.type.tensor_type.shape.SetInParent()
    try:
        # A file of 2 GB can only be checked where it lies, and there onnx refuses weights that are links.
        if model.ByteSize() < _ONE_FILE_BYTES:
            onnx.checker.check_model(model)
        elif not linked:
            onnx.checker.check_model(str(path))
    except (ValueError, onnx.checker.ValidationError) as error:
        raise InvalidInput(f"{path} is not a valid ONNX model: {useful(error)}",
                           "export it again, and check it with onnx.checker.check_model") from error
    for value in undeclared:
        value.type.tensor_type.ClearField("shape")
    if model.functions:
        model = require("onnx.inliner", "export").inline_local_functions(model)
    # Again: functions are in place now, and flags may lie outside the file.
    intake.refuse_random(path, model)
    intake.refuse_unfit_weights(path, model)
    converted = _converted(path, model, OPSET) if opset(model) < MIN_OPSET else model
    if run:
        intake.name_nodes(converted)
        intake.name_nodes(model)
        _settle(path, model, size_px)
    outputs.put_first(path, model, output, classes)
    _check_rows(path, model)
    if converted is not model:
        outputs.order(converted, model.graph.output[0].name)
        _refuse_difference(path, model, converted, size_px)
        for value, settled in zip(converted.graph.output, model.graph.output, strict=True):
            value.CopyFrom(settled)
    return converted


def _readable(path: Path) -> Any:
    """Return a model without external weights, its interface in one form, after everything that the graph alone tells.

    Raises:
        InvalidInput: Versions, an input, or operators that cannot be used.
    """
    model = _read(path)
    if not model.graph.node:
        raise InvalidInput(f"{path} is not a readable ONNX file: it holds no graph")
    intake.refuse_unknown_versions(path, model)
    intake.normalize(model)
    intake.refuse_unfit_input(path, model)
    intake.refuse_unfit_outputs(path, model)
    intake.refuse_unknown_operators(path, model)
    intake.refuse_random(path, model)
    return model


def _check_rows(path: Path, model: Any) -> None:
    shape = dims(intake.image_inputs(model)[0])
    rows = next(iter(dims(model.graph.output[0])), "?")
    if isinstance(rows, int) and rows != shape[0]:
        raise InvalidInput(f"{path} has no batch axis in its output: {shape[0]} images come in, {rows} rows of logits "
                           "go out", "export it with the same batch in the input and the output")


def _settle(path: Path, model: Any, size_px: tuple[int, int] | None) -> None:
    """Run a model on noise: write the sizes of its outputs into it, and refuse answers that do not stay alike.

    Raises:
        InvalidInput: It does not run, or an answer is random or depends on the other images of the batch.
    """
    first = dims(intake.image_inputs(model)[0])[0]
    with _session(model, path) as session:
        noise = _noise(model, size_px)
        try:
            answers = session.infer(noise)
        except Unending as error:
            raise CannotMeasure(f"{path}: {error.message}", error.hint) from error
        except CannotMeasure as error:
            _refuse_frozen_batch(path, session, noise, first)
            shape = ", ".join(map(str, next(iter(noise.values())).shape))
            raise InvalidInput(f"{path} does not run on inputs of shape ({shape}): {error.message.partition(': ')[2]}",
                               "check size_px in the --preprocess file, and the sizes that the graph fixes") from error
        answers = {name: np.array(value) for name, value in answers.items() if isinstance(value, np.ndarray)}
        _write_sizes(model, answers)
        _refuse_unsteady(path, model, session, noise, answers)


def _refuse_frozen_batch(path: Path, session: Any, noise: dict[str, Any], first: int | str) -> None:
    if isinstance(first, int):
        return
    try:
        session.infer({name: value[:1] for name, value in noise.items()})
    except CannotMeasure:
        return
    raise InvalidInput(f"{path} declares a batch that may vary, but its graph is frozen to 1 image",
                       "declare the input with a batch of 1, or export it with a dynamic batch axis")


def _write_sizes(model: Any, answers: dict[str, Any]) -> None:
    for value in model.graph.output:
        tensor, answer = value.type.tensor_type, answers.get(value.name)
        if answer is None or answer.ndim == 0:
            continue
        if len(tensor.shape.dim) != answer.ndim:
            del tensor.shape.dim[:]
            for _ in answer.shape:
                tensor.shape.dim.add()
        for axis, (dim, size) in enumerate(zip(tensor.shape.dim, answer.shape, strict=True)):
            # Beyond a matrix, sizes may follow those of the image.
            if axis and (answer.ndim == 2 or dim.HasField("dim_value")):
                dim.dim_value = size
        if not dims(value)[0] or dims(value)[0] == "?":
            _copy_batch(model, tensor.shape.dim[0])


def _copy_batch(model: Any, dim: Any) -> None:
    first = intake.image_inputs(model)[0].type.tensor_type.shape.dim[0]
    if first.HasField("dim_value"):
        dim.dim_value = first.dim_value
    elif first.dim_param:
        dim.dim_param = first.dim_param


def _refuse_unsteady(path: Path, model: Any, session: Any, noise: dict[str, Any], answers: dict[str, Any]) -> None:
    (name, images), = noise.items()
    others = np.concatenate([images[:1], 2 * images[1:] + 1])
    for feed, alike in ((images, ("answers the same images differently each time: it draws random numbers or keeps a "
                                 "state")),
                        (others, "answers an image differently when the other images of the batch change")):
        if feed is others and (len(images) < 2 or ranges_follow_batch(model)):
            continue
        again = session.infer({name: feed})
        for output, first in answers.items():
            own, other = (np.asarray(rows[:1] if feed is others else rows, np.float64)
                          for rows in (first, again[output]))
            if not (np.array_equal(own, other, equal_nan=True) or _share(own, other) <= _STEADY):
                raise InvalidInput(f"{path} {alike} (output {output!r})", "export it after model.eval()")


def ranges_follow_batch(model: Any) -> bool:
    """Return whether a graph quantizes values by the range that they have in a batch, so that answers depend on it."""
    return any("Dynamic" in node.op_type and "Quant" in node.op_type for node in nodes(model.graph))


def at_opset(what: object, model: Any, wanted: int, size_px: tuple[int, int] | None = None) -> Any:
    """Return the model in another opset, checked to give the same outputs.

    Args:
        what: The model in messages.
        model: In its own opset.
        wanted: The opset.
        size_px: Height and width (px) to check it at, where the model leaves them free.

    Raises:
        InvalidInput: It cannot be converted, or the converted model answers otherwise.
    """
    converted = _converted(what, model, wanted)
    _refuse_difference(what, model, converted, size_px)
    return converted


def _converted(what: object, model: Any, wanted: int) -> Any:
    onnx = require("onnx", "export")
    try:
        converted = require("onnx.version_converter", "export").convert_version(model, wanted)
        onnx.checker.check_model(converted)
    except (RuntimeError, ValueError, onnx.checker.ValidationError) as error:
        raise InvalidInput(f"{what} is of opset {opset(model)} and cannot be converted to {wanted}: {useful(error)}",
                           f"export it again with opset_version={wanted}") from error
    return converted


def _refuse_difference(what: object, model: Any, converted: Any, size_px: tuple[int, int] | None) -> None:
    was, wanted = opset(model), opset(converted)
    hint = f"export it again with opset_version={wanted}"
    try:
        before, after = _outputs(model, size_px), _outputs(converted, size_px)
    except (InvalidInput, CannotMeasure) as error:
        raise InvalidInput(f"{what} is of opset {was} and cannot be converted to {wanted}: {error.message}",
                           hint) from error
    worst = max(_share(a, b) for a, b in zip(before, after, strict=True))
    if not worst <= AGREEMENT:
        raise InvalidInput(f"{what} is of opset {was}; converted to {wanted}, its outputs differ by a share of "
                           f"{worst:.2g}", hint)


def _share(answers: Any, others: Any) -> float:
    """Return the largest difference as a share of the largest finite answer; alike infinities do not differ."""
    own, other = (np.asarray(values, np.float64) for values in (answers, others))
    if own.shape != other.shape:
        return float("inf")
    with np.errstate(invalid="ignore"):
        difference = np.where(own == other, 0.0, np.abs(own - other))
    return float(difference.max(initial=0)) / max(float(np.abs(own[np.isfinite(own)]).max(initial=0)), 1e-6)


def _outputs(model: Any, size_px: tuple[int, int] | None) -> list[Any]:
    """Return the outputs for seeded noise, as ONNX Runtime computes them."""
    with _session(model, "the model") as session:
        return [np.array(value) for value in session.infer(_noise(model, size_px)).values()]


def _noise(model: Any, size_px: tuple[int, int] | None) -> dict[str, Any]:
    image = intake.image_inputs(model)[0]
    noted = next((entry.value for entry in model.metadata_props if entry.key == _SIZE_KEY), None)
    height, width = size_px or (map(int, noted.split("x")) if noted else (224, 224))
    shape = [size if isinstance(size, int) else default
             for size, default in zip(dims(image), (2, 3, height, width), strict=True)]
    return {image.name: np.random.default_rng(0).standard_normal(shape).astype(np.float32)}


@contextmanager
def _session(model: Any, what: object) -> Iterator[Any]:
    """Open a model in ONNX Runtime's CPU provider; `what` names it in errors."""
    from edgebench import backends

    plain = Recipe(id="check", title="", purpose="", checked_on="", backend="onnxruntime", precision="fp32")
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "model.onnx"
        save(model, file)
        first = dims(intake.image_inputs(model)[0])[0]
        try:
            session = backends.get("onnxruntime").open_session(
                file, plain, batch=first if isinstance(first, int) else 2, threads=1)
        except InvalidInput as error:
            raise InvalidInput(error.message.replace(THE_MODEL, str(what), 1), error.hint) from error
        yield session


def note_size(model: Any, size_px: tuple[int, int]) -> None:
    """Write into a model whose height or width is free at which size its conversions are checked."""
    if any(isinstance(size, str) for size in dims(intake.image_inputs(model)[0])[2:]):
        require("onnx", "export").helper.set_model_props(
            model, {**{entry.key: entry.value for entry in model.metadata_props},
                    _SIZE_KEY: f"{size_px[0]}x{size_px[1]}"})


def family(model: Any) -> Family:
    """Return what kind of network a graph is, from its operators alone.

    ``transformer``: attention, and more linear layers than convolutions. ``convnext``: depthwise convolutions of 5×5
    or more with layer normalisations. ``depthwise``: half or more of the convolutions larger than 1×1 have one filter
    per channel. ``convnet``: all others.
    """
    graph = index(model)
    weighted = [node for node in model.graph.node if node.op_type in COMPUTE and graph.weight(node) is not None]
    convolutions = [node for node in weighted if node.op_type == "Conv"]
    linear = [node for node in weighted if node.op_type in ("MatMul", "Gemm")]
    fused = any(node.op_type in ("Attention", "MultiHeadAttention") for node in model.graph.node)
    if (fused or attentions(graph)) and len(linear) > len(convolutions):
        return "transformer"
    depthwise = [node for node in convolutions if is_depthwise(graph, node)]
    if len(layer_norms(graph)) > 2 and any(max(graph.weight(node).dims[2:], default=1) >= 5 for node in depthwise):
        return "convnext"
    spatial = [node for node in convolutions if max(graph.weight(node).dims[2:], default=1) > 1]
    return "depthwise" if depthwise and 2 * len(depthwise) >= len(spatial) else "convnet"


def family_named(word: str) -> Family:
    """Return the family of that name.

    Raises:
        UsageError: There is none.
    """
    for one in get_args(Family):
        if one == word:
            return cast("Family", one)
    raise unknown("family", word, get_args(Family))


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """The precision that a model file comes in."""

    precision: Precision = "fp32"
    """The narrowest in which a convolution or matrix product computes or keeps its weights."""
    evidence: str = ""
    """How many of them, in words."""


def written_precision(model: Any) -> Written:
    """Return the precision of a file as another tool wrote it, from its graph alone."""
    kinds, graph = require("onnx", "export").TensorProto, index(model)
    names = _precisions()
    computed = static_precision(model, "fp32")
    counts = dict(computed.compute_layers) or {computed.executed: 1}
    stored: dict[str, int] = {}
    for node in model.graph.node:
        weight = graph.weight(node) if node.op_type in COMPUTE else None
        kept = names.get(weight.data_type) if weight is not None else None
        if weight is not None and weight.data_type in (kinds.INT4, kinds.UINT4):
            kept = "int8"
        if kept is not None:
            stored[kept] = stored.get(kept, 0) + 1
    narrowest = max((*counts, *stored), key=_NARROWING.index)
    if narrowest == "fp32":
        return Written()
    total = max(sum(computed.compute_layers.values()), 1)
    what = "compute in it" if counts.get(narrowest) else "keep their weights in it"
    share = counts.get(narrowest) or stored[narrowest]
    return Written(precision=cast("Precision", narrowest),
                   evidence=f"{share} of {total} convolutions and matrix products {what}")


def _precisions() -> dict[int, Precision]:
    """Return the precision that each element type (of `onnx.TensorProto`) stands for."""
    kinds = require("onnx", "export").TensorProto
    return {kinds.FLOAT: "fp32", kinds.DOUBLE: "fp32", kinds.FLOAT16: "fp16", kinds.BFLOAT16: "bf16",
            kinds.INT8: "int8", kinds.UINT8: "int8", kinds.FLOAT8E4M3FN: "fp8", kinds.FLOAT8E5M2: "fp8"}


def static_precision(model: Any, requested: Precision) -> ExecutedPrecision:
    """Return the precision of a graph's nodes as it is written, for where no runtime can be asked.

    A convolution or product counts as int8 or fp8 where everything it multiplies comes from DequantizeLinear nodes, and
    as int8 where its operator computes with integers.
    """
    names = _precisions()
    graph, known = index(model), types(model)
    layers: dict[str, int] = {}
    compute: dict[str, int] = {}
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear", "Cast", "Constant"):
            continue
        precision = names.get(known.get(node.output[0], 0))
        if _INTEGER.search(node.op_type):
            precision = "int8"
            if _PRODUCT.search(node.op_type):
                compute["int8"] = compute.get("int8", 0) + 1
        elif node.op_type in COMPUTE:
            stored = [behind.input[0] if (behind := graph.behind(name)) is not None
                      and behind.op_type == "DequantizeLinear" else "" for name in node.input[:2]]
            inside = {names.get(known.get(name, 0)) for name in stored}
            precision = inside.pop() if len(inside) == 1 and all(stored) else names.get(known.get(node.input[0], 0))
            if precision is not None:
                compute[precision] = compute.get(precision, 0) + 1
        if precision is not None:
            layers[precision] = layers.get(precision, 0) + 1
    counted = compute or layers
    executed = cast("Precision", max(counted, key=lambda one: counted[one])) if counted else "fp32"
    return ExecutedPrecision(
        requested=requested, executed=executed, time_share={}, layers=layers, compute_layers=compute,
        evidence="types of the nodes as the ONNX file has them; no runtime was asked")
