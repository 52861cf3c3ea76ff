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
from esteira.cli import main
from esteira.errors import ConfigError, OutsideError, Refused
from esteira.settings import Settings, load_settings
from esteira.store import Store
from tests import keyholders
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
        key = keyholders.add(tmp_path, "ana", "admin", now=NOW)

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
        keyholders.add(tmp_path, "ana", "admin")
        key = keyholders.add(tmp_path, "bob", "approver")

        assert Actor("bob", "approver", keyed=True) == access.who(Settings(home=tmp_path, key=key, actor="ana"))

    def test_without_a_key_file_the_user_of_the_account_does_all_but_approve(self, tmp_path: Path) -> None:
        actor = access.who(Settings(home=tmp_path, actor="somebody"))

        assert LOCAL == actor
        assert {"approve"} == {action for action in ACTIONS if not access.may(actor, action)}

    def test_beside_a_key_file_who_gives_no_key_may_read_register_and_stage(self, tmp_path: Path) -> None:
        keyholders.add(tmp_path, "ana", "admin")

        actor = access.who(Settings(home=tmp_path, actor="somebody"))

        assert GUEST == actor
        assert {"read", "register", "stage"} == {action for action in ACTIONS if access.may(actor, action)}

    @pytest.mark.parametrize("key", ["esk_wrong", "ana"])
    @pytest.mark.parametrize("made", [True, False])
    def test_a_key_that_opens_nothing_is_refused_and_not_shown(self, key: str, made: bool, tmp_path: Path) -> None:
        if made:
            keyholders.add(tmp_path, "ana", "admin")
        with pytest.raises(Refused) as caught:
            access.who(Settings(home=tmp_path, key=key))

        assert "unknown_key" == caught.value.code
        assert "esk_wrong" not in str(caught.value)

    def test_a_revoked_key_opens_nothing_and_its_name_may_get_another(self, tmp_path: Path) -> None:
        keyholders.add(tmp_path, "ana", "admin")
        old = keyholders.add(tmp_path, "bob", "approver")
        with pytest.raises(Refused) as caught:
            keyholders.add(tmp_path, "bob", "admin")
        assert "key_exists" == caught.value.code

        keyholders.revoke(tmp_path, "bob", now=NOW)

        with pytest.raises(Refused):
            access.who(Settings(home=tmp_path, key=old))
        new = keyholders.add(tmp_path, "bob", "viewer")
        assert VIEWER.role == access.who(Settings(home=tmp_path, key=new)).role
        with pytest.raises(Refused):
            access.who(Settings(home=tmp_path, key=old))

    @pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o660, 0o666])
    def test_a_key_file_that_others_may_read_or_write_is_refused(self, mode: int, tmp_path: Path) -> None:
        key = keyholders.add(tmp_path, "ana", "admin")
        (tmp_path / "keys.json").chmod(mode)

        for settings in (Settings(home=tmp_path, key=key), Settings(home=tmp_path)):
            with pytest.raises(Refused) as caught:
                access.who(settings)
            assert "open_keys" == caught.value.code
        with pytest.raises(Refused):
            keyholders.add(tmp_path, "bob", "approver")

    @pytest.mark.parametrize(
        "text",
        [
            "", "[]", "{", '{"schema": 2, "keys": {}}', '{"schema": 1}', '{"schema": 1, "keys": {"ana": {}}}',
            '{"schema": 1, "keys": {"ana": {"role": "god", "sha256": "' + "0" * 64 + '", "created_at": "", "revoked_at": ""}}}',
            '{"schema": 1, "keys": {"ana": {"role": "admin", "sha256": "no", "created_at": "", "revoked_at": ""}}}',
            '{"schema": 1, "keys": {"ana": {"role": "admin", "sha256": "' + "0" * 64
            + '", "created_at": "", "revoked_at": "", "attempts": ["no"]}}}',
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
            keyholders.add(tmp_path, "bob", "approver")
        assert "first_key" == caught.value.code
        assert [] == access.listed(tmp_path)

        keyholders.add(tmp_path, "ana", "admin")
        with pytest.raises(Refused) as caught:
            keyholders.revoke(tmp_path, "ana")
        assert "last_admin" == caught.value.code
        keyholders.add(tmp_path, "eva", "admin")
        keyholders.revoke(tmp_path, "ana")
        assert ADMIN.role == access.listed(tmp_path)[1].role

    @pytest.mark.parametrize("name", ["", "a b", "-a", "a" * 65, "a\nb", "../a"])
    def test_a_name_that_is_none_is_refused(self, name: str, tmp_path: Path) -> None:
        with pytest.raises(ConfigError) as caught:
            keyholders.add(tmp_path, name, "admin")
        assert "bad_key_name" == caught.value.code

    @pytest.mark.parametrize("role", ["", "god", "local", "guest", "engine", "Admin"])
    def test_a_role_that_no_key_may_have_is_refused(self, role: str, tmp_path: Path) -> None:
        with pytest.raises(ConfigError) as caught:
            keyholders.add(tmp_path, "ana", role)
        assert "bad_role" == caught.value.code

    def test_keys_that_are_made_at_once_are_all_kept(self, tmp_path: Path) -> None:
        keyholders.add(tmp_path, "ana", "admin")
        threads = [threading.Thread(target=keyholders.add, args=(tmp_path, f"k{n}", "viewer")) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert {"ana", *(f"k{n}" for n in range(8))} == {key.name for key in access.listed(tmp_path)}

    def test_a_kill_while_keys_are_written_leaves_the_keys_that_were(self, tmp_path: Path) -> None:
        keyholders.add(tmp_path, "ana", "admin")
        before = (tmp_path / "keys.json").read_bytes()
        pid = os.fork()
        if pid == 0:
            os.environ["ESTEIRA_CRASH_AT"] = "keys.before_rename"
            keyholders.add(tmp_path, "bob", "approver")
            os._exit(0)

        assert -9 == os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert before == (tmp_path / "keys.json").read_bytes()
        keyholders.add(tmp_path, "bob", "approver")
        assert ["ana", "bob"] == [key.name for key in access.listed(tmp_path)]


NOBODY = "somebody"
SHOWN = "keys.before_rename, the second time"
GIVING = ("keys.before_rename", "keys.before_entry", "ledger.before_commit", "keys.before_shown", SHOWN)
"""Where giving a key may be cut off."""


class Home:
    """A home, the store that it guards, and the keys that were shown."""

    def __init__(self, home: Path, store: Store) -> None:
        self.path, self.store = home, store
        self.shown: dict[str, str] = {}

    def settings(self, name: str | None = None, actor: str = NOBODY) -> Settings:
        """Of who holds that key; of who has none."""
        return Settings(home=self.path, key=None if name is None else self.shown[name], actor=actor)

    def who(self, name: str | None = None) -> Actor:
        """Who acts with that key."""
        return access.who(self.settings(name))

    def give(self, name: str, role: str, by: str | None = None) -> str:
        """Make a key."""
        access.give(
            self.settings(by), name, role, store=self.store, show=lambda key: self.shown.update({name: key}), now=NOW
        )
        return self.shown[name]

    def killed(self, point: str, act: str, *words: str, by: str | None = None) -> None:
        """Give or take a key in a process that dies at that point; what was shown is lost."""
        pid = os.fork()
        if pid == 0:
            os.environ["ESTEIRA_CRASH_AT"] = point
            own = Store.open(str(self.store.engine.url), self.store.tenant)
            told = {"store": own, "now": NOW} | ({"show": str} if act == "give" else {})
            if point == SHOWN:  # the key is shown, and the process dies as the file is to say so
                told["show"] = lambda _: os.environ.update(ESTEIRA_CRASH_AT="keys.before_rename")
            getattr(access, act)(self.settings(by), *words, **told)
            os._exit(0)
        assert -9 == os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    def refused(self, actor: Actor, action: str, code: str) -> None:
        """The store takes this actor for nobody who may, and tells so."""
        with pytest.raises(Refused) as caught:
            access.require(actor, action, line="tabular", store=self.store, now=NOW)
        assert code == caught.value.code
        last = ledger.log(self.store)[-1]
        assert ("denied", action) == (last.kind, last.evidence["action"])


@pytest.fixture
def home(tmp_path: Path, sqlite_store: Store) -> Home:
    """A home without a key."""
    return Home(tmp_path / "home", sqlite_store)


class TestGiven:
    def test_a_key_that_was_given_is_known_by_the_ledger_which_never_has_the_key(self, home: Home) -> None:
        key = home.give("ana", "admin")
        home.give("bob", "approver", by="ana")

        assert {"ana", "bob"} == set(access.known(home.store))
        entries = ledger.log(home.store)
        assert [(NOBODY, "ana", False), ("ana", "bob", True)] == [
            (one.actor, one.evidence["name"], one.evidence["keyed"]) for one in entries
        ]
        text = json.dumps([one.to_dict() for one in entries])
        assert key not in text
        assert hashlib.sha256(key.encode()).hexdigest() not in text
        for name, action in (("ana", "keys"), ("bob", "approve")):
            access.require(home.who(name), action, line="tabular", store=home.store)

    def test_a_key_that_was_taken_away_opens_nothing_in_any_home(self, home: Home) -> None:
        home.give("ana", "admin")
        home.give("bob", "approver", by="ana")
        before = (home.path / "keys.json").read_bytes()
        held = home.who("bob")

        access.take(home.settings("ana"), "bob", store=home.store, now=NOW)

        with pytest.raises(Refused):
            home.who("bob")
        (home.path / "keys.json").write_bytes(before)  # the file of before, from a backup
        assert held == home.who("bob")
        home.refused(home.who("bob"), "approve", "other_keys")

    @pytest.mark.parametrize("action", ["promote", "rollout", "retire", "keys"])
    def test_a_home_without_keys_is_nobody_s_where_the_store_knows_keys(
        self, action: str, home: Home, tmp_path: Path
    ) -> None:
        home.give("ana", "admin")

        eve = access.who(Settings(home=tmp_path / "eve", actor="eve"))
        assert "local" == eve.role
        home.refused(eve, action, "other_keys")
        with pytest.raises(Refused) as caught:
            access.give(Settings(home=tmp_path / "eve", actor="eve"), "bob", "admin", store=home.store, show=str)
        assert "other_keys" == caught.value.code
        assert not (tmp_path / "eve" / "keys.json").exists()

    def test_a_key_file_that_is_gone_opens_nothing(self, home: Home) -> None:
        home.give("ana", "admin")
        (home.path / "keys.json").unlink()

        home.refused(home.who(), "promote", "other_keys")
        for action in ("read", "register", "stage"):
            access.require(home.who(), action, line="tabular", store=home.store)

    @pytest.mark.parametrize("name", ["ana", "bob"])
    def test_a_key_of_another_home_opens_nothing_even_by_the_same_name(
        self, name: str, home: Home, tmp_path: Path
    ) -> None:
        home.give("ana", "admin")
        other = keyholders.add(tmp_path / "eve", name, "admin")

        eve = access.who(Settings(home=tmp_path / "eve", key=other))
        assert (name, True) == (eve.name, eve.keyed)
        for action in ("approve", "read", "roll_back"):
            home.refused(eve, action, "other_keys")

    def test_a_role_that_was_changed_in_the_file_opens_nothing(self, home: Home) -> None:
        home.give("ana", "admin")
        home.give("vera", "viewer", by="ana")
        path = home.path / "keys.json"
        path.write_text(path.read_text(encoding="utf-8").replace('"viewer"', '"approver"'), encoding="utf-8")

        assert "approver" == home.who("vera").role
        home.refused(home.who("vera"), "approve", "other_keys")

    def test_a_store_that_knows_no_key_goes_by_the_key_file(self, home: Home) -> None:
        keyholders.add(home.path, "ana", "admin")
        home.shown["bob"] = keyholders.add(home.path, "bob", "approver")

        access.require(home.who("bob"), "approve", line="tabular", store=home.store)
        with pytest.raises(Refused) as caught:
            access.require(home.who(), "promote", line="tabular", store=home.store)
        assert "not_allowed" == caught.value.code

    def test_a_rollout_s_own_policy_asks_no_store(self, home: Home) -> None:
        home.give("ana", "admin")

        access.require(access.ENGINE, "promote", line="tabular", store=_away)

    def test_a_roll_back_does_not_wait_for_a_store_that_is_away_and_nothing_else_goes_without_it(
        self, home: Home
    ) -> None:
        home.give("ana", "admin")

        for action in ("roll_back", "read"):
            access.require(home.who("ana"), action, line="tabular", store=_away)
        with pytest.raises(OutsideError):
            access.require(home.who("ana"), "promote", line="tabular", store=_away)
        with pytest.raises(Refused):
            access.require(home.who(), "roll_back", line="tabular", store=_away)

    @pytest.mark.parametrize("other", ["tenant", "database"])
    @pytest.mark.parametrize("role", ["admin", "viewer"])
    def test_the_first_key_given_in_another_store_locks_nobody_out(
        self, role: str, other: str, home: Home, tmp_path: Path
    ) -> None:
        home.give("ana", "admin")
        home.give("bob", "approver", by="ana")
        home.give("old", "admin", by="ana")
        access.take(home.settings("ana"), "old", store=home.store, now=NOW)
        second = _second(home, other, tmp_path)
        access.require(second.who("bob"), "approve", line="tabular", store=second.store)

        second.give("carl", role, by="ana")

        access.require(second.who("ana"), "keys", line="*", store=second.store)
        access.require(second.who("bob"), "approve", line="tabular", store=second.store)
        access.require(second.who("carl"), "read", line="tabular", store=second.store)
        assert {"ana": "admin", "bob": "approver", "carl": role} == _roles(second.store)
        eve = access.who(Settings(home=tmp_path / "eve", actor="eve"))
        second.refused(eve, "promote", "other_keys")

    @pytest.mark.parametrize("other", ["tenant", "database"])
    def test_a_key_that_is_taken_away_first_in_another_store_stays_away_and_the_last_admin_stays(
        self, other: str, home: Home, tmp_path: Path
    ) -> None:
        home.give("ana", "admin")
        home.give("bob", "approver", by="ana")
        second = _second(home, other, tmp_path)
        with pytest.raises(Refused) as caught:
            access.take(home.settings("ana"), "ana", store=second.store, now=NOW)
        assert "last_admin" == caught.value.code
        before = (home.path / "keys.json").read_bytes()

        access.take(home.settings("ana"), "bob", store=second.store, now=NOW)

        assert {"ana": "admin"} == _roles(second.store)
        (home.path / "keys.json").write_bytes(before)
        second.refused(second.who("bob"), "approve", "other_keys")

    def test_the_first_key_of_a_store_and_a_home_is_an_admin_s(self, home: Home) -> None:
        with pytest.raises(Refused) as caught:
            home.give("bob", "approver")
        assert ("first_key", {}) == (caught.value.code, access.known(home.store))

    def test_an_entry_about_a_key_that_cannot_be_read_opens_nothing(self, home: Home) -> None:
        home.give("ana", "admin")
        ledger.append(
            home.store, kind="key", line=access.EVERY_LINE, actor="eve", evidence={"action": "added"}, now=NOW
        )

        with pytest.raises(Refused) as caught:
            access.require(home.who("ana"), "promote", line="tabular", store=home.store)
        assert "broken_ledger" == caught.value.code

    @pytest.mark.parametrize("action", ["roll_back", "read"])
    def test_a_roll_back_and_reading_go_by_the_key_file_where_the_ledger_s_keys_cannot_be_read(
        self, action: str, home: Home
    ) -> None:
        home.give("ana", "admin")
        home.give("vera", "viewer", by="ana")
        ledger.append(home.store, kind="key", line=access.EVERY_LINE, actor="eve", evidence={"action": "added"})

        access.require(home.who("ana"), action, line="tabular", store=home.store)
        with pytest.raises(Refused) as caught:
            access.require(home.who("vera"), "roll_back", line="tabular", store=home.store)
        assert "not_allowed" == caught.value.code


class TestEntriesOfBefore:
    """Entries about keys said no digest at first."""

    @pytest.fixture
    def old(self, home: Home) -> Home:
        """A home and its store as they were left then."""
        for name, role in (("ana", "admin"), ("bob", "approver"), ("old", "viewer")):
            home.shown[name] = keyholders.add(home.path, name, role)
            self.note(home.store, "added", name, role)
        keyholders.revoke(home.path, "old")
        self.note(home.store, "revoked", "old", "viewer")
        return home

    def note(self, store: Store, action: str, name: str, role: str) -> None:
        said = {"action": action, "name": name, "role": role, "by_role": "local", "keyed": False}
        ledger.append(store, kind="key", line="*", actor="somebody", evidence=said, now=NOW)

    def test_a_key_goes_by_its_name_and_role(self, old: Home, tmp_path: Path) -> None:
        access.require(old.who("ana"), "keys", line="*", store=old.store)
        access.require(old.who("bob"), "approve", line="tabular", store=old.store)
        access.require(old.who("bob"), "roll_back", line="tabular", store=old.store)
        path = old.path / "keys.json"
        path.write_text(path.read_text(encoding="utf-8").replace('"approver"', '"admin"'), encoding="utf-8")
        old.refused(old.who("bob"), "approve", "other_keys")
        old.refused(access.who(Settings(home=tmp_path / "eve", actor="eve")), "promote", "other_keys")

    def test_the_next_key_that_is_given_tells_the_digests_of_those_before_it(self, old: Home, tmp_path: Path) -> None:
        old.give("carl", "viewer", by="ana")

        assert {"ana": "admin", "bob": "approver", "carl": "viewer"} == _roles(old.store)
        assert all(one.digest for one in access.known(old.store).values())
        access.require(old.who("bob"), "approve", line="tabular", store=old.store)
        other = keyholders.add(tmp_path / "eve", "ana", "admin")
        old.refused(access.who(Settings(home=tmp_path / "eve", key=other)), "promote", "other_keys")

    def test_a_key_is_taken_away_and_the_last_admin_stays(self, old: Home) -> None:
        with pytest.raises(Refused) as caught:
            access.take(old.settings("ana"), "ana", store=old.store)
        assert "last_admin" == caught.value.code

        access.take(old.settings("ana"), "bob", store=old.store)
        assert {"ana": "admin"} == _roles(old.store)


def _second(home: Home, other: str, tmp_path: Path) -> Home:
    """The same home at a store that knows no key: another tenant's, another database."""
    url = str(home.store.engine.url) if other == "tenant" else f"sqlite:///{tmp_path / 'second.db'}"
    found = Home(home.path, Store.open(url, "other" if other == "tenant" else home.store.tenant))
    found.shown = home.shown
    return found


def _roles(store: Store) -> dict[str, str]:
    return {name: one.role for name, one in access.known(store).items()}


def _away() -> Store:
    raise OutsideError("the database is away", code="store_away", where="store", cure="start it")


class TestCutOff:
    @pytest.mark.parametrize("point", ["keys.before_rename", "keys.before_entry", "keys.before_shown"])
    def test_a_first_key_that_was_never_shown_locks_nobody_out(self, point: str, home: Home) -> None:
        home.killed(point, "give", "ana", "admin")

        assert ([], "local") == (access.listed(home.path), home.who().role)
        access.require(home.who(), "promote", line="tabular", store=home.store)
        home.give("ana", "admin")
        access.require(home.who("ana"), "keys", line="*", store=home.store)

    @pytest.mark.parametrize("point", ["keys.before_rename", "keys.before_entry", "keys.before_shown"])
    def test_a_later_key_that_was_never_shown_can_be_given_again(self, point: str, home: Home) -> None:
        home.give("ana", "admin")
        home.killed(point, "give", "bob", "approver", by="ana")

        assert ["ana"] == [key.name for key in access.listed(home.path)]
        home.give("bob", "approver", by="ana")
        access.require(home.who("bob"), "approve", line="tabular", store=home.store)

    @pytest.mark.parametrize(("first", "second"), list(product(GIVING, GIVING)))
    def test_a_first_key_that_was_cut_off_twice_locks_nobody_out(self, first: str, second: str, home: Home) -> None:
        for point in (first, second):
            home.killed(point, "give", "ana", "admin")
            assert ([], "local") == (access.listed(home.path), home.who().role)
            access.require(home.who(), "promote", line="tabular", store=home.store)

        home.give("ana", "admin")
        access.require(home.who("ana"), "keys", line="*", store=home.store)
        home.give("bob", "approver", by="ana")
        access.require(home.who("bob"), "approve", line="tabular", store=home.store)

    def test_the_first_of_many_attempts_is_remembered_until_one_is_shown(self, home: Home) -> None:
        for point in ("keys.before_shown", "keys.before_entry", "keys.before_entry", "keys.before_rename"):
            home.killed(point, "give", "ana", "admin")
        access.require(home.who(), "promote", line="tabular", store=home.store)

        home.give("ana", "admin")
        access.require(home.who("ana"), "keys", line="*", store=home.store)

    @pytest.mark.parametrize(("first", "second"), list(product(GIVING, GIVING)))
    def test_a_later_key_and_one_in_a_new_store_may_be_cut_off_twice(
        self, first: str, second: str, home: Home, tmp_path: Path
    ) -> None:
        home.give("ana", "admin")
        other = _second(home, "tenant", tmp_path)
        for point in (first, second):
            other.killed(point, "give", "bob", "approver", by="ana")
            access.require(other.who("ana"), "keys", line="*", store=other.store)

        other.give("bob", "approver", by="ana")
        access.require(other.who("bob"), "approve", line="tabular", store=other.store)

    def test_an_attempt_of_another_store_does_not_lock_that_one(self, home: Home, tmp_path: Path) -> None:
        home.killed("keys.before_shown", "give", "ana", "admin")
        _second(home, "database", tmp_path).give("ana", "admin")

        access.require(home.who("ana"), "keys", line="*", store=home.store)

    def test_what_the_ledger_says_of_a_key_is_no_attempt_at_it(self, home: Home, tmp_path: Path) -> None:
        home.give("ana", "admin")
        (digest,) = [one.digest for one in access.known(home.store).values()]
        assert digest is not None
        forged = {"role": "admin", "sha256": "0" * 64, "created_at": "", "revoked_at": "", "shown": False}
        path = tmp_path / "eve" / "keys.json"
        path.parent.mkdir()
        path.write_text(json.dumps({"schema": 1, "keys": {"ana": {**forged, "attempts": [digest]}}}), encoding="utf-8")
        path.chmod(0o600)

        home.refused(access.who(Settings(home=path.parent, actor="eve")), "promote", "other_keys")

    def test_a_key_is_taken_away_for_the_store_before_the_file_says_so(self, home: Home) -> None:
        home.give("ana", "admin")
        home.give("bob", "approver", by="ana")
        home.killed("keys.before_revoked", "take", "bob", by="ana")

        home.refused(home.who("bob"), "approve", "other_keys")
        access.take(home.settings("ana"), "bob", store=home.store, now=NOW)
        with pytest.raises(Refused):
            home.who("bob")

    def test_a_ledger_that_takes_no_entry_leaves_no_key(self, home: Home) -> None:
        with home.store.begin() as connection:
            connection.exec_driver_sql(
                "CREATE TRIGGER full BEFORE INSERT ON ledger BEGIN SELECT RAISE(ABORT, 'full'); END"
            )

        with pytest.raises(Exception, match="full"):
            home.give("ana", "admin")

        assert {} == home.shown
        assert ([], "local") == (access.listed(home.path), home.who().role)

    def test_a_key_that_could_not_be_shown_opens_nothing(self, home: Home) -> None:
        def closed(key: str) -> None:
            home.shown["ana"] = key
            raise BrokenPipeError

        with pytest.raises(BrokenPipeError):
            access.give(home.settings(), "ana", "admin", store=home.store, show=closed)

        with pytest.raises(Refused):
            home.who("ana")
        home.give("ana", "admin")
        access.require(home.who("ana"), "keys", line="*", store=home.store)

    def test_of_two_first_keys_made_at_once_the_second_needs_the_first(self, home: Home) -> None:
        codes: list[str] = []

        def make(name: str) -> None:
            try:
                home.give(name, "admin")
            except Refused as error:
                codes.append(error.code)

        threads = [threading.Thread(target=make, args=(name,)) for name in ("ana", "eve")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert (["not_allowed"], 1) == (codes, len(access.listed(home.path)))


class TestName:
    @pytest.mark.parametrize("name", ["bob", "Bob"])
    def test_who_gives_no_key_does_not_go_by_the_name_of_one(self, name: str, home: Home, tmp_path: Path) -> None:
        home.give("ana", "admin")
        home.give("bob", "approver", by="ana")

        with pytest.raises(Refused) as caught:
            access.who(home.settings(actor=name))
        assert "taken_name" == caught.value.code
        home.refused(access.who(Settings(home=tmp_path / "eve", actor=name)), "register", "taken_name")

    @pytest.mark.parametrize("name", ["eve\n    9  by bob", "a\x1b[2Kb", "a\u2028b", "a\u202eb"])
    def test_a_name_is_one_printable_line(self, name: str) -> None:
        with pytest.raises(ConfigError) as caught:
            load_settings({"ESTEIRA_ACTOR": name}, file=None)
        assert "ESTEIRA_ACTOR" == caught.value.message.split(":")[0]

    def test_an_entry_is_shown_in_one_line_that_says_where_no_key_was_used(
        self, esteira_home: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        store = Store.open(f"sqlite:///{esteira_home / 'esteira.db'}")
        for actor, keyed in (("eve\n    9  now  approval  by bob", False), ("bob", False), ("bob", True)):
            ledger.append(store, kind="denied", line="tabular", actor=actor, evidence={"keyed": keyed}, now=NOW)
        with pytest.raises(SystemExit):
            main(["ledger", "log"])

        forged, free, named = capsys.readouterr().out.splitlines()
        assert "by eve\\n    9  now  approval  by bob (no key)  " in forged
        assert ("by bob (no key)  " in free, "by bob  " in named) == (True, True)


class TestReader:
    def test_who_gives_no_key_reads_and_who_gives_one_gives_one_that_opens(self, home: Home) -> None:
        access.reader(home.settings(), line="*", store=_away)
        home.give("ana", "admin")
        home.give("vera", "viewer", by="ana")
        access.reader(home.settings(), line="*", store=home.store)
        access.reader(home.settings(actor="ana"), line="*", store=home.store)
        access.reader(home.settings("vera"), line="*", store=home.store)

        access.take(home.settings("ana"), "vera", store=home.store)
        for settings in (home.settings("vera"), Settings(home=home.path, key="esk_wrong")):
            with pytest.raises(Refused) as caught:
                access.reader(settings, line="*", store=home.store)
            assert "unknown_key" == caught.value.code

    @pytest.mark.parametrize(
        "words",
        [
            ["keys", "ls"], ["ledger", "log"], ["ledger", "at", "now"], ["ledger", "export", "--out", "x"], ["ledger", "anchor"],
            ["ledger", "verify"], ["release", "ls"], ["release", "show", "tabular"], ["rollout", "status", "tabular"],
        ],
        ids=" ".join,
    )  # fmt: skip
    def test_a_key_that_was_taken_away_reads_nothing(
        self,
        words: list[str],
        esteira_home: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("ESTEIRA_KEY", "esk_taken")
        with pytest.raises(SystemExit) as ended:
            main([*words, "--json"])

        assert (1, "unknown_key") == (ended.value.code, json.loads(capsys.readouterr().out)["error"]["code"])
        assert not (tmp_path / "x").exists()
