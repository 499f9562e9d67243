"""Finished runs on disk, ready to be judged: each with its FP32 sibling, and what was not finished told apart."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path

from edgebench import compare, confirming, consistency, decisions, evidence, gate, metric_names, policy
from edgebench.baselines import Baselines
from edgebench.compare import Flips
from edgebench.errors import EdgebenchError, InvalidInput, UsageError
from edgebench.floors import fitting
from edgebench.floors import load as read_floors
from edgebench.gate import Gate, Need, Placed, Rerun, Verdict
from edgebench.history import HISTORY
from edgebench.policy import Policy
from edgebench.record import Run, load, read_json
from edgebench.timing_types import NoiseFloor

UNFINISHED = ("measurement.json", "run.old.json", "predictions", "job.json", "worker.log")
"""What a variant's folder holds before its run file is written."""
SHARED = ("artifacts", "paired", "noise-floor")
"""Folders of an output folder that belong to no variant."""
FINISHED = "finished"
"""Id of the verdict on what should have been measured and was not."""
COMPARABLE = "comparable"
"""Id of the verdict on a run that cannot be judged: it, or what it is compared with, is damaged or of another kind."""
_WHAT_TO_NAME = "name a run.json, the folder that holds it, or the --out folder of 'edgebench profile'"


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A run to judge."""

    run: Run
    folder: Path
    reference: Placed | None
    """Its FP32 sibling, where it names one and that lies beside it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unfinished:
    """A variant without a run file that can be read."""

    variant: str
    reason: str
    hint: str
    since: str
    """When its folder was last written, UTC, ISO 8601."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What lies at a path."""

    subjects: tuple[Subject, ...]
    unfinished: tuple[Unfinished, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """All verdicts on what lies at a path."""

    policy: Policy
    gates: tuple[Gate, ...]
    found: Found

    @property
    def notes(self) -> tuple[str, ...]:
        """What else should be known of each variant, such as that it has no baseline yet."""
        return tuple(note for one in self.gates for note in one.notes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """How many images and timings a policy needs for what lies at a path."""

    policy: Policy
    needs: Mapping[str, tuple[Need, ...]]
    """By variant."""
    notes: tuple[str, ...]
    """What else should be known, such as which variants were not finished."""


def find(path: Path) -> Found:
    """Return the runs at `path`: a run file, the folder that holds one, or an output folder of such folders.

    In an output folder the references of other runs are not judged themselves; what nothing names as its reference is.

    What is unfinished, damaged or of another schema is told apart.

    Raises:
        InvalidInput: Nothing there.
    """
    if not path.exists():
        raise InvalidInput(f"no such file or folder: {path}", _WHAT_TO_NAME)
    if path.is_file() or (path / "run.json").is_file():
        return _read([path])
    if _is_unfinished(path):
        one = _unfinished(path)
        return Found(subjects=(), unfinished=(replace(one, reason=f"{path}: {one.reason}"),))
    folders = sorted(file.parent for file in path.glob("*/run.json"))
    started = [_unfinished(folder) for folder in sorted(path.iterdir())
               if folder.is_dir() and folder.name not in SHARED and _is_unfinished(folder)]
    # What could not be measured says why; its folder only that it was begun.
    failed = {one.variant: one for one in _failures(path) if one.variant not in {folder.name for folder in folders}}
    unfinished = tuple({**{one.variant: one for one in started}, **failed}.values())
    if not folders and not unfinished:
        raise InvalidInput(f"no run.json below {path}", _WHAT_TO_NAME)
    whole = _read(folders)
    named = {(one.run.reference.variant, one.run.reference.artifact_digest)
             for one in whole.subjects if one.run.reference is not None}
    return Found(unfinished=(*unfinished, *whole.unfinished), subjects=tuple(
        one for one in whole.subjects
        if one.run.reference is not None or (one.run.variant, one.run.artifact.digest) not in named))


def _read(places: Sequence[Path]) -> Found:
    subjects, unfinished = [], []
    for place in places:
        folder = place if place.is_dir() else place.parent
        try:
            run = load(place)
            subjects.append(Subject(run=run, folder=folder, reference=_reference(run, folder)))
        except InvalidInput as error:
            unfinished.append(Unfinished(variant=folder.resolve().name, reason=error.message, hint=error.hint,
                                         since=_written(folder)))
    return Found(subjects=tuple(subjects), unfinished=tuple(unfinished))


def placed(path: Path) -> tuple[Run, Path]:
    """Return the one run at `path` and its folder.

    Raises:
        InvalidInput: Nothing there, or it is unfinished, damaged, of another schema, or does not agree with its timings
            and predictions.
        UsageError: Several runs lie there.
    """
    found = find(path)
    _refuse_unreadable(found)
    if len(found.subjects) != 1 or found.unfinished:
        names = [one.run.variant for one in found.subjects]
        raise UsageError(f"{path} holds {len(names)} runs to choose from, expected one",
                         f"name one of its folders: {', '.join(names)}")
    consistency.refuse_inconsistent(found.subjects[0].run, found.subjects[0].folder)
    return found.subjects[0].run, found.subjects[0].folder


def read_policy(name: str, runs: Sequence[Run]) -> Policy:
    """Return the policy of that id or file; its rules may name whatever the runs hold.

    Raises:
        UsageError: No such policy, or a name in it that does not exist.
        InvalidInput: The file is not a valid policy.
    """
    return policy.find(name, evidence.known(runs))


def judge(path: Path, policy_name: str, *, baseline: str | None = None, history: str = HISTORY,
          allow: Collection[str] = (), floors: Sequence[Path] = ()) -> Judgement:
    """Judge every run at a path by a policy.

    Args:
        path: See `find`.
        policy_name: Id of a shipped policy, or a TOML file.
        baseline: A run, an output folder, ``latest:BRANCH`` or ``promoted[:NAME]``; None: there is none.
        history: Where the latter two look: a folder, or any fsspec path.
        allow: Fields in which reference and baseline may differ, of `edgebench.compare.FIELDS`.
        floors: Files of noise floors of this device.

    A run that cannot be judged, for it or what rules compare it with is damaged or not comparable, has a verdict that
    says so: the others are judged nonetheless.

    Raises:
        InvalidInput: Nothing to judge, or a policy or noise floor that is not valid.
        UsageError: A name that does not exist.
        MissingDependency: `baseline` needs a package that is not installed.
    """
    found = find(path)
    chosen = read_policy(policy_name, [one.run for one in found.subjects])
    names = chosen.id, chosen.title, chosen.path
    pairs = any(rule.against == "baseline" and rule.of != metric_names.PERFORMANCE for rule in chosen.rules)
    known = [one for file in floors for one in read_floors(file)]
    gates, verified = [], set[Path]()
    with Baselines(baseline, history, predictions=pairs) as baselines:
        for one in found.subjects:
            try:
                gates.append(_judged(chosen, one, baselines, allow, known, verified))
            except InvalidInput as error:
                gates.append(_not_judged(
                    names, COMPARABLE, "the run and what it is compared with are whole and comparable",
                    one.run.variant, error.message, error.hint, one.run.created_at, one.run.device.id))
    gates += [_not_judged(names, FINISHED, "every variant was measured to its end", one.variant, one.reason, one.hint,
                          one.since) for one in found.unfinished]
    return Judgement(policy=chosen, gates=tuple(gates), found=found)


def nothing_judged(path: Path, policy_name: str, error: EdgebenchError) -> Gate:
    """Return the one verdict where `judge` raised: outputs of an earlier run must not stand as if they were of this."""
    try:
        chosen = policy.find(policy_name)
        names = chosen.id, chosen.title, chosen.path
    except EdgebenchError:
        names = _id_in(Path(policy_name)), policy_name, policy_name
    return _not_judged(names, COMPARABLE, "all that the gate needs can be read", path.resolve().name, error.message,
                       error.hint, datetime.now(timezone.utc).isoformat(timespec="seconds"))


def _id_in(file: Path) -> str:
    """Return the id in a policy file that is not valid: an earlier comment is found by it."""
    try:
        head, _, _ = file.read_text(encoding="utf-8", errors="replace").partition("[[")
        found = re.search(r"""^id\s*=\s*["']([^"']+)["']""", head, re.MULTILINE)
    except OSError:
        found = None
    return found[1] if found else file.stem


def _judged(chosen: Policy, one: Subject, baselines: Baselines, allow: Collection[str],
            floors: Sequence[NoiseFloor], verified: set[Path]) -> Gate:
    """Return the verdicts on a run; `verified` collects the folders of what runs were compared with."""
    other, note = baselines.of(one.run, one.folder)
    absent = consistency.refuse_inconsistent(one.run, one.folder, one.reference)
    for compared in (one.reference, other):
        if compared is not None and compared[1] is not None and compared[1].resolve() not in verified:
            consistency.refuse_inconsistent(compared[0], compared[1])
            verified.add(compared[1].resolve())
    usable, unused = fitting(floors, one.run)
    notes = [f"{one.run.variant}: {words}" for words in unused]

    def judge_with(reruns: Mapping[str, Rerun] | None) -> Gate:
        return gate.judge(chosen, (one.run, one.folder), reference=one.reference, baseline=other, allow=allow,
                          floors=usable, reruns=reruns)

    found = confirming.confirmed(judge_with, confirming.reruns(chosen, one.run, one.folder))
    found = decisions.decided(found, chosen, one.run, one.folder, other[0] if other else None)
    found = confirming.without_invalid(found, one.run)
    return replace(found, notes=(*found.notes, *absent, *notes, *([note] if note else [])))


def plan(path: Path, policy_name: str, *, baseline: str | None = None, history: str = HISTORY,
         allow: Collection[str] = ()) -> Planned:
    """Return for each variant at a path how many images and timings the rules of a policy need; see `judge`.

    Raises:
        InvalidInput: Nothing to plan with, or what rules compare with is not comparable.
        UsageError: A name that does not exist.
        MissingDependency: `baseline` needs a package that is not installed.
    """
    found = find(path)
    if not found.subjects:
        _refuse_unreadable(found)
    chosen = read_policy(policy_name, [one.run for one in found.subjects])
    needs, notes = {}, [f"{one.variant}: {one.reason}" for one in found.unfinished]
    with Baselines(baseline, history) as baselines:
        for one in found.subjects:
            other, note = baselines.of(one.run, one.folder)
            notes += [note] if note else []
            needs[one.run.variant] = gate.plan(chosen, (one.run, one.folder), reference=one.reference, baseline=other,
                                               allow=allow)
    return Planned(policy=chosen, needs=needs, notes=tuple(notes))


def flips(one: Subject) -> tuple[tuple[Flips, ...], str]:
    """Return the flips of a run against its FP32 sibling, and why there are none; one of them is empty."""
    if one.reference is None or one.reference[1] is None:
        return (), "the FP32 reference is not at hand" if one.run.reference else "the run has no FP32 reference"
    reference = one.reference[0], one.reference[1]
    try:
        before, after = compare.common_predictions(reference, (one.run, one.folder), {"accuracy"})
    except InvalidInput as error:
        return (), error.message
    found = tuple(compare.flips(key, before[key], after[key]) for key in after)
    return found, "" if found else "reference and run saw no labelled images in common"


def _refuse_unreadable(found: Found) -> None:
    for one in found.unfinished:
        raise InvalidInput(one.reason, one.hint)


def _reference(run: Run, folder: Path) -> Placed | None:
    if run.reference is None:
        return None
    beside = folder.resolve().parent / run.reference.variant
    if not (beside / "run.json").is_file():
        return None
    other = load(beside)
    return (other, beside) if other.artifact.digest == run.reference.artifact_digest else None


def _is_unfinished(folder: Path) -> bool:
    return not (folder / "run.json").exists() and any((folder / name).exists() for name in UNFINISHED)


def _unfinished(folder: Path) -> Unfinished:
    return Unfinished(variant=folder.name, reason="its measurement was not finished: there is no run.json",
                      hint=f"go on with it: edgebench profile … --out {folder.parent} --resume", since=_written(folder))


def _written(path: Path) -> str:
    return datetime.fromtimestamp(path.stat().st_mtime, timezone.utc).isoformat(timespec="seconds")


def _failures(out: Path) -> list[Unfinished]:
    """Return what `profile` could not measure at all, as it wrote down."""
    file = out / "summary.json"
    data = read_json(file) if file.is_file() else {}
    if not isinstance(data, Mapping) or not str(data.get("schema", "")).startswith("edgebench.summary/"):
        return []
    return [Unfinished(variant=str(one.get("variant")), reason=f"it could not be measured: {one.get('message')}",
                       hint=str(one.get("hint") or ""), since=_written(file)) for one in data.get("failures", ())]


def _not_judged(names: tuple[str, str, str], rule: str, demand: str, variant: str, reason: str, hint: str,
                created_at: str, device: str = "unknown") -> Gate:
    id_, title, file = names
    verdict = Verdict(rule=rule, status="error", severity="error", message=reason, hint=hint, of="run", demand=demand,
                      metric="run")
    return Gate(policy=id_, title=title, path=file, variant=variant, device=device, created_at=created_at,
                reference=None, baseline=None, allowed=(), verdicts=(verdict,))
