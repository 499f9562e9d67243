"""Source + recipe → artifact, on both CPU backends, and every way in which a model file can be unfit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import timm
import torch

from edgebench import artifacts, backends, catalog, graphs, sources
from edgebench.conversion import to_onnx
from edgebench.datasets import open_images
from edgebench.errors import CannotMeasure, EdgebenchError, InvalidInput
from edgebench.export import Wanted, export_all
from edgebench.recipe import Build, Quantization, Recipe
from edgebench.record import ClassMap, Preprocess, load_artifact
from tests.models import CLASSES, onnx_file, tiny_weights

ALL = ("ort-fp32", "openvino-fp32", "ort-int8", "openvino-int8")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.conftest import picture

    root = tmp_path_factory.mktemp("pictures")
    for k, name in enumerate(CLASSES):
        (root / name).mkdir()
        for number in range(8):
            picture(100 * k + number, 200, 180).save(root / name / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> sources.Source:
    return sources.open_source(
        "timm:test_efficientnet", weights=str(tiny_weights(tmp_path_factory.mktemp("weights"))),
        classes=ClassMap(ids=CLASSES, names=CLASSES))


@pytest.fixture(scope="module")
def exported(tiny: sources.Source, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("artifacts")
    found = {recipe.id: built for recipe, built in export_all(
        tiny, [catalog.recipe(name) for name in ALL], root, Wanted(calibration=open_images(str(pictures))))}
    assert all(isinstance(folder, Path) for folder in found.values()), found
    return found


@pytest.mark.parametrize("name", ALL)
def test_outputs_agree_with_eager_pytorch_on_real_pixels(name: str, exported: dict[str, Path], tiny: sources.Source) -> None:
    folder = exported[name]
    artifact = artifacts.verify(folder)
    with np.load(folder / "golden.npz") as golden:
        inputs, reference = golden["inputs"], golden["reference"]
    with torch.inference_mode():
        expected = tiny.program(torch.from_numpy(inputs))[0].numpy()
    np.testing.assert_allclose(expected, reference, atol=1e-5)
    session = backends.get(artifact.recipe.backend).open_session(
        folder / artifact.entry, artifact.recipe, batch=len(inputs), threads=1)
    got = session.infer({"image": inputs})["logits"]
    tolerance = 1e-3 if artifact.recipe.precision == "fp32" else 0.35 * float(np.abs(expected).max())
    np.testing.assert_allclose(expected, got, atol=tolerance)


@pytest.mark.parametrize("name", ALL)
def test_the_manifest_tells_what_ships_and_how_to_feed_it(name: str, exported: dict[str, Path], tiny: sources.Source) -> None:
    artifact = artifacts.verify(exported[name])
    assert ("batch", 3, 160, 160) == artifact.inputs[0].shape
    assert (("batch", 3), tiny.preprocess, tiny.classes) == (artifact.outputs[0].shape, artifact.preprocess, artifact.classes)
    assert (24 if "int8" in name else None) == (artifact.calibration and artifact.calibration.images)
    assert "eager PyTorch" == artifact.parity.reference
    assert {"torch", "onnx"} <= set(artifact.tools)
    assert artifact.size_bytes == sum(path.stat().st_size for path in exported[name].iterdir()
                                      if path.name not in ("manifest.json", "golden.npz"))


@pytest.mark.parametrize(("name", "executed"), [("ort-fp32", "fp32"), ("openvino-fp32", "fp32"), ("ort-int8", "int8"),
                                                ("openvino-int8", "int8")])
def test_the_runtime_says_that_it_executes_what_was_asked_for(name: str, executed: str, exported: dict[str, Path]) -> None:
    artifact = artifacts.verify(exported[name])
    found = backends.get(artifact.recipe.backend).executed_precision(
        exported[name] / artifact.entry, artifact.recipe, {"image": np.zeros((1, 3, 160, 160), np.float32)}, threads=1)
    assert executed == found.executed
    assert pytest.approx(1.0) == sum(found.time_share.values())
    assert sum(found.layers.values()) > 5


def test_openvino_left_alone_would_not_be_fp32_where_the_cpu_has_bf16(exported: dict[str, Path]) -> None:
    from edgebench import environment

    if not environment.supports_bf16(environment.cpu_features()):
        pytest.skip("this CPU has no bf16 instructions, so OpenVINO stays in FP32 anyway")
    artifact = artifacts.verify(exported["openvino-fp32"])
    bf16 = replace(artifact.recipe, precision="bf16")
    backend = backends.get("openvino")
    feeds = {"image": np.random.default_rng(0).standard_normal((1, 3, 160, 160), np.float32)}
    entry = exported["openvino-fp32"] / artifact.entry
    assert "bf16" == backend.executed_precision(entry, bf16, feeds, threads=1).executed
    exact = np.array(backend.open_session(entry, artifact.recipe, batch=1, threads=1).infer(feeds)["logits"])
    rounded = np.array(backend.open_session(entry, bf16, batch=1, threads=1).infer(feeds)["logits"])
    assert np.abs(exact - rounded).max() > 1e-4


def test_the_same_export_is_kept_and_another_is_made_anew(tiny: sources.Source, pictures: Path, tmp_path: Path) -> None:
    def export(*, force: bool = False) -> str:
        (_, folder), = export_all(tiny, [catalog.recipe("ort-fp32")], tmp_path, Wanted(images=open_images(str(pictures))), force=force)
        assert isinstance(folder, Path), folder
        return load_artifact(folder).created_at + str((folder / "model.onnx").stat().st_mtime_ns)

    first = export()
    assert first == export()
    file = next(tmp_path.glob("*/model.onnx"))
    file.write_bytes(file.read_bytes() + b"x")
    (_, refused), = export_all(tiny, [catalog.recipe("ort-fp32")], tmp_path)
    assert "already holds another artifact" in str(refused)
    assert first != export(force=True), "an altered artifact was taken for a good one"


def test_a_file_of_the_users_in_the_way_is_never_removed(tiny: sources.Source, tmp_path: Path) -> None:
    (_, folder), = export_all(tiny, [catalog.recipe("ort-fp32")], tmp_path)
    (folder / "notes.txt").write_text("mine")
    (folder / "model.onnx").write_bytes(b"other")
    (_, refused), = export_all(tiny, [catalog.recipe("ort-fp32")], tmp_path, force=True)
    assert "holds notes.txt, which is no part of an artifact" in str(refused)
    assert "mine" == (folder / "notes.txt").read_text()


def test_an_edited_manifest_is_refused(exported: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(exported["ort-fp32"], folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["preprocess"]["mean"] = [0.9, 0.9, 0.9]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InvalidInput, match=r"manifest\.json was changed after export"):
        artifacts.verify(folder)


def test_other_external_data_makes_another_model(tmp_path: Path) -> None:
    file = onnx_file(tmp_path / "m.onnx", external=True)
    before = sources.open_source(str(file)).identity
    data = tmp_path / "m.onnx.data"
    content = bytearray(data.read_bytes())
    content[-1] ^= 1
    data.write_bytes(bytes(content))
    assert before != sources.open_source(str(file)).identity


def test_a_class_map_of_another_length_than_the_outputs_is_refused(tmp_path: Path) -> None:
    source = sources.open_source(str(onnx_file(tmp_path / "m.onnx")), classes=ClassMap(ids=("a", "b"), names=("a", "b")))
    (_, error), = export_all(source, [catalog.recipe("ort-fp32")], tmp_path / "out")
    assert "the class map has 2 classes, the model 3 outputs" in str(error)


def test_preprocessing_of_another_size_than_the_graphs_is_refused(tmp_path: Path) -> None:
    other = Preprocess(size_px=(16, 16), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), resize="squash")
    source = sources.open_source(str(onnx_file(tmp_path / "m.onnx")), preprocess=other)
    with pytest.raises(InvalidInput, match="takes images of height 8, the preprocessing gives 16"):
        list(export_all(source, [catalog.recipe("ort-fp32")], tmp_path / "out"))


def test_fewer_calibration_images_than_a_batch_are_enough(tiny: sources.Source, pictures: Path, tmp_path: Path) -> None:
    recipe = catalog.recipe("ort-int8")
    few = replace(recipe, id="few", quantization=replace(recipe.quantization, images=3))
    (_, folder), = export_all(tiny, [few], tmp_path, Wanted(calibration=open_images(str(pictures))))
    assert 3 == artifacts.verify(folder).calibration.images


def test_int8_without_images_is_refused_and_the_others_go_on(tiny: sources.Source, tmp_path: Path) -> None:
    found = {recipe.id: built for recipe, built in export_all(
        tiny, [catalog.recipe("ort-int8"), catalog.recipe("ort-fp32")], tmp_path)}
    assert isinstance(found["ort-int8"], InvalidInput)
    assert "never chosen from random numbers" in found["ort-int8"].message
    assert isinstance(found["ort-fp32"], Path)
    assert "seeded noise" in artifacts.verify(found["ort-fp32"]).parity.inputs


def test_calibration_images_of_one_colour_are_refused(tiny: sources.Source, tmp_path: Path) -> None:
    from PIL import Image

    (tmp_path / "gray" / "x").mkdir(parents=True)
    Image.new("RGB", (200, 200), (90, 90, 90)).save(tmp_path / "gray" / "x" / "a.png")
    (_, error), = export_all(tiny, [catalog.recipe("ort-int8")], tmp_path / "out",
                             Wanted(calibration=open_images(str(tmp_path / "gray"))))
    assert "one colour" in str(error)


def test_few_calibration_images_are_a_caveat(exported: dict[str, Path]) -> None:
    assert ["few-calibration-images"] == [caveat.code for caveat in artifacts.verify(exported["ort-int8"]).caveats]


def test_per_tensor_weights_give_another_artifact_than_per_channel_ones(tiny: sources.Source, pictures: Path, tmp_path: Path) -> None:
    recipe = catalog.recipe("ort-int8")
    assert recipe.quantization is not None
    both = [recipe, replace(recipe, id="per-tensor", quantization=replace(recipe.quantization, per_channel=False))]
    found = {one.id: artifacts.verify(built).parity.max_abs_difference for one, built in export_all(
        tiny, both, tmp_path, Wanted(calibration=open_images(str(pictures))))}
    assert found["per-tensor"] != found["ort-int8"]


def test_nncf_quantizes_for_openvino(tiny: sources.Source, pictures: Path, tmp_path: Path) -> None:
    recipe = replace(catalog.recipe("openvino-int8"), id="nncf", quantization=Quantization(quantizer="nncf", images=8))
    (_, folder), = export_all(tiny, [recipe], tmp_path, Wanted(calibration=open_images(str(pictures))))
    artifact = artifacts.verify(folder)
    found = backends.get("openvino").executed_precision(
        folder / artifact.entry, recipe, {"image": np.zeros((1, 3, 160, 160), np.float32)}, threads=1)
    assert "int8" == found.executed


def test_an_exported_program_becomes_an_artifact(tmp_path: Path) -> None:
    module = timm.create_model("test_efficientnet", num_classes=3).eval()
    batch = torch.export.Dim("images", min=1, max=64)
    program = torch.export.export(module, (torch.randn(2, 3, 96, 96),), dynamic_shapes=({0: batch},))
    torch.export.save(program, tmp_path / "model.pt2")
    source = sources.open_source(str(tmp_path / "model.pt2"))
    (_, folder), = export_all(source, [catalog.recipe("ort-fp32")], tmp_path / "out")
    artifact = artifacts.verify(folder)
    assert (("batch", 3, 96, 96), None, "embedded") == (artifact.inputs[0].shape, artifact.preprocess,
                                                         artifact.model.weights)
    assert "batch" == graphs.image_input(folder / artifact.entry).shape[0]


def test_an_onnx_file_becomes_an_artifact_with_its_external_data(tmp_path: Path) -> None:
    source = sources.open_source(str(onnx_file(tmp_path / "m.onnx", external=True)))
    (_, folder), = export_all(source, [catalog.recipe("ort-fp32")], tmp_path / "out")
    artifact = artifacts.verify(folder)
    assert "the given ONNX file in ONNX Runtime" == artifact.parity.reference
    session = backends.get("onnxruntime").open_session(folder / artifact.entry, artifact.recipe, batch=2, threads=1)
    assert (2, 3, 8, 8) == session.inputs[0].shape


@pytest.mark.parametrize(("options", "message"), [
    ({"input_shape": ["n", 8, 8, 3]}, r"expected one float input \(N, 3, H, W\), got image float \(n, 8, 8, 3\)"),
    ({"dtype": onnx.TensorProto.UINT8}, "got image uint8"),
    ({"outputs": "features"}, r"has no logits or probabilities: expected an output \(N, classes\), got 'logits' \(n, 3, 8, 8\)"),
])
def test_a_graph_of_another_form_says_what_was_expected_and_what_it_has(tmp_path: Path, options: dict, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        to_onnx(sources.open_source(str(onnx_file(tmp_path / "m.onnx", **options))), 20, tmp_path)


def test_missing_external_data_names_the_file(tmp_path: Path) -> None:
    file = onnx_file(tmp_path / "m.onnx", external=True)
    (tmp_path / "m.onnx.data").unlink()
    with pytest.raises(InvalidInput, match=r"m\.onnx\.data is missing"):
        to_onnx(sources.open_source(str(file)), 20, tmp_path)


def test_external_data_cut_short_is_refused(tmp_path: Path) -> None:
    file = onnx_file(tmp_path / "m.onnx", external=True)
    data = tmp_path / "m.onnx.data"
    data.write_bytes(data.read_bytes()[:10])
    with pytest.raises(InvalidInput, match=r"m\.onnx\.data is cut short: it has 10 bytes"):
        to_onnx(sources.open_source(str(file)), 20, tmp_path)


@pytest.mark.parametrize(("content", "what"), [
    (b"", "is empty"), (b"nonsense that is no protobuf", "is text"), (b"\x08\x08", "is not a readable ONNX file")])
def test_a_file_that_is_no_onnx_graph_is_refused(tmp_path: Path, content: bytes, what: str) -> None:
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(InvalidInput, match=rf"m\.onnx {what}"):
        to_onnx(sources.open_source(str(tmp_path / "m.onnx")), 20, tmp_path)


def test_a_model_without_logits_is_refused_before_export(tiny: sources.Source, tmp_path: Path) -> None:
    features = replace(tiny, program=torch.nn.Conv2d(3, 4, 3).eval())
    with pytest.raises(InvalidInput, match=r"has no logits: expected a first output \(N, classes\)"):
        to_onnx(features, 20, tmp_path)


@pytest.mark.parametrize(("change", "message"), [
    (lambda folder: (folder / "model.onnx").unlink(), "model.onnx is missing"),
    (lambda folder: (folder / "model.onnx").write_bytes(b"other"), "was changed after export"),
    (lambda folder: (folder / "manifest.json").write_text("{"), "not valid JSON"),
    (lambda folder: (folder / "manifest.json").write_text('{"schema": "edgebench.artifact/9"}'), "another version"),
])
def test_a_damaged_artifact_is_refused_by_name(exported: dict[str, Path], tmp_path: Path,
                                               change: Callable[[Path], object], message: str) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(exported["ort-fp32"], folder)
    change(folder)
    with pytest.raises(InvalidInput, match=message):
        artifacts.verify(folder)


def test_other_golden_outputs_than_at_export_are_an_error_for_fp32(exported: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(exported["ort-fp32"], folder)
    with np.load(folder / "golden.npz") as kept:
        arrays = dict(kept)
    arrays["outputs"] = -arrays["outputs"]
    np.savez(folder / "golden.npz", **arrays)
    artifact = load_artifact(folder)
    with pytest.raises(CannotMeasure, match="golden inputs give other classes"):
        artifacts.golden_difference(folder, artifact, lambda batch: backends.get("onnxruntime").open_session(
            folder / artifact.entry, artifact.recipe, batch=batch, threads=1))


def test_an_execution_provider_that_is_not_there_is_an_error_not_a_fallback(exported: dict[str, Path]) -> None:
    artifact = artifacts.verify(exported["ort-fp32"])
    cuda = replace(artifact.recipe, providers=("CUDAExecutionProvider",))
    with pytest.raises(CannotMeasure, match="CUDAExecutionProvider"):
        backends.get("onnxruntime").open_session(exported["ort-fp32"] / artifact.entry, cuda, batch=1, threads=1)


def test_a_session_on_other_providers_than_asked_for_is_an_error(exported: dict[str, Path],
                                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    artifact = artifacts.verify(exported["ort-fp32"])
    monkeypatch.setattr(onnxruntime, "get_available_providers",
                        lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    # What ONNX Runtime does with a CUDA build and no working driver: a CPU session, and a warning.
    real = onnxruntime.InferenceSession
    monkeypatch.setattr(onnxruntime, "InferenceSession",
                        lambda path, options, providers, **_: real(path, providers=["CPUExecutionProvider"]))
    cuda = replace(artifact.recipe, providers=("CUDAExecutionProvider",))
    with pytest.raises(CannotMeasure, match="the session runs on CPUExecutionProvider"):
        backends.get("onnxruntime").open_session(exported["ort-fp32"] / artifact.entry, cuda, batch=1, threads=1)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_file_that_the_runtime_cannot_load_is_named(backend: str, tmp_path: Path) -> None:
    file = tmp_path / ("model.onnx" if backend == "onnxruntime" else "model.xml")
    file.write_text("nonsense")
    (tmp_path / "model.bin").write_bytes(b"nonsense")
    recipe = Recipe(id="x", title="", purpose="", checked_on="", backend=backend, precision="fp32")
    with pytest.raises(InvalidInput, match=str(file)):
        backends.get(backend).open_session(file, recipe, batch=1, threads=1)


@pytest.mark.skipif(backends.is_installed("tensorrt"), reason="TensorRT is installed")
def test_weak_typing_is_exported_elsewhere_with_its_precision_left_to_the_device(tmp_path: Path) -> None:
    # The file stays FP32 by design, and was refused everywhere but on the device.
    recipe = replace(catalog.recipe("tensorrt-fp16"), build=Build(typing="weak"))
    source = sources.open_source(str(onnx_file(tmp_path / "m.onnx")))
    (_, folder), = export_all(source, [recipe], tmp_path / "out")
    (doubt,) = [one for one in artifacts.verify(folder).caveats if one.code == "precision-unproven"]
    assert "TensorRT is not installed" in doubt.message
    assert "profile it on its device" in doubt.hint


def test_a_fixed_batch_is_kept_and_run_with_padding(tmp_path: Path) -> None:
    source = sources.open_source(str(onnx_file(tmp_path / "m.onnx", input_shape=[4, 3, 8, 8])))
    (_, folder), = export_all(source, [catalog.recipe("ort-fp32")], tmp_path / "out")
    artifact = artifacts.verify(folder)
    assert 4 == artifacts.fixed_batch(artifact)
    rows = np.random.default_rng(0).standard_normal((6, 3, 8, 8), np.float32)
    backend = backends.get("onnxruntime")
    got = artifacts.run_batches(lambda batch: backend.open_session(folder / artifact.entry, artifact.recipe,
                                                                   batch=batch, threads=1), {"image": rows}, 4)
    (initializer,) = [one for one in onnx.load(tmp_path / "m.onnx").graph.initializer if one.name == "weight"]
    expected = rows.mean(axis=(2, 3)) @ onnx.numpy_helper.to_array(initializer)
    np.testing.assert_allclose(expected, got["logits"], atol=1e-5)


def test_parity_and_golden_outputs_are_computed_in_batches_that_the_engine_takes(tmp_path: Path,
                                                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    backend = backends.get("onnxruntime")
    real = {name: getattr(backend, name) for name in ("open_session", "executed_precision")}
    asked = []

    def open_session(entry, recipe, *, batch, threads):
        asked.extend([batch] if recipe.build else [])
        return real["open_session"](entry, recipe, batch=batch, threads=threads)

    def executed_precision(entry, recipe, feeds, *, threads):
        asked.append(len(feeds["image"]))
        return real["executed_precision"](entry, recipe, feeds, threads=threads)

    monkeypatch.setattr(backend, "open_session", open_session)
    monkeypatch.setattr(backend, "executed_precision", executed_precision)
    source = sources.open_source(str(onnx_file(tmp_path / "m.onnx")))
    for batches in ((2, 2, 3), (6, 8, 32)):
        asked.clear()
        recipe = replace(catalog.recipe("ort-fp32"), id=f"to-{batches[2]}", build=Build(batches=batches))
        (_, folder), = export_all(source, [recipe], tmp_path / "out")
        artifact = artifacts.verify(folder)
        assert artifacts.golden_difference(folder, artifact, lambda batch, folder=folder, recipe=recipe: open_session(
            folder / "model.onnx", recipe, batch=batch, threads=1)) < 1e-5
        assert asked, "nothing was opened"
        assert all(batches[0] <= batch <= batches[2] for batch in asked), asked


def test_an_unwritable_folder_is_named(tiny: sources.Source, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EdgebenchError, match=r"cannot write .*file"):
        list(export_all(tiny, [catalog.recipe("ort-fp32")], tmp_path / "file" / "out"))


def test_preprocessing_of_an_onnx_file_comes_from_the_user(tmp_path: Path) -> None:
    wanted = Preprocess(size_px=(8, 8), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), resize="squash")
    source = sources.open_source(str(onnx_file(tmp_path / "m.onnx")), preprocess=wanted)
    (_, folder), = export_all(source, [catalog.recipe("ort-fp32")], tmp_path / "out")
    assert json.loads((folder / "manifest.json").read_text())["preprocess"]["size_px"] == [8, 8]


def test_files_that_nothing_here_can_check_are_refused_with_the_reason(tiny: sources.Source, tmp_path: Path,
                                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends.get("openvino"), "reason_against", lambda recipe: "no such kernels")
    (_, found), = export_all(tiny, [catalog.recipe("openvino-fp32")], tmp_path)
    assert isinstance(found, CannotMeasure)
    assert "no such kernels" in str(found)
    assert [] == [place for place in tmp_path.iterdir() if not place.name.startswith(".")]
