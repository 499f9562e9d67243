"""Class lists and preprocessing files in the forms that people have: read as they are meant, or refused by line or key."""

from __future__ import annotations

import codecs
import json
from pathlib import Path

import pytest

from edgebench.errors import InvalidInput
from edgebench.record import ClassMap
from edgebench.user_files import read_classes, read_preprocess, read_templates

NAMES = ("ash", "birch", "Cedar of Lebanon")
GOOD = "size_px = [24, 32]\nmean = [0.1, 0.2, 0.3]\nstd = [0.5, 1.0, 2.0]\nresize = \"squash\"\n"


def classes(folder: Path, content: str | bytes, suffix: str = ".txt") -> ClassMap:
    file = folder / f"classes{suffix}"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_classes(file)


def preprocess(folder: Path, content: str | bytes, suffix: str = ".toml"):
    file = folder / f"pre{suffix}"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_preprocess(file)


class TestClassLists:
    @pytest.mark.parametrize(("content", "suffix"), [
        ("\n".join(NAMES), ".txt"), ("\r\n".join(NAMES), ".txt"), (codecs.BOM_UTF8 + "\r\n".join(NAMES).encode(), ".txt"),
        ("".join(f"{k} {name}\n" for k, name in enumerate(NAMES)), ".txt"),
        ("".join(f"{k}: {name}\n" for k, name in enumerate(NAMES, 1)), ".txt"),
        ("".join(f"{k},{name}\n" for k, name in enumerate(NAMES)), ".txt"),
        ("".join(f"{k}. {name}\n" for k, name in enumerate(NAMES, 1)), ".txt"),
        ("".join(f"{name}: {k}\n" for k, name in enumerate(NAMES)), ".txt"),
        ("".join(f"{k}\t{name}\n" for k, name in enumerate(NAMES)), ".tsv"),
        ("id\tname\n" + "".join(f"{k}\t{name}\n" for k, name in enumerate(NAMES)), ".txt"),
        ("label\n" + "\n".join(NAMES), ".csv"),
        ("Index,Name\n" + "".join(f"{k},{name}\n" for k, name in enumerate(NAMES)), ".csv"),
        ("name,index\n" + "".join(f"\"{name}\",{k}\n" for k, name in reversed(list(enumerate(NAMES)))), ".csv"),
        (json.dumps(NAMES), ".json"), (codecs.BOM_UTF8 + json.dumps(NAMES).encode(), ".json"),
        (json.dumps({str(k): name for k, name in reversed(list(enumerate(NAMES)))}), ".json"),
        (json.dumps({name: k for k, name in reversed(list(enumerate(NAMES)))}), ".json"),
        (json.dumps({"model_type": "vit", "id2label": {str(k): name for k, name in enumerate(NAMES)}}), ".json"),
        (json.dumps(NAMES), ".txt")])
    def test_every_usual_form_gives_the_names_in_the_order_of_the_outputs(self, tmp_path, content, suffix):
        assert NAMES == classes(tmp_path, content, suffix).names

    @pytest.mark.parametrize("content", [
        "n01440764\ttench\nn01443537\tgoldfish\n", "n01440764 tench\nn01443537 goldfish\n",
        json.dumps({"0": ["n01440764", "tench"], "1": ["n01443537", "goldfish"]})])
    def test_wordnet_ids_before_the_names_are_the_ids(self, tmp_path, content):
        assert ClassMap(ids=("n01440764", "n01443537"), names=("tench", "goldfish")) == classes(tmp_path, content)

    @pytest.mark.parametrize("names", [
        ("1 euro", "2 euro", "5 euro"), ("7 up", "cola"), ("tench, Tinca tinca", "goldfish, Carassius auratus"),
        ("0", "1", "10"), ("a: b", "c: d"), ("class 0", "class 1")])
    def test_names_that_look_like_another_form_stay_names(self, tmp_path, names):
        assert ClassMap(ids=names, names=names) == classes(tmp_path, "\n".join(names))

    @pytest.mark.parametrize(("content", "suffix", "where"), [
        ("a\nb\na\n", ".txt", "line 3"), ("0\ta\n2\tb\n", ".txt", "line 2"), ("1 b\n0 a\n", ".txt", "line 2"),
        ("a\tb\nc\n", ".txt", "line 2"), ("0,a\n1,b,c\n", ".csv", "line 2"), ("index,name\n0,a\n5,b\n", ".csv", "line 3"),
        ("\"a\",\n\"b\"\n", ".txt", "line 1"), ("- a\n- b\n", ".txt", "line 1"), ("names:\n  0: a\n", ".yaml", ".yaml"),
        ("item {\n id: 1\n}\n", ".txt", "line 1"), ("['a', 'b']", ".txt", "JSON"), ("{\"0\": \"a\", \"2\": \"b\"}", ".json", "index 1"),
        ("[\"a\", 3]", ".json", "class 1"), ("{}", ".json", "no list"), ("a\n\u00e9\ne\u0301\n", ".txt", "line 3"),
        ("id,name\n", ".csv", "no class"), ("\n \n", ".txt", "empty"), (b"caf\xe9\n", ".txt", "line 1"),
        ("a\nb\n".encode("utf-16"), ".txt", "UTF-16")])
    def test_what_can_be_read_in_two_ways_is_refused_where_it_stands(self, tmp_path, content, suffix, where):
        with pytest.raises(InvalidInput) as caught:
            classes(tmp_path, content, suffix)
        assert where in caught.value.message
        assert caught.value.hint
        assert "\n" not in caught.value.message

    def test_a_doubled_name_is_named_and_ids_of_their_own_tell_it_apart(self, tmp_path):
        with pytest.raises(InvalidInput, match="line 2: 'crane' stands in line 1 already"):
            classes(tmp_path, "crane\ncrane\n")
        assert ("crane", "crane") == classes(tmp_path, "bird\tcrane\nmachine\tcrane\n").names
        assert ("0", "1") == classes(tmp_path, json.dumps({"0": "crane", "1": "crane"})).ids

    def test_templates_lose_their_byte_order_mark(self, tmp_path):
        file = tmp_path / "t.txt"
        file.write_bytes(codecs.BOM_UTF8 + b"a photo of a {}.\r\n")
        assert ("a photo of a {}.",) == read_templates(file)


class TestPreprocessing:
    @pytest.mark.parametrize("content", [GOOD, codecs.BOM_UTF8 + GOOD.replace("\n", "\r\n").encode(),
                                         GOOD.replace("1.0", "1").replace("2.0", "2")])
    def test_marks_line_ends_and_whole_numbers_change_nothing(self, tmp_path, content):
        found = preprocess(tmp_path, content)
        assert ((24, 32), (0.1, 0.2, 0.3), (0.5, 1.0, 2.0)) == (found.size_px, found.mean, found.std)

    def test_json_with_the_same_keys_is_read(self, tmp_path):
        content = {"size_px": [8, 8], "mean": [0, 0, 0], "std": [1, 1, 1], "resize": "none"}
        assert (8, 8) == preprocess(tmp_path, json.dumps(content), ".json").size_px

    @pytest.mark.parametrize(("old", "new", "word"), [
        ("[0.1, 0.2, 0.3]", "0.5", "mean"), ("[0.5, 1.0, 2.0]", "[0.5]", "std"), ("[0.5, 1.0, 2.0]", "[0.5, 0.0, 2.0]", "std"),
        ("[24, 32]", "24", "size_px"), ("[24, 32]", "[24, 0]", "size_px"), ("\"squash\"", "\"shortest\"", "resize_px"),
        ("mean", "image_mean", "'mean'"), ("std = [0.5, 1.0, 2.0]\n", "", "std"), ("resize =", "bgr =", "bgr"),
        ("resize =", "interpolatoin =", "'interpolation'"), ("\"squash\"", "\"sqash\"", "resize"),
        ("[0.1, 0.2, 0.3]", "[true, 0, 0]", "mean"), (GOOD, "", "empty")])
    def test_each_fault_names_its_key(self, tmp_path, old, new, word):
        with pytest.raises(InvalidInput) as caught:
            preprocess(tmp_path, GOOD.replace(old, new))
        assert word in caught.value.message
        assert caught.value.hint

    @pytest.mark.parametrize(("mean", "std", "hint_mean", "hint_std"), [
        ([127.5, 127.5, 127.5], [127.5, 127.5, 127.5], "[0.5, 0.5, 0.5]", "[0.5, 0.5, 0.5]"),
        ([51, 102, 153], [25.5, 51, 51], "[0.2, 0.4, 0.6]", "[0.1, 0.2, 0.2]"),
        ([0, 0, 0], [255, 255, 255], "[0, 0, 0]", "[1, 1, 1]"),
        ([51, 102, 153], [1, 1, 1], "[0.2, 0.4, 0.6]", "[0.00392156863, 0.00392156863, 0.00392156863]")])
    def test_numbers_for_pixels_up_to_255_are_refused_with_the_converted_ones(self, tmp_path, mean, std, hint_mean, hint_std):
        content = f"size_px = [8, 8]\nmean = {mean}\nstd = {std}\nresize = \"none\"\n"
        with pytest.raises(InvalidInput, match="scale 0 to 255") as caught:
            preprocess(tmp_path, content)
        assert f"divided by 255: mean = {hint_mean}, std = {hint_std}" == caught.value.hint
        fixed = preprocess(tmp_path, f"size_px = [8, 8]\n{hint_mean.join(['mean = ', ''])}\nstd = {hint_std}\nresize = \"none\"")
        assert [value / 255 for value in mean] == pytest.approx(list(fixed.mean))

    @pytest.mark.parametrize(("mean", "std"), [([120, 110, 100], [0.2, 0.2, 0.2]), ([0.5, 0.5, 0.5], [58, 57, 57])])
    def test_two_scales_in_one_file_are_refused(self, tmp_path, mean, std):
        with pytest.raises(InvalidInput, match="on the scale 0 to 1"):
            preprocess(tmp_path, f"size_px = [8, 8]\nmean = {mean}\nstd = {std}\nresize = \"none\"\n")
