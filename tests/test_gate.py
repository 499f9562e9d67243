"""Verdicts against hand calculations, every way to be undecidable, exit codes, and error rates by simulation."""

from __future__ import annotations

import importlib.util
import json
import math
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgebench import evidence, gate, percentiles, policy, published, stats
from edgebench.errors import ExitCode, InvalidInput
from edgebench.gate import Rerun
from edgebench.record import DatasetIdentity, Evaluation, Score, Skip, dump
from edgebench.timing_types import NoiseFloor
from tests import builders
from tests import observations as ob

scipy_stats = pytest.importorskip("scipy.stats")
HEAD = 'id = "p"\ntitle = "t"\npurpose = "why"\n'


def rules(*bodies: str, head: str = "") -> policy.Policy:
    text = HEAD + head + "".join(f'[[rules]]\nid = "r{k}"\n{body}\n' for k, body in enumerate(bodies))
    return policy.parse(text, "p.toml")


def judged(body: str, run, head: str = "", **others) -> gate.Verdict:
    others = {name: (value, None) if name in ("reference", "baseline") else value for name, value in others.items()}
    return gate.judge(rules(body, head=head), (run, None), **others).verdicts[0]


def paired(negative: int, positive: int, n: int = 1000, **changes):
    """Return an INT8 run with these flips against its reference, and the reference."""
    reference = builders.run("ort-fp32", latency_s=spread(0.010), evaluations=(builders.accuracy_evaluation(n * 8 // 10, n=n),))
    run = builders.run("ort-int8", latency_s=spread(0.004), reference=reference, evaluations=(
        builders.accuracy_evaluation(n * 8 // 10 + positive - negative, n=n, flips=(negative, positive)),), **changes)
    change, (low, high) = (positive - negative) / n, stats.paired_interval(positive, negative, n)
    scores = tuple(replace(one, value=change, low=low, high=high) if one.name == "accuracy_top1_change" else one
                   for one in run.evaluations[0].reference_scores)
    return replace(run, evaluations=(replace(run.evaluations[0], reference_scores=scores),)), reference


def floor(metric: str, relative: float | None, absolute: float | None = None, unit: str = "") -> dict[str, NoiseFloor]:
    """Return the noise floor of one metric as a gate takes it."""
    return {metric: NoiseFloor(device="cpu", metric=metric, floor=relative, absolute=absolute, unit=unit, confidence=0.95,
                               content=0.95, n=8, conditions={}, measured_at="2026-01-01")}


def spread(median: float, n: int = 1000) -> list[float]:
    """Return latencies around a median, a tenth of it wide, in no order."""
    return (median * np.exp(np.random.default_rng(0).permutation(np.linspace(-0.05, 0.05, n)))).tolist()


ACCURACY = 'metric = "accuracy_top1"\nof = "accuracy"\nagainst = "reference"\nmax_decrease_absolute = 0.01'
FLIPS = 'metric = "negative_flips"\nof = "accuracy"\nmax = 0.03'


class TestAccuracy:
    def test_passes_fails_or_is_inconclusive_by_tangos_interval(self):
        for flips, status in (((5, 5), "pass"), ((45, 10), "fail"), ((15, 8), "inconclusive")):
            found = judged(ACCURACY, paired(*flips)[0])
            low, high = stats.paired_interval(flips[1], flips[0], 1000, 0.9)
            assert (low, high) == pytest.approx((found.low, found.high))
            assert status == found.status
            assert {"pass": low > -0.01, "fail": high < -0.01, "inconclusive": low < -0.01 < high}[status]

    def test_an_inconclusive_verdict_says_how_many_images_would_decide(self):
        found = judged(ACCURACY, paired(10, 10, 500)[0])
        assert "inconclusive" == found.status
        # (1.645 + 0.842)^2 * share / margin^2
        assert 6.1826 * 0.04 / 0.01**2 == pytest.approx(found.needed, rel=1e-3)
        assert f"{found.needed:,} images would decide it" in found.hint

    def test_a_relative_margin_is_a_fraction_of_the_references_value(self):
        body = ACCURACY.replace("max_decrease_absolute = 0.01", "max_decrease_relative = 0.05")
        found = judged(body, paired(30, 10)[0])
        assert -0.02 / 0.8 == pytest.approx(found.value)
        assert "pass" == found.status
        assert "−2.5 %" in found.message


class TestShares:
    def test_are_decided_by_the_exact_binomial_test(self):
        for count, status in ((15, "pass"), (45, "fail"), (27, "inconclusive")):
            found = judged(FLIPS, paired(count, count)[0])
            test = scipy_stats.binomtest(count, 1000, 0.03, "less")
            assert test.pvalue == pytest.approx(found.p_kept)
            assert status == found.status

    def test_the_message_tells_value_interval_and_limit(self):
        found = judged(FLIPS, paired(15, 15)[0])
        assert found.message.startswith("1.5 %, between 0.927 % and 2.3 % (each end at 0.95 confidence, 1,000 images)")
        assert found.message.endswith("at most 3 % is allowed")


class TestSpeed:
    def test_a_percentile_is_decided_by_its_order_statistics(self):
        run = builders.run(latency_s=spread(0.010))
        for limit, status in ((0.0109, "pass"), (0.009, "fail"), (0.0105, "inconclusive")):
            found = judged(f'metric = "latency_p99"\nmax = {limit}', run)
            assert status == found.status
        assert stats.quantile_interval(run.traces[0].latency_s, 0.99, 0.9) == (found.low, found.high)

    def test_timings_that_follow_each_other_count_for_fewer(self):
        # A slow wave: 1,000 timings are worth a handful.
        wave = (0.010 * np.exp(0.05 * np.sin(np.arange(1000) / 1000 * 2 * np.pi))).tolist()
        assert "inconclusive" == judged('metric = "latency_p50"\nmax = 0.0101', builders.run(latency_s=wave)).status
        shuffled = np.random.default_rng(1).permutation(wave).tolist()
        assert "pass" == judged('metric = "latency_p50"\nmax = 0.0101', builders.run(latency_s=shuffled)).status

    def test_a_mean_of_timings_that_follow_each_other_is_as_unsure_as_they_are_few(self):
        slow = (0.010 * np.exp(0.05 * np.sin(np.arange(1000) / 1000 * 2 * np.pi))).tolist()
        shuffled = np.random.default_rng(1).permutation(slow).tolist()
        body = 'metric = "latency_mean"\nmax = 0.0102'
        first, second = (judged(body, builders.run(latency_s=one)) for one in (slow, shuffled))
        assert ("inconclusive", "pass") == (first.status, second.status)
        worth = percentiles.effective_count(slow)
        assert f"worth {worth} independent ones" in first.method
        assert 1.645 * np.std(slow) / math.sqrt(worth) == pytest.approx(first.high - first.value, rel=0.01)

    def test_frames_missed_in_bursts_count_for_fewer(self):
        # 120 of 1,200 frames missed, all in a row or each tenth: shown to be below 15 % by the scattered ones alone.
        for missed, status in ((range(500, 620), "inconclusive"), (range(5, 1200, 10), "pass")):
            latency_s = [0.05 if k in missed else 0.01 for k in range(1200)]
            filmed = ob.query("camera", latency_s, rate_hz=30.0, limit_s=1 / 30, policy="queue")
            run = ob.watched(builders.run(), queries=(filmed,))
            found = judged('metric = "camera_miss_rate"\nmax = 0.15', run)
            assert (status, 0.1) == (found.status, pytest.approx(found.value))
            score = run.score("camera_miss_rate")
            assert (status == "pass") == (score.high < 0.15)

    def test_too_few_timings_are_inconclusive_with_the_number_that_would_do(self):
        found = judged('metric = "latency_p99"\nmax = 0.02', builders.run(latency_s=spread(0.01, 100), least=1))
        assert ("inconclusive", 299, None) == (found.status, found.needed, found.high)
        assert "between 10.5 ms and unbounded" in found.message

    def test_a_ratio_to_the_reference_joins_both_intervals(self):
        run, reference = paired(5, 5)
        found = judged('metric = "latency_p50"\nagainst = "reference"\nmax_increase_relative = 0.05', run, reference=reference)
        assert "pass" == found.status
        assert -0.6 == pytest.approx(found.value, abs=1e-9)
        assert found.low < -0.6 < found.high < -0.59
        assert reference.variant == found.against

    def test_a_failure_stands_only_where_a_rerun_confirms_it(self):
        run, reference = paired(5, 5)
        body = 'metric = "latency_p50"\nagainst = "baseline"\nmax_increase_relative = 0.05'
        slow = replace(reference, variant="slow")
        generator = np.random.default_rng(0)
        for ratio, status, confirmed in ((1.5, "fail", True), (1.0, "inconclusive", False)):
            again = Rerun(log_ratios=tuple(generator.normal(math.log(ratio), 0.1, 300).tolist()))
            found = judged(body, slow, baseline=run, reruns={"r0": again})
            assert (status, confirmed) == (found.status, found.confirmed)
        assert "inconclusive" == judged(body, slow, baseline=run, reruns={}).status
        unchecked = judged(body.replace("baseline", "reference"), slow, reference=run)
        assert ("fail", None) == (unchecked.status, unchecked.confirmed)
        assert unchecked.message.endswith("not confirmed by a re-run")

    @pytest.mark.parametrize("metric", ["latency_p50", "load_time"])
    def test_a_failure_against_a_run_of_another_day_stands_only_above_a_known_noise_floor(self, metric):
        def measured(seconds: float):
            one = builders.run(latency_s=spread(seconds))
            return replace(one, performance=(*one.performance, Score(
                name="load_time", value=seconds, unit="s", better="lower", n=1, method="m", reason="measured once")))

        body = f'metric = "{metric}"\nagainst = "baseline"\nmax_increase_relative = 0.05'
        run, baseline = measured(0.015), measured(0.010)
        unknown = judged(body, run, baseline=baseline)
        assert ("inconclusive", None, None) == (unknown.status, unknown.needed, unknown.confirmed)
        assert "runs of different days differ by more than their intervals say" in unknown.message
        assert "--noise-floor noise-floor.json" in unknown.hint
        known = judged(body, run, baseline=baseline, floors=floor(metric, 0.03))
        assert ("fail", True) == (known.status, known.message.endswith("above this device's noise floor of 3 %"))
        assert "inconclusive" == judged(body, run, baseline=baseline, floors=floor("latency_p99", 0.03)).status
        assert "error" == judged(body, run, baseline=baseline, floors=floor(metric, 0.06)).status

    def test_a_budget_is_confirmed_by_fresh_timings(self):
        run = builders.run(latency_s=spread(0.010))
        body = 'metric = "latency_p50"\nmax = 0.008'
        for median, status in ((0.010, "fail"), (0.007, "inconclusive")):
            again = {"r0": Rerun(latency_s=tuple(spread(median)))}
            assert status == judged(body, run, reruns=again).status
        # Half of a slow wave lies above the limit by chance of when it was measured: that confirms nothing.
        wave = 0.0081 * np.exp(0.05 * np.sin(np.arange(1000) / 1000 * 2 * np.pi))
        for fresh, status in ((wave, "inconclusive"), (np.random.default_rng(1).permutation(wave), "fail")):
            assert status == judged(body, run, reruns={"r0": Rerun(latency_s=tuple(fresh.tolist()))}).status

    def test_a_limit_below_the_noise_floor_is_refused_with_the_floor(self):
        run, reference = paired(5, 5)
        body = 'metric = "latency_p50"\nagainst = "reference"\nmax_increase_relative = 0.02'
        found = judged(body, run, reference=reference, floors=floor("latency_p50", 0.035))
        assert "error" == found.status
        assert ("a limit of 2.00% is below this device's noise floor: equal runs differ by up to 3.50% in latency_p50"
                == found.message)
        assert "pass" == judged(body, run, reference=reference, floors=floor("latency_p50", 0.01)).status

    def test_sizes_are_decided_as_they_stand_and_equal_is_kept(self):
        run = builders.run(size_bytes=1_000_000)
        for limit, status in ((1_000_000, "pass"), (999_999, "fail")):
            assert status == judged(f'metric = "artifact_size"\nmax = {limit}', run).status


class TestFacts:
    def test_precision_not_executed_fails_with_the_evidence(self):
        found = judged('metric = "precision_achieved"\nmin = 1.0', builders.run("ort-int8", executed="fp32"))
        assert "fail" == found.status
        assert "int8 asked for, fp32 executed: per-layer profile of the runtime" == found.message
        assert "pass" == judged('metric = "precision_achieved"\nmin = 1.0', builders.run("ort-int8")).status

    def test_share_of_time_in_the_precision_asked_for(self):
        assert 0.94 == judged('metric = "precision_share"\nmin = 0.9', builders.run("ort-int8")).value

    def test_caveats_can_be_counted(self):
        assert "pass" == judged('metric = "caveats"\nmax = 0', builders.run()).status


class TestMissing:
    @pytest.mark.parametrize(("missing", "status"), [("error", "error"), ("skip", "skipped"), ("fail", "fail")])
    def test_means_what_the_rule_says(self, missing, status):
        run = builders.run(skips=(Skip(what="energy", reason="no power sensor is readable on this device"),))
        found = judged(f'metric = "energy_per_inference"\nmax = 1.0\nmissing = "{missing}"', run)
        assert (status, "no power sensor is readable on this device") == (found.status, found.message)

    @pytest.mark.parametrize(("body", "words"), [
        ('metric = "mean_corruption_accuracy"\nmin = 0.5', "robustness was not evaluated"),
        ('metric = "accuracy_top1"\nof = "accuracy"\nmin = 0.5\ndataset = "imagenet*"', "no evaluation of accuracy is on data set 'imagenet*'"),
        ('metric = "accuracy_real"\nof = "accuracy"\nmin = 0.5', "accuracy_real is not in this run"),
        ('metric = "accuracy_top5"\nof = "accuracy"\nmin = 0.5', "with 3 classes the five largest logits always hold the target"),
        (ACCURACY, "the run has no reference to compare with"),
        ('metric = "latency_p50"\nagainst = "reference"\nmax_increase_relative = 0.1', "the reference is not at hand"),
        ('metric = "latency_p50"\nagainst = "baseline"\nmax_increase_relative = 0.1', "there is no baseline"),
        ('metric = "throughput_offline"\nmin = 10.0', "throughput_offline is not in this run"),
    ])
    def test_says_why(self, body, words):
        found = judged(body, builders.run(evaluations=(builders.accuracy_evaluation(800),)))
        assert "error" == found.status
        assert found.message.startswith(words)

    def test_a_score_without_an_interval_is_not_left_to_chance(self):
        score = Score(name="cwece", value=0.01, unit="fraction", better="lower", n=100, method="m", reason="no interval: too dear")
        run = builders.run(evaluations=(Evaluation(
            property="calibration", dataset=builders.DATASET, condition="clean", preset="native", predictions=(), scores=(score,)),))
        found = judged('metric = "cwece"\nmax = 0.02', run)
        assert "error" == found.status
        assert "cwece has no interval, so that noise would decide: no interval: too dear" == found.message


class TestFewOrUnchangedImages:
    def changed(self, value: float, low: float | None, high: float | None, n: int):
        reference = builders.run()
        change = Score(name="ece15_ew_change", value=value, low=low, high=high, unit="fraction", better="lower", n=n,
                       method="paired bootstrap", reason=None if low is not None else "every resample gives the same")
        own = Score(name="ece15_ew", value=0.05, low=0.04, high=0.06, unit="fraction", better="lower", n=n, method="m")
        return builders.run("ort-int8", reference=reference, evaluations=(Evaluation(
            property="calibration", dataset=builders.DATASET, condition="clean", preset="native", predictions=(),
            scores=(own,), reference_scores=(change,)),))

    BODY = 'metric = "ece15_ew"\nagainst = "reference"\nmax_increase_absolute = 0.01'

    def test_resampling_a_handful_of_images_decides_nothing(self):
        found = judged(self.BODY, self.changed(0.001, 0.0, 0.002, 20))
        assert ("inconclusive", 100) == (found.status, found.needed)
        assert "pass" == judged(self.BODY, self.changed(0.001, 0.0, 0.002, 200)).status

    def test_nor_does_a_relative_margin(self):
        body = self.BODY.replace("absolute = 0.01", "relative = 0.2")
        assert "inconclusive" == judged(body, self.changed(0.001, 0.0, 0.002, 20)).status
        assert "pass" == judged(body, self.changed(0.001, 0.0, 0.002, 200)).status

    @pytest.mark.parametrize("ends", [(0.0, 0.0), (None, None)])
    def test_where_nothing_changed_the_bound_is_divided_by_the_references_value(self, ends):
        body = self.BODY.replace("absolute = 0.01", "relative = 0.2")
        for n, status in ((200, "inconclusive"), (400, "pass")):
            found = judged(body, self.changed(0.0, *ends, n))
            assert status == found.status
            assert 1.6448536**2 / (n + 1.6448536**2) / 0.05 == pytest.approx(found.high, abs=2e-5)
        assert "over the other's value" in found.method

    @pytest.mark.parametrize("ends", [(0.0, 0.0), (None, None)])
    def test_where_nothing_changed_the_rule_of_three_bounds_what_was_not_seen(self, ends):
        for n, status in ((200, "inconclusive"), (400, "pass")):
            found = judged(self.BODY, self.changed(0.0, *ends, n))
            assert status == found.status
            # z^2/(n + z^2) is about 2.7/n
            assert 1.6448536**2 / (n + 1.6448536**2) == pytest.approx(found.high, abs=1e-6)


class TestSeveralPlaces:
    def test_a_rule_is_judged_on_every_data_set_that_it_is_about(self):
        other = replace(builders.DATASET, name="field")
        run = builders.run(evaluations=(builders.accuracy_evaluation(950), builders.accuracy_evaluation(500, dataset=other)))
        verdicts = gate.judge(rules('metric = "accuracy_top1"\nof = "accuracy"\nmin = 0.9'), (run, None)).verdicts
        assert [("inspection", "pass"), ("field", "fail")] == [(one.where, one.status) for one in verdicts]

    @pytest.mark.parametrize("body", [ACCURACY, FLIPS])
    def test_a_data_set_without_paired_scores_is_not_forgotten(self, body):
        run, _ = paired(5, 5)
        lone = builders.accuracy_evaluation(800, dataset=replace(builders.DATASET, name="field"))
        run = replace(run, evaluations=(*run.evaluations, lone))
        for missing, status in (("error", "error"), ("skip", "skipped")):
            verdicts = gate.judge(rules(f'{body}\nmissing = "{missing}"'), (run, None)).verdicts
            assert {"inspection": "pass", "field": status} == {one.where: one.status for one in verdicts}

    def test_a_data_set_that_the_baseline_lacks_is_not_forgotten(self):
        run, reference = paired(5, 5)
        lone = builders.accuracy_evaluation(800, dataset=replace(builders.DATASET, name="field"))
        body = ACCURACY.replace("reference", "baseline")
        run = replace(run, evaluations=(*run.evaluations, lone))
        verdicts = gate.judge(rules(body), (run, None), baseline=(reference, None)).verdicts
        assert {"inspection": "pass", "field": "error"} == {one.where: one.status for one in verdicts}

    def test_levels_that_have_no_such_metric_by_nature_are_left_out(self):
        def evaluation(condition: str, *names: str) -> Evaluation:
            scores = tuple(Score(name=name, value=0.7, low=0.69, high=0.71, unit="fraction", better="higher", n=1000,
                                 method="m") for name in names)
            return Evaluation(property="robustness", dataset=builders.DATASET, condition=condition, preset="native",
                              predictions=(), scores=scores)

        run = builders.run(evaluations=(evaluation("clean", "accuracy"), evaluation("summary", "mean_corruption_accuracy")))
        (found,) = gate.judge(rules('metric = "mean_corruption_accuracy"\nmin = 0.5'), (run, None)).verdicts
        assert ("inspection, summary", "pass") == (found.where, found.status)

    def test_families_correct_failures_and_leave_passes_alone(self):
        # Each fails alone at p = 0.03; two of them do not under Holm.
        count = next(k for k in range(30, 60) if scipy_stats.binomtest(k, 1000, 0.03, "greater").pvalue < 0.035)
        run = paired(count, count)[0]
        body = FLIPS + '\nfamily = "q"'
        for head, status in (("", "fail"), ('[families]\nq = "none"\n', "fail"), ('[families]\nq = "holm"\n', "inconclusive")):
            one = body if head else FLIPS
            verdicts = gate.judge(rules(one, one, head=head), (run, None)).verdicts
            assert [status] * 2 == [verdict.status for verdict in verdicts]
        both = gate.judge(rules(body, body, head='[families]\nq = "benjamini-hochberg"\n'), (run, None)).verdicts
        assert ["fail"] * 2 == [verdict.status for verdict in both]


    def test_a_rule_on_several_sets_fails_no_more_often_than_on_one(self):
        # Wrong in 63 of 1,000 where 50 are allowed: p = 0.04 alone, and no failure where three sets could have shown it.
        count = next(k for k in range(930, 950) if scipy_stats.binomtest(k, 1000, 0.95, "less").pvalue > 0.03)
        sets = [builders.accuracy_evaluation(count if k == 0 else 955, dataset=replace(builders.DATASET, name=f"set{k}"))
                for k in range(3)]
        policy = rules('metric = "accuracy_top1"\nof = "accuracy"\nmin = 0.95')
        for shown, status in ((1, "fail"), (3, "inconclusive")):
            first = gate.judge(policy, (builders.run(evaluations=tuple(sets[:shown])), None)).verdicts[0]
            assert status == first.status


class TestReferenceTimedOtherwise:
    SPEED = 'metric = "latency_p50"\nagainst = "reference"\nmax_increase_relative = 0.1\n'

    @pytest.mark.parametrize(("change", "field"), [
        (lambda one: replace(one, artifact=replace(one.artifact, recipe=builders.recipe("ort-cuda-fp32"))), "processor"),
        (lambda one: replace(one, settings=replace(one.settings, threads=1)), "threads"),
        (lambda one: replace(one, device=replace(one.device, id="jetson")), "device")])
    def test_decides_quality_and_no_speed(self, change, field):
        run, reference = paired(5, 5)
        other = change(reference)
        policy = rules(self.SPEED, self.SPEED + 'missing = "skip"', ACCURACY)
        found = gate.judge(policy, (run, None), reference=(other, None)).verdicts
        assert ["error", "skipped", "pass"] == [one.status for one in found]
        assert f"{field}: " in found[0].message
        assert "--allow" in found[0].hint
        allowed = gate.judge(policy, (run, None), reference=(other, None), allow=[field])
        assert ["pass", "pass", "pass"] == [one.status for one in allowed.verdicts]
        assert len(allowed.allowed) == 1


class TestBaseline:
    def test_of_another_device_is_refused_with_both_values(self):
        run, reference = paired(5, 5)
        other = replace(reference, device=replace(reference.device, id="jetson"))
        body = 'metric = "latency_p50"\nagainst = "baseline"\nmax_increase_relative = 0.1'
        with pytest.raises(InvalidInput, match=r"the baseline .* and .* are not comparable: device: jetson against cpu"):
            judged(body, run, baseline=other)
        allowed = gate.judge(rules(body), (run, None), baseline=(other, None), allow=["device"])
        assert ("device: jetson against cpu",) == allowed.allowed

    def test_of_other_images_is_refused_only_where_quality_is_compared(self):
        run, reference = paired(5, 5)
        data = DatasetIdentity(name="inspection", source="x", images=1000, classes=3, digest="0" * 64)
        other = replace(reference, variant="old", evaluations=(builders.accuracy_evaluation(800, dataset=data),))
        with pytest.raises(InvalidInput, match=r"dataset \(inspection\)"):
            judged(ACCURACY.replace("reference", "baseline"), run, baseline=other)
        speed = 'metric = "latency_p50"\nagainst = "baseline"\nmax_increase_relative = 0.1'
        assert "pass" == judged(speed, run, baseline=other).status

    def test_that_is_the_runs_own_reference_uses_the_stored_scores(self):
        run, reference = paired(5, 5)
        found = judged(ACCURACY.replace("reference", "baseline"), run, baseline=reference)
        assert ("pass", 0.0) == (found.status, found.value)

    def test_is_paired_by_stored_predictions(self, tmp_path):
        from tests.test_compare import logits, stored

        before, after = stored(tmp_path / "a", logits(0)), stored(tmp_path / "b", logits(0, 60), "ort-int8")
        found = gate.judge(rules(ACCURACY.replace("reference", "baseline")), after, baseline=before).verdicts[0]
        right = [(one.argmax(axis=1) == np.arange(300) % 3) for one in (logits(0), logits(0, 60))]
        assert right[1].mean() - right[0].mean() == pytest.approx(found.value)
        assert "fail" == found.status
        without = gate.judge(rules(ACCURACY.replace("reference", "baseline")), (after[0], None), baseline=before)
        assert without.verdicts[0].message.startswith("the predictions of the baseline or of this run are not at hand")


class TestExitCodes:
    def of(self, *statuses: str, strict: bool = False) -> int:
        verdict = judged(FLIPS, paired(15, 15)[0])
        one = gate.judge(rules(FLIPS), (paired(15, 15)[0], None))
        verdicts = tuple(replace(verdict, status=name.rstrip("!"), severity="warning" if name.endswith("!") else "error")
                         for name in statuses)
        return gate.exit_code([replace(one, verdicts=verdicts)], strict=strict)

    def test_follow_the_contract(self):
        assert ExitCode.PASSED == self.of("pass", "skipped", "inconclusive")
        assert ExitCode.FAILED == self.of("pass", "fail", "error", "inconclusive")
        assert ExitCode.UNMEASURABLE == self.of("pass", "error", "inconclusive", strict=True)
        assert ExitCode.INCONCLUSIVE == self.of("pass", "inconclusive", strict=True)

    def test_warnings_change_nothing(self):
        assert ExitCode.PASSED == self.of("fail!", "error!", "inconclusive!", strict=True)


class TestPlanning:
    def test_takes_flips_and_spread_from_the_pilot(self):
        run, reference = paired(10, 10)
        speed = 'metric = "latency_p50"\nagainst = "reference"\nmax_increase_relative = 0.05'
        needs = gate.plan(rules(ACCURACY, FLIPS, speed), (run, None), reference=(reference, None))
        assert [("r0", 1000, "images"), ("r1", 1000, "images"), ("r2", 1000, "timings")] == [
            (one.rule, one.have, one.sampled) for one in needs]
        assert 6.1826 * 0.02 / 0.01**2 == pytest.approx(needs[0].needed, rel=1e-3)
        assert needs[1].needed < 1000
        assert 0.8 == needs[0].power

    def test_says_what_is_not_known(self):
        (need,) = gate.plan(rules(ACCURACY), (builders.run(), None))
        assert need.needed is None
        assert "nothing is known" in need.assumption


class TestSanity:
    def run(self, accuracy: float, name: str = "imagenet-val", images: int = 50_000, **changes):
        data = DatasetIdentity(name=name, source="x", images=images, classes=1000, digest="a" * 64)
        evaluation = builders.accuracy_evaluation(round(accuracy * images), n=images, dataset=data)
        run = builders.run(model="timm:resnet50.tv_in1k", evaluations=(evaluation,))
        classes = replace(run.artifact.classes, ids=tuple(map(str, range(1000))), names=tuple(map(str, range(1000))))
        return replace(run, artifact=replace(run.artifact, classes=classes), **changes)

    @pytest.mark.parametrize(("accuracy", "status", "severity"), [
        (0.7613, "pass", "error"), (0.752, "fail", "warning"), (0.70, "error", "error"), (0.79, "error", "error")])
    def test_an_fp32_reference_is_held_against_its_published_accuracy(self, accuracy, status, severity):
        found = gate.judge(rules('metric = "caveats"\nmax = 3'), (self.run(accuracy), None)).verdicts[-1]
        assert (gate.SANITY, status, severity) == (found.rule, status, severity)
        assert "against 76.2 % published (timm results-imagenet.csv) on 50,000 images" in found.message

    def test_other_images_may_be_easier_but_not_far_harder(self):
        assert published.reference_verdict_parts(self.run(0.85, "mine", 1000)) is None
        level, message, _ = published.reference_verdict_parts(self.run(0.3, "mine", 1000))
        assert "caveat" == level
        assert "mine is not all of ImageNet's validation set" in message

    def test_says_nothing_about_models_and_variants_that_it_does_not_know(self):
        assert published.reference_verdict_parts(builders.run(evaluations=(builders.accuracy_evaluation(800),))) is None
        quantized = self.run(0.1)
        assert published.reference_verdict_parts(replace(
            quantized, precision=replace(quantized.precision, executed="int8"))) is None

    def of_file(self, accuracy: float, model: str):
        run = self.run(accuracy)
        return replace(run, artifact=replace(run.artifact, model=replace(run.artifact.model, id=model, weights="file")))

    @pytest.mark.parametrize(("accuracy", "status"), [(0.7484, "pass"), (0.72, "fail"), (0.5, "fail")])
    def test_weights_from_a_file_are_held_against_their_architecture_and_only_warned_about(self, accuracy, status):
        found = gate.judge(rules('metric = "caveats"\nmax = 3'), (self.of_file(accuracy, "timm:tf_efficientnet_lite0"), None))
        assert (gate.SANITY, status) == (found.verdicts[-1].rule, found.verdicts[-1].status)
        assert "against 74.8 % published" in found.verdicts[-1].message
        assert ExitCode.PASSED == gate.exit_code([found])
        assert () == found.notes

    def test_it_is_said_where_nothing_is_known(self):
        for run in (self.of_file(0.7, "timm:resnet26"), self.of_file(0.7, "timm:resnet50.a1_in1k")):
            found = gate.judge(rules('metric = "caveats"\nmax = 3'), (run, None))
            assert gate.SANITY not in [one.rule for one in found.verdicts]
            (note,) = found.notes
            assert note.startswith(f"{run.variant}: no published accuracy of {run.artifact.model.id} is known")

    def test_the_table_is_of_fractions_with_sources(self):
        for one in published.published().values():
            assert 0.3 < one.accuracy_top1 < 0.95
            assert one.source


class TestShippedPolicies:
    def test_a_careful_variant_passes_or_needs_more_images_and_a_careless_one_fails(self):
        shipped = policy.find("survives-quantization")
        good, reference = paired(12, 8)
        found = {one.rule: one for one in gate.judge(shipped, (good, None), reference=(reference, None)).verdicts}
        assert {"pass"} == {found[name].status for name in ("precision", "flips")}
        assert "inconclusive" == found["accuracy"].status
        assert found["accuracy"].needed > 1000
        bad = gate.judge(shipped, (paired(74, 47)[0], None))
        assert {"accuracy", "flips"} <= {one.rule for one in bad.verdicts if one.status == "fail"}
        assert ExitCode.FAILED == gate.exit_code([bad])


class TestCost:
    def test_judging_finished_runs_is_fast_and_imports_no_runtime(self, tmp_path):
        run, reference = paired(8, 8)
        for name, one in (("a", run), ("b", reference)):
            dump(one, tmp_path / name / "run.json")
        script = (
            "import sys, json\nfrom pathlib import Path\n"
            "from edgebench import gate, policy, record, verdict_outputs\n"
            "run, ref = (record.load(Path(p)) for p in sys.argv[1:3])\n"
            "found = gate.judge(policy.find('release'), (run, None), reference=(ref, None))\n"
            "verdict_outputs.junit([found]); verdict_outputs.sarif([found]); verdict_outputs.summary([found])\n"
            "heavy = {'torch', 'onnx', 'onnxruntime', 'openvino', 'tensorrt', 'plotly', 'scipy', 'sklearn'}\n"
            "print(json.dumps(sorted(heavy & set(sys.modules))))\n")
        done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "a"), str(tmp_path / "b")], check=True,
                              capture_output=True, text=True, cwd=Path(__file__).parents[1])
        assert [] == json.loads(done.stdout)
        begin = time.process_time()
        gate.judge(policy.find("release"), (run, None), reference=(reference, None))
        assert time.process_time() - begin < 0.5


class TestErrorRates:
    """A smaller form of benchmarks/gates.py, on synthetic flips."""

    def status(self, negative: int, positive: int, n: int) -> str:
        found = evidence.from_flips(negative, positive, n)
        above, below = found.tails(-0.01)
        return "fail" if below <= 0.05 else "pass" if above <= 0.05 else "inconclusive"

    def test_equal_variants_fail_and_regressions_pass_at_most_as_often_as_declared(self):
        generator, n, share = np.random.default_rng(0), 2474, 0.04
        for change, wrong, declared in ((0.0, "fail", 0.05), (-0.01, "pass", 0.05), (-0.01, "fail", 0.05)):
            chances = [(share - change) / 2, (share + change) / 2, 1 - share]
            drawn, times = np.unique(generator.multinomial(n, chances, 2000), axis=0, return_counts=True)
            rate = sum(k for (b, c, _), k in zip(drawn, times, strict=True) if self.status(b, c, n) == wrong) / 2000
            assert rate <= scipy_stats.binom.ppf(0.9999, 2000, declared) / 2000

    def test_a_regression_of_twice_the_margin_is_missed_at_most_as_often_as_planned(self):
        generator, n, share = np.random.default_rng(1), 2474, 0.04
        drawn = generator.multinomial(n, [(share + 0.02) / 2, (share - 0.02) / 2, 1 - share], 1500)
        missed = np.mean([self.status(b, c, n) != "fail" for b, c, _ in drawn])
        assert missed <= 0.2 + 3 * math.sqrt(0.2 * 0.8 / 1500)


@pytest.fixture(scope="module")
def rows(shared_data):
    pytest.importorskip("imagenet_x")
    file = Path(__file__).parents[1] / "benchmarks" / "gates.py"
    spec = importlib.util.spec_from_file_location("benchmark_gates", file)
    module = importlib.util.module_from_spec(spec)
    sys.modules["benchmark_gates"] = module
    spec.loader.exec_module(module)
    return module, module.rows(shared_data / "imagenet-x-predictions", 300, 60, seed=3)


class TestErrorRatesOnRealPairs:
    """benchmarks/gates.py, smaller: ResNet-50's answers with flips put in at known rates, and SimCLR's."""

    def test_wrong_verdicts_are_at_most_as_frequent_as_declared_at_the_planned_number(self, rows):
        module, found = rows
        for one in found:
            assert one["fixed"] <= module.tolerance(one["declared"], 300), one["scenario"]

    def test_looking_after_every_batch_keeps_the_declared_rate(self, rows):
        module, found = rows
        for one in found:
            assert one["peeking"] <= module.tolerance(one["peeking_declared"], 60), one["scenario"]

    def test_clear_cases_take_at_most_a_third_of_the_planned_images(self, rows):
        saving = {one["scenario"]: one["saving"] for one in rows[1]}
        for name in ("identical answers", "equal accuracy, 0.2 % flip", "loss of 3 points, 6 % flip", "SimCLR in place of ResNet-50"):
            assert saving[name] >= 3, name

    def test_flips_put_in_are_those_asked_for(self, rows):
        losses = {one["scenario"]: (one["loss"], one["discordant"]) for one in rows[1]}
        assert (0.03, 0.06) == pytest.approx(losses["loss of 3 points, 6 % flip"], abs=1e-6)
        assert (0.0, 0.02) == pytest.approx(losses["equal accuracy, 2 % flip"], abs=1e-6)
