"""Verdicts for machines and people: JSON, JUnit XML, SARIF 2.1.0, a job summary and a pull-request comment in Markdown.

All say the same, for all are made from the same verdicts.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Any
from xml.etree import ElementTree as ET

from edgebench import __version__
from edgebench.errors import InvalidInput
from edgebench.gate import (
    Conclusion,
    Gate,
    Outcome,
    Verdict,
    by_urgency,
    conclusion,
    exit_code,
    spoken_totals,
    totals,
)
from edgebench.record import decode, read_json, to_builtins

VERDICTS_SCHEMA = "edgebench.verdicts/1"
# History: 1 (0.3.0) first published form.
SARIF_SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
FINGERPRINT = "edgebenchVerdict/v1"
LONGEST_COMMENT = 65_536
"""Characters that GitHub takes."""
_MARKS: Mapping[Outcome, str] = {"pass": "✅", "fail": "❌", "warning": "⚠️", "inconclusive": "❔", "error": "⛔",
                                 "skipped": "➖"}
_CONCLUSIONS: Mapping[Conclusion, str] = {"PASS": "✅", "FAIL": "❌", "NOT JUDGED": "⛔", "UNDECIDED": "❔"}
# Characters that XML 1.0 cannot hold, not even escaped.
_UNWRITABLE = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def as_json(gates: Sequence[Gate], *, strict: bool = False) -> dict[str, Any]:
    """Return the verdicts JSON-ready, with the exit code that they give."""
    return {"schema": VERDICTS_SCHEMA, "edgebench": __version__, "strict": strict,
            "exit_code": int(exit_code(gates, strict=strict)), "conclusion": conclusion(gates, strict=strict),
            "totals": totals(gates), "gates": [to_builtins(gate) for gate in gates]}


def read(path: Path) -> tuple[Gate, ...]:
    """Return the gates in a file that holds `as_json`.

    Raises:
        InvalidInput: Not such a file.
    """
    data = read_json(path)
    found = data.get("schema") if isinstance(data, dict) else None
    if found != VERDICTS_SCHEMA or not isinstance(data.get("gates"), list):
        raise InvalidInput(f"{path}: expected schema {VERDICTS_SCHEMA!r}, got {found!r}",
                           "name a file that 'edgebench gate --json' wrote")
    return tuple(decode(Gate, one, f"{path}.gates[{number}]") for number, one in enumerate(data["gates"]))


def junit(gates: Sequence[Gate], *, strict: bool = False) -> str:
    """Return JUnit XML: a suite per run, a case per verdict.

    Failures of severity error are failures, what could not be judged is an error, skipped and inconclusive verdicts are
    skipped with their reason (inconclusive ones are failures under `strict`); warnings pass and tell their message.
    What else should be known stands in the suite's output.
    """
    root = ET.Element("testsuites", name="edgebench")
    totals = dict.fromkeys(("tests", "failures", "errors", "skipped"), 0)
    for gate in gates:
        # The format knows local times without an offset alone.
        stamp = gate.created_at.partition("+")[0].removesuffix("Z")
        suite = ET.SubElement(root, "testsuite", name=_text(f"{gate.policy}: {gate.variant}"), timestamp=_text(stamp),
                              hostname=_text(gate.device))
        counts = dict.fromkeys(totals, 0)
        for verdict in gate.verdicts:
            case = ET.SubElement(suite, "testcase", classname=_text(f"{gate.policy}.{gate.variant}"),
                                 name=_text(_case(verdict)), time="0")
            kind = _junit_kind(verdict, strict=strict)
            counts["tests"] += 1
            body = _text(_paragraph(verdict))
            if kind is None:
                ET.SubElement(case, "system-out").text = body
                continue
            counts[{"failure": "failures", "error": "errors", "skipped": "skipped"}[kind]] += 1
            element = ET.SubElement(case, kind, message=_text(f"{verdict.outcome}: {verdict.message}"))
            if kind != "skipped":
                element.set("type", f"edgebench.{verdict.status}")
            element.text = body
        if gate.notes:
            ET.SubElement(suite, "system-out").text = _text("\n".join(gate.notes))
        for name, count in counts.items():
            suite.set(name, str(count))
            totals[name] += count
    for name, count in totals.items():
        root.set(name, str(count))
    ET.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def sarif(gates: Sequence[Gate], root: Path | None = None) -> dict[str, Any]:
    """Return a SARIF 2.1.0 log: a run per gate, a rule per rule, a result per failed or inconclusive verdict.

    Results point at the rule's line in the policy file. Inconclusive ones are of kind ``open``: there was not enough
    information to decide. What could not be judged is a notification of the tool, for it is no finding; so is what else
    should be known.

    Args:
        gates: What to tell.
        root: The folder that paths are told from, such as the repository's; the working folder by default.
    """
    runs = [_sarif_run(gate, root or Path.cwd()) for gate in gates]
    return {"$schema": SARIF_SCHEMA, "version": "2.1.0", "runs": runs}


def summary(gates: Sequence[Gate], *, strict: bool = False) -> str:
    """Return Markdown for a job's summary: one table per run, the worst first, and what to do."""
    blocks = [f"# {_headline(gates, strict=strict)}", ""]
    for gate in gates:
        blocks += [f"## {_escaped(gate.variant)}", "", _against(gate), "", *_notes(gate), *_table(gate.verdicts), ""]
        hints = [f"- **{_escaped(_case(one))}**: {_escaped(one.hint)}" for one in by_urgency(gate.verdicts) if one.hint]
        blocks += [*hints, ""] if hints else []
    return "\n".join(blocks)


def comment(gates: Sequence[Gate], *, strict: bool = False, key: str = "") -> str:
    """Return Markdown for a pull request: what needs attention, the rest folded.

    Begins with a marker of policy and key by which a later run finds and replaces its own comment. Where it would be
    longer than `LONGEST_COMMENT`, what is folded is left out first, then what comes last.

    Args:
        gates: What to tell.
        strict: Whether what is inconclusive fails.
        key: Tells apart comments on one policy, such as those of two jobs.
    """
    text = _comment(gates, key, strict=strict, folded=True)
    if len(text) > LONGEST_COMMENT:
        text = _comment(gates, key, strict=strict, folded=False)
    if len(text) > LONGEST_COMMENT:
        told = "\n\nThis is cut short: the files of verdicts hold all of it.\n"
        text = text[:LONGEST_COMMENT - len(told)].rpartition("\n")[0] + told
    return text


def _comment(gates: Sequence[Gate], key: str, *, strict: bool, folded: bool) -> str:
    named = [*sorted({gate.policy for gate in gates}), key]
    marker = hashlib.sha256("\n".join(named).encode()).hexdigest()
    blocks = [f"<!-- edgebench:{marker[:16]} -->", f"### {_headline(gates, strict=strict)}", ""]
    for gate in gates:
        open_ = [one for one in gate.verdicts if one.status in ("fail", "error", "inconclusive")]
        rest = [one for one in gate.verdicts if one not in open_]
        blocks += [f"**{_escaped(gate.variant)}** · {_against(gate)}", "", *_notes(gate)]
        blocks += [*_table(open_), ""] if open_ else []
        if rest:
            counts = totals([replace(gate, verdicts=tuple(rest))])
            words = ", ".join(reversed(spoken_totals(counts).split(", ")))
            blocks += [f"<details><summary>{words}</summary>", "", *_table(rest), "", "</details>", ""] if folded else [
                words, ""]
    return "\n".join(blocks)


def fingerprint(gate: Gate, verdict: Verdict) -> str:
    """Return what stays the same for a finding from run to run: policy, rule, place, variant and device.

    Neither numbers nor the rule's line are in it, so that a finding is recognised when they change.
    """
    parts = (gate.policy, verdict.rule, verdict.where, gate.variant, gate.device)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _sarif_run(gate: Gate, root: Path) -> dict[str, Any]:
    rules = {verdict.rule: verdict for verdict in reversed(gate.verdicts)}
    order = list(dict.fromkeys(verdict.rule for verdict in gate.verdicts))
    errors = [one for one in gate.verdicts if one.status == "error"]
    return {
        "tool": {"driver": {"name": "edgebench", "semanticVersion": __version__,
                            "rules": [_descriptor(gate, rules[id_]) for id_ in order]}},
        "automationDetails": {"id": f"edgebench/{gate.policy}/{gate.variant}/{gate.device}/"},
        "originalUriBaseIds": {"%SRCROOT%": {"description": {"text": "The folder that paths are told from."}}},
        "invocations": [{
            "executionSuccessful": not errors,
            "toolExecutionNotifications": [*({
                "level": "error" if one.severity == "error" else "warning", "message": {"text": _paragraph(one)},
                "associatedRule": {"id": one.rule, "index": order.index(one.rule)},
                "locations": [_location(gate, one, root)]} for one in errors), *(
                    {"level": "note", "message": {"text": _sentence(note)}} for note in gate.notes)]}],
        "results": [{
            "ruleId": one.rule, "ruleIndex": order.index(one.rule),
            "kind": "fail" if one.status == "fail" else "open",
            "level": one.severity if one.status == "fail" else "none",
            "message": {"text": _paragraph(one)}, "locations": [_location(gate, one, root)],
            "partialFingerprints": {FINGERPRINT: fingerprint(gate, one)},
            "properties": {name: value for name, value in {
                "variant": gate.variant, "device": gate.device, "where": one.where, "value": one.value, "low": one.low,
                "high": one.high, "limit": one.limit, "unit": one.unit, "n": one.n, "needed": one.needed,
            }.items() if value not in (None, "")},
        } for one in gate.verdicts if one.status in ("fail", "inconclusive")],
        "columnKind": "unicodeCodePoints",
    }


def _descriptor(gate: Gate, verdict: Verdict) -> dict[str, Any]:
    found: dict[str, Any] = {
        "id": verdict.rule, "name": "".join(word.capitalize() for word in re.split(r"[._-]", verdict.rule)),
        "shortDescription": {"text": _sentence(verdict.demand)},
        "defaultConfiguration": {"level": verdict.severity},
        "properties": {"tags": [gate.policy, verdict.of]},
    }
    if verdict.because:
        found["fullDescription"] = {"text": f"{_sentence(verdict.demand)} {verdict.because}"}
        found["help"] = {"text": verdict.because}
    return found


def _location(gate: Gate, verdict: Verdict, root: Path) -> dict[str, Any]:
    file = Path(gate.path)
    try:
        relative = file.resolve().relative_to(root.resolve())
    except ValueError:
        artifact = {"uri": file.resolve().as_uri()}
    else:
        artifact = {"uri": _quoted(relative), "uriBaseId": "%SRCROOT%"}
    return {"physicalLocation": {"artifactLocation": artifact, "region": {"startLine": max(1, verdict.line)}}}


def _quoted(path: PurePath) -> str:
    from urllib.parse import quote

    return quote(path.as_posix())


def _junit_kind(verdict: Verdict, *, strict: bool) -> str | None:
    """Return the element of a verdict in JUnit; None where the case passes."""
    if verdict.status == "skipped":
        return "skipped"
    if verdict.status == "inconclusive":
        return "failure" if strict and verdict.severity == "error" else "skipped"
    if verdict.severity == "warning" or verdict.status == "pass":
        return None
    return "failure" if verdict.status == "fail" else "error"


def _headline(gates: Sequence[Gate], *, strict: bool) -> str:
    found = conclusion(gates, strict=strict)
    policies = ", ".join(dict.fromkeys(gate.policy for gate in gates))
    return f"{_CONCLUSIONS[found]} {found} · edgebench {policies}: {spoken_totals(totals(gates))}"


def _against(gate: Gate) -> str:
    parts = [f"policy {_escaped(gate.policy)}", f"device {_escaped(gate.device)}"]
    parts += [f"against {_escaped(gate.reference)}"] if gate.reference else []
    parts += [f"baseline {_escaped(gate.baseline)}"] if gate.baseline else []
    return ", ".join(parts) + "".join(f"; differs by permission: {_escaped(words)}" for words in gate.allowed)


def _notes(gate: Gate) -> list[str]:
    return [line for note in gate.notes for line in (f"Note: {_escaped(note)}", "")]


def _table(verdicts: Sequence[Verdict]) -> list[str]:
    rows = ["| | Rule | Found | Demanded |", "|---|---|---|---|"]
    for one in by_urgency(verdicts):
        cells = (f"{_MARKS[one.outcome]} {one.outcome}", *map(_escaped, (_case(one), one.message, one.demand)))
        rows.append(f"| {' | '.join(cells)} |")
    return rows


def _case(verdict: Verdict) -> str:
    return f"{verdict.rule} [{verdict.where}]" if verdict.where else verdict.rule


def _paragraph(verdict: Verdict) -> str:
    where = f" on {verdict.where}" if verdict.where else ""
    parts = [f"{verdict.outcome}{where}: {verdict.message}", f"demanded: {verdict.demand}", verdict.hint]
    return " ".join(_sentence(part) for part in parts if part)


def _sentence(text: str) -> str:
    text = text[:1].upper() + text[1:]
    return text if text.endswith((".", "!", "?")) else f"{text}."


def _text(text: str) -> str:
    return _UNWRITABLE.sub("�", text)


def _escaped(text: str) -> str:
    return re.sub(r"([\\`*_|<>\[\]#~])", r"\\\1", " ".join(text.split()))
