"""Fidelity: how far a variant's answers and outputs are from its reference's on the same images, labels aside.

Not a property of its own: every property that compares with a reference may add it.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from edgebench import metrics, stats
from edgebench.metrics import BoolArray
from edgebench.properties import Predictions
from edgebench.properties.scores import (
    COMPACT,
    LOGIT_SCALE_LOST,
    NO_DISTRIBUTION,
    Reason,
    absent,
    counted,
    resampled,
    share,
)
from edgebench.record import Better, Score
from edgebench.stats import FloatArray

DECILES = 10
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
    all_five = Reason("undefined", f"with {mine.classes} classes the five largest logits are always the same")
    means: tuple[tuple[str, str, Better, FloatArray | None, str, Reason], ...] = (
        ("top5_overlap", "fraction", "higher", overlap if mine.classes > metrics.TOP else None,
         "mean share of the reference's five largest logits that are among this variant's five largest", all_five),
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
    table = np.stack([np.zeros(n), *(values for _, _, _, values, _, _ in means if values is not None)], axis=1)[:, 1:]
    low, high = stats.bootstrap(lambda chosen: np.bincount(chosen, minlength=n) @ table / n, n)
    ends = iter(zip(low.tolist(), high.tolist(), strict=True))
    return (
        share("disagreement", int(differs.sum()), n, "lower",
              "share of images with another top class than the reference's"),
        *(resampled(name, (math.nan,) * 3 if values is None else (float(values.mean()), *next(ends)), unit, better, n,
                    f"{method}; {_BOOTSTRAP}", undefined=reason)
          for name, unit, better, values, method, reason in means),
        _largest(n, of_logits, no_logits), *_by_margin(differs, theirs.margin))


def _infinite(values: FloatArray) -> Reason:
    return Reason("not-finite", f"infinite for {np.count_nonzero(np.isinf(values)):,} of {len(values):,} images: a "
                  "class is excluded (-inf) on one side alone")


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
        share("negative_flips", negative, correct.size, "lower",
              "share of images that the reference gets right and this variant wrong"),
        share("positive_flips", positive, correct.size, "higher",
              "share of images that the reference gets wrong and this variant right"))


def _largest(n: int, gaps: metrics.Divergences | None, no_logits: Reason) -> Score:
    name, method = "logit_difference_max", "largest absolute difference of a logit, over images and classes"
    largest = math.nan if gaps is None else float(gaps.logit_max.max())
    if gaps is None or not math.isfinite(largest):
        why = no_logits if gaps is None else _infinite(gaps.logit_max)
        return absent(name, "1", "lower", n, method, why, kind="exact", method_id="max")
    return counted(name, largest, n, method, better="lower", method_id="max",
                   reason=Reason("not-estimated", "a maximum, not an estimate"))


def _by_margin(differs: BoolArray, margin: FloatArray) -> tuple[Score, ...]:
    scores = []
    few = Reason("too-few", f"{differs.size} images are too few: at least {DECILES} are needed")
    tenths: list[npt.NDArray[np.intp]] = np.array_split(np.argsort(margin, kind="stable"), DECILES)
    for place, images in enumerate(tenths, start=1):
        name = f"disagreement@margin_decile_{place}"
        method = (f"share of images with another top class than the reference's, among tenth {place} of {DECILES} of "
                  f"the images in order of the reference's margin ({_MARGIN}; ties in image order)")
        scores.append(share(name, int(differs[images].sum()), images.size, "lower", method, without=few))
    return tuple(scores)
