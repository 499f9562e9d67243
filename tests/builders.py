"""Synthetic runs for tests: valid, deterministic, and quick to build; every number can be chosen."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

import numpy as np

from edgebench import catalog, latency, stats
from edgebench.properties import Pass, Predictions, accuracy, calibration, scores
from edgebench.recipe import Precision, Recipe
from edgebench.record import (
    ARTIFACT_SCHEMA,
    RUN_SCHEMA,
    Artifact,
    CalibrationSet,
    Caveat,
    ClassMap,
    ColdStart,
    DatasetIdentity,
    Environment,
    Evaluation,
    ExecutedPrecision,
    FileEntry,
    LatencyTrace,
    ModelIdentity,
    Parity,
    PassRecord,
    Preprocess,
    Reference,
    ReliabilityBin,
    Run,
    Score,
    Settings,
    Skip,
    TensorSpec,
)

MODEL = "demo:inspection"
DATASET = DatasetIdentity(name="inspection", source=MODEL, images=1000, classes=3, digest="d" * 64)
BIASED = "bootstrap over images, 1,000 resamples, shifted by its bias"


def sha(text: str) -> str:
    """Return a hash that looks like a file's."""
    return hashlib.sha256(text.encode()).hexdigest()


def recipe(name: str) -> Recipe:
    """Return the shipped recipe of that id."""
    return catalog.recipes()[name]


def artifact(of: Recipe, *, model: str = MODEL, size_bytes: int = 13_600_000) -> Artifact:
    """Return the manifest of what the recipe would make."""
    entry = "model.xml" if of.backend == "openvino" else "model.onnx"
    return Artifact(
        schema=ARTIFACT_SCHEMA, model=ModelIdentity(id=model, weights="pretrained", weights_sha256=sha(model)), recipe=of,
        entry=entry, files=(FileEntry(path=entry, sha256=sha(model + of.id), size_bytes=size_bytes),
                            FileEntry(path="golden.npz", sha256=sha("golden"), size_bytes=3_000_000, deployed=False)),
        inputs=(TensorSpec(name="image", dtype="float32", shape=("batch", 3, 248, 248)),),
        outputs=(TensorSpec(name="logits", dtype="float32", shape=("batch", 3)),),
        preprocess=Preprocess(size_px=(248, 248), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), resize="none", border_px=1),
        classes=ClassMap(ids=("global", "local", "nominal"), names=("global defect", "local defect", "nominal")),
        calibration=CalibrationSet(source=model, images=128, seed=0, digest=sha("calibration"), image_sha256=())
        if of.quantization else None,
        parity=Parity(reference="eager PyTorch", inputs=f"16 images of {model}", images=16,
                      max_abs_difference=2.1e-5 if of.precision == "fp32" else 0.31, top1_agreement=1.0),
        golden="golden.npz", tools={"torch": "2.9.1", "onnx": "1.19.0"}, created_at="2026-03-14T09:20:00+00:00")


def environment() -> Environment:
    """Return what was seen on an ordinary machine."""
    return Environment(
        hostname="bench-03", os="Linux 6.12.9", python="3.11.9", machine="x86_64",
        cpu="AMD Ryzen Embedded V3C18I", cpu_features=("avx2", "avx512f", "avx512_vnni", "avx512_bf16"), cpus_online=8,
        cpus_usable=4, memory_bytes=16_700_000_000, governor="schedutil", load_before=0.12, load_after=3.4,
        packages={"onnxruntime": "1.32.0", "openvino": "2026.4.0", "numpy": "2.4.6", "pillow": "12.1.0"})


def single_stream(latency_s: Sequence[float], warmup_s: Sequence[float] = (0.05, 0.02)) -> LatencyTrace:
    """Return a single-stream trace of these timings."""
    return LatencyTrace(scenario="single-stream", batch=1, threads=4, clock="perf_counter_ns", clock_resolution_s=4e-8,
                        warmup_s=tuple(warmup_s), latency_s=tuple(latency_s), stopped="count-and-duration")


def offline(latency_s: Sequence[float], batch: int = 16) -> LatencyTrace:
    """Return an offline trace of these timings."""
    return LatencyTrace(scenario="offline", batch=batch, threads=4, clock="perf_counter_ns", clock_resolution_s=4e-8,
                        warmup_s=(latency_s[0],), latency_s=tuple(latency_s), stopped="count-and-duration")


def accuracy_evaluation(correct: int, *, n: int = 1000, flips: tuple[int, int] | None = None,
                        dataset: DatasetIdentity = DATASET) -> Evaluation:
    """Return an accuracy evaluation of `correct` of `n` images, with (negative, positive) flips where given."""
    against: tuple[Score, ...] = ()
    if flips is not None:
        change, error = stats.paired_change(*flips, n)
        against = (
            Score(name="accuracy_top1_change", value=change, low=change - 1.96 * error, high=change + 1.96 * error,
                  unit="fraction", better="higher", n=n, method="top-1 minus the reference's; paired"),
            scores.share("negative_flips", flips[0], n, "lower", "right before, wrong now"),
            scores.share("positive_flips", flips[1], n, "higher", "wrong before, right now"),
            Score(name="mcnemar_p", value=stats.mcnemar_exact(*flips), unit="1", better=None, n=n,
                  method="exact two-sided McNemar test"))
    return Evaluation(
        property="accuracy", dataset=dataset, condition="clean", preset="native", predictions=("predictions/clean.npz",),
        scores=(scores.share("accuracy_top1", correct, n, "higher", "largest logit"),
                Score(name="accuracy_top5", value=None, unit="fraction", better="higher", n=n, method="five largest logits",
                      reason="with 3 classes the five largest logits always hold the target")),
        reference_scores=against)


def calibration_evaluation(ece: float, *, n: int = 1000, dataset: DatasetIdentity = DATASET) -> Evaluation:
    """Return a calibration evaluation with that ECE; bins are filled with a ramp."""
    bins = []
    for k in range(15):
        count = (k + 1) * n // 120 if k else 0
        middle = (k + 0.5) / 15
        bins.append(ReliabilityBin(low=k / 15, high=(k + 1) / 15, n=count, confidence=middle if count else None,
                                   accuracy=max(0.0, middle - ece) if count else None))
    return Evaluation(
        property="calibration", dataset=dataset, condition="clean", preset="native", predictions=("predictions/clean.npz",),
        scores=(Score(name="ece15_ew", value=ece, low=max(0.0, ece - 0.01), high=ece + 0.01, unit="fraction",
                      better="lower", n=n, method=f"15 equal-width bins; {BIASED}"),
                Score(name="ece15_ew_null", value=0.019, high=0.03, confidence=0.975, unit="fraction", better=None, n=n,
                      method="what chance alone gives", reason="one-sided: only the upper end matters")),
        reliability=tuple(bins))


def run(recipe_id: str = "ort-fp32", *, model: str = MODEL, latency_s: Sequence[float] | None = (0.01, 0.02, 0.03),
        batch_s: Sequence[float] | None = None, size_bytes: int = 13_600_000, evaluations: tuple[Evaluation, ...] = (),
        reference: Run | None = None, executed: Precision | None = None, caveats: tuple[Caveat, ...] = (),
        skips: tuple[Skip, ...] = (), variant: str | None = None, cold: ColdStart | None = None,
        peak_bytes: int | None = None, least: int = 400) -> Run:
    """Return a run of a shipped recipe: timings in, everything derived from them computed as `profile` does.

    The single-stream timings are repeated until there are `least` of them, enough to bound the 99th percentile.
    """
    of = recipe(recipe_id)
    made = artifact(of, model=model, size_bytes=size_bytes)
    traces = ((single_stream(tuple(latency_s) * -(-least // len(latency_s))),) if latency_s else ()) + ((offline(batch_s),) if batch_s else ())
    ran = executed or of.precision
    performance = [score for trace in traces for score in latency.scores(trace)]
    performance.append(Score(name="artifact_size", value=float(made.size_bytes), unit="bytes", better="lower", n=1,
                             method="bytes of all files that ship to the device", reason="exact",
                             reason_code="not-estimated", kind="exact", method_id="bytes"))
    if peak_bytes:
        performance.append(Score(name="peak_host_memory", value=float(peak_bytes), unit="bytes", better="lower", n=1,
                                 method="high-water mark of resident memory", reason="one process was observed"))
    return Run(
        schema=RUN_SCHEMA, variant=variant or f"{re.sub(r'[^A-Za-z0-9_.-]+', '-', model).strip('-')}--{of.id}--{of.backend}",
        created_at="2026-03-14T10:30:00+00:00", edgebench="0.1.0", artifact=made, device=catalog.device("cpu"),
        environment=environment(), precision=ExecutedPrecision(
            requested=of.precision, executed=ran, time_share={ran: 0.94, "fp32": 0.06} if ran != "fp32" else {"fp32": 1.0},
            layers={ran: 61, "fp32": 9} if ran != "fp32" else {"fp32": 70}, evidence="per-layer profile of the runtime"),
        settings=Settings(budget="standard" if traces else "none", threads=4, batch=16, preset="native",
                          properties=tuple(e.property for e in evaluations), data=model if evaluations else None),
        golden_max_abs_difference=3.3e-6, cold_start=cold, peak_host_memory_bytes=peak_bytes, traces=traces,
        performance=tuple(performance), evaluations=evaluations, passes=tuple(dict.fromkeys(
            PassRecord(dataset=e.dataset, condition=e.condition, preset=e.preset) for e in evaluations)),
        caveats=caveats, skips=skips,
        reference=Reference(variant=reference.variant, artifact_digest=reference.artifact.digest) if reference else None)


def inspection_runs(images: int = 1000, timings: int = 3000) -> tuple[Run, ...]:
    """Return five variants of the demo as a real machine might give them, scored by the real properties (slow)."""
    generator = np.random.default_rng(7)
    targets = generator.choice(3, images, p=(0.3, 0.3, 0.4))
    clean = generator.normal(0.0, 1.35, (images, 3)).astype(np.float32)
    clean[np.arange(images), targets] += 3.4
    ids = np.array([f"test/{k:04d}.png" for k in range(images)])
    found: dict[str, Run] = {}
    chosen = (("ort-fp32", 11.2, 0.0, 13_620_000, 0.035, None), ("ort-int8", 3.3, 0.34, 3_710_000, 0.05, None),
              ("openvino-fp32", 9.4, 1e-4, 13_700_000, 0.03, None), ("openvino-bf16", 5.1, 0.05, 13_700_000, 0.04, "fp32"),
              ("openvino-int8", 2.6, 0.40, 3_820_000, 0.06, None))
    for name, median_ms, noise, size, spread, executed in chosen:
        values = median_ms * np.exp(generator.normal(0, spread, timings))
        values += (generator.random(timings) < 0.012) * generator.exponential(0.5 * median_ms, timings)
        if name == "openvino-int8":
            values[timings // 2:] *= 1.07
        if name == "ort-int8":
            values[generator.random(timings) < 0.3] *= 1.22
        logits = (clean + generator.normal(0, noise, clean.shape)).astype(np.float32)
        if "int8" in name:
            logits = np.round(logits * 8) / 8 * 1.25
        key, backend = Pass("inspection"), recipe(name).backend
        predictions = {key: Predictions(dataset=DATASET, logits=logits, targets=targets, ids=ids)}
        reference = found.get("ort-fp32" if backend == "onnxruntime" else "openvino-fp32")
        other = {key: _PREDICTIONS[reference.variant]} if reference else None
        warm = median_ms / 1e3 * np.concatenate(([6.0, 1.8, 1.3], generator.normal(1.02, 0.04, 240)))
        made = run(
            name, latency_s=(values / 1e3).tolist(), size_bytes=size, reference=reference, executed=executed,
            batch_s=(median_ms / 1e3 * 13 * np.exp(generator.normal(0, 0.02, 120))).tolist(), peak_bytes=int(150e6 + 5 * size),
            evaluations=(*accuracy.score(predictions, other), *calibration.score(predictions, other)),
            cold=ColdStart(import_s=0.21, load_s=0.4 if backend == "openvino" else 0.09, first_inference_s=6 * median_ms / 1e3))
        trace = single_stream(made.traces[0].latency_s, warm.tolist())
        _PREDICTIONS[made.variant] = predictions[key]
        doubts = latency.caveats(trace) + latency.environment_caveats(made.environment, 4)
        if executed:
            doubts += (Caveat(code="executed-precision", message="bf16 was asked for, but 97 % of the time went to fp32 layers",
                              hint="this CPU or runtime has no bf16 kernels for this model: use another recipe or device"),)
        found[name] = _replaced(made, traces=(trace, *made.traces[1:]), caveats=doubts, skips=(
            Skip(what="energy", reason="no power sensor is readable on this device"),))
    return tuple(found.values())


_PREDICTIONS: dict[str, Predictions] = {}


def _replaced(old: Run, **changes: object) -> Run:
    from dataclasses import replace

    return replace(old, **changes)  # type: ignore[arg-type]
