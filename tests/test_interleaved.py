"""Variants in turns through scripted processes: who is paired with whom, how long a block is, what the files hold."""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from edgebench import interleaved, paired_worker
from edgebench.errors import CannotMeasure, UsageError
from edgebench.record import Run
from edgebench.timing_types import Block
from tests import builders


class Processes:
    """Stands for `paired_worker.processes`: each artifact takes its own time, all of them a little longer each round."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self.seconds, self.opened, self.asked, self.prepared = seconds, [], [], []

    @contextmanager
    def __call__(self, jobs, folder):
        self.opened.append(dict(jobs))

        def runner(name: str, number: int):
            def run(inferences: int) -> Block:
                self.asked.append((name, inferences))
                drift = 1.0 + 0.001 * len(self.asked)
                value = next(seconds for part, seconds in self.seconds.items() if part in jobs[name].artifact) * drift
                return Block(session=number, begin_ns=len(self.asked), latency_s=(value,) * inferences)

            return run

        yield {name: runner(name, number) for number, name in enumerate(jobs)}


@pytest.fixture
def scripted(monkeypatch) -> Processes:
    found = Processes({"ort-fp32": 0.010, "ort-int8": 0.005, "openvino-fp32": 0.012})
    monkeypatch.setattr(paired_worker, "processes", found)
    monkeypatch.setattr(paired_worker, "_prepare", lambda job, folder: found.prepared.append(job.artifact))
    return found


def runs(*recipes: str, reference: str = "ort-fp32", folder: Path = Path("/artifacts")) -> dict[str, tuple[Run, Path]]:
    base = builders.run(reference, latency_s=[0.010] * 20)
    made = [builders.run(one, latency_s=[0.030 if "openvino" in one else 0.010] * 20, reference=base if "int8" in one else None)
            for one in recipes]
    return {one.variant: (one, folder / one.artifact.recipe.id) for one in made}


def name(recipe: str) -> str:
    return builders.run(recipe).variant


def silent(what: str, share: float) -> None:
    """Progress nobody watches."""


class TestCompare:
    def test_each_variant_is_held_against_its_reference_and_drift_cancels(self, scripted, tmp_path):
        found = interleaved.compare(runs("ort-fp32", "ort-int8"), tmp_path, rounds=14, progress=silent)
        one, = found.comparisons
        assert (name("ort-fp32"), name("ort-int8"), 14, 7) == (one.baseline, one.candidate, one.rounds, one.launches)
        # Linear drift cancels in a mirrored round up to its second order.
        assert 0.5 == pytest.approx(one.ratio, rel=1e-5)
        assert one.different
        assert 7 == len(scripted.opened), "processes are launched anew every other round"
        assert {"/artifacts/ort-fp32": 1, "/artifacts/ort-int8": 1} == Counter(scripted.prepared), "what they need is built once"

    def test_a_change_to_find_decides_how_many_rounds_there_are(self, scripted, tmp_path):
        told = []
        found = interleaved.compare(runs("ort-fp32", "ort-int8"), tmp_path, rounds=200, margin=0.03,
                                    progress=lambda what, share: told.append(what))
        assert found == interleaved.load(tmp_path)
        assert (0.03, 20, False) == (found.plan.margin, found.plan.pilot_rounds, found.plan.capped)
        assert 14 == found.plan.rounds < len(found.trace.rounds) == 20
        assert "timing variants in turns, round 20 of 20" == told[-1]
        assert "a change of 3.0% is found with a power of 80% in 14 rounds" in found.plan.words

    def test_a_block_lasts_as_long_as_the_slowest_variant_needs(self, scripted, tmp_path):
        found = interleaved.compare(runs("ort-fp32", "ort-int8"), tmp_path, rounds=2, progress=silent)
        assert round(interleaved.BLOCK_S / 0.010) == found.inferences
        assert {found.inferences} == {count for _, count in scripted.asked}

    def test_a_slow_variant_still_gets_three_inferences(self, scripted, tmp_path):
        slow = {key: (replace(run, performance=builders.run(latency_s=[2.0] * 20).performance), folder)
                for key, (run, folder) in runs("ort-fp32", "ort-int8").items()}
        assert 3 == interleaved.compare(slow, tmp_path, rounds=1, progress=silent).inferences

    def test_variants_without_their_reference_are_not_opened(self, scripted, tmp_path):
        interleaved.compare(runs("ort-fp32", "ort-int8", "openvino-fp32"), tmp_path, rounds=1, progress=silent)
        assert [{name("ort-fp32"), name("ort-int8")}] == [set(jobs) for jobs in scripted.opened]

    def test_all_sessions_get_the_threads_of_the_runs(self, scripted, tmp_path):
        interleaved.compare(runs("ort-fp32", "ort-int8"), tmp_path, rounds=1, progress=silent)
        assert {4} == {job.threads for job in scripted.opened[0].values()}

    def test_it_survives_its_file_with_the_digests_of_what_was_timed(self, scripted, tmp_path):
        chosen = runs("ort-fp32", "ort-int8")
        found = interleaved.compare(chosen, tmp_path, rounds=3, progress=silent)
        assert found == interleaved.load(tmp_path)
        assert {key: run.artifact.digest for key, (run, _) in chosen.items()} == found.digests

    @pytest.mark.parametrize("change", [
        lambda one: replace(one, artifact=replace(one.artifact, recipe=builders.recipe("ort-cuda-fp32"))),
        lambda one: replace(one, settings=replace(one.settings, threads=1))])
    def test_a_reference_that_was_timed_otherwise_is_no_pair(self, scripted, tmp_path, change):
        chosen = runs("ort-fp32", "ort-int8")
        name = next(iter(chosen))
        with pytest.raises(UsageError, match="no variant with its reference"):
            interleaved.compare({**chosen, name: (change(chosen[name][0]), chosen[name][1])}, tmp_path, rounds=3, progress=silent)

    def test_without_a_pair_it_is_refused(self, scripted, tmp_path):
        with pytest.raises(UsageError, match="no variant with its reference"):
            interleaved.compare(runs("ort-fp32", "openvino-fp32"), tmp_path, rounds=3, progress=silent)
        assert [] == scripted.opened

    def test_a_variant_whose_timings_are_void_is_refused(self, scripted, tmp_path):
        chosen = {key: (replace(run, performance=()), folder) for key, (run, folder) in runs("ort-fp32", "ort-int8").items()}
        with pytest.raises(CannotMeasure, match="has no latency yet"):
            interleaved.compare(chosen, tmp_path, rounds=3, progress=silent)

    def test_a_folder_without_turns_has_none(self, tmp_path):
        assert interleaved.load(tmp_path) is None
