"""Entries of the ledger: how one is made, hashed, appended, shown and exported. It checks nothing; `esteira.ledger.check` does."""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from esteira import crash
from esteira.errors import OutsideError

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

    from esteira.store import Store

GENESIS = "0" * 64
"""What stands before the first entry."""

LEAP = timedelta(minutes=15)
"""How far clocks of machines that share a ledger may differ without one of them being wrong."""

_UNSET = "2026-01-01"
"""A clock that stands before this, when there was no ledger yet, was never set."""

BODY = ("seq", "at", "tenant", "kind", "line", "version", "bundle_id", "actor", "evidence")
"""Fields that a hash covers."""

encode = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode
"""Canonical JSON as text: sorted keys, no spaces. ValueError for NaN and infinities."""


@dataclass(frozen=True)
class Entry:
    """One link of the chain. `seq` counts from 1 without gaps; `at` is UTC, ISO 8601 with microseconds and `Z`."""

    seq: int
    at: str
    tenant: str
    kind: str
    line: str
    version: int | None
    bundle_id: str | None
    actor: str
    evidence: dict[str, Any]
    prev: str
    hash: str

    def body(self) -> dict[str, Any]:
        """What the hash covers, besides the hash before."""
        return {name: getattr(self, name) for name in BODY}

    def to_dict(self) -> dict[str, Any]:
        """The entry as a line of an export."""
        return {**self.body(), "prev": self.prev, "hash": self.hash}


def canonical(value: Any) -> bytes:
    """Canonical JSON: sorted keys, no spaces, UTF-8. ValueError for NaN and infinities."""
    return encode(value).encode("utf-8")


def entry_hash(prev: str, body: Mapping[str, Any]) -> str:
    """SHA-256, hexadecimal, over the hash before (64 characters) and the body's canonical JSON."""
    return hashlib.sha256(prev.encode("ascii") + canonical(body)).hexdigest()


def stamp(time: datetime) -> str:
    """A time as entries carry it; as text it sorts like the time itself.

    Raises:
        ValueError: it names no zone.
    """
    if time.tzinfo is None:
        raise ValueError("a time of the ledger names its zone")
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def append(
    store: "Store",
    *,
    kind: str,
    line: str,
    actor: str,
    evidence: Mapping[str, Any],
    version: int | None = None,
    bundle_id: str | None = None,
    now: datetime | None = None,
    connection: "Connection | None" = None,
) -> Entry:
    """Append one entry; the append is whole or did not happen.

    Args:
        evidence: JSON values that show why; NaN becomes null, a password in an address `***`.
        now: when it happened, aware; the present by default. The chain's order is that of appending. An entry that would be
            earlier than the one before it by up to `LEAP` has the time of that one, and its evidence says as `told_at` what it
            was told. Beyond that one of both clocks was wrong, and it keeps its own time: an entry of a clock that was years
            ahead must not date all that follow. Only a clock that was never set is known to be the wrong one, however far back.
        connection: a write transaction of the store to append within, so that a move and its entry are kept together.
    """
    from esteira.store.database import plain

    if connection is None:
        with store.begin() as own:
            entry = append(
                store,
                kind=kind,
                line=line,
                actor=actor,
                evidence=evidence,
                version=version,
                bundle_id=bundle_id,
                now=now,
                connection=own,
            )
            crash.point("ledger.before_commit")
        return entry
    last, prev, latest = store.ledger_head(connection) or (0, GENESIS, "")
    happened = datetime.now(UTC) if now is None else now
    at = stamp(happened)
    if at < latest and (at < _UNSET or latest <= stamp(happened + LEAP)):
        at, evidence = latest, {**evidence, "told_at": at}
    body: dict[str, Any] = {
        "seq": last + 1,
        "at": at,
        "tenant": store.tenant,
        "kind": kind,
        "line": line,
        "version": version,
        "bundle_id": bundle_id,
        "actor": plain(actor),
        "evidence": plain(evidence),
    }
    entry = Entry(**body, prev=prev, hash=entry_hash(prev, body))
    row = entry.to_dict()
    del row["tenant"]
    store.ledger_insert(connection, {**row, "evidence": encode(row["evidence"])})
    return entry


def log(store: "Store", line: str | None = None, limit: int | None = 50) -> list[Entry]:
    """The last entries, oldest first; of one line where it is given. Shows what is there and checks nothing."""
    return list(entries(store, line, limit))


def entries(store: "Store", line: str | None = None, last: int | None = None) -> Iterator[Entry]:
    """Entries, oldest first, streamed; evidence that is no JSON stays text."""
    for row in store.ledger_rows(line, last=last):
        yield Entry(**of_row(row, store.tenant))


def of_row(row: Mapping[str, Any], tenant: str) -> dict[str, Any]:
    """A row of the store as a line of an export; evidence that is no JSON stays text, and breaks the chain there."""
    found = {"tenant": tenant, **row}
    with contextlib.suppress(ValueError, RecursionError):
        found["evidence"] = parse(row["evidence"])
    return found


def export(store: "Store", file: Path) -> dict[str, Any]:
    """Write the whole ledger as JSON lines, and as the last line its head; the file is whole or not there.

    Returns:
        The head: `{"count": entries, "hash": of the last}`.

    Raises:
        OutsideError: the file cannot be written.
    """
    count, head = 0, GENESIS
    temporary = file.with_name(f"{file.name}.{os.getpid()}.tmp")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as stream:
            for row in store.ledger_rows():
                stream.write(canonical(of_row(row, store.tenant)) + b"\n")
                count, head = count + 1, str(row["hash"])
            crash.point("ledger.export_half_written")
            found = {"count": count, "hash": head}
            stream.write(canonical({"head": found}) + b"\n")
        os.replace(temporary, file)
    except OSError as error:
        raise OutsideError(
            f"an export can be written, but {error.strerror}",
            code="export_failed",
            where=file.name,
            cure="write to a folder with room and permission, then try again",
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    return found


def parse(text: str) -> Any:
    """JSON without its ambiguities: a key that stands twice, NaN and infinities are ValueErrors."""
    return json.loads(text, object_pairs_hook=_once, parse_constant=no_constant)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice")
    return found


def no_constant(name: str) -> Any:
    """NaN and infinities, which Python would read."""
    raise ValueError(f"{name} is not JSON")
