"""Executed layers, as runtimes' own profiles tell them, and what they come to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgebench import roofline
from edgebench.errors import CannotMeasure
from edgebench.recipe import Precision
from edgebench.record import ExecutedPrecision
from edgebench.timing_types import LayerTime


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One executed layer."""

    precision: Precision
    time_s: float | None
    """None where the runtime does not tell."""
    compute: bool
    """A convolution or matrix product: what the precision was chosen for."""


def summarize_precision(requested: Precision, layers: Sequence[Layer], evidence: str) -> ExecutedPrecision:
    """Return what was executed: shares of time and counts by precision, and the precision of most compute time.

    Where any time is missing, layers are counted instead.

    Raises:
        CannotMeasure: No layers.
    """
    if not layers:
        raise CannotMeasure(f"the runtime reported no executed layers, so {requested} cannot be proven ({evidence})")
    chosen = [layer for layer in layers if layer.compute] or layers
    timed = all(layer.time_s is not None for layer in layers) and any(layer.time_s for layer in chosen)
    weight = _shares(chosen, timed=timed)
    return ExecutedPrecision(
        requested=requested, executed=max(weight, key=lambda precision: weight[precision]),
        time_share=dict(_shares(layers, timed=True)) if timed else {},
        layers={**Counter(layer.precision for layer in layers)},
        compute_layers={**Counter(layer.precision for layer in layers if layer.compute)}, evidence=evidence)


def profile(rows: Iterable[tuple[str, str, str, float | None]]) -> tuple[LayerTime, ...]:
    """Return the common table of layers from (name, type, precision, seconds); empty where any time is missing.

    A profile without any time at all, as of a runtime that only names its layers, is none either.
    """
    found = list(rows)
    timed = [(name, kind, precision, seconds) for name, kind, precision, seconds in found if seconds is not None]
    whole = len(timed) == len(found) and any(seconds > 0 for *_, seconds in timed)
    return roofline.layer_table(timed) if whole else ()


def _shares(layers: Sequence[Layer], *, timed: bool) -> Mapping[Any, float]:
    weights: dict[Precision, float] = {}
    for layer in layers:
        weights[layer.precision] = weights.get(layer.precision, 0.0) + ((layer.time_s or 0.0) if timed else 1.0)
    total = sum(weights.values())
    return {precision: weight / total for precision, weight in weights.items()}
