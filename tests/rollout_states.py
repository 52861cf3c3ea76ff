"""Rollouts and arms for the tests of the policies, in as few words as a test can be read by."""

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from esteira.latency import BOUNDS
from esteira.rollout.state import Rollout, Side
from esteira.rollout.sums import ArmName, Sums, Tally

START = datetime(2026, 11, 22, 12, tzinfo=UTC)


def after(hours: float = 0.0, *, minutes: float = 0.0) -> datetime:
    """The time so long after START."""
    return START + timedelta(hours=hours, minutes=minutes)


def arm(
    served: int = 10_000, accuracy: float = 0.75, *, labelled: int | None = None, errors: int = 0,
    confidence: float | None = 0.8, seconds: float | None = 0.0105,
) -> Sums:  # fmt: skip
    """What an arm did, every answer equally long and equally sure; outcomes are 0 and 1."""
    known = served if labelled is None else labelled
    right = round(accuracy * known)
    sure = served - errors if confidence is not None else 0
    value = confidence or 0.0
    return Sums(
        served=served, errors=errors, labelled=known, outcome=right, outcome_sq=right, sure=sure,
        confidence=sure * value, confidence_sq=sure * value * value,
        latency={} if seconds is None else {bisect_right(BOUNDS, seconds): served - errors},
    )  # fmt: skip


def answered(seconds: float, *, confidence: float | None = None, error: bool = False) -> Sums:
    """One served unit, as a service counts it."""
    tally = Tally()
    tally.add(seconds, [confidence], error=error)
    return tally.sums()


def arms(candidate: Sums | None = None, control: Sums | None = None) -> Mapping[ArmName, Sums]:
    """A stage's two arms; by default both do well."""
    return {"candidate": arm() if candidate is None else candidate, "control": arm() if control is None else control}


def rollout(stage: int = 0, sums: Mapping[int, Mapping[ArmName, Sums]] | None = None, **fields: Any) -> Rollout:
    """A rollout that runs since START; the present stage's arms do well unless `sums` says otherwise."""
    state = Rollout(
        test_id="t1", line="tabular", policy="rules", champion=Side(1, "a" * 64), challenger=Side(2, "b" * 64),
        salt="salt", started_at=START, stage_at=START, stage=stage, percent=(10.0, 25.0, 50.0)[stage],
        sums={place: arms() for place in range(stage + 1)} if sums is None else sums,
    )  # fmt: skip
    return replace(state, **fields)
