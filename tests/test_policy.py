"""Policies: strict decoding with lines, limits that make no sense, names that do not exist, and words."""

from __future__ import annotations

import pytest

from edgebench import evidence, metric_names, policy, rule_words
from edgebench.catalog import content
from edgebench.errors import InvalidInput, UsageError
from edgebench.policy import Rule
from tests import builders

HEAD = 'id = "p"\ntitle = "t"\npurpose = "why"\n'


def parse(rules: str, head: str = HEAD) -> policy.Policy:
    return policy.parse(head + rules, "p.toml")


def rule(body: str, id_: str = "r") -> str:
    return f'[[rules]]\nid = "{id_}"\n{body}\n'


class TestDecoding:
    def test_rules_know_their_lines_and_properties(self):
        found = parse(rule('metric = "ece15_ew"\nmax = 0.07') + "\n# comment\n" + rule(
            'metric = "latency_p99"\nmax = 0.033', "tail"))
        assert [(4, "calibration"), (10, "performance")] == [(one.line, one.of) for one in found.rules]
        assert ("max", 0.033, True) == (found.rules[1].kind, found.rules[1].limit, found.rules[1].upper)

    def test_lines_are_right_after_arrays_and_texts_that_look_like_rules(self):
        text = HEAD.replace('"why"', '"""\n[[rules]]\nid = "no"\n"""') + rule('metric = "nll"\nmax = 1.0').replace(
            "[[rules]]", '[families]\nq = "holm"\n[[rules]]')
        assert (9,) == tuple(one.line for one in policy.parse(text, "p.toml").rules)

    def test_an_inline_array_of_rules_is_found_where_it_begins(self):
        text = 'rules = [\n {id = "a", metric = "nll", max = 1.0},\n {id = "b", metric = "nll", maxi = 1.0}]\n' + HEAD
        with pytest.raises(InvalidInput, match=r"^p\.toml:1: unknown key 'maxi'"):
            policy.parse(text, "p.toml")

    def test_a_mistyped_key_is_refused_at_its_line_with_the_nearest(self):
        with pytest.raises(InvalidInput, match=r"^p\.toml:7: unknown key 'max_increse_absolute'; did you mean "
                                               r"'max_increase_absolute'\?$"):
            parse(rule('metric = "nll"\nmax_increse_absolute = 0.1'))

    def test_a_mistyped_key_of_the_policy_is_refused_at_its_line(self):
        with pytest.raises(InvalidInput, match=r"^p\.toml:4: unknown key 'confidance'; did you mean 'confidence'\?$"):
            parse(rule('metric = "nll"\nmax = 1.0'), HEAD + "confidance = 0.9\n")

    @pytest.mark.parametrize("key", ["line = 3", 'path = "x"'])
    def test_what_is_filled_in_cannot_be_written(self, key):
        with pytest.raises(InvalidInput, match="unknown key"):
            parse(rule(f'metric = "nll"\nmax = 1.0\n{key}'))

    def test_two_rules_with_one_id_are_refused_with_both_lines(self):
        with pytest.raises(InvalidInput, match=r"^p\.toml:8: rule id 'r' is taken by the rule in line 4$"):
            parse(rule('metric = "nll"\nmax = 1.0') + rule('metric = "nll"\nmax = 2.0'))

    @pytest.mark.parametrize(("text", "words"), [
        ("rules = [", r"p\.toml is not valid TOML: "),
        ("", r"expected at least one rule, got 0"),
        ("rules = 3", r"expected rules as \[\[rules\]\] tables, got int"),
        (rule('metric = "nll"'), r"p\.toml:4: rule 'r': expected exactly one limit of .* got \[\]"),
        (rule('metric = "nll"\nmax = 1.0\nmin = 0.1'), r"exactly one limit .* got \['max', 'min'\]"),
        (rule('metric = "nll"\nmax = "1"'), r"p\.toml:4: rule 'r'\.max: expected `float \| null`, got `str`"),
        (rule('metric = "nll"\nmax = nan'), r"expected a finite max, got nan"),
        (rule('metric = "nll"\nmax_increase_absolute = 0.1'), r"expected against = \"reference\" or \"baseline\""),
        (rule('metric = "nll"\nmax = 1.0\nagainst = "reference"'), r"exactly beside an increase or decrease"),
        (rule('metric = "nll"\nmax = 1.0\nconfidence = 95'), r"expected confidence between 0\.5 and 1, got 95"),
        (rule('metric = "nll"\nmax = 1.0\nseverity = "fatal"'), r"nvalid enum value 'fatal'"),
        (rule('metric = "nll"\nmax = 1.0', "Has Space"), r"expected an id of a-z"),
        ('[[rules]]\nmetric = "nll"\nmax = 1.0', r"p\.toml:4: rule 1: .*missing required field `id`"),
    ])
    def test_what_is_wrong_is_one_clear_line(self, text, words):
        with pytest.raises(InvalidInput, match=words) as caught:
            parse(text)
        assert "\n" not in caught.value.message

    def test_a_missing_file_and_an_unknown_policy_say_so(self, tmp_path):
        with pytest.raises(InvalidInput, match="cannot read"):
            policy.find(str(tmp_path / "none.toml"))
        with pytest.raises(UsageError, match="unknown policy 'relase'; did you mean 'release'"):
            policy.find("relase")


class TestImpossibleLimits:
    @pytest.mark.parametrize(("body", "why"), [
        ('metric = "negative_flips"\nof = "accuracy"\nmax = 2.0', "nothing could break it"),
        ('metric = "negative_flips"\nof = "accuracy"\nmax = -0.1', "nothing could keep it"),
        ('metric = "negative_flips"\nof = "accuracy"\nmax = 0.0', "exactly at the end of its range"),
        ('metric = "accuracy_top1"\nof = "accuracy"\nmin = 0', "nothing could break it"),
        ('metric = "accuracy_top1"\nof = "accuracy"\nmin = 76.1', "nothing could keep it"),
        ('metric = "latency_p50"\nmax = -0.001', "nothing could keep it"),
        ('metric = "accuracy_top1"\nof = "accuracy"\nagainst = "reference"\nmax_decrease_absolute = 1.0', "nothing could break it"),
        ('metric = "accuracy_top1"\nof = "accuracy"\nagainst = "reference"\nmax_decrease_absolute = -0.01', "a margin is 0 or more"),
        ('metric = "accuracy_top1"\nof = "accuracy"\nagainst = "reference"\nmax_decrease_absolute = 0', "with a margin of 0"),
        ('metric = "latency_p50"\nagainst = "baseline"\nmax_decrease_relative = 1.0', "nothing can fall by more than all"),
    ])
    def test_are_refused_with_the_reason(self, body, why):
        with pytest.raises(InvalidInput, match=rf"p\.toml:4: rule 'r': impossible limit .*{why}"):
            parse(rule(body))

    @pytest.mark.parametrize("body", [
        'metric = "artifact_size"\nagainst = "baseline"\nmax_increase_relative = 0.0',
        'metric = "precision_achieved"\nmin = 1.0', 'metric = "signed_gap"\nmin = -0.05',
        'metric = "ece15_ew_change"\nof = "calibration"\nmin = -0.01',
        'metric = "latency_p50"\nagainst = "reference"\nmax_increase_relative = 1.5'])
    def test_unusual_but_sensible_ones_are_taken(self, body):
        assert parse(rule(body)).rules

    def test_a_fact_of_the_run_has_nothing_to_be_against(self):
        with pytest.raises(InvalidInput, match="a fact of the run"):
            parse(rule('metric = "precision_share"\nagainst = "reference"\nmax_decrease_absolute = 0.1'))


class TestNames:
    @pytest.mark.parametrize(("body", "words"), [
        ('metric = "acuracy_top1"\nmin = 0.7', "unknown metric 'acuracy_top1'; did you mean 'accuracy_top1'"),
        ('metric = "latency_99"\nmax = 0.1', "unknown metric 'latency_99'; did you mean 'latency_p99'"),
        ('metric = "ece15_ew"\nof = "calibraton"\nmax = 0.1', "unknown property 'calibraton'; did you mean 'calibration'"),
        ('metric = "ece15_ew"\nof = "accuracy"\nmax = 0.1', "unknown metric 'ece15_ew' of property 'accuracy'"),
        ('metric = "accuracy"\nmin = 0.1', "metric 'accuracy' is of several properties: robustness, synthetic, invariance"),
        ('metric = "nll"\nmax = 1.0\nfamily = "qualty"', "unknown family 'qualty'; did you mean 'quality'"),
    ])
    def test_that_do_not_exist_are_refused_with_the_nearest(self, body, words):
        with pytest.raises(UsageError, match=rf"^p\.toml:\d+: rule 'r': {words}"):
            parse('[families]\nquality = "holm"\n' + rule(body))

    def test_levels_and_changes_belong_to_their_metric(self):
        assert "robustness" == metric_names.home("accuracy@fog:3", "robustness")
        assert "calibration" == metric_names.home("ece15_ew_change", None)
        assert "ece15_ew_scaled" == metric_names.plain("ece15_ew_scaled_change")
        assert "factor_error_pose" == metric_names.plain("factor_error_change_pose")
        assert "accuracy@fog" == metric_names.plain("accuracy_change@fog")

    def test_scores_of_the_runs_at_hand_are_known_too(self):
        text = HEAD + rule('metric = "my_score"\nof = "my-property"\nmax = 1.0')
        with pytest.raises(UsageError):
            policy.parse(text, "p.toml")
        assert "my-property" == policy.parse(text, "p.toml", {("my-property", "my_score")}).rules[0].of

    def test_table_knows_every_score_that_accuracy_calibration_and_timing_give_with_its_unit(self):
        runs = builders.inspection_runs(120, 400)
        assert {pair for pair in evidence.known(runs) if not metric_names.unit(*pair)} == set()
        for run in runs[:2]:
            for of, scores in (("performance", run.performance), *((one.property, (*one.scores, *one.reference_scores))
                                                                   for one in run.evaluations)):
                for score in scores:
                    assert score.unit == metric_names.unit(of, score.name), score.name


class TestShipped:
    def test_every_policy_decodes_and_is_called_like_its_file(self):
        files = sorted((content("reports") / "policies").glob("*.toml"))
        assert ["latency-budget", "release", "survives-quantization"] == [path.stem for path in files]
        for path in files:
            assert path.stem == policy.load(path).id

    def test_every_rule_says_why(self):
        for one in policy.shipped().values():
            assert all(rule.because for rule in one.rules)

    def test_are_explained_rule_by_rule_with_the_images_they_need(self):
        for one in policy.shipped().values():
            lines = "\n".join(rule_words.explain(one))
            for rule in one.rules:
                assert f"- {rule.id}: " in lines
        words = "\n".join(rule_words.explain(policy.find("survives-quantization")))
        assert "Top-1 falls by at most 0.5 points against the FP32 reference" in words
        assert "4,947 where 2%, 9,893 where 4%, 22,258 where 9% of them change between right and wrong" in words
        assert "corrected by holm, which keeps the chance of any false failure among them below 0.05" in words


class TestWords:
    @pytest.mark.parametrize(("body", "words"), [
        ({"metric": "latency_p99", "of": "performance", "max": 0.0333}, "Latency p99 is at most 33.3 ms"),
        ({"metric": "throughput_offline", "of": "performance", "min": 100.0}, "Offline throughput is at least 100 img/s"),
        ({"metric": "ece15_ew", "of": "calibration", "against": "reference", "max_increase_absolute": 0.015},
         "ECE (calibration) rises by at most 1.5 points against the FP32 reference"),
        ({"metric": "latency_p50", "of": "performance", "against": "baseline", "max_increase_relative": 0.05},
         "Latency p50 rises by at most 5 % of its value against the baseline"),
        ({"metric": "accuracy_top1", "of": "accuracy", "min": 0.75, "dataset": "imagenet*"},
         "Top-1, data set imagenet* is at least 75 %"),
    ])
    def test_say_what_is_demanded(self, body, words):
        assert words == rule_words.demand(Rule(id="r", **body))

    @pytest.mark.parametrize(("value", "unit", "change", "words"), [
        (0.0167, "s", False, "16.7 ms"), (-0.0125, "fraction", True, "−1.25 points"), (0.01, "fraction", True, "+1 point"),
        (3_710_000, "bytes", False, "3.71 MB"), (0.5, "J", False, "500 mJ"), (0.0, "fraction", False, "0 %")])
    def test_quantities_are_in_units_that_people_read(self, value, unit, change, words):
        assert words == rule_words.quantity(value, unit, change=change)
