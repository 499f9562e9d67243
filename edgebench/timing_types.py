"""Value types of timing beyond one loop: queries, verdicts, pairs, ceilings, minutes; ready for a run file.

Seconds, hertz and fractions; times within a trace count from its `begin_ns`, which is on the clock of telemetry.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from edgebench.checks import check, check_name
from edgebench.telemetry.types import ThrottleEvent

Scenario = Literal["single-stream", "multi-stream", "offline", "server", "camera"]
PLAIN: tuple[Scenario, ...] = ("single-stream", "offline")
"""Scenarios that are timed where nothing else is asked for."""
Preprocessing = Literal["excluded", "included"]
"""Whether decoding, resizing and normalizing happened inside the clock."""
DropPolicy = Literal["queue", "newest"]
"""``queue``: every frame waits its turn; ``newest``: a free session takes the newest frame, older ones are dropped."""
Stopped = Literal["count-and-duration", "max-duration", "given-up", "decided"]
"""``given-up``: the remaining queries could not change the answer any more; ``decided``: a policy needs no more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """What to set for the measurement; None and False leave things as they are."""

    power_mode: str | None = None
    """Name of one of nvpmodel's modes."""
    jetson_clocks: bool = False
    """Pin all clocks to the ceiling of the power mode."""
    governor: str | None = None
    """CPU frequency governor, such as ``performance``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TimingPlan:
    """What is timed, what is watched meanwhile, and what the device is set to."""

    scenarios: tuple[Scenario, ...] = PLAIN
    fps: float = 30.0
    """Frames per second of the camera scenario."""
    deadline_s: float | None = None
    """Of the camera scenario; None: one frame period."""
    drop: DropPolicy = "newest"
    latency_bound_s: float | None = None
    """Of the server scenario; None: ten times the median latency."""
    sustained_s: float | None = None
    """Duration of a sustained run after the scenarios; None: none."""
    preprocessing: bool = False
    """Whether decoding, resizing and normalizing happen inside the clock."""
    loadgen: bool = False
    """Whether MLPerf's LoadGen times single-stream too, for comparison."""
    telemetry: bool = True
    meter: str | None = None
    """File or FIFO of an external power meter."""
    ambient_c: float | None = None
    """Temperature of the room."""
    control: Control = field(default_factory=Control)
    """What the device is set to meanwhile."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PercentileBound:
    """One percentile, the interval behind it, and how sure that interval is."""

    q: float
    """Which quantile, 0 to 1."""
    value_s: float
    """Order statistic x(ceil(nq))."""
    low_s: float | None
    """None: no timing can promise this end."""
    high_s: float | None
    """None: no timing can promise this end."""
    asked: float
    """Two-sided confidence that was asked for."""
    achieved: float
    """Exact binomial coverage of the interval; where an end is missing, with the extreme timing in its place."""
    n: int
    effective_n: int
    """Independent timings that `n` autocorrelated ones are worth at this quantile."""
    early_stopping_s: float | None
    """MLPerf's early-stopping estimate: an upper bound at 99 % one-sided confidence; None with too few timings."""

    @property
    def met(self) -> bool:
        """Whether both ends hold the confidence asked for."""
        return self.low_s is not None and self.high_s is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceTrace:
    """Each inference by the device's own clock, beside the host's wall time of the same inferences."""

    h2d_s: tuple[float, ...]
    compute_s: tuple[float, ...]
    d2h_s: tuple[float, ...]
    enqueue_s: tuple[float, ...]
    """Host time of the call that starts the computation."""
    wall_s: tuple[float, ...]
    """Host to host, the reading of the device's events included."""

    def __post_init__(self) -> None:
        counts = {len(self.h2d_s), len(self.compute_s), len(self.d2h_s), len(self.enqueue_s), len(self.wall_s)}
        check(len(counts) == 1 and counts != {0}, "as many of each part, at least one", sorted(counts))


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryTrace:
    """One scenario's queries in the order of issue; latency is scheduled issue to completion, so queueing counts."""

    scenario: Scenario
    images_per_query: int
    threads: int
    boundary: Literal["host_to_host", "compute"] = "host_to_host"
    preprocessing: Preprocessing = "excluded"
    budget: str
    """Name of the budget, with what was altered in it."""
    clock: str
    clock_resolution_s: float
    """Smallest step seen; 0 where it is not known."""
    begin_ns: int
    """The clock's reading that all times count from."""
    warmup_s: tuple[float, ...]
    """Durations of the untimed inferences before."""
    warmup_settled: bool | None
    """Whether the last windows of the warm-up agreed; None where its count alone decided."""
    issue_s: tuple[float, ...]
    """When each served query was due; in closed loops, when it began."""
    start_s: tuple[float, ...]
    end_s: tuple[float, ...]
    dropped_s: tuple[float, ...] = ()
    """When frames were due that nobody looked at."""
    stopped: Stopped
    rate_hz: float | None = None
    """Mean arrival rate or frame rate; None in closed loops."""
    limit_s: float | None = None
    """Latency bound of the server scenario, deadline of the camera scenario."""
    policy: DropPolicy | None = None
    seed: int | None = None
    """Of the arrivals."""
    device: DeviceTrace | None = None

    def __post_init__(self) -> None:
        check(len(self.issue_s) == len(self.start_s) == len(self.end_s) > 0, "as many issues, starts and ends, above 0",
              (len(self.issue_s), len(self.start_s), len(self.end_s)))
        wrong = [value for value in (*self.issue_s, *self.start_s, *self.end_s, *self.warmup_s)
                 if not 0 <= value < math.inf]
        check(not wrong, "finite times of 0 or more", wrong[:1])

    @property
    def latency_s(self) -> tuple[float, ...]:
        """Completion less scheduled issue, per query."""
        return tuple(end - issue for issue, end in zip(self.issue_s, self.end_s, strict=True))

    @property
    def service_s(self) -> tuple[float, ...]:
        """Completion less start, per query: without waiting."""
        return tuple(end - start for start, end in zip(self.start_s, self.end_s, strict=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class CameraSummary:
    """What a consumer of camera results sees."""

    frames: int
    dropped: int
    miss_rate: float
    """Share of all frames without a result before the deadline, dropped ones included."""
    jitter_s: float | None
    """Mean absolute difference of the latencies of successive results (RFC 3550); None with one result."""
    age_mean_s: float | None
    """Time average of the age of information: how old the newest result's frame is. None with one result."""
    age_peak_mean_s: float | None
    """Mean of the ages just before each newer result."""
    age_peak_max_s: float | None
    queue_mean: float
    """Frames waiting when a frame arrives, itself not counted, on average."""
    queue_max: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerTrial:
    """One arrival rate that was tried."""

    rate_hz: float
    queries: int
    late: int
    """Queries above the latency bound."""
    holds: bool
    """Whether the bound is shown to hold at the percentile, at the confidence asked for."""
    stopped: Stopped

    @property
    def said(self) -> str:
        """What the trial says about its rate, in a word or two; one that was cut short cannot show that it fails."""
        return "holds" if self.holds else "cannot tell" if self.stopped == "max-duration" else "fails"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSearch:
    """The highest arrival rate that was shown to hold the latency bound."""

    rate_hz: float | None
    """None: none did."""
    reason: str
    """Why there is none, or why the search ended where it did."""
    bound_s: float
    q: float
    confidence: float
    """One-sided, of each trial."""
    lowest_failing_hz: float | None
    trials: tuple[ServerTrial, ...]
    cut: bool = False
    """Whether the time that the budget gives to the search ran out; the last trial may then be unfinished."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that the steady-state analysis saw."""

    code: str
    message: str
    hint: str
    unstable: bool
    """Whether it alone makes the trace unstable."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SteadyVerdict:
    """Whether one number may stand for a trace, and if not, why."""

    verdict: Literal["steady", "unstable", "undecided"]
    """``undecided``: too few timings to tell."""
    diagnosis: str
    """In words."""
    hint: str
    findings: tuple[Finding, ...]
    n: int
    window_ratio: float
    """Largest over smallest median of the last windows."""
    trend_change: float | None
    """Theil-Sen change over the whole trace relative to its median; None for short traces."""
    trend_p: float | None
    """Mann-Kendall, corrected for autocorrelation."""
    change_points: tuple[int, ...]
    """Index of the first timing of each new level."""
    outlier_share: float
    settled_from: int
    """Index from which on nothing speaks against a steady state; `n` where there is no such point."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempts:
    """All tries at a steady trace, in order; the last one counts."""

    traces: tuple[QueryTrace, ...]
    verdicts: tuple[SteadyVerdict, ...]

    @property
    def steady(self) -> bool:
        """Whether the last try was steady."""
        return self.verdicts[-1].verdict == "steady"

    @property
    def trace(self) -> QueryTrace:
        """The last try's trace, which the results come from."""
        return self.traces[-1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Inferences that one session ran in its turn."""

    session: int
    begin_ns: int
    latency_s: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedTrace:
    """Interleaved blocks of several sessions: rounds of a random order followed by its mirror image."""

    names: tuple[str, ...]
    seed: int
    rounds: tuple[tuple[Block, ...], ...]
    """Each holds two blocks per session: order, then reversed order."""
    rounds_per_launch: int = 1
    """Rounds after which all sessions were opened anew, in processes of their own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Latency of `candidate` over that of `baseline`, from pairs."""

    baseline: str
    candidate: str
    ratio: float
    """Below 1: the candidate is faster."""
    low: float | None
    """None: too few launches for this confidence."""
    high: float | None
    p_value: float
    """Of equal latency, exact."""
    confidence: float
    rounds: int
    method: str
    launches: int | None = None
    """How often both were opened anew: what the interval rests on; None in runs of before it was told."""

    @property
    def different(self) -> bool:
        """Whether the interval leaves 1 out."""
        return self.low is not None and self.high is not None and not self.low <= 1.0 <= self.high


@dataclass(frozen=True, slots=True, kw_only=True)
class NoiseFloor:
    """By how much two runs of the same artifact differ in one metric on one device."""

    device: str
    metric: str
    floor: float | None
    """Ratios up to 1 + floor, and down to 1/(1 + floor), are noise; None where a value was not above 0."""
    confidence: float
    """That the floor covers `content` of all such differences."""
    content: float
    n: int
    """Runs of the same artifact; in files of version 0.2, pairs of sessions that were timed in turns."""
    conditions: dict[str, str]
    """What a gate must find again to use this floor: power mode, threads, budget, runtime version …."""
    measured_at: str
    """UTC, ISO 8601."""
    absolute: float | None = None
    """Differences up to this are noise, in `unit`; None in files of version 0.2."""
    unit: str = ""
    values: tuple[float, ...] = ()
    """Of the runs, in order."""
    ratios: tuple[float, ...] = ()
    """Of pairs of sessions, in files of version 0.2."""
    false_differences: int = 0
    """Of such pairs, in files of version 0.2."""

    def __post_init__(self) -> None:
        for name, number in (("floor", self.floor), ("absolute", self.absolute)):
            check(number is None or 0 <= number < math.inf, f"a finite {name} of 0 or more", number)
        check(self.n >= 0 and 0 <= self.confidence <= 1, "n of 0 or more and a confidence between 0 and 1",
              (self.n, self.confidence))


@dataclass(frozen=True, slots=True, kw_only=True)
class PairPlan:
    """How many rounds show a ratio with the power asked for."""

    rounds: int
    margin: float
    power: float
    confidence: float
    pilot_rounds: int
    spread: float
    """Robust standard deviation of the pilot's log ratios, one per launch."""
    capped: bool
    """Whether the limit on rounds was reached: the power is then lower than asked for."""

    @property
    def words(self) -> str:
        """What the plan says."""
        change = f"a change of {self.margin:.1%} is found with a power of {self.power:.0%}"
        spread = f"launches differ by {self.spread:.1%}"
        return f"{change} in more than {self.rounds} rounds only: {spread}" if self.capped else \
            f"{change} in {self.rounds} rounds: {spread} in the first {self.pilot_rounds}"


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerTime:
    """One executed layer."""

    name: str
    type: str
    precision: str
    time_s: float
    share: float
    """Of all layers' time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerChange:
    """A layer, or all layers of a type, in two variants."""

    key: str
    before_s: float | None
    """None: it is not there."""
    after_s: float | None
    before_precision: str | None
    after_precision: str | None
    change_s: float
    """After less before, an absent one as 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerWork:
    """What a layer has to do, from the graph's shapes."""

    name: str
    type: str
    flops: int
    """Two per multiply-accumulate."""
    bytes_moved: int
    """Inputs, weights and outputs once each, as stored."""
    reason: str = ""
    """Why flops are 0 where they are unknown."""

    @property
    def intensity(self) -> float:
        """FLOPs per byte."""
        return self.flops / self.bytes_moved if self.bytes_moved else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphWork:
    """What one inference of a whole graph has to do."""

    flops: int
    """Two per multiply-accumulate."""
    bytes_moved: int
    """Inputs, weights and outputs of every node once each, at the width of the recipe's precision."""
    images: int
    """That the figures are for."""
    uncounted: tuple[str, ...] = ()
    """Types of nodes whose operations have no known count: they are in neither figure, or in the bytes alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ceiling:
    """What this machine reached at best, and what its datasheet says beside."""

    precision: str
    sparsity: Literal["dense", "structured"]
    flops_per_s: float | None
    bytes_per_s: float
    method: str
    repeats: int
    datasheet_flops_per_s: float | None = None
    """Of the same sparsity; never used to place a point."""
    datasheet_bytes_per_s: float | None = None
    datasheet_mark: str = ""
    """How sure the datasheet's operations are: ``verified``, ``derived`` or ``recalled``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ceilings:
    """What a machine reached at best, when, and under which conditions."""

    schema: str
    device: str
    """Id of the declared device."""
    cpu: str
    threads: int
    """CPU threads of the products and copies; 0: they ran on the GPU."""
    measured_at: str
    """UTC, ISO 8601."""
    conditions: dict[str, str]
    """Load before, governor, power mode, versions: what a later measurement should find again."""
    ceilings: tuple[Ceiling, ...]
    """Dense ones first; a precision has a ceiling of structured sparsity only where a datasheet states one."""
    absent: dict[str, str]
    """Why a precision has none."""

    @property
    def where(self) -> str:
        """What computed, in words."""
        return f"{self.cpu}, {self.threads} threads" if self.threads else self.conditions.get("GPU", self.device)

    def of(self, precision: str) -> Ceiling | None:
        """Return the measured dense ceiling of a precision; None where there is none."""
        return next((one for one in self.ceilings if one.precision == precision and one.sparsity == "dense"
                     and one.flops_per_s is not None), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class RooflinePoint:
    """One layer or the whole model under its roof."""

    name: str
    intensity: float
    """FLOPs per byte."""
    flops_per_s: float
    roof_flops_per_s: float
    roof_share: float
    """Reached over possible; above 1 where data stay in a cache that the copy did not fit in."""
    bound: Literal["compute", "memory"]
    precision: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelMinute:
    """One telemetry channel during one minute."""

    name: str
    mean: float | None
    """None without a reading; weighted by time; of a counter, its growth per second."""
    low: float | None
    high: float | None
    integral: float | None
    """Power over time, or growth of an energy counter (J); None for others, and where readings leave a part out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Minute:
    """One minute of sustained load."""

    begin_s: float
    duration_s: float
    inferences: int
    p50_s: float
    p90_s: float
    p99_s: float
    max_s: float
    throughput_hz: float
    """Inferences per second of this minute."""
    channels: tuple[ChannelMinute, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Throttling:
    """When and how slowing down was seen first."""

    after_s: float
    evidence: Literal["flag", "latency"]
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Sustained:
    """A long run, minute by minute."""

    variant: str
    begin_ns: int
    duration_s: float
    asked_s: float
    minutes: tuple[Minute, ...]
    throttling: Throttling | None
    events: tuple[ThrottleEvent, ...] = ()
    """What slowed the device down meanwhile; it invalidates nothing that was measured before."""
    slowdown: float
    """Median of the last full minute over that of the first, less 1."""
    file: str | None = None
    """Name of the file of raw timings beside the run; None where none were kept."""
    file_sha256: str | None = None
    """Of that file; None in runs of versions that did not keep it."""

    def __post_init__(self) -> None:
        if self.file is not None:
            check_name(self.file, "file")


@dataclass(frozen=True, slots=True, kw_only=True)
class RankStability:
    """Whether the variants keep their order between the first and the last minute."""

    tau: float | None
    """Kendall's tau-b of the medians; None with fewer than two variants."""
    first: tuple[str, ...]
    """Fastest first."""
    last: tuple[str, ...]
    swapped: tuple[tuple[str, str], ...]
    """Pairs whose order turned."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadGenResult:
    """What MLPerf's LoadGen said about the same inference."""

    scenario: Scenario
    version: str
    valid: bool
    reasons: tuple[str, ...]
    """Why it is invalid, in LoadGen's words."""
    queries: int
    early_stopping_s: float | None
    """Its estimate of the scenario's percentile; None where it made none."""
    early_stopping_q: float | None
    percentiles_s: dict[str, float]
    """``p50`` to ``p99.9`` of its own latencies, order statistic floor(n·q)."""
    mean_s: float | None
    throughput_hz: float | None
    """Queries or images per second, as the scenario defines it."""
    settings: dict[str, str]
    """Effective settings that its summary states."""
