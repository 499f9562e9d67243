"""Several builds of one artifact: timed in turn, compared answer by answer."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from edgebench import builds
from edgebench.record import BuildSpread


class Build:
    """A build that takes `cost` nanoseconds and adds `offset` to one logit."""

    def __init__(self, clock: list[int], cost: int, offset: float) -> None:
        self.clock, self.cost, self.offset = clock, cost, offset

    def infer(self, feeds):
        self.clock[0] += self.cost
        logits = np.array(feeds["image"])
        logits[:, 0] += self.offset
        return {"logits": logits}


def feeds(images: int) -> list[dict[str, np.ndarray]]:
    # Class 1 wins by 0.1, 0.2, 0.3, …
    return [{"image": np.array([[0.0, 0.1 * (k + 1)]], np.float32)} for k in range(images)]


def spread(*made: tuple[int, float], images: int = 10) -> BuildSpread:
    clock = [0]
    return builds.spread([Build(clock, cost, offset) for cost, offset in made], feeds(images), "logits",
                         clock=lambda: clock[0])


def test_median_latencies_are_those_of_each_build():
    assert (1e-6, 2e-6, 1.5e-6) == spread((1000, 0), (2000, 0), (1500, 0)).p50_s


def test_answers_are_compared_with_the_first_build():
    found = spread((1000, 0.0), (1000, 0.25), (1000, 0.0))
    assert (0.2, 0.0) == found.disagreement  # 0.1 and 0.2 are overtaken, 0.3 and more are not
    assert found.max_abs_difference == pytest.approx((0.25, 0.0))


def test_scores_are_the_extremes():
    latency, answers = builds.scores(spread((1000, 0.0), (1200, 0.0), (1100, 0.15)))
    assert 0.2 == pytest.approx(latency.value)
    assert 0.1 == answers.value


@pytest.mark.parametrize(("second", "doubted"), [((1000, 0.0), False), ((1040, 0.0), False), ((1100, 0.0), True),
                                                 ((1000, 0.15), True)])
def test_builds_that_differ_are_a_caveat(second, doubted):
    assert doubted == bool(builds.caveats(spread((1000, 0.0), second)))


def test_builds_take_turns_in_going_first():
    order = []

    class Noting(Build):
        def infer(self, feeds):
            order.append(self.cost)
            return super().infer(feeds)

    clock = [0]
    builds.spread([Noting(clock, 1, 0), Noting(clock, 2, 0)], feeds(2), "logits", clock=lambda: clock[0])
    timed = order[2 * 2 + 2 * builds.WARM_UP:]
    turns = [key for key, _ in itertools.groupby(timed)]
    assert [1, 2, 1, 2] == turns[:2] + turns[2:4] or [1, 2, 1] == turns[:3]
    assert {1: builds.ROUNDS * builds.PER_ROUND, 2: builds.ROUNDS * builds.PER_ROUND} == {
        cost: timed.count(cost) for cost in (1, 2)}


def test_one_build_is_no_spread():
    with pytest.raises(ValueError, match="two builds or more"):
        BuildSpread(builds=1, images=1, timings_per_build=1, p50_s=(1.0,), disagreement=(), max_abs_difference=())
