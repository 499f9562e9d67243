"""Accuracy-aware back-off: from all layers quantized, return the most sensitive ones to float until quality holds.

Layers are ranked by what quantizing each of them alone does to the answers on the images that chose the ranges.
Candidates with 1, 2, 4, 8, … of the most sensitive layers in float, but never all of them, are then judged on labelled
images, not by a point estimate but by the upper confidence bound of what they lose; the last step halves the distance
to the last one that failed. Everything tried is logged as it is known, so that an interrupted search goes on, and the
best candidate is kept even where none holds, or where others cannot be built.
"""

from __future__ import annotations

import glob
import hashlib
import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, cast

import numpy as np

from edgebench import backends, environment, graphs, metrics, outputs, sample_size, stats
from edgebench.artifacts import pad, session_batch
from edgebench.calibration_errors import smece
from edgebench.conversion import PLAIN, open_here
from edgebench.datasets import ImageSet, targets
from edgebench.errors import CannotMeasure, InvalidInput, UsageError, unknown, writing
from edgebench.export import Exporter, tools, variant_folder
from edgebench.imagecache import cached, normalize
from edgebench.patterns import COMPUTE
from edgebench.quantize import plan, prepare
from edgebench.recipe import Recipe
from edgebench.record import ScoredOutput, decode, to_builtins
from edgebench.sources import Progress, Source
from edgebench.telemetry import nvml

MEASURES = ("accuracy", "calibration", "flips", "disagreement")
Measure = Literal["accuracy", "calibration", "flips", "disagreement"]
MEANING = {
    "accuracy": "loss of top-1 accuracy against FP32 on the same images (Tango's interval)",
    "calibration": "increase of the smooth calibration error (paired bootstrap)",
    "flips": "share of images that turn from right to wrong (Wilson's interval)",
    "disagreement": "share of images with another answer than FP32's (Wilson's interval)",
}
ALPHA = 0.05
RANKING_IMAGES = 32
RANKING_FAILURES = 3
BATCH = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Margin:
    """How much of one measure may be lost, as a fraction."""

    measure: Measure
    most: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What a candidate lost of one measure, and at most lost by the upper confidence bound."""

    measure: Measure
    loss: float
    bound: float
    most: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One candidate: which layers it leaves float, and what it loses."""

    keep_float: tuple[str, ...]
    measured: tuple[Measured, ...] = ()
    failed: str | None = None
    """Why it could not be built or judged; None where it was."""

    @property
    def excess(self) -> float:
        """How far the worst bound lies above its margin; 0 or less where all hold, infinite where it failed."""
        return max((one.bound - one.most for one in self.measured), default=math.inf)


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """What to search for, and how long."""

    margins: tuple[Margin, ...]
    max_trials: int = 8
    """Candidates that are judged, at most; the error probability is shared among them."""

    def __post_init__(self) -> None:
        if self.max_trials < 1:
            raise UsageError(f"--max-trials: expected 1 or more, got {self.max_trials}")

    @property
    def alpha(self) -> float:
        """Error probability of each candidate's bounds, which are one-sided."""
        return ALPHA / self.max_trials

    @property
    def images_at_least(self) -> int:
        """Labelled images below which a candidate cannot hold that answers as FP32 does."""
        # A bootstrap of no change has no width.
        return max(sample_size.difference(one.most, 0.0, confidence=1 - self.alpha) or sample_size.MOST
                   for one in self.margins if one.measure != "calibration")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a search ends with."""

    recipe: Recipe
    """The best candidate, as a recipe of its own."""
    best: Trial
    trials: tuple[Trial, ...]
    images: int
    """Labelled images that judged."""
    layers: int
    """Layers that the first candidate quantized."""

    @property
    def verdict(self) -> Literal["holds", "fails", "inconclusive"]:
        """``holds``: every loss is within its margin with confidence; ``fails``: one exceeds it on these images."""
        if self.best.excess <= 0:
            return "holds"
        return "fails" if any(one.loss > one.most for one in self.best.measured) else "inconclusive"


def margins(max_drop: float, keep: Sequence[str]) -> tuple[Margin, ...]:
    """Return the margins behind ``--max-drop`` and ``--keep NAME[=MARGIN],…``; accuracy is always among them.

    Raises:
        UsageError: An unknown measure, or a margin that is no fraction.
    """
    wanted: dict[str, float] = {"accuracy": max_drop}
    for word in keep:
        name, _, value = word.partition("=")
        if name not in MEASURES:
            raise unknown("measure", name, MEASURES)
        try:
            wanted[name] = float(value) if value else max_drop
        except ValueError as error:
            raise UsageError(f"--keep {word}: expected a number after =, got {value!r}") from error
    for name, most in wanted.items():
        if not 0 < most < 1:
            raise UsageError(f"the margin of {name} is a fraction between 0 and 1, got {most:g}",
                             "0.005 is half a percentage point")
    return tuple(Margin(measure=cast("Measure", name), most=most) for name, most in wanted.items())


class Judge:
    """Labelled images, what FP32 answers on them, and the verdict on a candidate's answers.

    Args:
        source: The model.
        base: Its FP32 graph.
        images: Labelled images, none of which chose the ranges.
        excluded: SHA-256 of the images that did.
        scored: Which output answers, and what it holds.
    """

    def __init__(self, source: Source, base: Path, images: ImageSet, excluded: Sequence[str],
                 scored: ScoredOutput) -> None:
        if source.preprocess is None:
            raise InvalidInput(f"the preprocessing of {source.identity.id} is unknown, so images cannot be fed to it",
                               "pass --preprocess FILE")
        cache = cached(images.items, source.preprocess)
        left = set(excluded)
        rows = [row for row, k in enumerate(cache.kept) if cache.hashes[k] not in left]
        if not rows:
            raise InvalidInput(f"every image of {images.source} chose the ranges: none is left to judge by",
                               "pass --tuning-data DIR, or more images with --calibration-data")
        self._pixels, self._preprocess, self._scored = cache.read(rows), source.preprocess, scored
        self._first = graphs.image_input(base).shape[0]
        self.reference = self.answers(base, PLAIN)
        wanted, _, _ = targets(images, source.classes, self.reference.shape[1])
        self.targets = np.array([wanted[cache.kept[row]] for row in rows])
        self.digest = hashlib.sha256(json.dumps([
            [cache.hashes[cache.kept[row]] for row in rows], self.targets.tolist(), to_builtins(source.preprocess),
        ]).encode()).hexdigest()

    def answers(self, entry: Path, recipe: Recipe, pixels: np.ndarray | None = None) -> np.ndarray:
        """Return the logits (n, K) of a built file on `pixels` (n, H, W, 3); on the labelled images where None.

        Of probabilities they are the logarithms.
        """
        images = self._pixels if pixels is None else pixels
        batch = session_batch(recipe, self._first, BATCH)
        session = open_here(entry, recipe, batch=batch, threads=environment.usable_cpus())
        name, output = session.inputs[0].name, session.outputs[0].name
        found = []
        for start in range(0, len(images), batch):
            rows = normalize(images[start:start + batch], self._preprocess)
            found.append(outputs.scores(np.array(session.infer({name: pad(rows, batch)})[output][: len(rows)]),
                                        self._scored))
        return np.concatenate(found)

    def outcomes(self, logits: np.ndarray) -> metrics.Outcomes:
        """Return the outcomes of answers (n, K) to the labelled images."""
        return metrics.outcomes(logits, self.targets, self._scored.kind)

    def judge(self, logits: np.ndarray, wanted: Sequence[Margin], alpha: float) -> tuple[Measured, ...]:
        """Return each loss with its one-sided upper bound at error probability `alpha`."""
        mine, theirs = self.outcomes(logits), self.outcomes(self.reference)
        n = len(self.targets)
        negative, positive = metrics.flips(theirs.correct, mine.correct)
        two_sided = 1 - 2 * alpha
        found = []
        for margin in wanted:
            if margin.measure == "accuracy":
                loss = (negative - positive) / n
                bound = stats.paired_interval(negative, positive, n, two_sided)[1]
            elif margin.measure == "calibration" and self._scored.kind == "sigmoid_scores":
                raise UsageError(f"--keep calibration needs confidences: {outputs.NO_DISTRIBUTION}",
                                 "leave calibration out of --keep, or export a softmax classifier")
            elif margin.measure == "calibration":
                loss, bound = _calibration_loss(mine, theirs, alpha)
            else:
                count = negative if margin.measure == "flips" else int((mine.predicted != theirs.predicted).sum())
                loss, bound = count / n, stats.wilson(count, n, two_sided)[1]
            found.append(Measured(measure=margin.measure, loss=loss, bound=bound, most=margin.most))
        return tuple(found)


def _calibration_loss(mine: metrics.Outcomes, theirs: metrics.Outcomes, alpha: float) -> tuple[float, float]:
    def change(chosen: np.ndarray) -> np.ndarray:
        return np.array([smece(mine.confidence[chosen], mine.correct[chosen])
                         - smece(theirs.confidence[chosen], theirs.correct[chosen])])

    n = len(mine)
    loss = change(np.arange(n))
    # Shifted by its bias: smoothed residuals grow under resampling, more for the better calibrated side.
    _, high = stats.bootstrap(change, n, confidence=1 - 2 * alpha, estimate=loss)
    return float(loss[0]), float(high[0])


def search(source: Source, recipe: Recipe, exporter: Exporter, root: Path, images: ImageSet, wanted: Search,
           progress: Progress = lambda what, done, total: None,
           note: Callable[[str], None] = lambda text: None) -> Outcome:
    """Search for the quantized recipe with as few layers in float as keep every margin.

    Args:
        source: The model.
        recipe: What is quantized, and how: the first candidate.
        exporter: Of the source; builds the candidates.
        root: Where the log is kept, as ``<model>--<recipe>.search.jsonl``.
        images: Labelled images to judge by; those that chose the ranges are left out.
        wanted: Margins and bounds of the search.
        progress: Told about the steps.
        note: Told, before anything is built, where the labelled images are too few to show that a margin is kept.

    Raises:
        UsageError: A recipe that quantizes nothing.
        CannotMeasure: No candidate can be built and judged.
    """
    if recipe.quantization is None:
        raise UsageError(f"recipe {recipe.id!r} quantizes nothing: there is no layer to return to float",
                         "--max-drop and --keep go with INT8 and FP8 recipes")
    base = exporter.base(recipe.opset)
    drawn, drawn_pixels = exporter.draw(recipe.quantization)
    judge = Judge(source, base, images, drawn.image_sha256, exporter.scored(recipe.opset))
    prepared = prepare(base, exporter.scratch)
    decided = plan(graphs.load(prepared), recipe)
    layers = [one.name for one in decided.decisions if one.quantized and one.operator in COMPUTE]
    if not layers:
        raise CannotMeasure(f"{recipe.id} quantizes no layer of {source.identity.id}", "see edgebench export --explain")
    key = hashlib.sha256(json.dumps([
        to_builtins(source.identity), to_builtins(recipe), judge.digest, drawn.digest, to_builtins(wanted), layers,
        tools(recipe), _machine(recipe),
    ], sort_keys=True).encode()).hexdigest()
    log = _Log(root / f"{variant_folder(source.identity.id, recipe)}.search.jsonl", key)
    attempts = _Attempts(recipe, exporter, judge, base, log)
    if len(judge.targets) < wanted.images_at_least:
        note(_too_few(recipe, len(judge.targets), wanted))

    def attempt(keep: Sequence[str]) -> Trial:
        progress(f"judging {recipe.id} with {len(keep)} of {len(layers)} layers in float", len(attempts.trials),
                 wanted.max_trials)
        return attempts.judged(keep, wanted.margins, wanted.alpha)

    trials = [attempt(())]
    # With all of them in float the recipe would quantize nothing that matters.
    most = len(layers) - 1
    if trials[0].excess > 0 and wanted.max_trials > 1 and most:
        def told(done: int) -> None:
            progress(f"ranking the layers of {recipe.id}", done, len(layers))

        ranked = attempts.ranked(layers, decided.quantized, drawn_pixels, told)
        failed, held, count = 0, None, 1
        while len(trials) < wanted.max_trials and held is None:
            count = min(count, most)
            trials.append(attempt(ranked[:count]))
            if trials[-1].excess <= 0:
                held = count
            elif count == most:
                break
            else:
                failed, count = count, count * 2
        while held is not None and held - failed > 1 and len(trials) < wanted.max_trials:
            middle = (held + failed) // 2
            trials.append(attempt(ranked[:middle]))
            failed, held = (failed, middle) if trials[-1].excess <= 0 else (middle, held)
    if all(one.failed for one in trials):
        raise CannotMeasure(f"no candidate of {recipe.id} can be built and judged: {trials[0].failed}",
                            f"try it without --max-drop; what was tried stands in {log.path}")
    holding = [one for one in trials if one.excess <= 0]
    best = min(holding, key=lambda one: len(one.keep_float)) if holding else min(trials, key=lambda one: one.excess)
    return Outcome(recipe=_tuned(recipe, best, len(judge.targets), len(layers)), best=best, trials=tuple(trials),
                   images=len(judge.targets), layers=len(layers))


def _machine(recipe: Recipe) -> list[object]:
    """Return what a built file's answers depend on here: runtime, CPU and GPUs."""
    own = backends.get(recipe.backend)
    runs = own.reason_against(recipe) is None
    runtime = own if runs else backends.get("onnxruntime")
    return [runs, runtime.packages(), environment.processor(), nvml.gpus_seen()]


def _too_few(recipe: Recipe, images: int, wanted: Search) -> str:
    shown = stats.wilson(0, images, 1 - 2 * wanted.alpha)[1]
    tightest = min(one.most for one in wanted.margins if one.measure != "calibration")
    fewer = ", or fewer --max-trials," if wanted.max_trials > 1 else ""
    return (f"{recipe.id}: {images:,} labelled images are too few for a margin of {tightest:.2%}: where no answer "
            f"changes they show that the loss is below {shown:.2%}. The best candidate is kept all the same; "
            f"{wanted.images_at_least:,} images (--tuning-data){fewer} could show that one holds")


class _Log:
    """One JSON object per line, appended as soon as it is known; lines of another search are not read."""

    def __init__(self, path: Path, key: str) -> None:
        self.path, self.key = path, key
        self.lines = list(self._read())

    def _read(self) -> Iterator[dict[str, object]]:
        if not self.path.exists():
            return
        for text in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                line = json.loads(text)
            except json.JSONDecodeError:
                # The line that an interruption cut short.
                continue
            if isinstance(line, dict) and line.get("search") == self.key:
                yield line

    def add(self, **entry: object) -> None:
        line = {"search": self.key, **entry}
        with writing(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, allow_nan=False) + "\n")
        self.lines.append(line)


class _Attempts:
    """Builds candidates, and remembers in the log what they were worth."""

    def __init__(self, recipe: Recipe, exporter: Exporter, judge: Judge, base: Path, log: _Log) -> None:
        self._recipe, self._exporter, self._judge, self._base, self._log = recipe, exporter, judge, base, log
        self.trials: list[Trial] = []

    def judged(self, keep: Sequence[str], wanted: Sequence[Margin], alpha: float) -> Trial:
        # What failed is tried again when a search goes on: memory, disk or time may have been short.
        known = next((line for line in self._log.lines
                      if line.get("keep_float") == list(keep) and not line.get("failed")), None)
        if known is not None:
            trial = decode(Trial, {"keep_float": known["keep_float"], "measured": known["measured"]},
                           str(self._log.path))
        else:
            try:
                trial = Trial(keep_float=tuple(keep), measured=self._judge.judge(self._answers(keep), wanted, alpha))
            except (CannotMeasure, InvalidInput) as error:
                trial = Trial(keep_float=tuple(keep), failed=error.message)
            self._log.add(**to_builtins(trial), images=len(self._judge.targets), alpha=alpha)
        self.trials.append(trial)
        return trial

    def ranked(self, layers: Sequence[str], quantized: Sequence[str], drawn: Path,
               told: Callable[[int], None]) -> list[str]:
        """Return the layers, the one that does most harm alone first: mean KL divergence from FP32 in nats.

        Args:
            layers: What is ranked.
            quantized: All nodes that the recipe quantizes.
            drawn: Pixels of the images that chose the ranges: those that judge must not choose candidates.
            told: Told how many layers are done.
        """
        harm: dict[str, float] = {str(line["layer"]): float(cast("float", line["kl_nat"])) for line in self._log.lines
                                  if "layer" in line and not line.get("failed")}
        pixels = np.load(drawn, mmap_mode="r")
        # Evenly from all of them: they lie class by class.
        pixels = pixels[np.linspace(0, len(pixels) - 1, min(RANKING_IMAGES, len(pixels))).round().astype(int)]
        reference = self._judge.answers(self._base, PLAIN, pixels)
        for done, name in enumerate(layers):
            told(done)
            if name in harm:
                continue
            if self.trials[0].failed and len(harm) >= RANKING_FAILURES and all(map(math.isinf, harm.values())):
                # Neither all layers nor any of these: it is no layer's fault, and the others would tell nothing.
                break
            others = [other for other in quantized if other != name]
            try:
                harm[name] = float(metrics.divergences(reference, self._answers(others, pixels)).kl.mean())
                self._log.add(layer=name, kl_nat=harm[name])
            except (CannotMeasure, InvalidInput) as error:
                # What fails with this layer alone quantized is the first to be tried in float.
                harm[name] = math.inf
                self._log.add(layer=name, failed=error.message)
        told(len(layers))
        return sorted(layers, key=lambda name: -harm.get(name, 0.0))

    def _answers(self, keep: Sequence[str], pixels: np.ndarray | None = None) -> np.ndarray:
        candidate = _keeping(self._recipe, keep)
        folder = self._exporter.scratch / "candidate"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        entry = self._exporter.build(candidate, self._base, folder)
        logits = self._judge.answers(folder / entry, self._recipe, pixels)
        if metrics.broken(logits).any():
            raise CannotMeasure(f"{self._recipe.id} gives NaN or infinity with {len(keep)} layers in float")
        return logits


def _keeping(recipe: Recipe, keep: Sequence[str]) -> Recipe:
    assert recipe.quantization is not None
    # Names are patterns there: what is special in a pattern stands for itself.
    kept = tuple(dict.fromkeys((*recipe.quantization.keep_float, *map(glob.escape, keep))))
    return replace(recipe, quantization=replace(recipe.quantization, keep_float=kept))


def _tuned(recipe: Recipe, best: Trial, images: int, layers: int) -> Recipe:
    def text(one: Measured) -> str:
        return f"{one.measure} {one.loss:+.4f} (at most {one.bound:+.4f}, margin {one.most:g})"

    words = "; ".join(text(one) for one in best.measured)
    return replace(
        _keeping(recipe, best.keep_float), id=f"{recipe.id}-tuned", title=f"{recipe.title}, tuned",
        purpose=f"{recipe.purpose} {len(best.keep_float)} of {layers} layers returned to float.",
        checked_on=f"{images} labelled images, losses against FP32: {words}.")


def images_needed(trial: Trial, images: int) -> int | None:
    """Return about how many images would settle a trial whose losses lie within the margins but not their bounds.

    The width of the bound shrinks with the root of the number of images. None where a loss itself is too large.
    """
    if any(one.loss >= one.most for one in trial.measured):
        return None
    return max(math.ceil(images * ((one.bound - one.loss) / (one.most - one.loss)) ** 2) for one in trial.measured)


def summary(outcome: Outcome) -> Mapping[str, object]:
    """Return the outcome as plain data, for ``--json``."""
    return {"recipe": outcome.recipe.id, "verdict": outcome.verdict, "images": outcome.images, "layers": outcome.layers,
            "best": to_builtins(outcome.best), "trials": [to_builtins(one) for one in outcome.trials],
            "images_needed": None if outcome.verdict == "holds" else images_needed(outcome.best, outcome.images)}
