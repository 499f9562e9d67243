"""The artifact folder: write its manifest, prove that it is unchanged, check it against its golden outputs."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import numpy as np

from edgebench import outputs
from edgebench.arrays import refuse_unfit
from edgebench.backends import Feeds, Session
from edgebench.errors import CannotMeasure, InvalidInput
from edgebench.recipe import Recipe
from edgebench.record import (
    Artifact,
    FileEntry,
    ScoredOutput,
    load_artifact,
    read_json,
    seal_of,
    sha256_file,
    write_sealed,
)

GOLDEN = "golden.npz"
MANIFEST = "manifest.json"
RESOLUTIONS = "resolutions"
"""Folder within an artifact for the graphs of other input sizes; they do not ship."""


def list_files(folder: Path) -> tuple[FileEntry, ...]:
    """Return every file below `folder` but the manifest, hashed."""
    return tuple(
        FileEntry(path=name, sha256=sha256_file(folder / name), size_bytes=(folder / name).stat().st_size,
                  deployed=name != GOLDEN and PurePosixPath(name).parts[0] != RESOLUTIONS)
        for name in _below(folder))


def _below(folder: Path) -> list[str]:
    """Return the paths of everything below `folder` that is no folder, but the manifest; links are not followed."""
    found = []
    for root, folders, files in os.walk(folder):
        place = Path(root)
        links = [name for name in folders if (place / name).is_symlink()]
        found += [(place / name).relative_to(folder).as_posix() for name in (*files, *links)]
    return sorted(name for name in found if name != MANIFEST)


def write_manifest(folder: Path, artifact: Artifact) -> None:
    """Write the manifest: the folder is an artifact from then on."""
    write_sealed(folder / MANIFEST, artifact)


def is_artifact(path: Path) -> bool:
    """Return whether `path` is an artifact folder."""
    return (path / MANIFEST).is_file()


def verify(folder: Path) -> Artifact:
    """Return the manifest after checking that it is whole and that the folder holds its files, unchanged, and no other.

    Raises:
        InvalidInput: A file is missing, altered, unlisted or a link that leads out of the folder; the manifest was
            altered, names a file that it does not list, or is not there.
    """
    artifact = load_artifact(folder)
    manifest = folder / MANIFEST
    again = "restore the file, or export again"
    listed = {entry.path for entry in artifact.files}
    named = {"entry": artifact.entry, "golden": artifact.golden,
             **{f"resolutions[{k}].entry": one.entry for k, one in enumerate(artifact.resolutions)}}
    for what, name in named.items():
        if name is not None and name not in listed:
            raise InvalidInput(f"{manifest}: {what} {name!r} is not one of its files", again)
    strangers = sorted(set(_below(folder)) - listed)
    if strangers:
        rest = f" and {len(strangers) - 1} more" if len(strangers) > 1 else ""
        raise InvalidInput(f"{folder / strangers[0]}{rest} is not listed in {MANIFEST}",
                           "move it out of the artifact folder, or export again")
    root = folder.resolve()
    for entry in artifact.files:
        path = folder / entry.path
        if path.is_symlink() and not path.resolve().is_relative_to(root):
            raise InvalidInput(f"{path} is a link that leads out of the artifact folder",
                               "copy the folder with its files instead of links: cp -rL")
        if not path.is_file():
            raise InvalidInput(f"{path} is missing; the manifest lists it with {entry.size_bytes} bytes",
                               "copy the whole artifact folder, external data included, or export again")
        digest = sha256_file(path)
        if digest != entry.sha256:
            raise InvalidInput(f"{path} was changed after export: expected SHA-256 {entry.sha256[:12]}…, "
                               f"got {digest[:12]}…", again)
    # Earlier versions sealed the digest alone.
    if artifact.sealed not in (seal_of(read_json(manifest)), artifact.digest):
        raise InvalidInput(f"{manifest} was changed after export: its seal does not match", again)
    return artifact


def golden_inputs(folder: Path, artifact: Artifact) -> tuple[Feeds, Feeds] | None:
    """Return the golden inputs (N, 3, H, W) and outputs (N, K) by tensor name; None where the artifact has none."""
    if artifact.golden is None:
        return None
    file = folder / artifact.golden
    try:
        refuse_unfit(file)
        with np.load(file, allow_pickle=False) as stored:
            return {artifact.inputs[0].name: stored["inputs"]}, {artifact.outputs[0].name: stored["outputs"]}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InvalidInput(f"cannot read the golden tensors {file}: {error}", "export again") from error


def meaning(folder: Path, artifact: Artifact) -> ScoredOutput:
    """Return what the scored output holds; where the manifest does not say it, what the golden outputs look like."""
    golden = None if artifact.scored is not None else golden_inputs(folder, artifact)
    return outputs.recognised(artifact, next(iter(golden[1].values())) if golden else None)


def golden_difference(folder: Path, artifact: Artifact, open_session: Callable[[int], Session]) -> float | None:
    """Return the largest absolute difference from the outputs at export, or None without golden tensors.

    Raises:
        CannotMeasure: The outputs differ so much that the top class of a golden input changes for FP32.
    """
    golden = golden_inputs(folder, artifact)
    if golden is None:
        return None
    feeds, expected = golden
    name, exported = next(iter(expected.items()))
    batch = session_batch(artifact.recipe, artifact.inputs[0].shape[0], len(exported))
    got = run_batches(open_session, feeds, batch)[name]
    difference = outputs.largest_difference(got, exported)
    if not np.isfinite(difference):
        raise CannotMeasure(f"{folder}: golden inputs give NaN or infinity here, and did not at export",
                            "this runtime does not compute the exported model: compare its version with the manifest's "
                            "tools")
    rows = [outputs.scores(values, outputs.assumed(artifact)) for values in (got, exported)]
    if artifact.recipe.precision == "fp32" and (rows[0].argmax(1) != rows[1].argmax(1)).any() \
            and difference > 1e-3 * max(1.0, outputs.magnitude(exported)):
        raise CannotMeasure(
            f"{folder}: golden inputs give other classes here than at export (largest difference {difference:.3g})",
            "this runtime does not compute the exported model: compare its version with the manifest's tools")
    return difference


def fixed_batch(artifact: Artifact) -> int | None:
    """Return the batch size that is fixed in the model; None where it may vary."""
    first = artifact.inputs[0].shape[0]
    return first if isinstance(first, int) else None


def session_batch(recipe: Recipe, first: int | str, wanted: int) -> int:
    """Return how many images a session is opened for, so that a built engine takes them; fewer are padded.

    Args:
        recipe: Its ``[build]`` table bounds the batches of its engines.
        first: First dimension of the model's input: a number where it is fixed, which then counts.
        wanted: Images to run.
    """
    if isinstance(first, int):
        return first
    if recipe.build is None:
        return wanted
    low, _, high = recipe.build.batches
    return min(max(wanted, low), high)


def run_batches(open_session: Callable[[int], Session], feeds: Feeds, batch: int) -> dict[str, np.ndarray]:
    """Return the outputs for all rows of `feeds`, run in batches of exactly `batch`, the last one padded."""
    session = open_session(batch)
    name, rows = next(iter(feeds.items()))
    collected: dict[str, list[np.ndarray]] = {}
    for start in range(0, len(rows), batch):
        for key, value in session.infer({name: pad(rows[start:start + batch], batch)}).items():
            collected.setdefault(key, []).append(np.array(value[: len(rows) - start]))
    return {key: np.concatenate(values) for key, values in collected.items()}


def pad(rows: np.ndarray, batch: int) -> np.ndarray:
    """Return `rows` filled up to `batch` by repeating the last one."""
    missing = batch - len(rows)
    return np.ascontiguousarray(rows if missing <= 0 else np.concatenate([rows, np.repeat(rows[-1:], missing, axis=0)]))
