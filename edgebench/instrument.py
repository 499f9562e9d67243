"""One variant under the clock: scenarios until they are steady, with heat, clocks, power and throttling watched.

Runs in the worker, which holds the session. What is asked for is a `TimingPlan`; what comes out are plain traces and
`Observed`.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

from edgebench import latency, loadgen, percentiles, scenario_scores, scenarios, steady, sustained
from edgebench.device import Device
from edgebench.errors import UsageError, unknown
from edgebench.observed import Observed, Steadiness
from edgebench.record import Caveat, LatencyTrace, Score
from edgebench.telemetry import counters
from edgebench.telemetry.commands import run as run_command
from edgebench.telemetry.energy import energy, per_inference
from edgebench.telemetry.observe import WHICH_GPU, Observer
from edgebench.telemetry.types import EnergyPerInference, Telemetry
from edgebench.timing_types import (
    PLAIN,
    DropPolicy,
    Preprocessing,
    QueryTrace,
    Scenario,
    ServerSearch,
    TimingPlan,
)

SCENARIOS: tuple[Scenario, ...] = ("single-stream", "multi-stream", "offline", "server", "camera")
IDLE_S = 1.0
"""Watched with the session open and nothing running, for the power that inferences come on top of."""
DEVICE_TIMES = 100
QUANTILE = 0.99
"""That the server scenario's bound is for."""
Tell = Callable[[str, float], None]
Decides = Callable[[], Callable[[Sequence[float]], bool]]
Infers = Mapping[Scenario, Callable[[], object]]
"""For every scenario, what answers one of its queries."""


def refuse_unfit(plan: TimingPlan) -> None:
    """Refuse a plan that cannot be carried out.

    Raises:
        UsageError: Values without a meaning.
        MissingDependency: LoadGen is asked for and not installed.
    """
    for one in plan.scenarios:
        if one not in SCENARIOS:
            raise unknown("scenario", one, SCENARIOS)
    if plan.drop not in get_args(DropPolicy):
        raise unknown("--drop", plan.drop, get_args(DropPolicy))
    for name, value in (("--fps", plan.fps), ("--deadline", plan.deadline_s),
                        ("--latency-bound", plan.latency_bound_s), ("--sustained", plan.sustained_s)):
        if value is not None and value <= 0:
            raise UsageError(f"{name}: expected a number above 0, got {value:g}")
    if plan.loadgen:
        if "single-stream" not in plan.scenarios:
            raise UsageError("--loadgen checks the single-stream timings, which --scenario leaves out",
                             "add single-stream to --scenario")
        loadgen.find()


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """The plain traces, and everything beside them."""

    traces: tuple[LatencyTrace, ...]
    observed: Observed
    sustained: sustained.Timings | None = None
    """Raw timings of the sustained load, for `sustained.save`."""


def measure(plan: TimingPlan, infers: Infers, budget: latency.Budget, device: Device, tell: Tell, *, batch: int,
            single: int, threads: int, timed_infer: Callable[[], scenarios.DeviceTimes] | None = None,
            root: Path = Path("/"), decides: Decides | None = None) -> Measured:
    """Time the plan's scenarios one after the other, each until it is steady or its tries are used up.

    Args:
        plan: What to time.
        infers: What answers a query, by scenario.
        budget: How long, how many.
        device: Which sensors there are.
        tell: Told (what, share done).
        batch: Images per offline query.
        single: Images per query of the others but multi-stream; above 1 where the model's batch is fixed.
        threads: CPU threads, for the record.
        timed_infer: One inference with the device's own times, where the runtime offers them.
        root: Where ``proc`` and ``sys`` hang.
        decides: Called for each try at single-stream; what it returns hears all latencies so far, in seconds, now and
            then, and ends the try by saying that they decide what is asked of them.
    """
    runner = run_command if device.kind == "board" else None
    observer = Observer(device, root, meter=Path(plan.meter) if plan.meter else None) if plan.telemetry else None
    with ExitStack() as stack:
        if observer is not None:
            stack.enter_context(observer)
        before, begin = counters.look(root, runner), time.perf_counter_ns()
        time.sleep(IDLE_S if budget.min_s else 0.0)
        idle = begin, time.perf_counter_ns()
        loops = _Loops(plan, infers, budget, tell, batch=batch, single=single, threads=threads, decides=decides)
        for scenario in plan.scenarios:
            loops.run(scenario)
        checked = None
        if plan.loadgen:
            tell("timing single-stream by LoadGen", 0.0)
            own = next(one for one in loops.plain if one.scenario == "single-stream")
            infer = infers["single-stream"]
            checked = loadgen.run(lambda numbers: infer(), "single-stream", budget,
                                  expected_s=statistics.median(own.latency_s))
        device_times = scenarios.device_times(timed_infer, DEVICE_TIMES) if timed_infer is not None else None
        # A sustained load is there to heat the device: what it brings about says nothing about the scenarios.
        between, middle = counters.look(root, runner), time.perf_counter_ns()
        timings = None
        if plan.sustained_s is not None:
            timings = sustained.run(infers["single-stream"], plan.sustained_s,
                                    progress=lambda share: tell("sustained load", share))
        after, end = counters.look(root, runner), time.perf_counter_ns()
    telemetry = observer.result() if observer is not None else None
    series = telemetry.throttle.series if telemetry is not None else ()
    events = (*counters.events(before, between, (middle - begin) / 1e9),
              *counters.series_events(series, loops.windows))
    found = None
    if timings is not None:
        meanwhile = (*counters.events(between, after, (end - middle) / 1e9),
                     *counters.series_events(series, {"sustained load": (middle, end)}))
        found = replace(sustained.summarize("", timings, plan.sustained_s or 0.0, sustained.channels(telemetry)),
                        events=tuple(replace(event, invalidates=False) for event in meanwhile))
    return Measured(
        traces=tuple(loops.plain),
        observed=Observed(
            steadiness=tuple(loops.steadiness), queries=tuple(loops.queries), server=loops.server,
            device_times=device_times, telemetry=telemetry, events=events,
            residency=counters.cpu_residency(before, between), energy=_energy(loops.plain, telemetry, idle),
            sustained=found,
            loadgen=checked, ambient_c=plan.ambient_c), sustained=timings)


class _Loops:
    """Runs scenarios, and keeps what each one left."""

    def __init__(self, plan: TimingPlan, infers: Infers, budget: latency.Budget, tell: Tell, *, batch: int,
                 single: int, threads: int, decides: Decides | None) -> None:
        self._plan, self._infers, self._budget, self._tell = plan, infers, budget, tell
        self._batch, self._single, self._threads, self._decides = batch, single, threads, decides
        self.plain: list[LatencyTrace] = []
        self.queries: list[QueryTrace] = []
        self.steadiness: list[Steadiness] = []
        self.server: ServerSearch | None = None
        self.windows: dict[str, tuple[int, int]] = {}
        """When the timings of each scenario that count were taken, on the clock of telemetry."""

    def run(self, scenario: Scenario) -> None:
        """Measure one scenario until it is steady, or its tries are used up."""
        bound_s = None
        if scenario == "server":
            bound_s = self._search()
            if self.server is None or self.server.rate_hz is None:
                return
        tries = 0

        def once(warmup_factor: float) -> QueryTrace:
            nonlocal tries
            tries += 1
            what = f"timing {scenario}" + (f", try {tries}" if tries > 1 else "")
            self._tell(what, 0.0)
            return self._loop(scenario, warmup_factor, lambda share: self._tell(what, share), bound_s)

        found = steady.measure_until_steady(once, retries=self._budget.retries)
        self.steadiness.append(Steadiness(scenario=scenario, verdicts=found.verdicts))
        begin = found.trace.begin_ns
        self.windows[scenario] = begin, begin + round(max(found.trace.end_s) * 1e9)
        if scenario in PLAIN:
            self.plain.append(as_latency(found.trace))
        else:
            self.queries.append(found.trace)

    def _loop(self, scenario: Scenario, warmup_factor: float, progress: Callable[[float], None],
              bound_s: float | None) -> QueryTrace:
        infer, threads = self._infers[scenario], self._threads
        inside: Preprocessing = "included" if self._plan.preprocessing else "excluded"
        if scenario == "camera":
            return scenarios.camera(infer, self._plan.fps, self._budget, deadline_s=self._plan.deadline_s,
                                    policy=self._plan.drop, threads=threads, images_per_query=self._single,
                                    preprocessing=inside, warmup_factor=warmup_factor, progress=progress)
        if scenario == "server":
            assert self.server is not None
            assert self.server.rate_hz is not None
            return scenarios.server(infer, self.server.rate_hz, bound_s or 0.0, self._budget, threads=threads,
                                    images_per_query=self._single, seed=len(self.server.trials), preprocessing=inside,
                                    warmup_factor=warmup_factor, progress=progress)
        images = {"offline": self._batch, "multi-stream": scenarios.MULTI_STREAM_IMAGES}.get(scenario, self._single)
        return scenarios.closed_loop(scenario, infer, self._budget, images_per_query=images, threads=threads,
                                     preprocessing=inside, warmup_factor=warmup_factor, progress=progress,
                                     decided=self._decides() if self._decides and scenario == "single-stream" else None)

    def _search(self) -> float:
        """Find the highest arrival rate that keeps the bound; returns the bound in seconds."""
        alone = next((one.latency_s for one in self.plain if one.scenario == "single-stream"), None)
        if alone is None:
            quick = scenarios.closed_loop("single-stream", self._infers["server"], self._budget,
                                          images_per_query=self._single, threads=self._threads)
            alone = quick.latency_s
        bound_s = self._plan.latency_bound_s or 10 * sorted(alone)[len(alone) // 2]

        def at(rate_hz: float, seed: int, left_s: float) -> QueryTrace:
            # Its queries last as long as their rate says: a slow model's trial takes longer than another scenario may.
            return scenarios.server(self._infers["server"], rate_hz, bound_s, replace(self._budget, max_s=left_s),
                                    threads=self._threads, images_per_query=self._single, seed=seed, give_up=True)

        needed = percentiles.early_stopping_count(QUANTILE, 0)
        if self._budget.server_queries < needed:
            self.server = ServerSearch(
                rate_hz=None, bound_s=bound_s, q=QUANTILE, confidence=percentiles.EARLY_STOPPING_CONFIDENCE,
                lowest_failing_hz=None, trials=(),
                reason=f"{self._budget.server_queries} queries cannot show any bound on the 99th percentile: it takes "
                       f"{needed}")
            return bound_s
        self._tell("searching the highest arrival rate", 0.0)
        self.server = scenarios.search_server(
            at, bound_s, service_s=alone, max_s=self._budget.search_max_s,
            told=lambda trial: self._tell(f"server at {trial.rate_hz:.4g} per second: {trial.said}", 0.0))
        return bound_s


def as_latency(trace: QueryTrace) -> LatencyTrace:
    """Return a closed loop's queries as the plain trace that percentiles and throughput are derived from."""
    scenario = trace.scenario
    assert scenario in ("single-stream", "offline")
    return LatencyTrace(
        scenario=scenario, batch=trace.images_per_query, threads=trace.threads, clock=trace.clock,
        clock_resolution_s=trace.clock_resolution_s, warmup_s=trace.warmup_s, latency_s=trace.service_s,
        stopped="count-and-duration" if trace.stopped == "given-up" else trace.stopped, begin_ns=trace.begin_ns,
        preprocessing=trace.preprocessing)


def _energy(traces: list[LatencyTrace], telemetry: Telemetry | None,
            idle: tuple[int, int]) -> EnergyPerInference | None:
    if telemetry is None:
        return None
    trace = next((one for one in traces if one.scenario == "single-stream"), None)
    if trace is None or trace.begin_ns is None:
        return None
    series = telemetry.power.channel(telemetry.power.total)
    if series is None:
        return EnergyPerInference(gross_j=None, gross_uncertainty_j=None, net_j=None, net_uncertainty_j=None,
                                  idle_w=None, inferences=len(trace.latency_s), scope=None,
                                  reason=telemetry.power.total_reason or "no sensor tells the total")
    active_s = sum(trace.latency_s)
    active = energy(series, trace.begin_ns, trace.begin_ns + round(active_s * 1e9))
    return per_inference(active, active_s, len(trace.latency_s), energy(series, *idle), (idle[1] - idle[0]) / 1e9)


def scores(observed: Observed, confidence: float) -> tuple[Score, ...]:
    """Return what the observations come to: other scenarios' percentiles, the server's rate, energy, device times."""
    found = [score for trace in observed.queries for score in scenario_scores.scores(trace, confidence)]
    if observed.server is not None:
        search = observed.server
        found.append(Score(
            name="server_rate", value=search.rate_hz, unit="1/s", better="higher", n=len(search.trials),
            reason=search.reason, reason_code=None if search.reason is None else "incomplete", kind="estimate",
            method_id="early-stopping-search", facts={"bound_s": search.bound_s},
            method=f"highest Poisson arrival rate whose {search.q:.0%} latency was shown to stay within the bound at "
                   f"{search.confidence:.0%} confidence"))
    if observed.energy is not None:
        found += _energy_scores(observed.energy)
    if observed.device_memory_bytes is not None:
        found.append(Score(name="device_memory", value=float(observed.device_memory_bytes), unit="bytes",
                           better="lower", n=1, reason="told by the runtime", reason_code="measured-once",
                           kind="single", method_id="runtime",
                           method="weights, scratch memory and buffers of inputs and outputs of the single-stream "
                           "session, as the runtime tells; CUDA's own context comes on top"))
    if observed.shared_memory is not None:
        taken = observed.shared_memory.available_bytes
        reason = "this system does not tell (no MemAvailable)" if taken is None else \
            "one process was observed, with others beside it" if taken > 0 else "others gave back more meanwhile"
        found.append(Score(
            name="shared_memory", value=float(taken) if taken is not None and taken > 0 else None, unit="bytes",
            better="lower", n=1, reason=reason, kind="single", method_id="available-memory",
            reason_code="not-told" if taken is None else "measured-once" if taken > 0 else "undefined",
            method="fall of the available memory, which CPU and GPU share, from before opening until after the first "
                   "inference; it overlaps with the figures of device and host"))
    if observed.loadgen is not None:
        found += loadgen.scores(observed.loadgen)
    times = observed.device_times
    if times is not None:
        for part in ("h2d", "compute", "d2h", "enqueue"):
            values = sorted(getattr(times, f"{part}_s"))
            found.append(Score(name=f"device_{part}_p50", value=values[len(values) // 2], unit="s", better="lower",
                               n=len(values), method="median by the device's own events", kind="quantile",
                               method_id="device-events", reason_code="not-computed",
                               reason="beside the wall times, which carry the intervals"))
    return tuple(found)


def _energy_scores(found: EnergyPerInference) -> list[Score]:
    scope = found.scope or "unknown"

    def score(name: str, value: float | None, uncertainty: float | None, method: str) -> Score:
        arm = None if value is None or uncertainty is None else 2 * uncertainty
        low, high = (None, None) if value is None or arm is None else (value - arm, value + arm)
        return Score(name=name, value=value, low=low, high=high, unit="J", better="lower", n=found.inferences,
                     method=f"{method}; twice the uncertainty that sampling leaves", kind="estimate",
                     # Sensors of different scopes measure different things.
                     method_id=f"energy-{scope}", facts={"scope": scope},
                     reason=found.reason or ("unknown" if value is None else None),
                     reason_code="not-told" if found.reason or value is None else None)

    return [score("energy_per_inference", found.gross_j, found.gross_uncertainty_j,
                  "everything drawn during single-stream timing, per inference"),
            score("energy_per_inference_net", found.net_j, found.net_uncertainty_j,
                  "what was drawn above idle, the session open, per inference")]


def caveats(observed: Observed, confidence: float, own: LatencyTrace | None = None) -> tuple[Caveat, ...]:
    """Return what was seen that speaks against the timings.

    Args:
        observed: Everything beside the plain timings.
        confidence: Two-sided, of percentiles.
        own: The single-stream timings, which LoadGen's are held against.
    """
    found = [Caveat(code="throttled" if event.invalidates else event.code, message=event.message,
                    hint="the card's limit under this load: compare with runs under the same limit"
                    if event.code == "gpu-power-cap" and not event.invalidates else
                    "cool the device, supply more power or lower its load, and measure again")
             for event in observed.events]
    found += [Caveat(code="unstable", hint=one.verdicts[-1].hint,
                     message=f"{one.scenario}: not steady in {len(one.verdicts)} tries: {one.verdicts[-1].diagnosis}")
              for one in observed.steadiness if not one.steady]
    absent = observed.telemetry.absent if observed.telemetry is not None else ()
    found += [Caveat(code="gpu-unknown", message=one.reason,
                     hint="hide the other GPUs from NVML too, such as with docker run --gpus")
              for one in absent if one.what == WHICH_GPU]
    if observed.loadgen is not None and own is not None:
        found += loadgen.caveats(own, observed.loadgen, confidence)
    found += [doubt for trace in observed.queries for doubt in scenario_scores.caveats(trace, confidence)]
    if observed.device_times is not None:
        found += scenario_scores.device_caveats(observed.device_times, "single-stream")
    return tuple(found)
