"""Which of two sessions is faster, on a machine that is never quiet: interleaved blocks, ratios from pairs.

A round runs every session in a random order and then in the reverse order. A slow change of the machine that is linear
within a round cancels; whatever else the machine does, chance decided whom it hit. Two processes of one artifact still
differ lastingly (where their memory lies, which caches they share), and no number of rounds between them shows that: so
all sessions are opened anew every `ROUNDS_PER_LAUNCH` rounds, a launch, and what counts is one log ratio of each.
Exchanging two artifacts of equal speed would only change the sign of a launch's log ratio, with probability one half,
in every launch anew: the signed-rank test and its interval are exact for any autocorrelation, drift and distribution
(randomization inference). Random orders are used instead of a Latin square, whose rows are not independent of each
other.

Source:
    Curtsinger & Berger 2013, STABILIZER (ASPLOS): layout alone moves programs by more than most optimizations do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from edgebench import stats
from edgebench.errors import CannotMeasure, UsageError
from edgebench.stats import FloatArray
from edgebench.timing_types import Block, Comparison, PairedTrace, PairPlan

CONFIDENCE = 0.975
"""Of intervals between sessions: "different" is said falsely in one of forty comparisons, so that one in twenty is kept
even where an assumption is only nearly met."""
EXACT_ROUNDS = 200
"""Above, the null distribution is taken as normal."""
ROUNDS_PER_LAUNCH = 2
PILOT_ROUNDS = 20
LEAST_ROUNDS = 7 * ROUNDS_PER_LAUNCH
"""Fewer have no interval at `CONFIDENCE`."""
Run = Callable[[int], Block]
"""Runs that many inferences now and returns their latencies; `Block.session` is set by `interleave`."""
Opened = Callable[[Sequence[str]], AbstractContextManager[Mapping[str, Run]]]
"""Opens sessions anew, in this order of their names; in reality each in a process of its own."""
Statistic = Callable[[FloatArray], float]


def interleave(opened: Opened, names: Sequence[str], *, rounds: int, inferences: int, seed: int = 0,
               rounds_per_launch: int = ROUNDS_PER_LAUNCH, told: Callable[[int], None] = lambda done: None,
               decided: Callable[[PairedTrace], bool] = lambda trace: False) -> PairedTrace:
    """Run all sessions in turns.

    Args:
        opened: Opens them, again and again.
        names: Of the sessions.
        rounds: Each runs every session twice.
        inferences: Per block.
        seed: Of the orders.
        rounds_per_launch: Rounds after which all sessions are opened anew.
        told: Hears after each round how many are done.
        decided: Hears all rounds after each launch; no further ones follow where it says so.

    Raises:
        UsageError: Fewer than two sessions, or no round or inference.
        CannotMeasure: A session returned another number of latencies, or some that are not above 0.
    """
    if len(names) < 2 or rounds < 1 or inferences < 1 or rounds_per_launch < 1:
        raise UsageError("expected two sessions or more, and rounds and inferences above 0, "
                         f"got {len(names)} sessions, {rounds} rounds and {inferences} inferences")
    generator = np.random.default_rng(seed)
    found: list[tuple[Block, ...]] = []
    while True:
        with opened([names[int(k)] for k in generator.permutation(len(names))]) as sessions:
            for _ in range(min(rounds_per_launch, rounds - len(found))):
                order = [int(k) for k in generator.permutation(len(names))]
                found.append(tuple(_block(names[which], which, sessions[names[which]], inferences)
                                   for which in (*order, *reversed(order))))
                told(len(found))
        trace = PairedTrace(names=tuple(names), seed=seed, rounds=tuple(found), rounds_per_launch=rounds_per_launch)
        if decided(trace) or len(found) == rounds:
            return trace


def _block(name: str, which: int, run: Run, inferences: int) -> Block:
    block = run(inferences)
    if len(block.latency_s) != inferences or not all(0 < value < math.inf for value in block.latency_s):
        raise CannotMeasure(f"{name} returned {len(block.latency_s)} latencies for {inferences} inferences, or some "
                            "that are not above 0 s")
    return Block(session=which, begin_ns=block.begin_ns, latency_s=block.latency_s)


def measure_pairs(opened: Opened, names: Sequence[str], pairs: Sequence[tuple[str, str]], margin: float, *,
                  inferences: int, power: float = 0.8, confidence: float = CONFIDENCE, pilot: int = PILOT_ROUNDS,
                  most: int = 500, seed: int = 0,
                  told: Callable[[int, int], None] = lambda done, total: None) -> tuple[PairedTrace, PairPlan]:
    """Run a pilot, plan from its spread alone how many rounds the margin takes, and run the rest of them.

    The pilot's rounds count: the plan looks at how far they scatter around their own centre, not at where that lies.

    Args:
        opened: Opens the sessions, again and again.
        names: Of the sessions; those in no pair run along.
        pairs: Baseline and candidate of each comparison; the one that needs most decides.
        margin: Relative change to find with the power: 0.03 for 3 %.
        inferences: Per block.
        power: Chance to find it.
        confidence: Of the interval that has to leave 1 out.
        pilot: Rounds of the pilot, at least 6 launches.
        most: Limit of all rounds.
        seed: Of the orders.
        told: Hears rounds done and planned.
    """
    pilot = math.ceil(pilot / ROUNDS_PER_LAUNCH) * ROUNDS_PER_LAUNCH
    first = interleave(opened, names, rounds=pilot, inferences=inferences, seed=seed,
                       told=lambda done: told(done, pilot))
    plan = max((rounds_needed(log_ratios(first, *pair), margin, power=power, confidence=confidence,
                              most=max(1, most // ROUNDS_PER_LAUNCH), rounds_per_launch=ROUNDS_PER_LAUNCH)
                for pair in pairs), key=lambda one: (one.rounds, one.capped))
    if plan.rounds <= pilot:
        return first, plan
    rest = interleave(opened, names, rounds=plan.rounds - pilot, inferences=inferences, seed=seed + 1,
                      told=lambda done: told(pilot + done, plan.rounds))
    return PairedTrace(names=first.names, seed=seed, rounds=(*first.rounds, *rest.rounds),
                       rounds_per_launch=ROUNDS_PER_LAUNCH), plan


def median(values: FloatArray) -> float:
    """Return the median of a block's latencies."""
    return float(np.median(values))


def log_ratios(trace: PairedTrace, baseline: str, candidate: str, statistic: Statistic = median) -> FloatArray:
    """Return per launch (P,) the mean log ratio, candidate over baseline, of a statistic of their blocks.

    Raises:
        UsageError: A name that is no session of the trace.
    """
    for name in (baseline, candidate):
        if name not in trace.names:
            raise UsageError(f"no session {name!r} in these pairs", f"known: {', '.join(trace.names)}")
    a, b = trace.names.index(baseline), trace.names.index(candidate)
    rows = []
    for blocks in trace.rounds:
        sums = dict.fromkeys(range(len(trace.names)), 0.0)
        for block in blocks:
            sums[block.session] += math.log(statistic(np.asarray(block.latency_s)))
        rows.append((sums[b] - sums[a]) / 2.0)
    return np.array([float(np.mean(rows[start:start + trace.rounds_per_launch]))
                     for start in range(0, len(rows), trace.rounds_per_launch)])


def compare(trace: PairedTrace, baseline: str, candidate: str, confidence: float = CONFIDENCE,
            statistic: Statistic = median) -> Comparison:
    """Return the ratio of two sessions' latencies, candidate over baseline, with its interval.

    Raises:
        UsageError: A name that is no session of the trace.
    """
    ratios = log_ratios(trace, baseline, candidate, statistic)
    estimate, low, high, p_value = signed_rank(ratios, confidence)
    return Comparison(
        baseline=baseline, candidate=candidate, ratio=math.exp(estimate), low=None if low is None else math.exp(low),
        high=None if high is None else math.exp(high), p_value=p_value, confidence=confidence,
        rounds=len(trace.rounds), launches=ratios.size,
        method="Hodges-Lehmann estimate of log ratios of block medians, one per launch of fresh processes, of mirrored "
               "rounds in random order; interval by inversion of the signed-rank test, exact by randomization")


def signed_rank(values: npt.ArrayLike,
                confidence: float = CONFIDENCE) -> tuple[float, float | None, float | None, float]:
    """Return (estimate, low, high, p-value) of the centre of `values` (n,), symmetric by design.

    The estimate is the median of the averages of all pairs; an end is None where n is too small for the confidence.

    Raises:
        ValueError: `values` is empty or not finite, or `confidence` is not between 0 and 1.

    Source:
        Hollander, Wolfe & Chicken 2013, Nonparametric Statistical Methods, sections 3.1 to 3.3.
    """
    series = np.asarray(values, dtype=np.float64)
    if series.ndim != 1 or not series.size or not np.isfinite(series).all() or not 0 < confidence < 1:
        raise ValueError(f"expected finite values and a confidence between 0 and 1, got shape {series.shape} and "
                         f"{confidence}")
    first, second = np.triu_indices(series.size)
    walsh = np.sort((series[first] + series[second]) / 2.0)
    cumulated = _signed_rank_cdf(series.size)
    outside = int(np.count_nonzero(cumulated <= (1.0 - confidence) / 2.0))
    # Walsh averages of exactly 0 speak for neither side.
    above, below = int(np.count_nonzero(walsh > 0)), int(np.count_nonzero(walsh < 0))
    p_value = min(1.0, 2.0 * float(cumulated[walsh.size - max(above, below)]))
    ends = (float(walsh[outside - 1]), float(walsh[-outside])) if outside else (None, None)
    return float(np.median(walsh)), *ends, p_value


@lru_cache(maxsize=64)
def _signed_rank_cdf(n: int) -> FloatArray:
    """Return P(W <= w) for w = 0, 1, …, n(n+1)/2: W sums the ranks whose fair coin shows heads."""
    total = n * (n + 1) // 2
    if n > EXACT_ROUNDS:
        deviation = math.sqrt(total * (2 * n + 1) / 12.0)
        z = (np.arange(total + 1) + 0.5 - total / 2.0) / deviation
        normal: FloatArray = np.array([0.5 * math.erfc(-one / math.sqrt(2.0)) for one in z])
        return normal
    chances = np.zeros(total + 1)
    chances[0] = 1.0
    for rank in range(1, n + 1):
        shifted = np.concatenate((np.zeros(rank), chances[:-rank]))
        chances = (chances + shifted) / 2.0
    exact: FloatArray = np.cumsum(chances)
    return exact


def rounds_needed(pilot: npt.ArrayLike, margin: float, *, power: float = 0.8, confidence: float = CONFIDENCE,
                  most: int = 500, rounds_per_launch: int = 1) -> PairPlan:
    """Return how many rounds find a ratio of 1 + margin with at least the power, from a pilot's log ratios (n,).

    Noether's formula with the pilot's own shape: n = (z_a + z_b)^2 / (3 (p - 1/2)^2), p the chance that the mean of two
    log ratios exceeds 0 where the change is log(1 + margin). The pilot is spread by the factor that covers its own
    uncertainty in 80 of 100 pilots, and once more where its log ratios follow each other.

    Args:
        pilot: Log ratios, one per launch, at least 6; their own centre does not matter.
        margin: Relative change to find, above 0: 0.03 for 3 %.
        power: Chance to find it, 0 to 1.
        confidence: Of the interval that has to leave 1 out.
        most: Limit of log ratios; `PairPlan.capped` tells that it was reached.
        rounds_per_launch: Rounds in each log ratio.

    Raises:
        ValueError: A pilot of fewer than 6 log ratios, or a number out of its range.

    Source:
        Noether 1987, JASA 82:645; Browne 1995, Statistics in Medicine 14:1933 (upper limit of the pilot's spread).
    """
    series = np.asarray(pilot, dtype=np.float64)
    n = series.size
    if n < 6 or margin <= 0 or not (0 < power < 1 and 0 < confidence < 1):
        raise ValueError("expected 6 log ratios or more, a margin above 0, power and confidence between 0 and 1, "
                         f"got {n}, {margin}, {power} and {confidence}")
    first, second = np.triu_indices(n, k=1)
    centred = series - signed_rank(series, confidence)[0]
    z = stats.normal_quantile((1.0 + confidence) / 2.0) + stats.normal_quantile(power)
    inflation = math.sqrt((n - 1) / stats.chi_square_quantile(0.2, n - 1)) * math.sqrt(_dependence(centred))
    # Symmetric by design, so a round counts with either sign.
    pairs = inflation / 2.0 * np.abs(np.concatenate((centred[first] + centred[second],
                                                     centred[first] - centred[second])))
    chance = 0.5 + 0.5 * float(np.mean(pairs < math.log1p(margin)))
    least = next(k for k in range(1, 100) if 2.0**(1 - k) <= 1.0 - confidence)
    # Noether's normal approximation asks for more than twice what suffices where all log ratios lie on one side.
    needed = least if chance == 1.0 else max(least, math.ceil(z**2 / (3.0 * (chance - 0.5)**2))) if chance > 0.5 \
        else most + 1
    robust = 1.4826 * float(np.median(np.abs(centred)))
    return PairPlan(rounds=min(needed, most) * rounds_per_launch, margin=margin, power=power, confidence=confidence,
                    pilot_rounds=n * rounds_per_launch, spread=robust, capped=needed > most)


def _dependence(values: FloatArray) -> float:
    """Return the factor by which first-order autocorrelation widens a mean's variance; 1 where it may be chance."""
    power = float(values @ values)
    rho = float(values[:-1] @ values[1:]) / power if power else 0.0
    if rho < 1.0 / math.sqrt(values.size):
        return 1.0
    rho = min(rho, 0.9)
    return (1.0 + rho) / (1.0 - rho)
