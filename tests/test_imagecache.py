"""Preprocessing against torchvision, timm and open_clip bit for bit, and the cache on disk through every mishap."""

from __future__ import annotations

import errno
import hashlib
import importlib.util
import io
import json
import os
import shutil
import struct
import threading
import time
import warnings
import zlib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from edgebench import corruptions, imagecache, record
from edgebench.datasets import Item, identity, open_images
from edgebench.errors import InvalidInput
from edgebench.imagecache import cache_root, cached, corrupted, load_cache, normalize, to_rgb, transform
from edgebench.record import Preprocess
from tests.conftest import picture

SMALL = Preprocess(size_px=(8, 8), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), resize_px=9)
SIZES = [(500, 375), (333, 777), (224, 224), (256, 256), (227, 300), (1000, 225), (64, 48), (7, 5), (401, 400)]
# dm_nfnet_f0 squashes to more pixels than it crops.
MODELS = ["tf_efficientnet_lite0", "resnet50", "deit3_base_patch16_224", "dm_nfnet_f0", "open_clip:ViT-B-16"]


def changed_index(folder: Path, *, reseal: bool = False, **changes: object) -> None:
    """Change the index of a cache; with `reseal` as one who computes its seal again."""
    file = folder / "index.json"
    data = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({**data, "sealed": record.seal_of(data)} if reseal else data))


def bits(array) -> tuple[tuple[int, ...], str, bytes]:
    """Return what makes two arrays the same to the last bit."""
    array = np.ascontiguousarray(array)
    return array.shape, str(array.dtype), array.tobytes()


def other_modes() -> dict[str, Image.Image]:
    base = picture(5, 301, 260)
    alpha = Image.fromarray(np.arange(301 * 260, dtype=np.uint32).reshape(260, 301).astype(np.uint8))
    transparent = base.convert("RGBA")
    transparent.putalpha(alpha)
    two_tone = base.convert("LA")
    two_tone.putalpha(alpha)
    return {"gray": base.convert("L"), "rgba": transparent, "palette": base.quantize(32), "la": two_tone,
            "one bit": base.convert("1"), "cmyk": base.convert("CMYK"), "ycbcr": base.convert("YCbCr")}


@pytest.fixture(scope="module")
def pipelines():
    """Per model: our `Preprocess` as the source derives it, and the model's own evaluation transform."""
    missing = [name for name in ("torch", "torchvision", "timm", "open_clip") if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what those packages warn about at import is not ours to judge
        import open_clip
        import timm
        import timm.data
        import torch

        from edgebench import sources
        found = {}
        for name in MODELS[:-1]:
            with torch.device("meta"):
                config = timm.data.resolve_model_data_config(timm.create_model(name))
            size = tuple(config["input_size"][1:])
            found[name] = (sources._timm_preprocess(config, size), timm.data.create_transform(**config, is_training=False))
        source = sources.open_source("open_clip:ViT-B-16/openai", weights="random")
        own = open_clip.get_pretrained_cfg("ViT-B-16", "openai")
        wanted = {key: own[key] for key in ("mean", "std", "interpolation", "resize_mode")}
        found["open_clip:ViT-B-16"] = (source.preprocess, open_clip.transform.image_transform_v2(
            open_clip.transform.PreprocessCfg(size=224, **wanted), is_train=False))
    return found


def ours(image: Image.Image, preprocess: Preprocess) -> np.ndarray:
    return normalize(transform(image, preprocess)[None], preprocess)[0]


class TestAgainstTheModelsOwnTransform:
    @pytest.mark.parametrize("model", MODELS)
    @pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
    def test_rgb_images_of_any_size_agree_to_the_last_bit(self, pipelines, model, size):
        preprocess, theirs = pipelines[model]
        image = picture(sum(size), *size)
        assert bits(theirs(image).numpy()) == bits(ours(image, preprocess))

    @pytest.mark.parametrize("model", MODELS)
    def test_real_photographs_agree_to_the_last_bit(self, pipelines, model, imagenet_800):
        preprocess, theirs = pipelines[model]
        photographs = sorted(imagenet_800.glob("*/*.JPEG"))[::100]
        assert len(photographs) == 8
        for path in photographs:
            with Image.open(path) as image:
                image.load()
                assert bits(theirs(image.convert("RGB")).numpy()) == bits(ours(image, preprocess)), path.name

    # open_clip resizes before it converts to RGB: on other modes it is not this pipeline, by its own choice.
    @pytest.mark.parametrize("model", MODELS[:-1])
    @pytest.mark.parametrize("mode", list(other_modes()))
    def test_other_modes_are_converted_to_rgb_first(self, pipelines, model, mode):
        preprocess, theirs = pipelines[model]
        image = other_modes()[mode]
        assert bits(theirs(image.convert("RGB")).numpy()) == bits(ours(image, preprocess))

    def test_the_models_ask_for_what_is_published(self, pipelines):
        # timm's and open_clip's model cards: resize target, statistics.
        expected = {"tf_efficientnet_lite0": (256, (0.5, 0.5, 0.5)), "resnet50": (235, (0.485, 0.456, 0.406)),
                    "deit3_base_patch16_224": (248, (0.485, 0.456, 0.406)), "dm_nfnet_f0": (213, (0.485, 0.456, 0.406)),
                    "open_clip:ViT-B-16": (224, (0.48145466, 0.4578275, 0.40821073))}
        assert expected == {name: (one.resize_px, one.mean) for name, (one, _) in pipelines.items()}
        assert [(224, 224)] * 3 + [(192, 192), (224, 224)] == [pipelines[name][0].size_px for name in MODELS]


class TestAgainstTorchvision:
    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def _torchvision(cls):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pytest.importorskip("torchvision.transforms")

    def pipeline(self, preprocess: Preprocess):
        from torchvision import transforms
        mode = transforms.InterpolationMode(preprocess.interpolation)
        resize = {"shortest": [transforms.Resize(preprocess.resize_px, mode)] if preprocess.resize_px else [],
                  "squash": [transforms.Resize(preprocess.size_px, mode)], "none": []}[preprocess.resize]
        return transforms.Compose([*resize, transforms.CenterCrop(preprocess.size_px), transforms.ToTensor(),
                                   transforms.Normalize(preprocess.mean, preprocess.std)])

    @pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
    @pytest.mark.parametrize(("resize", "resize_px"), [("shortest", 71), ("squash", None)])
    def test_every_resampling_agrees(self, interpolation, resize, resize_px):
        preprocess = Preprocess(size_px=(64, 60), mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4), resize=resize,
                                resize_px=resize_px, interpolation=interpolation)
        for size in ((333, 177), (50, 90), (71, 71), (60, 64)):
            image = picture(1, *size)
            assert bits(self.pipeline(preprocess)(image).numpy()) == bits(ours(image, preprocess))

    @pytest.mark.parametrize("size", [(64, 64), (65, 64), (64, 67), (66, 69), (301, 200)])
    def test_crop_without_resizing_agrees_on_even_and_odd_margins(self, size):
        preprocess = Preprocess(size_px=(64, 64), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), resize="squash")
        image = picture(2, *size)
        assert bits(self.pipeline(preprocess)(image).numpy()) == bits(ours(image, preprocess))

    def test_a_frame_that_is_cut_off_leaves_the_inner_image(self):
        preprocess = Preprocess(size_px=(40, 40), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), resize_px=44, border_px=3)
        image = picture(3, 90, 70)
        inner = Image.fromarray(np.asarray(image)[3:-3, 3:-3])
        assert bits(self.pipeline(preprocess)(inner).numpy()) == bits(ours(image, preprocess))


class TestTransform:
    def test_crop_is_the_middle_of_the_pixels(self):
        preprocess = replace(SMALL, size_px=(4, 6), resize="none", resize_px=None)
        image = picture(4, 10, 8)
        assert bits(np.asarray(image)[2:6, 2:8]) == bits(transform(image, preprocess))

    def test_cmyk_is_converted_like_pillow_does(self):
        preprocess = replace(SMALL, size_px=(30, 40), resize="none", resize_px=None)
        image = picture(4).convert("CMYK")
        assert bits(np.asarray(image.convert("RGB"))) == bits(transform(image, preprocess))

    def test_an_image_too_small_for_a_pipeline_without_resizing_is_refused(self):
        with pytest.raises(ValueError, match="40×30 pixels, smaller than the model's 8×31"):
            transform(picture(0), replace(SMALL, size_px=(31, 8), resize="none", resize_px=None))

    def test_normalize_is_float32_nchw_by_the_formula(self):
        pixels = np.arange(2 * 2 * 3 * 3, dtype=np.uint8).reshape(2, 2, 3, 3) * 7
        preprocess = replace(SMALL, mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 2.0))
        found = normalize(pixels, preprocess)
        assert ((2, 3, 2, 3), np.float32, True) == (found.shape, found.dtype, found.flags.c_contiguous)
        for n, channel, row, column in np.ndindex(found.shape):
            exact = (int(pixels[n, row, column, channel]) / 255 - preprocess.mean[channel]) / preprocess.std[channel]
            assert exact == pytest.approx(found[n, channel, row, column], abs=1e-6)

    def test_normalize_leaves_its_input_alone(self):
        pixels = np.full((1, 8, 8, 3), 9, np.uint8)
        normalize(pixels, SMALL)
        assert bool((pixels == 9).all())


class TestCacheRoot:
    def test_is_where_the_variable_points(self, cache_folder):
        assert cache_folder == cache_root()

    @pytest.mark.parametrize("value", [None, ""])
    def test_is_the_users_cache_folder_otherwise(self, monkeypatch, tmp_path, value):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        if value is None:
            monkeypatch.delenv("EDGEBENCH_CACHE")
        else:
            monkeypatch.setenv("EDGEBENCH_CACHE", value)
        assert "edgebench" == cache_root().name
        assert tmp_path in cache_root().parents


@pytest.fixture
def decodings(monkeypatch):
    """The names of the files that were decoded, in the order of asking."""
    names: list[str] = []
    decode = imagecache._decode

    def counting(item, view):
        names.append(item.path.name)
        return decode(item, view)

    monkeypatch.setattr(imagecache, "_decode", counting)
    return names


@pytest.mark.usefixtures("cache_folder")
class TestCache:
    def test_pixels_are_those_of_the_images_in_their_order(self, labelled_folder):
        items = open_images(str(labelled_folder)).items
        cache = cached(items, SMALL)
        expected = np.stack([transform(Image.open(item.path), SMALL) for item in items])
        assert bits(expected) == bits(cache.pixels())
        assert (tuple(range(6)), ()) == (cache.kept, cache.unreadable)

    def test_rows_are_read_in_any_order(self, labelled_folder):
        cache = cached(open_images(str(labelled_folder)).items, SMALL)
        assert bits(cache.pixels()[[4, 0, 4]]) == bits(cache.read([4, 0, 4]))
        assert (0, 8, 8, 3) == cache.read([]).shape

    def test_order_is_kept_when_more_images_come_than_are_decoded_ahead(self, tmp_path):
        # Every image has a colour of its own, and the items come in no sorted order.
        items = []
        for number in np.random.default_rng(0).permutation(200):
            path = tmp_path / f"{number}.png"
            Image.new("RGB", (9, 9), (int(number), 7, 255 - int(number))).save(path)
            items.append(Item(id=path.name, path=path, folder="x"))
        cache = cached(items, SMALL)
        assert [int(item.path.stem) for item in items] == cache.pixels()[:, 3, 4, 0].tolist()
        assert [hashlib.sha256(item.path.read_bytes()).hexdigest() for item in items] == list(cache.hashes)

    def test_progress_counts_every_image_once(self, labelled_folder):
        told = []
        cached(open_images(str(labelled_folder)).items, SMALL, lambda *numbers: told.append(numbers))
        assert [(k, 6) for k in range(1, 7)] == told

    def test_second_call_decodes_nothing_and_tells_nothing(self, labelled_folder, decodings):
        items = open_images(str(labelled_folder)).items
        first = cached(items, SMALL)
        assert 6 == len(decodings)
        second = cached(items, SMALL, lambda *numbers: pytest.fail("decoding again"))
        assert 6 == len(decodings)
        assert first == second
        assert bits(first.pixels()) == bits(second.pixels())

    def test_finished_cache_can_be_opened_by_its_folder_alone(self, labelled_folder):
        first = cached(open_images(str(labelled_folder)).items, SMALL)
        assert first == load_cache(first.folder)

    @pytest.mark.parametrize("damage", [
        lambda folder: (folder / "index.json").write_text("{}"),
        lambda folder: (folder / "index.json").write_text(""),
        lambda folder: (folder / "index.json").write_bytes((folder / "index.json").read_bytes()[:-20]),
        lambda folder: os.truncate(folder / "images.u8", 6 * 8 * 8 * 3 - 1),
        lambda folder: os.truncate(folder / "images.u8", 0),
        lambda folder: (folder / "images.u8").unlink(),
        lambda folder: changed_index(folder, hashes=[]),
        lambda folder: changed_index(folder, kept=[0, 1, 2, 3, 4, 4]),
        lambda folder: changed_index(folder, key="other", reseal=True)],
        ids=["index {}", "index empty", "index cut", "pixels cut", "pixels empty", "pixels gone", "hashes changed",
             "images changed", "another cache"])
    def test_a_damaged_cache_is_not_fatal_but_made_again(self, labelled_folder, decodings, damage):
        items = open_images(str(labelled_folder)).items
        first = cached(items, SMALL)
        expected = bits(first.pixels())
        damage(first.folder)
        with pytest.raises(InvalidInput):
            load_cache(first.folder)
        decodings.clear()
        again = cached(items, SMALL)
        assert (first, expected, 6) == (again, bits(again.pixels()), len(decodings))

    @pytest.mark.parametrize("damage", ["half zeroed", "a bit", "two images swapped"])
    def test_pixels_that_changed_in_place_are_made_again(self, labelled_folder, decodings, damage):
        items = open_images(str(labelled_folder)).items
        first = cached(items, SMALL)
        expected = bits(first.pixels())
        pixels = np.memmap(first.folder / "images.u8", np.uint8, "r+", shape=(6, 8, 8, 3))
        if damage == "half zeroed":
            pixels[:3] = 0
        elif damage == "a bit":
            pixels[5, 7, 7, 2] ^= 1
        else:
            pixels[[0, 1]] = pixels[[1, 0]]
        pixels.flush()
        decodings.clear()
        again = cached(items, SMALL)
        assert (expected, 6) == (bits(again.pixels()), len(decodings))

    def test_a_corrupted_images_cache_is_verified_too(self, labelled_folder):
        base = cached(open_images(str(labelled_folder)).items, replace(SMALL, size_px=(64, 64), resize_px=64))
        asked = base, range(2), ["a", "b"], "gaussian_noise:3"
        first = corrupted(*asked)
        expected = bits(first.pixels())
        (first.folder / "images.u8").write_bytes(bytes(2 * 64 * 64 * 3))
        assert expected == bits(corrupted(*asked).pixels())

    def test_a_cache_in_the_form_of_an_earlier_version_is_made_again(self, labelled_folder, decodings):
        items = open_images(str(labelled_folder)).items
        folder = cached(items, SMALL).folder
        index = json.loads((folder / "index.json").read_text())
        for name in ("key", "pixels_sha256", "sealed"):
            del index[name]
        (folder / "index.json").write_text(json.dumps(index))
        decodings.clear()
        assert (folder, 6) == (cached(items, SMALL).folder, len(decodings))

    @pytest.mark.parametrize("kind", ["file", "dangling link"])
    def test_what_is_no_folder_is_replaced(self, labelled_folder, kind):
        items = open_images(str(labelled_folder)).items
        folder = cached(items, SMALL).folder
        shutil.rmtree(folder)
        if kind == "file":
            folder.write_bytes(b"x")
        else:
            folder.symlink_to(folder.parent / "nowhere")
        assert 6 == len(cached(items, SMALL).pixels())

    def test_pixels_that_stayed_as_they_are_are_hashed_once_in_a_job(self, labelled_folder, monkeypatch):
        items = open_images(str(labelled_folder)).items
        pixels = cached(items, SMALL).folder / "images.u8"
        os.utime(pixels, (1_000_000_000, 1_000_000_000))
        # The time of the inode's own change cannot be set: the clock is.
        monkeypatch.setattr(record, "time", SimpleNamespace(time_ns=lambda: time.time_ns() + 3_600_000_000_000))
        read = []
        hashing = record.sha256_file
        monkeypatch.setattr(record, "sha256_file", lambda path: read.append(path) or hashing(path))
        cached(items, SMALL)
        cached(items, SMALL)
        assert [pixels] == read

    def test_decoding_in_threads_leaves_no_filter_behind_that_hides_all_warnings(self, labelled_folder, monkeypatch):
        # Threads that each save and restore the filters of the process leave it changed where they overlap like this.
        transforming, second_began, first_left = imagecache.transform, threading.Event(), threading.Event()
        calls = iter(("first", "second"))

        def overlapping(image, preprocess):
            if next(calls) == "first":
                assert second_began.wait(300)
                first_left.set()
            else:
                second_began.set()
                assert first_left.wait(300)
                time.sleep(0.1)
            return transforming(image, preprocess)

        monkeypatch.setattr(imagecache, "transform", overlapping)
        with warnings.catch_warnings():
            before = list(warnings.filters)
            cached(open_images(str(labelled_folder)).items[:2], SMALL)
            assert before == list(warnings.filters)

    def test_a_file_name_that_is_not_utf8_does_not_crash(self, labelled_folder):
        name = os.fsdecode(b"caf\xe9.png")
        try:
            picture(50).save(labelled_folder / "cat" / name)
        except OSError:
            pytest.skip("this file system takes no such names")
        images = open_images(str(labelled_folder))
        cache = cached(images.items, SMALL)
        place = [item.id for item in images.items].index(f"cat/{name}")
        assert bits(transform(picture(50), SMALL)) == bits(cache.pixels()[place])
        assert cache == cached(images.items, SMALL)
        assert 7 == identity(images, cache.kept, cache.hashes, (0,) * 7).images

    def test_pixels_cannot_be_written_to(self, labelled_folder):
        pixels = cached(open_images(str(labelled_folder)).items, SMALL).pixels()
        with pytest.raises(ValueError, match="read-only"):
            pixels[0] = 0

    @pytest.mark.parametrize("change", [
        {"resize_px": 10}, {"interpolation": "bilinear"}, {"size_px": (8, 7)}, {"border_px": 1}, {"preset": "paper"}])
    def test_other_preprocessing_is_another_cache(self, labelled_folder, change):
        items = open_images(str(labelled_folder)).items
        assert cached(items, SMALL).folder != cached(items, replace(SMALL, **change)).folder

    def test_other_selection_or_order_is_another_cache(self, labelled_folder):
        items = open_images(str(labelled_folder)).items
        folders = {cached(chosen, SMALL).folder for chosen in (items, items[:3], items[::-1])}
        assert 3 == len(folders)

    def test_changed_file_is_decoded_afresh(self, labelled_folder):
        items = open_images(str(labelled_folder)).items
        old = cached(items, SMALL)
        picture(99).save(items[2].path)
        new = cached(items, SMALL)
        assert old.folder != new.folder
        assert hashlib.sha256(items[2].path.read_bytes()).hexdigest() == new.hashes[2]
        assert bits(transform(picture(99), SMALL)) == bits(new.pixels()[2])
        assert bits(old.pixels()[[0, 1, 3, 4, 5]]) == bits(new.pixels()[[0, 1, 3, 4, 5]])

    def test_file_rewritten_with_the_same_size_is_noticed_by_its_time(self, labelled_folder):
        items = open_images(str(labelled_folder)).items
        old = cached(items, SMALL)
        content = bytearray(items[0].path.read_bytes())
        stat = items[0].path.stat()
        items[0].path.write_bytes(bytes(content))
        os.utime(items[0].path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
        assert old.folder != cached(items, SMALL).folder

    def test_missing_file_is_named(self, labelled_folder):
        items = open_images(str(labelled_folder)).items
        items[1].path.unlink()
        with pytest.raises(InvalidInput) as caught:
            cached(items, SMALL)
        assert f"cannot read {items[1].path}: No such file or directory" == caught.value.message

    def test_folder_can_be_read_by_others(self, labelled_folder):
        # TemporaryDirectory makes it private; a worker under another user opens it too.
        assert 0o755 == cached(open_images(str(labelled_folder)).items, SMALL).folder.stat().st_mode & 0o777


def png_claiming(width: int, height: int) -> bytes:
    """Return the beginning of a PNG whose header claims that size."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = b"IDAT" + zlib.compress(b"\0" * 100)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in (header, data))


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def broken_files() -> dict[str, tuple[bytes, str]]:
    jpeg, png = encoded(picture(1, 200, 150), "JPEG"), encoded(picture(1, 200, 150), "PNG")
    return {
        "empty": (b"", "empty file"),
        "text": (b"this is not an image", "not an image"),
        "html": (b"<html><body>404</body></html>", "not an image"),
        "truncated jpeg": (jpeg[: len(jpeg) // 2], "truncated"),
        "truncated png": (png[: len(png) // 2], "truncated"),
        "head of a jpeg": (jpeg[:20], ""),
        "damaged png": (png[:60] + bytes(40) + png[100:], ""),
        "above the limit": (png_claiming(9500, 9500), "9500×9500 pixels, more than the limit of 89,478,485"),
        "decompression bomb": (png_claiming(60000, 60000), "decompression bomb"),
    }


@pytest.mark.usefixtures("cache_folder")
class TestBrokenImages:
    @pytest.mark.parametrize("what", list(broken_files()))
    def test_are_left_out_named_and_still_hashed(self, labelled_folder, what):
        content, reason = broken_files()[what]
        items = open_images(str(labelled_folder)).items
        items[3].path.write_bytes(content)
        cache = cached(items, SMALL)
        assert (0, 1, 2, 4, 5) == cache.kept
        assert ["dog/000.png"] == [name for name, _ in cache.unreadable]
        assert cache.unreadable[0][1]
        assert reason in cache.unreadable[0][1]
        assert hashlib.sha256(content).hexdigest() == cache.hashes[3]
        expected = np.stack([transform(Image.open(items[k].path), SMALL) for k in cache.kept])
        assert bits(expected) == bits(cache.pixels())

    def test_the_largest_image_within_the_limit_is_decoded(self, labelled_folder):
        items = open_images(str(labelled_folder)).items
        Image.new("1", (9459, 9459), 1).save(items[0].path)  # 89,472,681 pixels
        assert () == cached(items, SMALL).unreadable

    def test_what_lies_there_but_cannot_be_read_is_an_error_and_not_one_image_fewer(self, labelled_folder):
        items = open_images(str(labelled_folder)).items
        items[0].path.unlink()
        items[0].path.mkdir()
        with pytest.raises(InvalidInput, match=r"cannot read .*cat/000\.png: Is a directory"):
            cached(items, SMALL)

    @pytest.mark.parametrize(("content", "word"), [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "git lfs pull"),
        (b"<!DOCTYPE html><html><body>429</body></html>", "HTML"), (b"\0\0\0\x18ftypheic\0\0\0\0mif1", "HEIF"),
        (b"\xff\x0a\xfa\x1f", "JPEG XL"), (b"PK\x03\x04\x14\0", "archive"), (bytes(300), "zeros"),
        (b"\0\0\0\x20ftypisom", "video")])
    def test_what_is_no_image_is_named_for_what_it_is(self, labelled_folder, content, word):
        items = open_images(str(labelled_folder)).items
        items[2].path.write_bytes(content)
        ((name, reason),) = cached(items, SMALL).unreadable
        assert items[2].id == name
        assert word in reason

    @pytest.mark.parametrize("error", [TypeError, IndexError, KeyError, struct.error, zlib.error, OverflowError])
    def test_whatever_a_decoder_raises_costs_one_image_only(self, labelled_folder, monkeypatch, error):
        items, whole = open_images(str(labelled_folder)).items, imagecache.transform

        def failing(image, preprocess):
            if image.info.get("broken"):
                raise error("bad byte")
            return whole(image, preprocess)

        marked = PngInfo()
        marked.add_text("broken", "yes")
        picture(9).save(items[1].path, pnginfo=marked)
        monkeypatch.setattr(imagecache, "transform", failing)
        assert [items[1].id] == [name for name, _ in cached(items, SMALL).unreadable]

    def test_an_image_so_narrow_that_resizing_would_fill_the_memory_is_left_out(self, labelled_folder):
        items = open_images(str(labelled_folder)).items
        Image.new("RGB", (2, 60_000)).save(items[2].path)
        ((name, reason),) = cached(items, replace(SMALL, size_px=(200, 200), resize_px=224)).unreadable
        assert items[2].id == name
        assert "2×60000 pixels: resized to 224×6720000, more than the limit" in reason

    def test_image_too_small_for_the_model_is_left_out(self, labelled_folder):
        items = open_images(str(labelled_folder)).items
        picture(0, 10, 10).save(items[5].path)
        cache = cached(items, replace(SMALL, size_px=(20, 20), resize="none", resize_px=None))
        assert (("owl/000.png", "10×10 pixels, smaller than the model's 20×20"),) == cache.unreadable

    def test_a_finished_cache_still_names_them(self, labelled_folder):
        items = open_images(str(labelled_folder)).items
        items[3].path.write_bytes(b"")
        assert cached(items, SMALL).unreadable == cached(items, SMALL).unreadable == (("dog/000.png", "empty file"),)

    def many(self, image_folder, broken: int) -> tuple[Item, ...]:
        items = open_images(str(image_folder({"a": 200}))).items
        for item in items[40:40 + broken]:
            item.path.write_bytes(b"x")
        return items

    def test_one_in_a_hundred_is_left_out(self, image_folder):
        cache = cached(self.many(image_folder, 2), SMALL)
        assert (198, ["a/040.png", "a/041.png"]) == (len(cache.kept), [name for name, _ in cache.unreadable])

    def test_more_than_one_in_a_hundred_puts_the_data_in_doubt(self, image_folder):
        with pytest.raises(InvalidInput) as caught:
            cached(self.many(image_folder, 3), SMALL)
        assert "3 of 200 images cannot be decoded, the first: a/040.png: not an image" == caught.value.message
        assert "up to 1 %" in caught.value.hint
        assert [] == list((cache_root() / "images").iterdir())


    def test_a_set_whose_only_image_is_broken_is_refused_instead_of_leaving_nothing(self, labelled_folder):
        items = open_images(str(labelled_folder)).items[:1]
        items[0].path.write_bytes(b"x")
        with pytest.raises(InvalidInput) as caught:
            cached(items, SMALL)
        assert "1 of 1 images cannot be decoded, the first: cat/000.png: not an image" == caught.value.message
        assert [] == list((cache_root() / "images").iterdir())


class TestMishaps:
    def images(self, labelled_folder):
        return open_images(str(labelled_folder)).items

    def test_too_small_a_disk_is_refused_before_anything_is_decoded(self, labelled_folder, cache_folder, monkeypatch, decodings):
        asked = []

        def tiny(path):
            asked.append(Path(path))
            return SimpleNamespace(free=6 * 8 * 8 * 3 - 1)

        monkeypatch.setattr(shutil, "disk_usage", tiny)
        with pytest.raises(InvalidInput) as caught:
            cached(self.images(labelled_folder), SMALL)
        assert f"{cache_folder / 'images'} has 0.0 GB free, the decoded images need 0.0" == caught.value.message
        assert "EDGEBENCH_CACHE" in caught.value.hint
        assert ([cache_folder / "images"], []) == (asked, decodings)

    def test_a_disk_that_holds_it_exactly_is_enough(self, labelled_folder, cache_folder, monkeypatch):
        monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=6 * 8 * 8 * 3))
        assert 6 == len(cached(self.images(labelled_folder), SMALL).kept)

    def test_interruption_leaves_no_half_cache_and_the_next_call_starts_over(self, labelled_folder, cache_folder, decodings):
        def interrupt(done, total):
            if done == 3:
                raise KeyboardInterrupt

        items = self.images(labelled_folder)
        with pytest.raises(KeyboardInterrupt):
            cached(items, SMALL, interrupt)
        assert [] == list((cache_folder / "images").iterdir())
        decodings.clear()
        assert (0, 1, 2, 3, 4, 5) == cached(items, SMALL).kept
        assert sorted(item.path.name for item in items) == sorted(decodings)

    def test_a_disk_that_fills_up_meanwhile_is_an_error_and_leaves_nothing(self, labelled_folder, cache_folder, monkeypatch):
        def full(path, value, hint):
            raise OSError(errno.ENOSPC, "No space left on device", str(path))

        monkeypatch.setattr(imagecache, "write_sealed", full)
        with pytest.raises(InvalidInput, match="No space left on device") as caught:
            cached(self.images(labelled_folder), SMALL)
        assert "free some space" in caught.value.hint
        assert [] == list((cache_folder / "images").iterdir())

    def test_a_cache_folder_that_is_a_file_is_an_error(self, labelled_folder, cache_folder):
        cache_folder.write_text("in the way")
        with pytest.raises(InvalidInput, match=r"cannot write .*edgebench-cache"):
            cached(self.images(labelled_folder), SMALL)

    @pytest.mark.parametrize("blocked", [".", "images"])
    def test_the_hint_for_a_blocked_cache_folder_names_the_variable_that_moves_it(self, labelled_folder, cache_folder, blocked):
        cache_folder.parent.mkdir(exist_ok=True)
        if blocked != ".":
            cache_folder.mkdir()
        (cache_folder / blocked).write_text("in the way")
        with pytest.raises(InvalidInput) as caught:
            cached(self.images(labelled_folder), SMALL)
        assert "EDGEBENCH_CACHE" in caught.value.hint
        assert "--out" not in caught.value.hint, "a cache does not lie in the output folder"

    def test_what_another_process_finished_meanwhile_is_used(self, labelled_folder, cache_folder):
        items = self.images(labelled_folder)
        other = []

        def meanwhile(done, total):
            if done == total:
                other.append(cached(items, SMALL))

        mine = cached(items, SMALL, meanwhile)
        assert other == [mine]
        assert [mine.folder.name] == [entry.name for entry in (cache_folder / "images").iterdir()]
        assert 6 == len(mine.pixels())


class TestOddImages:
    """Each kind by a rule that is written down in docs/method.md."""

    def saved(self, folder: Path, name: str, image: Image.Image, **options: object) -> Item:
        path = folder / name
        image.save(path, **options)
        return Item(id=name, path=path, folder="x")

    def test_sixteen_bit_gray_keeps_its_upper_byte(self, tmp_path, cache_folder):
        ramp = np.linspace(0, 65_535, 81).reshape(9, 9).astype(np.uint16)
        item = self.saved(tmp_path, "deep.png", Image.fromarray(ramp))
        with Image.open(item.path) as image:
            assert "I;16" == image.mode
        expected = np.repeat((ramp // 256).astype(np.uint8)[..., None], 3, axis=-1)
        assert bits(expected) == bits(cached([item], replace(SMALL, size_px=(9, 9), resize_px=None, resize="squash")).pixels()[0])

    @pytest.mark.parametrize("suffix", ["tif", "png"])
    def test_thirty_two_bit_integers_within_sixteen_bits_are_read_alike(self, tmp_path, suffix):
        ramp = np.linspace(0, 65_535, 81).reshape(9, 9).astype(np.int32)
        deep = to_rgb(Image.fromarray(ramp))
        assert (0, 255) == (np.asarray(deep).min(), np.asarray(deep).max())

    def test_floating_point_and_larger_integers_are_left_out_and_named(self, tmp_path, cache_folder):
        good = [self.saved(tmp_path, f"{k}.png", picture(k)) for k in range(3)]
        floats = self.saved(tmp_path, "float.tif", Image.fromarray(np.ones((9, 9), np.float32)))
        cache = cached([*good, floats], SMALL)
        assert ((0, 1, 2), "float.tif") == (cache.kept, cache.unreadable[0][0])
        assert "no agreed range" in cache.unreadable[0][1]
        with pytest.raises(ValueError, match="beyond 16 bits"):
            to_rgb(Image.fromarray(np.full((9, 9), 1 << 20, np.int32)))

    def test_an_exif_orientation_is_counted_and_not_applied(self, tmp_path, cache_folder):
        exif = Image.Exif()
        exif[0x0112] = 6
        upright = self.saved(tmp_path, "upright.png", picture(1))
        turned = self.saved(tmp_path, "turned.png", picture(1), exif=exif)
        cache = cached([upright, turned], SMALL)
        assert 1 == cache.rotated
        assert bits(cache.pixels()[0]) == bits(cache.pixels()[1])

    def test_a_row_of_an_array_file_is_an_image(self, tmp_path, cache_folder):
        images = np.stack([np.asarray(picture(k, 16, 16)) for k in range(3)])
        np.savez(tmp_path / "set.npz", images=images, labels=np.arange(3))
        items = [Item(id=str(k), path=tmp_path / "set.npz", folder="x", row=k) for k in (2, 0)]
        cache = cached(items, replace(SMALL, size_px=(16, 16), resize_px=None, resize="squash"))
        assert bits(images[[2, 0]]) == bits(cache.pixels())
        assert 2 == len(set(cache.hashes))

    def test_a_row_too_small_for_the_model_is_an_error_not_a_crash(self, tmp_path, cache_folder):
        np.savez(tmp_path / "set.npz", images=np.zeros((2, 6, 6, 3), np.uint8), labels=np.arange(2))
        items = [Item(id=str(k), path=tmp_path / "set.npz", folder="x", row=k) for k in range(2)]
        with pytest.raises(InvalidInput, match="6×6 pixels, smaller than the model's 8×8"):
            cached(items, replace(SMALL, resize="none", resize_px=None))


@pytest.mark.usefixtures("cache_folder")
class TestConditions:
    SIZE = replace(SMALL, size_px=(32, 32), resize_px=32, resize="shortest")

    def test_corrupted_images_are_made_once_from_the_clean_ones(self, labelled_folder, monkeypatch):
        items = open_images(str(labelled_folder)).items
        clean = cached(items, self.SIZE)
        told: list[tuple[int, int]] = []
        noisy = corrupted(clean, [4, 1], ["owl", "cat"], "gaussian_noise:3", lambda done, total: told.append((done, total)))
        assert [(1, 2), (2, 2)] == told
        for place, (row, name) in enumerate(((4, "owl"), (1, "cat"))):
            assert bits(corruptions.corrupt(np.array(clean.pixels()[row]), "gaussian_noise", 3, name)) == bits(
                noisy.pixels()[place])
        assert (noisy.hashes[0], noisy.hashes[1]) == (clean.hashes[4], clean.hashes[1])
        monkeypatch.setattr(corruptions, "corrupt", lambda *_: pytest.fail("it was made again"))
        assert noisy.folder == corrupted(clean, [4, 1], ["owl", "cat"], "gaussian_noise:3").folder

    def test_every_condition_has_a_cache_of_its_own(self, labelled_folder):
        items = open_images(str(labelled_folder)).items
        clean = cached(items, self.SIZE)
        folders = {corrupted(clean, [0], ["cat"], one).folder for one in ("fog:1", "fog:2", "snow:1")}
        folders |= {cached(items, self.SIZE, condition=one).folder for one in ("clean", "scale:0.5", "resolution:64")}
        assert 6 == len(folders)

    def test_a_resolution_changes_the_size_of_the_images(self, labelled_folder):
        cache = cached(open_images(str(labelled_folder)).items, self.SIZE, condition="resolution:64")
        assert ((64, 64), (6, 64, 64, 3)) == (cache.size_px, cache.pixels().shape)
        assert cache == load_cache(cache.folder)

    def test_a_sweep_changes_the_pixels(self, labelled_folder):
        items = open_images(str(labelled_folder)).items
        clean, near = (cached(items, self.SIZE, condition=one).pixels() for one in ("clean", "scale:0.5"))
        assert (np.abs(clean.astype(int) - near).mean(axis=(1, 2, 3)) > 1).all()
