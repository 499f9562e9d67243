"""PUG-ImageNet: membership in the true class against the inverted map, means over subsets, and the map itself."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from edgebench import gate, metrics, policy, stats
from edgebench.errors import InvalidInput
from edgebench.properties import Pass, Predictions, synthetic
from edgebench.pug import SUBSETS, check_map, read_map
from edgebench.record import DatasetIdentity, Evaluation, Score
from tests import builders

MULTI = {
    "Wolf": range(269, 273), "Fox": range(277, 281), "Elephant": (385, 386), "Frog": range(30, 33),
    "Bear": range(294, 298), "Whale": (147, 148), "Cat": range(282, 286), "Rabbit": range(330, 334),
    "Locomotive": (547, 820), "Bycicle": (444, 671), "Skirt": (601, 655, 689), "Mask": (643, 691, 796),
    "Bridge": (821, 839), "Shirt": (841,), "Sweatshirt": (841,)}
# Published means by subset, in percent: supervised ViT and ConvNeXt, CLIP ViT and ConvNeXt.
PUBLISHED = {
    "Worlds": (32.1, 31.2, 20.5, 22.4), "Camera_Pitch": (34.0, 35.6, 29.0, 29.3), "Camera_Yaw": (41.5, 47.2, 37.8, 41.3),
    "Camera_Roll": (27.6, 30.4, 23.3, 23.1), "Object_Pitch": (23.6, 27.6, 20.3, 21.2),
    "Object_Yaw": (41.7, 47.2, 37.2, 41.3), "Object_Roll": (22.9, 26.4, 19.1, 17.9),
    "Object_Scale": (37.7, 42.5, 35.2, 39.4), "Object_Texture": (29.3, 31.6, 28.0, 31.2),
    "Scene_Light": (2.4, 0.5, 0.5, 1.6)}


def whole_map() -> dict[str, tuple[int, ...]]:
    """151 names like the published ones: those that share or have several classes, and 136 with one of their own."""
    mapping = {name: tuple(indices) for name, indices in MULTI.items()}
    free = iter(index for index in range(1000) if index not in {one for indices in mapping.values() for one in indices})
    return mapping | {f"Thing_{k:03d}": (next(free),) for k in range(136)}


MAP = whole_map()


def predictions(subset: str, answers: Sequence[tuple[str, int]], *, files: Sequence[str] | None = None,
                mapping: Mapping[str, Sequence[int]] = MAP, compact: bool = False, classes: int = 1000, digest: str = "",
                preset: str = "native") -> dict[Pass, Predictions]:
    """Predictions of images given as (folder, predicted class)."""
    logits = np.zeros((len(answers), classes), np.float32)
    labels = np.full((len(answers), 4), -1, np.int64)
    for row, (folder, predicted) in enumerate(answers):
        logits[row, predicted] = 5.0
        labels[row, :len(mapping[folder])] = mapping[folder]
    targets = labels[:, 0] % classes
    names = files or [f"{k:09d}.png" for k in range(len(answers))]
    return {Pass(f"pug/{subset}", preset=preset): Predictions(
        dataset=DatasetIdentity(name=f"pug/{subset}", source=f"data/pug_imagenet/{subset}", images=len(answers),
                                classes=len(set(targets.tolist())), digest=digest or hashlib.sha256(subset.encode()).hexdigest()),
        logits=np.empty((len(answers), 0), np.float32) if compact else logits, targets=targets,
        ids=np.array([f"{folder}/{name}" for (folder, _), name in zip(answers, names, strict=True)]), labels=labels,
        stored_outcomes=metrics.outcomes(logits, targets) if compact else None)}


def by_name(scores: Sequence[Score]) -> dict[str, Score]:
    named = {one.name: one for one in scores}
    assert len(named) == len(scores)
    return named


def values(*found: Evaluation) -> dict[str, float | None]:
    return {one.name: one.value for evaluation in found for one in evaluation.scores}


def random_answers(n: int, seed: int, share: float = 0.5, names: Sequence[str] = tuple(MAP)) -> list[tuple[str, int]]:
    generator = np.random.default_rng(seed)
    folders = [names[k] for k in generator.integers(0, len(names), n)]
    return [(folder, int(generator.choice(MAP[folder])) if generator.random() < share else int(generator.integers(0, 1000)))
            for folder in folders]


class TestMembership:
    def test_the_map_has_one_class_that_two_names_claim(self) -> None:
        entries = [index for indices in MAP.values() for index in indices]
        assert (151, 177, 176) == (len(MAP), len(entries), len(set(entries)))

    def test_a_shirt_taken_for_class_841_is_right_and_was_wrong_the_papers_way(self) -> None:
        found = values(*synthetic.score(predictions("Worlds", [("Shirt", 841), ("Sweatshirt", 841)]), None))
        assert 1.0 == found["accuracy@Worlds"]
        assert 0.5 == found["accuracy_paper@Worlds"]

    def test_names_of_other_subsets_take_classes_away_too(self) -> None:
        mine = predictions("Worlds", [("Shirt", 841)] * 4) | predictions("Camera_Yaw", [("Sweatshirt", 841)] * 4)
        found = values(*synthetic.score(mine, None))
        assert (1.0, 0.0) == (found["accuracy@Worlds"], found["accuracy_paper@Worlds"])
        assert (1.0, 1.0) == (found["accuracy@Camera_Yaw"], found["accuracy_paper@Camera_Yaw"])
        assert (1.0, 0.5) == (found["mean_accuracy"], found["mean_accuracy_paper"])

    def test_all_classes_of_a_name_are_right_and_their_neighbours_wrong(self) -> None:
        found = values(*synthetic.score(predictions("Worlds", [("Wolf", index) for index in range(268, 274)]), None))
        assert 4 / 6 == found["accuracy@Worlds"] == found["accuracy_paper@Worlds"]

    def test_no_class_is_masked(self) -> None:
        taken = {index for indices in MAP.values() for index in indices}
        outside = next(index for index in range(1000) if index not in taken)
        assert 0.5 == values(*synthetic.score(predictions("Worlds", [("Wolf", outside), ("Wolf", 270)]), None))["accuracy@Worlds"]

    def test_agrees_with_the_definition_and_with_the_papers_loop(self) -> None:
        mine = predictions("Worlds", [*random_answers(400, 1), *(("Shirt", 841),) * 5, *(("Sweatshirt", 841),) * 3])
        (found,), scores = mine.values(), values(*synthetic.score(mine, None))
        folders = [name.split("/")[0] for name in found.ids.tolist()]
        there = dict(sorted((name, MAP[name]) for name in set(folders)))
        inverted = {index: k for k, indices in enumerate(there.values()) for index in indices}
        answers = found.logits.argmax(axis=1).tolist()
        assert np.mean([answer in MAP[folder] for answer, folder in zip(answers, folders, strict=True)]) == scores["accuracy@Worlds"]
        order = list(there)
        paper = np.mean([inverted.get(answer, 999) == order.index(folder) for answer, folder in zip(answers, folders, strict=True)])
        assert paper == scores["accuracy_paper@Worlds"]
        assert paper < scores["accuracy@Worlds"]

    def test_predictions_in_compact_form_are_enough(self) -> None:
        answers = random_answers(50, 2)
        assert values(*synthetic.score(predictions("Worlds", answers), None)) == values(
            *synthetic.score(predictions("Worlds", answers, compact=True), None))


class TestScores:
    def test_the_interval_of_a_subset_is_over_class_folders(self) -> None:
        # Whole folders are right or wrong.
        names = list(MAP)[:40]
        answers = [(name, MAP[name][0] if k % 2 else 999) for k, name in enumerate(names) for _ in range(20)]
        evaluation, = synthetic.score(predictions("Worlds", answers), None)
        wide = by_name(evaluation.scores)["accuracy@Worlds"]
        assert (0.5, None) == (wide.value, wide.count)
        # 40 coins instead of 800.
        assert pytest.approx(2 * 1.96 * 0.5 / 40**0.5, rel=0.1) == wide.high - wide.low
        assert ("class folders", 40) == (wide.facts["clusters"], wide.n_effective)

    def test_objects_are_read_from_file_names_that_tell_them_apart(self) -> None:
        ids = ["Cat/Tabby01_000012.png", "Cat/Tabby01_000013.png", "Cat/Tabby02-7.png", "Wolf/Tabby01_1.png"]
        assert ("Cat/Tabby01", "Cat/Tabby01", "Cat/Tabby02", "Wolf/Tabby01") == synthetic.assets(ids)
        assert synthetic.assets(["Cat/000000001.png", "Cat/000000002.png"]) is None
        assert synthetic.assets(["Cat/img_1.png", "Cat/img_2.png", "Wolf/img_1.png"]) is None
        assert synthetic.assets(["Cat/a.png", "Cat/b.png", "Wolf/c.png"]) is None
        assert synthetic.assets(["Cat/Tabby01_1.png", "Cat/Tabby02_1.png", "Cat/3.png"]) is None

    def test_objects_are_the_clusters_where_they_are_known(self) -> None:
        answers = [("Cat", 282 if k % 2 else 0) for k in range(40) for _ in range(10)]
        files = [f"Cat{k:02d}_{step}.png" for k in range(40) for step in range(10)]
        evaluation, = synthetic.score(predictions("Worlds", answers, files=files), None)
        wide = by_name(evaluation.scores)["accuracy@Worlds"]
        assert pytest.approx(2 * 1.96 * 0.5 / 40**0.5, rel=0.1) == wide.high - wide.low
        assert ("rendered objects", 40) == (wide.facts["clusters"], wide.n_effective)

    def test_a_single_folder_gives_no_interval_by_folder(self) -> None:
        evaluation, = synthetic.score(predictions("Worlds", [("Cat", 282), ("Cat", 1)]), None)
        wide = by_name(evaluation.scores)["accuracy@Worlds"]
        assert (0.5, None, None) == (wide.value, wide.low, wide.high)
        assert "too few clusters" in wide.reason

    def test_a_share_that_resampling_cannot_bound_is_bounded_as_that_of_its_clusters(self) -> None:
        answers = [(name, MAP[name][0]) for name in list(MAP)[:40] for _ in range(20)]
        score = by_name(synthetic.score(predictions("Worlds", answers), None)[0].scores)["accuracy@Worlds"]
        assert (1.0, stats.wilson(40, 40)) == (score.value, (score.low, score.high))
        assert 40 == score.n_effective

    def test_rules_on_shares_are_decided_by_objects_and_not_by_images(self) -> None:
        names = list(MAP)[:40]
        theirs = [(name, MAP[name][0]) for name in names for _ in range(20)]
        # All images of two objects are lost: 40 of 800 images, 2 of 40 objects.
        mine = [(folder, 999) if folder in names[:2] else (folder, answer) for folder, answer in theirs]
        run = builders.run(evaluations=synthetic.score(predictions("Worlds", mine), predictions("Worlds", theirs)))
        for metric, limit in (("negative_flips@Worlds", "max = 0.03"), ("accuracy@Worlds", "min = 0.97")):
            rules = policy.parse('id = "p"\ntitle = "t"\npurpose = "w"\n[[rules]]\nid = "r"\nof = "synthetic"\n'
                                 f'metric = "{metric}"\n{limit}\n', "p.toml")
            assert "inconclusive" == gate.judge(rules, (run, None)).verdicts[0].status

    def test_one_evaluation_per_subset_and_one_over_all(self) -> None:
        names = ("Scene_Light", "Worlds", "Object_Yaw")
        mine: dict[Pass, Predictions] = {}
        for k, name in enumerate(names):
            mine |= predictions(name, random_answers(60 + k, k))
        found = synthetic.score(mine, None)
        assert ["pug/Worlds", "pug/Object_Yaw", "pug/Scene_Light", "pug"] == [one.dataset.name for one in found]
        assert ["clean", "clean", "clean", "summary"] == [one.condition for one in found]
        assert {"synthetic"} == {one.property for one in found}
        assert all(() == one.reference_scores for one in found)
        whole = found[-1]
        assert 183 == whole.dataset.images
        digests = "".join(one.dataset.digest for one in found[:-1])
        assert hashlib.sha256(digests.encode()).hexdigest() == whole.dataset.digest
        assert "data/pug_imagenet" == whole.dataset.source
        assert ("predictions/pug-Worlds--clean--native.npz", "predictions/pug-Object_Yaw--clean--native.npz",
                "predictions/pug-Scene_Light--clean--native.npz") == whole.predictions
        assert len({name.split("/")[0] for one in mine.values() for name in one.ids.tolist()}) == whole.dataset.classes

    def test_the_means_are_unweighted_and_one_leaves_the_doubtful_subset_out(self) -> None:
        mine = (predictions("Worlds", [("Cat", 282)] * 30 + [("Wolf", 0)] * 10)
                | predictions("Object_Yaw", [("Cat", 282)] * 5 + [("Wolf", 0)] * 5)
                | predictions("Scene_Light", [("Cat", 0), ("Wolf", 0)]))
        *subsets, whole = synthetic.score(mine, None)
        scores = by_name(whole.scores)
        assert pytest.approx((0.75 + 0.5 + 0.0) / 3) == scores["mean_accuracy"].value
        assert pytest.approx((0.75 + 0.5) / 2) == scores["mean_accuracy_without_scene_light"].value
        assert "in doubt" in scores["mean_accuracy_without_scene_light"].method
        assert "3 of ten: Worlds, Object_Yaw, Scene_Light" == scores["mean_accuracy"].facts["subsets"]
        assert "in doubt" not in scores["mean_accuracy"].method
        assert ["Scene_Light" in one.dataset.name for one in subsets] == ["in doubt" in one.scores[0].method for one in subsets]

    def test_only_all_ten_subsets_are_called_so(self) -> None:
        mine: dict[Pass, Predictions] = {}
        for k, name in enumerate(SUBSETS):
            mine |= predictions(name, random_answers(40, k))
        assert "all ten" == synthetic.score(mine, None)[-1].scores[0].facts["subsets"]
        del mine[Pass("pug/Worlds")]
        assert "9 of ten" in synthetic.score(mine, None)[-1].scores[0].facts["subsets"]

    def test_clusters_of_the_mean_stay_together_across_subsets(self) -> None:
        # The same folders are right in both subsets: two subsets know no more than one.
        names = list(MAP)[:50]
        answers = [(name, MAP[name][0] if k % 2 else 999) for k, name in enumerate(names) for _ in range(4)]
        mine = predictions("Worlds", answers) | predictions("Object_Yaw", answers)
        one, _, whole = synthetic.score(mine, None)
        narrow, wide = by_name(one.scores)["accuracy@Worlds"], by_name(whole.scores)["mean_accuracy"]
        assert pytest.approx((narrow.low, narrow.high)) == (wide.low, wide.high)

    def test_published_means(self) -> None:
        assert set(SUBSETS) == set(PUBLISHED)
        means = [synthetic.mean_accuracy({name: row[k] for name, row in PUBLISHED.items()}) for k in range(4)]
        assert [29.3, 32.0, 25.1, 26.9] == [round(mean, 1) for mean in means]
        with pytest.raises(ValueError, match="at least one subset"):
            synthetic.mean_accuracy({})

    def test_presets_are_kept_apart(self) -> None:
        mine = (predictions("Worlds", [("Cat", 282), ("Wolf", 1)])
                | predictions("Worlds", [("Cat", 282), ("Wolf", 269)], preset="paper"))
        found = synthetic.score(mine, None)
        assert [("native", 0.5), ("paper", 1.0)] == [(one.preset, one.scores[0].value) for one in found]

    def test_other_models_and_unlabelled_images_have_a_reason_instead_of_a_value(self) -> None:
        other, = synthetic.score(predictions("Worlds", [("Cat", 2), ("Wolf", 3)], classes=10), None)
        assert [("accuracy@Worlds", None)] == [(one.name, one.value) for one in other.scores]
        assert "the model has 10" in other.scores[0].reason
        (key, found), = predictions("Worlds", [("Cat", 282)]).items()
        without = Predictions(dataset=found.dataset, logits=found.logits, targets=found.targets, ids=found.ids)
        silent, = synthetic.score({key: without}, {key: without})
        assert "not stored" in silent.scores[0].reason

    def test_passes_are_the_subsets_at_hand(self) -> None:
        assert (Pass("pug/Worlds", preset="paper"),) == synthetic.passes(["imagenet-val", "pug/Worlds", "pug", "mine"], "paper")
        assert () == synthetic.score({}, None)


class TestAgainstTheReference:
    def test_changes_flips_and_tests_by_subset(self) -> None:
        theirs, mine = [("Cat", 282)] * 60 + [("Wolf", 0)] * 40, [("Cat", 0)] * 12 + [("Cat", 283)] * 48
        mine += [("Wolf", 270)] * 2 + [("Wolf", 1)] * 38
        other = [("Cat", 282)] * 9 + [("Wolf", 0)] * 3
        both = predictions("Worlds", mine) | predictions("Object_Yaw", other)
        found = synthetic.score(both, predictions("Worlds", theirs) | predictions("Object_Yaw", other))
        scores = by_name(found[0].reference_scores)
        assert pytest.approx(-0.1) == scores["accuracy_change@Worlds"].value
        assert scores["accuracy_change@Worlds"].low <= -0.1 <= scores["accuracy_change@Worlds"].high
        assert (0.12, 0.02) == (scores["negative_flips@Worlds"].value, scores["positive_flips@Worlds"].value)
        p = stats.mcnemar_exact(12, 2)
        assert (p, 2 * p) == (scores["mcnemar_p@Worlds"].value, scores["mcnemar_p_holm@Worlds"].value)
        assert 1.0 == by_name(found[1].reference_scores)["mcnemar_p_holm@Object_Yaw"].value
        whole = by_name(found[2].reference_scores)
        assert pytest.approx(-0.05) == whole["mean_accuracy_change"].value == whole["mean_accuracy_without_scene_light_change"].value

    def test_the_paired_change_is_narrower_than_the_difference_of_two_runs(self) -> None:
        theirs = random_answers(600, 3)
        mine = [(folder, 999 if k % 40 == 0 else answer) for k, (folder, answer) in enumerate(theirs)]
        one, = synthetic.score(predictions("Worlds", mine), predictions("Worlds", theirs))
        change, plain = by_name(one.reference_scores)["accuracy_change@Worlds"], by_name(one.scores)["accuracy@Worlds"]
        assert change.low < change.value < change.high < 0.0
        assert change.high - change.low < 0.5 * (plain.high - plain.low)

    def test_a_reference_that_lacks_a_subset_counts_where_it_can(self) -> None:
        mine = predictions("Worlds", [("Cat", 0), ("Wolf", 269)]) | predictions("Scene_Light", [("Cat", 0), ("Wolf", 0)])
        first, second, whole = synthetic.score(mine, predictions("Scene_Light", [("Cat", 282), ("Wolf", 0)]))
        assert () == first.reference_scores
        assert -0.5 == by_name(second.reference_scores)["accuracy_change@Scene_Light"].value
        assert ["mean_accuracy_change"] == [one.name for one in whole.reference_scores]
        assert "1 of ten: Scene_Light" == whole.reference_scores[0].facts["subsets"]

    def test_identical_answers_do_not_change(self) -> None:
        mine = predictions("Worlds", random_answers(100, 4))
        scores = by_name(synthetic.score(mine, mine)[0].reference_scores)
        assert 0.0 == scores["accuracy_change@Worlds"].value == scores["negative_flips@Worlds"].value
        assert 1.0 == scores["mcnemar_p@Worlds"].value
        # No resample differs from another: an interval of no width would claim certainty.
        assert scores["accuracy_change@Worlds"].low is None
        assert "resampling cannot bound it" in (scores["accuracy_change@Worlds"].reason or "")

    def test_a_reference_of_other_images_is_refused(self) -> None:
        with pytest.raises(InvalidInput, match="other images"):
            synthetic.score(predictions("Worlds", [("Cat", 282)]), predictions("Worlds", [("Cat", 282)], digest="e" * 64))


class TestMap:
    def write(self, tmp_path: Path, content: object) -> Path:
        path = tmp_path / "class_to_imagenet_idx.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return path

    def test_is_read(self, tmp_path: Path) -> None:
        found = read_map(self.write(tmp_path, {"Wolf": [269, 270, 271, 272], "Goldfish": 1, "Last": [999]}))
        assert {"Wolf": (269, 270, 271, 272), "Goldfish": (1,), "Last": (999,)} == found
        assert read_map(self.write(tmp_path, {name: list(indices) for name, indices in MAP.items()})) == MAP

    @pytest.mark.parametrize("content", [
        {"Wolf": [1000]}, {"Wolf": -1}, {"Wolf": []}, {"Wolf": ["269"]}, {"Wolf": "269"}, {"Wolf": True}, {"Wolf": [2.5]},
        {"Wolf": None}, {}, [269], "{", "", '{"Wolf": [269}'])
    def test_anything_else_is_refused_with_the_expected_form(self, tmp_path: Path, content: object) -> None:
        with pytest.raises(InvalidInput, match=r"class_to_imagenet_idx\.json") as caught:
            read_map(self.write(tmp_path, content))
        assert "facebookresearch/PUG" in caught.value.hint

    def test_a_bad_index_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidInput, match=r"from 0 to 999 for 'Wolf', got \[269, 1000\]"):
            read_map(self.write(tmp_path, {"Cat": 282, "Wolf": [269, 1000]}))

    def test_a_missing_file_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidInput, match=r"cannot read .*nowhere\.json: No such file"):
            read_map(tmp_path / "nowhere.json")

    def test_folders_of_the_map_pass_even_where_some_are_missing(self) -> None:
        check_map(["Wolf", "Shirt"], MAP)
        check_map([], MAP)

    def test_a_renamed_folder_is_refused_with_the_name_that_was_meant(self) -> None:
        with pytest.raises(InvalidInput, match=r"'Bicycle': none of the 151 class names .* did you mean 'Bycicle'\?"):
            check_map(["Wolf", "Bicycle"], MAP)

    def test_many_unknown_folders_are_counted(self) -> None:
        with pytest.raises(InvalidInput, match=r"'n0', 'n1', 'n2', 'n3', 'n4' and 3 more") as caught:
            check_map([f"n{k}" for k in range(8)], MAP)
        assert "folder names" in caught.value.hint
