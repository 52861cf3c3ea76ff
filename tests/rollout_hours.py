"""Small rollouts for tests of policies: a state, its sums, and hours that pass on a clock of the test's own."""

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from esteira.latency import BOUNDS
from esteira.rollout.state import Decision, Policy, Rollout, Side
from esteira.rollout.sums import ArmName, Sums

START = datetime(2026, 3, 2, 8, 0, tzinfo=UTC)


def at(hours: float) -> datetime:
    """So many hours after the start."""
    return START + timedelta(hours=hours)


def begun(policy: Policy, **changes: Any) -> Rollout:
    """A rollout that starts now."""
    state = Rollout(
        test_id="t-1", line="tabular", policy=policy.name, champion=Side(1, "a" * 64), challenger=Side(2, "b" * 64),
        salt="salt", started_at=START, stage_at=START, percent=policy.stages[0],
    )  # fmt: skip
    return replace(state, **changes)


def sums(
    served: int, accuracy: float = 0.75, *, labelled: int | None = None, errors: int = 0, confidence: float = 0.8,
    seconds: float = 0.03,
) -> Sums:  # fmt: skip
    """An arm with outcomes of 0 and 1 whose answers all took the same time."""
    known = served - errors if labelled is None else labelled
    right = float(round(known * accuracy))
    sure = served - errors
    return Sums(
        served=served, errors=errors, labelled=known, outcome=right, outcome_sq=right, sure=sure,
        confidence=sure * confidence, confidence_sq=sure * (confidence**2 + 0.01),
        latency={bisect_right(BOUNDS, seconds): sure} if sure else {},
    )  # fmt: skip


class Passing:
    """A rollout to which units come hour by hour, in the shares of its stage.

    Args:
        units: an hour, both arms together.
        candidate, control: how the arms do, as keywords of `sums` and `error_rate`.
    """

    def __init__(
        self, policy: Policy, units: int = 400, *, candidate: Mapping[str, Any] | None = None,
        control: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        self.policy, self.units = policy, units
        self.kinds: dict[ArmName, dict[str, Any]] = {"candidate": dict(candidate or {}), "control": dict(control or {})}
        self.state = begun(policy)
        self.hours = 0.0
        self.decisions: list[Decision] = []

    def hour(self, units: int | None = None) -> Decision:
        """One more hour, and its look."""
        every = self.units if units is None else units
        stage, share = self.state.stage, self.state.percent / 100
        counts: dict[ArmName, int] = {"candidate": round(every * share), "control": every - round(every * share)}
        arms = {name: self.state.arm(name) + self._part(name, count) for name, count in counts.items()}
        self.state = self.state.with_sums({**self.state.sums, stage: arms})
        self.hours += 1
        return self.look()

    def _part(self, name: ArmName, count: int) -> Sums:
        said = dict(self.kinds[name])
        rate = said.pop("error_rate", 0.0)
        return sums(count, errors=round(count * rate), **said)

    def look(self, hours: float | None = None) -> Decision:
        """The policy's decision now, or so many hours after the start."""
        decision = self.policy.decide(self.state, at(self.hours if hours is None else hours))
        self.state = decision.state
        self.decisions.append(decision)
        return decision

    def until_it_ends(self, most: int = 700) -> Decision:
        """Hours pass until it ended or `most` have passed."""
        decision = self.hour()
        while decision.state.status == "running" and self.hours < most:
            decision = self.hour()
        return decision
