"""Properties over many conditions drawn: corruptions by severity as heat maps, geometric sweeps as curves."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edgebench import stats
from edgebench.drawing import (
    CHANGE,
    FEW,
    NEUTRAL,
    Chart,
    Ends,
    Json,
    Key,
    Panel,
    Row,
    Variant,
    cells,
    colour_range,
    ends_of,
    escaped,
    images_in_words,
    mean,
    plot_axis,
    plot_layout,
    rounded,
    said,
    shortened,
    table,
)
from edgebench.record import Evaluation
from edgebench.wording import fixed, level_title

HELD_OUT = frozenset(("speckle_noise", "gaussian_blur", "spatter", "saturate"))
"""Corruptions that never enter a mean."""
MADE = {"corruptions": "published files", "imagenet-c-generated": "corrupted here"}
"""Conditions that hold corruptions, in words."""
_FAMILIES = ("scale", "shift", "resolution")
# By family, and where the preset `paper` has another parameter, by both.
_SWEEPS = {"scale": "visible share of the image", "shift": "shift (share of the input)", "resolution": "input (pixels)",
           "scale paper": "zoom", "shift paper": "shift (pixels of the original)"}
_CURVES = (("accuracy", "Top-1"), ("retention", "Top-1 kept"), ("consistency", "Same answer"))
_POSITION = re.compile(r"(\d+(?:\.\d+)?)[a-z]*$")


def corruptions(variants: Sequence[Variant]) -> Chart:
    """Return accuracy by corruption and severity, and its change against the reference."""
    title = "Corrupted images"
    groups = list(dict.fromkeys((one.dataset.name, one.condition) for variant in variants
                                for one in variant.run.evaluations if one.condition in MADE))
    many = sum(any(one.condition in MADE for one in variant.run.evaluations) for variant in variants) > FEW
    panels: list[Panel] = []
    greyed = False
    for name, condition in groups:
        where = f"{name}, {MADE[condition]}" if len(groups) > 1 else ""
        for metric in ("accuracy", "accuracy_change"):
            levels = table(variants, "robustness", corrupted(metric, name, condition))
            present = [variant for variant in variants if any(variant.index in row for row in levels.values())]
            family = _Family(
                levels=levels, change=metric != "accuracy", where=where,
                accuracies=table(variants, "robustness", corrupted("accuracy", name, condition)),
                chance=next((1.0 / one.dataset.classes for variant in variants for one in variant.run.evaluations
                             if (one.dataset.name, one.condition) == (name, condition) and one.dataset.classes > 1),
                            None))
            greyed |= any(family.at_chance(index, level) for level, row in levels.items() for index in row)
            if present:
                panels += ([_mean_heat_map(family, present)] if many else
                           [_heat_map(family, variant) for variant in present])
    if not panels:
        return Chart(key="corruptions", title=title, absent="No run here was evaluated on corrupted images.")
    made = " and ".join(f"{name} ({MADE[condition]})" for name, condition in groups)
    return Chart(
        key="corruptions", title=title, panels=tuple(panels),
        caption=f"Top-1 accuracy in percent on {made}; where there is a reference, also the change against it in "
                "points, blue where accuracy rose, orange where it fell; colours span the values that occur. "
                + ("Grey cells say nothing: their 95 % interval reaches down to chance, before and after a change. "
                   if greyed else "")
                + ("Each number is the mean over the severities, which the tables hold one by one; the first column is "
                   "the mean over the corruptions." if many else
                   "Rows are corruptions, columns severities from 1, the mildest, to 5."))


def corrupted(metric: str, dataset: str, condition: str) -> Key:
    """Return a key to the levels ``<corruption>:<severity>`` of a metric on a data set."""
    def key(one: Evaluation, name: str) -> str:
        stem, _, level = name.partition("@")
        here = stem == metric and one.dataset.name == dataset and one.condition == condition
        return level if here and re.fullmatch(r"\w+:\d+", level) else ""

    return key


@dataclass(frozen=True, slots=True, kw_only=True)
class _Family:
    """One metric by ``<corruption>:<severity>``."""

    levels: Mapping[str, Row]
    change: bool
    where: str
    """Data set, where there are several."""
    accuracies: Mapping[str, Row]
    """The accuracies themselves, by the same levels."""
    chance: float | None
    """Accuracy of guessing at random, 0 to 1; None where the number of classes is unknown."""

    @property
    def names(self) -> list[str]:
        """Corruptions in order of appearance."""
        return list(dict.fromkeys(level.partition(":")[0] for level in self.levels))

    @property
    def severities(self) -> list[int]:
        """All that any corruption has."""
        return sorted({int(level.partition(":")[2]) for level in self.levels})

    @property
    def colours(self) -> tuple[float, float]:
        """Where the colours of single levels begin and end, in percent; grey cells have no say."""
        return colour_range([100 * (score.value or 0.0) for level, row in self.levels.items()
                             for index, score in row.items() if not self.at_chance(index, level)], change=self.change)

    def at_chance(self, index: int, level: str) -> bool:
        """Return whether a level of a variant cannot be told from guessing; for a change, the reference's neither."""
        accuracy, shown = self.accuracies.get(level, {}).get(index), self.levels.get(level, {}).get(index)
        if self.chance is None or not accuracy or not shown or accuracy.value is None or shown.value is None:
            return False
        low = accuracy.value if accuracy.low is None else accuracy.low
        if low > self.chance or not self.change:
            return low <= self.chance
        before = min(1.0, max(0.0, accuracy.value - shown.value))
        return stats.wilson(round(before * accuracy.n), accuracy.n)[0] <= self.chance

    def words(self, index: int, level: str) -> str:
        """Return a level's number with its interval and images, for hovering; empty where there is none."""
        score = self.levels.get(level, {}).get(index)
        if score is None or score.value is None:
            return ""
        return f"{said(ends_of(score, 100), 1, self.unit, sign=self.change)}, {fixed(score.n, 0)} images"

    @property
    def images(self) -> str:
        """Images of each cell and the level of chance, in words."""
        return images_in_words((score.n for row in self.levels.values() for score in row.values()),
                               () if self.chance is None else (self.chance,))

    @property
    def unit(self) -> str:
        """Of the numbers."""
        return "points" if self.change else "%"

    def percent(self, variant: Variant, names: Iterable[str], severities: Iterable[int]) -> float | None:
        """Return the mean over those levels that any variant has; None where this one lacks a part of them."""
        chosen = [f"{name}:{severity}" for name in names for severity in severities]
        found = mean(self.levels[level].get(variant.index) for level in chosen if level in self.levels)
        return None if found is None else 100 * found

    def overall(self, variant: Variant) -> float | None:
        """Return the mean over the corruptions that enter one."""
        return self.percent(variant, [name for name in self.names if name not in HELD_OUT] or self.names,
                            self.severities)

    def said(self, value: float | None) -> str:
        """Return a number in words."""
        return "none" if value is None else fixed(value, 1, sign=self.change)


def _heat_map(family: _Family, variant: Variant) -> Panel:
    """Return corruptions from top to bottom, severities from left to right."""
    words = [level_title(name) for name in family.names]
    values = [[family.percent(variant, [name], [severity]) for severity in family.severities] for name in family.names]
    title = ", ".join(filter(None, (variant.label, "change" if family.change else "", family.where)))
    spoken = "; ".join(f"{word} {family.said(family.percent(variant, [name], family.severities))}"
                       for name, word in zip(family.names, words, strict=True))
    levels = [[f"{name}:{severity}" for severity in family.severities] for name in family.names]
    return Panel(
        title=title, variant=variant,
        note=f"mean {family.said(family.overall(variant))} {family.unit} · {family.images}",
        alt=f"{title}: top-1 by corruption, mean over the severities, in {family.unit}: {spoken}.",
        figure={"data": cells(
            values, [f"severity {one}" for one in family.severities], words, family.colours, change=family.change,
            words=[[family.words(variant.index, level) for level in row] for row in levels],
            grey=[[family.at_chance(variant.index, level) for level in row] for row in levels]),
                "layout": plot_layout(
                    22.0 * len(words) + 56.0, yaxis=_categories(words, autorange="reversed"),
                    xaxis=_categories(list(map(str, family.severities)), title="severity"))})


def _mean_heat_map(family: _Family, variants: Sequence[Variant]) -> Panel:
    """Return variants from top to bottom, corruptions from left to right, each the mean over its severities."""
    words = ["mean", *map(level_title, family.names)]
    overall = [family.overall(variant) for variant in variants]
    values = [[value, *(family.percent(variant, [name], family.severities) for name in family.names)]
              for variant, value in zip(variants, overall, strict=True)]
    colours = colour_range([value for row in values for value in row if value is not None], change=family.change)
    title = ", ".join(filter(None, (CHANGE if family.change else "Top-1 by corruption", family.where)))
    heads: list[Json] = [
        {"x": 0, "xref": "paper", "xanchor": "left", "y": row - 0.47, "yanchor": "middle", "name": "head",
         "showarrow": False, "text": escaped(shortened(variant.label))} for row, variant in enumerate(variants)]
    spoken = "; ".join(f"{variant.label} {family.said(value)}"
                       for variant, value in zip(variants, overall, strict=True))
    grey = [[all(family.at_chance(variant.index, f"{name}:{severity}") for name in names
                 for severity in family.severities)
             for names in (family.names, *([name] for name in family.names))] for variant in variants]
    return Panel(
        title=title, note=family.images,
        alt=f"{title}, mean over corruptions and severities in {family.unit}: {spoken}.",
        least_px=(26 if family.change else 20) * len(words) + 16,
        figure={"data": cells(values, words, [variant.label for variant in variants], colours, change=family.change,
                              size=10.0, gap=23.0, grey=grey),
                "layout": plot_layout(
                    45.0 * len(variants) + 140.0, annotations=heads,
                    xaxis=_categories(words, side="top", tickangle=-90),
                    yaxis={"visible": False, "fixedrange": True, "range": [len(variants) - 0.5, -0.8]})})


def _categories(words: Sequence[str], *, title: str = "", **more: object) -> Json:
    return plot_axis(title, tickvals=list(range(len(words))), ticktext=[*map(escaped, words)], showgrid=False,
                     zeroline=False, **more)


def invariance(variants: Sequence[Variant]) -> Chart:
    """Return accuracy, its kept share and consistency over the levels of each sweep."""
    title = "Invariance: zoom, shift and resolution"
    sets = list(dict.fromkeys(one.dataset.name for variant in variants for one in variant.run.evaluations
                              if one.property == "invariance"))
    panels = [panel for name in sets for metric, heading in _CURVES for family in _FAMILIES
              if (panel := _curve(variants, name, family, metric, heading + (f" on {name}" if len(sets) > 1 else "")))]
    if not panels:
        return Chart(key="invariance", title=title, absent="No run here was evaluated under zoom, shift or resolution.")
    return Chart(
        key="invariance", title=title, panels=tuple(panels),
        caption="More is done to the image from left to right, or its resolution rises. Top-1 kept: accuracy over "
                "that on the untransformed images. Same answer: how often it is the one given untransformed, right or "
                "wrong. Shifts are means over the directions."
                + (" Bands are 95 % intervals. The band of a mean over directions is the mean of theirs, which is "
                   "conservative." if any("fill" in trace for panel in panels for trace in panel.figure["data"])
                   else ""))


def _curve(variants: Sequence[Variant], dataset: str, family: str, metric: str, heading: str) -> Panel | None:
    """Return a line per variant over a family's levels; None where there are no scores."""
    data: list[Json] = []
    drawn: list[float] = []
    seen: list[Evaluation] = []
    spoken, presets = [], set()
    for variant in variants:
        one = next((one for one in variant.run.evaluations if one.property == "invariance" and one.condition == family
                    and one.dataset.name == dataset), None)
        points = _points(variant, one, metric) if one else {}
        if one is None or not points:
            continue
        presets.add(one.preset)
        places = sorted(points)
        centre, low, high = (np.array([np.mean([ends[k] for ends in points[place]]) for place in places])
                             for k in range(3))
        if len(variants) <= FEW and (low < high).any():
            data.append({
                "type": "scatter", "mode": "lines", "meta": variant.index, "x": [*places, *places[::-1]],
                "y": rounded(np.concatenate([high, low[::-1]])), "fill": "toself", "fillcolor": f"{variant.colour}22",
                "line": {"width": 0}, "hoverinfo": "skip"})
        data.append({
            "type": "scatter", "mode": "lines+markers", "meta": variant.index, "x": places, "y": rounded(centre),
            "line": {"color": variant.colour, "width": 1.8, "dash": variant.dash},
            "marker": {"size": 4, "color": variant.colour}, "cliponaxis": False,
            "text": [said(Ends(*ends), 1, "%") for ends in zip(centre, low, high, strict=True)],
            "hovertemplate": f"{escaped(variant.label)}<br>%{{x}}: %{{text}}<extra></extra>"})
        drawn += [low.min(), high.max()] if len(variants) <= FEW else [centre.min(), centre.max()]
        seen.append(one)
        spoken.append(f"{variant.label} " + ", ".join(
            f"{place:g}: {fixed(value, 1)}" for place, value in zip(places, centre.tolist(), strict=True)))
    if not data:
        return None
    paper = presets == {"paper"}
    # The visible share falls from 1: the more is done to the image, the further to the right.
    turned = {"autorange": "reversed"} if family == "scale" and not paper else {}
    title = f"{heading}, {family}"
    chances = {1.0 / one.dataset.classes for one in seen if one.dataset.classes > 1 and metric == "accuracy"}
    room = 0.06 * (max(drawn) - min(drawn)) or 1.0
    bottom, top = min(drawn) - room, max(drawn) + room
    shapes = [{"type": "line", "layer": "below", "xref": "paper", "x0": 0, "x1": 1, "y0": level, "y1": level,
               "line": {"color": NEUTRAL, "width": 1, "dash": "dot"}}
              for level in (100 * chance for chance in chances) if bottom <= level <= top]
    return Panel(title=title, note=images_in_words((one.dataset.images for one in seen), chances),
                 alt=f"{title}, in percent by level. {'; '.join(spoken)}.", figure={
        "data": data, "layout": plot_layout(
            250.0, yaxis=plot_axis("%", nticks=6, range=[bottom, top]), shapes=shapes, xaxis=plot_axis(
                _SWEEPS.get(f"{family} paper", _SWEEPS[family]) if paper else _SWEEPS[family], nticks=6, **turned))})


def _points(variant: Variant, one: Evaluation, metric: str) -> dict[float, list[Ends]]:
    """Return values in percent with their intervals by the level's number, one for each direction of a shift.

    At a level that has an accuracy alone the images are untransformed: all is kept, and every answer is the same.
    """
    scores = {score.name: score for score in one.scores if score.value is not None}
    places = {level: place for name in scores if name.startswith("accuracy@")
              if (place := _place(variant, level := name.removeprefix("accuracy@"))) is not None}
    transformed = {name.partition("@")[2] for name in scores if name.startswith(("retention@", "consistency@"))}
    points: dict[float, list[Ends]] = {}
    for level, place in places.items():
        score = scores.get(f"{metric}@{level}")
        if score or level not in transformed:
            points.setdefault(place, []).append(ends_of(score, 100) if score else Ends(100.0, 100.0, 100.0))
    return points if any(name.startswith(f"{metric}@") for name in scores) else {}


def _place(variant: Variant, level: str) -> float | None:
    """Return a level's number, which for ``native`` is the size of the model's input; None where it has none."""
    if level == "native":
        preprocess = variant.run.artifact.preprocess
        return float(preprocess.size_px[0]) if preprocess else None
    match = _POSITION.match(level)
    return float(match[1]) if match else None
