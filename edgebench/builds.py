"""Building as a random effect: several builds of one artifact, timed in turn and compared answer by answer.

Engine builders time tactics and choose among them, so two builds of one file differ in speed and in outputs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np

from edgebench import stats, steady
from edgebench.backends import Feeds, Session
from edgebench.outputs import largest_difference
from edgebench.record import BuildSpread, Caveat, Score

ROUNDS, PER_ROUND, WARM_UP = 20, 5, 5
# Beyond these, one build says little about the next.
MUCH_SLOWER, MANY_OTHERS = 0.05, 0.005


def spread(sessions: Sequence[Session], feeds: Sequence[Feeds], output: str, clock: Callable[[], int] =
           time.perf_counter_ns, progress: Callable[[float], None] = lambda share: None, *, rounds: int = ROUNDS,
           ) -> BuildSpread:
    """Time all builds in turn and compare their answers with the first's.

    Args:
        sessions: One per build, opened alike.
        feeds: Inputs of one inference each; the images that answers are compared on.
        output: Name of the logits.
        clock: Monotonic nanoseconds.
        progress: Told the share done.
        rounds: Turns of `PER_ROUND` inferences that each build has.
    """
    answers = [np.concatenate([np.array(session.infer(one)[output], np.float32) for one in feeds])
               for session in sessions]
    timings: list[list[int]] = [[] for _ in sessions]
    for session in sessions:
        for k in range(WARM_UP):
            session.infer(feeds[k % len(feeds)])
    with steady.quiet():
        for turn in range(rounds):
            # Another build goes first each time, so that none always follows the same one.
            for k in range(len(sessions)):
                which = (k + turn) % len(sessions)
                for repeat in range(PER_ROUND):
                    one = feeds[(turn * PER_ROUND + repeat) % len(feeds)]
                    begin = clock()
                    sessions[which].infer(one)
                    timings[which].append(clock() - begin)
            progress((turn + 1) / rounds)
    first = answers[0]
    return BuildSpread(
        builds=len(sessions), images=len(first), timings_per_build=rounds * PER_ROUND,
        p50_s=tuple(float(stats.quantile(np.array(one) / 1e9, 0.5)) for one in timings),
        disagreement=tuple(float((other.argmax(1) != first.argmax(1)).mean()) for other in answers[1:]),
        max_abs_difference=tuple(largest_difference(other, first) for other in answers[1:]))


def scores(found: BuildSpread) -> tuple[Score, ...]:
    """Return how much builds of one artifact differ in latency and in answers."""
    reason = f"the extremes of {found.builds} builds, not an estimate"
    fastest = min(found.p50_s)
    return (
        Score(name="build_latency_spread", value=max(found.p50_s) / fastest - 1 if fastest > 0 else None,
              unit="fraction", better="lower", n=found.builds,
              reason=reason if fastest > 0 else "the clock did not advance during most inferences",
              reason_code="not-computed" if fastest > 0 else "clock", kind="estimate", method_id="range",
              facts={"timings_per_build": found.timings_per_build, "builds": found.builds},
              method="slowest over fastest build's median latency less 1, builds in turn"),
        Score(name="build_disagreement", value=max(found.disagreement, default=0.0), unit="fraction", better="lower",
              n=found.images, reason=reason, reason_code="not-computed", kind="estimate", method_id="max",
              facts={"builds": found.builds},
              method="largest share of images to which a build gives another top class than the first build"),
    )


def caveats(found: BuildSpread) -> tuple[Caveat, ...]:
    """Return the doubts that the spread raises about a single build's numbers."""
    latency, answers = (score.value or 0.0 for score in scores(found))
    if latency <= MUCH_SLOWER and answers <= MANY_OTHERS:
        return ()
    return (Caveat(
        code="builds-differ", hint="ship the engine that was measured, by its hash; judge by the worst build",
        message=f"{found.builds} builds of this artifact differ by {latency:.0%} in median latency and in up to "
                f"{answers:.1%} of their answers"),)
