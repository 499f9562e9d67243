"""What this machine can do at best: matrix products per precision and copies, measured, kept with the device.

They are measured rarely (``edgebench doctor --ceilings``) and kept in the cache, by device, CPU and threads; every
later run on the same machine takes them along, and a report fills them in where a run was made before.
"""

from __future__ import annotations

import hashlib
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime, timezone
from functools import cache, partial
from pathlib import Path

import numpy as np

from edgebench import __version__, backends, catalog, environment, roofline
from edgebench.device import Device
from edgebench.errors import CannotMeasure, MissingDependency
from edgebench.imagecache import CACHE_HINT, cache_root
from edgebench.recipe import Recipe
from edgebench.record import Environment, Run, decode, read_json, write_json
from edgebench.timing_types import Ceiling, Ceilings

SCHEMA = "edgebench.ceilings/1"
# History: 1 (0.1.0) first published form.
RUNTIMES = ("onnxruntime", "openvino")
"""Whose matrix products are measured; the best of them counts."""
ENGINE = "cpu"
"""Of the datasheet's peaks that stand beside."""
SIZES = {4: 1024, math.inf: 2048}
"""Side of the matrices, up to so many threads."""
COPY_BYTES = 256 * 2**20
REPEATS = 10
MIN_S = 1.0
BUSY = 0.15
"""Share of the CPUs above which other load lowers what is reached."""
Told = Callable[[str, float], None]


def measure(device: Device, threads: int | None = None, *, power_mode: str | None = None, size: int | None = None,
            copy_bytes: int = COPY_BYTES, repeats: int = REPEATS, min_s: float = MIN_S,
            clock: Callable[[], int] = time.perf_counter_ns,
            told: Told = lambda what, share: None) -> Ceilings:
    """Return what this machine's CPUs reach at best, in every precision that an installed runtime executes on them.

    Args:
        device: As declared; its datasheet's peaks stand beside.
        threads: CPU threads; the usable CPUs where None.
        power_mode: As observed, for the record.
        size: Side of the square matrices.
        copy_bytes: Of the buffer that is copied.
        repeats: Products and copies at least.
        min_s: Seconds at least, each.
        clock: Monotonic nanoseconds.
        told: Told (what, share done).

    Raises:
        CannotMeasure: The device computes on a GPU.
    """
    if device.kind in ("gpu", "jetson"):
        raise CannotMeasure(f"ceilings are measured on CPUs only so far, and {device.id} computes on its GPU",
                            "--device cpu measures those of its CPUs")
    usable = environment.usable_cpus()
    count = threads or usable
    seen = environment.observe({}, load_before=environment.busy_cpus())
    side = size or next(side for most, side in SIZES.items() if count <= most)
    told("copying", 0.0)
    with ThreadPoolExecutor(count) as pool:
        bytes_per_s, copies = roofline.best_rate(*roofline.numpy_copy(copy_bytes, pool, count), repeats=repeats,
                                                 min_s=min_s, clock=clock)
    found: dict[str, tuple[float, int, str]] = {}
    absent: dict[str, str] = {}
    candidates = list(_products(side, count, usable, absent))
    for number, (precision, who, run) in enumerate(candidates):
        told(f"{precision} by {who}", number / len(candidates))
        try:
            rate, runs = roofline.best_rate(run, 2.0 * side**3, repeats=repeats, min_s=min_s, clock=clock)
        except CannotMeasure as error:
            absent[precision] = f"{who}: {error.message}"
            continue
        if precision not in found or rate > found[precision][0]:
            found[precision] = rate, runs, f"product of two {side} x {side} matrices, {who}, {count} threads"
    copied = f"copies of {copy_bytes / 2**20:g} MiB by NumPy, {count} threads, best of {copies}"
    return Ceilings(
        schema=SCHEMA, device=device.id, cpu=seen.cpu, threads=count,
        measured_at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        conditions=_conditions(seen, power_mode, copied),
        ceilings=(*(_dense(device, precision, *one, bytes_per_s) for precision, one in found.items()),
                  *_sparse(device, found, bytes_per_s)),
        absent={precision: reason for precision, reason in absent.items() if precision not in found})


def _products(side: int, threads: int, usable: int, absent: dict[str, str],
              ) -> Iterator[tuple[str, str, Callable[[], object]]]:
    """Yield (precision, who runs it, product) for all that can be run here; notes what cannot in `absent`."""
    if threads == usable:  # NumPy's library takes all of them
        yield "fp32", f"NumPy {np.__version__}", roofline.numpy_gemm(side)[0]
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
        for recipe in _recipes(absent):
            backend = backends.get(recipe.backend)
            entry = files["int8" if recipe.precision == "int8" else "fp32"]
            ran = backend.executed_precision(entry, recipe, feeds, threads=threads)
            who = ", ".join(f"{name} {version}" for name, version in backend.packages().items())
            if ran.executed != recipe.precision:
                absent.setdefault(recipe.precision, f"{who} executed the product in {ran.executed}")
                continue
            session = backend.open_session(entry, recipe, batch=side, threads=threads)
            yield recipe.precision, who, partial(session.infer, feeds)


def _recipes(absent: dict[str, str]) -> list[Recipe]:
    """Return a recipe per runtime and precision that runs on the CPU here."""
    chosen: dict[tuple[str, str], Recipe] = {}
    for recipe in catalog.recipes().values():
        if recipe.backend not in RUNTIMES or recipe.providers:
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


def _dense(device: Device, precision: str, rate: float, runs: int, method: str, bytes_per_s: float) -> Ceiling:
    peak = device.peak(precision, ENGINE)
    return Ceiling(
        precision=precision, sparsity="dense", flops_per_s=rate, bytes_per_s=bytes_per_s, method=method, repeats=runs,
        datasheet_flops_per_s=peak.dense if peak else None, datasheet_mark=peak.mark if peak else "",
        datasheet_bytes_per_s=device.memory_bandwidth_bytes_per_s)


def _sparse(device: Device, precisions: Sequence[str] | dict[str, tuple[float, int, str]], bytes_per_s: float,
            ) -> Iterator[Ceiling]:
    for precision in precisions:
        peak = device.peak(precision, ENGINE)
        if peak is not None and peak.sparse is not None:
            yield Ceiling(
                precision=precision, sparsity="structured", flops_per_s=None, bytes_per_s=bytes_per_s, repeats=0,
                method="not measured: no runtime here executes structured sparsity", datasheet_mark=peak.mark,
                datasheet_flops_per_s=peak.sparse, datasheet_bytes_per_s=device.memory_bandwidth_bytes_per_s)


def _conditions(seen: Environment, power_mode: str | None, copied: str) -> dict[str, str]:
    busy = seen.load_before
    return {"copies": copied, "CPUs busy before": "unknown" if busy is None else f"{busy:.2f}",
            "governor": seen.governor or "unknown: the kernel shows none", "host": seen.hostname, "system": seen.os,
            "edgebench": __version__, "numpy": seen.packages["numpy"],
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
    write_json(file, found, CACHE_HINT)
    return file


def kept(device: str, cpu: str, threads: int) -> Ceilings | None:
    """Return what was measured on this machine earlier; None where nothing was.

    Raises:
        InvalidInput: The file is damaged.
    """
    file = _file(device, cpu, threads)
    return decode(Ceilings, read_json(file), str(file)) if file.is_file() else None


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
