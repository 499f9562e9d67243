"""Temperature scaling: how much of a miscalibration is one number wrong? Arrays in, numbers out.

Dividing all logits by one temperature T changes no answer, only how sure it is. T is fitted on one half of the images
and applied to the other, both ways round, so that no image is scored with a temperature that it helped to choose.

Source:
    Guo et al. 2017 (arXiv:1706.04599), section 4.2.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgebench.metrics import Logits, minus_largest, refuse_unlabelled, row_blocks
from edgebench.stats import FloatArray, IntArray

SPAN = (1e-3, 1e3)
"""Temperatures considered. A best one outside means that there is none: see `fit`."""
_SAMPLE = 4096
_TOLERANCE = 1e-6
# Newton's step squares the error: once a step is below this, what is left is rounding.
_STEPS = 100
_LARGEST_STEP = 8.0
_LARGEST_MOVE = math.log(SPAN[1])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Temperatures:
    """The temperatures of both halves, and what is needed to resample them."""

    half: IntArray
    """0 or 1: which half each image is in (N,)."""
    fitted: FloatArray
    """Temperature with the least mean NLL on each half (2,)."""
    slope: FloatArray
    """Derivative of each image's NLL by 1/T at the fitted temperature of its own half (N,); its mean there is 0."""
    curvature: FloatArray
    """Second derivative, likewise (N,)."""

    @property
    def value(self) -> float:
        """The geometric mean of both: above 1 where the model is over-confident."""
        return float(np.exp(np.log(self.fitted).mean()))

    @property
    def unseen(self) -> FloatArray:
        """For each image, the temperature that the other half chose (N,)."""
        return self.fitted[1 - self.half]

    def resampled(self, indices: IntArray) -> float:
        """Return `value` for a resample of the images: one Newton step from the fitted temperatures, NaN if it fails.

        Fitting anew would read all logits again. The step errs by the square of how far a resample moves T.
        """
        half, slope, curvature = self.half[indices], self.slope[indices], self.curvature[indices]
        slopes, curvatures = (np.bincount(half, part, minlength=2) for part in (slope, curvature))
        if curvatures.min() <= 0.0:
            return math.nan
        # By log(1/T) the slope is 1/T times as large and the curvature 1/T^2 times; a slope above 0 asks for more T.
        step = np.clip(self.fitted * slopes / curvatures, -_LARGEST_MOVE, _LARGEST_MOVE)
        return float(np.exp((np.log(self.fitted) + step).mean()))


def halves(ids: npt.NDArray[np.str_]) -> IntArray:
    """Return 0 or 1 per image (N,): one bit of the SHA-256 of its id, so the same in every run and on every machine."""
    names = (str(name).encode(errors="surrogateescape") for name in ids)
    return np.array([hashlib.sha256(name).digest()[0] & 1 for name in names], dtype=np.int64)


def fit(logits: Logits, targets: npt.NDArray[np.integer[Any]], half: IntArray) -> Temperatures | None:
    """Return the temperature with the least mean NLL on each half of the images, or None where a half has none.

    There is none where a half is empty; where every target has the largest logit, so that the NLL falls for ever with
    T; where targets have no larger logits than the average class, so that it falls for ever with 1/T; or where it lies
    outside `SPAN`; or where a target is excluded (-inf), for its NLL is infinite at every T. Else the mean NLL, convex
    in 1/T, has one minimum: Newton's method, kept inside a bracket, finds it.

    The logarithms of a softmax serve as well as its logits: they differ by a number per image, which cancels.

    Args:
        logits: (N, K), of any float type.
        targets: (N,).
        half: 0 or 1 per image (N,).

    Raises:
        ValueError: As for `edgebench.metrics.outcomes`, or shapes that differ.
        InvalidInput: A logit is NaN or +inf, or all of an image are -inf.
    """
    refuse_unlabelled(logits, targets)
    if half.shape != targets.shape:
        raise ValueError(f"expected a half for each of {targets.size} images, got {half.shape}")
    if not _has_minimum(logits, targets, half):
        return None
    start = np.ones(2)
    step = len(targets) // _SAMPLE
    if step > 1 and (rough := _minimize(logits[::step], targets[::step], half[::step], start)):
        start = 1.0 / rough.fitted
    return _minimize(logits, targets, half, start)


def scaled(logits: Logits, targets: npt.NDArray[np.integer[Any]], temperature: FloatArray,
           ) -> tuple[FloatArray, FloatArray]:
    """Return (confidence, NLL in nats) of each image (N,) after its logits are divided by its temperature (N,)."""
    parts = []
    for rows in row_blocks(len(logits)):
        powers = minus_largest(logits[rows]) / temperature[rows, None]
        of_target = powers[np.arange(len(powers)), targets[rows]]
        total = np.exp(powers, out=powers).sum(axis=1)
        parts.append((1.0 / total, np.log(total) - of_target))
    confidence, nll = zip(*parts, strict=True)
    return np.concatenate(confidence), np.concatenate(nll)


def _has_minimum(logits: Logits, targets: npt.NDArray[np.integer[Any]], half: IntArray) -> bool:
    of_target, gain = np.empty(len(logits)), np.empty(len(logits))
    for rows in row_blocks(len(logits)):
        shifted = minus_largest(logits[rows])
        of_target[rows] = shifted[np.arange(len(shifted)), targets[rows]]
        allowed = shifted > -np.inf
        # However high the temperature, an excluded class has no share.
        gain[rows] = of_target[rows] - np.where(allowed, shifted, 0.0).sum(axis=1) / allowed.sum(axis=1)
    if not np.isfinite(of_target).all():
        return False
    wrong, gains = (np.bincount(half, part, minlength=2) for part in (of_target < 0.0, gain))
    return bool(wrong.min() > 0 and gains.min() > 0.0)


def _minimize(logits: Logits, targets: npt.NDArray[np.integer[Any]], half: IntArray,
              start: FloatArray) -> Temperatures | None:
    inverse = start.copy()
    low, high = np.full(2, 1.0 / SPAN[1]), np.full(2, 1.0 / SPAN[0])
    for _ in range(_STEPS):
        slope, curvature = _derivatives(logits, targets, inverse[half])
        slopes, curvatures = (np.bincount(half, part, minlength=2) for part in (slope, curvature))
        high, low = np.where(slopes > 0.0, inverse, high), np.where(slopes > 0.0, low, inverse)
        # The curvature vanishes with all probabilities but one; the slope still says where to go.
        step = np.divide(slopes, curvatures, out=np.sign(slopes) * SPAN[1], where=curvatures > 0.0)
        newton = np.clip(inverse - step, inverse / _LARGEST_STEP, inverse * _LARGEST_STEP)
        moved = np.where((newton >= low) & (newton <= high), newton, np.sqrt(low * high))
        if (np.abs(moved - inverse) <= _TOLERANCE * inverse).all():
            outside = (inverse <= (1.0 + 1e-3) / SPAN[1]) | (inverse >= (1.0 - 1e-3) / SPAN[0])
            return None if outside.any() else Temperatures(half=half, fitted=1.0 / moved, slope=slope,
                                                           curvature=curvature)
        inverse = moved
    return None


def _derivatives(logits: Logits, targets: npt.NDArray[np.integer[Any]],
                 inverse: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return first and second derivative of each image's NLL by its inverse temperature (N,)."""
    parts = []
    for rows in row_blocks(len(logits)):
        shifted = minus_largest(logits[rows])
        weights = np.exp(shifted * inverse[rows, None])
        weights /= weights.sum(axis=1, keepdims=True)
        # An excluded class has weight 0, and 0 times its -inf would be NaN.
        shifted[shifted == -np.inf] = 0.0
        mean = np.einsum("nk,nk->n", weights, shifted)
        of_target = shifted[np.arange(len(shifted)), targets[rows]]
        # The variance, summed around the mean: the difference of two moments would cancel.
        shifted -= mean[:, None]
        weights *= shifted
        parts.append((mean - of_target, np.einsum("nk,nk->n", weights, shifted)))
    slope, curvature = zip(*parts, strict=True)
    return np.concatenate(slope), np.concatenate(curvature)
