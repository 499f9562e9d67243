"""Evidence that may be looked at after every batch: confidence sequences and e-processes. Arrays in, numbers out.

An e-process is a number that starts at 1 and, while the hypothesis it speaks against is true, ever reaches 1/alpha with
probability at most alpha (Ville's inequality), however often one looks and whenever one stops. Functions return its
natural logarithm. A confidence sequence holds the true value at all times together with the stated probability.

Ratios of likelihoods are averaged over alternatives on one side of the hypothesis, so that evidence is one-sided: a
limit can be shown to be kept and to be broken, each with its own error rate. All assume exchangeable images, or timings
whose chance to exceed the limit does not depend on the earlier ones; neither needs a distribution.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import numpy.typing as npt

from edgebench import stats
from edgebench.checks import check
from edgebench.stats import FloatArray

Side = Literal["above", "below"]
BoolArray = npt.NDArray[np.bool_]

STRENGTH = 100.0
"""Of the Beta prior that averages over alternatives to a rate, in images: most evidence per image at some hundred to
thousand of them, valid at any number."""
PAIR_STRENGTH = 2.0
"""Likewise in pairs of timings, of which there are tens: all chances from one half to one weigh the same."""
_BETS = np.geomspace(0.02, 0.98, 16)
"""Shares of the capital staked on a difference: small ones earn most where many images flip, large where few do."""
_BET_WEIGHTS = np.append(np.full(_BETS.size - 1, 0.9 / _BETS.size), 0.1 + 0.9 / _BETS.size)
"""The largest bet gets a tenth more: where nothing flips at all it earns most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One look at a rule while images or timings come in."""

    n: int
    value: float
    """Estimate from the first `n`."""
    low: float | None
    """Lower end of the confidence sequence: the true value lies below any of these ever with probability at most 1 -
    confidence. None where nothing bounds it yet."""
    high: float | None
    """Upper end, likewise."""
    p_within: float
    """Anytime-valid p-value of the hypothesis that the limit is broken: small where it is shown to be kept."""
    p_beyond: float
    """Anytime-valid p-value of the hypothesis that the limit is kept: small where it is shown to be broken."""


def decision(path: Sequence[Step], alpha: float) -> Literal["pass", "fail"] | None:
    """Return how the first conclusive step of `path` decides at error rate `alpha`; None where none does."""
    for step in path:
        if step.p_beyond <= alpha:
            return "fail"
        if step.p_within <= alpha:
            return "pass"
    return None


def steps_until_decision(path: Sequence[Step], alpha: float) -> int | None:
    """Return the number of images or timings at which `path` is first conclusive; None where it never is."""
    return next((step.n for step in path if min(step.p_within, step.p_beyond) <= alpha), None)


def rate_evidence(successes: npt.ArrayLike, n: npt.ArrayLike, null: float, side: Side,
                  strength: float = STRENGTH) -> FloatArray:
    """Return the log e-process that a rate lies on `side` of `null`, against that it does not.

    One-sided beta-binomial mixture: the likelihood ratio of a rate against `null`, averaged over a Beta prior around
    `null` that is cut off there. Evidence grows with `successes` for ``above`` and falls for ``below``.

    Args:
        successes: How many so far; an array for several times or paths.
        n: Of how many.
        null: The rate in question, 0 to 1.
        side: Where the rate is claimed to be.
        strength: Of the prior, in images: the fewer, the farther from `null` it looks for the rate.

    Raises:
        ValueError: Impossible counts, or `null` not between 0 and 1.

    Source:
        Robbins 1970, Ann. Math. Stat. 41:1397; Howard, Ramdas, McAuliffe & Sekhon 2021, Annals of Statistics 49:1055,
        appendix on one-sided beta-binomial mixtures.
    """
    check(0.0 < null < 1.0, "null between 0 and 1, both excluded", null)
    count, total = np.broadcast_arrays(np.asarray(successes, np.float64), np.asarray(n, np.float64))
    check(bool(((count >= 0) & (count <= total)).all()), "0 <= successes <= n", (successes, n))
    rest = total - count
    if side == "below":
        # A rate below `null` is a rate of failures above 1 - `null`.
        count, rest, null = rest, count, 1.0 - null
    a, b = strength * null, strength * (1.0 - null)
    prior = _log_beta(np.asarray(a), np.asarray(b)) + _log_upper_beta(np.asarray(a), np.asarray(b), null)
    posterior = _log_beta(a + count, b + rest) + _log_upper_beta(a + count, b + rest, null)
    return np.asarray(posterior - prior - count * math.log(null) - rest * math.log1p(-null))


def rate_interval(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the two-sided confidence sequence (low, high) of a rate at `n`, as fractions.

    Holds the rate at all n together: beta-binomial mixture with Jeffreys' prior Beta(1/2, 1/2).

    Raises:
        ValueError: Impossible counts, or `confidence` not between 0 and 1.

    Source:
        Robbins 1970, Ann. Math. Stat. 41:1397; as prior-posterior ratio in Waudby-Smith & Ramdas 2020, NeurIPS 33.
    """
    check(0.0 < confidence < 1.0, "confidence between 0 and 1, both excluded", confidence)
    check(0 <= successes <= n and n >= 1, "0 <= successes <= n and n >= 1", (successes, n))
    half = np.asarray(0.5)
    mixture = float(_log_beta(half + successes, half + n - successes) - _log_beta(half, half))
    limit = -math.log(1.0 - confidence)

    def excess(rate: float) -> float:
        """Return evidence against `rate` beyond what is needed."""
        ratio = mixture - _times_log(successes, rate) - _times_log(n - successes, 1.0 - rate)
        return ratio - limit

    share = successes / n
    return _crossing(excess, share, 0.0), _crossing(excess, share, 1.0)


def difference_evidence(negative: npt.ArrayLike, positive: npt.ArrayLike, n: npt.ArrayLike, null: float,
                        side: Side) -> FloatArray:
    """Return the log e-process that the change of a share on the same images lies on `side` of `null`.

    Each image scores -1 (ceased to count), 0 or 1 (came to count). The capital of a gambler who stakes a fixed share
    on each image, averaged over sixteen shares; it depends on the counts alone.

    Args:
        negative: Images that ceased to count so far; an array for several times or paths.
        positive: Images that came to count.
        n: All images, changed or not.
        null: The change in question, between -1 and 1.
        side: Where the change is claimed to be.

    Raises:
        ValueError: Impossible counts, or `null` not between -1 and 1.

    Source:
        Waudby-Smith & Ramdas 2024, JRSS B 86:1, on betting with a fixed grid of bets; capital in Proposition 2.
    """
    check(-1.0 < null < 1.0, "null between -1 and 1, both excluded", null)
    down, up, total = np.broadcast_arrays(*(np.asarray(one, np.float64) for one in (negative, positive, n)))
    same = total - down - up
    check(bool((np.minimum(np.minimum(down, up), same) >= 0).all()), "counts of 0 or more that sum to n",
          (negative, positive, n))
    if side == "below":
        down, up, null = up, down, -null
    stakes = _BETS / (1.0 + null)
    growth = (np.multiply.outer(up, np.log1p(stakes * (1.0 - null)))
              + np.multiply.outer(same, np.log1p(-stakes * null))
              + np.multiply.outer(down, np.log1p(-stakes * (1.0 + null))))
    return _log_mean(growth, _BET_WEIGHTS)


def difference_bounds(negative: int, positive: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the confidence sequence (low, high) of the change of a share at `n`: those that cannot be ruled out.

    Each end alone is wrong at any time with probability at most 1 - `confidence`. Inverts `difference_evidence`, which
    falls as its null rises (``above``) and rises with it (``below``).

    Raises:
        ValueError: Impossible counts, or `confidence` not between 0 and 1.
    """
    check(0.0 < confidence < 1.0, "confidence between 0 and 1, both excluded", confidence)
    limit, estimate = -math.log(1.0 - confidence), (positive - negative) / n

    def excess(side: Side) -> Callable[[float], float]:
        return lambda null: float(difference_evidence(negative, positive, n, null, side)) - limit

    edge = 1.0 - 1e-9
    inside = min(max(estimate, -edge), edge)
    return _crossing(excess("above"), inside, -edge), _crossing(excess("below"), inside, edge)


def ratio_evidence(log_ratios: npt.ArrayLike, null: float, side: Side) -> FloatArray:
    """Return the log e-process (N,), after each pair, that the median of paired ratios lies on `side` of `null`.

    Counts pairs beyond `null`, as a sign test does: at most half of them are where the median is not. Pairs equal to
    `null` count against the claim. Outliers and drifts that both sides of a pair share do no harm.

    Args:
        log_ratios: Natural logarithms of candidate over baseline (N,), in the order they were measured, interleaved.
        null: The ratio in question, above 0: 1.05 asks about 5 % more.
        side: Where the median ratio is claimed to be.

    Raises:
        ValueError: `log_ratios` is not one-dimensional or not finite, or `null` is not above 0.

    Source:
        Sign test by the beta-binomial mixture of `rate_evidence`, at a rate of one half.
    """
    values = np.asarray(log_ratios, np.float64)
    check(null > 0.0, "null above 0", null)
    check(values.ndim == 1 and bool(np.isfinite(values).all()), "finite log ratios in one dimension", values.shape)
    beyond = values > math.log(null) if side == "above" else values < math.log(null)
    return rate_evidence(np.cumsum(beyond), np.arange(1, values.size + 1), 0.5, "above", PAIR_STRENGTH)


@lru_cache(maxsize=64)
def least_pairs(alpha: float) -> int:
    """Return how many pairs `ratio_evidence` needs at least, all of them beyond the limit, to show it at level `alpha`.

    Raises:
        ValueError: `alpha` is not between 0 and 1.
    """
    check(0.0 < alpha < 1.0, "a level between 0 and 1", alpha)
    # Each pair doubles the evidence at most.
    pairs = math.ceil(-2.0 * math.log2(alpha)) + 64
    return 1 + int(np.argmax(ratio_evidence(np.ones(pairs), 1.0, "above") >= -math.log(alpha)))


@lru_cache(maxsize=4096)
def quantile_ranks(n: int, q: float, confidence: float = 0.95,
                   strength: float = STRENGTH) -> tuple[int | None, int | None]:
    """Return the ranks (low, high), from 1, of the values among `n` that bound the `q` quantile at all times.

    Each end alone is wrong at any time with probability at most 1 - `confidence`; None where no value bounds it yet.
    Where the quantile is above the k-th value, at least k of n values lie below it, which happens at a rate of at most
    `q`: the k from which `rate_evidence` contradicts that bounds it from above, and likewise from below.

    Raises:
        ValueError: `n` below 1, or `q` or `confidence` not between 0 and 1.

    Source:
        Howard & Ramdas 2022, Bernoulli 28:1704, Theorem 1 with its beta-binomial boundary.
    """
    check(n >= 1, "n of at least 1", n)
    check(0.0 < confidence < 1.0, "confidence between 0 and 1, both excluded", confidence)
    limit = -math.log(1.0 - confidence)

    def conclusive(count: int, side: Side) -> bool:
        return float(rate_evidence(count, n, q, side, strength)) >= limit

    low = high = None
    if conclusive(n, "above"):
        high = _first(lambda count: conclusive(count, "above"), n)
    if conclusive(0, "below"):
        low = n - _first(lambda count: conclusive(n - count, "below"), n) + 1
    return low, high


def quantile_bounds(values: npt.ArrayLike, q: float, confidence: float = 0.95,
                    strength: float = STRENGTH) -> tuple[float | None, float | None]:
    """Return the confidence sequence (low, high) of the `q` quantile behind `values` (n,), in their unit.

    For any distribution, with ties too. See `quantile_ranks`.

    Raises:
        ValueError: `values` is empty, not one-dimensional or not finite, or `q` or `confidence` is not in (0, 1).
    """
    ordered = np.sort(np.asarray(values, np.float64))
    check(ordered.ndim == 1 and ordered.size > 0 and bool(np.isfinite(ordered).all()),
          "at least one finite value in one dimension", ordered.shape)
    low, high = quantile_ranks(ordered.size, q, confidence, strength)
    return None if low is None else float(ordered[low - 1]), None if high is None else float(ordered[high - 1])


def mean_bounds(values: npt.ArrayLike, lowest: float, highest: float,
                confidence: float = 0.95) -> tuple[FloatArray, FloatArray]:
    """Return the confidence sequence (low (N,), high (N,)) of the mean of bounded values, after each of them.

    Each end alone is wrong at any time with probability at most 1 - `confidence`. Predictably mixed empirical
    Bernstein: narrow where the values vary little. Ends never widen again.

    Args:
        values: In the order they came (N,).
        lowest: What no value can be below.
        highest: What no value can be above.
        confidence: Of each end, 0 to 1.

    Raises:
        ValueError: A value outside the bounds, or `confidence` not between 0 and 1.

    Source:
        Waudby-Smith & Ramdas 2024, JRSS B 86:1, Theorem 2 with its equations for the predictable bets, truncated at
        1/2; each side with log(1/alpha).
    """
    check(0.0 < confidence < 1.0, "confidence between 0 and 1, both excluded", confidence)
    x = (np.asarray(values, np.float64) - lowest) / (highest - lowest)
    check(x.ndim == 1 and bool(((x >= 0) & (x <= 1)).all()), f"values between {lowest} and {highest}", x.shape)
    t, limit = np.arange(1, x.size + 1), -math.log(1.0 - confidence)
    mean = (0.5 + np.cumsum(x)) / (t + 1)
    variance = (0.25 + np.cumsum((x - mean) ** 2)) / (t + 1)
    # Bets and centres may look at the past alone.
    mean_before = np.concatenate(([0.5], mean[:-1]))
    variance_before = np.concatenate(([0.25], variance[:-1]))
    bets = np.minimum(0.5, np.sqrt(2.0 * limit / (variance_before * t * np.log1p(t))))
    price = (-np.log1p(-bets) - bets) * (x - mean_before) ** 2
    staked = np.cumsum(bets)
    centre, arm = np.cumsum(bets * x) / staked, (limit + np.cumsum(price)) / staked
    scale = highest - lowest
    return (lowest + scale * np.maximum.accumulate(np.maximum(centre - arm, 0.0)),
            lowest + scale * np.minimum.accumulate(np.minimum(centre + arm, 1.0)))


def mean_evidence(values: npt.ArrayLike, lowest: float, highest: float, null: float, side: Side) -> FloatArray:
    """Return the log e-process (N,), after each value, that the mean of bounded values lies on `side` of `null`.

    The bets of `difference_evidence`, on values anywhere between the bounds.

    Args:
        values: In the order they came (N,).
        lowest: What no value can be below.
        highest: What no value can be above.
        null: The mean in question, between the bounds.
        side: Where the mean is claimed to be.

    Raises:
        ValueError: A value outside the bounds, or `null` not between them.

    Source:
        Waudby-Smith & Ramdas 2024, JRSS B 86:1, Proposition 2.
    """
    x = np.asarray(values, np.float64)
    check(x.ndim == 1 and bool(((x >= lowest) & (x <= highest)).all()),
          f"values between {lowest} and {highest}", x.shape)
    check(lowest < null < highest, "null between the bounds, both excluded", null)
    if side == "below":
        x, null, lowest = -x, -null, -highest
    stakes = _BETS / (null - lowest)
    return _log_mean(np.cumsum(np.log1p(np.multiply.outer(x - null, stakes)), axis=0), _BET_WEIGHTS)


def mean_path(values: npt.ArrayLike, lowest: float, highest: float, looks: Sequence[int], limit: float,
              confidence: float = 0.95) -> tuple[Step, ...]:
    """Return the looks at a mean of bounded values that is to stay at or below `limit`.

    Args:
        values: In the order they came (N,).
        lowest: What no value can be below.
        highest: What no value can be above.
        looks: After how many values one looks, ascending.
        limit: The largest mean allowed.
        confidence: Of each end of the interval shown, that of `mean_bounds`.
    """
    x, n = np.asarray(values, np.float64), np.asarray(looks)
    within, beyond = (_anytime(mean_evidence(x, lowest, highest, limit, side))[n - 1] for side in ("below", "above"))
    low, high = mean_bounds(x, lowest, highest, confidence)
    return _steps(n, [float(x[:size].mean()) for size in looks],
                  list(zip(low[n - 1].tolist(), high[n - 1].tolist(), strict=True)), within, beyond)


def rate_path(hits: npt.ArrayLike, looks: Sequence[int], limit: float, confidence: float = 0.95) -> tuple[Step, ...]:
    """Return the looks at a rate that is to stay at or below `limit`.

    Args:
        hits: Whether each image counts (N,), in the order they were evaluated.
        looks: After how many images one looks, ascending.
        limit: The largest rate allowed, 0 to 1.
        confidence: Of the interval shown, 0 to 1; two-sided.
    """
    counts = np.concatenate(([0], np.cumsum(np.asarray(hits, bool))))[list(looks)]
    n = np.asarray(looks)
    within, beyond = (_anytime(rate_evidence(counts, n, limit, side)) for side in ("below", "above"))
    ends = [rate_interval(int(count), int(size), confidence) for count, size in zip(counts, n, strict=True)]
    return _steps(n, counts / n, ends, within, beyond)


def difference_path(before: npt.ArrayLike, after: npt.ArrayLike, looks: Sequence[int], loss: float,
                    confidence: float = 0.95) -> tuple[Step, ...]:
    """Return the looks at a share that is to fall by at most `loss` on the same images.

    Args:
        before: Whether each image counted for the reference (N,), such as being right; in the order of evaluation.
        after: Whether it counts for the variant (N,).
        looks: After how many images one looks, ascending.
        loss: The largest fall allowed, as a fraction.
        confidence: Of each end of the interval shown.
    """
    was, is_now = np.asarray(before, bool), np.asarray(after, bool)
    places = list(looks)
    down = np.concatenate(([0], np.cumsum(was & ~is_now)))[places]
    up = np.concatenate(([0], np.cumsum(~was & is_now)))[places]
    n = np.asarray(looks)
    within, beyond = (_anytime(difference_evidence(down, up, n, -loss, side)) for side in ("above", "below"))
    ends = [difference_bounds(int(b), int(c), int(size), confidence) for b, c, size in zip(down, up, n, strict=True)]
    return _steps(n, (up - down) / n, ends, within, beyond)


def ratio_path(log_ratios: npt.ArrayLike, looks: Sequence[int], limit: float, confidence: float = 0.95,
               ) -> tuple[Step, ...]:
    """Return the looks at the median of paired ratios, which is to stay at or below `limit`.

    Args:
        log_ratios: Natural logarithms of candidate over baseline (N,), as measured, interleaved.
        looks: After how many pairs one looks, ascending.
        limit: The largest ratio allowed.
        confidence: Of each end of the interval shown.
    """
    values, n = np.asarray(log_ratios, np.float64), np.asarray(looks)
    within, beyond = (_anytime(ratio_evidence(values, limit, side))[n - 1] for side in ("below", "above"))
    ends = []
    for size in looks:
        low, high = quantile_bounds(values[:size], 0.5, confidence, PAIR_STRENGTH)
        ends.append((None if low is None else math.exp(low), None if high is None else math.exp(high)))
    return _steps(n, [math.exp(float(np.median(values[:size]))) for size in looks], ends, within, beyond)


def percentile_step(values: npt.ArrayLike, q: float, limit: float, worth: float = 1.0,
                    confidence: float = 0.95) -> Step:
    """Return a look at the `q` quantile of timings, which is to stay at or below `limit`.

    It does where at most a share of 1 - `q` of the timings lies above. Its p-values are those of this look alone: the
    least of several looks is valid at all of them together.

    Args:
        values: Timings so far (n,).
        q: The quantile, 0 to 1.
        limit: In the unit of the timings.
        worth: How many independent timings each of these is worth, above 0 to 1 (`percentiles.effective_count`):
            timings that follow each other say less, and counts are discounted by it.
        confidence: Of each end of the interval shown.
    """
    ordered = np.sort(np.asarray(values, np.float64))
    n, over = ordered.size, int(np.count_nonzero(np.asarray(values) > limit))
    within, beyond = (float(np.exp(-max(0.0, float(rate_evidence(over * worth, n * worth, 1.0 - q, side)))))
                      for side in ("below", "above"))
    count = max(1, math.floor(n * worth))
    low, high = quantile_ranks(count, q, confidence)
    # Ranks among the fewer, independent timings, taken to the same share of all.
    return Step(n=n, value=stats.quantile(ordered, q), p_within=within, p_beyond=beyond,
                low=None if low is None else float(ordered[max(0, math.floor(low * n / count) - 1)]),
                high=None if high is None else float(ordered[min(n, math.ceil(high * n / count)) - 1]))


def split_alpha(alpha: float, looks: int) -> float:
    """Return the error rate of each of `looks` fixed checkpoints, so that all together stay within `alpha`.

    For what has no anytime-valid bound, such as binned calibration errors: Bonferroni's bound, which needs no
    assumption about how the looks depend on each other.
    """
    check(looks >= 1 and 0.0 < alpha < 1.0, "at least 1 look and alpha between 0 and 1", (looks, alpha))
    return alpha / looks


def checkpoints(total: int, looks: int, first: int = 200) -> tuple[int, ...]:
    """Return up to `looks` ascending sample sizes from `first` to `total`, each a constant factor above the last.

    Raises:
        ValueError: `total`, `looks` or `first` below 1.
    """
    check(min(total, looks, first) >= 1, "total, looks and first of at least 1", (total, looks, first))
    if first >= total or looks == 1:
        return (total,)
    return tuple(dict.fromkeys(round(size) for size in np.geomspace(first, total, looks)))


def _anytime(log_evidence: FloatArray) -> FloatArray:
    """Return p-values that are valid at all looks together: the reciprocal of the most evidence seen so far."""
    return np.exp(-np.maximum.accumulate(np.maximum(log_evidence, 0.0)))


def _steps(n: npt.NDArray[np.int64], values: npt.ArrayLike, ends: Sequence[tuple[float | None, float | None]],
           within: FloatArray, beyond: FloatArray) -> tuple[Step, ...]:
    return tuple(Step(n=int(size), value=float(value), low=low, high=high, p_within=float(kept), p_beyond=float(broken))
                 for size, value, (low, high), kept, broken
                 in zip(n, np.asarray(values), ends, within, beyond, strict=True))


def _log_mean(logs: FloatArray, weights: FloatArray) -> FloatArray:
    """Return the logarithm of the weighted mean of exp(`logs`) over the last axis."""
    top = logs.max(axis=-1, keepdims=True)
    return np.asarray(top[..., 0] + np.log((np.exp(logs - top) * weights).sum(axis=-1)))


def _log_beta(a: FloatArray, b: FloatArray) -> FloatArray:
    return np.asarray(_log_gamma(a) + _log_gamma(b) - _log_gamma(a + b), np.float64)


_log_gamma = np.vectorize(math.lgamma, otypes=[np.float64])


def _log_upper_beta(a: FloatArray, b: FloatArray, x: float) -> FloatArray:
    """Return log P(B > x) for B ~ Beta(a, b), exact far out in the tail too."""
    a, b = np.broadcast_arrays(np.asarray(a, np.float64), np.asarray(b, np.float64))
    # The continued fraction converges fast below the mean; above it the other tail is computed instead.
    far = x > (a + 1.0) / (a + b + 2.0)
    first, second = np.where(far, b, a), np.where(far, a, b)
    point = np.where(far, 1.0 - x, x)
    log_tail = (first * np.log(point) + second * np.log1p(-point) - np.log(first) - _log_beta(first, second)
                + np.log(_beta_fraction(first, second, point)))
    return np.asarray(np.where(far, log_tail, np.log1p(-np.exp(np.minimum(log_tail, -1e-300)))))


def _beta_fraction(a: FloatArray, b: FloatArray, x: FloatArray) -> FloatArray:
    """Return the continued fraction of the incomplete beta function by Lentz's method.

    Source:
        DLMF 8.17.22; Lentz's method as in Thompson & Barnett 1986, J. Comput. Phys. 64:490.
    """
    tiny = 1e-300
    c = np.ones_like(a)
    d = 1.0 / np.where(np.abs(1.0 - (a + b) * x / (a + 1.0)) < tiny, tiny, 1.0 - (a + b) * x / (a + 1.0))
    value = d.copy()
    for m in range(1, 10_000):
        for term in (m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
                     -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))):
            d = 1.0 + term * d
            d = 1.0 / np.where(np.abs(d) < tiny, tiny, d)
            c = 1.0 + term / c
            c = np.where(np.abs(c) < tiny, tiny, c)
            change = c * d
            value = value * change
        if bool((np.abs(change - 1.0) < 1e-14).all()):
            break
    return np.asarray(value)


def _times_log(count: float, p: float) -> float:
    return 0.0 if count == 0 else -math.inf if p <= 0.0 else count * math.log(p)


def _crossing(excess: Callable[[float], float], inside: float, outside: float) -> float:
    """Return where `excess` becomes positive on the way out, from the outside; `outside` where it never does."""
    if excess(outside) <= 0.0:
        return outside
    for _ in range(60):
        middle = (inside + outside) / 2.0
        if excess(middle) <= 0.0:
            inside = middle
        else:
            outside = middle
    return outside


def _first(conclusive: Callable[[int], bool], n: int) -> int:
    """Return the least count from 0 to `n` from which `conclusive` holds; it holds at `n`."""
    low, high = 0, n
    while low < high:
        middle = (low + high) // 2
        if conclusive(middle):
            high = middle
        else:
            low = middle + 1
    return low
