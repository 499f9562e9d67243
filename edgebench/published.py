"""Published accuracies of FP32 models, and whether a reference reaches them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Literal

from edgebench.catalog import content, read_toml
from edgebench.datasets import IMAGENET_VAL
from edgebench.record import Run, Score
from edgebench.rule_words import quantity

Level = Literal["fine", "caveat", "error"]

CAVEAT, ERROR = 0.005, 0.02
"""Distances from the published accuracy on all 50,000 images: other decoders and resizers cost up to half a point; two
points are a mistake."""
OTHER_IMAGES = 0.05
"""Distance below it that is doubted on other images of the same classes, beyond the interval."""
IMAGES, CLASSES = 50_000, 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedModel:
    """One model's accuracy as published."""

    id: str
    accuracy_top1: float
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Table:
    models: tuple[PublishedModel, ...]


@cache
def published() -> dict[str, PublishedModel]:
    """Return the shipped table by model id."""
    table = read_toml(content("reports") / "published_accuracy.toml", _Table)
    return {one.id: one for one in table.models}


def reference_verdict_parts(run: Run) -> tuple[Level, str, str] | None:
    """Return (level, message, hint) of an FP32 run's accuracy against the published one; None where none applies.

    On all of ImageNet's validation images either direction is doubted; on other images of its classes only far less
    than published, for those may be easier.
    """
    known = published().get(run.artifact.model.id)
    if known is None or run.precision.executed != "fp32" or run.artifact.model.weights != "pretrained":
        return None
    for one in run.evaluations:
        score = next((score for score in one.scores if score.name == "accuracy_top1"), None)
        if one.property != "accuracy" or one.preset != "native" or score is None or score.value is None \
                or run.artifact.classes is None or len(run.artifact.classes.ids) != CLASSES:
            continue
        if one.dataset.name == IMAGENET_VAL and one.dataset.images >= 0.99 * IMAGES:
            return _on_all(known, score, score.value)
        if (score.high or score.value) < known.accuracy_top1 - OTHER_IMAGES:
            words = (f"{_numbers(known, score.value)}; {one.dataset.name} is not all of ImageNet's validation set, but "
                     "as far below is seldom the images' doing")
            return "caveat", words, _HINT
    return None


_HINT = "check preprocessing, class order and weights before blaming quantization"


def _on_all(known: PublishedModel, score: Score, value: float) -> tuple[Level, str, str]:
    distance = abs(value - known.accuracy_top1)
    words = f"{_numbers(known, value)} on {score.n:,} images"
    if distance <= CAVEAT:
        return "fine", words, ""
    return "caveat" if distance <= ERROR else "error", words, _HINT


def _numbers(known: PublishedModel, value: float) -> str:
    return (f"FP32 top-1 of {quantity(value, 'fraction')} against {quantity(known.accuracy_top1, 'fraction')} "
            f"published ({known.source})")
