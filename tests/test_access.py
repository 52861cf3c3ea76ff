"""Who may do what: a matrix that denies by default, keys that are kept as hashes, and refusals that the ledger keeps."""

import hashlib
import json
import os
import stat
import threading
from itertools import product
from pathlib import Path

import pytest

from esteira import access, ledger
from esteira.access import ACTIONS, MATRIX, ROLES, Actor
from esteira.errors import ConfigError, Refused
from esteira.settings import Settings
from esteira.store import Store
from tests.released import ADMIN, APPROVER, GUEST, LOCAL, NOW, SCIENTIST, VIEWER
from tests.stores import sqlite_store, sqlite_template

__all__ = ["sqlite_store", "sqlite_template"]

# S-36, written out: what each role may, and nothing else.
MAY = {
    "viewer": {"read"},
    "data_scientist": {"read", "register", "stage", "retire", "roll_back"},
    "approver": {"read", "stage", "approve", "promote", "rollout", "roll_back"},
    "admin": {"read", "register", "stage", "retire", "roll_back", "approve", "promote", "rollout", "keys"},
    "local": {"read", "register", "stage", "retire", "roll_back", "promote", "rollout", "keys"},
    "guest": {"read", "register", "stage"},
    "engine": {"read", "promote", "rollout", "roll_back"},
}


@pytest.mark.parametrize(("role", "action"), list(product([*MAY, "stranger"], [*ACTIONS, "fly"])))
def test_a_role_may_what_the_matrix_says_and_nothing_else(role: str, action: str) -> None:
    assert (action in MAY.get(role, set())) == access.may(Actor("x", role, keyed=True), action)


def test_every_role_that_a_key_may_have_stands_in_the_matrix() -> None:
    assert set(ROLES) < set(MATRIX) == set(MAY)
    assert frozenset(ACTIONS) == MATRIX["admin"]


def test_a_refusal_names_who_may_and_is_kept_in_the_ledger(sqlite_store: Store) -> None:
    with pytest.raises(Refused) as caught:
        access.require(SCIENTIST, "approve", line="tabular", store=sqlite_store, now=NOW)

    assert ("not_allowed", "tabular") == (caught.value.code, caught.value.where)
    assert "approver, admin" in caught.value.message
    assert "lia has the role data_scientist" in caught.value.message
    (entry,) = ledger.log(sqlite_store)
    assert ("denied", "lia", {"action": "approve", "role": "data_scientist", "keyed": True}) == (
        entry.kind,
        entry.actor,
        entry.evidence,
    )
    access.require(APPROVER, "approve", line="tabular", store=sqlite_store, now=NOW)
    assert 1 == len(ledger.log(sqlite_store))


def test_a_refusal_finds_the_ledger_of_its_environment_by_itself(esteira_home: Path) -> None:
    with pytest.raises(Refused, match="gave no key"):
        access.require(LOCAL, "approve", line="tabular")

    store = Store.open(f"sqlite:///{esteira_home / 'esteira.db'}")
    assert ["denied"] == [entry.kind for entry in ledger.log(store)]


class TestKeys:
    def test_a_key_is_kept_as_its_hash_in_a_file_that_nobody_else_may_read(self, tmp_path: Path) -> None:
        key = access.add(tmp_path, "ana", "admin", now=NOW)

        path = tmp_path / "keys.json"
        assert 0o600 == stat.S_IMODE(path.stat().st_mode)
        text = path.read_text(encoding="utf-8")
        assert key not in text
        assert hashlib.sha256(key.encode()).hexdigest() in text
        assert ["keys.json", "locks"] == sorted(child.name for child in tmp_path.iterdir())
        (kept,) = access.listed(tmp_path)
        assert {
            "name": "ana",
            "role": "admin",
            "created_at": "2026-03-02T09:00:00+00:00",
            "revoked_at": None,
        } == kept.public()

    def test_the_actor_is_the_name_of_the_key_and_free_text_counts_for_nothing(self, tmp_path: Path) -> None:
        access.add(tmp_path, "ana", "admin")
        key = access.add(tmp_path, "bob", "approver")

        assert Actor("bob", "approver", keyed=True) == access.who(Settings(home=tmp_path, key=key, actor="ana"))

    def test_without_a_key_file_the_user_of_the_account_does_all_but_approve(self, tmp_path: Path) -> None:
        actor = access.who(Settings(home=tmp_path, actor="somebody"))

        assert LOCAL == actor
        assert {"approve"} == {action for action in ACTIONS if not access.may(actor, action)}

    def test_beside_a_key_file_who_gives_no_key_may_read_register_and_stage(self, tmp_path: Path) -> None:
        access.add(tmp_path, "ana", "admin")

        actor = access.who(Settings(home=tmp_path, actor="somebody"))

        assert GUEST == actor
        assert {"read", "register", "stage"} == {action for action in ACTIONS if access.may(actor, action)}

    @pytest.mark.parametrize("key", ["esk_wrong", "ana"])
    @pytest.mark.parametrize("made", [True, False])
    def test_a_key_that_opens_nothing_is_refused_and_not_shown(self, key: str, made: bool, tmp_path: Path) -> None:
        if made:
            access.add(tmp_path, "ana", "admin")
        with pytest.raises(Refused) as caught:
            access.who(Settings(home=tmp_path, key=key))

        assert "unknown_key" == caught.value.code
        assert "esk_wrong" not in str(caught.value)

    def test_a_revoked_key_opens_nothing_and_its_name_may_get_another(self, tmp_path: Path) -> None:
        access.add(tmp_path, "ana", "admin")
        old = access.add(tmp_path, "bob", "approver")
        with pytest.raises(Refused) as caught:
            access.add(tmp_path, "bob", "admin")
        assert "key_exists" == caught.value.code

        access.revoke(tmp_path, "bob", now=NOW)

        with pytest.raises(Refused):
            access.who(Settings(home=tmp_path, key=old))
        new = access.add(tmp_path, "bob", "viewer")
        assert VIEWER.role == access.who(Settings(home=tmp_path, key=new)).role
        with pytest.raises(Refused):
            access.who(Settings(home=tmp_path, key=old))

    @pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o660, 0o666])
    def test_a_key_file_that_others_may_read_or_write_is_refused(self, mode: int, tmp_path: Path) -> None:
        key = access.add(tmp_path, "ana", "admin")
        (tmp_path / "keys.json").chmod(mode)

        for settings in (Settings(home=tmp_path, key=key), Settings(home=tmp_path)):
            with pytest.raises(Refused) as caught:
                access.who(settings)
            assert "open_keys" == caught.value.code
        with pytest.raises(Refused):
            access.add(tmp_path, "bob", "approver")

    @pytest.mark.parametrize(
        "text",
        [
            "", "[]", "{", '{"schema": 2, "keys": {}}', '{"schema": 1}', '{"schema": 1, "keys": {"ana": {}}}',
            '{"schema": 1, "keys": {"ana": {"role": "god", "sha256": "' + "0" * 64 + '", "created_at": "", "revoked_at": ""}}}',
            '{"schema": 1, "keys": {"ana": {"role": "admin", "sha256": "no", "created_at": "", "revoked_at": ""}}}',
        ],
    )  # fmt: skip
    def test_a_key_file_that_is_none_opens_nothing(self, text: str, tmp_path: Path) -> None:
        path = tmp_path / "keys.json"
        path.write_text(text, encoding="utf-8")
        path.chmod(0o600)

        with pytest.raises(ConfigError) as caught:
            access.who(Settings(home=tmp_path))
        assert "bad_keys" == caught.value.code

    def test_the_first_key_is_an_admins_and_the_last_admin_stays(self, tmp_path: Path) -> None:
        with pytest.raises(Refused) as caught:
            access.add(tmp_path, "bob", "approver")
        assert "first_key" == caught.value.code
        assert [] == access.listed(tmp_path)

        access.add(tmp_path, "ana", "admin")
        with pytest.raises(Refused) as caught:
            access.revoke(tmp_path, "ana")
        assert "last_admin" == caught.value.code
        access.add(tmp_path, "eva", "admin")
        access.revoke(tmp_path, "ana")
        assert ADMIN.role == access.listed(tmp_path)[1].role

    @pytest.mark.parametrize("name", ["", "a b", "-a", "a" * 65, "a\nb", "../a"])
    def test_a_name_that_is_none_is_refused(self, name: str, tmp_path: Path) -> None:
        with pytest.raises(ConfigError) as caught:
            access.add(tmp_path, name, "admin")
        assert "bad_key_name" == caught.value.code

    @pytest.mark.parametrize("role", ["", "god", "local", "guest", "engine", "Admin"])
    def test_a_role_that_no_key_may_have_is_refused(self, role: str, tmp_path: Path) -> None:
        with pytest.raises(ConfigError) as caught:
            access.add(tmp_path, "ana", role)
        assert "bad_role" == caught.value.code

    def test_keys_that_are_made_at_once_are_all_kept(self, tmp_path: Path) -> None:
        access.add(tmp_path, "ana", "admin")
        threads = [threading.Thread(target=access.add, args=(tmp_path, f"k{n}", "viewer")) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert {"ana", *(f"k{n}" for n in range(8))} == {key.name for key in access.listed(tmp_path)}

    def test_a_kill_while_keys_are_written_leaves_the_keys_that_were(self, tmp_path: Path) -> None:
        access.add(tmp_path, "ana", "admin")
        before = (tmp_path / "keys.json").read_bytes()
        pid = os.fork()
        if pid == 0:
            os.environ["ESTEIRA_CRASH_AT"] = "keys.before_rename"
            access.add(tmp_path, "bob", "approver")
            os._exit(0)

        assert -9 == os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert before == (tmp_path / "keys.json").read_bytes()
        access.add(tmp_path, "bob", "approver")
        assert ["ana", "bob"] == [key.name for key in access.listed(tmp_path)]

    def test_what_is_told_of_a_key_in_the_ledger_is_not_the_key(self, sqlite_store: Store) -> None:
        access.note(sqlite_store, ADMIN, "added", "bob", "approver", now=NOW)

        (entry,) = ledger.log(sqlite_store)
        assert ("key", "ana", "bob") == (entry.kind, entry.actor, entry.evidence["name"])
        assert "sha256" not in json.dumps(entry.evidence)
