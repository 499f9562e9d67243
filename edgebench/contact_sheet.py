"""The images whose answers changed, as small pictures inside a page."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from edgebench.compare import ChangedImage, Flips
from edgebench.errors import EdgebenchError
from edgebench.record import Run

MOST = 60
"""Pictures on a sheet: those lost first, the surest answers of the first run first."""
SIZE_PX = 112
_ORDER = {"negative": 0, "other": 1, "positive": 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """One changed image."""

    image: ChangedImage
    source: str
    """Data URI of a JPEG thumbnail; empty where the file cannot be read."""
    target: str
    """Name of its class, of the first answer and of the second."""
    first: str
    second: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Sheet:
    """The changed images of one data set."""

    dataset: str
    pictures: tuple[Picture, ...]
    more: int
    """Changed images that are not shown."""
    location: str
    """Where the images were taken from, by name."""
    reason: str
    """Why there are no pictures; empty where there are."""


def sheet(flips: Flips, run: Run, data: Sequence[str] = ()) -> Sheet:
    """Return the contact sheet of the changed images of a data set.

    Args:
        flips: What changed.
        run: Either run, for the class names and where its images lay.
        data: Image folders or data roots; where the run says that its images lay, if none are named.
    """
    def empty(reason: str) -> Sheet:
        return Sheet(dataset=flips.dataset, pictures=(), more=len(flips.changed), location="", reason=reason)

    if not flips.changed:
        return empty("no answer changed")
    recorded = [one.dataset.source for one in run.passes if one.dataset.name == flips.dataset][:1]
    wanted = {one.id for one in flips.changed}
    reasons = []
    for location in data or recorded:
        try:
            files = _files(location)
        except EdgebenchError as error:
            reasons.append(error.message)
            continue
        found = next((paths for paths in files if wanted <= set(paths)), None)
        if found is None:
            reasons.append(f"{location} does not hold these images")
            continue
        names = run.artifact.classes.names if run.artifact.classes else ()
        chosen = sorted(flips.changed, key=lambda one: _ORDER[one.kind])[:MOST]
        return Sheet(
            dataset=flips.dataset, more=len(flips.changed) - len(chosen), location=location, reason="",
            pictures=tuple(Picture(
                image=one, source=thumbnail(found[one.id]), target=_name(names, one.target),
                first=_name(names, one.first), second=_name(names, one.second)) for one in chosen))
    return empty("the images are not at hand: " + ("; ".join(reasons) or "nothing says where they lie")
                 + "; name their folder: --data ROOT")


def thumbnail(path: Path) -> str:
    """Return an image as the data URI of a small JPEG; an empty string where it cannot be read."""
    try:
        with Image.open(path) as image:
            # Decodes a large JPEG at a fraction of its size, where that is enough.
            image.draft("RGB", (2 * SIZE_PX, 2 * SIZE_PX))
            small = image.convert("RGB")
            small.thumbnail((SIZE_PX, SIZE_PX))
    except (OSError, ValueError, Image.DecompressionBombError):
        return ""
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _files(location: str) -> list[dict[str, Path]]:
    """Return the image files of each set at a location, by the image's id."""
    from edgebench.named_sets import fit_sets

    return [{item.id: item.path for item in images.items if item.row is None} for images in fit_sets(location)[0]]


def _name(names: Sequence[str], index: int) -> str:
    return names[index] if index < len(names) else f"class {index}"
