"""Typed ONNX: the same graph with its weights and values in FP16 or BF16, where that is safe."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Literal

import numpy as np

from edgebench import graphs, intake
from edgebench.errors import InvalidInput, require
from edgebench.patterns import (
    Index,
    attribute,
    captured,
    index,
    layer_norms,
    names_read,
    nodes,
    opset,
    types,
    zero_shot_head,
)

Half = Literal["fp16", "bf16"]
# Inputs that ONNX wants in float32 whatever the others are.
_FLOAT32_INPUTS = {"Resize": (1, 2), "Upsample": (1,)}
# Scales and constants are kept in float32 where rounding them would change them by more than this share.
_LOSS = 1 / 64
# Operators whose attributes state a type of their own.
_OWN_TYPES = frozenset({"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "EyeLike", "Range"})

# TensorRT's parser takes these in FP32, FP16 and INT8 alone.
_NOT_IN_BF16 = frozenset({"HardSwish"})


def drop_unused_domains(model: Any) -> None:
    """Remove operator sets that no node uses: some runtimes refuse those they do not know."""
    used = {node.domain if node.domain != "ai.onnx" else "" for node in nodes(model.graph)} | {""}
    for one in [one for one in model.opset_import if one.domain not in used]:
        model.opset_import.remove(one)


def sensitive(graph: Index) -> dict[str, str]:
    """Return the nodes that stay float32 in typed and quantized graphs alike, by name, with the reason."""
    found = {}
    for parts in layer_norms(graph):
        for node in parts:
            found[node.name] = "layer normalisation: squares of large values overflow"
    for node in zero_shot_head(graph):
        found[node.name] = "normalise and head of the zero-shot classifier: an error of the cosine is multiplied by 100"
    return found


def convert(model: Any, precision: Half, keep: Collection[str] = ()) -> Any:
    """Return the graph with float32 weights and values in `precision`; its inputs and outputs stay float32.

    What `sensitive` names, nodes named in `keep`, and those whose constants the precision cannot hold stay float32
    between Cast nodes.

    Args:
        model: An FP32 ONNX model, quantized or not; it is changed.
        precision: Of the result.
        keep: Names of more nodes that stay float32.

    Raises:
        InvalidInput: A weight is NaN, or the file is of an opset without the precision (convolutions know BF16 from 22,
            Q/DQ nodes FP16 from 19) and cannot be converted.
    """
    kinds = require("onnx", "export").TensorProto
    half = kinds.FLOAT16 if precision == "fp16" else kinds.BFLOAT16
    quantized = any(node.op_type == "QuantizeLinear" for node in model.graph.node)
    needed = 22 if precision == "bf16" else 19 if quantized else graphs.MIN_OPSET
    if opset(model) < needed:
        model = graphs.at_opset("the model", model, needed)
    intake.name_nodes(model)
    _constants_to_initializers(model)
    _raise_tiny_scales(model, half)
    _Conversion(model, half, keep).run()
    drop_unused_domains(model)
    return model


def _constants_to_initializers(model: Any) -> None:
    onnx = require("onnx", "export")
    for node in [node for node in model.graph.node if node.op_type == "Constant"]:
        given = node.attribute[0]
        if given.name not in ("value", "value_float", "value_floats"):
            continue
        value = onnx.numpy_helper.to_array(given.t) if given.name == "value" else \
            np.array(onnx.helper.get_attribute_value(given), np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(value, node.output[0]))
        model.graph.node.remove(node)


def _round_trip(value: Any, half: int) -> Any:
    """Return float32 values as they are after rounding to the half type."""
    onnx = require("onnx", "export")
    with np.errstate(over="ignore"):
        return value.astype(onnx.helper.tensor_dtype_to_np_dtype(half)).astype(np.float32)


def _raise_tiny_scales(model: Any, half: int) -> None:
    """Make Q/DQ scales large enough for FP16, and store the weights behind them again with the larger step.

    Only layers whose largest weight is below 5e-4 are concerned: their channels are next to dead.
    """
    onnx = require("onnx", "export")
    if half != onnx.TensorProto.FLOAT16:
        return
    graph = index(model)
    least = np.float32(2.0 ** -24 / _LOSS)
    changed: dict[str, Any] = {}
    for node in model.graph.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear") or node.input[1] not in graph.constants:
            continue
        scale = onnx.numpy_helper.to_array(graph.constants[node.input[1]])
        if scale.dtype != np.float32 or not (scale < least).any():
            continue
        changed[node.input[1]] = np.maximum(scale, least)
        stored = graph.constants.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        if stored is None or stored.data_type != onnx.TensorProto.INT8:
            continue
        value = onnx.numpy_helper.to_array(stored)
        axis = attribute(node, "axis", 1) % max(value.ndim, 1)
        ratio = scale / changed[node.input[1]]
        if ratio.ndim:
            ratio = ratio.reshape([-1 if k == axis else 1 for k in range(value.ndim)])
        stored.CopyFrom(onnx.numpy_helper.from_array(np.rint(value * ratio).astype(np.int8), stored.name))
    for name, scale in changed.items():
        graph.constants[name].CopyFrom(onnx.numpy_helper.from_array(scale, name))


class _Conversion:
    """The rewriting of one model: every value gets a type, and a Cast node wherever a reader wants another."""

    def __init__(self, model: Any, half: int, keep: Collection[str]) -> None:
        self._onnx = require("onnx", "export")
        self._model, self._half = model, half
        self._full = int(self._onnx.TensorProto.FLOAT)
        self._graph, self._known = index(model), types(model)
        self._stay = {*keep, *sensitive(self._graph)} | self._unsafe()
        self._home: dict[str, int] = {value.name: self._full for value in model.graph.input}
        self._renamed: dict[str, str] = {}
        self._nodes: list[Any] = []
        self._made: dict[tuple[str, int], str] = {}

    def run(self) -> None:
        """Rewrite the model."""
        # What a subgraph reads by name keeps its name and its type.
        outputs = {value.name for value in self._model.graph.output}.union(*map(captured, self._model.graph.node))
        for node in self._model.graph.node:
            stays = node.name in self._stay
            for place, name in enumerate(node.input):
                if self._known.get(name) == self._full:
                    wanted = self._full if stays or place in _FLOAT32_INPUTS.get(node.op_type, ()) else self._half
                    node.input[place] = self._as(name, wanted)
            if not stays:
                self._retype(node)
            self._nodes.append(node)
            for place, name in enumerate(node.output):
                if self._known.get(name) != self._full:
                    continue
                self._home[name] = self._full if stays else self._half
                if name in outputs and not stays:
                    self._renamed[name] = node.output[place] = f"{name}_half"
        for name, inner in self._renamed.items():
            self._cast(inner, self._full, name)
        del self._model.graph.node[:]
        self._model.graph.node.extend(self._nodes)
        self._tidy()

    def _as(self, name: str, wanted: int) -> str:
        """Return the name of a value in the type wanted, making it where there is none yet."""
        if name in self._graph.constants:
            return name if wanted == self._full else self._constant(name)
        inner = self._renamed.get(name, name)
        if self._home.get(name, self._full) == wanted:
            return inner
        if (name, wanted) not in self._made:
            suffix = "as_float" if wanted == self._full else "as_half"
            self._made[name, wanted] = self._cast(inner, wanted, f"{name}_{suffix}")
        return self._made[name, wanted]

    def _cast(self, name: str, to: int, output: str) -> str:
        self._nodes.append(self._onnx.helper.make_node("Cast", [name], [output], name=f"{output}_cast", to=to))
        return output

    def _constant(self, name: str) -> str:
        if (name, self._half) not in self._made:
            value = self._onnx.numpy_helper.to_array(self._graph.constants[name])
            with np.errstate(over="ignore"):
                stored = value.astype(self._onnx.helper.tensor_dtype_to_np_dtype(self._half))
            tensor = self._onnx.helper.make_tensor(f"{name}_half", self._half, value.shape, stored.tobytes(), raw=True)
            self._model.graph.initializer.append(tensor)
            self._made[name, self._half] = tensor.name
        return self._made[name, self._half]

    def _retype(self, node: Any) -> None:
        """Change the types that a node states itself."""
        if node.op_type == "Cast":
            for one in node.attribute:
                if one.name == "to" and one.i == self._full:
                    one.i = self._half
        elif node.op_type == "ConstantOfShape":
            value = attribute(node, "value")
            if value is None or value.data_type == self._full:
                number = float(self._onnx.numpy_helper.to_array(value)[0]) if value is not None else 0.0
                del node.attribute[:]
                node.attribute.append(self._onnx.helper.make_attribute(
                    "value", self._onnx.helper.make_tensor("value", self._half, [1], [number])))

    def _unsafe(self) -> set[str]:
        """Return the nodes that cannot be half: a constant overflows or vanishes, or the operator is not ONNX's own.

        Nodes with subgraphs, whose types are declared inside, stay float32 too.
        """
        found = set()
        largest = 65504.0 if self._half == self._onnx.TensorProto.FLOAT16 else 3.3895e38
        checked: dict[str, bool] = {}
        for node in self._model.graph.node:
            if captured(node) or node.domain not in ("", "ai.onnx") or node.op_type in _OWN_TYPES or (
                    node.op_type in _NOT_IN_BF16 and self._half == self._onnx.TensorProto.BFLOAT16):
                found.add(node.name)
            for name in node.input:
                tensor = self._graph.constants.get(name)
                if tensor is None or tensor.data_type != self._full:
                    continue
                if name not in checked:
                    checked[name] = self._fits(name, self._onnx.numpy_helper.to_array(tensor), largest)
                if not checked[name]:
                    found.add(node.name)
        return found

    def _fits(self, name: str, value: Any, largest: float) -> bool:
        if np.isnan(value).any():
            raise InvalidInput(f"the weights {name!r} hold NaN", "the model was damaged in training or export")
        finite = np.abs(value[np.isfinite(value)])
        if finite.size and float(finite.max()) > largest:
            return False
        # A lone number that vanishes, such as the ε under a division, changes everything; a small weight does not.
        return value.size != 1 or bool(np.all(np.abs(_round_trip(finite, self._half) - finite) <= _LOSS * finite))

    def _tidy(self) -> None:
        read = names_read(self._model)
        given = {value.name for value in (*self._model.graph.input, *self._model.graph.output)}
        for tensor in [one for one in self._model.graph.initializer if one.name not in read | given]:
            self._model.graph.initializer.remove(tensor)
        for value in self._model.graph.value_info:
            if self._home.get(value.name) == self._half and value.type.tensor_type.elem_type == self._full:
                value.type.tensor_type.elem_type = self._half
