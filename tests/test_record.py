"""The run file is a published format: what goes in comes out, and what is wrong is refused by name."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import tracemalloc
from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgebench import record
from edgebench.errors import ExitCode, InvalidInput
from edgebench.recipe import Quantization, Recipe
from edgebench.record import (
    ARTIFACT_SCHEMA,
    RUN_SCHEMA,
    Artifact,
    CalibrationSet,
    Caveat,
    ClassMap,
    ColdStart,
    DatasetIdentity,
    Device,
    Environment,
    Evaluation,
    ExecutedPrecision,
    FileEntry,
    LatencyTrace,
    ModelIdentity,
    Parity,
    PassRecord,
    Preprocess,
    Reference,
    ReliabilityBin,
    Run,
    Score,
    Settings,
    Skip,
    TensorSpec,
)

SCHEMA_FILE = Path(__file__).resolve().parents[1] / "reports" / "schema" / "run-1.schema.json"
PREPROCESS = Preprocess(size_px=(224, 224), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), resize_px=256)
ACCURACY = Score(name="accuracy_top1", value=0.83, low=0.80, high=0.86, unit="fraction", better="higher", n=800,
                 method="share of images")
TRACE = LatencyTrace(scenario="single-stream", batch=1, threads=2, clock="perf_counter_ns", clock_resolution_s=2.1e-8,
                     warmup_s=(0.5, 0.1), latency_s=(0.0123456789012345, 0.1, 1 / 3), stopped="count-and-duration")


def full_run() -> Run:
    """Return a run in which every optional part is there and every kind of absence too."""
    recipe = Recipe(
        id="ort-int8", title="INT8", purpose="Fast – with Ünïcode.", checked_on="x86", backend="onnxruntime",
        precision="int8", opset=21, providers=("CPUExecutionProvider",),
        quantization=Quantization(quantizer="onnxruntime", images=64, seed=3))
    artifact = Artifact(
        schema=ARTIFACT_SCHEMA,
        model=ModelIdentity(id="timm:resnet50.tv_in1k", weights="pretrained", weights_sha256="ab" * 32), recipe=recipe,
        entry="model.onnx",
        files=(FileEntry(path="model.onnx", sha256="cd" * 32, size_bytes=1000),
               FileEntry(path="model.onnx.data", sha256="ef" * 32, size_bytes=2000),
               FileEntry(path="golden.npz", sha256="01" * 32, size_bytes=500, deployed=False)),
        inputs=(TensorSpec(name="image", dtype="float32", shape=("batch", 3, 224, 224)),),
        outputs=(TensorSpec(name="logits", dtype="float32", shape=("batch", 2)),), preprocess=PREPROCESS,
        classes=ClassMap(ids=("n01", "n02"), names=("tench", "goldfish")),
        calibration=CalibrationSet(source="train", images=2, seed=0, digest="12" * 32, image_sha256=("a" * 64, "b" * 64)),
        parity=Parity(reference="eager PyTorch", inputs="16 images", images=16, max_abs_difference=1.5e-5,
                      top1_agreement=0.9375),
        golden="golden.npz", tools={"torch": "2.9", "onnx": "1.19"}, created_at="2025-11-23T12:00:00+00:00",
        caveats=(Caveat(code="weights-by-position", message="m", hint="h"),))
    absent = Score(name="latency_p99", value=0.2, low=0.1, unit="s", better="lower", n=100, method="order statistic",
                   reason="100 timings cannot bound it")
    dataset = DatasetIdentity(name="imagenet-val", source="/data", images=800, classes=544, digest="34" * 32)
    return Run(
        schema=RUN_SCHEMA, variant="resnet50--ort-int8--onnxruntime", created_at="2025-11-23T13:00:00+00:00",
        edgebench="0.1.0", artifact=artifact,
        device=Device(id="cpu", title="CPU", backends=("onnxruntime",), source="observed"),
        environment=Environment(
            hostname="h", os="Linux 6", python="3.11.7", machine="x86_64", cpu="Xeon", cpu_features=("avx512_vnni",),
            cpus_online=2, cpus_usable=2, memory_bytes=None, governor=None, load_before=0.5, load_after=None,
            packages={"onnxruntime": "1.23"}),
        settings=Settings(budget="quick", threads=2, batch=16, preset="native", properties=("accuracy",), data=None),
        precision=ExecutedPrecision(requested="int8", executed="int8", time_share={"int8": 0.75, "fp32": 0.25},
                                    layers={"int8": 3, "fp32": 1}, evidence="profile"),
        golden_max_abs_difference=0.0, cold_start=ColdStart(import_s=0.1, load_s=0.2, first_inference_s=0.3),
        peak_host_memory_bytes=123_456_789, traces=(TRACE, replace(TRACE, scenario="offline", batch=16)),
        performance=(absent,),
        evaluations=(Evaluation(
            property="calibration", dataset=dataset, condition="clean", preset="native",
            predictions=("predictions/imagenet-val--clean.npz",), scores=(ACCURACY,),
            reliability=(ReliabilityBin(low=0.0, high=0.5, n=0, confidence=None, accuracy=None),
                         ReliabilityBin(low=0.5, high=1.0, n=800, confidence=0.9, accuracy=0.83)),
            reference_scores=(replace(ACCURACY, name="accuracy_top1_change", value=-0.01, low=None, high=None,
                                      better=None, reason="one direction only"),)),),
        passes=(PassRecord(dataset=dataset, condition="clean", preset="native"),),
        reference=Reference(variant="resnet50--ort-fp32--onnxruntime", artifact_digest="56" * 32),
        caveats=(Caveat(code="noisy", message="spread", hint="stop"),),
        skips=(Skip(what="golden outputs", reason="none"),))


def bare_run() -> Run:
    """Return a run in which everything optional is absent."""
    run = full_run()
    recipe = replace(run.artifact.recipe, precision="fp32", quantization=None, providers=())
    artifact = replace(run.artifact, recipe=recipe, preprocess=None, classes=None, calibration=None, parity=None,
                       golden=None, caveats=())
    return replace(run, artifact=artifact, golden_max_abs_difference=None, cold_start=None, peak_host_memory_bytes=None,
                   traces=(), performance=(), evaluations=(), reference=None, caveats=(), skips=())


@pytest.fixture
def file(tmp_path) -> Path:
    """A full run, written."""
    path = tmp_path / "run.json"
    record.dump(full_run(), path)
    return path


def edit(file: Path, change) -> None:
    """Apply `change` to the parsed file and write it back."""
    data = json.loads(file.read_text())
    change(data)
    file.write_text(json.dumps(data))


class TestRoundTrip:
    @pytest.mark.parametrize("make", [full_run, bare_run])
    def test_what_is_dumped_loads_as_the_same_run(self, tmp_path, make):
        run = make()
        record.dump(run, tmp_path / "run.json")
        assert run == record.load(tmp_path / "run.json")

    def test_folder_that_holds_the_file_can_be_named_instead(self, file):
        assert record.load(file) == record.load(file.parent)

    def test_schema_comes_first(self, file):
        assert file.read_text().startswith('{\n "schema": "edgebench.run/1",\n')

    def test_dumping_again_changes_no_byte(self, file, tmp_path):
        record.dump(record.load(file), tmp_path / "again.json")
        assert file.read_bytes() == (tmp_path / "again.json").read_bytes()

    def test_text_is_readable_utf8_and_ends_with_a_newline(self, file):
        assert "Fast – with Ünïcode." in file.read_text(encoding="utf-8")
        assert file.read_bytes().endswith(b"}\n")

    def test_file_can_be_read_by_others(self, file):
        assert 0o644 == file.stat().st_mode & 0o777

    @given(st.lists(st.floats(0, 1e6), min_size=1, max_size=20))
    def test_timings_survive_to_the_last_bit(self, values):
        trace = replace(TRACE, latency_s=tuple(values))
        text = json.dumps(record.to_builtins(trace), allow_nan=False)
        assert trace == record.decode(LatencyTrace, json.loads(text), "here")

    @given(value=st.none() | st.floats(allow_nan=False, allow_infinity=False), n=st.integers(0, 10**9),
           name=st.text(min_size=1), better=st.sampled_from(["lower", "higher", None]))
    def test_any_score_survives(self, value, n, name, better):
        score = Score(name=name, value=value, unit="1", better=better, n=n, method="m", reason="r")
        text = json.dumps(record.to_builtins(score), allow_nan=False, ensure_ascii=False)
        assert score == record.decode(Score, json.loads(text), "here")

    def test_whole_numbers_are_taken_for_floats(self, file):
        # A file without a seal, as earlier versions wrote it.
        edit(file, lambda data: data.pop("sealed") and data["cold_start"].update(load_s=2))
        loaded = record.load(file).cold_start.load_s
        assert (2.0, float) == (loaded, type(loaded))

    def test_manifest_round_trip(self, tmp_path):
        artifact = full_run().artifact
        record.write_json(tmp_path / "manifest.json", artifact)
        assert artifact == record.load_artifact(tmp_path)


class TestDerived:
    def test_size_counts_what_ships(self):
        assert 3000 == full_run().artifact.size_bytes

    def test_artifact_digest_depends_on_every_path_and_hash_but_not_on_their_order(self):
        artifact = full_run().artifact
        first, *rest = artifact.files
        assert artifact.digest == replace(artifact, files=artifact.files[::-1]).digest
        others = {replace(artifact, files=(replace(first, sha256="ff" * 32), *rest)).digest,
                  replace(artifact, files=(replace(first, path="other.onnx"), *rest)).digest,
                  replace(artifact, files=tuple(rest)).digest, artifact.digest}
        assert 4 == len(others)

    def test_scores_are_found_by_name_wherever_they_are(self):
        run = full_run()
        assert run.performance[0] is run.score("latency_p99")
        assert run.evaluations[0].scores[0] is run.score("accuracy_top1")
        assert run.evaluations[0].reference_scores[0] is run.score("accuracy_top1_change")
        assert run.score("nothing") is None

    def test_records_cannot_be_changed(self):
        with pytest.raises(FrozenInstanceError):
            full_run().variant = "other"


class TestRanges:
    @pytest.mark.parametrize(("make", "complaint"), [
        (lambda: replace(PREPROCESS, size_px=(0, 224)), "expected size_px above 0, got (0, 224)"),
        (lambda: replace(PREPROCESS, std=(0.2, 0.0, 0.2)), "expected finite std above 0, got (0.2, 0.0, 0.2)"),
        (lambda: replace(PREPROCESS, resize_px=None), "expected resize_px for resize 'shortest', got None"),
        (lambda: replace(PREPROCESS, resize="none"), "expected no resize_px for resize 'none', got 256"),
        (lambda: replace(PREPROCESS, border_px=-1), "expected border_px of 0 or more, got -1"),
        (lambda: ClassMap(ids=(), names=()), "expected as many names as ids, and at least one, got (0, 0)"),
        (lambda: ClassMap(ids=("a",), names=("a", "b")), "expected as many names as ids, and at least one, got (1, 2)"),
        (lambda: ClassMap(ids=("a", "a"), names=("a", "b")), "expected distinct class ids, got 'a repeated one'"),
        (lambda: Quantization(quantizer="nncf", images=0), "expected at least 1 image, got 0"),
        (lambda: replace(full_run().artifact.recipe, opset=24), "expected opset between 20 and 23, got 24"),
        (lambda: replace(full_run().artifact.recipe, precision="fp32"),
         "expected a [quantization] table exactly where precision is 'int8' or 'fp8', got 'fp32'"),
        (lambda: replace(TRACE, latency_s=()), "expected at least one timing, got 0"),
        (lambda: replace(TRACE, latency_s=(0.1, -0.1)), "expected finite latencies of 0 or more, got [-0.1]"),
        (lambda: replace(ACCURACY, value=math.nan), "expected a finite number for accuracy_top1, got nan"),
        (lambda: replace(ACCURACY, low=-math.inf), "expected a finite number for accuracy_top1, got -inf"),
        (lambda: replace(ACCURACY, high=math.inf), "expected a finite number for accuracy_top1, got inf"),
        (lambda: replace(ACCURACY, value=None), "expected a reason for the absent accuracy_top1, got None")])
    def test_what_cannot_be_is_refused_with_both_sides(self, make, complaint):
        with pytest.raises(ValueError, match=r"^expected ") as caught:
            make()
        assert complaint == str(caught.value)

    def test_absent_score_with_a_reason_is_fine(self):
        assert replace(ACCURACY, value=None, low=None, high=None, reason="no images").value is None

    @pytest.mark.parametrize("field", ["latency_s", "warmup_s"])
    @pytest.mark.parametrize("number", [math.nan, math.inf])
    def test_a_timing_that_is_no_number_is_not_accepted_wherever_it_stands(self, field, number):
        # min() of numbers with a NaN among them is whatever came first: every place has to be looked at.
        for values in ((number, 0.1, 0.2), (0.1, number, 0.2), (0.1, 0.2, number)):
            with pytest.raises(ValueError, match=r"^expected finite latencies of 0 or more, got "):
                replace(TRACE, **{field: values})

    @pytest.mark.parametrize("resize_px", [None, 256])
    def test_squashing_goes_with_and_without_a_size_to_crop_from(self, resize_px):
        assert resize_px == replace(PREPROCESS, resize="squash", resize_px=resize_px).resize_px

    def test_ranges_hold_for_files_too(self, file):
        edit(file, lambda data: data["traces"][1].update(latency_s=[0.1, -2.0]))
        with pytest.raises(InvalidInput) as caught:
            record.load(file)
        assert f"{file}.traces[1]: expected finite latencies of 0 or more, got [-2.0]" == caught.value.message


class TestRefusedFiles:
    @pytest.mark.parametrize(("place", "key", "message"), [
        (lambda data: data, "caveat", ": unknown key 'caveat'; did you mean 'caveats'?"),
        (lambda data: data["artifact"], "entri", ".artifact: unknown key 'entri'; did you mean 'entry'?"),
        (lambda data: data["artifact"]["recipe"]["quantization"], "preste",
         ".artifact.recipe.quantization: unknown key 'preste'; did you mean 'preset'?"),
        (lambda data: data["artifact"]["files"][1], "sha265", ".artifact.files[1]: unknown key 'sha265'; did you mean 'sha256'?"),
        (lambda data: data["evaluations"][0]["scores"][0], "vlaue",
         ".evaluations[0].scores[0]: unknown key 'vlaue'; did you mean 'value'?"),
        (lambda data: data["traces"][0], "zzzzz", ".traces[0]: unknown key 'zzzzz'")])
    def test_unknown_key_is_named_with_its_place_and_the_nearest(self, file, place, key, message):
        edit(file, lambda data: place(data).update({key: 1}))
        with pytest.raises(InvalidInput) as caught:
            record.load(file)
        assert f"{file}{message}" == caught.value.message
        assert caught.value.hint.startswith("known keys: ")

    @pytest.mark.parametrize(("change", "message"), [
        (lambda data: data.update(variant=7), ".variant: expected `str`, got `int`"),
        (lambda data: data["settings"].update(batch="16"), ".settings.batch: expected `int`, got `str`"),
        (lambda data: data["settings"].update(batch=1.5), ".settings.batch: expected `int`, got `float`"),
        (lambda data: data["settings"].update(batch=True), ".settings.batch: expected `int`, got `bool`"),
        (lambda data: data.update(traces={}), ".traces: expected `array`, got `object`"),
        (lambda data: data["traces"][0].update(stopped="never"), ".traces[0].stopped: invalid enum value 'never'"),
        (lambda data: data["traces"][0]["latency_s"].append(None), ".traces[0].latency_s[3]: expected `float`, got `null`"),
        (lambda data: data["artifact"]["preprocess"].update(mean=[0.1, 0.2]),
         ".artifact.preprocess.mean: expected `array` of length 3, got 2"),
        (lambda data: data.pop("skips"), ": object missing required field `skips`"),
        (lambda data: data["evaluations"][0]["dataset"].pop("digest"),
         ".evaluations[0].dataset: object missing required field `digest`")])
    def test_wrong_or_missing_value_is_named_with_its_place(self, file, change, message):
        edit(file, change)
        with pytest.raises(InvalidInput) as caught:
            record.load(file)
        assert f"{file}{message}" == caught.value.message

    def test_absent_score_without_a_reason_is_refused(self, file):
        edit(file, lambda data: data["evaluations"][0]["scores"][0].update(value=None))
        with pytest.raises(InvalidInput) as caught:
            record.load(file)
        assert f"{file}.evaluations[0].scores[0]: expected a reason for the absent accuracy_top1, got None" == \
            caught.value.message

    @pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
    def test_score_that_is_no_number_is_refused(self, file, number):
        text = file.read_text()
        assert 1 == text.count('"value": 0.83,')
        file.write_text(text.replace('"value": 0.83,', f'"value": {number},'))
        with pytest.raises(InvalidInput, match=r"accuracy_top1|not valid JSON"):
            record.load(file)

    @pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
    @pytest.mark.parametrize("form", ["{}", "[1.0, {}]", '{{"a": {{"b": [0, {}]}}}}'])
    def test_json_with_what_is_no_number_is_not_read_although_python_would(self, tmp_path, number, form):
        path = tmp_path / "x.json"
        path.write_text(form.format(number))
        with pytest.raises(InvalidInput) as caught:
            record.read_json(path)
        assert f"{path} is not valid JSON: it holds {number}" == caught.value.message

    @pytest.mark.parametrize("number", ["NaN", "Infinity"])
    def test_run_file_with_a_timing_that_is_no_number_is_refused(self, file, number):
        text = file.read_text()
        assert 2 == text.count("0.0123456789012345")
        file.write_text(text.replace("0.0123456789012345", number))
        with pytest.raises(InvalidInput, match=f"is not valid JSON: it holds {number}"):
            record.load(file)

    @pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
    def test_what_is_no_number_is_never_written(self, tmp_path, number):
        with pytest.raises(ValueError, match="JSON"):
            record.write_json(tmp_path / "x.json", {"value": number})
        assert [] == list(tmp_path.iterdir())

    def test_file_of_a_newer_version_says_what_to_install(self, file):
        edit(file, lambda data: data.update(schema="edgebench.run/2", surprise=1))
        with pytest.raises(InvalidInput) as caught:
            record.load(file)
        assert (f"{file}: schema 'edgebench.run/2' was written by another version of edgebench; this one reads "
                "'edgebench.run/1'") == caught.value.message
        assert "install the latest release: pip install --upgrade edgebench" == caught.value.hint
        assert ExitCode.UNMEASURABLE == caught.value.exit_code

    def test_newer_than_nine_is_still_newer(self, file):
        edit(file, lambda data: data.update(schema="edgebench.run/10"))
        with pytest.raises(InvalidInput) as caught:
            record.load(file)
        assert "pip install --upgrade edgebench" in caught.value.hint

    def test_file_older_than_every_version_is_not_called_newer(self, file):
        edit(file, lambda data: data.update(schema="edgebench.run/0"))
        with pytest.raises(InvalidInput) as caught:
            record.load(file)
        assert "measure again with this version" == caught.value.hint

    @pytest.mark.parametrize(("text", "found"), [
        ('{"a": 1}', "None"), ("[]", "None"), ("3", "None"), ("null", "None"), ('"edgebench.run/1"', "None"),
        ('{"schema": "edgebench.artifact/1"}', "'edgebench.artifact/1'"), ('{"schema": 1}', "1"),
        ('{"schema": "edgebench.run/x"}', "'edgebench.run/x'")])
    def test_other_json_is_not_taken_for_a_run(self, tmp_path, text, found):
        path = tmp_path / "run.json"
        path.write_text(text)
        with pytest.raises(InvalidInput) as caught:
            record.load(path)
        assert f"{path}: expected schema 'edgebench.run/1', got {found}" == caught.value.message
        assert "this is not a file that edgebench wrote" == caught.value.hint

    @pytest.mark.parametrize("share", [0.0, 0.3, 0.999])
    def test_file_that_was_cut_short_is_said_to_be_damaged(self, file, share):
        content = file.read_bytes()
        file.write_bytes(content[: int(len(content) * share)])
        with pytest.raises(InvalidInput) as caught:
            record.load(file)
        assert caught.value.message.startswith(f"{file} is {'not valid JSON: ' if share else 'empty'}")
        assert caught.value.hint

    def test_binary_file_is_said_to_be_damaged(self, tmp_path):
        (tmp_path / "run.json").write_bytes(b"\xff\xfe\x00\x9f")
        with pytest.raises(InvalidInput, match="is not valid JSON"):
            record.load(tmp_path / "run.json")

    @pytest.mark.parametrize("name", ["gone.json", "gone/run.json"])
    def test_missing_file_is_named(self, tmp_path, name):
        with pytest.raises(InvalidInput) as caught:
            record.load(tmp_path / name)
        assert f"cannot read {tmp_path / name}: No such file or directory" == caught.value.message

    def test_folder_without_a_run_is_named(self, tmp_path):
        with pytest.raises(InvalidInput, match=r"run\.json: No such file"):
            record.load(tmp_path)

    def test_manifest_is_not_a_run_and_a_run_no_manifest(self, file):
        (file.parent / "manifest.json").write_bytes(file.read_bytes())
        with pytest.raises(InvalidInput, match=r"expected schema 'edgebench.artifact/1', got 'edgebench.run/1'"):
            record.load_artifact(file.parent)


class TestAtomicWrite:
    @pytest.fixture(params=["fsync", "rename", "chmod"])
    def full_disk(self, request, monkeypatch):
        """The disk is full at one of the steps of a write."""
        def fail(*arguments, **options):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        if request.param == "fsync":
            monkeypatch.setattr(os, "fsync", fail)
        else:
            monkeypatch.setattr(Path, {"rename": "replace", "chmod": "chmod"}[request.param], fail)

    def test_full_disk_leaves_the_old_file_and_no_litter(self, file, full_disk):
        before = file.read_bytes()
        with pytest.raises(InvalidInput) as caught:
            record.dump(bare_run(), file)
        assert f"cannot write {file}: No space left on device" == caught.value.message
        assert "free some space" in caught.value.hint
        assert before == file.read_bytes()
        assert [file] == list(file.parent.iterdir())

    def test_interruption_leaves_the_old_file_and_no_litter(self, file, monkeypatch):
        def interrupt(*arguments):
            raise KeyboardInterrupt

        before = file.read_bytes()
        monkeypatch.setattr(os, "fsync", interrupt)
        with pytest.raises(KeyboardInterrupt):
            record.dump(bare_run(), file)
        assert (before, [file]) == (file.read_bytes(), list(file.parent.iterdir()))

    def test_value_that_cannot_be_written_leaves_the_old_file(self, file):
        before = file.read_bytes()
        with pytest.raises(ValueError, match="JSON"):
            record.write_json(file, {"value": math.nan})
        assert (before, [file]) == (file.read_bytes(), list(file.parent.iterdir()))

    def test_content_is_on_the_disk_before_the_old_file_is_replaced(self, file, monkeypatch):
        order = []
        fsync, replacing = os.fsync, Path.replace
        monkeypatch.setattr(os, "fsync", lambda handle: (order.append("fsync"), fsync(handle)))
        monkeypatch.setattr(Path, "replace", lambda path, target: (order.append("replace"), replacing(path, target)))
        record.dump(bare_run(), file)
        assert ["fsync", "replace"] == order
        assert bare_run() == record.load(file)

    def test_missing_folders_are_made(self, tmp_path):
        record.write_bytes(tmp_path / "a" / "b" / "x", b"content")
        assert b"content" == (tmp_path / "a" / "b" / "x").read_bytes()

    def test_file_in_the_way_of_a_folder_is_an_error_with_advice(self, file):
        with pytest.raises(InvalidInput, match="cannot write") as caught:
            record.write_bytes(file / "below" / "x", b"")
        assert "--out" in caught.value.hint


class TestPublishedSchema:
    # After a change of the record: python -c "import json; from edgebench import record;
    # print(json.dumps(record.run_schema(), indent=1))" > reports/schema/run-1.schema.json
    def test_file_is_what_the_types_say(self):
        assert json.loads(json.dumps(record.run_schema())) == json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))

    def test_file_is_a_valid_schema_of_the_run_format(self):
        schema = json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))
        jsonschema.Draft202012Validator.check_schema(schema)
        assert "https://json-schema.org/draft/2020-12/schema" == schema["$schema"]
        assert {"const": "edgebench.run/1"} == schema["$defs"]["Run"]["properties"]["schema"]

    @pytest.mark.parametrize("make", [full_run, bare_run])
    def test_dumped_run_is_valid_under_it(self, tmp_path, make):
        record.dump(make(), tmp_path / "run.json")
        validator = jsonschema.Draft202012Validator(json.loads(SCHEMA_FILE.read_text(encoding="utf-8")))
        assert [] == list(validator.iter_errors(json.loads((tmp_path / "run.json").read_text())))

    @pytest.mark.parametrize("change", [
        lambda data: data.update(schema="edgebench.run/2"), lambda data: data.pop("traces"),
        lambda data: data["settings"].update(batch="16"), lambda data: data["traces"][0].update(stopped="never"),
        lambda data: data["artifact"]["preprocess"].update(mean=[0.1, 0.2])])
    def test_what_the_loader_refuses_is_invalid_under_it_too(self, file, change):
        edit(file, change)
        validator = jsonschema.Draft202012Validator(json.loads(SCHEMA_FILE.read_text(encoding="utf-8")))
        assert list(validator.iter_errors(json.loads(file.read_text())))
        with pytest.raises(InvalidInput):
            record.load(file)


class TestSha256:
    def test_is_that_of_the_bytes(self, tmp_path):
        (tmp_path / "x").write_bytes(b"abc")
        # FIPS 180-2, appendix B.1.
        assert "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad" == record.sha256_file(tmp_path / "x")

    def test_a_file_of_any_size_takes_little_memory(self, tmp_path):
        # Python 3.10 has no file_digest; whole files would count as memory of the process that is measured.
        with (tmp_path / "x").open("wb") as file:
            file.truncate(50_000_000)
        tracemalloc.start()
        try:
            found = record.sha256_file(tmp_path / "x")
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert hashlib.sha256(bytes(50_000_000)).hexdigest() == found
        assert peak < 5_000_000

    def test_missing_file_is_named(self, tmp_path):
        with pytest.raises(InvalidInput, match=r"cannot read .*gone: No such file"):
            record.sha256_file(tmp_path / "gone")


class TestLoadingOnce:
    def test_a_file_is_parsed_once_until_it_changes(self, tmp_path, monkeypatch):
        folder, parsed, plain = tmp_path / "one", [], record.read_json
        record.dump(full_run(), folder / "run.json")
        monkeypatch.setattr(record, "read_json", lambda path: parsed.append(path) or plain(path))
        first = record.load(folder)
        assert record.load(folder / "run.json") is first
        assert [folder / "run.json"] == parsed
        record.dump(replace(full_run(), variant="another"), folder / "run.json")
        assert "another" == record.load(folder).variant
        assert 2 == len(parsed)

    def test_what_cannot_be_read_is_refused_each_time(self, tmp_path):
        (tmp_path / "run.json").write_text("{")
        for _ in range(2):
            with pytest.raises(InvalidInput, match="not valid JSON"):
                record.load(tmp_path)

    def test_only_the_last_ones_are_kept(self, tmp_path):
        for k in range(70):
            record.dump(replace(full_run(), variant=f"v{k}"), tmp_path / str(k) / "run.json")
            record.load(tmp_path / str(k))
        assert len(record._RUNS) <= 64
