"""Numbers that several outputs show come from one source: margins, cold start, the digits of a time."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from edgebench import assembly, charts, gate, noninferiority, policy, report, rule_words, score_tables
from edgebench.record import ColdStart
from tests import builders
from tests.test_gate import judged
from tests.test_noninferiority import evaluated, resampled

COLD = ColdStart(import_s=0.98, load_s=0.024, first_inference_s=0.025)


class TestMargins:
    @pytest.mark.parametrize("name", ["survives-quantization", "release"])
    def test_of_the_report_are_those_of_the_shipped_policies(self, name):
        ruled = {(one.of, one.metric): one.bound for one in policy.find(name).rules if one.against == "reference" and not one.relative}
        stated = {(one.of, one.metric): one.bound for one in noninferiority.margins()}
        shared = ruled.keys() & stated.keys()
        assert len(shared) >= 3
        assert {key: stated[key] for key in shared} == {key: ruled[key] for key in shared}

    @pytest.mark.parametrize(("of", "metric", "change"), [
        ("calibration", "ece15_ew_change", 0.007), ("robustness", "mean_corruption_accuracy_change", -0.007),
        ("invariance", "consistency_mean_change", -0.007)])
    def test_report_and_gate_draw_the_line_in_one_place(self, of, metric, change):
        run = evaluated(resampled(of, metric, change, 0.0005))
        (found,) = noninferiority.statements(run)
        (verdict,) = [one for one in gate.judge(policy.find("survives-quantization"), (run, None)).verdicts
                      if one.metric == metric.removesuffix("_change")]
        assert ("inferior", "fail", found.margin) == (found.verdict, verdict.status, verdict.limit)


class TestColdStart:
    def run(self):
        run = builders.run(cold=COLD)
        return replace(run, performance=(*run.performance, *assembly.cold_start_scores(COLD)))

    def test_is_one_number_in_chart_score_and_policy(self):
        run = self.run()
        rule = next(one for one in policy.find("latency-budget").rules if one.id == "start")
        verdict = judged(f'metric = "{rule.metric}"\nmax = 1.0', run)
        panel = next(one for chart in charts.charts(report._variants([run])) for one in chart.panels if one.title == "Cold start")
        assert COLD.total_s == pytest.approx(verdict.value)
        assert sum(trace["x"][0] for trace in panel.figure["data"]) / 1e3 == pytest.approx(verdict.value)
        assert "1,029 ms" in panel.alt
        assert verdict.message.startswith("1,029 ms")
        assert "fail" == verdict.status

    def test_of_older_runs_follows_from_its_parts(self):
        assert COLD.total_s == pytest.approx(judged('metric = "cold_start_time"\nmax = 2.0', builders.run(cold=COLD)).value)


class TestDigits:
    @pytest.mark.parametrize("median", [0.0087466, 0.00074213, 0.0123456, 0.1234])
    def test_of_a_time_are_the_same_in_every_output(self, median):
        times = (median * np.exp(np.random.default_rng(0).normal(0, 0.2, 401))).tolist()
        run, fast = builders.run(latency_s=times), builders.run("ort-int8", latency_s=(np.array(times) / 50).tolist())
        score = run.score("latency_p50")
        expected = float(re.sub("[^0-9.]", "", rule_words.quantity(score.value, "s")))
        table = report.table([run, fast])
        (row,) = [row for row in table.rows if row[0].startswith("FP32")]
        shown = {"terminal": row[table.headers.index("p50 ms")], "scores": score_tables.cell(score).text.split()[0],
                 "gate": judged('metric = "latency_p50"\nmax = 10.0', run).message.split(" ms")[0],
                 "sentence": re.search(r"answers in ([0-9.]+) ms", report._sentence_alone(report._variants([run])[0]))[1]}
        assert dict.fromkeys(shown, expected) == {name: float(f"{float(text):.3g}") for name, text in shown.items()}
