"""What the instrument itself costs, and whether it raises false alarms; on artifacts that ``make demo`` left.

    python benchmarks/instrument.py overhead runs/demo/artifacts/…--ort-int8
    python benchmarks/instrument.py sampling runs/demo/artifacts/…--ort-int8
    python benchmarks/instrument.py loadgen runs/demo/artifacts/…--ort-int8
    python benchmarks/instrument.py equals runs/demo/artifacts/…--ort-int8 --profiles 20
    python benchmarks/instrument.py all runs/demo/artifacts/…--ort-int8 [--small]

overhead: p50 per inference of the single-stream loop less that of a bare loop, on an inference that does nothing and on
the artifact; both alternate. Limit 5 microseconds.
sampling: throughput with the sampling thread less without, interleaved block by block, as a share; and the thread's own
CPU time, which the host's noise does not hide. Limit of both 0.5 %.
loadgen: p90 of LoadGen over that of the own clock around the same inferences, which no change of the machine touches;
and over p90 of the own single-stream loop on the same session, interleaved likewise. Limit of both 1 %.
equals: the artifact against itself, launched anew every other round, again and again, while a second process makes load
during half of the profiles; the table tells who was flagged. Limit: one false "different".

Each prints Markdown for docs/instrument.md, and --json the numbers; the exit status is 1 where a limit is not kept.
--small only shows that everything runs. On a CPU without VNNI take an artifact of a recipe ending in -avx2.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from itertools import cycle
from pathlib import Path

import numpy as np

from edgebench import (
    artifacts,
    backends,
    catalog,
    environment,
    latency,
    loadgen,
    paired,
    paired_worker,
    scenarios,
    steady,
)
from edgebench.latency import Budget
from edgebench.paired_worker import PairedJob
from edgebench.telemetry.observe import Observer

LIMITS = {"overhead_s": 5e-6, "sampling": 0.005, "loadgen": loadgen.AGREEMENT, "false_differences": 1}
BLOCK = Budget(name="block", warmup_count=1, warmup_s=0, min_count=200, min_batches=1, min_s=0, max_s=60,
               warmup_max_s=0)


def opened(folder: Path, threads: int):
    """Return `infer` of one image, and of the image of a number."""
    artifact = artifacts.verify(folder)
    session = backends.get(artifact.recipe.backend).open_session(
        folder / artifact.entry, artifact.recipe, batch=1, threads=threads)
    name = artifact.inputs[0].name
    golden = artifacts.golden_inputs(folder, artifact)
    if golden is None:
        sys.exit(f"{folder} has no golden inputs to feed")
    rows = golden[0][name]
    feeds = [{name: np.ascontiguousarray(rows[k : k + 1])} for k in range(len(rows))]
    upcoming = cycle(feeds)
    return lambda: session.infer(next(upcoming)), lambda number: session.infer(feeds[number % len(feeds)]), len(feeds)


def bare(infer: Callable[[], object], count: int) -> list[int]:
    """The smallest honest loop."""
    clock, timings = time.perf_counter_ns, []
    infer()
    for _ in range(count):
        start = clock()
        infer()
        timings.append(clock() - start)
    return timings


def profiled(infer: Callable[[], object], count: int):
    return scenarios.closed_loop("single-stream", infer, replace(BLOCK, min_count=count), images_per_query=1, threads=1)


def stepped(infer: Callable[[], object], count: int) -> list[float]:
    """Time per turn of the loops, from start to start: what lies between two timings is in it too."""
    return np.diff(profiled(infer, count).start_s).tolist()


def stepped_bare(infer: Callable[[], object], count: int) -> list[float]:
    clock, starts = time.perf_counter_ns, []
    infer()
    for _ in range(count):
        starts.append(clock())
        infer()
    return (np.diff(starts) / 1e9).tolist()


def overhead(infer: Callable[[], object], rounds: int, count: int = 200) -> dict[str, float]:
    """Per inference at p50: what the loop adds to each timing, and to each turn of the loop."""
    timing, turn, mine, theirs = [], [], [], []
    for number in range(rounds):
        runs = [lambda: profiled(infer, count).latency_s, lambda: [ns / 1e9 for ns in bare(infer, count)],
                lambda: stepped(infer, count), lambda: stepped_bare(infer, count)]
        found = {which: statistics.median(runs[which]()) for which in ((0, 1, 2, 3) if number % 2 else (3, 2, 1, 0))}
        timing.append(found[0] - found[1])
        turn.append(found[2] - found[3])
        mine.append(found[0])
        theirs.append(found[1])
    return {"p50_edgebench_s": statistics.median(mine), "p50_bare_s": statistics.median(theirs),
            "added_to_timing_s": statistics.median(timing), "added_to_turn_s": statistics.median(turn)}


def mirrored(first: Callable[[], float], second: Callable[[], float], rounds: int) -> dict[str, float | None]:
    """Relative difference of `second` from `first` with its interval: mirrored rounds, as in paired timing."""
    generator = np.random.default_rng(0)
    ratios = []
    for _ in range(rounds):
        order = [0, 1] if generator.random() < 0.5 else [1, 0]
        sums = [0.0, 0.0]
        for which in (*order, *reversed(order)):
            sums[which] += math.log((first, second)[which]())
        ratios.append((sums[1] - sums[0]) / 2)
    estimate, low, high, _ = paired.signed_rank(ratios)
    return {"change": math.expm1(estimate), "low": None if low is None else math.expm1(low),
            "high": None if high is None else math.expm1(high), "rounds": rounds}


def sampling_cost(infer: Callable[[], object], device: str, rounds: int,
                  seconds: float = 1.0) -> dict[str, float | None]:
    """Share of the throughput, and of one CPU's time, that the thread takes which `edgebench profile` samples on."""
    declared, shares = catalog.device(device), []

    def plain() -> float:
        begin, count = time.perf_counter(), 0
        while time.perf_counter() - begin < seconds:
            infer()
            count += 1
        return (time.perf_counter() - begin) / count

    def sampled() -> float:
        with Observer(declared) as observer:
            found = plain()
        share = observer.result().cost.cpu_share
        if share is not None:
            shares.append(share)
        return found

    infer()
    return {**mirrored(plain, sampled, rounds), "cpu_share": statistics.median(shares) if shares else None}


def against_loadgen(infer: Callable[[], object], infer_number: Callable[[int], object], inputs: int, rounds: int,
                    seconds: float) -> dict[str, float | None]:
    """p90 of LoadGen against that of the own loop on the same session, and against the own clock inside of it."""
    plan = replace(latency.budget("quick"), min_s=seconds)
    own, theirs, same = [], [], []
    expected = statistics.median(bare(infer, 50)) / 1e9

    def mine() -> float:
        trace = scenarios.closed_loop("single-stream", infer, plan, images_per_query=1, threads=1)
        own.append(float(np.quantile(trace.latency_s, 0.9)))
        return own[-1]

    def official() -> float:
        timings: list[int] = []

        def answered(numbers: Sequence[int]) -> None:
            start = time.perf_counter_ns()
            infer_number(numbers[0])
            timings.append(time.perf_counter_ns() - start)

        found = loadgen.run(answered, "single-stream", plan, expected_s=expected, inputs=inputs)
        theirs.append(found.percentiles_s["p90"])
        # LoadGen's order statistic.
        same.append(theirs[-1] / (sorted(timings)[math.floor(0.9 * len(timings))] / 1e9) - 1.0)
        return theirs[-1]

    return {**mirrored(mine, official, rounds), "p90_own_s": statistics.median(own),
            "p90_loadgen_s": statistics.median(theirs), "same_inferences": statistics.median(same),
            "same_inferences_most": max(same, key=abs), "runs": len(same)}


def _burn(ended, parent: int) -> None:
    # A benchmark that was killed cannot say that it ended.
    while not ended.is_set() and os.getppid() == parent:
        np.linalg.svd(np.random.default_rng(0).standard_normal((200, 200)))


@contextmanager
def part_time_load(on_s: float = 3.0, off_s: float = 2.0):
    """A second process that computes part of the time."""
    context = multiprocessing.get_context("spawn")
    stop = threading.Event()

    def drive() -> None:
        while not stop.is_set():
            ended = context.Event()
            process = context.Process(target=_burn, args=(ended, os.getpid()), daemon=True)
            process.start()
            stop.wait(on_s)
            ended.set()
            process.join()
            stop.wait(off_s)

    thread = threading.Thread(target=drive, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@dataclass(frozen=True)
class Profile:
    """One comparison of the artifact with itself."""

    number: int
    loaded: bool
    ratio: float
    low: float | None
    high: float | None
    different: bool
    verdicts: tuple[str, ...]
    diagnosis: str
    busy_before: float | None

    @property
    def flagged(self) -> bool:
        """Whether the instrument doubts it: unstable, or other load seen before."""
        return "unstable" in self.verdicts or (self.busy_before or 0.0) > 0.15


def equals(folder: Path, threads: int, *, profiles: int = 20, rounds: int = 20, inferences: int = 20,
           load: Callable[[], AbstractContextManager[object]] = part_time_load, loaded_share: float = 0.5,
           told: Callable[[Profile], None] = lambda profile: None) -> list[Profile]:
    """Compare the artifact with itself in fresh processes; every other profile (by `loaded_share`) under load."""
    found = []
    for number in range(profiles):
        loaded = math.floor((number + 1) * loaded_share) > math.floor(number * loaded_share)
        with (load() if loaded else nullcontext()), tempfile.TemporaryDirectory() as scratch:
            busy = environment.busy_cpus()
            job = PairedJob(artifact=str(folder), threads=threads)
            opened = paired_worker.opener(dict.fromkeys("ab", job), Path(scratch))
            trace = paired.interleave(opened, "ab", rounds=rounds, inferences=inferences, seed=number)
        compared = paired.compare(trace, "a", "b")
        verdicts = [steady.judge([value for blocks in trace.rounds for block in blocks if block.session == which
                                  for value in block.latency_s]) for which in (0, 1)]
        found.append(Profile(number + 1, loaded, compared.ratio, compared.low, compared.high, compared.different,
                             tuple(one.verdict for one in verdicts),
                             next((one.diagnosis for one in verdicts if one.verdict == "unstable"), ""), busy))
        told(found[-1])
    return found


def table(profiles: list[Profile]) -> str:
    """The table for the documentation."""
    def row(one: Profile) -> str:
        bounded = one.low is not None and one.high is not None
        interval = f"{one.low:.4f} – {one.high:.4f}" if bounded else "too few rounds"
        return (f"| {one.number} | {'yes' if one.loaded else 'no'} | {one.ratio:.4f} | {interval} | "
                f"{'**different**' if one.different else 'equal'} | {'flagged' if one.flagged else ''} | "
                f"{one.diagnosis} |")

    lines = ["| profile | load | ratio | interval | verdict | doubt | diagnosis |", "|---|---|---|---|---|---|---|",
             *map(row, profiles), ""]
    loaded = [one for one in profiles if one.loaded]
    lines.append(f"False differences: {sum(one.different for one in profiles)} of {len(profiles)}. Loaded profiles "
                 f"flagged: {sum(one.flagged for one in loaded)} of {len(loaded)}; quiet ones: "
                 f"{sum(one.flagged for one in profiles if not one.loaded)} of {len(profiles) - len(loaded)}.")
    return "\n".join(lines)


def figures(measured: dict[str, dict]) -> str:
    """The table of single figures for the documentation."""
    def share(value: float | None) -> str:
        return "–" if value is None else f"{value:+.2%}"

    lines = ["| figure | measured | limit | kept |", "|---|---|---|---|"]

    def row(what: str, words: str, limit: str, *, kept: bool) -> None:
        lines.append(f"| {what} | {words} | {limit} | {'yes' if kept else '**no**'} |")

    def interval(what: str, one: dict, words: str, limit: float, *, both: bool) -> None:
        told = f"{share(one['low'])} to {share(one['high'])}, {one['rounds']} mirrored rounds{words}"
        low, high = one["low"], one["high"]
        state = "too few rounds" if low is None else "**no**" if _broken(one, limit, both=both) else \
            "yes" if high <= limit and (low >= -limit or not both) else "not shown: the interval holds the limit"
        lines.append(f"| {what} | {share(one['change'])} ({told}) | {limit:.1%} | {state} |")

    if "overhead" in measured:
        for which, name in (("nothing", "an inference that does nothing"), ("artifact", "the artifact")):
            one = measured["overhead"][which]
            row(f"added to a timing, {name}", f"{one['added_to_timing_s'] * 1e6:+.2f} µs at a p50 of "
                f"{one['p50_bare_s'] * 1e3:.4g} ms", "5 µs",
                kept=one["added_to_timing_s"] <= LIMITS["overhead_s"])
            row(f"added to a turn of the loop, {name}", f"{one['added_to_turn_s'] * 1e6:+.2f} µs", "5 µs",
                kept=one["added_to_turn_s"] <= LIMITS["overhead_s"])
    if "sampling" in measured:
        one = measured["sampling"]
        interval("throughput taken by the sampling thread", one, "", LIMITS["sampling"], both=False)
        if one["cpu_share"] is not None:
            row("CPU time of the sampling thread, of one CPU", f"{one['cpu_share']:.2%}", "0.5 %",
                kept=one["cpu_share"] <= LIMITS["sampling"])
    if "loadgen" in measured:
        one = measured["loadgen"]
        row("LoadGen's p90 against the own clock around the same inferences", f"{one['same_inferences']:+.3%} "
            f"(largest {one['same_inferences_most']:+.3%} of {one['runs']} runs)", "1 %",
            kept=abs(one["same_inferences_most"]) <= LIMITS["loadgen"])
        interval("LoadGen's p90 against the own loop, one after the other", one,
                 f"; {one['p90_own_s'] * 1e3:.4g} ms own, {one['p90_loadgen_s'] * 1e3:.4g} ms LoadGen",
                 LIMITS["loadgen"], both=True)
    return "\n".join(lines)


def _broken(one: dict, limit: float, *, both: bool) -> bool:
    """Whether an interval lies beyond a limit as a whole."""
    low, high = one.get("low"), one.get("high")
    return low is not None and (low > limit or (both and high < -limit))


def kept(measured: dict[str, dict], profiles: list[Profile]) -> bool:
    """Whether all limits are: the overhead by the inference that does nothing, which noise hides least."""
    empty = measured.get("overhead", {}).get("nothing", {"added_to_timing_s": 0.0, "added_to_turn_s": 0.0})
    return (max(empty["added_to_timing_s"], empty["added_to_turn_s"]) <= LIMITS["overhead_s"]
            and not _broken(measured.get("sampling", {}), LIMITS["sampling"], both=False)
            and (measured.get("sampling", {}).get("cpu_share") or 0.0) <= LIMITS["sampling"]
            and abs(measured.get("loadgen", {}).get("same_inferences_most", 0.0)) <= LIMITS["loadgen"]
            and not _broken(measured.get("loadgen", {}), LIMITS["loadgen"], both=True)
            and sum(one.different for one in profiles) <= LIMITS["false_differences"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("overhead", "sampling", "loadgen", "equals", "all"))
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--rounds", type=int, help="of each part; 20")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each run of LoadGen and of the own loop")
    parser.add_argument("--profiles", type=int, default=20)
    parser.add_argument("--threads", type=int, default=environment.usable_cpus())
    parser.add_argument("--device", default="cpu", help="whose sensors are sampled")
    parser.add_argument("--small", action="store_true", help="few rounds, for no numbers")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rounds = options.rounds or (2 if options.small else 20)
    seconds, count = (1.0, 2) if options.small else (options.seconds, options.profiles)
    parts = ("overhead", "sampling", "loadgen", "equals") if options.what == "all" else (options.what,)
    busy = environment.busy_cpus()
    print(f"{options.threads} threads, {busy} CPUs busy before", file=sys.stderr)
    measured: dict[str, dict] = {}
    profiles: list[Profile] = []
    if set(parts) - {"equals"}:
        infer, infer_number, inputs = opened(options.artifact, options.threads)
    if "overhead" in parts:
        measured["overhead"] = {"nothing": overhead(lambda: None, rounds, 2000), "artifact": overhead(
            infer, rounds, 20 if options.small else 200)}
    if "sampling" in parts:
        measured["sampling"] = sampling_cost(infer, options.device, rounds, 0.2 if options.small else 1.0)
    if "loadgen" in parts:
        measured["loadgen"] = against_loadgen(infer, infer_number, inputs, rounds, seconds)
    if "equals" in parts:
        profiles = equals(options.artifact, options.threads, profiles=count, rounds=rounds, loaded_share=0.5,
                          inferences=5 if options.small else 20,
                          told=lambda one: print(f"{one.number}: {one.ratio:.4f} {one.verdicts}", file=sys.stderr))
    if options.json:
        print(json.dumps({**measured, "equals": [asdict(one) for one in profiles], "threads": options.threads,
                          "busy_before": busy}, indent=2))
    else:
        print("\n\n".join([*([figures(measured)] if measured else []), *([table(profiles)] if profiles else [])]))
    sys.exit(not kept(measured, profiles))


if __name__ == "__main__":
    main()
