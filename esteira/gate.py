"""The gate: declared rules over measured facts give a verdict. Pure; it measures nothing and writes nothing.

One language for four moments (validation, evaluation, canary, monitoring). A rule comes out as PASS, FAIL or NO_DATA,
and NO_DATA is never PASS: what could not be measured holds the release. "The gate said no" is an outcome, not a crash.
"""

import math
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from esteira import strict_yaml
from esteira.errors import ConfigError

Moment = Literal["validation", "evaluation", "canary", "monitoring"]
Op = Literal[">=", ">", "<=", "<", "==", "!="]
_OPS: Mapping[str, Any] = {
    ">=": lambda a, b: a >= b,
    ">": lambda a, b: a > b,
    "<=": lambda a, b: a <= b,
    "<": lambda a, b: a < b,
    "==": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
}
EVERY_SLICE = "*"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Outcome(StrEnum):
    """What a rule came to."""

    PASS = "PASS"
    FAIL = "FAIL"
    NO_DATA = "NO_DATA"


class Rule(_Frozen):
    """One rule. Exactly one of `threshold`, `baseline_margin`, `champion_tolerance` says what it is held against.

    Attributes:
        rule: the rule's name; unique at its moment.
        metric: name of a fact; `primary` is the family's first metric.
        op: how the metric is compared with `threshold`; the two comparisons know their own direction.
        threshold: an absolute bound, in the metric's unit.
        baseline_margin: the whole interval of (model - baseline), counted so that more is better, must lie above this.
        champion_tolerance: the model may be worse than the line's champion by at most this, in the metric's unit.
        min_n: fewer rows (or requests) than this is NO_DATA.
        slice: `COLUMN=VALUE` of one slice; `*` for every slice that has `min_n` rows.
        whole_interval: a threshold must hold for the interval's worse end, not only for the value.
        why: the reason for the rule, for people.
    """

    rule: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    metric: str
    op: Op = ">="
    threshold: float | None = None
    baseline_margin: float | None = None
    champion_tolerance: float | None = Field(default=None, ge=0)
    min_n: int = Field(default=1, ge=0)
    slice: str | None = None
    moment: Moment = "evaluation"
    whole_interval: bool = False
    why: str = ""

    @model_validator(mode="after")
    def _one_bound(self) -> Self:
        given = [
            name for name in ("threshold", "baseline_margin", "champion_tolerance") if getattr(self, name) is not None
        ]
        if len(given) != 1:
            raise ValueError(
                f"rule {self.rule!r} takes one of threshold, baseline_margin, champion_tolerance, but has {given}"
            )
        if self.threshold is None and "op" in self.model_fields_set:
            raise ValueError(f"rule {self.rule!r}: op belongs to threshold; {given[0]} knows its own direction")
        if self.slice is not None and self.threshold is None:
            raise ValueError(f"rule {self.rule!r}: a slice is held against a threshold, not {given[0]}")
        return self


class Fact(_Frozen):
    """One measured number; `value` None means undefined or not measured, with the reason.

    Attributes:
        n: rows, requests or pairs it was measured on.
        interval: low and high end of its 95 % interval.
        higher_is_better: the direction, which says which end of the interval is the worse one.
    """

    value: float | None = None
    n: int | None = None
    interval: tuple[float, float] | None = None
    higher_is_better: bool = True
    reason: str = ""


class Facts(_Frozen):
    """What was measured.

    Attributes:
        primary: name of the family's first metric.
        metrics: metric name -> fact.
        against_baseline, against_champion: metric -> paired difference, counted so that more is better for the model.
        has_champion: False when the line has no champion yet, so that there is nothing to be worse than.
        slices: slice name -> metric name -> fact.
    """

    primary: str
    metrics: Mapping[str, Fact] = Field(default_factory=dict)
    against_baseline: Mapping[str, Fact] = Field(default_factory=dict)
    against_champion: Mapping[str, Fact] = Field(default_factory=dict)
    has_champion: bool = False
    slices: Mapping[str, Mapping[str, Fact]] = Field(default_factory=dict)


class Result(_Frozen):
    """One rule's outcome, with what it was decided on: `value op bound` had to hold.

    For a comparison, `value` is the difference to the other model (more is better) and `bound` the least it may be.
    """

    rule: str
    outcome: Outcome
    metric: str
    value: float | None
    op: Op
    bound: float
    n: int | None
    interval: tuple[float, float] | None
    reason: str


class Verdict(_Frozen):
    """All rules' outcomes at one moment. Released only if there is a rule and every rule passed."""

    moment: Moment
    results: tuple[Result, ...]

    @property
    def released(self) -> bool:
        """Whether what was judged may go on."""
        return bool(self.results) and all(result.outcome is Outcome.PASS for result in self.results)

    @property
    def held_by(self) -> tuple[Result, ...]:
        """The rules that hold it, failures before missing data."""
        bad = [result for result in self.results if result.outcome is not Outcome.PASS]
        return tuple(sorted(bad, key=lambda result: result.outcome is Outcome.NO_DATA))

    def summary(self) -> str:
        """One sentence for an error message or a log line."""
        if self.released:
            return f"all {len(self.results)} rules passed"
        if not self.results:
            return f"there is no rule for the moment {self.moment}, and nothing is released without one"
        shown = "; ".join(f"{result.rule} {result.outcome}: {result.reason}" for result in self.held_by[:3])
        more = len(self.held_by) - 3
        return shown + (f"; and {more} more" if more > 0 else "")

    def to_json(self) -> dict[str, Any]:
        """The document of gate.json."""
        return {
            "version": 1,
            "moment": self.moment,
            "verdict": "pass" if self.released else "held",
            "summary": self.summary(),
            "rules": [result.model_dump(mode="json") for result in self.results],
        }


class RuleBook(_Frozen):
    """A family's gate.yaml: rules that always hold, and profiles that add to them."""

    version: Literal[1] = 1
    rules: tuple[Rule, ...]
    profiles: Mapping[str, tuple[Rule, ...]] = Field(default_factory=dict)

    def select(self, profile: str | None = None, extra: Sequence[Rule] = ()) -> tuple[Rule, ...]:
        """The rules of a release: always-rules, then the profile's, then `extra`; a later rule replaces its namesake.

        Raises:
            ConfigError: there is no such profile.
        """
        if profile is not None and profile not in self.profiles:
            raise ConfigError(
                f"a gate profile is one of {sorted(self.profiles)}, but got {profile!r}",
                code="unknown_profile",
                where="evaluate.profile",
                cure="take one of these, or write it into the family's gate.yaml",
            )
        chosen: dict[tuple[Moment, str], Rule] = {}
        for rule in (*self.rules, *(self.profiles[profile] if profile is not None else ()), *extra):
            chosen[rule.moment, rule.rule] = rule
        return tuple(chosen.values())


def read_rules(text: str, *, where: str = "gate.yaml") -> RuleBook:
    """Read a gate file.

    Raises:
        ConfigError: it is no YAML, a key is unknown or stands twice, a rule has no bound or two, or two rules share a name.
    """
    cure = "see families/tabular/gate.yaml for the form of a rule"
    try:
        # Strictly: of two lists of rules, the first would be lost without a word.
        book = RuleBook.model_validate(strict_yaml.parse(text, code="bad_gate", where=where, cure=cure))
    except ValidationError as error:
        broken = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in broken["loc"])
        raise ConfigError(f"{place}: {broken['msg']}", code="bad_gate", where=where, cure=cure) from error
    for name, rules in (("rules", book.rules), *((f"profiles.{name}", rules) for name, rules in book.profiles.items())):
        seen: set[tuple[str, str]] = set()
        for rule in rules:
            if (rule.moment, rule.rule) in seen:
                raise ConfigError(
                    f"rule names are unique, but {name} has {rule.rule!r} twice",
                    code="bad_gate",
                    where=where,
                    cure=cure,
                )
            seen.add((rule.moment, rule.rule))
    return book


def judge(rules: Sequence[Rule], facts: Facts, moment: Moment = "evaluation") -> Verdict:
    """Hold every rule of a moment against the facts. Pure: the same rules and facts give the same verdict."""
    return Verdict(moment=moment, results=tuple(_judge_one(rule, facts) for rule in rules if rule.moment == moment))


def _judge_one(rule: Rule, facts: Facts) -> Result:
    metric = facts.primary if rule.metric == "primary" else rule.metric
    if rule.champion_tolerance is not None:
        return _against_champion(rule, metric, facts)
    if rule.baseline_margin is not None:
        return _against_baseline(rule, metric, facts)
    if rule.slice is not None:
        return _on_slices(rule, metric, facts)
    return _on_threshold(rule, metric, facts.metrics.get(metric), known=facts.metrics)


def _on_threshold(rule: Rule, metric: str, fact: Fact | None, *, known: Mapping[str, Any]) -> Result:
    threshold = rule.threshold
    assert threshold is not None
    bound = f"{rule.op} {threshold:g}"  # in words
    empty = _no_data(rule, fact, f"{metric} was not measured (measured: {', '.join(sorted(known)) or 'nothing'})")
    if empty or fact is None or fact.value is None:
        return _result(rule, Outcome.NO_DATA, metric, fact, empty)
    value, what = fact.value, metric
    if rule.whole_interval:
        if fact.interval is None:
            return _result(rule, Outcome.NO_DATA, metric, fact, f"{metric} has no interval")
        # The end that is harder to accept follows from the comparison; "more is better" decides only for == and !=.
        low_end = rule.op in {">=", ">"} or (rule.op in {"==", "!="} and fact.higher_is_better)
        value, what = fact.interval[0 if low_end else 1], f"the {'low' if low_end else 'high'} end of {metric}"
    passed = bool(_OPS[rule.op](value, threshold))
    return _result(
        rule, Outcome.PASS if passed else Outcome.FAIL, metric, fact, f"{what} is {value:.6g} and must be {bound}"
    )


def _on_slices(rule: Rule, metric: str, facts: Facts) -> Result:
    if rule.slice != EVERY_SLICE:
        found = facts.slices.get(str(rule.slice))
        if found is None:
            return _result(rule, Outcome.NO_DATA, metric, None, f"there is no slice {rule.slice!r}")
        result = _on_threshold(rule, metric, found.get(metric), known=found)
        return result.model_copy(update={"reason": f"{rule.slice}: {result.reason}"})
    judged = [
        (name, _on_threshold(rule, metric, found.get(metric), known=found))
        for name, found in facts.slices.items()
        if (fact := found.get(metric)) is not None and (fact.n or 0) >= rule.min_n
    ]
    if not judged:
        return _result(rule, Outcome.NO_DATA, metric, None, f"no slice has {rule.min_n} rows")
    rank = {Outcome.FAIL: 0, Outcome.NO_DATA: 1, Outcome.PASS: 2}
    name, worst = min(judged, key=lambda pair: (rank[pair[1].outcome], _badness(rule, pair[1].value)))
    bad = sum(result.outcome is not Outcome.PASS for _, result in judged)
    reason = f"{len(judged) - bad} of {len(judged)} slices hold; worst is {name}: {worst.reason}"
    return worst.model_copy(update={"reason": reason})


def _against_baseline(rule: Rule, metric: str, facts: Facts) -> Result:
    margin = rule.baseline_margin
    assert margin is not None
    fact = facts.against_baseline.get(metric)
    empty = _no_data(rule, fact, f"{metric} was not compared with the baseline")
    if empty or fact is None or fact.value is None:
        return _result(rule, Outcome.NO_DATA, metric, fact, empty)
    if fact.interval is None:
        return _result(rule, Outcome.NO_DATA, metric, fact, f"the difference in {metric} has no interval")
    low = fact.interval[0]
    outcome = Outcome.PASS if low > margin else Outcome.FAIL
    said = "above" if outcome is Outcome.PASS else "not wholly above"
    shown = f"[{fact.interval[0]:+.4g}, {fact.interval[1]:+.4g}]"
    reason = f"{metric} gains {fact.value:+.4g} over the constant baseline; its interval {shown} is {said} {margin:g}"
    return _result(rule, outcome, metric, fact, reason)


def _against_champion(rule: Rule, metric: str, facts: Facts) -> Result:
    tolerance = rule.champion_tolerance
    assert tolerance is not None
    if not facts.has_champion:
        return _result(
            rule, Outcome.PASS, metric, None, "the line has no champion yet, so there is none to be worse than"
        )
    fact = facts.against_champion.get(metric)
    empty = _no_data(rule, fact, f"{metric} was not compared with the champion")
    if empty or fact is None or fact.value is None:
        return _result(rule, Outcome.NO_DATA, metric, fact, empty)
    # One part in 10^12 of slack, so that a loss of exactly the tolerance is not decided by the last bit of a sum.
    outcome = Outcome.PASS if fact.value >= -tolerance - 1e-12 else Outcome.FAIL
    said = "within" if outcome is Outcome.PASS else "a loss beyond"
    shown = f"{metric} differs from the champion's by {fact.value:+.4g} on the same rows"
    reason = f"{shown}, {said} the tolerance {tolerance:g}"
    return _result(rule, outcome, metric, fact, reason)


def _no_data(rule: Rule, fact: Fact | None, absent: str) -> str:
    """Why a fact cannot be judged, or an empty text."""
    if fact is None:
        return absent
    if fact.value is None or not math.isfinite(fact.value):
        return fact.reason or absent
    if (fact.n or 0) < rule.min_n:
        return f"it takes at least {rule.min_n} rows, but there are {fact.n or 0}"
    return ""


def _bound(rule: Rule) -> tuple[Op, float]:
    if rule.threshold is not None:
        return rule.op, rule.threshold
    if rule.baseline_margin is not None:
        return ">", rule.baseline_margin
    assert rule.champion_tolerance is not None
    return ">=", -rule.champion_tolerance


def _badness(rule: Rule, value: float | None) -> float:
    if value is None:
        return -math.inf
    return value if rule.op in {">=", ">"} else -value


def _result(rule: Rule, outcome: Outcome, metric: str, fact: Fact | None, reason: str) -> Result:
    op, bound = _bound(rule)
    return Result(
        rule=rule.rule,
        outcome=outcome,
        metric=metric,
        value=fact.value if fact else None,
        op=op,
        bound=bound,
        n=fact.n if fact else None,
        interval=fact.interval if fact else None,
        reason=reason,
    )
