"""Adds up what the arms of rollouts did in this process, and writes it behind the requests' back: bounded, and never in their way.

The sums of a process are totals since it began, written over its own row of the store (H-41), so that a process that is killed
loses at most what it did since the last write, half a second ago, and nothing is ever counted twice.
"""

import logging
import os
import secrets
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from esteira.family import Answer
from esteira.rollout.sums import ArmName, Sums, Tally

if TYPE_CHECKING:
    from esteira.store.rollouts import Rollouts

_log = logging.getLogger("serving")
_TIDY = 3600.0  # seconds between two looks for answers that waited too long for their truth
_BATCH = 500  # answers of one transaction
_MOST_USERS = 1_000_000  # requests of users that nobody has looked at, which takes half a second


class Key(NamedTuple):
    """What is counted apart."""

    test_id: str
    stage: int
    arm: ArmName


class _Noted(NamedTuple):
    """An answered request whose truth may come."""

    key: Key
    line: str
    version: int | None
    unit: str
    request_id: str
    predictions: list[Any]
    at: datetime


class Arms:
    """What the arms did in this process. One thread (the loop's) counts; a thread of its own writes.

    Args:
        connect: opens the store's `Rollouts`; called in the thread, again after a failure.
        capacity: answers (rows) that may wait to be written; newer ones are not kept for labels, and are counted as dropped. As
            many users of an experiment's arm may wait; requests of newer ones are counted, but not as anybody's.
        period: seconds between two writes.
        tidy: seconds between two looks for answers that waited too long for their truth, whether anything is counted or not.

    Attributes:
        source: name of this process's rows.
        dropped: answers that no label will find.
        failures: times that the store refused.
    """

    def __init__(
        self, connect: Callable[[], "Rollouts"], *, capacity: int = 20_000, period: float = 0.5, source: str = "",
        tidy: float = _TIDY,
    ) -> None:  # fmt: skip
        self.source = source or f"{socket.gethostname()[:32]}-{os.getpid()}-{secrets.token_hex(4)}"
        self.dropped = self.failures = 0
        self._connect = connect
        self._capacity = capacity
        self._period = period
        self._tallies: dict[Key, Tally] = {}
        self._written: dict[Key, Sums] = {}
        # Of experiments: whose each request was that is not written yet; and the same, added up by the thread.
        self._users: deque[tuple[Key, str]] = deque()
        self._seen: dict[Key, dict[str, int]] = {}
        # What went to the store and is not known to be there: sent again as it was, so that no user's request counts twice.
        self._sent: dict[str, dict[Key, tuple[Sums, dict[str, int]]]] = {}
        self._notes: deque[_Noted] = deque()
        self._taken = self._gone = 0  # rows that were put there, by the one thread, and written, by the other
        self._stop = threading.Event()
        self._wake = threading.Event()
        self._turn = threading.Condition()
        self._asked = self._done = 0  # of `flush`: how often, and the last that was served
        self._tidy, self._tidied = tidy, time.monotonic()
        self._thread = threading.Thread(target=self._run, name="rollout-sums", daemon=True)

    def count(
        self, key: Key, answers: Sequence[Answer] = (), *, seconds: float | None = None, error: bool = False,
        user: str = "",
    ) -> None:  # fmt: skip
        """Count one request.

        Args:
            answers: that the arm gave; their confidences count where they have one.
            seconds: that they took; None where that is not comparable with the other arm's.
            error: the arm did not answer, or answered with what is no number.
            user: whose request it is, in an experiment, whose users count once.
        """
        tally = self._tallies.get(key)
        if tally is None:
            tally = self._tallies.setdefault(key, Tally())
        if user and len(self._users) < _MOST_USERS:  # before the sums, so that what is written of them lacks no user
            self._users.append((key, user))
        tally.add(seconds, [answer.get("confidence") for answer in answers], error=error)

    def note(
        self, key: Key, line: str, version: int | None, unit: str, request_id: str, answers: Sequence[Answer]
    ) -> None:
        """Remember what was predicted until its truth comes; never blocks. Of an answer only `prediction` is kept."""
        if self.waiting + len(answers) > self._capacity:
            self.dropped += len(answers)
            return
        predictions = [answer.get("prediction") for answer in answers]
        self._taken += len(answers)
        self._notes.append(_Noted(key, line, version, unit, request_id, predictions, datetime.now(UTC)))

    @property
    def waiting(self) -> int:
        """Answers that are not written yet."""
        return self._taken - self._gone

    def sums(self) -> Mapping[Key, Sums]:
        """What was counted so far."""
        return {key: tally.sums() for key, tally in list(self._tallies.items())}

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self, timeout: float = 3.0) -> None:
        """Write what is left, for at most `timeout` seconds."""
        self._stop.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(timeout)

    def flush(self, timeout: float = 2.0) -> bool:
        """Have all that was counted before written now; False when that takes longer. May block."""
        with self._turn:
            self._asked += 1
            mine = self._asked
            self._wake.set()
            return self._turn.wait_for(lambda: self._done >= mine, timeout)

    def _run(self) -> None:
        rollouts: Rollouts | None = None
        pause, told = self._period, False
        while True:
            self._wake.wait(pause)
            self._wake.clear()
            last, asked = self._stop.is_set(), self._asked
            try:
                self._gather()
                something, old = self._something(), time.monotonic() - self._tidied > self._tidy
                if rollouts is None and (something or old):
                    rollouts = self._connect()
                if rollouts is not None and something:
                    self._write(rollouts)
                if rollouts is not None and old:
                    _prune(rollouts)
                    self._tidied = time.monotonic()
                pause, told = self._period, False
                with self._turn:
                    self._done = asked
                    self._turn.notify_all()
            except Exception as error:  # noqa: BLE001 - whatever the store raises, predictions go on
                self.failures += 1
                rollouts = None
                pause = min(pause * 2, 5.0)
                if not told:
                    told = True
                    _log.warning(
                        "what a rollout's arms did waits, because the store refuses it: %s", type(error).__name__
                    )
            if last:
                return

    def _something(self) -> bool:
        return bool(self._notes) or any(
            tally.served != self._written.get(key, _NONE).served for key, tally in list(self._tallies.items())
        )

    def _gather(self) -> None:
        """Add up whose the requests were, though the store is away."""
        if not self._users:
            return
        from esteira.store.rollouts import unit_key

        for _ in range(len(self._users)):
            key, name = self._users.popleft()
            user = unit_key(name)
            requests = self._seen.setdefault(key, {})
            if user in requests or len(requests) < self._capacity:
                requests[user] = requests.get(user, 0) + 1

    def _write(self, rollouts: "Rollouts") -> None:
        for test_id in list(self._sent):
            self._send(rollouts, test_id)
        # Sums first: a label that comes at once finds its answer only when that answer, and its user, were counted.
        notes = len(self._notes)
        changed: dict[str, dict[Key, Sums]] = {}
        for key, sums in self.sums().items():
            before = self._written.get(key, _NONE)
            sums = replace(sums, units=before.units, units_sq=before.units_sq)
            if sums != before:
                changed.setdefault(key.test_id, {})[key] = sums
        self._gather()
        for test_id, sums_of in changed.items():
            self._sent[test_id] = {key: (sums, self._seen.pop(key, {})) for key, sums in sums_of.items()}
            self._send(rollouts, test_id)
        while notes > 0:
            some: list[_Noted] = []
            rows = 0
            while rows < _BATCH and len(some) < notes:
                some.append(self._notes[len(some)])
                rows += len(some[-1].predictions)
            notes -= len(some)
            rollouts.note_units(unit for noted in some for unit in _units(noted))
            for _ in some:
                self._notes.popleft()
            self._gone += rows

    def _send(self, rollouts: "Rollouts", test_id: str) -> None:
        batch = self._sent[test_id]
        sums = {(key.stage, key.arm): sums for key, (sums, _) in batch.items()}
        seen = {(key.stage, key.arm): users for key, (_, users) in batch.items() if users}
        written = rollouts.put_all(test_id, self.source, sums, seen=seen)
        self._written |= {key: written[key.stage, key.arm] for key in batch}
        del self._sent[test_id]


_NONE = Sums()


def _prune(rollouts: "Rollouts") -> None:
    from esteira.store.rollouts import KEPT

    rollouts.prune(datetime.now(UTC) - KEPT)


def _units(noted: _Noted) -> list[Any]:
    from esteira.store.records import RolloutUnit
    from esteira.store.rollouts import unit_key

    unit = unit_key(noted.unit)
    return [
        RolloutUnit(
            test_id=noted.key.test_id, request_id=noted.request_id, row_index=number, line=noted.line, unit=unit,
            arm=noted.key.arm, stage=noted.key.stage, version=noted.version, answer={"prediction": prediction},
            at=noted.at,
        )
        for number, prediction in enumerate(noted.predictions)
    ]  # fmt: skip
