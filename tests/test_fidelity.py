"""Fidelity to the reference against loops from the definitions, known changes, and odd inputs."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from edgebench import stats
from edgebench.errors import InvalidInput
from edgebench.properties import Predictions
from edgebench.properties.fidelity import fidelity, flips
from edgebench.properties.scores import share
from edgebench.record import DatasetIdentity

NEEDS_LOGITS = {"kl_divergence", "js_divergence", "logit_difference", "logit_difference_max"}
TENTHS = tuple(f"disagreement@margin_decile_{k}" for k in range(1, 11))


def predictions(logits, targets=None):
    n, classes = logits.shape
    identity = DatasetIdentity(name="things", source="nowhere", images=n, classes=classes, digest="d" * 64)
    return Predictions(dataset=identity, logits=logits.astype(np.float32),
                       targets=np.zeros(n, np.int64) if targets is None else np.asarray(targets),
                       ids=np.array([f"thing/{k:05d}.png" for k in range(n)]))


def compact(found):
    return replace(found, logits=np.empty((len(found.ids), 0), np.float32), stored_outcomes=found.outcomes)


def by_name(scores):
    named = {score.name: score for score in scores}
    assert len(named) == len(scores)
    return named


def noisy_pair(n=400, classes=12, noise=0.6, seed=0):
    generator = np.random.default_rng(seed)
    logits = generator.normal(scale=2.0, size=(n, classes)).astype(np.float32)
    return logits + generator.normal(scale=noise, size=logits.shape).astype(np.float32), logits


def softmax(row):
    powers = [math.exp(z) for z in row]
    return [power / sum(powers) for power in powers]


class TestAgainstTheDefinitions:
    def test_every_value_is_that_of_a_loop_over_images(self):
        variant, reference = noisy_pair()
        found = by_name(fidelity(predictions(variant), predictions(reference)))
        kl, js, overlap, confidence, logit, differs, margins = [], [], [], [], [], [], []
        for one, two in zip(reference.astype(float).tolist(), variant.astype(float).tolist(), strict=True):
            p, q = softmax(one), softmax(two)
            m = [(a + b) / 2 for a, b in zip(p, q, strict=True)]
            kl.append(sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)))
            js.append(sum(a * math.log(a / c) / 2 + b * math.log(b / c) / 2 for a, b, c in zip(p, q, m, strict=True)))
            five = [set(sorted(range(12), key=row.__getitem__)[-5:]) for row in (one, two)]
            overlap.append(len(five[0] & five[1]) / 5)
            confidence.append(abs(max(p) - max(q)))
            logit.append([abs(a - b) for a, b in zip(one, two, strict=True)])
            differs.append(one.index(max(one)) != two.index(max(two)))
            margins.append(max(p) - sorted(p)[-2])
        means = {"kl_divergence": kl, "js_divergence": js, "top5_overlap": overlap, "confidence_difference": confidence,
                 "logit_difference": logit, "disagreement": differs}
        for name, values in means.items():
            assert np.mean(values) == pytest.approx(found[name].value, rel=1e-9), name
            assert found[name].low < found[name].value < found[name].high, name
        assert np.max(logit) == pytest.approx(found["logit_difference_max"].value)
        assert ("a maximum, not an estimate", None) == (
            found["logit_difference_max"].reason, found["logit_difference_max"].low)
        order = sorted(range(400), key=margins.__getitem__)
        for place, name in enumerate(TENTHS):
            tenth = order[40 * place:40 * place + 40]
            count = sum(differs[k] for k in tenth)
            assert (count / 40, 40, *stats.wilson(count, 40)) == (
                found[name].value, found[name].n, found[name].low, found[name].high)
        # What makes the split worth having: a small margin is what noise overturns.
        assert found[TENTHS[0]].value > 10 * found[TENTHS[9]].value

    def test_intervals_are_those_of_a_plain_bootstrap_of_means(self):
        variant, reference = noisy_pair(150)
        found = by_name(fidelity(predictions(variant), predictions(reference)))["logit_difference"]
        values = np.abs(variant - reference.astype(float)).mean(axis=1)
        low, high = stats.bootstrap(lambda chosen: np.array([values[chosen].mean()]), 150)
        assert (low[0], high[0]) == pytest.approx((found.low, found.high))

    def test_names_units_and_directions(self):
        variant, reference = noisy_pair(60)
        found = by_name(fidelity(predictions(variant), predictions(reference)))
        assert {"disagreement", "top5_overlap", "confidence_difference", *NEEDS_LOGITS, *TENTHS} == set(found)
        assert {"top5_overlap"} == {name for name, score in found.items() if score.better == "higher"}
        assert {"kl_divergence", "js_divergence"} == {name for name, score in found.items() if score.unit == "nat"}
        assert {"logit_difference", "logit_difference_max"} == {name for name, score in found.items() if score.unit == "1"}

    def test_targets_do_not_matter(self):
        variant, reference = noisy_pair(60)
        assert fidelity(predictions(variant), predictions(reference)) == fidelity(
            predictions(variant, np.full(60, 3)), predictions(reference, np.arange(60) % 12))


class TestKnownChanges:
    def test_the_reference_itself_is_no_change(self):
        _, reference = noisy_pair(50)
        for score in fidelity(predictions(reference), predictions(reference)):
            assert (1.0 if score.name == "top5_overlap" else 0.0) == pytest.approx(score.value, abs=1e-15), score.name
            # An interval of no width would claim certainty.
            assert score.low is None or score.low < score.high, score.name
            assert score.low is not None or score.reason, score.name

    def test_a_number_added_to_all_logits_shows_in_the_logits_alone(self):
        _, reference = noisy_pair(50)
        found = by_name(fidelity(predictions(reference + 2), predictions(reference)))
        assert (2.0, 2.0) == pytest.approx((found["logit_difference"].value, found["logit_difference_max"].value), rel=1e-5)
        assert (0.0, 0.0, 1.0) == pytest.approx(
            tuple(found[name].value for name in ("kl_divergence", "disagreement", "top5_overlap")), abs=1e-9)

    def test_reversed_logits_share_no_top_five_of_ten_and_no_answer(self):
        reference = np.tile(np.arange(10.0), (20, 1))
        found = by_name(fidelity(predictions(reference[:, ::-1]), predictions(reference)))
        assert (0.0, 1.0) == (found["top5_overlap"].value, found["disagreement"].value)
        assert 0.0 == pytest.approx(found["confidence_difference"].value)


class TestOddInputs:
    def test_without_stored_logits_the_rest_is_the_same(self):
        variant, reference = (predictions(logits) for logits in noisy_pair(80))
        whole = by_name(fidelity(variant, reference))
        for one, two in ((compact(variant), compact(reference)), (compact(variant), reference), (variant, compact(reference))):
            found = by_name(fidelity(one, two))
            assert list(whole) == list(found)
            for name, score in found.items():
                if name in NEEDS_LOGITS:
                    assert (None, None, "the predictions were stored in compact form") == (score.value, score.low, score.reason)
                else:
                    # Fewer columns are summed in another order.
                    assert (whole[name].value, score.n) == (score.value, whole[name].n)
                    assert (whole[name].low, whole[name].high) == pytest.approx((score.low, score.high))

    @pytest.mark.parametrize("classes", [1, 2, 5])
    def test_with_up_to_five_classes_there_is_no_top_five_to_overlap(self, classes):
        variant, reference = noisy_pair(30, classes)
        found = by_name(fidelity(predictions(variant), predictions(reference)))
        assert found["top5_overlap"].value is None
        assert f"with {classes} classes" in found["top5_overlap"].reason

    @pytest.mark.parametrize("n", [1, 4, 9, 11])
    def test_few_images_fill_the_first_tenths_and_say_so(self, n):
        variant, reference = noisy_pair(n)
        found = by_name(fidelity(predictions(variant), predictions(reference)))
        assert n == sum(found[name].n for name in TENTHS)
        empty = [found[name] for name in TENTHS if found[name].n == 0]
        assert max(0, 10 - n) == len(empty)
        assert {f"{n} images are too few: at least 10 are needed"} >= {score.reason for score in empty}
        assert all(score.value is None for score in empty)

    def test_other_images_another_order_and_other_classes_are_refused(self):
        variant, reference = (predictions(logits) for logits in noisy_pair(6))
        with pytest.raises(ValueError, match="in its order"):
            fidelity(replace(variant, ids=variant.ids[::-1]), reference)
        with pytest.raises(ValueError, match="as many classes"):
            fidelity(predictions(variant.logits[:, :7]), reference)

    def test_a_logit_that_is_no_number_is_refused(self):
        variant, reference = noisy_pair(6)
        variant[2, 1] = np.nan
        with pytest.raises(InvalidInput, match="for 1 of 6 images"):
            fidelity(predictions(variant), predictions(reference))


class TestFlips:
    def test_what_was_lost_and_what_was_won(self):
        negative, positive = flips(np.array([1, 1, 1, 0, 0], bool), np.array([0, 0, 1, 1, 0], bool))
        assert ("negative_flips", 2 / 5, "lower", *stats.wilson(2, 5)) == (
            negative.name, negative.value, negative.better, negative.low, negative.high)
        assert ("positive_flips", 1 / 5, "higher", 5) == (positive.name, positive.value, positive.better, positive.n)

    def test_other_images_are_refused(self):
        with pytest.raises(ValueError, match="the same images"):
            flips(np.ones(3, bool), np.ones(4, bool))


def test_a_share_carries_its_wilson_interval():
    score = share("share", 3, 40, None, "how")
    assert ("share", 0.075, *stats.wilson(3, 40), "fraction", None, 40, "how; Wilson interval") == (
        score.name, score.value, score.low, score.high, score.unit, score.better, score.n, score.method)
