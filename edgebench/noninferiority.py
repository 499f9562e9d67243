"""Whether a variant is as good as its reference, up to a margin: the question that a test of "no change" cannot answer.

No evidence of a loss is not evidence of no loss. A variant is non-inferior in a score where the one-sided confidence
bound of its loss lies within the margin, inferior where the bound on the other side lies beyond it, else undecided.
The evidence is that of the gate's rules: exact tests of flips, stored paired intervals otherwise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Literal

from edgebench import evidence, policy
from edgebench.policy import Rule
from edgebench.record import Run

CONFIDENCE = 0.95
"""One-sided."""
POINT_FIVE = 0.005
"""Half a point: the margin of shares of images, and of the calibration error."""
MARGINS: tuple[Rule, ...] = (
    *(Rule(id=f"{of}-{metric.replace('_', '-')}", of=of, metric=metric, against="reference",
           max_decrease_absolute=POINT_FIVE)
      for of, metric in (
          ("accuracy", "accuracy_top1"), ("accuracy", "accuracy_real"), ("shape-bias", "cue_accuracy"),
          ("robustness", "accuracy_top1"), ("robustness", "mean_corruption_accuracy"), ("transfer", "vtab_mean"),
          ("synthetic", "mean_accuracy"), ("invariance", "accuracy_mean"), ("invariance", "consistency_mean"))),
    *(Rule(id=f"{of}-{metric.replace('_', '-')}", of=of, metric=metric, against="reference",
           max_increase_absolute=POINT_FIVE)
      for of, metric in (("calibration", "ece15_ew"), ("mistakes", "annotated_error"))),
    Rule(id="robustness-mean-ce", of="robustness", metric="mean_ce", against="reference", max_increase_absolute=0.5))
"""The scores asked about, one or two of each property, with the margin of each where `POLICY` has no rule on it."""
POLICY = "survives-quantization"
"""The shipped policy whose margins the report takes, so that gate and report ask the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """What is known about one score's loss against the reference."""

    of: str
    """The property."""
    metric: str
    where: str
    """Data set and condition."""
    unit: str
    change: float
    """Of the score against the reference's, in its unit."""
    bound: float | None
    """The worst change that the confidence leaves open; None where there is no interval."""
    margin: float
    """The worst change that still counts as none, with the sign of a loss."""
    confidence: float
    verdict: Literal["non-inferior", "inferior", "undecided"]
    n: int
    method: str


@cache
def margins() -> tuple[Rule, ...]:
    """Return the rules that are asked about, those of `POLICY` in place of the defaults."""
    ruled = {(rule.of, rule.metric): rule for rule in policy.find(POLICY).rules
             if rule.against == "reference" and not rule.relative}
    return tuple(ruled.get((rule.of, rule.metric), rule) for rule in MARGINS)


def statements(run: Run, confidence: float = CONFIDENCE) -> tuple[Statement, ...]:
    """Return a statement for each score of `MARGINS` that the run has against its reference, in that order.

    Args:
        run: The variant's; its paired changes are read from it.
        confidence: One-sided, between 0.5 and 1.
    """
    found = []
    for rule in margins():
        for one in evidence.find(rule, run, None):
            if isinstance(one, evidence.Absent):
                continue
            kept, broken = evidence.tested(rule, one)
            alpha = 1.0 - confidence
            ends = one.interval(confidence)
            worst = None if ends is None else ends[1] if rule.upper else ends[0]
            found.append(Statement(
                of=rule.of or "", metric=rule.metric, where=one.where, unit=one.unit, change=one.value,
                bound=None if worst is None or math.isinf(worst) else worst, margin=rule.bound, confidence=confidence,
                verdict="inferior" if broken <= alpha else "non-inferior" if kept <= alpha else "undecided",
                n=one.n, method=one.method))
    return tuple(found)
