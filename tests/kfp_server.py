"""A Kubeflow Pipelines API server (v2beta1) in a thread: what kfp's client calls, refusing what the real one refuses.

Its rules are those of the API server's sources (template/v2_template.go, server/pipeline_upload_server.go, job_server.go): the
IR is read by KFP's own protobuf schema, parameters are checked by the pipeline's definitions, cron by robfig's rules. It is
stricter in one thing: every unknown field or query parameter is refused. It runs no pipeline; a run ends as it is told to.
"""

import contextlib
import json
import re
import threading
import urllib.parse
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.parser import BytesParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import yaml

SCHEMA_VERSION = "2.1.0"
_NAME = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*"
_KINDS = {"pipelines": "pipeline", "runs": "run", "experiments": "experiment", "recurringruns": "recurring_run"}
_JSON_TYPES = {"str": str, "bool": bool, "datetime": str, "object": dict}
_PARAMETER_TYPES: Mapping[str, Any] = {
    "NUMBER_DOUBLE": (int, float),
    "NUMBER_INTEGER": (int, float),
    "STRING": str,
    "BOOLEAN": bool,
    "LIST": list,
    "STRUCT": dict,
}


class Refusal(Exception):
    """An answer that is no success: HTTP status and gRPC code."""

    def __init__(self, status: int, message: str, code: int = 3) -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code


@dataclass
class KfpServer:
    """The server's state; tests read it and say how runs go.

    Attributes:
        token: asked for where it is not empty.
        multi_user: whether a namespace must be said.
        states: of a run, one a look; the last one stays.
        failed: step that a run with state FAILED failed at.
        broken: answers 503 to so many requests about runs, then recovers.
        login_page: whether a proxy in front answers everything with its page.
        requests: method and path of each request, in order.
    """

    token: str = ""
    multi_user: bool = False
    states: Sequence[str] = ("PENDING", "RUNNING", "SUCCEEDED")
    failed: str = ""
    broken: int = 0
    login_page: bool = False
    requests: list[str] = field(default_factory=list)
    pipelines: dict[str, dict[str, Any]] = field(default_factory=dict)
    versions: dict[str, dict[str, Any]] = field(default_factory=dict)
    experiments: dict[str, dict[str, Any]] = field(default_factory=dict)
    runs: dict[str, dict[str, Any]] = field(default_factory=dict)
    recurring_runs: dict[str, dict[str, Any]] = field(default_factory=dict)
    looks: dict[str, int] = field(default_factory=dict)
    url: str = ""

    @contextlib.contextmanager
    def serving(self) -> Iterator["KfpServer"]:
        """Listen on a free port of the loopback until the block ends."""
        state = self

        class Handler(_Handler):
            server_state = state

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        self.url = f"http://127.0.0.1:{server.server_address[1]}"
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()
            thread.join()

    # ------------------------------------------------------------------------------------------ what it does

    def answer(self, method: str, path: str, query: dict[str, str], body: Any, file: bytes | None) -> dict[str, Any]:
        parts = path.removeprefix("/apis/v2beta1/").split("/")
        match method, *parts:
            case "GET", "healthz":
                return {"multi_user": self.multi_user, "pipeline_store": "database"}
            case "POST", "pipelines", "upload_version":
                _only(query, {"name", "display_name", "description", "pipelineid", "tags"})
                return self._upload_version(query, file)
            case "GET", "pipelines", pipeline, "versions":
                _only(query, {"page_token", "page_size", "sort_by", "filter"})
                self._one(self.pipelines, pipeline, "Pipeline")
                mine = [version for version in self.versions.values() if version["pipeline_id"] == pipeline]
                return _page(mine, query, "V2beta1ListPipelineVersionsResponse", "pipeline_versions")
            case "GET", "pipelines" | "experiments" | "recurringruns" as kind:
                _only(query, {"namespace", "page_token", "page_size", "sort_by", "filter", "experiment_id"})
                self._namespace(query.get("namespace"), always=kind != "pipelines")
                plural = _KINDS[kind] + "s"
                model = f"V2beta1List{plural.title().replace('_', '')}Response"
                return _page(list(getattr(self, plural).values()), query, model, plural)
            case "GET", "runs", run:
                return self._look(run)
            case "GET", "pipelines" | "experiments" | "recurringruns" as kind, one:
                return self._one(getattr(self, _KINDS[kind] + "s"), one, _KINDS[kind])
            case "POST", "pipelines":
                return self._create_pipeline(_conform(body, "V2beta1Pipeline"))
            case "POST", "experiments":
                asked = _conform(body, "V2beta1Experiment")
                self._namespace(asked.get("namespace"))
                return self._create(self.experiments, asked, "experiment")
            case "POST", "runs":
                return self._create_run(_conform(body, "V2beta1Run"))
            case "POST", "recurringruns":
                return self._create_recurring_run(_conform(body, "V2beta1RecurringRun"))
            case "DELETE", "pipelines", pipeline:
                self._one(self.pipelines, pipeline, "Pipeline")
                if any(version["pipeline_id"] == pipeline for version in self.versions.values()):
                    raise Refusal(400, f"Failed to delete pipeline {pipeline}: it has versions", 9)
                return self.pipelines.pop(pipeline) and {}
            case "DELETE", "recurringruns", one:
                self._one(self.recurring_runs, one, "Recurring run")
                return self.recurring_runs.pop(one) and {}
        raise Refusal(404, f"Not Found: {method} {path}", 5)

    def _one(self, kept: dict[str, dict[str, Any]], key: str, what: str) -> dict[str, Any]:
        if key not in kept:
            raise Refusal(404, f"ResourceNotFoundError: {what} {key} not found", 5)
        return kept[key]

    def _namespace(self, namespace: str | None, *, always: bool = True) -> None:
        if self.multi_user and always and not namespace:
            raise Refusal(400, "Invalid input error: Namespace is empty in multi-user mode")
        if not self.multi_user and namespace:
            raise Refusal(400, f"Invalid input error: In single-user mode, namespace must be empty, got {namespace}")

    def _create(self, kept: dict[str, dict[str, Any]], asked: dict[str, Any], kind: str, **more: Any) -> dict[str, Any]:
        name = asked.get("display_name", "")
        if not name:
            raise Refusal(400, f"Invalid input error: {kind} name is empty")
        if any(other["display_name"] == name for other in kept.values()):
            raise Refusal(409, f"Already exist error: The name {name} already exist. Please specify a new name", 6)
        one = {**asked, f"{kind}_id": str(uuid.uuid4()), "created_at": datetime.now(UTC).isoformat(), **more}
        kept[one[f"{kind}_id"]] = one
        return one

    def _create_pipeline(self, asked: dict[str, Any]) -> dict[str, Any]:
        self._namespace(asked.get("namespace"), always=False)
        if len(asked.get("display_name", "")) > 128:
            raise Refusal(400, "Invalid input error: Pipeline.Name length cannot exceed 128")
        return self._create(self.pipelines, asked, "pipeline")

    def _upload_version(self, query: dict[str, str], file: bytes | None) -> dict[str, Any]:
        if file is None:
            raise Refusal(400, "Failed to create a pipeline version. Error parsing pipeline spec filename")
        pipeline = query.get("pipelineid", "")
        if pipeline not in self.pipelines:
            raise Refusal(400, "Failed to create a pipeline version")
        name = query.get("display_name") or query.get("name", "")
        mine = {key: version for key, version in self.versions.items() if version["pipeline_id"] == pipeline}
        spec, platform = read_ir(file)
        version = self._create(
            mine, {"display_name": name, "description": query.get("description", "")}, "pipeline_version",
            pipeline_id=pipeline, pipeline_spec={"pipeline_spec": spec, "platform_spec": platform},
        )  # fmt: skip
        self.versions[version["pipeline_version_id"]] = version
        return version

    def _spec_of(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        reference = asked.get("pipeline_version_reference") or {}
        self._one(self.pipelines, reference.get("pipeline_id", ""), "Pipeline")
        version = self._one(self.versions, reference.get("pipeline_version_id", ""), "PipelineVersion")
        spec: dict[str, Any] = version["pipeline_spec"]["pipeline_spec"]
        return spec

    def _create_run(self, asked: dict[str, Any]) -> dict[str, Any]:
        self._one(self.experiments, asked.get("experiment_id", ""), "Experiment")
        check_parameters(self._spec_of(asked), (asked.get("runtime_config") or {}).get("parameters") or {})
        if not asked.get("display_name"):
            raise Refusal(400, "Invalid input error: run name is empty")
        run = {
            **asked,
            "run_id": str(uuid.uuid4()),
            "state": self.states[0],
            "created_at": datetime.now(UTC).isoformat(),
        }
        self.runs[run["run_id"]] = run
        return run

    def _create_recurring_run(self, asked: dict[str, Any]) -> dict[str, Any]:
        self._one(self.experiments, asked.get("experiment_id", ""), "Experiment")
        check_parameters(self._spec_of(asked), (asked.get("runtime_config") or {}).get("parameters") or {})
        if not 1 <= int(asked.get("max_concurrency", 0)) <= 10:
            raise Refusal(
                400, "Invalid input error: Max concurrency of a recurring run must be at least 1 and at most 10"
            )
        schedule = (asked.get("trigger") or {}).get("cron_schedule")
        if schedule is not None:
            check_cron(schedule.get("cron", ""))
        if not asked.get("display_name"):
            raise Refusal(400, "Invalid input error: Recurring run name is empty. Please specify a valid name")
        # The real server lets two schedules have one name.
        status = "ENABLED" if asked.get("mode") == "ENABLE" else "DISABLED"
        one = {**asked, "recurring_run_id": str(uuid.uuid4()), "status": status}
        self.recurring_runs[one["recurring_run_id"]] = one
        return one

    def _look(self, run_id: str) -> dict[str, Any]:
        run = self._one(self.runs, run_id, "Run")
        if self.broken > 0:
            self.broken -= 1
            raise Refusal(503, "upstream connect error or disconnect/reset before headers", 14)
        look = self.looks.get(run_id, 0)
        self.looks[run_id] = look + 1
        run["state"] = self.states[min(look, len(self.states) - 1)]
        spec = self.versions[run["pipeline_version_reference"]["pipeline_version_id"]]["pipeline_spec"]["pipeline_spec"]
        tasks = list(spec["root"]["dag"]["tasks"])
        details = [
            {"display_name": "root", "state": run["state"]},
            {"display_name": "root-driver", "state": "SUCCEEDED"},
        ]
        for name in tasks:
            state = {"PENDING": "PENDING", "RUNNING": "RUNNING", "SUCCEEDED": "SUCCEEDED"}.get(run["state"], "SKIPPED")
            details.append({"display_name": name, "state": "FAILED" if _failed(run, self.failed, name) else state})
        run["run_details"] = {"task_details": details}
        if run["state"] == "FAILED":
            run["error"] = {"code": 13, "message": "main: Error (exit code 1)"}
        return run


def _failed(run: Mapping[str, Any], failed: str, name: str) -> bool:
    return bool(run["state"] == "FAILED" and name == failed)


# ---------------------------------------------------------------------------------------------- its rules


def read_ir(content: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    """The two documents of an uploaded IR, checked as the API server and its Argo compiler do."""
    from google.protobuf import json_format
    from kfp.kubernetes import kubernetes_executor_config_pb2 as kubernetes
    from kfp.pipeline_spec import pipeline_spec_pb2 as schema

    def parse(document: Any, message: Any, what: str) -> Any:
        try:
            return json_format.ParseDict(document, message, ignore_unknown_fields=False)
        except (json_format.ParseError, TypeError, ValueError, AttributeError) as error:
            raise Refusal(400, f"Invalid input error: {what}: {error}") from error

    spec, platform = None, None
    try:
        documents = list(yaml.safe_load_all(content))
    except yaml.YAMLError as error:
        raise Refusal(400, f"Invalid input error: unable to decode yaml document: {error}") from error
    for document in documents:
        if document is None:
            continue
        if isinstance(document, dict) and {"pipelineInfo", "root"} & set(document):
            if spec is not None:
                raise Refusal(400, "Invalid input error: multiple pipeline specs provided")
            spec = document
        elif isinstance(document, dict) and "platforms" in document:
            if platform is not None:
                raise Refusal(400, "Invalid input error: multiple platform specs provided")
            platform = document
        else:
            raise Refusal(400, "Invalid input error: a document is neither a pipeline spec nor a platform spec")
    if spec is None:
        raise Refusal(400, "Invalid input error: no pipeline spec is provided")
    read = parse(spec, schema.PipelineSpec(), "invalid v2 pipeline spec")
    parse(spec.get("deploymentSpec", {}), schema.PipelineDeploymentConfig(), "invalid deployment spec")
    if read.schema_version != SCHEMA_VERSION:
        said = f"KFP only supports schema version 2.1.0, but the pipeline spec has version {read.schema_version}"
        raise Refusal(400, f"Invalid input error: {said}")
    if not re.fullmatch(_NAME, read.pipeline_info.name):
        raise Refusal(
            400, "Invalid input error: invalid v2 pipeline spec: name should consist of lower case alphanumerics"
        )
    if not read.HasField("root"):
        raise Refusal(400, "Invalid input error: invalid v2 pipeline spec: root component is empty")
    parse(platform or {}, schema.PlatformSpec(), "cannot unmarshal platform specific configs")
    for name, task in spec["root"].get("dag", {}).get("tasks", {}).items():
        component = spec.get("components", {}).get(task.get("componentRef", {}).get("name", ""))
        if component is None:
            raise Refusal(400, f"Invalid input error: task {name}: component not found")
        if component.get("executorLabel") not in spec.get("deploymentSpec", {}).get("executors", {}):
            raise Refusal(400, f"Invalid input error: task {name}: executor not found")
    for one in (platform or {}).get("platforms", {}).values():
        for label, config in one.get("deploymentSpec", {}).get("executors", {}).items():
            parse(config, kubernetes.KubernetesExecutorConfig(), f"failed to unmarshal kubernetes config of {label}")
    return spec, platform or {}


def check_parameters(spec: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """A run's parameters against the pipeline's definitions."""
    wanted = spec["root"].get("inputDefinitions", {}).get("parameters", {})
    for name, definition in wanted.items():
        if name not in given:
            if not definition.get("isOptional") and "defaultValue" not in definition:
                said = f"parameter {name} is not optional, yet has neither default value nor user provided value"
                raise Refusal(400, f"invalid pipeline job inputs: Invalid input error: {said}")
            continue
        kind = definition["parameterType"]
        right = isinstance(given[name], _PARAMETER_TYPES[kind])
        if not right or (kind.startswith("NUMBER") and isinstance(given[name], bool)):
            said = f"input parameter {name} requires type {kind}, but the parameter value is not of that type"
            raise Refusal(400, f"invalid pipeline job inputs: Invalid input error: {said}")
    extra = sorted(set(given) - set(wanted))
    if extra:
        said = f"parameter(s) provided are not required by pipeline: {', '.join(extra)}"
        raise Refusal(400, f"invalid pipeline job inputs: Invalid input error: {said}")


def check_cron(text: str) -> None:
    """robfig/cron of version 1: seconds first, five fields (no weekday) or six, or a word with @."""
    told = "Schedule cron is not a supported format(https://godoc.org/github.com/robfig/cron). Error: "
    words = ("@yearly", "@annually", "@monthly", "@weekly", "@daily", "@midnight", "@hourly")
    if text.startswith("@"):
        if text not in words and not re.fullmatch(r"@every (\d+(ns|us|ms|s|m|h))+", text):
            raise Refusal(400, f"Invalid input error: {told}Unrecognized descriptor: {text}")
        return
    fields = text.split()
    if not 5 <= len(fields) <= 6:
        raise Refusal(400, f"Invalid input error: {told}Expected 5 to 6 fields, found {len(fields)}: {text}")
    months = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]
    days = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"]
    ranges = ((0, 59, []), (0, 59, []), (0, 23, []), (1, 31, []), (1, 12, months), (0, 6, days))
    for value, (low, high, names) in zip(fields, ranges, strict=False):
        for part in value.split(","):
            match = re.fullmatch(r"(\*|\?|(\w+)(?:-(\w+))?)(?:/(\d+))?", part)
            ends = [] if match is None else [end for end in (match[2], match[3]) if end is not None]
            numbers = [
                low + names.index(end.lower()) if end.lower() in names else int(end) if end.isdigit() else -1
                for end in ends
            ]
            if match is None or any(not low <= number <= high for number in numbers) or numbers != sorted(numbers):
                raise Refusal(400, f"Invalid input error: {told}Failed to parse {part!r} of {text}")


def _conform(document: Any, model: str) -> dict[str, Any]:
    """A body as the API's own model defines it: no unknown field, each value of its type."""
    import kfp_server_api.models as models

    if not isinstance(document, dict):
        raise Refusal(400, f"{model}: a JSON object is expected")
    kind = getattr(models, model)
    types = {kind.attribute_map[name]: found for name, found in kind.openapi_types.items()}
    for name, value in document.items():
        if name not in types:
            raise Refusal(400, f'proto: unknown field "{name}" in {model}')
        expected = types[name]
        if expected in _JSON_TYPES:
            # protojson takes a 64-bit integer as a number or as text.
            number = model == "V2beta1RecurringRun" and name == "max_concurrency" and isinstance(value, int)
            if not isinstance(value, _JSON_TYPES[expected]) and not number:
                raise Refusal(400, f"proto: invalid value for {expected} field {name} of {model}: {value!r}")
        elif hasattr(models, expected):
            if getattr(getattr(models, expected), "allowable_values", None):
                if value not in getattr(models, expected).allowable_values:
                    raise Refusal(400, f"proto: invalid value for enum field {name} of {model}: {value!r}")
            else:
                _conform(value, expected)
        elif not isinstance(value, list if expected.startswith("list") else dict):
            raise Refusal(400, f"proto: invalid value for field {name} of {model}: {value!r}")
    return document


def _only(query: Mapping[str, str], known: set[str]) -> None:
    unknown = sorted(set(query) - known)
    if unknown:
        raise Refusal(400, f"unknown query parameter: {', '.join(unknown)}")


def _page(rows: list[dict[str, Any]], query: Mapping[str, str], model: str, what: str) -> dict[str, Any]:
    import kfp_server_api.models as models

    # The JSON name of the same list differs from one message to another: recurringRuns, but pipeline_versions.
    what = getattr(models, model).attribute_map[what]
    for predicate in json.loads(query.get("filter") or "{}").get("predicates", []):
        if set(predicate) != {"operation", "key", "stringValue"} or predicate["operation"] not in {1, "EQUALS"}:
            raise Refusal(400, f"Invalid input error: unsupported filter: {predicate}")
        if predicate["key"] not in {"display_name", "name"}:
            raise Refusal(
                400, f"Invalid input error: no support for filtering on unrecognized field {predicate['key']}"
            )
        rows = [row for row in rows if row["display_name"] == predicate["stringValue"]]
    start, size = int(query.get("page_token") or 0), min(int(query.get("page_size") or 10), 200)
    more = {"next_page_token": str(start + size)} if start + size < len(rows) else {}
    return {what: rows[start : start + size], "total_size": len(rows), **more} if rows else {}


class _Handler(BaseHTTPRequestHandler):
    server_state: KfpServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def _handle(self) -> None:
        state = self.server_state
        address = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(address.query))
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        state.requests.append(f"{self.command} {address.path}")
        try:
            if state.token and self.headers.get("Authorization") != f"Bearer {state.token}":
                raise Refusal(401, "Request header error: there is no user identity header", 16)
            file, body = None, None
            if "multipart/form-data" in self.headers.get("Content-Type", ""):
                file = _file_of(self.headers["Content-Type"], content)
            elif content:
                body = json.loads(content)
            status, document = 200, state.answer(self.command, address.path, query, body, file)
        except Refusal as error:
            told = {"error": error.message, "code": error.code, "message": error.message, "details": []}
            status, document = error.status, told
        except ValueError as error:
            status, document = 400, {"error": str(error), "code": 3, "message": str(error), "details": []}
        answer, kind = json.dumps(document).encode(), "application/json"
        if state.login_page:
            status, answer, kind = 200, b"<html>please log in</html>", "text/html; charset=utf-8"
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(answer)))
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # who asked did not wait
            self.end_headers()
            self.wfile.write(answer)

    do_GET = do_POST = do_DELETE = _handle


def _file_of(content_type: str, content: bytes) -> bytes | None:
    message = BytesParser().parsebytes(b"Content-Type: " + content_type.encode() + b"\r\n\r\n" + content)
    for part in message.get_payload() if message.is_multipart() else ():
        if part.get_param("name", header="content-disposition") == "uploadfile":
            return part.get_payload(decode=True)
    return None
