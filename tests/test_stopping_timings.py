"""Rules about latency followed while timings come in: when they decide, that looking often errs no more, end to end."""

from __future__ import annotations

import itertools
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgebench import decisions, latency, paired, scenarios, sequential, stopping_timings, until
from edgebench.artifacts import write_manifest
from edgebench.record import Run, load, load_artifact
from edgebench.timing_types import Block, PairedTrace
from tests import scripted
from tests.commands import cli
from tests.finished_runs import policy_file
from tests.models import class_file, onnx_file, preprocess_file
from tests.test_until import rules

MEDIAN = 'metric = "latency_p50"\nmax = 0.010'
TAIL = 'metric = "latency_p99"\nmax = 0.020'
RATIO = 'metric = "latency_p50"\nagainst = "reference"\nmax_increase_relative = 0.05'
FASTER = 'metric = "latency_mean"\nagainst = "reference"\nmax_increase_relative = 0.05'
SINCE = 'metric = "latency_p50"\nagainst = "baseline"\nmax_increase_relative = 0.1'

LOOKS = (100, 200, 400, 800, 1500)
GATES = 60


def traces(count: int, rho: float, tail: float = 0.0, seed: int = 3) -> np.ndarray:
    """Latencies (count, 3000) with a median of 10 ms that follow each other: AR(1) logarithms and heavy tails."""
    generator = np.random.default_rng(seed)
    noise = generator.normal(size=(count, 3000))
    for k in range(1, 3000):
        noise[:, k] = rho * noise[:, k - 1] + math.sqrt(1 - rho**2) * noise[:, k]
    return 0.010 * np.exp(0.05 * noise) * np.where(noise > 3, 1.0 + tail, 1.0)


class TestWhatIsFollowed:
    def test_budgets_are_where_nothing_needs_the_timings_whole(self):
        assert ["r0", "r1"] == [one.id for one in until.budgets(rules(MEDIAN, TAIL), in_turns=False)]
        assert ["r0"] == [one.id for one in until.budgets(rules(MEDIAN, RATIO), in_turns=True)]
        assert () == until.budgets(rules(MEDIAN, RATIO), in_turns=False)
        assert () == until.budgets(rules(MEDIAN, SINCE), in_turns=True)
        assert () == until.budgets(rules(MEDIAN, 'metric = "energy_per_inference"\nmax = 1.0'), in_turns=True)

    def test_rules_about_other_scenarios_are_in_nobodys_way(self):
        assert ["r0"] == [one.id for one in until.budgets(rules(MEDIAN, 'metric = "throughput_offline"\nmin = 5.0'),
                                                          in_turns=False)]

    def test_ratios_are_those_to_the_references_centre(self):
        assert ["r1", "r2"] == [one.id for one in until.ratios(rules(MEDIAN, RATIO, FASTER, SINCE))]


class TestBudgets:
    @pytest.mark.parametrize(("factor", "decision"), [(0.8, "pass"), (1.3, "fail")])
    def test_clear_cases_are_decided_long_before_all_timings(self, factor, decision):
        values = traces(1, 0.5)[0] * factor
        following = until.Following(rules(MEDIAN), rules(MEDIAN).rules)
        for n in range(100, 3001, 100):
            following.look_at_timings(values[:n])
            if not following.open:
                break
        (path,) = following.paths()
        assert decision == path.decision
        assert path.decided_at <= 500

    @pytest.mark.parametrize(("q", "rho"), [(50, 0.0), (50, 0.9), (90, 0.6)])
    def test_a_latency_just_at_its_limit_is_rarely_decided_though_always_looked_at(self, q, rho):
        many = traces(GATES, rho, tail=1.0)
        # Of the distribution itself, over all traces.
        limit = float(np.quantile(many, q / 100))
        policy = rules(f'metric = "latency_p{q}"\nmax = {limit!r}')
        wrong = {"pass": 0, "fail": 0}
        for values in many:
            following = until.Following(policy, policy.rules)
            for n in LOOKS:
                following.look_at_timings(values[:n])
            for path in following.paths():
                if path.decision is not None:
                    wrong[path.decision] += 1
        # Either is an error of at most 5 %; three standard errors above.
        assert max(wrong.values()) / GATES <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / GATES)

    def test_taken_as_independent_they_would_be_decided_wrongly_more_often(self):
        many = traces(GATES, 0.9)
        limit, wrong = float(np.quantile(many, 0.5)), 0
        for values in many:
            steps = [sequential.percentile_step(values[:n], 0.5, limit) for n in LOOKS]
            wrong += min(min(step.p_within, step.p_beyond) for step in steps) <= 0.05
        assert wrong / GATES > 0.2

    def test_the_interval_holds_the_estimate_and_is_wider_where_timings_are_worth_less(self):
        values = traces(1, 0.0)[0]
        whole, less = (sequential.percentile_step(values, 0.9, 0.011, worth) for worth in (1.0, 0.1))
        assert less.low < whole.low < whole.value < whole.high < less.high
        assert whole.value == less.value
        assert (whole.low, whole.high) == sequential.quantile_bounds(values, 0.9)

    def test_a_tail_needs_hundreds_of_timings_though_none_is_late(self):
        policy = rules(TAIL)
        decided = stopping_timings.Budgets(policy, in_turns=False).begin()
        values = np.random.default_rng(0).uniform(0.009, 0.011, 1500).tolist()
        first = next(n for n in range(50, 1500, 50) if decided(values[:n]))
        # Independent ones, looked at once: 299 show the 99th percentile at 95 %.
        assert 299 < first < 1000

    def test_few_timings_are_not_looked_at(self, tmp_path: Path):
        budgets = stopping_timings.Budgets(rules('metric = "latency_p50"\nmax = 1.0'), in_turns=False)
        assert not budgets.begin()([0.01] * (until.LEAST_TIMINGS - 1))
        assert budgets.begin()([0.01] * until.LEAST_TIMINGS)
        # Two hundred that repeat each other are worth few.
        assert not budgets.begin()([0.01 + 0.001 * (k // 50) for k in range(200)])

    def test_another_try_begins_anew(self, tmp_path: Path):
        budgets = stopping_timings.Budgets(rules(MEDIAN), in_turns=False)
        assert budgets.begin()([0.02] * 200)
        assert budgets.begin()([0.001] * 200)
        budgets.write(tmp_path, "digest", [0.001] * 200)
        (path,) = decisions.decision_paths(tmp_path)
        assert ("pass", 200, "timings", "s") == (path.decision, path.steps[-1].n, path.sampled, path.unit)


def turns(ratio: float, rounds: int, seed: int = 0, spread: float = 0.02) -> PairedTrace:
    generator = np.random.default_rng(seed)
    centres = (0.010, 0.010 * ratio)
    made = []
    for _ in range(rounds):
        order = generator.permutation(2).tolist()
        slow = math.exp(0.3 * generator.standard_t(2))
        made.append(tuple(Block(session=k, begin_ns=0, latency_s=tuple(
            slow * centres[k] * np.exp(spread * generator.normal(size=3)))) for k in (*order, *order[::-1])))
    return PairedTrace(names=("fp32", "int8"), seed=0, rounds=tuple(made))


def followed(policy, trace: PairedTrace) -> until.RulePath:
    following = until.Following(policy, policy.rules)
    values = paired.log_ratios(trace, "fp32", "int8").tolist()
    for n in range(1, len(values) + 1):
        following.look_at_ratios({rule.id: values[:n] for rule in policy.rules})
    return following.paths()[0]


class TestLoop:
    """The closed loop under a scripted clock."""

    def loop(self, decided):
        # 4 ms, give or take.
        world = scripted.World(4_000_000 + int(one) for one in np.random.default_rng(0).normal(0, 10_000, 9000))
        return scenarios.closed_loop("single-stream", world.infer, latency.budget("standard"), images_per_query=1,
                                     threads=1, clock=world.clock, decided=decided)

    def test_ends_when_told_that_all_is_decided(self):
        budgets = stopping_timings.Budgets(rules('metric = "latency_p50"\nmax = 0.005'), in_turns=False)
        trace = self.loop(budgets.begin())
        assert "decided" == trace.stopped
        assert sum(trace.service_s) < 5
        assert sum(self.loop(lambda values: False).service_s) >= 19.9

    def test_tells_all_timings_about_once_a_second_and_ever_less_often(self):
        heard = []
        self.loop(lambda values: heard.append(len(values)))
        assert heard[0] == pytest.approx(250, abs=1)
        assert all(b >= max(1.1 * a, a + 250) - 2 for a, b in itertools.pairwise(heard))


class TestRatios:
    @pytest.mark.parametrize(("ratio", "decision"), [(0.5, "pass"), (2.0, "fail")])
    def test_clear_cases_take_some_rounds_whatever_the_machine_does(self, ratio, decision):
        path = followed(rules(RATIO), turns(ratio, 40))
        assert decision == path.decision
        assert path.decided_at <= 12
        assert path.steps[-1].value == pytest.approx(ratio - 1.0, abs=0.05)
        assert path.steps[-1].low < ratio - 1.0 < path.steps[-1].high

    @pytest.mark.parametrize("side", ["above", "below"])
    def test_at_the_limit_itself_neither_is_said_in_more_than_the_stated_share(self, side):
        wrong = 0
        for seed in range(GATES):
            values = paired.log_ratios(turns(1.05, 60, seed), "fp32", "int8")
            wrong += bool((sequential.ratio_evidence(values, 1.05, side) >= -math.log(0.05)).any())
        assert wrong / GATES <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / GATES)

    def test_a_decrease_that_is_to_stay_small_is_the_other_side(self):
        at_most_tenth = rules('metric = "latency_p50"\nagainst = "reference"\nmax_decrease_relative = 0.1')
        assert "fail" == followed(at_most_tenth, turns(0.5, 40)).decision
        path = followed(at_most_tenth, turns(1.0, 40))
        assert "pass" == path.decision
        assert path.steps[-1].low <= path.steps[-1].value <= path.steps[-1].high


# From the command line, with two artifacts of one tiny model.

PLAIN = '[[rules]]\nid = "median"\nmetric = "latency_p50"\nmax = {}\n'
TURNS = '[[rules]]\nid = "not-slower"\nmetric = "latency_p50"\nagainst = "reference"\nmax_increase_relative = 2.0\n'


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("timed")
    done = cli("export", onnx_file(root / "m.onnx"), "--recipe", "ort-fp32", "--out", root / "fp32", "--preprocess",
               preprocess_file(root), "--classes", class_file(root), cwd=root)
    assert 0 == done.returncode, done.stderr
    (folder,) = (root / "fp32").iterdir()
    other = root / "same" / folder.name
    shutil.copytree(folder, other)
    one = load_artifact(other)
    write_manifest(other, replace(one, recipe=replace(one.recipe, id="ort-same", precision="bf16")))
    return root


def profile(made: Path, out: Path, policy: Path, *more: object, code: int = 0):
    artifacts = [next((made / name).iterdir()) for name in ("fp32", "same")]
    done = cli("profile", *artifacts, "--budget", "quick", "--properties", "none", "--scenario", "single-stream",
               "--allow-precision-fallback", "--no-telemetry", "--until", policy, "--out", out, *more, cwd=made)
    assert code == done.returncode, done.stderr
    return done


def run_of(out: Path, name: str) -> tuple[Run, Path]:
    folder = out / f"m.onnx--ort-{name}--onnxruntime"
    return load(folder), folder


def test_timing_ends_when_budget_and_ratio_are_decided(made: Path, tmp_path: Path):
    policy, out = policy_file(tmp_path, PLAIN.format(1.0), TURNS), tmp_path / "out"
    profile(made, out, policy)
    (whole, _), (run, folder) = run_of(out, "fp32"), run_of(out, "same")
    assert run.settings.until is not None
    assert whole.settings.until is None
    assert "count-and-duration" == whole.traces[0].stopped
    paths = {one.rule: one for one in decisions.decision_paths(folder)}
    assert "launches" == paths["not-slower"].sampled
    assert all(one.decision == "pass" for one in paths.values())
    # On a machine so busy that its timings hardly differ from their neighbours, nothing is decided before all are in.
    early = run.traces[0].stopped == "decided"
    assert early == ("stopped-early" in [one.code for one in run.caveats])
    assert not early or paths["median"].steps[-1].n == len(run.traces[0].latency_s)
    rounds = len(json.loads((out / "paired.json").read_text())["trace"]["rounds"])
    assert rounds == 2 * paths["not-slower"].steps[-1].n < stopping_timings.MOST_ROUNDS

    done = cli("gate", out, "--policy", policy, "--json", cwd=made)
    assert 0 == done.returncode, done.stderr
    verdicts = {one["rule"]: one for one in json.loads(done.stdout)["gates"][0]["verdicts"]}
    assert {"pass"} == {one["status"] for one in verdicts.values()}
    for name, path in paths.items():
        assert path.sampled == verdicts[name]["sampled"]
        assert "however often one looks" in verdicts[name]["message"]

    # Another policy finds timings whose end depended on what was seen.
    (tmp_path / "other").mkdir()
    other = policy_file(tmp_path / "other", PLAIN.format(2.0))
    done = cli("gate", folder, "--policy", other, "--json", cwd=made)
    (verdict,) = json.loads(done.stdout)["gates"][0]["verdicts"]
    assert ("inconclusive" if early else "pass") == verdict["status"]
    assert early == ("timing stopped early" in verdict["message"])

    # The report draws both paths.
    html = (out / "report.html").read_text()
    assert f"pass after {paths['not-slower'].steps[-1].n:,} launches" in html


def test_a_budget_that_is_missed_fails_early(made: Path, tmp_path: Path):
    policy, out = policy_file(tmp_path, PLAIN.format(1e-9)), tmp_path / "out"
    profile(made, out, policy)
    folder = run_of(out, "same")[1]
    assert not (out / "paired.json").exists()
    done = cli("gate", folder, "--policy", policy, "--json", cwd=made)
    assert 1 == done.returncode, done.stdout + done.stderr


def test_rules_that_need_all_timings_get_them(made: Path, tmp_path: Path):
    since = '[[rules]]\nid = "since"\nmetric = "latency_p50"\nagainst = "baseline"\nmax_increase_relative = 0.1\n'
    policy, out = policy_file(tmp_path, PLAIN.format(1.0), TURNS, since), tmp_path / "out"
    profile(made, out, policy, "--paired", "8")
    run, folder = run_of(out, "same")
    assert "count-and-duration" == run.traces[0].stopped
    assert ["not-slower"] == [one.rule for one in decisions.decision_paths(folder)]
    assert len(json.loads((out / "paired.json").read_text())["trace"]["rounds"]) <= 8


def test_rounds_are_planned_or_ended_by_the_policy_and_not_both(made: Path, tmp_path: Path):
    done = profile(made, tmp_path / "out", policy_file(tmp_path, TURNS), "--paired", "3%", code=2)
    assert "error: --paired 3.0% plans how many rounds there are, and --until ends them" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("command", "more", "words"), [
    ("evaluate", (), "none of its rules can be decided"),
    ("profile", ("--budget", "smoke"), "nothing to stop"),
])
def test_without_timing_or_with_the_reference_alone_there_is_nothing_to_stop(made, tmp_path, command, more, words):
    policy = policy_file(tmp_path, PLAIN.format(1.0))
    done = cli(command, next((made / "fp32").iterdir()), "--until", policy, "--properties", "none", "--out", tmp_path / "o",
               *more, cwd=made)
    assert 2 == done.returncode
    assert words in done.stderr
