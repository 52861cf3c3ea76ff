"""Batch predictions in the store: asked for, claimed by one worker at a time, told how far they are. It runs none."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import sqlalchemy as sa

from esteira.store import tables as t
from esteira.store.records import BatchJob
from esteira.store.store import Store, now

_CLAIM_LOCK = 7_233_003


class BatchJobs:
    """One tenant's batch predictions.

    Args:
        store: where they are kept.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    def add(self, values: Mapping[str, Any], *, most: int) -> BatchJob | None:
        """Ask for one; None where `most` wait already.

        Args:
            values: job_id, line, version, bundle_id, data, out, options, created_by.
            most: how many may wait.
        """
        c = t.batch_jobs.c
        row = {"state": "queued", "processed": 0, "error": 0, "progress": 0, "created_at": now(), **values}
        with self._store.begin() as connection:
            self._store.serialise(connection, _CLAIM_LOCK)
            waiting = sa.select(sa.func.count()).where(c.tenant_id == self._store.tenant, c.state == "queued")
            if connection.execute(waiting).scalar_one() >= most:
                return None
            connection.execute(sa.insert(t.batch_jobs).values(tenant_id=self._store.tenant, **row))
        return self.find(str(values["job_id"]))

    def find(self, job_id: str) -> BatchJob | None:
        """One, or None."""
        with self._store.read() as connection:
            return self._one(connection, t.batch_jobs.c.job_id == job_id)

    def waiting(self, *, lease: float) -> bool:
        """Whether one may be there to claim; costs no writing."""
        c = t.batch_jobs.c
        lost = sa.or_(c.beat_at.is_(None), c.beat_at < now() - timedelta(seconds=lease))
        with self._store.read() as connection:
            return self._one(connection, sa.or_(c.state == "queued", sa.and_(c.state == "running", lost))) is not None

    def claim(self, owner: str, *, lease: float) -> BatchJob | None:
        """Begin the oldest that waits, or whose owner gave no sign of life for `lease` seconds; None while another is under way."""
        c = t.batch_jobs.c
        at = now()
        lost = sa.or_(c.beat_at.is_(None), c.beat_at < at - timedelta(seconds=lease))
        with self._store.begin() as connection:
            self._store.serialise(connection, _CLAIM_LOCK)
            if self._one(connection, c.state == "running", ~lost) is not None:
                return None
            job = self._one(connection, sa.or_(c.state == "queued", sa.and_(c.state == "running", lost)))
            if job is None:
                return None
            values = {"state": "running", "owner": owner, "beat_at": at, "started_at": job.started_at or at}
            connection.execute(sa.update(t.batch_jobs).where(*self._this(job.job_id)).values(**values))
            return self._one(connection, c.job_id == job.job_id)

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
        """The oldest of this tenant."""
        c = t.batch_jobs.c
        columns = [column for column in c if column.name != "tenant_id"]
        query = sa.select(*columns).where(c.tenant_id == self._store.tenant, *clauses)
        row = connection.execute(query.order_by(c.created_at, c.job_id).limit(1)).mappings().first()
        return None if row is None else BatchJob(**row)
