"""What the store says is so now is held against its ledger: a move without an entry, a removed row, an end that is gone."""

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from esteira import ledger
from esteira.cli import main
from esteira.registry import Registry
from esteira.release import approvals
from esteira.settings import Settings
from esteira.store import Store
from tests.released import ADMIN, APPROVER, AUTOMATIC, NOW, SCIENTIST, Unshown, add
from tests.stores import sqlite_store, sqlite_template, store, store_url
from tests.test_approvals import POLICY
from tests.test_registry import LINE

__all__ = ["sqlite_store", "sqlite_template", "store", "store_url"]


def released(settings: Settings, store: Store) -> Registry:
    """Version 1 served, 2 serves, 3 is staged, asked for and approved, 4 was retired."""
    found = Unshown(settings.model_copy(update={"tenant": store.tenant}), store)
    for number in (1, 2, 3, 4):
        add(store, settings, number)
    for number in (1, 2):
        found.promote(LINE, number, actor=ADMIN, reason="go", evidence=AUTOMATIC, now=NOW)
    found.set_alias(LINE, "staging", 4, actor=ADMIN, now=NOW)
    found.set_alias(LINE, "staging", 3, actor=ADMIN, now=NOW)
    asked = found.must(LINE, 3)
    approvals.request(store, asked, actor=SCIENTIST, policy=POLICY, hours=24, now=NOW)
    approvals.approve(found, LINE, 3, actor=APPROVER, reason="read it", now=NOW + timedelta(minutes=1))
    found.retire(LINE, 4, actor=ADMIN, reason="old", now=NOW)
    return found


def change(store: Store, *statements: str) -> None:
    """What somebody does who owns the database."""
    with store.begin() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)


class TestPointers:
    def test_a_store_that_only_the_platform_moved_holds(self, store: Store, tmp_path: Path) -> None:
        registry = released(Settings(home=tmp_path / "home"), store)
        assert ledger.verify(store).ok
        registry.promote(
            LINE, 3, actor=APPROVER, reason="go", evidence={"approval": True}, now=NOW + timedelta(hours=1)
        )
        assert ledger.verify(store).ok
        registry.roll_back(LINE, actor=ADMIN, reason="bad", now=NOW + timedelta(hours=2))
        assert ledger.verify(store).ok

    @pytest.mark.parametrize(
        ("statement", "word"),
        [
            ("UPDATE aliases SET version = 1 WHERE alias = 'champion'", "champion of"),
            ("UPDATE aliases SET version = 1, ledger_seq = {first} WHERE alias = 'champion'", "champion of"),
            ("UPDATE aliases SET ledger_seq = 99 WHERE alias = 'staging'", "staging of"),
            ("DELETE FROM aliases WHERE alias = 'production'", "it was removed"),
            ("UPDATE aliases SET alias = 'challenger' WHERE alias = 'staging'", "challenger of"),
            ("UPDATE approvals SET version = 2 WHERE version = 3", "version 2 of"),
            ("UPDATE approvals SET state = 'requested' WHERE version = 3", "version 3 of"),
            ("UPDATE approvals SET ledger_seq = 99 WHERE version = 3", "version 3 of"),
        ],
        ids=["moved", "moved to an older entry", "no such entry", "removed", "renamed", "of another version", "reopened", "no word"],
    )  # fmt: skip
    def test_a_row_that_was_changed_without_an_entry_is_found(
        self, statement: str, word: str, sqlite_store: Store, tmp_path: Path
    ) -> None:
        released(Settings(home=tmp_path / "home"), sqlite_store)
        first = next(one.seq for one in ledger.log(sqlite_store, limit=None) if one.kind == "alias")
        change(sqlite_store, statement.format(first=first))

        verdict = ledger.verify(sqlite_store)
        assert (False, True) == (verdict.ok, word in verdict.reason), verdict.reason
        with pytest.raises(Exception, match="must hold"):
            ledger.anchor(sqlite_store, now=NOW)

    @pytest.mark.parametrize("away", [False, True], ids=["deployed", "retired since"])
    @pytest.mark.parametrize("state", ["approved", "requested"])
    def test_an_approval_that_a_promotion_used_up_is_not_open_again(
        self, state: str, away: bool, sqlite_store: Store, tmp_path: Path
    ) -> None:
        settings, hour = Settings(home=tmp_path / "home"), timedelta(hours=1)
        registry = released(settings, sqlite_store)
        registry.promote(LINE, 3, actor=APPROVER, reason="go", evidence={"approval": True}, now=NOW + hour)
        if away:
            add(sqlite_store, settings, 5)
            registry.set_alias(LINE, "staging", 5, actor=ADMIN, now=NOW + hour)
            for number in (1, 2):  # 3 is neither champion nor the previous one any more
                registry.promote(LINE, number, actor=ADMIN, reason="back", evidence=AUTOMATIC, now=NOW + 2 * hour)
            registry.retire(LINE, 3, actor=ADMIN, reason="old", now=NOW + 3 * hour)
        assert ledger.verify(sqlite_store).ok

        change(sqlite_store, f"UPDATE approvals SET state = '{state}' WHERE version = 3")

        verdict = ledger.verify(sqlite_store)
        assert (False, True) == (verdict.ok, "version 3 of" in verdict.reason), verdict.reason

    def test_an_archive_entry_of_before_says_by_its_aliases_what_it_moved(self, store: Store, tmp_path: Path) -> None:
        registry = released(Settings(home=tmp_path / "home"), store)
        third = registry.must(LINE, 3)
        with store.begin() as connection:
            approvals.void(store, connection, third, actor=ADMIN, reason="retired", now=NOW)
            ledger.append(
                store, kind="archive", line=LINE, version=3, bundle_id=third.bundle_id, actor="ana",
                evidence={"reason": "old", "aliases": ["staging"]}, now=NOW, connection=connection,
            )  # fmt: skip
            store.drop_alias(connection, LINE, "staging")

        verdict = ledger.verify(store)
        assert verdict.ok, verdict.reason

    @pytest.mark.parametrize("gone", [1, 2, 4, 6])
    def test_an_end_that_was_cut_off_is_found_without_an_anchor(
        self, gone: int, sqlite_store: Store, tmp_path: Path
    ) -> None:
        released(Settings(home=tmp_path / "home"), sqlite_store)
        left = len(ledger.log(sqlite_store, limit=None)) - gone
        change(sqlite_store, "DROP TRIGGER ledger_no_delete", f"DELETE FROM ledger WHERE seq > {left}")

        verdict = ledger.verify(sqlite_store)
        # The very last entry put a version away that had no name any more, so nothing points at it.
        assert (gone == 1, left) == (verdict.ok, verdict.entries)
        assert gone == 1 or (left + 1, True) == (verdict.broken_at, "entries are gone" in verdict.reason)

    def test_the_command_tells_what_serves_without_an_entry(
        self, esteira_home: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        store = Store.open(f"sqlite:///{esteira_home / 'esteira.db'}")
        released(Settings(home=esteira_home), store)
        assert (0, True) == _verify(capsys)
        change(store, "UPDATE aliases SET version = 1 WHERE alias = 'champion'")

        assert (1, False) == _verify(capsys)


def _verify(capsys: pytest.CaptureFixture[str]) -> tuple[Any, bool]:
    with pytest.raises(SystemExit) as ended:
        main(["ledger", "verify", "--json"])
    return ended.value.code, json.loads(capsys.readouterr().out)["ok"]
