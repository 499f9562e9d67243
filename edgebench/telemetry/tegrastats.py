"""Lines of ``tegrastats``, whose text differs between releases: parsed tolerantly, the raw line kept.

JetPack 4 writes ``POM_5V_IN 1750/1628`` and ``GR3D_FREQ 0%@76``; JetPack 5 and 6 ``VDD_IN 5251mW/8535mW`` (now/average)
and ``GR3D_FREQ 0%@[305]``; JetPack 7 three power figures (now/average/highest), two temperatures, and on Thor
``GR3D_FREQ @[314,314,314]`` without utilization. What a release does not write is absent, not zero.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_POWER = re.compile(r"\b([A-Z][A-Z0-9_]*) (-?\d+)(?:mW)?/-?\d+(?:mW)?(?:/-?\d+mW)?(?=\s|$)")
_MEMORY = re.compile(r"\bRAM (\d+)/(\d+)MB")
_TEMPERATURE = re.compile(r"\b([A-Za-z][A-Za-z0-9_]*)@(-?\d+(?:\.\d+)?)C\b")
_GPU = re.compile(r"\bGR3D_FREQ(?: (\d+)%)?(?: ?@\[?([\d, off]+)\]?)?")
_MEMORY_CLOCK = re.compile(r"\bEMC_FREQ(?: (\d+)%)?(?: ?@(\d+))?")
_CPU = re.compile(r"\bCPU \[([^\]]*)\]")
_CORE = re.compile(r"(\d+)%(?:@(\d+))?|off")


@dataclass(frozen=True, slots=True, kw_only=True)
class TegrastatsLine:
    """One line; fields that it does not hold are None or empty."""

    raw: str
    memory_used_bytes: int | None = None
    memory_total_bytes: int | None = None
    power_w: dict[str, float]
    """By rail, the momentary figure."""
    temperature_c: dict[str, float]
    """By zone in lower case; zones that are off are left out."""
    gpu_utilization: float | None = None
    """0 to 1; None where it is not written, as on Thor with JetPack 7.0."""
    gpu_clocks_hz: tuple[float, ...] = ()
    """One per GPC."""
    memory_clock_hz: float | None = None
    cpu_utilization: tuple[float | None, ...] = ()
    """Per core, 0 to 1; None: switched off."""
    cpu_clocks_hz: tuple[float | None, ...] = ()


def parse(line: str) -> TegrastatsLine:
    """Return what one line says."""
    memory, gpu, emc, cpu = (pattern.search(line) for pattern in (_MEMORY, _GPU, _MEMORY_CLOCK, _CPU))
    cores = list(_CORE.finditer(cpu[1])) if cpu else []
    return TegrastatsLine(
        raw=line.rstrip("\n"),
        memory_used_bytes=int(memory[1]) * 2**20 if memory else None,
        memory_total_bytes=int(memory[2]) * 2**20 if memory else None,
        power_w={rail: int(value) / 1e3 for rail, value in _POWER.findall(line) if rail not in ("NC", "RAM", "SWAP")},
        temperature_c={zone.lower(): float(value) for zone, value in _TEMPERATURE.findall(line) if float(value) > -60},
        gpu_utilization=int(gpu[1]) / 100 if gpu and gpu[1] else None,
        gpu_clocks_hz=tuple(int(one) * 1e6 for one in re.findall(r"\d+", gpu[2])) if gpu and gpu[2] else (),
        memory_clock_hz=int(emc[2]) * 1e6 if emc and emc[2] else None,
        cpu_utilization=tuple(int(core[1]) / 100 if core[1] else None for core in cores),
        cpu_clocks_hz=tuple(int(core[2]) * 1e6 if core[2] else None for core in cores))
