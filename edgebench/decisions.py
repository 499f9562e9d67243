"""How rules were decided while images came in: what stopping early leaves beside a run file, and what it says of rules.

Who looks often has to pay for it: a rule that was followed is judged by the evidence it was followed with, never by a
test that is made for a fixed number of images.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from edgebench import metric_names, sequential
from edgebench.errors import InvalidInput
from edgebench.gate import Gate, Verdict
from edgebench.policy import Policy, Rule
from edgebench.reading import place
from edgebench.record import PassRecord, Run, decode, read_sealed, to_builtins, write_sealed
from edgebench.rule_words import allowance, spoken
from edgebench.sequential import Step

DECISIONS = "decisions.json"
DECISIONS_SCHEMA = "edgebench.decisions/1"
SEED = 0
"""Of the order of images."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DecisionPath:
    """How a rule was decided while images or timings came in."""

    rule: str
    where: str
    """Data set, and condition and preset where they are unusual."""
    unit: str
    limit: float
    """On the values of the steps."""
    confidence: float
    """One-sided."""
    sampled: str
    """What was counted: images, timings, or launches (fresh processes) of timing in turns."""
    steps: tuple[Step, ...]
    change: bool = False
    """Whether values are changes, told in points and with a sign."""
    method: str = ""

    @property
    def decision(self) -> Literal["pass", "fail"] | None:
        """How it was decided; None where it was not."""
        return sequential.decision(self.steps, 1.0 - self.confidence)

    @property
    def decided(self) -> str:
        """How and when it was decided, in words."""
        how, n = self.decision, sequential.steps_until_decision(self.steps, 1.0 - self.confidence)
        return f"{how} after {n:,} {self.sampled}" if how else f"not decided by {self.steps[-1].n:,} {self.sampled}"


@dataclass(frozen=True, slots=True, kw_only=True)
class DecisionFile:
    """What sequential evaluation leaves beside the run file."""

    schema: str
    policy: str
    """Id of the policy."""
    paths: tuple[DecisionPath, ...]
    until: str = ""
    """`named` policy."""
    artifact: str = ""
    """Digest of what was evaluated."""
    baseline: str = ""
    """`identity` of the run that rules against a baseline compared with; empty where none were followed."""
    seed: int | None = None
    """Of the order of the images."""
    passes: tuple[PassRecord, ...] = ()
    """What was evaluated in that order, as far as it went."""


def named(policy: Policy) -> str:
    """Return the id of a policy with a digest of all that decides in it: ``mine@0123456789ab``."""
    told = {"id", "title", "purpose", "path", "because", "line", "severity", "missing"}

    def deciding(table: dict[str, object]) -> dict[str, object]:
        return {key: value for key, value in table.items() if key not in told}

    parts = {**deciding(to_builtins(policy)), "rules": [{"id": rule.id, **deciding(to_builtins(rule))}
                                                        for rule in policy.rules]}
    return f"{policy.id}@{hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]}"


def load(folder: Path) -> DecisionFile | None:
    """Return what sequential evaluation left in a variant's folder; None where everything was evaluated at once.

    Raises:
        InvalidInput: The file is damaged or of another schema.
    """
    file = folder / DECISIONS
    if not file.is_file():
        return None
    data = read_sealed(file)
    if not isinstance(data, dict) or data.get("schema") != DECISIONS_SCHEMA:
        raise InvalidInput(f"{file}: expected schema {DECISIONS_SCHEMA!r}",
                           "it was written by another version of edgebench")
    return decode(DecisionFile, data, str(file))


def identity(run: Run) -> str:
    """Return what tells a run from all others: ``variant@time of creation``."""
    return f"{run.variant}@{run.created_at}"


def known(policy: Policy, folder: Path, artifact: str) -> DecisionFile | None:
    """Return what was decided about an artifact by that very policy; None where nothing was.

    Raises:
        InvalidInput: The file is damaged or of another schema.
    """
    found = load(folder)
    same = found is not None and (found.until, found.artifact, found.seed) == (named(policy), artifact, SEED)
    return found if same else None


def add(policy: Policy, folder: Path, artifact: str, paths: Iterable[DecisionPath],
        replaced: Callable[[DecisionPath], bool], evaluated: PassRecord | None = None, baseline: str = "") -> None:
    """Write decisions beside what else was decided about the artifact by that policy.

    Args:
        policy: Whose rules were decided.
        folder: Of the variant.
        artifact: Its digest.
        paths: How rules were decided.
        replaced: Whether an earlier path gives way to these.
        evaluated: The pass that they were decided on; takes the place of an earlier one over the same images.
        baseline: `identity` of the baseline that was compared with; empty where none was.

    Raises:
        InvalidInput: The file is damaged or of another schema, or cannot be written.
    """
    before = known(policy, folder, artifact)

    def images(one: PassRecord) -> tuple[str, str, str]:
        return one.dataset.name, one.condition, one.preset

    passes = before.passes if before else ()
    if evaluated is not None:
        passes = (*(one for one in passes if images(one) != images(evaluated)), evaluated)
    write_sealed(folder / DECISIONS, DecisionFile(
        schema=DECISIONS_SCHEMA, policy=policy.id, until=named(policy), artifact=artifact, seed=SEED, passes=passes,
        baseline=baseline or (before.baseline if before else ""),
        paths=(*(one for one in (before.paths if before else ()) if not replaced(one)), *paths)))


def decision_paths(folder: Path) -> tuple[DecisionPath, ...]:
    """Return how rules were decided during evaluation; none where everything was evaluated at once.

    Raises:
        InvalidInput: The file is damaged or of another schema.
    """
    found = load(folder)
    return tuple(path for path in found.paths if path.steps) if found else ()


def of_runs(placed: Iterable[tuple[Run, Path]]) -> dict[tuple[str, str], tuple[DecisionPath, ...]]:
    """Return how rules were decided for each run that was evaluated until they were, by variant and time of creation.

    Raises:
        InvalidInput: A file is damaged or of another schema.
    """
    return {(run.variant, run.created_at): decision_paths(folder) for run, folder in placed
            if run.settings.until is not None}


def decided(found: Gate, policy: Policy, run: Run, folder: Path, baseline: Run | None = None) -> Gate:
    """Return the verdicts, those of followed rules as they were decided while images came in.

    Rules that were not followed where evaluation or timing stopped early are not decided: when it stopped depends on
    what was seen, so that a test for a fixed number of images or timings would err more often than declared.

    Args:
        found: Verdicts by tests for a fixed number of images.
        policy: Whose rules they are of.
        run: What was judged.
        folder: Of its run file.
        baseline: What rules against one were judged with: those that were followed with another are not decided.

    Raises:
        InvalidInput: The file of decisions is damaged or of another schema.
    """
    if run.settings.until is None:
        return found
    file, rules = load(folder), {rule.id: rule for rule in policy.rules}
    mine = file is not None and file.artifact == run.artifact.digest and (
        run.settings.until == file.until == named(policy))
    paths = {(path.rule, path.where): path for path in file.paths if path.steps} if file and mine else {}
    if file and (baseline is None or identity(baseline) != file.baseline):
        paths = {key: path for key, path in paths.items() if rules[key[0]].against != "baseline"}
    digests = {one.dataset.digest for one in run.passes if one.part_of is not None}
    stopped = {place(one) for one in run.evaluations if one.dataset.digest in digests}
    cut = any(one.stopped == "decided" for one in run.traces)

    def again(one: Verdict) -> Verdict:
        if one.p_kept is None or one.rule not in rules:
            return one
        path = paths.get((one.rule, one.where))
        if path is not None:
            return _as_followed(one, path, rules[one.rule])
        early = cut and metric_names.of_single_stream(one.metric) if one.of == metric_names.PERFORMANCE else \
            one.where in stopped and bool(one.sampled)
        return _not_followed(one, run.settings.until or "") if early else one

    return replace(found, verdicts=tuple(again(one) for one in found.verdicts))


def _as_followed(one: Verdict, path: DecisionPath, rule: Rule) -> Verdict:
    last = path.steps[-1]
    ends = "" if last.low is None or last.high is None else \
        f", between {spoken(rule, last.low, path.unit)} and {spoken(rule, last.high, path.unit)}"
    at = f"(at {path.confidence:.4g} confidence however often one looks, {last.n:,} {path.sampled})"
    undecided = path.decision is None
    # The same timings decided at once and were not confirmed by others.
    unconfirmed = path.decision == "fail" and one.confirmed is False
    unsure = "; a re-run in turns does not show it" if unconfirmed else ""
    return replace(
        one, status="inconclusive" if unconfirmed else path.decision or "inconclusive", sampled=path.sampled,
        value=last.value, low=last.low, high=last.high, n=last.n,
        confidence=path.confidence, p_kept=last.p_within, p_broken=last.p_beyond, method=path.method,
        needed=one.needed if undecided else None,
        message=f"{spoken(rule, last.value, path.unit)}{ends} {at}; {allowance(rule, path.unit)}; "
                f"{path.decided}{unsure}",
        hint=f"all {path.sampled} were used; more of them would decide it" if undecided else "")


def _not_followed(one: Verdict, until: str) -> Verdict:
    what = "timing" if one.sampled == "timings" else "evaluation"
    return replace(
        one, status="inconclusive", needed=None, p_kept=None, p_broken=None,
        message=f"{one.message}; not decided: {what} stopped early, when the rules of {until.partition('@')[0]} "
                "were decided, and this one was not followed",
        hint="measure without --until, or with --until and this policy")
