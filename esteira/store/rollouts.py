"""What the arms of rollouts did, in the store (H-41): running sums, and which answer waits for its truth. It decides nothing.

Sums are kept a row a writer: each serving process adds up what it did and writes the total over its own row, so a process that
is killed loses what it had not written and nothing is ever counted twice. Truths that came later are a writer of their own.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from esteira.errors import DataError, Refused
from esteira.rollout.sums import ArmName, Sums, labelled
from esteira.store import tables as t
from esteira.store.database import plain
from esteira.store.records import RolloutUnit
from esteira.store.store import Store, now

LABELS = "labels"
"""The writer whose rows hold the outcomes."""
KEPT = timedelta(days=30)
"""How long an answer waits for its truth; `prune` is told the time before that."""

Place = tuple[int, ArmName]
"""A stage and an arm."""

_LABEL_LOCK, _UNIT_LOCK = 7_233_004, 7_233_005
_MOST = 500  # rows of one statement


def unit_key(unit: str) -> str:
    """What is kept of a unit's name: 16 hexadecimal digits of its SHA-256, so that no name of a person is."""
    return sha256(unit.encode("utf-8", "surrogatepass")).hexdigest()[:16]


@dataclass(frozen=True)
class Labelled:
    """An answer whose truth is known.

    Attributes:
        unit: the answer, its outcome among it.
        counted: False when its truth had come before; then nothing was changed.
    """

    unit: RolloutUnit
    counted: bool


class Rollouts:
    """One tenant's arms.

    Args:
        store: where they are kept.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    def sums(self, test_id: str) -> dict[int, dict[ArmName, Sums]]:
        """Stage -> arm -> what it did, of all writers together; empty for a test that nobody wrote of.

        Raises:
            Refused: a row holds something else than sums.
        """
        c = t.rollout_sums.c
        query = sa.select(c.stage, c.arm, c.source, c.sums).where(*self._of(t.rollout_sums, test_id))
        found: dict[int, dict[ArmName, Sums]] = {}
        with self._store.read() as connection:
            # In one order, so that the same rows give the same floating-point sums on both databases.
            rows = sorted(tuple(row) for row in connection.execute(query))
        for stage, arm, source, said in rows:
            arms = found.setdefault(stage, {})
            arms[arm] = arms.get(arm, Sums()) + _read(said, test_id, source)
        return found

    def put_all(
        self, test_id: str, source: str, sums: Mapping[Place, Sums], *, seen: Mapping[Place, Mapping[str, int]] | None = None,
        at: datetime | None = None,
    ) -> dict[Place, Sums]:  # fmt: skip
        """Write what one writer has counted so far, over what it wrote before; all stages and arms or none.

        The same call again changes nothing: for whoever was not told that it went through.

        Args:
            source: the writer, at most 64 characters, never `LABELS`.
            sums: with the `units` that this gave back last time.
            seen: of an experiment: users (`unit_key`) and their requests since then, of places that are among `sums`.
            at: when; aware, now by default.

        Returns:
            What was written: `sums` with the users that nobody had seen before.
        """
        if source == LABELS:
            raise ValueError(f"a writer has another name than {LABELS!r}")
        moment, written = at or now(), dict(sums)
        with self._store.begin() as connection:
            if seen:
                self._store.serialise(connection, _UNIT_LOCK)
            for place, requests in (seen or {}).items():
                one = written[place]
                there = self._one(connection, test_id, place, source)
                # The same totals, and users that the writer does not know of: it was this very call that wrote them.
                if there is not None and _counted(there) == _counted(one) and there.units_sq > one.units_sq:
                    written[place] = there
                    continue
                units, squares = self._see(connection, test_id, place[1], requests, moment)
                written[place] = replace(one, units=one.units + units, units_sq=one.units_sq + squares)
            for (stage, arm), one in written.items():
                self._put(connection, test_id, stage, arm, source, one, moment)
        return written

    def _see(
        self, connection: Connection, test_id: str, arm: ArmName, requests: Mapping[str, int], at: datetime
    ) -> tuple[int, int]:
        """Count requests of users; tells how many users are new, and by how much the sum of the squared requests grew."""
        c, names = t.rollout_tallies.c, sorted(requests)
        insert = self._store._insert(t.rollout_tallies)
        upsert = insert.on_conflict_do_update(
            index_elements=["tenant_id", "test_id", "arm", "unit"],
            set_={"served": insert.excluded.served, "at": insert.excluded.at},
        )
        new = squares = 0
        for start in range(0, len(names), _MOST):
            some = names[start : start + _MOST]
            query = sa.select(c.unit, c.served).where(
                *self._of(t.rollout_tallies, test_id), c.arm == arm, c.unit.in_(some)
            )
            before = {row.unit: row.served for row in connection.execute(query)}
            after = {unit: before.get(unit, 0) + requests[unit] for unit in some}
            new += len(after) - len(before)
            squares += sum(served**2 - before.get(unit, 0) ** 2 for unit, served in after.items())
            rows = [
                {"tenant_id": self._store.tenant, "test_id": test_id, "arm": arm, "unit": unit, "served": served,
                 "outcomes": {}, "at": at}
                for unit, served in after.items()
            ]  # fmt: skip
            connection.execute(upsert, rows)
        return new, squares

    def note_units(self, units: Iterable[RolloutUnit]) -> None:
        """Keep answers until their truth comes; one that is there already stays as it is."""
        rows = [
            {
                "tenant_id": self._store.tenant,
                "test_id": unit.test_id,
                "request_id": _text(unit.request_id, 128),
                "row_index": unit.row_index,
                "line": unit.line,
                "unit": unit.unit,
                "arm": unit.arm,
                "stage": unit.stage,
                "version": unit.version,
                "answer": unit.answer,
                "at": unit.at,
            }
            for unit in units
        ]
        if not rows:
            return
        insert = self._store._insert(t.rollout_units).on_conflict_do_nothing()
        with self._store.begin() as connection:
            for start in range(0, len(rows), _MOST):
                connection.execute(insert, rows[start : start + _MOST])

    def find(
        self, *, line: str | None = None, test_id: str | None = None, request_id: str | None = None,
        unit: str | None = None, row: int = 0,
    ) -> RolloutUnit | None:  # fmt: skip
        """The answer that a label is about: the newest of that row of a request, or of a unit.

        Args:
            line, test_id: narrow it down.
            request_id: of the request.
            unit: the unit's name, where the request is not known.
            row: of the request, from 0.
        """
        if (request_id is None) == (unit is None):
            raise ValueError("an answer is known by its request or by its unit")
        c = t.rollout_units.c
        clauses = [c.row_index == row]
        if request_id is not None:
            clauses.append(c.request_id == _text(request_id, 128))
        if unit is not None:
            clauses.append(c.unit == unit_key(unit))
        if line is not None:
            clauses.append(c.line == line)
        if test_id is not None:
            clauses.append(c.test_id == test_id)
        query = self._units(*clauses).order_by(c.at.desc(), c.test_id.desc(), c.request_id.desc()).limit(1)
        with self._store.read() as connection:
            row_found = connection.execute(query).mappings().first()
        return None if row_found is None else RolloutUnit(**row_found)

    def label(
        self, test_id: str | None = None, *, outcome: Callable[[RolloutUnit], float], line: str | None = None,
        request_id: str | None = None, unit: str | None = None, row: int = 0, at: datetime | None = None,
    ) -> Labelled | None:  # fmt: skip
        """Count the outcome of an answer, once, for the arm and stage that answered.

        A user of an experiment counts once, with the mean of the outcomes of all its answers.

        Args:
            outcome: of the answer by its truth, in [0, 1]; not asked where the truth has come before.
            at: when the truth came; now by default.
            test_id, line, request_id, unit, row: as for `find`.

        Returns:
            None where no such answer is kept.

        Raises:
            DataError: code `bad_outcome`: it lies outside of [0, 1] or is no number; nothing is changed.
            Exception: what `outcome` raises; nothing is changed.
        """
        found = self.find(line=line, test_id=test_id, request_id=request_id, unit=unit, row=row)
        if found is None:
            return None
        if found.outcome is not None:
            return Labelled(found, counted=False)
        value: Any = outcome(found)
        if not (isinstance(value, int | float) and 0.0 <= value <= 1.0):
            raise _bad_outcome(value, f"line {found.line}, answer of {found.request_id}")
        moment = at or now()
        c = t.rollout_units.c
        with self._store.begin() as connection:
            self._store.serialise(connection, _LABEL_LOCK)
            changed = connection.execute(
                sa.update(t.rollout_units)
                .where(
                    *self._of(t.rollout_units, found.test_id),
                    c.request_id == found.request_id,
                    c.row_index == found.row_index,
                    c.outcome.is_(None),
                )
                .values(outcome=float(value), labelled_at=moment)
            )
            if changed.rowcount:
                self._count(connection, found, found.stage, float(value), moment)
        now_known = self.find(test_id=found.test_id, request_id=found.request_id, row=found.row_index)
        return None if now_known is None else Labelled(now_known, counted=bool(changed.rowcount))

    def measure(
        self, test_id: str, place: int, value: float, *, request_id: str | None = None, unit: str | None = None,
        at: datetime | None = None,
    ) -> Labelled | None:  # fmt: skip
        """Count what else was measured of a user of an experiment, once a user and primary; a second value changes nothing.

        Args:
            place: of the primary in the experiment's plan, from 0.
            value: in [0, 1].
            request_id, unit: one of the user's requests, or the user.
            at: when; now by default.

        Returns:
            The answer by which the user is known, its outcome the value that counts; None where no such user is kept.

        Raises:
            DataError: code `bad_outcome`: the value lies outside of [0, 1].
        """
        if not 0.0 <= value <= 1.0:
            raise _bad_outcome(value, f"test {test_id}")
        found = self.find(test_id=test_id, request_id=request_id, unit=unit)
        if found is None:
            return None
        moment = at or now()
        with self._store.begin() as connection:
            self._store.serialise(connection, _LABEL_LOCK)
            known = self._tally(connection, found)
            if known is None:
                return None
            if str(place) not in known:
                self._count(connection, found, place, float(value), moment)
                return Labelled(replace(found, outcome=float(value), labelled_at=moment), counted=True)
            n, total = known[str(place)]
            return Labelled(replace(found, outcome=total / n), counted=False)

    def units(self, test_id: str) -> list[RolloutUnit]:
        """All answers of a test that are kept, by time, request and row."""
        c = t.rollout_units.c
        query = self._units(c.test_id == test_id).order_by(c.at, c.request_id, c.row_index)
        with self._store.read() as connection:
            return [RolloutUnit(**row) for row in connection.execute(query).mappings()]

    def prune(self, before: datetime) -> int:
        """Drop the answers that were given before, their truth known or not, and users who did not come since; sums stay.

        Tells how many answers went. Whoever serves does it every hour, and `esteira tick` for who serves no more.
        """
        with self._store.begin() as connection:
            units, _ = (
                connection.execute(
                    sa.delete(table).where(table.c.tenant_id == self._store.tenant, table.c.at < before)
                ).rowcount
                for table in (t.rollout_units, t.rollout_tallies)
            )
        return units

    def _count(self, connection: Connection, unit: RolloutUnit, place: int, value: float, at: datetime) -> None:
        """Add an outcome to the labels of a place; that of a user of an experiment to the user's mean."""
        total = self._one(connection, unit.test_id, (place, unit.arm), LABELS) or Sums()
        known = self._tally(connection, unit)
        if known is None:
            total += labelled(value)
        else:
            n, outcomes = known.get(str(place), (0, 0.0))
            mean = (outcomes + value) / (n + 1)
            total += labelled(mean)
            if n:
                former = labelled(outcomes / n)
                total = replace(
                    total, labelled=total.labelled - 1, outcome=total.outcome - former.outcome,
                    outcome_sq=total.outcome_sq - former.outcome_sq,
                )  # fmt: skip
            tallies = t.rollout_tallies.c
            connection.execute(
                sa.update(t.rollout_tallies)
                .where(*self._of(t.rollout_tallies, unit.test_id), tallies.arm == unit.arm, tallies.unit == unit.unit)
                .values(outcomes={**known, str(place): (n + 1, outcomes + value)})
            )
        self._put(connection, unit.test_id, place, unit.arm, LABELS, total, at)

    def _tally(self, connection: Connection, unit: RolloutUnit) -> dict[str, tuple[int, float]] | None:
        """Place of a primary -> how many outcomes of this user are known, and their sum; None where the test is no experiment."""
        c = t.rollout_tallies.c
        query = sa.select(c.outcomes).where(
            *self._of(t.rollout_tallies, unit.test_id), c.arm == unit.arm, c.unit == unit.unit
        )
        said: dict[str, Any] | None = connection.execute(query).scalar_one_or_none()
        return None if said is None else {place: (int(n), float(total)) for place, (n, total) in said.items()}

    def _one(self, connection: Connection, test_id: str, place: Place, source: str) -> Sums | None:
        """What a writer wrote of a place."""
        c = t.rollout_sums.c
        query = sa.select(c.sums).where(
            *self._of(t.rollout_sums, test_id), c.stage == place[0], c.arm == place[1], c.source == source
        )
        said = connection.execute(query).scalar_one_or_none()
        return None if said is None else _read(said, test_id, source)

    def _put(
        self, connection: Connection, test_id: str, stage: int, arm: str, source: str, sums: Sums, at: datetime
    ) -> None:
        values = {
            "test_id": test_id,
            "stage": stage,
            "arm": arm,
            "source": source,
            "sums": sums.to_dict(),
            "updated_at": at,
        }
        connection.execute(self._store._upsert(t.rollout_sums, values, ["test_id", "stage", "arm", "source"]))

    def _units(self, *clauses: sa.ColumnElement[bool]) -> sa.Select[Any]:
        columns = [column for column in t.rollout_units.c if column.name != "tenant_id"]
        return sa.select(*columns).where(t.rollout_units.c.tenant_id == self._store.tenant, *clauses)

    def _of(self, table: sa.Table, test_id: str) -> tuple[sa.ColumnElement[bool], ...]:
        return table.c.tenant_id == self._store.tenant, table.c.test_id == test_id


def _bad_outcome(value: object, where: str) -> DataError:
    return DataError(
        f"an outcome lies in [0, 1], but got {value!r}",
        code="bad_outcome", where=where,
        cure="see that the truth has the label's type, and that the family's `outcome` keeps to [0, 1]",
    )  # fmt: skip


def _text(value: str, most: int) -> str:
    """As a column can hold it."""
    return str(plain(value))[:most]


def _counted(sums: Sums) -> Sums:
    """What the writer itself knows."""
    return replace(sums, units=0, units_sq=0)


def _read(said: Any, test_id: str, source: str) -> Sums:
    try:
        return Sums.from_dict(said)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Refused(
            f"what a writer counted has the fields of esteira.rollout.sums.Sums, but that of {source!r} has others",
            code="bad_rollout_sums", where=f"rollout_sums, test {test_id}",
            cure="see that all processes run the same version; `esteira rollout rollback LINE --reason TEXT` ends the rollout",
        ) from error  # fmt: skip
