"""The key file of a home: names, roles and hashes of keys, of mode 600, read whole and replaced whole."""

import contextlib
import hashlib
import json
import os
import re
import secrets
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from esteira import crash, locks
from esteira.errors import ConfigError, OutsideError, Refused

ROLES = ("viewer", "data_scientist", "approver", "admin")
"""What a key may be given (S-36)."""


_FILE = "keys.json"
_SCHEMA = 1


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


def changing(home: Path) -> contextlib.AbstractContextManager[None]:
    """Keep everybody else from changing the keys of a home while the block runs."""
    return locks.hold(home, "keys", what="changing keys", wait=30)


def read(home: Path) -> dict[str, Key] | None:
    """Name -> key, those that were never shown too; None where there is no key file.

    Raises:
        Refused: others may read it (code `open_keys`), or this account may not (code `closed_keys`).
        ConfigError: it is none (code `bad_keys`).
    """
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
            code="bad_keys", where=_FILE, cure="bring back a copy of it: where the store knows keys, nothing else opens it",
        ) from error  # fmt: skip
    return keys


def write(home: Path, keys: Mapping[str, Key]) -> None:
    """Replace the file as a whole, with mode 600 from its first byte on.

    Raises:
        OutsideError: it cannot be written (code `cannot_write`); the keys are as they were.
    """
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


def listed(home: Path) -> list[Key]:
    """The keys of a home by name, revoked ones too; not one that was never shown.

    Raises:
        Refused, ConfigError: as `read`.
    """
    return sorted((key for key in (read(home) or {}).values() if key.shown), key=lambda key: key.name)
