"""Synthetic observations around a run's timings: heat, clocks, power, throttling, verdicts, scenarios, minutes, layers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from edgebench import instrument, latency, roofline
from edgebench.interleaved import SCHEMA, Paired
from edgebench.observed import Observed, Steadiness
from edgebench.record import Run
from edgebench.telemetry.types import (
    Absent,
    Channel,
    ClockTrace,
    EnergyPerInference,
    PowerTrace,
    SamplerCost,
    Series,
    Telemetry,
    ThermalTrace,
    ThrottleEvent,
    ThrottleTrace,
)
from edgebench.timing_types import (
    Block,
    ChannelMinute,
    Comparison,
    DeviceTrace,
    LayerTime,
    Minute,
    PairedTrace,
    QueryTrace,
    ServerSearch,
    ServerTrial,
    SteadyVerdict,
    Sustained,
    Throttling,
)

BEGIN_NS = 5_000_000_000_000
STEADY = SteadyVerdict(verdict="steady", diagnosis="nothing speaks against a steady state", hint="", findings=(), n=400,
                       window_ratio=1.01, trend_change=0.001, trend_p=0.6, change_points=(), outlier_share=0.004, settled_from=0)


def series(name: str, quantity: str, seconds: list[float], values: list[float], **more: object) -> Series:
    """Return readings of a channel at `seconds` after the timings' beginning."""
    scope = "board" if quantity in ("power_w", "energy_j") else None
    return Series(channel=Channel(name=name, label=name.rpartition("/")[2], quantity=quantity, source="a file", scope=scope,
                                  **more), interval_s=0.5, t_ns=tuple(BEGIN_NS + round(one * 1e9) for one in seconds),
                  values=tuple(values))


def telemetry(lasts_s: float, *, throttled: tuple[float, float] | None = None, counter: bool = False) -> Telemetry:
    """Return half-second readings from 1 s before the timings to 1 s behind them."""
    seconds = [float(one) for one in np.arange(-1.0, lasts_s + 1.0, 0.5)]
    warm = [50 + 20 * (1 - np.exp(-max(0.0, one) / (0.4 * lasts_s))) for one in seconds]
    slow = [throttled is not None and throttled[0] <= one < throttled[1] for one in seconds]
    power = series("ina3221/VDD_IN", "power_w", seconds, [9.0 + 0.5 * np.sin(one) for one in seconds])
    if counter:
        power = series("nvml/energy", "energy_j", seconds, [100.0 + 7.0 * one for one in seconds])
    return Telemetry(
        begin_ns=BEGIN_NS - 10**9, end_ns=BEGIN_NS + round((lasts_s + 1) * 1e9),
        power=PowerTrace(series=(power,), total=power.channel.name),
        thermal=ThermalTrace(series=tuple(series(f"thermal/{zone}", "temperature_c", seconds, [one + shift for one in warm])
                                          for zone, shift in (("cpu-thermal", 0.0), ("gpu-thermal", -2.0), ("soc0-thermal", -5.0),
                                                              ("tj-thermal", 1.0)))),
        clocks=ClockTrace(series=(series("clock/gpu", "clock_hz", seconds, [6.2e8 if one else 9.18e8 for one in slow]),
                                  series("clock/cpu0", "clock_hz", seconds, [1.51e9 for _ in seconds]))),
        throttle=ThrottleTrace(series=(series("nvml/reasons", "flags", seconds, [0x20 if one else 0x1 for one in slow]),)),
        cost=SamplerCost(samples=4 * len(seconds), duration_s=lasts_s + 2, mean_s=2.1e-5, max_s=2e-4, cpu_share=0.0004),
        absent=(Absent(what="external meter", reason="none was named"),))


def query(scenario: str, latency_s: list[float], **more: object) -> QueryTrace:
    """Return one query after the other, a millisecond apart."""
    ends = np.cumsum(np.array(latency_s) + 0.001)
    starts = ends - latency_s
    return QueryTrace(scenario=scenario, images_per_query=8 if scenario == "multi-stream" else 1, threads=4, budget="quick",
                      clock="perf_counter_ns", clock_resolution_s=4e-8, begin_ns=BEGIN_NS, warmup_s=(), warmup_settled=True,
                      issue_s=tuple(starts), start_s=tuple(starts), end_s=tuple(ends), stopped="count-and-duration", **more)


def minutes(count: int, first_s: float, growth: float, channels: tuple[str, ...] = ()) -> Sustained:
    """Return a sustained run whose median grows by `growth` each minute."""
    found = tuple(Minute(
        begin_s=60.0 * k, duration_s=60.0, inferences=6000, p50_s=first_s * (1 + growth * k), p90_s=first_s * (1.02 + growth * k),
        p99_s=first_s * (1.1 + growth * k), max_s=first_s * 2, throughput_hz=1 / (first_s * (1 + growth * k)),
        channels=tuple(ChannelMinute(name=one, mean=50.0 + k, low=49.0, high=51.0 + k, integral=None) for one in channels))
        for k in range(count))
    throttling = Throttling(after_s=120.0, evidence="latency", message="the median rose from 10 ms to 12 ms after 120 s and "
                            "stayed up") if growth > 0.02 else None
    return Sustained(variant="", begin_ns=BEGIN_NS, duration_s=60.0 * count, asked_s=60.0 * count, minutes=found,
                     throttling=throttling, slowdown=growth * (count - 1))


def profile(names: dict[str, tuple[str, str, float]]) -> tuple[LayerTime, ...]:
    """Return a table of layers: name to (type, precision, seconds)."""
    return roofline.layer_table((name, *rest) for name, rest in names.items())


def watched(run: Run, *, begins: bool = True, verdict: SteadyVerdict = STEADY, **parts: object) -> Run:
    """Return the run with observations and the scores that follow from them."""
    observed = Observed(steadiness=(Steadiness(scenario="single-stream", verdicts=(verdict,)),), **parts)
    trace = replace(run.traces[0], begin_ns=BEGIN_NS if begins else None)
    return replace(run, traces=(trace, *run.traces[1:]), observed=observed,
                   performance=(*latency.scores(trace), *instrument.scores(observed, 0.95)))


def everything(run: Run, *, slow: bool = False) -> Run:
    """Return the run with every observation there is."""
    total = sum(run.traces[0].latency_s)
    typical = run.traces[0].latency_s[0]
    generator = np.random.default_rng(1)
    frames = [typical * 1.1 * float(one) for one in np.exp(generator.normal(0, 0.2, 200))]
    camera = query("camera", frames, rate_hz=30.0, limit_s=1 / 30, policy="newest", dropped_s=(0.4, 0.9))
    unstable = replace(STEADY, verdict="unstable", change_points=(len(run.traces[0].latency_s) // 2,), hint="cool the device",
                       diagnosis="the level changed by 7 % after half of the timings")
    trials = tuple(ServerTrial(rate_hz=rate, queries=662, late=late, holds=not late, stopped="count-and-duration")
                   for rate, late in ((20.0, 0), (40.0, 0), (80.0, 31), (60.0, 9), (50.0, 0)))
    return watched(
        run, verdict=unstable if slow else STEADY, telemetry=telemetry(total, throttled=(total * 0.5, total * 0.8) if slow else None),
        queries=(query("multi-stream", [typical * 7] * 300), camera),
        server=ServerSearch(rate_hz=50.0, reason="60 per second did not hold", bound_s=0.1, q=0.99, confidence=0.99,
                            lowest_failing_hz=60.0, trials=trials),
        device_times=DeviceTrace(h2d_s=(1e-4,) * 9, compute_s=(typical,) * 9, d2h_s=(2e-5,) * 9, enqueue_s=(5e-4,) * 9,
                                 wall_s=(typical + 1e-3,) * 9),
        energy=EnergyPerInference(gross_j=0.091, gross_uncertainty_j=0.002, net_j=0.052, net_uncertainty_j=0.003, idle_w=4.1,
                                  inferences=400, scope="board"),
        events=(ThrottleEvent(code="gpu-power-cap", message="NVML: power cap in 12 of 80 readings", invalidates=False),) if slow else (),
        sustained=minutes(5, typical, 0.04 if slow else 0.0, ("thermal/cpu-thermal", "clock/gpu", "ina3221/VDD_IN")),
        ambient_c=22.5, settings=("nvpmodel 15W",), device_memory_bytes=48_000_000)


def turns(baseline: Run, candidate: Run, ratio: float, low: float | None, high: float | None) -> Paired:
    """Return what timing two runs in turns found."""
    names = (baseline.variant, candidate.variant)
    block = [Block(session=k % 2, begin_ns=k, latency_s=(0.01,)) for k in range(4)]
    return Paired(schema=SCHEMA, device="cpu", threads=4, inferences=5, digests={
        run.variant: run.artifact.digest for run in (baseline, candidate)}, trace=PairedTrace(names=names, seed=0, rounds=(tuple(block),)),
        comparisons=(Comparison(baseline=names[0], candidate=names[1], ratio=ratio, low=low, high=high, p_value=0.002, confidence=0.95,
                                rounds=20, launches=10, method="signed ranks"),))
