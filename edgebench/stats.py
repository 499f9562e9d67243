"""How sure: intervals, paired tests, order statistics and trends. Arrays in, numbers out; no metric is known here."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

MAX_TREND_POINTS = 1000
"""Trends look at all pairs: 1,000 points are half a million pairs, and some 25 MB for a moment."""


def normal_quantile(p: float) -> float:
    """Return the standard normal quantile of `p`: 1.96 for 0.975.

    Raises:
        ValueError: `p` is not between 0 and 1, both excluded.
    """
    _refuse_outside_unit("p", p)
    return NormalDist().inv_cdf(p)


def wilson(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the Wilson score interval (low, high) of a proportion, as fractions.

    Without continuity correction. Keeps its coverage near 0 and 1, where the plain normal interval has width 0.

    Args:
        successes: How many of `n`.
        n: Trials, at least 1.
        confidence: Two-sided level, 0 to 1.

    Raises:
        ValueError: `successes` is not between 0 and `n`, `n` is 0, or `confidence` is not between 0 and 1.

    Source:
        Wilson 1927, JASA 22:209; Brown, Cai & DasGupta 2001, Statistical Science 16:101.
    """
    _refuse_outside_unit("confidence", confidence)
    if not 0 <= successes <= n or n < 1:
        raise ValueError(f"expected 0 <= successes <= n and n >= 1, got {successes} of {n}")
    z = normal_quantile((1.0 + confidence) / 2.0)
    share, scale = successes / n, 1.0 + z * z / n
    centre = (share + z * z / (2 * n)) / scale
    half = z * math.sqrt(share * (1.0 - share) / n + z * z / (4 * n * n)) / scale
    # At the ends the formula gives 0 and 1 up to rounding.
    return 0.0 if successes == 0 else centre - half, 1.0 if successes == n else centre + half


def bootstrap(statistic: Callable[[IntArray], FloatArray], n: int, *, resamples: int = 1000, confidence: float = 0.95,
              seed: int = 0, estimate: FloatArray | None = None) -> tuple[FloatArray, FloatArray]:
    """Return the percentile bootstrap intervals (low (M,), high (M,)) of M statistics, in their own units.

    Each resample draws `n` of `n` indices with replacement and hands them over in ascending order: no statistic of a
    sample depends on their order, and sorted access is faster. The ends are linearly interpolated percentiles over
    resamples. Where a statistic is NaN in any resample, both its ends are NaN.

    Args:
        statistic: From indices (n,) to M values (M,), so that one pass over the resamples serves a whole family.
        n: What is resampled: images, or clusters of them that `statistic` expands.
        resamples: How many.
        confidence: Two-sided level, 0 to 1.
        seed: Of the draws; the same seed gives the same interval.
        estimate: The statistics of the sample itself (M,). Where given, each interval is shifted so that the mean
            over resamples falls on it: binned calibration errors grow under resampling, and an unshifted interval
            may lie wholly above the estimate.

    Raises:
        ValueError: `n` or `resamples` below 1, or `confidence` not between 0 and 1.

    Source:
        Efron & Tibshirani 1993, An Introduction to the Bootstrap, section 13.3.
    """
    _refuse_outside_unit("confidence", confidence)
    if n < 1 or resamples < 1:
        raise ValueError(f"expected n and resamples of at least 1, got {n} and {resamples}")
    generator = np.random.default_rng(seed)
    everything = np.arange(n)
    values = np.stack([
        statistic(np.repeat(everything, np.bincount(generator.integers(0, n, size=n), minlength=n)))
        for _ in range(resamples)
    ])
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(values, [tail, 1.0 - tail], axis=0)
    if estimate is None:
        return low, high
    bias = values.mean(axis=0) - estimate
    return low - bias, high - bias


def mcnemar_exact(negative: int, positive: int) -> float:
    """Return the two-sided p-value of McNemar's exact test, which asks whether chance explains flips this lopsided.

    Twice the smaller binomial tail of `negative` against `positive` at equal odds, at most 1; 1 without any flip. Not
    mid-p.

    Args:
        negative: Images that turned from right to wrong.
        positive: Images that turned from wrong to right.

    Raises:
        ValueError: A count below 0.

    Source:
        McNemar 1947, Psychometrika 12:153; exact form in Fagerland, Lydersen & Laake 2013 (BMC MRM 13:91).
    """
    if negative < 0 or positive < 0:
        raise ValueError(f"expected counts of 0 or more, got {negative} and {positive}")
    tail = _binomial(negative + positive, 0.5)[:min(negative, positive) + 1]
    return min(1.0, 2.0 * float(tail.sum()))


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """Return Holm's step-down adjusted p-values, in the order given: below a level, the family's error is below it.

    Source:
        Holm 1979, Scandinavian Journal of Statistics 6:65.
    """
    order = sorted(range(len(p_values)), key=lambda k: p_values[k])
    adjusted = [1.0] * len(p_values)
    running = 0.0
    for rank, k in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[k]))
        adjusted[k] = running
    return tuple(adjusted)


def paired_change(negative: int, positive: int, n: int) -> tuple[float, float]:
    """Return (change, standard error) of accuracy between two variants on the same images, as fractions.

    The change is (positive - negative)/n, below 0 where the variant lost; its standard error is
    sqrt(b + c - (b - c)^2/n)/n with b `negative` and c `positive`.

    Args:
        negative: Images that turned from right to wrong.
        positive: Images that turned from wrong to right.
        n: All images, flipped or not.

    Raises:
        ValueError: A count below 0, `n` below 1, or more flips than images.

    Source:
        Agresti 2013, Categorical Data Analysis, chapter 11 (difference of dependent proportions).
    """
    if negative < 0 or positive < 0 or n < 1 or negative + positive > n:
        raise ValueError(f"expected counts of 0 or more that sum to at most n >= 1, "
                         f"got {negative} and {positive} of {n}")
    difference = positive - negative
    return difference / n, math.sqrt(negative + positive - difference * difference / n) / n


def paired_interval(up: int, down: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return Tango's score interval (low, high) of (up - down)/n, the change of a share on the same n images.

    Has a width even without any change, where the bootstrap's is 0: +-z^2/(n + z^2).

    Args:
        up: Images that came to count.
        down: Images that ceased to count.
        n: All images, changed or not.
        confidence: Two-sided level, 0 to 1.

    Raises:
        ValueError: A count below 0, `n` below 1, or more changes than images.

    Source:
        Tango 1998, Statistics in Medicine 17:891; compared with others in Fagerland, Lydersen & Laake 2014 (33:2850).
    """
    if up < 0 or down < 0 or n < 1 or up + down > n:
        raise ValueError(f"expected counts of 0 or more that sum to at most n >= 1, got {up} and {down} of {n}")
    z, estimate = normal_quantile((1.0 + confidence) / 2.0), (up - down) / n

    def excess(change: float) -> float:
        """Return squared score statistic less z^2: below 0 inside the interval."""
        # Share of `down` images that is most likely where the true change is `change`.
        linear = -up - down + (2 * n - up + down) * change
        constant = -down * change * (1.0 - change)
        down_share = (math.sqrt(max(linear * linear - 8 * n * constant, 0.0)) - linear) / (4 * n)
        variance = n * (2.0 * down_share + change * (1.0 - change))
        distance = up - down - n * change
        return math.inf if variance <= 0.0 and distance else distance * distance - z * z * variance

    def end(outside: float) -> float:
        inside = estimate
        if excess(outside) <= 0.0:
            return outside
        for _ in range(60):
            middle = (inside + outside) / 2.0
            if excess(middle) <= 0.0:
                inside = middle
            else:
                outside = middle
        return inside

    return end(-1.0), end(1.0)


def quantile(values: npt.ArrayLike, q: float) -> float:
    """Return the `q` quantile of `values` (n,), in their unit: the order statistic x_(ceil(nq)), always a value seen.

    The inverse of the empirical distribution function (type 1 of Hyndman & Fan 1996): at least a share `q` of the
    values is at or below it. No interpolation. `q` is the decimal that it prints as, so 0.07 of 100 is the 7th value
    although 100 * 0.07 exceeds 7 in floating point.

    Raises:
        ValueError: `values` is empty, not one-dimensional or not finite, or `q` is not between 0 and 1.
    """
    checked = _values(values, 1)
    _refuse_outside_unit("q", q)
    rank = math.ceil(Fraction(str(float(q))) * checked.size)
    return float(np.partition(checked, rank - 1)[rank - 1])


def quantile_interval(values: npt.ArrayLike, q: float,
                      confidence: float = 0.95) -> tuple[float | None, float | None]:
    """Return a distribution-free interval (low, high) of the `q` quantile behind `values` (n,), in their unit.

    Both ends are order statistics, chosen by the binomial distribution of how many values fall below the quantile:
    each end is missed with probability at most (1 - confidence)/2 for any distribution, with ties too. An end is None
    where no order statistic of this sample can promise that: see `timings_needed`. Assumes independent values.

    Raises:
        ValueError: `values` is empty, not one-dimensional or not finite, or `q` or `confidence` is not between 0 and 1.

    Source:
        Hahn & Meeker 1991, Statistical Intervals, section 5.2; David & Nagaraja 2003, Order Statistics, section 7.1.
    """
    ordered = np.sort(_values(values, 1))
    _refuse_outside_unit("q", q)
    _refuse_outside_unit("confidence", confidence)
    tail = (1.0 - confidence) / 2.0
    chances = _binomial(ordered.size, q)
    # x_(l) is too high when at most l - 1 values lie at or below the quantile; x_(u) too low when at least u lie below.
    below = int(np.count_nonzero(np.cumsum(chances) <= tail))
    above = int(np.count_nonzero(np.cumsum(chances[::-1]) <= tail))
    return float(ordered[below - 1]) if below else None, float(ordered[-above]) if above else None


def timings_needed(q: float, confidence: float = 0.95) -> int:
    """Return the smallest number of values for which `quantile_interval` has both ends: 6 for the median, 368 for p99.

    Raises:
        ValueError: `q` or `confidence` is not between 0 and 1.
    """
    _refuse_outside_unit("q", q)
    _refuse_outside_unit("confidence", confidence)
    # All values on one side of the quantile has probability q^n or (1 - q)^n.
    return max(1, math.ceil(math.log((1.0 - confidence) / 2.0) / max(math.log(q), math.log1p(-q))))


def theil_sen(values: npt.ArrayLike) -> float:
    """Return the median of the slopes between all pairs of `values` (n,), in their unit per step.

    Up to 29 % of the values may be arbitrary outliers without carrying it away.

    Raises:
        ValueError: Fewer than 2 or more than `MAX_TREND_POINTS` values, not one-dimensional, or not finite.

    Source:
        Sen 1968, JASA 63:1379.
    """
    checked = _trend_values(values)
    first, second = np.triu_indices(checked.size, k=1)
    return float(np.median((checked[second] - checked[first]) / (second - first)))


def kendall_tau(values: npt.ArrayLike) -> float:
    """Return Kendall's rank correlation between `values` (n,) and their order: -1 always falling, 1 always rising.

    Tau-b: pairs of equal values count for neither direction and are taken out of the denominator by a square root. 0
    where all values are equal, for then nothing rises or falls.

    Raises:
        ValueError: Fewer than 2 or more than `MAX_TREND_POINTS` values, not one-dimensional, or not finite.

    Source:
        Kendall 1945, Biometrika 33:239.
    """
    checked = _trend_values(values)
    first, second = np.triu_indices(checked.size, k=1)
    direction = np.sign(checked[second] - checked[first])
    untied = int(np.count_nonzero(direction))
    return float(direction.sum() / math.sqrt(direction.size * untied)) if untied else 0.0


def _binomial(n: int, p: float) -> FloatArray:
    """Return P(B = 0), ..., P(B = n) for B ~ Binomial(n, p)."""
    # By logarithms: the coefficients overflow a float beyond n = 1029.
    log_factorial = np.array([math.lgamma(k + 1.0) for k in range(n + 1)])
    k = np.arange(n + 1)
    logs: FloatArray = (log_factorial[n] - log_factorial - log_factorial[::-1]
                        + k * math.log(p) + (n - k) * math.log1p(-p))
    return np.exp(logs)


def _values(values: npt.ArrayLike, at_least: int) -> FloatArray:
    checked = np.asarray(values, dtype=np.float64)
    if checked.ndim != 1 or checked.size < at_least or not np.isfinite(checked).all():
        raise ValueError(f"expected at least {at_least} finite values in one dimension, got shape {checked.shape} "
                         f"with {np.count_nonzero(~np.isfinite(checked))} not finite")
    return checked


def _trend_values(values: npt.ArrayLike) -> FloatArray:
    checked = _values(values, 2)
    if checked.size > MAX_TREND_POINTS:
        raise ValueError(f"expected at most {MAX_TREND_POINTS} values, got {checked.size}")
    return checked


def _refuse_outside_unit(name: str, value: float) -> None:
    if not 0.0 < value < 1.0:
        raise ValueError(f"expected {name} between 0 and 1, both excluded, got {value}")


def chi_square_quantile(p: float, degrees: int) -> float:
    """Return the chi-square quantile of a `p` below one half, by bisection of the incomplete gamma function."""
    shape, low, high = degrees / 2.0, 0.0, float(degrees)
    for _ in range(60):
        middle = (low + high) / 2.0
        x = middle / 2.0
        term = total = math.exp(shape * math.log(x) - x - math.lgamma(shape + 1.0))
        k = 0
        while term > 1e-15 * total:
            k += 1
            term *= x / (shape + k)
            total += term
        low, high = (middle, high) if total < p else (low, middle)
    return (low + high) / 2.0
