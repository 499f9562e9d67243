"""Labelled images: folders of a user's own, ImageNet-style folders, and the images of ``demo:inspection``.

Targets come from folder names through the model's class map, never from a folder's position.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from edgebench.errors import InvalidInput, UsageError, require, suggest
from edgebench.record import ClassMap, DatasetIdentity

SUFFIXES = frozenset({".jpeg", ".jpg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".gif"})
DEMO = "demo:inspection"
IMAGENET_VAL, CUE_CONFLICT = "imagenet-val", "cue-conflict"
IMAGENET_V2, IMAGENET_A, IMAGENET_R = "imagenet-v2", "imagenet-a", "imagenet-r"
IMAGENET_SKETCH, IMAGENET_C, IMAGENET_HARD = "imagenet-sketch", "imagenet-c", "imagenet-hard"
# Sets that only the property that knows their protocol may score. Names with a slash are parts of larger sets:
# ``pug/<Subset>``, ``vtab/<task>/<split>``, ``ood/<name>``.
SPECIAL = frozenset({CUE_CONFLICT, IMAGENET_V2, IMAGENET_A, IMAGENET_R, IMAGENET_SKETCH, IMAGENET_C, IMAGENET_HARD})
# Two sets are known by the names of all their files, wherever they lie.
_FILE_NAMES = {IMAGENET_VAL: re.compile(r"n\d{8}/ILSVRC2012_val_\d{8}\.JPEG"),
               CUE_CONFLICT: re.compile(r"([a-z]+)/\1\d+-[a-z]+\d+\.png")}


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One image: its stable name, where it lies, and the name of its class folder."""

    id: str
    path: Path
    folder: str
    labels: tuple[int, ...] | None = None
    """All class indices that count as right, where the set itself says them; None: the class map says it."""
    row: int | None = None
    """Which image of the array `path` this is; None: `path` is an image file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSet:
    """Images with class folders, before a model's class map gives them targets."""

    name: str
    source: str
    items: tuple[Item, ...]
    understood: str
    """How the location was understood, for the user."""
    imagenet: bool = False
    """`Item.labels` are ranks among ImageNet's 1,000 classes: only a model of these classes can be scored."""
    conditions: Mapping[str, Path] = field(default_factory=dict)
    """Folders of the conditions under which the images lie on disk; elsewhere conditions are made from the images."""

    @property
    def folders(self) -> tuple[str, ...]:
        """Distinct class folder names, sorted."""
        return tuple(sorted({item.folder for item in self.items}))


@lru_cache(maxsize=1)
def imagenet_wnids() -> tuple[str, ...]:
    """Return the 1,000 WordNet ids of ILSVRC-2012 in class order (sorted)."""
    return tuple(Path(__file__).with_name("imagenet_wnids.txt").read_text(encoding="utf-8").split())


def open_images(location: str) -> ImageSet:
    """Return the images at `location`: a labelled image folder, or ``demo:inspection`` (its test half).

    A labelled folder is ``ROOT/<class>/**/<image>``. Hidden folders and folders without images are passed over.

    Raises:
        UsageError: No such folder.
        InvalidInput: The folder holds no class folders with images.
    """
    if location == DEMO:
        return demo_images("test")
    if location.startswith("demo:"):
        raise UsageError(f"unknown data set {location!r}{suggest(location, [DEMO])}")
    root = Path(location)
    if not root.is_dir():
        raise UsageError(f"{location} is not a folder" if root.exists() else f"no such folder: {location}",
                         "pass a folder of the form ROOT/<class>/<image>")
    return labelled_folder(root, root.resolve().name, "labelled image folder")


def images_below(root: Path) -> tuple[Path, ...]:
    """Return every image file below `root`, sorted; hidden files and folders and ``__pycache__`` are passed over.

    Raises:
        InvalidInput: A folder cannot be read.
    """
    try:
        return tuple(path for path in sorted(root.rglob("*"))
                     if path.suffix.lower() in SUFFIXES and path.is_file()
                     and not any(part.startswith((".", "__")) for part in path.relative_to(root).parts))
    except OSError as error:
        raise InvalidInput(f"cannot read {error.filename or root}: {error.strerror}") from error


def labelled_folder(root: Path, name: str, understood: str) -> ImageSet:
    """Return the images of ``root/<class>/**`` under `name`, or under the known set's whose file names they have.

    Raises:
        InvalidInput: No class folders with images.
    """
    try:
        folders = sorted(entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith((".", "__")))
    except OSError as error:
        raise InvalidInput(f"cannot read {error.filename or root}: {error.strerror}") from error
    items = [Item(id=path.relative_to(root).as_posix(), path=path, folder=folder.name)
             for folder in folders for path in images_below(folder)]
    if not items:
        loose = sum(1 for entry in root.iterdir() if entry.suffix.lower() in SUFFIXES)
        raise InvalidInput(
            f"{root} has no class folders: expected {root.name}/<class>/<image>, got "
            + (f"{loose} images directly in it" if loose else "no images"),
            "sort the images into one folder per class")
    classes = len({item.folder for item in items})
    name = next((known for known, pattern in _FILE_NAMES.items() if all(pattern.fullmatch(item.id) for item in items)),
                name)
    return ImageSet(name=name, source=str(root), items=tuple(items),
                    understood=f"{understood}: {len(items)} images in {classes} classes")


def demo_images(part: str) -> ImageSet:
    """Return a fixed part of the 2,000 textile images of the package ``conformal-clip-data``.

    Args:
        part: ``test`` (every second image), ``fit`` (the others), or ``calibration`` (every fourth of ``fit``).

    Raises:
        MissingDependency: The package is not installed.
    """
    root = Path(require("conformal_clip_data", "demo").textile_simulated_root())
    everything = labelled_folder(root, "inspection", "").items
    chosen = {"test": everything[1::2], "fit": everything[0::2], "calibration": everything[0::8]}[part]
    classes = len({item.folder for item in chosen})
    return ImageSet(name=f"inspection-{part}", source=DEMO, items=chosen,
                    understood=f"{DEMO}, {part} part: {len(chosen)} images in {classes} classes")


def targets(images: ImageSet, classes: ClassMap | None, outputs: int) -> tuple[tuple[int, ...], ClassMap, bool]:
    """Return each image's class index, the class map used, and whether that map was assumed.

    Cue-conflict images get their shape category's rank, which nothing but identity uses.
    Folder names are looked up among the class ids, then (ignoring case, blanks and underscores) among the class
    names, then, where all folders are numbers, as class indices. A model without a class map gets ImageNet's where it
    has 1,000 outputs and the folders are WordNet ids, indices where all folders are numbers, and the sorted folder
    names where their number fits.

    Raises:
        InvalidInput: A folder is none of the model's classes.
    """
    folders = images.folders
    assumed = classes is None
    if images.items[0].labels is not None:
        return _own_labels(images, classes, outputs)
    if images.name == CUE_CONFLICT:
        _refuse_another_order(images, classes)
        # Shape categories are groups of ImageNet classes: the property reads them from the file names.
        return tuple(folders.index(item.folder) for item in images.items), classes or ClassMap(
            ids=folders, names=folders), False
    if classes is None:
        wnids = imagenet_wnids()
        if outputs == len(wnids) and set(folders) <= set(wnids):
            classes = ClassMap(ids=wnids, names=wnids)
        elif all(_is_index(folder, outputs) for folder in folders):
            classes = ClassMap(ids=tuple(map(str, range(outputs))), names=tuple(map(str, range(outputs))))
        elif all(folder.isdecimal() for folder in folders):
            raise InvalidInput(f"{images.source}: the folders are numbers, but not all are below {outputs}, the number "
                               "of the model's outputs", "count from 0, or pass --classes FILE")
        elif outputs == len(folders):
            classes = ClassMap(ids=folders, names=folders)
        else:
            raise InvalidInput(
                f"{images.source} has {len(folders)} class folders, the model has {outputs} outputs and no class map",
                "pass --classes FILE with one class per line, in the order of the outputs")
    if len(classes.ids) != outputs:
        raise InvalidInput(f"the class map has {len(classes.ids)} classes, the model {outputs} outputs",
                           "one line per output in the --classes file")
    index = {name: k for k, name in enumerate(classes.ids)}
    by_name: dict[str, list[int]] = {}
    for k, name in enumerate(classes.names):
        by_name.setdefault(_plain(name), []).append(k)
    numbers = all(_is_index(folder, outputs) for folder in folders)
    table: dict[str, int] = {}
    for folder in folders:
        named = by_name.get(_plain(folder), [])
        if folder not in index and len(named) > 1:
            raise InvalidInput(f"{images.source}: folder {folder!r} is the name of {len(named)} classes",
                               f"call it by its id: {', '.join(classes.ids[k] for k in named)}")
        found = index.get(folder, named[0] if named else None)
        if found is None and numbers:
            found = int(folder)
        if found is None:
            few = classes.ids if len(classes.ids) <= 8 else (*classes.ids[:6], "…")
            raise InvalidInput(
                f"{images.source}: folder {folder!r} is none of the model's {len(classes.ids)} classes"
                f"{suggest(folder, (*classes.ids, *classes.names))}",
                f"classes: {', '.join(few)}; rename the folder, or pass --classes FILE")
        table[folder] = found
    return tuple(table[item.folder] for item in images.items), classes, assumed


def accepted(images: ImageSet, classes: ClassMap, chosen: Sequence[int]) -> tuple[tuple[int, ...], ...] | None:
    """Return all class indices that are right for the images `chosen`; None where every image of the set has one.

    The sets in which an image may have several (ImageNet-Hard and PUG-ImageNet) never give None: a part of them in
    which none happens to have two is scored by the same rule.
    """
    several = images.name == IMAGENET_HARD or images.name.startswith("pug/")
    if not several and all(len(item.labels or ()) < 2 for item in images.items):
        return None
    place = _places(images, classes)
    return tuple(tuple(place[label] for label in images.items[k].labels or ()) for k in chosen)


def _own_labels(images: ImageSet, classes: ClassMap | None, outputs: int) -> tuple[tuple[int, ...], ClassMap, bool]:
    wnids = imagenet_wnids()
    assumed = images.imagenet and classes is None
    if images.imagenet and (outputs != len(wnids) or (classes is not None and set(classes.ids) != set(wnids))):
        what = f"{outputs} outputs" if outputs != len(wnids) else "a class map without their WordNet ids"
        raise InvalidInput(f"{images.name} needs a model with ImageNet's 1,000 classes; this one has {what}",
                           "leave the set away for this model")
    if images.name in (IMAGENET_A, IMAGENET_R):
        _refuse_another_order(images, classes)
    if classes is None:
        ids = wnids if images.imagenet else tuple(map(str, range(outputs)))
        classes = ClassMap(ids=ids, names=ids)
    place = _places(images, classes)
    return tuple(place[(item.labels or (0,))[0]] for item in images.items), classes, assumed


def _refuse_another_order(images: ImageSet, classes: ClassMap | None) -> None:
    """Refuse ImageNet's classes in another order for sets that are scored by the numbers of some of them."""
    wnids = imagenet_wnids()
    if classes is not None and set(classes.ids) == set(wnids) and tuple(classes.ids) != wnids:
        raise InvalidInput(f"{images.name} is scored by class numbers, and the model's classes are not in ImageNet's "
                           "usual order (WordNet ids sorted)", "export the model with its outputs in that order")


def _places(images: ImageSet, classes: ClassMap) -> Mapping[int, int]:
    """Return the model's output for each label of the set."""
    if not images.imagenet:
        return {label: label for item in images.items for label in item.labels or (0,)}
    index = {name: k for k, name in enumerate(classes.ids)}
    return {rank: index[wnid] for rank, wnid in enumerate(imagenet_wnids())}


def stratified(items: Sequence[Item], per_class: int) -> tuple[int, ...]:
    """Return indices of a fixed choice of the items: at most `per_class` of each folder.

    Which ones is decided by a hash of their ids: the same under every condition, on every machine, and for the images
    that stay when others are added.
    """
    folders: dict[str, list[int]] = {}
    for k, item in enumerate(items):
        folders.setdefault(item.folder, []).append(k)
    chosen: list[int] = []
    for members in folders.values():
        members.sort(key=lambda k: hashlib.sha256(items[k].id.encode(errors="surrogateescape")).digest())
        chosen += members[:per_class]
    return tuple(sorted(chosen))


def _is_index(folder: str, outputs: int) -> bool:
    return folder.isdecimal() and int(folder) < outputs


def _plain(name: str) -> str:
    return name.casefold().replace("_", " ").strip()


def identity(images: ImageSet, kept: Sequence[int], hashes: Sequence[str], wanted: Sequence[int]) -> DatasetIdentity:
    """Return the identity of the images `kept` (indices), from their file hashes and targets."""
    lines = "".join(f"{images.items[k].id} {hashes[k]} {' '.join(map(str, images.items[k].labels or [wanted[k]]))}\n"
                    for k in kept)
    return DatasetIdentity(name=images.name, source=images.source, images=len(kept),
                           classes=len({wanted[k] for k in kept}),
                           digest=hashlib.sha256(lines.encode(errors="surrogateescape")).hexdigest())


def describe(images: ImageSet) -> dict[str, str | int]:
    """Return how the images are understood, for people: kind, counts, class map and its digest."""
    per_class = Counter(item.folder for item in images.items)
    folders = images.folders
    known = set(imagenet_wnids())
    wnids = sum(1 for folder in folders if folder in known)
    if wnids == len(folders):
        kind = f"ImageNet WordNet ids: {wnids} of the 1,000 classes"
    elif all(folder.isdecimal() for folder in folders):
        kind = "class indices"
    else:
        kind = f"names ({', '.join(folders[:5])}{', …' if len(folders) > 5 else ''})"
    return {"understood as": images.understood, "images": len(images.items), "classes": len(folders),
            "smallest class": min(per_class.values()), "largest class": max(per_class.values()), "folders": kind,
            "class digest": hashlib.sha256("\n".join(folders).encode(errors="surrogateescape")).hexdigest()}
