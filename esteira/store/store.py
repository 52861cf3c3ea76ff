"""The platform store: what ran, on which data, what was registered, what was answered; one tenant's rows, nobody else's.

Rows come back as `esteira.store.records`. What is written is made JSON-able first: NaN becomes null, passwords in
addresses `***`. It decides nothing: rules of release live in `esteira.registry`, the chain in `esteira.ledger`.
"""

import os
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from esteira import crash
from esteira.errors import ConfigError
from esteira.store import tables as t
from esteira.store.database import Database, open_engine, plain
from esteira.store.records import Alias, Dataset, Experiment, Prediction, Record, Run, Step, Trial, Version

Row = dict[str, Any]
R = TypeVar("R", bound=Record)

_LEDGER_LOCK = 7_233_002


def now() -> datetime:
    """The present time, aware, UTC."""
    return datetime.now(UTC)


def _process_started(pid: int) -> int | None:
    """When a process of this machine began, in clock ticks since boot (Linux); tells a pid that was given out again."""
    try:
        return int(
            Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[19]
        )
    except (OSError, ValueError, IndexError):
        return None


def _alive(pid: int, started: int | None) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    found = _process_started(pid)
    return started is None or found is None or found == started


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as dotted keys; anything else is a leaf."""
    if not isinstance(value, Mapping):
        return {prefix: value}
    found: dict[str, Any] = {}
    for key, entry in value.items():
        found.update(flat(entry, f"{prefix}.{key}" if prefix else str(key)))
    return found


def side_by_side(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Dotted key -> [value in a, value in b], sorted; null where one has no such key."""
    left, right = flat(a), flat(b)
    return {key: [left.get(key), right.get(key)] for key in sorted({*left, *right})}


class Store(Database):
    """The platform store of one tenant."""

    @classmethod
    def open(cls, url: str, tenant: str = "default") -> "Store":
        """Open a store and bring its schema up to date; safe when several processes open a fresh one at once.

        Args:
            url: SQLite file or PostgreSQL, as SQLAlchemy writes it.
            tenant: whose rows are seen and written.

        Raises:
            ConfigError: the address is no such database, or its schema is newer than this code.
            OutsideError: the database cannot be reached or written.
        """
        store = cls(open_engine(url), tenant)
        store.migrate()
        return store

    # Small words that all methods below are made of.

    def _all(self, kind: type[R], query: sa.Select[Any], connection: Connection | None = None) -> list[R]:
        if connection is None:
            with self.read() as own:
                return self._all(kind, query, own)
        return [kind(**row) for row in connection.execute(query).mappings()]

    def _one(self, kind: type[R], query: sa.Select[Any], connection: Connection | None = None) -> R | None:
        return next(iter(self._all(kind, query.limit(1), connection)), None)

    def _mine(self, table: sa.Table, *clauses: sa.ColumnElement[bool]) -> sa.Select[Any]:
        columns = [column for column in table.c if column.name != "tenant_id"]
        return sa.select(*columns).where(table.c.tenant_id == self.tenant, *clauses)

    def _insert(self, table: sa.Table) -> Any:
        """The dialect's own INSERT, which knows conflicts; PostgreSQL's takes 0.13 s to import, so only where it is used."""
        if self.dialect == "postgresql":
            from sqlalchemy.dialects import postgresql

            return postgresql.insert(table)
        from sqlalchemy.dialects import sqlite

        return sqlite.insert(table)

    def _upsert(self, table: sa.Table, values: Mapping[str, Any], keys: Sequence[str], keep: Sequence[str] = ()) -> Any:
        """INSERT, or where a row with these keys is there, UPDATE of all but `keys` and `keep`."""
        row = {"tenant_id": self.tenant, **values}
        changed = {name: value for name, value in row.items() if name not in {"tenant_id", *keys, *keep}}
        return self._insert(table).values(row).on_conflict_do_update(index_elements=["tenant_id", *keys], set_=changed)

    # Experiments and runs (K-55: the local back end). A line is an experiment.

    def create_experiment(self, name: str, *, description: str = "", actor: str = "") -> Experiment:
        """Make an experiment, or give back the one that has this name."""
        with self.begin() as connection:
            self._create_experiment(connection, name, description, actor)
        return next(found for found in self.list_experiments() if found.name == name)

    def _create_experiment(self, connection: Connection, name: str, description: str = "", actor: str = "") -> None:
        row = {"name": name, "description": description, "created_by": actor, "created_at": now()}
        insert = self._insert(t.experiments).values(tenant_id=self.tenant, **row)
        connection.execute(insert.on_conflict_do_nothing())

    def list_experiments(self) -> list[Experiment]:
        """All experiments by name, each with its number of `runs`."""
        e, r = t.experiments.c, t.runs.c
        counted = (
            sa.select(sa.func.count())
            .where(r.tenant_id == e.tenant_id, r.line == e.name)
            .scalar_subquery()
            .label("runs")
        )
        return self._all(Experiment, self._mine(t.experiments).add_columns(counted).order_by(e.name))

    def start_run(
        self,
        *,
        run_id: str,
        line: str,
        seed: int | None = None,
        source: str = "",
        params: Mapping[str, Any] | None = None,
    ) -> Run:
        """Record a run that this process begins; it is `running` until `finish_run`, or until `reap` finds its process gone."""
        pid = os.getpid()
        with self.begin() as connection:
            self._create_experiment(connection, line)
            connection.execute(
                sa.insert(t.runs).values(
                    tenant_id=self.tenant,
                    run_id=run_id,
                    line=line,
                    status="running",
                    seed=seed,
                    source=plain(source),
                    params=dict(params or {}),
                    metrics={},
                    pid=pid,
                    pid_started=_process_started(pid),
                    host=socket.gethostname(),
                    started_at=now(),
                )
            )
        return self.get_run(run_id)

    def finish_run(
        self,
        *,
        run_id: str,
        status: str,
        metrics: Mapping[str, Any] | None = None,
        bundle_id: str | None = None,
        version: int | None = None,
        error: Mapping[str, Any] | None = None,
    ) -> None:
        """Record how a run ended: `released`, `awaiting_approval`, `held` or `failed`.

        Raises:
            ConfigError: there is no such run.
        """
        with self.begin() as connection:
            changed = connection.execute(
                sa.update(t.runs)
                .where(t.runs.c.tenant_id == self.tenant, t.runs.c.run_id == run_id)
                .values(
                    status=status,
                    metrics=dict(metrics or {}),
                    bundle_id=bundle_id,
                    version=version,
                    error=None if error is None else dict(error),
                    finished_at=now(),
                )
            ).rowcount
            if changed != 1:
                raise _no_run(run_id)
            crash.point("run.before_finish")

    def find_run(self, run_id: str) -> Run | None:
        """One run, or None."""
        return self._one(Run, self._mine(t.runs, t.runs.c.run_id == run_id))

    def get_run(self, run_id: str) -> Run:
        """One run.

        Raises:
            ConfigError: there is no such run.
        """
        found = self.find_run(run_id)
        if found is None:
            raise _no_run(run_id)
        return found

    def list_runs(self, line: str | None = None, *, limit: int | None = None) -> list[Run]:
        """Runs, newest first; of one line where it is given."""
        query = self._mine(t.runs, *([] if line is None else [t.runs.c.line == line]))
        return self._all(Run, query.order_by(t.runs.c.started_at.desc(), t.runs.c.run_id.desc()).limit(limit))

    def reap(self) -> list[str]:
        """Turn `running` runs of this machine whose process is gone into failed ones, and name them."""
        query = self._mine(t.runs, t.runs.c.status == "running", t.runs.c.host == socket.gethostname())
        dead = [run for run in self._all(Run, query) if not _alive(run.pid, run.pid_started)]
        for run in dead:
            error = {
                "code": "killed",
                "message": f"process {run.pid} must record how run {run.run_id} ended, but it is gone",
                "where": f"run {run.run_id}",
                "cure": "run again; what served before still serves",
            }
            with self.begin() as connection:
                connection.execute(
                    sa.update(t.runs)
                    .where(
                        t.runs.c.tenant_id == self.tenant,
                        t.runs.c.run_id == run.run_id,
                        t.runs.c.status == "running",
                    )
                    .values(status="failed", error=error, finished_at=now())
                )
        return [run.run_id for run in dead]

    def record_step(self, *, run_id: str, name: str, status: str, seconds: float, why: str = "") -> None:
        """Record how a step of a run went (`ran`, `reused` or `failed`); a second record of it replaces the first."""
        values = {
            "run_id": run_id,
            "name": name,
            "status": status,
            "seconds": float(seconds),
            "why": plain(why),
            "started_at": now() - timedelta(seconds=float(seconds)),
        }
        with self.begin() as connection:
            connection.execute(self._upsert(t.steps, values, ["run_id", "name"]))

    def steps(self, run_id: str) -> list[Step]:
        """A run's steps in the order they began."""
        return self._all(Step, self._mine(t.steps, t.steps.c.run_id == run_id).order_by(t.steps.c.started_at))

    def record_trials(self, run_id: str, leaderboard: Iterable[Mapping[str, Any]]) -> int:
        """Record what a search tried, in place of what was recorded for this run before.

        Args:
            leaderboard: one mapping a trial with `number`, `kind`, `params`, `score`; every other key is a metric.

        Returns:
            How many there are.
        """
        named = {"number", "kind", "params", "score"}
        rows = [
            {
                "tenant_id": self.tenant,
                "run_id": run_id,
                "number": int(trial["number"]),
                "kind": str(trial["kind"]),
                "params": dict(trial.get("params") or {}),
                "score": plain(trial.get("score")),
                "metrics": {key: value for key, value in trial.items() if key not in named},
            }
            for trial in leaderboard
        ]
        with self.begin() as connection:
            connection.execute(
                sa.delete(t.trials).where(t.trials.c.tenant_id == self.tenant, t.trials.c.run_id == run_id)
            )
            if rows:
                connection.execute(sa.insert(t.trials), rows)
        return len(rows)

    def trials(self, run_id: str) -> list[Trial]:
        """A run's trials by number."""
        return self._all(Trial, self._mine(t.trials, t.trials.c.run_id == run_id).order_by(t.trials.c.number))

    def compare_runs(self, a: str, b: str) -> Row:
        """Two runs side by side.

        Returns:
            `{"runs": [a, b], "line": [..], "status": [..], "params": {dotted key: [in a, in b]}, "metrics": {...}}`.

        Raises:
            ConfigError: there is no such run.
        """
        left, right = self.get_run(a), self.get_run(b)
        alike = ("line", "status", "seed", "source", "bundle_id", "version")
        return {
            "runs": [a, b],
            **{name: [getattr(left, name), getattr(right, name)] for name in alike},
            "params": side_by_side(left.params, right.params),
            "metrics": side_by_side(left.metrics, right.metrics),
        }

    # Datasets (K-08).

    def register_dataset(self, *, name: str, content_hash: str, created_by: str, **columns: Any) -> Dataset:
        """Record the bytes that models are trained on; the same name, bytes and type again brings its row up to date.

        Args:
            content_hash: SHA-256 of the bytes, hexadecimal.
            columns: any other column of K-08, e.g. `row_count`, `statistics`, `quality_score` in [0, 1].
        """
        at = now()
        values = {
            "dataset_type": "training",
            "data_format": "csv",
            "source_type": "upload",
            "is_processed": False,
            **{key: _column(t.datasets, key, value) for key, value in columns.items()},
            "name": plain(name)[:255],
            "content_hash": content_hash,
            "created_by": created_by,
            "created_at": at,
            "updated_at": at,
        }
        keys = ["content_hash", "name", "dataset_type"]
        with self.begin() as connection:
            connection.execute(self._upsert(t.datasets, values, keys, keep=["created_at", "created_by"]))
        d = t.datasets.c
        found = self._one(
            Dataset,
            self._mine(
                t.datasets,
                d.content_hash == content_hash,
                d.name == values["name"],
                d.dataset_type == values["dataset_type"],
            ),
        )
        assert found is not None
        return found

    def get_dataset(self, content_hash: str) -> Dataset | None:
        """The newest record of these bytes, or None."""
        query = self._mine(t.datasets, t.datasets.c.content_hash == content_hash)
        return self._one(Dataset, query.order_by(t.datasets.c.updated_at.desc()))

    def list_datasets(self) -> list[Dataset]:
        """All datasets, newest first."""
        return self._all(Dataset, self._mine(t.datasets).order_by(t.datasets.c.created_at.desc(), t.datasets.c.name))

    # Predictions.

    def record_predictions(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Keep a batch of served requests.

        Args:
            records: mappings with `request_id`, `line`, `version`, `bundle_id`, `rows` (how many), `elapsed_ms`,
                `status` (of HTTP) and `at` (aware; now where it is missing).
        """
        if not records:
            return
        names = ("version", "bundle_id", "rows", "elapsed_ms", "status")
        rows = [
            {
                "tenant_id": self.tenant,
                "request_id": str(record["request_id"])[:128].replace("\0", ""),
                "line": record["line"],
                "at": record.get("at") or now(),
                **{name: record.get(name) for name in names},
            }
            for record in records
        ]
        with self.begin() as connection:
            connection.execute(sa.insert(t.predictions), rows)

    def list_predictions(self, line: str | None = None, *, limit: int = 100) -> list[Prediction]:
        """Served requests, newest first."""
        query = self._mine(t.predictions, *([] if line is None else [t.predictions.c.line == line]))
        return self._all(Prediction, query.order_by(t.predictions.c.id.desc()).limit(limit))

    def alone(self, connection: Connection) -> None:
        """Until the transaction ends nobody else writes ledger, versions or aliases; ask before reading what decides a move."""
        self.serialise(connection, _LEDGER_LOCK)

    # The ledger's rows; `esteira.ledger` makes and checks the chain.

    def ledger_head(self, connection: Connection) -> tuple[int, str, str] | None:
        """Number, hash and time of the newest row; nobody else may append until the transaction ends. None when there is none."""
        self.alone(connection)
        c = t.ledger.c
        query = sa.select(c.seq, c.hash, c.at).where(c.tenant_id == self.tenant).order_by(c.seq.desc()).limit(1)
        row = connection.execute(query).first()
        return None if row is None else (int(row[0]), str(row[1]), str(row[2]))

    def ledger_latest(self, kinds: Sequence[str]) -> str:
        """The latest time, as its text, of rows of these kinds; empty when there is none."""
        c = t.ledger.c
        query = sa.select(sa.func.max(c.at)).where(c.tenant_id == self.tenant, c.kind.in_(kinds))
        with self.read() as connection:
            return str(connection.execute(query).scalar() or "")

    def ledger_insert(self, connection: Connection, row: Mapping[str, Any]) -> None:
        """Add one row; the database itself refuses to change or remove it afterwards."""
        connection.execute(sa.insert(t.ledger).values(tenant_id=self.tenant, **row))

    def ledger_rows(self, line: str | None = None, *, last: int | None = None) -> Iterator[Row]:
        """Rows from oldest to newest, streamed; of one line, and only the last ones, where that is asked for."""
        seq = t.ledger.c.seq
        query = self._mine(t.ledger, *([] if line is None else [t.ledger.c.line == line]))
        if last is not None:
            kept = query.order_by(seq.desc()).limit(last).subquery()
            query = sa.select(kept).order_by(kept.c.seq)
        else:
            query = query.order_by(seq)
        with self.read() as connection:
            for row in connection.execution_options(yield_per=1000).execute(query).mappings():
                yield {name: value for name, value in row.items() if name != "tenant_id"}

    def ledger_tuples(
        self, *columns: str, line: str | None = None, kinds: Sequence[str] = (), until: str | None = None
    ) -> Iterator[Sequence[Any]]:
        """Values of these columns from the oldest row to the newest, streamed; for what reads very many rows.

        Args:
            kinds: only entries of these kinds.
            until: only entries whose time, as its text, is not later.
        """
        c = t.ledger.c
        query = sa.select(*(c[name] for name in columns)).where(c.tenant_id == self.tenant).order_by(c.seq)
        query = query if line is None else query.where(c.line == line)
        query = query.where(c.kind.in_(kinds)) if kinds else query
        query = query if until is None else query.where(c.at <= until)
        with self.read() as connection:
            yield from connection.execution_options(yield_per=1000).execute(query)

    # Versions and aliases; `esteira.registry` holds the rules.

    def add_version(self, connection: Connection, values: Mapping[str, Any]) -> None:
        """Add a version; the database refuses a second one of that number, and any later change but of its state."""
        connection.execute(sa.insert(t.versions).values(tenant_id=self.tenant, created_at=now(), **values))

    def get_version(self, line: str, version: int, connection: Connection | None = None) -> Version | None:
        """One version, or None."""
        query = self._mine(t.versions, t.versions.c.line == line, t.versions.c.version == version)
        return self._one(Version, query, connection)

    def list_versions(self, line: str | None = None) -> list[Version]:
        """Versions, newest first within their line."""
        query = self._mine(t.versions, *([] if line is None else [t.versions.c.line == line]))
        return self._all(Version, query.order_by(t.versions.c.line, t.versions.c.version.desc()))

    def list_lines(self) -> list[str]:
        """Lines that have a version, by name."""
        query = sa.select(t.versions.c.line).where(t.versions.c.tenant_id == self.tenant).distinct()
        with self.read() as connection:
            return sorted(connection.execute(query).scalars())

    def find_version(self, line: str, *, run_id: str, bundle_id: str) -> Version | None:
        """The version that a run registered for a bundle, or None."""
        v = t.versions.c
        return self._one(Version, self._mine(t.versions, v.line == line, v.run_id == run_id, v.bundle_id == bundle_id))

    def set_version_state(
        self, connection: Connection, line: str, version: int, state: str, *, archived_at: datetime | None = None
    ) -> None:
        """Move a version's state; nothing else of a version can change."""
        v = t.versions.c
        connection.execute(
            sa.update(t.versions)
            .where(v.tenant_id == self.tenant, v.line == line, v.version == version)
            .values(state=state, archived_at=archived_at)
        )

    def resolve_alias(self, line: str, alias: str) -> Version | None:
        """The version that an alias of a line points at, or None."""
        a, v = t.aliases.c, t.versions.c
        query = self._mine(t.versions).join(
            t.aliases, sa.and_(a.tenant_id == v.tenant_id, a.line == v.line, a.version == v.version)
        )
        return self._one(Version, query.where(a.line == line, a.alias == alias))

    def list_aliases(
        self, line: str | None = None, *, mirrored: bool | None = None, connection: Connection | None = None
    ) -> list[Alias]:
        """Aliases by line and name; with `mirrored` only those that MLflow shows, or does not show yet."""
        a = t.aliases.c
        clauses: list[sa.ColumnElement[bool]] = []
        if line is not None:
            clauses.append(a.line == line)
        if mirrored is not None:
            clauses.append(a.mirrored.is_(mirrored))
        return self._all(Alias, self._mine(t.aliases, *clauses).order_by(a.line, a.alias), connection)

    def drop_alias(self, connection: Connection, line: str, alias: str) -> None:
        """Let an alias point at nothing."""
        a = t.aliases.c
        connection.execute(sa.delete(t.aliases).where(a.tenant_id == self.tenant, a.line == line, a.alias == alias))

    def put_alias(
        self, connection: Connection, *, line: str, alias: str, version: int, bundle_id: str, ledger_seq: int
    ) -> None:
        """Point an alias at a version; MLflow does not show it yet."""
        values = {
            "line": line,
            "alias": alias,
            "version": version,
            "bundle_id": bundle_id,
            "ledger_seq": ledger_seq,
            "moved_at": now(),
            "mirrored": False,
        }
        connection.execute(self._upsert(t.aliases, values, ["line", "alias"]))

    def alias_mirrored(self, line: str, alias: str, version: int) -> None:
        """Note that MLflow shows this alias at this version; nothing happens when it has moved on meanwhile."""
        a = t.aliases.c
        with self.begin() as connection:
            connection.execute(
                sa.update(t.aliases)
                .where(a.tenant_id == self.tenant, a.line == line, a.alias == alias, a.version == version)
                .values(mirrored=True)
            )


def _column(table: sa.Table, name: str, value: Any) -> Any:
    if name not in table.c:
        raise TypeError(f"{table.name} has no column {name}")
    return plain(value) if isinstance(value, str) else value


def _no_run(run_id: str) -> ConfigError:
    return ConfigError(
        f"a run is known by its id, but there is no run {run_id!r}",
        code="unknown_run",
        where="RUN",
        cure="see `esteira runs` for what there is",
    )
