"""Patterns in ONNX graphs: attention, layer normalisation, depthwise convolutions, zero-shot heads, element types."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from edgebench.errors import require

COMPUTE = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
"""Operators that multiply and add: precision is chosen for them."""
# What only moves numbers or names them otherwise: a quantized value stays one behind them.
MOVES = frozenset({"Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Dropout"})


@dataclass(frozen=True, slots=True)
class Index:
    """A graph's nodes by what they read and write."""

    graph: Any
    producers: dict[str, Any]
    """Node by the name of an output."""
    consumers: dict[str, list[Any]]
    """Nodes by the name of an input."""
    constants: dict[str, Any]
    """Initializers by name."""

    def constant(self, name: str) -> bool:
        """Return whether a value is known without any input: an initializer, or made from initializers alone."""
        waiting, seen = [name], set()
        while waiting:
            one = waiting.pop()
            if one in seen or not one or one in self.constants:
                continue
            seen.add(one)
            node = self.producers.get(one)
            if node is None:
                return False
            waiting.extend(node.input)
        return True

    def behind(self, name: str, through: frozenset[str] = MOVES) -> Any:
        """Return the node that made a value, looking through operators of `through`; None for inputs and constants."""
        node = self.producers.get(name)
        while node is not None and node.op_type in through:
            node = self.producers.get(node.input[0])
        return node

    def readers(self, name: str, through: frozenset[str] = MOVES) -> list[Any]:
        """Return the nodes that read a value, looking through operators of `through`."""
        found, waiting = [], [name]
        while waiting:
            for node in self.consumers.get(waiting.pop(), []):
                if node.op_type in through:
                    waiting.extend(node.output)
                else:
                    found.append(node)
        return found

    def weight(self, node: Any) -> Any:
        """Return the constant that a convolution or product multiplies by: an initializer, else None."""
        for name in node.input[1::-1] if node.op_type in ("MatMul", "Gemm") else node.input[1:2]:
            behind = name
            while behind in self.producers and self.producers[behind].op_type in (
                    *MOVES, "QuantizeLinear", "DequantizeLinear", "Cast"):
                behind = self.producers[behind].input[0]
            if behind in self.constants:
                return self.constants[behind]
        return None


def dims(value: Any) -> list[int | str]:
    """Return the dimensions of an input or output: sizes, or names where they may vary (``?`` without one)."""
    return [dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else (dim.dim_param or "?")
            for dim in value.type.tensor_type.shape.dim]


def opset(model: Any) -> int:
    """Return the version of ONNX's own operators that a model uses; 0 where it names none."""
    return max((int(entry.version) for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)


def nodes(graph: Any) -> Iterator[Any]:
    """Yield the nodes of a graph, those of its subgraphs included."""
    for node in graph.node:
        yield node
        for inner in subgraphs(node):
            yield from nodes(inner)


def subgraphs(node: Any) -> Iterator[Any]:
    """Yield the graphs in a node's attributes: branches and loop bodies."""
    for entry in node.attribute:
        if entry.HasField("g"):
            yield entry.g
        yield from entry.graphs


def captured(node: Any) -> set[str]:
    """Return the names that the subgraphs of a node read from the graphs around them, or may read."""
    return {name for inner in subgraphs(node) for each in nodes(inner) for name in each.input} | {
        value.name for inner in subgraphs(node) for value in inner.output}


def names_read(model: Any) -> set[str]:
    """Return every name that a node of the main graph or of a subgraph reads."""
    return {name for node in model.graph.node for name in (*node.input, *captured(node))}


def index(model: Any) -> Index:
    """Return the nodes of a model's main graph by what they read and write; constant nodes count as initializers."""
    producers: dict[str, Any] = {}
    consumers: dict[str, list[Any]] = {}
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
            constants[node.output[0]] = node.attribute[0].t
            continue
        for name in node.output:
            producers[name] = node
        for name in node.input:
            consumers.setdefault(name, []).append(node)
    return Index(model.graph, producers, consumers, constants)


def attribute(node: Any, name: str, default: Any = None) -> Any:
    """Return a node's attribute as a Python value."""
    onnx = require("onnx", "export")
    return next((onnx.helper.get_attribute_value(one) for one in node.attribute if one.name == name), default)


def scalar(tensor: Any) -> float | None:
    """Return the one number that a constant tensor holds; None for several, and for what lies in another file."""
    if any(size != 1 for size in tensor.dims) or tensor.external_data:
        return None
    return float(require("onnx", "export").numpy_helper.to_array(tensor).reshape(()))


def shapes(model: Any) -> dict[str, tuple[int | str, ...]]:
    """Return the shapes of a model's outputs, as far as they are declared or follow from the operators."""
    onnx = require("onnx", "export")

    def declared(values: Any) -> dict[str, tuple[int | str, ...]]:
        return {value.name: tuple(
            dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else (dim.dim_param or "?")
            for dim in value.type.tensor_type.shape.dim) for value in values
            if value.type.tensor_type.HasField("shape")}

    found = declared(model.graph.output)
    if len(found) == len(model.graph.output):
        return found
    try:
        return {**declared(onnx.shape_inference.infer_shapes(model).graph.output), **found}
    except (ValueError, RuntimeError):
        # Beyond protobuf's 2 GB, or shapes that contradict each other: then they stay unknown.
        return found


def is_float(element_type: int) -> bool:
    """Return whether an ONNX element type is a float of 16 bits or more."""
    kinds = require("onnx", "export").TensorProto
    return element_type in (kinds.FLOAT, kinds.FLOAT16, kinds.DOUBLE, kinds.BFLOAT16)


def type_name(element_type: int) -> str:
    """Return what ONNX calls an element type, in small letters."""
    return str(require("onnx", "export").TensorProto.DataType.Name(element_type)).lower()


def is_depthwise(graph: Index, node: Any) -> bool:
    """Return whether a convolution has one filter per channel."""
    weight = graph.weight(node) if node.op_type == "Conv" else None
    return weight is not None and attribute(node, "group", 1) > 1 and weight.dims[1] == 1


def attentions(graph: Index) -> list[tuple[Any, Any, Any]]:
    """Return (product of queries and keys, softmax, product with the values) of every attention written out."""
    before = MOVES | {"Mul", "Div", "Add", "Where", "Cast", "QuantizeLinear", "DequantizeLinear"}
    after = MOVES | {"Cast", "QuantizeLinear", "DequantizeLinear"}
    found = []
    for node in graph.graph.node:
        if node.op_type != "Softmax":
            continue
        scores = graph.behind(node.input[0], before)
        values = [one for one in graph.readers(node.output[0], after) if one.op_type == "MatMul"]
        if scores is not None and scores.op_type == "MatMul" and graph.weight(scores) is None and values:
            found.append((scores, node, values[0]))
    return found


def layer_norms(graph: Index) -> list[list[Any]]:
    """Return the nodes of every layer normalisation: the operator, or its parts where it is written out."""
    found = []
    for node in graph.graph.node:
        if node.op_type in ("LayerNormalization", "InstanceNormalization", "GroupNormalization", "RMSNormalization"):
            found.append([node])
        elif node.op_type == "Sub":
            parts = _written_out(graph, node)
            if parts:
                found.append(parts)
    return found


def _written_out(graph: Index, centred: Any) -> list[Any]:
    """Return the parts of (x − mean) / sqrt(mean((x − mean)²) + ε), given its subtraction; empty if it is none."""
    mean = graph.producers.get(centred.input[1])
    if mean is None or mean.op_type != "ReduceMean" or mean.input[0] != centred.input[0]:
        return []
    for square in graph.consumers.get(centred.output[0], []):
        if square.op_type not in ("Pow", "Mul"):
            continue
        chain = [mean, centred, square]
        for wanted in (("ReduceMean",), ("Add",), ("Sqrt",), ("Div", "Reciprocal")):
            after = [one for one in graph.consumers.get(chain[-1].output[0], []) if one.op_type in wanted]
            if not after:
                break
            chain.append(after[0])
        else:
            return chain
    return []


def zero_shot_head(graph: Index) -> list[Any]:
    """Return the nodes from the L2 normalisation of an embedding to the logits; empty where there is none."""
    through = MOVES | {"Mul", "Add", "Cast"}
    for value in list(graph.graph.output)[:1]:
        head = graph.producers.get(value.name)
        after = []
        while head is not None and head.op_type in through:
            after.append(head)
            head = graph.producers.get(head.input[0])
        if head is None or head.op_type not in ("MatMul", "Gemm"):
            continue
        scaled = graph.producers.get(head.input[0])
        if scaled is not None and scaled.op_type == "LpNormalization":
            return [scaled, head, *after]
        if scaled is None or scaled.op_type not in ("Div", "Mul"):
            continue
        norm, parts = graph.producers.get(scaled.input[1]), [scaled, head, *after]
        while norm is not None and norm.op_type in ("Clip", "Max", "Expand", "Add", "Sqrt", "Reciprocal", "Cast"):
            parts.insert(0, norm)
            norm = graph.producers.get(norm.input[0])
        if norm is not None and norm.op_type in ("ReduceL2", "ReduceSumSquare", "ReduceSum"):
            return [norm, *parts]
    return []


def types(model: Any) -> dict[str, int]:
    """Return the element type (of `onnx.TensorProto`) of every value whose type follows from the file."""
    kinds = require("onnx", "export").TensorProto
    found = {tensor.name: int(tensor.data_type) for tensor in model.graph.initializer}
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        found[value.name] = int(value.type.tensor_type.elem_type)
    fixed = {"Shape": kinds.INT64, "Size": kinds.INT64, "NonZero": kinds.INT64, "ArgMax": kinds.INT64,
             "ArgMin": kinds.INT64, "Equal": kinds.BOOL, "Less": kinds.BOOL, "Greater": kinds.BOOL, "Not": kinds.BOOL,
             "And": kinds.BOOL, "Or": kinds.BOOL, "GreaterOrEqual": kinds.BOOL, "LessOrEqual": kinds.BOOL}
    for node in model.graph.node:
        if node.op_type == "Cast":
            kind = int(attribute(node, "to"))
        elif node.op_type == "Constant":
            tensor = attribute(node, "value")
            kind = int(tensor.data_type) if tensor is not None else 0
        elif node.op_type == "ConstantOfShape":
            tensor = attribute(node, "value")
            kind = int(tensor.data_type) if tensor is not None else kinds.FLOAT
        elif node.op_type == "QuantizeLinear":
            kind = found.get(node.input[2], 0) if len(node.input) > 2 else kinds.UINT8
        elif node.op_type == "DequantizeLinear":
            kind = found.get(node.input[1], 0)
        elif node.op_type in fixed:
            kind = fixed[node.op_type]
        else:
            source = {"Where": 1}.get(node.op_type, 0)
            kind = found.get(node.input[source], 0) if len(node.input) > source else 0
        for name in node.output:
            if kind:
                found.setdefault(name, kind)
    return found
