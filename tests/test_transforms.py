"""Geometric sweeps: the paper's against torchvision pixel for pixel, the native ones against what they promise."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgebench.errors import InvalidInput, UsageError
from edgebench.imagecache import transform
from edgebench.record import Preprocess
from edgebench.transforms import is_sweep, levels, output_size, paper, parameter, render, shift_box
from tests.conftest import picture

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
OPENAI = {"mean": (0.48145466, 0.4578275, 0.40821073), "std": (0.26862954, 0.26130258, 0.27577711)}
HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
CONVNEXT = Preprocess(size_px=(224, 224), resize_px=256, **IMAGENET)
CLIP = Preprocess(size_px=(224, 224), resize_px=224, **OPENAI)
SQUASH = Preprocess(size_px=(224, 224), resize="squash", **HALF)
# Landscape, portrait, square, nearly square, the input's own size, long, tiny, a single pixel.
SIZES = ((500, 375), (375, 500), (500, 500), (334, 331), (224, 224), (900, 130), (30, 41), (1, 1))


def ramp(width: int, height: int) -> Image.Image:
    """A picture whose red says in which column a pixel lies and whose green in which row."""
    rows, columns = np.mgrid[0:height, 0:width]
    return Image.fromarray(np.stack([columns, rows, np.full_like(rows, 77)], axis=-1).astype(np.uint8))


class TestPaperPreset:
    def test_supervised_models_resize_to_256_bilinear(self) -> None:
        deit = Preprocess(size_px=(224, 224), resize_px=224, **IMAGENET)
        expected = Preprocess(size_px=(224, 224), resize_px=256, interpolation="bilinear", preset="paper", **IMAGENET)
        assert expected == paper(deit) == paper(CONVNEXT)

    def test_clip_models_resize_to_224_bicubic(self) -> None:
        assert replace(CLIP, preset="paper") == paper(CLIP)
        assert 224 == paper(replace(CLIP, resize_px=250, interpolation="bilinear", mean=(0.481, 0.458, 0.408))).resize_px

    @pytest.mark.parametrize(("mean", "std"), [(0.5, 0.5), (127 / 255, 128 / 255)])
    def test_inception_statistics_count_as_supervised_and_stay_the_models_own(self, mean: float, std: float) -> None:
        lite = Preprocess(size_px=(224, 224), resize_px=256, mean=(mean,) * 3, std=(std,) * 3)
        found = paper(lite)
        assert (256, "bilinear", (mean,) * 3, (std,) * 3) == (found.resize_px, found.interpolation, found.mean, found.std)

    @pytest.mark.parametrize(("size", "supervised"), [(224, 256), (288, 329), (240, 274), (336, 384)])
    def test_other_inputs_keep_the_proportion(self, size: int, supervised: int) -> None:
        assert supervised == paper(replace(CONVNEXT, size_px=(size, size))).resize_px
        assert size == paper(replace(CLIP, size_px=(size, size))).resize_px

    def test_it_is_its_own_paper_preset(self) -> None:
        assert paper(CONVNEXT) == paper(paper(CONVNEXT))
        assert paper(CLIP) == paper(paper(CLIP))

    @pytest.mark.parametrize("other", [
        SQUASH, replace(CONVNEXT, resize="none", resize_px=None), replace(CONVNEXT, border_px=1),
        replace(CONVNEXT, size_px=(224, 192)),
        replace(CONVNEXT, mean=(0.4850, 0.4560, 0.4060), std=(0.2686, 0.2613, 0.2758)),
        replace(CONVNEXT, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))])
    def test_any_other_preprocessing_is_refused_with_a_way_out(self, other: Preprocess) -> None:
        with pytest.raises(InvalidInput, match="the paper's preprocessing") as caught:
            paper(other)
        assert "native" in caught.value.hint


class TestLevels:
    def test_the_paper_has_the_published_levels(self) -> None:
        assert ("1", "1.25", "1.5", "2", "3") == levels("scale", "paper")
        assert ("0", "5", "30", "75", "100") == levels("shift", "paper")
        assert ("112", "224", "336", "512", "640") == levels("resolution", "paper")

    def test_native_levels(self) -> None:
        assert ("1", "0.875", "0.7", "0.5", "0.33") == levels("scale", "native")
        assert ("112", "160", "224", "288", "336") == levels("resolution", "native")
        assert {f"{fraction}{way}" for fraction in ("0.125", "0.25") for way in ("left", "right", "up", "down")} == \
            set(levels("shift", "native"))

    def test_levels_say_their_number(self) -> None:
        assert [0.125, 0.25, 1.25, 100.0, 224.0] == [parameter(one) for one in ("0.125left", "0.25up", "1.25", "100", "224")]
        with pytest.raises(ValueError, match="expected a level"):
            parameter("left")

    def test_what_is_a_sweep(self) -> None:
        assert [True, True, True, False, False, False] == [is_sweep(one) for one in (
            "scale:2", "shift:0.25up", "resolution:112", "clean", "gaussian_noise:3", "scaled:2")]

    def test_only_resolution_changes_the_inputs_size(self) -> None:
        wide = replace(CONVNEXT, size_px=(192, 224))
        assert [(192, 224), (192, 224), (112, 112), (192, 224)] == [
            output_size(wide, one) for one in ("scale:0.5", "shift:0.25up", "resolution:112", "clean")]
        assert (512, 512) == output_size(paper(CONVNEXT), "resolution:512")

    @pytest.mark.parametrize(("preprocess", "condition"), [
        (CONVNEXT, "scale:3"), (paper(CONVNEXT), "scale:0.7"), (CONVNEXT, "shift:0"), (paper(CONVNEXT), "shift:0.25up"),
        (CONVNEXT, "resolution:5"), (CONVNEXT, "scale"), (CONVNEXT, "clean"), (CONVNEXT, "fog:3")])
    def test_what_is_no_level_of_the_preset_is_refused(self, preprocess: Preprocess, condition: str) -> None:
        with pytest.raises(UsageError, match="unknown"):
            render(picture(0), preprocess, condition)

    def test_unknown_sweeps_and_presets_are_refused(self) -> None:
        with pytest.raises(UsageError, match="unknown preset 'papre'; did you mean 'paper'"):
            levels("scale", "papre")
        with pytest.raises(UsageError, match="unknown sweep 'rotation'"):
            levels("rotation", "native")  # type: ignore[arg-type]
        with pytest.raises(UsageError, match="unknown resolution level '5000'"):
            output_size(CONVNEXT, "resolution:5000")


class TestPaperGeometry:
    @pytest.mark.parametrize(("size", "shift", "base", "expected"), [
        ((500, 375), 100, 256, (23, 185, 328, 0, 13)), ((500, 375), 100, 224, (0, 162, 375, 0, 37)),
        ((500, 500), 100, 256, (131, 31, 437, 68, 0)), ((500, 500), 100, 224, (100, 0, 500, 100, 0)),
        ((375, 500), 100, 256, (185, 23, 328, 13, 0)), ((375, 500), 100, 224, (162, 0, 375, 37, 0)),
        ((500, 375), 0, 256, (23, 85, 328, 0, 0)), ((500, 375), 75, 256, (23, 160, 328, 0, 0))])
    def test_published_boxes(self, size: tuple[int, int], shift: int, base: int, expected: tuple[int, ...]) -> None:
        assert expected == tuple(shift_box(*size, shift, base))

    def test_truncation_is_that_of_the_published_order_of_operations(self) -> None:
        # 500 × 324: (500/324 * 224 - 224)/2 * 324/224 is 88 exactly, and a little less in floating point.
        assert 87 == shift_box(500, 324, 0, 224).left
        for width, height in np.random.default_rng(0).integers(20, 900, (300, 2)).tolist():
            for base in (256, 224):
                if width > height:
                    left = ((width / height * base) - 224) / 2 * height / base + 30
                    top = (base - 224) / 2 * height / base
                else:
                    left = (base - 224) / 2 * width / base
                    top = ((height / width * base) - 224) / 2 * width / base + 30
                assert (int(top), int(left), int(224 * min(width, height) / base)) == shift_box(width, height, 30, base)[:3]

    def test_the_displacement_in_model_pixels_depends_on_the_pictures_size(self) -> None:
        small, large = ramp(250, 188), ramp(500, 376)
        # 30 original pixels: 30 * 224/side model pixels, 41 and 20.
        for one, moved in ((small, 30 * 256 / 188), (large, 30 * 256 / 376)):
            before, after = (render(one, paper(CONVNEXT), f"shift:{t}")[100, 60:120, 0].astype(float) for t in (0, 30))
            step = (before[-1] - before[0]) / 59
            assert moved == pytest.approx(np.mean(after - before) / step, abs=0.6)


class TestPaperPixels:
    """Torchvision, composed as the paper's description says; both families, pictures of all shapes."""

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def _torchvision(cls) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pytest.importorskip("torchvision.transforms")

    @pytest.mark.parametrize("size", SIZES)
    @pytest.mark.parametrize(("native", "targets"), [(CONVNEXT, (256, 320, 384, 512, 768)), (CLIP, (224, 280, 336, 448, 672))])
    def test_scale(self, native: Preprocess, targets: tuple[int, ...], size: tuple[int, int]) -> None:
        from torchvision import transforms

        image = picture(3, *size)
        for level, target in zip(levels("scale", "paper"), targets, strict=True):
            # Bilinear is Resize's default; the paper uses it for CLIP too.
            expected = transforms.Compose([transforms.Resize(target), transforms.CenterCrop(224)])(image)
            np.testing.assert_array_equal(np.asarray(expected), render(image, paper(native), f"scale:{level}"))

    @pytest.mark.parametrize("size", SIZES)
    @pytest.mark.parametrize(("native", "base"), [(CONVNEXT, 256), (CLIP, 224)])
    def test_shift(self, native: Preprocess, base: int, size: tuple[int, int]) -> None:
        from torchvision import transforms
        from torchvision.transforms import functional

        image = picture(4, *size)
        for level in levels("shift", "paper"):
            box = shift_box(*size, int(level), base)
            crop = functional.crop(image, box.top, box.left, box.side, box.side)
            expected = np.asarray(transforms.Resize((224, 224))(crop)) if box.side else np.zeros((224, 224, 3), np.uint8)
            np.testing.assert_array_equal(expected, render(image, paper(native), f"shift:{level}"))

    @pytest.mark.parametrize("size", SIZES[:5])
    @pytest.mark.parametrize(("native", "targets", "mode"), [
        (CONVNEXT, (128, 256, 384, 585, 731), "bilinear"), (CLIP, (112, 224, 336, 512, 640), "bicubic")])
    def test_resolution(self, native: Preprocess, targets: tuple[int, ...], mode: str, size: tuple[int, int]) -> None:
        from torchvision import transforms

        image = picture(5, *size)
        for level, target in zip(levels("resolution", "paper"), targets, strict=True):
            side = int(level)
            expected = transforms.Compose([transforms.Resize(target, transforms.InterpolationMode(mode)),
                                           transforms.CenterCrop(side)])(image)
            found = render(image, paper(native), f"resolution:{level}")
            assert (side, side, 3) == found.shape == (*output_size(paper(native), f"resolution:{level}"), 3)
            np.testing.assert_array_equal(np.asarray(expected), found)

    def test_grey_and_transparent_pictures_are_made_rgb_first(self) -> None:
        from torchvision.transforms import functional

        for mode in ("L", "RGBA", "P"):
            image = picture(6, 300, 260).convert(mode)
            crop = functional.crop(image.convert("RGB"), *shift_box(300, 260, 75, 256)[:2], 227, 227)
            np.testing.assert_array_equal(np.asarray(functional.resize(crop, [224, 224])),
                                          render(image, paper(CONVNEXT), "shift:75"))

    def test_the_resolution_of_the_input_is_the_clean_picture_and_other_levels_are_not(self) -> None:
        image = picture(7, 400, 300)
        for native in (CONVNEXT, CLIP):
            clean = transform(image, paper(native))
            np.testing.assert_array_equal(clean, render(image, paper(native), "resolution:224"))
            for condition in ("scale:3", "shift:5", "shift:100"):
                assert (clean != render(image, paper(native), condition)).mean() > 0.3
        # The paper's clean CLIP picture is bicubic, its scale of 1 bilinear.
        assert (transform(image, paper(CLIP)) != render(image, paper(CLIP), "scale:1")).any()
        np.testing.assert_array_equal(transform(image, paper(CONVNEXT)), render(image, paper(CONVNEXT), "scale:1"))

    def test_real_images(self, imagenet_800: Path) -> None:
        from torchvision import transforms

        for path in sorted(imagenet_800.rglob("*.JPEG"))[::160]:
            with Image.open(path) as image:
                expected = transforms.Compose([transforms.Resize(512), transforms.CenterCrop(224)])(image.convert("RGB"))
                np.testing.assert_array_equal(np.asarray(expected), render(image, paper(CONVNEXT), "scale:2"))


class TestNativeScale:
    @pytest.mark.parametrize("preprocess", [CONVNEXT, CLIP, replace(CONVNEXT, interpolation="bilinear")])
    @pytest.mark.parametrize(("level", "short"), [("1", 224), ("0.875", 256), ("0.7", 320), ("0.5", 448), ("0.33", 678)])
    def test_the_same_share_is_visible_for_every_model_and_its_own_interpolation_is_kept(
            self, preprocess: Preprocess, level: str, short: int) -> None:
        image = picture(1, 300, 230)
        np.testing.assert_array_equal(transform(image, replace(preprocess, resize_px=short)),
                                      render(image, preprocess, f"scale:{level}"))

    def test_the_visible_share_of_a_ramp_is_the_level(self) -> None:
        for preprocess in (CONVNEXT, CLIP, SQUASH, replace(CLIP, resize="none", resize_px=None)):
            for level in levels("scale", "native"):
                seen = render(ramp(250, 250), preprocess, f"scale:{level}").astype(float)
                for channel in (0, 1):
                    share = (seen[..., channel].max() - seen[..., channel].min() + 1) / 250
                    assert float(level) == pytest.approx(share, abs=0.012)

    def test_a_squashed_picture_is_zoomed_on_both_axes(self) -> None:
        # 240 × 120 onto 64 × 96 (height, width): at one half, columns 60 to 180 and rows 30 to 90.
        person = replace(SQUASH, size_px=(64, 96), interpolation="bilinear")
        for preprocess in (person, replace(person, resize_px=128)):
            seen = render(ramp(240, 120), preprocess, "scale:0.5").astype(float)
            assert (64, 96, 3) == seen.shape
            assert (60, 179) == pytest.approx((seen[..., 0].min(), seen[..., 0].max()), abs=1)
            assert (30, 89) == pytest.approx((seen[..., 1].min(), seen[..., 1].max()), abs=1)
        np.testing.assert_array_equal(transform(ramp(240, 120), person), render(ramp(240, 120), person, "scale:1"))

    def test_the_border_is_cut_off_first(self) -> None:
        framed = Image.new("RGB", (102, 102), "white")
        framed.paste(picture(2, 100, 100), (1, 1))
        with_border = Preprocess(size_px=(100, 100), resize="none", border_px=1, **HALF)
        for condition in ("scale:1", "scale:0.5", "shift:0.25left", "resolution:112"):
            np.testing.assert_array_equal(render(picture(2, 100, 100), replace(with_border, border_px=0), condition),
                                          render(framed, with_border, condition))


class TestNativeShift:
    CROP = Preprocess(size_px=(64, 64), resize="none", **HALF)

    @pytest.mark.parametrize(("way", "down", "right"), [("left", 0, -1), ("right", 0, 1), ("up", -1, 0), ("down", 1, 0)])
    @pytest.mark.parametrize(("fraction", "pixels"), [("0.125", 28), ("0.25", 56)])
    def test_content_moves_by_a_fraction_of_the_input(self, way: str, down: int, right: int, fraction: str, pixels: int) -> None:
        for preprocess in (CONVNEXT, CLIP, SQUASH):
            image = picture(8, 320, 250)
            clean, found = transform(image, preprocess), render(image, preprocess, f"shift:{fraction}{way}")
            assert clean.shape == found.shape
            dy, dx = down * pixels, right * pixels
            np.testing.assert_array_equal(
                clean[max(0, -dy):224 - max(0, dy), max(0, -dx):224 - max(0, dx)],
                found[max(0, dy):224 - max(0, -dy), max(0, dx):224 - max(0, -dx)])

    def test_what_comes_into_view_is_the_picture_beyond_the_crop_where_it_goes_on(self) -> None:
        # 128 wide, 64 high: 32 columns beyond the crop on either side, none above or below.
        seen = render(ramp(128, 64), self.CROP, "shift:0.25left")
        np.testing.assert_array_equal(np.arange(48, 112), seen[10, :, 0])
        np.testing.assert_array_equal(np.arange(64), seen[:, 10, 1])
        np.testing.assert_array_equal(np.arange(16, 80), render(ramp(128, 64), self.CROP, "shift:0.25right")[10, :, 0])

    def test_beyond_the_picture_its_reflection_comes_into_view(self) -> None:
        down = render(ramp(128, 64), self.CROP, "shift:0.25down")[:, 10, 1]
        np.testing.assert_array_equal([*range(16, 0, -1), *range(48)], down)
        up = render(ramp(128, 64), self.CROP, "shift:0.25up")[:, 10, 1]
        np.testing.assert_array_equal([*range(16, 64), *range(62, 46, -1)], up)
        # Ten columns are there on the left, six are reflected.
        partly = render(ramp(84, 64), self.CROP, "shift:0.25right")[10, :, 0]
        np.testing.assert_array_equal([*range(6, 0, -1), *range(58)], partly)

    @pytest.mark.parametrize("preprocess", [CONVNEXT, CLIP, SQUASH, replace(SQUASH, resize_px=256), replace(CLIP, resize_px=200)])
    @pytest.mark.parametrize("size", [(500, 375), (130, 600), (9, 7), (1, 1)])
    def test_nothing_is_black(self, preprocess: Preprocess, size: tuple[int, int]) -> None:
        white = Image.new("RGB", size, "white")
        for level in levels("shift", "native"):
            assert 255 == render(white, preprocess, f"shift:{level}").min()

    def test_the_picture_is_resized_as_in_the_clean_pass_whatever_its_shape(self) -> None:
        generator = np.random.default_rng(1)
        small = replace(CONVNEXT, size_px=(48, 48), resize_px=55)
        for width, height in generator.integers(20, 200, (25, 2)).tolist():
            image = picture(9, width, height)
            np.testing.assert_array_equal(transform(image, small)[:, :42], render(image, small, "shift:0.125right")[:, 6:])

    def test_fractions_of_odd_inputs_are_rounded(self) -> None:
        odd = replace(self.CROP, size_px=(60, 50))
        image = ramp(100, 100)
        clean = transform(image, odd)
        np.testing.assert_array_equal(clean[:-8], render(image, odd, "shift:0.125down")[8:])
        np.testing.assert_array_equal(clean[:, :-6], render(image, odd, "shift:0.125right")[:, 6:])


class TestNativeResolution:
    @pytest.mark.parametrize(("preprocess", "targets"), [
        (CONVNEXT, (128, 182, 256, 329, 384)), (CLIP, (112, 160, 224, 288, 336)),
        (replace(CONVNEXT, size_px=(288, 288), resize_px=288), (112, 160, 224, 288, 336))])
    def test_the_models_own_crop_ratio_is_kept(self, preprocess: Preprocess, targets: tuple[int, ...]) -> None:
        image = picture(10, 420, 333)
        for level, target in zip(levels("resolution", "native"), targets, strict=True):
            side = int(level)
            np.testing.assert_array_equal(transform(image, replace(preprocess, size_px=(side, side), resize_px=target)),
                                          render(image, preprocess, f"resolution:{level}"))

    @pytest.mark.parametrize("preprocess", [
        CONVNEXT, CLIP, SQUASH, replace(SQUASH, resize_px=250), replace(CLIP, resize="none", resize_px=None)])
    def test_the_models_own_resolution_is_the_clean_picture(self, preprocess: Preprocess) -> None:
        image = picture(11, 380, 290)
        np.testing.assert_array_equal(transform(image, preprocess), render(image, preprocess, "resolution:224"))

    def test_the_same_part_of_the_picture_is_seen_at_every_resolution(self) -> None:
        for preprocess in (CONVNEXT, SQUASH, replace(SQUASH, resize_px=250), replace(CLIP, resize="none", resize_px=None)):
            clean = transform(ramp(256, 240), preprocess).astype(float)
            for level in levels("resolution", "native"):
                seen = render(ramp(256, 240), preprocess, f"resolution:{level}").astype(float)
                assert (int(level), int(level), 3) == seen.shape
                for channel in (0, 1):
                    assert clean[..., channel].min() == pytest.approx(seen[..., channel].min(), abs=2)
                    assert clean[..., channel].max() == pytest.approx(seen[..., channel].max(), abs=2)


class TestPicturesThatAreTooSmall:
    def test_where_nothing_is_resized_they_are_refused_as_in_the_clean_pass(self) -> None:
        fixed = Preprocess(size_px=(64, 64), resize="none", border_px=1, **HALF)
        for condition in ("scale:0.5", "shift:0.25up", "resolution:112"):
            with pytest.raises(ValueError, match="63×70 pixels, smaller than the model's 64×64"):
                render(picture(0, 65, 72), fixed, condition)
        with pytest.raises(ValueError, match="63×70 pixels, smaller than the model's 64×64"):
            transform(picture(0, 65, 72), fixed)
