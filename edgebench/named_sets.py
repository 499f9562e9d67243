"""The benchmark sets whose protocol is known, by their places in a data root; what a root holds, and what it lacks."""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np

from edgebench import class_subsets
from edgebench.corruptions import CORRUPTIONS
from edgebench.datasets import (
    CUE_CONFLICT,
    DEMO,
    IMAGENET_A,
    IMAGENET_C,
    IMAGENET_HARD,
    IMAGENET_R,
    IMAGENET_SKETCH,
    IMAGENET_V2,
    IMAGENET_VAL,
    MAX_UNREADABLE,
    ImageSet,
    Item,
    describe,
    doubts,
    imagenet_wnids,
    labelled_folder,
    open_images,
)
from edgebench.errors import InvalidInput, MissingDependency, UsageError
from edgebench.files import read_text
from edgebench.imagecache import fault
from edgebench.pug import MAP_FILE, SUBSETS, check_map, read_map
from edgebench.walk import FOREIGN, LOOSE, PassedOver, entries, is_folder, printable, told, top_level, walk

PUG, VTAB, OOD = "pug", "vtab", "ood"
SPLITS = ("train800", "val200", "test")
_CLASSES_OF = {IMAGENET_A: frozenset(class_subsets.IMAGENET_A), IMAGENET_R: frozenset(class_subsets.IMAGENET_R)}
_CUE_CONFLICT_FILE = re.compile(r"[a-z]+\d+-[a-z]+\d+\.png")
_ROOT_HINT = "pass a data root, or a folder of the form ROOT/<class>/<image>"
_FLAT_MAPS = ("imagenet_2012_validation_synset_labels.txt", "synset_labels.txt")


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Where a set lies in a data root, and how large it was published."""

    name: str
    folders: tuple[str, ...]
    """Accepted places, relative to the data root."""
    expected: str
    """The form of its content, for people."""
    images: int | None
    """As published; None where that varies."""
    classes: int | None
    open: Callable[[Path], tuple[ImageSet, ...]]
    """Takes its folder, or where it has parts, the folder of one."""
    serves: str
    """The properties that need it."""
    parts: Callable[[Path], list[Path]] = lambda folder: [folder]
    """The folders in its folder that can be used each without the others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unfit:
    """A set, or a part of one, that lies in a data root against the rules of its layout."""

    name: str
    serves: str
    error: InvalidInput


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What a data root holds of one set."""

    name: str
    state: str
    """``complete``, ``partial``, ``missing`` or ``unusable``."""
    where: str
    """The folder, or where it is expected."""
    images: int
    published: int | None
    classes: int
    digest: str
    """SHA-256 over the class folders' names and the labels they stand for, in order; empty where there are none."""
    note: str
    serves: str


def open_sets(location: str) -> tuple[ImageSet, ...]:
    """Return every image set at `location`: those that a data root holds, or the one that it is itself.

    Raises:
        UsageError: No such folder.
        InvalidInput: A set without class folders with images, or against the rules of its layout.
    """
    found, unfit = fit_sets(location)
    if unfit:
        raise unfit[0].error
    return found


def fit_sets(location: str) -> tuple[tuple[ImageSet, ...], tuple[Unfit, ...]]:
    """Return what `open_sets` does, and beside it the sets of a data root that cannot be used.

    Raises:
        UsageError: No such folder.
        InvalidInput: Nothing can be used.
    """
    root = Path(location)
    if location != DEMO and is_folder(location, _ROOT_HINT):
        opened = [_open(layout, folder) for layout, folder in _places(root)]
        found = tuple(one for there, _ in opened for one in there)
        unfit = tuple(one for _, faulty in opened for one in faulty)
        if found:
            foreign = _foreign(root)
            return (replace(found[0], passed_over=(*found[0].passed_over, *foreign)), *found[1:]), unfit
        if unfit:
            raise unfit[0].error
        itself = next((layout for layout in LAYOUTS
                       if {root.name, root.resolve().name} & set(layout.folders) and _fits(layout, root)
                       and _is_certain(layout, root)), None)
        if itself is not None:
            found, unfit = _open(itself, root)
            if not found and unfit:
                raise unfit[0].error
            return found, unfit
    return (open_images(location),), ()


def _open(layout: Layout, folder: Path) -> tuple[tuple[ImageSet, ...], tuple[Unfit, ...]]:
    """Return the sets of a layout's folder, and those that cannot be used; one where all parts have the same fault."""
    found: list[ImageSet] = []
    unfit: dict[str, Unfit] = {}
    try:
        for part in layout.parts(folder):
            try:
                found += layout.open(part)
            except InvalidInput as error:
                name = layout.name if part == folder or error.message in unfit else f"{layout.name}/{part.name}"
                unfit[error.message] = Unfit(name=name, serves=layout.serves, error=error)
    except InvalidInput as error:
        unfit[error.message] = Unfit(name=layout.name, serves=layout.serves, error=error)
    return tuple(found), tuple(unfit.values())


def open_ood(location: str) -> ImageSet:
    """Return the images below a folder, as images that the model was not made for; their folders mean nothing.

    Raises:
        UsageError: No such folder.
        InvalidInput: No images in it.
    """
    root = Path(location)
    hint = "--ood takes a folder with images that the model was not made for"
    if not is_folder(location, hint):
        raise UsageError(f"no such folder: {location}", hint)
    return _ood(root)


def check(location: str) -> tuple[Finding, ...]:
    """Return what a data root holds, lacks, and how it differs from what was published; one row per known set.

    A folder that is no data root gives one row: the labelled image folder that it is.

    Raises:
        UsageError: No such folder.
    """
    root = Path(location)
    there = dict(_by_name(root)) if location != DEMO and is_folder(location, _ROOT_HINT) else {}
    if not there:
        return tuple(_finding(images) for images in open_sets(location))
    return (*(_look(layout, root, there.get(layout.name)) for layout in LAYOUTS), *_annotations(root))


def _annotations(root: Path) -> Iterator[Finding]:
    """Say where the labels beside the images come from: ReaL's, and ImageNet-X's."""
    from edgebench.properties import mistakes, robustness

    labels = robustness.real_labels_at_hand(root / "imagenet" / "val")
    with_some = sum(1 for one in labels or () if one)
    yield Finding(
        name="ReaL labels", state="missing" if labels is None else "complete" if with_some == 46_837 else "partial",
        where=str(root / "real.json"), images=with_some, published=46_837, classes=0, digest="",
        serves="accuracy, robustness", note="images with a label" if labels is not None else
        f"expected {root / 'real.json'}, or the package imagenet-x")
    try:
        folder = mistakes.annotation_folder(root / "imagenet" / "val")
        noted = mistakes.load_annotations(folder)
    except (InvalidInput, MissingDependency) as error:
        yield Finding(name="ImageNet-X", state="missing", where=str(root / "imagenet-x"), images=0, published=46_110,
                      classes=0, digest="", note=f"{error.message}; {error.hint}", serves="mistakes")
        return
    yield Finding(name="ImageNet-X", state="complete" if len(noted.number) == 46_110 else "partial", where=str(folder),
                  images=len(noted.number), published=46_110, classes=0, digest="", serves="mistakes",
                  note="annotated images without prototypes")


def _by_name(root: Path) -> Iterator[tuple[str, Path]]:
    for layout, folder in _places(root):
        yield layout.name, folder


def _places(root: Path) -> list[tuple[Layout, Path]]:
    found: list[tuple[Layout, Path]] = []
    certain = False
    for layout in LAYOUTS:
        folder = next((root / place for place in layout.folders
                       if (root / place).is_dir() and _fits(layout, root / place)), None)
        if folder is not None:
            found.append((layout, folder))
            certain = certain or _is_certain(layout, folder)
    # A set that only its name shows may as well be a class of the user's own: then other folders lie beside it.
    if certain or (found and not _foreign(root) and any(layout.name != OOD for layout, _ in found)):
        return found
    return []


def _foreign(root: Path) -> tuple[PassedOver, ...]:
    """Return the folders of a data root that are no set's, and images that lie loose in it."""
    places = {place.partition("/")[0] for layout in LAYOUTS for place in layout.folders} | {"imagenet-x"}
    folders, beside = top_level(root)
    return (*(PassedOver(reason=FOREIGN, path=folder.name) for folder in folders if folder.name not in places),
            *(one for one in beside if one.reason == LOOSE))


def _is_certain(layout: Layout, folder: Path) -> bool:
    """Return whether the content of a folder shows the set, not only its name."""
    names = [entry.name for entry in entries(folder)]
    wnids = set(imagenet_wnids())
    if layout.name in (IMAGENET_VAL, f"{OOD}/imagenet-o"):
        return any(name in wnids or name.startswith("ILSVRC2012_") for name in names)
    if layout.name == CUE_CONFLICT:
        return any(_CUE_CONFLICT_FILE.fullmatch(entry.name) for name in names if (folder / name).is_dir()
                   for entry in entries(folder / name))
    return layout.name != OOD


def _fits(layout: Layout, folder: Path) -> bool:
    """Return whether a folder of the right name also looks like the set: user's classes may have any name."""
    below = [entry.name for entry in entries(folder)]
    wnids = set(imagenet_wnids())
    if layout.name == IMAGENET_V2:
        return any(name in wnids or name.isdecimal() for name in below)
    if layout.name in (IMAGENET_A, IMAGENET_R, IMAGENET_SKETCH):
        return any(name in wnids for name in below)
    if layout.name == IMAGENET_C:
        return any((folder / name / "1").is_dir() or (folder / name / "5").is_dir() for name in below)
    if layout.name == IMAGENET_HARD:
        return "labels.jsonl" in below
    if layout.name == PUG:
        return MAP_FILE in below or any(name in SUBSETS for name in below)
    if layout.name == VTAB:
        return any((folder / task / f"test{suffix}").exists() for task in below for suffix in ("", ".npz"))
    return True


def _look(layout: Layout, root: Path, folder: Path | None) -> Finding:
    if folder is None:
        return Finding(name=layout.name, state="missing", where=f"{root / layout.folders[0]}", images=0,
                       published=layout.images, classes=0, digest="", note=f"expected {layout.expected}",
                       serves=layout.serves)
    sets, unfit = _open(layout, folder)
    faults = [f"{one.name} is left out: {one.error.message}; {one.error.hint}" for one in unfit]
    if not sets:
        return Finding(name=layout.name, state="unusable", where=str(folder), images=0, published=layout.images,
                       classes=0, digest="", note="; ".join(f"{one.error.message}; {one.error.hint}" for one in unfit),
                       serves=layout.serves)
    per_set = len(sets) if layout.name in (PUG, VTAB, OOD) else 1
    one = _finding(sets[0])
    images = sum(len(images.items) * (_benchmark(images.conditions) if images.conditions else 1) for images in sets)
    notes = [f"{per_set} sets: {', '.join(images.name for images in sets[:12])}"] if per_set > 1 else []
    if layout.images is not None and images != layout.images:
        notes.append(f"published with {layout.images:,} images")
    if layout.classes is not None and one.classes != layout.classes:
        notes.append(f"published with {layout.classes:,} classes")
    looked = [_faults(images) for images in sets]
    notes += [note for images in sets for note in _notes(images)] + [note for found, _ in looked for note in found]
    notes += faults
    sound = not faults and not any(found for found, _ in looked)
    whole = sound and layout.images in (None, images) and layout.classes in (None, one.classes)
    return Finding(name=layout.name, state="complete" if whole else "partial", where=str(folder), images=images,
                   published=layout.images, classes=one.classes, digest=one.digest, note="; ".join(notes),
                   serves=layout.serves)


def _benchmark(conditions: Iterable[str]) -> int:
    """Return how many of ImageNet-C's conditions belong to the 15 x 5 that are counted as published."""
    return sum(1 for one in conditions if one.partition(":")[0] in CORRUPTIONS)


def _finding(images: ImageSet) -> Finding:
    from edgebench import properties

    facts = describe(images)
    serves = [name for name in properties.NAMES if properties.get(name).passes([images.name])]
    faults, unusable = _faults(images)
    return Finding(name=images.name, state="unusable" if unusable else "complete", where=images.source,
                   images=len(images.items), published=None,
                   classes=len(images.folders), digest=_class_digest(images), serves=", ".join(serves),
                   note="; ".join([f"{images.understood}; {facts['folders']}", *_notes(images), *faults]))


def _faults(images: ImageSet) -> tuple[list[str], bool]:
    """Return what the first bytes of the files show to be no images, for people, and whether that is too much."""
    faults = [(item, reason) for item in images.items if (reason := fault(item)) is not None]
    if not faults:
        return [], False
    first, reason = faults[0]
    lost = set(images.folders) - {item.folder for item in set(images.items) - {item for item, _ in faults}}
    note = f"{len(faults)} files are no images, the first: {printable(first.id)}: {reason}"
    if lost:
        note += f"; no image of class {printable(min(lost))!r} can be decoded"
    return [note], bool(lost) or len(faults) > max(1, MAX_UNREADABLE * len(images.items))


def _notes(images: ImageSet) -> list[str]:
    return [one.message.removeprefix(f"{images.name}: ") for one in doubts(images)]


def _class_digest(images: ImageSet) -> str:
    labels = {item.folder: item.labels for item in images.items}
    lines = [f"{folder} {' '.join(map(str, labels[folder] or ()))}".rstrip() for folder in sorted(labels)]
    return hashlib.sha256("\n".join(lines).encode(errors="surrogateescape")).hexdigest()


def _val(folder: Path) -> tuple[ImageSet, ...]:
    listing = next((place / name for place in (folder, folder.parent) for name in _FLAT_MAPS
                    if (place / name).is_file()), None)
    flat = [entry for entry in entries(folder) if fnmatchcase(entry.name, "ILSVRC2012_val_*.JPEG")]
    if not flat:
        return (labelled_folder(folder, IMAGENET_VAL, "data root with imagenet/val"),)
    if listing is None:
        raise InvalidInput(f"{folder} holds {len(flat)} images without class folders and no list of their classes",
                           f"put {_FLAT_MAPS[0]} beside them: line k has the WordNet id of file number k")
    wnids = read_text(listing, "WordNet ids").split()
    known = set(imagenet_wnids())
    if len(wnids) < 50_000 or not set(wnids) <= known:
        raise InvalidInput(f"{listing}: expected 50,000 WordNet ids, one per line, got {len(wnids)} lines")
    named = [(path, wnids[int(path.stem.rpartition("_")[2]) - 1]) for path in flat]
    folders, beside = top_level(folder)
    read = {path.name for path in flat}
    passed_over = (*(PassedOver(reason=FOREIGN, path=one.name) for one in folders),
                   *(one for one in beside if one.path not in read))
    return (ImageSet(name=IMAGENET_VAL, source=str(folder), passed_over=passed_over,
                     understood=f"data root with a flat imagenet/val: {len(flat)} images",
                     items=tuple(Item(id=f"{wnid}/{path.name}", path=path, folder=wnid) for path, wnid in named)),)


def _cue_conflict(folder: Path) -> tuple[ImageSet, ...]:
    return (labelled_folder(folder, CUE_CONFLICT, "data root with cue-conflict"),)


def _by_wnid(name: str) -> Callable[[Path], tuple[ImageSet, ...]]:
    return lambda folder: (_imagenet_labels(folder, name),)


def _v2(folder: Path) -> tuple[ImageSet, ...]:
    return (_imagenet_labels(folder, IMAGENET_V2, numbers=True),)


def _imagenet_labels(root: Path, name: str, *, numbers: bool = False) -> ImageSet:
    """Return the images below `root` as the set `name`, each labelled by its folder's name.

    That is a WordNet id, of the classes that the set has, or where `numbers`, the class index that it spells.
    """
    # By its place the set is known: its files may be called as the validation images are, as those of ImageNet-C.
    images = replace(labelled_folder(root, name, name), name=name)
    rank: dict[str, int] = {wnid: k for k, wnid in enumerate(imagenet_wnids())}
    of_set = _CLASSES_OF.get(name)
    labels: dict[str, int] = {}
    for folder in images.folders:
        if folder in rank and (of_set is None or rank[folder] in of_set):
            labels[folder] = rank[folder]
        elif numbers and folder.isdecimal() and int(folder) < len(rank):
            labels[folder] = int(folder)
        else:
            raise InvalidInput(f"{images.source}: folder {folder!r} is no class of {images.name}",
                               f"expected {'' if of_set is None else f'the {len(of_set)} '}WordNet ids"
                               + (" or numbers from 0 to 999" if numbers else "") + ": move other folders away")
    return replace(images, imagenet=True, understood=f"{name}: {len(images.items)} images in {len(labels)} classes",
                   items=tuple(replace(item, labels=(labels[item.folder],)) for item in images.items))


def _corrupted(folder: Path) -> tuple[ImageSet, ...]:
    conditions = {f"{kind.name}:{severity.name}": severity
                  for kind in _folders(folder)
                  for severity in _folders(kind) if severity.name in {"1", "2", "3", "4", "5"}}
    first = next(iter(conditions.values()))
    whole = _imagenet_labels(first, IMAGENET_C)
    return (replace(whole, source=str(folder), conditions=conditions,
                    understood=f"{IMAGENET_C}: {_benchmark(conditions)} of 75 conditions, {len(whole.items)} images in "
                               "the first"),)


def under(images: ImageSet, condition: str) -> ImageSet | None:
    """Return a set's images under a condition that lies on disk; None where that folder is not there."""
    folder = images.conditions.get(condition)
    if folder is None:
        return None
    return replace(_imagenet_labels(folder, images.name), source=images.source)


def _hard(folder: Path) -> tuple[ImageSet, ...]:
    listing = folder / "labels.jsonl"
    items = []
    for number, line in enumerate(listing.read_text(encoding="utf-8-sig", errors="replace").splitlines(), 1):
        try:
            row = json.loads(line)
            file, labels = str(row["file"]), tuple(int(label) for label in row["labels"])
        except (ValueError, KeyError, TypeError) as error:
            raise InvalidInput(f"{listing}, line {number}: expected {{\"file\": …, \"labels\": [class index, …]}}, "
                               f"got {line[:60]!r}") from error
        if not labels or not all(0 <= label < len(imagenet_wnids()) for label in labels):
            raise InvalidInput(f"{listing}, line {number}: expected class indices from 0 to 999, got {list(labels)}")
        path = (folder / file).resolve()
        if not path.is_relative_to(folder.resolve()):
            raise InvalidInput(f"{listing}, line {number}: {file} lies outside of {folder}")
        items.append(Item(id=file, path=path, folder=str(labels[0]), labels=labels))
    if not items:
        raise InvalidInput(f"{listing} is empty")
    return (ImageSet(name=IMAGENET_HARD, source=str(folder), items=tuple(items), imagenet=True,
                     understood=f"{IMAGENET_HARD}: {len(items)} images"),)


def _pug_subsets(folder: Path) -> list[Path]:
    there = [folder / subset for subset in SUBSETS if (folder / subset).is_dir()]
    if not there:
        raise InvalidInput(f"{folder} has none of the subsets {', '.join(SUBSETS)}")
    return there


def _pug_subset(folder: Path) -> tuple[ImageSet, ...]:
    mapping = read_map(folder.parent / MAP_FILE)
    images = labelled_folder(folder, f"{PUG}/{folder.name}", PUG)
    check_map(images.folders, mapping)
    return (replace(images, imagenet=True, items=tuple(
        replace(item, labels=mapping[item.folder]) for item in images.items)),)


def _vtab_task(task: Path) -> tuple[ImageSet, ...]:
    parts: dict[str, tuple[Item, ...]] = {}
    for split in SPLITS:
        if (task / f"{split}.npz").is_file():
            parts[split] = _array_items(task / f"{split}.npz")
        elif (task / split).is_dir():
            parts[split] = labelled_folder(task / split, task.name, VTAB).items
    missing = [split for split in SPLITS if split not in parts]
    if missing:
        raise InvalidInput(f"{task} has no {missing[0]}",
                           f"expected {task.name}/{{{','.join(SPLITS)}}}/<label>/<image>, or .npz with images and "
                           "labels")
    names = sorted({item.folder for items in parts.values() for item in items},
                   key=lambda name: (not name.isdecimal(), int(name) if name.isdecimal() else 0, name))
    rank = {name: k for k, name in enumerate(names)}
    return tuple(ImageSet(name=f"{VTAB}/{task.name}/{split}", source=str(task / split),
                          understood=f"{VTAB} {task.name}, {split}: {len(items)} images in {len(names)} classes",
                          items=tuple(replace(item, labels=(rank[item.folder],)) for item in items))
                 for split, items in parts.items())


def _array_items(file: Path) -> tuple[Item, ...]:
    try:
        # Opened here, for NumPy leaves a damaged file open.
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            labels, images = arrays["labels"], arrays["images"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InvalidInput(f"{file}: expected arrays images (N, H, W, 3) uint8 and labels (N,): {error}") from error
    shape = images.shape
    if len(shape) != 4 or shape[-1] != 3 or labels.shape != shape[:1] or images.dtype != np.uint8:
        raise InvalidInput(f"{file}: expected images (N, H, W, 3) uint8 and labels (N,), got {shape} {images.dtype} "
                           f"and {labels.shape}")
    return tuple(Item(id=f"{label}/{k:06d}", path=file, folder=str(label), row=k)
                 for k, label in enumerate(labels.tolist()))


def _ood(root: Path) -> ImageSet:
    below = walk(root)
    items = tuple(Item(id=path.relative_to(root).as_posix(), path=path, folder=OOD, labels=(0,))
                  for path in below.images)
    if not items:
        clause = told(below.passed_over)
        raise InvalidInput(f"{root} holds no images" + (f": {clause}" if clause else ""))
    name = root.resolve().name
    return ImageSet(name=f"{OOD}/{name}", source=str(root), items=items, passed_over=below.passed_over,
                    understood=f"out of distribution, {name}: {len(items)} images")


def _ood_parts(folder: Path) -> list[Path]:
    """Return the folders of foreign images, or the folder itself where images lie in it without any folder."""
    folders, beside = top_level(folder)
    loose = [one.path for one in beside if one.reason == LOOSE]
    if folders and loose:
        raise InvalidInput(f"{folder} holds {len(loose)} images beside its folders, the first: {printable(loose[0])}",
                           f"expected {OOD}/<name>/<image>: move them into a folder of their own")
    return list(folders) or [folder]


def _folders(root: Path) -> list[Path]:
    return list(top_level(root)[0])


LAYOUTS: Sequence[Layout] = (
    Layout(name=IMAGENET_VAL, folders=("imagenet/val",), images=50_000, classes=1000, open=_val,
           expected="imagenet/val/<wnid>/ILSVRC2012_val_########.JPEG",
           serves="accuracy, calibration, mistakes, robustness, transfer, invariance"),
    Layout(name=IMAGENET_V2, folders=("imagenet-v2", "imagenetv2", "imagenetv2-matched-frequency-format-val"),
           expected="imagenet-v2/<0…999>/<image>", images=10_000, classes=1000, open=_v2, serves="robustness"),
    Layout(name=IMAGENET_A, folders=("imagenet-a",), expected="imagenet-a/<wnid>/<image>", images=7_500, classes=200,
           open=_by_wnid(IMAGENET_A), serves="robustness"),
    Layout(name=IMAGENET_R, folders=("imagenet-r",), expected="imagenet-r/<wnid>/<image>", images=30_000, classes=200,
           open=_by_wnid(IMAGENET_R), serves="calibration, robustness"),
    Layout(name=IMAGENET_SKETCH, folders=("imagenet-sketch", "sketch"), expected="imagenet-sketch/<wnid>/<image>",
           images=50_889, classes=1000, open=_by_wnid(IMAGENET_SKETCH), serves="robustness"),
    Layout(name=IMAGENET_C, folders=("imagenet-c",), expected="imagenet-c/<corruption>/<1…5>/<wnid>/<image>",
           images=75 * 50_000, classes=1000, open=_corrupted, serves="robustness"),
    Layout(name=IMAGENET_HARD, folders=("imagenet-hard",), images=None, classes=None, open=_hard, serves="robustness",
           expected="imagenet-hard/labels.jsonl with one {\"file\": …, \"labels\": […]} per line, and the images"),
    Layout(name=CUE_CONFLICT, folders=("cue-conflict",), expected="cue-conflict/<shape>/<shapeN>-<textureM>.png",
           images=1_280, classes=16, open=_cue_conflict, serves="shape-bias"),
    Layout(name=PUG, folders=("pug_imagenet",), images=88_328, classes=151, open=_pug_subset, parts=_pug_subsets,
           serves="synthetic",
           expected=f"pug_imagenet/<Subset>/<ClassName>/<image> and pug_imagenet/{MAP_FILE}"),
    Layout(name=VTAB, folders=("vtab",), expected="vtab/<task>/{train800,val200,test}/<label>/<image>, or .npz",
           images=None, classes=None, open=_vtab_task, parts=_folders, serves="transfer"),
    Layout(name=f"{OOD}/imagenet-o", folders=("imagenet-o",), expected="imagenet-o/**/<image>", images=2_000,
           classes=None, open=lambda folder: (_ood(folder),), serves="robustness (out of distribution)"),
    Layout(name=OOD, folders=("ood",), expected="ood/<name>/**/<image>", images=None, classes=None,
           open=lambda folder: (_ood(folder),), parts=_ood_parts,
           serves="robustness (out of distribution)"),
)
