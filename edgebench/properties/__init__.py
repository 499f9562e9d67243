"""Properties: each is the passes it needs, and a pure function from the predictions of those passes to scores.

A pass is one sweep of a data set under one condition and preset. Every property's passes are united before anything
runs, so that one sweep serves all of them, and every score can be recomputed from stored predictions without a device.
"""

from __future__ import annotations

import importlib
import re
import struct
import zipfile
import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, cast, get_args

import numpy as np
import numpy.typing as npt

from edgebench import arrays, metrics, outputs, temperature
from edgebench.datasets import IMAGENET_VAL, SPECIAL
from edgebench.errors import InvalidInput, MissingDependency, unknown
from edgebench.record import DatasetIdentity, Evaluation, OutputKind, Skip, sha256_once

NAMES = ("accuracy", "calibration", "mistakes", "shape-bias", "robustness", "transfer", "synthetic", "invariance")
PRESETS = ("native", "paper")
CLEAN = "clean"
PUBLISHED = SPECIAL | {IMAGENET_VAL}
"""Sets whose images are as everybody has them."""


@dataclass(frozen=True, slots=True, order=True)
class Pass:
    """One sweep: every image of `dataset`, changed by `condition`, preprocessed by `preset`."""

    dataset: str
    condition: str = CLEAN
    preset: str = "native"

    @property
    def file(self) -> str:
        """Path of the predictions file from the variant's folder."""
        parts = (re.sub(r"[:/\\\x00-\x1f\x7f]", "-", part) for part in (self.dataset, self.condition, self.preset))
        return f"predictions/{'--'.join(parts)}.npz"


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """What one pass gave, image by image."""

    dataset: DatasetIdentity
    logits: npt.NDArray[np.float32]
    """(N, K), of the `kind`; mapped from disk where they were loaded from there."""
    targets: npt.NDArray[np.int64]
    """(N,) class indices; what they mean beyond that is the property's business for sets that are not classified."""
    ids: npt.NDArray[np.str_]
    """(N,) stable names of the images within their data set, the same under every condition."""
    labels: npt.NDArray[np.int64] | None = None
    """(N, L) all accepted class indices per image, filled up with -1, for sets that accept several; else None."""
    features: npt.NDArray[np.float32] | None = None
    """(N, D) what the classifier's head reads, where the pass kept it; else None."""
    stored_outcomes: metrics.Outcomes | None = None
    """Where they were stored in compact form, instead of the logits: these then have no columns."""
    stored_within: tuple[int, ...] = ()
    """The classes whose logits alone those outcomes are of; empty where they are of all."""
    size_px: tuple[int, int] | None = None
    """Height and width of what the model saw; None where that was not stored."""
    kind: OutputKind = "logits"
    """What the logits are: probabilities lie there as their logarithms."""

    @property
    def compact(self) -> bool:
        """Whether only the outcomes were stored, not the logits."""
        return self.stored_outcomes is not None

    @cached_property
    def outcomes(self) -> metrics.Outcomes:
        """Per-image outcomes, computed once for all properties; among `stored_within` where that names classes."""
        return self.stored_outcomes or metrics.outcomes(self.logits, self.targets, self.kind)

    @cached_property
    def temperatures(self) -> temperature.Temperatures | None:
        """Temperatures of two halves of the images, split by their ids, fitted once for all; None without a minimum.

        Needs logits: not to be asked of what was stored in compact form.
        """
        return temperature.fit(self.logits, self.targets, temperature.halves(self.ids))

    def within(self, classes: Sequence[int]) -> Predictions:
        """Return the predictions among some of the model's classes alone: logits (N, C), targets counted among them.

        The paper scores ImageNet-A and ImageNet-R so.

        Raises:
            InvalidInput: A target is none of `classes`, the model has too few, or other outcomes were stored.
        """
        if self.compact and self.stored_within != tuple(classes):
            raise InvalidInput(f"{self.dataset.name}: the predictions were stored in compact form, among other classes",
                               "measure again with --force")
        logits = self.logits if self.compact else metrics.among(self.logits, classes, self.dataset.name)
        targets = metrics.place_among(self.targets, classes, self.dataset.name)
        return replace(self, logits=logits, targets=targets, stored_within=(),
                       kind=self.kind if self.compact else metrics.kind_among(self.kind))


_ARRAYS = frozenset({"logits", "features", "targets", "ids", "dataset", "artifact", "size_px", "within", "labels",
                     "kind", *(f"outcomes_{one.name}" for one in fields(metrics.Outcomes))})
"""What a predictions file may hold."""
_ROWS = 4096
"""Images whose logits are in memory at once while they are checked."""


class Property(Protocol):
    """What a property's module offers."""

    SUMMARY: str
    NEEDS: str
    """The data without which there is nothing to score, for the reason of a skip."""

    def passes(self, datasets: Sequence[str], preset: str = "native") -> tuple[Pass, ...]:
        """Return the passes needed on the data sets at hand (their names)."""

    def score(self, predictions: Mapping[Pass, Predictions], reference: Mapping[Pass, Predictions] | None,
              ) -> tuple[Evaluation, ...]:
        """Return the scores of the passes, and where a reference's predictions are given, the paired ones."""


def get(name: str) -> Property:
    """Return the property of that name.

    Raises:
        UsageError: There is none.
    """
    if name not in NAMES:
        raise unknown("property", name, NAMES)
    return cast("Property", cast("Any", importlib.import_module(f"edgebench.properties.{name.replace('-', '_')}")))


def names(chosen: Sequence[str]) -> tuple[str, ...]:
    """Return the property names behind ``all``, ``none`` or a list of names, in the order of `NAMES`.

    Raises:
        UsageError: An unknown name.
    """
    if list(chosen) == ["all"]:
        return NAMES
    if list(chosen) == ["none"]:
        return ()
    for name in chosen:
        get(name)
    return tuple(name for name in NAMES if name in chosen)


def usable(asked: Sequence[str], locations: Sequence[str]) -> tuple[tuple[str, ...], tuple[Skip, ...]]:
    """Return the chosen properties that can be scored here, and the others with the reason.

    Args:
        asked: As for `names`.
        locations: Data locations, where a property may find what it needs beside the images.

    Raises:
        UsageError: An unknown name.
        MissingDependency: A property was asked for by its name and misses a package.
    """
    chosen = names(asked)
    skips = []
    for name in chosen:
        try:
            _require(name, locations)
        except MissingDependency as error:
            if list(asked) != ["all"]:
                raise
            skips.append(Skip(what=name, reason=f"{error.message}; {error.hint}", subject="property",
                              code="missing-package"))
    absent = {skip.what for skip in skips}
    return tuple(name for name in chosen if name not in absent), tuple(skips)


def _require(name: str, locations: Sequence[str]) -> None:
    if name == "mistakes":
        from edgebench.properties import mistakes

        # Scores are computed from the images' own root: a copy in a root without the images is of no use.
        images = [Path(one) / "imagenet" / "val" for one in locations]
        mistakes.annotation_folder(*[one for one in images if one.is_dir()] or images)
    elif name == "transfer":
        from edgebench import probe

        probe.refuse_absent_packages()


def is_plain(dataset: str) -> bool:
    """Return whether a data set is the user's own labelled images or ImageNet's validation set: no special protocol."""
    return "/" not in dataset and dataset not in SPECIAL


def labelled(datasets: Sequence[str], preset: str = "native") -> tuple[Pass, ...]:
    """Return the clean pass over every plain data set."""
    return tuple(Pass(dataset, CLEAN, preset) for dataset in datasets if is_plain(dataset))


def united_passes(chosen: Sequence[str], datasets: Sequence[str], preset: str = "native") -> tuple[Pass, ...]:
    """Return every distinct pass that the chosen properties need, clean ones first."""
    needed = {one for name in chosen for one in get(name).passes(datasets, preset)}
    return tuple(sorted(needed, key=lambda one: (one.condition != CLEAN, one)))


def load_predictions(path: Path, dataset: DatasetIdentity, artifact_digest: str, sha256: str | None = None,
                     ) -> Predictions:
    """Read a predictions file.

    Args:
        path: The npz file.
        dataset: The images that it must be of.
        artifact_digest: The artifact that must have answered.
        sha256: Of the file, as the run carries it; it is compared once per process. None: the archive's own checksums
            are compared.

    Raises:
        InvalidInput: Missing, cut short, changed after the run was written, holding NaN, or of other images or
            another artifact than named.
    """
    if sha256 is not None and path.is_file() and sha256_once(path) != sha256:
        raise InvalidInput(f"{path} was changed after the run was written: its SHA-256 is not the run's",
                           "restore the file, or measure again with --force")
    try:
        arrays.refuse_unfit(path, _ARRAYS)
        if sha256 is None:
            _refuse_damaged(path)
        with np.load(path, allow_pickle=False) as content:
            names = set(content.files)
            stored, kind = None, _kind(content)
            if "logits" not in names:
                columns = {one.name: content[f"outcomes_{one.name}"] for one in fields(metrics.Outcomes)
                           if one.name != "kind"}
                stored = metrics.Outcomes(**{**columns, "classes": int(columns["classes"]), "kind": kind or "logits"})
            within = tuple(content["within"].tolist()) if "within" in names else ()
            found = Predictions(
                dataset=dataset, targets=content["targets"], ids=content["ids"], stored_outcomes=stored,
                stored_within=within,
                logits=np.empty((len(content["targets"]), 0), np.float32) if stored else _mapped(path, "logits"),
                labels=content["labels"] if "labels" in names else None,
                features=_mapped(path, "features") if "features" in names else None)
            height, width = content["size_px"].tolist() if "size_px" in names else (0, 0)
            found = replace(found, size_px=(height, width)) if height else found
            found = replace(found, kind=kind) if kind is not None else _recognised(found)
            made_with = str(content["dataset"]), str(content["artifact"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error, struct.error) as error:
        raise InvalidInput(f"cannot read the predictions {path}: {error}", "measure again with --resume") from error
    n = dataset.images
    lengths = {len(found.logits), len(found.targets), len(found.ids), len(stored) if stored else n}
    if made_with != (dataset.digest, artifact_digest) or lengths != {n}:
        raise InvalidInput(f"{path} holds predictions of another artifact or other images than the run file says",
                           "measure again with --force")
    if sha256 is None and any(np.isnan(found.logits[start:start + _ROWS]).any() for start in range(0, n, _ROWS)):
        raise InvalidInput(f"{path}: the logits hold NaN", "measure again with --force")
    return found


def _kind(arrays: Any) -> OutputKind | None:
    """Return what stored logits are; None where a version wrote them that did not look."""
    if "kind" not in arrays.files:
        return None
    kind = str(arrays["kind"])
    if kind not in get_args(OutputKind):
        raise ValueError(f"unknown kind of outputs {kind!r}")
    return cast("OutputKind", kind)


def _recognised(found: Predictions) -> Predictions:
    """Return predictions whose file does not say what they are, probabilities among them as their logarithms."""
    if found.compact or not all(outputs.look_like_probabilities(found.logits[rows])
                                for rows in metrics.row_blocks(len(found.logits))):
        return found
    with np.errstate(divide="ignore"):
        return replace(found, kind="probabilities", logits=np.log(found.logits))


def _refuse_damaged(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        broken = archive.testzip()
    if broken is not None:
        raise zipfile.BadZipFile(f"{broken} is damaged")


def _mapped(path: Path, name: str) -> npt.NDArray[np.float32]:
    """Return an array of an uncompressed npz file without reading it: pages come from disk when they are used."""
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        entry = archive.getinfo(f"{name}.npy")
        if entry.compress_type != zipfile.ZIP_STORED:
            with archive.open(entry) as member:
                return cast("npt.NDArray[np.float32]", np.lib.format.read_array(member, allow_pickle=False))
        # The local header repeats the name and may carry another extra field than the directory.
        file.seek(entry.header_offset + 26)
        name_bytes, extra_bytes = struct.unpack("<HH", file.read(4))
        file.seek(name_bytes + extra_bytes, 1)
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError(f"{name} is in a newer array format")
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
        return np.memmap(path, dtype, "r", file.tell(), shape, "F" if fortran else "C")


def paired(predictions: Predictions, reference: Mapping[Pass, Predictions] | None, key: Pass) -> Predictions | None:
    """Return the reference's predictions of the same images, or None.

    Raises:
        InvalidInput: The reference saw other images: pairing them would be wrong.
    """
    if reference is None or key not in reference:
        return None
    other = reference[key]
    if other.dataset.digest != predictions.dataset.digest:
        raise InvalidInput(f"{key.dataset}: the reference was evaluated on other images "
                           f"(digest {other.dataset.digest[:12]}… against {predictions.dataset.digest[:12]}…)",
                           "evaluate both on the same images")
    return other


def shared_ids(some: npt.NDArray[np.str_], others: npt.NDArray[np.str_]) -> npt.NDArray[np.str_]:
    """Return the names that both have; in the order of the first where they are the same, else sorted."""
    return some if np.array_equal(some, others) else np.intersect1d(some, others)


def rows_of(names: npt.NDArray[np.str_], ids: npt.NDArray[np.str_]) -> npt.NDArray[np.int64] | None:
    """Return where each of `ids` (M,) stands in `names` (N,); None where not all are there."""
    if np.array_equal(names, ids):
        return np.arange(len(ids))
    order = np.argsort(names)
    rows: npt.NDArray[np.int64] = order[np.searchsorted(names, ids, sorter=order).clip(max=len(order) - 1)]
    return rows if np.array_equal(names[rows], ids) else None


def narrowed(found: Predictions, ids: npt.NDArray[np.str_], dataset: DatasetIdentity) -> Predictions:
    """Return the predictions of some of the images alone, in the order of `ids`; they are read into memory.

    Args:
        found: Of all images.
        ids: Which of them.
        dataset: What these are called.

    Raises:
        InvalidInput: One of them was not seen.
    """
    rows = rows_of(found.ids, ids)
    if rows is None:
        raise InvalidInput(f"{found.dataset.name}: the other run did not see all of these {len(ids)} images",
                           "evaluate both on the same images")
    return replace(
        found, dataset=dataset, logits=found.logits[rows], targets=found.targets[rows], ids=found.ids[rows],
        labels=None if found.labels is None else found.labels[rows],
        features=None if found.features is None else found.features[rows],
        stored_outcomes=None if found.stored_outcomes is None else found.stored_outcomes.take(rows))


def aligned(reference: Mapping[Pass, Predictions], mine: Mapping[Pass, Predictions],
            parts: Collection[Pass]) -> dict[Pass, Predictions]:
    """Return a reference's predictions, those of the passes that stopped early (`parts`) on the images of `mine`."""
    return {key: narrowed(found, mine[key].ids, mine[key].dataset) if key in parts and key in mine else found
            for key, found in reference.items()}
