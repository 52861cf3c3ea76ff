"""JSON Schema of a line's row, as its decoder takes it. Pure; it promises nothing that the service would refuse."""

from collections.abc import Mapping, Sequence
from typing import Any

Json = dict[str, Any]

_LABEL = "the label; ignored"
_DROPPED = "not used by the model; ignored"


def row_schema(schema: Mapping[str, Any] | None) -> Json:
    """JSON Schema of a line's row, as its decoder takes it; any object where the line is not a table."""
    known = schema or {}
    columns: Sequence[Mapping[str, Any]] = known.get("columns") or []
    if not columns:
        return {"type": "object"}
    ignored = {dropped["name"]: {"description": _DROPPED} for dropped in known.get("dropped") or []}
    label = (known.get("target") or {}).get("name")
    if label is not None:
        ignored[label] = {"description": _LABEL}
    return {
        "type": "object",
        "additionalProperties": False,
        "required": [column["name"] for column in columns if column.get("required", True)],
        "properties": ignored | {column["name"]: _cell(column) for column in columns},
    }


# Cells. Their schemas say what esteira.features.parse takes of JSON. Texts may stand between blanks, as Python's strip()
# knows them; words that mean a missing value count in any case.

_BLANK = r"[\s\x1c-\x1f\x85]*"


def _word(word: str) -> str:
    return "".join(f"[{sign.upper()}{sign}]" if sign.isalpha() else sign.replace("?", r"\?") for sign in word)


def _texts(*patterns: str) -> str:
    return f"^{_BLANK}(?:{'|'.join(patterns)})?{_BLANK}$"


_MISSING = "|".join(_word(word) for word in ("na", "n/a", "nan", "null", "none", "nil", "?", "-", "<na>", "nat"))
# Longer ones are taken too, as far as they are finite.
_NUMBER = r"[+-]?(?:[0-9]{1,40}(?:\.[0-9]{0,40})?|\.[0-9]{1,40})(?:[eE][+-]?[0-9]{1,2})?"
_TRUTH = "|".join(_word(word) for word in ("true", "t", "yes", "y", "false", "f", "no", "n")) + r"|[01](?:\.0)?"

_NUMBERS: Json = {"type": ["number", "string", "null"], "pattern": _texts(_NUMBER, _MISSING)}
_CELLS: Mapping[str, Json] = {
    "number": _NUMBERS,
    "integer": _NUMBERS,
    "boolean": {
        "type": ["boolean", "integer", "string", "null"],
        "minimum": 0,
        "maximum": 1,
        "pattern": _texts(_TRUTH, _MISSING),
    },
    "date": {
        "anyOf": [
            {"type": "string", "format": "date"},
            {"type": "string", "format": "date-time"},
            {"type": "string", "pattern": _texts(_MISSING)},
            {"type": "null"},
        ]
    },
    "object": {
        "anyOf": [
            {"type": ["object", "array", "null"]},
            {"type": "string", "pattern": _texts(r"\{\}", r"\[\]")},
        ]
    },
}
_TEXT: Json = {"type": ["string", "number", "null"]}
_NOTES: Mapping[str, str] = {
    "number": "a number, or its text",
    "integer": "a whole number, or its text; a fraction is taken with a warning",
    "boolean": "true or false, 1 or 0, or such words as yes and no",
    "date": "ISO 8601 of the years 1 to 9999, with or without a time; without an offset it is UTC; / and . may stand for -",
    "object": "a JSON object or array, or its text",
    "category": "text; one that was not in training is taken with a warning",
}


def _cell(column: Mapping[str, Any]) -> Json:
    cell = dict(_CELLS.get(column["kind"], _TEXT))
    notes = [_NOTES[column["kind"]]] if column["kind"] in _NOTES else []
    if column.get("unit"):
        notes.append(f"unit: {column['unit']}")
    low, high = column.get("minimum"), column.get("maximum")
    if low is not None and high is not None:
        notes.append(f"{low} to {high}, and beyond with a warning")
    cell["description"] = "; ".join([*notes, "empty: null"])
    if column.get("categories"):
        cell["examples"] = list(column["categories"])[:20]
    return cell
