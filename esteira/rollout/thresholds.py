"""The policy `thresholds`: fixed limits on the last interval, as canary tools for any software have them. To compare with, not to choose.

It does what a Rollout of Argo Rollouts does with steps `setWeight: 10, pause: {duration: 24h}, setWeight: 25, pause: {duration: 48h},
setWeight: 50, pause: {duration: 72h}` and a background AnalysisRun. Fields of its AnalysisTemplate (Argo's docs/features/analysis.md and
analysis/analysis.go), as they are read here, for each metric:

- `interval: 1h`: one measurement an hour, of what the candidate answered since the last one;
- `successCondition`: success rate `result[0] >= 0.95` (its documents' own example), accuracy `result[0] >= accuracy`, and the 95th
  percentile `result[0] <= seconds`; limits known before the rollout starts, as numbers in a template are;
- `failureLimit`: the run fails, and the rollout is aborted, when more measurements than this failed, in a row or not;
- `consecutiveErrorLimit: 4` (its default): a measurement without data is an error; five in a row abort the rollout too;
- `initialDelay`: the accuracy is measured from the first hour with a label on.

No error rate, no comparison with the control, no sample size: this is what the table of the simulator shows the price of.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from esteira.gate import Op, Outcome, Result
from esteira.rollout import moves
from esteira.rollout.state import Decision, Rollout
from esteira.rollout.sums import Sums

KEY = "thresholds"
"""Where `Rollout.options` keeps what this policy has seen."""


@dataclass
class Thresholds:
    """See the module.

    Args:
        success_rate: of the candidate's requests in the interval, at least.
        accuracy: of the candidate's labelled units of the interval, at least.
        p95: seconds, at most.
        failure_limit: failed measurements that a metric may have.
        error_limit: measurements without data that it may have in a row.
        hours: pause in each stage.
    """

    success_rate: float = 0.95
    accuracy: float = 0.65
    p95: float = 0.100
    failure_limit: int = 3
    error_limit: int = 4
    hours: tuple[float, float, float] = (24.0, 48.0, 72.0)
    name: str = field(default="thresholds", init=False)
    stages: tuple[float, ...] = field(default=(10.0, 25.0, 50.0), init=False)

    def decide(self, state: Rollout, now: datetime) -> Decision:
        """What to do at this moment; one measurement an hour."""
        if (early := moves.not_yet(state, now, "the next measurement is due an hour after the last one")) is not None:
            return early
        findings, seen = self._measure(state.options.get(KEY) or {}, state)
        kept: dict[str, Any] = {"judged_at": now, "options": {**state.options, KEY: seen}}
        for found in findings:
            if seen["failed"].get(found.rule, 0) > self.failure_limit:
                said = f"{found.rule} failed {seen['failed'][found.rule]} times, more than {self.failure_limit}: {found.reason}"
                return moves.roll_back(state, now, said, findings, **kept)
            if seen["empty"].get(found.rule, 0) > self.error_limit:
                said = (
                    f"{found.rule} had no data {seen['empty'][found.rule]} times in a row, more than {self.error_limit}"
                )
                return moves.roll_back(state, now, said, findings, **kept)
        hours = state.seconds(now) / 3600
        if round(hours * 3600) < self.hours[state.stage] * 3600:
            return moves.hold(state, now, f"{hours:.1f} h of {self.hours[state.stage]:g}", findings, **kept)
        if any(found.outcome is Outcome.NO_DATA for found in findings):  # Argo would go on; here no data never advances
            return moves.hold(state, now, "the last interval brought no data", findings, **kept)
        said = f"{hours:.0f} h at {state.percent:g} % without too many failures"
        following = state.stage + 1
        if following == len(self.stages):
            return moves.promote(state, now, said, findings, **kept)
        return moves.advance(state, now, self.stages[following], said, findings, options=kept["options"])

    def _measure(self, before: Mapping[str, Any], state: Rollout) -> tuple[list[Result], dict[str, Any]]:
        """This interval's measurements, and what was seen and counted by now."""
        arm = state.arm("candidate")
        labelled = sum(arms["candidate"].labelled for arms in state.sums.values() if "candidate" in arms)
        outcome = sum(arms["candidate"].outcome for arms in state.sums.values() if "candidate" in arms)
        same = before if before.get("stage") == state.stage else {}
        known = same.get("latency", {})
        latency = {bucket: count - known.get(str(bucket), 0) for bucket, count in arm.latency.items()}
        served, errors = arm.served - same.get("served", 0), arm.errors - same.get("errors", 0)
        fresh = labelled - before.get("labelled", 0)
        right = outcome - before.get("outcome", 0.0)
        tail = Sums(latency=latency).latency_at(0.95) if min(latency.values(), default=0) >= 0 else None
        findings = [
            _finding("success_rate", 1 - errors / served if served > 0 else None, ">=", self.success_rate, served),
            _finding("p95", tail, "<=", self.p95, served),
        ]
        if labelled:  # initialDelay: until the first label there is nothing to measure
            findings.append(_finding("accuracy", right / fresh if fresh > 0 else None, ">=", self.accuracy, fresh))
        failed, empty = dict(before.get("failed", {})), dict(before.get("empty", {}))
        for found in findings:
            if found.outcome is Outcome.FAIL:
                failed[found.rule] = failed.get(found.rule, 0) + 1
            empty[found.rule] = empty.get(found.rule, 0) + 1 if found.outcome is Outcome.NO_DATA else 0
        return findings, {
            "stage": state.stage, "served": arm.served, "errors": arm.errors, "labelled": labelled, "outcome": outcome,
            "latency": {str(bucket): count for bucket, count in arm.latency.items()}, "failed": failed, "empty": empty,
        }  # fmt: skip


def _finding(rule: str, value: float | None, op: Op, bound: float, n: int) -> Result:
    if value is None:
        return moves.finding(rule, Outcome.NO_DATA, None, op, bound, max(n, 0), "nothing came in the last interval")
    held = value >= bound if op == ">=" else value <= bound
    said = f"{value:.3g} by {n} in the last interval, to be {op} {bound:g}"
    return moves.finding(rule, Outcome.PASS if held else Outcome.FAIL, value, op, bound, n, said)
