"""What is observed about the machine: nothing here is declared, and unknown stays None."""

from __future__ import annotations

import os
import platform
import re
import socket
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import __version__ as pillow_version

from edgebench.observed import MemoryTaken
from edgebench.record import Environment
from edgebench.telemetry import clocks

# Instruction-set extensions that decide which kernels a runtime picks.
FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_bf16", "amx_int8", "asimddp", "i8mm",
            "bf16", "sve")


@dataclass(frozen=True, slots=True, kw_only=True)
class FreeMemory:
    """Memory that could be taken at one moment."""

    available_bytes: int | None
    """The kernel's estimate (``MemAvailable``); None where it makes none."""
    contiguous_bytes: int | None
    """Of it, in the area that devices share in one piece (``CmaFree``); None where there is no such area."""

    def less(self, later: FreeMemory) -> MemoryTaken:
        """Return how much was taken until `later`; by other processes too."""
        def fallen(before: int | None, after: int | None) -> int | None:
            return None if before is None or after is None else before - after

        return MemoryTaken(available_bytes=fallen(self.available_bytes, later.available_bytes),
                           contiguous_bytes=fallen(self.contiguous_bytes, later.contiguous_bytes))


def observe(packages: dict[str, str], root: Path = Path("/"), load_before: float | None = None) -> Environment:
    """Return the environment now.

    Args:
        packages: Versions of the runtime.
        root: Where ``proc`` and ``sys`` hang.
        load_before: Busy CPUs before timing, when the caller noted them.
    """
    cpu, features = processor(root)
    return Environment(
        hostname=socket.gethostname(), os=f"{platform.system()} {platform.release()}",
        python=platform.python_version(), machine=platform.machine(), cpu=cpu, cpu_features=features,
        cpus_online=os.cpu_count() or 1, cpus_usable=usable_cpus(root), memory_bytes=_memory_bytes(root, "MemTotal"),
        governor=clocks.governor(root, "cpu"), gpu_governor=clocks.governor(root, "gpu"),
        clocks_pinned=clocks.pinned(root), cpu_limit=cpu_limit(root), memory_limit_bytes=memory_limit_bytes(root),
        load_before=load_before, load_after=busy_cpus(root),
        packages={**packages, "numpy": np.__version__, "pillow": pillow_version})


def usable_cpus(root: Path = Path("/")) -> int:
    """Return how many CPUs this process may use, after affinity and the container's quota (at least 1)."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit = cpu_limit(root)
    return count if limit is None else min(count, max(1, int(limit)))


def cpu_limit(root: Path = Path("/")) -> float | None:
    """Return how many CPUs' time the container's quota gives; None where it has none."""
    group = root / "sys/fs/cgroup"
    # Version 2 has one file with both numbers, version 1 two, with -1 for "no limit".
    quotas = [_text(group / "cpu.max") or "", *(
        f"{_text(group / folder / 'cpu.cfs_quota_us')} {_text(group / folder / 'cpu.cfs_period_us')}"
        for folder in ("cpu", "cpu,cpuacct"))]
    found = (re.fullmatch(r"(\d+) ([1-9]\d*)", quota) for quota in quotas)
    return next((int(one[1]) / int(one[2]) for one in found if one), None)


def memory_limit_bytes(root: Path = Path("/")) -> int | None:
    """Return the container's memory limit; None where it has none."""
    for path in ("sys/fs/cgroup/memory.max", "sys/fs/cgroup/memory/memory.limit_in_bytes"):
        limit = _text(root / path) or ""
        # Version 1 writes the largest page-aligned 63-bit number for "no limit".
        if limit.isdigit() and int(limit) < 2**62:
            return int(limit)
    return None


def busy_cpus(root: Path = Path("/"), seconds: float = 0.5) -> float | None:
    """Return how many CPUs were in use during `seconds` from now, this process asleep; None where none can tell.

    The load average would still count what this program itself did in the minute before.
    """
    before = _cpu_times(root)
    time.sleep(seconds)
    after = _cpu_times(root)
    if before is None or after is None or after[1] <= before[1]:
        return None
    return (after[0] - before[0]) / (after[1] - before[1]) * (os.cpu_count() or 1)


def _cpu_times(root: Path) -> tuple[int, int] | None:
    """Return jiffies (in use, in all) over all CPUs."""
    words = (_text(root / "proc/stat") or "").split("\n", 1)[0].split()
    if len(words) < 6 or words[0] != "cpu":
        return None
    times = [int(word) for word in words[1:9]]
    return sum(times) - times[3] - times[4], sum(times)


def supports_bf16(features: tuple[str, ...]) -> bool:
    """Return whether the CPU computes in bf16; without, runtimes fall back to FP32."""
    return any(feature in features for feature in ("avx512_bf16", "amx_bf16", "bf16"))


def is_x86() -> bool:
    """Return whether this is an x86 CPU."""
    return platform.machine() in ("x86_64", "AMD64", "i686")


def lacks_vnni(features: tuple[str, ...] | None = None) -> bool:
    """Return whether INT8 products are summed in 16 bits, which saturate: x86 CPUs without VNNI and AMX."""
    return not any("vnni" in one or one == "amx_int8" for one in (cpu_features() if features is None else features))


def cpu_features(root: Path = Path("/")) -> tuple[str, ...]:
    """Return the instruction-set extensions in `FEATURES` that the CPU has."""
    return processor(root)[1]


def peak_memory_bytes(root: Path = Path("/")) -> int | None:
    """Return the high-water mark of this process's resident memory.

    From ``VmHWM``: ``getrusage`` would carry over the mark of the process that started this one.
    """
    for line in (_text(root / "proc/self/status") or "").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return None


def processor(root: Path = Path("/")) -> tuple[str, tuple[str, ...]]:
    """Return what the CPU is called, and the instruction-set extensions in `FEATURES` that it has."""
    name, flags = platform.processor() or platform.machine(), set[str]()
    for line in (_text(root / "proc/cpuinfo") or "").splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "Model"):
            name = value.strip()
        elif key.strip() in ("flags", "Features"):
            flags |= set(value.split())
    return name, tuple(feature for feature in FEATURES if feature in flags)


def free_memory(root: Path = Path("/")) -> FreeMemory:
    """Return how much of the machine's memory could be taken now."""
    return FreeMemory(available_bytes=_memory_bytes(root, "MemAvailable"),
                      contiguous_bytes=_memory_bytes(root, "CmaFree") if _memory_bytes(root, "CmaTotal") else None)


def usable_memory_bytes(root: Path = Path("/")) -> int | None:
    """Return what further processes can take, swap included, before the kernel has to end one; None where unknown."""
    available = _memory_bytes(root, "MemAvailable")
    if available is None:
        return None
    free = available + (_memory_bytes(root, "SwapFree") or 0)
    return min(free, memory_limit_bytes(root) or free)


def own_memory_bytes(root: Path = Path("/")) -> int | None:
    """Return this process's own memory, without mapped files; None where unknown."""
    found = re.search(r"^RssAnon:\s*(\d+) kB$", _text(root / "proc/self/status") or "", re.MULTILINE)
    return int(found[1]) * 1024 if found else None


def _memory_bytes(root: Path, what: str) -> int | None:
    found = re.search(rf"^{what}:\s*(\d+) kB$", _text(root / "proc/meminfo") or "", re.MULTILINE)
    return int(found[1]) * 1024 if found else None


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None
