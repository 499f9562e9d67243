"""Paired timing: orders, exact intervals, the rate of false alarms, the planner's promise, the noise floor, processes."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import sys
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats as scipy_stats
from scipy.signal import lfilter

from edgebench import paired, paired_worker
from edgebench.errors import CannotMeasure, InvalidInput, UsageError
from edgebench.paired_worker import PairedJob
from edgebench.record import decode
from edgebench.timing_types import Block, PairedTrace
from tests.scripted import MS, World


def session(world: World, latency_ns: int):
    def run(inferences: int) -> Block:
        begin = world.now
        world.now += inferences * latency_ns
        return Block(session=0, begin_ns=begin, latency_s=(latency_ns / 1e9,) * inferences)

    return run


def held(runs) -> paired.Opened:
    """Sessions that stay as they are, however often they are opened."""
    return lambda order: contextlib.nullcontext(runs)


def pairs(rounds=12, seed=0, rounds_per_launch=1, **latencies) -> PairedTrace:
    world = World(0)
    return paired.interleave(held({name: session(world, ns) for name, ns in latencies.items()}), list(latencies),
                             rounds=rounds, inferences=5, seed=seed, rounds_per_launch=rounds_per_launch)


class TestInterleaving:
    def test_a_round_is_an_order_and_its_mirror_image(self):
        found = pairs(rounds=30, a=MS, b=MS, c=MS)
        orders = [tuple(block.session for block in blocks) for blocks in found.rounds]
        assert all(order[:3] == order[:2:-1] for order in orders)
        assert len(set(orders)) == 6, "not all orders came up"

    def test_blocks_follow_each_other_in_time(self):
        begins = [block.begin_ns for blocks in pairs(a=MS, b=2 * MS).rounds for block in blocks]
        assert sorted(begins) == begins

    def test_the_seed_decides_the_orders(self):
        one, same, other = (pairs(seed=seed, a=MS, b=MS) for seed in (1, 1, 2))
        assert one == same
        assert [block.session for blocks in one.rounds for block in blocks] != [
            block.session for blocks in other.rounds for block in blocks]

    @pytest.mark.parametrize("arguments", [{"rounds": 0}, {"inferences": 0}, {"names": ["a"]}])
    def test_less_than_a_pair_is_refused(self, arguments):
        runs = {name: session(World(0), MS) for name in arguments.pop("names", ["a", "b"])}
        with pytest.raises(UsageError, match="expected two sessions or more"):
            paired.interleave(held(runs), list(runs), **{"rounds": 1, "inferences": 1, **arguments})

    @pytest.mark.parametrize("latencies", [(0.001,), (0.001, 0.0), (0.001, float("nan"))])
    def test_a_session_that_answers_something_else_is_refused(self, latencies):
        broken = {name: lambda m: Block(session=0, begin_ns=0, latency_s=latencies) for name in "ab"}
        with pytest.raises(CannotMeasure, match="returned"):
            paired.interleave(held(broken), "ab", rounds=1, inferences=2)

    def test_sessions_are_opened_anew_every_other_round_in_a_random_order_and_closed_before(self):
        world, seen = World(0), []

        @contextlib.contextmanager
        def opened(order):
            seen.append("".join(order))
            yield {name: session(world, MS) for name in order}
            seen.append("closed")

        heard = []
        trace = paired.interleave(opened, "abc", rounds=41, inferences=1, told=heard.append)
        assert ["closed"] * 21 == seen[1::2]
        assert {"abc", "acb", "bac", "bca", "cab", "cba"} == set(seen[::2])
        assert (2, list(range(1, 42))) == (trace.rounds_per_launch, heard)
        # The last launch has one round.
        assert 21 == paired.log_ratios(trace, "a", "b").size

    def test_no_launch_follows_once_all_is_decided(self):
        asked = []

        def decided(trace):
            asked.append(len(trace.rounds))
            return len(trace.rounds) >= 6

        runs = {name: session(World(0), MS) for name in "ab"}
        trace = paired.interleave(held(runs), "ab", rounds=40, inferences=1, decided=decided)
        assert (6, [2, 4, 6]) == (len(trace.rounds), asked)

    def test_the_last_launch_is_looked_at_too(self):
        asked = []
        runs = {name: session(World(0), MS) for name in "ab"}
        paired.interleave(held(runs), "ab", rounds=5, inferences=1, decided=lambda trace: bool(asked.append(len(trace.rounds))))
        assert [2, 4, 5] == asked

    def test_a_launch_counts_as_the_mean_of_its_rounds(self):
        world = World(0)
        rises = itertools.count()

        def grows(inferences):
            world.now += MS
            return Block(session=0, begin_ns=world.now, latency_s=(1e-3 * math.exp(next(rises) // 2),) * inferences)

        runs = {"a": session(world, MS), "b": grows}
        trace = paired.interleave(held(runs), "ab", rounds=5, inferences=1, rounds_per_launch=2)
        assert [0.5, 2.5, 4.0] == pytest.approx(paired.log_ratios(trace, "a", "b").tolist())
        found = paired.compare(trace, "a", "b")
        assert (5, 3, None) == (found.rounds, found.launches, found.low), "rounds of one launch counted as independent"

    def test_processes_that_differ_lastingly_raise_no_more_false_alarms(self):
        # Equals whose every process is up to some percent slower for as long as it lives; rounds hardly scatter.
        generator = np.random.default_rng(7)

        @contextlib.contextmanager
        def opened(order):
            lasting = {name: math.exp(0.02 * generator.standard_t(4)) for name in order}

            def runner(name):
                return lambda inferences: Block(session=0, begin_ns=0, latency_s=tuple(
                    1e-3 * lasting[name] * np.exp(0.002 * generator.normal(size=inferences))))

            yield {name: runner(name) for name in order}

        def alarms(rounds_per_launch):
            found = 0
            for seed in range(200):
                trace = paired.interleave(opened, "ab", rounds=20, inferences=3, seed=seed, rounds_per_launch=rounds_per_launch)
                # Rounds of one launch taken as independent, as if nothing lasted.
                counted = trace if rounds_per_launch == 2 else replace(trace, rounds_per_launch=1)
                found += paired.compare(counted, "a", "b").different
            return found

        assert alarms(2) <= 10
        assert alarms(20) > 100


class TestPlannedPairs:
    def noisy(self, world: World, latency_ns: int, generator):
        def run(inferences):
            latencies = latency_ns * np.exp(0.05 * generator.standard_t(4, inferences))
            begin, world.now = world.now, world.now + int(latencies.sum())
            return Block(session=0, begin_ns=begin, latency_s=tuple(latencies / 1e9))

        return run

    def test_a_pilot_decides_how_many_rounds_follow_and_counts_among_them(self):
        generator, world, told = np.random.default_rng(3), World(0), []
        sessions = {"a": self.noisy(world, 10 * MS, generator), "b": self.noisy(world, 11 * MS, generator)}
        trace, plan = paired.measure_pairs(held(sessions), "ab", [("a", "b")], 0.02, inferences=3,
                                           told=lambda *words: told.append(words))
        assert len(trace.rounds) == plan.rounds > 20
        assert [(20, 20), (21, plan.rounds), (plan.rounds, plan.rounds)] == [told[19], told[20], told[-1]]
        assert (2, plan.rounds / 2) == (trace.rounds_per_launch, paired.log_ratios(trace, "a", "b").size)
        found = paired.compare(trace, "a", "b")
        assert found.low < 1.1 < found.high
        assert found.different

    def test_a_quiet_pilot_is_enough_where_its_rounds_suffice(self):
        runs = {name: session(World(0), MS) for name in "ab"}
        trace, plan = paired.measure_pairs(held(runs), "ab", [("a", "b")], 0.03, inferences=3)
        assert 20 == len(trace.rounds) >= plan.rounds == paired.LEAST_ROUNDS

    def test_a_pilot_is_of_whole_launches(self):
        generator, world = np.random.default_rng(6), World(0)
        runs = {name: self.noisy(world, MS, generator) for name in "ab"}
        trace, plan = paired.measure_pairs(held(runs), "ab", [("a", "b")], 0.02, inferences=3, pilot=13)
        assert (14, 0) == (plan.pilot_rounds, len(trace.rounds) % 2)

    def test_the_pair_that_needs_most_decides(self):
        generator, world = np.random.default_rng(4), World(0)
        runs = {"a": session(world, MS), "b": session(world, MS), "c": self.noisy(world, MS, generator)}
        alone, _ = paired.measure_pairs(held(runs), "abc", [("a", "b")], 0.02, inferences=3)
        both, plan = paired.measure_pairs(held(runs), "abc", [("a", "b"), ("a", "c")], 0.02, inferences=3)
        assert 20 == len(alone.rounds) < plan.rounds == len(both.rounds)

    def test_a_limit_below_what_is_needed_is_kept_and_told(self):
        generator, world = np.random.default_rng(5), World(0)
        runs = {name: self.noisy(world, MS, generator) for name in "ab"}
        trace, plan = paired.measure_pairs(held(runs), "ab", [("a", "b")], 0.001, inferences=3, most=30)
        assert (30, 30, True) == (len(trace.rounds), plan.rounds, plan.capped)

    def test_planning_from_the_pilot_raises_no_more_false_alarms(self):
        generator, alarms = np.random.default_rng(1), 0
        for number in range(300):
            world = World(0)
            sessions = {name: self.noisy(world, 10 * MS, generator) for name in "ab"}
            trace, _ = paired.measure_pairs(held(sessions), "ab", [("a", "b")], 0.03, inferences=3, pilot=16,
                                            seed=10 * number)
            alarms += paired.compare(trace, "a", "b").different
        assert alarms <= 15


class TestInterval:
    @pytest.mark.parametrize("n", [6, 10, 25])
    def test_p_value_is_scipys_exact_one(self, n):
        generator = np.random.default_rng(n)
        for _ in range(20):
            values = generator.normal(0.3, 1.0, n)
            assert scipy_stats.wilcoxon(values, method="exact").pvalue == pytest.approx(paired.signed_rank(values)[3])

    def test_interval_is_where_the_test_does_not_reject(self):
        values = np.random.default_rng(0).standard_t(3, 15)
        _, low, high, _ = paired.signed_rank(values, 0.95)
        for inside, outside in ((low + 1e-6, low - 1e-6), (high - 1e-6, high + 1e-6)):
            assert scipy_stats.wilcoxon(values - inside, method="exact").pvalue > 0.05
            assert scipy_stats.wilcoxon(values - outside, method="exact").pvalue <= 0.05

    def test_estimate_is_the_median_of_all_averages_of_pairs(self):
        values = np.array([1.0, 2.0, 4.0, 9.0])
        averages = [(a + b) / 2 for a, b in itertools.combinations_with_replacement(values, 2)]
        assert np.median(averages) == paired.signed_rank(values)[0]

    def test_too_few_rounds_have_no_interval(self):
        assert (None, None) == paired.signed_rank([1.0, 2.0, 3.0, 4.0])[1:3]

    def test_the_normal_null_distribution_takes_over_smoothly(self):
        n = paired.EXACT_ROUNDS + 1
        total = n * (n + 1) // 2
        at = int(total / 2 - 2 * math.sqrt(total * (2 * n + 1) / 12))
        assert paired._signed_rank_cdf(n)[at] == pytest.approx(paired._signed_rank_cdf(n - 1)[at - n // 2], rel=0.05)

    def test_values_that_are_all_zero_are_no_difference(self):
        assert (0.0, 0.0, 0.0, 1.0) == paired.signed_rank([0.0] * 12)

    def test_ratio_is_candidate_over_baseline(self):
        found = paired.compare(pairs(slow=4 * MS, fast=MS), "slow", "fast")
        assert (0.25, 0.25, 0.25, True) == pytest.approx((found.ratio, found.low, found.high, found.different))

    def test_a_linear_drift_cancels(self):
        # Every block takes a thousandth longer than the one before, for whichever session.
        number = itertools.count()

        def run(inferences):
            return Block(session=0, begin_ns=0, latency_s=(1e-3 * math.exp(1e-3 * next(number)),) * inferences)

        found = paired.compare(paired.interleave(held({"a": run, "b": run}), "ab", rounds=10, inferences=1), "a", "b")
        assert 1.0 == pytest.approx(found.ratio, abs=1e-12)

    def test_unknown_sessions_are_refused(self):
        with pytest.raises(UsageError, match="no session 'c' in these pairs"):
            paired.compare(pairs(a=MS, b=MS), "a", "c")


KINDS = {
    "autocorrelated, heavy-tailed, drifting": {"phi": 0.95, "sd": 0.02, "drift": 0.1},
    "strongly autocorrelated": {"phi": 0.999, "sd": 0.1, "drift": 0.5},
    "random walk": {"phi": 0.5, "sd": 0.01, "drift": 0.0, "walk": 0.003},
    "independent": {"phi": 0.0, "sd": 0.02, "drift": 0.0},
}


def simulated(generator, count: int, rounds: int, inferences: int, *, change: float = 0.0, phi: float, sd: float,
              drift: float, walk: float = 0.0, tail: float = 0.03) -> np.ndarray:
    """Return log ratios (count, rounds) of a machine whose state all sessions share, in blocks A B B A or B A A B."""
    n = rounds * 4 * inferences
    state = lfilter([1], [1, -phi], generator.normal(size=(count, n + 500)), axis=1)[:, 500:] * sd * math.sqrt(1 - phi**2)
    state += np.linspace(0, drift, n) + np.cumsum(generator.normal(size=(count, n)), axis=1) * walk
    state += 0.01 * generator.normal(size=(count, n)) + tail * np.abs(generator.standard_t(2, size=(count, n)))
    blocks = np.log(np.median(np.exp(state).reshape(count, rounds, 4, inferences), axis=-1))
    inner, outer = (blocks[..., 1] + blocks[..., 2]) / 2, (blocks[..., 0] + blocks[..., 3]) / 2
    return np.where(generator.random((count, rounds)) < 0.5, inner - outer, outer - inner) + math.log1p(change)


def different(ratios: np.ndarray) -> bool:
    _, low, high, _ = paired.signed_rank(ratios)
    return low is not None and not low <= 0 <= high


class TestPromises:
    @pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
    def test_equals_are_called_different_in_at_most_one_of_twenty_of_a_thousand_pairs(self, kind):
        rows = simulated(np.random.default_rng(11), 1000, 20, 10, **kind)
        assert sum(different(row) for row in rows) <= 50

    def test_unpaired_runs_one_after_the_other_would_be_called_different_most_of_the_time(self):
        generator = np.random.default_rng(11)
        n = 800
        state = lfilter([1], [1, -0.95], generator.normal(size=(200, n)), axis=1) * 0.02 * math.sqrt(1 - 0.95**2)
        state += np.linspace(0, 0.1, n)
        found = [scipy_stats.mannwhitneyu(row[:n // 2], row[n // 2:]).pvalue < 0.025 for row in state]
        assert np.mean(found) > 0.9

    @pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
    def test_a_true_change_of_3_percent_is_found_with_the_power_that_was_planned(self, kind):
        generator = np.random.default_rng(21)
        # Few inferences per block make the planner work for it.
        noisy = {**kind, "tail": 0.08}
        found, planned = [], []
        for pilot in simulated(generator, 250, 12, 3, **noisy):
            plan = paired.rounds_needed(pilot, 0.03, power=0.8)
            planned.append(plan.rounds)
            found.append(different(simulated(generator, 1, plan.rounds, 3, change=0.03, **noisy)[0]))
        assert np.mean(found) >= 0.8
        assert np.median(planned) < 100

    def test_the_planned_number_is_not_wasteful(self):
        generator = np.random.default_rng(5)
        kind = {"phi": 0.0, "sd": 0.1, "drift": 0.0, "tail": 0.0}
        plans = [paired.rounds_needed(row, 0.03).rounds for row in simulated(generator, 100, 30, 3, **kind)]
        # Normal blocks: a t test of the same power needs (z_a + z_b)^2 s^2/d^2; the signed-rank test 5 % more.
        spread = simulated(generator, 1, 20_000, 3, **kind).std()
        z = scipy_stats.norm.ppf(0.9875) + scipy_stats.norm.ppf(0.8)
        assert 0.8 < np.median(plans) / (z * spread / math.log(1.03))**2 < 2.5

    def test_a_margin_below_the_noise_is_capped_and_says_so(self):
        pilot = np.random.default_rng(0).normal(0, 0.5, 12)
        plan = paired.rounds_needed(pilot, 0.001, most=100)
        assert (100, True) == (plan.rounds, plan.capped)

    def test_a_pilot_without_spread_needs_what_the_interval_needs(self):
        plan = paired.rounds_needed(np.zeros(12), 0.03)
        assert paired.signed_rank(np.full(plan.rounds, 0.03))[1] is not None
        assert (False, 0.0) == (plan.capped, plan.spread)

    @pytest.mark.parametrize(("pilot", "margin"), [([0.0] * 5, 0.03), ([0.0] * 12, 0.0)])
    def test_a_pilot_too_short_or_no_margin_is_refused(self, pilot, margin):
        with pytest.raises(ValueError, match="expected 6 log ratios or more"):
            paired.rounds_needed(pilot, margin)


JOB = PairedJob(artifact="", threads=1, lead=2, settle_s=0.5, warmup_count=4, warmup_s=0.0, warmup_max_s=0.0)


class TestWorkerLoop:
    def test_warms_up_answers_each_order_and_stops(self):
        world, told = World(itertools.chain([9 * MS] * 4, [5 * MS] * 2, [MS, 2 * MS, 3 * MS])), []
        paired_worker.answer(world.infer, JOB, iter(['{"run": 3}\n', '{"stop": true}\n', "never read"]), told.append,
                             clock=world.clock, sleep=world.sleep)
        ready, block = told
        assert (True, 4) == (ready["ready"], ready["warmup"])
        # After a pause of half a second and two inferences that do not count.
        assert (1000 + 36 * MS + 500 * MS + 10 * MS, [0.001, 0.002, 0.003]) == (block["begin_ns"], block["latency_s"])
        assert [0.5] == world.slept

    def test_the_end_of_its_input_ends_it(self):
        world = World(MS)
        paired_worker.answer(world.infer, JOB, iter([]), lambda message: None, clock=world.clock, sleep=world.sleep)
        assert 4 == world.inferences

    @pytest.mark.parametrize("line", ["hello", "{}", '{"run": "many"}', "[1]"])
    def test_what_is_no_order_is_refused(self, line):
        world = World(MS)
        with pytest.raises(CannotMeasure, match="expected a number of inferences to run"):
            paired_worker.answer(world.infer, JOB, iter([line]), lambda message: None, clock=world.clock, sleep=world.sleep)


CHILD = """
import json, sys, time
from pathlib import Path
from edgebench import child, paired_worker
from edgebench.errors import InvalidInput
job = paired_worker.PairedJob(artifact="", threads=1, settle_s=0.0, warmup_count=1, warmup_s=0.0, warmup_max_s=0.0)
def work(path):
    {work}
sys.argv = ["child", "unused"]
child.serve(work)
"""
ANSWER = 'paired_worker.answer(lambda: time.sleep({0}), job, iter(sys.stdin), child.send)'


def command(work: str) -> list[str]:
    return [sys.executable, "-c", CHILD.replace("{work}", work)]


class TestProcesses:
    def test_two_processes_take_turns_and_the_slower_one_is_found(self, tmp_path):
        slow, fast = command(ANSWER.format(0.02)), command("print('a library speaks'); " + ANSWER.format(0.002))
        with paired_worker.process("slow", slow, tmp_path / "slow.log") as a, \
                paired_worker.process("fast", fast, tmp_path / "fast.log") as b:
            trace = paired.interleave(held({"slow": a, "fast": b}), ("slow", "fast"), rounds=16, inferences=3)
        found = paired.compare(trace, "slow", "fast")
        assert found.different
        assert found.ratio < 0.85
        assert Counter({0: 32, 1: 32}) == Counter(block.session for blocks in trace.rounds for block in blocks)
        begins = [block.begin_ns for blocks in trace.rounds for block in blocks]
        assert sorted(begins) == begins, "clocks of two processes do not agree"
        assert [] == list(tmp_path.iterdir()), "empty logs are removed"

    def test_an_error_of_the_process_keeps_its_kind(self, tmp_path):
        with pytest.raises(InvalidInput, match="broken one: no such model") as caught, paired_worker.process(
                "broken one", command("raise InvalidInput('no such model', 'look again')"), tmp_path / "log"):
            pass
        assert "look again" == caught.value.hint

    def test_a_process_that_dies_is_told_with_its_last_words(self, tmp_path):
        dying = command("child.send({'ready': True}); sys.stdin.readline(); sys.stderr.write('out of luck'); sys.stderr.flush(); "
                        "import os; os._exit(7)")
        with pytest.raises(CannotMeasure, match="one ended with status 7: out of luck"), paired_worker.process(
                "one", dying, tmp_path / "log") as run:
            run(1)

    def test_a_process_that_hangs_is_ended(self, tmp_path):
        hanging = command("child.send({'ready': True}); time.sleep(600)")
        with pytest.raises(CannotMeasure, match=r"one did not answer within 0\.3 s"), paired_worker.process(
                "one", hanging, tmp_path / "log", block_limit_s=0.3) as run:
            run(1)

    def test_an_interrupt_ends_all_processes(self, tmp_path):
        pids = []

        def interrupted():
            with paired_worker.process("one", command(ANSWER.format(0.001)), tmp_path / "log") as run:
                run(1)
                pids.append(True)
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            interrupted()
        assert [True] == pids

    def test_the_job_file_is_that_of_the_module(self, tmp_path):
        words = paired_worker.command_of(JOB, tmp_path / "job.json")
        assert (sys.executable, "-m", "edgebench.paired_worker", str(tmp_path / "job.json")) == words
        assert JOB == decode(PairedJob, json.loads((tmp_path / "job.json").read_text()), "job.json")


def test_two_processes_of_one_artifact_are_interleaved_for_real(tmp_path):
    from edgebench import catalog, sources
    from edgebench.export import export_all
    from edgebench.user_files import read_classes
    from tests.models import class_file, onnx_file

    source = sources.open_source(str(onnx_file(tmp_path / "m.onnx")), classes=read_classes(class_file(tmp_path)))
    (_, folder), = export_all(source, [catalog.recipe("ort-fp32")], tmp_path / "artifacts")
    job = PairedJob(artifact=str(folder), threads=1, warmup_count=3, warmup_s=0.0, warmup_max_s=0.0, settle_s=0.0)
    trace = paired.interleave(paired_worker.opener(dict.fromkeys("ab", job), tmp_path / "work"), "ab", rounds=3,
                              inferences=20)
    found = paired.compare(trace, "a", "b")
    assert (3, 2, True) == (found.rounds, found.launches, 0.1 < found.ratio < 10)
    assert {20} == {len(block.latency_s) for blocks in trace.rounds for block in blocks}
