"""The ledger only grows, and any change to what it said is found: on SQLite, on PostgreSQL, and in an exported file."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.exc import DBAPIError

from esteira import ledger
from esteira.errors import OutsideError, SourceError
from esteira.store import Store
from esteira.store import tables as t
from tests.stores import sqlite_store, sqlite_template, store, store_url

__all__ = ["sqlite_store", "sqlite_template", "store", "store_url"]

HASH = "ab" * 32


def _fill(store: Store, count: int = 3) -> list[ledger.Entry]:
    return [
        ledger.append(
            store, kind="verdict", line="tabular@x", version=number, bundle_id=HASH, actor="ana", evidence={"n": number}
        )
        for number in range(1, count + 1)
    ]


class TestChain:
    def test_each_entry_follows_the_one_before(self, store: Store) -> None:
        first, second, third = _fill(store)

        assert [1, 2, 3] == [first.seq, second.seq, third.seq]
        assert [ledger.GENESIS, first.hash, second.hash] == [first.prev, second.prev, third.prev]
        assert ledger.Verdict(True, 3, head=third.hash) == ledger.verify(store)

    def test_a_hash_is_sha256_over_the_one_before_and_canonical_json(self) -> None:
        """Golden: whoever verifies an export with other tools must come to the same number."""
        body = {"seq": 1, "kind": "alias", "evidence": {"b": 0.1, "a": "ação"}}

        assert b'{"evidence":{"a":"a\xc3\xa7\xc3\xa3o","b":0.1},"kind":"alias","seq":1}' == ledger.canonical(body)
        assert __import__("hashlib").sha256(b"0" * 64 + ledger.canonical(body)).hexdigest() == ledger.entry_hash(
            ledger.GENESIS, body
        )

    def test_an_empty_ledger_holds(self, store: Store) -> None:
        assert ledger.Verdict(True, 0) == ledger.verify(store)
        assert [] == ledger.log(store)

    def test_log_shows_the_last_entries_oldest_first_and_by_line(self, store: Store) -> None:
        entries = _fill(store)
        other = ledger.append(store, kind="alias", line="tabular@y", actor="bob", evidence={})

        assert [entries[2], other] == ledger.log(store, limit=2)
        assert entries == ledger.log(store, "tabular@x")
        assert [*entries, other] == ledger.log(store, limit=None)

    def test_tenants_have_chains_of_their_own(self, store: Store, store_url: str) -> None:
        other = Store.open(store_url, tenant=store.tenant + "-other")
        _fill(store)
        _fill(other, 1)

        assert [1] == [entry.seq for entry in ledger.log(other)]
        assert ledger.verify(other).ok
        assert ledger.verify(store).ok
        other.close()

    def test_processes_that_append_at_once_make_one_chain(self, store: Store) -> None:
        code = (
            "import sys; from esteira import ledger; from esteira.store import Store\n"
            "store = Store.open(sys.argv[1], tenant=sys.argv[2])\n"
            "for n in range(15): ledger.append(store, kind='alias', line='tabular', actor=sys.argv[3], evidence={'n': n})"
        )
        url = store.engine.url.render_as_string(hide_password=False)
        processes = [
            subprocess.Popen([sys.executable, "-c", code, url, store.tenant, name], stderr=subprocess.PIPE, text=True)
            for name in ("ana", "bob")
        ]

        for process in processes:
            _, said = process.communicate(timeout=60)
            assert 0 == process.returncode, said
        assert (True, 30) == (ledger.verify(store).ok, ledger.verify(store).entries)

    def test_an_append_that_was_cut_off_leaves_no_entry(self, store: Store) -> None:
        _fill(store, 1)
        code = (
            "import os, sys; from esteira import ledger; from esteira.store import Store\n"
            "store = Store.open(sys.argv[1], tenant=sys.argv[2])\n"
            "os.environ['ESTEIRA_CRASH_AT'] = 'ledger.before_commit'\n"
            "ledger.append(store, kind='alias', line='tabular', actor='ana', evidence={})"
        )
        url = store.engine.url.render_as_string(hide_password=False)
        died = subprocess.run([sys.executable, "-c", code, url, store.tenant], timeout=60, check=False)

        assert -9 == died.returncode
        assert ledger.Verdict(True, 1, head=ledger.log(store)[0].hash) == ledger.verify(store)

    def test_an_append_within_a_transaction_that_fails_did_not_happen(self, store: Store) -> None:
        def move_and_fail() -> None:
            with store.begin() as connection:
                ledger.append(store, kind="alias", line="tabular", actor="ana", evidence={}, connection=connection)
                raise RuntimeError("the move failed")

        with pytest.raises(RuntimeError):
            move_and_fail()
        assert [] == ledger.log(store)

    def test_evidence_is_kept_as_json_can_hold_it_and_without_passwords(self, store: Store) -> None:
        entry = ledger.append(
            store,
            kind="verdict",
            line="tabular",
            actor="ana",
            evidence={
                "auc": float("nan"),
                "uri": "s3://k:s3cret@host/b",
                "nul": "a\0b\ud800",
                "at": Path("x"),
                "t": (1, 2),
            },
        )

        assert {"auc": None, "uri": "s3://k:***@host/b", "nul": "a\ufffdb?", "at": "x", "t": [1, 2]} == entry.evidence
        assert [entry] == ledger.log(store)
        assert ledger.verify(store).ok


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(evidence=st.dictionaries(st.text(max_size=8), VALUES, max_size=4))
def test_any_json_evidence_hashes_the_same_after_it_was_written_and_read(evidence: dict[str, Any]) -> None:
    from esteira.store.database import plain

    kept = plain(evidence)
    read = json.loads(ledger.canonical(kept))

    assert ledger.entry_hash(ledger.GENESIS, kept) == ledger.entry_hash(ledger.GENESIS, read)


class TestAppendOnly:
    @pytest.mark.parametrize(
        "statement",
        [
            "UPDATE ledger SET actor = 'eve' WHERE tenant_id = '{tenant}'",
            "DELETE FROM ledger WHERE tenant_id = '{tenant}' AND seq = 3",
        ],
    )
    def test_the_database_refuses_to_change_or_remove_an_entry(self, statement: str, store: Store) -> None:
        _fill(store)
        with pytest.raises(DBAPIError, match="append-only"), store.begin() as connection:
            connection.exec_driver_sql(statement.format(tenant=store.tenant))

        assert ledger.verify(store).ok

    def test_the_database_refuses_to_empty_or_replace(self, store: Store) -> None:
        _fill(store)
        statement = "TRUNCATE ledger" if store.dialect == "postgresql" else "REPLACE INTO ledger SELECT * FROM ledger"
        with pytest.raises(DBAPIError, match="append-only"), store.begin() as connection:
            connection.exec_driver_sql(statement)

        assert ledger.verify(store).ok


def _tamper(store: Store, seq: int, **values: Any) -> None:
    """Change an entry as somebody could who owns the file: without the triggers."""
    with store.begin() as connection:
        connection.exec_driver_sql("DROP TRIGGER ledger_no_update")
        connection.exec_driver_sql("DROP TRIGGER ledger_no_delete")
        where = sa.and_(t.ledger.c.tenant_id == store.tenant, t.ledger.c.seq == seq)
        if values:
            connection.execute(sa.update(t.ledger).where(where).values(**values))
        else:
            connection.execute(sa.delete(t.ledger).where(where))


class TestTampering:
    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            ({"actor": "eve"}, "content was changed"),
            ({"evidence": '{"n":3}'}, "content was changed"),
            ({"evidence": "{no json"}, "content was changed"),
            ({"at": "2020-01-01T00:00:00.000000Z"}, "content was changed"),
            ({"version": None}, "content was changed"),
            ({"hash": "0" * 64}, "must have hash"),
            ({"prev": "0" * 64}, "must follow hash"),
            ({}, "must be numbered so, but it is 3"),
        ],
        ids=["actor", "evidence", "not json", "time", "version", "hash", "prev", "removed"],
    )
    def test_the_first_entry_that_does_not_hold_is_named(
        self, change: dict[str, Any], reason: str, sqlite_store: Store
    ) -> None:
        _fill(sqlite_store, 4)
        _tamper(sqlite_store, 2, **change)

        verdict = ledger.verify(sqlite_store)
        assert (False, 1, 2) == (verdict.ok, verdict.entries, verdict.broken_at)
        assert reason in verdict.reason

    def test_an_entry_that_was_rewritten_with_a_fitting_hash_breaks_the_next_one(self, sqlite_store: Store) -> None:
        entries = _fill(sqlite_store, 3)
        forged = {**entries[1].body(), "actor": "eve"}
        _tamper(sqlite_store, 2, actor="eve", hash=ledger.entry_hash(entries[0].hash, forged))

        assert 3 == ledger.verify(sqlite_store).broken_at


Edit = Callable[[list[str]], list[str]]


class TestExport:
    def test_an_export_is_json_lines_that_end_with_the_head(self, store: Store, tmp_path: Path) -> None:
        entries = _fill(store)
        head = ledger.export(store, tmp_path / "made" / "ledger.jsonl")

        lines = [json.loads(line) for line in (tmp_path / "made" / "ledger.jsonl").read_text("utf-8").splitlines()]
        assert {"count": 3, "hash": entries[-1].hash} == head
        assert [*(entry.to_dict() for entry in entries), {"head": head}] == lines
        assert ledger.Verdict(True, 3, head=entries[-1].hash) == ledger.verify(
            store, tmp_path / "made" / "ledger.jsonl"
        )

    def test_an_export_of_nothing_holds(self, store: Store, tmp_path: Path) -> None:
        ledger.export(store, tmp_path / "ledger.jsonl")

        assert ledger.Verdict(True, 0) == ledger.verify(store, tmp_path / "ledger.jsonl")

    def test_an_older_export_still_holds(self, store: Store, tmp_path: Path) -> None:
        _fill(store)
        ledger.export(store, tmp_path / "ledger.jsonl")
        _fill(store)

        assert (True, 3) == (
            ledger.verify(store, tmp_path / "ledger.jsonl").ok,
            ledger.verify(store, tmp_path / "ledger.jsonl").entries,
        )

    @pytest.mark.parametrize(
        ("edit", "broken_at", "reason"),
        [
            (lambda lines: [lines[0], lines[1].replace("ana", "eve"), *lines[2:]], 2, "content was changed"),
            (lambda lines: [lines[0], *lines[2:]], 2, "numbered"),
            (lambda lines: [lines[1], lines[0], *lines[2:]], 1, "numbered"),
            (lambda lines: [lines[0], lines[0], *lines[1:]], 2, "numbered"),
            (lambda lines: lines[:-1], 4, "without one"),
            (lambda lines: [*lines[:-2], lines[-1]], 3, "head line must name 2 entries"),
            (lambda lines: [*lines[:-1], '{"head":{"count":true,"hash":"x"}}'], 4, "head line"),
            (lambda lines: [*lines, lines[0]], 4, "nothing may follow"),
            (lambda lines: [lines[0], lines[1][:40], *lines[2:]], 2, "line 2 must be a JSON object"),
            (lambda lines: [lines[0], "", *lines[1:]], 2, "line 2 must be a JSON object"),
            (lambda lines: [lines[0], "[]", *lines[1:]], 2, "line 2 must be a JSON object"),
            (lambda lines: [lines[0], "[" * 50_000, *lines[1:]], 2, "line 2 must be a JSON object"),
            (lambda lines: [lines[0], '{"seq":2}', *lines[1:]], 2, "missing or unknown"),
            (lambda lines: [lines[0], lines[1][:-1] + ',"x":1}', *lines[2:]], 2, "x is missing or unknown"),
            (lambda lines: [lines[0], lines[1][:-1] + ',"seq":2}', *lines[2:]], 2, "a key stands twice"),
            (lambda lines: [lines[0].replace('"n":1', '"n":NaN'), *lines[1:]], 1, "NaN is not JSON"),
            (lambda lines: [lines[0].replace('"seq":1', '"seq":true'), *lines[1:]], 1, "numbered"),
            (lambda lines: [lines[0].replace('"version":1', '"version":"\\ud800"'), *lines[1:]], 1, "plain JSON"),
        ],
        ids=[
            "changed", "removed", "swapped", "repeated", "no head", "cut", "head of another type", "after head", "torn",
            "empty line", "list", "deep", "few fields", "more fields", "key twice", "nan", "true for 1", "surrogate",
        ],
    )  # fmt: skip
    def test_a_changed_file_is_found_at_its_first_break(
        self, edit: Edit, broken_at: int, reason: str, sqlite_store: Store, tmp_path: Path
    ) -> None:
        file = tmp_path / "ledger.jsonl"
        _fill(sqlite_store)
        ledger.export(sqlite_store, file)
        file.write_text("\n".join(edit(file.read_text("utf-8").splitlines())) + "\n", encoding="utf-8")

        verdict = ledger.verify(sqlite_store, file)

        assert (False, broken_at) == (verdict.ok, verdict.broken_at)
        assert reason in verdict.reason

    def test_bytes_that_are_no_text_are_a_break(self, sqlite_store: Store, tmp_path: Path) -> None:
        (tmp_path / "ledger.jsonl").write_bytes(b"\xff\xfe\n")

        assert 1 == ledger.verify(sqlite_store, tmp_path / "ledger.jsonl").broken_at

    def test_a_store_that_was_cut_back_is_found_by_an_older_export(self, sqlite_store: Store, tmp_path: Path) -> None:
        _fill(sqlite_store)
        ledger.export(sqlite_store, tmp_path / "ledger.jsonl")
        _tamper(sqlite_store, 3)

        verdict = ledger.verify(sqlite_store, tmp_path / "ledger.jsonl")
        assert ledger.verify(sqlite_store).ok, "a chain alone cannot know that its end is missing"
        assert (False, 3) == (verdict.ok, verdict.broken_at)

    def test_a_store_with_another_history_is_found(self, sqlite_store: Store, tmp_path: Path) -> None:
        _fill(sqlite_store)
        ledger.export(sqlite_store, tmp_path / "ledger.jsonl")
        other = Store.open(f"sqlite:///{tmp_path / 'other.db'}")
        _fill(other)

        verdict = ledger.verify(other, tmp_path / "ledger.jsonl")
        assert (False, 3) == (verdict.ok, verdict.broken_at)
        assert "differs" in verdict.reason

    def test_an_export_that_was_cut_off_leaves_the_former_file(self, sqlite_store: Store, tmp_path: Path) -> None:
        file = tmp_path / "ledger.jsonl"
        _fill(sqlite_store)
        ledger.export(sqlite_store, file)
        before = file.read_bytes()
        _fill(sqlite_store)
        code = (
            "import os, sys; from pathlib import Path; from esteira import ledger; from esteira.store import Store\n"
            "os.environ['ESTEIRA_CRASH_AT'] = 'ledger.export_half_written'\n"
            "ledger.export(Store.open(sys.argv[1]), Path(sys.argv[2]))"
        )
        died = subprocess.run(
            [sys.executable, "-c", code, str(sqlite_store.engine.url), str(file)], timeout=60, check=False
        )

        assert -9 == died.returncode
        assert before == file.read_bytes()

    def test_a_file_that_is_not_there_or_cannot_be_written_is_told(self, sqlite_store: Store, tmp_path: Path) -> None:
        with pytest.raises(SourceError) as missing:
            ledger.verify(sqlite_store, tmp_path / "none.jsonl")
        assert missing.value.cure
        (tmp_path / "file").touch()
        with pytest.raises(OutsideError) as unwritable:
            ledger.export(sqlite_store, tmp_path / "file" / "ledger.jsonl")
        assert "export_failed" == unwritable.value.code
