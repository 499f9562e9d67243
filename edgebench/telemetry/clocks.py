"""Clocks: GPU through devfreq, CPU through cpufreq, and how long the CPU stayed at each frequency."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from edgebench.telemetry.files import Reading, number, numbered, text
from edgebench.telemetry.types import Absent, Channel

GPU_DEVFREQ = re.compile(r"(?:[0-9a-f]+\.)?(?:gpu|ga10b|gv11b|gp10b|gm20b)|gpu-(?:gpc|nvd)-\d+")
"""Names of the GPU's devfreq on Nano (``57000000.gpu``), Xavier, Orin and Thor (one per GPC)."""


class Clocks:
    """GPU clocks and the frequency of each CPU cluster, in Hz, with their governors when it was made."""

    interval_s = 0.2

    def __init__(self, root: Path) -> None:
        self._channels: list[Channel] = []
        self._files: list[tuple[Path, float]] = []
        self.governors: dict[str, str] = {}
        self.max_hz: dict[str, float] = {}
        self._absent: list[Absent] = []
        for folder in numbered(root / "sys/class/devfreq", "*"):
            if GPU_DEVFREQ.fullmatch(folder.name):
                self._add(f"gpu/{folder.name}", folder / "cur_freq", 1.0, folder / "governor", folder / "max_freq")
        for name, policy in policies(root).items():
            self._add(f"cpu/{name}", policy / "scaling_cur_freq", 1e3, policy / "scaling_governor",
                      policy / "scaling_max_freq")
        if not any(name.startswith("cpu/") for name in (channel.name for channel in self._channels)):
            self._absent.append(Absent(what="CPU clock", reason="the kernel shows no cpufreq: the hypervisor or the "
                                       "firmware sets the clock"))

    @property
    def channels(self) -> tuple[Channel, ...]:
        """GPU clocks first, then one per CPU cluster."""
        return tuple(self._channels)

    @property
    def absent(self) -> tuple[Absent, ...]:
        """CPU clock where there is no cpufreq."""
        return tuple(self._absent)

    def read(self) -> tuple[Reading, ...]:
        """Return Hz per clock."""
        return tuple(number(path, scale) for path, scale in self._files)

    def close(self) -> None:
        """Nothing is held open."""

    def _add(self, name: str, path: Path, scale: float, governor: Path, limit: Path) -> None:
        self._channels.append(Channel(name=name, label=name.partition("/")[2], quantity="clock_hz", source=str(path)))
        self._files.append((path, scale))
        chosen, highest = text(governor), number(limit, scale)
        if chosen is not None:
            self.governors[name] = chosen
        if not isinstance(highest, str):
            self.max_hz[name] = highest


def policies(root: Path) -> dict[str, Path]:
    """Return the folder of each CPU cluster's frequency policy by its name."""
    cpu = root / "sys/devices/system/cpu"
    found = {path.name: path for path in numbered(cpu / "cpufreq", "policy*")}
    # Where there is no folder of policies, each is linked into its CPUs.
    linked = {path.resolve(): path for path in reversed(numbered(cpu, "cpu[0-9]*/cpufreq"))}
    return found or {path.parent.name: path for path in reversed(linked.values())}


@dataclass(frozen=True, slots=True, kw_only=True)
class Residency:
    """Share of time that one CPU cluster spent at each frequency between two looks."""

    policy: str
    shares: dict[str, float]
    """By frequency in kHz, as the kernel writes it; 0 to 1, frequencies that were not used left out."""
    top_share: float
    """Share at the highest frequency that the kernel lists."""
    mean_hz: float


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
