"""What a machine can do at best: measured here for real, kept by device, CPU and threads, drawn with each variant under it."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import jsonschema
import numpy as np
import pytest
from plotly.graph_objects import Figure

from edgebench import (
    backends,
    builder,
    catalog,
    ceilings,
    environment,
    report,
    roofline,
    roofline_charts,
    timing_tables,
)
from edgebench.backends.cuda import CudaError, Gpu
from edgebench.backends.engine_builder import Library, build_plan
from edgebench.device import Peak
from edgebench.errors import CannotMeasure, InvalidInput
from edgebench.record import Run, dump, load, run_schema, to_builtins
from edgebench.timing_types import Ceiling, Ceilings, GraphWork
from tests import builders, networks
from tests import observations as ob
from tests.commands import cli
from tests.gpu import gpu
from tests.test_report import Page
from tests.test_tensorrt import fake as fake_backend
from tests.test_tensorrt import needs_rtx

CPU = environment.observe({}).cpu
# At 10 ms: 200 Gop/s of work at 20 operations per byte.
WORK = GraphWork(flops=2_000_000_000, bytes_moved=100_000_000, images=1)


@pytest.fixture(autouse=True)
def _short_plotly(monkeypatch):
    monkeypatch.setattr("plotly.offline.get_plotlyjs", lambda: "var Plotly = null;")


def small(device=None, **more) -> Ceilings:
    return ceilings.measure(device or catalog.device("cpu"), **{"size": 64, "copy_bytes": 2**20, "repeats": 2, "min_s": 0.0, **more})


def roof(precision="fp32", flops=400e9, **more) -> Ceiling:
    return Ceiling(**{"precision": precision, "sparsity": "dense", "flops_per_s": flops, "bytes_per_s": 25e9, "method": "test",
                      "repeats": 9, **more})


def machine(*roofs: Ceiling, cpu="AMD Ryzen Embedded V3C18I", threads=4, **more) -> Ceilings:
    return Ceilings(**{"schema": ceilings.SCHEMA, "device": "cpu", "cpu": cpu, "threads": threads, "conditions": {}, "ceilings": roofs,
                       "measured_at": "2026-03-01T10:00:00+00:00", "absent": {"bf16": "no kernels"}, **more})


def run(recipe="ort-fp32", seen: Ceilings | None = None, work: GraphWork | None = WORK, seconds=0.010, **more) -> Run:
    made = ob.watched(builders.run(recipe, latency_s=(seconds,) * 50), ceilings=seen)
    return replace(made, artifact=replace(made.artifact, work=work), **more)


def variant(*arguments, **more):
    return report._variants([run(*arguments, **more)])[0]


class TestMeasuring:
    def test_this_machine_has_a_dense_ceiling_in_fp32_and_int8_through_its_own_runtimes(self):
        told = []
        found = small(told=lambda what, share: told.append(what))
        by_precision = {one.precision: one for one in found.ceilings}
        assert {"fp32", "int8"} <= set(by_precision)
        for one in by_precision.values():
            assert ("dense", True) == (one.sparsity, 1e6 < one.flops_per_s < 1e15)
            assert 1e6 < one.bytes_per_s < 1e13
        assert "int8 by onnxruntime" in " ".join(told)
        assert any(name in by_precision["int8"].method for name in ("onnxruntime", "openvino")), "NumPy has no INT8 product"

    def test_date_and_conditions_stand_beside(self):
        found = small(threads=1, power_mode="MAXN")
        assert (1, CPU, "MAXN") == (found.threads, found.cpu, found.conditions["power mode"])
        assert {"CPUs busy before", "governor", "host", "copies"} <= set(found.conditions)
        assert "2026" <= found.measured_at[:4]

    def test_what_no_kernel_runs_has_a_reason_and_no_ceiling(self):
        found = small()
        measured = {one.precision for one in found.ceilings}
        assert measured.isdisjoint(found.absent)
        assert {"fp32", "fp16", "bf16", "int8"} <= measured | set(found.absent), "each precision is measured or explained"

    def test_datasheet_peaks_stand_beside_dense_and_sparse_apart(self):
        peak = Peak(precision="fp32", engine="cpu", dense=1e12, sparse=2e12, mark="recalled", source="memory")
        found = small(replace(catalog.device("cpu"), peaks=(peak,), memory_bandwidth_bytes_per_s=51.2e9))
        dense, = [one for one in found.ceilings if (one.precision, one.sparsity) == ("fp32", "dense")]
        sparse, = [one for one in found.ceilings if one.sparsity == "structured"]
        assert (1e12, "recalled", 51.2e9) == (dense.datasheet_flops_per_s, dense.datasheet_mark, dense.datasheet_bytes_per_s)
        assert (2e12, None, "fp32") == (sparse.datasheet_flops_per_s, sparse.flops_per_s, sparse.precision)
        assert dense == found.of("fp32"), "the sparse one is never taken for it"

    @pytest.mark.parametrize(("busy", "expected"), [("0.10", False), ("1.20", True), ("unknown", False)])
    def test_other_load_is_told(self, busy, expected):
        assert expected is ceilings.disturbed(machine(roof(), conditions={"CPUs busy before": busy}))


class TestGpus:
    T4 = Gpu(name="Tesla T4", compute_capability=(7, 5), memory_bytes=16 * 10**9, driver="13.0", runtime="13.0")

    @pytest.fixture
    def backend(self, monkeypatch, cache_folder):
        """TensorRT and CUDA without a GPU; each operation takes a millisecond of the device's time."""
        made = fake_backend(gpu=self.T4)
        monkeypatch.setattr(backends, "get", lambda name: made)
        monkeypatch.setattr(backends, "installed", lambda name: name == "tensorrt")
        made.prepared = []
        monkeypatch.setattr(builder, "prepare", lambda jobs, scratch: made.prepared.extend(one.recipe.precision for one in jobs))
        return made

    def measured(self, backend, **more) -> Ceilings:
        return ceilings.measure(catalog.device("t4"), **{"size": 16, "copy_bytes": 2**16, "repeats": 2, "min_s": 0.0,
                                                         "cuda": lambda: backend.cuda, **more})

    def test_products_and_copies_are_timed_by_the_devices_events(self, backend):
        found = self.measured(backend)
        dense = {one.precision: one for one in found.ceilings if one.sparsity == "dense"}
        assert {"fp32", "fp16", "int8"} == set(dense)
        for one in dense.values():
            assert (ceilings.CHAIN * 2 * 16**3 / 0.001, 2 * 2**16 / 0.001) == pytest.approx((one.flops_per_s, one.bytes_per_s))
            assert "8 products of 16 x 16 matrices in a row, by the device's own events, tensorrt 10.16.2" == one.method
        assert (catalog.device("t4").peak("int8").dense, 320e9) == (dense["int8"].datasheet_flops_per_s, dense["int8"].datasheet_bytes_per_s)
        assert {} == backend.cuda.held, "memory, streams and events are given back"
        assert ["fp16", "fp32", "int8"] == sorted(backend.prepared), "engines are built by a process of their own"

    def test_what_this_gpu_lacks_has_its_reason(self, backend):
        found = self.measured(backend)
        assert {"bf16", "fp8"} == set(found.absent)
        assert "needs compute capability 8.0 or higher, Tesla T4 has 7.5" in found.absent["bf16"]

    def test_they_are_of_the_gpu_and_found_for_any_number_of_threads(self, backend):
        found = self.measured(backend, power_mode=None)
        assert (0, "Tesla T4", "Tesla T4") == (found.threads, found.where, found.conditions["GPU"])
        assert not ceilings.disturbed(found), "what CPUs do takes nothing from a GPU"
        ceilings.save(found)
        assert found == ceilings.kept("t4", found.cpu, 7)

    def test_no_memory_is_an_error_that_leaves_nothing(self, backend):
        backend.cuda.fail[("malloc", 1)] = "cudaErrorMemoryAllocation"
        with pytest.raises(CannotMeasure, match="cudaErrorMemoryAllocation"):
            self.measured(backend)
        assert {} == backend.cuda.held

    def test_a_precision_that_does_not_fit_is_absent_and_the_others_go_on(self, backend):
        backend.cuda.fail[("host_alloc", 0)] = "cudaErrorMemoryAllocation"
        found = self.measured(backend)
        assert ["cudaErrorMemoryAllocation" in reason for reason in found.absent.values()].count(True) == 1
        assert 2 == len([one for one in found.ceilings if one.sparsity == "dense"])

    def test_an_error_of_the_device_keeps_what_was_measured_before(self, backend):
        # The first product is measured; from then on nothing works, not even giving back.
        def lost(*_):
            raise CudaError("cudaErrorIllegalAddress", "lost", "cudaEventElapsedTime")

        def told(what, share):
            if share > 0:
                backend.cuda.elapsed_s = backend.cuda.free = lost

        found = self.measured(backend, told=told)
        assert 1 == len([one for one in found.ceilings if one.sparsity == "dense"])
        assert "cudaErrorIllegalAddress" in "".join(found.absent.values())

    def test_without_a_gpu_it_is_one_line(self, backend):
        backend.cuda.device = None
        with pytest.raises(CannotMeasure, match="no CUDA-capable device") as caught:
            self.measured(backend)
        assert caught.value.hint

    def test_a_variant_is_placed_by_what_the_gpu_itself_took(self):
        seen = machine(roof(), threads=0, conditions={"GPU": "Tesla T4"})
        one = run(seen=seen)
        computing = replace(one.score("latency_p50"), name="device_compute_p50", value=0.002, low=None, high=None, reason="x")
        timed = replace(one, performance=(*one.performance, computing))
        (untold,), (told,) = report._variants([one]), report._variants([timed])
        assert WORK.flops / 0.002 == pytest.approx(roofline_charts.placed(told).point.flops_per_s)
        # Such as a reference on the CPU.
        assert roofline_charts.placed(untold).point is None
        assert "tells no time of the GPU's own" in roofline_charts.placed(untold).reason

    @gpu
    def test_a_real_gpu_has_them(self):
        found = ceilings.measure(catalog.device("h100-sxm"), size=1024, repeats=3, min_s=0.0)
        assert {"fp32", "fp16", "bf16", "int8"} <= {one.precision for one in found.ceilings}, found.absent


class TestProducts:
    RECIPES = ("rtx-fp32", "rtx-fp16", "rtx-bf16", "rtx-int8", "rtx-fp8")

    @pytest.mark.parametrize("name", ["rtx-fp32", "rtx-fp16", "rtx-int8"])
    def test_a_chain_is_so_many_products_and_keeps_its_spread(self, tmp_path, name):
        import onnxruntime

        recipe, size, count = catalog.recipe(name), 64, 5
        assert count * 2 * size**3 == ceilings.write_products(tmp_path / "m.onnx", recipe, size, count)
        weights = np.random.default_rng(0).standard_normal((size, size), np.float32) / np.float32(8.0)
        values = np.random.default_rng(1).standard_normal((size, size), np.float32)
        expected = values @ np.linalg.matrix_power(weights, count)
        found, = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"]).run(["y"], {"x": values})
        assert np.abs(found - expected).std() < {"rtx-fp32": 1e-4, "rtx-fp16": 0.01, "rtx-int8": 0.2}[name] * expected.std()
        assert 0.4 < expected.std() < 2.5

    @needs_rtx
    @pytest.mark.parametrize("name", RECIPES)
    def test_tensorrt_builds_it_in_every_precision(self, tmp_path, name):
        import tensorrt_rtx

        recipe = catalog.recipe(name)
        ceilings.write_products(tmp_path / "m.onnx", recipe, 256, 3)
        plan, _, _ = build_plan(Library("tensorrt_rtx", tensorrt_rtx), tmp_path / "m.onnx", recipe, on_device=False, timings=None,
                                    capability=None)
        assert len(plan) > 256 * 256


class TestKeeping:
    def test_they_are_found_for_the_same_device_cpu_and_threads_alone(self, cache_folder):
        found = machine(roof())
        assert ceilings.save(found).is_relative_to(cache_folder)
        assert found == ceilings.kept("cpu", found.cpu, 4)
        for other in (("x86-avx512-vnni", found.cpu, 4), ("cpu", "another", 4), ("cpu", found.cpu, 2)):
            assert ceilings.kept(*other) is None

    @pytest.mark.usefixtures("cache_folder")
    def test_runs_without_them_are_filled_in_and_others_stay(self):
        kept, own = machine(roof()), machine(roof(flops=1e9))
        ceilings.save(kept)
        filled, left, other = ceilings.filled_in([run(), run(seen=own), replace(run(), settings=replace(run().settings, threads=3))])
        assert (kept, own, None) == (filled.observed.ceilings, left.observed.ceilings, other.observed.ceilings)

    @pytest.mark.usefixtures("cache_folder")
    def test_a_damaged_file_is_named(self):
        file = ceilings.save(machine(roof()))
        file.write_text("{")
        with pytest.raises(InvalidInput, match=file.name):
            ceilings.kept("cpu", machine().cpu, 4)

    def test_a_run_with_them_fits_the_published_schema(self, tmp_path):
        found = run(seen=machine(roof(), roof(sparsity="structured", flops=None, datasheet_flops_per_s=1e12)))
        dump(found, tmp_path / "run.json")
        jsonschema.validate(json.loads((tmp_path / "run.json").read_text()), run_schema())
        assert found == load(tmp_path)


class TestGraphWork:
    def test_a_graph_does_what_its_layers_do(self):
        file = networks.graph("mobilenet")
        layers, found = roofline.layer_work(file), roofline.graph_work(file)
        assert (sum(one.flops for one in layers), sum(one.bytes_moved for one in layers), 1) == (found.flops, found.bytes_moved, found.images)
        assert found.flops > 1e6

    def test_a_network_is_counted_as_torch_counts_it(self):
        import timm
        import torch
        from torch.utils.flop_counter import FlopCounterMode

        module = timm.create_model("resnet10t", num_classes=10).eval()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            module(torch.randn(1, 3, networks.SIZE, networks.SIZE))
        # Ours has biases, activations and pools as well: a few percent.
        assert 1.0 <= roofline.graph_work(networks.graph("resnet")).flops / counter.get_total_flops() < 1.05

    def test_narrower_elements_are_fewer_bytes_and_the_same_operations(self):
        counted = roofline.graph_work(networks.graph("resnet"))
        wide, half, narrow = (roofline.in_precision(counted, one) for one in ("fp32", "fp16", "int8"))
        assert wide.flops == half.flops == narrow.flops
        assert (2, 4) == pytest.approx((wide.bytes_moved / half.bytes_moved, wide.bytes_moved / narrow.bytes_moved), rel=1e-6)

    @pytest.mark.parametrize("name", networks.NAMES)
    def test_every_family_is_counted(self, name):
        assert roofline.graph_work(networks.graph(name)).flops > 1e6


class TestPlace:
    def test_a_variant_stands_at_its_median_under_the_roof_of_what_it_executed(self):
        found = roofline_charts.placed(variant(seen=machine(roof(), roof("int8", 900e9)))).point
        # 20 operations per byte times 25 GB/s is 500 Gop/s, above the level part of 400.
        assert (20.0, pytest.approx(200e9), 400e9, pytest.approx(0.5), "compute", "fp32") == (
            found.intensity, found.flops_per_s, found.roof_flops_per_s, found.roof_share, found.bound, found.precision)
        quantized = roofline_charts.placed(variant("ort-int8", machine(roof(), roof("int8", 900e9)))).point
        assert ("memory", "int8", 500e9) == (quantized.bound, quantized.precision, quantized.roof_flops_per_s)

    def test_a_fixed_batch_counts_per_image(self):
        batched = replace(WORK, flops=WORK.flops * 8, bytes_moved=WORK.bytes_moved * 8, images=8)
        assert WORK.flops == roofline_charts.placed(variant(seen=machine(roof()), work=batched)).flops

    def test_without_ceilings_a_line_says_how_to_get_them(self):
        found = roofline_charts.placed(variant())
        assert found.reason == ("no ceilings of cpu with 4 threads: edgebench doctor --ceilings measures them once per machine; "
                                "edgebench report then draws this run with them")
        assert (None, WORK.flops) == (found.point, found.flops)

    def test_a_precision_without_a_ceiling_says_why(self):
        found = roofline_charts.placed(variant("openvino-bf16", machine(roof())))
        assert "no ceiling was measured in bf16: no kernels" == found.reason

    def test_an_artifact_that_tells_no_work_is_to_be_exported_again(self):
        assert "export it again" in roofline_charts.placed(variant(seen=machine(roof()), work=None)).reason

    def test_throttled_timings_have_no_place(self):
        made = run(seen=machine(roof()))
        gone = tuple(replace(one, value=None, low=None, high=None, reason="invalid: too hot") for one in made.performance)
        assert "invalid: too hot" == roofline_charts.placed(report._variants([replace(made, performance=gone)])[0]).reason


class TestDrawn:
    def lines(self, *runs: Run) -> dict[str, dict]:
        panel, = roofline_charts.chart(report._variants(runs)).panels
        return {one["name"]: one for one in panel.figure["data"] if one["mode"].startswith("lines")}

    def test_measured_roofs_are_solid_and_rise_by_the_copies_to_the_products(self):
        line = self.lines(run(seen=machine(roof())))["measured fp32"]
        assert "solid" == line["line"]["dash"]
        left, knee, right = zip(line["x"], line["y"], strict=True)
        assert (25e9, 400e9, 400e9) == pytest.approx((left[1] / left[0], knee[1], right[1]), rel=1e-4)
        assert 16.0 == knee[0]

    def test_datasheet_peaks_are_dotted_and_structured_sparsity_is_told_apart(self):
        found = self.lines(run(seen=machine(
            roof(datasheet_flops_per_s=1e12, datasheet_mark="recalled"),
            roof(sparsity="structured", flops=None, datasheet_flops_per_s=2e12, datasheet_mark="recalled"))))
        assert {"measured fp32": "solid", "datasheet fp32 dense": "dot", "datasheet fp32 structured": "dashdot"} == {
            name: one["line"]["dash"] for name, one in found.items()}
        assert "(recalled)" in found["datasheet fp32 dense"]["hovertemplate"]
        assert [2e12, 2e12] == found["datasheet fp32 structured"]["y"]

    def test_the_page_draws_it_tells_it_in_words_and_lists_it(self):
        seen = machine(roof(), roof("int8", 900e9))
        runs = [run(seen=seen), run("ort-int8", seen, seconds=0.004)]
        page = Page(report.html(runs))
        figure = next(one for one in page.figures if any(trace.get("name") == "measured int8" for trace in one["data"]))
        Figure(figure)
        assert {200e9, 500e9} == {trace["y"][0] for trace in figure["data"] if trace["mode"] == "markers"}
        assert any("FP32 · ONNX Runtime reaches 200 Gop/s at 20.0 operations per byte, 50 % of its roof" in one
                   for one in page.attributes("aria-label", "alt"))
        assert "Under the roofline" in page.words
        table = next(one for one in timing_tables.timing_tables(report._variants(runs)) if one.title == "Under the roofline")
        assert ["2.00 G", "100 MB", "20.0", "200 Gop/s", "400 Gop/s", "50 %", "arithmetic"] == [one.text for one in table.rows[0][1]]

    def test_machines_have_a_panel_each(self):
        found = roofline_charts.chart(report._variants([run(seen=machine(roof())), run("ort-int8", machine(roof("int8"), cpu="other"))]))
        assert ["AMD Ryzen Embedded V3C18I, 4 threads", "other, 4 threads"] == [one.title for one in found.panels]

    def test_a_page_without_ceilings_says_how_to_get_them(self):
        page = Page(report.html([run()]))
        assert "Roofline: not drawn. no ceilings of cpu with 4 threads: edgebench doctor --ceilings" in page.words
        assert "Under the roofline" not in page.words

    def test_one_variant_without_a_place_is_named_below(self):
        found = roofline_charts.chart(report._variants([run(seen=machine(roof())), run("openvino-bf16", machine(roof()))]))
        assert ("BF16 · OpenVINO: no ceiling was measured in bf16: no kernels",) == found.notes

    def test_the_summary_has_numbers_or_the_reason(self):
        placed, bare = (one["roofline"] for one in report.summary([run(seen=machine(roof())), run("ort-int8")])["variants"])
        assert (2_000_000_000, 20.0, pytest.approx(0.5), "compute") == (
            placed["flops"], placed["intensity"], placed["roof_share"], placed["bound"])
        assert bare["reason"].startswith("no ceilings of cpu")
        assert math.isfinite(placed["flops_per_s"])


class TestCommand:
    def test_doctor_measures_keeps_and_tells_them_and_a_report_draws_with_them(self, cache_folder, tmp_path):
        done = cli("doctor", "--ceilings", "--device", "cpu", "--threads", "1", "--json")
        assert 0 == done.returncode, done.stderr
        told = json.loads(done.stdout)
        kept = ceilings.kept("cpu", CPU, 1)
        assert told == json.loads(json.dumps(to_builtins(kept)))
        assert str(cache_folder) in done.stderr
        made = run()
        dump(replace(made, environment=replace(made.environment, cpu=CPU), settings=replace(made.settings, threads=1)), tmp_path / "run.json")
        shown = cli("report", tmp_path, "--json")
        assert kept.measured_at == json.loads(shown.stdout)["variants"][0]["roofline"]["ceilings_measured_at"], shown.stderr

    def test_its_options_are_refused_without_it(self):
        done = cli("doctor", "--threads", "2")
        assert (2, True) == (done.returncode, "--device and --threads are for --ceilings" in done.stderr)
