"""The Bento: what `bentoml serve` starts, from this source, from a built folder or in a container. Importing it loads no model.

The master process only looks whether the service could start; each worker loads the models. Our API stands around what Bento
makes of the service (`to_asgi`), so that a prediction does not pass Bento's middlewares.
"""

import json
import logging
import os
import signal
import sys
from pathlib import Path
from typing import Any

# Before bentoml is imported: no usage reports, and no tracing of routes that are not ours.
os.environ.setdefault("BENTOML_DO_NOT_TRACK", "true")
os.environ.setdefault("OTEL_SDK_DISABLED", "true")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import bentoml
from bentoml import Service

from esteira.errors import ConfigError, EsteiraError
from esteira.settings import Settings, load_settings
from serving.lifeline import die_with_parent
from serving.predictor import Deployed, Deployment, Folder, FromRegistry, Source
from serving.records import Recorder, Write

# How `python -m serving serve` and its grandchild talk; no settings, so they are not spelled ESTEIRA_.
STATE = "_SERVING_STATE"
MASTER = "_SERVING_MASTER"
RECORD = "_SERVING_RECORD"

EMBEDDED = Path(__file__).resolve().parent.parent / "model"
_log = logging.getLogger("serving")


def source_of(settings: Settings) -> Source:
    """What this process serves: ESTEIRA_BUNDLE, else ESTEIRA_LINES, else the model that the Bento carries.

    Raises:
        ConfigError: none of the three, or both of the first.
        Refused: the bundle is not what its identity says.
    """
    if settings.bundle is not None and settings.lines:
        raise ConfigError(
            "a service serves one bundle or lines, but ESTEIRA_BUNDLE and ESTEIRA_LINES are both set",
            code="usage", where="ESTEIRA_BUNDLE, ESTEIRA_LINES", cure="unset one of the two",
        )  # fmt: skip
    if settings.bundle is not None:
        return Folder(settings.bundle)
    if settings.lines:
        from esteira.registry import Registry

        return FromRegistry(Registry(settings), settings.lines)
    if (EMBEDDED / "deployment.json").is_file():
        which = json.loads((EMBEDDED / "deployment.json").read_text(encoding="utf-8"))
        return Folder(EMBEDDED / "bundle", line=which["line"], version=which["version"], bundle_id=which["bundle_id"])
    raise ConfigError(
        "a service needs something to serve, but ESTEIRA_BUNDLE and ESTEIRA_LINES are not set and no model is carried along",
        code="nothing_to_serve", where="environment", cure="set ESTEIRA_LINES=tabular, or ESTEIRA_BUNDLE to a bundle folder",
    )  # fmt: skip


def _key(settings: Settings) -> bytes:
    if settings.api_key is None:
        raise ConfigError(
            "a service has a key, but ESTEIRA_API_KEY is not set",
            code="no_api_key", where="ESTEIRA_API_KEY", cure="set it to a long random text; `esteira serve` makes one",
        )  # fmt: skip
    return settings.api_key.get_secret_value().encode()


def _recorder(settings: Settings) -> Recorder | None:
    """Records are kept for lines, and wherever a database was named; `python -m serving serve` may say otherwise."""
    named = bool(settings.lines) or any(name in os.environ for name in ("ESTEIRA_DATABASE_URL", "DATABASE_URL"))
    wanted = os.environ.get(RECORD, "yes" if named else "no")
    if wanted != "yes" or not settings.monitoring_enabled:
        return None

    def connect() -> Write:
        from esteira.store import Store

        return Store.open(settings.database_url, tenant=settings.tenant).record_predictions

    return Recorder(connect)


def _tell(state: dict[str, Any]) -> None:
    """Tell the process that started us, if one waits for it."""
    name = os.environ.get(STATE)
    if name:
        temporary = Path(f"{name}.{os.getpid()}.tmp")
        temporary.write_text(json.dumps(state), encoding="utf-8")
        temporary.replace(name)


def _port() -> int | None:
    """The port of the socket that the master handed to this worker."""
    import socket

    try:
        number = int(sys.argv[sys.argv.index("--fd") + 1])
        with socket.socket(fileno=os.dup(number)) as listening:
            port: int = listening.getsockname()[1]
    except (ValueError, IndexError, OSError):
        return None
    return port


def _give_up(error: EsteiraError) -> None:
    """Say why this service cannot start and stop the master, which would start workers for ever."""
    _log.error("the service cannot start: %s", error)
    _tell({"state": "failed", "error": error.to_dict(), "exit_code": error.exit_code})
    master = os.environ.get(MASTER)
    if master is not None and os.getppid() == int(master):
        os.kill(int(master), signal.SIGTERM)


class Fronted(Service[Any]):  # type: ignore[misc]  # bentoml has no types
    """A Bento service whose ASGI application stands behind our API."""

    __slots__ = ()

    def to_asgi(self, is_main: bool = True) -> Any:
        """Bento's application with our API around it; called once in each worker."""
        inner = super().to_asgi(is_main=is_main)
        if MASTER in os.environ:
            die_with_parent(int(os.environ[MASTER]))  # SIGTERM, so that requests in flight are still answered
        try:
            return _front(inner)
        except EsteiraError as error:
            _give_up(error)
            raise


def _front(inner: Any) -> Any:
    from serving.http import Api, Keys, Limits
    from serving.metrics import Metrics

    settings = load_settings(file=None)
    operator = settings.operator_key
    metrics = Metrics(together="PROMETHEUS_MULTIPROC_DIR" in os.environ)
    recorder = _recorder(settings)

    def report(line: str, error: Exception) -> None:
        metrics.troubled(line)
        _log.error("line %s does not follow its alias: %s", line, error)

    def moved(old: Deployment | None, new: Deployment | None) -> None:
        metrics.moved(old, new)
        _log.info("line %s: version %s -> %s", (new or old).line, old and old.version, new and new.version)  # type: ignore[union-attr]

    deployed = Deployed(source_of(settings), device=settings.device, report=report, moved=moved)

    def start() -> None:
        try:
            deployed.start()
        except EsteiraError as error:
            _give_up(error)
            raise
        if recorder is not None:
            recorder.start()

    def stop() -> None:
        deployed.stop()
        if recorder is not None:
            recorder.stop()

    return Api(
        deployed,
        Keys(
            _key(settings),
            operator.get_secret_value().encode() if operator is not None else None,
        ),
        inner,
        metrics=metrics,
        recorder=recorder,
        limits=Limits(rows=settings.max_rows, body=settings.max_body),
        start=start,
        started=lambda: _tell({"state": "ready", "port": _port()}) if deployed.ready else None,
        stop=stop,
    )


@bentoml.service(
    name="esteira",
    service_class=Fronted,
    workers=max(1, int(os.environ.get("ESTEIRA_WORKERS") or os.environ.get("ML_WORKERS") or 1)),
    traffic={"timeout": 10},
    logging={"access": {"enabled": False}},
)
class Esteira:
    """Answers rows of released model lines; the API is described at /openapi.json."""

    @bentoml.on_deployment  # type: ignore[untyped-decorator]
    @staticmethod
    def look_first() -> None:
        """In the master, before any worker: refuse settings or a bundle that no worker could serve."""
        settings = load_settings(file=None)
        _key(settings)
        if not settings.lines:
            source_of(settings)
        os.environ[MASTER] = str(os.getpid())
