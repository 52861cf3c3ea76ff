"""Approvals: asked for when a version is staged, given by somebody else's key, bound to the very bytes, for so many hours (S-40).

What stands is a row of the store; every decision is an entry of the ledger, written in the same transaction. Whoever moves a
version into production asks `needed` and `require`: what its registration says of its line counts, from whatever folder it is asked.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from esteira import access, crash, ledger
from esteira.errors import ConfigError, Refused
from esteira.release.lifecycle import State
from esteira.store.records import Approval, Version
from esteira.store.releases import Releases
from esteira.store.store import now as present

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

    from esteira.access import Actor
    from esteira.registry import Registry
    from esteira.release.policy import ReleasePolicy
    from esteira.store import Store

LONGEST_HOURS = 168.0
"""How long an approval counts at most, whatever a line or who asks for it says (S-40: seven days)."""

_OPEN = ("requested", "approved")


@dataclass(frozen=True)
class Author:
    """Who registered a version, and whether a key said so."""

    name: str
    keyed: bool


def find(store: "Store", version: Version, connection: "Connection | None" = None) -> Approval | None:
    """What was asked and decided about a version last, or None."""
    return Releases(store).approval(version.line, version.version, connection)


def terms(store: "Store", version: Version, connection: "Connection | None" = None) -> "ReleasePolicy | None":
    """How a version's line is released, as its registration says; None where it says nothing."""
    from esteira.release.policy import ReleasePolicy

    said = _registered(store, version, connection)[1].get("release")
    return None if said is None else ReleasePolicy.model_validate(said)


def needed(store: "Store", version: Version, connection: "Connection | None" = None) -> bool:
    """Whether a version goes to production by an approval only: somebody asked for one, or its registration says its line wants one.

    A registration that says nothing of its line leaves it to the family.
    """
    if find(store, version, connection) is not None:
        return True
    said = _registered(store, version, connection)[1].get("release")
    if said is None:
        from esteira.release.policy import Asked, decided

        return decided(Asked(), version.line).approval_mode == "required"
    return said.get("approval_mode") not in ("automatic", "notify")


def standing(approval: Approval, bundle_id: str, now: datetime) -> str:
    """Why an approval does not count at this time for this bundle; empty when it does. Pure.

    Returns:
        A code: `not_approved`, `approval_used`, `approval_void`, `approval_expired`, or `clock_back` when the clock stands before
        the moment at which it was given, so that nobody can say how old it is.
    """
    if approval.state == "requested":
        return "not_approved"
    if approval.state == "used":
        return "approval_used"
    if approval.state == "void" or approval.bundle_id != bundle_id:
        return "approval_void"
    assert approval.approved_at is not None
    assert approval.expires_at is not None
    if now < approval.approved_at:
        return "clock_back"
    return "" if now < approval.expires_at else "approval_expired"


def require(store: "Store", version: Version, *, now: datetime, connection: "Connection | None" = None) -> Approval:
    """The approval by which a version may go to production now.

    Raises:
        Refused: there is none that counts; code `not_requested` or one of `standing`.
    """
    found = find(store, version, connection)
    code = "not_requested" if found is None else standing(found, version.bundle_id, now)
    if found is not None and not code:
        return found
    raise _refusal(code, version, found)


_SAYS: Mapping[str, str] = {
    "not_requested": "nobody asked for one",
    "not_approved": "nobody gave it yet",
    "approval_used": "it was used up by the promotion it was given for",
    "approval_void": "it is void",
    "approval_expired": "it has expired",
    "clock_back": "the clock stands before the moment at which it was given",
}


def _refusal(code: str, version: Version, found: Approval | None) -> Refused:
    says, line, number = _SAYS[code], version.line, version.version
    if found is not None and code == "approval_void":
        about = "" if found.bundle_id == version.bundle_id else f"it is about bundle {found.bundle_id[:12]}, "
        says = f"{says}: {about}{found.reason}".rstrip(" ,:")
    if found is not None and code == "approval_expired" and found.expires_at is not None:
        says = f"{says} at {found.expires_at.isoformat(timespec='seconds')}"
    approve = f"an approver who did not register it: esteira release approve {line} {number} --reason TEXT"
    stage = f"esteira release stage {line} {number} --reason TEXT asks for a new one"
    return Refused(
        f"version {number} goes to production by an approval that counts now, but {says}",
        code=code,
        where=line,
        cure={"not_approved": approve, "approval_expired": approve, "clock_back": "set the clock of this machine"}.get(
            code, stage
        ),
    )


def request(
    store: "Store",
    version: Version,
    *,
    actor: "Actor",
    policy: Mapping[str, Any],
    hours: float,
    now: datetime | None = None,
    reason: str = "",
    evidence: Mapping[str, Any] | None = None,
) -> Approval:
    """Ask for an approval. One that is asked for or counts already is left as it is.

    Args:
        policy: how the line is to be released; kept, so that it is known when it is approved.
        hours: how long an approval is to count, above 0 and at most `LONGEST_HOURS`.
        evidence: what the approver should see, such as a rehearsal.
        now: the moment; by default that of the transaction, whatever it waited for. So everywhere here.

    Raises:
        ConfigError: so many hours are none; code `bad_hours`.
        Refused: the version is not on its way to production (code `illegal_move`), or code `not_allowed`.
    """
    access.require(actor, "stage", line=version.line, store=store, now=now)
    if not 0 < hours <= LONGEST_HOURS:
        raise ConfigError(
            f"an approval counts for at most {LONGEST_HOURS:g} hours, but {hours:g} were asked for",
            code="bad_hours", where=version.line, cure="set deploy.approval_hours to so many; it can be approved again",
        )  # fmt: skip
    with store.begin() as connection:
        store.alone(connection)
        at = now or present()
        version = store.get_version(version.line, version.version, connection) or version
        _refuse_state(version)
        found = find(store, version, connection)
        if (
            found is not None
            and found.bundle_id == version.bundle_id
            and (found.state == "requested" or not standing(found, version.bundle_id, at))
        ):
            return found
        entry = ledger.append(
            store,
            kind="approval_request",
            line=version.line,
            version=version.version,
            bundle_id=version.bundle_id,
            actor=actor.name,
            evidence={
                **(evidence or {}),
                "hours": hours,
                "policy": dict(policy),
                "reason": reason,
                **actor.told(),
            },
            now=at,
            connection=connection,
        )
        asked = Approval(
            line=version.line, version=version.version, bundle_id=version.bundle_id, state="requested", hours=hours,
            requested_by=actor.name, requested_at=at, policy=dict(policy), approver=None, approved_at=None, expires_at=None,
            reason=reason, ledger_seq=entry.seq,
        )  # fmt: skip
        Releases(store).put_approval(connection, asked)
        crash.point("approval.before_commit")
    return asked


def approve(
    registry: "Registry",
    line: str,
    version: int | None = None,
    *,
    actor: "Actor",
    reason: str,
    now: datetime | None = None,
) -> Approval:
    """Let a version go to production, for the hours that its line says.

    The stored bundle is read and verified first, so that what is approved is what is there.

    Args:
        version: None for the newest one that was asked for and has no approval that counts.
        actor: who approves: a key whose role may, and not the one that registered the version.

    Raises:
        Refused: there is no request (code `not_requested`) or its artefact changed (code `approval_void`); who registered it
            is the same (code `own_work`) or gave no key (code `author_unknown`); the version is not one that may go on (code
            `illegal_move`); code `not_allowed`.
        ConfigError: no reason was given.
    """
    store = registry.store
    require_reason(reason, line)
    access.require(actor, "approve", line=line, store=store, now=now)
    wanted, _ = waiting(registry, line, version, now=now)
    author = author_of(store, wanted)
    _refuse_own(author, actor, wanted)
    _refuse_state(wanted)
    sound(registry, wanted, actor=actor, now=now)
    with store.begin() as connection:
        store.alone(connection)
        at = now or present()
        found = find(store, wanted, connection)
        wanted = registry.must(line, wanted.version, connection)
        if found is None or found.state not in _OPEN:  # decided meanwhile
            raise _refusal("not_requested" if found is None else f"approval_{found.state}", wanted, found)
        _refuse_state(wanted)
        shown = rehearsed(store, wanted, connection)
        expires_at = at + timedelta(hours=min(found.hours, LONGEST_HOURS))
        entry = ledger.append(
            store,
            kind="approval",
            line=line,
            version=wanted.version,
            bundle_id=wanted.bundle_id,
            actor=actor.name,
            evidence={
                "reason": reason, "expires_at": expires_at.isoformat(), "author": author.name,
                "request": found.ledger_seq if found.state == "requested" else None, "policy": found.policy,
                "rehearsal": None if shown is None else shown["seq"], **actor.told(),
            },
            now=at,
            connection=connection,
        )  # fmt: skip
        given = replace(
            found, state="approved", approver=actor.name, approved_at=at, expires_at=expires_at, reason=reason,
            ledger_seq=entry.seq,
        )  # fmt: skip
        Releases(store).put_approval(connection, given)
        crash.point("approval.before_commit")
    return given


def waiting(
    registry: "Registry", line: str, version: int | None = None, *, now: datetime | None = None
) -> tuple[Version, Approval]:
    """What an approval would be about: the version, by default the newest that waits for one, and the terms asked for.

    Raises:
        Refused: nobody asked (code `not_requested`), or what was asked for is decided (code `approval_used`, `approval_void`).
    """
    store = registry.store
    wanted = registry.must(line, _waiting(store, line, now or present()) if version is None else version)
    found = find(store, wanted)
    if found is None or found.state not in _OPEN:
        raise _refusal("not_requested" if found is None else f"approval_{found.state}", wanted, found)
    return wanted, found


def withdraw(
    registry: "Registry", line: str, version: int, *, actor: "Actor", reason: str, now: datetime | None = None
) -> Approval:
    """Let a request or an approval count no more.

    Raises:
        Refused: there is none that is open (code `not_requested`), or code `not_allowed`.
        ConfigError: no reason was given.
    """
    store = registry.store
    require_reason(reason, line)
    access.require(actor, "approve", line=line, store=store, now=now)
    wanted = registry.must(line, version)
    with store.begin() as connection:
        store.alone(connection)
        done = void(store, connection, wanted, actor=actor, reason=reason, now=now or present())
        found = find(store, wanted, connection)
        if found is None or not done:
            raise _refusal("not_requested" if found is None else f"approval_{found.state}", wanted, found)
        crash.point("approval.before_commit")
    return found


def void(
    store: "Store", connection: "Connection", version: Version, *, actor: "Actor", reason: str, now: datetime
) -> bool:
    """Within a transaction: let what is open about a version count no more; False when nothing was."""
    found = find(store, version, connection)
    if found is None or found.state not in _OPEN:
        return False
    entry = ledger.append(
        store,
        kind="approval_void",
        line=version.line,
        version=version.version,
        bundle_id=found.bundle_id,
        actor=actor.name,
        evidence={"reason": reason, "was": found.state, **actor.told()},
        now=now,
        connection=connection,
    )
    Releases(store).put_approval(connection, replace(found, state="void", reason=reason, ledger_seq=entry.seq))
    return True


def use(store: "Store", connection: "Connection", approval: Approval) -> None:
    """Within the transaction of a promotion: an approval lets a version into production once. The move's entry names it."""
    Releases(store).put_approval(connection, replace(approval, state="used"))


def require_override(store: "Store", version: Version, *, actor: "Actor", now: datetime | None = None) -> None:
    """Refuse to go around approval and rollout to who could not approve, whether or not somebody asked for an approval.

    Raises:
        Refused: code `not_allowed`; `own_work` for who registered it; `author_unknown` where that may have been anybody.
    """
    access.require(actor, "approve", line=version.line, store=store, now=now)
    _refuse_own(author_of(store, version), actor, version)


def rehearsed(store: "Store", version: Version, connection: "Connection") -> Mapping[str, Any] | None:
    """The entry of the last rehearsal of exactly this version's bundle, passed or held; None without one."""
    return Releases(store).last(connection, version, "rehearsal")


def sound(registry: "Registry", version: Version, *, actor: "Actor", now: datetime | None = None) -> None:
    """Verify the stored artefact of a version for which somebody asked; a changed one voids what was asked and given (S-40).

    Raises:
        Refused: code `approval_void`; the artefact was read and is not what was registered. Any other code: this machine does not
            come by it, as where its settings name another storage (`outside_storage`).
        SourceError: it is not there, which voids nothing: this machine may look in the wrong place, and what comes back is verified.
        OutsideError: storage cannot be reached, or may not be read.
    """
    try:
        registry.fetch(version)
    except Refused as error:
        if not error.code.startswith("bundle_"):
            raise
        why = f"the artefact was changed: {error.message}"
        store = registry.store
        with store.begin() as connection:
            store.alone(connection)
            void(store, connection, version, actor=actor, reason=why[:500], now=now or present())
            crash.point("approval.before_commit")
        raise Refused(
            f"an approval is for the bytes that were registered, but {error.message}",
            code="approval_void",
            where=version.line,
            cure="train and register again; what was approved is no longer there",
        ) from error


def author_of(store: "Store", version: Version, connection: "Connection | None" = None) -> Author:
    """Who registered a version, by the ledger."""
    name, evidence = _registered(store, version, connection)
    return Author(name, evidence.get("keyed") is True)


def _registered(
    store: "Store", version: Version, connection: "Connection | None" = None
) -> tuple[str, Mapping[str, Any]]:
    """Who registered a version, and what the entry says besides; the row's name and nothing where there is no entry."""
    if connection is None:
        with store.read() as own:
            return _registered(store, version, own)
    entry = Releases(store).last(connection, version, "registration")
    return (version.actor, {}) if entry is None else (entry["actor"], entry["evidence"])


def require_reason(reason: str, line: str) -> None:
    """Refuse a decision without a reason.

    Raises:
        ConfigError: code `no_reason`.
    """
    if not reason.strip():
        raise ConfigError(
            "a decision has a reason, which the ledger keeps, but none was given",
            code="no_reason", where=line, cure="--reason TEXT",
        )  # fmt: skip


def _waiting(store: "Store", line: str, now: datetime) -> int:
    """The newest version of a line that somebody asked for, and that has no approval or one that expired."""
    waits = {"not_approved", "approval_expired"}
    found = [one.version for one in Releases(store).approvals(line) if standing(one, one.bundle_id, now) in waits]
    if not found:
        raise Refused(
            f"an approval answers a request, but nobody asked for one of {line}",
            code="not_requested", where=line,
            cure=f"see `esteira release ls {line}`; esteira release stage {line} VERSION --reason TEXT asks",
        )  # fmt: skip
    return found[0]


def _refuse_own(author: Author, actor: "Actor", version: Version) -> None:
    line, number = version.line, version.version
    if author.name == actor.name:
        raise Refused(
            f"who approves is not who registered, but {actor.name} registered version {number}",
            code="own_work", where=line, cure="ask another approver",
        )  # fmt: skip
    if not author.keyed:
        raise Refused(
            f"who approves is not who registered, but version {number} was registered by {author.name!r} without a key, who may be"
            " anybody",
            code="author_unknown",
            where=line,
            cure=f"set ESTEIRA_KEY to a data scientist's key and run `esteira run {line} --fresh`, which registers it anew",
        )


def _refuse_state(version: Version) -> None:
    if version.archived_at is None and version.state in {State.VALIDATED, State.STAGING}:
        return
    state = "archived" if version.archived_at is not None else version.state
    raise Refused(
        f"an approval is for a version on its way to production, but version {version.version} is {state}",
        code="illegal_move", where=version.line, cure=f"see `esteira release ls {version.line}`",
    )  # fmt: skip
