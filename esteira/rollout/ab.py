"""The experiment of S-37: half of the units each, a sample size planned before, one analysis at its end. Pure.

The primaries are read from the sums of stage 0, 1, ... in the plan's order: an experiment has one stage of traffic, so that
the first (stage 0) is what comes of truths, or what is sent by its name, as the plan says and never both; the other places are left
to what else is sent, such as satisfaction. What is counted are
the units that were assigned, such as users, each once, with the mean of its outcomes: requests of one user say the same thing
several times. The guardrails are read of requests, each of which counts as little as if those of one user were all alike.
"""

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from statistics import NormalDist
from typing import Any

from esteira.errors import ConfigError
from esteira.gate import Outcome, Result
from esteira.latency import BOUNDS
from esteira.rollout import moves
from esteira.rollout.moves import finding
from esteira.rollout.posterior import difference, error_excess, interval, p_value
from esteira.rollout.rules import errors, latency, outage, p95
from esteira.rollout.state import Decision, Rollout
from esteira.rollout.sums import Sums

PASS, FAIL, NO_DATA = Outcome.PASS, Outcome.FAIL, Outcome.NO_DATA
DAY = 24 * moves.HOUR
WEEK = 7 * DAY
MOST_PRIMARIES = 4
COUNTS = "users"
"""What the plan says is counted; a plan that says nothing is of a version that counted requests."""


@dataclass(frozen=True)
class Comparison:
    """Two arms in one metric, each with its interval (K-80).

    Attributes:
        control, variant: value, low, high; in the metric's unit, which lies in [0, 1].
        difference: variant less control, low, high.
        units: of control and variant.
        p_value: two-sided, that they are the same; of this metric alone, corrected for no other.
    """

    control: tuple[float, float, float]
    variant: tuple[float, float, float]
    difference: tuple[float, float, float]
    units: tuple[int, int]
    p_value: float


def compared(control: Sums, variant: Sums, level: float = 0.95) -> Comparison | None:
    """The two arms with intervals at this level, such as the click-through rates of two recommenders; None without data."""
    a, b, apart = interval(control, level), interval(variant, level), difference(variant, control, level)
    ours, other, chance = variant.accuracy, control.accuracy, p_value(variant, control)
    if a is None or b is None or apart is None or ours is None or other is None or chance is None:
        return None
    units = (control.labelled, variant.labelled)
    return Comparison((other, *a), (ours, *b), (ours - other, *apart), units, chance)


def units_needed(baseline: float, effect: float, *, level: float = 0.05, power: float = 0.80) -> int:
    """Units of each arm by which a two-sided test of two shares sees an effect (Fleiss, Levin and Paik 2003, eq. 4.14).

    Args:
        baseline: the control's share, in (0, 1).
        effect: the difference to be seen, above 0, so that baseline + effect is at most 1.
        level: that two equal arms are said to differ.
        power: that two arms which differ by the effect are seen to.
    """
    p, q = baseline, baseline + effect
    middle = (p + q) / 2
    wrong = NormalDist().inv_cdf(1 - level / 2) * math.sqrt(2 * middle * (1 - middle))
    missed = NormalDist().inv_cdf(power) * math.sqrt(p * (1 - p) + q * (1 - q))
    return math.ceil(((wrong + missed) / effect) ** 2)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """p-values by which several may be read at once, none of them falsely at more than its level (Holm 1979)."""
    adjusted, least = {}, 0.0
    for place, name in enumerate(sorted(p_values, key=lambda one: p_values[one])):
        least = max(least, min(1.0, (len(p_values) - place) * p_values[name]))
        adjusted[name] = least
    return {name: adjusted[name] for name in p_values}


def ratio_p(candidate: int, control: int, share: float = 0.5) -> float:
    """p-value that the units came to the arms as they were to (chi-square, one degree of freedom).

    Args:
        candidate, control: units of each arm.
        share: of the candidate, in (0, 1).
    """
    n = candidate + control
    if not n:
        return 1.0
    return math.erfc(abs(candidate - n * share) / math.sqrt(2 * n * share * (1 - share)))


@dataclass(frozen=True)
class AB:
    """The policy. It decides once: at the end of two whole weeks, if the planned units are there, else at that of a later one.

    A better primary, none worse and guardrails that hold make the variant the champion; a worse one sends it back; none of
    both ends as inconclusive. Before that only harm to a guardrail ends it, or a ratio of the arms that cannot be chance.

    Attributes:
        stages: percent of the units that get the variant.
        weeks: that it takes at least, whole ones, so that each day of the week weighs the same.
        most_weeks: after which it is inconclusive without its units.
        level: at which a primary differs, after Holm's correction.
        power: to see each primary's minimum effect whatever the others do.
        ratio_level: p-value below which the arms' sizes stop the analysis; looked at daily.
        ratio_units: units from which on it is looked at.
        guard_level: p-value below which a guardrail is harmed; looked at hourly.
        guard_units: units of each arm from which on it is looked at; of the latency, so many that were timed.
        guard_errors: what its error rate may exceed the control's by.
        guard_latency: what its 95th percentile may be of the control's.
    """

    stages: tuple[float, ...] = (50.0,)
    weeks: int = 2
    most_weeks: int = 4
    level: float = 0.05
    power: float = 0.80
    ratio_level: float = 0.001
    ratio_units: int = 200
    guard_level: float = 0.001
    guard_units: int = 200
    guard_errors: float = 0.01
    guard_latency: float = 1.2

    name = "ab"

    @property
    def longest(self) -> float:
        """Hours after which it has ended, whatever came."""
        return self.most_weeks * WEEK / moves.HOUR

    def planned(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """The options with `planned_units`, which each arm needs of every primary. It is planned for the strictest step of Holm.

        Args:
            options: `{"primaries": [{"name", "baseline", "minimum_effect"}, ...]}`, the first with `"by"`: `truth` (what comes of
                truths; the default) or `metric` (sent by its name, as the others are); what else stands there is kept.

        Raises:
            ConfigError: no primaries, or one whose effect cannot be planned for (`no_plan`).
        """
        said = options.get("primaries")
        if not isinstance(said, Sequence) or isinstance(said, str) or not 1 <= len(said) <= MOST_PRIMARIES:
            raise _no_plan(f"an experiment has 1 to {MOST_PRIMARIES} primaries, but got {said!r}"[:300])
        primaries = [_primary(one, place) for place, one in enumerate(said)]
        if len({one["name"] for one in primaries}) < len(primaries):
            raise _no_plan(f"each primary has its own name, but got {[one['name'] for one in primaries]}")
        level = self.level / len(primaries)
        units = max(
            units_needed(one["baseline"], one["minimum_effect"], level=level, power=self.power) for one in primaries
        )
        return {**options, "primaries": primaries, "planned_units": units, "weeks": self.weeks, "counts": COUNTS}

    def decide(self, state: Rollout, now: datetime) -> Decision:
        """What to do at this moment; pure."""
        kept = moves.still(state)
        if kept is not None:
            return kept
        if state.options.get("counts") != COUNTS:
            said = "it began before users were counted, and a mean of requests and users is neither's: start it again"
            return moves.inconclusive(state, now, said)
        candidate, control = state.arm("candidate", 0), state.arm("control", 0)
        hourly = moves.hour_due(state, now)
        week = moves.due_look(state, now, WEEK, self.most_weeks)
        week = week if week >= self.weeks else 0
        if not hourly and not week:
            if outage(candidate, control, self.guard_errors, self.guard_units):
                many = errors("guardrail_errors", candidate, control, self.guard_errors, self.guard_units)
                return moves.roll_back(state, now, f"a guardrail is harmed: {many.reason}, far beyond chance", (many,))
            if moves.backwards(state, now):
                return moves.clock_back(state, now)
            return moves.hold(state, now, "no look is due")

        looked: dict[str, Any] = {"judged_at": now} if hourly else {}
        guards = self._harm(candidate, control)
        harmed = [one.reason for one in guards if one.outcome is FAIL]
        if harmed:
            return moves.roll_back(state, now, f"a guardrail is harmed: {'; '.join(harmed)}", guards, **looked)
        if week or self._new_day(state, now):
            ratio = self._ratio(candidate, control)
            guards = [*guards, ratio]
            if ratio.outcome is FAIL:
                return moves.inconclusive(
                    state, now, f"the arms' sizes are no chance, so nothing in them can be trusted: {ratio.reason}",
                    guards, **looked,
                )  # fmt: skip
        if week:
            return self._analyse(state, now, week, guards, looked)
        return moves.hold(state, now, "the experiment runs; it is read once, at its end", guards, **looked)

    def _analyse(
        self, state: Rollout, now: datetime, week: int, guards: Sequence[Result], looked: dict[str, Any]
    ) -> Decision:
        """The one reading of the primaries, at the end of a whole week that has the planned units."""
        plan = [str(one["name"]) for one in state.options.get("primaries", ())]
        need = int(state.options.get("planned_units", 0))
        arms = {name: (state.arm("candidate", place), state.arm("control", place)) for place, name in enumerate(plan)}
        short = [
            f"{name}: {min(a.labelled, b.labelled)} units of {need}"
            for name, (a, b) in arms.items()
            if min(a.labelled, b.labelled) < max(1, need)
        ]
        if not plan or need < 1:
            short = ["no sample size was planned"]
        if short:
            said = f"after {week} weeks an arm lacks units that were planned: {'; '.join(short)}"
            if week >= self.most_weeks:
                return moves.inconclusive(state, now, said, guards, looks=week, **looked)
            return moves.hold(state, now, said, guards, outcome=NO_DATA, alert=said, looks=week, **looked)

        candidate, control = state.arm("candidate", 0), state.arm("control", 0)
        guards = [
            *(one for one in guards if one.rule == "sample_ratio"),
            errors("guardrail_errors", candidate, control, self.guard_errors, self.guard_units),
            latency("guardrail_latency", candidate, control, self.guard_latency),
        ]
        chances = holm({name: chance for name, (a, b) in arms.items() if (chance := p_value(a, b)) is not None})
        primaries = [self._primary(name, chances[name], *arms[name]) for name in plan]
        found = [*primaries, *guards]
        worse = [one.reason for one in primaries if one.outcome is FAIL]
        better = [one.reason for one in primaries if one.outcome is PASS]
        held = [one.reason for one in guards if one.outcome is not PASS]
        if worse:
            return moves.roll_back(state, now, f"worse: {'; '.join(worse)}", found, looks=week, **looked)
        if better and not held:
            return moves.promote(state, now, f"better: {'; '.join(better)}", found, looks=week, **looked)
        said = f"better ({'; '.join(better)}), but {'; '.join(held)}" if better else "no primary is shown to differ"
        if not better:
            said += ": " + "; ".join(one.reason for one in primaries)
        return moves.inconclusive(state, now, said, found, looks=week, **looked)

    def _primary(self, name: str, chance: float, candidate: Sums, control: Sums) -> Result:
        ours, other = candidate.accuracy or 0.0, control.accuracy or 0.0
        differs = chance <= self.level
        outcome = (PASS if ours > other else FAIL) if differs else NO_DATA
        said = f"{name} {ours:.4g}, the control's {other:.4g}, p {chance:.3g} after Holm"
        return finding(
            f"primary_{name}", outcome, chance, "<=", self.level, candidate.labelled + control.labelled, said, metric=name,
            interval=difference(candidate, control),
        )  # fmt: skip

    def _harm(self, candidate: Sums, control: Sums) -> list[Result]:
        """The guardrails, each harmed only beyond chance: p < guard_level that it holds."""
        return [self._many_errors(candidate, control), self._slow(candidate, control)]

    def _many_errors(self, candidate: Sums, control: Sums) -> Result:
        need, n, m = self.guard_units, candidate.people, control.people
        if min(n, m) < need:
            said = f"{n} and {m} units served of {need} it takes"
            return finding(
                "guardrail_errors", NO_DATA, None, "<=", self.guard_errors, n, said, metric="error rate difference"
            )
        excess, spread = error_excess(candidate, control)
        return self._judged(
            errors("guardrail_errors", candidate, control, self.guard_errors, 1),
            _upper(excess - self.guard_errors, spread),
        )

    def _slow(self, candidate: Sums, control: Sums) -> Result:
        need, limit = self.guard_units, p95(control)
        # A service that splits by itself times only a tenth of all units at the control's end.
        n, m = (sum(arm.latency.values()) * arm.weight for arm in (candidate, control))
        if limit is None or min(n, m) < need:
            said = f"{n:.0f} and {m:.0f} answers timed of {need} it takes"
            return finding(
                "guardrail_latency", NO_DATA, None, "<=", self.guard_latency, round(n), said, metric="p95 ratio"
            )
        # One in twenty may be slower than its own 95th percentile may be. How many are, is a share like any other, and so is that
        # of the control's: its percentile is no better known than the candidate's.
        share = slower(candidate, limit * self.guard_latency)
        spread = math.sqrt(0.05 * 0.95 * (1 / n + 1 / m))
        return self._judged(
            latency("guardrail_latency", candidate, control, self.guard_latency), _upper(share - 0.05, spread)
        )

    def _judged(self, found: Result, chance: float) -> Result:
        outcome = NO_DATA if found.outcome is NO_DATA else FAIL if chance < self.guard_level else PASS
        return found.model_copy(update={"outcome": outcome, "reason": f"{found.reason}, p {chance:.2g} that it holds"})

    def _ratio(self, candidate: Sums, control: Sums) -> Result:
        ours, other = candidate.people, control.people
        n, share = ours + other, self.stages[0] / 100
        if n < self.ratio_units:
            said = f"{n} units served of {self.ratio_units} it takes"
            return finding("sample_ratio", NO_DATA, None, ">=", self.ratio_level, n, said, metric="sample ratio p")
        chance = ratio_p(ours, other, share)
        said = f"{ours} and {other} units, p {chance:.2g} at {self.stages[0]:g} % planned"
        outcome = FAIL if chance < self.ratio_level else PASS
        return finding("sample_ratio", outcome, chance, ">=", self.ratio_level, n, said, metric="sample ratio p")

    def _new_day(self, state: Rollout, now: datetime) -> bool:
        """Whether the last hourly look was on another day of the experiment."""
        before = 0.0 if state.judged_at is None else state.seconds(state.judged_at)
        return int(before // DAY) < int((state.seconds(now) + 1e-6) // DAY)


def split_options(state: Rollout) -> dict[str, Any]:
    """What a split says of an experiment, so that services count its users once, and know what may be fed back of them."""
    primaries = state.options.get("primaries", ())
    by_truth = bool(primaries) and primaries[0].get("by", "truth") == "truth"
    return {"primaries": [str(one["name"]) for one in primaries], "truths": by_truth}


def slower(sums: Sums, seconds: float) -> float:
    """Share of an arm's answers that took longer, those of the bucket in between by its part; 0 without an answer."""
    total = sum(sums.latency.values())
    if not total:
        return 0.0
    place = bisect_right(BOUNDS, seconds)
    above = float(sum(count for bucket, count in sums.latency.items() if bucket > place))
    if place < len(BOUNDS):
        low, high = BOUNDS[place - 1] if place else 0.0, BOUNDS[place]
        above += sums.latency.get(place, 0) * (high - seconds) / (high - low)
    return above / total


def _upper(distance: float, spread: float) -> float:
    """One-sided p-value of a distance beyond a bound."""
    return 0.5 * math.erfc(distance / (spread * math.sqrt(2))) if spread > 0 else 1.0


def _primary(said: Any, place: int) -> dict[str, Any]:
    """One primary of a plan, checked."""
    if not isinstance(said, Mapping) or set(said) - {"by"} != {"name", "baseline", "minimum_effect"}:
        raise _no_plan(f"a primary says name, baseline and minimum_effect, but got {said!r}"[:300])
    name, baseline, effect = said["name"], said["baseline"], said["minimum_effect"]
    numbers = all(isinstance(one, int | float) and not isinstance(one, bool) for one in (baseline, effect))
    if not isinstance(name, str) or not name.isidentifier():
        raise _no_plan(f"a primary's name is a word of letters, digits and _, but got {name!r}"[:300])
    if not numbers or not (0 < baseline < 1 and 0 < effect and baseline + effect <= 1):
        raise _no_plan(
            f"a primary's baseline lies in (0, 1) and its minimum effect above 0 and within what is left to 1, but {name} has "
            f"{baseline!r} and {effect!r}"[:300]
        )
    by = said.get("by", "metric" if place else "truth")
    if by not in (("metric",) if place else ("truth", "metric")):
        raise _no_plan(
            f"the first primary comes by truth or by metric, and the others by metric, but {name} by {by!r}"[:300]
        )
    return {"name": name, "baseline": float(baseline), "minimum_effect": float(effect), "by": by}


def _no_plan(message: str) -> ConfigError:
    return ConfigError(
        message,
        code="no_plan",
        where="deploy.rollout_options.primaries",
        cure='say what is to be seen, such as [{"name": "conversion", "baseline": 0.1, "minimum_effect": 0.02}]',
    )
