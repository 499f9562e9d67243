"""Charts of the properties: the numbers drawn are those of the scores, and nothing is drawn where there are none."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from plotly.graph_objects import Figure

from edgebench import charts, properties, property_charts, report, score_tables, timing_charts, wording
from edgebench.corruptions import CORRUPTIONS as MADE_CORRUPTIONS
from edgebench.drawing import Chart, Panel, Variant
from edgebench.properties import Pass, Predictions
from edgebench.record import DatasetIdentity, Evaluation, ReliabilityBin, Run, Score
from tests import builders

# Paper's counts of images per factor, most first.
FACTORS = {"pose": 15064, "background": 14751, "color": 6150, "pattern": 5972, "smaller": 1450, "shape": 679,
           "partial_view": 638, "subcategory": 585, "texture": 282, "larger": 150, "darker": 122, "object_blocking": 78,
           "person_blocking": 60, "brighter": 44, "style": 43, "multiple_objects": 40}
CATEGORIES = ("airplane", "bear", "bicycle", "bird", "boat", "bottle", "car", "cat", "chair", "clock", "dog", "elephant",
              "keyboard", "knife", "oven", "truck")
CORRUPTIONS = ("gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur",
               "snow", "frost", "fog", "brightness", "contrast", "elastic_transform", "pixelate", "jpeg_compression")
SETS = {"imagenet-v2": 10_000, "imagenet-a": 7500, "imagenet-r": 30_000, "imagenet-sketch": 50_889, "imagenet-hard": 10_980}
TASKS = ("caltech101", "cifar100", "dtd", "flowers102", "pets", "svhn", "eurosat", "resisc45", "clevr_count", "kitti")
SUBSETS = ("Worlds", "Camera_Pitch", "Camera_Yaw", "Camera_Roll", "Object_Pitch", "Object_Yaw", "Object_Roll",
           "Object_Scale", "Object_Texture", "Scene_Light")
SWEEPS = {"scale": ("1", "0.875", "0.7", "0.5", "0.33"),
          "shift": ("0", *(f"{size}{way}" for size in ("0.125", "0.25") for way in ("left", "right", "up", "down"))),
          "resolution": ("native", "112", "160", "288", "336")}
RECIPES = ("ort-fp32", "ort-int8", "openvino-fp32", "openvino-bf16", "openvino-int8")


def share(name: str, value: float, n: int = 1000, *, unit: str = "fraction", room: float | None = None) -> Score:
    """A score with an interval as that of a share of n images, or of `room` below and half as much again above."""
    room = 1.96 * math.sqrt(max(value * (1 - value), 0.0001) / n) if room is None else room
    return Score(name=name, value=value, low=value - room, high=value + 1.5 * room, unit=unit, better="higher", n=n, method="made up")


def evaluation(property_: str, dataset: str, scores: list[Score], changes: list[Score] | None = None, *,
               condition: str = "clean", images: int = 1000, bins: tuple[ReliabilityBin, ...] = ()) -> Evaluation:
    """An evaluation of those scores."""
    identity = DatasetIdentity(name=dataset, source=f"/data/{dataset}", images=images, classes=1000,
                               digest=builders.sha(dataset + condition))
    return Evaluation(property=property_, dataset=identity, condition=condition, preset="native", predictions=("p.npz",),
                      scores=tuple(scores), reliability=bins, reference_scores=tuple(changes or ()))


def everything(seed: int, *, paired: bool = True) -> tuple[Evaluation, ...]:
    """Evaluations of all properties as a model of 1,000 classes might give them; another seed, another variant."""
    draw = np.random.default_rng(seed).normal
    skill = 0.8 + 0.02 * float(draw())

    def near(value: float, spread: float = 0.02) -> float:
        return float(np.clip(value + spread * draw(), 0.01, 0.99))

    def change(name: str, spread: float = 0.01, n: int = 1000) -> Score:
        return share(name, float(spread * draw()) - spread / 2, n, room=0.6 / math.sqrt(n))

    def by_level(metric: str, levels: dict[str, float], n: int = 5000) -> list[Score]:
        return [share(f"{metric}@{level}", value, n) for level, value in levels.items()]

    def only(changes: list[Score]) -> list[Score]:
        return changes if paired else []

    bins = tuple(ReliabilityBin(
        low=k / 15, high=(k + 1) / 15, n=20 * k * k + 1, confidence=(k + 0.5) / 15,
        accuracy=min(1.0, max(0.0, (k + 0.5) / 15 - 0.04 + 0.03 * float(draw())))) for k in range(15))
    corrupted = {f"{name}:{severity}": near(skill - 0.02 * place % 0.11 - 0.11 * severity)
                 for place, name in enumerate(CORRUPTIONS) for severity in range(1, 6)}
    found = [
        evaluation("accuracy", "imagenet-val", [share("accuracy_top1", skill, 50_000)],
                   only([change("accuracy_top1_change", n=50_000), share("negative_flips", 0.02), share("positive_flips", 0.015)])),
        *(evaluation("calibration", name, [share("ece15_ew", near(0.04, 0.01), room=0.005)], bins=bins)
          for name in ("imagenet-val", "inspection")),
        evaluation("mistakes", "imagenet-val", [
            *(share(f"error_ratio_{name}", abs(1.2 + 0.4 * float(draw())), n, unit="1", room=3 / math.sqrt(n))
              for name, n in FACTORS.items()),
            *(share(f"error_ratio_multi_{name}", abs(1.2 + 0.4 * float(draw())), n, unit="1") for name, n in FACTORS.items()),
            share("error_ratio_mean", 1.2 + 0.1 * float(draw()), 46_110, unit="1", room=0.1),
            share("error_ratio_mean_n200", 1.1 + 0.1 * float(draw()), 46_110, unit="1", room=0.03)],
            only([change(f"factor_error_change_{name}", n=n) for name, n in FACTORS.items()])),
        evaluation("shape-bias", "cue-conflict", [
            share("shape_bias", near(0.36, 0.04), 900), share("shape_bias_by_exemplar", 0.36, 900),
            share("cue_accuracy", near(0.72), 1200), share("shape_accuracy", near(0.27), 1200),
            share("texture_accuracy", near(0.45), 1200), share("no_conflict_accuracy", near(0.93), 80),
            *(share(f"shape_bias_{name}", near(0.2 + 0.03 * place, 0.08), 55) for place, name in enumerate(CATEGORIES))],
            only([change("shape_bias_change"), change("cue_accuracy_change")]), images=1280),
        *(evaluation("robustness", name, [share("accuracy_top1", near(skill - 0.1 * (1 + place), 0.03), n)],
                     only([change("accuracy_top1_change", n=n)]), images=n) for place, (name, n) in enumerate(SETS.items())),
        evaluation("robustness", "imagenet-c", by_level("accuracy", corrupted),
                   only([change(f"accuracy_change@{level}", 0.02) for level in corrupted]
                        + [share(f"mcnemar_p@{level}", near(0.5, 0.3), unit="1") for level in corrupted]),
                   condition="corruptions", images=5000),
        evaluation("robustness", "imagenet-val", [share("accuracy_real", near(skill + 0.05), 46_837)]),
        *(evaluation("robustness", f"ood/{name}", [share("auroc_msp", near(0.85)), share("auroc_energy", near(0.88))],
                     only([change("auroc_msp_change")]), condition="ood:imagenet-val") for name in ("textures", "noise")),
        *(evaluation("transfer", f"vtab/{task}/test", [share("probe_accuracy", near(0.5 + 0.04 * place))],
                     only([share("probe_swap_accuracy", near(0.48 + 0.04 * place)), change("probe_swap_accuracy_change"),
                           change("probe_accuracy_change")]), condition="probe")
          for place, task in enumerate(TASKS)),
        *(evaluation("synthetic", f"pug/{name}", [share(f"accuracy@{name}", near(0.02 if "Light" in name else 0.25 + 0.02 * place))],
                     only([change(f"accuracy_change@{name}")])) for place, name in enumerate(SUBSETS)),
        *(evaluation("invariance", "imagenet-val", [
            *(share(f"accuracy@{level}", near(skill - 0.05 * place), 5000) for place, level in enumerate(levels)),
            *(share(f"retention@{level}", near(0.98 - 0.05 * place), 5000, unit="1") for place, level in enumerate(levels) if place),
            *(share(f"consistency@{level}", near(0.95 - 0.04 * place), 5000) for place, level in enumerate(levels) if place),
            share("retention_area", near(0.9), 5000, unit="1")], condition=family, images=5000)
          for family, levels in SWEEPS.items()),
    ]
    return tuple(found)


def runs(count: int) -> tuple[Run, ...]:
    """That many variants of as many models as it takes, five of each, all with all properties."""
    made: list[Run] = []
    for place in range(count):
        reference = made[place - place % 5] if place % 5 else None
        size, speed = 90_000_000 if place % 5 in (0, 2) else 24_000_000, 0.02 + 0.004 * place
        made.append(builders.run(
            RECIPES[place % 5], model=f"timm:model_{place // 5}" if count > 5 else "timm:resnet50",
            latency_s=tuple(speed * (1 + 0.01 * (k % 7)) for k in range(200)), size_bytes=size, reference=reference,
            evaluations=everything(place, paired=reference is not None)))
    return tuple(made)


@cache
def variants(count: int) -> tuple[Variant, ...]:
    return report._variants(runs(count))


@cache
def charts_of(count: int) -> tuple[Chart, ...]:
    return property_charts.property_charts(variants(count))


def of(*evaluations: Evaluation) -> tuple[Variant, ...]:
    """A single variant with these evaluations."""
    return report._variants([builders.run(evaluations=evaluations)])


def chart(key: str, drawn: tuple[Variant, ...]) -> Chart:
    charts = charts_of(len(drawn)) if drawn is variants(len(drawn)) else property_charts.property_charts(drawn)
    return next(one for one in charts if one.key == key)


def score_of(variant: Variant, property_: str, name: str, *, dataset: str = "", condition: str = "") -> Score:
    """The score as the run has it, found without the code under test."""
    found = [score for one in variant.run.evaluations if one.property == property_
             and dataset in ("", one.dataset.name) and condition in ("", one.condition)
             for score in (*one.scores, *one.reference_scores) if score.name == name]
    assert 1 == len(found)
    return found[0]


def dots_of(panel: Panel, variant: Variant) -> dict[str, float]:
    """What a panel of dots shows of a variant, by the label of the row."""
    axis = panel.figure["layout"]["yaxis"]
    trace, = [one for one in panel.figure["data"] if one["mode"] == "markers" and one["meta"] == variant.index]
    # The text on hovering begins with the label; the place must agree with it.
    labels = [axis["ticktext"][round(y)] for y in trace["y"]]
    assert [text.rpartition(":")[0] for text in trace["text"]] == labels
    # Where rows differ in their images, the number stands behind the label.
    return dict(zip((re.sub(r" · [\d,]+$", "", label) for label in labels), trace["x"], strict=True))


EVERY_KEY = ["overview", "reliability", "mistakes", "shape", "natural", "corruptions", "foreign", "transfer", "synthetic",
             "invariance"]
COUNTS = pytest.mark.parametrize("count", [1, 5, 20])


class TestAllCharts:
    @COUNTS
    def test_each_property_has_its_chart_with_title_caption_and_words_for_those_who_do_not_see_it(self, count):
        drawn = charts_of(count)
        assert EVERY_KEY == [one.key for one in drawn]
        for one in drawn:
            assert not one.absent, one.key
            assert one.title
            assert len(one.caption) > 40
            assert one.panels
            for panel in one.panels:
                assert panel.title
                assert len(panel.alt) > 40
                Figure(panel.figure)

    def test_without_evaluations_each_says_what_is_missing(self):
        drawn = property_charts.property_charts(report._variants([builders.run()]))
        assert EVERY_KEY == [one.key for one in drawn]
        assert all(not one.panels and one.absent.endswith(".") for one in drawn)

    @pytest.mark.parametrize(("property_", "keys"), [
        ("calibration", {"reliability"}), ("mistakes", {"mistakes"}), ("shape-bias", {"shape"}),
        ("robustness", {"natural", "corruptions", "foreign"}), ("transfer", {"transfer"}), ("synthetic", {"synthetic"}),
        ("invariance", {"invariance"}), ("accuracy", set())])
    def test_one_property_alone_draws_its_own_charts_and_no_others(self, property_, keys):
        found = of(*(one for one in everything(1) if one.property == property_))
        assert keys == {one.key for one in property_charts.property_charts(found) if one.panels}

    def test_a_variant_has_one_colour_and_a_meta_that_the_legend_can_hide_in_every_chart(self):
        drawn = variants(20)
        colours = {variant.index: variant.colour for variant in drawn}
        for one in charts_of(20):
            for panel in one.panels:
                for trace in panel.figure["data"]:
                    if trace["type"] in ("scatter", "scatterpolar"):
                        line, marker = trace.get("line", {}), trace.get("marker", {})
                        assert colours[trace["meta"]] in (line.get("color"), marker.get("color"),
                                                          trace.get("fillcolor", "")[:7])

    def test_twenty_variants_take_seven_colours_in_three_styles(self):
        styles = {(variant.colour, variant.dash) for variant in variants(20)}
        assert 20 == len(styles)
        panel = chart("natural", variants(20)).panels[0]
        assert {"circle", "diamond", "square"} == {trace["marker"]["symbol"] for trace in panel.figure["data"]}

    def test_scores_without_a_value_are_left_out_and_nothing_breaks(self):
        nothing = [Score(name=name, value=None, unit="fraction", better=None, n=0, method="m", reason="r") for name in (
            "error_ratio_mean", "shape_bias", "accuracy_top1", "probe_accuracy", "auroc_msp", "accuracy@fog:1", "accuracy@Worlds",
            "accuracy@0.5", "retention@0.5", "ece15_ew", "cue_accuracy")]
        found = of(*(replace(one, scores=tuple(nothing), reference_scores=(), reliability=()) for one in everything(1)))
        assert all(one.absent for one in property_charts.property_charts(found))

    @pytest.mark.parametrize("seed", range(6))
    def test_any_part_of_the_scores_can_be_drawn(self, seed):
        kept = np.random.default_rng(seed)

        def some(one: Evaluation) -> Evaluation:
            return replace(one, scores=tuple(s for s in one.scores if kept.random() < 0.3),
                           reference_scores=tuple(s for s in one.reference_scores if kept.random() < 0.3))

        made = [replace(run, evaluations=tuple(some(one) for one in run.evaluations if kept.random() < 0.7)) for run in runs(5)]
        for one in property_charts.property_charts(report._variants(made)):
            assert bool(one.panels) != bool(one.absent)
            for panel in one.panels:
                Figure(panel.figure)

    def test_names_from_users_reach_plotly_escaped(self):
        found = of(evaluation("robustness", "<b>", [share("accuracy_top1", 0.5)]),
                   evaluation("robustness", "<b>", [share("accuracy@fog:1", 0.5)], condition="imagenet-c-generated"),
                   evaluation("transfer", "vtab/<b>/test", [share("probe_accuracy", 0.5)], condition="probe"))
        for key in ("natural", "transfer"):
            panel, = chart(key, found).panels
            assert ["&lt;b&gt;"] == panel.figure["layout"]["yaxis"]["ticktext"]
            assert ["&lt;b&gt;: 50.0 % (46.9–54.6)"] == panel.figure["data"][0]["text"]


class TestDots:
    @COUNTS
    def test_numbers_drawn_are_those_of_the_scores(self, count):
        for variant in (drawn := variants(count)):
            panel = chart("natural", drawn).panels[0]
            assert {**{name: 100 * score_of(variant, "robustness", "accuracy_top1", dataset=name).value for name in SETS},
                    "imagenet-val": 100 * score_of(variant, "accuracy", "accuracy_top1").value,
                    "imagenet-val, ReaL labels": 100 * score_of(variant, "robustness", "accuracy_real").value,
                    } == pytest.approx(dots_of(panel, variant), rel=1e-5)

    def test_intervals_are_drawn_of_few_variants_and_stand_in_the_words_of_all(self):
        drawn = variants(5)
        score = score_of(drawn[1], "robustness", "accuracy_top1", dataset="imagenet-a")
        trace = next(one for one in chart("natural", drawn).panels[0].figure["data"] if one["meta"] == 1)
        row = [text.startswith("imagenet-a · 7,500:") for text in trace["text"]].index(True)
        assert trace["error_x"]["array"][row] == pytest.approx(100 * (score.high - score.value), rel=1e-4)
        assert trace["error_x"]["arrayminus"][row] == pytest.approx(100 * (score.value - score.low), rel=1e-4)
        many = chart("natural", variants(20)).panels[0].figure["data"]
        assert all("error_x" not in one for one in many)
        assert all("(" in text for one in many for text in one["text"])

    def test_variants_stand_side_by_side_within_their_row_in_report_order(self):
        for count in (5, 20):
            data = chart("natural", variants(count)).panels[0].figure["data"]
            first_row = [one["y"][0] for one in data]
            assert sorted(first_row) == first_row
            assert -0.5 < first_row[0] < first_row[-1] < 0.5

    def test_twenty_variants_do_not_take_twenty_times_the_room(self):
        one, many = (chart("mistakes", variants(count)).panels[0].figure["layout"]["height"] for count in (1, 20))
        assert many < 3 * one

    def test_few_variants_are_read_out_one_by_one_and_many_from_lowest_to_highest(self):
        alone = score_of(variants(1)[0], "robustness", "accuracy_top1", dataset="imagenet-v2").value
        assert f"; imagenet-v2: FP32 · ONNX Runtime {100 * alone:.1f}; " in chart("natural", variants(1)).panels[0].alt
        values = [score_of(one, "robustness", "accuracy_top1", dataset="imagenet-v2").value for one in variants(20)]
        assert f"imagenet-v2: {wording.span(100 * min(values), 100 * max(values), 1)}; " in chart("natural", variants(20)).panels[0].alt

    def test_axes_show_every_value_and_interval_that_is_drawn(self):
        for count in (1, 5, 20):
            for key in ("mistakes", "natural", "transfer", "synthetic", "shape"):
                for panel in chart(key, variants(count)).panels:
                    low, high = panel.figure["layout"]["xaxis"]["range"]
                    for trace in panel.figure["data"]:
                        assert all(low <= x <= high for x in trace["x"]), panel.title


class TestMistakes:
    @COUNTS
    def test_ratios_and_changes_of_the_error_are_those_of_the_scores(self, count):
        drawn = variants(count)
        ratios, *changes = chart("mistakes", drawn).panels
        for variant in drawn:
            found = dots_of(ratios, variant)
            assert {name.replace("_", " "): score_of(variant, "mistakes", f"error_ratio_{name}").value
                    for name in FACTORS} == pytest.approx(
                        {label: x for label, x in found.items() if not label.startswith("mean")}, rel=1e-5)
            assert found["mean of all"] == pytest.approx(score_of(variant, "mistakes", "error_ratio_mean").value, rel=1e-5)
            if variant.reference:
                assert {name.replace("_", " "): 100 * score_of(variant, "mistakes", f"factor_error_change_{name}").value
                        for name in FACTORS} == pytest.approx(dots_of(changes[0], variant), rel=1e-4)
        assert (count > 1) == bool(changes)

    def test_factors_stand_by_their_number_of_images_and_those_below_200_are_shaded(self):
        panel = chart("mistakes", variants(1)).panels[0]
        layout = panel.figure["layout"]
        labels = layout["yaxis"]["ticktext"]
        assert ["pose · 15,064", "background · 14,751"] == labels[2:4]
        assert "multiple objects · 40" == labels[-1]
        shaded = [labels[math.ceil(shape["y0"])] for shape in layout["shapes"] if shape["type"] == "rect"]
        assert [f"{name.replace('_', ' ')} · {n}" for name, n in FACTORS.items() if n < 200] == shaded
        assert layout["yaxis"]["range"][0] > layout["yaxis"]["range"][1], "the first row is on top"

    def test_a_line_marks_the_ratio_of_no_effect(self):
        shapes = chart("mistakes", variants(1)).panels[0].figure["layout"]["shapes"]
        assert [1.0] == [shape["x0"] for shape in shapes if shape["type"] == "line" and shape["x0"] == shape["x1"]]


class TestShape:
    @COUNTS
    def test_categories_and_shares_are_those_of_the_scores(self, count):
        drawn = variants(count)
        categories, decisions, *changes = chart("shape", drawn).panels
        for variant in drawn:
            assert {"all": 100 * score_of(variant, "shape-bias", "shape_bias").value,
                    **{name: 100 * score_of(variant, "shape-bias", f"shape_bias_{name}").value for name in CATEGORIES}
                    } == pytest.approx(dots_of(categories, variant), rel=1e-5)
            assert {label: 100 * score_of(variant, "shape-bias", f"{name}_accuracy").value for label, name in (
                ("either cue", "cue"), ("shape", "shape"), ("texture", "texture"), ("no conflict", "no_conflict"))
            } == pytest.approx(dots_of(decisions, variant), rel=1e-5)
            if variant.reference:
                assert {"shape bias": 100 * score_of(variant, "shape-bias", "shape_bias_change").value,
                        "either cue": 100 * score_of(variant, "shape-bias", "cue_accuracy_change").value
                        } == pytest.approx(dots_of(changes[0], variant), rel=1e-4)

    def test_a_line_per_variant_stands_at_its_value_over_all_categories(self):
        drawn = variants(5)
        lines = [one for one in chart("shape", drawn).panels[0].figure["data"] if one["mode"] == "lines"]
        assert [100 * score_of(one, "shape-bias", "shape_bias").value for one in drawn] == pytest.approx(
            [line["x"][0] for line in lines], rel=1e-5)
        assert all(line["x"][0] == line["x"][1] for line in lines)


class TestReliability:
    def test_few_variants_have_a_panel_per_data_set_with_its_histogram(self):
        panels = chart("reliability", variants(3)).panels
        assert 6 == len(panels)
        assert ["FP32 · ONNX Runtime, imagenet-val", "INT8 · ONNX Runtime, imagenet-val"] == [p.title for p in panels[:2]]
        assert all(["scatter", "bar"] == [trace["type"] for trace in panel.figure["data"]] for panel in panels)

    def test_many_variants_are_lines_in_a_panel_per_data_set(self):
        drawn = variants(20)
        panels = chart("reliability", drawn).panels
        assert ["imagenet-val", "inspection"] == [panel.title for panel in panels]
        for panel in panels:
            assert list(range(20)) == [trace["meta"] for trace in panel.figure["data"]]
        bins = next(one for one in drawn[7].run.evaluations if one.reliability).reliability
        assert [100 * bin_.accuracy for bin_ in bins] == panels[0].figure["data"][7]["y"]
        errors = [100 * score_of(one, "calibration", "ece15_ew", dataset="imagenet-val").value for one in drawn]
        assert f"ECE {min(errors):.1f}–{max(errors):.1f} % · 1,000 images" == panels[0].note


class TestCorruptions:
    def test_few_variants_have_a_map_each_of_every_level(self):
        drawn = variants(3)
        panels = chart("corruptions", drawn).panels
        # Three of accuracy; the reference has no change.
        assert ["FP32 · ONNX Runtime", "INT8 · ONNX Runtime", "FP32 · OpenVINO", "INT8 · ONNX Runtime, change",
                "FP32 · OpenVINO, change"] == [panel.title for panel in panels]
        for panel, variant, metric in zip(panels, (*drawn, *drawn[1:]), ["accuracy"] * 3 + ["accuracy_change"] * 2, strict=True):
            heat, = panel.figure["data"]
            assert [name.replace("_", " ") for name in CORRUPTIONS] == panel.figure["layout"]["yaxis"]["ticktext"]
            expected = [[100 * score_of(variant, "robustness", f"{metric}@{name}:{severity}").value for severity in range(1, 6)]
                        for name in CORRUPTIONS]
            assert np.array(heat["z"]) == pytest.approx(np.array(expected), rel=1e-4)
            assert f"mean {wording.fixed(float(np.mean(expected)), 1, sign=metric != 'accuracy')}" in panel.note

    def test_many_variants_share_one_map_of_means_over_the_severities(self):
        drawn = variants(20)
        accuracy, change = chart("corruptions", drawn).panels
        assert (20, 16) == np.shape(accuracy.figure["data"][0]["z"])
        assert (16, 16) == np.shape(change.figure["data"][0]["z"])
        levels = [[100 * score_of(drawn[6], "robustness", f"accuracy@{name}:{severity}").value for severity in range(1, 6)]
                  for name in CORRUPTIONS]
        assert [np.mean(levels), *np.mean(levels, axis=1)] == pytest.approx(accuracy.figure["data"][0]["z"][6], rel=1e-4)
        heads = [note["text"] for note in accuracy.figure["layout"]["annotations"]]
        assert [variant.label for variant in drawn] == heads

    def test_colours_of_changes_are_even_around_nought_and_the_same_in_all_panels(self):
        maps = [panel.figure["data"][0] for panel in chart("corruptions", variants(3)).panels]
        assert 1 == len({(one["zmin"], one["zmax"]) for one in maps[:3]})
        assert 1 == len({(one["zmin"], one["zmax"]) for one in maps[3:]})
        assert -maps[3]["zmin"] == maps[3]["zmax"] == pytest.approx(
            max(abs(value) for one in maps[3:] for row in one["z"] for value in row), rel=1e-4)

    def test_held_out_corruptions_are_drawn_but_enter_no_mean(self):
        one = evaluation("robustness", "mine", [share("accuracy@fog:1", 0.6), share("accuracy@fog:2", 0.4), share("accuracy@spatter:1", 0.1),
                                                share("accuracy@spatter:2", 0.1), share("accuracy@fog", 0.5)],
                         condition="imagenet-c-generated")
        panel, = chart("corruptions", of(one)).panels
        assert [[60.0, 40.0], [10.0, 10.0]] == panel.figure["data"][0]["z"]
        assert "mean 50.0 % · 1,000 images · chance 0.1 %" == panel.note
        assert "mine (corrupted here)" in chart("corruptions", of(one)).caption

    def test_a_variant_that_lacks_a_level_has_a_gap_there_and_no_mean(self):
        whole, part = (evaluation("robustness", "imagenet-c", [share(f"accuracy@fog:{k}", 0.5) for k in severities],
                                  condition="corruptions") for severities in ((1, 2), (1,)))
        drawn = report._variants([builders.run("ort-fp32", evaluations=(whole,)), builders.run("ort-int8", evaluations=(part,))])
        first, second = chart("corruptions", drawn).panels
        assert ([[50.0, 50.0]], "mean 50.0 % · 1,000 images · chance 0.1 %") == (first.figure["data"][0]["z"], first.note)
        assert ([[50.0, None]], "mean none % · 1,000 images · chance 0.1 %") == (second.figure["data"][0]["z"], second.note)
        assert ["50", ""] == second.figure["data"][0]["text"][0]


class TestChance:
    """Three classes: guessing gives a third."""

    def corrupted(self, accuracies: dict[str, tuple[float, float | None]], n: int) -> tuple[Variant, ...]:
        """Accuracy and change by level, of a single variant."""
        one = evaluation("robustness", "mine", [share(f"accuracy@{level}", value, n) for level, (value, _) in accuracies.items()],
                         [share(f"accuracy_change@{level}", change, n, room=0.01) for level, (_, change) in accuracies.items()
                          if change is not None], condition="imagenet-c-generated", images=n)
        return of(replace(one, dataset=replace(one.dataset, classes=3)))

    def greyed(self, panel: Panel) -> set[tuple[int, int]]:
        """Row and column of the cells in the second trace."""
        return {(row, column) for trace in panel.figure["data"][1:] for row, line in enumerate(trace["z"])
                for column, value in enumerate(line) if value is not None}

    def test_cells_whose_interval_reaches_down_to_chance_are_grey_and_have_no_say_in_the_colours(self):
        drawn = self.corrupted({"fog:1": (0.9, None), "fog:2": (0.6, None), "fog:3": (0.40, None), "fog:4": (0.33, None),
                                "fog:5": (0.2, None)}, n=100)
        panel, = chart("corruptions", drawn).panels
        assert {(0, 2), (0, 3), (0, 4)} == self.greyed(panel)
        assert (60.0, 90.0) == (panel.figure["data"][0]["zmin"], panel.figure["data"][0]["zmax"])
        assert "Grey cells" in chart("corruptions", drawn).caption
        assert "100 images · chance 33.3 %" in panel.note

    def test_with_enough_images_the_same_accuracy_can_be_told_from_chance(self):
        assert not self.greyed(chart("corruptions", self.corrupted({"fog:1": (0.40, None)}, n=10_000)).panels[0])

    def test_a_gain_from_chance_to_chance_is_grey_and_a_fall_to_chance_is_not(self):
        _, panel = chart("corruptions", self.corrupted({"fog:1": (0.36, 0.10), "fog:2": (0.36, -0.50), "fog:3": (0.8, 0.45)}, n=100)).panels
        assert {(0, 0)} == self.greyed(panel)

    def test_every_cell_tells_its_interval_and_images(self):
        panel, = chart("corruptions", self.corrupted({"fog:1": (0.9, None)}, n=30)).panels
        score = share("accuracy@fog:1", 0.9, 30)
        assert f"fog, severity 1: 90.0 % ({100 * score.low:.1f}–{100 * score.high:.1f}), 30 images" == panel.figure["data"][0]["hovertext"][0][0]

    def test_rows_of_dots_have_a_line_at_the_chance_of_their_own_classes(self):
        two, four = (replace(evaluation("transfer", f"vtab/{name}/test", [share("probe_accuracy", 0.6)], condition="probe"))
                     for name in ("coins", "suits"))
        drawn = of(*(replace(one, dataset=replace(one.dataset, classes=k)) for one, k in ((two, 2), (four, 4))))
        panel = chart("transfer", drawn).panels[0]
        shown = panel.figure["layout"]["xaxis"]["range"]
        lines = {shape["y0"] + 0.45: shape["x0"] for shape in panel.figure["layout"]["shapes"] if shape["line"].get("dash") == "dot"}
        assert {row: level for row, level in ((0.0, 50.0), (1.0, 25.0)) if shown[0] <= level <= shown[1]} == lines
        assert panel.note.endswith("chance 25.0–50.0 %")


class TestAxes:
    @COUNTS
    def test_an_axis_of_values_that_leaves_out_nought_says_where_it_starts(self, count):
        cut = 0
        for one in (*charts_of(count), *charts.charts(variants(count)), timing_charts.timeline(variants(count))):
            for panel in one.panels:
                for key, axis in panel.figure["layout"].items():
                    if not re.match(r"[xy]axis", key) or not axis.get("title", {}).get("text") or axis.get("type") == "log":
                        continue
                    low = min(axis.get("range", (0, 1)))
                    if low > 0:
                        cut += 1
                        assert f"axis starts at {low:.3g}" in axis["title"]["text"], (one.key, panel.title)
        assert cut > 3

    @COUNTS
    def test_every_panel_of_quality_says_its_number_of_images(self, count):
        panels = [panel for one in charts_of(count) if one.key != "overview" for panel in one.panels]
        assert len(panels) > 10
        assert all(re.search(r"\d images", panel.note) for panel in panels)


class TestTransferAndSynthetic:
    @COUNTS
    def test_probes_by_task(self, count):
        drawn = variants(count)
        panels = {panel.title: panel for panel in chart("transfer", drawn).panels}
        for variant in drawn:
            assert {task.replace("_", " "): 100 * score_of(variant, "transfer", "probe_accuracy", dataset=f"vtab/{task}/test").value
                    for task in TASKS} == pytest.approx(dots_of(panels["Probe trained on its own features"], variant), rel=1e-5)
            if variant.reference:
                assert {task.replace("_", " "): 100 * score_of(variant, "transfer", "probe_swap_accuracy", dataset=f"vtab/{task}/test").value
                        for task in TASKS} == pytest.approx(
                            dots_of(panels["Probe trained on the reference's features"], variant), rel=1e-5)

    @COUNTS
    def test_rendered_images_by_factor_with_the_doubtful_one_shaded(self, count):
        drawn = variants(count)
        panel = chart("synthetic", drawn).panels[0]
        for variant in drawn:
            assert {name.replace("_", " "): 100 * score_of(variant, "synthetic", f"accuracy@{name}").value for name in SUBSETS
                    } == pytest.approx(dots_of(panel, variant), rel=1e-5)
        shaded, = [shape for shape in panel.figure["layout"]["shapes"] if shape["type"] == "rect"]
        assert "Scene Light" == panel.figure["layout"]["yaxis"]["ticktext"][math.ceil(shaded["y0"])]
        assert "Scene Light is shaded" in chart("synthetic", drawn).caption

    def test_only_the_confidence_tells_foreign_images_in_the_chart(self):
        drawn = variants(5)
        panel = chart("foreign", drawn).panels[0]
        assert {f"{name} · imagenet-val": 100 * score_of(drawn[2], "robustness", "auroc_msp", dataset=f"ood/{name}").value
                for name in ("textures", "noise")} == pytest.approx(dots_of(panel, drawn[2]), rel=1e-5)


class TestInvariance:
    @COUNTS
    def test_a_panel_per_metric_and_family_with_a_line_per_variant(self, count):
        panels = chart("invariance", variants(count)).panels
        assert [f"{metric}, {family}" for metric in ("Top-1", "Top-1 kept", "Same answer") for family in SWEEPS] == [
            panel.title for panel in panels]
        for panel in panels:
            lines = [trace for trace in panel.figure["data"] if trace.get("fill") is None]
            assert list(range(count)) == [line["meta"] for line in lines]

    def lines(self, title: str, drawn: tuple[Variant, ...]) -> list[dict]:
        return next(panel for panel in chart("invariance", drawn).panels if panel.title == title).figure["data"]

    def test_a_curve_goes_through_the_scores_and_its_band_through_their_intervals(self):
        drawn = variants(1)
        band, line = self.lines("Top-1, scale", drawn)
        levels = SWEEPS["scale"][::-1]
        scores = [score_of(drawn[0], "invariance", f"accuracy@{level}", condition="scale") for level in levels]
        assert [float(level) for level in levels] == line["x"]
        assert [100 * score.value for score in scores] == pytest.approx(line["y"], rel=1e-5)
        assert [100 * score.high for score in scores] == pytest.approx(band["y"][:5], rel=1e-5)
        assert [100 * score.low for score in scores] == pytest.approx(band["y"][5:][::-1], rel=1e-5)

    def test_many_variants_have_no_bands(self):
        assert all("fill" not in trace for trace in self.lines("Top-1, scale", variants(5)))

    def test_untransformed_all_is_kept(self):
        line = self.lines("Same answer, scale", variants(5))[0]
        assert (1.0, 100.0) == (line["x"][-1], line["y"][-1])

    def test_directions_of_a_shift_are_averaged_and_so_are_the_ends_of_their_band(self):
        drawn = variants(1)
        band, _ = self.lines("Same answer, shift", drawn)
        ends = [[100 * getattr(score_of(drawn[0], "invariance", f"consistency@0.25{way}", condition="shift"), end)
                 for way in ("left", "right", "up", "down")] for end in ("high", "low")]
        assert [np.mean(ends[0]), np.mean(ends[1])] == pytest.approx([band["y"][2], band["y"][3]], rel=1e-5)

    def test_directions_of_a_shift_are_averaged(self):
        drawn = variants(1)
        line = self.lines("Same answer, shift", drawn)[-1]
        found = [100 * score_of(drawn[0], "invariance", f"consistency@0.25{way}", condition="shift").value
                 for way in ("left", "right", "up", "down")]
        assert [0.0, 0.125, 0.25] == line["x"]
        assert line["y"][-1] == pytest.approx(np.mean(found), rel=1e-5)

    def test_the_native_resolution_stands_at_the_size_of_the_models_input(self):
        drawn = variants(1)
        line = self.lines("Top-1, resolution", drawn)[-1]
        size = drawn[0].run.artifact.preprocess.size_px[0]
        assert [112.0, 160.0, float(size), 288.0, 336.0] == line["x"]
        native = score_of(drawn[0], "invariance", "accuracy@native", condition="resolution")
        assert line["y"][2] == pytest.approx(100 * native.value, rel=1e-5)

    def test_the_papers_sweep_has_its_own_parameter_and_direction(self):
        levels = [share(f"accuracy@{level}", 0.8) for level in ("1", "1.25", "3")]
        one = replace(evaluation("invariance", "mine", levels, condition="scale"), preset="paper")
        panel, = chart("invariance", of(one)).panels
        assert "zoom" == panel.figure["layout"]["xaxis"]["title"]["text"]
        assert "autorange" not in panel.figure["layout"]["xaxis"]
        native, = chart("invariance", of(replace(one, preset="native"))).panels
        assert ("visible share of the image", "reversed") == (
            native.figure["layout"]["xaxis"]["title"]["text"], native.figure["layout"]["xaxis"]["autorange"])


class TestOverview:
    def radar(self, count: int) -> Panel:
        return chart("overview", variants(count)).panels[0]

    def test_axes_are_as_defined(self):
        drawn = variants(1)
        trace, = self.radar(1).figure["data"]
        found = dict(zip(trace["theta"], trace["r"], strict=True))
        mean = np.mean
        assert {
            "Accuracy": score_of(drawn[0], "accuracy", "accuracy_top1").value,
            "Calibration": 1 - score_of(drawn[0], "calibration", "ece15_ew", dataset="imagenet-val").value,
            "Mistakes": min(1.0, 1 / score_of(drawn[0], "mistakes", "error_ratio_mean").value),
            "Cues": score_of(drawn[0], "shape-bias", "cue_accuracy").value,
            "Other sets": mean([score_of(drawn[0], "robustness", "accuracy_top1", dataset=name).value for name in SETS]),
            "Corruptions": mean([score_of(drawn[0], "robustness", f"accuracy@{name}:{k}").value
                                 for name in CORRUPTIONS for k in range(1, 6)]),
            "Transfer": mean([score_of(drawn[0], "transfer", "probe_accuracy", dataset=f"vtab/{task}/test").value for task in TASKS]),
            "Rendered": mean([score_of(drawn[0], "synthetic", f"accuracy@{name}").value for name in SUBSETS if name != "Scene_Light"]),
            "Invariance": mean([score_of(drawn[0], "invariance", "retention_area", condition=family).value for family in SWEEPS]),
        } == pytest.approx(found, rel=1e-5)
        assert trace["theta"][0] == trace["theta"][-1], "the line closes"

    def test_every_axis_is_defined_below(self):
        one = chart("overview", variants(5))
        assert set(one.panels[0].figure["data"][0]["theta"]) == {note.partition(":")[0] for note in one.notes}

    def test_the_rows_beside_it_hold_the_same_numbers_of_all_variants(self):
        drawn = variants(20)
        radar, rows = chart("overview", drawn).panels
        for trace in radar.figure["data"]:
            assert dict(zip(trace["theta"], trace["r"], strict=True)) == pytest.approx(dots_of(rows, drawn[trace["meta"]]), rel=1e-5)
        assert set(range(20)) == {trace["meta"] for trace in rows.figure["data"]}

    def test_of_many_variants_a_reference_the_best_and_the_worst_are_drawn_and_it_says_so(self):
        drawn = variants(20)
        radar, rows = chart("overview", drawn).panels
        means = {variant.index: np.mean(list(dots_of(rows, variant).values())) for variant in drawn}
        best, worst = max(means, key=means.get), min(means, key=means.get)
        shown = [trace["meta"] for trace in radar.figure["data"]]
        assert {best, worst} <= set(shown)
        assert any(variant.reference and variant.reference.index in shown for variant in drawn)
        assert len(shown) <= 3
        assert f"{len(shown)} of 20 variants" == radar.note
        caption = chart("overview", drawn).caption
        assert all(drawn[place].label in caption for place in shown)
        assert 5 == len(self.radar(5).figure["data"])

    def test_fewer_than_three_axes_are_no_figure(self):
        two = [one for one in everything(1) if one.property in ("accuracy", "shape-bias")]
        assert "Fewer than three properties were evaluated." == chart("overview", of(*two)).absent

    def test_a_mean_over_fewer_sets_than_the_others_have_is_not_drawn(self):
        first, second = runs(5)[:2]
        second = replace(second, evaluations=tuple(one for one in second.evaluations if one.dataset.name != "imagenet-r"))
        trace = chart("overview", report._variants([first, second])).panels[0].figure["data"][1]
        found = dict(zip(trace["theta"], trace["r"], strict=True))
        assert found["Other sets"] is None
        assert found["Corruptions"] is not None

    def test_what_is_better_than_the_axis_allows_is_at_its_end(self):
        found = [one for one in everything(1) if one.property not in ("mistakes", "invariance")]
        found += [evaluation("mistakes", "imagenet-val", [share("error_ratio_mean", 0.8, unit="1")]),
                  evaluation("invariance", "imagenet-val", [share("retention_area", 1.2, unit="1")], condition="scale")]
        trace, = chart("overview", of(*found)).panels[0].figure["data"]
        assert (1.0, 1.0) == tuple(dict(zip(trace["theta"], trace["r"], strict=True))[name] for name in ("Mistakes", "Invariance"))


class TestNamesThatThePropertiesGive:
    """Charts go by the names of scores: those of the real properties must be the ones that are looked for."""

    @staticmethod
    def given(name: str, passes: list[tuple[str, str]], *, classes: int = 6, ids: list[str] | None = None) -> tuple[Variant, ...]:
        """A reference and its sibling, scored by the property on random answers to these passes."""
        draw = np.random.default_rng(5)
        property_ = properties.get(name)
        names = np.array(ids or [f"a/{k:03d}.png" for k in range(60)])
        targets = draw.integers(0, classes, len(names))

        def answers() -> dict[Pass, Predictions]:
            found = {}
            for dataset, condition in passes:
                logits = draw.normal(0, 1, (len(names), classes)).astype(np.float32)
                logits[np.arange(len(names)), targets] += 1.5
                identity = DatasetIdentity(name=dataset, source="s", images=len(names), classes=classes, digest=builders.sha(dataset))
                found[Pass(dataset, condition)] = Predictions(
                    dataset=identity, logits=logits, targets=targets, ids=names, labels=targets[:, None],
                    features=logits if name == "transfer" else None)
            return found

        theirs, mine = answers(), answers()
        reference = builders.run(evaluations=property_.score(theirs, None))
        return report._variants([reference, builders.run("ort-int8", reference=reference, evaluations=property_.score(mine, theirs))])

    def drawn(self, key: str, found: tuple[Variant, ...]) -> dict[str, list[str]]:
        """Titles of the panels with the labels of their rows."""
        return {panel.title: panel.figure["layout"]["yaxis"].get("ticktext", []) for panel in chart(key, found).panels}

    def test_invariance(self):
        levels = [f"{family}:{level}" for family, found in SWEEPS.items() for level in found if level not in ("0", "native")]
        found = self.given("invariance", [("mine", "clean"), *(("mine", level) for level in levels)])
        assert 9 == len(chart("invariance", found).panels)
        lines = [trace for trace in chart("invariance", found).panels[3].figure["data"] if "fill" not in trace]
        assert [0.33, 0.5, 0.7, 0.875, 1.0] == lines[0]["x"]
        assert 100.0 == lines[0]["y"][-1]

    def test_generated_corruptions(self):
        found = self.given("robustness", [("mine", "clean"), *(("mine", f"{name}:{k}") for name in MADE_CORRUPTIONS for k in range(1, 6))])
        panels = chart("corruptions", found).panels
        assert ["FP32 · ONNX Runtime", "INT8 · ONNX Runtime", "INT8 · ONNX Runtime, change"] == [panel.title for panel in panels]
        assert all((15, 5) == np.shape(panel.figure["data"][0]["z"]) for panel in panels)
        mean, = (score for one in found[1].run.evaluations for score in one.scores if score.name == "mean_corruption_accuracy")
        assert f"mean {100 * mean.value:.1f} % · 60 images · chance 16.7 %" == panels[1].note

    def test_other_sets_and_foreign_images(self):
        found = self.given("robustness", [("mine", "clean"), ("imagenet-v2", "clean"), ("imagenet-hard", "clean"), ("ood/noise", "clean")])
        assert {"Top-1 by set": ["imagenet-v2", "imagenet-hard"], "Change against the reference": ["imagenet-v2", "imagenet-hard"]} == \
            self.drawn("natural", found)
        assert {"AUROC of the confidence": ["noise · mine"], "Change against the reference": ["noise · mine"]} == self.drawn("foreign", found)

    def test_transfer(self):
        found = self.given("transfer", [("mine", "clean")])
        assert {f"Probe trained on {whose} features{change}": ["mine"] for whose in ("its own", "the reference's")
                for change in ("", ": change")} == self.drawn("transfer", found)

    def test_rendered_images(self):
        found = self.given("synthetic", [("pug/Worlds", "clean"), ("pug/Scene_Light", "clean")], classes=1000)
        assert {"Top-1 by factor": ["Worlds", "Scene Light"], "Change against the reference": ["Worlds", "Scene Light"]} == \
            self.drawn("synthetic", found)

    def test_shape_bias(self):
        ids = [f"{shape}/{shape}{k}-{texture}1.png" for shape in CATEGORIES for k, texture in enumerate(CATEGORIES[:5])]
        found = self.given("shape-bias", [("cue-conflict", "clean")], classes=1000, ids=ids)
        panels = self.drawn("shape", found)
        assert "all · 12" == panels["Shape bias by category"][0]
        assert {label.partition(" · ")[0] for label in panels["Shape bias by category"]} <= {"all", *CATEGORIES}
        assert ["either cue", "shape", "texture", "no conflict"] == [label.partition(" · ")[0] for label in panels["Decisions"]]
        assert ["shape bias", "either cue", "shape", "texture"] == panels["Change against the reference"]

    def test_calibration_and_mistakes(self):
        assert 2 == len(chart("reliability", self.given("calibration", [("mine", "clean")])).panels)
        mistakes = properties.get("mistakes")
        assert tuple(FACTORS) == mistakes.FACTORS
        names = [f"error_ratio_{name}" for name in FACTORS]
        assert all(property_charts._by_factor("error_ratio_")(None, name) for name in names)
        assert [] == [name for infix in ("change_", "multi_", "real_", "multi_real_") for name in names
                      if property_charts._by_factor("error_ratio_")(None, name.replace("ratio_", f"ratio_{infix}"))]


class TestWording:
    @pytest.mark.parametrize(("name", "expected"), [
        ("accuracy_top1_change", "Top-1 change"), ("accuracy@gaussian_noise:3", "Accuracy: gaussian noise, severity 3"),
        ("accuracy_change@fog:1", "Accuracy change: fog, severity 1"), ("consistency@0.125left", "Consistency: 0.125 left"),
        ("retention@0.7", "Retention: 0.7"), ("accuracy@Camera_Pitch", "Accuracy: Camera Pitch"),
        ("mcnemar_p_holm@fog", "McNemar p, adjusted by Holm: fog"), ("probe_swap_mcnemar_p", "McNemar p, probe swap"),
        ("error_ratio_object_blocking", "Error ratio: object blocking"),
        ("error_ratio_multi_real_pose", "Error ratio, all factors of an image, ReaL labels: pose"),
        ("error_ratio_change_multi_mean", "Error ratio change, all factors of an image: mean of all"),
        ("factor_error_change_partial_view", "Error by factor change: partial view"),
        ("factor_mcnemar_p_holm_pose", "McNemar p by factor, adjusted by Holm: pose"),
        ("shape_bias", "Shape bias"), ("shape_bias_oven", "Shape bias by category: oven"),
        ("shape_bias_by_exemplar", "Shape bias by exemplar"), ("shape_bias_change_by_exemplar", "Shape bias change by exemplar"),
        ("disagreement@margin_decile_3", "Disagreement: margin decile 3"), ("auroc_msp_change", "AUROC by confidence change"),
        ("something_new@level_x", "Something new: level x")])
    def test_titles(self, name, expected):
        assert expected == wording.title(name)

    @pytest.mark.parametrize(("name", "change", "p_value"), [
        ("accuracy_change@fog:1", True, False), ("error_ratio_change_pose", True, False), ("mcnemar_p_holm@fog", False, True),
        ("factor_mcnemar_p_pose", False, True), ("shape_bias", False, False), ("probe_mcnemar_p", False, True)])
    def test_changes_and_p_values_are_known_by_their_names(self, name, change, p_value):
        assert (change, p_value) == (wording.is_change(name), wording.is_p_value(name))

    @pytest.mark.parametrize(("names", "expected"), [([], ""), (["a"], "a"), (["a", "b"], "a and b"), (["a", "b", "c"], "a, b and c")])
    def test_lists(self, names, expected):
        assert expected == wording.listed(names)


def words_of(*made: Run) -> str:
    """The text of a page, without the 5 MB that draw its figures."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("plotly.offline.get_plotlyjs", lambda: "var Plotly = null;")
        return report.html(made)


class TestPage:
    def test_every_figure_stands_in_the_page_and_one_legend_serves_all_of_them(self):
        page = words_of(*runs(5))
        section = page[page.index('<section id="properties"'):page.index('<section id="scores"')]
        assert sum(len(one.panels) for one in charts_of(5)) == section.count('class="plot"')
        assert 5 == section.count("<button")
        assert "hide all" not in section
        assert 22 == words_of(*runs(20)).partition('<section id="properties"')[2].partition("<figure")[0].count("<button")

    def test_a_single_variant_needs_no_legend(self):
        page = words_of(*runs(1))
        assert "<button" not in page[page.index('<section id="properties"'):page.index('<section id="scores"')]

    def test_definitions_of_the_axes_stand_below_the_figure(self):
        assert "<li>Cues: share of the cue-conflict images decided for their shape or their texture.</li>" in words_of(*runs(5))

    def test_the_same_runs_give_the_same_page(self):
        assert words_of(*runs(5)) == words_of(*runs(5))

    def test_twenty_variants_make_a_page_that_is_smaller_than_what_draws_it(self):
        assert len(words_of(*runs(20))) < 2_500_000

    def test_wide_maps_scroll_instead_of_being_squeezed(self):
        page = words_of(*runs(20))
        assert "min-width:432px" in page
        assert "min-width" not in words_of(*runs(3)).partition("</style>")[2]


class TestScoreTables:
    def groups(self, count: int) -> dict[str, score_tables.ScoreGroup]:
        return {group.title: group for group in score_tables.score_groups(variants(count))}

    def test_what_the_headline_is_from_is_open_and_all_else_is_folded(self):
        assert ["Speed and size", "Accuracy on imagenet-val", "Accuracy on imagenet-val, against the reference",
                "Calibration on imagenet-val"] == [title for title, group in self.groups(5).items() if group.shown]
        page = words_of(*runs(5))
        assert 4 == page.count('<details class="group" open>')
        assert len(self.groups(5)) - 4 == page.count('<details class="group">')
        assert '<details class="levels" open>' not in page

    def test_what_is_against_the_reference_stands_behind_its_property(self):
        titles = list(self.groups(5))
        place = titles.index("Mistakes on imagenet-val")
        assert "Mistakes on imagenet-val, against the reference" == titles[place + 1]

    def test_many_levels_of_a_metric_are_a_table_of_their_own(self):
        group = self.groups(20)["Robustness on imagenet-c, corrupted"]
        (metric, rows), = group.families
        assert ("Accuracy", 75, 75, ()) == (metric, len(rows), group.count, group.rows)
        assert "gaussian noise, severity 1" == rows[0].level
        assert 20 == len(rows[0].cells)
        against = self.groups(20)["Robustness on imagenet-c, corrupted, against the reference"]
        assert ["Accuracy change", "McNemar p"] == [metric for metric, _ in against.families]

    def test_a_family_of_data_sets_shares_a_table(self):
        group = self.groups(5)["Transfer on vtab, linear probe"]
        (metric, rows), = group.families
        assert ("Probe accuracy", len(TASKS)) == (metric, len(rows))
        assert "caltech101/test" == rows[0].level
        rendered = self.groups(5)["Synthetic on pug"].families
        assert [("Accuracy", list(SUBSETS))] == [(metric, [row.name.partition("@")[2] for row in rows]) for metric, rows in rendered]
        assert "Camera Pitch" == rendered[0][1][1].level

    def test_few_levels_stay_among_the_other_scores(self):
        group, = (one for one in score_tables.score_groups(of(evaluation("robustness", "mine", [
            share("accuracy@fog:1", 0.5), share("accuracy@fog:2", 0.5)]))) if "Robustness" in one.title)
        assert ((), ["Accuracy: fog, severity 1", "Accuracy: fog, severity 2"]) == (group.families, [row.title for row in group.rows])

    def test_every_score_of_every_variant_has_its_cell(self):
        for variant in variants(5):
            expected = sum(len(one.scores) + len(one.reference_scores) for one in variant.run.evaluations)
            cells = 0
            for title, group in self.groups(5).items():
                if title != "Speed and size" and variant in group.variants:
                    place = group.variants.index(variant)
                    rows = [*group.rows, *(row for _, rows in group.families for row in rows)]
                    cells += sum(bool(row.cells[place].text) for row in rows)
            assert expected == cells

    @pytest.mark.parametrize(("score", "expected"), [
        ({"name": "accuracy_change@fog:3", "value": -0.012, "low": -0.02, "high": -0.004}, ("−1.2 points", "−2.0 to −0.4")),
        ({"name": "mcnemar_p_holm@fog", "value": 0.00004, "unit": "1"}, ("< 0.001", "")),
        ({"name": "factor_mcnemar_p_pose", "value": 0.25, "unit": "1"}, ("0.250", ""))])
    def test_changes_and_p_values_at_levels_are_written_as_without(self, score, expected):
        cell = score_tables.cell(Score(**{"unit": "fraction", "better": None, "n": 1, "method": "m", **score}))
        assert expected == (cell.text, cell.detail)

    def test_methods_stand_by_property_and_name_each_metric_once(self):
        found = dict(score_tables.methods([variant.run for variant in variants(5)]))
        assert ["Speed and size", "Accuracy", "Calibration", "Mistakes", "Shape-bias", "Robustness", "Transfer", "Synthetic",
                "Invariance"] == list(found)
        assert [("Accuracy, Accuracy change", "made up")] == found["Synthetic"]


class TestNotes:
    def test_the_headline_is_of_accuracy_whatever_else_has_scores_of_its_names(self):
        robust = [one for one in everything(1) if one.property == "robustness"]
        table = report.table([builders.run(latency_s=None, evaluations=tuple(robust))])
        assert "–¹" == table.rows[0][1]
        assert {} == {name: one for name, one in report.summary([builders.run(latency_s=None, evaluations=tuple(robust))])[
            "variants"][0]["scores"].items() if "accuracy" in name}

    def test_other_images_are_named_in_one_note(self):
        notes = report.table(runs(5)).notes
        assert "Accuracy, calibration, mistakes, robustness: imagenet-val, 1,000 images." in notes
        assert ("Further images: shape-bias on cue-conflict; robustness on imagenet-v2, imagenet-a, imagenet-r, "
                "imagenet-sketch, imagenet-hard, imagenet-c, ood (2); transfer on vtab (10); synthetic on pug (10); "
                "invariance on imagenet-val.") in notes

    def test_a_summary_over_a_family_is_not_counted_as_a_set_of_it(self):
        parts = [evaluation("transfer", name, [share("vtab_mean" if name == "vtab" else "probe_accuracy", 0.5)])
                 for name in ("vtab/dtd", "vtab/svhn", "vtab")]
        foreign = evaluation("robustness", "ood/places", [share("auroc_msp", 0.9)], condition="ood:mine")
        notes = report.table([builders.run(latency_s=None, evaluations=(*parts, foreign))]).notes
        assert "Further images: transfer on vtab (2); robustness on ood/places." in notes

    def test_variants_that_saw_other_images_of_a_set_are_noted(self):
        first, second = runs(5)[:2]
        other = replace(second.evaluations[4], dataset=replace(second.evaluations[4].dataset, digest="e" * 64))
        assert "shape-bias" == other.property
        second = replace(second, evaluations=(*second.evaluations[:4], other, *second.evaluations[5:]))
        assert "Not all variants saw the same images of cue-conflict." in report.table([first, second]).notes
        assert not [note for note in report.table(runs(5)).notes if note.startswith("Not all")]
