"""Who acts, and whether they may: named keys with a role each, kept as hashes in a file of mode 600; deny by default.

Where there is no key file, whoever has this account does what they did before, except approving: that takes a key. What is
refused here is told in the ledger (kind `denied`), and so is every key that is given or taken away (kind `key`).
"""

import contextlib
import hashlib
import hmac
import json
import os
import re
import secrets
import stat
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from esteira import crash, ledger, locks
from esteira.errors import ConfigError, OutsideError, Refused
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
    # Roles that no key has: the account's user where there is no key file, the same beside one, and a rollout's own policy.
    "local": frozenset(ACTIONS) - {"approve"},
    "guest": frozenset({"read", "register", "stage"}),
    "engine": frozenset({"read", "promote", "rollout", "roll_back"}),
}
"""Role -> what it may do; what does not stand here is refused."""

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
    """

    name: str
    role: str
    keyed: bool


ENGINE = Actor("rollout", "engine", keyed=False)
"""A rollout that goes as its policy decides. Who began it stands in its entry `started`."""


@dataclass(frozen=True)
class Key:
    """A key as it is kept: never the key itself.

    Attributes:
        sha256: of the key, hexadecimal.
        created_at, revoked_at: ISO 8601, UTC; `revoked_at` is empty while it opens.
    """

    name: str
    role: str
    sha256: str
    created_at: str
    revoked_at: str = ""

    def public(self) -> dict[str, Any]:
        """What may be shown."""
        return {
            "name": self.name, "role": self.role, "created_at": self.created_at, "revoked_at": self.revoked_at or None,
        }  # fmt: skip


def who(settings: Settings) -> Actor:
    """Who acts in this process: the name of the key in `ESTEIRA_KEY`, else the user of the account.

    Raises:
        Refused: the key opens nothing here (code `unknown_key`), or others may read the key file (code `open_keys`).
        ConfigError: the key file is none (code `bad_keys`).
    """
    keys = _read(settings.home)
    if settings.key is None:
        return Actor(settings.actor, "local" if keys is None else "guest", keyed=False)
    found = hashlib.sha256(settings.key.get_secret_value().encode()).hexdigest()
    for key in (keys or {}).values():
        # Every key is compared, in constant time, so that nothing can be learned from how long it takes.
        if hmac.compare_digest(key.sha256, found) and not key.revoked_at:
            return Actor(key.name, key.role, keyed=True)
    raise Refused(
        "ESTEIRA_KEY opens something here, but no key that is valid is this one",
        code="unknown_key",
        where="ESTEIRA_KEY",
        cure="ask an admin for a key (`esteira keys add NAME --role ROLE`), or unset ESTEIRA_KEY",
    )


def may(actor: Actor, action: str) -> bool:
    """Whether this actor may do that; pure. An action or a role that nobody knows is refused."""
    return action in MATRIX.get(actor.role, frozenset())


def require(actor: Actor, action: str, *, line: str, store: "Store | None" = None, now: datetime | None = None) -> None:
    """Let the actor do it, or refuse and tell so in the ledger.

    Args:
        action: one of `ACTIONS`.
        line: whose; `*` where it is about none in particular.
        store: where the ledger is; by default the environment's.

    Raises:
        Refused: code `not_allowed`.
    """
    if action not in ACTIONS:
        raise ValueError(f"an action is one of {', '.join(ACTIONS)}, but got {action!r}")
    if may(actor, action):
        return
    _tell_denied(actor, action, line, store, now)
    roles = ", ".join(role for role in ROLES if action in MATRIX[role])
    held = f"{actor.name} has the role {actor.role}" if actor.keyed else f"{actor.name} gave no key"
    raise Refused(
        f"who may {action.replace('_', ' ')} has a key with the role {roles}, but {held}",
        code="not_allowed",
        where=line,
        cure="set ESTEIRA_KEY to such a key; an admin gives one by `esteira keys add NAME --role ROLE`",
    )


def _tell_denied(actor: Actor, action: str, line: str, store: "Store | None", now: datetime | None) -> None:
    """Write the refusal down. Where that fails it stays a refusal."""
    with contextlib.suppress(OutsideError):
        if store is None:
            from esteira.store import Store

            settings = load_settings()
            store = Store.open(settings.database_url, settings.tenant)
        evidence = {"action": action, "role": actor.role, "keyed": actor.keyed}
        ledger.append(store, kind="denied", line=line, actor=actor.name, evidence=evidence, now=now)


# ---------------------------------------------------------------- keys


def listed(home: Path) -> list[Key]:
    """The keys of a home by name, revoked ones too.

    Raises:
        Refused, ConfigError: as `who`.
    """
    return sorted((_read(home) or {}).values(), key=lambda key: key.name)


def add(home: Path, name: str, role: str, *, now: datetime | None = None) -> str:
    """Make a key, keep its hash, and give it, once.

    Whether somebody may is asked before, by `require(actor, "keys", line="*")`.

    Raises:
        ConfigError: the name or the role has another form.
        Refused: the name has a key (code `key_exists`), or it is the first one and no admin's (code `first_key`): nobody could
            give another then.
    """
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
    with locks.hold(home, "keys", what="changing keys", wait=30):
        keys = dict(_read(home) or {})
        if name in keys and not keys[name].revoked_at:
            raise Refused(
                f"a name has one key, but {name} has one already, with the role {keys[name].role}",
                code="key_exists", where="keys", cure=f"esteira keys revoke {name}, then add it again",
            )  # fmt: skip
        if role != "admin" and not _admins(keys):
            raise Refused(
                f"the first key is an admin's, because nobody else gives keys, but {name} is to be {role}",
                code="first_key", where="keys", cure="esteira keys add YOUR_NAME --role admin",
            )  # fmt: skip
        key = _PREFIX + secrets.token_urlsafe(32)
        digest = hashlib.sha256(key.encode()).hexdigest()
        _write(home, {**keys, name: Key(name, role, digest, _text(now))})
    return key


def revoke(home: Path, name: str, *, now: datetime | None = None) -> Key:
    """Let a key open nothing from now on; its name stays on record.

    Raises:
        Refused: there is no such key that opens (code `unknown_key`), or it is the last admin's (code `last_admin`).
    """
    with locks.hold(home, "keys", what="changing keys", wait=30):
        keys = dict(_read(home) or {})
        if name not in keys or keys[name].revoked_at:
            raise Refused(
                f"a key that opens is revoked, but {name[:80]} has none",
                code="unknown_key", where="keys", cure="see `esteira keys ls`",
            )  # fmt: skip
        if _admins(keys) == [name]:
            raise Refused(
                f"a home with keys has an admin, but {name} is the last one",
                code="last_admin", where="keys", cure="give another admin a key first",
            )  # fmt: skip
        keys[name] = replace(keys[name], revoked_at=_text(now))
        _write(home, keys)
    return keys[name]


def _admins(keys: Mapping[str, Key]) -> list[str]:
    return [key.name for key in keys.values() if key.role == "admin" and not key.revoked_at]


def _text(now: datetime | None) -> str:
    return (now or datetime.now(UTC)).astimezone(UTC).isoformat(timespec="seconds")


def _read(home: Path) -> dict[str, Key] | None:
    """Name -> key; None where there is no key file."""
    path = home / _FILE
    try:
        with path.open("rb") as stream:
            mode = stat.S_IMODE(os.fstat(stream.fileno()).st_mode)
            data = stream.read()
    except FileNotFoundError:
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
        keys = {name: Key(name=name, **told) for name, told in document["keys"].items()}
        if not all(key.role in ROLES and re.fullmatch("[0-9a-f]{64}", key.sha256) for key in keys.values()):
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


def note(store: "Store", actor: Actor, action: str, name: str, role: str, *, now: datetime | None = None) -> None:
    """Tell in the ledger that a key was given or taken away (`added`, `revoked`); never the key."""
    evidence = {"action": action, "name": name, "role": role, "by_role": actor.role, "keyed": actor.keyed}
    ledger.append(store, kind="key", line=EVERY_LINE, actor=actor.name, evidence=evidence, now=now)
