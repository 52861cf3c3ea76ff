"""What must hold before a version becomes the champion: its report, its rehearsal, and on what it stands. Refuses, and moves nothing."""

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

from esteira.errors import Refused
from esteira.registry import moves
from esteira.release import approvals
from esteira.release.lifecycle import State, require_move
from esteira.store import Store
from esteira.store.records import Approval, Version
from esteira.store.releases import Releases

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection


def require_promotable(
    store: Store,
    connection: "Connection",
    wanted: Version,
    *,
    basis: moves.Basis | None,
    evidence: Mapping[str, Any],
    at: datetime,
) -> Approval | None:
    """The approval that a promotion uses up; None where it needs none. Who may promote is asked before.

    Args:
        basis: None where it is not asked on what it stands.

    Raises:
        Refused: as `Registry.promote`.
    """
    line, number = wanted.line, wanted.version
    refuse_undeployable(wanted)
    require_move(line, number, wanted.state, State.PRODUCTION)
    if not moves.reported(Releases(store).last(connection, wanted, "verdict")):
        raise Refused(
            f"a version is promoted on a report whose every rule passed, but the ledger has none of version {number}",
            code="no_report", where=line, cure=f"esteira run {line} judges and registers a version with its report",
        )  # fmt: skip
    if basis == "test_id":
        _refuse_unknown_test(store, connection, wanted, str(evidence["test_id"]))
    if basis == "override":
        return None
    given = None
    if basis == "approval" or approvals.needed(store, wanted, connection):
        given = approvals.require(store, wanted, now=at, connection=connection)
    _refuse_unrehearsed(store, connection, wanted, must=given is not None and given.policy.get("rehearse") is True)
    return given


def refuse_undeployable(version: Version) -> None:
    """Refuse a version that no alias may point at any more.

    Raises:
        Refused: code `archived` or `failed_version`.
    """
    if version.archived_at is None and version.state not in {"failed", "training"}:
        return
    archived = version.archived_at is not None
    raise Refused(
        f"an alias points at a version that may serve, but version {version.version} is "
        + ("archived" if archived else version.state),
        code="archived" if archived else "failed_version", where=version.line, cure="choose another version",
    )  # fmt: skip


def _refuse_unknown_test(store: Store, connection: "Connection", wanted: Version, test_id: str) -> None:
    entries = Releases(store).entries(connection, wanted.line, "rollout", "traffic")
    if any((one["version"], one["evidence"].get("test_id")) == (wanted.version, test_id) for one in entries):
        return
    raise Refused(
        f"a promotion stands on a rollout of its version, but the ledger knows no rollout {test_id[:80]!r} of version"
        f" {wanted.version}",
        code="no_basis", where=wanted.line, cure=f"esteira rollout start {wanted.line} --version {wanted.version} --reason TEXT",
    )  # fmt: skip


def _refuse_unrehearsed(store: Store, connection: "Connection", wanted: Version, *, must: bool) -> None:
    """Refuse what its last rehearsal held back; with `must`, also what none let pass (S-20)."""
    last = approvals.rehearsed(store, wanted, connection)
    if last is None and not must:
        return
    if last is not None and last["evidence"].get("verdict") == "pass":
        return
    why = "it was not rehearsed"
    if last is not None:
        why = f"its last rehearsal says: {str(last['evidence'].get('summary'))[:300]}"
    raise Refused(
        f"a version runs in staging before it gets live traffic, but of version {wanted.version}: {why}",
        code="not_rehearsed", where=wanted.line,
        cure=f"esteira release stage {wanted.line} {wanted.version} --reason TEXT rehearses it",
    )  # fmt: skip
