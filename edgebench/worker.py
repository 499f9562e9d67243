"""The process that measures one variant, and nothing else: ``python -m edgebench.worker JOB``; and how it is started.

It opens the artifact cold, times it, asks the runtime what it executed, pushes the data through it, and writes
``measurement.json`` and ``predictions/``. It tells its parent how far it is in JSON lines on its standard output.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from edgebench import (
    artifacts,
    backends,
    builder,
    builds,
    child,
    environment,
    instrument,
    latency,
    parity,
    stopping,
    sustained,
)
from edgebench.artifacts import pad
from edgebench.device import Device
from edgebench.errors import CannotMeasure
from edgebench.evaluate import run_pass, save_predictions
from edgebench.imagecache import load_cache, normalize, transform
from edgebench.observed import Observed
from edgebench.properties import CLEAN, Pass
from edgebench.record import (
    Artifact,
    BuildSpread,
    ColdStart,
    DatasetIdentity,
    Environment,
    ExecutedPrecision,
    LatencyTrace,
    decode,
    load_artifact,
    read_json,
    sha256_file,
    to_builtins,
    write_json,
)
from edgebench.scenarios import MULTI_STREAM_IMAGES
from edgebench.stopping_timings import Budgets
from edgebench.timing_types import Scenario, TimingPlan

# Distinct inputs that timing goes round in, so that no inference repeats its predecessor's.
TIMING_INPUTS = 8
# Images whose answers several builds are compared on.
COMPARED_IMAGES = 200
# A worker says what it does before each step and after each batch; one that says nothing for this long hangs.
SILENCE_LIMIT_S = 600.0
Tell = Callable[[str, float], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class PassJob:
    """One pass over cached images."""

    dataset: DatasetIdentity
    condition: str
    preset: str
    cache: str
    """Folder of the image cache."""
    rows: tuple[int, ...]
    """Rows of the cache, in order."""
    ids: tuple[str, ...]
    targets: tuple[int, ...]
    labels: tuple[tuple[int, ...], ...] | None = None
    """All accepted classes per image, for sets that accept several."""
    features: bool = False
    """Whether the artifact's features are kept too."""
    compact: bool = False
    """Whether a few numbers per image are kept instead of logits."""
    resolution_px: int | None = None
    """The artifact's entry for inputs of this size runs the pass; None: the artifact itself."""

    @property
    def key(self) -> Pass:
        """The pass that this is."""
        return Pass(self.dataset.name, self.condition, self.preset)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What a worker is to do."""

    artifact: str
    out: str
    threads: int
    batch: int
    budget: str | None
    """None: no timing."""
    passes: tuple[PassJob, ...]
    device: Device
    """As declared: which sensors there are."""
    timing: TimingPlan = field(default_factory=TimingPlan)
    images: tuple[str, ...] = ()
    """Image files for timing with preprocessing inside the clock."""
    builds: int = 1
    """Builds of the artifact to compare with each other; 1: none."""
    allow_precision_fallback: bool = False
    """Whether another executed precision than the one asked for is reported instead of refused."""
    until: stopping.Until | None = None
    """When passes may stop early; None: all are over all their images."""

    def timing_digest(self, artifact: Artifact) -> str:
        """Identify what decides the timings: an interrupted job with the same one need not time again."""
        parts = [artifact.digest, self.threads, self.batch, self.budget, self.builds, to_builtins(self.timing),
                 self.device.id, *([self.until.name] if self.until is not None and self.until.timed else [])]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """What a worker found besides predictions."""

    timing_digest: str
    environment: Environment
    precision: ExecutedPrecision
    golden_max_abs_difference: float | None
    cold_start: ColdStart | None
    peak_host_memory_bytes: int | None
    traces: tuple[LatencyTrace, ...]
    observed: Observed | None = None
    build_spread: BuildSpread | None = None


def load_measurement(folder: Path) -> Measurement:
    """Read what the worker wrote into `folder`."""
    file = folder / "measurement.json"
    return decode(Measurement, read_json(file), str(file))


def work(job: Job, tell: Tell) -> None:
    """Do the job; parts that an earlier, interrupted worker finished are kept.

    Raises:
        EdgebenchError: The artifact or the environment does not allow an honest measurement.
    """
    folder, out = Path(job.artifact), Path(job.out)
    # The parent has compared its files with their hashes, which here would count as this process's memory.
    artifact = load_artifact(folder)
    backend = backends.get(artifact.recipe.backend)

    def open_session(batch: int, entry: str = artifact.entry) -> backends.Session:
        return backend.open_session(folder / entry, artifact.recipe, batch=batch, threads=job.threads)

    if not _already_measured(out, job.timing_digest(artifact)):
        write_json(out / "measurement.json", _measure(job, artifact, backend, open_session, tell))
    batch = artifacts.fixed_batch(artifact) or job.batch
    entries = {one.size_px: one.entry for one in artifact.resolutions}
    opened: tuple[str, backends.Session] | None = None
    waiting = [one for one in job.passes if not stopping.is_done(job.until, one, out, artifact.digest)]
    total, done = sum(len(one.rows) for one in waiting), 0
    meaning = artifacts.meaning(folder, artifact)
    for one in waiting:
        entry = artifact.entry if one.resolution_px is None else entries[one.resolution_px]
        if opened is None or opened[0] != entry:
            opened = entry, open_session(batch, entry)
        what = f"evaluating {one.dataset.name}" + (f", {one.condition}" if one.condition != CLEAN else "")
        before = done

        def told(images: int, _: int, what: str = what, before: int = before) -> None:
            tell(what, (before + images) / total)

        followed = stopping.may_stop(job.until, one)
        parts = run_pass(opened[1], Path(one.cache), one.rows, batch, _alive if followed else told,
                         meaning=meaning, features=one.features, ids=one.ids, precision=artifact.recipe.precision)
        done += len(one.rows)
        if job.until is not None and followed:
            stopping.evaluate(job.until, one, parts, out, artifact.digest, partial(_share, tell, before, total),
                              meaning.kind)
            continue
        save_predictions(out / one.key.file, parts, targets=one.targets, ids=one.ids, dataset=one.dataset,
                         artifact_digest=artifact.digest, labels=one.labels, compact=one.compact,
                         size_px=load_cache(Path(one.cache)).size_px, kind=meaning.kind)


def _already_measured(out: Path, digest: str) -> bool:
    return (out / "measurement.json").exists() and load_measurement(out).timing_digest == digest


def _measure(job: Job, artifact: Artifact, backend: backends.Backend,
             open_session: Callable[[int], backends.Session], tell: Tell) -> Measurement:
    folder = Path(job.artifact)
    load_before = environment.busy_cpus()
    single = artifacts.fixed_batch(artifact) or 1
    inputs = _timing_inputs(job, artifact)
    feeds = _feeds(artifact, inputs, single)[0]
    tell("opening", 0.0)
    begin = time.perf_counter()
    packages = backend.packages()
    free = environment.free_memory()
    imported = time.perf_counter()
    session = open_session(single)
    loaded = time.perf_counter()
    session.infer(feeds)
    answered = time.perf_counter()
    taken = free.less(environment.free_memory()) if job.device.memory_shared else None
    measured, observed, memory = None, None, None
    if job.budget is not None:
        opened = _Infers(job, artifact, inputs, session, open_session, single)
        budgets = Budgets(job.until.policy, in_turns=job.until.in_turns) \
            if job.until is not None and job.until.timed and "single-stream" in job.timing.scenarios else None
        measured = instrument.measure(
            job.timing, opened, latency.budget(job.budget), job.device, tell, batch=opened.batch, single=single,
            threads=job.threads, timed_infer=opened.timed, decides=budgets.begin if budgets else None)
        if budgets:
            alone = next(one for one in measured.traces if one.scenario == "single-stream")
            budgets.write(Path(job.out), artifact.digest, alone.latency_s)
        memory = opened.memory_bytes or environment.peak_memory_bytes()
        observed = replace(measured.observed, device_memory_bytes=getattr(session, "device_memory_bytes", None),
                           shared_memory=taken)
        if measured.sustained is not None and observed.sustained is not None:
            file = sustained.save(Path(job.out), measured.sustained)
            observed = replace(observed, sustained=replace(
                observed.sustained, file=file, file_sha256=sha256_file(Path(job.out) / file)))
    around = environment.observe(packages, load_before=load_before)
    tell("asking for the executed precision", 0.0)
    precision = backend.executed_precision(folder / artifact.entry, artifact.recipe,
                                           feeds, threads=job.threads)
    _refuse_other_precision(job, artifact, precision)
    return Measurement(
        timing_digest=job.timing_digest(artifact), environment=around, precision=precision,
        golden_max_abs_difference=artifacts.golden_difference(folder, artifact, open_session),
        cold_start=ColdStart(import_s=imported - begin, load_s=loaded - imported,
                             first_inference_s=answered - loaded) if job.budget is not None else None,
        peak_host_memory_bytes=memory, traces=measured.traces if measured else (),
        observed=observed,
        build_spread=_build_spread(job, artifact, backend, single, inputs, tell) if job.builds > 1 else None)


def _refuse_other_precision(job: Job, artifact: Artifact, precision: ExecutedPrecision) -> None:
    doubt = parity.not_achieved(precision, artifact.recipe, artifact.precision)
    if doubt is not None and not job.allow_precision_fallback:
        raise CannotMeasure(doubt.message, doubt.hint)


def _build_spread(job: Job, artifact: Artifact, backend: backends.Backend, batch: int, inputs: np.ndarray,
                  tell: Tell) -> BuildSpread:
    if job.passes:
        images = load_cache(Path(job.passes[0].cache))
        inputs = normalize(np.array(images.pixels()[:COMPARED_IMAGES]), images.preprocess)
    sessions = []
    for number in range(1, job.builds + 1):
        tell(f"build {number} of {job.builds}", (number - 1) / job.builds)
        sessions.append(backend.open_session(Path(job.artifact) / artifact.entry, artifact.recipe, batch=batch,
                                             threads=job.threads, build_number=number))
    feeds = [{artifact.inputs[0].name: pad(inputs[start:start + batch], batch)}
             for start in range(0, len(inputs), batch)]
    return builds.spread(sessions, feeds, artifact.outputs[0].name,
                         progress=lambda share: tell("comparing builds", share))


def _timing_inputs(job: Job, artifact: Artifact) -> np.ndarray:
    """Return float inputs (n, 3, H, W): real images where there are any, else the golden inputs."""
    if job.passes:
        images = load_cache(Path(job.passes[0].cache))
        return normalize(np.array(images.pixels()[:TIMING_INPUTS]), images.preprocess)
    golden = artifacts.golden_inputs(Path(job.artifact), artifact)
    if golden is not None:
        return next(iter(golden[0].values()))
    shape = [size for size in artifact.inputs[0].shape[1:] if isinstance(size, int)]
    return np.random.default_rng(0).standard_normal((TIMING_INPUTS, *shape), np.float32)


def _feeds(artifact: Artifact, inputs: np.ndarray, batch: int) -> list[dict[str, np.ndarray]]:
    name = artifact.inputs[0].name
    count = len(inputs)
    return [{name: np.ascontiguousarray(inputs[[(start + k) % count for k in range(batch)]])} for start in range(count)]


def _images(scenario: Scenario, job: Job, artifact: Artifact) -> int:
    """Return how many images a query of a scenario holds."""
    fixed = artifacts.fixed_batch(artifact)
    return {"offline": fixed or job.batch, "multi-stream": MULTI_STREAM_IMAGES}.get(scenario, fixed or 1)


class _Infers(Mapping[Scenario, Callable[[], object]]):
    """What answers a query of each scenario; sessions for other batches are opened when they are first needed.

    A query of more images than the model's fixed batch takes as many inferences as hold them.
    """

    def __init__(self, job: Job, artifact: Artifact, inputs: np.ndarray, session: backends.Session,
                 open_session: Callable[[int], backends.Session], single: int) -> None:
        self._job, self._artifact, self._inputs = job, artifact, inputs
        self._open, self._sessions, self._single = open_session, {single: session}, single
        self.batch = artifacts.fixed_batch(artifact) or job.batch
        self.memory_bytes: int | None = None
        """High-water mark before a session for another batch was opened."""
        offered = getattr(session, "timed_infer", None)
        feeds = cycle(_feeds(artifact, inputs, single))
        self.timed: Callable[[], Any] | None = (lambda: offered(next(feeds))) if offered is not None else None

    def __getitem__(self, scenario: Scenario) -> Callable[[], object]:
        fixed = artifacts.fixed_batch(self._artifact)
        images = _images(scenario, self._job, self._artifact)
        size = fixed or images
        if size not in self._sessions:
            self.memory_bytes = self.memory_bytes or environment.peak_memory_bytes()
            self._sessions[size] = self._open(size)
        infer = self._sessions[size].infer
        if self._job.timing.preprocessing:
            return self._from_files(infer, images, size)
        upcoming = cycle(_feeds(self._artifact, self._inputs, size))
        calls = math.ceil(images / size)
        if calls == 1:
            return lambda: infer(next(upcoming))

        def query() -> None:
            for _ in range(calls):
                infer(next(upcoming))

        return query

    def __iter__(self) -> Iterator[Scenario]:
        return iter(instrument.SCENARIOS)

    def __len__(self) -> int:
        return len(instrument.SCENARIOS)

    def _from_files(self, infer: Callable[[backends.Feeds], object], images: int, size: int) -> Callable[[], object]:
        preprocess, name = self._artifact.preprocess, self._artifact.inputs[0].name
        if preprocess is None or not self._job.images:
            raise CannotMeasure("timing with preprocessing needs image files, and a model whose preprocessing is known",
                                "pass --data DIR")
        upcoming = cycle(Path(file) for file in self._job.images)

        def query() -> None:
            pixels = []
            for _ in range(images):
                with Image.open(next(upcoming)) as image:
                    pixels.append(transform(image, preprocess))
            inputs = normalize(np.stack(pixels), preprocess)
            for start in range(0, images, size):
                infer({name: pad(inputs[start:start + size], size)})

        return query


def _share(tell: Tell, before: int, total: int, what: str, images: int) -> None:
    tell(what, (before + images) / total)


def _alive(_: int, __: int) -> None:
    # What is said about a pass that may stop early comes with its looks, which may lie far apart.
    child.send({})


def _tell(what: str, share: float) -> None:
    child.send({"what": what, "share": share})


def _main(path: Path) -> None:
    work(decode(Job, read_json(path), str(path)), _tell)


def _sessions(job: Job, artifact: Artifact) -> Iterator[builder.PrepareJob]:
    """Yield every session that the measuring process will open."""
    folder = Path(job.artifact)
    fixed = artifacts.fixed_batch(artifact)

    def session(batch: int, entry: str = artifact.entry, build_number: int = 0) -> builder.PrepareJob:
        return builder.PrepareJob(entry=str(folder / entry), recipe=artifact.recipe, batch=fixed or batch,
                                  build_number=build_number)

    if not _already_measured(Path(job.out), job.timing_digest(artifact)):
        yield session(1)
        if job.budget is not None:
            yield from (session(_images(scenario, job, artifact)) for scenario in job.timing.scenarios)
        golden = artifacts.golden_inputs(folder, artifact)
        if golden is not None:
            yield session(len(next(iter(golden[0].values()))))
        yield from (session(1, build_number=number) for number in range(1, job.builds + 1) if job.builds > 1)
    entries = {one.size_px: one.entry for one in artifact.resolutions}
    for one in job.passes:
        yield session(job.batch, artifact.entry if one.resolution_px is None else entries[one.resolution_px])


def _silence_limit_s(budget: str | None) -> float:
    # LoadGen says nothing for as long as a scenario takes at most, and may take longer for its warm-up.
    return max(SILENCE_LIMIT_S, 2 * latency.budget(budget).max_s) if budget is not None else SILENCE_LIMIT_S


def run_worker(job: Job, tell: Tell) -> None:
    """Run the job in a fresh process, once everything is built that its sessions need on this device.

    Raises:
        EdgebenchError: What the worker or a build raised, or that it died.
    """
    folder, out = Path(job.artifact), Path(job.out)
    artifact = artifacts.verify(folder)
    if builder.builds_on_device(artifact.recipe):
        builder.prepare(_sessions(job, artifact), out, lambda what: tell(what, 0.0))
    if job.budget is not None and not _already_measured(out, job.timing_digest(artifact)):
        # Another precision than the one asked for would make the timings worthless: it is refused before them.
        tell("asking for the executed precision", 0.0)
        _refuse_other_precision(job, artifact, builder.executed_precision(folder, job.threads, out))
    write_json(out / "job.json", job)

    def told(message: child.Message) -> None:
        if "what" in message:
            tell(str(message["what"]), float(str(message["share"])))

    limits = child.Limits(silence_s=_silence_limit_s(job.budget), memory_bytes=environment.usable_memory_bytes(),
                          hint="does the graph hold a loop without an end? leave the variant out")
    child.run("edgebench.worker", out / "job.json", out / "worker.log", told, what="the measuring process",
              limits=limits)
    (out / "job.json").unlink()


if __name__ == "__main__":
    child.serve(_main)
