"""One-sided tests of a number against a limit, and intervals for differences and ratios of two runs.

Plain numbers and arrays in, numbers out. What decides a rule stands here; `edgebench.stats` has what describes a run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from edgebench import stats
from edgebench.checks import check
from edgebench.stats import FloatArray


class Tails(NamedTuple):
    """P-values of the two one-sided tests against a limit."""

    above: float
    """Of the hypothesis that the true value is at or below the limit: small where it is shown to be above."""
    below: float
    """Of the hypothesis that the true value is at or above the limit: small where it is shown to be below."""


class Ends(NamedTuple):
    """An estimate with an interval."""

    value: float
    low: float
    high: float


def rate(successes: int, n: int, limit: float) -> Tails:
    """Return the exact binomial tests of a rate against `limit`.

    Each errs at most as often as its level says, for every n and limit, where Wilson's interval may err a little more.

    Raises:
        ValueError: Impossible counts.

    Source:
        Clopper & Pearson 1934, Biometrika 26:404.
    """
    check(0 <= successes <= n and n >= 1, "0 <= successes <= n and n >= 1", (successes, n))
    if limit <= 0.0:
        return Tails(1.0 if limit == 0.0 and not successes else 0.0, 1.0)
    if limit >= 1.0:
        return Tails(1.0, 1.0 if limit == 1.0 and successes == n else 0.0)
    chances = _binomial(n, limit)
    return Tails(min(1.0, float(chances[successes:].sum())), min(1.0, float(chances[:successes + 1].sum())))


def rate_interval(successes: int, n: int, confidence: float) -> tuple[float, float]:
    """Return the exact interval (low, high) of a rate; each end alone errs with probability at most 1 - `confidence`.

    Raises:
        ValueError: Impossible counts.

    Source:
        Clopper & Pearson 1934, Biometrika 26:404.
    """
    alpha, share = 1.0 - confidence, successes / n
    return (_boundary(lambda limit: rate(successes, n, limit).above <= alpha, share, 0.0),
            _boundary(lambda limit: rate(successes, n, limit).below <= alpha, share, 1.0))


def paired_change(negative: int, positive: int, n: int, limit: float) -> Tails:
    """Return Tango's score tests of (positive - negative)/n, the change of a share on the same images.

    Args:
        negative: Images that ceased to count.
        positive: Images that came to count.
        n: All images.
        limit: The change in question, between -1 and 1.

    Raises:
        ValueError: Impossible counts.

    Source:
        Tango 1998, Statistics in Medicine 17:891.
    """
    check(min(negative, positive) >= 0 and negative + positive <= n and n >= 1,
          "counts of 0 or more that sum to at most n >= 1", (negative, positive, n))
    # Most likely share of `negative` where the true change is `limit`.
    linear = -positive - negative + (2 * n - positive + negative) * limit
    constant = -negative * limit * (1.0 - limit)
    share = (math.sqrt(max(linear * linear - 8 * n * constant, 0.0)) - linear) / (4 * n)
    variance = n * (2.0 * share + limit * (1.0 - limit))
    distance = positive - negative - n * limit
    if variance <= 0.0:
        return Tails(*(1.0 if distance == 0 or (distance > 0) != above else 0.0 for above in (True, False)))
    z = distance / math.sqrt(variance)
    return Tails(_upper(z), _upper(-z))


def quantile(values: npt.ArrayLike, q: float, limit: float, effective_n: int | None = None) -> Tails:
    """Return the exact sign tests of the `q` quantile behind `values` (n,) against `limit`, in their unit.

    Args:
        values: From any distribution.
        q: Which quantile, 0 to 1.
        limit: What it is tested against.
        effective_n: How many independent values these are worth; n by default. Counts are scaled to it and rounded
            against the claim.

    Raises:
        ValueError: No values, or `q` is not between 0 and 1.

    Source:
        David & Nagaraja 2003, Order Statistics, section 7.1.
    """
    found = np.asarray(values, np.float64)
    check(found.ndim == 1 and found.size > 0 and 0.0 < q < 1.0, "values in one dimension and q between 0 and 1", q)
    n = effective_n or found.size
    chances = _binomial(n, q)
    # Above: few values at or below the limit. Below: many values strictly below it.
    at_most = math.ceil(np.count_nonzero(found <= limit) * n / found.size)
    less = math.floor(np.count_nonzero(found < limit) * n / found.size)
    return Tails(min(1.0, float(chances[:at_most + 1].sum())), min(1.0, float(chances[less:].sum())))


def normal(estimate: Ends, confidence: float, limit: float) -> Tails:
    """Return the tests of an estimate with a stored two-sided interval, each arm taken as that of a normal error.

    Args:
        estimate: Value and interval.
        confidence: Two-sided level of the interval, 0 to 1.
        limit: What to test against, in the same unit.
    """
    z = stats.normal_quantile((1.0 + confidence) / 2.0)
    distance = estimate.value - limit
    arm = estimate.value - estimate.low if distance > 0 else estimate.high - estimate.value
    if arm <= 0.0:
        return Tails(*(0.0 if sign * distance > 0 else 1.0 for sign in (1, -1)))
    return Tails(_upper(z * distance / arm), _upper(-z * distance / arm))


def rescaled(estimate: Ends, confidence: float, wanted: float) -> Ends:
    """Return the estimate with its two-sided interval brought from level `confidence` to `wanted`, arm by arm."""
    if wanted == confidence:
        return estimate
    factor = stats.normal_quantile((1.0 + wanted) / 2.0) / stats.normal_quantile((1.0 + confidence) / 2.0)
    return Ends(estimate.value, estimate.value - factor * (estimate.value - estimate.low),
                estimate.value + factor * (estimate.high - estimate.value))


def difference(mine: Ends, theirs: Ends) -> Ends:
    """Return mine less theirs with the interval that their independent intervals give, at their level.

    Method of variance estimates recovery: the arms that count add in quadrature.

    Source:
        Zou & Donner 2008, Statistics in Medicine 27:1693, equations 7 and 8.
    """
    value = mine.value - theirs.value
    return Ends(value, value - math.hypot(mine.value - mine.low, theirs.high - theirs.value),
                value + math.hypot(mine.high - mine.value, theirs.value - theirs.low))


def ratio(mine: Ends, theirs: Ends) -> Ends | None:
    """Return mine over theirs with the interval that their independent intervals give; None unless all are above 0.

    `difference` of the logarithms.

    Source:
        Zou & Donner 2008, Statistics in Medicine 27:1693; on ratios Donner & Zou 2012, SMMR 21:347.
    """
    if min(*mine, *theirs) <= 0.0:
        return None
    first, second = Ends(*map(math.log, mine)), Ends(*map(math.log, theirs))
    return Ends(*map(math.exp, difference(first, second)))


def relative_change(change: Ends, theirs: Ends) -> Ends | None:
    """Return a paired change over the reference's value, as a fraction of it; None where that is not above 0.

    The reference's own doubt is scaled by the relative change and added in quadrature. Its correlation with the change
    is left out, which matters only where the change is not small beside the value.
    """
    if theirs.value <= 0.0:
        return None
    share = change.value / theirs.value
    arms = (abs(share) * (theirs.value - theirs.low), abs(share) * (theirs.high - theirs.value))
    # A larger reference brings the relative change closer to 0, a smaller one further away.
    outward = arms if share < 0 else arms[::-1]
    return Ends(share, share - math.hypot(change.value - change.low, outward[0]) / theirs.value,
                share + math.hypot(change.high - change.value, outward[1]) / theirs.value)


def benjamini_hochberg(p_values: Sequence[float]) -> tuple[float, ...]:
    """Return Benjamini and Hochberg's adjusted p-values, in the order given.

    Calling those below a level significant keeps the expected share of false ones among them below that level.

    Source:
        Benjamini & Hochberg 1995, JRSS B 57:289.
    """
    order = sorted(range(len(p_values)), key=lambda k: p_values[k], reverse=True)
    adjusted, running = [1.0] * len(p_values), 1.0
    for place, k in enumerate(order):
        running = min(running, p_values[k] * len(p_values) / (len(p_values) - place))
        adjusted[k] = running
    return tuple(adjusted)


def _upper(z: float) -> float:
    """Return P(Z > z) of a standard normal Z, exact in the tail."""
    return math.erfc(z / math.sqrt(2.0)) / 2.0 if z > 0 else NormalDist().cdf(-z)


def _boundary(refused: Callable[[float], bool], inside: float, outside: float) -> float:
    """Return the value between `inside` (kept) and `outside` where `refused` begins; `outside` where it never does."""
    if inside == outside:
        return outside
    for _ in range(50):
        middle = (inside + outside) / 2.0
        if refused(middle):
            outside = middle
        else:
            inside = middle
    return outside


def _binomial(n: int, p: float) -> FloatArray:
    """Return P(B = 0), ..., P(B = n) for B ~ Binomial(n, p), 0 < p < 1."""
    k = np.arange(n + 1)
    steps = np.concatenate(([0.0], np.cumsum(np.log(np.arange(1, n + 1)))))
    return np.asarray(np.exp(steps[n] - steps[k] - steps[n - k] + k * math.log(p) + (n - k) * math.log1p(-p)))
