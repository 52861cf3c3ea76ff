"""Who acts, and whether they may: named keys with a role each, kept as hashes in a file of mode 600; deny by default.

A key lies in a home; what it guards lies in a store. So the ledger of the store knows each key that counts there, by a digest: the
key file of another home, or none, opens nothing that is guarded. Where neither a key file nor the store knows a key, whoever has this
account does what they did before, except approving: that takes a key. What is refused here is told in the ledger (kind `denied`), and
so is every key that is given or taken away (kind `key`).
"""

from esteira.access.keyfile import ROLES, Key, listed
from esteira.access.keys import give, take
from esteira.access.rights import ACTIONS, ENGINE, MATRIX, Actor, may, reader, require, who
from esteira.access.told import EVERY_LINE, Known, known

__all__ = [
    "ACTIONS",
    "ENGINE",
    "EVERY_LINE",
    "MATRIX",
    "ROLES",
    "Actor",
    "Key",
    "Known",
    "give",
    "known",
    "listed",
    "may",
    "reader",
    "require",
    "take",
    "who",
]
