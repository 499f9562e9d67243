"""Noise floors: by how much runs of one artifact differ on one device, metric by metric, and which floors fit a run.

A floor comes from whole timing runs of the same artifact, each in a process of its own: what a gate compares.
"""

from __future__ import annotations

import datetime as dt
import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from edgebench import metric_names, stats
from edgebench.errors import CannotMeasure, InvalidInput
from edgebench.record import Run, Score, decode, load_artifact, read_sealed, write_sealed
from edgebench.timing_types import NoiseFloor, TimingPlan

SCHEMA = "edgebench.noise-floors/1"
# History: 1 (0.3.0) first published form; before, a file was one bare floor.
RUNS, LEAST_RUNS = 8, 3
CONFIDENCE = CONTENT = 0.95
_NO_RUNTIME = ("numpy", "pillow")
_UNKNOWN = "unknown"


def conditions(run: Run, metric: str) -> dict[str, str]:
    """Return what must be the same for a floor of a metric to hold, by name; what is not known is ``unknown``."""
    seen, recipe, plan = run.environment, run.artifact.recipe, run.settings.timing or TimingPlan()
    found: dict[str, object] = {
        "cpu": seen.cpu, "processor": recipe.processor, "threads": run.settings.threads, "budget": run.settings.budget,
        "governor": seen.governor, "GPU governor": seen.gpu_governor, "power mode": seen.power_mode,
        "clocks": seen.clocks, "runtime": recipe.backend,
        "preprocessing": "included" if plan.preprocessing else "excluded",
        **{name: version for name, version in seen.packages.items() if name not in _NO_RUNTIME}}
    scenario = metric_names.scenario(metric)
    if scenario == "offline":
        found["batch"] = run.settings.batch
    if scenario == "camera":
        found |= {"frame rate": f"{plan.fps:g}", "drop": plan.drop,
                  "deadline": "one frame" if plan.deadline_s is None else f"{plan.deadline_s:g} s"}
    if scenario == "server":
        found["latency bound"] = "by the median latency" if plan.latency_bound_s is None else \
            f"{plan.latency_bound_s:g} s"
    return {name: _UNKNOWN if value is None else str(value) for name, value in found.items()}


def from_runs(run: Run, scores: Sequence[Sequence[Score]], *, confidence: float = CONFIDENCE, content: float = CONTENT,
              now: Callable[[], dt.datetime] = lambda: dt.datetime.now(dt.timezone.utc)) -> tuple[NoiseFloor, ...]:
    """Return a floor of every timing metric that has a value in all of several runs of one artifact.

    The tolerance limit of the difference of two runs (normal, of logarithms where all values are above 0), and at least
    the largest difference that was seen: with the confidence, a share `content` of all further pairs of equal runs
    differs by no more.

    Args:
        run: One of the runs; its device and conditions are those of all.
        scores: Performance of each run, at least `LEAST_RUNS`.
        confidence: That a floor covers `content`.
        content: Share of pairs of equal runs.
        now: The time, for the record.

    Raises:
        CannotMeasure: Fewer runs.

    Source:
        Hahn & Meeker 1991, Statistical Intervals, section 4.6 (tolerance limits).
    """
    n = len(scores)
    if n < LEAST_RUNS:
        raise CannotMeasure(f"{n} runs of equals do not bound the noise", f"run at least {LEAST_RUNS}")
    factor = math.sqrt(2.0 * (n - 1) / stats.chi_square_quantile(1.0 - confidence, n - 1)) * \
        stats.normal_quantile((1.0 + content) / 2.0)

    def limit(values: np.ndarray) -> float:
        return max(factor * float(values.std(ddof=1)), float(np.ptp(values)))

    found = []
    for score in scores[0]:
        if not metric_names.is_timing(score.name):
            continue
        known = [one.value for each in scores for one in each if one.name == score.name and one.value is not None]
        if len(known) < n:
            continue
        values = np.asarray(known)
        found.append(NoiseFloor(
            device=run.device.id, metric=score.name, unit=score.unit, absolute=limit(values),
            floor=math.expm1(limit(np.log(values))) if values.min() > 0.0 else None, confidence=confidence,
            content=content, n=n, conditions=conditions(run, score.name), values=tuple(known),
            measured_at=now().isoformat(timespec="seconds")))
    return tuple(found)


def save(file: Path, found: Sequence[NoiseFloor]) -> None:
    """Write floors to a file.

    Raises:
        InvalidInput: It cannot be written.
    """
    write_sealed(file, {"schema": SCHEMA, "floors": found}, "choose another file with --noise-floor")


def load(file: Path) -> tuple[NoiseFloor, ...]:
    """Return the floors in a file, also of versions that wrote a single one.

    Raises:
        InvalidInput: No such file, or none of floors.
    """
    data = read_sealed(file)
    if not isinstance(data, Mapping):
        raise InvalidInput(f"{file}: expected noise floors, got {type(data).__name__}",
                           "name a file that 'edgebench profile --noise-floor FILE' wrote")
    if "schema" not in data and "metric" in data:
        return (decode(NoiseFloor, data, str(file)),)
    if data.get("schema") != SCHEMA or not isinstance(data.get("floors"), list):
        raise InvalidInput(f"{file}: expected schema {SCHEMA!r}, got {data.get('schema')!r}",
                           "name a file that 'edgebench profile --noise-floor FILE' wrote")
    return tuple(decode(NoiseFloor, one, f"{file}.floors[{number}]") for number, one in enumerate(data["floors"]))


def differing(floor: NoiseFloor, run: Run) -> tuple[str, ...]:
    """Return in words where a floor was measured on another device, or under other conditions than a run."""
    seen = {**conditions(run, floor.metric), "device": run.device.id}
    return tuple(f"{name} is {seen.get(name, _UNKNOWN)}, it was measured with {value}"
                 for name, value in {"device": floor.device, **floor.conditions}.items()
                 if seen.get(name, _UNKNOWN) != value)


def fitting(floors: Sequence[NoiseFloor], run: Run) -> tuple[dict[str, NoiseFloor], tuple[str, ...]]:
    """Return by metric the largest floors that fit a run, and in words why others are not used."""
    found: dict[str, NoiseFloor] = {}
    refused: dict[str, list[str]] = {}
    for floor in floors:
        different = differing(floor, run)
        if different:
            refused.setdefault("; ".join(different), []).append(floor.metric)
            continue
        other = found.get(floor.metric)
        found[floor.metric] = floor if other is None else max(other, floor, key=_size)
    return found, tuple(f"the noise floor of {', '.join(dict.fromkeys(metrics))} is not used: {words}"
                        for words, metrics in refused.items())


def _size(floor: NoiseFloor) -> tuple[float, float]:
    """Return how large a floor is; one without a relative part allows no relative change at all."""
    return math.inf if floor.floor is None else floor.floor, floor.absolute or 0.0


def command(run: Run, folder: Path | None) -> str:
    """Return the command that measures the noise floors of a run: the same artifact at the same settings."""
    plan = run.settings.timing or TimingPlan()
    words = ["edgebench", "profile", *_what(run, folder), "--device", run.device.id, "--properties", "none",
             "--budget", run.settings.budget, "--threads", str(run.settings.threads), "--batch",
             str(run.settings.batch), "--scenario", ",".join(plan.scenarios)]
    if "camera" in plan.scenarios:
        words += ["--fps", f"{plan.fps:g}", "--drop", plan.drop]
        words += [] if plan.deadline_s is None else ["--deadline", f"{plan.deadline_s * 1e3:g}"]
    if "server" in plan.scenarios and plan.latency_bound_s is not None:
        words += ["--latency-bound", f"{plan.latency_bound_s * 1e3:g}"]
    words += ["--with-preprocessing"] * plan.preprocessing
    words += ["--builds", str(run.settings.builds)] if run.settings.builds > 1 else []
    words += ["--allow-precision-fallback"] * (not run.precision.achieved)
    return shlex.join([*words, "--out", "noise-floor", "--force", "--noise-floor", "noise-floor.json"])


def _what(run: Run, folder: Path | None) -> list[str]:
    """Return the words that name what was run: its artifact where that lies beside the run, else model and recipe."""
    if folder is not None:
        for place in sorted((folder.resolve().parent / "artifacts").glob(f"*--{run.artifact.recipe.id}")):
            try:
                if load_artifact(place).digest == run.artifact.digest:
                    return [str(folder.parent / "artifacts" / place.name)]
            except InvalidInput:
                continue
    random = ["--weights", "random"] if run.artifact.model.weights == "random" else []
    return [run.artifact.model.id, "--recipe", run.artifact.recipe.id, *random]
