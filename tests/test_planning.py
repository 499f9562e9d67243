"""What is planned where a part of the data cannot be used."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgebench import evaluate, properties
from edgebench.class_subsets import IMAGENET_R
from edgebench.datasets import imagenet_wnids
from edgebench.errors import InvalidInput
from edgebench.planning import Plan, Planner, Wanted
from edgebench.record import Artifact, ClassMap, DatasetIdentity, Preprocess, TensorSpec
from tests import builders
from tests.conftest import picture

WNIDS = imagenet_wnids()


def artifact(classes: int = 1000) -> Artifact:
    """Return an artifact of a small classifier; of ImageNet's classes by default."""
    names = WNIDS if classes == 1000 else tuple(f"part-{k}" for k in range(classes))
    return replace(builders.artifact(builders.recipe("ort-fp32")), classes=ClassMap(ids=names, names=names),
                   inputs=(TensorSpec(name="image", dtype="float32", shape=("batch", 3, 16, 16)),),
                   outputs=(TensorSpec(name="logits", dtype="float32", shape=("batch", classes)),),
                   preprocess=Preprocess(size_px=(16, 16), mean=(0.5,) * 3, std=(0.5,) * 3, resize="squash", resize_px=None))


def plan(root: Path, *names: str, of: Artifact | None = None) -> Plan:
    """Return the plan on a data root for the properties named, all of them by default."""
    notes: list[str] = []
    wanted = Wanted(properties=names or ("accuracy", "robustness", "transfer", "synthetic"), data=(str(root),), ood=(),
                    preset="native", sweep_images=None, compact=False, by_name=bool(names))
    return Planner(wanted, frozenset(), lambda what, share: None, notes.append).of(of or artifact())


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A sound ImageNet-V2; a VTAB task without a split; an ImageNet-R of which every file is damaged."""
    for name in ("imagenet-v2/0/a.png", "imagenet-v2/7/b.png", "vtab/dtd/test/banded/a.png"):
        (tmp_path / name).parent.mkdir(parents=True)
        picture(1).save(tmp_path / name)
    for name in ("a.jpg", "b.jpg"):
        file = tmp_path / "imagenet-r" / WNIDS[IMAGENET_R[0]] / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"\xff\xd8 no picture")
    return tmp_path


def test_what_is_unfit_is_a_skip_with_reason_and_hint_and_the_rest_is_measured(root):
    found = plan(root)
    assert ["imagenet-v2"] == [one.dataset.name for one in found.passes]
    reasons = {skip.what: skip.reason for skip in found.skips}
    assert "dtd has no train800; expected dtd/{train800,val200,test}" in reasons["vtab/dtd"]
    assert "2 of 2 images" in reasons["imagenet-r"]
    assert properties.get("synthetic").NEEDS in reasons["synthetic"]


@pytest.mark.parametrize(("name", "lost"), [("transfer", "has no train800"), ("calibration", "2 of 2 images")])
def test_a_property_named_by_the_user_is_not_passed_over_for_a_fault_of_its_only_data(root, name, lost):
    with pytest.raises(InvalidInput, match=lost):
        plan(root, "robustness", name)


def test_a_property_named_by_the_user_is_scored_on_the_sets_that_are_left(root):
    found = plan(root, "robustness")
    assert ["imagenet-v2"] == [one.dataset.name for one in found.passes]
    assert {"vtab/dtd", "imagenet-r"} == {skip.what for skip in found.skips}


def test_a_fault_of_the_only_set_is_an_error_whatever_was_asked_for(root):
    with pytest.raises(InvalidInput, match="has no train800"):
        plan(root / "vtab")
    with pytest.raises(InvalidInput, match="2 of 2 images"):
        plan(root / "imagenet-r")


def test_sets_of_other_classes_than_the_models_are_passed_over_even_where_they_are_all(root):
    found = plan(root / "imagenet-v2", "robustness", of=artifact(3))
    assert () == found.passes
    assert ["imagenet-v2"] == [skip.what for skip in found.skips]


@pytest.mark.parametrize(("compact", "features"), [(False, 0), (False, 64), (True, 0), (True, 64)])
def test_the_room_foreseen_is_that_of_the_file(tmp_path, compact, features):
    images, classes = 300, 50
    generator = np.random.default_rng(0)
    ids = [f"folder/{k:05d}.png" for k in range(images)]
    data = DatasetIdentity(name="mine", source="mine", images=images, classes=classes, digest="a" * 64)
    logits = generator.normal(0, 1, (images, classes)).astype(np.float32)
    kept = generator.normal(0, 1, (images, features)).astype(np.float32) if features else None
    file = tmp_path / "one.npz"
    evaluate.save_predictions(file, [(logits, kept)], targets=[0] * images, ids=ids, dataset=data, artifact_digest="b" * 64,
                              compact=compact)
    foreseen = evaluate.room_needed(images, classes, ids=ids, features=features, compact=compact)
    # What is not foreseen are the headers of some arrays.
    assert foreseen <= file.stat().st_size <= foreseen + 6000
