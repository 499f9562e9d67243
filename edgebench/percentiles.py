"""How sure a percentile is: distribution-free bounds, what autocorrelation costs them, and MLPerf's early stopping."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from edgebench import stats
from edgebench.stats import FloatArray
from edgebench.timing_types import PercentileBound

EARLY_STOPPING_CONFIDENCE = 0.99
"""MLPerf's, one-sided."""


@lru_cache(maxsize=256)
def early_stopping_count(q: float, late: int, confidence: float = EARLY_STOPPING_CONFIDENCE) -> int:
    """Return how many queries it takes, `late` of them above the bound, to show that the `q` quantile is below it.

    The smallest n for which at most `late` of n independent queries would exceed their own `q` quantile with
    probability at most 1 - confidence: 64 for q = 0.90 and one late query, 662 for q = 0.99.

    Args:
        q: Quantile, 0 to 1.
        late: Queries above the bound, 0 or more.
        confidence: One-sided, 0 to 1.

    Raises:
        ValueError: An argument out of its range.

    Source:
        MLPerf Inference rules, appendix "Early stopping criterion": I_q(h, t + 1) <= 1 - c with h = n - t, d = 0.
    """
    if not (0.0 < q < 1.0 and 0.0 < confidence < 1.0) or late < 0:
        raise ValueError("expected q and confidence between 0 and 1 and late of 0 or more, "
                         f"got {q}, {confidence} and {late}")
    low, high = late, late + 1
    while _at_most(late, high, 1.0 - q) > 1.0 - confidence:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        if _at_most(late, middle, 1.0 - q) > 1.0 - confidence:
            low = middle
        else:
            high = middle
    return high


def early_stopping_estimate(values: npt.ArrayLike, q: float,
                            confidence: float = EARLY_STOPPING_CONFIDENCE) -> float | None:
    """Return MLPerf's estimate of the `q` quantile: an upper bound at the confidence; None with too few values.

    With the largest t that n queries allow, the t - 1 largest values are dropped and the largest that remains is it.
    """
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    late = late_allowed(ordered.size, q, confidence)
    return float(ordered[-late]) if late is not None and late >= 1 else None


def late_allowed(n: int, q: float, confidence: float = EARLY_STOPPING_CONFIDENCE) -> int | None:
    """Return how many of `n` queries may exceed a bound that is still shown to hold at the `q` quantile.

    None where `n` is too small even without a late one.
    """
    if n < early_stopping_count(q, 0, confidence):
        return None
    low, high = 0, n
    while high - low > 1:
        middle = (low + high) // 2
        if _at_most(middle, n, 1.0 - q) <= 1.0 - confidence:
            low = middle
        else:
            high = middle
    return low


def holds(late: int, n: int, q: float, confidence: float = EARLY_STOPPING_CONFIDENCE) -> bool:
    """Return whether `late` of `n` queries above a bound show that the `q` quantile lies below it."""
    allowed = late_allowed(n, q, confidence)
    return allowed is not None and late <= allowed


def effective_count(flags: npt.ArrayLike) -> int:
    """Return how many independent values as many autocorrelated ones (n,) are worth for their mean: n at most.

    The integrated autocorrelation time with Sokal's window, the smallest M of at least five times its own estimate.

    Source:
        Sokal 1997, Monte Carlo Methods in Statistical Mechanics, section 3.
    """
    series = np.asarray(flags, dtype=np.float64)
    n = series.size
    centred = series - series.mean()
    if n < 10 or not centred.any():
        return n
    size = 1 << (2 * n - 1).bit_length()
    spectrum = np.fft.rfft(centred, size)
    covariance = np.fft.irfft(spectrum * np.conj(spectrum), size)[:n // 2]
    times = 2.0 * np.cumsum(covariance / covariance[0]) - 1.0
    enough = np.flatnonzero(np.arange(times.size) >= 5.0 * times)
    time = float(times[enough[0]] if enough.size else times[-1])
    return max(1, math.floor(n / max(1.0, time)))


def bound(values: npt.ArrayLike, q: float, confidence: float = 0.95, *, independent: bool = False) -> PercentileBound:
    """Return the `q` quantile of latencies (n,) in seconds with its interval and the confidence that this achieves.

    The interval's ends are order statistics. Where timings follow each other, the share below the quantile varies more
    than that of independent ones: the binomial distribution is that of `effective_count` timings.

    Args:
        values: Latencies in the order of measurement, seconds.
        q: Quantile, 0 to 1.
        confidence: Two-sided level asked for, 0 to 1.
        independent: Whether to take the timings as independent, as `stats.quantile_interval` does.

    Raises:
        ValueError: `values` is empty or not finite, or `q` or `confidence` is not between 0 and 1.
    """
    series = np.asarray(values, dtype=np.float64)
    value = stats.quantile(series, q)
    n = series.size
    count = n if independent else effective_count(series <= value)
    ordered = np.sort(series)
    chances = _binomial(count, q)
    cumulated = np.cumsum(chances)
    tail = (1.0 - confidence) / 2.0
    below = int(np.count_nonzero(cumulated <= tail))
    above = int(np.count_nonzero(np.cumsum(chances[::-1]) <= tail))
    # Ranks of the smaller, independent sample, taken to the same share of the whole one.
    low_rank = math.floor(below * n / count)
    high_rank = n + 1 - math.floor(above * n / count)
    first, last = max(below, 1), min(count + 1 - above, count)
    achieved = float(chances[first:last].sum())
    return PercentileBound(
        q=q, value_s=value, low_s=float(ordered[low_rank - 1]) if below else None,
        high_s=float(ordered[high_rank - 1]) if above else None, asked=confidence, achieved=min(1.0, achieved), n=n,
        effective_n=count, early_stopping_s=early_stopping_estimate(series, q))


def bounds(values: npt.ArrayLike, qs: Sequence[float] = (0.5, 0.9, 0.95, 0.99),
           confidence: float = 0.95) -> tuple[PercentileBound, ...]:
    """Return `bound` for each quantile."""
    return tuple(bound(values, q, confidence) for q in qs)


def words(found: PercentileBound) -> str:
    """Return the percentile and what is known about it, in one sentence; without an upper bound, no number at all."""
    name, asked = f"p{100 * found.q:g}", percent(found.asked)
    worth = "" if found.effective_n == found.n else f", which are autocorrelated and count as {found.effective_n}"
    needed = f"{stats.timings_needed(found.q, found.asked)} independent timings are needed"
    if found.high_s is None:
        return f"{name} has no upper bound at {asked} confidence from {found.n} timings{worth}; {needed}"
    if found.low_s is None:
        return (f"{name} is {found.value_s * 1e3:.3f} ms at {percent(found.achieved)} confidence ({asked} requested) "
                f"from {found.n} timings{worth}; {needed}")
    return (f"{name} is {found.value_s * 1e3:.3f} ms, between {found.low_s * 1e3:.3f} and {found.high_s * 1e3:.3f} ms "
            f"with {percent(found.achieved)} confidence ({asked} requested, {found.n} timings{worth})")


def percent(share: float) -> str:
    """Return a confidence in words, rounded down: it is never overstated."""
    return f"{math.floor(share * 1000) / 10:g} %"


def _at_most(k: int, n: int, p: float) -> float:
    """Return P(B <= k) for B ~ Binomial(n, p)."""
    if k >= n:
        return 1.0
    return float(_binomial(n, p, k).sum())


def _binomial(n: int, p: float, highest: int | None = None) -> FloatArray:
    """Return P(B = 0), ..., P(B = `highest`) for B ~ Binomial(n, p), up to n without one."""
    k = np.arange((n if highest is None else highest) + 1, dtype=np.float64)
    steps = np.log((n - k[:-1]) / k[1:])
    logs = np.concatenate(([0.0], np.cumsum(steps))) + k * math.log(p) + (n - k) * math.log1p(-p)
    chances: FloatArray = np.exp(logs)
    return chances
