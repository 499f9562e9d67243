"""From what a worker measured to the parts of a run: scores, doubts, what is skipped, and the reference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from edgebench import builds, environment, instrument, latency, parity
from edgebench.record import Artifact, Caveat, ColdStart, PassRecord, Reference, Run, Score, Skip
from edgebench.worker import Measurement, PassJob


def reference(artifact: Artifact, earlier: Sequence[Run], device: str | None = None,
              threads: int | None = None) -> Run | None:
    """Return the FP32 sibling that a variant is compared with; None where there is none.

    It is the one that was timed most alike, so that precision alone differs: on the same processor, device and number
    of threads, then in the same backend, through the same execution providers. An FP32 variant is compared with the
    FP32 sibling that has no reference itself, so that of several FP32 runtimes all but one have a reference.

    Args:
        artifact: Of the variant.
        earlier: Finished runs.
        device: Id of the device that the variant is measured on; None: any.
        threads: CPU threads of the variant; None: any number.
    """
    mine = artifact.recipe

    def unlike(run: Run) -> tuple[bool, ...]:
        its = run.artifact.recipe
        return (its.processor != mine.processor, device not in (None, run.device.id),
                threads not in (None, run.settings.threads), its.backend != mine.backend,
                its.providers != mine.providers)

    siblings = [run for run in earlier if run.artifact.recipe.precision == "fp32"
                and run.artifact.model == artifact.model and run.artifact.digest != artifact.digest
                and (mine.precision != "fp32" or run.reference is None)]
    return min(siblings, key=unlike, default=None)


def named(reference: Run | None) -> Reference | None:
    """Return how a run names its reference."""
    return Reference(variant=reference.variant, artifact_digest=reference.artifact.digest) if reference else None


def performance(found: Measurement, artifact: Artifact, confidence: float) -> tuple[Score, ...]:
    """Return the scores of speed, memory, size and builds; absent where throttling made the timings invalid.

    Args:
        found: What the worker measured.
        artifact: What it measured.
        confidence: Two-sided, of the timings' intervals; the budget's.
    """
    scores = [score for trace in found.traces for score in latency.scores(trace, confidence)]
    if found.observed is not None:
        scores += instrument.scores(found.observed, confidence)
        if found.observed.invalid:
            reason = f"invalid: {found.observed.invalid[0].message}"
            scores = [replace(score, value=None, low=None, high=None, reason=reason, reason_code="invalid")
                      for score in scores]
    if found.cold_start is not None:
        scores += cold_start_scores(found.cold_start)
        memory = found.peak_host_memory_bytes
        scores.append(Score(
            name="peak_host_memory", value=None if memory is None else float(memory), unit="bytes", better="lower", n=1,
            method="high-water mark of the worker's resident memory after single-stream timing, interpreter, NumPy and "
                   "runtime included",
            kind="single", method_id="resident-high-water",
            reason_code="not-told" if memory is None else "measured-once",
            reason="one process was observed" if memory is not None else "this system does not tell (no VmHWM)"))
    scores.append(Score(name="artifact_size", value=float(artifact.size_bytes), unit="bytes", better="lower", n=1,
                        method="bytes of all files that ship to the device", kind="exact", method_id="bytes",
                        reason="exact", reason_code="not-estimated"))
    if found.build_spread is not None:
        scores += builds.scores(found.build_spread)
    return tuple(scores)


def cold_start_scores(cold: ColdStart) -> list[Score]:
    """Return load and first-inference time (s) of one fresh process, and both with the runtime's import."""
    def score(name: str, value: float, method: str) -> Score:
        return Score(name=name, value=value, unit="s", better="lower", n=1, method=method, kind="single",
                     method_id="fresh-process", reason="one fresh process was observed", reason_code="measured-once")

    return [
        score("cold_start_time", cold.total_s,
              "import of the runtime, opening of the artifact and first inference in a fresh process, file cache warm"),
        score("load_time", cold.load_s,
              "opening the artifact in a fresh process, the runtime's import not counted, file cache warm"),
        score("first_inference_time", cold.first_inference_s, "the first inference after opening")]


def timing_caveats(found: Measurement, artifact: Artifact, confidence: float) -> tuple[Caveat, ...]:
    """Return what in the timings, the machine and the builds speaks against the numbers.

    Args:
        found: What the worker measured.
        artifact: What it measured.
        confidence: Two-sided, of the timings' intervals; the budget's.
    """
    doubts = [caveat for trace in found.traces for caveat in latency.caveats(trace, confidence)]
    if found.observed is not None:
        single = next((trace for trace in found.traces if trace.scenario == "single-stream"), None)
        doubts += instrument.caveats(found.observed, confidence, single)
    if found.traces:
        doubts += latency.environment_caveats(found.environment, found.traces[0].threads)
    if found.build_spread is not None:
        doubts += builds.caveats(found.build_spread)
    doubt = parity.not_achieved(found.precision, artifact.recipe, artifact.precision)
    if doubt is not None:
        doubts.append(doubt)
    quantization = artifact.recipe.quantization
    if quantization is not None and artifact.recipe.backend in ("onnxruntime", "openvino") \
            and not artifact.recipe.providers and found.environment.machine == "x86_64" \
            and environment.lacks_vnni(found.environment.cpu_features):
        saturates = "" if quantization.reduce_range else ", and may saturate"
        doubts.append(Caveat(
            code="no-int8-instructions",
            message=f"this CPU has neither VNNI nor AMX: INT8 products are emulated{saturates}",
            hint="expect little gain" if quantization.reduce_range else
            "use the recipe ending in -avx2, whose 7-bit weights do not saturate; expect little gain"))
    return tuple(doubts)


def skips(reason: str | None, found: Measurement, *, timed: bool) -> tuple[Skip, ...]:
    """Return what was left out: quality, for `reason`, latency where nothing was timed, golden outputs."""
    skips = [] if reason is None else [Skip(what="quality", reason=reason, subject="quality", code="unfit")]
    if not timed:
        skips.append(Skip(what="latency", reason="not asked for", subject="latency", code="not-asked"))
    if found.golden_max_abs_difference is None:
        skips.append(Skip(what="golden outputs", reason="the artifact carries none", subject="golden", code="absent"))
    return tuple(skips)


def uncompared(artifact: Artifact, jobs: Sequence[PassJob], reference: Run | None) -> tuple[Skip, ...]:
    """Say on which data there is no comparison with the reference."""
    if not jobs or (reference is None and artifact.recipe.precision == "fp32"):
        return ()
    if reference is None:
        return (Skip(what="comparison with the reference", subject="reference", code="no-reference",
                     reason="no FP32 sibling of this model was profiled with it"),)
    seen = set(map(known, reference.passes))
    unpaired = sorted({job.dataset.name for job in jobs if known(record(job)) not in seen})
    return (Skip(what="comparison with the reference", subject="reference", code="other-images",
                 reason=f"{reference.variant} saw other images of {', '.join(unpaired)}, or none"),) if unpaired else ()


def record(job: PassJob) -> PassRecord:
    """Return the pass as a run records it."""
    return PassRecord(dataset=job.dataset, condition=job.condition, preset=job.preset)


def known(one: PassRecord) -> tuple[str, str, str, str]:
    """Return what two runs must have in common to be compared image by image; one may have stopped early."""
    return one.dataset.name, (one.part_of or one.dataset).digest, one.condition, one.preset
