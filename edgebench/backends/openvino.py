"""OpenVINO: intermediate representations on CPUs, in FP32, half precisions and INT8."""

from __future__ import annotations

import re
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from edgebench.backends import Batches, Feeds, Session, specs
from edgebench.backends.layers import Layer, profile, summarize_precision
from edgebench.errors import CannotMeasure, InvalidInput, require
from edgebench.recipe import Precision, Recipe
from edgebench.record import ExecutedPrecision
from edgebench.runtime_messages import shown, useful

# Without a hint OpenVINO runs FP32 models in bf16 on CPUs that can: every recipe says what it wants.
_HINT = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}
_CAPABILITY = {"bf16": "BF16", "fp16": "FP16"}
_KERNEL: dict[str, Precision] = {"f64": "fp32", "f32": "fp32", "bf16": "bf16", "f16": "fp16", "i8": "int8",
                                 "u8": "int8"}
_WIDTH: dict[Precision, int] = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1, "fp8": 1}
_COMPUTE = ("Convolution", "Deconvolution", "FullyConnected", "MatMul", "ScaledDotProductAttention", "MHA")
_PROFILED, _WARM = 5, 2


def packages() -> dict[str, str]:
    """Return the version of OpenVINO."""
    return {"openvino": str(require("openvino", "openvino").__version__).partition("-")[0]}


def reason_against(recipe: Recipe) -> str | None:
    """Return why this recipe cannot run here, from what the CPU plugin says it is capable of; None if it can."""
    if recipe.precision == "fp8":
        return "OpenVINO has no FP8 kernels for CPUs"
    capability = _CAPABILITY.get(_float_precision(recipe))
    found = require("openvino", "openvino").Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if capability is not None and capability not in found:
        return (f"OpenVINO has no {capability} kernels for this CPU, only {', '.join(found)}: it would compute in FP32")
    return None


def _float_precision(recipe: Recipe) -> str:
    return recipe.float_precision if recipe.precision in ("int8", "fp8") else recipe.precision


def build(base: Path, recipe: Recipe, calibration: Batches | None, folder: Path) -> str:
    """Write ``model.xml`` and ``model.bin`` into `folder`: FP16 with weights of that type, or quantized.

    Raises:
        InvalidInput: OpenVINO does not know an operator, or images to choose ranges from are missing.
    """
    openvino = require("openvino", "openvino")
    target = folder / "model.xml"
    with tempfile.TemporaryDirectory(dir=folder, prefix=".build-") as scratch:
        if recipe.quantization is None:
            model = _convert(base)
        elif calibration is None:
            raise InvalidInput(f"recipe {recipe.id!r} needs quantization-calibration images",
                               "pass --calibration-data DIR")
        elif recipe.quantization.quantizer == "onnxruntime":
            from edgebench import quantize

            quantized = Path(scratch) / "quantized.onnx"
            # The plugin's precision hint makes the float parts what the recipe wants.
            quantize.quantize(base, replace(recipe, float_precision="fp32"), calibration, quantized)
            model = _convert(quantized)
        else:
            model = _with_nncf(base, recipe, calibration, Path(scratch))
        openvino.save_model(model, str(target), compress_to_fp16=recipe.precision == "fp16")
    return target.name


def _convert(path: Path) -> Any:
    openvino, frontend = require("openvino", "openvino"), require("openvino.frontend", "openvino")
    try:
        return openvino.convert_model(str(path))
    except (RuntimeError, frontend.GeneralFailure, frontend.InitializationFailure, frontend.NotImplementedFailure,
            frontend.OpConversionFailure, frontend.OpValidationFailure) as error:
        raise _refusal(path, error) from error


def _with_nncf(base: Path, recipe: Recipe, calibration: Batches, scratch: Path) -> Any:
    """Return the model quantized by NNCF, with the family's rules for what stays float."""
    from edgebench import graphs, quantize

    nncf = require("nncf", "export")
    assert recipe.quantization is not None
    prepared = quantize.prepare(base, scratch)
    graph = graphs.load(prepared)
    decided = quantize.plan(graph, recipe)
    float_nodes, is_transformer = quantize.nncf_scope(decided, graph)
    model = _convert(prepared)
    # Layer normalisations become several operations without their names.
    unnamed = ["MVN"] if any(one.operator == "LayerNormalization" and not one.quantized
                             for one in decided.decisions) else []
    batches = list(calibration())
    return nncf.quantize(
        model, nncf.Dataset(batches), subset_size=len(batches),
        preset=nncf.QuantizationPreset(recipe.quantization.preset),
        model_type=nncf.ModelType.TRANSFORMER if is_transformer else None,
        ignored_scope=nncf.IgnoredScope(names=_operations(model, graph, set(float_nodes)), types=unnamed,
                                        validate=False))


def _operations(model: Any, graph: Any, nodes: set[str]) -> list[str]:
    """Return the names of OpenVINO's operations that ONNX nodes became."""
    known = {node.name for node in graph.graph.node}
    by_output = {output: node.name for node in graph.graph.node for output in node.output}
    found = []
    for operation in model.get_ordered_ops():
        if operation.get_type_name() in ("Parameter", "Result", "Constant"):
            continue
        name = operation.get_friendly_name()
        # A convolution with a bias becomes "name/WithoutBiases" and an addition.
        origins = {name, name.rpartition("/")[0]} & known
        if not origins:
            # The last operations bear the outputs' names. Names go first: tensors of removed operations are inherited.
            origins = {by_output[one] for port in operation.outputs() for one in port.get_names() if one in by_output}
        if origins and origins <= nodes:
            found.append(name)
    return found


class _OpenvinoSession:
    """One request, fed and read through its tensors: the dictionaries of ``infer`` cost a tenth of a millisecond."""

    def __init__(self, compiled: Any) -> None:
        openvino = require("openvino", "openvino")
        self._tensor = openvino.Tensor
        self._request = compiled.create_infer_request()
        self.inputs = specs([_spec(port) for port in compiled.inputs])
        self.outputs = specs([_spec(port) for port in compiled.outputs])
        self._in = [(spec.name, np.dtype(spec.dtype)) for spec in self.inputs]
        self._out = list(enumerate(spec.name for spec in self.outputs))
        self._fed: list[Any] = []

    def infer(self, feeds: Feeds) -> Feeds:
        request = self._request
        # OpenVINO reads the arrays where they lie, and takes no read-only ones.
        self._fed = [np.require(feeds[name], dtype, ("C_CONTIGUOUS", "WRITEABLE")) for name, dtype in self._in]
        try:
            for place, array in enumerate(self._fed):
                request.set_input_tensor(place, self._tensor(array, shared_memory=True))
            request.start_async()
            request.wait()
        except RuntimeError as error:
            raise CannotMeasure(f"OpenVINO failed in an inference: {useful(error)}") from error
        return {name: request.get_output_tensor(place).data for place, name in self._out}


def open_session(entry: Path, recipe: Recipe, *, batch: int, threads: int, build_number: int = 0) -> Session:
    """Open `entry` for synchronous inference with the latency hint, its batch fixed to `batch` where it may vary.

    Args:
        entry: The ``.xml`` file.
        recipe: Says in which precision to compute.
        batch: Images per inference.
        threads: CPU threads.
        build_number: Nothing is built when an artifact is opened, so all are alike.

    Raises:
        CannotMeasure: OpenVINO compiled for another device than the CPU.
        InvalidInput: OpenVINO cannot read the files.
    """
    del build_number
    return _OpenvinoSession(_compile(entry, recipe, batch=batch, threads=threads))


def _compile(entry: Path, recipe: Recipe, *, batch: int, threads: int, profile: bool = False) -> Any:
    openvino = require("openvino", "openvino")
    if entry.suffix == ".xml" and not entry.with_suffix(".bin").is_file():
        raise InvalidInput(f"{entry.with_suffix('.bin')} is missing: {entry.name} keeps its weights there",
                           "copy the whole artifact folder")
    core = openvino.Core()
    try:
        model = core.read_model(str(entry))
        for port in model.inputs:
            if port.partial_shape.rank.is_static and port.partial_shape[0].is_dynamic:
                model.reshape({port.any_name: [batch, *list(port.partial_shape)[1:]]})
        compiled = core.compile_model(model, "CPU", {
            "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": _HINT[_float_precision(recipe)],
            "INFERENCE_NUM_THREADS": threads, "PERF_COUNT": profile})
    except RuntimeError as error:
        raise _refusal(entry, error) from error
    devices = compiled.get_property("EXECUTION_DEVICES")
    if list(devices) != ["CPU"]:
        raise CannotMeasure(f"asked OpenVINO for CPU, but it executes on {', '.join(devices)}")
    return compiled


def _refusal(path: Path, error: Exception) -> InvalidInput:
    model, text = shown(path), useful(error)
    operators = re.search(r"No conversion rule found for operations: ([^\n]+)", str(error))
    if operators is not None:
        return InvalidInput(f"OpenVINO cannot load {model}: it does not know operator {operators.group(1).strip()}",
                            "export with standard operators of an opset that this version knows")
    if "externally stored data" in str(error):
        return InvalidInput(f"OpenVINO cannot load {model}: its weights lie in another file, which is missing or cut "
                            f"short ({text})", "copy the external-data file beside it")
    return InvalidInput(f"OpenVINO cannot load {model}: {text}")


def executed_precision(entry: Path, recipe: Recipe, feeds: Feeds, *, threads: int) -> ExecutedPrecision:
    """Return the precision of the executed kernels, from the execution graph of a compiled model of its own."""
    batch = len(next(iter(feeds.values())))
    compiled = _compile(entry, recipe, batch=batch, threads=threads, profile=True)
    request = compiled.create_infer_request()
    durations: dict[str, list[float]] = {}
    for number in range(_PROFILED):
        request.infer(dict(feeds))
        for info in request.profiling_info if number >= _WARM else ():
            durations.setdefault(info.node_name, []).append(info.real_time.total_seconds())
    layers, rows = [], []
    for operation in compiled.get_runtime_model().get_ordered_ops():
        about = {key: str(value.value) for key, value in operation.get_rt_info().items()}
        # Constants are folded and inputs only passed on.
        if about.get("execTimeMcs") == "not_executed":
            continue
        precision = _precision(about)
        name = operation.get_friendly_name()
        time_s = statistics.median(durations.get(name, [0.0]))
        rows.append((name, about.get("layerType", "unknown"),
                     precision or about.get("runtimePrecision", "unknown").lower(), time_s))
        if precision is not None:
            layers.append(Layer(precision=precision, compute=about.get("layerType") in _COMPUTE, time_s=time_s))
    found = summarize_precision(
        recipe.precision, layers, "OpenVINO's execution graph (runtime precision and kernel of each layer); times are "
                                  f"medians of {_PROFILED - _WARM} inferences")
    return replace(found, placement=dict.fromkeys(compiled.get_property("EXECUTION_DEVICES"), len(rows)),
                   profile=profile(rows))


def _precision(about: dict[str, str]) -> Precision | None:
    """Return a layer's precision: the wider of what it runs in and its kernel's; None for integers that are indices."""
    suffix = re.search(r"_([a-z]+\d+)$", about.get("primitiveType", "").lower())
    seen = [_KERNEL[name] for name in (about.get("runtimePrecision", "").lower(), suffix.group(1) if suffix else "")
            if name in _KERNEL]
    return max(seen, key=lambda precision: _WIDTH[precision], default=None)


def _spec(port: Any) -> tuple[str, object, list[object]]:
    shape = [size.get_length() if size.is_static else "?" for size in port.partial_shape]
    # Folded layers leave their names on inputs and outputs; the node of the port keeps the model's own.
    own = port.node.friendly_name.partition("/sink_port_")[0]
    return own if own in port.names else port.any_name, port.element_type.to_dtype(), shape
