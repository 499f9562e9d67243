"""Timing that stops as soon as every rule of a policy about it is decided: one after the other, and in turns.

Budgets of latency are looked at while single-stream timings come in, ratios to the reference after every launch in
which both are timed in turns; `edgebench.until` decides. What was decided lies in ``decisions.json`` from then on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from edgebench import decisions, paired, until
from edgebench.decisions import DecisionPath
from edgebench.policy import Policy
from edgebench.reading import timed_alike
from edgebench.record import Run
from edgebench.timing_types import PairedTrace

MOST_ROUNDS = 200
"""Of timing in turns, where nobody says how many."""
TIMINGS, LAUNCHES = "timings", "launches"
"""What decision paths count."""


class Budgets:
    """Budgets of latency, followed while single-stream timings come in.

    Args:
        policy: Whose rules are followed.
        in_turns: Whether the variant will be timed in turns with its reference too.
    """

    def __init__(self, policy: Policy, *, in_turns: bool) -> None:
        self._policy, self._rules = policy, until.budgets(policy, in_turns=in_turns)
        self._following = until.Following(policy, self._rules)

    def __bool__(self) -> bool:
        return bool(self._rules)

    def begin(self) -> Callable[[Sequence[float]], bool]:
        """Begin anew, as every try at steady timings does; returns what hears all latencies so far, in seconds.

        It says whether all is decided.
        """
        self._following = until.Following(self._policy, self._rules)

        def decided(latency_s: Sequence[float]) -> bool:
            self._following.look_at_timings(latency_s)
            return not self._following.open

        return decided

    def write(self, out: Path, artifact_digest: str, latency_s: Sequence[float]) -> None:
        """Write how the rules were decided, after a last look at all timings.

        Args:
            out: Folder of the variant.
            artifact_digest: What was timed.
            latency_s: All of the last try.
        """
        if self._following.open:
            self._following.look_at_timings(latency_s)
        _write(self._policy, out, artifact_digest, self._following, TIMINGS, "s")


def follows_ratios(policy: Policy) -> bool:
    """Return whether a policy has rules that timing in turns decides."""
    return bool(until.ratios(policy))


class Ratios:
    """Ratios to the reference's latency, followed while variants are timed in turns.

    Args:
        policy: Whose rules are followed.
        runs: Of the variants, by name; those that were evaluated until this policy's rules were decided are followed.
    """

    def __init__(self, policy: Policy, runs: Mapping[str, Run]) -> None:
        self._policy, self._rules = policy, until.ratios(policy)
        self._runs = {
            name: run for name, run in runs.items()
            if self._rules and run.settings.until == decisions.named(policy) and run.reference is not None
            and run.reference.variant in runs and timed_alike(run, runs[run.reference.variant])}
        self._following = {name: until.Following(policy, self._rules) for name in self._runs}

    def __bool__(self) -> bool:
        return bool(self._runs)

    def decided(self, trace: PairedTrace) -> bool:
        """Look at all rules after the last of these launches; returns whether all is decided."""
        for name, following in self._following.items():
            reference = self._runs[name].reference
            assert reference is not None
            found = {statistic: paired.log_ratios(trace, reference.variant, name, statistic).tolist()
                     for statistic in (paired.median, _mean)}
            following.look_at_ratios({rule.id: found[paired.median if rule.metric == "latency_p50" else _mean]
                                      for rule in self._rules})
        return not any(following.open for following in self._following.values())

    def write(self, out: Path) -> None:
        """Write how the rules were decided into the folders of the variants below `out`."""
        for name, following in self._following.items():
            _write(self._policy, out / name, self._runs[name].artifact.digest, following, LAUNCHES, "fraction")


def _mean(values: np.ndarray) -> float:
    return float(values.mean())


def _write(policy: Policy, folder: Path, artifact_digest: str, following: until.Following, sampled: str, unit: str,
           ) -> None:
    rules = {rule.id: rule for rule in policy.rules}
    decisions.add(policy, folder, artifact_digest, (DecisionPath(
        rule=one.rule, where="", unit=unit, limit=rules[one.rule].bound, sampled=sampled, steps=one.steps,
        confidence=policy.confidence_of(rules[one.rule]), change=rules[one.rule].against is not None,
        method=one.method) for one in following.paths()), lambda one: one.sampled == sampled)
