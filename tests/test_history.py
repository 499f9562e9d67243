"""Runs as a database: series and shifts, baselines by rule, promotions, remote folders, and the labels of runs."""

from __future__ import annotations

import itertools
import json
import shutil
import sys
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

import fsspec
import numpy as np
import pytest

from edgebench import baselines, errors, history, provenance
from edgebench.baselines import Baselines
from edgebench.errors import InvalidInput, MissingDependency, UsageError
from edgebench.record import dump, load
from edgebench.telemetry.commands import Outcome
from tests import builders
from tests.commands import cli
from tests.finished_runs import ACCURACY, FP32, INT8, SINCE, SPEED, policy_file, write_pair, write_run
from tests.test_judging import only_error, run  # noqa: F401  # a fixture

DAYS = 24


def stamp(day: int) -> str:
    return f"2026-03-{day + 1:02d}T10:30:00+00:00"


def commit(day: int) -> str:
    return f"{day:02d}" * 20


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """A run a day: latency rises by a fifth on day 14; on day 20 the images change; odd days are of another branch."""
    root = tmp_path_factory.mktemp("history") / "runs"
    generator = np.random.default_rng(5)
    for day in range(DAYS):
        data = replace(builders.DATASET, digest=("d" if day < 20 else "f") * 64)
        median = (0.010 if day < 14 else 0.012) * float(np.exp(generator.normal(0, 0.01)))
        one = builders.run(latency_s=(median * np.exp(generator.normal(0, 0.02, 300))).tolist(),
                           evaluations=(builders.accuracy_evaluation(900 + int(generator.integers(0, 20)), dataset=data),))
        one = replace(one, created_at=stamp(day), labels={"commit": commit(day), "branch": "main" if day % 2 == 0 else "topic"})
        dump(one, root / f"night-{day:02d}" / one.variant / "run.json")
    return root


class TestSeries:
    def test_hold_the_metric_of_every_run_in_order_of_time_with_its_commit(self, runs):
        told = history.series(str(runs), "latency_p50")
        (one,) = told.series
        assert DAYS == told.runs
        expected = [load(runs / f"night-{day:02d}" / FP32).score("latency_p50").value for day in range(DAYS)]
        assert expected == [point.value for point in one.points]
        assert [commit(day) for day in range(DAYS)] == [point.commit for point in one.points]
        assert ("s", "lower", FP32, "cpu", "AMD Ryzen Embedded V3C18I, 4 threads, batch 16, standard budget, governor schedutil") == (
            one.unit, one.better, one.variant, one.device, one.circumstances)

    def test_a_rise_of_a_fifth_is_found_on_its_day(self, runs):
        (one,) = history.series(str(runs), "latency_p50").series
        (shift,) = one.shifts
        assert 14 == shift.index
        assert 1.2 == pytest.approx(shift.after / shift.before, abs=0.02)

    def test_other_images_make_another_series_instead_of_a_shift(self, runs):
        told = history.series(str(runs), "accuracy_top1", of="accuracy")
        assert [20, 4] == [len(one.points) for one in told.series]
        assert [(), ()] == [one.shifts for one in told.series]
        assert {"d" * 64, "f" * 64} == {one.circumstances for one in told.series}

    @pytest.mark.parametrize("change", [
        lambda one: replace(one, settings=replace(one.settings, batch=1)),
        lambda one: replace(one, settings=replace(one.settings, budget="quick")),
        lambda one: replace(one, environment=replace(one.environment, governor="powersave")),
        lambda one: replace(one, environment=replace(one.environment, power_mode="15W"))])
    def test_other_circumstances_of_timing_make_another_series(self, tmp_path, change):
        one = builders.run()
        dump(one, tmp_path / "a" / "run.json")
        dump(change(replace(one, created_at=stamp(1))), tmp_path / "b" / "run.json")
        assert [1, 1] == [len(each.points) for each in history.series(str(tmp_path), "latency_p50").series]

    def test_runs_that_stopped_early_stay_in_the_series_of_their_data_set(self, tmp_path):
        whole = builders.DATASET
        for day, images in enumerate((1000, 300, 150)):
            seen = whole if images == 1000 else replace(whole, images=images, digest=str(day) * 64)
            one = builders.run(evaluations=(builders.accuracy_evaluation(images - 10, n=images, dataset=seen),))
            passes = tuple(replace(each, part_of=None if seen == whole else whole) for each in one.passes)
            dump(replace(one, passes=passes, created_at=stamp(day)), tmp_path / str(day) / "run.json")
        (found,) = history.series(str(tmp_path), "accuracy_top1").series
        assert [1000, 300, 150] == [point.n for point in found.points]
        assert whole.digest == found.circumstances

    def test_can_be_narrowed(self, runs):
        (one,) = history.series(str(runs), "latency_p50", branch="main", last=3, variant="demo*", device="cpu").series
        assert [stamp(18), stamp(20), stamp(22)] == [point.created_at for point in one.points]
        assert () == history.series(str(runs), "latency_p50", device="jetson*").series

    def test_a_metric_that_no_run_has_is_suggested(self, runs):
        with pytest.raises(UsageError, match="has a value for 'latncy_p50'; did you mean 'latency_p50'"):
            history.series(str(runs), "latncy_p50")

    def test_scores_without_a_value_are_left_out(self, runs):
        with pytest.raises(UsageError, match=r"no run .* has a value for 'accuracy_top5'"):
            history.series(str(runs), "accuracy_top5")

    def test_runs_without_labels_and_from_other_versions_are_told_apart(self, tmp_path):
        bare = builders.run()
        dump(bare, tmp_path / "a" / "run.json")
        text = (tmp_path / "a" / "run.json").read_text()
        data = json.loads(text)
        del data["labels"], data["sealed"]
        (tmp_path / "a" / "run.json").write_text(json.dumps(data))
        (tmp_path / "b").mkdir()
        (tmp_path / "b" / "run.json").write_text(text.replace("edgebench.run/1", "edgebench.run/2"))
        told = history.series(str(tmp_path), "latency_p50")
        assert [None] == [point.commit for point in told.series[0].points]
        assert (f"{tmp_path / 'b' / 'run.json'}: schema 'edgebench.run/2'",) == told.left_out

    @pytest.mark.parametrize(("text", "words"), [
        ('{"schema": "edgebench', "cannot read the runs in .*run.json"), ("[1]", "cannot read the runs in .*run.json"), ("", "run.json is empty")])
    def test_a_damaged_run_is_named(self, tmp_path, text, words):
        dump(builders.run(), tmp_path / "a" / "run.json")
        (tmp_path / "b").mkdir()
        (tmp_path / "b" / "run.json").write_text(text)
        with pytest.raises(InvalidInput, match=words):
            history.series(str(tmp_path), "latency_p50")

    def test_nowhere_is_no_history(self, tmp_path):
        with pytest.raises(InvalidInput, match="no such folder of runs: nowhere"):
            history.series("nowhere", "latency_p50")
        with pytest.raises(UsageError, match="no run in"):
            history.series(str(tmp_path), "latency_p50")


class TestShifts:
    def test_ranks_and_the_split_follow_the_definition(self):
        generator = np.random.default_rng(2)
        values = np.round(np.concatenate((generator.normal(0, 1, 9), generator.normal(3, 1, 6))), 1)
        statistics = {}
        for k in range(3, 13):
            pairs = itertools.product(values[:k], values[k:])
            u = sum(float(np.sign(later - earlier)) for earlier, later in pairs) / 2
            statistics[k] = abs(u) / np.sqrt(k * (15 - k) * 15)
        split, _ = history._split(values)
        assert max(statistics, key=statistics.get) == split

    def test_steady_series_are_called_shifted_as_seldom_as_declared(self):
        generator = np.random.default_rng(0)
        found = sum(bool(history.shifts(np.exp(generator.standard_t(2, 20)))) for _ in range(400))
        # 99.9 % point of Binomial(400, 0.01)
        assert found <= 11

    def test_two_shifts_and_their_levels_are_found_despite_outliers(self):
        values = [1.0 + 0.01 * (k % 5) for k in range(20)] + [1.5 + 0.01 * (k % 3) for k in range(15)] + [0.8 + 0.01 * (k % 4) for k in range(15)]
        values[7] = 9.0
        found = history.shifts(values)
        assert [20, 35] == [one.index for one in found]
        assert (1.51, pytest.approx(0.81, abs=0.01)) == (found[1].before, found[1].after)

    def test_few_runs_or_equal_ones_say_nothing(self):
        assert () == history.shifts([1, 1, 1, 1, 2, 2, 2, 2, 2])
        assert () == history.shifts([1.0] * 30)

    def test_ten_runs_can_show_one(self):
        assert [5] == [one.index for one in history.shifts([1, 2, 3, 2.5, 1.5, 11, 12, 13, 12.5, 11.5])]


class TestBaselineRules:
    def test_the_latest_run_of_a_branch_is_the_newest_of_the_same_variant_and_device(self, runs):
        mine = replace(load(runs / "night-23" / FP32), created_at="2026-04-01T10:00:00+00:00")
        for branch, day in (("main", 22), ("topic", 23)):
            with Baselines(f"latest:{branch}", str(runs)) as found:
                (other, folder), note = found.of(mine)
            assert (stamp(day), runs / f"night-{day:02d}" / FP32, "") == (other.created_at, folder, note)

    def test_a_run_is_never_its_own_baseline_nor_a_copy_of_it(self, runs, tmp_path):
        newest = runs / "night-23" / FP32
        for folder in (newest, tmp_path):
            with Baselines("latest:topic", str(runs)) as found:
                (other, _), _ = found.of(load(newest), folder)
            assert stamp(21) == other.created_at

    def test_where_there_is_none_the_reason_is_told(self, runs):
        mine = load(runs / "night-23" / FP32)
        with Baselines("latest:mian", str(runs)) as found:
            other, note = found.of(mine)
        assert other is None
        assert f"none of 23 earlier runs on cpu in {runs} is of branch 'mian'; did you mean 'main'?" in note
        with Baselines("latest:main", str(runs)) as found:
            assert "none of 0 earlier runs" in found.of(replace(mine, variant="other"))[1]

    def test_a_rule_without_a_branch_is_a_usage_error(self):
        with pytest.raises(UsageError, match="latest: of which branch"):
            Baselines("latest:")


class TestPromotions:
    @pytest.fixture
    def store(self, tmp_path) -> Path:
        """A history in which an INT8 run was promoted."""
        write_pair(tmp_path / "runs" / "old")
        return tmp_path / "runs"

    def promote(self, store: Path, **changes) -> baselines.Promotion:
        folder = store / "old" / INT8
        return baselines.promote(load(folder), folder / "run.json", **{
            "location": str(store), "why": "release 2", "by": "ana", **changes})

    def test_are_recorded_with_who_when_and_why_and_earlier_ones_stay(self, store):
        when = datetime(2026, 4, 1, 12, tzinfo=timezone.utc)
        first = self.promote(store, now=when)
        assert ("release", INT8, "cpu", "ana", "release 2", "2026-04-01T12:00:00+00:00") == (
            first.name, first.variant, first.device, first.by, first.why, first.promoted_at)
        assert f"promoted/{first.run_sha256[:16]}/{INT8}/run.json" == first.run
        second = self.promote(store, name="field", why=" other ")
        assert (first, second) == baselines.promotions(str(store))
        assert "other" == second.why
        data = json.loads((store / "baselines.json").read_text())
        assert ("edgebench.baselines/1", 2) == (data["schema"], len(data["promotions"]))

    def test_the_last_of_a_name_variant_and_device_counts(self, store):
        self.promote(store)
        write_run(store / "new", "ort-int8", created_at="2026-04-02T00:00:00+00:00")
        mine = load(store / "new" / INT8)
        with Baselines("promoted", str(store)) as found:
            assert load(store / "old" / INT8) == found.of(mine)[0][0]
        baselines.promote(mine, store / "new" / INT8 / "run.json", location=str(store), why="x", by="y")
        with Baselines("promoted:release", str(store)) as found:
            assert mine == found.of(mine)[0][0]

    def test_other_variants_and_names_have_none(self, store):
        self.promote(store)
        with Baselines("promoted:relase", str(store)) as found:
            assert "no run on cpu was promoted to 'relase' in" in found.of(load(store / "old" / INT8))[1]
            assert "did you mean 'release'?" in found.of(load(store / "old" / INT8))[1]
        with Baselines("promoted", str(store)) as found:
            assert found.of(load(store / "old" / FP32))[0] is None

    def test_a_run_that_was_changed_afterwards_is_refused(self, store):
        file = store / self.promote(store).run
        file.write_text(file.read_text().replace('"negative_flips"', '"negative_flips" '))
        with Baselines("promoted", str(store)) as found, pytest.raises(InvalidInput, match="was changed since it was promoted"):
            found.of(load(file))

    def test_need_a_reason_and_somebody(self, store, monkeypatch):
        with pytest.raises(UsageError, match="why is this run the new baseline"):
            self.promote(store, why="  ")
        monkeypatch.setenv("GITHUB_ACTOR", "octocat")
        assert "octocat" == self.promote(store, by=None).by

    def test_a_damaged_record_is_named(self, store):
        for text, words in (("{", "is not valid JSON"), ('{"schema": "x"}', "expected schema 'edgebench.baselines/1', got 'x'"),
                            ("[1]", "expected schema")):
            (store / "baselines.json").write_text(text)
            with pytest.raises(InvalidInput, match=words):
                baselines.promotions(str(store))

    def test_stay_when_the_folder_is_measured_into_again_and_the_history_is_moved(self, store, tmp_path):
        before = load(store / "old" / INT8)
        self.promote(store)
        write_pair(store / "old", lost=60)
        store.rename(tmp_path / "elsewhere")
        with Baselines("promoted", str(tmp_path / "elsewhere")) as found:
            other, folder = found.of(before)[0]
            assert before == other
            assert 1 == len(list((folder / "predictions").glob("*.npz")))

    def test_count_once_in_the_history(self, store):
        self.promote(store)
        assert [1, 1] == [len(one.points) for one in history.series(str(store), "latency_p50").series]

    def test_without_their_predictions_are_refused_before_anything_is_recorded(self, store):
        shutil.rmtree(store / "old" / INT8 / "predictions")
        with pytest.raises(InvalidInput, match=r"cannot read .*predictions"):
            self.promote(store)
        assert () == baselines.promotions(str(store))


@pytest.fixture
def remote(tmp_path):
    """A history in memory behind fsspec, with a promoted run and its predictions."""
    store = tmp_path / "store"
    write_pair(store / "old", created_at="2026-03-01T00:00:00+00:00", labels={"branch": "main", "commit": "c" * 40})
    folder = store / "old" / INT8
    memory = fsspec.filesystem("memory")
    memory.put(str(store), "/lab/runs", recursive=True)
    baselines.promote(load(folder), folder / "run.json", location="memory://lab/runs", why="x", by="y")
    shutil.rmtree(store)
    yield "memory://lab/runs"
    memory.rm("/lab", recursive=True)


class TestRemoteHistories:
    def test_are_read_as_local_ones_are(self, remote):
        told = history.series(remote, "latency_p50")
        assert {FP32, INT8} == {one.variant for one in told.series}
        assert {"c" * 40} == {point.commit for one in told.series for point in one.points}

    @pytest.mark.parametrize("rule", ["latest:main", "promoted", f"memory://lab/runs/old/{INT8}"])
    def test_baselines_are_fetched_with_their_predictions_and_cleared_away(self, remote, tmp_path, rule):
        write_pair(tmp_path / "new", lost=60)
        with Baselines(rule, remote) as found:
            (other, folder), _ = found.of(load(tmp_path / "new" / INT8), tmp_path / "new" / INT8)
            assert load(folder) == other
            assert 1 == len(list((folder / "predictions").glob("*.npz")))
        assert not folder.exists()

    def test_a_gate_pairs_by_image_with_a_remote_baseline(self, remote, run, tmp_path):  # noqa: F811
        write_pair(tmp_path / "new", lost=60)
        fsspec.filesystem("memory")
        done = run("gate", "new", "--policy", policy_file(tmp_path, SINCE, SPEED), "--baseline", "latest:main", "--history", remote)
        assert 1 == done.code
        assert "−7.5 points" in done.out

    def test_protocols_that_fsspec_does_not_know_or_have_are_named(self):
        with pytest.raises(UsageError, match="cannot open nosuch://x: Protocol not known"):
            history.series("nosuch://x", "latency_p50")
        with pytest.raises(MissingDependency, match=r"gs://bucket/x cannot be opened: .*gcsfs"):
            history.series("gs://bucket/x", "latency_p50")

    def test_what_is_not_there_is_named(self, remote):
        with Baselines("memory://lab/runs/gone", remote) as found, pytest.raises(InvalidInput, match=r"cannot read /lab/runs/gone/run\.json"):
            found.of(builders.run())


class TestWithoutTheExtra:
    @pytest.mark.parametrize("package", ["duckdb", "fsspec"])
    def test_what_to_install_is_named(self, runs, monkeypatch, package):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(MissingDependency, match=f"{package} is not installed") as caught:
            history.series(str(runs) if package == "duckdb" else "memory://x", "latency_p50")
        assert "install it with: pip install 'edgebench[history]'" == caught.value.hint

    def test_a_promoted_baseline_of_a_local_history_needs_nothing(self, tmp_path, monkeypatch):
        for package in ("duckdb", "fsspec"):
            monkeypatch.setitem(sys.modules, package, None)
        write_pair(tmp_path / "old")
        folder = tmp_path / "old" / INT8
        baselines.promote(load(folder), folder / "run.json", location=str(tmp_path), why="x", by="y")
        with Baselines("promoted", str(tmp_path)) as found:
            assert load(folder) == found.of(load(folder))[0][0]


class TestCommands:
    def test_history_shows_each_run_and_marks_the_shift_with_its_commits(self, run, runs):  # noqa: F811
        done = run("history", runs)
        lines = done.out.splitlines()
        assert f"Latency p50 · {FP32} · cpu" == lines[0].strip()
        assert DAYS + 1 == len(lines)
        (marked,) = [line for line in lines if "shift" in line]
        assert marked.startswith("  2026-03-15 10:30  1414141414  main ")
        assert "(+2" in marked
        assert "after 1313131313, p = 0.0005" in marked

    def test_history_says_where_runs_are_too_few_or_none_fit(self, run, runs):  # noqa: F811
        done = run("history", runs, "--last", "4")
        assert "4 runs: fewer than the 10 that tell a shift from chance" in done.out
        message = only_error(run("history", runs, "--device", "l4"), 2)
        assert f"none of {DAYS} runs is of such a variant, device, data set and branch" == message

    def test_history_as_json_holds_what_is_shown(self, run, runs):  # noqa: F811
        found = json.loads(run("history", runs, "--metric", "accuracy_top1", "--of", "accuracy", "--json").out)
        assert [20, 4] == [len(one["points"]) for one in found["series"]]

    def test_a_baseline_is_promoted_listed_and_used(self, run, tmp_path):  # noqa: F811
        write_pair(tmp_path / "runs" / "old")
        write_pair(tmp_path / "new", lost=60)
        assert "Missing option '--why'" in only_error(run("baseline", "promote", "runs/old"), 2)
        done = run("baseline", "promote", "runs/old", "--why", "release 2", "--by", "ana")
        assert done.out.startswith(f"release: {INT8} on cpu, promoted by ana at 20")
        assert "release 2" in run("baseline", "list").out
        policy = policy_file(tmp_path, SINCE)
        assert 1 == run("gate", "new", "--policy", policy, "--baseline", "promoted").code
        assert 0 == run("gate", "runs/old", "--policy", policy_file(tmp_path, ACCURACY), "--baseline", "promoted").code

    def test_an_unfinished_run_is_not_promoted(self, run, tmp_path):  # noqa: F811
        write_pair(tmp_path / "runs" / "old")
        (tmp_path / "runs" / "old" / "other" / "predictions").mkdir(parents=True)
        assert "was not finished" in only_error(run("baseline", "promote", "runs/old", "--why", "x"), 3)

    def test_the_first_run_of_all_has_no_baseline_and_says_so(self, run, tmp_path):  # noqa: F811
        write_pair(tmp_path / "new")
        (tmp_path / "runs").mkdir()
        done = run("gate", "new", "--policy", policy_file(tmp_path, SINCE + 'missing = "skip"\n'), "--baseline", "latest:main")
        assert 0 == done.code
        assert "note: " in done.err
        assert "none of 0 earlier runs" in done.err


class TestLabels:
    def test_come_from_the_ci_system_the_explicit_ones_first(self):
        def unasked(_):
            raise AssertionError

        github = {"GITHUB_SHA": "a" * 40, "GITHUB_REF_NAME": "12/merge", "GITHUB_HEAD_REF": "main"}
        assert {"commit": "a" * 40, "branch": "12/merge"} == provenance.labels(github, unasked)
        assert {"commit": "b" * 40, "branch": "main"} == provenance.labels(
            {"CI_COMMIT_SHA": "b" * 40, "CI_COMMIT_BRANCH": "main"}, unasked)
        assert {"commit": "c", "branch": "12/merge"} == provenance.labels({**github, "EDGEBENCH_COMMIT": "c"}, unasked)
        assert {"commit": "b" * 40} == provenance.labels({"CI_COMMIT_SHA": "b" * 40, "CI_COMMIT_BRANCH": " "}, unasked)

    @pytest.mark.parametrize(("outcome", "expected"), [
        (Outcome(code=0, output="d" * 40 + "\nmain\n"), {"commit": "d" * 40, "branch": "main"}),
        (Outcome(code=0, output="d" * 40 + "\nHEAD\n"), {"commit": "d" * 40}),
        (Outcome(code=128, output="fatal: not a git repository"), {}), (Outcome(code=127, output="git: no such command"), {}),
        (Outcome(code=124, output="git did not end within 30 s"), {}), (Outcome(code=0, output="warning: x\ny"), {})])
    def test_else_from_git_and_else_there_are_none(self, outcome, expected):
        assert expected == provenance.labels({}, lambda _: outcome)

    def test_git_is_asked_about_the_working_folder(self, tmp_path, monkeypatch):
        from edgebench.telemetry import commands

        for words in (("init", "-q", "-b", "trunk"), ("-c", "user.name=x", "-c", "user.email=x@y", "commit", "-q", "--allow-empty", "-m", "first")):
            assert 0 == commands.run(("git", "-C", str(tmp_path), *words)).code
        monkeypatch.chdir(tmp_path)
        found = provenance.labels({})
        assert "trunk" == found["branch"]
        assert found["commit"] == commands.run(("git", "rev-parse", "HEAD")).output.strip()


def test_the_extra_declares_what_is_required() -> None:
    from edgebench.catalog import tomllib
    from tests.conftest import PROJECT

    extras = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert ["duckdb", "fsspec"] == [line.partition(">")[0] for line in extras[history.EXTRA]]
    assert "history" in extras["all"][0]
    assert errors.ExitCode.UNMEASURABLE == MissingDependency.exit_code


def test_history_runs_in_a_process_of_its_own(runs: Path, tmp_path: Path) -> None:
    done = cli("history", runs, "--last", "2", cwd=tmp_path)
    assert (0, "") == (done.returncode, done.stderr)
