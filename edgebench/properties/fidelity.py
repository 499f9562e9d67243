"""Fidelity: how far a variant's answers and outputs are from its reference's on the same images, labels aside.

Not a property of its own: every property that compares with a reference may add it.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from edgebench import metrics, stats
from edgebench.metrics import BoolArray
from edgebench.outputs import LOGIT_SCALE_LOST, NO_DISTRIBUTION
from edgebench.properties import Predictions
from edgebench.record import Better, Score
from edgebench.stats import FloatArray

DECILES = 10
COMPACT = "the predictions were stored in compact form"
"""Why a score that needs logits is absent."""
CONSTANT = "every resample gives the same: resampling cannot bound it"
"""Why a score has no interval where nothing varies between images: a width of 0 would claim certainty."""
_BOOTSTRAP = "percentile bootstrap over images, 1,000 resamples"
_MARGIN = "largest less second largest probability"


def fidelity(found: Predictions, other: Predictions) -> tuple[Score, ...]:
    """Return how a variant differs from its reference on the same images; no score looks at the targets.

    Shares of images with another answer, over all and by tenth of the reference's margin; overlap of the five largest
    logits; divergences of the probabilities in nats; absolute differences of confidence and logits. Divergences and
    differences of logits have no value where either side was stored in compact form.

    Args:
        found: Of the variant.
        other: Of the reference, on the same images in the same order.

    Raises:
        ValueError: Other images, or another number of classes.
        InvalidInput: A logit is NaN or +inf, or all of an image are -inf.
    """
    if not np.array_equal(found.ids, other.ids):
        raise ValueError(f"expected the reference's {len(other.ids)} images in its order, got {len(found.ids)} others")
    mine, theirs = found.outcomes, other.outcomes
    if mine.classes != theirs.classes:
        raise ValueError(f"expected as many classes as the reference, got {mine.classes} and {theirs.classes}")
    n, differs = len(mine), mine.predicted != theirs.predicted
    kinds = {found.kind, other.kind}
    no_shares = NO_DISTRIBUTION if "sigmoid_scores" in kinds else COMPACT
    no_logits = LOGIT_SCALE_LOST if kinds != {"logits"} else COMPACT
    gaps = None if found.compact or other.compact or no_shares != COMPACT else \
        metrics.divergences(other.logits, found.logits)
    of_logits = gaps if no_logits == COMPACT else None
    overlap = (theirs.top5[:, :, None] == mine.top5[:, None, :]).any(axis=2).mean(axis=1)
    means: tuple[tuple[str, str, Better, FloatArray | None, str, str], ...] = (
        ("top5_overlap", "fraction", "higher", overlap if mine.classes > metrics.TOP else None,
         "mean share of the reference's five largest logits that are among this variant's five largest",
         f"with {mine.classes} classes the five largest logits are always the same"),
        ("kl_divergence", "nat", "lower", gaps and gaps.kl,
         "mean divergence of this variant's softmax from the reference's", no_shares),
        ("js_divergence", "nat", "lower", gaps and gaps.js,
         "mean Jensen-Shannon divergence of this variant's softmax and the reference's, at most ln 2", no_shares),
        ("confidence_difference", "fraction", "lower",
         None if no_shares != COMPACT else np.abs(mine.confidence - theirs.confidence),
         "mean absolute difference of the largest probabilities, of whichever class", no_shares),
        ("logit_difference", "1", "lower", of_logits and of_logits.logit_mean,
         "mean absolute difference of the logits, over images and classes", no_logits))
    # The mean of what is infinite for an image is no number.
    means = tuple((name, unit, better, None, method, _infinite(values)) if values is not None
                  and not np.isfinite(values).all() else (name, unit, better, values, method, reason)
                  for name, unit, better, values, method, reason in means)
    largest = None if of_logits is None else float(of_logits.logit_max.max())
    table = np.stack([np.zeros(n), *(values for _, _, _, values, _, _ in means if values is not None)], axis=1)[:, 1:]
    low, high = stats.bootstrap(lambda chosen: np.bincount(chosen, minlength=n) @ table / n, n)
    ends = iter(zip(low.tolist(), high.tolist(), strict=True))
    return (
        proportion("disagreement", int(differs.sum()), n, "lower",
                   "share of images with another top class than the reference's; Wilson interval"),
        *(_mean(name, unit, better, values, n, method, next(ends) if values is not None else None, reason)
          for name, unit, better, values, method, reason in means),
        Score(name="logit_difference_max", value=None if largest == math.inf else largest, unit="1",
              better="lower", n=n, method="largest absolute difference of a logit, over images and classes",
              reason="a maximum, not an estimate" if largest is not None and largest < math.inf else
              no_logits if of_logits is None else _infinite(of_logits.logit_max)),
        *_by_margin(differs, theirs.margin))


def _infinite(values: FloatArray) -> str:
    return (f"infinite for {np.count_nonzero(np.isinf(values)):,} of {len(values):,} images: a class is excluded "
            "(-inf) on one side alone")


def flips(correct_reference: BoolArray, correct: BoolArray) -> tuple[Score, Score]:
    """Return the shares of images that turned from right to wrong, and from wrong to right.

    Args:
        correct_reference: Whether the reference is right (N,).
        correct: Whether the variant is right on the same images (N,).

    Raises:
        ValueError: No images, or shapes that differ.
    """
    negative, positive = metrics.flips(correct_reference, correct)
    return (
        proportion("negative_flips", negative, correct.size, "lower",
                   "share of images that the reference gets right and this variant wrong; Wilson interval"),
        proportion("positive_flips", positive, correct.size, "higher",
                   "share of images that the reference gets wrong and this variant right; Wilson interval"))


def is_constant(low: float, high: float) -> bool:
    """Return whether the ends of a bootstrap interval are equal up to rounding."""
    return high - low < 1e-12


def proportion(name: str, count: int, n: int, better: Better | None, method: str) -> Score:
    """Return a share of images, each of which counts by itself, with its Wilson interval."""
    low, high = stats.wilson(count, n)
    return Score(name=name, value=count / n, low=low, high=high, unit="fraction", better=better, n=n, method=method,
                 count=count)


def _by_margin(differs: BoolArray, margin: FloatArray) -> tuple[Score, ...]:
    scores = []
    tenths: list[npt.NDArray[np.intp]] = np.array_split(np.argsort(margin, kind="stable"), DECILES)
    for place, images in enumerate(tenths, start=1):
        name = f"disagreement@margin_decile_{place}"
        method = (f"share of images with another top class than the reference's, among tenth {place} of {DECILES} of "
                  f"the images in order of the reference's margin ({_MARGIN}; ties in image order); Wilson interval")
        scores.append(proportion(name, int(differs[images].sum()), images.size, "lower", method) if images.size else
                      Score(name=name, value=None, unit="fraction", better="lower", n=0, method=method,
                            reason=f"{differs.size} images are too few: at least {DECILES} are needed"))
    return tuple(scores)


def _mean(name: str, unit: str, better: Better, values: FloatArray | None, n: int, method: str,
          ends: tuple[float, float] | None, reason: str) -> Score:
    method = f"{method}; {_BOOTSTRAP}"
    if values is None or ends is None:
        return Score(name=name, value=None, unit=unit, better=better, n=n, method=method, reason=reason)
    if is_constant(*ends):
        return Score(name=name, value=float(values.mean()), unit=unit, better=better, n=n, method=method,
                     reason=CONSTANT)
    return Score(name=name, value=float(values.mean()), low=ends[0], high=ends[1], unit=unit, better=better, n=n,
                 method=method)
