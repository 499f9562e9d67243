"""Every shipped recipe in one guard: what its runtime takes, and what people are told about it."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from edgebench import catalog
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
