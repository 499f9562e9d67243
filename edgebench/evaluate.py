"""Push images through a session and keep the logits; score kept logits. The one runs on the device, the other not."""

from __future__ import annotations

import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import fields, replace
from pathlib import Path
from typing import IO

import numpy as np

from edgebench import backends, class_subsets, environment, metrics, outputs, properties, sustained
from edgebench.artifacts import pad, session_batch
from edgebench.backends import Session
from edgebench.errors import CannotMeasure, InvalidInput, writing
from edgebench.imagecache import load_cache, normalize
from edgebench.observed import Observed
from edgebench.properties import Pass, Predictions, load_predictions
from edgebench.recipe import Precision
from edgebench.record import (
    Artifact,
    Caveat,
    DatasetIdentity,
    Evaluation,
    OutputKind,
    PassRecord,
    Run,
    ScoredOutput,
    sha256_once,
)

FEATURES = "features"
"""Name of an artifact's second output: what its head reads."""


# Backends that open files on the CPU without building anything first, and the images that they take at once.
_ON_CPU, _BATCH = frozenset({"onnxruntime", "openvino"}), 32
ROOM_HINT = "free some space, choose --out on a larger disk, or keep less per image with --store compact"


def run_pass(session: Session, cache: Path, rows: Sequence[int], batch: int, progress: Callable[[int, int], None], *,
             meaning: ScoredOutput | None = None, features: bool = False, ids: Sequence[str] = (),
             precision: Precision = "fp32") -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """Yield logits (n, K) and, where asked for, features (n, D), float32, of the cached images at `rows`.

    In batches of exactly `batch`, the last one filled up for the runtime and cut for the caller. The next batch is read
    and normalised on a thread of its own while the session infers. After an image without an answer nothing more is
    yielded: the others are run to count such images.

    Args:
        session: What answers; its first output is scored.
        cache: Folder of the image cache.
        rows: Rows of the cache.
        batch: Images per inference.
        progress: Told how many images are done, of how many.
        meaning: What the scored output holds; logits where None.
        features: Whether features are asked for.
        ids: Names of the images, for errors.
        precision: Of the artifact, which explains what goes wrong.

    Raises:
        InvalidInput: The outputs are not one value per class, are something else than `meaning` says, or images have no
            answer: NaN, +inf, or no class that is not excluded.
    """
    images = load_cache(cache)
    name, output = session.inputs[0].name, session.outputs[0].name

    def prepared(start: int) -> np.ndarray:
        return pad(normalize(images.read(rows[start:start + batch]), images.preprocess), batch)

    meaning = meaning or ScoredOutput(name=output, kind="logits", evidence="assumed",
                                      reason=f"output {output!r}: logits")
    floats = precision in ("fp32", "bf16", "fp16")
    unanswered: list[int] = []
    contrary: list[int] = []
    starts = range(0, len(rows), batch)
    for start, inputs in zip(starts, _one_ahead(prepared, starts), strict=True):
        count = min(batch, len(rows) - start)
        answers = session.infer({name: inputs})
        raw = np.array(answers[output][:count], np.float32)
        logits = outputs.scores(raw, meaning)
        wrong = metrics.broken(logits)
        unanswered += (start + np.flatnonzero(wrong)).tolist()
        contrary += (start + np.flatnonzero(~wrong & outputs.contradicts(raw, meaning, floats=floats))).tolist()
        if not (unanswered or contrary):
            yield logits, np.array(answers[FEATURES][:count], np.float32).reshape(count, -1) if features else None
        progress(start + count, len(rows))
    if unanswered:
        raise _unanswered(unanswered, len(rows), ids, precision)
    if contrary:
        raise InvalidInput(f"{meaning.reason}, which the values contradict for {_named(contrary, len(rows), ids)}",
                           f"--output {meaning.name}=logits says what they are, or another kind")


def _unanswered(places: Sequence[int], total: int, ids: Sequence[str], precision: Precision) -> InvalidInput:
    hints = {
        "fp32": "the model itself fails on them, for instance where it divides by the spread of a constant image: "
                "repair it, or take these images away",
        "fp16": "16-bit floats overflow above 65504 in fp16: keep the layers that do in fp32, or use bf16"}
    return InvalidInput(
        f"no answer for {_named(places, total, ids)}: the outputs hold NaN or infinity, or exclude every class",
        hints.get(precision, f"see whether the FP32 artifact answers them: if so, {precision} is too coarse here"))


def _named(places: Sequence[int], total: int, ids: Sequence[str]) -> str:
    names = [str(ids[place]) for place in places[:3] if place < len(ids)]
    return f"{len(places):,} of {total:,} images" + (
        f" ({', '.join(names)}{', …' if len(places) > len(names) else ''})" if names else "")


def answers(entry: Path, artifact: Artifact, inputs: np.ndarray) -> np.ndarray:
    """Return the first output (n, values) of an artifact for inputs (n, 3, H, W), on a CPU runtime in this process.

    Args:
        entry: The artifact's file.
        artifact: What it is.
        inputs: As the model takes them, float32.

    Raises:
        EdgebenchError: It cannot be opened, or runs only on a device for which it has to be built.
    """
    recipe = artifact.recipe
    backend = backends.get(recipe.backend)
    reason = backend.reason_against(recipe)
    if reason is not None or recipe.backend not in _ON_CPU or recipe.providers:
        raise CannotMeasure(f"{recipe.id} does not run on the CPU here{f': {reason}' if reason else ''}")
    batch = session_batch(recipe, artifact.inputs[0].shape[0], _BATCH)
    session = backend.open_session(entry, recipe, batch=batch, threads=environment.usable_cpus())
    name, output = session.inputs[0].name, session.outputs[0].name
    found = []
    for start in range(0, len(inputs), batch):
        rows = inputs[start:start + batch]
        first = np.array(session.infer({name: pad(rows, batch)})[output][:len(rows)], np.float32)
        found.append(first.reshape(len(rows), -1))
    return np.concatenate(found)


def _one_ahead(make: Callable[[int], np.ndarray], places: Iterable[int]) -> Iterator[np.ndarray]:
    """Yield ``make(place)`` for all places, in order, each begun on another thread when its predecessor is taken."""
    with ThreadPoolExecutor(1, "prepare") as pool:
        upcoming: Future[np.ndarray] | None = None
        for place in places:
            ready, upcoming = upcoming, pool.submit(make, place)
            if ready is not None:
                yield ready.result()
        if upcoming is not None:
            yield upcoming.result()


def save_predictions(path: Path, parts: Iterable[tuple[np.ndarray, np.ndarray | None]], *, targets: Sequence[int],
                     ids: Sequence[str], dataset: DatasetIdentity, artifact_digest: str,
                     labels: Sequence[Sequence[int]] | None = None, compact: bool = False,
                     size_px: tuple[int, int] | None = None, kind: OutputKind = "logits") -> None:
    """Write the predictions of one pass, atomically and part by part: no more than one part is held in memory.

    Args:
        path: The npz file.
        parts: Logits (n, K) and features (n, D) or None, in order; they sum up to the number of `targets`.
        targets: Class index per image.
        ids: Name per image.
        dataset: What the images are.
        artifact_digest: What answered.
        labels: All accepted class indices per image, for sets that accept several.
        compact: Keep `edgebench.metrics.Outcomes` instead of logits: a hundredth of the space, and no score that needs
            whole probability vectors. Of a set that is scored among some of the classes, they are among these alone.
        size_px: Height and width of what the model saw.
        kind: What the logits are.
    """
    within = class_subsets.BY_DATASET.get(dataset.name, ()) if compact else ()
    small: dict[str, np.ndarray] = {
        "targets": np.asarray(targets, np.int64), "ids": np.asarray(ids, np.str_),
        "dataset": np.asarray(dataset.digest), "artifact": np.asarray(artifact_digest), "kind": np.asarray(kind)}
    if size_px is not None:
        small["size_px"] = np.asarray(size_px, np.int64)
    if within:
        small["within"] = np.asarray(within, np.int64)
    if labels is not None:
        padded = np.full((len(labels), max(map(len, labels))), -1, np.int64)
        for row, accepted in enumerate(labels):
            padded[row, : len(accepted)] = accepted
        small["labels"] = padded
    with writing(path, ROOM_HINT):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".part-") as scratch:
            target = Path(scratch) / path.name
            with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
                _write_parts(archive, parts, small, Path(scratch), kind, compact=compact)
                for name, array in small.items():
                    with archive.open(f"{name}.npy", "w") as member:
                        np.lib.format.write_array(member, array, allow_pickle=False)
            target.replace(path)


def room_needed(images: int, classes: int, *, ids: Sequence[str], features: int = 0, compact: bool = False) -> int:
    """Return about how many bytes `save_predictions` writes.

    Args:
        images: How many.
        classes: The model's.
        ids: Names of the images.
        features: Width of the features, where they are kept.
        compact: As there.
    """
    per_image = (metrics.bytes_per_image(classes) if compact else 4 * classes) + 4 * features
    # A target, and a name padded to the longest.
    return images * (per_image + 8 + 4 * max(map(len, ids), default=0))


def _write_parts(archive: zipfile.ZipFile, parts: Iterable[tuple[np.ndarray, np.ndarray | None]],
                 small: dict[str, np.ndarray], scratch: Path, kind: OutputKind, *, compact: bool) -> None:
    n, done, width = len(small["targets"]), 0, 0
    kept: list[metrics.Outcomes] = []
    with ExitStack() as stack:
        logits_file: IO[bytes] | None = None
        features_file = stack.enter_context((scratch / "features").open("w+b"))
        for logits, features in parts:
            if compact:
                kept.append(_reduced(logits, small["targets"][done:done + len(logits)], small.get("within"), kind))
            else:
                if logits_file is None:
                    logits_file = stack.enter_context(archive.open("logits.npy", "w", force_zip64=True))
                    _write_header(logits_file, (n, logits.shape[1]))
                logits_file.write(np.ascontiguousarray(logits, np.float32).tobytes())
            if features is not None:
                width = features.shape[1]
                features_file.write(np.ascontiguousarray(features, np.float32).tobytes())
            done += len(logits)
        if done != n:
            raise ValueError(f"expected predictions for {n} images, got {done}")
        features_file.seek(0)
        if logits_file is not None:
            logits_file.close()
        if width:
            with archive.open("features.npy", "w", force_zip64=True) as member:
                _write_header(member, (n, width))
                shutil.copyfileobj(features_file, member)
    if compact:
        whole = metrics.joined(kept)
        small["kind"] = np.asarray(whole.kind)
        for one in fields(metrics.Outcomes):
            if one.name != "kind":
                small[f"outcomes_{one.name}"] = np.asarray(getattr(whole, one.name))


def _reduced(logits: np.ndarray, targets: np.ndarray, within: np.ndarray | None, kind: OutputKind) -> metrics.Outcomes:
    if within is None:
        return metrics.outcomes(logits, targets, kind)
    classes, name = within.tolist(), "this set"
    return metrics.outcomes(metrics.among(logits, classes, name), metrics.place_among(targets, classes, name),
                            metrics.kind_among(kind))


def _write_header(file: IO[bytes], shape: tuple[int, int]) -> None:
    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})


def has_predictions(path: Path, dataset: DatasetIdentity, artifact_digest: str, *, features: bool = False,
                    compact: bool = False) -> bool:
    """Return whether `path` already holds these predictions of this artifact, in the form asked for."""
    try:
        found = load_predictions(path, dataset, artifact_digest)
    except InvalidInput:
        return False
    return (found.features is not None or not features) and (compact or not found.compact)


def load_passes(folder: Path, passes: Iterable[PassRecord], artifact_digest: str) -> dict[Pass, Predictions]:
    """Read the predictions of all passes of one artifact in a variant's folder; arrays stay on disk until used.

    What is derived from them, image by image, is kept with them: give a reference's again to all that it is for.
    """
    found = {}
    for one in passes:
        key = Pass(one.dataset.name, one.condition, one.preset)
        found[key] = load_predictions(folder / key.file, one.dataset, artifact_digest, one.sha256)
    return found


def hashed(folder: Path, passes: Iterable[PassRecord]) -> tuple[PassRecord, ...]:
    """Return the passes with the SHA-256 of their predictions files in a variant's folder.

    Raises:
        InvalidInput: A file is missing.
    """
    return tuple(replace(one, sha256=sha256_once(folder / Pass(one.dataset.name, one.condition, one.preset).file))
                 for one in passes)


def parts(passes: Iterable[PassRecord]) -> tuple[Pass, ...]:
    """Return the passes that stopped early."""
    return tuple(Pass(one.dataset.name, one.condition, one.preset) for one in passes if one.part_of is not None)


def score(chosen: Sequence[str], predictions: Mapping[Pass, Predictions], reference: Mapping[Pass, Predictions] | None,
          preset: str = "native") -> tuple[Evaluation, ...]:
    """Return the evaluations of the chosen properties, from stored predictions alone."""
    datasets = sorted({key.dataset for key in predictions})
    result: list[Evaluation] = []
    for name in chosen:
        one = properties.get(name)
        needed = {key: predictions[key] for key in one.passes(datasets, preset) if key in predictions}
        if needed:
            result.extend(one.score(needed, reference))
    return tuple(result)


class Shelf:
    """The predictions of the last variant that others are compared with, read and reduced once for all of them."""

    def __init__(self) -> None:
        self._place: Path | None = None
        self._artifact_digest = ""
        self._found: dict[Pass, Predictions] = {}

    def load(self, folder: Path, passes: Iterable[PassRecord], artifact_digest: str) -> dict[Pass, Predictions]:
        """Return what `load_passes` does; of the folder and artifact asked for last, nothing is read twice."""
        if (folder, artifact_digest) != (self._place, self._artifact_digest):
            self._place, self._artifact_digest, self._found = folder, artifact_digest, {}
        wanted = {Pass(one.dataset.name, one.condition, one.preset): one for one in passes}
        new = [one for key, one in wanted.items()
               if key not in self._found or self._found[key].dataset != one.dataset]
        self._found |= load_passes(folder, new, artifact_digest)
        return {key: self._found[key] for key in wanted}


def rescore(run: Run, folder: Path, reference: tuple[Run, Path] | None, shelf: Shelf | None = None,
            ) -> tuple[Evaluation, ...]:
    """Return the evaluations of a finished run, computed afresh from its stored predictions.

    Args:
        run: The run.
        folder: Where its ``run.json`` lies.
        reference: The reference's run and folder, where the run names one and it is at hand.
        shelf: Where the reference's predictions may lie already.
    """
    shelf = shelf or Shelf()

    def stored(one: Run, where: Path) -> dict[Pass, Predictions]:
        return (load_passes if one.reference else shelf.load)(where, one.passes, one.artifact.digest)

    mine = stored(run, folder)
    others = properties.aligned(stored(*reference), mine, parts(run.passes)) if reference else None
    return score(run.settings.properties, mine, others, run.settings.preset)


def rescore_all(found: Sequence[tuple[Run, Path]]) -> tuple[Run, ...]:
    """Return the runs with all evaluations, and the analysis of sustained load, computed afresh from what is stored.

    The files stay as they are. Sustained load whose raw timings no file keeps stays as it was analysed.

    Args:
        found: Finished runs and the folders of their files. A run's reference is looked for beside it first.

    Raises:
        InvalidInput: Predictions or raw timings are missing or damaged.
    """
    def observed(run: Run, folder: Path) -> Observed | None:
        seen = run.observed
        if seen is None or seen.sustained is None or seen.sustained.file is None:
            return seen
        return replace(seen, sustained=sustained.afresh(folder, seen.sustained, seen.telemetry))

    shelf = Shelf()

    def afresh(run: Run, folder: Path) -> Run:
        named = [(other, place) for other, place in found if run.reference is not None
                 and (other.variant, other.artifact.digest) == (run.reference.variant, run.reference.artifact_digest)]
        beside = [pair for pair in named if pair[1].parent == folder.parent]
        return replace(run, evaluations=rescore(run, folder, next(iter([*beside, *named]), None), shelf),
                       observed=observed(run, folder))

    return tuple(afresh(run, folder) for run, folder in found)


def caveats(evaluations: Sequence[Evaluation], predictions: Mapping[Pass, Predictions]) -> tuple[Caveat, ...]:
    """Return what in the scores themselves speaks against them."""
    found = []
    for one in evaluations:
        if one.property not in ("accuracy", "calibration"):
            continue
        scores = {entry.name: entry for entry in one.scores}
        top1, ece, null = (scores.get(name) for name in ("accuracy_top1", "ece15_ew", "ece15_ew_null"))
        if top1 and top1.low is not None:
            of = predictions[Pass(one.dataset.name, one.condition, one.preset)]
            chance = float(np.bincount(of.targets).max()) / len(of.targets)
            if top1.low <= chance:
                found.append(Caveat(
                    code="near-chance", hint="check the class map, the preprocessing and the weights",
                    message=f"{one.dataset.name}: top-1 of {top1.value:.1%} is not clearly above the {chance:.1%} that "
                            "always naming the most frequent class would give"))
        if ece and null and ece.value is not None and null.high is not None and ece.value <= null.high:
            found.append(Caveat(
                code="ece-is-noise", hint="more images, or judge by ece_debiased_l2_squared, NLL and Brier score",
                message=f"{one.dataset.name}: a perfectly calibrated model would show an ECE of up to {null.high:.3f} "
                        f"on {ece.n} images; the {ece.value:.3f} here is not distinguishable from it"))
    found += [doubt for key, one in predictions.items() if (doubt := _doubted_kind(key, one)) is not None]
    return tuple(found)


def _doubted_kind(key: Pass, found: Predictions) -> Caveat | None:
    """Return the doubt about logits that look like something else over a whole clean pass."""
    if found.kind != "logits" or found.compact or key.condition != properties.CLEAN:
        return None
    blocks = [found.logits[rows] for rows in metrics.row_blocks(len(found.logits))]
    hint = "--output NAME=probabilities or NAME=sigmoid_scores says so, if they are"
    if all(map(outputs.look_like_probabilities, blocks)):
        return Caveat(code="outputs-look-like-probabilities", hint=hint,
                      message=f"{key.dataset}: the outputs were taken for logits, but every row is in 0 to 1 and sums "
                              "to 1")
    if all(map(outputs.between_zero_and_one, blocks)):
        return Caveat(code="outputs-between-0-and-1", hint=hint,
                      message=f"{key.dataset}: the outputs were taken for logits, but all of them lie in 0 to 1, as "
                              "those of a sigmoid do: confidences may be wrong")
    return None
