"""Standard streams that are closed, full or no longer read, and names that no terminal can show."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgebench.errors import ExitCode
from tests.commands import PROJECT, cli
from tests.conftest import picture

COMMANDS = (["recipes", "--json"], ["profile", "nowhere.onnx", "--out", "out"])


def shell(words: list[str], redirection: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash", "-c", f"{sys.executable} -m edgebench {' '.join(words)} {redirection}"], cwd=folder,
                          capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": str(PROJECT)})


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_closed_and_full_streams_change_no_exit_code_and_are_no_defect(tmp_path: Path, words: list[str]) -> None:
    usual = shell(words, "", tmp_path).returncode
    for redirection in (">&-", "2>&- <&-", "2>/dev/full"):
        done = shell(words, redirection, tmp_path)
        assert (redirection, usual) == (redirection, done.returncode), done.stderr
        assert "Traceback" not in done.stderr
    full = shell(words, ">/dev/full", tmp_path)
    assert "Traceback" not in full.stderr
    assert (ExitCode.UNMEASURABLE if usual == 0 else usual) == full.returncode
    assert usual != 0 or "standard output" in full.stderr


def test_a_reader_that_goes_away_leaves_the_exit_code(tmp_path: Path) -> None:
    done = shell(["recipes", "--json"], "| head -1; echo ${PIPESTATUS[0]}", tmp_path)
    assert (["[", "0"], "") == (done.stdout.split(), done.stderr)


@pytest.mark.parametrize("name", ["caf\udce9", "new\nline", "esc\x1b[31m", 'quote"', "日本"])
def test_odd_names_come_out_in_one_line_that_can_be_encoded(tmp_path: Path, name: str) -> None:
    done = cli("report", tmp_path / name)
    assert ExitCode.UNMEASURABLE == done.returncode
    lines = done.stderr.splitlines()
    assert lines[0].startswith("error: ")
    assert "\x1b" not in done.stderr
    assert len(lines) <= 2


def test_json_with_a_name_that_is_no_utf8_can_be_read_again(tmp_path: Path) -> None:
    for number, folder in enumerate(("cat", "dog")):
        (tmp_path / "data" / folder).mkdir(parents=True)
        picture(number).save(tmp_path / "data" / folder / "a.png")
    try:
        (tmp_path / "data" / "cat").rename(tmp_path / "data" / os.fsdecode(b"caf\xe9"))
    except OSError:
        pytest.skip("this file system takes no such names")
    done = cli("data", "check", tmp_path / "data", "--json")
    assert "Traceback" not in done.stderr
    assert done.returncode in (0, 3)
    if done.stdout:
        json.loads(done.stdout)
