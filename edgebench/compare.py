"""Two runs side by side: whether they may be compared, what changed with which doubt, and which images flipped."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np

from edgebench import metric_names, properties, tails
from edgebench.errors import InvalidInput, UsageError, suggest
from edgebench.properties import Pass, Predictions
from edgebench.reading import Difference, ends, other_circumstances, place, place_words, timed_ends
from edgebench.record import Better, DatasetIdentity, Evaluation, PassRecord, Run, Score
from edgebench.tails import Ends

Outcome = Literal["better", "worse", "same", "inconclusive", "changed"]

TIMING = ("device", "cpu", "processor", "power mode", "governor", "GPU governor", "clocks", "threads", "batch",
          "scenario", "boundary", "preprocessing", "frame rate", "deadline", "drop", "latency bound")
DATA = ("dataset", "preset", "classes")
FIELDS = (*TIMING, *DATA, "method")
"""What may be allowed to differ, by name."""
BANDS = (0.0, 0.5, 0.7, 0.9, 0.99, 1.0)
"""Edges of the bands of the first run's confidence that flips are counted by."""
INDIFFERENT_ABSOLUTE = {"fraction": 0.005, "1": 0.0, "nat": 0.01}
"""Changes of quality below this are the same, by unit: half a point."""
INDIFFERENT_RELATIVE = 0.02
"""Changes of speed, energy and memory below this share are the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One metric of both runs, and what became of it."""

    of: str
    """Property, or ``performance``."""
    metric: str
    where: str
    """Data set and condition; empty for performance."""
    unit: str
    better: Better | None
    first: float | None
    second: float | None
    relative: bool
    """Whether `change` is a fraction of the first value; else in the metric's unit."""
    change: float | None
    low: float | None
    high: float | None
    outcome: Outcome
    n: int
    method: str
    reason: str | None = None
    """Why `change` or its interval is absent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Flips among some of the images."""

    name: str
    images: int
    changed: int
    """Other answer, right or wrong."""
    negative: int
    """Right before, wrong now."""
    positive: int
    """Wrong before, right now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangedImage:
    """An image with another answer."""

    id: str
    target: int
    first: int
    """Class answered by the first run."""
    second: int
    first_confidence: float
    second_confidence: float
    kind: Literal["negative", "positive", "other"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Flips:
    """Where the answers to one data set changed."""

    dataset: str
    condition: str
    total: Group
    bands: tuple[Group, ...]
    """By confidence of the first run."""
    classes: tuple[Group, ...]
    """By class of the target, those that lost most first; classes without any change are left out."""
    changed: tuple[ChangedImage, ...]
    """Surest answers of the first run first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Two runs, side by side."""

    first: str
    second: str
    allowed: tuple[Difference, ...]
    """Differences that were let pass by name."""
    items: tuple[Item, ...]
    flips: tuple[Flips, ...]
    left_out: tuple[str, ...] = ()
    """Evaluations without any change image by image, with the reason."""


def timing_differences(first: Run, second: Run, metrics: Collection[str] | None = None) -> tuple[Difference, ...]:
    """Return what makes the timings of two runs not comparable: other circumstances or methods.

    Args:
        first: A run.
        second: Another run.
        metrics: Performance scores to be compared, whose scenarios and methods must be the same; all by default.
    """
    compared = [score for score in first.performance if metrics is None or score.name in metrics]
    return (*other_circumstances(first, second, metrics), *_methods(compared, second.performance, ""))


def data_differences(first: Run, second: Run) -> tuple[Difference, ...]:
    """Return what makes the quality scores of two runs not comparable: other images, presets or methods.

    A run that stopped early saw the first images of a set; the whole sets are compared.
    """
    found = []
    one_whole, other_whole = (
        {one.dataset.digest: one.part_of for one in run.passes if one.part_of} for run in (first, second))
    one_map, other_map = (_class_map(run) for run in (first, second))
    if first.evaluations and second.evaluations and one_map != other_map:
        found.append(Difference(what="classes", where="", first=one_map, second=other_map))
    theirs = {(one.property, one.dataset.name, one.condition): one for one in second.evaluations}
    by_preset = {(one.property, one.dataset.name): one for one in second.evaluations}
    for one in first.evaluations:
        name = f"{one.property} on {one.dataset.name}"
        other = theirs.get((one.property, one.dataset.name, one.condition)) or by_preset.get(
            (one.property, one.dataset.name))
        if other is None:
            continue
        mine = one_whole.get(one.dataset.digest, one.dataset)
        its = other_whole.get(other.dataset.digest, other.dataset)
        if mine.digest != its.digest:
            found.append(Difference(what="dataset", where=one.dataset.name, first=_identity(mine),
                                    second=_identity(its)))
        if one.preset != other.preset:
            found.append(Difference(what="preset", where=name, first=one.preset, second=other.preset))
        if one.condition == other.condition and mine.digest == its.digest:
            found += _methods(one.scores, other.scores, name)
    return tuple({(one.what, one.where, one.first, one.second): one for one in found}.values())


def other_sets(first: Sequence[Evaluation], second: Sequence[Evaluation], where: str) -> tuple[Difference, ...]:
    """Return that evaluations have no data set in common, with the identities of all; nothing where they have one.

    Args:
        first: Evaluations of a run.
        second: What corresponds to them in another.
        where: What they are of.
    """
    one, two = ({each.dataset.name: f"{each.dataset.name} of {_identity(each.dataset)}" for each in found}
                for found in (first, second))
    if not one or not two or one.keys() & two.keys():
        return ()
    return (Difference(what="dataset", where=where, first=", ".join(one.values()), second=", ".join(two.values())),)


def refuse(found: Sequence[Difference], allow: Collection[str], names: tuple[str, str]) -> tuple[Difference, ...]:
    """Return the differences that `allow` lets pass.

    Args:
        found: All differences.
        allow: Fields that may differ, of `FIELDS`.
        names: What the two runs are called.

    Raises:
        InvalidInput: A difference that is not allowed; all of them are named, with both values.
        UsageError: `allow` names no field.
    """
    for word in allow:
        if word not in FIELDS:
            raise UsageError(f"unknown field {word!r} to allow{suggest(word, FIELDS)}", f"known: {', '.join(FIELDS)}")
    left = [one for one in found if one.what not in allow]
    if left:
        fields = ",".join(dict.fromkeys(one.what for one in left))
        raise InvalidInput(f"{names[0]} and {names[1]} are not comparable: {'; '.join(one.words for one in left)}",
                           f"measure both alike, or take the exception upon you: --allow '{fields}'")
    return tuple(found)


def compare(first: tuple[Run, Path], second: tuple[Run, Path], *, allow: Collection[str] = ()) -> Comparison:
    """Return what changed from the first run to the second.

    Quality is compared image by image where both runs saw the same images and their predictions are at hand; speed,
    memory and energy as ratios of independent measurements.

    Args:
        first: The run that changes are against, and its folder.
        second: The run in question, and its folder.
        allow: Fields of `FIELDS` that may differ; the comparison records them.

    Raises:
        InvalidInput: They are not comparable, or predictions are damaged.
        UsageError: `allow` names no field.
    """
    (one, _), (two, _) = first, second
    allowed = refuse((*timing_differences(one, two), *data_differences(one, two)), allow, (one.variant, two.variant))
    before, after = common_predictions(first, second)
    items = [*_performance(one, two), *_half_evaluated(one, two)]
    paired = two.evaluations if is_reference(one, two) else changes(two, after, before)
    for evaluation in paired:
        where = place(evaluation)
        items += [_paired_item(evaluation, where, score) for score in evaluation.reference_scores
                  if metric_names.plain(score.name) != score.name]
    return Comparison(first=one.variant, second=two.variant, allowed=allowed, items=tuple(items), flips=tuple(
        flips(key, before[key], after[key]) for key in after
        if key.condition == properties.CLEAN and properties.is_plain(key.dataset)),
        left_out=_left_out(one, two, paired))


def is_reference(first: Run, second: Run) -> bool:
    """Return whether the first run is what the second one's stored paired scores are against."""
    known = second.reference
    return known is not None and (known.variant, known.artifact_digest) == (first.variant, first.artifact.digest)


def common_predictions(first: tuple[Run, Path], second: tuple[Run, Path], of: Collection[str] | None = None,
                       ) -> tuple[dict[Pass, Predictions], dict[Pass, Predictions]]:
    """Return the stored predictions of both runs for the passes that they share, on the same images.

    Args:
        first: A run and its folder.
        second: Another run and its folder.
        of: Only what these properties need; all by default.

    Raises:
        InvalidInput: Predictions are missing or damaged.
    """
    def records(run: Run) -> dict[Pass, PassRecord]:
        return {Pass(one.dataset.name, one.condition, one.preset): one for one in run.passes}

    if _class_map(first[0]) != _class_map(second[0]):
        return {}, {}
    mine, theirs = records(second[0]), records(first[0])
    shared = [key for key, one in mine.items() if key in theirs and _whole(theirs[key]) == _whole(one)]
    if of is not None:
        names = sorted({key.dataset for key in shared})
        presets = {key.preset for key in shared}
        needed = {key for name in of for preset in presets for key in properties.get(name).passes(names, preset)}
        shared = [key for key in shared if key in needed]

    def read(run: Run, folder: Path, own: Mapping[Pass, PassRecord]) -> dict[Pass, Predictions]:
        return {key: properties.load_predictions(folder / key.file, own[key].dataset, run.artifact.digest,
                                                 own[key].sha256) for key in shared}

    before, after = read(*first, theirs), read(*second, mine)
    for key in shared:
        # One that stopped early saw some of the other's images.
        one, two = before[key], after[key]
        if one.dataset.images > two.dataset.images:
            before[key] = properties.narrowed(one, two.ids, two.dataset)
        elif one.dataset.digest != two.dataset.digest:
            after[key] = properties.narrowed(two, one.ids, one.dataset)
    return before, after


def _whole(one: PassRecord) -> str:
    return (one.part_of or one.dataset).digest


def changes(run: Run, predictions: Mapping[Pass, Predictions], against: Mapping[Pass, Predictions],
            of: Collection[str] | None = None) -> tuple[Evaluation, ...]:
    """Return the evaluations of a run with another run as its reference, computed from both runs' predictions.

    Args:
        run: Whose predictions these are.
        predictions: Of the run.
        against: Of the other, on the same images.
        of: Only these properties; all of the run by default.
    """
    chosen = [name for name in run.settings.properties if of is None or name in of]
    datasets = sorted({key.dataset for key in predictions})
    found: list[Evaluation] = []
    for name in chosen:
        one = properties.get(name)
        needed = {key: predictions[key] for key in one.passes(datasets, run.settings.preset) if key in predictions}
        if needed:
            found.extend(one.score(needed, against))
    return tuple(found)


def flips(key: Pass, before: Predictions, after: Predictions) -> Flips:
    """Return which answers changed, by confidence of the first run and by class.

    Raises:
        ValueError: Other images, or in another order.
    """
    if not np.array_equal(before.ids, after.ids):
        raise ValueError(f"expected the same {len(before.ids)} images in the same order, got {len(after.ids)}")
    one, two = before.outcomes, after.outcomes
    changed = one.predicted != two.predicted
    negative, positive = one.correct & ~two.correct, ~one.correct & two.correct

    def group(name: str, chosen: np.ndarray) -> Group:
        return Group(name=name, images=int(chosen.sum()), changed=int((changed & chosen).sum()),
                     negative=int((negative & chosen).sum()), positive=int((positive & chosen).sum()))

    everything = np.ones(len(one), bool)
    bands = [group(f"{low:g}–{high:g}", (one.confidence > low if low else everything) & (one.confidence <= high))
             for low, high in pairwise(BANDS)]
    classes = [group(str(kind), before.targets == kind) for kind in np.unique(before.targets[changed])]
    order = np.flatnonzero(changed)
    order = order[np.argsort(-one.confidence[order], kind="stable")]
    return Flips(
        dataset=key.dataset, condition=key.condition, total=group("all", everything), bands=tuple(bands),
        classes=tuple(sorted(classes, key=lambda of: (of.positive - of.negative, -of.changed))),
        changed=tuple(ChangedImage(
            id=str(before.ids[k]), target=int(before.targets[k]), first=int(one.predicted[k]),
            second=int(two.predicted[k]), first_confidence=float(one.confidence[k]),
            second_confidence=float(two.confidence[k]),
            kind="negative" if negative[k] else "positive" if positive[k] else "other") for k in order))


def outcome(change: Ends | None, better: Better | None, indifference: float) -> Outcome:
    """Return what an interval of a change says.

    Same where all of it lies within `indifference` of 0; better or worse where 0 lies outside of it (changed where
    neither direction is better); inconclusive else.
    """
    if change is None:
        return "inconclusive"
    if -indifference <= change.low and change.high <= indifference:
        return "same"
    if change.low <= 0.0 <= change.high:
        return "inconclusive"
    if better is None:
        return "changed"
    return "better" if (change.value > 0) == (better == "higher") else "worse"


def place_of(key: Pass) -> str:
    """Return data set, condition and preset of a pass in words; what is usual is left out."""
    return place_words(key.dataset, key.condition, key.preset)


def _performance(one: Run, two: Run) -> list[Item]:
    """Return an item for every score of performance that either run has a value for."""
    before, after = ({score.name: score for score in run.performance} for run in (one, two))
    items = []
    for name in dict.fromkeys((*before, *after)):
        first, second = before.get(name), after.get(name)
        if first is not None and second is not None and first.value is not None and second.value is not None:
            items.append(_change(one, first, two, second))
        elif (first is not None and first.value is not None) or (second is not None and second.value is not None):
            items.append(_half(one, first, two, second))
    return items


def _change(one: Run, first: Score, two: Run, second: Score) -> Item:
    """Return how a score changed: as a ratio, or as a difference where it is a share or was not above 0."""
    assert first.value is not None
    assert second.value is not None
    mine, theirs = timed_ends(second, two, second.confidence), timed_ends(first, one, second.confidence)
    exact, share = second.name == "artifact_size", second.unit == "fraction"
    relative = not share and first.value > 0.0 and second.value > 0.0
    between = tails.ratio if relative else tails.difference
    change: Ends | None = between(mine, theirs) if mine and theirs else None
    if exact:
        moved = second.value / first.value if relative else second.value - first.value
        change = Ends(moved, moved, moved)
    if change is not None and relative:
        change = Ends(*(value - 1.0 for value in change))
    indifferent = 0.0 if exact else INDIFFERENT_RELATIVE if relative else INDIFFERENT_ABSOLUTE.get(second.unit, 0.0)
    kind = "ratio" if relative else "difference"
    return Item(
        of=metric_names.PERFORMANCE, metric=second.name, where="", unit=second.unit, better=second.better,
        first=first.value, second=second.value, relative=relative,
        change=second.value / first.value - 1.0 if relative else second.value - first.value,
        low=change.low if change and not exact else None, high=change.high if change and not exact else None,
        outcome=outcome(change, second.better, indifferent), n=min(second.n, first.n),
        method="exact" if exact else f"{kind} of independent measurements; interval from both runs' own",
        reason="exact" if exact else None if change else second.reason or first.reason)


def _half(one: Run, first: Score | None, two: Run, second: Score | None) -> Item:
    """Return what a score is in one run where the other has no value for it."""
    known, lacking, run = (second, first, one) if second is not None and second.value is not None else (
        first, second, two)
    assert known is not None
    why = lacking.reason if lacking is not None and lacking.reason else "not measured"
    return Item(
        of=metric_names.PERFORMANCE, metric=known.name, where="", unit=known.unit, better=known.better,
        first=first.value if first else None, second=second.value if second else None, relative=False, change=None,
        low=None, high=None, outcome="changed", n=known.n, method=known.method,
        reason=f"absent in {'the first run' if run is one else 'the second run'}: {why}")


def _half_evaluated(one: Run, two: Run) -> list[Item]:
    """Return an item for every score of quality that only one of two corresponding evaluations has a value for."""
    before = {(each.property, place(each)): each for each in one.evaluations}
    items = []
    for evaluation in two.evaluations:
        where = place(evaluation)
        earlier = before.get((evaluation.property, where))
        if earlier is None:
            continue
        firsts, seconds = ({score.name: score for score in of.scores} for of in (earlier, evaluation))
        for name in dict.fromkeys((*firsts, *seconds)):
            first, second = firsts.get(name), seconds.get(name)
            if (first is not None and first.value is not None) != (second is not None and second.value is not None):
                items.append(replace(_half(one, first, two, second), of=evaluation.property, where=where))
    return items


def _left_out(one: Run, two: Run, paired: Sequence[Evaluation]) -> tuple[str, ...]:
    """Return the evaluations of either run that `paired` holds no change of, each with the reason."""
    known = {(each.property, place(each)) for each in paired if each.reference_scores}
    first, second = ({(each.property, place(each)): each for each in run.evaluations} for run in (one, two))

    def why(key: tuple[str, str]) -> str:
        if key not in first or key not in second:
            return f"only in the {'second' if key in second else 'first'} run"
        if _class_map(one) != _class_map(two):
            return "the classes differ"
        return "the runs saw other images" if first[key].dataset.digest != second[key].dataset.digest else \
            "no change is computed image by image"

    return tuple(f"{of} on {where}: {why((of, where))}" for of, where in dict.fromkeys((*first, *second))
                 if (of, where) not in known)


def _paired_item(evaluation: Evaluation, where: str, score: Score) -> Item:
    own = {one.name: one for one in evaluation.scores}.get(metric_names.plain(score.name))
    value = own.value if own else None
    return Item(
        of=evaluation.property, metric=metric_names.plain(score.name), where=where, unit=score.unit,
        better=score.better, first=None if value is None or score.value is None else value - score.value,
        second=value, relative=False, change=score.value, low=score.low, high=score.high,
        outcome=outcome(ends(score), score.better, INDIFFERENT_ABSOLUTE.get(score.unit, 0.0)), n=score.n,
        method=score.method, reason=score.reason)


def _methods(first: Sequence[Score], second: Sequence[Score], where: str) -> list[Difference]:
    theirs = {score.name: score for score in second}
    found = []
    for score in first:
        other = theirs.get(score.name)
        if other is None or score.value is None or other.value is None:
            continue
        one, two = _method_key(score), _method_key(other)
        if one != two and (score.method_id is None) == (other.method_id is None):
            found.append(Difference(what="method", where=" of ".join(filter(None, (score.name, where))),
                                    first=repr(one), second=repr(two)))
    return found


_TEXT_HELD_A_RESULT = frozenset({
    "accuracy_mean", "accuracy_paper", "consistency_mean", "consistency_worst", "mean_accuracy", "mean_accuracy_paper",
    "vtab_mean", *(f"error_ratio_{labels}mean_n200" for labels in ("", "multi_", "real_", "multi_real_"))})
"""Scores whose text told, in files without identifiers of methods, what the images had decided."""


def _method_key(score: Score) -> str:
    """Return what tells a score's method apart from another of the same metric."""
    if score.method_id is not None:
        return score.method_id
    # Files of earlier versions hold the text alone, whose part behind the semicolon told numbers of their run.
    return "" if score.name.partition("@")[0] in _TEXT_HELD_A_RESULT else score.method.partition(";")[0].strip()


def _identity(data: DatasetIdentity) -> str:
    return f"{data.images:,} images, digest {data.digest[:12]}"


def _class_map(run: Run) -> str:
    classes = run.artifact.classes
    if classes is None:
        return "none"
    digest = hashlib.sha256("\n".join(classes.ids).encode()).hexdigest()
    return f"{len(classes.ids):,} classes, digest {digest[:12]}"
