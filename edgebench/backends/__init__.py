"""The seam to the runtimes: one module per runtime, found by name, imported only when used.

A backend is a module (of this package, or of an entry point in the group ``edgebench.backends``) with the members
of `Backend`, and of `Preparing` where its sessions build something on the device.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np
import numpy.typing as npt

from edgebench.errors import MissingDependency, unknown
from edgebench.recipe import Recipe
from edgebench.record import ExecutedPrecision, TensorSpec

Array = npt.NDArray[Any]
Feeds = Mapping[str, Array]
Batches = Callable[[], Iterator[Feeds]]
"""Yields the quantization-calibration inputs, batch by batch, afresh at each call."""

BUILTIN = ("onnxruntime", "openvino", "tensorrt", "tensorrt_rtx")
# Their artifacts are exported for boards on machines that cannot have the runtime.
WITHOUT_RUNTIME = ("tensorrt", "tensorrt_rtx")


class Session(Protocol):
    """An artifact loaded on a device and ready to infer."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def infer(self, feeds: Feeds) -> Feeds:
        """Run one batch; returns when the outputs are in host memory (they may alias buffers)."""


class Backend(Protocol):
    """What a runtime's module offers."""

    def packages(self) -> dict[str, str]:
        """Return the versions of the runtime's packages."""

    def build(self, base: Path, recipe: Recipe, calibration: Batches | None, folder: Path) -> str:
        """Turn the FP32 ONNX file `base` into the recipe's files in `folder`; return the file to open."""

    def reason_against(self, recipe: Recipe) -> str | None:
        """Return why this recipe cannot run on this machine, such as without a GPU; None where it can."""

    def open_session(self, entry: Path, recipe: Recipe, *, batch: int, threads: int, build_number: int = 0) -> Session:
        """Open the artifact for inferences of `batch` images on `threads` CPU threads.

        `build_number` above 0 asks for a build of its own of the same artifact, where opening builds anything.
        """

    def executed_precision(self, entry: Path, recipe: Recipe, feeds: Feeds, *, threads: int) -> ExecutedPrecision:
        """Ask the runtime what it executes for one inference, in a session of its own, outside of any timing."""


@runtime_checkable
class Preparing(Protocol):
    """What the module of a runtime offers besides, whose sessions build something on the device and keep it."""

    def built_on_opening(self, recipe: Recipe, batch: int) -> str | None:
        """Return in words what opening a session for `batch` images builds, None for nothing; imports no runtime.

        The same words for two batches mean that one build serves both.
        """

    def prepare(self, entry: Path, recipe: Recipe, *, batch: int, build_number: int = 0) -> object:
        """Build and keep whatever `Backend.open_session` would have to build."""


def names() -> tuple[str, ...]:
    """Return the names of all known backends, installed or not."""
    return (*BUILTIN, *(point.name for point in importlib.metadata.entry_points(group="edgebench.backends")))


def installed(name: str) -> bool:
    """Return whether the runtime behind a built-in backend can be found; others bring their own."""
    return name not in BUILTIN or is_installed(name)


def is_installed(module: str) -> bool:
    """Return whether a package can be imported; a folder of type stubs alone (it has no file of its own) is none."""
    spec = importlib.util.find_spec(module)
    return spec is not None and spec.origin is not None


def get(name: str) -> Backend:
    """Return the backend called `name`.

    Raises:
        UsageError: There is none of that name.
        MissingDependency: Its runtime is not installed.
    """
    if name in BUILTIN:
        if not installed(name) and name not in WITHOUT_RUNTIME:
            raise MissingDependency(f"{name} is not installed", f"install it with: pip install 'edgebench[{name}]'")
        module: ModuleType = importlib.import_module(f"edgebench.backends.{name}")
        return cast("Backend", module)
    for point in importlib.metadata.entry_points(group="edgebench.backends"):
        if point.name == name:
            return cast("Backend", point.load())
    raise unknown("backend", name, names())


def specs(entries: list[tuple[str, object, list[object]]]) -> tuple[TensorSpec, ...]:
    """Return tensor specifications from (name, dtype, dimensions), with unnamed dimensions called ``?``."""
    return tuple(
        TensorSpec(name=name, dtype=str(np.dtype(cast("Any", dtype))),
                   shape=tuple(size if isinstance(size, int) and size >= 0 else str(size or "?") for size in shape))
        for name, dtype, shape in entries
    )
