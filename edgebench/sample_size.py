"""How many images or timings a limit needs before it can be decided. Numbers in, numbers out.

All sizes are for one-sided tests: the limit is shown to be kept with probability `power` where the truth is as assumed,
and is wrongly shown to be kept with probability at most 1 - `confidence` where it is broken.
"""

from __future__ import annotations

import math

from edgebench import stats
from edgebench.checks import check

MOST = 10**9
"""Beyond this many nothing is planned."""


def difference(margin: float, discordant: float, *, confidence: float = 0.95, power: float = 0.8,
               loss: float = 0.0) -> int | None:
    """Return the images needed to show that a share falls by less than `margin` on the same images.

    Args:
        margin: The largest fall allowed, as a fraction.
        discordant: Share of images where exactly one of the two variants counts, such as being right.
        confidence: One-sided, 0 to 1.
        power: Chance of deciding, 0 to 1.
        loss: The true fall assumed; 0 for a variant as good as its reference.

    Returns:
        None where the true fall is not below the margin: no number decides that.

    Source:
        Liu, Hsueh, Hsieh & Chen 2002, Statistics in Medicine 21:231; normal approximation of the paired difference.
    """
    check(0.0 <= discordant <= 1.0, "discordant between 0 and 1", discordant)
    if margin <= loss:
        return None
    variance = max(discordant - loss * loss, 0.0)
    by_variance = (_z(confidence) + _z(power)) ** 2 * variance / (margin - loss) ** 2
    # Without any flip the score interval still has an arm of z^2/(n + z^2).
    at_least = _z(confidence) ** 2 * (1.0 - margin) / margin
    return _whole(max(by_variance, at_least))


def rate(limit: float, expected: float, *, confidence: float = 0.95, power: float = 0.8) -> int | None:
    """Return the images needed to show on which side of `limit` a rate lies that truly is `expected`.

    At least so many that without a single hit, or without a single miss, the exact test is conclusive.

    Source:
        Fleiss, Levin & Paik 2003, Statistical Methods for Rates and Proportions, section 2.5.
    """
    check(0.0 < limit < 1.0, "limit between 0 and 1, both excluded", limit)
    check(0.0 <= expected <= 1.0, "expected between 0 and 1", expected)
    if expected == limit:
        return None
    reach = _z(confidence) * math.sqrt(limit * (1 - limit)) + _z(power) * math.sqrt(expected * (1 - expected))
    extreme = math.log(1.0 - confidence) / (math.log1p(-limit) if expected < limit else math.log(limit))
    return _whole(max((reach / (limit - expected)) ** 2, extreme))


def quantile(q: float, expected_within: float, *, confidence: float = 0.95, power: float = 0.8) -> int | None:
    """Return the timings needed to show that the `q` quantile of latency keeps a limit, or breaks it.

    Args:
        q: Such as 0.99.
        expected_within: Share of timings within the limit, as a pilot shows it.
        confidence: One-sided, 0 to 1.
        power: Chance of deciding, 0 to 1.
    """
    check(0.0 < q < 1.0, "q between 0 and 1, both excluded", q)
    return rate(1.0 - q, 1.0 - expected_within, confidence=confidence, power=power)


def ratio(margin: float, spread: float, *, confidence: float = 0.95, power: float = 0.8,
          expected: float = 1.0) -> int | None:
    """Return the interleaved pairs of timings needed to show by signs that the median ratio is below 1 + `margin`.

    Args:
        margin: The largest increase allowed, such as 0.05.
        spread: Standard deviation of the logarithms of paired ratios in the pilot, taken as normal.
        confidence: One-sided, 0 to 1.
        power: Chance of deciding, 0 to 1.
        expected: The true ratio assumed.
    """
    check(margin > -1.0 and spread > 0.0 and expected > 0.0, "margin above -1, spread and expected above 0",
          (margin, spread, expected))
    distance = (math.log1p(margin) - math.log(expected)) / spread
    above = math.erfc(distance / math.sqrt(2.0)) / 2.0
    return rate(0.5, above, confidence=confidence, power=power)


def from_interval(n: int, arm: float, arm_confidence: float, distance: float, *, confidence: float = 0.95,
                  power: float = 0.8) -> int | None:
    """Return the images or timings needed where `n` gave an interval with this arm: its width falls as 1/sqrt(n).

    Args:
        n: Behind the interval.
        arm: From the estimate towards the limit.
        arm_confidence: Two-sided level of the interval.
        distance: From the estimate to the limit, positive.
        confidence: One-sided, 0 to 1.
        power: Chance of deciding, 0 to 1.
    """
    if distance <= 0.0 or arm <= 0.0:
        return None
    error = arm / stats.normal_quantile((1.0 + arm_confidence) / 2.0)
    return _whole(n * ((_z(confidence) + _z(power)) * error / distance) ** 2)


def sequential_floor(confidence: float, power: float) -> float:
    """Return the least share of the fixed number that any sequential test needs on average, truth as planned.

    Where a difference is normal, Wald's test needs 2 log(1/alpha) variances over the squared margin if it is never to
    give up, and the fixed plan (z_confidence + z_power)^2. Fewer are needed only where the truth is better, or worse,
    than the plan assumed, as where nothing flips.

    Source:
        Wald 1947, Sequential Analysis, section 3.5.
    """
    return -2.0 * math.log(1.0 - confidence) / (_z(confidence) + _z(power)) ** 2


def _z(p: float) -> float:
    return stats.normal_quantile(p)


def _whole(n: float) -> int | None:
    # A product that should be whole may lie a rounding error above it.
    return math.ceil(n * (1 - 1e-12)) if n <= MOST else None
