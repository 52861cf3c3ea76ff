"""Whether what the store says is so now is what its ledger says last: where aliases point, which approvals are open.

A row that was changed without an entry serves a version that the ledger does not know of; rows that name entries beyond its end tell
that the end was cut off. It mends nothing, and does not check the chain: `esteira.ledger.check` does both ways in turn.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from esteira.ledger.chain import parse

if TYPE_CHECKING:
    from esteira.store import Store

_OPEN = {"requested": "approval_request", "approved": "approval"}
_TRIES = 3


@dataclass(frozen=True)
class Astray:
    """Something in the store that the ledger does not say. `seq` is the number of the entry that should say so, or says otherwise."""

    seq: int
    reason: str


def astray(store: "Store") -> Astray | None:
    """The first alias or open approval, by line and name, that is not as the ledger says; None where all are.

    Only lines that have a version are looked at: a ledger that was filled without the registry moves nothing in the store.
    """
    found = None
    for _ in range(_TRIES):  # whoever moves something while this reads makes it look astray once, not three times
        found = _aliases(store) or _approvals(store)
        if found is None:
            return None
    return found


def _aliases(store: "Store") -> Astray | None:
    lines = set(store.list_lines())
    rows = {(row.line, row.alias): row for row in store.list_aliases()}
    said = _moves(store, lines | {line for line, _ in rows}) if lines or rows else {}
    for line, alias in sorted({*rows, *said}):
        row, (seq, version) = rows.get((line, alias)), said.get((line, alias), (0, None))
        if row is None:
            if version is not None:
                return Astray(
                    seq,
                    f"entry {seq} points {alias} of {line} at version {version}, but it points at nothing: it was removed",
                )
        elif (row.ledger_seq, row.version) != (seq, version):
            return Astray(
                max(row.ledger_seq, seq),
                f"{alias} of {line} points at version {row.version} by entry {row.ledger_seq}, but the last entry that moves it is"
                f" {f'{seq}, to version {version}' if seq else 'none'}: it was moved without one, or entries are gone",
            )
    return None


def _moves(store: "Store", lines: set[str]) -> dict[tuple[str, str], tuple[int, int | None]]:
    """(line, alias) -> the last entry that moves it, and where to; None where to nothing."""
    found: dict[tuple[str, str], tuple[int, int | None]] = {}
    kinds = ("alias", "rollback", "archive")
    for seq, kind, line, version, evidence in store.ledger_tuples(
        "seq", "kind", "line", "version", "evidence", kinds=kinds
    ):
        said = _said(evidence) if line in lines else {}
        moves, aliases = said.get("moves"), said.get("aliases")
        if kind == "archive" and moves is None and isinstance(aliases, list):  # as it was written at first
            moves = {alias: [version, None] for alias in aliases}
        for alias, ends in moves.items() if isinstance(moves, Mapping) else ():
            if isinstance(ends, list) and len(ends) == 2:
                found[line, alias] = (seq, ends[1])
    return found


def _approvals(store: "Store") -> Astray | None:
    from esteira.store.releases import Releases

    rows = {row.ledger_seq: row for row in Releases(store).approvals() if row.state in _OPEN}
    if not rows:
        return None
    # A promotion names the approval that it used up, which is open no more then.
    kinds = ("approval_request", "approval", "approval_void", "alias")
    last: dict[tuple[str, int], tuple[int, str, str]] = {}
    for seq, line, version, bundle_id, kind, evidence in store.ledger_tuples(
        "seq", "line", "version", "bundle_id", "kind", "evidence", kinds=kinds
    ):
        if kind != "alias" or _said(evidence).get("approval_entry") is not None:
            last[line, version] = (seq, bundle_id, kind)
    for seq, row in sorted(rows.items()):
        if last.get((row.line, row.version)) != (seq, row.bundle_id, _OPEN[row.state]):
            return Astray(
                seq,
                f"version {row.version} of {row.line} is {row.state} by entry {seq}, but that is not the last word of the ledger about"
                " it: it was changed without one, or entries are gone",
            )
    return None


def _said(text: str) -> Mapping[str, Any]:
    try:
        found = parse(text)
    except (ValueError, RecursionError):  # the chain is broken there, which its own check tells
        return {}
    return found if isinstance(found, Mapping) else {}
