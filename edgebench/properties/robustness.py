"""Robustness: other photographs of ImageNet's classes, corrupted images, and images that the model was not made for.

The sets are ImageNet-V2, -A, -R, -Sketch and -Hard, ImageNet's validation images with their reassessed labels (ReaL),
and ImageNet-C; their unweighted mean, without plain accuracy on the validation images, is the paper's summary. Where
the files of ImageNet-C are not at hand, and for the user's own images, the same corruptions are made here; those
results stand by themselves. `edgebench.properties.ood` has the detection of foreign images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, reduce
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from edgebench import class_subsets, metrics, stats
from edgebench.corruptions import CORRUPTIONS, HELD_OUT, SEVERITIES, condition, parse
from edgebench.datasets import (
    IMAGENET_A,
    IMAGENET_C,
    IMAGENET_HARD,
    IMAGENET_R,
    IMAGENET_SKETCH,
    IMAGENET_V2,
    IMAGENET_VAL,
    imagenet_wnids,
)
from edgebench.errors import InvalidInput
from edgebench.metrics import BoolArray
from edgebench.properties import CLEAN, Pass, Predictions, is_plain, ood, paired, rows_of, shared_ids
from edgebench.properties.fidelity import flips
from edgebench.properties.mistakes import file_number
from edgebench.properties.scores import (
    BOOTSTRAP,
    COMPACT,
    CONSTANT,
    NO_COMMON_IMAGE,
    Reason,
    absent,
    adjusted,
    p_value,
    resampled,
    share,
    share_change,
)
from edgebench.properties.synthetic import combined
from edgebench.record import Better, DatasetIdentity, Evaluation, Score
from edgebench.stats import FloatArray, IntArray

SUMMARY = "Accuracy on shifted and corrupted images, ImageNet's variants or your own; detection of foreign images"
NEEDS = "labelled images: --data ROOT with ROOT/<class>/<image>, or with imagenet-v2, imagenet-c, …"

SHIFTED = (IMAGENET_V2, IMAGENET_A, IMAGENET_R, IMAGENET_SKETCH, IMAGENET_HARD)
"""Sets of other photographs and drawings."""
REAL = "ReaL"
SEVEN = (IMAGENET_V2, IMAGENET_A, IMAGENET_R, IMAGENET_C, IMAGENET_SKETCH, IMAGENET_HARD, REAL)
"""What the paper's mean is over."""
ALEXNET: Mapping[str, float] = {
    "gaussian_noise": 0.886428, "shot_noise": 0.894468, "impulse_noise": 0.922640, "defocus_blur": 0.819880,
    "glass_blur": 0.826268, "motion_blur": 0.785948, "zoom_blur": 0.798360, "snow": 0.866816, "frost": 0.826572,
    "fog": 0.819324, "brightness": 0.564592, "contrast": 0.853204, "elastic_transform": 0.646056, "pixelate": 0.717840,
    "jpeg_compression": 0.606500}
"""AlexNet's error on ImageNet-C, mean over severities, by corruption: what errors are divided by."""
ALEXNET_CLEAN = 0.4348
"""AlexNet's error on the validation images (torchvision's weights)."""
CLASSES, IMAGES = 1000, 50_000

_SUBSETS = class_subsets.BY_DATASET
_LARGEST = "share of images whose largest logit is"
_BY_TARGET = f"{_LARGEST} the target's, lowest index on ties"
_AMONG = "{} the target's among the logits of the set's {} classes alone (their digest: {}…), lowest index on ties"
_METHODS = {
    **dict.fromkeys((IMAGENET_V2, IMAGENET_SKETCH), _BY_TARGET),
    **{name: _AMONG.format(_LARGEST, len(classes), class_subsets.digest(classes)[:16])
       for name, classes in _SUBSETS.items()},
    IMAGENET_HARD: f"{_LARGEST} of any class in the image's list; the set's size depends on its revision",
    REAL: f"{_LARGEST} any of the reassessed (ReaL) labels, images without one left out"}
_BOOTSTRAP = "percentile bootstrap over images, each with all its corruptions, 1,000 resamples"
_MINUS = "minus the reference's on the same images"
NO_REAL = Reason(
    "no-data", "the ReaL labels are missing: install imagenet-x or timm, or put real.json into the data root")
NO_REAL_IMAGE = Reason(
    "other-classes",
    "none of these images has a ReaL label, or the model's classes are not ImageNet's in their usual order")
_NOT_CLEAN = Reason("incomplete", "not all of these images were measured uncorrupted")
_NONE_RIGHT = Reason("undefined", "no uncorrupted image is right")
_WHERE_MADE = "; corruptions made here, not the files of ImageNet-C"
_WHERE_PUBLISHED = f"; comparable with published numbers over all {IMAGES:,} images alone"
_AS_PUBLISHED = "take the file as it was published"
# Of a data root, then of installed packages: all hold the same lists.
_REAL_COPIES = ("imagenet-x/imagenet_real_labels.jsonl", "imagenet-x/real.json", "real.json")
_REAL_IN_PACKAGES = ("imagenet_x/annotations/imagenet_real_labels.jsonl", "timm/data/_info/imagenet_real_labels.json")


def passes(datasets: Sequence[str], preset: str = "native") -> tuple[Pass, ...]:
    """Return the clean pass over every set this property can use, and all corruptions of ImageNet-C and plain sets.

    The validation images are not corrupted here where ImageNet-C's files, which were made from them, are at hand.
    """
    corrupted = (*(condition(name, severity) for name in (*CORRUPTIONS, *HELD_OUT) for severity in SEVERITIES),)
    found = []
    for dataset in datasets:
        if is_plain(dataset) or dataset in SHIFTED or dataset.startswith(ood.PREFIX):
            found.append(Pass(dataset, CLEAN, preset))
        if dataset == IMAGENET_C or (is_plain(dataset) and not (dataset == IMAGENET_VAL and IMAGENET_C in datasets)):
            found += [Pass(dataset, one, preset) for one in corrupted]
    return tuple(found)


def score(predictions: Mapping[Pass, Predictions], reference: Mapping[Pass, Predictions] | None,
          ) -> tuple[Evaluation, ...]:
    """Return an evaluation per shifted set, per set under corruptions, of the mean of the seven, and per foreign set.

    Raises:
        InvalidInput: The reference saw other images, or a file with ReaL labels is damaged.

    Source:
        Vishniakov, Shen & Liu 2023 (arXiv:2311.09215), robustness; the sets' papers where their numbers are made.
    """
    evaluations: list[Evaluation] = []
    for preset in dict.fromkeys(key.preset for key in predictions):
        here = {key: found for key, found in predictions.items() if key.preset == preset}
        shifted = [_judged(name, here, reference) for name in (*SHIFTED, REAL) if _key(name, preset) in here]
        families = [_family(dataset, here, reference)
                    for dataset in dict.fromkeys(key.dataset for key in here if parse(key.condition))]
        evaluations += _shift_evaluations(shifted)
        evaluations += [_corruption_evaluation(family) for family in families]
        evaluations += _summary(shifted, [one for one in families if one.published], preset)
        evaluations += ood.evaluations(here, reference)
    return tuple(evaluations)


def real_labels_at_hand(images: str | Path | None = None) -> tuple[tuple[int, ...], ...] | None:
    """Return the reassessed (ReaL) labels of the 50,000 validation images, entry i for file number i + 1, or None.

    Read from the data root, else from an installed package that carries them (imagenet-x, timm), which is not imported.

    Args:
        images: ``ROOT/imagenet/val``: then ``ROOT/imagenet-x`` and ``ROOT/real.json`` are looked at first.

    Raises:
        InvalidInput: The file is of another form.

    Source:
        Beyer et al. 2020 (arXiv:2006.07159); `real.json` of google-research/reassessed-imagenet.
    """
    places = [Path(images).parent.parent / copy for copy in _REAL_COPIES] if images is not None else []
    for file in _REAL_IN_PACKAGES:
        package, _, inside = file.partition("/")
        spec = find_spec(package)
        places += [Path(place) / inside for place in (spec.submodule_search_locations or ())] if spec else []
    path = next((place for place in places if place.is_file()), None)
    return None if path is None else _read_real(path)


def real_outcome(found: Predictions) -> tuple[BoolArray, BoolArray] | None:
    """Return (correct, has labels) per image (N,) by the ReaL labels; None where no file with them is at hand.

    Labels are looked up by the file number in the image's name. No image has labels where the model's classes are not
    ImageNet's 1,000 in their usual order. An image without labels is neither right nor wrong: leave it out.
    """
    lists = real_labels_at_hand(found.dataset.source)
    if lists is None:
        return None
    predicted, targets, ids = found.outcomes.predicted.tolist(), found.targets.tolist(), found.ids.tolist()
    rank = {wnid: k for k, wnid in enumerate(imagenet_wnids())}
    usual = found.outcomes.classes == CLASSES and all(
        rank.get(name.partition("/")[0], target) == target for name, target in zip(ids, targets, strict=True))
    numbers = [file_number(name) if usual else None for name in ids]
    labels = [() if number is None else lists[number - 1] for number in numbers]
    return (np.array([one in accepted for one, accepted in zip(predicted, labels, strict=True)], np.bool_),
            np.array([bool(accepted) for accepted in labels], np.bool_))


@lru_cache(maxsize=1)
def _read_real(path: Path) -> tuple[tuple[int, ...], ...]:
    try:
        lists = msgspec.json.decode(path.read_bytes(), type=tuple[tuple[int, ...], ...])
    except (OSError, msgspec.DecodeError) as error:
        raise InvalidInput(f"cannot read the ReaL labels {path}: {error}", _AS_PUBLISHED) from error
    if len(lists) != IMAGES:
        raise InvalidInput(f"{path}: expected {IMAGES:,} lists of labels, got {len(lists):,}", _AS_PUBLISHED)
    return lists


# --- Shifted sets and ReaL -------------------------------------------------------------------------------------------


class _Answers(NamedTuple):
    """One variant's answers on a shifted set; arrays over the images that count (N,)."""

    ids: npt.NDArray[np.str_]
    predicted: IntArray
    right: BoolArray
    in_top5: BoolArray | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Judged:
    """A shifted set, or the validation images by their ReaL labels."""

    name: str
    key: Pass
    dataset: DatasetIdentity
    mine: _Answers | Reason
    """Or why there are none."""
    theirs: _Answers | None
    """The reference's, on the same images."""


def _key(name: str, preset: str) -> Pass:
    return Pass(IMAGENET_VAL if name == REAL else name, CLEAN, preset)


def _judged(name: str, here: Mapping[Pass, Predictions], reference: Mapping[Pass, Predictions] | None) -> _Judged:
    key = _key(name, next(iter(here)).preset)
    found = here[key]
    other, mine = paired(found, reference, key), _answers(name, found)
    theirs = _answers(name, other) if other and isinstance(mine, _Answers) else None
    return _Judged(name=name, key=key, dataset=found.dataset, mine=mine,
                   theirs=theirs if isinstance(theirs, _Answers) else None)


def _answers(name: str, found: Predictions) -> _Answers | Reason:
    if name in _SUBSETS:
        if found.compact and not found.stored_within:
            return COMPACT
        try:
            found = found.within(_SUBSETS[name])
        except InvalidInput as error:
            return Reason("other-classes", error.message)
    outcomes = found.outcomes
    if name == REAL:
        real = real_outcome(found)
        if real is None:
            return NO_REAL
        correct, chosen = real
        if not chosen.any():
            return NO_REAL_IMAGE
        return _Answers(found.ids[chosen], outcomes.predicted[chosen], correct[chosen], None)
    if name == IMAGENET_HARD:
        if found.labels is None:
            return Reason("no-data", "the lists of accepted classes were not stored")
        return _Answers(found.ids, outcomes.predicted, (found.labels == outcomes.predicted[:, None]).any(axis=1), None)
    return _Answers(found.ids, outcomes.predicted, outcomes.correct, None if name in _SUBSETS else outcomes.in_top5)


def _shift_evaluations(shifted: Sequence[_Judged]) -> list[Evaluation]:
    turned = {one.name: metrics.flips(one.theirs.right, one.mine.right) for one in shifted
              if one.theirs is not None and isinstance(one.mine, _Answers)}
    p_values = [stats.mcnemar_exact(*both) for both in turned.values()]
    tests = dict(zip(turned, zip(p_values, stats.holm(p_values), strict=True), strict=True))
    return [Evaluation(property="robustness", dataset=one.dataset, condition=CLEAN, preset=one.key.preset,
                       predictions=(one.key.file,), scores=_shift_scores(one),
                       reference_scores=_shift_changes(one, tests[one.name], len(tests)) if one.name in tests else ())
            for one in shifted]


def _shift_scores(one: _Judged) -> tuple[Score, ...]:
    name, method = _accuracy_name(one), _METHODS[one.name]
    if isinstance(one.mine, Reason):
        return (share(name, 0, 0, "higher", method, without=one.mine),)
    n = len(one.mine.right)
    top1 = share(name, int(one.mine.right.sum()), n, "higher", method)
    if one.mine.in_top5 is None:
        return (top1,)
    return top1, share("accuracy_top5", int(one.mine.in_top5.sum()), n, "higher",
                       "share of images with the target among the five largest logits")


def _shift_changes(one: _Judged, p_values: tuple[float, float], tests: int) -> tuple[Score, ...]:
    assert one.theirs is not None
    assert isinstance(one.mine, _Answers)
    n = len(one.mine.right)
    negative, positive = metrics.flips(one.theirs.right, one.mine.right)
    test = "exact two-sided McNemar test that negative and positive flips are equally likely"
    return (
        share_change(f"{_accuracy_name(one)}_change", negative, positive, n, f"{_METHODS[one.name]}, {_MINUS}"),
        *flips(one.theirs.right, one.mine.right),
        share("disagreement", int((one.mine.predicted != one.theirs.predicted).sum()), n, "lower",
              "share of images with another top class than the reference's"),
        p_value("mcnemar_p", p_values[0], n, test),
        adjusted("mcnemar_p_holm", p_values[1], n, test, tests, over="the shifted sets"))


def _accuracy_name(one: _Judged) -> str:
    return "accuracy_real" if one.name == REAL else "accuracy_top1"


# --- Corruptions -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Sweep:
    """One variant's answers under corruptions, on the N images that all passes share."""

    conditions: tuple[str, ...]
    right: BoolArray
    """(conditions, N)"""
    predicted: npt.NDArray[np.int32]
    """(conditions, N)"""
    clean: tuple[BoolArray, IntArray] | None
    """(right, predicted) uncorrupted, (N,) each; None where not all of these images have that."""

    @property
    def complete(self) -> tuple[str, ...]:
        """Corruptions with all severities, the benchmark's 15 before the held-out ones."""
        return tuple(name for name in (*CORRUPTIONS, *HELD_OUT)
                     if all(condition(name, severity) in self.conditions for severity in SEVERITIES))

    def over_severities(self, flags: BoolArray) -> npt.NDArray[np.float32]:
        """Return sums (complete, N) over the severities of each complete corruption of flags (conditions, N)."""
        place = {one: k for k, one in enumerate(self.conditions)}
        sums = np.empty((len(self.complete), flags.shape[1]), np.float32)
        for k, name in enumerate(self.complete):
            sums[k] = flags[[place[condition(name, severity)] for severity in SEVERITIES]].sum(axis=0)
        return sums


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Family:
    """A set under corruptions."""

    dataset: DatasetIdentity
    preset: str
    files: tuple[str, ...]
    published: bool
    """ImageNet-C's files, not corruptions made here."""
    ids: npt.NDArray[np.str_]
    mine: _Sweep
    compared: tuple[_Sweep, _Sweep] | None
    """(this variant's, the reference's), over the conditions that both have."""


class _Measures:
    """Numbers over several corruptions as functions of per-image means, so that one resampling serves all of them.

    Args:
        complete: Corruptions with all their severities.
        published: Whether AlexNet's errors may be divided by.
        clean: Whether there are predictions of the uncorrupted images.
    """

    def __init__(self, complete: tuple[str, ...], *, published: bool, clean: bool) -> None:
        self.complete, self.published, self.clean = complete, published, clean
        self.all_15 = complete[:len(CORRUPTIONS)] == CORRUPTIONS
        self.held_out = complete[-len(HELD_OUT):] == HELD_OUT
        self.named = [name for name in complete if name in ALEXNET] if published else []

    def table(self, sweep: _Sweep) -> npt.NDArray[np.float32]:
        """Return what `values` wants the row means of (rows, N)."""
        right = sweep.over_severities(sweep.right)
        if not self.clean or sweep.clean is None:
            return right
        same = sweep.over_severities(sweep.predicted == sweep.clean[1])
        return np.vstack([right, same, sweep.clean[0][None].astype(np.float32)])

    def names(self) -> list[tuple[str, str, Better, str]]:
        """Return (name, unit, better, method) of each value."""
        over, fifteen = "mean over the five severities", "unweighted mean over the 15 corruptions"
        same = "share of images with the same largest logit as uncorrupted"
        found: list[tuple[str, str, Better, str]] = [
            (f"accuracy@{name}", "fraction", "higher", f"top-1, {over}") for name in self.complete]
        if self.clean:
            found += [(f"consistency@{name}", "fraction", "higher", f"{same}, {over}") for name in self.complete]
        for name in self.named:
            found += [(f"corruption_error@{name}", "fraction", "lower", f"top-1 error, {over}"),
                      (f"ce@{name}", "1", "lower", f"CE: top-1 error, {over}, over AlexNet's {ALEXNET[name]}")]
        if self.all_15:
            found.append(("mean_corruption_accuracy", "fraction", "higher", f"top-1, {fifteen} and five severities"))
            if self.clean:
                found += [("mean_consistency", "fraction", "higher", f"{same}, {fifteen} and five severities"),
                          ("relative_corruption_accuracy", "1", "higher",
                           f"top-1, {fifteen} and five severities, over top-1 on the same images uncorrupted")]
            if self.published:
                found.append(("mean_ce", "1", "lower", f"mCE: 100 times the {fifteen} of error over AlexNet's"))
            if self.published and self.clean:
                increase = f"error less error on the same images uncorrupted, over AlexNet's with {ALEXNET_CLEAN}"
                found.append(("relative_mean_ce", "1", "lower", f"relative mCE: 100 times the {fifteen} of {increase}"))
        if self.held_out:
            found.append(("held_out_corruption_accuracy", "fraction", "higher",
                          f"top-1, unweighted mean over {', '.join(HELD_OUT)} and five severities; in no other mean"))
        return found

    def values(self, means: FloatArray) -> FloatArray:
        """Return the value of each of `names` from the row means of `table`; NaN where it is not defined."""
        count, severities = len(self.complete), len(SEVERITIES)
        right = means[:count] / severities
        same, clean = means[count:2 * count] / severities, means[-1] if self.clean else np.nan
        found = [right, same] if self.clean else [right]
        error, alexnet = 1.0 - right[:len(self.named)], np.array([ALEXNET[name] for name in self.named])
        found.append(np.stack([error, error / alexnet], axis=1).ravel())
        if self.all_15:
            mean = right[:15].mean()
            found.append(mean[None])
            if self.clean:
                found.append(np.array([same[:15].mean(), mean / clean if clean > 0.0 else np.nan]))
            if self.published:
                found.append(100.0 * (error / alexnet).mean(keepdims=True))
            if self.published and self.clean:
                found.append(100.0 * ((error - 1.0 + clean) / (alexnet - ALEXNET_CLEAN)).mean(keepdims=True))
        if self.held_out:
            found.append(right[-len(HELD_OUT):].mean(keepdims=True))
        return np.concatenate(found)


def _family(dataset: str, here: Mapping[Pass, Predictions], reference: Mapping[Pass, Predictions] | None) -> _Family:
    keys = sorted((key for key in here if key.dataset == dataset and parse(key.condition)),
                  key=lambda key: _order(key.condition))
    clean = Pass(IMAGENET_VAL if dataset == IMAGENET_C else dataset, CLEAN, keys[0].preset)
    ids = reduce(shared_ids, [here[key].ids for key in keys])
    others = {key: other for key in (*keys, clean) if key in here and (other := paired(here[key], reference, key))}
    both = [key for key in keys if key in others]
    return _Family(
        dataset=here[keys[0]].dataset, preset=clean.preset, published=dataset == IMAGENET_C, ids=ids,
        files=tuple(key.file for key in (*([clean] if clean in here else []), *keys)),
        mine=_sweep(keys, here, ids, clean),
        compared=(_sweep(both, here, ids, clean), _sweep(both, others, ids, clean)) if both else None)


def _order(name: str) -> tuple[int, int]:
    corruption, severity = parse(name) or ("", 0)
    return (*CORRUPTIONS, *HELD_OUT).index(corruption), severity


def _sweep(keys: Sequence[Pass], predictions: Mapping[Pass, Predictions], ids: npt.NDArray[np.str_], clean: Pass,
           ) -> _Sweep:
    right = np.empty((len(keys), len(ids)), np.bool_)
    predicted = np.empty(right.shape, np.int32)
    for k, key in enumerate(keys):
        rows, outcomes = rows_of(predictions[key].ids, ids), predictions[key].outcomes
        assert rows is not None
        right[k], predicted[k] = outcomes.correct[rows], outcomes.predicted[rows]
    uncorrupted = predictions.get(clean)
    rows = rows_of(uncorrupted.ids, ids) if uncorrupted else None
    return _Sweep(
        conditions=tuple(key.condition for key in keys), right=right, predicted=predicted,
        clean=None if uncorrupted is None or rows is None else
        (uncorrupted.outcomes.correct[rows], uncorrupted.outcomes.predicted[rows]))


def _corruption_evaluation(family: _Family) -> Evaluation:
    return Evaluation(
        property="robustness", dataset=family.dataset, preset=family.preset, predictions=family.files,
        condition="corruptions" if family.published else "imagenet-c-generated", scores=_corruption_scores(family),
        reference_scores=_corruption_changes(family, *family.compared) if family.compared and family.ids.size else ())


def _corruption_scores(family: _Family) -> tuple[Score, ...]:
    n, where, facts = len(family.ids), _where(family), _subset(family)
    if n == 0:
        return (_lacking(family, "mean_corruption_accuracy", NO_COMMON_IMAGE),)
    sweep = family.mine
    measures = _Measures(sweep.complete, published=family.published, clean=sweep.clean is not None)
    numbers = _resampled(measures.table(sweep), measures.values)
    scores = [share(f"accuracy@{one}", int(row.sum()), n, "higher", f"{_BY_TARGET}{where}", facts=facts)
              for one, row in zip(sweep.conditions, sweep.right, strict=True)]
    scores += [resampled(name, of, unit, better, n, f"{method}{where}; {_BOOTSTRAP}", undefined=_NONE_RIGHT,
                         facts=facts)
               for (name, unit, better, method), of in zip(measures.names(), numbers, strict=True)]
    return (*scores, *_missing(family, measures))


def _missing(family: _Family, measures: _Measures) -> list[Score]:
    def incomplete(names: Sequence[str]) -> Reason:
        return Reason("incomplete", f"not measured at all five severities: {', '.join(names)}")

    lacking = [name for name in CORRUPTIONS if name not in measures.complete]
    found = [_lacking(family, f"accuracy@{name}", Reason("incomplete", "not measured at all five severities"))
             for name in lacking]
    if lacking:
        found.append(_lacking(family, "mean_corruption_accuracy", incomplete(lacking)))
    if lacking and family.published:
        found.append(_lacking(family, "mean_ce", incomplete(lacking)))
    if not measures.held_out:
        rest = [name for name in HELD_OUT if name not in measures.complete]
        found.append(_lacking(family, "held_out_corruption_accuracy", incomplete(rest)))
    if not measures.clean:
        found.append(_lacking(family, "relative_mean_ce" if family.published else "relative_corruption_accuracy",
                              _NOT_CLEAN))
    return found


def _lacking(family: _Family, name: str, reason: Reason) -> Score:
    """Return a score over corruptions that could not be had, with the method that it would have."""
    every = _Measures((*CORRUPTIONS, *HELD_OUT), published=family.published, clean=True)
    unit, better, method = next((unit, better, method) for of, unit, better, method in every.names() if of == name)
    return absent(name, unit, better, len(family.ids), f"{method}{_where(family)}; {_BOOTSTRAP}", reason,
                  kind="resampled", method_id=BOOTSTRAP, facts=_subset(family))


def _corruption_changes(family: _Family, mine: _Sweep, theirs: _Sweep) -> tuple[Score, ...]:
    n, where, facts = len(family.ids), _where(family), _subset(family)
    scores = []
    for k, one in enumerate(mine.conditions):
        negative, positive = metrics.flips(theirs.right[k], mine.right[k])
        scores.append(share_change(f"accuracy_change@{one}", negative, positive, n, f"{_BY_TARGET}{where}, {_MINUS}",
                                   facts=facts))
    measures = _Measures(mine.complete, published=family.published,
                         clean=mine.clean is not None and theirs.clean is not None)
    if not measures.complete:
        return tuple(scores)
    after, before = measures.table(mine), measures.table(theirs)
    differs = mine.over_severities(mine.predicted != theirs.predicted)
    rows = len(after)

    def statistics(means: FloatArray) -> FloatArray:
        return np.concatenate([measures.values(means[:rows]) - measures.values(means[rows:2 * rows]),
                               means[2 * rows:] / len(SEVERITIES)])

    numbers = iter(_resampled(np.vstack([after, before, differs]), statistics))
    how = f"{where}; {_MINUS}; paired {_BOOTSTRAP}"
    none_right = Reason("undefined", f"{_NONE_RIGHT.words}, here or there")
    scores += [resampled(_changed(name), next(numbers), unit, better, n, f"{method}{how}", undefined=none_right,
                         facts=facts)
               for name, unit, better, method in measures.names()]
    scores += [resampled(f"disagreement@{name}", next(numbers), "fraction", "lower", n,
                         "share of images with another top class than the reference's, mean over the five severities"
                         f"{where}; {_BOOTSTRAP}", facts=facts) for name in measures.complete]
    p_values = [clustered_mcnemar(row) for row in (after - before)[:len(measures.complete)]]
    test = ("McNemar's test for clusters, each an image under the five severities (two-sided, asymptotic), that "
            f"negative and positive flips are equally likely{where}")
    scores += [p_value(f"mcnemar_p@{name}", p, n, test, method_id="mcnemar-clustered", facts=facts)
               for name, p in zip(measures.complete, p_values, strict=True)]
    scores += [adjusted(f"mcnemar_p_holm@{name}", p, n, test, len(p_values), over="the corruptions",
                        method_id="mcnemar-clustered", facts=facts)
               for name, p in zip(measures.complete, stats.holm(p_values), strict=True)]
    return tuple(scores)


def clustered_mcnemar(gains: npt.ArrayLike) -> float:
    """Return the two-sided p-value of McNemar's test where images are seen several times; 1 without any flip.

    The statistic (sum of gains)^2/(sum of squared gains) is compared with chi-squared of one degree of freedom. With
    one view of each image it is McNemar's, without continuity correction.

    Args:
        gains: Per image (N,), positive less negative flips over its views; as many views for each image.

    Source:
        Durkalski et al. 2003, Statistics in Medicine 22:2417.
    """
    values = np.asarray(gains, np.float64)
    squares = float((values * values).sum())
    return math.erfc(abs(float(values.sum())) / math.sqrt(2.0 * squares)) if squares else 1.0


def _where(family: _Family) -> str:
    return _WHERE_PUBLISHED if family.published else _WHERE_MADE


def _subset(family: _Family) -> dict[str, int]:
    return {"subset_of": IMAGES} if family.published and len(family.ids) != IMAGES else {}


def _changed(name: str) -> str:
    metric, at, level = name.partition("@")
    return f"{metric}_change{at}{level}"


# --- The mean of the seven -------------------------------------------------------------------------------------------


class _Member(NamedTuple):
    """One of the seven: share of right answers per image (N,)."""

    ids: npt.NDArray[np.str_]
    mine: FloatArray
    theirs: FloatArray | None
    dataset: DatasetIdentity
    files: tuple[str, ...]


def _summary(shifted: Sequence[_Judged], corrupted: Sequence[_Family], preset: str) -> list[Evaluation]:
    members: dict[str, _Member] = {}
    for one in shifted:
        if isinstance(one.mine, _Answers):
            members[one.name] = _Member(one.mine.ids, one.mine.right.astype(np.float64),
                                        one.theirs.right.astype(np.float64) if one.theirs else None, one.dataset,
                                        (one.key.file,))
    for family in corrupted:
        mine, theirs = _mean_of_15(family.mine), _mean_of_15(family.compared[1]) if family.compared else None
        if mine is not None and family.ids.size:
            members[IMAGENET_C] = _Member(family.ids, mine, theirs, family.dataset, family.files)
    if not set(members) & set(SHIFTED):
        return []
    seven = [members[name] for name in SEVEN if name in members]
    files = tuple(dict.fromkeys(file for one in seven for file in one.files))
    n = sum(len(one.ids) for one in seven)
    method = ("unweighted mean of top-1 on ImageNet-V2, -A and -R (among their 200 classes), -C (mean over corruptions "
              "and severities), -Sketch, -Hard and ReaL, without validation accuracy itself; normal interval from the "
              "variances of the seven, images common to ImageNet-C and ReaL taken together; ImageNet-C"
              + _WHERE_PUBLISHED.removeprefix(";"))
    facts = {f"{key}_imagenet_c": value for family in corrupted for key, value in _subset(family).items()}
    missing = [name for name in SEVEN if name not in members]
    changes: tuple[Score, ...] = ()
    if missing:
        scores = (absent("mean_of_seven", "fraction", "higher", n, method, kind="estimate", method_id="normal-error",
                         reason=Reason("incomplete", f"not measured: {', '.join(missing)}")),)
    else:
        scores = (_mean_of_seven("mean_of_seven", seven, [one.mine for one in seven], method, facts),)
        differences = [one.mine - one.theirs for one in seven if one.theirs is not None]
        if len(differences) == len(seven):
            changes = (_mean_of_seven("mean_of_seven_change", seven, differences,
                                      f"{method}; {_MINUS}, paired", facts),)
    identities = list({one.dataset.digest: one.dataset for one in seven}.values())
    return [Evaluation(property="robustness", dataset=combined("imagenet-shifts", identities, CLASSES), preset=preset,
                       condition="summary", predictions=files, scores=scores, reference_scores=changes)]


def _mean_of_15(sweep: _Sweep) -> FloatArray | None:
    if sweep.complete[:len(CORRUPTIONS)] != CORRUPTIONS:
        return None
    right: FloatArray = sweep.over_severities(sweep.right)[:len(CORRUPTIONS)].mean(axis=0, dtype=np.float64)
    return right / len(SEVERITIES)


def _mean_of_seven(name: str, seven: Sequence[_Member], values: Sequence[FloatArray], method: str,
                   facts: Mapping[str, int]) -> Score:
    mean = sum(float(one.mean()) for one in values) / len(values)
    # What each image adds to the mean, less what it adds on average; images of one origin together.
    parts = [(one - one.mean()) / (len(one) * len(values)) for one in values]
    c, real = SEVEN.index(IMAGENET_C), SEVEN.index(REAL)
    origin = np.unique(np.concatenate([seven[c].ids, seven[real].ids]), return_inverse=True)[1].reshape(-1)
    shared = np.bincount(origin, np.concatenate([parts[c], parts[real]]))
    variance = sum(float((one * one).sum()) for k, one in enumerate(parts) if k not in {c, real})
    half = stats.normal_quantile(0.975) * math.sqrt(variance + float((shared * shared).sum()))
    n = sum(map(len, values))
    reason = CONSTANT._replace(words="the images of each set are all alike: nothing bounds it") if half == 0.0 else None
    return Score(name=name, value=mean, low=None if reason else mean - half, high=None if reason else mean + half,
                 unit="fraction", better="higher", n=n, method=method, kind="estimate", method_id="normal-error",
                 facts=dict(facts), reason=reason and reason.words, reason_code=reason and reason.code)


def _resampled(table: npt.NDArray[np.float32], statistics: Callable[[FloatArray], FloatArray],
               ) -> list[tuple[float, float, float]]:
    """Return (value, low, high) of each statistic, a function of the row means of `table` (rows, images)."""
    n = table.shape[1]

    def of_resample(chosen: IntArray) -> FloatArray:
        # Whole numbers: their sums are exact in float32.
        weights = np.bincount(chosen, minlength=n).astype(np.float32)
        means: FloatArray = np.einsum("rn,n->r", table, weights).astype(np.float64) / n
        return statistics(means)

    estimate = statistics(table.mean(axis=1, dtype=np.float64))
    low, high = stats.bootstrap(of_resample, n)
    return list(zip(estimate.tolist(), low.tolist(), high.tolist(), strict=True))

