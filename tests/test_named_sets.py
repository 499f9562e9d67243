"""The benchmark sets in a data root: what is there, whose labels they carry, and what is wrong with them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from edgebench import datasets, named_sets, properties
from edgebench.datasets import ImageSet, imagenet_wnids
from edgebench.errors import InvalidInput, UsageError
from edgebench.named_sets import fit_sets, open_ood, open_sets, under
from edgebench.record import ClassMap
from tests.conftest import picture

WNIDS = imagenet_wnids()
IMAGENET = ClassMap(ids=WNIDS, names=WNIDS)
BACKWARDS = ClassMap(ids=WNIDS[::-1], names=WNIDS[::-1])
Write = Callable[..., Path]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    return folder


def put(folder: Path, *names: str) -> Path:
    """Write one small picture per name below `folder`."""
    for seed, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        picture(seed).save(folder / name)
    return folder


def only(location: Path) -> ImageSet:
    (found,) = open_sets(str(location))
    return found


def targets(images: ImageSet) -> tuple[int, ...]:
    return datasets.targets(images, IMAGENET, 1000)[0]


class TestImageNetV2:
    def test_folders_are_numbers_not_positions(self, root):
        put(root / "imagenet-v2", "0/a.jpeg", "1/b.jpeg", "10/c.jpeg", "2/d.jpeg")
        images = only(root)
        assert "imagenet-v2" == images.name
        assert [("0", 0), ("1", 1), ("10", 10), ("2", 2)] == [
            (item.folder, target) for item, target in zip(images.items, targets(images), strict=True)]

    @pytest.mark.parametrize("name", ["imagenetv2-matched-frequency-format-val", "imagenetv2"])
    def test_other_names_and_padded_numbers_are_known(self, root, name):
        put(root / name, "0007/a.jpeg", "0999/b.jpeg")
        assert (7, 999) == targets(only(root))

    def test_the_folder_itself_can_be_given(self, root):
        assert "imagenet-v2" == only(put(root / "imagenet-v2", "3/a.jpeg")).name

    def test_a_number_that_is_no_class_is_refused(self, root):
        put(root / "imagenet-v2", "0/a.jpeg", "1000/b.jpeg")
        with pytest.raises(InvalidInput, match="folder '1000' is no class of imagenet-v2"):
            open_sets(str(root))


class TestWordNetSets:
    @pytest.mark.parametrize("name", ["imagenet-a", "imagenet-r", "imagenet-sketch"])
    def test_targets_are_ranks_among_all_thousand(self, root, name):
        put(root / name, f"{WNIDS[988]}/a.png", f"{WNIDS[6]}/b.png", "README/notes.txt.png")
        (root / name / "README" / "notes.txt.png").unlink()
        (root / name / ".ipynb_checkpoints").mkdir()
        images = only(root)
        assert (name, True) == (images.name, images.imagenet)
        assert {WNIDS[6]: 6, WNIDS[988]: 988} == {
            item.folder: target for item, target in zip(images.items, targets(images), strict=True)}

    def test_a_users_folder_called_sketch_stays_the_users_own(self, image_folder):
        assert "sketch" == only(image_folder({"cat": 1, "dog": 1}, name="sketch")).name

    def test_a_strange_folder_with_images_is_named(self, root):
        put(root / "imagenet-a", f"{WNIDS[6]}/a.png", "extra/b.png")
        with pytest.raises(InvalidInput, match="folder 'extra' is no class of imagenet-a"):
            open_sets(str(root))

    def test_a_permuted_class_map_is_followed(self, root):
        images = only(put(root / "imagenet-sketch", f"{WNIDS[6]}/a.png").parent)
        assert (993,) == datasets.targets(images, BACKWARDS, 1000)[0]

    @pytest.mark.parametrize("name", ["imagenet-a", "imagenet-r"])
    def test_sets_scored_among_numbered_classes_refuse_another_order(self, root, name):
        images = only(put(root / name, f"{WNIDS[6]}/a.png").parent)
        with pytest.raises(InvalidInput, match="not in ImageNet's usual order"):
            datasets.targets(images, BACKWARDS, 1000)

    @pytest.mark.parametrize("name", ["imagenet-a", "imagenet-r"])
    def test_a_class_outside_of_the_two_hundred_is_refused_before_anything_runs(self, root, name):
        put(root / name, f"{WNIDS[6]}/a.png", f"{WNIDS[0]}/b.png")
        with pytest.raises(InvalidInput, match=f"folder '{WNIDS[0]}' is no class of {name}") as caught:
            open_sets(str(root))
        assert "the 200 WordNet ids" in caught.value.hint

    @pytest.mark.parametrize("name", ["imagenet-v2", "imagenet-a", "imagenet-r", "imagenet-sketch"])
    def test_files_named_like_the_validation_images_do_not_make_it_another_set(self, root, name):
        put(root / name, f"{WNIDS[6]}/ILSVRC2012_val_00000001.JPEG")
        assert name == only(root).name

    def test_a_linked_set_is_known_by_the_name_of_the_link(self, root, tmp_path):
        put(tmp_path / "elsewhere", f"{WNIDS[6]}/a.png")
        (root / "imagenet-r").symlink_to(tmp_path / "elsewhere")
        assert ("imagenet-r", True) == (only(root / "imagenet-r").name, only(root / "imagenet-r").imagenet)

    def test_a_class_map_of_names_is_called_what_it_is(self, root):
        images = only(put(root / "imagenet-sketch", f"{WNIDS[6]}/a.png").parent)
        names = tuple(f"name {k}" for k in range(1000))
        with pytest.raises(InvalidInput, match="a class map without their WordNet ids"):
            datasets.targets(images, ClassMap(ids=names, names=names), 1000)

    def test_another_model_cannot_be_scored_on_them(self, root):
        images = only(put(root / "imagenet-a", f"{WNIDS[6]}/a.png").parent)
        with pytest.raises(InvalidInput, match="needs a model with ImageNet's 1,000 classes; this one has 3 outputs"):
            datasets.targets(images, ClassMap(ids=("a", "b", "c"), names=("a", "b", "c")), 3)


class TestImageNetC:
    def test_conditions_are_the_folders_on_disk(self, root):
        for condition in ("gaussian_noise/1", "gaussian_noise/2", "fog/5"):
            put(root / "imagenet-c" / condition, f"{WNIDS[3]}/a.png", f"{WNIDS[700]}/b.png")
        images = only(root)
        assert {"fog:5", "gaussian_noise:1", "gaussian_noise:2"} == set(images.conditions)
        noisy = under(images, "gaussian_noise:2")
        assert noisy is not None
        assert (3, 700) == targets(noisy)
        assert all("gaussian_noise/2" in item.path.as_posix() for item in noisy.items)
        assert [item.id for item in images.items] == [item.id for item in noisy.items]
        assert under(images, "fog:1") is None


class TestImageNetHard:
    def write(self, root: Path, rows: Sequence[object]) -> None:
        put(root / "imagenet-hard", "images/a.png", "images/b.png")
        (root / "imagenet-hard" / "labels.jsonl").write_text(
            "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))

    def test_every_label_of_an_image_is_accepted(self, root):
        self.write(root, [{"file": "images/a.png", "labels": [5, 9, 11]}, {"file": "images/b.png", "labels": [2]}])
        images = only(root)
        assert (5, 2) == targets(images)
        assert ((5, 9, 11), (2,)) == datasets.accepted(images, IMAGENET, range(2))

    def test_single_labels_throughout_are_lists_too(self, root):
        self.write(root, [{"file": "images/a.png", "labels": [5]}, {"file": "images/b.png", "labels": [2]}])
        assert ((5,), (2,)) == datasets.accepted(only(root), IMAGENET, range(2))

    @pytest.mark.parametrize(("row", "message"), [
        ("not json", "line 1: expected"), ({"file": "images/a.png"}, "line 1: expected"),
        ({"file": "images/a.png", "labels": []}, "from 0 to 999"), ({"file": "images/a.png", "labels": [1000]}, "from 0 to 999"),
        ({"file": "../../etc/passwd", "labels": [1]}, "lies outside of")])
    def test_a_bad_row_is_named(self, root, row, message):
        self.write(root, [row])
        with pytest.raises(InvalidInput, match=message):
            open_sets(str(root))


class TestPug:
    def write(self, root: Path, mapping: object) -> None:
        put(root / "pug_imagenet", "Worlds/Wolf/a.png", "Scene_Light/Shirt/b.png")
        (root / "pug_imagenet" / "class_to_imagenet_idx.json").write_text(json.dumps(mapping))

    def test_each_subset_is_a_set_whose_images_accept_all_their_class_indices(self, root):
        self.write(root, {"Wolf": [269, 270, 271, 272], "Shirt": [841], "Sweatshirt": [841]})
        light, worlds = sorted(open_sets(str(root)), key=lambda one: one.name)
        assert ("pug/Scene_Light", "pug/Worlds") == (light.name, worlds.name)
        assert ((269, 270, 271, 272),) == datasets.accepted(worlds, IMAGENET, [0])
        assert (841,) == targets(light)
        # None of this subset's names stands for several classes: its images have lists all the same.
        assert ((841,),) == datasets.accepted(light, IMAGENET, [0])

    def test_a_folder_that_the_map_does_not_know_is_refused(self, root):
        self.write(root, {"Wolf": [269]})
        with pytest.raises(InvalidInput, match="Shirt"):
            open_sets(str(root))


    def test_a_subset_that_is_unfit_leaves_the_others_and_a_fault_of_all_is_told_once(self, root):
        self.write(root, {"Wolf": [269]})
        found, (unfit,) = fit_sets(str(root))
        assert (["pug/Worlds"], "pug/Scene_Light") == ([one.name for one in found], unfit.name)
        (root / "pug_imagenet" / "class_to_imagenet_idx.json").write_text("no map")
        with pytest.raises(InvalidInput) as raised:
            fit_sets(str(root))
        row = next(one for one in named_sets.check(str(root)) if one.name == "pug")
        assert ("unusable", f"{raised.value.message}; {raised.value.hint}") == (row.state, row.note)


class TestVtab:
    def test_labels_are_ranks_within_the_task_over_all_splits(self, root):
        for split, names in (("train800", ("b/0.png", "a/0.png")), ("val200", ("b/1.png",)), ("test", ("c/0.png",))):
            put(root / "vtab" / "dtd" / split, *names)
        found = {images.name: datasets.targets(images, None, 1000)[0] for images in open_sets(str(root))}
        assert {"vtab/dtd/train800": (0, 1), "vtab/dtd/val200": (1,), "vtab/dtd/test": (2,)} == found

    def test_arrays_are_read_row_by_row(self, root):
        (root / "vtab" / "svhn").mkdir(parents=True)
        images = np.arange(3 * 8 * 8 * 3, dtype=np.uint8).reshape(3, 8, 8, 3)
        for split in named_sets.SPLITS:
            np.savez(root / "vtab" / "svhn" / f"{split}.npz", images=images, labels=np.array([10, 2, 10]))
        test = next(one for one in open_sets(str(root)) if one.name == "vtab/svhn/test")
        # Numbers are ranked as numbers: 2 comes before 10.
        assert (1, 0, 1) == datasets.targets(test, None, 1000)[0]
        assert [0, 1, 2] == [item.row for item in test.items]

    @pytest.mark.parametrize("images", [np.ones((2, 8, 8, 3), np.float32), np.ones((2, 8, 8), np.uint8)])
    def test_arrays_that_are_no_8_bit_pictures_are_refused(self, root, images):
        (root / "vtab" / "svhn").mkdir(parents=True)
        for split in named_sets.SPLITS:
            np.savez(root / "vtab" / "svhn" / f"{split}.npz", images=images, labels=np.array([1, 2]))
        with pytest.raises(InvalidInput, match=r"expected images \(N, H, W, 3\) uint8"):
            open_sets(str(root))

    @pytest.mark.parametrize("damage", ["cut", "garbled"])
    def test_a_damaged_array_file_is_named(self, root, damage):
        (root / "vtab" / "svhn").mkdir(parents=True)
        for split in named_sets.SPLITS:
            np.savez_compressed(root / "vtab" / "svhn" / f"{split}.npz", labels=np.array([1, 2]),
                                images=np.arange(2 * 8 * 8 * 3, dtype=np.uint8).reshape(2, 8, 8, 3))
        file = root / "vtab" / "svhn" / "val200.npz"
        whole = file.read_bytes()
        file.write_bytes(whole[:len(whole) // 2] if damage == "cut" else whole[:60] + bytes(40) + whole[100:])
        with pytest.raises(InvalidInput, match=r"val200\.npz: expected arrays"):
            open_sets(str(root))
        assert "unusable" == next(one for one in named_sets.check(str(root)) if one.name == "vtab").state

    def test_a_task_that_is_unfit_leaves_the_others(self, root):
        for split in named_sets.SPLITS:
            put(root / "vtab" / "dtd" / split, "a/0.png")
        put(root / "vtab" / "pets", "test/a/0.png")
        found, unfit = fit_sets(str(root))
        assert {"vtab/dtd/train800", "vtab/dtd/val200", "vtab/dtd/test"} == {one.name for one in found}
        assert [("vtab/pets", "transfer")] == [(one.name, one.serves) for one in unfit]
        assert "has no train800" in unfit[0].error.message
        row = next(one for one in named_sets.check(str(root)) if one.name == "vtab")
        assert ("partial", 3) == (row.state, row.images)
        assert "vtab/pets is left out: " in row.note
        assert "expected pets/{train800,val200,test}" in row.note

    def test_a_missing_split_is_named(self, root):
        put(root / "vtab" / "dtd", "test/a/0.png")
        with pytest.raises(InvalidInput, match="has no train800"):
            open_sets(str(root))


class TestOutOfDistribution:
    def test_folders_mean_nothing(self, root):
        images = open_ood(str(put(root / "smoke", "a.png", "deep/er/b.png")))
        assert ("ood/smoke", 2) == (images.name, len(images.items))
        assert (0, 0) == datasets.targets(images, None, 3)[0]

    def test_a_root_with_other_sets_brings_its_own(self, root):
        put(root / "ood" / "places", "x.png")
        put(root / "imagenet-o", "n1/y.png")
        put(root / "imagenet" / "val", f"{WNIDS[0]}/z.png")
        assert ["imagenet-val", "ood/imagenet-o", "ood/places"] == sorted(one.name for one in open_sets(str(root)))

    def test_a_class_called_ood_is_a_class(self, image_folder):
        assert ("cat", "ood") == only(image_folder({"cat": 1, "ood": 1})).folders

    def test_a_missing_folder_and_one_without_images_are_errors(self, root):
        with pytest.raises(UsageError, match="no such folder"):
            open_ood(str(root / "nowhere"))
        with pytest.raises(InvalidInput, match="holds no images"):
            open_ood(str(root))


class TestFlatValidationFolder:
    def test_classes_come_from_the_published_list(self, root):
        put(root / "imagenet" / "val", "ILSVRC2012_val_00000001.JPEG", "ILSVRC2012_val_00000003.JPEG")
        with pytest.raises(InvalidInput, match="no list of their classes"):
            open_sets(str(root))
        lines = [WNIDS[5], WNIDS[6], WNIDS[7], *[WNIDS[0]] * 49_997]
        (root / "imagenet" / "imagenet_2012_validation_synset_labels.txt").write_text("\n".join(lines))
        images = only(root)
        assert (5, 7) == targets(images)
        assert f"{WNIDS[5]}/ILSVRC2012_val_00000001.JPEG" == images.items[0].id


class TestCheck:
    def test_held_out_corruptions_do_not_count_as_published(self, root):
        for condition in ("fog/1", "fog/2", "spatter/1"):
            put(root / "imagenet-c" / condition, f"{WNIDS[3]}/a.png")
        found = next(one for one in named_sets.check(str(root)) if one.name == "imagenet-c")
        assert ("partial", 2) == (found.state, found.images)
        assert "imagenet-c: 2 of 75 conditions, 1 images in the first" == only(root).understood

    def test_says_what_is_there_what_is_missing_and_what_is_broken(self, root):
        put(root / "imagenet" / "val", f"{WNIDS[0]}/ILSVRC2012_val_00000001.JPEG")
        put(root / "imagenet-a", f"{WNIDS[6]}/a.png", "extra/b.png")
        found = {one.name: one for one in named_sets.check(str(root))}
        assert {*(layout.name for layout in named_sets.LAYOUTS), "ReaL labels", "ImageNet-X"} == set(found)
        assert ("partial", 1, 50_000) == (found["imagenet-val"].state, found["imagenet-val"].images,
                                          found["imagenet-val"].published)
        assert ("unusable", True) == (found["imagenet-a"].state, "extra" in found["imagenet-a"].note)
        assert ("missing", "expected imagenet-r/<wnid>/<image>") == (found["imagenet-r"].state, found["imagenet-r"].note)

    def test_a_complete_small_set_would_be_complete(self, root, monkeypatch):
        put(root / "imagenet-v2", *(f"{k}/x.jpeg" for k in (0, 1)))
        layouts = [layout for layout in named_sets.LAYOUTS if layout.name == "imagenet-v2"]
        shrunk = [type(one)(**{**{name: getattr(one, name) for name in one.__slots__}, "images": 2, "classes": 2})
                  for one in layouts]
        monkeypatch.setattr(named_sets, "LAYOUTS", shrunk)
        assert "complete" == named_sets.check(str(root))[0].state

    def test_labels_beside_the_images_are_counted(self, root):
        pytest.importorskip("imagenet_x", reason="the package brings the annotations")
        put(root / "imagenet-v2", "0/x.jpeg")
        found = {one.name: one for one in named_sets.check(str(root))}
        assert ("complete", 46_837) == (found["ReaL labels"].state, found["ReaL labels"].images)
        assert ("complete", 46_110) == (found["ImageNet-X"].state, found["ImageNet-X"].images)

    def test_digests_tell_class_maps_apart(self, root, tmp_path):
        put(root / "imagenet-v2", "0/x.jpeg")
        put(tmp_path / "other" / "imagenet-v2", "1/x.jpeg")
        first, second = (next(one for one in named_sets.check(str(place)) if one.name == "imagenet-v2").digest
                         for place in (root, tmp_path / "other"))
        assert first != second

    @pytest.mark.parametrize("layout", [one for one in named_sets.LAYOUTS if one.name not in ("pug", "vtab", "ood", "ood/imagenet-o")],
                             ids=lambda one: one.name)
    def test_what_a_set_serves_is_what_asks_for_it(self, layout):
        asking = [name for name in properties.NAMES if properties.get(name).passes([layout.name])]
        assert asking == layout.serves.split(", ")

    def test_a_plain_folder_is_one_row(self, labelled_folder):
        (row,) = named_sets.check(str(labelled_folder))
        assert "accuracy, calibration, robustness, transfer, invariance" == row.serves
        assert ("images", 6, 3) == (row.name, row.images, row.classes)
