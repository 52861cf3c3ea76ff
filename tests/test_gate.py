"""The gate fails closed: PASS only where a rule was measured and holds, whatever else happened."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from esteira.errors import ConfigError
from esteira.gate import Fact, Facts, Outcome, Rule, Verdict, judge, read_rules

ROOT = Path(__file__).resolve().parents[1]
TABULAR = (ROOT / "families" / "tabular" / "gate.yaml").read_text(encoding="utf-8")


def facts(value: float | None = 0.9, *, n: int = 100, **more: object) -> Facts:
    return Facts.model_validate({"primary": "roc_auc", "metrics": {"roc_auc": Fact(value=value, n=n)}, **more})


def outcome(rule: Rule, measured: Facts) -> Outcome:
    return judge([rule], measured).results[0].outcome


AT_LEAST = Rule(rule="good", metric="primary", op=">=", threshold=0.8, min_n=30)
BASELINE = Rule(rule="beats", metric="primary", baseline_margin=0.0, min_n=30)
CHAMPION = Rule(rule="keeps", metric="primary", champion_tolerance=0.01)


class TestThreshold:
    @pytest.mark.parametrize(
        ("op", "value", "expected"),
        [
            (">=", 0.8, "PASS"),
            (">", 0.8, "FAIL"),
            ("<=", 0.8, "PASS"),
            ("<", 0.8, "FAIL"),
            ("==", 0.8, "PASS"),
            ("!=", 0.8, "FAIL"),
            (">=", 0.79, "FAIL"),
            ("<=", 0.81, "FAIL"),
        ],
    )
    def test_each_threshold_means_its_operator(self, op: str, value: float, expected: str) -> None:
        rule = Rule.model_validate({"rule": "r", "metric": "primary", "op": op, "threshold": 0.8})

        assert expected == outcome(rule, facts(value))

    def test_a_model_of_079_is_refused_with_the_reason(self) -> None:
        verdict = judge(read_rules(TABULAR).select("kryonix"), facts(0.79))
        good = next(result for result in verdict.results if result.rule == "good_enough")

        assert (Outcome.FAIL, 0.79, 0.8) == (good.outcome, good.value, good.bound)
        assert "roc_auc is 0.79 and must be >= 0.8" == good.reason

    def test_the_whole_interval_is_judged_by_its_worse_end(self) -> None:
        rule = Rule(rule="sure", metric="primary", op=">=", threshold=0.8, whole_interval=True)

        def at(low: float, high: float) -> Outcome:
            measured = Facts(primary="m", metrics={"m": Fact(value=0.9, n=9, interval=(low, high))})
            return outcome(rule, measured)

        assert Outcome.FAIL is at(0.75, 0.95)
        assert Outcome.PASS is at(0.81, 0.95)
        assert Outcome.NO_DATA is outcome(rule, facts(0.9)), "without an interval there is no whole interval"


class TestNoData:
    @pytest.mark.parametrize(
        ("rule", "measured"),
        [
            pytest.param(AT_LEAST, Facts(primary="roc_auc"), id="not-measured"),
            pytest.param(AT_LEAST, facts(None), id="undefined"),
            pytest.param(AT_LEAST, facts(0.99, n=29), id="too-few-rows"),
            pytest.param(BASELINE, facts(0.99), id="not-compared-with-the-baseline"),
            pytest.param(
                BASELINE,
                facts(against_baseline={"roc_auc": Fact(value=0.4, n=100)}),
                id="a-difference-without-interval",
            ),
            pytest.param(CHAMPION, facts(has_champion=True), id="a-champion-that-could-not-answer"),
            pytest.param(AT_LEAST.model_copy(update={"slice": "sex=F"}), facts(), id="no-such-slice"),
            pytest.param(AT_LEAST.model_copy(update={"slice": "*"}), facts(), id="no-slices"),
        ],
    )
    def test_what_was_not_measured_holds(self, rule: Rule, measured: Facts) -> None:
        """NO_DATA is never PASS, and says why."""
        verdict = judge([rule], measured)

        assert Outcome.NO_DATA is verdict.results[0].outcome
        assert verdict.results[0].reason
        assert not verdict.released

    def test_no_rules_release_nothing(self) -> None:
        verdict = judge([], facts())

        assert not verdict.released
        assert "held" == verdict.to_json()["verdict"]
        assert "no rule" in verdict.summary()

    def test_rules_of_other_moments_do_not_count(self) -> None:
        canary = AT_LEAST.model_copy(update={"moment": "canary"})

        assert not judge([canary], facts()).released
        assert judge([canary], facts(), "canary").released

    def test_a_fact_cannot_be_infinite_or_nan(self) -> None:
        for bad in (float("inf"), float("nan")):
            with pytest.raises(ValidationError):
                Fact(value=bad, n=3)


class TestComparisons:
    @pytest.mark.parametrize(
        ("interval", "expected"),
        [((0.01, 0.2), "PASS"), ((0.0, 0.2), "FAIL"), ((-0.01, 0.2), "FAIL")],
        ids=["wholly-above", "touching", "across"],
    )
    def test_the_baseline_is_beaten_by_the_whole_interval(self, interval: tuple[float, float], expected: str) -> None:
        measured = facts(against_baseline={"roc_auc": Fact(value=0.1, n=100, interval=interval)})

        assert expected == outcome(BASELINE, measured)

    @pytest.mark.parametrize(
        ("difference", "expected"), [(0.05, "PASS"), (-0.01, "PASS"), (-0.0101, "FAIL"), (-0.3, "FAIL")]
    )
    def test_a_loss_beyond_the_tolerance_is_held(self, difference: float, expected: str) -> None:
        measured = facts(has_champion=True, against_champion={"roc_auc": Fact(value=difference, n=100)})

        assert expected == outcome(CHAMPION, measured)

    def test_the_first_model_of_a_line_has_no_champion_to_lose_to(self) -> None:
        result = judge([CHAMPION], facts()).results[0]

        assert Outcome.PASS is result.outcome
        assert "no champion yet" in result.reason


class TestSlices:
    def slices(self, **values: tuple[float, int]) -> Facts:
        cut = {name: {"roc_auc": Fact(value=value, n=n)} for name, (value, n) in values.items()}
        return facts(slices=cut)

    def test_every_slice_must_hold_and_the_worst_is_named(self) -> None:
        rule = AT_LEAST.model_copy(update={"slice": "*"})
        result = judge([rule], self.slices(young=(0.9, 50), old=(0.7, 40), middle=(0.75, 40))).results[0]

        assert (Outcome.FAIL, 0.7, 40) == (result.outcome, result.value, result.n)
        assert "worst is old" in result.reason

    def test_small_slices_are_not_judged(self) -> None:
        rule = AT_LEAST.model_copy(update={"slice": "*"})

        assert Outcome.PASS is outcome(rule, self.slices(young=(0.9, 50), tiny=(0.1, 3)))

    def test_one_slice_can_be_named(self) -> None:
        rule = AT_LEAST.model_copy(update={"slice": "old"})

        assert Outcome.FAIL is outcome(rule, self.slices(young=(0.9, 50), old=(0.7, 40)))


finite = st.floats(-10, 10, allow_nan=False)


class TestMonotone:
    """A better model is never held where a worse one is released."""

    @given(worse=finite, gain=st.floats(0, 5), threshold=finite, n=st.integers(0, 100), more=st.integers(0, 100))
    def test_by_threshold(self, worse: float, gain: float, threshold: float, n: int, more: int) -> None:
        rule = Rule(rule="r", metric="m", op=">=", threshold=threshold, min_n=30)

        def passes(value: float, rows: int) -> bool:
            return judge([rule], Facts(primary="m", metrics={"m": Fact(value=value, n=rows)})).released

        assert passes(worse + gain, n + more) >= passes(worse, n)

    @given(worse=finite, gain=st.floats(0, 5), width=st.floats(0, 3), narrower=st.floats(0, 3))
    def test_by_comparison(self, worse: float, gain: float, width: float, narrower: float) -> None:
        def passes(value: float, half: float) -> bool:
            fact = Fact(value=value, n=50, interval=(value - half, value + half))
            measured = facts(has_champion=True, against_champion={"roc_auc": fact}, against_baseline={"roc_auc": fact})
            return judge([BASELINE, CHAMPION], measured).released

        assert passes(worse + gain, max(0.0, width - narrower)) >= passes(worse, width)

    @given(st.lists(st.sampled_from(list(Outcome)), min_size=1, max_size=6))
    def test_released_means_that_every_rule_passed(self, outcomes: list[Outcome]) -> None:
        template = judge([AT_LEAST], facts()).results[0]
        results = tuple(template.model_copy(update={"outcome": one}) for one in outcomes)
        verdict = Verdict(moment="evaluation", results=results)

        assert verdict.released is (set(outcomes) == {Outcome.PASS})


class TestFile:
    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("rules: [", "must be YAML"),
            ("rules: [{rule: a, metric: m, threshold: 1}]\nrules: []", "'rules' is there already"),
            ("rules: [{rule: a, metric: m}]", "takes one of threshold"),
            ("rules: [{rule: a, metric: m, threshold: 1, champion_tolerance: 1}]", "takes one of threshold"),
            ("rules: [{rule: a, metric: m, threshold: 1, limit: 2}]", "limit"),
            ("rules: [{rule: a, metric: m, threshold: .inf}]", "finite"),
            ("rules: [{rule: a, metric: m, threshold: 1, op: '=>'}]", "op"),
            ("rules: [{rule: a, metric: m, baseline_margin: 0, op: '<'}]", "its own direction"),
            ("rules: [{rule: a, metric: m, threshold: 1}, {rule: a, metric: k, threshold: 2}]", "'a' twice"),
            ("rules: [{rule: a, metric: m, threshold: 1, moment: later}]", "moment"),
            ("- rule", "dictionary"),
        ],
        ids=[
            "no-yaml",
            "rules-twice",
            "no-bound",
            "two-bounds",
            "unknown-key",
            "infinite",
            "operator",
            "direction",
            "twice",
            "moment",
            "list",
        ],
    )
    def test_a_bad_file_is_refused_with_what_is_wrong(self, text: str, said: str) -> None:
        with pytest.raises(ConfigError, match=said) as caught:
            read_rules(text, where="families/x/gate.yaml")

        assert ("bad_gate", "families/x/gate.yaml") == (caught.value.code, caught.value.where)

    def test_an_unknown_profile_is_refused_with_those_that_are_known(self) -> None:
        with pytest.raises(ConfigError, match="kryonix"):
            read_rules(TABULAR).select("kryonics")

    def test_a_later_rule_replaces_its_namesake(self) -> None:
        stricter = Rule(rule="served_in_time", metric="latency_p95_ms", op="<=", threshold=5)
        chosen = read_rules(TABULAR).select(extra=[stricter])

        assert [5.0] == [rule.threshold for rule in chosen if rule.rule == "served_in_time"]
        assert len(read_rules(TABULAR).select()) == len(chosen)

    def test_the_default_gate_of_tables_says_what_the_design_says(self) -> None:
        """Better than the constant baseline by the whole interval, and not worse than the champion by more than 0.01."""
        rules = {rule.rule: rule for rule in read_rules(TABULAR).select()}

        assert 0 == rules["better_than_baseline"].baseline_margin
        assert 0.01 == rules["not_worse_than_champion"].champion_tolerance
        assert 1e-6 == rules["export_answers_as_native"].threshold
        assert all(rule.why for rule in rules.values())

    def test_the_verdict_is_json_with_value_bound_size_and_interval(self) -> None:
        measured = facts(against_baseline={"roc_auc": Fact(value=0.1, n=100, interval=(0.05, 0.15))})
        document = json.loads(json.dumps(judge([BASELINE, AT_LEAST], measured).to_json()))

        assert "pass" == document["verdict"]
        expected = {"rule": "beats", "outcome": "PASS", "value": 0.1, "op": ">", "bound": 0.0, "n": 100}
        assert expected.items() <= document["rules"][0].items()
        assert [0.05, 0.15] == document["rules"][0]["interval"]

    def test_the_summary_names_failures_before_missing_data(self) -> None:
        verdict = judge([BASELINE, AT_LEAST], facts(0.1))

        assert verdict.summary().startswith("good FAIL")
