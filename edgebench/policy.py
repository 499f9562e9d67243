"""Policies: limits that a variant must keep, read strictly from TOML, and told in words.

A limit is shown to be kept, shown to be broken, or neither: `edgebench.gate` decides which.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from edgebench import metric_names
from edgebench.catalog import content
from edgebench.checks import bounds, check, check_name
from edgebench.errors import InvalidInput, UsageError, suggest, unknown
from edgebench.files import read_text
from edgebench.record import decode

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Severity = Literal["error", "warning"]
Missing = Literal["error", "skip", "fail"]
Against = Literal["reference", "baseline"]
Correction = Literal["none", "holm", "benjamini-hochberg"]

ABSOLUTE = ("max", "min")
MARGINS = ("max_increase_absolute", "max_decrease_absolute", "max_increase_relative", "max_decrease_relative")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One limit on one metric; exactly one of the six limits is set."""

    id: str
    """Names the rule in every output; distinct within the policy."""
    metric: str
    """Name of a score, with its level where it has one, such as ``accuracy@fog``."""
    because: str = ""
    """Why this limit, in a sentence."""
    of: str | None = None
    """The property whose score it is; needed where several have one of that name."""
    dataset: str = "*"
    """Which data sets, with ``*`` for any characters."""
    condition: str = "*"
    """Which conditions, likewise."""
    preset: str = "*"
    """Which preprocessing presets, likewise."""
    max: float | None = None
    """Absolute budget: the value stays at or below."""
    min: float | None = None
    """Absolute budget: the value stays at or above."""
    against: Against | None = None
    """What an increase or decrease is against: the FP32 sibling, or an earlier run."""
    max_increase_absolute: float | None = None
    """Largest increase, in the unit of the metric."""
    max_decrease_absolute: float | None = None
    """Largest decrease, in the unit of the metric."""
    max_increase_relative: float | None = None
    """Largest increase as a fraction of the other's value."""
    max_decrease_relative: float | None = None
    """Largest decrease as a fraction of the other's value."""
    severity: Severity = "error"
    """Whether a failure stops the release, or is told only."""
    missing: Missing = "error"
    """What it means where the run lacks the metric."""
    confidence: float | None = None
    """One-sided; the policy's where absent."""
    family: str | None = None
    """Rules of one family share its correction for many tests."""
    line: int = 0
    """Where it begins in the policy's file."""

    def __post_init__(self) -> None:
        given = [name for name in (*ABSOLUTE, *MARGINS) if getattr(self, name) is not None]
        check(bool(re.fullmatch(r"[a-z0-9][a-z0-9._-]*", self.id)), "an id of a-z, 0-9, '.', '_' and '-'", self.id)
        check(len(given) == 1, f"exactly one limit of {', '.join((*ABSOLUTE, *MARGINS))}", given)
        check(math.isfinite(self.limit), f"a finite {self.kind}", self.limit)
        check((self.kind in MARGINS) == (self.against is not None),
              "against = \"reference\" or \"baseline\" exactly beside an increase or decrease", self.against)
        check(self.confidence is None or 0.5 < self.confidence < 1.0, "confidence between 0.5 and 1", self.confidence)

    @property
    def kind(self) -> str:
        """The key of the limit that is set."""
        return next((name for name in (*ABSOLUTE, *MARGINS) if getattr(self, name) is not None), "max")

    @property
    def limit(self) -> float:
        """The limit that is set, as written."""
        return float(getattr(self, self.kind))

    @property
    def upper(self) -> bool:
        """Whether too much breaks the rule; too little otherwise."""
        return self.kind in ("max", "max_increase_absolute", "max_increase_relative")

    @property
    def relative(self) -> bool:
        """Whether the limit is a fraction of the other's value."""
        return self.kind.endswith("_relative")

    @property
    def in_turns(self) -> bool:
        """Whether timing in turns with the reference decides it: it is about a ratio of the centre of latency."""
        return self.against == "reference" and self.relative and self.metric in ("latency_p50", "latency_mean")

    @property
    def bound(self) -> float:
        """The limit on the signed value or change: a decrease of at most 0.01 is a change of at least -0.01."""
        return -self.limit if "decrease" in self.kind else self.limit


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """A file of rules."""

    id: str
    title: str
    """The question that it answers."""
    purpose: str
    """What it guards against, in a sentence or two."""
    rules: tuple[Rule, ...]
    confidence: float = 0.95
    """One-sided, of every pass and of every failure."""
    power: float = 0.8
    """Chance of a decision that the planned numbers of images and timings give."""
    families: dict[str, Correction] = field(default_factory=dict)
    """Corrections for many tests, by the name of the family."""
    path: str = ""
    """The file it was read from."""

    def __post_init__(self) -> None:
        check_name(self.id, "id")
        check(len(self.rules) > 0, "at least one rule", 0)
        check(0.5 < self.confidence < 1.0, "confidence between 0.5 and 1", self.confidence)
        check(0.0 < self.power < 1.0, "power between 0 and 1", self.power)

    def confidence_of(self, rule: Rule) -> float:
        """Return the one-sided confidence of a rule."""
        return self.confidence if rule.confidence is None else rule.confidence


def shipped() -> dict[str, Policy]:
    """Return all shipped policies by id."""
    return {path.stem: load(path) for path in sorted((content("reports") / "policies").glob("*.toml"))}


def find(name: str, also: Collection[tuple[str, str]] = ()) -> Policy:
    """Return the policy of that id, or from that TOML file.

    Args:
        name: Id of a shipped policy, or a path that ends in ``.toml``.
        also: Further (property, metric) pairs that rules may name, such as the scores of the runs at hand.

    Raises:
        UsageError: No such policy, or a name in it that does not exist.
        InvalidInput: The file is not a valid policy.
    """
    if name.endswith(".toml"):
        return load(Path(name), also)
    known = {path.stem: path for path in (content("reports") / "policies").glob("*.toml")}
    if name not in known:
        raise unknown("policy", name, known)
    return load(known[name], also)


def load(path: Path, also: Collection[tuple[str, str]] = ()) -> Policy:
    """Read a policy file; see `find`."""
    return parse(read_text(path, "a policy"), str(path), also)


def parse(text: str, where: str, also: Collection[tuple[str, str]] = ()) -> Policy:
    """Decode the text of a policy file strictly; every error names the line.

    Raises:
        UsageError: A metric, property or family that does not exist, with the nearest name.
        InvalidInput: Not TOML; an unknown, missing or wrong key; an impossible limit; two rules with one id.
    """
    try:
        data: dict[str, Any] = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise InvalidInput(f"{where} is not valid TOML: {error}") from error
    places = _Places(text)
    tables = data.get("rules", [])
    if not isinstance(tables, list) or not all(isinstance(one, dict) for one in tables):
        raise InvalidInput(f"{where}: expected rules as [[rules]] tables, got {type(tables).__name__}")
    _refuse_unknown_keys(data, Policy, "path", where, places.keys)
    rules: list[Rule] = []
    for number, table in enumerate(tables):
        line, keys = places.rule(number)
        _refuse_unknown_keys(table, Rule, "line", where, keys, line)
        rule = replace(decode(Rule, table, f"{where}:{line}: rule {table.get('id', number + 1)!r}"), line=line)
        earlier = next((other for other in rules if other.id == rule.id), None)
        if earlier is not None:
            raise InvalidInput(f"{where}:{line}: rule id {rule.id!r} is taken by the rule in line {earlier.line}",
                               "every rule needs an id of its own: verdicts and histories go by it")
        rules.append(_checked(rule, where, also))
    policy = decode(Policy, {**data, "rules": tables}, where)
    policy = replace(policy, rules=tuple(rules), path=where)
    for rule in rules:
        if rule.family is not None and rule.family not in policy.families:
            raise UsageError(f"{where}:{rule.line}: rule {rule.id!r}: unknown family {rule.family!r}"
                             f"{suggest(rule.family, policy.families)}",
                             f"add it: [families] {rule.family} = \"holm\"")
    return policy


class _Places:
    """Lines of the keys in a policy's text, which the TOML parser does not tell."""

    def __init__(self, text: str) -> None:
        self.keys: dict[str, int] = {}
        self._rules: list[tuple[int, dict[str, int]]] = []
        current, quote, depth = self.keys, "", 0
        for number, line in enumerate(text.splitlines(), start=1):
            if quote:
                quote = "" if line.count(quote) % 2 else quote
                continue
            header = re.match(r"\s*(\[+)\s*([^\]]*?)\s*\]", line)
            if header and depth == 0:
                current = {}
                if header[2] == "rules" and header[1] == "[[":
                    self._rules.append((number, current))
            elif depth == 0 and (key := re.match(r"\s*[\"']?([\w-]+)[\"']?\s*(?:=|\.)", line)):
                current.setdefault(key[1], number)
            bare = re.sub(r"\"(?:[^\"\\]|\\.)*\"|'[^']*'|#.*", "", re.sub(r"\"\"\".*?\"\"\"|'''.*?'''", "", line))
            depth += 0 if header else bare.count("[") - bare.count("]")
            quote = next((mark for mark in ('"""', "'''") if line.count(mark) % 2), "")

    def rule(self, number: int) -> tuple[int, dict[str, int]]:
        """Return the line of a rule and of its keys; those of an inline array stand where the array begins."""
        if number < len(self._rules):
            return self._rules[number]
        return self.keys.get("rules", 1), {}


def _refuse_unknown_keys(table: Mapping[str, Any], kind: type, hidden: str, where: str, lines: Mapping[str, int],
                         begin: int = 1) -> None:
    known = [one.name for one in fields(kind) if one.name != hidden]
    for key in table:
        if key not in known:
            line = lines.get(key, begin)
            raise InvalidInput(f"{where}:{line}: unknown key {key!r}{suggest(key, known)}",
                               f"known keys: {', '.join(known)}")


def _checked(rule: Rule, where: str, also: Collection[tuple[str, str]]) -> Rule:
    """Return the rule with its property filled in, or raise for a metric that does not exist or an impossible limit."""
    begin = f"{where}:{rule.line}: rule {rule.id!r}: "
    try:
        rule = replace(rule, of=metric_names.home(rule.metric, rule.of, also))
    except UsageError as error:
        raise UsageError(begin + error.message, error.hint) from error
    assert rule.of is not None
    if rule.of == metric_names.RUN and rule.against is not None:
        raise InvalidInput(f"{begin}{rule.metric} is a fact of the run, not a measurement: it takes max or min alone")
    low, high = bounds(rule.metric, metric_names.unit(rule.of, rule.metric))
    reason = _impossible(rule, low, high)
    if reason:
        raise InvalidInput(f"{begin}impossible limit {rule.kind} = {rule.limit:g}: {reason}",
                           "fractions are written as such: half a point is 0.005" if high == 1.0 else "")
    return rule


def _impossible(rule: Rule, low: float, high: float) -> str:
    """Return why the limit could never be kept or never be broken; empty where it can be both."""
    value = rule.limit
    exact = rule.metric == "artifact_size" or rule.of == metric_names.RUN
    between = f"{rule.metric} lies between {low:g} and {high:g}, so that nothing could"
    if rule.kind in ABSOLUTE:
        # Mirrored, a least value is a largest one.
        most, worst, best = (value, high, low) if rule.upper else (-value, -low, -high)
        if most >= worst:
            return f"{between} break it"
        if most < best:
            return f"{between} keep it"
        if most == best and not exact:
            return "no number of measurements can show that a value is exactly at the end of its range"
        return ""
    if value < 0.0:
        return "a margin is 0 or more; demand an improvement by a margin the other way round"
    if value == 0.0 and not exact:
        return "with a margin of 0 no number of measurements can show that an equal variant keeps it"
    if rule.kind == "max_decrease_relative" and value >= 1.0:
        return "nothing can fall by more than all of it"
    if not rule.relative and value >= high - low:
        return f"{between} break it"
    return ""

