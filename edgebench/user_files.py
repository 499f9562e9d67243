"""Class lists, prompt templates and preprocessing files, in the forms that people have."""

from __future__ import annotations

import csv
import json
import re
import sys
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from edgebench.errors import InvalidInput, suggest
from edgebench.files import read_text
from edgebench.record import ClassMap, Preprocess, decode

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

CLASS_FORMS = ("one class per line, in the order of the outputs: name, or id<TAB>name; or JSON: a list of names, "
               "{\"0\": name, …}, or a configuration with id2label")
_INDEX_WORDS = frozenset({"index", "idx", "id", "class_id", "class_index", "classid", "label_id", "class_idx",
                          "number"})
_NAME_WORDS = frozenset({"name", "label", "class", "class_name", "classname", "label_name", "category", "display_name",
                         "labels", "names", "classes", "class name", "description"})
_ID_WORDS = frozenset({"wnid", "synset", "mid", "code"})
_STRUCTURED = frozenset({".yaml", ".yml", ".pbtxt", ".xml", ".toml", ".py", ".ini"})
_NUMBERED = re.compile(r"(\d+)\s*(?:[:,;=)\t]|\.(?=\s)|\s)\s*(\S.*)")
_NUMBER_LAST = re.compile(r"(\S.*?)\s*[:,;=]\s*(\d+)")
_WNID_FIRST = re.compile(r"(n\d{8})(?:\s*[:,;]\s*|\s+)(\S.*)")


def read_classes(path: Path) -> ClassMap:
    """Return the class map of a file in one of the usual forms; what can be read in two ways is refused.

    One class per line in output order: a name, ``id<TAB>name``, a WordNet id and a name, or a running number and a
    name; a CSV table with a header; or JSON: a list, ``{index: name}``, ``{name: index}``, or a configuration with
    ``id2label``.

    Raises:
        InvalidInput: Unreadable, empty, of another form, or an id stands there twice.
    """
    text = read_text(path, "a class list")
    if not text.strip():
        raise InvalidInput(f"{path} is empty", f"expected {CLASS_FORMS}")
    if path.suffix.lower() in _STRUCTURED:
        raise _unfit(path, f"{path.suffix} files are not read")
    if path.suffix.lower() == ".json" or text.lstrip()[0] in "[{":
        return _from_json(path, text)
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    table = _table(path, lines)
    if table is not None:
        return table
    return _distinct(path, [(number, line, line) for number, line in lines])


def _table(path: Path, lines: Sequence[tuple[int, str]]) -> ClassMap | None:
    """Return the class map of lines with more than a name each; None: the lines are names."""
    for number, line in lines:
        if line[0] in "\"'" and path.suffix.lower() != ".csv":
            raise _unfit(path, f"line {number} is in quotes: {line[:40]}")
        if line.startswith(("- ", "item {", "#")):
            raise _unfit(path, f"line {number} is no class: {line[:40]!r}")
    if any("\t" in line for _, line in lines):
        rows = [(number, [cell.strip() for cell in line.split("\t")]) for number, line in lines]
        if _is_header(rows[0][1]):
            return _from_columns(path, rows[0][1], rows[1:])
        for number, cells in rows:
            if len(cells) != 2:
                raise _unfit(path, f"line {number} has {len(cells)} columns between tabs, and other lines 2")
        return _pairs(path, [(number, first, second) for number, (first, second) in rows])
    rows = [(number, [cell.strip() for cell in next(csv.reader([line]))]) for number, line in lines]
    if _is_header(rows[0][1]) and (len(rows[0][1]) > 1 or path.suffix.lower() == ".csv"):
        return _from_columns(path, rows[0][1], rows[1:])
    if path.suffix.lower() == ".csv" and any(len(cells) > 1 for _, cells in rows):
        for number, cells in rows:
            if len(cells) != 2:
                raise _unfit(path, f"line {number} has {len(cells)} columns, and the table no header")
        return _pairs(path, [(number, first, second) for number, (first, second) in rows])
    for pattern, order in ((_WNID_FIRST, (1, 2)), (_NUMBERED, (1, 2)), (_NUMBER_LAST, (2, 1))):
        matches = [pattern.fullmatch(line) for _, line in lines]
        if all(matches):
            pairs = [(number, match[order[0]], match[order[1]])
                     for (number, _), match in zip(lines, matches, strict=True) if match]
            # "1 euro", "2 euro" are names: without the number nothing would tell them apart.
            distinct = len({second for _, _, second in pairs}) == len(pairs)
            if pattern is _WNID_FIRST or (distinct and (_counts(pairs) or _is_shuffled(pairs))):
                return _pairs(path, pairs)
    return None


def _is_header(cells: Sequence[str]) -> bool:
    return all(cell.casefold() in _INDEX_WORDS | _NAME_WORDS | _ID_WORDS for cell in cells)


def _from_columns(path: Path, header: Sequence[str], rows: Sequence[tuple[int, list[str]]]) -> ClassMap:
    """Return the class map of a table with a header."""
    titles = [cell.casefold() for cell in header]
    for number, cells in rows:
        if len(cells) != len(titles):
            raise _unfit(path, f"line {number} has {len(cells)} columns, the header {len(titles)}")
    if not rows:
        raise _unfit(path, "there is a header and no class")
    column = {title: [cells[k] for _, cells in rows] for k, title in enumerate(titles)}
    numbers = [title for title, cells in column.items() if all(cell.isdecimal() for cell in cells)]
    names = [title for title in titles if title in _NAME_WORDS and title not in numbers]
    ids = [title for title in titles if title not in numbers and title in _ID_WORDS | _INDEX_WORDS]
    if len(column) != len(titles) or len(names) > 1 or len(ids) > 1 or len(numbers) > 1 or not (names or ids):
        raise _unfit(path, f"line {rows[0][0] - 1}: cannot tell which column holds the names: {', '.join(header)}")
    name = column[(names or ids)[0]]
    identifier = column[ids[0]] if ids else None
    if numbers:
        pairs = [(number, column[numbers[0]][k], name[k]) for k, (number, _) in enumerate(rows)]
        if _is_shuffled(pairs):
            # The table says the output of each class itself.
            order = sorted(range(len(rows)), key=lambda k: int(column[numbers[0]][k]))
            rows, name = [rows[k] for k in order], [name[k] for k in order]
            identifier = [identifier[k] for k in order] if identifier else None
        elif not _counts(pairs):
            raise _gap(path, pairs)
        if identifier is None:
            return _indexed(path, [(number, one) for (number, _), one in zip(rows, name, strict=True)])
    return _distinct(path, [(number, one, other) for (number, _), one, other in zip(
        rows, identifier or name, name, strict=True)])


def _pairs(path: Path, pairs: Sequence[tuple[int, str, str]]) -> ClassMap:
    """Return the class map of lines with an id and a name; ids that are numbers must count the lines."""
    if all(first.isdecimal() for _, first, _ in pairs):
        if not _counts(pairs):
            raise _gap(path, pairs)
        return ClassMap(ids=tuple(first for _, first, _ in pairs), names=tuple(second for _, _, second in pairs))
    return _distinct(path, pairs)


def _counts(pairs: Sequence[tuple[int, str, str]]) -> bool:
    """Return whether the ids count the lines, from 0 or from 1."""
    numbers = [int(first) for _, first, _ in pairs]
    return numbers[0] in (0, 1) and numbers == list(range(numbers[0], numbers[0] + len(numbers)))


def _is_shuffled(pairs: Sequence[tuple[int, str, str]]) -> bool:
    return sorted(int(first) for _, first, _ in pairs) == list(range(len(pairs))) and not _counts(pairs)


def _gap(path: Path, pairs: Sequence[tuple[int, str, str]]) -> InvalidInput:
    start = min(1, int(pairs[0][1]))
    line, number, due = next((line, first, k) for k, (line, first, _) in enumerate(pairs, start) if int(first) != k)
    return _unfit(path, f"line {line} has number {number} where {due} is due: the order of the lines and the numbers "
                        "disagree")


def _distinct(path: Path, rows: Sequence[tuple[int, str, str]]) -> ClassMap:
    """Return the class map of (line, id, name); refuse an id that stands there twice."""
    first: dict[str, int] = {}
    for line, identifier, _ in rows:
        composed = unicodedata.normalize("NFC", identifier)
        if composed in first:
            raise InvalidInput(f"{path}, line {line}: {identifier!r} stands in line {first[composed]} already: "
                               "expected distinct class ids", "give both classes ids of their own: id<TAB>name")
        first[composed] = line
    return ClassMap(ids=tuple(identifier for _, identifier, _ in rows), names=tuple(name for _, _, name in rows))


def _indexed(path: Path, rows: Sequence[tuple[int, str]]) -> ClassMap:
    """Return the class map of names in order: their own ids where they are distinct, else their indices."""
    names = tuple(name for _, name in rows)
    if len(set(names)) == len(names):
        return _distinct(path, [(line, name, name) for line, name in rows])
    return ClassMap(ids=tuple(map(str, range(len(names)))), names=names)


def _from_json(path: Path, text: str) -> ClassMap:
    try:
        data: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _unfit(path, f"it is not valid JSON: {error}") from error
    if isinstance(data, Mapping):
        for key in ("id2label", "label2id", "class_to_idx", "names", "label_names", "classes"):
            if isinstance(data.get(key), Mapping | list) and data[key]:
                data = data[key]
                break
    if isinstance(data, Mapping) and data:
        if all(isinstance(value, int) and not isinstance(value, bool) for value in data.values()):
            data = {str(value): key for key, value in data.items()} if len(set(data.values())) == len(data) else {}
        if not data or not all(str(key).isdecimal() for key in data):
            raise _unfit(path, "an object must give a name for each index, or an index for each name")
        by_index = {int(key): value for key, value in data.items()}
        missing = next((k for k in range(len(data)) if k not in by_index), None)
        if missing is not None:
            raise _unfit(path, f"index {missing} is missing among {len(data)} classes")
        data = [by_index[k] for k in range(len(data))]
    if not isinstance(data, list) or not data:
        raise _unfit(path, "it holds no list of classes")
    if all(isinstance(value, str) and value.strip() for value in data):
        return _indexed(path, [(k, value.strip()) for k, value in enumerate(data, 1)])
    if all(isinstance(value, list) and len(value) == 2 and all(isinstance(part, str) for part in value)
           for value in data):
        return _distinct(path, [(k, first, second) for k, (first, second) in enumerate(data, 1)])
    wrong = next(k for k, value in enumerate(data) if not isinstance(value, str) or not value.strip())
    raise _unfit(path, f"class {wrong} is no name: {json.dumps(data[wrong], ensure_ascii=False)[:60]}")


def _unfit(path: Path, why: str) -> InvalidInput:
    return InvalidInput(f"{path}{', ' if why.startswith('line ') else ': '}{why}", f"expected {CLASS_FORMS}")


def read_templates(path: Path) -> tuple[str, ...]:
    """Return prompt templates from a text file: one per line, each with ``{}`` for the class name.

    Raises:
        InvalidInput: Unreadable, empty, or a line without ``{}``.
    """
    lines = tuple(line.strip() for line in read_text(path, "prompt templates").splitlines() if line.strip())
    wrong = next((line for line in lines if line.count("{}") != 1), None)
    if not lines or wrong is not None:
        raise InvalidInput(f"{path}: expected one {{}} per line, got {wrong or 'an empty file'!r}",
                           "such as: a photo of a {}.")
    return lines


# Above this a mean, or a standard deviation, is of pixels from 0 to 255.
_SCALE_255 = 10.0
_MEANT = {"image_mean": "mean", "image_std": "std", "means": "mean", "stds": "std", "size": "size_px",
          "input_size": "size_px", "crop_size": "size_px", "image_size": "size_px", "resize_size": "resize_px",
          "resample": "interpolation", "mean_values": "mean", "scale_values": "std"}
_CHANNELS = frozenset({"bgr", "rgb", "to_rgb", "bgr_to_rgb", "channel_order", "color_order", "colour_order", "channels",
                       "reverse_channels", "input_format", "swap_rb", "swaprb", "reverse_input_channels"})
PREPROCESS_FORM = "size_px = [224, 224], mean = [0.485, 0.456, 0.406], std = [0.229, 0.224, 0.225], resize_px = 256"


def read_preprocess(path: Path) -> Preprocess:
    """Return the preprocessing of a TOML file, or a JSON file with the same keys.

    Raises:
        InvalidInput: Unreadable, an unknown, missing or wrong key, or mean and std on the scale 0 to 255.
    """
    text = read_text(path, "a preprocessing file")
    try:
        data: Any = json.loads(text) if text.lstrip().startswith("{") else tomllib.loads(text.replace("\r\n", "\n"))
    except json.JSONDecodeError as error:
        raise InvalidInput(f"{path} is not valid JSON: {error}", f"expected TOML: {PREPROCESS_FORM}") from error
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise InvalidInput(f"{path} is not valid TOML: {error}", f"expected keys such as {PREPROCESS_FORM}") from error
    _refuse_keys(path, data)
    for key in ("mean", "std"):
        value = data[key]
        if isinstance(value, int | float) and not isinstance(value, bool):
            raise InvalidInput(f"{path}: {key}: expected three numbers (R, G, B), got {value}",
                               f"{key} = [{value}, {value}, {value}]")
        if not isinstance(value, list) or len(value) != 3 or not all(
                isinstance(part, int | float) and not isinstance(part, bool) for part in value):
            raise InvalidInput(f"{path}: {key}: expected three numbers (R, G, B), got {value!r}",
                               "grey models take images repeated to three channels" if isinstance(value, list)
                               and len(value) == 1 else f"{key} = [0.5, 0.5, 0.5]")
    size = data["size_px"]
    if isinstance(size, int) and not isinstance(size, bool):
        raise InvalidInput(f"{path}: size_px: expected [height, width], got {size}", f"size_px = [{size}, {size}]")
    _refuse_wide_scale(path, data["mean"], data["std"])
    try:
        return decode(Preprocess, data, str(path))
    except InvalidInput as error:
        raise InvalidInput(error.message, error.hint or f"expected keys such as {PREPROCESS_FORM}") from error


def _refuse_keys(path: Path, data: Mapping[str, Any]) -> None:
    """Refuse keys that are unknown, with what was probably meant, and keys that are missing."""
    known = {one.name: one for one in fields(Preprocess)}
    for key in data:
        if key in known:
            continue
        if key.casefold() in _CHANNELS:
            raise InvalidInput(f"{path}: unknown key {key!r}: images are fed as RGB, from 0 to 1",
                               "a model of BGR images needs its first layer's input channels reversed")
        meant = _MEANT.get(key.casefold())
        raise InvalidInput(f"{path}: unknown key {key!r}" + (f"; did you mean {meant!r}?" if meant
                                                             else suggest(key, known)),
                           f"known: {', '.join(known)}")
    missing = [name for name, one in known.items() if one.default is MISSING and name not in data]
    if data.get("resize", "shortest") == "shortest" and "resize_px" not in data:
        missing.append("resize_px")
    if missing:
        raise InvalidInput(f"{path}: missing key{'s' * (len(missing) > 1)} {', '.join(missing)}",
                           "\"shortest\" resizes the shorter side to resize_px; resize \"squash\" does without"
                           if missing == ["resize_px"] else f"expected keys such as {PREPROCESS_FORM}")


def _refuse_wide_scale(path: Path, mean: Sequence[float], std: Sequence[float]) -> None:
    """Refuse mean and std of pixels from 0 to 255, and offer them on the scale 0 to 1."""
    wide_mean, wide_std = max(map(abs, mean)) > _SCALE_255, max(map(abs, std)) > _SCALE_255
    if not (wide_mean or wide_std):
        return
    # A std of 1 beside means up to 255 is the mean's scale: nothing is divided there.
    if wide_std or min(std) >= 1:
        if wide_std and not wide_mean and any(0 < abs(value) <= 1 for value in mean):
            raise InvalidInput(f"{path}: std {list(std)} is on the scale 0 to 255, and mean {list(mean)} on the scale "
                               "0 to 1", "give both on the scale 0 to 1")
        raise InvalidInput(
            f"{path}: {'mean' if wide_mean else 'std'} {list(mean if wide_mean else std)} is on the scale 0 to 255, "
            "and the file's scale is 0 to 1",
            f"divided by 255: mean = {_divided(mean)}, std = {_divided(std)}")
    raise InvalidInput(f"{path}: mean {list(mean)} is on the scale 0 to 255, and std {list(std)} on the scale 0 to 1",
                       f"give both on the scale 0 to 1: mean = {_divided(mean)}, and check std")


def _divided(values: Sequence[float]) -> str:
    return "[" + ", ".join(f"{value / 255:.9g}" for value in values) + "]"
