"""Plain accuracy, and against the FP32 reference: its change, flips, McNemar's test and label-free fidelity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from edgebench import metrics, stats
from edgebench.datasets import IMAGENET_VAL
from edgebench.metrics import BoolArray
from edgebench.properties import Pass, Predictions, labelled, paired
from edgebench.properties.fidelity import fidelity, flips
from edgebench.properties.robustness import NO_REAL, NO_REAL_IMAGE, real_outcome
from edgebench.properties.scores import Reason, absent, adjusted, p_value, share, share_change
from edgebench.record import Evaluation, Score

SUMMARY = "Top-1 and top-5 accuracy (ImageNet: ReaL too); flips and fidelity against the FP32 reference"
NEEDS = "labelled images: --data ROOT with ROOT/<class>/<image>"

_REAL = "share of images whose largest logit is any of the reassessed (ReaL) labels, images without one left out"

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
    top1 = share("accuracy_top1", int(outcomes.correct.sum()), n, "higher",
                 "share of images whose largest logit is the target's, lowest index on ties")
    top5 = "share of images with the target among the five largest logits"
    if classes <= metrics.TOP:
        return top1, absent(
            "accuracy_top5", "fraction", "higher", n, f"{top5}; Wilson interval", kind="share",
            method_id="share-wilson",
            reason=Reason("undefined", f"with {classes} classes the five largest logits always hold the target"))
    return top1, share("accuracy_top5", int(outcomes.in_top5.sum()), n, "higher", top5)


def _against(found: Predictions, other: Predictions) -> tuple[Score, ...]:
    mine, theirs = found.outcomes.correct, other.outcomes.correct
    change, p_value = _change("accuracy_top1_change", "mcnemar_p", theirs, mine, "top-1")
    return change, *flips(theirs, mine), p_value, *fidelity(found, other)


def _change(name: str, test: str, before: BoolArray, after: BoolArray, what: str) -> tuple[Score, Score]:
    """Return the change of a share of right answers on the same images, and whether chance explains it."""
    negative, positive = metrics.flips(before, after)
    n = before.size
    return (
        share_change(name, negative, positive, n, f"{what} minus the reference's on the same images"),
        p_value(test, stats.mcnemar_exact(negative, positive), n,
                f"exact two-sided McNemar test that negative and positive flips of {what} are equally likely"))


def _real(found: Predictions, other: Predictions | None) -> tuple[tuple[Score, ...], tuple[Score, ...]]:
    outcome = real_outcome(found)
    if outcome is None or not outcome[1].any():
        return (share("accuracy_real", 0, 0, "higher", _REAL,
                      without=NO_REAL if outcome is None else NO_REAL_IMAGE),), ()
    correct, has_labels = outcome
    after = correct[has_labels]
    scores = (share("accuracy_real", int(after.sum()), after.size, "higher", _REAL),)
    before = real_outcome(other) if other else None
    if before is None:
        return scores, ()
    return scores, _change("accuracy_real_change", "mcnemar_p_real", before[0][has_labels], after, "ReaL top-1")


def _adjusted(evaluations: Sequence[Evaluation]) -> tuple[Evaluation, ...]:
    """Return the evaluations with an adjusted p-value behind each test, over data sets and kinds of labels."""
    tests = [score.value for one in evaluations for score in one.reference_scores
             if score.name in _ADJUSTED and score.value is not None]
    values = iter(stats.holm(tests))

    def doubled(score: Score) -> tuple[Score, ...]:
        if score.name not in _ADJUSTED or score.value is None:
            return (score,)
        return score, adjusted(_ADJUSTED[score.name], next(values), score.n, score.method, len(tests),
                               over="all tests of accuracy")

    return tuple(replace(one, reference_scores=tuple(each for score in one.reference_scores for each in doubled(score)))
                 for one in evaluations)
