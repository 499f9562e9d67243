"""A clock, a sleep and inferences that share one scripted time; no test waits."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

MS = 1_000_000


class World:
    """Scripted time in nanoseconds: each inference takes the next duration, sleeping takes what is asked."""

    def __init__(self, durations: Iterable[int] | int, start: int = 1_000, oversleep: int = 0) -> None:
        self.now = start
        self.durations = itertools.repeat(durations) if isinstance(durations, int) else iter(durations)
        self.oversleep = oversleep
        self.slept: list[float] = []
        self.inferences = 0

    def clock(self) -> int:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += round(seconds * 1e9) + self.oversleep

    def infer(self) -> None:
        self.inferences += 1
        self.now += next(self.durations)
