"""Labels come from folder names through the class map, never from a folder's position."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import sys
import unicodedata
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgebench import datasets, named_sets
from edgebench.datasets import ImageSet, Item
from edgebench.errors import ExitCode, InvalidInput, MissingDependency, UsageError
from edgebench.record import ClassMap

ANIMALS = ClassMap(ids=("a1", "b2", "c3"), names=("tabby cat", "Golden Retriever", "owl"))


def images_of(*folders: str, name: str = "set", per_folder: int = 1) -> ImageSet:
    """Return an image set without files: one image per folder."""
    items = tuple(Item(id=f"{folder}/{k}.png", path=Path(name, folder, f"{k}.png"), folder=folder)
                  for folder in folders for k in range(per_folder))
    return ImageSet(name=name, source=name, items=items, understood="")


def synsets_of_timm() -> list[str]:
    """Return timm's own list of the 1,000 WordNet ids in class order."""
    found = importlib.util.find_spec("timm")
    if found is None or found.origin is None:
        pytest.skip("timm is not installed")
    return (Path(found.origin).parent / "data" / "_info" / "imagenet_synsets.txt").read_text().split()


class TestWordNetIds:
    def test_are_the_thousand_that_timm_lists_in_the_same_order(self):
        assert synsets_of_timm() == list(datasets.imagenet_wnids())

    def test_are_a_thousand_distinct_ones_in_ascending_order(self):
        wnids = datasets.imagenet_wnids()
        assert (1000, 1000) == (len(wnids), len(set(wnids)))
        assert sorted(wnids) == list(wnids)

    # From the published list of ILSVRC-2012 classes: tench, goldfish, great white shark, house finch, tabby,
    # bow (weapon), digital clock, vending machine, hen-of-the-woods, toilet tissue.
    @pytest.mark.parametrize(("wnid", "expected"), [
        ("n01440764", 0), ("n01443537", 1), ("n01484850", 2), ("n01532829", 12), ("n02123045", 281), ("n02879718", 456),
        ("n03196217", 530), ("n04525305", 886), ("n13052670", 996), ("n15075141", 999)])
    def test_one_folder_alone_gets_its_rank_among_all_thousand(self, wnid, expected):
        found, classes, assumed = datasets.targets(images_of(wnid), None, 1000)
        assert ((expected,), True) == (found, assumed)
        assert wnid == classes.ids[expected]

    def test_real_images_map_by_rank_not_by_the_position_of_their_folder(self, imagenet_800):
        images = datasets.open_images(str(imagenet_800))
        found, _, _ = datasets.targets(images, None, 1000)
        rank = {wnid: k for k, wnid in enumerate(synsets_of_timm())}
        assert (800, 544) == (len(images.items), len(images.folders))
        assert [rank[item.path.parent.name] for item in images.items] == list(found)
        position = {folder: k for k, folder in enumerate(sorted(entry.name for entry in imagenet_800.iterdir()))}
        assert found[-1] != position[images.items[-1].folder]

    def test_a_model_with_a_class_map_agrees_with_the_assumed_one(self, imagenet_800):
        wnids = datasets.imagenet_wnids()
        own = ClassMap(ids=wnids, names=tuple(f"class {k}" for k in range(1000)))
        images = datasets.open_images(str(imagenet_800))
        assert datasets.targets(images, None, 1000)[0] == datasets.targets(images, own, 1000)[0]
        assert datasets.targets(images, own, 1000)[2] is False

    def test_a_permuted_class_map_is_followed(self):
        wnids = datasets.imagenet_wnids()
        backwards = ClassMap(ids=wnids[::-1], names=wnids[::-1])
        assert (999, 0) == datasets.targets(images_of("n01440764", "n15075141"), backwards, 1000)[0]


class TestTargets:
    def test_numbers_are_class_indices_in_numeric_not_alphabetic_order(self):
        classes = ClassMap(ids=tuple(f"w{k}" for k in range(12)), names=tuple(f"name {k}" for k in range(12)))
        images = images_of("0", "1", "10", "2")
        assert (0, 1, 10, 2) == datasets.targets(images, classes, 12)[0]

    def test_padded_numbers_are_class_indices_too(self):
        classes = ClassMap(ids=("x", "y", "z"), names=("x", "y", "z"))
        assert (0, 2) == datasets.targets(images_of("000", "002"), classes, 3)[0]

    def test_an_id_wins_over_the_number_that_it_looks_like(self):
        classes = ClassMap(ids=("2", "0", "1"), names=("two", "zero", "one"))
        assert (1, 2, 0) == datasets.targets(images_of("0", "1", "2"), classes, 3)[0]

    def test_number_beyond_the_outputs_is_not_a_class(self):
        with pytest.raises(InvalidInput, match="folder '3' is none of the model's 3 classes"):
            datasets.targets(images_of("0", "3"), ANIMALS, 3)

    def test_numbers_among_names_are_not_class_indices(self):
        with pytest.raises(InvalidInput, match="folder '1' is none of the model's 3 classes"):
            datasets.targets(images_of("1", "owl"), ANIMALS, 3)

    @pytest.mark.parametrize(("folder", "expected"), [
        ("b2", 1), ("Golden Retriever", 1), ("golden_retriever", 1), ("GOLDEN_Retriever", 1), (" golden retriever ", 1),
        ("Tabby_Cat", 0), ("OWL", 2)])
    def test_names_match_whatever_their_case_and_underscores(self, folder, expected):
        assert (expected,) == datasets.targets(images_of(folder), ANIMALS, 3)[0]

    def test_ids_are_matched_exactly_before_names(self):
        classes = ClassMap(ids=("cat", "dog"), names=("dog", "cat"))
        assert (0, 1) == datasets.targets(images_of("cat", "dog"), classes, 2)[0]

    @pytest.mark.parametrize(("folder", "near"), [("Golden Retreiver", "Golden Retriever"), ("tabby_cta", "tabby cat"),
                                                  ("owls", "owl")])
    def test_unknown_class_is_named_with_the_nearest(self, folder, near):
        with pytest.raises(InvalidInput) as caught:
            datasets.targets(images_of("owl", folder), ANIMALS, 3)
        assert f"set: folder {folder!r} is none of the model's 3 classes; did you mean {near!r}?" == \
            caught.value.message
        assert "classes: a1, b2, c3; rename the folder, or pass --classes FILE" == caught.value.hint

    def test_a_long_class_list_is_cut_in_the_hint(self):
        classes = ClassMap(ids=tuple(f"k{k}" for k in range(9)), names=tuple(f"m{k}" for k in range(9)))
        with pytest.raises(InvalidInput) as caught:
            datasets.targets(images_of("other"), classes, 9)
        assert caught.value.hint.startswith("classes: k0, k1, k2, k3, k4, k5, …;")

    def test_without_a_class_map_sorted_names_are_assumed_where_their_number_fits(self):
        found, classes, assumed = datasets.targets(images_of("owl", "cat", "dog"), None, 3)
        assert ((2, 0, 1), ("cat", "dog", "owl"), True) == (found, classes.ids, assumed)

    @pytest.mark.parametrize("folders", [
        [str(k) for k in range(12)], [str(k) for k in range(1, 13)], [f"class{k}" for k in range(12)],
        ["2 euro", "10 euro"], ["0", "1", "2", "10", "11"], ["10", "2"]])
    def test_numbers_that_are_sorted_in_two_ways_are_refused_without_a_class_map(self, folders):
        # Sorted as text, as ImageFolder does, folder 10 comes before folder 2.
        with pytest.raises(InvalidInput) as caught:
            datasets.targets(images_of(*folders), None, len(folders))
        assert "two orders" in caught.value.message
        assert "--classes" in caught.value.hint
        names = tuple(sorted(folders))
        assert tuple(names.index(folder) for folder in folders) == datasets.targets(
            images_of(*folders), ClassMap(ids=names, names=names), len(folders))[0]

    def test_a_refusal_holds_the_targets_of_either_reading(self):
        with pytest.raises(datasets.TwoReadings) as caught:
            datasets.targets(images_of("cat", "dog"), None, 3)
        assert [{"cat": 0, "dog": 1}, {"cat": 1, "dog": 2}] == list(caught.value.readings.values())

    def test_some_of_many_numbers_may_be_sorted_as_text_among_all(self):
        with pytest.raises(datasets.TwoReadings) as caught:
            datasets.targets(images_of("2", "11"), None, 12)
        # 0, 1, 10, 11, 2, …
        assert {"2": 4, "11": 3} in caught.value.readings.values()

    def test_a_refusal_says_what_a_folder_would_be_in_either_order(self):
        with pytest.raises(InvalidInput) as caught:
            datasets.targets(images_of(*map(str, range(12))), None, 12)
        # '0', '1', '10', '11', '2', …: the third folder differs first.
        assert caught.value.message.endswith(
            "sorted as text, as ImageFolder does, '10' is output 2; by number, it is output 10")

    @pytest.mark.parametrize("folders", [
        [str(k) for k in range(10)], [str(k) for k in range(1, 10)], [f"{k:02d}" for k in range(1, 13)],
        [f"c{k:03d}" for k in range(12)]])
    def test_numbers_that_every_order_sorts_alike_are_taken_in_that_order(self, folders):
        found, _, assumed = datasets.targets(images_of(*folders), None, len(folders))
        assert (tuple(range(len(folders))), True) == (found, assumed)

    @pytest.mark.parametrize(("folders", "outputs"), [("0123", 5), ("1234", 5), ("013", 5), ("01", 1000)])
    def test_fewer_numbers_than_outputs_are_refused_without_a_class_map(self, folders, outputs):
        with pytest.raises(InvalidInput, match=f"has {len(folders)} class folders, the model has {outputs} outputs"):
            datasets.targets(images_of(*folders), None, outputs)

    def test_a_background_class_is_among_the_readings(self):
        with pytest.raises(InvalidInput) as caught:
            datasets.targets(images_of(*"0123"), None, 5)
        assert caught.value.message.endswith("folder '3' could be output 3 (as indices from 0), 4 (behind a background "
                                             "class)")

    def test_names_in_decomposed_form_are_the_same_names(self):
        names = ("été", "Ångström", "한국")
        stored = [unicodedata.normalize("NFD", name) for name in names]
        assert list(names) != stored
        composed, decomposed = ClassMap(ids=names, names=names), ClassMap(ids=tuple(stored), names=tuple(stored))
        assert (0, 1, 2) == datasets.targets(images_of(*stored), composed, 3)[0]
        assert (0, 1, 2) == datasets.targets(images_of(*names), decomposed, 3)[0]

    def test_accents_that_change_the_order_are_refused_without_a_class_map(self):
        with pytest.raises(InvalidInput, match="two orders"):
            datasets.targets(images_of(unicodedata.normalize("NFD", "é"), "z"), None, 2)

    def test_one_rule_for_all_folders_where_only_some_numbers_are_ids(self):
        classes = ClassMap(ids=("1", "2", "3", "4"), names=("ash", "birch", "cedar", "elm"))
        with pytest.raises(InvalidInput, match="two ways"):
            datasets.targets(images_of("0", "1", "2", "3"), classes, 4)
        assert (0, 3) == datasets.targets(images_of("1", "4"), classes, 4)[0]

    @pytest.mark.parametrize(("folders", "message"), [("12", "from 1 to 2"), ("123", "none of the model's 3 classes")])
    def test_numbers_from_1_are_no_indices_from_0(self, folders, message):
        with pytest.raises(InvalidInput, match=message):
            datasets.targets(images_of(*folders), ANIMALS, 3)

    def test_numbers_before_a_background_class_are_refused_and_behind_it_taken(self):
        classes = ClassMap(ids=("b", "x", "y"), names=("background", "ash", "birch"))
        with pytest.raises(InvalidInput, match="two ways"):
            datasets.targets(images_of("0", "1"), classes, 3)
        assert (1, 2) == datasets.targets(images_of("1", "2"), classes, 3)[0]

    def test_a_folder_that_is_one_class_by_id_and_another_by_name_is_refused_among_names(self):
        classes = ClassMap(ids=("cat", "dog", "x"), names=("dog", "cat", "owl"))
        with pytest.raises(InvalidInput, match="two ways"):
            datasets.targets(images_of("cat", "owl"), classes, 3)

    @pytest.mark.parametrize("folders", [("owl", "OWL"), ("Golden Retriever", "golden_retriever"), ("a1", "tabby cat"),
                                         ("0", "00")])
    def test_two_folders_of_one_class_are_refused(self, folders):
        with pytest.raises(InvalidInput, match="are both class"):
            datasets.targets(images_of(*folders), ANIMALS, 3)

    def test_names_that_match_only_partly_are_counted(self):
        with pytest.raises(InvalidInput, match="folder 'elk' is none of the model's 3 classes, nor is 1 of the other 2"):
            datasets.targets(images_of("elk", "gnu", "owl"), ANIMALS, 3)

    def test_splits_with_images_directly_in_them_are_not_classes(self):
        with pytest.raises(InvalidInput, match="splits"):
            datasets.targets(images_of("train", "val"), None, 2)
        own = ClassMap(ids=("val", "train"), names=("val", "train"))
        assert (1, 0) == datasets.targets(images_of("train", "val"), own, 2)[0]

    @pytest.mark.parametrize(("classes", "outputs"), [(ANIMALS, 3), (None, 3)], ids=["class map", "no class map"])
    def test_a_superscript_folder_name_is_no_number_and_does_not_crash(self, classes, outputs):
        # str.isdigit() holds for it, int() does not take it.
        assert "²".isdigit()
        with pytest.raises(InvalidInput):
            datasets.targets(images_of("²"), classes, outputs)

    def test_a_superscript_folder_name_can_be_a_class(self):
        found, classes, _ = datasets.targets(images_of("²", "1"), None, 2)
        assert ((1, 0), ("1", "²")) == (found, classes.ids)

    @pytest.mark.parametrize("folder", ["crane", "Crane", " CRANE"])
    def test_a_name_of_two_classes_is_not_silently_taken_for_the_first(self, folder):
        # ImageNet has the bird and the machine.
        classes = ClassMap(ids=("n02012849", "n01440764", "n03126707"), names=("crane", "tench", "crane"))
        with pytest.raises(InvalidInput) as caught:
            datasets.targets(images_of(folder, "tench"), classes, 3)
        assert (f"set: folder {folder!r} is the name of 2 classes", "call it by its id: n02012849, n03126707") == (
            caught.value.message, caught.value.hint)
        assert (2, 0, 1) == datasets.targets(images_of("n03126707", "n02012849", "tench"), classes, 3)[0]

    def test_an_id_is_not_ambiguous_although_two_classes_have_it_for_a_name(self):
        classes = ClassMap(ids=("crane", "machine"), names=("crane", "crane"))
        assert (0,) == datasets.targets(images_of("crane"), classes, 2)[0]

    @pytest.mark.parametrize("outputs", [2, 4, 1000])
    def test_without_a_class_map_and_another_number_of_outputs_nothing_is_guessed(self, outputs):
        with pytest.raises(InvalidInput) as caught:
            datasets.targets(images_of("cat", "dog", "owl"), None, outputs)
        assert caught.value.message.startswith(
            f"set has 3 class folders, the model has {outputs} outputs and no class map")
        assert "--classes FILE" in caught.value.hint

    def test_wordnet_folders_of_a_model_with_other_outputs_are_not_given_imagenet_ranks(self):
        # A model fine-tuned on two of the classes has them at 0 and 1.
        found, classes, _ = datasets.targets(images_of("n15075141", "n01443537"), None, 2)
        assert ((1, 0), ("n01443537", "n15075141")) == (found, classes.ids)

    @given(st.lists(st.integers(0, 999), min_size=1, max_size=8, unique=True), st.randoms())
    def test_targets_do_not_depend_on_which_other_folders_are_there(self, ranks, random):
        wnids = datasets.imagenet_wnids()
        random.shuffle(ranks)
        assert tuple(ranks) == datasets.targets(images_of(*(wnids[k] for k in ranks)), None, 1000)[0]


class TestCueConflict:
    IMAGES = images_of("airplane", "bear", name="cue-conflict")

    def test_categories_are_read_from_names_whatever_the_class_map(self):
        assert (0, 1) == datasets.targets(self.IMAGES, None, 1000)[0] == datasets.targets(
            self.IMAGES, ClassMap(ids=datasets.imagenet_wnids(), names=datasets.imagenet_wnids()), 1000)[0]

    def test_imagenets_classes_in_another_order_are_refused(self):
        backwards = datasets.imagenet_wnids()[::-1]
        with pytest.raises(InvalidInput, match="cue-conflict is scored by class numbers"):
            datasets.targets(self.IMAGES, ClassMap(ids=backwards, names=backwards), 1000)


class TestOpenImages:
    def test_labelled_folder_gives_every_image_with_its_folder_in_stable_order(self, labelled_folder):
        images = datasets.open_images(str(labelled_folder))
        assert ["cat/000.png", "cat/001.png", "cat/002.png", "dog/000.png", "dog/001.png", "owl/000.png"] == [
            item.id for item in images.items]
        assert ["cat", "cat", "cat", "dog", "dog", "owl"] == [item.folder for item in images.items]
        assert [labelled_folder / item.id for item in images.items] == [item.path for item in images.items]
        assert ("images", str(labelled_folder), ("cat", "dog", "owl")) == (images.name, images.source, images.folders)
        assert "labelled image folder: 6 images in 3 classes" == images.understood

    def test_deeper_folders_belong_to_their_class(self, labelled_folder):
        deep = labelled_folder / "cat" / "2024" / "may"
        deep.mkdir(parents=True)
        shutil.copy(labelled_folder / "dog" / "000.png", deep / "x.png")
        found = {item.id: item.folder for item in datasets.open_images(str(labelled_folder)).items}
        assert "cat" == found["cat/2024/may/x.png"]

    def test_hidden_folders_and_files_and_folders_without_images_are_passed_over(self, labelled_folder):
        expected = datasets.open_images(str(labelled_folder)).items
        for name in (".thumbnails", "__MACOSX"):
            (labelled_folder / name).mkdir()
            shutil.copy(labelled_folder / "cat" / "000.png", labelled_folder / name)
        (labelled_folder / "empty").mkdir()
        (labelled_folder / "notes").mkdir()
        (labelled_folder / "notes" / "readme.txt").write_text("no image")
        shutil.copy(labelled_folder / "cat" / "000.png", labelled_folder / "cat" / "._000.png")
        (labelled_folder / "cat" / "labels.csv").write_text("a,b")
        (labelled_folder / "cat" / "folder.png").mkdir()
        assert expected == datasets.open_images(str(labelled_folder)).items

    @pytest.mark.parametrize("name", [".ipynb_checkpoints", "__MACOSX", "may/.thumbnails", ".hidden/may"])
    def test_images_in_hidden_folders_inside_a_class_folder_are_not_counted(self, labelled_folder, name):
        expected = datasets.open_images(str(labelled_folder)).items
        (labelled_folder / "cat" / name).mkdir(parents=True)
        shutil.copy(labelled_folder / "cat" / "000.png", labelled_folder / "cat" / name / "a.png")
        assert expected == datasets.open_images(str(labelled_folder)).items

    @pytest.mark.parametrize("suffix", [".JPEG", ".jpg", ".JPG", ".png", ".bmp", ".webp", ".tif", ".TIFF", ".ppm", ".gif"])
    def test_suffixes_count_in_any_case(self, tmp_path, suffix):
        (tmp_path / "cat").mkdir()
        (tmp_path / "cat" / f"x{suffix}").write_bytes(b"")
        assert [f"cat/x{suffix}"] == [item.id for item in datasets.open_images(str(tmp_path)).items]

    def test_folder_linked_from_elsewhere_counts(self, labelled_folder, tmp_path):
        (tmp_path / "root").mkdir()
        (tmp_path / "root" / "cat").symlink_to(labelled_folder / "cat")
        assert ["cat/000.png", "cat/001.png", "cat/002.png"] == [
            item.id for item in datasets.open_images(str(tmp_path / "root")).items]

    def test_data_root_with_imagenet_val_is_understood_as_such(self, image_folder):
        root = image_folder({"imagenet/val/n01440764": 2, "imagenet/val/n15075141": 1, "other/x": 1}, name="data")
        (images,) = named_sets.open_sets(str(root))
        assert ("imagenet-val", "data root with imagenet/val: 3 images in 2 classes") == (images.name, images.understood)
        assert str(root / "imagenet" / "val") == images.source
        assert (0, 0, 999) == datasets.targets(images, None, 1000)[0]

    def test_a_data_root_gives_every_set_that_it_holds(self, image_folder):
        root = image_folder({"imagenet/val/n01440764": 2, "cue-conflict/cat": 3}, name="data")
        assert [("imagenet-val", 2), ("cue-conflict", 3)] == [
            (one.name, len(one.items)) for one in named_sets.open_sets(str(root))]

    def test_known_sets_are_recognised_anywhere_by_the_names_of_all_their_files(self, imagenet_800, shared_data):
        assert "imagenet-val" == datasets.open_images(str(imagenet_800)).name
        assert "cue-conflict" == datasets.open_images(str(shared_data / "cue-conflict-640")).name

    def test_one_foreign_file_makes_it_the_users_own_folder(self, image_folder, tmp_path):
        root = image_folder({"cat": 1}, name="mine")
        (root / "cat" / "000.png").rename(root / "cat" / "cat1-dog2.png")
        assert "cue-conflict" == datasets.open_images(str(root)).name
        (root / "cat" / "other.png").write_bytes((root / "cat" / "cat1-dog2.png").read_bytes())
        assert "mine" == datasets.open_images(str(root)).name

    def test_missing_folder_is_a_usage_error_that_shows_the_form(self, tmp_path):
        with pytest.raises(UsageError) as caught:
            datasets.open_images(str(tmp_path / "gone"))
        assert (f"no such folder: {tmp_path / 'gone'}", "pass a folder of the form ROOT/<class>/<image>") == (
            caught.value.message, caught.value.hint)

    def test_file_instead_of_a_folder_is_said_to_be_one(self, labelled_folder):
        file = labelled_folder / "cat" / "000.png"
        with pytest.raises(UsageError) as caught:
            datasets.open_images(str(file))
        assert f"{file} is not a folder" == caught.value.message

    def test_folder_without_anything_has_no_class_folders(self, tmp_path):
        (tmp_path / "pictures").mkdir()
        with pytest.raises(InvalidInput) as caught:
            datasets.open_images(str(tmp_path / "pictures"))
        assert f"{tmp_path / 'pictures'} has no class folders: expected pictures/<class>/<image>, got no images" == \
            caught.value.message
        assert ExitCode.UNMEASURABLE == caught.value.exit_code

    def test_loose_images_are_counted_in_the_advice(self, labelled_folder):
        with pytest.raises(InvalidInput) as caught:
            datasets.open_images(str(labelled_folder / "cat"))
        assert caught.value.message.endswith("expected cat/<class>/<image>, got 3 images directly in it")
        assert "sort the images into one folder per class" == caught.value.hint

    @pytest.mark.parametrize("name", ["demo:inspekt", "demo:"])
    def test_unknown_demo_is_a_usage_error(self, name):
        with pytest.raises(UsageError, match=f"unknown data set {name!r}"):
            datasets.open_images(name)


@pytest.fixture(scope="module")
def parts():
    if importlib.util.find_spec("conformal_clip_data") is None:
        pytest.skip("conformal-clip-data is not installed")
    return {part: datasets.demo_images(part).items for part in ("test", "fit", "calibration")}


class TestDemo:
    def test_parts_have_their_sizes(self, parts):
        assert {"test": 1000, "fit": 1000, "calibration": 250} == {part: len(items) for part, items in parts.items()}

    def test_what_is_tested_was_neither_fitted_nor_calibrated_on(self, parts):
        paths = {part: {item.path for item in items} for part, items in parts.items()}
        assert set() == paths["test"] & paths["fit"]
        assert paths["calibration"] < paths["fit"]
        assert 2000 == len(paths["test"] | paths["fit"])

    def test_no_image_is_in_both_halves_under_two_names(self, parts):
        content = {part: {hashlib.sha256(item.path.read_bytes()).digest() for item in parts[part]}
                   for part in ("test", "fit")}
        assert set() == content["test"] & content["fit"]

    def test_parts_hold_every_class_in_the_same_proportion(self, parts):
        count = {part: Counter(item.folder for item in items) for part, items in parts.items()}
        assert {"global", "local", "nominal"} == set(count["test"])
        for name, number in (count["test"] + count["fit"]).items():
            assert abs(count["test"][name] - number / 2) <= 1
            assert abs(count["calibration"][name] - number / 8) <= 1

    def test_parts_are_the_same_at_every_call(self, parts):
        assert parts["test"] == datasets.demo_images("test").items

    def test_location_is_the_test_half(self, parts):
        images = datasets.open_images("demo:inspection")
        assert parts["test"] == images.items
        assert ("inspection-test", "demo:inspection") == (images.name, images.source)
        assert "demo:inspection, test part: 1000 images in 3 classes" == images.understood

    def test_without_its_package_the_error_says_what_to_install(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "conformal_clip_data", None)
        with pytest.raises(MissingDependency) as caught:
            datasets.open_images("demo:inspection")
        assert "pip install 'edgebench[demo]'" in caught.value.hint


class TestIdentity:
    HASHES = ("aa", "bb", "cc")

    def digest(self, images: ImageSet, kept=(0, 1, 2), hashes=HASHES, wanted=(0, 1, 2)) -> str:
        return datasets.identity(images, kept, hashes, wanted).digest

    def test_counts_only_what_was_kept(self):
        found = datasets.identity(images_of("x", "y", "z"), (0, 2), self.HASHES, (5, 6, 5))
        assert ("set", "set", 2, 1) == (found.name, found.source, found.images, found.classes)

    def test_digest_is_the_published_form(self):
        # docs of DatasetIdentity.digest: SHA-256 over image names, hashes and targets, in order.
        expected = hashlib.sha256(b"x/0.png aa 7\nz/0.png cc 9\n").hexdigest()
        assert expected == self.digest(images_of("x", "y", "z"), kept=(0, 2), wanted=(7, 8, 9))

    def test_a_file_name_that_is_not_utf8_does_not_crash_the_digest_which_holds_its_very_bytes(self):
        name = os.fsdecode(b"caf\xe9.png")
        images = ImageSet(name="set", source="set", items=(Item(id=f"x/{name}", path=Path(name), folder="x"),), understood="")
        assert hashlib.sha256(b"x/caf\xe9.png aa 0\n").hexdigest() == self.digest(images, kept=(0,), wanted=(0,))

    def test_digest_changes_with_target_content_name_selection_and_order(self):
        images = images_of("x", "y", "z")
        variants = [
            self.digest(images), self.digest(images, wanted=(0, 1, 1)), self.digest(images, hashes=("aa", "bb", "cd")),
            self.digest(images_of("x", "y", "w")), self.digest(images, kept=(0, 1)), self.digest(images, kept=(1, 0, 2))]
        assert len(variants) == len(set(variants))

    def test_digest_does_not_depend_on_where_the_folder_lies(self):
        assert self.digest(images_of("x", "y", "z", name="here")) == self.digest(images_of("x", "y", "z", name="there"))


class TestDescribe:
    def test_names(self, labelled_folder):
        found = datasets.describe(datasets.open_images(str(labelled_folder)))
        assert {"understood as": "labelled image folder: 6 images in 3 classes", "images": 6, "classes": 3,
                "smallest class": 1, "largest class": 3, "folders": "names (cat, dog, owl)",
                "class digest": hashlib.sha256(b"cat\ndog\nowl").hexdigest()} == found

    def test_many_names_are_cut(self):
        assert "names (a, b, c, d, e, …)" == datasets.describe(images_of(*"abcdefg"))["folders"]

    def test_wordnet_ids(self, imagenet_800):
        found = datasets.describe(datasets.open_images(str(imagenet_800)))
        assert (800, 544, "ImageNet WordNet ids: 544 of the 1,000 classes") == (
            found["images"], found["classes"], found["folders"])

    def test_one_stray_folder_among_wordnet_ids_makes_them_names(self):
        assert "names (n01440764, n99999999)" == datasets.describe(images_of("n01440764", "n99999999"))["folders"]

    def test_class_indices(self):
        assert "class indices" == datasets.describe(images_of("0", "1", "10"))["folders"]

    def test_a_superscript_is_described_as_a_name_not_as_an_index(self):
        assert "names (1, ²)" == datasets.describe(images_of("1", "²"))["folders"]
