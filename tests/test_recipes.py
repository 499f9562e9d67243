"""Every shipped recipe in one guard: what its runtime takes, and what people are told about it."""

from __future__ import annotations

import importlib.util
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from edgebench import backends, catalog
from edgebench.recipe import Recipe

PROJECT = Path(__file__).resolve().parents[1]
FILES = sorted((PROJECT / "export").glob("*.toml"))
RECIPE = pytest.mark.parametrize("recipe", [catalog.read_toml(path, Recipe) for path in FILES], ids=lambda one: one.id)
PREFIXES = {"onnxruntime": ("ort-",), "openvino": ("openvino-",), "tensorrt": ("tensorrt-",), "tensorrt_rtx": ("rtx-",)}


@RECIPE
def test_its_id_says_runtime_and_precision(recipe):
    assert recipe.id.startswith(PREFIXES[recipe.backend])
    assert recipe.precision in recipe.id.split("-")
    if recipe.providers:
        assert {"CUDAExecutionProvider": "cuda", "TensorrtExecutionProvider": "trt"}[recipe.providers[0]] in recipe.id


@RECIPE
def test_it_is_written_in_the_dialect_that_its_runtime_takes(recipe):
    quantization = recipe.quantization
    if quantization is None:
        return
    gpu = recipe.backend in ("tensorrt", "tensorrt_rtx") or recipe.providers
    assert ("int8" if recipe.precision == "int8" else "float8") == quantization.weights
    if gpu:
        assert quantization.activations in ("int8", "float8")
        assert "float" == quantization.bias
    else:
        assert ("uint8", "int32", "fp32") == (quantization.activations, quantization.bias, recipe.float_precision)
    assert quantization.per_channel
    assert quantization.images >= 100
    assert () == quantization.keep_float + quantization.operators
    assert "auto" == quantization.family


@pytest.mark.parametrize("name", ["../../../x", "a/b", "a\\b", "", ".hidden", "-x", "a b", "ort-fp32\n"])
def test_an_id_that_cannot_name_a_file_is_refused(name):
    with pytest.raises(ValueError, match="expected an id of letters, digits"):
        replace(catalog.recipe("ort-fp32"), id=name)


@RECIPE
def test_on_gpus_it_replays_cuda_graphs_where_the_runtime_can(recipe):
    if recipe.build is not None:
        assert recipe.build.cuda_graph
    if recipe.providers == ("CUDAExecutionProvider",):
        assert recipe.provider_options["CUDAExecutionProvider"]["enable_cuda_graph"] is True


@RECIPE
def test_bf16_graphs_are_of_an_opset_whose_convolutions_know_it(recipe):
    if "bf16" in (recipe.precision, recipe.float_precision) and recipe.backend.startswith("tensorrt"):
        assert recipe.opset >= 22


@RECIPE
def test_it_says_for_whom_it_is_and_what_it_was_tried_on(recipe):
    for text in (recipe.purpose, recipe.checked_on):
        assert text.endswith(".")
        assert len(text) > 20


@RECIPE
def test_the_readme_lists_it(recipe):
    assert f"`{recipe.id}`" in (PROJECT / "export" / "README.md").read_text(encoding="utf-8")


def test_every_precision_of_every_tensorrt_is_there():
    found = Counter((one.backend, one.precision) for one in catalog.recipes().values())
    for backend in ("tensorrt", "tensorrt_rtx"):
        for precision in ("fp32", "fp16", "bf16", "int8", "fp8"):
            assert 1 == found[backend, precision]


def test_readme_explains_every_key():
    text = (PROJECT / "export" / "README.md").read_text(encoding="utf-8")
    from dataclasses import fields

    from edgebench.recipe import Build, Quantization

    for kind in (Recipe, Quantization, Build):
        for field in fields(kind):
            assert f"`{field.name}`" in text or f"`[{field.name}" in text, field.name


class TestTheBenchmark:
    """The cells of `benchmarks/recipes.py`, on sessions that take the time and give the answers that a test says."""

    @pytest.fixture
    def script(self, monkeypatch):
        spec = importlib.util.spec_from_file_location("recipes_benchmark", PROJECT / "benchmarks" / "recipes.py")
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        return module

    @pytest.fixture
    def row(self, script, monkeypatch):
        """Return a function that gives the cells by title, of a recipe whose session takes `ms`."""
        class Session(SimpleNamespace):
            inputs, outputs = (SimpleNamespace(name="image"),), (SimpleNamespace(name="logits"),)

            def infer(self, feeds):
                wrong = feeds["image"][:, 0, 0, :1] < self.wrong
                return {"logits": np.hstack([10.0 * ~wrong, 10.0 * wrong])}

        images = object.__new__(script._Images)
        images.pixels = np.arange(20, dtype=np.uint8)[:, None, None, None] * np.ones((1, 1, 1, 3), np.uint8)
        images.preprocess = None
        images.targets = np.zeros(20, int)
        monkeypatch.setattr(script, "normalize", lambda pixels, _: pixels.transpose(0, 3, 1, 2).astype(np.float32))
        spread = script.builds.spread
        monkeypatch.setattr(script.builds, "spread", lambda sessions, *words, **options: replace(
            spread(sessions, *words, **options), p50_s=tuple(one.ms / 1e3 for one in sessions)))
        references = {}

        def cells(name, ms, *, wrong=0, here=True, parity=True):
            session = Session(ms=ms, wrong=wrong)
            monkeypatch.setattr(backends, "get", lambda _: SimpleNamespace(
                reason_against=lambda recipe: None if here else "no GPU", open_session=lambda *_, **__: session))
            monkeypatch.setattr(script, "open_here", lambda *_, **__: session)
            artifact = SimpleNamespace(recipe=catalog.recipe(name), entry="model.onnx", parity=parity or None)
            found = script._measured(Path(), artifact, images, references)
            titles = script.HEADER[-len(found):]
            assert "Top-1 %" == titles[0]
            return dict(zip(titles, found, strict=True))

        return cells

    def test_the_reference_of_the_same_turn_stands_beside_the_ratio(self, row):
        assert ["", "11.00", "ref."] == list(row("ort-fp32", 11.0).values())[-3:]
        assert ["11.00", "5.00", "2.20×"] == list(row("ort-int8", 5.0, wrong=1).values())[-3:]

    def test_the_reference_is_that_of_the_same_providers(self, row):
        row("ort-fp32", 11.0)
        cuda = row("ort-cuda-fp32", 2.0)
        assert ("", "ref.") == (cuda["FP32 p50 ms"], cuda["Speed-up"])
        assert "2.00" == row("ort-cuda-int8", 1.0)["FP32 p50 ms"]
        assert "11.00" == row("ort-int8", 5.0)["FP32 p50 ms"]

    def test_what_runs_elsewhere_is_judged_in_float_and_not_timed(self, row):
        row("ort-fp32", 11.0, wrong=1)
        found = row("tensorrt-int8", 5.0, wrong=3, here=False)
        assert {"Top-1 %": "85.00 in float", "Change": "-10.00", "Flips −/+ %": "10.00 / 0.00", "FP32 p50 ms": "",
                "p50 ms": "not here", "Speed-up": ""} == {title: cell for title, cell in found.items() if title != "ECE %"}
        assert "" == row("rtx-bf16", 5.0, here=False, parity=False)["Top-1 %"]
