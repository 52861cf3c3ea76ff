"""What the ledger of a store was told of keys: it is these that count there."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from esteira.errors import Refused
from esteira.ledger.chain import parse

if TYPE_CHECKING:
    from esteira.store import Store

EVERY_LINE = "*"
"""The line of an entry that is about none in particular."""


@dataclass(frozen=True)
class Known:
    """A key as the ledger knows it. `digest` is `Key.digest`; None where its entry is of a time before entries said it."""

    role: str
    digest: str | None


def known(store: "Store") -> dict[str, Known]:
    """Name -> what this store's ledger was told of a key that opens; empty where it was told of none.

    Raises:
        Refused: code `broken_ledger`; an entry of kind `key` cannot be read.
    """
    found: dict[str, Known] = {}
    for seq, evidence in store.ledger_tuples("seq", "evidence", line=EVERY_LINE, kinds=("key",)):
        try:
            said = parse(evidence)
            if said["action"] == "revoked":
                found.pop(said["name"], None)
            else:
                found[said["name"]] = Known(said["role"], said.get("digest"))
        except (ValueError, TypeError, KeyError) as error:
            raise Refused(
                f"an entry about a key names it and its role, but entry {seq} does not",
                code="broken_ledger", where=f"ledger, entry {seq}", cure="see `esteira ledger verify`",
            ) from error  # fmt: skip
    return found


def is_told(told: Mapping[str, Known], name: str, role: str, digests: Collection[str]) -> bool:
    """Whether the ledger knows this key. One whose digest it was never told goes by name and role."""
    mine = told.get(name)
    return mine is not None and mine.role == role and (mine.digest is None or mine.digest in digests)
