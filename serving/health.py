"""What a service depends on, looked at behind the requests' backs: whether it is ready, and what `GET /health` says.

A probe is answered from the last look and costs nothing; a look that is too old counts as a failed one. No answer has an
exception's words in it.
"""

import contextlib
import logging
import os
import sqlite3
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

from esteira.errors import ConfigError
from esteira.settings import Settings
from serving.deployed import Deployed

_LIMIT = 1.0
"""Seconds that a dependency may take to answer."""

_log = logging.getLogger("serving")


def health_of(settings: Settings, deployed: Deployed, *, records: bool) -> "Health":
    """The health of a service with these settings.

    Without ESTEIRA_READY_NEEDS a service needs its lines and the database server that its records go to. A store in a file
    is no other's to stop, and records wait for it.

    Args:
        settings: addresses, period, needs.
        deployed: what it serves.
        records: it keeps records of predictions.

    Raises:
        ConfigError: it needs a Redis that has no address.
    """
    server = not settings.database_url.startswith("sqlite")
    needs: set[str] = {"lines", "database"} if records and server else {"lines"}
    if settings.ready_needs is not None:
        needs = {need for need in settings.ready_needs if need != "none"}
    if "redis" in needs and not settings.redis_url:
        raise ConfigError(
            "what a service needs has an address, but ESTEIRA_READY_NEEDS names redis and REDIS_URL is not set",
            code="no_redis_url",
            where="ESTEIRA_READY_NEEDS",
            cure="set REDIS_URL, or take redis out of ESTEIRA_READY_NEEDS",
        )
    uses = records or bool(settings.lines) or "database" in needs
    return Health(
        deployed,
        database_url=settings.database_url if uses else "",
        redis_url=settings.redis_url or "",
        needs=frozenset(needs),
        period=settings.health_seconds,
    )


class Health:
    """The health of one worker.

    Args:
        deployed: what it serves.
        database_url: of the platform store; empty when it uses none.
        redis_url: empty when it uses none.
        needs: what must be there for it to be ready: of `lines` (every released line serves), `database`, `redis`,
            `registry` (it says where the aliases point).
        period: seconds between two looks.
    """

    def __init__(
        self, deployed: Deployed, *, database_url: str, redis_url: str, needs: frozenset[str], period: float = 1.0
    ) -> None:
        self._deployed = deployed
        self._needs = needs
        self._period = period
        self._stop = threading.Event()
        self._looks: dict[str, _Look] = {}
        if database_url:
            asked: _Asked = _File(database_url) if database_url.startswith("sqlite") else _Server(database_url)
            self._looks["database"] = _Look("database", asked, period)
        if redis_url:
            self._looks["redis"] = _Look("redis", _Redis(redis_url), period)

    def start(self) -> None:
        """Start looking, each dependency in a thread of its own: one that hangs makes no other look old."""
        for look in self._looks.values():
            look.start(self._stop)

    def stop(self) -> None:
        """Stop looking; a look that hangs is not waited for."""
        self._stop.set()
        for look in self._looks.values():
            look.join()

    @property
    def ready(self) -> bool:
        """Whether everything that is needed was there at the last look."""
        return all(map(self._has, self._needs))

    def report(self) -> tuple[int, dict[str, Any]]:
        """Status and body of `GET /health`.

        `unhealthy` (503) when something needed is missing or no line serves; `degraded` when anything else is: a service
        that is used, or a line that is not where its alias points.
        """
        services: dict[str, Any] = {
            name: ("up" if self._looks[name].good else "down") if name in self._looks else "unused"
            for name in ("database", "redis")
        }
        lines = self._deployed.states()
        if not self.ready or not self._deployed.ready:
            status = "unhealthy"
        elif "down" in services.values() or any(state["state"] != "ready" or state["why"] for state in lines.values()):
            status = "degraded"
        else:
            status = "healthy"
        document = {
            "status": status,
            "timestamp": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "services": {**services, "models_loaded": self._deployed.models},
            "lines": lines,
        }
        return 503 if status == "unhealthy" else 200, document

    def _has(self, need: str) -> bool:
        if need == "lines":
            return self._deployed.complete
        if need == "registry":
            return not self._deployed.away
        look = self._looks.get(need)
        return look is not None and look.good


class _Asked(Protocol):
    """A dependency that can be asked whether it is there."""

    def ask(self) -> None:
        """Come back when it answered; raise whatever its driver raises when it did not."""
        ...

    def close(self) -> None:
        """Give back what asking holds."""
        ...


class _Look:
    """The last look at one dependency, and the thread that looks again and again."""

    def __init__(self, name: str, asked: _Asked, period: float) -> None:
        self._name, self._asked, self._period = name, asked, period
        self._answered: bool | None = None
        self._at = time.monotonic()
        self._thread: threading.Thread | None = None

    @property
    def good(self) -> bool:
        """It answered, and not longer ago than two looks take that are as slow as they may be."""
        return bool(self._answered) and time.monotonic() - self._at <= 2 * (self._period + _LIMIT)

    def start(self, stop: threading.Event) -> None:
        self._thread = threading.Thread(target=self._run, args=(stop,), name=f"health-{self._name}", daemon=True)
        self._thread.start()

    def join(self) -> None:
        if self._thread is not None:
            self._thread.join(timeout=0.5)

    def _run(self, stop: threading.Event) -> None:
        while True:
            self.look()
            if stop.wait(self._period):
                break
        with contextlib.suppress(Exception):
            self._asked.close()

    def look(self) -> None:
        why = ""
        try:
            self._asked.ask()
        except Exception as error:  # noqa: BLE001 - whatever a driver raises, it is away
            why = type(error).__name__
        answered, before = not why, self._answered
        self._answered, self._at = answered, time.monotonic()
        if why and before is not False:
            _log.warning("the %s does not answer: %s", self._name, why)
        elif answered and before is False:
            _log.warning("the %s answers again", self._name)


class _Server:
    """PostgreSQL, by one connection that is kept."""

    def __init__(self, url: str) -> None:
        for limit in ("connect_timeout=2", f"tcp_user_timeout={_LIMIT * 1000:.0f}"):
            if limit.partition("=")[0] not in url:
                url += ("&" if "?" in url else "?") + limit
        self._url = url
        self._engine: Any = None

    def ask(self) -> None:
        from esteira.store.database import open_engine

        if self._engine is None:
            self._engine = open_engine(self._url)
        with self._engine.connect() as connection:
            connection.exec_driver_sql("SELECT 1")

    def close(self) -> None:
        if self._engine is not None:
            self._engine.dispose()


class _File:
    """SQLite. A store that nobody wrote to yet is no file yet; then its folder must take one."""

    def __init__(self, url: str) -> None:
        self._path = Path(url.partition(":///")[2].partition("?")[0]).absolute()

    def ask(self) -> None:
        if not self._path.exists():
            folder = next(parent for parent in self._path.parents if parent.exists())
            if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
                raise NotADirectoryError
            return
        address = f"file:{quote(str(self._path))}?mode=rw"
        with contextlib.closing(sqlite3.connect(address, uri=True, timeout=_LIMIT)) as connection:
            connection.execute("PRAGMA schema_version").fetchone()

    def close(self) -> None:
        """Nothing is kept open: SQLite's locks do not survive that a process forks."""


class _Redis:
    """Redis, by one connection that is kept."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._client: Any = None

    def ask(self) -> None:
        if self._client is None:
            from redis import Redis
            from redis.backoff import NoBackoff
            from redis.retry import Retry

            self._client = Redis.from_url(
                self._url, socket_timeout=_LIMIT, socket_connect_timeout=_LIMIT, retry=Retry(NoBackoff(), 0)
            )
        self._client.ping()

    def close(self) -> None:
        if self._client is not None:
            self._client.close()
