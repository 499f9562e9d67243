"""How inferences are issued: one after the other, at random, or by a camera.

A session answers one query at a time, so queues need no threads: a query that came while another was answered starts
when that one is done, and its latency counts from when it was due. Clock and sleep are arguments.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from edgebench import percentiles, steady
from edgebench.errors import CannotMeasure, UsageError
from edgebench.latency import Budget, Clock, clock_resolution_s
from edgebench.timing_types import (
    DeviceTrace,
    DropPolicy,
    Preprocessing,
    QueryTrace,
    Scenario,
    ServerSearch,
    ServerTrial,
    Stopped,
)

MULTI_STREAM_IMAGES = 8
"""Per query, as in MLPerf."""
SPIN_S = 200e-6
"""The last stretch before a query is due is spent asking the clock: a sleep wakes up late by some 50 microseconds."""
SEARCH_PRECISION = 0.03
MAX_TRIALS = 12

Sleep = Callable[[float], None]
Infer = Callable[[], object]
"""Answers one query; returns when its outputs are in host memory."""
Progress = Callable[[float], None]


class DeviceTimes(Protocol):
    """What a session's ``timed_infer`` tells of one inference, seconds."""

    @property
    def h2d_s(self) -> float:
        """Copying inputs to the device."""

    @property
    def compute_s(self) -> float:
        """Device work alone."""

    @property
    def d2h_s(self) -> float:
        """Copying outputs back."""

    @property
    def enqueue_s(self) -> float:
        """Host time of starting the computation."""


def closed_loop(scenario: Scenario, infer: Infer, budget: Budget, *, images_per_query: int, threads: int,
                preprocessing: Preprocessing = "excluded", warmup_factor: float = 1.0,
                clock: Clock = time.perf_counter_ns, progress: Progress | None = None,
                decided: Callable[[Sequence[float]], bool] | None = None) -> QueryTrace:
    """Issue each query when the previous one is done: single-stream, multi-stream and offline.

    Args:
        scenario: ``single-stream``, ``multi-stream`` or ``offline``.
        infer: Answers one query.
        budget: How long, how many.
        images_per_query: That `infer` answers: `MULTI_STREAM_IMAGES` in multi-stream, a batch in offline.
        threads: CPU threads of the session, for the record.
        preprocessing: Whether `infer` prepares images too.
        warmup_factor: Warm-up lasts as many times longer.
        clock: Monotonic nanoseconds.
        progress: Told the share of the budget that is done, at most once a second.
        decided: Told the latencies so far, in seconds, at most once a second and when there are a tenth more; the loop
            ends where it says so.

    Raises:
        UsageError: Another scenario.
    """
    if scenario not in ("single-stream", "multi-stream", "offline"):
        raise UsageError(f"{scenario} is no closed loop", "use server or camera")
    count = budget.batches(images_per_query) if scenario == "offline" else budget.min_count
    starts: list[int] = []
    ends: list[int] = []
    stopped: Stopped = "count-and-duration"
    with steady.quiet():
        warm = _warm_up(infer, budget, warmup_factor, clock)
        told = looked = begin = clock()
        next_look = 1.0
        while True:
            start = clock()
            infer()
            end = clock()
            starts.append(start)
            ends.append(end)
            elapsed_s = (end - begin) / 1e9
            if elapsed_s >= budget.min_s and len(ends) >= count:
                break
            if decided is not None and len(ends) >= next_look and end - looked >= 1e9:
                looked, next_look = end, 1.1 * len(ends)
                if decided([(b - a) / 1e9 for a, b in zip(starts, ends, strict=True)]):
                    stopped = "decided"
                    break
            if elapsed_s >= budget.max_s:
                stopped = "max-duration"
                break
            if progress is not None and end - told >= 1e9:
                told = end
                progress(min(elapsed_s / budget.min_s if budget.min_s else 1.0, len(ends) / count, 1.0))
    begins = _since(starts, begin)
    return QueryTrace(
        scenario=scenario, images_per_query=images_per_query, threads=threads, preprocessing=preprocessing,
        budget=budget.name, begin_ns=begin, warmup_s=_since(warm.durations_ns, 0), warmup_settled=warm.settled,
        issue_s=begins, start_s=begins, end_s=_since(ends, begin), stopped=stopped, **_clock_facts(clock))


def server(infer: Infer, rate_hz: float, bound_s: float, budget: Budget, *, queries: int | None = None, threads: int,
           images_per_query: int = 1, q: float = 0.99, confidence: float = percentiles.EARLY_STOPPING_CONFIDENCE,
           give_up: bool = False, seed: int = 0, preprocessing: Preprocessing = "excluded", warmup_factor: float = 1.0,
           clock: Clock = time.perf_counter_ns, sleep: Sleep = time.sleep, spin_s: float = SPIN_S,
           progress: Progress | None = None) -> QueryTrace:
    """Issue queries by a Poisson process; latency is scheduled issue to completion, so queueing counts.

    Args:
        infer: Answers one query.
        rate_hz: Mean arrivals per second.
        bound_s: Latency that the `q` quantile is to keep.
        budget: Queries last `min_s` and are `server_queries` at least; `max_s` ends the run, between two of them.
        queries: How many, instead of what the budget says.
        threads: CPU threads of the session, for the record.
        images_per_query: That `infer` answers.
        q: Quantile that the bound is for.
        confidence: One-sided, of the bound at `q`; decides when to give up.
        give_up: Whether to stop as soon as too many queries are late for the bound to be shown.
        seed: Of the arrivals.
        preprocessing: Whether `infer` prepares images too.
        warmup_factor: Warm-up lasts as many times longer.
        clock: Monotonic nanoseconds.
        sleep: Waits that many seconds, or a little longer.
        spin_s: How long before a query is due the clock is asked instead of sleeping.
        progress: Told the share of the queries that are done, at most once a second.

    Raises:
        UsageError: A rate or bound of 0 or less.
    """
    if not (0 < rate_hz < math.inf and 0 < bound_s < math.inf):
        raise UsageError(f"expected a rate and a latency bound above 0, got {rate_hz} Hz and {bound_s} s")
    count = queries or max(budget.server_queries, math.ceil(budget.min_s * rate_hz))
    due = np.cumsum(np.random.default_rng(seed).exponential(1.0 / rate_hz, count))
    allowed = percentiles.late_allowed(count, q, confidence) if give_up else None
    with steady.quiet():
        warm = _warm_up(infer, budget, warmup_factor, clock)
        served = _open_loop(infer, due, budget.max_s, clock, sleep, spin_s, progress,
                            lambda late: allowed is not None and late > allowed, bound_s)
    return QueryTrace(
        scenario="server", images_per_query=images_per_query, threads=threads, preprocessing=preprocessing,
        budget=budget.name, warmup_s=_since(warm.durations_ns, 0), warmup_settled=warm.settled, rate_hz=rate_hz,
        limit_s=bound_s, seed=seed, **served, **_clock_facts(clock))


def _open_loop(infer: Infer, due: np.ndarray[Any, np.dtype[np.float64]], max_s: float, clock: Clock, sleep: Sleep,
               spin_s: float, progress: Progress | None, hopeless: Callable[[int], bool],
               bound_s: float) -> dict[str, Any]:
    told = begin = clock()
    starts: list[int] = []
    ends: list[int] = []
    late, stopped = 0, "count-and-duration"
    at = [begin + round(moment * 1e9) for moment in due]
    for number, moment in enumerate(at):
        _wait_until(moment, clock, sleep, spin_s)
        start = clock()
        infer()
        end = clock()
        starts.append(start)
        ends.append(end)
        late += end - moment > bound_s * 1e9
        if hopeless(late):
            stopped = "given-up"
            break
        if end - begin >= max_s * 1e9 and number + 1 < len(at):
            stopped = "max-duration"
            break
        if progress is not None and end - told >= 1e9:
            told = end
            progress((number + 1) / len(at))
    return {"begin_ns": begin, "issue_s": _since(at[:len(ends)], begin), "start_s": _since(starts, begin),
            "end_s": _since(ends, begin), "stopped": stopped}


def search_server(run: Callable[[float, int, float], QueryTrace], bound_s: float, *, service_s: Sequence[float],
                  q: float = 0.99, confidence: float = percentiles.EARLY_STOPPING_CONFIDENCE,
                  max_trials: int = MAX_TRIALS, precision: float = SEARCH_PRECISION, max_s: float = math.inf,
                  clock: Clock = time.perf_counter_ns,
                  told: Callable[[ServerTrial], None] = lambda trial: None) -> ServerSearch:
    """Find the highest arrival rate at which the `q` quantile of the latency is shown to keep the bound.

    By bisection between the highest rate that held and the lowest that did not, starting from half of what the session
    can do at all, 1/mean service time, which no queue survives. A rate that held is tried again with other arrivals
    before it is reported. Trials and time are bounded; the search says what ended it. A trial that was cut short
    counts where its queries suffice to show the bound; where they do not, it says nothing about its rate and ends the
    search.

    Args:
        run: Measures at a rate (Hz) with a seed, for so many seconds at most, as `server` does, with ``give_up``.
        bound_s: Latency bound, seconds.
        service_s: Durations of single inferences of the same session, seconds.
        q: Quantile that is to keep the bound.
        confidence: One-sided, of each trial (early stopping).
        max_trials: At most so many trials.
        precision: Relative distance between the rate that held and the one that failed at which to stop.
        max_s: How long all trials may last together.
        clock: Monotonic nanoseconds.
        told: Hears each trial.
    """
    median, mean = float(np.median(service_s)), float(np.mean(service_s))
    if mean <= 0:
        return ServerSearch(rate_hz=None, bound_s=bound_s, q=q, confidence=confidence, lowest_failing_hz=None,
                            trials=(), reason="the clock did not advance during single inferences")
    if median > bound_s:
        return ServerSearch(rate_hz=None, bound_s=bound_s, q=q, confidence=confidence, lowest_failing_hz=None,
                            trials=(), reason=f"a single inference takes {median * 1e3:.3f} ms, above the bound of "
                                              f"{bound_s * 1e3:.3f} ms")
    needed = percentiles.early_stopping_count(q, 0, confidence)
    trials: list[ServerTrial] = []
    begin = clock()
    low, high = 0.0, 1.0 / mean
    confirmed = cut = blind = False
    while len(trials) < max_trials and not cut:
        left_s = max_s - (clock() - begin) / 1e9
        if left_s <= 0:
            cut = True
            break
        confirming = bool(low) and high <= low * (1.0 + precision)
        # Far below the last failure where nothing has held yet.
        rate = low if confirming else math.sqrt(low * high) if low else high / 2.0
        trial = _trial(run(rate, len(trials), left_s), rate, bound_s, q, confidence)
        trials.append(trial)
        told(trial)
        if confirming and trial.holds:
            confirmed = True
            break
        unfinished = trial.stopped == "max-duration"
        cut = unfinished and (clock() - begin) / 1e9 >= max_s
        blind = unfinished and trial.queries < needed
        if blind or (cut and not trial.holds):
            break
        if confirming:
            high, low = low, _next_below(trials, low)
        else:
            low, high = (rate, high) if trial.holds else (low, rate)
    finished = [one for one in trials if one.stopped != "max-duration"]
    if confirmed:
        reason = f"confirmed with other arrivals; {high:.4g} per second did not hold"
    elif cut:
        reason = (f"the {max_s:g} s that the budget gives to the search ran out after {len(finished)} finished trials; "
                  + ("the rate is not confirmed with other arrivals, and a higher one may hold" if low
                     else "none of them showed the bound to hold"))
    elif blind:
        last = trials[-1]
        reason = (f"cannot tell: time was up after {last.queries} queries at {last.rate_hz:.4g} per second, and it "
                  f"takes {needed} to show any bound at the {q:g} quantile")
    elif not low and finished and finished[-1].stopped != "given-up" and finished[-1].queries < needed:
        reason = f"{finished[-1].queries} queries cannot show any bound at the {q:g} quantile: it takes {needed}"
    elif not low:
        reason = f"the bound was shown to hold at none of {len(trials)} rates down to {high:.3g} per second"
    else:
        reason = f"{max_trials} trials were used up; the rate is not confirmed with other arrivals"
    failing = min((one.rate_hz for one in finished if not one.holds), default=None)
    return ServerSearch(rate_hz=low or None, reason=reason, bound_s=bound_s, q=q, confidence=confidence,
                        lowest_failing_hz=failing, trials=tuple(trials), cut=cut)


def _trial(trace: QueryTrace, rate_hz: float, bound_s: float, q: float, confidence: float) -> ServerTrial:
    late, n = int(np.count_nonzero(np.asarray(trace.latency_s) > bound_s)), len(trace.end_s)
    return ServerTrial(rate_hz=rate_hz, queries=n, late=late, stopped=trace.stopped,
                       holds=trace.stopped != "given-up" and percentiles.holds(late, n, q, confidence))


def _next_below(trials: Sequence[ServerTrial], rate_hz: float) -> float:
    return max((one.rate_hz for one in trials if one.holds and one.rate_hz < rate_hz), default=0.0)


def camera(infer: Infer, fps: float, budget: Budget, *, deadline_s: float | None = None, policy: DropPolicy = "newest",
           frames: int | None = None, threads: int, images_per_query: int = 1,
           preprocessing: Preprocessing = "excluded", warmup_factor: float = 1.0, clock: Clock = time.perf_counter_ns,
           sleep: Sleep = time.sleep, spin_s: float = SPIN_S, progress: Progress | None = None) -> QueryTrace:
    """Answer the frames of a camera that never waits.

    Args:
        infer: Answers one frame.
        fps: Frames per second; frame k is due k/fps after the start.
        budget: Frames last `min_s` and are `min_count` at least; `max_s` ends the run.
        deadline_s: A result is useless later than this after its frame; None: one frame period.
        policy: ``queue``: answer all frames in order; ``newest``: always the newest, older ones are dropped.
        frames: How many, instead of what the budget says.
        threads: CPU threads of the session, for the record.
        images_per_query: Images per frame.
        preprocessing: Whether `infer` prepares the frame too.
        warmup_factor: Warm-up lasts as many times longer.
        clock: Monotonic nanoseconds.
        sleep: Waits that many seconds, or a little longer.
        spin_s: How long before a frame is due the clock is asked instead of sleeping.
        progress: Told the share of the frames that are done, at most once a second.

    Raises:
        UsageError: A frame rate or deadline of 0 or less.
    """
    deadline = 1.0 / fps if deadline_s is None and fps > 0 else deadline_s or 0.0
    if not (0 < fps < math.inf and 0 < deadline < math.inf):
        raise UsageError(f"expected a frame rate and a deadline above 0, got {fps} per second and {deadline_s} s")
    count = frames or max(budget.min_count, math.ceil(budget.min_s * fps))
    starts: list[int] = []
    ends: list[int] = []
    taken: list[int] = []
    dropped: list[int] = []
    stopped: Stopped = "count-and-duration"
    with steady.quiet():
        warm = _warm_up(infer, budget, warmup_factor, clock)
        told = begin = clock()
        frame = 0
        while frame < count:
            now = clock()
            if policy == "newest":
                # The division may be off by one frame: what counts is the moment as it is scheduled.
                newest = min(int((now - begin) * fps / 1e9) + 1, count - 1)
                while newest > frame and _due(begin, newest, fps) > now:
                    newest -= 1
                dropped.extend(range(frame, newest))
                frame = max(frame, newest)
            moment = _due(begin, frame, fps)
            _wait_until(moment, clock, sleep, spin_s)
            start = clock()
            infer()
            end = clock()
            taken.append(frame)
            starts.append(start)
            ends.append(end)
            frame += 1
            if end - begin >= budget.max_s * 1e9 and frame < count:
                stopped = "max-duration"
                break
            if progress is not None and end - told >= 1e9:
                told = end
                progress(frame / count)
    return QueryTrace(
        scenario="camera", images_per_query=images_per_query, threads=threads, preprocessing=preprocessing,
        budget=budget.name, begin_ns=begin, warmup_s=_since(warm.durations_ns, 0), warmup_settled=warm.settled,
        issue_s=_since([_due(begin, k, fps) for k in taken], begin), start_s=_since(starts, begin),
        end_s=_since(ends, begin), dropped_s=_since([_due(begin, k, fps) for k in dropped], begin), stopped=stopped,
        rate_hz=fps, limit_s=deadline, policy=policy, **_clock_facts(clock))


def _due(begin_ns: int, frame: int, fps: float) -> int:
    return begin_ns + round(frame * 1e9 / fps)


def device_times(timed_infer: Callable[[], DeviceTimes], count: int, *, clock: Clock = time.perf_counter_ns,
                 ) -> DeviceTrace:
    """Run `count` inferences with device events around their parts; outside of any timing that is reported as latency.

    Raises:
        CannotMeasure: A part took less than nothing.
    """
    rows = []
    with steady.quiet():
        for _ in range(count):
            begin = clock()
            one = timed_infer()
            wall = (clock() - begin) / 1e9
            rows.append((one.h2d_s, one.compute_s, one.d2h_s, one.enqueue_s, wall))
    if min(min(row) for row in rows) < 0:
        raise CannotMeasure("the device's events are out of order: a part of an inference took less than 0 s")
    h2d, compute, d2h, enqueue, wall_s = zip(*rows, strict=True)
    return DeviceTrace(h2d_s=h2d, compute_s=compute, d2h_s=d2h, enqueue_s=enqueue, wall_s=wall_s)


def _warm_up(infer: Infer, budget: Budget, factor: float, clock: Clock) -> steady.WarmUp:
    max_s = budget.max_s if budget.warmup_max_s is None else budget.warmup_max_s
    return steady.warm_up(infer, min_count=max(1, round(budget.warmup_count * factor)), min_s=budget.warmup_s * factor,
                          max_s=max_s * factor, clock=clock)


def _wait_until(moment: int, clock: Clock, sleep: Sleep, spin_s: float) -> None:
    while (left := moment - clock()) > 0:
        if left > spin_s * 1e9:
            sleep(left / 1e9 - spin_s)


def _clock_facts(clock: Clock) -> dict[str, Any]:
    return {"clock": getattr(clock, "__name__", "clock"),
            "clock_resolution_s": clock_resolution_s() if clock is time.perf_counter_ns else 0.0}


def _since(moments: Sequence[int], begin: int) -> tuple[float, ...]:
    return tuple((moment - begin) / 1e9 for moment in moments)
