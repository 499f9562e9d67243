"""Which layers a recipe quantizes and why, and quantized ONNX files in every runtime's dialect."""

from __future__ import annotations

import contextlib
import io
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

from edgebench import graphs, intake, typed
from edgebench.backends import Batches, Feeds
from edgebench.errors import InvalidInput, require
from edgebench.patterns import COMPUTE, Index, attribute, dims, index, names_read, opset, types
from edgebench.recipe import Family, Quantization, Recipe
from edgebench.rules import SHAPES, Rules, dialect

_OPSET = 19
"""The first whose Q/DQ nodes know FP8 and scales in FP16."""
FP8_LARGEST = 448.0
"""Largest number of E4M3."""
INT8_LARGEST = 127.0


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeDecision:
    """Whether one node is quantized, and why."""

    name: str
    operator: str
    quantized: bool
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a recipe does to a graph, node by node."""

    family: Family
    """Whose rules were followed."""
    detected: Family
    """What the graph looks like."""
    decisions: tuple[NodeDecision, ...]

    @property
    def quantized(self) -> tuple[str, ...]:
        """Names of the nodes that are quantized."""
        return tuple(one.name for one in self.decisions if one.quantized)


def prepare(base: Path, folder: Path) -> Path:
    """Write `base` as it is quantized: BatchNorm folded, shapes inferred, every node with a name of its own.

    Decisions, and ``keep_float`` in recipes, refer to these names.

    Raises:
        InvalidInput: The file is quantized, or half-precision, already.
    """
    onnx = require("onnx", "export")
    tools = require("onnxruntime.quantization.shape_inference", "export")
    target = folder / "prepared.onnx"
    if opset(graphs.load(base)) < _OPSET:
        lifted = graphs.at_opset("the model", onnx.load(str(base)), graphs.OPSET)
        base = folder / "lifted.onnx"
        graphs.save(lifted, base)
        del lifted
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        tools.quant_pre_process(str(base), str(target), skip_symbolic_shape=True)
    model = onnx.load(str(target))
    written = graphs.written_precision(model)
    if written.precision != "fp32" or any(
            node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in model.graph.node):
        kind = "quantized" if written.precision in ("fp32", "int8") else written.precision.upper()
        raise InvalidInput(f"the model is {kind} already ({written.evidence or 'Q/DQ nodes'})",
                           "give the recipe the FP32 model")
    intake.name_nodes(model)
    typed.drop_unused_domains(model)
    graphs.save(model, target)
    return target


def plan(model: Any, recipe: Recipe) -> Plan:
    """Return which nodes of a prepared graph a recipe quantizes, with a reason for every node.

    Raises:
        InvalidInput: ``keep_float`` names no node.
    """
    quantization = _quantization(recipe)
    detected = graphs.family(model)
    family = detected if quantization.family == "auto" else quantization.family
    graph = index(model)
    unmatched = [one for one in quantization.keep_float
                 if not any(fnmatchcase(node.name, one) for node in model.graph.node)]
    if unmatched:
        raise InvalidInput(f"recipe {recipe.id!r}: keep_float {unmatched[0]!r} names no node of this graph",
                           "edgebench export --explain lists the names")
    known, floats = types(model), _float_kinds()
    decide = Rules(graph, family, quantization)
    decisions = []
    for node in model.graph.node:
        if node.op_type in SHAPES or known.get(node.output[0], 0) not in floats:
            quantized, reason = False, "computes shapes or indices"
        else:
            quantized, reason = decide(node)
        decisions.append(NodeDecision(name=node.name, operator=node.op_type, quantized=quantized, reason=reason))
    return Plan(family=family, detected=detected, decisions=tuple(decisions))


def _quantization(recipe: Recipe) -> Quantization:
    assert recipe.quantization is not None, f"{recipe.id} quantizes nothing"
    return recipe.quantization


def _float_kinds() -> frozenset[int]:
    kinds = require("onnx", "export").TensorProto
    return frozenset({kinds.FLOAT, kinds.FLOAT16, kinds.BFLOAT16})


def quantize(base: Path, recipe: Recipe, calibration: Batches, target: Path) -> Plan:
    """Write the quantized model to `target`, in the recipe's dialect and its float parts in ``float_precision``.

    Args:
        base: FP32 ONNX file.
        recipe: With a quantization table whose quantizer is ``onnxruntime``.
        calibration: Inputs that choose the ranges.
        target: File to write.

    Raises:
        InvalidInput: Nothing to quantize, a graph that is quantized already, or unusable calibration inputs.
    """
    onnx = require("onnx", "export")
    quantization = _quantization(recipe)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".quantize-") as scratch:
        prepared = prepare(base, Path(scratch))
        model = graphs.load(prepared)
        decided = plan(model, recipe)
        if not decided.quantized:
            raise InvalidInput(f"recipe {recipe.id!r} quantizes no layer of this {decided.family}",
                               "edgebench export --explain says why; --family overrides what was detected")
        originals = _original_inputs(model)
        may_vary = not isinstance(dims(model.graph.input[0])[0], int)
        del model
        written = Path(scratch) / "quantized.onnx"
        _with_onnxruntime(prepared, quantization, decided, _Reader(calibration, one_by_one=may_vary), written)
        prepared.unlink()
        model = onnx.load(str(written))
    if decided.family in ("transformer", "convnext"):
        _float_reads_float(model, decided, originals)
    if dialect(quantization) == "cpu":
        _shield_float(model, decided)
    if quantization.weights == "float8":
        _to_float8(model)
    if recipe.float_precision != "fp32":
        model = typed.convert(model, recipe.float_precision)
    typed.drop_unused_domains(model)
    graphs.save(model, target)
    return decided


class _Reader:
    """Calibration inputs as ONNX Runtime reads them: checked, counted, and few at a time.

    It keeps all values that it takes ranges of until a batch is through: one image at a time needs 2 GB less for a
    network of 88 million weights than eight do.
    """

    def __init__(self, calibration: Batches, *, one_by_one: bool) -> None:
        self._one_by_one = one_by_one
        self._calibration = calibration
        self._count, varied = 0, False
        for feeds in self._feeds():
            _refuse_unusable(feeds)
            self._count += 1
            varied = varied or any(np.ptp(value) > 0 for value in feeds.values())
        hint = "pass --calibration-data DIR with a few hundred images like those seen in use"
        if not self._count:
            raise InvalidInput("no quantization-calibration images were given: ranges are never chosen without any",
                               hint)
        if not varied:
            raise InvalidInput("every quantization-calibration image is one colour: no ranges follow from them", hint)
        self._rest: Iterator[Feeds] = iter(())
        self._left = 0

    def _feeds(self) -> Iterator[Feeds]:
        for feeds in self._calibration():
            rows = len(next(iter(feeds.values()))) if self._one_by_one else 0
            if rows < 2:
                yield feeds
            for row in range(rows if rows > 1 else 0):
                yield {name: value[row:row + 1] for name, value in feeds.items()}

    def __len__(self) -> int:
        return self._count

    def set_range(self, start_index: int, end_index: int) -> None:
        """Let `get_next` return that many more batches; ranges follow each other."""
        if start_index == 0:
            self._rest = self._feeds()
        self._left = end_index - start_index

    def get_next(self) -> Feeds | None:
        """Return the next batch of the range, None at its end."""
        if not self._left:
            return None
        self._left -= 1
        return next(self._rest, None)


def _refuse_unusable(feeds: Feeds) -> None:
    for name, value in feeds.items():
        if not value.size:
            raise InvalidInput(f"an empty batch came as quantization-calibration input {name!r}",
                               "pass --calibration-data DIR with images like those seen in use")
        if not np.isfinite(value).all():
            raise InvalidInput(f"quantization-calibration input {name!r} holds NaN or infinity",
                               "check the mean and std of the preprocessing")


def _with_onnxruntime(prepared: Path, quantization: Quantization, decided: Plan, reader: _Reader, target: Path) -> None:
    tools = require("onnxruntime.quantization", "export")
    method = {"minmax": tools.CalibrationMethod.MinMax, "entropy": tools.CalibrationMethod.Entropy,
              "percentile": tools.CalibrationMethod.Percentile}[quantization.calibrator]
    symmetric = dialect(quantization) == "tensorrt"
    operators = sorted({one.operator for one in decided.decisions if one.quantized})
    # Logits, and what float layers read, keep their resolution; only convolutions on CPUs need their output's range.
    outputs_float = list(COMPUTE) if symmetric else ["MatMul", "Gemm"]
    options: dict[str, Any] = {
        "ActivationSymmetric": symmetric, "WeightSymmetric": True, "QuantizeBias": quantization.bias == "int32",
        "CalibTensorRangeSymmetric": symmetric, "CalibPercentile": quantization.percentile, "CalibStridedMinMax": 1,
        "OpTypesToExcludeOutputQuantization": outputs_float,
        "AddQDQPairToWeight": quantization.weights == "float8"}
    activations = tools.QuantType.QUInt8 if quantization.activations == "uint8" else tools.QuantType.QInt8
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        # The quantizer converts NumPy scalars in ways that newer NumPy warns about; nothing a user could act on.
        warnings.simplefilter("ignore", DeprecationWarning)
        tools.quantize_static(
            str(prepared), str(target), reader, quant_format=tools.QuantFormat.QDQ, op_types_to_quantize=operators,
            nodes_to_quantize=list(decided.quantized), per_channel=quantization.per_channel,
            reduce_range=quantization.reduce_range,
            activation_type=activations, weight_type=tools.QuantType.QInt8, calibrate_method=method,
            extra_options=options)


def _original_inputs(model: Any) -> dict[str, tuple[str, ...]]:
    return {node.name: tuple(node.input) for node in model.graph.node}


def _float_reads_float(model: Any, decided: Plan, originals: Mapping[str, tuple[str, ...]]) -> None:
    """Let float nodes read values as they were before Q/DQ pairs: the residual stream is rounded for nobody else."""
    quantized = set(decided.quantized)
    made = {name for node in model.graph.node for name in node.output} | {one.name for one in model.graph.input}
    for node in model.graph.node:
        if node.name in originals and node.name not in quantized:
            for place, name in enumerate(originals[node.name]):
                if name in made and place < len(node.input):
                    node.input[place] = name


def _shield_float(model: Any, decided: Plan) -> None:
    """Give float layers that read INT8 a DequantizeLinear of their own, with its one scale written once per channel.

    Otherwise ONNX Runtime's WeightBiasQuantization (seen in 1.32) quantizes the weights and bias of every Conv and Gemm
    behind a DequantizeLinear of one scale when it loads the file, with one range per tensor.
    """
    onnx = require("onnx", "export")
    graph = index(model)
    float_layers = {one.name for one in decided.decisions if not one.quantized}
    for node in [one for one in model.graph.node if one.op_type in ("Conv", "ConvTranspose", "Gemm")]:
        dequantize, weight = graph.producers.get(node.input[0]), graph.constants.get(node.input[1])
        if node.name not in float_layers or weight is None or dequantize is None or attribute(node, "transA", 0) \
                or dequantize.op_type != "DequantizeLinear":
            continue
        first, second = weight.dims[0], weight.dims[1]
        channels = {"Conv": second * attribute(node, "group", 1), "ConvTranspose": first,
                    "Gemm": second if attribute(node, "transB", 0) else first}[node.op_type]
        own = [f"{node.name}_{part}" for part in ("scale", "zero_point")]
        for name, source in zip(own, dequantize.input[1:], strict=True):
            value = onnx.numpy_helper.to_array(graph.constants[source]).reshape(-1)
            model.graph.initializer.append(onnx.numpy_helper.from_array(np.repeat(value, channels), name))
        output = f"{node.name}_input"
        made = onnx.helper.make_node("DequantizeLinear", [dequantize.input[0], *own], [output],
                                     name=f"{node.name}_DequantizeLinear", axis=1)
        node.input[0] = output
        model.graph.node.insert(list(model.graph.node).index(dequantize) + 1, made)
    read = names_read(model) | {one.name for one in model.graph.output}
    for node in [one for one in model.graph.node if one.op_type == "DequantizeLinear" and one.output[0] not in read]:
        model.graph.node.remove(node)


def _to_float8(model: Any) -> None:
    """Rewrite symmetric INT8 Q/DQ pairs as E4M3: scales so that the largest magnitude meets 448."""
    onnx = require("onnx", "export")
    graph = index(model)
    pairs = [node for node in model.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    scales = {node.input[1] for node in pairs}
    zeros = {node.input[2] for node in pairs}
    for name in scales:
        value = onnx.numpy_helper.to_array(graph.constants[name])
        graph.constants[name].CopyFrom(onnx.numpy_helper.from_array(
            (value * np.float32(INT8_LARGEST / FP8_LARGEST)).astype(value.dtype), name))
    for name in zeros:
        shape = list(graph.constants[name].dims)
        graph.constants[name].CopyFrom(onnx.helper.make_tensor(
            name, onnx.TensorProto.FLOAT8E4M3FN, shape, bytes(int(np.prod(shape, dtype=np.int64))), raw=True))
    weights = [node for node in pairs if node.op_type == "QuantizeLinear" and node.input[0] in graph.constants]
    for node in weights:
        _store_float8(graph, node)
        model.graph.node.remove(node)
    # The FP32 weights have no reader any more.
    read = names_read(model)
    for tensor in [one for one in model.graph.initializer if one.name not in read]:
        model.graph.initializer.remove(tensor)
    for value in [one for one in model.graph.value_info if one.name not in read]:
        model.graph.value_info.remove(value)


def _store_float8(graph: Index, node: Any) -> None:
    """Make the output of a weight's QuantizeLinear an initializer."""
    onnx = require("onnx", "export")
    kind = onnx.helper.tensor_dtype_to_np_dtype(onnx.TensorProto.FLOAT8E4M3FN)
    weight = onnx.numpy_helper.to_array(graph.constants[node.input[0]])
    scale = onnx.numpy_helper.to_array(graph.constants[node.input[1]])
    axis = attribute(node, "axis", 1) % max(weight.ndim, 1)
    if scale.ndim:
        scale = scale.reshape([-1 if k == axis else 1 for k in range(weight.ndim)])
    stored = np.clip(weight / scale, -FP8_LARGEST, FP8_LARGEST).astype(kind)
    graph.graph.initializer.append(onnx.helper.make_tensor(
        node.output[0], onnx.TensorProto.FLOAT8E4M3FN, weight.shape, stored.tobytes(), raw=True))


def nncf_scope(decided: Plan, model: Any) -> tuple[tuple[str, ...], bool]:
    """Return what NNCF needs: names of the nodes to leave float, and whether the model is a transformer."""
    del model
    return tuple(one.name for one in decided.decisions if not one.quantized), decided.family == "transformer"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReasonGroup:
    """Nodes that one reason holds for."""

    quantized: bool
    operator: str
    reason: str
    nodes: tuple[str, ...]


def explain(decided: Plan) -> tuple[ReasonGroup, ...]:
    """Return the decisions of a plan grouped by what was decided, operator and reason; quantized groups first."""
    groups: dict[tuple[bool, str, str], list[str]] = {}
    for one in decided.decisions:
        groups.setdefault((one.quantized, one.operator, one.reason), []).append(one.name)
    return tuple(ReasonGroup(quantized=key[0], operator=key[1], reason=key[2], nodes=tuple(groups[key]))
                 for key in sorted(groups, key=lambda key: (not key[0], -len(groups[key]), key[1:])))


def explain_text(decided: Plan) -> str:
    """Return a plan as text: family, counts, and every group of nodes with its reason."""
    count = Counter(one.quantized for one in decided.decisions)
    lines = [f"family {decided.family}" + ("" if decided.family == decided.detected else
                                           f" (the graph looks like {decided.detected})")
             + f": {count[True]} nodes quantized, {count[False]} left float"]
    for group in explain(decided):
        shown = ", ".join(group.nodes[:3]) + (" …" if len(group.nodes) > 3 else "")
        lines.append(f"  {'8 bits' if group.quantized else 'float ':6s} {len(group.nodes):4d} {group.operator}: "
                     f"{group.reason} ({shown})")
    return "\n".join(lines)
