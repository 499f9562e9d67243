"""From logits to numbers: calibration errors, proper scores and paired differences. Arrays in, numbers out.

"Logits" (N, K) are logits, or what a model gave instead of them (`kind`, see `edgebench.record.OutputKind`): logarithms
of its probabilities, or independent sigmoid scores. `probabilities` alone turns any of them into probabilities. -inf is
a class with probability 0.

`outcomes` reads the logits once and keeps a few numbers per image; every metric is then a fast function of 1-D arrays,
so that it can be called a thousand times inside `edgebench.stats.bootstrap`. The equal-mass estimators sort by
confidence. That sort is stable and takes linear time on sorted input: put the images in order of confidence once
before resampling, and let `bootstrap` hand out its sorted indices.

All results are fractions or nats, never percent.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from edgebench.errors import InvalidInput
from edgebench.stats import FloatArray, IntArray, quantile

BoolArray = npt.NDArray[np.bool_]
OutputKind = Literal["logits", "log_probabilities", "probabilities", "sigmoid_scores"]
"""As in `edgebench.record`, which arrays alone need not know."""
Logits = npt.NDArray[np.floating[Any]]

BINS = 15
"""Bins of every calibration error here; the paper's number, and Guo et al.'s (2017)."""
MIN_IMAGES_DEBIASED = 2 * BINS
"""A debiased estimate needs two images in every bin to know the bin's noise."""
TOP = 5
MOST_DISTINCT = 2**16
"""Where `distinct_values` stops counting: no output of 16 bits has more."""
_ROWS = 256
# A float64 copy of 50,000 x 1,000 logits is 400 MB, too much beside a runtime on a 4 GB board: work in row blocks. Of
# 2 MB each, half of them stay in the processor's cache from one operation to the next.


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Outcomes:
    """What one pass over labelled images says about each of them; arrays have shape (N,) where nothing else is said.

    Less than 100 bytes per image, so that it can be kept where logits are too large to. The target's logit is
    `energy` - `nll`.
    """

    predicted: IntArray
    """Class with the largest logit; the lowest index wins a tie."""
    confidence: FloatArray
    """Probability of `predicted`: the top-label confidence, 0 to 1; its sigmoid score where `kind` says so."""
    correct: BoolArray
    """`predicted` is the target."""
    in_top5: BoolArray
    """The target is among the min(5, K) largest logits; the lowest index wins a tie."""
    nll: FloatArray
    """Negative log-likelihood of the target, in nats: infinite where its probability is 0; NaN for sigmoid scores."""
    brier: FloatArray
    """Squared distance of probabilities and one-hot target, summed over classes: 0 to 2; NaN for sigmoid scores."""
    energy: FloatArray
    """Logarithm of the summed exponentials of all logits, which the softmax forgets; 0 for probabilities."""
    max_logit: FloatArray
    """The largest logit."""
    entropy: FloatArray
    """Of the probabilities, in nats: 0 to ln K; NaN for sigmoid scores."""
    runner_up: FloatArray
    """Second largest probability; 0 with one class."""
    top5: npt.NDArray[np.int32]
    """Classes of the largest logits, largest first, the lowest index first on ties (N, min(5, K))."""
    classes: int
    """How many the logits were of (K)."""
    kind: OutputKind = "logits"
    """What the logits were."""

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.correct)

    @property
    def margin(self) -> FloatArray:
        """Largest less second largest probability (N,): small where a little noise changes the answer."""
        return self.confidence - self.runner_up

    @property
    def certain(self) -> int:
        """Images whose confidence is 1.0 exactly: output quantization and overflow show up here."""
        return int(np.count_nonzero(self.confidence == 1.0))

    def take(self, indices: IntArray) -> Outcomes:
        """Return the outcomes of the images at `indices` (M,), in that order and as often as they are named."""
        return Outcomes(classes=self.classes, kind=self.kind,
                        **{name: getattr(self, name)[indices] for name in _PER_IMAGE})


_PER_IMAGE = tuple(field.name for field in fields(Outcomes) if field.name not in ("classes", "kind"))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Bins:
    """Images grouped by confidence; all arrays have shape (bins,)."""

    n: IntArray
    """Images in the bin."""
    confidence: FloatArray
    """Mean top-label confidence in the bin; NaN where the bin is empty."""
    accuracy: FloatArray
    """Share of correct images in the bin; NaN where the bin is empty."""


class Divergences(NamedTuple):
    """How far a variant's outputs are from the reference's on the same images; all arrays have shape (N,)."""

    kl: FloatArray
    """KL(reference || variant) of the class probabilities, in nats."""
    js: FloatArray
    """Jensen-Shannon divergence of the class probabilities, in nats: 0 to ln 2, the same both ways."""
    logit_mean: FloatArray
    """Mean absolute difference of the logits, over classes."""
    logit_max: FloatArray
    """Largest absolute difference of a logit."""


class Sums(NamedTuple):
    """Per-bin totals: sums, not means, because |sum - sum| / N needs no care for empty bins; arrays (bins,)."""

    n: FloatArray
    confidence: FloatArray
    correct: FloatArray


def probabilities(logits: Logits, kind: OutputKind = "logits") -> FloatArray:
    """Return class probabilities in float64 (N, K), as the model gives them.

    Of logits the softmax. What already is a probability stays what it is, also where 8-bit steps make the sum miss 1.

    Args:
        logits: (N, K), of any float type.
        kind: What they are.
    """
    if kind == "sigmoid_scores":
        return logits.astype(np.float64)
    return softmax(logits) if kind == "logits" else np.exp(logits.astype(np.float64)).clip(max=1.0)


def softmax(logits: Logits) -> FloatArray:
    """Return the softmax in float64 (N, K) of logits of any float type (N, K).

    The row maximum is subtracted first, so large logits do not overflow. The probability of the largest logit is
    exactly 1.0 once all others together are below half a unit in the last place of 1.
    """
    powers: FloatArray = np.exp(minus_largest(logits))
    powers /= powers.sum(axis=1, keepdims=True)
    return powers


def log_softmax(logits: Logits) -> FloatArray:
    """Return log-probabilities in nats, float64 (N, K), from logits of any float type (N, K)."""
    shifted = minus_largest(logits)
    shifted -= np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return shifted


def outcomes(logits: Logits, targets: npt.NDArray[np.integer[Any]], kind: OutputKind = "logits") -> Outcomes:
    """Return the per-image outcomes of logits (N, K) against target classes (N,).

    For a set that has only some of the model's classes, pass the logits of those classes and targets counted among
    them: the softmax then runs over these classes alone, as the paper does for ImageNet-R.

    Raises:
        ValueError: No images, shapes that do not fit together, or a target outside 0 to K-1.
        InvalidInput: A logit is NaN or +inf, or all of an image are -inf.
    """
    refuse_unlabelled(logits, targets)
    return joined([_outcomes(logits[rows], targets[rows].astype(np.int64), kind) for rows in row_blocks(len(logits))])


def kind_among(kind: OutputKind) -> OutputKind:
    """Return what the logits of some of the classes are: probabilities are shared out among these alone."""
    return kind if kind == "sigmoid_scores" else "logits"


def among(logits: Logits, classes: Sequence[int], name: str) -> Logits:
    """Return the logits (N, C) of some of the model's classes.

    Args:
        logits: Of all classes (N, K).
        classes: Their indices (C,).
        name: Of the data set, for the error.

    Raises:
        InvalidInput: The model has too few classes.
    """
    if max(classes) >= logits.shape[1]:
        raise InvalidInput(f"{name} needs class {max(classes)}, the model has {logits.shape[1]}")
    return logits[:, list(classes)]


def place_among(targets: npt.NDArray[np.integer[Any]], classes: Sequence[int], name: str) -> IntArray:
    """Return targets (N,), class indices, counted among some of the classes.

    Raises:
        InvalidInput: A target is none of `classes`.
    """
    place = np.full(max(*classes, int(targets.max(initial=0))) + 1, -1)
    place[list(classes)] = np.arange(len(classes))
    found: IntArray = place[targets]
    if (found < 0).any():
        raise InvalidInput(f"{name}: class {int(targets[np.argmax(found < 0)])} is none of the {len(classes)} of this "
                           "set", "remove the folder of that class")
    return found


def bytes_per_image(classes: int) -> int:
    """Return how much room the outcomes of an image take, stored."""
    one = outcomes(np.zeros((1, classes), np.float32), np.zeros(1, np.int64))
    return sum(int(getattr(one, name).nbytes) for name in _PER_IMAGE)


def joined(parts: Sequence[Outcomes]) -> Outcomes:
    """Return the outcomes of all parts, one after the other.

    Raises:
        ValueError: No parts, or parts with different numbers of classes or kinds of outputs.
    """
    classes, kinds = {part.classes for part in parts}, {part.kind for part in parts}
    if len(classes) != 1 or len(kinds) != 1:
        raise ValueError(f"expected parts of the same number of classes, got {sorted(classes)}, {sorted(kinds)}")
    return Outcomes(classes=classes.pop(), kind=kinds.pop(), **{
        name: np.concatenate([getattr(part, name) for part in parts]) for name in _PER_IMAGE})


def _outcomes(logits: Logits, targets: IntArray, kind: OutputKind) -> Outcomes:
    rows = np.arange(len(logits))
    shifted, top = minus_largest(logits), _largest(logits, TOP)
    largest = logits[rows, top[:, 0]].astype(np.float64)
    if kind == "sigmoid_scores":
        unknown = np.full(len(rows), np.nan)
        confidence, nll, brier, entropy, energy = largest, unknown, unknown, unknown, unknown
        runner_up = logits[rows, top[:, 1]].astype(np.float64) if logits.shape[1] > 1 else np.zeros(len(rows))
    else:
        residual = np.exp(shifted)
        # What already is a logarithm of a probability needs no dividing.
        total = residual.sum(axis=1) if kind == "logits" else np.exp(-largest)
        residual /= total[:, None]
        log_total = np.log(total) if kind == "logits" else -largest
        runner_up = residual[rows, top[:, 1]] if logits.shape[1] > 1 else np.zeros(len(rows))
        # Both terms are 0 or more, and a probability of 0 adds nothing; -sum(p ln p) would take its logarithm.
        entropy = log_total * (1.0 if kind == "logits" else residual.sum(axis=1)) \
            - np.einsum("nk,nk->n", residual, np.where(residual > 0.0, shifted, 0.0))
        # Subtract the one-hot target before squaring: sum(p^2) - 2 p_y + 1 cancels and can come out below zero.
        residual[rows, targets] -= 1.0
        brier = np.einsum("nk,nk->n", residual, residual)
        confidence = (1.0 / total).clip(max=1.0)
        # Rounding may take a probability past 1.
        nll = log_total - shifted[rows, targets] if kind == "logits" else \
            (log_total - shifted[rows, targets]).clip(min=0.0)
        energy = largest + log_total
    return Outcomes(
        predicted=top[:, 0].astype(np.int64),
        confidence=confidence,
        correct=top[:, 0] == targets,
        in_top5=(top == targets[:, None]).any(axis=1),
        nll=nll,
        brier=brier,
        energy=energy,
        max_logit=largest,
        entropy=entropy,
        runner_up=runner_up,
        top5=top,
        classes=logits.shape[1],
        kind=kind,
    )


def _largest(logits: Logits, count: int) -> npt.NDArray[np.int32]:
    """Return the classes of the min(count, K) largest logits (N, min(count, K)), the lowest index first on ties."""
    rows = np.arange(len(logits))
    # What is taken is marked by -inf: a logit of -inf must stay above it.
    left = np.maximum(logits, np.finfo(logits.dtype).min)
    top = np.empty((len(logits), min(count, logits.shape[1])), np.int32)
    # So few rounds are faster than any sort, and argmax keeps the rule for ties.
    for place in range(top.shape[1]):
        top[:, place] = left.argmax(axis=1)
        left[rows, top[:, place]] = -np.inf
    return top


def reliability_bins(confidence: FloatArray, correct: BoolArray, bins: int = BINS) -> Bins:
    """Return count, mean confidence and accuracy of equal-width confidence bins, lowest confidence first.

    Bin k holds the images with k/bins < confidence <= (k+1)/bins: left-open, right-closed, so that 1.0 falls into the
    last bin. A confidence of exactly 0 goes to the first.

    Args:
        confidence: Top-label confidence (N,), 0 to 1.
        correct: Whether the top label is right (N,).
        bins: How many.

    Raises:
        ValueError: No images, shapes that differ, a confidence outside 0 to 1, or fewer than one bin.
    """
    refuse_unfit(confidence, correct, bins)
    return placed_bins(bin_places(confidence, bins), confidence, correct, bins)


def placed_bins(place: IntArray, confidence: FloatArray, correct: BoolArray, bins: int = BINS) -> Bins:
    """Return `reliability_bins` of images whose bins are known (N,), as those of a resample are."""
    sums = Sums(*(np.bincount(place, weights, minlength=bins).astype(np.float64)
                  for weights in (None, confidence, correct)))
    filled = sums.n > 0
    return Bins(n=sums.n.astype(np.int64),
                confidence=np.divide(sums.confidence, sums.n, out=np.full(bins, np.nan), where=filled),
                accuracy=np.divide(sums.correct, sums.n, out=np.full(bins, np.nan), where=filled))


def ece_equal_width(confidence: FloatArray, correct: BoolArray, bins: int = BINS) -> float:
    """Return the expected calibration error over equal-width bins, as a fraction.

    The sum over bins of n_b/N |mean confidence - accuracy|, with the bins of `reliability_bins`; empty bins add 0.
    Biased upwards, more so for fewer images: see `null_ece`.

    Args:
        confidence: Top-label confidence (N,), 0 to 1.
        correct: Whether the top label is right (N,).
        bins: How many.

    Raises:
        ValueError: As for `reliability_bins`.

    Source:
        Guo et al. 2017 (arXiv:1706.04599), equation 3, with the bin edges of the Beyond-ImageNet-Accuracy code.
    """
    return binned_error(reliability_bins(confidence, correct, bins))


def binned_error(bins: Bins) -> float:
    """Return the mean gap between confidence and accuracy of bins, weighted by their images; empty bins add 0."""
    filled = bins.n > 0
    gap = np.abs(bins.confidence[filled] - bins.accuracy[filled])
    return float(np.dot(bins.n[filled], gap) / bins.n.sum())


def ece_equal_mass(confidence: FloatArray, correct: BoolArray, bins: int = BINS) -> float:
    """Return the expected calibration error over bins that hold equally many images, as a fraction.

    Images are sorted by confidence (stable: ties keep image order, and may straddle two bins) and cut into bins whose
    sizes differ by at most one, larger ones first. With fewer images than bins every image is its own bin.

    Args:
        confidence: Top-label confidence (N,), 0 to 1.
        correct: Whether the top label is right (N,).
        bins: How many.

    Raises:
        ValueError: As for `reliability_bins`.

    Source:
        Nguyen & O'Connor 2015 (arXiv:1508.05154), "adaptive binning"; Roelofs et al. 2022 (arXiv:2012.08668).
    """
    return mass_error(equal_mass(confidence, correct, bins))


def mass_error(sums: Sums) -> float:
    """Return `ece_equal_mass` from the totals of its bins, which several estimators share."""
    return float(np.abs(sums.confidence - sums.correct).sum() / sums.n.sum())


def ece_debiased_l2_squared(confidence: FloatArray, correct: BoolArray, bins: int = BINS) -> float:
    """Return the debiased squared L2 calibration error, with its sign kept: centred on 0 for a calibrated model.

    The sum over equal-mass bins (those of `ece_equal_mass`) of n_b/N [(c_b - a_b)^2 - a_b(1 - a_b)/(n_b - 1)], where
    c_b is the mean confidence of bin b and a_b its accuracy.

    Args:
        confidence: Top-label confidence (N,), 0 to 1.
        correct: Whether the top label is right (N,).
        bins: How many.

    Raises:
        ValueError: Fewer than two images per bin, or as for `reliability_bins`.

    Source:
        Kumar et al. 2019 (arXiv:1909.10155), the debiased estimator; Bröcker 2012; Ferro & Fricker 2012.
    """
    return debiased_l2_squared(equal_mass(confidence, correct, bins))


def debiased_l2_squared(sums: Sums) -> float:
    """Return `ece_debiased_l2_squared` from the totals of its bins."""
    _refuse_single(sums)
    gap, hit = (sums.confidence - sums.correct) / sums.n, sums.correct / sums.n
    noise = hit * (1.0 - hit) / (sums.n - 1.0)
    return float(np.dot(sums.n, gap**2 - noise) / sums.n.sum())


def ece_debiased_l2(confidence: FloatArray, correct: BoolArray, bins: int = BINS) -> float:
    """Return the debiased L2 calibration error, as a fraction: the root of `ece_debiased_l2_squared`, or 0 below 0.

    Args:
        confidence: Top-label confidence (N,), 0 to 1.
        correct: Whether the top label is right (N,).
        bins: How many.

    Raises:
        ValueError: As for `ece_debiased_l2_squared`.
    """
    return debiased_l2(equal_mass(confidence, correct, bins))


def debiased_l2(sums: Sums) -> float:
    """Return `ece_debiased_l2` from the totals of its bins."""
    return math.sqrt(max(0.0, debiased_l2_squared(sums)))


def ece_debiased_l1(confidence: FloatArray, correct: BoolArray, bins: int = BINS) -> float:
    """Return the debiased L1 calibration error, as a fraction; it may fall below 0.

    Twice the equal-mass ECE minus its mean when every bin's accuracy a_b is drawn anew from a normal distribution with
    mean a_b and variance a_b(1 - a_b)/n_b. The published estimator averages 1,000 such draws; here that mean is the
    exact one of the folded normal distribution, so the result does not depend on a seed.

    Debiased to first order only: of the bias that `ece_equal_mass` has for a calibrated model, 2 - sqrt(2) = 59 % is
    left. Use `ece_debiased_l2_squared` to ask whether the error is 0 at all.

    Args:
        confidence: Top-label confidence (N,), 0 to 1.
        correct: Whether the top label is right (N,).
        bins: How many.

    Raises:
        ValueError: Fewer than two images per bin, or as for `reliability_bins`.

    Source:
        Kumar et al. 2019 (arXiv:1909.10155), as `normal_debiased_ce` in their package uncertainty-calibration.
    """
    return debiased_l1(equal_mass(confidence, correct, bins))


def debiased_l1(sums: Sums) -> float:
    """Return `ece_debiased_l1` from the totals of its bins."""
    _refuse_single(sums)
    gap, hit = (sums.confidence - sums.correct) / sums.n, sums.correct / sums.n
    deviation = np.sqrt(hit * (1.0 - hit) / sums.n)
    expected = [_mean_of_folded_normal(mean, spread) for mean, spread in zip(gap, deviation, strict=True)]
    return float(np.dot(sums.n, 2.0 * np.abs(gap) - expected) / sums.n.sum())


def signed_gap(confidence: FloatArray, correct: BoolArray) -> float:
    """Return mean confidence minus accuracy, as a fraction: above 0 over-confident, below 0 under-confident.

    Args:
        confidence: Top-label confidence (N,), 0 to 1.
        correct: Whether the top label is right (N,).

    Raises:
        ValueError: No images, shapes that differ, or a confidence outside 0 to 1.
    """
    refuse_unfit(confidence, correct, 1)
    return float(confidence.mean() - correct.mean())


def null_ece(confidence: FloatArray, draws: int = 200, seed: int = 0, bins: int = BINS) -> tuple[float, float]:
    """Return mean and 97.5 % point of the equal-width ECE that a calibrated model with these confidences would show.

    Correctness is drawn `draws` times as independent Bernoulli(confidence). Whatever `ece_equal_width` reports up to
    the 97.5 % point is what chance alone gives to a model whose true calibration error is 0.

    Args:
        confidence: Top-label confidence (N,), 0 to 1.
        draws: Simulated label sets.
        seed: Of the draws; the same seed gives the same numbers.
        bins: How many.

    Raises:
        ValueError: Fewer than one draw, or as for `reliability_bins`.
    """
    if draws < 1:
        raise ValueError(f"expected at least 1 draw, got {draws}")
    refuse_unfit(confidence, confidence, bins)
    place = bin_places(confidence, bins)
    by_bin = np.argsort(place, kind="stable")
    ordered = confidence[by_bin]
    occupied, starts = np.unique(place[by_bin], return_index=True)
    expected = np.bincount(place, weights=confidence, minlength=bins)[occupied]
    generator = np.random.default_rng(seed)
    errors = np.empty(draws)
    for draw in range(draws):
        hits = np.add.reduceat(generator.random(ordered.size) < ordered, starts, dtype=np.int64)
        errors[draw] = np.abs(expected - hits).sum() / ordered.size
    return float(errors.mean()), quantile(errors, 0.975)


def flips(correct_reference: BoolArray, correct: BoolArray) -> tuple[int, int]:
    """Return (negative, positive): images that turned from right to wrong, and from wrong to right.

    Args:
        correct_reference: Whether the reference is right (N,).
        correct: Whether the variant is right on the same images (N,).

    Raises:
        ValueError: No images, or shapes that differ.
    """
    _refuse_unpaired(correct_reference, correct)
    return int(np.count_nonzero(correct_reference & ~correct)), int(np.count_nonzero(~correct_reference & correct))


def divergences(logits_reference: Logits, logits: Logits) -> Divergences:
    """Return how far a variant's outputs are from the reference's, image by image.

    Args:
        logits_reference: Of the reference (N, K).
        logits: Of the variant on the same images (N, K).

    Raises:
        ValueError: No images, or shapes that differ.
        InvalidInput: A logit is NaN or +inf, or all of an image are -inf.
    """
    _refuse_unpaired(logits_reference, logits)
    _refuse_broken(logits_reference)
    _refuse_broken(logits)
    parts = [_divergences(logits_reference[rows], logits[rows]) for rows in row_blocks(len(logits))]
    return Divergences(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def js_divergences(logits_reference: Logits, others: Sequence[Logits]) -> FloatArray:
    """Return how far each of several outputs is from the same reference's, image by image, in nats (len(others), N).

    The Jensen-Shannon divergence of `divergences` alone, with the reference's probabilities computed once for all.

    Args:
        logits_reference: Of the reference (N, K).
        others: Each of the same images (N, K).

    Raises:
        ValueError: No images, or shapes that differ.
        InvalidInput: A logit is NaN or +inf, or all of an image are -inf.
    """
    for logits in (logits_reference, *others):
        _refuse_unpaired(logits_reference, logits)
        _refuse_broken(logits)
    found = np.empty((len(others), len(logits_reference)))
    for rows in row_blocks(len(logits_reference)):
        reference = log_softmax(logits_reference[rows])
        of_reference = np.exp(reference)
        for place, logits in enumerate(others):
            variant = log_softmax(logits[rows])
            ratio = _less(variant, reference)
            found[place, rows] = _js(of_reference, np.exp(variant, out=variant), ratio)
    return found


def _divergences(logits_reference: Logits, logits: Logits) -> Divergences:
    reference, variant = log_softmax(logits_reference), log_softmax(logits)
    ratio = _less(variant, reference)
    of_reference, of_variant = np.exp(reference, out=reference), np.exp(variant, out=variant)
    # A class that the reference excludes adds nothing; one that the variant alone excludes makes it infinite.
    kl: FloatArray = -(of_reference * np.where(of_reference > 0.0, ratio, 0.0)).sum(axis=1)
    change = np.abs(_less(logits.astype(np.float64), logits_reference.astype(np.float64)))
    # Rounding takes nearly equal logits to -1e-17 and the like.
    return Divergences(kl.clip(min=0.0), _js(of_reference, of_variant, ratio), change.mean(axis=1), change.max(axis=1))


def _less(values: FloatArray, others: FloatArray) -> FloatArray:
    """Return the difference of two arrays, 0 where they are equal: -inf less -inf would be NaN."""
    return np.subtract(values, others, out=np.zeros(values.shape), where=values != others)


def _js(of_reference: FloatArray, of_variant: FloatArray, ratio: FloatArray) -> FloatArray:
    """Return the divergence (N,) of probabilities (N, K) and the logarithms of their ratio, variant over reference."""
    # With the mixture m and r = log(q/p), log(p/m) is ln 2 - ln(1 + e^r), and log(q/m) the same of -r. Neither takes a
    # logarithm of m, which may be 0, and equal probabilities give 0 up to one rounding.
    both = np.abs(ratio)
    np.negative(both, out=both)
    np.log1p(np.exp(both, out=both), out=both)
    np.subtract(math.log(2.0), both, out=both)
    # A probability of 0 adds nothing, though the ratio is infinite there.
    of_one, of_other = (np.where(shares > 0.0, signed, 0.0) for shares, signed in (
        (of_reference, both - np.maximum(ratio, 0.0)), (of_variant, both + np.minimum(ratio, 0.0))))
    js: FloatArray = (np.einsum("nk,nk->n", of_reference, of_one) + np.einsum("nk,nk->n", of_variant, of_other)) / 2.0
    return js.clip(0.0, math.log(2.0))


def distinct_values(logits: Logits, most: int = MOST_DISTINCT) -> int:
    """Return how many different values there are among all logits (N, K); `most` where there are as many or more.

    An output tensor of 8 bits has at most 256, one of 16 bits 65,536.
    """
    seen = np.empty(0, logits.dtype)
    for rows in row_blocks(len(logits)):
        seen = np.union1d(seen, logits[rows])
        if seen.size >= most:
            return most
    return int(seen.size)


def minus_largest(logits: Logits) -> FloatArray:
    """Return logits in float64 (N, K), less each row's largest: the softmax is the same, and no power overflows."""
    wide: FloatArray = logits.astype(np.float64)
    wide -= wide.max(axis=1, keepdims=True)
    return wide


def row_blocks(n: int) -> Iterator[slice]:
    """Return slices that cover `n` rows in order, small enough for float64 copies of a thousand classes."""
    return (slice(start, start + _ROWS) for start in range(0, n, _ROWS))


def bin_places(confidence: FloatArray, bins: int = BINS) -> IntArray:
    """Return the bin of `reliability_bins`, counted from 0, that each confidence (N,) falls into."""
    # Searching the right edges from the left puts a confidence that equals an edge below that edge. Multiplying by
    # `bins` and rounding up would misplace confidences within one rounding error of an edge.
    return np.searchsorted(np.arange(1, bins + 1) / bins, confidence, side="left")


def equal_mass(confidence: FloatArray, correct: BoolArray, bins: int = BINS) -> Sums:
    """Return the totals of the bins of `ece_equal_mass`, lowest confidence first.

    Args:
        confidence: Top-label confidence (N,), 0 to 1.
        correct: Whether the top label is right (N,).
        bins: How many.

    Raises:
        ValueError: As for `reliability_bins`.
    """
    refuse_unfit(confidence, correct, bins)
    edges = equal_mass_edges(confidence.size, min(bins, confidence.size))
    order = np.argsort(confidence, kind="stable")
    return Sums(np.diff(edges).astype(np.float64), np.add.reduceat(confidence[order], edges[:-1]),
                np.add.reduceat(correct[order], edges[:-1], dtype=np.float64))


@lru_cache(maxsize=256)
def equal_mass_edges(n: int, bins: int) -> IntArray:
    """Return where bins of equally many of `n` images begin and end (bins + 1,): larger ones first; not to be changed.

    The same for every resample, so kept.
    """
    smaller, larger = divmod(n, bins)
    edges = np.arange(bins + 1) * smaller + np.minimum(np.arange(bins + 1), larger)
    edges.flags.writeable = False
    return edges


def _refuse_single(sums: Sums) -> None:
    if sums.n.min() < 2:
        raise ValueError(f"expected at least 2 images in each bin to debias, got {int(sums.n.sum())} images in all")


def _mean_of_folded_normal(mean: float, spread: float) -> float:
    """Return E|X| for X ~ N(mean, spread^2)."""
    if spread == 0.0:
        return abs(mean)
    scaled = mean / (spread * math.sqrt(2.0))
    return spread * math.sqrt(2.0 / math.pi) * math.exp(-scaled * scaled) + mean * math.erf(scaled)


def refuse_unlabelled(logits: Logits, targets: npt.NDArray[np.integer[Any]]) -> None:
    """Raise what `outcomes` says it raises where logits (N, K) and targets (N,) are no labelled images."""
    if logits.ndim != 2 or targets.shape != logits.shape[:1] or logits.size == 0:
        raise ValueError(f"expected logits (N, K) and targets (N,) of at least one image, "
                         f"got {logits.shape} and {targets.shape}")
    if targets.min() < 0 or targets.max() >= logits.shape[1]:
        raise ValueError(f"expected targets between 0 and {logits.shape[1] - 1}, "
                         f"got {targets.min()} to {targets.max()}")
    _refuse_broken(logits)


def refuse_unfit(confidence: FloatArray, correct: npt.NDArray[Any], bins: int = 1) -> None:
    """Raise what `reliability_bins` says it raises."""
    _refuse_unpaired(confidence, correct)
    # Written so that NaN is refused too.
    if not (confidence.min() >= 0.0 and confidence.max() <= 1.0):
        raise ValueError(f"expected confidences between 0 and 1, got {confidence.min()} to {confidence.max()}")
    if bins < 1:
        raise ValueError(f"expected at least 1 bin, got {bins}")


def _refuse_unpaired(first: npt.NDArray[Any], second: npt.NDArray[Any]) -> None:
    if first.shape != second.shape or first.size == 0:
        raise ValueError(f"expected two arrays over the same images, at least one, got {first.shape} "
                         f"and {second.shape}")


def _refuse_broken(logits: Logits) -> None:
    count = sum(int(np.count_nonzero(broken(logits[rows]))) for rows in row_blocks(len(logits)))
    if count:
        raise InvalidInput(f"expected outputs that are numbers, got NaN or infinity for {count} of "
                           f"{len(logits)} images", "measure again with --force: such images are named there")


def broken(rows: npt.NDArray[Any]) -> BoolArray:
    """Return which images' outputs (N, …) hold NaN or +inf, or nothing but -inf (N,): they have no answer."""
    flat = rows.reshape(len(rows), -1)
    return np.asarray(np.isnan(flat).any(axis=1) | (flat == np.inf).any(axis=1) | (flat == -np.inf).all(axis=1))
