"""Who acts, and whether they may: named keys with a role each, kept as hashes in a file of mode 600; deny by default.

A key lies in a home; what it guards lies in a store. So the ledger of the store knows each key that counts there, by a digest: the
key file of another home, or none, opens nothing that is guarded. Where neither a key file nor the store knows a key, whoever has this
account does what they did before, except approving: that takes a key. What is refused here is told in the ledger (kind `denied`), and
so is every key that is given or taken away (kind `key`).
"""

import contextlib
import hashlib
import hmac
import json
import os
import re
import secrets
import stat
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from esteira import crash, ledger, locks
from esteira.errors import ConfigError, OutsideError, Refused
from esteira.ledger.chain import parse
from esteira.settings import Settings, load_settings

if TYPE_CHECKING:
    from esteira.store import Store

ROLES = ("viewer", "data_scientist", "approver", "admin")
"""What a key may be given (S-36)."""

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

EVERY_LINE = "*"
"""The line of an entry that is about none in particular."""

_FILE = "keys.json"
_SCHEMA = 1
_PREFIX = "esk_"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9@._+-]{0,63}")


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


@dataclass(frozen=True)
class Key:
    """A key as it is kept: never the key itself.

    Attributes:
        sha256: of the key, hexadecimal.
        created_at, revoked_at: ISO 8601, UTC; `revoked_at` is empty while it opens.
        shown: False while it is being made: it opens nothing, and counts for nothing.
        attempts: `sha256` of the keys that were begun under this name before it and never shown. A store may have been told of one
            of them; nobody has it.
    """

    name: str
    role: str
    sha256: str
    created_at: str
    revoked_at: str = ""
    shown: bool = True
    attempts: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """What the ledger says of it: one step further from the key than what is kept."""
        return _digest(self.sha256)

    @property
    def digests(self) -> frozenset[str]:
        """What a store may have been told of it: of itself, or of an attempt."""
        return frozenset({self.digest, *map(_digest, self.attempts)})

    @property
    def opens(self) -> bool:
        """Whether somebody has it, and it was not taken away."""
        return self.shown and not self.revoked_at

    def public(self) -> dict[str, Any]:
        """What may be shown."""
        return {
            "name": self.name, "role": self.role, "created_at": self.created_at, "revoked_at": self.revoked_at or None,
        }  # fmt: skip


def _digest(kept: str) -> str:
    return hashlib.sha256(kept.encode()).hexdigest()


def who(settings: Settings) -> Actor:
    """Who acts in this process: the name of the key in `ESTEIRA_KEY`, else the user of the account.

    Raises:
        Refused: the key opens nothing here (code `unknown_key`), others may read the key file (code `open_keys`), or who gives no
            key goes by the name of one (code `taken_name`).
        ConfigError: the key file is none (code `bad_keys`).
    """
    keys = _read(settings.home) or {}
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
        if not told or _is_told(told, actor.name, actor.role, actor.proofs):
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


def _is_told(told: Mapping[str, Known], name: str, role: str, digests: Collection[str]) -> bool:
    """Whether the ledger knows this key. One whose digest it was never told goes by name and role."""
    mine = told.get(name)
    return mine is not None and mine.role == role and (mine.digest is None or mine.digest in digests)


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


# ---------------------------------------------------------------- keys


def listed(home: Path) -> list[Key]:
    """The keys of a home by name, revoked ones too; not one that was never shown.

    Raises:
        Refused, ConfigError: as `who`.
    """
    return sorted((key for key in (_read(home) or {}).values() if key.shown), key=lambda key: key.name)


def give(
    settings: Settings,
    name: str,
    role: str,
    *,
    store: "Store",
    show: Callable[[str], object],
    now: datetime | None = None,
) -> Key:
    """Make a key, if whoever acts may: told in the ledger, shown, and only then does it open anything.

    Cut off anywhere, the same call makes another one: a key that was never shown is nobody's. A store that knows no key yet (another
    database, another tenant) is told in the same step of all that open here, so that the first one it knows locks nobody out.

    Args:
        store: whose ledger is told, and which it guards.
        show: gives the key to a person; what it raises leaves the key opening nothing.

    Raises:
        Refused: code `not_allowed`, or as `who`, `require` and `add`. A store's first key is an admin's, too.
        ConfigError: as `add`.
        OutsideError: the ledger or the key file cannot be written; nothing is opened.
    """
    _check_form(name, role)
    home = settings.home
    with _changing(home):
        # Asked within the lock: of two that make the first key at once, the second one needs it.
        actor = who(settings)
        require(actor, "keys", line=EVERY_LINE, store=store, now=now)
        keys, told = dict(_read(home) or {}), known(store)
        key, made = _made(keys, name, role, _admins(keys, told), now)
        _write(home, {**keys, name: replace(made, shown=False)})
        crash.point("keys.before_entry")
        _note(store, actor, [*_untold(keys, told), ("added", made)], now)
        crash.point("keys.before_shown")
        show(key)
        _write(home, {**keys, name: made})
    return made


def take(settings: Settings, name: str, *, store: "Store", now: datetime | None = None) -> Key:
    """Let a key open nothing from now on, if whoever acts may; its name stays on record. Cut off, it is done by the same call.

    Raises:
        Refused: code `not_allowed`, or as `who`, `require` and `revoke`.
        OutsideError: the ledger or the key file cannot be written.
    """
    home = settings.home
    with _changing(home):
        actor = who(settings)
        require(actor, "keys", line=EVERY_LINE, store=store, now=now)
        keys, told = dict(_read(home) or {}), known(store)
        taken = _revoked(keys, name, _admins(keys, told), now)
        # The entry first: from then on this store refuses the key, whatever the file says.
        _note(store, actor, [*_untold(keys, told), ("revoked", taken)], now)
        crash.point("keys.before_revoked")
        _write(home, {**keys, name: taken})
    return taken


def add(home: Path, name: str, role: str, *, now: datetime | None = None) -> str:
    """Make a key in a home of which no store knows yet, keep its hash, and give it, once. `give` is for all others.

    Raises:
        ConfigError: the name or the role has another form.
        Refused: the name has a key (code `key_exists`), or it is the first one and no admin's (code `first_key`): nobody could
            give another then.
    """
    _check_form(name, role)
    with _changing(home):
        keys = dict(_read(home) or {})
        key, made = _made(keys, name, role, _admins(keys), now)
        _write(home, {**keys, name: made})
    return key


def revoke(home: Path, name: str, *, now: datetime | None = None) -> Key:
    """Let a key open nothing from now on in a home of which no store knows. `take` is for all others.

    Raises:
        Refused: there is no such key that opens (code `unknown_key`), or it is the last admin's (code `last_admin`).
    """
    with _changing(home):
        keys = dict(_read(home) or {})
        taken = _revoked(keys, name, _admins(keys), now)
        _write(home, {**keys, name: taken})
    return taken


def _changing(home: Path) -> contextlib.AbstractContextManager[None]:
    return locks.hold(home, "keys", what="changing keys", wait=30)


def _check_form(name: str, role: str) -> None:
    if _NAME.fullmatch(name) is None:
        raise ConfigError(
            f"a key's name is 1 to 64 letters, digits and any of @._+-, but got {name[:80]!r}",
            code="bad_key_name", where="NAME", cure="for example ana or ana@example.org",
        )  # fmt: skip
    if role not in ROLES:
        raise ConfigError(
            f"a role is one of {', '.join(ROLES)}, but got {role[:50]!r}",
            code="bad_role", where="--role", cure="take one of these",
        )  # fmt: skip


def _made(
    keys: Mapping[str, Key], name: str, role: str, admins: Collection[str], now: datetime | None
) -> tuple[str, Key]:
    """A new key and what is kept of it."""
    if name in keys and keys[name].shown and not keys[name].revoked_at:
        raise Refused(
            f"a name has one key, but {name} has one already, with the role {keys[name].role}",
            code="key_exists", where="keys", cure=f"esteira keys revoke {name}, then add it again",
        )  # fmt: skip
    if role != "admin" and not admins:
        raise Refused(
            f"the first key is an admin's, because nobody else gives keys, but {name} is to be {role}",
            code="first_key", where="keys", cure="esteira keys add YOUR_NAME --role admin",
        )  # fmt: skip
    key = _PREFIX + secrets.token_urlsafe(32)
    former = keys.get(name)
    attempts = () if former is None or former.shown else (*former.attempts, former.sha256)
    return key, Key(name, role, hashlib.sha256(key.encode()).hexdigest(), _text(now), attempts=attempts)


def _revoked(keys: Mapping[str, Key], name: str, admins: Collection[str], now: datetime | None) -> Key:
    if name not in keys or not keys[name].shown or keys[name].revoked_at:
        raise Refused(
            f"a key that opens is revoked, but {name[:80]} has none",
            code="unknown_key", where="keys", cure="see `esteira keys ls`",
        )  # fmt: skip
    if list(admins) == [name]:
        raise Refused(
            f"a home with keys has an admin, but {name} is the last one",
            code="last_admin", where="keys", cure="give another admin a key first",
        )  # fmt: skip
    return replace(keys[name], revoked_at=_text(now))


def _admins(keys: Mapping[str, Key], told: Mapping[str, Known] | None = None) -> list[str]:
    """Names of the admins whose key opens; where the store was told of keys, only those of whom it was."""
    found = [key for key in keys.values() if key.role == "admin" and key.opens]
    return [key.name for key in found if not told or _is_told(told, key.name, key.role, key.digests)]


def _untold(keys: Mapping[str, Key], told: Mapping[str, Known]) -> list[tuple[str, Key]]:
    """What the ledger has yet to be told of keys that it goes by: all that open where it knows none, else those known without digest."""
    found = [key for key in keys.values() if key.opens]
    return [("added", key) for key in found if not told or told.get(key.name) == Known(key.role, None)]


def _text(now: datetime | None) -> str:
    return (now or datetime.now(UTC)).astimezone(UTC).isoformat(timespec="seconds")


def _read(home: Path) -> dict[str, Key] | None:
    """Name -> key; None where there is no key file."""
    path = home / _FILE
    try:
        with path.open("rb") as stream:
            mode = stat.S_IMODE(os.fstat(stream.fileno()).st_mode)
            data = stream.read()
    except (FileNotFoundError, NotADirectoryError):  # without a home there is no key file; what needs one says so
        return None
    except OSError as error:
        raise Refused(
            f"the key file can be read by whoever acts here, but {error.strerror}",
            code="closed_keys", where=_FILE, cure="act as the user that owns ESTEIRA_HOME",
        ) from error  # fmt: skip
    if mode & 0o077:
        raise Refused(
            f"only its owner may read or write the key file, but its mode is {mode:03o}",
            code="open_keys", where=_FILE, cure="chmod 600 it, then give out new keys: others may have changed it",
        )  # fmt: skip
    try:
        document = json.loads(data)
        if document["schema"] != _SCHEMA:
            raise ValueError("another schema")
        keys = {
            name: Key(name=name, **{**told, "attempts": tuple(told.get("attempts", ()))})
            for name, told in document["keys"].items()
        }
        if not all(
            key.role in ROLES
            and all(re.fullmatch("[0-9a-f]{64}", kept) for kept in (key.sha256, *key.attempts))
            and type(key.shown) is bool
            for key in keys.values()
        ):
            raise ValueError("a role or hash that is none")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(
            "a key file is as `esteira keys` wrote it, but this one is not",
            code="bad_keys", where=_FILE, cure="bring back a copy of it; without one remove it, and give out new keys",
        ) from error  # fmt: skip
    return keys


def _write(home: Path, keys: Mapping[str, Key]) -> None:
    """Replace the file as a whole, with mode 600 from its first byte on."""
    document = {
        "schema": _SCHEMA,
        "keys": {
            key.name: {
                "role": key.role, "sha256": key.sha256, "created_at": key.created_at, "revoked_at": key.revoked_at,
                "shown": key.shown, "attempts": list(key.attempts),
            }
            for key in keys.values()
        },
    }  # fmt: skip
    path = home / _FILE
    temporary = home / f".{_FILE}.{os.getpid()}.{secrets.token_hex(4)}.tmp"
    try:
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
            stream.write((json.dumps(document, indent=1) + "\n").encode())
            stream.flush()
            os.fsync(stream.fileno())
        crash.point("keys.before_rename")
        temporary.replace(path)
    except OSError as error:
        raise OutsideError(
            f"the key file can be written, but {error.strerror or error}",
            code="cannot_write", where=_FILE, cure="see that ESTEIRA_HOME has room and is yours; the keys are as they were",
        ) from error  # fmt: skip
    finally:
        temporary.unlink(missing_ok=True)


def _note(store: "Store", actor: Actor, told: Sequence[tuple[str, Key]], now: datetime | None) -> None:
    """Tell in the ledger, at once, which keys were given or taken away (`added`, `revoked`); never a key, nor what is kept of it."""
    with store.begin() as connection:
        for action, key in told:
            evidence = {
                "action": action, "name": key.name, "role": key.role, "digest": key.digest, "by_role": actor.role,
                "keyed": actor.keyed,
            }  # fmt: skip
            ledger.append(
                store, kind="key", line=EVERY_LINE, actor=actor.name, evidence=evidence, now=now, connection=connection
            )
        crash.point("ledger.before_commit")
