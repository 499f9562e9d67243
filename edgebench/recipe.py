"""Export recipes: the value types behind the files in ``export/``."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

from edgebench.checks import check

Precision = Literal["fp32", "fp16", "bf16", "int8", "fp8"]
Family = Literal["convnet", "depthwise", "transformer", "convnext"]
"""Kinds of networks with quantization rules of their own; `edgebench.graphs.family` tells one from its graph."""
Setting = str | int | float | bool
_PROCESSORS = {
    **dict.fromkeys(("onnxruntime", "openvino", "CPUExecutionProvider", "XnnpackExecutionProvider",
                     "DnnlExecutionProvider", "ACLExecutionProvider"), "cpu"),
    **dict.fromkeys(("tensorrt", "tensorrt_rtx", "CUDAExecutionProvider", "TensorrtExecutionProvider",
                     "NvTensorRTRTXExecutionProvider"), "gpu")}
_FILE_WORDS = {"path", "paths", "dir", "directory", "folder", "file", "files", "lib", "libs", "library", "prefix"}
"""Words in the names of provider options whose values are files."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantization:
    """How a recipe quantizes: the dialect of its Q/DQ nodes, which layers, and how ranges are chosen."""

    quantizer: Literal["onnxruntime", "nncf"]
    activations: Literal["uint8", "int8", "float8"] = "uint8"
    """``uint8``: asymmetric, what CPU kernels fuse; ``int8`` and ``float8`` (E4M3): symmetric, what TensorRT takes."""
    weights: Literal["int8", "float8"] = "int8"
    """Always symmetric."""
    per_channel: bool = True
    """One weight range per output channel; per tensor otherwise."""
    reduce_range: bool = False
    """Weights of 7 bits: x86 CPUs without VNNI sum two products in 16 bits, which 8 bits saturate."""
    bias: Literal["int32", "float"] = "int32"
    """``int32``: quantized with the product of both scales, for CPU kernels; ``float``: left alone, for TensorRT."""
    calibrator: Literal["minmax", "percentile", "entropy"] = "minmax"
    percentile: float = 99.999
    """Of the magnitudes that the range covers, for calibrator ``percentile``."""
    images: int = 128
    """Images drawn from the quantization-calibration data."""
    seed: int = 0
    """Of the draw."""
    preset: Literal["performance", "mixed"] = "performance"
    """NNCF's: symmetric activations, or asymmetric ones."""
    family: Literal["auto", Family] = "auto"
    """Whose rules say which layers stay float; ``auto``: as the graph looks."""
    operators: tuple[str, ...] = ()
    """ONNX operators to quantize, instead of the family's."""
    keep_float: tuple[str, ...] = ()
    """Names of nodes that stay float in any case; ``*`` stands for any characters."""

    def __post_init__(self) -> None:
        check(self.images >= 1, "at least 1 image", self.images)
        check(50 < self.percentile <= 100, "a percentile above 50 and up to 100", self.percentile)
        check((self.activations == "float8") == (self.weights == "float8"), "float8 for both or neither",
              (self.activations, self.weights))


@dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    """How TensorRT builds an engine from the recipe's ONNX file on the device."""

    batches: tuple[int, int, int] = (1, 8, 32)
    """Fewest, usual and most images per inference: the optimization profile."""
    workspace_bytes: int | None = None
    """Scratch memory that layers may use; None: as much as there is."""
    optimization_level: int = 3
    """0 (quick to build) to 5."""
    timing_iterations: int = 8
    """Timings that each tactic is judged by."""
    typing: Literal["strong", "weak"] = "strong"
    """``strong``: types are those of the ONNX file; ``weak``: builder flags, where it must be."""
    version_compatible: bool = False
    """Whether later TensorRT versions may load the engine."""
    hardware_compatibility: Literal["none", "ampere_plus", "same_compute_capability"] = "none"
    """Which other GPUs may load the engine."""
    dla_core: int | None = None
    """Deep-learning accelerator to build for, in FP16; layers that it does not take run on the GPU and are reported."""
    compute_capabilities: tuple[str, ...] = ()
    """Targets such as ``8.9`` that TensorRT-RTX builds for ahead of time; empty: its default."""
    cuda_graph: bool = True
    """Whether inferences replay a captured CUDA graph."""
    time_limit_s: float = 1800.0
    """A build that takes longer is stopped and fails."""

    def __post_init__(self) -> None:
        low, usual, high = self.batches
        check(1 <= low <= usual <= high, "batches in rising order from 1", self.batches)
        check(0 <= self.optimization_level <= 5, "an optimization_level of 0 to 5", self.optimization_level)
        check(self.timing_iterations >= 1, "timing_iterations of 1 or more", self.timing_iterations)
        check(self.workspace_bytes is None or self.workspace_bytes > 0, "workspace_bytes above 0", self.workspace_bytes)
        check(self.dla_core is None or self.dla_core >= 0, "a dla_core of 0 or more", self.dla_core)
        check(self.time_limit_s > 0, "a time_limit_s above 0", self.time_limit_s)
        wrong = [one for one in self.compute_capabilities if not re.fullmatch(r"\d+\.\d", one)]
        check(not wrong, "compute capabilities such as '8.9'", wrong)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A named way to export a model for one runtime."""

    id: str
    title: str
    purpose: str
    """What it is for, in a sentence."""
    checked_on: str
    """Models and machines it was tried on, in words."""
    backend: str
    """Runtime the artifact is built for."""
    precision: Precision
    """What is asked for; what was executed stands in the run."""
    float_precision: Literal["fp32", "fp16", "bf16"] = "fp32"
    """Of the layers that an ``int8`` or ``fp8`` recipe leaves float."""
    opset: int = 20
    providers: tuple[str, ...] = ()
    """ONNX Runtime execution providers, in order; empty: the CPU. Any fallback is an error."""
    provider_options: dict[str, dict[str, Setting]] = field(default_factory=dict)
    """Of ONNX Runtime's execution providers, by name."""
    quantization: Quantization | None = None
    as_given: bool = False
    """Whether the file is taken as another tool quantized it, instead of being quantized by the recipe."""
    build: Build | None = None
    """For TensorRT alone."""

    @property
    def processor(self) -> str:
        """What computes: ``cpu``, ``gpu``, or the name of the execution provider or backend where it is neither."""
        first = self.providers[0] if self.providers else self.backend
        return _PROCESSORS.get(first, first)

    def __post_init__(self) -> None:
        # Files are named after it: nothing in it may lead to another folder.
        check(bool(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,99}", self.id)),
              "an id of letters, digits, '.', '_', '+' and '-', at most 100 of them", self.id)
        check(20 <= self.opset <= 23, "opset between 20 and 23", self.opset)
        quantized = self.precision in ("int8", "fp8")
        check(quantized == (self.quantization is not None or self.as_given),
              "a [quantization] table exactly where precision is 'int8' or 'fp8'", self.precision)
        check(not self.as_given or (quantized and self.quantization is None),
              "as_given = true with precision 'int8' or 'fp8' and without a [quantization] table", self.precision)
        check(quantized or self.float_precision == "fp32", "float_precision only beside 'int8' or 'fp8'",
              self.precision)
        check(self.quantization is None or (self.precision == "fp8") == (self.quantization.weights == "float8"),
              "float8 activations and weights exactly where precision is 'fp8'", self.precision)
        check(self.quantization is None or self.quantization.quantizer == "onnxruntime" or self.backend == "openvino",
              "quantizer 'onnxruntime' for every backend but openvino", self.quantization and
              self.quantization.quantizer)
        # In INT8 accelerators take ranges from TensorRT's own calibration, and no Q/DQ nodes.
        check(self.build is None or self.build.dla_core is None or self.precision == "fp16",
              "precision 'fp16' beside dla_core: accelerators take no Q/DQ nodes, and no other floats", self.precision)
        check(set(self.provider_options) <= set(self.providers), "provider_options of the providers named",
              sorted(self.provider_options))
        # An artifact brings its recipe: it must not choose what is loaded or written outside its folder.
        paths = [name for options in self.provider_options.values() for name, value in options.items()
                 if _FILE_WORDS & set(name.lower().split("_")) or (isinstance(value, str) and set(value) & set("/\\"))]
        check(not paths, "provider_options without paths or libraries", paths)
