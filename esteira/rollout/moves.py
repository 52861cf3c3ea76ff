"""What every policy does alike: whether a look is due, and how a rollout stands after each action. Values only, no clock."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from esteira.gate import Op, Outcome, Result
from esteira.rollout.state import Action, Decision, Rollout, Status

HOUR = 3600.0
EARLY = 30.0
"""Seconds that an hourly look may come early: what starts it, such as a CronJob, comes some seconds sooner or later."""
COOLDOWN = timedelta(hours=24)
"""How long a candidate that was rolled back is not tried again (H-44)."""
CLOCK = "the clock went back"
"""How the alert of a clock that went back begins."""


def still(state: Rollout) -> Decision | None:
    """The decision of a rollout that is paused or has ended, which is to hold it as it is; None for one that runs."""
    if state.status == "running":
        return None
    since = f" since {_text(state.paused_at)}" if state.paused_at is not None else ""
    said = f"it is paused{since}" if state.status == "paused" else f"it has ended: {state.status}"
    return Decision("hold", state.percent, Outcome.NO_DATA, said, (), state)


def backwards(state: Rollout, now: datetime) -> bool:
    """Whether the clock stands before what was seen of it: no time has passed then, so no look is due."""
    return now < state.stage_at or (state.looked_at is not None and now < state.looked_at)


def hour_due(state: Rollout, now: datetime) -> bool:
    """Whether an hour of this stage has passed since its last hourly look, or since its beginning.

    A look that comes late or was missed is made once, when it comes; the next is due an hour after it, so that two looks
    in a row always see an hour's more data.
    """
    if backwards(state, now):
        return False
    passed = state.seconds(now) if state.judged_at is None else (now - state.judged_at).total_seconds()
    return passed >= HOUR - EARLY


def not_yet(state: Rollout, now: datetime, said: str) -> Decision | None:
    """For a policy that looks once an hour and at no other time: what it decides between its looks; None when one is due.

    Args:
        said: why nothing is decided before the hour is over.
    """
    kept = still(state)
    if kept is not None:
        return kept
    if backwards(state, now):
        return clock_back(state, now)
    return None if hour_due(state, now) else hold(state, now, said)


def due_look(state: Rollout, now: datetime, seconds: float, most: int) -> int:
    """Number of the look that is due: how often the stage's time has passed; 0 when it was made already.

    After missed looks only the last one is due.

    Args:
        seconds: the stage's time.
        most: looks a stage has.
    """
    if backwards(state, now):
        return 0
    # A millionth of a second is what sums of pauses are off by.
    look = min(most, int((state.seconds(now) + 1e-6) // seconds))
    return look if look > state.looks else 0


def hold(
    state: Rollout, now: datetime, reason: str, findings: Sequence[Result] = (), *, outcome: Outcome | None = None,
    **changes: Any,
) -> Decision:  # fmt: skip
    """The share stays. PASS where all that was looked at passed, else NO_DATA; an alert of the clock is taken back.

    Args:
        changes: fields of the state, such as `looks`.
    """
    if state.alert.startswith(CLOCK):
        changes.setdefault("alert", "")
    if outcome is None:
        passed = bool(findings) and all(one.outcome is Outcome.PASS for one in findings)
        outcome = Outcome.PASS if passed else Outcome.NO_DATA
    return Decision("hold", state.percent, outcome, reason, tuple(findings), _seen(state, now, changes))


def clock_back(state: Rollout, now: datetime) -> Decision:
    """Nothing is decided by a clock that went back; what was seen of it stays, and a person is told."""
    seen = max(state.stage_at, state.looked_at or state.stage_at)
    said = f"{CLOCK}: it says {_text(now)}, but it was {_text(seen)} already; nothing is decided by time until then"
    return Decision("hold", state.percent, Outcome.NO_DATA, said, (), replace(state, alert=said))


def advance(
    state: Rollout, now: datetime, percent: float, reason: str, findings: Sequence[Result] = (), **changes: Any
) -> Decision:
    """The next stage begins now: its time, looks and counts in a row start anew."""
    fresh: dict[str, Any] = {
        "stage": state.stage + 1, "percent": percent, "stage_at": now, "paused_seconds": 0.0, "looks": 0, "negatives": 0,
        "judged_at": None, "alert": "",
    }  # fmt: skip
    return _act("advance", Outcome.PASS, state, now, percent, reason, findings, {**fresh, **changes})


def promote(state: Rollout, now: datetime, reason: str, findings: Sequence[Result] = (), **changes: Any) -> Decision:
    """The candidate takes everything and becomes the champion."""
    end = _end("approved", now)
    return _act("promote", Outcome.PASS, state, now, 100.0, reason, findings, {**end, **changes})


def roll_back(state: Rollout, now: datetime, reason: str, findings: Sequence[Result] = (), **changes: Any) -> Decision:
    """The champion takes everything back, and the candidate is not tried again for a day (H-44)."""
    end = {**_end("rolled_back", now), "alert": reason}
    return _act("roll_back", Outcome.FAIL, state, now, 0.0, reason, findings, {**end, **changes})


def inconclusive(
    state: Rollout, now: datetime, reason: str, findings: Sequence[Result] = (), **changes: Any
) -> Decision:
    """The champion takes everything back because the time is over and nothing was shown."""
    end = {**_end("inconclusive", now), "alert": reason}
    return _act("inconclusive", Outcome.NO_DATA, state, now, 0.0, reason, findings, {**end, **changes})


def ended(state: Rollout, now: datetime, status: Status, action: str, actor: str, reason: str) -> Rollout:
    """The same at an end that no policy decided; it may have been paused."""
    end = _end(status, now)
    history = _more(state, now, action, end["percent"], actor, reason)
    return state.changed(
        {
            **end,
            "paused_at": None,
            "paused_seconds": state.paused_seconds + _away(state, now).total_seconds(),
            "history": history,
        }
    )


def _end(status: Status, now: datetime) -> dict[str, Any]:
    """What every end of this kind changes: all or nothing for the candidate, and a rest unless it won."""
    won = status == "approved"
    return {
        "status": status, "percent": 100.0 if won else 0.0, "cooldown_until": None if won else now + COOLDOWN, "alert": "",
    }  # fmt: skip


def paused(state: Rollout, now: datetime, actor: str, reason: str) -> Rollout:
    """The same, paused now; its share stays and its time stands still. Of a running rollout."""
    history = _more(state, now, "pause", state.percent, actor, reason)
    return replace(state, status="paused", paused_at=now, history=history)


def resumed(state: Rollout, now: datetime, actor: str, reason: str) -> Rollout:
    """The same, running on: neither the stage's time nor the hour since the last look counts the pause (H-42)."""
    away = _away(state, now)
    return replace(
        state,
        status="running",
        paused_at=None,
        paused_seconds=state.paused_seconds + away.total_seconds(),
        judged_at=None if state.judged_at is None else state.judged_at + away,
        history=_more(state, now, "resume", state.percent, actor, reason),
    )


def _away(state: Rollout, now: datetime) -> timedelta:
    """How long it is paused by now; nothing where it is not."""
    return max(timedelta(0), now - (state.paused_at or now))


def noted(state: Rollout, now: datetime, action: str, to: float, actor: str, reason: str) -> Rollout:
    """The same with one more line of history; the percent is not changed."""
    return replace(state, history=_more(state, now, action, to, actor, reason))


def finding(
    rule: str, outcome: Outcome, value: float | None, op: Op, bound: float, n: int | None, reason: str, *,
    metric: str = "", interval: tuple[float, float] | None = None,
) -> Result:  # fmt: skip
    """What a rule found, in the gate's words: `value op bound` had to hold."""
    return Result(
        rule=rule, outcome=outcome, metric=metric or rule, value=value, op=op, bound=bound, n=n, interval=interval,
        reason=reason,
    )  # fmt: skip


def _act(
    action: Action, outcome: Outcome, state: Rollout, now: datetime, to: float, reason: str, findings: Sequence[Result],
    changes: Mapping[str, Any],
) -> Decision:  # fmt: skip
    history = _more(state, now, action, to, f"policy {state.policy}", reason)
    return Decision(action, to, outcome, reason, tuple(findings), _seen(state, now, {**changes, "history": history}))


def _more(
    state: Rollout, now: datetime, action: str, to: float, actor: str, reason: str
) -> tuple[Mapping[str, Any], ...]:
    line = {"at": _text(now), "action": action, "from": state.percent, "to": to, "actor": actor, "reason": reason}
    return (*state.history, line)


def _seen(state: Rollout, now: datetime, changes: Mapping[str, Any]) -> Rollout:
    """The state after a look."""
    looked = now if state.looked_at is None else max(now, state.looked_at)
    return state.changed({"looked_at": looked, **changes})


def _text(time: datetime | None) -> str:
    return "" if time is None else time.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
