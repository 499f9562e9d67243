"""Variants timed in turns, each in a process of its own: ratios from pairs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from edgebench import paired, paired_worker
from edgebench.errors import CannotMeasure, UsageError
from edgebench.reading import timed_alike
from edgebench.record import Run, decode, read_sealed, write_sealed
from edgebench.stopping_timings import Ratios
from edgebench.timing_types import Comparison, PairedTrace, PairPlan

SCHEMA = "edgebench.paired/1"
# History: 1 (0.1.0) first published form.
FILE = "paired.json"
BLOCK_S = 0.15
"""About how long a session runs in its turn: long against the switch, short against drift."""
METRIC = "latency_p50"
Progress = Callable[[str, float], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Paired:
    """What interleaved timing of several variants found."""

    schema: str
    device: str
    threads: int
    inferences: int
    """Per block."""
    comparisons: tuple[Comparison, ...]
    trace: PairedTrace
    """Raw timings, block by block."""
    digests: dict[str, str]
    """Of each variant's artifact: timings of another one say nothing about it."""
    plan: PairPlan | None = None
    """How many rounds a margin takes, where one was asked for."""


def compare(runs: Mapping[str, tuple[Run, Path]], out: Path, *, rounds: int, margin: float | None = None,
            progress: Progress, followed: Ratios | None = None) -> Paired:
    """Time variants in turns and compare each with its reference; what is found is written to ``paired.json``.

    Args:
        runs: Finished runs and the folders of their artifacts, by variant.
        out: Output folder.
        rounds: Each runs every variant twice; with a margin, at most so many.
        margin: Relative change of latency to find with a power of 80 %: a pilot tells how many rounds that takes.
        progress: Told (what, share done).
        followed: Rules of a policy that end the rounds when all are decided; how, is written beside the runs.

    A variant whose reference ran on another processor or with another number of threads has no ratio.

    Raises:
        UsageError: No variant has a reference among them that was timed alike.
        EdgebenchError: A session cannot be opened, or dies.
    """
    pairs = [(run.reference.variant, name) for name, (run, _) in runs.items()
             if run.reference is not None and run.reference.variant in runs
             and timed_alike(run, runs[run.reference.variant][0])]
    if not pairs:
        raise UsageError("there is no variant with its reference to time in turns",
                         "profile the FP32 variant of the same processor together with the others")
    wanted = list(dict.fromkeys(name for pair in pairs for name in pair))
    first = runs[wanted[0]][0]
    slowest = max(_median(runs[name][0]) for name in wanted)
    inferences = max(3, round(BLOCK_S / slowest))
    plan = None
    progress("opening all variants at once", 0.0)
    opened = paired_worker.opener(
        {name: paired_worker.PairedJob(artifact=str(runs[name][1].resolve()), threads=first.settings.threads)
         for name in wanted}, out / "paired")
    if margin is not None:
        trace, plan = paired.measure_pairs(
            opened, wanted, pairs, margin, inferences=inferences, most=rounds,
            told=lambda done, total: progress(f"timing variants in turns, round {done} of {total}", done / total))
    else:
        trace = paired.interleave(opened, wanted, rounds=rounds, inferences=inferences,
                                  told=lambda done: progress("timing variants in turns", done / rounds),
                                  decided=followed.decided if followed else lambda _: False)
    found = Paired(schema=SCHEMA, device=first.device.id, threads=first.settings.threads, inferences=inferences,
                   comparisons=tuple(paired.compare(trace, one, other) for one, other in pairs), trace=trace,
                   digests={name: runs[name][0].artifact.digest for name in wanted}, plan=plan)
    write_sealed(out / FILE, found)
    if followed:
        followed.write(out)
    return found


def load(out: Path) -> Paired | None:
    """Return what interleaved timing left in an output folder; None where there was none."""
    file = out / FILE
    return decode(Paired, read_sealed(file), str(file)) if file.is_file() else None


def _median(run: Run) -> float:
    score = run.score(METRIC)
    if score is None or not score.value:
        raise CannotMeasure(f"{run.variant} has no latency yet", "time it first: --budget quick")
    return score.value
