"""MLflow as the mirror of the registry, and the only importer of it; imported only where something is written there.

Writes runs with metrics and parameters, one child run a trial, model versions with their lineage as tags, and aliases. What
serves is never read from here.
"""

import contextlib
import logging
import os
import re
import time
import uuid
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

# Before MLflow is imported: nobody is called home.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
# A server that is away is told after seconds, not after the five minutes of MLflow's own seven tries.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")

with warnings.catch_warnings():
    # MLflow's own use of SQLAlchemy 2.1 and of Python; nothing that we could mend.
    warnings.simplefilter("ignore", DeprecationWarning)
    warnings.filterwarnings("ignore", message="The ``noload`` loader")
    # Both stores take 1.6 s: imported here, so that a preloaded process has them.
    import mlflow.store.model_registry.sqlalchemy_store  # noqa: F401
    from mlflow.entities import Metric, Param, RunTag
    from mlflow.exceptions import MlflowException
    from mlflow.store.tracking.dbmodels import models
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
    from mlflow.tracking import MlflowClient

from esteira import locks
from esteira.errors import OutsideError
from esteira.settings import Settings, redact
from esteira.store.database import DriverError

_BATCH = 100
_VALUE_LENGTH = 5000

# Its notes on migrations are of no use to whoever waits for a run.
for _name in ("mlflow", "alembic"):
    logging.getLogger(_name).setLevel(logging.WARNING)


@contextlib.contextmanager
def _outside(what: str) -> Iterator[None]:
    try:
        yield
    except (MlflowException, DriverError, OSError) as error:
        raise OutsideError(
            f"MLflow can {what}, but it said: {redact(str(error))[:300]}",
            code="mlflow_away",
            where="ESTEIRA_MLFLOW_URI",
            cure="see that the tracking server or database is there and may be written, then run again",
        ) from error


def _key(text: str) -> str:
    """A name as MLflow takes it."""
    return re.sub(r"[^\w\-. /]", "_", text)[:250] or "_"


class Mirror:
    """MLflow, at the address in the settings. A fresh database is made under a lock, because two processes would collide."""

    def __init__(self, settings: Settings) -> None:
        uri = settings.mlflow_uri
        with _outside("be opened"), locks.hold(settings.home, "mlflow", what="opening MLflow's database", wait=120):
            self._client = MlflowClient(tracking_uri=uri, registry_uri=uri)
            # The stores connect at their first use.
            self._client.search_registered_models(max_results=1)
            self._client.search_experiments(max_results=1)

    def start_run(
        self,
        *,
        experiment: str,
        location: str,
        name: str,
        tags: Mapping[str, str],
        params: Mapping[str, Any],
        metrics: Mapping[str, Any],
    ) -> tuple[str, str]:
        """Make a running run.

        Args:
            location: where artefacts of a new experiment lie; an existing one keeps its own.
            params: flat; values become text.
            metrics: flat; what is no finite number is left out.

        Returns:
            Ids of the experiment and of the run.
        """
        with _outside("make a run"):
            found = self._client.get_experiment_by_name(experiment)
            if found is not None and found.lifecycle_stage != "active":
                self._client.restore_experiment(found.experiment_id)
            home = (
                found.experiment_id if found else self._client.create_experiment(experiment, artifact_location=location)
            )
            run: str = self._client.create_run(home, run_name=name, tags=dict(tags)).info.run_id
            self._log(run, params, metrics)
        return home, run

    def log_trials(self, experiment_id: str, parent: str, trials: Sequence[Mapping[str, Any]]) -> None:
        """One finished child run a trial, with its parameters, its score and every other number it has.

        A database gets all of them in one transaction: MLflow's own way takes six for each, which is seconds for a hundred on a busy
        disk. A server gets three requests for each.
        """
        with _outside("take trials"):
            children = [_child(trial, parent) for trial in trials]
            store = self._client._tracking_client.store
            if isinstance(store, SqlAlchemyStore):
                _insert(store, experiment_id, children)
                return
            for name, tags, params, metrics in children:
                run = self._client.create_run(experiment_id, run_name=name, tags=tags).info.run_id
                self._log(run, params, metrics)
                self._client.set_terminated(run, "FINISHED")

    def _log(self, run: str, params: Mapping[str, Any], metrics: Mapping[str, Any]) -> None:
        numbers, words = _numbers(metrics), _words(params)
        for start in range(0, max(len(numbers), len(words)), _BATCH):
            part = slice(start, start + _BATCH)
            self._client.log_batch(run, metrics=numbers[part], params=words[part])

    def finish_run(self, run: str, status: str, tags: Mapping[str, str] | None = None) -> None:
        """End a run: `FINISHED` or `FAILED`."""
        with _outside("end a run"):
            if tags:
                self._client.log_batch(run, tags=[RunTag(key, value) for key, value in tags.items()])
            self._client.set_terminated(run, status)

    def add_version(self, name: str, *, source: str, run: str | None, tags: Mapping[str, str]) -> int:
        """Make a model version; its number is MLflow's next one for this name."""
        with _outside("register a version"):
            try:
                self._client.get_registered_model(name)
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
                with contextlib.suppress(MlflowException):  # another process was faster
                    self._client.create_registered_model(name)
            made = self._client.create_model_version(
                name, source, run_id=run, tags={key: str(value) for key, value in tags.items()}, await_creation_for=0
            )
        return int(made.version)

    def versions(self, name: str) -> dict[int, tuple[str | None, str, dict[str, str]]]:
        """Number -> (run, source, tags) of every version of a name."""
        found: dict[int, tuple[str | None, str, dict[str, str]]] = {}
        token = None
        with _outside("list versions"):
            while True:
                page = self._client.search_model_versions(f"name='{name}'", max_results=1000, page_token=token)
                for one in page:
                    found[int(one.version)] = (one.run_id, str(one.source), dict(one.tags))
                token = page.token
                if not token:
                    return found

    def align(self, name: str, wanted: Mapping[str, int]) -> None:
        """Make MLflow's aliases of a name those that are wanted, and no others."""
        with _outside("move an alias"):
            shown = {alias: int(version) for alias, version in self._client.get_registered_model(name).aliases.items()}
            for alias, version in wanted.items():
                if shown.get(alias) != version:
                    self._client.set_registered_model_alias(name, alias, str(version))
            for alias in shown.keys() - wanted.keys():
                self._client.delete_registered_model_alias(name, alias)


def _child(trial: Mapping[str, Any], parent: str) -> tuple[str, dict[str, str], dict[str, Any], dict[str, Any]]:
    """Name, tags, parameters and numbers of a trial's run."""
    number, kind = trial.get("number"), trial.get("kind")
    tags = {"mlflow.parentRunId": parent, "esteira.kind": str(kind)}
    tags |= {
        f"esteira.{key}": redact(str(trial[key]))[:_VALUE_LENGTH]
        for key in ("origin", "state", "why", "form")
        if trial.get(key)
    }
    made = {f"recipe.{key}": value for key, value in (trial.get("recipe") or {}).items()}
    params = {"kind": kind, **(trial.get("params") or {}), **made}
    return f"trial {number} {kind}", tags, params, {key: value for key, value in trial.items() if key != "number"}


def _numbers(metrics: Mapping[str, Any]) -> list[Metric]:
    """What of them is a finite number, one a name as MLflow takes it."""
    at = int(time.time() * 1000)
    named = {
        _key(name): float(value)
        for name, value in metrics.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf")
    }
    return [Metric(name, value, at, 0) for name, value in named.items()]


def _words(params: Mapping[str, Any]) -> list[Param]:
    """All of them as text, one a name as MLflow takes it."""
    named = {_key(name): redact(str(value))[:_VALUE_LENGTH] for name, value in params.items()}
    return [Param(name, text) for name, text in named.items()]


def _insert(store: SqlAlchemyStore, experiment_id: str, children: Sequence[tuple[str, Any, Any, Any]]) -> None:
    """Finished runs in one transaction, as MLflow 3.17 itself writes them; a test compares both ways."""
    location = store.get_experiment(experiment_id).artifact_location.rstrip("/")
    with store.ManagedSessionMaker(read_only=False) as session:
        for name, tags, params, metrics in children:
            run, at = uuid.uuid4().hex, int(time.time() * 1000)
            rows = [
                {"key": number.key, "value": number.value, "timestamp": number.timestamp, "step": 0, "is_nan": False}
                for number in _numbers(metrics)
            ]
            session.add(
                models.SqlRun(
                    name=name, run_uuid=run, experiment_id=experiment_id, artifact_uri=f"{location}/{run}/artifacts",
                    source_type="UNKNOWN", source_name="", entry_point_name="", source_version="", user_id="unknown",
                    status="FINISHED", start_time=at, end_time=at, deleted_time=None, lifecycle_stage="active",
                    tags=[models.SqlTag(key=key, value=value) for key, value in {**tags, "mlflow.runName": name}.items()],
                    params=[models.SqlParam(key=word.key, value=word.value) for word in _words(params)],
                    metrics=[models.SqlMetric(**row) for row in rows],
                    latest_metrics=[models.SqlLatestMetric(**row) for row in rows],
                )
            )  # fmt: skip


def mlmodel(manifest: Mapping[str, Any], bundle_id: str, run: str) -> str:
    """The MLmodel file of a bundle that lies beside it: flavor `esteira`, and the signature as far as the schema says it."""
    import yaml

    document: dict[str, Any] = {
        "artifact_path": "model",
        "flavors": {"esteira": {"bundle": "bundle", "bundle_id": bundle_id, "family": manifest.get("family")}},
        "run_id": run,
    }
    inputs = _inputs(manifest.get("schema"))
    if inputs:
        import json

        outputs = [{"name": "prediction", "type": _output_type(manifest), "required": True}]
        document["signature"] = {"inputs": json.dumps(inputs), "outputs": json.dumps(outputs), "params": None}
    return yaml.safe_dump(document, sort_keys=False)


_TYPES = {"number": "double", "integer": "long", "boolean": "boolean", "category": "string", "date": "datetime"}


def _inputs(schema: Any) -> list[dict[str, Any]]:
    columns = schema.get("columns") if isinstance(schema, Mapping) else None
    if not isinstance(columns, list):
        return []
    return [
        {
            "name": str(column["name"]),
            "type": _TYPES.get(str(column.get("kind")), "string"),
            "required": bool(column.get("required", True)),
        }
        for column in columns
        if isinstance(column, Mapping) and "name" in column
    ]


def _output_type(manifest: Mapping[str, Any]) -> str:
    return "double" if manifest.get("task") == "regression" else "string"
