"""Mistakes by factor of variation (ImageNet-X): how much more often the model errs where pose, texture … is unusual.

No inference of its own: the predictions on the ImageNet validation images are sorted by what people noted about each
image. The notes are CC BY-NC 4.0, so they are read from the user's own copy, and nothing of them is kept here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np

from edgebench import stats
from edgebench.errors import InvalidInput, MissingDependency
from edgebench.metrics import BoolArray
from edgebench.properties import Pass, Predictions, paired
from edgebench.properties.scores import (
    BOOTSTRAP,
    Facts,
    Reason,
    absent,
    adjusted,
    p_value,
    resampled,
    share,
    share_change,
)
from edgebench.record import Evaluation, Score
from edgebench.stats import FloatArray, IntArray

SUMMARY = "ImageNet-X error ratios: which factors of variation cause mistakes (needs the package imagenet-x)"
NEEDS = "the ImageNet validation images: --data ROOT with ROOT/imagenet/val/<wnid>/ILSVRC2012_val_########.JPEG"

DATASET = "imagenet-val"
CLASSES = 1000
MANY = 200
"""Images from which on a factor enters the second mean: ratios of fewer are mostly noise."""
FACTORS = ("pose", "background", "color", "pattern", "smaller", "shape", "partial_view", "subcategory", "texture",
           "larger", "darker", "object_blocking", "person_blocking", "brighter", "style", "multiple_objects")

Which = Literal["top", "multi"]
"""``top``: the one factor that stands out most in an image; ``multi``: every factor that it shows."""
Labels = Literal["original", "real"]
"""``original``: ILSVRC-2012's, one per image; ``real``: the reassessed ones (ReaL), of which any may be predicted."""
# Groups of scores, and what their names carry. The paper's is the first.
GROUPS: tuple[tuple[Which, Labels, str], ...] = (
    ("top", "original", ""), ("multi", "original", "multi_"),
    ("top", "real", "real_"), ("multi", "real", "multi_real_"))
PAIRED = GROUPS[:2]
"""Groups compared with the reference: ReaL labels would add little but length."""

_IMAGES = 50_000
_FILE = re.compile(r"ILSVRC2012_val_(\d{8})\.\w+$")
_WHICH = {"top": "marked with it as the factor that stands out most", "multi": "marked with it, among other factors"}
_LABELS = {"original": "original labels", "real": "ReaL labels, images without any left out"}
_BOOTSTRAP = "percentile bootstrap over all annotated images, 1,000 resamples"
_TEST = "exact two-sided McNemar test on {}; not adjusted for the number of factors"
_OF_MANY = f"the factors with at least {MANY} images"
_NOT_SHOWN = Reason("no-images", "no image shows this factor")
_NO_ERROR = Reason("undefined", "there is no error on any image to divide by")
_NOT_ALL = Reason("undefined", "some factors have no error ratio")
_IN_SOME = Reason("some-resamples", "too few images for an interval: some resamples have none with the factor")
_HINT = "take the files as they are in the package imagenet-x"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Annotations:
    """What people noted about M validation images, prototypes left out, in order of file number."""

    number: IntArray
    """File number (M,): 1 to 50,000."""
    label: IntArray
    """Original class (M,)."""
    real: IntArray
    """ReaL classes (M, L), filled up with -1; a row of -1 has none."""
    top: BoolArray
    """The image's one most telling factor (M, 16), in the order of `FACTORS`."""
    multi: BoolArray
    """All factors of the image (M, 16)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FactorErrors:
    """Accuracy by factor; fractions and ratios, None where there are no images, or no errors to divide by."""

    n: int
    """Annotated images with a prediction and a label."""
    accuracy: float | None
    """On these `n`, the denominator's: not the accuracy on all 50,000."""
    factor_n: Mapping[str, int]
    factor_accuracy: Mapping[str, float | None]
    ratio: Mapping[str, float | None]
    """(1 - factor accuracy)/(1 - accuracy): 1 is no effect, above 1 more errors than on average."""

    def mean_ratio(self, at_least: int = 0) -> float | None:
        """Return the unweighted mean over factors of `at_least` so many images; None where one has no ratio."""
        chosen = [self.ratio[name] for name in FACTORS if self.factor_n[name] >= at_least]
        known = [ratio for ratio in chosen if ratio is not None]
        return sum(known) / len(known) if known and len(known) == len(chosen) else None


class _Marks(NamedTuple):
    """One group of scores; arrays over the same images (M,) or (M, 16)."""

    valid: BoolArray
    factors: BoolArray
    wrong: BoolArray


def passes(datasets: Sequence[str], preset: str = "native") -> tuple[Pass, ...]:
    """Return the clean pass over the ImageNet validation images, where they are at hand."""
    return (Pass(DATASET, preset=preset),) if DATASET in datasets else ()


def score(predictions: Mapping[Pass, Predictions], reference: Mapping[Pass, Predictions] | None,
          ) -> tuple[Evaluation, ...]:
    """Return accuracy and error ratio per factor; a score without value where they cannot be had.

    Raises:
        MissingDependency: Neither the package imagenet-x nor a copy of its annotations is there.
    """
    evaluations = []
    for key, found in predictions.items():
        other = paired(found, reference, key)
        scores, changes = _evaluate(found, other)
        evaluations.append(Evaluation(
            property="mistakes", dataset=found.dataset, condition=key.condition, preset=key.preset,
            predictions=(key.file,), scores=scores, reference_scores=changes))
    return tuple(evaluations)


def annotation_folder(*images: str | Path) -> Path:
    """Return the folder with ImageNet-X's annotations: the user's copy beside the images, else the installed package's.

    The package is found without importing it, for that would load pandas.

    Args:
        images: ``ROOT/imagenet/val`` of every data root: ``ROOT/imagenet-x`` is looked at first, in this order.

    Raises:
        MissingDependency: There is neither.
    """
    for place in images:
        copy = Path(place).parent.parent / "imagenet-x"
        if _annotation_file(copy, "top").is_file():
            return copy
    spec = find_spec("imagenet_x")
    for place in (spec.submodule_search_locations or ()) if spec else ():
        return Path(place) / "annotations"
    raise MissingDependency("imagenet_x is not installed: its annotations say which images show which factor",
                            "install it with: pip install 'edgebench[imagenet-x]'")


@lru_cache(maxsize=2)
def load_annotations(folder: Path) -> Annotations:
    """Return the annotations of the validation images without the prototypes: 46,110 in version 0.0.7.

    Args:
        folder: Holds ``imagenet_x_val_top_factor.jsonl``, ``imagenet_x_val_multi_factor.jsonl``,
            ``prototypical_paths.csv`` and the ReaL labels (`real_labels`).

    Raises:
        InvalidInput: A file is missing or of another form.
    """
    lines = _read(folder / "prototypical_paths.csv").decode(errors="replace").split()
    prototypes = {file_number(line) for line in lines}
    top, multi = (_read_factors(_annotation_file(folder, which)) for which in ("top", "multi"))
    numbers = sorted(set(top) - prototypes)
    if set(top) != set(multi):
        raise InvalidInput(f"{folder}: the two annotation files are of different images", _HINT)
    lists = real_labels(folder)
    real = np.full((len(numbers), max(1, *map(len, lists))), -1, np.int64)
    for row, number in enumerate(numbers):
        labels = lists[number - 1]
        real[row, :len(labels)] = labels
    return Annotations(
        number=np.array(numbers, np.int64), label=np.array([top[number][0] for number in numbers], np.int64), real=real,
        top=np.array([top[number][1] for number in numbers], np.bool_).reshape(-1, len(FACTORS)),
        multi=np.array([multi[number][1] for number in numbers], np.bool_).reshape(-1, len(FACTORS)))


def real_labels(folder: Path) -> tuple[tuple[int, ...], ...]:
    """Return the reassessed (ReaL) labels of the 50,000 validation images: entry i belongs to file number i + 1.

    Empty for 3,163 images, whose label could not be agreed on: they count neither as right nor as wrong.

    Args:
        folder: Holds ``imagenet_real_labels.jsonl``, or ``real.json`` in it or beside it.

    Raises:
        InvalidInput: There is no such file, or it is of another form.

    Source:
        Beyer et al. 2020 (arXiv:2006.07159); `real.json` of google-research/reassessed-imagenet.
    """
    places = (folder / "imagenet_real_labels.jsonl", folder / "real.json", folder.parent / "real.json")
    path = next((place for place in places if place.is_file()), places[0])
    try:
        lists = msgspec.json.decode(_read(path), type=tuple[tuple[int, ...], ...])
    except msgspec.DecodeError as error:
        raise InvalidInput(f"{path}: {error}", _HINT) from error
    if len(lists) != _IMAGES:
        raise InvalidInput(f"{path}: expected {_IMAGES:,} lists of labels, got {len(lists):,}", _HINT)
    return lists


def file_number(name: str) -> int | None:
    """Return the number in an ILSVRC-2012 validation file's name, folders before it ignored; None for other names."""
    match = _FILE.search(name)
    return int(match[1]) if match and 1 <= int(match[1]) <= _IMAGES else None


def error_ratios(predicted: Mapping[str, int], annotations: Annotations, *, which: Which = "top",
                 labels: Labels = "original") -> FactorErrors:
    """Return accuracy and error ratio by factor from predicted classes.

    ER_f = (1 - a_f)/(1 - a): a_f is the accuracy on the images with factor f, a the one on all annotated images S that
    have a prediction (and, for ReaL, a label). S has no prototypes and is not the whole validation set.

    Args:
        predicted: ILSVRC class by file name; images without annotation are ignored.
        annotations: From `load_annotations`.
        which: Annotation to sort by.
        labels: What counts as right.

    Source:
        Idrissi et al. 2023, ImageNet-X (arXiv:2211.01866); `error_ratio` in the package imagenet-x.
    """
    names, classes = list(predicted), np.array(list(predicted.values()), np.int64)
    images, rows = _match(names, annotations)
    return _summary(_marks(classes[images], annotations, rows, which, labels))


def _evaluate(found: Predictions, other: Predictions | None) -> tuple[tuple[Score, ...], tuple[Score, ...]]:
    annotations = load_annotations(annotation_folder(found.dataset.source))
    classes = found.outcomes.classes
    if classes != CLASSES:
        return _nothing(Reason(
            "other-classes", f"the annotations are of ImageNet's {CLASSES:,} classes, the model has {classes}")), ()
    images, rows = _match(found.ids.tolist(), annotations)
    if not rows.size:
        return _nothing(Reason(
            "no-data", "none of the images is annotated: expected names like ILSVRC2012_val_00000293.JPEG")), ()
    if (found.targets[images] != annotations.label[rows]).any():
        return _nothing(Reason(
            "other-classes", "the model's classes are not in the order of ILSVRC-2012, which the annotations use")), ()
    predicted = found.outcomes.predicted[images]
    groups = [_marks(predicted, annotations, rows, which, labels) for which, labels, _ in GROUPS]
    if other is None:
        return _scores(groups), ()
    before = other.outcomes.predicted[images]
    theirs = [_marks(before, annotations, rows, which, labels) for which, labels, _ in PAIRED]
    return _scores(groups), _changes(groups[:len(PAIRED)], theirs)


def _scores(groups: Sequence[_Marks]) -> tuple[Score, ...]:
    summaries = [_summary(group) for group in groups]
    chosen = [_many(summary) for summary in summaries]
    bounds = iter(_bootstrap(groups, lambda sums: np.concatenate(
        [_with_means(part, many) for part, many in zip(np.split(sums, len(groups)), chosen, strict=True)])))
    scores = []
    for (which, labels, infix), group, summary, many in zip(GROUPS, groups, summaries, chosen, strict=True):
        errors = (group.wrong & group.valid)[:, None] & group.factors
        if which == "top":
            scores.append(share(
                f"annotated_accuracy{'_real' if labels == 'real' else ''}",
                int((~group.wrong & group.valid).sum()), summary.n, "higher",
                f"top-1 accuracy on the annotated images without prototypes, {_LABELS[labels]}"))
        tail = f"images {_WHICH[which]}; {_LABELS[labels]}"
        for k, name in enumerate(FACTORS):
            n, wrong = summary.factor_n[name], int(errors[:, k].sum())
            scores.append(share(f"factor_accuracy_{infix}{name}", n - wrong, n, "higher",
                                f"top-1 accuracy on the {tail}"))
            scores.append(_bounded(
                f"error_ratio_{infix}{name}", summary.ratio[name], next(bounds), n,
                f"error on the {tail}, over the error on all annotated images; {_BOOTSTRAP}",
                _NOT_SHOWN if n == 0 else _NO_ERROR,
                None if 0 < wrong < n else Reason("no-spread", f"{'none' if wrong == 0 else 'all'} of these images are "
                                                  "errors: resampling cannot bound the ratio")))
        mean = f"unweighted mean of the error ratios of {{}}; images {_WHICH[which]}; {_LABELS[labels]}; {_BOOTSTRAP}"
        scores.append(_bounded(
            f"error_ratio_{infix}mean", summary.mean_ratio(), next(bounds), summary.n, mean.format("all 16 factors"),
            _NOT_ALL))
        scores.append(_bounded(
            f"error_ratio_{infix}mean_n{MANY}", summary.mean_ratio(MANY), next(bounds), summary.n,
            mean.format(_OF_MANY),
            _NO_ERROR if len(many) else Reason("too-few", f"no factor has {MANY} images"), facts=_those(many)))
    return tuple(scores)


def _changes(mine: Sequence[_Marks], theirs: Sequence[_Marks]) -> tuple[Score, ...]:
    after, before = [_summary(group) for group in mine], [_summary(group) for group in theirs]
    chosen = [_many(summary) for summary in after]
    count = len(mine)

    def differences(sums: FloatArray) -> FloatArray:
        parts = np.split(sums, 2 * count)
        return np.concatenate([_with_means(parts[k], chosen[k]) - _with_means(parts[count + k], chosen[k])
                               for k in range(count)])

    bounds = iter(_bootstrap((*mine, *theirs), differences))
    overall = f"top-1 on the annotated images without prototypes, {_LABELS['original']}"
    lost, won = _flips(mine[0], theirs[0], mine[0].valid)
    scores = [_error_change("annotated_error_change", lost, won, after[0].n, f"error {overall}"),
              p_value("annotated_mcnemar_p", _exact(lost, won, after[0].n), after[0].n,
                      _TEST.format("the annotated images"))]
    for k, (which, labels, infix) in enumerate(PAIRED):
        tail = f"images {_WHICH[which]}; {_LABELS[labels]}"
        paired_how = f"minus the reference's on the same images; paired {_BOOTSTRAP}"
        flips = {name: _flips(mine[k], theirs[k], mine[k].factors[:, column]) for column, name in enumerate(FACTORS)}
        tested = [name for name in FACTORS if after[k].factor_n[name]]
        holm = dict(zip(tested, stats.holm([stats.mcnemar_exact(*flips[name]) for name in tested]), strict=True))
        for name, (lost, won) in flips.items():
            n = after[k].factor_n[name]
            scores += [
                _error_change(f"factor_error_change_{infix}{name}", lost, won, n, f"error on the {tail}"),
                p_value(f"factor_mcnemar_p_{infix}{name}", _exact(lost, won, n), n, _TEST.format(f"the {tail}")),
                adjusted(f"factor_mcnemar_p_holm_{infix}{name}", holm.get(name), n,
                         f"exact two-sided McNemar test on the {tail}", len(tested), over="the factors"),
                _bounded(f"error_ratio_change_{infix}{name}", _minus(after[k].ratio[name], before[k].ratio[name]),
                         next(bounds), n, f"error ratio of the {tail}, {paired_how}",
                         _NOT_SHOWN if n == 0 else Reason("undefined", "one of the two has no error to divide by"))]
        for name, least, which_factors in (("mean", 0, "the 16 factors"), (f"mean_n{MANY}", MANY, _OF_MANY)):
            scores.append(_bounded(
                f"error_ratio_change_{infix}{name}",
                _minus(after[k].mean_ratio(least), before[k].mean_ratio(least)), next(bounds), after[k].n,
                f"mean error ratio of {which_factors}, {paired_how}; {tail}",
                _NOT_ALL._replace(words=f"{_NOT_ALL.words}, here or there"),
                facts=_those(chosen[k]) if least else None))
    return tuple(scores)


def _match(names: Sequence[str], annotations: Annotations) -> tuple[IntArray, IntArray]:
    """Return which images are annotated, and the annotation rows of these, both in order of file number."""
    numbers = [file_number(name) or 0 for name in names]
    known = [number for number in numbers if number]
    if len(set(known)) < len(known):
        raise InvalidInput("two images have the same ILSVRC-2012 file number", "remove the copies")
    _, rows, images = np.intersect1d(annotations.number, np.array(numbers, np.int64), return_indices=True)
    return images.astype(np.int64), rows.astype(np.int64)


def _marks(predicted: IntArray, annotations: Annotations, rows: IntArray, which: Which, labels: Labels) -> _Marks:
    factors = annotations.top if which == "top" else annotations.multi
    if labels == "real":
        real = annotations.real[rows]
        valid, wrong = real[:, 0] >= 0, ~(real == predicted[:, None]).any(axis=1)
    else:
        valid, wrong = np.ones(len(rows), np.bool_), annotations.label[rows] != predicted
    return _Marks(valid, factors[rows] & valid[:, None], wrong)


def _flips(mine: _Marks, theirs: _Marks, among: BoolArray) -> tuple[int, int]:
    """Return how many of the images `among` turned from right to wrong, and from wrong to right."""
    return (int(np.count_nonzero(among & mine.wrong & ~theirs.wrong)),
            int(np.count_nonzero(among & ~mine.wrong & theirs.wrong)))


def _columns(group: _Marks) -> BoolArray:
    """Return per image what the sums of `_ratios` are made of: valid, wrong, factors, wrong with factor (M, 34)."""
    wrong = group.wrong & group.valid
    return np.hstack([group.valid[:, None], wrong[:, None], group.factors, group.factors & wrong[:, None]])


def _ratios(sums: FloatArray) -> FloatArray:
    """Return the error ratios (16,) from the column sums (34,); NaN where there is nothing to divide by."""
    count = len(FACTORS)
    n, wrong, factor_n, factor_wrong = sums[0], sums[1], sums[2:2 + count], sums[2 + count:]
    return _over(_over(factor_wrong, factor_n), np.full(count, _over(wrong[None], n[None])[0]))


def _with_means(sums: FloatArray, many: IntArray) -> FloatArray:
    ratios = _ratios(sums)
    return np.array([*ratios, ratios.mean(), ratios[many].mean() if len(many) else np.nan])


def _over(part: FloatArray, whole: FloatArray) -> FloatArray:
    quotient: FloatArray = np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole != 0)
    return quotient


def _summary(group: _Marks) -> FactorErrors:
    sums = _columns(group).sum(axis=0, dtype=np.float64)
    n, count = int(sums[0]), len(FACTORS)
    factor_n, factor_wrong = sums[2:2 + count], sums[2 + count:]
    return FactorErrors(
        n=n, accuracy=1.0 - float(sums[1]) / n if n else None,
        factor_n={name: int(factor_n[k]) for k, name in enumerate(FACTORS)},
        factor_accuracy=_named(1.0 - _over(factor_wrong, factor_n)), ratio=_named(_ratios(sums)))


def _named(values: FloatArray) -> dict[str, float | None]:
    return {name: None if math.isnan(value) else value for name, value in zip(FACTORS, values.tolist(), strict=True)}


def _many(summary: FactorErrors) -> IntArray:
    return np.array([k for k, name in enumerate(FACTORS) if summary.factor_n[name] >= MANY], np.int64)


def _bootstrap(groups: Sequence[_Marks], statistic: Callable[[FloatArray], FloatArray]) -> list[tuple[float, float]]:
    """Return the intervals of `statistic`, a function of the column sums of all groups, over images."""
    columns = np.hstack([_columns(group) for group in groups])
    # Images with the same marks are interchangeable: some thousand kinds stand for 46,110 images.
    packed, kinds = np.unique(np.packbits(columns, axis=1), axis=0, return_inverse=True)
    kinds = kinds.reshape(-1)
    table = np.unpackbits(packed, axis=1, count=columns.shape[1]).astype(np.float64)
    low, high = stats.bootstrap(
        lambda chosen: statistic(np.bincount(kinds[chosen], minlength=len(table)).astype(np.float64) @ table),
        len(columns))
    return list(zip(low.tolist(), high.tolist(), strict=True))


def _bounded(name: str, value: float | None, bounds: tuple[float, float], n: int, method: str, no_value: Reason,
             no_interval: Reason | None = None, *, facts: Facts | None = None) -> Score:
    return resampled(name, (math.nan if value is None else value, *bounds), "1", "lower", n, method,
                     undefined=no_value, unbounded=no_interval, in_some=_IN_SOME, facts=facts)


def _error_change(name: str, lost: int, won: int, n: int, what: str) -> Score:
    return share_change(name, won, lost, n, f"{what}, minus the reference's on the same images", "lower")


def _exact(lost: int, won: int, n: int) -> float | None:
    return stats.mcnemar_exact(lost, won) if n else None


def _those(many: IntArray) -> dict[str, str]:
    return {"factors": ", ".join(FACTORS[k] for k in many)}


def _nothing(reason: Reason) -> tuple[Score, ...]:
    return (absent("error_ratio_mean", "1", "lower", 0, "unweighted mean of the error ratios of all 16 factors", reason,
                   kind="resampled", method_id=BOOTSTRAP),)


def _minus(first: float | None, second: float | None) -> float | None:
    return None if first is None or second is None else first - second


def _annotation_file(folder: Path, which: str) -> Path:
    return folder / f"imagenet_x_val_{which}_factor.jsonl"


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidInput(f"cannot read {path}: {error.strerror}", _HINT) from error


def _read_factors(path: Path) -> dict[int, tuple[int, tuple[bool, ...]]]:
    """Return (class, 16 marks) by file number."""
    found: dict[int, tuple[int, tuple[bool, ...]]] = {}
    try:
        for line in _read(path).splitlines():
            row: dict[str, Any] = msgspec.json.decode(line)
            number = file_number(row["file_name"])
            if number is None:
                raise InvalidInput(f"{path}: {row['file_name']!r} is no validation image", _HINT)
            found[number] = int(row["class"]), tuple(bool(row[name]) for name in FACTORS)
    except (msgspec.DecodeError, KeyError, TypeError, ValueError) as error:
        raise InvalidInput(f"{path}: a line is not an annotation: {error}", _HINT) from error
    return found
