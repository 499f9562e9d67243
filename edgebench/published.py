"""Published accuracies of FP32 models, and whether a reference reaches them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Literal

from edgebench.catalog import content, read_toml
from edgebench.datasets import IMAGENET_VAL
from edgebench.record import DatasetIdentity, ModelIdentity, Run, Score
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
    than published, for those may be easier. Weights from a file may be others than the published ones of their
    architecture: what does not fit is a caveat then.
    """
    sure = run.artifact.model.weights == "pretrained" and run.artifact.model.id in published()
    for dataset, score in _judgeable(run):
        assert score.value is not None
        known = _nearest(run.artifact.model, score.value)
        if known is None:
            return None
        if dataset.name == IMAGENET_VAL and dataset.images >= 0.99 * IMAGES:
            level, words, hint = _on_all(known, score, score.value)
            return (level, words, hint) if sure or level == "fine" else (
                "caveat", f"{words}; whether these are the published weights is not known", hint)
        if (score.high or score.value) < known.accuracy_top1 - OTHER_IMAGES:
            words = (f"{_numbers(known, score.value)}; {dataset.name} is not all of ImageNet's validation set, but "
                     "as far below is seldom the images' doing")
            return "caveat", words, _HINT
    return None


def nothing_known(run: Run) -> str:
    """Return in words that no published accuracy of an FP32 run on ImageNet's classes is known; empty else."""
    model = run.artifact.model
    if not any(_nearest(model, score.value or 0.0) is None for _, score in _judgeable(run)):
        return ""
    return (f"{run.variant}: no published accuracy of {model.id} is known: hold the FP32 reference against its source "
            "before blaming quantization")


def _judgeable(run: Run) -> Iterator[tuple[DatasetIdentity, Score]]:
    """Yield the top-1 accuracies on ImageNet's classes of an FP32 run with weights that may be published."""
    if run.precision.executed != "fp32" or run.artifact.model.weights not in ("pretrained", "file") \
            or run.artifact.classes is None or len(run.artifact.classes.ids) != CLASSES:
        return
    for one in run.evaluations:
        if one.property == "accuracy" and one.preset == "native":
            yield from ((one.dataset, score) for score in one.scores
                        if score.name == "accuracy_top1" and score.value is not None)


def _nearest(model: ModelIdentity, accuracy: float) -> PublishedModel | None:
    """Return what is published of a model; where its id names no weights, the nearest of its architecture's."""
    if model.id in published():
        return published()[model.id]
    alike = [one for one in published().values() if re.split(r"[./]", one.id, maxsplit=1)[0] == model.id]
    return min(alike, key=lambda one: abs(one.accuracy_top1 - accuracy), default=None)


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
