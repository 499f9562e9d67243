"""Calibration error: do the confidences mean what they say? The paper's 15-bin estimate beside better ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from edgebench import calibration_errors, class_subsets, metrics, selective, stats, temperature
from edgebench.datasets import IMAGENET_R
from edgebench.properties import CLEAN, Pass, Predictions, labelled, paired
from edgebench.properties.scores import COMPACT, NO_DISTRIBUTION, SHIFTED_BOOTSTRAP, Reason, absent, counted, resampled
from edgebench.record import Better, Evaluation, ReliabilityBin, Score

SUMMARY = "Calibration errors, NLL, Brier score, signed gap, temperature scaling and selective prediction"
NEEDS = "labelled images: --data ROOT with ROOT/<class>/<image>, or ImageNet-R: ROOT/imagenet-r/<wnid>/<image>"

MIN_IMAGES_TEMPERATURE = 100
"""Some 50 images in each half; with fewer a fitted temperature is mostly noise."""
_BOOTSTRAP = "bootstrap over images, 1,000 resamples, shifted by its bias"
_LOW_HIGH = "confidence is the largest probability (float64; the softmax of logits, or what the model gives as such)"
_CURVE = "images ranked by confidence, average over all orders within ties"
_CROSS_FIT = ("each half of the images, split by a hash of their ids, scaled by the temperature with the least NLL on "
              "the other half")
_PARTS = ("the top label's Brier score, mean of (confidence - correct)^2, is brier_reliability - brier_resolution + "
          "brier_uncertainty + brier_within_bins")
_NO_BIN = Reason("too-few", f"no confidence bin holds {calibration_errors.MIN_IMAGES_PER_BIN} images")
_ONE_SIDED = Reason("undefined", "every answer is right, or every one is wrong: there is nothing to tell apart")
_NO_TEMPERATURE = Reason(
    "undefined", "no temperature minimises the NLL: every answer of a half is right, or its logits say nothing")
_SOME_RESAMPLES = Reason("some-resamples", "in some resamples it is not defined")
_NEVER = Reason("undefined", "it is not defined on these images")
_TOO_DEAR = Reason("not-computed", "no interval: every resample would need all probabilities of all images again")
_EXCLUDED = Reason("undefined", "a target has probability 0: its negative log-likelihood is infinite")


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Images in order of confidence, as an estimator sees them; what several estimators need is computed once.

    Only the columns that estimators read, for every resample copies them all (N,).
    """

    confidence: stats.FloatArray
    correct: metrics.BoolArray
    nll: stats.FloatArray
    """NaN throughout where that of an image is infinite."""
    brier: stats.FloatArray
    place: stats.IntArray
    """Which of the 15 equal-width bins each image is in."""

    @classmethod
    def of(cls, outcomes: metrics.Outcomes) -> Sample:
        """Return the sample of all images, put in order of confidence."""
        finite = bool(np.isfinite(outcomes.nll).all())
        return cls(confidence=outcomes.confidence, correct=outcomes.correct, brier=outcomes.brier,
                   nll=outcomes.nll if finite else np.full(len(outcomes), np.nan),
                   place=metrics.bin_places(outcomes.confidence)).take(
                       np.argsort(outcomes.confidence, kind="stable"))

    def take(self, chosen: stats.IntArray) -> Sample:
        """Return the sample of the images at `chosen` (M,), as often as they are named."""
        return Sample(confidence=self.confidence[chosen], correct=self.correct[chosen], nll=self.nll[chosen],
                      brier=self.brier[chosen], place=self.place[chosen])

    @cached_property
    def errors(self) -> stats.FloatArray:
        """Expected errors among the k most confident images."""
        return selective.expected_errors(self.confidence, self.correct)

    @cached_property
    def bins(self) -> metrics.Bins:
        """The 15 equal-width bins."""
        return metrics.placed_bins(self.place, self.confidence, self.correct)

    @cached_property
    def mass(self) -> metrics.Sums:
        """The totals of the 15 bins of equally many images."""
        return metrics.equal_mass(self.confidence, self.correct)

    @cached_property
    def brier_parts(self) -> calibration_errors.BrierParts:
        """The top label's Brier score, decomposed by these bins."""
        return calibration_errors.brier_parts(self.bins, float(np.square(self.confidence - self.correct).mean()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimator:
    """A score that is a function of the per-image outcomes, and so can be bootstrapped."""

    name: str
    unit: str = "fraction"
    better: Better | None = "lower"
    method: str
    statistic: Callable[[Sample], float]
    """NaN where it is not defined."""
    at_least: int = 1
    """Images needed."""
    bounds: tuple[float, float] = (0.0, 1.0)
    """Of the interval: shifting must not push it beyond what the score can be."""
    undefined: Reason = _NEVER
    """Why the statistic may be NaN."""
    compared: bool = True
    """Whether its change against the reference is a score too."""


def _top_label(metric: Callable[[stats.FloatArray, metrics.BoolArray], float]) -> Callable[[Sample], float]:
    return lambda sample: metric(sample.confidence, sample.correct)


ESTIMATORS: tuple[Estimator, ...] = (
    Estimator(name="ece15_ew", statistic=lambda sample: metrics.binned_error(sample.bins),
              method=f"expected calibration error in 15 equal-width bins (low, high]; {_LOW_HIGH}"),
    Estimator(name="ece_em", statistic=lambda sample: metrics.mass_error(sample.mass),
              method="expected calibration error in 15 bins of equally many images"),
    Estimator(name="ece_debiased_l2", statistic=lambda sample: metrics.debiased_l2(sample.mass),
              at_least=metrics.MIN_IMAGES_DEBIASED,
              method="root of the debiased squared calibration error in 15 equal-mass bins, 0 where that is negative"),
    Estimator(name="ece_debiased_l2_squared", unit="1",
              statistic=lambda sample: metrics.debiased_l2_squared(sample.mass),
              at_least=metrics.MIN_IMAGES_DEBIASED, bounds=(-math.inf, math.inf), compared=False,
              method="debiased squared calibration error, sign kept: centred on 0 for a calibrated model"),
    Estimator(name="ece_debiased_l1", statistic=lambda sample: metrics.debiased_l1(sample.mass),
              at_least=metrics.MIN_IMAGES_DEBIASED, bounds=(-math.inf, math.inf), compared=False,
              method="equal-mass calibration error less its expected noise"),
    Estimator(name="ece_sweep", statistic=_top_label(calibration_errors.ece_sweep), compared=False,
              method="expected calibration error in the most equal-mass bins, counted up from 1 to at most "
                     f"{calibration_errors.SWEEP_BINS}, that leave accuracy rising with confidence"),
    Estimator(name="smece", statistic=_top_label(calibration_errors.smece),
              method="smooth calibration error: integral of the absolute residual, smoothed by a reflected Gaussian "
                     "kernel as wide as the error itself; on 1,025 grid points"),
    Estimator(name="mce", statistic=lambda sample: calibration_errors.largest_gap(sample.bins), undefined=_NO_BIN,
              compared=False,
              method="largest gap of mean confidence and accuracy among the 15 equal-width bins that hold "
                     f"{calibration_errors.MIN_IMAGES_PER_BIN} images"),
    Estimator(name="nll", unit="nat", statistic=lambda sample: float(sample.nll.mean()),
              bounds=(0.0, math.inf), method="mean negative log-likelihood of the target", undefined=_EXCLUDED),
    Estimator(name="brier", unit="1", statistic=lambda sample: float(sample.brier.mean()),
              bounds=(0.0, 2.0), method="mean squared distance of the probabilities from the one-hot target"),
    Estimator(name="brier_reliability", unit="1", statistic=lambda sample: sample.brier_parts.reliability,
              method=f"mean squared gap of mean confidence and accuracy in 15 equal-width bins; {_PARTS}"),
    Estimator(name="brier_resolution", unit="1", better="higher", bounds=(0.0, 0.25),
              statistic=lambda sample: sample.brier_parts.resolution,
              method=f"mean squared distance of a bin's accuracy from the overall one; {_PARTS}"),
    Estimator(name="brier_uncertainty", unit="1", better=None, bounds=(0.0, 0.25), compared=False,
              statistic=lambda sample: sample.brier_parts.uncertainty,
              method=f"accuracy times one minus accuracy; {_PARTS}"),
    Estimator(name="brier_within_bins", unit="1", better=None, bounds=(-1.0, 1.0), compared=False,
              statistic=lambda sample: sample.brier_parts.within_bins,
              method=f"variance of confidence within bins less twice its covariance with being right; {_PARTS}"),
    Estimator(name="signed_gap", better=None, statistic=_top_label(metrics.signed_gap), bounds=(-1.0, 1.0),
              method="mean confidence minus accuracy: positive is over-confident"),
    Estimator(name="aurc", statistic=lambda sample: selective.aurc(sample.errors),
              method=f"area under the risk-coverage curve: mean over k of the error rate among the k surest; {_CURVE}"),
    Estimator(name="e_aurc", statistic=lambda sample: selective.e_aurc(sample.errors), compared=False,
              method=f"aurc less that of a ranking with all errors last; {_CURVE}"),
    Estimator(name="augrc", statistic=lambda sample: selective.augrc(sample.errors),
              method=f"mean over k of the errors among the k surest, over all images; {_CURVE}"),
    Estimator(name="auroc_fd", better="higher", statistic=lambda sample: selective.auroc(sample.errors),
              undefined=_ONE_SIDED,
              method="chance that a right answer is more confident than a wrong one, ties counting half"),
    Estimator(name="coverage_at_5_risk", better="higher",
              statistic=lambda sample: selective.coverage_at_risk(sample.errors, 0.05),
              method=f"largest share of images, surest first, answered with at most 5 % errors; {_CURVE}"),
    Estimator(name="risk_at_80_coverage", statistic=lambda sample: selective.risk_at_coverage(sample.errors, 0.8),
              method=f"error rate among the surest 80 % of the images; {_CURVE}"),
)


def passes(datasets: Sequence[str], preset: str = "native") -> tuple[Pass, ...]:
    """Return the clean pass over every labelled data set, and over ImageNet-R."""
    rendition = (Pass(IMAGENET_R, CLEAN, preset),) if IMAGENET_R in datasets else ()
    return (*labelled(datasets, preset), *rendition)


def score(predictions: Mapping[Pass, Predictions], reference: Mapping[Pass, Predictions] | None,
          ) -> tuple[Evaluation, ...]:
    """Return the family of estimators per pass, and their paired changes against the reference.

    On ImageNet-R the softmax runs over its 200 classes alone, as in the paper. Independent sigmoid scores are no
    confidences: of them every score is absent.
    """
    evaluations = []
    for key, whole in predictions.items():
        found, other = whole, paired(whole, reference, key)
        if key.dataset == IMAGENET_R:
            found, other = whole.within(class_subsets.IMAGENET_R), other and other.within(class_subsets.IMAGENET_R)
        if "sigmoid_scores" in (found.kind, other.kind if other else ""):
            evaluations.append(Evaluation(
                property="calibration", dataset=found.dataset, condition=key.condition, preset=key.preset,
                predictions=(key.file,), scores=tuple(
                    _score(one.name, one.unit, one.better, len(found.ids), f"{one.method}; {_BOOTSTRAP}",
                           (math.nan,) * 3, NO_DISTRIBUTION)
                    for one in ESTIMATORS)))
            continue
        scores, changes = _family(found.outcomes, other.outcomes if other else None)
        scaling, scaling_changes = _scaling(found, other)
        evaluations.append(Evaluation(
            property="calibration", dataset=found.dataset, condition=key.condition, preset=key.preset,
            predictions=(key.file,), scores=(*scores, _distinct(found), *_classwise(found), *scaling),
            reference_scores=(*changes, *scaling_changes), reliability=_reliability(found.outcomes)))
    return tuple(evaluations)


def _family(outcomes: metrics.Outcomes, reference: metrics.Outcomes | None,
            ) -> tuple[tuple[Score, ...], tuple[Score, ...]]:
    n = len(outcomes)
    # Sorted by confidence, equal-mass bins of a resample need no sorting of their own. The reference ranks the images
    # otherwise: the same ones are drawn from it, but handed over in its own order.
    order = np.argsort(outcomes.confidence, kind="stable")
    mine = Sample.of(outcomes)
    usable = [one for one in ESTIMATORS if n >= one.at_least]
    compared = [one for one in usable if one.compared] if reference else []
    their_order = np.argsort(reference.confidence, kind="stable") if reference else order
    theirs = Sample.of(reference) if reference else None
    # Where image `their_order[k]` stands in `order`.
    place = np.argsort(order)[their_order]

    def statistics(chosen: stats.IntArray) -> stats.FloatArray:
        sample = mine.take(chosen)
        values = {one.name: one.statistic(sample) for one in usable}
        if theirs is None:
            return np.array([*values.values()])
        counts = np.bincount(chosen, minlength=n)
        other = theirs.take(np.repeat(np.arange(n), counts[place]))
        return np.array([*values.values(), *(values[one.name] - one.statistic(other) for one in compared)])

    intervals = _bootstrap(statistics, n)
    scores = [_score(one.name, one.unit, one.better, n, f"{one.method}; {_BOOTSTRAP}", next(intervals), one.undefined,
                     one.bounds) for one in usable]
    scores += [_score(one.name, one.unit, one.better, n, f"{one.method}; {_BOOTSTRAP}", (math.nan,) * 3,
                      _too_few(n, one.at_least)) for one in ESTIMATORS if n < one.at_least]
    null, null_high = metrics.null_ece(mine.confidence)
    scores += [
        Score(name="ece15_ew_null", value=null, high=null_high, confidence=0.975, unit="fraction", better=None, n=n,
              method="15-bin error that a perfectly calibrated model with these confidences shows on as many images: "
                     "mean and 97.5 % point of 200 draws",
              reason="one-sided: only the upper end matters", reason_code="one-sided", kind="estimate",
              method_id="simulated-null"),
        counted("certain_images", float(outcomes.certain), n,
                "images with a confidence of exactly 1.0: saturated outputs show here"),
    ]
    changes = [_change(one.name, one.unit, one.better, n, next(intervals), one.undefined) for one in compared]
    return tuple(scores), tuple(changes)


def _distinct(found: Predictions) -> Score:
    n, name = len(found.outcomes), "distinct_logits"
    method = (f"different values among all outputs, counted up to {metrics.MOST_DISTINCT:,}: a tensor of 8 bits has at "
              "most 256")
    if found.compact:
        return absent(name, "1", None, n, method, COMPACT, kind="exact", method_id="count")
    return counted(name, float(metrics.distinct_values(found.logits)), n, method)


def _classwise(found: Predictions) -> tuple[Score, ...]:
    n = len(found.outcomes)
    whole = "calibration error of every class's probability in 15 equal-width bins (low, high], mean over classes"
    likely = ("the same over the probabilities above 0.001 alone, per such probability: with many classes nearly all "
              "others are next to 0, and the error with them")
    errors = None if found.compact else calibration_errors.classwise(
        found.logits, found.targets, kind=found.kind)
    unlikely = Reason("undefined", "no probability is above 0.001")

    def classwise(name: str, value: float | None, method: str) -> Score:
        if value is None or math.isnan(value):
            return absent(name, "fraction", "lower", n, method, COMPACT if value is None else unlikely,
                          kind="estimate", method_id="plug-in")
        return Score(name=name, value=value, unit="fraction", better="lower", n=n, method=method, kind="estimate",
                     method_id="plug-in", reason=_TOO_DEAR.words, reason_code=_TOO_DEAR.code)

    return (classwise("cwece", errors and errors.every, whole),
            classwise("cwece_thresholded", errors and errors.likely, likely))


@dataclass(frozen=True, slots=True)
class _Scaled:
    """What temperature scaling makes of each image."""

    place: stats.IntArray
    """Which of the 15 equal-width bins each image is in (N,)."""
    excess: stats.FloatArray
    """Confidence less whether it is right (N,)."""
    nll: stats.FloatArray

    def errors(self, chosen: stats.IntArray) -> tuple[float, float]:
        """Return 15-bin error and mean NLL of the images chosen."""
        gaps = np.bincount(self.place[chosen], self.excess[chosen], minlength=metrics.BINS)
        return float(np.abs(gaps).sum() / chosen.size), float(self.nll[chosen].mean())


def _scaling(found: Predictions, other: Predictions | None) -> tuple[tuple[Score, ...], tuple[Score, ...]]:
    """Return temperature, errors after scaling by it, and what the reference's own temperature would do here."""
    n = len(found.outcomes)
    few = None if n >= MIN_IMAGES_TEMPERATURE else _too_few(n, MIN_IMAGES_TEMPERATURE)
    unfit = few or (COMPACT if found.compact else None)
    unfit_both = unfit or (COMPACT if other and other.compact else None)
    own = None if unfit else found.temperatures
    its = other.temperatures if other and not unfit_both else None
    why = unfit or (_NO_TEMPERATURE if np.isfinite(found.outcomes.nll).all() else _EXCLUDED)
    both = unfit_both or _NO_TEMPERATURE._replace(
        words=f"{'this variant' if its else 'the reference'}: {_NO_TEMPERATURE.words}")
    mine, borrowed = _scaled(found, own), _scaled(found, its)
    theirs = _scaled(other, its) if other else None

    def statistics(chosen: stats.IntArray) -> stats.FloatArray:
        value, reference_value = (one.resampled(chosen) if one else math.nan for one in (own, its))
        after, with_its, reference_after = (one.errors(chosen) if one else (math.nan, math.nan)
                                            for one in (mine, borrowed, theirs))
        return np.array([value, *after, value / reference_value, *with_its,
                         after[0] - reference_after[0], after[1] - reference_after[1]])

    intervals = _bootstrap(statistics, n) if own or its else iter([(math.nan, math.nan, math.nan)] * 8)
    held = f"{_BOOTSTRAP}, temperatures held fixed"
    newton = f"{_BOOTSTRAP}, one Newton step from the fit per resample"
    ece, nll = "15-bin expected calibration error", "mean negative log-likelihood of the target"
    lent = "after scaling by the reference's temperatures, fitted likewise"
    positive = (0.0, math.inf)
    scores = (
        _score("temperature", "1", None, n, "number that logits are divided by for the least NLL: above 1 is "
               f"over-confident; geometric mean of two halves of the images, split by a hash of their ids; {newton}",
               next(intervals), why, positive),
        _score("ece15_ew_scaled", "fraction", "lower", n, f"{ece} after temperature scaling, {_CROSS_FIT}; {held}",
               next(intervals), why, (0.0, 1.0)),
        _score("nll_scaled", "nat", "lower", n, f"{nll} after temperature scaling, {_CROSS_FIT}; {held}",
               next(intervals), why, positive))
    if other is None:
        return scores, ()
    return scores, (
        _score("temperature_ratio", "1", None, n, "temperature over the reference's: what a recipe that scales all "
               f"outputs does to it; paired {newton}", next(intervals), both, positive),
        _score("ece15_ew_scaled_by_reference", "fraction", "lower", n, f"{ece} {lent}; {held}", next(intervals), both,
               (0.0, 1.0)),
        _score("nll_scaled_by_reference", "nat", "lower", n, f"{nll} {lent}; {held}", next(intervals), both, positive),
        _change("ece15_ew_scaled", "fraction", "lower", n, next(intervals), both),
        _change("nll_scaled", "nat", "lower", n, next(intervals), both))


def _scaled(found: Predictions, fitted: temperature.Temperatures | None) -> _Scaled | None:
    if fitted is None:
        return None
    confidence, nll = temperature.scaled(found.logits, found.targets, fitted.unseen)
    return _Scaled(metrics.bin_places(confidence), confidence - found.outcomes.correct, nll)


def _bootstrap(statistics: Callable[[stats.IntArray], stats.FloatArray], n: int) -> Iterator[tuple[float, ...]]:
    """Return (value, low, high) of each statistic, from indices of n images."""
    estimate = statistics(np.arange(n))
    low, high = stats.bootstrap(statistics, n, estimate=estimate)
    return zip(estimate.tolist(), low.tolist(), high.tolist(), strict=True)


def _score(name: str, unit: str, better: Better | None, n: int, method: str, numbers: Sequence[float],
           undefined: Reason, bounds: tuple[float, float] = (-math.inf, math.inf)) -> Score:
    return resampled(name, numbers, unit, better, n, method, undefined=undefined, in_some=_SOME_RESAMPLES,
                     bounds=bounds, method_id=SHIFTED_BOOTSTRAP)


def _change(name: str, unit: str, better: Better | None, n: int, numbers: Sequence[float], undefined: Reason) -> Score:
    return _score(f"{name}_change", unit, better, n,
                  f"difference from the reference on the same images; paired {_BOOTSTRAP}", numbers, undefined)


def _too_few(n: int, at_least: int) -> Reason:
    return Reason("too-few", f"{n} images are too few: at least {at_least} are needed")


def _reliability(outcomes: metrics.Outcomes) -> tuple[ReliabilityBin, ...]:
    bins = metrics.reliability_bins(outcomes.confidence, outcomes.correct)
    count = len(bins.n)
    return tuple(
        ReliabilityBin(low=k / count, high=(k + 1) / count, n=int(n), confidence=float(confidence) if n else None,
                       accuracy=float(accuracy) if n else None)
        for k, (n, confidence, accuracy) in enumerate(zip(bins.n, bins.confidence, bins.accuracy, strict=True)))
