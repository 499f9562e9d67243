"""The rules of docs/architecture.md: who may import whom, what stays in one file, and what a bare install can do."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from edgebench.catalog import tomllib

PROJECT = Path(__file__).resolve().parents[1]
PACKAGE = PROJECT / "edgebench"
HEAVY = ("torch", "torchvision", "timm", "open_clip", "onnx", "onnxruntime", "openvino", "nncf", "sklearn")
# Calls whose first argument names a module.
IMPORTERS = ("require", "import_module", "__import__", "find_spec", "importorskip")
# Where a run file is judged or drawn, nothing that measures is needed.
MEASURING = ("backends", "latency", "export", "sources", "profiler", "worker", "demo", "artifacts", "evaluate", "imagecache",
             "telemetry", "scenarios", "paired_worker", "loadgen")


def module_name(path: Path) -> str:
    parts = path.relative_to(PROJECT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}
MODULES = pytest.mark.parametrize("module", sorted(FILES))


@cache
def tree(module: str) -> ast.Module:
    return ast.parse(FILES[module].read_text(encoding="utf-8"))


def running_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """Yield all nodes below `node` but those that only a type checker sees."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            for other in child.orelse:
                yield other
                yield from running_nodes(other)
        else:
            yield child
            yield from running_nodes(child)


@cache
def imported(module: str) -> frozenset[str]:
    """Return the dotted names that the module imports anywhere, through `require` and its like too."""
    found = set()
    package = module if FILES[module].name == "__init__.py" else module.rpartition(".")[0]
    for node in running_nodes(tree(module)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *([node.module] if node.module else [])])
            # "from edgebench import catalog" imports a module, "from edgebench.errors import require" a name.
            found |= {f"{base}.{alias.name}" if f"{base}.{alias.name}" in FILES else base for alias in node.names}
        elif isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in IMPORTERS and node.args:
                found |= set(names_in(node.args[0]))
    return frozenset(found)


def names_in(argument: ast.expr) -> list[str]:
    """Return the module names that a call's argument may stand for: a constant, or the pattern of an f-string."""
    if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
        return [argument.value]
    if isinstance(argument, ast.JoinedStr):
        pattern = "".join(re.escape(str(part.value)) if isinstance(part, ast.Constant) else r"\w+" for part in argument.values)
        return [module for module in FILES if re.fullmatch(pattern, module)]
    return []


def own(module: str) -> frozenset[str]:
    """Return the modules of this package that the module imports."""
    return frozenset(name for name in imported(module) if name in FILES)


def foreign(module: str) -> frozenset[str]:
    """Return the top-level names of other packages that the module imports."""
    return frozenset(name.partition(".")[0] for name in imported(module)) - {"edgebench", ""}


def reachable(module: str) -> set[str]:
    """Return everything of this package that the module imports, directly or through others."""
    seen: set[str] = set()
    waiting = [module]
    while waiting:
        # The package itself imports its public names only when they are asked for.
        for name in own(waiting.pop()) - seen - {"edgebench"}:
            seen.add(name)
            waiting.append(name)
    return seen


class TestTheseRulesThemselves:
    """A rule that sees nothing would pass always."""

    def test_every_module_is_seen(self):
        assert {"edgebench", "edgebench.cli", "edgebench.record", "edgebench.backends.openvino",
                "edgebench.properties.accuracy"} <= set(FILES)

    def test_imports_of_every_kind_are_seen(self):
        assert {"edgebench.errors", "torch", "timm", "open_clip"} <= imported("edgebench.sources")
        assert "edgebench.catalog" in imported("edgebench.profiler")
        assert "onnxruntime.quantization" in imported("edgebench.quantize")

    def test_imports_inside_functions_are_seen(self):
        assert "edgebench.profiler" in own("edgebench.cli")
        assert "edgebench.demo" in own("edgebench.sources")

    def test_names_put_together_at_run_time_are_seen(self):
        assert {"edgebench.backends.onnxruntime", "edgebench.backends.openvino"} <= own("edgebench.backends")

    def test_imports_for_type_checkers_are_passed_over(self):
        source = "if TYPE_CHECKING:\n    import torch\nelse:\n    import numpy\ndef f():\n    import click"
        seen = {alias.name for node in running_nodes(ast.parse(source)) if isinstance(node, ast.Import) for alias in node.names}
        assert {"numpy", "click"} == seen

    def test_what_is_imported_through_others_is_seen(self):
        assert {"edgebench.stats", "edgebench.backends.openvino"} <= reachable("edgebench.profiler")


class TestImportDirection:
    def test_nothing_imports_the_command_line_but_its_entry_point(self):
        assert {"edgebench.__main__"} == {module for module in FILES if "edgebench.cli" in own(module)}

    @pytest.mark.parametrize("module", ["edgebench.report", "edgebench.charts"])
    def test_what_judges_and_draws_reaches_nothing_that_measures(self, module):
        forbidden = {name for name in reachable(module) if name.split(".")[1:2] and name.split(".")[1] in MEASURING}
        forbidden -= {"edgebench.telemetry.types"}  # values alone, which runs hold
        assert set() == forbidden

    @pytest.mark.parametrize("name", ["compare", "gate", "finished", "history", "baselines", "verdict_pages",
                                      "verdict_outputs", "contact_sheet", "pytest_plugin"])
    def test_what_judges_finished_runs_reaches_no_runtime_and_no_clock(self, name):
        found = {other for other in reachable(f"edgebench.{name}") if other.split(".")[1] in MEASURING}
        # Properties know the levels of the sweeps, which stand beside the making of their images.
        assert found <= {"edgebench.imagecache", "edgebench.telemetry.types"}

    @pytest.mark.parametrize("module", ["edgebench.metrics", "edgebench.stats"])
    def test_numbers_are_made_from_arrays_alone(self, module):
        assert reachable(module) <= {"edgebench.errors", "edgebench.stats"}
        assert foreign(module) <= {"__future__", "collections", "dataclasses", "fractions", "functools", "itertools",
                                   "math", "numpy", "statistics", "typing"}

    def test_errors_and_record_are_at_the_bottom(self):
        assert frozenset() == own("edgebench.errors")
        assert {"edgebench.errors", "edgebench.checks", "edgebench.recipe", "edgebench.device",
                "edgebench.observed", "edgebench.timing_types", "edgebench.files"} == own("edgebench.record")
        assert {"edgebench.telemetry.types", "edgebench.timing_types"} == own("edgebench.observed")
        assert {"edgebench.checks"} == own("edgebench.device")
        assert {"edgebench.checks", "edgebench.device"} == own("edgebench.telemetry.types")

    @pytest.mark.parametrize("name", ["sources", "conversion", "export", "demo"])
    def test_what_the_board_runs_does_not_reach_what_needs_torch(self, name):
        assert f"edgebench.{name}" not in reachable("edgebench.worker")

    @MODULES
    def test_no_module_imports_itself_through_others_when_it_is_loaded(self, module):
        # Imports inside functions may close a circle; those at the top may not.
        def top(name: str) -> set[str]:
            found = set()
            for node in tree(name).body:
                if isinstance(node, ast.Import):
                    found |= {alias.name for alias in node.names}
                elif isinstance(node, ast.ImportFrom):
                    found |= {f"{node.module}.{alias.name}" if f"{node.module}.{alias.name}" in FILES else node.module
                              for alias in node.names}
            return found & (set(FILES) - {"edgebench"})

        seen, waiting = set(), [module]
        while waiting:
            for name in top(waiting.pop()) - seen:
                seen.add(name)
                waiting.append(name)
        assert module not in seen


class TestOnePlaceForEachPackage:
    @pytest.mark.parametrize(("package", "homes"), [
        ("onnxruntime", {"edgebench.backends.onnxruntime", "edgebench.quantize"}),
        ("openvino", {"edgebench.backends.openvino"}),
        ("nncf", {"edgebench.backends.openvino"}),
        ("tensorrt", {"edgebench.backends.tensorrt"}),
        ("onnx", {"edgebench.backends.onnxruntime", "edgebench.ceilings", "edgebench.conversion", "edgebench.sources", "edgebench.roofline",
                  "edgebench.graphs", "edgebench.intake", "edgebench.patterns", "edgebench.quantize", "edgebench.typed"}),
        ("onnxscript", {"edgebench.conversion"}),
        ("torch", {"edgebench.sources", "edgebench.checkpoints", "edgebench.conversion", "edgebench.demo", "edgebench.doctor"}),
        ("torchvision", {"edgebench.sources", "edgebench.doctor"}),
        ("timm", {"edgebench.sources", "edgebench.demo", "edgebench.doctor"}),
        ("open_clip", {"edgebench.sources", "edgebench.doctor"}),
        ("sklearn", {"edgebench.demo", "edgebench.probe"}),
        ("scipy", {"edgebench.corruptions"}),
        ("click", {"edgebench.cli", "edgebench.options", "edgebench.terminal", "edgebench.judging"}),
        ("tomli_w", {"edgebench.export_job"}),
        ("cuda", {"edgebench.backends.cuda"}),
        ("rich", {"edgebench.cli", "edgebench.terminal", "edgebench.judging"}),
        ("duckdb", {"edgebench.history"}),
        ("fsspec", {"edgebench.history"}),
        ("pytest", {"edgebench.pytest_plugin"}),
        ("pynvml", {"edgebench.telemetry.nvml"}),
        ("mlperf_loadgen", {"edgebench.loadgen"}),
        ("subprocess", {"edgebench.worker", "edgebench.child", "edgebench.paired_worker", "edgebench.telemetry.commands"})])
    def test_package_is_imported_only_at_home(self, package, homes):
        assert {module for module in FILES if package in foreign(module)} <= homes

    @pytest.mark.parametrize("package", ["torch", "torchvision", "timm", "open_clip"])
    def test_training_packages_are_not_even_named_elsewhere(self, package):
        allowed = {"edgebench.sources", "edgebench.checkpoints", "edgebench.conversion", "edgebench.export", "edgebench.demo", "edgebench.doctor"}
        naming = {module for module in FILES for node in ast.walk(tree(module))
                  if isinstance(node, ast.Constant) and isinstance(node.value, str)
                  and re.fullmatch(rf"{package}(\.\w+)*", node.value)}
        assert naming <= allowed

    @MODULES
    def test_no_heavy_package_is_imported_when_a_module_is_loaded(self, module):
        loaded = [node for node in tree(module).body if isinstance(node, ast.Import | ast.ImportFrom)]
        names = {alias.name.partition(".")[0] for node in loaded if isinstance(node, ast.Import) for alias in node.names}
        names |= {(node.module or "").partition(".")[0] for node in loaded if isinstance(node, ast.ImportFrom)}
        assert set() == names & {*HEAVY, "onnxscript", "plotly", "tensorrt"}

    @MODULES
    def test_only_the_command_line_prints(self, module):
        prints = [node.lineno for node in ast.walk(tree(module))
                  if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("print", "input")]
        assert module == "edgebench.cli" or [] == prints

    @MODULES
    def test_text_that_came_from_outside_is_never_executed(self, module):
        calls = {getattr(node.func, "id", "") for node in ast.walk(tree(module)) if isinstance(node, ast.Call)}
        assert set() == calls & {"eval", "exec", "compile"}

    def test_every_package_that_is_imported_is_declared(self):
        project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        lines = [*project["dependencies"], *(one for extra in project["optional-dependencies"].values() for one in extra)]
        declared = {re.split(r"[^\w-]", line)[0].lower().replace("-", "_") for line in lines}
        # Distributions whose package has another name, and what comes with a declared one.
        declared |= {"pil", "open_clip", "sklearn", "google", "huggingface_hub", "tomllib", "pynvml", "mlperf_loadgen", "cuda"}
        used = {name.lower() for module in FILES for name in foreign(module)} - set(sys.stdlib_module_names)
        assert set() == used - declared

    def test_every_extra_that_is_named_exists(self):
        extras = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
        texts = [path.read_text(encoding="utf-8") for path in (*FILES.values(), *PROJECT.glob("docs/*.md"), *PROJECT.glob("*.md"))]
        named = {one.strip() for text in texts for found in re.findall(r"edgebench\[([\w, -]+)\]", text) for one in found.split(",")}
        named |= {str(node.args[1].value) for module in FILES for node in ast.walk(tree(module))
                  if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "require"
                  and len(node.args) > 1 and isinstance(node.args[1], ast.Constant)}
        assert "cuda" in named
        assert set() == named - set(extras)


class TestDocstrings:
    @MODULES
    def test_every_module_and_everything_public_in_it_says_what_it_is(self, module):
        silent = []

        def look(node: ast.AST, path: str) -> None:
            for child in ast.iter_child_nodes(node):
                if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and not child.name.startswith("_"):
                    if not (ast.get_docstring(child) or "").strip():
                        silent.append(f"{path}{child.name}")
                    if isinstance(child, ast.ClassDef):
                        look(child, f"{path}{child.name}.")

        if not (ast.get_docstring(tree(module)) or "").strip():
            silent.append(module)
        look(tree(module), "")
        assert [] == silent

    @MODULES
    def test_first_paragraphs_are_sentences(self, module):
        texts = [docstring for node in ast.walk(tree(module))
                 if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (docstring := ast.get_docstring(node))]
        assert texts
        assert [] == [text for text in texts if not text.split("\n\n")[0].rstrip().endswith((".", ":"))]


BARE = """
import importlib, json, pkgutil, sys, traceback

BLOCKED = sys.argv[1].split(",")
for name in BLOCKED:
    sys.modules[name] = None  # importing it fails, and find_spec finds nothing, as where it is not installed
import edgebench
result = {"imported": [], "failed": {}, "commands": {}}
for found in pkgutil.walk_packages(edgebench.__path__, "edgebench."):
    if found.name == "edgebench.__main__":
        continue
    try:
        importlib.import_module(found.name)
        result["imported"].append(found.name)
    except BaseException:
        result["failed"][found.name] = traceback.format_exc()

import click
from click.testing import CliRunner
from edgebench.cli import cli

def run(arguments):
    outcome = CliRunner().invoke(cli, arguments)
    result["commands"][" ".join(arguments)] = {"code": outcome.exit_code, "output": outcome.output,
                                               "error": repr(outcome.exception) if outcome.exception else None}

def walk(command, path):
    run([*path, "--help"])
    for name, child in getattr(command, "commands", {}).items():
        walk(child, [*path, name])

walk(cli, [])
for arguments in json.loads(sys.argv[2]):
    run(arguments)
result["loaded"] = sorted(name for name, module in sys.modules.items()
                          if name.partition(".")[0] in BLOCKED and module is not None)
print(json.dumps(result))
"""


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """What a process without any runtime or training package can do."""
    listings = [["recipes", "--json"], ["devices", "--json"], ["properties", "--json"], ["doctor", "--json"],
                ["profile", "timm:resnet50", "--out", str(tmp_path_factory.mktemp("bare") / "out")]]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", BARE, ",".join(HEAVY), json.dumps(listings)], capture_output=True,
        text=True, timeout=1500, check=False, cwd=tmp_path_factory.mktemp("elsewhere"),
        env={**os.environ, "PYTHONPATH": str(PROJECT), "NO_COLOR": "1"})
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


class TestBareInstall:
    """Only click, numpy and the other small dependencies: what a board has before its runtime is installed."""

    def test_every_module_can_be_imported(self, bare):
        assert {} == bare["failed"]
        assert set(FILES) - {"edgebench", "edgebench.__main__"} == set(bare["imported"])

    def test_nothing_heavy_was_loaded(self, bare):
        assert [] == bare["loaded"]

    def test_help_of_every_command_works(self, bare):
        helps = {name: one for name, one in bare["commands"].items() if name.endswith("--help")}
        assert {"--help", "profile --help", "export --help", "evaluate --help", "report --help", "recipes --help",
                "devices --help", "properties --help", "data --help", "data check --help", "doctor --help",
                "compare --help", "gate --help", "policies --help", "history --help", "baseline --help",
                "baseline promote --help", "baseline list --help"} <= set(helps)
        for name, one in helps.items():
            assert (0, None) == (one["code"], one["error"]), name
            assert one["output"].startswith("Usage: "), name

    def test_every_command_and_option_is_explained_in_its_help(self, bare):
        for name, one in bare["commands"].items():
            if not name.endswith("--help"):
                continue
            text = one["output"].partition("Exit codes:")[0]
            assert re.search(r"\n\n  \w+.*", text), f"{name} does not say what it does"
            for line in re.findall(r"^  (-.*)$", text, re.MULTILINE):
                explained = re.search(r"\S  +\S", line) or re.search(re.escape(line) + r"\n {10,}\S", text)
                assert explained, f"{name}: {line!r} is not explained"

    def test_listings_work(self, bare):
        recipes = json.loads(bare["commands"]["recipes --json"]["output"])
        assert {"ort-fp32", "ort-int8", "openvino-fp32", "openvino-int8"} <= {one["id"] for one in recipes}
        listed = {one["id"] for one in json.loads(bare["commands"]["devices --json"]["output"])}
        assert {"cpu", "jetson-orin-nano-8gb", "raspberry-pi-5", "l4"} <= listed
        assert {"accuracy", "calibration"} <= {
            one["name"] for one in json.loads(bare["commands"]["properties --json"]["output"])}

    def test_doctor_says_what_is_missing_and_how_to_install_it(self, bare):
        findings = {one["what"]: one for one in json.loads(bare["commands"]["doctor --json"]["output"])}
        for what, extra in (("backend onnxruntime", "onnxruntime"), ("backend openvino", "openvino"),
                            ("extra export", "export"), ("extra demo", "demo")):
            assert "no" == findings[what]["works"], what
            assert f"pip install 'edgebench[{extra}]'" in findings[what]["detail"]

    def test_a_command_that_needs_them_names_what_to_install_instead_of_a_traceback(self, bare):
        (outcome,) = [one for name, one in bare["commands"].items() if name.startswith("profile timm:")]
        assert re.match(r"(UsageError|MissingDependency|CannotMeasure|InvalidInput)\(|SystemExit\(3\)", outcome["error"])
        assert "not installed" in outcome["error"] + outcome["output"]
