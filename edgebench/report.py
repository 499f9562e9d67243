"""Runs told to people: a table, Markdown, one self-contained HTML page, and the headline numbers for machines.

The only place, with the modules that draw, where fractions become percent, seconds milliseconds and bytes megabytes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import jinja2

from edgebench import catalog, noninferiority, outputs, record, roofline_charts
from edgebench.charts import charts
from edgebench.decision_curves import SIZE, curve
from edgebench.drawing import Ends, Variant, ends_of, headline_score, trace_of
from edgebench.errors import InvalidInput
from edgebench.property_charts import property_charts
from edgebench.reading import other_circumstances, refuse_other_timings, skip_about
from edgebench.record import Caveat, Run
from edgebench.rule_words import quantity
from edgebench.score_tables import PLAIN, Cell, as_good, cell, distinct, interval, methods, score_groups
from edgebench.timing_charts import distribution, minutes, timeline
from edgebench.timing_tables import timing_tables, variant_timings
from edgebench.wording import BACKENDS, BOUNDARIES, UNITS, decimals, fixed, listed, span, title

if TYPE_CHECKING:
    from edgebench.decisions import DecisionPath
    from edgebench.interleaved import Paired

SUMMARY_SCHEMA = "edgebench.summary/1"
# History: 1 (0.1.0) first published form.
HEADLINE = ("latency_p50", "latency_p99", "throughput_offline", "first_inference_time", "artifact_size",
            "peak_host_memory", "accuracy_top1", "accuracy_top1_change", "negative_flips", "positive_flips",
            "mcnemar_p", "ece15_ew", "ece15_ew_change", "nll")
CHANGES = ("accuracy_top1_change", "negative_flips", "positive_flips", "mcnemar_p", "ece15_ew_change", "nll_change")
# Header, score and factor to the header's unit; the speed-up is no score.
COLUMNS = (("Top-1 %", "accuracy_top1", 100.0), ("ECE %", "ece15_ew", 100.0), ("p50 ms", "latency_p50", 1e3),
           ("p99 ms", "latency_p99", 1e3), ("img/s", "throughput_offline", 1.0), ("Speed-up", "", 1.0),
           ("Size MB", "artifact_size", 1e-6), ("Neg. flips %", "negative_flips", 100.0))
# Words in what a run says it skipped, by the score that is then absent.
SKIPS: dict[str, tuple[str, ...]] = {
    "accuracy_top1": ("accuracy", "quality"), "ece15_ew": ("calibration", "quality"), "latency_p50": ("latency",),
    "latency_p99": ("latency",), "throughput_offline": ("latency",), "negative_flips": ("reference", "quality")}
"""What the headline scores are absent with: properties, and subjects of skips."""
PRECISIONS = ("fp32", "fp16", "bf16", "fp8", "int8")
_NO_REFERENCE = "there is no reference to compare with"
_WHAT_TO_NAME = "name a run.json, the folder that holds it, or the --out folder of 'edgebench profile'"
_SUPERSCRIPTS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """The headline numbers as text: a row per variant, the first column its label, the others right-aligned."""

    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...]
    """Footnotes, with their marks, and what the numbers mean."""


def discover(paths: Sequence[Path]) -> tuple[Run, ...]:
    """Return the runs at `paths`: run files, folders that hold one, or output folders of such folders.

    Sorted by model, backend and precision, FP32 first; a file named twice counts once.

    Raises:
        InvalidInput: Nothing there, or a run file that is damaged or of a newer version.
    """
    return ordered([run for run, _ in locate(paths)])


def locate(paths: Sequence[Path]) -> tuple[tuple[Run, Path], ...]:
    """Return the runs at `paths`, each with the folder of its file; see `discover`.

    Raises:
        InvalidInput: Nothing there, or a run file that is damaged or of a newer version.
    """
    files: dict[Path, None] = {}
    for path in paths:
        if path.is_dir():
            found = [path / "run.json"] if (path / "run.json").is_file() else sorted(path.glob("*/run.json"))
            if not found:
                raise InvalidInput(f"no run.json below {path}", _WHAT_TO_NAME)
        else:
            found = [path]
        files.update((file.resolve(), None) for file in found)
    if not files:
        raise InvalidInput("no runs were named", _WHAT_TO_NAME)
    located = tuple((record.load(file), file.parent) for file in files)
    for run, folder in located:
        refuse_other_timings(run, folder / "run.json")
    return located


def table(runs: Sequence[Run]) -> Table:
    """Return the headline table; what is absent is ``–`` with a footnote that says why."""
    variants = _variants(runs)
    rows, notes = _headline_rows(variants)
    # In text there is room for one interval, the one of accuracy, and only for its longer arm.
    texts = [[cell.text + cell.mark + (f" ±{cell.arm}" if cell.arm and header == "Top-1 %" else "")
              for header, cell in zip(_headers()[1:], cells, strict=True)] for cells in rows]
    if any("±" in row[0] for row in texts):
        notes.append("± is the longer arm of the interval.")
    return Table(headers=_headers(), notes=tuple(notes),
                 rows=tuple((variant.label, *row) for variant, row in zip(variants, texts, strict=True)))


def summary(runs: Sequence[Run]) -> dict[str, Any]:
    """Return the content of ``summary.json``: the headline numbers, JSON-ready, in SI units and fractions."""
    return {"schema": SUMMARY_SCHEMA, "variants": [{
        "variant": variant.run.variant, "label": variant.label, "model": variant.run.artifact.model.id,
        "recipe": variant.run.artifact.recipe.id, "backend": variant.run.artifact.recipe.backend,
        "device": variant.run.device.id, "created_at": variant.run.created_at, "edgebench": variant.run.edgebench,
        "precision": {"requested": variant.run.precision.requested, "executed": variant.run.precision.executed},
        "artifact_digest": variant.run.artifact.digest,
        "reference": variant.run.reference.variant if variant.run.reference else None,
        "datasets": [one.dataset.name for one in variant.run.evaluations if one.property == "accuracy"],
        "scores": {name: {"value": score.value, "low": score.low, "high": score.high, "unit": score.unit}
                         | ({"reason": score.reason} if score.value is None else {})
                   for name in HEADLINE if (score := headline_score(variant.run, name))},
        "roofline": roofline_charts.summary(variant), "loadgen": _loadgen(variant.run),
        "container": {"cpus": variant.run.environment.cpu_limit,
                      "memory_bytes": variant.run.environment.memory_limit_bytes},
        "cpu_clocks": [record.to_builtins(one) for one in variant.run.observed.residency]
        if variant.run.observed is not None else [],
        "caveats": [caveat.code for caveat in variant.run.caveats],
        "skips": [record.to_builtins(skip) for skip in variant.run.skips],
    } for variant in _variants(runs)]}


def _loadgen(run: Run) -> dict[str, Any] | None:
    found = run.observed.loadgen if run.observed is not None else None
    return None if found is None else {
        "version": found.version, "valid": found.valid, "reasons": list(found.reasons), "queries": found.queries,
        "latency_p90": found.percentiles_s.get("p90"), "early_stopping": found.early_stopping_s,
        "early_stopping_q": found.early_stopping_q}


def markdown(runs: Sequence[Run]) -> str:
    """Return the report as Markdown, for a pull request or a wiki."""
    return _render("report.md.j2", {**_context(_variants(runs)), "table": table(runs)})


def html(runs: Sequence[Run], paired: Sequence[Paired] = (),
         paths: Mapping[tuple[str, str], Sequence[DecisionPath]] | None = None) -> str:
    """Return the report as one HTML page that loads nothing from anywhere.

    Args:
        runs: What is shown.
        paired: What timing in turns found (`edgebench.interleaved.load`), for any of the runs.
        paths: How rules were decided while images came in (`edgebench.decisions.of_runs`).
    """
    from plotly.offline import get_plotlyjs

    variants = _variants(runs)
    rows, notes = _headline_rows(variants)
    return _render("report.html.j2", {
        **_context(variants), "headers": _headers(), "rows": list(zip(variants, rows, strict=True)), "notes": notes,
        "distribution": distribution(variants), "roofline": roofline_charts.chart(variants),
        "timeline": timeline(variants), "sustained": minutes(variants),
        "timings": variant_timings(variants), "timing_tables": timing_tables(variants, paired),
        "decisions": [(one, [curve(path) for path in found]) for one in variants
                      if (found := (paths or {}).get((one.run.variant, one.run.created_at)))],
        "quantity": quantity, "path_size": SIZE, "charts": charts(variants), "properties": property_charts(variants),
        "groups": score_groups(variants),
        "plotly": get_plotlyjs()})


def _render(template: str, context: Mapping[str, object]) -> str:
    return _templates().get_template(template).render(context)


@cache
def _templates() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(catalog.content("reports") / "templates"), undefined=jinja2.StrictUndefined,
        autoescape=jinja2.select_autoescape(enabled_extensions=("html.j2",)), trim_blocks=True, lstrip_blocks=True,
        keep_trailing_newline=True)
    environment.filters.update(md=_markdown_escape, sentence=_capitalized, unbroken=_unbroken)
    return environment


def _unbroken(text: str) -> str:
    return re.sub(r"(?<=\d) (?=%|ms\b|MB\b|s\b|points\b|images\b)", "\u00a0", text)


def _capitalized(text: str) -> str:
    # A first word with digits or dots in it is a name, such as bf16 or model.onnx.
    return re.sub(r"^[a-z](?=[a-z'’-]*[.,:;]?(?:\s|$))", lambda first: first[0].upper(), text)


def _markdown_escape(value: object) -> str:
    return re.sub(r"([\\`*_|<>\[\]#~])", r"\\\1", " ".join(str(value).split()))


def ordered(runs: Iterable[Run]) -> tuple[Run, ...]:
    """Return the runs by model, backend and precision, FP32 first: the order of every report."""
    return tuple(sorted(runs, key=lambda run: (
        run.artifact.model.id, run.artifact.recipe.backend, PRECISIONS.index(run.precision.requested),
        run.artifact.recipe.id, run.device.id, run.created_at)))


def _variants(runs: Sequence[Run]) -> tuple[Variant, ...]:
    """Return the runs in report order with distinct labels, each beside its reference where that is present."""
    if not runs:
        raise ValueError("expected at least one run, got none")
    listed = ordered(runs)
    several = len({run.artifact.model.id for run in listed}) > 1
    labels = [_label(run) + (f" · {_model_name(run)}" if several else "") for run in listed]
    # Each further fact only where it tells two runs apart.
    facts: tuple[Callable[[Run], str], ...] = (
        lambda run: run.artifact.recipe.id, lambda run: run.device.id, lambda run: run.environment.hostname,
        lambda run: run.artifact.digest[:8], lambda run: run.created_at)
    for fact in facts:
        extended = [f"{label} · {fact(run)}" if labels.count(label) > 1 else label
                    for label, run in zip(labels, listed, strict=True)]
        labels = extended if len(set(extended)) > len(set(labels)) else labels
    labels = [f"{label} #{labels[:place].count(label) + 1}" if labels.count(label) > 1 else label
              for place, label in enumerate(labels)]
    alone = [Variant(run=run, label=label, index=place)
             for place, (run, label) in enumerate(zip(listed, labels, strict=True))]
    return tuple(replace(variant, reference=_reference_among(variant, alone)) for variant in alone)


def short_names(runs: Sequence[Run]) -> dict[int, str]:
    """Return by ``id`` of each run what tells it apart: its recipe, and model, device or date where needed."""
    names = {id(run): run.artifact.recipe.id for run in runs}
    if len({run.artifact.model.id for run in runs}) > 1:
        names = {id(run): f"{_model_name(run)} {names[id(run)]}" for run in runs}
    facts: tuple[Callable[[Run], str], ...] = (lambda run: run.device.id, lambda run: run.artifact.digest[:8],
                                               lambda run: run.created_at)
    for fact in facts:
        taken = list(names.values())
        names = {id(run): f"{names[id(run)]} {fact(run)}" if taken.count(names[id(run)]) > 1 else names[id(run)]
                 for run in runs}
    return names


def _label(run: Run) -> str:
    asked, ran = run.precision.requested.upper(), run.precision.executed.upper()
    backend = run.artifact.recipe.backend
    return f"{asked} · {BACKENDS.get(backend, backend)}" + (f" (ran {ran})" if ran != asked else "")


def _model_name(run: Run) -> str:
    # A model given by its path goes by its file name.
    id_ = run.artifact.model.id
    return id_.rsplit("/", 1)[-1] if id_.startswith(("/", ".", "~")) else id_


def _reference_among(variant: Variant, others: Sequence[Variant]) -> Variant | None:
    named = variant.run.reference
    if named is None:
        return None
    matching = [other for other in others if other.run is not variant.run and other.run.variant == named.variant
                and other.run.artifact.digest == named.artifact_digest]
    return min(matching, key=lambda other: len(_differences(variant.run, other.run)), default=None)


def _differences(one: Run, two: Run) -> list[str]:
    """Return what makes the single-stream timings of two runs not comparable."""
    return [f"{each.what} {each.first} against {each.second}"
            for each in other_circumstances(one, two, ("latency_p50",))]


def _value(run: Run, name: str) -> float | None:
    score = headline_score(run, name)
    return score.value if score else None


def _speedup(variant: Variant) -> float | str:
    """Return how many times as fast as its reference a variant is at the median, or why that is unknown."""
    if variant.reference is None:
        named = variant.run.reference
        return f"its reference {named.variant} is not in this report" if named else _NO_REFERENCE
    different = _differences(variant.run, variant.reference.run)
    if different:
        return f"not comparable with the reference: {', '.join(different)}"
    mine, theirs = _value(variant.run, "latency_p50"), _value(variant.reference.run, "latency_p50")
    if not mine or not theirs:
        return "latency was not measured for both"
    return theirs / mine


def _why_absent(run: Run, name: str) -> str:
    score = headline_score(run, name)
    if score is not None:
        return score.reason or "not measured"
    skip = skip_about(run, *SKIPS.get(name, ()))
    if skip is not None:
        return skip.reason
    if name == "negative_flips" and run.reference is None:
        return _NO_REFERENCE
    return f"{title(name)} is not in this run"


def _headers() -> tuple[str, ...]:
    return ("Variant", *(header for header, _, _ in COLUMNS), "Caveats")


def _headline_rows(variants: Sequence[Variant]) -> tuple[list[list[Cell]], list[str]]:
    """Return a row of cells per variant, and the notes below: why something is absent, then what the numbers mean."""
    notes: dict[str, str] = {}

    def absent(reason: str) -> Cell:
        return Cell(text="–", mark=notes.setdefault(reason, str(len(notes) + 1).translate(_SUPERSCRIPTS)))

    images = max((one.dataset.images for variant in variants for one in variant.run.evaluations), default=0)
    rows: list[list[Cell]] = [[] for _ in variants]
    for header, name, factor in COLUMNS:
        found = [value * factor for variant in variants if (value := _value(variant.run, name)) is not None]
        column = decimals(found) if factor != 100 else 1 if images < 10_000 else 2
        for variant, cells in zip(variants, rows, strict=True):
            value = _value(variant.run, name)
            # A time has the same three digits in every output, whatever stands beside it.
            places = decimals([value * factor]) if value is not None and header.endswith(" ms") else column
            score, ratio = headline_score(variant.run, name), _speedup(variant)
            if not variant.reference and header in ("Speed-up", "Neg. flips %") and any(
                    other.reference is not None and other.reference.run is variant.run for other in variants):
                cells.append(Cell(text="ref."))
            elif header == "Speed-up":
                cells.append(absent(ratio) if isinstance(ratio, str)
                             else Cell(text=f"{fixed(ratio, 2 if ratio < 1.2 else 1)}×"))
            elif score is None or score.value is None:
                cells.append(absent(_why_absent(variant.run, name)))
            else:
                arm = max(abs((score.value if end is None else end) - score.value) for end in (score.low, score.high))
                cells.append(Cell(text=fixed(score.value * factor, places), detail=interval(score, factor, places),
                                  arm=fixed(arm * factor, places) if arm else ""))
    for variant, cells in zip(variants, rows, strict=True):
        cells.append(Cell(text=str(len(variant.run.caveats))))
    return rows, [*(f"{mark} {reason}" for reason, mark in notes.items()), *_general_notes(variants)]


def _general_notes(variants: Sequence[Variant]) -> list[str]:
    runs = [variant.run for variant in variants]
    notes = []
    references = distinct(variant.reference.label for variant in variants if variant.reference)
    if references:
        whose = "" if len(references) == 1 else "each variant's own reference: "
        notes.append("Speed-up (ratio of median latencies) and negative flips (right before, wrong now) are against "
                     f"{whose}{', '.join(references)}.")
    notes += [f"{_capitalized(text)}." for text in distinct(outputs.sentence(run.artifact) for run in runs) if text]
    notes += _data_notes(runs)
    several = [run for run in runs if len([one for one in run.evaluations if one.property == "accuracy"]) > 1]
    if several:
        first = distinct(run.evaluations[0].dataset.name for run in several)
        notes.append(f"Top-1, ECE and flips in the table: {', '.join(first)}; the other data sets stand in the scores "
                     "of the HTML report.")
    null = [fixed(value * 100, 1) for run in runs if (value := _value(run, "ece15_ew_null")) is not None]
    if null:
        low, high = min(null, key=float), max(null, key=float)
        notes.append("Chance alone gives a perfectly calibrated model an ECE of "
                     f"{low if low == high else f'{low}–{high}'} % on as many images.")
    traces = [trace for run in runs if (trace := trace_of(run, "single-stream"))]
    if traces:
        notes.append(f"Latency: single-stream, batch {', '.join(distinct(str(trace.batch) for trace in traces))}, "
                     f"{' or '.join(distinct(BOUNDARIES[trace.boundary] for trace in traces))}, "
                     f"threads: {', '.join(distinct(str(trace.threads) for trace in traces))}.")
    levels = distinct(score.confidence for run in runs for name in ("accuracy_top1", "latency_p50")
                       if (score := headline_score(run, name)) and score.low is not None)
    if levels:
        notes.append(f"Ranges are {' or '.join(f'{level * 100:g}' for level in levels)} % intervals.")
    return notes


def _data_notes(runs: Sequence[Run]) -> list[str]:
    """Return which images were evaluated: those of the table with their number, the others by name."""
    plain: dict[tuple[str, int, str], list[str]] = {}
    others: dict[str, dict[str, set[str]]] = {}
    digests: dict[tuple[str, str, str], set[str]] = {}
    headline = {one.dataset.digest for run in runs for one in run.evaluations if one.property in PLAIN}
    for one in (evaluation for run in runs for evaluation in run.evaluations):
        data = one.dataset
        if data.digest in headline:
            plain.setdefault((data.name, data.images, data.digest), []).append(one.property)
        else:
            others.setdefault(one.property, {}).setdefault(data.name.partition("/")[0], set()).add(data.name)
        digests.setdefault((one.property, data.name, one.condition), set()).add(data.digest)
    notes = [f"{_capitalized(', '.join(distinct(names)))}: {name}, {fixed(images, 0)} images."
             for (name, images, _), names in plain.items()]
    if others:
        # A family's own name is that of a summary over its members, which is no set of images.
        notes.append("Further images: " + "; ".join(f"{name} on " + ", ".join(
            next(iter(members)) if len(members) == 1 else f"{family} ({len(members - {family})})"
            for family, members in families.items()) for name, families in others.items()) + ".")
    if len({run.evaluations[0].dataset.digest for run in runs if run.evaluations}) > 1:
        notes.append("Not all variants were evaluated on the same images: their accuracies are not comparable.")
    mixed = distinct(name for (of, name, _), found in digests.items() if len(found) > 1 and of not in PLAIN)
    if mixed:
        notes.append(f"Not all variants saw the same images of {listed(mixed)}.")
    return notes


def _headlines(variants: Sequence[Variant]) -> list[str]:
    """Return one plain sentence per model."""
    models = distinct(variant.run.artifact.model.id for variant in variants)
    if len(models) == 1:
        return [_sentence(variants)]
    sentences = []
    for model in models:
        own = _variants([variant.run for variant in variants if variant.run.artifact.model.id == model])
        sentences.append(f"{_model_name(own[0].run)}: {_sentence(own)}")
    return sentences


def _sentence(variants: Sequence[Variant]) -> str:
    """Return what to know first of a model's variants: a loss of quality before any speed, then the best variant.

    Only variants that no other beats in both latency and accuracy are named for their speed, and their speed is that
    against the fastest FP32 variant measured under the same conditions.
    """
    chosen, fastest = _candidate(variants)
    if chosen is None:
        best = fastest or min(variants, key=lambda one: _value(one.run, "latency_p50") or math.inf)
        others = [one for one in variants if one is not best]
        if not others or not all(_beats(best, one) for one in others):
            return _sentence_alone(best)
        p50 = (_value(best.run, "latency_p50") or 0.0) * 1e3
        accurate = ", and no other is more accurate" if _value(best.run, "accuracy_top1") is not None else ""
        return (f"{best.label} is the fastest variant here, with {fixed(p50, decimals([p50]))} ms at the median"
                f"{accurate}.")
    losses = _losses(chosen)
    clauses = [*losses]
    reference = chosen.reference
    against = fastest or reference
    ratio = _ratio(against, chosen) if fastest is not None and against is not None else None
    if ratio is not None and against is not None:
        within = f" ({span(ratio.low, ratio.high, 2 if ratio.high < 1.2 else 1)}×)" if ratio.low < ratio.high else ""
        several = len([one for one in variants if one.run.precision.requested == "fp32"]) > 1
        named = _short(against, chosen, variants) + (", the fastest FP32 variant," if several else "")
        clauses.append(f"is about as fast as {named}{within}" if ratio.low <= 1.0 <= ratio.high or
                       0.95 < ratio.value < 1.05 else
                       f"is {fixed(ratio.value, 1)}× as fast as {named}{within}" if ratio.value > 1 else
                       f"takes {fixed(1 / ratio.value, 1)}× as long as {named}")
    flips, change = headline_score(chosen.run, "negative_flips"), headline_score(chosen.run, "accuracy_top1_change")
    if flips and flips.value is not None and reference is not None:
        same = ratio is not None and against is not None and reference.run is against.run
        whose = "" if same else f" of {_short(reference, chosen, variants)}"
        clauses.append(f"changes {fixed(flips.value * 100, 1)} % of the answers{whose} for the worse")
    words = f"{chosen.label} {listed(clauses)}"
    if change and change.value is not None and not losses:
        within = interval(change, 100, 1, sign=True)
        words += (f"; its accuracy differs by {fixed(change.value * 100, 1, sign=True)} points"
                  + (f" ({within})" if within else ""))
    return f"{words}."


def _candidate(variants: Sequence[Variant]) -> tuple[Variant | None, Variant | None]:
    """Return the variant that the headline is about, and the fastest FP32 variant that it is set against.

    The fastest of those that are not beaten and are no FP32 of their own; None where that is the fastest FP32 variant
    itself or there is nothing to compare. Without timings, the first variant that was compared with a reference.
    """
    timed = [one for one in variants if _value(one.run, "latency_p50")]
    fp32 = [one for one in timed if one.run.precision.requested == "fp32"]
    fastest = min(fp32, key=lambda one: _value(one.run, "latency_p50") or math.inf, default=None)
    if fastest is None:
        flipped = (one for one in variants if one.reference and headline_score(one.run, "negative_flips"))
        return next(flipped, None), None
    comparable = [one for one in timed if not _differences(one.run, fastest.run)]
    front = [one for one in comparable if not any(_beats(other, one) for other in comparable)]
    others = [one for one in front if one.run.precision.requested != "fp32"]
    return min(others, key=lambda one: _value(one.run, "latency_p50") or math.inf, default=None), fastest


def _beats(one: Variant, other: Variant) -> bool:
    """Return whether `one` is no slower and no less accurate than `other`, and better in either."""
    if one is other:
        return False
    mine, theirs = ((_value(of.run, "latency_p50") or math.inf, -(_value(of.run, "accuracy_top1") or 0.0))
                    for of in (one, other))
    return mine != theirs and mine[0] <= theirs[0] and mine[1] <= theirs[1]


def _ratio(reference: Variant, variant: Variant) -> Ends | None:
    """Return how many times as fast as another a variant is at the median, with its 95 % interval.

    Source:
        Zou & Donner 2008, Construction of confidence limits about effect measures (MOVER), for logarithms.
    """
    first, second = (headline_score(of.run, "latency_p50") for of in (reference, variant))
    if not first or not second or not first.value or not second.value:
        return None
    value = first.value / second.value
    if not all((first.low, first.high, second.low, second.high)):
        return Ends(value, value, value)
    (a, a_low, a_high), (b, b_low, b_high) = (
        tuple(math.log(end or 1.0) for end in ends_of(score, 1.0)) for score in (first, second))
    return Ends(value, value * math.exp(-math.hypot(a - a_low, b_high - b)),
                value * math.exp(math.hypot(a_high - a, b - b_low)))


def _losses(variant: Variant) -> list[str]:
    """Return what a variant has shown to lose against its reference, beyond the margin, in words."""
    found = []
    for one in noninferiority.statements(variant.run):
        if one.verdict == "inferior":
            factor, unit = UNITS.get(one.unit, (1.0, one.unit))
            unit = "points" if unit == "%" else unit
            amount = f"{fixed(abs(one.change) * factor, 1)} {unit}"
            found.append(f"loses {amount} of {one.of}" if one.margin < 0 else
                         f"adds {amount} to its {title(one.metric)}")
    return distinct(found)


def _short(variant: Variant, beside: Variant, variants: Sequence[Variant]) -> str:
    """Return a label without the backend where it is that of `beside`, and the label still names one variant."""
    alike = [one for one in variants if _label(one.run) == _label(variant.run)]
    same = variant.run.artifact.recipe.backend == beside.run.artifact.recipe.backend
    return variant.label.split(" · ")[0] if same and len(alike) == 1 else variant.label


def _sentence_alone(variant: Variant) -> str:
    run, parts = variant.run, []
    p50, p99, top1 = _value(run, "latency_p50"), _value(run, "latency_p99"), headline_score(run, "accuracy_top1")
    if p50 is not None:
        parts.append(f"answers in {fixed(p50 * 1e3, decimals([p50 * 1e3]))} ms at the median" + (
            f", 99 % within {fixed(p99 * 1e3, decimals([p99 * 1e3]))} ms" if p99 is not None else ""))
    if top1 and top1.value is not None:
        within = interval(top1, 100, 1)
        parts.append(f"is right on {fixed(top1.value * 100, 1)} %{f' ({within})' if within else ''} of "
                     f"{fixed(top1.n, 0)} images")
    return f"{variant.label} {' and '.join(parts) or 'was not measured: see what was skipped'}."


def _shared(variants: Sequence[Variant], pick: Callable[[Run], Iterable[T]]) -> list[tuple[T, list[Variant]]]:
    """Return each distinct thing that `pick` finds with the variants it was found for; no variants where it is all."""
    owners: dict[T, list[Variant]] = {}
    for variant in variants:
        for item in distinct(pick(variant.run)):
            owners.setdefault(item, []).append(variant)
    return [(item, [] if len(found) == len(variants) else found) for item, found in owners.items()]


def _by_advice(found: Sequence[tuple[Caveat, list[Variant]]],
               ) -> list[tuple[str, str, list[tuple[str, list[Variant]]]]]:
    """Return caveats by code and hint, each with its messages and the variants they are about."""
    groups: dict[tuple[str, str], list[tuple[str, list[Variant]]]] = {}
    for caveat, who in found:
        groups.setdefault((caveat.code, caveat.hint), []).append((caveat.message, who))
    return [(code, hint, messages) for (code, hint), messages in groups.items()]


def _context(variants: Sequence[Variant]) -> dict[str, object]:
    runs = [variant.run for variant in variants]
    return {
        "title": ", ".join(distinct(run.artifact.model.id for run in runs)),
        "devices": distinct(f"{run.device.title.rstrip('.')}: {run.environment.cpu}" for run in runs),
        "dates": distinct(stamp[:10] for stamp in sorted(run.created_at for run in runs)),
        "versions": distinct(run.edgebench for run in runs),
        "headlines": _headlines(variants), "variants": variants, "methods": methods(runs),
        "caveats": _by_advice(_shared(variants, lambda run: run.caveats)),
        "skips": _shared(variants, lambda run: run.skips),
        "changes": [(variant, [cell(headline_score(variant.run, name)) for name in CHANGES])
                    for variant in variants if any(headline_score(variant.run, name) for name in CHANGES)],
        "as_good": [(variant, rows) for variant in variants if (rows := as_good(variant.run))],
        "margin_confidence": f"{noninferiority.CONFIDENCE:.0%}",
        "change_headers": [title(name) for name in CHANGES],
        "environment": [(name, [(fact, who) for fact, who in _shared(variants, _fact(name)) if fact])
                        for name in distinct(name for run in runs for name in _facts(run))],
        "datasets": distinct(evaluation.dataset for run in runs for evaluation in run.evaluations),
        "fixed": fixed, "boundaries": BOUNDARIES,
    }


def _fact(name: str) -> Callable[[Run], Iterable[str]]:
    return lambda run: (_facts(run).get(name, ""),)


def _facts(run: Run) -> dict[str, str]:
    """Return what was observed and asked for, in words; an empty string where nothing is known."""
    seen, asked = run.environment, run.settings
    return {
        "Device": f"{run.device.title} ({run.device.id})", "CPU": seen.cpu, "Host": seen.hostname,
        "CPU features": ", ".join(seen.cpu_features), "CPUs": f"{seen.cpus_usable} usable of {seen.cpus_online}",
        "Memory": f"{fixed(seen.memory_bytes / 1e9, 1)} GB" if seen.memory_bytes else "unknown",
        "Container limits": ", ".join([
            *([f"{seen.cpu_limit:g} CPUs"] if seen.cpu_limit is not None else []),
            *([f"{fixed(seen.memory_limit_bytes / 1e9, 1)} GB"] if seen.memory_limit_bytes is not None else [])]),
        "Frequency governor": seen.governor or "unknown: the kernel shows none",
        "GPU governor": seen.gpu_governor or "", "Clocks": seen.clocks or "", "Power mode": seen.power_mode or "",
        "Load before and after": " and ".join("unknown" if load is None else fixed(load, 1)
                                              for load in (seen.load_before, seen.load_after)),
        "Budget": asked.budget, "Threads": str(asked.threads), "Offline batch": str(asked.batch),
        "Preprocessing preset": asked.preset, "Properties": ", ".join(asked.properties) or "none",
        "Data": asked.data or "none given", "System": f"{seen.os}, {seen.machine}", "Python": seen.python,
        **dict(sorted(seen.packages.items())),
    }
