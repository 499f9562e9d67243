"""How long is measured, what timings come to, and the doubts that they raise about themselves."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from edgebench import scenario_scores, stats, steady
from edgebench.errors import unknown
from edgebench.record import Caveat, Environment, LatencyTrace, Score

Clock = Callable[[], int]
"""Returns nanoseconds on a monotonic scale."""
MIN_BATCHES = 20
CONFIDENCE = 0.95
"""Two-sided, of intervals where no budget says otherwise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """How long one scenario is measured: until both the count and the duration are reached, or time is up."""

    name: str
    warmup_count: int
    warmup_s: float
    min_count: int
    """Single-stream timings."""
    min_batches: int
    """Timings of the offline scenario, each of a whole batch."""
    min_s: float
    max_s: float
    confidence: float = CONFIDENCE
    """Two-sided, of the intervals of percentiles and throughput."""
    min_images: int = 0
    """Images of the offline scenario, all batches together."""
    server_queries: int = 1000
    """Queries of each arrival rate that the server scenario tries."""
    search_max_s: float = 600.0
    """How long the search for the highest arrival rate may last, all rates together."""
    retries: int = 2
    """Further tries at a scenario whose timings are not steady."""
    warmup_max_s: float | None = None
    """Where the warm-up has not settled by then, it ends all the same; None: at `max_s`; 0: the count alone
    decides."""

    def batches(self, images: int) -> int:
        """Return how many batches of so many images the offline scenario times at least."""
        return max(self.min_batches, math.ceil(self.min_images / images))


BUDGETS = {budget.name: budget for budget in (
    # To see whether everything works; far too short for numbers, and the caveats say so.
    Budget(name="smoke", warmup_count=1, warmup_s=0.0, min_count=8, min_batches=2, min_s=0.0, max_s=10.0,
           server_queries=50, search_max_s=10.0, warmup_max_s=0.0, retries=0),
    Budget(name="quick", warmup_count=10, warmup_s=1.0, min_count=400, min_batches=20, min_s=4.0, max_s=30.0,
           server_queries=500, search_max_s=60.0, warmup_max_s=5.0, retries=1),
    Budget(name="standard", warmup_count=20, warmup_s=3.0, min_count=1000, min_batches=100, min_s=20.0, max_s=180.0,
           server_queries=2000, warmup_max_s=30.0),
    # MLPerf's minimum duration of 600 s, its 1,024 queries and its 24,576 offline images.
    Budget(name="mlperf", warmup_count=50, warmup_s=10.0, min_count=1024, min_batches=100, min_images=24576,
           min_s=600.0, max_s=3600.0, confidence=0.99, server_queries=20000, search_max_s=7200.0, warmup_max_s=120.0),
)}


def budget(name: str) -> Budget:
    """Return the budget of that name.

    Raises:
        UsageError: There is none.
    """
    if name not in BUDGETS:
        raise unknown("budget", name, BUDGETS)
    return BUDGETS[name]


def clock_resolution_s(clock: Clock = time.perf_counter_ns) -> float:
    """Return the smallest step of the clock that is seen in a thousand tries, in seconds."""
    steps = []
    for _ in range(1000):
        start = clock()
        end = clock()
        steps.append(end - start)
    return min((step for step in steps if step > 0), default=0) / 1e9


def scores(trace: LatencyTrace, confidence: float = CONFIDENCE) -> tuple[Score, ...]:
    """Return latency percentiles of a single-stream trace (s), or the throughput of an offline trace (images/s).

    Args:
        trace: Raw timings.
        confidence: Two-sided, of the intervals; the budget's.
    """
    if trace.scenario == "offline":
        return (scenario_scores.throughput(
            trace.latency_s, trace.batch, confidence, name="throughput_offline",
            method="images of a batch over the mean time of back-to-back inferences"),)
    return (*scenario_scores.percentile_scores(
        trace.latency_s, confidence, facts={"images_per_query": trace.batch},
        method="order statistic x(ceil(nq)) of single-stream inferences, host to host"),
        Score(name="latency_mean", value=float(np.mean(trace.latency_s)), unit="s", better="lower",
              n=len(trace.latency_s), method="arithmetic mean", kind="estimate", method_id="mean",
              reason="percentiles carry the intervals", reason_code="not-computed"))


def caveats(trace: LatencyTrace, confidence: float = CONFIDENCE) -> tuple[Caveat, ...]:
    """Return what in the trace itself speaks against its numbers; percentiles are to be bounded at `confidence`."""
    values = np.asarray(trace.latency_s)
    median = float(np.median(values))
    name = trace.scenario
    if median == 0:
        return (Caveat(code="coarse-clock", message=f"{name}: the clock did not advance during an inference",
                       hint="time larger batches"),)
    found = []
    if trace.stopped == "max-duration":
        found.append(Caveat(code="max-duration", hint="a longer --budget, or a faster variant",
                            message=f"{name}: time was up after {len(values)} timings, before the budget was reached"))
    if trace.stopped == "decided":
        found.append(Caveat(
            code="stopped-early", hint="gate it with that policy; for the whole --budget measure without --until",
            message=f"{name}: timing stopped after {len(values):,} timings, when every rule about them was decided"))
    if name == "single-stream" and trace.batch > 1:
        found.append(Caveat(code="fixed-batch", hint="export with a batch that may vary, or of 1",
                            message=f"the model's batch is fixed: each latency is that of {trace.batch} images"))
    if name == "single-stream":
        found += scenario_scores.few_timings(name, trace.latency_s, confidence)
    if name == "offline" and len(values) < MIN_BATCHES:
        found.append(Caveat(code="few-timings", hint="use --budget quick or standard",
                            message=f"{len(values)} batches say little about throughput; {MIN_BATCHES} are the least"))
    if trace.clock_resolution_s * 100 > median:
        found.append(Caveat(
            code="coarse-clock", hint="time larger batches",
            message=f"{name}: the clock's step of {trace.clock_resolution_s * 1e9:.0f} ns is above 1 % of the median"))
    found.extend(caveat for caveat in (_slow_start(values, name), _drift(values, name), _bimodal(values, name),
                                       _spread(values, name)) if caveat)
    return tuple(found)


def _slow_start(values: np.ndarray[tuple[int], np.dtype[np.float64]], name: str) -> Caveat | None:
    if len(values) < 40:
        return None
    head, *others = _windows(values)
    rest = float(np.median(values[len(values) // 20:]))
    # One window in twenty is the slowest by chance alone: it has to stand out from all others as well.
    # A start may be slow for a quarter of the run, so its own neighbours do not count.
    if head < 1.1 * rest or head < 1.05 * max(others[5:]):
        return None
    return Caveat(code="slow-start", hint="a longer --budget warms up longer",
                  message=f"{name}: the first twentieth is {head / rest - 1:.0%} slower than the rest")


def _windows(values: np.ndarray[tuple[int], np.dtype[np.float64]], count: int = 20) -> list[float]:
    return [float(np.median(part)) for part in np.array_split(values, count)]


def _drift(values: np.ndarray[tuple[int], np.dtype[np.float64]], name: str) -> Caveat | None:
    if len(values) < 60:
        return None
    medians = _windows(values)
    change = stats.theil_sen(medians) * (len(medians) - 1) / float(np.median(values))
    # Kendall's tau of 20 independent windows exceeds 0.4 in about one case of a hundred.
    if abs(change) < 0.05 or abs(stats.kendall_tau(medians)) < 0.4:
        return None
    return Caveat(code="drift", hint="let the machine settle (heat, clocks, other load) and measure again",
                  message=f"{name}: latency {'rose' if change > 0 else 'fell'} by {abs(change):.0%} during the run")


def _bimodal(values: np.ndarray[tuple[int], np.dtype[np.float64]], name: str) -> Caveat | None:
    states = steady.two_states(values)
    if states is None:
        return None
    return Caveat(
        code="bimodal", hint="pin the clocks and stop other load; a median of two states describes neither",
        message=f"{name}: two states, {states.low_s * 1e3:.2f} ms and {states.high_s * 1e3:.2f} ms "
                f"({states.high_share:.0%} of the timings)")


def _spread(values: np.ndarray[tuple[int], np.dtype[np.float64]], name: str) -> Caveat | None:
    quarter, median, three = np.quantile(values, [0.25, 0.5, 0.75])
    if (three - quarter) / median < 0.15:
        return None
    return Caveat(code="noisy", hint="stop other load on the machine, or use a longer --budget",
                  message=f"{name}: the middle half of the timings spreads over {(three - quarter) / median:.0%} "
                          "of the median")


def environment_caveats(environment: Environment, threads: int) -> tuple[Caveat, ...]:
    """Return what in the machine's state speaks against the timings."""
    found = []
    if environment.governor not in (None, "performance") and not environment.clocks_pinned.get("cpu"):
        found.append(Caveat(code="governor", message=f"the CPU frequency governor is {environment.governor!r}",
                            hint="set it to 'performance' while measuring: cpupower frequency-set -g performance"))
    if environment.gpu_governor not in (None, "performance") and not environment.clocks_pinned.get("gpu"):
        found.append(Caveat(
            code="gpu-governor", hint="pin it while measuring: on a Jetson with --jetson-clocks",
            message=f"the GPU's clock is not pinned: its governor is {environment.gpu_governor!r}"))
    if environment.load_before is not None and environment.load_before > 0.15 * environment.cpus_usable:
        found.append(Caveat(
            code="other-load", hint="stop other work and measure again",
            message=f"other work kept {environment.load_before:.1f} of {environment.cpus_usable} CPUs busy before "
                    "timing"))
    if threads > environment.cpus_usable:
        found.append(Caveat(code="oversubscribed", hint="use --threads with at most the usable CPUs",
                            message=f"{threads} threads on {environment.cpus_usable} usable CPUs"))
    return tuple(found)
