"""One look at a line's rollout: what was cut off is finished, what was measured is read, the policy decides, it is carried out.

Safe to repeat, to run twice at once (the second is refused), to kill anywhere, and to run late; a clock that goes back and a
paused rollout change nothing. What cannot be read, or cannot be decided by, gives no candidate any traffic.
"""

import logging
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

from esteira import ledger
from esteira.access import ENGINE
from esteira.errors import EsteiraError, OutsideError, Refused
from esteira.gate import Outcome
from esteira.registry import Registry
from esteira.rollout import alerts, carrying, files, moves, runtime, shifting, targets, telling
from esteira.rollout import split as splits
from esteira.rollout.policies import make
from esteira.rollout.runtime import Runtime
from esteira.rollout.split import Split
from esteira.rollout.state import LIVE, Action, Decision, Policy, Rollout, Side, Status, under_way, why_ended
from esteira.settings import Settings

_UP: frozenset[Action] = frozenset({"advance", "promote"})
_DOWN: frozenset[Action] = frozenset({"roll_back", "inconclusive"})

_log = logging.getLogger("esteira.rollout")


def tick(
    line: str,
    *,
    settings: Settings,
    now: datetime,
    target: targets.Target | None = None,
    registry: Registry | None = None,
) -> Decision | None:
    """Look at a line's rollout once.

    Args:
        now: aware. A time before the last look changes nothing.
        target: what splits the traffic; the settings' by default.
        registry: an open one to use.

    Returns:
        What was decided and carried out, with the state as it is now; None where no rollout is under way.

    Raises:
        Refused: code `locked`; somebody else looks at it or changes it now.
        OutsideError: what was cut off cannot be finished, or what was decided not recorded, because store or disk are away.
    """
    what = f"looking at the rollout of {line}"
    with runtime.opened(
        line, settings=settings, now=now, actor=ENGINE, what=what, target=target, registry=registry
    ) as run:
        return look(run)


def look(run: Runtime) -> Decision | None:
    """The same for who holds the line's lock already."""
    try:
        former = files.load(run.home, run.line)
        state = carrying.recover(run)
    except Refused as error:
        return lost(run, error.message)
    if state is None:
        if splits.path(run.home, run.line).exists():
            return lost(run, "the state of the rollout is gone, but its split is there")
        backup = files.load_backup(run.home, run.line)
        if backup is not None and under_way(backup):
            return lost(run, "the state of the rollout is gone, and by the one before it was under way")
        return None
    if state.status not in LIVE:
        return _ended(former, carrying.settle(run, state))
    try:
        policy = make(state.policy)
    except EsteiraError as error:
        return lost(run, error.message)
    if state.stage >= len(policy.stages):
        return lost(
            run, f"policy {state.policy} has {len(policy.stages)} stages, but the state is in stage {state.stage}"
        )
    return _decide(run, state, policy)


def measured(run: Runtime, state: Rollout) -> Rollout:
    """The state with what both arms did by now.

    Raises:
        OutsideError: the store is away.
        Refused: it holds something else than sums.
    """
    from esteira.store.rollouts import Rollouts

    return state.with_sums(Rollouts(run.store).sums(state.test_id))


def _decide(run: Runtime, state: Rollout, policy: Policy) -> Decision | None:
    # What the engine said at the last look is found anew, or over.
    known = replace(state, alert=alerts.own_alert(state.alert))
    try:
        _, told = telling.told_course(run, state)
        ended = None if told is not None and told["status"] != "approved" else _champion_moved(run, state)
    except OutsideError as error:
        return _keep(run, state, _hold(known, error.message), f"registry: {error.message}")
    if ended is not None:
        return ended
    if told is not None and told["status"] != "approved":
        return lost(run, f"it goes on by its state, but by the ledger it ended as {told['status']}")
    try:
        shifting.split_of(run, state)
    except Exception as error:  # noqa: BLE001 - see `_undecided`
        return lost(run, _undecided(state, error))
    try:
        why = shifting.reconcile(run, state)
    except OutsideError as error:
        return _keep(run, state, _hold(known, error.message), f"ledger: {error.message}")
    try:
        seen = measured(run, known)
    except (OutsideError, Refused) as error:
        return _keep(run, state, _hold(known, error.message), f"sums: {error.message}")
    try:
        decision = policy.decide(seen, run.now)
    except Exception as error:  # noqa: BLE001 - see `_undecided`
        return lost(run, _undecided(state, error))
    if decision.action in _DOWN:
        return _end(run, state, decision)
    if decision.action in _UP:
        if state.status == "paused":
            # The policies say so themselves; that a pause holds does not hang on each of them.
            return _keep(run, state, _hold(seen, "paused"), why)
        why = why or shifting.too_soon(run, state)
        if not why and decision.action == "promote":
            why = _may_promote(run, state)
        if not why:
            return _advance(run, state, decision)
        return _keep(run, state, _hold(seen, f"{decision.action} has to wait: {why}"), why)
    return _keep(run, state, decision, why)


def _undecided(state: Rollout, error: Exception) -> str:
    """Why a policy that fails ends its rollout: by H-45, since what it kept is not what it can go on by, whatever it raised."""
    _log.error("policy %s of %s", state.policy, state.line, exc_info=error)
    return f"policy {state.policy} can decide by what the state holds, but {alerts.said(error)[:200]}"


def _advance(run: Runtime, state: Rollout, decision: Decision) -> Decision:
    after = carrying.carry_out(
        run, state, decision.state, action=decision.action, reason=decision.reason, findings=decision.findings
    )
    if after.status == state.status and after.stage == state.stage and after.percent == state.percent:
        return _hold(after, f"{decision.action} has to wait: {after.alert}")
    if after.status == "inconclusive":
        return _refused(after)
    return replace(decision, state=after, percent=after.percent)


def _ended(former: Rollout | None, after: Rollout) -> Decision | None:
    """What a look at an ended rollout has to tell: that a promotion was taken back, or that not all is done, as its alert says."""
    if former is not None and former.status != after.status == "inconclusive":
        return _refused(after)
    if alerts.alert_kind(after.alert) in alerts.UNDONE:
        return Decision("settle", after.percent, Outcome.NO_DATA, why_ended(after), (), after)
    return None


def _refused(after: Rollout) -> Decision:
    return Decision("inconclusive", after.percent, Outcome.NO_DATA, why_ended(after), (), after)


def _end(run: Runtime, state: Rollout, decision: Decision) -> Decision:
    until = decision.state.cooldown_until or run.now + moves.COOLDOWN
    after = carrying.carry_out(
        run, state, replace(decision.state, percent=0.0, cooldown_until=until),
        action=decision.action, reason=decision.reason, findings=decision.findings,
    )  # fmt: skip
    return replace(decision, state=after, percent=0.0)


def _keep(run: Runtime, before: Rollout, decision: Decision, why: str) -> Decision:
    """Save what a look that moves nothing found out; a new alert goes to the ledger once."""
    after = replace(decision.state, alert=alerts.joined(why, decision.state.alert))
    if after == before:
        return replace(decision, state=after)
    if alerts.new_alert(before.alert, after.alert):
        _log.warning("%s: %s", run.line, after.alert)
        try:
            telling.note(run, after, "alert", after.alert, decision.findings)
        except OutsideError as error:
            _log.warning("%s: the ledger does not have this alert: %s", run.line, error.message)
    files.save(run.home, after)
    return replace(decision, state=after)


def _hold(state: Rollout, reason: str) -> Decision:
    return Decision("hold", state.percent, Outcome.NO_DATA, reason, (), state)


def _may_promote(run: Runtime, state: Rollout) -> str:
    """Why the registry would not make the candidate the champion now; empty when it would."""
    try:
        run.registry.check_promote(run.line, state.challenger.version, actor=run.actor, now=run.now)
    except EsteiraError as error:
        return f"registry: {error.message}"
    return ""


def _champion_moved(run: Runtime, state: Rollout) -> Decision | None:
    """A rollout compares with the champion that it began with; another champion ends it."""
    champion = run.registry.resolve(run.line)
    if champion is not None and champion.bundle_id == state.champion.bundle_id:
        return None
    if champion is not None and champion.version == state.challenger.version:
        reason = f"version {champion.version} was made the champion by somebody else"
        after = moves.ended(state, run.now, "approved", "promote", run.actor.name, reason)
        kept = carrying.carry_out(run, state, after, action="promote", reason=reason)
        return Decision("promote", kept.percent, Outcome.PASS, reason, (), kept)
    now_is = "no version" if champion is None else f"version {champion.version}"
    reason = (
        f"the champion was version {state.champion.version} and is {now_is}: what was measured is about another control"
    )
    after = moves.ended(state, run.now, "inconclusive", "inconclusive", run.actor.name, reason)
    after = replace(after, cooldown_until=None)
    kept = carrying.carry_out(run, state, after, action="inconclusive", reason=reason)
    return Decision("inconclusive", 0.0, Outcome.NO_DATA, reason, (), kept)


def lost(run: Runtime, reason: str) -> Decision | None:
    """H-45: what cannot be read gives the candidate no traffic. What is known of the rollout is kept as its end, with an alert.

    Repeats itself until it is through: the state that cannot be read is set aside only when the traffic is taken away.

    Raises:
        OutsideError: the traffic is taken away, but the store, which alone knows whose it was, is away, or the disk is full.
    """
    _log.error("%s: %s", run.line, reason)
    alert = f"state: {reason}"
    backup, split = files.load_backup(run.home, run.line), splits.read(splits.path(run.home, run.line))
    found = _remnant(run, backup, split)
    # The traffic goes first. A split that tells nothing and is all there is stays until the ledger said whose it is.
    known = found is not None or files.path(run.home, run.line).exists()
    why = shifting.shift(run, None) if known else shifting.take(run)
    late, told, won = "", None, False
    try:
        found = found or _told(run)
        if found is not None and under_way(found):
            told = telling.told_course(run, found)[1]
            champion = run.registry.resolve(run.line)
            won = champion is not None and champion.version == found.challenger.version
            # That it won is told already, and by its promotion the ledger knows who takes the traffic.
            if not (won and told is not None and told["status"] == "approved"):
                _record_lost(run, found, alert)
    except Exception as error:
        if found is None:
            raise
        # The traffic is taken; a store that cannot be asked, whatever it raises, is told later.
        late = f"ledger: {alerts.said(error)}"
    files.set_aside(run.home, run.line)
    files.discard(run.home, run.line)
    if found is None:
        splits.clear(run.home, run.line)
        return None
    after = found
    if under_way(found):
        after = _end_of_lost(run, found, alert, told, won)
    after = replace(after, alert=alerts.joined(why or late, alert))
    files.save(run.home, after)
    return Decision("inconclusive", 0.0, Outcome.NO_DATA, alert, (), after)


def _end_of_lost(
    run: Runtime, found: Rollout, alert: str, told: Mapping[str, Any] | None, won: bool
) -> Rollout:  # fmt: skip
    """As what it ended: as the ledger says where that knows of its end already, else without a result."""
    status: Status = "approved" if won else "inconclusive"
    if told is not None and told["status"] == "rolled_back" and not won:
        status = "rolled_back"
    after = moves.ended(found, run.now, status, "state_lost", run.actor.name, alert)
    until = None if told is None or not told.get("cooldown_until") else datetime.fromisoformat(told["cooldown_until"])
    return replace(after, cooldown_until=until)


def _record_lost(run: Runtime, found: Rollout, alert: str) -> None:
    last: Mapping[str, Any] | None = telling.recorded_traffic(run, found)
    if last is not None and float(last["to"]) == 0:
        return
    after = moves.ended(found, run.now, "inconclusive", "state_lost", run.actor.name, alert)
    after = replace(after, cooldown_until=None)
    before = replace(found, percent=float(last["to"]) if last else found.percent)
    telling.append(
        run, after, telling.entries(before, after, action="state_lost", reason=alert, findings=(), move="", at=run.now)
    )


def _remnant(run: Runtime, backup: Rollout | None, split: Split | None) -> Rollout | None:
    """What the files still know of a rollout whose state cannot be read: the backup of the same test, or its split."""
    if backup is not None and (split is None or backup.test_id == split.test_id):
        return backup
    return None if split is None else _unplanned(run, split)


def _told(run: Runtime) -> Rollout | None:
    """What the ledger says that is under way: the candidate that took a share by its last entry of the traffic."""
    told = (entry for entry in reversed(ledger.log(run.store, run.line, limit=None)) if entry.kind == "traffic")
    last = next(told, None)
    champion = run.registry.resolve(run.line)
    if last is None or last.version is None or last.bundle_id is None or champion is None:
        return None
    said, challenger = last.evidence, Side(last.version, last.bundle_id)
    others = [Side(one["version"], one["bundle_id"]) for one in said["shares"] if one["version"] != last.version]
    control = others[0] if others else Side(champion.version, champion.bundle_id)
    if not said["to"] or champion.version == challenger.version:
        return None
    return _unplanned(run, Split(said["test_id"], "", said["to"], said["stage"], control, challenger))


def _unplanned(run: Runtime, split: Split) -> Rollout:
    """A rollout of which no more is known than its split."""
    return Rollout(
        test_id=split.test_id, line=run.line, policy="", champion=split.champion, challenger=split.challenger,
        salt=split.salt, started_at=run.now, stage_at=run.now, stage=split.stage, percent=split.percent,
    )  # fmt: skip
