"""Transformation invariance: what zoom, shift and resolution do to the answers, image by image.

Accuracy can stay where it was while answers change both ways: consistency with the untransformed picture tells.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from edgebench import metrics, stats
from edgebench.outputs import NO_DISTRIBUTION
from edgebench.properties import CLEAN, Pass, Predictions, is_plain, paired, rows_of, shared_ids
from edgebench.properties.fidelity import COMPACT, proportion
from edgebench.record import Better, Evaluation, Score
from edgebench.stats import FloatArray, IntArray
from edgebench.transforms import FAMILIES, Family, levels, parameter

SUMMARY = "Accuracy and consistency of the answers under zoom, shift and other input resolutions"
NEEDS = "labelled images: --data ROOT with ROOT/<class>/<image>"

_BOOTSTRAP = "bootstrap over images, each with all its levels, 1,000 resamples, shifted by its bias"
_NO_BASE = "the untransformed images were not measured"
_ALL_WRONG = "no untransformed image is answered right: there is nothing to retain"
_ONE_POINT = "a single point has no area under it"
_CONSTANT = "every resample gives the same: resampling cannot bound it"
_SOME_RESAMPLES = "in some resamples no untransformed image is answered right"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sweep:
    """The passes of one family on one data set that are at hand."""

    family: Family
    base: str
    """Name of the untransformed level."""
    base_key: Pass | None
    """Its pass, where that is at hand."""
    levels: dict[str, Pass]
    """Transformed levels, in order."""

    @property
    def keys(self) -> tuple[Pass, ...]:
        """All passes, the untransformed one first."""
        return (*((self.base_key,) if self.base_key else ()), *self.levels.values())

    @property
    def placed(self) -> tuple[str, ...]:
        """Levels on the retention curve."""
        # Predictions do not say what size of input they are of: native has no known place among other resolutions.
        return (*(() if self.base == "native" else (self.base,)), *self.levels)

    def among(self, keys: Mapping[Pass, Predictions]) -> _Sweep:
        """Return the part of the sweep that another variant has too."""
        return _Sweep(family=self.family, base=self.base, base_key=self.base_key if self.base_key in keys else None,
                      levels={level: key for level, key in self.levels.items() if key in keys})


class _Taken(NamedTuple):
    """A pass reduced to the N images that all passes of its sweep share."""

    found: Predictions
    rows: IntArray
    """Where these images stand in it (N,)."""
    outcomes: metrics.Outcomes


class _Answers(NamedTuple):
    """One variant's answers on the same N images: 1.0 or 0.0, NaN where the untransformed ones are not at hand."""

    correct: FloatArray
    """(1 + L, N), untransformed first."""
    consistent: FloatArray
    """(L, N): the same class as untransformed."""


def passes(datasets: Sequence[str], preset: str = "native") -> tuple[Pass, ...]:
    """Return the clean pass and all levels of all sweeps over every plain data set.

    The resolution that is the model's own is the clean pass, and need not be run.
    """
    conditions = (CLEAN, *(f"{family}:{level}" for family in FAMILIES for level in levels(family, preset)))
    return tuple(Pass(dataset, condition, preset) for dataset in datasets if is_plain(dataset)
                 for condition in conditions)


def score(predictions: Mapping[Pass, Predictions], reference: Mapping[Pass, Predictions] | None,
          ) -> tuple[Evaluation, ...]:
    """Return one evaluation per data set and family of transformations, on the images that all its levels share.

    Untransformed is the scale of 1; the shift of 0, for which the native preset has the clean pass; among resolutions
    the clean pass, called ``native``, or under the preset ``paper`` by the size of its input. Levels not
    at hand are left out, and so is a family of which only the untransformed level is.

    Raises:
        InvalidInput: The reference saw other images.

    Source:
        Accuracy by level: Vishniakov, Shen & Liu 2023 (arXiv:2311.09215). Consistency: after Zhang 2019
        (arXiv:1904.11486), section 4, here always between a transformed and the untransformed picture.
    """
    evaluations = []
    for dataset, preset in dict.fromkeys((key.dataset, key.preset) for key in predictions):
        for family in FAMILIES:
            sweep = _sweep(predictions, dataset, preset, family)
            if sweep.levels:
                evaluations.append(_evaluate(sweep, predictions, reference))
    return tuple(evaluations)


def retention_weights(positions: Sequence[float]) -> FloatArray:
    """Return weights (P,) that turn retentions at `positions` (P,) into the area under their curve.

    Trapezoid rule over the positions scaled to 0 to 1, in any order; those that share a position are averaged first.
    NaN where all share one.
    """
    points, place, count = np.unique(positions, return_inverse=True, return_counts=True)
    if len(points) < 2:
        return np.full(len(positions), np.nan)
    gaps = np.diff(points) / (points[-1] - points[0])
    shares: FloatArray = (np.append(gaps, 0.0) + np.append(0.0, gaps)) / 2.0 / count
    return shares[place.reshape(-1)]


def _sweep(predictions: Mapping[Pass, Predictions], dataset: str, preset: str, family: Family) -> _Sweep:
    keys = {level: Pass(dataset, f"{family}:{level}", preset) for level in levels(family, preset)}
    if family == "resolution":
        base_key = Pass(dataset, CLEAN, preset)
        base = "native" if preset != "paper" else _side(predictions.get(base_key))
        base = "native" if keys.get(base) in predictions else base
    else:
        base = "1" if family == "scale" else "0"
        base_key = keys.pop(base, Pass(dataset, CLEAN, preset))
    return _Sweep(family=family, base=base, base_key=base_key if base_key in predictions else None,
                  levels={level: key for level, key in keys.items() if key in predictions})


def _side(found: Predictions | None) -> str:
    """Return the size of the clean pass as a level: 224, the paper's, where it was not stored."""
    if found is None or found.size_px is None:
        return "224"
    return str(found.size_px[0]) if found.size_px[0] == found.size_px[1] else "native"


def _evaluate(sweep: _Sweep, predictions: Mapping[Pass, Predictions], reference: Mapping[Pass, Predictions] | None,
              ) -> Evaluation:
    first = next(iter(sweep.levels.values()))
    ids: npt.NDArray[np.str_] = np.unique(reduce(shared_ids, [predictions[key].ids for key in sweep.keys]))
    changes: tuple[Score, ...] = ()
    if ids.size == 0:
        scores: tuple[Score, ...] = (Score(
            name="consistency_mean", value=None, unit="fraction", better="higher", n=0,
            method="mean consistency over all levels", reason="the passes have no image in common"),)
    else:
        taken = _take({key: predictions[key] for key in sweep.keys}, ids)
        scores = _scores(sweep, taken)
        others = {key: other for key in sweep.keys if (other := paired(predictions[key], reference, key))}
        common = sweep.among(others)
        if common.levels:
            changes = _changes(common, _answers(common, taken), _answers(common, _take(others, ids)))
    return Evaluation(
        property="invariance", dataset=predictions[first].dataset, condition=sweep.family, preset=first.preset,
        predictions=tuple(key.file for key in sweep.keys), scores=scores, reference_scores=changes)


def _take(predictions: Mapping[Pass, Predictions], ids: npt.NDArray[np.str_]) -> dict[Pass, _Taken]:
    taken: dict[Pass, _Taken] = {}
    last: npt.NDArray[np.str_] | None = None
    rows: IntArray | None = None
    for key, found in predictions.items():
        # Sorting names takes longer than all else here, and nearly all passes name the same images.
        if last is None or not np.array_equal(found.ids, last):
            last, rows = found.ids, rows_of(found.ids, ids)
        assert rows is not None
        taken[key] = _Taken(found, rows, found.outcomes.take(rows))
    return taken


def _answers(sweep: _Sweep, taken: Mapping[Pass, _Taken]) -> _Answers:
    base = taken[sweep.base_key].outcomes if sweep.base_key else None
    of_levels = [taken[key].outcomes for key in sweep.levels.values()]
    unknown = np.full(len(of_levels[0]), np.nan)
    return _Answers(
        np.array([base.correct if base else unknown, *(one.correct for one in of_levels)], np.float64),
        np.array([one.predicted == base.predicted if base else unknown for one in of_levels], np.float64))


def _scores(sweep: _Sweep, taken: Mapping[Pass, _Taken]) -> tuple[Score, ...]:
    names, answers = [*sweep.levels], _answers(sweep, taken)
    n = answers.correct.shape[1]
    base = taken[sweep.base_key] if sweep.base_key else None
    shown = [*([sweep.base] if base else []), *names]
    absent = NO_DISTRIBUTION if any(taken[key].found.kind == "sigmoid_scores" for key in sweep.keys) else ""
    certainty = np.stack([np.exp(-taken[key].outcomes.nll) for key in sweep.keys])
    divergence = _divergences(base, [taken[key] for key in sweep.levels.values()])
    weights, splits = _weights(sweep), np.cumsum([1 + len(names), len(names)])

    def statistics(means: FloatArray) -> FloatArray:
        correct, consistent, plain = np.split(means, splits)
        retention = _retention(correct)
        return np.array([*plain, *retention[1:], retention @ weights, correct[1:].mean(), consistent.mean(),
                         consistent.min()])

    ends = _resampled(np.vstack([*answers, certainty, divergence]), statistics)
    right = answers.correct if base else answers.correct[1:]
    no_retention = _ALL_WRONG if base else _NO_BASE
    no_area = no_retention if base is None or not answers.correct[0].any() else _ONE_POINT
    same = f"share of images with the same largest logit as at the untransformed level {sweep.base}"
    mean = f"mean over the transformed levels {', '.join(names)}"
    worst = names[int(answers.consistent.mean(axis=1).argmin())]
    return (
        *(proportion(f"accuracy@{one}", int(row.sum()), n, "higher",
                     "share of images whose largest logit is the target's, lowest index on ties; Wilson interval")
          for one, row in zip(shown, right, strict=True)),
        *(proportion(f"consistency@{one}", int(row.sum()), n, "higher", f"{same}; Wilson interval") if base else
          _bounded(f"consistency@{one}", "fraction", "higher", n, same, (math.nan,) * 3, _NO_BASE)
          for one, row in zip(names, answers.consistent, strict=True)),
        *(_bounded(f"p_true@{one}", "fraction", "higher", n, f"mean probability of the target; {_BOOTSTRAP}",
                   next(ends), absent) for one in shown),
        *(_bounded(f"js_divergence@{one}", "nat", "lower", n, "mean Jensen-Shannon divergence of the probabilities "
                   f"from those at the untransformed level {sweep.base}, at most ln 2; {_BOOTSTRAP}", next(ends),
                   (absent or COMPACT) if base else _NO_BASE, (0.0, math.log(2.0))) for one in names),
        *(_bounded(f"retention@{one}", "1", "higher", n, f"{_retained(sweep)}; {_BOOTSTRAP}", next(ends), no_retention,
                   (0.0, math.inf)) for one in names),
        _bounded("retention_area", "1", "higher", n, f"{_curve(sweep)}; {_BOOTSTRAP}", next(ends), no_area,
                 (0.0, math.inf)),
        _bounded("accuracy_mean", "fraction", "higher", n, f"accuracy, {mean}; {_BOOTSTRAP}", next(ends), ""),
        _bounded("consistency_mean", "fraction", "higher", n, f"{same}, {mean}; {_BOOTSTRAP}", next(ends), _NO_BASE),
        _bounded("consistency_worst", "fraction", "higher", n,
                 f"{same}, at the level where it is lowest{f', {worst} here' if base else ''}, chosen anew in every "
                 f"resample; {_BOOTSTRAP}", next(ends), _NO_BASE))


def _changes(sweep: _Sweep, mine: _Answers, theirs: _Answers) -> tuple[Score, ...]:
    n, names, weights = mine.correct.shape[1], [*sweep.levels], _weights(sweep)
    splits = np.cumsum([1 + len(names), len(names), 1 + len(names)])

    def statistics(means: FloatArray) -> FloatArray:
        correct, consistent, correct_before, consistent_before = np.split(means, splits)
        change = _retention(correct) - _retention(correct_before)
        return np.array([*change[1:], change @ weights, (correct - correct_before)[1:].mean(),
                         (consistent - consistent_before).mean()])

    ends = _resampled(np.vstack([*mine, *theirs]), statistics)
    based = sweep.base_key is not None
    shown, start = ([sweep.base, *names], 0) if based else (names, 1)
    no_retention = f"{_ALL_WRONG}, here or there" if based else f"{_NO_BASE}, here or there"
    both_right = based and mine.correct[0].any() and theirs.correct[0].any()
    flips = [_flips(after, before) for after, before in zip(mine.correct[start:], theirs.correct[start:], strict=True)]
    p_values = [stats.mcnemar_exact(negative, positive) for positive, negative in flips]
    against = "minus the reference's on the same images"
    resampled = f"{against}; paired {_BOOTSTRAP}"
    mean = f"mean over the transformed levels {', '.join(names)}"
    same = f"share of images with the same largest logit as at the untransformed level {sweep.base}"
    test = "exact two-sided McNemar test that negative and positive flips at this level are equally likely"
    return (
        *(_shift_of_share(f"accuracy_change@{one}", flipped, n, f"top-1 {against}")
          for one, flipped in zip(shown, flips, strict=True)),
        *(Score(name=f"mcnemar_p@{one}", value=p, unit="1", better=None, n=n, method=test)
          for one, p in zip(shown, p_values, strict=True)),
        *(Score(name=f"mcnemar_p_holm@{one}", value=p, unit="1", better=None, n=n,
                method=f"{test}; adjusted by Holm's method for the levels {', '.join(shown)}")
          for one, p in zip(shown, stats.holm(p_values), strict=True)),
        *(_shift_of_share(f"consistency_change@{one}", _flips(after, before), n, f"{same}, {against}") if based else
          _bounded(f"consistency_change@{one}", "fraction", "higher", n, f"{same}, {against}", (math.nan,) * 3,
                   f"{_NO_BASE}, here or there")
          for one, after, before in zip(names, mine.consistent, theirs.consistent, strict=True)),
        *(_bounded(f"retention_change@{one}", "1", "higher", n, f"{_retained(sweep)}, {resampled}", next(ends),
                   no_retention, (-math.inf, math.inf)) for one in names),
        _bounded("retention_area_change", "1", "higher", n, f"{_curve(sweep)}, {resampled}", next(ends),
                 _ONE_POINT if both_right else no_retention, (-math.inf, math.inf)),
        _bounded("accuracy_mean_change", "fraction", "higher", n, f"accuracy, {mean}, {resampled}", next(ends), "",
                 (-1.0, 1.0)),
        _bounded("consistency_mean_change", "fraction", "higher", n, f"{same}, {mean}, {resampled}", next(ends),
                 f"{_NO_BASE}, here or there", (-1.0, 1.0)))


def _divergences(base: _Taken | None, levels: Sequence[_Taken]) -> FloatArray:
    """Return the divergence of each level's probabilities from the untransformed (L, N); NaN where not known."""
    found = np.full((len(levels), len(levels[0].rows)), np.nan)
    whole = [place for place, one in enumerate(levels)
             if not one.found.compact and one.found.kind != "sigmoid_scores"]
    if base is None or base.found.compact or not whole:
        return found
    # The passes are mapped from disk: block by block, none is ever whole in memory.
    for block in metrics.row_blocks(found.shape[1]):
        found[whole, block] = metrics.js_divergences(
            base.found.logits[base.rows[block]],
            [levels[place].found.logits[levels[place].rows[block]] for place in whole])
    return found


def _retention(correct: FloatArray) -> FloatArray:
    """Return accuracies (1 + L,) over the first; NaN where that is 0 or not known."""
    return correct / correct[0] if correct[0] > 0.0 else np.full(correct.shape, np.nan)


def _weights(sweep: _Sweep) -> FloatArray:
    """Return the area's weights for the retentions at the untransformed and the transformed levels (1 + L,)."""
    weights = retention_weights([parameter(level) for level in sweep.placed])
    return np.append(np.zeros(1 + len(sweep.levels) - len(weights)), weights)


def _retained(sweep: _Sweep) -> str:
    return f"accuracy over the accuracy at the untransformed level {sweep.base}"


def _curve(sweep: _Sweep) -> str:
    directions = ", after the mean over the directions of each shift" if sweep.placed[-1][-1].isalpha() else ""
    return (f"area under the curve of the {_retained(sweep)}, trapezoid rule over the level's number scaled to 0 to 1"
            f"{directions}; levels {', '.join(sweep.placed)}")


def _resampled(table: FloatArray, statistics: Callable[[FloatArray], FloatArray]) -> Iterator[tuple[float, ...]]:
    """Return (value, low, high) of each statistic, a function of the row means of `table` (rows, images)."""
    n = table.shape[1]
    estimate = statistics(table.mean(axis=1))
    low, high = stats.bootstrap(
        lambda chosen: statistics(table @ np.bincount(chosen, minlength=n).astype(np.float64) / n), n,
        estimate=estimate)
    return zip(estimate.tolist(), low.tolist(), high.tolist(), strict=True)


def _flips(after: FloatArray, before: FloatArray) -> tuple[int, int]:
    """Return how many images came to count, and how many ceased to."""
    return int(np.count_nonzero(after > before)), int(np.count_nonzero(after < before))


def _shift_of_share(name: str, flips: tuple[int, int], n: int, what: str) -> Score:
    up, down = flips
    low, high = stats.paired_interval(up, down, n)
    return Score(name=name, value=(up - down) / n, low=low, high=high, unit="fraction", better="higher", n=n,
                 method=f"{what}; Tango's score interval")


def _bounded(name: str, unit: str, better: Better, n: int, method: str, numbers: Sequence[float], undefined: str,
             bounds: tuple[float, float] = (0.0, 1.0)) -> Score:
    value, low, high = numbers
    if math.isnan(value):
        return Score(name=name, value=None, unit=unit, better=better, n=n, method=method, reason=undefined)
    # Constant up to the rounding of the means.
    if math.isnan(low) or high - low < 1e-12:
        return Score(name=name, value=value, unit=unit, better=better, n=n, method=method,
                     reason=_SOME_RESAMPLES if math.isnan(low) else _CONSTANT)
    return Score(name=name, value=value, low=max(bounds[0], low), high=min(bounds[1], high), unit=unit, better=better,
                 n=n, method=method)
