"""Steady state, found instead of assumed: windows, trend, level shifts, two states, outliers; and a bounded retry.

A trace is judged by what would make its median mean something else than "the latency". Each finding needs two things:
it is more than chance, and it is large enough to matter (`TOLERANCE`). Unstable traces carry a diagnosis and a hint.

Of 500 simulated clean traces of 400 timings each: independent ones and heavy-tailed ones none are called unstable,
autocorrelated ones (5 % spread correlated by 0.5, or 2 % by 0.9) 0.4 %, wide log-normal ones (30 %) 1 %. Slow noise
that itself moves the level by 5 % and more is a changing level, and about one in ten of such traces is called so.
"""

from __future__ import annotations

import gc
import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgebench import stats
from edgebench.stats import FloatArray
from edgebench.timing_types import Attempts, Finding, QueryTrace, SteadyVerdict

TOLERANCE = 0.05
"""Relative change of level that matters."""
WINDOW_RATIO = 1.10
"""Largest over smallest median of the last windows, as in perf_analyzer."""
LAST_WINDOWS = 3
WINDOWS = 20
TREND_P = 0.01
OUTLIER_Z = 14.826
"""In median absolute deviations from the median, as in hyperfine: 10 standard deviations of a normal distribution."""
OUTLIER_SHARE = 0.02
ENOUGH = 60
"""Timings below which trend, shifts and states are not looked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TwoStates:
    """The best split of a trace's values in two."""

    low_s: float
    high_s: float
    high_share: float
    """Share of timings in the slower state."""
    separation: float
    """Ashman's D."""


def judge(values: npt.ArrayLike) -> SteadyVerdict:
    """Return whether latencies (n,) in seconds, in order, come from a steady state, and why not.

    Raises:
        ValueError: `values` is empty, not one-dimensional or not finite.
    """
    series = np.asarray(values, dtype=np.float64)
    if series.ndim != 1 or not series.size or not np.isfinite(series).all():
        raise ValueError(f"expected finite values in one dimension, got shape {series.shape}")
    n, median = series.size, float(np.median(series))
    found: list[Finding] = []
    if median <= 0:
        found.append(Finding(code="coarse-clock", unstable=True, hint="time larger batches",
                             message="the clock did not advance during most inferences"))
        return _verdict(found, n, 1.0, None, (), 0.0, n)
    windows = window_medians(series)
    last = windows[-LAST_WINDOWS:]
    ratio = float(last.max() / last.min()) if last.min() > 0 else math.inf
    # Medians of few, widely spread timings differ by chance: the range of three exceeds 5 of their standard deviations
    # in about one case of a thousand.
    by_chance = float(last.max() - last.min()) < 5.0 * math.sqrt(_noise_variance(windows))
    outliers = float(np.mean(outlier_mask(series)))
    trend: tuple[float, float] | None = None
    points: tuple[int, ...] = ()
    states = two_states(series)
    if n < ENOUGH:
        found.append(Finding(code="few-timings", unstable=False, hint="a longer budget",
                             message=f"{n} timings do not show whether the state is steady; {ENOUGH} are the least"))
    else:
        points = change_points(series)
        medians = window_medians(series, min(60, max(8, n // 10)))
        trend = relative_trend(medians), mann_kendall_p(medians)
    if states is not None:
        found.append(Finding(
            code="bimodal", unstable=True,
            hint="pin the clocks and stop other load; a median of two states describes neither",
            message=f"two states, {states.low_s * 1e3:.3f} ms and {states.high_s * 1e3:.3f} ms "
                    f"({states.high_share:.0%} of the timings)"))
    found.extend(_shifts(series, points))
    if trend is not None and trend[1] < TREND_P and abs(trend[0]) >= TOLERANCE:
        found.append(Finding(
            code="trend", unstable=True, hint="let temperature and clocks settle: a longer warm-up, better cooling",
            message=f"latency {'rose' if trend[0] > 0 else 'fell'} by {abs(trend[0]):.0%} over the run "
                    f"(p = {trend[1]:.1g})"))
    if ratio > WINDOW_RATIO and not by_chance and n >= ENOUGH:
        found.append(Finding(
            code="windows", unstable=True, hint="stop other load on the machine, or measure longer",
            message=f"the medians of the last {LAST_WINDOWS} windows lie {ratio - 1:.0%} apart"))
    if outliers > OUTLIER_SHARE:
        found.append(Finding(
            code="outliers", unstable=False, hint="look for other load, interrupts and garbage collection",
            message=f"{outliers:.1%} of the timings are far outside the rest"))
    return _verdict(found, n, ratio, trend, points, outliers, _settled_from(n, points, found))


def _shifts(series: FloatArray, points: tuple[int, ...]) -> list[Finding]:
    if not points:
        return []
    edges = (0, *points, series.size)
    levels = [float(np.median(series[a:b])) for a, b in itertools.pairwise(edges)]
    steps = ", ".join(f"{level * 1e3:.3f} ms from timing {edge + 1}"
                      for edge, level in zip(edges[:-1], levels, strict=True))
    if len(points) == 1 and points[0] <= series.size // 4 and levels[0] > levels[1]:
        return [Finding(code="slow-start", unstable=True, hint="a longer warm-up",
                        message=f"the first {points[0]} timings are {levels[0] / levels[1] - 1:.0%} slower than "
                                "the rest")]
    return [Finding(code="level-shift", unstable=True, message=f"the level changes: {steps}",
                    hint="look for clock changes, throttling and other load at those times")]


def _settled_from(n: int, points: tuple[int, ...], found: list[Finding]) -> int:
    if any(one.unstable and one.code not in ("slow-start", "level-shift") for one in found):
        return n
    # A level that came near the end has not proven itself.
    last = points[-1] if points else 0
    return last if last <= n // 2 else n


def _verdict(found: list[Finding], n: int, ratio: float, trend: tuple[float, float] | None, points: tuple[int, ...],
             outliers: float, settled: int) -> SteadyVerdict:
    wrong = [one for one in found if one.unstable]
    few = [one for one in found if one.code == "few-timings"]
    said = wrong or few
    return SteadyVerdict(
        verdict="unstable" if wrong else "undecided" if few else "steady",
        diagnosis="; ".join(one.message for one in said) or f"steady: {n} timings show no trend, shift or second state",
        hint=said[0].hint if said else "", findings=tuple(found), n=n, window_ratio=ratio,
        trend_change=trend[0] if trend else None, trend_p=trend[1] if trend else None, change_points=points,
        outlier_share=outliers, settled_from=settled)


def window_medians(values: FloatArray, count: int = WINDOWS) -> FloatArray:
    """Return the medians of up to `count` windows of equal length, in order."""
    return np.array([np.median(part) for part in np.array_split(values, min(count, values.size))])


def outlier_mask(values: FloatArray) -> npt.NDArray[np.bool_]:
    """Return which values lie far from the median, by median absolute deviations.

    Source:
        Iglewicz & Hoaglin 1993, How to Detect and Handle Outliers (modified Z-score).
    """
    distance = np.abs(values - np.median(values))
    spread = float(np.median(distance))
    # Where more than half of the values are equal, the clock's step is the spread.
    mask: npt.NDArray[np.bool_] = distance > OUTLIER_Z * (spread or 0.01 * float(np.median(values)))
    return mask


def relative_trend(values: FloatArray) -> float:
    """Return the Theil-Sen change from the first to the last value, relative to their median."""
    return stats.theil_sen(values) * (values.size - 1) / float(np.median(values))


def mann_kendall_p(values: npt.ArrayLike) -> float:
    """Return the two-sided p-value of no trend in `values` (n,), corrected for autocorrelation and ties.

    The variance is multiplied by 1 + 2 sum (1 - k/n) rho^k, with rho the first autocorrelation of the ranks of the
    detrended values, corrected for the bias that detrending few values leaves; never by less than 1.

    Raises:
        ValueError: Fewer than 8 or more than `stats.MAX_TREND_POINTS` values.

    Source:
        Yue & Wang 2004, Water Resources Management 18:201; Kendall 1954, Biometrika 41:403 (bias). Hamed & Rao's 1998
        sum over significant lags alone raises three times as many false alarms on 40 windows correlated by 0.6.
    """
    series = np.asarray(values, dtype=np.float64)
    n = series.size
    if n < 8:
        raise ValueError(f"expected at least 8 values, got {n}")
    first, second = np.triu_indices(n, k=1)
    score = float(np.sign(series[second] - series[first]).sum())
    _, ties = np.unique(series, return_counts=True)
    variance = (n * (n - 1) * (2 * n + 5) - float((ties * (ties - 1) * (2 * ties + 5)).sum())) / 18.0
    if variance <= 0:
        return 1.0
    ranks = _ranks(series - stats.theil_sen(series) * np.arange(n))
    centred = ranks - ranks.mean()
    power = float(centred @ centred)
    rho = float(centred[:-1] @ centred[1:]) / power if power else 0.0
    rho = min(max((rho * n + 1.0) / (n - 4.0), 0.0), 0.95)
    lags = np.arange(1, n)
    deviation = math.sqrt(variance * (1.0 + 2.0 * float(((1.0 - lags / n) * rho**lags).sum())))
    z = max(0.0, abs(score) - 1.0) / deviation
    return math.erfc(z / math.sqrt(2.0))


def _ranks(values: FloatArray) -> FloatArray:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    upper = np.cumsum(counts)
    ranks: FloatArray = (upper - (counts - 1) / 2.0)[inverse]
    return ranks


def change_points(values: npt.ArrayLike, tolerance: float = TOLERANCE, blocks: int = 100) -> tuple[int, ...]:
    """Return the indices at which the level of `values` (n,) changes, each the first of its new level.

    Optimal partitioning of block medians by least squares with a BIC-like penalty of 3 sigma^2 log m per change, sigma
    from differences over several lags; changes of less than `tolerance` of the level are merged away. Blocks of 10
    timings or more, so that single outliers do not count; the place of a change is known to a block.

    Source:
        Jackson et al. 2005, IEEE Signal Processing Letters 12:105 (optimal partitioning); Yao 1988, Statistics &
        Probability Letters 6:181 (penalty); Killick, Fearnhead & Eckley 2012, JASA 107:1590 (the same optimum, pruned).
    """
    series = np.asarray(values, dtype=np.float64)
    count = min(blocks, series.size // 10)
    if count < 6:
        return ()
    parts = np.array_split(np.arange(series.size), count)
    edges = shifts(np.array([np.median(series[part]) for part in parts]), 0.0)
    return _merged(series, [int(parts[edge][0]) for edge in edges], tolerance)


def shifts(medians: FloatArray, tolerance: float = TOLERANCE) -> tuple[int, ...]:
    """Return the indices at which the level of block medians (m,) changes; as `change_points`, without blocks."""
    if medians.size < 6:
        return ()
    edges = _partition(medians, 3.0 * _noise_variance(medians) * math.log(medians.size))
    return _merged(medians, edges, tolerance)


def _merged(values: FloatArray, edges: Sequence[int], tolerance: float) -> tuple[int, ...]:
    """Return the edges between levels that differ by at least `tolerance`, the smallest step removed first."""
    starts = [0, *edges]
    while len(starts) > 1:
        levels = np.array([np.median(values[a:b]) for a, b in itertools.pairwise((*starts, values.size))])
        steps = np.abs(np.diff(levels)) / np.minimum(levels[:-1], levels[1:]).clip(1e-30)
        least = int(steps.argmin())
        if steps[least] >= tolerance:
            break
        del starts[least + 1]
    return tuple(starts[1:])


def _noise_variance(medians: FloatArray) -> float:
    """Return the variance of block medians around their level, robust against shifts; autocorrelation included."""
    # A shift falls into few differences, so their median does not see it. Differences over several lags see what slow
    # noise does that neighbours do not tell; the largest is taken.
    found = [np.median(np.abs(medians[lag:] - medians[:-lag])) for lag in (1, 2, 3, 5, 8) if medians.size > 4 * lag]
    if not found:
        return 0.0
    deviation = 1.4826 * float(max(found)) / math.sqrt(2.0)
    return max(deviation, 1e-3 * float(np.median(medians)))**2


def _partition(values: FloatArray, penalty: float) -> list[int]:
    sums, squares = np.concatenate(([0.0], np.cumsum(values))), np.concatenate(([0.0], np.cumsum(values**2)))
    best, previous = np.zeros(values.size + 1), np.zeros(values.size + 1, dtype=np.int64)
    best[0] = -penalty
    for end in range(1, values.size + 1):
        start = np.arange(end)
        cost = squares[end] - squares[start] - (sums[end] - sums[start])**2 / (end - start)
        total = best[start] + cost + penalty
        # A level is at least two blocks long.
        total[(end - start < 2) & (start > 0)] = math.inf
        previous[end] = int(total.argmin())
        best[end] = total[previous[end]]
    edges, at = [], int(previous[values.size])
    while at > 0:
        edges.append(at)
        at = int(previous[at])
    return edges[::-1]


def two_states(values: FloatArray) -> TwoStates | None:
    """Return the two humps of `values` (n,) where they stand apart, whatever the order; None otherwise.

    The best split in two explains the spread far better than chance would: Ashman's D of 5 or more, where a normal
    distribution gives 2.7 and a uniform one 3.5, and means at least `TOLERANCE` apart. A tenth of the timings at least
    on either side; the outermost 2 % do not count.

    Source:
        Ashman, Bird & Zepf 1994, Astronomical Journal 108:2348.
    """
    ordered = np.sort(values)[len(values) // 50: len(values) - len(values) // 50]
    n = len(ordered)
    if n < ENOUGH:
        return None
    sums, squares = np.cumsum(ordered), np.cumsum(ordered**2)
    left = np.arange(n // 10, n - n // 10)
    mean_low, mean_high = sums[left - 1] / left, (sums[-1] - sums[left - 1]) / (n - left)
    var_low = squares[left - 1] / left - mean_low**2
    var_high = (squares[-1] - squares[left - 1]) / (n - left) - mean_high**2
    within = var_low * left + var_high * (n - left)
    best = int(np.argmin(within))
    separation = 2**0.5 * (mean_high[best] - mean_low[best]) / max(float(var_low[best] + var_high[best]), 1e-30)**0.5
    ratio = float(mean_high[best] / max(float(mean_low[best]), 1e-30))
    if separation < 5 or ratio < 1.0 + TOLERANCE:
        return None
    return TwoStates(low_s=float(mean_low[best]), high_s=float(mean_high[best]),
                     high_share=float(1 - left[best] / n), separation=float(separation))


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the garbage collector out of timings."""
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmUp:
    """Untimed inferences until the machine had settled, or time was up."""

    durations_ns: tuple[int, ...]
    settled: bool | None
    """None where the count alone decided."""


def warm_up(infer: Callable[[], object], *, min_count: int, min_s: float, max_s: float, window_s: float = 0.1,
            clock: Callable[[], int] = time.perf_counter_ns) -> WarmUp:
    """Run inferences until their count and duration are reached and the last windows agree, or until `max_s`.

    A window holds at least five inferences and `window_s`. The last `LAST_WINDOWS` windows agree where their largest
    median is at most `TOLERANCE` above the smallest. Without any time (`min_s` and `max_s` of 0, as in a smoke test)
    only the count decides.
    """
    durations: list[int] = []
    medians: list[float] = []
    window: list[int] = []
    begin = opened = clock()
    while True:
        start = clock()
        infer()
        end = clock()
        durations.append(end - start)
        window.append(end - start)
        if len(window) >= 5 and end - opened >= window_s * 1e9:
            medians.append(float(np.median(window)))
            window, opened = [], end
        last = medians[-LAST_WINDOWS:]
        settled = len(last) == LAST_WINDOWS and max(last) <= (1.0 + TOLERANCE) * min(last)
        enough = len(durations) >= min_count and end - begin >= min_s * 1e9
        if enough and (settled or not max_s):
            return WarmUp(durations_ns=tuple(durations), settled=settled if max_s else None)
        if max_s and end - begin >= max_s * 1e9:
            return WarmUp(durations_ns=tuple(durations), settled=settled)


def measure_until_steady(measure: Callable[[float], QueryTrace], *, retries: int = 2, pause_s: float = 0.0,
                         sleep: Callable[[float], None] = time.sleep,
                         told: Callable[[SteadyVerdict], None] = lambda verdict: None) -> Attempts:
    """Measure until a trace is not unstable, at most `retries` times again; every trace is kept.

    Args:
        measure: Measures once, with its warm-up as many times longer as it is told: 1, then 2, then 4 ….
        retries: Further tries after the first, 0 or more.
        pause_s: To wait before each further try, doubled each time: heat leaves slowly.
        sleep: Waits that many seconds.
        told: Hears each verdict.
    """
    traces: list[QueryTrace] = []
    verdicts: list[SteadyVerdict] = []
    for attempt in range(retries + 1):
        if attempt and pause_s:
            sleep(pause_s * 2.0**(attempt - 1))
        traces.append(measure(2.0**attempt))
        # Queues make the latencies of open loops follow each other; what the session itself does is its service time.
        verdicts.append(judge(traces[-1].service_s))
        told(verdicts[-1])
        if verdicts[-1].verdict != "unstable":
            break
    return Attempts(traces=tuple(traces), verdicts=tuple(verdicts))
