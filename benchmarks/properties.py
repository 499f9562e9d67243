"""What evaluating the properties costs: the suite against bare inference, and against doing it the reference's way.

    python benchmarks/properties.py --data ROOT --weights FILE        (ROOT with imagenet/val and cue-conflict)

All in one run on the same images, EfficientNet-Lite0, preset `paper`, three variants:

(a) ``edgebench evaluate`` of all three, processes, scoring and report included, images already in the cache;
(b) nothing but the runtimes' inference calls for the same forward passes, at each variant's best batch size;
(c) the same properties as the published code evaluates them: eager PyTorch, images decoded anew for every property and
    every level of a sweep, nothing shared. Measured on part of the images and scaled by their number.

``--memory`` shows the peak memory of an evaluation of the same images once and ten times over.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from edgebench import artifacts, backends, environment, transforms
from edgebench.imagecache import cached, normalize
from edgebench.named_sets import open_sets
from edgebench.properties import CLEAN, get, united_passes
from edgebench.record import Artifact, Preprocess

RECIPES = ("ort-fp32", "ort-int8", "openvino-int8")
CHOSEN = ("accuracy", "calibration", "mistakes", "shape-bias", "invariance")
BATCHES = (1, 4, 8, 16, 32)
MODEL = "timm:tf_efficientnet_lite0"


def edgebench(*words: str | Path) -> float:
    """Run a command; returns its wall time (s)."""
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-m", "edgebench", *map(str, words)], check=True, stdout=subprocess.DEVNULL,
                   stderr=subprocess.DEVNULL)
    return time.perf_counter() - begin


def forward_passes(root: str) -> dict[str, int]:
    """Return the number of forward passes that the suite makes, by data set."""
    sets = {one.name: len(one.items) for one in open_sets(root)}
    counts = dict.fromkeys(sets, 0)
    for one in united_passes(CHOSEN, sorted(sets), "paper"):
        # The resolution sweep needs graphs of other sizes, which are not exported here.
        if not one.condition.startswith("resolution"):
            counts[one.dataset] += sets[one.dataset]
    return counts


def bare_inference(folder: Path, pixels: np.ndarray, preprocess: Preprocess, threads: int) -> tuple[float, int]:
    """Return seconds per image of the inference calls alone, at the best batch size, and that size."""
    artifact = artifacts.verify(folder)
    best: dict[int, float] = {}
    for batch in BATCHES:
        session = backends.get(artifact.recipe.backend).open_session(folder / artifact.entry, artifact.recipe,
                                                                     batch=batch, threads=threads)
        chunks = [normalize(pixels[k:k + batch], preprocess) for k in range(0, len(pixels) - batch + 1, batch)]
        name = session.inputs[0].name
        session.infer({name: chunks[0]})
        begin = time.perf_counter()
        for chunk in chunks:
            session.infer({name: chunk})
        best[batch] = (time.perf_counter() - begin) / (len(chunks) * batch)
    fastest = min(best, key=best.__getitem__)
    return best[fastest], fastest


def eager(weights: str, root: str, images: int) -> float:
    """Return the seconds that the reference's way takes for one variant, scaled from `images` per pass."""
    import torch

    from edgebench.sources import open_source

    source = open_source(MODEL, weights=weights)
    assert source.preprocess is not None
    paper = transforms.paper(source.preprocess)
    sets = {one.name: one.items for one in open_sets(root)}
    total = 0.0

    def one_pass(name: str, picture: Callable[[Image.Image], np.ndarray]) -> float:
        chosen = sets[name][:images]
        begin = time.perf_counter()
        with torch.inference_mode():
            for start in range(0, len(chosen), 32):
                stack = []
                for item in chosen[start:start + 32]:
                    with Image.open(item.path) as image:
                        stack.append(picture(image))
                torch.softmax(source.program(torch.from_numpy(normalize(np.stack(stack), paper)))[0], dim=1)
        return (time.perf_counter() - begin) * len(sets[name]) / len(chosen)

    for name in CHOSEN:
        for needed in get(name).passes(sorted(sets), "paper"):
            if needed.condition.startswith("resolution") or (name == "invariance" and needed.condition == CLEAN):
                continue
            total += one_pass(needed.dataset, lambda image, condition=needed.condition: transforms.render(
                image, paper, condition) if condition != CLEAN else transforms.render(image, paper, "scale:1"))
    return total


def speed(root: str, weights: str, rounds: int, eager_images: int) -> None:
    """Print (a), (b), (c) and their ratios."""
    threads = environment.usable_cpus()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        edgebench("export", MODEL, "--weights", weights, "--recipe", ",".join(RECIPES), "--calibration-data",
                  Path(root) / "cue-conflict", "--out", folder / "artifacts")
        built = [folder / "artifacts" / f"timm-tf_efficientnet_lite0--{recipe}" for recipe in RECIPES]
        words = ["evaluate", *built, "--data", root, "--preset", "paper", "--properties", ",".join(CHOSEN),
                 "--sweep-images", "0"]
        first = edgebench(*words, "--out", folder / "cold")
        counts = forward_passes(root)
        artifact: Artifact = artifacts.verify(built[0])
        assert artifact.preprocess is not None
        paper = transforms.paper(artifact.preprocess)
        val = next(one for one in open_sets(root) if one.name == "imagenet-val")
        pixels = np.array(cached(val.items, paper).pixels()[:320])
        print(f"{threads} threads, {environment.busy_cpus():.2f} CPUs busy before; forward passes per variant: "
              f"{sum(counts.values()):,} ({', '.join(f'{name} {n:,}' for name, n in counts.items())})")
        print(f"first time, images not in the cache yet: {first:.1f} s")
        whole, bare = [], []
        for number in range(rounds):
            per_image = {place.name.partition("--")[2]: bare_inference(place, pixels, paper, threads)
                         for place in built}
            bare.append(sum(seconds for seconds, _ in per_image.values()) * sum(counts.values()))
            whole.append(edgebench(*words, "--out", folder / f"warm-{number}"))
            print(f"round {number + 1}: (a) suite {whole[-1]:.1f} s, (b) inference alone {bare[-1]:.1f} s, "
                  f"(a)/(b) {whole[-1] / bare[-1]:.2f}; best batch and ms per image: "
                  + ", ".join(f"{name} {batch}: {seconds * 1e3:.2f}" for name, (seconds, batch) in per_image.items()))
        slow = eager(weights, root, eager_images) * len(RECIPES)
        ratios = [a / b for a, b in zip(whole, bare, strict=True)]
        print(f"median (a)/(b) {statistics.median(ratios):.2f}")
        print(f"(c) the reference's way, {eager_images} images per pass, scaled: {slow:.0f} s; "
              f"(c)/(a) {slow / statistics.median(whole):.1f}")


def memory(root: str, weights: str) -> None:
    """Print the peak memory of the largest process for the validation images once and ten times over."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        edgebench("export", MODEL, "--weights", weights, "--recipe", "ort-fp32", "--out", folder / "artifacts")
        artifact = folder / "artifacts" / "timm-tf_efficientnet_lite0--ort-fp32"
        items = next(one for one in open_sets(root) if one.name == "imagenet-val").items
        for copies in (1, 10):
            data = folder / f"times-{copies}"
            for copy in range(copies):
                for item in items:
                    (data / item.folder).mkdir(parents=True, exist_ok=True)
                    (data / item.folder / f"{copy}-{item.path.name}").symlink_to(item.path.resolve())
            process = os.fork()
            if process == 0:
                edgebench("evaluate", artifact, "--data", data, "--properties", "accuracy,calibration",
                          "--out", folder / f"out-{copies}")
                peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
                print(f"{len(items) * copies:,} images: peak resident memory {peak / 1024:.0f} MB", flush=True)
                os._exit(0)
            os.waitpid(process, 0)


def main() -> None:
    """Parse options and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="data root with imagenet/val and cue-conflict")
    parser.add_argument("--weights", required=True, help="weights of tf_efficientnet_lite0")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--eager-images", type=int, default=96, help="images per pass of (c)")
    parser.add_argument("--memory", action="store_true", help="show peak memory instead")
    options = parser.parse_args()
    if options.memory:
        memory(options.data, options.weights)
    else:
        speed(options.data, options.weights, options.rounds, options.eager_images)


if __name__ == "__main__":
    main()
