"""Reads a request's JSON strictly: what two readers could take for two different things is refused."""

import json
from typing import Any, NoReturn

import msgspec

_decode = msgspec.json.Decoder().decode


class BadBody(Exception):
    """The body is not strict JSON; `code` and the message say why."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def parse(body: bytes) -> Any:
    """The JSON value of the bytes.

    Raises:
        BadBody: not UTF-8, not JSON, a NaN or Infinity token, a number out of range, nested too deeply, or an object that
            has a key twice.
    """
    try:
        value = _decode(body)
        keys = _keys(value)
    except UnicodeDecodeError as error:
        raise BadBody("bad_json", f"the body must be UTF-8, but byte {error.start} is not") from error
    except RecursionError as error:
        raise BadBody("bad_json", "the body is nested too deeply") from error
    except msgspec.DecodeError as error:
        _explain(body, error)
    # Every key has one colon, and texts may hold more: as many colons as keys means that no key stood twice.
    if body.count(b":") != keys:
        _refuse_twice(body)
    return value


def _keys(value: Any) -> int:
    if isinstance(value, dict):
        number = len(value)
        for item in value.values():
            if isinstance(item, dict | list):
                number += _keys(item)
        return number
    if isinstance(value, list):
        return sum(_keys(item) for item in value if isinstance(item, dict | list))
    return 0


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    read = dict(pairs)
    if len(read) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise BadBody("duplicate_key", f"an object may have a key once, but {twice[:80]!r} stands twice")
    return read


def _constant(token: str) -> NoReturn:
    raise BadBody("nan_token", f"JSON has no {token}; send null for a missing value")


def _refuse_twice(body: bytes) -> None:
    json.loads(body, object_pairs_hook=_pairs)


def _explain(body: bytes, error: msgspec.DecodeError) -> NoReturn:
    try:
        json.loads(body, parse_constant=_constant, object_pairs_hook=_pairs)
    except BadBody as found:
        raise found from error
    except (ValueError, RecursionError):
        pass
    raise BadBody("bad_json", f"the body must be JSON: {error}") from error
