"""Runs in a folder as a database: a metric over time, with its shifts and commits.

A folder is a local one, or any path that fsspec knows. DuckDB reads the run files where they lie; nothing is imported
or copied into a database that could disagree with them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import groupby, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgebench import record
from edgebench.errors import InvalidInput, MissingDependency, UsageError, require, suggest
from edgebench.record import RUN_SCHEMA, Better
from edgebench.stats import FloatArray

if TYPE_CHECKING:
    from typing_extensions import Self

HISTORY = "runs"
"""Where runs lie unless another place is named."""
EXTRA = "history"
LEVEL = 0.01
"""Chance that a steady series is said to have shifted."""
LEAST_RUNS = 10
"""With fewer, no order of the runs is rarer than `LEVEL`."""
LEAST_SEGMENT = 3
PERMUTATIONS = 1999
_SCORE = ("STRUCT(name VARCHAR, value DOUBLE, low DOUBLE, high DOUBLE, confidence DOUBLE, unit VARCHAR, "
          "better VARCHAR, n BIGINT)[]")
_COLUMNS = {
    "schema": "VARCHAR", "variant": "VARCHAR", "created_at": "VARCHAR", "device": "STRUCT(id VARCHAR)",
    "environment": "STRUCT(cpu VARCHAR, governor VARCHAR, power_mode VARCHAR)",
    "settings": "STRUCT(threads BIGINT, batch BIGINT, budget VARCHAR)", "labels": "MAP(VARCHAR, VARCHAR)",
    "passes": "STRUCT(dataset STRUCT(digest VARCHAR), part_of STRUCT(digest VARCHAR))[]",
    "performance": _SCORE, "evaluations": "STRUCT(property VARCHAR, dataset STRUCT(name VARCHAR, digest VARCHAR), "
    f"condition VARCHAR, preset VARCHAR, scores {_SCORE}, reference_scores {_SCORE})[]"}
_READ = """
CREATE TABLE found AS SELECT *, schema IS NOT DISTINCT FROM $schema AS ours
FROM read_json($files, columns = $columns, filename = true, format = 'unstructured', maximum_object_size = $most)
"""
_TABLES = """
CREATE VIEW runs AS SELECT filename, variant, device.id AS device, environment, settings, created_at,
  labels['commit'] AS commit, labels['branch'] AS branch, performance, evaluations, passes
FROM found WHERE ours QUALIFY row_number() OVER (PARTITION BY variant, device.id, created_at ORDER BY filename) = 1;
CREATE VIEW scores AS
SELECT runs.*, 'performance' AS property, '' AS dataset, '' AS condition, '' AS preset, score,
  concat_ws(', ', environment.cpu, settings.threads || ' threads', 'batch ' || settings.batch,
            settings.budget || ' budget', 'governor ' || environment.governor,
            'power mode ' || environment.power_mode) AS circumstances
FROM runs, unnest(runs.performance) AS had(score)
UNION ALL
SELECT runs.*, evaluation.property, evaluation.dataset.name, evaluation.condition, evaluation.preset, score,
  coalesce(list_max([one.part_of.digest FOR one IN passes IF one.dataset.digest = evaluation.dataset.digest]),
           evaluation.dataset.digest)
FROM runs, unnest(runs.evaluations) AS was(evaluation),
  unnest(evaluation.scores || coalesce(evaluation.reference_scores, [])) AS had(score);
"""
_SERIES = """
SELECT variant, device, property, dataset, circumstances, condition, preset, score.unit, score.better, filename,
  created_at, commit, branch, score.value, score.low, score.high, score.n
FROM scores WHERE score.name = $metric AND score.value IS NOT NULL
ORDER BY variant, device, property, dataset, circumstances, condition, preset, score.unit, score.better, created_at,
  filename
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A metric of one run."""

    run: str
    """Path of its file."""
    created_at: str
    commit: str | None
    branch: str | None
    value: float
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Shift:
    """Where a series changed its level."""

    index: int
    """The first point of the new level."""
    before: float
    """Median of the level before."""
    after: float
    """Median of the level from here to the next shift."""
    p_value: float
    """Of the hypothesis that there is no shift in this stretch, from permutations."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One metric of one variant on one device and data set, in time."""

    metric: str
    property: str
    variant: str
    device: str
    dataset: str
    """Empty for performance."""
    circumstances: str
    """What else must be the same for points to be comparable: the digest of the whole data set; of performance CPU,
    threads, batch, budget, governor and power mode."""
    condition: str
    preset: str
    unit: str
    better: Better | None
    points: tuple[Point, ...]
    shifts: tuple[Shift, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Telling:
    """What a folder of runs says about a metric."""

    runs: int
    series: tuple[Series, ...]
    left_out: tuple[str, ...]
    """Files that are no runs of this version, with their schema."""


def series(location: str, metric: str, *, of: str | None = None, variant: str = "*", device: str = "*",
           dataset: str = "*", condition: str = "*", branch: str | None = None, last: int | None = None) -> Telling:
    """Return a metric over time, a series per variant, device, data set and condition.

    Points are comparable within a series: other images, another CPU, number of threads, batch, budget, governor or
    power mode make another series. Runs that stopped early stay in the series of the data set that they are of. Copies
    of a run, such as promoted ones, count once.

    Args:
        location: A folder, or any fsspec path, with run files at any depth.
        metric: Name of a score, with its level where it has one.
        of: Only of this property.
        variant: Only such; ``*`` for any characters, here and below.
        device: Only such.
        dataset: Only such.
        condition: Only such.
        branch: Only runs of this branch.
        last: Only so many runs of each series, the newest.

    Raises:
        InvalidInput: No runs there, or a damaged one.
        UsageError: No run has such a metric.
        MissingDependency: DuckDB, or what fsspec needs for this path, is not installed.
    """
    with Database(location) as database:
        left_out = tuple(f"{file}: schema {schema!r}" for file, schema in database.rows(
            "SELECT filename, schema FROM found WHERE NOT ours"))
        rows = database.rows(_SERIES, metric=metric)
        if not rows:
            names = [name for (name,) in database.rows("SELECT DISTINCT score.name FROM scores")]
            raise UsageError(f"no run in {location} has a value for {metric!r}{suggest(metric, names)}",
                             "edgebench report RUN --json names the scores of a run")
    found = []
    for key, group in groupby(rows, key=lambda row: row[:9]):
        kind, board, property_, data, circumstances, under, preset, unit, better = key
        if (of or property_) != property_ or not all(fnmatchcase(name, pattern) for name, pattern in (
                (kind, variant), (board, device), (data, dataset), (under, condition))):
            continue
        points = tuple(Point(run=file, created_at=when, commit=commit, branch=on, value=value, low=low, high=high, n=n)
                       for *_, file, when, commit, on, value, low, high, n in group if branch in (None, on))
        points = points[-last:] if last else points
        if points:
            found.append(Series(
                metric=metric, property=property_, variant=kind, device=board, dataset=data, preset=preset, unit=unit,
                circumstances=circumstances, condition=under, better=better, points=points,
                shifts=shifts([point.value for point in points])))
    return Telling(runs=len(database.files), series=tuple(found), left_out=left_out)


def shifts(values: Sequence[float], level: float = LEVEL) -> tuple[Shift, ...]:
    """Return where a series of values (n,) changes its level, in order of time.

    The split with the largest rank statistic is tested against random orders of the same values; where it is rarer than
    `level`, both sides are looked at in turn. Ranks do not mind outliers, and a run's own interval is not asked: runs
    of different days differ by more than that.

    Args:
        values: In order of time.
        level: Chance that a steady series (in any order equally likely) is said to have shifted.

    Source:
        Pettitt 1979, Applied Statistics 28:126, weighted for short ends; binary segmentation after Vostrikova 1981.
    """
    series_ = np.asarray(values, np.float64)
    found: list[tuple[int, float]] = []
    waiting = [(0, series_.size)]
    while waiting:
        begin, end = waiting.pop()
        if end - begin < LEAST_RUNS:
            continue
        split, p_value = _split(series_[begin:end])
        if p_value <= level:
            found.append((begin + split, p_value))
            waiting += [(begin, begin + split), (begin + split, end)]
    found.sort()
    edges = [0, *(index for index, _ in found), series_.size]
    medians = [float(np.median(series_[low:high])) for low, high in pairwise(edges)]
    return tuple(Shift(index=index, before=medians[k], after=medians[k + 1], p_value=p_value)
                 for k, (index, p_value) in enumerate(found))


def _split(values: FloatArray) -> tuple[int, float]:
    """Return the likeliest place of a shift and how likely as large a statistic is without one."""
    n = values.size
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2.0)[inverse] - (n + 1) / 2.0
    k = np.arange(LEAST_SEGMENT, n - LEAST_SEGMENT + 1)
    weight = np.sqrt(k * (n - k) / n)

    def statistic(rows: FloatArray) -> FloatArray:
        return np.asarray(np.abs(np.cumsum(rows, axis=-1)[..., k - 1]) / weight)

    seen = statistic(ranks)
    orders = np.random.default_rng(0).permuted(np.broadcast_to(ranks, (PERMUTATIONS, n)), axis=1)
    rarer = int(np.count_nonzero(statistic(orders).max(axis=1) >= seen.max() - 1e-9))
    return int(k[int(seen.argmax())]), (1 + rarer) / (1 + PERMUTATIONS)


@dataclass(slots=True)
class Database:
    """The run files of a location, open for queries."""

    location: str
    files: dict[str, int] = field(default_factory=dict)
    """Sizes in bytes."""
    _connection: Any = None

    def __enter__(self) -> Self:
        duckdb = require("duckdb", EXTRA)
        connection = duckdb.connect(":memory:")
        if is_remote(self.location):
            filesystem, root = file_system(self.location)
            connection.register_filesystem(filesystem)
            protocol = self.location.partition("://")[0]
            found = _remote(filesystem.glob, self.location, f"{root.rstrip('/')}/**/run.json", detail=True)
            self.files = {f"{protocol}://{name}": int(one["size"] or 0) for name, one in sorted(found.items())}
        else:
            folder = Path(self.location)
            if not folder.is_dir():
                raise InvalidInput(f"no such folder of runs: {self.location}",
                                   "name the folder that 'edgebench profile --out' writes below, or any fsspec path")
            self.files = {str(file.resolve()): file.stat().st_size for file in sorted(folder.rglob("run.json"))}
        empty = next((file for file, size in self.files.items() if size == 0), None)
        if empty is not None:
            raise InvalidInput(f"{empty} is empty", "it was cut short: restore it, or measure again")
        if not is_remote(self.location):
            # DuckDB reads numbers alone: seals and ranges are checked here. Files of other schemas are left out later.
            for file in self.files:
                if record.schema_of(Path(file)) == RUN_SCHEMA:
                    record.load(Path(file))
        if self.files:
            try:
                connection.execute(_READ, {"files": list(self.files), "columns": _COLUMNS,
                                           "schema": RUN_SCHEMA, "most": max(self.files.values()) + 1024})
                connection.execute(_TABLES)
            except duckdb.Error as error:
                raise InvalidInput(f"cannot read the runs in {self.location}: {str(error).splitlines()[0]}",
                                   "a file called run.json there is damaged or no run: move it away") from error
        self._connection = connection
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def rows(self, query: str, **values: str) -> list[tuple[Any, ...]]:
        """Return what a query on ``found``, ``runs`` or ``scores`` gives; nothing where there are no runs."""
        if not self.files:
            return []
        return list(self._connection.execute(query, values or None).fetchall())


def is_remote(path: str) -> bool:
    """Return whether a path is a URL, which fsspec opens."""
    return "://" in path


def joined(location: str, name: str) -> str:
    """Return the path of a file in a location, or as it is where it is whole by itself."""
    if "://" in name or name.startswith("/"):
        return name
    return f"{location.rstrip('/')}/{name}" if is_remote(location) else str(Path(location) / name)


def file_system(path: str) -> tuple[Any, str]:
    """Return the file system behind a URL, and the path within it.

    Raises:
        UsageError: fsspec knows no such protocol.
        MissingDependency: fsspec, or the package for this protocol, is not installed.
    """
    fsspec = require("fsspec", EXTRA)
    try:
        filesystem, inside = fsspec.core.url_to_fs(path)
    except ImportError as error:
        raise MissingDependency(f"{path} cannot be opened: {error}", "install the package that fsspec names") from error
    except ValueError as error:
        raise UsageError(f"cannot open {path}: {error}") from error
    return filesystem, str(inside)


def read_bytes(file: str, missing: bytes | None = None) -> bytes:
    """Return the bytes of a file, local or remote; `missing` where it does not exist.

    Raises:
        InvalidInput: It cannot be read.
    """
    if not is_remote(file):
        try:
            return Path(file).read_bytes()
        except FileNotFoundError as error:
            if missing is not None:
                return missing
            raise InvalidInput(f"cannot read {file}: {error.strerror}") from error
        except OSError as error:
            raise InvalidInput(f"cannot read {file}: {error.strerror}") from error
    filesystem, path = file_system(file)
    if missing is not None and not _remote(filesystem.exists, file, path):
        return missing
    return bytes(_remote(filesystem.cat_file, file, path))


def write_bytes(content: bytes, file: str) -> None:
    """Write a file, local or remote; its folder is made.

    Raises:
        InvalidInput: It cannot be written.
    """
    if not is_remote(file):
        record.write_bytes(Path(file), content, "choose a folder you may write to with --history")
        return
    filesystem, path = file_system(file)
    try:
        filesystem.makedirs(path.rpartition("/")[0], exist_ok=True)
        filesystem.pipe_file(path, content)
    except OSError as error:
        raise InvalidInput(f"cannot write {file}: {error}", "choose a place you may write to with --history") from error


def fetch(filesystem: Any, path: str, target: Path) -> None:
    """Copy a file of a file system.

    Raises:
        InvalidInput: It cannot be read.
    """
    _remote(filesystem.get_file, path, path, str(target))


def _remote(call: Any, where: str, *arguments: Any, **options: Any) -> Any:
    try:
        return call(*arguments, **options)
    except OSError as error:
        raise InvalidInput(f"cannot read {where}: {error}") from error
