"""The report's timing section: timelines over telemetry, minutes, tables of the scenarios, layers; words and geometry."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
from plotly.graph_objects import Figure

from edgebench import report, timing_charts, timing_tables, wording
from edgebench.observed import MemoryTaken, Steadiness
from edgebench.record import Run
from edgebench.telemetry.types import PowerTrace, Residency, ThermalTrace, ThrottleEvent
from edgebench.timing_types import LayerTime
from tests import builders
from tests import observations as ob
from tests.test_report import Page

LATENCY_S = tuple(0.010 + 0.00001 * (k % 7) for k in range(400))


@pytest.fixture(autouse=True)
def _short_plotly(monkeypatch):
    monkeypatch.setattr("plotly.offline.get_plotlyjs", lambda: "var Plotly = null;")


def variants(*runs: Run):
    return report._variants(runs)


def panel(*runs: Run, index: int = 0):
    return timing_charts.timeline(variants(*runs)).panels[index]


def strip_lines(found, axis: str) -> list[dict]:
    return [trace for trace in found.figure["data"] if trace.get("yaxis") == axis]


def run(recipe: str = "ort-fp32", **parts) -> Run:
    return ob.watched(builders.run(recipe, latency_s=LATENCY_S), **parts)


def table(title: str, *runs: Run, paired=()) -> timing_tables.TextTable:
    return next(one for one in timing_tables.timing_tables(variants(*runs), paired) if one.title == title)


def words(found: timing_tables.TextTable) -> list[list[str]]:
    return [[variant.label, *(f"{cell.text} {cell.detail}".strip() for cell in cells)] for variant, cells in found.rows]


class TestTimeline:
    def test_telemetry_stands_on_the_timings_clock_below_them(self):
        found = panel(run(telemetry=ob.telemetry(4.0)))
        layout = found.figure["layout"]
        tops = [layout[axis]["domain"] for axis in ("yaxis", "yaxis2", "yaxis3", "yaxis4")]
        assert all(lower[1] <= upper[0] for upper, lower in itertools.pairwise(tops)), "the plots do not overlap"
        assert ["ms", "°C", "GHz", "W"] == [layout[axis]["title"]["text"].partition(",")[0] for axis in ("yaxis", "yaxis2", "yaxis3", "yaxis4")]
        power, = strip_lines(found, "y4")
        # Readings come every half second; the warm-up lasted 0.07 s, the timings 4.01 s.
        assert [0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0] == power["x"]
        assert [pytest.approx(9.0 + 0.5 * np.sin(one), abs=1e-4) for one in power["x"]] == power["y"]

    def test_the_highest_sensors_are_drawn_and_the_others_counted(self):
        found = panel(run(telemetry=ob.telemetry(4.0)))
        assert 3 == len(strip_lines(found, "y2"))
        heads = [note["text"] for note in found.figure["layout"]["annotations"]]
        assert heads[0].startswith("Temperature, highest 3 of 4: — tj-thermal")
        assert "soc0" not in heads[0]
        assert heads[2] == "Power, board: — VDD_IN 8.6–9.5"

    def test_an_energy_counter_is_drawn_as_the_power_it_grows_by(self):
        line, = strip_lines(panel(run(telemetry=ob.telemetry(4.0, counter=True))), "y4")
        assert {7.0} == {round(value, 6) for value in line["y"]}
        assert 0.25 == line["x"][0], "between two readings"

    def test_a_counter_that_was_set_back_leaves_a_gap_and_no_negative_power(self):
        series = ob.series("rapl/packages", "energy_j", [0.0, 1.0, 2.0, 3.0], [10.0, 20.0, 5.0, 15.0])
        telemetry = replace(ob.telemetry(4.0), power=PowerTrace(series=(series,), total="rapl/packages"))
        line, = strip_lines(panel(run(telemetry=telemetry)), "y4")
        assert ([0.5, 2.5], [10.0, 10.0]) == (line["x"], line["y"])

    def test_throttling_is_shaded_from_its_first_to_its_last_reading(self):
        found = panel(run(telemetry=ob.telemetry(4.0, throttled=(1.0, 2.0))))
        shades = [shape for shape in found.figure["layout"]["shapes"] if shape["type"] == "rect"]
        assert [(1.0, 2.0)] == [(shape["x0"], shape["x1"]) for shape in shades], "idle, bit 0x1, is no throttling"

    def test_changes_of_level_stand_where_their_first_timing_began(self):
        verdict = replace(ob.STEADY, verdict="unstable", change_points=(100,))
        found = panel(run(verdict=verdict))
        upright, = [shape for shape in found.figure["layout"]["shapes"] if shape.get("yref") == "y domain"]
        assert pytest.approx(sum(LATENCY_S[:100])) == upright["x0"] == upright["x1"]

    def test_percentiles_run_across_where_the_table_has_them(self):
        found = panel(run())
        across = {shape["line"]["dash"]: shape["y0"] for shape in found.figure["layout"]["shapes"] if shape.get("yref") == "y"}
        ordered = sorted(LATENCY_S)
        assert {dash: pytest.approx(1e3 * ordered[rank - 1]) for dash, rank in (("solid", 200), ("dash", 360), ("dot", 396))} == across

    def test_timings_whose_beginning_is_unknown_have_no_telemetry_below(self):
        found = panel(run(begins=False, telemetry=ob.telemetry(4.0)))
        assert "yaxis2" not in found.figure["layout"]

    def test_a_recording_that_saw_nothing_leaves_the_timeline_alone(self):
        empty = replace(ob.telemetry(4.0), power=PowerTrace(), thermal=ThermalTrace(), clocks=replace(ob.telemetry(4.0).clocks, series=()))
        assert "yaxis2" not in panel(run(telemetry=empty)).figure["layout"]

    def test_long_recordings_are_thinned_and_keep_their_extremes(self):
        seconds = [float(one) for one in np.linspace(0.0, 4.0, 5000)]
        values = [50.0] * 5000
        values[1234] = 99.0
        thermal = ThermalTrace(series=(ob.series("thermal/cpu", "temperature_c", seconds, values),))
        line, *_ = strip_lines(panel(run(telemetry=replace(ob.telemetry(4.0), thermal=thermal))), "y2")
        assert len(line["x"]) <= timing_charts.STRIP_POINTS
        assert 99.0 == max(line["y"])

    def test_what_is_drawn_is_said_to_those_who_do_not_see_it(self):
        assert "Power, board: VDD_IN 8.6–9.5." in panel(run(telemetry=ob.telemetry(4.0))).alt

    def test_every_figure_is_one_that_plotly_knows(self):
        page = Page(report.html([ob.everything(builders.run(latency_s=LATENCY_S), slow=True), builders.run("ort-int8", latency_s=LATENCY_S)]))
        for figure in page.figures:
            Figure(figure)


    @pytest.mark.parametrize(("name", "quantity", "values", "expected"), [
        ("nvml/0/throttle-reasons", "flags", (0x1, 0x4, 0x1), [(1.0, 2.0)]), ("nvml/0/throttle-reasons", "flags", (0x3, 0x110, 0x20), [(2.0, 3.0)]),
        ("pi/throttled", "flags", (0x50000, 0x50000, 0x50004), [(2.0, 3.0)]), ("limit/cpu/policy0", "level", (0, 3e8, 3e8), [(1.0, 3.0)])])
    def test_what_is_shaded_as_throttling(self, name, quantity, values, expected):
        one = replace(ob.series(name, quantity, [0.0, 1.0, 2.0], list(values)), interval_s=1.0)
        assert expected == timing_charts.throttled([one], ob.BEGIN_NS, (0.0, 10.0))


class TestMinutes:
    def test_each_minute_has_its_percentiles_and_throttling_is_shaded_to_the_end(self):
        chart = timing_charts.minutes(variants(run(sustained=ob.minutes(4, 0.01, 0.05), telemetry=ob.telemetry(4.0))))
        found, = chart.panels
        assert [[10.0, 10.5, 11.0, 11.5]] == [trace["y"] for trace in found.figure["data"][:1]]
        assert [0.5, 1.5, 2.5, 3.5] == found.figure["data"][0]["x"]
        shade, = found.figure["layout"]["shapes"]
        assert (2.0, 4.0) == (shade["x0"], shade["x1"])

    def test_without_a_sustained_run_it_says_so(self):
        assert "No run here was under sustained load." == timing_charts.minutes(variants(run())).absent


class TestVerdicts:
    def test_all_tries_are_told_with_what_to_do(self):
        first = replace(ob.STEADY, verdict="unstable", diagnosis="latency rose by 9 %", hint="wait")
        last = replace(first, diagnosis="two levels", hint="stop other load")
        watched = run()
        watched = replace(watched, observed=replace(watched.observed, steadiness=(
            Steadiness(scenario="single-stream", verdicts=(first, last)),)))
        found, = timing_tables.variant_timings(variants(watched))
        assert (("single-stream", "unstable after 2 tries: two levels. Before that: latency rose by 9 %.", "stop other load"),) == found.verdicts
        assert (True, "p50 10.0 ms, unstable") == (found.unsteady, found.summary)

    def test_throttling_and_what_was_not_observed_are_told_in_words(self):
        page = Page(report.html([ob.everything(builders.run(latency_s=LATENCY_S), slow=True)]))
        for text in ("Throttling: NVML: power cap in 12 of 80 readings.", "Not observed: external meter: none was named.",
                     "Single-stream: unstable: the level changed by 7 % after half of the timings. Cool the device.",
                     "Server, rates tried: 20/s holds (0 of 662 late);", "Room at 22.5 °C, as given."):
            assert text in page.words

    def test_throttling_under_sustained_load_is_told_as_such(self):
        event = ThrottleEvent(code="cpu-thermal", message="core 0 was throttled 2 times", invalidates=False)
        watched = run(sustained=replace(ob.minutes(5, 0.01, 0.04), events=(event,)))
        found, = timing_tables.variant_timings(variants(watched))
        assert ["Under sustained load: the median rose from 10 ms to 12 ms after 120 s and stayed up",
                "Under sustained load: core 0 was throttled 2 times"] == [one for one in found.notes if "sustained" in one]
        assert not found.unsteady

    def test_shared_memory_is_told_to_overlap(self):
        taken = MemoryTaken(available_bytes=412_000_000, contiguous_bytes=80_000_000)
        found, = timing_tables.variant_timings(variants(run(shared_memory=taken)))
        note, = (one for one in found.notes if "share" in one)
        assert note.startswith("Opening took 412 MB of the memory that CPU and GPU share, 80 MB of it in one piece (CMA); figures")
        assert note.endswith("of host and device overlap with this one")

    def test_a_missing_total_power_says_why(self):
        telemetry = replace(ob.telemetry(4.0), power=PowerTrace(total=None, total_reason="only root may read it"))
        found, = timing_tables.variant_timings(variants(run(telemetry=telemetry)))
        assert "No total power: only root may read it" in found.notes

    def test_few_variants_are_open_and_many_are_folded(self):
        runs = [builders.run(recipe, latency_s=LATENCY_S) for recipe in ("ort-fp32", "ort-int8", "openvino-fp32", "openvino-int8")]

        def opened(page: Page) -> list[bool]:
            return ["open" in attributes for tag, attributes in page.tags if tag == "details" and attributes.get("class") == "variant"]

        assert [True] * 3 == opened(Page(report.html(runs[:3])))
        assert [False] * 4 == opened(Page(report.html(runs)))

    def test_hostile_sensors_and_layers_stay_text(self):
        name = "<img src=x onerror=alert(1)>"
        thermal = ThermalTrace(series=(ob.series(name, "temperature_c", [0.0, 1.0], [1.0, 2.0]),))
        hostile = run(telemetry=replace(ob.telemetry(4.0), thermal=thermal))
        hostile = replace(hostile, precision=replace(hostile.precision, profile=ob.profile({name: (name, name, 1.0)})))
        page = Page(report.html([hostile]))
        assert "img" not in {tag for tag, _ in page.tags}
        assert "<img" not in json.dumps(page.figures)


class TestTables:
    def test_turns_name_both_sides_ratio_interval_and_verdict(self):
        fp32, int8 = run(), run("ort-int8")
        found = table("Timed in turns", fp32, int8, paired=[ob.turns(fp32, int8, 0.303, 0.301, 0.306)])
        assert [["INT8 · ONNX Runtime", "FP32 · ONNX Runtime", "0.303 0.301–0.306", "0.002", "20", "10", "faster"]] == words(found)

    @pytest.mark.parametrize(("low", "high", "told"), [(0.98, 1.04, "not told apart"), (None, None, "not told apart"),
                                                       (1.01, 1.05, "slower")])
    def test_only_an_interval_without_1_tells_apart(self, low, high, told):
        fp32, int8 = run(), run("ort-int8")
        assert told == words(table("Timed in turns", fp32, int8, paired=[ob.turns(fp32, int8, 1.02, low, high)]))[0][-1]

    def test_turns_of_another_artifact_of_that_name_are_left_out(self):
        fp32, int8 = run(), run("ort-int8")
        stale = ob.turns(fp32, int8, 0.3, 0.29, 0.31)
        stale = replace(stale, digests={**stale.digests, int8.variant: "another"})
        assert [] == timing_tables.timing_tables(variants(fp32, int8), [stale])

    def test_a_camera_tells_misses_and_the_age_of_its_information(self):
        camera = ob.query("camera", [0.01] * 4, rate_hz=30.0, limit_s=1 / 30, policy="newest", dropped_s=(0.05,))
        row, = words(table("Camera", run(queries=(camera,))))
        assert ["FP32 · ONNX Runtime", "30/s newest first", "33.33 ms", "1 of 5"] == [*row[:3], row[4]]
        assert row[3].startswith("20 %")
        # Results come every 11 ms, each 10 ms old: the age grows from 10 to 21 ms.
        assert ("15.5 ms", "21.0 ms") == (row[8].split(" no ")[0], row[9].split(" an ")[0])

    def test_a_server_that_held_no_rate_says_why(self):
        watched = ob.everything(builders.run(latency_s=LATENCY_S))
        search = replace(watched.observed.server, rate_hz=None, reason="even one query is late")
        row, = words(table("Server", replace(watched, observed=replace(watched.observed, server=search))))
        assert ["– even one query is late", "100 ms at 99 %"] == row[1:3]

    def test_energy_has_its_scope(self):
        row, = words(table("Energy per inference", ob.everything(builders.run(latency_s=LATENCY_S))))
        assert ["91.0 mJ 87.0–95.0", "52 mJ 46–58", "4.10 W", "board"] == row[1:]

    def test_unknown_energy_says_why(self):
        watched = ob.everything(builders.run(latency_s=LATENCY_S))
        unknown = replace(watched.observed.energy, gross_j=None, net_j=None, gross_uncertainty_j=None, net_uncertainty_j=None,
                          idle_w=None, scope=None, reason="only root may read it")
        rerun = run(energy=unknown)
        found = table("Energy per inference", rerun)
        assert ["–", "–", "–", "–"] == words(found)[0][1:]
        assert "Unknown (–): only root may read it." in found.note

    def test_where_the_cpus_time_went_has_a_row_per_cluster(self):
        residency = (Residency(policy="policy0", shares={"729600": 0.25, "1510400": 0.75}, top_share=0.75, mean_hz=1.3152e9),
                     Residency(policy="policy4", shares={"115200": 1.0}, top_share=0.0, mean_hz=115.2e6))
        rows = words(table("CPU clocks", run(residency=residency)))
        assert [["policy0", "1.32 GHz", "75.0 %", "1.51 GHz 75 %, 0.73 GHz 25 %"],
                ["policy4", "0.12 GHz", "0.0 %", "0.12 GHz 100 %"]] == [row[1:] for row in rows]

    def test_variants_that_change_places_under_load_are_named(self):
        fp32 = run(sustained=ob.minutes(3, 0.010, 0.0))
        int8 = run("ort-int8", sustained=ob.minutes(3, 0.009, 0.2))
        assert "The order turned between the first and the last minute: FP32 · ONNX Runtime and INT8 · ONNX Runtime." == table(
            "Sustained load", fp32, int8).note

    def test_what_nobody_measured_has_no_table(self):
        assert [] == timing_tables.timing_tables(variants(builders.run(latency_s=LATENCY_S)))

    @pytest.mark.parametrize(("name", "expected"), [
        ("server_rate", "Highest arrival rate"), ("camera_latency_p99", "Camera latency p99"),
        ("energy_per_inference_net", "Energy per inference above idle"), ("device_compute_p50", "Computing on the device p50"),
        ("build_latency_spread", "Latency spread of builds"), ("multi_stream_throughput", "Multi-stream throughput")])
    def test_scores_of_the_instrument_have_titles(self, name, expected):
        assert expected == wording.title(name)


FLOAT = {f"conv{k}": ("Conv", "fp32", 0.001 * (k + 1)) for k in range(20)} | {"softmax": ("Softmax", "fp32", 0.0001)}
INTEGER = {f"conv{k}": ("QLinearConv", "int8", 0.0003 * (k + 1)) for k in range(20)}


class TestLayers:
    def runs(self) -> tuple[Run, Run]:
        fp32 = builders.run(latency_s=LATENCY_S)
        int8 = builders.run("ort-int8", latency_s=LATENCY_S, reference=fp32)
        return tuple(replace(one, precision=replace(one.precision, profile=ob.profile(rows)))
                     for one, rows in ((fp32, FLOAT), (int8, INTEGER)))

    def test_the_slowest_come_first_and_the_rest_is_summed_up(self):
        found = timing_tables.layers(variants(*self.runs())[0])
        assert 16 == len(found.rows)
        assert (("conv19", "Conv", "fp32", "20.0"), ("6 more", "", "", "15.1")) == tuple(
            (row.name, row.type, row.precision, row.time) for row in (found.rows[0], found.rows[-1]))
        total = 210.0 + 0.1
        assert ("210", f"{100 * 20 / total:.1f}") == (found.total, found.rows[0].share)
        assert (100.0, pytest.approx(75.5)) == (found.rows[0].width, found.rows[-1].width)

    def test_bars_have_the_colour_of_their_precision(self):
        fp32, int8 = (timing_tables.layers(one) for one in variants(*self.runs()))
        assert ({"#8c8c8c"}, {"#d55e00"}) == ({row.colour for row in fp32.rows[:-1]}, {row.colour for row in int8.rows[:-1]})
        assert (("int8", "#d55e00", "100.0"),) == int8.precisions

    def test_types_are_set_against_the_references(self):
        found = timing_tables.layers(variants(*self.runs())[1])
        assert [("Conv", "210.0", "–", "−210.0", "fp32"), ("QLinearConv", "–", "63.0", "+63.0", "int8"),
                ("Softmax", "0.1", "–", "−0.1", "fp32")] == [
            (row.type, row.before, row.after, row.change, row.precision) for row in found.changes]
        assert "FP32 · ONNX Runtime" == found.against

    def test_a_reference_without_a_profile_is_told(self):
        fp32, int8 = self.runs()
        found = timing_tables.layers(variants(replace(fp32, precision=replace(fp32.precision, profile=())), int8)[1])
        assert ("FP32 · ONNX Runtime has no profile of its layers", ()) == (found.against, found.changes)

    def test_without_times_of_layers_the_page_says_why(self):
        assert "The runtime told no times of layers: per-layer profile of the runtime." in Page(
            report.html([builders.run(latency_s=LATENCY_S)])).words

    def test_a_profile_of_nought_divides_by_nothing(self):
        bare = builders.run(latency_s=LATENCY_S)
        nought = (LayerTime(name="a", type="Conv", precision="fp32", time_s=0.0, share=0.0),)
        found = timing_tables.layers(variants(replace(bare, precision=replace(bare.precision, profile=nought)))[0])
        assert ("0.0", 0.0) == (found.rows[0].share, found.rows[0].width)
