"""The ledger: append-only, hash-chained; every verdict, registration and alias move, with actor and evidence.

An entry's hash covers the hash before it and the canonical JSON of its own body, so a change anywhere breaks the chain from
there on. An export is JSON lines that end with a head line; `verify` reads either the store or such a file, streaming.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from esteira import crash
from esteira.errors import OutsideError, SourceError

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

    from esteira.store import Store

GENESIS = "0" * 64
"""What stands before the first entry."""

_BODY = ("seq", "at", "tenant", "kind", "line", "version", "bundle_id", "actor", "evidence")


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
        return {name: getattr(self, name) for name in _BODY}

    def to_dict(self) -> dict[str, Any]:
        """The entry as a line of an export."""
        return {**self.body(), "prev": self.prev, "hash": self.hash}


@dataclass(frozen=True)
class Verdict:
    """What `verify` found.

    Attributes:
        entries: how many entries held before the break, or all.
        broken_at: number of the first entry that does not hold, from 1; None when all do.
        reason: why, in words; empty when all is well.
        head: hash of the last entry that held.
    """

    ok: bool
    entries: int
    broken_at: int | None = None
    reason: str = ""
    head: str = GENESIS


def canonical(value: Any) -> bytes:
    """Canonical JSON: sorted keys, no spaces, UTF-8. ValueError for NaN and infinities."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode("utf-8")


def entry_hash(prev: str, body: Mapping[str, Any]) -> str:
    """SHA-256, hexadecimal, over the hash before (64 characters) and the body's canonical JSON."""
    return hashlib.sha256(prev.encode("ascii") + canonical(body)).hexdigest()


def append(
    store: "Store",
    *,
    kind: str,
    line: str,
    actor: str,
    evidence: Mapping[str, Any],
    version: int | None = None,
    bundle_id: str | None = None,
    connection: "Connection | None" = None,
) -> Entry:
    """Append one entry; the append is whole or did not happen.

    Args:
        evidence: JSON values that show why; NaN becomes null, a password in an address `***`.
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
                connection=own,
            )
            crash.point("ledger.before_commit")
        return entry
    last, prev = store.ledger_head(connection) or (0, GENESIS)
    body: dict[str, Any] = {
        "seq": last + 1,
        "at": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
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
    store.ledger_insert(connection, {**row, "evidence": canonical(row["evidence"]).decode("utf-8")})
    return entry


def _lines(store: "Store", line: str | None = None, last: int | None = None) -> Iterator[dict[str, Any]]:
    """The store's rows as lines of an export; evidence that is no JSON stays text, and breaks the chain there."""
    for row in store.ledger_rows(line, last=last):
        with contextlib.suppress(ValueError):
            row["evidence"] = _parse(row["evidence"])
        yield {"tenant": store.tenant, **row}


def log(store: "Store", line: str | None = None, limit: int | None = 50) -> list[Entry]:
    """The last entries, oldest first; of one line where it is given. Shows what is there and checks nothing."""
    return [Entry(**row) for row in _lines(store, line, limit)]


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
            for row in _lines(store):
                stream.write(canonical(row) + b"\n")
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


def verify(store: "Store", file: Path | None = None) -> Verdict:
    """Check every link of the store's ledger or, when given, of an exported file, and that file against the store.

    A file may be older than the store: then the store must still hold its head at that number. A malformed line is a
    break like any other.

    Raises:
        SourceError: the file is missing or cannot be read.
    """
    if file is None:
        return _walk(_lines(store), store.tenant)
    try:
        stream = file.open("rb")
    except OSError as error:
        raise SourceError(
            f"an exported ledger can be read, but {error.strerror}",
            code="no_export",
            where=str(file),
            cure="write one by `esteira ledger export --out FILE`",
        ) from error
    head: list[Mapping[str, Any]] = []
    with stream:
        verdict = _walk(_file_lines(stream, head), store.tenant)
    if not verdict.ok:
        return verdict
    if not head:
        return _broken(verdict, "the file must end with a head line, but it ends without one")
    if canonical(head[0]) != canonical({"count": verdict.entries, "hash": verdict.head}):
        return _broken(verdict, f"the head line must name {verdict.entries} entries and the hash of the last one")
    return _compare(verdict, store)


def _broken(verdict: Verdict, reason: str, at: int | None = None) -> Verdict:
    return Verdict(False, verdict.entries, verdict.entries + 1 if at is None else at, reason, verdict.head)


def _compare(verdict: Verdict, store: "Store") -> Verdict:
    """A file that holds in itself, against the chain that the store holds now."""
    count, found = 0, GENESIS
    for row in store.ledger_rows():
        count += 1
        if count == verdict.entries:
            found = str(row["hash"])
            break
    if count < verdict.entries:
        return _broken(verdict, f"the store must hold {verdict.entries} entries, but it holds {count}", at=count + 1)
    if verdict.entries and found != verdict.head:
        return _broken(
            verdict, "the store must hold the same entry as the file here, but its hash differs", verdict.entries
        )
    return verdict


def _walk(lines: Iterable[Any], tenant: str) -> Verdict:
    """Follow a chain from its beginning; a line is a mapping, or a text that says why it is none."""
    count, prev = 0, GENESIS
    for line in lines:
        reason = line if isinstance(line, str) else _fault(line, count + 1, prev, tenant)
        if reason:
            return Verdict(False, count, count + 1, reason, prev)
        count, prev = count + 1, line["hash"]
    return Verdict(True, count, head=prev)


def _fault(line: Mapping[str, Any], seq: int, prev: str, tenant: str) -> str:
    """Why this line cannot stand here; empty when it can."""
    names = {*_BODY, "prev", "hash"}
    if set(line) != names:
        odd = sorted(names ^ set(line))
        return (
            f"entry {seq} must have the fields of an entry, but {', '.join(map(str, odd))[:200]} is missing or unknown"
        )
    if type(line["seq"]) is not int or line["seq"] != seq:
        return f"entry {seq} must be numbered so, but it is {str(line['seq'])[:50]}"
    if line["tenant"] != tenant:
        return f"entry {seq} must belong to tenant {tenant}"
    if line["prev"] != prev:
        return f"entry {seq} must follow hash {prev[:12]}, but it follows {str(line['prev'])[:12]}"
    try:
        expected = entry_hash(prev, {name: line[name] for name in _BODY})
    except (TypeError, ValueError):
        return f"entry {seq} must be plain JSON"
    if line["hash"] != expected:
        return (
            f"entry {seq} must have hash {expected[:12]}, but it has {str(line['hash'])[:12]}: its content was changed"
        )
    return ""


def _file_lines(stream: Iterable[bytes], head: list[Mapping[str, Any]]) -> Iterator[Any]:
    """Lines of an export; the head line goes to `head`, and nothing may follow it."""
    for number, text in enumerate(stream, start=1):
        if head:
            yield f"nothing may follow the head line, but line {number} does"
            return
        try:
            line = _parse(text.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            yield f"line {number} must be a JSON object: {str(error)[:100]}"
            return
        if not isinstance(line, dict):
            yield f"line {number} must be a JSON object"
            return
        if set(line) == {"head"} and isinstance(line["head"], dict):
            head.append(line["head"])
        else:
            yield line


def _parse(text: str) -> Any:
    """JSON without its ambiguities: a key that stands twice, NaN and infinities are ValueErrors."""
    return json.loads(text, object_pairs_hook=_once, parse_constant=_no_constant)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
