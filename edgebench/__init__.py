"""Measure what changed when a vision model was exported and quantized, on the device that will run it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgebench import privacy

if TYPE_CHECKING:
    from edgebench.profiler import Request, Result, profile
    from edgebench.record import Run, load

__version__ = "0.1.0"
__all__ = ["Request", "Result", "Run", "__version__", "load", "profile"]

# Libraries read their switches when they are imported: it must come before all of them.
privacy.switch_off()


def __getattr__(name: str) -> object:
    """Import the public names on first use, so that ``import edgebench`` stays quick."""
    import importlib

    if name in ("Run", "load"):
        return getattr(importlib.import_module("edgebench.record"), name)
    if name in ("Request", "Result", "profile"):
        return getattr(importlib.import_module("edgebench.profiler"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
