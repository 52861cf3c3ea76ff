"""The Bento: what `bentoml serve` starts, from this source, from a built folder or in a container. Importing it loads no model.

The master process only looks whether the service could start; each worker loads the models. Our API stands around what Bento
makes of the service (`to_asgi`), so that a prediction does not pass Bento's middlewares.
"""

import json
import logging
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Before bentoml is imported: no usage reports, and no tracing of routes that are not ours.
os.environ.setdefault("BENTOML_DO_NOT_TRACK", "true")
os.environ.setdefault("OTEL_SDK_DISABLED", "true")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import bentoml
from bentoml import Service

from esteira.errors import ConfigError
from esteira.settings import Settings, load_settings
from serving.beginning import MASTER, Beginning, give_up, tell
from serving.deployed import Deployed
from serving.deployments import Deployment, Folder, FromRegistry, Source
from serving.lifeline import die_with_parent, note_served
from serving.records import Recorder, Write

if TYPE_CHECKING:
    from esteira.store.rollouts import Rollouts

# How `python -m serving serve` and its grandchild talk, besides STATE; no setting, so it is not spelled ESTEIRA_.
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

        return FromRegistry(Registry(settings), settings.lines, settings.alias)
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


def _beacon(settings: Settings) -> Callable[[], int]:
    """What changes when an alias moves. Imported with the registry, which a service of one bundle does without."""
    from esteira.registry import beacon

    return partial(beacon.stamp, settings.home)


def _rollouts(settings: Settings) -> "Callable[[], Rollouts]":
    """How to open what is kept of rollouts."""

    def connect() -> "Rollouts":
        from esteira.store import Store
        from esteira.store.rollouts import Rollouts

        return Rollouts(Store.open(settings.database_url, tenant=settings.tenant))

    return connect


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
        except Exception as error:  # noqa: BLE001 - told without its words, which a traceback would show
            give_up(error)
            raise SystemExit(1) from None


def _front(inner: Any) -> Any:
    from serving import edge
    from serving.answering import Pace
    from serving.arms import Arms
    from serving.body import Limits
    from serving.cache import AnswerCache
    from serving.drain import watch
    from serving.faults import Faults, worded
    from serving.feedback import Feedback
    from serving.gate import Gate
    from serving.health import health_of
    from serving.http import Api
    from serving.jobs import Jobs
    from serving.keys import Keys
    from serving.metrics import Metrics
    from serving.observe import AccessLog
    from serving.request_log import RequestLog
    from serving.splits import Splits
    from serving.traces import Traces, wanted

    edge.install()  # the master never comes here, and needs no server
    settings = load_settings(file=None)
    operator = settings.operator_key
    metrics = Metrics(together="PROMETHEUS_MULTIPROC_DIR" in os.environ)
    metrics.watch_edge(edge.counts)
    recorder = _recorder(settings)
    faults = Faults(settings.sentry_dsn.get_secret_value()) if settings.sentry_dsn is not None else None
    log = AccessLog(settings.access_log) if settings.access_log else None
    traces = Traces() if wanted() else None
    if log is not None:
        metrics.ask(log.numbers)

    def report(line: str, error: Exception) -> None:
        metrics.troubled(line)
        _log.error("line %s does not follow its alias: %s", line, worded(error))
        if faults is not None:
            faults(error, line=line)

    def moved(old: Deployment | None, new: Deployment | None) -> None:
        predictor = deployed.loaded(new.line) if new is not None else None
        measured = (predictor.manifest.get("metrics") or {}) if predictor is not None else {}
        metrics.moved(old, new, measured.get("accuracy"))
        _log.info("line %s: version %s -> %s", (new or old).line, old and old.version, new and new.version)  # type: ignore[union-attr]
        if new is not None:
            beginning.has_model()

    source = source_of(settings)
    deployed = Deployed(
        source, device=settings.device, report=report, moved=moved,
        keep=settings.keep_seconds, beacon=_beacon(settings) if source.moves else None,
    )  # fmt: skip
    health = health_of(settings, deployed, records=recorder is not None)
    jobs = Jobs(deployed, source, settings)
    splits = arms = feedback = requests = control = None
    if source.moves:  # what has no alias has no challenger, and no versions to move
        splits = Splits(deployed, settings.home, alias=settings.alias, report=report)
        arms = Arms(_rollouts(settings))
        feedback = Feedback(_rollouts(settings), arms, metrics, splits.of)
        metrics.watch_splits(splits.percents)
        from serving.control import Control

        control = Control(settings)
    if settings.request_log:
        requests = RequestLog(settings.home, settings.request_log)

    def start() -> None:
        try:
            if log is not None:
                log.start()
            deployed.start(period=settings.follow_seconds)
            for part in (splits, recorder, arms, requests):
                if part is not None:
                    part.start()
            health.start()
            jobs.start()
        except Exception as error:
            give_up(error)
            raise

    def serves() -> None:
        note_served()
        tell({"state": "ready", "port": _port()})

    beginning = Beginning(serves)

    def started() -> None:
        beginning.takes_requests()
        watch(api)

    def stop() -> None:
        parts: list[Any] = [
            part
            for part in (splits, deployed, jobs, health, recorder, arms, requests, log, traces, faults)
            if part is not None
        ]
        # At once: each may take seconds where what it writes to is away.
        with ThreadPoolExecutor(len(parts), thread_name_prefix="stop") as pool:
            for part, ended in [(part, pool.submit(part.stop)) for part in parts]:
                error = ended.exception()
                if error is not None:
                    _log.warning("%s did not stop well: %s", type(part).__name__, worded(error))

    api = Api(
        deployed,
        Keys(_key(settings), operator.get_secret_value().encode() if operator is not None else None),
        inner,
        metrics=metrics,
        recorder=recorder,
        limits=Limits(rows=settings.max_rows, body=settings.max_body),
        gate=Gate(settings.max_concurrency, settings.max_queue, settings.request_seconds),
        pace=Pace(settings.request_seconds, settings.batch_rows, settings.batch_ms / 1000),
        cache=AnswerCache(settings.answer_cache),
        health=health,
        jobs=jobs,
        splits=splits,
        arms=arms,
        feedback=feedback,
        requests=requests,
        control=control,
        observers=[observer for observer in (log, traces) if observer is not None],
        faults=faults,
        start=start,
        started=started,
        stop=stop,
    )
    return api


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
