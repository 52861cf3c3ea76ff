"""Which route a path is, and what its method, query and headers may be. Answers nothing."""

import sys
from collections.abc import Mapping, Sequence
from typing import NamedTuple
from urllib.parse import parse_qs

from serving.asgi import Scope
from serving.problems import Problem


class Route(NamedTuple):
    """A route of ours.

    Attributes:
        name: of a fixed list, the label of the metrics: `livez`, `readyz`, `health`, `metrics`, `openapi`, `predict`, `model`,
            `feedback`, `rollout`, `models`, `batch-predict`, `batch-predictions`, `bento`, `none`.
        line: the line that it is about; empty when it is about none.
    """

    name: str
    line: str = ""


NONE = Route("none")
BENTO = Route("bento")
BATCH_PREDICT = Route("batch-predict")
BATCH_PREDICTIONS = Route("batch-predictions")
MODELS = Route("models")
VERBS = ("start", "pause", "resume", "promote", "rollback")
"""What may be done with a rollout: the last part of its route."""


def table(lines: Sequence[str]) -> dict[str, Route]:
    """Path -> route of every path that is known before a request comes."""
    routes = {f"/{name}": Route(name) for name in ("livez", "readyz", "health", "metrics")}
    routes["/openapi.json"] = Route("openapi")
    routes["/v1/models"] = MODELS
    for line in lines:
        routes[f"/v1/{line}/predict"] = Route("predict", line)
        routes[f"/v1/{line}/model"] = Route("model", line)
        routes[f"/v1/{line}/feedback"] = Route("feedback", line)
        for path in (f"/v1/{line}/rollout", *(f"/v1/{line}/rollout/{verb}" for verb in VERBS)):
            routes[path] = Route("rollout", line)
    if len(lines) == 1:
        routes["/v1/predict"] = Route("predict", lines[0])
        routes["/v1/feedback"] = Route("feedback", lines[0])
    return routes


def unknown(path: str, lines: Sequence[str]) -> Problem:
    """Why a path below /v1/ is no route."""
    names = ", ".join(lines[:10]) + (" ..." if len(lines) > 10 else "")
    if path in ("/v1/predict", "/v1/feedback"):
        return Problem(
            404,
            "which_line",
            f"this service has several lines: POST /v1/LINE/{path[4:]}, LINE one of {names}",
            field="line",
        )
    line, _, verb = path.removeprefix("/v1/").partition("/")
    if verb.partition("/")[0] in ("predict", "model", "feedback", "rollout") and line not in lines:
        return Problem(404, "unknown_line", f"this service has the lines {names}", field="line")
    return Problem(404, "no_route", "there is POST /v1/LINE/predict and GET /v1/LINE/model; see /openapi.json")


def no_registry() -> Problem:
    """What a service says that answers from one bundle: nothing is registered there, so there is nothing to steer."""
    return Problem(
        404,
        "no_registry",
        "this service answers from one bundle and knows neither versions nor rollouts",
        where="ESTEIRA_LINES",
        cure="ask a service of lines (ESTEIRA_LINES, or `esteira serve LINE`)",
    )


def must_be(scope: Scope, wanted: str) -> None:
    """Hold a request to its route's method; GET allows HEAD.

    Raises:
        Problem: 405.
    """
    method = scope["method"]
    if method != wanted and not (wanted == "GET" and method == "HEAD"):
        allowed = "GET, HEAD" if wanted == "GET" else wanted
        raise Problem(
            405, "method", f"this route takes {allowed}, but got {method[:20]}", headers=[(b"allow", allowed.encode())]
        )


def version_of(query: bytes) -> int | None:
    """The version that a query asks for.

    Raises:
        Problem: 422 for anything else in it.
    """
    asked = parse_qs(query.decode("latin-1"), keep_blank_values=True)
    for name in asked:
        if name != "version":
            raise Problem(422, "unknown_field", f"the query has only 'version', but got {name[:80]!r}", field=name[:80])
    text = asked.get("version", [""])[-1]
    if not asked:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise Problem(422, "wrong_type", "'version' is a whole number", field="version")
    return int(text)


_ONCE = (b"authorization", b"content-type", b"content-encoding", b"x-esteira-key", b"x-request-id", b"x-unit-id")


def refuse_twice(headers: Sequence[tuple[bytes, bytes]]) -> None:
    """Refuse headers that stand twice where one counts: a proxy may have looked at the other one.

    Raises:
        Problem: 400.
    """
    names = [name for name, _ in headers]
    for name in _ONCE:
        if names.count(name) > 1:
            said = name.decode()
            raise Problem(400, "duplicate_header", f"a request has one header {said!r}, but got more", field=said)


# Besides JSON's own name: what `curl -d` says when it is told nothing. The body must be JSON all the same.
_JSON = frozenset({b"application/json", b"application/x-www-form-urlencoded"})


def declared_length(headers: Mapping[bytes, bytes]) -> int:
    """Content-Length; 0 when it is not known."""
    length = headers.get(b"content-length")
    if length is None or not length.isdigit():
        return 0
    return int(length) if len(length) < 19 else sys.maxsize  # Python reads no number of thousands of digits


def must_be_json(headers: Mapping[bytes, bytes]) -> None:
    """Hold a body to what it must be called.

    Raises:
        Problem: 415.
    """
    content_type = headers.get(b"content-type")
    if content_type is not None and content_type not in _JSON:
        bare = content_type.partition(b";")[0].strip().lower()
        if bare not in _JSON:
            raise Problem(415, "not_json", "send Content-Type: application/json", field="content-type")
    encoding = headers.get(b"content-encoding")
    if encoding is not None and encoding.lower() != b"identity":
        raise Problem(415, "encoded", "send the body without Content-Encoding", field="content-encoding")
