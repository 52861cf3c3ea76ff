"""The staged rollout of H-42 and H-43: 10, 25, 50, then all of the traffic, by rules whose words are made exact. Pure.

Expansion is decided at 1, 2, 3 and 4 times the stage's time and at no other moment, rollback every hour: a test that may be
read at any moment is passed by chance sooner or later.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import datetime
from typing import Any

from esteira.errors import ConfigError
from esteira.gate import Outcome, Result
from esteira.latency import BOUNDS, of_counts
from esteira.rollout import moves
from esteira.rollout.moves import finding
from esteira.rollout.posterior import error_excess, not_worse
from esteira.rollout.state import Decision, Rollout
from esteira.rollout.sums import Sums

PASS, FAIL, NO_DATA = Outcome.PASS, Outcome.FAIL, Outcome.NO_DATA
OUTAGE = 5.0
"""Standard errors beyond their bound from which errors roll back between two hourly looks."""
NOTHING = Sums()
SLACK = 1e-12
"""0.06 - 0.05 is more than 0.01 by its last bit alone; no bound is broken by that."""
_SET = ("stages", "hours", "looks", "alert_look")


@dataclass(frozen=True)
class Rules:
    """The policy. c is the candidate, b the control, both in the present stage unless said otherwise.

    A look reads: **stable** (leaves the first stage) when served, errors and latency hold and nothing is negative;
    **positive** (leaves the middle ones) when also labelled, accuracy and confidence hold; **approved** (leaves the last one,
    to all of the traffic) when also the pooled accuracy and the confidence of its own hold. **Negative** goes back at once.

    Attributes:
        stages: percent of the traffic.
        hours: that each stage takes at least; pauses do not count (H-42).
        looks: at so many times the stage's time it is given up as inconclusive.
        alert_look: from so many times on a person is told.
        margin: d; what the candidate may be worse by, in outcomes and in confidence.
        served: units that c must have served, >=.
        stable_errors: error rate of c less that of b, <=.
        stable_latency: 95th percentile of c over that of b, <=.
        labelled: units of each arm whose truth is known, >=.
        positive_chance: Q = P(accuracy of c > accuracy of b - d), >.
        approved_chance: Q on the data of all stages but the first, at the first look at them, >.
        later_chance: the same at later looks, >.
        approved_confidence: mean confidence of c, >=.
        shift: how far the control's accuracy may lie from that of the stages before; beyond it pooling starts anew.
        negative_labelled: from so many labelled units of c on its accuracy can be negative.
        negative_chance: P(accuracy of c < accuracy of b - d), > on `negative_looks` hourly looks in a row goes back.
        negative_looks: see there.
        negative_served: from so many served units of c on its errors can be negative.
        negative_errors: error rate of c less that of b, > goes back.
        negative_confidence: mean confidence of c, < goes back, from `served` units on.
    """

    stages: tuple[float, ...] = (10.0, 25.0, 50.0)
    hours: tuple[float, ...] = (24.0, 48.0, 72.0)
    looks: int = 4
    alert_look: int = 2
    margin: float = 0.02
    served: int = 500
    stable_errors: float = 0.01
    stable_latency: float = 1.2
    labelled: int = 500
    positive_chance: float = 0.80
    approved_chance: float = 0.95
    later_chance: float = 0.98
    approved_confidence: float = 0.70
    shift: float = 0.03
    negative_labelled: int = 200
    negative_chance: float = 0.99
    negative_looks: int = 2
    negative_served: int = 200
    negative_errors: float = 0.05
    negative_confidence: float = 0.60

    name = "rules"

    def planned(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """The options as they are, looked through: `rules` may give numbers of this class other values for one line.

        Raises:
            ConfigError: `rules` names no number of it, or gives what is no number (`bad_rule`).
        """
        self.under(options)
        return dict(options)

    def under(self, options: Mapping[str, Any]) -> "Rules":
        """The policy with the numbers that a rollout's options give, such as `{"rules": {"approved_confidence": 0.5}}`.

        Stages, hours and looks stay: they are what the error rates were computed for.

        Raises:
            ConfigError: see `planned`.
        """
        said = options.get("rules")
        if said is None or said == {}:
            return self
        for name, value in said.items() if isinstance(said, Mapping) else [(str(said), None)]:
            if not self._takes(name, value):
                raise ConfigError(
                    f"a rollout's rules take counts of 1 or more, shares of 0 to 1, and a ratio of latencies above 0, for "
                    f"{', '.join(sorted(self._open()))}, but got {name!r}: {value!r}"[:700],
                    code="bad_rule",
                    where="deploy.rollout_options.rules",
                    cure="see docs/release.md for what each number is",
                )
        return replace(self, **said)

    def _open(self) -> Mapping[str, Any]:
        """The numbers that a line may set otherwise, as they are."""
        return {one.name: getattr(self, one.name) for one in fields(self) if one.name not in _SET}

    def _takes(self, name: Any, value: Any) -> bool:
        """Whether a number may be this one: a count, a ratio, or else a share or a probability."""
        known = self._open()
        if name not in known or isinstance(value, bool):
            return False
        if isinstance(known[name], int):
            return isinstance(value, int) and value >= 1
        if not isinstance(value, int | float) or not math.isfinite(value):
            return False
        return value > 0 if name == "stable_latency" else 0 <= value <= 1

    def decide(self, state: Rollout, now: datetime) -> Decision:
        """What to do at this moment; pure. Nothing but a due look costs more than a few microseconds."""
        kept = moves.still(state)
        if kept is not None:
            return kept
        rules = self.under(state.options)
        here = state.sums.get(state.stage, {})
        candidate, control = here.get("candidate", NOTHING), here.get("control", NOTHING)
        look = moves.due_look(state, now, self.hours[state.stage] * moves.HOUR, self.looks)
        hourly = moves.hour_due(state, now)
        if not look and not hourly:
            if outage(candidate, control, rules.negative_errors, rules.negative_served):
                many = rules._negative_errors(candidate, control)
                return moves.roll_back(state, now, f"negative: {many.reason}, far beyond chance", (many,))
            if moves.backwards(state, now):
                return moves.clock_back(state, now)
            return moves.hold(state, now, "no look is due", **self._alert(state))

        harm = rules._negative(candidate, control)
        kept_up: dict[str, Any] = {}
        if hourly:
            kept_up = {"judged_at": now, "negatives": state.negatives + 1 if harm[0].outcome is FAIL else 0}
        in_a_row = kept_up.get("negatives", state.negatives)
        if harm[1].outcome is FAIL or harm[2].outcome is FAIL or in_a_row >= rules.negative_looks:
            bad = [one.reason for one in harm if one.outcome is FAIL]
            return moves.roll_back(state, now, f"negative: {'; '.join(bad)}", harm, **kept_up)
        if not look:
            bad = [one.reason for one in harm if one.outcome is FAIL]
            said = f"negative once, not yet twice in a row: {bad[0]}" if bad else "nothing is negative"
            return moves.hold(state, now, said, harm, **kept_up, **self._alert(state))
        return rules._expand(state, now, look, harm, kept_up)

    def _expand(
        self, state: Rollout, now: datetime, look: int, harm: Sequence[Result], kept_up: dict[str, Any]
    ) -> Decision:
        """A look at which the stage may end."""
        last = state.stage == len(self.stages) - 1
        word = "approved" if last else "positive" if state.stage else "stable"
        candidate, control = state.arm("candidate"), state.arm("control")
        found = [one for one in harm if one.outcome is not NO_DATA]
        found += self._stable(candidate, control)
        if word != "stable":
            found += self._positive(candidate, control)
        if word == "approved":
            approved, pooled = self._approved(state)
            found += approved
            kept_up = {**kept_up, **pooled}
        unmet = [one for one in found if one.outcome is not PASS]
        hours = f"after {state.seconds(now) / moves.HOUR:.1f} h at {state.percent:g} %"
        if not unmet:
            reason = f"{word} {hours}: " + "; ".join(one.reason for one in found if not one.rule.startswith("negative"))
            if last:
                return moves.promote(state, now, reason, found, looks=look, **kept_up)
            # What was counted in a row in this stage says nothing of the next one's data.
            return moves.advance(state, now, self.stages[state.stage + 1], reason, found)
        missing = f"not {word} {hours}, at {look} times the stage's time: " + "; ".join(one.reason for one in unmet)
        if look >= self.looks:
            return moves.inconclusive(state, now, missing, found, looks=look, **kept_up)
        if look >= self.alert_look:
            kept_up = {**kept_up, "alert": missing}
        return moves.hold(state, now, missing, found, outcome=NO_DATA, looks=look, **kept_up)

    def _alert(self, state: Rollout) -> dict[str, Any]:
        """The alert of a stage that outlasts its time, where another was put over it and taken away."""
        if state.looks < self.alert_look or (state.alert and not state.alert.startswith(moves.CLOCK)):
            return {}
        return {"alert": f"held at {state.percent:g} %, past {state.looks} times the stage's time"}

    def _negative(self, candidate: Sums, control: Sums) -> tuple[Result, Result, Result]:
        """Accuracy, errors, confidence: what sends the candidate back."""
        return (
            self._negative_accuracy(candidate, control), self._negative_errors(candidate, control),
            self._negative_confidence(candidate),
        )  # fmt: skip

    def _negative_accuracy(self, candidate: Sums, control: Sums) -> Result:
        n, need = candidate.labelled, self.negative_labelled
        if n < need or not control.labelled:
            said = (
                f"{n} labelled units of the candidate and {control.labelled} of the control, of {need} and 1 it takes"
            )
            return finding("negative_accuracy", NO_DATA, None, "<=", self.negative_chance, n, said, metric="P(worse)")
        worse = 1 - not_worse(candidate, control, self.margin)
        outcome = FAIL if worse > self.negative_chance else PASS
        said = f"worse by more than {self.margin:g} with probability {worse:.4g} ({_accuracies(candidate, control)})"
        return finding("negative_accuracy", outcome, worse, "<=", self.negative_chance, n, said, metric="P(worse)")

    def _negative_errors(self, candidate: Sums, control: Sums) -> Result:
        return errors("negative_errors", candidate, control, self.negative_errors, self.negative_served)

    def _negative_confidence(self, candidate: Sums) -> Result:
        n, mean = candidate.served, candidate.mean_confidence
        if n < self.served or mean is None:
            said = (
                "no answer carries a confidence" if n >= self.served else f"{n} units served of {self.served} it takes"
            )
            outcome = PASS if n >= self.served else NO_DATA
            return finding(
                "negative_confidence", outcome, None, ">=", self.negative_confidence, n, said, metric="confidence"
            )
        outcome = FAIL if mean < self.negative_confidence else PASS
        said = f"mean confidence {mean:.4g}"
        return finding(
            "negative_confidence", outcome, mean, ">=", self.negative_confidence, n, said, metric="confidence"
        )

    def _stable(self, candidate: Sums, control: Sums) -> list[Result]:
        n = candidate.served
        outcome = PASS if n >= self.served else NO_DATA
        served = finding("stable_served", outcome, float(n), ">=", self.served, n, f"{n} units served", metric="served")
        few = errors("stable_errors", candidate, control, self.stable_errors, 1)
        return [served, few, latency("stable_latency", candidate, control, self.stable_latency)]

    def _positive(self, candidate: Sums, control: Sums) -> list[Result]:
        n = min(candidate.labelled, control.labelled)
        said = f"{candidate.labelled} and {control.labelled} units labelled"
        outcome = PASS if n >= self.labelled else NO_DATA
        enough = finding("positive_labelled", outcome, float(n), ">=", self.labelled, n, said, metric="labelled")
        accuracy = self._chance("positive_accuracy", candidate, control, self.positive_chance, enough)
        return [enough, accuracy, self._confidences(candidate, control)]

    def _approved(self, state: Rollout) -> tuple[list[Result], dict[str, Any]]:
        """What was found in the pooled data, and what the state keeps of it."""
        candidate, control, since = self._pooled(state)
        enough = self._positive(state.arm("candidate"), state.arm("control"))[0]
        # A look counts when there were data to be looked at: only then could chance have approved.
        looks = state.pooled_looks + (enough.outcome is PASS)
        bound = self.approved_chance if looks <= 1 else self.later_chance
        accuracy = self._chance("approved_accuracy", candidate, control, bound, enough, since=since)
        mean, n = state.arm("candidate").mean_confidence, state.arm("candidate").sure
        if mean is None:
            # Whether the candidate should have one is for positive_confidence to say.
            outcome, said = PASS, "no answer carries a confidence"
        else:
            outcome = PASS if mean >= self.approved_confidence else FAIL
            said = f"mean confidence {mean:.4g}"
        confident = finding(
            "approved_confidence", outcome, mean, ">=", self.approved_confidence, n, said, metric="confidence"
        )
        return [accuracy, confident], {"pooled_looks": looks, "pooled_from": since}

    def _pooled(self, state: Rollout) -> tuple[Sums, Sums, int]:
        """The sums of all stages but the first, and the stage they begin at: the last one where the base rate shifted."""
        since = min(max(1, state.pooled_from), state.stage)
        candidate, control = state.arm("candidate", since), state.arm("control", since)
        for stage in range(since + 1, state.stage + 1):
            ours, other = state.arm("candidate", stage), state.arm("control", stage)
            before, after = control.accuracy, other.accuracy
            if before is not None and after is not None and abs(after - before) > self.shift + SLACK:
                since, candidate, control = stage, ours, other
            else:
                candidate, control = candidate + ours, control + other
        return candidate, control, since

    def _chance(
        self, rule: str, candidate: Sums, control: Sums, bound: float, enough: Result, *, since: int | None = None
    ) -> Result:
        n = min(candidate.labelled, control.labelled)
        if enough.outcome is not PASS:
            return finding(rule, NO_DATA, None, ">", bound, n, "too few labelled units", metric="P(not worse)")
        chance = not_worse(candidate, control, self.margin)
        where = "" if since is None else f" since {self.stages[since]:g} % of traffic"
        said = (
            f"not worse by more than {self.margin:g} with probability {chance:.4g}{where} ({_accuracies(candidate, control)}),"
            f" of more than {bound:g}"
        )
        return finding(rule, PASS if chance > bound else FAIL, chance, ">", bound, n, said, metric="P(not worse)")

    def _confidences(self, candidate: Sums, control: Sums) -> Result:
        ours, other = candidate.mean_confidence, control.mean_confidence
        name, n = "positive_confidence", candidate.sure
        if ours is None or other is None:
            outcome = PASS if ours is None and other is None else NO_DATA
            said = "no answer carries a confidence" if outcome is PASS else "answers of one arm carry no confidence"
            return finding(name, outcome, None, ">=", -self.margin, n, said, metric="confidence difference")
        outcome = PASS if ours - other >= -self.margin - SLACK else FAIL
        said = f"mean confidence {ours:.4g}, the control's {other:.4g}"
        return finding(name, outcome, ours - other, ">=", -self.margin, n, said, metric="confidence difference")


def latency(rule: str, candidate: Sums, control: Sums, bound: float) -> Result:
    """The candidate's 95th percentile over the control's, each placed within its bucket, `<= bound`."""
    ours, other = p95(candidate), p95(control)
    n = sum(candidate.latency.values())
    if ours is None or not other:
        return finding(rule, NO_DATA, None, "<=", bound, n, "an arm has no latency", metric="p95 ratio")
    said = f"p95 {1000 * ours:.3g} ms, the control's {1000 * other:.3g} ms"
    return finding(
        rule, PASS if ours / other <= bound + SLACK else FAIL, ours / other, "<=", bound, n, said, metric="p95 ratio"
    )


def p95(sums: Sums) -> float | None:
    """The 95th percentile of an arm's latency in seconds; None without an answer."""
    if not sums.latency:
        return None
    return of_counts([sums.latency.get(place, 0) for place in range(len(BOUNDS) + 1)]).p95


def errors(rule: str, candidate: Sums, control: Sums, bound: float, need: int) -> Result:
    """The candidate's error rate less the control's, `<= bound`."""
    n = candidate.served
    ours, other = candidate.error_rate, control.error_rate
    if ours is None or other is None or n < need:
        said = f"{n} units served by the candidate and {control.served} by the control, of {need} and 1 it takes"
        return finding(rule, NO_DATA, None, "<=", bound, n, said, metric="error rate difference")
    outcome = PASS if ours - other <= bound + SLACK else FAIL
    said = f"{100 * ours:.3g} % errors, the control's {100 * other:.3g} %"
    return finding(rule, outcome, ours - other, "<=", bound, n, said, metric="error rate difference")


def _accuracies(candidate: Sums, control: Sums) -> str:
    ours, other = candidate.accuracy or 0.0, control.accuracy or 0.0
    return f"{ours:.4g} of {candidate.labelled} against {other:.4g} of {control.labelled}"


def outage(candidate: Sums, control: Sums, bound: float, need: int) -> bool:
    """Whether the error rates differ by so much more than the bound that the next hourly look could say nothing else.

    By five standard errors, p = 3e-7: were the true difference the bound itself, a look a minute over the longest rollout
    (24 days) would be wrong once in a hundred.
    """
    if candidate.served < need or not control.served:
        return False
    excess, spread = error_excess(candidate, control)
    return excess - OUTAGE * spread > bound
