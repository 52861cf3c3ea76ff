"""Who acts, and whether they may: a matrix that denies by default, held against the key file and what the store knows."""

import contextlib
import hashlib
import hmac
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

from esteira import ledger
from esteira.access import keyfile
from esteira.access.keyfile import ROLES
from esteira.access.told import is_told, known
from esteira.errors import Refused
from esteira.settings import Settings, load_settings

if TYPE_CHECKING:
    from esteira.store import Store

ACTIONS = ("read", "register", "stage", "retire", "roll_back", "approve", "promote", "rollout", "keys")
"""What is asked for."""

MATRIX: Mapping[str, frozenset[str]] = {
    "viewer": frozenset({"read"}),
    "data_scientist": frozenset({"read", "register", "stage", "retire", "roll_back"}),
    "approver": frozenset({"read", "stage", "approve", "promote", "rollout", "roll_back"}),
    "admin": frozenset(ACTIONS),
    # Roles that no key has: the account's user where there is no key file, the same where there are keys, and a rollout's own
    # policy.
    "local": frozenset(ACTIONS) - {"approve"},
    "guest": frozenset({"read", "register", "stage"}),
    "engine": frozenset({"read", "promote", "rollout", "roll_back"}),
}
"""Role -> what it may do; what does not stand here is refused."""


# What goes by the key file alone where the store is away, or what it says of keys cannot be read: a bad version is not to wait, and
# who looks for what is broken reads.
_ALONE = frozenset({"roll_back", "read"})


@dataclass(frozen=True)
class Actor:
    """Who acts.

    Attributes:
        name: of the key that was used; of the account's user, or what they call themselves, where none was.
        role: one of `MATRIX`.
        keyed: whether a key says so. Free text never counts where a key is asked for.
        door: by which they came: `http`, or empty for this process's own.
        proofs: digests that the store may know: of the key that was used; without one, of keys that this home began and never
            showed, which therefore nobody has.
    """

    name: str
    role: str
    keyed: bool
    door: str = ""
    proofs: frozenset[str] = field(default=frozenset(), compare=False, repr=False)

    def told(self) -> dict[str, Any]:
        """What evidence says of them besides their name: `role`, `keyed`, and `door` where it is another process's."""
        return {"role": self.role, "keyed": self.keyed, **({"door": self.door} if self.door else {})}


ENGINE = Actor("rollout", "engine", keyed=False)
"""A rollout that goes as its policy decides. Who began it stands in its entry `started`."""


def who(settings: Settings) -> Actor:
    """Who acts in this process: the name of the key in `ESTEIRA_KEY`, else the user of the account.

    Raises:
        Refused: the key opens nothing here (code `unknown_key`), others may read the key file (code `open_keys`), or who gives no
            key goes by the name of one (code `taken_name`).
        ConfigError: the key file is none (code `bad_keys`).
    """
    keys = keyfile.read(settings.home) or {}
    counting = [key for key in keys.values() if key.shown]
    if settings.key is None:
        if settings.actor.casefold() in {key.name.casefold() for key in counting}:
            raise _taken(settings.actor)
        unshown = frozenset[str]().union(*(key.digests for key in keys.values() if not key.shown))
        return Actor(settings.actor, "guest" if counting else "local", keyed=False, proofs=unshown)
    found = hashlib.sha256(settings.key.get_secret_value().encode()).hexdigest()
    # Every key is compared, in constant time, so that nothing can be learned from how long it takes.
    opening = [key for key in counting if hmac.compare_digest(key.sha256, found)]
    if opening and not opening[0].revoked_at:
        return Actor(opening[0].name, opening[0].role, keyed=True, proofs=opening[0].digests)
    raise Refused(
        "ESTEIRA_KEY opens something here, but no key that is valid is this one",
        code="unknown_key",
        where="ESTEIRA_KEY",
        cure="ask an admin for a key (`esteira keys add NAME --role ROLE`), or unset ESTEIRA_KEY",
    )


def _taken(name: str) -> Refused:
    return Refused(
        f"who gives no key goes by a name of their own, but {name[:80]} is the name of a key",
        code="taken_name",
        where="ESTEIRA_ACTOR",
        cure="set ESTEIRA_KEY to that key, or ESTEIRA_ACTOR to another name",
    )


def may(actor: Actor, action: str) -> bool:
    """Whether this actor may do that; pure. An action or a role that nobody knows is refused."""
    return action in MATRIX.get(actor.role, frozenset())


def require(
    actor: Actor,
    action: str,
    *,
    line: str,
    store: "Store | Callable[[], Store] | None" = None,
    now: datetime | None = None,
) -> None:
    """Let the actor do it, or refuse and tell so in the ledger.

    Where the store knows keys, only those count (DESIGN 6: the ledger is the truth). A rollout's own policy, and reading without a
    key, ask no store; a roll back, and reading, go by the key file alone where the store is away.

    Args:
        action: one of `ACTIONS`.
        line: whose; `*` where it is about none in particular.
        store: where the ledger is, or what opens it, called only where something must be asked; by default the environment's.

    Raises:
        Refused: code `not_allowed`; `other_keys`, where the store knows keys and this is none of them; `taken_name`, where it knows
            a key of this name and none was given.
        OutsideError: the store cannot be asked.
    """
    if action not in ACTIONS:
        raise ValueError(f"an action is one of {', '.join(ACTIONS)}, but got {action!r}")
    refusal = _denied(actor, action, line) if not may(actor, action) else _unknown_here(actor, action, line, store)
    if refusal is not None:
        _tell_denied(actor, action, line, store, now)
        raise refusal


def reader(settings: Settings, *, line: str, store: "Store | Callable[[], Store] | None" = None) -> None:
    """Let whoever has this account read. A key that is given must be one that may, though: a revoked one opens nothing.

    Raises:
        Refused: as `who` and `require`.
    """
    if settings.key is not None:
        require(who(settings), "read", line=line, store=store)


def _denied(actor: Actor, action: str, line: str) -> Refused:
    roles = ", ".join(role for role in ROLES if action in MATRIX[role])
    held = f"{actor.name} has the role {actor.role}" if actor.keyed else f"{actor.name} gave no key"
    return Refused(
        f"who may {action.replace('_', ' ')} has a key with the role {roles}, but {held}",
        code="not_allowed",
        where=line,
        cure="set ESTEIRA_KEY to such a key; an admin gives one by `esteira keys add NAME --role ROLE`",
    )


def _unknown_here(actor: Actor, action: str, line: str, store: "Store | Callable[[], Store] | None") -> Refused | None:
    """Why the store does not take this actor for what the key file says; None where it does."""
    if actor.role == "engine" or (action == "read" and not actor.keyed):
        return None
    try:
        told = known(_opened(store))
    except Exception:
        # Away, a standby, of a newer schema, spoiled: the way out is not held up by what is wrong with a store.
        if action in _ALONE:
            return None
        raise
    if actor.keyed:
        if not told or is_told(told, actor.name, actor.role, actor.proofs):
            return None
        held = f"this store was not told of {actor.name}'s key as {actor.role}"
    else:
        told = {name: one for name, one in told.items() if one.digest not in actor.proofs}
        if actor.name.casefold() in {name.casefold() for name in told}:
            return _taken(actor.name)
        if not told or action in MATRIX["guest"]:
            return None
        held = f"{actor.name} gave no key"
    return Refused(
        f"a store that knows keys is opened by these, but {held}",
        code="other_keys",
        where=line,
        cure="set ESTEIRA_HOME to the folder whose keys.json this store knows, and ESTEIRA_KEY to a key of it",
    )


def _opened(store: "Store | Callable[[], Store] | None") -> "Store":
    if store is None:
        from esteira.store import Store

        settings = load_settings()
        return Store.open(settings.database_url, settings.tenant)
    return store() if callable(store) else store


def _tell_denied(
    actor: Actor, action: str, line: str, store: "Store | Callable[[], Store] | None", now: datetime | None
) -> None:
    """Write the refusal down. Where that fails it stays a refusal."""
    with contextlib.suppress(Exception):
        evidence = {"action": action, **actor.told()}
        ledger.append(_opened(store), kind="denied", line=line, actor=actor.name, evidence=evidence, now=now)
