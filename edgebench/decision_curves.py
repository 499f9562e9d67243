"""Decision paths, drawn: the estimate and its confidence sequence against the limit, as images came in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgebench.decisions import DecisionPath

SIZE = (620, 190)
"""Of a picture, in pixels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """A decision path, drawn."""

    path: DecisionPath
    band: str
    """Points of the polygon between both ends of the confidence sequence."""
    line: str
    limit_y: float
    top: float
    """Value at the upper edge."""
    bottom: float
    decided: str
    """How and when it was decided, in words."""


def curve(path: DecisionPath) -> Curve:
    """Return a decision path of one step or more as points of a picture of `SIZE`."""
    width, height = SIZE
    known = [number for step in path.steps for number in (step.value, step.low, step.high) if number is not None]
    low, high = min([path.limit, *known]), max([path.limit, *known])
    reach, most = (high - low) or 1.0, max(step.n for step in path.steps)

    def point(n: int, value: float) -> str:
        return f"{n / most * width:.1f},{height - (value - low) / reach * height:.1f}"

    upper = [point(step.n, high if step.high is None else step.high) for step in path.steps]
    lower = [point(step.n, low if step.low is None else step.low) for step in path.steps]
    return Curve(path=path, band=" ".join([*upper, *reversed(lower)]),
                 line=" ".join(point(step.n, step.value) for step in path.steps),
                 limit_y=round(height - (path.limit - low) / reach * height, 1), top=high, bottom=low,
                 decided=path.decided)
