"""Asks a running service for predictions: one pool of connections, retries where the service asks for them, typed errors.

It loads no model and reads no settings: address and key are the caller's. Needs urllib3 (`pip install 'esteira[client]'`).
"""

import json
import re
import secrets
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import quote, unquote

from esteira.errors import ConfigError, DataError, EsteiraError, OutsideError

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse, PoolManager
    from urllib3.util.retry import Retry

# What the service answers when the same call may succeed a moment later; these are sent again.
_BUSY = frozenset({429, 503})
_AWAY = frozenset({408, 500, 502, 504}) | _BUSY
_ROWS = frozenset({400, 422})
_BACKOFF, _JITTER, _LONGEST_BACKOFF = 0.2, 0.2, 5.0
_KEY = re.compile(r"[!-~]+")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


@dataclass(frozen=True)
class Prediction:
    """What a service answered to rows.

    Attributes:
        rows: one answer a row, in the order asked: `prediction`, `probabilities` or `interval`, `confidence`, `warnings`.
        line, version, bundle_id: the model that computed all of them; version is None for a bundle that is not registered.
        method, device, simulated: how, on what, and whether a simulation made the answers up.
        request_id: finds the request in the service's logs and records.
        timestamp: when it was answered, ISO 8601 in UTC.
    """

    rows: list[dict[str, Any]]
    line: str
    version: int | None
    bundle_id: str
    method: str | None
    device: str
    simulated: bool
    request_id: str
    timestamp: str


class ServiceError(EsteiraError):
    """Root of what a call may raise; besides code, where and cure it has what the service said.

    Attributes:
        status: HTTP status of the last answer; None when there was none.
        field, row: the column and the row (from 0) that the first error is about.
        details: errors of the same request, each with `code`, `message`, `field`, `row`.
        request_id: finds the request in the service's log.
    """

    def __init__(
        self,
        message: str,
        *,
        code: str,
        where: str = "",
        cure: str = "",
        status: int | None = None,
        field: str | None = None,
        row: int | None = None,
        details: Sequence[Mapping[str, Any]] = (),
        request_id: str = "",
    ) -> None:
        super().__init__(message, code=code, where=where, cure=cure)
        self.status = status
        self.field = field
        self.row = row
        self.details = tuple(details)
        self.request_id = request_id


class RowsRefused(ServiceError, DataError):
    """The rows break the line's contract, or are too many; nothing was predicted, and they will be refused again."""


class CallRefused(ServiceError, ConfigError):
    """The call itself is wrong: the key, the line, the version, the address."""


class ServiceAway(ServiceError, OutsideError):
    """No answer after all retries: not reachable, too busy, too slow, or a fault on its side. Worth asking again later."""


class Client:
    """Asks one service. Safe to share between threads; connections are kept and used again.

    A call is sent again, at most `retries` times, when the service was busy (429) or not ready (503), could not be reached
    or hung up: a prediction changes nothing, so sending it twice does no harm. Between two attempts it waits as long as
    `Retry-After` says, else nothing, then 0.4 s, 0.8 s, 1.6 s. What took longer than `timeout` is not sent again.

    Args:
        url: address of the service or of a proxy's prefix, such as `https://ml.example.org/api/ml`.
        key: the service's key; never shown.
        timeout: seconds until an answer; to connect it takes at most 10 of them.
        retries: how often a call is sent again.
        longest_wait: seconds; a longer `Retry-After` is cut to it.
        certificates: file of the authorities that vouch for the server; the system's by default.
        connections: how many are kept open; threads beyond them open their own.

    Raises:
        ConfigError: address or key have another form, or urllib3 is not installed.

    Ordinary use: `Client("http://127.0.0.1:8080", key).predict([{"age": 41, "plan": "basic"}]).rows[0]["prediction"]`.
    """

    def __init__(
        self,
        url: str,
        key: str,
        *,
        timeout: float = 30.0,
        retries: int = 4,
        longest_wait: float = 30.0,
        certificates: str | None = None,
        connections: int = 10,
    ) -> None:
        try:
            import urllib3
        except ModuleNotFoundError as error:
            raise ConfigError(
                "the client sends its requests by urllib3, which is not installed",
                code="no_urllib3", where="esteira.client", cure="pip install 'esteira[client]'",
            ) from error  # fmt: skip
        _check(url, key)
        self.url = url.rstrip("/")
        self._headers = {"authorization": f"Bearer {key}", "accept": "application/json"}
        self._pool: PoolManager = urllib3.PoolManager(
            num_pools=1,
            maxsize=connections,
            timeout=urllib3.Timeout(connect=min(timeout, 10.0), read=timeout),
            retries=_retry(retries, longest_wait),
            ca_certs=certificates,
        )
        self._lines: tuple[str, ...] | None = None
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"Client({self.url!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections; a later call opens new ones."""
        self._pool.clear()

    def predict(
        self,
        rows: Iterable[Mapping[str, Any]],
        *,
        line: str | None = None,
        version: int | None = None,
        request_id: str | None = None,
    ) -> Prediction:
        """Predict rows; n in, n out, same order.

        Args:
            rows: one mapping a row, column -> value; None is a missing value. Dates and numpy's scalars are taken.
            line: which line; may be left out where the service has only one.
            version: a version that is not deployed; needs an operator's key.
            request_id: up to 128 letters, digits, `.`, `_`, `-`; one is made when it is left out. Every attempt carries it.

        Raises:
            RowsRefused: a row breaks the contract; `field`, `row` and `details` say where.
            CallRefused: wrong key, unknown line or version.
            ServiceAway: no answer after all retries.
            DataError: a value has no JSON form, such as NaN.
            ConfigError: the request id has another form.
        """
        asked = _plain_rows(rows)
        if request_id is not None and not _REQUEST_ID.fullmatch(request_id):
            raise ConfigError(
                f"a request id is up to 128 letters, digits, '.', '_' and '-', but got {request_id[:200]!r}",
                code="bad_request_id", where="Client.predict", cure="leave it out, and one is made",
            )  # fmt: skip
        path = f"/v1/{quote(line, safe='@')}/predict" if line else "/v1/predict"
        query = "" if version is None else f"?version={version:d}"
        headers = {"content-type": "application/json", "x-request-id": request_id or secrets.token_hex(16)}
        document = self._ask("POST", path + query, headers, _encode(asked))
        try:
            answered = Prediction(
                rows=list(document["rows"]),
                line=document["line"],
                version=document["version"],
                bundle_id=document["bundle_id"],
                method=document["method"],
                device=document["device"],
                simulated=document["simulated"],
                request_id=document["request_id"],
                timestamp=document["timestamp"],
            )
        except (KeyError, TypeError) as error:
            raise self._strange(path, "it has not the fields of an answer") from error
        if len(answered.rows) != len(asked):
            raise self._strange(path, f"{len(asked)} rows were asked and {len(answered.rows)} answered")
        return answered

    def model(self, line: str | None = None) -> dict[str, Any]:
        """What serves a line: identity, contract (`schema`), units, metrics, data hash, device.

        Args:
            line: may be left out where the service has only one.

        Raises:
            CallRefused: no such line, or there are several and none was named.
            ServiceAway: no answer after all retries, or the line has no model.
        """
        if line is None:
            lines = self.lines()
            if len(lines) != 1:
                raise CallRefused(
                    f"this service has {len(lines)} lines, so one must be named: {', '.join(lines[:10])}",
                    code="which_line", where=self.url, cure="model(LINE)",
                )  # fmt: skip
            line = lines[0]
        return self._ask("GET", f"/v1/{quote(line, safe='@')}/model", {})

    def lines(self) -> tuple[str, ...]:
        """The lines that this service has, by its own description; asked once."""
        with self._lock:
            if self._lines is None:
                paths = self._ask("GET", "/openapi.json", {}).get("paths") or {}
                found = [re.fullmatch(r"/v1/([^/]+)/model", path) for path in paths]
                self._lines = tuple(unquote(match[1]) for match in found if match)
            return self._lines

    def ready(self) -> bool:
        """Whether it can answer now; asked once, without the key and without retries."""
        import urllib3

        try:
            return self._pool.request("GET", f"{self.url}/readyz", retries=False, timeout=5.0).status == 200
        except urllib3.exceptions.HTTPError:
            return False

    def _ask(self, method: str, path: str, headers: Mapping[str, str], body: bytes | None = None) -> dict[str, Any]:
        import urllib3

        try:
            # A redirect is not followed: the key would be sent to an address that the caller did not name.
            answer = self._pool.request(
                method, self.url + path, body=body, headers={**self._headers, **headers}, redirect=False
            )
        except urllib3.exceptions.HTTPError as error:
            raise self._away(path, error, headers.get("x-request-id", "")) from error
        if answer.status != 200:
            raise self._refusal(path, answer)
        document = _object(answer.data)
        if document is None:
            raise self._strange(path, "it is no JSON object")
        return document

    def _away(self, path: str, error: Exception, request_id: str) -> ServiceAway:
        import urllib3

        reason = error.reason if isinstance(error, urllib3.exceptions.MaxRetryError) else error
        if isinstance(reason, urllib3.exceptions.SSLError):
            code, cure = "tls", "check the name in the address; certificates=FILE names an authority of your own"
            message = f"TLS must be agreed on and the certificate trusted, but: {str(reason)[:200]}"
        elif isinstance(reason, urllib3.exceptions.ReadTimeoutError):
            code, cure = "no_answer", "send fewer rows, or give a longer timeout="
            message = "an answer comes within the timeout, but none did"
        else:
            code, cure = "not_reachable", "is the address right, and does GET /livez answer there?"
            message = f"the service must be reachable, but: {type(reason).__name__}"
        return ServiceAway(message, code=code, where=self.url + path, cure=cure, request_id=request_id)

    def _refusal(self, path: str, answer: "BaseHTTPResponse") -> ServiceError:
        status, where = answer.status, self.url + path
        kind: type[ServiceError] = ServiceAway if status in _AWAY else RowsRefused if status in _ROWS else CallRefused
        request_id = answer.headers.get("x-request-id", "")
        said = (_object(answer.data) or {}).get("error")
        location = answer.headers.get("location")
        if location is not None:
            return kind(
                f"the service answers by itself, but this address sends on to {location[:200]}",
                code="redirected", where=where, cure="give that address", status=status, request_id=request_id,
            )  # fmt: skip
        if not isinstance(said, dict):
            return kind(
                f"an error has the service's own form, but this one, of status {status}, has not", code=f"http_{status}",
                where=where, cure="is this the service's address, or another's?", status=status, request_id=request_id,
            )  # fmt: skip
        code = str(said.get("code") or f"http_{status}")
        row, details = said.get("row"), said.get("details")
        return kind(
            str(said.get("message") or f"HTTP {status}"),
            code=code,
            where=where,
            cure=_CURES.get(status, "the request id finds the cause in the service's log"),
            status=status,
            field=said.get("field"),
            row=row if isinstance(row, int) else None,
            details=[one for one in details if isinstance(one, dict)] if isinstance(details, list) else (),
            request_id=str(said.get("request_id") or request_id),
        )

    def _strange(self, path: str, why: str) -> ServiceAway:
        return ServiceAway(
            f"an answer is what /openapi.json describes, but {why}", code="bad_answer", where=self.url + path,
            cure="is this the service's address, or another's?", status=200,
        )  # fmt: skip


_CURES: Mapping[int, str] = {
    400: "send JSON as /openapi.json describes it",
    401: "give the key that the service was started with (ESTEIRA_API_KEY)",
    403: "leave version= out, or use an operator's key",
    404: "lines() names what this service has",
    413: "send fewer rows at a time",
    422: "correct the rows; model() tells the contract",
    429: "ask again later, or more slowly",
    503: "ask again later; GET /health says what is missing",
    504: "send fewer rows at a time",
}


def _check(url: str, key: str) -> None:
    import urllib3

    try:
        parsed = urllib3.util.parse_url(url)
    except urllib3.exceptions.LocationParseError:
        parsed = urllib3.util.Url()
    if parsed.scheme not in ("http", "https") or not parsed.host or parsed.auth or parsed.query or parsed.fragment:
        shown = url[:200] if parsed.auth is None else "one with a password in it"
        raise ConfigError(
            f"a service's address is http:// or https:// with a host, but got {shown!r}",
            code="bad_address", where="Client", cure="for example http://127.0.0.1:8080; the key goes beside it",
        )  # fmt: skip
    if not _KEY.fullmatch(key):
        raise ConfigError(
            "a key is printable ASCII without spaces, but this one is not",
            code="bad_key", where="Client", cure="was a line's end read with it? strip() it",
        )  # fmt: skip


def _plain_rows(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    if not isinstance(rows, Mapping):
        try:
            return [dict(row) for row in rows]
        except (TypeError, ValueError):
            pass
    raise DataError(
        f"rows is a list with one mapping a row, but got {type(rows).__name__}",
        code="wrong_type", where="Client.predict", cure='for example [{"age": 41}]; of a DataFrame: df.to_dict("records")',
    )  # fmt: skip


def _encode(rows: Sequence[Mapping[str, Any]]) -> bytes:
    try:
        return json.dumps({"rows": rows}, ensure_ascii=False, allow_nan=False, default=_plain).encode()
    except (TypeError, ValueError) as error:
        raise DataError(
            f"a value of a row is null, true, false, a finite number, text, or a list or mapping of these, but: {str(error)[:200]}",
            code="no_json", where="Client.predict", cure="send None for a missing value",
        ) from error  # fmt: skip


def _plain(value: Any) -> Any:
    """Dates as ISO text, numpy's scalars as Python's."""
    for name in ("isoformat", "item"):
        convert = getattr(value, name, None)
        if callable(convert):
            return convert()
    raise TypeError(f"{type(value).__name__} has no JSON form")


def _object(content: bytes) -> dict[str, Any] | None:
    try:
        document = json.loads(content)
    except ValueError:
        return None
    return document if isinstance(document, dict) else None


def _retry(retries: int, longest_wait: float) -> "Retry":
    from urllib3.exceptions import ReadTimeoutError, SSLError
    from urllib3.util.retry import Retry

    class OfUse(Retry):
        """Repeats only what may end otherwise: a certificate will not change, and what was too slow would be so again."""

        def increment(
            self,
            method: str | None = None,
            url: str | None = None,
            response: "BaseHTTPResponse | None" = None,
            error: Exception | None = None,
            *rest: Any,
            **named: Any,
        ) -> Self:
            if isinstance(error, ReadTimeoutError | SSLError):
                raise error
            return super().increment(method, url, response, error, *rest, **named)

    return OfUse(
        total=max(0, retries),
        status_forcelist=_BUSY,
        allowed_methods=None,
        backoff_factor=_BACKOFF,
        backoff_jitter=_JITTER,
        backoff_max=_LONGEST_BACKOFF,
        retry_after_max=max(0, int(longest_wait)),
        redirect=False,
        raise_on_status=False,
    )
