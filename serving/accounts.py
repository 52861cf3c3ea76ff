"""What is kept of each request once it was answered: counters, a record, what observers want, and what nobody expected."""

import logging
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from esteira.errors import EsteiraError
from serving.deployments import Deployment
from serving.faults import worded
from serving.metrics import Metrics
from serving.observe import Answered, Observer
from serving.outside import away
from serving.predictor import Predictor
from serving.problems import Problem
from serving.records import Recorder
from serving.routes import Route

if TYPE_CHECKING:
    from serving.faults import Faults

_log = logging.getLogger("serving")
# Drivers whose exceptions mean that something outside is away, wherever they come up.
_DRIVERS = frozenset({"boto3", "botocore", "psycopg2", "redis", "sqlalchemy", "urllib3"})


class Accounts:
    """Told of every request.

    Args:
        metrics: counters.
        recorder: where records of predictions go; None keeps none.
        observers: told of every request.
        faults: told of exceptions that nobody expected.
    """

    def __init__(
        self, metrics: Metrics, recorder: Recorder | None, observers: Sequence[Observer], faults: "Faults | None"
    ) -> None:
        self._metrics = metrics
        self._recorder = recorder
        self._observers = tuple(observers)
        self._faults = faults

    def settle(
        self, route: Route, predictor: Predictor | None, now: Mapping[str, Deployment], status: int, rows: int,
        seconds: float, size: int, method: str, request_id: bytes, headers: Mapping[bytes, bytes],
    ) -> None:  # fmt: skip
        """Count one request, and tell whoever wants to know.

        Args:
            predictor: that was asked; where there was none, `now` says what the line serves.
            size: bytes of the answer's body.
        """
        kind = "" if predictor is None else predictor.kind
        self._metrics.answered(route.name, status, route.line, kind, rows, seconds)
        keeps = self._recorder is not None and route.name == "predict" and route.line != ""
        if not keeps and not self._observers:
            return
        served = now.get(route.line) if predictor is None else predictor.deployment
        version, bundle_id = (served.version, served.bundle_id) if served is not None else (None, None)
        if self._recorder is not None and keeps:
            self._recorder.put(
                {
                    "request_id": request_id.decode(),
                    "line": route.line,
                    "version": version,
                    "bundle_id": bundle_id,
                    "rows": rows,
                    "elapsed_ms": round(seconds * 1000, 3),
                    "status": status,
                    "at": datetime.now(UTC),
                }
            )
        for observer in self._observers:
            try:
                observer(
                    Answered(
                        request_id, method, route.name, route.line, version, bundle_id, status, rows, seconds, size, headers
                    )
                )  # fmt: skip
            except Exception as error:  # noqa: BLE001 - the request was answered, and what is said of it must not undo that
                _log.warning("an observer failed: %s", worded(error))

    def unexpected(self, error: Exception, line: str, predictor: Predictor | None, request_id: bytes) -> Problem:
        """Tell the log and Sentry; the caller's answer has not a word of the exception."""
        _log.error("request %s failed: %s", request_id.decode(), worded(error))
        if _outside(error):
            return away()
        if self._faults is not None:
            bundle_id = None if predictor is None else predictor.deployment.bundle_id
            self._faults(error, line=line, bundle_id=bundle_id, request_id=request_id.decode())
        return Problem(500, "internal", "this is our fault; the request id finds it in the log")


def _outside(error: Exception) -> bool:
    if isinstance(error, EsteiraError):
        return error.http_status == 503
    drivers = (kind.__module__.partition(".")[0] in _DRIVERS for kind in type(error).__mro__)
    # Of OSErrors only what a network does: a full disk or a file that may not be read is a fault that somebody must hear of.
    return isinstance(error, ConnectionError | TimeoutError) or any(drivers)
