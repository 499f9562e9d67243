"""What stands in a run, by the few questions that all who judge and draw ask of it."""

from __future__ import annotations

from edgebench.record import Evaluation, LatencyTrace, Run, Score
from edgebench.tails import Ends

_USUAL = ("clean", "native")


def ends(score: Score) -> Ends | None:
    """Return a score's value and interval; None where an end is absent."""
    if score.value is None or score.low is None or score.high is None:
        return None
    return Ends(score.value, score.low, score.high)


def place(evaluation: Evaluation) -> str:
    """Return data set, condition and preset of an evaluation in words; what is usual is left out."""
    return place_words(evaluation.dataset.name, evaluation.condition, evaluation.preset)


def place_words(dataset: str, condition: str, preset: str) -> str:
    """Return data set, condition and preset in words; what is usual is left out."""
    return ", ".join([dataset, *(word for word in (condition, preset) if word not in _USUAL)])


def trace(run: Run, scenario: str) -> LatencyTrace | None:
    """Return the run's first trace of that scenario."""
    return next((one for one in run.traces if one.scenario == scenario), None)
