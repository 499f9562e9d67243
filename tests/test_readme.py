"""What README and docs show is what the program does."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

import click
import pytest

from edgebench import catalog, errors, properties, sources
from edgebench.cli import cli
from edgebench.export import export_all
from tests.conftest import PROJECT
from tests.models import onnx_file

TEXTS = {path.name: path.read_text(encoding="utf-8") for path in (PROJECT / "README.md", *(PROJECT / "docs").glob("*.md"))}
README = TEXTS["README.md"]


def shown_commands() -> list[list[str]]:
    lines = [line.partition("#")[0].partition("$ ")[2] for text in TEXTS.values() for line in text.splitlines()
             if re.match(r"^\w*\$ edgebench ", line)]
    return [shlex.split(line)[1:] for line in lines]


@pytest.mark.parametrize("words", shown_commands(), ids=" ".join)
def test_every_command_that_is_shown_parses(words: list[str]) -> None:
    command: click.Command = cli
    while isinstance(command, click.Group):
        command = command.commands[words.pop(0)]
    command.make_context("edgebench", list(words))


def test_commands_are_shown_at_all() -> None:
    assert {"profile", "export", "report"} <= {words[0] for words in shown_commands()}


def test_every_recipe_property_and_caveat_that_is_named_exists() -> None:
    named = set(re.findall(r"\b(?:ort|openvino)-(?:fp32|bf16|int8)\b", README))
    assert named <= set(catalog.recipes())
    files = [path.read_text() for path in (PROJECT / "edgebench").rglob("*.py")]
    source = "".join(files)
    caveats = {keyword.value.value for text in files for call in ast.walk(ast.parse(text))
               if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "Caveat" for keyword in call.keywords
               if keyword.arg == "code" and isinstance(keyword.value, ast.Constant)}
    section = README.partition("## Reading caveats")[2].partition("\n## ")[0]
    for code in re.findall(r"`([a-z]+(?:-[a-z0-9]+)+)`", section):
        assert f'"{code}"' in source, code
    assert len(caveats) > 20
    for code in caveats:
        assert f"`{code}`" in section, f"README does not explain the caveat {code}"
    assert {"mistakes", "shape-bias"} <= set(properties.NAMES)


def test_the_exit_codes_are_those_of_the_program() -> None:
    section = README.partition("## Exit codes")[2].partition("\n## ")[0]
    assert [int(code) for code in re.findall(r"(?:^|· )(\d) ", section.replace("\n", " ").strip())] == [
        code.value for code in errors.ExitCode]


def test_links_lead_somewhere() -> None:
    for name, text in TEXTS.items():
        base = PROJECT if name == "README.md" else PROJECT / "docs"
        for target in re.findall(r"\]\(([^)#]+)\)", text):
            assert (base / target).exists(), f"{name}: {target}"


def test_the_library_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    source = sources.open_source(str(onnx_file(tmp_path / "m.onnx")))
    (_, artifact), = export_all(source, [catalog.recipe("ort-fp32")], tmp_path / "artifacts")
    example = example.replace('"demo:inspection"', repr(str(artifact))).replace('"quick"', '"smoke"')
    # The small artifact brings no images, so its accuracy is None.
    example = example.replace("top1.value", "top1")
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert "m.onnx--ort-fp32--onnxruntime fp32" in printed
    assert "report.html []" in printed
