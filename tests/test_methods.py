"""A method is the same for all runs of one settings hash, whatever their images and timings decide."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from edgebench import (
    backends,
    compare,
    instrument,
    properties,
    reading,
    record,
    rule_words,
    score_tables,
    stats,
    wording,
)
from edgebench.class_subsets import BY_DATASET
from edgebench.datasets import imagenet_wnids
from edgebench.properties import Pass, Predictions
from edgebench.properties.shape_bias import CATEGORIES
from edgebench.pug import SUBSETS
from edgebench.record import DatasetIdentity, Evaluation, Run, Score, Skip
from tests import builders
from tests import observations as ob

OWN = ("plain", "imagenet-val", "imagenet-v2", "imagenet-a", "imagenet-r", "imagenet-sketch", "imagenet-hard",
       "cue-conflict", "ood/textiles", *(f"pug/{name}" for name in SUBSETS[:3]),
       *(f"vtab/{task}/{part}" for task in ("dtd", "svhn") for part in ("train800", "val200", "test")))
WNIDS = imagenet_wnids()


def images(dataset: str) -> tuple[int, int]:
    """Return how many images and classes a set has."""
    if dataset == "plain":
        return 120, 6
    if dataset.startswith("vtab/"):
        return 30, 3
    return (16 * 6 if dataset == "cue-conflict" else 60), 1000


def names(dataset: str, targets: np.ndarray) -> list[str]:
    n = len(targets)
    if dataset == "cue-conflict":
        return [f"{CATEGORIES[k % 16]}/{CATEGORIES[k % 16]}{k // 16 + 1}-{CATEGORIES[(k * 5) % 16]}2.png" for k in range(n)]
    if dataset == "imagenet-val":
        return [f"{WNIDS[t]}/ILSVRC2012_val_{k + 1:08d}.JPEG" for k, t in enumerate(targets)]
    return [f"class{t}/{k:04d}.png" for k, t in enumerate(targets)]


def answers(key: Pass, seed: int, skill: float, source: str) -> Predictions:
    n, classes = images(key.dataset)
    fixed = np.random.default_rng(sum(map(ord, key.dataset)))
    among = BY_DATASET.get(key.dataset) or tuple(range(classes))
    targets = np.array([among[k] for k in fixed.integers(0, len(among), n)], np.int64)
    generator = np.random.default_rng((seed, sum(map(ord, str(key)))))
    logits = generator.normal(0, 1.0, (n, classes)).astype(np.float32)
    logits[np.arange(n), targets] += np.where(generator.random(n) < skill, 9.0, 0.0)
    features = generator.normal(0, 1.0, (n, 4)).astype(np.float32)
    features[:, 0] += 3.0 * targets
    labels = np.stack([targets, (targets + 1) % classes], axis=1) if key.dataset.startswith(("pug/", "imagenet-hard")) else None
    data = DatasetIdentity(name=key.dataset, source=source, images=n, classes=classes, digest=(key.dataset * 64).encode().hex()[:64])
    return Predictions(dataset=data, logits=logits, targets=targets, ids=np.array(names(key.dataset, targets)),
                       labels=labels, features=features if key.dataset == "plain" or key.dataset.startswith("vtab/") else None)


@cache
def evaluations(seed: int, skill: float, source: str, reference: tuple[int, float] | None) -> tuple[Evaluation, ...]:
    keys = properties.united_passes(NAMES, OWN)
    mine = {key: answers(key, seed, skill, source) for key in keys}
    theirs = None if reference is None else {key: answers(key, *reference, source) for key in keys}
    found: list[Evaluation] = []
    for name in NAMES:
        needed = {key: mine[key] for key in properties.get(name).passes(OWN) if key in mine}
        found += properties.get(name).score(needed, theirs)
    return tuple(found)


NAMES = tuple(name for name in properties.NAMES if name != "mistakes")


def timed(seed: int, mean_s: float, sigma: float) -> Run:
    generator = np.random.default_rng(seed)
    seconds = (mean_s * np.exp(np.cumsum(generator.normal(0, sigma, 500)) * 0.05)).tolist()
    run = builders.run("ort-fp32" if seed == 1 else "ort-int8", latency_s=seconds, batch_s=[one * 8 for one in seconds[:40]])
    seen = ob.everything(run)
    return replace(seen, performance=(*run.performance, *(
        score for score in seen.performance if score.name not in {one.name for one in run.performance})))


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Run]:
    """Two variants on the same images and machine that differ in everything that images and timings can decide."""
    patch = pytest.MonkeyPatch()
    patch.setattr(stats, "bootstrap", partial(stats.bootstrap, resamples=40))
    source = str(tmp_path_factory.mktemp("data"))
    first = replace(timed(1, 0.01, 0.02), evaluations=evaluations(1, 0.9, source, None))
    second = replace(timed(2, 0.003, 0.4), evaluations=evaluations(2, 0.5, source, (1, 0.9)))
    patch.undo()
    return first, second


def scores(run: Run) -> Iterable[tuple[str, Score]]:
    for score in run.performance:
        yield f"performance {score.name}", score
    for one in run.evaluations:
        for score in (*one.scores, *one.reference_scores):
            yield f"{one.property} {one.dataset.name} {one.condition} {score.name}", score


class TestEveryScore:
    def test_there_are_all_properties_and_scenarios(self, pair):
        for run in pair:
            assert set(NAMES) == {one.property for one in run.evaluations}
            assert {"latency_p50", "throughput_offline", "camera_miss_rate", "server_rate", "energy_per_inference",
                    "multi_stream_latency_p99", "device_compute_p50"} <= {one.name for one in run.performance}

    def test_two_runs_of_one_settings_hash_compare_whatever_they_found(self, pair):
        one, two = pair
        assert [] == [each for each in compare.timing_differences(one, two) if each.what == "method"]
        assert () == compare.data_differences(one, two)

    def test_a_method_is_the_same_text_and_identifier(self, pair):
        first, second = (dict(scores(run)) for run in pair)
        shared = first.keys() & second.keys()
        assert len(shared) > 300
        assert {} == {name: (first[name].method, second[name].method) for name in shared
                      if (first[name].method, first[name].method_id) != (second[name].method, second[name].method_id)}

    def test_the_data_decided_differently(self, pair):
        first, second = (dict(scores(run)) for run in pair)
        shared = first.keys() & second.keys()
        assert any(first[name].level != second[name].level for name in shared)
        assert any(first[name].n_effective != second[name].n_effective for name in shared)
        assert any(first[name].confidence_reached != second[name].confidence_reached for name in shared)

    def test_its_kind_method_and_reason_are_fields(self, pair):
        for run in pair:
            for name, score in scores(run):
                assert score.kind is not None, name
                assert score.method_id, name
                assert (score.reason is None) is (score.reason_code is None), name
                assert score.kind not in ("exact", "single") or score.low is None, name
                assert score.count is None or score.kind == "share", name

    def test_no_method_names_a_number_of_its_run(self, pair):
        # n, worth and level are fields: their values stand in no text.
        for run in pair:
            for name, score in scores(run):
                if score.level is not None:
                    assert f" {score.level} " not in f"{score.method} ", name
                if score.n_effective not in (None, score.n):
                    assert f"{score.n_effective:,}" not in score.method or score.n_effective < 100, name

    def test_survives_its_file(self, pair, tmp_path):
        run = replace(pair[1], observed=None)
        record.dump(run, tmp_path / "run.json")
        assert record.load(tmp_path) == run

    def test_the_report_tells_each_method_once(self, pair):
        for _, groups in score_tables.methods(pair):
            assert len({method for _, method in groups}) == len(groups)
        texts = [method for _, groups in score_tables.methods(pair) for _, method in groups]
        alone = [method for _, groups in score_tables.methods(pair[1:]) for _, method in groups]
        # The first run adds what only a run without a reference has, which is nothing.
        assert set(alone) == set(texts)


class TestOlderFiles:
    """Files without kinds, identifiers and codes load, compare and are judged as before."""

    def old(self, run: Run, tmp_path, name: str) -> Run:
        record.dump(replace(run, observed=None), tmp_path / name)
        data = json.loads((tmp_path / name).read_text())

        def strip(one: dict) -> None:
            for key in ("kind", "method_id", "reason_code", "n_effective", "confidence_reached", "level", "facts"):
                one.pop(key, None)

        for score in data["performance"]:
            strip(score)
        for one in data["evaluations"]:
            for score in (*one["scores"], *one["reference_scores"]):
                strip(score)
        for skip in data["skips"]:
            del skip["subject"], skip["code"]
        del data["sealed"]
        (tmp_path / name).write_text(json.dumps(data))
        return record.load(tmp_path / name)

    def test_load_and_compare_with_each_other_and_with_newer_ones(self, pair, tmp_path):
        one, two = (self.old(run, tmp_path, f"{k}.json") for k, run in enumerate(pair))
        assert {None} == {score.kind for _, score in scores(one)}
        for first, second in ((one, two), (one, pair[1]), (pair[0], two)):
            assert () == compare.data_differences(first, second)
            assert [] == [each for each in compare.timing_differences(first, second) if each.what == "method"]

    def test_a_level_in_the_text_is_no_other_method(self, pair, tmp_path):
        def named(run: Run, level: str) -> Run:
            return replace(run, evaluations=tuple(replace(one, scores=tuple(
                replace(score, method=f"share of images, at the level where it is lowest, {level} here, chosen")
                if score.name == "consistency_worst" else score for score in one.scores)) for one in run.evaluations))

        one, two = (named(self.old(run, tmp_path, "old.json"), level) for run, level in zip(pair, ("0.25up", "0.5"), strict=True))
        assert () == compare.data_differences(one, two)

    def test_another_method_is_still_refused(self, pair, tmp_path):
        old = self.old(pair[0], tmp_path, "old.json")
        other = replace(old, performance=tuple(replace(one, method="by hand") for one in old.performance[:1]))
        assert ["method"] == [each.what for each in compare.timing_differences(old, other)]

    def test_what_was_exact_is_exact(self, pair, tmp_path):
        new = dict(scores(pair[1]))
        for name, score in scores(self.old(pair[1], tmp_path, "old.json")):
            assert reading.is_exact(score) is reading.is_exact(new[name]), name


def test_kinds_and_codes_are_documented():
    text = (Path(__file__).resolve().parents[1] / "docs" / "method.md").read_text(encoding="utf-8")
    for code in (*get_args(record.ScoreKind), *get_args(record.ReasonCode)):
        assert f"`{code}`" in text, code


class TestSkips:
    @pytest.mark.parametrize(("about", "what"), [(("accuracy", "quality"), "accuracy"), (("quality",), "all of it"),
                                                 (("latency",), "speed"), (("calibration", "reference"), "sibling")])
    def test_are_found_by_what_they_are_about_and_not_by_their_words(self, about, what):
        skips = [Skip(what="speed", reason="", subject="latency", code="not-asked"),
                 Skip(what="accuracy of the latency", reason="", subject="data", code="no-data"),
                 Skip(what="sibling", reason="", subject="reference", code="no-reference"),
                 Skip(what="all of it", reason="", subject="quality", code="unfit"),
                 Skip(what="accuracy", reason="", subject="property", code="early-stop")]
        found = reading.skip_about(builders.run(skips=tuple(skips)), *about)
        assert what == found.what

    def test_of_older_files_are_found_by_their_names(self):
        run = builders.run(skips=(Skip(what="latency", reason="not asked for"), Skip(what="mistakes", reason="no package")))
        assert "not asked for" == reading.skip_about(run, "latency").reason
        assert "no package" == reading.skip_about(run, "mistakes").reason
        assert reading.skip_about(run, "quality") is None


def test_every_backend_and_unit_has_a_name():
    assert set(backends.BUILTIN) <= set(wording.BACKENDS)
    units = {score.unit for score in instrument.scores(ob.everything(builders.run(latency_s=[0.01] * 50)).observed, 0.95)}
    assert "J" in units
    assert "91 mJ" == rule_words.quantity(0.091, "J")
