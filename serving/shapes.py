"""The shapes of what the HTTP API takes and answers besides rows, as JSON Schema. Values only."""

from typing import Any

from esteira.release.lifecycle import WORDS, State, states_of
from esteira.rollout.policies import POLICIES

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
        "truth": {
            "description": "the label as it stands in the training data; of a metric its value, 0 to 1",
            "not": {"type": "null"},
        },
        "metric": {
            **_NAME,
            "description": "a primary of the line's experiment, where not the truth of an answer is sent; counts once a user",
        },
    },
    "oneOf": [{"required": ["request_id"]}, {"required": ["unit"]}],
}
LABELLED: Json = {
    "type": "object",
    "required": ["line", "test_id", "arm", "stage", "version", "request_id", "row", "outcome", "counted"],
    "properties": {
        "metric": {"type": "string", "description": "as it was sent"},
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
                "where": {"type": "string", "description": "what it is about; of a letter"},
                "cure": {"type": "string", "description": "what to do next; of a letter"},
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
# As far as a pattern can say what is printable and not blank.
_REASON: Json = {
    "type": "string",
    "minLength": 1,
    "maxLength": 500,
    "pattern": "^[^\\x00-\\x1f\\x7f-\\x9f\\u2028\\u2029]*$",
    "allOf": [{"pattern": "\\S"}],
    "description": "why, in printable characters on one line, for who reads the ledger",
}
MOVE: Json = {
    "type": "object",
    "additionalProperties": False,
    "required": ["reason"],
    "properties": {"reason": _REASON},
}
START: Json = {
    **MOVE,
    "properties": {
        "reason": _REASON,
        "version": {
            **_WHOLE_OR_NULL,
            "minimum": 1,
            "maximum": 999_999_999,
            "description": "the candidate; by default what is staged",
        },
        "policy": {"enum": [*POLICIES, None], "description": "by default the line's own"},
        "options": {"type": ["object", "null"], "description": "of the policy's plan, over the line's own"},
    },
}
_ARM: Json = {
    "type": "object",
    "required": ["version", "bundle_id", "served", "errors", "error_rate", "labelled", "accuracy", "p95_ms"],
    "properties": {"version": _WHOLE_OR_NULL, "bundle_id": {"type": "string"}, "served": {"type": "integer"}},
}
ROLLOUT: Json = {
    "type": "object",
    "required": ["line", "status", "percent", "since", "arms", "verdict", "alert", "target"],
    "properties": {
        "line": {"type": "string"},
        "status": {"type": "string", "description": "of the rollout; none without one, unreadable where its state is"},
        "percent": {"type": "number", "minimum": 0, "maximum": 100, "description": "what the candidate takes"},
        "since": {**_TEXT_OR_NULL, "description": "of the stage"},
        "arms": {"type": "object", "properties": {"candidate": _ARM, "control": _ARM}},
        "verdict": {"enum": ["PASS", "FAIL", "NO_DATA", None], "description": "of a look that were made now"},
        "alert": {"type": "string", "description": "what a person should see to; empty when nothing"},
        "target": {
            "type": ["object", "null"],
            "description": "what splits the traffic, and what it gives the candidate",
        },
    },
}
STATES = sorted(filter(states_of, {*State, *(word for words in WORDS.values() for word in words.values())}))
"""Every word by which a version's state may be asked for, ours and those of other systems."""
VERSION_RECORD: Json = {
    "type": "object",
    "required": ["id", "line", "version", "bundle_id", "type", "algorithm", "framework", "state", "aliases", "metrics"],
    "properties": {
        "id": {"type": "string", "format": "uuid"},
        "line": {"type": "string"},
        "version": {"type": "integer", "minimum": 1},
        "bundle_id": {"type": "string"},
        "type": _TEXT_OR_NULL,
        "algorithm": _TEXT_OR_NULL,
        "framework": _TEXT_OR_NULL,
        "state": {"type": "string", "enum": sorted(State)},
        "aliases": {"type": "array", "items": {"type": "string"}},
        "metrics": {"type": "object"},
        **{f"{name}_score": {"type": ["number", "null"]} for name in ("accuracy", "precision", "recall", "f1")},
        "created_at": {"type": "string"},
        "deployed_at": _TEXT_OR_NULL,
        "archived_at": _TEXT_OR_NULL,
    },
}
WHOLE_RECORD: Json = {
    **VERSION_RECORD,
    "required": [*VERSION_RECORD["required"], "params", "primary_score", "model_size", "training_time"],
    "properties": {
        **VERSION_RECORD["properties"],
        "params": {"type": "object", "description": "what was asked of its training: seed, model, section train"},
        "primary_score": {
            "type": ["object", "null"],
            "required": ["metric", "value"],
            "properties": {"metric": {"type": "string"}, "value": {"type": ["number", "null"]}},
        },
        "model_size": {**_WHOLE_OR_NULL, "description": "bytes of the bundle's files"},
        "training_time": {
            **_WHOLE_OR_NULL,
            "description": "seconds; null where it was not measured or the step was reused",
        },
    },
}
VERSIONS: Json = {
    "type": "object",
    "required": ["total", "limit", "offset", "models"],
    "properties": {
        **{name: {"type": "integer", "minimum": 0} for name in ("total", "limit", "offset")},
        "models": {"type": "array", "maxItems": 1000, "items": VERSION_RECORD},
    },
}


def _query(name: str, schema: Json, says: str) -> Json:
    return {"name": name, "in": "query", "required": False, "schema": schema, "description": says}


_WORD: Json = {"type": "string", "pattern": "^[ -~]{1,200}$"}
FILTERS = [
    _query("status", {"type": "string", "enum": STATES}, "a state, in our words or another system's"),
    _query("type", _WORD, "such as classification"),
    _query("framework", _WORD, "such as xgboost"),
    _query("line", _WORD, "FAMILY or FAMILY@NAME"),
    _query("limit", {"type": "integer", "minimum": 1, "maximum": 1000, "default": 50}, "versions on the page"),
    _query("offset", {"type": "integer", "minimum": 0, "maximum": 999_999_999, "default": 0}, "versions before it"),
]
"""What a list of versions may be asked by."""
