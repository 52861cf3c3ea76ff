"""Boots the real server on a real socket, asks it, and always ends it: what a release answers is measured, not assumed.

The server is `python -m serving serve --bundle DIR --port 0`, a process of its own that ends itself when its parent is
gone. What cannot be measured is said with its reason, never guessed.
"""

import contextlib
import http.client
import json
import math
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

from esteira.family import Answer, Row

COMMAND: tuple[str, ...] = (sys.executable, "-m", "serving")
_WARM_UP = 20


@dataclass(frozen=True)
class Measured:
    """What the server showed.

    Attributes:
        reason: why nothing could be measured; empty when it could.
        differing: golden rows that were answered otherwise than natively, `examples` says how (five at most).
        milliseconds: time of each single-row request, in order, after the warm-up.
        bundle_id, device: what the server says that it serves, and on what.
        boot_seconds: from starting the process to its READY line.
    """

    reason: str = ""
    golden: int = 0
    differing: int = 0
    examples: tuple[str, ...] = ()
    milliseconds: tuple[float, ...] = ()
    bundle_id: str = ""
    device: str = ""
    boot_seconds: float = 0.0

    def percentile(self, share: float) -> float | None:
        """The nearest-rank percentile of the request times in milliseconds; None without requests."""
        if not self.milliseconds:
            return None
        ordered = sorted(self.milliseconds)
        return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


class Server:
    """A server process over one bundle. Use as a context manager: it is stopped on every way out.

    Args:
        bundle: a sealed bundle folder.
        patience: seconds until READY before it counts as failed.
        command: what to run before `serve --bundle DIR --port 0`; tests put a fake here.
        environment: variables that the server gets besides ours, over what is set here; None takes one away.

    Attributes:
        key: that opens it.
        url: where it answers; empty until `wait` said that it does.
    """

    def __init__(
        self,
        bundle: Path,
        *,
        patience: float = 60.0,
        command: Sequence[str] = COMMAND,
        environment: Mapping[str, str | None] | None = None,
    ) -> None:
        self._bundle, self._patience, self._command = bundle, patience, tuple(command)
        self._environment = dict(environment or {})
        self.key = secrets.token_urlsafe(24)
        self.url = ""
        self._ready = threading.Event()
        self._closed: contextlib.ExitStack | None = None
        self.boot_seconds = 0.0

    def __enter__(self) -> Self:
        """Start the process; it boots while the caller goes on."""
        with contextlib.ExitStack() as stack:
            home = Path(
                stack.enter_context(tempfile.TemporaryDirectory(prefix="esteira-probe-", ignore_cleanup_errors=True))
            )
            self._log = home / "server.log"
            log = stack.enter_context(self._log.open("wb"))
            # Its own home: predictions asked for by the gate must not be counted as traffic of the line.
            environment = {
                **os.environ,
                "ESTEIRA_HOME": str(home / "home"),
                "ESTEIRA_API_KEY": self.key,
                "ESTEIRA_DRAIN_SECONDS": "0",  # nobody else asks this server
                "OMP_WAIT_POLICY": "passive",
                "PYTHONUNBUFFERED": "1",
            }
            for name in ("ESTEIRA_LINES", "ESTEIRA_BUNDLE", "ESTEIRA_DATABASE_URL", "DATABASE_URL"):
                environment.pop(name, None)
            for name, value in self._environment.items():
                if value is None:
                    environment.pop(name, None)
                else:
                    environment[name] = value
            self._started = time.monotonic()
            self._process = subprocess.Popen(
                [*self._command, "serve", "--bundle", str(self._bundle.resolve()), "--port", "0"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
                start_new_session=True,
            )
            stack.callback(self._stop)
            self._reader = threading.Thread(target=self._read, daemon=True)
            self._reader.start()
            self._closed = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._closed is not None:
            self._closed.close()
            self._closed = None

    def _read(self) -> None:
        assert self._process.stdout is not None
        for raw in self._process.stdout:
            line = raw.decode(errors="replace").strip()
            if line.startswith("READY ") and not self.url:
                self.url = line.removeprefix("READY ").strip()
                self.boot_seconds = time.monotonic() - self._started
                self._ready.set()
        self._ready.set()  # its output ended: ready or not, there is nothing more to wait for

    def _stop(self) -> None:
        group = self._process.pid  # a session of its own, so this is the whole tree
        for number, patience in ((signal.SIGTERM, 10.0), (signal.SIGKILL, 5.0)):
            if self._process.poll() is not None:
                break
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(patience)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)
        self._process.wait()
        self._reader.join(timeout=5)
        if self._process.stdout is not None and not self._reader.is_alive():
            self._process.stdout.close()

    def wait(self) -> str:
        """Wait until it answers; empty then, else why it does not, in words and with the end of what it said."""
        self._ready.wait(max(0.0, self._patience - (time.monotonic() - self._started)))
        if self.url:
            return ""
        # Its output may end a moment before the process does.
        return self.ended(0.5) or f"the server was not ready after {self._patience:g} s: {self._tail()}"

    def ended(self, seconds: float = 0.0) -> str:
        """How it ended by itself, with the end of what it said; empty while it runs.

        Args:
            seconds: to wait for its end.
        """
        code = self.exit_code(seconds)
        return "" if code is None else f"the server ended with {code}: {self._tail()}"

    def exit_code(self, seconds: float = 0.0) -> int | None:
        """With what it ended by itself, as `ended`, but nothing of what it said; None while it runs."""
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def measure(
        self, golden: Sequence[tuple[Row, Answer]], rows: Sequence[Row], *, calls: int, tolerance: float = 1e-6
    ) -> Measured:
        """Ask the golden rows in one request, then single rows over one kept-alive connection.

        Args:
            golden: rows with the native model's answers.
            rows: rows to time, taken in turn.
            calls: how many single rows are timed, after 20 that are not.
            tolerance: how far a probability may be off; for a value, relative to its size.
        """
        if reason := self.wait():
            return Measured(reason=reason)
        try:
            return self._measure(golden, rows, calls=calls, tolerance=tolerance)
        except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError) as error:
            return Measured(
                reason=f"the server did not answer as promised: {type(error).__name__}: {str(error)[:300]}",
                boot_seconds=self.boot_seconds,
            )

    def _measure(
        self, golden: Sequence[tuple[Row, Answer]], rows: Sequence[Row], *, calls: int, tolerance: float
    ) -> Measured:
        place = urlsplit(self.url)
        connection = http.client.HTTPConnection(place.hostname or "127.0.0.1", place.port, timeout=30)
        with contextlib.closing(connection):
            document = self._ask(connection, _body([row for row, _ in golden]))
            answered = document["rows"]
            if len(answered) != len(golden):
                return Measured(reason=f"{len(golden)} rows were asked, but {len(answered)} answered")
            said = [difference(expected, got, tolerance) for (_, expected), got in zip(golden, answered, strict=True)]
            bad = [f"golden row {k}: {text}" for k, text in enumerate(said) if text]
            bodies = [_body([row]) for row in rows] or [_body([row]) for row, _ in golden]
            milliseconds: list[float] = []
            for k in range(_WARM_UP + calls if bodies else 0):
                start = time.perf_counter()
                self._ask(connection, bodies[k % len(bodies)])
                milliseconds.append((time.perf_counter() - start) * 1e3)
        return Measured(
            golden=len(golden),
            differing=len(bad),
            examples=tuple(bad[:5]),
            milliseconds=tuple(milliseconds[_WARM_UP:]),
            bundle_id=str(document.get("bundle_id", "")),
            device=str(document.get("device", "")),
            boot_seconds=self.boot_seconds,
        )

    def _ask(self, connection: http.client.HTTPConnection, body: bytes) -> dict[str, Any]:
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self.key}"}
        connection.request("POST", "/v1/predict", body=body, headers=headers)
        response = connection.getresponse()
        payload = response.read()
        if response.status != 200:
            raise ValueError(f"HTTP {response.status}: {payload[:300].decode(errors='replace')}")
        document: dict[str, Any] = json.loads(payload)
        return document

    def _tail(self) -> str:
        lines = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return " | ".join(line.strip() for line in lines[-4:])[-600:] or "it said nothing"


def _body(rows: Sequence[Row]) -> bytes:
    return json.dumps({"rows": [dict(row) for row in rows]}, ensure_ascii=False, allow_nan=False).encode()


def difference(expected: Mapping[str, Any], got: Mapping[str, Any], tolerance: float) -> str:
    """How an answer differs from the native one, in words; empty when it does not.

    Labels must be equal, in value and in type; probabilities lie within `tolerance`, values within `tolerance` relative
    to their size (absolute below 1). What the native answer does not hold is not compared.
    """
    for part in ("prediction", "probabilities", "interval"):
        if part in expected and (text := _differs(part, expected[part], got.get(part), tolerance)):
            return text
    return ""


def _differs(where: str, a: Any, b: Any, tolerance: float) -> str:
    if isinstance(a, Mapping):
        if not isinstance(b, Mapping) or set(a) != set(b):
            return f"{where}: expected the keys {sorted(a)}, got {b!r}"[:200]
        return next((text for key in a if (text := _differs(f"{where}.{key}", a[key], b[key], tolerance))), "")
    if isinstance(a, (list, tuple)):
        if not isinstance(b, (list, tuple)) or len(a) != len(b):
            return f"{where}: expected {a!r}, got {b!r}"[:200]
        pairs = enumerate(zip(a, b, strict=True))
        return next((text for k, (u, v) in pairs if (text := _differs(f"{where}.{k}", u, v, tolerance))), "")
    if isinstance(a, float) and isinstance(b, (int, float)) and not isinstance(b, bool):
        return "" if abs(a - b) <= tolerance * max(1.0, abs(a)) else f"{where}: expected {a!r}, got {b!r}"
    return "" if type(a) is type(b) and a == b else f"{where}: expected {a!r}, got {b!r}"[:200]
