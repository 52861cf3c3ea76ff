"""Which version of a line took which share of its traffic, at any second, read from the ledger alone.

Two things move traffic: a move of the alias `champion`, which gives its version everything, and a `traffic` entry, which names the
share of every version that takes any. Each says all of a line's shares, so the one appended last, of those that happened by then,
answers.
"""

import contextlib
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, time
from typing import TYPE_CHECKING, Any

from esteira.errors import ConfigError, Refused
from esteira.ledger.chain import parse, stamp

if TYPE_CHECKING:
    from esteira.store import Store

_KINDS = ("alias", "rollback", "traffic")
_COLUMNS = ("seq", "at", "kind", "line", "version", "bundle_id", "actor", "evidence", "hash")
# In canonical JSON these characters are a key: within a text its quotes would be escaped.
_MOVES_CHAMPION = '"champion":['


@dataclass(frozen=True)
class Serving:
    """A version and its share of its line's traffic, in (0, 1]."""

    line: str
    version: int
    bundle_id: str
    share: float


@dataclass(frozen=True)
class Change:
    """A line's shares from one entry on.

    Attributes:
        seq, at, kind, actor, hash: of the entry that says so.
        version: the one that the entry is about: the new champion, or the candidate of a rollout.
        action: what was decided, such as `advance` or `roll_back`; `alias` for a move of the champion.
        test_id: of the rollout; empty outside of one.
        shares: of every version that takes traffic, the largest first; empty when none does.
    """

    seq: int
    at: str
    kind: str
    line: str
    version: int | None
    actor: str
    action: str
    reason: str
    test_id: str
    hash: str
    shares: tuple[Serving, ...]


def at(store: "Store", time: datetime, line: str | None = None) -> list[Serving]:
    """What took traffic at a time, by line and then by share; nothing before the first release. One pass over the ledger.

    What an entry says counts from its own time on, and until one that was appended after it counts: so an entry of a clock that was
    ahead hides none that follows. The chain is read, not verified.

    Args:
        time: aware.
        line: only this one.

    Raises:
        Refused: code `broken_ledger`; an entry that moved traffic does not say so as entries do.
    """
    until = stamp(time)
    # Only the last entry of a line is looked into: reading all of them as JSON would take ten times as long.
    last: dict[str, Any] = {}
    for row in store.ledger_tuples(*_COLUMNS, line=line, kinds=_KINDS, until=until):
        if row[2] == "traffic" or _MOVES_CHAMPION in str(row[7]):
            last[row[3]] = row
    found: list[Serving] = []
    for name in sorted(last):
        change = _change(last[name])
        if change is None:  # it only looked like a move of the champion
            change = next((one for one in reversed(list(course(store, name))) if one.at <= until), None)
        found += [] if change is None else change.shares
    return found


def course(store: "Store", line: str) -> Iterator[Change]:
    """Every change of a line's shares, in the chain's order.

    Raises:
        Refused: as `at`.
    """
    for row in store.ledger_tuples(*_COLUMNS, line=line, kinds=_KINDS):
        if row[2] == "traffic" or _MOVES_CHAMPION in str(row[7]):
            change = _change(row)
            if change is not None:
                yield change


def _change(row: Any) -> Change | None:
    """What an entry says of traffic; None when it says nothing of it."""
    seq, when, kind, line, version, bundle_id, actor, text, digest = row
    try:
        said = parse(text)
        if kind == "traffic":
            shares = tuple(
                Serving(line, int(one["version"]), str(one["bundle_id"]), float(one["share"])) for one in said["shares"]
            )
            total = math.fsum(one.share for one in shares)
            if not (
                all(0 <= one.share <= 1 for one in shares) and (math.isclose(total, 1, abs_tol=1e-6) or not shares)
            ):
                raise ValueError("shares")
            action = str(said.get("action") or kind)
        else:
            moves = said.get("moves")
            if not (isinstance(moves, Mapping) and "champion" in moves):
                return None
            to = moves["champion"][1]
            if to is not None and to != version:
                raise ValueError("another version")
            shares = () if to is None else (Serving(line, int(to), str(bundle_id), 1.0),)
            action = kind
        reason, test = str(said.get("reason") or ""), str(said.get("test_id") or "")
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
        raise Refused(
            f"an entry that moves traffic names versions and shares that sum to 1, but entry {seq} does not",
            code="broken_ledger",
            where=f"{line}, ledger entry {seq}",
            cure="see `esteira ledger verify`: either it was changed, or another program wrote it",
        ) from error
    taking = tuple(sorted((one for one in shares if one.share > 0), key=lambda one: (-one.share, one.version)))
    return Change(int(seq), when, kind, line, version, actor, action, reason, test, digest, taking)


def latest(store: "Store", now: datetime) -> datetime:
    """The present of a ledger: now, or the latest time at which traffic was moved where a clock ahead of this one told it."""
    with contextlib.suppress(ValueError):
        return max(now, datetime.fromisoformat(store.ledger_latest(_KINDS)))
    return now


def moment(text: str, now: datetime) -> datetime:
    """The time that a person means: `2026-11-22T14:03`, `2026-11-22 14:03:07+01:00`, `14:03` of today, or `now`.

    Without a zone it is UTC. A time without a fraction means its whole second: what was so at that second's end.

    Args:
        now: the present, aware.

    Raises:
        ConfigError: it is no time.
    """
    said = text.strip()
    try:
        if said.lower() == "now":
            return now.astimezone(UTC)
        if re.match(r"\d{1,2}:", said):
            clock = time.fromisoformat(said)
            zone = clock.tzinfo or UTC
            found = datetime.combine(now.astimezone(zone).date(), clock.replace(tzinfo=None), tzinfo=zone)
        else:
            found = datetime.fromisoformat(said)
            found = found if found.tzinfo else found.replace(tzinfo=UTC)
        found = found.astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise ConfigError(
            f"a time is written as 2026-11-22T14:03 or 14:03, but got {text[:50]!r}",
            code="bad_time",
            where="TIME",
            cure="write it so; it is UTC unless it names a zone, as in 14:03+01:00",
        ) from error
    return found if re.search(r":\d\d[.,]\d", said) else found.replace(microsecond=999_999)
