"""From what a worker measured to the parts of a run: references, scores that throttling voids, what is said to be left out."""

from __future__ import annotations

from dataclasses import replace

import pytest
from click.testing import CliRunner

from edgebench import assembly, profiler, worker
from edgebench.cli import cli
from edgebench.observed import Observed
from edgebench.record import Artifact, ColdStart, PassRecord, load, read_json, write_json
from edgebench.telemetry.types import ThrottleEvent
from edgebench.worker import Measurement, PassJob
from tests import builders
from tests.commands import cli as command
from tests.models import onnx_file, preprocess_file

HOT = ThrottleEvent(code="cpu-thermal", message="core 0 was throttled 3 times because of heat", invalidates=True, count=3)
CAPPED = ThrottleEvent(code="gpu-power-cap", message="power cap in 12 of 80 readings", invalidates=False)


def measurement(*events: ThrottleEvent, **more) -> Measurement:
    of = builders.run()
    return Measurement(**{
        "timing_digest": "d", "environment": of.environment, "precision": of.precision, "golden_max_abs_difference": 1e-6,
        "cold_start": ColdStart(import_s=0.2, load_s=0.1, first_inference_s=0.05), "peak_host_memory_bytes": 90_000_000,
        "traces": (builders.single_stream([0.01] * 400), builders.offline([0.1] * 50)), "observed": Observed(events=events), **more})


def artifact(name: str = "ort-fp32") -> Artifact:
    return builders.artifact(builders.recipe(name))


def job(dataset: str = "inspection", digest: str = "d" * 64) -> PassJob:
    return PassJob(dataset=replace(builders.DATASET, name=dataset, digest=digest), condition="clean", preset="native", cache="c", rows=(0,),
                   ids=("a",), targets=(0,))


class TestReference:
    def test_it_is_the_fp32_sibling_of_the_same_backend_whatever_came_first(self):
        runs = [builders.run("openvino-fp32"), builders.run("ort-fp32")]
        assert runs[1] is assembly.reference(artifact("ort-int8"), runs)
        assert runs[0] is assembly.reference(artifact("openvino-int8"), runs)

    def test_another_backends_is_better_than_none(self):
        other = builders.run("openvino-fp32")
        assert other is assembly.reference(artifact("ort-int8"), [other])

    def test_another_model_and_another_precision_are_none(self):
        assert assembly.reference(artifact("ort-int8"), [builders.run("ort-fp32", model="timm:other"), builders.run("openvino-int8")]) is None

    def test_the_first_fp32_has_none_and_a_second_runtime_has_the_first(self):
        assert assembly.reference(artifact("ort-fp32"), []) is None
        assert assembly.named(None) is None
        first = builders.run("ort-fp32")
        second = builders.run("openvino-fp32", reference=first)
        assert first is assembly.reference(artifact("openvino-fp32"), [first])
        assert first is assembly.reference(artifact("tensorrt-fp32"), [second, first])
        # Measured again, the first one still has none: its siblings are compared with it.
        assert assembly.reference(artifact("ort-fp32"), [second]) is None
        assert assembly.reference(artifact("ort-fp32"), [first]) is None
        assert second is assembly.reference(artifact("openvino-int8"), [first, second])

    @pytest.mark.parametrize(("name", "expected"), [
        ("ort-int8", "ort-fp32"), ("ort-cuda-int8", "ort-cuda-fp32"), ("ort-trt-int8", "ort-cuda-fp32"),
        ("openvino-int8", "ort-fp32"), ("tensorrt-int8", "ort-cuda-fp32")])
    def test_processor_and_providers_belong_to_the_choice(self, name, expected):
        runs = [builders.run("ort-cuda-fp32"), builders.run("ort-fp32")]
        for order in (runs, runs[::-1]):
            assert expected == assembly.reference(artifact(name), order).artifact.recipe.id

    def test_cpu_int8_beside_fp32_on_a_gpu_alone_has_it_for_quality(self):
        other = builders.run("ort-cuda-fp32")
        assert other is assembly.reference(artifact("ort-int8"), [other])

    def test_device_and_threads_belong_to_the_choice(self):
        here = builders.run("openvino-fp32")
        fewer = replace(builders.run("ort-fp32"), settings=replace(here.settings, threads=1))
        elsewhere = replace(builders.run("ort-fp32"), device=replace(here.device, id="jetson"))
        for order in ([fewer, elsewhere, here], [here, elsewhere, fewer]):
            assert here is assembly.reference(artifact("ort-int8"), order, here.device.id, 4)
            assert fewer is assembly.reference(artifact("ort-int8"), order, here.device.id, 1)
            assert elsewhere is assembly.reference(artifact("ort-int8"), order, "jetson", 4)


class TestPerformance:
    def test_throttling_voids_every_score_of_timing_with_its_reason_and_nothing_else(self):
        found = {one.name: one for one in assembly.performance(measurement(HOT), artifact(), 0.95)}
        for name in ("latency_p50", "latency_p99", "throughput_offline"):
            assert (None, None, None, f"invalid: {HOT.message}") == (
                found[name].value, found[name].low, found[name].high, found[name].reason)
        assert (13_600_000.0, 0.1, 90_000_000.0) == tuple(found[name].value for name in ("artifact_size", "load_time", "peak_host_memory"))

    def test_what_does_not_invalidate_leaves_them(self):
        found = {one.name: one.value for one in assembly.performance(measurement(CAPPED), artifact(), 0.95)}
        assert (0.01, 160.0) == pytest.approx((found["latency_p50"], found["throughput_offline"]))

    def test_unknown_memory_says_why(self):
        found = {one.name: one for one in assembly.performance(measurement(peak_host_memory_bytes=None), artifact(), 0.95)}
        assert (None, "this system does not tell (no VmHWM)") == (found["peak_host_memory"].value, found["peak_host_memory"].reason)

    def test_without_timing_only_the_size_is_left(self):
        bare = measurement(traces=(), observed=None, cold_start=None)
        assert ["artifact_size"] == [one.name for one in assembly.performance(bare, artifact(), 0.95)]


class TestDoubts:
    def test_int8_without_its_instructions_is_told_where_it_is_emulated(self):
        plain = replace(builders.environment(), cpu_features=("avx2",))
        codes = [one.code for one in assembly.timing_caveats(measurement(environment=plain), artifact("ort-int8"), 0.95)]
        assert "no-int8-instructions" in codes
        assert "no-int8-instructions" not in [one.code for one in assembly.timing_caveats(measurement(), artifact("ort-int8"), 0.95)]

    def test_seven_bit_weights_do_not_saturate(self):
        plain = replace(builders.environment(), cpu_features=("avx2",))
        told = {name: next(one.message for one in assembly.timing_caveats(measurement(environment=plain), artifact(name), 0.95)
                           if one.code == "no-int8-instructions") for name in ("ort-int8", "ort-int8-avx2")}
        assert ("may saturate" in told["ort-int8"], "may saturate" in told["ort-int8-avx2"]) == (True, False)


class TestLeftOut:
    def test_each_part_has_its_reason(self):
        assert () == assembly.skips(None, measurement(), timed=True)
        found = {one.what: one.reason for one in assembly.skips("no data", measurement(golden_max_abs_difference=None), timed=False)}
        assert {"quality": "no data", "latency": "not asked for", "golden outputs": "the artifact carries none"} == found

    def test_a_comparison_without_a_reference_is_told(self):
        skip, = assembly.uncompared(artifact("ort-int8"), [job()], None)
        assert "no FP32 sibling of this model was profiled with it" == skip.reason
        assert () == assembly.uncompared(artifact("ort-fp32"), [job()], None)

    def test_images_that_the_reference_did_not_see_are_named(self):
        reference = replace(builders.run(), passes=(PassRecord(dataset=builders.DATASET, condition="clean", preset="native"),))
        assert () == assembly.uncompared(artifact("ort-int8"), [job()], reference)
        skip, = assembly.uncompared(artifact("ort-int8"), [job(), job("inspection", "e" * 64), job("other")], reference)
        assert f"{reference.variant} saw other images of inspection, other, or none" == skip.reason


def test_a_throttled_run_is_kept_without_its_scores_and_profile_ends_with_3(tmp_path, monkeypatch):
    exported = command("export", onnx_file(tmp_path / "m.onnx"), "--recipe", "ort-fp32", "--preprocess", preprocess_file(tmp_path), "--out",
                       tmp_path / "artifacts")
    assert 0 == exported.returncode, exported.stderr

    def throttled(job: worker.Job, tell) -> None:
        worker.run_worker(job, tell)
        file = next((tmp_path / "out").glob("*/measurement.json"))
        found = read_json(file)
        write_json(file, {**found, "observed": {**found["observed"], "events": [
            {"code": HOT.code, "message": HOT.message, "invalidates": True, "count": 3, "rate_hz": None}]}})

    monkeypatch.setattr(profiler, "run_worker", throttled)
    artifact_folder = next((tmp_path / "artifacts").iterdir())
    device = tmp_path / "shared.toml"
    device.write_text('id = "shared"\ntitle = "A board"\nbackends = ["onnxruntime"]\nsource = "A test."\nmemory_shared = true\n')
    done = CliRunner().invoke(cli, ["profile", str(artifact_folder), "--device", str(device), "--budget", "smoke", "--no-telemetry", "--properties", "none", "--out",
                                    str(tmp_path / "out")])
    assert 3 == done.exit_code, done.output
    assert f"its timings are invalid: {HOT.message}" in done.stderr
    run = load(next((tmp_path / "out").glob("*/run.json")).parent)
    assert (None, f"invalid: {HOT.message}") == (run.score("latency_p50").value, run.score("latency_p50").reason)
    assert "throttled" in [one.code for one in run.caveats]
    assert run.traces[0].latency_s, "what was observed is kept"
    assert run.score("artifact_size").value > 0
    assert isinstance(run.observed.shared_memory.available_bytes, int)
    assert run.score("shared_memory").unit == "bytes"
