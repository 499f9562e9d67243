"""Seeded image corruptions with ImageNet-C's parameters, made on the spot.

The 15 corruptions of ImageNet-C and its 4 held-out ones, five severities each, for uint8 RGB images. Results on them
are not ImageNet-C: error rates must not be divided by AlexNet's, nor set beside numbers from the published files.
What differs from the generator behind these files:

- Randomness comes from (image id, corruption, severity) alone instead of one global stream, so that order, threads
  and processes do not matter.
- ``frost`` blends in a drawn texture, not a crop of one of five photographs; its four styles have about the colours,
  contrasts and frequencies of the photographs.
- ``motion_blur`` and the falling of ``snow`` follow ImageMagick's method (a one-sided Gaussian along whole-pixel steps)
  without its rounding; ``elastic_transform`` shrinks its random affine map on images below 224 px, which it would fold.
- Images other than 224×224 are taken as they are: lengths stay in pixels, and what the generator does to a square
  side is done to each side.

Where the generator's code and its intention differ, the code counts, because it made the files: ``glass_blur`` copies
pixels where it meant to swap them, and ``saturate`` gives gray a red tint at severities 4 and 5.

Source:
    Hendrycks & Dietterich 2019 (arXiv:1903.12261); parameters from ``create_c/make_imagenet_c.py`` of
    hendrycks/robustness.
"""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Callable, Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from edgebench.errors import require

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

VERSION = 1
"""Rises when the same call returns other pixels; belongs to the identity of whatever is stored."""
GROUPS: Mapping[str, tuple[str, ...]] = MappingProxyType({
    "noise": ("gaussian_noise", "shot_noise", "impulse_noise"),
    "blur": ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    "weather": ("snow", "frost", "fog", "brightness"),
    "digital": ("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
})
"""The benchmark's corruptions by kind; the held-out ones belong to none."""
CORRUPTIONS: tuple[str, ...] = tuple(name for names in GROUPS.values() for name in names)
"""The 15 of the benchmark, in its order."""
HELD_OUT: tuple[str, ...] = ("speckle_noise", "gaussian_blur", "spatter", "saturate")
"""Meant for tuning; never part of the benchmark's means."""
SEVERITIES = (1, 2, 3, 4, 5)
MIN_SIDE = 32
JPEG_QUALITY = 85
"""The published files are JPEG of this quality, so every corruption carries that too."""


def refuse_absent_packages() -> None:
    """Raise MissingDependency, before any work, where `corrupt` would."""
    require("scipy", "corruptions")


def corrupt(pixels: Pixels, name: str, severity: int, image_id: str) -> Pixels:
    """Return the corrupted image (H, W, 3) uint8, after a JPEG round trip of quality 85.

    The same arguments give the same pixels in every thread and process; another id, corruption or severity gives
    independent randomness. The random streams are NumPy's: a NumPy release that changes them changes the pixels.

    Args:
        pixels: RGB image (H, W, 3) uint8, each side at least 32; the parameters are meant for 224×224, cut from the
            centre after a resize of the short side to 256.
        name: One of `CORRUPTIONS` or `HELD_OUT`.
        severity: 1 to 5.
        image_id: What names the image in its data set.

    Raises:
        ValueError: Unknown corruption or severity, or pixels of another form.
        MissingDependency: The corruption needs scipy, which is not installed.
    """
    _refuse_unknown(name, severity)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or min(pixels.shape[:2]) < MIN_SIDE:
        raise ValueError(f"expected uint8 pixels (H, W, 3) of at least {MIN_SIDE} px a side, "
                         f"got {pixels.dtype} {pixels.shape}")
    effect, parameters = _EFFECTS[name]
    return _jpeg(_whole(effect(pixels, _generator(name, severity, image_id), *parameters[severity - 1])), JPEG_QUALITY)


def condition(name: str, severity: int) -> str:
    """Return ``<name>:<severity>``, as passes call the condition.

    Raises:
        ValueError: Unknown corruption or severity.
    """
    _refuse_unknown(name, severity)
    return f"{name}:{severity}"


def parse(condition: str) -> tuple[str, int] | None:
    """Return (corruption, severity) of a condition, or None where it is no corruption's."""
    return _CONDITIONS.get(condition)


def _refuse_unknown(name: str, severity: int) -> None:
    if name not in _EFFECTS:
        raise ValueError(f"unknown corruption {name!r}; known: {', '.join(_EFFECTS)}")
    if severity not in SEVERITIES:
        raise ValueError(f"expected a severity from 1 to 5, got {severity!r}")


def _generator(name: str, severity: int, image_id: str) -> np.random.Generator:
    # File names that are no valid UTF-8 reach us with surrogates.
    digest = hashlib.sha256(f"{name}:{severity}:{image_id}".encode(errors="surrogateescape")).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest, "little")))


def _whole(values: npt.NDArray[Any]) -> Pixels:
    """Return values on 0 to 255 as uint8, truncated as the generator does."""
    # A little is added, so that whole numbers survive float32.
    result: Pixels = (np.clip(values, 0, 255) + np.float32(1 / 256)).astype(np.uint8)
    return result


def _jpeg(pixels: Pixels, quality: int) -> Pixels:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    with Image.open(file) as image:
        return np.array(image)


def _gaussian_noise(pixels: Pixels, generator: np.random.Generator, sigma: float) -> Floats:
    noise = generator.standard_normal(pixels.shape, np.float32)
    return np.asarray(pixels + noise * np.float32(255 * sigma))


def _shot_noise(pixels: Pixels, generator: np.random.Generator, photons: float) -> Floats:
    return np.asarray(generator.poisson(pixels * (photons / 255)).astype(np.float32) * np.float32(255 / photons))


def _impulse_noise(pixels: Pixels, generator: np.random.Generator, amount: float) -> Pixels:
    chance = generator.random(pixels.shape, np.float32)
    return np.where(chance < amount / 2, np.uint8(0), np.where(chance < amount, np.uint8(255), pixels))


def _speckle_noise(pixels: Pixels, generator: np.random.Generator, sigma: float) -> Floats:
    factors = 1 + generator.standard_normal(pixels.shape, np.float32) * np.float32(sigma)
    return np.asarray(pixels * factors)


def _gaussian_blur(pixels: Pixels, _: np.random.Generator, sigma: float) -> Floats:
    return _blurred(pixels, sigma)


def _blurred(values: npt.NDArray[Any], sigma: float) -> Floats:
    """Return the values (H, W) or (H, W, 3) after a Gaussian cut at four sigma, edges repeated."""
    ndimage = require("scipy.ndimage", "corruptions")
    result: Floats = ndimage.gaussian_filter(values.astype(np.float32), sigma, mode="nearest", axes=(0, 1))
    return result


def _glass_blur(pixels: Pixels, generator: np.random.Generator, sigma: float, reach: int, rounds: int) -> Floats:
    """Return the image with pixels replaced by ones nearby, blurred before and after.

    The generator walks the image from its last pixel to its first and overwrites each by one up to `reach` away (its
    swap is none: both sides are views of one array). A pixel walked over earlier passes on what it got itself, so
    where each value comes from is a chain of references. They are followed here for all pixels at once, with the
    same result as the walk.
    """
    blurred = _whole(_blurred(pixels, sigma))
    height, width = blurred.shape[:2]
    rows, columns = np.mgrid[reach + 1:height - reach + 1, reach + 1:width - reach + 1]
    here = (rows * width + columns).ravel()
    for _ in range(rounds):
        down, right = generator.integers(-reach, reach, (2, here.size))
        origin = np.arange(height * width)
        origin[here] += down * width + right
        # Pixels before this one in reading order are not yet overwritten; outside the walk, none ever is.
        walked = np.zeros(height * width, np.bool_)
        walked[here] = True
        waiting = here[(origin[here] > here) & walked[origin[here]]]
        resolved = np.ones(height * width, np.bool_)
        resolved[waiting] = False
        while waiting.size:
            target = origin[waiting]
            # Doubling: what is skipped to may itself have skipped ahead.
            origin[waiting], resolved[waiting] = origin[target], resolved[target]
            waiting = waiting[~resolved[waiting]]
        blurred = blurred.reshape(-1, 3)[origin].reshape(blurred.shape)
    return _blurred(blurred, sigma)


def _defocus_blur(pixels: Pixels, _: np.random.Generator, radius: int, alias: float) -> Floats:
    fft = require("scipy.fft", "corruptions")
    kernel = _disk(radius, alias)
    reach = len(kernel) // 2
    padded = np.pad(pixels.astype(np.float32), ((reach, reach), (reach, reach), (0, 0)), mode="reflect")
    size = tuple(fft.next_fast_len(length, real=True) for length in padded.shape[:2])
    spectrum = fft.rfft2(padded, size, axes=(0, 1)) * fft.rfft2(kernel, size)[:, :, None]
    blurred: Floats = fft.irfft2(spectrum, size, axes=(0, 1))
    # The kernel's centre lies `reach` from its corner, the image `reach` from that of the padded one.
    return blurred[2 * reach:2 * reach + pixels.shape[0], 2 * reach:2 * reach + pixels.shape[1]]


@lru_cache
def _disk(radius: int, alias: float) -> Floats:
    """Return a disk of sum 1 on a grid of at least 17×17, its rim softened by a Gaussian of 3 or 5 taps."""
    ndimage = require("scipy.ndimage", "corruptions")
    reach = max(radius, 8)
    squares = np.arange(-reach, reach + 1) ** 2
    disk = (squares[:, None] + squares <= radius ** 2).astype(np.float32)
    steps = np.arange(-1, 2) if radius <= 8 else np.arange(-2, 3)
    taps = np.exp(-steps ** 2 / (2 * alias ** 2))
    for axis in (0, 1):
        disk = ndimage.correlate1d(disk, taps / taps.sum(), axis, mode="mirror")
    # OpenCV softens after dividing by the sum.
    result: Floats = disk / np.float32(np.count_nonzero(squares[:, None] + squares <= radius ** 2))
    return result


def _motion_blur(pixels: Pixels, generator: np.random.Generator, radius: int, sigma: float) -> Floats:
    return _moved(pixels.astype(np.float32), radius, sigma, generator.uniform(-45, 45))


def _moved(values: Floats, radius: int, sigma: float, angle_deg: float) -> Floats:
    """Return the values (H, W) or (H, W, 3) smeared along a direction, edges repeated.

    ImageMagick's motion blur: 2 radius + 1 whole-pixel steps with the weights of half a Gaussian.
    """
    steps = np.arange(2 * radius + 1)
    weights = np.exp(-steps ** 2 / (2 * sigma ** 2))
    weights = (weights / weights.sum()).astype(np.float32)
    down = np.ceil(steps * math.sin(math.radians(angle_deg)) - 0.5).astype(int)
    right = np.ceil(steps * math.cos(math.radians(angle_deg)) - 0.5).astype(int)
    above, left = -min(down.min(), 0), -min(right.min(), 0)
    margins = [(above, max(down.max(), 0)), (left, max(right.max(), 0)), (0, 0)][:values.ndim]
    padded = np.pad(values, margins, mode="edge")
    height, width = values.shape[:2]
    result = np.zeros_like(values)
    for weight, y, x in zip(weights, down + above, right + left, strict=True):
        result += weight * padded[y:y + height, x:x + width]
    return result


def _zoom_blur(pixels: Pixels, _: np.random.Generator, end: float, step: float) -> Floats:
    image = pixels.astype(np.float32)
    total = image.copy()
    factors = np.arange(1, end, step)
    for factor in factors:
        total += _zoomed(image, float(factor))
    return np.asarray(total / np.float32(len(factors) + 1))


def _zoomed(image: Floats, factor: float) -> Floats:
    """Return the centre of the image (H, W, C) enlarged to its size, linearly between the centre's outermost pixels."""
    for axis in (0, 1):
        length = image.shape[axis]
        size = math.ceil(length / factor)
        enlarged = round(size * factor)
        # What is too much after rounding is trimmed on both sides.
        steps = (enlarged - length) // 2 + np.arange(length)
        position = (length - size) // 2 + steps * ((size - 1) / (enlarged - 1))
        low = np.floor(position).astype(np.intp)
        share = (position - low).astype(np.float32).reshape((-1, 1, 1) if axis == 0 else (-1, 1))
        lower = image.take(low, axis)
        image = lower + (image.take(low + 1, axis, mode="clip") - lower) * share
    return image


def _snow(pixels: Pixels, generator: np.random.Generator, mean: float, sd: float, zoom: float, threshold: float,
          radius: int, sigma: float, blend: float) -> Floats:
    image = pixels.astype(np.float32)
    flakes = _zoomed(generator.standard_normal((*pixels.shape[:2], 1), np.float32) * np.float32(sd) + np.float32(mean),
                     zoom)[:, :, 0]
    flakes[flakes < threshold] = 0
    falling = _moved(_whole(flakes * 255).astype(np.float32), radius, sigma, generator.uniform(-135, -45)).round()
    gray = (image * np.array([0.299, 0.587, 0.114], np.float32)).sum(axis=2, keepdims=True)
    whitened = np.maximum(image, gray * np.float32(1.5) + np.float32(127.5))
    layer = falling + falling[::-1, ::-1]
    return np.asarray(np.float32(blend) * image + np.float32(1 - blend) * whitened + layer[:, :, None])


def _fog(pixels: Pixels, generator: np.random.Generator, strength: float, decay: float) -> Floats:
    brightest = float(pixels.max())
    haze = _plasma((pixels.shape[0], pixels.shape[1]), decay, generator) * np.float32(255 * strength)
    return np.asarray((pixels + haze[:, :, None]) * np.float32(brightest / (brightest + 255 * strength)))


def _plasma(shape: tuple[int, int], decay: float, generator: np.random.Generator) -> Floats:
    """Return clouds (H, W) between 0 and 1, cut from a square of a power of two that spans exactly that.

    Diamond-square on a torus; what is added at random falls by the square of `decay` from each level to the next.
    """
    side = 1 << (max(shape) - 1).bit_length()
    clouds = np.zeros((side, side), np.float32)
    step, spread = side, 1.0
    while step >= 2:
        half = step // 2
        corners = clouds[::step, ::step]
        pairs = corners + np.roll(corners, -1, 0)
        centres = _jittered(pairs + np.roll(pairs, -1, 1), spread, generator)
        rows = corners + np.roll(corners, -1, 1) + centres + np.roll(centres, 1, 0)
        columns = pairs + centres + np.roll(centres, 1, 1)
        clouds[half::step, half::step] = centres
        clouds[::step, half::step] = _jittered(rows, spread, generator)
        clouds[half::step, ::step] = _jittered(columns, spread, generator)
        step, spread = half, spread / decay ** 2
    clouds -= clouds.min()
    return np.asarray(clouds[:shape[0], :shape[1]] / clouds.max())


def _jittered(sum_of_four: Floats, spread: float, generator: np.random.Generator) -> Floats:
    return np.asarray(sum_of_four / 4 + (generator.random(sum_of_four.shape, np.float32) * 2 - 1) * np.float32(spread))


# Colour, standard deviation, share of clouds in the variance, distance of crystals and half length of their needles in
# px, skew. Colours and deviations are those of 224×224 crops of the generator's photographs frost1 to frost5, of which
# the second and third are the same; the rest was fitted to the crops' looks and power spectra, and the shares of clouds
# to how often EfficientNet-Lite0 is right under a photograph.
_FROSTS = (
    ((78, 149, 166), 16, 0.65, 30, 5, 0.0),
    ((201, 205, 214), 20, 0.5, 18, 8, -0.3),
    ((201, 205, 214), 20, 0.5, 18, 8, -0.3),
    ((138, 153, 165), 26, 0.3, 12, 3, 0.4),
    ((112, 123, 135), 36, 0.35, 18, 8, 0.5),
)


def _frost(pixels: Pixels, generator: np.random.Generator, image_share: float, frost_share: float) -> Floats:
    color, contrast, cloudy, distance, needle, skew = _FROSTS[generator.integers(len(_FROSTS))]
    shape = (pixels.shape[0], pixels.shape[1])
    clouds = _standardized(_plasma(shape, 1.2, generator))
    crystals = _standardized(_crystals(shape, distance, needle, generator))
    frost = np.float32(math.sqrt(cloudy)) * clouds + np.float32(math.sqrt(1 - cloudy)) * crystals
    frost += (frost ** 2 - 1) * np.float32(skew / 2)
    texture = _whole(np.array(color, np.float32) + np.float32(contrast) * frost[:, :, None])
    return np.asarray(pixels * np.float32(image_share) + texture * np.float32(frost_share))


def _standardized(values: Floats) -> Floats:
    return np.asarray((values - values.mean()) / values.std())


def _crystals(shape: tuple[int, int], distance: int, needle: int, generator: np.random.Generator) -> Floats:
    """Return noise (H, W) in patches, each drawn out to needles in one direction and lighter or darker as a whole."""
    ndimage = require("scipy.ndimage", "corruptions")
    height, width = shape
    seeds = generator.permutation(height * width)[:math.ceil(height * width / distance ** 2)]
    owner = np.full(height * width, -1)
    owner[seeds] = np.arange(len(seeds))
    nearest = ndimage.distance_transform_edt(owner.reshape(shape) < 0, return_distances=False, return_indices=True)
    patch = owner[nearest[0] * width + nearest[1]]

    grain = generator.standard_normal((height + 2 * needle, width + 2 * needle), np.float32)
    grain = _blurred(grain, 0.6).ravel()
    stride = width + 2 * needle
    here = (np.arange(height)[:, None] + needle) * stride + np.arange(width) + needle
    angle = generator.uniform(0, math.pi, len(seeds))
    drawn = np.zeros(shape, np.float32)
    for step in range(-needle, needle + 1):
        offset = np.rint(step * np.sin(angle)) * stride + np.rint(step * np.cos(angle))
        drawn += grain[here + offset.astype(np.intp)[patch]]
    shade = generator.standard_normal(len(seeds), np.float32)
    return np.asarray(_standardized(drawn) + np.float32(0.5) * shade[patch])


def _brightness(pixels: Pixels, _: np.random.Generator, more: float) -> Floats:
    # Of hue, saturation and value only the value changes: the colour is scaled. Black has no colour and becomes gray.
    value = pixels.max(axis=2, keepdims=True).astype(np.float32)
    raised = np.minimum(value + np.float32(255 * more), 255)
    return np.asarray(np.where(value > 0, pixels * (raised / np.maximum(value, 1)), raised))


def _saturate(pixels: Pixels, _: np.random.Generator, factor: float, more: float) -> Floats:
    value = pixels.max(axis=2, keepdims=True).astype(np.float32)
    missing = value - pixels
    largest = missing.max(axis=2, keepdims=True)
    saturation = largest / np.maximum(value, 1)
    changed = np.clip(saturation * np.float32(factor) + np.float32(more), 0, 1)
    # Gray has hue 0, which is red: there the other two channels lose what saturation takes.
    direction = np.where(largest > 0, missing / np.maximum(largest, 1), np.array([0, 1, 1], np.float32))
    return np.asarray(value * (1 - changed * direction))


def _contrast(pixels: Pixels, _: np.random.Generator, factor: float) -> Floats:
    means = pixels.mean(axis=(0, 1), keepdims=True).astype(np.float32)
    return np.asarray((pixels - means) * np.float32(factor) + means)


def _elastic_transform(pixels: Pixels, generator: np.random.Generator, strength: float, sigma: float, reach: float,
                       ) -> Floats:
    """Return the image after a random affine map and then random displacements, interpolated linearly each time."""
    height, width = pixels.shape[:2]
    side = min(height, width)
    third = side // 3
    corners = np.array([width // 2, height // 2]) + np.array([(third, third), (third, -third), (-third, -third)])
    # Below 224 px the triangle is too small for displacements that large: it would be turned over.
    moved = corners + generator.uniform(-reach, reach, corners.shape) * min(1.0, side / 224)
    back = np.linalg.solve(np.column_stack([moved, np.ones(3)]), corners).astype(np.float32)
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    image = _sampled(pixels.astype(np.float32), columns * back[0, 1] + rows * back[1, 1] + back[2, 1],
                     columns * back[0, 0] + rows * back[1, 0] + back[2, 0], "mirror")
    right, down = (np.float32(strength) * _smoothed(generator.random((height, width), np.float32) * 2 - 1, sigma)
                   for _ in range(2))
    return _sampled(image, rows + down, columns + right, "reflect")


def _sampled(image: Floats, rows: Floats, columns: Floats, mode: str) -> Floats:
    """Return the image (H, W, 3) read at these places (H, W), linearly."""
    ndimage = require("scipy.ndimage", "corruptions")
    return np.stack([ndimage.map_coordinates(image[:, :, channel], (rows, columns), order=1, mode=mode)
                     for channel in range(3)], axis=2)


def _smoothed(values: Floats, sigma: float) -> Floats:
    """Return the values (H, W) after a Gaussian cut at three sigma, mirrored at the edges.

    A cosine transform, in which this is a product: sigma may be 171 px, whose 1,025 taps would take long.
    """
    fft = require("scipy.fft", "corruptions")
    height, width = values.shape
    response = _response(height, sigma)[:, None] * _response(width, sigma)
    result: Floats = fft.idctn(fft.dctn(values) * response)
    return result


@lru_cache
def _response(length: int, sigma: float) -> Floats:
    """Return by what the Gaussian cut at three sigma multiplies each of the cosines over `length` pixels."""
    steps = np.arange(int(3 * sigma + 0.5) + 1)
    weights = np.exp(-steps ** 2 / (2 * sigma ** 2))
    weights[1:] *= 2
    cosines = np.cos(math.pi / length * np.outer(np.arange(length), steps))
    # No matrix product: its last digits may depend on the number of threads.
    result: Floats = (cosines * weights).sum(axis=1).astype(np.float32) / np.float32(weights.sum())
    return result


def _pixelate(pixels: Pixels, _: np.random.Generator, share: float) -> Pixels:
    image = Image.fromarray(pixels)
    small = image.resize((int(image.width * share), int(image.height * share)), Image.Resampling.BOX)
    return np.asarray(small.resize(image.size, Image.Resampling.BOX))


def _jpeg_compression(pixels: Pixels, _: np.random.Generator, quality: int) -> Pixels:
    return _jpeg(pixels, quality)


def _spatter(pixels: Pixels, generator: np.random.Generator, mean: float, sd: float, sigma: float, threshold: float,
             strength: float, mud: int) -> Floats:
    drops = generator.standard_normal(pixels.shape[:2], np.float32) * np.float32(sd) + np.float32(mean)
    drops = _blurred(drops, sigma)
    drops[drops < threshold] = 0
    if mud:
        cover = _blurred(drops > threshold, strength)
        cover[cover < 0.8] = 0
        return np.asarray(pixels * (1 - cover[:, :, None]) + np.array([63, 42, 20], np.float32) * cover[:, :, None])
    wet = _whole(drops * 255)
    water = wet * _relief(wet)
    # A small image may stay dry.
    water *= np.float32(strength) / max(float(water.max()), 1.0)
    return np.asarray(pixels + np.array([175, 238, 238], np.float32) * water[:, :, None])


def _relief(wet: Pixels) -> Floats:
    """Return light and shade (H, W), 0 to 255, around the rims of drops: dark at the rim, lit from one side."""
    ndimage = require("scipy.ndimage", "corruptions")
    rims = _edges(wet)
    distance = np.full(wet.shape, 20.0, np.float32)
    if rims.any():
        distance = np.minimum(ndimage.distance_transform_edt(~rims), 20).astype(np.float32)
    levels = ndimage.uniform_filter(distance, 3, mode="mirror").astype(np.uint8)
    counts = np.bincount(levels.ravel(), minlength=256)
    lowest = counts[counts.nonzero()[0][0]]
    if lowest < levels.size:
        # Histogram equalization: the lowest level becomes 0, the highest 255.
        spread = np.rint((counts.cumsum() - lowest) * (255 / (levels.size - lowest)))
        levels = np.clip(spread, 0, 255).astype(np.uint8)[levels]
    tilt = np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]])
    lit = np.clip(ndimage.correlate(levels.astype(np.float32), tilt.astype(np.float32), mode="mirror"), 0, 255)
    result: Floats = ndimage.uniform_filter(lit, 3, mode="mirror").round()
    return result


def _edges(levels: Pixels, weak: int = 50, strong: int = 150) -> npt.NDArray[np.bool_]:
    """Return Canny's edges of gray levels (H, W): 3×3 Sobel, sums of absolute slopes, thresholds 50 and 150."""
    ndimage = require("scipy.ndimage", "corruptions")
    right, down = (ndimage.sobel(levels.astype(np.int32), axis, mode="nearest") for axis in (1, 0))
    slope = np.pad(np.abs(right) + np.abs(down), 1)
    height, width = levels.shape

    def neighbour(y: int, x: int) -> npt.NDArray[np.int32]:
        return slope[1 + y:1 + y + height, 1 + x:1 + x + width]

    here = neighbour(0, 0)
    steep = math.tan(math.radians(67.5))
    # Only ridges across the slope stay; of two equal ones the first.
    level = np.abs(right) > np.abs(down) * steep
    upright = np.abs(down) > np.abs(right) * steep
    falling = (right ^ down) < 0
    ridge = np.select(
        [level, upright, falling],
        [(here > neighbour(0, -1)) & (here >= neighbour(0, 1)), (here > neighbour(-1, 0)) & (here >= neighbour(1, 0)),
         (here > neighbour(-1, 1)) & (here > neighbour(1, -1))],
        (here > neighbour(-1, -1)) & (here > neighbour(1, 1)))
    labels, count = ndimage.label(ridge & (here > weak), np.ones((3, 3)))
    holds = np.zeros(count + 1, np.bool_)
    holds[labels[here > strong]] = True
    holds[0] = False
    result: npt.NDArray[np.bool_] = holds[labels]
    return result


_EFFECTS: Mapping[str, tuple[Callable[..., npt.NDArray[Any]], tuple[tuple[Any, ...], ...]]] = MappingProxyType({
    # Standard deviation, as all sizes of noise on a scale from 0 to 1.
    "gaussian_noise": (_gaussian_noise, ((0.08,), (0.12,), (0.18,), (0.26,), (0.38,))),
    # Photons of a white pixel.
    "shot_noise": (_shot_noise, ((60,), (25,), (12,), (5,), (3,))),
    # Share of values that become black or white.
    "impulse_noise": (_impulse_noise, ((0.03,), (0.06,), (0.09,), (0.17,), (0.27,))),
    # Radius and softness of the disk.
    "defocus_blur": (_defocus_blur, ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))),
    # Blur, largest displacement, rounds.
    "glass_blur": (_glass_blur, ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2))),
    # Steps to each side of a kernel of which one side is used, and its sigma.
    "motion_blur": (_motion_blur, ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))),
    # Where the zoom factors end, and their step.
    "zoom_blur": (_zoom_blur, ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03))),
    # Mean and standard deviation of the noise, its zoom and threshold, radius and sigma of the motion, image's share.
    "snow": (_snow, ((0.1, 0.3, 3, 0.5, 10, 4, 0.8), (0.2, 0.3, 2, 0.5, 12, 4, 0.7), (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
                     (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65), (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55))),
    # Shares of image and frost.
    "frost": (_frost, ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75))),
    # Strength, and the square root of how much each finer level of the clouds is weaker.
    "fog": (_fog, ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4))),
    # What is added to the value.
    "brightness": (_brightness, ((0.1,), (0.2,), (0.3,), (0.4,), (0.5,))),
    # What is left of the distance from the mean.
    "contrast": (_contrast, ((0.4,), (0.3,), (0.2,), (0.1,), (0.05,))),
    # Strength and smoothness of the displacements, reach of the affine map's; 244 is the generator's.
    "elastic_transform": (_elastic_transform, tuple(
        (244 * strength, 244 * sigma, 244 * reach) for strength, sigma, reach in (
            (2, 0.7, 0.1), (2, 0.08, 0.2), (0.05, 0.01, 0.02), (0.07, 0.01, 0.02), (0.12, 0.01, 0.02)))),
    # Share of the pixels a side.
    "pixelate": (_pixelate, ((0.6,), (0.5,), (0.4,), (0.3,), (0.25,))),
    "jpeg_compression": (_jpeg_compression, ((25,), (18,), (15,), (10,), (7,))),
    "speckle_noise": (_speckle_noise, ((0.15,), (0.2,), (0.35,), (0.45,), (0.6,))),
    "gaussian_blur": (_gaussian_blur, ((1,), (2,), (3,), (4,), (6,))),
    # Mean and standard deviation of the noise, its blur and threshold, strength (of mud: blur), whether it is mud.
    "spatter": (_spatter, ((0.65, 0.3, 4, 0.69, 0.6, 0), (0.65, 0.3, 3, 0.68, 0.6, 0), (0.65, 0.3, 2, 0.68, 0.5, 0),
                           (0.65, 0.3, 1, 0.65, 1.5, 1), (0.67, 0.4, 1, 0.65, 1.5, 1))),
    # Factor and increase of the saturation.
    "saturate": (_saturate, ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2))),
})
_CONDITIONS: Mapping[str, tuple[str, int]] = MappingProxyType(
    {f"{name}:{severity}": (name, severity) for name in _EFFECTS for severity in SEVERITIES})
