"""Where the time of one inference goes, layer by layer, and how near each layer comes to what this machine can do.

Ceilings are measured on this machine, by matrix products and copies through NumPy or through a runtime's own session;
datasheet peaks stand beside them and place nothing. The work of a layer comes from the graph's shapes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from edgebench import steady
from edgebench.errors import CannotMeasure, InvalidInput, require
from edgebench.timing_types import Ceiling, GraphWork, LayerChange, LayerTime, LayerWork, RooflinePoint

MATMUL_TYPES = ("MatMul", "Gemm")
COMPUTE_TYPES = ("Conv", "ConvTranspose", *MATMUL_TYPES)
WIDTHS = {"fp32": 4, "fp16": 2, "bf16": 2, "fp8": 1, "int8": 1}
"""Bytes of an element."""
# One operation per output element; everything else that is not named has no known count.
ELEMENTWISE = ("Add", "Sub", "Mul", "Div", "Relu", "Clip", "Sigmoid", "Tanh", "Erf", "Exp", "Sqrt", "Pow", "Neg", "Abs",
               "Max", "Min", "Sum", "HardSigmoid", "HardSwish", "LeakyRelu", "PRelu", "Gelu", "Softmax",
               "LayerNormalization", "BatchNormalization", "InstanceNormalization", "QuantizeLinear",
               "DequantizeLinear", "Cast", "Where", "Reciprocal", "Elu", "Selu", "Softplus")
POOLS = ("MaxPool", "AveragePool")
REDUCTIONS = ("GlobalAveragePool", "GlobalMaxPool", "ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin")
MOVES = ("Reshape", "Flatten", "Transpose", "Concat", "Slice", "Split", "Squeeze", "Unsqueeze", "Gather", "Identity",
         "Pad", "Expand", "Shape", "Constant", "ConstantOfShape", "Tile", "Resize", "Dropout")


def layer_table(rows: Iterable[tuple[str, str, str, float]]) -> tuple[LayerTime, ...]:
    """Return the common table from a runtime's (name, type, precision, seconds), in the runtime's order.

    Raises:
        CannotMeasure: No rows, or times that are not finite and 0 or more.
    """
    found = list(rows)
    if not found or not all(0 <= row[3] < math.inf for row in found):
        raise CannotMeasure("the runtime told no layer times that could be used")
    total = math.fsum(row[3] for row in found) or 1.0
    return tuple(LayerTime(name=name, type=kind, precision=precision, time_s=seconds, share=seconds / total)
                 for name, kind, precision, seconds in found)


def diff(before: Sequence[LayerTime], after: Sequence[LayerTime],
         by: Literal["name", "type"] = "name") -> tuple[LayerChange, ...]:
    """Return how each layer's, or each type's, time changed between two variants; the largest change first.

    Layers that a runtime fused bear other names, so `by` type compares what `by` name cannot.
    """
    sides = [_sums(table, by) for table in (before, after)]
    changes = [LayerChange(
        key=key, before_s=old[0] if (old := sides[0].get(key)) else None,
        after_s=new[0] if (new := sides[1].get(key)) else None, before_precision=old[1] if old else None,
        after_precision=new[1] if new else None, change_s=(new[0] if new else 0.0) - (old[0] if old else 0.0))
        for key in dict.fromkeys((*sides[0], *sides[1]))]
    return tuple(sorted(changes, key=lambda one: -abs(one.change_s)))


def _sums(table: Sequence[LayerTime], by: Literal["name", "type"]) -> dict[str, tuple[float, str]]:
    times: dict[str, float] = {}
    precisions: dict[str, list[str]] = {}
    for layer in table:
        key = layer.name if by == "name" else layer.type
        times[key] = times.get(key, 0.0) + layer.time_s
        precisions.setdefault(key, []).append(layer.precision)
    return {key: (times[key], "+".join(dict.fromkeys(precisions[key]))) for key in times}


def best_rate(run: Callable[[], object], work: float, *, repeats: int = 20, min_s: float = 0.5,
              clock: Callable[[], int] = time.perf_counter_ns) -> tuple[float, int]:
    """Return (work per second of the fastest run, runs): a ceiling is what was reached at best.

    Args:
        run: Does `work` once.
        work: FLOPs or bytes.
        repeats: Runs at least, after one that does not count.
        min_s: Seconds at least.
        clock: Monotonic nanoseconds.

    Raises:
        CannotMeasure: The clock did not advance during a run.
    """
    return best_timed(timed(run, clock), work, repeats=repeats, min_s=min_s, clock=clock)


def timed(run: Callable[[], object], clock: Callable[[], int] = time.perf_counter_ns) -> Callable[[], float]:
    """Return what runs `run` once and returns the seconds that it took by this host's clock."""
    def once() -> float:
        start = clock()
        run()
        return (clock() - start) / 1e9

    return once


def best_timed(once: Callable[[], float], work: float, *, repeats: int = 20, min_s: float = 0.5,
               clock: Callable[[], int] = time.perf_counter_ns) -> tuple[float, int]:
    """Return the same of something that tells the seconds of each run itself, such as by a GPU's clock."""
    once()
    fastest, count, begin = math.inf, 0, clock()
    with steady.quiet():
        while count < repeats or (clock() - begin) / 1e9 < min_s:
            fastest = min(fastest, once())
            if fastest <= 0:
                raise CannotMeasure("the clock did not advance during a matrix product or copy", "use a larger one")
            count += 1
    return work / fastest, count


def numpy_gemm(size: int = 1024) -> tuple[Callable[[], object], float]:
    """Return a float32 product of two square matrices by NumPy's BLAS, and its FLOPs (2 size^3)."""
    generator = np.random.default_rng(0)
    a, b = (generator.standard_normal((size, size), np.float32) for _ in range(2))
    out = np.empty((size, size), np.float32)
    return lambda: np.matmul(a, b, out=out), 2.0 * size**3


def numpy_copy(size_bytes: int = 256 * 2**20, pool: ThreadPoolExecutor | None = None, parts: int = 1,
               ) -> tuple[Callable[[], object], float]:
    """Return a copy of that many bytes, and the bytes that it moves: each is read and written.

    Larger than the last cache of common machines, so that memory and not a cache is measured.

    Args:
        size_bytes: How many.
        pool: Threads that copy a part each: one alone does not use all of the memory's bandwidth.
        parts: How many.
    """
    source = np.ones(size_bytes // 4, np.float32)
    target = np.empty_like(source)
    if pool is None:
        return lambda: np.copyto(target, source), 2.0 * source.nbytes
    pieces = list(zip(np.array_split(target, parts), np.array_split(source, parts), strict=True))
    return lambda: list(pool.map(lambda pair: np.copyto(*pair), pieces)), 2.0 * source.nbytes


def point(name: str, flops: float, bytes_moved: float, seconds: float, top: Ceiling) -> RooflinePoint | None:
    """Return a layer, or a whole model, under its roof; None without FLOPs, bytes, time or a measured ceiling.

    Source:
        Williams, Waterman & Patterson 2009, Communications of the ACM 52(4):65.
    """
    if not flops or not bytes_moved or seconds <= 0 or top.flops_per_s is None:
        return None
    intensity, reached = flops / bytes_moved, flops / seconds
    by_memory = intensity * top.bytes_per_s
    roof = min(top.flops_per_s, by_memory)
    return RooflinePoint(name=name, intensity=intensity, flops_per_s=reached, roof_flops_per_s=roof,
                         roof_share=reached / roof, bound="memory" if by_memory < top.flops_per_s else "compute",
                         precision=top.precision)


def layer_work(model: Path, *, batch: int = 1) -> tuple[LayerWork, ...]:
    """Return the FLOPs and bytes of every node of an ONNX file, from its shapes at `batch` images.

    Bytes are inputs, weights and outputs once each: a runtime that fuses layers moves fewer, one whose cache is too
    small moves more. Nodes whose shapes or counts are unknown have 0 FLOPs and a reason.

    Raises:
        MissingDependency: onnx is not installed.
        InvalidInput: The file is not an ONNX model, or its shapes contradict each other.
    """
    onnx = require("onnx", "export")
    decode_error = require("google.protobuf.message", "export").DecodeError
    try:
        # Shapes are all that is asked for; a model of more than 2 GB could not be handed to the inference of shapes.
        loaded = onnx.load(str(model), load_external_data=False)
        named = set()
        for one in loaded.graph.input:
            dimensions = one.type.tensor_type.shape.dim
            if len(dimensions) and not dimensions[0].dim_value:
                named.add(dimensions[0].dim_param)
                dimensions[0].dim_value = batch
        for one in loaded.graph.output:
            for dimension in one.type.tensor_type.shape.dim:
                if dimension.dim_param and dimension.dim_param in named:
                    dimension.dim_value = batch
        graph = onnx.shape_inference.infer_shapes(loaded, data_prop=True).graph
    except (OSError, decode_error, onnx.shape_inference.InferenceError) as error:
        raise InvalidInput(f"cannot read the shapes of {model}: {error}") from error
    shapes = _shapes(onnx, graph)
    return tuple(_node_work(node, shapes) for node in graph.node)


def graph_work(model: Path) -> GraphWork | None:
    """Return what one inference of a whole FP32 graph has to do.

    For one image, or for as many as the graph's batch is fixed to. Every node counts on its own: a runtime that fuses
    layers, or keeps data in a cache, moves fewer bytes.

    Args:
        model: The FP32 ONNX file.

    Returns:
        Operations, and bytes at four per element. None where the shapes of a convolution or matrix product are
        unknown: too little would be counted.

    Raises:
        MissingDependency: onnx is not installed.
        InvalidInput: See `layer_work`.
    """
    layers = layer_work(model)
    if not layers or any(one.reason and one.type in COMPUTE_TYPES for one in layers):
        return None
    first = require("onnx", "export").load(str(model), load_external_data=False).graph.input[0]
    images = first.type.tensor_type.shape.dim[0].dim_value or 1
    return GraphWork(
        flops=sum(one.flops for one in layers), bytes_moved=sum(one.bytes_moved for one in layers), images=images,
        uncounted=tuple(dict.fromkeys(one.type for one in layers if one.reason)))


def in_precision(work: GraphWork, precision: str) -> GraphWork:
    """Return the work of an FP32 graph that is executed in `precision`: the same operations on narrower elements."""
    return replace(work, bytes_moved=work.bytes_moved * WIDTHS[precision] // WIDTHS["fp32"])


def _shapes(onnx: Any, graph: Any) -> dict[str, tuple[tuple[int, ...], int]]:
    """Return (shape, bytes per element) by tensor name, where both are known."""
    found = {}
    for one in (*graph.input, *graph.value_info, *graph.output):
        kind = one.type.tensor_type
        dimensions = [dim.dim_value if dim.HasField("dim_value") else -1 for dim in kind.shape.dim]
        if kind.HasField("shape") and kind.elem_type and min(dimensions, default=0) >= 0:
            found[one.name] = tuple(dimensions), _size(onnx, kind.elem_type)
    for one in graph.initializer:
        found[one.name] = tuple(one.dims), _size(onnx, one.data_type)
    for node in graph.node:
        if node.op_type == "Constant":
            for attribute in node.attribute:
                if attribute.name == "value":
                    found[node.output[0]] = tuple(attribute.t.dims), _size(onnx, attribute.t.data_type)
    return found


def _size(onnx: Any, kind: int) -> int:
    return int(np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind)).itemsize)


def _node_work(node: Any, shapes: dict[str, tuple[tuple[int, ...], int]]) -> LayerWork:
    name = node.name or (node.output[0] if node.output else node.op_type)
    names = [*filter(None, node.input), *filter(None, node.output)]
    if node.op_type in MATMUL_TYPES and names[0] not in shapes and names[1] in shapes and names[-1] in shapes:
        # What flattens may hide its shape, which the weights and the output still tell.
        transposed = {one.name for one in node.attribute if one.name in ("transA", "transB") and one.i}
        weights, width = shapes[names[1]]
        if len(weights) == 2 and "transA" not in transposed:
            shapes = {**shapes, names[0]: ((*shapes[names[-1]][0][:-1], weights["transB" in transposed]), width)}
    unknown = [one for one in names if one not in shapes]
    if unknown:
        return LayerWork(name=name, type=node.op_type, flops=0, bytes_moved=0,
                         reason=f"the shape of {unknown[0]} is not known")
    moved = 0 if node.op_type in ("Constant", "Shape") else sum(math.prod(shapes[one][0]) * shapes[one][1]
                                                                for one in names)
    inputs = [shapes[one][0] for one in node.input if one]
    flops = _flops(node, inputs, shapes[node.output[0]][0])
    return LayerWork(name=name, type=node.op_type, flops=flops or 0, bytes_moved=moved,
                     reason="" if flops is not None else f"no count is known for {node.op_type}")


def _flops(node: Any, inputs: list[tuple[int, ...]], output: tuple[int, ...]) -> int | None:
    kind, elements = node.op_type, math.prod(output)
    if kind == "Conv":
        bias = elements if len(inputs) > 2 else 0
        return 2 * elements * math.prod(inputs[1][1:]) + bias
    if kind == "ConvTranspose":
        return 2 * math.prod(inputs[0]) * math.prod(inputs[1][1:])
    if kind == "QLinearConv":
        return 2 * elements * math.prod(inputs[3][1:])
    if kind == "Gemm":
        transposed = any(one.name == "transA" and one.i for one in node.attribute)
        bias = elements if len(inputs) > 2 else 0
        return 2 * elements * inputs[0][0 if transposed else -1] + bias
    if kind in ("MatMul", "MatMulInteger", "QLinearMatMul"):
        return 2 * elements * inputs[0][-1]
    if kind in ELEMENTWISE:
        return elements
    if kind in POOLS:
        kernel = next((math.prod(one.ints) for one in node.attribute if one.name == "kernel_shape"), 1)
        return elements * kernel
    if kind in REDUCTIONS:
        return math.prod(inputs[0])
    return 0 if kind in MOVES else None


def write_matmul(path: Path, precision: Literal["fp32", "int8"], size: int = 1024) -> float:
    """Write an ONNX file with one square matrix product of (size, size) for a runtime's ceiling; return its FLOPs.

    int8: quantize, dequantize, product, as quantized artifacts have it: u8 activations, s8 weights per column, so that
    a runtime that fuses those runs its integer kernel. Open it with the recipe whose precision is to be measured: an
    fp32 file under a bf16 recipe measures bf16.

    Raises:
        MissingDependency: onnx is not installed.
    """
    onnx = require("onnx", "export")
    helper, numpy_helper, kinds = onnx.helper, onnx.numpy_helper, onnx.TensorProto
    generator = np.random.default_rng(0)
    ends = [helper.make_tensor_value_info(name, kinds.FLOAT, [size, size]) for name in ("x", "y")]
    if precision == "fp32":
        weights = [numpy_helper.from_array(generator.standard_normal((size, size), np.float32), "w")]
        nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    else:
        # Seven bits: kernels without VNNI add pairs of products in 16 bits, which saturate.
        quantized = generator.integers(-63, 64, (size, size)).astype(np.int8)
        weights = [numpy_helper.from_array(quantized, "w"),
                   numpy_helper.from_array(np.full(size, 0.01, np.float32), "w_scale"),
                   numpy_helper.from_array(np.zeros(size, np.int8), "w_zero"),
                   numpy_helper.from_array(np.array(0.05, np.float32), "scale"),
                   numpy_helper.from_array(np.array(128, np.uint8), "zero"),
                   numpy_helper.from_array(np.array(1.0, np.float32), "y_scale")]
        nodes = [helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["xq"]),
                 helper.make_node("DequantizeLinear", ["xq", "scale", "zero"], ["xd"]),
                 helper.make_node("DequantizeLinear", ["w", "w_scale", "w_zero"], ["wd"], axis=1),
                 helper.make_node("MatMul", ["xd", "wd"], ["yf"]),
                 helper.make_node("QuantizeLinear", ["yf", "y_scale", "zero"], ["yq"]),
                 helper.make_node("DequantizeLinear", ["yq", "y_scale", "zero"], ["y"])]
    graph = helper.make_graph(nodes, "matmul", ends[:1], ends[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
    return 2.0 * size**3
