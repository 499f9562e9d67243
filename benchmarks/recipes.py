"""What every recipe makes of every architecture: built or not, precision achieved, size, quality, speed.

    python benchmarks/recipes.py table --data VAL --weights LITE0.pth --calibration-data DIR     (VAL/<wnid>/<image>)
    python benchmarks/recipes.py rivals --data VAL --weights LITE0.pth --calibration-data DIR
    python benchmarks/recipes.py memory --calibration-data DIR

``table`` exports EfficientNet-Lite0 with its ImageNet weights and the paper's four architectures with random ones by
every recipe, and measures what can run on this machine, taking turns with its runtime's FP32 variant, whose median in
that very turn stands beside. What is written for absent devices is not timed; this CPU judges it, in float between its
Q/DQ nodes. Random weights have parity and agreement, and no accuracy.

``rivals`` compares the INT8 artifacts for ONNX Runtime and OpenVINO with what ``quantize_static`` (per channel) and
``nncf.quantize`` make of the same graph by default, sessions taking turns in one process.

``memory`` shows the peak of the memory that exporting an 88-million-parameter model takes, all processes together.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from edgebench import artifacts, backends, builds, catalog, environment, metrics
from edgebench.conversion import PLAIN, open_here
from edgebench.datasets import open_images, targets
from edgebench.export import Exporter, Wanted
from edgebench.imagecache import cached, normalize
from edgebench.record import Artifact, Recipe
from edgebench.sources import Source, open_source

LITE0 = "timm:tf_efficientnet_lite0"
PAPER = ("timm:convnext_base", "timm:deit3_base_patch16_224", "open_clip:ViT-B-16", "open_clip:convnext_base")
HEADER = ("Model", "Recipe", "Built", "Precision", "Products by precision", "MB", "Agreement %", "SQNR dB", "Top-1 %",
          "Change", "ECE %", "Flips −/+ %", "FP32 p50 ms", "p50 ms", "Speed-up")


def table(options: argparse.Namespace) -> None:
    """Print the table as Markdown, row by row as it is known."""
    print("| " + " | ".join(HEADER) + " |")
    print("|" + "---|" * len(HEADER), flush=True)
    for model in options.models.split(","):
        _rows(model, options)


def _rows(model: str, options: argparse.Namespace) -> None:
    source = open_source(model, weights=options.weights if model == LITE0 else "random")
    calibration = open_images(options.calibration_data)
    recipes = [catalog.recipe(name) for name in options.recipes.split(",")] if options.recipes else \
        sorted(catalog.recipes().values(), key=lambda one: (one.precision != "fp32", one.backend, one.id))
    images = _Images(source, options.data) if model == LITE0 else None
    with tempfile.TemporaryDirectory() as scratch, \
            Exporter(source, Path(options.out or scratch), Wanted(calibration=calibration)) as exporter:
        references: _References = {}
        for recipe in recipes:
            begin = time.perf_counter()
            try:
                folder = exporter.export(recipe)
            except Exception as error:  # noqa: BLE001  # a row must say why there is nothing, whatever it was
                print(f"| {model} | {recipe.id} | no: {str(error)[:160]} |", flush=True)
                continue
            artifact = artifacts.verify(folder)
            took = time.perf_counter() - begin
            row = [model, recipe.id, f"yes, {took:.0f} s", *_truth(artifact),
                   *_measured(folder, artifact, images, references)]
            if backends.get(recipe.backend).reason_against(recipe) is not None:
                shutil.rmtree(folder)
            print("| " + " | ".join(row) + " |", flush=True)


def _truth(artifact: Artifact) -> list[str]:
    found, parity = artifact.precision, artifact.parity
    assert found is not None
    logits = next((one for one in parity.outputs if one.name == artifact.outputs[0].name), None) if parity else None
    return [
        found.executed + (" (executed)" if found.time_share else " (in the file)"),
        ", ".join(f"{name} {count}" for name, count in found.compute_layers.items()),
        f"{artifact.size_bytes / 1e6:.1f}",
        f"{parity.top1_agreement * 100:.0f} of {parity.images}" if parity else "not run",
        f"{logits.sqnr_db:.1f}" if logits and logits.sqnr_db is not None else "–"]


class _Images:
    """Labelled images as the model reads them."""

    def __init__(self, source: Source, data: str) -> None:
        assert source.preprocess is not None
        images = open_images(data)
        cache = cached(images.items, source.preprocess)
        wanted, _, _ = targets(images, source.classes, 1000)
        self.targets = np.array([wanted[k] for k in cache.kept])
        self.pixels, self.preprocess = cache.pixels(), source.preprocess

    def logits(self, session: backends.Session, *, batch: int) -> np.ndarray:
        """Return what a session that is open for `batch` images answers (N, K)."""
        name, output = session.inputs[0].name, session.outputs[0].name
        return np.concatenate([
            np.array(session.infer({name: artifacts.pad(normalize(self.pixels[k:k + batch], self.preprocess), batch)})[
                output][: len(self.pixels) - k], np.float32) for k in range(0, len(self.pixels), batch)])


@dataclass(frozen=True, slots=True)
class _Reference:
    """The FP32 variant of a runtime on its providers, which the others take turns with."""

    session: backends.Session
    logits: np.ndarray | None


_References = dict[tuple[str, tuple[str, ...]], _Reference]
"""By runtime and providers."""
CPU = ("onnxruntime", ())


def _measured(folder: Path, artifact: Artifact, images: _Images | None, references: _References) -> list[str]:
    """Return the cells of quality and speed, and keep what FP32 variants are for the others."""
    recipe, threads = artifact.recipe, environment.usable_cpus()
    key, here = (recipe.backend, recipe.providers), backends.get(recipe.backend).reason_against(recipe) is None
    base = references.get(key if here else CPU)
    logits, quality = None, ["", "", "", ""]
    # What nothing here runs has no parity either.
    if images is not None and artifact.parity is not None:
        logits = images.logits(open_here(folder / artifact.entry, recipe, batch=16, threads=threads), batch=16)
        quality = _quality(logits, base.logits if base else None, images.targets)
        if not here:
            quality[0] += " in float"
    if not here:
        return [*quality, "", "not here", ""]
    session = backends.get(recipe.backend).open_session(folder / artifact.entry, recipe, batch=1, threads=threads)
    if recipe.precision == "fp32":
        references[key] = _Reference(session, logits)
    rows = normalize(images.pixels[:8], images.preprocess) if images is not None else \
        np.random.default_rng(0).standard_normal((8, 3, *artifact.inputs[0].shape[2:]), np.float32)
    feeds = [{session.inputs[0].name: rows[k:k + 1]} for k in range(8)]
    speed = _speed(base.session if base else None, session, feeds)
    return [*quality, *speed[:-1], speed[-1] or ("ref." if recipe.precision == "fp32" else "")]


def _quality(logits: np.ndarray, reference: np.ndarray | None, wanted: np.ndarray) -> list[str]:
    """Return top-1, its change from the reference's, ECE, and flips, in percent."""
    mine = metrics.outcomes(logits, wanted)
    top1, ece = mine.correct.mean() * 100, metrics.ece_equal_width(mine.confidence, mine.correct) * 100
    if reference is None:
        return [f"{top1:.2f}", "", f"{ece:.2f}", ""]
    negative, positive = metrics.flips(metrics.outcomes(reference, wanted).correct, mine.correct)
    n = len(wanted)
    return [f"{top1:.2f}", f"{(positive - negative) / n * 100:+.2f}", f"{ece:.2f}",
            f"{negative / n * 100:.2f} / {positive / n * 100:.2f}"]


def _speed(base: backends.Session | None, session: backends.Session, feeds: Sequence[backends.Feeds]) -> list[str]:
    """Return the median latencies (ms) of FP32 and of `session`, which take turns, and their ratio."""
    begin = time.perf_counter()
    session.infer(feeds[0])
    rounds = min(builds.ROUNDS, max(4, round(20 / builds.PER_ROUND / (time.perf_counter() - begin))))
    fp32, own = builds.spread([base or session, session], feeds, session.outputs[0].name, rounds=rounds).p50_s
    return [f"{fp32 * 1e3:.2f}" if base else "", f"{own * 1e3:.2f}", f"{fp32 / own:.2f}×" if base else ""]


def rivals(options: argparse.Namespace) -> None:
    """Print, for each runtime, the median latencies of ours and of the tools' defaults, sessions taking turns."""
    import nncf
    import onnx
    import openvino
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    source = open_source(LITE0, weights=options.weights)
    images = _Images(source, options.data)
    calibration = open_images(options.calibration_data)
    int8 = {"onnxruntime": _for_this_cpu("ort-int8"), "openvino": _for_this_cpu("openvino-int8")}
    with tempfile.TemporaryDirectory() as out, Exporter(source, Path(out), Wanted(calibration=calibration)) as exporter:
        scratch, base = exporter.scratch, exporter.base(20)
        quantization = int8["onnxruntime"].quantization
        assert quantization is not None
        pixels = np.load(exporter.draw(quantization)[1])
        rows = [normalize(pixels[k:k + 8], images.preprocess) for k in range(0, len(pixels), 8)]

        class Reader(CalibrationDataReader):  # type: ignore[misc]
            def __init__(self) -> None:
                self.rest = iter(rows)

            def get_next(self) -> dict[str, np.ndarray] | None:
                return next(({"image": one} for one in self.rest), None)

        prepared, static = scratch / "pre.onnx", scratch / "static.onnx"
        quant_pre_process(str(base), str(prepared), skip_symbolic_shape=True)
        quantize_static(str(prepared), str(static), Reader(), quant_format=QuantFormat.QDQ, per_channel=True,
                        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8)
        nncf_onnx = scratch / "nncf.onnx"
        onnx.save(nncf.quantize(onnx.load(str(base)), nncf.Dataset([{"image": one} for one in rows])), str(nncf_onnx))
        nncf_ir = scratch / "nncf.xml"
        openvino.save_model(nncf.quantize(openvino.convert_model(str(base)), nncf.Dataset([[one] for one in rows])),
                            str(nncf_ir))
        static_ir = scratch / "static.xml"
        openvino.save_model(openvino.convert_model(str(static)), str(static_ir), compress_to_fp16=False)
        theirs = {"onnxruntime": {"quantize_static": static, "nncf.quantize": nncf_onnx},
                  "openvino": {"quantize_static": static_ir, "nncf.quantize": nncf_ir}}
        feeds = [{"image": normalize(images.pixels[k:k + 1], images.preprocess)} for k in range(100)]
        for runtime, recipe in int8.items():
            folder = exporter.export(recipe)
            entries = {"edgebench": folder / artifacts.verify(folder).entry, **theirs[runtime]}
            sessions: dict[str, Any] = {
                name: backends.get(runtime).open_session(entry, recipe, batch=1, threads=environment.usable_cpus())
                for name, entry in entries.items()}
            rounds = [builds.spread(list(sessions.values()), feeds, "logits").p50_s for _ in range(options.rounds)]
            medians = np.median(np.array(rounds), axis=0)
            ratios = np.median(np.array(rounds) / np.array(rounds)[:, :1], axis=0)
            reference = backends.get("onnxruntime").open_session(base, PLAIN, batch=1, threads=2)
            answers = {name: images.logits(session, batch=1).argmax(1)
                       for name, session in {**sessions, "FP32": reference}.items()}
            for name, p50, ratio in zip(sessions, medians, ratios, strict=True):
                right = answers[name] == images.targets
                flips = (answers[name] != images.targets) & (answers["FP32"] == images.targets)
                print(f"| {runtime} | {name} | {p50 * 1e3:.3f} | {ratio:.3f} | {right.mean() * 100:.2f} | "
                      f"{flips.mean() * 100:.2f} | {(answers[name] != answers['FP32']).mean() * 100:.2f} |", flush=True)


def _for_this_cpu(name: str) -> Recipe:
    return catalog.recipe(f"{name}-avx2" if environment.lacks_vnni() else name)


def memory(options: argparse.Namespace) -> None:
    """Print the peak of the resident memory (proportional share) of each export and all that it starts."""
    for model in options.models.split(","):
        if model == LITE0:
            continue
        for recipes in [options.recipes] if options.recipes else \
                ("ort-fp32,ort-int8", "openvino-fp32,openvino-int8", "rtx-fp32,rtx-int8"):
            with tempfile.TemporaryDirectory() as scratch:
                out = options.out or scratch
                process = psutil.Popen(
                    [sys.executable, "-m", "edgebench", "export", model, "--weights", "random", "--recipe", recipes,
                     "--calibration-data", options.calibration_data, "--out", out],
                    stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
                peak, done = [0], threading.Event()

                def watch(process: Any = process, peak: list[int] = peak, done: threading.Event = done) -> None:
                    while not done.wait(0.1):
                        total = 0
                        try:
                            for one in (process, *process.children(recursive=True)):
                                total += one.memory_full_info().pss
                        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
                            continue
                        peak[0] = max(peak[0], total)

                thread = threading.Thread(target=watch)
                thread.start()
                errors = process.communicate()[1]
                done.set()
                thread.join()
                print(f"| {model} | {recipes} | {'yes' if process.returncode == 0 else errors.decode()[-200:]} | "
                      f"{peak[0] / 1e9:.2f} |", flush=True)


def main() -> None:
    """Parse options and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("table", "rivals", "memory"))
    parser.add_argument("--data", help="labelled ImageNet validation images, VAL/<wnid>/<image>")
    parser.add_argument("--weights", help="weights of tf_efficientnet_lite0")
    parser.add_argument("--calibration-data", required=True, help="images that choose the ranges")
    parser.add_argument("--models", default=",".join((LITE0, *PAPER)))
    parser.add_argument("--recipes", help="all by default")
    parser.add_argument("--out", help="keep the artifacts that run here, and take those that are there already")
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    {"table": table, "rivals": rivals, "memory": memory}[options.what](options)
    print(json.dumps({"threads": environment.usable_cpus(), "busy_before": environment.busy_cpus(),
                      "cpu": environment.observe({}).cpu}), file=sys.stderr)


if __name__ == "__main__":
    main()
