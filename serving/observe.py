"""What observers may know of a request, and the access log: one JSON line each, where ESTEIRA_ACCESS_LOG asks for it.

No row, no key and no query is in it. No observer can make a request fail.
"""

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import NamedTuple

import msgspec

from esteira.errors import ConfigError
from serving.faults import worded

_log = logging.getLogger("serving")


class Answered(NamedTuple):
    """One request that was answered.

    Attributes:
        request_id, method, route: as they were taken; `route` is of the fixed list of the metrics.
        line, version, bundle_id: of the model that answered, as far as one was asked.
        status: of HTTP; 499 when the caller hung up.
        rows: that were answered.
        seconds: from the head to the answer.
        size: bytes of the answer's body.
        headers: of the request; only W3C's trace context is read.
    """

    request_id: bytes
    method: str
    route: str
    line: str
    version: int | None
    bundle_id: str | None
    status: int
    rows: int
    seconds: float
    size: int
    headers: Mapping[bytes, bytes]


Observer = Callable[[Answered], None]


class AccessLog:
    """One JSON line a request, written by a thread: a log that is slow or full slows nobody.

    Args:
        target: `stdout`, or a file, which is opened again when it was moved away.
        capacity: lines that may wait; newer ones are dropped and counted.
        period: seconds between two writes.
    """

    def __init__(self, target: str, *, capacity: int = 10_000, period: float = 0.2) -> None:
        self._refused = self._lost = 0  # by the loop's thread, and by ours
        self._target = target
        self._capacity = capacity
        self._period = period
        self._file = -1
        self._waiting: deque[tuple[float, Answered]] = deque()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="access-log", daemon=True)

    @property
    def dropped(self) -> int:
        """Lines that were not written, and never will be."""
        return self._refused + self._lost

    def numbers(self) -> Mapping[str, float]:
        """What the metrics page tells of it."""
        return {"log_dropped": self.dropped}

    def __call__(self, answered: Answered) -> None:
        """Note one request; never blocks and never raises."""
        if len(self._waiting) >= self._capacity:
            self._refused += 1
        else:
            self._waiting.append((time.time(), answered))

    def start(self) -> None:
        """Open the log.

        Raises:
            ConfigError: it cannot be opened.
        """
        try:
            self._open()
        except OSError as error:
            raise ConfigError(
                f"an access log is a file that can be written, but: {error.strerror}",
                code="access_log", where="ESTEIRA_ACCESS_LOG", cure="set it to stdout, or to a file in a folder that is there",
            ) from error  # fmt: skip
        self._thread.start()

    def stop(self, timeout: float = 2.0) -> None:
        """Write what waits, for at most `timeout` seconds."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout)

    def _open(self) -> None:
        if self._target == "stdout":
            self._file = 1
            return
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        fresh = os.open(self._target, flags, 0o640)
        if self._file > 2:
            os.close(self._file)
        self._file = fresh

    def _run(self) -> None:
        told = False
        last = False
        while not last:
            last = self._stop.wait(self._period)
            try:
                self._write()
                told = False
            except Exception as error:  # noqa: BLE001 - a log that ended would leave all requests untold, unseen
                if not told:
                    told = True
                    why = error.strerror if isinstance(error, OSError) else worded(error)
                    _log.warning("the access log cannot be written: %s", why)
        if self._file > 2:
            os.close(self._file)

    def _write(self) -> None:
        if not self._waiting:
            return
        if self._file > 2 and not self._in_place():
            self._open()
        while self._waiting:
            # Whole lines, and no more than a pipe takes at once: several workers write to the same place.
            lines: list[bytes] = []
            taken = size = 0
            try:
                while self._waiting and size < 3000:
                    at, answered = self._waiting.popleft()
                    taken += 1
                    lines.append(_line(at, answered))
                    size += len(lines[-1])
                rest = b"".join(lines)
                while rest:
                    rest = rest[os.write(self._file, rest) :]
            except Exception:
                self._lost += taken
                raise

    def _in_place(self) -> bool:
        try:
            return os.path.samestat(os.stat(self._target), os.fstat(self._file))  # noqa: PTH116
        except FileNotFoundError:
            return False


def _line(at: float, answered: Answered) -> bytes:
    said = {
        "time": datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "request_id": answered.request_id.decode("latin-1"),
        "method": answered.method[:16],
        "route": answered.route,
        "line": answered.line or None,
        "version": answered.version,
        "status": answered.status,
        "rows": answered.rows,
        "ms": round(answered.seconds * 1000, 3),
        "bytes": answered.size,
    }
    return msgspec.json.encode(said) + b"\n"
