"""Labelled images: folders of a user's own, ImageNet-style folders, and the images of ``demo:inspection``.

Targets come from folder names through the model's class map, never from a folder's position.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

from edgebench.errors import InvalidInput, UsageError, require, suggest
from edgebench.record import Caveat, ClassMap, DatasetIdentity
from edgebench.walk import (
    DANGLING,
    EMPTY,
    HIDDEN,
    LOOP,
    LOOSE,
    LOST,
    UNREAD,
    PassedOver,
    is_folder,
    printable,
    told,
    top_level,
    walk,
)

DEMO = "demo:inspection"
IMAGENET_VAL, CUE_CONFLICT = "imagenet-val", "cue-conflict"
IMAGENET_V2, IMAGENET_A, IMAGENET_R = "imagenet-v2", "imagenet-a", "imagenet-r"
IMAGENET_SKETCH, IMAGENET_C, IMAGENET_HARD = "imagenet-sketch", "imagenet-c", "imagenet-hard"
# Sets that only the property that knows their protocol may score. Names with a slash are parts of larger sets:
# ``pug/<Subset>``, ``vtab/<task>/<split>``, ``ood/<name>``.
SPECIAL = frozenset({CUE_CONFLICT, IMAGENET_V2, IMAGENET_A, IMAGENET_R, IMAGENET_SKETCH, IMAGENET_C, IMAGENET_HARD})
RESERVED = SPECIAL | {IMAGENET_VAL}
"""Names under which a user's own folder is never evaluated."""
# Two sets are known by the names of all their files, wherever they lie.
_FILE_NAMES = {IMAGENET_VAL: re.compile(r"n\d{8}/ILSVRC2012_val_\d{8}\.JPEG"),
               CUE_CONFLICT: re.compile(r"([a-z]+)/\1\d+-[a-z]+\d+\.png")}
_BACKGROUND = frozenset({"background", "dummy", "none", "void", "???"})
# Above this share of images that cannot be read the data set itself is in doubt.
MAX_UNREADABLE = 0.01
_SPLIT = re.compile(r"(train(ing|val)?|val(id|idation)?|test(ing)?|dev|eval(uation)?)"
                    r"[-_ ]?(set|data|split|images|imgs|\d{1,4})?|hold[-_ ]?out|held[-_ ]?out|(fold|split)[-_ ]?\d+")


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
    passed_over: tuple[PassedOver, ...] = ()
    """What lies in the folder and was not read."""

    @property
    def folders(self) -> tuple[str, ...]:
        """Distinct class folder names, sorted."""
        return tuple(sorted({item.folder for item in self.items}))


class TwoReadings(InvalidInput):
    """Class folders that can be read in several ways, each of which gives other targets.

    Args:
        message: As for every error.
        hint: As for every error.
        readings: The class index of each folder, by what the reading is called.
    """

    def __init__(self, message: str, hint: str, readings: Mapping[str, Mapping[str, int]]) -> None:
        super().__init__(message, hint)
        self.readings = readings


@lru_cache(maxsize=1)
def imagenet_wnids() -> tuple[str, ...]:
    """Return the 1,000 WordNet ids of ILSVRC-2012 in class order (sorted)."""
    return tuple(Path(__file__).with_name("imagenet_wnids.txt").read_text(encoding="utf-8").split())


def open_images(location: str) -> ImageSet:
    """Return the images at `location`: a labelled image folder, or ``demo:inspection`` (its test half).

    A labelled folder is ``ROOT/<class>/**/<image>``. What is passed over stands in the set's account.

    Raises:
        UsageError: No such folder.
        InvalidInput: The folder holds no class folders with images.
    """
    if location == DEMO:
        return demo_images("test")
    if location.startswith("demo:"):
        raise UsageError(f"unknown data set {location!r}{suggest(location, [DEMO])}")
    root, hint = Path(location), "pass a folder of the form ROOT/<class>/<image>"
    if not is_folder(location, hint):
        raise UsageError(f"{location} is not a folder" if root.exists() else f"no such folder: {location}", hint)
    name = root.resolve().name or "images"
    # By a benchmark's name alone a folder is none: its images would be scored by another protocol, or not at all.
    return labelled_folder(root, f"own-{name}" if name in RESERVED else name, "labelled image folder")


def labelled_folder(root: Path, name: str, understood: str) -> ImageSet:
    """Return the images of ``root/<class>/**`` under `name`, or under the known set's whose file names they have.

    Raises:
        InvalidInput: No class folders with images, a class all of whose images are passed over, splits in the place of
            classes, or something that cannot be read.
    """
    folders, beside = top_level(root)
    account = list(beside)
    items: list[Item] = []
    lost: list[tuple[str, tuple[PassedOver, ...]]] = [
        (one.path, (one,)) for one in beside if one.reason in (DANGLING, LOOP) and not Path(one.path).suffix]
    for folder in folders:
        below = walk(folder, root)
        account += below.passed_over
        items += [Item(id=path.relative_to(root).as_posix(), path=path, folder=folder.name) for path in below.images]
        if not below.images:
            missing = tuple(one for one in below.passed_over if one.reason in LOST)
            if missing:
                lost.append((folder.name, missing))
            else:
                account.append(PassedOver(reason=EMPTY, path=folder.name))
    if lost:
        several = f" (and {len(lost) - 1} other classes)" if len(lost) > 1 else ""
        raise InvalidInput(f"{printable(str(root))}: class {printable(lost[0][0])!r}{several} has no image that can be "
                           f"read: {told(lost[0][1])}", _way_out(lost[0][1]))
    if not items:
        loose = sum(1 for one in beside if one.reason == LOOSE)
        raise InvalidInput(
            f"{root} has no class folders: expected {root.name}/<class>/<image>, got "
            + (f"{loose} images directly in it" if loose else told(beside) or "no images"),
            "sort the images into one folder per class")
    dangling = [one for one in account if one.reason in (DANGLING, LOOP)]
    if len(dangling) > max(1, MAX_UNREADABLE * (len(items) + len(dangling))):
        raise InvalidInput(f"{printable(str(root))}: {told(dangling)}, beside {len(items):,} images that can be read",
                           _way_out(dangling))
    classes = len({item.folder for item in items})
    name = next((known for known, pattern in _FILE_NAMES.items() if all(pattern.fullmatch(item.id) for item in items)),
                name)
    images = ImageSet(name=name, source=str(root), items=tuple(items), passed_over=tuple(account),
                      understood=f"{understood}: {len(items)} images in {classes} classes")
    _refuse_splits(images)
    return images


def _way_out(account: Sequence[PassedOver]) -> str:
    """Return the hint for images of a class that are missing."""
    return {DANGLING: "mount or copy what the links point to, or remove the links",
            LOOP: "remove the links", UNREAD: "convert them to PNG or JPEG",
            HIDDEN: "rename them without the leading dot, or remove the folder"}.get(account[0].reason, "remove them")


def subfolders(images: ImageSet) -> dict[str, tuple[str, ...]]:
    """Return, for each class folder that holds no image directly, the folders that lie in it."""
    below: dict[str, set[str]] = {}
    direct: set[str] = set()
    for item in images.items:
        parts = item.id.split("/")
        if len(parts) < 3:
            direct.add(item.folder)
        else:
            below.setdefault(item.folder, set()).add(parts[1])
    return {folder: tuple(sorted(names)) for folder, names in below.items() if folder not in direct}


def _is_split(name: str) -> bool:
    return _SPLIT.fullmatch(name.casefold()) is not None


def _refuse_splits(images: ImageSet) -> None:
    """Refuse folders such as ``train`` and ``val`` that hold class folders of their own, or lie inside every class."""
    below = subfolders(images)
    splits = [folder for folder in images.folders if _is_split(folder) and folder in below]
    if len(splits) >= 2 or (splits and len(splits) == len(images.folders)):
        raise InvalidInput(
            f"{printable(images.source)}: {_listed(splits)} {'are splits' if len(splits) > 1 else 'is a split'} of a "
            "data set, not classes", f"pass the one to evaluate: {_paths(images.source, splits)}")
    inside = {folder: [name for name in names if _is_split(name)] for folder, names in below.items()}
    nested = next((folder for folder, names in inside.items() if len(names) >= 2), None)
    if nested is not None:
        raise InvalidInput(
            f"{printable(images.source)}: folder {printable(nested)!r} is no class, it holds the splits "
            f"{_listed(inside[nested])}",
            "pass the folder whose sub-folders are the classes, such as "
            + _paths(f"{images.source}/{nested}", inside[nested]))


def _paths(source: str, names: Sequence[str]) -> str:
    return " or ".join(printable(str(Path(source) / name)) for name in names[:4])


def _listed(names: Sequence[str], most: int = 4) -> str:
    """Return names in quotes, the first few of them."""
    few = ", ".join(repr(printable(name)) for name in names[:most])
    return few + (f" and {len(names) - most} more" if len(names) > most else "")


def doubts(images: ImageSet) -> tuple[Caveat, ...]:
    """Return what a user should know of a set before any image is decoded: what was passed over, classes of folders."""
    found = []
    clause = told(images.passed_over)
    if clause:
        found.append(Caveat(code="images-passed-over", message=f"{images.name}: passed over: {clause}",
                            hint="convert, copy or rename what should count; edgebench data check names all of it"))
    nested = subfolders(images) if not images.imagenet and images.name not in SPECIAL else {}
    if nested:
        folder, names = next(iter(sorted(nested.items())))
        found.append(Caveat(
            code="folders-in-classes", hint="where these are the classes, pass the folder above them",
            message=f"{images.name}: {len(nested)} of {len(images.folders)} class folders hold only folders, whose "
                    f"images were taken for one class: {printable(folder)!r} holds {_listed(names)}"))
    return tuple(found)


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
    How folder names become classes is decided once for all folders of the set. With a class map they are ids, or names
    (whatever their case, underscores and the composition of accents), or where none of them is either, class indices
    from 0. A model without a class map gets ImageNet's where it has 1,000 outputs and the folders are WordNet ids, and
    the sorted folder names where their number fits and every usual order sorts them alike.

    Raises:
        InvalidInput: A folder is none of the model's classes, two folders are the same class, or the folders can be
            read in two ways.
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
        classes, table = _assumed(images, outputs)
    else:
        if len(classes.ids) != outputs:
            raise InvalidInput(f"the class map has {len(classes.ids)} classes, the model {outputs} outputs",
                               "one line per output in the --classes file" + _background(len(classes.ids), outputs))
        table = _by_class_map(images, classes)
    return tuple(table[item.folder] for item in images.items), classes, assumed


def _by_class_map(images: ImageSet, classes: ClassMap) -> dict[str, int]:
    """Return the class index of each folder, by one rule for all."""
    source, folders, outputs = printable(images.source), images.folders, len(classes.ids)
    ids = {_composed(name): k for k, name in enumerate(classes.ids)}
    by_id = {folder: ids[_composed(folder)] for folder in folders if _composed(folder) in ids}
    if len(by_id) == len(folders):
        return _distinct(images, classes, by_id)
    by_name: dict[str, list[int]] = {}
    by_plain_id: dict[str, list[int]] = {}
    for k, (name, identifier) in enumerate(zip(classes.names, classes.ids, strict=True)):
        by_name.setdefault(_plain(name), []).append(k)
        by_plain_id.setdefault(_plain(identifier), []).append(k)
    named = {folder: by_name.get(_plain(folder)) or by_plain_id.get(_plain(folder), []) for folder in folders}
    unnamed = [folder for folder in folders if folder not in by_id and not named[folder]]
    numbers = all(folder.isdecimal() for folder in folders)
    if numbers and len(unnamed) == len(folders):
        return _distinct(images, classes, _by_index(images, classes))
    if numbers and unnamed and all(int(folder) < outputs for folder in folders):
        labelled = next(folder for folder in folders if folder not in unnamed)
        place = by_id.get(labelled, named[labelled][0] if named[labelled] else 0)
        raise TwoReadings(
            f"{source}: the folders are numbers that can be read in two ways: as the class map's names, of which "
            f"{_listed(unnamed)} {'is' if len(unnamed) == 1 else 'are'} none, or as indices from 0; folder "
            f"{labelled!r} would be output {place} or output {int(labelled)}",
            "rename the folders, or pass --classes FILE with the folders' names in the order of the outputs",
            {"as indices from 0": {folder: int(folder) for folder in folders}})
    if unnamed:
        folder, others = unnamed[0], len(unnamed) - 1
        few = classes.ids if len(classes.ids) <= 8 else (*classes.ids[:6], "…")
        holds = subfolders(images).get(folder, ())
        inside = sum(_composed(name) in ids or bool(by_name.get(_plain(name))) for name in holds)
        raise InvalidInput(
            f"{source}: folder {folder!r} is none of the model's {len(classes.ids)} classes"
            + (f", nor {'are' if others > 1 else 'is'} {others} of the other {len(folders) - 1}" if others else "")
            + suggest(folder, (*classes.ids, *classes.names)),
            f"its sub-folders are classes: pass {_paths(images.source, unnamed)}" if inside else
            f"classes: {', '.join(few)}; rename the folder, or pass --classes FILE")
    table: dict[str, int] = {}
    for folder in folders:
        if folder in by_id and named[folder] and by_id[folder] not in named[folder]:
            raise InvalidInput(
                f"{source}: folder {folder!r} can be read in two ways, for other folders go by name: by its id it is "
                f"output {by_id[folder]}, by its name output {named[folder][0]}", "call all folders by their ids")
        if folder not in by_id and len(named[folder]) > 1:
            raise InvalidInput(f"{source}: folder {folder!r} is the name of {len(named[folder])} classes",
                               f"call it by its id: {', '.join(classes.ids[k] for k in named[folder])}")
        table[folder] = by_id[folder] if folder in by_id else named[folder][0]
    return _distinct(images, classes, table)


def _by_index(images: ImageSet, classes: ClassMap) -> dict[str, int]:
    """Return folders that are numbers as class indices from 0, unless they may count from elsewhere."""
    source, outputs = printable(images.source), len(classes.ids)
    table = {folder: int(folder) for folder in images.folders}
    numbers = sorted(table.values())
    background = _plain(classes.names[0]) in _BACKGROUND
    hint = "call the folders by the names or ids of the class map"
    if numbers[-1] >= outputs:
        if numbers[0] >= 1 and numbers[-1] == outputs:
            hint = f"they seem to count from 1; {hint}"
        raise InvalidInput(f"{source}: folder {str(numbers[-1])!r} is none of the model's {outputs} classes: indices "
                           f"go from 0 to {outputs - 1}", hint)
    if not background and len(numbers) > 1 and numbers == list(range(1, len(numbers) + 1)):
        raise TwoReadings(
            f"{source}: the folders are numbers from 1 to {numbers[-1]} that can be read in two ways: as indices from "
            f"0 (folder '1' is {classes.names[1]!r}) or counted from 1 (folder '1' is {classes.names[0]!r})", hint,
            {"as indices from 0": table, "counted from 1": {folder: k - 1 for folder, k in table.items()}})
    if background and numbers[0] == 0 and numbers[-1] < outputs - 1:
        raise TwoReadings(
            f"{source}: the folders are numbers that can be read in two ways: as outputs (folder '0' is "
            f"{classes.names[0]!r}) or as classes behind it (folder '0' is {classes.names[1]!r})", hint,
            {"as outputs": table, "behind the background class": {folder: k + 1 for folder, k in table.items()}})
    return table


def _distinct(images: ImageSet, classes: ClassMap, table: dict[str, int]) -> dict[str, int]:
    """Return the table; refuse two folders that are one class."""
    first: dict[int, str] = {}
    for folder, k in table.items():
        if k in first:
            raise InvalidInput(f"{printable(images.source)}: folders {first[k]!r} and {folder!r} are both class "
                               f"{classes.names[k]!r}", "put their images into one folder, or rename one")
        first[k] = folder
    return table


def _assumed(images: ImageSet, outputs: int) -> tuple[ClassMap, dict[str, int]]:
    """Return the class map of a model that has none, and the class index of each folder.

    Raises:
        InvalidInput: The folders do not say it, or two usual orders of theirs disagree.
    """
    source, folders, wnids = printable(images.source), images.folders, imagenet_wnids()
    if outputs == len(wnids) and set(folders) <= set(wnids):
        rank = {name: k for k, name in enumerate(wnids)}
        return ClassMap(ids=wnids, names=wnids), {folder: rank[folder] for folder in folders}
    hint = "pass --classes FILE with one class per line, in the order of the outputs"
    below = subfolders(images)
    if len(below) == len(folders):
        inside = sorted({name for names in below.values() for name in names})
        if len(inside) == outputs and inside != list(folders):
            raise InvalidInput(
                f"{source}: the class folders hold only folders, and both fit the model's {outputs} outputs: "
                f"{_listed(folders)}, and {_listed(inside)} below them",
                f"pass {_paths(images.source, folders)}, or --classes FILE")
    if all(_is_split(folder) for folder in folders):
        raise InvalidInput(f"{source}: {_listed(folders)} are splits of a data set, not classes",
                           f"pass the one to evaluate: {_paths(images.source, folders)}; or {hint}")
    if len(folders) == outputs:
        _refuse_two_orders(images, hint)
        return ClassMap(ids=folders, names=folders), {folder: k for k, folder in enumerate(folders)}
    ways: dict[str, dict[str, int]] = {}
    if all(folder.isdecimal() for folder in folders):
        numbers = {folder: int(folder) for folder in folders}
        ways = {"as indices from 0": numbers, "counted from 1": {folder: k - 1 for folder, k in numbers.items()}}
        if outputs == len(folders) + 1:
            ways["behind a background class"] = {folder: k + 1 for folder, k in numbers.items()}
        as_text = {name: k for k, name in enumerate(sorted(map(str, range(outputs))))}
        if set(folders) <= set(as_text) and outputs > 10:
            ways[f"in the order of 0 to {outputs - 1} as text, as ImageFolder sorts"] = {
                folder: as_text[folder] for folder in folders}
    elif outputs == len(folders) + 1:
        ways = {f"sorted{behind}": {folder: k + more for k, folder in enumerate(folders)}
                for behind, more in (("", 0), (" behind a background class", 1))}
    ways = {way: table for way, table in ways.items() if all(0 <= k < outputs for k in table.values())}
    clause = f"; folder {folders[-1]!r} could be output " + ", ".join(
        f"{table[folders[-1]]} ({way})" for way, table in ways.items()) if ways else ""
    raise TwoReadings(f"{source} has {len(folders)} class folders, the model has {outputs} outputs and no class map"
                      + clause, hint + _background(len(folders), outputs), ways)


def _refuse_two_orders(images: ImageSet, hint: str) -> None:
    """Refuse folder names that are sorted one way as text and another way by their numbers, or by composed accents."""
    folders = list(images.folders)
    orders = ((sorted(folders, key=_natural), "sorted as text, as ImageFolder does", "by number"),
              (sorted(folders, key=_composed), "with the accents as they are stored here", "with composed accents"))
    for other, first, second in orders:
        if other != folders:
            folder = next(name for name, place in zip(folders, other, strict=True) if name != place)
            raise TwoReadings(
                f"{printable(images.source)}: the folders can be read in two orders: {first}, {folder!r} is output "
                f"{folders.index(folder)}; {second}, it is output {other.index(folder)}", hint,
                {way: {name: k for k, name in enumerate(order)} for way, order in ((first, folders), (second, other))})


def _background(classes: int, outputs: int) -> str:
    return "; a background class, the first output in some frameworks, has a line too" if outputs == classes + 1 else ""


def _natural(name: str) -> str:
    """Return the key that sorts the numbers in names by their value."""
    return re.sub(r"\d+", lambda number: number.group().zfill(24), name)


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
                           "leave this set out for this model")
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
    return tuple(sorted(k for members in _by_folder(items) for _, k in members[:per_class]))


def spread(items: Sequence[Item], count: int) -> tuple[int, ...]:
    """Return indices of a fixed choice of `count` items, or all where there are fewer, spread evenly over the folders.

    Chosen by the hashes of `stratified`; with fewer items than folders, these also decide which folders are in it.
    """
    ranked = sorted((rank, digest, k) for members in _by_folder(items) for rank, (digest, k) in enumerate(members))
    return tuple(sorted(k for _, _, k in ranked[:count]))


def _by_folder(items: Sequence[Item]) -> list[list[tuple[bytes, int]]]:
    """Return for each folder its items as (hash of the id, index), in the order of the hashes."""
    folders: dict[str, list[tuple[bytes, int]]] = {}
    for k, item in enumerate(items):
        digest = hashlib.sha256(item.id.encode(errors="surrogateescape")).digest()
        folders.setdefault(item.folder, []).append((digest, k))
    return [sorted(members) for members in folders.values()]


def distinguished(sets: Sequence[ImageSet]) -> tuple[ImageSet, ...]:
    """Return the sets with names of their own: where several have one, the folders above them are added to it.

    ``site-a/val`` and ``site-b/val`` become ``val@site-a`` and ``val@site-b``. Sets whose names say their protocol keep
    them.

    Raises:
        UsageError: A folder is given twice, or two folders are the same benchmark.
    """
    renamed = list(sets)
    for name, count in Counter(one.name for one in sets).items():
        if count == 1:
            continue
        twins = [k for k, one in enumerate(sets) if one.name == name]
        sources = [str(Path(sets[k].source).resolve()) for k in twins]
        if len(set(sources)) < count:
            raise UsageError(f"{sets[twins[-1]].source} is given twice", "name each data folder once")
        if name in RESERVED or name.startswith(("pug/", "vtab/")):
            raise UsageError(f"two data sets are called {name!r}: {sources[0]} and {sources[1]}",
                             "profile them into different --out folders")
        above = [list(Path(source).parts[:-1]) for source in sources]
        while all(above) and len({parts[-1] for parts in above}) == 1:
            above = [parts[:-1] for parts in above]
        labels = [parts[-1].strip("/") or "root" if parts else "root" for parts in above]
        if len(set(labels)) < count:
            labels = [f"{label}.{number}" for number, label in enumerate(labels, 1)]
        for k, label in zip(twins, labels, strict=True):
            renamed[k] = replace(sets[k], name=f"{name}@{label}",
                                 understood=f"{sets[k].understood}, called {name}@{label}")
    return tuple(renamed)


def _composed(name: str) -> str:
    """Return a name with its accents in the composed form: macOS stores the decomposed one."""
    return unicodedata.normalize("NFC", name)


def _plain(name: str) -> str:
    return _composed(_composed(name).casefold()).replace("_", " ").strip()


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
