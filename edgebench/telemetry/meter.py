"""An external power meter, through one small line protocol.

A meter's own program writes text lines into a FIFO, a file, or a pipe; this module reads them meanwhile::

    # clock: monotonic
    # scope: wall
    # meter: Shelly Plug S, 1 Hz
    12345.600,7.31
    12346.600,7.28

Each line is ``seconds,watts`` in decimal; other lines that start with ``#`` are comments. ``clock`` says what the
seconds are:

- ``monotonic``: this host's ``CLOCK_MONOTONIC`` (Python's ``time.perf_counter`` and ``time.monotonic`` on Linux): taken
  as they are, which is exact.
- ``realtime``: seconds since 1970 on this host's clock. The offset is taken when reading begins and again when it ends;
  the difference between the two is the uncertainty.
- ``meter`` (the default): the meter's own clock. Its offset is the smallest difference between a line's arrival and its
  seconds, as a line is never received before it was measured. The uncertainty is the half of the median of the other
  differences above the smallest. This needs lines that are written and read as they happen.

``scope`` is ``wall`` unless the head says ``board`` or ``module``. Lines that are not two finite numbers, or whose time
goes backwards, become gaps with the reason.
"""

from __future__ import annotations

import math
import os
import select
import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from edgebench.device import Scope
from edgebench.errors import CannotMeasure, InvalidInput
from edgebench.telemetry.types import Channel, Gap, Series

Clock = Literal["monotonic", "realtime", "meter"]
MAX_LINE = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class MeterSeries:
    """What an external meter said, on the latency's clock."""

    series: Series
    """Its channel says how far the times may be off."""
    clock: Clock
    meter: str
    """The meter's description from the head of the file."""


@dataclass(slots=True)
class MeterLines:
    """Collects lines and turns them into a series.

    Args:
        source: Where they come from, for messages.
        realtime_offset: Nanoseconds to subtract from seconds since 1970 to reach the latency's clock, asked twice.
    """

    source: str
    realtime_offset: Callable[[], int] = field(default=lambda: time.time_ns() - time.perf_counter_ns())
    head: dict[str, str] = field(default_factory=dict)
    rows: list[tuple[float, float, int]] = field(default_factory=list)
    """Seconds, watts, arrival in nanoseconds."""
    refused: list[tuple[int, str]] = field(default_factory=list)
    _first_offset: int | None = None

    def __post_init__(self) -> None:
        self._first_offset = self.realtime_offset()

    def take(self, line: str, arrival_ns: int) -> None:
        """Take one line that arrived at `arrival_ns` on the latency's clock."""
        stripped = line.strip()
        if not stripped:
            return
        if stripped.startswith("#"):
            key, separator, value = stripped.lstrip("# ").partition(":")
            if separator:
                self.head[key.strip().lower()] = value.strip()
            return
        seconds, _, watts = stripped.partition(",")
        try:
            row = float(seconds), float(watts)
        except ValueError:
            self.refused.append((arrival_ns, f"expected 'seconds,watts', got {stripped[:40]!r}"))
            return
        if not all(map(math.isfinite, row)):
            self.refused.append((arrival_ns, f"expected finite numbers, got {stripped[:40]!r}"))
        elif self.rows and row[0] <= self.rows[-1][0]:
            self.refused.append((arrival_ns, f"time went from {self.rows[-1][0]:g} to {row[0]:g} s"))
        else:
            self.rows.append((*row, arrival_ns))

    def result(self) -> MeterSeries:
        """Return all lines so far as a series.

        Raises:
            CannotMeasure: One reading alone, on a clock of its own.
            InvalidInput: The head names an unknown clock or scope.
        """
        clock, scope = self.facts()
        offset_ns, alignment_s = self._offset(clock)
        times = tuple(round(seconds * 1e9) + offset_ns for seconds, _, _ in self.rows)
        steps = [(after[0] - before[0]) for before, after in zip(self.rows, self.rows[1:], strict=False)]
        name = self.head.get("meter", "external meter")
        channel = Channel(name="meter", label=name, quantity="power_w", source=self.source, scope=scope,
                          meaning="measured outside the device", alignment_s=alignment_s)
        return MeterSeries(
            clock=clock, meter=name,
            series=Series(channel=channel, interval_s=statistics.median(steps) if steps else 0.0, t_ns=times,
                          values=tuple(watts for _, watts, _ in self.rows),
                          gaps=tuple(Gap(begin_ns=at, end_ns=at, reason=reason) for at, reason in self.refused)))

    def facts(self) -> tuple[Clock, Scope]:
        """Return what the head says, as far as it has been read: clock and scope.

        Raises:
            InvalidInput: An unknown clock or scope.
        """
        return self._clock(), self._scope()

    def _clock(self) -> Clock:
        word = self.head.get("clock", "meter")
        if word == "monotonic":
            return "monotonic"
        if word == "realtime":
            return "realtime"
        if word != "meter":
            raise InvalidInput(f"{self.source}: unknown clock {word!r}", "known: monotonic, realtime, meter")
        return "meter"

    def _scope(self) -> Scope:
        word = self.head.get("scope", "wall")
        known: dict[str, Scope] = {"wall": "wall", "board": "board", "module": "module"}
        if word not in known:
            raise InvalidInput(f"{self.source}: unknown scope {word!r}", f"known: {', '.join(known)}")
        return known[word]

    def _offset(self, clock: Clock) -> tuple[int, float]:
        if clock == "monotonic" or not self.rows:
            return 0, 0.0
        if clock == "realtime":
            assert self._first_offset is not None
            last = self.realtime_offset()
            return -(self._first_offset + last) // 2, abs(last - self._first_offset) / 1e9
        delays = sorted(arrival - round(seconds * 1e9) for seconds, _, arrival in self.rows)
        others = [delay - delays[0] for delay in delays[1:]]
        if not others:
            raise CannotMeasure(f"the meter at {self.source} gave one reading, which cannot be set against this host's "
                                "clock", "measure for longer than its interval, or let it say '# clock: realtime'")
        return delays[0], statistics.median(others) / 2e9


class Meter:
    """Reads an external meter on a thread of its own between `start` and `stop`.

    Args:
        path: FIFO or file that another program writes; only what is added after `start` counts in a file, except its
            head.
        clock: The latency's clock.

    Raises:
        InvalidInput: The path cannot be opened, or the head that is there names an unknown clock or scope.
    """

    def __init__(self, path: Path, clock: Callable[[], int] = time.perf_counter_ns) -> None:
        self._clock = clock
        self._stop = threading.Event()
        self._lines = MeterLines(str(path))
        try:
            # Opening a FIFO must not wait for its writer.
            self._file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        except OSError as error:
            raise InvalidInput(f"cannot read the meter at {path}: {error.strerror}",
                               "name the FIFO or file that the meter's program writes its lines to") from error
        self._rest = b""
        self._skip_old()
        try:
            self._lines.facts()
        except InvalidInput:
            os.close(self._file)
            raise
        self._thread = threading.Thread(target=self._loop, name="edgebench-meter", daemon=True)

    def start(self) -> None:
        """Begin to read."""
        self._thread.start()

    def stop(self) -> MeterSeries:
        """Stop and return what was read.

        Raises:
            CannotMeasure: The meter wrote no reading, or one that cannot be aligned.
            InvalidInput: A head that came meanwhile names an unknown clock or scope.
        """
        self._stop.set()
        self._thread.join()
        self._drain()
        os.close(self._file)
        if not self._lines.rows:
            why = self._lines.refused[-1][1] if self._lines.refused else "no line came"
            raise CannotMeasure(f"the meter at {self._lines.source} gave no reading: {why}",
                                "start the meter's program first; it must write 'seconds,watts' lines and flush each")
        return self._lines.result()

    def _skip_old(self) -> None:
        # A regular file, and a FIFO's buffer, may hold readings of earlier runs: keep their head alone.
        block = b"\n"
        while block:
            try:
                block = os.read(self._file, 65536)
            except BlockingIOError:
                break
            self._rest += block
        whole, _, self._rest = self._rest.rpartition(b"\n")
        for line in whole.decode("utf-8", "replace").splitlines():
            if line.lstrip().startswith("#"):
                self._lines.take(line, 0)

    def _loop(self) -> None:
        while not self._stop.is_set():
            ready = select.select([self._file], [], [], 0.1)[0]
            # At the end of a file, and of a FIFO without a writer, select answers at once.
            if not ready or not self._drain():
                self._stop.wait(0.02)

    def _drain(self) -> bool:
        try:
            block = os.read(self._file, 65536)
        except BlockingIOError:
            return False
        now = self._clock()
        *lines, self._rest = (self._rest + block).split(b"\n")
        for line in lines:
            self._lines.take(line.decode("utf-8", "replace"), now)
        if len(self._rest) > MAX_LINE:
            self._lines.refused.append((now, f"a line longer than {MAX_LINE} bytes"))
            self._rest = b""
        return bool(block)
