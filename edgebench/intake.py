"""What an ONNX file must be to come in: its versions, its one image input, operators that always answer alike.

Every misfit has a sentence and a hint of its own. Nothing here reads weights or opens a runtime's session on them.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from edgebench.backends import onnxruntime
from edgebench.errors import InvalidInput, require
from edgebench.patterns import COMPUTE, attribute, captured, dims, index, names_read, nodes, opset, subgraphs

BATCH = "batch"
"""Name of the batch axis in the graphs that are built from; ONNX Runtime fixes it by this name."""
WANTED = "one float input (N, 3, H, W)"
_RANDOM = frozenset({"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli",
                     "Multinomial"})
_RGB = 3
# Names that stand for "unknown": two of them need not be the same size.
_PLACEHOLDERS = frozenset({"?", "None", "none", "-1", "unk", "unknown", "dynamic", "any"})
_EVAL_HINT = "export it again after model.eval(), with training mode off"
_AS_INTEGERS = ("declare the input as float32, which the graph's own Cast takes too, and scale in the --preprocess "
                "file: mean = [0, 0, 0] and std = [0.00392157, 0.00392157, 0.00392157] feed 0 to 255")
_TYPES = {"FLOAT16": "FP16", "BFLOAT16": "BF16", "DOUBLE": "FP64"}


def image_inputs(model: Any) -> list[Any]:
    """Return the inputs without a default; those that an initializer fills are constants of the graph."""
    given = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in given]


def normalize(model: Any) -> None:
    """Bring a file's interface into one form, in place, before it is checked.

    Operator sets of ONNX Runtime's own that are used without being named count as version 1. Sizes of 0 or below become
    free, an input without a shape gets (N, 3, H, W), free channels become 3, and defaults of inputs become constants.
    """
    imported = {entry.domain for entry in model.opset_import}
    for domain in {node.domain for node in nodes(model.graph)} & set(onnxruntime.DOMAINS) - imported:
        model.opset_import.append(require("onnx", "export").helper.make_opsetid(domain, 1))
    given = {tensor.name for tensor in model.graph.initializer}
    for value in [value for value in model.graph.input if value.name in given]:
        model.graph.input.remove(value)
    # Version 3 wants every initializer among the inputs.
    model.ir_version = max(model.ir_version, 4)
    model.graph.name = model.graph.name or "graph"
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.HasField("dim_value") and dim.dim_value <= 0:
                dim.ClearField("dim_value")
            if dim.dim_param in _PLACEHOLDERS:
                dim.ClearField("dim_param")
    _separate_names(model)
    for value in model.graph.input:
        tensor = value.type.tensor_type
        if value.type.WhichOneof("value") == "tensor_type" and not tensor.HasField("shape"):
            for _ in range(4):
                tensor.shape.dim.add()
        shape = dims(value)
        if len(shape) == 4 and isinstance(shape[1], str) and shape[3] != _RGB:
            tensor.shape.dim[1].dim_value = _RGB


def name_nodes(model: Any) -> None:
    """Give every node a name of its own, those of subgraphs too, the same at every call."""
    taken = {node.name for node in nodes(model.graph)}
    seen: set[str] = set()
    for position, node in enumerate(nodes(model.graph)):
        if node.name and node.name not in seen:
            seen.add(node.name)
            continue
        wanted = f"{node.op_type}_{position}"
        while wanted in taken:
            wanted += "_"
        node.name = wanted
        taken.add(wanted)
        seen.add(wanted)


def _separate_names(model: Any) -> None:
    """Clear the names of sizes that would tie the batch to another axis: runtimes fix sizes by their names."""
    for image in image_inputs(model)[:1]:
        names = [dim.dim_param for dim in image.type.tensor_type.shape.dim]
        first = names[0] if names else ""
        later = {dim.dim_param for value in (image, *model.graph.output)
                 for dim in list(value.type.tensor_type.shape.dim)[1:]} - {""}
        shared = later & {first, BATCH} | {name for name in names if name and names.count(name) > 1}
        for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
            inside = value in model.graph.value_info
            for axis, dim in enumerate(value.type.tensor_type.shape.dim):
                if dim.dim_param in shared and (inside or axis or dim.dim_param != first):
                    dim.ClearField("dim_param")


def refuse_unfit_input(what: object, model: Any) -> None:
    """Refuse a model whose input is no batch of float RGB images with the channels first.

    Args:
        what: The model in messages.
        model: After `normalize`.

    Raises:
        InvalidInput: With one phrase and one hint for everything that does not fit.
    """
    inputs = image_inputs(model)
    got = ", ".join(map(described, inputs)) or "none"
    if not inputs:
        raise InvalidInput(f"{what} has no input: expected {WANTED}, got none",
                           "its answers are constants: export it with the images as an input")
    if len(inputs) > 1:
        read = names_read(model) | {value.name for value in model.graph.output}
        unread = [value.name for value in inputs if value.name not in read]
        aside = f" (no node reads {', '.join(map(repr, unread))})" if unread else ""
        raise InvalidInput(f"{what} has {len(inputs)} inputs{aside}: expected {WANTED}, got {got}",
                           "remove the inputs that no node reads from graph.input" if len(inputs) - len(unread) == 1
                           else "make the others constants of the graph, or give them defaults (initializers)")
    kind = inputs[0].type.WhichOneof("value")
    if kind != "tensor_type":
        container = str(kind or "no type").removesuffix("_type").replace("_", " ")
        raise InvalidInput(f"{what} takes a container ({container}) instead of a tensor: expected {WANTED}, got {got}",
                           "export it with the images as one tensor")
    misfits = [*_rank_misfit(dims(inputs[0])), *_type_misfit(inputs[0])]
    if misfits:
        raise InvalidInput(f"{what} {' and '.join(phrase for phrase, _ in misfits)}: expected {WANTED}, got {got}",
                           "; ".join(hint for _, hint in misfits))


def refuse_unfit_outputs(what: object, model: Any) -> None:
    """Refuse a model without outputs, or without any that is a tensor.

    Raises:
        InvalidInput: With what is there.
    """
    if not model.graph.output:
        raise InvalidInput(f"{what} has no output", "export it with the logits as its output")
    tensors = [value for value in model.graph.output if value.type.WhichOneof("value") == "tensor_type"]
    if not tensors:
        got = ", ".join(map(described, model.graph.output))
        raise InvalidInput(f"{what} answers with containers instead of tensors: got {got}",
                           "export it without ZipMap (zipmap=False) and without sequences: logits (N, classes)")


def described(value: Any) -> str:
    """Return an input or output in words: name, element type and dimensions."""
    kind = value.type.WhichOneof("value")
    if kind != "tensor_type":
        return f"{value.name} {str(kind or 'without a type').removesuffix('_type')}"
    return (f"{value.name} {_element(value).lower()} "
            + (f"({', '.join(map(str, dims(value)))})" if value.type.tensor_type.HasField("shape") else "(any shape)"))


def _element(value: Any) -> str:
    kinds = require("onnx", "export").TensorProto.DataType
    number = value.type.tensor_type.elem_type
    return str(kinds.Name(number)) if number in kinds.values() else f"type {number}"


def _rank_misfit(shape: list[int | str]) -> list[tuple[str, str]]:
    rank = len(shape)
    if rank == 3 and _RGB in (shape[0], shape[2]):
        return [("has no batch axis", "export it with inputs of shape (1, 3, H, W), or with a batch that may vary")]
    if rank < 3:
        return [(f"takes inputs of rank {rank}, such as tables",
                 "edgebench measures image classifiers; export the model with images as its input")]
    if rank != 4:
        what = "sequences" if rank == 3 else "videos or volumes"
        return [(f"takes inputs of rank {rank}, such as {what}",
                 "edgebench measures classifiers of single images; reshape inside the graph if the model is one")]
    if shape[1] == _RGB:
        return []
    if shape[3] in (1, _RGB, 4) and not (isinstance(shape[1], int) and shape[1] <= 4):
        extra = [] if shape[3] == _RGB else [_channels(shape[3])]
        return [("is channels-last (N, H, W, C)",
                 ("convert it with tf2onnx --inputs-as-nchw NAME, or put a Transpose with perm = [0, 2, 3, 1] in front "
                  "of the graph and declare the input as (N, 3, H, W)")), *extra]
    return [_channels(shape[1])]


def _channels(count: int | str) -> tuple[str, str]:
    if count == 1:
        return ("takes grey images (1 channel)",
                "edgebench feeds RGB: put a 1×1 Conv with the weights 0.299, 0.587 and 0.114 in front of the graph")
    if count == 4:
        return ("takes images of 4 channels, such as RGBA",
                "edgebench feeds RGB: put a Pad in front of the graph that adds the fourth channel as a constant")
    return (f"takes images of {count} channels", "edgebench feeds RGB images, which have 3")


def _type_misfit(value: Any) -> list[tuple[str, str]]:
    kind = _element(value)
    if kind == "FLOAT":
        return []
    if kind in ("FLOAT16", "BFLOAT16"):
        return [(f"takes {_TYPES[kind]} inputs",
                 (f"export it in float32 and choose a recipe for {_TYPES[kind]}; a converter that keeps the input "
                 "float32 (keep_io_types=True) fits too"))]
    if kind == "DOUBLE":
        return [("takes FP64 inputs", "export the model in float32: model.float() before the export")]
    if "INT" in kind:
        return [(f"takes {kind.lower()} inputs", _AS_INTEGERS)]
    return [(f"takes inputs of type {kind.lower()}", "export it with float32 images as its input")]


def refuse_unknown_versions(what: object, model: Any) -> None:
    """Refuse an IR version or opset above what the installed ONNX Runtime and onnx know.

    Raises:
        InvalidInput: With both numbers.
    """
    known_ir, known_opset, versions = _newest_versions()
    if model.ir_version > known_ir:
        raise InvalidInput(f"{what} has IR version {model.ir_version}; {versions} know up to {known_ir}",
                           f"save it with model.ir_version = {min(10, known_ir)}, or update onnxruntime and onnx")
    if opset(model) > known_opset:
        raise InvalidInput(f"{what} is of opset {opset(model)}; {versions} know up to {known_opset}",
                           f"export it with opset_version={min(20, known_opset)}, or update onnxruntime and onnx")


def _newest_versions() -> tuple[int, int, str]:
    """Return the newest IR version and opset that the installed packages take, and these packages in words."""
    onnx = require("onnx", "export")
    ir, version = onnxruntime.newest_versions(int(onnx.IR_VERSION), int(onnx.defs.onnx_opset_version()))
    return ir, version, f"ONNX Runtime {onnxruntime.packages()['onnxruntime']} and onnx {onnx.__version__}"


def refuse_unknown_operators(what: object, model: Any) -> None:
    """Refuse operators that neither ONNX, nor ONNX Runtime, nor the file itself defines.

    Raises:
        InvalidInput: With their names and numbers.
    """
    onnx = require("onnx", "export")
    own = {(function.domain, function.name) for function in model.functions}
    missing: Counter[str] = Counter()
    for node in (*nodes(model.graph), *(node for function in model.functions for node in nodes(function))):
        if (node.domain, node.op_type) in own or (node.domain, node.op_type) in onnxruntime.own_operators():
            continue
        known = node.domain in ("", "ai.onnx")
        if known:
            try:
                known = not onnx.defs.get_schema(node.op_type, opset(model) or 1, "").deprecated
            except onnx.defs.SchemaError:
                known = False
        if not known:
            missing[f"{node.domain}:{node.op_type}" if node.domain else node.op_type] += 1
    if missing:
        named = ", ".join(f"{name} ({count}×)" for name, count in sorted(missing.items()))
        raise InvalidInput(f"{what} uses operators that are not ONNX's own at opset {opset(model)}: {named}; ONNX "
                           "Runtime does not add them either",
                           "export it with standard operators only, before any runtime optimized or fused it")


def refuse_random(what: object, model: Any) -> None:
    """Refuse operators whose answers are random or depend on the other images of a batch.

    Raises:
        InvalidInput: Training mode, or random numbers.
    """
    constants = index(model).constants
    version = opset(model)
    live = _live(model)
    for node in live:
        if node.domain not in ("", "ai.onnx", "com.microsoft"):
            continue
        named = f"{node.op_type} {node.name!r}" if node.name else node.op_type
        if node.op_type == "Dropout" and _drops(node, version, constants, live):
            raise InvalidInput(f"{what} was exported in training mode: {named} drops values at random, so that no two "
                               "answers are alike", _EVAL_HINT)
        if node.op_type == "BatchNormalization" and _normalizes_by_batch(node, version):
            raise InvalidInput(f"{what} was exported in training mode: {named} normalises by the statistics of the "
                               "batch, so that an answer depends on the other images", _EVAL_HINT)
        if node.op_type in _RANDOM:
            raise InvalidInput(f"{what} draws random numbers: {named}",
                               "export it without sampling: accuracy and timing need the same answer every time")


def _live(model: Any) -> list[Any]:
    """Return the nodes that the outputs depend on, those of subgraphs included."""
    producers = {name: node for node in model.graph.node for name in node.output}
    waiting = [value.name for value in model.graph.output]
    seen: set[str] = set()
    kept: dict[int, Any] = {}
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        node = producers.get(name)
        if node is not None:
            kept[id(node)] = node
            waiting += [*node.input, *captured(node)]
    return [each for node in kept.values() for each in (node, *(
        inner for graph in subgraphs(node) for inner in nodes(graph)))]


def _drops(node: Any, version: int, constants: dict[str, Any], live: list[Any]) -> bool:
    if version < 7:
        return not attribute(node, "is_test", 0)
    if version < 12 or len(node.input) < 3 or not node.input[2]:
        return False
    training = _constant(node.input[2], constants, live)
    ratio = _constant(node.input[1], constants, live) if node.input[1] else None
    return training is not None and bool(np.any(training)) and not (ratio is not None and not np.any(ratio))


def _normalizes_by_batch(node: Any, version: int) -> bool:
    if version < 7:
        return not attribute(node, "is_test", 0)
    if version < 14:
        return len([name for name in node.output if name]) > 1
    return bool(attribute(node, "training_mode", 0))


def _constant(name: str, constants: dict[str, Any], live: list[Any]) -> Any:
    """Return the value of a constant behind Identity and Cast nodes; None if computed, or not read yet."""
    onnx = require("onnx", "export")
    producers = {output: node for node in live for output in node.output}
    while name not in constants:
        node = producers.get(name)
        if node is None:
            return None
        if node.op_type == "Constant":
            given = node.attribute[0]
            return onnx.numpy_helper.to_array(given.t) if given.name == "value" else \
                onnx.helper.get_attribute_value(given)
        if node.op_type not in ("Identity", "Cast", "Reshape", "Squeeze", "Unsqueeze"):
            return None
        name = node.input[0]
    tensor = constants[name]
    return None if tensor.data_location == tensor.EXTERNAL else onnx.numpy_helper.to_array(tensor)


def refuse_unfit_weights(what: object, model: Any) -> None:
    """Refuse weights of types that no recipe computes with; integers that are shapes and indices are as they should.

    Raises:
        InvalidInput: FP64 weights, or integers that a product multiplies by.
    """
    kinds = require("onnx", "export").TensorProto
    graph = index(model)
    double = [tensor.name for tensor in graph.constants.values()
              if tensor.data_type == kinds.DOUBLE and np.prod(tensor.dims, dtype=np.int64) > 1]
    if double:
        raise InvalidInput(f"{what} has {len(double)} float64 weights, such as {double[0]!r}",
                           "export the model in float32 (model.float()): no runtime here computes float64 fast, and "
                           "rounding them silently would make another model")
    for node in model.graph.node:
        weight = graph.weight(node) if node.op_type in COMPUTE else None
        if weight is not None and weight.data_type in (kinds.INT64, kinds.INT32):
            kind = kinds.DataType.Name(weight.data_type).lower()
            raise InvalidInput(f"{what}: {node.op_type} {node.name!r} multiplies by the {kind} weights "
                               f"{weight.name!r}", f"export the weights in float32: {kind} is for shapes and indices")
