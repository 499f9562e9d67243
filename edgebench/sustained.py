"""Half an hour of load: percentiles, temperatures, clocks and energy per minute, and when the device slowed down.

The loop keeps every latency in a compact array; what is reported is derived from it and from telemetry on one clock.
"""

from __future__ import annotations

import array
import io
import itertools
import math
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from edgebench import stats, steady
from edgebench.arrays import refuse_unfit
from edgebench.errors import CannotMeasure, InvalidInput
from edgebench.record import sha256_once, write_bytes
from edgebench.telemetry.types import Telemetry, slowdown_bits
from edgebench.timing_types import ChannelMinute, Minute, RankStability, Sustained, Throttling

DURATION_S = 1800.0
MINUTE_S = 60.0
SLICE_S = 10.0
"""Medians of so many seconds are searched for the moment of slowing down."""
SLOWDOWN = 0.05
FILE = "sustained.npz"
"""Raw timings, beside the run file."""

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Timings:
    """Starts and durations of all inferences, in nanoseconds on the latency's clock."""

    start_ns: IntArray
    duration_ns: IntArray


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelData:
    """One telemetry channel."""

    t_ns: Sequence[int]
    """Ascending, on the latency's clock."""
    values: Sequence[float]
    kind: Literal["level", "rate", "counter", "flag"] = "level"
    """``level``: temperature, clock; ``rate``: power, which adds up to energy; ``counter``: energy itself, which only
    grows; ``flag``: a bit mask of throttle reasons, or the level of a cooling device."""
    ignored_bits: int = 0
    """Bits of a flag that are no throttling, such as idle and power cap."""


def run(infer: Callable[[], object], duration_s: float = DURATION_S, *, clock: Callable[[], int] = time.perf_counter_ns,
        progress: Callable[[float], None] | None = None, stop: Callable[[], bool] = lambda: False) -> Timings:
    """Run inferences back to back for that long; there is no warm-up, for the cold start belongs to the picture.

    Args:
        infer: Runs one inference and returns when its outputs are in host memory.
        duration_s: How long.
        clock: Monotonic nanoseconds.
        progress: Told the share that is done, at most once a second.
        stop: Asked once a second whether to end early, such as at a critical temperature.
    """
    starts, durations = array.array("q"), array.array("q")
    with steady.quiet():
        begin = told = clock()
        limit = begin + round(duration_s * 1e9)
        while True:
            start = clock()
            infer()
            end = clock()
            starts.append(start)
            durations.append(end - start)
            if end >= limit:
                break
            if end - told >= 1_000_000_000:
                told = end
                if progress is not None:
                    progress((end - begin) / (duration_s * 1e9))
                if stop():
                    break
    return Timings(np.array(starts, np.int64), np.array(durations, np.int64))


def summarize(variant: str, timings: Timings, asked_s: float,
              channels: Mapping[str, ChannelData] | None = None) -> Sustained:
    """Return the run minute by minute, with telemetry joined by time.

    An inference belongs to the minute in which it began. The last minute may be shorter.

    Raises:
        CannotMeasure: No inference.
    """
    if not timings.start_ns.size:
        raise CannotMeasure("a sustained run without any inference")
    begin = int(timings.start_ns[0])
    end = int(timings.start_ns[-1] + timings.duration_ns[-1])
    total_s = (end - begin) / 1e9
    of_minute = ((timings.start_ns - begin) // round(MINUTE_S * 1e9)).astype(np.int64)
    minutes = []
    for number in np.unique(of_minute):
        values = timings.duration_ns[of_minute == number] / 1e9
        first = float(number) * MINUTE_S
        length = min(MINUTE_S, total_s - first)
        window = begin + round(first * 1e9), begin + round((first + length) * 1e9)
        minutes.append(Minute(
            begin_s=first, duration_s=length, inferences=values.size, p50_s=stats.quantile(values, 0.5),
            p90_s=stats.quantile(values, 0.9), p99_s=stats.quantile(values, 0.99), max_s=float(values.max()),
            throughput_hz=values.size / length if length > 0 else 0.0,
            channels=tuple(channel_minute(name, one, *window) for name, one in (channels or {}).items()
                           if one.kind != "flag")))
    full = [one for one in minutes if one.duration_s >= 0.9 * MINUTE_S] or minutes
    return Sustained(variant=variant, begin_ns=begin, duration_s=total_s, asked_s=asked_s, minutes=tuple(minutes),
                     throttling=throttling(timings, channels or {}),
                     slowdown=full[-1].p50_s / full[0].p50_s - 1.0 if full[0].p50_s else 0.0)


def channel_minute(name: str, channel: ChannelData, begin_ns: int, end_ns: int) -> ChannelMinute:
    """Return what a channel did between two moments.

    The mean weights readings by time (trapezoids). A rate's integral and a counter's growth interpolate at both ends;
    they are None where the readings leave out more than one reading's distance of the stretch.
    """
    t = np.asarray(channel.t_ns, dtype=np.float64)
    values = np.asarray(channel.values, dtype=np.float64)
    inside = (t >= begin_ns) & (t <= end_ns)
    if not inside.any() or end_ns <= begin_ns:
        return ChannelMinute(name=name, mean=None, low=None, high=None, integral=None)
    step = float(np.median(np.diff(t))) if t.size > 1 else 0.0
    covered = t[0] <= begin_ns + step and t[-1] >= end_ns - step
    ends = np.interp([begin_ns, end_ns], t, values)
    moments = np.concatenate(([begin_ns], t[inside], [end_ns]))
    path = np.concatenate((ends[:1], values[inside], ends[1:]))
    area = float(((path[1:] + path[:-1]) / 2.0 * np.diff(moments)).sum()) / 1e9
    duration_s = (end_ns - begin_ns) / 1e9
    counter = channel.kind == "counter"
    grown = float(ends[1] - ends[0])
    # A counter that fell was set back meanwhile.
    whole = None if not covered or (counter and bool((np.diff(path) < 0).any())) else grown if counter else area
    if counter:
        rate = None if whole is None else whole / duration_s
        return ChannelMinute(name=name, mean=rate, low=None, high=None, integral=whole)
    return ChannelMinute(name=name, mean=area / duration_s, low=float(values[inside].min()),
                         high=float(values[inside].max()), integral=whole if channel.kind == "rate" else None)


def channels(telemetry: Telemetry | None) -> dict[str, ChannelData]:
    """Return what telemetry read, by channel; nothing where there was none."""
    kinds: dict[str, Literal["rate", "counter", "flag"]] = {
        "power_w": "rate", "energy_j": "counter", "flags": "flag", "level": "flag"}
    everything = () if telemetry is None else (
        *telemetry.power.series, *telemetry.thermal.series, *telemetry.clocks.series, *telemetry.throttle.series)
    return {one.channel.name: ChannelData(
        t_ns=one.t_ns, values=one.values, kind=kinds.get(one.channel.quantity, "level"),
        ignored_bits=~slowdown_bits(one.channel))
        for one in everything if one.t_ns}


def save(folder: Path, timings: Timings) -> str:
    """Write the raw timings into `folder` and return the file's name.

    Durations and the gaps between two inferences are kept: small numbers, which compress better than starts.
    """
    content = io.BytesIO()
    ends = timings.start_ns + timings.duration_ns
    np.savez_compressed(content, begin_ns=timings.start_ns[:1], duration_ns=timings.duration_ns,
                        gap_ns=timings.start_ns[1:] - ends[:-1])
    write_bytes(folder / FILE, content.getvalue())
    return FILE


def load(folder: Path, found: Sustained) -> Timings:
    """Return the raw timings that `found` was made of.

    Args:
        folder: Where the run file lies.
        found: What the run says; it names the file.

    Raises:
        InvalidInput: The file is missing, damaged, or another run's.
    """
    file = folder / (found.file or FILE)
    hint = "copy the whole folder of the run, or measure again"
    if not file.is_file():
        raise InvalidInput(f"the raw timings of the sustained load are missing: {file}", hint)
    if found.file_sha256 is not None and sha256_once(file) != found.file_sha256:
        raise InvalidInput(f"{file} was changed after the run was written: its SHA-256 is not the run's", hint)
    try:
        refuse_unfit(file)
        with file.open("rb") as content, np.load(content, allow_pickle=False) as arrays:
            begin, duration, gap = (np.asarray(arrays[f"{name}_ns"], np.int64) for name in ("begin", "duration", "gap"))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise InvalidInput(f"{file} is damaged: {error}", hint) from error
    if begin.tolist() != [found.begin_ns] or duration.size != sum(one.inferences for one in found.minutes) \
            or gap.size != duration.size - 1:
        raise InvalidInput(f"{file} holds the timings of another run", hint)
    steps = np.concatenate((begin, duration[:-1] + gap))
    return Timings(np.cumsum(steps), duration)


def afresh(folder: Path, found: Sustained, telemetry: Telemetry | None) -> Sustained:
    """Return the analysis made again from the raw timings beside the run and its telemetry.

    Raises:
        InvalidInput: See `load`.
    """
    again = summarize(found.variant, load(folder, found), found.asked_s, channels(telemetry))
    return replace(again, file=found.file, file_sha256=found.file_sha256, events=found.events)


def throttling(timings: Timings, channels: Mapping[str, ChannelData]) -> Throttling | None:
    """Return when the device was first seen to slow down: a raised flag, else a lasting rise of latency; None: never.

    The rise is the first change of level of the medians of `SLICE_S` seconds that lies at least `SLOWDOWN` above the
    fastest level before it and never comes back below that line.
    """
    begin, end = int(timings.start_ns[0]), int(timings.start_ns[-1] + timings.duration_ns[-1])
    raised = []
    for name, channel in channels.items():
        if channel.kind == "flag":
            hit = next((t for t, value in zip(channel.t_ns, channel.values, strict=True)
                        if begin <= t <= end and int(value) & ~channel.ignored_bits), None)
            if hit is not None:
                raised.append((hit, name))
    if raised:
        moment, name = min(raised)
        after_s = (moment - begin) / 1e9
        return Throttling(after_s=after_s, evidence="flag", message=f"{name} was raised after {after_s:.0f} s")
    slices = (timings.start_ns - begin) // round(SLICE_S * 1e9)
    numbers = np.unique(slices)
    medians = np.array([np.median(timings.duration_ns[slices == number]) for number in numbers]) / 1e9
    edges = [0, *steady.shifts(medians), medians.size]
    levels = [float(np.median(medians[a:b])) for a, b in itertools.pairwise(edges)]
    for number in range(1, len(levels)):
        line = min(levels[:number]) * (1.0 + SLOWDOWN)
        if min(levels[number:]) > line:
            after_s = float(numbers[edges[number]]) * SLICE_S
            return Throttling(after_s=after_s, evidence="latency",
                              message=f"the median rose from {min(levels[:number]) * 1e3:.3f} ms to "
                                      f"{levels[number] * 1e3:.3f} ms after {after_s:.0f} s and stayed up")
    return None


def rank_stability(runs: Sequence[Sustained]) -> RankStability:
    """Return whether variants keep their order by median latency between the first and the last full minute.

    Source:
        Kendall 1945, Biometrika 33:239 (tau-b).
    """
    first, last = ({one.variant: full[place].p50_s for one in runs
                    for full in [[m for m in one.minutes if m.duration_s >= 0.9 * MINUTE_S] or list(one.minutes)]}
                   for place in (0, -1))
    pairs = list(itertools.combinations([one.variant for one in runs], 2))
    signs = [(_sign(first[a] - first[b]), _sign(last[a] - last[b])) for a, b in pairs]
    untied = [sum(1 for pair in signs if pair[side]) for side in (0, 1)]
    tau = sum(a * b for a, b in signs) / math.sqrt(untied[0] * untied[1]) if all(untied) else None
    return RankStability(
        tau=tau, first=tuple(sorted(first, key=first.__getitem__)), last=tuple(sorted(last, key=last.__getitem__)),
        swapped=tuple(pair for pair, (a, b) in zip(pairs, signs, strict=True) if a * b < 0))


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)
