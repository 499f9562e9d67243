"""Which declared device this machine is, with the evidence, and whether a declared device is the one at hand.

Jetson modules are told apart by their part number (``P3767-0003``): in the device tree's SKU and compatible strings, in
the module's EEPROM, and in what the flashing tool noted. Names of carrier boards and developer kits say nothing of the
module that sits on them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edgebench.device import Device
from edgebench.environment import cpu_features
from edgebench.errors import CannotMeasure, unknown
from edgebench.record import Caveat
from edgebench.telemetry import nvpmodel
from edgebench.telemetry.commands import Runner
from edgebench.telemetry.files import numbered, text

JETPACKS = (("32.6", "4.6"), ("32.7", "4.6"), ("36.4.0", "6.1"), ("36.4.3", "6.2"), ("36.4", "6.2.1"), ("36.3", "6.0"),
            ("36.5", "6.2.2"), ("35.", "5"), ("38.2", "7.0"), ("38.4", "7.1"), ("39.2", "7.2"))
"""JetPack by the beginning of the L4T release; the first that fits counts. Source: meta-tegra recipes."""
ORDER = ("jetson", "board", "gpu", "cpu")
MEMORY_SHOWN = (0.75, 1.01)
"""Share of the declared memory that a kernel shows: firmware and carve-outs keep up to a fifth."""
MOST_TRUSTED = ("EEPROM", "device tree SKU", "device tree", "flashing tool")


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """Something seen on the machine that tells what it is."""

    what: str
    value: str
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """A declared device that this machine has or is."""

    device: str
    evidence: tuple[Evidence, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recognition:
    """What was seen, and which declared devices fit, the most special first."""

    matches: tuple[Match, ...]
    model: str | None
    """As the device tree calls the machine; None on x86."""
    compatible: tuple[str, ...] = ()
    jetson: bool = False
    modules: tuple[Evidence, ...] = ()
    """Part numbers by source, the most trusted first."""
    l4t: str | None = None
    """Release of NVIDIA's Linux for Tegra, such as ``36.4.3``."""
    jetpack: str | None = None
    """Release that belongs to `l4t`; None where the table does not know it."""
    power_mode: str | None = None
    memory_bytes: int | None = None
    gpus: tuple[str, ...] = ()
    """As NVML calls them."""
    cpu_features: tuple[str, ...] = ()

    @property
    def module(self) -> str | None:
        """The part number that is trusted most."""
        return self.modules[0].value if self.modules else None

    def describe(self) -> str:
        """Return what this machine is, in a few words."""
        if self.model:
            return self.model + (f", module {self.module}" if self.module else "")
        return f"a machine with {self.gpus[0]}" if self.gpus else "a machine without a device tree, such as a PC"


def recognise(root: Path, devices: Mapping[str, Device], *, gpus: tuple[str, ...] = (),
              runner: Runner | None = None) -> Recognition:
    """Return which of `devices` this machine is or has.

    Args:
        root: Where ``proc``, ``sys`` and ``etc`` hang.
        devices: Declared devices by id.
        gpus: What NVML calls each GPU (`edgebench.telemetry.nvml.gpu_names`).
        runner: Asks ``nvpmodel`` for the power mode; None: its status file alone.
    """
    tree = next((path for path in (root / "proc/device-tree", root / "sys/firmware/devicetree/base")
                 if path.is_dir()), root / "proc/device-tree")
    model, compatible = text(tree / "model"), _strings(tree / "compatible")
    release = _release(root)
    jetson = release is not None or any(re.match(r"nvidia,(?:tegra|jetson|p\d{4})", one) for one in compatible)
    modules = _modules(root, tree, compatible, devices) if jetson else ()
    features = cpu_features(root)
    mode = None
    if jetson:
        now = nvpmodel.current(root, runner) if runner else None
        mode = (now.name or None) if now else _mode_from_status(root)
    matches = [*_jetson(devices, modules, compatible), *_boards(devices, compatible, model), *_gpus(devices, gpus),
               *_cpus(devices, features)]
    return Recognition(
        matches=tuple(matches), model=model, compatible=compatible, jetson=jetson, modules=modules, l4t=release,
        jetpack=next((jetpack for start, jetpack in JETPACKS if (release or "").startswith(start)), None),
        power_mode=mode, memory_bytes=_memory(root), gpus=gpus, cpu_features=features)


def choose(name: str, found: Recognition, devices: Mapping[str, Device]) -> Device:
    """Return the device for ``--device``: an id, or ``auto``, ``jetson``, ``cuda``, which are recognised.

    Raises:
        UsageError: No device has that id.
        CannotMeasure: ``jetson`` or ``cuda`` where there is none, or a module or GPU that no file describes.
    """
    kinds = {"auto": ORDER, "jetson": ("jetson",), "cuda": ("jetson", "gpu")}.get(name)
    if kinds is None:
        if name not in devices:
            raise unknown("device", name, devices)
        return devices[name]
    fitting = [devices[match.device] for match in found.matches if devices[match.device].kind in kinds]
    own = "describe it in a TOML file like those in devices/ and give that with --device FILE.toml"
    # Its CPU would be measured silently in place of its GPU.
    if found.jetson and not any(one.kind == "jetson" for one in fitting):
        raise CannotMeasure(f"this is a Jetson that no file in devices/ describes: {found.describe()}", own)
    if fitting:
        return fitting[0]
    if name == "jetson":
        raise CannotMeasure(f"this host is no Jetson: it is {found.describe()}",
                            "run this command on the board itself, or measure this host with --device auto")
    if found.gpus:
        raise CannotMeasure(f"no file in devices/ describes {found.gpus[0]!r}", own)
    raise CannotMeasure("there is no NVIDIA GPU here", "edgebench doctor says what was looked for; --device auto "
                        "measures the CPU")


def declared_vs_observed(device: Device, found: Recognition) -> tuple[Caveat, ...]:
    """Return the doubts whether this machine is what `device` declares.

    Raises:
        CannotMeasure: It is certainly not.
    """
    caveats: list[Caveat] = []
    if device.kind == "jetson":
        caveats += _check_jetson(device, found)
    if device.kind == "board" and device.compatible and not set(device.compatible) & set(found.compatible):
        raise CannotMeasure(f"device {device.id!r} is declared, but this is {found.describe()}",
                            "use --device auto to have the device recognised")
    if device.kind == "gpu" and not set(device.nvml_names) & set(found.gpus):
        raise CannotMeasure(f"device {device.id!r} is declared ({' or '.join(device.nvml_names)}), but NVML shows "
                            f"{', '.join(found.gpus) or 'no GPU'}", "use --device auto to have the device recognised")
    lacking = [one for one in device.cpu_features if one not in found.cpu_features]
    if lacking:
        raise CannotMeasure(f"device {device.id!r} is declared, but this CPU has no {', '.join(lacking)}",
                            "use --device cpu")
    shared = device.memory_shared or device.kind != "gpu"
    if shared and device.memory_bytes is not None and found.memory_bytes is not None:
        share = found.memory_bytes / device.memory_bytes
        if not MEMORY_SHOWN[0] <= share <= MEMORY_SHOWN[1]:
            caveats.append(Caveat(
                code="memory-differs", message=f"{device.id} is declared with {device.memory_bytes / 2**30:.0f} GiB, "
                f"the kernel shows {found.memory_bytes / 2**30:.1f} GiB",
                hint="another module of the same family, or memory kept back at boot: check the part number"))
    return tuple(caveats)


def _check_jetson(device: Device, found: Recognition) -> list[Caveat]:
    if not found.jetson:
        raise CannotMeasure(f"device {device.id!r} is a Jetson, but this host is none: it is {found.describe()}",
                            "run this command on the board itself, or measure this host with --device auto")
    caveats = []
    if found.module is not None and device.modules and found.module not in device.modules:
        raise CannotMeasure(f"device {device.id!r} is declared (module {' or '.join(device.modules)}), but this module "
                            f"is {found.module}, says its {found.modules[0].source}",
                            "use --device jetson to have the module recognised")
    if found.module is None and not set(device.compatible) & set(found.compatible):
        caveats.append(Caveat(code="module-unknown", message="the module's part number cannot be read, so that "
                              f"{device.id} is believed unchecked", hint="as root its EEPROM can be read"))
    others = sorted({one.value for one in found.modules} - set(device.modules)) if found.module else []
    if others:
        sources = ", ".join(f"{one.value} by {one.source}" for one in found.modules)
        caveats.append(Caveat(code="module-contradiction", message=f"sources disagree on the module: {sources}",
                              hint="the module was changed after flashing, or its configuration was edited"))
    major = (found.jetpack or "").partition(".")[0]
    if major and device.jetpacks and major not in device.jetpacks:
        caveats.append(Caveat(code="jetpack-unexpected", message=f"JetPack {found.jetpack} (L4T {found.l4t}) is not "
                              f"among those known for {device.id}: {', '.join(device.jetpacks)}",
                              hint="power modes and sensors may be others than the device file says"))
    names = {mode.name for mode in device.power_modes}
    if found.power_mode and names and found.power_mode not in names:
        caveats.append(Caveat(code="power-mode-unknown", message=f"power mode {found.power_mode} is in force, which "
                              f"the device file does not list ({', '.join(sorted(names))})",
                              hint="its clock caps are whatever /etc/nvpmodel.conf says"))
    return caveats


def _jetson(devices: Mapping[str, Device], modules: tuple[Evidence, ...], compatible: tuple[str, ...]) -> list[Match]:
    if modules:
        return [Match(device=one.id, evidence=tuple(seen for seen in modules if seen.value in one.modules))
                for one in devices.values() if one.kind == "jetson" and modules[0].value in one.modules]
    return _by_compatible(devices, "jetson", compatible)


def _boards(devices: Mapping[str, Device], compatible: tuple[str, ...], model: str | None) -> list[Match]:
    extra = (Evidence(what="model", value=model, source="device tree"),) if model else ()
    return [Match(device=one.device, evidence=(*one.evidence, *extra))
            for one in _by_compatible(devices, "board", compatible)]


def _by_compatible(devices: Mapping[str, Device], kind: str, compatible: tuple[str, ...]) -> list[Match]:
    found = []
    for one in devices.values():
        common = [name for name in compatible if name in one.compatible]
        if one.kind == kind and common:
            found.append(Match(device=one.id, evidence=(Evidence(what="compatible", value=common[0],
                                                                 source="device tree"),)))
    return found


def _gpus(devices: Mapping[str, Device], gpus: tuple[str, ...]) -> list[Match]:
    return [Match(device=one.id, evidence=(Evidence(what="GPU", value=gpu, source="NVML"),))
            for gpu in dict.fromkeys(gpus) for one in devices.values() if one.kind == "gpu" and gpu in one.nvml_names]


def _cpus(devices: Mapping[str, Device], features: tuple[str, ...]) -> list[Match]:
    fitting = [one for one in devices.values() if one.kind == "cpu" and set(one.cpu_features) <= set(features)]
    fitting.sort(key=lambda one: -len(one.cpu_features))
    return [Match(device=one.id, evidence=tuple(Evidence(what="instruction set", value=name, source="/proc/cpuinfo")
                                                for name in one.cpu_features)) for one in fitting]


def _modules(root: Path, tree: Path, compatible: tuple[str, ...],
             devices: Mapping[str, Device]) -> tuple[Evidence, ...]:
    found: dict[str, Evidence] = {}

    def note(value: str, source: str, what: str) -> None:
        found.setdefault(what, Evidence(what="module", value=value, source=source))

    for path in numbered(root / "sys/bus/i2c/devices", "*-0050/eeprom"):
        try:
            seen = re.search(rb"699-[18](\d{4})-(\d{4})", path.read_bytes())
        except OSError:
            continue
        if seen:
            note(f"P{seen[1].decode()}-{seen[2].decode()}", f"EEPROM ({path.parent.name})", "EEPROM")
    sku = re.search(r"699-[18](\d{4})-(\d{4})", text(tree / "chosen/nvidia,sku") or "")
    if sku:
        note(f"P{sku[1]}-{sku[2]}", "device tree's SKU", "device tree SKU")
    known = {module for one in devices.values() for module in one.modules}
    families = {module.partition("-")[0] for module in known}
    parts = [f"P{one}-{two}" for name in compatible for one, two in re.findall(r"p(\d{4})-(\d{4})", name)]
    # A compatible string names carrier and module; only modules are declared.
    for part in (*(one for one in parts if one in known), *(one for one in parts if one.partition("-")[0] in families)):
        note(part, "device tree's compatible string", "device tree")
    spec = re.search(r"^TNSPEC (\d{4})-\w*-(\d{4})-", text(root / "etc/nv_boot_control.conf") or "", re.MULTILINE)
    if spec:
        note(f"P{spec[1]}-{spec[2]}", "flashing tool's note (nv_boot_control.conf)", "flashing tool")
    return tuple(found[what] for what in MOST_TRUSTED if what in found)


def _strings(path: Path) -> tuple[str, ...]:
    try:
        return tuple(one for one in path.read_bytes().decode("utf-8", "replace").split("\0") if one.strip())
    except OSError:
        return ()


def _release(root: Path) -> str | None:
    found = re.search(r"R(\d+) \(release\), REVISION: ([\d.]+)", text(root / "etc/nv_tegra_release") or "")
    return f"{found[1]}.{found[2]}" if found else None


def _mode_from_status(root: Path) -> str | None:
    found = re.search(r"pmode:(\d+)", text(root / nvpmodel.STATUS) or "")
    return next((mode.name for mode in nvpmodel.modes(root) if found and mode.id == int(found[1])), None)


def _memory(root: Path) -> int | None:
    found = re.search(r"^MemTotal:\s+(\d+) kB", text(root / "proc/meminfo") or "", re.MULTILINE)
    return int(found[1]) * 1024 if found else None
