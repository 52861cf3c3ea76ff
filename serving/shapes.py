"""The shapes of what the HTTP API takes and answers besides rows, as JSON Schema. Values only."""

from typing import Any

Json = dict[str, Any]

VERSION: Json = {
    "name": "version",
    "in": "query",
    "required": False,
    "schema": {"type": "integer", "minimum": 0, "maximum": 999_999_999},
    "description": "a version that is not deployed; an operator's key only",
}
REQUEST_ID: Json = {
    "name": "X-Request-Id",
    "in": "header",
    "required": False,
    "schema": {"type": "string"},
    "description": "up to 128 letters, digits, '.', '_' and '-'; another is replaced",
}
UNIT_ID: Json = {
    "name": "X-Unit-Id",
    "in": "header",
    "required": False,
    "schema": {"type": "string"},
    "description": "what must see one version while a rollout's share grows, such as a user; by default the request itself",
}
_TEXT_OR_NULL: Json = {"type": ["string", "null"]}
_WHOLE_OR_NULL: Json = {"type": ["integer", "null"]}
_CONFIDENCE: Json = {"type": "string", "enum": ["calibrated", "heuristic"]}
_ENVELOPE: Json = {
    "line": {"type": "string"},
    "version": {**_WHOLE_OR_NULL, "description": "null for a bundle that is not registered"},
    "bundle_id": {"type": "string", "description": "SHA-256 of the bundle's manifest"},
    "model_id": {"type": "string", "description": "the same as bundle_id"},
    "device": {"type": "string", "enum": ["cpu", "cuda"]},
    "method": _TEXT_OR_NULL,
    "simulated": {"type": "boolean", "description": "a simulation made the answers up"},
    "confidence_kind": _CONFIDENCE,
}
_ROW_ANSWER: Json = {
    "type": "object",
    "required": ["prediction", "confidence", "warnings"],
    "properties": {
        "prediction": {"description": "a class, a value, or what the family answers"},
        "probabilities": {
            "type": "object",
            "additionalProperties": {"type": "number", "minimum": -1e-9, "maximum": 1 + 1e-9},
        },
        "interval": {
            "type": ["array", "null"],
            "items": {"type": "number"},
            "minItems": 2,
            "maxItems": 2,
            "description": "null where there were too few rows to know",
        },
        "confidence": {"type": ["number", "null"], "minimum": 0, "maximum": 1 + 1e-9},
        "confidence_kind": _CONFIDENCE,
        "warnings": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["rule", "column", "message"],
                "properties": {name: {"type": "string"} for name in ("rule", "column", "message")},
            },
        },
    },
}
ANSWER: Json = {
    "type": "object",
    "required": [*_ENVELOPE, "request_id", "timestamp", "rows"],
    "properties": {
        **_ENVELOPE,
        "request_id": {"type": "string"},
        "timestamp": {"type": "string", "format": "date-time"},
        "rows": {"type": "array", "items": _ROW_ANSWER},
    },
}
MODEL: Json = {
    "type": "object",
    "required": [*_ENVELOPE, "family", "task", "schema", "units", "metrics"],
    "properties": {
        **_ENVELOPE,
        "family": _TEXT_OR_NULL,
        "task": _TEXT_OR_NULL,
        "schema": {"type": ["object", "null"], "description": "the contract of a row"},
        "units": {"type": ["object", "null"]},
        "metrics": {"type": ["object", "null"]},
        "data_hash": _TEXT_OR_NULL,
    },
}
_NAME: Json = {"type": "string", "minLength": 1, "maxLength": 1000}
TRUTH: Json = {
    "type": "object",
    "additionalProperties": False,
    "required": ["truth"],
    "properties": {
        "request_id": {**_NAME, "description": "of the answer, as it was said there"},
        "unit": {
            **_NAME,
            "description": "what was sent as X-Unit-Id, instead of request_id; its newest answer is meant",
        },
        "row": {"type": "integer", "minimum": 0, "maximum": 999_999, "default": 0, "description": "of the request"},
        "truth": {"description": "the label as it stands in the training data", "not": {"type": "null"}},
    },
    "oneOf": [{"required": ["request_id"]}, {"required": ["unit"]}],
}
LABELLED: Json = {
    "type": "object",
    "required": ["line", "test_id", "arm", "stage", "version", "request_id", "row", "outcome", "counted"],
    "properties": {
        "line": {"type": "string"},
        "test_id": {"type": "string"},
        "arm": {"type": "string", "enum": ["candidate", "control"]},
        "stage": {"type": "integer", "minimum": 0},
        "version": _WHOLE_OR_NULL,
        "request_id": {"type": "string"},
        "row": {"type": "integer", "minimum": 0},
        "outcome": {"type": "number", "minimum": 0, "maximum": 1, "description": "1 is good"},
        "counted": {"type": "boolean", "description": "false where the truth had come before"},
    },
}
_PROBLEM: Json = {
    "code": {"type": "string", "description": "stable; programs may go by it"},
    "message": {"type": "string", "description": "for people"},
    "field": {**_TEXT_OR_NULL, "description": "column or field that is meant"},
    "row": {**_WHOLE_OR_NULL, "description": "row that is meant, from 0"},
}
ERROR: Json = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": [*_PROBLEM, "request_id"],
            "properties": {
                **_PROBLEM,
                "request_id": {"type": "string"},
                "details": {
                    "type": "array",
                    "items": {"type": "object", "required": [*_PROBLEM], "properties": _PROBLEM},
                },
            },
        }
    },
}
_DEPENDENCY: Json = {"type": "string", "enum": ["up", "down", "unused"]}
HEALTH: Json = {
    "type": "object",
    "required": ["status", "timestamp", "services", "lines"],
    "properties": {
        "status": {"type": "string", "enum": ["healthy", "degraded", "unhealthy"]},
        "timestamp": {"type": "string", "format": "date-time"},
        "services": {
            "type": "object",
            "required": ["database", "redis", "models_loaded"],
            "properties": {
                "database": _DEPENDENCY,
                "redis": _DEPENDENCY,
                "models_loaded": {"type": "integer", "minimum": 0},
            },
        },
        "lines": {
            "type": "object",
            "additionalProperties": {
                "type": "object",
                "required": ["state", "version", "why"],
                "properties": {
                    "state": {"type": "string", "enum": ["ready", "failed", "none"]},
                    "version": _WHOLE_OR_NULL,
                    "why": {**_TEXT_OR_NULL, "description": "code of what went wrong"},
                },
            },
        },
    },
}
_ADDRESS: Json = {"minLength": 1, "maxLength": 1000, "pattern": "^(?:/|s3://)[ -~]*$"}
JOB_REQUEST: Json = {
    "type": "object",
    "additionalProperties": False,
    "required": ["data"],
    "properties": {
        "data": {"type": "string", **_ADDRESS, "description": "file, folder or s3:// prefix below ESTEIRA_BATCH_ROOTS"},
        "out": {**_TEXT_OR_NULL, **_ADDRESS, "description": "folder of the results; by default beside the data"},
        "format": {"type": "string", "enum": ["parquet", "csv", "jsonl"]},
        "rows_per_part": {**_WHOLE_OR_NULL, "minimum": 1000, "maximum": 60_000},
        "max_bad_share": {
            "type": "number",
            "minimum": 0,
            "maximum": 1,
            "description": "share of refused rows above which it fails",
        },
        "rate": {
            "type": ["number", "null"],
            "minimum": 1,
            "maximum": 1e9,
            "description": "rows a second, at most",
        },
        "keep": {
            "type": "array",
            "maxItems": 100,
            "items": {"type": "string", "minLength": 1, "maxLength": 200},
            "description": "columns of the data that stand beside the answers",
        },
        "delimiter": {
            "type": "string",
            "maxLength": 1,
            "pattern": "^[\\t -!#-~]?$",
            "description": "of CSV; else it is found out",
        },
    },
}
JOB: Json = {
    "type": "object",
    "required": ["id", "model", "line", "version", "bundle_id", "state", "progress", "processed", "error"],
    "properties": {
        "id": {"type": "string"},
        "model": {"type": "string"},
        "line": {"type": "string"},
        "version": _WHOLE_OR_NULL,
        "bundle_id": {"type": "string"},
        "state": {"type": "string", "enum": ["queued", "running", "done", "failed", "cancelled"]},
        "progress": {"type": "number", "minimum": 0, "maximum": 100, "description": "per cent"},
        "processed": {"type": "integer", "minimum": 0, "description": "rows answered"},
        "error": {"type": "integer", "minimum": 0, "description": "rows refused"},
        "rows": {**_WHOLE_OR_NULL, "description": "rows of the dataset, once they are known"},
        "data": {"type": "string"},
        "out": {"type": "string"},
        "errors": {**_TEXT_OR_NULL, "description": "file of the refused rows"},
        "failure": {
            "type": ["object", "null"],
            "required": ["code", "message"],
            "properties": {"code": {"type": "string"}, "message": {"type": "string"}},
        },
        "created_at": {"type": "string"},
        "started_at": _TEXT_OR_NULL,
        "finished_at": _TEXT_OR_NULL,
    },
}
JOBS: Json = {
    "type": "object",
    "required": ["jobs"],
    "properties": {"jobs": {"type": "array", "maxItems": 100, "items": {"$ref": "#/components/schemas/Job"}}},
}
