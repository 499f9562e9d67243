"""The value types of the project, and the run file: a published, versioned format.

All types are frozen, keyword-only and hold plain values: SI base units with the unit in the field name, fractions
instead of percent, tuples instead of lists. What is absent is ``None`` beside a reason, never zero or NaN.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import tempfile
import time
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_type_hints

import msgspec

from edgebench.checks import bounds, check, check_inner_path, check_name
from edgebench.device import Device as Device  # noqa: PLC0414  # a type of the run file, imported from here
from edgebench.errors import InvalidInput, suggest, writing
from edgebench.files import refuse_stand_in, refuse_unreadable
from edgebench.observed import Observed
from edgebench.recipe import Precision, Recipe
from edgebench.timing_types import GraphWork, LayerTime, TimingPlan

RUN_SCHEMA = "edgebench.run/1"
# History: 1 (0.1.0) first published form.
ARTIFACT_SCHEMA = "edgebench.artifact/1"
# Of a model in folder names: recipe, runtime and the suffixes of temporary files stay below 255 bytes.
_NAME_CHARS = 80

Better = Literal["lower", "higher"]
_PERCENTILE = re.compile(r"(^|_)latency_p\d+$")
ScoreKind = Literal["share", "paired-share", "resampled", "quantile", "estimate", "test", "exact", "single"]
"""How a score comes about.

``share``: `count` of `n`, each of which counts by itself; ``paired-share``: the change of a share on the same images;
``resampled``: its interval comes from a bootstrap; ``quantile``: an order statistic; ``estimate``: another estimate,
with or without an interval; ``test``: a p-value; ``exact``: counted, chosen or a maximum, so that nothing is estimated;
``single``: measured once.
"""
ReasonCode = Literal[
    "clock", "compact", "incomplete", "invalid", "measured-once", "no-data", "no-distribution", "no-features",
    "no-images", "no-logits", "no-reference", "no-spread", "not-computed", "not-estimated", "not-finite", "not-told",
    "one-sided", "other-classes", "some-resamples", "too-few", "undefined", "unmet-confidence"]
"""Why a value or an interval is absent; docs/method.md says what each means."""
SkipSubject = Literal["variant", "property", "quality", "latency", "golden", "reference", "data"]
SkipCode = Literal[
    "absent", "asked-otherwise", "early-stop", "missing-package", "no-data", "no-reference", "not-asked",
    "other-images", "unfit"]
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """Name, element type and shape of one input or output."""

    name: str
    dtype: str
    """NumPy name of the element type, such as ``float32``."""
    shape: tuple[int | str, ...]
    """Sizes; a string is the name of a dimension that may vary."""


OutputKind = Literal["logits", "log_probabilities", "probabilities", "sigmoid_scores"]
"""What a classifier's outputs are: ``probabilities`` sum to one, ``sigmoid_scores`` are one probability per class."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredOutput:
    """The output whose values are scored, and what they are; decided once, at export."""

    name: str
    kind: OutputKind
    single: bool = False
    """One value per image for two classes: the logit or the probability of the second one."""
    scale: float = 1.0
    """The value that stands for a probability of 1; 100 for percent."""
    evidence: Literal["graph", "values", "option", "assumed"]
    """What `kind` follows from: the operators, the values for the parity inputs, the user's word, or nothing."""
    reason: str
    """How the output and its kind were recognised, in words."""
    given: str = ""
    """The option that named the output; empty where none did."""

    def __post_init__(self) -> None:
        check(0 < self.scale < math.inf, "a finite scale above 0", self.scale)


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocess:
    """From an image file to the model's input, step by step, with Pillow and float32 NumPy.

    Decode, convert to RGB, cut `border_px` off each side, resize in uint8, centre-crop to `size_px`, divide by 255,
    subtract `mean`, divide by `std`, lay out as NCHW. Agrees with torchvision's Resize, CenterCrop, ToTensor and
    Normalize to the last bit.
    """

    size_px: tuple[int, int]
    """Height and width that enter the model."""
    mean: tuple[float, float, float]
    """Per RGB channel, on the scale 0 to 1."""
    std: tuple[float, float, float]
    """Per RGB channel, on the scale 0 to 1."""
    resize: Literal["shortest", "squash", "none"] = "shortest"
    """``shortest``: the shorter side becomes `resize_px`; ``squash``: both sides do, else straight to `size_px`;
    ``none``: as it is."""
    resize_px: int | None = None
    """Target of ``shortest``, and of ``squash`` where it crops afterwards."""
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bicubic"
    border_px: int = 0
    """Pixels cut off each side before anything else."""
    gray_bits: int = 16
    """Bits that 16-bit gray images use: 10, 12 or 14 of a sensor are scaled to the full range."""
    preset: str = "native"
    """``native``: what the weights were tuned for."""

    def __post_init__(self) -> None:
        check(min(self.size_px) > 0, "size_px above 0", self.size_px)
        check(all(0 < value < math.inf for value in self.std), "finite std above 0", self.std)
        check(all(map(math.isfinite, self.mean)), "finite mean", self.mean)
        check(self.resize != "shortest" or self.resize_px is not None, "resize_px for resize 'shortest'", None)
        check(self.resize != "none" or self.resize_px is None, "no resize_px for resize 'none'", self.resize_px)
        check(self.border_px >= 0, "border_px of 0 or more", self.border_px)
        check(8 <= self.gray_bits <= 16, "gray_bits from 8 to 16", self.gray_bits)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassMap:
    """What the model's outputs mean: output k is `ids[k]`."""

    ids: tuple[str, ...]
    """Stable identifiers, matched against folder names: WordNet ids for ImageNet."""
    names: tuple[str, ...]
    """For people; as many as `ids`."""

    def __post_init__(self) -> None:
        check(len(self.ids) == len(self.names) > 0, "as many names as ids, and at least one",
               (len(self.ids), len(self.names)))
        check(len(set(self.ids)) == len(self.ids), "distinct class ids", "a repeated one")


@dataclass(frozen=True, slots=True, kw_only=True)
class FileEntry:
    """One file of an artifact, by its path inside the folder."""

    path: str
    sha256: str
    size_bytes: int
    deployed: bool = True
    """Ships to the device; false for golden tensors."""

    def __post_init__(self) -> None:
        check_inner_path(self.path, "path")
        check(self.size_bytes >= 0, "size_bytes of 0 or more", self.size_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputParity:
    """One output of the artifact against the reference's."""

    name: str
    max_abs_difference: float
    mean_abs_difference: float
    cosine: float | None
    """Of all values as one vector; None where either is zero throughout."""
    sqnr_db: float | None
    """10·log10 of the reference's power over the difference's; None where they are equal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parity:
    """The artifact's outputs against the reference's on the same inputs, at export."""

    reference: str
    """What it was compared with, such as ``eager PyTorch``."""
    inputs: str
    """What was fed, such as ``16 images of DIR`` or ``seeded noise``."""
    images: int
    max_abs_difference: float
    """Largest absolute difference of any logit."""
    top1_agreement: float
    """Share of images with the same largest logit."""
    real_images: bool = False
    """Whether the inputs are images; noise otherwise."""
    runtime: str = ""
    """What ran the artifact; another runtime than its own where that does not run on the exporting machine."""
    outputs: tuple[OutputParity, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationSet:
    """Identity of the images that chose the INT8 ranges."""

    source: str
    images: int
    seed: int
    digest: str
    """SHA-256 over the sorted image hashes."""
    image_sha256: tuple[str, ...]
    """Of the files' bytes: evaluation leaves these images out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelIdentity:
    """Which trained network this is."""

    id: str
    """Its source, such as ``timm:resnet50.tv_in1k``."""
    weights: Literal["pretrained", "file", "random", "embedded"]
    """Where the weights came from; ``embedded``: they stand in the model file."""
    weights_sha256: str | None
    """Of the weights, external data included; None where they are random."""
    head_sha256: str | None = None
    """Of a zero-shot head's text embeddings; None where the model has no such head."""


EVENT_CAVEATS = frozenset({"cpu-quota", "gpu-power-cap", "over-current-instantaneous"})
"""Throttling that leaves the timings valid, and is a caveat by its own code."""
CAVEATS = EVENT_CAVEATS | {
    "assumed-classes", "batch-dependent", "bimodal", "builds-differ", "calibration-images-left-out", "coarse-clock",
    "copy-bound", "device-unstable", "drift", "ece-is-noise", "enqueue-bound", "exif-orientation",
    "few-calibration-images", "few-timings", "fixed-batch", "folders-in-classes", "given-precision", "governor",
    "gpu-governor", "gpu-unknown", "half-weights", "images-passed-over", "inferred-outputs", "jetpack-unexpected",
    "late-issue", "loadgen-disagrees", "low-agreement", "max-duration", "memory-differs", "module-contradiction",
    "module-unknown", "near-chance", "no-int8-instructions", "noisy", "one-output", "other-load",
    "outputs-between-0-and-1", "outputs-look-like-probabilities", "oversubscribed", "parity-unchecked",
    "power-mode-unknown", "precision-not-achieved", "precision-unproven", "sigmoid-scores", "sixteen-bit-range",
    "slow-start", "stopped-early", "throttled", "unnamed-classes", "unreadable-images", "unstable", "warm-up",
    "weights-by-position", "weights-choice", "weights-left-out"}
"""Codes of all caveats; the README says what each means."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Caveat:
    """The instrument's doubt about its own result."""

    code: str
    message: str
    hint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolutionEntry:
    """The model at another input size, built by the same recipe."""

    size_px: int
    """Height and width of its input."""
    entry: str
    """The file that the runtime opens."""

    def __post_init__(self) -> None:
        check(self.size_px > 0, "size_px above 0", self.size_px)
        check_inner_path(self.entry, "entry")


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutedPrecision:
    """What the runtime says it executed (or the file, what is to be), against what the recipe asked for."""

    requested: Precision
    executed: Precision
    """Precision with the largest share of the time of convolutions and matrix products; of their number where the
    runtime tells no times."""
    time_share: dict[str, float]
    """Share of all layers' time by precision; sums to 1, empty where no times are told."""
    layers: dict[str, int]
    """Layers by precision."""
    evidence: str
    """How it was read, in words."""
    compute_layers: dict[str, int] = field(default_factory=dict)
    """Convolutions and matrix products by precision."""
    placement: dict[str, int] = field(default_factory=dict)
    """Layers by execution provider or device, such as ``GPU`` and ``DLA``."""
    profile: tuple[LayerTime, ...] = ()
    """Every executed layer with its time, in the runtime's order; empty where no times are told, and in artifacts."""

    def __post_init__(self) -> None:
        shares = [share for share in self.time_share.values() if not 0 <= share <= 1 + 1e-6]
        check(not shares and sum(self.time_share.values()) <= 1 + 1e-3, "shares of time between 0 and 1 that sum to 1",
              self.time_share)
        counts = [*self.layers.values(), *self.compute_layers.values(), *self.placement.values()]
        check(min(counts, default=0) >= 0, "counts of layers of 0 or more", counts)

    @property
    def achieved(self) -> bool:
        """Whether the precision asked for was executed."""
        return self.executed == self.requested


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """The manifest of a deployable folder: what it holds, how it was made, how to feed and read it."""

    schema: str
    model: ModelIdentity
    recipe: Recipe
    entry: str
    """The file that the runtime opens; it may pull in others of `files`."""
    files: tuple[FileEntry, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    preprocess: Preprocess | None
    """None where the source did not say: such an artifact is timed but not evaluated."""
    classes: ClassMap | None
    calibration: CalibrationSet | None
    parity: Parity | None
    golden: str | None
    """npz with ``inputs``, ``outputs`` (this artifact at export) and ``reference`` (the model it came from)."""
    tools: dict[str, str]
    """Versions of what built it."""
    created_at: str
    """UTC, ISO 8601."""
    resolutions: tuple[ResolutionEntry, ...] = ()
    """The same model for inputs of other sizes, for the resolution sweep alone; they do not ship."""
    caveats: tuple[Caveat, ...] = ()
    """Doubts that export had."""
    precision: ExecutedPrecision | None = None
    """What was built: asked of the runtime where it runs on the exporting machine, else read from the file."""
    work: GraphWork | None = None
    """Operations and bytes of one inference, from the FP32 graph's shapes; None where they could not be counted."""
    family: str | None = None
    """Kind of network, whose quantization rules were followed; None for artifacts without any."""
    scored: ScoredOutput | None = None
    """Which output is scored and what its values are; None in artifacts of versions that did not look."""
    sealed: str = ""
    """`seal_of` the manifest as it was at export, so that a later edit shows; in earlier versions, `digest`."""

    def __post_init__(self) -> None:
        check_inner_path(self.entry, "entry")
        if self.golden is not None:
            check_inner_path(self.golden, "golden")
        paths = [entry.path for entry in self.files]
        check(len(set(paths)) == len(paths), "distinct paths in files", "a repeated one")

    @property
    def digest(self) -> str:
        """SHA-256 over everything that decides the outputs: file hashes, recipe, preprocessing, classes, model."""
        files = sorted((entry.path, entry.sha256) for entry in self.files)
        parts = [files, *(_stated(part) for part in (
            self.model, self.recipe, self.entry, self.inputs, self.outputs, self.preprocess, self.classes,
            self.calibration, self.resolutions, *([self.scored] if self.scored is not None else [])))]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    @property
    def size_bytes(self) -> int:
        """Bytes that ship to the device."""
        return sum(entry.size_bytes for entry in self.files if entry.deployed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """What was observed where the run took place."""

    hostname: str
    os: str
    python: str
    machine: str
    """Instruction set, such as ``x86_64``."""
    cpu: str
    cpu_features: tuple[str, ...]
    """Those that decide which kernels run, such as ``avx512_vnni``."""
    cpus_online: int
    cpus_usable: int
    """After affinity and container limits."""
    memory_bytes: int | None
    governor: str | None
    """CPU frequency governor, or those of all clusters; None where the kernel shows none."""
    load_before: float | None
    """CPUs kept busy by others during half a second before timing."""
    load_after: float | None
    """CPUs kept busy by others during half a second after timing."""
    packages: dict[str, str]
    """Versions of the runtime and of what decodes images."""
    power_mode: str | None = None
    """Name of nvpmodel's mode on a Jetson; None elsewhere."""
    gpu_governor: str | None = None
    """Of the GPU's clock; None where the kernel shows none."""
    clocks_pinned: dict[str, bool] = field(default_factory=dict)
    """For ``cpu`` and ``gpu``, whether their clocks had one single frequency to choose; without what the kernel does
    not show."""
    cpu_limit: float | None = None
    """CPUs' time that the container's quota gives; None where it has none."""
    memory_limit_bytes: int | None = None
    """Of the container; None where it has none."""

    @property
    def clocks(self) -> str | None:
        """What `clocks_pinned` says, in words; None where it says nothing."""
        return ", ".join(f"{kind.upper()} {'pinned' if pinned else 'not pinned'}"
                         for kind, pinned in sorted(self.clocks_pinned.items())) or None


@dataclass(frozen=True, slots=True, kw_only=True)
class ColdStart:
    """From nothing to the first answer, in a fresh process; the file cache of the system may be warm."""

    import_s: float
    """Importing the runtime."""
    load_s: float
    """Opening the artifact until it is ready to infer."""
    first_inference_s: float

    def __post_init__(self) -> None:
        times = (self.import_s, self.load_s, self.first_inference_s)
        check(all(0 <= one < math.inf for one in times), "finite times of 0 or more", times)

    @property
    def total_s(self) -> float:
        """From nothing to the first answer."""
        return self.import_s + self.load_s + self.first_inference_s


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyTrace:
    """One scenario's raw timings, in order; everything else about speed is derived from them."""

    scenario: Literal["single-stream", "offline"]
    boundary: Literal["host_to_host", "compute"] = "host_to_host"
    """What the clock covers: from inputs in host memory to outputs in host memory, or device work alone."""
    batch: int
    """Images per inference."""
    threads: int
    clock: str
    clock_resolution_s: float
    """Smallest step seen; 0 where it is not known."""
    warmup_s: tuple[float, ...]
    """Untimed-for-results inferences before."""
    latency_s: tuple[float, ...]
    """Seconds per inference."""
    stopped: Literal["count-and-duration", "max-duration", "decided"]
    """``decided``: what a policy demands of these timings was decided by them."""
    begin_ns: int | None = None
    """When the first timing began, on the clock of telemetry; None in runs of versions that kept none."""
    preprocessing: Literal["excluded", "included"] = "excluded"
    """Whether decoding, resizing and normalizing happened inside the clock."""

    def __post_init__(self) -> None:
        check(len(self.latency_s) > 0, "at least one timing", 0)
        check(self.batch >= 1 and self.threads >= 1, "batch and threads of 1 or more", (self.batch, self.threads))
        wrong = [value for value in (*self.latency_s, *self.warmup_s) if not 0 <= value < math.inf]
        check(not wrong, "finite latencies of 0 or more", wrong[:1])


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildSpread:
    """What several builds of one artifact differ by."""

    builds: int
    images: int
    """Images whose answers were compared."""
    timings_per_build: int
    p50_s: tuple[float, ...]
    """Median latency of each build, seconds; the builds took turns."""
    disagreement: tuple[float, ...]
    """Share of images with another top class than the first build's, for each further build."""
    max_abs_difference: tuple[float, ...]
    """Largest difference of a logit from the first build's, for each further build."""

    def __post_init__(self) -> None:
        check(self.builds >= 2, "two builds or more", self.builds)
        check(len(self.p50_s) == self.builds == len(self.disagreement) + 1 == len(self.max_abs_difference) + 1,
              "a median per build and a comparison per further build", (self.p50_s, self.disagreement))


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """A number with its doubt."""

    name: str
    value: float | None
    low: float | None = None
    """Lower end of the interval at `confidence`."""
    high: float | None = None
    confidence: float = 0.95
    unit: str
    """``s``, ``bytes``, ``images/s``, ``fraction``, ``nat`` or ``1`` (a plain number)."""
    better: Better | None
    n: int
    """Images or timings behind it."""
    method: str
    """How it was computed, in words that hold no result: the same for all runs of one settings hash."""
    reason: str | None = None
    """Why `value`, or an end of its interval, is absent."""
    count: int | None = None
    """How many of the `n` images or frames it is the share of, where each counts by itself: it is then tested exactly.
    None: it is no share, or images hang together."""
    kind: ScoreKind | None = None
    """None in files of versions that did not keep it."""
    method_id: str | None = None
    """Identifier of the method, the same for all runs of one settings hash. It changes where the same predictions or
    timings would give another number. None in files of versions that did not keep it."""
    reason_code: ReasonCode | None = None
    """`reason` as a code; None without a reason, and in files of versions that did not keep it."""
    n_effective: int | None = None
    """How many independent images, clusters or timings the `n` are worth; None: they are independent."""
    confidence_reached: float | None = None
    """Of the stored interval, where only some levels can be had; None: `confidence`."""
    level: str | None = None
    """Which level the data chose, such as the one where consistency is lowest."""
    facts: dict[str, str | int | float] = field(default_factory=dict)
    """What else the data decided, by name, such as how many tests a p-value is adjusted for."""

    @property
    def unbounded(self) -> bool:
        """Whether it is a latency percentile without an upper bound: too few timings for a number that people read."""
        return self.value is not None and self.high is None and _PERCENTILE.search(self.name) is not None

    def __post_init__(self) -> None:
        check(self.count is None or 0 <= self.count <= self.n, f"a count of {self.name} between 0 and n", self.count)
        for number in (self.value, self.low, self.high):
            check(number is None or math.isfinite(number), f"a finite number for {self.name}", number)
        check(self.value is not None or self.reason is not None, f"a reason for the absent {self.name}", self.reason)
        check(self.n >= 0, f"an n of {self.name} of 0 or more", self.n)
        check(0 < self.confidence < 1, f"a confidence of {self.name} between 0 and 1", self.confidence)
        self._check_range()

    def _check_range(self) -> None:
        value, low, high = self.value, self.low, self.high
        if value is None:
            return
        least, most = bounds(self.name, self.unit)
        slack = 1e-9 * max(1.0, abs(value)) if self.unit != "s" else 1e-9 * abs(value)
        check(least - slack <= value <= most + slack, f"{self.name} between {least:g} and {most:g}", value)
        if self.count is not None and self.n:
            check(abs(value - self.count / self.n) <= 1e-6, f"{self.name} of {self.count / self.n:g}, which its count "
                  f"of {self.count} in {self.n} is", value)
        if low is not None and high is not None:
            check(low <= high, f"low of {self.name} at most its high", (low, high))
            if self.kind in (None, "resampled"):
                # Resampling is biased where a statistic is not linear: the estimate may lie beside its interval.
                slack += high - low
        elif self.kind != "quantile":
            # An end alone may be that of what chance gives, beside the value.
            return
        check((low is None or low - slack <= value) and (high is None or value <= high + slack),
              f"{self.name} within its interval", (low, value, high))


@dataclass(frozen=True, slots=True, kw_only=True)
class ReliabilityBin:
    """One of the equal-width confidence bins (low, high]."""

    low: float
    high: float
    n: int
    confidence: float | None
    """Mean top-label confidence in the bin; None where it is empty."""
    accuracy: float | None

    def __post_init__(self) -> None:
        check(self.n >= 0, "n of 0 or more", self.n)
        shares = [share for share in (self.low, self.high, self.confidence, self.accuracy)
                  if share is not None and not -1e-6 <= share <= 1 + 1e-6]
        check(not shares, "shares between 0 and 1", shares)


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetIdentity:
    """Which images were used."""

    name: str
    source: str
    images: int
    classes: int
    digest: str
    """SHA-256 over image names, hashes and targets, in order."""

    def __post_init__(self) -> None:
        check(self.images >= 0 and self.classes >= 0, "images and classes of 0 or more", (self.images, self.classes))


@dataclass(frozen=True, slots=True, kw_only=True)
class PassRecord:
    """One sweep over a data set whose predictions are stored beside the run file."""

    dataset: DatasetIdentity
    condition: str
    """``clean``, or how the images were changed, such as ``gaussian_noise:3`` or ``scale:0.7``."""
    preset: str
    part_of: DatasetIdentity | None = None
    """Where evaluation stopped early: the data set of which `dataset` is the first images in a seeded random order."""
    sha256: str | None = field(default=None, compare=False)
    """Of the predictions file; None in files of versions that did not keep it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """One property on one data set, under one condition or a family of them."""

    property: str
    dataset: DatasetIdentity
    condition: str
    preset: str
    predictions: tuple[str, ...]
    """npz files behind it, from the folder of the run file, each with ``logits``, ``targets`` and ``ids``."""
    scores: tuple[Score, ...]
    reliability: tuple[ReliabilityBin, ...] = ()
    reference_scores: tuple[Score, ...] = ()
    """Against the reference on the same images."""

    def __post_init__(self) -> None:
        for file in self.predictions:
            check_inner_path(file, "predictions")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """The FP32 sibling that paired scores are against."""

    variant: str
    artifact_digest: str

    def __post_init__(self) -> None:
        check_name(self.variant, "variant")


@dataclass(frozen=True, slots=True, kw_only=True)
class Skip:
    """What was not measured, and why."""

    what: str
    reason: str
    subject: SkipSubject | None = None
    """What kind of thing `what` names; None in files of versions that did not keep it."""
    code: SkipCode | None = None
    """`reason` as a code; None in files of versions that did not keep it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What was asked for."""

    budget: str
    threads: int
    batch: int
    """Images per inference in the offline scenario and in evaluation."""
    preset: str
    properties: tuple[str, ...]
    data: str | None
    sweep_images: int | None = None
    """Images per generated corruption and level of invariance; None: 5 of each class and at least 200; 0: all."""
    store: Literal["logits", "compact"] = "logits"
    """Whether whole logits were stored, or a few numbers per image."""
    builds: int = 1
    """Builds of each artifact that were compared."""
    until: str | None = None
    """Policy, with a digest of its rules, whose decisions ended the evaluation; None: all images were evaluated."""
    timing: TimingPlan | None = None
    """None: nothing was timed, or by a version that did not keep it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Everything known about one variant on one device, immutable once written."""

    schema: str
    variant: str
    """``<model>--<recipe>--<backend>``."""
    created_at: str
    edgebench: str
    """Version that wrote it."""
    artifact: Artifact
    device: Device
    environment: Environment
    settings: Settings
    precision: ExecutedPrecision
    golden_max_abs_difference: float | None
    """Outputs here against outputs at export on the golden inputs; None without golden tensors."""
    cold_start: ColdStart | None
    peak_host_memory_bytes: int | None
    """High-water mark of the process's resident memory after timing, runtime and interpreter included."""
    traces: tuple[LatencyTrace, ...]
    performance: tuple[Score, ...]
    """Derived from `traces`, `cold_start`, memory and artifact size."""
    evaluations: tuple[Evaluation, ...]
    passes: tuple[PassRecord, ...]
    """What was run and stored; every evaluation can be computed afresh from it."""
    reference: Reference | None
    caveats: tuple[Caveat, ...]
    skips: tuple[Skip, ...]
    observed: Observed | None = None
    """Steadiness, other scenarios, heat, clocks, power and throttling; None where nothing was timed."""
    build_spread: BuildSpread | None = None
    """Several builds of the artifact against each other; None where one was measured."""
    labels: dict[str, str] = field(default_factory=dict)
    """What the surroundings say about it, such as ``commit`` and ``branch``; nothing is computed from them."""
    sealed: str = field(default="", compare=False)
    """`seal_of` the file as it was written, so that a later edit shows; empty in files of earlier versions."""

    def __post_init__(self) -> None:
        # Folders are named after it.
        check_name(self.variant, "variant")
        for number, what in ((self.golden_max_abs_difference, "golden_max_abs_difference"),
                             (self.peak_host_memory_bytes, "peak_host_memory_bytes")):
            check(number is None or 0 <= number < math.inf, f"{what} of 0 or more", number)

    def score(self, name: str) -> Score | None:
        """Return the score called `name` from performance or any evaluation; None where there is none."""
        pools = [self.performance, *((*e.scores, *e.reference_scores) for e in self.evaluations)]
        return next((score for pool in pools for score in pool if score.name == name), None)


def _stated(value: object) -> Any:
    """Return `value` as plain data without what is at its default: a field that comes later changes no digest."""
    if is_dataclass(value) and not isinstance(value, type):
        found = {}
        for one in fields(value):
            inner = getattr(value, one.name)
            default = one.default if one.default_factory is MISSING else one.default_factory()
            if inner != default:
                found[one.name] = _stated(inner)
        return found
    if isinstance(value, tuple):
        return [_stated(one) for one in value]
    return to_builtins(value)


def to_builtins(value: object) -> Any:
    """Return `value` as JSON-ready dicts, lists and scalars."""
    return msgspec.to_builtins(value)


def decode(kind: type[T], data: object, where: str) -> T:
    """Build a `kind` from plain dicts and lists (parsed JSON or TOML), strictly.

    Args:
        kind: One of this module's dataclasses.
        data: What a parser returned.
        where: File name, for errors.

    Raises:
        InvalidInput: An unknown key (with a suggestion), a missing key, a wrong type or a value out of range.
    """
    _refuse_unknown_keys(kind, data, where)
    try:
        return msgspec.convert(data, type=kind)
    except msgspec.ValidationError as error:
        message, _, place = str(error).partition(" - at `$")
        key = place.rstrip("`")
        raise InvalidInput(f"{where}{key}: {message[:1].lower()}{message[1:]}") from error


def _refuse_unknown_keys(kind: object, data: object, where: str) -> None:
    if is_dataclass(kind) and isinstance(kind, type) and isinstance(data, Mapping):
        hints = get_type_hints(kind)
        known = [field.name for field in fields(kind)]
        for key, value in data.items():
            if key not in hints:
                raise InvalidInput(f"{where}: unknown key {key!r}{suggest(str(key), known)}",
                                   f"known keys: {', '.join(known)}")
            _refuse_unknown_keys(hints[key], value, f"{where}.{key}")
        return
    arguments = get_args(kind)
    if isinstance(data, Mapping):
        for argument in arguments:
            if is_dataclass(argument):
                _refuse_unknown_keys(argument, data, where)
    elif isinstance(data, list | tuple) and arguments and is_dataclass(arguments[0]):
        for index, item in enumerate(data):
            _refuse_unknown_keys(arguments[0], item, f"{where}[{index}]")


def write_bytes(path: Path, content: bytes, hint: str = "") -> None:
    """Write a file whole or not at all: temporary file beside it, fsync, rename; through a link to its target.

    Args:
        path: The file; its folder is made.
        content: What it will hold.
        hint: For the error where writing fails, instead of the one for output folders.
    """
    with writing(path, hint):
        if path.exists() and not path.is_file() and not path.is_dir():
            # A device or a pipe, such as /dev/stdout, is written to, not replaced.
            path.write_bytes(content)
            return
        if path.is_symlink():
            path = path.resolve()
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).chmod(0o644)
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise


def write_json(path: Path, value: object, hint: str = "") -> None:
    """Write `value` (a record or plain data) as indented JSON, atomically; NaN and infinity are refused.

    File names that are not UTF-8 hold lone surrogates; they are written as JSON escapes and read back the same.
    """
    text = json.dumps(to_builtins(value), indent=1, allow_nan=False, ensure_ascii=False)
    write_bytes(path, text.encode(errors="backslashreplace") + b"\n", hint)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"it holds {name}")


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"it holds {text[:20]}, which is beyond every finite number")
    return number


def read_json(path: Path) -> Any:
    """Parse a JSON file.

    Raises:
        InvalidInput: It is missing, unreadable or not JSON.
    """
    refuse_unreadable(path, "a JSON file")
    refuse_stand_in(path, "a JSON file", binary=False)
    try:
        return json.loads(path.read_bytes(), parse_constant=_refuse_constant, parse_float=_finite)
    except OSError as error:
        raise InvalidInput(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"{path} is not valid JSON: {error}",
                           "it was cut short or edited: restore it, or measure again") from error


def _refuse_other_schema(data: object, expected: str, path: Path) -> None:
    found = data.get("schema") if isinstance(data, Mapping) else None
    family, _, version = expected.partition("/")
    if found == expected:
        return
    if isinstance(found, str) and found.startswith(f"{family}/") and found.partition("/")[2].isdigit():
        raise InvalidInput(
            f"{path}: schema {found!r} was written by another version of edgebench; this one reads {expected!r}",
            "install the latest release: pip install --upgrade edgebench"
            if int(found.partition("/")[2]) > int(version) else "measure again with this version")
    raise InvalidInput(f"{path}: expected schema {expected!r}, got {found!r}",
                       "this is not a file that edgebench wrote")


_KEPT_RUNS = 64
_RUNS: dict[tuple[str, str], Run] = {}
"""Runs that this process has parsed, by file and digest of its content; the last ones asked for."""


def schema_of(path: Path) -> str | None:
    """Return the schema that a JSON file of ours begins with; None where it begins with something else."""
    try:
        with path.open("rb") as file:
            found = re.match(rb'\s*\{\s*"schema"\s*:\s*"([^"\\]{1,100})"', file.read(400))
    except OSError as error:
        raise InvalidInput(f"cannot read {path}: {error.strerror}") from error
    return found[1].decode(errors="replace") if found else None


def load(path: Path) -> Run:
    """Read a run from its ``run.json``, or from the folder that holds it; the same content is parsed once per process.

    Raises:
        InvalidInput: Not a run file, written by a newer version, or damaged.
    """
    file = path / "run.json" if path.is_dir() else path
    key = (str(file), sha256_file(file)) if file.is_file() else None
    run = _RUNS.pop(key, None) if key is not None else None
    if run is None:
        data = read_json(file)
        _refuse_other_schema(data, RUN_SCHEMA, file)
        run = decode(Run, data, str(file))
        if run.sealed:
            refuse_edited(data, file)
    if key is not None:
        _RUNS[key] = run
        while len(_RUNS) > _KEPT_RUNS:
            del _RUNS[next(iter(_RUNS))]
    return run


def load_artifact(path: Path) -> Artifact:
    """Read the manifest of an artifact folder without looking at the other files.

    Raises:
        InvalidInput: No manifest there, written by a newer version, or damaged.
    """
    file = path / "manifest.json"
    data = read_json(file)
    _refuse_other_schema(data, ARTIFACT_SCHEMA, file)
    return decode(Artifact, data, str(file))


def seal_of(data: Mapping[str, Any]) -> str:
    """Return the SHA-256 over every field of a parsed JSON object but ``sealed``, after ``all:``.

    It shows an edit or damage. It is no signature: whoever edits the file can compute it again.
    """
    rest = {key: value for key, value in data.items() if key != "sealed"}
    return "all:" + hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def write_sealed(path: Path, value: object, hint: str = "") -> None:
    """Write a record as `write_json` does, with `seal_of` its fields as the last one."""
    data = to_builtins(value)
    write_json(path, {**data, "sealed": seal_of(data)}, hint)


def read_sealed(path: Path) -> Any:
    """Parse a JSON file and return it without its seal; files of earlier versions have none.

    Raises:
        InvalidInput: It is missing, unreadable, not JSON, or was changed after it was sealed.
    """
    data = read_json(path)
    if isinstance(data, dict) and "sealed" in data:
        refuse_edited(data, path)
        del data["sealed"]
    return data


def refuse_edited(data: Mapping[str, Any], path: Path) -> None:
    """Raise InvalidInput unless the seal in a parsed file is that of its fields."""
    if data["sealed"] != seal_of(data):
        raise InvalidInput(f"{path} was changed after it was written: its seal does not match",
                           "restore it, or measure again")


def dump(run: Run, path: Path) -> None:
    """Write `run` to `path` atomically, sealed."""
    write_sealed(path, run)


def run_schema() -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of the run file."""
    schema = msgspec.json.schema(Run)
    schema["$defs"]["Run"]["properties"]["schema"] = {"const": RUN_SCHEMA}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": f"edgebench run file, {RUN_SCHEMA}",
            **schema}


HASH_BLOCK_BYTES = 1 << 20


def plain_name(name: str) -> str:
    """Return a model's name as a part of folder names: at most 80 of A-Z, a-z, 0-9, ``.``, ``_`` and ``-``.

    A longer name is cut, and a digest of the whole name tells it from others with the same beginning. Folders do not
    begin with a dot, which hides them, nor with a dash, which commands take for an option.
    """
    plain = re.sub("[^A-Za-z0-9._-]", "-", name).lstrip(".-") or "model"
    if len(plain) > _NAME_CHARS:
        plain = f"{plain[:_NAME_CHARS - 9]}-{hashlib.sha256(os.fsencode(name)).hexdigest()[:8]}"
    return plain


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hex.

    Raises:
        InvalidInput: The file cannot be read.
    """
    try:
        with path.open("rb", buffering=0) as file:
            state, block = hashlib.sha256(), memoryview(bytearray(HASH_BLOCK_BYTES))
            while size := file.readinto(block):
                state.update(block[:size])
            return state.hexdigest()
    except OSError as error:
        raise InvalidInput(f"cannot read {path}: {error.strerror}") from error


_HASHED: dict[tuple[str, int, int, int, int], str] = {}
_SETTLED_NS = 2_000_000_000
"""Age from which a file's time of modification tells it from a later version: clocks of file systems are coarse."""


def sha256_once(path: Path) -> str:
    """Return what `sha256_file` does; a file that did not change is read once per process.

    Raises:
        InvalidInput: The file cannot be read.
    """
    try:
        stat = path.stat()
    except OSError as error:
        raise InvalidInput(f"cannot read {path}: {error.strerror}") from error
    key = str(path.resolve()), stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns
    if key in _HASHED:
        return _HASHED[key]
    digest = sha256_file(path)
    if time.time_ns() - max(stat.st_mtime_ns, stat.st_ctime_ns) > _SETTLED_NS:
        _HASHED[key] = digest
    return digest
