"""npz files that others may have written: what one may hold before it is read, and caches that carry their own hash."""

from __future__ import annotations

import hashlib
import io
import struct
import zipfile
import zlib
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgebench.record import write_bytes

Floats = npt.NDArray[np.float32]
MAX_MEMBERS = 64
MAX_EXPANSION = 1000
"""Largest ratio of a compressed member's size to its size in the file; real arrays stay far below."""
MAX_COMPRESSED_BYTES = 4 << 30
"""Most bytes that the compressed members of one file may expand to."""


def refuse_unfit(path: Path, names: Collection[str] | None = None) -> None:
    """Raise ValueError unless the file is an npz of plain arrays whose sizes are what their headers say.

    Args:
        path: The file.
        names: The arrays that it may hold; None: any.

    Raises:
        ValueError: Too many, repeated or unknown members, one that expands without bounds, an array of objects, or a
            header that promises more or less than the member holds.
        OSError: The file cannot be read.
        zipfile.BadZipFile: It is no archive.
    """
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        members = [entry.filename for entry in entries]
        if len(members) > MAX_MEMBERS or len(set(members)) < len(members):
            raise ValueError(f"expected at most {MAX_MEMBERS} distinct arrays, got {len(members)} members")
        strange = [name for name in members if not name.endswith(".npy") or "/" in name
                   or (names is not None and name.removesuffix(".npy") not in names)]
        if strange:
            raise ValueError(f"it holds {strange[0]!r}, which is none of its arrays")
        compressed = [entry for entry in entries if entry.compress_type != zipfile.ZIP_STORED]
        if sum(entry.file_size for entry in compressed) > MAX_COMPRESSED_BYTES or any(
                entry.file_size > MAX_EXPANSION * max(entry.compress_size, 1024) for entry in compressed):
            raise ValueError("a compressed array in it expands without bounds")
        for entry in entries:
            with archive.open(entry) as member:
                version = np.lib.format.read_magic(member)
                read = {(1, 0): np.lib.format.read_array_header_1_0,
                        (2, 0): np.lib.format.read_array_header_2_0}.get(version)
                if read is None:
                    raise ValueError(f"{entry.filename} is in a newer array format")
                shape, _, dtype = read(member)
                if dtype.hasobject:
                    raise ValueError(f"{entry.filename} holds objects, not numbers")
                size = dtype.itemsize
                for side in shape:
                    size *= side
                if min(shape, default=0) < 0 or member.tell() + size != entry.file_size:
                    raise ValueError(f"{entry.filename} is not as large as its header says")


def save_cache(path: Path, content: Mapping[str, Floats], hint: str) -> None:
    """Write arrays with a hash of them all, atomically.

    Args:
        path: The npz file.
        content: The arrays by name.
        hint: For the error where writing fails.

    Raises:
        InvalidInput: It cannot be written.
    """
    stored: dict[str, npt.NDArray[np.generic]] = {
        **{name: np.ascontiguousarray(array) for name, array in content.items()}, "sealed": np.asarray(_hash(content))}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, array in stored.items():
            with archive.open(f"{name}.npy", "w") as member:
                np.lib.format.write_array(member, array, allow_pickle=False)
    write_bytes(path, buffer.getvalue(), hint)


def load_cache(path: Path, names: Collection[str]) -> dict[str, Floats] | None:
    """Return the arrays that `save_cache` wrote; None where there are none, or not as they were written.

    A damaged cache is no loss: what it holds is made again.
    """
    try:
        refuse_unfit(path, {*names, "sealed"})
        with np.load(path, allow_pickle=False) as content:
            found = {name: content[name] for name in names}
            return found if str(content["sealed"]) == _hash(found) else None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error, struct.error):
        return None


def _hash(content: Mapping[str, Floats]) -> str:
    state = hashlib.sha256()
    for name in sorted(content):
        array = content[name]
        state.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        state.update(np.ascontiguousarray(array).tobytes())
    return state.hexdigest()
