"""The scores of properties: a constructor per kind, so that each fills the same fields.

A method's text and identifier are the same for all runs of one settings hash. What the images decided (a level, how
many tests, which subsets) goes into `level`, `n_effective` and `facts`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from edgebench import outputs, stats
from edgebench.record import Better, ReasonCode, Score, ScoreKind

Facts = Mapping[str, str | int | float]


class Reason(NamedTuple):
    """Why a value or its interval is absent."""

    code: ReasonCode
    words: str


COMPACT = Reason("compact", "the predictions were stored in compact form")
"""Why a score that needs logits is absent."""
NO_DISTRIBUTION = Reason("no-distribution", outputs.NO_DISTRIBUTION)
LOGIT_SCALE_LOST = Reason("no-logits", outputs.LOGIT_SCALE_LOST)
CONSTANT = Reason("no-spread", "every resample gives the same: resampling cannot bound it")
"""Why a score has no interval where nothing varies between images: a width of 0 would claim certainty."""
COUNTED = Reason("not-estimated", "a count, not an estimate")
NO_IMAGE = Reason("no-images", "no image is left")
NO_COMMON_IMAGE = Reason("no-images", "the passes have no image in common")
NEVER = Reason("undefined", "it is not defined here")

BOOTSTRAP = "bootstrap-percentile"
SHIFTED_BOOTSTRAP = "bootstrap-bias-shifted"
"""Identifiers of the two bootstraps."""
EXACT_MCNEMAR = "mcnemar-exact"


def absent(name: str, unit: str, better: Better | None, n: int, method: str, reason: Reason, *, kind: ScoreKind,
           method_id: str, facts: Facts | None = None) -> Score:
    """Return a score without a value, and why."""
    return Score(name=name, value=None, unit=unit, better=better, n=n, method=method, reason=reason.words,
                 reason_code=reason.code, kind=kind, method_id=method_id, facts=dict(facts or {}))


def share(name: str, count: int, n: int, better: Better | None, method: str, *, facts: Facts | None = None,
          without: Reason = NO_IMAGE) -> Score:
    """Return a share of images, each of which counts by itself, with its Wilson interval.

    Args:
        name: Of the score.
        count: Images that count.
        n: Of how many.
        better: Which direction is better.
        method: What is counted; the interval is added.
        facts: What the images decided.
        without: Why there is none where `n` is 0.
    """
    method = f"{method}; Wilson interval"
    if n == 0:
        return absent(name, "fraction", better, n, method, without, kind="share", method_id="share-wilson", facts=facts)
    low, high = stats.wilson(count, n)
    return Score(name=name, value=count / n, low=low, high=high, unit="fraction", better=better, n=n, method=method,
                 count=count, kind="share", method_id="share-wilson", facts=dict(facts or {}))


def share_change(name: str, negative: int, positive: int, n: int, method: str, better: Better | None = "higher", *,
                 facts: Facts | None = None, without: Reason = NO_IMAGE) -> Score:
    """Return the change of a share on the same images, `positive` less `negative` of `n`, with Tango's interval."""
    method = f"{method}; Tango's score interval"
    if n == 0:
        return absent(name, "fraction", better, n, method, without, kind="paired-share", method_id="share-change-tango",
                      facts=facts)
    low, high = stats.paired_interval(positive, negative, n)
    return Score(name=name, value=(positive - negative) / n, low=low, high=high, unit="fraction", better=better, n=n,
                 method=method, kind="paired-share", method_id="share-change-tango", facts=dict(facts or {}))


def p_value(name: str, value: float | None, n: int, method: str, *, method_id: str = EXACT_MCNEMAR,
            facts: Facts | None = None, without: Reason = NO_IMAGE) -> Score:
    """Return the p-value of a test; None where there is nothing to test."""
    if value is None:
        return absent(name, "1", None, n, method, without, kind="test", method_id=method_id, facts=facts)
    return Score(name=name, value=value, unit="1", better=None, n=n, method=method, kind="test", method_id=method_id,
                 facts=dict(facts or {}))


def adjusted(name: str, value: float | None, n: int, method: str, tests: int, *, over: str,
             method_id: str = EXACT_MCNEMAR, facts: Facts | None = None, without: Reason = NO_IMAGE) -> Score:
    """Return a p-value adjusted by Holm's method for `tests` tests over some family, named by `over`."""
    return p_value(name, value, n, f"{method}; adjusted by Holm's method over {over}", method_id=f"{method_id}-holm",
                   facts={**(facts or {}), "tests": tests}, without=without)


def counted(name: str, value: float, n: int, method: str, *, unit: str = "1", better: Better | None = None,
            reason: Reason = COUNTED, method_id: str = "count", facts: Facts | None = None) -> Score:
    """Return what was counted, chosen or is a maximum: it is exact, and has no interval."""
    return Score(name=name, value=value, unit=unit, better=better, n=n, method=method, kind="exact",
                 method_id=method_id, reason=reason.words, reason_code=reason.code, facts=dict(facts or {}))


def resampled(name: str, numbers: Sequence[float], unit: str, better: Better | None, n: int, method: str, *,
              undefined: Reason = NEVER, unbounded: Reason | None = None, in_some: Reason | None = None,
              bounds: tuple[float, float] = (-math.inf, math.inf), method_id: str = BOOTSTRAP,
              level: str | None = None, n_effective: int | None = None, facts: Facts | None = None) -> Score:
    """Return a score with the interval that a bootstrap gave.

    Args:
        name: Of the score.
        numbers: Value, low and high; NaN where not defined.
        unit: Of the score.
        better: Which direction is better.
        n: Images.
        method: In words.
        undefined: Why the value may be NaN.
        unbounded: Why the interval means nothing although there are numbers.
        in_some: Why an end is NaN; `undefined` by default.
        bounds: Of the interval: shifting must not push it beyond what the score can be.
        method_id: Of method and interval.
        level: That the data chose.
        n_effective: Independent ones that `n` are worth.
        facts: What else the data decided.
    """
    value, low, high = numbers
    if math.isnan(value):
        return absent(name, unit, better, n, method, undefined, kind="resampled", method_id=method_id, facts=facts)
    reason = unbounded
    if reason is None and not (math.isfinite(low) and math.isfinite(high)):
        reason = in_some or undefined
    elif reason is None and is_constant(low, high):
        reason = CONSTANT
    ends = (None, None) if reason else (max(bounds[0], low), min(bounds[1], high))
    return Score(name=name, value=value, low=ends[0], high=ends[1], unit=unit, better=better, n=n, method=method,
                 kind="resampled", method_id=method_id, level=level, n_effective=n_effective, facts=dict(facts or {}),
                 reason=reason.words if reason else None, reason_code=reason.code if reason else None)


def is_constant(low: float, high: float) -> bool:
    """Return whether the ends of a bootstrap interval are equal up to rounding."""
    return high - low < 1e-12
