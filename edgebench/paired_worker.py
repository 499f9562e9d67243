"""A process that holds one session and runs inferences when told: ``python -m edgebench.paired_worker JOB``.

One JSON line each way. The parent writes ``{"run": m}``; the child runs a few inferences that do not count, then m
that do, and answers ``{"begin_ns": …, "latency_s": […]}``. ``{"stop": true}`` or the end of its input ends it. First it
says ``{"ready": true, …}`` once the session is open and warm, or its error as `edgebench.child.serve` tells it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import IO

import numpy as np

from edgebench import artifacts, backends, builder, child, environment, steady
from edgebench.errors import KINDS, CannotMeasure, writing
from edgebench.paired import Opened, Run
from edgebench.record import decode, load_artifact, read_json, write_json
from edgebench.timing_types import Block

MODULE = "edgebench.paired_worker"


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedJob:
    """What one process of a pair holds."""

    artifact: str
    """Folder."""
    threads: int
    batch: int = 1
    lead: int = 2
    """Inferences before each block that do not count: the other session has filled the caches meanwhile."""
    settle_s: float = 0.02
    """Pause before each block, in which spinning threads of the other session come to rest."""
    warmup_count: int = 10
    warmup_s: float = 1.0
    warmup_max_s: float = 3.0


def answer(infer: Callable[[], object], job: PairedJob, orders: Iterator[str], tell: Callable[[child.Message], None], *,
           clock: Callable[[], int] = time.perf_counter_ns, sleep: Callable[[float], None] = time.sleep) -> None:
    """Warm up, say so, and run what each line of `orders` asks for until one asks to stop.

    Raises:
        CannotMeasure: A line that is no order.
    """
    warm = steady.warm_up(infer, min_count=job.warmup_count, min_s=job.warmup_s, max_s=job.warmup_max_s, clock=clock)
    with steady.quiet():
        tell({"ready": True, "pid": os.getpid(), "warmup": len(warm.durations_ns), "settled": warm.settled})
        for line in orders:
            try:
                order = json.loads(line)
                count = 0 if "stop" in order else int(order["run"])
            except (ValueError, KeyError, TypeError) as error:
                raise CannotMeasure(f"expected a number of inferences to run, got {line.strip()!r}") from error
            if not count:
                return
            if job.settle_s:
                sleep(job.settle_s)
            for _ in range(job.lead):
                infer()
            begin = clock()
            latencies = []
            for _ in range(count):
                start = clock()
                infer()
                latencies.append((clock() - start) / 1e9)
            tell({"begin_ns": begin, "latency_s": latencies})


def work(path: Path) -> None:
    """Open the job's artifact and answer the parent."""
    job = decode(PairedJob, read_json(path), str(path))
    folder = Path(job.artifact)
    # The parent has compared its files with their hashes, which would fill this process's caches.
    artifact = load_artifact(folder)
    batch = artifacts.fixed_batch(artifact) or job.batch
    session = backends.get(artifact.recipe.backend).open_session(folder / artifact.entry, artifact.recipe, batch=batch,
                                                                 threads=job.threads)
    golden = artifacts.golden_inputs(folder, artifact)
    name = artifact.inputs[0].name
    if golden is not None:
        rows = golden[0][name]
    else:
        shape = [size for size in artifact.inputs[0].shape[1:] if isinstance(size, int)]
        rows = np.random.default_rng(0).standard_normal((8, *shape), np.float32)
    upcoming = cycle([{name: np.ascontiguousarray(rows[[(start + k) % len(rows) for k in range(batch)]])}
                      for start in range(len(rows))])
    infer = session.infer
    answer(lambda: infer(next(upcoming)), job, iter(sys.stdin), child.send)


@contextmanager
def process(name: str, command: Sequence[str], log: Path, *, start_limit_s: float = 600.0,
            block_limit_s: float = 600.0) -> Iterator[Run]:
    """Run a process that speaks this module's protocol; yields a function that has it run inferences.

    The process gets a session of its own and is ended, with all that it started, when the block is left.

    Args:
        name: For errors.
        command: The process, such as that of `command_of`.
        log: Where its standard error goes; removed where it stays empty.
        start_limit_s: It must be ready after so many seconds.
        block_limit_s: It must answer each order after so many seconds.

    Raises:
        EdgebenchError: What it raised, or that it died or took too long.
    """
    limits = child.Limits(memory_bytes=environment.usable_memory_bytes())
    with writing(log), log.open("wb") as errors, child.start(command, errors, stdin=subprocess.PIPE) as running, \
            child.watched(running, limits, name) as watch:
        assert running.stdin is not None
        assert running.stdout is not None
        try:
            _reply(running, running.stdout, "ready", name, log, start_limit_s)
            yield _runner(running, running.stdin, running.stdout, name, log, block_limit_s)
            _order(running.stdin, {"stop": True})
            running.wait(timeout=10)
        except subprocess.TimeoutExpired:
            child.kill(running)
        except BaseException:
            child.kill(running)
            if watch.exceeded is not None:
                raise watch.exceeded from None
            raise
    if not log.stat().st_size:
        log.unlink()


def _runner(running: subprocess.Popen[str], orders: IO[str], replies: IO[str], name: str, log: Path,
            limit_s: float) -> Run:
    def run(inferences: int) -> Block:
        if not _order(orders, {"run": inferences}):
            raise _ended(running, name, log)
        reply = _reply(running, replies, "latency_s", name, log, limit_s)
        return decode(Block, {"session": 0, "begin_ns": reply["begin_ns"], "latency_s": reply["latency_s"]}, name)

    return run


def _order(orders: IO[str], message: child.Message) -> bool:
    try:
        orders.write(json.dumps(message) + "\n")
        orders.flush()
    except BrokenPipeError:
        # What could not be written would be tried again when the pipe is closed.
        with suppress(BrokenPipeError):
            orders.close()
        return False
    return True


def _reply(running: subprocess.Popen[str], replies: IO[str], key: str, name: str, log: Path,
           limit_s: float) -> child.Message:
    expired = threading.Event()

    def expire() -> None:
        expired.set()
        child.kill(running)

    timer = threading.Timer(limit_s, expire)
    timer.daemon = True
    timer.start()
    try:
        for line in replies:
            message = child.parse(line)
            if "error" in message:
                raise KINDS.get(str(message["error"]), CannotMeasure)(f"{name}: {message['message']}",
                                                                      str(message["hint"]))
            if key in message:
                return message
    finally:
        timer.cancel()
    if expired.is_set():
        raise CannotMeasure(f"{name} did not answer within {limit_s:g} s", "run fewer inferences per block")
    raise _ended(running, name, log)


def _ended(running: subprocess.Popen[str], name: str, log: Path) -> CannotMeasure:
    status = running.wait()
    last = log.read_text(errors="replace").strip().splitlines()[-1:]
    died = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
    return CannotMeasure(f"{name} {died}" + (f": {last[0]}" if last else ""), f"its log is {log}")


def command_of(job: PairedJob, path: Path) -> tuple[str, ...]:
    """Write the job to `path` and return the command that holds its session."""
    write_json(path, job)
    return sys.executable, "-m", MODULE, str(path)


def opener(jobs: Mapping[str, PairedJob], folder: Path) -> Opened:
    """Build on this device, once, what the sessions need, and return what opens one process per job again and again.

    Raises:
        EdgebenchError: An engine cannot be built.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for job in dict.fromkeys(jobs.values()):
        _prepare(job, folder)
    return lambda order: processes({name: jobs[name] for name in order}, folder)


def _prepare(job: PairedJob, scratch: Path) -> None:
    """Verify the artifact, and have built what its session needs on this device before a time limit runs."""
    folder = Path(job.artifact)
    artifact = artifacts.verify(folder)
    if builder.builds_on_device(artifact.recipe):
        builder.prepare([builder.PrepareJob(
            entry=str(folder / artifact.entry), recipe=artifact.recipe,
            batch=artifacts.fixed_batch(artifact) or job.batch)], scratch)


@contextmanager
def processes(jobs: Mapping[str, PairedJob], folder: Path) -> Iterator[dict[str, Run]]:
    """Open one process per job, all at once, and yield their sessions.

    What they need built on this device must have been built before: `opener` does.

    Raises:
        EdgebenchError: What one of them raised, or that it died or took too long.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        runs = {}
        for number, (name, job) in enumerate(jobs.items()):
            command = command_of(job, folder / f"paired-{number}.json")
            runs[name] = stack.enter_context(process(name, command, folder / f"paired-{number}.log"))
        yield runs


if __name__ == "__main__":
    child.serve(work)
