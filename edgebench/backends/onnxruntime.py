"""ONNX Runtime: FP32 and INT8 (Q/DQ) ONNX files on CPUs."""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgebench.backends import Batches, Feeds, Layer, Session, specs, summarize_precision
from edgebench.errors import CannotMeasure, InvalidInput, require
from edgebench.recipe import Precision, Quantization, Recipe
from edgebench.record import ExecutedPrecision, TensorSpec

CPU = "CPUExecutionProvider"
_NUMPY = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(double)": "float64",
          "tensor(uint8)": "uint8", "tensor(int8)": "int8", "tensor(int32)": "int32", "tensor(int64)": "int64"}
_PRECISION: dict[str, Precision] = {"float": "fp32", "double": "fp32", "float16": "fp16", "bfloat16": "bf16",
                                    "uint8": "int8", "int8": "int8"}
# Kernels that multiply and add: their precision is the one that the recipe asked for.
_COMPUTE = ("Conv", "Gemm", "MatMul", "QGemm")


def packages() -> dict[str, str]:
    """Return the version of ONNX Runtime."""
    return {"onnxruntime": str(require("onnxruntime", "onnxruntime").__version__)}


def build(base: Path, recipe: Recipe, calibration: Batches | None, folder: Path) -> str:
    """Write ``model.onnx`` into `folder`: `base` as it is, or quantized.

    Raises:
        InvalidInput: The recipe asks for a precision that this backend cannot build.
    """
    onnx = require("onnx", "export")
    target = folder / "model.onnx"
    if recipe.precision == "fp32":
        save_onnx(onnx.load(str(base)), target)
    elif recipe.quantization is not None and calibration is not None:
        quantize_onnx(base, recipe.quantization, calibration, target)
    else:
        raise InvalidInput(f"recipe {recipe.id!r}: ONNX Runtime on CPUs builds fp32 and int8, not {recipe.precision}")
    return target.name


def save_onnx(model: Any, target: Path) -> None:
    """Write an ONNX model as one file, or with its weights beside it where one file would exceed protobuf's 2 GB."""
    onnx = require("onnx", "export")
    if model.ByteSize() < 2**31 - 2**20:
        onnx.save(model, str(target))
    else:
        onnx.save(model, str(target), save_as_external_data=True, location=f"{target.name}.data")


def quantize_onnx(base: Path, quantization: Quantization, calibration: Batches, target: Path) -> None:
    """Quantize `base` statically to Q/DQ form and write it to `target`."""
    tools = require("onnxruntime.quantization", "export")
    shapes = require("onnxruntime.quantization.shape_inference", "export")

    class Reader(tools.CalibrationDataReader):  # type: ignore[name-defined,misc]  # the class is known only at run time
        def __init__(self) -> None:
            self.batches: Iterator[Feeds] = calibration()

        def get_next(self) -> Feeds | None:
            return next(self.batches, None)

    method = {"minmax": tools.CalibrationMethod.MinMax, "entropy": tools.CalibrationMethod.Entropy,
              "percentile": tools.CalibrationMethod.Percentile}[quantization.calibrator]
    kind = {"uint8": tools.QuantType.QUInt8, "int8": tools.QuantType.QInt8}
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch, warnings.catch_warnings():
        # The quantizer converts NumPy scalars in ways that newer NumPy warns about; nothing a user could act on.
        warnings.simplefilter("ignore", DeprecationWarning)
        prepared = Path(scratch) / "prepared.onnx"
        shapes.quant_pre_process(str(base), str(prepared), skip_symbolic_shape=True)
        tools.quantize_static(
            str(prepared), str(target), Reader(), quant_format=tools.QuantFormat.QDQ,
            per_channel=quantization.per_channel, activation_type=kind[quantization.activations],
            weight_type=kind[quantization.weights], calibrate_method=method)


class _OnnxSession:
    def __init__(self, session: Any) -> None:
        self._run = session.run
        self.inputs = _specs(session.get_inputs())
        self.outputs = _specs(session.get_outputs())
        self._names = [spec.name for spec in self.outputs]

    def infer(self, feeds: Feeds) -> Feeds:
        return dict(zip(self._names, self._run(self._names, feeds), strict=True))


def open_session(entry: Path, recipe: Recipe, *, batch: int, threads: int) -> Session:
    """Open `entry` on exactly the execution providers that the recipe names; the CPU where it names none.

    Raises:
        CannotMeasure: A provider is missing or did not take the model: its numbers would be another device's.
        InvalidInput: ONNX Runtime cannot load the file.
    """
    return _OnnxSession(_open(entry, recipe, batch=batch, threads=threads))


def _open(entry: Path, recipe: Recipe, *, batch: int, threads: int, profile: Path | None = None) -> Any:
    runtime = require("onnxruntime", "onnxruntime")
    wanted = list(recipe.providers) or [CPU]
    available = runtime.get_available_providers()
    for provider in wanted:
        if provider not in available:
            raise CannotMeasure(f"execution provider {provider!r} is not in this build of ONNX Runtime",
                                f"it has: {', '.join(available)}")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_free_dimension_override_by_name("batch", batch)
    if CPU not in wanted:
        # Listing the CPU provider together with this key is an error of its own.
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    try:
        session = runtime.InferenceSession(str(entry), options, providers=wanted)
    except _failures() as error:
        text = " ".join(str(error).split())
        if CPU not in wanted:
            raise CannotMeasure(f"{entry}: {', '.join(wanted)} did not take the model: {text}") from error
        raise InvalidInput(f"ONNX Runtime cannot load {entry}: {text}") from error
    if session.get_providers()[: len(wanted)] != wanted:
        raise CannotMeasure(f"asked for {', '.join(wanted)}, but the session runs on "
                            f"{', '.join(session.get_providers())}",
                            "a fallback would be measured under the wrong name; repair the provider or drop the recipe")
    return session


def executed_precision(entry: Path, recipe: Recipe, feeds: Feeds, *, threads: int) -> ExecutedPrecision:
    """Return the precision of the executed kernels, from a profiled session of its own."""
    batch = len(next(iter(feeds.values())))
    with tempfile.TemporaryDirectory() as scratch:
        session = _open(entry, recipe, batch=batch, threads=threads, profile=Path(scratch) / "profile")
        for _ in range(3):
            session.run(None, feeds)
        events = json.loads(Path(session.end_profiling()).read_text())
    layers = []
    for event in events:
        if event.get("cat") != "Node" or not event["name"].endswith("_kernel_time"):
            continue
        arguments = event["args"]
        types = [next(iter(shape)) for shape in arguments.get("input_type_shape", []) if shape]
        precision = _PRECISION.get(types[0] if types else "", "fp32")
        name = arguments["op_name"]
        layers.append(Layer(precision, event["dur"] * 1e-6, any(kind in name for kind in _COMPUTE)))
    return summarize_precision(recipe.precision, layers[len(layers) * 2 // 3:],
                               "input types of the kernels in ONNX Runtime's own profile of the third inference")


def _failures() -> tuple[type[Exception], ...]:
    state = require("onnxruntime.capi.onnxruntime_pybind11_state", "onnxruntime")
    names = ("EPFail", "Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NoModel", "NoSuchFile",
             "NotImplemented", "RuntimeException")
    return tuple(getattr(state, name) for name in names)


def _specs(nodes: list[Any]) -> tuple[TensorSpec, ...]:
    return specs([(node.name, _NUMPY.get(node.type, "object"), list(node.shape)) for node in nodes])
