"""Artifacts + device + data → runs: order the work, one process per variant, assemble and write each record."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, fields, replace
from datetime import datetime, timezone
from pathlib import Path

from edgebench import (
    __version__,
    artifacts,
    assembly,
    boards,
    catalog,
    ceilings,
    consistency,
    environment,
    evaluate,
    floors,
    instrument,
    interleaved,
    latency,
    outputs,
    properties,
    provenance,
    report,
    stopping,
    sustained,
)
from edgebench.baselines import Baselines
from edgebench.datasets import distinguished
from edgebench.decisions import DECISIONS, of_runs
from edgebench.errors import (
    CannotMeasure,
    EdgebenchError,
    InvalidInput,
    UsageError,
    unknown,
    writing,
)
from edgebench.files import refuse_unwritable
from edgebench.history import HISTORY
from edgebench.named_sets import fit_sets
from edgebench.observed import Observed
from edgebench.planning import Planner, Wanted
from edgebench.policy import Policy
from edgebench.record import (
    RUN_SCHEMA,
    Artifact,
    Caveat,
    Device,
    Run,
    Settings,
    Skip,
    dump,
    load,
    write_bytes,
    write_json,
)
from edgebench.stopping_timings import MOST_ROUNDS, Ratios, follows_ratios
from edgebench.telemetry import commands, control, nvml
from edgebench.timing_types import Control, NoiseFloor, TimingPlan
from edgebench.variants import Failure, Roster, Variant
from edgebench.worker import Job, PassJob, load_measurement, run_worker

OLD = "run.old.json"
FLOORS = "noise-floor"
"""Folder of the runs that noise floors come from; it is removed when they are written."""
Progress = Callable[[str, float], None]
"""Told (what is being done, share of it that is done)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What to profile, and how."""

    models: tuple[str, ...]
    """Models, or artifact folders."""
    out: Path
    device: str = "auto"
    recipes: tuple[str, ...] = ()
    backends: tuple[str, ...] = ()
    precisions: tuple[str, ...] = ()
    data: tuple[str, ...] = ()
    """Labelled image folders or data roots; the model's own evaluation images where empty and it brings some."""
    properties: tuple[str, ...] = ("all",)
    budget: str | None = "standard"
    """None: no timing."""
    weights: str | None = None
    calibration_data: str | None = None
    classes: Path | None = None
    """Class map file."""
    templates: Path | None = None
    """Prompt templates, one per line, with ``{}`` for the class name."""
    preprocess: Path | None = None
    """TOML file of a `Preprocess`."""
    output: str | None = None
    """Which output of a model is scored, as ``NAME`` or ``NAME=KIND``; None: `edgebench.outputs.put_first` decides."""
    preset: str = "native"
    """``native``: what the weights were tuned for; ``paper``: the published protocols, literally."""
    ood: tuple[str, ...] = ()
    """Folders of images that the model was not made for."""
    sweep_images: int | None = None
    """Images per generated corruption and level of invariance; None: 5 of each class and at least 200; 0: all."""
    store: str = "logits"
    """``logits``, or ``compact``: a few numbers per image."""
    resolutions: tuple[int, ...] = ()
    """Other input sizes to export graphs for, so that invariance to resolution can be measured."""
    threads: int | None = None
    """None: the usable CPUs."""
    batch: int = 16
    timing: TimingPlan = field(default_factory=TimingPlan)
    """Scenarios, what is watched meanwhile, and what the device is set to, and set back."""
    paired: int | float = 0
    """Rounds in which all variants are timed in turns at the end, each against its reference, or the relative change
    that they are to find (below 1); 0: none, but where `until` has rules on ratios, which end them."""
    noise_floor: Path | None = None
    """Where to write by how much runs of the first variant of each runtime differ; None: it is not measured."""
    builds: int = 1
    """Builds of each artifact to compare with each other."""
    allow_precision_fallback: bool = False
    """Whether another executed precision than the one asked for is a caveat instead of an error."""
    until: str | None = None
    """Policy that ends the evaluation of a variant as soon as all its rules are decided; None: all images count."""
    baseline: str | None = None
    """Earlier run that rules of `until` against a baseline compare with, as in `edgebench.baselines.Baselines`."""
    history: str = HISTORY
    """Where its rules look."""
    resume: bool = False
    force: bool = False


@dataclass(slots=True, kw_only=True)
class Result:
    """What `profile` leaves."""

    out: Path
    runs: list[Run] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    skips: list[Skip] = field(default_factory=list)
    paired: interleaved.Paired | None = None
    """All variants timed in turns, where that was asked for."""
    floors: tuple[NoiseFloor, ...] = ()
    """By how much runs of equals differ in each timing metric, where that was asked for."""

    @property
    def html(self) -> Path:
        """The report over all runs."""
        return self.out / "report.html"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shared:
    """What all variants of a job have in common."""

    request: Request
    device: Device
    chosen: tuple[str, ...]
    """Properties."""
    missing: tuple[Skip, ...]
    """Properties that cannot be evaluated."""
    until: Policy | None
    baselines: Baselines
    planner: Planner
    shelf: evaluate.Shelf
    timed_too: frozenset[str]
    """Variants that are timed in this job."""
    changed: tuple[str, ...]
    """Settings of the device that were changed for the measurement."""
    doubts: tuple[Caveat, ...]
    """About the device."""
    power_mode: str | None


def profile(request: Request, progress: Progress = lambda what, share: None,
            note: Callable[[str], None] = lambda text: None) -> Result:
    """Export what is a model, measure every variant in a process of its own, and write runs and report.

    A variant that cannot be measured does not stop the others; what is finished is on disk at any time.

    Args:
        request: What and how.
        progress: Told what is being done and how far it is.
        note: Told, once each, what a user should know.

    Raises:
        UsageError: Something asked for does not exist, or the output folder holds other results.
        InvalidInput: Data, artifact or weights that cannot be used, or an output folder that cannot be written.
        MissingDependency: A package that the request needs is not installed.
    """
    instrument.refuse_unfit(request.timing)
    device, _, _ = resolve_device(request.device)
    note(f"device: {device.title}")
    chosen, missing = properties.usable(request.properties, request.data)
    timed = request.budget is not None
    if request.baseline is not None and request.until is None:
        raise UsageError("--baseline is for rules of --until POLICY", "finished runs are held against one by gate")
    until = stopping.read(request.until, timed=timed, baseline=request.baseline is not None) \
        if request.until is not None else None
    if until is not None:
        chosen, left_out = stopping.scope(until, chosen, by_name=list(request.properties) != ["all"], timed=timed)
        missing = (*missing, *left_out)
    if request.budget is not None:
        latency.budget(request.budget)
    if request.preset not in properties.PRESETS:
        raise unknown("preset", request.preset, properties.PRESETS)
    if request.store not in ("logits", "compact"):
        raise unknown("store", request.store, ("logits", "compact"))
    for name, number, least in (("--threads", request.threads, 1), ("--batch", request.batch, 1),
                                ("--builds", request.builds, 1), ("--paired", request.paired, 0),
                                ("--sweep-images", request.sweep_images, 0)):
        if number is not None and number < least:
            raise UsageError(f"{name}: expected {least} or more, got {number}")
    if until is not None and timed and 0 < request.paired < 1 and follows_ratios(until):
        raise UsageError(f"--paired {request.paired:.1%} plans how many rounds there are, and --until ends them",
                         "give --paired a number of rounds, the most that there may be, or omit it")
    if request.noise_floor is not None:
        if not timed:
            raise UsageError("--noise-floor times runs, and nothing is to be timed",
                             "use it with a --budget")
        refuse_unwritable(request.noise_floor, "choose another file with --noise-floor")
    images = distinguished([one for location in request.data for one in fit_sets(location)[0]])
    for one in images:
        note(f"data: {one.understood}")
    result = Result(out=request.out)
    with Baselines(request.baseline, request.history) as baselines:
        with _without_traces(request.out), Roster(
                request=request, device=device, images=images, progress=progress, note=note,
                failures=result.failures, skips=result.skips) as roster:
            _check_writable(request.out)
            planner = _planned(request, roster, chosen, until, progress, note)
            for variant in roster.promised if until is not None else ():
                baselines.of_variant(variant.name, device.id, request.out / variant.name)
            variants = roster.export()
        for sentence in dict.fromkeys(outputs.sentence(variant.artifact) for variant in variants):
            if sentence:
                note(sentence)
        if request.force:
            _set_aside(request.out, variants)
        _measure(request, variants, result, device, chosen=chosen, missing=missing, until=until, planner=planner,
                 baselines=baselines, progress=progress, note=note)
    if result.runs:
        write_reports(result)
    return result


def _planned(request: Request, roster: Roster, chosen: tuple[str, ...], until: Policy | None,
             progress: Progress, note: Callable[[str], None]) -> Planner:
    """Return the planner, once nothing stands against measuring any of these variants.

    Raises:
        EdgebenchError: Results are in the way, data do not fit, or a policy cannot be followed.
    """
    promised = roster.promised
    _refuse_foreign_results(request, promised)
    planner = _planner(request, chosen, roster, progress, note)
    if until is not None:
        stopping.refuse_unfit(until, chosen, [(one.artifact, planner.of(one.artifact).passes) for one in promised],
                              _finished(request.out, ()), timed=request.budget is not None)
    for variant in promised if request.resume else ():
        _refuse_other_settings(request, variant, planner, chosen)
    return planner


@contextmanager
def _without_traces(out: Path) -> Iterator[None]:
    """Take away the folders that a refused job has made and left empty."""
    before = out.exists()
    try:
        yield
    except BaseException:
        for folder in (out / "artifacts", *([] if before else [out])):
            with suppress(OSError):
                folder.rmdir()
        raise


def _measure(request: Request, variants: Sequence[Variant], result: Result, device: Device, *, chosen: tuple[str, ...],
             missing: tuple[Skip, ...], until: Policy | None, planner: Planner, baselines: Baselines,
             progress: Progress, note: Callable[[str], None]) -> None:
    timed = request.budget is not None
    with _controlled(request.timing.control, device, note) as settings:
        # Asked again: another power mode may be in force now, set for this measurement or set back after a crash.
        _, doubts, power_mode = resolve_device(request.device)
        shared = _Shared(request=request, device=device, chosen=chosen, missing=missing, until=until, planner=planner,
                         baselines=baselines, shelf=evaluate.Shelf(),
                         timed_too=frozenset(one.name for one in variants if timed),
                         changed=settings, doubts=doubts, power_mode=power_mode)
        for number, variant in enumerate(variants, 1):
            def told(what: str, share: float, prefix: str = f"[{number}/{len(variants)}] {variant.name}: ") -> None:
                progress(prefix + what, share)

            try:
                run = _run_variant(shared, variant, _finished(request.out, result.runs), told)
            except EdgebenchError as error:
                result.failures.append(Failure(what=variant.name, error=error))
                note(f"{variant.name}: {error.message}")
            else:
                result.runs.append(run)
                if run.observed is not None and run.observed.invalid:
                    result.failures.append(Failure(what=variant.name, error=_invalid(run.observed)))
        _interleave(shared, variants, result, progress, note)
        _measure_floors(shared, variants, result, progress, note)


def _interleave(shared: _Shared, variants: Sequence[Variant], result: Result, progress: Progress,
                note: Callable[[str], None]) -> None:
    """Time variants in turns where that was asked for."""
    request = shared.request
    folders = {variant.name: variant.folder for variant in variants if variant.folder is not None}
    runs = {run.variant: run for run in result.runs}
    try:
        followed = Ratios(shared.until, runs) if shared.until is not None and shared.timed_too else None
        margin = request.paired if 0 < request.paired < 1 else None
        rounds = MOST_ROUNDS if margin or (followed and not request.paired) else int(request.paired)
        if rounds and runs:
            result.paired = interleaved.compare({name: (run, folders[name]) for name, run in runs.items()}, request.out,
                                                rounds=rounds, margin=margin, progress=progress, followed=followed)
    except EdgebenchError as error:
        result.failures.append(Failure(what="timing in turns", error=error))
        note(f"timing in turns: {error.message}")


def _measure_floors(shared: _Shared, variants: Sequence[Variant], result: Result, progress: Progress,
                    note: Callable[[str], None]) -> None:
    """Time the first variant of each runtime again and again where noise floors were asked for, and write them."""
    request = shared.request
    if request.noise_floor is None or not result.runs:
        return
    folders = {variant.name: variant.folder for variant in variants if variant.folder is not None}
    first = {(run.artifact.recipe.backend, run.artifact.recipe.processor): run for run in reversed(result.runs)}
    plan = replace(request.timing, sustained_s=None, loadgen=False)
    try:
        for run in reversed(first.values()):
            artifact, scores = run.artifact, [run.performance]
            for number in range(1, floors.RUNS):
                what = f"noise floor, run {number} of {floors.RUNS - 1} of {run.variant}: "
                out = request.out / FLOORS / f"{run.variant}-{number}"
                shutil.rmtree(out, ignore_errors=True)

                def told(doing: str, share: float, what: str = what) -> None:
                    progress(what + doing, share)

                run_worker(Job(
                    artifact=str(folders[run.variant].resolve()), out=str(out.resolve()), threads=run.settings.threads,
                    batch=run.settings.batch, budget=request.budget, passes=(), builds=request.builds,
                    device=shared.device, timing=plan, images=shared.planner.of(artifact).images,
                    allow_precision_fallback=request.allow_precision_fallback), told)
                scores.append(assembly.performance(load_measurement(out), artifact, latency.budget(
                    request.budget or "").confidence))
            result.floors += floors.from_runs(run, scores)
        floors.save(request.noise_floor, result.floors)
    except EdgebenchError as error:
        result.failures.append(Failure(what="noise floor", error=error))
        note(f"noise floor: {error.message}")
    finally:
        shutil.rmtree(request.out / FLOORS, ignore_errors=True)


def resolve_device(name: str) -> tuple[Device, tuple[Caveat, ...], str | None]:
    """Return the device for ``--device``, doubts about it, and its power mode where it has one.

    ``auto``, ``jetson`` and ``cuda`` are recognised.

    Raises:
        UsageError: No device has that id.
        CannotMeasure: There is no such device here, or this machine is certainly another one.
    """
    devices = catalog.devices()
    # Where no GPU is seen, the CPU or the board is what is left.
    found = boards.recognise(Path("/"), devices, gpus=nvml.gpus_seen(), runner=commands.run)
    device = catalog.device(name) if name.endswith(".toml") else boards.choose(name, found, devices)
    return device, boards.declared_vs_observed(device, found), found.power_mode


@contextmanager
def _controlled(wanted: Control, device: Device, note: Callable[[str], None]) -> Iterator[tuple[str, ...]]:
    """Set what is wanted and set it back; without any wish, only undo what a crashed run left behind."""
    if wanted == Control():
        for text in control.restore_pending():
            note(f"set back what an earlier run had changed: {text}")
        yield ()
        return
    if (wanted.power_mode or wanted.jetson_clocks) and device.kind != "jetson":
        raise UsageError(f"--power-mode and --jetson-clocks are for Jetsons, and this device is {device.title}",
                         "omit them, or name the board with --device jetson")
    with control.controlled(wanted) as settings:
        for text in settings:
            note(f"set for this measurement: {text}")
        yield settings


def _invalid(observed: Observed) -> CannotMeasure:
    return CannotMeasure("its timings are invalid: " + "; ".join(event.message for event in observed.invalid),
                         "cool the device, supply more power or lower its load, and measure again with --force")


def _finished(out: Path, runs: Sequence[Run]) -> tuple[Run, ...]:
    """Return all finished runs in the output folder: these, and those of earlier jobs."""
    names = {run.variant for run in runs}
    earlier = [load(file) for file in sorted(out.glob("*/run.json")) if file.parent.name not in names]
    return (*runs, *earlier)


def write_reports(result: Result) -> None:
    """Write ``report.html`` and ``summary.json`` over all runs in the output folder."""
    runs = ceilings.filled_in(_finished(result.out, result.runs))
    write_json(result.out / "summary.json", {
        **report.summary(runs),
        "failures": [{"variant": one.what, "message": one.error.message, "hint": one.error.hint}
                     for one in result.failures],
        "skipped": [{"what": one.what, "reason": one.reason} for one in result.skips]})
    turns = interleaved.load(result.out)
    write_bytes(result.html, report.html(
        runs, [turns] if turns is not None else [],
        of_runs((run, result.out / run.variant) for run in runs)).encode())


def _check_writable(out: Path) -> None:
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        probe = out / f".write-test-{os.getpid()}"
        probe.write_bytes(b"edgebench")
        probe.unlink()


def _planner(request: Request, chosen: tuple[str, ...], roster: Roster, progress: Progress,
             note: Callable[[str], None]) -> Planner:
    """Return the planner, after it has planned every variant: unfit data should stop the work before hours of timing.

    Raises:
        UsageError: Quality was asked for by name where there can be none.
        InvalidInput: Data that the model's classes do not fit.
    """
    variants = roster.promised
    excluded = frozenset(digest for variant in variants if variant.artifact.calibration
                         for digest in variant.artifact.calibration.image_sha256)
    by_name = bool(chosen) and list(request.properties) != ["all"]

    planner = Planner(
        Wanted(properties=chosen, data=request.data, ood=request.ood, preset=request.preset,
               sweep_images=request.sweep_images, compact=request.store == "compact", by_name=by_name),
        excluded, progress, note, roster.answers)
    for variant in variants:
        reason = planner.reason_against(variant.artifact)
        if reason and by_name and variant.artifact.model.weights == "random":
            raise UsageError(f"--weights random cannot be evaluated: {reason}", "use --properties none")
        planner.of(variant.artifact)
        if reason and chosen and (request.budget is None or by_name):
            raise CannotMeasure(f"{variant.name} cannot be evaluated: {reason}")
    _refuse_too_little_room(request, planner, variants)
    return planner


def _refuse_too_little_room(request: Request, planner: Planner, variants: Sequence[Variant]) -> None:
    """Raise InvalidInput where the predictions to come would not fit on the disk."""
    needed = 0
    for variant in variants:
        classes = outputs.classes(variant.artifact)
        features = outputs.features_width(variant.artifact, evaluate.FEATURES)[0] or 0
        for job in planner.of(variant.artifact).passes:
            there = (request.out / variant.name / job.key.file).exists()
            if classes is not None and not there:
                needed += evaluate.room_needed(len(job.rows), classes, ids=job.ids, compact=job.compact,
                                               features=features if job.features else 0)
    free = shutil.disk_usage(request.out).free
    if needed > free:
        raise InvalidInput(f"{request.out} has {free / 1e9:.1f} GB free, the predictions need {needed / 1e9:.1f}",
                           evaluate.ROOM_HINT)


def _refuse_foreign_results(request: Request, variants: Sequence[Variant]) -> None:
    there = [variant.name for variant in variants if (request.out / variant.name).exists()]
    if there and not (request.resume or request.force):
        raise UsageError(f"{request.out / there[0]} already holds results",
                         "--resume goes on with them, --force measures again, --out DIR writes elsewhere")


def _set_aside(out: Path, variants: Sequence[Variant]) -> None:
    """Make all variants unmeasured at once, so that an interrupted --force never mixes old results with new ones.

    The old run files stay as ``run.old.json`` until their variant is measured again.
    """
    for variant in variants:
        folder = out / variant.name
        with writing(folder):
            if (folder / "run.json").exists():
                (folder / "run.json").replace(folder / OLD)
            for stale in (folder / "measurement.json", folder / sustained.FILE, folder / DECISIONS,
                          *folder.glob("predictions/*.npz")):
                stale.unlink(missing_ok=True)


def _settings(request: Request, artifact: Artifact, jobs: Sequence[PassJob], chosen: tuple[str, ...]) -> Settings:
    """Return what a variant is measured with; whether it may stop early is settled when it is measured."""
    return Settings(
        budget=request.budget or "none", threads=request.threads or environment.usable_cpus(),
        batch=artifacts.fixed_batch(artifact) or request.batch, preset=request.preset, properties=chosen,
        data=", ".join(dict.fromkeys(job.dataset.source for job in jobs)) or None,
        sweep_images=request.sweep_images, store="compact" if request.store == "compact" else "logits",
        builds=request.builds, timing=request.timing if request.budget else None)


def _changed(kept: Run, settings: Settings, *, but: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Return the settings in which a finished run differs; where the data lie may change."""
    return tuple(one.name for one in fields(Settings) if one.name not in ("data", *but)
                 and getattr(kept.settings, one.name) != getattr(settings, one.name))


def _measured_otherwise(file: Path, changed: Sequence[str]) -> UsageError:
    what = f"settings ({', '.join(changed)})" if changed else "data or artifact"
    return UsageError(f"{file} was measured with other {what}",
                      "--force measures again, --out DIR writes elsewhere")


def _refuse_other_settings(request: Request, variant: Variant, planner: Planner, chosen: tuple[str, ...]) -> None:
    """Refuse to go on with a run that was measured otherwise, before its artifact is exported again.

    Raises:
        UsageError: Its settings, its data or what its artifact is made of differ from this request's.
    """
    file = request.out / variant.name / "run.json"
    if not file.exists():
        return
    kept, promised, jobs = load(file), variant.artifact, planner.of(variant.artifact).passes
    changed = _changed(kept, _settings(request, promised, jobs, chosen), but=("until", "batch"))
    sources = [(one.model, one.recipe, one.preprocess, one.classes, one.calibration, one.tools)
               for one in (kept.artifact, promised)]
    passes = [set(map(assembly.known, records)) for records in (kept.passes, map(assembly.record, jobs))]
    if changed or sources[0] != sources[1] or passes[0] != passes[1]:
        raise _measured_otherwise(file, changed)


def _run_variant(shared: _Shared, variant: Variant, earlier: Sequence[Run], progress: Progress) -> Run:
    request, device, chosen = shared.request, shared.device, shared.chosen
    out, artifact = request.out / variant.name, variant.artifact
    plan = shared.planner.of(artifact)
    jobs, records = plan.passes, tuple(assembly.record(job) for job in plan.passes)
    threads = request.threads or environment.usable_cpus()
    reference = assembly.reference(artifact, earlier, device.id, threads)
    sibling = (reference, request.out / reference.variant) if reference is not None else None
    baseline, absent = shared.baselines.of_variant(variant.name, device.id, out) \
        if shared.until is not None and artifact.recipe.precision != "fp32" else (None, "")
    if absent:
        progress(absent, 0.0)
    until = stopping.plan(
        shared.until, chosen, artifact, jobs, sibling, timed=request.budget is not None,
        in_turns=reference is not None and reference.variant in shared.timed_too, baseline=baseline,
    ) if shared.until is not None else None
    settings = replace(_settings(request, artifact, jobs, chosen), until=until.name if until else None)
    file = out / "run.json"
    if file.exists():
        kept = load(file)
        changed = _changed(kept, settings)
        if not changed and (kept.artifact.digest, set(map(assembly.known, kept.passes))) == (
                artifact.digest, set(map(assembly.known, records))):
            # A reference that was measured since is worth scoring against: timings and predictions are kept.
            if kept.reference is not None or reference is None:
                progress("; ".join(["kept from before", *consistency.refuse_inconsistent(kept, out)]), 1.0)
                return kept
        else:
            raise _measured_otherwise(file, changed)
    assert variant.folder is not None
    job = Job(artifact=str(variant.folder.resolve()), out=str(out.resolve()), threads=settings.threads,
              batch=settings.batch, budget=request.budget, passes=stopping.ordered(until, jobs), builds=request.builds,
              until=until, device=device, timing=request.timing, images=plan.images,
              allow_precision_fallback=request.allow_precision_fallback)
    if until is None:
        stopping.discard(out)
    run_worker(job, progress)
    progress("scoring", 0.0)
    found = load_measurement(out)
    # A reference that saw other images of a set has nothing to say about these.
    seen = set(map(assembly.known, records))
    records = evaluate.hashed(out, stopping.records(until, jobs, out, artifact.digest))
    mine = (evaluate.load_passes if reference else shared.shelf.load)(out, records, artifact.digest)
    others = properties.aligned(shared.shelf.load(
        request.out / reference.variant, [one for one in reference.passes if assembly.known(one) in seen],
        reference.artifact.digest), mine, evaluate.parts(records)) if reference else None
    evaluations = evaluate.score(chosen, mine, others, request.preset)
    confidence = latency.CONFIDENCE if request.budget is None else latency.budget(request.budget).confidence
    machine = replace(found.environment, power_mode=shared.power_mode)
    observed = replace(found.observed, settings=shared.changed, ceilings=ceilings.kept(
        device.id, machine.cpu, settings.threads)) if found.observed else None
    run = Run(
        schema=RUN_SCHEMA, variant=variant.name, created_at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        edgebench=__version__, artifact=artifact, device=device,
        environment=machine, settings=settings,
        precision=found.precision, golden_max_abs_difference=found.golden_max_abs_difference,
        cold_start=found.cold_start, peak_host_memory_bytes=found.peak_host_memory_bytes, traces=found.traces,
        performance=assembly.performance(found, artifact, confidence), evaluations=evaluations, passes=records,
        reference=assembly.named(reference),
        caveats=(*artifact.caveats, *shared.doubts, *assembly.timing_caveats(found, artifact, confidence),
                 *plan.caveats, *stopping.caveats(records, until), *evaluate.caveats(evaluations, mine)),
        skips=(*assembly.skips(shared.planner.reason_against(artifact), found, timed=request.budget is not None),
               *(shared.missing if jobs else ()), *plan.skips,
               *assembly.uncompared(artifact, jobs, reference)), build_spread=found.build_spread,
        observed=observed,
        labels=provenance.labels())
    dump(run, file)
    (out / OLD).unlink(missing_ok=True)
    return run
