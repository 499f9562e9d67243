"""Baselines: which earlier run a run is held against, and the recorded act of making one the baseline of later ones."""

from __future__ import annotations

import getpass
import hashlib
import json
import os
import tempfile
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from edgebench.checks import check_inner_path, check_name, is_name
from edgebench.errors import InvalidInput, UsageError, suggest
from edgebench.history import HISTORY, Database, fetch, file_system, is_remote, joined, read_bytes, write_bytes
from edgebench.properties import Pass
from edgebench.record import Run, decode, load, sha256_file, to_builtins

if TYPE_CHECKING:
    from typing_extensions import Self

PROMOTIONS = "baselines.json"
PROMOTIONS_SCHEMA = "edgebench.baselines/1"
PROMOTED = "promoted"
"""Folder in the history that holds the copies of promoted runs."""
RELEASE = "release"
"""Name of a baseline unless another is given."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Promotion:
    """The act of making a run the baseline of later ones."""

    name: str
    """Of the baseline, such as ``release``."""
    variant: str
    device: str
    run: str
    """Path of the copied run file, from the folder of the history."""
    run_sha256: str
    artifact_digest: str
    commit: str | None
    branch: str | None
    promoted_at: str
    """UTC, ISO 8601."""
    by: str
    why: str

    def __post_init__(self) -> None:
        check_name(self.name, "name")
        check_name(self.variant, "variant")
        check_inner_path(self.run, "run")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Promotions:
    schema: str = PROMOTIONS_SCHEMA
    promotions: tuple[Promotion, ...] = ()


class Baselines:
    """Baselines of variants by one rule; a context, for remote ones are fetched into a folder of its own.

    Args:
        rule: A run, an output folder, ``latest:BRANCH`` or ``promoted[:NAME]``; None: there are none.
        location: Where the latter two look.
        predictions: Whether predictions are needed beside the run files.

    Raises:
        UsageError: An incomplete rule.
    """

    def __init__(self, rule: str | None, location: str = HISTORY, *, predictions: bool = True) -> None:
        if rule == "latest:":
            raise UsageError("latest: of which branch?", "such as --baseline latest:main")
        self._rule, self._location, self._predictions = rule, location, predictions
        self._rows: list[tuple[Any, ...]] | None = None
        self._scratch = tempfile.TemporaryDirectory(prefix="edgebench-baseline-")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._scratch.cleanup()

    def of(self, run: Run, folder: Path | None = None) -> tuple[tuple[Run, Path] | None, str]:
        """Return the baseline of a run with its folder, or None with the reason in words; see `of_variant`."""
        return self.of_variant(run.variant, run.device.id, folder, run.created_at)

    def of_variant(self, variant: str, device: str, folder: Path | None = None, created_at: str = "",
                   ) -> tuple[tuple[Run, Path] | None, str]:
        """Return the baseline of a variant on a device with its folder, or None with the reason in words.

        Args:
            variant: What is judged, or to be measured.
            device: Its id.
            folder: Where its run lies: a run is never its own baseline.
            created_at: When that was measured.

        Raises:
            InvalidInput: The baseline is damaged, of another schema, or was changed after it was promoted.
            MissingDependency: DuckDB or fsspec is needed and not installed.
        """
        rule = self._rule
        if rule is None:
            return None, ""
        kind, _, name = rule.partition(":")
        if kind == "latest":
            return self._latest(variant, device, name, folder, created_at)
        if rule == "promoted" or (kind == "promoted" and "://" not in rule):
            return self._promoted(variant, device, name or RELEASE)
        return self._named(variant, rule)

    def _latest(self, variant: str, device: str, branch: str, folder: Path | None, created_at: str,
                ) -> tuple[tuple[Run, Path] | None, str]:
        if self._rows is None:
            with Database(self._location) as database:
                self._rows = database.rows("SELECT filename, variant, device, created_at, branch FROM runs")
        own = str((folder / "run.json").resolve()) if folder else ""
        # Nor is a copy of it, such as the one that was just put into the history.
        alike = [row for row in self._rows if row[1:3] == (variant, device)
                 and row[0] != own and row[3] != created_at]
        chosen = max((row for row in alike if row[4] == branch), key=lambda row: (row[3], row[0]), default=None)
        if chosen is None:
            branches = sorted({row[4] for row in alike if row[4]})
            return None, (f"{variant}: no baseline: none of {len(alike)} earlier runs on {device} in "
                          f"{self._location} is of branch {branch!r}{suggest(branch, branches)}")
        return self._loaded(str(chosen[0])), ""

    def _promoted(self, variant: str, device: str, name: str) -> tuple[tuple[Run, Path] | None, str]:
        known = promotions(self._location)
        mine = [one for one in known if (one.name, one.variant, one.device) == (name, variant, device)]
        if not mine:
            names = sorted({one.name for one in known})
            return None, (f"{variant}: no baseline: no run on {device} was promoted to {name!r} in "
                          f"{self._location}{suggest(name, [one for one in names if one != name])}")
        file = joined(self._location, mine[-1].run)
        if not is_remote(file) and not Path(file).resolve().is_relative_to(Path(self._location).resolve()):
            raise InvalidInput(f"{file} is a link that leads out of the history", "promote the run again")
        digest = hashlib.sha256(read_bytes(file)).hexdigest()
        if digest != mine[-1].run_sha256:
            raise InvalidInput(f"{file} was changed since it was promoted to {name!r} at {mine[-1].promoted_at}",
                               "restore it, or promote another run: edgebench baseline promote RUN --why …")
        return self._loaded(file), ""

    def _named(self, variant: str, path: str) -> tuple[tuple[Run, Path] | None, str]:
        if is_remote(path):
            file = path if path.endswith(".json") else f"{path.rstrip('/')}/run.json"
            return self._loaded(file), ""
        place = Path(path)
        if not place.exists():
            raise InvalidInput(f"no such baseline: {path}", "name a run, an output folder, latest:BRANCH or promoted")
        if place.is_file() or (place / "run.json").is_file():
            return (load(place), place if place.is_dir() else place.parent), ""
        if not any(place.glob("*/run.json")):
            raise InvalidInput(f"no run.json below the baseline {path}",
                               "name a run, an output folder, latest:BRANCH or promoted")
        if not (place / variant / "run.json").is_file():
            return None, f"{variant}: no baseline: {path} holds no such variant"
        return (load(place / variant), place / variant), ""

    def _loaded(self, file: str) -> tuple[Run, Path]:
        if not is_remote(file):
            return load(Path(file)), Path(file).parent
        filesystem, path = file_system(file)
        copy = Path(self._scratch.name) / hashlib.sha256(file.encode()).hexdigest()[:16]
        copy.mkdir(exist_ok=True)
        fetch(filesystem, path, copy / "run.json")
        run = load(copy)
        for name in _predictions(run) if self._predictions else ():
            (copy / name).parent.mkdir(exist_ok=True)
            if not (copy / name).exists():
                fetch(filesystem, str(PurePosixPath(path).parent / name), copy / name)
        return run, copy


def promotions(location: str) -> tuple[Promotion, ...]:
    """Return all promotions of a history, the oldest first.

    Raises:
        InvalidInput: The file that records them is damaged.
    """
    file = joined(location, PROMOTIONS)
    try:
        data = json.loads(read_bytes(file, missing=b"{}"))
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"{file} is not valid JSON: {error}") from error
    if data and (not isinstance(data, dict) or data.get("schema") != PROMOTIONS_SCHEMA):
        raise InvalidInput(f"{file}: expected schema {PROMOTIONS_SCHEMA!r}, got "
                           f"{data.get('schema') if isinstance(data, dict) else data!r}")
    return decode(_Promotions, data, file).promotions


def promote(run: Run, file: Path, *, location: str, why: str, name: str = RELEASE, by: str | None = None,
            now: datetime | None = None) -> Promotion:
    """Make a run the baseline of later ones: copy it into the history, and write down who did it, when and why.

    The copy holds the run file and its predictions: what is measured into the run's folder later does not touch it.
    Earlier promotions stay in the record; the last one of a name, variant and device counts.

    Args:
        run: The run.
        file: Its ``run.json``.
        location: The history, a folder or any fsspec path, that takes the copy and the record.
        why: The reason, in words.
        name: Of the baseline.
        by: Who; by default the CI system's user, else the one who runs this.
        now: The time, for the record.

    Raises:
        UsageError: No reason was given.
        InvalidInput: The record is damaged, a file of predictions is missing, or the history cannot be written.
        MissingDependency: fsspec is needed and not installed.
    """
    if not why.strip():
        raise UsageError("why is this run the new baseline?", "say it: --why 'release 2.1, accepted by the lab'")
    if not is_name(name):
        raise UsageError(f"expected a name without '/', ':' or a leading '.' or '-', got {name!r}")
    earlier, by = promotions(location), by or _who()
    digest = sha256_file(file)
    copy = f"{PROMOTED}/{digest[:16]}/{run.variant}"
    # The run file comes last: what has one is whole.
    for part in (*_predictions(run), "run.json"):
        source = file if part == "run.json" else file.parent / part
        write_bytes(read_bytes(str(source)), joined(location, f"{copy}/{part}"))
    one = Promotion(
        name=name, variant=run.variant, device=run.device.id, artifact_digest=run.artifact.digest,
        run=f"{copy}/run.json", run_sha256=digest, commit=run.labels.get("commit"),
        branch=run.labels.get("branch"), by=by, why=why.strip(),
        promoted_at=(now or datetime.now(timezone.utc)).isoformat(timespec="seconds"))
    record = _Promotions(promotions=(*earlier, one))
    text = json.dumps(to_builtins(record), indent=1, ensure_ascii=False)
    write_bytes(text.encode() + b"\n", joined(location, PROMOTIONS))
    return one


def _predictions(run: Run) -> tuple[str, ...]:
    """Return the files of a run's predictions, from the folder of its run file."""
    return tuple(dict.fromkeys(Pass(one.dataset.name, one.condition, one.preset).file for one in run.passes))


def _who() -> str:
    known = (os.environ.get(name) for name in ("GITHUB_ACTOR", "GITLAB_USER_LOGIN"))
    found = next((name for name in known if name), None)
    if found is not None:
        return found
    try:
        return getpass.getuser()
    except (KeyError, OSError) as error:
        raise UsageError("who promotes this run?", "say it: --by NAME") from error
