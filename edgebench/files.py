"""Files that a user names: whether one can be read, and what stands there in place of the expected content."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgebench.errors import EdgebenchError, InvalidInput, UsageError

TEXT_LIMIT_BYTES = 16 * 2**20
"""Largest text file that is read: class lists, templates, TOML."""
# A pointer or an error message is short; a web page starts with its mark.
_HEAD_BYTES = 4096
_POINTER = re.compile(rb"version https?://[^\n]*git-lfs[^\n]*/spec/[^\n]*\n(?:.*\n)*?size (\d+)")
_PAGE = re.compile(rb"\s*(?:<!--.*?-->\s*)*(?:<\?xml[^>]*>\s*)?<(?:!doctype\s+html|html|head|body|error)\b",
                   re.IGNORECASE | re.DOTALL)
_TITLE = re.compile(rb"<(?:title|code)>\s*(.*?)\s*</", re.IGNORECASE | re.DOTALL)
_ARCHIVES = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "zstd",
             b"7z\xbc\xaf\x27\x1c": "7-Zip", b"Rar!": "RAR"}


def refuse_unreadable(path: Path, what: str, *, missing: type[EdgebenchError] = InvalidInput, hint: str = "") -> None:
    """Raise unless `path` is a regular file with content that this user may read.

    Args:
        path: The file.
        what: What it should be, with its article, such as "an ONNX file".
        missing: Kind of the error where nothing is there, or where a folder is.
        hint: What to pass instead, for the same cases.

    Raises:
        EdgebenchError: Missing, a broken link, a folder, a pipe or device, not readable, or empty.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError as error:
        if path.is_symlink():
            raise InvalidInput(f"{path} is a link to {path.readlink()}, which does not exist",
                               "restore the target of the link, or pass the file itself") from error
        raise missing(f"no such file: {path}" if missing is UsageError else
                      f"cannot read {path}: No such file or directory", hint or f"expected {what}") from error
    except (OSError, ValueError) as error:
        raise missing(f"cannot read {printable(str(path))}: {getattr(error, 'strerror', None) or error}",
                      hint) from error
    if stat.S_ISDIR(mode):
        raise missing(f"{path} is a folder; expected {what}", hint or "pass a file")
    if not stat.S_ISREG(mode):
        kind = "a pipe" if stat.S_ISFIFO(mode) else "a socket" if stat.S_ISSOCK(mode) else "a device"
        raise InvalidInput(f"{path} is {kind}; expected {what}", "write its content to a file and pass that")
    if not os.access(path, os.R_OK):
        raise InvalidInput(f"cannot read {path}: permission denied", "change its permissions, or pass a copy")
    if path.stat().st_size == 0:
        raise InvalidInput(f"{path} is empty; expected {what}",
                           "copy or download it again: an interrupted download leaves an empty file")


def refuse_stand_in(path: Path, what: str, *, binary: bool = True) -> None:
    """Raise where a readable file holds a pointer, a web page or an archive in place of the expected content.

    Args:
        path: The file.
        what: What it should be, with its article.
        binary: Whether the format is binary and has a header: then plain text and zeros are refused too.

    Raises:
        InvalidInput: It holds something else, which the message names.
    """
    with _reading(path), path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    size = path.stat().st_size
    pointer = _POINTER.match(head)
    if pointer:
        raise InvalidInput(f"{path} is a Git LFS pointer of {size} bytes to a file of {int(pointer[1]):,} bytes; "
                           f"expected {what}", "fetch the file itself with: git lfs pull")
    if re.match(rb"(?:[^\n]*/)?(?:\.git)?/annex/objects/", head):
        raise InvalidInput(f"{path} is a git-annex pointer; expected {what}", "fetch the file itself: git annex get")
    if _PAGE.match(head):
        title = _TITLE.search(head)
        named = f" ({printable(title[1][:80])})" if title else ""
        raise InvalidInput(f"{path} is a web page{named}; expected {what}",
                           "download the file itself: the address gave a page, such as an error or a sign-in")
    packed = next((name for magic, name in _ARCHIVES.items() if head.startswith(magic)), None)
    if packed:
        raise InvalidInput(f"{path} is packed with {packed}; expected {what}", "unpack it first")
    if not binary:
        return
    if head and not head.strip(b"\0") and _is_zero(path):
        raise InvalidInput(f"{path} holds {size:,} zero bytes and nothing else; expected {what}",
                           "copy or download it again: the space was reserved and never filled")
    if len(head) < _HEAD_BYTES and _is_text(head):
        raise InvalidInput(f"{path} is text ({printable(head[:60].splitlines()[0])!r}); expected {what}",
                           "copy or download the file itself")


def read_text(path: Path, what: str, *, missing: type[EdgebenchError] = InvalidInput) -> str:
    """Return the text of a UTF-8 file, without a byte-order mark.

    Args:
        path: The file.
        what: What it should be, with its article, such as "a class list".
        missing: Kind of the error where no file is there.

    Raises:
        EdgebenchError: It cannot be read, is empty, a stand-in, too large, or not UTF-8.
    """
    refuse_unreadable(path, what, missing=missing)
    refuse_stand_in(path, what, binary=False)
    if path.stat().st_size > TEXT_LIMIT_BYTES:
        raise InvalidInput(f"{path} has {path.stat().st_size:,} bytes; expected {what}", "pass the text file")
    with _reading(path):
        content = path.read_bytes()
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise InvalidInput(f"{path} is UTF-16 text; expected UTF-8", "save it as UTF-8")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[:error.start].count(b"\n") + 1
        raise InvalidInput(f"{path} is not UTF-8 text: byte 0x{content[error.start]:02x} in line {line}; "
                           f"expected {what}", "save it as UTF-8") from error
    if "\0" in text:
        raise InvalidInput(f"{path} is no text: it holds zero bytes; expected {what}", "pass the text file")
    return text


def refuse_unwritable(path: Path, hint: str) -> None:
    """Raise where `path` cannot be written as a file; nothing is left behind.

    Args:
        path: The file that will be written or replaced.
        hint: What to do then.

    Raises:
        InvalidInput: It is a folder, a part of its path is a file, or it may not be written there.
    """
    if path.is_dir():
        raise InvalidInput(f"cannot write {path}: it is a folder", hint)
    folder = next(one for one in (path.parent, *path.parent.parents) if os.path.lexists(one))
    if not folder.is_dir():
        raise InvalidInput(f"cannot write {path}: {folder} is not a folder", hint)
    target = path if path.exists() and not path.is_file() else folder
    if not os.access(target, os.W_OK):
        raise InvalidInput(f"cannot write {path}: permission denied", hint)


def printable(text: str | bytes) -> str:
    """Return text without control characters and what cannot be encoded, so that a terminal can show it."""
    words = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in words)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InvalidInput(f"cannot read {path}: {error.strerror}") from error


def _is_text(head: bytes) -> bool:
    try:
        text = head.decode()
    except UnicodeDecodeError:
        return False
    return all(char.isprintable() or char in "\r\n\t" for char in text)


def _is_zero(path: Path) -> bool:
    with _reading(path), path.open("rb") as file:
        while block := file.read(2**20):
            if block.strip(b"\0"):
                return False
    return True
