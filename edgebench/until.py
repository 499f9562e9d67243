"""Which rules of a policy are decided while images or timings still come in, and by which looks: the pure half.

What is a share or a bounded mean over images is followed with anytime-valid evidence after every batch. What is not,
such as a binned calibration error, is decided at a few fixed checkpoints that split the error rate. Budgets of latency
are followed while single-stream timings come in, ratios to the reference's latency while both are timed in turns.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Literal

import numpy as np
import numpy.typing as npt

from edgebench import evidence, metric_names, percentiles, sequential, stats
from edgebench.evidence import Evidence
from edgebench.metrics import Outcomes
from edgebench.policy import Policy, Rule
from edgebench.properties import Pass
from edgebench.sequential import Step

CHECKPOINTS = 4
"""Looks at what has no anytime-valid evidence."""
ALONE = ("accuracy", "calibration", "mistakes")
"""Properties that score a pass over labelled images by itself, so that its first images have scores too."""
LEAST_TIMINGS = 100
"""Independent ones, before the first look at timings: from fewer nobody can tell how much they follow each other."""
_PERCENTILE = re.compile(r"latency_p(\d+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class RulePath:
    """How one rule was looked at, and when it was decided."""

    rule: str
    method: str
    alpha: float
    steps: tuple[Step, ...]
    decision: Literal["pass", "fail"] | None
    decided_at: int | None
    """Images, timings or launches after which it was."""


def image_order(images: int, seed: int) -> npt.NDArray[np.int64]:
    """Return a seeded random order of that many images: early looks must not see one class alone."""
    return np.random.default_rng(seed).permutation(images)


def followable(rule: Rule) -> bool:
    """Return whether a rule can be looked at after every batch; at checkpoints otherwise, or not at all."""
    return _follower(rule) is not None


def concerned(policy: Policy, key: Pass, chosen: Collection[str], *, baseline: bool = False) -> tuple[Rule, ...]:
    """Return the rules that can be decided on one pass while its images come in.

    Args:
        policy: Whose rules are followed.
        key: The pass.
        chosen: The properties that are evaluated.
        baseline: Whether the answers of a baseline are at hand.
    """
    return tuple(rule for rule in policy.rules
                 if rule.of in ALONE and rule.of in chosen and (baseline or rule.against != "baseline")
                 and fnmatchcase(key.dataset, rule.dataset) and fnmatchcase(key.condition, rule.condition)
                 and fnmatchcase(key.preset, rule.preset))


def budgets(policy: Policy, *, in_turns: bool) -> tuple[Rule, ...]:
    """Return the budgets of latency that are decided while single-stream timings come in.

    None are where a rule needs these timings whole: the loop could not end when the budgets are decided.

    Args:
        policy: Whose rules are followed.
        in_turns: Whether the variant will be timed in turns with its reference, which decides the rules on ratios.
    """
    about = [rule for rule in policy.rules
             if rule.of == metric_names.PERFORMANCE and metric_names.of_single_stream(rule.metric)]
    found = tuple(rule for rule in about if rule.kind == "max" and _PERCENTILE.fullmatch(rule.metric))
    whole = [rule for rule in about if rule not in found and not (in_turns and rule.in_turns)]
    return () if whole else found


def ratios(policy: Policy) -> tuple[Rule, ...]:
    """Return the rules that are decided while a variant and its reference are timed in turns."""
    return tuple(rule for rule in policy.rules if rule.of == metric_names.PERFORMANCE and rule.in_turns)


def needs_reference(rule: Rule) -> bool:
    """Return whether a rule cannot be followed without the reference's answers."""
    return rule.against == "reference" or (rule.against is None and followable(rule) and _needs_other(rule))


class Following:
    """Rules that are looked at again and again while images or timings come in, each until it is decided.

    Failures are corrected within their families at every look, and no p-value ever rises again.

    Args:
        policy: That the rules are of.
        rules: What is looked at.
        places: On how many passes they are looked at: each counts in the corrections of a family.
    """

    def __init__(self, policy: Policy, rules: Sequence[Rule], *, places: int = 1) -> None:
        self._policy, self._rules, self._places = policy, tuple(rules), places
        self._steps: dict[str, list[Step]] = {rule.id: [] for rule in rules}
        self._methods: dict[str, str] = {}
        self._kept = {rule.id: 1.0 for rule in rules}
        self._broken = {rule.id: 1.0 for rule in rules}

    @property
    def open(self) -> tuple[str, ...]:
        """Ids of the rules that are not decided yet."""
        return tuple(rule.id for rule in self._rules if sequential.decision(
            self._steps[rule.id], 1.0 - self._policy.confidence_of(rule)) is None)

    @property
    def at_checkpoints(self) -> tuple[Rule, ...]:
        """Those of the open rules that are decided at checkpoints alone."""
        return tuple(rule for rule in self._rules if rule.id in self.open and not followable(rule))

    def look(self, before: Outcomes | None, after: Outcomes, n: int, found: Mapping[str, Evidence],
             baseline: Outcomes | None = None) -> None:
        """Look at all rules after `n` images.

        Args:
            before: Per-image outcomes of the reference, in the order of evaluation; None without one: rules that need
                it are not looked at.
            after: Of the variant, on the same images, `n` or more.
            n: How many count.
            found: What is known of rules that are decided at checkpoints, by id; empty between checkpoints.
            baseline: Of the baseline, likewise.
        """
        first = np.arange(n)
        after = after.take(first)
        before, baseline = (None if one is None else one.take(first) for one in (before, baseline))
        looks: dict[str, Step] = {}
        for rule in self._rules:
            follower = _follower(rule)
            other = baseline if rule.against == "baseline" else before
            if follower is not None and (other is not None or not _needs_other(rule)):
                self._methods[rule.id], (looks[rule.id],) = follower(
                    rule, other, after, (n,), self._policy.confidence_of(rule))
            elif rule.id in found:
                self._methods[rule.id] = f"{found[rule.id].method}; {CHECKPOINTS} checkpoints share the error rate"
                looks[rule.id] = at_checkpoint(rule, found[rule.id], self._policy)
        self._seen(looks)

    def look_at_timings(self, latency_s: Sequence[float]) -> None:
        """Look at budgets of latency after these single-stream timings, in seconds and in order; all rules are such.

        A rule is not looked at while its timings are worth fewer than `LEAST_TIMINGS` independent ones.
        """
        values = np.asarray(latency_s, np.float64)
        looks = {}
        for rule in self._rules:
            found = _PERCENTILE.fullmatch(rule.metric)
            assert found is not None
            q = int(found[1]) / 100.0
            worth = percentiles.effective_count(values <= stats.quantile(values, q)) / values.size
            if values.size * worth < LEAST_TIMINGS:
                continue
            self._methods[rule.id] = "beta-binomial mixture of timings above the limit" + (
                "" if worth == 1.0 else f", {values.size:,} of them worth {values.size * worth:,.0f} independent ones")
            looks[rule.id] = sequential.percentile_step(values, q, rule.limit, worth, self._policy.confidence_of(rule))
        self._seen(looks)

    def look_at_ratios(self, log_ratios: Mapping[str, Sequence[float]]) -> None:
        """Look at ratios to the reference after these launches of timing in turns.

        Args:
            log_ratios: Natural logarithms of the variant's latency over the reference's, launch by launch; by rule.
        """
        looks = {}
        for rule in self._rules:
            self._methods[rule.id] = "sign test of launches in turns, beta-binomial mixture"
            looks[rule.id] = _ratio_step(rule, log_ratios[rule.id], self._policy.confidence_of(rule))
        self._seen(looks)

    def _seen(self, looks: Mapping[str, Step]) -> None:
        for name, step in looks.items():
            self._kept[name] = min(self._kept[name], step.p_within)
            self._broken[name] = min(self._broken[name], step.p_beyond)
        corrected = dict(zip(self._broken, evidence.corrected(
            self._policy, [(rule, self._broken[rule.id]) for rule in self._rules], self._places), strict=True))
        for name, step in looks.items():
            self._steps[name].append(replace(step, p_within=self._kept[name], p_beyond=corrected[name]))

    def paths(self) -> tuple[RulePath, ...]:
        """Return how each rule that was looked at came to be decided, or did not."""
        found = []
        for rule in self._rules:
            steps, alpha = tuple(self._steps[rule.id]), 1.0 - self._policy.confidence_of(rule)
            if steps:
                found.append(RulePath(rule=rule.id, method=self._methods[rule.id], alpha=alpha, steps=steps,
                                      decision=sequential.decision(steps, alpha),
                                      decided_at=sequential.steps_until_decision(steps, alpha)))
        return tuple(found)


def _ratio_step(rule: Rule, log_ratios: Sequence[float], confidence: float) -> Step:
    """Return a look at a relative change; a decrease that is to stay small is an increase of the inverse ratio."""
    values = np.asarray(log_ratios, np.float64)
    step = sequential.ratio_path(values if rule.upper else -values, (values.size,),
                                 1.0 + rule.bound if rule.upper else 1.0 / (1.0 + rule.bound), confidence)[0]

    def change(ratio: float | None) -> float | None:
        return None if ratio is None else ratio - 1.0 if rule.upper else 1.0 / ratio - 1.0

    ends = (step.low, step.high) if rule.upper else (step.high, step.low)
    return replace(step, value=change(step.value) or 0.0, low=change(ends[0]), high=change(ends[1]))


def follow(policy: Policy, before: Outcomes | None, after: Outcomes, looks: Sequence[int]) -> tuple[RulePath, ...]:
    """Return the looks at every rule that can be followed, with failures corrected within their families.

    Args:
        policy: Whose rules are followed.
        before: Per-image outcomes of the reference so far, in the order of evaluation; None without one: rules that
            need it are left out.
        after: Of the variant, on the same images.
        looks: After how many images one looks, ascending, at most as many as there are.
    """
    # Rules that are decided at checkpoints, or not at all, count in their family as members that show nothing.
    following = Following(policy, [rule for rule in policy.rules if followable(rule)])
    for n in looks:
        following.look(before, after, n, {})
    return following.paths()


def at_checkpoint(rule: Rule, found: Evidence, policy: Policy, looks: int = CHECKPOINTS) -> Step:
    """Return a look at a rule that is decided at `looks` fixed checkpoints alone.

    Its p-values are multiplied by the number of looks, so that all together keep the error rate (Bonferroni); what is
    exact has none to share.
    """
    kept, broken = evidence.tested(rule, found)
    if found.sampled == "none":
        looks = 1
    each = sequential.split_alpha(1.0 - policy.confidence_of(rule), looks)
    ends = found.interval(1.0 - each)
    return Step(n=found.n, value=found.value, low=ends[0] if ends else None, high=ends[1] if ends else None,
                p_within=min(1.0, kept * looks), p_beyond=min(1.0, broken * looks))


_Follower = Callable[[Rule, Outcomes | None, Outcomes, Sequence[int], float], tuple[str, tuple[Step, ...]]]


def _follower(rule: Rule) -> _Follower | None:
    metric = metric_names.plain(rule.metric)
    if rule.of == "accuracy":
        if metric in ("accuracy_top1", "accuracy_top5") and rule.kind == "max_decrease_absolute":
            return _share_change
        if metric in ("accuracy_top1", "accuracy_top5") and rule.kind == "min":
            return _share
        if metric in ("negative_flips", "disagreement") and rule.kind == "max":
            return _rate
        if metric == "confidence_difference" and rule.kind == "max":
            return _mean
    if rule.of == "calibration" and metric == "brier" and rule.kind == "max_increase_absolute":
        return _mean
    return None


def _needs_other(rule: Rule) -> bool:
    return rule.against is not None or rule.metric not in ("accuracy_top1", "accuracy_top5")


def _right(outcomes: Outcomes, metric: str) -> npt.NDArray[np.bool_]:
    return outcomes.in_top5 if metric == "accuracy_top5" else outcomes.correct


def _share_change(rule: Rule, before: Outcomes | None, after: Outcomes, looks: Sequence[int], confidence: float,
                  ) -> tuple[str, tuple[Step, ...]]:
    assert before is not None
    return "betting on paired differences", sequential.difference_path(
        _right(before, rule.metric), _right(after, rule.metric), looks, rule.limit, confidence)


def _share(rule: Rule, _: Outcomes | None, after: Outcomes, looks: Sequence[int], confidence: float,
           ) -> tuple[str, tuple[Step, ...]]:
    # At least 75 % right is at most 25 % wrong.
    path = sequential.rate_path(~_right(after, rule.metric), looks, 1.0 - rule.limit, confidence)
    return "beta-binomial mixture", tuple(Step(
        n=step.n, value=1.0 - step.value, low=None if step.high is None else 1.0 - step.high,
        high=None if step.low is None else 1.0 - step.low, p_within=step.p_within, p_beyond=step.p_beyond)
        for step in path)


def _rate(rule: Rule, before: Outcomes | None, after: Outcomes, looks: Sequence[int], confidence: float,
          ) -> tuple[str, tuple[Step, ...]]:
    assert before is not None
    hits = before.predicted != after.predicted if rule.metric == "disagreement" else before.correct & ~after.correct
    return "beta-binomial mixture", sequential.rate_path(hits, looks, rule.limit, confidence)


def _mean(rule: Rule, before: Outcomes | None, after: Outcomes, looks: Sequence[int], confidence: float,
          ) -> tuple[str, tuple[Step, ...]]:
    assert before is not None
    values, lowest, highest = (after.brier - before.brier, -2.0, 2.0) if rule.of == "calibration" else (
        np.abs(after.confidence - before.confidence), 0.0, 1.0)
    return "betting on bounded scores; ends of an empirical Bernstein confidence sequence", sequential.mean_path(
        values, lowest, highest, looks, rule.limit, confidence)
