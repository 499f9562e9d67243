"""Geometric sweeps (scale, shift, resolution): pictures as the model sees them, and the paper's preprocessing.

A sweep's levels depend on the preset. ``paper`` repeats the published sweeps to the pixel, with their peculiarities:
bilinear whatever the model's own interpolation, shifts counted in pixels of the original, along its longer axis and in
one direction only, black where the picture ends. ``native`` asks the same questions evenly of every model: zooms by the
share that stays visible, shifts by a fraction of the input in all four directions without inventing black, and the
model's own interpolation throughout.
"""

from __future__ import annotations

import re
from dataclasses import replace
from fractions import Fraction
from typing import Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt
from PIL import Image

from edgebench.errors import InvalidInput, unknown
from edgebench.record import Preprocess

Pixels = npt.NDArray[np.uint8]
Family = Literal["scale", "shift", "resolution"]
FAMILIES: tuple[Family, ...] = get_args(Family)

_LEVELS: dict[str, dict[Family, tuple[str, ...]]] = {
    "native": {
        "scale": ("1", "0.875", "0.7", "0.5", "0.33"),
        "shift": tuple(f"{fraction}{way}" for fraction in ("0.125", "0.25") for way in ("left", "right", "up", "down")),
        "resolution": ("112", "160", "224", "288", "336")},
    "paper": {
        "scale": ("1", "1.25", "1.5", "2", "3"),
        "shift": ("0", "5", "30", "75", "100"),
        "resolution": ("112", "224", "336", "512", "640")}}
# Where the content goes, in (down, right).
_WAYS = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}

# (mean, std) per RGB channel of the families of weights in use.
_CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
_SUPERVISED = (((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)))
# Wide enough for 127/255 and 128/255 instead of 0.5 and for three decimals, narrow enough to tell the families apart.
_TOLERANCE = 0.002


class ShiftBox(NamedTuple):
    """A square of the original picture, in its pixels."""

    top: int
    left: int
    side: int
    pad_bottom: int
    """Rows of the square below the picture: black."""
    pad_right: int
    """Columns of the square beyond the picture's right edge: black."""


def paper(preprocess: Preprocess) -> Preprocess:
    """Return the preprocessing that the paper's code uses for the same weights; mean and std stay the model's own.

    CLIP models (known by OpenAI's mean and std): the shorter side to the input's size, bicubic. Supervised ones
    (ImageNet's mean and std, or about 0.5 everywhere): the shorter side to floor(size * 256/224), bilinear. Then the
    centre crop. The published code knows inputs of 224 only; others keep the same proportion.

    Raises:
        InvalidInput: The model's preprocessing is of another kind, so that the paper says nothing about it.

    Source:
        Vishniakov, Shen & Liu 2023 (arXiv:2311.09215), released code.
    """
    size, wide = preprocess.size_px
    if preprocess.resize != "shortest" or preprocess.border_px or size != wide:
        raise _not_the_papers(
            f"resizes the shorter side and crops a square, got resize {preprocess.resize!r} to {size}×{wide}"
            + (f" after cutting {preprocess.border_px} pixels off each side" if preprocess.border_px else ""))
    if _near(preprocess, _CLIP):
        return replace(preprocess, resize_px=size, interpolation="bicubic", preset="paper")
    if any(_near(preprocess, one) for one in _SUPERVISED):
        return replace(preprocess, resize_px=size * 256 // 224, interpolation="bilinear", preset="paper")
    raise _not_the_papers(f"is of supervised or CLIP models, got mean {preprocess.mean} and std {preprocess.std}")


def levels(family: Family, preset: str) -> tuple[str, ...]:
    """Return the levels of a sweep, as they stand behind the colon of a condition.

    A native shift of 0 and the model's own resolution are the clean picture itself; the former is no level therefore.

    Raises:
        UsageError: There is no such sweep or preset.

    Source:
        ``paper``: Vishniakov, Shen & Liu 2023 (arXiv:2311.09215), section on transformation invariance.
    """
    if preset not in _LEVELS:
        raise unknown("preset", preset, _LEVELS)
    if family not in FAMILIES:
        raise unknown("sweep", family, FAMILIES)
    return _LEVELS[preset][family]


def parameter(level: str) -> float:
    """Return the number in a level's name: zoom or visible share, shift in pixels or fractions, input size.

    Raises:
        ValueError: It is no level's name.
    """
    return float(_split(level)[0])


def is_sweep(condition: str) -> bool:
    """Return whether a pass under this condition is one of these sweeps."""
    return condition.partition(":")[0] in FAMILIES


def output_size(preprocess: Preprocess, condition: str) -> tuple[int, int]:
    """Return (height, width) of what the model gets under a condition: its own size except under ``resolution:…``.

    Raises:
        UsageError: There is no such level.
    """
    if condition.partition(":")[0] == "resolution":
        size = int(_level(preprocess, condition))
        return size, size
    return preprocess.size_px


def render(image: Image.Image, preprocess: Preprocess, condition: str) -> Pixels:
    """Return the picture as the model sees it before normalisation, (height, width, 3) uint8, at one level of a sweep.

    The preset in `preprocess` decides what a level means.

    Native, on the picture without `border_px`:
        ``scale:f``: a share f of the shorter side is visible: that side becomes floor(size/f) pixels, the centre is
        cropped. Where the model squashes, both sides do, and a share f of both is visible.
        ``shift:fleft`` and so on: the content moves there by round(f * size) pixels of the model's input. What comes
        into view is the picture beyond the usual crop where there is any, else its reflection at the edge.
        ``resolution:r``: an input of r × r, the usual crop of the picture in it.
    Paper:
        ``scale:s``: the shorter side becomes floor(s * S) pixels, S being its usual length; bilinear, centre crop.
        ``shift:t``: `shift_box`, resized to the input's size; bilinear.
        ``resolution:r``: an input of r × r, the shorter side in proportion, interpolated as in the clean pass.

    Raises:
        UsageError: There is no such sweep or level.
        ValueError: The image is smaller than the model's input, and the model's preprocessing does not resize; or its
            pixels are of no agreed range.
    """
    # The cache renders every condition, and so imports this module.
    from edgebench.imagecache import to_rgb

    picture = to_rgb(image, preprocess.gray_bits)
    if preprocess.border_px:
        cut = preprocess.border_px
        picture = picture.crop((cut, cut, picture.width - cut, picture.height - cut))
        preprocess = replace(preprocess, border_px=0)
    height, width = preprocess.size_px
    if preprocess.resize == "none" and (picture.height < height or picture.width < width):
        raise ValueError(f"{picture.width}×{picture.height} pixels, smaller than the model's {width}×{height}")
    family, level = condition.partition(":")[0], _level(preprocess, condition)
    if family == "resolution":
        return _resolution(picture, preprocess, int(level))
    if preprocess.preset == "paper":
        return _paper_scale(picture, preprocess, level) if family == "scale" else \
            _paper_shift(picture, preprocess, int(level))
    return _scale(picture, preprocess, level) if family == "scale" else _shift(picture, preprocess, level)


def shift_box(width: int, height: int, shift_px: int, base_px: int, size_px: int = 224) -> ShiftBox:
    """Return the square that the paper's shift cuts out of a picture of `width` × `height`, before any resizing.

    The square is what Resize(base_px) and CenterCrop(size_px) would show, moved by `shift_px` pixels of the original
    along its longer axis: to the right, or downwards where the picture is not wider than high. All coordinates are
    truncated.

    Args:
        width: Of the picture, in pixels.
        height: Of the picture, in pixels.
        shift_px: In pixels of the original, whatever its size.
        base_px: Length that the shorter side would get: 256 for supervised models, 224 for CLIP.
        size_px: Of the model's input.

    Source:
        Vishniakov, Shen & Liu 2023 (arXiv:2311.09215), released code.
    """
    short, long = min(width, height), max(width, height)
    # Truncating after floating-point arithmetic depends on the order of operations, in one picture of six under CLIP's
    # S = 224: this is the published one.
    along = int((long / short * base_px - size_px) / 2 * short / base_px + shift_px)
    across = int((base_px - size_px) / 2 * short / base_px)
    side = int(size_px * short / base_px)
    top, left = (across, along) if width > height else (along, across)
    return ShiftBox(top, left, side, max(0, top + side - height), max(0, left + side - width))


def _near(preprocess: Preprocess, family: tuple[tuple[float, ...], tuple[float, ...]]) -> bool:
    return bool(np.allclose((preprocess.mean, preprocess.std), family, rtol=0.0, atol=_TOLERANCE))


def _not_the_papers(what: str) -> InvalidInput:
    return InvalidInput(f"the paper's preprocessing {what}", "measure this model with the preset native")


def _split(level: str) -> tuple[str, str]:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([a-z]*)", level)
    if match is None:
        raise ValueError(f"expected a level such as 1.5 or 0.25left, got {level!r}")
    return match[1], match[2]


def _level(preprocess: Preprocess, condition: str) -> str:
    family, _, level = condition.partition(":")
    for known in FAMILIES:
        if family == known:
            # Any other preset is a user's own name for what the weights were tuned for.
            choices = levels(known, "paper" if preprocess.preset == "paper" else "native")
            # Graphs may be exported for any size; the sweep takes some of them.
            any_size = known == "resolution" and level.isdecimal() and 8 <= int(level) <= 4096
            if level not in choices and not any_size:
                raise unknown(f"{known} level", level, choices)
            return level
    raise unknown("sweep", family, FAMILIES)


def _transform(picture: Image.Image, preprocess: Preprocess) -> Pixels:
    from edgebench.imagecache import transform

    return transform(picture, preprocess)


def _paper_scale(picture: Image.Image, preprocess: Preprocess, level: str) -> Pixels:
    short = int(Fraction(level) * _base(preprocess))
    return _transform(picture, replace(preprocess, resize_px=short, interpolation="bilinear"))


def _paper_shift(picture: Image.Image, preprocess: Preprocess, shift_px: int) -> Pixels:
    size = preprocess.size_px[0]
    box = shift_box(picture.width, picture.height, shift_px, _base(preprocess), size)
    square = picture.crop((box.left, box.top, box.left + box.side, box.top + box.side))
    return np.asarray(square.resize((size, size), Image.Resampling.BILINEAR))


def _base(preprocess: Preprocess) -> int:
    """Return the length of the shorter side after the paper's usual resizing."""
    base = paper(preprocess).resize_px
    assert base is not None
    return base


def _resolution(picture: Image.Image, preprocess: Preprocess, size: int) -> Pixels:
    changed = replace(preprocess, size_px=(size, size))
    if preprocess.preset == "paper":
        # Not in proportion to the rounded base: 256/224 is what the published code multiplies by.
        return _transform(picture, paper(changed))
    own = min(preprocess.size_px)
    if preprocess.resize == "none":
        return _transform(picture, replace(changed, resize="shortest", resize_px=size * min(picture.size) // own))
    if preprocess.resize_px is None:
        return _transform(picture, changed)
    return _transform(picture, replace(changed, resize_px=size * preprocess.resize_px // own))


def _scale(picture: Image.Image, preprocess: Preprocess, level: str) -> Pixels:
    height, width = preprocess.size_px
    visible = Fraction(level)
    if preprocess.resize == "squash":
        zoomed = (int(height / visible), int(width / visible))
        return _window(_transform(picture, replace(preprocess, size_px=zoomed, resize_px=None)), (height, width))
    short = int(max(height, width) / visible)
    return _transform(picture, replace(preprocess, resize="shortest", resize_px=short))


def _shift(picture: Image.Image, preprocess: Preprocess, level: str) -> Pixels:
    fraction, way = _split(level)
    height, width = preprocess.size_px
    down, right = _WAYS[way]
    whole = _transform(picture, replace(preprocess, size_px=_resized(picture, preprocess)))
    # Content that goes down shows what was above: the window goes up.
    return _window(whole, (height, width), (-down * round(Fraction(fraction) * height),
                                            -right * round(Fraction(fraction) * width)))


def _resized(picture: Image.Image, preprocess: Preprocess) -> tuple[int, int]:
    """Return (height, width) of the picture after resizing and before cropping."""
    target = preprocess.resize_px
    if preprocess.resize == "none":
        return picture.height, picture.width
    if preprocess.resize == "squash" or target is None:
        return preprocess.size_px if target is None else (target, target)
    # torchvision's rule: the long side is truncated.
    short, long = sorted(picture.size)
    scaled = int(target * long / short)
    return (scaled, target) if picture.width <= picture.height else (target, scaled)


def _window(pixels: Pixels, size: tuple[int, int], offset: tuple[int, int] = (0, 0)) -> Pixels:
    """Return the centre of that (height, width), moved by `offset` (down, right) and reflected beyond the edges."""
    rows, columns = (_positions(pixels.shape[axis], size[axis], offset[axis]) for axis in (0, 1))
    return pixels[rows[:, None], columns]


def _positions(have: int, want: int, by: int) -> npt.NDArray[np.intp]:
    start = round((have - want) / 2) + by
    beyond = max(0, -start, start + want - have)
    return np.pad(np.arange(have, dtype=np.intp), beyond, mode="reflect")[start + beyond:start + beyond + want]
