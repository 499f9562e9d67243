"""Shape bias on cue-conflict images: where shape and texture disagree, which of the two the model follows."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from edgebench import metrics, stats
from edgebench.errors import InvalidInput
from edgebench.metrics import BoolArray
from edgebench.properties import Pass, Predictions, paired
from edgebench.properties.scores import BOOTSTRAP, Reason, absent, counted, resampled, share
from edgebench.record import Better, Evaluation, OutputKind, Score
from edgebench.stats import FloatArray, IntArray

SUMMARY = "Shape or texture: which cue decides on cue-conflict images, and do these decisions switch"
NEEDS = "the cue-conflict images: --data ROOT with ROOT/cue-conflict/<shape>/<shapeN>-<textureM>.png"

DATASET = "cue-conflict"
NO_DECISION = "na"
"""What a person's missing answer is called in the published decisions."""

# The 1,000 ILSVRC-2012 classes (0-based, sorted by WordNet id) below each of 16 basic categories: Geirhos et al. 2019
# (arXiv:1811.12231), `human_categories.py` of model-vs-human and Beyond-INet. 207 classes, no class twice. The other
# 793 belong to no category.
INDICES: Mapping[str, tuple[int, ...]] = {
    "airplane": (404,),
    "bear": (*range(294, 298),),
    "bicycle": (444, 671),
    "bird": (8, *range(10, 17), *range(18, 21), *range(22, 25), *range(80, 84), *range(87, 97), *range(98, 101),
             *range(127, 134), *range(135, 146)),
    "boat": (472, 554, 625, 814, 914),
    "bottle": (440, 720, 737, 898, 899, 901, 907),
    "car": (436, 511, 817),
    "cat": (*range(281, 287),),
    "chair": (423, 559, 765, 857),
    "clock": (409, 530, 892),
    "dog": (*range(152, 192), *range(193, 204), *range(205, 227), *range(228, 242), *range(243, 251), *range(252, 258),
            259, *range(261, 264), *range(265, 269)),
    "elephant": (385, 386),
    "keyboard": (508, 878),
    "knife": (499,),
    "oven": (766,),
    "truck": (555, 569, 656, 675, 717, 734, 864, 867),
}
CATEGORIES = tuple(INDICES)
CLASSES = 1000

# airplane/airplane1-bicycle2.png; the files shown to people carry a prefix: 0001_s5n_s01_0_bird_00_bird3-clock2.png
_NAME = re.compile(r"(?:^|[/_])(?P<exemplar>(?P<shape>[a-z]+)\d+)-(?P<texture>[a-z]+)\d+\.\w+$")
_BOOTSTRAP = "percentile bootstrap over images, 1,000 resamples"
_BY_EXEMPLAR = "percentile bootstrap over shape exemplars with all their images, 1,000 resamples"
_BIAS = "shape decisions among the decisions for either cue, over all images whose shape and texture differ"
_CLUSTERED = "bootstrap-clusters"
_NO_CUE = Reason("undefined", "no decision was for either cue")
_NO_CONFLICT = Reason("no-images", "no image has a shape and a texture that differ")
_TOO_FEW = Reason("some-resamples", "too few images for an interval: some resamples have no decision for a cue")
_DECISION = "category with the largest mean probability of its ImageNet classes (float64 softmax)"


class Decisions(NamedTuple):
    """What was decided on each image; both arrays have shape (N,)."""

    names: npt.NDArray[np.str_]
    """One of `CATEGORIES`."""
    tied: BoolArray
    """More than one category had the largest probability; the first in `CATEGORIES` was taken."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """How often decisions followed shape or texture."""

    shape: int
    """Decisions for the shape's category, on images whose shape and texture differ."""
    texture: int
    """Decisions for the texture's category, on the same images."""
    conflict: int
    """Images whose shape and texture differ: 1,200 of the full set."""
    no_conflict_right: int
    """Decisions for the one category that shape and texture share."""
    no_conflict: int
    """Images whose shape and texture agree: 80 of the full set."""
    by_category: Mapping[str, tuple[int, int]]
    """(shape, texture) decisions on the conflict images with that shape, for each of `CATEGORIES`."""

    @property
    def shape_bias(self) -> float | None:
        """Shape decisions among those for either cue, as a fraction; None where there are none."""
        return _ratio(self.shape, self.shape + self.texture)

    @property
    def cue_accuracy(self) -> float | None:
        """Share of conflict images decided for either cue; None without conflict images."""
        return _ratio(self.shape + self.texture, self.conflict)


class _Images(NamedTuple):
    """What the names say; all arrays have shape (N,)."""

    shape: npt.NDArray[np.str_]
    texture: npt.NDArray[np.str_]
    exemplar: npt.NDArray[np.str_]

    @property
    def conflict(self) -> BoolArray:
        return np.asarray(self.shape != self.texture)


def passes(datasets: Sequence[str], preset: str = "native") -> tuple[Pass, ...]:
    """Return the clean pass over the cue-conflict images, where they are at hand."""
    return (Pass(DATASET, preset=preset),) if DATASET in datasets else ()


def score(predictions: Mapping[Pass, Predictions], reference: Mapping[Pass, Predictions] | None,
          ) -> tuple[Evaluation, ...]:
    """Return shape bias and what stands beside it, as fractions; a score without value where it cannot be had."""
    evaluations = []
    for key, found in predictions.items():
        other = paired(found, reference, key)
        scores, changes = _evaluate(found, other)
        evaluations.append(Evaluation(
            property="shape-bias", dataset=found.dataset, condition=key.condition, preset=key.preset,
            predictions=(key.file,), scores=scores, reference_scores=changes))
    return tuple(evaluations)


def decide(logits: metrics.Logits, kind: OutputKind = "logits") -> Decisions:
    """Return the 16-class decisions behind the logits (N, 1000) of ImageNet's classes in their usual order.

    Probabilities come from a float64 softmax over all 1,000 classes, or are the model's own. Each category gets the
    arithmetic mean (not the sum or the maximum) over its classes; the largest mean decides, the first in `CATEGORIES`
    on a tie. Ties are exact equalities: they arise where probabilities underflow to 0 or logits are coarse.

    Raises:
        ValueError: Not 1,000 classes.

    Source:
        Geirhos et al. 2019 (arXiv:1811.12231), appendix; the aggregation that model-vs-human recommends.
    """
    if logits.ndim != 2 or logits.shape[1] != CLASSES:
        raise ValueError(f"expected logits (N, {CLASSES}), got {logits.shape}")
    probabilities = metrics.probabilities(logits, kind)
    means = np.stack([probabilities[:, list(INDICES[name])].mean(axis=1) for name in CATEGORIES], axis=1)
    largest = means == means.max(axis=1, keepdims=True)
    return Decisions(np.array(CATEGORIES)[means.argmax(axis=1)], np.count_nonzero(largest, axis=1) > 1)


def shape_bias_counts(decisions: Sequence[str] | npt.NDArray[np.str_], ids: Sequence[str] | npt.NDArray[np.str_],
                      ) -> Counts:
    """Return how often 16-class decisions followed shape or texture.

    Args:
        decisions: One of `CATEGORIES` per image, or `NO_DECISION`, which matches neither cue.
        ids: Image names that end in ``<shape><number>-<texture><number>.png``, as many as decisions.

    Raises:
        ValueError: As many decisions as ids were expected.
        InvalidInput: A name of another form, or a decision that is no category.

    Source:
        Geirhos et al. 2019 (arXiv:1811.12231), section 2.4: images whose shape and texture agree are left out.
    """
    images, chosen = _read_names(ids), np.asarray(decisions, np.str_)
    if chosen.shape != images.shape.shape:
        raise ValueError(f"expected as many decisions as ids, got {chosen.shape} and {images.shape.shape}")
    strange = sorted(set(chosen.tolist()) - {*CATEGORIES, NO_DECISION})
    if strange:
        raise InvalidInput(f"{strange[0]!r} is none of the 16 categories", f"known: {', '.join(CATEGORIES)}")
    conflict = images.conflict
    for_shape, for_texture = conflict & (chosen == images.shape), conflict & (chosen == images.texture)
    return Counts(
        shape=_count(for_shape), texture=_count(for_texture), conflict=_count(conflict),
        no_conflict_right=_count(~conflict & (chosen == images.shape)), no_conflict=_count(~conflict),
        by_category={name: (_count(for_shape & (images.shape == name)), _count(for_texture & (images.shape == name)))
                     for name in CATEGORIES})


def _evaluate(found: Predictions, other: Predictions | None) -> tuple[tuple[Score, ...], tuple[Score, ...]]:
    classes = found.logits.shape[1]
    if classes != CLASSES:
        return _nothing(len(found.ids), Reason(
            "other-classes", f"the categories are sets of ImageNet's {CLASSES:,} classes, the model has {classes}")), ()
    mine = decide(found.logits, found.kind)
    try:
        counts = shape_bias_counts(mine.names, found.ids)
    except InvalidInput as error:
        return _nothing(len(found.ids), Reason("no-data", error.message)), ()
    images = _read_names(found.ids)
    if other is None or other.logits.shape[1] != CLASSES:
        return _scores(counts, mine, images), ()
    return _scores(counts, mine, images), _changes(mine.names, decide(other.logits, other.kind).names, images)


def _scores(counts: Counts, decisions: Decisions, images: _Images) -> tuple[Score, ...]:
    followed = _followed(decisions.names, images)
    cues, n = counts.shape + counts.texture, counts.conflict
    one_way = None if counts.shape and counts.texture else Reason(
        "no-spread", "all followed the same cue: resampling cannot bound the share")

    def bias(name: str, clusters: IntArray, how: str, method_id: str) -> Score:
        low, high = _bootstrap(clusters, followed, _bias_of)
        value = math.nan if counts.shape_bias is None else counts.shape_bias
        return resampled(name, (value, float(low[0]), float(high[0])), "fraction", None, cues, f"{_BIAS}; {how}",
                         undefined=_NO_CUE, unbounded=one_way, in_some=_TOO_FEW, method_id=method_id,
                         n_effective=len(np.unique(clusters)) if method_id == _CLUSTERED else None)

    def of_conflicts(name: str, count: int, better: Better | None, method: str) -> Score:
        return share(name, count, n, better, method, without=_NO_CONFLICT)

    return (
        bias("shape_bias", np.arange(n), _BOOTSTRAP, BOOTSTRAP),
        bias("shape_bias_by_exemplar", _clusters(images), _BY_EXEMPLAR, _CLUSTERED),
        of_conflicts("cue_accuracy", cues, "higher", "share of conflict images decided for the shape or the texture"),
        of_conflicts("shape_accuracy", counts.shape, None, "share of conflict images decided for the shape"),
        of_conflicts("texture_accuracy", counts.texture, None, "share of conflict images decided for the texture"),
        share("no_conflict_accuracy", counts.no_conflict_right, counts.no_conflict, "higher",
              "share of the images with the same shape and texture decided for it",
              without=Reason("no-images", "no image has the same shape and texture")),
        counted("decision_ties", float(_count(decisions.tied)), len(decisions.tied),
                f"images on which several categories are exactly equal, the first of them taken: {_DECISION}"),
        *(share(f"shape_bias_{name}", shape, shape + texture, None,
                f"shape decisions among the decisions for either cue, on conflict images with the shape of {name}",
                without=_NO_CUE)
          for name, (shape, texture) in counts.by_category.items()),
    )


def _changes(mine: npt.NDArray[np.str_], theirs: npt.NDArray[np.str_], images: _Images) -> tuple[Score, ...]:
    one, two = _followed(mine, images), _followed(theirs, images)
    n = len(one)
    switched = _count(mine[images.conflict] != theirs[images.conflict])
    swapped = _count((one[:, 0] * two[:, 1] + one[:, 1] * two[:, 0]) > 0)
    both = np.hstack([one, two])

    def differences(sums: FloatArray) -> FloatArray:
        shares = np.array([sums[0] + sums[1], sums[0], sums[1], sums[2] + sums[3], sums[2], sums[3]]) / max(n, 1)
        return np.array([*(_bias_of(sums[:2]) - _bias_of(sums[2:])), *(shares[:3] - shares[3:])])

    estimate = differences(both.sum(axis=0)).tolist()
    low, high = (ends.tolist() for ends in _bootstrap(np.arange(n), both, differences))
    wide_low, wide_high = _bootstrap(_clusters(images), both, differences)
    what = "minus the reference's on the same images; paired"
    no_bias = Reason("undefined", f"{_NO_CUE.words}, here or there")

    def change(name: str, k: int, better: Better | None, method: str, why: Reason) -> Score:
        return resampled(name, (estimate[k] if n else math.nan, low[k], high[k]), "fraction", better, n,
                         f"{method} {what} {_BOOTSTRAP}", undefined=why, in_some=_TOO_FEW)

    return (
        change("shape_bias_change", 0, None, "shape bias", no_bias),
        resampled("shape_bias_change_by_exemplar", (estimate[0], float(wide_low[0]), float(wide_high[0])), "fraction",
                  None, n, f"shape bias {what} {_BY_EXEMPLAR}", undefined=no_bias, in_some=_TOO_FEW,
                  method_id=_CLUSTERED, n_effective=len(np.unique(_clusters(images)))),
        change("cue_accuracy_change", 1, "higher", "share of conflict images decided for either cue", _NO_CONFLICT),
        change("shape_accuracy_change", 2, None, "share of conflict images decided for the shape", _NO_CONFLICT),
        change("texture_accuracy_change", 3, None, "share of conflict images decided for the texture", _NO_CONFLICT),
        share("decisions_switched", switched, n, "lower",
              "share of conflict images decided for another category than the reference's", without=_NO_CONFLICT),
        share("cues_swapped", swapped, n, "lower",
              "share of conflict images on which this variant and the reference follow opposite cues",
              without=_NO_CONFLICT),
    )


def _read_names(ids: Sequence[str] | npt.NDArray[np.str_]) -> _Images:
    found = []
    for name in map(str, ids):
        match = _NAME.search(name)
        if match is None or match["shape"] not in INDICES or match["texture"] not in INDICES:
            raise InvalidInput(f"expected cue-conflict images named like airplane/airplane1-bicycle2.png, got {name!r}",
                               "keep the names of the published set")
        found.append((match["shape"], match["texture"], match["exemplar"]))
    columns = np.array(found, np.str_).reshape(-1, 3)
    return _Images(columns[:, 0], columns[:, 1], columns[:, 2])


def _followed(names: npt.NDArray[np.str_], images: _Images) -> FloatArray:
    """Return 1.0 or 0.0 per conflict image for (shape followed, texture followed), shape (conflict images, 2)."""
    return np.stack([names == images.shape, names == images.texture], axis=1)[images.conflict].astype(np.float64)


def _clusters(images: _Images) -> IntArray:
    return np.unique(images.exemplar[images.conflict], return_inverse=True)[1].reshape(-1)


def _bias_of(sums: FloatArray) -> FloatArray:
    return np.array([sums[0] / sums[:2].sum() if sums[:2].sum() else np.nan])


def _bootstrap(clusters: IntArray, rows: FloatArray, statistic: Callable[[FloatArray], FloatArray],
               ) -> tuple[FloatArray, FloatArray]:
    """Return the intervals of `statistic`, a function of the column sums of `rows`, over clusters of rows."""
    count = int(clusters.max()) + 1 if clusters.size else 0
    if count < 2:
        nothing = np.full(statistic(rows.sum(axis=0)).shape, np.nan)
        return nothing, nothing
    totals = np.stack([np.bincount(clusters, column, minlength=count) for column in rows.T], axis=1)
    return stats.bootstrap(lambda chosen: statistic(totals[chosen].sum(axis=0)), count)


def _nothing(n: int, reason: Reason) -> tuple[Score, ...]:
    return (absent("shape_bias", "fraction", None, n, f"{_BIAS}; {_BOOTSTRAP}", reason, kind="resampled",
                   method_id=BOOTSTRAP),)


def _count(flags: BoolArray) -> int:
    return int(np.count_nonzero(flags))


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None
