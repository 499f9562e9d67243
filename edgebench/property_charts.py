"""What the properties beyond accuracy look like: a chart of each, drawn from the scores alone, and all of them in one.

Percent appears in `report` and what it draws with only.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from edgebench import stats
from edgebench.drawing import (
    CHANGE,
    MANY,
    NEUTRAL,
    Chart,
    Key,
    Panel,
    Row,
    Rows,
    Variant,
    called,
    chance_levels,
    dots,
    ends_of,
    escaped,
    exactly,
    images_in_words,
    plot_axis,
    plot_layout,
    reach,
    rounded,
    said,
    table,
)
from edgebench.overview import DOUBTED, overview
from edgebench.record import Evaluation, Score
from edgebench.sweep_charts import corruptions, invariance
from edgebench.wording import fixed, member_title, parts, span

SCARCE = 200
"""Images below which an error ratio is mostly noise."""
_SHARES = ("cue_accuracy", "shape_accuracy", "texture_accuracy", "no_conflict_accuracy")
_PROBES = (("probe_accuracy", "Probe trained on its own features"),
           ("probe_swap_accuracy", "Probe trained on the reference's features"))
_DIAGONAL = {"type": "line", "x0": 0, "y0": 0, "x1": 100, "y1": 100, "layer": "below",
             "line": {"color": NEUTRAL, "width": 1, "dash": "dot"}}
_HOW_RIGHT = "claimed %{x:.1f} %, right %{y:.1f} %<br>%{customdata} images<extra></extra>"


def property_charts(variants: Sequence[Variant]) -> tuple[Chart, ...]:
    """Return the properties' charts, in reading order; those without data say why."""
    return (overview(variants), _reliability(variants), _mistakes(variants), _shape(variants), _natural(variants),
            corruptions(variants), _foreign(variants), _transfer(variants), _synthetic(variants), invariance(variants))


def _dots(title: str, rows: Rows, variants: Sequence[Variant], axis: str, *, doubtful: Collection[str] = (),
          chance: Mapping[str, float] | None = None) -> tuple[Panel, ...]:
    """Return the panel of shares, where there are any."""
    if not rows:
        return ()
    low, high = reach(rows, 100.0)
    return (dots(title, rows, variants, plot_axis(axis, range=[max(-1.0, low), min(101.0, high)]), doubtful=doubtful,
                 chance=chance),)


def _changes(rows: Rows, variants: Sequence[Variant], *, title: str = CHANGE, doubtful: Collection[str] = (),
             ) -> tuple[Panel, ...]:
    """Return the panel of the changes against the reference, where there are any."""
    if not rows:
        return ()
    return (dots(title, rows, variants, plot_axis("points", range=reach(rows, 100.0, 0.0)), unit="points", places=2,
                 sign=True, at=0.0, doubtful=doubtful),)


def _reliability(variants: Sequence[Variant]) -> Chart:
    found = [(variant, one) for variant in variants for one in variant.run.evaluations if one.reliability]
    sets = list(dict.fromkeys(one.dataset.name for _, one in found))
    title = "Reliability of the confidences"
    if not found:
        return Chart(key="reliability", title=title, absent="No run here has a calibration evaluation.")
    how = ("accuracy of the images in each confidence bin; on the diagonal the model is right as often as it claims, "
           "below it is over-confident.")
    if len(found) > MANY:
        return Chart(key="reliability", title=title, caption=f"A line per variant: {how}", panels=tuple(
            _reliability_lines(name, [pair for pair in found if pair[1].dataset.name == name]) for name in sets))
    return Chart(
        key="reliability", title=title, caption=f"Top: {how} Bars are 95 % Wilson intervals. Bottom: where the "
                                                "confidences lie.",
        panels=tuple(_reliability_panel(variant, one, several=len(sets) > 1) for name in sets
                     for variant, one in found if one.dataset.name == name))


def _bins(one: Evaluation) -> list[tuple[float, float, int]]:
    """Return claimed and true accuracy, in percent, and images of the bins that hold any."""
    return [(100 * bin_.confidence, 100 * bin_.accuracy, bin_.n) for bin_ in one.reliability
            if bin_.n and bin_.confidence is not None and bin_.accuracy is not None]


def _ece(one: Evaluation) -> Score | None:
    return next((score for score in one.scores if score.name == "ece15_ew" and score.value is not None), None)


def _reliability_panel(variant: Variant, one: Evaluation, *, several: bool) -> Panel:
    full = [(*bin_, stats.wilson(round(bin_[1] * bin_[2] / 100), bin_[2])) for bin_ in _bins(one)]
    total = sum(n for _, _, n, _ in full)
    points = {
        "type": "scatter", "mode": "lines+markers", "meta": variant.index, "x": [claimed for claimed, *_ in full],
        "y": [right for _, right, *_ in full], "customdata": [n for _, _, n, _ in full],
        "line": {"color": variant.colour, "width": 1.5}, "marker": {"size": 6, "color": variant.colour},
        "error_y": {"type": "data", "symmetric": False, "width": 0, "thickness": 1.5, "color": f"{variant.colour}99",
                    "array": [max(0.0, 100 * ends[1] - right) for _, right, _, ends in full],
                    "arrayminus": [max(0.0, right - 100 * ends[0]) for _, right, _, ends in full]},
        "hovertemplate": _HOW_RIGHT}
    bars = {"type": "bar", "yaxis": "y2", "meta": variant.index,
            "x": [50 * (bin_.low + bin_.high) for bin_ in one.reliability],
            "y": [100 * bin_.n / max(total, 1) for bin_ in one.reliability],
            "width": [100 * (bin_.high - bin_.low) * 0.92 for bin_ in one.reliability],
            "marker": {"color": variant.colour, "opacity": 0.6, "line": {"width": 0}},
            "hovertemplate": "%{y:.1f} % of the images<extra></extra>"}
    error = _ece(one)
    note = " · ".join(filter(None, (f"ECE {said(ends_of(error, 100), 1, '%')}" if error else "",
                                    images_in_words([one.dataset.images]))))
    spoken = ", ".join(f"{fixed(claimed, 0)} % claimed {fixed(right, 0)} % right ({n} images)"
                       for claimed, right, n, _ in full)
    return Panel(
        title=f"{variant.label}, {one.dataset.name}" if several else variant.label, note=note, variant=variant,
        alt=f"Reliability of {variant.label} on {one.dataset.name}{', ' + note if note else ''}: {spoken}.",
        figure={"data": [points, bars], "layout": plot_layout(
            300, xaxis=plot_axis("confidence (%)", range=[0, 101], dtick=20, anchor="y2"),
            yaxis=plot_axis("right (%)", range=[0, 103], dtick=20, domain=[0.32, 1]),
            yaxis2=plot_axis("images (%)", domain=[0, 0.22], rangemode="tozero", nticks=3), shapes=[_DIAGONAL])})


def _reliability_lines(name: str, found: Sequence[tuple[Variant, Evaluation]]) -> Panel:
    data = []
    for variant, one in found:
        full = _bins(one)
        data.append({
            "type": "scatter", "mode": "lines", "meta": variant.index, "x": [claimed for claimed, *_ in full],
            "y": [right for _, right, _ in full], "customdata": [n for *_, n in full],
            "line": {"color": variant.colour, "width": 1.5, "dash": variant.dash},
            "hovertemplate": f"{escaped(variant.label)}<br>{_HOW_RIGHT}"})
    errors = [(variant, ends_of(error, 100).value) for variant, one in found if (error := _ece(one))]
    values = [value for _, value in errors]
    spoken = "; ".join(f"{variant.label} ECE {fixed(value, 1)} %" for variant, value in errors)
    note = " · ".join(filter(None, (f"ECE {span(min(values), max(values), 1)} %" if values else "",
                                    images_in_words(one.dataset.images for _, one in found))))
    return Panel(title=name, note=note,
                 alt=f"Reliability on {name}, a line per variant. {spoken}.",
                 figure={"data": data, "layout": plot_layout(
                     340, xaxis=plot_axis("confidence (%)", range=[0, 101], dtick=20), shapes=[_DIAGONAL],
                     yaxis=plot_axis("right (%)", range=[0, 103], dtick=20))})


def _by_factor(prefix: str) -> Key:
    # The same with other annotations or labels stand in the tables alone.
    others = ("mean", "multi_", "real_", "change_")
    return lambda one, name: "" if not name.startswith(prefix) or (
        rest := name.removeprefix(prefix)).startswith(others) else rest


def _mistakes(variants: Sequence[Variant]) -> Chart:
    title = "Mistakes by factor of variation"
    ratios = _factor_rows(table(variants, "mistakes", _by_factor("error_ratio_")))
    if not ratios:
        return Chart(key="mistakes", title=title, absent="No run here was sorted by the factors of ImageNet-X.")
    means = table(variants, "mistakes", exactly("error_ratio_mean", f"error_ratio_mean_n{SCARCE}"))
    changes = _factor_rows(table(variants, "mistakes", _by_factor("factor_error_change_")))
    scarce = {label for label, row in (*ratios, *changes) if _images(row) < SCARCE}
    rows = [*((parts(name)[1], row) for name, row in means.items()), *ratios]
    return Chart(
        key="mistakes", title=title,
        caption="Error on the images that show a factor, over the error on all annotated images: at 1 the factor makes "
                "no difference, to the right it causes mistakes. The number is that of its images; factors with fewer "
                f"than {SCARCE} are shaded: their ratios are mostly noise."
                + (" Changes of the error are against the reference on the same images." if changes else ""),
        panels=(dots("Error ratio", rows, variants, plot_axis("error ratio", range=reach(rows, 1.0, 1.0)), factor=1.0,
                     unit="", places=2, at=1.0, doubtful=scarce),
                *_changes(changes, variants, title="Change of the error", doubtful=scarce)))


def _images(row: Row) -> int:
    return max(score.n for score in row.values())


def _factor_rows(found: Mapping[str, Row]) -> Rows:
    return [(name.replace("_", " "), row)
            for name, row in sorted(found.items(), key=lambda pair: -_images(pair[1]))]


def _shape(variants: Sequence[Variant]) -> Chart:
    title = "Shape or texture"
    overall = table(variants, "shape-bias", exactly("shape_bias"))
    if not overall:
        return Chart(key="shape", title=title, absent="No run here has decisions on cue-conflict images.")
    rows: Rows = [("all", overall["shape_bias"]), *table(variants, "shape-bias", lambda one, name: parts(name)[1] * (
        parts(name)[0] == "Shape bias by category")).items()]
    found = [(variant, ends_of(score, 100)) for variant in variants
             if (score := overall["shape_bias"].get(variant.index))]
    lines = [{"type": "scatter", "mode": "lines", "meta": variant.index, "x": rounded(np.full(2, ends.value)),
              "y": [-0.5, len(rows) - 0.5], "line": {"color": variant.colour, "dash": variant.dash,
                                                     "width": 1.0 if len(found) > MANY else 1.6},
              "hovertemplate": f"{escaped(variant.label)}<br>all: {said(ends, 1, '%')}<extra></extra>"}
             for variant, ends in found]
    shares = table(variants, "shape-bias", exactly(*_SHARES))
    changes = table(variants, "shape-bias", exactly(*(f"{name}_change" for name in ("shape_bias", *_SHARES))))
    return Chart(
        key="shape", title=title,
        caption="Of the decisions for either cue on images whose shape and texture disagree, the share that followed "
                "the shape: to the left texture decides, to the right shape. A vertical line per variant is its value "
                "over all categories. Beside it, how often either cue is recognised at all: a damaged model can gain "
                "shape bias by losing texture.",
        panels=(
            dots("Shape bias by category", rows, variants,
                 plot_axis("← texture   shape bias (%)   shape →", range=[-2, 102], dtick=20), at=50.0, lines=lines),
            *_dots("Decisions", [(_cue(name), row) for name, row in shares.items()], variants, "share of images (%)",
                   # Either cue is right by chance twice as often.
                   chance={_cue(name): level * (2 if name == "cue_accuracy" else 1) for name, level
                           in chance_levels(variants, "shape-bias", exactly(*_SHARES)).items()}),
            *_changes([(_cue(name), row) for name, row in changes.items()], variants)))


def _cue(name: str) -> str:
    """Return what was decided for: ``either cue`` for ``cue_accuracy``."""
    stem = name.removesuffix("_change").removesuffix("_accuracy").replace("_", " ")
    return "either cue" if stem == "cue" else stem


def _natural(variants: Sequence[Variant]) -> Chart:
    title = "Other pictures of the same classes"

    def named(ending: str) -> Key:
        names = {f"accuracy_top1{ending}": "", f"accuracy_real{ending}": ", ReaL labels"}

        def key(one: Evaluation, name: str) -> str:
            if name == f"mean_of_seven{ending}":
                return "mean of seven"
            known = one.condition == "clean" and (one.property == "robustness" or one.dataset.name == "imagenet-val")
            return one.dataset.name + names[name] if known and name in names else ""

        return key

    both = ("accuracy", "robustness")
    rows = list(table(variants, both, named("")).items())
    if all(name.startswith("imagenet-val") for name, _ in rows):
        return Chart(key="natural", title=title,
                     absent="No run here was evaluated on ImageNet-V2, -A, -R, -Sketch or -Hard.")
    changes = list(table(variants, both, named("_change")).items())
    return Chart(
        key="natural", title=title,
        caption="Top-1 accuracy by set, with 95 % intervals. The sets differ in classes and in size: compare variants "
                "within a row.",
        panels=(*_dots("Top-1 by set", rows, variants, "top-1 (%)", chance=chance_levels(variants, both, named(""))),
                *_changes(changes, variants)))


def _foreign(variants: Sequence[Variant]) -> Chart:
    title = "Foreign images"

    def named(ending: str) -> Key:
        # The others say how sure a model is in another way, and stand in the tables.
        return lambda one, name: f"{member_title(one.dataset.name)} · {one.condition.removeprefix('ood:')}" * (
            name == f"auroc_msp{ending}")

    rows = list(table(variants, "robustness", named("")).items())
    if not rows:
        return Chart(key="foreign", title=title, absent="No run here saw images that the model was not made for.")
    return Chart(
        key="foreign", title=title,
        caption="How well the confidence tells images that the model was not made for from its own (named second): the "
                "chance that one of its own has the larger confidence. At 50 % it tells nothing.",
        panels=(dots("AUROC of the confidence", rows, variants, plot_axis("AUROC (%)", range=reach(rows, 100.0, 50.0)),
                     at=50.0),
                *_changes(list(table(variants, "robustness", named("_change")).items()), variants)))


def _transfer(variants: Sequence[Variant]) -> Chart:
    title = "Transfer: linear probes by task"

    def rows(name: str) -> Rows:
        return [(member_title(task), row) for task, row in table(variants, "transfer", called(name)).items()]

    panels: list[Panel] = []
    for stem, heading in _PROBES:
        chance = {member_title(task): level
                  for task, level in chance_levels(variants, "transfer", called(_PROBES[0][0])).items()}
        panels += (*_dots(heading, rows(stem), variants, "accuracy (%)", chance=chance),
                   *_changes(rows(f"{stem}_change"), variants, title=f"{heading}: change"))
    if not panels:
        return Chart(key="transfer", title=title, absent="No run here has linear probes.")
    return Chart(
        key="transfer", title=title, panels=tuple(panels),
        caption="Accuracy of a linear classifier on the frozen features, by task. What is lost with the reference's "
                "probe is drift of the features; what a probe of the variant's own does not win back is information. "
                "Changes are against the reference's probe on its own features.")


def _synthetic(variants: Sequence[Variant]) -> Chart:
    title = "Rendered images by factor"

    def rows(*names: str) -> Rows:
        return [(member_title(name), row) for name, row in table(variants, "synthetic", called(*names)).items()]

    shares, doubtful = rows("accuracy", "accuracy_top1"), member_title(DOUBTED)
    if not shares:
        return Chart(key="synthetic", title=title, absent="No run here was evaluated on rendered images.")
    return Chart(
        key="synthetic", title=title,
        caption="Top-1 accuracy on PUG-ImageNet, where one factor of the scene varies at a time."
                + (f" {doubtful} is shaded: the published accuracies are at chance there, images or folders in doubt."
                   if doubtful in dict(shares) else ""),
        panels=(*_dots("Top-1 by factor", shares, variants, "top-1 (%)", doubtful=[doubtful], chance={
            member_title(name): level for name, level
            in chance_levels(variants, "synthetic", called("accuracy", "accuracy_top1")).items()}),
                *_changes(rows("accuracy_change", "accuracy_top1_change"), variants, doubtful=[doubtful])))
