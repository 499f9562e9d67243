"""What every chart of the report is made of: variants, panels, axes, and the kinds of plots that several charts share.

Names come from users: `escaped` makes them safe for Plotly.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from edgebench.record import Evaluation, LatencyTrace, Run, Score
from edgebench.wording import fixed, span

FloatArray = npt.NDArray[np.float64]
Json = dict[str, Any]

# Okabe & Ito 2008, Color Universal Design; without black and yellow, which vanish on one page or the other; and a grey.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#8c8c8c")
DASHES = ("solid", "dash", "dot")
SYMBOLS = ("circle", "diamond", "square")
NEUTRAL = "#8a929b"
# Cividis (Nuñez, Anderton & Renslow 2018), the same for all colour vision.
SEQUENTIAL = ((0.0, "#00224e"), (0.25, "#434e6c"), (0.5, "#7d7c78"), (0.75, "#bcae6c"), (1.0, "#fee838"))
DIVERGING = ((0.0, "#d55e00"), (0.25, "#eba97a"), (0.5, "#eef0f2"), (0.75, "#7ab2d3"), (1.0, "#0072b2"))
GREY = "#b4bac1"
"""Of cells that chance alone explains."""
CHANGE = "Change against the reference"
FEW = 4
"""Variants up to which a chart has room for intervals and a panel of each."""
MANY = 8
"""Variants beyond which dots move closer and lose their intervals."""


class Ends(NamedTuple):
    """A value with its interval; an absent end is the value."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """A run among its siblings, as the report shows it."""

    run: Run
    label: str
    """Distinct within the report."""
    index: int
    """Place in the report; decides the colour."""
    reference: Variant | None = None
    """The run that its paired scores and its speed-up are against, where it is in the report."""

    @property
    def colour(self) -> str:
        """Colour in every chart."""
        return PALETTE[self.index % len(PALETTE)]

    @property
    def style(self) -> int:
        """Place of its line and dot in `DASHES` and `SYMBOLS`, which tell variants of one colour apart."""
        return self.index // len(PALETTE) % len(DASHES)

    @property
    def dash(self) -> str:
        """Line style in every chart."""
        return DASHES[self.style]


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One plot."""

    title: str
    alt: str
    """What the plot shows, in words."""
    figure: Json
    """``data`` and ``layout`` for Plotly."""
    note: str = ""
    """A few numbers beside the title."""
    variant: Variant | None = None
    """The only variant in it, where there is just one."""
    legend: tuple[Variant, ...] = ()
    """Variants that colour alone tells apart."""
    least_px: int = 0
    """Width below which it is not squeezed but scrolled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """Panels under one heading."""

    key: str
    title: str
    caption: str = ""
    """How to read it."""
    panels: tuple[Panel, ...] = ()
    notes: tuple[str, ...] = ()
    """Below the panels."""
    absent: str = ""
    """Why there are no panels."""


Row = Mapping[int, Score]
"""Scores by the index of their variant."""
Rows = Sequence[tuple[str, Row]]
"""Labels, each with its scores, from top to bottom."""
Key = Callable[[Evaluation, str], str]
"""From an evaluation and the name of a score to the row that the score belongs to; empty for none."""


def trace_of(run: Run, scenario: str) -> LatencyTrace | None:
    """Return the run's first trace of that scenario."""
    return next((trace for trace in run.traces if trace.scenario == scenario), None)


def headline_score(run: Run, name: str) -> Score | None:
    """Return the score called `name` from performance, or else from accuracy or calibration on its first data set.

    Other properties have scores of the same names, which mean something else. A percentile without an upper bound has
    no value here, but the reason.
    """
    plain = [(*one.scores, *one.reference_scores) for one in run.evaluations
             if one.property in ("accuracy", "calibration")]
    score = next((score for pool in (run.performance, *plain) for score in pool if score.name == name), None)
    return score if score is None else readable(score)


def readable(score: Score) -> Score:
    """Return a score as people read it: a percentile without an upper bound as absent, with the reason."""
    return replace(score, value=None, low=None, reason=score.reason or "it has no upper bound") \
        if score.unbounded else score


def table(variants: Sequence[Variant], property_: str | Collection[str], key: Key) -> dict[str, Row]:
    """Return the scores of a property, or several, that have a value, by row and variant, in order of appearance."""
    chosen = (property_,) if isinstance(property_, str) else property_
    rows: dict[str, dict[int, Score]] = {}
    for variant in variants:
        for one in variant.run.evaluations:
            if one.property in chosen:
                for score in (*one.scores, *one.reference_scores):
                    if score.value is not None and (name := key(one, score.name)):
                        rows.setdefault(name, {}).setdefault(variant.index, score)
    return dict(rows)


def chance_levels(variants: Sequence[Variant], property_: str | Collection[str], key: Key) -> dict[str, float]:
    """Return the accuracy of guessing at random, 1 over the number of classes, for each row of `table`."""
    chosen = (property_,) if isinstance(property_, str) else property_
    return {row: 1.0 / one.dataset.classes for variant in variants for one in variant.run.evaluations
            if one.property in chosen and one.dataset.classes > 1
            for score in one.scores if (row := key(one, score.name))}


def images_in_words(counts: Iterable[int], chances: Iterable[float] = ()) -> str:
    """Return how many images are behind numbers, and what chance alone gives: ``1,000 images · chance 33.3 %``."""
    numbers, levels = sorted(set(counts)), sorted({100.0 * chance for chance in chances})
    if not numbers:
        return ""
    words = fixed(numbers[0], 0) if len(numbers) == 1 else span(numbers[0], numbers[-1], 0)
    if levels:
        low, high = fixed(levels[0], 1), fixed(levels[-1], 1)
        words += f" images · chance {low if low == high else f'{low}–{high}'} %"
    else:
        words += " images"
    return words


def called(*names: str) -> Key:
    """Return a key to the level of the scores of these names, or to the data set of those without a level."""
    def key(one: Evaluation, name: str) -> str:
        metric, _, level = name.partition("@")
        return (level or one.dataset.name) if metric in names else ""

    return key


def exactly(*names: str) -> Key:
    """Return a key to the scores of just these names."""
    return lambda one, name: name if name in names else ""


def mean(scores: Iterable[Score | None]) -> float | None:
    """Return the mean; None without scores, or where one is absent: a mean of fewer would be of something else."""
    values = [score.value if score else None for score in scores]
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def shortened(label: str) -> str:
    """Return a label as it fits above a row on a phone: of a long one the middle is left out."""
    return label if len(label) <= 42 else f"{label[:26]}…{label[-15:]}"


def escaped(words: str) -> str:
    """Return `words` so that Plotly, which knows some tags, shows them unchanged."""
    return html.escape(words, quote=False)


def rounded(values: FloatArray) -> list[float]:
    """Return the values with six digits: finer than any pixel, and a third of the bytes."""
    return [float(f"{value:.6g}") for value in values]


def plot_layout(height: float, **more: object) -> Json:
    """Return a Plotly layout of that height in pixels."""
    return {"height": round(height), "margin": {"l": 8, "r": 8, "t": 8, "b": 44}, "showlegend": False,
            "hovermode": "closest", **more}


def plot_axis(title: str, **more: object) -> Json:
    """Return a Plotly axis; its title also says where a range without 0 starts, or that the scale is logarithmic.

    Ranges are in the unit of the axis; those of a logarithmic one are exponents of 10.
    """
    words = title
    match more:
        case {"type": "log"}:
            words = f"{title}, log scale"
        case {"range": [float() | int() as low, float() | int() as high]} if title and 0 < low < high:
            words = f"{title}, axis starts at {low:.3g}"
    return {"title": {"text": words, "standoff": 8}, "automargin": True, "fixedrange": True, **more}


def tick_step(reach: float) -> float:
    """Return a round step of which at most 3.5 fit into `reach`."""
    power = 10.0 ** math.floor(math.log10(reach / 3))
    return next(factor * power for factor in (1, 2, 5, 10) if reach / (factor * power) <= 3.5)


def ends_of(score: Score, factor: float) -> Ends:
    """Return a score scaled; an absent value is 0."""
    value = score.value or 0.0
    low, high = (value if end is None else end for end in (score.low, score.high))
    return Ends(value * factor, low * factor, high * factor)


def arms_of(of: Ends, colour: str, *, mirrored: bool = False, thickness: float = 1.2) -> Json:
    """Return Plotly's error bar of an interval; `mirrored` where the value is drawn with its sign turned."""
    under, over = max(0.0, of.value - of.low), max(0.0, of.high - of.value)
    return {"type": "data", "symmetric": False, "array": [under if mirrored else over], "width": 3, "color": colour,
            "arrayminus": [over if mirrored else under], "thickness": thickness}


def dots(title: str, rows: Rows, variants: Sequence[Variant], x: Json, *, factor: float = 100.0,
         unit: str = "%", places: int = 1, sign: bool = False, at: float | None = None,
         doubtful: Collection[str] = (), lines: Sequence[Json] = (), chance: Mapping[str, float] | None = None,
         counted: bool = True) -> Panel:
    """Return a panel with a row per label, the first on top, and in it a dot per variant, from top to bottom.

    The number of images stands beside the title, and behind the labels where it differs between rows.

    Args:
        title: Of the panel.
        rows: Labels, each with its scores; those without a value are left out.
        variants: Who may have a dot.
        x: The axis.
        factor: From the scores to the axis.
        unit: Of the axis, for the words.
        places: Decimals in words.
        sign: Whether the numbers are differences.
        at: Where a dotted line stands.
        doubtful: Labels of rows to shade.
        lines: Further traces, drawn below the dots.
        chance: What chance alone gives, by the label of the row, in the unit of the scores; a dotted line in the row.
        counted: Whether the scores' `n` are images.
    """
    counts = {label: max(score.n for score in row.values()) for label, row in rows} if counted else {}
    differ = len(set(counts.values())) > 1
    heads = [escaped(label) + (f" · {fixed(counts[label], 0)}" if differ else "") for label, _ in rows]
    present = [one for one in variants if any(_has(row, one) for _, row in rows)]
    many = len(present) > MANY
    pitch = max(24.0, (2.6 if many else 9.0) * len(present) + 8.0)
    data = list(lines)
    for place, variant in enumerate(present):
        shift = 0.76 * ((place + 0.5) / len(present) - 0.5)
        found = [(row, label, ends_of(scores[variant.index], factor)) for row, (label, scores) in enumerate(rows)
                 if _has(scores, variant)]
        dot: Json = {
            "type": "scatter", "mode": "markers", "meta": variant.index, "cliponaxis": False,
            "x": rounded(np.array([of.value for *_, of in found])), "y": [round(row + shift, 4) for row, *_ in found],
            "marker": {"color": variant.colour, "size": 6 if many else 8, "symbol": SYMBOLS[variant.style],
                       "line": {"width": 0}},
            "text": [f"{heads[row]}: {said(of, places, unit, sign=sign)}" for row, _, of in found],
            "hovertemplate": f"{escaped(variant.label)}<br>%{{text}}<extra></extra>"}
        if not many:
            dot["error_x"] = {"type": "data", "symmetric": False, "width": 0, "thickness": 1.6,
                              "color": f"{variant.colour}aa",
                              "array": rounded(np.array([max(0.0, of.high - of.value) for *_, of in found])),
                              "arrayminus": rounded(np.array([max(0.0, of.value - of.low) for *_, of in found]))}
        data.append(dot)
    shapes: list[Json] = [_line({"y0": row + 0.5, "y1": row + 0.5, "x0": 0, "x1": 1, "xref": "paper"}, "44")
                          for row in range(len(rows) - 1)]
    if at is not None:
        shapes.append(_line({"x0": at, "x1": at, "y0": 0, "y1": 1, "yref": "paper"}, dash="dot"))
    shapes += [{"type": "rect", "xref": "paper", "x0": 0, "x1": 1, "y0": row - 0.5, "y1": row + 0.5,
                "fillcolor": f"{NEUTRAL}2a", "line": {"width": 0}, "layer": "below"}
               for row, (label, _) in enumerate(rows) if label in doubtful]
    levels = [(row, chance[label]) for row, (label, _) in enumerate(rows) if chance and label in chance]
    shapes += [_line({"x0": level * factor, "x1": level * factor, "y0": row - 0.45, "y1": row + 0.45}, dash="dot")
               for row, level in levels if x["range"][0] <= level * factor <= x["range"][1]]
    return Panel(
        title=title, note=images_in_words(counts.values(), (level for _, level in levels)),
        alt=f"{title}. {_rows_in_words(rows, present, factor, unit, places, sign=sign)}",
        figure={"data": data, "layout": plot_layout(
            pitch * len(rows) + 56, xaxis=x, shapes=shapes,
            yaxis=plot_axis("", tickvals=list(range(len(rows))), ticktext=heads,
                       range=[len(rows) - 0.5, -0.5], showgrid=False, zeroline=False))})


def reach(rows: Rows, factor: float, *always: float) -> list[float]:
    """Return the range of an axis for `dots` that shows all values, the `always` ones and all intervals drawn."""
    many = len({index for _, row in rows for index in row}) > MANY
    shown = [ends_of(score, factor) for _, row in rows for score in row.values() if score.value is not None]
    found = [*always, *(end for of in shown for end in ((of.value,) if many else of))]
    room = 0.04 * (max(found) - min(found)) or 1.0
    return [min(found) - room, max(found) + room]


def colour_range(values: Sequence[float], *, change: bool) -> tuple[float, float]:
    """Return where the colours of a heat map begin and end: evenly around 0 for changes, else at the extremes."""
    reached = max((abs(value) for value in values), default=0.0) or 1.0
    if change:
        return -reached, reached
    return min(values, default=0.0), max(values, default=reached)


def cells(values: Sequence[Sequence[float | None]], columns: Sequence[str], rows: Sequence[str],
          colours: tuple[float, float], *, change: bool = False, size: float = 11.0, gap: float = 1.0,
          words: Sequence[Sequence[str]] | None = None, grey: Sequence[Sequence[bool]] | None = None) -> list[Json]:
    """Return heat map traces with a number in each cell, the first row on top where the axis is reversed.

    The second trace, present where there are any, holds the grey cells.

    Args:
        values: Percent by row and column; None where there is nothing.
        columns: What each column is, for the words on hovering.
        rows: What each row is.
        colours: The values at both ends of the colours.
        change: Differences around 0 instead of values from 0.
        size: Of the numbers, in pixels.
        gap: Between the rows, in pixels.
        words: Each value in words, for hovering; by default the value with its unit.
        grey: Which cells have no colour, because chance alone explains them.
    """
    unit = "points" if change else "%"
    told = words or [["" if value is None else f"{fixed(value, 1, sign=change)} {unit}" for value in row]
                     for row in values]
    # Two characters and a sign are what fits on a phone.
    short = [["" if value is None else fixed(value, 0 if not change or abs(value) >= 9.95 else 1, sign=change)
              for value in row] for row in values]
    hovered = [[f"{escaped(row)}, {escaped(column)}: {word}" if word else "" for column, word
                in zip(columns, line, strict=True)] for row, line in zip(rows, told, strict=True)]

    def layer(scale: Sequence[tuple[float, str]], *, greyed: bool) -> Json:
        def kept(row: int, column: int) -> bool:
            return bool(grey is not None and grey[row][column]) == greyed

        shown = [[value if value is not None and kept(row, column) else None for column, value in enumerate(line)]
                 for row, line in enumerate(values)]
        return {
            "type": "heatmap", "x": list(range(len(columns))), "y": list(range(len(rows))), "showscale": False,
            "z": [[None if value is None else float(f"{value:.6g}") for value in line] for line in shown],
            "hoverongaps": False, "zmin": colours[0], "zmax": colours[1], "xgap": 1, "ygap": gap,
            "text": [[text if value is not None else "" for text, value in zip(*pair, strict=True)]
                     for pair in zip(short, shown, strict=True)],
            "colorscale": [list(stop) for stop in scale], "texttemplate": "%{text}", "textfont": {"size": size},
            "hoverinfo": "text", "hovertext": hovered}

    found = [layer(DIVERGING if change else SEQUENTIAL, greyed=False)]
    if grey is not None and any(map(any, grey)):
        found.append(layer(((0.0, GREY), (1.0, GREY)), greyed=True))
    return found


def said(of: Ends, places: int, unit: str, *, sign: bool = False) -> str:
    """Return a value with its interval in words: ``63.2 % (61.0–65.3)``."""
    within = f" ({span(of.low, of.high, places, sign=sign)})" if of.low < of.high else ""
    return f"{fixed(of.value, places, sign=sign)}{' ' * bool(unit)}{unit}{within}"


def _has(row: Row, variant: Variant) -> bool:
    return variant.index in row and row[variant.index].value is not None


def _line(where: Json, opacity: str = "", dash: str = "solid") -> Json:
    return {"type": "line", "layer": "below", "line": {"color": NEUTRAL + opacity, "width": 1, "dash": dash}, **where}


def _rows_in_words(rows: Rows, variants: Sequence[Variant], factor: float, unit: str,
                   places: int, *, sign: bool) -> str:
    """Return the rows as a sentence: every number of few variants, of more the smallest and the largest."""
    parts = []
    for label, row in rows:
        found = [(variant, (row[variant.index].value or 0.0) * factor) for variant in variants if _has(row, variant)]
        if len(found) <= FEW:
            parts.append(f"{label}: " + ", ".join(
                f"{variant.label} {fixed(value, places, sign=sign)}" for variant, value in found))
        else:
            low, high = min(value for _, value in found), max(value for _, value in found)
            parts.append(f"{label}: {span(low, high, places, sign=sign)}")
    return f"{'In ' + unit + '. ' if unit else ''}{'; '.join(parts)}."
