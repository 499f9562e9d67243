"""ONNX graphs: which files may come in, what kind of network one is, and which types it is written in."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, cast, get_args

import numpy as np

from edgebench import files
from edgebench.errors import InvalidInput, UsageError, require, unknown
from edgebench.patterns import COMPUTE, attentions, index, is_depthwise, layer_norms, types
from edgebench.recipe import Family, Precision, Recipe
from edgebench.record import ExecutedPrecision, TensorSpec

MIN_OPSET = 13
"""The first with Q/DQ nodes per channel; older files are converted."""
OPSET = 20
"""What older files are converted to."""
AGREEMENT = 1e-4
"""How far a converted file's outputs may be from the original's, as a share of the largest of them."""
BATCH = "batch"
"""Name of the batch axis in the graphs that are built from; ONNX Runtime fixes it by this name."""
_ONE_FILE_BYTES = 2**31 - 2**20
"""protobuf's limit of 2 GB, with room for what is added."""


def dims(value: Any) -> list[int | str]:
    """Return the dimensions of an input or output: sizes, or names where they may vary (``?`` without one)."""
    return [dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else (dim.dim_param or "?")
            for dim in value.type.tensor_type.shape.dim]


def opset(model: Any) -> int:
    """Return the version of ONNX's own operators that a model uses; 0 where it names none."""
    return max((int(one.version) for one in model.opset_import if one.domain in ("", "ai.onnx")), default=0)


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
    """Return the one input of a classifier's ONNX file."""
    return interface(path)[0][0]


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
    given = {tensor.name for tensor in model.graph.initializer}
    image = next(value for value in model.graph.input if value.name not in given)
    first = image.type.tensor_type.shape.dim[0]
    was = first.dim_param
    if first.dim_value > 0 or was == BATCH:
        return False
    first.dim_param = BATCH
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if was and dim.dim_param == was:
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


def load_checked(path: Path) -> Any:
    """Return a classifier's ONNX model with its weights, if it is one that can be exported.

    Files of an opset below 13 are converted to opset 20, if their outputs stay what they were.

    Raises:
        InvalidInput: Unreadable, incomplete, unsupported operators or types, no single image input, or no logits.
    """
    onnx = require("onnx", "export")
    model = _read(path)
    if not model.graph.node:
        raise InvalidInput(f"{path} is not a readable ONNX file: it holds no graph")
    _complete(path, model)
    _check_operators(path, model)
    linked = _read_external(path, model)
    try:
        # A file of 2 GB can only be checked where it lies, and there onnx refuses weights that are links.
        if model.ByteSize() < _ONE_FILE_BYTES:
            onnx.checker.check_model(model)
        elif not linked:
            onnx.checker.check_model(str(path))
    except (ValueError, onnx.checker.ValidationError) as error:
        raise InvalidInput(f"{path} is not a valid ONNX model: {' '.join(str(error).split())[:200]}",
                           "its external data may be cut short or belong to another export") from error
    if model.functions:
        model = require("onnx.inliner", "export").inline_local_functions(model)
    _check_interface(path, model)
    _check_types(path, model)
    return at_opset(path, model, OPSET) if opset(model) < MIN_OPSET else model


def _check_operators(path: Path, model: Any) -> None:
    onnx = require("onnx", "export")
    own = {(function.domain, function.name) for function in model.functions}
    unknown: Counter[str] = Counter()
    for node in (*model.graph.node, *(node for function in model.functions for node in function.node)):
        if (node.domain, node.op_type) in own:
            continue
        known = node.domain in ("", "ai.onnx")
        if known:
            try:
                known = not onnx.defs.get_schema(node.op_type, opset(model) or 1, "").deprecated
            except onnx.defs.SchemaError:
                known = False
        if not known:
            unknown[f"{node.domain}:{node.op_type}" if node.domain else node.op_type] += 1
    if unknown:
        named = ", ".join(f"{name} ({count}×)" for name, count in sorted(unknown.items()))
        raise InvalidInput(f"{path} uses operators that are not ONNX's own at opset {opset(model)}: {named}",
                           "export it with standard operators only, before any runtime optimized or fused it")


def _check_interface(path: Path, model: Any) -> None:
    onnx = require("onnx", "export")
    initializers = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in initializers]
    outputs = [(value.name, dims(value)) for value in model.graph.output]
    got = ", ".join(f"{value.name} {onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type).lower()} "
                    f"({', '.join(map(str, dims(value)))})" for value in inputs)
    if len(inputs) > 1:
        raise InvalidInput(f"{path} has {len(inputs)} inputs: expected one float input (N, 3, H, W), got {got}",
                           "make the others constants of the graph before exporting it")
    shape = dims(inputs[0]) if inputs else []
    if len(shape) == 3:
        raise InvalidInput(f"{path} has no batch axis: expected one float input (N, 3, H, W), got {got}",
                           "export it with inputs of shape (1, 3, H, W), or with a batch that may vary")
    if len(shape) != 4 or shape[1] != 3 or inputs[0].type.tensor_type.elem_type != onnx.TensorProto.FLOAT:
        raise InvalidInput(f"{path}: expected one float input (N, 3, H, W), got {got or 'none'}",
                           "channels-last and uint8 inputs need a Transpose or Cast in front of the graph")
    if not outputs or len(outputs[0][1]) != 2:
        named = ", ".join(f"{name} ({', '.join(map(str, shape))})" for name, shape in outputs)
        raise InvalidInput(f"{path} has no logits: expected a first output (N, classes), got {named or 'none'}",
                           "export the classifier, not its features or post-processing")
    rows = outputs[0][1][0]
    if isinstance(rows, int) and rows != shape[0]:
        raise InvalidInput(f"{path} has no batch axis in its output: {shape[0]} images come in, {rows} rows of logits "
                           "go out", "export it with the same batch in the input and the output")


def _check_types(path: Path, model: Any) -> None:
    """Refuse weights of types that no recipe computes with; integers that are shapes and indices are as they should."""
    kinds = require("onnx", "export").TensorProto
    graph = index(model)
    double = [tensor.name for tensor in graph.constants.values()
              if tensor.data_type == kinds.DOUBLE and np.prod(tensor.dims, dtype=np.int64) > 1]
    if double:
        raise InvalidInput(f"{path} has {len(double)} float64 weights, such as {double[0]!r}",
                           "export the model in float32 (model.float()): no runtime here computes float64 fast, and "
                           "rounding them silently would make another model")
    for node in model.graph.node:
        weight = graph.weight(node) if node.op_type in COMPUTE else None
        if weight is not None and weight.data_type in (kinds.INT64, kinds.INT32):
            kind = kinds.DataType.Name(weight.data_type).lower()
            raise InvalidInput(f"{path}: {node.op_type} {node.name!r} multiplies by the {kind} weights "
                               f"{weight.name!r}", f"export the weights in float32: {kind} is for shapes and indices")


def at_opset(what: object, model: Any, wanted: int) -> Any:
    """Return the model in another opset, checked to give the same outputs; `what` names it in errors.

    Raises:
        InvalidInput: It cannot be converted, or the converted model answers otherwise.
    """
    onnx = require("onnx", "export")
    was = opset(model)
    hint = f"export it again with opset_version={wanted}"
    try:
        converted = require("onnx.version_converter", "export").convert_version(model, wanted)
        onnx.checker.check_model(converted)
        before, after = _outputs(model), _outputs(converted)
    except (RuntimeError, ValueError, InvalidInput, onnx.checker.ValidationError) as error:
        raise InvalidInput(f"{what} is of opset {was} and cannot be converted to {wanted}: "
                           f"{' '.join(str(error).split())[:200]}", hint) from error
    worst = max(float(np.abs(a - b).max()) / max(float(np.abs(a).max()), 1e-6)
                for a, b in zip(before, after, strict=True))
    if not worst <= AGREEMENT:
        raise InvalidInput(f"{what} is of opset {was}; converted to {wanted}, its outputs differ by a share of "
                           f"{worst:.2g}", hint)
    return converted


def _outputs(model: Any) -> list[Any]:
    """Return the outputs for seeded noise, as ONNX Runtime computes them."""
    from edgebench import backends

    plain = Recipe(id="check", title="", purpose="", checked_on="", backend="onnxruntime", precision="fp32")
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "model.onnx"
        save(model, file)
        image = image_input(file)
        shape = [size if isinstance(size, int) else default
                 for size, default in zip(image.shape, (2, 3, 224, 224), strict=True)]
        noise = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
        session = backends.get("onnxruntime").open_session(file, plain, batch=shape[0], threads=1)
        return [np.array(value) for value in session.infer({image.name: noise}).values()]


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


def static_precision(model: Any, requested: Precision) -> ExecutedPrecision:
    """Return the precision of a graph's nodes as it is written, for where no runtime can be asked.

    A convolution or product counts as int8 or fp8 where everything it multiplies comes from DequantizeLinear nodes.
    """
    kinds = require("onnx", "export").TensorProto
    names: dict[int, Precision] = {
        kinds.FLOAT: "fp32", kinds.DOUBLE: "fp32", kinds.FLOAT16: "fp16", kinds.BFLOAT16: "bf16", kinds.INT8: "int8",
        kinds.UINT8: "int8", kinds.FLOAT8E4M3FN: "fp8", kinds.FLOAT8E5M2: "fp8"}
    graph, known = index(model), types(model)
    layers: dict[str, int] = {}
    compute: dict[str, int] = {}
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear", "Cast", "Constant"):
            continue
        precision = names.get(known.get(node.output[0], 0))
        if node.op_type in COMPUTE:
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
