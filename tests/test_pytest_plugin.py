"""The fixture `edgebench_gate`, in pytest sessions of their own."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from edgebench.catalog import tomllib
from tests.conftest import PROJECT
from tests.finished_runs import ACCURACY, FLIPS, INT8, SPEED, policy_file, write_pair

TEST = "def test_it(edgebench_gate):\n    gates = edgebench_gate('runs', 'gates.toml'{})\n    assert 1 == len(gates)\n"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    policy_file(tmp_path, FLIPS, ACCURACY, name="gates.toml")
    return tmp_path


def session(project: Path, *words: str, test: str = TEST.format("")) -> subprocess.CompletedProcess[str]:
    """Run the test in a pytest session that loads the plugin as its entry point does, and no other."""
    (project / "test_it.py").write_text(test)
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "edgebench.pytest_plugin", "-p", "no:cacheprovider", "-W", "error", *words],
        cwd=project, check=False, capture_output=True, text=True, timeout=1500,
        env={"PYTHONPATH": str(PROJECT), "PATH": "/usr/bin:/bin", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"})


def test_a_gate_that_passes_returns_its_verdicts(project: Path) -> None:
    write_pair(project / "runs")
    done = session(project)
    assert 0 == done.returncode, done.stdout
    assert "edgebench gates" not in done.stdout


def test_a_rule_that_fails_fails_the_test_with_what_was_found(project: Path) -> None:
    write_pair(project / "runs", lost=60)
    done = session(project)
    assert 1 == done.returncode
    assert "FAIL  mine: 2 failed" in done.stdout
    assert re.search(rf"fail: {INT8}: accuracy \(inspection\): −7.5 points, between .* a fall of at most 1 point is allowed", done.stdout)
    assert "pytest_plugin.py" not in done.stdout


def test_what_is_inconclusive_passes_and_is_listed_unless_strict(project: Path) -> None:
    write_pair(project / "runs", lost=5)
    done = session(project)
    assert 0 == done.returncode, done.stdout
    listed = done.stdout.partition("edgebench gates: not decided, or a warning")[2]
    assert re.search(rf"test_it.py::test_it: inconclusive: {INT8}: accuracy .* images would decide it", listed)
    assert 1 == session(project, "--edgebench-strict").returncode
    assert 1 == session(project, test=TEST.format(", strict=True")).returncode
    assert 0 == session(project, "--edgebench-strict", test=TEST.format(", strict=False")).returncode


def test_a_warning_is_listed(project: Path) -> None:
    write_pair(project / "runs", lost=60)
    policy_file(project, FLIPS + 'severity = "warning"\n', name="gates.toml")
    done = session(project)
    assert 0 == done.returncode
    assert f"test_it.py::test_it: warning: {INT8}: flips" in done.stdout


def test_what_cannot_be_judged_fails_with_the_reason(project: Path) -> None:
    done = session(project)
    assert 1 == done.returncode
    assert "no such file or folder: runs" in done.stdout
    write_pair(project / "runs")
    policy_file(project, '[[rules]]\nid = "energy"\nmetric = "energy_per_inference"\nmax = 1.0\n', name="gates.toml")
    assert f"error: {INT8}: energy: energy_per_inference is not in this run" in session(project).stdout


def test_a_baseline_is_taken_as_on_the_command_line(project: Path) -> None:
    write_pair(project / "runs", lost=60)
    write_pair(project / "old")
    policy_file(project, ACCURACY.replace('"reference"', '"baseline"'), name="gates.toml")
    assert 1 == session(project, test=TEST.format(", baseline='old'")).returncode
    assert 0 == session(project, test=TEST.format(", baseline='runs'")).returncode
    done = session(project, test=TEST.format(", baseline='promoted', history='old'"))
    assert "there is no baseline" in done.stdout
    assert "no run on cpu was promoted to 'release' in old" in done.stdout


def test_noise_floors_are_taken_as_on_the_command_line(project: Path) -> None:
    write_pair(project / "runs", latency_s=0.008)
    write_pair(project / "old")
    policy_file(project, SPEED, name="gates.toml")
    done = session(project, test=TEST.format(", baseline='old'"))
    assert 0 == done.returncode
    assert "runs of different days differ by more than their intervals say" in done.stdout
    (project / "floor.json").write_text(json.dumps({
        "device": "cpu", "metric": "latency_p50", "floor": 0.05, "confidence": 0.95, "content": 0.95, "n": 5,
        "conditions": {}, "ratios": [1.0], "false_differences": 0, "measured_at": "2026-01-01"}))
    assert 1 == session(project, test=TEST.format(", baseline='old', floors=['floor.json']")).returncode


def test_verdicts_are_properties_of_the_test_in_junit_files(project: Path) -> None:
    write_pair(project / "runs", lost=60)
    session(project, "--junitxml", "j.xml")
    found = {one.get("name"): one.get("value") for one in ET.parse(project / "j.xml").iter("property")}
    assert {f"edgebench.{INT8}.flips": "fail", f"edgebench.{INT8}.accuracy": "fail"} == found


def test_the_option_is_in_the_help_and_pytest_finds_the_plugin_by_its_entry_point(project: Path) -> None:
    assert "--edgebench-strict" in session(project, "--help").stdout
    declared = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["entry-points"]["pytest11"]
    assert {"edgebench": "edgebench.pytest_plugin"} == declared


def test_a_session_that_uses_no_gate_imports_nothing_of_edgebench_but_switches_and_the_plugin(project: Path) -> None:
    done = session(project, test="import sys\ndef test_it():\n    names = {name for name in sys.modules if name.startswith('edgebench')}\n"
                                 "    assert {'edgebench', 'edgebench.privacy', 'edgebench.pytest_plugin'} == names\n    assert 'numpy' not in sys.modules\n")
    assert 0 == done.returncode, done.stdout
