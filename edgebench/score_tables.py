"""Every score in words: what the tables of the report hold, and how each number was made."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from edgebench import noninferiority, percentiles
from edgebench.drawing import Variant, readable
from edgebench.record import Evaluation, Run, Score
from edgebench.wording import (
    CONDITIONS,
    UNITS,
    decimals,
    fixed,
    is_change,
    is_p_value,
    level_title,
    parts,
    span,
)

SPEED = "Speed and size"
PLAIN = ("accuracy", "calibration")
"""Properties that the headline numbers are of."""
MANY_LEVELS = 4
"""Levels from which on a metric has a folded table of its own."""
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One value in words."""

    text: str
    detail: str = ""
    """Its interval, or why it is absent."""
    arm: str = ""
    """The longer arm of its interval."""
    mark: str = ""
    """Superscript of the footnote that says why it is absent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreRow:
    """One score of all variants that have it."""

    title: str
    level: str
    """What tells it apart within its family; empty where it stands alone."""
    name: str
    n: str
    method: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreGroup:
    """What was measured together: a table, and folded ones of the scores at many levels."""

    title: str
    shown: bool
    """Whether it is open from the start."""
    variants: tuple[Variant, ...]
    """Those with any of these scores, one per column."""
    rows: tuple[ScoreRow, ...]
    families: tuple[tuple[str, tuple[ScoreRow, ...]], ...]
    """Metrics of many levels with their rows."""

    @property
    def count(self) -> int:
        """Scores of each variant."""
        return len(self.rows) + sum(len(rows) for _, rows in self.families)


def score_groups(variants: Sequence[Variant]) -> list[ScoreGroup]:
    """Return every score of every run, known to this version or not, grouped as measured, a cell per variant."""
    # By group and row, where a row is a score's name and, in a family of data sets, which of them it is of.
    groups: dict[str, dict[tuple[str, str], dict[int, Score]]] = {}
    shown = {SPEED}
    for variant in variants:
        first = next((one.dataset.name for one in variant.run.evaluations), "")
        pools: list[tuple[str, str, Sequence[Score]]] = [(SPEED, "", variant.run.performance)]
        for one in variant.run.evaluations:
            where, member = _where(one)
            against = f"{where}, against the reference"
            pools += [(where, member, one.scores), (against, member, one.reference_scores)]
            if one.property in PLAIN and one.dataset.name == first:
                shown |= {where, against}
        for title, member, scores in pools:
            # Also without scores: what is against the reference is to stand behind its property.
            found = groups.setdefault(title, {})
            for score in scores:
                found.setdefault((score.name, member), {})[variant.index] = score
    return [_score_group(title, found, variants, shown=title in shown) for title, found in groups.items() if found]


def methods(runs: Sequence[Run]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return by property each method with the metrics that were computed so."""
    groups: dict[str, dict[str, list[str]]] = {}
    for run in runs:
        for heading, scores in ((SPEED, run.performance), *(
                (one.property.capitalize(), (*one.scores, *one.reference_scores)) for one in run.evaluations)):
            for score in scores:
                groups.setdefault(heading, {}).setdefault(score.method, []).append(parts(score.name)[0])
    return [(heading, [(", ".join(distinct(metrics)), method) for method, metrics in found.items()])
            for heading, found in groups.items()]


def cell(score: Score | None) -> Cell:
    """Return a score in the unit people read, with its interval, or the reason why it is absent."""
    if score is None:
        return Cell(text="")
    factor, unit = UNITS.get(score.unit, (1.0, score.unit))
    sign = is_change(score.name)
    unit = "points" if sign and unit == "%" else unit
    score = readable(score)
    if score.value is None:
        return Cell(text="–", detail=score.reason or "")
    value = score.value * factor
    if is_p_value(score.name):
        return Cell(text="< 0.001" if value < 0.001 else fixed(value, 3))
    width = (score.high - score.low) * factor if score.low is not None and score.high is not None else 0.0
    # Two digits of the interval's width, or three of the value; counts as they are. Times have three at least, as in
    # every output.
    plain = 0 if score.unit == "1" and value == int(value) else decimals([value])
    places = max(decimals([width], 2), plain if score.unit == "s" else 0) if width else plain
    return Cell(text=f"{fixed(value, places, sign=sign)} {unit}".strip(),
                detail=interval(score, factor, places, sign=sign))


def as_good(run: Run) -> list[tuple[str, ...]]:
    """Return (score, where, change, worst change left open, margin, images, verdict, method) of each statement."""
    rows: list[tuple[str, ...]] = []
    for one in noninferiority.statements(run):
        factor, unit = UNITS.get(one.unit, (1.0, one.unit))
        unit = "points" if unit == "%" else "" if unit == "1" else unit
        change, bound, margin = (None if value is None else f"{fixed(value * factor, 2, sign=True)} {unit}".strip()
                                 for value in (one.change, one.bound, one.margin))
        rows.append((f"{one.of.capitalize()}: {parts(one.metric)[0]}", one.where, change or "", bound or "–",
                     margin or "", fixed(one.n, 0), one.verdict, one.method))
    return rows


def interval(score: Score, factor: float, places: int, *, sign: bool = False) -> str:
    """Return a score's interval in words, scaled by `factor`; empty without one."""
    low, high = (None if end is None else end * factor for end in (score.low, score.high))
    return span(low, high, places, sign=sign)


def distinct(values: Iterable[T]) -> list[T]:
    """Return the values without repetitions, in order of appearance."""
    return list(dict.fromkeys(values))


def _where(one: Evaluation) -> tuple[str, str]:
    """Return the heading of an evaluation's scores, and which data set of a family it is of."""
    family, _, member = one.dataset.name.partition("/")
    condition = one.condition.replace("ood:", "against ")
    words = (CONDITIONS.get(condition, condition), one.preset)
    return f"{one.property.capitalize()} on {family}" + "".join(
        f", {word}" for word in words if word not in ("clean", "native")), member


def _score_group(title: str, found: Mapping[tuple[str, str], Mapping[int, Score]], variants: Sequence[Variant], *,
                 shown: bool) -> ScoreGroup:
    present = [variant for variant in variants if any(variant.index in scores for scores in found.values())]
    rows: list[ScoreRow] = []
    families: dict[str, list[ScoreRow]] = {}
    for (name, member), scores in found.items():
        metric, level = parts(name)
        of = "" if member == name.partition("@")[2] else level_title(member)
        words = ", ".join(filter(None, (of, level)))
        row = ScoreRow(
            title=f"{metric}: {words}" if words else metric, level=words, name=name,
            n=_extent([score.n for score in scores.values()]),
            method=_made([*scores.values()]),
            cells=tuple(cell(scores.get(variant.index)) for variant in present))
        (families.setdefault(metric, []) if words else rows).append(row)
    for metric, members in list(families.items()):
        if len(members) < MANY_LEVELS:
            rows += families.pop(metric)
    return ScoreGroup(title=title, shown=shown, variants=tuple(present), rows=tuple(rows),
                      families=tuple((metric, tuple(members)) for metric, members in families.items()))


def _extent(counts: Sequence[int]) -> str:
    return fixed(counts[0], 0) if len(set(counts)) == 1 else span(min(counts), max(counts), 0)


def _made(scores: Sequence[Score]) -> str:
    """Return how a score was made in all variants: the method once, then what differs between them."""
    words = "; or ".join(distinct(score.method for score in scores))
    # Variants that lack an interval for the same reason give it with numbers of their own.
    reasons = {score.reason_code or score.reason: score.reason for score in scores
               if score.reason and score.value is not None and (score.low is None or score.high is None)}
    if reasons:
        words += f" (interval: {'; or '.join(filter(None, reasons.values()))})"
    facts: dict[str, list[str | int | float]] = {}
    for score in scores:
        own: dict[str, str | int | float] = {} if score.level is None else {"level": score.level}
        own |= score.facts
        if score.n_effective is not None:
            own["worth"] = score.n_effective
        if score.confidence_reached is not None:
            own["confidence"] = percentiles.percent(score.confidence_reached)
        for name, value in own.items():
            facts.setdefault(name, []).append(value)
    return "; ".join((words, *(f"{name.replace('_', ' ')}: {_several(values)}" for name, values in facts.items())))


def _several(values: Sequence[str | int | float]) -> str:
    numbers = [value for value in values if not isinstance(value, str)]
    if len(numbers) == len(values) and all(isinstance(value, int) for value in numbers):
        return _extent([int(value) for value in numbers])
    return " / ".join(distinct(value if isinstance(value, str) else f"{value:g}" for value in values))
