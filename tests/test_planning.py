"""What is planned where a part of the data cannot be used."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from edgebench import evaluate, properties
from edgebench.class_subsets import IMAGENET_R
from edgebench.datasets import imagenet_wnids
from edgebench.errors import InvalidInput
from edgebench.imagecache import load_cache
from edgebench.planning import Plan, Planner, Wanted
from edgebench.record import Artifact, ClassMap, DatasetIdentity, Preprocess, TensorSpec
from tests import builders
from tests.conftest import picture
from tests.models import onnx_file

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


class TestOwnFolder:
    def planner(self, *data: Path, notes: list[str] | None = None, sweep: int | None = None, answers=None,
                asked: tuple[str, ...] = ("accuracy",)) -> Planner:
        wanted = Wanted(properties=asked, data=tuple(map(str, data)), ood=(), preset="native", sweep_images=sweep,
                        compact=False, by_name=True)
        return Planner(wanted, frozenset(), lambda what, share: None, [].append if notes is None else notes.append, answers)

    def test_what_was_passed_over_is_a_caveat_and_a_note(self, image_folder):
        root = image_folder({"part-0": 2, "part-1": 2, "part-2": 0})
        (root / "part-0" / "x.heif").write_bytes(b"")
        notes: list[str] = []
        found = self.planner(root, notes=notes).of(artifact(3))
        assert ["images-passed-over"] == [one.code for one in found.caveats]
        assert [found.caveats[0].message] == notes
        assert "1 files of a format" in notes[0]
        assert "1 folders without images (part-2)" in notes[0]

    def test_a_class_of_which_no_image_can_be_decoded_is_an_error(self, image_folder):
        root = image_folder({"part-0": 150, "part-1": 1})
        (root / "part-1" / "000.png").write_bytes(b"<html></html>")
        with pytest.raises(InvalidInput, match=r"no image of class 'part-1' can be decoded, the first: part-1/000\.png: .*HTML"):
            self.planner(root).of(artifact(2))

    @pytest.mark.parametrize(("largest", "bits"), [(200, 8), (1023, 10), (4095, 12), (9000, 14), (20_000, None)])
    def test_16_bit_images_that_use_fewer_bits_are_a_caveat_with_the_option_that_scales(self, tmp_path, largest, bits):
        for k in range(3):
            (tmp_path / f"part-{k}").mkdir()
            Image.fromarray(np.full((16, 16), largest // (k + 1), np.uint16)).save(tmp_path / f"part-{k}" / "a.png")
        own = artifact(3)
        codes = {one.code: one for one in self.planner(tmp_path).of(own).caveats}
        assert (bits is not None) == ("sixteen-bit-range" in codes)
        if bits is None:
            return
        assert f"gray_bits = {bits}" in codes["sixteen-bit-range"].hint
        scaled = replace(own, preprocess=replace(own.preprocess, gray_bits=bits))
        found = self.planner(tmp_path).of(scaled)
        assert () == found.caveats
        assert largest >> (bits - 8) == load_cache(Path(found.passes[0].cache)).pixels()[0].max()

    def test_two_folders_of_one_name_are_two_results(self, image_folder):
        first, second = (image_folder({"part-0": 1, "part-1": count}, name=f"{site}/val") for site, count in (("x", 1), ("y", 2)))
        found = self.planner(first, second).of(artifact(2))
        assert [("val@x", 2), ("val@y", 3)] == [(one.dataset.name, one.dataset.images) for one in found.passes]
        assert 2 == len({one.key.file for one in found.passes})

    @pytest.mark.parametrize(("sweep", "images"), [(5, 5), (8, 8), (30, 12), (0, 12), (1, 1)])
    def test_a_sweep_runs_on_as_many_images_as_were_asked_for(self, image_folder, sweep, images):
        root = image_folder({f"part-{k}": 2 for k in range(6)})
        found = self.planner(root, sweep=sweep, asked=("invariance",)).of(artifact(6))
        swept = [one for one in found.passes if one.key.condition != "clean"]
        assert {images} == {len(one.rows) for one in swept}
        assert swept

    def test_a_refusal_of_two_readings_says_what_either_gives(self, image_folder):
        # Sorted as text the last folder is output 1, by number output 10.
        names = [str(k) for k in range(11)]
        root = image_folder(dict.fromkeys(names, 2))
        order = sorted(names)

        def answers(of, inputs):
            assert (22, 3, 16, 16) == inputs.shape
            folders = sorted(name for name in names for _ in range(2))
            return np.eye(11, dtype=np.float32)[[order.index(name) for name in folders]]

        with pytest.raises(InvalidInput) as caught:
            self.planner(root, answers=answers).of(replace(artifact(11), classes=None))
        # '0' and '1' are the same in both orders: 4 of 22.
        assert "top-1 on 22 images: 100.0% sorted as text, as ImageFolder does, 18.2% by number" in caught.value.message


def test_a_file_answers_for_the_comparison_of_readings(tmp_path):
    file = onnx_file(tmp_path / "m.onnx")
    own = replace(artifact(3), inputs=(TensorSpec(name="image", dtype="float32", shape=("n", 3, 8, 8)),))
    inputs = np.random.default_rng(0).standard_normal((40, 3, 8, 8)).astype(np.float32)
    weight = onnx.numpy_helper.to_array(onnx.load(str(file)).graph.initializer[1])
    assert evaluate.answers(file, own, inputs) == pytest.approx(inputs.mean((2, 3)) @ weight, abs=1e-5)
