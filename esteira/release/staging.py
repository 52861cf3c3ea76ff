"""Staging: a registered version gets the alias, answers the last requests in the real server, and is put before an approver.

No caller of the line is answered by it yet. What it does is in the ledger, entry by entry; doing it again is harmless.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from esteira import access, crash
from esteira.errors import GateHeld
from esteira.release import approvals
from esteira.release.policy import ReleasePolicy
from esteira.settings import Settings
from esteira.store.records import Approval, Version
from esteira.store.store import now as present

if TYPE_CHECKING:
    from esteira.access import Actor
    from esteira.registry import Registry


@dataclass(frozen=True)
class Staged:
    """A version in staging.

    Attributes:
        rehearsal: number of the ledger's entry of its rehearsal; None where the line holds none.
        approval: what was asked for; None where nobody is asked.
    """

    version: Version
    rehearsal: int | None
    approval: Approval | None


def stage(
    registry: "Registry",
    line: str,
    version: int,
    *,
    settings: Settings,
    actor: "Actor",
    policy: ReleasePolicy,
    reason: str,
    now: datetime | None = None,
) -> Staged:
    """Stage a version; a request for approval stands only where its rehearsal passed (S-20, S-40).

    Args:
        now: the moment of all its entries; by default each carries its own.

    Raises:
        NotFound: no such version.
        GateHeld: the rehearsal did not pass; the alias `staging` stays, nothing is asked for, and what was asked or given
            before counts no more.
        Refused: code `not_allowed`, `archived`, or `illegal_move`.
    """
    approvals.require_reason(reason, line)
    access.require(actor, "stage", line=line, store=registry.store, now=now)
    staged = registry.set_alias(line, "staging", version, actor=actor, reason=reason, now=now)
    rehearsal = None
    if policy.rehearse:
        from esteira.release.rehearsal import rehearse

        try:
            rehearsal = rehearse(registry, line, version, settings=settings, actor=actor, now=now).ledger_seq
        except GateHeld as held:
            _void(registry, staged, actor, f"it did not pass its rehearsal: {held.message}", now)
            raise
    approval = None
    # What a promotion will ask for can be asked for here, whoever says that the line asks nobody.
    asks = policy.approval_mode == "required" or approvals.needed(registry.store, staged)
    if asks and staged.state != "production":
        terms = policy.model_copy(update={"approval_mode": "required"}).model_dump(mode="json")
        approval = approvals.request(
            registry.store, staged, actor=actor, policy=terms, hours=policy.approval_hours, now=now, reason=reason,
            evidence={"rehearsal": rehearsal},
        )  # fmt: skip
    return Staged(staged, rehearsal, approval)


def _void(registry: "Registry", version: Version, actor: "Actor", reason: str, now: datetime | None) -> None:
    """What an approver saw is not what is so now: who approves looks again."""
    store = registry.store
    with store.begin() as connection:
        store.alone(connection)
        approvals.void(store, connection, version, actor=actor, reason=reason[:500], now=now or present())
        crash.point("approval.before_commit")
