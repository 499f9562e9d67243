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
from edgebench.properties import CLEAN, Pass, Predictions, is_plain, paired, rows_of, shared_ids
from edgebench.properties.scores import (
    COMPACT,
    NEVER,
    NO_COMMON_IMAGE,
    NO_DISTRIBUTION,
    SHIFTED_BOOTSTRAP,
    Facts,
    Reason,
    absent,
    adjusted,
    p_value,
    resampled,
    share,
    share_change,
)
from edgebench.record import Better, Evaluation, Score
from edgebench.stats import FloatArray, IntArray
from edgebench.transforms import FAMILIES, Family, levels, parameter

SUMMARY = "Accuracy and consistency of the answers under zoom, shift and other input resolutions"
NEEDS = "labelled images: --data ROOT with ROOT/<class>/<image>"

_BOOTSTRAP = "bootstrap over images, each with all its levels, 1,000 resamples, shifted by its bias"
_NO_BASE = Reason("incomplete", "the untransformed images were not measured")
_NO_BASE_OF_BOTH = Reason("incomplete", f"{_NO_BASE.words}, here or there")
_ALL_WRONG = Reason("undefined", "no untransformed image is answered right: there is nothing to retain")
_ALL_WRONG_OF_EITHER = Reason("undefined", f"{_ALL_WRONG.words}, here or there")
_ONE_POINT = Reason("undefined", "a single point has no area under it")
_SOME_RESAMPLES = Reason("some-resamples", "in some resamples no untransformed image is answered right")
_SAME = "share of images with the same largest logit as untransformed"
_MEAN = "mean over the transformed levels"
_RETAINED = "accuracy over the accuracy of the untransformed images"


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
    def facts(self) -> dict[str, str]:
        """What the scores over levels are of."""
        return {"untransformed": self.base, "levels": ", ".join(self.levels)}

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
        scores: tuple[Score, ...] = (absent(
            "consistency_mean", "fraction", "higher", 0, f"{_SAME}, {_MEAN}; {_BOOTSTRAP}", NO_COMMON_IMAGE,
            kind="resampled", method_id=SHIFTED_BOOTSTRAP),)
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
    no_shares = NO_DISTRIBUTION if any(taken[key].found.kind == "sigmoid_scores" for key in sweep.keys) else None
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
    worst = names[int(answers.consistent.mean(axis=1).argmin())] if base else None
    all_levels, base_level = sweep.facts, {"untransformed": sweep.base}

    def over_images(name: str, unit: str, better: Better, method: str, undefined: Reason, *,
                    bounds: tuple[float, float] = (0.0, 1.0), level: str | None = None,
                    facts: Facts | None = None) -> Score:
        return resampled(name, next(ends), unit, better, n, f"{method}; {_BOOTSTRAP}", undefined=undefined,
                         in_some=_SOME_RESAMPLES, bounds=bounds, method_id=SHIFTED_BOOTSTRAP, level=level, facts=facts)

    return (
        *(share(f"accuracy@{one}", int(row.sum()), n, "higher",
                "share of images whose largest logit is the target's, lowest index on ties")
          for one, row in zip(shown, right, strict=True)),
        *(share(f"consistency@{one}", int(row.sum()), n, "higher", _SAME, facts=base_level) if base else
          absent(f"consistency@{one}", "fraction", "higher", n, f"{_SAME}; Wilson interval", _NO_BASE, kind="share",
                 method_id="share-wilson", facts=base_level)
          for one, row in zip(names, answers.consistent, strict=True)),
        *(over_images(f"p_true@{one}", "fraction", "higher", "mean probability of the target", no_shares or NEVER)
          for one in shown),
        *(over_images(f"js_divergence@{one}", "nat", "lower", "mean Jensen-Shannon divergence of the probabilities "
                      "from those of the untransformed images, at most ln 2",
                      (no_shares or COMPACT) if base else _NO_BASE, bounds=(0.0, math.log(2.0)), facts=base_level)
          for one in names),
        *(over_images(f"retention@{one}", "1", "higher", _RETAINED, no_retention, bounds=(0.0, math.inf),
                      facts=base_level) for one in names),
        over_images("retention_area", "1", "higher", _curve(sweep), no_area, bounds=(0.0, math.inf),
                    facts=_placed(sweep)),
        over_images("accuracy_mean", "fraction", "higher", f"accuracy, {_MEAN}", NEVER, facts=all_levels),
        over_images("consistency_mean", "fraction", "higher", f"{_SAME}, {_MEAN}", _NO_BASE, facts=all_levels),
        over_images("consistency_worst", "fraction", "higher", f"{_SAME}, at the level where it is lowest, which every "
                    "resample chooses for itself", _NO_BASE, level=worst, facts=all_levels))


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
    no_retention = _ALL_WRONG_OF_EITHER if based else _NO_BASE_OF_BOTH
    both_right = based and mine.correct[0].any() and theirs.correct[0].any()
    flips = [_flips(after, before) for after, before in zip(mine.correct[start:], theirs.correct[start:], strict=True)]
    p_values = [stats.mcnemar_exact(*flipped) for flipped in flips]
    against = "minus the reference's on the same images"
    test = "exact two-sided McNemar test that negative and positive flips at this level are equally likely"
    all_levels, base_level = sweep.facts, {"untransformed": sweep.base}

    def over_images(name: str, unit: str, method: str, undefined: Reason, facts: Facts,
                    bounds: tuple[float, float] = (-math.inf, math.inf)) -> Score:
        return resampled(name, next(ends), unit, "higher", n, f"{method}, {against}; paired {_BOOTSTRAP}",
                         undefined=undefined, in_some=_SOME_RESAMPLES, bounds=bounds, method_id=SHIFTED_BOOTSTRAP,
                         facts=facts)

    return (
        *(share_change(f"accuracy_change@{one}", *flipped, n, f"top-1 {against}")
          for one, flipped in zip(shown, flips, strict=True)),
        *(p_value(f"mcnemar_p@{one}", p, n, test) for one, p in zip(shown, p_values, strict=True)),
        *(adjusted(f"mcnemar_p_holm@{one}", p, n, test, len(shown), over="the levels")
          for one, p in zip(shown, stats.holm(p_values), strict=True)),
        *(share_change(f"consistency_change@{one}", *_flips(after, before), n, f"{_SAME}, {against}", facts=base_level)
          if based else
          absent(f"consistency_change@{one}", "fraction", "higher", n, f"{_SAME}, {against}; Tango's score interval",
                 _NO_BASE_OF_BOTH, kind="paired-share", method_id="share-change-tango", facts=base_level)
          for one, after, before in zip(names, mine.consistent, theirs.consistent, strict=True)),
        *(over_images(f"retention_change@{one}", "1", _RETAINED, no_retention, base_level) for one in names),
        over_images("retention_area_change", "1", _curve(sweep), _ONE_POINT if both_right else no_retention,
                    _placed(sweep)),
        over_images("accuracy_mean_change", "fraction", f"accuracy, {_MEAN}", NEVER, all_levels, (-1.0, 1.0)),
        over_images("consistency_mean_change", "fraction", f"{_SAME}, {_MEAN}", _NO_BASE_OF_BOTH, all_levels,
                    (-1.0, 1.0)))


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


def _curve(sweep: _Sweep) -> str:
    directions = ", after the mean over the directions of each shift" if sweep.placed[-1][-1].isalpha() else ""
    return (f"area under the curve of the {_RETAINED}, trapezoid rule over the level's number scaled to 0 to 1"
            f"{directions}")


def _placed(sweep: _Sweep) -> dict[str, str]:
    return {"untransformed": sweep.base, "levels": ", ".join(sweep.placed)}


def _resampled(table: FloatArray, statistics: Callable[[FloatArray], FloatArray]) -> Iterator[tuple[float, ...]]:
    """Return (value, low, high) of each statistic, a function of the row means of `table` (rows, images)."""
    n = table.shape[1]
    estimate = statistics(table.mean(axis=1))
    low, high = stats.bootstrap(
        lambda chosen: statistics(table @ np.bincount(chosen, minlength=n).astype(np.float64) / n), n,
        estimate=estimate)
    return zip(estimate.tolist(), low.tolist(), high.tolist(), strict=True)


def _flips(after: FloatArray, before: FloatArray) -> tuple[int, int]:
    """Return how many images ceased to count, and how many came to."""
    return int(np.count_nonzero(after < before)), int(np.count_nonzero(after > before))
