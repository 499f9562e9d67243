"""The roofline drawn: how near each variant comes to what its machine can do, and why a variant has no place in it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgebench import roofline
from edgebench.drawing import (
    NEUTRAL,
    SYMBOLS,
    Chart,
    Json,
    Panel,
    Variant,
    escaped,
    headline_score,
    plot_axis,
    plot_layout,
    rounded,
    trace_of,
)
from edgebench.score_tables import Cell, distinct
from edgebench.timing_types import Ceiling, Ceilings, RooflinePoint
from edgebench.wording import decimals, fixed

TITLE = "Roofline"
HOW_TO = "edgebench doctor --ceilings measures them once per machine; edgebench report then draws this run with them"
PRECISION_COLOURS = {"fp32": "#8c8c8c", "fp16": "#56b4e9", "bf16": "#0072b2", "int8": "#d55e00", "fp8": "#e69f00",
                     "int4": "#cc79a7"}
"""Of roofs and bars; every other type is `NEUTRAL`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """A variant in the roofline, or why it has no place there."""

    variant: Variant
    point: RooflinePoint | None
    flops: int | None
    """Of one inference."""
    bytes_moved: int | None
    reason: str
    """Empty where there is a point."""


def placed(variant: Variant) -> Placed:
    """Return a variant's point: the work of its graph and the median latency, under the ceiling of what it executed."""
    run = variant.run
    work, trace, p50 = run.artifact.work, trace_of(run, "single-stream"), headline_score(run, "latency_p50")
    ceilings = run.observed.ceilings if run.observed is not None else None
    on_gpu = ceilings is not None and not ceilings.threads
    if on_gpu:
        # Copies to and from the host are no work of the GPU's.
        p50 = run.score("device_compute_p50")
    flops, moved = None, None
    if work is not None:
        images = trace.batch if trace is not None else work.images
        flops, moved = (value * images // work.images for value in (work.flops, work.bytes_moved))

    def absent(reason: str) -> Placed:
        return Placed(variant=variant, point=None, flops=flops, bytes_moved=moved, reason=reason)

    if on_gpu and p50 is None:
        return absent("the ceilings are the GPU's, and its runtime tells no time of the GPU's own")
    if trace is None or p50 is None or p50.value is None:
        return absent((p50.reason if p50 is not None else None) or "no single-stream latency")
    if trace.preprocessing == "included":
        return absent("its latency includes preprocessing, whose operations nobody counted")
    if flops is None or moved is None:
        return absent("its artifact does not say how many operations and bytes an inference takes: export it again")
    if ceilings is None:
        return absent(f"no ceilings of {run.device.id} with {run.settings.threads} threads: {HOW_TO}")
    executed = run.precision.executed
    top = ceilings.of(executed)
    if top is None:
        return absent(f"no ceiling was measured in {executed}: {ceilings.absent.get(executed, 'nothing here runs it')}")
    point = roofline.point(variant.label, flops, moved, p50.value, top)
    if point is None:
        return absent("its graph has no operations to count")
    return Placed(variant=variant, point=point, flops=flops, bytes_moved=moved, reason="")


def chart(variants: Sequence[Variant]) -> Chart:
    """Return a panel per machine: measured roofs as solid lines, datasheet peaks beside them, a dot per variant."""
    found = [placed(variant) for variant in variants]
    reasons = distinct(f"{one.variant.label}: {one.reason}" for one in found if one.point is None)
    machines = distinct(_key(one) for one in found if one.point is not None)
    if not machines:
        why = distinct(one.reason for one in found)
        return Chart(key="roofline", title=TITLE, absent="; ".join(why) + ".")
    several = len(machines) > 1
    panels = [_panel([one for one in found if one.point is not None and _key(one) == machine], several=several)
              for machine in machines]
    return Chart(
        key="roofline", title=TITLE, panels=tuple(panels), notes=tuple(reasons),
        caption="Operations per second at the median single-stream latency (on a GPU by its own events), over "
                "operations per byte moved, both counted in the graph (every layer's inputs, weights and outputs once: "
                "a runtime that fuses layers moves fewer bytes). Solid: what this machine reached in each precision, "
                "by copies on the slope and by matrix products on the level part. Dotted: the datasheet's dense peak, "
                "and dash-dotted the one with structured sparsity, which place nothing. A dot under the slope waits "
                "for memory, one under the level part for arithmetic.")


def _key(one: Placed) -> tuple[str, str, int, str]:
    seen = _ceilings(one)
    return seen.device, seen.cpu, seen.threads, seen.measured_at


def _ceilings(one: Placed) -> Ceilings:
    observed = one.variant.run.observed
    assert observed is not None
    assert observed.ceilings is not None
    return observed.ceilings


def _panel(found: Sequence[Placed], *, several: bool) -> Panel:
    seen = _ceilings(found[0])
    points = [(one.variant, one.point) for one in found if one.point is not None]
    roofs = [one for one in seen.ceilings if one.flops_per_s is not None]
    knees = [one.flops_per_s / one.bytes_per_s for one in roofs if one.flops_per_s]
    intensities = [point.intensity for _, point in points]
    left, right = min(*intensities, *knees) / 4, max(*intensities, *knees) * 4
    data = [_roof(one, left, right, above=place % 2 == 0)
            for place, one in enumerate(sorted(roofs, key=lambda one: -(one.flops_per_s or 0.0)))]
    data += [line for one in seen.ceilings for line in _datasheet(one, left, right)]
    data += [_dot(variant, point) for variant, point in points]
    drawn = [value for line in data for value in line["y"]]
    low, high = math.log10(min(drawn) / 1.6), math.log10(max(drawn) * 1.6)
    words = [f"{one.precision.upper()} {_rate(one.flops_per_s or 0.0)}" for one in roofs]
    machine = seen.where
    return Panel(
        title=machine if several else "Reached against possible", variant=None, legend=tuple(one for one, _ in points),
        note=f"ceilings of {seen.measured_at[:10]}",
        alt=f"Roofline of {machine}: ceilings {', '.join(words)}, {_bytes_rate(roofs[0].bytes_per_s)}; "
            + "; ".join(f"{variant.label} reaches {_rate(point.flops_per_s)} at {fixed(point.intensity, 1)} operations "
                        f"per byte, {fixed(point.roof_share * 100, 0)} % of its roof"
                        for variant, point in points) + ".",
        figure={"data": data, "layout": plot_layout(
            380, xaxis=plot_axis("operations per byte", type="log", dtick="D2",
                                 range=[math.log10(left), math.log10(right)]),
            yaxis=plot_axis("operations per second", type="log", dtick="D2", range=[low, high], exponentformat="SI"))})


def _roof(one: Ceiling, left: float, right: float, *, above: bool) -> Json:
    # Roofs that nearly coincide keep their names apart, one above its line and the next one below.
    top = one.flops_per_s or 0.0
    x = np.array(sorted({left, min(max(top / one.bytes_per_s, left), right), right}))
    return {"type": "scatter", "mode": "lines+text", "x": rounded(x),
            "y": rounded(np.minimum(top, x * one.bytes_per_s)),
            "text": [""] * (x.size - 1) + [f"{one.precision.upper()} {_rate(top)}"],
            "textposition": f"{'top' if above else 'bottom'} left", "textfont": {"color": _colour(one.precision)},
            "name": f"measured {one.precision}",
            "line": {"color": _colour(one.precision), "width": 2.4, "dash": "solid"},
            "hovertemplate": f"{one.precision.upper()}, measured: {_rate(top)}, {_bytes_rate(one.bytes_per_s)}"
                             "<extra></extra>"}


def _datasheet(one: Ceiling, left: float, right: float) -> list[Json]:
    if one.datasheet_flops_per_s is None:
        return []
    kind = "dense" if one.sparsity == "dense" else "with structured sparsity"
    return [{"type": "scatter", "mode": "lines", "x": rounded(np.array([left, right])),
             "y": rounded(np.array([one.datasheet_flops_per_s] * 2)),
             "name": f"datasheet {one.precision} {one.sparsity}",
             "line": {"color": _colour(one.precision), "width": 1.2, "dash": "dot" if one.sparsity == "dense"
                      else "dashdot"},
             "hovertemplate": f"{one.precision.upper()}, datasheet, {kind} ({one.datasheet_mark or 'unmarked'}): "
                              f"{_rate(one.datasheet_flops_per_s)}<extra></extra>"}]


def _dot(variant: Variant, point: RooflinePoint) -> Json:
    return {"type": "scatter", "mode": "markers", "meta": variant.index, "cliponaxis": False,
            "x": rounded(np.array([point.intensity])), "y": rounded(np.array([point.flops_per_s])),
            "marker": {"color": variant.colour, "size": 11, "symbol": SYMBOLS[variant.style],
                       "line": {"width": 1.5, "color": _colour(point.precision)}},
            "hovertemplate": f"{escaped(variant.label)}: {_rate(point.flops_per_s)}, "
                             f"{fixed(point.roof_share * 100, 0)} % of the roof, bound by {_BOUND[point.bound]}"
                             "<extra></extra>"}


_BOUND = {"memory": "memory", "compute": "arithmetic"}


def _colour(precision: str) -> str:
    return PRECISION_COLOURS.get(precision, NEUTRAL)


def _rate(flops_per_s: float) -> str:
    giga = flops_per_s / 1e9
    return f"{fixed(giga, decimals([giga]))} Gop/s"


def _bytes_rate(bytes_per_s: float) -> str:
    giga = bytes_per_s / 1e9
    return f"{fixed(giga, decimals([giga]))} GB/s"


HEADERS = ("Operations", "Bytes", "Per byte", "Reached", "Roof", "Of the roof", "Bound by")


def rows(variants: Sequence[Variant]) -> tuple[tuple[Variant, tuple[Cell, ...]], ...]:
    """Return the cells under `HEADERS` of each variant that has a place in the roofline."""
    found = []
    for variant in variants:
        one = placed(variant)
        point = one.point
        if point is None or one.flops is None or one.bytes_moved is None:
            continue
        megabytes = one.bytes_moved / 1e6
        found.append((variant, (
            Cell(text=f"{fixed(one.flops / 1e9, 2)} G"), Cell(text=f"{fixed(megabytes, decimals([megabytes]))} MB"),
            Cell(text=fixed(point.intensity, 1)), Cell(text=_rate(point.flops_per_s)),
            Cell(text=_rate(point.roof_flops_per_s), detail=f"measured in {point.precision.upper()}"),
            Cell(text=f"{fixed(point.roof_share * 100, 0)} %"), Cell(text=_BOUND[point.bound]))))
    return tuple(found)


def summary(variant: Variant) -> Json:
    """Return a variant's place for ``summary.json``: SI units and fractions, or the reason why there is none."""
    one = placed(variant)
    work: Json = {"flops": one.flops, "bytes_moved": one.bytes_moved}
    if one.point is None:
        return {**work, "reason": one.reason}
    seen = _ceilings(one)
    return {**work, "intensity": one.point.intensity, "flops_per_s": one.point.flops_per_s,
            "roof_flops_per_s": one.point.roof_flops_per_s, "roof_share": one.point.roof_share,
            "bound": one.point.bound, "precision": one.point.precision, "ceilings_measured_at": seen.measured_at,
            "threads": seen.threads}
