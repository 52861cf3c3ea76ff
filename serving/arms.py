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
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

from esteira.family import Answer
from esteira.latency import BOUNDS
from esteira.rollout.sums import ArmName, Sums

if TYPE_CHECKING:
    from esteira.store.rollouts import Rollouts

_log = logging.getLogger("serving")
# How long an answer waits for its truth, and how often those are looked for that waited longer.
_PATIENCE, _TIDY = timedelta(days=30), 3600.0
_BATCH = 500  # answers of one transaction


class Key(NamedTuple):
    """What is counted apart."""

    test_id: str
    stage: int
    arm: ArmName


class _Tally:
    """Sums that one thread adds to and another reads. A reader may see a unit half counted, and sees it whole at its next look."""

    __slots__ = ("confidence", "confidence_sq", "errors", "latency", "served", "sure")

    def __init__(self) -> None:
        self.served = self.errors = self.sure = 0
        self.confidence = self.confidence_sq = 0.0
        self.latency = [0] * (len(BOUNDS) + 1)

    def sums(self) -> Sums:
        latency = {bucket: count for bucket, count in enumerate(self.latency.copy()) if count}
        return Sums(
            served=self.served, errors=self.errors, sure=self.sure, confidence=self.confidence,
            confidence_sq=self.confidence_sq, latency=latency,
        )  # fmt: skip


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
        capacity: answers (rows) that may wait to be written; newer ones are not kept for labels, and are counted as dropped.
        period: seconds between two writes.

    Attributes:
        source: name of this process's rows.
        dropped: answers that no label will find.
        failures: times that the store refused.
    """

    def __init__(
        self, connect: Callable[[], "Rollouts"], *, capacity: int = 20_000, period: float = 0.5, source: str = ""
    ) -> None:
        self.source = source or f"{socket.gethostname()[:32]}-{os.getpid()}-{secrets.token_hex(4)}"
        self.dropped = self.failures = 0
        self._connect = connect
        self._capacity = capacity
        self._period = period
        self._tallies: dict[Key, _Tally] = {}
        self._written: dict[Key, Sums] = {}
        self._notes: deque[_Noted] = deque()
        self._taken = self._gone = 0  # rows that were put there, by the one thread, and written, by the other
        self._stop = threading.Event()
        self._wake = threading.Event()
        self._turn = threading.Condition()
        self._asked = self._done = 0  # of `flush`: how often, and the last that was served
        self._tidied = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="rollout-sums", daemon=True)

    def count(
        self, key: Key, answers: Sequence[Answer] = (), *, seconds: float | None = None, error: bool = False
    ) -> None:
        """Count one unit.

        Args:
            answers: that the arm gave; their confidences count where they have one.
            seconds: that they took; None where that is not comparable with the other arm's.
            error: the arm did not answer, or answered with what is no number.
        """
        tally = self._tallies.get(key)
        if tally is None:
            tally = self._tallies.setdefault(key, _Tally())
        tally.served += 1
        if error:
            tally.errors += 1
            return
        if seconds is not None:
            tally.latency[bisect_right(BOUNDS, seconds)] += 1
        for answer in answers:
            confidence = answer.get("confidence")
            if confidence is not None and 0.0 <= confidence <= 1.0 + 1e-9:
                tally.sure += 1
                tally.confidence += confidence
                tally.confidence_sq += confidence * confidence

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
                if self._something():
                    if rollouts is None:
                        rollouts = self._connect()
                    self._write(rollouts)
                    self._tidy(rollouts)
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

    def _write(self, rollouts: "Rollouts") -> None:
        # Sums first: a label that comes at once finds its answer only when that answer was counted.
        changed: dict[str, dict[tuple[int, ArmName], Sums]] = {}
        fresh = {}
        for key, sums in self.sums().items():
            if sums != self._written.get(key):
                changed.setdefault(key.test_id, {})[(key.stage, key.arm)] = sums
                fresh[key] = sums
        for test_id, sums_of in changed.items():
            rollouts.put_all(test_id, self.source, sums_of)
        self._written.update(fresh)
        while self._notes:
            some: list[_Noted] = []
            rows = 0
            while rows < _BATCH and len(some) < len(self._notes):
                some.append(self._notes[len(some)])
                rows += len(some[-1].predictions)
            rollouts.note_units(unit for noted in some for unit in _units(noted))
            for _ in some:
                self._notes.popleft()
            self._gone += rows

    def _tidy(self, rollouts: "Rollouts") -> None:
        now = time.monotonic()
        if now - self._tidied > _TIDY:
            self._tidied = now
            rollouts.prune(datetime.now(UTC) - _PATIENCE)


_NONE = Sums()


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
