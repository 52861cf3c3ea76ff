"""A database for one tenant: opened, migrated, and given out in transactions. Knows no table but Alembic's own.

Failures of the database itself become OutsideError without the statement's parameters; a broken constraint stays what it is.
"""

import contextlib
import json
import math
import os
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import URL, Connection, Engine, make_url
from sqlalchemy.exc import (
    ArgumentError,
    DBAPIError,
    IntegrityError,
    NoSuchModuleError,
    SQLAlchemyError,
)
from sqlalchemy.pool import NullPool

from esteira.errors import ConfigError, OutsideError
from esteira.settings import redact

DriverError = SQLAlchemyError
"""What a database under another library's care raises."""

HEAD = "0007"
"""The newest migration; a test compares it with the folder."""

BUSY_SECONDS = 30.0
"""How long a writer waits for another before it gives up."""

CONNECT_SECONDS = 5.0
"""How long PostgreSQL may take to answer at all."""

_MIGRATION_LOCK = 7_233_001
_engines: "weakref.WeakSet[Engine]" = weakref.WeakSet()


def plain(value: Any) -> Any:
    """The value as JSON can hold it: NaN and infinities become null, numpy's scalars numbers, paths text; keys are text.

    Characters that PostgreSQL cannot keep (NUL, lone surrogates) become U+FFFD, passwords in addresses `***`.
    """
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, str):
        return redact(value.replace("\0", "\ufffd").encode("utf-8", "replace").decode("utf-8"))
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if isinstance(value, Path):
        return plain(str(value))
    if hasattr(value, "item"):
        return plain(value.item())
    raise TypeError(f"only JSON values are kept, but got {type(value).__name__}")


def to_json(value: Any) -> str:
    """JSON text of a value, made `plain` first."""
    return json.dumps(plain(value), ensure_ascii=False, allow_nan=False)


def _url(text: str) -> URL:
    try:
        url = make_url(text)
    except ArgumentError as error:
        raise _bad_url("is an address such as sqlite:///FILE or postgresql://USER@HOST/NAME", text) from error
    backend = url.get_backend_name()
    if url.drivername in {"postgres", "postgresql"} or backend == "postgres":
        # Bare `postgresql` picks psycopg 3 with SQLAlchemy 2.1.
        url = url.set(drivername="postgresql+psycopg2")
    elif backend not in {"sqlite", "postgresql"}:
        raise _bad_url("is SQLite or PostgreSQL", text)
    if backend == "sqlite" and (url.database or ":memory:") == ":memory:":
        raise _bad_url("outlives the process, so it lies in a file", text)
    return url


def _bad_url(rule: str, text: str) -> ConfigError:
    return ConfigError(
        f"a platform store {rule}, but got {redact(text)[:200]!r}",
        code="bad_database_url",
        where="ESTEIRA_DATABASE_URL",
        cure="correct the address, or remove it to use SQLite in ESTEIRA_HOME",
    )


class Database:
    """One tenant's view of a database. Safe to share between threads; a forked child opens its own."""

    def __init__(self, engine: Engine, tenant: str) -> None:
        self.engine = engine
        self.tenant = tenant
        self.dialect = engine.dialect.name

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.engine.url.render_as_string(hide_password=True)!r}, {self.tenant!r})"

    def close(self) -> None:
        """Close pooled connections; the object may be used again."""
        self.engine.dispose()

    @contextlib.contextmanager
    def read(self) -> Iterator[Connection]:
        """One consistent view; nothing may be written."""
        with _translated(), self.engine.connect() as connection, connection.begin():
            yield connection

    @contextlib.contextmanager
    def begin(self) -> Iterator[Connection]:
        """One transaction that writes: all of it is kept or nothing. On SQLite it is the only writer from its start on.

        Raises:
            OutsideError: the database is away, full, or busy for longer than BUSY_SECONDS.
        """
        with (
            _translated(),
            self.engine.connect().execution_options(esteira_write=True) as connection,
            connection.begin(),
        ):
            yield connection

    def serialise(self, connection: Connection, what: int) -> None:
        """Until the transaction ends, hold what SQLite's one writer holds anyway: the right to do `what`."""
        if self.dialect == "postgresql":
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(what)))

    def migrate(self) -> None:
        """Bring the schema up to HEAD; does nothing, and imports no Alembic, where it is there already.

        Raises:
            ConfigError: the schema is newer than this code.
        """
        with self.read() as connection:
            found = self._revision(connection)
        if found == HEAD:
            return
        with self.begin() as connection:
            self.serialise(connection, _MIGRATION_LOCK)
            found = self._revision(connection)
            if found == HEAD:  # another process was faster
                return
            if found is not None and found > HEAD:
                raise ConfigError(
                    f"the store's schema is at most {HEAD} for this code, but it is {found}",
                    code="schema_newer",
                    where=self.engine.url.render_as_string(hide_password=True),
                    cure="use the newer Esteira that wrote it",
                )
            from alembic import command
            from alembic.config import Config

            config = Config(attributes={"connection": connection})
            config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
            command.upgrade(config, "head")

    def _revision(self, connection: Connection) -> str | None:
        if self.dialect == "sqlite":
            exists = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'alembic_version'"
        else:
            exists = "SELECT to_regclass('alembic_version')"
        if connection.exec_driver_sql(exists).scalar() is None:
            return None
        found: str | None = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()
        return found


def open_engine(text: str) -> Engine:
    """An engine for an address; connects to nothing yet.

    Raises:
        ConfigError: the address is none of SQLite or PostgreSQL.
        OutsideError: the folder of a SQLite file cannot be made.
    """
    url = _url(text)
    # Parameters hold rows and keys; they have no place in a log or a traceback.
    common: dict[str, Any] = {"hide_parameters": True, "json_serializer": to_json}
    try:
        if url.get_backend_name() == "postgresql":
            # A host that swallows packets would else hold whoever opens, such as a roll back, for two minutes.
            waits = {"connect_timeout": int(CONNECT_SECONDS)}
            engine = sa.create_engine(url, pool_pre_ping=True, pool_size=4, connect_args=waits, **common)
            _engines.add(engine)
            return engine
        folder = Path(str(url.database)).parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutsideError(
                f"the folder of the store can be made, but {error.strerror}",
                code="store_away",
                where=str(folder),
                cure="set ESTEIRA_HOME to a folder that can be written",
            ) from error
        # No pool: steps are forked, and SQLite's locks do not survive a connection that is open in both processes.
        engine = sa.create_engine(url, poolclass=NullPool, connect_args={"timeout": BUSY_SECONDS}, **common)
    except (NoSuchModuleError, ModuleNotFoundError) as error:
        raise _bad_url("has a driver that is installed (psycopg2 comes with esteira[pipeline])", text) from error
    sa.event.listen(engine, "connect", _prepare_sqlite)
    sa.event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # we say BEGIN ourselves, so that migrations are transactional too
    _retried(lambda: connection.execute("PRAGMA journal_mode=WAL"))
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("PRAGMA foreign_keys=ON")


def _retried(statement: Callable[[], object]) -> None:
    """Switching a fresh file to WAL does not wait for others by itself."""
    import sqlite3

    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            statement()
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def _begin_sqlite(connection: Connection) -> None:
    write = connection.get_execution_options().get("esteira_write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


def _after_fork() -> None:
    for engine in list(_engines):
        engine.dispose(close=False)


os.register_at_fork(after_in_child=_after_fork)


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except IntegrityError:
        raise
    except DBAPIError as error:
        # Drivers have no kind of their own for a database that refuses: a standby is an InternalError, a lost right a
        # ProgrammingError.
        raise _outside(error) from error


def _outside(error: DBAPIError) -> OutsideError:
    said = redact(str(error.orig).strip().splitlines()[0] if str(error.orig).strip() else type(error.orig).__name__)[
        :300
    ]
    if "full" in said.lower() or "No space left" in said:
        code, cure = "disk_full", "free space where the platform store lies, then try again; nothing was changed"
    elif "locked" in said:
        code, cure = "store_busy", "another process writes for very long; try again"
    else:
        code, cure = (
            "store_away",
            "see that the database of ESTEIRA_DATABASE_URL is there and may be written; try again",
        )
    return OutsideError(
        f"the platform store answers, but it said: {said}", code=code, where="platform store", cure=cure
    )
