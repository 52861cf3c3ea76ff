"""Batch predictions in the store: asked for, claimed by one worker at a time, told how far they are. It runs none."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import sqlalchemy as sa

from esteira.store import tables as t
from esteira.store.records import BatchJob
from esteira.store.store import Store, now

_CLAIM_LOCK = 7_233_003
_MOST_TRIES = 3
_ENDED = {
    "code": "process_died",
    "message": f"it was begun {_MOST_TRIES} times, and each time it or its service was gone before a part was finished; resume it "
    "to go on",
}


class BatchJobs:
    """One tenant's batch predictions.

    Args:
        store: where they are kept.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    def add(self, values: Mapping[str, Any], *, most: int) -> BatchJob | None:
        """Ask for one; None where `most` of its line wait already. One of the same job_id that is there is given as it is.

        Args:
            values: job_id, line, version, bundle_id, data, out, options, created_by.
            most: how many of a line may wait: those that nobody can claim must not fill the queue of the others.
        """
        c = t.batch_jobs.c
        row = {"state": "queued", "processed": 0, "error": 0, "progress": 0, "tries": 0, **values}
        row["created_at"] = row["queued_at"] = now()
        with self._store.begin() as connection:
            self._store.serialise(connection, _CLAIM_LOCK)
            if (found := self._one(connection, c.job_id == values["job_id"])) is not None:
                return found
            mine = c.tenant_id == self._store.tenant, c.line == values["line"], c.state == "queued"
            waiting = sa.select(sa.func.count()).where(*mine)
            if connection.execute(waiting).scalar_one() >= most:
                return None
            connection.execute(sa.insert(t.batch_jobs).values(tenant_id=self._store.tenant, **row))
            return self._one(connection, c.job_id == values["job_id"])

    def find(self, job_id: str) -> BatchJob | None:
        """One, or None."""
        with self._store.read() as connection:
            return self._one(connection, t.batch_jobs.c.job_id == job_id)

    def latest(self, most: int) -> list[BatchJob]:
        """Those that were asked for last, the newest first."""
        c = t.batch_jobs.c
        query = self._mine().order_by(c.created_at.desc(), c.job_id).limit(most)
        with self._store.read() as connection:
            return [BatchJob(**row) for row in connection.execute(query).mappings()]

    def waiting(self, *, lease: float, bundles: Mapping[str, str | None] | None = None) -> bool:
        """Whether one may be there to claim; costs no writing. Arguments as for `claim`."""
        with self._store.read() as connection:
            return self._one(connection, _free(lease), *_of(bundles)) is not None

    def claim(self, owner: str, *, lease: float, bundles: Mapping[str, str | None] | None = None) -> BatchJob | None:
        """Begin the one that waits longest; None while another is under way. One that ended its owners too often fails instead.

        Args:
            owner: who works on it from now on.
            lease: seconds without a sign of life after which its owner counts as gone.
            bundles: line -> the one bundle_id that the owner has of it, None for every version that is registered; lines that are
                not named are left to others. Without it, all.
        """
        c = t.batch_jobs.c
        at = now()
        with self._store.begin() as connection:
            self._store.serialise(connection, _CLAIM_LOCK)
            if self._one(connection, c.state == "running", sa.not_(_lost(lease))) is not None:
                return None
            while (job := self._one(connection, _free(lease), *_of(bundles))) is not None:
                begins = job.tries < _MOST_TRIES
                values: dict[str, Any] = {"state": "failed", "owner": None, "failure": _ENDED, "finished_at": at}
                if begins:
                    values = {"state": "running", "owner": owner, "beat_at": at, "tries": job.tries + 1}
                    values["started_at"] = job.started_at or at
                connection.execute(sa.update(t.batch_jobs).where(*self._this(job.job_id)).values(**values))
                if begins:
                    return self._one(connection, c.job_id == job.job_id)
            return None

    def tell(self, job_id: str, owner: str, **values: Any) -> bool:
        """Give a sign of life, and tell how far it is; False when it is the owner's no more: cancelled, or claimed by another."""
        c = t.batch_jobs.c
        with self._store.begin() as connection:
            changed = connection.execute(
                sa.update(t.batch_jobs)
                .where(*self._this(job_id), c.state == "running", c.owner == owner)
                .values(beat_at=now(), **values)
            )
            return bool(changed.rowcount)

    def move(self, job_id: str, states: tuple[str, ...], **values: Any) -> bool:
        """Change one that is in one of these states; False when it is in another."""
        with self._store.begin() as connection:
            changed = connection.execute(
                sa.update(t.batch_jobs)
                .where(*self._this(job_id), t.batch_jobs.c.state.in_(states))
                .values(owner=None, **values)
            )
            return bool(changed.rowcount)

    def _this(self, job_id: str) -> tuple[sa.ColumnElement[bool], ...]:
        c = t.batch_jobs.c
        return c.tenant_id == self._store.tenant, c.job_id == job_id

    def _one(self, connection: sa.Connection, *clauses: sa.ColumnElement[bool]) -> BatchJob | None:
        """The one of this tenant that was queued first."""
        c = t.batch_jobs.c
        row = connection.execute(self._mine(*clauses).order_by(c.queued_at, c.job_id).limit(1)).mappings().first()
        return None if row is None else BatchJob(**row)

    def _mine(self, *clauses: sa.ColumnElement[bool]) -> sa.Select[Any]:
        c = t.batch_jobs.c
        columns = [column for column in c if column.name != "tenant_id"]
        return sa.select(*columns).where(c.tenant_id == self._store.tenant, *clauses)


def _lost(lease: float) -> sa.ColumnElement[bool]:
    c = t.batch_jobs.c
    return sa.or_(c.beat_at.is_(None), c.beat_at < now() - timedelta(seconds=lease))


def _free(lease: float) -> sa.ColumnElement[bool]:
    """Nobody works on it."""
    c = t.batch_jobs.c
    return sa.or_(c.state == "queued", sa.and_(c.state == "running", _lost(lease)))


def _of(bundles: Mapping[str, str | None] | None) -> list[sa.ColumnElement[bool]]:
    c = t.batch_jobs.c
    if bundles is None:
        return []
    each = [
        sa.and_(c.line == line, c.version.is_not(None) if bundle_id is None else c.bundle_id == bundle_id)
        for line, bundle_id in bundles.items()
    ]
    return [sa.or_(sa.false(), *each)]
