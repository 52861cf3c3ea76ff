"""How processes that work for one study know of each other's death: by locked files on one host, by heartbeats on many."""

import contextlib
import fcntl
import secrets
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

HEARTBEAT = 10
"""Seconds between two signs of life of a process that works for a study on PostgreSQL; four missed ones mean that it died."""
_WORKER = "worker"


class Alive(Protocol):
    """How processes that work for one study know of each other's death."""

    def sign(self, entry: int) -> None:
        """Say that this process works on the entry; before it is claimed, so that there is no moment without a sign."""

    def drop(self, entry: int) -> None:
        """This process works on it no more."""

    def lost(self, running: Sequence[Any]) -> list[int]:
        """Of the running trials those whose process died."""

    def alone(self) -> contextlib.AbstractContextManager[None]:
        """While one process is in this block no other of the study is, where that can be had."""

    def close(self) -> None: ...


class FileLock:
    """A lock that a dead process does not hold: Optuna's own is a file, which a killed process leaves for half a minute."""

    def __init__(self, path: Path) -> None:
        self._path = path
        # Threads share nothing but this; a file lock alone would let them both in, or one block itself.
        self._mine = threading.Lock()
        self._file: Any = None

    def acquire(self) -> bool:
        """Wait for the lock."""
        self._mine.acquire()
        try:
            self._file = self._path.open("a")
            fcntl.flock(self._file, fcntl.LOCK_EX)
        except BaseException:
            self._mine.release()
            raise
        return True

    def release(self) -> None:
        """Give it back."""
        self._file.close()
        self._mine.release()


class OneProcess:
    """In memory nobody else can be."""

    def sign(self, entry: int) -> None: ...

    def drop(self, entry: int) -> None: ...

    def lost(self, running: Sequence[Any]) -> list[int]:
        return []

    def alone(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def close(self) -> None: ...


class Leases:
    """On one host: each worker holds a locked file, which the kernel frees when the worker dies, however it dies."""

    def __init__(self, folder: Path, storage: Any) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._storage = folder, storage
        self._name = secrets.token_hex(8)
        self._file = (folder / self._name).open("a")
        fcntl.flock(self._file, fcntl.LOCK_EX)
        self._turn = FileLock(folder / "turn")

    def sign(self, entry: int) -> None:
        self._storage.set_trial_user_attr(entry, _WORKER, self._name)

    def drop(self, entry: int) -> None: ...

    def lost(self, running: Sequence[Any]) -> list[int]:
        workers = {trial.user_attrs.get(_WORKER, "") for trial in running}
        dead = {worker for worker in workers if worker != self._name and not self._lives(worker)}
        return [trial._trial_id for trial in running if trial.user_attrs.get(_WORKER, "") in dead]

    def _lives(self, worker: str) -> bool:
        if not worker:
            return False
        path = self._folder / worker
        try:
            with path.open("r") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        path.unlink(missing_ok=True)
        return False

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        self._turn.acquire()
        try:
            yield
        finally:
            self._turn.release()

    def close(self) -> None:
        (self._folder / self._name).unlink(missing_ok=True)
        self._file.close()


class Heartbeats:
    """On many hosts: a thread renews the time of every entry that this process works on, by the database's own clock."""

    def __init__(self, database: Any, study: int) -> None:
        self._database, self._study = database, study
        self._entries: set[int] = set()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True, name="heartbeats")
        self._thread.start()

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT):
            for entry in tuple(self._entries):
                # A database that is away is told to whoever asks or tells next.
                with contextlib.suppress(Exception):
                    self._database.record_heartbeat(entry)

    def sign(self, entry: int) -> None:
        self._database.record_heartbeat(entry)
        self._entries.add(entry)

    def drop(self, entry: int) -> None:
        self._entries.discard(entry)

    def lost(self, running: Sequence[Any]) -> list[int]:
        stale = set(self._database._get_stale_trial_ids(self._study))
        return [trial._trial_id for trial in running if trial._trial_id in stale]

    def alone(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def close(self) -> None:
        self._stop.set()
        self._thread.join(timeout=HEARTBEAT)
        self._database.engine.dispose()
