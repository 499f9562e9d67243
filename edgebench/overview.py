"""All properties in one picture: an axis each, from 0 to 1, further out is better."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from edgebench.drawing import (
    MANY,
    Chart,
    Panel,
    Row,
    Rows,
    Variant,
    called,
    dots,
    escaped,
    exactly,
    headline_score,
    mean,
    plot_axis,
    plot_layout,
    table,
)
from edgebench.record import Score
from edgebench.sweep_charts import HELD_OUT, MADE, corrupted
from edgebench.wording import fixed, listed, member_title

DOUBTED = "Scene_Light"
"""Rendered subset whose published accuracies are at chance: it enters no mean here."""

Axis = tuple[str, str, Mapping[int, float]]
"""Name, definition, and values by the index of their variant."""


def overview(variants: Sequence[Variant]) -> Chart:
    """Return a radar of the properties that were evaluated, and the same numbers in rows."""
    title = "Properties at a glance"
    axes = [axis for axis in _axes(variants) if axis[2]]
    if len(axes) < 3:
        return Chart(key="overview", title=title, absent="Fewer than three properties were evaluated.")
    present = [variant for variant in variants if any(variant.index in values for *_, values in axes)]
    chosen = _extremes(present, axes) if len(present) > MANY else present
    rows: Rows = [(name, {index: Score(name=name, value=value, unit="fraction", better="higher", n=1, method=what,
                                       reason="made of other scores") for index, value in values.items()})
                  for name, what, values in axes]
    caption = ("One number per property: further out, or further to the right, is better. The axes measure different "
               "things, and the area they enclose means nothing.")
    if len(chosen) < len(present):
        caption += (f" The radar shows {listed([variant.label for variant in chosen])}: a reference, and the variants "
                    f"with the highest and lowest mean of the axes that all have; the rows show all {len(present)}.")
    return Chart(
        key="overview", title=title, caption=caption, notes=tuple(f"{name}: {what}." for name, what, _ in axes),
        panels=(_radar(axes, chosen, len(present)),
                dots("The same numbers by property", rows, variants,
                     plot_axis("", range=[-0.02, 1.02], dtick=0.25), factor=1.0, unit="", places=3, counted=False)))


def _radar(axes: Sequence[Axis], variants: Sequence[Variant], of: int) -> Panel:
    names = [name for name, *_ in axes]
    data = [{
        "type": "scatterpolar", "mode": "lines+markers", "meta": variant.index, "theta": [*names, names[0]],
        "r": [float(f"{values[variant.index]:.6g}") if variant.index in values else None
              for *_, values in (*axes, axes[0])],
        "line": {"color": variant.colour, "width": 2, "dash": variant.dash}, "cliponaxis": False,
        "marker": {"size": 5, "color": variant.colour},
        "hovertemplate": f"{escaped(variant.label)}<br>%{{theta}}: %{{r:.3f}}<extra></extra>"} for variant in variants]
    spoken = "; ".join(f"{variant.label}: " + ", ".join(
        f"{name} {fixed(values[variant.index], 2)}" for name, _, values in axes if variant.index in values)
        for variant in variants)
    return Panel(
        title="Radar", note=f"{len(variants)} of {of} variants" if len(variants) < of else "",
        alt=f"Radar of the properties from 0 to 1, further out is better. {spoken}.",
        figure={"data": data, "layout": plot_layout(
            380.0, margin={"l": 66, "r": 66, "t": 30, "b": 30}, polar={
                "radialaxis": {"range": [0, 1], "dtick": 0.25, "angle": 90, "tickangle": 90, "tickfont": {"size": 10}},
                "angularaxis": {"rotation": 90, "direction": "clockwise"}})})


def _axes(variants: Sequence[Variant]) -> list[Axis]:
    def headline(name: str, turned: Callable[[float], float]) -> dict[int, float]:
        return {variant.index: turned(score.value) for variant in variants
                if (score := headline_score(variant.run, name)) and score.value is not None}

    def single(property_: str, name: str) -> dict[int, float]:
        row = table(variants, property_, exactly(name)).get(name, {})
        return {index: score.value for index, score in row.items() if score.value is not None}

    def means(rows: Mapping[str, Row]) -> dict[int, float]:
        return {variant.index: value for variant in variants
                if (value := mean(row.get(variant.index) for row in rows.values())) is not None}

    plain = next((one.dataset.name for variant in variants for one in variant.run.evaluations
                  if one.property == "accuracy"), "")
    natural = table(variants, "robustness", lambda one, name: one.dataset.name * (
        name == "accuracy_top1" and one.condition == "clean"))
    source, condition = next(((one.dataset.name, one.condition) for condition in MADE for variant in variants
                              for one in variant.run.evaluations if one.condition == condition), ("", ""))
    corruptions = {level: row for level, row
                   in table(variants, "robustness", corrupted("accuracy", source, condition)).items()
                   if level.partition(":")[0] not in HELD_OUT}
    probes = table(variants, "transfer", called("probe_accuracy"))
    rendered = {name: row for name, row in table(variants, "synthetic", called("accuracy", "accuracy_top1")).items()
                if name.rpartition("/")[2] != DOUBTED}
    swept = table(variants, "invariance", lambda one, name: f"{one.condition} on {one.dataset.name}" * (
        name == "retention_area"))
    return [
        ("Accuracy", f"top-1 on {plain}", headline("accuracy_top1", lambda value: value)),
        ("Calibration", "1 less the expected calibration error in 15 bins",
         headline("ece15_ew", lambda value: 1.0 - value)),
        ("Mistakes", "1 over the mean error ratio of all factors, at most 1",
         {index: 1.0 / max(value, 1.0) for index, value in single("mistakes", "error_ratio_mean").items()}),
        ("Cues", "share of the cue-conflict images decided for their shape or their texture",
         single("shape-bias", "cue_accuracy")),
        ("Other sets", f"mean top-1 on {listed(list(natural))}", means(natural)),
        ("Corruptions", f"mean top-1 over corruptions and severities: {source}, {MADE.get(condition, '')}",
         means(corruptions)),
        ("Transfer", f"mean accuracy of linear probes on {listed([member_title(name) for name in probes])}",
         means(probes)),
        ("Rendered", f"mean top-1 on {listed([member_title(name) for name in rendered])}", means(rendered)),
        ("Invariance", f"mean area under the curve of the top-1 kept, at most 1: {listed(list(swept))}",
         {index: min(1.0, value) for index, value in means(swept).items()}),
    ]


def _extremes(variants: Sequence[Variant], axes: Sequence[Axis]) -> list[Variant]:
    """Return a reference and the variants with the highest and the lowest mean of the axes that all have."""
    shared = [values for *_, values in axes if all(variant.index in values for variant in variants)]
    ranked = sorted(variants, key=lambda variant: sum(values[variant.index] for values in shared))
    worst, best = ranked[0], ranked[-1]
    references = [one.reference for one in (best, worst, *variants) if one.reference]
    return sorted({one.index: one for one in (*references[:1], worst, best)}.values(), key=lambda one: one.index)
