"""The one walk over image folders: what it reads, and an account of what it passes over."""

from __future__ import annotations

import io
import os
import shutil
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from edgebench import named_sets, walk
from edgebench.datasets import distinguished, doubts, open_images
from edgebench.errors import ExitCode, InvalidInput, UsageError
from tests.commands import cli
from tests.conftest import picture


def account(root: Path) -> dict[str, list[str]]:
    """Return the paths that were passed over, by reason."""
    found: dict[str, list[str]] = {}
    for one in open_images(str(root)).passed_over:
        found.setdefault(one.reason, []).append(one.path)
    return found


def ids(root: Path) -> set[str]:
    return {item.id for item in open_images(str(root)).items}


class TestFormats:
    @pytest.mark.parametrize(("name", "kind"), [
        ("a.jfif", "JPEG"), ("a.JPE", "JPEG"), ("a.jif", "JPEG"), ("a.pgm", "PPM"), ("a.apng", "PNG"), ("a.dib", "DIB"),
        ("a.tga", "TGA"), ("a.jp2", "JPEG2000"), ("a.pcx", "PCX"), ("a.mpo", "JPEG")])
    def test_every_picture_format_of_pillow_is_read(self, labelled_folder, name, kind):
        picture(1).convert("L" if kind == "PPM" else "RGB").save(labelled_folder / "owl" / name, kind)
        assert f"owl/{name}" in ids(labelled_folder)
        assert "unread-format" not in account(labelled_folder)

    @pytest.mark.parametrize("name", ["photo", "x.jpg_large", "blob.bin", "1.2", "y.png~"])
    def test_content_counts_where_the_name_says_nothing(self, labelled_folder, name):
        picture(1).save(labelled_folder / "owl" / name, "PNG")
        (labelled_folder / "owl" / "notes.txt").write_text("BM, and no bitmap")
        assert f"owl/{name}" in ids(labelled_folder)
        assert {"no-image": ["owl/notes.txt"]} == account(labelled_folder)

    @pytest.mark.parametrize(("name", "content"), [
        ("a.heic", b"\0\0\0\x18ftypheic"), ("a", b"\0\0\0\x18ftypmif1"), ("a.jxl", b""), ("a.dng", b""), ("a.dcm", b"")])
    def test_what_pillow_cannot_read_is_counted_and_a_caveat(self, labelled_folder, name, content):
        (labelled_folder / "cat" / name).write_bytes(content)
        images = open_images(str(labelled_folder))
        assert {"unread-format": [f"cat/{name}"]} == account(labelled_folder)
        assert ["images-passed-over"] == [one.code for one in doubts(images)]
        assert f"cat/{name}" in doubts(images)[0].message

    def test_a_class_without_any_readable_image_is_an_error(self, labelled_folder):
        (labelled_folder / "owl" / "000.png").rename(labelled_folder / "owl" / "000.heic")
        (labelled_folder / "owl" / "000.heic").write_bytes(b"\0\0\0\x18ftypheic")
        with pytest.raises(InvalidInput, match="class 'owl' has no image that can be read: 1 files of a format"):
            open_images(str(labelled_folder))


class TestLinks:
    def test_linked_files_and_folders_are_followed(self, labelled_folder, tmp_path):
        (tmp_path / "store" / "2024").mkdir(parents=True)
        picture(3).save(tmp_path / "store" / "2024" / "x.png")
        (labelled_folder / "owl" / "more").symlink_to(tmp_path / "store")
        (labelled_folder / "owl" / "y.png").symlink_to(tmp_path / "store" / "2024" / "x.png")
        assert {"owl/more/2024/x.png", "owl/y.png"} < ids(labelled_folder)
        assert {} == account(labelled_folder)

    def test_a_dangling_link_is_counted_and_many_are_an_error(self, image_folder, tmp_path):
        root = image_folder({"cat": 60, "dog": 60})
        (root / "cat" / "gone.png").symlink_to(tmp_path / "nowhere.png")
        assert {"dangling-link": ["cat/gone.png"]} == account(root)
        assert "1 links without a target (cat/gone.png)" in doubts(open_images(str(root)))[0].message
        (root / "cat" / "lost.png").symlink_to(tmp_path / "nowhere.png")
        with pytest.raises(InvalidInput, match=r"2 links without a target .*, beside 120 images") as caught:
            open_images(str(root))
        assert ExitCode.UNMEASURABLE == caught.value.exit_code

    @pytest.mark.parametrize("whole", [True, False], ids=["folder", "files"])
    def test_a_class_whose_links_all_dangle_is_an_error(self, labelled_folder, tmp_path, whole):
        shutil.rmtree(labelled_folder / "owl")
        if not whole:
            (labelled_folder / "owl").mkdir()
        (labelled_folder / "owl" if whole else labelled_folder / "owl" / "a.png").symlink_to(tmp_path / "unmounted")
        with pytest.raises(InvalidInput, match="class 'owl' has no image that can be read: 1 links without a target"):
            open_images(str(labelled_folder))

    @pytest.mark.parametrize("target", [".", "..", "../..", "../../.."])
    def test_a_link_to_a_folder_above_ends_and_brings_no_other_class(self, image_folder, target):
        root = image_folder({"cat/2024": 70, "dog": 70})
        before = ids(root)
        (root / "cat" / "2024" / "again").symlink_to(target)
        assert before == ids(root)
        assert {"link-loop": ["cat/2024/again"]} == account(root)

    def test_a_link_to_itself_is_a_loop(self, image_folder):
        root = image_folder({"cat": 120})
        (root / "cat" / "me.png").symlink_to("me.png")
        assert {"link-loop": ["cat/me.png"]} == account(root)


class TestNames:
    @pytest.mark.parametrize("name", ["_empty", "__background__", "_", "__init__", "-", "~x"])
    def test_a_leading_underscore_hides_no_class(self, image_folder, name):
        root = image_folder({"cat": 1, name: 2})
        assert {"cat": 1, name: 2} == Counter(item.folder for item in open_images(str(root)).items)

    def test_hidden_images_are_counted_and_what_systems_leave_is_not_doubted(self, labelled_folder):
        for name in (".x.png", "._000.png", "Thumbs.db", "@eaDir/000.png/THUMB.jpg", ".sub/y.png"):
            (labelled_folder / "cat" / name).parent.mkdir(parents=True, exist_ok=True)
            picture(1).save(labelled_folder / "cat" / name, "PNG")
        assert {"hidden": ["cat/.sub/y.png", "cat/.x.png"],
                "system-file": ["cat/._000.png", "cat/@eaDir", "cat/Thumbs.db"]} == account(labelled_folder)

    def test_folders_without_images_and_images_beside_the_classes_are_named(self, labelled_folder):
        (labelled_folder / "emu").mkdir()
        picture(1).save(labelled_folder / "loose.png")
        assert {"folder-without-images": ["emu"], "outside-classes": ["loose.png"]} == account(labelled_folder)

    def test_a_name_that_would_break_the_line_is_escaped(self):
        assert "a\\nb\\udce9" == walk.printable("a\nb\udce9")

    def test_a_pipe_is_no_image(self, labelled_folder):
        os.mkfifo(labelled_folder / "cat" / "p.png")
        assert {"special-file": ["cat/p.png"]} == account(labelled_folder)


class TestUnreadable:
    def test_a_folder_that_may_not_be_read_is_an_error(self, labelled_folder, monkeypatch):
        genuine = Path.iterdir

        def iterdir(path):
            if path.name == "dog":
                raise PermissionError(13, "Permission denied", str(path))
            return genuine(path)

        monkeypatch.setattr(Path, "iterdir", iterdir)
        with pytest.raises(InvalidInput, match=r"cannot read .*dog: Permission denied") as caught:
            open_images(str(labelled_folder))
        assert ExitCode.UNMEASURABLE == caught.value.exit_code

    def test_a_file_that_may_not_be_read_is_an_error(self, labelled_folder, monkeypatch):
        monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "001.png")
        with pytest.raises(InvalidInput, match=r"cannot read .*001\.png: Permission denied"):
            open_images(str(labelled_folder))


    @pytest.mark.parametrize("location", ["", " "])
    def test_an_empty_name_is_not_the_working_directory(self, labelled_folder, monkeypatch, location):
        monkeypatch.chdir(labelled_folder)
        for opening in (open_images, named_sets.open_sets, named_sets.open_ood, named_sets.check):
            with pytest.raises(UsageError, match="is empty"):
                opening(location)

    def test_a_name_that_the_system_cannot_look_at_is_an_error(self):
        with pytest.raises(InvalidInput, match="File name too long"):
            named_sets.open_sets("x" * 5000)


class TestForeignImages:
    def test_images_directly_in_the_folder_are_read_and_beside_folders_refused(self, image_folder):
        root = image_folder({"imagenet-r/n01443537": 1, "ood": 2}, name="data")
        assert {"imagenet-r", "ood/ood"} == {one.name for one in named_sets.open_sets(str(root))}
        shutil.copytree(root / "imagenet-r", root / "ood" / "more")
        _, unfit = named_sets.fit_sets(str(root))
        assert "2 images beside its folders" in unfit[0].error.message

    def test_what_lies_beside_a_flat_validation_set_is_named(self, tmp_path):
        folder = tmp_path / "imagenet" / "val"
        folder.mkdir(parents=True)
        picture(1).save(folder / "ILSVRC2012_val_00000001.JPEG")
        picture(1).save(folder / "extra.png")
        (tmp_path / "imagenet" / "synset_labels.txt").write_text("n01440764\n" * 50_000)
        (images,) = named_sets.open_sets(str(tmp_path))
        assert ["extra.png"] == [one.path for one in images.passed_over]


class TestSplits:
    @pytest.mark.parametrize("names", [("train", "val"), ("Training", "Validation"), ("fold0", "fold1", "fold2"),
                                       ("train2017", "test"), ("dev", "holdout"), ("val",)])
    def test_splits_beside_each_other_are_no_classes(self, image_folder, names):
        root = image_folder({f"{split}/{name}": 1 for split in names for name in ("ok", "defect")})
        with pytest.raises(InvalidInput, match="split") as caught:
            open_images(str(root))
        assert all(str(root / name) in caught.value.hint for name in names)
        assert {"ok", "defect"} == set(open_images(str(root / names[0])).folders)

    def test_splits_below_a_single_folder_are_found(self, image_folder):
        root = image_folder({f"set/{split}/{name}": 1 for split in ("train", "val") for name in ("a", "b")})
        with pytest.raises(InvalidInput) as caught:
            open_images(str(root))
        assert str(root / "set" / "val") in caught.value.hint

    def test_a_class_may_be_called_train(self, image_folder):
        root = image_folder({"train": 2, "bus": 2, "tram/2024": 2})
        assert ("bus", "train", "tram") == open_images(str(root)).folders

    def test_classes_that_hold_only_folders_are_a_caveat(self, image_folder):
        images = open_images(str(image_folder({"site-a/ok": 1, "site-b/ok": 1, "c": 1})))
        (doubt,) = doubts(images)
        assert "folders-in-classes" == doubt.code
        assert "2 of 3 class folders hold only folders" in doubt.message


class TestBenchmarkNames:
    @pytest.mark.parametrize("name", ["imagenet-a", "imagenet-r", "cue-conflict", "imagenet-hard", "imagenet-c", "ood"])
    def test_a_folder_of_own_classes_is_no_benchmark_by_its_name(self, image_folder, name):
        (images,) = named_sets.open_sets(str(image_folder({"ok": 2, "defect": 1}, name=name)))
        assert ({"ok", "defect"}, None, False) == (set(images.folders), images.items[0].labels, images.imagenet)
        assert name not in {images.name} - {"ood"}

    @pytest.mark.parametrize("name", ["sketch", "cue-conflict", "imagenet-o", "ood", "vtab", "imagenet-r"])
    def test_a_class_may_be_called_as_a_benchmark(self, image_folder, name):
        (images,) = named_sets.open_sets(str(image_folder({name: 2, "photo": 1}, name="mine")))
        assert ("mine", {name, "photo"}) == (images.name, set(images.folders))

    def test_folders_beside_the_sets_of_a_data_root_are_named(self, image_folder):
        root = image_folder({"imagenet-r/n01443537": 1, "cats": 3, "dogs": 3}, name="data")
        (images,) = named_sets.open_sets(str(root))
        assert ["cats", "dogs"] == [one.path for one in images.passed_over if one.reason == "other-folder"]
        assert "2 folders that belong to no set" in doubts(images)[0].message


class TestTwoFoldersOfOneName:
    def test_are_told_apart_by_the_folders_above_them(self, image_folder):
        first, second = image_folder({"a": 1}, name="site-a/x/val"), image_folder({"a": 1}, name="site-b/x/val")
        other = open_images(str(image_folder({"a": 1}, name="c")))
        found = distinguished([open_images(str(first)), other, open_images(str(second))])
        assert ["val@site-a", "c", "val@site-b"] == [one.name for one in found]

    def test_one_folder_twice_is_a_usage_error(self, labelled_folder):
        with pytest.raises(UsageError, match="given twice"):
            distinguished([open_images(str(labelled_folder)), open_images(f"{labelled_folder}/../{labelled_folder.name}")])

    def test_two_copies_of_a_benchmark_are_refused(self, image_folder):
        roots = [image_folder({"imagenet/val/n01443537": 1}, name=name) for name in ("x", "y")]
        with pytest.raises(UsageError, match="two data sets are called 'imagenet-val'"):
            distinguished([one for root in roots for one in named_sets.open_sets(str(root))])


class TestDataCheck:
    def test_says_what_was_passed_over(self, labelled_folder):
        (labelled_folder / "cat" / "x.heic").write_bytes(b"\0\0\0\x18ftypheic")
        done = cli("data", "check", str(labelled_folder))
        assert 0 == done.returncode
        assert "1 files of a format that Pillow does not read here (cat/x.heic)" in " ".join(done.stdout.split())

    @pytest.mark.parametrize(("broken", "code"), [(1, 0), (3, ExitCode.UNMEASURABLE)])
    def test_counts_files_that_are_no_images_and_ends_as_profile_would(self, image_folder, broken, code):
        root = image_folder({"cat": 30, "dog": 30})
        for k in range(broken):
            (root / "dog" / f"{k:03d}.png").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
        done = cli("data", "check", str(root), "--json")
        assert code == done.returncode
        assert f"{broken} files are no images, the first: dog/000.png: a Git LFS pointer" in done.stdout

    def test_a_class_of_empty_files_is_unusable(self, image_folder):
        root = image_folder({"cat": 300, "dog": 1})
        (root / "dog" / "000.png").write_bytes(b"")
        done = cli("data", "check", str(root), "--json")
        assert ExitCode.UNMEASURABLE == done.returncode
        assert "class 'dog'" in done.stdout

    def test_refuses_what_profile_refuses(self, image_folder):
        root = image_folder({"train/a": 1, "val/a": 1})
        assert ExitCode.UNMEASURABLE == cli("data", "check", str(root)).returncode


def test_a_known_format_that_pillow_lacks_here_is_no_silent_loss(labelled_folder, monkeypatch):
    buffer = io.BytesIO()
    picture(1).save(buffer, "WEBP")
    (labelled_folder / "cat" / "a.webp").write_bytes(buffer.getvalue())
    monkeypatch.setattr(walk, "suffixes", lambda: frozenset({".png"}))
    monkeypatch.delitem(Image.OPEN, "WEBP")
    assert {"unread-format": ["cat/a.webp"]} == account(labelled_folder)
