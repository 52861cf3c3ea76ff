"""The entry of an alias move and the rows that it moves, written together within one transaction."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from esteira import ledger
from esteira.access import Actor
from esteira.store import Store
from esteira.store.records import Version

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection


def note_move(
    store: Store,
    connection: "Connection",
    version: Version,
    to_be: Mapping[str, Version],
    held: Mapping[str, int],
    *,
    actor: Actor,
    reason: str,
    at: datetime,
    gone: Sequence[str] = (),
    said: Mapping[str, Any] | None = None,
) -> bool:
    """Write a move down and make it; False when all of it is so already.

    Args:
        to_be: alias -> where it points from now on; the first is what the entry is called by.
        held: alias -> where they point so far.
        gone: aliases that point at nothing from now on.
        said: more for the entry, such as on what a promotion stands.
    """
    changed = {alias: to for alias, to in to_be.items() if held.get(alias) != to.version}
    if not changed and not gone:
        return False
    first = next(iter([*to_be, *gone]))
    after = {alias: to.version for alias, to in to_be.items()}
    entry = ledger.append(
        store,
        kind="alias",
        line=version.line,
        version=version.version,
        bundle_id=version.bundle_id,
        actor=actor.name,
        evidence={
            **(said or {}),
            **actor.told(),
            "alias": first,
            "from": held.get(first),
            "to": after.get(first),
            "reason": reason,
            "moves": {
                **{alias: [held.get(alias), to.version] for alias, to in changed.items()},
                **{alias: [held.get(alias), None] for alias in gone},
            },
        },
        now=at,
        connection=connection,
    )
    for alias, to in changed.items():
        store.put_alias(
            connection, line=version.line, alias=alias, version=to.version, bundle_id=to.bundle_id, ledger_seq=entry.seq
        )
    for alias in gone:
        store.drop_alias(connection, version.line, alias)
    return True
