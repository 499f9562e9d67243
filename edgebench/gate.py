"""Runs and a policy → verdicts: passed, failed, inconclusive, in error or skipped, each with what decided it.

A limit is kept where a one-sided test shows it, broken where the opposite test shows it, at the policy's confidence
each; in between the verdict is inconclusive, with how many images or timings would decide. Needs no runtime.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from edgebench import compare, evidence, metric_names, sequential
from edgebench.errors import ExitCode, InvalidInput
from edgebench.evidence import Absent, Evidence
from edgebench.floors import command
from edgebench.policy import Policy, Rule, Severity
from edgebench.published import nothing_known, reference_verdict_parts
from edgebench.record import Evaluation, Run
from edgebench.rule_words import allowance, demand, quantity, spoken
from edgebench.timing_types import NoiseFloor

Status = Literal["pass", "fail", "inconclusive", "error", "skipped"]
Outcome = Literal["fail", "warning", "error", "inconclusive", "skipped", "pass"]
"""A status, where a failure that stops nothing is a warning: what every output says and counts."""
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)
"""Those that need attention first."""
Conclusion = Literal["FAIL", "NOT JUDGED", "UNDECIDED", "PASS"]
Placed = tuple[Run, Path | None]
"""A run and the folder of its file, where its predictions lie; None where only the run file is at hand."""

SANITY = "baseline-sanity"
"""Id of the verdict on the FP32 reference itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The outcome of one rule in one place."""

    rule: str
    status: Status
    severity: Severity
    message: str
    """What was found against what is allowed, in words, or why nothing could be decided."""
    hint: str = ""
    """What to do next; empty where there is nothing to advise."""
    demand: str
    """What the rule demands, in words."""
    because: str = ""
    of: str
    """Property, ``performance`` or ``run``."""
    metric: str
    where: str = ""
    """Data set and condition."""
    against: str | None = None
    """Variant that a change is against."""
    limit: float | None = None
    """On `value`, in its terms."""
    value: float | None = None
    """In the terms of the rule: a value, a change, or a relative change."""
    low: float | None = None
    """Lower end of the interval that decided; each end alone at `confidence`."""
    high: float | None = None
    unit: str = ""
    confidence: float | None = None
    """One-sided."""
    n: int | None = None
    sampled: str = ""
    """What `n` counts: images or timings."""
    needed: int | None = None
    """How many of them would decide, where inconclusive."""
    p_kept: float | None = None
    """Of the hypothesis that the limit is broken."""
    p_broken: float | None = None
    """Of the hypothesis that the limit is kept, corrected within the family, or over the rule's places."""
    method: str = ""
    confirmed: bool | None = None
    """Whether an interleaved re-run confirmed a timing failure; None where there was none."""
    line: int = 0
    """Of the rule in the policy's file."""

    @property
    def outcome(self) -> Outcome:
        """What every output calls it."""
        return "warning" if self.status == "fail" and self.severity == "warning" else self.status


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """All verdicts on one run."""

    policy: str
    title: str
    path: str
    """File of the policy."""
    variant: str
    device: str
    created_at: str
    reference: str | None
    baseline: str | None
    allowed: tuple[str, ...]
    """Differences to the baseline or reference that were let pass, in words."""
    verdicts: tuple[Verdict, ...]
    notes: tuple[str, ...] = ()
    """What else should be known, such as that there is no baseline yet."""

    def count(self, status: Status) -> int:
        """Return how many verdicts have that status."""
        return sum(one.status == status for one in self.verdicts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rerun:
    """Fresh timings that a failure must stand before it counts."""

    log_ratios: tuple[float, ...] = ()
    """Natural logarithms of this variant's latency over the other's, launch by launch, timed in turns."""
    rounds_each: int = 1
    """Rounds in each launch of timings to come."""
    latency_s: tuple[float, ...] = ()
    """Latencies of this variant alone, for absolute budgets."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """How many images or timings a rule needs to be decidable, from a pilot run."""

    rule: str
    where: str
    have: int | None
    needed: int | None
    """None where no number decides it, or nothing is known."""
    sampled: str
    assumption: str
    """What is taken to be true, in words."""
    power: float
    confidence: float


@dataclass(frozen=True, slots=True)
class _Judged:
    """A rule's evidence in one place, before corrections for many tests."""

    rule: Rule
    found: Evidence
    kept: float
    broken: float


def judge(policy: Policy, run: Placed, *, reference: Placed | None = None, baseline: Placed | None = None,
          allow: Collection[str] = (), floors: Mapping[str, NoiseFloor] | None = None,
          reruns: Mapping[str, Rerun] | None = None) -> Gate:
    """Return the verdicts of a policy on a finished run.

    Args:
        policy: Whose rules are judged.
        run: What is judged.
        reference: Its FP32 sibling, for speed, memory and energy against it; quality against it is stored in the run.
        baseline: An earlier run, such as the last release.
        allow: Fields in which the other runs may differ, of `edgebench.compare.FIELDS`; they are recorded.
        floors: Noise floors of the device by metric: changes that equal runs show by chance.
        reruns: Fresh timings by the id of the rule, without which a timing failure is not believed. None where no
            device is at hand: failures against the reference and of budgets then stand, and say that they were not
            confirmed; those against a baseline stand where the metric has a floor, and are inconclusive without.

    Raises:
        InvalidInput: A run that rules compare with is not comparable; or predictions are damaged.
        UsageError: `allow` names no field.
    """
    mine, others = run[0], {"reference": reference, "baseline": baseline}
    let_pass, unlike = _comparable(policy, mine, others, allow)
    changes = _changes(policy, run, baseline)
    verdicts: dict[int, list[Verdict]] = {number: [] for number in range(len(policy.rules))}
    judged: list[tuple[int, _Judged]] = []
    for number, rule in enumerate(policy.rules):
        other = others[rule.against] if rule.against else None
        found = _found(rule, mine, other, changes, unlike)
        for one in found:
            refused = _below_floor(rule, one, other, floors or {})
            if refused is not None:
                verdicts[number].append(_without(rule, "error", refused))
            elif isinstance(one, Absent):
                status: dict[str, Status] = {"error": "error", "skip": "skipped", "fail": "fail"}
                verdicts[number].append(_without(rule, status[rule.missing], one))
            else:
                judged.append((number, _tested(rule, one)))
    for (number, tested), broken in zip(
            judged, evidence.corrected(policy, [(one.rule, one.broken) for _, one in judged]), strict=True):
        against = others[tested.rule.against] if tested.rule.against else None
        named = against[0].variant if against else \
            mine.reference.variant if tested.rule.against and mine.reference else None
        verdicts[number].append(_verdict(replace(tested, broken=broken), policy, named, reruns,
                                          (floors or {}).get(tested.rule.metric), run))
    shown = reference[0] if reference else mine
    ordered = [verdict for number in sorted(verdicts) for verdict in verdicts[number]]
    return Gate(policy=policy.id, title=policy.title, path=policy.path, variant=mine.variant, device=mine.device.id,
                created_at=mine.created_at, reference=mine.reference.variant if mine.reference else None,
                baseline=baseline[0].variant if baseline else None, allowed=let_pass,
                verdicts=(*ordered, *_sanity(shown)), notes=tuple(filter(None, [nothing_known(shown)])))


def exit_code(gates: Sequence[Gate], *, strict: bool = False) -> ExitCode:
    """Return the exit code of some gates: a finding first, then what could not be judged, then what is not decided.

    Warnings never change it. Inconclusive verdicts do only where `strict` asks for it.
    """
    stopping = {one.status for gate in gates for one in gate.verdicts if one.severity == "error"}
    if "fail" in stopping:
        return ExitCode.FAILED
    if "error" in stopping:
        return ExitCode.UNMEASURABLE
    return ExitCode.INCONCLUSIVE if strict and "inconclusive" in stopping else ExitCode.PASSED


def conclusion(gates: Sequence[Gate], *, strict: bool = False) -> Conclusion:
    """Return what some gates come to, in a word; what is inconclusive is UNDECIDED whether it is let pass or not."""
    code = exit_code(gates, strict=strict)
    if code in (ExitCode.FAILED, ExitCode.UNMEASURABLE):
        return "FAIL" if code == ExitCode.FAILED else "NOT JUDGED"
    undecided = any(one.status == "inconclusive" and one.severity == "error" for gate in gates for one in gate.verdicts)
    return "UNDECIDED" if undecided else "PASS"


def totals(gates: Sequence[Gate]) -> dict[Outcome, int]:
    """Return how many verdicts of each outcome some gates hold, zeros included."""
    return {outcome: sum(one.outcome == outcome for gate in gates for one in gate.verdicts) for outcome in OUTCOMES}


def spoken_totals(counts: Mapping[Outcome, int]) -> str:
    """Return totals in words: ``2 failed, 1 warned, 5 passed``."""
    words = {"pass": "passed", "fail": "failed", "warning": "warned", "error": "could not be judged"}
    return ", ".join(f"{count} {words.get(outcome, outcome)}" for outcome, count in counts.items() if count) \
        or "nothing was judged"


def by_urgency(verdicts: Sequence[Verdict]) -> list[Verdict]:
    """Return verdicts with those first that need attention."""
    return sorted(verdicts, key=lambda one: (OUTCOMES.index(one.outcome), one.severity == "warning"))


def plan(policy: Policy, run: Placed, *, reference: Placed | None = None, baseline: Placed | None = None,
         allow: Collection[str] = ()) -> tuple[Need, ...]:
    """Return how many images and timings each rule needs, from how much a pilot run flips and spreads.

    Changes are taken to be none in truth, with the pilot's flips and spread; absolute budgets as the pilot shows them.

    Args:
        policy: Whose rules are planned.
        run: The pilot.
        reference: Its FP32 sibling.
        baseline: An earlier run.
        allow: Fields in which the other runs may differ, of `edgebench.compare.FIELDS`.

    Raises:
        InvalidInput: A run that rules compare with is not comparable; or predictions are damaged.
        UsageError: `allow` names no field.
    """
    others = {"reference": reference, "baseline": baseline}
    _, unlike = _comparable(policy, run[0], others, allow)
    needs: list[Need] = []
    changes = _changes(policy, run, baseline)
    for rule in policy.rules:
        confidence = policy.confidence_of(rule)
        for one in _found(rule, run[0], others[rule.against] if rule.against else None, changes,
                          unlike):
            if isinstance(one, Absent):
                needs.append(Need(rule=rule.id, where=one.where, have=None, needed=None, sampled="", power=policy.power,
                                  assumption=f"nothing is known: {one.reason}", confidence=confidence))
                continue
            truth = one.value if rule.against is None else 0.0
            words = f"it truly is {spoken(rule, one.value, one.unit)}" if rule.against is None else \
                "it truly changes nothing, with the flips and the spread of this run"
            needs.append(Need(
                rule=rule.id, where=one.where, have=one.n if one.sampled != "none" else None, assumption=words,
                needed=one.needed(rule.bound, truth, confidence, policy.power), sampled=one.sampled, power=policy.power,
                confidence=confidence))
    return tuple(needs)


def _found(rule: Rule, mine: Run, other: Placed | None, changes: tuple[Evaluation, ...] | None,
           unlike: Absent | None) -> tuple[Evidence | Absent, ...]:
    if rule.against == "reference" and rule.of == metric_names.PERFORMANCE and unlike is not None \
            and rule.metric != "artifact_size":
        return (unlike,)
    if rule.against != "baseline":
        return evidence.find(rule, mine, other[0] if other else None)
    if other is None:
        return (Absent(where="", reason="there is no baseline", hint="name one: --baseline RUN"),)
    if rule.of != metric_names.PERFORMANCE and changes is None:
        return (Absent(where="", reason="the predictions of the baseline or of this run are not at hand",
                       hint="name the folders that hold run.json and predictions"),)
    return evidence.find(rule, mine, other[0], changes)


def _comparable(policy: Policy, mine: Run, others: Mapping[str, Placed | None], allow: Collection[str],
                ) -> tuple[tuple[str, ...], Absent | None]:
    """Return the differences that are allowed, and why performance cannot be compared with the reference, if so.

    A reference that was timed otherwise is still one for quality.

    Raises:
        InvalidInput: The baseline is not comparable.
        UsageError: `allow` names no field.
    """
    allowed: list[str] = []
    unlike = None
    for kind, other in others.items():
        rules = [rule for rule in policy.rules if rule.against == kind]
        if other is None or not rules:
            continue
        timed = {rule.metric for rule in rules if rule.of == metric_names.PERFORMANCE}
        found = compare.timing_differences(other[0], mine, timed) if timed else ()
        quality = [rule for rule in rules if rule.of != metric_names.PERFORMANCE] if kind == "baseline" else []
        if quality:
            found += compare.data_differences(other[0], mine)
        for rule in quality:
            corresponding = [one for one in other[0].evaluations if one.property == rule.of]
            found += compare.other_sets(corresponding, evidence.matching(rule, mine.evaluations), rule.of or "")
        found = tuple(dict.fromkeys(found))
        if kind == "reference":
            try:
                compare.refuse(found, allow, (f"the {kind} {other[0].variant}", mine.variant))
            except InvalidInput as error:
                unlike = Absent(where="", reason=error.message, hint=error.hint)
                continue
        allowed += [one.words for one in compare.refuse(found, allow, (f"the {kind} {other[0].variant}", mine.variant))]
    return tuple(dict.fromkeys(allowed)), unlike


def _changes(policy: Policy, run: Placed, baseline: Placed | None) -> tuple[Evaluation, ...] | None:
    """Return the evaluations against the baseline that rules ask for; None where they cannot be had."""
    needed = {rule.of for rule in policy.rules if rule.against == "baseline" and rule.of is not None} - {
        metric_names.PERFORMANCE}
    if not needed or baseline is None:
        return None
    if compare.is_reference(baseline[0], run[0]):
        return run[0].evaluations
    if run[1] is None or baseline[1] is None:
        return None
    before, after = compare.common_predictions((baseline[0], baseline[1]), (run[0], run[1]), needed)
    return compare.changes(run[0], after, before, needed)


def _below_floor(rule: Rule, one: Evidence | Absent, other: Placed | None, floors: Mapping[str, NoiseFloor],
                 ) -> Absent | None:
    """Return why a limit cannot be judged on this device: equal runs differ by as much."""
    floor = floors.get(rule.metric)
    if floor is None or rule.against is None or not metric_names.is_timing(rule.metric) or isinstance(one, Absent):
        return None
    base = next((score.value for score in other[0].performance if score.name == rule.metric), None) if other else None
    if not rule.relative and floor.absolute is not None:
        if rule.limit >= floor.absolute:
            return None
        limit, noise = (quantity(value, floor.unit, change=True).lstrip("+") for value in (rule.limit, floor.absolute))
    elif floor.floor is None:
        return Absent(where=one.where, hint="give the rule an absolute margin",
                      reason=f"{rule.metric} was 0 or below in some of the equal runs: no relative change of it can be "
                             "told from noise")
    else:
        margin = rule.limit if rule.relative else rule.limit / base if base else math.inf
        if margin >= floor.floor:
            return None
        # Rounded up, so that a limit raised to what is printed is enough.
        limit, noise = f"{margin:.2%}", f"{math.ceil(floor.floor * 1e4 - 1e-9) / 1e2:.2f}%"
    return Absent(
        where=one.where, hint=f"raise the limit to {noise} or more, or quiet the device and measure its floor again",
        reason=f"a limit of {limit} is below this device's noise floor: equal runs differ by up to {noise} in "
               f"{rule.metric}")


def _tested(rule: Rule, found: Evidence) -> _Judged:
    return _Judged(rule, found, *evidence.tested(rule, found))


def _verdict(one: _Judged, policy: Policy, against: str | None, reruns: Mapping[str, Rerun] | None,
             floor: NoiseFloor | None, run: Placed) -> Verdict:
    rule, found, confidence = one.rule, one.found, policy.confidence_of(one.rule)
    alpha = 1.0 - confidence
    status: Status = "fail" if one.broken <= alpha else "pass" if one.kept <= alpha else "inconclusive"
    confirmed, note, hint = None, "", ""
    if status == "fail" and metric_names.is_timing(rule.metric) and (
            found.sampled == "timings" or rule.against == "baseline"):
        if rule.against == "baseline" and reruns is None:
            status, note, hint = _on_another_day(floor, rule, run)
        else:
            confirmed, note = _confirmed(rule, reruns, alpha)
            status = "inconclusive" if confirmed is False else status
    ends = found.interval(confidence)
    needed = found.needed(rule.bound, found.value, confidence, policy.power) if status == "inconclusive" else None
    # A failure that a correction held back, or that was not confirmed, is not a matter of more of the same.
    needed = needed if needed is not None and needed > found.n and not note else None
    if status == "inconclusive" and not note:
        hint = f"{needed:,} {found.sampled} would decide it, were the truth as estimated" if needed else \
            f"more {found.sampled} would decide it; the estimate is next to the limit"
    low, high = (None if end is None or math.isinf(end) else end for end in ends) if ends else (None, None)
    return Verdict(
        rule=rule.id, status=status, severity=rule.severity, message=_message(rule, found, ends, confidence) + note,
        hint=hint, demand=demand(rule), because=rule.because, of=rule.of or "", metric=rule.metric, where=found.where,
        against=against, limit=rule.bound, value=found.value, low=low, high=high, unit=found.unit,
        confidence=confidence if ends else None, n=found.n, sampled="" if found.sampled == "none" else found.sampled,
        needed=needed, p_kept=one.kept, p_broken=one.broken, method=found.method, confirmed=confirmed, line=rule.line)


def _on_another_day(floor: NoiseFloor | None, rule: Rule, run: Placed) -> tuple[Status, str, str]:
    """Return what becomes of a timing failure against a run of another day, what to say about it, and the hint."""
    if floor is not None:
        shown = floor.floor if rule.relative or floor.absolute is None else None
        noise = quantity(shown, "fraction") if shown is not None else \
            quantity(floor.absolute or 0.0, floor.unit, change=True).lstrip("+")
        return "fail", f"; above this device's noise floor of {noise}", ""
    note = ("; not confirmed: runs of different days differ by more than their intervals say, and by how much equal "
            "runs do on this device is not known")
    return "inconclusive", note, (f"measure it on the device: {command(*run)}; then judge again "
                                  "with --noise-floor noise-floor.json")


def _confirmed(rule: Rule, reruns: Mapping[str, Rerun] | None, alpha: float) -> tuple[bool | None, str]:
    """Return whether fresh timings show the failure too, and what to say about it."""
    if reruns is None:
        return None, "; not confirmed by a re-run"
    again, q = reruns.get(rule.id), metric_names.quantile(rule.metric)
    if again is None or not (again.log_ratios or again.latency_s):
        return False, "; a re-run is still to confirm it"
    if again.log_ratios and rule.relative:
        limit = 1.0 + rule.bound
        evidence_ = sequential.ratio_evidence(again.log_ratios, limit, "above" if rule.upper else "below")
        shown, n = bool(evidence_.max() >= -math.log(alpha)), len(again.log_ratios)
        median = math.exp(float(np.median(again.log_ratios))) - 1.0
        least = sequential.least_pairs(alpha)
        few = "" if n >= least else f"; fewer than {least} can show nothing: --paired {least * again.rounds_each}"
        found = f"{n:,} launches in turns: {quantity(median, 'fraction', change=True).replace('points', '%')}{few}"
    elif again.latency_s and q is not None and rule.against is None:
        fresh = evidence.from_timings(np.asarray(again.latency_s), q)
        shown = evidence.tested(rule, fresh)[1] <= alpha
        found = f"{fresh.n:,} fresh timings: {quantity(fresh.value, 's')}"
    else:
        return False, "; the re-run does not hold what could confirm it"
    return shown, f"; {'confirmed' if shown else 'not confirmed'} by a re-run of {found}"


def _message(rule: Rule, found: Evidence, ends: tuple[float, float] | None, confidence: float) -> str:
    said = spoken(rule, found.value, found.unit)
    if rule.of == metric_names.RUN and rule.metric == "precision_achieved":
        return found.method
    bound = allowance(rule, found.unit)
    if ends is None:
        return f"{said}; {bound}"
    low, high = (spoken(rule, end, found.unit) for end in ends)
    return (f"{said}, between {low} and {high} (each end at {confidence:.4g} confidence, {found.n:,} {found.sampled}); "
            f"{bound}")


def _without(rule: Rule, status: Status, why: Absent) -> Verdict:
    return Verdict(rule=rule.id, status=status, severity=rule.severity, message=why.reason, hint=why.hint,
                   demand=demand(rule), because=rule.because, of=rule.of or "", metric=rule.metric, where=why.where,
                   limit=rule.bound, line=rule.line)


def _sanity(reference: Run) -> tuple[Verdict, ...]:
    found = reference_verdict_parts(reference)
    if found is None:
        return ()
    level, message, hint = found
    status: Status = "pass" if level == "fine" else "fail" if level == "caveat" else "error"
    return (Verdict(
        rule=SANITY, status=status, severity="warning" if level == "caveat" else "error", message=message, hint=hint,
        demand="the FP32 reference is as accurate as published", of="accuracy", metric="accuracy_top1",
        because="Most losses blamed on quantization are wrong preprocessing, labels or weights."),)
