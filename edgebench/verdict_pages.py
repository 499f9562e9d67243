"""Verdicts and comparisons as one HTML page each that loads nothing from anywhere."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import jinja2

from edgebench import __version__, catalog
from edgebench.compare import Comparison, Flips, Item, Outcome
from edgebench.contact_sheet import Sheet
from edgebench.decision_curves import SIZE, curve
from edgebench.decisions import decision_paths
from edgebench.finished import COMPARABLE, Judgement, flips
from edgebench.gate import Verdict, by_urgency, conclusion, spoken_totals, totals
from edgebench.rule_words import quantity
from edgebench.wording import fixed, title

OUTCOMES: tuple[Outcome, ...] = ("worse", "inconclusive", "changed", "better", "same")
_WIDTH, _HEIGHT = 200, 26


class Mark(NamedTuple):
    """Places in a picture of an interval, in its pixels."""

    low: float
    high: float
    value: float
    limit: float
    bad_from: float
    """Where the forbidden side begins."""
    bad_to: float


def gate_page(judgement: Judgement, *, strict: bool = False) -> str:
    """Return the verdicts as a page: intervals against limits, decision paths, flips by confidence band and class.

    Args:
        judgement: All verdicts; what they come to is the page's title.
        strict: Whether what is inconclusive fails.
    """
    parts = []
    upper = {rule.id: rule.upper for rule in judgement.policy.rules}
    subjects = {one.run.variant: one for one in judgement.found.subjects}
    for one in judgement.gates:
        whole = all(verdict.rule != COMPARABLE for verdict in one.verdicts)
        subject = subjects.get(one.variant) if whole else None
        changed, reason = flips(subject) if subject else ((), "")
        names = subject.run.artifact.classes.names if subject and subject.run.artifact.classes else ()
        parts.append({
            "gate": one, "conclusion": conclusion([one], strict=strict),
            "rows": [(verdict, mark(verdict, upper=upper.get(verdict.rule, True)))
                                  for verdict in by_urgency(one.verdicts)],
            "curves": [curve(path) for path in (decision_paths(subject.folder) if subject else ())],
            "flips": changed, "flips_reason": reason, "names": names})
    return _render("gate.html.j2", conclusion=conclusion(judgement.gates, strict=strict), policy=judgement.policy,
                   parts=parts, headline=spoken_totals(totals(judgement.gates)), notes=judgement.notes)


def compare_page(comparison: Comparison, names: Sequence[str], sheets: Sequence[Sheet]) -> str:
    """Return a comparison as a page, with contact sheets of the changed images.

    Args:
        comparison: What changed.
        names: Of the classes.
        sheets: The changed images, one sheet per data set.
    """
    items = sorted(comparison.items, key=lambda one: OUTCOMES.index(one.outcome))
    return _render("compare.html.j2", title=f"{comparison.second} against {comparison.first}", comparison=comparison,
                   items=items, headline=sentence(comparison), names=names,
                   parts=list(zip(comparison.flips, sheets, strict=True)))


def sentence(comparison: Comparison) -> str:
    """Return how many metrics came out how, in words."""
    counts = [(outcome, sum(one.outcome == outcome for one in comparison.items)) for outcome in OUTCOMES]
    return ", ".join(f"{count} {outcome}" for outcome, count in counts if count) or "there is nothing to compare"


def told_change(item: Item) -> tuple[str, str]:
    """Return the change of an item and its interval, in words; an interval's place says why there is none."""
    def said(value: float) -> str:
        words = quantity(value, "fraction" if item.relative else item.unit, change=True)
        return words.replace("points", "%").replace("point", "%") if item.relative else words

    if item.change is None:
        return "–", item.reason or ""
    if item.low is None or item.high is None:
        return said(item.change), "" if item.outcome in ("same", "better", "worse") else item.reason or ""
    return said(item.change), f"{said(item.low)} to {said(item.high)}"


def mark(verdict: Verdict, *, upper: bool) -> Mark | None:
    """Return where a verdict's interval and limit lie in its picture; None where there is no interval.

    Args:
        verdict: What was found.
        upper: Whether too much breaks the rule; too little otherwise.
    """
    value, limit = verdict.value, verdict.limit
    if value is None or limit is None or (verdict.low is None and verdict.high is None):
        return None
    known = [one for one in (value, limit, verdict.low, verdict.high) if one is not None]
    reach = max(known) - min(known) or abs(value) or 1.0
    low, high = min(known) - 0.12 * reach, max(known) + 0.12 * reach

    def place(number: float | None, missing: float) -> float:
        return missing if number is None else round((number - low) / (high - low) * _WIDTH, 1)

    at = place(limit, 0.0)
    bad = (at, _WIDTH) if upper else (0.0, at)
    return Mark(place(verdict.low, 0.0), place(verdict.high, _WIDTH), place(value, 0.0), at, *bad)


def _flip_rows(found: Flips, names: Sequence[str]) -> list[tuple[str, int, int, int, int]]:
    """Return (class, images, changed, lost, gained) of the classes that lost most."""
    return [(names[int(one.name)] if int(one.name) < len(names) else f"class {one.name}", one.images, one.changed,
             one.negative, one.positive) for one in found.classes[:20]]


def _render(template: str, **context: object) -> str:
    return _templates().get_template(template).render(version=__version__, **context)


@cache
def _templates() -> jinja2.Environment:
    found = jinja2.Environment(
        loader=jinja2.FileSystemLoader(catalog.content("reports") / "templates"), undefined=jinja2.StrictUndefined,
        autoescape=True, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    found.globals.update(fixed=fixed, title_of=title, quantity=quantity, told_change=told_change, class_rows=_flip_rows,
                         width=_WIDTH, height=_HEIGHT, path_size=SIZE)
    return found
