"""What docs/ci.md shows is run: the action's own scripts, the GitLab job, the local hook, the test."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import PROJECT
from tests.finished_runs import ACCURACY, FLIPS, INT8, policy_file, write_pair

TEXT = (PROJECT / "docs" / "ci.md").read_text(encoding="utf-8")
ACTION: dict[str, Any] = yaml.safe_load((PROJECT / "action.yml").read_text(encoding="utf-8"))
STEPS = {step["name"]: step for step in ACTION["runs"]["steps"]}


def shown(name: str) -> str:
    """Return the block of docs/ci.md that begins with this file's name."""
    (found,) = re.findall(rf"```\w+\n# {re.escape(name)}\n(.*?)```", TEXT, re.DOTALL)
    return found


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A repository with finished runs that pass, a policy, and edgebench on the search path."""
    write_pair(tmp_path / "runs" / "this")
    policy_file(tmp_path, FLIPS, ACCURACY, name="gates.toml")
    (tmp_path / "bin").mkdir()
    for name, line in (("edgebench", f'exec {shlex.quote(sys.executable)} -m edgebench "$@"'), ("pip", "exit 0")):
        script(tmp_path / "bin" / name, line)
    return tmp_path


def script(file: Path, text: str) -> None:
    file.write_text(f"#!/bin/bash\n{text}\n")
    file.chmod(0o755)


def bash(project: Path, text: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a script as a step of a job does."""
    return subprocess.run(["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", text], cwd=project, check=False,
                          capture_output=True, text=True, timeout=1500, env={
                              **os.environ, "PATH": f"{project / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": str(PROJECT),
                              "NO_COLOR": "1", **env})


def step(project: Path, name: str, inputs: dict[str, str], **more: str) -> subprocess.CompletedProcess[str]:
    """Run a step of the action with these inputs, and the defaults of the others."""
    values = {key: one.get("default", "") for key, one in ACTION["inputs"].items()} | inputs
    env = {key: re.sub(r"\$\{\{ inputs\.([\w-]+) \}\}", lambda found: values[found[1]], text)
           for key, text in STEPS[name]["env"].items()}
    files = {key: str(project / key) for key in ("GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY")}
    return bash(project, STEPS[name]["run"], **{**env, **files, **more})


class TestAction:
    def test_every_input_that_is_used_is_declared_and_explained(self):
        text = (PROJECT / "action.yml").read_text(encoding="utf-8")
        assert set(ACTION["inputs"]) == set(re.findall(r"inputs\.([\w-]+)", text))
        assert all(one["description"] for one in (*ACTION["inputs"].values(), *ACTION["outputs"].values()))

    def test_no_expression_stands_in_a_script_where_its_value_would_be_run(self):
        assert [] == [name for name, one in STEPS.items() if "${{" in one.get("run", "")]

    @pytest.mark.parametrize(("asked", "installed"), [("", "/action[history]"), ("edgebench==0.3", "edgebench==0.3")])
    def test_installs_its_own_version_unless_another_is_asked_for(self, project, asked, installed):
        script(project / "bin" / "python", 'printf "%s\n" "$@" > words')
        done = bash(project, STEPS["Install edgebench"]["run"], INSTALL=asked, OWN="/action")
        assert 0 == done.returncode, done.stderr
        assert installed == (project / "words").read_text().splitlines()[-1]

    @pytest.mark.parametrize(("lost", "strict", "code"), [(0, "false", "0"), (60, "false", "1"), (5, "true", "4"), (5, "false", "0")])
    def test_judges_writes_every_file_and_ends_with_the_verdict(self, project, lost, strict, code):
        write_pair(project / "these runs", lost=lost)
        done = step(project, "Judge", {"run": "these runs", "policy": "gates.toml", "strict": strict, "out": "the verdicts"})
        assert 0 == done.returncode, done.stderr
        told = dict(line.split("=", 1) for line in (project / "GITHUB_OUTPUT").read_text().splitlines())
        assert {"exit-code": code, "folder": "the verdicts", "judged": "true"} == told
        assert {"junit.xml", "verdicts.sarif", "comment.md", "verdicts.html", "summary.md"} == {
            file.name for file in (project / "the verdicts").iterdir()}
        assert (project / "the verdicts" / "summary.md").read_text() == (project / "GITHUB_STEP_SUMMARY").read_text()
        assert int(code) == bash(project, STEPS["End with the verdict"]["run"], CODE=code).returncode

    def test_what_cannot_be_judged_ends_with_3_and_says_so_in_place_of_what_was_said_before(self, project):
        (project / "edgebench-verdicts").mkdir()
        (project / "edgebench-verdicts" / "verdicts.sarif").write_text("old")
        done = step(project, "Judge", {"run": "gone", "policy": "gates.toml"})
        assert "error: no such file or folder: gone" in done.stderr
        assert "exit-code=3\nfolder=edgebench-verdicts\njudged=true\n" == (project / "GITHUB_OUTPUT").read_text()
        for name in ("verdicts.sarif", "comment.md", "junit.xml", "summary.md"):
            assert "no such file or folder: gone" in (project / "edgebench-verdicts" / name).read_text()

    def test_baseline_and_exceptions_are_handed_over(self, project):
        script(project / "bin" / "edgebench", 'printf "%s\\n" "$@" > words')
        step(project, "Judge", {"run": "r", "policy": "p", "baseline": "latest:main", "allow": "governor,threads",
                                "noise-floor": "a b.json\nc.json\n", "key": "jetson"})
        words = (project / "words").read_text().splitlines()
        assert ["--comment-key", "jetson", "--baseline", "latest:main", "--allow", "governor,threads",
                "--noise-floor", "a b.json", "--noise-floor", "c.json"] == words[-10:]

    def test_what_may_be_refused_for_want_of_rights_does_not_decide(self):
        optional, last = [one for one in STEPS.values() if one.get("continue-on-error")], STEPS["End with the verdict"]
        assert ["Show findings in the code-scanning view", "Comment on the pull request"] == [one["name"] for one in optional]
        assert last["if"].startswith("${{ always() && ")

    def test_a_damaged_run_leaves_every_file_too(self, project):
        (project / "runs" / "this" / INT8 / "run.json").write_text("{")
        step(project, "Judge", {"run": "runs/this", "policy": "gates.toml"})
        assert "exit-code=3\nfolder=edgebench-verdicts\njudged=true\n" == (project / "GITHUB_OUTPUT").read_text()
        assert "⛔" in (project / "edgebench-verdicts" / "comment.md").read_text()

    @pytest.mark.parametrize(("known", "call"), [
        ("", "--method POST repos/o/r/issues/12/comments"), ("77\n78", "--method PATCH repos/o/r/issues/comments/77")])
    def test_one_comment_is_kept_up_to_date(self, project, known, call):
        (project / "comment.md").write_text("<!-- edgebench:abc -->\n### fine\n")
        script(project / "bin" / "gh", f'echo "$@" >> calls\n[[ "$*" == *--paginate* ]] && printf "{known}"\nexit 0')
        done = bash(project, STEPS["Comment on the pull request"]["run"], REPOSITORY="o/r", NUMBER="12", FILE="comment.md")
        assert 0 == done.returncode, done.stderr
        first, second = (project / "calls").read_text().splitlines()
        assert 'startswith("<!-- edgebench:abc -->")' in first
        assert f"api --silent {call} --field body=@comment.md" == second

    def test_the_workflow_that_is_shown_uses_it_as_declared(self):
        workflow = yaml.safe_load(shown(".github/workflows/gate.yml"))
        (use,) = [one for one in workflow["jobs"]["judge"]["steps"] if one["uses"].startswith("OWNER/edgebench@")]
        assert set(use["with"]) <= set(ACTION["inputs"])
        assert {name for name, one in ACTION["inputs"].items() if one.get("required")} <= set(use["with"])


def test_the_gitlab_job_that_is_shown_judges_and_leaves_its_files(project: Path) -> None:
    job = yaml.safe_load(shown(".gitlab-ci.yml"))["gate"]
    done = bash(project, "\n".join([*job["before_script"], *job["script"]]))
    assert 0 == done.returncode, done.stderr
    for file in (*job["artifacts"]["paths"], job["artifacts"]["reports"]["junit"]):
        assert (project / file).is_file()


def test_the_local_hook_that_is_shown_stops_a_bad_push(project: Path) -> None:
    (repo,) = yaml.safe_load(shown(".pre-commit-config.yaml"))["repos"]
    (hook,) = repo["hooks"]
    assert ("local", "system", False) == (repo["repo"], hook["language"], hook["pass_filenames"])
    assert re.search(hook["files"], "artifacts/int8/model.onnx")
    assert 0 == bash(project, hook["entry"]).returncode
    write_pair(project / "runs" / "this", lost=60)
    assert 1 == bash(project, hook["entry"]).returncode


def test_the_test_that_is_shown_passes_once_a_baseline_was_promoted(project: Path) -> None:
    (project / "test_model.py").write_text(shown("test_model.py"))
    promoted = bash(project, "mkdir baselines; edgebench baseline promote runs/this --history baselines --why 'first' --json")
    assert "first" == json.loads(promoted.stdout)[0]["why"]
    done = bash(project, f"{shlex.quote(sys.executable)} -m pytest -q -p edgebench.pytest_plugin -p no:cacheprovider test_model.py",
                PYTEST_DISABLE_PLUGIN_AUTOLOAD="1")
    assert 0 == done.returncode, done.stdout
    assert "1 passed" in done.stdout


def test_every_exit_code_is_explained() -> None:
    from edgebench.errors import ExitCode

    assert [code.value for code in ExitCode] == [int(code) for code in re.findall(r"^\| (\d) \|", TEXT, re.MULTILINE)]
