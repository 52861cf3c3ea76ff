"""An API server of Kubernetes in little, for the Gateway API: refuses what the real one refuses, in its words and by its statuses.

It knows one HTTPRoute and the EndpointSlices of its namespace: verbs, paths, the token, content types, unknown query parameters,
a schema that refuses unknown fields and weights out of range, and a patch of a version that is no longer there.
"""

import contextlib
import copy
import json
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

TOKEN = "a-token-of-the-tests"
NAMESPACE, NAME = "esteira-production", "esteira"
ROUTE = f"/apis/gateway.networking.k8s.io/v1/namespaces/{NAMESPACE}/httproutes/{NAME}"
SLICES = f"/apis/discovery.k8s.io/v1/namespaces/{NAMESPACE}/endpointslices"


def _object(required: tuple[str, ...] = (), **properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


def _list(items: Any, most: int) -> dict[str, Any]:
    return {"type": "array", "items": items, "maxItems": most}


_TEXT = {"type": "string", "minLength": 1, "maxLength": 253}
_PORT = {"type": "integer", "minimum": 1, "maximum": 65535}
_ANYTHING = {"type": "object"}
_MATCH = _object(
    path=_object(
        type={"enum": ["Exact", "PathPrefix", "RegularExpression"]}, value={"type": "string", "maxLength": 1024}
    ),
    headers=_list(
        _object(("name", "value"), type={"enum": ["Exact", "RegularExpression"]}, name=_TEXT, value=_TEXT), 16
    ),
    queryParams=_list(
        _object(("name", "value"), type={"enum": ["Exact", "RegularExpression"]}, name=_TEXT, value=_TEXT), 16
    ),
    method={"enum": ["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"]},
)
_BACKEND = _object(
    ("name",), group={"type": "string", "maxLength": 253}, kind=_TEXT, name=_TEXT, namespace=_TEXT, port=_PORT,
    weight={"type": "integer", "minimum": 0, "maximum": 1_000_000}, filters=_list(_ANYTHING, 16),
)  # fmt: skip
_PARENT = _object(("name",), group=_TEXT, kind=_TEXT, name=_TEXT, namespace=_TEXT, sectionName=_TEXT, port=_PORT)
HTTP_ROUTE = _object(
    ("apiVersion", "kind", "spec"),
    apiVersion={"const": "gateway.networking.k8s.io/v1"},
    kind={"const": "HTTPRoute"},
    metadata=_ANYTHING,
    status=_ANYTHING,
    spec=_object(
        parentRefs=_list(_PARENT, 32),
        hostnames=_list(_TEXT, 16),
        rules={
            **_list(
                _object(
                    name=_TEXT, matches=_list(_MATCH, 64), filters=_list(_ANYTHING, 16), backendRefs=_list(_BACKEND, 16),
                    timeouts=_object(request={"type": "string"}, backendRequest={"type": "string"}),
                ),
                16,
            ),
            "minItems": 1,
        },
    ),
)  # fmt: skip
"""The fields of HTTPRoute v1 (standard channel) that matter here; a port of a Service is required by a rule of its own."""


def complaint(route: dict[str, Any]) -> str:
    """What the schema says against a route; empty when it is one."""
    from jsonschema import Draft202012Validator

    for error in Draft202012Validator(HTTP_ROUTE).iter_errors(route):
        return f"{'.'.join(map(str, error.absolute_path))}: {error.message}"
    for rule in route["spec"].get("rules", []):
        for ref in rule.get("backendRefs", []):
            if ref.get("kind", "Service") == "Service" and "port" not in ref:
                return f"backend {ref['name']}: must have port for Service reference"
    return ""


def merged(target: Any, patch: Any) -> Any:
    """RFC 7386."""
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    found = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            found.pop(key, None)
        else:
            found[key] = merged(found.get(key), value)
    return found


class Cluster:
    """What the API server keeps.

    Attributes:
        route: as it is now.
        asked: (verb, path, body) of what came, refused or not.
        failures: what to say instead, once each: a status, `hang`, `drop`, `garbage` or `ignore` (200, but nothing changes).
        before_patch: called before each patch is looked at: somebody else who writes.
    """

    def __init__(self) -> None:
        self.route: dict[str, Any] = {
            "apiVersion": "gateway.networking.k8s.io/v1",
            "kind": "HTTPRoute",
            "metadata": {"name": NAME, "namespace": NAMESPACE, "resourceVersion": "100", "generation": 1, "uid": "u"},
            "spec": {
                "parentRefs": [{"name": "esteira"}],
                "rules": [
                    {
                        "matches": [{"path": {"type": "PathPrefix", "value": "/v1/"}}],
                        "backendRefs": [
                            {"group": "", "kind": "Service", "name": "esteira-serving", "port": 80, "weight": 10000},
                            {
                                "group": "",
                                "kind": "Service",
                                "name": "esteira-serving-challenger",
                                "port": 80,
                                "weight": 0,
                            },
                        ],
                    },
                    {
                        "matches": [{"path": {"type": "PathPrefix", "value": "/docs/"}}],
                        "backendRefs": [{"group": "", "kind": "Service", "name": "pages", "port": 80, "weight": 7}],
                    },
                ],
            },
        }
        self.endpoints: list[dict[str, Any]] = [{"addresses": ["10.0.0.9"], "conditions": {"ready": True}}]
        self.asked: list[tuple[str, str, Any]] = []
        self.failures: deque[Any] = deque()
        self.before_patch: Callable[[], None] = lambda: None
        self.lock = threading.Lock()
        self.address = ""

    def touch(self, change: Callable[[dict[str, Any]], None]) -> None:
        """Somebody else changes the route."""
        change(self.route)
        self._bump()

    def _bump(self) -> None:
        self.route["metadata"]["resourceVersion"] = str(int(self.route["metadata"]["resourceVersion"]) + 1)

    def weights(self) -> list[int]:
        return [ref["weight"] for ref in self.route["spec"]["rules"][0]["backendRefs"]]

    @property
    def patches(self) -> list[Any]:
        return [body for verb, _, body in self.asked if verb == "PATCH"]

    def answer(self, verb: str, url: str, headers: Any, body: bytes) -> tuple[int, Any]:
        parts = urlsplit(url)
        path, query = parts.path, {name: values[0] for name, values in parse_qs(parts.query).items()}
        document = json.loads(body) if body else None
        with self.lock:
            self.asked.append((verb, path, document))
            if headers.get("authorization") != f"Bearer {TOKEN}":
                return 401, _status(401, "Unauthorized", "Unauthorized")
            if self.failures and (failure := self.failures.popleft()) is not None:
                if isinstance(failure, int):
                    return failure, _status(failure, "Made", f"made to say {failure}")
                if failure != "ignore":
                    return 0, failure
                return 200, copy.deepcopy(self.route)
            if path == SLICES:
                return self._slices(verb, query)
            if path != ROUTE:
                return 404, _status(404, "NotFound", f'httproutes.gateway.networking.k8s.io "{path}" not found')
            if verb == "GET":
                return (
                    (400, _status(400, "BadRequest", "unknown parameter"))
                    if query
                    else (200, copy.deepcopy(self.route))
                )
            if verb == "PATCH":
                return self._patch(query, headers, document)
            return 405, _status(
                405, "MethodNotAllowed", "the server does not allow this method on the requested resource"
            )

    def _slices(self, verb: str, query: dict[str, str]) -> tuple[int, Any]:
        if verb != "GET" or set(query) != {"labelSelector"}:
            return 405, _status(405, "MethodNotAllowed", "not here")
        label, _, service = query["labelSelector"].partition("=")
        assert "kubernetes.io/service-name" == label
        mine = self.endpoints if service == "esteira-serving-challenger" else []
        items = [
            {
                "metadata": {"name": "challenger-abc", "namespace": NAMESPACE},
                "addressType": "IPv4", "endpoints": mine, "ports": [{"name": "http", "port": 8080}],
            }
        ]  # fmt: skip
        return 200, {"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSliceList", "metadata": {}, "items": items}

    def _patch(self, query: dict[str, str], headers: Any, document: Any) -> tuple[int, Any]:
        self.before_patch()
        if headers.get("content-type") != "application/merge-patch+json":
            # As for every custom resource: no strategic merge.
            return 415, _status(415, "UnsupportedMediaType", "the body of the request was in an unknown format")
        if not set(query) <= {"fieldManager", "fieldValidation", "dryRun", "force"}:
            return 400, _status(400, "BadRequest", "unknown parameter")
        given = document.get("metadata", {}).get("resourceVersion")
        if given is not None and given != self.route["metadata"]["resourceVersion"]:
            words = f'Operation cannot be fulfilled on httproutes.gateway.networking.k8s.io "{NAME}": the object has been modified'
            return 409, _status(409, "Conflict", words)
        wanted = merged(self.route, document)
        if said := complaint(wanted):
            return 422, _status(422, "Invalid", f'HTTPRoute.gateway.networking.k8s.io "{NAME}" is invalid: {said}')
        if wanted != self.route:
            if wanted["spec"] != self.route["spec"]:
                wanted["metadata"]["generation"] += 1
            self.route = wanted
            self._bump()
        return 200, copy.deepcopy(self.route)


def _status(code: int, reason: str, message: str) -> dict[str, Any]:
    return {
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": code, "reason": reason,
        "message": message,
    }  # fmt: skip


@contextlib.contextmanager
def running(kubeconfig: Path) -> Iterator[Cluster]:
    """The server on a free port, and the file that names it."""
    cluster = Cluster()
    ended = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def reply(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            headers = {name.lower(): value for name, value in self.headers.items()}
            status, document = cluster.answer(self.command, self.path, headers, body)
            if status == 0:
                self.close_connection = True
                if document == "hang":
                    ended.wait(30)
                    return
                if document == "drop":
                    return
                content = b"<html>a proxy's page</html>"
                status = 200
            else:
                content = json.dumps(document).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_PATCH = do_PUT = do_POST = do_DELETE = reply

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    cluster.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    kubeconfig.write_text(
        json.dumps(
            {
                "apiVersion": "v1", "kind": "Config", "current-context": "tests",
                "contexts": [{"name": "tests", "context": {"cluster": "tests", "user": "tests"}}],
                "clusters": [{"name": "tests", "cluster": {"server": cluster.address}}],
                "users": [{"name": "tests", "user": {"token": TOKEN}}],
            }
        )
    )  # fmt: skip
    try:
        yield cluster
    finally:
        ended.set()
        time.sleep(0.05)
        server.shutdown()
        server.server_close()
        thread.join(5)
