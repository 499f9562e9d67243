"""What stands in a run, by the few questions that all who judge and draw ask of it."""

from __future__ import annotations

from edgebench import metric_names, percentiles, tails
from edgebench.record import Evaluation, LatencyTrace, Run, Score
from edgebench.tails import Ends

_USUAL = ("clean", "native")


def ends(score: Score) -> Ends | None:
    """Return a score's value and interval; None where an end is absent."""
    if score.value is None or score.low is None or score.high is None:
        return None
    return Ends(score.value, score.low, score.high)


def timed_ends(score: Score, run: Run, confidence: float) -> Ends | None:
    """Return the value of a score of performance and its interval at a two-sided level; None where an end is absent.

    A percentile's comes from the raw timings, as wide as they follow each other: earlier versions stored narrower ones.
    """
    timed, q = trace(run, "single-stream"), metric_names.quantile(score.name)
    if score.value is None or q is None or timed is None:
        stored = ends(score)
        return None if stored is None else tails.rescaled(stored, score.confidence, confidence)
    found = percentiles.bound(timed.latency_s, q, confidence)
    return None if found.low_s is None or found.high_s is None else Ends(found.value_s, found.low_s, found.high_s)


def place(evaluation: Evaluation) -> str:
    """Return data set, condition and preset of an evaluation in words; what is usual is left out."""
    return place_words(evaluation.dataset.name, evaluation.condition, evaluation.preset)


def place_words(dataset: str, condition: str, preset: str) -> str:
    """Return data set, condition and preset in words; what is usual is left out."""
    return ", ".join([dataset, *(word for word in (condition, preset) if word not in _USUAL)])


def trace(run: Run, scenario: str) -> LatencyTrace | None:
    """Return the run's first trace of that scenario."""
    return next((one for one in run.traces if one.scenario == scenario), None)
