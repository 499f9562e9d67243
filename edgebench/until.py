"""Which rules of a policy are decided while images still come in, and by which looks: the pure half of stopping early.

What is a share or a bounded mean over images is followed with anytime-valid evidence after every batch. What is not,
such as a binned calibration error, is decided at a few fixed checkpoints that split the error rate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from edgebench import metric_names, sequential, stats, tails
from edgebench.evidence import Evidence
from edgebench.metrics import Outcomes
from edgebench.policy import Correction, Policy, Rule
from edgebench.sequential import Step

CHECKPOINTS = 4
"""Looks at what has no anytime-valid evidence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RulePath:
    """How one rule was looked at, and when it was decided."""

    rule: str
    method: str
    alpha: float
    steps: tuple[Step, ...]
    decision: Literal["pass", "fail"] | None
    decided_at: int | None
    """Images after which it was."""


def image_order(images: int, seed: int) -> npt.NDArray[np.int64]:
    """Return a seeded random order of that many images: early looks must not see one class alone."""
    return np.random.default_rng(seed).permutation(images)


def followable(rule: Rule) -> bool:
    """Return whether a rule can be looked at after every batch; at checkpoints otherwise, or not at all."""
    return _follower(rule) is not None


def follow(policy: Policy, before: Outcomes | None, after: Outcomes, looks: Sequence[int]) -> tuple[RulePath, ...]:
    """Return the looks at every rule that can be followed, with failures corrected within their families.

    Args:
        policy: Whose rules are followed.
        before: Per-image outcomes of the reference so far, in the order of evaluation; None without one: rules that
            need it are left out.
        after: Of the variant, on the same images.
        looks: After how many images one looks, ascending, at most as many as there are.
    """
    followed: list[tuple[Rule, str, tuple[Step, ...]]] = []
    for rule in policy.rules:
        follower = _follower(rule)
        if follower is not None and (before is not None or not _needs_reference(rule)):
            method, path = follower(rule, before, after, looks, policy.confidence_of(rule))
            followed.append((rule, method, path))
    broken = _corrected([(rule, [step.p_beyond for step in path]) for rule, _, path in followed], policy)
    found = []
    for (rule, method, path), corrected in zip(followed, broken, strict=True):
        alpha = 1.0 - policy.confidence_of(rule)
        steps = tuple(Step(n=step.n, value=step.value, low=step.low, high=step.high, p_within=step.p_within, p_beyond=p)
                      for step, p in zip(path, corrected, strict=True))
        found.append(RulePath(rule=rule.id, method=method, alpha=alpha, steps=steps,
                              decision=sequential.decision(steps, alpha),
                              decided_at=sequential.steps_until_decision(steps, alpha)))
    return tuple(found)


def at_checkpoint(rule: Rule, found: Evidence, policy: Policy, looks: int = CHECKPOINTS) -> Step:
    """Return a look at a rule that is decided at `looks` fixed checkpoints alone.

    Its p-values are multiplied by the number of looks, so that all together keep the error rate (Bonferroni).
    """
    above, below = found.tails(rule.bound)
    kept, broken = (below, above) if rule.upper else (above, below)
    each = sequential.split_alpha(1.0 - policy.confidence_of(rule), looks)
    ends = found.interval(1.0 - each)
    return Step(n=found.n, value=found.value, low=ends[0] if ends else None, high=ends[1] if ends else None,
                p_within=min(1.0, kept * looks), p_beyond=min(1.0, broken * looks))


_Follower = Callable[[Rule, Outcomes | None, Outcomes, Sequence[int], float], tuple[str, tuple[Step, ...]]]


def _follower(rule: Rule) -> _Follower | None:
    metric = metric_names.plain(rule.metric)
    if rule.of == "accuracy":
        if metric in ("accuracy_top1", "accuracy_top5") and rule.kind == "max_decrease_absolute" \
                and rule.against == "reference":
            return _share_change
        if metric in ("accuracy_top1", "accuracy_top5") and rule.kind == "min":
            return _share
        if metric in ("negative_flips", "disagreement") and rule.kind == "max":
            return _rate
        if metric == "confidence_difference" and rule.kind == "max":
            return _mean
    if rule.of == "calibration" and metric == "brier" and rule.kind == "max_increase_absolute" \
            and rule.against == "reference":
        return _mean
    return None


def _needs_reference(rule: Rule) -> bool:
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
    low, high = sequential.mean_bounds(values, lowest, highest, confidence)
    alpha = 1.0 - confidence
    # The sequence has one level: what it excludes is shown at that level, and nothing is known of smaller ones.
    return "empirical Bernstein confidence sequence", tuple(Step(
        n=n, value=float(values[:n].mean()), low=float(low[n - 1]), high=float(high[n - 1]),
        p_within=alpha if high[n - 1] <= rule.limit else 1.0, p_beyond=alpha if low[n - 1] > rule.limit else 1.0)
        for n in looks)


def _corrected(paths: Sequence[tuple[Rule, list[float]]], policy: Policy) -> list[list[float]]:
    """Return the p-values of being broken, corrected within families look by look, and never rising again."""
    adjust: dict[Correction, Callable[[Sequence[float]], Sequence[float]]] = {
        "holm": stats.holm, "benjamini-hochberg": tails.benjamini_hochberg, "none": tuple}
    found = [list(values) for _, values in paths]
    for family, method in policy.families.items():
        # Rules that are decided at checkpoints, or not at all, count as members that show nothing.
        members = [k for k, (rule, _) in enumerate(paths) if rule.family == family]
        absent = sum(rule.family == family for rule in policy.rules) - len(members)
        for look in range(len(found[members[0]]) if members else 0):
            adjusted = adjust[method]([found[k][look] for k in members] + [1.0] * absent)
            for k, value in zip(members, adjusted, strict=False):
                found[k][look] = value
    return found
