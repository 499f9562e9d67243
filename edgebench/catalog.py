"""Find a recipe, device or template by name or path, and decode it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, TypeVar

from edgebench.errors import InvalidInput, UsageError, unknown
from edgebench.files import read_text
from edgebench.recipe import Recipe
from edgebench.record import Device, decode

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

T = TypeVar("T")


def content(name: str) -> Path:
    """Return the folder ``export``, ``devices`` or ``reports``: inside an installed package, else beside it."""
    package = Path(__file__).parent
    installed = package / "_data" / name
    return installed if installed.is_dir() else package.parent / name


def read_toml(path: Path, kind: type[T]) -> T:
    """Decode a TOML file strictly.

    Raises:
        InvalidInput: Unreadable, not TOML, or an unknown, missing or wrong key.
    """
    text = read_text(path, "a TOML file")
    try:
        data: dict[str, Any] = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise InvalidInput(f"{path} is not valid TOML: {error}") from error
    return decode(kind, data, str(path))


def recipes() -> dict[str, Recipe]:
    """Return all shipped recipes by id."""
    return {path.stem: read_toml(path, Recipe) for path in sorted(content("export").glob("*.toml"))}


def devices() -> dict[str, Device]:
    """Return all shipped devices by id."""
    return {path.stem: read_toml(path, Device) for path in sorted(content("devices").glob("*.toml"))}


def recipe(name: str) -> Recipe:
    """Return the recipe of that id, or from that TOML file.

    Raises:
        UsageError: No such recipe; the nearest is suggested.
    """
    if name.endswith(".toml"):
        return read_toml(Path(name), Recipe)
    known = recipes()
    if name not in known:
        raise unknown("recipe", name, known)
    return known[name]


def device(name: str) -> Device:
    """Return the device of that id, or from that TOML file; ``auto`` is the CPU of this machine.

    Raises:
        UsageError: No such device; the nearest is suggested.
    """
    if name == "auto":
        name = "cpu"
    if name.endswith(".toml"):
        return read_toml(Path(name), Device)
    known = devices()
    if name not in known:
        raise unknown("device", name, known)
    return known[name]


def select_recipes(device: Device, names: tuple[str, ...], backends: tuple[str, ...],
                   precisions: tuple[str, ...]) -> tuple[Recipe, ...]:
    """Return the recipes asked for by name, or all that the device can run, narrowed by backend and precision.

    Raises:
        UsageError: An unknown name, or nothing is left.
    """
    known = recipes()
    chosen = tuple(recipe(name) for name in names) or tuple(
        one for one in known.values() if set(one.providers) <= set(device.providers))
    for one in chosen if names else ():
        if one.backend not in device.backends:
            raise UsageError(f"recipe {one.id!r} is for {one.backend}, which device {device.id!r} does not run",
                             f"it runs: {', '.join(device.backends)}")
    for word in backends:
        if word not in device.backends:
            raise unknown("backend", word, device.backends, f"device {device.id!r} runs: {', '.join(device.backends)}")
    every = {one.precision for one in (*known.values(), *chosen)}
    for word in precisions:
        if word not in every:
            raise unknown("precision", word, every)
    left = tuple(one for one in chosen if one.backend in device.backends
                 and (not backends or one.backend in backends) and (not precisions or one.precision in precisions))
    if not left:
        raise UsageError(f"no recipe is left for device {device.id!r} with these --recipe, --backend and --precision",
                         f"recipes: {', '.join(known)}")
    # The reference comes first, so that its siblings can be judged as soon as they are measured.
    return tuple(sorted(left, key=lambda one: one.precision != "fp32"))
