"""Finished runs on disk, made without profiling."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from edgebench import evaluate
from edgebench.properties import Pass, Predictions, accuracy
from edgebench.record import DatasetIdentity, PassRecord, Run, dump
from tests import builders

KEY = Pass("inspection")
FP32, INT8 = "demo-inspection--ort-fp32--onnxruntime", "demo-inspection--ort-int8--onnxruntime"
CLASSES = ("global", "local", "nominal")
HEAD = 'id = "mine"\ntitle = "Mine"\npurpose = "For tests."\n'
FLIPS = '[[rules]]\nid = "flips"\nmetric = "negative_flips"\nof = "accuracy"\nmax = 0.03\n'
ACCURACY = ('[[rules]]\nid = "accuracy"\nmetric = "accuracy_top1"\nof = "accuracy"\nagainst = "reference"\n'
            'max_decrease_absolute = 0.01\n')
SINCE = ('[[rules]]\nid = "since"\nmetric = "accuracy_top1"\nof = "accuracy"\nagainst = "baseline"\n'
         'max_decrease_absolute = 0.02\n')
SPEED = '[[rules]]\nid = "speed"\nmetric = "latency_p50"\nagainst = "baseline"\nmax_increase_relative = 0.1\n'


def policy_file(folder: Path, *rules: str, name: str = "policy.toml") -> Path:
    """Write a policy of these rules."""
    file = folder / name
    file.write_text(HEAD + "\n" + "\n".join(rules))
    return file


def logits(images: int, lost: int = 0) -> np.ndarray:
    """Return logits (images, 3) that name class k % 3 for image k, but for the first `lost`."""
    found = np.random.default_rng(0).normal(0, 0.5, (images, 3)).astype(np.float32)
    found[np.arange(images), np.arange(images) % 3] += 4.0
    found[:lost] = np.roll(found[:lost], 1, axis=1)
    return found


def names(images: int) -> np.ndarray:
    return np.array([f"{CLASSES[k % 3]}/{k:04d}.png" for k in range(images)])


def write_run(out: Path, recipe: str, *, lost: int = 0, images: int = 800, latency_s: float = 0.01, seed: int = 1,
              reference: tuple[Run, Predictions] | None = None, digest: str = "e", **changes: object,
              ) -> tuple[Run, Predictions]:
    """Write a variant's run file and predictions below `out`."""
    data = DatasetIdentity(name="inspection", source="demo", images=images, classes=3, digest=digest * 64)
    found = Predictions(dataset=data, logits=logits(images, lost), targets=np.arange(images) % 3, ids=names(images))
    other = None if reference is None else {KEY: reference[1]}
    timings = latency_s * np.exp(np.random.default_rng(seed).normal(0, 0.03, 400))
    run = builders.run(recipe, latency_s=timings.tolist(), evaluations=accuracy.score({KEY: found}, other),
                       reference=None if reference is None else reference[0])
    run = replace(run, passes=(PassRecord(dataset=data, condition="clean", preset="native"),), **changes)
    folder = out / run.variant
    evaluate.save_predictions(folder / KEY.file, [(found.logits, None)], targets=found.targets,
                              ids=found.ids.tolist(), dataset=data, artifact_digest=run.artifact.digest)
    dump(run, folder / "run.json")
    return run, found


def write_pair(out: Path, *, lost: int = 0, latency_s: float = 0.004, **changes) -> Path:
    """Write an FP32 run and its INT8 sibling that lost so many answers, as `profile` lays them out."""
    reference = write_run(out, "ort-fp32", **changes)
    write_run(out, "ort-int8", lost=lost, latency_s=latency_s, reference=reference, **changes)
    return out
