"""Staging: a registered version gets the alias, answers the last requests in the real server, and is put before an approver.

No caller of the line is answered by it yet. What it does is in the ledger, entry by entry; doing it again is harmless.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from esteira import access
from esteira.release import approvals
from esteira.release.policy import ReleasePolicy
from esteira.settings import Settings
from esteira.store.records import Approval, Version

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
    now: datetime,
) -> Staged:
    """Stage a version; a request for approval stands only where its rehearsal passed (S-20, S-40).

    Raises:
        NotFound: no such version.
        GateHeld: the rehearsal did not pass; the alias `staging` stays, and nothing is asked for.
        Refused: code `not_allowed`, `archived`, or `illegal_move`.
    """
    approvals.require_reason(reason, line)
    access.require(actor, "stage", line=line, store=registry.store, now=now)
    staged = registry.set_alias(line, "staging", version, actor=actor.name, reason=reason, now=now)
    rehearsal = None
    if policy.rehearse:
        from esteira.release.rehearsal import rehearse

        rehearsal = rehearse(registry, line, version, settings=settings, actor=actor.name, now=now).ledger_seq
    approval = None
    if policy.approval_mode == "required" and staged.state != "production":
        approval = approvals.request(
            registry.store, staged, actor=actor, policy=policy.model_dump(mode="json"), hours=policy.approval_hours, now=now,
            reason=reason, evidence={"rehearsal": rehearsal},
        )  # fmt: skip
    return Staged(staged, rehearsal, approval)
