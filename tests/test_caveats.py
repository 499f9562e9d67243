"""Every caveat of the README can be raised: by a public call here, or in the test of the module that raises it."""

from __future__ import annotations

import ast
import itertools
import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx.helper as oh
import pytest
from onnx import TensorProto
from PIL import Image

from edgebench import (
    artifacts,
    assembly,
    catalog,
    datasets,
    evaluate,
    export,
    instrument,
    latency,
    parity,
    record,
    scenario_scores,
    scenarios,
    sources,
)
from edgebench.latency import Budget
from edgebench.observed import Observed
from edgebench.planning import Planner, Wanted
from edgebench.properties import Pass, Predictions, accuracy, calibration
from edgebench.record import BuildSpread, Caveat, ClassMap, DatasetIdentity, Preprocess, TensorSpec
from edgebench.telemetry.observe import WHICH_GPU
from edgebench.telemetry.types import Absent, ThrottleEvent
from edgebench.timing_types import DeviceTrace, LoadGenResult
from edgebench.worker import Measurement
from tests import builders
from tests import observations as ob
from tests.scripted import MS, World

ROOT = Path(__file__).resolve().parents[1]
TINY = Budget(name="tiny", warmup_count=1, warmup_s=0.0, min_count=400, min_batches=2, min_s=0.0, max_s=100.0, warmup_max_s=0.0)
STEADY = [0.010 + 0.00001 * (k % 7) for k in range(400)]

ELSEWHERE = {
    "batch-dependent": "test_intake", "given-precision": "test_intake", "few-calibration-images": "test_export",
    "precision-unproven": "test_export", "half-weights": "test_checkpoints", "unnamed-classes": "test_checkpoints",
    "weights-choice": "test_checkpoints", "weights-left-out": "test_checkpoints", "weights-by-position": "test_sources",
    "memory-differs": "test_boards", "module-unknown": "test_boards", "module-contradiction": "test_boards",
    "jetpack-unexpected": "test_boards", "power-mode-unknown": "test_boards"}
"""Caveats that need a model file, an export or a board's files: the module whose tests raise them."""


def raised() -> set[str]:
    """Return the codes that the package gives caveats, as they stand in its source."""
    found = set()
    for file in (ROOT / "edgebench").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Caveat":
                (code,) = [word.value for word in node.keywords if word.arg == "code"]
                found |= {one.value for one in ast.walk(code) if isinstance(one, ast.Constant)}
                found |= {parity.NOT_ACHIEVED} if isinstance(code, ast.Name) else set()
    return found


def documented() -> set[str]:
    section = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Reading caveats")[2].partition("\n## ")[0]
    return {code for line in section.splitlines() if line.startswith("| `")
            for code in re.findall(r"`([a-z0-9-]+)`", line.split("|")[1])}


class TestRegistry:
    def test_holds_what_the_package_raises_and_the_events_that_are_caveats_of_their_own(self):
        assert raised() | record.EVENT_CAVEATS == record.CAVEATS

    def test_is_what_the_readme_documents(self):
        assert record.CAVEATS == documented()

    def test_every_code_is_raised_here_or_in_the_test_of_its_module(self):
        assert record.CAVEATS == set(RAISE) | set(ELSEWHERE)

    @pytest.mark.parametrize(("code", "module"), ELSEWHERE.items())
    def test_the_other_tests_name_their_codes(self, code, module):
        assert f'"{code}"' in (ROOT / "tests" / f"{module}.py").read_text(encoding="utf-8")


def of_timings(seconds: Iterable[float] = STEADY, **changes: object) -> tuple[Caveat, ...]:
    return latency.caveats(replace(builders.single_stream(list(seconds)), **changes))


def of_machine(**changes: object) -> tuple[Caveat, ...]:
    environment = replace(builders.run().environment, **{"governor": "performance", "load_before": 0.0, **changes})
    return latency.environment_caveats(environment, 4)


def of_event(code: str, *, invalidates: bool = False) -> tuple[Caveat, ...]:
    return instrument.caveats(Observed(events=(ThrottleEvent(code=code, message="m", invalidates=invalidates),)), 0.95)


def of_device(h2d: float = 0.0, enqueue: float = 0.0, compute: tuple[float, ...] = (0.01, 0.01)) -> tuple[Caveat, ...]:
    zeros = (0.0,) * len(compute)
    return instrument.caveats(Observed(device_times=DeviceTrace(
        h2d_s=(h2d,) * len(compute), compute_s=compute, d2h_s=zeros, enqueue_s=(enqueue,) * len(compute), wall_s=compute)), 0.95)


def measured(**changes: object) -> tuple[Caveat, ...]:
    run = builders.run()
    found = Measurement(**{
        "timing_digest": "d", "environment": run.environment, "precision": run.precision, "golden_max_abs_difference": None,
        "cold_start": None, "peak_host_memory_bytes": None, "traces": (), "observed": None, **changes})
    return assembly.timing_caveats(found, builders.artifact(builders.recipe("ort-int8")), 0.95)


def scored(logits: np.ndarray) -> tuple[Caveat, ...]:
    n, classes = logits.shape
    data = DatasetIdentity(name="mine", source="mine", images=n, classes=classes, digest="1" * 64)
    key = Pass("mine")
    found = {key: Predictions(dataset=data, logits=logits.astype(np.float32), targets=np.arange(n) % classes,
                              ids=np.array([f"{k:03d}" for k in range(n)]))}
    return evaluate.caveats((*accuracy.score(found, None), *calibration.score(found, None)), found)


def loadgen_said(p90_s: float) -> tuple[Caveat, ...]:
    result = LoadGenResult(**{**LOADGEN, "percentiles_s": {"p90": p90_s}})
    return instrument.caveats(Observed(loadgen=result), 0.95, builders.single_stream(STEADY))


LOADGEN = {"scenario": "single-stream", "version": "6", "valid": True, "reasons": (), "queries": 400, "percentiles_s": {},
           "mean_s": 0.01, "throughput_hz": 100.0, "early_stopping_s": None, "early_stopping_q": 0.9, "settings": {}}


def restless() -> tuple[Caveat, ...]:
    times = itertools.chain(itertools.islice(itertools.cycle([5 * MS] * 20 + [9 * MS] * 20), 200), itertools.repeat(MS))
    world = World(times)
    return scenario_scores.caveats(scenarios.closed_loop(
        "single-stream", world.infer, replace(TINY, warmup_max_s=1.0), images_per_query=1, threads=1, clock=world.clock))


def overslept() -> tuple[Caveat, ...]:
    world = World(MS, oversleep=5 * MS)
    return scenario_scores.caveats(scenarios.camera(
        world.infer, 20.0, replace(TINY, min_count=50), threads=1, clock=world.clock, sleep=world.sleep))


def planned(folder: Path, *, classes: ClassMap | None, excluded: Iterable[str] = ()) -> tuple[Caveat, ...]:
    of = replace(builders.artifact(builders.recipe("ort-fp32")), classes=classes,
                 inputs=(TensorSpec(name="image", dtype="float32", shape=("batch", 3, 16, 16)),),
                 outputs=(TensorSpec(name="logits", dtype="float32", shape=("batch", 2)),),
                 preprocess=PREPROCESS)
    wanted = Wanted(properties=("accuracy",), data=(str(folder),), ood=(), preset="native", sweep_images=None, compact=False,
                    by_name=True)
    return Planner(wanted, frozenset(excluded), lambda what, share: None, [].append).of(of).caveats


PREPROCESS = Preprocess(size_px=(16, 16), mean=(0.5,) * 3, std=(0.5,) * 3, resize="squash", resize_px=None)
TWO = ClassMap(ids=("a", "b"), names=("a", "b"))


def pictures(folder: Path, spoil: Callable[[Path], object] = lambda _: None) -> Path:
    generator = np.random.default_rng(0)
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
        for k in range(3):
            Image.fromarray(generator.integers(0, 255, (16, 16, 3), np.uint8)).save(folder / name / f"{k}.png")
    spoil(folder)
    return folder


def turned(folder: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (16, 16)).save(folder / "a" / "9.jpg", exif=exif)


def dark(folder: Path) -> None:
    for name in ("a", "b"):
        Image.fromarray(np.full((16, 16), 900, np.uint16)).save(folder / name / "9.png")


def calibrated_on_some(folder: Path) -> tuple[Caveat, ...]:
    digest = record.sha256_file(pictures(folder) / "a" / "0.png")
    return planned(folder, classes=TWO, excluded=[digest])


def nested(folder: Path) -> tuple[Caveat, ...]:
    for k in range(2):
        (folder / "b" / "inner").mkdir(parents=True, exist_ok=True)
        (folder / "c").mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(folder / "b" / "inner" / f"{k}.png")
        Image.new("RGB", (8, 8)).save(folder / "c" / f"{k}.png")
    return datasets.doubts(datasets.open_images(str(folder)))


def exported(folder: Path, last: str | None, *, outputs: int = 4, recipe: str = "ort-fp32", bends: bool = False,
             spread: float = 2.0) -> tuple[Caveat, ...]:
    """Export a pooled linear classifier that ends in an operator, and return the doubts of its artifact."""
    folder.mkdir(exist_ok=True)
    generator = np.random.default_rng(1)
    weight = onnx.numpy_helper.from_array(generator.normal(0 if spread > 1 else 5, spread, (3, outputs)).astype(np.float32), "weight")
    nodes = [oh.make_node("GlobalAveragePool", ["image"], ["pooled"]), oh.make_node("Flatten", ["pooled"], ["flat"]),
             oh.make_node("MatMul", ["flat", "weight"], ["product"])]
    constants = [weight]
    if bends:
        # Probabilities that no operator of a softmax made.
        constants.append(onnx.numpy_helper.from_array(np.array([1], np.int64), "axis"))
        nodes += [oh.make_node("Abs", ["product"], ["raised"]),
                  oh.make_node("ReduceSum", ["raised", "axis"], ["sum"], keepdims=1), oh.make_node("Div", ["raised", "sum"], ["scores"])]
    else:
        nodes.append(oh.make_node(last or "Identity", ["product"], ["scores"]))
    graph = oh.make_graph(nodes, "g", [oh.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, 16, 16])],
                          [oh.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", outputs])], constants)
    onnx.save(oh.make_model(graph, opset_imports=[oh.make_opsetid("", 17)], ir_version=8), str(folder / "m.onnx"))
    source = sources.open_source(str(folder / "m.onnx"), preprocess=PREPROCESS)
    wanted = export.Wanted(calibration=datasets.open_images(str(pictures(folder / "images"))))
    with export.Exporter(source, folder / "out", wanted) as exporter:
        return artifacts.verify(exporter.export(catalog.recipe(recipe))).caveats


MODES = [0.010 if k % 2 else 0.020 for k in range(400)]
RAISE: dict[str, Callable[[Path], Iterable[Caveat]]] = {
    "few-timings": lambda _: of_timings(STEADY[:5]),
    "max-duration": lambda _: of_timings(stopped="max-duration"),
    "stopped-early": lambda _: of_timings(stopped="decided"),
    "slow-start": lambda _: of_timings([0.02] * 20 + STEADY[20:]),
    "drift": lambda _: of_timings(np.linspace(0.010, 0.014, 400).tolist()),
    "bimodal": lambda _: of_timings(MODES),
    "noisy": lambda _: of_timings(np.random.default_rng(0).uniform(0.01, 0.02, 400).tolist()),
    "coarse-clock": lambda _: of_timings(clock_resolution_s=0.005),
    "fixed-batch": lambda _: of_timings(batch=8),
    "warm-up": lambda _: restless(),
    "late-issue": lambda _: overslept(),
    "unstable": lambda _: instrument.caveats(ob.watched(builders.run(), verdict=replace(
        ob.STEADY, verdict="unstable", diagnosis="the level changes", hint="cool it")).observed, 0.95),
    "throttled": lambda _: of_event("cpu-thermal", invalidates=True),
    "cpu-quota": lambda _: of_event("cpu-quota"),
    "gpu-power-cap": lambda _: of_event("gpu-power-cap"),
    "over-current-instantaneous": lambda _: of_event("over-current-instantaneous"),
    "gpu-unknown": lambda _: instrument.caveats(ob.watched(builders.run(), telemetry=replace(
        ob.telemetry(4.0), absent=(Absent(what=WHICH_GPU, reason="r"),))).observed, 0.95),
    "loadgen-disagrees": lambda _: loadgen_said(0.02),
    "enqueue-bound": lambda _: of_device(enqueue=0.009),
    "copy-bound": lambda _: of_device(h2d=0.011),
    "device-unstable": lambda _: of_device(compute=(0.010, 0.012)),
    "governor": lambda _: of_machine(governor="powersave"),
    "gpu-governor": lambda _: of_machine(gpu_governor="simple_ondemand"),
    "other-load": lambda _: of_machine(load_before=3.0),
    "oversubscribed": lambda _: of_machine(cpus_usable=2),
    "builds-differ": lambda _: measured(build_spread=BuildSpread(
        builds=2, images=4, timings_per_build=100, p50_s=(0.01, 0.02), disagreement=(0.5,), max_abs_difference=(3.0,))),
    "no-int8-instructions": lambda _: measured(environment=replace(builders.run().environment, machine="x86_64", cpu_features=("avx2",))),
    "precision-not-achieved": lambda _: [one for one in [parity.not_achieved(
        replace(builders.run("ort-int8").precision, executed="fp32"), catalog.recipe("ort-int8"))] if one],
    "near-chance": lambda _: scored(np.random.default_rng(0).normal(0, 1, (60, 4))),
    "ece-is-noise": lambda _: scored(np.random.default_rng(0).normal(0, 0.01, (60, 4))),
    "outputs-look-like-probabilities": lambda _: scored(np.random.default_rng(0).dirichlet([1.0] * 4, 60)),
    "outputs-between-0-and-1": lambda _: scored(np.random.default_rng(0).uniform(0, 1, (60, 4))),
    "assumed-classes": lambda folder: planned(pictures(folder), classes=None),
    "unreadable-images": lambda folder: planned(pictures(folder, lambda at: (at / "a" / "9.png").write_bytes(b"x")), classes=TWO),
    "exif-orientation": lambda folder: planned(pictures(folder, turned), classes=TWO),
    "sixteen-bit-range": lambda folder: planned(pictures(folder, dark), classes=TWO),
    "calibration-images-left-out": calibrated_on_some,
    "images-passed-over": lambda folder: planned(pictures(folder, lambda at: (at / "a" / "x.png").symlink_to("nowhere")), classes=TWO),
    "folders-in-classes": nested,
    "sigmoid-scores": lambda folder: exported(folder, "Sigmoid"),
    "one-output": lambda folder: exported(folder, "Sigmoid", outputs=1),
    "inferred-outputs": lambda folder: exported(folder, None, bends=True),
    # Classes that differ by less than a step of the weights.
    "low-agreement": lambda folder: exported(folder, None, recipe="ort-int8", spread=0.002),
    "parity-unchecked": lambda folder: exported(folder, None, recipe="tensorrt-bf16"),
}

@pytest.mark.parametrize("code", RAISE)
def test_it_is_raised_with_a_message_and_a_hint(code, tmp_path):
    found = {one.code: one for one in RAISE[code](tmp_path / "data")}
    assert code in found
    assert found[code].message
    assert found[code].hint


def test_what_is_fine_raises_none():
    assert () == of_timings() == of_machine() == of_device()
