"""Exceptions that nobody expected: what the log says of them, and what Sentry hears where SENTRY_DSN is set. Never their own words.

The words of libraries hold cells of rows and passwords of addresses. sentry_sdk is imported when `Faults` is made.
"""

import logging
import time
from types import TracebackType

from esteira.errors import ConfigError, EsteiraError
from esteira.settings import redact

_log = logging.getLogger("serving")


class Faults:
    """Tells Sentry of unexpected exceptions: types and places, no text of theirs, no request, no variables, nothing of the machine.

    The release of an event is the bundle that was asked. The same fault is told once a minute.

    Args:
        dsn: of the project.

    Raises:
        ConfigError: it is none.
    """

    def __init__(self, dsn: str) -> None:
        import sentry_sdk
        from sentry_sdk.utils import BadDsn, event_from_exception

        try:
            self._client = sentry_sdk.Client(
                dsn=dsn,
                release="unknown",
                server_name="",
                default_integrations=False,
                auto_enabling_integrations=False,
                include_local_variables=False,
                include_source_context=False,
                max_request_body_size="never",
                max_breadcrumbs=0,
                send_client_reports=False,
                auto_session_tracking=False,
                enable_backpressure_handling=False,
                shutdown_timeout=2,
            )
        except BadDsn as error:
            raise ConfigError(
                "SENTRY_DSN is the address of a project, but this is none",
                code="bad_dsn", where="SENTRY_DSN", cure="copy it from the project's settings, or unset it",
            ) from error  # fmt: skip
        self._event = event_from_exception
        self._told: dict[tuple[str, str, int], float] = {}

    def __call__(
        self, error: BaseException, *, line: str = "", bundle_id: str | None = None, request_id: str = ""
    ) -> None:
        """Report one exception; never raises."""
        try:
            if self._fresh(error):
                event, hint = self._event(error, client_options=self._client.options)
                for value in event["exception"]["values"]:
                    value["value"] = ""  # the words of libraries hold cells of rows and passwords of addresses
                event["release"] = bundle_id or "none"
                event["tags"] = {"line": line, "request_id": request_id}
                self._client.capture_event(event, hint)
        except Exception as failed:  # noqa: BLE001 - a fault that cannot be told must not become another
            _log.warning("a fault could not be reported: %s", type(failed).__name__)

    def stop(self) -> None:
        """Send what waits, for at most two seconds."""
        self._client.close(timeout=2)

    def _fresh(self, error: BaseException) -> bool:
        places = _places(error.__traceback__)
        key = (type(error).__qualname__, *(places[0][:2] if places else ("", 0)))
        now = time.monotonic()
        if now - self._told.get(key, float("-inf")) < 60:
            return False
        if len(self._told) >= 256:
            self._told.clear()
        self._told[key] = now
        return True


def _places(tracing: TracebackType | None) -> list[tuple[str, int, str]]:
    """File, line and function of each frame, the innermost first."""
    found = []
    while tracing is not None:
        code = tracing.tb_frame.f_code
        found.append(("/".join(code.co_filename.split("/")[-2:]), tracing.tb_lineno, code.co_name))
        tracing = tracing.tb_next
    return found[::-1]


def trail(error: BaseException) -> str:
    """Types and places of an exception and of what caused it; no text of theirs, which may hold cells of rows."""
    told: list[str] = []
    one: BaseException | None = error
    while one is not None and len(told) < 5:
        frames = " < ".join(f"{file}:{number} {name}" for file, number, name in _places(one.__traceback__)[:8])
        told.append(f"{type(one).__qualname__} at {frames or 'no place'}")
        one = one.__cause__ or (None if one.__suppress_context__ else one.__context__)
    return ", because of ".join(told)


def worded(error: BaseException) -> str:
    """An exception for the log: our own letters as they are, of all others types and places."""
    return redact(str(error)) if isinstance(error, EsteiraError) else trail(error)
