"""The policy `sequential`: a stage is left as soon as the evidence allows it, at any look, with error rates that peeking cannot raise.

The same stages and the same margin as the rules of H-42 and H-43, no stage skipped, one look an hour; other reasons to move. Each
reason is a claim of `esteira.rollout.evidence`, believed at any look at which its evidence reaches 1 / alpha:

- 10 -> 25 %: the candidate's accuracy is not 10 points or more below the control's (alpha 0.05);
- 25 -> 50 %: not 5 points or more (alpha 0.05). Share times loss that is not ruled out is so at most 2.5 % of all units;
- 50 -> 100 %: not 2 points or more (alpha 0.05): the error rate of a wrong promotion is at most 5 %, for any number of looks;
- any -> 0 %: more than 2 points worse (alpha 0.03), or its error rate more than 1 point above the control's (0.01), or more than 5 % of
  its answers slower than 1.2 times the control's 95th percentile (0.005), or its mean confidence below 0.60 (0.005). Together: a
  candidate of whom none of this is true is taken back with a probability of at most 5 %, for any number of looks;
- any -> 0 %, as inconclusive: it is worse than the control at all (alpha 0.01), and that it is not 2 points worse was not proven before.
  What is worse within the margin may be promoted, but need not be tried for weeks.

Least time in a stage: 24 h each, one whole day, in place of the 24, 48 and 72 h of H-42, which stand in for evidence there. The
guards of H-43 that are no tests stay: errors, 95th percentile and mean confidence of the stage; and units must have come in
this stage and since the last look, or nothing advances. Longest: four times H-42's
times, counted from the start (a stage that was left early leaves its time to the next ones); then it ends as inconclusive.

Labels are compared within their stage and their hour of arrival only, so that neither a base rate that moves nor a share
that grew in between (Simpson's paradox) looks like a difference.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from esteira.gate import Outcome, Result
from esteira.latency import BOUNDS
from esteira.rollout import moves
from esteira.rollout.evidence import Claim, Part
from esteira.rollout.rules import latency
from esteira.rollout.state import Decision, Rollout
from esteira.rollout.sums import ArmName, Sums

KEY = "sequential"
"""Where `Rollout.options` keeps what this policy has seen."""
MARGIN = 0.02
_SLOW, _TAIL = 1.2, 0.05
_FEW = 100
_ARMS: tuple[ArmName, ArmName] = ("candidate", "control")

STEPS = (
    Claim(-0.10, True, 0.05, ((0.10, 0.7), (0.13, 0.3))),
    Claim(-0.05, True, 0.05, ((0.05, 0.7), (0.08, 0.3))),
    Claim(-MARGIN, True, 0.05, ((0.02, 0.6), (0.05, 0.4))),
)
"""What lets it leave each stage: the difference in accuracy lies above the bound."""
WORSE = Claim(-MARGIN, False, 0.03, ((0.03, 0.2), (0.08, 0.6), (0.25, 0.2)))
ERRORS = Claim(0.01, True, 0.01, ((0.02, 0.3), (0.07, 0.4), (0.40, 0.3)))
SLOW = Claim(_TAIL, True, 0.005, ((0.05, 0.5), (0.30, 0.5)))
UNSURE = Claim(0.60, False, 0.005, ((0.05, 0.5), (0.15, 0.5)))
HOPELESS = Claim(0.0, False, 0.01, ((0.02, 1.0),))
"""What ends it as inconclusive before its time is over: that it will be promoted is not to be expected any more."""
_HARMS: Mapping[str, tuple[Claim, str]] = {
    "worse": (WORSE, "accuracy more than 2 points below the control's"),
    "errors": (ERRORS, "error rate more than 1 point above the control's"),
    "slow": (SLOW, "more than 5 % of its answers slower than 1.2 times the control's 95th percentile"),
    "unsure": (UNSURE, "mean confidence below 0.60"),
}


@dataclass
class Sequential:
    """See the module.

    Args:
        least: hours in each stage, at least.
        most: hours from the start, pauses left out, after which each stage ends as inconclusive; half of them raises an alert.
    """

    least: tuple[float, float, float] = (24.0, 24.0, 24.0)
    most: tuple[float, float, float] = (96.0, 288.0, 576.0)
    name: str = field(default="sequential", init=False)
    stages: tuple[float, ...] = field(default=(10.0, 25.0, 50.0), init=False)

    def decide(self, state: Rollout, now: datetime) -> Decision:
        """What to do at this moment; the evidence counts once an hour, whatever the looks in between."""
        if (early := moves.not_yet(state, now, "the next look is due an hour after the last one")) is not None:
            return early
        seen = look(state.options.get(KEY) or _nothing(), state)
        kept: dict[str, Any] = {"judged_at": now, "options": {**state.options, KEY: seen}}
        harms = [_harm(name, seen, state) for name in _HARMS]
        for found in harms:
            if found.outcome is Outcome.FAIL:
                return moves.roll_back(state, now, found.reason, harms, **kept)
        hours = state.seconds(now) / 3600
        step = _step(state.stage, seen)
        total = seen["spent"] + hours
        findings = [
            *harms,
            step,
            self._time(state.stage, hours),
            _traffic(seen["fresh"], state.arm("candidate").served),
        ]
        if all(found.outcome is Outcome.PASS for found in findings):
            findings += _guards(state)
        waiting = next((found for found in findings if found.outcome is not Outcome.PASS), None)
        if waiting is None:
            following = state.stage + 1
            if following == len(self.stages):
                return moves.promote(state, now, step.reason, findings, **kept)
            options = {**state.options, KEY: {**seen, "spent": total}}
            return moves.advance(state, now, self.stages[following], step.reason, findings, options=options)
        hopeless = HOPELESS.strength(seen["hopeless"])
        # What looks far worse is not given up but waited for: that it is more than 2 points worse will be proven soon.
        near = seen["weighted"] >= -2 * MARGIN * seen["weight"]
        if hopeless >= HOPELESS.enough and near and step.outcome is not Outcome.PASS:
            reason = f"proven: it is worse than the control ({_told(hopeless, HOPELESS)}); {step.reason}"
            return moves.inconclusive(state, now, reason, findings, **kept)
        longest = self.most[state.stage]
        # In seconds, since 96 h must not be missed by the last bit of a sum.
        if round(total * 3600) >= longest * 3600:
            reason = f"after {total:.0f} h, the longest that {state.percent:g} % may take: {waiting.reason}"
            return moves.inconclusive(state, now, reason, findings, **kept)
        alert = f"{total:.0f} h, now at {state.percent:g} %: {waiting.reason}" if total >= longest / 2 else ""
        return moves.hold(state, now, waiting.reason, findings, alert=alert, **kept)

    def _time(self, stage: int, hours: float) -> Result:
        least = self.least[stage]
        # In seconds, since 24 h must not fail by the last bit of a division.
        outcome = Outcome.PASS if round(hours * 3600) >= least * 3600 else Outcome.NO_DATA
        return moves.finding("time_in_stage", outcome, hours, ">=", least, None, f"{hours:.1f} h of at least {least:g}")


def _nothing() -> dict[str, Any]:
    """What was seen before the first look. JSON values: lists are [units, sum, sum of squares] of what counted so far."""
    return {
        "stage": 0, "labelled": {}, "served": {arm: [0, 0] for arm in _ARMS}, "latency": {}, "sure": [0, 0.0, 0.0],
        "steps": [claim.first() for claim in STEPS], "harms": {name: claim.first() for name, (claim, _) in _HARMS.items()},
        "hopeless": HOPELESS.first(), "fresh": 0, "weight": 0.0, "weighted": 0.0, "spent": 0.0,
    }  # fmt: skip


def look(before: Mapping[str, Any], state: Rollout) -> dict[str, Any]:
    """What was seen and how strong the evidence is, this look included. Pure; `before` is what the last look returned."""
    steps, harms = list(before["steps"]), dict(before["harms"])
    labelled: dict[str, Any] = dict(before["labelled"])
    hopeless, weight, weighted = before["hopeless"], before["weight"], before["weighted"]
    mean, variance = _known(labelled)
    for stage in sorted(state.sums):
        arms = state.sums[stage]
        known = labelled.get(str(stage)) or [[0, 0.0, 0.0], [0, 0.0, 0.0]]
        now = [_labelled(arms.get(arm, _EMPTY)) for arm in _ARMS]
        candidate, control = (_since(known[at], now[at]) for at in (0, 1))
        # Kept for a later look: one arm alone teaches nothing, and sums that fell (a writer that cannot be read now) come
        # back; taken as they are, the same units would be bet on twice.
        if candidate is None or control is None or candidate.n == 0 or control.n == 0:
            continue
        labelled[str(stage)] = now
        # What lets a stage go that was left need not be known any more.
        for at in range(state.stage, len(STEPS)):
            steps[at] = STEPS[at].bet(steps[at], candidate, control, mean=mean, variance=variance)
        harms["worse"] = WORSE.bet(harms["worse"], candidate, control, mean=mean, variance=variance)
        hopeless = HOPELESS.bet(hopeless, candidate, control, mean=mean, variance=variance)
        size = candidate.n * control.n / (candidate.n + control.n)
        weight += size
        weighted += size * (candidate.total / candidate.n - control.total / control.n)
    seen = {
        "stage": state.stage, "labelled": labelled, "steps": steps, "harms": harms, "hopeless": hopeless, "weight": weight,
        "weighted": weighted, "spent": before["spent"],
    }  # fmt: skip
    same = before["stage"] == state.stage
    served = before["served"] if same else {arm: [0, 0] for arm in _ARMS}
    seen["served"] = _errors(served, state, harms)
    seen["fresh"] = seen["served"]["candidate"][0] - served["candidate"][0]
    seen["latency"] = _slow(before["latency"] if same else {}, state, harms)
    seen["sure"] = _unsure(before["sure"] if same else [0, 0.0, 0.0], state, harms)
    return seen


_EMPTY = Sums()


def _labelled(arm: Sums) -> list[float]:
    return [arm.labelled, arm.outcome, arm.outcome_sq]


def _since(before: list[float], now: list[float]) -> Part | None:
    """What came since; None if there is less than before."""
    units = int(now[0] - before[0])
    return None if units < 0 else Part(units, now[1] - before[1], now[2] - before[2])


def _known(labelled: Mapping[str, Any]) -> tuple[float, float]:
    """The control's mean outcome and the variance of an outcome, as seen so far; a guess of 1/2 and 1/4 is worth four units."""
    units, total, squares, of_control, in_control = 4.0, 2.0, 2.0, 4.0, 2.0
    for candidate, control in labelled.values():
        units += candidate[0] + control[0]
        total += candidate[1] + control[1]
        squares += candidate[2] + control[2]
        of_control += control[0]
        in_control += control[1]
    mean = total / units
    return in_control / of_control, min(0.25, max(0.002, squares / units - mean * mean))


def _errors(before: Mapping[str, Any], state: Rollout, harms: dict[str, Any]) -> dict[str, Any]:
    """Bet on more errors; returns what was seen of served units and errors."""
    now: dict[str, Any] = {arm: [state.arm(arm).served, state.arm(arm).errors] for arm in _ARMS}
    parts = []
    for arm in _ARMS:
        units, errors = now[arm][0] - before[arm][0], now[arm][1] - before[arm][1]
        if units < 0 or errors < 0:
            return dict(before)
        parts.append(Part(units, errors, errors))
    if parts[0].n == 0 or parts[1].n == 0:
        return dict(before)
    # One error in a hundred units is the guess before the first.
    mean = (before["control"][1] + 1) / (before["control"][0] + 100)
    centre = min(0.5, mean + ERRORS.bound)
    harms["errors"] = ERRORS.bet(harms["errors"], *parts, mean=mean, variance=centre * (1 - centre))
    return now


def _slow(before: Mapping[str, int], state: Rollout, harms: dict[str, Any]) -> dict[str, int]:
    """Bet on a slow tail; returns the candidate's latency buckets that were seen.

    The limit comes from the control's answers only, which say nothing of the candidate's, so that the bet on these is fair.
    """
    candidate, control = state.arm("candidate").latency, state.arm("control")
    limit = control.latency_at(1 - _TAIL)
    if limit is None or sum(control.latency.values()) < _FEW:
        return dict(before)
    limit *= _SLOW
    if any(candidate.get(int(bucket), 0) < count for bucket, count in before.items()):
        return dict(before)
    units = slower = 0
    for bucket, count in candidate.items():
        new = count - before.get(str(bucket), 0)
        units += new
        if bucket and BOUNDS[bucket - 1] >= limit:
            slower += new
    harms["slow"] = SLOW.bet(harms["slow"], Part(units, slower, slower), None, variance=_TAIL * (1 - _TAIL))
    return {str(bucket): count for bucket, count in candidate.items()}


def _unsure(before: list[float], state: Rollout, harms: dict[str, Any]) -> list[float]:
    """Bet on low confidence; returns the candidate's confidences that were seen."""
    arm = state.arm("candidate")
    now = [arm.sure, arm.confidence, arm.confidence_sq]
    part = _since(before, now)
    if part is None:
        return before
    if part.n:
        known = before[2] / before[0] - (before[1] / before[0]) ** 2 if before[0] else 0.05
        harms["unsure"] = UNSURE.bet(harms["unsure"], part, None, variance=max(0.002, known))
    return now


def _harm(name: str, seen: Mapping[str, Any], state: Rollout) -> Result:
    claim, what = _HARMS[name]
    strength = claim.strength(seen["harms"][name])
    arm = state.arm("candidate")
    units = int(sum(now[0][0] for now in seen["labelled"].values())) if name == "worse" else arm.served
    if strength >= claim.enough:
        outcome, said = Outcome.FAIL, f"it is proven that the candidate is harmful: {what}"
    else:
        outcome, said = Outcome.PASS, f"not proven: {what}"
    return moves.finding(
        name, outcome, strength, "<", claim.enough, units, f"{said} ({_told(strength, claim)})", metric="evidence"
    )


def _step(stage: int, seen: Mapping[str, Any]) -> Result:
    claim = STEPS[stage]
    strength = claim.strength(seen["steps"][stage])
    units = int(sum(now[0][0] for now in seen["labelled"].values()))
    gap = seen["weighted"] / seen["weight"] if seen["weight"] else None
    what = f"its accuracy is not {-100 * claim.bound:g} points or more below the control's"
    now = "no label in both arms yet" if gap is None else f"{100 * gap:+.1f} points by {units} labelled units"
    enough = strength >= claim.enough
    said = f"{'proven' if enough else 'not yet proven'}: {what} ({now}; {_told(strength, claim)})"
    return moves.finding(
        "not_worse",
        Outcome.PASS if enough else Outcome.NO_DATA,
        strength,
        ">=",
        claim.enough,
        units,
        said,
        metric="evidence",
    )


def _traffic(fresh: int, served: int) -> Result:
    """What is proven of yesterday must not let a stage go that nobody uses today."""
    enough = fresh > 0 and served >= _FEW
    said = f"{served} units in this stage, of at least {_FEW}, {fresh} of them since the last look"
    return moves.finding("traffic", Outcome.PASS if enough else Outcome.NO_DATA, served, ">=", _FEW, served, said)


def _told(strength: float, claim: Claim) -> str:
    return f"evidence {strength:.3g}, {claim.enough:g} proves it at any look"


def _guards(state: Rollout) -> list[Result]:
    """What H-43 asks of a stage besides accuracy, once that is proven; these hold, they never take back."""
    candidate, control = state.arm("candidate"), state.arm("control")
    rate, against = candidate.error_rate, control.error_rate
    found = []
    if rate is None or against is None:
        found.append(moves.finding("error_increase", Outcome.NO_DATA, None, "<=", 0.01, 0, "an arm served nothing yet"))
    else:
        outcome = _held(rate - against <= 0.01 + 1e-12)
        said = f"errors {rate:.2%}, the control's {against:.2%}"
        found.append(moves.finding("error_increase", outcome, rate - against, "<=", 0.01, candidate.served, said))
    if candidate.latency and control.latency:
        found.append(latency("latency_ratio", candidate, control, _SLOW))
    sure, as_sure = candidate.mean_confidence, control.mean_confidence
    if sure is not None and as_sure is not None:
        bound = max(as_sure - MARGIN, 0.70 if state.stage == len(STEPS) - 1 else 0.0)
        outcome = _held(sure >= bound - 1e-12)
        said = f"mean confidence {sure:.3f}, the control's {as_sure:.3f}"
        found.append(moves.finding("confidence", outcome, sure, ">=", bound, candidate.sure, said))
    return found


def _held(condition: bool) -> Outcome:
    return Outcome.PASS if condition else Outcome.FAIL
