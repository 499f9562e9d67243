"""Rules and policies in words: what they demand, of what, and how many images or timings that takes."""

from __future__ import annotations

import math
import re

from edgebench import metric_names, sample_size
from edgebench.policy import MARGINS, Policy, Rule
from edgebench.wording import UNITS, decimals, fixed, title

_DISCORDANT = (0.02, 0.04, 0.09)
"""Shares of images that change between right and wrong: careful INT8, INT8, and careless INT8."""


def quantity(value: float, unit: str, *, change: bool = False) -> str:
    """Return a value, or a change, in the unit that people read, with at most four significant digits.

    Args:
        value: In the record's unit.
        unit: The record's unit.
        change: Whether it is a difference: shares are then told in points, with a sign.
    """
    if math.isinf(value):
        return "unbounded"
    factor, name = UNITS.get(unit, (1.0, unit))
    name = "points" if change and unit == "fraction" else name
    scaled = value * factor
    places = decimals([scaled], 3)
    text = fixed(scaled, places, sign=change)
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    name = "point" if name == "points" and text.lstrip("+−") == "1" else name
    return f"{text or '0'} {name}".strip()


def spoken(rule: Rule, value: float, unit: str) -> str:
    """Return a value in the terms of the rule: a value, a change in points or units, or a relative change."""
    if rule.relative:
        return re.sub(r"points?$", "%", quantity(value, "fraction", change=True))
    return quantity(value, unit, change=rule.kind in MARGINS)


def allowance(rule: Rule, unit: str) -> str:
    """Return the limit in words: ``a fall of at most 1 point is allowed``."""
    if rule.kind in MARGINS:
        way = "a rise" if rule.upper else "a fall"
        return f"{way} of at most {spoken(rule, rule.limit, unit).lstrip('+−')} is allowed"
    return f"at {'most' if rule.upper else 'least'} {spoken(rule, rule.limit, unit)} is allowed"


def demand(rule: Rule) -> str:
    """Return what a rule demands: ``Top-1 falls by at most 0.5 points against the FP32 reference``."""
    unit = metric_names.unit(rule.of or "", rule.metric)
    if rule.of == metric_names.RUN and rule.metric == "precision_achieved":
        return "the precision asked for was executed"
    what = title(rule.metric)
    what += f" ({rule.of})" if rule.of not in (metric_names.PERFORMANCE, metric_names.RUN, "accuracy") else ""
    places = [f"data set {rule.dataset}" if rule.dataset != "*" else "",
              f"condition {rule.condition}" if rule.condition != "*" else "",
              f"preset {rule.preset}" if rule.preset != "*" else ""]
    on = "".join(f", {place}" for place in places if place)
    if rule.kind == "max":
        return f"{what}{on} is at most {quantity(rule.limit, unit)}"
    if rule.kind == "min":
        return f"{what}{on} is at least {quantity(rule.limit, unit)}"
    verb = "rises" if "increase" in rule.kind else "falls"
    amount = quantity(rule.limit, "fraction") + " of its value" if rule.relative else \
        quantity(rule.limit, unit, change=True).lstrip("+−")
    other = "the FP32 reference" if rule.against == "reference" else "the baseline"
    return f"{what}{on} {verb} by at most {amount} against {other}"


def needs(rule: Rule, policy: Policy) -> str:
    """Return in words how many images or timings a rule takes before any run is known; empty where none."""
    confidence, power = policy.confidence_of(rule), policy.power
    unit = metric_names.unit(rule.of or "", rule.metric)
    stem = rule.metric.partition("@")[0]
    if rule.of == metric_names.RUN or stem in ("artifact_size", "peak_host_memory", "device_memory", "shared_memory",
                                               "cold_start_time", "load_time",
                                               "first_inference_time"):
        return "decided by one run"
    if rule.of == metric_names.PERFORMANCE:
        percentile = re.fullmatch(r"latency_p(\d+)", stem)
        if percentile and rule.against is None:
            q = int(percentile[1]) / 100.0
            least = sample_size.quantile(q, 1.0 if rule.upper else 0.0, confidence=confidence, power=power)
            half = sample_size.quantile(q, 1.0 - (1.0 - q) / 2.0, confidence=confidence, power=power)
            return f"{least:,} timings where all keep it, {half:,} where half as many exceed it as may" \
                if least and half and rule.upper else f"{least:,} timings or more" if least else ""
        return "timings by their spread: plan with a pilot run"
    if unit == "fraction" and rule.kind in ("max_increase_absolute", "max_decrease_absolute") \
            and re.search(r"accuracy|consistency|error", stem):
        sizes = [sample_size.difference(rule.limit, share, confidence=confidence, power=power)
                 for share in _DISCORDANT]
        parts = [f"{size:,} where {share:.0%}" for size, share in zip(sizes, _DISCORDANT, strict=True) if size]
        return f"images: {', '.join(parts)} of them change between right and wrong"
    if unit == "fraction" and rule.kind == "max" and re.search(r"flips|disagreement|switched|swapped", stem):
        none = sample_size.rate(rule.limit, 0.0, confidence=confidence, power=power)
        half = sample_size.rate(rule.limit, rule.limit / 2.0, confidence=confidence, power=power)
        return f"images: {none:,} where none is hit, {half:,} where half as many are as may be"
    return "images by the score's spread: plan with a pilot run"


def explain(policy: Policy) -> tuple[str, ...]:
    """Return what a policy demands, line by line, and how many images and timings it takes."""
    rates = (f"Every rule passes or fails at {policy.confidence:.3g} confidence, one-sided, failures on several data "
             "sets together; what neither is shown is inconclusive. "
             f"Numbers needed are for a chance of {policy.power:.0%} to be shown to pass.")
    lines = [f"{policy.id}: {policy.title}", policy.purpose, "", rates, ""]
    for rule in policy.rules:
        extra = [f"at {rule.confidence:.3g} confidence" if rule.confidence else "",
                 "a failure is a warning only" if rule.severity == "warning" else "",
                 {"error": "", "skip": "skipped where it was not measured", "fail": "fails where it was not measured"}
                 [rule.missing], f"corrected within {rule.family}" if rule.family else ""]
        lines.append(f"- {rule.id}: {demand(rule)}" + "".join(f"; {one}" for one in extra if one) + ".")
        if rule.because:
            lines.append(f"    {rule.because}")
        takes = needs(rule, policy)
        if takes:
            lines.append(f"    Needs: {takes}.")
    for family, method in policy.families.items():
        members = ", ".join(rule.id for rule in policy.rules if rule.family == family)
        if members and method != "none":
            kept = "the chance of any false failure among them" if method == "holm" else \
                "the expected share of false ones among the failures"
            lines.append(f"- Family {family} ({members}): failures are corrected by {method}, which keeps {kept} "
                         f"below {1 - policy.confidence:.2g}.")
    return tuple(lines)
