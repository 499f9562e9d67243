"""The rules of every family: whether a node is quantized, and why."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any, Literal

from edgebench import typed
from edgebench.patterns import COMPUTE, Index, attentions, is_depthwise
from edgebench.recipe import Family, Quantization

Dialect = Literal["cpu", "tensorrt"]
# What ONNX Runtime's CPU kernels compute in INT8, or pass on in INT8 between two layers that do.
_CPU_CONVNET = frozenset({
    "Conv", "ConvTranspose", "Gemm", "MatMul", "Add", "Mul", "Relu", "Clip", "MaxPool", "AveragePool",
    "GlobalAveragePool", "Concat", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Pad", "Resize", "Split",
    "Slice"})
_FUSED = frozenset({"Relu", "Clip", "Add", "MaxPool"})
# Operators that work on shapes and indices.
SHAPES = frozenset({"Shape", "Size", "Range", "ConstantOfShape", "Constant"})
_SQUEEZE = frozenset({"ReduceMean", "GlobalAveragePool"})
_GATES = frozenset({"Sigmoid", "HardSigmoid"})


def dialect(quantization: Quantization) -> Dialect:
    """Return whose Q/DQ dialect the recipe writes."""
    return "cpu" if quantization.activations == "uint8" else "tensorrt"


class Rules:
    """The decision for one node, given the whole graph."""

    def __init__(self, graph: Index, family: Family, quantization: Quantization) -> None:
        self._graph, self._family, self._wanted = graph, family, quantization
        self._dialect = dialect(quantization)
        self._float = typed.sensitive(graph)
        for scores, softmax, values in attentions(graph):
            self._float[softmax.name] = "softmax: its outputs crowd near 0, where 256 steps are too few"
            for product in (scores, values):
                self._float[product.name] = "attention: a product of two activations, whose outliers need floats"
        self._squeezed = {node.name for gate in graph.graph.node if _scales_channels(graph, gate)
                          for node in _squeeze_excite(graph, gate)}

    def __call__(self, node: Any) -> tuple[bool, str]:
        """Return whether a node is quantized, and why."""
        if any(fnmatchcase(node.name, one) for one in self._wanted.keep_float):
            return False, "named in keep_float"
        if self._wanted.operators:
            named = node.op_type in self._wanted.operators
            return named, "named in operators" if named else "not named in operators"
        if node.name in self._float:
            return False, self._float[node.name]
        if node.op_type in COMPUTE:
            return self._product(node)
        if self._family in ("transformer", "convnext"):
            return False, self._between_linear(node)
        return self._between_convolutions(node)

    def _product(self, node: Any) -> tuple[bool, str]:
        weight = self._graph.weight(node)
        if weight is None:
            return False, "a product of two activations: there are no weights to store in 8 bits"
        if node.name in self._squeezed:
            return False, "squeeze-excite: hardly any operations, and a gate scales whole channels"
        pixels = node.op_type == "Conv" and weight.dims[1] == 3 and node.input[0] in {
            value.name for value in self._graph.graph.input}
        if pixels and self._family == "transformer":
            return False, "patch embedding: few of the operations, and all tokens carry its error"
        if is_depthwise(self._graph, node):
            if self._family == "convnext" and self._dialect == "cpu":
                # ConvNeXt-B in ONNX Runtime 1.32, x86 with AVX2: 433 ms in FP32, 369 with them in INT8, 262 without.
                return False, "large depthwise convolution between float layers: slower in INT8 on CPUs than in float"
            return True, "depthwise convolution: " + (
                "a range for every channel" if self._wanted.per_channel else "one range for all channels")
        kind = "convolution" if node.op_type in ("Conv", "ConvTranspose") else "linear layer"
        if pixels:
            return True, "convolution that reads pixels, which have 8 bits themselves"
        return True, f"{kind} with stored weights"

    def _between_linear(self, node: Any) -> str:
        if node.op_type == "Add":
            constant = any(self._graph.constant(name) for name in node.input)
            return "bias, added in float" if constant else "residual Add: it carries outliers"
        if node.op_type in ("Gelu", "Erf", "Tanh", "Sigmoid", "QuickGelu"):
            return "activation function in float"
        return "left as the layers around it are: nothing to gain in 8 bits"

    def _between_convolutions(self, node: Any) -> tuple[bool, str]:
        if self._dialect == "tensorrt":
            return False, "TensorRT fuses it into the layer before, or passes on what that wrote"
        if node.op_type not in _CPU_CONVNET:
            return False, "operator without INT8 kernels in this runtime"
        if node.op_type in ("Add", "Mul") and any(self._graph.constant(name) for name in node.input):
            return False, "a constant is added or multiplied: nothing to gain in 8 bits"
        if node.op_type == "Mul":
            gates = [made for name in node.input if (made := self._graph.behind(name)) is not None
                     and made.op_type in _GATES]
            if any(_scales_channels(self._graph, gate) for gate in gates):
                return False, "squeeze-excite: a gate scales whole channels"
            if gates:
                return False, "part of an activation function in float"
        if node.op_type in _FUSED:
            return True, "computed in INT8 together with the layers around it"
        return True, "passes INT8 on between the layers around it"


def _scales_channels(graph: Index, gate: Any) -> bool:
    """Return whether a sigmoid is multiplied with another value than its own input, which would be an activation."""
    return gate.op_type in _GATES and any(
        node.op_type == "Mul" and not set(node.input) & set(gate.input) for node in graph.readers(gate.output[0]))


def _squeeze_excite(graph: Index, gate: Any) -> list[Any]:
    """Return the products between the pooling of a squeeze-excite block and its gate; empty where it is none."""
    found: list[Any] = []
    node = graph.behind(gate.input[0])
    while node is not None and len(found) <= 2:
        if node.op_type in _SQUEEZE:
            return found
        if node.op_type in COMPUTE:
            found.append(node)
        elif node.op_type not in ("Relu", "Add", "Clip", "Mul", "HardSigmoid", "Sigmoid", "PRelu", "LeakyRelu"):
            return []
        node = graph.behind(node.input[0])
    return []
