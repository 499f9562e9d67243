"""OpenVINO: FP32, BF16 and INT8 intermediate representations on CPUs."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any

from edgebench.backends import Batches, Feeds, Layer, Session, specs, summarize_precision
from edgebench.errors import CannotMeasure, InvalidInput, require
from edgebench.recipe import Precision, Recipe
from edgebench.record import ExecutedPrecision

# Without a hint OpenVINO runs FP32 models in bf16 on CPUs that can: every recipe says what it wants. The float parts
# of an INT8 model stay FP32, so that INT8 differs from FP32 by its quantization alone.
_HINT = {"fp32": "f32", "bf16": "bf16", "fp16": "f16", "int8": "f32"}
_KERNEL: dict[str, Precision] = {"f32": "fp32", "bf16": "bf16", "f16": "fp16", "i8": "int8", "u8": "int8"}
_COMPUTE = ("Convolution", "FullyConnected", "MatMul")


def packages() -> dict[str, str]:
    """Return the version of OpenVINO."""
    return {"openvino": str(require("openvino", "openvino").__version__).partition("-")[0]}


def build(base: Path, recipe: Recipe, calibration: Batches | None, folder: Path) -> str:
    """Write ``model.xml`` and ``model.bin`` into `folder`, quantized where the recipe says so."""
    openvino = require("openvino", "openvino")
    target = folder / "model.xml"
    if recipe.quantization is None:
        model = openvino.convert_model(str(base))
    elif calibration is None:
        raise InvalidInput(f"recipe {recipe.id!r} needs quantization-calibration images", "pass --calibration-data DIR")
    elif recipe.quantization.quantizer == "onnxruntime":
        from edgebench.backends.onnxruntime import quantize_onnx

        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            quantized = Path(scratch) / "quantized.onnx"
            quantize_onnx(base, recipe.quantization, calibration, quantized)
            model = openvino.convert_model(str(quantized))
    else:
        nncf = require("nncf", "export")
        batches = list(calibration())
        model = nncf.quantize(
            openvino.convert_model(str(base)), nncf.Dataset(batches), subset_size=len(batches),
            preset=nncf.QuantizationPreset(recipe.quantization.preset))
    openvino.save_model(model, str(target), compress_to_fp16=False)
    return target.name


class _OpenvinoSession:
    def __init__(self, compiled: Any) -> None:
        self._request = compiled.create_infer_request()
        self.inputs = specs([_spec(port) for port in compiled.inputs])
        self.outputs = specs([_spec(port) for port in compiled.outputs])
        self._names = [spec.name for spec in self.outputs]

    def infer(self, feeds: Feeds) -> Feeds:
        results = self._request.infer(feeds, share_inputs=True, share_outputs=True)
        return dict(zip(self._names, results.values(), strict=True))


def open_session(entry: Path, recipe: Recipe, *, batch: int, threads: int) -> Session:
    """Open `entry` for synchronous inference with the latency hint, its batch fixed to `batch` where it may vary.

    Raises:
        CannotMeasure: OpenVINO compiled for another precision or device than asked for.
        InvalidInput: OpenVINO cannot read the files.
    """
    return _OpenvinoSession(_compile(entry, recipe, batch=batch, threads=threads))


def _compile(entry: Path, recipe: Recipe, *, batch: int, threads: int, profile: bool = False) -> Any:
    openvino = require("openvino", "openvino")
    core = openvino.Core()
    try:
        model = core.read_model(str(entry))
        for port in model.inputs:
            if port.partial_shape.rank.is_static and port.partial_shape[0].is_dynamic:
                model.reshape({port.any_name: [batch, *list(port.partial_shape)[1:]]})
        compiled = core.compile_model(model, "CPU", {
            "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": _HINT[recipe.precision],
            "INFERENCE_NUM_THREADS": threads, "PERF_COUNT": profile})
    except RuntimeError as error:
        raise InvalidInput(f"OpenVINO cannot load {entry}: {' '.join(str(error).split())}") from error
    devices = compiled.get_property("EXECUTION_DEVICES")
    if list(devices) != ["CPU"]:
        raise CannotMeasure(f"asked OpenVINO for CPU, but it executes on {', '.join(devices)}")
    return compiled


def executed_precision(entry: Path, recipe: Recipe, feeds: Feeds, *, threads: int) -> ExecutedPrecision:
    """Return the precision of the executed kernels, from a compiled model of its own with counters on."""
    batch = len(next(iter(feeds.values())))
    request = _compile(entry, recipe, batch=batch, threads=threads, profile=True).create_infer_request()
    for _ in range(3):
        request.infer(feeds)
    layers = []
    for info in request.profiling_info:
        if info.status.name != "EXECUTED":
            continue
        suffix = re.search(r"_([a-z]+\d+)$", info.exec_type.lower())
        precision = _KERNEL.get(suffix.group(1) if suffix else "", "fp32")
        compute = any(kind in info.node_type for kind in _COMPUTE)
        layers.append(Layer(precision, info.real_time.total_seconds(), compute))
    return summarize_precision(recipe.precision, layers,
                               "kernel names in OpenVINO's own counters of the third inference")


def _spec(port: Any) -> tuple[str, object, list[object]]:
    shape = [size.get_length() if size.is_static else "?" for size in port.partial_shape]
    return port.any_name, port.element_type.to_dtype(), shape
