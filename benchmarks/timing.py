"""Is the instrument itself in the way? Ratios measured inside one run, on artifacts that ``make demo`` left.

    python benchmarks/timing.py runs/demo/artifacts

1. p50 as the profiler's loop measures it, over p50 of a bare loop over the same session, interleaved block by block.
2. p50 of an OpenVINO artifact measured like ``edgebench profile``, over benchmark_app's median with the same hints,
   in alternating processes.
3. INT8 against FP32 p50 of ONNX Runtime, in alternating processes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from itertools import cycle
from pathlib import Path

import numpy as np

from edgebench import artifacts, backends, environment, scenarios
from edgebench.latency import Budget

BLOCK = Budget(name="block", warmup_count=1, warmup_s=0, min_count=10, min_batches=10, min_s=0, max_s=60)


def opened(folder: Path, threads: int):
    artifact = artifacts.verify(folder)
    session = backends.get(artifact.recipe.backend).open_session(
        folder / artifact.entry, artifact.recipe, batch=1, threads=threads)
    feeds, _ = artifacts.golden_inputs(folder, artifact) or ({}, {})
    name, rows = next(iter(feeds.items()))
    return session, [{name: np.ascontiguousarray(rows[k : k + 1])} for k in range(len(rows))]


def bare(infer, feeds, count: int) -> list[int]:
    """The smallest honest loop."""
    clock, timings, upcoming = time.perf_counter_ns, [], cycle(feeds)
    infer(next(upcoming))
    for _ in range(count):
        start = clock()
        infer(next(upcoming))
        timings.append(clock() - start)
    return timings


def against_bare_loop(folder: Path, threads: int, rounds: int) -> dict[str, float]:
    session, feeds = opened(folder, threads)
    upcoming = cycle(feeds)
    mine: list[int] = []
    theirs: list[int] = []
    ratios = []
    for number in range(rounds):
        pair = [lambda: [round(one * 1e9) for one in scenarios.closed_loop(
                    "single-stream", lambda: session.infer(next(upcoming)), BLOCK, images_per_query=1,
                    threads=threads).service_s],
                lambda: bare(session.infer, feeds, BLOCK.min_count)]
        order = (0, 1) if number % 2 else (1, 0)
        found = {which: pair[which]() for which in order}
        mine += found[0]
        theirs += found[1]
        ratios.append(np.median(found[0]) / np.median(found[1]))
    return {"p50_edgebench_ms": float(np.median(mine)) / 1e6, "p50_bare_ms": float(np.median(theirs)) / 1e6,
            "ratio_of_p50": float(np.median(mine) / np.median(theirs)), "median_paired_ratio": float(np.median(ratios))}


def one_process(folder: Path, threads: int, seconds: float) -> float:
    """p50 in ms of a fresh process that measures as the profiler's worker does."""
    code = (
        "import sys, json; sys.path.insert(0, sys.argv[1]); import timing; import numpy as np;"
        "from itertools import cycle;"
        "from pathlib import Path; from edgebench import latency, scenarios;"
        "session, feeds = timing.opened(Path(sys.argv[2]), int(sys.argv[3])); upcoming = cycle(feeds);"
        "budget = latency.Budget(name='b', warmup_count=10, warmup_s=1, min_count=100, min_batches=1,"
        " min_s=float(sys.argv[4]), max_s=60);"
        "trace = scenarios.closed_loop('single-stream', lambda: session.infer(next(upcoming)), budget,"
        " images_per_query=1, threads=int(sys.argv[3]));"
        "print(json.dumps(float(np.median(trace.service_s)) * 1e3))")
    done = subprocess.run([sys.executable, "-c", code, str(Path(__file__).parent), str(folder), str(threads),
                           str(seconds)], capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout.splitlines()[-1]))


def benchmark_app(folder: Path, seconds: float) -> float:
    """Median latency in ms that OpenVINO's own tool reports for one synchronous request on all CPUs.

    The tool refuses a number of threads beside a hint.
    """
    artifact = artifacts.verify(folder)
    shape = ",".join(str(size) for size in (1, *artifact.inputs[0].shape[1:]))
    hint = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}[artifact.recipe.precision]
    tool = Path(sys.executable).with_name("benchmark_app")
    with tempfile.TemporaryDirectory() as scratch:
        subprocess.run(
            [str(tool), "-m", str(folder / artifact.entry), "-d", "CPU", "-hint", "latency", "-api", "sync",
             "-infer_precision", hint, "-ip", "f32", "-shape", f"[{shape}]", "-t", str(int(seconds)), "-json_stats",
             "-report_type", "no_counters", "-report_folder", scratch],
            capture_output=True, text=True, check=True)
        report = json.loads((Path(scratch) / "benchmark_report.json").read_text())
    return float(report["execution_results"]["latency (ms)"])


def alternating(first, second, rounds: int) -> dict[str, float]:
    pairs = []
    for number in range(rounds):
        if number % 2:
            b = second()
            pairs.append((first(), b))
        else:
            a = first()
            pairs.append((a, second()))
    values = np.array(pairs)
    return {"first_ms": float(np.median(values[:, 0])), "second_ms": float(np.median(values[:, 1])),
            "median_paired_ratio": float(np.median(values[:, 0] / values[:, 1]))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifacts", type=Path)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=4.0)
    options = parser.parse_args()
    folders = {folder.name.rpartition("--")[2]: folder for folder in sorted(options.artifacts.iterdir())
               if artifacts.is_artifact(folder)}
    threads = environment.usable_cpus()
    print(f"{threads} threads, {environment.busy_cpus():.2f} CPUs busy before")
    for name, folder in folders.items():
        found = against_bare_loop(folder, threads, 10 * options.rounds)
        print(f"{name:14} against a bare loop: {found['p50_edgebench_ms']:.3f} ms / {found['p50_bare_ms']:.3f} ms = "
              f"{found['ratio_of_p50']:.4f} (median of paired ratios {found['median_paired_ratio']:.4f})")
    few = max(3, options.rounds // 3)
    for name, folder in folders.items():
        if name.startswith("openvino"):
            found = alternating(lambda f=folder: one_process(f, threads, options.seconds),
                                lambda f=folder: benchmark_app(f, options.seconds), few)
            print(f"{name:14} against benchmark_app: {found['first_ms']:.3f} ms / {found['second_ms']:.3f} ms = "
                  f"{found['median_paired_ratio']:.4f}")
    if {"ort-fp32", "ort-int8"} <= set(folders):
        found = alternating(lambda: one_process(folders["ort-fp32"], threads, options.seconds),
                            lambda: one_process(folders["ort-int8"], threads, options.seconds), few)
        print(f"ONNX Runtime FP32 over INT8: {found['first_ms']:.3f} ms / {found['second_ms']:.3f} ms = "
              f"{found['median_paired_ratio']:.2f}")


if __name__ == "__main__":
    main()
