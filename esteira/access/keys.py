"""Keys are given and taken away: told in the ledger and kept in the home's file, in an order that a kill anywhere leaves sound."""

import hashlib
import re
import secrets
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from esteira import crash, ledger
from esteira.access import keyfile
from esteira.access.keyfile import ROLES, Key
from esteira.access.rights import Actor, require, who
from esteira.access.told import EVERY_LINE, Known, is_told, known
from esteira.errors import ConfigError, Refused
from esteira.settings import Settings

if TYPE_CHECKING:
    from esteira.store import Store

_PREFIX = "esk_"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9@._+-]{0,63}")


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
        Refused: code `not_allowed`, or as `who`, `require` and `new_key`. A store's first key is an admin's, too.
        ConfigError: as `check_form`.
        OutsideError: the ledger or the key file cannot be written; nothing is opened.
    """
    check_form(name, role)
    home = settings.home
    with keyfile.changing(home):
        # Asked within the lock: of two that make the first key at once, the second one needs it.
        actor = who(settings)
        require(actor, "keys", line=EVERY_LINE, store=store, now=now)
        keys, told = dict(keyfile.read(home) or {}), known(store)
        key, made = new_key(keys, name, role, admins_of(keys, told), now)
        keyfile.write(home, {**keys, name: replace(made, shown=False)})
        crash.point("keys.before_entry")
        _note(store, actor, [*_untold(keys, told), ("added", made)], now)
        crash.point("keys.before_shown")
        show(key)
        keyfile.write(home, {**keys, name: made})
    return made


def take(settings: Settings, name: str, *, store: "Store", now: datetime | None = None) -> Key:
    """Let a key open nothing from now on, if whoever acts may; its name stays on record. Cut off, it is done by the same call.

    Raises:
        Refused: code `not_allowed`, or as `who`, `require` and `revoked`.
        OutsideError: the ledger or the key file cannot be written.
    """
    home = settings.home
    with keyfile.changing(home):
        actor = who(settings)
        require(actor, "keys", line=EVERY_LINE, store=store, now=now)
        keys, told = dict(keyfile.read(home) or {}), known(store)
        taken = revoked(keys, name, admins_of(keys, told), now)
        # The entry first: from then on this store refuses the key, whatever the file says.
        _note(store, actor, [*_untold(keys, told), ("revoked", taken)], now)
        crash.point("keys.before_revoked")
        keyfile.write(home, {**keys, name: taken})
    return taken


def check_form(name: str, role: str) -> None:
    """Refuse a name or a role of another form.

    Raises:
        ConfigError: code `bad_key_name` or `bad_role`.
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


def new_key(
    keys: Mapping[str, Key], name: str, role: str, admins: Collection[str], now: datetime | None
) -> tuple[str, Key]:
    """A new key and what is kept of it.

    Args:
        admins: names of those whose key opens.

    Raises:
        Refused: the name has a key (code `key_exists`), or it is the first one and no admin's (code `first_key`): nobody could give
            another then.
    """
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


def revoked(keys: Mapping[str, Key], name: str, admins: Collection[str], now: datetime | None) -> Key:
    """What is kept of a key that opens nothing any more.

    Raises:
        Refused: there is no such key that opens (code `unknown_key`), or it is the last admin's (code `last_admin`).
    """
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


def admins_of(keys: Mapping[str, Key], told: Mapping[str, Known] | None = None) -> list[str]:
    """Names of the admins whose key opens; where the store was told of keys, only those of whom it was."""
    found = [key for key in keys.values() if key.role == "admin" and key.opens]
    return [key.name for key in found if not told or is_told(told, key.name, key.role, key.digests)]


def _untold(keys: Mapping[str, Key], told: Mapping[str, Known]) -> list[tuple[str, Key]]:
    """What the ledger has yet to be told of keys that it goes by: all that open where it knows none, else those known without digest."""
    found = [key for key in keys.values() if key.opens]
    return [("added", key) for key in found if not told or told.get(key.name) == Known(key.role, None)]


def _text(now: datetime | None) -> str:
    return (now or datetime.now(UTC)).astimezone(UTC).isoformat(timespec="seconds")


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
