"""What a scenario's queries say: percentiles with their confidence, throughput, a camera's misses and ages, doubts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from edgebench import percentiles, stats
from edgebench.record import Caveat, ReasonCode, Score
from edgebench.timing_types import CameraSummary, DeviceTrace, QueryTrace

QUANTILES = (0.50, 0.90, 0.95, 0.99)
TOLERATED_LATENESS = 0.01
"""Of the median service time."""
_ORIGINS = {"server": "scheduled arrival to completion", "camera": "frame to result"}


def scores(trace: QueryTrace, confidence: float = 0.95) -> tuple[Score, ...]:
    """Return what a trace says: percentiles in seconds, and what belongs to its scenario."""
    prefix = "" if trace.scenario == "single-stream" else trace.scenario.replace("-", "_") + "_"
    origin = _ORIGINS.get(trace.scenario, "host to host")
    found = percentile_scores(
        trace.latency_s, confidence, prefix=prefix, facts={"images_per_query": trace.images_per_query},
        method=f"order statistic x(ceil(nq)), {origin}, preprocessing {trace.preprocessing}")
    if trace.scenario in ("offline", "multi-stream"):
        found.append(throughput(
            trace.service_s, trace.images_per_query, confidence,
            name="throughput_offline" if trace.scenario == "offline" else f"{prefix}throughput",
            method="images of a query over the mean time of back-to-back queries"))
    if trace.scenario == "camera":
        found.extend(_camera_scores(trace, confidence))
    return tuple(found)


def percentile_scores(latency_s: Sequence[float], confidence: float, *, method: str, facts: Mapping[str, int],
                      prefix: str = "") -> list[Score]:
    """Return the percentiles of latencies (s) with intervals as wide as the timings follow each other.

    Args:
        latency_s: In the order of measurement, seconds.
        confidence: Two-sided level asked for, 0 to 1.
        method: What was timed and how, in words.
        facts: What the model or the settings decided, such as how many images a query has.
        prefix: Of the scores' names.
    """
    return [Score(
        name=f"{prefix}latency_p{round(one.q * 100)}", value=one.value_s, low=one.low_s, high=one.high_s, unit="s",
        better="lower", n=one.n, confidence=confidence, reason=None if one.met else percentiles.words(one),
        reason_code=None if one.met else "unmet-confidence", kind="quantile", method_id="order-statistic",
        n_effective=one.effective_n, confidence_reached=one.achieved, facts=dict(facts),
        method=f"{method}; binomial interval of as many timings as would be worth these if they were independent",
    ) for one in percentiles.bounds(latency_s, QUANTILES, confidence)]


def throughput(seconds: Sequence[float], images: int, confidence: float, *, name: str, method: str) -> Score:
    """Return images per second of back-to-back queries, with an interval as wide as their times follow each other.

    The bootstrap takes them as independent. The distance of its ends, as a ratio, is therefore raised to the root of
    how many timings one independent timing is worth.

    Args:
        seconds: Duration of each query, in the order of measurement.
        images: Of each query.
        confidence: Two-sided level, 0 to 1.
        name: Of the score.
        method: What was timed, in words.
    """
    method = f"{method}; bootstrap, as of as many timings as would be worth these if they were independent"
    values = np.asarray(seconds)
    mean, worth = float(values.mean()), percentiles.effective_count(values)
    low, high = stats.bootstrap(lambda chosen: np.array([values[chosen].mean()]), values.size, confidence=confidence)
    if low[0] <= 0:
        return Score(name=name, value=None, unit="images/s", better="higher", n=values.size, method=method,
                     confidence=confidence, kind="resampled", method_id="bootstrap-widened",
                     facts={"images_per_query": images}, reason="the clock did not advance during most queries",
                     reason_code="clock")
    wider = math.sqrt(values.size / worth)
    return Score(name=name, value=images / mean, low=images / mean * (mean / float(high[0])) ** wider,
                 high=images / mean * (mean / float(low[0])) ** wider, confidence=confidence, unit="images/s",
                 better="higher", n=values.size, method=method, kind="resampled", method_id="bootstrap-widened",
                 n_effective=worth, facts={"images_per_query": images})


def _camera_scores(trace: QueryTrace, confidence: float) -> list[Score]:
    summary, misses = camera_summary(trace), missed(trace)
    # Misses come in bursts: each end is that of fewer, independent frames, rounded against the claim.
    count, worth = int(misses.sum()), percentiles.effective_count(misses)
    low = stats.wilson(count * worth // misses.size, worth, confidence)[0]
    high = stats.wilson(-(-count * worth // misses.size), worth, confidence)[1]
    facts: dict[str, str | int | float] = {
        "rate_hz": trace.rate_hz or 0.0, "policy": trace.policy or "", "limit_s": trace.limit_s or 0.0}

    def over_results(name: str, value: float | None, method: str, method_id: str, reason: str) -> Score:
        code: ReasonCode = "not-computed" if value is not None else "too-few" if len(trace.end_s) < 2 else "clock"
        return Score(name=name, value=value, unit="s", better="lower", n=len(trace.end_s), method=method, facts=facts,
                     kind="estimate", method_id=method_id, reason_code=code,
                     reason="one result has none" if code == "too-few" else
                     "the clock did not advance between the first result and the last" if code == "clock" else reason)

    return [
        Score(name="camera_miss_rate", value=summary.miss_rate, low=low, high=high, unit="fraction", better="lower",
              n=summary.frames, confidence=confidence, count=count, kind="share", method_id="share-wilson-widened",
              n_effective=worth, facts=facts,
              method="frames dropped or later than the deadline; Wilson interval of as many frames as would be worth "
                     "these if they were independent"),
        over_results("camera_jitter", summary.jitter_s, "mean difference of successive latencies (RFC 3550)",
                     "rfc-3550", "no interval is known"),
        over_results("camera_age_mean", summary.age_mean_s, "time average of the age of information", "age-mean",
                     "no interval is known"),
        over_results("camera_age_peak", summary.age_peak_max_s, "largest age of information", "max",
                     "an extreme has no interval"),
    ]


def caveats(trace: QueryTrace, confidence: float = 0.95) -> tuple[Caveat, ...]:
    """Return what in the trace itself speaks against its numbers; the steady-state verdict is apart."""
    name, n = trace.scenario, len(trace.end_s)
    found = []
    if trace.stopped == "max-duration":
        found.append(Caveat(code="max-duration", hint="a longer --budget, or a faster variant",
                            message=f"{name}: time was up after {n} queries, before the budget was reached"))
    if trace.warmup_settled is False:
        found.append(Caveat(code="warm-up", hint="let the machine settle and measure again",
                            message=f"{name}: the warm-up of {len(trace.warmup_s)} inferences did not settle"))
    found += few_timings(name, trace.latency_s, confidence)
    if trace.clock_resolution_s * 100 > float(np.median(trace.service_s)):
        found.append(Caveat(
            code="coarse-clock", hint="time larger batches",
            message=f"{name}: the clock's step of {trace.clock_resolution_s * 1e9:.0f} ns is above 1 % of the median"))
    if trace.rate_hz is not None:
        found.extend(_lateness(trace))
    return tuple(found)


def few_timings(scenario: str, latency_s: Sequence[float], confidence: float) -> list[Caveat]:
    """Return the doubt that latencies (s), in the order of measurement, do not bound their percentiles."""
    unmet = [one for one in percentiles.bounds(latency_s, QUANTILES, confidence) if not one.met]
    return [Caveat(code="few-timings", hint="use a longer --budget",
                   message=f"{scenario}: {percentiles.words(unmet[0])}")] if unmet else []


def device_caveats(device: DeviceTrace, name: str) -> list[Caveat]:
    """Return what the device's own times say against the latencies of a scenario, by the rules of trtexec.

    The host is the bottleneck where it takes longer to start the work than the device to do most of it, the copies are
    where they take as long as computing, and the device's clock moves where its compute times vary.
    """
    compute, enqueue = float(np.median(device.compute_s)), float(np.median(device.enqueue_s))
    copies = float(np.median(np.asarray(device.h2d_s) + np.asarray(device.d2h_s)))
    found = []
    if enqueue > 0.8 * compute:
        found.append(Caveat(code="enqueue-bound", hint="use a CUDA graph, or larger batches",
                            message=f"{name}: starting the computation takes the host {enqueue * 1e3:.3f} ms, the "
                                    f"device computes {compute * 1e3:.3f} ms"))
    if copies >= compute:
        found.append(Caveat(code="copy-bound", hint="feed smaller inputs, or keep them on the device",
                            message=f"{name}: copies take {copies * 1e3:.3f} ms, computing {compute * 1e3:.3f} ms"))
    variation = float(np.std(device.compute_s)) / compute if compute else 0.0
    if variation > 0.025:
        found.append(Caveat(code="device-unstable", hint="lock the device's clocks",
                            message=f"{name}: the device's compute time varies by {variation:.1%}"))
    return found


def _lateness(trace: QueryTrace) -> list[Caveat]:
    """Return the doubt that queries began late although the session was free: the loop could not keep the schedule."""
    issue, start, end = (np.asarray(one) for one in (trace.issue_s, trace.start_s, trace.end_s))
    free = np.concatenate(([True], end[:-1] <= issue[1:]))
    if not free.any():
        return []
    late = float(np.quantile((start - issue)[free], 0.99))
    typical = float(np.median(trace.service_s))
    if late <= TOLERATED_LATENESS * typical:
        return []
    return [Caveat(code="late-issue", hint="stop other load on the machine",
                   message=f"{trace.scenario}: 1 % of the queries began over {late * 1e3:.3f} ms late although the "
                           "session was free; this counts as latency")]


def missed(trace: QueryTrace) -> npt.NDArray[np.bool_]:
    """Return for each frame (n,) of a camera trace, in order, whether it had no result by its deadline."""
    # Half a nanosecond: times are whole nanoseconds, seconds are not exact.
    late = np.asarray(trace.latency_s) > (trace.limit_s or math.inf) + 0.5e-9
    order = np.argsort([*trace.issue_s, *trace.dropped_s], kind="stable")
    misses: npt.NDArray[np.bool_] = np.concatenate((late, np.ones(len(trace.dropped_s), bool)))[order]
    return misses


def camera_summary(trace: QueryTrace) -> CameraSummary:
    """Return what a consumer of the results of a camera trace sees.

    Source:
        Kaul, Yates & Gruteser 2012, INFOCOM (age of information); RFC 3550, section 6.4.1 (jitter).
    """
    issue, start, end = (np.asarray(one) for one in (trace.issue_s, trace.start_s, trace.end_s))
    latencies = end - issue
    misses = missed(trace)
    mean_age = peak_mean = peak_max = jitter = None
    if len(issue) > 1:
        jitter = float(np.abs(np.diff(latencies)).mean())
        # Until the next result the age grows from this result's latency: a trapezoid.
        peaks = end[1:] - issue[:-1]
        seconds = float(end[-1] - end[0])
        mean_age = float(((latencies[:-1] + peaks) / 2.0 * np.diff(end)).sum()) / seconds if seconds > 0 else None
        peak_mean, peak_max = float(peaks.mean()), float(peaks.max())
    queue = np.zeros(1)
    if trace.policy == "queue":
        # Those before it in the order that had not begun when it came.
        queue = np.arange(len(issue)) - np.searchsorted(start, issue, side="right").clip(max=np.arange(len(issue)))
    return CameraSummary(
        frames=misses.size, dropped=len(trace.dropped_s), miss_rate=float(misses.mean()),
        jitter_s=jitter, age_mean_s=mean_age, age_peak_mean_s=peak_mean, age_peak_max_s=peak_max,
        queue_mean=float(queue.mean()), queue_max=int(queue.max()))
