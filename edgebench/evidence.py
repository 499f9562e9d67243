"""From a rule to the numbers that decide it: the score, how it is tested against the limit, and at which interval.

Stored scores are used as they are, for their bootstraps were paid for when the run was made; counts and raw timings are
tested exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Literal

import numpy as np

from edgebench import metric_names, percentiles, sample_size, scenario_scores, stats, tails
from edgebench.errors import suggest
from edgebench.policy import Correction, Policy, Rule
from edgebench.reading import ends, is_exact, place, series, skip_about, timed_ends
from edgebench.record import Evaluation, Run, Score
from edgebench.tails import Ends, Tails

LEAST_RESAMPLED = 100
"""Images below which an interval from resampling is not believed: it is far too narrow with a handful."""
_OVER = "over the other's value"
_ONE_PER_RUN = ("server_rate", "camera_jitter", "camera_age_mean", "camera_age_peak", "build_latency_spread",
                "build_disagreement")
"""Scores of performance of which a run gives one value, without an interval, however long it lasts."""
Sampled = Literal["images", "timings", "none"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What a run says about one rule in one place."""

    where: str
    """Data set and condition; empty where there is none."""
    value: float
    """In the terms of the rule: a value, a change, or a relative change."""
    unit: str
    n: int
    sampled: Sampled
    """What more of would narrow the interval."""
    method: str
    tails: Callable[[float], Tails]
    """Tests against a limit."""
    interval: Callable[[float], tuple[float, float] | None]
    """From a one-sided confidence to (low, high), each end at it; None where the value is exact."""
    needed: Callable[[float, float, float, float], int | None]
    """From limit, assumed true value, one-sided confidence and power to how many images or timings decide; None where
    no number does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Absent:
    """Why a run says nothing about a rule."""

    where: str
    reason: str
    hint: str = ""


def find(rule: Rule, run: Run, other: Run | None, changes: Sequence[Evaluation] | None = None,
         ) -> tuple[Evidence | Absent, ...]:
    """Return what decides a rule, once for each evaluation that it is about.

    Args:
        rule: With its property filled in.
        run: What is judged.
        other: What an increase or decrease is against: the reference's run or the baseline; None where not at hand.
        changes: Evaluations with that other run as their reference; the run's own by default.
    """
    if rule.of == metric_names.RUN:
        return (_fact(rule.metric, run),)
    if rule.of == metric_names.PERFORMANCE:
        return (_performance(rule, run, other),)
    evaluations = run.evaluations if changes is None else _with_changes(run.evaluations, changes)
    about = matching(rule, evaluations)
    unpaired = rule.against == "reference" and run.reference is None and not any(
        one.reference_scores for one in about)
    return (() if unpaired else among(rule, about)) or (_nowhere(rule, run, about),)


def among(rule: Rule, evaluations: Sequence[Evaluation]) -> tuple[Evidence | Absent, ...]:
    """Return what decides a rule on quality, once for each of the evaluations that it is about.

    Those without the metric are left out, as the levels of a sweep beside its summary are.
    """
    about = matching(rule, evaluations)
    found = [_quality(rule, one) or _unpaired(rule, one, about) for one in about]
    return tuple(one for one in found if one is not None)


def _with_changes(evaluations: Sequence[Evaluation], changes: Sequence[Evaluation]) -> tuple[Evaluation, ...]:
    """Return the evaluations with `changes` in place of those in the same places; the others have no paired scores."""
    def key(one: Evaluation) -> tuple[str, str, str, str]:
        return one.property, one.dataset.name, one.condition, one.preset

    known = {key(one): one for one in changes}
    return tuple(known.get(key(one), replace(one, reference_scores=())) for one in evaluations)


def _unpaired(rule: Rule, one: Evaluation, others: Sequence[Evaluation]) -> Absent | None:
    """Return why an evaluation lacks a paired score that it should have; None where it is not about the metric."""
    own = {score.name for score in one.scores}
    # A score that is paired by nature belongs to what is scored alike.
    alike = rule.against is None and not one.reference_scores and any(
        rule.metric in {score.name for score in other.reference_scores} and own & {score.name for score in other.scores}
        for other in others)
    if alike or (rule.against is not None and rule.metric in own):
        other = rule.against or "reference"
        return Absent(where=place(one), reason=f"{rule.metric} has no paired change against the {other} here",
                      hint=f"evaluate the {other} on the same images, and keep its predictions")
    return None


def matching(rule: Rule, evaluations: Sequence[Evaluation]) -> tuple[Evaluation, ...]:
    """Return the evaluations of the rule's property, on the data sets, conditions and presets that it names."""
    return tuple(one for one in evaluations
                 if one.property == rule.of and fnmatchcase(one.dataset.name, rule.dataset)
                 and fnmatchcase(one.condition, rule.condition) and fnmatchcase(one.preset, rule.preset))


def tested(rule: Rule, found: Evidence) -> tuple[float, float]:
    """Return the p-values of the two one-sided tests against a rule's limit: (that it is kept, that it is broken)."""
    above, below = found.tails(rule.bound)
    kept, broken = (below, above) if rule.upper else (above, below)
    # What is exact is kept where it is not broken: there is no doubt to show away.
    return 1.0 - broken if found.sampled == "none" else kept, broken


def corrected(policy: Policy, shown: Sequence[tuple[Rule, float]], places: int | None = None) -> tuple[float, ...]:
    """Return the p-values of being broken, corrected for many tests.

    Rules of one family are corrected together, by its method; a rule without one over its own places, by Holm's.
    Passing needs no correction: all have to pass, which is shown at the level of each.

    Args:
        policy: That the rules are of.
        shown: Each rule with its p-value, once for every place that it is judged in.
        places: How many places each rule of the policy has: tests that are not among `shown` count as if they showed
            nothing. None: there are no others.
    """
    adjust: dict[Correction, Callable[[Sequence[float]], Sequence[float]]] = {
        "holm": stats.holm, "benjamini-hochberg": tails.benjamini_hochberg, "none": tuple}
    groups: dict[tuple[bool, str], list[int]] = {}
    for k, (rule, _) in enumerate(shown):
        groups.setdefault((rule.family is not None, rule.family or rule.id), []).append(k)
    found = [p for _, p in shown]
    for (family, name), members in groups.items():
        size = sum(rule.family == name for rule in policy.rules) if family else 1
        absent = 0 if places is None else places * size - len(members)
        method: Correction = policy.families[name] if family else "holm"
        adjusted = adjust[method]([*(found[k] for k in members), *[1.0] * absent])
        for k, p in zip(members, adjusted, strict=False):
            found[k] = p
    return tuple(found)


def known(runs: Sequence[Run]) -> frozenset[tuple[str, str]]:
    """Return all (property, metric) pairs of the scores in some runs, without their levels."""
    pairs = {(metric_names.PERFORMANCE, score.name) for run in runs for score in run.performance}
    pairs |= {(one.property, metric_names.plain(score.name.partition("@")[0])) for run in runs
              for one in run.evaluations for score in (*one.scores, *one.reference_scores)}
    return frozenset(pairs)


def from_ends(estimate: Ends, stored: float, *, where: str, unit: str, n: int, sampled: Sampled,
              method: str) -> Evidence:
    """Return evidence from an interval at the two-sided level `stored`, its arms taken as those of a normal error."""
    def interval(confidence: float) -> tuple[float, float]:
        at = tails.rescaled(estimate, stored, 2.0 * confidence - 1.0)
        return at.low, at.high

    return Evidence(where=where, value=estimate.value, unit=unit, n=n, sampled=sampled, method=method,
                    tails=lambda limit: tails.normal(estimate, stored, limit), interval=interval,
                    needed=_by_arm(estimate, stored, n))


def _by_arm(estimate: Ends, stored: float, n: int) -> Callable[[float, float, float, float], int | None]:
    def needed(limit: float, truth: float, confidence: float, power: float) -> int | None:
        arm = estimate.value - estimate.low if truth > limit else estimate.high - estimate.value
        return sample_size.from_interval(n, arm, stored, abs(truth - limit), confidence=confidence, power=power)

    return needed


def from_flips(negative: int, positive: int, n: int, *, where: str = "", unit: str = "fraction",
               method: str = "Tango's score test on the same images") -> Evidence:
    """Return evidence about the change of a share on the same images."""
    def needed(limit: float, truth: float, confidence: float, power: float) -> int | None:
        # To be broken is as hard to show as to be kept, from the other side.
        margin, loss = (-limit, -truth) if truth > limit else (limit, truth)
        return sample_size.difference(margin, (negative + positive) / n, confidence=confidence, power=power, loss=loss)

    return Evidence(needed=needed,
        where=where, value=(positive - negative) / n, unit=unit, n=n, sampled="images", method=method,
        tails=lambda limit: tails.paired_change(negative, positive, n, limit),
        interval=lambda confidence: stats.paired_interval(positive, negative, n, 2.0 * confidence - 1.0))


def from_count(count: int, n: int, *, where: str = "", worth: int | None = None) -> Evidence:
    """Return evidence about a share of images.

    Args:
        count: How many count.
        n: Of how many.
        where: Data set and condition.
        worth: How many independent ones these are worth; n by default. Counts are scaled to it and rounded against the
            claim.
    """
    of = worth or n
    fewest, most = count * of // n, -(-count * of // n)

    def needed(limit: float, truth: float, confidence: float, power: float) -> int | None:
        independent = _of_rate(limit, truth, confidence, power)
        return None if independent is None else math.ceil(independent * n / of)

    return Evidence(
        where=where, value=count / n, unit="fraction", n=n, sampled="images", needed=needed,
        method=f"exact binomial test{_told(of, n)}",
        tails=lambda limit: Tails(tails.rate(fewest, of, limit).above, tails.rate(most, of, limit).below),
        interval=lambda confidence: (tails.rate_interval(fewest, of, confidence)[0],
                                     tails.rate_interval(most, of, confidence)[1]))


def _of_rate(limit: float, truth: float, confidence: float, power: float) -> int | None:
    return sample_size.rate(limit, truth, confidence=confidence, power=power) if 0.0 < limit < 1.0 else None


def exact(value: float, unit: str, method: str, where: str = "") -> Evidence:
    """Return evidence about what was not estimated, or measured once: it is above or below as it stands."""
    return Evidence(where=where, value=value, unit=unit, n=1, sampled="none", method=method, interval=lambda _: None,
                    needed=lambda *_: None,
                    tails=lambda limit: Tails(float(value <= limit), float(value >= limit)))


def _fact(metric: str, run: Run) -> Evidence | Absent:
    ran = run.precision
    if metric == "precision_achieved":
        return exact(float(ran.achieved), "1", f"{ran.requested} asked for, {ran.executed} executed: {ran.evidence}")
    if metric == "caveats":
        return exact(float(len(run.caveats)), "1", "doubts that the run has about itself")
    if metric == "golden_max_abs_difference":
        if run.golden_max_abs_difference is None:
            return Absent(where="", reason="the artifact carries no golden tensors")
        return exact(run.golden_max_abs_difference, "1", "outputs here against outputs at export")
    total = sum(ran.compute_layers.values())
    if ran.time_share:
        return exact(ran.time_share.get(ran.requested, 0.0), "fraction", f"share of time in {ran.requested} layers")
    if not total:
        return Absent(where="", reason=f"the runtime tells no precision by layer: {ran.evidence}")
    return exact(ran.compute_layers.get(ran.requested, 0) / total, "fraction",
                 f"share of convolutions and matrix products in {ran.requested}")


def _performance(rule: Rule, run: Run, other: Run | None) -> Evidence | Absent:
    score = _named(run, rule.metric)
    if score is None or score.value is None:
        return Absent(where="", reason=_why_absent(rule.metric, run, score))
    if rule.against is None:
        return _budget(score, run)
    if other is None:
        return Absent(where="", reason=f"the {rule.against} is not at hand", hint="name one: --baseline RUN"
                      if rule.against == "baseline" else "name its run beside this one")
    theirs = _named(other, rule.metric)
    if theirs is None or theirs.value is None:
        return Absent(where="", reason=f"{other.variant}: {_why_absent(rule.metric, other, theirs)}")
    if _single(score) or _single(theirs):
        if rule.relative and not theirs.value:
            return Absent(where="", reason=f"{rule.metric} of {other.variant} is 0: nothing is relative to it")
        change = score.value - theirs.value
        return exact(change / theirs.value if rule.relative else change, "fraction" if rule.relative else score.unit,
                     score.method)
    mine, its = timed_ends(score, run, score.confidence), timed_ends(theirs, other, score.confidence)
    if mine is None or its is None:
        lacking = score if mine is None else theirs
        return Absent(where="", reason=lacking.reason or f"{rule.metric} has no interval", hint="use a longer --budget")
    method = "independent measurements, intervals joined (Zou & Donner 2008)"
    if not rule.relative:
        return from_ends(tails.difference(mine, its), score.confidence, where="", unit=score.unit,
                         n=min(score.n, theirs.n), sampled="timings", method=f"difference of {method}")
    ratio = tails.ratio(mine, its)
    if ratio is None:
        return Absent(where="", reason=f"{rule.metric} is not above 0: it has no ratio")
    return _ratio(ratio, score.confidence, n=min(score.n, theirs.n), method=f"ratio of {method}")


def _ratio(ratio: Ends, stored: float, *, n: int, method: str) -> Evidence:
    """Return evidence about a relative change from an interval of a ratio, whose logarithm is taken as normal."""
    logs = Ends(*map(math.log, ratio))

    def interval(confidence: float) -> tuple[float, float]:
        at = tails.rescaled(logs, stored, 2.0 * confidence - 1.0)
        return math.expm1(at.low), math.expm1(at.high)

    def test(limit: float) -> Tails:
        return tails.normal(logs, stored, math.log1p(limit)) if limit > -1.0 else Tails(0.0, 1.0)

    def needed(limit: float, truth: float, confidence: float, power: float) -> int | None:
        return _by_arm(logs, stored, n)(math.log1p(limit), math.log1p(truth), confidence, power) if limit > -1 else None

    return Evidence(where="", value=ratio.value - 1.0, unit="fraction", n=n, sampled="timings", method=method,
                    tails=test, interval=interval, needed=needed)


def _budget(score: Score, run: Run) -> Evidence | Absent:
    assert score.value is not None
    raw = series(run, score.name)
    if raw is not None:
        values, q = raw
        if q is not None:
            return from_timings(values, q)
        mean = timed_ends(score, run, 0.95)
        assert mean is not None
        worth = percentiles.effective_count(values)
        return from_ends(mean, 0.95, where="", unit="s", n=values.size, sampled="timings",
                         method=f"mean, normal error{_told(worth, values.size)}")
    if _single(score):
        return exact(score.value, score.unit, score.method)
    if score.count is not None:
        queries = run.observed.queries if run.observed is not None else ()
        filmed = next((one for one in queries if score.name == "camera_miss_rate" and one.scenario == "camera"), None)
        # Misses come in bursts.
        worth = percentiles.effective_count(scenario_scores.missed(filmed)) if filmed is not None else score.n
        return replace(from_count(score.count, score.n, worth=worth), sampled="timings")
    found = ends(score)
    if found is None:
        return Absent(where="", reason=score.reason or f"{score.name} has no interval", hint="use a longer --budget")
    return from_ends(found, score.confidence, where="", unit=score.unit, n=score.n, sampled="timings",
                     method=score.method)


def from_timings(values: np.ndarray, q: float) -> Evidence:
    """Return evidence about the `q` quantile of timings (n,) in seconds, in the order of measurement."""
    # Timings follow each other: their worth is that of the share below the quantile, as the instrument counts it.
    worth = percentiles.effective_count(values <= stats.quantile(values, q))

    def interval(confidence: float) -> tuple[float, float]:
        found = percentiles.bound(values, q, 2.0 * confidence - 1.0)
        return (-math.inf if found.low_s is None else found.low_s, math.inf if found.high_s is None else found.high_s)

    def needed(limit: float, _: float, confidence: float, power: float) -> int | None:
        independent = sample_size.quantile(q, float((values <= limit).mean()), confidence=confidence, power=power)
        return None if independent is None else math.ceil(independent * values.size / worth)

    return Evidence(where="", value=stats.quantile(values, q), unit="s", n=values.size, sampled="timings",
                    needed=needed, tails=lambda limit: tails.quantile(values, q, limit, worth), interval=interval,
                    method=f"binomial order statistics of {values.size:,} raw timings{_told(worth, values.size)}")


def _told(worth: int, n: int) -> str:
    return "" if worth == n else f", worth {worth:,} independent ones"


def _quality(rule: Rule, evaluation: Evaluation) -> Evidence | Absent | None:
    scores = {score.name: score for score in (*evaluation.scores, *evaluation.reference_scores)}
    where = place(evaluation)
    if rule.against is None:
        score = scores.get(rule.metric)
        return None if score is None else _share_or_mean(score, where, scores)
    change = next((score for score in evaluation.reference_scores if score.name != rule.metric
                   and metric_names.plain(score.name) == rule.metric), None)
    if change is None:
        return None
    found = _share_or_mean(change, where, scores)
    if isinstance(found, Absent) or not rule.relative:
        return found
    own = scores.get(rule.metric)
    if own is None or own.value is None or change.value is None:
        return Absent(where=where, reason=f"{rule.metric} itself has no value: nothing is relative to it")
    base, moved = own.value - change.value, ends(change)
    if base <= 0.0:
        return Absent(where=where, reason=f"{rule.metric} of the other run is not above 0: nothing is relative to it")
    if moved is None or moved.low == moved.high:
        return _over(found, base)
    arms = ends(own) or Ends(own.value, own.value, own.value)
    relative = tails.relative_change(moved, Ends(base, base - (arms.value - arms.low), base + (arms.high - arms.value)))
    assert relative is not None
    return _resampled(from_ends(relative, change.confidence, where=where, unit="fraction", n=change.n, sampled="images",
                                method=f"{change.method}; {_OVER}"))


def _over(found: Evidence, base: float) -> Evidence:
    """Return evidence about a change as a fraction of the other's value, which is taken as it stands."""
    def interval(confidence: float) -> tuple[float, float] | None:
        at = found.interval(confidence)
        return None if at is None else (at[0] / base, at[1] / base)

    return replace(found, value=found.value / base, unit="fraction", method=f"{found.method}; {_OVER}",
                   tails=lambda limit: found.tails(limit * base), interval=interval,
                   needed=lambda limit, truth, *levels: found.needed(limit * base, truth * base, *levels))


def _share_or_mean(score: Score, where: str, siblings: Mapping[str, Score]) -> Evidence | Absent:
    if score.value is None:
        return Absent(where=where, reason=score.reason or f"{score.name} has no value")
    flipped = siblings.get("negative_flips"), siblings.get("positive_flips")
    if score.name == "accuracy_top1_change" and flipped[0] and flipped[1]:
        negative, positive = (one.count for one in flipped if one is not None)
        if negative is not None and positive is not None and \
                math.isclose((positive - negative) / score.n, score.value, abs_tol=1e-9):
            return from_flips(negative, positive, score.n, where=where)
    if score.count is not None:
        return from_count(score.count, score.n, where=where)
    found = ends(score)
    changed = metric_names.plain(score.name) != score.name
    if changed and score.value == 0.0 and score.n > 0 and (found is None or found.low == found.high):
        # Nothing changed in any image, so that resampling sees no spread: at most so many may change unseen.
        return from_flips(0, 0, score.n, where=where, unit=score.unit,
                          method=f"{score.method}; no image changed: bounded as if each may count for one unit")
    if found is not None:
        return _resampled(from_ends(found, score.confidence, where=where, unit=score.unit, n=score.n, sampled="images",
                                    method=score.method))
    if is_exact(score):
        return exact(score.value, score.unit, score.method, where)
    return Absent(where=where, reason=f"{score.name} has no interval, so that noise would decide: "
                                      f"{score.reason or 'none was computed'}")


def _resampled(found: Evidence) -> Evidence:
    """Return evidence from resampling, that decides nothing where the images are too few to resample."""
    if found.n >= LEAST_RESAMPLED:
        return found
    return replace(found, tails=lambda _: Tails(1.0, 1.0), needed=lambda *asked: max(
        LEAST_RESAMPLED, found.needed(*asked) or 0))


def _single(score: Score) -> bool:
    """Return whether a performance score carries no interval by nature: it is exact, an extreme, or measured once."""
    if score.low is not None or score.high is not None:
        return False
    if score.name in _ONE_PER_RUN or score.kind in ("single", "exact"):
        return True
    # Files of versions that did not keep the kind.
    return score.kind is None and score.n == 1 and not score.name.startswith(("latency_", "throughput_"))


def _named(run: Run, name: str) -> Score | None:
    found = next((score for score in run.performance if score.name == name), None)
    if found is None and name == "cold_start_time" and run.cold_start is not None:
        # Files of versions that kept its parts alone.
        return Score(name=name, value=run.cold_start.total_s, unit="s", better="lower", n=1, reason="observed once",
                     method="sum of the parts")
    return found


def _why_absent(metric: str, run: Run, score: Score | None) -> str:
    if score is not None:
        return score.reason or "not measured"
    skip = skip_about(run, metric.partition("_")[0], *(["latency"] if metric_names.is_timing(metric) else []))
    return skip.reason if skip else f"{metric} is not in this run"


def _nowhere(rule: Rule, run: Run, evaluations: Sequence[Evaluation]) -> Absent:
    if not evaluations:
        skip = skip_about(run, *filter(None, (rule.of, "quality")))
        filtered = any(one.property == rule.of for one in run.evaluations)
        return Absent(where="", reason=skip.reason if skip else
                      f"no evaluation of {rule.of} is on data set {rule.dataset!r} under condition {rule.condition!r}"
                      if filtered else f"{rule.of} was not evaluated")
    if rule.against == "reference" and run.reference is None and not any(one.reference_scores for one in evaluations):
        return Absent(where="", reason="the run has no reference to compare with",
                      hint="profile it together with its FP32 sibling")
    names = {score.name for one in evaluations for score in (*one.scores, *one.reference_scores)}
    return Absent(where="", reason=f"{rule.metric} is not in this run{suggest(rule.metric, names)}")
