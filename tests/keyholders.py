"""Keys of a home of which no store knows yet; `access.give` and `access.take` are the way where one does."""

from datetime import datetime
from pathlib import Path

from esteira.access import Key, keyfile, keys


def add(home: Path, name: str, role: str, *, now: datetime | None = None) -> str:
    """Make a key and keep its hash."""
    keys.check_form(name, role)
    with keyfile.changing(home):
        kept = keyfile.read(home) or {}
        key, made = keys.new_key(kept, name, role, keys.admins_of(kept), now)
        keyfile.write(home, {**kept, name: made})
    return key


def revoke(home: Path, name: str, *, now: datetime | None = None) -> Key:
    """Let a key open nothing from now on."""
    with keyfile.changing(home):
        kept = keyfile.read(home) or {}
        revoked = keys.revoked(kept, name, keys.admins_of(kept), now)
        keyfile.write(home, {**kept, name: revoked})
    return revoked
