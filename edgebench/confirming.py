"""Timing verdicts before they count: failures held against timings in turns, invalid timings refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from edgebench import metric_names, paired
from edgebench.errors import InvalidInput
from edgebench.gate import Gate, Rerun
from edgebench.policy import Policy
from edgebench.record import Run, decode, read_sealed
from edgebench.timing_types import PairedTrace

FILE, SCHEMA = "paired.json", "edgebench.paired/1"
"""What ``profile --paired`` leaves in its output folder: each variant in turns with its reference, in new processes."""


def confirmed(judge: Callable[[Mapping[str, Rerun] | None], Gate], reruns: Mapping[str, Rerun]) -> Gate:
    """Return the verdicts, where failures that the re-run covers stand only if it shows them too.

    Args:
        judge: Judges with these re-runs, or with none.
        reruns: By the id of the rule; other rules are judged without any.
    """
    first = judge(None)
    if not any(one.status == "fail" and one.rule in reruns for one in first.verdicts):
        return first
    again = judge(reruns)
    return replace(first, verdicts=tuple(new if new.rule in reruns else old
                                         for old, new in zip(first.verdicts, again.verdicts, strict=True)))


def reruns(policy: Policy, run: Run, folder: Path) -> dict[str, Rerun]:
    """Return what timings in turns say about the rules of a policy; empty where there are none of this run.

    Ratios to the reference confirm rules on the centre of latency, this variant's own timings confirm budgets.

    Raises:
        InvalidInput: The file that holds them is damaged or of another schema.
    """
    file = folder.resolve().parent / FILE
    if not file.is_file():
        return {}
    data = read_sealed(file)
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        raise InvalidInput(f"{file}: expected schema {SCHEMA!r}", "it was written by another version of edgebench")
    trace = decode(PairedTrace, data.get("trace"), f"{file}.trace")
    if run.variant not in trace.names or (data.get("device"), data.get("threads")) != (
            run.device.id, run.settings.threads):
        return {}
    if dict(data.get("digests") or {}).get(run.variant, run.artifact.digest) != run.artifact.digest:
        return {}
    own = trace.names.index(run.variant)
    fresh = Rerun(latency_s=tuple(value for blocks in trace.rounds for block in blocks if block.session == own
                                  for value in block.latency_s))
    found = {rule.id: fresh for rule in policy.rules
             if rule.against is None and rule.metric.startswith("latency_p")}
    if run.reference is not None and run.reference.variant in trace.names:
        ratios = Rerun(log_ratios=tuple(paired.log_ratios(trace, run.reference.variant, run.variant).tolist()),
                       rounds_each=paired.ROUNDS_PER_LAUNCH)
        found |= {rule.id: ratios for rule in policy.rules if rule.in_turns}
    return found


def without_invalid(found: Gate, run: Run) -> Gate:
    """Return the verdicts, those on timings in error where the device was throttled while it was timed."""
    events = run.observed.invalid if run.observed is not None else ()
    if not events:
        return found
    reason = "; ".join(event.message for event in events)
    return replace(found, verdicts=tuple(
        replace(one, status="error", message=f"the timings are invalid: {reason}", needed=None,
                hint="cool the device, supply more power or lower its load, and measure again with --force")
        if one.of == metric_names.PERFORMANCE and metric_names.is_timing(one.metric) and one.value is not None else one
        for one in found.verdicts))
