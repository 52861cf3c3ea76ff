"""Verification finds every change at its first entry, says the same as the plainest loop, and does not grow with the ledger."""

import hashlib
import json
import shutil
import sqlite3
import tracemalloc
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.ledger.verify import alias, fill, plain, release
from esteira import ledger
from esteira.ledger import check
from esteira.store import Store
from tests.stores import sqlite_store, sqlite_template, store, store_url

__all__ = ["sqlite_store", "sqlite_template", "store", "store_url"]

START = datetime(2026, 1, 1, tzinfo=UTC)
COUNT = 9


@dataclass(frozen=True)
class Kept:
    """A ledger of COUNT entries: its database, closed, its export as lines, and an anchor of its head."""

    file: Path
    lines: list[bytes]
    anchor: ledger.Anchor


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path) -> Kept:
    """Entries of many kinds, with what JSON finds hard: accents, escapes, floats, nesting."""
    folder = tmp_path_factory.mktemp("kept")
    shutil.copy(sqlite_template, folder / "esteira.db")
    store = Store.open(f"sqlite:///{folder / 'esteira.db'}")
    for number in range(COUNT):
        ledger.append(
            store,
            kind=("verdict", "alias", "traffic")[number % 3],
            line=f"tabular@é{number % 2}",
            version=number or None,
            bundle_id="ab" * 32 if number else None,
            actor='ana "a"\\\t\u2028',
            evidence={"n": number, "x": [1 / 3, -0.0, 1e300, None, True], "ç": {"\n": "\x1f\x7f"}, "": 10**30},
            now=START + timedelta(hours=number),
        )
    ledger.export(store, folder / "ledger.jsonl")
    anchor = ledger.anchor(store, now=START + timedelta(days=1))
    store.close()
    with sqlite3.connect(folder / "esteira.db") as connection:
        for trigger in ("ledger_no_update", "ledger_no_delete", "ledger_no_replace"):
            connection.execute(f"DROP TRIGGER {trigger}")
    return Kept(folder / "esteira.db", (folder / "ledger.jsonl").read_bytes().splitlines(keepends=True), anchor)


@pytest.fixture(scope="module")
def whole(kept: Kept) -> Iterator[Store]:
    """The untouched ledger."""
    opened = Store.open(f"sqlite:///{kept.file}")
    yield opened
    opened.close()


def _verified(store: Store, lines: list[bytes], folder: Path) -> ledger.Verdict:
    (folder / "changed.jsonl").write_bytes(b"".join(lines))
    return ledger.verify(store, folder / "changed.jsonl")


def _forged(line: bytes, **changes: Any) -> bytes:
    """The line with other values and a hash that fits them."""
    said = {**json.loads(line), **changes}
    body = {name: value for name, value in said.items() if name not in ("hash", "prev")}
    return ledger.canonical({**said, "hash": ledger.entry_hash(said["prev"], body)}) + b"\n"


places = st.integers(0, COUNT - 1)
many = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


class TestFile:
    """L-34: an export that anybody may have had in hand."""

    @pytest.mark.requirement("L-34")
    @given(place=places, field=st.sampled_from(sorted(check._NAMES)), data=st.data())
    @many
    def test_an_edit_is_found_at_its_entry(
        self, place: int, field: str, data: st.DataObject, kept: Kept, whole: Store, tmp_path: Path
    ) -> None:
        """L-34 Done when: editing, deleting, reordering or truncating is detected. Here: editing, in any field, to any value."""
        said = json.loads(kept.lines[place])
        value = data.draw(
            st.none()
            | st.booleans()
            | st.integers()
            | st.text(max_size=5)
            | st.dictionaries(st.text(), st.none(), max_size=1)
        )
        if type(value) is type(said[field]) and value == said[field]:
            value = [value]
        changed = ledger.canonical({**said, field: value}) + b"\n"
        verdict = _verified(whole, [*kept.lines[:place], changed, *kept.lines[place + 1 :]], tmp_path)

        assert (False, place + 1, place) == (verdict.ok, verdict.broken_at, verdict.entries)
        assert verdict.reason

    @pytest.mark.requirement("L-34")
    @given(place=places, actor=st.text(min_size=1, max_size=5))
    @many
    def test_an_edit_with_a_hash_that_fits_is_found_at_the_next_entry(
        self, place: int, actor: str, kept: Kept, whole: Store, tmp_path: Path
    ) -> None:
        """L-34 Done when: editing, deleting, reordering or truncating is detected. Here: by somebody who knows how hashes are made."""
        forged = _forged(kept.lines[place], actor=actor)
        verdict = _verified(whole, [*kept.lines[:place], forged, *kept.lines[place + 1 :]], tmp_path)

        # Of the last one it is the head line that does not fit any more.
        assert (False, place + 2) == (verdict.ok, verdict.broken_at)

    @pytest.mark.requirement("L-34")
    @given(place=places)
    @many
    def test_a_deleted_entry_is_found_where_it_was(self, place: int, kept: Kept, whole: Store, tmp_path: Path) -> None:
        """L-34 Done when: editing, deleting, reordering or truncating is detected. Here: deleting."""
        verdict = _verified(whole, [*kept.lines[:place], *kept.lines[place + 1 :]], tmp_path)

        assert (False, place + 1) == (verdict.ok, verdict.broken_at)

    @pytest.mark.requirement("L-34")
    @given(order=st.permutations(range(COUNT)).filter(lambda order: list(order) != list(range(COUNT))))
    @many
    def test_another_order_is_found_at_the_first_entry_out_of_place(
        self, order: list[int], kept: Kept, whole: Store, tmp_path: Path
    ) -> None:
        """L-34 Done when: editing, deleting, reordering or truncating is detected. Here: reordering."""
        verdict = _verified(whole, [*(kept.lines[place] for place in order), kept.lines[-1]], tmp_path)

        first = next(place for place, found in enumerate(order) if place != found)
        assert (False, first + 1) == (verdict.ok, verdict.broken_at)

    @pytest.mark.requirement("L-34")
    @given(left=st.integers(0, COUNT), torn=st.integers(0, 40))
    @many
    def test_a_file_that_was_cut_anywhere_is_found_where_it_ends(
        self, left: int, torn: int, kept: Kept, whole: Store, tmp_path: Path
    ) -> None:
        """L-34 Done when: editing, deleting, reordering or truncating is detected. Here: truncating, also within an entry."""
        verdict = _verified(whole, [*kept.lines[:left], kept.lines[left][:torn]], tmp_path)

        assert (False, left + 1) == (verdict.ok, verdict.broken_at)

    @pytest.mark.requirement("L-34")
    @given(place=st.integers(0, COUNT), at=st.integers(0, 2000), byte=st.integers(0, 255))
    @many
    def test_a_changed_byte_is_found_at_its_entry_unless_the_line_says_the_same(
        self, place: int, at: int, byte: int, kept: Kept, whole: Store, tmp_path: Path
    ) -> None:
        """L-34 Done when: editing, deleting, reordering or truncating is detected. Here: one byte anywhere, the head line too."""
        line = bytearray(kept.lines[place])
        line[at % (len(line) - 1)] = byte
        verdict = _verified(whole, [*kept.lines[:place], bytes(line), *kept.lines[place + 1 :]], tmp_path)

        if verdict.ok:
            assert json.loads(kept.lines[place]) == json.loads(line)
        else:
            assert place + 1 == verdict.broken_at

    def test_a_line_that_is_written_otherwise_and_says_the_same_holds(
        self, kept: Kept, whole: Store, tmp_path: Path
    ) -> None:
        pretty = [json.dumps(json.loads(line)).encode() + b"\r\n" for line in kept.lines]

        assert _verified(whole, pretty, tmp_path).ok

    def test_a_repeated_key_is_a_break_even_with_a_hash_that_fits(
        self, kept: Kept, whole: Store, tmp_path: Path
    ) -> None:
        forged = kept.lines[0].replace(b'"evidence":{', b'"evidence":{"n":7,')
        verdict = _verified(whole, [forged, *kept.lines[1:]], tmp_path)

        assert (1, True) == (verdict.broken_at, "a key stands twice" in verdict.reason)

    def test_a_line_without_an_end_is_not_read_into_memory(
        self, kept: Kept, whole: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(check, "LONGEST_LINE", 2_000)
        verdict = _verified(whole, [*kept.lines[:2], b'{"actor":"' + b"a" * 5_000], tmp_path)

        assert (3, True) == (verdict.broken_at, "shorter" in verdict.reason)


def _changed(kept: Kept, folder: Path, *statements: tuple[str, tuple[Any, ...]]) -> ledger.Verdict:
    """The verdict on a copy of the database that somebody changed who owns the file; anchored, too."""
    copy = folder / "changed.db"
    copy.unlink(missing_ok=True)
    for left in ("-wal", "-shm"):
        copy.with_name(copy.name + left).unlink(missing_ok=True)
    shutil.copy(kept.file, copy)
    with sqlite3.connect(copy) as connection:
        for statement, values in statements:
            connection.execute(statement, values)
    connection.close()
    store = Store.open(f"sqlite:///{copy}")
    try:
        return ledger.verify(store, anchors=[kept.anchor])
    finally:
        store.close()


class TestStore:
    """L-34: the database itself, changed behind its triggers."""

    @pytest.mark.requirement("L-34")
    @given(
        place=places,
        column=st.sampled_from(["at", "kind", "line", "version", "bundle_id", "actor", "evidence", "prev", "hash"]),
        value=st.sampled_from(["x", "2026-01-01T00:00:00.000000Z", "{}", "[", "0" * 64, "7", "null", 'a"b', "\\"]),
    )
    @many
    def test_an_edit_is_found_at_its_entry(
        self, place: int, column: str, value: str, kept: Kept, tmp_path: Path
    ) -> None:
        """L-34 Done when: editing, deleting, reordering or truncating is detected. Here: a column of a row."""
        before = json.loads(kept.lines[place])[column]
        same = str(before) == value or (column == "prev" and place == 0 and value == "0" * 64)
        verdict = _changed(kept, tmp_path, (f"UPDATE ledger SET {column} = ? WHERE seq = ?", (value, place + 1)))

        assert (same, None if same else place + 1) == (verdict.ok, verdict.broken_at)

    @pytest.mark.requirement("L-34")
    @given(place=places)
    @many
    def test_a_deleted_row_is_found_where_it_was(self, place: int, kept: Kept, tmp_path: Path) -> None:
        """L-34 Done when: editing, deleting, reordering or truncating is detected. Here: a row, with an anchor for the last one."""
        verdict = _changed(kept, tmp_path, ("DELETE FROM ledger WHERE seq = ?", (place + 1,)))

        assert (False, place + 1) == (verdict.ok, verdict.broken_at)

    @pytest.mark.requirement("L-34")
    @given(pair=st.tuples(places, places).filter(lambda pair: pair[0] != pair[1]))
    @many
    def test_two_rows_that_changed_places_are_found_at_the_first(
        self, pair: tuple[int, int], kept: Kept, tmp_path: Path
    ) -> None:
        """L-34 Done when: editing, deleting, reordering or truncating is detected. Here: two rows swap their numbers."""
        a, b = (place + 1 for place in pair)
        verdict = _changed(
            kept,
            tmp_path,
            ("UPDATE ledger SET seq = -1 WHERE seq = ?", (a,)),
            ("UPDATE ledger SET seq = ? WHERE seq = ?", (a, b)),
            ("UPDATE ledger SET seq = ? WHERE seq = -1", (b,)),
        )

        assert (False, min(a, b)) == (verdict.ok, verdict.broken_at)

    @pytest.mark.requirement("L-34")
    @given(left=st.integers(0, COUNT - 1))
    @many
    def test_an_end_that_was_cut_off_is_told_by_the_anchored_length(
        self, left: int, kept: Kept, tmp_path: Path
    ) -> None:
        """L-34 Done when: editing, deleting, reordering or truncating is detected. Here: truncating, which the chain alone cannot tell."""
        verdict = _changed(kept, tmp_path, ("DELETE FROM ledger WHERE seq > ?", (left,)))

        assert (False, left + 1, left) == (verdict.ok, verdict.broken_at, verdict.entries)
        assert f"had {COUNT} entries at 2026-01-02" in verdict.reason

    def test_evidence_that_is_no_canonical_json_is_a_break_whatever_its_hash_says(
        self, kept: Kept, tmp_path: Path
    ) -> None:
        """The bytes as they are would hash to it; but an entry's hash is over its canonical JSON, which an export writes."""
        last = json.loads(kept.lines[COUNT - 1])
        body = {name: value for name, value in last.items() if name not in ("hash", "prev")}
        for text in ('{"a": 1}', '{"a":1,"a":1}', '{"a":NaN}', '{"b":1,"a":2}', '{"a":1e0}', '{"a":"\\u00e7"}', "{no"):
            raw = ledger.canonical({**body, "evidence": "@"}).replace(b'"@"', text.encode())
            digest = hashlib.sha256(last["prev"].encode() + raw).hexdigest()
            verdict = _changed(
                kept, tmp_path, ("UPDATE ledger SET evidence = ?, hash = ? WHERE seq = ?", (text, digest, COUNT))
            )
            assert COUNT == verdict.broken_at, text

    def test_a_row_of_another_tenant_is_not_this_chain_s(self, kept: Kept, tmp_path: Path) -> None:
        verdict = _changed(kept, tmp_path, ("UPDATE ledger SET tenant_id = 'eve' WHERE seq = 4", ()))

        assert 4 == verdict.broken_at


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(said=st.lists(st.dictionaries(st.text(max_size=8), VALUES, max_size=3), min_size=1, max_size=5), actor=st.text())
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_was_appended_holds_in_the_store_and_in_its_export(
    said: list[dict[str, Any]], actor: str, store: Store, tmp_path: Path
) -> None:
    for evidence in said:
        ledger.append(store, kind="alias", line="tabular", actor=actor, evidence=evidence)
    ledger.export(store, tmp_path / "ledger.jsonl")

    verdict = ledger.verify(store)
    assert verdict.ok, verdict.reason
    assert verdict == ledger.verify(store, tmp_path / "ledger.jsonl")
    assert verdict.entries == plain(tmp_path / "ledger.jsonl")


@pytest.mark.parametrize("said", [alias, release], ids=["short entries", "entries of releases"])
def test_what_the_benchmark_fills_is_a_ledger_like_any_other(said: Any, sqlite_store: Store, tmp_path: Path) -> None:
    fill(sqlite_store, 40, said)
    entry = ledger.append(sqlite_store, kind="alias", line="tabular", actor="ana", evidence={})
    ledger.export(sqlite_store, tmp_path / "ledger.jsonl")

    assert 41 == entry.seq
    assert ledger.Verdict(True, 41, head=entry.hash) == ledger.verify(sqlite_store)
    assert 41 == plain(tmp_path / "ledger.jsonl")


def test_memory_does_not_grow_with_the_ledger(tmp_path: Path, sqlite_template: Path) -> None:
    peaks = []
    for count in (1_500, 6_000):
        shutil.copy(sqlite_template, tmp_path / f"{count}.db")
        store = Store.open(f"sqlite:///{tmp_path / f'{count}.db'}")
        fill(store, count, alias)
        file = tmp_path / f"{count}.jsonl"
        ledger.export(store, file)
        tracemalloc.start()
        try:
            assert count == ledger.verify(store).entries
            assert count == ledger.verify(store, file).entries
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
        store.close()

    assert peaks[1] < 1.5 * peaks[0], peaks


@given(
    value=VALUES
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.dictionaries(st.text(), st.floats(allow_nan=False, allow_infinity=False))
)
@settings(max_examples=300, deadline=None)
def test_what_is_written_fast_is_canonical_to_the_byte(value: Any) -> None:
    read, write, _ = check._codec()

    text = ledger.canonical(value).decode()
    assert text == write(value)
    assert text == write(read(text))


@pytest.mark.parametrize(
    "number", [
        1e16, 1e15, 123456789012345680.0, 9999999999999998.0, 1e-5, 0.0001, 1.5e-7, 5e-324, 1.7976931348623157e308, -1e22, -0.0, 2**53 + 1,
        10**17,
    ],
)  # fmt: skip
def test_a_number_of_any_size_is_written_as_the_standard_library_writes_it(number: float) -> None:
    _, write, _ = check._codec()

    for value in (number, [number], {"a": number, "b": f":{number}"}):
        assert ledger.canonical(value).decode() == write(value)
