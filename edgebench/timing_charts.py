"""Timings drawn: how latencies are distributed, and how they went over time above temperature, clocks and power.

Telemetry and timings share one clock, so that the strips below a timeline have its time axis.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgebench import stats
from edgebench.charts import latency_axis, rows_panel
from edgebench.drawing import (
    NEUTRAL,
    Chart,
    FloatArray,
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
from edgebench.record import LatencyTrace
from edgebench.telemetry.types import NVML_POWER_CAP, Series, Telemetry, slowdown_bits
from edgebench.timing_types import Minute, SteadyVerdict, Sustained
from edgebench.wording import decimals, fixed, span

DRAWN_POINTS = 1800
"""Of a timeline; beyond that each slice of the trace keeps its first, smallest and largest timing."""
STRIP_POINTS = 300
"""Of each line in a strip of telemetry."""
MEDIANS = 120
"""Slices of a timeline whose medians are joined by a line."""
LINES = 3
"""Sensors that a strip has room for: those that reached highest."""
THROTTLED = "#d55e00"
UNTIMED = "No run here has single-stream timings."
_DASHES = ("solid", "dot", "dash")
_GLYPHS = ("—", "···", "- -")
_PX = {"latency": 170, "strip": 62, "line": 17, "gap": 10}
_LINE_CHARACTERS = 52
_WIDE = (0.0, 0.86)


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line of a strip."""

    label: str
    x: FloatArray
    y: FloatArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Strip:
    """A low plot below a timeline, with its time axis."""

    title: str
    unit: str
    lines: tuple[Line, ...]
    more: int = 0
    """Lines there was no room for."""


def single_stream(variants: Sequence[Variant]) -> list[tuple[Variant, LatencyTrace]]:
    """Return the variants with single-stream timings, with those."""
    return [(variant, trace) for variant in variants if (trace := trace_of(variant.run, "single-stream"))]


def _percentiles(variant: Variant, milliseconds: FloatArray) -> dict[str, float]:
    """Return p50, p90 and p99 of single-stream latencies in ms; without an upper bound a percentile is left out."""
    scores = {name: headline_score(variant.run, f"latency_{name}") for name in ("p50", "p90", "p99")}
    return {name: stats.quantile(milliseconds, int(name[1:]) / 100) for name, score in scores.items()
            if score is None or score.value is not None}


def distribution(variants: Sequence[Variant]) -> Chart:
    """Return how often each single-stream latency occurs, and the latencies by percentile."""
    title, timed = "Latency distribution", single_stream(variants)
    if not timed:
        return Chart(key="distribution", title=title, absent=UNTIMED)
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
        shown = _percentiles(variant, values)
        marks = [(shown[name], symbol) for name, symbol in (("p50", "triangle-up"), ("p99", "triangle-up-open"))
                 if name in shown]
        words = " · ".join([*(f"{name} {fixed(shown[name], places)} ms" if name in shown else f"{name} –"
                              for name in ("p50", "p99")), f"{fixed(len(values), 0)} timings"])
        data.append({"type": "scatter", "mode": "lines", "x": rounded(x), "y": rounded(y), "fill": "toself",
                     "line": {"color": variant.colour, "width": 1}, "fillcolor": f"{variant.colour}88",
                     "hoveron": "fills", "hoverinfo": "text", "text": escaped(f"{variant.label}: {words}")})
        data.append({"type": "scatter", "mode": "markers", "x": rounded(np.array([x for x, _ in marks])),
                     "y": [base] * len(marks), "hoverinfo": "skip", "cliponaxis": False,
                     "marker": {"symbol": [symbol for _, symbol in marks], "color": variant.colour, "size": 9}})
        heads.append((variant, words))
    high = max([*(end[1] for end in ends), *(value for one in series for value in _percentiles(*one).values())])
    return rows_panel("Each variant", heads, data, latency_axis("latency (ms)", min(end[0] for end in ends), high),
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
            yaxis=latency_axis("latency (ms)", min(extremes), max(extremes), log_beyond=6))})


def _thinned(values: FloatArray, limit: int) -> npt.NDArray[np.int64]:
    """Return at most `limit` indices: all, or per slice its first, smallest and largest value."""
    if len(values) <= limit:
        return np.arange(len(values))
    chosen: list[int] = []
    for part in np.array_split(np.arange(len(values)), limit // 3):
        inside = values[part]
        chosen += [int(part[0]), int(part[inside.argmin()]), int(part[inside.argmax()])]
    return np.unique(np.array(chosen))


def thinned(values: FloatArray, limit: int) -> npt.NDArray[np.int64]:
    """Return at most `limit` indices of `values` (n,): all, or per slice its first, smallest and largest value."""
    if len(values) <= limit:
        return np.arange(len(values))
    chosen: list[int] = []
    for part in np.array_split(np.arange(len(values)), limit // 3):
        inside = values[part]
        chosen += [int(part[0]), int(part[inside.argmin()]), int(part[inside.argmax()])]
    return np.unique(np.array(chosen))


def timeline(variants: Sequence[Variant]) -> Chart:
    """Return a panel per variant: every single-stream latency in order, over what telemetry saw meanwhile."""
    title, timed = "Latency over time", single_stream(variants)
    if not timed:
        return Chart(key="timeline", title=title, absent=UNTIMED)
    limit = DRAWN_POINTS if len(timed) <= 6 else DRAWN_POINTS // 3
    cut = any(len(trace.latency_s) > limit for _, trace in timed)
    watched = any(variant.run.observed and variant.run.observed.telemetry for variant, _ in timed)
    return Chart(
        key="timeline", title=title, panels=tuple(_timeline_panel(variant, trace, limit) for variant, trace in timed),
        caption="Every inference in order; timing starts at 0 s, grey before it is warm-up (time is the sum of the "
                "latencies). Each panel has its own scale; ▲ marks timings above it. The line is the running median; "
                "thin lines across are p50 (solid), p90 (dashed) and p99 (dotted); upright dashed lines are changes "
                "of level that the steady-state analysis found. On the right, how often each latency occurs."
                + (" Below, on the same clock: what the sensors said; shaded where throttling was in force."
                   if watched else "")
                + (f" Of more than {fixed(limit, 0)} timings, each slice's first, smallest and largest are drawn."
                   if cut else ""))


def _timeline_panel(variant: Variant, trace: LatencyTrace, limit: int) -> Panel:
    values, warm = np.asarray(trace.latency_s) * 1e3, np.asarray(trace.warmup_s) * 1e3
    p50, bounded = stats.quantile(values, 0.5), _percentiles(variant, values)
    bottom, top = float(values.min()), max(stats.quantile(values, 0.995), p50 * 1.1)
    room = max(top - bottom, p50 * 0.02)
    # Rounded as the points are: Plotly hides a point that lies above the axis by the last digit.
    bottom, top = rounded(np.array([max(0.0, bottom - 0.15 * room), top + 0.25 * room]))
    starts = (np.cumsum(values) - values) / 1e3
    data = []
    for part, colour, seconds, count in ((warm, NEUTRAL, (np.cumsum(warm) - warm - warm.sum()) / 1e3, limit // 4),
                                         (values, variant.colour, starts, limit)):
        if not len(part):
            continue
        kept = thinned(part, count)
        for place, symbol, px in ((part[kept] <= top, "circle", 3), (part[kept] > top, "triangle-up", 7)):
            data.append({"type": "scatter", "mode": "markers", "cliponaxis": False,
                         "x": rounded(seconds[kept][place]), "y": rounded(part[kept][place].clip(max=top)),
                         "customdata": rounded(part[kept][place]),
                         "hovertemplate": "%{x:.2f} s: %{customdata:.4~g} ms<extra></extra>",
                         "marker": {"color": colour, "size": px, "opacity": 0.4, "symbol": symbol,
                                    "line": {"width": 0}}})
    data.append(_running_median(values, starts, top, variant.colour))
    counts, edges = np.histogram(values[values <= top], bins=48, range=(bottom, top))
    data.append({"type": "bar", "orientation": "h", "xaxis": "x2", "y": rounded((edges[1:] + edges[:-1]) / 2),
                 "x": counts.tolist(), "width": float(edges[1] - edges[0]),
                 "marker": {"color": variant.colour, "opacity": 0.7, "line": {"width": 0}},
                 "hovertemplate": "%{y:.4~g} ms: %{x} timings<extra></extra>"})
    seconds_timed = float(values.sum()) / 1e3
    observed = variant.run.observed
    telemetry = observed.telemetry if observed is not None else None
    strips: tuple[Strip, ...] = ()
    shapes = [_across(bounded[name], dash) for name, dash in (("p50", "solid"), ("p90", "dash"), ("p99", "dot"))
              if bounded.get(name, math.inf) <= top]
    shapes += [_upright(float(starts[index])) for index in _changes(variant) if 0 < index < len(starts)]
    if telemetry is not None and trace.begin_ns is not None:
        window = -float(warm.sum()) / 1e3, seconds_timed
        strips = telemetry_strips(telemetry, trace.begin_ns, window)
        shapes += [_shade(*stretch) for stretch in throttled(telemetry.throttle.series, trace.begin_ns, window)]
    places = decimals([p50])
    note = f"{fixed(len(values), 0)} timings in {fixed(seconds_timed, 1)} s"
    slowest = fixed(float(values.max()), places)
    return Panel(
        title=variant.label, note=note, variant=variant,
        alt=f"Latency of {variant.label} over time: {note}, {len(warm)} for warm-up before; "
            + "".join(f"{name} {fixed(value, places)} ms, " for name, value in bounded.items())
            + f"slowest {slowest} ms."
            + "".join(f" {strip.title}: {', '.join(_ranges(strip))}." for strip in strips),
        figure=_stacked(variant, data, plot_axis("ms", range=[bottom, top]), strips, shapes,
                        {"xaxis2": {"visible": False, "fixedrange": True, "domain": [0.88, 1]}, "bargap": 0}))


def _running_median(values: FloatArray, starts: FloatArray, top: float, colour: str) -> Json:
    parts = np.array_split(np.arange(len(values)), min(MEDIANS, max(1, len(values) // 5)))
    x = np.array([starts[part].mean() for part in parts])
    y = np.array([np.median(values[part]) for part in parts])
    return {"type": "scatter", "mode": "lines", "x": rounded(x), "y": rounded(y.clip(max=top)),
            "line": {"color": colour, "width": 1.8}, "hovertemplate": "running median %{y:.4~g} ms<extra></extra>"}


def _changes(variant: Variant) -> tuple[int, ...]:
    """Return where the last analysis of the single-stream timings saw the level change."""
    verdict = last_verdict(variant, "single-stream")
    return verdict.change_points if verdict is not None else ()


def last_verdict(variant: Variant, scenario: str) -> SteadyVerdict | None:
    """Return what was found about the timings that the results come from; None where nobody looked."""
    observed = variant.run.observed
    return next((one.verdicts[-1] for one in observed.steadiness if one.scenario == scenario),
                None) if observed is not None else None


def telemetry_strips(telemetry: Telemetry, begin_ns: int, window_s: tuple[float, float]) -> tuple[Strip, ...]:
    """Return temperatures, clocks and power within a stretch of time; without readings there is no strip.

    Args:
        telemetry: A recording.
        begin_ns: What 0 s is, on its clock.
        window_s: First and last second to show.
    """
    power = telemetry.power.channel(telemetry.power.total)
    watts = [] if power is None else [_watts(power, begin_ns)]
    return tuple(strip for strip in (
        _strip("Temperature", "°C", [_line(one, begin_ns) for one in telemetry.thermal.series], window_s),
        _strip("Clock", "GHz", [_line(one, begin_ns, 1e-9) for one in telemetry.clocks.series], window_s),
        _strip(f"Power, {power.channel.scope}" if power is not None else "Power", "W", watts, window_s)) if strip.lines)


def _line(series: Series, begin_ns: int, factor: float = 1.0) -> Line:
    return Line(label=series.channel.label, x=(np.asarray(series.t_ns, np.float64) - begin_ns) / 1e9,
                y=np.asarray(series.values, np.float64) * factor)


def _watts(series: Series, begin_ns: int) -> Line:
    """Return power over time: as it was read, or the growth of an energy counter between two readings."""
    line = _line(series, begin_ns)
    if series.channel.quantity == "power_w" or len(line.x) < 2:
        return line if series.channel.quantity == "power_w" else Line(label=line.label, x=line.x[:0], y=line.y[:0])
    grown, seconds = np.diff(line.y), np.diff(line.x)
    # A counter that fell was set back meanwhile.
    usable = (grown >= 0) & (seconds > 0)
    return Line(label=line.label, x=((line.x[1:] + line.x[:-1]) / 2)[usable], y=grown[usable] / seconds[usable])


def _strip(title: str, unit: str, lines: Iterable[Line], window_s: tuple[float, float]) -> Strip:
    found = []
    for line in lines:
        inside = (line.x >= window_s[0]) & (line.x <= window_s[1])
        if inside.any():
            x, y = line.x[inside], line.y[inside]
            kept = thinned(y, STRIP_POINTS)
            found.append(Line(label=line.label, x=x[kept], y=y[kept]))
    ranked = sorted(found, key=lambda line: -float(line.y.max()))
    return Strip(title=title, unit=unit, lines=tuple(ranked[:LINES]), more=max(0, len(ranked) - LINES))


def throttled(series: Sequence[Series], begin_ns: int, window_s: tuple[float, float]) -> list[tuple[float, float]]:
    """Return the stretches, in seconds from `begin_ns`, in which a throttle reason or cooling device was in force."""
    found: list[tuple[float, float]] = []
    for one in series:
        bits = slowdown_bits(one.channel) | (NVML_POWER_CAP if one.channel.name.startswith("nvml/") else 0)
        t = (np.asarray(one.t_ns, np.float64) - begin_ns) / 1e9
        ends = np.append(t[1:], t[-1:] + one.interval_s)
        for start, end, value in zip(t, ends, one.values, strict=True):
            if not int(value) & bits or end < window_s[0] or start > window_s[1]:
                continue
            if found and found[-1][1] >= start >= found[-1][0]:
                found[-1] = found[-1][0], max(found[-1][1], float(end))
            else:
                found.append((float(start), float(end)))
    return [(max(start, window_s[0]), min(end, window_s[1])) for start, end in found]


def _across(value: float, dash: str) -> Json:
    return {"type": "line", "layer": "below", "xref": "paper", "x0": 0, "x1": 1, "yref": "y", "y0": value, "y1": value,
            "line": {"color": NEUTRAL, "width": 1, "dash": dash}}


def _upright(x: float) -> Json:
    return {"type": "line", "xref": "x", "x0": x, "x1": x, "yref": "y domain", "y0": 0, "y1": 1,
            "line": {"color": NEUTRAL, "width": 1.5, "dash": "dash"}}


def _shade(start: float, end: float) -> Json:
    return {"type": "rect", "layer": "below", "xref": "x", "x0": start, "x1": end, "yref": "paper", "y0": 0, "y1": 1,
            "fillcolor": f"{THROTTLED}2a", "line": {"width": 0}}


def _ranges(strip: Strip) -> list[str]:
    """Return each line's label and range in words: ``GPU 61.2–74.5``."""
    words = []
    for line in strip.lines:
        low, high = float(line.y.min()), float(line.y.max())
        places = 2 if strip.unit == "GHz" else 1
        words.append(f"{_brief(line.label)} {span(low, high, places) if high > low else fixed(high, places)}")
    return words


def _head(strip: Strip) -> list[str]:
    """Return a strip's title and ranges in lines that fit on a phone."""
    title = strip.title + (f", highest {len(strip.lines)} of {len(strip.lines) + strip.more}" if strip.more else "")
    parts = [f"{_GLYPHS[place]} {text}" for place, text in enumerate(_ranges(strip))]
    lines = [f"{title}: {parts[0]}"]
    for part in parts[1:]:
        if len(lines[-1]) + len(part) <= _LINE_CHARACTERS:
            lines[-1] += f" · {part}"
        else:
            lines.append(part)
    return lines


def _brief(label: str) -> str:
    return label if len(label) <= 18 else f"{label[:17]}…"


def _stacked(variant: Variant, data: list[Json], axis: Json, strips: Sequence[Strip], shapes: list[Json],
             more: Mapping[str, object], time: str = "time (s)") -> Json:
    """Return a figure with the plot of `data` on top and the strips under it, all on one time axis."""
    heads = [_head(strip) for strip in strips]
    total = _PX["latency"] + sum(_PX["gap"] + _PX["line"] * len(words) + _PX["strip"] for words in heads)
    layout: Json = {"yaxis": {**axis, "domain": [1 - _PX["latency"] / total, 1]}}
    notes, below = [], float(_PX["latency"])
    lines: list[Json] = []
    for number, (words, strip) in enumerate(zip(heads, strips, strict=True), start=2):
        top = below + _PX["gap"] + _PX["line"] * len(words)
        below = top + _PX["strip"]
        layout[f"yaxis{number}"] = plot_axis(strip.unit, domain=[max(0.0, 1 - below / total), 1 - top / total],
                                             nticks=3, zeroline=False)
        notes.append({"x": 0, "xref": "paper", "xanchor": "left", "align": "left", "y": 1 - top / total,
                      "yref": "paper", "yanchor": "bottom", "showarrow": False, "name": "head", "font": {"size": 11.5},
                      "text": "<br>".join(escaped(line) for line in words)})
        lines += [{"type": "scatter", "mode": "lines" if len(line.x) > 1 else "markers", "yaxis": f"y{number}",
                   "x": rounded(line.x), "y": rounded(line.y), "marker": {"color": variant.colour, "size": 4},
                   "line": {"color": variant.colour, "width": 1.6, "dash": _DASHES[place]},
                   "hovertemplate": f"%{{x:.2f}}: {escaped(line.label)} %{{y:.4~g}} {strip.unit}<extra></extra>"}
                  for place, line in enumerate(strip.lines)]
    last = "" if not heads else str(len(heads) + 1)
    layout["xaxis"] = plot_axis(time, domain=list(_WIDE if "xaxis2" in more else (0, 1)), zeroline=True,
                                anchor=f"y{last}")
    return {"data": [*data, *lines],
            "layout": plot_layout(total + 52, **layout, **more, shapes=shapes, annotations=notes)}


def minutes(variants: Sequence[Variant]) -> Chart:
    """Return a panel per variant that was under sustained load: percentiles and throughput by minute, with heat."""
    found = [(variant, observed.sustained) for variant in variants
             if (observed := variant.run.observed) is not None and observed.sustained is not None]
    title = "Sustained load by minute"
    if not found:
        return Chart(key="sustained", title=title, absent="No run here was under sustained load.")
    return Chart(
        key="sustained", title=title, panels=tuple(_minutes_panel(variant, one) for variant, one in found),
        caption="Back-to-back inferences from a cold start: p50 (solid), p90 (dashed) and p99 (dotted) of each minute, "
                "below them throughput and the minutes' means of temperature, clocks and power.")


def _minutes_panel(variant: Variant, found: Sustained) -> Panel:
    x = np.array([(one.begin_s + one.duration_s / 2) / 60 for one in found.minutes])
    data: list[Json] = []
    for name, dash in (("p50", "solid"), ("p90", "dash"), ("p99", "dot")):
        y = np.array([getattr(one, f"{name}_s") for one in found.minutes]) * 1e3
        data.append({"type": "scatter", "mode": "lines+markers", "x": rounded(x), "y": rounded(y),
                     "line": {"color": variant.colour, "width": 2, "dash": dash},
                     "marker": {"color": variant.colour, "size": 5},
                     "hovertemplate": f"minute at %{{x:.1f}}: {name} %{{y:.4~g}} ms<extra></extra>"})
    rate = Line(label="inferences", x=x, y=np.array([one.throughput_hz for one in found.minutes]))
    strips = [Strip(title="Throughput", unit="1/s", lines=(rate,)), *_minute_strips(variant, x, found.minutes)]
    shapes = []
    if found.throttling is not None:
        shapes.append(_shade(found.throttling.after_s / 60, found.duration_s / 60))
    first, last = found.minutes[0].p50_s * 1e3, found.minutes[-1].p50_s * 1e3
    places = decimals([first])
    note = f"p50 {fixed(first, places)} ms at first, {fixed(last, places)} ms at last"
    return Panel(
        title=variant.label, note=note, variant=variant,
        alt=f"Sustained load of {variant.label}: {note}"
            + "".join(f"; {strip.title} {', '.join(_ranges(strip))}" for strip in strips[1:]) + ".",
        figure=_stacked(variant, data, plot_axis("ms", rangemode="tozero"), strips, shapes, {}, "time (min)"))


def _minute_strips(variant: Variant, x: FloatArray, found: Sequence[Minute]) -> list[Strip]:
    observed = variant.run.observed
    telemetry = observed.telemetry if observed is not None else None
    if telemetry is None:
        return []
    means = {name: [next((one.mean for one in minute.channels if one.name == name), None) for minute in found]
             for name in dict.fromkeys(one.name for minute in found for one in minute.channels)}
    power = telemetry.power.channel(telemetry.power.total)
    strips = []
    for title, unit, factor, series in (("Temperature", "°C", 1.0, telemetry.thermal.series),
                                        ("Clock", "GHz", 1e-9, telemetry.clocks.series),
                                        ("Power", "W", 1.0, () if power is None else (power,))):
        lines = []
        for one in series:
            known = [(minute, value * factor) for minute, value in zip(x, means.get(one.channel.name, ()), strict=False)
                     if value is not None]
            if known:
                lines.append(Line(label=one.channel.label, x=np.array([minute for minute, _ in known]),
                                  y=np.array([value for _, value in known])))
        strip = _strip(title, unit, lines, (0.0, math.inf))
        strips += [strip] if strip.lines else []
    return strips
