"""Decode and transform each image once, keep uint8 on disk, feed every variant and backend from there."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import struct
import tempfile
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, UnidentifiedImageError
from PIL import __version__ as pillow_version
from platformdirs import user_cache_path

from edgebench.datasets import MAX_UNREADABLE, Item
from edgebench.errors import InvalidInput, writing
from edgebench.record import Preprocess, decode, read_json, seal_of, sha256_once, to_builtins, write_sealed
from edgebench.walk import kind_of, printable, unreadable

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
T = TypeVar("T")
R = TypeVar("R")
# Raised when the same file and preprocessing give other pixels or another account: 3 notes how far 16 bits are used.
VERSION = 3
# What decoders raise on damaged files, and we on images of no agreed form. Pillow's parsers also let through what a
# wrong byte makes of their own arithmetic and look-ups.
_UNREADABLE = (OSError, ValueError, SyntaxError, ArithmeticError, LookupError, TypeError, AttributeError, EOFError,
               RuntimeError, struct.error, zlib.error, Image.DecompressionBombError)
MAX_PIXELS = 89_478_485
CACHE_HINT = "free some space, or point EDGEBENCH_CACHE at a folder on a larger disk"
_RESAMPLING = {"nearest": Image.Resampling.NEAREST, "bilinear": Image.Resampling.BILINEAR,
               "bicubic": Image.Resampling.BICUBIC, "lanczos": Image.Resampling.LANCZOS}


def cache_root() -> Path:
    """Return the folder for caches: ``EDGEBENCH_CACHE``, else the user's cache folder."""
    chosen = os.environ.get("EDGEBENCH_CACHE")
    return Path(chosen) if chosen else user_cache_path("edgebench")


def to_rgb(image: Image.Image, gray_bits: int = 16) -> Image.Image:
    """Return the image in 8-bit RGB by fixed rules.

    Gray is repeated, CMYK, L*a*b* and palettes are converted, an alpha channel is dropped, 16-bit gray keeps the upper
    8 of its `gray_bits` bits. An EXIF orientation is not applied: training pipelines do not apply it either (callers
    count such images).

    Raises:
        ValueError: Floating-point pixels, integers beyond 16 bits (their range is nobody's convention), values beyond
            `gray_bits`, or 16-bit colour where these are fewer than 16.
    """
    if image.mode == "F":
        raise ValueError("floating-point pixels have no agreed range: save it with 8 or 16 bits")
    if image.mode == "I" or image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65_535:
            raise ValueError("integers beyond 16 bits have no agreed range: save it with 8 or 16 bits")
        if values.max() >= 2 ** gray_bits:
            raise ValueError(f"a value of {values.max()} is beyond gray_bits = {gray_bits} of the preprocessing")
        return Image.fromarray((values >> (gray_bits - 8)).astype(np.uint8)).convert("RGB")
    if gray_bits != 16 and deep_colour(image):
        raise ValueError(f"gray_bits = {gray_bits} is for gray, and of 16-bit colour Pillow keeps the upper 8 bits: "
                         "save it with 8")
    return image.convert("RGB")


def deep_colour(image: Image.Image) -> bool:
    """Return whether the file has 16 bits per channel of several, of which Pillow reads the upper 8."""
    return image.mode in ("RGB", "RGBA", "LA") and any(";16" in str(tile[3]) for tile in getattr(image, "tile", ()))


def _used_bits(image: Image.Image, *, deep: bool) -> int:
    """Return how many bits the largest value of a 16-bit image takes; 0 for an image of 8 bits.

    Args:
        image: The picture, after its pixels were read.
        deep: Whether it was `deep_colour` before.
    """
    if deep:
        return 8 + int(np.asarray(image.convert("RGB")).max()).bit_length()
    if image.mode == "I" or image.mode.startswith("I;16"):
        return max(1, int(np.asarray(image).max()).bit_length())
    return 0


def transform(image: Image.Image, preprocess: Preprocess) -> Pixels:
    """Return the image as the model sees it before normalisation, (height, width, 3) uint8.

    Raises:
        ValueError: The image is smaller than the model's input and `preprocess` does not resize; or so long and narrow
            that it would become larger than about 89 megapixels.
    """
    picture = to_rgb(image, preprocess.gray_bits)
    if preprocess.border_px:
        cut = preprocess.border_px
        picture = picture.crop((cut, cut, picture.width - cut, picture.height - cut))
    height, width = preprocess.size_px
    resampling = _RESAMPLING[preprocess.interpolation]
    if preprocess.resize == "squash":
        to = (width, height) if preprocess.resize_px is None else (preprocess.resize_px, preprocess.resize_px)
        picture = picture if picture.size == to else picture.resize(to, resampling)
    elif preprocess.resize_px is not None and min(picture.size) != preprocess.resize_px:
        # torchvision's rule: the long side is truncated, not rounded.
        short = preprocess.resize_px
        scaled = (short, int(short * picture.height / picture.width)) if picture.width <= picture.height else \
            (int(short * picture.width / picture.height), short)
        if scaled[0] * scaled[1] > MAX_PIXELS:
            raise ValueError(f"{picture.width}×{picture.height} pixels: resized to {scaled[0]}×{scaled[1]}, more than "
                             f"the limit of {MAX_PIXELS:,}")
        picture = picture.resize(scaled, resampling)
    if preprocess.resize != "none" and (picture.width < width or picture.height < height):
        picture = _padded(picture, width, height)
    if picture.width < width or picture.height < height:
        raise ValueError(f"{picture.width}×{picture.height} pixels, smaller than the model's {width}×{height}")
    left, top = round((picture.width - width) / 2), round((picture.height - height) / 2)
    return np.asarray(picture.crop((left, top, left + width, top + height)))


def _padded(picture: Image.Image, width: int, height: int) -> Image.Image:
    """Return the picture with black around it, at least `width` × `height`, as torchvision's CenterCrop does."""
    larger = Image.new("RGB", (max(width, picture.width), max(height, picture.height)))
    larger.paste(picture, (max(0, width - picture.width) // 2, max(0, height - picture.height) // 2))
    return larger


def normalize(pixels: Pixels, preprocess: Preprocess) -> Floats:
    """Return the model's input (N, 3, H, W) float32 from uint8 (N, H, W, 3), in torchvision's order of operations."""
    scaled: Floats = pixels.transpose(0, 3, 1, 2).astype(np.float32, order="C")
    scaled /= np.float32(255)
    scaled -= np.asarray(preprocess.mean, np.float32)[:, None, None]
    scaled /= np.asarray(preprocess.std, np.float32)[:, None, None]
    return scaled


@dataclass(frozen=True, slots=True, kw_only=True)
class _Index:
    preprocess: Preprocess
    condition: str
    size_px: tuple[int, int]
    kept: tuple[int, ...]
    hashes: tuple[str, ...]
    unreadable: tuple[tuple[str, str], ...]
    rotated: int
    narrow: tuple[int, int] | None = None
    key: str = ""
    """Name of the folder that it was made for."""
    pixels_sha256: str = ""
    sealed: str = ""
    """`seal_of` the other fields."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageCache:
    """Transformed images on disk, in the order of the items they came from, without the undecodable ones."""

    folder: Path
    preprocess: Preprocess
    condition: str
    """``clean``, or how the images were changed."""
    size_px: tuple[int, int]
    """Height and width of the images here."""
    kept: tuple[int, ...]
    """Indices of the items that could be decoded."""
    hashes: tuple[str, ...]
    """SHA-256 of every item's file, by item index; empty where it could not be read."""
    unreadable: tuple[tuple[str, str], ...]
    """(item id, reason)."""
    rotated: int
    """Images whose EXIF data ask to be turned, which is not done."""
    narrow: tuple[int, int] | None = None
    """(8, 10, 12 or 14 bits that hold the largest value of all 16-bit images, their number); None: none do."""

    def pixels(self) -> Pixels:
        """Return all kept images (N, H, W, 3) uint8, mapped from disk."""
        shape = (len(self.kept), *self.size_px, 3)
        return np.memmap(self.folder / "images.u8", np.uint8, "r", shape=shape)

    def read(self, rows: Sequence[int]) -> Pixels:
        """Return the images at `rows` (n, H, W, 3) uint8, read into memory of their own.

        Unlike pages of `pixels`, nothing of it stays in the process: memory does not grow with the data set.
        """
        images = np.empty((len(rows), *self.size_px, 3), np.uint8)
        size = images[0].nbytes if rows else 0
        with (self.folder / "images.u8").open("rb", buffering=0) as file:
            for place, row in enumerate(rows):
                file.seek(row * size)
                if file.readinto(memoryview(images[place]).cast("B")) != size:
                    raise InvalidInput(f"{self.folder} was cut short while it was read", "run the same command again")
        return images


def load_cache(folder: Path) -> ImageCache:
    """Return the finished cache in `folder`; its pixels were verified when this job opened it (`cached`).

    Raises:
        InvalidInput: Its index is damaged, of an earlier version or another cache's, or pixels are missing.
    """
    return _opened(folder)[0]


def _opened(folder: Path) -> tuple[ImageCache, str]:
    """Return a cache and the SHA-256 that its pixels must have."""
    file = folder / "index.json"
    data = read_json(file)
    index = decode(_Index, data, str(file))
    if index.sealed != seal_of(data) or index.key != folder.name:
        raise InvalidInput(f"{file} was changed, or belongs to another cache", "run the same command again")
    size = len(index.kept) * index.size_px[0] * index.size_px[1] * 3
    pixels = folder / "images.u8"
    if not pixels.is_file() or pixels.stat().st_size != size:
        raise InvalidInput(f"{pixels} is not whole: expected {size} bytes", "run the same command again")
    return ImageCache(folder=folder, preprocess=index.preprocess, condition=index.condition, size_px=index.size_px,
                      kept=index.kept, hashes=index.hashes, unreadable=index.unreadable, rotated=index.rotated,
                      narrow=index.narrow), index.pixels_sha256


def _verified(folder: Path) -> ImageCache:
    """Return the cache in `folder` after comparing its pixels with their hash, once per process.

    Raises:
        InvalidInput: It is damaged.
    """
    cache, expected = _opened(folder)
    if sha256_once(folder / "images.u8") != expected:
        raise InvalidInput(f"{folder / 'images.u8'} was changed after it was written", "run the same command again")
    return cache


def cached(items: Sequence[Item], preprocess: Preprocess,
           progress: Callable[[int, int], None] = lambda done, total: None, condition: str = "clean") -> ImageCache:
    """Return the cache of `items` under `preprocess`, decoding what is not there yet.

    An image that cannot be read, is cut short or is larger than about 89 megapixels is left out and named.

    Args:
        items: The images.
        preprocess: How the model wants them.
        progress: Told (done, total).
        condition: ``clean``, or a geometric sweep's level (`edgebench.transforms`).

    Raises:
        InvalidInput: More than one image in a hundred cannot be decoded, or the disk cannot hold the cache.
    """
    if not items:
        raise InvalidInput("there are no images to decode")
    size, view = _view(preprocess, condition)

    def fill(write: Callable[[bytes], object]) -> _Index:
        found = _decode_all(items, view, write, progress)
        if len(found.unreadable) > max(1, MAX_UNREADABLE * len(items)) or not found.kept:
            name, reason = found.unreadable[0]
            raise InvalidInput(f"{len(found.unreadable)} of {len(items)} images cannot be decoded, the first: "
                               f"{printable(name)}: {reason}",
                               "repair or remove them; up to 1 % would have been left out and named")
        return _Index(preprocess=preprocess, condition=condition, size_px=size, kept=found.kept, hashes=found.hashes,
                      unreadable=found.unreadable, rotated=found.rotated,
                      narrow=_narrow(found.used_bits) if preprocess.gray_bits == 16 else None)

    return _once(_key(items, preprocess, condition), len(items) * size[0] * size[1] * 3, fill)


def corrupted(base: ImageCache, rows: Sequence[int], ids: Sequence[str], condition: str,
              progress: Callable[[int, int], None] = lambda done, total: None) -> ImageCache:
    """Return the images at `rows` of a clean cache, corrupted as `condition` says; made once and kept.

    Each is corrupted as the model sees it, before normalisation, seeded by its id in `ids`.

    Raises:
        InvalidInput: The disk cannot hold the cache.
    """
    from edgebench import corruptions

    parsed = corruptions.parse(condition)
    if parsed is None:
        raise ValueError(f"expected <corruption>:<severity>, got {condition!r}")
    kind, severity = parsed
    state = hashlib.sha256(json.dumps([corruptions.VERSION, base.folder.name, condition, list(rows)]).encode())
    state.update("\n".join(ids).encode(errors="surrogateescape"))

    def fill(write: Callable[[bytes], object]) -> _Index:
        pixels = base.pixels()

        def one(place: int) -> Pixels:
            return corruptions.corrupt(np.asarray(pixels[rows[place]]), kind, severity, ids[place])

        with ThreadPoolExecutor() as pool:
            for done, changed in enumerate(_bounded_map(pool, one, range(len(rows))), 1):
                write(changed.tobytes())
                progress(done, len(rows))
        return _Index(preprocess=base.preprocess, condition=condition, size_px=base.size_px,
                      kept=tuple(range(len(rows))), hashes=tuple(base.hashes[base.kept[row]] for row in rows),
                      unreadable=(), rotated=0)

    return _once(state.hexdigest()[:32], len(rows) * base.size_px[0] * base.size_px[1] * 3, fill)


def _view(preprocess: Preprocess, condition: str) -> tuple[tuple[int, int], Callable[[Image.Image], Pixels]]:
    """Return the size of the images under a condition and the function that makes them."""
    if condition == "clean":
        return preprocess.size_px, lambda image: transform(image, preprocess)
    from edgebench import transforms

    return transforms.output_size(preprocess, condition), lambda image: transforms.render(image, preprocess, condition)


def _once(key: str, needed: int, fill: Callable[[Callable[[bytes], object]], _Index]) -> ImageCache:
    """Return the cache called `key`, filled by `fill` where it is not there; whole or not at all.

    `fill` hands the pixels to the function that it is given, in order.
    """
    folder = cache_root() / "images" / key
    with writing(folder, CACHE_HINT):
        folder.parent.mkdir(parents=True, exist_ok=True)
        if folder.exists() or folder.is_symlink():
            try:
                return _verified(folder)
            except InvalidInput:
                # A damaged cache is no loss: it is made again.
                if folder.is_symlink() or not folder.is_dir():
                    folder.unlink()
                else:
                    shutil.rmtree(folder)
    free = shutil.disk_usage(folder.parent).free
    if needed > free:
        raise InvalidInput(f"{folder.parent} has {free / 1e9:.1f} GB free, the decoded images need {needed / 1e9:.1f}",
                           CACHE_HINT)
    with writing(folder, CACHE_HINT), tempfile.TemporaryDirectory(dir=folder.parent, prefix=".part-") as scratch:
        state = hashlib.sha256()
        with (Path(scratch) / "images.u8").open("wb") as file:
            def write(content: bytes) -> None:
                file.write(content)
                state.update(content)

            index = replace(fill(write), key=key, pixels_sha256=state.hexdigest())
        write_sealed(Path(scratch) / "index.json", index, CACHE_HINT)
        Path(scratch).chmod(0o755)
        try:
            Path(scratch).rename(folder)
        except OSError:
            # Another process finished the same cache first.
            if not (folder / "index.json").exists():
                raise
    return load_cache(folder)


def _key(items: Sequence[Item], preprocess: Preprocess, condition: str) -> str:
    state = hashlib.sha256(json.dumps([VERSION, pillow_version, to_builtins(preprocess), condition]).encode())
    for item in items:
        try:
            stat = item.path.stat()
        except OSError as error:
            raise InvalidInput(f"cannot read {item.path}: {error.strerror}") from error
        line = f"{item.id} {item.path.resolve()} {stat.st_size} {stat.st_mtime_ns} {item.row}\n"
        state.update(line.encode(errors="surrogateescape"))
    return state.hexdigest()[:32]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Decoded:
    kept: tuple[int, ...]
    hashes: tuple[str, ...]
    unreadable: tuple[tuple[str, str], ...]
    rotated: int
    used_bits: tuple[int, ...]
    """Per 16-bit image."""


def _narrow(used_bits: Sequence[int]) -> tuple[int, int] | None:
    """Return the bits of a usual depth that hold all 16-bit images, and how many these are."""
    bits = next((bits for bits in (8, 10, 12, 14) if used_bits and max(used_bits) <= bits), None)
    return (bits, len(used_bits)) if bits is not None else None


def _decode_all(items: Sequence[Item], view: Callable[[Image.Image], Pixels], write: Callable[[bytes], object],
                progress: Callable[[int, int], None]) -> _Decoded:
    kept: list[int] = []
    hashes: list[str] = []
    unreadable: list[tuple[str, str]] = []
    rotated = 0
    used_bits: list[int] = []

    def one(item: Item) -> tuple[str, Pixels | str, bool, int]:
        return _decode(item, view)

    with warnings.catch_warnings(), ThreadPoolExecutor() as pool:
        # Pillow warns about odd metadata and large images; the pixels and our own limit decide here.
        warnings.simplefilter("ignore")
        for k, (digest, result, turned, bits) in enumerate(_bounded_map(pool, one, items)):
            hashes.append(digest)
            rotated += turned
            used_bits += [bits] if bits else []
            if isinstance(result, str):
                unreadable.append((items[k].id, result))
            else:
                kept.append(k)
                write(result.tobytes())
            progress(k + 1, len(items))
    return _Decoded(kept=tuple(kept), hashes=tuple(hashes), unreadable=tuple(unreadable), rotated=rotated,
                    used_bits=tuple(used_bits))


def _bounded_map(pool: ThreadPoolExecutor, function: Callable[[T], R], items: Sequence[T], ahead: int = 64,
                 ) -> Iterator[R]:
    # Executor.map would queue every decoded image of a large set in memory while the disk lags behind.
    pending = [pool.submit(function, item) for item in items[:ahead]]
    for k in range(len(items)):
        result = pending[k % ahead].result()
        if k + ahead < len(items):
            pending[k % ahead] = pool.submit(function, items[k + ahead])
        yield result


def _decode(item: Item, view: Callable[[Image.Image], Pixels]) -> tuple[str, Pixels | str, bool, int]:
    """Return the file's hash, the pixels or why there are none, whether EXIF data ask to turn them, and `_used_bits`.

    Raises:
        InvalidInput: The file cannot be read at all.
    """
    if item.row is not None:
        row = _array_of(item.path)[item.row]
        digest = hashlib.sha256(np.ascontiguousarray(row).tobytes()).hexdigest()
        try:
            return digest, view(Image.fromarray(row)), False, 0
        except ValueError as error:
            return digest, str(error), False, 0
    try:
        content = item.path.read_bytes()
    except OSError as error:
        raise unreadable(item.path, error) from error
    digest = hashlib.sha256(content).hexdigest()
    try:
        with Image.open(io.BytesIO(content)) as image:
            if image.width * image.height > MAX_PIXELS:
                return digest, f"{image.width}×{image.height} pixels, more than the limit of {MAX_PIXELS:,}", False, 0
            deep = deep_colour(image)
            pixels = view(image)
            return (digest, pixels, image.getexif().get(ExifTags.Base.Orientation, 1) != 1,
                    _used_bits(image, deep=deep))
    except UnidentifiedImageError:
        return digest, kind_of(content[:512]) or "not an image", False, 0
    except _UNREADABLE as error:
        return digest, str(error) or type(error).__name__, False, 0


def fault(item: Item) -> str | None:
    """Return why a file cannot be an image, from its first bytes alone; None where it may be one.

    Raises:
        InvalidInput: The file cannot be read at all.
    """
    if item.row is not None:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(item.path) as image:
                return None if image.width * image.height <= MAX_PIXELS else "more pixels than the limit"
    except UnidentifiedImageError:
        with item.path.open("rb") as file:
            return kind_of(file.read(512)) or "not an image"
    except OSError as error:
        if error.errno is not None:
            raise unreadable(item.path, error) from error
        return str(error)
    except _UNREADABLE as error:
        return str(error) or type(error).__name__


@lru_cache(maxsize=1)
def _array_of(path: Path) -> Pixels:
    with np.load(path, allow_pickle=False) as arrays:
        return np.asarray(arrays["images"], np.uint8)
