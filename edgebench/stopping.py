"""Evaluation that stops as soon as every rule of a policy is decided: of what, on which images, in which order, when.

Images come in a seeded random order. After every few batches each rule is looked at, against the answers of the FP32
reference to the same images; `edgebench.until` decides. What was decided lies in ``decisions.json`` from then on.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgebench import decisions, evidence, metric_names, metrics, policy, properties, until
from edgebench.compare import place_of
from edgebench.decisions import DECISIONS, SEED, DecisionFile, DecisionPath
from edgebench.errors import CannotMeasure, UsageError, writing
from edgebench.evaluate import ROOM_HINT, has_predictions, save_predictions
from edgebench.evidence import Evidence
from edgebench.imagecache import load_cache
from edgebench.outputs import NO_DISTRIBUTION
from edgebench.policy import Policy, Rule
from edgebench.properties import CLEAN, Pass, Predictions
from edgebench.record import Artifact, Caveat, DatasetIdentity, Evaluation, OutputKind, PassRecord, Run, Skip, load
from edgebench.sequential import checkpoints

if TYPE_CHECKING:
    from typing_extensions import Self

    from edgebench.worker import PassJob

EVERY = 50
"""Images between two looks, at least; later a fiftieth of those that are in."""
BLOCK = 1024
"""Images that are read from disk at once."""
Tell = Callable[[str, int], None]
Part = tuple[np.ndarray, np.ndarray | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Until:
    """When the evaluation of a variant may stop."""

    policy: Policy
    properties: tuple[str, ...]
    """What is evaluated."""
    passes: tuple[Pass, ...]
    """On which passes rules are followed."""
    reference: str | None = None
    """Folder of the reference's run; None: no rule needs one."""
    reference_artifact: str = ""
    """Its artifact's digest."""
    baseline: str | None = None
    """Folder of the baseline's run; None: rules against one are not followed."""
    baseline_artifact: str = ""
    baseline_identity: str = ""
    """As in `edgebench.decisions.identity`."""
    timed: bool = False
    """Whether rules about timings are followed too."""
    in_turns: bool = False
    """Whether the variant will be timed in turns with its reference."""

    @property
    def name(self) -> str:
        """The policy, with a digest of its rules."""
        return decisions.named(self.policy)


def read(name: str, *, timed: bool, baseline: bool = False) -> Policy:
    """Return the policy of that id or file.

    Args:
        name: Id of a shipped policy, or a TOML file.
        timed: Whether variants will be timed, so that rules about latency can be followed.
        baseline: Whether there is a baseline, so that rules against one can be followed.

    Raises:
        UsageError: No such policy, a name in it that does not exist, or none of its rules can be followed.
        InvalidInput: The file is not a valid policy.
    """
    found = policy.find(name)
    if not any(rule.of in until.ALONE and (baseline or rule.against != "baseline") for rule in found.rules) \
            and not (timed and has_timings(found)):
        raise UsageError(
            f"--until {name}: none of its rules can be decided while images {'or timings ' if timed else ''}come in",
            f"it takes a rule on {' or '.join(until.ALONE)}, as a value or against the reference, or on latency"
            + ("" if timed else ", which is not measured here"))
    return found


def has_timings(chosen: Policy) -> bool:
    """Return whether a policy has rules that can be followed while timings come in."""
    return bool(until.budgets(chosen, in_turns=True) or until.ratios(chosen))


def scope(chosen: Policy, names: Sequence[str], *, by_name: bool, timed: bool,
          ) -> tuple[tuple[str, ...], tuple[Skip, ...]]:
    """Return the properties to evaluate, and those left out with the reason.

    Args:
        chosen: The policy.
        names: Properties that could be evaluated.
        by_name: Whether they were asked for by their names; else what the policy has no rules about is left out.
        timed: Whether variants will be timed.

    Raises:
        UsageError: A property asked for by its name needs all images, or none that the rules are about is among them.
    """
    whole = [name for name in names if name not in until.ALONE and _reads_labelled(name)]
    if by_name and whole:
        raise UsageError(f"--until cannot stop early where {whole[0]} is evaluated: it compares passes over all images",
                         "leave it out of --properties, or evaluate without --until")
    about = {rule.of for rule in chosen.rules}
    kept = tuple(name for name in names if by_name or (name in about and name not in whole))
    if not any(rule.of in kept and rule.of in until.ALONE for rule in chosen.rules) \
            and not (timed and has_timings(chosen)):
        raise UsageError(f"--until {chosen.id}: nothing that its rules are about is evaluated",
                         f"its rules are about {', '.join(sorted(str(one) for one in about))}: see --properties")
    return kept, tuple(Skip(what=name, subject="property", code="early-stop" if name in whole else "not-asked",
                            reason="it compares passes over all images, and --until may stop before"
                            if name in whole else f"{chosen.id}, which ends the evaluation, has no rule about it")
                       for name in names if name not in kept)


def _reads_labelled(name: str) -> bool:
    return any(key.condition == CLEAN for key in properties.get(name).passes(["images"]))


def followed(chosen: Policy, names: Sequence[str], jobs: Sequence[PassJob]) -> tuple[Pass, ...]:
    """Return the passes on which rules of a policy are followed."""
    return tuple(job.key for job in jobs if job.condition == CLEAN and properties.is_plain(job.dataset.name)
                 and until.concerned(chosen, job.key, names))


def refuse_unfit(chosen: Policy, names: Sequence[str], variants: Sequence[tuple[Artifact, Sequence[PassJob]]],
                 finished: Sequence[Run], *, timed: bool) -> None:
    """Raise what stands against stopping early before anything is measured.

    Args:
        chosen: The policy.
        names: Properties that are evaluated.
        variants: Artifacts and their passes.
        finished: Runs that the output folder holds already.
        timed: Whether variants will be timed.

    Raises:
        UsageError: Nothing is there that could stop early, or a rule compares with a reference that is not among them.
    """
    passes = [(artifact, key) for artifact, jobs in variants for key in followed(chosen, names, jobs)]
    timed = timed and has_timings(chosen)
    if not passes and not timed:
        raise UsageError(f"--until {chosen.id}: there are no labelled images that its rules are about",
                         "pass --data ROOT, and compare its name with the data sets that the rules name")
    if all(artifact.recipe.precision == "fp32" for artifact, _ in variants):
        raise UsageError("--until has nothing to stop: an FP32 variant is the reference of the others and is measured "
                         "whole", "name a variant of another precision too, or leave --until away")
    references = [one.model for one in (*(artifact for artifact, _ in variants), *(run.artifact for run in finished))
                  if one.recipe.precision == "fp32"]
    for artifact, key in passes:
        if artifact.scored is not None and artifact.scored.kind == "sigmoid_scores":
            unfit = next((rule for rule in until.concerned(chosen, key, names) if rule.of == "calibration"), None)
            if unfit is not None:
                raise UsageError(f"--until {chosen.id}: rule {unfit.id!r} needs confidences, and {NO_DISTRIBUTION}",
                                 "remove that rule, or export a softmax head")
        if artifact.model not in references:
            _refuse_without_reference(chosen, names, artifact, key)


def _refuse_without_reference(chosen: Policy, names: Sequence[str], artifact: Artifact, key: Pass) -> None:
    for rule in until.concerned(chosen, key, names):
        if until.needs_reference(rule):
            raise UsageError(
                f"--until {chosen.id}: rule {rule.id!r} compares with the FP32 reference, and none of "
                f"{artifact.model.id} is among the variants", "name its FP32 recipe or artifact too")


def plan(chosen: Policy, names: Sequence[str], artifact: Artifact, jobs: Sequence[PassJob],
         reference: tuple[Run, Path] | None, *, timed: bool, in_turns: bool,
         baseline: tuple[Run, Path] | None = None) -> Until | None:
    """Return when the evaluation of a variant may stop; None for a reference, which is measured whole.

    Args:
        chosen: The policy.
        names: Properties that are evaluated.
        artifact: Of the variant.
        jobs: Its passes.
        reference: The run of its FP32 sibling and the folder of that.
        timed: Whether the variant is timed.
        in_turns: Whether it will be timed in turns with that sibling.
        baseline: The run that rules against a baseline compare with, and its folder.

    Raises:
        CannotMeasure: Rules need a reference and there is none, or it or the baseline saw other images.
    """
    passes = followed(chosen, names, jobs)
    timed = timed and bool(until.budgets(chosen, in_turns=in_turns) or (in_turns and until.ratios(chosen)))
    if artifact.recipe.precision == "fp32" or not (passes or timed):
        return None
    wanted = Until(policy=chosen, properties=tuple(names), passes=passes, timed=timed, in_turns=in_turns)
    if baseline is not None and any(rule.against == "baseline" for key in passes
                                    for rule in until.concerned(chosen, key, names, baseline=True)):
        _refuse_other_images(chosen, baseline[0], "the baseline", jobs, passes)
        wanted = replace(wanted, baseline=str(baseline[1].resolve()), baseline_artifact=baseline[0].artifact.digest,
                         baseline_identity=decisions.identity(baseline[0]))
    needing = next((rule for key in passes for rule in until.concerned(chosen, key, names)
                    if until.needs_reference(rule)), None)
    if needing is None:
        return wanted
    if reference is None:
        raise CannotMeasure(f"--until {chosen.id}: rule {needing.id!r} compares with the FP32 reference, and none of "
                            f"{artifact.model.id} was evaluated to the end",
                            "see why it was not, then go on with --resume")
    _refuse_other_images(chosen, reference[0], "the reference", jobs, passes)
    return replace(wanted, reference=str(reference[1].resolve()), reference_artifact=reference[0].artifact.digest)


def _refuse_other_images(chosen: Policy, other: Run, what: str, jobs: Sequence[PassJob], passes: Sequence[Pass],
                         ) -> None:
    seen = {(one.dataset.digest, Pass(one.dataset.name, one.condition, one.preset)) for one in other.passes}
    for job in jobs:
        if job.key in passes and (job.dataset.digest, job.key) not in seen:
            raise CannotMeasure(f"--until {chosen.id} compares with {what} {other.variant}, which saw other images of "
                                f"{job.dataset.name}, or not all of them, or none",
                                "measure both on the same --data, with --force")


def ordered(wanted: Until | None, jobs: Sequence[PassJob]) -> tuple[PassJob, ...]:
    """Return the passes, those that may stop early with their images in a seeded random order."""
    def shuffled(job: PassJob) -> PassJob:
        order = until.image_order(len(job.rows), SEED)
        return replace(
            job, rows=tuple(job.rows[k] for k in order), ids=tuple(job.ids[k] for k in order),
            targets=tuple(job.targets[k] for k in order),
            labels=None if job.labels is None else tuple(job.labels[k] for k in order))

    return tuple(shuffled(job) if wanted is not None and job.key in wanted.passes else job for job in jobs)


def may_stop(wanted: Until | None, job: PassJob) -> bool:
    """Return whether a pass ends when its rules are decided."""
    return wanted is not None and job.key in wanted.passes


def is_done(wanted: Until | None, job: PassJob, out: Path, artifact_digest: str) -> bool:
    """Return whether a pass was evaluated as wanted, by this policy or on all images where none ends it."""
    if wanted is None or job.key not in wanted.passes:
        return has_predictions(out / job.key.file, job.dataset, artifact_digest, features=job.features,
                               compact=job.compact)
    one = _recorded(_known(wanted, out, artifact_digest), job)
    return one is not None and has_predictions(out / job.key.file, one.dataset, artifact_digest, features=job.features,
                                               compact=job.compact)


def records(wanted: Until | None, jobs: Sequence[PassJob], out: Path, artifact_digest: str) -> tuple[PassRecord, ...]:
    """Return the passes as they were evaluated.

    Raises:
        CannotMeasure: The decisions of one are not at hand.
    """
    file = _known(wanted, out, artifact_digest) if wanted is not None else None
    found = []
    for job in jobs:
        one = _recorded(file, job) if may_stop(wanted, job) else \
            PassRecord(dataset=job.dataset, condition=job.condition, preset=job.preset)
        if one is None:
            raise CannotMeasure(f"{out / DECISIONS} lacks the decisions on {job.dataset.name}",
                                "measure again with --force")
        found.append(one)
    return tuple(found)


def discard(out: Path) -> None:
    """Forget how rules were decided earlier: what is evaluated now is evaluated on all images."""
    (out / DECISIONS).unlink(missing_ok=True)


def caveats(passes: Sequence[PassRecord], wanted: Until | None) -> tuple[Caveat, ...]:
    """Return which passes stopped early."""
    return tuple(Caveat(
        code="stopped-early",
        message=f"{one.dataset.name}: evaluation stopped after {one.dataset.images:,} of {one.part_of.images:,} "
                f"images, when every rule of {wanted.policy.id} was decided: all scores are of these alone",
        hint="gate it with that policy; for scores of all images evaluate without --until")
        for one in passes if one.part_of is not None and wanted is not None)


def evaluate(wanted: Until, job: PassJob, answers: Iterator[Part], out: Path, artifact_digest: str,
             tell: Tell, kind: OutputKind = "logits") -> None:
    """Evaluate a pass until its rules are decided or its images are used up; write decisions, then predictions.

    Args:
        wanted: When to stop.
        job: The pass, its images in random order.
        answers: Logits (n, K) and features (n, D) or None, batch by batch in that order.
        out: Folder of the variant.
        artifact_digest: What answers.
        tell: Told what is being done, and how many images are in.
        kind: What the logits are.

    Raises:
        InvalidInput: The reference's predictions are damaged, or there is no room for these.
    """
    rules = until.concerned(wanted.policy, job.key, wanted.properties, baseline=wanted.baseline is not None)
    reference, baseline = (_Reference.of(job, *one) for one in (
        (wanted.reference, wanted.reference_artifact), (wanted.baseline, wanted.baseline_artifact)))
    following = until.Following(wanted.policy, rules, places=len(wanted.passes))
    total, targets = len(job.rows), np.asarray(job.targets, np.int64)
    waiting = [*checkpoints(total, until.CHECKPOINTS), total]
    kept: list[metrics.Outcomes] = []
    units: dict[str, str] = {}
    n, next_look, told = 0, EVERY, (0, 0)
    with writing(out, ROOM_HINT), _Spool(out) as spool:
        for logits, features in answers:
            spool.append(logits, features)
            kept.append(metrics.outcomes(logits, targets[n:n + len(logits)], kind))
            n += len(logits)
            if n >= min(next_look, waiting[0]):
                found: dict[str, Evidence] = {}
                if n >= waiting[0]:
                    waiting = [one for one in waiting if one > n] or [total]
                    found = _scored(wanted, job, following.at_checkpoints, spool, n, reference, baseline, kind)
                    units.update((name, one.unit) for name, one in found.items())
                kept = [metrics.joined(kept)]
                following.look(reference.outcomes if reference else None, kept[0], n, found,
                               baseline.outcomes if baseline else None)
                next_look = min(n + max(EVERY, n // EVERY), total)
            left = len(following.open)
            if left != told[1] or n >= 2 * told[0]:
                # A log without a terminal gets a line for each other text.
                told = n, left
            tell(f"evaluating {job.dataset.name}: {left} of {len(rules)} rules open at {told[0]:,} images", n)
            if not left:
                break
        close = getattr(answers, "close", None)
        if close is not None:
            # What reads ahead is told at once that no more is wanted.
            close()
        _write_decisions(wanted, job, out, artifact_digest, n, following.paths(), units)
        # What was evaluated whole is stored in the order of the data set, like that of all others.
        order = np.argsort(until.image_order(total, SEED)) if n == total else np.arange(n)
        save_predictions(
            out / job.key.file, spool.parts(order), targets=[job.targets[k] for k in order],
            ids=[job.ids[k] for k in order], dataset=_first(job, n), artifact_digest=artifact_digest,
            compact=job.compact, labels=None if job.labels is None else [job.labels[k] for k in order],
            size_px=load_cache(Path(job.cache)).size_px, kind=kind)


class _Reference:
    """The answers of the reference, or of the baseline, to the images of a pass, in their order."""

    def __init__(self, found: Predictions, ids: Sequence[str]) -> None:
        rows = properties.rows_of(found.ids, np.asarray(ids, np.str_))
        # It was checked that both are of the same data set, by its digest.
        assert rows is not None
        self.found, self.outcomes = found, found.outcomes.take(rows)

    @staticmethod
    def of(job: PassJob, folder: str | None, artifact_digest: str) -> _Reference | None:
        """Return those of a run in that folder; None where no rule needs any."""
        if folder is None:
            return None
        digests = {Pass(one.dataset.name, one.condition, one.preset): one.sha256 for one in load(Path(folder)).passes}
        return _Reference(properties.load_predictions(
            Path(folder) / job.key.file, job.dataset, artifact_digest, digests.get(job.key)), job.ids)


class _Spool:
    """Answers on disk while nobody knows how many there will be: they may not fit into memory."""

    def __init__(self, folder: Path) -> None:
        self._stack, self._rows, self._widths = ExitStack(), 0, (0, 0)
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(dir=folder, prefix=".until-")))
        self._files = tuple(self._stack.enter_context((self._folder / name).open("wb")) for name in ("0", "1"))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def append(self, logits: np.ndarray, features: np.ndarray | None) -> None:
        """Add the answers to one batch."""
        self._rows += len(logits)
        self._widths = logits.shape[1], 0 if features is None else features.shape[1]
        for file, part in zip(self._files, (logits, features), strict=True):
            if part is not None:
                file.write(np.ascontiguousarray(part, np.float32).tobytes())

    def arrays(self) -> Part:
        """Return logits (N, K) and features (N, D) or None, mapped from disk."""
        mapped = []
        for number, (file, width) in enumerate(zip(self._files, self._widths, strict=True)):
            file.flush()
            mapped.append(np.memmap(self._folder / str(number), np.float32, "r", shape=(self._rows, width))
                          if width else None)
        assert mapped[0] is not None
        return mapped[0], mapped[1]

    def parts(self, order: np.ndarray) -> Iterator[Part]:
        """Yield the answers in an order, block by block."""
        logits, features = self.arrays()
        for start in range(0, len(order), BLOCK):
            rows = order[start:start + BLOCK]
            yield logits[rows], None if features is None else features[rows]


def _scored(wanted: Until, job: PassJob, rules: Sequence[Rule], spool: _Spool, n: int, reference: _Reference | None,
            baseline: _Reference | None, kind: OutputKind) -> dict[str, Evidence]:
    """Return what the first `n` images say about rules, by id; what they say nothing about is left out."""
    if not rules:
        return {}
    logits, features = spool.arrays()
    labels = None
    if job.labels is not None:
        labels = np.full((n, max(map(len, job.labels))), -1, np.int64)
        for row, accepted in enumerate(job.labels[:n]):
            labels[row, : len(accepted)] = accepted
    mine = Predictions(dataset=_first(job, n), logits=logits, targets=np.asarray(job.targets[:n], np.int64),
                       ids=np.asarray(job.ids[:n], np.str_), labels=labels, features=features, kind=kind)

    def against(other: _Reference | None, about: Sequence[Rule]) -> list[Evaluation]:
        others = {job.key: properties.narrowed(other.found, mine.ids, mine.dataset)} if other else None
        return [one for name in wanted.properties if name in {rule.of for rule in about}
                for one in properties.get(name).score({job.key: mine}, others)]

    found = {}
    since = [rule for rule in rules if rule.against == "baseline"]
    evaluations = against(reference, [rule for rule in rules if rule not in since]), against(baseline, since)
    for rule in rules:
        known = [one for one in evidence.among(rule, evaluations[rule in since]) if isinstance(one, Evidence)]
        # What is counted and not estimated is known when all are counted.
        if len(known) == 1 and (known[0].sampled != "none" or n == len(job.rows)):
            found[rule.id] = known[0]
    return found


def _first(job: PassJob, n: int) -> DatasetIdentity:
    """Return the identity of the first `n` images of a pass in random order."""
    if n == len(job.rows):
        return job.dataset
    digest = hashlib.sha256(f"{job.dataset.digest} seed {SEED} first {n}".encode()).hexdigest()
    return replace(job.dataset, images=n, classes=len(set(job.targets[:n])), digest=digest)


def _known(wanted: Until, out: Path, artifact_digest: str) -> DecisionFile | None:
    """Return what was decided in the same way, against the same baseline."""
    found = decisions.known(wanted.policy, out, artifact_digest)
    return found if found is not None and found.baseline == wanted.baseline_identity else None


def _recorded(file: DecisionFile | None, job: PassJob) -> PassRecord | None:
    return next((one for one in (file.passes if file else ())
                 if (one.part_of or one.dataset, one.condition, one.preset) == (
                     job.dataset, job.condition, job.preset)), None)


def _write_decisions(wanted: Until, job: PassJob, out: Path, artifact_digest: str, n: int,
                     paths: Sequence[until.RulePath], units: Mapping[str, str]) -> None:
    where, rules = place_of(job.key), {rule.id: rule for rule in wanted.policy.rules}
    record = PassRecord(dataset=_first(job, n), condition=job.condition, preset=job.preset,
                        part_of=None if n == len(job.rows) else job.dataset)

    def path(one: until.RulePath) -> DecisionPath:
        rule = rules[one.rule]
        return DecisionPath(
            rule=one.rule, where=where, limit=rule.bound, confidence=wanted.policy.confidence_of(rule),
            sampled="images", steps=one.steps, change=rule.against is not None, method=one.method,
            unit=units.get(one.rule) or metric_names.unit(rule.of or "", rule.metric))

    decisions.add(wanted.policy, out, artifact_digest, map(path, paths), lambda one: one.where == where, record,
                  wanted.baseline_identity)
