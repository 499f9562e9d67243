"""TensorRT 10.3 and later, and TensorRT-RTX: typed and Q/DQ ONNX files, engines built from them on the device.

The ONNX file is the portable part of an artifact and is written anywhere. TensorRT builds its engine where it will run;
TensorRT-RTX builds ahead of time, GPU or not. Types are those of the file (strong typing): precision flags, which
TensorRT 11 no longer has, are touched only where a recipe says ``typing = "weak"``.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgebench import steady
from edgebench.backends import Batches, Feeds, engines, inspector, is_installed
from edgebench.backends.cuda import Cuda, CudaError, CudaRuntime, Gpu
from edgebench.backends.engine_builder import Library, build_plan
from edgebench.backends.engine_session import EngineSession
from edgebench.backends.engines import TITLES, Engine, Flavour, Target
from edgebench.errors import CannotMeasure, InvalidInput, MissingDependency, require
from edgebench.recipe import Precision, Recipe
from edgebench.record import ExecutedPrecision, write_bytes

if TYPE_CHECKING:
    import tensorrt as trt

OLDEST = (10, 3)
"""What JetPack 6 ships; strong typing is incomplete before."""
# Tensor cores of a precision exist from this compute capability on.
LOWEST_CAPABILITY: dict[Precision, tuple[int, int]] = {"int8": (7, 2), "bf16": (8, 0), "fp8": (8, 9)}
PROFILED_RUNS, WARM_UP_RUNS = 10, 3
EXTRA: dict[Flavour, str] = {"tensorrt": "cuda", "tensorrt_rtx": "tensorrt-rtx"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """An engine that is loaded here."""

    engine: Engine
    """Its record."""
    plan: bytes
    loaded: trt.ICudaEngine
    folder: Path
    note: str
    """Where it came from, in words."""


class TensorRT:
    """A backend for one of the two libraries.

    Args:
        flavour: Which.
        module: Imports the library.
        runtime: Opens the CUDA runtime.
    """

    def __init__(self, flavour: Flavour, module: Callable[[], Any] | None = None,
                 runtime: Callable[[], Cuda] = CudaRuntime) -> None:
        self.flavour: Flavour = flavour
        self._module = module or self._import
        self._runtime = runtime
        self._library: Library | None = None

    def _import(self) -> Any:
        if not is_installed(self.flavour):  # the package of type stubs imports too, and holds nothing
            hint = f"pip install 'edgebench[{EXTRA[self.flavour]}]'"
            hint = f"on Jetson it comes with JetPack; elsewhere: pip install tensorrt; with both: {hint}" \
                if self.flavour == "tensorrt" else f"install it with: {hint}"
            raise MissingDependency(f"{TITLES[self.flavour]} is not installed", hint)
        return require(self.flavour, EXTRA[self.flavour])

    @property
    def library(self) -> Library:
        """The library, imported when first used.

        Raises:
            MissingDependency: It is not installed.
            CannotMeasure: It is older than `OLDEST`.
        """
        if self._library is None:
            library = Library(self.flavour, self._module())
            if self.flavour == "tensorrt" and library.version < OLDEST:
                raise CannotMeasure(f"TensorRT {library.version_text} is too old: {OLDEST[0]}.{OLDEST[1]} or later is "
                                    "needed", "JetPack 6 and later ship it")
            self._library = library
        return self._library

    def packages(self) -> dict[str, str]:
        """Return the version of the library."""
        return {self.flavour: self.library.version_text}

    def reason_against(self, recipe: Recipe) -> str | None:
        """Return why the recipe cannot run on this machine, None where it can.

        A library that is not installed is a reason too: artifacts are exported on machines that cannot run them.
        """
        try:
            library = self.library
            gpu = self._runtime().gpu()
        except CudaError as error:
            return f"no NVIDIA GPU or driver: {error.message}"
        except (MissingDependency, CannotMeasure) as error:
            return f"{error.message}; {error.hint}"
        return _reason_against(library, recipe, gpu)

    def build(self, base: Path, recipe: Recipe, calibration: Batches | None, folder: Path) -> str:
        """Write ``model.onnx`` as the recipe wants it, and an engine beside it where one can be built here.

        TensorRT-RTX builds ahead of time wherever it is installed; TensorRT builds where it and a GPU are.

        Raises:
            InvalidInput: The recipe needs calibration, or the parser refuses an operator (all are named).
            CannotMeasure: The file does not hold the precision asked for, or the build failed.
        """
        target = folder / "model.onnx"
        write_onnx(base, recipe, calibration, target)
        try:
            library = self.library
        except (MissingDependency, CannotMeasure):
            return target.name
        if self.flavour == "tensorrt_rtx":
            self._build(library, target, recipe, None, folder / engines.FOLDER)
        else:
            try:
                gpu = self._runtime().gpu()
            except (CudaError, MissingDependency):
                return target.name
            if _reason_against(library, recipe, gpu) is None:
                self._build(library, target, recipe, gpu, folder / engines.FOLDER)
        return target.name

    def _build(self, library: Library, entry: Path, recipe: Recipe, gpu: Gpu | None, folder: Path,
               build_number: int = 0) -> tuple[Engine, bytes]:
        target = Target.of(self.flavour, library.version_text, gpu)
        # A further build must choose its tactics anew, so it neither reads nor writes the timings of earlier ones.
        timings = engines.timing_cache_file(target) if build_number == 0 and library.has_timing_cache else None
        begin = time.monotonic()
        plan, built, timed = build_plan(library, entry, recipe, on_device=gpu is not None,
                                        timings=timings.read_bytes() if timings and timings.is_file() else None,
                                        capability=gpu.compute_capability if gpu else None)
        if timings is not None and timed:
            write_bytes(timings, timed, engines.CACHE_HINT)
        engine = Engine(
            schema=engines.SCHEMA, plan=f"{recipe.id}-{target.compute_capability or 'ahead'}.plan", plan_sha256="",
            plan_bytes=0, onnx_sha256=engines.onnx_digest(entry), target=target, precision=recipe.precision,
            settings=engines.settings(recipe), build_number=build_number,
            built=replace(built, seconds=time.monotonic() - begin))
        if gpu is not None:
            loaded = self._deserialize(engine, plan, folder)
            engine = replace(engine, layers=inspector.counts(self._layers(loaded, None)))
        return engines.save(folder, plan, engine), plan

    def _layers(self, engine: trt.ICudaEngine, context: trt.IExecutionContext | None,
                ) -> tuple[inspector.EngineLayer, ...]:
        info = engine.create_engine_inspector()
        if context is not None:
            # Shapes and tactics are those of the context's batch then.
            info.execution_context = context
        return inspector.parse(info.get_engine_information(self.library.trt.LayerInformationFormat.JSON))

    def built_on_opening(self, recipe: Recipe, batch: int) -> str | None:  # noqa: ARG002  # one engine takes all batches
        """Return what opening a session builds where there is none that fits: the engine."""
        return "the engine"

    def prepare(self, entry: Path, recipe: Recipe, *, batch: int = 1,  # noqa: ARG002  # one engine takes all batches
                build_number: int = 0) -> str:
        """Build the engine that `open_session` would have to build, if any; returns what was done, in words."""
        return self.engine_for(entry, recipe, build_number).note

    def engine_for(self, entry: Path, recipe: Recipe, build_number: int = 0) -> Ready:
        """Return an engine for this device: the artifact's, a cached one, or a new one.

        An artifact's engine for another device or version, or one that the library refuses, is passed over, and one is
        built here; the note says so.

        Args:
            entry: The artifact's ONNX file.
            recipe: How it is built.
            build_number: Above 0: a build of its own of the same file.

        Raises:
            InvalidInput: A plan was altered, or was built from another ONNX file.
            CannotMeasure: The recipe cannot run here, or the build failed.
        """
        gpu = self._gpu(recipe)
        library = self.library
        target, digest = Target.of(self.flavour, library.version_text, gpu), engines.onnx_digest(entry)
        note = ""
        shipped = engines.read(entry.parent / engines.FOLDER) if build_number == 0 else None
        if shipped is not None:
            reason = engines.mismatch(shipped, target) or engines.other_settings(shipped, recipe)
            if reason is None:
                loaded = self._loaded(shipped, entry.parent / engines.FOLDER, target, digest)
                if isinstance(loaded, Ready):
                    return replace(loaded, note="the artifact's engine")
                reason = loaded
            note = f"; the artifact's engine is not used: {reason}"
        folder = engines.cache_folder(digest, recipe, target, build_number)
        cached = engines.read(folder)
        if cached is not None:
            loaded = self._loaded(cached, folder, target, digest)
            if isinstance(loaded, Ready):
                return replace(loaded, note=f"built here earlier{note}")
            note += f"; the engine built here earlier is not used: {loaded}"
        engine, plan = self._build(library, entry, recipe, gpu, folder, build_number)
        return Ready(engine=engine, plan=plan, loaded=self._deserialize(engine, plan, folder), folder=folder,
                     note=f"built here now{note}")

    def _loaded(self, engine: Engine, folder: Path, target: Target, digest: str) -> Ready | str:
        """Return an engine that was built before, or why it does not load and has to be built again.

        Raises:
            InvalidInput: The plan was altered, or comes from another ONNX file.
        """
        plan = engines.load(folder, engine, target, digest)
        try:
            loaded = self._deserialize(engine, plan, folder)
        except CannotMeasure as error:
            # A plan is bound to more than its record can name, such as the driver.
            return error.message
        return Ready(engine=engine, plan=plan, loaded=loaded, folder=folder, note="")

    def _gpu(self, recipe: Recipe) -> Gpu:
        library, gpu = self.library, self._runtime().gpu()
        reason = _reason_against(library, recipe, gpu)
        if reason is not None:
            raise CannotMeasure(f"{recipe.id} cannot run here: {reason}", "edgebench recipes lists the others")
        return gpu

    def open_session(self, entry: Path, recipe: Recipe, *, batch: int, threads: int,  # noqa: ARG002  # the GPU has its own
                     build_number: int = 0) -> EngineSession:
        """Open the artifact's engine for inferences of `batch` images; one is built first where there is none.

        Raises:
            CannotMeasure: The recipe cannot run here, or TensorRT refuses the engine.
            InvalidInput: A plan was altered, or was built from another ONNX file.
            UsageError: The engine does not take `batch`.
        """
        ready = self.engine_for(entry, recipe, build_number)
        context, keep = self._context(ready.loaded, ready.engine)
        return EngineSession(ready.loaded, context, self._runtime(), batch=batch,
                             cuda_graph=engines.settings(recipe).cuda_graph, weights_bytes=self._weights_bytes(ready),
                             log=self.library.log.errors, after_warm_up=keep)

    def _weights_bytes(self, ready: Ready) -> int:
        """Return the size of the engine's weights; where TensorRT does not tell, of its plan, which is little more."""
        engine: Any = ready.loaded
        stat = getattr(self.library.trt, "EngineStat", None)
        told = int(engine.get_engine_stat(stat.TOTAL_WEIGHTS_SIZE)) if stat is not None else 0
        return told if told > 0 else len(ready.plan)

    @steady.quiet()
    def _deserialize(self, record: Engine, plan: bytes, folder: Path) -> trt.ICudaEngine:
        library = self.library
        runtime = library.runtime()
        if record.settings.version_compatible:
            # Such plans carry code of the library that built them; their hash was checked against the record.
            runtime.engine_host_code_allowed = True
        engine: trt.ICudaEngine | None = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise CannotMeasure(f"{library.title} {library.version_text} cannot load {record.plan}: "
                                f"{library.log.errors()}", f"remove {folder} to build it anew")
        return engine

    def _context(self, engine: trt.ICudaEngine, record: Engine) -> tuple[trt.IExecutionContext, Callable[[], None]]:
        """Return an execution context, and what to call once its kernels are compiled."""
        library = self.library
        context: trt.IExecutionContext | None
        keep: Callable[[], None] = _nothing
        if self.flavour == "tensorrt_rtx":
            here = Target.of(self.flavour, library.version_text, self._runtime().gpu())
            context, keep = library.compiling_context(engine, engines.compiled_file(record, here))
        else:
            context = engine.create_execution_context()
        if context is None:
            raise CannotMeasure(f"{library.title} cannot set the engine up: {library.log.errors()}",
                                "out of GPU memory? smaller batches in the recipe's [build] table need less")
        return context, keep

    def executed_precision(self, entry: Path, recipe: Recipe, feeds: Feeds, *,
                           threads: int) -> ExecutedPrecision:  # noqa: ARG002
        """Return the precision of the engine's layers, as its inspector tells, weighted by TensorRT's profiler."""
        batch = len(next(iter(feeds.values())))
        ready = self.engine_for(entry, recipe)
        context, keep = self._context(ready.loaded, ready.engine)
        layers, times_s = self._profile(ready.loaded, context, feeds, batch, keep)
        return inspector.executed(
            recipe.precision, layers, times_s, f"{TITLES[self.flavour]}'s inspector of the loaded plan, its profiler "
            f"over {PROFILED_RUNS} inferences of {batch}; {ready.note}")

    def _profile(self, engine: trt.ICudaEngine, context: trt.IExecutionContext, feeds: Feeds, batch: int,
                 keep: Callable[[], None]) -> tuple[tuple[inspector.EngineLayer, ...], dict[str, float]]:
        library = self.library
        session = EngineSession(engine, context, self._runtime(), batch=batch, cuda_graph=False,
                                log=library.log.errors, after_warm_up=keep)
        try:
            for _ in range(WARM_UP_RUNS):
                session.infer(feeds)
            profiler = library.profiler()
            context.profiler = profiler
            context.enqueue_emits_profile = False
            for _ in range(PROFILED_RUNS):
                session.compute_once()
                context.report_to_profiler()
            layers = self._layers(engine, context)
        finally:
            session.close()
        return layers, {name: seconds / PROFILED_RUNS for name, seconds in profiler.seconds.items()}


def _nothing() -> None:
    pass


def _reason_against(library: Library, recipe: Recipe, gpu: Gpu) -> str | None:
    settings = engines.settings(recipe)
    here = ".".join(map(str, gpu.compute_capability))
    lowest = max((LOWEST_CAPABILITY.get(kind, (0, 0)), kind) for kind in (recipe.precision, recipe.float_precision))
    if gpu.compute_capability < lowest[0]:
        return f"{lowest[1]} needs compute capability {lowest[0][0]}.{lowest[0][1]} or higher, {gpu.name} has {here}"
    if library.flavour == "tensorrt_rtx" and here not in library.capabilities():
        return (f"TensorRT-RTX {library.version_text} does not run on {gpu.name}: compute capability {here} is none of "
                f"{', '.join(library.capabilities())}")
    if settings.typing == "weak" and library.strong_only:
        return f"{library.title} {library.version_text} has no weak typing"
    if settings.dla_core is not None:
        if library.strong_only:
            return f"{library.title} {library.version_text} does not build for deep-learning accelerators"
        cores = library.dla_cores()
        if settings.dla_core >= cores:
            return f"deep-learning accelerator {settings.dla_core} was asked for, {gpu.name} has {cores or 'none'}"
    return None


def write_onnx(base: Path, recipe: Recipe, calibration: Batches | None, target: Path) -> None:
    """Write the recipe's portable ONNX file: as it is, typed, or with Q/DQ nodes in TensorRT's dialect.

    Raises:
        InvalidInput: The recipe quantizes and there are no calibration images, or in a dialect that TensorRT refuses.
    """
    from edgebench import graphs, quantize, typed

    weak = engines.settings(recipe).typing == "weak"
    if recipe.quantization is not None:
        if recipe.quantization.activations == "uint8" or recipe.quantization.bias == "int32":
            raise InvalidInput(f"recipe {recipe.id!r}: TensorRT takes symmetric activations and float biases, not "
                               f"{recipe.quantization.activations} activations with {recipe.quantization.bias} biases",
                               "in [quantization]: activations = \"int8\", bias = \"float\"")
        if calibration is None:
            raise InvalidInput(f"recipe {recipe.id!r} needs quantization-calibration images",
                               "pass --calibration-data DIR")
        # With weak typing the builder lowers the float parts itself.
        quantize.quantize(base, replace(recipe, float_precision="fp32") if weak else recipe, calibration, target)
    elif recipe.precision in ("fp16", "bf16") and not weak:
        graphs.save(typed.convert(graphs.load_whole(base), recipe.precision), target)
    else:
        graphs.save(graphs.load_whole(base), target)


_BACKEND = TensorRT("tensorrt")
packages, build, reason_against = _BACKEND.packages, _BACKEND.build, _BACKEND.reason_against
open_session, executed_precision, prepare = _BACKEND.open_session, _BACKEND.executed_precision, _BACKEND.prepare
engine_for, built_on_opening = _BACKEND.engine_for, _BACKEND.built_on_opening
