"""Keeps a record of each prediction, behind the request's back: bounded, late, and never the reason that a prediction fails."""

import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Record = Mapping[str, Any]
Write = Callable[[Sequence[Record]], None]

_log = logging.getLogger("serving")


class Recorder:
    """A bounded queue and one thread that writes it.

    Args:
        connect: opens the store and gives its writing function; called in the thread, again after a failure.
        capacity: records kept while the store is away; newer ones are dropped and counted.
        batch: records written at a time.
        period: seconds between two writes.
    """

    def __init__(
        self, connect: Callable[[], Write], *, capacity: int = 10_000, batch: int = 500, period: float = 0.5
    ) -> None:
        self.dropped = 0
        self.failures = 0
        self.written = 0
        self._connect = connect
        self._capacity = capacity
        self._batch = batch
        self._period = period
        self._queue: deque[Record] = deque()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="prediction-records", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def put(self, record: Record) -> None:
        """Queue one record; never blocks and never raises."""
        if len(self._queue) >= self._capacity:
            self.dropped += 1
        else:
            self._queue.append(record)

    def stop(self, timeout: float = 3.0) -> None:
        """Write what is left, for at most `timeout` seconds."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout)

    @property
    def waiting(self) -> int:
        """Records that are not written yet."""
        return len(self._queue)

    def _run(self) -> None:
        write: Write | None = None
        pause = self._period
        told = False
        while True:
            last = self._stop.wait(pause)
            try:
                while self._queue:
                    if write is None:
                        write = self._connect()
                    some = [self._queue[i] for i in range(min(self._batch, len(self._queue)))]
                    write(some)
                    for _ in some:
                        self._queue.popleft()
                    self.written += len(some)
                pause, told = self._period, False
            except Exception as error:  # noqa: BLE001 - whatever the store raises, predictions go on
                # The records wait, and the next round tries again.
                self.failures += 1
                write = None
                pause = min(pause * 2, 5.0)
                if not told:
                    told = True
                    _log.warning("prediction records wait, because the store refuses them: %s", type(error).__name__)
            if last:
                return
