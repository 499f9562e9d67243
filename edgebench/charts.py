"""Speed, size and the headline numbers drawn: runs in, Plotly figures as plain dicts out, each with its words.

Milliseconds, percent and megabytes appear in `report` and what it draws with only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from edgebench import stats
from edgebench.drawing import (
    NEUTRAL,
    Chart,
    FloatArray,
    Json,
    Panel,
    Variant,
    arms_of,
    ends_of,
    escaped,
    headline_score,
    plot_axis,
    plot_layout,
    rounded,
    shortened,
    tick_step,
    trace_of,
)
from edgebench.record import LatencyTrace
from edgebench.wording import decimals, fixed

DRAWN_POINTS = 1800
"""Of a timeline; beyond that each slice of the trace keeps its first, smallest and largest timing."""
_TRADEOFF_PX = (1080.0, 350.0)
"""Width and height inside the axes for which labels are placed; narrower plots show none."""
_UNTIMED = "No run here has single-stream timings."


def charts(variants: Sequence[Variant]) -> tuple[Chart, ...]:
    """Return the charts of speed, size and the headline numbers, in reading order; those without data say why."""
    timed = [(variant, trace) for variant in variants if (trace := trace_of(variant.run, "single-stream"))]
    return (_distribution(timed), _timeline(timed), _tradeoff(variants), _flips(variants), _resources(variants))


def _latency_axis(title: str, low: float, high: float, *, log_beyond: float = 25.0, room: float = 1.04) -> Json:
    """Return an axis from 0 to `high`, or a logarithmic one where `high` is beyond that many times `low`."""
    if low <= 0 or high <= log_beyond * low:
        return plot_axis(title, range=[0, high * room])
    # Plotly's own ticks at 2 and 5 leave out the power of ten.
    ticks = [float(f"{factor}e{power}") for power in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
             for factor in (1, 2, 5)]
    return plot_axis(title, type="log", tickvals=ticks, ticktext=[f"{tick:g}" for tick in ticks],
                 range=[math.log10(low / room) - 0.02, math.log10(high * room) + 0.02])


def _rows(title: str, heads: Sequence[tuple[Variant, str]], data: list[Json], axis: Json, *, note: str = "",
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


def _percentiles(milliseconds: FloatArray) -> tuple[float, float]:
    return stats.quantile(milliseconds, 0.5), stats.quantile(milliseconds, 0.99)


def _distribution(timed: Sequence[tuple[Variant, LatencyTrace]]) -> Chart:
    title = "Latency distribution"
    if not timed:
        return Chart(key="distribution", title=title, absent=_UNTIMED)
    series = [(variant, np.asarray(trace.latency_s) * 1e3) for variant, trace in timed]
    return Chart(
        key="distribution", title=title, panels=(_histograms(series), _percentile_curves(series)),
        caption="Single-stream. Each variant: how often each latency occurs, scaled to the "
                "row's own peak, the slowest 0.5 % left out. By percentile: the tail, stretched towards the slowest; "
                "at 99 %, one inference in a hundred takes longer.")


def _histograms(series: Sequence[tuple[Variant, FloatArray]]) -> Panel:
    data: list[Json] = []
    heads = []
    ends = [(float(values.min()), stats.quantile(values, 0.995)) for _, values in series]
    places = decimals(stats.quantile(values, 0.5) for _, values in series)
    for row, ((variant, values), (_, slowest)) in enumerate(zip(series, ends, strict=True)):
        counts, edges = np.histogram(values[values <= slowest], bins=min(60, max(8, math.isqrt(len(values)))))
        base = len(series) - 1 - row
        height = base + 0.52 * counts / counts.max()
        x = np.concatenate(([edges[0]], np.repeat(edges, 2)[1:-1], [edges[-1]]))
        y = np.concatenate(([base], np.repeat(height, 2), [base]))
        p50, p99 = _percentiles(values)
        words = f"p50 {fixed(p50, places)} · p99 {fixed(p99, places)} ms"
        data.append({"type": "scatter", "mode": "lines", "x": rounded(x), "y": rounded(y), "fill": "toself",
                     "line": {"color": variant.colour, "width": 1}, "fillcolor": f"{variant.colour}88",
                     "hoveron": "fills", "hoverinfo": "text", "text": escaped(f"{variant.label}: {words}")})
        data.append({"type": "scatter", "mode": "markers", "x": rounded(np.array([p50, p99])), "y": [base, base],
                     "hoverinfo": "skip", "cliponaxis": False,
                     "marker": {"symbol": ["triangle-up", "triangle-up-open"], "color": variant.colour, "size": 9}})
        heads.append((variant, words))
    high = max(*(end[1] for end in ends), *(_percentiles(values)[1] for _, values in series))
    return _rows("Each variant", heads, data, _latency_axis("latency (ms)", min(end[0] for end in ends), high),
                 note="▲ p50, △ p99", lift=0.6, below=0.22)


def _percentile_curves(series: Sequence[tuple[Variant, FloatArray]]) -> Panel:
    data, extremes, most = [], [], 1
    for variant, values in series:
        n = len(values)
        # Evenly spaced on the drawn axis, -log10(1 - q).
        above = np.ceil(n * 10.0 ** -np.linspace(0, math.log10(n) + 0.01, 160)).astype(int)
        ranks = np.unique((n - above).clip(0, n - 1))
        share = (ranks + 0.5) / n
        ordered = np.sort(values)[ranks]
        extremes += [float(ordered[0]), float(ordered[-1])]
        most = max(most, n)
        data.append({"type": "scatter", "mode": "lines", "x": rounded(-np.log10(1 - share)), "y": rounded(ordered),
                     "meta": variant.index, "name": escaped(variant.label), "customdata": rounded(share * 100),
                     "line": {"color": variant.colour, "width": 2, "dash": variant.dash},
                     "hovertemplate": "%{customdata:.4~g} %: %{y:.4~g} ms"})
    ticks = [q for q in (0.5, 0.9, 0.99, 0.999, 0.9999) if q < 1 - 0.5 / most]
    return Panel(
        title="By percentile", legend=tuple(variant for variant, _ in series),
        alt="Latency by percentile, one line per variant, up to the slowest timing: "
            + "; ".join(f"{variant.label} {fixed(float(values.max()), decimals([float(values.max())]))} ms"
                        for variant, values in series) + ".",
        figure={"data": data, "layout": plot_layout(
            min(560, max(320, 54 * len(series) + 24)),
            xaxis=plot_axis("share of inferences at or below", tickvals=rounded(-np.log10(1 - np.array(ticks))),
                        ticktext=[f"{q * 100:.6g} %" for q in ticks], tickangle=0,
                        range=[0, math.log10(2 * most) + 0.05]),
            yaxis=_latency_axis("latency (ms)", min(extremes), max(extremes), log_beyond=6))})


def _thinned(values: FloatArray, limit: int) -> npt.NDArray[np.int64]:
    """Return at most `limit` indices: all, or per slice its first, smallest and largest value."""
    if len(values) <= limit:
        return np.arange(len(values))
    chosen: list[int] = []
    for part in np.array_split(np.arange(len(values)), limit // 3):
        inside = values[part]
        chosen += [int(part[0]), int(part[inside.argmin()]), int(part[inside.argmax()])]
    return np.unique(np.array(chosen))


def _timeline(timed: Sequence[tuple[Variant, LatencyTrace]]) -> Chart:
    title = "Latency over time"
    if not timed:
        return Chart(key="timeline", title=title, absent=_UNTIMED)
    limit = DRAWN_POINTS if len(timed) <= 6 else DRAWN_POINTS // 2
    thinned = any(len(trace.latency_s) > limit for _, trace in timed)
    return Chart(
        key="timeline", title=title, panels=tuple(_timeline_panel(variant, trace, limit) for variant, trace in timed),
        caption="Every inference in order; timing starts at 0 s, grey before it is warm-up (time is the sum of the "
                "latencies). Each panel has its own scale; ▲ marks timings above it. On the right, how often each "
                "latency occurs."
                + (f" Of more than {fixed(limit, 0)} timings, each slice's first, smallest and largest are drawn."
                   if thinned else ""))


def _timeline_panel(variant: Variant, trace: LatencyTrace, limit: int) -> Panel:
    values, warm = np.asarray(trace.latency_s) * 1e3, np.asarray(trace.warmup_s) * 1e3
    p50, p99 = _percentiles(values)
    bottom, top = float(values.min()), max(stats.quantile(values, 0.995), p50 * 1.1)
    room = max(top - bottom, p50 * 0.02)
    # Rounded as the points are: Plotly hides a point that lies above the axis by the last digit.
    bottom, top = rounded(np.array([max(0.0, bottom - 0.15 * room), top + 0.25 * room]))
    data = []
    for part, colour, start, count in ((warm, NEUTRAL, -warm.sum(), limit // 4),
                                       (values, variant.colour, 0.0, limit)):
        if not len(part):
            continue
        kept = _thinned(part, count)
        seconds = (start + np.cumsum(part) - part)[kept] / 1e3
        for place, symbol, px in ((part[kept] <= top, "circle", 3), (part[kept] > top, "triangle-up", 7)):
            data.append({"type": "scatter", "mode": "markers", "cliponaxis": False, "x": rounded(seconds[place]),
                         "y": rounded(part[kept][place].clip(max=top)), "customdata": rounded(part[kept][place]),
                         "hovertemplate": "%{x:.2f} s: %{customdata:.4~g} ms<extra></extra>",
                         "marker": {"color": colour, "size": px, "opacity": 0.65, "symbol": symbol,
                                    "line": {"width": 0}}})
    counts, edges = np.histogram(values[values <= top], bins=48, range=(bottom, top))
    data.append({"type": "bar", "orientation": "h", "xaxis": "x2", "y": rounded((edges[1:] + edges[:-1]) / 2),
                 "x": counts.tolist(), "width": float(edges[1] - edges[0]),
                 "marker": {"color": variant.colour, "opacity": 0.7, "line": {"width": 0}},
                 "hovertemplate": "%{y:.4~g} ms: %{x} timings<extra></extra>"})
    places = decimals([p50])
    seconds_timed = float(values.sum()) / 1e3
    note = f"{fixed(len(values), 0)} timings in {fixed(seconds_timed, 1)} s"
    slowest = fixed(float(values.max()), places)
    return Panel(
        title=variant.label, note=note, variant=variant,
        alt=f"Latency of {variant.label} over time: {note}, {len(warm)} for warm-up before; median "
            f"{fixed(p50, places)} ms, 99th percentile {fixed(p99, places)} ms, slowest {slowest} ms.",
        figure={"data": data, "layout": plot_layout(
            210, xaxis=plot_axis("time (s)", domain=[0, 0.86], zeroline=True),
            yaxis=plot_axis("ms", range=[bottom, top]),
            xaxis2={"visible": False, "fixedrange": True, "domain": [0.88, 1]}, bargap=0)})


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
    axis = _latency_axis("p50 latency (ms)", min(x[0] for x in xs), max(x[0] for x in xs), room=1.12)
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
    spoken = "; ".join(f"{variant.label}: {fixed(x[0], 2)} ms, {fixed(y[0], 1)} %, {size}"
                       for (variant, *_), x, y, size in zip(found, xs, ys, words, strict=True))
    return Chart(
        key="tradeoff", title=title,
        caption="Up is more accurate, left is faster, a smaller bubble ships fewer bytes (its area is the artifact's "
                "size). Bars are the 95 % intervals of median latency and accuracy.",
        panels=(Panel(
            title="Top-1 accuracy against median latency", alt=f"Median latency, top-1 accuracy, size. {spoken}.",
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
        heads.append((variant, f"{fixed(lost, 0)} worse · {fixed(won, 0)} better"))
    reach = 1.08 * max(max(ends_of(score, 100)) for _, *pair in found for score in pair) or 1.0
    step = tick_step(reach)
    ticks = [step * k for k in range(-math.floor(reach / step), math.floor(reach / step) + 1)]
    axis = plot_axis("share of images (%)", range=[-reach, reach], zeroline=True, tickvals=ticks,
                 ticktext=[fixed(abs(tick), decimals([step], 1)) for tick in ticks])
    return Chart(
        key="flips", title=title, panels=(_rows("Newly wrong, newly right", heads, data, axis, barmode="overlay"),),
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
        caption="Cold start is a fresh process: importing the runtime, opening the artifact, the first answer. Memory "
                "is the process's resident high-water mark, runtime and interpreter included. Size is what ships.")


def _bars(title: str, note: str, unit: str, rows: Sequence[tuple[Variant, tuple[float, ...]]]) -> Panel:
    data: list[Json] = []
    places = decimals(sum(parts) for _, parts in rows)
    for row, (variant, parts) in enumerate(rows):
        data += [{"type": "bar", "orientation": "h", "x": [float(f"{value:.6g}")], "y": [len(rows) - 0.76 - row],
                  "width": 0.38, "marker": {"color": variant.colour, "opacity": opacity, "line": {"width": 0}},
                  "hovertemplate": f"{escaped(variant.label)}: %{{x:.4~g}} {unit}<extra></extra>"}
                 for value, opacity in zip(parts, (0.95, 0.6, 0.3), strict=False)]
    return _rows(title, [(variant, f"{fixed(sum(parts), places)} {unit}") for variant, parts in rows], data,
                 plot_axis(unit, rangemode="tozero", nticks=5), note=note)
