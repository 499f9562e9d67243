"""ImageNet-X: published ratios from published predictions, and constructed annotations that carry no one's data."""

from __future__ import annotations

import csv
import importlib.machinery
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from edgebench import stats
from edgebench.errors import InvalidInput, MissingDependency
from edgebench.properties import Pass, Predictions, mistakes
from edgebench.properties.mistakes import (
    FACTORS,
    Annotations,
    error_ratios,
    load_annotations,
    real_labels,
)
from edgebench.record import DatasetIdentity, Evaluation, Score

KEY = Pass("imagenet-val")
COUNTS = {  # properties.md 4.3
    "pose": (15_064, 39_974), "background": (14_751, 35_537), "color": (6_150, 13_034), "pattern": (5_972, 15_478),
    "smaller": (1_450, 2_873), "shape": (679, 1_891), "partial_view": (638, 1_500), "subcategory": (585, 3_604),
    "texture": (282, 879), "larger": (150, 390), "darker": (122, 512), "object_blocking": (78, 217),
    "person_blocking": (60, 105), "brighter": (44, 94), "style": (43, 586), "multiple_objects": (40, 1_828)}


def file_name(number: int) -> str:
    return f"ILSVRC2012_val_{number:08d}.JPEG"


@pytest.fixture(scope="module")
def annotations() -> Annotations:
    if find_spec("imagenet_x") is None:
        pytest.skip("the package imagenet-x is not installed")
    return load_annotations(mistakes.annotation_folder())


@pytest.fixture(scope="module")
def published(shared_data: Path) -> dict[str, dict[str, int]]:
    found = {}
    for model in ("ResNet50", "SimCLR"):
        with (shared_data / "imagenet-x-predictions" / f"{model}.csv").open(newline="", encoding="utf-8") as file:
            found[model] = {row["file_name"]: int(row["predicted_class"]) for row in csv.DictReader(file)}
    return found


def logits_for(classes: Sequence[int]) -> np.ndarray:
    logits = np.zeros((len(classes), 1000), np.float32)
    logits[np.arange(len(classes)), classes] = 5.0
    return logits


def predictions(predicted: Sequence[int], targets: Sequence[int], ids: Sequence[str], source: str,
                digest: str = "a") -> dict[Pass, Predictions]:
    identity = DatasetIdentity(name="imagenet-val", source=source, images=len(ids), classes=1000, digest=digest * 64)
    return {KEY: Predictions(dataset=identity, logits=logits_for(predicted), targets=np.array(targets, np.int64),
                             ids=np.array(ids))}


def scored(mine: dict[Pass, Predictions], theirs: dict[Pass, Predictions] | None = None) -> Evaluation:
    evaluation, = mistakes.score(mine, theirs)
    return evaluation


def by_name(scores: Sequence[Score]) -> dict[str, Score]:
    named = {one.name: one for one in scores}
    assert len(named) == len(scores)
    return named


class Notes:
    """Constructed annotations in a data root: file k has class k % 7, ReaL labels (k % 7, 9), the factors of `marks`."""

    def __init__(self, root: Path, marks: dict[int, tuple[str, ...]], prototypes: Sequence[int] = (),
                 unlabelled: Sequence[int] = ()) -> None:
        self.images, self.folder, self.marks = root / "imagenet" / "val", root / "imagenet-x", marks
        self.folder.mkdir(parents=True)
        for which in ("top", "multi"):
            lines = []
            for number, factors in marks.items():
                shown = factors[:1] if which == "top" else factors
                lines.append(json.dumps({"file_name": file_name(number), "class": number % 7, "justification": "…",
                                         **{name: int(name in shown) for name in FACTORS}}))
            (self.folder / f"imagenet_x_val_{which}_factor.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        names = [*(file_name(number) for number in prototypes), "n01440764_1.JPEG"]
        (self.folder / "prototypical_paths.csv").write_text("\n".join(["file_name", *names]), encoding="utf-8")
        lists = [[] if number in unlabelled else [number % 7, 9] for number in range(1, 50_001)]
        (root / "real.json").write_text(json.dumps(lists), encoding="utf-8")

    def predictions(self, wrong: Sequence[int], numbers: Sequence[int] | None = None, other: int = 8) -> dict[Pass, Predictions]:
        """Predictions that are right but for the files `wrong`, which are called class `other`."""
        numbers = list(self.marks) if numbers is None else numbers
        targets = [number % 7 for number in numbers]
        return predictions([other if number in wrong else number % 7 for number in numbers], targets,
                           [f"n{number % 7:08d}/{file_name(number)}" for number in numbers], str(self.images))


@pytest.fixture
def notes(tmp_path: Path) -> Notes:
    """600 images: 300 of pose (100 of them also texture), 200 of style, 99 of brighter, one prototype without factor."""
    marks: dict[int, tuple[str, ...]] = {}
    for number in range(1, 601):
        marks[number] = (("pose", "texture") if number <= 100 else ("pose",) if number <= 300 else ("style",) if number <= 500
                         else ("brighter",) if number < 600 else ())
    return Notes(tmp_path, marks, prototypes=[600], unlabelled=[1, 2, 301])


class TestRealLabels:
    def test_46837_images_have_labels_and_the_first_two_entries_belong_to_files_1_and_2(self) -> None:
        if find_spec("imagenet_x") is None:
            pytest.skip("the package imagenet-x is not installed")
        lists = real_labels(mistakes.annotation_folder())
        assert (50_000, 46_837) == (len(lists), sum(map(bool, lists)))
        assert ((), (970, 795)) == lists[:2]

    def test_other_copies_hold_the_same(self) -> None:
        timm = find_spec("timm")
        if timm is None or find_spec("imagenet_x") is None:
            pytest.skip("timm and imagenet-x are needed")
        other = Path(timm.submodule_search_locations[0]) / "data" / "_info" / "imagenet_real_labels.json"
        assert json.loads(other.read_text()) == [list(one) for one in real_labels(mistakes.annotation_folder())]

    @pytest.mark.parametrize(("content", "message"), [
        ("[[1], [2]]", "expected 50,000 lists of labels, got 2"), ("[[1", "real.json"), ('{"1": [2]}', "real.json")])
    def test_other_files_are_refused(self, tmp_path: Path, content: str, message: str) -> None:
        (tmp_path / "real.json").write_text(content)
        with pytest.raises(InvalidInput, match=message.replace(".", r"\.")):
            real_labels(tmp_path)

    def test_a_missing_file_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidInput, match=r"cannot read .*real_labels"):
            real_labels(tmp_path / "nowhere")


class TestAnnotations:
    def test_counts_after_prototype_removal(self, annotations: Annotations) -> None:
        assert 46_110 == len(annotations.number)
        assert COUNTS == {name: (int(annotations.top[:, k].sum()), int(annotations.multi[:, k].sum()))
                          for k, name in enumerate(FACTORS)}
        assert 2 == int((annotations.top.sum(axis=1) == 0).sum())
        assert 1 == annotations.top.sum(axis=1).max()

    def test_the_package_is_found_but_not_imported(self, annotations: Annotations) -> None:
        import subprocess

        code = ("import sys; from edgebench.properties import mistakes as m; m.load_annotations(m.annotation_folder()); "
                "print(sorted({'imagenet_x', 'pandas', 'scipy', 'torch'} & set(sys.modules)))")
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert "[]" == done.stdout.strip()

    def test_a_missing_package_says_how_to_get_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(mistakes, "find_spec", lambda name: None)
        with pytest.raises(MissingDependency) as caught:
            scored(predictions([0], [0], [file_name(1)], "data/imagenet/val"))
        assert "imagenet_x is not installed" in caught.value.message
        assert "install it with: pip install 'edgebench[imagenet-x]'" == caught.value.hint

    def test_a_copy_beside_the_images_comes_before_the_package(self, notes: Notes) -> None:
        assert notes.folder == mistakes.annotation_folder(str(notes.images))

    def test_an_empty_folder_beside_the_images_is_passed_over(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        spec = importlib.machinery.ModuleSpec("imagenet_x", None, is_package=True)
        spec.submodule_search_locations = [str(tmp_path / "site" / "imagenet_x")]
        monkeypatch.setattr(mistakes, "find_spec", lambda name: spec)
        (tmp_path / "imagenet-x").mkdir()
        assert tmp_path / "site" / "imagenet_x" / "annotations" == mistakes.annotation_folder(tmp_path / "imagenet" / "val")

    def test_prototypes_are_removed_and_labels_go_by_file_number(self, notes: Notes) -> None:
        found = load_annotations(notes.folder)
        assert list(range(1, 600)) == found.number.tolist()
        assert [number % 7 for number in range(1, 600)] == found.label.tolist()
        assert [-1, -1] == found.real[0].tolist()
        assert [3, 9] == found.real[2].tolist()
        assert [300, 0, 100] == [int(found.multi[:, FACTORS.index(name)].sum()) for name in ("pose", "shape", "texture")]
        assert 0 == int(found.top[:, FACTORS.index("texture")].sum())

    @pytest.mark.parametrize("line", ["{", '{"file_name": "ILSVRC2012_val_00000001.JPEG", "class": 1}', "[1]",
                                      '{"file_name": "n01440764_1.JPEG", "class": 1}', '{"class": 1}'])
    def test_lines_of_another_form_are_refused(self, notes: Notes, line: str) -> None:
        (notes.folder / "imagenet_x_val_top_factor.jsonl").write_text(line + "\n")
        with pytest.raises(InvalidInput, match="top_factor"):
            load_annotations.__wrapped__(notes.folder)

    def test_files_of_different_images_are_refused(self, notes: Notes) -> None:
        path = notes.folder / "imagenet_x_val_multi_factor.jsonl"
        path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))
        with pytest.raises(InvalidInput, match="different images"):
            load_annotations.__wrapped__(notes.folder)

    @pytest.mark.parametrize(("name", "number"), [
        ("ILSVRC2012_val_00000293.JPEG", 293), ("n01440764/ILSVRC2012_val_00050000.png", 50_000),
        ("ILSVRC2012_val_00050001.JPEG", None), ("ILSVRC2012_val_00000000.JPEG", None), ("cat/1.png", None),
        ("n01440764_10026.JPEG", None)])
    def test_file_numbers(self, name: str, number: int | None) -> None:
        assert number == mistakes.file_number(name)


class TestPublishedPredictions:
    def test_resnet50_has_the_published_ratios(self, annotations: Annotations, published: dict[str, dict[str, int]]) -> None:
        found = error_ratios(published["ResNet50"], annotations)
        assert 46_110 == found.n
        for name, ratio in (("pose", 0.694739), ("background", 1.1417), ("texture", 2.39386), ("multiple_objects", 1.97389)):
            # As many digits as are published.
            assert f"{ratio:g}" == f"{found.ratio[name]:.6g}".rstrip("0"), name
            assert COUNTS[name][0] == found.factor_n[name]
        # The error ratio is over the annotated images, not over all 50,000.
        assert pytest.approx((1 - found.factor_accuracy["pose"]) / (1 - found.accuracy)) == found.ratio["pose"]
        assert pytest.approx(sum(found.ratio.values()) / 16) == found.mean_ratio()
        large = [found.ratio[name] for name, (top, _) in COUNTS.items() if top >= 200]
        assert 9 == len(large)
        assert pytest.approx(sum(large) / 9) == found.mean_ratio(200)

    def test_simclr_has_the_published_ratio(self, annotations: Annotations, published: dict[str, dict[str, int]]) -> None:
        assert 0.774029 == pytest.approx(error_ratios(published["SimCLR"], annotations).ratio["pose"], abs=5e-7)

    def test_multi_factors_and_real_labels_are_other_questions(self, annotations: Annotations,
                                                               published: dict[str, dict[str, int]]) -> None:
        multi = error_ratios(published["ResNet50"], annotations, which="multi")
        assert COUNTS == {name: (COUNTS[name][0], multi.factor_n[name]) for name in FACTORS}
        real = error_ratios(published["ResNet50"], annotations, labels="real")
        assert 43_025 == real.n == int((annotations.real[:, 0] >= 0).sum())
        assert multi.accuracy < real.accuracy

    def test_order_and_folders_do_not_matter(self, annotations: Annotations, published: dict[str, dict[str, int]]) -> None:
        turned = {f"n01440764/{name}": predicted for name, predicted in sorted(published["ResNet50"].items(), reverse=True)}
        assert error_ratios(published["ResNet50"], annotations) == error_ratios(turned, annotations)

    def test_two_models_in_the_property(self, annotations: Annotations, published: dict[str, dict[str, int]]) -> None:
        # Every tenth image keeps 1,000 logits each affordable.
        labels = dict(zip(annotations.number.tolist(), annotations.label.tolist(), strict=True))
        names = [name for name in published["ResNet50"] if mistakes.file_number(name) in labels][::10]
        targets = [labels[mistakes.file_number(name)] for name in names]

        def of(model: str) -> dict[Pass, Predictions]:
            return predictions([published[model][name] for name in names], targets, names, "data/imagenet/val")

        found = scored(of("SimCLR"), of("ResNet50"))
        scores, changes = by_name(found.scores), by_name(found.reference_scores)
        part = error_ratios({name: published["SimCLR"][name] for name in names}, annotations)
        assert part.n == scores["annotated_accuracy"].n == 4_611
        assert part.accuracy == pytest.approx(scores["annotated_accuracy"].value)
        for name in FACTORS:
            assert part.ratio[name] == pytest.approx(scores[f"error_ratio_{name}"].value)
        wrong, before = (np.array([published[model][name] for name in names]) != targets for model in ("SimCLR", "ResNet50"))
        assert stats.mcnemar_exact(int((wrong & ~before).sum()), int((~wrong & before).sum())) == changes["annotated_mcnemar_p"].value
        assert changes["annotated_error_change"].low > 0.0


class TestErrorRatios:
    def test_a_constructed_predictor_has_the_ratio_it_was_made_for(self, notes: Notes) -> None:
        # 60 errors on 599 images: 45 on the 300 of pose, 5 on the 200 of style, 10 on the 99 of brighter.
        wrong = {*range(101, 146), *range(401, 406), *range(501, 511)}
        predicted = {file_name(number): 8 if number in wrong else number % 7 for number in notes.marks}
        found = error_ratios(predicted, load_annotations(notes.folder))
        error = 60 / 599
        assert (599, pytest.approx(1 - error)) == (found.n, found.accuracy)
        assert {"pose": 300, "style": 200, "brighter": 99} == {name: n for name, n in found.factor_n.items() if n}
        assert pytest.approx(45 / 300 / error) == found.ratio["pose"]
        assert pytest.approx(5 / 200 / error) == found.ratio["style"]
        assert pytest.approx(10 / 99 / error) == found.ratio["brighter"]
        assert found.ratio["texture"] is None
        assert found.mean_ratio() is None
        assert pytest.approx((45 / 300 + 5 / 200) / 2 / error) == found.mean_ratio(200)
        multi = error_ratios(predicted, load_annotations(notes.folder), which="multi")
        assert (100, 0.0) == (multi.factor_n["texture"], multi.ratio["texture"])

    def test_any_real_label_is_right_and_images_without_one_are_left_out(self, notes: Notes) -> None:
        predicted = {file_name(number): 9 if number <= 300 else number % 7 for number in notes.marks}
        predicted |= {file_name(501): 8, file_name(301): 8}
        original = error_ratios(predicted, load_annotations(notes.folder))
        real = error_ratios(predicted, load_annotations(notes.folder), labels="real")
        assert (599, 596) == (original.n, real.n)
        assert (300, 298, 199) == (original.factor_n["pose"], real.factor_n["pose"], real.factor_n["style"])
        assert (0.0, 1.0, 1.0) == (original.factor_accuracy["pose"], real.factor_accuracy["pose"], real.factor_accuracy["style"])
        assert pytest.approx(1 / 99 / (1 / 596)) == real.ratio["brighter"]

    def test_a_perfect_predictor_has_accuracies_but_no_ratios(self, notes: Notes) -> None:
        found = error_ratios({file_name(number): number % 7 for number in notes.marks}, load_annotations(notes.folder))
        assert (1.0, 1.0) == (found.accuracy, found.factor_accuracy["pose"])
        assert {None} == set(found.ratio.values())

    def test_nothing_predicted_is_nothing_known(self, notes: Notes) -> None:
        found = error_ratios({}, load_annotations(notes.folder))
        assert (0, None, None) == (found.n, found.accuracy, found.mean_ratio())

    def test_two_copies_of_an_image_are_refused(self, notes: Notes) -> None:
        with pytest.raises(InvalidInput, match="same ILSVRC-2012 file number"):
            error_ratios({file_name(1): 1, f"copy/{file_name(1)}": 1}, load_annotations(notes.folder))


class TestProperty:
    def test_the_pass_is_needed_only_where_the_images_are(self) -> None:
        assert (KEY,) == mistakes.passes(["cue-conflict", "imagenet-val"])
        assert () == mistakes.passes(["imagenet-val-800"])
        assert mistakes.SUMMARY

    def test_scores_of_one_run(self, notes: Notes) -> None:
        wrong = {*range(96, 146), *range(401, 406), *range(501, 511)}
        found = scored(notes.predictions(wrong))
        assert ("mistakes", "clean", "native", ("predictions/imagenet-val--clean--native.npz",)) == (
            found.property, found.condition, found.preset, found.predictions)
        assert () == found.reference_scores
        scores = by_name(found.scores)
        assert (599, "higher") == (scores["annotated_accuracy"].n, scores["annotated_accuracy"].better)
        assert 596 == scores["annotated_accuracy_real"].n
        for which, infix in (("top", ""), ("multi", "multi_")):
            predicted = {file_name(number): 8 if number in wrong else number % 7 for number in notes.marks}
            for labels, real in (("original", ""), ("real", "real_")):
                expected = error_ratios(predicted, load_annotations(notes.folder), which=which, labels=labels)
                for name in FACTORS:
                    accuracy, ratio = (scores[f"{kind}_{infix}{real}{name}"] for kind in ("factor_accuracy", "error_ratio"))
                    assert (expected.factor_accuracy[name], expected.factor_n[name], "higher") == (
                        accuracy.value, accuracy.n, accuracy.better)
                    assert (expected.ratio[name], expected.factor_n[name], "lower", "1") == (
                        ratio.value, ratio.n, ratio.better, ratio.unit)
                    assert (ratio.value is None) == (ratio.n == 0)
                    if ratio.n:
                        assert ratio.low < ratio.value < ratio.high
                    else:
                        assert "no image shows this factor" == ratio.reason
                assert expected.mean_ratio(200) == scores[f"error_ratio_{infix}{real}mean_n200"].value
                assert scores[f"error_ratio_{infix}{real}mean"].value is None
        # Style has 199 images with ReaL labels, so pose alone is left.
        assert scores["error_ratio_real_mean_n200"].value == scores["error_ratio_real_pose"].value
        assert "pose, style" == scores["error_ratio_mean_n200"].facts["factors"]

    def test_intervals_are_those_of_a_plain_bootstrap(self, notes: Notes) -> None:
        wrong = {*range(96, 146), *range(401, 406), *range(501, 511)}
        ratio = by_name(scored(notes.predictions(wrong)).scores)["error_ratio_style"]
        error = np.array([number in wrong for number in range(1, 600)])
        style = np.array([300 < number <= 500 for number in range(1, 600)])
        low, high = stats.bootstrap(lambda chosen: np.array([error[chosen][style[chosen]].mean() / error[chosen].mean()]), 599)
        assert pytest.approx((low[0], high[0])) == (ratio.low, ratio.high)

    def test_part_of_the_images_is_enough_and_n_says_so(self, notes: Notes) -> None:
        scores = by_name(scored(notes.predictions(range(1, 31), numbers=[*range(1, 61), *range(450, 480), 700])).scores)
        assert (90, 60, 30) == tuple(scores[name].n for name in ("annotated_accuracy", "error_ratio_pose", "error_ratio_style"))
        assert pytest.approx(1.5) == scores["error_ratio_pose"].value

    def test_factors_without_error_or_without_success_have_no_interval(self, notes: Notes) -> None:
        scores = by_name(scored(notes.predictions(range(101, 301), numbers=range(101, 400))).scores)
        for name, value, word in (("pose", 299 / 200, "all of these"), ("style", 0.0, "none of these")):
            ratio = scores[f"error_ratio_{name}"]
            assert (pytest.approx(value), None, None) == (ratio.value, ratio.low, ratio.high)
            assert word in ratio.reason

    def test_changes_against_the_reference(self, notes: Notes) -> None:
        theirs = {*range(1, 31), *range(401, 406)}
        # 20 images of pose lost, 5 won back; style as before.
        mine = (theirs - set(range(1, 6))) | set(range(201, 221))
        found = scored(notes.predictions(mine), notes.predictions(theirs))
        changes = by_name(found.reference_scores)
        change, p = changes["factor_error_change_pose"], changes["factor_mcnemar_p_pose"]
        assert (15 / 300, 300, "lower") == (change.value, change.n, change.better)
        assert (change.low, change.high) == stats.paired_interval(20, 5, 300)
        assert stats.mcnemar_exact(20, 5) == p.value
        assert pytest.approx(-5 / 100) == changes["factor_error_change_multi_texture"].value
        assert pytest.approx(15 / 599) == changes["annotated_error_change"].value
        same = changes["factor_error_change_style"]
        # No style image changed, yet 200 of them cannot show that none would.
        assert 0.0 == same.value
        assert same.low < -0.01 < 0.01 < same.high
        assert 1.0 == changes["factor_mcnemar_p_style"].value
        ratio = changes["error_ratio_change_style"]
        # Its ratio falls all the same, for the denominator rose: that is why the error stands beside it.
        assert pytest.approx(5 / 200 / (50 / 599) - 5 / 200 / (35 / 599)) == ratio.value
        assert ratio.low < ratio.value < ratio.high < 0.0
        assert changes["error_ratio_change_mean"].value is None
        assert pytest.approx((changes["error_ratio_change_pose"].value + ratio.value) / 2) == changes["error_ratio_change_mean_n200"].value
        assert "no image shows this factor" == changes["error_ratio_change_texture"].reason

    def test_tests_of_several_factors_are_adjusted_within_their_group(self, notes: Notes) -> None:
        # Lost in pose 8, in style 6, in brighter 0 images; the other factors are the top one of no image.
        found = scored(notes.predictions({*range(1, 10), *range(301, 307)}), notes.predictions({9}))
        changes = by_name(found.reference_scores)
        pose, style = 2 * 0.5**8, 2 * 0.5**6
        for name, raw, adjusted in (("pose", pose, 3 * pose), ("style", style, 2 * style), ("brighter", 1.0, 1.0)):
            assert pytest.approx(raw) == changes[f"factor_mcnemar_p_{name}"].value
            assert pytest.approx(adjusted) == changes[f"factor_mcnemar_p_holm_{name}"].value
        assert {"tests": 3} == changes["factor_mcnemar_p_holm_pose"].facts
        # All 100 images of texture are of pose too, 8 of them lost: four tests, the two smallest equal.
        for name, adjusted in (("pose", 4 * pose), ("texture", 4 * pose), ("style", 2 * style), ("brighter", 1.0)):
            assert pytest.approx(adjusted) == changes[f"factor_mcnemar_p_holm_multi_{name}"].value
        absent = changes["factor_mcnemar_p_holm_texture"]
        assert (None, "no image is left") == (absent.value, absent.reason)

    def test_outcomes_stored_in_compact_form_are_enough(self, notes: Notes) -> None:
        mine, theirs = notes.predictions(range(1, 31)), notes.predictions(range(20, 60))
        packed = [{KEY: replace(one[KEY], logits=np.empty((600, 0), np.float32), stored_outcomes=one[KEY].outcomes)}
                  for one in (mine, theirs)]
        assert scored(mine, theirs) == scored(*packed)

    def test_a_reference_of_other_images_is_refused(self, notes: Notes) -> None:
        mine, theirs = notes.predictions([1], numbers=[1, 2]), notes.predictions([1], numbers=[1, 2])
        theirs = {KEY: replace(theirs[KEY], dataset=replace(theirs[KEY].dataset, digest="b" * 64))}
        with pytest.raises(InvalidInput, match="other images"):
            mistakes.score(mine, theirs)

    def test_other_class_counts_have_a_reason_instead_of_a_value(self, notes: Notes) -> None:
        mine = notes.predictions([1], numbers=[1, 2])
        only, = scored({KEY: replace(mine[KEY], logits=np.zeros((2, 10), np.float32))}).scores
        assert only.value is None
        assert "the model has 10" in only.reason

    def test_other_images_have_a_reason_instead_of_a_value(self, notes: Notes) -> None:
        only, = scored(predictions([1], [1], ["n01440764/cat.JPEG"], str(notes.images))).scores
        assert only.value is None
        assert "ILSVRC2012_val_00000293" in only.reason

    def test_another_class_order_has_a_reason_instead_of_a_value(self, notes: Notes) -> None:
        only, = scored(predictions([5], [5], [file_name(1)], str(notes.images))).scores
        assert only.value is None
        assert "not in the order" in only.reason

    def test_perfect_predictions_have_no_ratio_but_a_reason(self, notes: Notes) -> None:
        scores = by_name(scored(notes.predictions([]), notes.predictions([1])).scores)
        assert 1.0 == scores["annotated_accuracy"].value
        assert "no error on any image" in scores["error_ratio_pose"].reason
