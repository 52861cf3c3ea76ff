"""The ledger: append-only, hash-chained; every verdict, registration, approval, alias move and traffic change, with actor and evidence.

An entry's hash covers the hash before it and the canonical JSON of its own body, so a change anywhere breaks the chain from
there on. `chain` appends and exports, `check` verifies, `pointers` holds the store's aliases against it, `anchors` keeps a head
where the store cannot reach it, `shares` answers which version took which share of traffic at any second.
"""

from esteira.ledger.anchors import (
    NOTES,
    Anchor,
    add_anchor,
    add_note,
    anchor,
    load_anchors,
    no_anchor,
    read_anchors,
    read_notes,
)
from esteira.ledger.chain import GENESIS, Entry, append, canonical, entries, entry_hash, export, log
from esteira.ledger.check import Verdict, verify
from esteira.ledger.shares import Change, Serving, at, course, latest, moment

__all__ = [
    "GENESIS",
    "NOTES",
    "Anchor",
    "Change",
    "Entry",
    "Serving",
    "Verdict",
    "add_anchor",
    "add_note",
    "anchor",
    "append",
    "at",
    "canonical",
    "course",
    "entries",
    "entry_hash",
    "export",
    "latest",
    "load_anchors",
    "log",
    "moment",
    "no_anchor",
    "read_anchors",
    "read_notes",
    "verify",
]
