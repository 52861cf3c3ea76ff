"""Runs `bentoml serve` as a child and answers for it: says READY with the address, and leaves no process and no file behind.

Signals, the end of the process that started us, and kill -9 of any one of us (this process, Bento's master, its worker) all
end the whole tree. It serves nothing itself.
"""

import contextlib
import http.client
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from esteira.errors import ConfigError, EsteiraError, OutsideError
from esteira.settings import VARIABLES, Settings, api_key, load_settings
from serving.drain import SAME, to_the_end
from serving.lifeline import HURRY, STATE, die_with_parent, sweep

_PREFIX = "esteira-serve-"
_READY_SECONDS = 120.0
# What Bento's master takes beyond its workers.
_STOP_SECONDS = 3.0


def serve(
    *,
    bundle: Path | None = None,
    bento: Path | None = None,
    lines: Sequence[str] = (),
    host: str | None = None,
    port: int | None = None,
    record: bool | None = None,
    detached: bool = False,
) -> int:
    """Serve until told to stop; prints `READY http://HOST:PORT` on standard output once `/readyz` says 200.

    SIGTERM ends it as a load balancer wants: not ready at once, still answering for ESTEIRA_DRAIN_SECONDS. Ctrl-C and the
    end of the starting process only wait for requests in flight. A second signal ends it now.

    Args:
        bundle: a bundle folder; verified before anything starts.
        bento: a built Bento's folder, served as it is.
        lines: model lines, by ESTEIRA_ALIAS (champion); exactly one of the three is given.
        host: address to listen on; ESTEIRA_HOST (127.0.0.1) by default.
        port: 0 takes a free one; ESTEIRA_PORT (8080) by default.
        record: keep records of predictions; by default for lines only.
        detached: go on when the process that started this one ends.

    Returns:
        0 after a signal or the end of the starting process.

    Raises:
        EsteiraError: it cannot start, or ended by itself.
    """
    settings = load_settings()
    if (bundle is not None) + (bento is not None) + bool(lines) != 1:
        raise ConfigError(
            "serve takes exactly one of --bundle, --bento and --line",
            code="usage", where="python -m serving serve", cure="see `python -m serving serve --help`",
        )  # fmt: skip
    sweep(_PREFIX)
    with _Signals() as signals, _folder() as folder:
        run = Path(folder)
        env = _environment(settings, run, bundle=bundle, lines=lines, record=record)
        host = host or settings.host
        command = _command(bento, host, settings.port if port is None else port)
        child = _Child(command, env, run)
        told = False
        try:
            # Looked at while Bento starts: a letter from here is there seconds before the worker's.
            if bundle is not None:
                _verify(bundle)
            if lines:
                _must_have_champions(settings, lines)
            started = _wait_ready(child, run, host, signals, detached)
            if started is not None:
                print(f"READY http://{'127.0.0.1' if host == '0.0.0.0' else host}:{started}", flush=True)
                _wait_end(child, run, signals, detached)
            told = True
        finally:
            hurry = not told or signals.read() != signal.SIGTERM
            if hurry:
                (run / HURRY).touch()
            child.stop(to_the_end(settings, hurry=hurry) + _STOP_SECONDS, signals)
    return 0


def _folder() -> "tempfile.TemporaryDirectory[str]":
    # A worker that is told to end now may still write as we remove it; the next start sweeps what is left.
    return tempfile.TemporaryDirectory(prefix=f"{_PREFIX}{os.getpid()}-", ignore_cleanup_errors=True)


def _command(bento: Path | None, host: str, port: int) -> list[str]:
    root = Path(__file__).resolve().parent.parent
    what = [str(bento.resolve())] if bento is not None else ["serving.service:Esteira", "--working-dir", str(root)]
    return [sys.executable, "-m", "bentoml", "serve", *what, "--host", host, "--port", str(port)]


def _environment(
    settings: Settings, run: Path, *, bundle: Path | None, lines: Sequence[str], record: bool | None
) -> dict[str, str]:
    """What the children see: settings resolved here, since they work in another folder; state of Bento's in our own folder."""
    key, made = api_key(settings)
    if made:
        print(f"API key, made now and kept in {settings.home} (shown only this once): {key}", file=sys.stderr)
    env = {name: value for name, value in os.environ.items() if name not in ("ESTEIRA_BUNDLE", "ESTEIRA_LINES")}
    env |= _given(settings) | {
        "ESTEIRA_API_KEY": key,
        "BENTOML_HOME": str(run / "bento"),
        "BENTOML_DO_NOT_TRACK": "true",
        "OMP_WAIT_POLICY": "passive",
        "PYTHONUNBUFFERED": "1",
        "TMPDIR": str(run),
        STATE: str(run / "state.json"),
        "_SERVING_RECORD": "yes" if (bool(lines) if record is None else record) else "no",
    }
    if not env.get("OTEL_EXPORTER_OTLP_ENDPOINT"):
        env["OTEL_SDK_DISABLED"] = "true"
    if bundle is not None:
        env["ESTEIRA_BUNDLE"] = str(bundle.resolve())
    if lines:
        env["ESTEIRA_LINES"] = ",".join(lines)
    return env


def _given(settings: Settings) -> dict[str, str]:
    """Every setting that was given, in the environment or in `.env`, by its first name; paths are made absolute.

    Of the secrets only those that a service uses; children inherit what is in our environment anyway.
    """
    found = {}
    for variable in VARIABLES:
        value = getattr(settings, variable.field)
        given = variable.field in settings.model_fields_set or isinstance(value, Path)
        if value is None or not given or variable.field in ("bundle", "lines"):
            continue
        if not variable.secret or variable.field in ("api_key", "operator_key", "sentry_dsn"):
            found[variable.names[0]] = _spelled(value)
    return found


def _spelled(value: object) -> str:
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple | frozenset):
        return ",".join(_spelled(one) for one in value)
    return str(value.absolute() if isinstance(value, Path) else value)


def _verify(bundle: Path) -> None:
    from esteira.bundle import verify

    verify(bundle)


def _must_have_champions(settings: Settings, lines: Sequence[str]) -> None:
    from esteira.registry import Registry
    from serving.deployments import no_champion

    registry = Registry(settings)
    for line in lines:
        if registry.resolve(line, settings.alias) is None:
            raise no_champion(line, settings.alias)


class _Signals:
    """SIGTERM, SIGINT and SIGHUP become a readable file descriptor."""

    def __enter__(self) -> "_Signals":
        self.reader, self._writer = os.pipe()
        os.set_blocking(self.reader, False)
        os.set_blocking(self._writer, False)
        self._wakeup = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        self._old = {
            number: signal.signal(number, lambda *_: None) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        }
        return self

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(self._wakeup)
        for number, handler in self._old.items():
            signal.signal(number, handler)
        os.close(self.reader)
        os.close(self._writer)

    def read(self) -> int | None:
        """The next signal that came, taken from the descriptor; None when there was none."""
        try:
            return os.read(self.reader, 1)[0]
        except BlockingIOError:
            return None


class _Child:
    """Bento's master, in a session of its own, bound to our life."""

    def __init__(self, command: Sequence[str], env: dict[str, str], run: Path) -> None:
        ours = os.getpid()
        # Bento's own words go to standard error; standard output belongs to READY.
        # preexec_fn is safe here: this process has one thread.
        self._process = subprocess.Popen(
            command, env=env, cwd=run, stdin=subprocess.DEVNULL, stdout=sys.stderr.fileno(), stderr=sys.stderr.fileno(),
            start_new_session=True, preexec_fn=lambda: die_with_parent(ours),
        )  # fmt: skip
        self.pid = self._process.pid

    @property
    def ended(self) -> int | None:
        return self._process.poll()

    def stop(self, seconds: float, signals: _Signals) -> None:
        """Ask, wait, insist; afterwards nothing of the session is left. A second signal ends the wait."""
        if self._process.poll() is None:
            self._process.terminate()
            begun = time.monotonic()
            until = begun + seconds
            while self._process.poll() is None and time.monotonic() < until:
                if select.select([signals.reader], [], [], 0.05)[0]:
                    if time.monotonic() - begun < SAME:  # the one that we stop for, sent to the group or sent again
                        signals.read()
                        continue
                    break
        # A worker, in a session of its own by Bento's will, is told by the kernel that its master is gone.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()


def _watched(signals: _Signals, detached: bool) -> "tuple[list[int], int | None]":
    """File descriptors that become readable when we have to stop; the second is ours to close."""
    parent: int | None = None
    if not detached and os.getppid() > 1 and hasattr(os, "pidfd_open"):
        # A pidfd follows the process; PR_SET_PDEATHSIG would follow the thread that started us.
        with contextlib.suppress(OSError):
            parent = os.pidfd_open(os.getppid())
    return [signals.reader] + ([parent] if parent is not None else []), parent


def _wait_ready(child: _Child, run: Path, host: str, signals: _Signals, detached: bool) -> int | None:
    """The port once the service is ready; None when told to stop before."""
    watched, parent = _watched(signals, detached)
    until = time.monotonic() + _READY_SECONDS
    try:
        while time.monotonic() < until:
            state = _state(run)
            if state.get("state") == "failed":
                raise _Failed(state)
            if state.get("state") == "ready" and _is_ready(host, state["port"]):
                port: int = state["port"]
                return port
            if child.ended is not None:
                raise _ended(child)
            if select.select(watched, [], [], 0.02)[0]:
                return None
    finally:
        if parent is not None:
            os.close(parent)
    raise OutsideError(
        f"the service must be ready within {_READY_SECONDS:g} s, but it is not",
        code="not_ready",
        where="bentoml serve",
        cure="see its log above: a line that cannot be loaded, or what ESTEIRA_READY_NEEDS names is away",
    )


def _wait_end(child: _Child, run: Path, signals: _Signals, detached: bool) -> None:
    watched, parent = _watched(signals, detached)
    try:
        while not select.select(watched, [], [], 0.5)[0]:
            if child.ended is not None:
                state = _state(run)
                raise _Failed(state) if state.get("state") == "failed" else _ended(child)
    finally:
        if parent is not None:
            os.close(parent)


def _ended(child: _Child) -> OutsideError:
    return OutsideError(
        f"the service must go on until it is told to stop, but `bentoml serve` ended with {child.ended}",
        code="service_ended", where="bentoml serve", cure="see its log above; is the port taken?",
    )  # fmt: skip


class _Failed(EsteiraError):
    """A worker's own letter, passed on with its exit code."""

    def __init__(self, state: dict[str, Any]) -> None:
        error = state["error"]
        super().__init__(error["message"], code=error["code"], where=error["where"], cure=error["cure"])
        self.exit_code = int(state["exit_code"])  # type: ignore[misc]


def _state(run: Path) -> dict[str, Any]:
    try:
        state: dict[str, Any] = json.loads((run / "state.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return state


def _is_ready(host: str, port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1" if host == "0.0.0.0" else host, port, timeout=2)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()
