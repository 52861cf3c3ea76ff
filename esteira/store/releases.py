"""What a release reads and writes besides versions and aliases: approvals, lists of versions, the champions that there were."""

import json
from collections.abc import Collection, Iterator
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from esteira.store import tables as t
from esteira.store.records import Approval, Version
from esteira.store.store import Store


class Releases:
    """One tenant's releases.

    Args:
        store: where they are kept.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    # Approvals

    def approval(self, line: str, version: int, connection: Connection | None = None) -> Approval | None:
        """What was asked and decided about a version last, or None."""
        a = t.approvals.c
        query = self._mine(t.approvals).where(a.line == line, a.version == version)
        if connection is None:
            with self._store.read() as own:
                return self.approval(line, version, own)
        row = connection.execute(query).mappings().first()
        return None if row is None else Approval(**row)

    def approvals(self, line: str | None = None) -> list[Approval]:
        """All of them by line, the newest version first; of one line where it is given."""
        a = t.approvals.c
        query = self._mine(t.approvals).order_by(a.line, a.version.desc())
        query = query if line is None else query.where(a.line == line)
        with self._store.read() as connection:
            return [Approval(**row) for row in connection.execute(query).mappings()]

    def put_approval(self, connection: Connection, approval: Approval) -> None:
        """Write what stands now, in place of what stood."""
        values = {name: getattr(approval, name) for name in Approval.__dataclass_fields__}
        connection.execute(self._store._upsert(t.approvals, values, ["line", "version"]))

    # Versions

    def versions(
        self,
        *,
        line: str | None = None,
        family: str | None = None,
        states: Collection[str] | None = None,
        alias: str | None = None,
        model_type: str | None = None,
        framework: str | None = None,
        limit: int,
        offset: int = 0,
    ) -> tuple[int, list[Version]]:
        """How many versions there are of this kind, and a page of them, the newest first.

        Args:
            family: of lines `FAMILY` and `FAMILY@...`.
            states: any of these.
            alias: only what this alias of its line points at.
        """
        v, a = t.versions.c, t.aliases.c
        clauses: list[sa.ColumnElement[bool]] = [v.tenant_id == self._store.tenant]
        if line is not None:
            clauses.append(v.line == line)
        if family is not None:
            clauses.append(sa.or_(v.line == family, v.line.startswith(f"{family}@", autoescape=True)))
        if states is not None:
            clauses.append(v.state.in_(sorted(states)))
        if model_type is not None:
            clauses.append(v.model_type == model_type)
        if framework is not None:
            clauses.append(v.framework == framework)
        if alias is not None:
            named = sa.select(a.version).where(
                a.tenant_id == v.tenant_id, a.line == v.line, a.alias == alias, a.version == v.version
            )
            clauses.append(named.exists())
        columns = [column for column in v if column.name != "tenant_id"]
        order = (v.created_at.desc(), v.line, v.version.desc())
        page = sa.select(*columns).where(*clauses).order_by(*order).limit(limit).offset(offset)
        with self._store.read() as connection:
            total = connection.execute(sa.select(sa.func.count()).select_from(t.versions).where(*clauses)).scalar_one()
            return int(total), [Version(**row) for row in connection.execute(page).mappings()]

    def numbers(self) -> list[tuple[str, int]]:
        """Line and number of every version."""
        v = t.versions.c
        with self._store.read() as connection:
            rows = connection.execute(sa.select(v.line, v.version).where(v.tenant_id == self._store.tenant))
            return [(str(line), int(number)) for line, number in rows]

    def stamp_deployed(self, connection: Connection, line: str, version: int, at: datetime) -> None:
        """Note when a version became the champion (K-53)."""
        v = t.versions.c
        connection.execute(
            sa.update(t.versions)
            .where(v.tenant_id == self._store.tenant, v.line == line, v.version == version)
            .values(deployed_at=at)
        )

    # What the ledger says of a line

    def entries(self, connection: Connection, line: str, *kinds: str) -> Iterator[dict[str, Any]]:
        """Entries of these kinds, the newest first, with their evidence read; streamed, so that who finds it may stop."""
        c = t.ledger.c
        query = self._mine(t.ledger).where(c.line == line, c.kind.in_(kinds)).order_by(c.seq.desc())
        # Of the query alone: as an option of the connection it would hold for what is written after, too.
        for row in connection.execute(query.execution_options(yield_per=50)).mappings():
            yield {**row, "evidence": json.loads(row["evidence"])}

    def last(self, connection: Connection, version: Version, kind: str) -> dict[str, Any] | None:
        """The newest entry of a kind about exactly this version's bundle; None without one."""
        about = version.version, version.bundle_id
        return next(
            (
                one
                for one in self.entries(connection, version.line, kind)
                if (one["version"], one["bundle_id"]) == about
            ),
            None,
        )

    def champions(self, connection: Connection, line: str) -> Iterator[int]:
        """The versions that became the champion of a line, the latest first; one that did so twice comes twice."""
        for entry in self.entries(connection, line, "alias"):
            moved = entry["evidence"].get("moves", {}).get("champion")
            if isinstance(moved, list) and len(moved) == 2 and isinstance(moved[1], int):
                yield moved[1]

    def _mine(self, table: sa.Table) -> sa.Select[Any]:
        columns = [column for column in table.c if column.name != "tenant_id"]
        return sa.select(*columns).where(table.c.tenant_id == self._store.tenant)
