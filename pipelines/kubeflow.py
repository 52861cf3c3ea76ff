"""One Kubeflow Pipelines server, through kfp's client: uploads a line once, starts or schedules runs, waits for one.

It compiles and runs nothing. What the server, the network or kfp says no to becomes one of Esteira's errors.
"""

import contextlib
import io
import json
import os
import re
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from esteira.errors import ConfigError, EsteiraError, OutsideError, Refused
from esteira.settings import redact
from pipelines.compile import Compiled
from pipelines.plan import Plan
from pipelines.shape import STEPS
from pipelines.submit import parameters

_SECONDS = 60  # longest time of one request; kfp's client would wait for ever
_FIRST_SECONDS = 10
_PAGE = 100
_ENDED = {"SUCCEEDED": "released", "FAILED": "failed", "SKIPPED": "failed", "CANCELED": "canceled"}
# Steps that say no to data or model; any other failed step is a failure of ours or of the cluster.
_JUDGES = {"validate", "evaluate"}


@dataclass(frozen=True)
class Uploaded:
    """A version of a line's pipeline in KFP; `new` when it was not there before."""

    pipeline_id: str
    version_id: str
    version: str
    new: bool


@dataclass(frozen=True)
class Started:
    """A run or a schedule in KFP and where to look at it. `change`: created, replaced or unchanged."""

    id: str
    url: str
    change: str = "created"


@dataclass
class Outcome:
    """What a run came to.

    Attributes:
        status: released, failed or canceled. KFP tells a held gate as a failed step evaluate.
        steps: step -> state in KFP's words.
        message: what KFP says of it.
    """

    status: str
    steps: dict[str, str] = field(default_factory=dict)
    message: str = ""

    @property
    def exit_code(self) -> int:
        """0 released; 1 data or gate said no, or somebody canceled it; 2 it failed elsewhere."""
        failed = {step for step, state in self.steps.items() if state == "FAILED"}
        said_no = self.status == "canceled" or (bool(failed) and failed <= _JUDGES)
        return 0 if self.status == "released" else 1 if said_no else 2


class Kubeflow:
    """One Kubeflow Pipelines server.

    Args:
        host: its address; https when it names no protocol.
        token: sent as bearer; never shown.
        namespace: of a multi-user installation.

    Raises:
        OutsideError: nothing answers there.
        ConfigError: the address is none, or the server does not let this token in.
    """

    def __init__(self, host: str, token: str | None = None, namespace: str | None = None) -> None:
        self.host = (host if "://" in host else f"https://{host}").rstrip("/")
        if re.fullmatch(r"https?://[^\s/@]+(/[^\s@?#]*)?", self.host) is None:
            raise ConfigError(
                f"a server's address is http:// or https:// and a host, without a password, but got {redact(host)!r}",
                code="bad_host",
                where="--host",
                cure="for example --host https://kfp.example.org/pipeline, or ESTEIRA_KFP_HOST",
            )
        self.namespace = namespace
        self._token = token
        with self._asking("say that it is there"):
            import kfp_server_api
            import urllib3
            from kfp.client import Client

            # Its own look at the server would take 25 s to fail and print five tracebacks.
            config = kfp_server_api.Configuration(host=self.host)
            config.retries = False
            config.ssl_ca_cert = os.environ.get("SSL_CERT_FILE")
            if token:
                config.api_key, config.api_key_prefix = {"authorization": token}, {"authorization": "Bearer"}
            first = kfp_server_api.ApiClient(config)
            kfp_server_api.HealthzServiceApi(first).healthz_service_get_healthz(_request_timeout=_FIRST_SECONDS)
            kind = str(first.last_response.getheader("content-type"))
            first.rest_client.pool_manager.clear()
            if "json" not in kind:
                raise ConfigError(
                    f"Kubeflow Pipelines answers in JSON, but got {kind}: a login page, or another server",
                    code="kfp_denied",
                    where=self.host,
                    cure="set ESTEIRA_KFP_TOKEN, and see that --host is the address of the API (often ending in /pipeline)",
                )
            self._client = Client(
                host=self.host,
                existing_token=token,
                namespace=namespace or "kubeflow",
                ssl_ca_cert=os.environ.get("SSL_CERT_FILE"),
            )
            api = self._client.runs.run_service_get_run.__self__.api_client
            request = api.request
            api.request = lambda *args, _request_timeout=None, **more: request(
                *args, _request_timeout=_request_timeout or _SECONDS, **more
            )
            self._pool = api.rest_client.pool_manager
            # A request that was sent is not sent again by itself: it may have been understood.
            self._pool.connection_pool_kw["retries"] = urllib3.Retry(2, read=0)
            self._pool.clear()

    def __enter__(self) -> "Kubeflow":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.clear()

    def upload(self, compiled: Compiled, description: str) -> Uploaded:
        """Upload a line's pipeline, unless this very content is there."""
        with self._asking(f"take the pipeline {compiled.name}"):
            found = self._listed(self._client.list_pipelines, "pipelines", compiled.name, namespace=self.namespace)
            made = not found
            pipeline_id = found[0].pipeline_id if found else self._new_pipeline(compiled.name, description)
            version = self._version(pipeline_id, compiled.version)
            if version is not None:
                return Uploaded(pipeline_id, version, compiled.version, new=False)
            try:
                taken = self._client.upload_pipeline_version(
                    str(compiled.ir), compiled.version, pipeline_id=pipeline_id, description=description
                )
            except Exception as error:
                # Somebody uploaded the same content in between.
                if getattr(error, "status", None) == 409 and (other := self._version(pipeline_id, compiled.version)):
                    return Uploaded(pipeline_id, other, compiled.version, new=False)
                if made:
                    with contextlib.suppress(Exception):
                        self._client.delete_pipeline(pipeline_id)
                raise
            return Uploaded(pipeline_id, taken.pipeline_version_id, compiled.version, new=True)

    def run(self, uploaded: Uploaded, plan: Plan, *, experiment: str) -> Started:
        """Start a run of an uploaded version with a plan's parameters."""
        with self._asking(f"start a run of {plan.line}"):
            run = self._client.run_pipeline(
                experiment_id=self._experiment(experiment),
                job_name=f"{plan.line} {datetime.now(UTC):%Y-%m-%d %H:%M:%S}",
                params=parameters(plan),
                pipeline_id=uploaded.pipeline_id,
                version_id=uploaded.version_id,
            )
            return Started(run.run_id, f"{self.host}/#/runs/details/{run.run_id}")

    def wait(
        self, run_id: str, told: Callable[[str, str], None], *, every: float = 5.0, patience: float = 300.0
    ) -> Outcome:
        """Wait until a run ended.

        Args:
            told: called with a step and its state each time that changes.
            every: seconds between two looks.
            patience: seconds that the server may be away in a row.

        Raises:
            OutsideError: it stayed away; the run goes on.
        """
        known: dict[str, str] = {}
        away: float | None = None
        while True:
            try:
                with self._asking(f"say how run {run_id} goes"):
                    run = self._client.get_run(run_id)
                away = None
            except OutsideError as error:
                away = away or time.monotonic()
                if time.monotonic() - away > patience:
                    error.cure = f"the run goes on whether we look or not: {self.host}/#/runs/details/{run_id}"
                    raise
                time.sleep(every)
                continue
            for step, state in _states(run).items():
                if known.get(step) != state:
                    known[step] = state
                    told(step, state)
            if run.state in _ENDED:
                return _outcome(run, known)
            time.sleep(every)

    def schedule(self, uploaded: Uploaded, plan: Plan, *, cron: str, name: str, experiment: str) -> Started:
        """Let a version run again and again; a schedule of this name is left alone when it is the same, else replaced."""
        with self._asking(f"schedule {plan.line}"):
            before = self._schedules(uploaded.pipeline_id, name)
            for old in before:
                if len(before) == 1 and _alike(old, uploaded, parameters(plan), cron):
                    return Started(old.recurring_run_id, self._schedule_url(old.recurring_run_id), "unchanged")
            new = self._client.create_recurring_run(
                experiment_id=self._experiment(experiment),
                job_name=name,
                description=f"Releases {plan.line}",
                cron_expression=cron,
                max_concurrency=1,
                # Runs missed while it was off are not made up for: each reads the rows of now.
                no_catchup=True,
                params=parameters(plan),
                pipeline_id=uploaded.pipeline_id,
                version_id=uploaded.version_id,
            )
            # The new one stands first: a failure in between leaves one schedule too many, which the next call removes.
            for old in before:
                self._client.delete_recurring_run(old.recurring_run_id)
            change = "replaced" if before else "created"
            return Started(new.recurring_run_id, self._schedule_url(new.recurring_run_id), change)

    def unschedule(self, pipeline: str, name: str) -> int:
        """Remove the schedules of this name; how many there were."""
        with self._asking(f"remove the schedule {name}"):
            found = self._listed(self._client.list_pipelines, "pipelines", pipeline, namespace=self.namespace)
            mine = self._schedules(found[0].pipeline_id if found else "", name)
            for old in mine:
                self._client.delete_recurring_run(old.recurring_run_id)
            return len(mine)

    def _schedule_url(self, schedule_id: str) -> str:
        return f"{self.host}/#/recurringrun/details/{schedule_id}"

    def _schedules(self, pipeline_id: str, name: str) -> list[Any]:
        found = self._listed(self._client.list_recurring_runs, "recurring_runs", name, namespace=self.namespace)
        for one in found:
            reference = one.pipeline_version_reference
            if reference is None or reference.pipeline_id != pipeline_id:
                raise Refused(
                    f"a schedule is replaced or removed only by the line it belongs to, but {name!r} is another pipeline's",
                    code="schedule_of_another",
                    where=f"{self.host}, schedule {one.recurring_run_id}",
                    cure="give --name another name",
                )
        return found

    def _version(self, pipeline_id: str, name: str) -> str | None:
        found = self._listed(self._client.list_pipeline_versions, "pipeline_versions", name, pipeline_id=pipeline_id)
        return found[0].pipeline_version_id if found else None

    def _new_pipeline(self, name: str, description: str) -> str:
        # The client's upload_pipeline would also make a version of the pipeline's own name.
        asked = self._client.api_models.V2beta1Pipeline(
            display_name=name, description=description, namespace=self.namespace
        )
        return str(self._client.pipelines.pipeline_service_create_pipeline(pipeline=asked).pipeline_id)

    def _experiment(self, name: str) -> str:
        return str(self._client.create_experiment(name, namespace=self.namespace).experiment_id)

    def _listed(self, ask: Callable[..., Any], what: str, name: str, **more: Any) -> list[Any]:
        """Everything of exactly this display name, page by page."""
        wanted = json.dumps({"predicates": [{"operation": "EQUALS", "key": "display_name", "stringValue": name}]})
        found: list[Any] = []
        token = ""
        while True:
            page = ask(page_token=token, page_size=_PAGE, filter=wanted, **more)
            found += getattr(page, what) or []
            token = page.next_page_token or ""
            if not token:
                return found

    @contextlib.contextmanager
    def _asking(self, what: str) -> Iterator[None]:
        """While it holds, kfp prints and warns nothing, and what fails is one of our errors."""
        try:
            with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
                warnings.simplefilter("ignore")
                yield
        except EsteiraError:
            raise
        except Exception as error:
            raise self._error(error, what) from error

    def _error(self, error: Exception, what: str) -> EsteiraError:
        import kfp_server_api
        import urllib3

        # The generated client trips over an answer that never came, and hides what happened.
        cause = error.__context__ if isinstance(error, AttributeError) and error.__context__ is not None else error
        status = getattr(cause, "status", None)
        if isinstance(cause, kfp_server_api.ApiException) and status:
            said = self._hidden(_said(cause))
            if status in {401, 403}:
                return ConfigError(
                    f"Kubeflow Pipelines must let us {what}, but answered {status}: {said}",
                    code="kfp_denied",
                    where=self.host,
                    cure="set ESTEIRA_KFP_TOKEN to a token that may do this, and ESTEIRA_KFP_NAMESPACE where users have"
                    " namespaces",
                )
            if 400 <= status < 500 and status not in {408, 429}:
                return Refused(
                    f"Kubeflow Pipelines was asked to {what}, and answered {status}: {said}",
                    code="kfp_refused",
                    where=self.host,
                    cure="correct what it names; `esteira compile LINE --check` looks at the pipeline itself",
                )
            return OutsideError(
                f"Kubeflow Pipelines was asked to {what}, and answered {status}: {said}",
                code="kfp_failed",
                where=self.host,
                cure="look at the server (ml-pipeline), then try again",
            )
        if isinstance(cause, (kfp_server_api.ApiException, urllib3.exceptions.HTTPError, OSError, TimeoutError)):
            why = getattr(cause, "reason", None) or cause
            return OutsideError(
                f"Kubeflow Pipelines must answer, but does not: {' '.join(self._hidden(str(why)).split())[:300]}",
                code="kfp_unreachable",
                where=self.host,
                cure="check --host (ESTEIRA_KFP_HOST), the network and the certificate (SSL_CERT_FILE); for a server in a"
                " cluster: kubectl port-forward -n kubeflow svc/ml-pipeline-ui 8080:80",
            )
        if isinstance(error, ValueError):
            return Refused(
                f"kfp's client was asked to {what}, and says: {self._hidden(str(error))[:300]}",
                code="kfp_refused",
                where=self.host,
                cure="correct what it names",
            )
        raise error

    def _hidden(self, text: str) -> str:
        return redact(text.replace(self._token, "***") if self._token else text)


def _said(error: Any) -> str:
    """What the server gave as its reason, on one line, without its stack."""
    body = error.body if isinstance(error.body, str) else ""
    try:
        document = json.loads(body)
    except ValueError:
        document = None
    if isinstance(document, Mapping):
        body = str(document.get("message") or document.get("error_message") or document.get("error") or body)
    return " ".join((body or str(error.reason)).split())[:400]


def _states(run: Any) -> dict[str, str]:
    """State of each step that KFP tells of, by our names; drivers and executors of its own are left out."""
    details = (run.run_details.task_details if run.run_details is not None else None) or []
    told = {one.display_name: str(one.state) for one in details if one.state}
    states = {step.name: told.get(step.name) or told.get(step.title) for step in STEPS}
    return {step: state for step, state in states.items() if state is not None}


def _outcome(run: Any, steps: dict[str, str]) -> Outcome:
    said = run.error.message if run.error is not None and run.error.message else ""
    failed = [step for step, state in steps.items() if state == "FAILED"]
    at = f"step {', '.join(failed)} failed; its log says why" if failed else ""
    return Outcome(_ENDED[run.state], steps, "; ".join(part for part in (at, " ".join(said.split())[:400]) if part))


def _alike(old: Any, uploaded: Uploaded, asked: Mapping[str, Any], cron: str) -> bool:
    schedule = old.trigger.cron_schedule if old.trigger is not None else None
    return (
        old.pipeline_version_reference.pipeline_version_id == uploaded.version_id
        and (old.runtime_config.parameters or {}) == dict(asked)
        and schedule is not None
        and schedule.cron == cron
        and (old.mode == "ENABLE" or old.status == "ENABLED")
    )
