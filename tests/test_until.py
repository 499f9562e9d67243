"""Rules followed image by image: what is decided when, and that looking often costs no more errors than declared."""

from __future__ import annotations

import numpy as np
import pytest

from edgebench import evidence, metrics, policy, sequential, stats, until
from edgebench.properties import Pass

HEAD = 'id = "p"\ntitle = "t"\npurpose = "why"\n'
N = 3000


def rules(*bodies: str, head: str = "") -> policy.Policy:
    return policy.parse(HEAD + head + "".join(f'[[rules]]\nid = "r{k}"\n{one}\n' for k, one in enumerate(bodies)), "p.toml")


def outcomes(seed: int, turned: float = 0.0) -> metrics.Outcomes:
    generator = np.random.default_rng(seed)
    logits = generator.normal(0, 1, (N, 10)).astype(np.float32)
    targets = np.arange(N) % 10
    logits[np.arange(N), targets] += 4
    other = np.random.default_rng(seed + 1).random(N) < turned
    logits[other] = np.roll(logits[other], 1, axis=1)
    return metrics.outcomes(logits, targets)


ACCURACY = 'metric = "accuracy_top1"\nof = "accuracy"\nagainst = "reference"\nmax_decrease_absolute = 0.01'
FLIPS = 'metric = "negative_flips"\nof = "accuracy"\nmax = 0.03'
BRIER = 'metric = "brier"\nagainst = "reference"\nmax_increase_absolute = 0.2'
LEAST = 'metric = "accuracy_top1"\nof = "accuracy"\nmin = 0.5'
ECE = 'metric = "ece15_ew"\nagainst = "reference"\nmax_increase_absolute = 0.02'
LOOKS = range(50, N + 1, 50)


class TestFollowing:
    def test_an_equal_variant_passes_early_and_a_broken_one_fails_early(self):
        all_rules = rules(ACCURACY, FLIPS, BRIER, LEAST)
        same = until.follow(all_rules, outcomes(0), outcomes(0), LOOKS)
        assert ["pass"] * 4 == [one.decision for one in same]
        assert same[0].decided_at < 1000
        worse = until.follow(all_rules, outcomes(0), outcomes(0, 0.2), LOOKS)
        assert ["fail", "fail"] == [one.decision for one in worse[:2]]
        assert "pass" == worse[3].decision

    def test_paths_are_those_of_the_plain_functions(self):
        before, after = outcomes(3), outcomes(3, 0.02)
        found = until.follow(rules(ACCURACY, FLIPS), before, after, LOOKS)
        assert sequential.difference_path(before.correct, after.correct, LOOKS, 0.01) == found[0].steps
        assert sequential.rate_path(before.correct & ~after.correct, LOOKS, 0.03) == found[1].steps

    def test_a_share_that_is_to_be_large_is_followed_by_what_is_wrong(self):
        (found,) = until.follow(rules(LEAST), None, outcomes(0), LOOKS)
        last = found.steps[-1]
        assert outcomes(0).correct.mean() == pytest.approx(last.value)
        assert last.low <= last.value <= last.high

    def test_without_a_reference_only_what_needs_none_is_followed(self):
        assert ["r1"] == [one.rule for one in until.follow(rules(ACCURACY, LEAST, FLIPS), None, outcomes(0), LOOKS)]

    def test_what_has_no_anytime_valid_evidence_is_left_to_checkpoints(self):
        all_rules = rules(ECE, ACCURACY, 'metric = "latency_p50"\nmax = 1.0')
        assert [False, True, False] == [until.followable(one) for one in all_rules.rules]

    def test_failures_are_corrected_within_their_family(self):
        body = FLIPS + '\nfamily = "q"'
        before, after = outcomes(3), outcomes(3, 0.05)
        alone = until.follow(rules(FLIPS), before, after, LOOKS)[0].steps
        among = until.follow(rules(body, body, ECE + '\nfamily = "q"', head='[families]\nq = "holm"\n'), before, after, LOOKS)
        for plain, one in zip(alone, among[0].steps, strict=True):
            assert min(1.0, 3 * plain.p_beyond) == pytest.approx(one.p_beyond)
            assert plain.p_within == one.p_within


class TestCheckpoints:
    def test_the_error_rate_is_split_among_the_looks(self):
        all_rules = rules(ECE)
        found = evidence.from_ends(evidence.Ends(0.0, -0.012, 0.012), 0.95, where="", unit="fraction", n=500,
                                   sampled="images", method="m")
        step = until.at_checkpoint(all_rules.rules[0], found, all_rules, 4)
        assert 4 * found.tails(0.02).below == pytest.approx(step.p_within)
        z = stats.normal_quantile(1 - 0.05 / 4)
        assert 0.012 * z / 1.959964 == pytest.approx(step.high, rel=1e-5)

    def test_a_rule_stays_as_sure_as_it_was_and_is_open_until_it_is_sure_enough(self):
        def known(n: int, low: float, high: float) -> dict[str, evidence.Evidence]:
            found = evidence.from_ends(evidence.Ends((low + high) / 2, low, high), 0.95, where="", unit="fraction", n=n,
                                       sampled="images", method="m")
            return {"r0": found}

        following = until.Following(rules(ECE, ACCURACY), rules(ECE).rules)
        for n, found in ((200, {}), (300, known(300, -0.02, 0.019)), (400, known(400, -0.05, 0.05))):
            following.look(None, outcomes(0), n, found)
            assert (("r0",), 1) == (following.open, len(following.at_checkpoints))
        (path,) = following.paths()
        assert [300, 400] == [step.n for step in path.steps]
        assert path.steps[0].p_within == path.steps[1].p_within < 0.2
        following.look(None, outcomes(0), 500, known(500, -0.001, 0.001))
        assert ((), ()) == (following.open, following.at_checkpoints)

    def test_a_mean_in_a_family_can_fail_while_the_others_show_nothing(self):
        family = rules(BRIER.replace("0.2", "0.02") + '\nfamily = "q"', ECE + '\nfamily = "q"', head='[families]\nq = "holm"\n')
        found = until.follow(family, outcomes(0), outcomes(0, 0.4), LOOKS)
        assert ["fail"] == [one.decision for one in found]

    def test_what_is_exact_needs_no_share_of_the_error_rate(self):
        policy = rules('metric = "certain_images"\nof = "calibration"\nmax = 0.0')
        for value, decided in ((0.0, "pass"), (3.0, "fail")):
            step = until.at_checkpoint(policy.rules[0], evidence.exact(value, "images", "count"), policy)
            assert decided == sequential.decision((step,), 0.05)

    def test_a_rule_without_a_family_shares_its_error_rate_over_its_passes(self):
        for places, factor in ((1, 1), (3, 3)):
            following = until.Following(rules(FLIPS), rules(FLIPS).rules, places=places)
            following.look(outcomes(3), outcomes(3, 0.05), 1000, {})
            alone = until.follow(rules(FLIPS), outcomes(3), outcomes(3, 0.05), (1000,))[0].steps[0]
            assert min(1.0, factor * alone.p_beyond) == pytest.approx(following.paths()[0].steps[0].p_beyond)

    def test_each_pass_counts_in_the_corrections_of_a_family(self):
        family = rules(FLIPS + '\nfamily = "q"', head='[families]\nq = "holm"\n')
        p_values = []
        for places in (1, 3):
            following = until.Following(family, family.rules, places=places)
            following.look(outcomes(3), outcomes(3, 0.05), 1000, {})
            p_values.append(following.paths()[0].steps[0].p_beyond)
        assert 3 * p_values[0] == pytest.approx(p_values[1])


class TestConcerned:
    def test_are_rules_on_single_passes_of_what_is_evaluated(self):
        key = Pass("mine")
        all_rules = rules(ACCURACY, ACCURACY.replace("reference", "baseline"), ECE, FLIPS + '\ndataset = "other"',
                          FLIPS + '\ndataset = "mi*"', 'metric = "mean_corruption_accuracy"\nof = "robustness"\nmin = 0.5')
        assert ["r0", "r2", "r4"] == [one.id for one in until.concerned(all_rules, key, ("accuracy", "calibration", "robustness"))]
        assert ["r2"] == [one.id for one in until.concerned(all_rules, key, ("calibration",))]


class TestOrder:
    def test_is_a_seeded_permutation(self):
        assert list(range(50)) == sorted(until.image_order(50, 1))
        assert until.image_order(50, 1).tolist() == until.image_order(50, 1).tolist() != until.image_order(50, 2).tolist()


class TestErrorRates:
    def test_a_gate_of_two_rules_rarely_fails_a_variant_within_its_limits_though_always_looked_at(self):
        generator, alarms, gates = np.random.default_rng(5), 0, 150
        both = rules(ACCURACY + '\nfamily = "q"', FLIPS + '\nfamily = "q"', head='[families]\nq = "holm"\n')
        base = outcomes(0)
        for _ in range(gates):
            # 2.9 % turn wrong, 1.9 % right: both limits are just kept.
            was = generator.random(N) < 0.7
            turn = generator.random(N)
            now = np.where(was, turn > 0.029 / 0.7, turn < 0.019 / 0.3)
            one, two = (metrics.Outcomes(classes=10, **{name: getattr(base, name) for name in metrics._PER_IMAGE} | {
                "correct": right}) for right in (was, now))
            alarms += any(path.decision == "fail" for path in until.follow(both, one, two, range(250, N + 1, 250)))
        assert alarms / gates <= 0.05 + 3.1 * (0.05 * 0.95 / gates) ** 0.5
