"""The board side: base install plus one runtime, in a fresh virtual environment, from the built wheel."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from edgebench import catalog, sources
from edgebench.artifacts import write_manifest
from edgebench.export import export_all
from edgebench.record import load_artifact
from tests.conftest import PROJECT, picture
from tests.models import CLASSES, onnx_file, preprocess_file


def interpreter(version: str) -> str | None:
    """Return a Python of that version, such as ``3.10``, where one is installed and starts."""
    named = shutil.which(f"python{version}")
    managed = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv", "versions").glob(f"{version}.*/bin/python")
    for python in (*([named] if named else []), *map(str, sorted(managed))):
        said = subprocess.run([python, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"], capture_output=True,
                              text=True, check=False)
        if said.stdout.strip() == version:
            return python
    return None


# The oldest that is supported is what JetPack 6 brings.
@pytest.fixture(scope="module", params=["this", "3.10"])
def board(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment that holds the wheel's base install and ONNX Runtime."""
    base = sys.executable if request.param == "this" else interpreter(request.param)
    if base is None:
        pytest.skip(f"Python {request.param} is not installed here")
    root = tmp_path_factory.mktemp("board")
    subprocess.run([base, "-m", "venv", root / "venv"], check=True)
    python = root / "venv" / "bin" / "python"
    # The constraints are for the Python of the suite: an older one takes older releases.
    pinned = ["-c", str(PROJECT / "constraints.txt")] if request.param == "this" else []
    installed = subprocess.run(
        [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *pinned,
         f"{PROJECT}[onnxruntime]"], capture_output=True, text=True, check=False)
    assert 0 == installed.returncode, installed.stderr
    return python


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("artifact")
    from edgebench.record import ClassMap, Preprocess

    source = sources.open_source(
        str(onnx_file(root / "m.onnx")), classes=ClassMap(ids=CLASSES, names=CLASSES),
        preprocess=catalog.read_toml(preprocess_file(root), Preprocess))
    (_, folder), = export_all(source, [catalog.recipe("ort-fp32")], root)
    assert isinstance(folder, Path)
    return folder


def run(python: Path, *words: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    # -I: neither this project's folder nor PYTHONPATH may help.
    return subprocess.run([str(python), "-I", "-m", "edgebench", *map(str, words)], capture_output=True, text=True,
                          cwd=cwd, check=False, env={**os.environ, "PYTHONPATH": ""})


def test_the_board_holds_no_training_stack(board: Path, tmp_path: Path) -> None:
    code = ("import importlib.util as u, json; print(json.dumps([n for n in ('torch', 'timm', 'open_clip', 'onnx', "
            "'openvino', 'scipy', 'sklearn') if u.find_spec(n)]))")
    found = subprocess.run([str(board), "-I", "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert [] == json.loads(found.stdout)


def test_an_artifact_is_profiled_evaluated_and_reported_there(board: Path, artifact: Path, tmp_path: Path) -> None:
    for k, name in enumerate(CLASSES):
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in range(4):
            picture(10 * k + number).save(tmp_path / "data" / name / f"{number}.png")
    profiled = run(board, "profile", artifact, "--data", "data", "--budget", "smoke", "--out", "out", cwd=tmp_path)
    assert 0 == profiled.returncode, profiled.stderr
    assert (tmp_path / "out" / "report.html").stat().st_size > 100_000
    evaluated = run(board, "evaluate", artifact, "--data", "data", "--out", "evaluated", "--json", cwd=tmp_path)
    assert 0 == evaluated.returncode, evaluated.stderr
    reported = run(board, "report", "out", "--rescore", "--json", cwd=tmp_path)
    assert 0 == reported.returncode, reported.stderr
    assert 1 == len(json.loads(reported.stdout)["variants"])


def test_a_model_there_says_which_extra_is_missing(board: Path, tmp_path: Path) -> None:
    done = run(board, "profile", "timm:resnet18", "--out", "out", cwd=tmp_path)
    assert 3 == done.returncode
    assert "error: torch is not installed\nhint:  install it with: pip install 'edgebench[export]'" in done.stderr


def test_a_runtime_that_is_not_there_is_named(board: Path, artifact: Path, tmp_path: Path) -> None:
    shutil.copytree(artifact, tmp_path / "other")
    manifest = load_artifact(artifact)
    write_manifest(tmp_path / "other", replace(manifest, recipe=replace(manifest.recipe, backend="openvino")))
    done = run(board, "profile", "other", "--properties", "none", "--out", "out", cwd=tmp_path)
    assert 3 == done.returncode
    assert "pip install 'edgebench[openvino]'" in done.stderr


@pytest.mark.parametrize("words", [(), ("profile",), ("evaluate",), ("export",), ("report",), ("recipes",),
                                   ("devices",), ("properties",), ("doctor",), ("data",), ("data", "check")])
def test_every_help_shows_there(board: Path, words: tuple[str, ...], tmp_path: Path) -> None:
    done = run(board, *words, "--help", cwd=tmp_path)
    assert 0 == done.returncode, done.stderr
    assert done.stdout.startswith("Usage: ")


def test_the_catalogue_came_along_in_the_wheel(board: Path, tmp_path: Path) -> None:
    done = run(board, "recipes", "--json", cwd=tmp_path)
    assert sorted(catalog.recipes()) == sorted(recipe["id"] for recipe in json.loads(done.stdout))
    assert sys.version_info >= (3, 10)
