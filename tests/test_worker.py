"""What the worker feeds a session for each scenario: images counted by a session that only remembers its inputs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgebench import catalog, worker
from edgebench.artifacts import fixed_batch
from edgebench.record import Artifact
from edgebench.timing_types import Control, TimingPlan
from edgebench.worker import Job
from tests import builders


class Session:
    """Keeps how many images each inference was given."""

    def __init__(self, batch: int) -> None:
        self.batch, self.given = batch, []

    def infer(self, feeds: dict[str, np.ndarray]) -> None:
        self.given.append(len(feeds["image"]))


def artifact(batch: int | str) -> Artifact:
    made = builders.artifact(builders.recipe("ort-fp32"))
    return replace(made, inputs=(replace(made.inputs[0], shape=(batch, 3, 248, 248)),))


def given(batch: int | str, scenario: str, images: tuple[str, ...] = ()) -> list[int]:
    """Return the images of each inference that one query of the scenario takes."""
    of = artifact(batch)
    job = Job(artifact="", out="", threads=1, batch=16, budget="smoke", passes=(), device=catalog.device("cpu"), images=images,
              timing=TimingPlan(preprocessing=bool(images)))
    opened: list[Session] = []

    def open_session(size: int) -> Session:
        opened.append(Session(size))
        return opened[-1]

    single = fixed_batch(of) or 1
    inputs = np.zeros((8, 3, 248, 248), np.float32)
    worker._Infers(job, of, inputs, open_session(single), open_session, single)[scenario]()
    session, = (one for one in opened if one.given)
    assert {session.batch} == set(session.given)
    return session.given


class TestQueries:
    @pytest.mark.parametrize(("batch", "scenario", "expected"), [
        ("batch", "multi-stream", [8]), ("batch", "single-stream", [1]), ("batch", "offline", [16]), (1, "multi-stream", [1] * 8),
        (1, "offline", [1]), (3, "multi-stream", [3, 3, 3]), (8, "multi-stream", [8]), (32, "multi-stream", [32]),
        (4, "single-stream", [4]), (4, "camera", [4])])
    def test_a_query_is_answered_in_as_many_inferences_as_a_fixed_batch_takes(self, batch, scenario, expected):
        assert expected == given(batch, scenario)

    @pytest.mark.parametrize(("batch", "expected"), [("batch", [8]), (1, [1] * 8), (3, [3, 3, 3]), (32, [32])])
    def test_with_preprocessing_as_many_images_are_read_as_the_query_has(self, batch, expected, tmp_path, monkeypatch):
        file = tmp_path / "image.png"
        Image.new("RGB", (250, 250)).save(file)
        read: list[Path] = []
        opened = Image.open
        monkeypatch.setattr(Image, "open", lambda path: read.append(path) or opened(path))
        assert (expected, 8) == (given(batch, "multi-stream", (str(file),)), len(read))


class TestTimingDigest:
    def test_another_plan_or_setting_of_the_device_is_another_measurement(self):
        of, plans = artifact("batch"), (
            TimingPlan(), TimingPlan(fps=15.0), TimingPlan(control=Control(governor="performance")),
            TimingPlan(control=Control(power_mode="15W")))
        jobs = [Job(artifact="", out="", threads=1, batch=16, budget="smoke", passes=(), device=catalog.device("cpu"), timing=plan)
                for plan in plans]
        assert len(plans) == len({job.timing_digest(of) for job in jobs})
