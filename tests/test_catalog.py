"""The shipped content and how it is found: every file of export/ and devices/ decodes and names what exists."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from edgebench import backends, catalog
from edgebench.errors import ExitCode, InvalidInput, UsageError
from edgebench.recipe import Quantization, Recipe
from edgebench.record import Device

PROJECT = Path(__file__).resolve().parents[1]
RECIPES = sorted((PROJECT / "export").glob("*.toml"))
DEVICES = sorted((PROJECT / "devices").glob("*.toml"))
MINE = """\
id = "mine"
title = "My own"
purpose = "A test."
checked_on = "Nothing."
backend = "onnxruntime"
precision = "fp32"
"""


def stem(path: Path) -> str:
    return path.stem


class TestShippedFiles:
    def test_there_are_some(self):
        assert {"ort-fp32", "ort-int8", "openvino-fp32", "openvino-int8"} <= {path.stem for path in RECIPES}
        assert "cpu" in {path.stem for path in DEVICES}

    @pytest.mark.parametrize("path", RECIPES, ids=stem)
    def test_recipe_decodes_and_is_called_like_its_file(self, path):
        recipe = catalog.read_toml(path, Recipe)
        assert path.stem == recipe.id
        for field in ("title", "purpose", "checked_on"):
            assert getattr(recipe, field).strip()

    @pytest.mark.parametrize("path", RECIPES, ids=stem)
    def test_recipe_names_a_backend_that_exists_and_has_what_a_backend_needs(self, path):
        recipe = catalog.read_toml(path, Recipe)
        assert recipe.backend in backends.names()
        if backends.installed(recipe.backend):
            module = backends.get(recipe.backend)
            for member in ("packages", "build", "open_session", "executed_precision"):
                assert callable(getattr(module, member))

    @pytest.mark.parametrize("path", RECIPES, ids=stem)
    def test_recipe_can_run_on_some_shipped_device(self, path):
        recipe = catalog.read_toml(path, Recipe)
        assert any(recipe.backend in device.backends for device in catalog.devices().values())

    @pytest.mark.parametrize("path", RECIPES, ids=stem)
    def test_quantized_recipe_has_an_fp32_sibling_of_its_backend_to_be_compared_with(self, path):
        recipe = catalog.read_toml(path, Recipe)
        siblings = [one for one in catalog.recipes().values() if one.backend == recipe.backend]
        assert "fp32" in {one.precision for one in siblings}

    @pytest.mark.parametrize("path", DEVICES, ids=stem)
    def test_device_decodes_and_is_called_like_its_file(self, path):
        device = catalog.read_toml(path, Device)
        assert path.stem == device.id
        assert device.title.strip()
        assert device.source.strip()

    @pytest.mark.parametrize("path", DEVICES, ids=stem)
    def test_device_names_backends_that_exist(self, path):
        device = catalog.read_toml(path, Device)
        assert device.backends
        assert set(device.backends) <= set(backends.names())
        assert len(set(device.backends)) == len(device.backends)

    def test_every_file_of_the_folders_is_in_the_listings(self):
        assert [path.stem for path in RECIPES] == list(catalog.recipes())
        assert [path.stem for path in DEVICES] == list(catalog.devices())


class TestContent:
    @pytest.mark.parametrize("name", ["export", "devices", "reports"])
    def test_is_the_folder_beside_the_package_in_a_checkout(self, name):
        assert PROJECT / name == catalog.content(name)
        assert catalog.content(name).is_dir()

    def test_prefers_the_folder_inside_an_installed_package(self, tmp_path, monkeypatch):
        package = tmp_path / "site-packages" / "edgebench"
        (package / "_data" / "export").mkdir(parents=True)
        (tmp_path / "site-packages" / "export").mkdir()
        monkeypatch.setattr(catalog, "__file__", str(package / "catalog.py"))
        assert package / "_data" / "export" == catalog.content("export")
        # One that the package does not carry is sought beside it.
        assert tmp_path / "site-packages" / "devices" == catalog.content("devices")

    def test_recipes_of_an_installed_package_are_read_from_there(self, tmp_path, monkeypatch):
        folder = tmp_path / "edgebench" / "_data" / "export"
        folder.mkdir(parents=True)
        (folder / "mine.toml").write_text(MINE)
        monkeypatch.setattr(catalog, "__file__", str(tmp_path / "edgebench" / "catalog.py"))
        assert ["mine"] == list(catalog.recipes())
        assert "My own" == catalog.recipe("mine").title


class TestByName:
    def test_recipe_by_id(self):
        assert ("ort-int8", "onnxruntime", "int8") == (
            catalog.recipe("ort-int8").id, catalog.recipe("ort-int8").backend, catalog.recipe("ort-int8").precision)

    def test_auto_is_the_cpu(self):
        assert catalog.device("cpu") == catalog.device("auto")

    @pytest.mark.parametrize(("find", "wrong", "right"), [
        (catalog.recipe, "ort-int", "ort-int8"), (catalog.recipe, "openvino-fp23", "openvino-fp32"),
        (catalog.device, "cpus", "cpu")])
    def test_misspelt_name_is_a_usage_error_that_suggests_the_nearest(self, find, wrong, right):
        with pytest.raises(UsageError) as caught:
            find(wrong)
        assert f"{wrong!r}; did you mean {right!r}?" in caught.value.message
        assert right in caught.value.hint
        assert ExitCode.USAGE == caught.value.exit_code

    def test_name_like_nothing_known_is_not_given_a_suggestion(self):
        with pytest.raises(UsageError) as caught:
            catalog.recipe("zzz")
        assert "did you mean" not in caught.value.message
        assert "known: " in caught.value.hint

    def test_recipe_from_a_toml_file(self, tmp_path):
        file = tmp_path / "mine.toml"
        file.write_text(MINE)
        expected = Recipe(id="mine", title="My own", purpose="A test.", checked_on="Nothing.", backend="onnxruntime",
                          precision="fp32")
        assert expected == catalog.recipe(str(file))

    def test_device_from_a_toml_file(self, tmp_path):
        file = tmp_path / "board.toml"
        file.write_text('id = "board"\ntitle = "A board"\nbackends = ["openvino"]\nsource = "its sheet"\n')
        assert Device(id="board", title="A board", backends=("openvino",), source="its sheet") == \
            catalog.device(str(file))


class TestBrokenToml:
    def write(self, folder: Path, text: str | bytes) -> str:
        file = folder / "mine.toml"
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(file)

    @pytest.mark.parametrize("text", ["id = ", "id = mine\n", "[quantization\n", MINE + 'id = "again"\n', b'id = "\xff"\n'])
    def test_what_is_not_toml_is_named_with_its_file(self, tmp_path, text):
        file = self.write(tmp_path, text)
        with pytest.raises(InvalidInput) as caught:
            catalog.recipe(file)
        assert caught.value.message.startswith(f"{file} is not ")

    def test_missing_file_is_named(self, tmp_path):
        with pytest.raises(InvalidInput) as caught:
            catalog.recipe(str(tmp_path / "gone.toml"))
        assert f"cannot read {tmp_path / 'gone.toml'}: No such file or directory" == caught.value.message

    def test_unknown_key_is_refused_with_a_suggestion(self, tmp_path):
        file = self.write(tmp_path, MINE.replace("precision", "precison"))
        with pytest.raises(InvalidInput) as caught:
            catalog.recipe(file)
        assert f"{file}: unknown key 'precison'; did you mean 'precision'?" == caught.value.message
        assert f"known keys: {', '.join(field.name for field in fields(Recipe))}" == caught.value.hint

    def test_unknown_key_in_a_table_is_named_with_the_table(self, tmp_path):
        file = self.write(tmp_path, MINE.replace("fp32", "int8") + '[quantization]\nquantizer = "nncf"\nimage = 3\n')
        with pytest.raises(InvalidInput) as caught:
            catalog.recipe(file)
        assert f"{file}.quantization: unknown key 'image'; did you mean 'images'?" == caught.value.message

    @pytest.mark.parametrize(("old", "new", "complaint"), [
        ('"onnxruntime"', "3", ".backend: expected `str`, got `int`"),
        ('"fp32"', '"fp31"', ".precision: invalid enum value 'fp31'"),
        ('title = "My own"\n', "", ": object missing required field `title`"),
        ('"fp32"', '"int8"', ": expected a [quantization] table exactly where precision is 'int8' or 'fp8', got 'int8'"),
        ('"fp32"\n', '"fp32"\nopset = 19\n', ": expected opset between 20 and 23, got 19"),
        ('"fp32"\n', '"fp32"\nopset = "20"\n', ".opset: expected `int`, got `str`")])
    def test_wrong_value_is_named_with_its_key(self, tmp_path, old, new, complaint):
        file = self.write(tmp_path, MINE.replace(old, new))
        with pytest.raises(InvalidInput) as caught:
            catalog.recipe(file)
        assert f"{file}{complaint}" == caught.value.message

    def test_yaml_like_words_are_not_taken_for_numbers_or_truth(self, tmp_path):
        text = MINE.replace("fp32", "int8") + '[quantization]\nquantizer = "onnxruntime"\nper_channel = "no"\n'
        with pytest.raises(InvalidInput, match=r"\.quantization\.per_channel: expected `bool`, got `str`"):
            catalog.recipe(self.write(tmp_path, text))

    def test_a_quantizer_of_another_runtime_is_refused(self, tmp_path):
        file = self.write(tmp_path, MINE.replace("fp32", "int8") + '[quantization]\nquantizer = "nncf"\n')
        with pytest.raises(InvalidInput, match="expected quantizer 'onnxruntime' for every backend but openvino"):
            catalog.recipe(file)

    def test_defaults_of_a_quantization_table_are_those_of_the_type(self, tmp_path):
        text = MINE.replace("fp32", "int8") + '[quantization]\nquantizer = "onnxruntime"\n'
        assert Quantization(quantizer="onnxruntime") == catalog.recipe(self.write(tmp_path, text)).quantization


class TestSelection:
    def test_everything_that_the_device_runs_with_the_references_first(self):
        chosen = catalog.select_recipes(catalog.device("cpu"), (), (), ())
        expected = {one.id for one in catalog.recipes().values()
                    if one.backend in ("onnxruntime", "openvino") and not one.providers}
        assert expected == {one.id for one in chosen}
        precisions = [one.precision for one in chosen]
        references = precisions.count("fp32")
        assert ["fp32"] * references == precisions[:references]

    def test_recipes_of_execution_providers_are_for_devices_that_have_them(self):
        cuda = Device(id="d", title="D", backends=("onnxruntime",), source="", providers=(
            "CUDAExecutionProvider", "CPUExecutionProvider"))
        chosen = {one.id for one in catalog.select_recipes(cuda, (), (), ())}
        assert {"ort-fp32", "ort-cuda-fp32", "ort-cuda-fp16"} <= chosen
        assert "ort-trt-fp16" not in chosen

    def test_order_that_was_asked_for_is_kept_behind_the_reference(self):
        chosen = catalog.select_recipes(catalog.device("cpu"), ("ort-int8", "openvino-int8", "ort-fp32"), (), ())
        assert ["ort-fp32", "ort-int8", "openvino-int8"] == [one.id for one in chosen]

    def test_narrowed_by_backend_and_precision(self):
        chosen = catalog.select_recipes(catalog.device("cpu"), (), ("openvino",), ("int8", "fp32"))
        assert {("openvino", "fp32"), ("openvino", "int8")} == {(one.backend, one.precision) for one in chosen}

    def test_recipe_file_takes_part(self, tmp_path):
        (tmp_path / "mine.toml").write_text(MINE)
        chosen = catalog.select_recipes(catalog.device("cpu"), ("ort-int8", str(tmp_path / "mine.toml")), (), ())
        assert ["mine", "ort-int8"] == [one.id for one in chosen]

    @pytest.mark.parametrize(("names", "backends_", "precisions", "complaint"), [
        (("ort-fp23",), (), (), "unknown recipe 'ort-fp23'; did you mean 'ort-fp32'?"),
        ((), ("onnxruntim",), (), "unknown backend 'onnxruntim'; did you mean 'onnxruntime'?"),
        ((), (), ("int9",), "unknown precision 'int9'; did you mean 'int8'?")])
    def test_misspelt_word_is_a_usage_error_with_a_suggestion(self, names, backends_, precisions, complaint):
        with pytest.raises(UsageError) as caught:
            catalog.select_recipes(catalog.device("cpu"), names, backends_, precisions)
        assert complaint == caught.value.message
        assert caught.value.hint

    def test_backend_that_the_device_cannot_run_is_refused(self):
        device = Device(id="npu", title="N", backends=("openvino",), source="")
        with pytest.raises(UsageError) as caught:
            catalog.select_recipes(device, (), ("onnxruntime",), ())
        assert "device 'npu' runs: openvino" == caught.value.hint

    @pytest.mark.parametrize("names", [("ort-fp32",), ("openvino-fp32", "ort-fp32")])
    def test_a_recipe_asked_for_by_name_is_not_dropped_silently_where_the_device_lacks_its_backend(self, names):
        device = Device(id="npu", title="N", backends=("openvino",), source="")
        with pytest.raises(UsageError) as caught:
            catalog.select_recipes(device, names, (), ())
        assert ("recipe 'ort-fp32' is for onnxruntime, which device 'npu' does not run", "it runs: openvino") == (
            caught.value.message, caught.value.hint)

    def test_the_precision_of_a_recipe_file_is_not_called_unknown_where_no_shipped_recipe_has_it(
            self, tmp_path, monkeypatch):
        monkeypatch.setattr(catalog, "recipes", dict)
        (tmp_path / "half.toml").write_text(MINE.replace("fp32", "fp16"))
        chosen = catalog.select_recipes(catalog.device("cpu"), (str(tmp_path / "half.toml"),), (), ("fp16",))
        assert [("mine", "fp16")] == [(one.id, one.precision) for one in chosen]

    def test_only_recipes_for_the_backends_of_the_device_are_chosen(self):
        device = Device(id="npu", title="N", backends=("openvino",), source="")
        assert {"openvino"} == {one.backend for one in catalog.select_recipes(device, (), (), ())}

    def test_an_empty_selection_is_an_error_not_an_empty_run(self):
        with pytest.raises(UsageError, match="no recipe is left for device 'cpu'"):
            catalog.select_recipes(catalog.device("cpu"), ("ort-fp32",), (), ("int8",))
