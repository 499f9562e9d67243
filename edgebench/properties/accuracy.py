"""Plain accuracy, and against the FP32 reference: its change, flips, McNemar's test and label-free fidelity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from edgebench import metrics, stats
from edgebench.datasets import IMAGENET_VAL
from edgebench.metrics import BoolArray
from edgebench.properties import Pass, Predictions, labelled, paired
from edgebench.properties.fidelity import fidelity, flips, proportion
from edgebench.properties.robustness import real_outcome
from edgebench.record import Evaluation, Score

SUMMARY = "Top-1 and top-5 accuracy (ImageNet: ReaL too); flips and fidelity against the FP32 reference"
NEEDS = "labelled images: --data ROOT with ROOT/<class>/<image>"

_REAL = "share of images whose largest logit is any of the reassessed (ReaL) labels, images without one left out"
_NO_REAL = "the ReaL labels are not at hand: install imagenet-x or timm, or put real.json into the data root"
_NO_REAL_IMAGE = "none of these images has a ReaL label, or the model's classes are not ImageNet's in their usual order"

_ADJUSTED = {"mcnemar_p": "mcnemar_p_holm", "mcnemar_p_real": "mcnemar_p_real_holm"}
"""What each test is called after the adjustment for all of them."""


def passes(datasets: Sequence[str], preset: str = "native") -> tuple[Pass, ...]:
    """Return the clean pass over every labelled data set."""
    return labelled(datasets, preset)


def score(predictions: Mapping[Pass, Predictions], reference: Mapping[Pass, Predictions] | None,
          ) -> tuple[Evaluation, ...]:
    """Return accuracy per pass, as fractions; the tests of all passes together are one family for Holm's method."""
    evaluations = []
    for key, found in predictions.items():
        other = paired(found, reference, key)
        real, real_changes = _real(found, other) if key.dataset == IMAGENET_VAL else ((), ())
        evaluations.append(Evaluation(
            property="accuracy", dataset=found.dataset, condition=key.condition, preset=key.preset,
            predictions=(key.file,), scores=(*_scores(found), *real),
            reference_scores=(*_against(found, other), *real_changes) if other else ()))
    return _adjusted(evaluations)


def _scores(found: Predictions) -> tuple[Score, ...]:
    outcomes = found.outcomes
    n, classes = len(outcomes), outcomes.classes
    top1 = proportion("accuracy_top1", int(outcomes.correct.sum()), n, "higher",
                      "share of images whose largest logit is the target's, lowest index on ties; Wilson interval")
    if classes <= metrics.TOP:
        return top1, Score(name="accuracy_top5", value=None, unit="fraction", better="higher", n=n,
                           method="share of images with the target among the five largest logits",
                           reason=f"with {classes} classes the five largest logits always hold the target")
    return top1, proportion("accuracy_top5", int(outcomes.in_top5.sum()), n, "higher",
                            "share of images with the target among the five largest logits; Wilson interval")


def _against(found: Predictions, other: Predictions) -> tuple[Score, ...]:
    mine, theirs = found.outcomes.correct, other.outcomes.correct
    change, p_value = _change("accuracy_top1_change", "mcnemar_p", theirs, mine, "top-1")
    return change, *flips(theirs, mine), p_value, *fidelity(found, other)


def _change(name: str, test: str, before: BoolArray, after: BoolArray, what: str) -> tuple[Score, Score]:
    """Return the change of a share of right answers on the same images, and whether chance explains it."""
    negative, positive = metrics.flips(before, after)
    n = before.size
    low, high = stats.paired_interval(positive, negative, n)
    return (
        Score(name=name, value=(positive - negative) / n, low=low, high=high, unit="fraction", better="higher", n=n,
              method=f"{what} minus the reference's on the same images; Tango's score interval"),
        Score(name=test, value=stats.mcnemar_exact(negative, positive), unit="1", better=None, n=n,
              method=f"exact two-sided McNemar test that negative and positive flips of {what} are equally likely"))


def _real(found: Predictions, other: Predictions | None) -> tuple[tuple[Score, ...], tuple[Score, ...]]:
    outcome = real_outcome(found)
    if outcome is None or not outcome[1].any():
        return (Score(name="accuracy_real", value=None, unit="fraction", better="higher", n=0, method=_REAL,
                      reason=_NO_REAL if outcome is None else _NO_REAL_IMAGE),), ()
    correct, has_labels = outcome
    after = correct[has_labels]
    scores = (proportion("accuracy_real", int(after.sum()), after.size, "higher", f"{_REAL}; Wilson interval"),)
    before = real_outcome(other) if other else None
    if before is None:
        return scores, ()
    return scores, _change("accuracy_real_change", "mcnemar_p_real", before[0][has_labels], after, "ReaL top-1")


def _adjusted(evaluations: Sequence[Evaluation]) -> tuple[Evaluation, ...]:
    """Return the evaluations with an adjusted p-value behind each test, over data sets and kinds of labels."""
    tests = [score.value for one in evaluations for score in one.reference_scores
             if score.name in _ADJUSTED and score.value is not None]
    adjusted = iter(stats.holm(tests))

    def doubled(score: Score) -> tuple[Score, ...]:
        if score.name not in _ADJUSTED or score.value is None:
            return (score,)
        return score, replace(score, name=_ADJUSTED[score.name], value=next(adjusted),
                              method=f"{score.method}; adjusted by Holm's method for {len(tests)} tests of accuracy")

    return tuple(replace(one, reference_scores=tuple(each for score in one.reference_scores for each in doubled(score)))
                 for one in evaluations)
