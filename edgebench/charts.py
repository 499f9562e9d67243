"""Size and the headline numbers drawn: runs in, Plotly figures as plain dicts out, each with its words.

Milliseconds, percent and megabytes appear in `report` and what it draws with only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from edgebench.drawing import (
    NEUTRAL,
    Chart,
    Json,
    Panel,
    Variant,
    arms_of,
    chance_levels,
    ends_of,
    escaped,
    exactly,
    headline_score,
    images_in_words,
    plot_axis,
    plot_layout,
    shortened,
    tick_step,
)
from edgebench.wording import decimals, fixed

_TRADEOFF_PX = (1080.0, 350.0)
"""Width and height inside the axes for which labels are placed; narrower plots show none."""


def charts(variants: Sequence[Variant]) -> tuple[Chart, ...]:
    """Return the charts of the headline numbers and of size, in reading order; those without data say why."""
    return (_tradeoff(variants), _flips(variants), _resources(variants))


def latency_axis(title: str, low: float, high: float, *, log_beyond: float = 25.0, room: float = 1.04) -> Json:
    """Return an axis from 0 to `high`, or a logarithmic one where `high` is beyond that many times `low`."""
    if low <= 0 or high <= log_beyond * low:
        return plot_axis(title, range=[0, high * room])
    # Plotly's own ticks at 2 and 5 leave out the power of ten.
    ticks = [float(f"{factor}e{power}") for power in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
             for factor in (1, 2, 5)]
    return plot_axis(title, type="log", tickvals=ticks, ticktext=[f"{tick:g}" for tick in ticks],
                 range=[math.log10(low / room) - 0.02, math.log10(high * room) + 0.02])


def rows_panel(title: str, heads: Sequence[tuple[Variant, str]], data: list[Json], axis: Json, *, note: str = "",
          lift: float = 0.5, below: float = 0.1, barmode: str = "stack") -> Panel:
    """Return a panel with a row per variant, the first on top, and over it its label and numbers.

    Args:
        title: Of the panel.
        heads: Each row's variant and numbers; long labels push the numbers below them.
        data: Traces; row k from the top has its base at ``len(heads) - 1 - k``.
        axis: The x axis.
        note: Beside the title.
        lift: Where the words stand above the base, in rows.
        below: Room under the lowest base, in rows.
        barmode: Plotly's.
    """
    long = any(len(variant.label) > 28 for variant, _ in heads)
    notes: list[Json] = []
    for row, (variant, numbers) in enumerate(heads):
        label = shortened(variant.label)
        words = [(0, "left", f"{escaped(label)}<br>{escaped(numbers)}")] if long else [
            (0, "left", escaped(label)), (1, "right", escaped(numbers))]
        notes += [{"x": x, "xref": "paper", "xanchor": side, "align": side, "y": len(heads) - 1 - row + lift,
                   "yref": "y", "yanchor": "bottom", "showarrow": False, "name": "head", "text": text}
                  for x, side, text in words]
    return Panel(
        title=title, note=note, alt=f"{title}: {'; '.join(f'{variant.label}: {words}' for variant, words in heads)}.",
        figure={"data": data, "layout": plot_layout(
            (88 if long else 54) * len(heads) + 64, xaxis=axis, annotations=notes, barmode=barmode,
            yaxis={"visible": False, "fixedrange": True, "range": [-below, len(heads)]})})


def _tradeoff(variants: Sequence[Variant]) -> Chart:
    title = "Accuracy, latency and size"
    found = [(variant, p50, top1) for variant in variants
             if (p50 := headline_score(variant.run, "latency_p50")) and p50.value is not None
             and (top1 := headline_score(variant.run, "accuracy_top1")) and top1.value is not None]
    if not found:
        return Chart(key="tradeoff", title=title, absent="No variant here has both a latency and an accuracy.")
    xs, ys = [ends_of(p50, 1e3) for _, p50, _ in found], [ends_of(top1, 100) for *_, top1 in found]
    sizes = [variant.run.artifact.size_bytes / 1e6 for variant, *_ in found]
    words = [f"{fixed(size, decimals([size]))} MB" for size in sizes]
    radii = [max(5.0, 23 * math.sqrt(size / (max(sizes) or 1.0))) for size in sizes]
    axis = latency_axis("p50 latency (ms)", min(x[0] for x in xs), max(x[0] for x in xs), room=1.12)
    places = [math.log10(x[0]) if "type" in axis else x[0] for x in xs]
    left, right = axis["range"]
    low, high = min(y[1] for y in ys), max(y[2] for y in ys)
    room = 0.08 * (high - low) or 1.0
    low, high = low - room, high + room
    data: list[Json] = [{
        "type": "scatter", "mode": "markers", "x": [x[0]], "y": [y[0]], "meta": variant.index,
        "error_x": arms_of(x, variant.colour), "error_y": arms_of(y, variant.colour),
        "marker": {"size": 2 * radius, "line": {"color": variant.colour, "width": 2},
                   "color": variant.colour + ("88" if variant.dash == "solid" else "18"), "opacity": 1},
        "hovertemplate":
            f"{escaped(variant.label)}<br>p50 %{{x:.4~g}} ms<br>top-1 %{{y:.2f}} %<br>{size}<extra></extra>"}
        for (variant, *_), x, y, radius, size in zip(found, xs, ys, radii, words, strict=True)]
    across, up = _TRADEOFF_PX[0] / ((right - left) or 1.0), _TRADEOFF_PX[1] / (high - low)
    shifts = _labels_apart(
        [((x - left) * across, (y[0] - low) * up, radius) for x, y, radius in zip(places, ys, radii, strict=True)],
        [((y[1] - low) * up, (y[2] - low) * up) for y in ys],
        [7.3 * max(len(variant.label), len(size)) for (variant, *_), size in zip(found, words, strict=True)])
    notes = [{"x": x, "y": y[0], "text": f"{escaped(variant.label)}<br>{size}", "showarrow": False, "xshift": shift[0],
              "yshift": shift[1], "name": f"wide {variant.index}",
              **dict.fromkeys(("xanchor", "align"), "left" if shift[0] > 0 else "right")}
             for (variant, *_), x, y, size, shift in zip(found, places, ys, words, shifts, strict=True) if shift]
    spoken = "; ".join(f"{variant.label}: {fixed(x[0], decimals([x[0]]))} ms, {fixed(y[0], 1)} %, {size}"
                       for (variant, *_), x, y, size in zip(found, xs, ys, words, strict=True))
    return Chart(
        key="tradeoff", title=title,
        caption="Up is more accurate, left is faster, a smaller bubble ships fewer bytes (its area is the artifact's "
                "size). Bars are the 95 % intervals of median latency and accuracy.",
        panels=(Panel(
            title="Top-1 accuracy against median latency",
            note=images_in_words((top1.n for *_, top1 in found), chance_levels(
                [variant for variant, *_ in found], "accuracy", exactly("accuracy_top1")).values()),
            alt=f"Median latency, top-1 accuracy, size. {spoken}.",
            legend=tuple(variant for variant, *_ in found),
            figure={"data": data, "layout": plot_layout(
                _TRADEOFF_PX[1] + 70, annotations=notes, yaxis=plot_axis("top-1 accuracy (%)", range=[low, high]),
                xaxis=axis)}),))


def _labels_apart(discs: Sequence[tuple[float, float, float]], bars: Sequence[tuple[float, float]],
                  widths: Sequence[float]) -> list[tuple[float, float] | None]:
    """Return each label's shift from its disc's centre, in pixels: greedily, where it covers least of all else.

    None where there is no place that is mostly free.

    Args:
        discs: Centre and radius in pixels.
        bars: Lower and upper end of each vertical interval in pixels.
        widths: Of the labels' text in pixels.
    """
    taken = [(x - r, y - r, x + r, y + r) for x, y, r in discs]
    taken += [(x - 3, low, x + 3, high) for (x, _, _), (low, high) in zip(discs, bars, strict=True)]
    shifts: list[tuple[float, float] | None] = []
    for (x, y, r), long in zip(discs, widths, strict=True):
        options = []
        for rank, (side, lift) in enumerate((side, lift) for lift in (0, 30, -30, 56, -56) for side in (1, -1)):
            start = x + r + 7 if side > 0 else x - r - 7 - long
            box = (start, y + lift - 16, start + long, y + lift + 16)
            covered = sum(max(0.0, min(box[2], other[2]) - max(box[0], other[0]))
                          * max(0.0, min(box[3], other[3]) - max(box[1], other[1])) for other in taken)
            outside = max(0.0, -box[0], box[2] - _TRADEOFF_PX[0]) + max(0.0, -box[1], box[3] - _TRADEOFF_PX[1])
            options.append((covered + 60 * outside + 4 * rank, side, lift, box))
        cost, side, lift, box = min(options)
        free = cost < 0.15 * 32 * long
        taken += [box] if free else []
        shifts.append((side * (r + 7), float(lift)) if free else None)
    return shifts


def _flips(variants: Sequence[Variant]) -> Chart:
    found = [(variant, worse, better) for variant in variants
             if (worse := headline_score(variant.run, "negative_flips")) and worse.value is not None
             and (better := headline_score(variant.run, "positive_flips")) and better.value is not None]
    title = "Flips: answers that changed against the reference"
    if not found:
        return Chart(key="flips", title=title,
                     absent="No run here was evaluated against a reference on the same images.")
    data: list[Json] = []
    heads = []
    for row, (variant, worse, better) in enumerate(found):
        for score, side, opacity, words in ((worse, -1, 0.95, "right before, wrong now"),
                                            (better, 1, 0.4, "wrong before, right now")):
            ends = ends_of(score, 100)
            data.append({
                "type": "bar", "orientation": "h", "x": [side * ends[0]], "y": [len(found) - 0.76 - row], "width": 0.38,
                "marker": {"color": variant.colour, "opacity": opacity, "line": {"color": variant.colour, "width": 1}},
                "error_x": arms_of(ends, NEUTRAL, mirrored=side < 0),
                "hovertemplate": f"{escaped(variant.label)}<br>{fixed(ends[0], 2)} % {words}<extra></extra>"})
        lost, won = (round((score.value or 0.0) * score.n) for score in (worse, better))
        heads.append((variant, f"{fixed(lost, 0)} worse · {fixed(won, 0)} better of {fixed(worse.n, 0)}"))
    reach = 1.08 * max(max(ends_of(score, 100)) for _, *pair in found for score in pair) or 1.0
    step = tick_step(reach)
    ticks = [step * k for k in range(-math.floor(reach / step), math.floor(reach / step) + 1)]
    axis = plot_axis("share of images (%)", range=[-reach, reach], zeroline=True, tickvals=ticks,
                 ticktext=[fixed(abs(tick), decimals([step], 1)) for tick in ticks])
    return Chart(
        key="flips", title=title,
        panels=(rows_panel("Newly wrong, newly right", heads, data, axis, barmode="overlay"),),
        caption="Images whose correctness changed: newly wrong to the left, newly right to the right, in percent of "
                "all images with 95 % Wilson intervals. Equal accuracy can hide many of both.")


def _resources(variants: Sequence[Variant]) -> Chart:
    panels = []
    cold = [(v, (v.run.cold_start.import_s, v.run.cold_start.load_s, v.run.cold_start.first_inference_s))
            for v in variants if v.run.cold_start]
    if cold:
        panels.append(_bars("Cold start", "dark to light: import, load, first inference", "ms", [
            (variant, tuple(value * 1e3 for value in parts)) for variant, parts in cold]))
    memory = [(v, (v.run.peak_host_memory_bytes / 1e6,)) for v in variants if v.run.peak_host_memory_bytes]
    if memory:
        panels.append(_bars("Peak host memory", "", "MB", memory))
    panels.append(_bars("Artifact size", "", "MB", [(v, (v.run.artifact.size_bytes / 1e6,)) for v in variants]))
    return Chart(
        key="resources", title="Cold start, memory and size", panels=tuple(panels),
        caption="Measured once each, so without intervals. Cold start is a fresh process: importing the runtime, "
                "opening the artifact, the first answer. Memory is the process's resident high-water mark, runtime and "
                "interpreter included. Size is what ships.")


def _bars(title: str, note: str, unit: str, rows: Sequence[tuple[Variant, tuple[float, ...]]]) -> Panel:
    data: list[Json] = []
    places = decimals(sum(parts) for _, parts in rows)
    for row, (variant, parts) in enumerate(rows):
        data += [{"type": "bar", "orientation": "h", "x": [float(f"{value:.6g}")], "y": [len(rows) - 0.76 - row],
                  "width": 0.38, "marker": {"color": variant.colour, "opacity": opacity, "line": {"width": 0}},
                  "hovertemplate": f"{escaped(variant.label)}: %{{x:.4~g}} {unit}<extra></extra>"}
                 for value, opacity in zip(parts, (0.95, 0.6, 0.3), strict=False)]
    return rows_panel(title, [(variant, f"{fixed(sum(parts), places)} {unit}") for variant, parts in rows], data,
                 plot_axis(unit, rangemode="tozero", nticks=5), note=note)
