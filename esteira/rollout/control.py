"""What people may do with a rollout (H-46): start, pause, resume, promote and roll back; `shown` tells where it stands.

Each takes who does it and why, holds the line's lock, finishes first what somebody's sudden end left half done, and leaves its
entry in the ledger. `rollback` imports nothing heavy: it is the way out.
"""

import contextlib
import logging
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from esteira import access, ledger, locks
from esteira.access import Actor
from esteira.errors import ConfigError, OutsideError, Refused
from esteira.registry import Registry, Version
from esteira.rollout import alerts, carrying, engine, files, moves, runtime, targets
from esteira.rollout.runtime import Runtime
from esteira.rollout.split import path as split_path
from esteira.rollout.state import LIVE, Rollout, Side, is_settled, promoted_at, under_way, why_ended
from esteira.settings import Settings

if TYPE_CHECKING:
    from esteira.release.policy import ReleasePolicy

_WAIT_SECONDS = 30.0

_log = logging.getLogger("esteira.rollout")


def start(
    line: str,
    *,
    settings: Settings,
    now: datetime,
    actor: Actor,
    reason: str,
    version: int | None = None,
    policy: str | None = None,
    options: Mapping[str, Any] | None = None,
    release: "ReleasePolicy | None" = None,
    target: targets.Target | None = None,
    registry: Registry | None = None,
) -> Rollout:
    """Give a candidate the first share of its line's traffic.

    Args:
        version: the candidate; by default what `staging` names, else `candidate`.
        policy: by which it goes on; by default the line's.
        options: the policy's plan, over the line's own; `min_samples` among them is H-39's.
        release: the line's settings; by default those that the candidate was registered under, and what params.yaml says beyond.

    Returns:
        The state as it is now.

    Raises:
        Refused: code `preconditions` (each missing one is named), `rollout_running`, `cooldown`, `no_champion`,
            `same_version`, `challenger_running`, `target_taken` (another line's rollout splits there), `target_unfit` (it
            cannot do what the policy asks), `not_allowed`, or an approval's; nothing has changed.
        ConfigError: there is no such policy or version, or the options are none of it.
        OutsideError: store or target are away; the candidate has no traffic.
    """
    reason = _reason(reason)
    what = f"starting a rollout of {line}"
    with contextlib.ExitStack() as stack:
        run = stack.enter_context(_opened(line, settings, now, actor, what, target, registry))
        access.require(actor, "rollout", line=line, store=lambda: run.store, now=now)
        stack.enter_context(_target_of_its_own(run))
        _refuse_running(run)
        champion, challenger = _sides(run, version)
        if release is None:
            from esteira.release import approvals
            from esteira.release.policy import in_force

            # What the version was registered under counts from whatever folder it is started; a service has no params.yaml.
            release = in_force(line, approvals.terms(run.store, challenger))
        name = policy or release.rollout_policy
        asked = {**_own_options(release, name), **(options or {})}
        least = asked.pop("min_samples", release.min_samples)
        if isinstance(least, bool) or not isinstance(least, int) or least < 0:
            raise ConfigError(
                f"min_samples is a count of rows, but got {str(least)[:50]!r}",
                code="bad_params", where="deploy.min_samples", cure="give a whole number of 0 or more",
            )  # fmt: skip
        from esteira.rollout import policies, preconditions

        plan = policies.planned(name, asked)
        _refuse_unfit(run, policies.needs(name, plan), name)
        _refuse_cooling(run, challenger)
        _refuse_unapproved(run, challenger, release)
        met = preconditions.require(run.registry, challenger, min_samples=least, rehearsal=release.rehearse)
        first = policies.make(name).stages[0]
        begun = {
            "at": now.isoformat(), "action": "start", "from": 0.0, "to": first, "actor": actor.name, "reason": reason,
        }  # fmt: skip
        state = Rollout(
            test_id=f"{line}-v{challenger.version}-{now:%Y%m%dT%H%M%S}-{secrets.token_hex(3)}",
            line=line,
            policy=name,
            champion=Side(champion.version, champion.bundle_id),
            challenger=Side(challenger.version, challenger.bundle_id),
            salt=secrets.token_hex(16),
            started_at=now,
            stage_at=now,
            percent=first,
            options=plan,
            history=(begun,),
        )
        # Written down before, so that whoever finds this cut off knows whose challenger it is. The alias comes before the
        # traffic, because the registry refuses a second challenger (H-38) and what is told for it serves nobody yet.
        files.prepare(run.home, state, secrets.token_hex(8))
        run.registry.set_alias(line, "challenger", challenger.version, actor=actor, reason=reason, now=now)
        what = f"version {challenger.version} of {line} is released without asking: its rollout started"
        notice = [("notice", {"what": what, "test_id": state.test_id})] if release.approval_mode == "notify" else []
        state = carrying.carry_out(run, None, state, action="start", reason=reason, findings=met.results, also=notice)
        files.save(run.home, state)  # once more, so that the backup is of this rollout too
        return state


def pause(
    line: str, *, settings: Settings, now: datetime, actor: Actor, reason: str,
    target: targets.Target | None = None, registry: Registry | None = None,
) -> Rollout:  # fmt: skip
    """Stop the clock of a rollout: the candidate keeps its share, nothing is decided, and the time does not count.

    Raises:
        Refused: code `no_rollout` or `paused`, `not_allowed`.
    """
    with _opened(line, settings, now, actor, f"pausing the rollout of {line}", target, registry) as run:
        state = _live(run, reason)
        if state.status == "paused":
            raise _not_now(line, "is paused already", f"esteira rollout resume {line} --reason TEXT")
        after = moves.paused(state, now, actor.name, reason)
        return carrying.carry_out(run, state, after, action="pause", reason=reason)


def resume(
    line: str, *, settings: Settings, now: datetime, actor: Actor, reason: str,
    target: targets.Target | None = None, registry: Registry | None = None,
) -> Rollout:  # fmt: skip
    """Let a paused rollout go on where it stood.

    Raises:
        Refused: code `no_rollout` or `not_paused`, `not_allowed`.
    """
    with _opened(line, settings, now, actor, f"resuming the rollout of {line}", target, registry) as run:
        state = _live(run, reason)
        if state.status != "paused":
            raise _not_now(line, "is not paused", f"see `esteira rollout status {line}`", code="not_paused")
        after = moves.resumed(state, now, actor.name, reason)
        return carrying.carry_out(run, state, after, action="resume", reason=reason)


def promote(
    line: str, *, settings: Settings, now: datetime, actor: Actor, reason: str,
    target: targets.Target | None = None, registry: Registry | None = None,
) -> Rollout:  # fmt: skip
    """Make the candidate of a running rollout the champion, whatever its policy says of it by now.

    Raises:
        Refused: code `no_rollout`, `paused`, `not_allowed`, or what the registry refuses; nothing has changed. Code
            `not_promoted`: it refused when the traffic had moved, so the rollout ended and the champion takes it again.
        OutsideError: the traffic could not be moved; the candidate keeps the share that it had.
    """
    with _opened(line, settings, now, actor, f"promoting the candidate of {line}", target, registry) as run:
        state = _live(run, reason, action="promote")
        if state.status == "paused":
            raise _not_now(line, "is paused", f"esteira rollout resume {line} --reason TEXT")
        basis = {"test_id": state.test_id}
        run.registry.check_promote(line, state.challenger.version, actor=actor, evidence=basis, now=now)
        after = moves.ended(_measured(run, state), now, "approved", "promote", actor.name, reason)
        kept = carrying.carry_out(run, state, after, action="promote", reason=reason)
        if kept.status in LIVE:
            raise OutsideError(
                f"a candidate is promoted when it can take the traffic, but {kept.alert}",
                code="target_away", where=line, cure="see that what ESTEIRA_TARGET names is up, then promote again",
            )  # fmt: skip
        if kept.status == "inconclusive" and alerts.alert_kind(kept.alert) not in alerts.UNDONE:
            raise Refused(
                f"a candidate is promoted when the registry takes it, but {why_ended(kept)}",
                code="not_promoted", where=line, cure=f"do what it asks for, then: esteira rollout start {line} --reason TEXT",
            )  # fmt: skip
        return kept


def rollback(
    line: str, *, settings: Settings, now: datetime, actor: Actor, reason: str,
    target: targets.Target | None = None, registry: Registry | None = None, only: bool = False,
) -> Rollout | None:  # fmt: skip
    """Take all traffic from the candidate and end its rollout; a state that cannot be read does not stand in the way.

    Args:
        only: this is all that is asked for, so that nothing to end is refused; but not where the last one was rolled back.

    Returns:
        The state as it is now, with an alert (`undone`) where the target or the ledger could not be reached: then every look
        tries again. Of status `approved` where its candidate is the champion already, so that who undoes a release has yet
        to move that. None where there was nothing to end.

    Raises:
        Refused: code `not_allowed`, or `no_rollout`.
    """
    reason = _reason(reason)
    what = f"rolling back the rollout of {line}"
    with _opened(line, settings, now, actor, what, target, registry, way_out=True) as run:
        # The store is asked where it must be only: the way out is open while the database is away.
        access.require(actor, "roll_back", line=line, store=lambda: run.store, now=now)
        after = _rolled_back(run, reason, only)
        if after is None or not run.unlocked or alerts.alert_kind(after.alert) in alerts.UNDONE:
            return after
        return replace(after, alert=alerts.joined(run.unlocked, after.alert))


def _rolled_back(run: Runtime, reason: str, only: bool) -> Rollout | None:
    try:
        former = files.load(run.home, run.line)
        state = _last_known(run)
    except Refused as error:
        decision = engine.lost(run, error.message)
        return None if decision is None else decision.state
    if state is not None and (state.status in LIVE or _promotion_due(run, state)):
        after = moves.ended(_measured(run, state), run.now, "rolled_back", "roll_back", run.actor.name, reason)
        return carrying.carry_out(run, state, after, action="roll_back", reason=reason)
    if state is None:
        if (decision := engine.look(run)) is not None:
            return decision.state
    else:
        # What this very call finished, such as a roll back that was cut off, was not carried out before it.
        through = state == former and _through(run, state)
        after = carrying.settle(run, state, at_once=True)
        if alerts.alert_kind(after.alert) in alerts.UNDONE:
            return after
        if state.status != "approved" and not through:
            # Asked again because the first time could not be carried out; it is still this rollout that is meant.
            return after
    dropped = _drop_stale(run, state, reason)
    if only and not dropped and (state is None or state.status != "rolled_back"):
        raise Refused(
            f"a rollout that is under way can be rolled back, but {_none_live(state)}",
            code="no_rollout", where=run.line,
            cure=f"`esteira rollback {run.line} --reason TEXT` takes back the champion's release, if that is meant",
        )  # fmt: skip
    return None


def _opened(
    line: str, settings: Settings, now: datetime, actor: Actor, what: str,
    target: targets.Target | None, registry: Registry | None, *, way_out: bool = False,
) -> Any:  # fmt: skip
    return runtime.opened(
        line, settings=settings, now=now, actor=actor, what=what, wait=_WAIT_SECONDS, way_out=way_out, target=target,
        registry=registry,
    )  # fmt: skip


def _reason(text: str) -> str:
    said = text.strip()
    if not said or len(said) > 500 or not said.isprintable():
        odd = "" if said.isprintable() else ", not all of them printable"
        raise ConfigError(
            f"what is done by hand says why, in 1 to 500 characters on one line, but got {len(said)}{odd}",
            code="no_reason", where="--reason", cure="say why, for who reads the ledger",
        )  # fmt: skip
    return said


def _not_now(line: str, found: str, cure: str, *, code: str = "paused") -> Refused:
    return Refused(
        f"what is asked for does not fit where the rollout stands: it {found}",
        code=code, where=line, cure=cure,
    )  # fmt: skip


def _live(run: Runtime, reason: str, action: str = "rollout") -> Rollout:
    """The rollout that is under way, for who may change it."""
    _reason(reason)
    access.require(run.actor, action, line=run.line, store=lambda: run.store, now=run.now)
    state = carrying.recover(run)
    if state is None or state.status not in LIVE:
        raise Refused(
            f"a rollout that is under way can be changed, but {_none_live(state)}",
            code="no_rollout", where=run.line, cure=f"see `esteira rollout status {run.line}`, or start one",
        )  # fmt: skip
    return state


def _none_live(state: Rollout | None) -> str:
    return "there is none" if state is None else f"the last one ended as {state.status}"


def _last_known(run: Runtime) -> Rollout | None:
    """The state, what was cut off finished; with the ledger away, what may have got traffic by what was prepared.

    Raises:
        Refused: code `bad_rollout_state`.
    """
    try:
        return carrying.recover(run, up=False)
    except Exception as error:  # noqa: BLE001 - whatever the store raises, it cannot be asked
        _log.error("%s: what was cut off is not finished: %s", run.line, alerts.said(error))
        state, found = files.load(run.home, run.line), files.prepared(run.home, run.line)
        if found is not None and (state is None or (state.test_id != found[1].test_id and state.status not in LIVE)):
            return found[1]
        return state


def _promotion_due(run: Runtime, state: Rollout) -> bool:
    """As `carrying.promotion_due`. With the ledger away nobody knows, and then the candidate is not to keep what it has."""
    try:
        return carrying.promotion_due(run, state)
    except Exception:  # noqa: BLE001 - whatever the store raises, it cannot be asked
        return state.status == "approved" and promoted_at(state) is None


def _measured(run: Runtime, state: Rollout) -> Rollout:
    """With what was measured by now, for the record; an end by hand does not wait for it."""
    try:
        return engine.measured(run, state)
    except Exception:  # noqa: BLE001 - whatever the store raises, it cannot be asked
        return state


def _through(run: Runtime, state: Rollout) -> bool:
    """Whether an end was carried out before now. Where the store cannot be asked nobody knows."""
    try:
        return is_settled(state) or carrying.was_carried_out(run, state)
    except Exception:  # noqa: BLE001 - whatever the store raises, it cannot be asked
        return False


def _sides(run: Runtime, number: int | None) -> tuple[Version, Version]:
    """Champion and challenger."""
    champion = run.registry.resolve(run.line)
    if champion is None:
        raise Refused(
            "a rollout compares with a champion, but the line has none",
            code="no_champion", where=run.line, cure=f"release a first version: esteira release promote {run.line} --reason TEXT",
        )  # fmt: skip
    if number is None:
        found = run.registry.resolve(run.line, "staging") or run.registry.resolve(run.line, "candidate")
    else:
        found = run.registry.get(run.line, number)
    if found is None:
        raise Refused(
            "a rollout gives a registered version traffic, but "
            + (f"{run.line} has no version {number}" if number is not None else "none is staged"),
            code="unknown_version", where=run.line, cure="see `esteira release ls` for what there is",
        )  # fmt: skip
    if found.bundle_id == champion.bundle_id:
        raise Refused(
            f"a rollout compares two versions, but version {found.version} is the champion's bundle already",
            code="same_version", where=run.line, cure="name another by --version, or train one",
        )  # fmt: skip
    return champion, found


def _drop_stale(run: Runtime, state: Rollout | None, reason: str) -> bool:
    """A challenger of no rollout is left over from a start that was cut off before it was recorded. Whether there was one."""
    found = run.registry.resolve(run.line, "challenger")
    if found is None or (state is not None and found.version == state.challenger.version):
        return False
    run.registry.drop_alias(run.line, "challenger", actor=run.actor, reason=reason, now=run.now)
    return True


def _own_options(release: "ReleasePolicy", name: str) -> dict[str, Any]:
    """What the line says of a plan by this policy; of another policy's only the count of rows, which is none's own."""
    return {
        key: value for key, value in release.rollout_options.items()
        if name == release.rollout_policy or key == "min_samples"
    }  # fmt: skip


def _refuse_unfit(run: Runtime, need: str, name: str) -> None:
    if not need or getattr(run.target, need):
        return
    asks = {
        "named": "users by name, whom only the service itself knows: leave `units` out, or let one service do both",
        "sticky": "each user to stay in one arm: take ESTEIRA_TARGET=in-process, or HAProxy with the header X-Unit-Id",
    }
    rule, _, cure = asks[need].partition(": ")
    raise Refused(
        f"the policy {name} asks for {rule}, but {run.target.place} splits requests whoever sends them",
        code="target_unfit", where=run.line, cure=f"{cure}; or take another policy",
    )  # fmt: skip


@contextlib.contextmanager
def _target_of_its_own(run: Runtime) -> Iterator[None]:
    """Refuse what another line's rollout splits now, and see that none begins to meanwhile."""
    if not run.outside:
        yield
        return
    with locks.hold(run.home, f"target {run.target.place}", what="starting a rollout there", wait=_WAIT_SECONDS):
        for other in files.lines(run.home):
            if other == run.line or targets.make(run.settings, other).place != run.target.place:
                continue
            if not _is_through(replace(run, line=other)):
                raise Refused(
                    f"one line's rollout at a time splits what {run.target.place} does, but that of {other} does now",
                    code="target_taken", where=run.line,
                    cure=f"wait for its end (`esteira rollout status {other}`), or give each line its own by {{line}} in ESTEIRA_TARGET",
                )  # fmt: skip
        yield


def _is_through(run: Runtime) -> bool:
    """Whether nothing of a line's last rollout is left to do. What cannot be read is not through."""
    home, line = run.home, run.line
    try:
        state = files.load(home, line)
    except Refused:
        return False
    if state is not None:
        return _through(run, state)
    backup = files.load_backup(home, line)
    left = files.prepared(home, line) is not None or split_path(home, line).exists()
    return not left and (backup is None or not under_way(backup))


def _refuse_running(run: Runtime) -> None:
    """One rollout at a time, and none before the last one is through."""
    former = carrying.recover(run)
    if former is None:
        return
    if former.status not in LIVE:
        former = carrying.settle(run, former)
        challenger = run.registry.resolve(run.line, "challenger")
        if challenger is None or challenger.version != former.challenger.version:
            return
    raise Refused(
        f"a line has one rollout at a time, but that of version {former.challenger.version} is {former.status}"
        + (
            f" and not through: {former.alert or 'its traffic is being handed over'}"
            if former.status not in LIVE
            else ""
        ),
        code="rollout_running",
        where=run.line,
        cure=f"wait for its end, or end it by `esteira rollout rollback {run.line} --reason TEXT`",
    )


def _refuse_cooling(run: Runtime, challenger: Version) -> None:
    for entry in ledger.log(run.store, run.line, limit=None):
        until = entry.evidence.get("cooldown_until") if entry.kind == "rollout" else None
        if until and entry.bundle_id == challenger.bundle_id and datetime.fromisoformat(until) > run.now:
            raise Refused(
                f"a candidate that was rolled back comes again after 24 hours, but version {challenger.version} cools down "
                f"until {until}",
                code="cooldown", where=run.line, cure="wait, or release a better version",
            )  # fmt: skip


def _refuse_unapproved(run: Runtime, challenger: Version, release: "ReleasePolicy") -> None:
    from esteira.release import approvals

    if release.approval_mode == "required" or approvals.needed(run.store, challenger):
        approvals.require(run.store, challenger, now=run.now)
