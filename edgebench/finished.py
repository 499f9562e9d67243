"""Finished runs on disk, ready to be judged: each with its FP32 sibling, and what was not finished told apart."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from itertools import product
from pathlib import Path

from edgebench import compare, confirming, decisions, evidence, gate, metric_names, policy
from edgebench.baselines import Baselines
from edgebench.compare import Flips
from edgebench.errors import InvalidInput, UsageError
from edgebench.gate import Gate, Need, Placed, Rerun, Verdict
from edgebench.history import HISTORY
from edgebench.policy import Policy
from edgebench.record import Run, decode, load, read_json
from edgebench.timing_types import NoiseFloor

UNFINISHED = ("measurement.json", "run.old.json", "predictions", "job.json", "worker.log")
"""What a variant's folder holds before its run file is written."""
SHARED = ("artifacts", "paired")
"""Folders of an output folder that belong to no variant."""
FINISHED = "finished"
"""Id of the verdict on what should have been measured and was not."""
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
    """A variant without a run file."""

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
    baselines: Mapping[str, Placed]
    """By variant."""
    notes: tuple[str, ...]
    """What else should be known, such as that there is no baseline yet."""


def find(path: Path) -> Found:
    """Return the runs at `path`: a run file, the folder that holds one, or an output folder of such folders.

    In an output folder the references of other runs are not judged themselves; what nothing names as its reference is.

    Raises:
        InvalidInput: Nothing there, an unfinished run, or a run file that is damaged or of another schema.
    """
    if not path.exists():
        raise InvalidInput(f"no such file or folder: {path}", _WHAT_TO_NAME)
    if path.is_file() or (path / "run.json").is_file():
        folder = path if path.is_dir() else path.parent
        return Found(subjects=(_subject(load(path), folder),), unfinished=())
    if _is_unfinished(path):
        one = _unfinished(path)
        raise InvalidInput(f"{path}: {one.reason}", one.hint)
    folders = sorted(file.parent for file in path.glob("*/run.json"))
    started = [_unfinished(folder) for folder in sorted(path.iterdir())
               if folder.is_dir() and folder.name not in SHARED and _is_unfinished(folder)]
    # What could not be measured says why; its folder only that it was begun.
    failed = {one.variant: one for one in _failures(path) if one.variant not in {folder.name for folder in folders}}
    unfinished = tuple({**{one.variant: one for one in started}, **failed}.values())
    if not folders and not unfinished:
        raise InvalidInput(f"no run.json below {path}", _WHAT_TO_NAME)
    runs = [(load(folder), folder) for folder in folders]
    named = {(run.reference.variant, run.reference.artifact_digest) for run, _ in runs if run.reference is not None}
    return Found(unfinished=unfinished, subjects=tuple(
        _subject(run, folder) for run, folder in runs
        if run.reference is not None or (run.variant, run.artifact.digest) not in named))


def placed(path: Path) -> tuple[Run, Path]:
    """Return the one run at `path` and its folder.

    Raises:
        InvalidInput: As `find`.
        UsageError: Several runs lie there.
    """
    found = find(path)
    if len(found.subjects) != 1 or found.unfinished:
        names = [one.run.variant for one in found.subjects]
        raise UsageError(f"{path} holds {len(names)} runs to choose from, expected one",
                         f"name one of its folders: {', '.join(names)}")
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

    Raises:
        InvalidInput: Nothing to judge, or what rules compare with is not comparable.
        UsageError: A name that does not exist.
        MissingDependency: `baseline` needs a package that is not installed.
    """
    found = find(path)
    chosen = read_policy(policy_name, [one.run for one in found.subjects])
    pairs = any(rule.against == "baseline" and rule.of != metric_names.PERFORMANCE for rule in chosen.rules)
    known = [_floor(file) for file in floors]
    gates, others, notes = [], {}, []
    for floor, one in product(known, found.subjects):
        notes += [f"{one.run.variant}: the noise floor of {floor.metric} is not used: {words}"
                  for words in _differing(floor, one.run)]
    with Baselines(baseline, history, predictions=pairs) as baselines:
        for one in found.subjects:
            other, note = baselines.of(one.run, one.folder)
            if other is not None:
                others[one.run.variant] = other
            notes += [note] if note else []
            usable = {floor.metric: floor.floor for floor in known if not _differing(floor, one.run)}
            judged = confirming.confirmed(
                partial(_judge, chosen, one, other, allow, usable), confirming.reruns(chosen, one.run, one.folder))
            gates.append(confirming.without_invalid(decisions.decided(
                judged, chosen, one.run, one.folder, other[0] if other else None), one.run))
    gates += [_not_judged(chosen, one) for one in found.unfinished]
    return Judgement(policy=chosen, gates=tuple(gates), found=found, baselines=others,
                     notes=tuple(dict.fromkeys(notes)))


def _judge(chosen: Policy, one: Subject, baseline: Placed | None, allow: Collection[str], floors: Mapping[str, float],
           reruns: Mapping[str, Rerun] | None) -> Gate:
    return gate.judge(chosen, (one.run, one.folder), reference=one.reference, baseline=baseline, allow=allow,
                      floors=floors, reruns=reruns)


def plan(path: Path, policy_name: str, *, baseline: str | None = None, history: str = HISTORY,
         ) -> tuple[Policy, dict[str, tuple[Need, ...]]]:
    """Return a policy, and for each variant at a path how many images and timings its rules need; see `judge`."""
    found = find(path)
    chosen = read_policy(policy_name, [one.run for one in found.subjects])
    with Baselines(baseline, history) as baselines:
        return chosen, {one.run.variant: gate.plan(
            chosen, (one.run, one.folder), reference=one.reference, baseline=baselines.of(one.run, one.folder)[0])
            for one in found.subjects}


def flips(one: Subject) -> tuple[tuple[Flips, ...], str]:
    """Return the flips of a run against its FP32 sibling, and why there are none; one of them is empty."""
    if one.reference is None or one.reference[1] is None:
        return (), "the FP32 reference is not at hand" if one.run.reference else "the run has no FP32 reference"
    reference = one.reference[0], one.reference[1]
    before, after = compare.common_predictions(reference, (one.run, one.folder), {"accuracy"})
    found = tuple(compare.flips(key, before[key], after[key]) for key in after)
    return found, "" if found else "reference and run saw no labelled images in common"


def _subject(run: Run, folder: Path) -> Subject:
    return Subject(run=run, folder=folder, reference=_reference(run, folder))


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
    since = datetime.fromtimestamp(folder.stat().st_mtime, timezone.utc).isoformat(timespec="seconds")
    return Unfinished(variant=folder.name, reason="its measurement was not finished: there is no run.json", since=since,
                      hint=f"go on with it: edgebench profile … --out {folder.parent} --resume")


def _failures(out: Path) -> list[Unfinished]:
    """Return what `profile` could not measure at all, as it wrote down."""
    file = out / "summary.json"
    data = read_json(file) if file.is_file() else {}
    if not isinstance(data, Mapping) or not str(data.get("schema", "")).startswith("edgebench.summary/"):
        return []
    since = datetime.fromtimestamp(file.stat().st_mtime, timezone.utc).isoformat(timespec="seconds")
    return [Unfinished(variant=str(one.get("variant")), reason=f"it could not be measured: {one.get('message')}",
                       hint=str(one.get("hint") or ""), since=since) for one in data.get("failures", ())]


def _not_judged(chosen: Policy, one: Unfinished) -> Gate:
    verdict = Verdict(rule=FINISHED, status="error", severity="error", message=one.reason, hint=one.hint, of="run",
                      demand="every variant was measured to its end", metric="run")
    return Gate(policy=chosen.id, title=chosen.title, path=chosen.path, variant=one.variant, device="unknown",
                created_at=one.since, reference=None, baseline=None, allowed=(), verdicts=(verdict,))


def _floor(file: Path) -> NoiseFloor:
    return decode(NoiseFloor, read_json(file), str(file))


def _differing(floor: NoiseFloor, run: Run) -> tuple[str, ...]:
    """Return in words where a floor was measured on another device, or under other conditions that the run tells."""
    seen = {"device": run.device.id, "cpu": run.environment.cpu, "governor": run.environment.governor,
            "threads": str(run.settings.threads), "budget": run.settings.budget,
            "power mode": run.environment.power_mode, "GPU governor": run.environment.gpu_governor,
            "clocks": run.environment.clocks, **run.environment.packages}
    return tuple(f"{name} is {seen[name]}, it was measured with {value}"
                 for name, value in {"device": floor.device, **floor.conditions}.items()
                 if seen.get(name) not in (None, value))
