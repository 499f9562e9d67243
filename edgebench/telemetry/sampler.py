"""One thread that reads all sensors, each at its own rate, on the latency's clock, and measures what that costs."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import final

from edgebench.errors import UsageError
from edgebench.telemetry.files import Sensor
from edgebench.telemetry.types import Absent, Channel, Gap, SamplerCost, Series

MIN_INTERVAL_S = 0.001


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """What a sampler gathered."""

    begin_ns: int
    end_ns: int
    series: tuple[Series, ...]
    """One per channel, in the order of sensors and channels."""
    cost: SamplerCost
    absent: tuple[Absent, ...]


class _Track:
    """Readings of one channel while they come in."""

    def __init__(self, channel: Channel, interval_s: float) -> None:
        self.channel = channel
        self.interval_s = interval_s
        self.t_ns: list[int] = []
        self.values: list[float] = []
        self.gaps: list[Gap] = []
        self._missing: tuple[int, str] | None = None

    def take(self, at_ns: int, reading: float | str) -> None:
        if not isinstance(reading, str) and not math.isfinite(reading):
            reading = f"expected a finite number, got {reading}"
        if self._missing is not None and reading != self._missing[1]:
            self.gaps.append(Gap(begin_ns=self._missing[0], end_ns=at_ns, reason=self._missing[1]))
            self._missing = None
        if isinstance(reading, str):
            if self._missing is None:
                self._missing = at_ns, reading
        else:
            self.t_ns.append(at_ns)
            self.values.append(reading)

    def finish(self, end_ns: int) -> Series:
        gaps = list(self.gaps)
        if self._missing is not None:
            gaps.append(Gap(begin_ns=self._missing[0], end_ns=max(end_ns, self._missing[0]), reason=self._missing[1]))
        return Series(channel=self.channel, interval_s=self.interval_s, t_ns=tuple(self.t_ns),
                      values=tuple(self.values), gaps=tuple(gaps))


@final
class Sampler:
    """Reads sensors on a thread of its own from `start` to `stop`.

    A sensor that vanishes or talks nonsense leaves a gap with the reason and may come back. Every sensor is read once
    at the start and once at the end, so that the stretch between them is covered.

    Args:
        sensors: What to read; the caller closes them.
        interval_s: For all sensors alike; None: each at its own rate.
        clock: Monotonic nanoseconds, the latency's clock.
        cpu_clock: Nanoseconds of CPU time of the calling thread.

    Raises:
        UsageError: The interval is shorter than a millisecond, or two channels have one name.
    """

    def __init__(self, sensors: Sequence[Sensor], *, interval_s: float | None = None,
                 clock: Callable[[], int] = time.perf_counter_ns,
                 cpu_clock: Callable[[], int] = time.thread_time_ns) -> None:
        if interval_s is not None and not MIN_INTERVAL_S <= interval_s < math.inf:
            raise UsageError(f"expected a sampling interval of {MIN_INTERVAL_S} s or more, got {interval_s}")
        self._all = tuple(sensors)
        self._sensors = tuple(sensor for sensor in sensors if sensor.channels)
        self._intervals = [interval_s or sensor.interval_s for sensor in self._sensors]
        self._tracks = [[_Track(channel, interval) for channel in sensor.channels]
                        for sensor, interval in zip(self._sensors, self._intervals, strict=True)]
        names = [track.channel.name for tracks in self._tracks for track in tracks]
        if len(set(names)) < len(names):
            raise UsageError(f"two channels are called {next(name for name in names if names.count(name) > 1)!r}")
        self._clock, self._cpu_clock = clock, cpu_clock
        self._stop = threading.Event()
        self._pool: ThreadPoolExecutor | None = None
        self._future: Future[None] | None = None
        self._durations: list[int] = []
        self._late = 0
        self._cpu_ns: int | None = None
        self._begin_ns = self._end_ns = 0

    def __enter__(self) -> Sampler:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 traceback: TracebackType | None) -> None:
        self._stop.set()
        if self._pool is not None:
            self._pool.shutdown(wait=True)

    def start(self) -> None:
        """Begin to sample; returns after the first reading of every sensor."""
        started = threading.Event()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="edgebench-telemetry")
        self._future = self._pool.submit(self._loop, started)
        while not started.wait(0.01) and not self._future.done():
            pass

    def stop(self) -> Recording:
        """Read every sensor a last time, stop, and return everything; an error inside a sensor is raised here.

        Raises:
            UsageError: It was never started.
        """
        if self._future is None or self._pool is None:
            raise UsageError("the sampler was not started")
        self._stop.set()
        try:
            self._future.result()
        finally:
            self._pool.shutdown(wait=True)
        duration_s = (self._end_ns - self._begin_ns) / 1e9
        count = len(self._durations)
        cost = SamplerCost(
            samples=count, duration_s=duration_s, late=self._late,
            mean_s=sum(self._durations) / count / 1e9 if count else None,
            max_s=max(self._durations) / 1e9 if count else None,
            cpu_share=self._cpu_ns / 1e9 / duration_s if self._cpu_ns is not None and duration_s > 0 else None)
        return Recording(
            begin_ns=self._begin_ns, end_ns=self._end_ns, cost=cost,
            series=tuple(track.finish(self._end_ns) for tracks in self._tracks for track in tracks),
            absent=tuple(one for sensor in self._all for one in sensor.absent))

    def _loop(self, started: threading.Event) -> None:
        cpu_before = self._cpu_clock()
        self._begin_ns = self._clock()
        steps = [round(interval * 1e9) for interval in self._intervals]
        due = [self._begin_ns + step for step in steps]
        self._read(range(len(self._sensors)))
        started.set()
        while not self._stop.wait(max(0.0, (min(due, default=self._clock() + 10**9) - self._clock()) / 1e9)):
            now = self._clock()
            ready = [index for index, at in enumerate(due) if at <= now]
            for index in ready:
                if now > due[index] + steps[index]:
                    self._late += 1
                    due[index] = now + steps[index]  # what was missed is not made up for
                else:
                    due[index] += steps[index]
            self._read(ready)
        self._read(range(len(self._sensors)))
        self._end_ns = self._clock()
        self._cpu_ns = self._cpu_clock() - cpu_before

    def _read(self, indices: Sequence[int]) -> None:
        for index in indices:
            before = self._clock()
            readings = self._sensors[index].read()
            after = self._clock()
            self._durations.append(after - before)
            for track, reading in zip(self._tracks[index], readings, strict=True):
                track.take((before + after) // 2, reading)
