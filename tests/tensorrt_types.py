"""Check the TensorRT backend against TensorRT's own types: ``python -m tests.tensorrt_types``.

``tensorrt-stubs`` are generated and hold five lines that are no Python (a parameter called ``in``, a default before a
parameter without one): a repaired copy is checked against.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
FILES = [f"edgebench/backends/{name}.py" for name in ("tensorrt", "tensorrt_rtx", "engine_builder", "engine_session")]


def repaired_stubs(folder: Path) -> None:
    """Write the installed stubs into `folder`, as valid Python."""
    for package in ("tensorrt", "tensorrt_bindings"):
        spec = find_spec(package)
        assert spec is not None
        assert spec.submodule_search_locations is not None
        target = folder / package
        target.mkdir(parents=True)
        for file in Path(next(iter(spec.submodule_search_locations))).glob("*.pyi"):
            text = re.sub(r"\bin: ", "in_: ", file.read_text(encoding="utf-8"))
            # The module has a value called bool.
            text = text.replace("-> bool:", "-> builtins.bool:").replace("import typing\n", "import builtins\nimport typing\n")
            (target / file.name).write_text(text.replace("channel_axis: int)", "channel_axis: int = 0)"), encoding="utf-8")


def check(folder: Path) -> tuple[int, str]:
    """Run mypy on the backend with TensorRT's types; returns its status and output."""
    repaired_stubs(folder / "stubs")
    config = re.sub(r'"tensorrt(_bindings)?(\.\*)?",? ?', "", (PROJECT / "pyproject.toml").read_text(encoding="utf-8"))
    config += ('\n[[tool.mypy.overrides]]\nmodule = ["tensorrt.*", "tensorrt_bindings.*"]\nignore_errors = true\n'
               'follow_imports = "silent"\n')
    (folder / "pyproject.toml").write_text(config, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file", str(folder / "pyproject.toml"), "--cache-dir",
         str(folder / "cache"), "--follow-imports", "silent", *FILES], cwd=PROJECT, capture_output=True, text=True, check=False,
        env={**os.environ, "MYPYPATH": str(folder / "stubs")})
    return done.returncode, done.stdout + done.stderr


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        status, output = check(Path(scratch))
    sys.stdout.write(output)
    sys.exit(status)
