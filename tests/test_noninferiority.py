"""Statements of non-inferiority against intervals computed by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from scipy.stats import norm

from edgebench import noninferiority, report
from edgebench.noninferiority import Statement, statements
from edgebench.record import Evaluation, Run, Score
from tests import builders


def evaluated(*evaluations: Evaluation) -> Run:
    return replace(builders.run("ort-int8"), evaluations=evaluations)


def flipped(negative: int, positive: int, n: int = 1000) -> Statement:
    (found,) = statements(evaluated(builders.accuracy_evaluation(400, n=n, flips=(negative, positive))))
    return found


def resampled(of: str, name: str, value: float, arm: float, n: int = 5000) -> Evaluation:
    change = Score(name=name, value=value, low=value - arm, high=value + arm, unit="fraction", better="lower", n=n,
                   method="paired bootstrap")
    return replace(builders.accuracy_evaluation(900), property=of, scores=(), reference_scores=(change,))


@pytest.mark.parametrize(("negative", "positive", "verdict"), [
    (0, 0, "non-inferior"), (0, 30, "non-inferior"), (5, 5, "undecided"), (8, 2, "undecided"), (30, 2, "inferior")])
def test_flips_decide_by_the_half_point_of_margin(negative, positive, verdict):
    found = flipped(negative, positive)
    assert verdict == found.verdict
    assert ((positive - negative) / 1000, -0.005, 0.95, 1000) == (found.change, found.margin, found.confidence, found.n)
    assert found.bound is not None
    assert (found.bound > -0.005) == (verdict == "non-inferior")


def test_without_a_flip_the_bound_is_that_of_tangos_interval():
    square = norm.ppf(0.95) ** 2
    assert -square / (1000 + square) == pytest.approx(flipped(0, 0).bound, abs=1e-6)
    # So many images without any flip do not show it.
    assert "undecided" == flipped(0, 0, n=500).verdict


@pytest.mark.parametrize(("change", "verdict"), [(-0.003, "non-inferior"), (0.002, "undecided"), (0.009, "undecided"), (0.02, "inferior")])
def test_an_increase_of_the_calibration_error_is_the_loss(change, verdict):
    (found,) = statements(evaluated(resampled("calibration", "ece15_ew_change", change, 0.006)))
    # A stored interval of 95 % two-sided is taken as a normal error's, here asked for at 95 % one-sided.
    arm = 0.006 * norm.ppf(0.95) / norm.ppf(0.975)
    assert (verdict, 0.005) == (found.verdict, found.margin)
    assert change + arm == pytest.approx(found.bound)
    assert math.isclose(change, found.change)


def test_intervals_from_resampling_a_handful_of_images_decide_nothing():
    (found,) = statements(evaluated(resampled("calibration", "ece15_ew_change", 0.0001, 0.0001, n=60)))
    assert "undecided" == found.verdict


def test_each_property_has_its_statement_and_what_is_absent_none():
    run = evaluated(builders.accuracy_evaluation(900, flips=(5, 5)),
                    resampled("mistakes", "annotated_error_change", 0.03, 0.01),
                    resampled("robustness", "mean_corruption_accuracy_change", 0.01, 0.004))
    assert [("accuracy", "undecided"), ("robustness", "non-inferior"), ("mistakes", "inferior")] == [
        (one.of, one.verdict) for one in statements(run)]
    assert () == statements(evaluated(builders.accuracy_evaluation(900)))


def test_the_margins_are_those_of_the_protocol():
    assert {0.005, 0.5} == {rule.limit for rule in noninferiority.MARGINS}
    (mean_ce,) = (rule for rule in noninferiority.MARGINS if rule.metric == "mean_ce")
    assert (0.5, True) == (mean_ce.limit, mean_ce.upper)


def test_the_report_says_it_in_words():
    reference = replace(builders.run("ort-fp32"), evaluations=(builders.accuracy_evaluation(900),))
    page = report.html([reference, evaluated(builders.accuracy_evaluation(872, flips=(30, 2)))])
    (row,) = [line for line in page.splitlines() if "Accuracy: " in line and "inferior" in line]
    assert "−2.80 points" in row
    assert "−0.50 points" in row
    assert "non-inferior" not in row
