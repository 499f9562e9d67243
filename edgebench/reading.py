"""What stands in a run, by the few questions that all who judge and draw ask of it."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np

from edgebench import metric_names, percentiles, stats, tails
from edgebench.errors import InvalidInput
from edgebench.record import Evaluation, LatencyTrace, Run, Score, Skip, SkipSubject
from edgebench.stats import FloatArray
from edgebench.tails import Ends
from edgebench.timing_types import QueryTrace, Scenario

SCENARIOS = get_args(Scenario)
_USUAL = ("clean", "native")
_SUBJECTS: dict[str, SkipSubject] = {
    "quality": "quality", "latency": "latency", "golden outputs": "golden",
    "comparison with the reference": "reference"}
"""Subjects by what was skipped, in files that do not hold them."""
_EXACT = ("artifact_size", "certain_images", "decision_ties", "distinct_logits", "logit_difference_max", "probe_c")
"""Scores that are exact in files that do not hold the kinds of scores."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """What makes two runs not comparable."""

    what: str
    """One of `edgebench.compare.FIELDS`."""
    where: str
    """Of which scenario, data set or metric; empty where of the run as a whole."""
    first: str
    second: str

    @property
    def words(self) -> str:
        """Both values in a row."""
        return f"{self.what}{f' ({self.where})' if self.where else ''}: {self.first} against {self.second}"


def ends(score: Score) -> Ends | None:
    """Return a score's value and interval; None where an end is absent."""
    if score.value is None or score.low is None or score.high is None:
        return None
    return Ends(score.value, score.low, score.high)


def skip_about(run: Run, *about: str) -> Skip | None:
    """Return why something is not in a run.

    Args:
        run: The run.
        about: Subjects of skips, or names of properties; the first that was skipped counts.
    """
    for one in about:
        for skip in run.skips:
            subject = skip.subject or _SUBJECTS.get(skip.what, "property")
            if one == (skip.what if subject == "property" else subject):
                return skip
    return None


def is_exact(score: Score) -> bool:
    """Return whether a score was counted, chosen or is a maximum: nothing was estimated, and noise decides nothing."""
    return score.kind == "exact" if score.kind is not None else score.name in _EXACT


def timed_ends(score: Score, run: Run, confidence: float) -> Ends | None:
    """Return the value of a score of performance and its interval at a two-sided level; None where an end is absent.

    A percentile's comes from the raw timings, as wide as they follow each other: earlier versions stored narrower ones.
    """
    raw = series(run, score.name)
    if score.value is None or raw is None:
        stored = ends(score)
        return None if stored is None else tails.rescaled(stored, score.confidence, confidence)
    values, q = raw
    if q is None:
        arm = stats.normal_quantile((1.0 + confidence) / 2.0) * float(values.std(ddof=1)) / math.sqrt(
            percentiles.effective_count(values))
        return Ends(score.value, score.value - arm, score.value + arm)
    found = percentiles.bound(values, q, confidence)
    return None if found.low_s is None or found.high_s is None else Ends(found.value_s, found.low_s, found.high_s)


def series(run: Run, metric: str) -> tuple[FloatArray, float | None] | None:
    """Return the raw timings (s) behind a metric in the order of measurement, and which quantile of them it is.

    The quantile is None for a mean. None where the metric is neither, or the run does not hold its timings.
    """
    part = metric_names.device_part(metric)
    if part is not None:
        times = run.observed.device_times if run.observed is not None else None
        return None if times is None else (np.asarray(getattr(times, f"{part}_s")), 0.5)
    scenario, q = metric_names.scenario(metric), metric_names.quantile(metric)
    if scenario is None or (q is None and metric != "latency_mean"):
        return None
    queries = run.observed.queries if run.observed is not None else ()
    timed = trace(run, scenario) or next((one for one in queries if one.scenario == scenario), None)
    if timed is None or (q is None and len(timed.latency_s) < 2):
        return None
    return np.asarray(timed.latency_s), q


def place(evaluation: Evaluation) -> str:
    """Return data set, condition and preset of an evaluation in words; what is usual is left out."""
    return place_words(evaluation.dataset.name, evaluation.condition, evaluation.preset)


def place_words(dataset: str, condition: str, preset: str) -> str:
    """Return data set, condition and preset in words; what is usual is left out."""
    return ", ".join([dataset, *(word for word in (condition, preset) if word not in _USUAL)])


def other_circumstances(first: Run, second: Run, metrics: Collection[str] | None = None) -> tuple[Difference, ...]:
    """Return what makes the timings of two runs not comparable: other circumstances.

    Scenarios that only one of the runs has do not matter, unless the runs have none in common.

    Args:
        first: A run.
        second: Another run.
        metrics: Performance scores to be compared, whose scenarios must be the same; all by default.
    """
    wanted = None if metrics is None else {metric_names.scenario(metric) for metric in metrics}

    def facts(run: Run) -> dict[tuple[str, str], object]:
        found: dict[tuple[str, str], object] = {
            ("device", ""): run.device.id, ("cpu", ""): run.environment.cpu,
            ("processor", ""): run.artifact.recipe.processor,
            ("power mode", ""): run.environment.power_mode, ("governor", ""): run.environment.governor}
        # Older runs do not tell; that is no difference.
        if run.environment.gpu_governor is not None:
            found["GPU governor", ""] = run.environment.gpu_governor
        for kind, pinned in run.environment.clocks_pinned.items():
            found["clocks", kind] = "pinned" if pinned else "not pinned"
        queries = run.observed.queries if run.observed is not None else ()
        if run.traces or queries:
            found["threads", ""] = run.settings.threads
        timed: list[LatencyTrace | QueryTrace] = [*run.traces, *queries]
        for one in timed:
            found["batch", one.scenario] = one.batch if isinstance(one, LatencyTrace) else one.images_per_query
            found["boundary", one.scenario], found["preprocessing", one.scenario] = one.boundary, one.preprocessing
        for filmed in (one for one in queries if one.scenario == "camera"):
            found["frame rate", "camera"], found["drop", "camera"] = filmed.rate_hz, filmed.policy
            found["deadline", "camera"] = f"{(filmed.limit_s or 0.0) * 1e3:g} ms"
        if run.settings.timing is not None and "server" in run.settings.timing.scenarios:
            asked = run.settings.timing.latency_bound_s
            found["latency bound", "server"] = "by the median latency" if asked is None else f"{asked * 1e3:g} ms"
        return found

    one, two = facts(first), facts(second)
    found = [Difference(what=what, where=where, first=_said(one[what, where]), second=_said(two[what, where]))
             for what, where in one if (what, where) in two and one[what, where] != two[what, where]
             and (wanted is None or where not in SCENARIOS or where in wanted)]
    mine, theirs = ({name for _, name in of if name in SCENARIOS} for of in (one, two))
    if mine and theirs and not mine & theirs and wanted != {None}:
        found.append(Difference(what="scenario", where="", first=", ".join(sorted(mine)),
                                second=", ".join(sorted(theirs))))
    return tuple(found)


def timed_alike(one: Run, two: Run) -> bool:
    """Return whether two runs were timed on one device and processor with as many threads: they have a ratio."""
    return (one.device.id, one.artifact.recipe.processor, one.settings.threads) == (
        two.device.id, two.artifact.recipe.processor, two.settings.threads)


def trace(run: Run, scenario: str) -> LatencyTrace | None:
    """Return the run's first trace of that scenario."""
    return next((one for one in run.traces if one.scenario == scenario), None)


def _said(value: object) -> str:
    return "unknown" if value is None else str(value)


def refuse_other_timings(run: Run, file: Path) -> None:
    """Raise InvalidInput, with file and field, unless percentiles and mean are those of their scenario's timings."""
    for number, score in enumerate(run.performance):
        raw = None if metric_names.device_part(score.name) else series(run, score.name)
        if raw is None or score.value is None:
            continue
        values, q = raw
        expected = stats.quantile(values, q) if q is not None else float(values.mean())
        if not math.isclose(score.value, expected, rel_tol=1e-6, abs_tol=1e-12) or score.n != values.size:
            raise InvalidInput(
                f"{file}: performance[{number}]: {score.name} of {score.value:g} s from {score.n} timings is not that "
                f"of the {values.size} raw timings, {expected:g} s", "restore the folder of the run, or measure again")
