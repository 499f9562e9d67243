"""Synthetic images (PUG-ImageNet): rendered objects, with one factor of the scene varied at a time."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from edgebench import metrics, stats
from edgebench.metrics import BoolArray
from edgebench.properties import CLEAN, Pass, Predictions, paired
from edgebench.properties.scores import Facts, Reason, absent, adjusted, p_value, resampled
from edgebench.pug import CLASSES, SUBSETS
from edgebench.record import Better, DatasetIdentity, Evaluation, Score
from edgebench.stats import FloatArray, IntArray

SUMMARY = "Accuracy on rendered images (PUG-ImageNet), by the factor that is varied; flips against the FP32 reference"
NEEDS = "the PUG-ImageNet images: --data ROOT with ROOT/pug_imagenet/<Subset>/<ClassName>/<image>"

PREFIX = "pug/"
_Shares = Callable[..., FloatArray]
DOUBTFUL = "Scene_Light"
_DOUBT = ("Scene_Light, for which 0.005 to 0.024 was published, next to guessing among the 151 classes (0.007), and "
          "0.18 to 0.47 for the other subsets: its images or folders are in doubt")
_FIXED = ("share of images whose largest of the 1,000 logits, the first on ties, is of any class that the folder's "
          "name stands for")
_PAPER = ("share of images right the paper's way: as accuracy, but a class that several names stand for counts for the "
          "last of them alone, in sorted order")
# <asset>_000012.png or <asset>-12.png; the published files are bare numbers.
_BOOTSTRAP = ("bootstrap over rendered objects (folder, and file name without its number), or over class folders where "
              "the file names do not tell the objects apart, percentiles of 1,000 resamples; Wilson interval of the "
              "clusters where all images are alike")
_CLUSTERED = "bootstrap-clusters"
_TOO_FEW = Reason(
    "too-few", "too few clusters: a single one, or so few that some resamples leave a subset without images")
_LOST = "share of images that the reference gets right and this variant wrong"
_WON = "share of images that the reference gets wrong and this variant right"
_NUMBERED = re.compile(r"(?P<asset>.*[A-Za-z].*?)[ _.-]*\d*")


class _Intervals(NamedTuple):
    """Intervals from resampled clusters of images."""

    ends: list[tuple[float, float]]
    clusters: int
    kind: str
    """What the clusters are."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Subset:
    """One subset as this variant answered it; all arrays have shape (N,)."""

    name: str
    key: Pass
    dataset: DatasetIdentity
    correct: BoolArray
    paper: BoolArray
    """Correct by the inverted map."""
    theirs: BoolArray | None
    """Correct in the reference; None without one."""
    folders: tuple[str, ...]
    assets: tuple[str, ...] | None
    """None where the file names tell no more than the folders."""

    @property
    def flips(self) -> tuple[int, int]:
        """(negative, positive) flips against the reference."""
        assert self.theirs is not None
        return metrics.flips(self.theirs, self.correct)


def passes(datasets: Sequence[str], preset: str = "native") -> tuple[Pass, ...]:
    """Return the clean pass over every PUG-ImageNet subset at hand."""
    return tuple(Pass(name, CLEAN, preset) for name in datasets if name.startswith(PREFIX))


def score(predictions: Mapping[Pass, Predictions], reference: Mapping[Pass, Predictions] | None,
          ) -> tuple[Evaluation, ...]:
    """Return the accuracy of each subset, and with two subsets or more a summary over them, as fractions.

    Right is a prediction among the classes that the true folder stands for, tested directly. The paper's code inverts
    the map from names to classes first, so that each class belongs to one name: with ``Shirt`` and ``Sweatshirt`` both
    standing for class 841, no image of a shirt can be right there. ``accuracy_paper`` repeats that.

    Source:
        Bordes et al. 2023 (arXiv:2308.03977); the paper's mean is the unweighted one of ten subsets.
    """
    inverse, names = _inverted(predictions.values())
    evaluations = []
    for preset in dict.fromkeys(key.preset for key in predictions):
        subsets = []
        for key in sorted((key for key in predictions if key.preset == preset), key=_place):
            found, other = predictions[key], paired(predictions[key], reference, key)
            if reason := _unfit(found):
                evaluations.append(_evaluation(key, found.dataset, (
                    absent(f"accuracy@{_name(key)}", "fraction", "higher", len(found.ids), f"{_FIXED}; {_BOOTSTRAP}",
                           reason, kind="resampled", method_id=_CLUSTERED),), ()))
            else:
                subsets.append(_subset(key, found, other, inverse))
        with_reference = [one for one in subsets if one.theirs is not None]
        p_values = [stats.mcnemar_exact(*one.flips) for one in with_reference]
        tests = {one.name: (p, adjusted)
                 for one, p, adjusted in zip(with_reference, p_values, stats.holm(p_values), strict=True)}
        evaluations += [
            _evaluation(one.key, one.dataset, _scores(one, names),
                        _changes(one, tests[one.name], len(tests)) if one.name in tests else ())
            for one in subsets]
        if len(subsets) > 1:
            evaluations.append(_summary(subsets, names))
    return tuple(evaluations)


def mean_accuracy(accuracies: Mapping[str, float]) -> float:
    """Return the unweighted mean of the accuracies by subset, in their unit, however many images each has.

    Raises:
        ValueError: There is no subset.
    """
    if not accuracies:
        raise ValueError("expected at least one subset, got none")
    return sum(accuracies.values()) / len(accuracies)


def combined(name: str, parts: Sequence[DatasetIdentity], classes: int) -> DatasetIdentity:
    """Return the identity of several sets of images together: its digest is the SHA-256 of theirs, in order."""
    return DatasetIdentity(
        name=name, source="; ".join(dict.fromkeys(str(Path(one.source).parent) for one in parts)),
        images=sum(one.images for one in parts), classes=classes,
        digest=hashlib.sha256("".join(one.digest for one in parts).encode()).hexdigest())


def assets(ids: Sequence[str]) -> tuple[str, ...] | None:
    """Return the rendered object of each image: its folder, and its file's name without the number at the end.

    Args:
        ids: ``<ClassName>/<file>``.

    Returns:
        As many names as images; None where the file names tell nothing apart within the folders, as the bare numbers
        of the published files, or are all different.
    """
    found = []
    for name in ids:
        match = _NUMBERED.fullmatch(Path(name).stem)
        if match is None:
            return None
        found.append(f"{_folder(name)}/{match['asset']}")
    return tuple(found) if len(set(map(_folder, ids))) < len(set(found)) < len(ids) else None


def _unfit(found: Predictions) -> Reason | None:
    if found.labels is None:
        return Reason("no-data", "the classes that each folder stands for were not stored")
    if found.outcomes.classes != CLASSES:
        return Reason("other-classes",
                      f"the folders stand for ImageNet's {CLASSES:,} classes, the model has {found.outcomes.classes}")
    return None


def _inverted(everything: Iterable[Predictions]) -> tuple[dict[int, str], int]:
    """Return the folder's name by class index, the last name in sorted order that claims it, and how many names."""
    indices: dict[str, list[int]] = {}
    for found in everything:
        if found.labels is not None:
            names = dict(zip(map(_folder, found.ids.tolist()), range(len(found.ids)), strict=True))
            indices |= {name: found.labels[row].tolist() for name, row in names.items()}
    return {index: name for name in sorted(indices) for index in indices[name] if index >= 0}, len(indices)


def _subset(key: Pass, found: Predictions, other: Predictions | None, inverse: Mapping[int, str]) -> _Subset:
    assert found.labels is not None
    predicted, ids = found.outcomes.predicted, found.ids.tolist()
    folders = tuple(map(_folder, ids))
    claimants = map(inverse.get, predicted.tolist())
    return _Subset(
        name=_name(key), key=key, dataset=found.dataset, correct=_member(predicted, found.labels),
        paper=np.array([one == folder for one, folder in zip(claimants, folders, strict=True)]),
        theirs=_member(other.outcomes.predicted, found.labels) if other else None, folders=folders, assets=assets(ids))


def _member(predicted: IntArray, labels: IntArray) -> BoolArray:
    return np.asarray((labels == predicted[:, None]).any(axis=1))


def _scores(one: _Subset, names: int) -> tuple[Score, ...]:
    doubt = f"; {_DOUBT}" if one.name == DOUBTFUL else ""
    return (_share("accuracy", one, one.correct, "higher", _FIXED, doubt),
            _share("accuracy_paper", one, one.paper, "higher", _PAPER, doubt, {"names": names}))


def _share(name: str, one: _Subset, flags: BoolArray, better: Better, what: str, doubt: str = "",
           facts: Facts | None = None) -> Score:
    """Return the share of images that are flagged, with an interval over clusters of images."""
    found = _intervals([one], lambda share: share, lambda _: (flags,))
    if found.clusters > 1 and flags.all() == flags.any():
        # Resampling sees no spread: each cluster counts as one image.
        found = found._replace(ends=[stats.wilson(found.clusters if flags.all() else 0, found.clusters)])
    return _bounded(f"{name}@{one.name}", float(flags.mean()), found, len(flags), f"{what}; {_BOOTSTRAP}{doubt}",
                    better, facts)


def _changes(one: _Subset, p_values: tuple[float, float], tests: int) -> tuple[Score, ...]:
    assert one.theirs is not None
    n, (negative, positive) = len(one.correct), one.flips
    found = _intervals([one], lambda mine, _, theirs: mine - theirs)
    test = "exact two-sided McNemar test that both kinds of flips are equally likely, images taken as independent"
    return (
        _bounded(f"accuracy_change@{one.name}", (positive - negative) / n, found, n,
                 f"accuracy minus the reference's on the same images; paired {_BOOTSTRAP}"),
        _share("negative_flips", one, one.theirs & ~one.correct, "lower", _LOST),
        _share("positive_flips", one, ~one.theirs & one.correct, "higher", _WON),
        p_value(f"mcnemar_p@{one.name}", p_values[0], n, test),
        adjusted(f"mcnemar_p_holm@{one.name}", p_values[1], n, test, tests, over="the subsets"))


def _summary(subsets: Sequence[_Subset], names: int) -> Evaluation:
    key, folders = subsets[0].key, {folder for one in subsets for folder in one.folders}
    compared = [one for one in subsets if one.theirs is not None]
    less = "accuracy minus the reference's on the same images, paired"

    def gain(mine: FloatArray, _: FloatArray, theirs: FloatArray) -> FloatArray:
        return mine - theirs

    return Evaluation(
        property="synthetic", dataset=combined("pug", [one.dataset for one in subsets], len(folders)),
        condition="summary", preset=key.preset, predictions=tuple(one.key.file for one in subsets),
        scores=(_mean("mean_accuracy", subsets, _FIXED, lambda mine, _, __: mine),
                *_without("mean_accuracy_without_scene_light", subsets, _FIXED, lambda mine, _, __: mine),
                _mean("mean_accuracy_paper", subsets, _PAPER, lambda _, paper, __: paper, facts={"names": names})),
        reference_scores=(
            _mean("mean_accuracy_change", compared, less, gain),
            *_without("mean_accuracy_without_scene_light_change", compared, less, gain)) if compared else ())


def _without(name: str, subsets: Sequence[_Subset], what: str, shares: _Shares) -> tuple[Score, ...]:
    kept = [one for one in subsets if one.name != DOUBTFUL]
    return (_mean(name, kept, what, shares, f"; without {_DOUBT}"),) if kept else ()


def _mean(name: str, subsets: Sequence[_Subset], what: str, shares: _Shares, note: str = "",
          facts: Facts | None = None) -> Score:
    names = [one.name for one in subsets]
    values = shares(*(np.array([flags.mean() for flags in column])
                      for column in zip(*(_columns(one) for one in subsets), strict=True)))
    found = _intervals(subsets, lambda *found: shares(*found).mean(keepdims=True))
    which = "all ten" if set(names) == set(SUBSETS) else f"{len(names)} of ten: {', '.join(names)}"
    return _bounded(name, mean_accuracy(dict(zip(names, values.tolist(), strict=True))), found,
                    sum(len(one.correct) for one in subsets),
                    f"unweighted mean over the subsets of the {what}; {_BOOTSTRAP}{note}",
                    facts={**(facts or {}), "subsets": which})


def _columns(one: _Subset) -> tuple[BoolArray, BoolArray, BoolArray]:
    """Return what the arguments of `_Shares` are shares of; nothing reads the third without a reference."""
    return one.correct, one.paper, one.correct if one.theirs is None else one.theirs


def _intervals(subsets: Sequence[_Subset], statistic: _Shares,
               columns: Callable[[_Subset], Sequence[BoolArray]] = _columns,
               ) -> _Intervals:
    """Return the intervals of `statistic` over clusters of images, NaN where there are too few.

    One object is in all subsets: its images stay together across them. `statistic` takes the shares of `columns`.
    """
    by_asset = all(one.assets for one in subsets)
    clusters = [(one.assets or ()) if by_asset else one.folders for one in subsets]
    kind = "rendered objects" if by_asset else "class folders"
    everything, place = np.unique(np.concatenate([np.array(names) for names in clusters]), return_inverse=True)
    places = np.split(place.reshape(-1), np.cumsum([len(names) for names in clusters])[:-1])
    count = len(everything)
    if count < 2:
        return _Intervals([(np.nan, np.nan)], count, kind)

    def by_cluster(flags: Sequence[npt.NDArray[Any]]) -> FloatArray:
        return np.stack([np.bincount(where, one, minlength=count) for where, one in zip(places, flags, strict=True)], 1)

    # (C, S) each: images, and how many of them are in each of the columns.
    table = np.stack([by_cluster([np.ones(len(one.correct)) for one in subsets]),
                      *map(by_cluster, zip(*map(columns, subsets), strict=True))])

    def shares(chosen: IntArray) -> FloatArray:
        images, *right = np.bincount(chosen, minlength=count) @ table
        nothing = np.full(images.shape, np.nan)
        return statistic(*(np.divide(part, images, out=nothing.copy(), where=images > 0) for part in right))

    low, high = stats.bootstrap(shares, count)
    return _Intervals(list(zip(low.tolist(), high.tolist(), strict=True)), count, kind)


def _bounded(name: str, value: float, found: _Intervals, n: int, method: str, better: Better = "higher",
             facts: Facts | None = None) -> Score:
    (low, high), = found.ends
    return resampled(name, (value, low, high), "fraction", better, n, method, in_some=_TOO_FEW, method_id=_CLUSTERED,
                     n_effective=found.clusters, facts={**(facts or {}), "clusters": found.kind})


def _evaluation(key: Pass, dataset: DatasetIdentity, scores: tuple[Score, ...],
                changes: tuple[Score, ...]) -> Evaluation:
    return Evaluation(property="synthetic", dataset=dataset, condition=key.condition, preset=key.preset,
                      predictions=(key.file,), scores=scores, reference_scores=changes)


def _name(key: Pass) -> str:
    return key.dataset.removeprefix(PREFIX)


def _place(key: Pass) -> tuple[int, str]:
    name = _name(key)
    return SUBSETS.index(name) if name in SUBSETS else len(SUBSETS), name


def _folder(name: str) -> str:
    return name.partition("/")[0]
