"""An answer is given again for the same row of the same bundle only, never changed by anybody, and the cache stays in its bounds."""

import json
import threading
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.cache import ENTRY_BYTES, AnswerCache

BUNDLE = "a" * 64

cells = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip
tables = st.dictionaries(st.text(max_size=5), cells, max_size=6)


def key(row: dict[str, Any], bundle: str = BUNDLE) -> bytes:
    (found,) = AnswerCache(1000).keys(bundle, [row])
    return found


def answer(text: str = "{}") -> msgspec.Raw:
    return msgspec.Raw(text.encode())


def typed(value: Any) -> Any:
    """The value with its types, so that 1, 1.0 and true differ, and -0.0 from 0.0."""
    if isinstance(value, dict):
        return "object", sorted((name, typed(inner)) for name, inner in value.items())
    if isinstance(value, list):
        return "list", [typed(inner) for inner in value]
    return type(value).__name__, repr(value)


@given(tables)
def test_the_order_of_columns_makes_no_difference(row: dict[str, Any]) -> None:
    assert key(row) == key(dict(reversed(row.items())))
    assert key(row)


@given(tables, tables)
def test_two_rows_have_one_key_only_when_they_are_the_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert (typed(one) == typed(other)) == (key(one) == key(other))


def test_cells_of_different_types_and_absent_cells_are_different_rows() -> None:
    cells: list[Any] = [1, 1.0, True, "1", "1.0", "true", None, "null", [1], {"1": 1}, 0, 0.0, -0.0, False, ""]
    rows: list[dict[str, Any]] = [{"a": cell} for cell in cells]

    assert len(rows) + 2 == len({key(row) for row in [*rows, {}, {"b": 1}]})


def test_another_bundle_has_other_keys() -> None:
    assert key({"a": 1}) != key({"a": 1}, "b" * 64)


def test_a_row_that_cannot_be_written_is_never_kept() -> None:
    cache = AnswerCache(10_000)
    (found,) = cache.keys(BUNDLE, [{"a": object()}])
    cache.put(found, answer())

    assert b"" == found
    assert cache.get(found) is None
    assert (0, 0, 0) == (cache.entries, cache.bytes, cache.misses)


def test_rows_are_told_apart_within_a_request() -> None:
    cache = AnswerCache(10_000)
    keys = cache.keys(BUNDLE, [{"a": 1}, {"a": 2}, {"a": 1}])
    cache.put(keys[0], answer('{"p":1}'))

    assert [b'{"p":1}', None, b'{"p":1}'] == [bytes(raw) if (raw := cache.get(one)) else None for one in keys]
    assert (2, 1) == (cache.hits, cache.misses)


def test_an_answer_is_a_part_of_a_document_as_it_is() -> None:
    cache = AnswerCache(10_000)
    cache.put(b"k", answer('{"prediction":"yes","warnings":[]}'))
    given_back = cache.get(b"k")

    document = msgspec.json.encode({"rows": [given_back, given_back]})
    assert {"rows": [{"prediction": "yes", "warnings": []}] * 2} == json.loads(document)


def test_what_was_kept_does_not_change_with_what_it_was_made_of() -> None:
    cache = AnswerCache(10_000)
    buffer = bytearray(b'{"p":1}')
    cache.put(b"k", msgspec.Raw(buffer))
    buffer[5:6] = b"9"
    found = cache.get(b"k")

    assert found is not None
    assert b'{"p":1}' == bytes(found)
    with pytest.raises(TypeError):
        memoryview(found)[0] = 0


@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 400)), max_size=60), st.integers(0, 3000))
def test_it_never_holds_more_than_it_may_and_counts_right(steps: list[tuple[int, int]], capacity: int) -> None:
    cache = AnswerCache(capacity)
    kept: dict[int, bytes] = {}
    asked = 0
    for number, size in steps:
        name = b"%d" % number
        content = b"x" * size
        cache.put(name, msgspec.Raw(content))
        if size + ENTRY_BYTES <= capacity:
            kept[number] = content
        asked += 1
        found = cache.get(name)
        assert found is None or kept[number] == bytes(found)
        assert cache.bytes <= capacity
    held = [cache.get(b"%d" % number) for number in range(9)]

    assert cache.bytes == sum(len(bytes(one)) + ENTRY_BYTES for one in held if one is not None)
    assert cache.entries == sum(one is not None for one in held)
    assert asked + 9 == cache.hits + cache.misses


def test_the_least_recently_used_goes_first() -> None:
    cache = AnswerCache(3 * (ENTRY_BYTES + 2))
    for name in (b"a", b"b", b"c"):
        cache.put(name, answer())
    cache.get(b"a")
    cache.put(b"d", answer())

    assert [True, False, True, True] == [cache.get(name) is not None for name in (b"a", b"b", b"c", b"d")]


def test_an_answer_that_is_kept_again_counts_once() -> None:
    cache = AnswerCache(10_000)
    cache.put(b"k", answer('{"p":1}'))
    cache.put(b"k", answer('{"p":22}'))

    assert (1, ENTRY_BYTES + 8) == (cache.entries, cache.bytes)


def test_a_capacity_of_nothing_keeps_nothing() -> None:
    cache = AnswerCache(0)
    keys = cache.keys(BUNDLE, [{"a": 1}, {"a": 2}])
    cache.put(keys[0], answer())
    cache.put(b"k", answer())

    assert [b"", b""] == keys
    assert (0, 0) == (cache.entries, cache.bytes)


def test_threads_that_use_it_at_once_leave_it_whole() -> None:
    cache = AnswerCache(20 * (ENTRY_BYTES + 10))
    wrong: list[object] = []

    def use(seed: int) -> None:
        for step in range(2000):
            number = (step * 7 + seed) % 50
            name = b"%d" % number
            found = cache.get(name)
            if found is not None and bytes(found) != b"%010d" % number:
                wrong.append(found)
            cache.put(name, msgspec.Raw(b"%010d" % number))

    threads = [threading.Thread(target=use, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert [] == wrong
    assert (20, 20 * (ENTRY_BYTES + 10)) == (cache.entries, cache.bytes)
    assert 8000 == cache.hits + cache.misses


def test_rows_of_a_request_count_as_hits_only_when_all_were_found() -> None:
    cache = AnswerCache(10_000)
    keys = cache.keys(BUNDLE, [{"a": 1}, {"a": 2}, {"a": object()}])
    cache.put(keys[0], answer('{"p":1}'))

    assert cache.get_all(keys[:2]) is None
    assert (0, 2) == (cache.hits, cache.misses)
    assert cache.get_all([keys[0], keys[2]]) is None
    assert (0, 4) == (cache.hits, cache.misses)
    cache.put(keys[1], answer('{"p":2}'))
    found = cache.get_all([keys[1], keys[0], keys[1]])
    assert found is not None
    assert [b'{"p":2}', b'{"p":1}', b'{"p":2}'] == [bytes(raw) for raw in found]
    assert (3, 4) == (cache.hits, cache.misses)


def test_rows_that_were_found_together_are_used_rows() -> None:
    cache = AnswerCache(2 * (ENTRY_BYTES + 2))
    cache.put(b"a", answer())
    cache.put(b"b", answer())
    assert cache.get_all([b"a"]) is not None
    cache.put(b"c", answer())

    assert [True, False, True] == [cache.get(name) is not None for name in (b"a", b"b", b"c")]
