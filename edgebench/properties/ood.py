"""Detection of images that the model was not made for, by how sure the model is: part of the property robustness.

The user's labelled images are in distribution, those of a set ``ood/<name>`` are not. Four numbers say how sure the
model is: the largest probability (MSP), the largest logit, the energy (logarithm of the summed exponentials of all
logits), and the entropy of the probabilities, here with a minus, so that more means surer for all of them. A model
that gives probabilities has neither of the two in the middle; one that gives sigmoid scores has none. With 8-bit
outputs many images are equally sure: nothing here depends on the order of ties.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from edgebench.metrics import Outcomes
from edgebench.properties import CLEAN, Pass, Predictions, is_plain, paired
from edgebench.properties.scores import LOGIT_SCALE_LOST, NO_DISTRIBUTION, absent, resampled
from edgebench.record import Better, Evaluation
from edgebench.stats import FloatArray, IntArray

PREFIX = "ood/"
CERTAINTIES = {"msp": "largest probability", "max_logit": "largest logit",
               "energy": "logarithm of the summed exponentials of the logits",
               "entropy": "entropy of the probabilities, counted with a minus"}
_METRICS: dict[str, tuple[Better, str]] = {
    "auroc": ("higher", "area under the ROC curve: in distribution ranked above out of it, ties counted half"),
    "aupr_in": ("higher", "average precision with the images in distribution as positive, the largest first"),
    "aupr_out": ("higher", "average precision with the images out of distribution as positive, the smallest first"),
    "fpr95": ("lower", "share of the images out of distribution at or above the value that 95 % of those in it reach"),
}
_OF_LOGITS = ("_max_logit", "_energy")
"""Ends of the names of scores that probabilities cannot give."""
_RESAMPLES, _TAIL = 1000, 0.025
_BOOTSTRAP = "percentile bootstrap over the images of both sets, each resampled by itself, 1,000 resamples"
_METHOD_ID = "bootstrap-two-samples"


class Detection(NamedTuple):
    """How well a number tells images in distribution from others; fractions."""

    auroc: float
    """Chance that an image in distribution has the larger number, ties counted half."""
    aupr_in: float
    """Average precision with the images in distribution as positive, largest first."""
    aupr_out: float
    """Average precision with the images out of distribution as positive, smallest first."""
    fpr95: float
    """False positive rate at the highest threshold that keeps at least 95 % of the images in distribution."""


class _Levels(NamedTuple):
    """Both sets sorted into the distinct values of one number, the largest first."""

    inside: IntArray
    """Level of each image in distribution (N,)."""
    outside: IntArray
    """Level of each image out of distribution (M,)."""
    filled_outside: IntArray
    """Levels with images out of distribution."""
    levels: int

    def detection(self, inside: IntArray, outside: IntArray) -> FloatArray:
        """Return the four of `Detection` where each image counts as often as `inside` (N,) and `outside` (M,) say."""
        new_in = np.bincount(self.inside, inside, self.levels)
        new_out = np.bincount(self.outside, outside, self.levels)
        down_in, down_out = new_in.cumsum(), new_out.cumsum()
        all_in, all_out = down_in[-1], down_out[-1]
        # Where a resample left a level empty, nothing is new there: its precision does not matter.
        precision_in = down_in / np.maximum(down_in + down_out, 1.0)
        filled = self.filled_outside
        new_out, in_here = new_out[filled], new_in[filled]
        up_in, up_out = all_in - down_in[filled] + in_here, all_out - down_out[filled] + new_out
        precision_out = up_out / np.maximum(up_in + up_out, 1.0)
        # In whole numbers, for 0.95 is none.
        kept = int(np.argmax(20.0 * down_in >= 19.0 * all_in))
        # Sums, not products of BLAS, whose threads take longer to start than this takes.
        return np.array([
            (new_out * (down_in[filled] - in_here / 2.0)).sum() / (all_in * all_out),
            (new_in * precision_in).sum() / all_in, (new_out * precision_out).sum() / all_out,
            down_out[kept] / all_out])


def detection(inside: FloatArray, outside: FloatArray) -> Detection:
    """Return how well a number that is large in distribution tells the two sets apart.

    Equal numbers share one threshold: the ROC curve runs straight across them (AUROC counts them half), and average
    precision, the sum of precision times gain in recall over thresholds, takes them in one step. Nothing is
    interpolated. Both average precisions depend on how many images each set has.

    Args:
        inside: The number for the images in distribution (N,), finite.
        outside: For those out of distribution (M,), finite.

    Raises:
        ValueError: A set without images.

    Source:
        Hendrycks & Gimpel 2017 (arXiv:1610.02136); FPR at 95 % TPR: Liang et al. 2018 (arXiv:1706.02690).
    """
    if not inside.size or not outside.size:
        raise ValueError(f"expected images in both sets, got {inside.size} and {outside.size}")
    found = _levels(inside, outside).detection(np.ones(inside.size, np.int64), np.ones(outside.size, np.int64))
    return Detection(*found.tolist())


def certainties(outcomes: Outcomes) -> FloatArray:
    """Return how sure the model is of each image (4, N), in the order of `CERTAINTIES`: more is surer.

    Source:
        Hendrycks & Gimpel 2017 (arXiv:1610.02136); largest logit: Hendrycks et al. 2022 (arXiv:1911.11132); energy: Liu
        et al. 2020 (arXiv:2010.03759), at temperature 1 and with a minus.
    """
    return np.stack([outcomes.confidence, outcomes.max_logit, outcomes.energy, -outcomes.entropy])


def evaluations(predictions: Mapping[Pass, Predictions], reference: Mapping[Pass, Predictions] | None,
                ) -> tuple[Evaluation, ...]:
    """Return one evaluation for each pair of a labelled set and a set out of distribution, as fractions.

    Raises:
        InvalidInput: The reference saw other images.
    """
    clean = [key for key in predictions if key.condition == CLEAN]
    return tuple(_evaluate(inside, outside, predictions, reference)
                 for outside in clean if outside.dataset.startswith(PREFIX)
                 for inside in clean if is_plain(inside.dataset) and inside.preset == outside.preset)


def _evaluate(inside: Pass, outside: Pass, predictions: Mapping[Pass, Predictions],
              reference: Mapping[Pass, Predictions] | None) -> Evaluation:
    keys = inside, outside
    levels = _all_levels(*(predictions[key] for key in keys))
    sizes = [len(predictions[key].ids) for key in keys]
    before = [other for key in keys if (other := paired(predictions[key], reference, key))]
    kinds = {one.kind for one in (*(predictions[key] for key in keys), *before)}
    both = len(before) == len(keys)
    values, low, high = (column.tolist() for column in _resampled(
        [*levels, *(_all_levels(*before) if both else ())], *sizes))
    count = len(CERTAINTIES) * len(_METRICS)
    counts = {"in_distribution": sizes[0], "out_of_distribution": sizes[1]}
    scores, changes = [], []
    for place, (name, better, method) in enumerate(
            (f"{metric}_{number}", better, f"{method}; {what}") for number, what in CERTAINTIES.items()
            for metric, (better, method) in _METRICS.items()):
        lost = NO_DISTRIBUTION if "sigmoid_scores" in kinds else \
            LOGIT_SCALE_LOST if kinds != {"logits"} and name.endswith(_OF_LOGITS) else None
        if lost is not None:
            scores.append(absent(name, "fraction", better, sum(sizes), f"{method}; {_BOOTSTRAP}", lost,
                                 kind="resampled", method_id=_METHOD_ID, facts=counts))
            continue
        scores.append(resampled(name, (values[place], low[place], high[place]), "fraction", better, sum(sizes),
                                f"{method}; {_BOOTSTRAP}", method_id=_METHOD_ID, facts=counts))
        if both:
            k = count + place
            changes.append(resampled(
                f"{name}_change", (values[k], low[k], high[k]), "fraction", better, sum(sizes),
                f"{method}; minus the reference's on the same images; paired {_BOOTSTRAP}", method_id=_METHOD_ID,
                facts=counts))
    return Evaluation(property="robustness", dataset=predictions[outside].dataset, condition=f"ood:{inside.dataset}",
                      preset=outside.preset, predictions=(inside.file, outside.file), scores=tuple(scores),
                      reference_scores=tuple(changes))


def _all_levels(inside: Predictions, outside: Predictions) -> list[_Levels]:
    return [_levels(*both) for both in zip(certainties(inside.outcomes), certainties(outside.outcomes), strict=True)]


def _levels(inside: FloatArray, outside: FloatArray) -> _Levels:
    distinct, place = np.unique(-np.concatenate([inside, outside]), return_inverse=True)
    place = place.reshape(-1)
    return _Levels(place[:inside.size], place[inside.size:], np.unique(place[inside.size:]), distinct.size)


def _resampled(levels: list[_Levels], inside: int, outside: int) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return (values, low, high) of the detection by each number, and given the reference's levels, of changes."""
    def statistics(of_inside: IntArray, of_outside: IntArray) -> FloatArray:
        found = np.concatenate([one.detection(of_inside, of_outside) for one in levels])
        if len(levels) == len(CERTAINTIES):
            return found
        mine, theirs = np.split(found, 2)
        return np.concatenate([mine, mine - theirs])

    generator = np.random.default_rng(0)

    def drawn(n: int) -> IntArray:
        return np.bincount(generator.integers(0, n, n), minlength=n)

    resamples = [statistics(drawn(inside), drawn(outside)) for _ in range(_RESAMPLES)]
    low, high = np.quantile(np.stack(resamples), [_TAIL, 1.0 - _TAIL], axis=0)
    return statistics(np.ones(inside, np.int64), np.ones(outside, np.int64)), low, high

