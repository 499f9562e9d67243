"""ONNX Runtime: ONNX files on CPUs, and on NVIDIA GPUs through its CUDA and TensorRT execution providers.

A node on a provider that the recipe does not name is an error: its numbers would be another device's.
"""

from __future__ import annotations

import json
import platform
import re
import statistics
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from edgebench import environment
from edgebench.backends import Batches, Feeds, Session, ort_gpu, specs
from edgebench.backends.layers import Layer, profile, summarize_precision
from edgebench.errors import CannotMeasure, EdgebenchError, InvalidInput, Unending, require
from edgebench.recipe import Precision, Recipe, Setting
from edgebench.record import ExecutedPrecision, TensorSpec, load_artifact
from edgebench.runtime_messages import shown, useful

CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
DOMAINS = ("com.microsoft", "ai.onnx.ml")
"""Domains whose operators ONNX Runtime adds to ONNX's own."""
_GPU = (TENSORRT, CUDA)
_NUMPY = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(double)": "float64",
          "tensor(uint8)": "uint8", "tensor(int8)": "int8", "tensor(int32)": "int32", "tensor(int64)": "int64"}
# From wide to narrow: a kernel's precision is the widest of what it reads and writes.
_PRECISION: dict[str, Precision] = {"double": "fp32", "float": "fp32", "bfloat16": "bf16", "float16": "fp16",
                                    "float8e4m3fn": "fp8", "uint8": "int8", "int8": "int8"}
# Kernels that multiply and add: their precision is the one that the recipe asked for.
_COMPUTE = ("Conv", "Gemm", "MatMul", "Attention")
# They quantize their float inputs themselves.
_DYNAMIC = ("Integer", "DynamicQuantize")
# Each lets TensorRT choose a layer's precision; without any, the provider builds strongly typed networks.
_WEAK_TYPING = ("trt_fp16_enable", "trt_bf16_enable", "trt_int8_enable", "trt_fp8_enable")
_CUDA_GRAPHS = ("enable_cuda_graph", "trt_cuda_graph_enable")
_PROFILED, _WARM = 5, 2
FIRST_INFERENCE_LIMIT_S = 300.0
"""Of a session on the CPU; every process runs one before it relies on a model."""
WATCH_S = 0.5
_KERNEL = "_kernel_time"
"""How the profile's events of kernels end, after the node's name."""


def packages() -> dict[str, str]:
    """Return the version of ONNX Runtime."""
    return {"onnxruntime": str(require("onnxruntime", "onnxruntime").__version__)}


def build(base: Path, recipe: Recipe, calibration: Batches | None, folder: Path) -> str:
    """Write ``model.onnx`` into `folder`: `base` as it is, typed, or quantized.

    Raises:
        InvalidInput: Images to choose ranges from are missing.
    """
    from edgebench import graphs, quantize, typed

    target = folder / "model.onnx"
    if recipe.quantization is not None:
        if calibration is None:
            raise InvalidInput(f"recipe {recipe.id!r} needs quantization-calibration images",
                               "pass --calibration-data DIR")
        quantize.quantize(base, recipe, calibration, target)
        return target.name
    model = graphs.load_whole(base)
    precision = recipe.precision
    graphs.save(typed.convert(model, precision) if precision in ("fp16", "bf16") else model, target)
    return target.name


def reason_against(recipe: Recipe) -> str | None:
    """Return why this recipe cannot run here, from the providers, the GPU and the CPU's kernels; None if it can."""
    runtime = require("onnxruntime", "onnxruntime")
    wanted = _wanted(recipe)
    missing = _missing(runtime, wanted)
    if missing is not None:
        return missing
    if set(wanted) & set(_GPU) and (problem := ort_gpu.gpu()[1]) is not None:
        return f"{wanted[0]} needs an NVIDIA GPU: {problem}"
    if wanted != [CPU]:
        return None
    kernels = recipe.float_precision if recipe.precision in ("int8", "fp8") else recipe.precision
    if recipe.precision == "fp8":
        return "ONNX Runtime has no FP8 kernels for CPUs"
    if kernels == "bf16" or (kernels == "fp16" and "asimdhp" not in _arm_features()):
        return (f"ONNX Runtime has no {kernels.upper()} kernels for this CPU ({platform.machine()}): it would cast to "
                "FP32 and compute in that")
    return None


def _arm_features() -> set[str]:
    """Return the flags of an Arm CPU; ``asimdhp`` is what half-precision kernels need."""
    if platform.machine() not in ("aarch64", "arm64"):
        return set()
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return set()
    return {flag for line in text.splitlines() if line.startswith("Features") for flag in line.split()}


def _wanted(recipe: Recipe) -> list[str]:
    return list(recipe.providers) or [CPU]


def _missing(runtime: Any, wanted: list[str]) -> str | None:
    available = runtime.get_available_providers()
    missing = [provider for provider in wanted if provider not in available]
    if not missing:
        return None
    return (f"execution provider {missing[0]!r} is not in this build of ONNX Runtime, which has "
            f"{', '.join(available)}")


class _HostSession:
    """Inputs and outputs in host memory; ONNX Runtime copies where its provider needs it."""

    def __init__(self, session: Any) -> None:
        self._run = session.run
        self.inputs = _specs(session.get_inputs())
        self.outputs = _specs(session.get_outputs())
        self._names = [spec.name for spec in self.outputs]
        self._has_answered = False

    def infer(self, feeds: Feeds) -> Feeds:
        try:
            if not self._has_answered:
                return dict(zip(self._names, self._first(feeds), strict=True))
            return dict(zip(self._names, self._run(self._names, feeds), strict=True))
        except _failures() as error:
            raise CannotMeasure(f"ONNX Runtime failed in an inference: {useful(error)}") from error

    def _first(self, feeds: Feeds) -> Any:
        # A graph may hold a loop without an end; only another thread can stop the runtime then.
        options, over, beyond = require("onnxruntime", "onnxruntime").RunOptions(), threading.Event(), []
        begin, memory = time.monotonic(), environment.usable_memory_bytes()

        def watch() -> None:
            while not over.wait(WATCH_S):
                if time.monotonic() - begin > FIRST_INFERENCE_LIMIT_S:
                    beyond.append(f"the first inference did not end within {FIRST_INFERENCE_LIMIT_S:g} s")
                elif memory is not None and (environment.own_memory_bytes() or 0) > memory:
                    beyond.append("the first inference took all the memory that was free")
                if beyond:
                    options.terminate = True
                    return

        thread = threading.Thread(target=watch, name="edgebench-first-inference", daemon=True)
        thread.start()
        try:
            answers = self._run(self._names, feeds, options)
        except _failures() as error:
            if beyond:
                raise Unending(beyond[0], "does the graph hold a loop without an end? leave the model out") from error
            raise
        finally:
            over.set()
            thread.join()
        self._has_answered = True
        return answers


class _GpuSession(ort_gpu.DeviceSession):
    def infer(self, feeds: Feeds) -> Feeds:
        try:
            return super().infer(feeds)
        except _failures() as error:
            raise CannotMeasure(f"ONNX Runtime failed in an inference on the GPU: {useful(error)}",
                                "out of memory? try a smaller --batch") from error


def open_session(entry: Path, recipe: Recipe, *, batch: int, threads: int, build_number: int = 0) -> Session:
    """Open `entry` on exactly the execution providers that the recipe names; the CPU where it names none.

    On GPUs the first inferences have run when it returns: engines are built (or come from their cache) and CUDA graphs
    captured. FP32 is not rounded to TF32 by the CUDA provider unless the recipe's options say ``use_tf32``.

    Args:
        entry: The ONNX file.
        recipe: Names providers and their options.
        batch: Images per inference.
        threads: CPU threads.
        build_number: Above 0: another engine of the same artifact, in a cache of its own.

    Raises:
        CannotMeasure: A provider is missing or did not take every node: its numbers would be another device's.
        InvalidInput: ONNX Runtime cannot load the file.
    """
    runtime = require("onnxruntime", "onnxruntime")
    options = _provider_options(entry, recipe, batch, build_number)
    session = _open(entry, recipe, options, batch=batch, threads=threads)
    first = _wanted(recipe)[0]
    if first not in _GPU:
        return _HostSession(session)
    return _GpuSession(
        runtime, session, inputs=_specs(session.get_inputs()), outputs=_specs(session.get_outputs()), provider=first,
        device=int(options[first].get("device_id", 0)), batch=batch)


def built_on_opening(recipe: Recipe, batch: int) -> str | None:
    """Return what opening a session builds: the TensorRT provider's engines, unless the recipe keeps none."""
    kept = recipe.provider_options.get(TENSORRT, {}).get("trt_engine_cache_enable", True)
    return f"the engines for batch {batch}" if TENSORRT in recipe.providers and kept else None


def prepare(entry: Path, recipe: Recipe, *, batch: int, build_number: int = 0) -> None:
    """Have the TensorRT provider build its engines into their cache."""
    open_session(entry, recipe, batch=batch, threads=1, build_number=build_number)


def open_in_float(entry: Path, *, batch: int, threads: int) -> Session:
    """Open another runtime's ONNX file on the CPU, computing what lies between its Q/DQ nodes in FP32.

    What the file says, whatever the CPU: without VNNI the integer kernels add products in 16 bits, and the signed
    activations of TensorRT's dialect saturate there until no answer is right.

    Raises:
        InvalidInput: ONNX Runtime cannot load the file.
    """
    plain = Recipe(id="in-float", title="", purpose="", checked_on="", backend="onnxruntime", precision="fp32")
    return _HostSession(_open(entry, plain, {}, batch=batch, threads=threads, integer_kernels=False))


def _provider_options(entry: Path, recipe: Recipe, batch: int, build_number: int) -> dict[str, dict[str, Setting]]:
    options = {provider: dict(recipe.provider_options.get(provider, {})) for provider in _wanted(recipe)}
    if CUDA in options:
        options[CUDA].setdefault("use_tf32", False)
    if TENSORRT in options and "trt_engine_cache_enable" not in options[TENSORRT]:
        options[TENSORRT] |= ort_gpu.engine_cache(entry, options[TENSORRT], packages()["onnxruntime"], batch,
                                                  build_number)
    return options


def _open(entry: Path, recipe: Recipe, settings: Mapping[str, Mapping[str, Setting]], *, batch: int, threads: int,
          profile: Path | None = None, integer_kernels: bool = True) -> Any:
    runtime = require("onnxruntime", "onnxruntime")
    wanted = _wanted(recipe)
    missing = _missing(runtime, wanted)
    if missing is not None:
        raise CannotMeasure(missing, "install a build of ONNX Runtime that has it, or drop the recipe")
    if set(wanted) & set(_GPU) and hasattr(runtime, "preload_dlls"):
        # CUDA's libraries may come from Python packages, which the loader does not search.
        runtime.preload_dlls()
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.add_free_dimension_override_by_name("batch", batch)
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    if CPU not in wanted:
        # Listing the CPU provider together with this key is an error of its own.
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    if recipe.precision == "int8" and CPU in wanted:
        # A linear layer's product and bias would become a float Gemm before the quantized product is recognized: with
        # a fixed batch every layer of a transformer then runs in FP32, at half the speed.
        options.add_session_config_entry("optimization.disable_specified_optimizers", "MatMulAddFusion")
    if not integer_kernels:
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    try:
        # Left alone, ONNX Runtime prints an error and goes on with the CPU, at start as well as in an inference.
        session = runtime.InferenceSession(
            str(entry), options, enable_fallback=0,
            providers=[(name, {key: _setting(value) for key, value in settings[name].items()})
                       if settings.get(name) else name for name in wanted])
    except _failures() as error:
        raise _refusal(entry, wanted, error) from error
    if session.get_providers()[: len(wanted)] != wanted:
        raise CannotMeasure(f"asked for {', '.join(wanted)}, but the session runs on "
                            f"{', '.join(session.get_providers())}",
                            "a fallback would be measured under the wrong name; repair the provider or drop the recipe")
    strangers = {name: nodes for name, nodes in (_assignment(session) or {}).items() if name not in wanted}
    if strangers:
        told = "; ".join(f"{name} took {len(nodes)}: {_named(nodes)}" for name, nodes in strangers.items())
        raise CannotMeasure(f"{shown(entry)}: asked for {', '.join(wanted)} alone, but {told}",
                            "name that provider in the recipe too, or keep these operators out of the model")
    return session


def _setting(value: Setting) -> str:
    return str(int(value)) if isinstance(value, bool) else str(value)


def _assignment(session: Any) -> dict[str, list[tuple[str, str]]] | None:
    """Return (name, operator) of the nodes by provider; None where this version of ONNX Runtime cannot tell."""
    if not hasattr(session, "get_provider_graph_assignment_info"):
        return None
    found: dict[str, list[tuple[str, str]]] = {}
    for part in session.get_provider_graph_assignment_info():
        found.setdefault(part.ep_name, []).extend((node.name, node.op_type) for node in part.get_nodes())
    return found


def _named(nodes: list[tuple[str, str]]) -> str:
    shown = ", ".join(f"{operator} {name!r}" for name, operator in nodes[:5])
    return shown + (f" and {len(nodes) - 5} more" if len(nodes) > 5 else "")


def _refusal(entry: Path, wanted: list[str], error: Exception) -> EdgebenchError:
    """Return what is wrong with a file that no session could be made from."""
    text, model = useful(error), shown(entry)
    operator = re.search(r"implementation for ([\w.:]+)\(|error: ([\w.:]+)\(-?\d+\) is not a registered|"
                         r"No Op registered for ([\w.:]+)", text)
    if operator is not None:
        name = next(filter(None, operator.groups()))
        return InvalidInput(f"ONNX Runtime cannot load {model}: {', '.join(wanted)} cannot execute operator {name!r} "
                            f"({text})", "export with standard operators of an opset that this version knows")
    if "external" in text.lower() and not entry.with_name(f"{entry.name}.data").exists():
        return InvalidInput(f"ONNX Runtime cannot load {model}: its weights lie in another file, which is missing "
                            f"({text})", "copy the whole artifact folder, external data included")
    if wanted != [CPU]:
        hint = "switch CUDA graphs off in the recipe's provider_options" if "graph capture" in text else \
            "no node may run on another provider than the recipe's"
        return CannotMeasure(f"{model}: {', '.join(wanted)} did not take the model: {text}", hint)
    return InvalidInput(f"ONNX Runtime cannot load {model}: {text}")


def executed_precision(entry: Path, recipe: Recipe, feeds: Feeds, *, threads: int) -> ExecutedPrecision:
    """Return the precision of the executed kernels and the provider of every node, from a session of its own.

    Raises:
        CannotMeasure: A provider runs whole subgraphs and does not tell in which precision.
    """
    batch = len(next(iter(feeds.values())))
    settings = _provider_options(entry, recipe, batch, 0)
    # A replayed graph has no kernels of its own in the profile.
    plain = {name: {key: False if key in _CUDA_GRAPHS else value for key, value in one.items()}
             for name, one in settings.items()}
    with tempfile.TemporaryDirectory() as scratch:
        session = _open(entry, recipe, plain, batch=batch, threads=threads, profile=Path(scratch) / "profile")
        for _ in range(_PROFILED):
            session.run(None, feeds)
        events = [event for event in json.loads(Path(session.end_profiling()).read_text())
                  if event.get("cat") == "Node" and event["name"].endswith(_KERNEL)]
    assigned = _assignment(session)
    placement = {name: len(nodes) for name, nodes in assigned.items()} if assigned is not None else \
        dict(Counter(event["args"]["provider"] for event in events[: len(events) // _PROFILED]))
    if set(placement) - {CPU, CUDA}:
        found = _compiled_precision(entry, recipe, set(placement) - {CPU, CUDA})
    else:
        found = _kernels_precision(recipe.precision, events, timed=CUDA not in placement)
    return replace(found, placement=placement, evidence=found.evidence + _tf32(set(placement), settings))


def _tf32(providers: set[str], settings: Mapping[str, Mapping[str, Setting]]) -> str:
    """Return, as an addition to the evidence, whether FP32 operands are rounded to TF32's 10 bits of mantissa."""
    overridden = ort_gpu.tf32_is_off()
    if TENSORRT in providers and not overridden:
        return "; TensorRT rounds FP32 operands to TF32 where the GPU can: the provider has no option against it"
    if CUDA in providers and not overridden and settings[CUDA]["use_tf32"] not in (False, 0, "0"):
        return "; FP32 operands are rounded to TF32 where the GPU can (use_tf32)"
    return "; TF32 is off" if providers & set(_GPU) else ""


def _kernels_precision(requested: Precision, events: list[Any], *, timed: bool) -> ExecutedPrecision:
    durations: dict[int, list[float]] = {}
    arguments: dict[int, Any] = {}
    names: dict[int, str] = {}
    for event in events:
        node = int(event["args"]["node_index"])
        durations.setdefault(node, []).append(event["dur"] * 1e-6)
        arguments[node] = event["args"]
        names[node] = event["name"].removesuffix(_KERNEL)
    layers, rows = [], []
    for node, one in arguments.items():
        name = one["op_name"]
        compute = any(kind in name for kind in _COMPUTE)
        precision = _kernel_precision(name, _types(one, "input_type_shape"), _types(one, "output_type_shape"),
                                      compute=compute)
        time_s = statistics.median(durations[node][_WARM:] or durations[node])
        rows.append((names[node], name, precision or _other_type(one), time_s if timed else None))
        if precision is not None:
            layers.append(Layer(precision=precision, time_s=time_s if timed else None, compute=compute))
    # The host only enqueues what a GPU executes: the profile's times are not the kernels'.
    evidence = "types of the kernels in ONNX Runtime's own profile, without those for shapes and indices"
    times = f"; times are medians of {_PROFILED - _WARM} inferences" if timed else ""
    return replace(summarize_precision(requested, layers, evidence + times), profile=profile(rows))


def _types(arguments: Any, key: str) -> list[str]:
    return [next(iter(shape)) for shape in arguments.get(key, []) if shape]


def _other_type(arguments: Any) -> str:
    """Return the first type that a kernel for shapes, indices or masks reads or writes."""
    return next(iter((*_types(arguments, "input_type_shape"), *_types(arguments, "output_type_shape"))), "none")


def _kernel_precision(name: str, inputs: list[str], outputs: list[str], *, compute: bool) -> Precision | None:
    """Return what a kernel computes in; None for one that handles shapes, indices or masks alone."""
    if any(word in name for word in _DYNAMIC):
        return "int8"
    # Scales and zero points follow the first input. What a product writes may be wider than what it multiplies.
    seen = inputs[:1] if compute else [*inputs[:1], *outputs[:1]]
    return next((precision for kind, precision in _PRECISION.items() if kind in seen), None)


def _compiled_precision(entry: Path, recipe: Recipe, providers: set[str]) -> ExecutedPrecision:
    """Return the types of the file's nodes where the provider must keep to them."""
    options = recipe.provider_options.get(TENSORRT, {})
    weak = [key for key in _WEAK_TYPING if options.get(key) not in (None, False, 0, "0", "False", "false")]
    if providers != {TENSORRT} or weak:
        what = f"with {weak[0]} it chooses each layer's precision itself" if weak else "it runs whole subgraphs"
        raise CannotMeasure(f"{recipe.id}: {', '.join(sorted(providers))} does not tell in which precision it executes "
                            f"({what}), so {recipe.precision} cannot be proven",
                            "leave the option out: a typed ONNX file is built with strong typing")
    found = _written(entry, recipe)
    return replace(found, evidence="types of the nodes in the ONNX file; the TensorRT provider builds it with strong "
                                   "typing, so that no layer may take another")


def _written(entry: Path, recipe: Recipe) -> ExecutedPrecision:
    """Return the types of a file's nodes: from its artifact's manifest, for boards have no onnx, else from the file."""
    if (entry.parent / "manifest.json").is_file():
        artifact = load_artifact(entry.parent)
        if artifact.precision is not None and artifact.entry == entry.name:
            return artifact.precision
    from edgebench import graphs

    return graphs.static_precision(graphs.load(entry), recipe.precision)


@cache
def newest_versions(ir: int, opset: int) -> tuple[int, int]:
    """Return the newest IR version and opset that this ONNX Runtime loads, `ir` and `opset` at most.

    It is asked with a graph of one node: its refusal names the number.
    """
    far = 10_000
    refusals = {"ir": re.search(r"max supported IR version: (\d+)", _load_error(far, 13)),
                "opset": re.search(r"is till opset (\d+)", _load_error(8, far))}
    return (min(ir, int(refusals["ir"][1])) if refusals["ir"] else ir,
            min(opset, int(refusals["opset"][1])) if refusals["opset"] else opset)


def _load_error(ir: int, opset: int) -> str:
    """Return what ONNX Runtime says to a graph of one node with these versions; empty where it takes it."""
    onnx, runtime = require("onnx", "export"), require("onnxruntime", "onnxruntime")
    make, kind = onnx.helper, onnx.TensorProto.FLOAT
    graph = make.make_graph([make.make_node("Relu", ["x"], ["y"])], "probe", [make.make_tensor_value_info(
        "x", kind, [1])], [make.make_tensor_value_info("y", kind, [1])])
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", opset)], ir_version=ir)
    options = runtime.SessionOptions()
    options.log_severity_level = 4
    try:
        runtime.InferenceSession(model.SerializeToString(), options, providers=[CPU])
    except _failures() as error:
        return str(error)
    return ""


@cache
def own_operators() -> frozenset[tuple[str, str]]:
    """Return (domain, name) of the operators that ONNX Runtime adds to ONNX's own, those of its optimizer left out."""
    state = require("onnxruntime.capi.onnxruntime_pybind11_state", "onnxruntime")
    listed = state.get_all_operator_schema() if hasattr(state, "get_all_operator_schema") else []
    return frozenset((entry.domain, entry.name) for entry in listed if entry.domain in DOMAINS)


def _failures() -> tuple[type[Exception], ...]:
    state = require("onnxruntime.capi.onnxruntime_pybind11_state", "onnxruntime")
    names = ("EPFail", "Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NoModel", "NoSuchFile",
             "NotImplemented", "RuntimeException")
    # Providers that fail to start raise plain errors.
    return (*(getattr(state, name) for name in names), RuntimeError, ValueError)


def _specs(nodes: list[Any]) -> tuple[TensorSpec, ...]:
    return specs([(node.name, _NUMPY.get(node.type, "object"), list(node.shape)) for node in nodes])
