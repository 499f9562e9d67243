"""What TensorRT says of a built engine: its inspector's JSON, in the dialects of TensorRT 8 to 11, joined with times.

Documented in NVIDIA's "Engine Inspector" and "Migrating IEngineInspector Usage from TensorRT 10.x to 11.x": layers are
names alone where the engine was built without detailed verbosity; 10 calls a tensor's type ``Format/Datatype``, a word
(``Half``) or a sentence (``Channel major FP16 format where channel % 8 == 0``), 11 splits it into ``Format`` and
``DataType``; ``Metadata`` lists the ONNX nodes that a layer came from, parted by control characters.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgebench.backends.layers import profile
from edgebench.errors import CannotMeasure
from edgebench.recipe import Precision
from edgebench.record import ExecutedPrecision

_TYPES: tuple[tuple[str, str], ...] = (
    # Order matters: "bf16" holds "f16", "int8" is not "uint8".
    (r"bf16|bfloat16", "bf16"), (r"fp8|e4m3|f8e4m3", "fp8"), (r"fp16|float16|half", "fp16"),
    (r"\b(?:u?int8)\b", "int8"), (r"fp32|float32|\bfloat\b|\btf32\b", "fp32"), (r"int32", "int32"),
    (r"int64", "int64"), (r"bool", "bool"), (r"int4|fp4|e2m1", "int4"))
PRECISIONS: tuple[Precision, ...] = ("fp8", "int8", "bf16", "fp16", "fp32")
"""From narrow to wide: a fused kernel that reads INT8 and a half-precision residual multiplies in INT8."""
# Kernel names tell the operand types: sm80_xmma_gemm_i8i8_i8i32_f32_tn, sm89_xmma_fprop_…_e4m3bf16_e4m3f32_f32.
_TACTIC = re.compile(r"_(i8|bf16|f16|f32|e4m3)(?:i8|i32|bf16|f16|f32|e4m3)?_(?:i8|tf32|bf16|f16|f32|e4m3)")
_OPERANDS: dict[str, Precision] = {"i8": "int8", "bf16": "bf16", "f16": "fp16", "f32": "fp32", "e4m3": "fp8"}
_COMPUTE = re.compile(r"conv|gemm|matrixmultiply|matmul|fullyconnected|einsum|mha|attention", re.IGNORECASE)
_MOVES = re.compile(r"reformat|noop|shuffle|copy|constant|shape", re.IGNORECASE)
_KERNEL = re.compile(r"gemm|fprop|conv|_fmha|mma", re.IGNORECASE)
_TYPE_KEYS = ("DataType", "Datatype", "Format/Datatype", "Format/DataType", "Format")
_NODE = re.compile(r"\[ONNX Layer: ([^\]]+)\]")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLayer:
    """One layer of a built engine."""

    name: str
    kind: str
    """TensorRT's layer type, such as ``CaskConvolution``, ``gemm`` or ``Reformat``."""
    precision: str
    """What it multiplies or moves: one of `PRECISIONS`, another type's name, or ``unknown``."""
    compute: bool
    """A convolution or matrix product."""
    tf32: bool
    """Whether its kernel rounds FP32 operands to 10 bits of mantissa."""
    device: str
    """``GPU`` or ``DLA``."""
    nodes: tuple[str, ...]
    """ONNX nodes that it came from."""
    tactic: str
    """Name of the chosen kernel, where the inspector tells."""


def parse(text: str) -> tuple[EngineLayer, ...]:
    """Return the layers in an inspector's JSON, in order.

    Raises:
        CannotMeasure: It is not JSON of a known form, or holds names alone.
    """
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise CannotMeasure(f"TensorRT's engine inspector returned no JSON: {error}") from error
    rows = found.get("Layers") if isinstance(found, dict) else None
    if not isinstance(rows, list) or not rows:
        raise CannotMeasure("TensorRT's engine inspector returned no layers, so the precision cannot be proven")
    if any(isinstance(row, str) for row in rows):
        raise CannotMeasure(
            f"the engine tells the names of its {len(rows)} layers but not their types: it was built without detailed "
            "profiling verbosity", "build it anew: edgebench always asks for the details")
    return tuple(_layer(row) for row in rows)


def _layer(row: Mapping[str, Any]) -> EngineLayer:
    name, kind, tactic = (str(row.get(key) or "") for key in ("Name", "LayerType", "TacticName"))
    on_dla = "dla" in kind.lower() or "dla" in tactic.lower()
    compute = bool(_COMPUTE.search(kind)) or (not _MOVES.search(kind) and bool(_TACTIC.search(tactic))
                                              and bool(_KERNEL.search(tactic))) or on_dla
    return EngineLayer(
        name=name, kind=kind, precision=_precision(row, tactic, compute=compute), compute=compute,
        tf32="tf32" in tactic.lower(), device="DLA" if on_dla else "GPU",
        nodes=tuple(dict.fromkeys(_NODE.findall(str(row.get("Metadata") or "")))), tactic=tactic)


def _precision(row: Mapping[str, Any], tactic: str, *, compute: bool) -> str:
    operands = _TACTIC.search(tactic)
    if compute and operands:
        return _OPERANDS[operands.group(1)]
    inputs, outputs = _types(row.get("Inputs")), _types(row.get("Outputs"))
    known: list[str] = [kind for kind in (inputs or outputs) if kind in PRECISIONS]
    if compute and known:
        return min(known, key=lambda kind: PRECISIONS.index(_known(kind)))
    return next(iter([*known, *inputs, *outputs]), "unknown")


def _known(kind: str) -> Precision:
    return next(one for one in PRECISIONS if one == kind)


def _types(tensors: Any) -> list[str]:
    if not isinstance(tensors, list):
        return []
    found = []
    for tensor in tensors:
        if isinstance(tensor, Mapping):
            texts = (tensor.get(key) for key in _TYPE_KEYS)
            found.append(_type(next((str(text) for text in texts if text), "")))
    return found


def _type(text: str) -> str:
    return next((name for pattern, name in _TYPES if re.search(pattern, text, re.IGNORECASE)), "unknown")


def executed(requested: Precision, layers: Sequence[EngineLayer], times_s: Mapping[str, float], evidence: str,
             ) -> ExecutedPrecision:
    """Return what an engine executes.

    Args:
        requested: What the recipe asked for.
        layers: From `parse`.
        times_s: Time of each layer by name, from TensorRT's profiler; empty where none was taken. Names that the
            inspector does not know (the profiler numbers the layers of further profiles) count with their time.
        evidence: How it was read, in words.

    Raises:
        CannotMeasure: No convolution or matrix product whose precision is known.
    """
    compute: dict[Precision, int] = {}
    compute_s: dict[Precision, float] = {}
    share: dict[str, float] = {}
    total = sum(times_s.values())
    known = {layer.name for layer in layers}
    unmatched = sum(seconds for name, seconds in times_s.items() if name not in known)
    seen: set[str] = set()
    rows: list[tuple[str, str, str, float | None]] = []
    for layer in layers:
        # Names are unique in practice; a repeated one must not count its time twice.
        seconds = 0.0 if layer.name in seen else times_s.get(layer.name, 0.0)
        seen.add(layer.name)
        rows.append((layer.name, layer.kind or "unknown", layer.precision, seconds))
        if total > 0:
            share[layer.precision] = share.get(layer.precision, 0.0) + seconds / total
        if layer.compute and layer.precision in PRECISIONS:
            kind = _known(layer.precision)
            compute[kind] = compute.get(kind, 0) + 1
            compute_s[kind] = compute_s.get(kind, 0.0) + seconds
    if total > 0 and unmatched > 0:
        share["unknown"] = share.get("unknown", 0.0) + unmatched / total
        rows += [(name, "unknown", "unknown", seconds) for name, seconds in times_s.items() if name not in known]
    if not compute:
        raise CannotMeasure(f"none of the engine's {len(layers)} layers is a convolution or matrix product of known "
                            f"type, so {requested} cannot be proven ({evidence})")
    weight: Mapping[Precision, float] = compute_s if sum(compute_s.values()) > 0 else compute
    placement: dict[str, int] = {}
    for layer in layers:
        placement[layer.device] = placement.get(layer.device, 0) + 1
    tf32 = sum(layer.tf32 for layer in layers)
    return ExecutedPrecision(
        requested=requested, executed=max(weight, key=lambda kind: weight[kind]), time_share=share,
        evidence=evidence + (f"; {tf32} kernels round FP32 operands to TF32" if tf32 else ""), layers=counts(layers),
        compute_layers=dict(compute.items()), placement=placement, profile=profile(rows))


def counts(layers: Sequence[EngineLayer]) -> dict[str, int]:
    """Return the number of layers by precision."""
    return dict(Counter(layer.precision for layer in layers))


def slowest(layers: Sequence[EngineLayer], times_s: Mapping[str, float], count: int = 10,
            ) -> tuple[tuple[EngineLayer, float], ...]:
    """Return the layers that take most of the time, with their share of it."""
    total = sum(times_s.values()) or 1.0
    ranked = sorted(layers, key=lambda layer: times_s.get(layer.name, 0.0), reverse=True)[:count]
    return tuple((layer, times_s.get(layer.name, 0.0) / total) for layer in ranked)
