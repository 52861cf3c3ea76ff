"""Where a study's trials are written so that other processes see them: in memory, a journal file, or PostgreSQL.

Every trial is one entry: waiting, running, or finished with a JSON document. A running entry whose process died waits
again, so none is lost; the first to finish an entry is the one who counts. What is proposed is not decided here.
"""

import contextlib
import json
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from esteira.automl import alive as life
from esteira.automl.alive import Alive, FileLock, Heartbeats, Leases, OneProcess
from esteira.errors import ConfigError, EsteiraError, OutsideError
from esteira.settings import redact

PAUSES = (1, 2, 4, 8, 16)
"""Seconds between tries to reach PostgreSQL: how a trial went may have cost minutes to find out."""
T = TypeVar("T")
# Workers that start together make the same tables; all but one are told that they exist.
_TRIES = 5
# A schema of its own: MLflow and Optuna both keep a table alembic_version, and a database may hold other tables called trials.
_SCHEMA = "esteira_study"
_CONNECT = {"connect_timeout": 10, "options": f"-c search_path={_SCHEMA}"}
# How every record of a journal begins.
_RECORD = b'{"op_code":'
_PROPOSAL, _BATCH, _TOLD = "proposal", "batch", "told"


@dataclass(frozen=True)
class Entry:
    """One trial as written.

    Attributes:
        id: of the entry, for `claim` and `finish`.
        state: waiting, running or finished.
        proposal: what is tried.
        batch: the first entry of those that it was asked for with, see `together`; None for what was never asked for.
        score: higher is better; None while unfinished, and where there is none.
        told: what `finish` was given.
    """

    id: int
    state: str
    proposal: Mapping[str, Any]
    batch: int | None
    score: float | None
    told: Mapping[str, Any]


class TrialLog:
    """The entries of one study, in the order in which they were added. Made by `open`."""

    def __init__(self, storage: Any, study: int, alive: Alive, where: str) -> None:
        self._storage, self._study, self._alive, self._where = storage, study, alive, where
        self._held: set[int] = set()
        self._finished: dict[int, Entry] = {}

    @classmethod
    def open(cls, url: str, name: str) -> "TrialLog":
        """Open a study's log, or begin it.

        Args:
            url: empty for memory; a path, or `journal:PATH`, for a file on this host; `postgresql://...` for many hosts.
            name: of the study; others may live at the same place.

        Raises:
            ConfigError: another kind of storage, or its driver is missing.
            OutsideError: it cannot be reached, read or written.
        """
        url = os.fspath(url)
        scheme = urlsplit(url).scheme if "://" in url else ""
        if scheme and scheme.partition("+")[0] not in {"postgresql", "postgres"}:
            raise ConfigError(
                f"a study is kept at a path, journal:PATH or postgresql://..., but got {redact(url)!r}",
                code="bad_storage", where="storage", cure="give one of these; SQLite is unfit for several workers",
            )  # fmt: skip
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        path = Path(url.removeprefix("journal:")).expanduser()
        where = redact(url) if scheme else f"journal {path.name}" if url else "memory"
        with warnings.catch_warnings(), _outside(where):
            # Heartbeats are called experimental; what is used of them has a test here.
            warnings.simplefilter("ignore")
            if scheme:
                storage, study, alive = _on_postgresql(url, name)
            elif url:
                storage, study, alive = _on_journal(path, name)
            else:
                storage, study, alive = _in_memory(name)
        return cls(storage, study, alive, where)

    def entries(self) -> list[Entry]:
        """All of them."""
        trials = self._patiently(lambda: self._storage.get_all_trials(self._study, deepcopy=False))
        batches = {entry: trial._trial_id for trial in trials for entry in trial.user_attrs.get(_BATCH, ())}
        return [self._finished.get(trial._trial_id) or self._read(trial, batches) for trial in trials]

    def _read(self, trial: Any, batches: Mapping[int, int]) -> Entry:
        entry = _entry(trial, batches.get(trial._trial_id))
        if entry.state == "finished":
            self._finished[entry.id] = entry
        return entry

    def add(self, proposal: Mapping[str, Any]) -> None:
        """Put a trial to wait, at the end."""
        from optuna.trial import TrialState, create_trial

        template = create_trial(state=TrialState.WAITING, user_attrs={_PROPOSAL: json.dumps(proposal)})
        # Added twice, where the answer was lost, it counts once.
        self._patiently(lambda: self._storage.create_new_trial(self._study, template))

    def claim(self, entry: int) -> bool:
        """Take a waiting entry to work on it; False when another process was faster."""
        from optuna.exceptions import UpdateFinishedTrialError
        from optuna.trial import TrialState

        def take() -> bool:
            try:
                self._alive.sign(entry)
                return bool(self._storage.set_trial_state_values(entry, TrialState.RUNNING))
            except UpdateFinishedTrialError:
                return False

        taken = self._patiently(take)
        if taken:
            self._held.add(entry)
        elif entry not in self._held:
            self._alive.drop(entry)
        return taken

    def together(self, entries: Sequence[int]) -> None:
        """Note that these were asked for together: in one record, so that a process that dies leaves a whole batch or none."""
        self._patiently(lambda: self._storage.set_trial_user_attr(entries[0], _BATCH, list(entries)))

    def finish(self, entry: int, *, score: float | None, told: Mapping[str, Any]) -> None:
        """Write how a trial went. Where another process finished it meanwhile, that stands."""
        words = json.dumps(told)
        self._patiently(lambda: self._finish(entry, score, words))
        self._held.discard(entry)
        self._alive.drop(entry)

    def _finish(self, entry: int, score: float | None, told: str) -> None:
        from optuna.exceptions import UpdateFinishedTrialError
        from optuna.trial import TrialState

        state = TrialState.COMPLETE if score is not None else TrialState.PRUNED
        with contextlib.suppress(UpdateFinishedTrialError):
            self._storage.set_trial_user_attr(entry, _TOLD, told)
            self._storage.set_trial_state_values(entry, state, None if score is None else [score])

    def free_lost(self) -> None:
        """Let the trials of processes that died wait again."""
        from optuna.trial import TrialState

        def free() -> None:
            running = self._storage.get_all_trials(self._study, deepcopy=False, states=(TrialState.RUNNING,))
            self._wait_again(self._alive.lost([trial for trial in running if trial._trial_id not in self._held]))

        self._patiently(free)

    def alone(self) -> contextlib.AbstractContextManager[None]:
        """While one process is in this block no other of the study is; on PostgreSQL several may be."""
        return self._alive.alone()

    def close(self) -> None:
        """Give back what this process works on, and let go of the storage."""
        with contextlib.suppress(EsteiraError), self._outside():
            self._wait_again(sorted(self._held))
        self._alive.close()
        if hasattr(self._storage, "remove_session"):
            with contextlib.suppress(EsteiraError), self._outside():
                self._storage.remove_session()

    def _wait_again(self, entries: Sequence[int]) -> None:
        from optuna.exceptions import UpdateFinishedTrialError
        from optuna.trial import TrialState

        for entry in entries:
            # Not Optuna's callback, which fails the trial and adds another: a process that dies between loses both.
            with contextlib.suppress(UpdateFinishedTrialError):
                self._storage.set_trial_state_values(entry, TrialState.WAITING)

    def _patiently(self, word: Callable[[], T]) -> T:
        """Say a word to the storage; a database that does not answer is asked again, for as long as PAUSES last."""
        for pause in PAUSES if isinstance(self._alive, Heartbeats) else ():
            try:
                with self._outside():
                    return word()
            except OutsideError:
                time.sleep(pause)
        with self._outside():
            return word()

    def _outside(self) -> contextlib.AbstractContextManager[None]:
        return _outside(self._where)


def _entry(trial: Any, batch: int | None) -> Entry:
    from optuna.trial import TrialState

    states = {TrialState.WAITING: "waiting", TrialState.RUNNING: "running"}
    attributes = trial.user_attrs
    return Entry(
        id=trial._trial_id,
        state=states.get(trial.state, "finished"),
        proposal=json.loads(attributes[_PROPOSAL]),
        batch=batch,
        score=trial.values[0] if trial.state == TrialState.COMPLETE else None,
        told=json.loads(attributes.get(_TOLD, "{}")) if trial.state.is_finished() else {},
    )


@contextlib.contextmanager
def _outside(where: str) -> Iterator[None]:
    """Whatever a storage raises is the world's failure; nothing but the storage is called within."""
    try:
        yield
    except EsteiraError:
        raise
    except ImportError as error:
        raise ConfigError(
            f"a study at this address needs the library {error.name!r}, which is not installed",
            code="missing_library", where=where, cure=f"install {error.name}, or keep the study in a file",
        ) from error  # fmt: skip
    # SQLAlchemy, its drivers, Optuna and files have no root in common but this.
    except Exception as error:
        reason = redact(str(error)).strip().partition("\n")[0][:300]
        if where.startswith("journal ") and isinstance(error, ValueError | KeyError | AssertionError):
            raise _no_journal(where, f"{type(error).__name__}: {reason}") from error
        raise OutsideError(
            f"a study's storage must answer, but: {type(error).__name__}: {reason}",
            code="storage_away", where=where,
            cure="see that it is there and may be written, then run again: trials that were told are kept",
        ) from error  # fmt: skip


def _no_journal(where: str, reason: str) -> OutsideError:
    return OutsideError(
        f"a journal holds one record of a study a line, but this one does not: {reason}",
        code="broken_journal", where=where, cure="name another file, or move this one away: the search then begins anew",
    )  # fmt: skip


def _begin(storage: Any, name: str) -> int:
    from optuna.exceptions import DuplicatedStudyError
    from optuna.study import StudyDirection

    try:
        study: int = storage.get_study_id_from_name(name)
    except KeyError:
        try:
            study = storage.create_new_study([StudyDirection.MAXIMIZE], name)
        except DuplicatedStudyError:
            study = storage.get_study_id_from_name(name)
    return study


def _in_memory(name: str) -> tuple[Any, int, Alive]:
    from optuna.storages import InMemoryStorage

    storage = InMemoryStorage()
    return storage, _begin(storage, name), OneProcess()


def _on_journal(path: Path, name: str) -> tuple[Any, int, Alive]:
    from optuna.storages.journal import JournalFileBackend, JournalStorage

    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.with_name(path.name + ".lock"))
    lock.acquire()
    try:
        _mend(path)
    finally:
        lock.release()
    storage = JournalStorage(JournalFileBackend(str(path), lock_obj=lock))
    leases = Leases(path.with_name(path.name + ".workers"), storage)
    return storage, _begin(storage, name), leases


def _on_postgresql(url: str, name: str) -> tuple[Any, int, Alive]:
    from optuna.storages import RDBStorage, get_storage

    url = "postgresql+psycopg2://" + url.partition("://")[2] if "+" not in url.partition("://")[0] else url
    for again in range(_TRIES):
        try:
            _make_schema(url)
            database = RDBStorage(
                url,
                # A connection that the server closed meanwhile is opened anew.
                engine_kwargs={"pool_pre_ping": True, "connect_args": _CONNECT},
                heartbeat_interval=life.HEARTBEAT,
                grace_period=4 * life.HEARTBEAT,
            )
            storage = get_storage(database)
            study = _begin(storage, name)
            return storage, study, Heartbeats(database, study)
        except ImportError:
            raise
        except Exception:
            if again + 1 == _TRIES:
                raise
            time.sleep(0.2 * (again + 1))
    raise AssertionError("unreachable")


def _make_schema(url: str) -> None:
    import psycopg2  # type: ignore[import-untyped]

    connection = psycopg2.connect(url.replace("+psycopg2", "", 1), connect_timeout=10)
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute(f"CREATE SCHEMA IF NOT EXISTS {_SCHEMA}")
    except psycopg2.errors.UniqueViolation:
        pass  # another worker made it at the same moment
    finally:
        connection.close()


def _mend(path: Path) -> None:
    """Cut off a last line that was not written whole, by a full disk or a loss of power: nobody was told it was written."""
    if not path.exists() or not path.stat().st_size:
        return
    with path.open("rb+") as file:
        if file.read(len(_RECORD)) != _RECORD:
            raise _no_journal(f"journal {path.name}", "its first line is no record")
        at = end = file.seek(0, os.SEEK_END)
        found = -1
        while at > 0 and found < 0:
            step = min(at, 65536)
            at = file.seek(at - step)
            found = file.read(step).rfind(b"\n")
        if at + found + 1 < end:
            file.truncate(at + found + 1)
