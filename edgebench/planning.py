"""Which passes a variant needs, and on which cached images each runs: every image is prepared once for all variants."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from edgebench import corruptions, outputs, properties, transforms
from edgebench.datasets import (
    CUE_CONFLICT,
    DEMO,
    IMAGENET_C,
    ImageSet,
    TwoReadings,
    accepted,
    distinguished,
    doubts,
    identity,
    spread,
    stratified,
    targets,
)
from edgebench.errors import EdgebenchError, InvalidInput, MissingDependency
from edgebench.evaluate import FEATURES
from edgebench.imagecache import Floats, ImageCache, cached, corrupted, normalize
from edgebench.named_sets import VTAB, Unfit, fit_sets, open_ood, under
from edgebench.properties import CLEAN, Pass
from edgebench.record import Artifact, Caveat, Preprocess, Skip
from edgebench.walk import printable
from edgebench.worker import PassJob

# Of each class, under every generated corruption and level of invariance: RobustBench's number, and the least in all.
PER_CLASS, AT_LEAST = 5, 200
# Pixels a side of ImageNet-C's files: a model of this input gets them as they are.
_SIDE_C = 224
READING_IMAGES = 512
"""Most images on which two readings of class folders are compared."""
# Files that timing with preprocessing inside the clock goes round in.
TIMING_IMAGES = 8
# Scored by the probabilities of all classes: their logits are always kept.
_WHOLE = frozenset({CUE_CONFLICT})


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What is to be evaluated, on which data."""

    properties: tuple[str, ...]
    data: tuple[str, ...]
    ood: tuple[str, ...]
    preset: str
    sweep_images: int | None
    """Images per generated corruption and level; None: `PER_CLASS` of each class and at least `AT_LEAST`; 0: all."""
    compact: bool
    by_name: bool = False
    """Whether the properties were named one by one: then none may be left without data."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The passes of a variant, what is doubtful about the data, and what cannot be run."""

    passes: tuple[PassJob, ...] = ()
    caveats: tuple[Caveat, ...] = ()
    skips: tuple[Skip, ...] = ()
    images: tuple[str, ...] = ()
    """A few image files, for timing with preprocessing inside the clock."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Clean:
    """A data set as one model sees it unchanged."""

    images: ImageSet
    cache: ImageCache
    rows: tuple[int, ...]
    """Rows of the cache that may be evaluated."""
    wanted: tuple[int, ...]
    """Target of each item."""
    labels: tuple[tuple[int, ...], ...] | None
    """All accepted classes of each item."""


class _OtherClasses(InvalidInput):
    """A set is of classes that the model does not have: it is passed over, for nothing is wrong with it."""


class Planner:
    """Plans each variant's passes; images are decoded where no cache holds them yet.

    Args:
        wanted: What is to be evaluated.
        excluded: SHA-256 of images that chose some variant's INT8 ranges: no variant is evaluated on them.
        progress: Told (what, share done).
        note: Told once what a user should know.
        answers: Returns a model's logits (n, classes) for inputs (n, 3, H, W), so that a refusal of class folders that
            can be read in two ways can say what either gives; None: nothing is run for that.
    """

    def __init__(self, wanted: Wanted, excluded: frozenset[str], progress: Callable[[str, float], None],
                 note: Callable[[str], None],
                 answers: Callable[[Artifact, Floats], Floats] | None = None) -> None:
        self._wanted, self._excluded, self._progress, self._note = wanted, excluded, progress, note
        self._answers = answers
        self._plans: dict[str, Plan] = {}
        self._opened: dict[tuple[str, ...], tuple[dict[str, ImageSet], tuple[Unfit, ...]]] = {}
        self._clean: dict[str, _Clean] = {}
        self._noted: set[str] = set()

    def reason_against(self, artifact: Artifact) -> str | None:
        """Return why this artifact's quality is not evaluated, or None."""
        if not self._wanted.properties:
            return "not asked for"
        if artifact.model.weights == "random":
            return "random weights have latency but no accuracy"
        if not self._locations(artifact):
            return "no labelled images were given: pass --data ROOT"
        return None

    def of(self, artifact: Artifact) -> Plan:
        """Return the plan for an artifact; empty where there is a `reason_against` it.

        Raises:
            UsageError: One data set twice.
            InvalidInput: Data that cannot be used where there are no others, or none for a property asked for by its
                name; or an artifact that cannot be fed images.
        """
        if self.reason_against(artifact) is not None:
            return Plan()
        if artifact.preprocess is None:
            raise InvalidInput(f"the preprocessing of {artifact.model.id} is unknown, so images cannot be fed to it",
                               "pass --preprocess FILE (docs/preprocessing.md), or --properties none for latency alone")
        if outputs.classes(artifact) is None:
            raise InvalidInput(f"{artifact.model.id}: the number of classes is not fixed in the model")
        key = repr((artifact.preprocess, artifact.classes, artifact.outputs, artifact.inputs, artifact.resolutions,
                    self._locations(artifact)))
        if key not in self._plans:
            self._plans[key] = self._plan(artifact, artifact.preprocess)
        return self._plans[key]

    def _locations(self, artifact: Artifact) -> tuple[str, ...]:
        return self._wanted.data or ((DEMO,) if artifact.model.id == DEMO else ())

    def _sets(self, locations: tuple[str, ...]) -> tuple[dict[str, ImageSet], tuple[Unfit, ...]]:
        if locations not in self._opened:
            opened = [fit_sets(location) for location in locations]
            everything = distinguished([one for found, _ in opened for one in found]
                                       + [open_ood(location) for location in self._wanted.ood])
            sets = {one.name: one for one in everything}
            unfit = tuple(one for _, left_out in opened for one in left_out)
            for one in unfit:
                self._note(f"data: {one.name} is left out: {one.error.message}; {one.error.hint}")
            self._opened[locations] = sets, unfit
        return self._opened[locations]

    def _plan(self, artifact: Artifact, native: Preprocess) -> Plan:
        preset = self._wanted.preset
        preprocess = transforms.paper(native) if preset == "paper" else native
        sets, left_out = self._sets(self._locations(artifact))
        jobs: list[PassJob] = []
        caveats: list[Caveat] = []
        skips = {name: f"needs {properties.get(name).NEEDS}" for name in self._wanted.properties
                 if not properties.get(name).passes(sorted(sets), preset)}
        with_features, no_features = self._features(artifact, sets)
        if no_features and self._wanted.by_name:
            raise InvalidInput(f"transfer cannot be evaluated: {artifact.model.id}: {no_features}",
                               "leave transfer out of --properties")
        if no_features:
            skips["transfer"] = no_features
        unfit = {one.name: _told(one.error) for one in left_out}
        errors = [(one.error, one.serves) for one in left_out]
        wanted_passes = properties.united_passes(self._wanted.properties, sorted(sets), preset)
        for needed in wanted_passes:
            if needed.dataset in unfit:
                continue
            on_disk = sets[needed.dataset].conditions
            if on_disk and needed.condition not in on_disk:
                absent = sum(1 for one in wanted_passes
                             if one.dataset == needed.dataset and one.condition not in on_disk)
                skips[f"{absent} conditions of {needed.dataset}"] = (
                    f"expected {needed.dataset}/{needed.condition.replace(':', '/')}/<wnid>/<image> and so on")
                continue
            try:
                clean = self._prepare(sets[needed.dataset], artifact, preprocess, needed, caveats)
            except InvalidInput as error:
                unfit[needed.dataset] = _told(error)
                if not isinstance(error, _OtherClasses):
                    errors.append((error, self._served(needed.dataset, sorted(sets))))
                continue
            made = self._job(needed, clean, preprocess, artifact)
            if isinstance(made, str):
                family = needed.condition.partition(":")[0]
                what = "generated corruptions" if corruptions.parse(needed.condition) else family
                skips.setdefault(f"{what} of {needed.dataset}", made)
            elif made is not None:
                jobs.append(replace(
                    made, features=needed in with_features,
                    compact=self._wanted.compact and needed.dataset not in _WHOLE
                    and not needed.dataset.startswith(f"{VTAB}/")))
        self._refuse_without_data(errors, [one.key for one in jobs], sorted(sets))
        height, width = preprocess.size_px
        if any(one.key.dataset == IMAGENET_C for one in jobs) and (height, width) != (_SIDE_C, _SIDE_C):
            skips[f"{IMAGENET_C} without resizing"] = (
                f"the model takes {width}×{height} pixels, to which the files of {_SIDE_C}×{_SIDE_C} were resized")
        skips |= unfit
        # A set whose conditions lie on disk is prepared once for each, with the same doubts.
        first = sets[jobs[0].dataset.name].items[:TIMING_IMAGES] if jobs else ()
        return Plan(passes=tuple(jobs), caveats=tuple(dict.fromkeys(caveats)),
                    images=tuple(str(one.path) for one in first),
                    skips=tuple(
                        Skip(what=what, reason=reason, subject="property" if what in properties.NAMES else "data",
                             code="unfit" if what in unfit else "no-data") for what, reason in skips.items()))

    def _refuse_without_data(self, errors: Sequence[tuple[InvalidInput, str]], there: Sequence[Pass],
                             names: Sequence[str]) -> None:
        """Raise the error of a set that is the only one, or the only one for a property asked for by its name."""
        if errors and not there:
            raise errors[0][0]
        for name in self._wanted.properties if self._wanted.by_name else ():
            fault = next((error for error, serves in errors if name in serves.split()), None)
            if fault and not set(properties.get(name).passes(names, self._wanted.preset)) & set(there):
                raise fault

    def _served(self, dataset: str, names: Sequence[str]) -> str:
        return " ".join(name for name in self._wanted.properties if dataset in {
            one.dataset for one in properties.get(name).passes(names, self._wanted.preset)})

    def _features(self, artifact: Artifact, sets: dict[str, ImageSet]) -> tuple[frozenset[Pass], str]:
        """Return the passes that keep features, and why an output of that name cannot be used; empty where it can."""
        if "transfer" not in self._wanted.properties or FEATURES not in [spec.name for spec in artifact.outputs]:
            return frozenset(), ""
        width, reason = outputs.features_width(artifact, FEATURES)
        if width is None:
            return frozenset(), reason
        return frozenset(properties.get("transfer").passes(sorted(sets), self._wanted.preset)), ""

    def _prepare(self, images: ImageSet, artifact: Artifact, preprocess: Preprocess, needed: Pass,
                 caveats: list[Caveat]) -> _Clean:
        """Return the set as the model sees it unchanged; a condition that lies on disk is a set of its own."""
        if images.conditions:
            images = under(images, needed.condition) or images
            preprocess = _as_it_is(preprocess)
        elif images.name == CUE_CONFLICT and needed.preset == "paper":
            preprocess = _as_it_is(preprocess)
        classes, count = artifact.classes, outputs.classes(artifact)
        assert count is not None
        where = needed.condition if images.conditions else ""
        key = repr((images.name, images.source, where, preprocess, classes, count))
        if key in self._clean:
            return self._clean[key]
        items = images.items
        if images.conditions:
            chosen = self._subset(images, range(len(items)))
            images = replace(images, items=tuple(items[k] for k in chosen))
        try:
            wanted, used, assumed = targets(images, classes, count)
        except TwoReadings as error:
            raise self._compared(error, images, artifact, preprocess) from error
        except InvalidInput as error:
            if images.imagenet or images.name == CUE_CONFLICT:
                raise _OtherClasses(error.message, error.hint) from error
            raise
        cache = cached(images.items, preprocess,
                       lambda done, total: self._progress(f"decoding {images.name}", done / total))
        rows = tuple(row for row, k in enumerate(cache.kept) if cache.hashes[k] not in self._excluded)
        self._refuse_lost_classes(images, cache)
        caveats += self._doubts(images, cache, len(cache.kept) - len(rows),
                                f"{', '.join(used.ids[:3])}{', …' * (len(used.ids) > 3)}" if assumed else None)
        if not rows:
            raise InvalidInput(f"every image of {images.source} was used for quantization calibration",
                               "give separate images with --calibration-data")
        self._clean[key] = _Clean(images=images, cache=cache, rows=rows, wanted=wanted,
                                  labels=accepted(images, used, range(len(images.items))))
        return self._clean[key]

    def _compared(self, error: TwoReadings, images: ImageSet, artifact: Artifact,
                  preprocess: Preprocess) -> InvalidInput:
        """Return the error with the top-1 accuracy that each reading gives, where the model can be run."""
        if self._answers is None or not error.readings:
            return error
        items = [images.items[k] for k in spread(images.items, READING_IMAGES)]
        self._progress("comparing the readings of the class folders", 0.0)
        try:
            cache = cached(items, preprocess)
            predicted = self._answers(artifact, normalize(cache.pixels(), preprocess)).argmax(1)
        except EdgebenchError:
            # What the model lacks is said when it is measured; here only the comparison is missing.
            return error
        n = len(cache.kept)
        correct = {way: sum(int(predicted[row]) == table[items[k].folder] for row, k in enumerate(cache.kept))
                   for way, table in error.readings.items()}
        clause = ", ".join(f"{count / n:.1%} {way}" for way, count in correct.items())
        return TwoReadings(f"{error.message}; top-1 on {n} images: {clause}", error.hint, error.readings)

    @staticmethod
    def _refuse_lost_classes(images: ImageSet, cache: ImageCache) -> None:
        """Raise InvalidInput where no image of a class could be decoded: every score would be of another set."""
        lost = sorted(set(images.folders) - {images.items[k].folder for k in cache.kept})
        if lost:
            reasons = dict(cache.unreadable)
            name, reason = next((item.id, reasons[item.id]) for item in images.items
                                if item.folder == lost[0] and item.id in reasons)
            raise InvalidInput(
                f"{images.name}: no image of class {printable(lost[0])!r}"
                + (f" (and of {len(lost) - 1} other classes)" if len(lost) > 1 else "")
                + f" can be decoded, the first: {printable(name)}: {reason}", "repair or remove them")

    def _doubts(self, images: ImageSet, cache: ImageCache, removed: int, assumed: str | None) -> list[Caveat]:
        found = list(doubts(images))
        if assumed:
            found.append(Caveat(code="assumed-classes", hint="pass --classes FILE to be certain",
                                message=f"{images.name}: the model has no class map; its outputs were taken to be "
                                        f"{assumed} in this order"))
        if cache.unreadable:
            name, reason = cache.unreadable[0]
            found.append(Caveat(
                code="unreadable-images", hint="repair or remove them; every variant left out the same images",
                message=f"{images.name}: {len(cache.unreadable)} of {len(images.items)} images left out, "
                        f"the first: {printable(name)}: {reason}"))
        if cache.narrow and images.name not in properties.PUBLISHED:
            bits, count = cache.narrow
            found.append(Caveat(
                code="sixteen-bit-range",
                hint=f"gray_bits = {bits} in the --preprocess file scales gray ones to the full range; save "
                     "colour ones with 8 bits",
                message=f"{images.name}: {count} images have 16 bits per pixel, and their largest value fits in "
                        f"{bits}: the model sees them at a {2 ** (16 - bits)}th of the brightness"))
        if cache.rotated and images.name not in properties.PUBLISHED:
            found.append(Caveat(
                code="exif-orientation", hint="turn them for good if the deployed camera pipeline would",
                message=f"{images.name}: {cache.rotated} images carry an EXIF orientation, which is not applied"))
        if removed:
            found.append(Caveat(
                code="calibration-images-left-out", hint="give separate images with --calibration-data",
                message=f"{images.name}: {removed} images chose the INT8 ranges and were left out of the evaluation"))
        for doubt in found:
            if doubt.message not in self._noted:
                self._noted.add(doubt.message)
                self._note(doubt.message)
        return found

    def _subset(self, images: ImageSet, among: Sequence[int]) -> tuple[int, ...]:
        if self._wanted.sweep_images == 0:
            return tuple(among)
        items = [images.items[k] for k in among]
        if self._wanted.sweep_images is None:
            folders = len({item.folder for item in items})
            return tuple(among[k] for k in stratified(items, max(PER_CLASS, math.ceil(AT_LEAST / folders))))
        return tuple(among[k] for k in spread(items, self._wanted.sweep_images))

    def _job(self, needed: Pass, clean: _Clean, preprocess: Preprocess, artifact: Artifact) -> PassJob | str | None:
        """Return the pass's job, why it cannot be run, or None where it is the clean pass under another name."""
        condition = needed.condition
        kept = [clean.cache.kept[row] for row in clean.rows]
        if condition == CLEAN or needed.dataset == IMAGENET_C:
            return self._assembled(needed, clean, clean.cache, clean.rows, kept)
        chosen = self._subset(clean.images, kept)

        def told(done: int, total: int) -> None:
            self._progress(f"preparing {needed.dataset}, {condition}", done / total)

        if corruptions.parse(condition):
            if min(preprocess.size_px) < corruptions.MIN_SIDE:
                return f"corruptions are defined for pictures of {corruptions.MIN_SIDE} pixels or more a side"
            try:
                corruptions.refuse_absent_packages()
            except MissingDependency as error:
                return f"{error.message}; {error.hint}"
            row_of = {k: row for row, k in enumerate(clean.cache.kept)}
            cache = corrupted(clean.cache, [row_of[k] for k in chosen], [clean.images.items[k].id for k in chosen],
                              condition, told)
            return self._assembled(needed, clean, cache, range(len(chosen)), chosen)
        size = transforms.output_size(preprocess, condition)
        fixed = [side for side in artifact.inputs[0].shape[2:] if isinstance(side, int)]
        resolution = None
        if condition.startswith("resolution:"):
            if size == preprocess.size_px:
                return None
            if fixed and list(size) != fixed:
                if size[0] not in [one.size_px for one in artifact.resolutions]:
                    return ("the graph takes one size of input: export with --resolutions "
                            + ",".join(transforms.levels("resolution", needed.preset)))
                resolution = size[0]
        cache = cached([clean.images.items[k] for k in chosen], preprocess, told, condition)
        job = self._assembled(needed, clean, cache, range(len(cache.kept)), [chosen[k] for k in cache.kept])
        return replace(job, resolution_px=resolution)

    @staticmethod
    def _assembled(needed: Pass, clean: _Clean, cache: ImageCache, rows: Sequence[int], kept: Sequence[int]) -> PassJob:
        """Return the job for the cache's `rows`, which are the set's items `kept`."""
        return PassJob(
            dataset=identity(clean.images, kept, clean.cache.hashes, clean.wanted), condition=needed.condition,
            preset=needed.preset, cache=str(cache.folder), rows=tuple(rows),
            ids=tuple(clean.images.items[k].id for k in kept), targets=tuple(clean.wanted[k] for k in kept),
            labels=tuple(clean.labels[k] for k in kept) if clean.labels is not None else None)


def _told(error: InvalidInput) -> str:
    return f"{error.message}; {error.hint}" if error.hint else error.message


def _as_it_is(preprocess: Preprocess) -> Preprocess:
    """Return the preprocessing for ready-made images: not cropped, and resized only to another size of input."""
    return replace(preprocess, resize="squash", resize_px=None, interpolation="bicubic", border_px=0)
