"""Whether a finished run agrees with what it was derived from: its raw timings and its predictions."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edgebench import properties
from edgebench.errors import InvalidInput
from edgebench.properties import Pass, Predictions
from edgebench.reading import refuse_other_timings
from edgebench.record import Evaluation, PassRecord, Run, Score

_TOLERANCE = 1e-6
_HINT = "restore the folder of the run, or measure again"


def refuse_inconsistent(run: Run, folder: Path, reference: tuple[Run, Path | None] | None = None) -> tuple[str, ...]:
    """Raise unless a run agrees with its raw timings and with the predictions that lie beside it.

    Percentiles and the mean of the latency are derived again from the raw timings. Predictions must be the files whose
    SHA-256 the run carries; top-1, top-5 and flips are counted again from them. Scores from resampling are covered by
    the seal of the run and by these digests.

    Args:
        run: The run.
        folder: Where its run file lies.
        reference: What its flips are against, with its folder; None where it is absent.

    Returns:
        In words, which predictions are absent, so that nothing could be counted again.

    Raises:
        InvalidInput: A number differs, or predictions are damaged; the file and the field are named.
    """
    file = folder / "run.json"
    refuse_other_timings(run, file)
    records = {Pass(one.dataset.name, one.condition, one.preset): one for one in run.passes}
    there = {key: properties.load_predictions(folder / key.file, one.dataset, run.artifact.digest, one.sha256)
             for key, one in records.items() if (folder / key.file).exists()}
    theirs = _reference_records(reference)
    for number, one in enumerate(run.evaluations):
        field = f"{file}: evaluations[{number}]"
        over = next((score for score in one.scores if one.property in ("accuracy", "calibration")
                     and score.n > one.dataset.images), None)
        if over is not None:
            raise InvalidInput(f"{field}: {over.name} is of {over.n} images, and {one.dataset.name} has "
                               f"{one.dataset.images}", _HINT)
        key = Pass(one.dataset.name, one.condition, one.preset)
        if one.property == "accuracy" and key in there:
            _refuse_other_counts(one, there[key], field)
            if reference is not None and reference[1] is not None and key in theirs and one.reference_scores \
                    and theirs[key].dataset.digest == one.dataset.digest and (reference[1] / key.file).exists():
                before = properties.load_predictions(reference[1] / key.file, theirs[key].dataset,
                                                     reference[0].artifact.digest, theirs[key].sha256)
                _refuse_other_flips(one, before, there[key], field)
    absent = [key.file for key in records if key not in there]
    rest = f" and {len(absent) - 1} more" if len(absent) > 1 else ""
    return (f"{run.variant}: {absent[0]}{rest} is absent: its scores are as the run file says",) if absent else ()


def _reference_records(reference: tuple[Run, Path | None] | None) -> dict[Pass, PassRecord]:
    return {} if reference is None else {
        Pass(one.dataset.name, one.condition, one.preset): one for one in reference[0].passes}


def _refuse_other_counts(one: Evaluation, found: Predictions, field: str) -> None:
    outcomes = found.outcomes
    expected = {"accuracy_top1": float(outcomes.correct.mean()), "accuracy_top5": float(outcomes.in_top5.mean())}
    for score in one.scores:
        if score.name in expected:
            _refuse_other(score, expected[score.name], field)


def _refuse_other_flips(one: Evaluation, before: Predictions, after: Predictions, field: str) -> None:
    was, now = before.outcomes.correct, after.outcomes.correct
    if not np.array_equal(before.ids, after.ids):
        return
    lost, won = int((was & ~now).sum()), int((~was & now).sum())
    expected = {"negative_flips": lost / was.size, "positive_flips": won / was.size,
                "accuracy_top1_change": (won - lost) / was.size}
    for score in one.reference_scores:
        if score.name in expected:
            _refuse_other(score, expected[score.name], field)


def _refuse_other(score: Score, expected: float, field: str) -> None:
    if score.value is not None and abs(score.value - expected) > _TOLERANCE:
        raise InvalidInput(f"{field}: {score.name} is {score.value:g}, and its predictions give {expected:g}", _HINT)
