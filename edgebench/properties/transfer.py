"""Transfer: what a linear probe on frozen features reads of other tasks, and what quantization takes away there.

Two probes tell a shift of the features from a loss of information. *Swap*: fitted on the reference's features and read
on this variant's, as when a head trained in FP32 is put on a quantized backbone. *Refit*: fitted on this variant's own
features. What refitting brings back was drift; what it cannot bring back is lost.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from edgebench import metrics, probe, stats
from edgebench.metrics import BoolArray
from edgebench.probe import Features, Probe
from edgebench.properties import CLEAN, Pass, Predictions, is_plain, labelled, paired
from edgebench.properties.scores import (
    CONSTANT,
    Facts,
    Reason,
    adjusted,
    counted,
    is_constant,
    p_value,
    resampled,
    share,
    share_change,
)
from edgebench.properties.synthetic import combined
from edgebench.record import Better, DatasetIdentity, Evaluation, Score
from edgebench.stats import FloatArray, IntArray

SUMMARY = "Linear probes on the features: accuracy on VTAB tasks and your own images; drift and loss by quantization"
NEEDS = ("an artifact with an output `features`, and labelled images: --data ROOT with ROOT/<class>/<image>, or with "
         "ROOT/vtab/<task>/{train800,val200,test}/<label>/<image>")

PREFIX = "vtab/"
SPLITS = ("train800", "val200", "test")
TASKS = (
    "caltech101", "cifar100", "dtd", "oxford_flowers102", "oxford_iiit_pet", "sun397", "svhn", "patch_camelyon",
    "eurosat", "resisc45", "diabetic_retinopathy", "clevr_count_all", "clevr_closest_object_distance", "dmlab",
    "kitti_closest_vehicle_distance", "dsprites_label_x_position", "dsprites_label_orientation",
    "smallnorb_label_azimuth", "smallnorb_label_elevation")
"""VTAB's 19 (Zhai et al. 2019, arXiv:1910.04867), as their folders are best called."""
TRAIN, VAL, TEST, UNUSED = range(4)
MIN_IMAGES_PER_CLASS = 5
"""Fewer leave one of the three splits without an image of the class."""
MANY_CLASSES, MANY_IMAGES, MOST_PER_CLASS = 200, 20_000, 50
LARGEST_FIT = 4_000_000_000
"""Train images x dimensions x classes: some minutes on two cores. ImageNet's 1,000 classes are beyond."""
_RESAMPLES = 1000
_OWN, _OWN_UNIT, _THEIRS, _THEIRS_UNIT, _SWAP = range(5)
_PROBE = ("by a linear probe (multinomial logistic regression, L-BFGS, features standardised by the train images, C "
          f"the best on val of {len(probe.CS)} values from 1e-4 to 1e2, then fitted on train and val)")
_BOOTSTRAP = f"percentile bootstrap over test images, {_RESAMPLES:,} resamples"
_UNBOUNDED = Reason("no-spread", "all test images are read right, or none is: resampling cannot bound the share")
_READ_OWN = f"share of test images read right {_PROBE} of this variant's own features"


class _Part(NamedTuple):
    """One split of a task."""

    x: Features
    y: IntArray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Task:
    """A task as one variant sees it."""

    dataset: DatasetIdentity
    train: _Part
    val: _Part
    test: _Part
    split_here: bool = False
    """Whether the images were split by a hash of their names; the published splits were taken otherwise."""
    most_per_class: int | None = None
    """Train images per class that were kept; None: all."""

    @property
    def facts(self) -> dict[str, int]:
        """How many images each split has."""
        sizes = {"train_images": len(self.train.y), "val_images": len(self.val.y), "test_images": len(self.test.y)}
        return sizes if self.most_per_class is None else {**sizes, "most_train_images_per_class": self.most_per_class}

    @property
    def how(self) -> str:
        """How the images were split, for a method's text."""
        return "; split 3 : 1 : 1 within each class by a hash of their names" if self.split_here else ""

    def probe(self, *, unit: bool = False) -> Probe:
        """Return the probe of these features, or of them scaled to unit length."""
        train, val = (_unit(part.x) if unit else part.x for part in (self.train, self.val))
        return probe.remembered(train, self.train.y, val, self.val.y)

    def read_by(self, fitted: Probe, *, unit: bool = False) -> BoolArray:
        """Return whether a probe gets each test image right (N,)."""
        # Block by block: a double of 73,728 features would not fit beside them on a small board.
        read = [fitted.predict(_unit(self.test.x[rows]) if unit else self.test.x[rows])
                for rows in metrics.row_blocks(len(self.test.y))]
        return np.asarray(np.concatenate(read) == self.test.y)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Result:
    """What the probes of one task answered; the dictionaries go by `_OWN` and so on, as far as they are at hand."""

    name: str
    preset: str
    files: tuple[str, ...]
    task: _Task
    fitted: Probe
    """Of this variant's own features."""
    no_swap: Reason | None
    """Why there is no `_SWAP`; None where there is one, and without a reference."""
    right: dict[int, BoolArray]
    """Whether each test image is read right (N,)."""
    accuracies: dict[int, FloatArray]
    """Of each resample (R,)."""
    recalls: dict[int, tuple[float, FloatArray]]
    """Mean per-class recall, and that of each resample (R,)."""

    def flips(self, which: int) -> tuple[int, int]:
        """Return (negative, positive) flips against the reference's own probe."""
        return metrics.flips(self.right[_THEIRS], self.right[which])


def passes(datasets: Sequence[str], preset: str = "native") -> tuple[Pass, ...]:
    """Return the clean pass over every split of the VTAB tasks and over every plain data set."""
    tasks = tuple(Pass(name, CLEAN, preset) for name in datasets if name.startswith(PREFIX))
    return (*labelled(datasets, preset), *tasks)


def score(predictions: Mapping[Pass, Predictions], reference: Mapping[Pass, Predictions] | None,
          ) -> tuple[Evaluation, ...]:
    """Return one evaluation per task, and with two VTAB tasks or more a summary over them, as fractions.

    Raises:
        MissingDependency: scikit-learn is not installed.
        InvalidInput: The reference saw other images.
    """
    groups: dict[tuple[str, str], dict[str, Pass]] = {}
    for key in predictions:
        name, part = (key.dataset, "") if is_plain(key.dataset) else key.dataset.rsplit("/", 1)
        groups.setdefault((key.preset, name), {})[part] = key
    evaluations, results = [], []
    for (preset, name), keys in groups.items():
        found = {part: predictions[key] for part, key in keys.items()}
        others = {part: other for part, key in keys.items() if (other := paired(found[part], reference, key))}
        mine, theirs = _task(name, found), _task(name, others) if len(others) == len(found) else None
        if isinstance(mine, _Task):
            results.append(_result(name, preset, tuple(key.file for key in keys.values()), mine, theirs))
        else:
            evaluations.append(_refusal(name, preset, keys, found, mine))
    for preset in dict.fromkeys(one.preset for one in results):
        chosen = [one for one in results if one.preset == preset]
        adjusted = {which: _holm(chosen, which) for which in (_OWN, _SWAP)}
        evaluations += [
            Evaluation(property="transfer", dataset=one.task.dataset, condition="probe", preset=preset,
                       predictions=one.files, scores=_scores(one), reference_scores=_changes(one, adjusted))
            for one in chosen]
        tasks = [one for one in chosen if one.name.startswith(PREFIX)]
        if len(tasks) > 1:
            evaluations.append(_summary(tasks))
    return tuple(evaluations)


def split(ids: Sequence[str], targets: IntArray, most: int | None = None) -> IntArray:
    """Return `TRAIN`, `VAL` or `TEST` for each image (N,): within each class three, one and one fifth.

    The images of a class are put in order of the SHA-256 of their ids: the first n/5, rounded, are for the test, as
    many more for val. The split so follows from the ids alone; an image more in a class moves three others at most, and
    none of another class.

    Args:
        ids: Names of the images, as many as targets.
        targets: (N,) classes.
        most: Train images kept per class; the others are `UNUSED`.
    """
    hashes = np.array([int.from_bytes(hashlib.sha256(str(name).encode(errors="surrogateescape")).digest()[:8], "big")
                       for name in ids], np.uint64)
    _, place, count = np.unique(targets, return_inverse=True, return_counts=True)
    rank = np.empty(len(targets), np.int64)
    rank[np.lexsort((hashes, place))] = np.arange(len(targets)) - np.repeat(np.cumsum(count) - count, count)
    fifth = ((count + 2) // 5)[place]
    parts = np.select([rank < fifth, rank < 2 * fifth], [TEST, VAL], TRAIN)
    if most is not None:
        parts[rank >= 2 * fifth + most] = UNUSED
    return parts


def _task(name: str, found: Mapping[str, Predictions]) -> _Task | Reason:
    """Return the task, or why there is no probe of it."""
    if any(one.features is None for one in found.values()):
        return Reason("no-features",
                      "the artifact has no output `features` with one row (D) per image: export the model with one")
    most: int | None = None
    if "" in found:
        own = _own_images(found[""])
        dataset = found[""].dataset
        if isinstance(own, Reason):
            return own
        parts, most = own
    else:
        missing = [part for part in SPLITS if part not in found]
        if missing:
            return Reason("incomplete", f"the split {' and '.join(missing)} could not be run")
        in_order = [found[part] for part in SPLITS]
        parts = [_Part(np.asarray(one.features), one.targets) for one in in_order]
        dataset = combined(name, [one.dataset for one in in_order], max(one.dataset.classes for one in in_order))
    train, val, test = parts
    classes = len(np.unique(train.y))
    if classes < 2 or not len(val.y) or not len(test.y):
        return Reason("too-few", "a probe needs train images of 2 classes, val and test images: there are train images "
                      f"of {classes}, {len(val.y)} val and {len(test.y)} test images")
    if not all(np.isfinite(part.x).all() for part in parts):
        return Reason("not-finite", "the features hold NaN or infinity: the artifact overflows in this precision")
    dimensions = min(len(train.y), train.x.shape[1])
    if len(train.y) * dimensions * classes > LARGEST_FIT:
        return Reason("not-computed", f"fitting {len(train.y):,} train images of {classes:,} classes in {dimensions:,} "
                      "dimensions would take hours")
    return _Task(dataset=dataset, train=train, val=val, test=test, split_here="" in found, most_per_class=most)


def _own_images(found: Predictions) -> tuple[list[_Part], int | None] | Reason:
    """Return train, val and test of a labelled folder and how many per class were kept, or why it cannot be split."""
    counts = np.unique(found.targets, return_counts=True)[1]
    if len(counts) < 2 or counts.min() < MIN_IMAGES_PER_CLASS:
        return Reason("too-few", f"a probe needs at least 2 classes and {MIN_IMAGES_PER_CLASS} images in each: there "
                      f"are {len(counts)} classes, the smallest with {counts.min()} images")
    many = len(counts) > MANY_CLASSES or len(found.ids) > MANY_IMAGES
    features = np.asarray(found.features)
    most = MOST_PER_CLASS if many else None
    part = split(found.ids.tolist(), found.targets, most)
    return [_Part(features[part == which], found.targets[part == which]) for which in (TRAIN, VAL, TEST)], most


def _result(name: str, preset: str, files: tuple[str, ...], mine: _Task, theirs: _Task | Reason | None) -> _Result:
    no_swap: Reason | None = None
    fitted = mine.probe()
    right = {_OWN: mine.read_by(fitted), _OWN_UNIT: mine.read_by(mine.probe(unit=True), unit=True)}
    if isinstance(theirs, _Task):
        other = theirs.probe()
        right |= {_THEIRS: theirs.read_by(other), _THEIRS_UNIT: theirs.read_by(theirs.probe(unit=True), unit=True)}
        if len(other.mean) == mine.test.x.shape[1]:
            right[_SWAP] = mine.read_by(other)
        else:
            no_swap = Reason("no-features",
                             f"the reference has {len(other.mean)} features, this variant {mine.test.x.shape[1]}")
    elif theirs is not None:
        no_swap = theirs._replace(words=f"no probe of the reference: {theirs.words}")

    classes, place = np.unique(mine.test.y, return_inverse=True)
    flags = np.stack(list(right.values()), axis=1)
    # Images of one class on which all probes agree are interchangeable: how many of each kind a resample holds is
    # drawn instead of which, the same bootstrap in less time.
    kinds, count = np.unique(np.column_stack([place, flags]), axis=0, return_counts=True)
    seed = int.from_bytes(hashlib.sha256(name.encode(errors="surrogateescape")).digest()[:8], "big")
    draws = np.random.default_rng(seed).multinomial(count.sum(), count / count.sum(), _RESAMPLES).astype(np.float64)
    of_class = (kinds[:, :1] == np.arange(len(classes))).astype(np.float64)
    accuracies, recalls = {}, {}
    for column, which in enumerate(right, start=1):
        hits = draws * kinds[:, column]
        accuracies[which] = hits.sum(axis=1) / len(place)
        recalls[which] = (float(_mean_recall((count * kinds[:, column])[None] @ of_class, count[None] @ of_class)[0]),
                          _mean_recall(hits @ of_class, draws @ of_class))
    return _Result(name=name, preset=preset, files=files, task=mine, fitted=fitted, no_swap=no_swap, right=right,
                   accuracies=accuracies, recalls=recalls)


def _mean_recall(hits: FloatArray, images: FloatArray) -> FloatArray:
    """Return the mean over classes of hits (R, K) over images (R, K), classes without images left out."""
    recall = np.divide(hits, images, out=np.zeros_like(hits), where=images > 0)
    return np.asarray(recall.sum(axis=1) / np.count_nonzero(images, axis=1))


def _scores(one: _Result) -> tuple[Score, ...]:
    n, facts, how = len(one.task.test.y), one.task.facts, one.task.how
    recall, recalls = one.recalls[_OWN]
    cut_off = "" if one.fitted.converged else f"; a fit was cut off after {probe.MAX_ITERATIONS:,} iterations"
    return (
        share("probe_accuracy", int(one.right[_OWN].sum()), n, "higher", f"{_READ_OWN}{how}", facts=facts),
        _bounded("probe_recall", recall, recalls, n, f"mean over classes of the {_READ_OWN}{how}; {_BOOTSTRAP}, "
                 "classes missing in a resample left out", _UNBOUNDED, facts=facts),
        share("probe_accuracy_normalised", int(one.right[_OWN_UNIT].sum()), n, "higher",
              f"{_READ_OWN}, scaled to unit length first{how}", facts=facts),
        counted("probe_c", one.fitted.c, len(one.task.val.y),
                "inverse strength of the L2 penalty that reads most val images right, of equals the one with the least "
                f"cross-entropy there, {_PROBE} of this variant's own features{how}", method_id="grid",
                reason=Reason("not-estimated", f"chosen, not estimated{cut_off}"), facts=facts))


def _changes(one: _Result, adjustments: Mapping[int, Mapping[str, tuple[float, float]]]) -> tuple[Score, ...]:
    n, facts, how = len(one.task.test.y), one.task.facts, one.task.how
    swap = f"share of this variant's test images read right {_PROBE} of the reference's features{how}"
    no_swap = None if one.no_swap is None else share("probe_swap_accuracy", 0, 0, "higher", swap, facts=facts,
                                                     without=one.no_swap)
    if _THEIRS not in one.right:
        return () if no_swap is None else (no_swap,)
    scores = [no_swap or share("probe_swap_accuracy", int(one.right[_SWAP].sum()), n, "higher", swap, facts=facts)]
    for which, stem, subject in ((_OWN, "probe", "the probe fitted on this variant's features"),
                                 (_SWAP, "probe_swap", "the reference's probe on this variant's features")):
        if which not in one.right:
            continue
        less = f"of {subject} minus that of the reference's probe on its own{how}"
        negative, positive = one.flips(which)
        p, holm = adjustments[which][one.name]
        test = f"exact two-sided McNemar test that both kinds of flips of {subject} are equally likely"
        scores += [
            share_change(f"{stem}_accuracy_change", negative, positive, n, f"accuracy {less}", facts=facts),
            _bounded(f"{stem}_recall_change", one.recalls[which][0] - one.recalls[_THEIRS][0],
                     one.recalls[which][1] - one.recalls[_THEIRS][1], n,
                     f"mean per-class recall {less}; paired {_BOOTSTRAP}", facts=facts),
            share(f"{stem}_negative_flips", negative, n, "lower", "share of test images that the reference's probe on "
                  f"its own features reads right and {subject} wrong"),
            share(f"{stem}_positive_flips", positive, n, "higher", "share of test images that the reference's probe on "
                  f"its own features reads wrong and {subject} right"),
            p_value(f"{stem}_mcnemar_p", p, n, test),
            adjusted(f"{stem}_mcnemar_p_holm", holm, n, test, len(adjustments[which]), over="the tasks")]
    scores.append(_difference(
        "probe_accuracy_normalised_change", one, _OWN_UNIT, _THEIRS_UNIT, "accuracy of the probe fitted on this "
        f"variant's features scaled to unit length, minus the reference's{how}"))
    if _SWAP in one.right:
        scores.append(_difference(
            "probe_refit_gain", one, _OWN, _SWAP, "accuracy of the probe fitted on this variant's features minus that "
            f"of the reference's probe on them: drift that refitting mends{how}", better=None))
    return tuple(scores)


def _summary(tasks: Sequence[_Result]) -> Evaluation:
    wanted = (("vtab_mean_change", _OWN, _THEIRS), ("vtab_swap_mean", _SWAP, None),
              ("vtab_swap_mean_change", _SWAP, _THEIRS))
    changes = []
    for name, which, less in wanted:
        having = [one for one in tasks if {which, less} - {None} <= set(one.right)]
        if having:
            changes.append(_mean(name, having, which, less))
    return Evaluation(
        property="transfer", condition="summary", preset=tasks[0].preset,
        dataset=combined("vtab", [one.task.dataset for one in tasks], sum(one.task.dataset.classes for one in tasks)),
        predictions=tuple(file for one in tasks for file in one.files), scores=(_mean("vtab_mean", tasks, _OWN),),
        reference_scores=tuple(changes))


def _mean(name: str, tasks: Sequence[_Result], which: int, less: int | None = None) -> Score:
    names = [one.name.removeprefix(PREFIX) for one in tasks]
    known, others = [task for task in TASKS if task in names], [task for task in names if task not in TASKS]
    facts = {"tasks": ", ".join(known), "of_vtab": f"{len(known)} of {len(TASKS)}"}
    if others:
        facts["other_tasks"] = ", ".join(others)
    value, resamples = 0.0, np.zeros(_RESAMPLES)
    for one in tasks:
        value += float(one.right[which].mean()) / len(tasks)
        resamples += one.accuracies[which] / len(tasks)
        if less is not None:
            value -= float(one.right[less].mean()) / len(tasks)
            resamples -= one.accuracies[less] / len(tasks)
    what = "probe_swap_accuracy" if which == _SWAP else "probe_accuracy"
    return _bounded(
        name, value, resamples, sum(len(one.task.test.y) for one in tasks),
        f"unweighted mean over the tasks of {what}{'_change' if less is not None else ''}; {_BOOTSTRAP} of each task",
        CONSTANT if less is not None else _UNBOUNDED, facts=facts)


def _holm(results: Sequence[_Result], which: int) -> dict[str, tuple[float, float]]:
    """Return McNemar's p-value against the reference's own probe, and the adjusted one, by task."""
    compared = [one for one in results if {which, _THEIRS} <= set(one.right)]
    p_values = [stats.mcnemar_exact(*one.flips(which)) for one in compared]
    return {one.name: (p, adjusted) for one, p, adjusted in zip(compared, p_values, stats.holm(p_values), strict=True)}


def _difference(name: str, one: _Result, which: int, less: int, method: str, better: Better | None = "higher") -> Score:
    """Return the change of a share of the same test images, with a width even where no answer changed."""
    lost, won = metrics.flips(one.right[less], one.right[which])
    return share_change(name, lost, won, len(one.right[which]), method, better, facts=one.task.facts)


def _bounded(name: str, value: float, resamples: FloatArray, n: int, method: str, constant: Reason = CONSTANT, *,
             facts: Facts) -> Score:
    """Return a score with the percentiles of its resamples; where all are equal, with `constant` as the reason."""
    low, high = np.quantile(resamples, [0.025, 0.975]).tolist()
    return resampled(name, (value, low, high), "fraction", "higher", n, method, facts=facts,
                     unbounded=constant if is_constant(low, high) else None)


def _refusal(name: str, preset: str, keys: Mapping[str, Pass], found: Mapping[str, Predictions],
             reason: Reason) -> Evaluation:
    parts = [one.dataset for one in found.values()]
    return Evaluation(
        property="transfer", condition="probe", preset=preset, predictions=tuple(key.file for key in keys.values()),
        dataset=parts[0] if is_plain(name) else combined(name, parts, max(one.classes for one in parts)),
        scores=(share("probe_accuracy", 0, 0, "higher", _READ_OWN, without=reason),))


def _unit(x: Features) -> Features:
    """Return the features (N, D) scaled to unit length, zeros as they are."""
    length = np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True)
    return np.asarray(x / np.where(length > 0.0, length, 1.0))
