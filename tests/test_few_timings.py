"""From one timing to a hundred, of fast and slow machines: whatever a device gives is told, none of it is an error."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest

from edgebench import builds, latency, paired, percentiles, report, scenario_scores, scenarios, sustained, timing_charts
from edgebench.record import BuildSpread, Score
from edgebench.timing_types import Block, PairedTrace, QueryTrace
from tests import builders

COUNTS = range(1, 101)
SOME = (1, 2, 3, 10, 19, 20, 40, 60, 79, 100)
SHAPES: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "ordinary": lambda g, n: 1e-2 * np.exp(g.normal(0, 0.1, n)),
    "all equal": lambda g, n: np.full(n, 1e-2),
    "rising": lambda g, n: 1e-2 * (1 + 0.05 * np.arange(n)),
    "two states": lambda g, n: np.where(np.arange(n) % 2, 1e-2, 2e-2),
    "a few steps of the clock": lambda g, n: g.integers(1, 4, n) * 1e-9,
    "minutes": lambda g, n: g.uniform(50, 200, n),
    "mostly below the clock's step": lambda g, n: np.where(np.arange(n) % 3 == 0, 1e-9, 0.0),
    "below the clock's step": lambda g, n: np.zeros(n),
}


def traces(shape: str, counts: Sequence[int] = COUNTS) -> Iterator[np.ndarray]:
    generator = np.random.default_rng(1)
    return (SHAPES[shape](generator, n) for n in counts)


def queries(scenario: str, seconds: np.ndarray, **more) -> QueryTrace:
    """Return a trace of queries that take so long, one after the other; open loops have one due every 10 ms."""
    end = np.cumsum(seconds)
    start = np.concatenate(([0.0], end[:-1]))
    due = np.minimum(start, 0.01 * np.arange(len(end))) if more else start
    return QueryTrace(
        scenario=scenario, images_per_query=1, threads=1, budget="smoke", clock="scripted", clock_resolution_s=1e-9,
        begin_ns=0, warmup_s=(), warmup_settled=None, issue_s=tuple(due.tolist()), start_s=tuple(start.tolist()),
        end_s=tuple(end.tolist()), stopped="count-and-duration", **more)


def sound(scores: tuple[Score, ...]) -> bool:
    """Return whether each score has a finite value within its interval, or says why it has none."""
    return all(bool(one.reason) if one.value is None else
               (one.low is None or one.low <= one.value * (1 + 1e-12)) and
               (one.high is None or one.value <= one.high * (1 + 1e-12)) and math.isfinite(one.value) for one in scores)


@pytest.mark.parametrize("shape", SHAPES)
def test_latencies_are_scored_and_doubted(shape):
    for values in traces(shape):
        trace = builders.single_stream(values.tolist())
        assert sound(latency.scores(trace))
        # A hundred timings do not bound the 99th percentile from above.
        assert {one.code for one in latency.caveats(trace)} & {"few-timings", "coarse-clock"}


@pytest.mark.parametrize("shape", SHAPES)
def test_throughput_is_scored_and_doubted(shape):
    for values in traces(shape, SOME):
        trace = builders.offline(values.tolist())
        assert sound(latency.scores(trace))
        assert (len(values) < latency.MIN_BATCHES) <= bool(latency.caveats(trace))


@pytest.mark.parametrize("shape", SHAPES)
def test_percentiles_are_bounded_or_said_not_to_be(shape):
    for values in traces(shape):
        for one in percentiles.bounds(values, confidence=0.99):
            assert (one.low_s or 0.0) <= one.value_s <= (math.inf if one.high_s is None else one.high_s)
            number = f"{one.value_s * 1e3:.3f} ms"
            assert (number in percentiles.words(one)) == (one.high_s is not None), "no number without an upper bound"


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("scenario", "more"), [
    ("multi-stream", {}), ("server", {"rate_hz": 100.0, "limit_s": 0.1, "seed": 1}),
    ("camera", {"rate_hz": 100.0, "limit_s": 0.01, "policy": "queue"})])
def test_every_scenario_is_scored_and_doubted(scenario, more, shape):
    for values in traces(shape, SOME):
        trace = queries(scenario, values, **more)
        assert sound(scenario_scores.scores(trace))
        assert {"few-timings"} <= {one.code for one in scenario_scores.caveats(trace)}


@pytest.mark.parametrize("shape", SHAPES)
def test_the_search_for_a_rate_ends_with_a_reason(shape):
    for values in traces(shape, SOME):
        found = scenarios.search_server(
            lambda rate, seed, max_s, values=values: queries("server", values, rate_hz=rate, limit_s=1.0, seed=seed), 1.0,
            service_s=values.tolist())
        assert found.rate_hz is None
        assert found.reason


@pytest.mark.parametrize("shape", SHAPES)
def test_sustained_load_is_summed_up_however_few_inferences_fit_in(shape):
    for values in traces(shape):
        durations = np.rint(values * 1e9).astype(np.int64)
        found = sustained.summarize("a", sustained.Timings(np.cumsum(durations) - durations, durations), 60.0)
        assert len(values) == sum(minute.inferences for minute in found.minutes)
        assert math.isfinite(found.slowdown)


@pytest.mark.parametrize("shape", [name for name in SHAPES if not name.endswith("step")])
def test_two_sessions_are_compared_over_any_number_of_rounds(shape):
    for values in traces(shape, range(1, 41)):
        block = tuple(values.tolist())
        rounds = tuple(tuple(Block(session=k, begin_ns=0, latency_s=block) for k in (0, 1, 1, 0)) for _ in block)
        found = paired.compare(PairedTrace(names=("a", "b"), seed=0, rounds=rounds), "a", "b")
        assert (1.0, False) == (found.ratio, found.different)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_report_draws_and_tells_them(shape):
    for values in traces(shape, (1, 2, 40, 100)):
        run = builders.run(latency_s=values.tolist(), batch_s=values.tolist())
        drawn = report._variants([run])
        assert all(panel.figure["data"] for draw in (timing_charts.distribution, timing_charts.timeline)
                   for panel in draw(drawn).panels)
        assert 1 == len(report.table([run]).rows)


def test_builds_below_the_clocks_step_have_no_spread_and_a_reason():
    found = BuildSpread(builds=2, images=10, timings_per_build=100, p50_s=(0.0, 1e-9), disagreement=(0.1,),
                        max_abs_difference=(0.2,))
    latencies, answers = builds.scores(found)
    assert (None, "the clock did not advance during most inferences") == (latencies.value, latencies.reason)
    assert 0.1 == answers.value
    assert ["builds-differ"] == [one.code for one in builds.caveats(found)]
