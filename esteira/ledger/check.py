"""Whether the chain holds: every link of the store's ledger or of an exported file, streamed, in constant memory. It mends nothing.

Nearly every entry is written exactly as canonical JSON says it. Then its text is put together again from its columns and hashed, and
its evidence only has to be seen to be canonical, which msgspec does thirty times faster than the standard library (benchmarks/ledger).
Whatever differs by one byte is looked at slowly, and gets its reason in words.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from json.encoder import encode_basestring as quote
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from esteira.errors import SourceError
from esteira.ledger.chain import BODY, GENESIS, canonical, encode, entry_hash, of_row, parse
from esteira.ledger.pointers import astray

if TYPE_CHECKING:
    from esteira.ledger.anchors import Anchor
    from esteira.store import Store

LONGEST_LINE = 64_000_000
"""Bytes of a line of an export; more is no entry, and is not read into memory."""

_NAMES = frozenset({*BODY, "prev", "hash"})
_COLUMNS = ("seq", "at", "kind", "line", "version", "bundle_id", "actor", "evidence", "prev", "hash")


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


class _Break(Exception):
    """A link does not hold; the text says why."""


_Link = Callable[[Any, int, str], str]
"""(line, its number, the hash before) -> its hash; raises _Break."""


def verify(store: "Store", file: Path | None = None, anchors: Sequence["Anchor"] = ()) -> Verdict:
    """Check every link of the store's ledger or, when given, of an exported file, and that file against the store.

    Of the store it checks too that aliases and open approvals are what its ledger says last (`esteira.ledger.pointers`).

    A file may be older than the store: then the store must still hold its head at that number. A malformed line is a
    break like any other. One pass; memory does not grow with the number of entries.

    Args:
        anchors: heads that were kept elsewhere, in any order. The chain must reach each of them and have its hash there: this finds
            an end that was cut off, and a history that was written anew as a whole.

    Raises:
        SourceError: the file is missing or cannot be read.
    """
    if file is None:
        verdict = _walk(store.ledger_tuples(*_COLUMNS), _of_rows(store.tenant), anchors)
        verdict = _reaches(verdict, anchors)
        return _pointed(verdict, store) if verdict.ok else verdict
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
        verdict = _walk(_entry_lines(stream, head), _of_lines(store.tenant), anchors)
    if not verdict.ok:
        return verdict
    if not head:
        return _broken(verdict, "the file must end with a head line, but it ends without one")
    if canonical(head[0]) != canonical({"count": verdict.entries, "hash": verdict.head}):
        return _broken(verdict, f"the head line must name {verdict.entries} entries and the hash of the last one")
    verdict = _reaches(verdict, anchors)
    return _compare(verdict, store) if verdict.ok else verdict


def _walk(lines: Iterable[Any], link: _Link, anchors: Sequence["Anchor"]) -> Verdict:
    """Follow a chain from its beginning to its end or its first break."""
    # Every one of them counts: an anchor that was forged later stands beside the genuine one, and does not replace it.
    wanted: dict[int, list[Anchor]] = {}
    for one in anchors:
        wanted.setdefault(one.count, []).append(one)
    count, prev = 0, GENESIS
    try:
        _hold(wanted.get(0, ()), GENESIS)
        for line in lines:
            found = link(line, count + 1, prev)
            _hold(wanted.get(count + 1, ()), found)
            count, prev = count + 1, found
    except _Break as broken:
        return Verdict(False, count, count + 1, str(broken), prev)
    return Verdict(True, count, head=prev)


def _hold(anchors: Sequence["Anchor"], found: str) -> None:
    """Refuse a hash that is not the one of all anchors there."""
    for one in anchors:
        if one.hash != found:
            raise _Break(
                f"entry {one.count} was anchored at {one.at} with hash {one.hash[:12]}, but it has {found[:12]}:"
                " the chain was written anew, here or before, or the anchor is forged"
            )


def _pointed(verdict: Verdict, store: "Store") -> Verdict:
    """A chain that holds, against what the store says is so now."""
    found = astray(store)
    return verdict if found is None else _broken(verdict, found.reason, at=min(found.seq, verdict.entries + 1))


def _reaches(verdict: Verdict, anchors: Sequence["Anchor"]) -> Verdict:
    """A chain that holds in itself, against the lengths that were anchored."""
    if not verdict.ok or not anchors:
        return verdict
    last = max(anchors, key=lambda one: one.count)
    if last.count <= verdict.entries:
        return verdict
    return _broken(
        verdict,
        f"the ledger had {last.count} entries at {last.at}, but it has {verdict.entries}: its end was cut off",
    )


def _broken(verdict: Verdict, reason: str, at: int | None = None) -> Verdict:
    return Verdict(False, verdict.entries, verdict.entries + 1 if at is None else at, reason, verdict.head)


def _compare(verdict: Verdict, store: "Store") -> Verdict:
    """A file that holds in itself, against the chain that the store holds now."""
    count, found = 0, GENESIS
    for (digest,) in store.ledger_tuples("hash"):
        count += 1
        if count == verdict.entries:
            found = str(digest)
            break
    if count < verdict.entries:
        return _broken(verdict, f"the store must hold {verdict.entries} entries, but it holds {count}", at=count + 1)
    if verdict.entries and found != verdict.head:
        return _broken(
            verdict, "the store must hold the same entry as the file here, but its hash differs", verdict.entries
        )
    return verdict


# The store's rows


def _of_rows(tenant: str) -> _Link:
    owner, (read, write, wrong) = quote(tenant), _codec()

    def link(row: Sequence[Any], seq: int, prev: str) -> str:
        found, at, kind, line, version, bundle_id, actor, evidence, before, digest = row
        try:
            body = (
                f'{prev}{{"actor":{quote(actor)},"at":{quote(at)},"bundle_id":{_text(bundle_id)},"evidence":{evidence}'
                f',"kind":{quote(kind)},"line":{quote(line)},"seq":{seq},"tenant":{owner},"version":{_number(version)}}}'
            )
            if (
                found == seq
                and before == prev
                and write(read(evidence)) == evidence
                and hashlib.sha256(body.encode()).hexdigest() == digest
            ):
                return str(digest)
        except (TypeError, ValueError, OverflowError, RecursionError, wrong):
            pass
        told = of_row(dict(zip(_COLUMNS, row, strict=True)), tenant)
        return _slowly(told, seq, prev, tenant)

    return link


# An export's lines


def _of_lines(tenant: str) -> _Link:
    owner, (read, write, wrong) = quote(tenant), _codec()

    def link(line: bytes, seq: int, prev: str) -> str:
        try:
            text = line.decode("utf-8").removesuffix("\n")
            said = read(text)
            if type(said) is dict and said.keys() == _NAMES:
                digest = said["hash"]
                start = (
                    f'{{"actor":{quote(said["actor"])},"at":{quote(said["at"])},"bundle_id":{_text(said["bundle_id"])}'
                    f',"evidence":{write(said["evidence"])}'
                )
                kind, name = quote(said["kind"]), quote(said["line"])
                end = f'"seq":{seq},"tenant":{owner},"version":{_number(said["version"])}}}'
                whole = f'{start},"hash":{quote(digest)},"kind":{kind},"line":{name},"prev":"{prev}",{end}'
                body = f'{prev}{start},"kind":{kind},"line":{name},{end}'
                if whole == text and hashlib.sha256(body.encode()).hexdigest() == digest:
                    return str(digest)
        except (TypeError, ValueError, OverflowError, RecursionError, wrong):
            pass
        try:
            told = parse(line.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            raise _Break(f"line {seq} must be a JSON object: {str(error)[:100]}") from error
        if not isinstance(told, dict):
            raise _Break(f"line {seq} must be a JSON object")
        return _slowly(told, seq, prev, tenant)

    return link


def _entry_lines(stream: IO[bytes], head: list[Mapping[str, Any]]) -> Iterator[bytes]:
    """Lines of an export but its last one, which goes to `head`; nothing may follow it."""
    number = 0
    while line := stream.readline(LONGEST_LINE):
        number += 1
        if head:
            raise _Break(f"nothing may follow the head line, but line {number} does")
        if len(line) == LONGEST_LINE and not line.endswith(b"\n"):
            raise _Break(f"line {number} must be shorter than {LONGEST_LINE:,} bytes")
        # An entry's first key is its actor; whatever begins otherwise may be the head, and is looked at.
        if not line.startswith(b'{"actor":') and (found := _head(line)) is not None:
            head.append(found)
        else:
            yield line


def _head(line: bytes) -> Mapping[str, Any] | None:
    try:
        said = parse(line.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    if isinstance(said, dict) and set(said) == {"head"} and isinstance(said["head"], dict):
        return said["head"]
    return None


# Both


def _codec() -> tuple[Callable[[str], Any], Callable[[Any], str], type[Exception]]:
    """How JSON is read, how it is written canonically, both by msgspec where it can be, and what a bad text raises."""
    import msgspec

    write = msgspec.json.Encoder(order="sorted").encode

    def written(value: Any) -> str:
        text = write(value).decode()
        return encode(value) if _odd(text) else text

    return msgspec.json.Decoder().decode, written, msgspec.MsgspecError


def _odd(text: str) -> bool:
    """Whether a number in this JSON may be one that Python writes with an exponent, and msgspec otherwise: 1e-05, 1e+16.

    The two agree on everything else, which a test holds them to. A plain search for an e beside a digit would find every hash.
    """
    if '\\"' in text:  # which quotes open a text is not so easily seen
        return True
    outside = "".join(text.split('"')[::2])
    return "0.0000" in outside or "e" in outside.replace("true", "").replace("false", "")


def _text(value: Any) -> str:
    return "null" if value is None else quote(value)


def _number(value: Any) -> str:
    if value is None:
        return "null"
    if type(value) is not int:  # the text `null` would read like no version at all
        raise TypeError("a version is a number")
    return str(value)


def _slowly(line: Mapping[str, Any], seq: int, prev: str, tenant: str) -> str:
    reason = _fault(line, seq, prev, tenant)
    if reason:
        raise _Break(reason)
    return str(line["hash"])


def _fault(line: Mapping[str, Any], seq: int, prev: str, tenant: str) -> str:
    """Why this line cannot stand here; empty when it can."""
    if set(line) != _NAMES:
        odd = sorted(_NAMES ^ set(line))
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
        expected = entry_hash(prev, {name: line[name] for name in BODY})
    except (TypeError, ValueError, RecursionError):
        return f"entry {seq} must be plain JSON"
    if line["hash"] != expected:
        return (
            f"entry {seq} must have hash {expected[:12]}, but it has {str(line['hash'])[:12]}: its content was changed"
        )
    return ""
