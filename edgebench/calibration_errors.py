"""Calibration beyond the mean gap in 15 bins: smooth, swept, largest gap, class by class, and the Brier score's parts.

Arrays in, numbers out, as fractions. The binned errors of the top label are in `edgebench.metrics`.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from edgebench.metrics import (
    BINS,
    Bins,
    BoolArray,
    Logits,
    OutputKind,
    equal_mass_edges,
    probabilities,
    refuse_unfit,
    refuse_unlabelled,
    reliability_bins,
    row_blocks,
)
from edgebench.stats import FloatArray

MIN_IMAGES_PER_BIN = 50
"""Below that a bin's accuracy is known to no better than some 14 points: its gap is mostly noise."""
SWEEP_BINS = 100
"""Where `ece_sweep` stops: only confidences that separate right from wrong almost perfectly get there."""
LIKELY = 1e-3
"""Probabilities up to this are left out of the thresholded class-wise error."""
_GRID = 1024
_SQUARES = np.arange(_GRID + 1, dtype=np.float64) ** 2
_STEPS = 4096
_GUESSES = 8
# A damping of e^-50 is nothing beside the rounding of what is left undamped.
_NEGLIGIBLE = 50.0


class ClasswiseErrors(NamedTuple):
    """Class-wise calibration errors, as fractions."""

    every: float
    """Over all probabilities."""
    likely: float
    """Over the probabilities above the threshold; NaN where there are none."""


class BrierParts(NamedTuple):
    """What the Brier score of the top label is made of: reliability - resolution + uncertainty + within bins."""

    reliability: float
    """Mean squared gap between a bin's mean confidence and its accuracy: 0 is calibrated."""
    resolution: float
    """Mean squared distance of a bin's accuracy from the overall one: how well confidence sorts right from wrong."""
    uncertainty: float
    """Variance of being right: what a model has that always states its accuracy."""
    within_bins: float
    """What bins hide: variance of confidence within them, less twice its covariance with being right."""


def smece(confidence: FloatArray, correct: BoolArray) -> float:
    """Return the smooth calibration error, as a fraction.

    Residuals (confidence - correct) are smoothed along the confidence axis by a Gaussian kernel of width s, reflected
    at 0 and 1, and the absolute value is integrated. The error is the s for which that integral is s itself: falling
    in s, the integral meets it exactly once. It is a consistent measure: unlike binned errors it changes continuously
    with the confidences, and needs no number of bins.

    Residuals are first shared out linearly among 1,025 grid points, where the reflected kernel is a factor
    exp(-(pi k s)^2/2) on the k-th cosine; the fixed point is interpolated between the two neighbouring multiples of
    1/4096 that enclose it. Both together are good to about 1e-5.

    Args:
        confidence: Top-label confidence (N,), 0 to 1.
        correct: Whether the top label is right (N,).

    Raises:
        ValueError: No images, shapes that differ, or a confidence outside 0 to 1.

    Source:
        Błasiok & Nakkiran 2023 (arXiv:2309.12236). Their package relplot 1.0.3 counts only half of the residuals in
        the first and last of its grid cells, and so returns 5 % more than the definition where many confidences are
        next to 1; elsewhere the two agree.
    """
    refuse_unfit(confidence, correct)
    spectrum = _residual_spectrum(confidence, correct)
    low, high = 0, _STEPS
    above, below = _excess(spectrum, 0.0), _excess(spectrum, 1.0)
    # The integral falls with the width: at a width above the fixed point, it is itself a width below it.
    guess = below + 1.0
    evaluated = 0
    while high - low > 1:
        middle = min(max(round(guess * _STEPS), low + 1), high - 1) if evaluated < _GUESSES else (low + high) // 2
        evaluated += 1
        excess = _excess(spectrum, middle / _STEPS)
        if excess > 0.0:
            slope = (excess - above) * _STEPS / (middle - low)
            low, above = middle, excess
        else:
            slope = (below - excess) * _STEPS / (high - middle)
            high, below = middle, excess
        # Along the chord to the end that was replaced: bent upwards, the integral is met from the left, fast.
        guess = middle / _STEPS - excess / slope
    # At most 0 at 1, up to rounding.
    return (low + above / (above - min(below, 0.0))) / _STEPS


def _residual_spectrum(confidence: FloatArray, correct: BoolArray) -> FloatArray:
    """Return the cosine transform of the residuals per image on the grid (_GRID + 1,)."""
    place = confidence * _GRID
    left = np.minimum(place.astype(np.int64), _GRID - 1)
    residual = (confidence - correct) / confidence.size
    to_the_right = residual * (place - left)
    mass: FloatArray = np.bincount(left, residual - to_the_right, minlength=_GRID + 1).astype(np.float64)
    mass[1:] += np.bincount(left, to_the_right, minlength=_GRID)
    # Reflection is periodicity of the mirrored row; an end coincides with its own mirror image.
    mass[[0, -1]] *= 2.0
    spectrum: FloatArray = np.fft.rfft(np.concatenate((mass, mass[-2:0:-1]))).real
    return spectrum


def _excess(spectrum: FloatArray, width: float) -> float:
    """Return the integral of the absolute smoothed residual, less the kernel's width."""
    scale = 0.5 * (math.pi * width) ** 2
    count = _GRID + 1 if scale * _GRID ** 2 < _NEGLIGIBLE else math.isqrt(int(_NEGLIGIBLE / scale)) + 2
    damped = spectrum[:count] * np.exp(-scale * _SQUARES[:count])
    smoothed = np.abs(np.fft.irfft(damped, 2 * _GRID)[:_GRID + 1])
    return float(smoothed.sum() - (smoothed[0] + smoothed[-1]) / 2.0) - width


def ece_sweep(confidence: FloatArray, correct: BoolArray, most: int = SWEEP_BINS) -> float:
    """Return the calibration error over as many equal-mass bins as leave accuracy rising with confidence.

    The bins are those of `edgebench.metrics.ece_equal_mass`. Their number counts up from 1, and stops before the first
    at which some bin has a lower accuracy than the one below it, at N, or at `most`.

    Args:
        confidence: Top-label confidence (N,), 0 to 1.
        correct: Whether the top label is right (N,).
        most: Largest number of bins tried; the published estimator has no such limit.

    Raises:
        ValueError: No images, shapes that differ, or a confidence outside 0 to 1.

    Source:
        Roelofs et al. 2022 (arXiv:2012.08668), algorithm 1.
    """
    refuse_unfit(confidence, correct)
    n, order = confidence.size, np.argsort(confidence, kind="stable")
    hits = np.concatenate(([0], np.cumsum(correct[order])))
    kept = np.array([0, n])
    # Without both right and wrong answers all gaps have one sign, and any number of bins gives the same.
    for bins in range(2, min(most, n) + 1) if 0 < hits[-1] < n else ():
        edges = equal_mass_edges(n, bins)
        at_edges = hits[edges]
        share = (at_edges[1:] - at_edges[:-1]) / (edges[1:] - edges[:-1])
        if (share[1:] < share[:-1]).any():
            break
        kept = edges
    sums = np.concatenate(([0.0], np.cumsum(confidence[order])))
    return float(np.abs(np.diff(sums[kept]) - np.diff(hits[kept])).sum() / n)


def mce(confidence: FloatArray, correct: BoolArray, bins: int = BINS, at_least: int = MIN_IMAGES_PER_BIN) -> float:
    """Return the largest gap between mean confidence and accuracy of any bin of `at_least` images; NaN without one.

    Args:
        confidence: Top-label confidence (N,), 0 to 1.
        correct: Whether the top label is right (N,).
        bins: How many bins of equal width, those of `edgebench.metrics.reliability_bins`.
        at_least: Images that a bin must hold to count.

    Raises:
        ValueError: As for `edgebench.metrics.reliability_bins`.
    """
    return largest_gap(reliability_bins(confidence, correct, bins), at_least)


def largest_gap(bins: Bins, at_least: int = MIN_IMAGES_PER_BIN) -> float:
    """Return the largest gap between mean confidence and accuracy of any bin of `at_least` images; NaN without one."""
    counted = bins.n >= at_least
    return float(np.abs(bins.confidence - bins.accuracy)[counted].max()) if counted.any() else math.nan


def brier_parts(bins: Bins, brier: float) -> BrierParts:
    """Return the decomposition of the top label's Brier score by confidence bins.

    Args:
        bins: Those of `edgebench.metrics.reliability_bins`.
        brier: Mean over the same images of (confidence - correct)^2: the score of "is the top label right?", not of
            all classes.

    Source:
        Murphy 1973, Journal of Applied Meteorology 12:595, with each bin's mean confidence as its forecast; rest within
        bins as in Stephenson, Coelho & Jolliffe 2008, Weather and Forecasting 23:752.
    """
    filled = bins.n > 0
    share, confidence, accuracy = bins.n[filled] / bins.n.sum(), bins.confidence[filled], bins.accuracy[filled]
    overall = float(np.dot(share, accuracy))
    reliability = float(np.dot(share, (confidence - accuracy) ** 2))
    resolution = float(np.dot(share, (accuracy - overall) ** 2))
    uncertainty = overall * (1.0 - overall)
    return BrierParts(reliability, resolution, uncertainty, brier - (reliability - resolution + uncertainty))


def classwise(logits: Logits, targets: npt.NDArray[np.integer[Any]], bins: int = BINS,
              threshold: float = LIKELY, kind: OutputKind = "logits") -> ClasswiseErrors:
    """Return the calibration error of all K probabilities of each image, not of the largest alone.

    For each class, images are put into equal-width bins (low, high] of that class's probability. `every` is
    1/(N K) sum_k sum_b |sum of probabilities - images of class k| over the images in bin b of class k. With many
    classes nearly all probabilities are next to 0 and the error with them; `likely` is the same sum over the
    probabilities above `threshold` alone, divided by their number.

    Reads the logits in row blocks: the memory needed does not grow with N.

    Args:
        logits: (N, K), of any float type.
        targets: (N,).
        bins: How many.
        threshold: Of `likely`, above 0 and below 1/`bins`.
        kind: What the logits are.

    Raises:
        ValueError: As for `edgebench.metrics.outcomes`, or a threshold beyond the first bin.
        InvalidInput: A logit is NaN or +inf, or all of an image are -inf.

    Source:
        Kull et al. 2019 (arXiv:1910.12656), class-wise ECE; threshold as in Nixon et al. 2019 (arXiv:1904.01685).
    """
    refuse_unlabelled(logits, targets)
    if not 0.0 < threshold < 1.0 / bins:
        raise ValueError(f"expected a threshold above 0 and below 1/{bins}, got {threshold}")
    (n, classes), edges = logits.shape, np.arange(1, bins + 1) / bins
    likely, unlikely, count = np.zeros(bins * classes), np.zeros(classes), 0
    for rows in row_blocks(n):
        excess = probabilities(logits[rows], kind)
        # Few probabilities are above the threshold; the rest all lie in the first bin, and only their sum matters.
        image, column = np.nonzero(excess > threshold)
        cell = np.searchsorted(edges, excess[image, column], side="left").clip(max=bins - 1) * classes + column
        excess[np.arange(len(excess)), targets[rows]] -= 1.0
        likely += np.bincount(cell, excess[image, column], minlength=likely.size)
        excess[image, column] = 0.0
        unlikely += excess.sum(axis=0)
        count += cell.size
    whole = likely.copy()
    whole[:classes] += unlikely
    return ClasswiseErrors(every=float(np.abs(whole).sum() / (n * classes)),
                           likely=float(np.abs(likely).sum() / count) if count else math.nan)
