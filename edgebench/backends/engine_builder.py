"""Building plans with TensorRT's own API, in the dialects of versions 10, 11 and RTX.

The library is handed in: `edgebench.backends.tensorrt` alone imports it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgebench import steady
from edgebench.backends import engines
from edgebench.backends.engine_session import sizes
from edgebench.backends.engines import Built
from edgebench.errors import CannotMeasure, InvalidInput
from edgebench.recipe import Build, Precision, Recipe
from edgebench.record import write_bytes

if TYPE_CHECKING:
    import tensorrt as trt

_TYPES: dict[str, Precision] = {"FLOAT": "fp32", "HALF": "fp16", "BF16": "bf16", "INT8": "int8", "FP8": "fp8"}
_COMPUTE = ("CONVOLUTION", "DECONVOLUTION", "MATRIX_MULTIPLY", "EINSUM")
_FLAGS: dict[Precision, tuple[str, ...]] = {"fp32": (), "fp16": ("FP16",), "bf16": ("BF16",), "int8": ("INT8",),
                                            "fp8": ("FP8",)}
_LEAST_FOR: dict[Precision, int] = {"fp8": 89, "bf16": 80}
_ERRORS_KEPT = 6


class Log:
    """What the library said, by severity."""

    def __init__(self) -> None:
        self._said: list[tuple[str, str]] = []

    def say(self, severity: str, message: str) -> None:
        """Keep a message; verbose ones are dropped."""
        if severity != "VERBOSE":
            self._said.append((severity, " ".join(message.split())))

    def errors(self) -> str:
        """Return the errors since the last call in one line; warnings where there are none."""
        said, self._said = self._said, []
        found = [text for severity, text in said if severity in ("ERROR", "INTERNAL_ERROR")] or \
            [text for severity, text in said if severity == "WARNING"]
        return "; ".join(dict.fromkeys(found[-_ERRORS_KEPT:]))

    def warnings(self) -> tuple[str, ...]:
        """Return the warnings so far, each once."""
        return tuple(dict.fromkeys(text for severity, text in self._said if severity == "WARNING"))


@dataclass(eq=False)
class Library:
    """One of the two libraries, and what its version can do."""

    flavour: engines.Flavour
    trt: Any
    log: Log = field(default_factory=Log)

    @property
    def title(self) -> str:
        """The library's name."""
        return engines.TITLES[self.flavour]

    @property
    def version_text(self) -> str:
        """The version as the library tells it."""
        return str(self.trt.__version__)

    @property
    def version(self) -> tuple[int, ...]:
        """The version's numbers."""
        return tuple(int(part) for part in re.findall(r"\d+", self.version_text))

    @property
    def strong_only(self) -> bool:
        """Whether types are always those of the network: there are no precision flags."""
        return self.flavour == "tensorrt_rtx" or self.version >= (11,)

    @property
    def has_timing_cache(self) -> bool:
        """Whether the builder times tactics; TensorRT-RTX compiles on the target instead."""
        return self.flavour == "tensorrt"

    @cached_property
    def logger(self) -> Any:
        """The library's logger; one per process, for it keeps to the first it was given."""
        log = self.log

        class Collector(self.trt.ILogger):  # type: ignore[name-defined,misc]  # known only at run time
            def __init__(self) -> None:
                super().__init__()

            def log(self, severity: Any, msg: str) -> None:
                log.say(severity.name, msg)

        return Collector()

    def runtime(self) -> trt.Runtime:
        """Return a new runtime."""
        made: trt.Runtime = self.trt.Runtime(self.logger)
        return made

    def builder(self) -> trt.Builder:
        """Return a new builder.

        Raises:
            CannotMeasure: The library cannot start, such as without a driver.
        """
        made: trt.Builder | None
        try:
            made = self.trt.Builder(self.logger)
        except (RuntimeError, TypeError) as error:  # pybind's way to say that the factory returned nothing
            raise CannotMeasure(f"{self.title} cannot start a builder: {self.log.errors() or error}") from error
        if made is None:
            raise CannotMeasure(f"{self.title} cannot start a builder: {self.log.errors()}")
        return made

    def capabilities(self) -> tuple[str, ...]:
        """Return the compute capabilities that TensorRT-RTX builds for, such as ``8.9``."""
        names = [name for name in self.trt.ComputeCapability.__members__ if re.fullmatch(r"SM\d+", name)]
        return tuple(f"{name[2:-1]}.{name[-1]}" for name in names)

    def dla_cores(self) -> int:
        """Return how many deep-learning accelerators there are."""
        return int(self.builder().num_DLA_cores)

    def profiler(self) -> Any:
        """Return a profiler with ``seconds`` by layer name, summed over all reports."""
        class Profiler(self.trt.IProfiler):  # type: ignore[name-defined,misc]  # known only at run time
            def __init__(self) -> None:
                super().__init__()
                self.seconds: dict[str, float] = {}

            def report_layer_time(self, layer_name: str, ms: float) -> None:
                self.seconds[layer_name] = self.seconds.get(layer_name, 0.0) + ms * 1e-3

        return Profiler()

    def compiling_context(self, engine: Any, file: Path) -> tuple[Any, Callable[[], None]]:
        """Return TensorRT-RTX's execution context with all kernels compiled at once, and what keeps them in `file`.

        Left to itself it swaps better kernels in while inferences run: timings would be of a moving target.
        """
        settings = engine.create_runtime_config()
        settings.dynamic_shapes_kernel_specialization_strategy = \
            self.trt.DynamicShapesKernelSpecializationStrategy.EAGER
        cache = settings.create_runtime_cache()
        if file.is_file():
            # It says no to what another driver or device compiled; everything is compiled anew then.
            cache.deserialize(file.read_bytes())
        settings.set_runtime_cache(cache)

        def keep() -> None:
            compiled = cache.serialize()
            if compiled is not None:
                write_bytes(file, bytes(compiled), engines.CACHE_HINT)

        return engine.create_execution_context(settings), keep

    def member(self, group: str, name: str) -> Any:
        """Return the enumeration's member.

        Raises:
            InvalidInput: This version has none of that name.
        """
        found = getattr(getattr(self.trt, group), name, None)
        if found is None:
            raise InvalidInput(f"{self.title} {self.version_text} has no {group}.{name}",
                               "change the recipe's [build] table, or use another version")
        return found


# TensorRT writes to its log under a lock that freeing one of its objects takes too: a collector that frees an earlier
# builder from within a message would wait for ever.
@steady.quiet()
def build_plan(library: Library, entry: Path, recipe: Recipe, *, on_device: bool, timings: bytes | None,
               capability: tuple[int, int] | None) -> tuple[bytes, Built, bytes | None]:
    """Build a plan from an ONNX file.

    Args:
        library: With which.
        entry: The ONNX file; external data lies beside it.
        recipe: Precision and build settings.
        on_device: Whether for the GPU that is here; ahead of time otherwise (TensorRT-RTX alone).
        timings: Tactic timings of earlier builds of this version on this device.
        capability: The GPU's compute capability.

    Returns:
        The plan, what the build reported, and the tactic timings afterwards (None without any).

    Raises:
        InvalidInput: The parser refuses nodes (named), or this version has no such setting.
        CannotMeasure: The network holds the requested precision nowhere, or the builder failed.
    """
    settings = engines.settings(recipe)
    if settings.typing == "weak" and library.strong_only:
        raise InvalidInput(f"recipe {recipe.id!r} wants weak typing; {library.title} {library.version_text} has none",
                           "typing = \"strong\" in its [build] table")
    builder = library.builder()
    network, parser = _parse(library, builder, entry, recipe)
    config = builder.create_builder_config()
    batches = _configure(library, builder, network, config, recipe)
    capabilities = () if on_device else _choose_capabilities(library, config, recipe)
    if on_device and library.flavour == "tensorrt_rtx" and capability is not None:
        config.num_compute_capabilities = 1
        config.set_compute_capability(library.trt.ComputeCapability.CURRENT, 0)
    compute = _compute_layers(network)
    if settings.typing == "strong" and recipe.precision not in compute:
        found = ", ".join(f"{count} in {kind}" for kind, count in sorted(compute.items())) or "none"
        raise CannotMeasure(
            f"precision not achieved: {recipe.id} asks for {recipe.precision}, but {entry.name} holds convolutions and "
            f"matrix products: {found}", f"{library.title} takes types from the file: export with a recipe that writes "
            f"{recipe.precision} into it")
    placement = _place(library, network, config, settings)
    cache = config.create_timing_cache(timings or b"") if library.has_timing_cache else None
    if cache is not None and not config.set_timing_cache(cache, ignore_mismatch=False):
        # Another driver took them: timings of another machine would choose the wrong tactics.
        timings = None
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, ignore_mismatch=False)
    warnings = library.log.warnings()
    plan = builder.build_serialized_network(network, config)
    del parser  # the network holds weights that belong to it
    if plan is None:
        raise CannotMeasure(f"{library.title} {library.version_text} cannot build {recipe.id}: "
                            f"{library.log.errors() or 'it gave no reason'}",
                            "a larger workspace_bytes, or another recipe; unsupported layers are named above")
    timed = bytes(config.get_timing_cache().serialize()) if cache is not None else None
    warnings = tuple(dict.fromkeys((*warnings, *library.log.warnings())))
    library.log.errors()
    return bytes(plan), Built(
        seconds=0.0, compute_layers=dict(compute.items()), placement=placement, capabilities=capabilities,
        batches=batches, timing_cache_sha256=hashlib.sha256(timings).hexdigest() if timings else None,
        warnings=warnings), timed


def _parse(library: Library, builder: trt.Builder, entry: Path, recipe: Recipe,
           ) -> tuple[trt.INetworkDefinition, trt.OnnxParser]:
    flags = 0
    if not library.strong_only and engines.settings(recipe).typing == "strong":
        flags = 1 << int(library.member("NetworkDefinitionCreationFlag", "STRONGLY_TYPED"))
    network = builder.create_network(flags)
    parser: trt.OnnxParser = library.trt.OnnxParser(network, library.logger)
    if not parser.parse_from_file(str(entry)) or parser.num_errors:
        raise _refusal(library, parser, entry)
    return network, parser


def _refusal(library: Library, parser: trt.OnnxParser, entry: Path) -> InvalidInput:
    found, texts = [], []
    for k in range(parser.num_errors):
        error = parser.get_error(k)
        texts.append(error.desc())
        # The rest of a description repeats it in the words of deeper layers.
        reason = max((line.strip() for line in error.desc().splitlines() if "Error Code 4" in line), key=len,
                     default=error.desc().split("\n")[0].strip())
        named = f"node {error.node_name()!r} ({error.node_operator()})" if error.node_operator() else "the file"
        found.append(f"{named}: {reason}")
    said = library.log.errors()
    text = "; ".join(dict.fromkeys(found)) or said or "it gave no reason"
    hint = "another recipe may avoid these operators; a newer opset may spell them differently"
    if any("DequantizeLinear" in one and "Int32" in one for one in (*found, *texts)) or "type Int32 but must" in text:
        hint = ("its biases are quantized to int32, the dialect of ONNX Runtime's CPU kernels: export with recipe "
                f"{'rtx' if library.flavour == 'tensorrt_rtx' else 'tensorrt'}-int8, which leaves biases float")
    elif "zero" in text.lower() and ("quantiz" in text.lower() or "uint8" in text.lower()):
        hint = ("its activations are quantized asymmetrically, the dialect of CPU kernels: export with recipe "
                f"{'rtx' if library.flavour == 'tensorrt_rtx' else 'tensorrt'}-int8, which is symmetric")
    return InvalidInput(f"{library.title} {library.version_text} refuses {entry}: {text}", hint)


def _configure(library: Library, builder: trt.Builder, network: trt.INetworkDefinition, config: trt.IBuilderConfig,
               recipe: Recipe) -> tuple[int, int, int] | None:
    settings = engines.settings(recipe)
    config.builder_optimization_level = settings.optimization_level
    config.avg_timing_iterations = settings.timing_iterations
    config.profiling_verbosity = library.trt.ProfilingVerbosity.DETAILED
    # Rounded to 10 bits of mantissa, FP32 would not be what its name says, and no inspector would tell.
    config.clear_flag(library.trt.BuilderFlag.TF32)
    if settings.workspace_bytes is not None:
        config.set_memory_pool_limit(library.trt.MemoryPoolType.WORKSPACE, settings.workspace_bytes)
    if settings.typing == "weak":
        for name in dict.fromkeys((*_FLAGS[recipe.precision], *_FLAGS[recipe.float_precision])):
            config.set_flag(library.member("BuilderFlag", name))
    if settings.version_compatible:
        config.set_flag(library.member("BuilderFlag", "VERSION_COMPATIBLE"))
    if settings.hardware_compatibility != "none":
        level = library.member("HardwareCompatibilityLevel", settings.hardware_compatibility.upper())
        config.hardware_compatibility_level = level
        if config.hardware_compatibility_level != level:
            raise InvalidInput(f"{library.title} does not build engines with hardware compatibility "
                               f"{settings.hardware_compatibility!r}",
                               "name [build] compute_capabilities instead" if library.flavour == "tensorrt_rtx" else
                               "leave [build] hardware_compatibility out")
    return _set_profile(library, builder, network, config, settings)


def _set_profile(library: Library, builder: trt.Builder, network: trt.INetworkDefinition, config: trt.IBuilderConfig,
                 settings: Build) -> tuple[int, int, int] | None:
    profile, batches = builder.create_optimization_profile(), None
    for k in range(network.num_inputs):
        tensor = network.get_input(k)
        shape = sizes(tensor.shape)
        if -1 not in shape:
            continue
        if -1 in shape[1:]:
            raise InvalidInput(f"input {tensor.name!r} has shape {shape}: only the batch may vary",
                               "fix its height and width, such as with --preprocess FILE")
        if settings.dla_core is not None and len(set(settings.batches)) > 1:
            raise InvalidInput(f"deep-learning accelerators take one batch size, the recipe names {settings.batches}",
                               "batches = [1, 1, 1] in its [build] table")
        batches = settings.batches
        profile.set_shape(tensor.name, *(library.trt.Dims((size, *shape[1:])) for size in batches))
    if batches is not None:
        config.add_optimization_profile(profile)
    return batches


def _choose_capabilities(library: Library, config: Any, recipe: Recipe) -> tuple[str, ...]:
    known = library.capabilities()
    least = max(_LEAST_FOR.get(recipe.precision, 0), _LEAST_FOR.get(recipe.float_precision, 0), 80)
    wanted = engines.settings(recipe).compute_capabilities or tuple(
        one for one in known if int(one.replace(".", "")) >= least)
    for one in wanted:
        if one not in known:
            raise InvalidInput(f"{library.title} {library.version_text} does not build for compute capability {one}",
                               f"it knows: {', '.join(known)}")
    config.num_compute_capabilities = len(wanted)
    for k, one in enumerate(wanted):
        config.set_compute_capability(getattr(library.trt.ComputeCapability, f"SM{one.replace('.', '')}"), k)
    return wanted


def _compute_layers(network: trt.INetworkDefinition) -> dict[Precision, int]:
    """Return the convolutions and matrix products of a parsed network by the type that they multiply."""
    stored: dict[str, str] = {}
    for k in range(network.num_layers):
        layer = network.get_layer(k)
        if layer.type.name == "DEQUANTIZE":
            stored[layer.get_output(0).name] = layer.get_input(0).dtype.name
    found: dict[Precision, int] = {}
    for k in range(network.num_layers):
        layer = network.get_layer(k)
        if layer.type.name in _COMPUTE:
            tensor = layer.get_input(0)
            kind = _TYPES.get(stored.get(tensor.name, tensor.dtype.name))
            if kind is not None:
                found[kind] = found.get(kind, 0) + 1
    return found


def _place(library: Library, network: trt.INetworkDefinition, config: trt.IBuilderConfig, settings: Build,
           ) -> dict[str, int]:
    if settings.dla_core is None:
        return {"GPU": network.num_layers}
    config.default_device_type = library.trt.DeviceType.DLA
    config.DLA_core = settings.dla_core
    config.set_flag(library.trt.BuilderFlag.GPU_FALLBACK)
    taken = sum(config.can_run_on_DLA(network.get_layer(k)) for k in range(network.num_layers))
    return {"DLA": taken, "GPU": network.num_layers - taken}
