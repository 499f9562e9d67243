"""Timing in words and tables: verdicts, the other scenarios, energy, sustained load, turns, and layers by time."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from edgebench import percentiles, roofline, roofline_charts, scenario_scores, sustained
from edgebench.drawing import NEUTRAL, Panel, Variant, headline_score, trace_of
from edgebench.observed import Observed, Steadiness
from edgebench.roofline_charts import PRECISION_COLOURS
from edgebench.score_tables import Cell, cell, distinct
from edgebench.timing_charts import last_verdict, minutes, timeline
from edgebench.timing_types import Comparison, LayerTime, QueryTrace
from edgebench.wording import decimals, fixed, span

if TYPE_CHECKING:
    from edgebench.interleaved import Paired

SHOWN_LAYERS = 15
SHOWN_FREQUENCIES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class TextTable:
    """A small table with a row per variant."""

    title: str
    headers: tuple[str, ...]
    """Of the columns after the first, which is the variant's."""
    rows: tuple[tuple[Variant, tuple[Cell, ...]], ...]
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerRow:
    """One layer, or the rest of them."""

    name: str
    type: str
    precision: str
    colour: str
    time: str
    share: str
    width: float
    """Of its bar, in percent of the longest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TypeRow:
    """What all layers of a type take, in the reference and in the variant."""

    type: str
    before: str
    after: str
    change: str
    precision: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Layers:
    """Where the time of one inference goes."""

    rows: tuple[LayerRow, ...]
    total: str
    precisions: tuple[tuple[str, str, str], ...]
    """Name, colour and share of the time."""
    changes: tuple[TypeRow, ...]
    """By type, against the reference; empty without one."""
    against: str
    """Label of the reference, or why there is no comparison."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VariantTiming:
    """Everything about one variant's timing, to be unfolded."""

    variant: Variant
    summary: str
    """A few numbers and the verdict."""
    unsteady: bool
    verdicts: tuple[tuple[str, str, str], ...]
    """Scenario, what was found, what to do."""
    timeline: Panel | None
    minutes: Panel | None
    notes: tuple[str, ...]
    """Throttling, and what was not observed and why."""
    layers: Layers | None
    layers_absent: str


def variant_timings(variants: Sequence[Variant]) -> list[VariantTiming]:
    """Return what is told of each variant that was timed, or whose layers are known."""
    lines = {panel.variant.index: panel for panel in timeline(variants).panels if panel.variant is not None}
    loads = {panel.variant.index: panel for panel in minutes(variants).panels if panel.variant is not None}
    found = []
    for variant in variants:
        index, known = variant.index, layers(variant)
        if index not in lines and index not in loads and known is None and variant.run.observed is None:
            continue
        verdict = last_verdict(variant, "single-stream")
        p50 = headline_score(variant.run, "latency_p50")
        words = [f"p50 {cell(p50).text}"] if p50 is not None and p50.value is not None else []
        words += [verdict.verdict] if verdict is not None else []
        events = variant.run.observed.events if variant.run.observed is not None else ()
        words += [f"{len(events)} sign{'s' * (len(events) > 1)} of throttling"] if events else []
        found.append(VariantTiming(
            variant=variant, summary=", ".join(words), verdicts=_verdicts(variant), timeline=lines.get(index),
            unsteady=bool(events) or any(not one.steady for one in _steadiness(variant)), minutes=loads.get(index),
            notes=_notes(variant), layers=known, layers_absent="" if known else _why_no_layers(variant)))
    return found


def _steadiness(variant: Variant) -> Sequence[Steadiness]:
    return variant.run.observed.steadiness if variant.run.observed is not None else ()


def _verdicts(variant: Variant) -> tuple[tuple[str, str, str], ...]:
    observed = variant.run.observed
    if observed is None:
        return ()
    found = []
    for one in observed.steadiness:
        last, tries = one.verdicts[-1], len(one.verdicts)
        counted = "" if tries == 1 else f" after {tries} tries"
        earlier = f" Before that: {'; '.join(distinct(each.diagnosis for each in one.verdicts[:-1]))}." \
            if tries > 1 else ""
        found.append((one.scenario, f"{last.verdict}{counted}: {last.diagnosis}.{earlier}".replace("..", "."),
                      last.hint if last.verdict != "steady" else ""))
    return tuple(found)


def _notes(variant: Variant) -> tuple[str, ...]:
    observed = variant.run.observed
    if observed is None:
        return ()
    notes = []
    if observed.server is not None and observed.server.trials:
        notes.append("Server, rates tried: " + "; ".join(
            f"{trial.rate_hz:.4g}/s {trial.said} "
            f"({fixed(trial.late, 0)} of {fixed(trial.queries, 0)} late)" for trial in observed.server.trials))
    notes += [f"Throttling: {event.message}" + (", so that these timings must not be used" if event.invalidates else "")
              for event in observed.events]
    if observed.sustained is not None:
        throttling = observed.sustained.throttling
        notes += [f"Under sustained load: {words}" for words in (
            *([throttling.message] if throttling is not None else []),
            *(event.message for event in observed.sustained.events))]
    taken = observed.shared_memory
    if taken is not None and taken.available_bytes is not None:
        contiguous = "" if taken.contiguous_bytes is None else \
            f", {fixed(taken.contiguous_bytes / 1e6, 0)} MB of it in one piece (CMA)"
        notes.append(f"Opening took {fixed(taken.available_bytes / 1e6, 0)} MB of the memory that CPU and GPU share"
                     f"{contiguous}; figures of host and device overlap with this one")
    telemetry = observed.telemetry
    if telemetry is None:
        return (*notes, "No telemetry was recorded")
    notes += [f"Not observed: {one.what}: {one.reason}" for one in telemetry.absent]
    if telemetry.power.total is None and telemetry.power.total_reason:
        notes.append(f"No total power: {telemetry.power.total_reason}")
    if not telemetry.thermal.series and not any("temperature" in one.what for one in telemetry.absent):
        notes.append("No temperature was read")
    if telemetry.cost is not None and telemetry.cost.mean_s is not None:
        notes.append(f"Sampling took {fixed(telemetry.cost.mean_s * 1e6, 0)} µs per reading of a sensor"
                     + (f", {fixed(telemetry.cost.cpu_share * 100, 2)} % of one CPU"
                        if telemetry.cost.cpu_share is not None else ""))
    notes += [f"Set for the measurement: {one}" for one in observed.settings]
    if observed.ambient_c is not None:
        notes.append(f"Room at {observed.ambient_c:g} °C, as given")
    return tuple(distinct(notes))


def layers(variant: Variant) -> Layers | None:
    """Return the layers that take most of a variant's time, and how each type changed against the reference."""
    profile = variant.run.precision.profile
    if not profile:
        return None
    ranked = sorted(profile, key=lambda one: -one.time_s)
    shown, rest = ranked[:SHOWN_LAYERS], ranked[SHOWN_LAYERS:]
    total = math.fsum(one.time_s for one in profile)
    places = decimals([shown[0].time_s * 1e3])
    rest_s = math.fsum(one.time_s for one in rest)
    longest = max(shown[0].time_s, rest_s) or 1.0
    rows = [_layer_row(one, places, longest) for one in shown]
    if rest:
        rows.append(LayerRow(
            name=f"{fixed(len(rest), 0)} more", type="", precision="", colour=NEUTRAL, time=fixed(rest_s * 1e3, places),
            share=fixed(rest_s / (total or 1.0) * 100, 1), width=100 * rest_s / longest))
    shares: dict[str, float] = {}
    for one in profile:
        shares[one.precision] = shares.get(one.precision, 0.0) + one.share
    reference = variant.reference
    theirs = reference.run.precision.profile if reference is not None else ()
    if reference is None:
        against = "its reference is not in this report" if variant.run.reference is not None else ""
    else:
        against = reference.label if theirs else f"{reference.label} has no profile of its layers"
    return Layers(
        rows=tuple(rows), total=fixed(total * 1e3, decimals([total * 1e3])), against=against,
        precisions=tuple((name, PRECISION_COLOURS.get(name, NEUTRAL), fixed(share * 100, 1))
                         for name, share in sorted(shares.items(), key=lambda pair: -pair[1])),
        changes=_type_changes(theirs, profile) if theirs else ())


def _layer_row(one: LayerTime, places: int, longest: float) -> LayerRow:
    return LayerRow(name=one.name, type=one.type, precision=one.precision, time=fixed(one.time_s * 1e3, places),
                    colour=PRECISION_COLOURS.get(one.precision, NEUTRAL), share=fixed(one.share * 100, 1),
                    width=100 * one.time_s / longest)


def _type_changes(before: Sequence[LayerTime], after: Sequence[LayerTime]) -> tuple[TypeRow, ...]:
    changes = roofline.diff(before, after, by="type")[:SHOWN_LAYERS]
    places = decimals([max((abs(one.change_s) for one in changes), default=1.0) * 1e3], 4)

    def words(seconds: float | None, *, sign: bool = False) -> str:
        return "–" if seconds is None else fixed(seconds * 1e3, places, sign=sign)

    return tuple(TypeRow(
        type=one.key, before=words(one.before_s), after=words(one.after_s), change=words(one.change_s, sign=True),
        precision=" → ".join(distinct(name for name in (one.before_precision, one.after_precision) if name)))
        for one in changes)


def _why_no_layers(variant: Variant) -> str:
    return f"The runtime told no times of layers: {variant.run.precision.evidence}"


def timing_tables(variants: Sequence[Variant], paired: Sequence[Paired] = ()) -> list[TextTable]:
    """Return the tables of what was timed beside plain latency; those without a row are left out.

    Args:
        variants: As the report shows them.
        paired: What timing in turns found, for any of the variants.
    """
    found = (_turns(variants, paired), _multi_stream(variants), _server(variants), _camera(variants),
             _device_times(variants), _energy(variants), _residency(variants), _sustained(variants), _loadgen(variants),
             _roofline(variants))
    return [one for one in found if one.rows]


def _rows(variants: Sequence[Variant], of: Callable[[Variant, Observed], tuple[Cell, ...] | None],
          ) -> tuple[tuple[Variant, tuple[Cell, ...]], ...]:
    return tuple((variant, cells) for variant in variants if variant.run.observed is not None
                 and (cells := of(variant, variant.run.observed)) is not None)


def _scores(variant: Variant, *names: str) -> tuple[Cell, ...]:
    found = []
    for name in names:
        score = headline_score(variant.run, name)
        found.append(Cell(text="–") if score is None else cell(score))
    return tuple(found)


def _query(observed: Observed, scenario: str) -> QueryTrace | None:
    return next((one for one in observed.queries if one.scenario == scenario), None)


def _turns(variants: Sequence[Variant], paired: Sequence[Paired]) -> TextTable:
    rows: list[tuple[Variant, tuple[Cell, ...]]] = []
    stale = False
    for one in paired:
        for found in one.comparisons:
            sides = [next((variant for variant in variants if variant.run.variant == name
                           and variant.run.artifact.digest == one.digests.get(name)), None)
                     for name in (found.candidate, found.baseline)]
            candidate, baseline = sides
            if candidate is None or baseline is None:
                stale = True
                continue
            rows.append((candidate, (
                Cell(text=baseline.label), Cell(text=fixed(found.ratio, 3),
                                                detail=span(found.low, found.high, 3) or "too few launches"),
                Cell(text="< 0.001" if found.p_value < 0.001 else fixed(found.p_value, 3)),
                Cell(text=str(found.rounds)), Cell(text=_launches(found)), Cell(text=_told_apart(found)))))
    confidence = distinct(found.confidence for one in paired for found in one.comparisons)
    note = (f"Latency over the baseline's, from timings taken in turns by processes of their own, launched afresh "
            "again and again; below 1 is faster. Ranges are "
            f"{' or '.join(f'{level * 100:g} %' for level in confidence)} intervals.")
    note += "".join(f" By the pilot, {one.plan.words.replace('%', ' %')}." for one in paired if one.plan is not None)
    return TextTable(title="Timed in turns", rows=tuple(rows), headers=(
        "Against", "Ratio", "p", "Rounds", "Launches", "So it is"),
        note=note + (" Comparisons of artifacts that are not in this report are left out." if stale else ""))


def _launches(found: Comparison) -> str:
    return "–" if found.launches is None else str(found.launches)


def _told_apart(found: Comparison) -> str:
    if not found.different:
        return "not told apart"
    return "faster" if found.ratio < 1 else "slower"


def _multi_stream(variants: Sequence[Variant]) -> TextTable:
    def cells(variant: Variant, observed: Observed) -> tuple[Cell, ...] | None:
        trace = _query(observed, "multi-stream")
        return None if trace is None else (Cell(text=str(trace.images_per_query)), *_scores(
            variant, "multi_stream_latency_p50", "multi_stream_latency_p90", "multi_stream_latency_p99",
            "multi_stream_throughput"))

    return TextTable(title="Multi-stream", headers=("Images per query", "p50", "p90", "p99", "Throughput"),
                     rows=_rows(variants, cells), note="Latency of a whole query; queries follow each other at once.")


def _server(variants: Sequence[Variant]) -> TextTable:
    def cells(variant: Variant, observed: Observed) -> tuple[Cell, ...] | None:
        search = observed.server
        if search is None:
            return None
        rate = Cell(text="–", detail=search.reason) if search.rate_hz is None else \
            Cell(text=f"{search.rate_hz:.4g}/s", detail=search.reason)
        return (rate, Cell(text=f"{fixed(search.bound_s * 1e3, decimals([search.bound_s * 1e3]))} ms",
                           detail=f"at {search.q * 100:g} %"),
                *_scores(variant, "server_latency_p50", "server_latency_p99"), Cell(text=str(len(search.trials))))

    return TextTable(title="Server", rows=_rows(variants, cells), headers=(
        "Highest rate", "Bound", "p50 there", "p99 there", "Rates tried"),
        note="Poisson arrivals; latency counts from the scheduled arrival, so that waiting is in it.")


def _camera(variants: Sequence[Variant]) -> TextTable:
    def cells(variant: Variant, observed: Observed) -> tuple[Cell, ...] | None:
        trace = _query(observed, "camera")
        if trace is None:
            return None
        summary = scenario_scores.camera_summary(trace)
        policy = "all wait" if trace.policy == "queue" else "newest first"
        return (Cell(text=f"{trace.rate_hz or 0:g}/s", detail=policy),
                Cell(text=f"{(trace.limit_s or 0) * 1e3:.4g} ms"),
                *_scores(variant, "camera_miss_rate"),
                Cell(text=f"{fixed(summary.dropped, 0)} of {fixed(summary.frames, 0)}"), *_scores(
                    variant, "camera_latency_p50", "camera_latency_p99", "camera_jitter", "camera_age_mean",
                    "camera_age_peak"))

    return TextTable(title="Camera", rows=_rows(variants, cells), headers=(
        "Frames", "Deadline", "Missed", "Dropped", "p50", "p99", "Jitter", "Age, mean", "Age, peak"),
        note="Missed: without a result before the deadline, dropped frames included. Age: how old the frame of the "
             "newest result is.")


def _device_times(variants: Sequence[Variant]) -> TextTable:
    def cells(variant: Variant, observed: Observed) -> tuple[Cell, ...] | None:
        return None if observed.device_times is None else _scores(
            variant, "device_h2d_p50", "device_compute_p50", "device_d2h_p50", "device_enqueue_p50", "device_memory")

    return TextTable(title="On the device", rows=_rows(variants, cells), headers=(
        "Copy in", "Computing", "Copy out", "Enqueueing", "Memory"),
        note="Medians by the device's own events, beside wall time; enqueueing is the host's.")


def _energy(variants: Sequence[Variant]) -> TextTable:
    # Mostly the same for all variants, and too long for cells.
    unknown: dict[str, None] = {}

    def cells(variant: Variant, observed: Observed) -> tuple[Cell, ...] | None:
        if observed.energy is None:
            return None
        idle = observed.energy.idle_w
        if observed.energy.gross_j is None:
            unknown[f"Unknown (–): {observed.energy.reason}." if observed.energy.reason else "Unknown (–)."] = None
            return Cell(text="–"), Cell(text="–"), Cell(text="–"), Cell(text=observed.energy.scope or "–")
        return (*_scores(variant, "energy_per_inference", "energy_per_inference_net"),
                Cell(text="–" if idle is None else f"{fixed(idle, 2)} W"), Cell(text=observed.energy.scope or "–"))

    rows = _rows(variants, cells)
    return TextTable(title="Energy per inference", rows=rows, headers=("Gross", "Above idle", "Idle", "Scope"),
                     note=" ".join((
                         "Of the single-stream inferences; ranges are twice the uncertainty that sampling leaves.",
                         *unknown)))


def _residency(variants: Sequence[Variant]) -> TextTable:
    rows = []
    for variant in variants:
        for one in variant.run.observed.residency if variant.run.observed is not None else ():
            ranked = sorted(one.shares.items(), key=lambda pair: -pair[1])
            rows.append((variant, (
                Cell(text=one.policy), Cell(text=f"{fixed(one.mean_hz / 1e9, 2)} GHz"),
                Cell(text=f"{fixed(one.top_share * 100, 1)} %"),
                Cell(text=", ".join(f"{fixed(int(khz) / 1e6, 2)} GHz {fixed(share * 100, 0)} %"
                                    for khz, share in ranked[:SHOWN_FREQUENCIES])))))
    return TextTable(title="CPU clocks", rows=tuple(rows), headers=(
        "Cluster", "Mean", "At the highest", "Where most of the time went"),
        note="From the kernel's count of the time at each frequency, from before the first warm-up until after the "
             "last scenario; idle time counts.")


def _sustained(variants: Sequence[Variant]) -> TextTable:
    runs = []

    def cells(variant: Variant, observed: Observed) -> tuple[Cell, ...] | None:
        found = observed.sustained
        if found is None:
            return None
        runs.append(replace(found, variant=variant.label))
        first, last = found.minutes[0], found.minutes[-1]
        places = decimals([first.p50_s * 1e3])
        return (Cell(text=f"{fixed(found.duration_s / 60, 1)} min"),
                Cell(text=f"{fixed(first.p50_s * 1e3, places)} ms"),
                Cell(text=f"{fixed(last.p50_s * 1e3, places)} ms"),
                Cell(text=f"{fixed(last.p99_s * 1e3, places)} ms"),
                Cell(text=f"{fixed(last.throughput_hz, decimals([last.throughput_hz]))}/s"),
                Cell(text=f"{fixed(found.slowdown * 100, 1, sign=True)} %",
                     detail=found.throttling.message if found.throttling else "no slowing down seen"))

    rows = _rows(variants, cells)
    note = ""
    if len(runs) > 1:
        ranks = sustained.rank_stability(runs)
        note = "The variants keep their order from the first to the last minute." if not ranks.swapped else \
            "The order turned between the first and the last minute: " + "; ".join(
                f"{one} and {other}" for one, other in ranks.swapped) + "."
    return TextTable(title="Sustained load", rows=rows, note=note, headers=(
        "Lasted", "p50, first minute", "p50, last", "p99, last", "Throughput, last", "Slowdown"))


def _roofline(variants: Sequence[Variant]) -> TextTable:
    return TextTable(title="Under the roofline", headers=roofline_charts.HEADERS, rows=roofline_charts.rows(variants),
                     note="Operations and bytes of one inference, as the graph's shapes have them; reached at the "
                          "median single-stream latency, on a GPU by its own events, under ceilings measured on the "
                          "same machine.")


def _loadgen(variants: Sequence[Variant]) -> TextTable:
    def cells(variant: Variant, observed: Observed) -> tuple[Cell, ...] | None:
        found, trace = observed.loadgen, trace_of(variant.run, "single-stream")
        if found is None or trace is None or observed.invalid:
            return None
        own = percentiles.early_stopping_estimate(trace.latency_s, 0.9)
        places = decimals([sorted(trace.latency_s)[len(trace.latency_s) // 2] * 1e3])

        def ms(seconds: float | None) -> Cell:
            return Cell(text="–" if seconds is None else f"{fixed(seconds * 1e3, places)} ms")

        theirs, mine = found.percentiles_s.get("p90"), percentiles.bound(trace.latency_s, 0.9).value_s
        return (ms(mine), ms(theirs),
                Cell(text="–" if theirs is None else f"{fixed((theirs / mine - 1) * 100, 1, sign=True)} %"),
                ms(own), ms(found.early_stopping_s), Cell(text=fixed(found.queries, 0)),
                Cell(text="valid" if found.valid else "invalid", detail="; ".join(found.reasons)))

    versions = distinct(variant.run.observed.loadgen.version for variant in variants
                        if variant.run.observed is not None and variant.run.observed.loadgen is not None)
    return TextTable(title="Single-stream by LoadGen", rows=_rows(variants, cells), headers=(
        "p90", "LoadGen's p90", "Difference", "Early stopping", "LoadGen's", "Its queries", "Its verdict"),
        note=f"MLPerf's LoadGen {', '.join(versions)} on the same session, right after the own loop. Early stopping is "
             "MLPerf's upper bound of the p90 at 99 % confidence, from the own timings and by LoadGen.")
