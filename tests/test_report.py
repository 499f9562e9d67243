"""Finished runs told to people: the table, Markdown, the HTML page and the summary."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from plotly.graph_objects import Figure

from edgebench import charts, drawing, property_charts, record, report, score_tables, terminal, timing_charts, wording
from edgebench.errors import InvalidInput
from edgebench.observed import Observed
from edgebench.record import Caveat, ColdStart, DatasetIdentity, Evaluation, ModelIdentity, Run, Score, Skip
from edgebench.telemetry.types import Residency
from tests import builders

STEADY = tuple(0.010 + 0.00001 * (k % 7) for k in range(400))


def inspection() -> tuple[Run, ...]:
    """A reference and its INT8 sibling with exact numbers: 3 timings, 1,000 images."""
    reference = builders.run(
        "ort-fp32", latency_s=(0.010, 0.011, 0.012), batch_s=(0.16, 0.16), peak_bytes=160_000_000,
        evaluations=(builders.accuracy_evaluation(940), builders.calibration_evaluation(0.021)),
        cold=ColdStart(import_s=0.2, load_s=0.1, first_inference_s=0.05))
    int8 = builders.run(
        "ort-int8", latency_s=(0.0031, 0.0032, 0.0033), batch_s=(0.05, 0.05), size_bytes=3_700_000, reference=reference,
        evaluations=(builders.accuracy_evaluation(937, flips=(21, 18)), builders.calibration_evaluation(0.034)),
        caveats=(Caveat(code="drift", message="latency rose by 9 %", hint="let the machine settle"),),
        skips=(Skip(what="energy", reason="no power sensor"),))
    return reference, int8


class Page(HTMLParser):
    """What a page would show and load."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.scripts: list[str] = []
        self._inside = ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._inside = tag

    def handle_endtag(self, tag):
        self._inside = ""

    def handle_data(self, data):
        (self.scripts if self._inside in ("script", "style") else self.text).append(data)

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).replace("\u00a0", " ").split())

    def attributes(self, *names: str) -> list[str]:
        return [value or "" for _, attributes in self.tags for name, value in attributes.items() if name in names]

    @property
    def figures(self) -> list[dict]:
        return [json.loads(script) for script in self.scripts if script.startswith('{"data"')]


def page(*runs: Run) -> Page:
    return Page(report.html(runs))


PLOTLY = "var Plotly = null;"


@pytest.fixture(autouse=True)
def _short_plotly(monkeypatch):
    """Parsing 5 MB of Plotly for every page would take most of the time."""
    monkeypatch.setattr("plotly.offline.get_plotlyjs", lambda: PLOTLY)


class TestDiscover:
    def test_an_output_folder_gives_all_its_runs_reference_first_by_model_and_backend(self, tmp_path):
        for recipe in ("openvino-int8", "ort-int8", "openvino-bf16", "openvino-fp32", "ort-fp32"):
            record.dump(builders.run(recipe), tmp_path / recipe / "run.json")
        record.dump(builders.run("ort-fp32", model="demo:a"), tmp_path / "other" / "run.json")
        found = report.discover([tmp_path])
        assert [("demo:a", "ort-fp32"), ("demo:inspection", "ort-fp32"), ("demo:inspection", "ort-int8"),
                ("demo:inspection", "openvino-fp32"), ("demo:inspection", "openvino-bf16"),
                ("demo:inspection", "openvino-int8")] == [(r.artifact.model.id, r.artifact.recipe.id) for r in found]

    def test_a_file_a_run_folder_and_an_output_folder_count_a_run_once(self, tmp_path):
        record.dump(builders.run(), tmp_path / "a" / "run.json")
        assert 1 == len(report.discover([tmp_path, tmp_path / "a", tmp_path / "a" / "run.json"]))

    def test_a_folder_without_runs_is_an_error_that_says_what_to_name(self, tmp_path):
        with pytest.raises(InvalidInput) as error:
            report.discover([tmp_path])
        assert f"no run.json below {tmp_path}" == error.value.message
        assert "name a run.json, the folder that holds it, or the --out folder of 'edgebench profile'" == error.value.hint

    def test_a_path_that_does_not_exist_is_an_error(self, tmp_path):
        with pytest.raises(InvalidInput, match=r"cannot read .*nowhere: No such file or directory"):
            report.discover([tmp_path / "nowhere"])

    def test_no_paths_are_an_error(self):
        with pytest.raises(InvalidInput, match="no runs were named"):
            report.discover([])

    def test_one_damaged_run_among_several_is_not_passed_over(self, tmp_path):
        record.dump(builders.run(), tmp_path / "a" / "run.json")
        (tmp_path / "b").mkdir()
        (tmp_path / "b" / "run.json").write_text('{"schema": "edgebench.run/1", "var')
        with pytest.raises(InvalidInput, match="not valid JSON"):
            report.discover([tmp_path])

    def test_a_run_of_a_newer_version_says_what_to_install(self, tmp_path):
        (tmp_path / "run.json").write_text('{"schema": "edgebench.run/99"}')
        with pytest.raises(InvalidInput, match="another version") as error:
            report.discover([tmp_path])
        assert "pip install --upgrade edgebench" in error.value.hint


class TestTable:
    def test_every_cell_and_note_of_two_variants(self):
        assert report.Table(
            headers=("Variant", "Top-1 %", "ECE %", "p50 ms", "p99 ms", "img/s", "Speed-up", "Size MB", "Neg. flips %",
                     "Caveats"),
            rows=(("FP32 · ONNX Runtime", "94.0 ±1.6", "2.1", "11.0", "12.0", "100", "ref.", "13.60", "ref.", "0"),
                  ("INT8 · ONNX Runtime", "93.7 ±1.7", "3.4", "3.20", "3.30", "320", "3.4×", "3.70", "2.1", "1")),
            notes=(("Speed-up (ratio of median latencies) and negative flips (right before, wrong now) are against "
                   "FP32 · ONNX Runtime."),
                   "Accuracy, calibration: inspection, 1,000 images.",
                   "Chance alone gives a perfectly calibrated model an ECE of 1.9 % on as many images.",
                   "Latency: single-stream, batch 1, host to host, threads: 4.",
                   "Ranges are 95 % intervals.",
                   "± is the longer arm of the interval."),
        ) == report.table(inspection())

    def test_rows_stand_in_report_order_whatever_order_the_runs_come_in(self):
        assert report.table(inspection()) == report.table(inspection()[::-1])

    def test_a_precision_that_was_not_executed_stands_in_the_label(self):
        assert "BF16 · OpenVINO (ran FP32)" == report.table([builders.run("openvino-bf16", executed="fp32")]).rows[0][0]

    def test_what_is_absent_is_a_dash_whose_footnote_gives_the_reason(self):
        table = report.table([builders.run(latency_s=None, skips=(
            Skip(what="latency", reason="not asked for"), Skip(what="quality", reason="random weights have no accuracy")))])
        assert ("FP32 · ONNX Runtime", "–¹", "–¹", "–²", "–²", "–²", "–³", "13.6", "–¹", "0") == table.rows[0]
        assert ("¹ random weights have no accuracy", "² not asked for", "³ there is no reference to compare with") == table.notes

    def test_without_a_recorded_reason_the_footnote_names_what_is_missing(self):
        table = report.table([builders.run()])
        assert table.rows[0][1:3] == ("–¹", "–²")
        assert table.notes[:3] == ("¹ Top-1 is not in this run", "² ECE is not in this run",
                                   "³ Offline throughput is not in this run")

    def test_a_reference_that_is_not_in_the_report_is_named(self):
        table = report.table(inspection()[1:])
        assert table.rows[0][6] == "–¹"
        assert "¹ its reference demo-inspection--ort-fp32--onnxruntime is not in this report" == table.notes[0]
        assert table.rows[0][8] == "2.1"

    def test_timings_under_other_conditions_give_no_speed_up(self):
        reference, int8 = inspection()
        busier = replace(int8, settings=replace(int8.settings, threads=1))
        table = report.table([reference, busier])
        assert table.rows[1][6] == "–¹"
        assert "¹ not comparable with the reference: threads 1 against 4" == table.notes[0]

    def test_a_reference_of_that_name_but_other_bytes_is_not_taken(self):
        reference, int8 = inspection()
        rebuilt = replace(reference, artifact=replace(reference.artifact, files=reference.artifact.files[:1]))
        table = report.table([rebuilt, int8])
        assert table.rows[1][6] == "–²"
        assert "² its reference demo-inspection--ort-fp32--onnxruntime is not in this report" == table.notes[1]

    def test_ten_thousand_images_earn_a_second_decimal(self):
        many = replace(builders.DATASET, images=50_000)
        run = builders.run(evaluations=(builders.accuracy_evaluation(38_123, n=50_000, dataset=many),))
        assert "76.25 ±0.38" == report.table([run]).rows[0][1]

    def test_variants_on_other_images_are_said_not_to_be_comparable(self):
        other = DatasetIdentity(name="inspection", source="x", images=1000, classes=3, digest="e" * 64)
        notes = report.table([builders.run(evaluations=(builders.accuracy_evaluation(900),)),
                              builders.run("ort-int8", evaluations=(builders.accuracy_evaluation(900, dataset=other),))]).notes
        assert "Not all variants were evaluated on the same images: their accuracies are not comparable." in notes

    def test_no_runs_are_a_mistake_of_the_caller(self):
        with pytest.raises(ValueError, match="at least one run"):
            report.table([])


class TestLabels:
    def labels(self, *runs: Run) -> list[str]:
        return [row[0] for row in report.table(runs).rows]

    def test_several_models_are_told_apart_by_name_and_a_path_by_its_file(self):
        assert ["FP32 · ONNX Runtime · net.onnx", "FP32 · ONNX Runtime · timm:resnet50"] == self.labels(
            builders.run(model="timm:resnet50"), builders.run(model="/home/me/net.onnx"))

    def test_two_recipes_of_one_precision_are_told_apart_by_the_recipe(self):
        other = builders.run("ort-int8")
        other = replace(other, artifact=replace(other.artifact, recipe=replace(other.artifact.recipe, id="mine")))
        assert ["INT8 · ONNX Runtime · mine", "INT8 · ONNX Runtime · ort-int8"] == self.labels(builders.run("ort-int8"), other)

    def test_the_same_variant_on_two_machines_is_told_apart_by_the_host(self):
        run = builders.run()
        other = replace(run, environment=replace(run.environment, hostname="bench-04"))
        assert ["FP32 · ONNX Runtime · bench-03", "FP32 · ONNX Runtime · bench-04"] == self.labels(run, other)

    def test_runs_that_nothing_tells_apart_are_numbered(self):
        assert ["FP32 · ONNX Runtime #1", "FP32 · ONNX Runtime #2"] == self.labels(builders.run(), builders.run())

    def test_an_unknown_backend_goes_by_its_own_name(self):
        run = builders.run()
        run = replace(run, artifact=replace(run.artifact, recipe=replace(run.artifact.recipe, backend="ncnn")))
        assert ["FP32 · ncnn"] == self.labels(run)


class TestNumbersInWords:
    @pytest.mark.parametrize(("value", "places", "expected"), [
        (1234.5, 1, "1,234.5"), (-0.04, 1, "0.0"), (-0.3, 1, "−0.3"), (0.0, 2, "0.00"), (2.0, 0, "2")])
    def test_fixed(self, value, places, expected):
        assert expected == wording.fixed(value, places)

    def test_a_sign_is_shown_where_asked_for_but_zero_has_none(self):
        assert ["+0.5", "−0.5", "0.0"] == [wording.fixed(value, 1, sign=True) for value in (0.5, -0.5, 0.01)]

    def test_decimals_follow_the_smallest_value_and_pass_over_zero(self):
        assert [2, 1, 0, 4, 2] == [wording.decimals(values) for values in ([3.2, 11], [11, 240], [240], [0.0123], [0.0])]

    @pytest.mark.parametrize(("low", "high", "expected"), [
        (1.2, 3.4, "1.2–3.4"), (-1.1, 0.5, "−1.1 to 0.5"), (None, 3.4, "≤ 3.4"), (1.2, None, "≥ 1.2"), (None, None, "")])
    def test_span(self, low, high, expected):
        assert expected == wording.span(low, high, 1)

    @pytest.mark.parametrize(("score", "expected"), [
        ({"name": "latency_p50", "unit": "s", "value": 0.0112, "low": 0.01118, "high": 0.01122}, ("11.200 ms", "11.180–11.220")),
        ({"name": "load_time", "unit": "s", "value": 0.35}, ("350 ms", "")),
        ({"name": "artifact_size", "unit": "bytes", "value": 13_620_000.0}, ("13.6 MB", "")),
        ({"name": "accuracy_top1", "unit": "fraction", "value": 0.938, "low": 0.921, "high": 0.951}, ("93.8 %", "92.1–95.1")),
        ({"name": "accuracy_top1_change", "unit": "fraction", "value": -0.003, "low": -0.011, "high": 0.005},
         ("−0.3 points", "−1.1 to +0.5")),
        ({"name": "throughput_offline", "unit": "images/s", "value": 312.4}, ("312 img/s", "")),
        ({"name": "mcnemar_p", "unit": "1", "value": 0.0004}, ("< 0.001", "")),
        ({"name": "mcnemar_p", "unit": "1", "value": 0.0636}, ("0.064", "")),
        ({"name": "certain_images", "unit": "1", "value": 12.0}, ("12", "")),
        ({"name": "nll", "unit": "nat", "value": 0.2194}, ("0.219 nat", "")),
        ({"name": "power", "unit": "W", "value": 4.25}, ("4.25 W", "")),
        ({"name": "ece15_ew_null", "unit": "fraction", "value": 0.019, "high": 0.03}, ("1.90 %", "≤ 3.00")),
        ({"name": "accuracy_top5", "unit": "fraction", "value": None, "reason": "3 classes"}, ("–", "3 classes")),
    ])
    def test_scores_in_the_units_people_read(self, score, expected):
        cell = score_tables.cell(Score(better=None, n=1, method="m", **score))
        assert expected == (cell.text, cell.detail)

    @pytest.mark.parametrize(("text", "expected"), [
        ("the governor is x", "The governor is x"), ("single-stream: drift", "Single-stream: drift"),
        ("bf16 was asked for", "bf16 was asked for"), ("model.onnx: broken", "model.onnx: broken"), ("", ""),
        ("model-v2.pth names", "model-v2.pth names"), ("ort-int8: broken", "ort-int8: broken")])
    def test_sentences_begin_with_a_capital_unless_a_name_does(self, text, expected):
        assert expected == report._capitalized(text)


class TestHeadline:
    def sentence(self, *runs: Run) -> list[str]:
        return report._headlines(report._variants(runs))

    def test_the_fastest_variant_is_set_against_its_reference(self):
        assert [("INT8 · ONNX Runtime is 3.4× as fast as FP32 and changes 2.1 % of the answers for the worse; "
                "its accuracy differs by −0.3 points (−1.5 to +0.9).")] == self.sentence(*inspection())

    def test_a_slower_variant_is_not_called_fast(self):
        reference = builders.run(latency_s=(0.01,))
        assert ["FP32 · ONNX Runtime is the fastest variant here, with 10.0 ms at the median."] == self.sentence(
            reference, builders.run("ort-int8", latency_s=(0.025,), reference=reference))

    def test_speed_is_that_against_the_fastest_fp32_variant_and_only_of_what_no_other_beats(self):
        reference, int8 = inspection()
        fast = builders.run("openvino-fp32", latency_s=(0.0030,), evaluations=reference.evaluations, reference=reference)
        assert ["FP32 · OpenVINO is the fastest variant here, with 3.00 ms at the median, and no other is more accurate."] == \
            self.sentence(reference, int8, fast)
        slower = builders.run("openvino-fp32", latency_s=(0.0064,), evaluations=reference.evaluations, reference=reference)
        sentence, = self.sentence(reference, int8, slower)
        assert sentence.startswith("INT8 · ONNX Runtime is 2.0× as fast as FP32 · OpenVINO, the fastest FP32 variant,")
        assert "2.1 % of the answers of FP32" in sentence, "flips are against its own reference, which is named"

    def test_the_ratio_has_its_interval(self):
        def spread(centre: float) -> tuple[float, ...]:
            return tuple(float(value) for value in np.random.default_rng(4).normal(centre, 0.1 * centre, 400))

        reference = builders.run(latency_s=spread(0.010))
        int8 = builders.run("ort-int8", latency_s=spread(0.005)[::-1], reference=reference)
        sentence, = self.sentence(reference, int8)
        one, two = reference.score("latency_p50"), int8.score("latency_p50")
        # Zou & Donner's interval of a difference, of logarithms.
        low = math.log(one.value / two.value) - math.sqrt(math.log(one.value / one.low) ** 2 + math.log(two.high / two.value) ** 2)
        high = math.log(one.value / two.value) + math.sqrt(math.log(one.high / one.value) ** 2 + math.log(two.value / two.low) ** 2)
        assert f"2.0× as fast as FP32 ({math.exp(low):.1f}–{math.exp(high):.1f}×)" in sentence

    def test_a_shown_loss_of_quality_stands_before_any_speed(self):
        reference = builders.run(latency_s=(0.01,), evaluations=(builders.accuracy_evaluation(940),))
        damaged = builders.run("ort-int8", latency_s=(0.005,), reference=reference,
                               evaluations=(builders.accuracy_evaluation(840, flips=(110, 10)),))
        sentence, = self.sentence(reference, damaged)
        assert sentence.startswith("INT8 · ONNX Runtime loses 10.0 points of accuracy")
        assert sentence.index("loses") < sentence.index("as fast")

    def test_a_percentile_without_an_upper_bound_is_no_number_anywhere(self):
        run = builders.run(latency_s=(0.0101, 0.0102, 0.0103, 0.0104, 0.0105, 0.0106, 0.0107, 0.0108), least=1)
        assert run.score("latency_p99").unbounded
        row = dict(zip(report.table([run]).headers, report.table([run]).rows[0], strict=True))
        assert "–" == row["p99 ms"][0]
        assert row["p50 ms"].startswith("10.4"), "the median of eight timings is bounded"
        heads = timing_charts.distribution(report._variants([run])).panels[0].alt
        assert "p99 –" in heads
        assert "p50 10.4" in heads
        assert report.summary([run])["variants"][0]["scores"]["latency_p99"]["value"] is None

    def test_a_difference_of_a_few_percent_is_no_difference(self):
        reference = builders.run(latency_s=(0.01,))
        assert ["INT8 · ONNX Runtime is about as fast as FP32."] == self.sentence(
            reference, builders.run("ort-int8", latency_s=(0.0098,), reference=reference))

    def test_a_reference_on_another_backend_is_named_in_full(self):
        reference = builders.run("ort-fp32", latency_s=(0.01,))
        assert ["INT8 · OpenVINO is 2.0× as fast as FP32 · ONNX Runtime."] == self.sentence(
            reference, builders.run("openvino-int8", latency_s=(0.005,), reference=reference))

    def test_a_single_variant_is_described_alone(self):
        assert ["FP32 · ONNX Runtime answers in 20.0 ms at the median, 99 % within 30.0 ms."] == self.sentence(builders.run())

    def test_an_evaluation_alone_tells_the_accuracy(self):
        run = builders.run(latency_s=None, evaluations=(builders.accuracy_evaluation(940),))
        assert ["FP32 · ONNX Runtime is right on 94.0 % (92.4–95.3) of 1,000 images."] == self.sentence(run)

    def test_without_latency_the_flips_are_told(self):
        reference = builders.run(latency_s=None, evaluations=(builders.accuracy_evaluation(940),))
        int8 = builders.run("ort-int8", latency_s=None, reference=reference,
                            evaluations=(builders.accuracy_evaluation(937, flips=(21, 18)),))
        assert [("INT8 · ONNX Runtime changes 2.1 % of the answers of FP32 for the worse; its accuracy differs by "
                "−0.3 points (−1.5 to +0.9).")] == self.sentence(reference, int8)

    def test_nothing_measured_is_said_so(self):
        assert ["FP32 · ONNX Runtime was not measured: see what was skipped."] == self.sentence(builders.run(latency_s=None))

    def test_each_model_has_its_own_sentence(self):
        found = self.sentence(builders.run(model="timm:a", latency_s=(0.01,)), builders.run(model="timm:b", latency_s=(0.02,)))
        assert ["timm:a: FP32 · ONNX Runtime answers in 10.0 ms at the median, 99 % within 10.0 ms.",
                "timm:b: FP32 · ONNX Runtime answers in 20.0 ms at the median, 99 % within 20.0 ms."] == found


class TestSummary:
    def test_it_holds_headline_scores_in_si_units_and_survives_json(self):
        summary = json.loads(json.dumps(report.summary(inspection()), allow_nan=False))
        assert "edgebench.summary/1" == summary["schema"]
        first, second = summary["variants"]
        assert {"variant": "demo-inspection--ort-int8--onnxruntime", "label": "INT8 · ONNX Runtime",
                "model": "demo:inspection", "recipe": "ort-int8", "backend": "onnxruntime", "device": "cpu",
                "created_at": "2026-03-14T10:30:00+00:00", "edgebench": "0.1.0",
                "precision": {"requested": "int8", "executed": "int8"},
                "artifact_digest": inspection()[1].artifact.digest,
                "reference": "demo-inspection--ort-fp32--onnxruntime",
            "datasets": ["inspection"],
                "caveats": ["drift"], "skips": [{"what": "energy", "reason": "no power sensor", "subject": None, "code": None}],
                } == {key: value for key, value in second.items() if key not in (
                    "scores", "roofline", "loadgen", "container", "cpu_clocks")}
        assert {"value": 0.0032, "low": 0.0032, "high": 0.0032, "unit": "s"} == second["scores"]["latency_p50"]
        assert {"value": 3_700_000.0, "low": None, "high": None, "unit": "bytes"} == second["scores"]["artifact_size"]
        assert 0.021 == second["scores"]["negative_flips"]["value"]
        assert first["reference"] is None
        assert "negative_flips" not in first["scores"]

    def test_limits_of_the_container_and_the_cpus_time_at_each_frequency(self):
        run = builders.run()
        residency = Residency(policy="policy0", shares={"1510400": 1.0}, top_share=1.0, mean_hz=1.51e9)
        limited = replace(run, environment=replace(run.environment, cpu_limit=1.5, memory_limit_bytes=2**31),
                          observed=Observed(residency=(residency,)))
        plain, found = report.summary([run, limited])["variants"]
        assert ({"cpus": None, "memory_bytes": None}, []) == (plain["container"], plain["cpu_clocks"])
        assert {"cpus": 1.5, "memory_bytes": 2**31} == found["container"]
        assert [("policy0", {"1510400": 1.0}, 1.51e9)] == [(one["policy"], one["shares"], one["mean_hz"]) for one in found["cpu_clocks"]]
        assert "Container limits 1.5 CPUs, 2.1 GB" in page(limited).words

    def test_an_absent_score_comes_with_its_reason(self):
        run = builders.run()
        absent = Score(name="peak_host_memory", value=None, unit="bytes", better="lower", n=1, method="m", reason="no VmHWM")
        scores = report.summary([replace(run, performance=(absent,))])["variants"][0]["scores"]
        assert {"peak_host_memory": {"value": None, "low": None, "high": None, "unit": "bytes", "reason": "no VmHWM"}} == scores


class TestMarkdown:
    def test_results_changes_caveats_and_skips_word_for_word(self):
        text = report.markdown(inspection())
        assert text.startswith("""\
# demo:inspection

INT8 · ONNX Runtime is 3.4× as fast as FP32 and changes 2.1 % of the answers for the worse; its accuracy differs by \
−0.3 points (−1.5 to +0.9).

The CPU of this machine: AMD Ryzen Embedded V3C18I · 2026-03-14 · edgebench 0.1.0

## Results

| Variant | Top-1 % | ECE % | p50 ms | p99 ms | img/s | Speed-up | Size MB | Neg. flips % | Caveats |
| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
| FP32 · ONNX Runtime | 94.0 ±1.6 | 2.1 | 11.0 | 12.0 | 100 | ref. | 13.60 | ref. | 0 |
| INT8 · ONNX Runtime | 93.7 ±1.7 | 3.4 | 3.20 | 3.30 | 320 | 3.4× | 3.70 | 2.1 | 1 |

- Speed-up (ratio of median latencies) and negative flips (right before, wrong now) are against FP32 · ONNX Runtime.
""")
        assert """\
## Against the reference

| Variant | Reference | Top-1 change | Negative flips | Positive flips | McNemar p | ECE change | NLL change |
| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |
| INT8 · ONNX Runtime | FP32 · ONNX Runtime | −0.3 points (−1.5 to +0.9) | 2.1 % (1.4–3.2) | 1.8 % (1.1–2.8) | 0.749 |  |  |

## Caveats

- **drift**: let the machine settle
  - INT8 · ONNX Runtime: latency rose by 9 %

## Not measured

- **INT8 · ONNX Runtime:** energy: no power sensor

## Environment

- Device: The CPU of this machine (cpu)
""" in text
        assert "- INT8 · ONNX Runtime, single-stream: batch 1, threads 4, host to host; warm-up 2 in 0.1 s, timed 402 in 1.3 s" in text
        assert "- Mean latency: arithmetic mean\n" in text

    def test_names_from_users_cannot_break_the_table_or_add_markup(self):
        run = builders.run(model="a|b <script>*x*\n# y", latency_s=(0.01,))
        assert r"# a\|b \<script\>\*x\* \# y" in report.markdown([run]).splitlines()[0]

    def test_without_doubts_it_says_so(self):
        assert "None: no check raised a doubt." in report.markdown([builders.run(latency_s=STEADY)])


class TestHtml:
    def test_the_page_loads_nothing(self):
        own = report.html(inspection())
        seen = Page(own)
        assert [] == [value for value in seen.attributes("src", "href", "action", "data", "poster", "srcset")
                      if not value.startswith("#")]
        assert [] == re.findall(r"(?:url\(|@import|https?:|//cdn)", own)
        assert "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data: blob:" in \
            seen.attributes("content")
        assert {"link", "img", "iframe", "object"}.isdisjoint(tag for tag, _ in seen.tags)

    def test_plotly_stands_in_the_page_once_and_cannot_end_its_script_early(self, monkeypatch):
        monkeypatch.undo()
        from plotly.offline import get_plotlyjs

        assert 1 == report.html(inspection()).count(get_plotlyjs())
        assert "</script" not in get_plotlyjs().lower()

    def test_the_same_runs_give_the_same_page(self):
        assert report.html(inspection()) == report.html(inspection())

    def test_it_tells_first_what_was_found_then_doubts_skips_charts_and_the_rest(self):
        words = page(*inspection()).words
        order = ["edgebench report", "demo:inspection", "INT8 · ONNX Runtime is 3.4× as fast as FP32", "Results",
                 "What the instrument doubts", "Latency rose by 9 %", "Let the machine settle", "What was not measured",
                 "No power sensor", "Latency distribution", "Latency over time", "Accuracy, latency and size",
                 "Flips: answers that changed", "Cold start, memory and size", "Properties", "Reliability of the confidences",
                 "Mistakes by factor of variation: not drawn.", "All scores", "Speed and size", "Accuracy on inspection",
                 "Accuracy on inspection, against the reference", "Calibration on inspection",
                 "Environment and settings", "Artifacts: what exactly was measured", "How every number was made"]
        places, start = [], 0
        for text in order:
            start = words.index(text, start)
            places.append(start)
        assert sorted(places) == places

    def test_every_variant_stands_in_the_table_with_value_and_interval(self):
        words = page(*inspection()).words
        assert "INT8 · ONNX Runtime 93.7 92.0–95.0 3.4 2.4–4.4 3.20 3.20–3.20 3.30 3.30–3.30 320 320–320 3.4× 3.70 2.1 1.4–3.2 1" in words

    def test_a_hostile_name_stays_text(self):
        name = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>"
        hostile = Caveat(code=name, message=name, hint=name)
        data = replace(builders.DATASET, name=name, source=name)
        runs = [builders.run(recipe, model=name, caveats=(hostile,), skips=(Skip(what=name, reason=name),),
                             evaluations=(builders.accuracy_evaluation(900, dataset=data),
                                          builders.calibration_evaluation(0.1, dataset=data)))
                for recipe in ("ort-fp32", "ort-int8")]
        runs.append(builders.run(model="other"))
        own = report.html(runs)
        assert "<script>alert" not in own
        assert "<img" not in own
        seen = Page(own)
        assert "alert(1)" in seen.words
        assert [] == [tag for tag, attributes in seen.tags if "onerror" in attributes]
        # Plotly draws tags that it knows: names reach it escaped.
        drawn = json.dumps(seen.figures)
        assert "<img" not in drawn
        assert "&lt;" in drawn

    def test_every_figure_is_one_that_plotly_knows(self):
        figures = page(*inspection()).figures
        assert 2 + 2 + 1 + 2 + 1 + 3 == len(figures)
        for figure in figures:
            Figure(figure)

    def test_every_plot_is_described_for_those_who_do_not_see_it(self):
        seen = page(*inspection())
        plots = [attributes for _, attributes in seen.tags if attributes.get("class") == "plot"]
        assert len(seen.figures) == len(plots)
        assert all(plot["role"] == "img" and len(plot["aria-label"] or "") > 20 for plot in plots)
        assert ("Newly wrong, newly right: INT8 · ONNX Runtime: 21 worse · 18 better of 1,000."
                in [plot["aria-label"] for plot in plots])

    def test_tables_have_headers_for_columns_and_rows(self):
        seen = page(*inspection())
        heads = [attributes.get("scope") for tag, attributes in seen.tags if tag == "th"]
        assert {"col", "row"} == set(heads)

    def test_a_variant_has_one_colour_in_every_chart(self):
        drawn = json.dumps(page(*inspection()).figures)
        assert {"#0072b2", "#d55e00", drawing.NEUTRAL} == set(re.findall(r"#[0-9a-f]{6}", drawn))

    def test_scores_of_later_versions_are_shown_too(self):
        score = Score(name="shape_bias", value=0.4321, unit="fraction", better=None, n=1200, method="cue conflict")
        later = Evaluation(property="shape-bias", dataset=replace(builders.DATASET, name="cue-conflict"), condition="clean",
                           preset="native", predictions=("p.npz",), scores=(score,))
        words = page(builders.run(evaluations=(later,))).words
        assert "Shape-bias on cue-conflict" in words
        assert "Shape bias shape_bias cue conflict 43.2 % 1,200" in words

    def test_conditions_are_told_apart(self):
        one = builders.accuracy_evaluation(900)
        words = page(builders.run(evaluations=(one, replace(one, condition="gaussian_noise:3")))).words
        assert "Accuracy on inspection, gaussian_noise:3" in words

    def test_a_reason_that_all_share_is_given_once(self):
        words = page(*inspection()).words
        assert 1 == words.count("Absent: with 3 classes the five largest logits always hold the target")

    def test_doubts_with_one_remedy_stand_together_and_shared_ones_once(self):
        governor = Caveat(code="governor", message="the governor is 'powersave'", hint="set it to performance")
        runs = [builders.run(recipe, caveats=(governor, Caveat(code="drift", message=f"{recipe} drifted", hint="wait")))
                for recipe in ("ort-fp32", "ort-int8")]
        words = page(*runs).words
        assert "All variants The governor is 'powersave' governor Set it to performance" in words
        assert "FP32 · ONNX Runtime ort-fp32 drifted drift INT8 · ONNX Runtime ort-int8 drifted Wait" in words

    def test_facts_that_differ_are_told_per_variant(self):
        one, two = builders.run(), builders.run("ort-int8")
        words = page(one, replace(two, environment=replace(two.environment, governor="performance"))).words
        assert "Frequency governor schedutil FP32 · ONNX Runtime performance INT8 · ONNX Runtime" in words


class TestWhatMayBeMissing:
    def test_latency_alone(self):
        seen = page(builders.run(latency_s=STEADY), builders.run("ort-int8", latency_s=STEADY))
        assert "Reliability of the confidences: not drawn. No run here has a calibration evaluation." in seen.words
        assert "Accuracy, latency and size: not drawn. No variant here has both a latency and an accuracy." in seen.words
        assert "FP32 · ONNX Runtime single-stream 1 4 host to host 2 in 0.1 s 400 in 4.0 s budget reached" in seen.words

    def test_an_evaluation_alone(self):
        seen = page(builders.run(latency_s=None, evaluations=(
            builders.accuracy_evaluation(940), builders.calibration_evaluation(0.02))))
        assert "Latency distribution: not drawn. No run here has single-stream timings." in seen.words
        assert 2 == len(seen.figures)

    def test_an_offline_trace_alone(self):
        seen = page(builders.run(latency_s=None, batch_s=(0.1, 0.11)))
        assert "FP32 · ONNX Runtime offline 16 4" in seen.words

    def test_no_reference(self):
        assert "Flips: answers that changed against the reference: not drawn." in page(
            builders.run(evaluations=(builders.accuracy_evaluation(940),))).words

    def test_flips_of_nought(self):
        reference = builders.run(evaluations=(builders.accuracy_evaluation(940),))
        same = builders.run("ort-int8", reference=reference, evaluations=(builders.accuracy_evaluation(940, flips=(0, 0)),))
        assert "0 worse · 0 better" in json.dumps(page(reference, same).figures, ensure_ascii=False)

    def test_a_single_timing_and_timings_of_nought(self):
        for latency_s in ((0.01,), (0.0, 0.0, 0.0), (0.0, 1.0)):
            run = builders.run(latency_s=latency_s, evaluations=(builders.accuracy_evaluation(0),))
            for figure in page(run).figures:
                Figure(figure)

    def test_an_artifact_without_provenance(self):
        run = builders.run()
        bare = replace(run.artifact, preprocess=None, classes=None, parity=None, calibration=None, golden=None,
                       model=ModelIdentity(id="x.onnx", weights="embedded", weights_sha256=None))
        run = replace(run, artifact=bare, golden_max_abs_difference=None, environment=replace(
            run.environment, memory_bytes=None, governor=None, load_before=None, load_after=None))
        words = page(run).words
        assert "Parity at export not checked" in words
        assert "Preprocessing unknown: the source did not say" in words
        assert "Load before and after unknown and unknown" in words
        assert "x.onnx" in report.markdown([run])

    def test_twelve_variants_of_three_models(self):
        runs = []
        for model in ("timm:a", "timm:b", "timm:c"):
            reference = builders.run("ort-fp32", model=model, latency_s=STEADY, evaluations=(builders.accuracy_evaluation(940),))
            runs += [reference] + [
                builders.run(recipe, model=model, latency_s=tuple(value / 3 for value in STEADY), reference=reference,
                             evaluations=(builders.accuracy_evaluation(930, flips=(20, 10)),))
                for recipe in ("ort-int8", "openvino-bf16", "openvino-int8")]
        seen = page(*runs)
        labels = [row[0] for row in report.table(runs).rows]
        assert 12 == len(set(labels))
        assert all(label in seen.words for label in labels)
        for figure in seen.figures:
            Figure(figure)
        assert {"solid", "dash"} == {trace["line"]["dash"] for figure in seen.figures for trace in figure["data"]
                                     if "dash" in trace.get("line", {})}


class TestCharts:
    def panels(self, key: str, *runs: Run) -> tuple[charts.Panel, ...]:
        variants = report._variants(runs)
        drawn = (timing_charts.distribution(variants), timing_charts.timeline(variants), *charts.charts(variants))
        return next(chart for chart in drawn if chart.key == key).panels

    def points(self, *runs: Run) -> list[dict]:
        panel, = self.panels("timeline", *runs)
        return [trace for trace in panel.figure["data"] if trace.get("mode") == "markers"]

    def test_a_long_trace_keeps_its_extremes_and_stays_small(self):
        values = [0.010 + 0.0001 * (k % 10) for k in range(50_000)]
        values[12_345], values[40_000] = 0.0107, 0.001
        panel, = self.panels("timeline", builders.run(latency_s=values))
        drawn = [value for trace in self.points(builders.run(latency_s=values)) for value in trace["customdata"]]
        assert len(drawn) <= timing_charts.DRAWN_POINTS + 2
        assert 1.0 in drawn
        assert "50,000 timings in 522.5 s" == panel.note

    def test_timings_beyond_the_scale_are_drawn_at_its_edge_with_their_value(self):
        beyond = [trace for trace in self.points(builders.run(latency_s=[*STEADY, 0.5]))
                  if trace["marker"]["symbol"] == "triangle-up"]
        assert [[50.0, 20.0], [500.0]] == [trace["customdata"] for trace in beyond]

    @pytest.mark.parametrize("scale", [1.0, 1.1234567, 3.3333333, 0.7777777])
    def test_what_lies_beyond_the_scale_is_not_rounded_out_of_sight(self, scale):
        # Points were rounded to six digits, the axis was not: Plotly hid those that came to lie above it.
        panel, = self.panels("timeline", builders.run(latency_s=[value * scale for value in (*STEADY, 0.5)]))
        top = panel.figure["layout"]["yaxis"]["range"][1]
        assert all(y <= top for trace in panel.figure["data"] if trace["type"] == "scatter" for y in trace["y"])

    def test_warm_up_comes_before_zero_in_another_tone(self):
        warm = [trace for trace in self.points(builders.run(latency_s=STEADY)) if trace["marker"]["color"] == drawing.NEUTRAL]
        assert [-0.07, -0.02] == [round(x, 6) for trace in warm for x in trace["x"]]

    def test_percentiles_of_the_histogram_are_those_of_the_table(self):
        histograms, _ = self.panels("distribution", *inspection())
        assert [[11.0, 12.0], [3.2, 3.3]] == [trace["x"] for trace in histograms.figure["data"] if trace["mode"] == "markers"]

    def test_latencies_far_apart_get_a_logarithmic_axis(self):
        histograms, _ = self.panels("distribution", builders.run(latency_s=(0.2, 0.21)),
                                    builders.run("ort-int8", latency_s=(0.002, 0.0021)))
        assert "log" == histograms.figure["layout"]["xaxis"]["type"]

    def test_bubbles_have_areas_in_the_ratio_of_sizes(self):
        panel, = self.panels("tradeoff", *inspection())
        large, small = (trace["marker"]["size"] for trace in panel.figure["data"])
        assert large**2 / small**2 == pytest.approx(13.6 / 3.7)

    def test_labels_beside_bubbles_do_not_cover_each_other(self):
        shifts = charts._labels_apart([(500, 100, 20), (500, 130, 20)], [(90, 110), (120, 140)], [120, 120])
        assert None not in shifts
        assert shifts[0] != shifts[1]

    def test_a_label_without_a_free_place_is_left_out(self):
        crowd = [(500.0, 170.0, 60.0)] * 30
        assert None in charts._labels_apart(crowd, [(0.0, 350.0)] * 30, [400.0] * 30)

    def test_the_reliability_diagram_leaves_out_empty_bins_but_not_their_place(self):
        variants = report._variants(inspection()[:1])
        panel, = next(chart for chart in property_charts.property_charts(variants) if chart.key == "reliability").panels
        points, bars = panel.figure["data"]
        assert (14, 15) == (len(points["x"]), len(bars["x"]))
        assert "ECE 2.1 % (1.1–3.1) · 1,000 images" == panel.note

    def test_flips_point_left_and_right_with_their_intervals(self):
        panel, = self.panels("flips", *inspection())
        worse, better = panel.figure["data"]
        assert ([-2.1], [1.8]) == ([round(x, 6) for x in worse["x"]], [round(x, 6) for x in better["x"]])
        # A Wilson interval's longer arm points away from 0.
        assert worse["error_x"]["arrayminus"] > worse["error_x"]["array"]
        assert better["error_x"]["array"] > better["error_x"]["arrayminus"]

    def test_cold_start_is_the_sum_of_its_parts(self):
        cold, memory, size = self.panels("resources", *inspection())
        assert [200.0, 100.0, 50.0] == [trace["x"][0] for trace in cold.figure["data"]]
        assert "Cold start: FP32 · ONNX Runtime: 350 ms." == cold.alt
        assert "Peak host memory: FP32 · ONNX Runtime: 160 MB." == memory.alt
        assert "Artifact size: FP32 · ONNX Runtime: 13.60 MB; INT8 · ONNX Runtime: 3.70 MB." == size.alt

    @pytest.mark.parametrize(("reach", "step"), [(3.9, 2), (0.5, 0.2), (1.08, 0.5), (33, 10), (3.5, 1)])
    def test_ticks_are_round_and_few(self, reach, step):
        assert step == pytest.approx(drawing.tick_step(reach))


class TestShortNames:
    def test_name_the_model_where_there_are_several_and_whatever_else_is_needed(self):
        one, two = builders.run("ort-fp32"), builders.run("ort-int8")
        assert ["ort-fp32", "ort-int8"] == list(report.short_names([one, two]).values())
        other = builders.run("ort-fp32", model="timm:resnet18.a1_in1k")
        assert ["demo:inspection ort-fp32", "timm:resnet18.a1_in1k ort-fp32"] == list(report.short_names([one, other]).values())
        elsewhere = replace(one, device=replace(one.device, id="jetson"))
        assert ["ort-fp32 cpu", "ort-fp32 jetson"] == list(report.short_names([one, elsewhere]).values())
        again = replace(one, created_at="2026-03-15T10:30:00+00:00")
        assert 2 == len(set(report.short_names([one, again]).values()))

    def test_caveats_in_the_terminal_are_told_apart(self, capsys):
        doubt = Caveat(code="noisy", message="the timings scatter", hint="stop other load")
        for models, expected in ((("demo:inspection", "timm:vit"), "demo:inspection ort-fp32, timm:vit ort-fp32: the timings scatter"),
                                 (("demo:inspection",), "ort-fp32: the timings scatter")):
            terminal.print_runs([builders.run("ort-fp32", model=model, caveats=(doubt,)) for model in models])
            assert expected in capsys.readouterr().out
