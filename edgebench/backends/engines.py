"""TensorRT engines as files: what one was built from, for and by; where it may be loaded; the cache of built ones.

A plan is machine code: it is loaded only where its hash, the ONNX file it came from, the TensorRT version and the
device are those that its record names.
"""

from __future__ import annotations

import hashlib
import json
import platform
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from msgspec import to_builtins

from edgebench.backends.cuda import Gpu
from edgebench.errors import CannotMeasure, InvalidInput
from edgebench.imagecache import cache_root
from edgebench.recipe import Build, Precision, Recipe
from edgebench.record import decode, read_json, sha256_file, write_bytes, write_json

Flavour = Literal["tensorrt", "tensorrt_rtx"]
TITLES: dict[Flavour, str] = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT-RTX"}
FOLDER = "engine"
"""Within an artifact, beside the ONNX file."""
RECORD = "engine.json"
SCHEMA = "edgebench-engine-1"
CACHE_HINT = "the folder for built engines is full or cannot be written: point EDGEBENCH_CACHE elsewhere"


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where an engine is built or loaded: the library, the platform and, where there is one, the GPU."""

    flavour: Flavour
    version: str
    """Of the library, such as ``10.3.0``."""
    device: str | None = None
    """Name of the GPU; None where engines are built ahead of time."""
    compute_capability: str | None = None
    platform: str | None = None
    """Operating system and CPU architecture, such as ``Linux aarch64``; None in records that do not say."""

    @classmethod
    def of(cls, flavour: Flavour, version: str, gpu: Gpu | None) -> Target:
        """Return this machine as a target."""
        here = cls(flavour=flavour, version=version, platform=f"{platform.system()} {platform.machine()}")
        if gpu is None:
            return here
        return replace(here, device=gpu.name, compute_capability=".".join(map(str, gpu.compute_capability)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """What a build reported, beside the plan itself."""

    seconds: float
    compute_layers: dict[str, int]
    """Convolutions and matrix products of the parsed network by precision; strong typing builds exactly these."""
    placement: dict[str, int]
    """Parsed layers by the device that they were given to: ``GPU``, ``DLA``."""
    capabilities: tuple[str, ...] = ()
    """Compute capabilities that were built for ahead of time."""
    batches: tuple[int, int, int] | None = None
    """Fewest, usual and most images of the optimization profile; None where the graph's batch is fixed."""
    timing_cache_sha256: str | None = None
    """Of the tactic timings that the build started from; None where it timed everything itself."""
    warnings: tuple[str, ...] = ()
    """What the builder complained about."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """The record beside a plan."""

    schema: str
    plan: str
    """File name, in the record's folder."""
    plan_sha256: str
    plan_bytes: int
    onnx_sha256: str
    """Over the ONNX file and its external data."""
    target: Target
    precision: Precision
    """What the recipe asked for."""
    settings: Build
    build_number: int
    built: Built
    layers: dict[str, int] = field(default_factory=dict)
    """Layers of the plan by precision, as its inspector tells; empty where no GPU was there to load it."""


def onnx_digest(entry: Path) -> str:
    """Return the SHA-256 over an ONNX file and the external data beside it (files that start with its name)."""
    parts = [(path.name, sha256_file(path)) for path in sorted(entry.parent.glob(f"{entry.name}*")) if path.is_file()]
    if not parts:
        raise InvalidInput(f"{entry} is missing", "copy the whole artifact folder, or export again")
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def cache_folder(onnx_sha256: str, recipe: Recipe, target: Target, build_number: int) -> Path:
    """Return the folder of the engine that exactly this build makes."""
    key = json.dumps([SCHEMA, onnx_sha256, recipe.precision, recipe.float_precision, to_builtins(settings(recipe)),
                      to_builtins(target), build_number], sort_keys=True)
    return cache_root() / "engines" / hashlib.sha256(key.encode()).hexdigest()[:24]


def settings(recipe: Recipe) -> Build:
    """Return the recipe's build settings; its default ones where it has no ``[build]`` table."""
    return recipe.build or Build()


def save(folder: Path, plan: bytes, engine: Engine) -> Engine:
    """Write a plan and its record, the record last: a folder with one is complete."""
    write_bytes(folder / engine.plan, plan, CACHE_HINT)
    saved = replace(engine, plan_sha256=hashlib.sha256(plan).hexdigest(), plan_bytes=len(plan))
    write_json(folder / RECORD, saved, CACHE_HINT)
    return saved


def read(folder: Path) -> Engine | None:
    """Return the record in `folder`, or None where there is none.

    Raises:
        InvalidInput: It is damaged, or of another schema.
    """
    file = folder / RECORD
    if not file.is_file():
        return None
    engine = decode(Engine, read_json(file), str(file))
    if engine.schema != SCHEMA:
        raise InvalidInput(f"{file}: expected schema {SCHEMA!r}, got {engine.schema!r}", "export again")
    if Path(engine.plan).name != engine.plan:
        raise InvalidInput(f"{file} names a plan outside its folder: {engine.plan!r}", "export again")
    return engine


def load(folder: Path, engine: Engine, target: Target, onnx_sha256: str) -> bytes:
    """Return the plan's bytes, which are code, after checking everything that must hold before it may run.

    Raises:
        InvalidInput: The plan was altered, or comes from another ONNX file.
        CannotMeasure: It was built for another TensorRT or device.
    """
    file = folder / engine.plan
    if engine.onnx_sha256 != onnx_sha256:
        raise InvalidInput(f"{file} was built from another ONNX file (SHA-256 {engine.onnx_sha256[:12]}…, the "
                           f"artifact's is {onnx_sha256[:12]}…)", "export again, or remove the engine's folder")
    reason = mismatch(engine, target)
    if reason is not None:
        raise CannotMeasure(f"{file} is not loaded: {reason}",
                            "export or profile on this device: engines are built there")
    try:
        plan = file.read_bytes()
    except OSError as error:
        raise InvalidInput(f"cannot read {file}: {error.strerror}", f"remove {folder} to build it anew") from error
    digest = hashlib.sha256(plan).hexdigest()
    if digest != engine.plan_sha256:
        raise InvalidInput(f"{file} was changed after it was built: expected SHA-256 {engine.plan_sha256[:12]}…, got "
                           f"{digest[:12]}…", f"remove {folder} to build it anew")
    return plan


def mismatch(engine: Engine, target: Target) -> str | None:
    """Return why an engine may not be loaded on `target`; None where it may."""
    origin = engine.target
    if origin.flavour != target.flavour:
        return f"it is a {TITLES[origin.flavour]} engine, and this is {TITLES[target.flavour]}"
    if origin.platform is not None and origin.platform != target.platform:
        return f"it was built on {origin.platform}, this is {target.platform}"
    if origin.version != target.version and not (
            engine.settings.version_compatible and _parts(origin.version)[0] == _parts(target.version)[0]
            and _parts(origin.version) <= _parts(target.version)):
        return (f"{TITLES[target.flavour]} {origin.version} built it, and this is {target.version}"
                + (" (version-compatible engines load in later versions of the same major one)"
                   if engine.settings.version_compatible else ""))
    if target.compute_capability is None:
        return "there is no GPU here"
    here = f"{target.device} with compute capability {target.compute_capability}"
    if origin.device is None:
        return None if target.compute_capability in engine.built.capabilities else \
            f"it was built ahead of time for compute capability {', '.join(engine.built.capabilities)}, this is {here}"
    level = engine.settings.hardware_compatibility
    if (origin.device, origin.compute_capability) == (target.device, target.compute_capability) \
            or (level == "same_compute_capability" and origin.compute_capability == target.compute_capability) \
            or (level == "ampere_plus" and _parts(target.compute_capability) >= (8, 0)):
        return None
    return f"it was built on {origin.device} with compute capability {origin.compute_capability}, this is {here}"


def other_settings(engine: Engine, recipe: Recipe) -> str | None:
    """Return why an engine is not what the recipe builds; None where it is."""
    if (engine.precision, engine.settings) != (recipe.precision, settings(recipe)):
        return "it was built with other settings"
    return None


def _parts(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def compiled_file(engine: Engine, target: Target) -> Path:
    """Return where what TensorRT-RTX compiled of an engine on this device is kept."""
    key = json.dumps([engine.plan_sha256, to_builtins(target)], sort_keys=True)
    return cache_root() / "engines" / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.compiled"


def timing_cache_file(target: Target) -> Path:
    """Return where the tactic timings of this library version on this device are kept."""
    name = "-".join(filter(None, (target.flavour, target.version, target.compute_capability, target.device)))
    plain = "".join(char if char.isalnum() or char in "._-" else "-" for char in name)
    return cache_root() / "engines" / f"{plain}.timing"
