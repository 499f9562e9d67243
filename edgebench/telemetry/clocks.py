"""Clocks: GPU through devfreq, CPU through cpufreq, and how long the CPU stayed at each frequency."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from edgebench.telemetry.files import Reading, number, numbered, text
from edgebench.telemetry.types import Absent, Channel, Residency

GPU_DEVFREQ = re.compile(r"(?:[0-9a-f]+\.)?(?:gpu|ga10b|gv11b|gp10b|gm20b)|gpu-(?:gpc|nvd)-\d+")
"""Names of the GPU's devfreq on Nano (``57000000.gpu``), Xavier, Orin and Thor (one per GPC)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Domain:
    """One clock that the kernel sets: of a GPU, or of a CPU cluster."""

    name: str
    """Such as ``gpu/17000000.gpu`` or ``cpu/policy0``."""
    current: Path
    lowest: Path
    """Lowest frequency that may be chosen."""
    highest: Path
    governor: Path
    scale: float
    """From the files' unit to Hz."""


def domains(root: Path) -> tuple[Domain, ...]:
    """Return every clock that the kernel shows: GPUs first, then CPU clusters."""
    found = [Domain(name=f"gpu/{folder.name}", current=folder / "cur_freq", lowest=folder / "min_freq",
                    highest=folder / "max_freq", governor=folder / "governor", scale=1.0)
             for folder in numbered(root / "sys/class/devfreq", "*") if GPU_DEVFREQ.fullmatch(folder.name)]
    found += [Domain(name=f"cpu/{name}", current=policy / "scaling_cur_freq", lowest=policy / "scaling_min_freq",
                     highest=policy / "scaling_max_freq", governor=policy / "scaling_governor", scale=1e3)
              for name, policy in policies(root).items()]
    return tuple(found)


def pinned(root: Path) -> dict[str, bool]:
    """Return for ``gpu`` and ``cpu`` whether all their clocks have one single frequency to choose.

    A kind of which the kernel does not show both limits is left out.
    """
    found: dict[str, bool] = {}
    for one in domains(root):
        kind = one.name.partition("/")[0]
        low, high = number(one.lowest), number(one.highest)
        if not isinstance(low, str) and not isinstance(high, str):
            found[kind] = found.get(kind, True) and low == high
    return found


def governor(root: Path, kind: str) -> str | None:
    """Return the governors of the clocks of a kind (``gpu``, ``cpu``), each once; None where the kernel shows none."""
    found = [text(one.governor) for one in domains(root) if one.name.startswith(f"{kind}/")]
    return ", ".join(dict.fromkeys(one for one in found if one)) or None


class Clocks:
    """GPU clocks and the frequency of each CPU cluster, in Hz, with their governors when it was made."""

    interval_s = 0.2

    def __init__(self, root: Path) -> None:
        self._absent: list[Absent] = []
        found = domains(root)
        self._channels = tuple(Channel(name=one.name, label=one.name.partition("/")[2], quantity="clock_hz",
                                       source=str(one.current)) for one in found)
        self._files = [(one.current, one.scale) for one in found]
        self.governors = {one.name: chosen for one in found if (chosen := text(one.governor)) is not None}
        if not any(channel.name.startswith("cpu/") for channel in self._channels):
            self._absent.append(Absent(what="CPU clock", reason="the kernel shows no cpufreq: the hypervisor or the "
                                       "firmware sets the clock"))

    @property
    def channels(self) -> tuple[Channel, ...]:
        """GPU clocks first, then one per CPU cluster."""
        return self._channels

    @property
    def absent(self) -> tuple[Absent, ...]:
        """CPU clock where there is no cpufreq."""
        return tuple(self._absent)

    def read(self) -> tuple[Reading, ...]:
        """Return Hz per clock."""
        return tuple(number(path, scale) for path, scale in self._files)

    def close(self) -> None:
        """Nothing is held open."""


class ClockLimits:
    """By how many hertz the highest allowed frequency of each clock lies below what it was at the start.

    Heat, a service, or another user may lower it meanwhile; what holds from the beginning is no such event.
    """

    interval_s = 0.5

    def __init__(self, root: Path) -> None:
        self._limits = [(one, highest) for one in domains(root)
                        if not isinstance(highest := number(one.highest, one.scale), str)]

    @property
    def channels(self) -> tuple[Channel, ...]:
        """One per clock."""
        return tuple(Channel(name=f"limit/{one.name}", label=f"a lowered limit of {one.name.partition('/')[2]}",
                             quantity="level", source=str(one.highest)) for one, _ in self._limits)

    @property
    def absent(self) -> tuple[Absent, ...]:
        """Nothing: that there are no clocks is told by `Clocks`."""
        return ()

    def read(self) -> tuple[Reading, ...]:
        """Return Hz; 0 where the limit is as it was, or higher."""
        now = [number(one.highest, one.scale) for one, _ in self._limits]
        return tuple(limit if isinstance(limit, str) else max(0.0, first - limit)
                     for limit, (_, first) in zip(now, self._limits, strict=True))

    def close(self) -> None:
        """Nothing is held open."""


def policies(root: Path) -> dict[str, Path]:
    """Return the folder of each CPU cluster's frequency policy by its name."""
    cpu = root / "sys/devices/system/cpu"
    found = {path.name: path for path in numbered(cpu / "cpufreq", "policy*")}
    # Where there is no folder of policies, each is linked into its CPUs.
    linked = {path.resolve(): path for path in reversed(numbered(cpu, "cpu[0-9]*/cpufreq"))}
    return found or {path.parent.name: path for path in reversed(linked.values())}


def time_in_state(root: Path) -> dict[str, dict[int, int]]:
    """Return, by cluster, how many 10-ms ticks each frequency in kHz was used since boot."""
    found = {}
    for name, policy in policies(root).items():
        table = {}
        for line in (text(policy / "stats/time_in_state") or "").splitlines():
            words = line.split()
            if len(words) == 2 and all(word.isdigit() for word in words):
                table[int(words[0])] = int(words[1])
        if table:
            found[name] = table
    return found


def residency(before: dict[str, dict[int, int]], after: dict[str, dict[int, int]]) -> tuple[Residency, ...]:
    """Return where the time between two looks at `time_in_state` went; clusters that stood still are left out."""
    found = []
    for policy, table in after.items():
        grown = {khz: ticks - before.get(policy, {}).get(khz, 0) for khz, ticks in table.items()}
        total = sum(grown.values())
        # A cluster that was switched off in between starts counting afresh.
        if policy not in before or total <= 0 or min(grown.values()) < 0:
            continue
        found.append(Residency(policy=policy, top_share=grown[max(grown)] / total,
                               shares={str(khz): ticks / total for khz, ticks in sorted(grown.items()) if ticks},
                               mean_hz=sum(khz * 1e3 * ticks for khz, ticks in grown.items()) / total))
    return tuple(found)
