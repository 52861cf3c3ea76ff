"""Describes the HTTP API as an OpenAPI 3.1 document, each line's row by its own contract. Pure.

It promises what the service keeps: schemathesis asks the running service by this document and finds nothing
(tests/test_openapi.py).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from serving import shapes
from serving.row_schema import row_schema

Json = dict[str, Any]

_REASONS: Mapping[str, str] = {
    "400": "not strict JSON: NaN, Infinity, a key twice; or a header twice",
    "401": "no key, or a wrong one",
    "403": "this key may not",
    "404": "no such line, version, answer or job",
    "405": "another method",
    "408": "the body came too slowly",
    "409": "not in this state",
    "413": "the body is too large",
    "415": "not application/json, or encoded",
    "422": "what was sent breaks the contract; `error.field` and `error.row` name the first break, `error.details` more",
    "429": "too much at once; ask again after Retry-After",
    "500": "our fault; the request id finds the cause in the log",
    "503": "no model is deployed, what it needs is away, or too much at once",
    "504": "computing took too long",
}
# What every route behind the key may answer, and what a body may bring.
_KEYED = ("400", "401", "405", "500", "503")
_SENT = ("408", "413", "415", "422")
_SAYS = (
    "Predictions of released model lines. Every error of a route that takes the key has one form, `Error`. Before a request is "
    "read, its connection may be answered 400, 408, 414, 431 or 503 in the same form."
)
_ASKED: Json = {"request_id": "order-17", "timestamp": "2026-01-31T10:20:30.000Z"}


def describe_api(
    lines: Mapping[str, Mapping[str, Any] | None],
    max_rows: int,
    *,
    examples: Mapping[str, Mapping[str, Any] | None] | None = None,
    health: bool = False,
    jobs: bool = False,
    feedback: bool = False,
    control: bool = False,
) -> Json:
    """The document.

    Args:
        lines: line -> `schema` of its manifest (a table's contract where it has `columns`), None when nothing is loaded.
        max_rows: rows in one request.
        examples: line -> `{"row", "answer", "envelope"}`: a golden pair of its bundle, and what the service says around answers;
            the last two may be left out.
        health: there is `/health`.
        jobs: there are batch predictions.
        feedback: truths are taken.
        control: rollouts are steered, and versions shown.
    """
    paths: Json = {}
    for line, schema in lines.items():
        predict = _predict(line, row_schema(schema), max_rows, (examples or {}).get(line))
        if len(lines) == 1:
            paths["/v1/predict"] = {"post": {**predict, "operationId": "predict"}}
        paths[f"/v1/{line}/predict"] = {"post": predict}
        paths[f"/v1/{line}/model"] = {"get": _model(line)}
        if feedback:
            paths[f"/v1/{line}/feedback"] = {"post": _feedback(line)}
            if len(lines) == 1:
                paths["/v1/feedback"] = {"post": {**_feedback(line), "operationId": "feedback"}}
        if control:
            paths |= _rollout(line)
    paths |= _probes()
    if health:
        paths["/health"] = {"get": _health()}
    if jobs:
        paths |= _jobs(next(iter(lines), None))
    if control:
        paths |= _models()
    paths["/metrics"] = {"get": _metrics()}
    paths["/openapi.json"] = {"get": _document()}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Esteira",
            "version": "1",
            "description": _SAYS,
        },
        "security": [{"key": []}],
        "paths": paths,
        "components": {
            "securitySchemes": {
                "key": {"type": "http", "scheme": "bearer", "description": "Authorization: Bearer KEY"},
                **({"named": _NAMED} if control else {}),
            },
            "schemas": {"Answer": shapes.ANSWER, "Error": shapes.ERROR} | ({"Job": shapes.JOB} if jobs else {}),
        },
    }


# Routes


def _predict(line: str, row: Json, max_rows: int, example: Mapping[str, Any] | None) -> Json:
    body: Json = {
        "schema": {
            "type": "object",
            "additionalProperties": False,
            "required": ["rows"],
            "properties": {"rows": {"type": "array", "minItems": 1, "maxItems": max_rows, "items": row}},
        }
    }
    operation = _operation(
        f"predict {line}",
        f"Predict rows of {line}.",
        _ref("Answer"),
        (*_KEYED, *_SENT, "403", "404", "429", "504"),
    )
    answered = operation["responses"]["200"]
    answered["description"] = "one answer a row, in the order of the rows"
    if example is not None:
        body["examples"] = {"golden": {"summary": "a row that the bundle carries", "value": {"rows": [example["row"]]}}}
        if example.get("answer") and example.get("envelope"):
            value = {**example["envelope"], **_ASKED, "rows": [example["answer"]]}
            answered["content"]["application/json"]["examples"] = {"golden": {"summary": "its answer", "value": value}}
    operation["requestBody"] = {"required": True, "content": {"application/json": body}}
    operation["parameters"] = [shapes.VERSION, shapes.UNIT_ID, shapes.REQUEST_ID]
    answered["headers"]["X-Esteira-Arm"] = _header("X-Esteira-Arm")
    return operation


def _feedback(line: str) -> Json:
    operation = _operation(
        f"feedback {line}",
        f"The truth of an answer of {line} that a rollout gave; it counts once.",
        shapes.LABELLED,
        (*_KEYED, *_SENT, "404"),
    )
    operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": shapes.TRUTH}}}
    operation["parameters"] = [shapes.REQUEST_ID]
    return operation


def _model(line: str) -> Json:
    operation = _operation(
        f"model {line}",
        f"What serves {line}: contract, units, metrics, data hash, device.",
        shapes.MODEL,
        (*_KEYED, "403", "404", "422"),
    )
    operation["parameters"] = [shapes.VERSION, shapes.REQUEST_ID]
    return operation


_NAMED: Json = {
    "type": "apiKey",
    "in": "header",
    "name": "X-Esteira-Key",
    "description": "whose name the ledger gets; `esteira keys add NAME --role ROLE` makes one",
}


def _rollout(line: str) -> Json:
    seen = _operation(f"rollout {line}", f"Where the rollout of {line} stands.", shapes.ROLLOUT, _KEYED)
    seen["parameters"] = [shapes.REQUEST_ID]
    paths: Json = {f"/v1/{line}/rollout": {"get": seen}}
    for verb, (says, body) in _VERBS.items():
        move = _operation(f"{verb} rollout {line}", says, shapes.ROLLOUT, (*_KEYED, *_SENT, "403", "404", "409"))
        move["requestBody"] = {"required": True, "content": {"application/json": {"schema": body}}}
        move["parameters"] = [shapes.REQUEST_ID]
        move["security"] = [{"key": [], "named": []}]
        paths[f"/v1/{line}/rollout/{verb}"] = {"post": move}
    return paths


_VERBS: Mapping[str, tuple[str, Json]] = {
    "start": ("Give a candidate the first share of the traffic.", shapes.START),
    "pause": ("Keep the share as it is; nothing is decided, and the time does not count.", shapes.MOVE),
    "resume": ("Let a paused rollout go on.", shapes.MOVE),
    "promote": ("Make the candidate the champion now.", shapes.MOVE),
    "rollback": ("Take all traffic from the candidate.", shapes.MOVE),
}


def _models() -> Json:
    every = _operation("models", "Versions of this tenant, the newest first.", shapes.VERSIONS, (*_KEYED, "422"))
    every["parameters"] = [*shapes.FILTERS, shapes.REQUEST_ID]
    one = _operation("modelById", "One version, whole.", shapes.WHOLE_RECORD, (*_KEYED, "404"))
    one["parameters"] = [_path("id", "as the list has it"), shapes.REQUEST_ID]
    return {"/v1/models": {"get": every}, "/v1/models/{id}": {"get": one}}


def _probes() -> Json:
    yes: Json = {"description": "yes; the body is empty"}
    other = {"405": {"description": _REASONS["405"], "headers": {"Allow": {**_header("Allow"), "required": True}}}}
    says = {
        "/livez": ("livez", "The process lives.", {"200": yes}),
        "/readyz": ("readyz", "It can answer.", {"200": yes, "503": {"description": "not now; the body is empty"}}),
    }
    return {
        path: {"get": {"operationId": name, "summary": summary, "security": [], "responses": answers | other}}
        for path, (name, summary, answers) in says.items()
    }


def _health() -> Json:
    operation = _operation("health", "What the service needs, and how each line is.", shapes.HEALTH, _KEYED)
    # Of our own form, or of the errors' when the service does not even get so far.
    operation["responses"]["503"]["content"] = {
        "application/json": {"schema": {"anyOf": [shapes.HEALTH, _ref("Error")]}}
    }
    return operation


def _metrics() -> Json:
    operation = _operation("metrics", "Counters for Prometheus.", {"type": "string"}, _KEYED)
    operation["responses"]["200"]["content"] = {"text/plain": {"schema": {"type": "string"}}}
    return operation


def _document() -> Json:
    return _operation("openapi", "This document.", {"type": "object", "required": ["openapi", "paths"]}, _KEYED)


def _jobs(line: str | None) -> Json:
    wrong = (*_KEYED, "403", "404", "429")
    submit = _operation("submitBatch", "Predict a whole dataset, as a job.", _ref("Job"), (*wrong, *_SENT), "202")
    submit["requestBody"] = {"required": True, "content": {"application/json": {"schema": shapes.JOB_REQUEST}}}
    model = _path("model", "a line, or the bundle_id of what one serves now")
    submit["parameters"] = [model | ({"example": line} if line else {}), shapes.REQUEST_ID]
    every = _operation(
        "batches", "The jobs that were asked for last, the newest first.", shapes.JOBS, (*_KEYED, "403", "429")
    )
    every["parameters"] = [shapes.REQUEST_ID]
    read = _operation("batch", "How far a job is.", _ref("Job"), wrong)
    cancel = _operation("cancelBatch", "Stop a job; what is done stays.", _ref("Job"), (*wrong, "409"))
    resume = _operation("resumeBatch", "Go on where it stopped.", _ref("Job"), (*wrong, "409"), "202")
    for operation in (read, cancel, resume):
        operation["parameters"] = [_path("id", "the job's"), shapes.REQUEST_ID]
    return {
        "/v1/models/{model}/batch-predict": {"post": submit},
        "/v1/batch-predictions": {"get": every},
        "/v1/batch-predictions/{id}": {"get": read},
        "/v1/batch-predictions/{id}/cancel": {"post": cancel},
        "/v1/batch-predictions/{id}/resume": {"post": resume},
    }


def _operation(name: str, summary: str, answer: Json, statuses: Sequence[str], good: str = "200") -> Json:
    responses: Json = {
        good: {
            "description": "the answer",
            "headers": {"X-Request-Id": {**_header("X-Request-Id"), "required": True}},
            "content": {"application/json": {"schema": answer}},
        }
    }
    for status in sorted(statuses):
        headers = {"X-Request-Id": {**_header("X-Request-Id"), "required": True}}
        headers |= {name: {**_header(name), "required": True} for name in _ALWAYS.get(status, ())}
        headers |= {name: _header(name) for name in _SOMETIMES.get(status, ())}
        responses[status] = {
            "description": _REASONS[status],
            "headers": headers,
            "content": {"application/json": {"schema": _ref("Error")}},
        }
    identity = "".join(part if part.isalnum() else "-" for part in name)
    return {"operationId": identity, "summary": summary, "responses": responses}


def _ref(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


def _path(name: str, says: str) -> Json:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string"}, "description": says}


_HEADERS: Json = {
    "X-Request-Id": {
        "description": "the caller's, or one that was made",
        "schema": {"type": "string", "pattern": "^[A-Za-z0-9._-]{1,128}$"},
    },
    "Retry-After": {"description": "seconds to wait", "schema": {"type": "integer", "minimum": 1}},
    "X-Esteira-Arm": {
        "description": "whom the unit belongs to, while a rollout splits the line's traffic; `version` says who answered",
        "schema": {"type": "string", "enum": ["candidate", "control"]},
    },
    "Allow": {"description": "methods of this route", "schema": {"type": "string"}},
    "WWW-Authenticate": {"description": "how to give the key", "schema": {"type": "string"}},
}
_ALWAYS: Mapping[str, tuple[str, ...]] = {"401": ("WWW-Authenticate",), "405": ("Allow",), "429": ("Retry-After",)}
_SOMETIMES: Mapping[str, tuple[str, ...]] = {"503": ("Retry-After",)}


def _header(name: str) -> Json:
    return dict(_HEADERS[name])
