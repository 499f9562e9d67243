"""Properties together: names, united passes, what is skipped and why."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgebench import properties
from edgebench.errors import MissingDependency, UsageError
from edgebench.properties import Pass, mistakes


def test_all_none_and_names_are_understood() -> None:
    assert properties.NAMES == properties.names(["all"])
    assert () == properties.names(["none"])
    assert ("accuracy", "shape-bias") == properties.names(["shape-bias", "accuracy"])
    with pytest.raises(UsageError, match="did you mean 'shape-bias'"):
        properties.names(["shape_bias"])


def test_one_pass_serves_all_properties_of_a_data_set() -> None:
    found = properties.united_passes(properties.NAMES, ["cue-conflict", "imagenet-val", "mine"])
    assert len(found) == len(set(found))
    # The unchanged images come first: what is made from them needs them, and so does a reader in a hurry.
    assert (Pass("cue-conflict"), Pass("imagenet-val"), Pass("mine")) == found[:3]
    assert {one.dataset for one in found[3:]} == {"imagenet-val", "mine"}
    assert all(one.condition != "clean" for one in found[3:])


def test_the_paper_preset_goes_into_every_pass() -> None:
    found = properties.united_passes(properties.NAMES, ["cue-conflict", "imagenet-val", "mine"], "paper")
    assert {"paper"} == {one.preset for one in found}
    assert {"scale:3", "shift:100", "resolution:640"} <= {one.condition for one in found}


def test_labels_of_cue_conflict_images_are_no_classes_so_accuracy_leaves_them_out() -> None:
    assert () == properties.united_passes(["accuracy", "calibration"], ["cue-conflict"])


def test_every_property_says_what_it_needs() -> None:
    for name in properties.NAMES:
        assert "--data ROOT" in properties.get(name).NEEDS


def test_annotations_are_looked_for_beside_every_data_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mistakes, "find_spec", lambda _: None)
    mine, published = tmp_path / "mine", tmp_path / "published"
    for folder in (mine / "cat", published / "imagenet" / "val", published / "imagenet-x"):
        folder.mkdir(parents=True)
    (published / "imagenet-x" / "imagenet_x_val_top_factor.jsonl").touch()
    for locations in ([mine, published], [published, mine]):
        chosen, skips = properties.usable(["mistakes"], list(map(str, locations)))
        assert (("mistakes",), ()) == (chosen, skips)
    (skip,) = properties.usable(["all"], [str(mine)])[1]
    assert ("mistakes", "property", "missing-package") == (skip.what, skip.subject, skip.code)


def test_a_missing_package_is_a_skip_under_all_and_an_error_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*_: object) -> Path:
        raise MissingDependency("imagenet_x is not installed", "install it")

    monkeypatch.setattr(mistakes, "annotation_folder", absent)
    chosen, skips = properties.usable(["all"], [])
    assert "mistakes" not in chosen
    assert [("mistakes", "imagenet_x is not installed; install it")] == [(one.what, one.reason) for one in skips]
    with pytest.raises(MissingDependency):
        properties.usable(["mistakes"], [])
