"""What this machine can do at best: matrix products per precision and copies, measured, kept with the device.

They are measured rarely (``edgebench doctor --ceilings``) and kept in the cache, by device, CPU and threads; every
later run on the same machine takes them along, and a report fills them in where a run was made before.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import tempfile
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from edgebench import __version__, backends, builder, catalog, environment, roofline, typed
from edgebench.backends import Feeds
from edgebench.backends.cuda import Cuda, CudaError, CudaRuntime
from edgebench.device import Device
from edgebench.errors import CannotMeasure, InvalidInput, MissingDependency, require
from edgebench.imagecache import CACHE_HINT, cache_root
from edgebench.recipe import Recipe
from edgebench.record import Environment, Run, decode, read_sealed, write_sealed
from edgebench.timing_types import Ceiling, Ceilings

SCHEMA = "edgebench.ceilings/1"
# History: 1 (0.1.0) first published form.
CPU_RUNTIMES, GPU_RUNTIMES = ("onnxruntime", "openvino"), ("tensorrt", "tensorrt_rtx")
"""Whose matrix products are measured; the best of them counts."""
SIZES = {4: 1024, math.inf: 2048}
"""Side of the matrices, up to so many threads."""
GPU_SIZES = {6e9: 2048, math.inf: 4096}
"""Side of the matrices, up to so many bytes of memory."""
PRODUCTS = 6
"""About how many kinds of products there are, for the progress."""
CHAIN = 8
"""Products in a row on a GPU: casting or quantizing the ends is little beside them."""
COPY_BYTES = 256 * 2**20
# ONNX's element type, and the largest value of its symmetric range.
_QUANTIZED = {"int8": ("INT8", 127.0), "fp8": ("FLOAT8E4M3FN", 448.0)}
REPEATS = 10
MIN_S = 1.0
BUSY = 0.15
"""Share of the CPUs above which other load lowers what is reached."""
Told = Callable[[str, float], None]


def measure(device: Device, threads: int | None = None, *, power_mode: str | None = None, size: int | None = None,
            copy_bytes: int = COPY_BYTES, repeats: int = REPEATS, min_s: float = MIN_S,
            clock: Callable[[], int] = time.perf_counter_ns, cuda: Callable[[], Cuda] = CudaRuntime,
            told: Told = lambda what, share: None) -> Ceilings:
    """Return what this machine's CPUs, or its NVIDIA GPU, reach at best in every precision that a runtime executes.

    On a GPU, time is that of the device's own events: copies to and from the host are in none of it.

    Args:
        device: As declared; its datasheet's peaks stand beside.
        threads: CPU threads; the usable CPUs where None. Of no concern on a GPU.
        power_mode: As observed, for the record.
        size: Side of the square matrices.
        copy_bytes: Of the buffer that is copied.
        repeats: Products and copies at least.
        min_s: Seconds at least, each.
        clock: Monotonic nanoseconds of this host.
        cuda: Opens the CUDA runtime.
        told: Told (what, share done).

    Raises:
        CudaError: The device computes on a GPU, and there is none, or no driver.
        MissingDependency: The device computes on a GPU, and cuda-python is not installed.
    """
    engine: Literal["cpu", "gpu"] = "gpu" if device.kind in ("gpu", "jetson") else "cpu"
    usable = environment.usable_cpus()
    seen = environment.observe({}, load_before=environment.busy_cpus())
    told("copying", 0.0)
    absent: dict[str, str] = {}
    conditions: dict[str, str] = {}
    if engine == "gpu":
        count, where = 0, cuda()
        gpu = where.gpu()
        side = size or next(side for most, side in GPU_SIZES.items() if gpu.memory_bytes <= most)
        bytes_per_s, copies = _device_copies(where, copy_bytes, repeats, min_s)
        copied = f"copies of {copy_bytes / 2**20:g} MiB within the GPU's memory, best of {copies}"
        conditions["GPU"] = gpu.name
        candidates = _products_on_gpu(side, absent)
    else:
        count = threads or usable
        side = size or next(side for most, side in SIZES.items() if count <= most)
        with ThreadPoolExecutor(count) as pool:
            bytes_per_s, copies = roofline.best_rate(*roofline.numpy_copy(copy_bytes, pool, count), repeats=repeats,
                                                     min_s=min_s, clock=clock)
        copied = f"copies of {copy_bytes / 2**20:g} MiB by NumPy, {count} threads, best of {copies}"
        # What CPUs do meanwhile takes nothing from a GPU.
        busy = seen.load_before
        conditions["CPUs busy before"] = "unknown" if busy is None else f"{busy:.2f}"
        candidates = _products(side, count, usable, absent, clock)
    found: dict[str, tuple[float, int, str]] = {}
    with closing(candidates):
        for number, one in enumerate(candidates):
            told(f"{one.precision} by {one.who}", min(number / PRODUCTS, 0.95))
            try:
                rate, runs = roofline.best_timed(one.once, one.flops, repeats=repeats, min_s=min_s, clock=clock)
            except CannotMeasure as error:
                absent[one.precision] = f"{one.who}: {error.message}"
                continue
            if one.precision not in found or rate > found[one.precision][0]:
                found[one.precision] = rate, runs, f"{one.what}, {one.who}" + (f", {count} threads" if count else "")
    return Ceilings(
        schema=SCHEMA, device=device.id, cpu=seen.cpu, threads=count,
        measured_at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        conditions={**conditions, **_conditions(seen, power_mode, copied)},
        ceilings=(*(_dense(device, engine, precision, *one, bytes_per_s) for precision, one in found.items()),
                  *_sparse(device, engine, found, bytes_per_s)),
        absent={precision: reason for precision, reason in absent.items() if precision not in found})


@dataclass(frozen=True, slots=True)
class _Product:
    """A matrix product, or several in a row, that can be run here."""

    precision: str
    who: str
    """Runs it."""
    what: str
    once: Callable[[], float]
    """Runs it and returns its seconds."""
    flops: float


def _products(side: int, threads: int, usable: int, absent: dict[str, str], clock: Callable[[], int],
              ) -> Generator[_Product, None, None]:
    """Yield what can be run on the CPUs here; notes what cannot in `absent`."""
    what, flops = f"product of two {side} x {side} matrices", 2.0 * side**3
    if threads == usable:  # NumPy's library takes all of them
        yield _Product("fp32", f"NumPy {np.__version__}", what,
                       roofline.timed(roofline.numpy_gemm(side)[0], clock), flops)
    generator = np.random.default_rng(1)
    feeds = {"x": generator.standard_normal((side, side), np.float32)}
    with tempfile.TemporaryDirectory(prefix="edgebench-ceilings-") as scratch:
        files = {kind: Path(scratch) / f"{kind}.onnx" for kind in ("fp32", "int8")}
        try:
            roofline.write_matmul(files["fp32"], "fp32", side)
            roofline.write_matmul(files["int8"], "int8", side)
        except MissingDependency as error:
            absent["int8"] = f"{error.message}; {error.hint}"
            return
        for recipe in _recipes(CPU_RUNTIMES, absent):
            entry = files["int8" if recipe.precision == "int8" else "fp32"]
            session, who = _opened(entry, recipe, feeds, threads, absent)
            if session is not None:
                yield _Product(recipe.precision, who, what, roofline.timed(partial(session.infer, feeds), clock), flops)


def _products_on_gpu(side: int, absent: dict[str, str]) -> Generator[_Product, None, None]:
    """Yield what TensorRT runs on the GPU here; notes what it does not in `absent`."""
    feeds = {"x": np.random.default_rng(1).standard_normal((side, side), np.float32)}
    what = f"{CHAIN} products of {side} x {side} matrices in a row, by the device's own events"
    for recipe in _recipes(tuple(filter(backends.installed, GPU_RUNTIMES)) or GPU_RUNTIMES, absent):
        with tempfile.TemporaryDirectory(prefix="edgebench-ceilings-") as scratch:
            entry = Path(scratch) / "products.onnx"
            try:
                flops = write_products(entry, recipe, side, CHAIN)
                builder.prepare([builder.PrepareJob(entry=str(entry), recipe=recipe, batch=side)], Path(scratch))
                session, who = _opened(entry, recipe, feeds, 1, absent)
                if session is not None:
                    session.infer(feeds)
            except (CannotMeasure, InvalidInput, MissingDependency) as error:
                hint = f"; {error.hint}" if error.hint else ""
                absent.setdefault(recipe.precision, f"{recipe.backend}: {error.message}{hint}")
                continue
            if session is not None:
                try:
                    yield _Product(recipe.precision, who, what, session.computing_s, flops)
                finally:
                    # After an error of the device nothing can be given back, and what was measured stays.
                    with suppress(CudaError):
                        session.close()


def _opened(entry: Path, recipe: Recipe, feeds: Feeds, threads: int, absent: dict[str, str]) -> tuple[Any, str]:
    """Return a session, and who runs it; no session where another precision than the recipe's was executed."""
    backend = backends.get(recipe.backend)
    ran = backend.executed_precision(entry, recipe, feeds, threads=threads)
    who = ", ".join(f"{name} {version}" for name, version in backend.packages().items())
    if ran.executed != recipe.precision:
        absent.setdefault(recipe.precision, f"{who} executed the product in {ran.executed}")
        return None, who
    return backend.open_session(entry, recipe, batch=len(feeds["x"]), threads=threads), who


def write_products(path: Path, recipe: Recipe, size: int, count: int) -> float:
    """Write an ONNX file with a chain of square products, typed for TensorRT as the recipe's artifacts are.

    One after the other, so that casting or quantizing at the two ends takes little of the time. The values keep their
    spread along the chain.

    Args:
        path: Where to.
        recipe: Its precision is that of the products, its float precision that of what lies between quantized ones.
        size: Side of the matrices.
        count: Products.

    Returns:
        FLOPs of the whole chain.

    Raises:
        MissingDependency: onnx is not installed.
    """
    onnx = require("onnx", "export")
    helper, numpy_helper, kinds = onnx.helper, onnx.numpy_helper, onnx.TensorProto
    ends = [helper.make_tensor_value_info(name, kinds.FLOAT, [size, size]) for name in ("x", "y")]
    weights = np.random.default_rng(0).standard_normal((size, size), np.float32)
    names = ["x", *(f"x{k}" for k in range(1, count)), "y"]
    nodes: list[Any] = []
    if recipe.precision in _QUANTIZED:
        name, largest = _QUANTIZED[recipe.precision]
        kind = getattr(kinds, name)
        dtype = helper.tensor_dtype_to_np_dtype(kind)
        # Four standard deviations fit.
        stored = np.clip(weights * (largest / 4.0), -largest, largest)
        stored = (np.rint(stored) if dtype == np.int8 else stored).astype(dtype)
        constants = [helper.make_tensor("w", kind, stored.shape, stored.tobytes(), raw=True),
                     numpy_helper.from_array(np.array(4.0 / (largest * math.sqrt(size)), np.float32), "w_scale"),
                     numpy_helper.from_array(np.array(4.0 / largest, np.float32), "scale"),
                     helper.make_tensor("zero", kind, (), bytes(1), raw=True)]
        nodes.append(helper.make_node("DequantizeLinear", ["w", "w_scale", "zero"], ["wd"], name="weights"))
        for number, (before, after) in enumerate(itertools.pairwise(names)):
            nodes += [helper.make_node("QuantizeLinear", [before, "scale", "zero"], [f"{before}q"], name=f"q{number}"),
                      helper.make_node("DequantizeLinear", [f"{before}q", "scale", "zero"], [f"{before}d"],
                                       name=f"dq{number}"),
                      helper.make_node("MatMul", [f"{before}d", "wd"], [after], name=f"product{number}")]
    else:
        constants = [numpy_helper.from_array(weights / np.float32(math.sqrt(size)), "w")]
        nodes += [helper.make_node("MatMul", [before, "w"], [after], name=f"product{number}")
                  for number, (before, after) in enumerate(itertools.pairwise(names))]
    graph = helper.make_graph(nodes, "products", ends[:1], ends[1:], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", recipe.opset)], ir_version=10)
    between = recipe.float_precision if recipe.precision in _QUANTIZED else recipe.precision
    if between in ("fp16", "bf16"):
        model = typed.convert(model, between)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
    return 2.0 * count * size**3


def _device_copies(cuda: Cuda, size_bytes: int, repeats: int, min_s: float) -> tuple[float, int]:
    """Return bytes read and written per second by copies within the GPU's memory, and how many there were."""
    with ExitStack() as owned:
        def take(made: Any, give_back: Callable[[Any], None]) -> Any:
            owned.callback(give_back, made)
            return made

        stream = take(cuda.stream(), cuda.stream_destroy)
        begin, end = (take(cuda.event(), cuda.event_destroy) for _ in range(2))
        source, target = (take(cuda.malloc(size_bytes), cuda.free) for _ in range(2))

        def once() -> float:
            # The device is busy when the first event comes: enqueueing is in none of the time.
            cuda.copy_within(target, source, size_bytes, stream)
            cuda.record(begin, stream)
            cuda.copy_within(target, source, size_bytes, stream)
            cuda.record(end, stream)
            return cuda.elapsed_s(begin, end)

        return roofline.best_timed(once, 2.0 * size_bytes, repeats=repeats, min_s=min_s)


def _recipes(runtimes: Sequence[str], absent: dict[str, str]) -> list[Recipe]:
    """Return a recipe per runtime and precision that runs on the processor itself here."""
    chosen: dict[tuple[str, str], Recipe] = {}
    for recipe in catalog.recipes().values():
        if recipe.backend not in runtimes or recipe.providers:
            continue
        if not backends.installed(recipe.backend):
            reason: str | None = f"{recipe.backend} is not installed: pip install 'edgebench[{recipe.backend}]'"
        else:
            reason = backends.get(recipe.backend).reason_against(recipe)
        if reason is None:
            chosen.setdefault((recipe.backend, recipe.precision), recipe)
        else:
            absent.setdefault(recipe.precision, reason)
    return list(chosen.values())


def _dense(device: Device, engine: str, precision: str, rate: float, runs: int, method: str,
           bytes_per_s: float) -> Ceiling:
    peak = device.peak(precision, engine)
    return Ceiling(
        precision=precision, sparsity="dense", flops_per_s=rate, bytes_per_s=bytes_per_s, method=method, repeats=runs,
        datasheet_flops_per_s=peak.dense if peak else None, datasheet_mark=peak.mark if peak else "",
        datasheet_bytes_per_s=device.memory_bandwidth_bytes_per_s)


def _sparse(device: Device, engine: str, precisions: Iterable[str], bytes_per_s: float) -> Iterator[Ceiling]:
    for precision in precisions:
        peak = device.peak(precision, engine)
        if peak is not None and peak.sparse is not None:
            yield Ceiling(
                precision=precision, sparsity="structured", flops_per_s=None, bytes_per_s=bytes_per_s, repeats=0,
                method="not measured: no runtime here executes structured sparsity", datasheet_mark=peak.mark,
                datasheet_flops_per_s=peak.sparse, datasheet_bytes_per_s=device.memory_bandwidth_bytes_per_s)


def _conditions(seen: Environment, power_mode: str | None, copied: str) -> dict[str, str]:
    return {"copies": copied, "governor": seen.governor or "unknown: the kernel shows none", "host": seen.hostname,
            "system": seen.os, "edgebench": __version__, "numpy": seen.packages["numpy"],
            **({"power mode": power_mode} if power_mode else {})}


def disturbed(found: Ceilings) -> bool:
    """Return whether other load was seen just before: what was reached may then lie below what is possible."""
    busy = found.conditions.get("CPUs busy before", "unknown")
    return busy != "unknown" and float(busy) > BUSY * found.threads


def save(found: Ceilings) -> Path:
    """Keep ceilings for later runs on this machine; returns the file.

    Raises:
        InvalidInput: The cache cannot be written.
    """
    file = _file(found.device, found.cpu, found.threads)
    write_sealed(file, found, CACHE_HINT)
    return file


def kept(device: str, cpu: str, threads: int) -> Ceilings | None:
    """Return what was measured on this machine earlier, with so many CPU threads or on its GPU; None where nothing was.

    Raises:
        InvalidInput: The file is damaged.
    """
    files = [file for count in (threads, 0) if (file := _file(device, cpu, count)).is_file()]
    return decode(Ceilings, read_sealed(files[0]), str(files[0])) if files else None


def _file(device: str, cpu: str, threads: int) -> Path:
    name = hashlib.sha256(f"{cpu}\n{threads}".encode()).hexdigest()[:16]
    plain = "".join(char if char.isalnum() or char in "._-" else "-" for char in device)
    return cache_root() / "ceilings" / f"{plain}-{name}.json"


def filled_in(runs: Sequence[Run]) -> tuple[Run, ...]:
    """Return the runs; those without ceilings have the ones that this machine keeps for their device, CPU and threads.

    Raises:
        InvalidInput: A kept file is damaged.
    """
    looked_up = cache(kept)

    def one(run: Run) -> Run:
        if run.observed is None or run.observed.ceilings is not None:
            return run
        found = looked_up(run.device.id, run.environment.cpu, run.settings.threads)
        return run if found is None else replace(run, observed=replace(run.observed, ceilings=found))

    return tuple(one(run) for run in runs)
