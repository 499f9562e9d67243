"""Everything that needs an NVIDIA GPU, in one go: the tests marked ``gpu``, then every GPU recipe built and compared.

    python benchmarks/gpu.py --calibration-data DIR [--data VAL] [--weights LITE0.pth] [--models A,B] [--builds 3]

For TensorRT, TensorRT-RTX, and ONNX Runtime's CUDA and TensorRT providers, whichever are installed: precision executed
(by the runtime's own account), size of what ships and of the engine, median latency from host to host and on the device
alone, agreement of the top class with ONNX Runtime's CPU in FP32, and how builds of one artifact differ. What is
missing is said first. Without a GPU it ends there, with status 3.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgebench import artifacts, backends, builds, catalog
from edgebench.backends.cuda import CudaRuntime
from edgebench.conversion import PLAIN
from edgebench.datasets import open_images
from edgebench.errors import EdgebenchError
from edgebench.export import Exporter, Wanted
from edgebench.imagecache import cached, normalize
from edgebench.recipe import Recipe
from edgebench.record import Artifact
from edgebench.sources import Source, open_source

PROJECT = Path(__file__).resolve().parents[1]
LITE0 = "timm:tf_efficientnet_lite0"
HEADER = ("Model", "Recipe", "Executed", "Products by precision", "Share of time", "Ships MB", "Engine MB", "Build s",
          "p50 host ms", "p50 device ms", "Copies ms", "Enqueue ms", "CUDA graph", "Agreement %",
          "Builds: p50 spread %", "Builds: other answers %")
WARM_UP = 50


def gpu_recipes(names: str = "") -> list[Recipe]:
    """Return the recipes that run on a GPU, FP32 of each runtime first."""
    known = [catalog.recipe(name) for name in names.split(",")] if names else [
        one for one in catalog.recipes().values()
        if one.backend in ("tensorrt", "tensorrt_rtx") or any(name != "CPUExecutionProvider" for name in one.providers)]
    return sorted(known, key=lambda one: (one.backend, one.providers, one.precision != "fp32", one.id))


def missing(recipes: Sequence[Recipe]) -> dict[str, str]:
    """Return why recipes cannot run here, by recipe."""
    found = {}
    for recipe in recipes:
        try:
            reason = backends.get(recipe.backend).reason_against(recipe)
        except EdgebenchError as error:
            reason = f"{error.message}; {error.hint}"
        if reason is not None:
            found[recipe.id] = reason
    return found


def median_s(step: Callable[[], Any], seconds: float) -> float:
    """Return the median time of a step that is repeated for `seconds`, after warming up."""
    for _ in range(WARM_UP):
        step()
    timings, begin = [], time.perf_counter_ns()
    while time.perf_counter_ns() - begin < seconds * 1e9 or len(timings) < 30:
        start = time.perf_counter_ns()
        step()
        timings.append(time.perf_counter_ns() - start)
    return float(np.median(timings)) * 1e-9


def measure(folder: Path, artifact: Artifact, inputs: np.ndarray, reference: np.ndarray, *, build_count: int,
            seconds: float, batch: int = 1) -> dict[str, Any]:
    """Run an artifact on this machine's GPU.

    Args:
        folder: The artifact's.
        artifact: Its manifest.
        inputs: (N, 3, H, W).
        reference: What the FP32 model answers on the CPU (N, K).
        build_count: Builds to compare; 1 compares none.
        seconds: Time for each median.
        batch: Images per inference.
    """
    backend, entry, recipe = backends.get(artifact.recipe.backend), folder / artifact.entry, artifact.recipe
    batch = artifacts.fixed_batch(artifact) or batch
    name, output = artifact.inputs[0].name, artifact.outputs[0].name
    begin = time.perf_counter()
    sessions = [backend.open_session(entry, recipe, batch=batch, threads=1, build_number=k) for k in range(build_count)]
    opened_s = time.perf_counter() - begin
    session: Any = sessions[0]
    feeds = [{name: artifacts.pad(inputs[k:k + batch], batch)} for k in range(0, len(inputs), batch)]
    answers = np.concatenate([np.array(session.infer(one)[output], np.float32) for one in feeds])[: len(inputs)]
    upcoming = itertools.cycle(feeds)
    found: dict[str, Any] = {
        "executed": backend.executed_precision(entry, recipe, feeds[0], threads=1), "opened_s": opened_s,
        "ships_bytes": artifact.size_bytes, "p50_host_s": median_s(lambda: session.infer(next(upcoming)), seconds),
        "agreement": float((answers.argmax(1) == reference.argmax(1)).mean()),
        "max_abs_difference": float(np.abs(answers - reference).max()),
        "cuda_graph": getattr(session, "cuda_graph", None), "notes": list(getattr(session, "notes", ())),
        "engine_bytes": None, "device": None, "spread": None}
    engine_for = getattr(backend, "engine_for", None)
    if engine_for is not None:
        found["engine_bytes"] = engine_for(entry, recipe).engine.plan_bytes
        times = [session.timed_infer(next(upcoming)) for _ in range(WARM_UP + 200)][WARM_UP:]
        found["device"] = {part: float(np.median([getattr(one, part) for one in times]))
                           for part in ("h2d_s", "compute_s", "d2h_s", "enqueue_s")}
    if build_count > 1:
        found["spread"] = builds.spread(sessions, feeds, output)
    for one in sessions:
        close = getattr(one, "close", None)
        if close is not None:
            close()
    return found


def row(model: str, recipe: Recipe, found: dict[str, Any]) -> list[str]:
    """Return the table's cells."""
    executed, device, spread = found["executed"], found["device"], found["spread"]

    def ms(part: str) -> str:
        return f"{device[part] * 1e3:.3f}" if device else ""

    return [
        model, recipe.id, executed.executed + ("" if executed.achieved else f" (asked for {recipe.precision})"),
        ", ".join(f"{kind} {count}" for kind, count in executed.compute_layers.items()),
        ", ".join(f"{kind} {share:.0%}" for kind, share in executed.time_share.items()),
        f"{found['ships_bytes'] / 1e6:.1f}", f"{found['engine_bytes'] / 1e6:.1f}" if found["engine_bytes"] else "",
        f"{found['opened_s']:.1f}", f"{found['p50_host_s'] * 1e3:.3f}", ms("compute_s"),
        f"{(device['h2d_s'] + device['d2h_s']) * 1e3:.3f}" if device else "", ms("enqueue_s"),
        {True: "yes", False: "no: " + "; ".join(found["notes"]), None: ""}[found["cuda_graph"]],
        f"{found['agreement'] * 100:.1f}",
        f"{(max(spread.p50_s) / min(spread.p50_s) - 1) * 100:.1f}" if spread else "",
        f"{max(spread.disagreement, default=0.0) * 100:.2f}" if spread else ""]


def compared_inputs(source: Source, data: str | None, count: int) -> np.ndarray:
    """Return images as the model reads them, else seeded noise (N, 3, H, W)."""
    assert source.size_px is not None
    if data is None or source.preprocess is None:
        return np.random.default_rng(0).standard_normal((count, 3, *source.size_px), np.float32)
    images = open_images(data)
    spread = images.items[:: max(1, len(images.items) // count)][:count]
    return normalize(cached(spread, source.preprocess).pixels(), source.preprocess)


def on_cpu(base: Path, inputs: np.ndarray) -> np.ndarray:
    """Return what the FP32 graph answers in ONNX Runtime on the CPU (N, K)."""
    backend = backends.get("onnxruntime")
    session = backend.open_session(base, PLAIN, batch=8, threads=0)
    name = session.inputs[0].name
    found = artifacts.run_batches(lambda _: session, {name: inputs}, 8)
    return next(iter(found.values()))


def _models(options: argparse.Namespace, recipes: list[Recipe]) -> list[dict[str, Any]]:
    print("| " + " | ".join(HEADER) + " |")
    print("|" + "---|" * len(HEADER), flush=True)
    found = []
    for model in options.models.split(","):
        source = open_source(model, weights=options.weights if model == LITE0 else "random")
        inputs = compared_inputs(source, options.data, options.images)
        wanted = Wanted(calibration=open_images(options.calibration_data) if options.calibration_data else None,
                        allow_precision_fallback=True)
        with tempfile.TemporaryDirectory() as out, Exporter(source, Path(out), wanted) as exporter:
            reference = on_cpu(exporter.base(recipes[0].opset), inputs)
            for recipe in recipes:
                try:
                    folder = exporter.export(recipe)
                    one = measure(folder, artifacts.verify(folder), inputs, reference, build_count=options.builds,
                                  seconds=options.seconds, batch=options.batch)
                except EdgebenchError as error:
                    print(f"| {model} | {recipe.id} | no: {error.message[:300]} |", flush=True)
                    continue
                print("| " + " | ".join(row(model, recipe, one)) + " |", flush=True)
                found.append({"model": model, "recipe": recipe.id, **one})
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=LITE0, help="comma-separated; random weights for all but Lite0")
    parser.add_argument("--weights", default="random", help="state dict for EfficientNet-Lite0")
    parser.add_argument("--calibration-data", help="images for INT8 and FP8 ranges; those recipes need it")
    parser.add_argument("--data", help="images for the agreement; seeded noise without")
    parser.add_argument("--images", type=int, default=64, help="inputs that the agreement is counted on")
    parser.add_argument("--recipes", default="", help="comma-separated; all that need a GPU without")
    parser.add_argument("--builds", type=int, default=1, help="builds of each artifact that are compared")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=5.0, help="for each median")
    parser.add_argument("--out", type=Path, help="JSON file for the raw results")
    parser.add_argument("--no-tests", action="store_true", help="leave the tests marked gpu out")
    options = parser.parse_args()
    recipes = gpu_recipes(options.recipes)
    reasons = missing(recipes)
    for reason in dict.fromkeys(reasons.values()):
        print(f"cannot run {', '.join(name for name in reasons if reasons[name] == reason)}: {reason}")
    able = [recipe for recipe in recipes if recipe.id not in reasons]
    if not able:
        print("no GPU recipe can run on this machine")
        return 3
    gpu = CudaRuntime().gpu()
    print(f"{gpu.name}, compute capability {'.'.join(map(str, gpu.compute_capability))}, "
          f"{gpu.memory_bytes / 1e9:.0f} GB, driver for CUDA {gpu.driver}, runtime {gpu.runtime}; "
          + ", ".join(f"{name} {version}" for backend in sorted({one.backend for one in able})
                      for name, version in backends.get(backend).packages().items()))
    status = 0
    if not options.no_tests:
        status = subprocess.run([sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-rs"], cwd=PROJECT,
                                check=False).returncode
    found = _models(options, able)
    if options.out is not None:
        from msgspec import to_builtins

        options.out.write_text(json.dumps(to_builtins(found), indent=1) + "\n", encoding="utf-8")
    return 1 if status else 0


if __name__ == "__main__":
    sys.exit(main())
