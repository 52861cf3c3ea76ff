"""What people write in YAML is read as written or refused with its line; no reader takes the last of two keys in silence."""

import pytest

from esteira import strict_yaml
from esteira.errors import ConfigError


def _parse(data: str | bytes) -> object:
    return strict_yaml.parse(data, code="bad_file", where="a.yaml", cure="correct it")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None),
        ("# only words", None),
        ("a: {x: 1}\nb: {x: 1}", {"a": {"x": 1}, "b": {"x": 1}}),
        ("1: one\n'1': text", {1: "one", "1": "text"}),
        ("a: &shared {x: 1}\nb: *shared", {"a": {"x": 1}, "b": {"x": 1}}),
        ("a: &shared {x: 1, y: 2}\nb: {<<: *shared, x: 3}", {"a": {"x": 1, "y": 2}, "b": {"x": 3, "y": 2}}),
        ("a: ção".encode(), {"a": "ção"}),
    ],
)
def test_what_is_well_written_is_read(text: str | bytes, value: object) -> None:
    assert value == _parse(text)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: 1\nb: 2\na: 3", "line 3: 'a' is there already, in line 1"),
        ("a:\n  - {x: 1, x: 2}", "line 2: 'x' is there already, in line 2"),
        ("a: [", "line 1: expected the node content"),
        ("a:\n\tb: 1", "line 2: found character '\\t'"),
        ("a: 1\n---\nb: 2", "line 2: but found another document"),
        ("a: 2026-13-40", "month must be in 1..12"),
        ("a: !!python/object:os.system x", "could not determine a constructor"),
        ("a: \0", "#x0000"),
        (b"a: \xff", "byte 4 is 0xff, which is no UTF-8"),
    ],
)
def test_what_is_not_is_refused_with_its_place(text: str | bytes, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        _parse(text)

    assert problem in caught.value.message
    assert "\n" not in caught.value.message
    assert ("bad_file", "a.yaml", "correct it") == (caught.value.code, caught.value.where, caught.value.cure)
