"""Every output is read back: JUnit by a parser, SARIF against the parts of its schema that are used, JSON into verdicts."""

from __future__ import annotations

import html
import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar
from xml.etree import ElementTree as ET

import jsonschema
import pytest

from edgebench import finished, gate, judging, policy, pytest_plugin, record, verdict_outputs, verdict_pages
from edgebench.errors import InvalidInput
from edgebench.finished import Found, Judgement
from tests.test_gate import paired

POLICY = """id = "mine"
title = "Mine"
purpose = "For tests"

[[rules]]
id = "precision"
metric = "precision_achieved"
min = 1.0
because = "No fallback."

[[rules]]
id = "flips"
metric = "negative_flips"
of = "accuracy"
max = 0.03

[[rules]]
id = "accuracy"
metric = "accuracy_top1"
of = "accuracy"
against = "reference"
max_decrease_absolute = 0.01

[[rules]]
id = "energy"
metric = "energy_per_inference"
max = 1.0

[[rules]]
id = "robustness"
metric = "mean_corruption_accuracy"
min = 0.5
missing = "skip"

[[rules]]
id = "disagreement"
metric = "negative_flips"
of = "accuracy"
max = 0.02
severity = "warning"
"""


@pytest.fixture
def judged(tmp_path):
    """One verdict of every status: pass, fail, inconclusive, error, skipped, and a failed warning."""
    file = tmp_path / "gates" / "my policy.toml"
    file.parent.mkdir()
    file.write_text(POLICY)
    run, _ = paired(55, 46)
    found = gate.judge(policy.load(file), (run, None))
    assert ["pass", "fail", "inconclusive", "error", "skipped", "fail"] == [one.status for one in found.verdicts]
    return found


def text(**required) -> dict:
    return {"type": "object", "additionalProperties": False, **required}


MESSAGE = text(required=["text"], properties={"text": {"type": "string", "minLength": 1}})
LOCATION = text(properties={"physicalLocation": text(
    required=["artifactLocation"], properties={
        "artifactLocation": text(properties={
            "uri": {"type": "string", "format": "uri-reference"}, "uriBaseId": {"type": "string"}}),
        "region": text(properties={"startLine": {"type": "integer", "minimum": 1}})})})
LEVEL = {"enum": ["none", "note", "warning", "error"]}
SARIF = {
    # The parts of the OASIS schema sarif-schema-2.1.0 that are written, as closed as they are there.
    "$schema": "http://json-schema.org/draft-07/schema#", **text(
        required=["version", "runs"], properties={
            "$schema": {"type": "string", "format": "uri"}, "version": {"enum": ["2.1.0"]},
            "runs": {"type": "array", "minItems": 0, "items": text(required=["tool"], properties={
                "tool": text(required=["driver"], properties={"driver": text(required=["name"], properties={
                    "name": {"type": "string"},
                    "semanticVersion": {"type": "string"},
                    "rules": {"type": "array", "uniqueItems": True, "items": text(required=["id"], properties={
                        "id": {"type": "string"}, "name": {"type": "string"}, "shortDescription": MESSAGE,
                        "fullDescription": MESSAGE, "help": MESSAGE,
                        "defaultConfiguration": text(properties={"level": LEVEL}),
                        "properties": {"type": "object", "properties": {"tags": {
                            "type": "array", "uniqueItems": True, "items": {"type": "string"}}}}})}})}),
                "automationDetails": text(properties={"id": {"type": "string"}}),
                "originalUriBaseIds": {"type": "object", "additionalProperties": text(properties={"description": MESSAGE})},
                "invocations": {"type": "array", "uniqueItems": False, "items": text(
                    required=["executionSuccessful"], properties={
                        "executionSuccessful": {"type": "boolean"},
                        "toolExecutionNotifications": {"type": "array", "items": text(required=["message"], properties={
                            "level": LEVEL, "message": MESSAGE, "locations": {"type": "array", "items": LOCATION},
                            "associatedRule": text(properties={
                                "id": {"type": "string"}, "index": {"type": "integer", "minimum": -1}})})}})},
                "results": {"type": "array", "items": text(required=["message"], properties={
                    "ruleId": {"type": "string"}, "ruleIndex": {"type": "integer", "minimum": -1}, "level": LEVEL,
                    "kind": {"enum": ["notApplicable", "pass", "fail", "review", "open", "informational"]},
                    "message": MESSAGE, "locations": {"type": "array", "items": LOCATION},
                    "partialFingerprints": {"type": "object", "additionalProperties": {"type": "string"}},
                    "properties": {"type": "object"}})},
                "columnKind": {"enum": ["utf16CodeUnits", "unicodeCodePoints"]},
            })},
        }),
}


class TestJunit:
    def read(self, judged, **options) -> ET.Element:
        return ET.fromstring(verdict_outputs.junit([judged], **options).encode())

    def test_has_a_case_per_verdict_and_counts_that_add_up(self, judged):
        root = self.read(judged)
        (suite,) = root
        assert ("testsuites", "testsuite") == (root.tag, suite.tag)
        assert [one.rule for one in judged.verdicts] == [case.get("name").partition(" [")[0] for case in suite]
        for element in (root, suite):
            assert ("6", "1", "1", "2") == tuple(element.get(name) for name in ("tests", "failures", "errors", "skipped"))
        assert 1 == len(root.findall(".//failure"))
        assert 2 == len(root.findall(".//skipped"))

    def test_tells_failures_from_what_could_not_be_judged(self, judged):
        root = self.read(judged)
        failure, error = root.find(".//failure"), root.find(".//error")
        assert failure.get("message").startswith("fail: 5.5 %, between ")
        assert "at most 3 % is allowed" in failure.text
        assert "edgebench.error" == error.get("type")
        assert "energy_per_inference is not in this run" in error.text

    def test_counts_inconclusive_as_failures_only_where_strict(self, judged):
        assert "2" == self.read(judged, strict=True).get("failures")

    def test_a_failed_warning_passes_and_is_told(self, judged):
        case = self.read(judged)[0][-1]
        assert [] == [child.tag for child in case if child.tag != "system-out"]
        assert case.find("system-out").text.startswith("Warning on inspection: 5.5 %")

    def test_characters_that_xml_cannot_hold_are_replaced(self, judged):
        odd = replace(judged, variant="a\x00b<&\"\ud800")
        root = ET.fromstring(verdict_outputs.junit([odd]).encode())
        assert "mine: a�b<&\"�" == root[0].get("name")


class TestSarif:
    def test_fits_the_schema(self, judged, tmp_path):
        found = verdict_outputs.sarif([judged, judged], tmp_path)
        jsonschema.validate(json.loads(json.dumps(found, allow_nan=False)), SARIF)
        assert 2 == len(found["runs"])
        other, = verdict_outputs.sarif([replace(judged, device="jetson")], tmp_path)["runs"]
        assert found["runs"][0]["automationDetails"] != other["automationDetails"]

    def test_points_at_the_line_of_the_rule_in_the_policy_file(self, judged, tmp_path):
        (run,) = verdict_outputs.sarif([judged], tmp_path)["runs"]
        lines = POLICY.splitlines()
        for result in run["results"]:
            place = result["locations"][0]["physicalLocation"]
            assert {"uri": "gates/my%20policy.toml", "uriBaseId": "%SRCROOT%"} == place["artifactLocation"]
            line = place["region"]["startLine"]
            assert ["[[rules]]", f'id = "{result["ruleId"]}"'] == lines[line - 1:line + 1]
            assert result["ruleId"] == run["tool"]["driver"]["rules"][result["ruleIndex"]]["id"]

    def test_a_policy_outside_of_the_folder_is_named_in_full(self, judged, tmp_path):
        (run,) = verdict_outputs.sarif([judged], tmp_path / "elsewhere")["runs"]
        assert run["results"][0]["locations"][0]["physicalLocation"]["artifactLocation"]["uri"].startswith("file:///")

    def test_findings_are_results_and_what_could_not_be_judged_is_a_notification(self, judged, tmp_path):
        (run,) = verdict_outputs.sarif([judged], tmp_path)["runs"]
        assert [("flips", "fail", "error"), ("accuracy", "open", "none"), ("disagreement", "fail", "warning")] == [
            (one["ruleId"], one["kind"], one["level"]) for one in run["results"]]
        (invocation,) = run["invocations"]
        assert not invocation["executionSuccessful"]
        assert ["energy"] == [one["associatedRule"]["id"] for one in invocation["toolExecutionNotifications"]]

    def test_fingerprints_stay_when_numbers_and_lines_change_and_differ_between_rules(self, judged, tmp_path):
        def prints(of):
            return [one["partialFingerprints"][verdict_outputs.FINGERPRINT] for one in
                    verdict_outputs.sarif([of], tmp_path)["runs"][0]["results"]]

        moved = replace(judged, created_at="2027-01-01T00:00:00+00:00", verdicts=tuple(
            replace(one, line=one.line + 7, value=0.5, message="other numbers") for one in judged.verdicts))
        assert prints(judged) == prints(moved)
        assert 3 == len(set(prints(judged)))
        assert not set(prints(judged)) & set(prints(replace(judged, variant="another")))


class TestMarkdown:
    def test_summary_lists_every_verdict_worst_first_with_what_to_do(self, judged):
        found = verdict_outputs.summary([judged])
        assert found.startswith("# ❌ FAIL · edgebench mine: 1 failed, 1 warned, 1 could not be judged, 1 inconclusive, 1 skipped, 1 passed")
        rows = [line for line in found.splitlines() if line.startswith("| ") and " | Rule | " not in line]
        assert ["❌ fail", "⚠️ warning", "⛔ error", "❔ inconclusive", "➖ skipped", "✅ pass"] == [
            row.split(" | ")[0].removeprefix("| ") for row in rows]
        assert "images would decide it" in found

    def test_comment_folds_what_needs_no_attention_and_can_be_found_again(self, judged):
        found = verdict_outputs.comment([judged])
        again = verdict_outputs.comment([replace(judged, verdicts=judged.verdicts[:1])])
        assert found.splitlines()[0] == again.splitlines()[0]
        assert found.startswith("<!-- edgebench:")
        before, _, folded = found.partition("<details>")
        assert "flips" in before
        assert "✅ pass | precision" in folded
        assert "1 passed, 1 skipped" in folded

    def test_the_marker_is_of_policy_and_key_alone(self, judged):
        def marker(*gates, **options):
            return verdict_outputs.comment(gates, **options).splitlines()[0]

        assert marker(judged, key="a") == marker(judged, replace(judged, variant="more", device="other"), key="a")
        assert 3 == len({marker(judged), marker(judged, key="a"), marker(replace(judged, policy="other"))})

    def test_a_comment_is_no_longer_than_github_takes(self, judged):
        for most, words in ((60, "1 passed, 1 skipped"), (3000, "This is cut short")):
            found = verdict_outputs.comment([replace(judged, variant=f"v{k}") for k in range(most)])
            assert 40_000 < len(found) <= verdict_outputs.LONGEST_COMMENT
            assert words in found
            assert "<details>" not in found
        assert not found.splitlines()[-1].startswith("|")

    def test_names_cannot_break_the_table(self, judged):
        odd = replace(judged, verdicts=(replace(judged.verdicts[0], rule="a|b", message="x\ny | <z>"),))
        (row,) = [line for line in verdict_outputs.summary([odd]).splitlines() if "a\\|b" in line]
        assert 5 == row.replace("\\|", "").count("|")
        assert "\\<z\\>" in row

    def test_an_open_question_is_no_tick(self, judged):
        only = replace(judged, verdicts=tuple(one for one in judged.verdicts if one.status in ("pass", "inconclusive")))
        assert verdict_outputs.summary([only]).startswith("# ❔ ")
        assert verdict_outputs.summary([replace(only, verdicts=only.verdicts[:1])]).startswith("# ✅ ")


def test_notes_stand_in_every_output(judged, tmp_path):
    noted = replace(judged, notes=("no baseline: none was promoted",))
    for text in (json.dumps(verdict_outputs.as_json([noted])), verdict_outputs.junit([noted]), verdict_outputs.summary([noted]),
                 verdict_outputs.comment([noted])):
        assert "no baseline: none was promoted" in text
    found = verdict_outputs.sarif([noted], tmp_path)
    jsonschema.validate(found, SARIF)
    last = found["runs"][0]["invocations"][0]["toolExecutionNotifications"][-1]
    assert {"level": "note", "message": {"text": "No baseline: none was promoted."}} == last


class TestJson:
    def test_is_read_back_as_the_same_verdicts(self, judged, tmp_path):
        file = tmp_path / "verdicts.json"
        record.write_json(file, verdict_outputs.as_json([judged], strict=True))
        assert (judged,) == verdict_outputs.read(file)
        assert 1 == json.loads(file.read_text())["exit_code"]

    def test_another_file_is_refused(self, tmp_path):
        file = tmp_path / "run.json"
        file.write_text('{"schema": "edgebench.run/1"}')
        with pytest.raises(InvalidInput, match=r"expected schema 'edgebench.verdicts/1', got 'edgebench.run/1'"):
            verdict_outputs.read(file)


class TestAllOutputsAgree:
    """One gate with every outcome, number by number."""

    EXPECTED: ClassVar = dict.fromkeys(("fail", "warning", "error", "inconclusive", "skipped", "pass"), 1)
    WORDS = "1 failed, 1 warned, 1 could not be judged, 1 inconclusive, 1 skipped, 1 passed"

    @pytest.fixture
    def judgement(self, judged) -> Judgement:
        return Judgement(policy=policy.load(Path(judged.path)), gates=(judged,), found=Found(subjects=(), unfinished=()))

    def outputs(self, judgement, capsys) -> dict[str, str]:
        """Return each output as text."""
        gates = judgement.gates
        judging.print_judgement(judgement)
        terminal = capsys.readouterr().out
        page = re.sub(r"<[^>]+>", " ", verdict_pages.gate_page(judgement))
        return {"terminal": terminal, "html": html.unescape(page), "summary": verdict_outputs.summary(gates),
                "comment": verdict_outputs.comment(gates), "pytest": self.of_pytest(judgement)}

    def of_pytest(self, judgement) -> str:
        config = SimpleNamespace(stash=pytest.Stash(), getoption=lambda _: False)
        node = SimpleNamespace(nodeid="test_it.py::test_it", user_properties=[])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(finished, "judge", lambda *_, **__: judgement)
            with pytest.raises(pytest.fail.Exception) as caught:
                pytest_plugin.GateCheck(SimpleNamespace(config=config, node=node))("runs", "mine")
        told = config.stash[pytest_plugin._TOLD]
        return "\n".join([str(caught.value), *told, *(str(value) for _, value in node.user_properties)])

    def test_in_their_totals_and_what_they_come_to(self, judgement, capsys):
        found = self.outputs(judgement, capsys)
        assert dict.fromkeys(found, True) == {name: self.WORDS in text for name, text in found.items()}
        assert dict.fromkeys(found, True) == {name: "FAIL" in text for name, text in found.items()}
        assert "FAIL" == found["terminal"].split()[0]
        data = verdict_outputs.as_json(judgement.gates)
        assert (self.EXPECTED, "FAIL") == (data["totals"], data["conclusion"])
        assert self.EXPECTED == self.of_junit(judgement.gates)
        assert {name: self.EXPECTED[name] for name in ("fail", "warning", "error", "inconclusive")} == self.of_sarif(judgement.gates)

    def of_junit(self, gates) -> dict[str, int]:
        cases = ET.fromstring(verdict_outputs.junit(gates).encode()).findall(".//testcase")
        first = [(case[0].get("message") or case[0].text).partition(" on ")[0].partition(":")[0].lower() for case in cases]
        return {name: first.count(name) for name in self.EXPECTED}

    def of_sarif(self, gates) -> dict[str, int]:
        (run,) = verdict_outputs.sarif(gates)["runs"]
        kinds = [(one["kind"], one["level"]) for one in run["results"]]
        return {"fail": kinds.count(("fail", "error")), "warning": kinds.count(("fail", "warning")),
                "error": len(run["invocations"][0]["toolExecutionNotifications"]), "inconclusive": kinds.count(("open", "none"))}

    def test_in_every_number_of_a_verdict(self, judgement, capsys):
        gates = judgement.gates
        texts = {**self.outputs(judgement, capsys), "junit": html.unescape(verdict_outputs.junit(gates)),
                 "json": json.dumps(verdict_outputs.as_json(gates), ensure_ascii=False),
                 "sarif": json.dumps(verdict_outputs.sarif(gates), ensure_ascii=False)}
        for name, text in texts.items():
            told = re.sub(r"[\\\s]+", "", text)
            lacking = [one.rule for one in gates[0].verdicts if re.sub(r"\s+", "", one.message).casefold() not in told.casefold()
                       and not (name in ("sarif", "pytest") and one.status in ("pass", "skipped"))]
            assert (name, []) == (name, lacking)

    def test_in_what_is_undecided_not_judged_or_passed(self, judged, capsys):
        for statuses, expected in ((("pass", "inconclusive"), "UNDECIDED"), (("pass", "error", "inconclusive"), "NOT JUDGED"),
                                   (("pass", "skipped"), "PASS")):
            one = replace(judged, verdicts=tuple(v for v in judged.verdicts if v.status in statuses))
            whole = Judgement(policy=policy.load(Path(judged.path)), gates=(one,), found=Found(subjects=(), unfinished=()))
            judging.print_judgement(whole)
            assert expected == capsys.readouterr().out.partition("  ")[0]
            assert f"<h1>{expected}: " in verdict_pages.gate_page(whole)
            assert expected == verdict_outputs.as_json([one])["conclusion"]

    def test_the_shipped_policies_ask(self):
        assert ["?"] * 3 == [one.title[-1] for one in policy.shipped().values()]
