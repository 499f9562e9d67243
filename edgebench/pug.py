"""PUG-ImageNet's class names: which ImageNet classes each of its folders stands for."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import msgspec

from edgebench.errors import InvalidInput, suggest

SUBSETS = ("Worlds", "Camera_Pitch", "Camera_Yaw", "Camera_Roll", "Object_Pitch", "Object_Yaw", "Object_Roll",
           "Object_Scale", "Object_Texture", "Scene_Light")
"""The published subsets, one per factor that is varied."""
MAP_FILE = "class_to_imagenet_idx.json"
CLASSES = 1000


def read_map(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the ImageNet class indices (0-based, at least one) of each class name, from the file that PUG ships.

    Raises:
        InvalidInput: Missing, no JSON object, or a value that is neither an index from 0 to 999 nor a list of them.

    Source:
        Bordes et al. 2023 (arXiv:2308.03977); ``class_to_imagenet_idx.json`` of facebookresearch/PUG, with 151 names.
    """
    hint = f"expected {MAP_FILE} as facebookresearch/PUG ships it: {{\"Wolf\": [269, 270, 271, 272], …}}"
    try:
        content = path.read_bytes().removeprefix(codecs.BOM_UTF8)
        read = msgspec.json.decode(content, type=dict[str, int | tuple[int, ...]])
    except OSError as error:
        raise InvalidInput(f"cannot read {path}: {error.strerror}", hint) from error
    except msgspec.DecodeError as error:
        raise InvalidInput(f"{path}: {error}", hint) from error
    found = {name: (value,) if isinstance(value, int) else value for name, value in read.items()}
    for name, indices in found.items():
        if not indices or not all(0 <= index < CLASSES for index in indices):
            raise InvalidInput(f"{path}: expected class indices from 0 to {CLASSES - 1} for {name!r}, got "
                               f"{list(indices)}", hint)
    if not found:
        raise InvalidInput(f"{path} names no class", hint)
    return found


def check_map(folder_names: Iterable[str], mapping: Mapping[str, Sequence[int]]) -> None:
    """Refuse folders whose names the map lacks.

    Labels go by folder names. By their positions, as in the published evaluation, one missing or renamed folder would
    shift the labels of all that follow, and the accuracy would fall to chance without a word.

    Raises:
        InvalidInput: A name is not in `mapping`.
    """
    strange = sorted(set(folder_names) - set(mapping))
    if not strange:
        return
    few = ", ".join(map(repr, strange[:5])) + (f" and {len(strange) - 5} more" if len(strange) > 5 else "")
    one = suggest(strange[0], mapping) if len(strange) == 1 else ""
    raise InvalidInput(f"{few}: none of the {len(mapping)} class names of {MAP_FILE}{one}",
                       "keep the folder names of the published set, or move other folders away")
