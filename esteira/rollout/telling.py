"""What the ledger is told of a rollout, and what it knows of one: beginning, changes of traffic, end."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from esteira import ledger
from esteira.gate import Result
from esteira.rollout.runtime import Runtime
from esteira.rollout.split import side_dict
from esteira.rollout.state import LIVE, Rollout, last_decided, taken_before, why_ended
from esteira.store.releases import Releases

_LATE = "the ledger was away when this became so"


def entries(
    before: Rollout | None, after: Rollout, *, action: str, reason: str, findings: Sequence[Result], move: str, at: datetime
) -> list[tuple[str, dict[str, Any]]]:  # fmt: skip
    """What the ledger is told of a move: kind and evidence, in order. Pure."""
    common = {
        "test_id": after.test_id,
        "reason": reason,
        "findings": [finding.model_dump(mode="json") for finding in findings],
        "stage": after.stage,
        "at": at.isoformat(),
        "move": move,
    }
    found: list[tuple[str, dict[str, Any]]] = []
    if before is None or before.test_id != after.test_id:
        plan = {"policy": after.policy, "options": dict(after.options), "champion": side_dict(after.champion)}
        found.append(("rollout", {**common, **plan, "action": "started", "challenger": side_dict(after.challenger)}))
    elif before.status != after.status:
        word = {"paused": "paused", "running": "resumed"}.get(after.status, "ended")
        until = None if after.cooldown_until is None else after.cooldown_until.isoformat()
        found.append(("rollout", {**common, "action": word, "status": after.status, "cooldown_until": until}))
    old = taken_before(before, after)
    if old != after.percent:
        found.append(("traffic", {**common, **traffic(after, old, after.percent), "action": action}))
    return found


def traffic(state: Rollout, old: float, new: float) -> dict[str, Any]:
    """The shares of an entry: every version that takes traffic, together 1."""
    share = round(new / 100, 6)
    both = ((state.champion, round(1 - share, 6)), (state.challenger, share))
    return {"from": old, "to": new, "shares": [{**side_dict(side), "share": part} for side, part in both if part > 0]}


def append(run: Runtime, state: Rollout, told: Sequence[tuple[str, dict[str, Any]]]) -> None:
    """Append entries of the candidate, all or none."""
    with run.store.begin() as connection:
        run.store.alone(connection)
        for kind, evidence in told:
            ledger.append(
                run.store, kind=kind, line=run.line, actor=run.actor.name, evidence={**evidence, **run.actor.told()}, now=run.now,
                version=state.challenger.version, bundle_id=state.challenger.bundle_id, connection=connection,
            )  # fmt: skip


def note(run: Runtime, state: Rollout, action: str, reason: str, findings: Sequence[Result] = ()) -> None:
    """Tell the ledger of a rollout what moves nothing."""
    evidence = {
        "test_id": state.test_id,
        "action": action,
        "reason": reason,
        "findings": [finding.model_dump(mode="json") for finding in findings],
        "at": run.now.isoformat(),
    }
    append(run, state, [("rollout", evidence)])


def note_traffic(run: Runtime, state: Rollout, old: float, new: float, action: str, reason: str) -> None:
    evidence = {
        "test_id": state.test_id,
        "stage": state.stage,
        **traffic(state, old, new),
        "action": action,
        "reason": reason,
        "findings": [],
        "at": run.now.isoformat(),
    }
    append(run, state, [("traffic", evidence)])


def note_late(run: Runtime, state: Rollout, said: float) -> None:
    """What is so already and the ledger could not be told at its time; by whom and when it was decided it is told, too."""
    told: list[tuple[str, dict[str, Any]]] = []
    if end_untold(run, state):
        told.append(("rollout", end_of(run, state)))
    whose = _decided(state)
    by = f": {last_decided(state)['action']} by {whose['decided_by']} at {whose['decided_at']}" if whose else ""
    shares = {**traffic(state, said, state.percent), "test_id": state.test_id, "at": run.now.isoformat(), **whose}
    told.append(
        ("traffic", {**shares, "stage": state.stage, "action": "restore", "reason": _LATE + by, "findings": []})
    )
    append(run, state, told)


def recorded_traffic(run: Runtime, state: Rollout) -> Mapping[str, Any] | None:
    """The evidence of this test's last entry of the traffic; None when there is none."""
    for limit in (100, None):
        for entry in reversed(ledger.log(run.store, run.line, limit=limit)):
            if entry.kind == "traffic" and entry.evidence.get("test_id") == state.test_id:
                return entry.evidence
    return None


def told_course(run: Runtime, state: Rollout) -> tuple[bool, Mapping[str, Any] | None]:
    """Whether the ledger knows of this test's beginning, and the evidence of its last end; None before it ended."""
    ended: Mapping[str, Any] | None = None
    with run.store.read() as connection:
        for entry in Releases(run.store).entries(connection, run.line, "rollout"):
            said = entry["evidence"]
            if said.get("test_id") == state.test_id:
                if said.get("action") == "started":
                    return True, ended
                if said.get("action") == "ended" and ended is None:
                    ended = said
    return False, ended


def end_untold(run: Runtime, state: Rollout) -> bool:
    """Whether the ledger knows this rollout, and not that it ended without success. An end by success is told before it is one."""
    if state.status in LIVE or state.status == "approved":
        return False
    started, ended = told_course(run, state)
    # A promotion that could not get its traffic was told as an end, too, and then it went on.
    return started and (ended is None or ended["status"] == "approved")


def end_of(run: Runtime, state: Rollout) -> dict[str, Any]:
    """The evidence of an end that the ledger could not be told at its time."""
    until = None if state.cooldown_until is None else state.cooldown_until.isoformat()
    return {
        "test_id": state.test_id, "reason": why_ended(state) or _LATE, "findings": [], "at": run.now.isoformat(),
        "action": "ended", "status": state.status, "cooldown_until": until, "late": _LATE, **_decided(state),
    }  # fmt: skip


def _decided(state: Rollout) -> dict[str, Any]:
    """By whom and when an end was decided that the ledger is told later, by somebody else; nothing while it is live."""
    last = {} if state.status in LIVE else last_decided(state)
    return {"decided_by": last["actor"], "decided_at": last["at"]} if last else {}
