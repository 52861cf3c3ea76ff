"""Carries out what was decided of a rollout, so that a kill anywhere leaves what the next look finishes. It decides nothing.

A move is prepared in a file, recorded in the ledger, shown to what splits the traffic, and then is the state; last come the
aliases. The ledger entry is what makes it count: a move without one did not happen, a move with one is finished by whoever
comes next. No candidate gets traffic before the ledger says so; taking traffic away never waits for anything.
"""

import logging
import secrets
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from esteira import crash, ledger
from esteira.access import ENGINE, Actor, may
from esteira.errors import EsteiraError, OutsideError, Refused
from esteira.gate import Result
from esteira.release.lifecycle import legal
from esteira.rollout import alerts, files, moves, shifting, telling
from esteira.rollout import split as splits
from esteira.rollout.runtime import Runtime
from esteira.rollout.state import LIVE, PROMOTED, SETTLED, Rollout, is_settled, promoted_at, taken_before

_DISK = frozenset({"disk_full", "cannot_write"})
_OF_IT = frozenset({
    "approval_expired", "approval_used", "approval_void", "archived", "failed_version", "illegal_move", "no_basis", "no_report",
    "not_approved", "not_rehearsed", "not_requested",
})  # fmt: skip
"""Refusals of a promotion that tell of the candidate. Any other tells of this machine, its clock or its key: another look may make it."""

_log = logging.getLogger("esteira.rollout")


class _NotPromoted(Exception):
    """The registry refuses to make it the champion."""


def carry_out(
    run: Runtime, before: Rollout | None, after: Rollout, *, action: str, reason: str, findings: Sequence[Result] = (),
    also: Sequence[tuple[str, dict[str, Any]]] = (),
) -> Rollout:  # fmt: skip
    """Bring a rollout from one state to another: ledger, traffic, state.

    Traffic that cannot be given is not given: the state stays what it was, with an alert, and the ledger says so too.
    Traffic that cannot be taken away is taken away at the next look that can; the state has an alert until then. Taking it
    away waits neither for the ledger nor for a disk.

    Args:
        before: the state as it is; None or one of another test where this one begins.
        action: the word for it in the ledger's entry of the traffic.
        also: what else the ledger is told of it, kind and evidence.

    Returns:
        The state as it is now.

    Raises:
        OutsideError: the store cannot be written, or a rollout cannot begin since its traffic cannot be given.
    """
    move = secrets.token_hex(8)
    falls = after.percent < taken_before(before, after)
    late = ""
    try:
        files.prepare(run.home, after, move)
    except OutsideError as error:
        if not falls:
            raise
        late = f"disk: {error.message}"
    crash.point("rollout.before_record")
    told = [
        *telling.entries(before, after, action=action, reason=reason, findings=findings, move=move, at=run.now),
        *also,
    ]
    try:
        telling.append(run, after, told)
    except Exception as error:
        if not falls:
            raise
        # Away, a standby, of a newer schema, spoiled: a bad candidate waits for no store. The next look that can writes the entry.
        late = f"ledger: {alerts.said(error)}"
    crash.point("rollout.before_shift")
    return _finish(run, before, after, late=late)


def recover(run: Runtime, *, up: bool = True) -> Rollout | None:
    """The state of the line's rollout, after finishing what somebody else's end left half done; None without a rollout.

    Args:
        up: give traffic that was yet to be given. Without it that move is the state all the same, for who takes all of it away now.

    Raises:
        Refused: code `bad_rollout_state`.
        OutsideError: something was left half done, and the ledger, which says whether it counts, is away.
    """
    state = files.load(run.home, run.line)
    found = files.prepared(run.home, run.line)
    if found is None:
        return state
    move, after = found
    recorded = any(entry.evidence.get("move") == move for entry in ledger.log(run.store, run.line, limit=None))
    if not recorded:
        began = state is None or state.test_id != after.test_id
        # The challenger of a start that was cut off would stand in the way of every other.
        if began and (why := _drop_challenger(run, after, "its start was cut off")):
            _log.error("%s: %s", run.line, why)
            return state
        files.discard(run.home, run.line)
        return state
    _log.warning("%s: a move that was cut off is finished: %s at %g %%", run.line, after.status, after.percent)
    if (
        state is not None
        and state.test_id == after.test_id
        and state.status == after.status
        and state.status not in LIVE
    ):
        # Only its preparation was left over.
        files.discard(run.home, run.line)
        return state
    if after.status in LIVE and after.percent > taken_before(state, after):
        # Its share begins now, whenever it was decided: the time in between is no time in the stage.
        looked = None if after.looked_at is None else max(after.looked_at, run.now)
        after = replace(after, stage_at=max(after.stage_at, run.now), looked_at=looked)
    try:
        if not up:
            return _finish(run, state, after, up=False)
        if after.status == "approved" and _refusal(run, after):
            return settle(run, _finish(run, state, after, up=False))
        return _finish(run, state, after)
    except OutsideError:
        return files.load(run.home, run.line)


def settle(run: Runtime, state: Rollout, *, at_once: bool = False) -> Rollout:
    """Bring traffic and aliases of an ended rollout to where its end says; as much as can be done now.

    An approved candidate becomes the champion, and once the champion's own service had time to load it, takes its traffic
    as champion. One that the registry refuses, though it said otherwise before the traffic moved, goes back, and its rollout
    ends `inconclusive`. Of any other end all traffic is taken from the candidate. Then it is the challenger no more, and the end is
    settled: what splits the traffic is never touched for it again, because another line's rollout may use it next.

    Args:
        at_once: the champion's service gets its traffic now, whether or not it had its time: something is wrong with the candidate.

    Returns:
        The state, saved, with an alert for what could not be done.
    """
    if is_settled(state):
        return state
    try:
        why, done = ("", _marked(run, state)) if was_carried_out(run, state) else _settled(run, state, at_once)
    except _NotPromoted as refused:
        return _taken_back(run, state, str(refused))
    except Exception as error:  # noqa: BLE001 - as in `carry_out`; what fails by a fault of ours is logged by `said`
        disk = isinstance(error, OutsideError) and error.code in _DISK
        why, done = f"{'disk' if disk else 'ledger'}: {alerts.said(error)}", state
    after = replace(
        done, alert=alerts.joined(why, alerts.own_alert(done.alert, of=alerts.UNDONE) or alerts.end_alert(done))
    )
    if after != state:
        if after.alert and after.alert != state.alert:
            _log.error("%s: %s", run.line, after.alert)
        try:
            files.save(run.home, after)
        except OutsideError as error:  # the state that is there leads the next look here again
            return replace(
                after, alert=alerts.joined(f"disk: {error.message}", alerts.own_alert(after.alert, of=alerts.UNDONE))
            )
    return after


def was_carried_out(run: Runtime, state: Rollout) -> bool:
    """The same by what files, ledger and aliases say: of ends from before they were marked, or cut off before the mark.

    Raises:
        OutsideError: the store is away.
    """
    if state.status in LIVE or splits.path(run.home, run.line).exists():
        return False
    challenger = run.registry.resolve(run.line, "challenger")
    if challenger is not None and challenger.version == state.challenger.version:
        return False
    if state.status == "approved":
        return promoted_at(state) is not None
    _, ended = telling.told_course(run, state)
    last = telling.recorded_traffic(run, state)
    return ended is not None and ended["status"] == state.status and (last is None or float(last["to"]) == 0)


def promotion_due(run: Runtime, state: Rollout) -> bool:
    """Whether an approved candidate has yet to become the champion. A promotion that was made and undone since is none."""
    if state.status != "approved" or promoted_at(state) is not None:
        return False
    champion = run.registry.resolve(run.line)
    if champion is None or champion.bundle_id != state.champion.bundle_id:
        return False  # it is the champion, or another one was made that since
    ended = False
    for entry in ledger.log(run.store, run.line, limit=None):
        if entry.kind == "rollout" and entry.evidence.get("test_id") == state.test_id:
            ended = ended or entry.evidence.get("action") == "ended"
        moves = entry.evidence.get("moves")
        if ended and isinstance(moves, dict) and moves.get("champion", [None, None])[1] == state.challenger.version:
            return False
    return True


def _finish(run: Runtime, before: Rollout | None, after: Rollout, *, late: str = "", up: bool = True) -> Rollout:
    """What comes after the entry: traffic, state, aliases; without `up`, of a move that gives traffic, the state alone."""
    same = before is not None and before.test_id == after.test_id
    old = taken_before(before, after)
    if after.percent > old and not up:
        files.commit(run.home, after)
        return after
    moved = old != after.percent
    expected = shifting.split_of(run, after) if after.percent > 0 else None
    why = shifting.shift(run, expected, first=not same) if moved else ""
    if why and after.percent > old:
        return _give_up(run, before if same else None, after, why)
    crash.point("rollout.before_state")
    after = replace(after, alert=alerts.joined(why or late, after.alert or alerts.end_alert(after)))
    try:
        files.commit(run.home, after)
    except OutsideError as error:
        if after.percent >= old:
            raise
        return _unsaved(run, after, error)
    crash.point("rollout.before_registry")
    return after if after.status in LIVE else settle(run, after)


def _unsaved(run: Runtime, after: Rollout, error: OutsideError) -> Rollout:
    """The state after its traffic was taken away, where the disk does not take it: the former must not give it back."""
    why = f"disk: {error.message}"
    try:
        files.withdraw(run.home, run.line)
    except OutsideError as stuck:
        why = f"{why}; {stuck.message}"
    _log.error("%s: %s", run.line, why)
    return (
        after
        if alerts.alert_kind(after.alert) in alerts.UNDONE
        else replace(after, alert=alerts.joined(why, after.alert))
    )


def _give_up(run: Runtime, before: Rollout | None, after: Rollout, why: str) -> Rollout:
    """Traffic could not be given: back to what was, in the ledger and in the state."""
    if before is not None:
        telling.note_traffic(run, before, after.percent, before.percent, "hold", why)
        shifting.shift(run, shifting.split_of(run, before))  # a file that was written before the proxy failed
        held = replace(before, alert=why)
        _log.error("%s: %s", run.line, why)
        files.commit(run.home, held)
        return held
    shifting.shift(run, None)
    splits.clear(run.home, run.line)
    evidence = {"test_id": after.test_id, "reason": why, "findings": [], "at": run.now.isoformat()}
    back = {**evidence, **telling.traffic(after, after.percent, 0.0), "stage": after.stage, "action": "hold"}
    ended = {**evidence, "action": "ended", "status": "not_started"}
    telling.append(run, after, [("traffic", back), ("rollout", ended)])
    files.discard(run.home, run.line)
    _drop_challenger(run, after, why)
    raise OutsideError(
        f"a rollout begins when its traffic can be given, but {why}",
        code="target_away",
        where=run.line,
        cure="see that what ESTEIRA_TARGET names is up, then start again",
    )


def _settled(run: Runtime, state: Rollout, at_once: bool) -> tuple[str, Rollout]:
    if state.status != "approved":
        why = shifting.reconcile(run, state)
        if not why and splits.path(run.home, run.line).exists():
            why = shifting.shift(run, None)
        return _last(run, state, why)
    if promoted_at(state) is None:
        why = ""
        if promotion_due(run, state):
            if run.target.share() != state.percent and (refusal := _refusal(run, state)):
                raise _NotPromoted(refusal)
            why = shifting.reconcile(run, state)
        refused, state = _promote(run, state)
        why = refused or why
        if promoted_at(state) is None:
            return why, state
    since = promoted_at(state)
    assert since is not None
    if not at_once and (run.now - since).total_seconds() < run.target.settle_seconds:
        return "", state
    crash.point("rollout.before_handover")
    if run.target.share() != 0 or splits.path(run.home, run.line).exists():
        return _last(run, state, shifting.shift(run, None))
    return _last(run, state, "")


def _taken_back(run: Runtime, state: Rollout, refusal: str) -> Rollout:
    """An approved candidate that the registry refuses is no champion, so it does not keep the traffic. Nothing bad was seen of
    it: it needs no rest."""
    reason = f"the registry refused the promotion: {refusal}"
    after = replace(
        moves.ended(state, run.now, "inconclusive", "inconclusive", run.actor.name, reason), cooldown_until=None
    )
    _log.error("%s: %s", run.line, reason)
    return carry_out(run, state, after, action="inconclusive", reason=reason)


def _last(run: Runtime, state: Rollout, why: str) -> tuple[str, Rollout]:
    """What is left when the traffic is where it belongs, and the note that all is done: alert and state."""
    if why:
        return why, state
    if telling.end_untold(run, state):
        telling.append(run, state, [("rollout", telling.end_of(run, state))])
    why = _drop_challenger(run, state, f"rollout {state.status}")
    if why:
        return why, state
    return "", _marked(run, state)


def _marked(run: Runtime, state: Rollout) -> Rollout:
    reason = f"the end, {state.status}, is carried out"
    return moves.noted(state, run.now, SETTLED, state.percent, run.actor.name, reason)


def _promote(run: Runtime, state: Rollout) -> tuple[str, Rollout]:
    """Make the candidate the champion, unless it became that already: alert and state.

    Raises:
        _NotPromoted: the registry refuses it.
    """
    version = state.challenger.version
    if promotion_due(run, state):
        evidence = {"test_id": state.test_id, "at": run.now.isoformat()}
        reason = next((str(e["reason"]) for e in reversed(state.history) if e.get("action") == "promote"), "approved")
        try:
            run.registry.promote(run.line, version, actor=_promoter(run), reason=reason, evidence=evidence, now=run.now)
        except EsteiraError as error:
            if isinstance(error, Refused) and error.code in _OF_IT:
                raise _NotPromoted(error.message) from error
            return f"registry: {error.message}", state
    mark = {
        "at": run.now.isoformat(), "action": PROMOTED, "from": 100.0, "to": 100.0, "actor": run.actor.name,
        "reason": f"version {version} is the champion, or was until a later move",
    }  # fmt: skip
    after = replace(state, history=(*state.history, mark))
    files.save(run.home, after)
    return "", after


def _refusal(run: Runtime, state: Rollout) -> str:
    """What the registry has against this candidate as champion, before it gets the traffic for it; empty when nothing is known."""
    evidence = {"test_id": state.test_id}
    try:
        run.registry.check_promote(
            run.line, state.challenger.version, actor=_promoter(run), evidence=evidence, now=run.now
        )
    except EsteiraError as error:
        return error.message if error.code in _OF_IT else ""
    return ""


def _promoter(run: Runtime) -> Actor:
    # The decision was made by who might; who finishes it after a kill need not be the same.
    return run.actor if may(run.actor, "promote") else ENGINE


def _drop_challenger(run: Runtime, state: Rollout, reason: str) -> str:
    """The end of the test in the registry; a version that was rolled back is marked so, where its state lets it be."""
    try:
        found = run.registry.resolve(run.line, "challenger")
        if found is None or found.version != state.challenger.version:
            return ""
        marked = state.status == "rolled_back" and legal(found.state, "rolled_back")
        run.registry.drop_alias(
            run.line, "challenger", actor=run.actor, reason=reason, now=run.now, state="rolled_back" if marked else None
        )
    except EsteiraError as error:
        return f"registry: {error.message}"
    return ""
