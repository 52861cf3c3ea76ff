"""Describes the HTTP API as an OpenAPI 3.1 document, each line's row by its own contract. Pure."""

from collections.abc import Mapping, Sequence
from typing import Any

_TYPES: Mapping[str, dict[str, Any]] = {
    "number": {"type": ["number", "null"]},
    "integer": {"type": ["integer", "null"]},
    "boolean": {"type": ["boolean", "null"]},
    "date": {"type": ["string", "null"], "description": "ISO 8601"},
    "object": {"type": ["object", "array", "null"]},
}
_TEXT: dict[str, Any] = {"type": ["string", "null"]}
_STATUSES = {
    "400": "not strict JSON, or NaN, Infinity, a key twice",
    "401": "no key, or a wrong one",
    "403": "a version that is not deployed",
    "404": "no such line or version",
    "405": "another method",
    "408": "the body came too slowly",
    "413": "the body is too large",
    "415": "not application/json",
    "422": "rows that break the contract; `error.field` and `error.row` name the first, `error.details` more",
    "500": "our fault",
    "503": "no model is deployed, or too much at once",
}


def describe_api(lines: Mapping[str, Mapping[str, Any] | None], max_rows: int) -> dict[str, Any]:
    """The document.

    Args:
        lines: line -> `schema` of its manifest (a table's contract where it has `columns`), None when nothing is loaded.
        max_rows: rows in one request.
    """
    paths: dict[str, Any] = {}
    for line, schema in lines.items():
        body = _request(row_schema(schema), max_rows)
        if len(lines) == 1:
            paths["/v1/predict"] = {"post": _predict(line, body)}
        paths[f"/v1/{line}/predict"] = {"post": _predict(line, body)}
        paths[f"/v1/{line}/model"] = {
            "get": _operation(
                f"What serves {line}: contract, units, metrics, data hash, device.",
                {"type": "object"},
                ("401", "404", "503"),
            )
        }
    for path, says in (("/livez", "The process lives."), ("/readyz", "It can answer.")):
        paths[path] = {"get": {"summary": says, "security": [], "responses": {"200": {"description": "yes"}}}}
    paths["/metrics"] = {"get": {"summary": "Counters for Prometheus.", "responses": {"200": {"description": "text"}}}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Esteira", "version": "1", "description": "Predictions of released model lines."},
        "security": [{"key": []}],
        "paths": paths,
        "components": {
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
            "schemas": {"Answer": _ANSWER, "Error": _ERROR},
        },
    }


def row_schema(schema: Mapping[str, Any] | None) -> dict[str, Any]:
    """JSON Schema of a line's row; any object where the line is not a table."""
    columns: Sequence[Mapping[str, Any]] = (schema or {}).get("columns") or []
    if not columns:
        return {"type": "object"}
    return {
        "type": "object",
        "properties": {column["name"]: _cell(column) for column in columns},
        "required": [column["name"] for column in columns if column.get("required", True)],
    }


def _cell(column: Mapping[str, Any]) -> dict[str, Any]:
    cell = dict(_TYPES.get(column["kind"], _TEXT))
    if column.get("unit"):
        cell["description"] = f"unit: {column['unit']}"
    if column.get("categories"):
        cell["examples"] = list(column["categories"])[:20]
    return cell


def _request(row: dict[str, Any], max_rows: int) -> dict[str, Any]:
    return {
        "type": "object",
        "additionalProperties": False,
        "required": ["rows"],
        "properties": {"rows": {"type": "array", "minItems": 1, "maxItems": max_rows, "items": row}},
    }


def _predict(line: str, body: dict[str, Any]) -> dict[str, Any]:
    operation = _operation(f"Predict rows of {line}.", {"$ref": "#/components/schemas/Answer"}, tuple(_STATUSES))
    operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": body}}}
    operation["parameters"] = [
        {
            "name": "version",
            "in": "query",
            "required": False,
            "schema": {"type": "integer"},
            "description": "an operator's key only",
        },
        {"name": "X-Request-Id", "in": "header", "required": False, "schema": {"type": "string"}},
    ]
    return operation


def _operation(summary: str, answer: dict[str, Any], statuses: Sequence[str]) -> dict[str, Any]:
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    responses: dict[str, Any] = {
        "200": {"description": "the answer", "content": {"application/json": {"schema": answer}}}
    }
    responses |= {status: {"description": _STATUSES[status], "content": error} for status in statuses}
    return {"summary": summary, "responses": responses}


_ROW_ANSWER: dict[str, Any] = {
    "type": "object",
    "properties": {
        "prediction": {},
        "probabilities": {"type": "object", "additionalProperties": {"type": "number"}},
        "interval": {"type": ["array", "null"], "items": {"type": "number"}},
        "confidence": {"type": ["number", "null"], "minimum": 0, "maximum": 1},
        "confidence_kind": {"type": "string", "enum": ["calibrated", "heuristic"]},
        "warnings": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {name: {"type": "string"} for name in ("rule", "column", "message")},
            },
        },
    },
}
_ANSWER: dict[str, Any] = {
    "type": "object",
    "properties": {
        "line": {"type": "string"},
        "version": {"type": ["integer", "null"]},
        "bundle_id": {"type": "string"},
        "model_id": {"type": "string"},
        "device": {"type": "string", "enum": ["cpu", "cuda"]},
        "method": {"type": ["string", "null"]},
        "simulated": {"type": "boolean"},
        "confidence_kind": {"type": "string", "enum": ["calibrated", "heuristic"]},
        "request_id": {"type": "string"},
        "timestamp": {"type": "string", "format": "date-time"},
        "rows": {"type": "array", "items": _ROW_ANSWER},
    },
}
_PROBLEM: dict[str, Any] = {
    "code": {"type": "string"},
    "message": {"type": "string"},
    "field": {"type": ["string", "null"]},
    "row": {"type": ["integer", "null"]},
}
_ERROR: dict[str, Any] = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {
                **_PROBLEM,
                "request_id": {"type": "string"},
                "details": {"type": "array", "items": {"type": "object", "properties": _PROBLEM}},
            },
        }
    },
}
