"""MLPerf's LoadGen drives the same inference: the official cross-check of the own loops, in one process.

LoadGen issues, times and judges; it neither warms up nor looks at the machine. Its log goes to a folder of its own, and
so does the ``audit.config`` that it would otherwise take from the working directory.
"""

from __future__ import annotations

import array
import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from edgebench import percentiles, steady
from edgebench.errors import CannotMeasure, UsageError, require
from edgebench.latency import Budget
from edgebench.record import Caveat, LatencyTrace, Score
from edgebench.timing_types import LoadGenResult, Scenario

_NAMES: dict[Scenario, str] = {"single-stream": "SingleStream", "multi-stream": "MultiStream", "server": "Server",
                               "offline": "Offline"}
_PERCENTILE = re.compile(r"([\d.]+) percentile latency \(ns\)\s*:\s*(\d+)")
_ESTIMATE = re.compile(r"Early stopping ([\d.]+)th percentile estimate: (\d+)")
_PROCESSED = re.compile(r"\((\d+)\)\.|Only processed (\d+) queries")
_RATE = re.compile(r"(?:QPS w/o loadgen overhead|Completed samples per second|Samples per second)\s*:\s*([\d.eE+]+)")
AGREEMENT = 0.01
"""How far LoadGen and the own single-stream loop may lie apart at p90."""


def find() -> Any:
    """Return the module of LoadGen.

    Raises:
        MissingDependency: It is not installed.
    """
    return require("mlperf_loadgen", "loadgen")


def run(infer: Callable[[Sequence[int]], object], scenario: Scenario, budget: Budget, *, expected_s: float,
        rate_hz: float | None = None, bound_s: float | None = None, q: float | None = None, inputs: int = 8,
        batch: int = 1, folder: Path | None = None) -> LoadGenResult:
    """Let LoadGen measure `infer`, already warm, by the budget's counts and durations.

    Args:
        infer: Answers one query of these input numbers, 0 to `inputs` - 1; returns when its outputs are in host memory.
        scenario: Any but ``camera``, which LoadGen does not know.
        budget: Its `min_s`, `max_s`, and `min_count` (`server_queries` in the server scenario).
        expected_s: About how long one query takes: LoadGen prepares as many queries as that allows, and half of it is
            told so that they suffice.
        rate_hz: Arrivals per second; for the server scenario.
        bound_s: Latency bound; for the server scenario.
        q: Quantile of the scenario; MLPerf's where it is None (0.90, 0.99 in multi-stream and server).
        inputs: How many different inputs there are.
        batch: Images that `infer` takes at once in the offline scenario.
        folder: Where the logs go; a folder that is removed afterwards where it is None.

    Raises:
        UsageError: A scenario that LoadGen does not know, or a server scenario without rate and bound.
        MissingDependency: LoadGen is not installed.
        CannotMeasure: Its summary cannot be read.
    """
    if scenario not in _NAMES:
        raise UsageError(f"LoadGen has no scenario {scenario!r}", f"known: {', '.join(sorted(_NAMES))}")
    if scenario == "server" and (rate_hz is None or bound_s is None):
        raise UsageError("LoadGen's server scenario needs an arrival rate and a latency bound")
    loadgen = find()
    settings = _settings(loadgen, scenario, budget, expected_s, q)
    if rate_hz is not None and bound_s is not None and scenario == "server":
        settings.server_target_qps = rate_hz
        settings.server_target_latency_ns = round(bound_s * 1e9)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        return _drive(loadgen, infer, scenario, settings, inputs, batch, folder)
    with tempfile.TemporaryDirectory(prefix="edgebench-loadgen-") as scratch:
        return _drive(loadgen, infer, scenario, settings, inputs, batch, Path(scratch))


def _settings(loadgen: Any, scenario: Scenario, budget: Budget, expected_s: float, q: float | None) -> Any:
    settings = loadgen.TestSettings()
    settings.scenario = getattr(loadgen.TestScenario, _NAMES[scenario])
    settings.mode = loadgen.TestMode.PerformanceOnly
    settings.min_duration_ms = round(budget.min_s * 1e3)
    settings.max_duration_ms = round(budget.max_s * 1e3)
    settings.min_query_count = budget.server_queries if scenario == "server" else budget.min_count
    prepared_ns = max(1, round(expected_s * 0.5e9))
    settings.single_stream_expected_latency_ns = settings.multi_stream_expected_latency_ns = prepared_ns
    settings.offline_expected_qps = 2.0 / expected_s
    if q is not None:
        settings.single_stream_target_latency_percentile = q
        settings.multi_stream_target_latency_percentile = q
        settings.server_target_latency_percentile = q
    return settings


def _drive(loadgen: Any, infer: Callable[[Sequence[int]], object], scenario: Scenario, settings: Any, inputs: int,
           batch: int, folder: Path) -> LoadGenResult:
    # LoadGen reads the response after the callback returned: its buffer must outlive the test.
    answer = array.array("B", bytes(8))
    address, size = answer.buffer_info()
    failure: list[Exception] = []
    served = 0

    def issue(samples: Sequence[Any]) -> None:
        nonlocal served
        # Made beforehand: afterwards the inference has emptied the caches, and the clock is still running.
        responses = [loadgen.QuerySampleResponse(one.id, address, size) for one in samples]
        try:
            if not failure:
                step = batch if scenario == "offline" else len(samples)
                for start in range(0, len(samples), step):
                    infer([one.index for one in samples[start:start + step]])
        except Exception as error:  # noqa: BLE001  # it would end the process in LoadGen's own thread; raised below
            failure.append(error)
        served += 1
        loadgen.QuerySamplesComplete(responses)

    def nothing(*_: object) -> None:
        """Inputs stay in memory."""

    log = loadgen.LogSettings()
    log.log_output.outdir = str(folder)
    log.log_output.copy_summary_to_stdout = False
    log.enable_trace = False
    system = loadgen.ConstructSUT(issue, nothing)
    library = loadgen.ConstructQSL(inputs, inputs, nothing, nothing)
    try:
        with steady.quiet():
            loadgen.StartTestWithLogSettings(system, library, settings, log, str(folder / "audit.config"))
    finally:
        loadgen.DestroyQSL(library)
        loadgen.DestroySUT(system)
    if failure:
        raise failure[0]
    summary = folder / "mlperf_log_summary.txt"
    if not summary.exists():
        raise CannotMeasure("LoadGen left no summary", f"its logs are in {folder}")
    detail = (folder / "mlperf_log_detail.txt").read_text(encoding="utf-8", errors="replace")
    version = re.search(r'"key": "loadgen_version", "value": "([^" ]+)', detail)
    return parse_summary(summary.read_text(encoding="utf-8"), scenario, version[1] if version else "unknown", served)


def parse_summary(text: str, scenario: Scenario, version: str, queries: int | None = None) -> LoadGenResult:
    """Return what ``mlperf_log_summary.txt`` says.

    Args:
        text: The file's contents.
        scenario: That was run.
        version: LoadGen's.
        queries: That were answered, where the caller counted; else as the summary's early stopping counts them.

    Raises:
        CannotMeasure: The text is no summary.
    """
    verdict = re.search(r"Result is : (VALID|INVALID)", text)
    if verdict is None:
        raise CannotMeasure("LoadGen's summary names no result", "another version of LoadGen than 6.0?")
    head, _, parameters = text.partition("Test Parameters Used")
    reasons = [line.strip() for line in head.splitlines() if re.search(r": NO$", line.strip())]
    reasons += re.findall(r"^ \* ((?:Only processed|Need to process|Increase|Decrease).*)$", head, re.MULTILINE)
    mean = re.search(r"Mean latency \(ns\)\s*:\s*(\d+)", head)
    rate, estimate, processed = _RATE.search(head), _ESTIMATE.search(head), _PROCESSED.search(head)
    counted = int(processed[1] or processed[2]) if processed else 0
    pairs = re.findall(r"^(\w[\w ]*?(?: \(\w+\))?)\s*:\s*(\S+)$", parameters, re.MULTILINE)
    return LoadGenResult(
        scenario=scenario, version=version, valid=verdict[1] == "VALID",
        reasons=tuple(reasons) if verdict[1] == "INVALID" else (), queries=counted if queries is None else queries,
        early_stopping_s=int(estimate[2]) / 1e9 if estimate else None,
        early_stopping_q=float(estimate[1]) / 100 if estimate else None,
        percentiles_s={f"p{float(q):g}": int(ns) / 1e9 for q, ns in _PERCENTILE.findall(head)},
        mean_s=int(mean[1]) / 1e9 if mean else None, throughput_hz=float(rate[1]) if rate else None,
        settings=dict(pairs))


def disagreement(own_p90_s: float, result: LoadGenResult) -> float:
    """Return LoadGen's p90 over that of the own single-stream loop, less 1; `AGREEMENT` is what may be expected.

    Raises:
        CannotMeasure: LoadGen gave no p90.
    """
    theirs = result.percentiles_s.get("p90")
    if theirs is None:
        raise CannotMeasure("LoadGen gave no 90th percentile", "another version of LoadGen than 6.0?")
    return theirs / own_p90_s - 1.0


def scores(result: LoadGenResult) -> list[Score]:
    """Return LoadGen's p90 of single-stream and its early-stopping estimate (s)."""
    invalid = f"LoadGen calls its run invalid: {'; '.join(result.reasons)}" if not result.valid else None
    told = "LoadGen, on the session that the own timings come from"
    facts: dict[str, str | int | float] = {"loadgen": result.version}
    return [
        Score(name="loadgen_latency_p90", value=result.percentiles_s.get("p90"), unit="s", better="lower",
              n=result.queries, method=f"order statistic floor(nq); {told}", kind="quantile",
              method_id="loadgen-order-statistic", facts=facts, reason_code="invalid" if invalid else "not-computed",
              reason=invalid or "beside the own percentile, which carries the interval"),
        Score(name="loadgen_early_stopping_p90", value=result.early_stopping_s, unit="s", better="lower",
              n=result.queries,
              method=f"MLPerf's early-stopping estimate: a bound at 99 % one-sided confidence; {told}",
              kind="quantile", method_id="early-stopping", facts=facts,
              reason_code="invalid" if invalid else "too-few" if result.early_stopping_s is None else "one-sided",
              reason=(invalid or "LoadGen made none") if result.early_stopping_s is None
              else invalid or "one-sided: it is an upper bound itself")]


def caveats(own: LatencyTrace, result: LoadGenResult, confidence: float) -> list[Caveat]:
    """Return a doubt where LoadGen's p90 lies beyond the own interval at `confidence` by more than `AGREEMENT`."""
    theirs = result.percentiles_s.get("p90")
    bound = percentiles.bound(own.latency_s, 0.9, confidence)
    if theirs is None:
        return []
    low, high = (bound.value_s if end is None else end for end in (bound.low_s, bound.high_s))
    if low * (1 - AGREEMENT) <= theirs <= high * (1 + AGREEMENT):
        return []
    return [Caveat(
        code="loadgen-disagrees", hint="something changed between the two measurements: close other programs, let the "
                                       "device settle, and measure again",
        message=f"LoadGen saw a p90 of {theirs * 1e3:.3f} ms, {disagreement(bound.value_s, result):+.1%} against the "
                f"own {bound.value_s * 1e3:.3f} ms ({low * 1e3:.3f}-{high * 1e3:.3f})")]
