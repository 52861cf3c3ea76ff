"""What a request asks for, by the model of its fields."""

from typing import TypeVar

from pydantic import BaseModel, ValidationError

from serving.body import read
from serving.problems import Problem

_CODES = {"extra_forbidden": "unknown_field", "missing": "missing_field"}

Asked = TypeVar("Asked", bound=BaseModel)


def asked_as(kind: type[Asked], body: bytes) -> Asked:
    """The body's JSON as this model; the first field that does not fit is named.

    Raises:
        Problem: 400 where it is no strict JSON; 422 `unknown_field`, `missing_field` or `wrong_type` where it is another.
    """
    document = read(body)
    try:
        return kind.model_validate(document)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        name = ".".join(str(part) for part in first["loc"])[:200] or None
        raise Problem(
            422, _CODES.get(first["type"], "wrong_type"), f"{name or 'the body'}: {first['msg']}", field=name
        ) from error
