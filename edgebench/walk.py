"""The one walk over folders of images: the images, and an account of every file and folder that is passed over."""

from __future__ import annotations

import errno
import os
import stat
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from PIL import Image

from edgebench.errors import InvalidInput, UsageError

DANGLING, LOOP, HIDDEN, UNREAD, SPECIAL = "dangling-link", "link-loop", "hidden", "unread-format", "special-file"
LOOSE, EMPTY, FOREIGN = "outside-classes", "folder-without-images", "other-folder"
SYSTEM, OTHER = "system-file", "no-image"
REASONS: Mapping[str, str] = {
    DANGLING: "links without a target", LOOP: "links that lead back to a folder above them", HIDDEN: "hidden images",
    UNREAD: "files of a format that Pillow does not read here", SPECIAL: "pipes, sockets or devices",
    LOOSE: "images outside of the class folders", EMPTY: "folders without images",
    FOREIGN: "folders that belong to no set of the data root", SYSTEM: "files that the system made",
    OTHER: "files that are no images"}
"""What was passed over, in the plural, by the code of the reason."""
QUIET = frozenset({SYSTEM, OTHER})
"""Reasons that raise no caveat: nobody expects these files to be read."""
LOST = frozenset({DANGLING, LOOP, HIDDEN, UNREAD, SPECIAL})
"""Reasons for which an image of a class is missing."""
# Formats that hold one picture in pixels. Documents, streams and what needs another program are not among them.
_FORMATS = frozenset({"AVIF", "BMP", "DDS", "DIB", "GIF", "ICO", "JPEG", "JPEG2000", "PCX", "PNG", "PPM", "PSD", "QOI",
                      "SGI", "SUN", "TGA", "TIFF", "WEBP"})
# Of these the first bytes say enough, whatever the file is called.
_BY_CONTENT = ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "AVIF", "JPEG2000", "BMP", "PSD", "QOI")
_UNREAD_SUFFIXES = frozenset({
    ".heic", ".heics", ".heif", ".heifs", ".hif", ".jxl", ".jxr", ".wdp", ".avif", ".avifs", ".jp2", ".webp", ".exr",
    ".hdr", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".dcm", ".dicom", ".nii", ".mha", ".mrc",
    ".fits", ".fit", ".npy", ".svg", ".xcf", ".ktx", ".flif", ".bpg", ".pcd", ".cur", ".xbm", ".xpm", ".eps", ".raw",
    ".czi", ".svs", ".ndpi"})
_SYSTEM = frozenset({
    "thumbs.db", "ehthumbs.db", "desktop.ini", ".ds_store", ".ipynb_checkpoints", "__macosx", "__pycache__",
    ".thumbnails",
    "@eadir", "#recycle", "$recycle.bin", "system volume information", ".git", ".cache", ".spotlight-v100", ".trashes",
    ".fseventsd", ".directory", ".comments", ".appledouble", ".picasa.ini", ".gitkeep", ".gitignore", ".gitattributes"})


@dataclass(frozen=True, slots=True, kw_only=True)
class PassedOver:
    """One file or folder that was not read as an image."""

    reason: str
    """Key of `REASONS`."""
    path: str
    """From the folder of the data set, with forward slashes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Walk:
    """What lies below a folder."""

    images: tuple[Path, ...]
    """In the order of their paths."""
    passed_over: tuple[PassedOver, ...]


def walk(root: Path, base: Path | None = None) -> Walk:
    """Return every image below `root`, through linked folders too, and an account of the rest.

    An image is a file whose suffix is one of a picture format that Pillow reads here, or whose content is one.

    Args:
        root: Where to look.
        base: The folder from which paths in the account are written; `root` by default.

    Raises:
        InvalidInput: A folder or file cannot be read.
    """
    base = base or root
    images: list[Path] = []
    account: list[PassedOver] = []
    # A link to any folder above is a loop, to those above `root` too: its other classes are not this one.
    chain = frozenset(_identity(place.stat()) for place in (root.resolve(), *root.resolve().parents))
    waiting: list[tuple[Path, frozenset[tuple[int, int]], bool]] = [(root, chain, False)]
    while waiting:
        folder, above, hidden = waiting.pop()
        for entry in entries(folder):
            place = entry.relative_to(base).as_posix()
            status = _status(entry)
            veiled = hidden or entry.name.startswith(".")
            if is_system(entry.name):
                account.append(PassedOver(reason=SYSTEM, path=place))
            elif isinstance(status, str):
                account.append(PassedOver(reason=status, path=place))
            elif stat.S_ISDIR(status.st_mode):
                if _identity(status) in above:
                    account.append(PassedOver(reason=LOOP, path=place))
                else:
                    waiting.append((entry, above | {_identity(status)}, veiled))
            else:
                reason = _reason_against(entry, status)
                if reason is None and veiled:
                    reason = HIDDEN
                if reason is None:
                    images.append(entry)
                else:
                    account.append(PassedOver(reason=reason, path=place))
    return Walk(images=tuple(sorted(images)), passed_over=tuple(sorted(account, key=lambda one: one.path)))


def entries(folder: Path) -> tuple[Path, ...]:
    """Return what lies directly in a folder, sorted.

    Raises:
        InvalidInput: The folder cannot be read.
    """
    try:
        return tuple(sorted(folder.iterdir()))
    except OSError as error:
        raise unreadable(folder, error) from error


def top_level(root: Path) -> tuple[tuple[Path, ...], tuple[PassedOver, ...]]:
    """Return the folders directly in `root`, linked ones too, and an account of everything else there.

    Raises:
        InvalidInput: A folder or file cannot be read.
    """
    folders: list[Path] = []
    account: list[PassedOver] = []
    for entry in entries(root):
        status = _status(entry)
        if is_system(entry.name):
            account.append(PassedOver(reason=SYSTEM, path=entry.name))
        elif isinstance(status, str):
            account.append(PassedOver(reason=status, path=entry.name))
        elif not stat.S_ISDIR(status.st_mode):
            reason = _reason_against(entry, status)
            veiled = HIDDEN if entry.name.startswith(".") else LOOSE
            account.append(PassedOver(reason=reason or veiled, path=entry.name))
        elif entry.name.startswith("."):
            below = walk(entry, root)
            account += [PassedOver(reason=HIDDEN, path=path.relative_to(root).as_posix()) for path in below.images]
            account += below.passed_over
        else:
            folders.append(entry)
    return tuple(folders), tuple(account)


def told(account: Sequence[PassedOver]) -> str:
    """Return the account as one clause: per reason how many there are, and the first by name, without quiet reasons.

    Characters that would break a line are shown as escapes.
    """
    first: dict[str, tuple[int, str]] = {}
    for one in account:
        if one.reason not in QUIET:
            count, path = first.get(one.reason, (0, one.path))
            first[one.reason] = count + 1, path
    return ", ".join(f"{count:,} {REASONS[reason]} ({'' if count == 1 else 'the first: '}{printable(path)})"
                     for reason, (count, path) in first.items())


def printable(name: str) -> str:
    """Return a name with characters that are no text, or would break a line, as escapes."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in name)


def is_system(name: str) -> bool:
    """Return whether a file or folder of this name is one that operating systems and tools leave behind."""
    return name.casefold() in _SYSTEM or name.startswith("._")


def unreadable(path: Path, error: OSError) -> InvalidInput:
    """Return the error for a file or folder that is there and cannot be read."""
    return InvalidInput(f"cannot read {printable(str(error.filename or path))}: {error.strerror}",
                        "no image is left out silently: change the permissions, or move it away")


def is_folder(location: str, hint: str) -> bool:
    """Return whether a location that a user gave is a folder.

    Raises:
        UsageError: It is empty: the working directory is meant by a dot alone.
        InvalidInput: It cannot be looked at.
    """
    if not location.strip():
        raise UsageError("the name of a data folder is empty", hint)
    try:
        return Path(location).is_dir()
    except OSError as error:
        raise InvalidInput(f"cannot read {printable(location)[:200]}: {error.strerror}", hint) from error


def kind_of(head: bytes) -> str:
    """Return what the first bytes (a few hundred) of a file that is no readable image show it to be; empty: unknown."""
    if not head:
        return "empty file"
    if head.startswith(b"version https://git-lfs.github.com/spec/"):
        return "a Git LFS pointer: fetch the image with git lfs pull"
    if head.lstrip()[:1] == b"<" and any(word in head.lower() for word in (b"<html", b"<!doctype", b"<head", b"<?xml")):
        return "an HTML or XML page, not an image"
    if head[4:8] == b"ftyp":
        brand = head[8:12]
        if brand in (b"avif", b"avis"):
            return "an AVIF image, which Pillow does not read here"
        return "an HEIF image, which Pillow does not read" if brand[:2] in (b"he", b"mi", b"ms") else "a video"
    if head.startswith((b"\xff\x0a", b"\0\0\0\x0cJXL ")):
        return "a JPEG XL image, which Pillow does not read"
    if head.startswith((b"PK\x03\x04", b"\x1f\x8b", b"Rar!", b"7z\xbc\xaf")):
        return "an archive, not an image"
    if not head.strip(b"\0"):
        return "zeros, not an image"
    return ""


@lru_cache(maxsize=1)
def suffixes() -> frozenset[str]:
    """Return the suffixes, in lower case with the dot, of the picture formats that Pillow reads here."""
    Image.init()
    there = {suffix for suffix, kind in Image.registered_extensions().items()
             if kind == "MPO" or (kind in _FORMATS and kind in Image.OPEN)}
    return frozenset({*there, ".jif"})


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _status(path: Path) -> os.stat_result | str:
    """Return the status of what a path leads to, or the reason why it leads nowhere."""
    try:
        return path.stat()
    except OSError as error:
        if error.errno == errno.ELOOP:
            return LOOP
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return DANGLING
        raise unreadable(path, error) from error


def _reason_against(path: Path, status: os.stat_result) -> str | None:
    """Return why a file is not read as an image, or None."""
    if not stat.S_ISREG(status.st_mode):
        return SPECIAL
    suffix = path.suffix.lower()
    if suffix in suffixes():
        if not os.access(path, os.R_OK):
            raise unreadable(path, PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path)))
        return None
    try:
        with path.open("rb") as file:
            head = file.read(32)
    except OSError as error:
        raise unreadable(path, error) from error
    if _is_image(path, head):
        return None
    return UNREAD if suffix in _UNREAD_SUFFIXES or "image, which" in kind_of(head) else OTHER


def _is_image(path: Path, head: bytes) -> bool:
    """Return whether a file that is not called as an image is one by its content."""
    kinds = [kind for kind in _BY_CONTENT if kind in Image.OPEN and _accepts(kind, head)]
    if not kinds:
        return False
    try:
        with warnings.catch_warnings():
            # Pillow warns about large images, which decoding judges later.
            warnings.simplefilter("ignore")
            with Image.open(path, formats=kinds):
                return True
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return False


def _accepts(kind: str, head: bytes) -> bool:
    accept = Image.OPEN[kind][1]
    return accept is not None and accept(head) is True
