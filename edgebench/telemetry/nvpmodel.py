"""Power modes of Jetson boards: which there are, which is in force, and how to change it by name.

Ids differ between boards and releases, so that modes are chosen by name from ``/etc/nvpmodel.conf``. Some changes need
a reboot and ask on a prompt; without a terminal they fail and leave the old mode in force, often with exit status 0.
After every change the mode is therefore asked for again.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from edgebench.errors import CannotMeasure, unknown
from edgebench.telemetry.commands import Runner
from edgebench.telemetry.files import text

CONFIGURATION = "etc/nvpmodel.conf"
STATUS = "var/lib/nvpmodel/status"
_MODE = re.compile(r"<\s*POWER_MODEL\s+([^>]*)>")
_DEFAULT = re.compile(r"<\s*PM_CONFIG\s+DEFAULT=(\d+)\s*>")


@dataclass(frozen=True, slots=True, kw_only=True)
class Mode:
    """One power mode."""

    id: int
    name: str


def parse_modes(configuration: str) -> tuple[tuple[Mode, ...], int | None]:
    """Return the modes of an ``nvpmodel.conf`` and the id of its default; comment lines do not count."""
    lines = "\n".join(line for line in configuration.splitlines() if not line.lstrip().startswith("#"))
    modes = []
    for found in _MODE.finditer(lines):
        words = dict(word.partition("=")[::2] for word in found[1].split())
        if words.get("ID", "").isdigit() and words.get("NAME"):
            modes.append(Mode(id=int(words["ID"]), name=words["NAME"]))
    default = _DEFAULT.search(lines)
    return tuple(modes), int(default[1]) if default else None


def modes(root: Path) -> tuple[Mode, ...]:
    """Return the modes that this board offers; empty where it has no ``nvpmodel.conf``."""
    return parse_modes(text(root / CONFIGURATION) or "")[0]


def parse_query(output: str) -> Mode | None:
    """Return the mode in the output of ``nvpmodel -q``; None where there is none."""
    found = re.search(r"NV Power Mode:\s*(\S+)\s*\n\s*(\d+)\s*$", output, re.MULTILINE)
    return Mode(id=int(found[2]), name=found[1]) if found else None


def current(root: Path, runner: Runner) -> Mode | None:
    """Return the mode in force: as the tool says, else from its status file; None where neither tells."""
    asked = runner(("nvpmodel", "-q"))
    mode = parse_query(asked.output) if asked.code == 0 else None
    if mode is not None:
        return mode
    found = re.search(r"pmode:(\d+)", text(root / STATUS) or "")
    if not found:
        return None
    return next((one for one in modes(root) if one.id == int(found[1])), Mode(id=int(found[1]), name=""))


def find(root: Path, name: str) -> Mode:
    """Return the mode of that name, upper or lower case alike.

    Raises:
        CannotMeasure: This board has no ``nvpmodel.conf``.
        UsageError: No mode of that name; the known ones are listed.
    """
    offered = modes(root)
    if not offered:
        raise CannotMeasure("there are no power modes here: /etc/nvpmodel.conf is not there or lists none",
                            "power modes exist on Jetson boards; in a container mount that file")
    for mode in offered:
        if mode.name.lower() == name.lower():
            return mode
    raise unknown("power mode", name, (mode.name for mode in offered))


def switch(root: Path, runner: Runner, wanted: Mode) -> None:
    """Change to a mode and ask whether it is in force.

    Raises:
        CannotMeasure: It is not: a reboot is needed, the rights are missing, or the tool failed.
    """
    done = runner(("nvpmodel", "-m", str(wanted.id)))
    now = current(root, runner)
    if now is not None and now.id == wanted.id:
        return
    stays = f"the board stays at {now.name or now.id}" if now is not None else "the mode in force cannot be told"
    by_hand = f"sudo nvpmodel -m {wanted.id}"
    if re.search(r"reboot", done.output, re.IGNORECASE):
        raise CannotMeasure(f"power mode {wanted.name} needs a reboot; {stays}",
                            f"run {by_hand}, answer YES, and measure after the reboot")
    if done.code == 127:
        raise CannotMeasure(f"cannot change to power mode {wanted.name}: {done.output.strip()}; {stays}")
    last = done.output.strip().splitlines()[-1:] or [f"exit status {done.code}"]
    raise CannotMeasure(f"power mode {wanted.name} did not come into force: {last[0]}; {stays}",
                        f"it needs root: run edgebench with sudo, or {by_hand} before it")
