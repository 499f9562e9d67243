"""How often is the gate wrong? Simulated gates on real paired predictions, with known flips put in.

    python benchmarks/gates.py ../shared/data/imagenet-x-predictions [--gates 2000] [--sequential 500] [--markdown]
    python benchmarks/gates.py --runs OUT [--gates 2000]

The images are ImageNet's validation set, the first model's answers are ResNet-50's. A variant is made from them by
flipping images at chosen rates, the less confident ones more often, as quantization does; so the true loss of accuracy
is known. Each gate draws its images anew, with replacement. Needs imagenet-x for the labels.

``--runs`` takes an ``--out`` folder of ``edgebench profile`` with accuracy and calibration instead. Its images are the
population, from which each gate draws as many anew; the limits are the variant's true changes, so that a rule may
neither pass nor fail more often than one minus the confidence. This is the way of the bootstrap intervals too. A
second table gates equals by a whole policy: on every image a coin says whose answer is the reference's.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from unittest import mock

import numpy as np

from edgebench import evidence, gate, metrics, policy, sample_size, sequential
from edgebench.evaluate import load_passes
from edgebench.policy import Rule
from edgebench.properties import Pass, Predictions, accuracy, calibration
from edgebench.record import Run, load

CONFIDENCE, POWER = 0.95, 0.8
ALPHA = 1 - CONFIDENCE
MARGIN = 0.005
BATCH = 50
MOST = 40_000
SCORES = ("ece15_ew", "ece_em", "ece_debiased_l2", "smece", "nll", "brier")


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Both models on all images, as the chances of each image to flip."""

    name: str
    correct: np.ndarray
    negative: np.ndarray
    """Chance of each image to turn from right to wrong (N,)."""
    positive: np.ndarray

    @property
    def loss(self) -> float:
        """True loss of accuracy."""
        return float((self.negative - self.positive).mean())

    @property
    def discordant(self) -> float:
        return float((self.negative + self.positive).mean())


def predictions(folder: Path, model: str) -> tuple[np.ndarray, np.ndarray]:
    """Return whether each image is right (N,), and its confidence (N,)."""
    import imagenet_x

    with (Path(imagenet_x.__file__).parent / "annotations" / "filename_label.csv").open(newline="") as file:
        labels = {row["file_name"]: int(row["label"]) for row in csv.DictReader(file)}
    with (folder / f"{model}.csv").open(newline="") as file:
        rows = sorted(csv.DictReader(file), key=lambda row: row["file_name"])
    right = np.array([labels[row["file_name"]] == int(row["predicted_class"]) for row in rows])
    return right, np.array([float(row["predicted_probability"]) for row in rows])


def perturbed(name: str, correct: np.ndarray, confidence: np.ndarray, loss: float, discordant: float) -> Pair:
    """Return a variant that loses `loss` of accuracy and changes `discordant` of the images between right and wrong."""
    weight = 1.02 - confidence

    def chances(among: np.ndarray, share: float) -> np.ndarray:
        wanted = share * correct.size
        found = weight * among
        # No image can flip more than surely: scaled until the sum is right.
        for _ in range(50):
            found = np.minimum(found * (wanted / max(found.sum(), 1e-300)), 1.0)
        return found

    return Pair(name=name, correct=correct, negative=chances(correct, (discordant + loss) / 2),
                positive=chances(~correct, (discordant - loss) / 2))


def real(name: str, before: np.ndarray, after: np.ndarray) -> Pair:
    """Return two real models."""
    return Pair(name=name, correct=before, negative=(before & ~after).astype(float),
                positive=(~before & after).astype(float))


def drawn(pair: Pair, gates: int, n: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return negative and positive flips (gates, n / BATCH), cumulated after every batch."""
    negative = np.empty((gates, n // BATCH), np.int64)
    positive = np.empty_like(negative)
    for row in range(gates):
        images = generator.integers(0, pair.correct.size, n)
        chance = generator.random(n)
        for out, of in ((negative, pair.negative), (positive, pair.positive)):
            # One draw per image: right ones can only turn wrong, and wrong ones only right.
            out[row] = (chance < of[images]).reshape(-1, BATCH).sum(axis=1).cumsum()
    return negative, positive


def fixed(pair: Pair, n: int, gates: int, generator: np.random.Generator, margin: float = MARGIN) -> dict[str, float]:
    """Return the shares of gates at `n` images that pass, fail and are inconclusive."""
    n = math.ceil(n / BATCH) * BATCH
    negative, positive = (one[:, -1] for one in drawn(pair, gates, n, generator))
    counts = {"pass": 0, "fail": 0, "inconclusive": 0}
    for b, c in zip(negative.tolist(), positive.tolist(), strict=True):
        above, below = evidence.from_flips(b, c, n).tails(-margin)
        counts["pass" if above <= ALPHA else "fail" if below <= ALPHA else "inconclusive"] += 1
    return {status: count / gates for status, count in counts.items()}


def peeking(pair: Pair, gates: int, generator: np.random.Generator, margin: float = MARGIN, most: int = MOST,
            ) -> tuple[dict[str, float], float]:
    """Return the shares of gates that pass, fail or reach `most`, looking after every batch; and the median number."""
    looks = np.arange(BATCH, most + 1, BATCH)
    limit = -math.log(ALPHA)
    counts, needed = {"pass": 0, "fail": 0, "inconclusive": 0}, []
    for _ in range(gates):
        (negative,), (positive,) = drawn(pair, 1, most, generator)
        first = {}
        for status, side in (("pass", "above"), ("fail", "below")):
            hit = sequential.difference_evidence(negative, positive, looks, -margin, side) >= limit
            first[status] = int(looks[hit.argmax()]) if hit.any() else most + 1
        status = min(first, key=first.get)
        counts[status if first[status] <= most else "inconclusive"] += 1
        needed.append(min(first[status], most))
    return {status: count / gates for status, count in counts.items()}, float(np.median(needed))


def timing(gates: int, generator: np.random.Generator, pairs: int = 1000) -> dict[str, float]:
    """Return the share of equal engines called different, peeking after every interleaved pair.

    Heavy-tailed timings with a drift that both share, and a quantized clock.
    """
    alarms = {"slower": 0, "faster": 0}
    for _ in range(gates):
        drift = np.cumsum(generator.normal(0, 0.01, pairs))
        both = np.exp(drift + 0.04 * generator.standard_t(2, (2, pairs)))
        both = np.round(both, 3) + 1e-3
        ratios = np.log(both[0] / both[1])
        for name, side in (("slower", "above"), ("faster", "below")):
            alarms[name] += bool((sequential.ratio_evidence(ratios, 1.0, side) >= -math.log(ALPHA)).any())
    return {name: count / gates for name, count in alarms.items()}


def narrowed(names: Iterable[str]) -> AbstractContextManager[object]:
    """Bootstrap these calibration scores alone, for speed: none of the others moves their intervals."""
    chosen = tuple(one for one in calibration.ESTIMATORS if one.name in set(names))
    return mock.patch.multiple(calibration, ESTIMATORS=chosen, _scaling=lambda *_: ((), ()), _classwise=lambda _: ())


def quantized(runs: Path) -> dict[Path, tuple[Run, Path, Run]]:
    """Return the variants in a folder of runs that have a reference there: run, and folder and run of the reference."""
    found = {folder: load(folder / "run.json") for folder in sorted(runs.iterdir()) if (folder / "run.json").exists()}
    by_name = {run.variant: folder for folder, run in found.items()}
    return {folder: (run, by_name[run.reference.variant], found[by_name[run.reference.variant]])
            for folder, run in found.items() if run.reference is not None}


def read(folder: Path, run: Run) -> tuple[Pass, Predictions]:
    """Return the one pass of a run."""
    ((key, found),) = load_passes(folder, run.passes, run.artifact.digest).items()
    return key, found


def changes_of(run: Run) -> dict[str, float]:
    """Return the changes of `SCORES` that a run holds."""
    return {name: score.value for one in run.evaluations if one.property == "calibration"
            for score in one.reference_scores for name in SCORES
            if score.name == f"{name}_change" and score.value is not None}


def calibrated(runs: Path, folder: Path, gates: int, seed: int) -> dict[str, np.ndarray]:
    """Return by score how often limits that a variant just keeps are passed and failed, [passes, fails]."""
    run, base, reference = quantized(runs)[folder]
    (key, mine), (_, theirs) = read(folder, run), read(base, reference)
    rules = [Rule(id=name, metric=name, of="calibration", against="reference", max_increase_absolute=value)
             for name, value in changes_of(run).items()]
    generator = np.random.default_rng(seed)
    wrong = {rule.id: np.zeros(2, np.int64) for rule in rules}
    with narrowed(SCORES):
        for _ in range(gates):
            chosen = generator.integers(0, len(mine.targets), len(mine.targets))
            both = [{key: replace(one, stored_outcomes=one.outcomes.take(chosen), targets=one.targets[chosen])}
                    for one in (mine, theirs)]
            changes = calibration.score(*both)
            for rule in rules:
                (decided,) = evidence.find(rule, run, None, changes)
                assert isinstance(decided, evidence.Evidence)
                above, below = decided.tails(rule.max_increase_absolute or 0.0)
                wrong[rule.id] += (below <= ALPHA, above <= ALPHA)
    return wrong


ANY = "any of them"


def equals(runs: Path, folder: Path, gates: int, seed: int, name: str = "survives-quantization",
           ) -> dict[str, np.ndarray]:
    """Return by rule how often a variant that is as good as its reference passes and fails, [passes, fails].

    Args:
        runs: Folder of finished runs.
        folder: Of the variant.
        gates: How many.
        seed: Draws images and tosses coins.
        name: Of the policy, whose rules on accuracy and calibration are judged; a mean over the draws is no change.
    """
    chosen = policy.find(name)
    chosen = replace(chosen, rules=tuple(rule for rule in chosen.rules if rule.of in ("accuracy", "calibration")))
    run, base, reference = quantized(runs)[folder]
    (key, mine), (_, theirs) = read(folder, run), read(base, reference)
    generator, images = np.random.default_rng(seed), len(mine.targets)
    answers = metrics.joined([mine.outcomes, theirs.outcomes])
    counts = {rule.id: np.zeros(2, np.int64) for rule in chosen.rules} | {ANY: np.zeros(2, np.int64)}
    with narrowed(rule.metric for rule in chosen.rules):
        for _ in range(gates):
            drawn = generator.integers(0, images, images)
            coin = generator.integers(0, 2, images)
            both = [{key: replace(mine, targets=mine.targets[drawn],
                                  stored_outcomes=answers.take(drawn + images * (coin == side)))} for side in (0, 1)]
            evaluations = (*accuracy.score(*both), *calibration.score(*both))
            verdicts = gate.judge(chosen, (replace(run, evaluations=evaluations), None),
                                  reference=(reference, None)).verdicts
            found = [one for one in verdicts if one.rule in counts]
            for one in found:
                counts[one.rule] += (one.status == "pass", one.status == "fail")
            counts[ANY] += (all(one.status == "pass" for one in found), any(one.status == "fail" for one in found))
    return counts


def in_parts(simulated: Callable[[Path, Path, int, int], dict[str, np.ndarray]], runs: Path, folder: Path, gates: int,
             pool: Executor, part: int = 50) -> dict[str, np.ndarray]:
    """Return the sum of simulations of `part` gates each, run side by side with seeds of their own."""
    sizes = [min(part, gates - start) for start in range(0, gates, part)]
    futures = [pool.submit(simulated, runs, folder, size, seed) for seed, size in enumerate(sizes)]
    total: dict[str, np.ndarray] = {}
    for number, one in enumerate(futures, 1):
        for name, counts in one.result().items():
            total[name] = total.get(name, np.zeros(2, np.int64)) + counts
        print(f"{simulated.__name__} {folder.name}: {number} of {len(futures)} parts", file=sys.stderr)
    return total


def on_runs(runs: Path, gates: int, at_limit: int) -> None:
    """Print both tables for a folder of runs."""
    with ProcessPoolExecutor() as pool:
        print(f"{at_limit:,} gates at each limit, {gates:,} of equals.\n\n"
              "| Variant | score | true change, which is the limit | passes | fails |\n|---|---|---|---|---|",
              flush=True)
        for folder, (run, base, reference) in quantized(runs).items():
            pair = real(folder.name, read(base, reference)[1].outcomes.correct, read(folder, run)[1].outcomes.correct)
            shares = fixed(pair, pair.correct.size, at_limit, np.random.default_rng(0), pair.loss)
            print(f"| {run.artifact.recipe.id} | accuracy_top1 | {-pair.loss * 100:+.2f} points | "
                  f"{shares['pass']:.1%} | {shares['fail']:.1%} |")
            for name, (kept, broken) in in_parts(calibrated, runs, folder, at_limit, pool).items():
                print(f"| {run.artifact.recipe.id} | {name} | {changes_of(run)[name]:+.4f} | {kept / at_limit:.1%} | "
                      f"{broken / at_limit:.1%} |", flush=True)
        print("\n| Variant exchanged with its reference | rule | fails | passes |\n|---|---|---|---|", flush=True)
        for folder, (run, *_) in quantized(runs).items():
            for name, (kept, broken) in in_parts(equals, runs, folder, gates, pool).items():
                print(f"| {run.artifact.recipe.id} | {name} | {broken / gates:.1%} | {kept / gates:.1%} |", flush=True)


def tolerance(rate: float, gates: int) -> float:
    """Return what a true rate exceeds in one of a thousand simulations of so many gates."""
    return rate + 3.1 * math.sqrt(rate * (1 - rate) / gates)


def rows(folder: Path, gates: int, sequential_gates: int, seed: int = 0) -> list[dict[str, object]]:
    """Return one row per scenario."""
    generator = np.random.default_rng(seed)
    right, confidence = predictions(folder, "ResNet50")
    other, _ = predictions(folder, "SimCLR")
    pilot = 0.02

    def variant(name: str, loss: float, share: float) -> Pair:
        return perturbed(name, right, confidence, loss, share)

    plans = [  # scenario, declared: status that is wrong and its rate, discordant share that is planned with
        (variant("identical answers", 0.0, 0.0), "fail", ALPHA, pilot),
        (variant("equal accuracy, 0.2 % flip", 0.0, 0.002), "fail", ALPHA, pilot),
        (variant("equal accuracy, 2 % flip", 0.0, 0.02), "fail", ALPHA, 0.02),
        (variant("equal accuracy, 4 % flip", 0.0, 0.04), "fail", ALPHA, 0.04),
        (variant("loss of just the margin, 2 % flip: passes", MARGIN, 0.02), "pass", ALPHA, 0.02),
        (variant("loss of just the margin, 2 % flip: fails", MARGIN, 0.02), "fail", ALPHA, 0.02),
        (variant("loss of twice the margin, 2 % flip", 2 * MARGIN, 0.02), "not fail", 1 - POWER, 0.02),
        (variant("loss of twice the margin, 4 % flip", 2 * MARGIN, 0.04), "not fail", 1 - POWER, 0.04),
        (variant("loss of 3 points, 6 % flip", 0.03, 0.06), "not fail", 1 - POWER, 0.06),
        (real("SimCLR in place of ResNet-50", right, other), "not fail", 1 - POWER, None)]
    found = []
    for pair, wrong, declared, planned in plans:
        n = sample_size.difference(MARGIN, planned or pair.discordant, confidence=CONFIDENCE, power=POWER)
        at_n = fixed(pair, n, gates, generator)
        always, median = peeking(pair, sequential_gates, generator)
        # Regressions may not pass when looked at all the time; that all are found in the end has no declared rate.
        sequential_wrong = "pass" if wrong == "not fail" else wrong
        found.append({
            "scenario": pair.name, "loss": pair.loss, "discordant": pair.discordant, "wrong": wrong,
            "declared": declared, "images": n, "fixed": 1 - at_n["fail"] if wrong == "not fail" else at_n[wrong],
            "peeking": always[sequential_wrong], "peeking_declared": ALPHA, "median": median, "saving": n / median,
            "undecided": always["inconclusive"]})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", help="folder of ResNet50.csv and SimCLR.csv")
    parser.add_argument("--runs", type=Path, help="finished runs to gate at their true changes instead")
    parser.add_argument("--gates", type=int, default=2000)
    parser.add_argument("--sequential", type=int, default=500)
    parser.add_argument("--at-limit", type=int, default=300, help="of --runs, whose bootstraps are slow; %(default)s")
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args()
    begin = time.monotonic()
    if options.runs is not None:
        on_runs(options.runs, options.gates, options.at_limit)
        return
    if options.folder is None:
        parser.error("a folder of predictions or --runs is needed")
    found = rows(options.folder, options.gates, options.sequential)
    equal = timing(options.gates, np.random.default_rng(1))
    if not options.markdown:
        print(json.dumps({"rows": found, "timing": equal, "seconds": time.monotonic() - begin}, indent=1))
        return
    print(f"{options.gates:,} gates at the planned number of images, {options.sequential:,} that look after every "
          f"{BATCH}; margin {MARGIN * 100:g} points, confidence {CONFIDENCE:g}, power {POWER:g}.\n")
    print("| Variant | wrong is | declared | planned images | wrong there | wrong when always looking | images then, "
          f"median | saving | undecided at {MOST:,} |")
    print("|---|---|---|---|---|---|---|---|---|")
    for one in found:
        print(f"| {one['scenario']} | {one['wrong']} | {one['declared']:.0%} | {one['images']:,} | "
              f"{one['fixed']:.1%} | {one['peeking']:.1%} | {one['median']:,.0f} | {one['saving']:.1f}× | "
              f"{one['undecided']:.0%} |")
    print(f"\nEqual engines called slower {equal['slower']:.1%}, faster {equal['faster']:.1%} of {options.gates:,} "
          f"times (declared {ALPHA:.0%} each), looking after each of 1,000 interleaved pairs.")


if __name__ == "__main__":
    main()
