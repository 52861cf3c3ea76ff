"""The way out of a rollout is open whatever is away: the database, the disk, the state's file, the policy's memory, the proxy."""

import contextlib
import json
import os
import resource
import shutil
import sqlite3
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from esteira import ledger, locks, outputs
from esteira.errors import ConfigError, OutsideError, Refused
from esteira.registry import Registry
from esteira.rollout import alerts, control, engine, files, shifting, shown, targets
from esteira.rollout import split as splits
from esteira.rollout.runtime import Runtime
from esteira.rollout.split import Split
from esteira.rollout.state import PROMOTED, SETTLED, Rollout, Side, is_settled, under_way
from esteira.settings import Settings
from esteira.store import Store
from esteira.store.database import HEAD
from tests.rollouts import (
    ANA,
    HOUR,
    LINE,
    T0,
    Gateway,
    World,
    die_at,
    home_template,
    make_bundle,
    register,
    world,
)

__all__ = ["home_template", "world"]

NOWHERE = "postgresql://nobody@127.0.0.1:1/nothing"


def by_hand(home: Path, line: str = LINE, **changed: Any) -> Rollout:
    """State and split of a rollout at 10 %, written where no store knows of it."""
    now = datetime.now(UTC) - HOUR
    state = Rollout("shop-7", line, "rules", Side(1, "a" * 64), Side(2, "b" * 64), "salt", now, now, percent=10.0)
    state = replace(state, **changed)
    files.save(home, state)
    splits.write(home, line, Split("shop-7", "salt", 10.0, 0, state.champion, state.challenger))
    return state


def esteira(home: Path, *arguments: str, full: bool = False, **environment: str) -> tuple[int, Any]:
    """Exit code and document of a command in a fresh process; `full`: no byte can be written to any file."""

    def no_room() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))

    done = subprocess.run(
        [sys.executable, "-m", "esteira.cli", *arguments, "--json"], capture_output=True, text=True, check=False,
        env={**os.environ, "ESTEIRA_HOME": str(home), **environment}, cwd=home.parent, preexec_fn=no_room if full else None,
    )  # fmt: skip
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


class TestDatabaseAway:
    @pytest.mark.parametrize("command", [("rollout", "rollback"), ("rollback",)], ids=" ".join)
    def test_a_fresh_process_takes_the_traffic_back(self, command: tuple[str, ...], tmp_path: Path) -> None:
        home = tmp_path / "home"
        by_hand(home)
        code, found = esteira(home, *command, LINE, "--reason", "complaints", ESTEIRA_DATABASE_URL=NOWHERE)

        assert not splits.path(home, LINE).exists()
        state = files.load(home, LINE)
        assert state is not None
        assert ("rolled_back", 0.0) == (state.status, state.percent)
        assert state.alert.startswith("ledger: ")
        assert 2 == code, "it is done, but the ledger does not know it yet"
        assert ("not_carried_out", True) == (found["error"]["code"], "complaints" in found["error"]["message"])
        if command == ("rollback",):
            assert (2, 1, None) == (found["from"], found["to"], found["ledger_entry"])
        else:
            assert ("rolled_back", 0.0) == (found["status"], found["percent"])

    def test_a_rollback_is_told_to_the_ledger_by_the_next_look_that_can(self, world: World) -> None:
        world.start()
        away = World(world.settings.model_copy(update={"database_url": NOWHERE}), now=world.now)
        away.do(control.rollback, reason="complaints")
        assert world.split is None
        assert [(0, 10.0, "start")] == world.traffic()

        assert world.tick(1) is None
        assert (10.0, 0.0, "restore") == world.traffic()[-1]
        ended = world.entries("rollout")[-1].evidence
        assert ("ended", "rolled_back", "complaints") == (ended["action"], ended["status"], ended["reason"])
        for entry in world.entries("rollout", "traffic")[-2:]:
            said = entry.evidence
            assert ("rollout", "ana", T0) == (
                entry.actor,
                said["decided_by"],
                datetime.fromisoformat(said["decided_at"]),
            )
        assert "roll_back by ana at 2026-01-05T09:00:00" in world.entries("traffic")[-1].evidence["reason"]
        assert "challenger" not in world.aliases
        with pytest.raises(Refused) as caught:
            world.start()
        assert "cooldown" == caught.value.code
        world.check()

    def test_a_look_holds_and_says_why(self, world: World) -> None:
        world.start()
        away = World(world.settings.model_copy(update={"database_url": NOWHERE}), now=world.now)
        decision = away.tick(30)
        assert decision is not None
        assert ("hold", 10.0) == (decision.action, decision.percent)
        assert world.state.alert.startswith("registry: ")
        seen = shown.status(LINE, settings=away.settings, now=away.now)
        assert ("running", 10.0) == (seen["status"], seen["percent"])
        assert seen["alert"]

    def test_a_start_that_was_cut_off_is_taken_back_too(self, world: World) -> None:
        die_at("rollout.before_state", world.start)
        assert world.split is not None
        away = World(world.settings.model_copy(update={"database_url": NOWHERE}), now=world.now)
        away.do(control.rollback)
        assert world.split is None
        world.tick(1)
        assert "rolled_back" == world.state.status
        assert (10.0, 0.0, "restore") == world.traffic()[-1]
        world.check()

    def test_traffic_that_could_not_be_taken_back_at_once_does_not_wait_for_it(self, world: World) -> None:
        gateway = Gateway()
        world.target = gateway
        world.start()
        gateway.stuck = True
        away = World(world.settings.model_copy(update={"database_url": NOWHERE}), now=world.now, target=gateway)
        letter = shown.undone(away.do(control.rollback), LINE)
        assert 10.0 == gateway.percent
        assert letter is not None
        assert letter["message"].startswith("the candidate may still take traffic: target: ")
        assert "ESTEIRA_TARGET" in letter["cure"]
        gateway.stuck = False
        away.tick(1)
        assert 0.0 == gateway.percent, "the database is still away"
        letter = shown.undone(world.state, LINE)
        assert letter is not None
        assert letter["message"].startswith("the candidate takes no traffic any more, but not all is done: ledger: ")
        assert "ESTEIRA_DATABASE_URL" in letter["cure"]
        world.now = away.now
        world.tick(1)
        assert 0.0 == world.traffic()[-1][1]
        assert "ended" == world.entries("rollout")[-1].evidence["action"]
        world.check()

    def test_an_end_that_nobody_could_be_told_is_told_with_its_rest(self, world: World) -> None:
        gateway = Gateway()
        world.target = gateway
        world.start()
        gateway.stuck = True
        away = World(world.settings.model_copy(update={"database_url": NOWHERE}), now=world.now, target=gateway)
        away.do(control.rollback)
        gateway.stuck = False
        world.tick(1)
        assert (10.0, 0.0, "restore") == world.traffic()[-1]
        ended = world.entries("rollout")[-1].evidence
        assert ("ended", (T0 + 24 * HOUR).isoformat()) == (ended["action"], ended["cooldown_until"])

    def test_an_end_after_a_promotion_that_got_no_traffic_is_told_too(self, world: World) -> None:
        gateway = Gateway()
        world.target = gateway
        world.to_last_stage()
        gateway.stuck = True
        world.tick()
        assert "approved" == world.entries("rollout")[-1].evidence["status"], "it was, and then it was not carried out"
        world.tick(1 / 60)
        assert ("running", 50.0) == (world.state.status, world.state.percent), "so it goes on"
        gateway.stuck = False
        away = World(world.settings.model_copy(update={"database_url": NOWHERE}), now=world.now, target=gateway)
        away.do(control.rollback)
        assert 0.0 == gateway.percent
        world.tick(1)
        assert "rolled_back" == world.entries("rollout")[-1].evidence["status"]
        world.check()

    def test_a_state_that_cannot_be_read_ends_without_it(self, world: World) -> None:
        world.start()
        files.path(world.home, LINE).write_bytes(b"{")
        away = World(world.settings.model_copy(update={"database_url": NOWHERE}), now=world.now)
        decision = away.tick(1)
        assert decision is not None
        assert world.split is None
        assert world.state.alert.startswith("ledger: ")
        world.tick(2)
        assert (10.0, 0.0, "restore") == world.traffic()[-1]
        assert "ended" == world.entries("rollout")[-1].evidence["action"]
        world.check()

    def test_the_alert_says_it_once_however_often_it_is_looked_at(self, world: World) -> None:
        world.start()
        files.save(world.home, replace(world.state, alert="bias: two groups differ"))
        away = World(world.settings.model_copy(update={"database_url": NOWHERE}), now=world.now)
        for _ in range(3):
            away.tick(1)
            assert ["registry", "bias"] == [alerts.alert_kind(part) for part in world.state.alert.split(alerts.AND)]
        world.now = away.now
        world.tick(1)
        assert "bias: two groups differ" == world.state.alert

    def test_an_alert_that_grew_before_is_cut_again(self) -> None:
        assert "bias: x" == alerts.own_alert("registry: a | registry: a | bias: x")
        assert "state: x" == alerts.own_alert("target: a | state: x", of=alerts.UNDONE)


def _newer(world: World, revision: str) -> None:
    """Make the store one of another version of this code, whose answers are a ConfigError and not "away"."""
    with contextlib.closing(sqlite3.connect(world.home / "esteira.db")) as store, store:
        store.execute("UPDATE alembic_version SET version_num = ?", (revision,))


class TestDatabaseRefuses:
    """It is there, but a standby, of a newer schema, spoiled."""

    @pytest.mark.parametrize(
        "command", [("rollout", "rollback"), ("rollback",), ("rollback", "--to", "1")], ids=" ".join
    )
    def test_a_schema_of_tomorrow_stops_no_rollback(self, command: tuple[str, ...], world: World) -> None:
        world.start()
        _newer(world, "9999")
        code, found = esteira(world.home, *command, LINE, "--reason", "complaints")
        assert world.split is None
        assert ("rolled_back", 0.0) == (world.state.status, world.state.percent)
        assert world.state.alert.startswith("ledger: ")
        assert (2, "not_carried_out") == (code, found["error"]["code"])
        _newer(world, HEAD)
        world.tick(1)
        assert (10.0, 0.0, "restore") == world.traffic()[-1]
        assert "challenger" not in world.aliases
        world.check()

    def test_a_rollback_that_was_told_and_stuck_is_tried_again_too(self, world: World) -> None:
        gateway = Gateway()
        world.target = gateway
        world.start()
        gateway.stuck = True
        world.do(control.rollback)
        gateway.stuck = False
        _newer(world, "9999")
        away = World(world.settings, now=world.now, target=gateway)
        assert "ledger" == alerts.alert_kind(away.do(control.rollback).alert)
        assert 0.0 == gateway.percent

    def test_a_state_that_cannot_be_read_ends_in_it(self, world: World) -> None:
        world.start()
        files.path(world.home, LINE).write_bytes(b"{")
        _newer(world, "9999")
        away = World(world.settings, now=world.now)
        assert "ledger" == alerts.alert_kind(away.do(control.rollback).alert)
        assert world.split is None

    def test_what_was_cut_off_is_taken_back_in_it(self, world: World) -> None:
        die_at("rollout.before_state", world.start)
        _newer(world, "9999")
        assert "rolled_back" == World(world.settings, now=world.now).do(control.rollback).status
        assert world.split is None

    def test_a_promotion_that_is_due_does_not_hide_behind_it(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        world.start()

        def away(*_: Any, **__: Any) -> None:
            raise OutsideError("the platform store answers, but it does not", code="store_away")

        with monkeypatch.context() as patch:
            patch.setattr(Registry, "promote", away)
            letter = shown.undone(world.do(control.promote), LINE)
        assert letter is not None
        assert "not the champion yet: registry: " in letter["message"]
        assert f"esteira rollback {LINE} --reason TEXT" in letter["cure"]
        _newer(world, "9999")
        assert "rolled_back" == World(world.settings, now=world.now).do(control.rollback).status
        assert world.split is None

    def test_a_standby_stops_no_rollback(self, tmp_path: Path, postgres_url: str) -> None:
        home = tmp_path / "home"
        by_hand(home)
        store = Store.open(postgres_url, tenant="standby")
        told = {"test_id": "shop-7", "action": "started"}
        ledger.append(store, kind="rollout", line=LINE, version=2, bundle_id="b" * 64, actor="ana", evidence=told)
        store.close()
        standby = f"{postgres_url}{'&' if '?' in postgres_url else '?'}options=-c%20default_transaction_read_only%3Don"
        code, _ = esteira(
            home, "rollback", LINE, "--reason", "complaints", ESTEIRA_DATABASE_URL=standby, ESTEIRA_TENANT="standby"
        )
        state = files.load(home, LINE)
        assert state is not None
        assert (2, "rolled_back", "ledger") == (code, state.status, alerts.alert_kind(state.alert))
        assert not splits.path(home, LINE).exists()

    def test_whatever_a_driver_raises_is_a_database_that_is_away(self, postgres_url: str) -> None:
        store = Store.open(postgres_url)
        for statement in ("SELECT * FROM no_such_table", "SET TRANSACTION READ ONLY; CREATE TABLE t (a int)"):
            with pytest.raises(OutsideError) as caught, store.begin() as connection:
                connection.exec_driver_sql(statement)
            assert "store_away" == caught.value.code
        store.close()


class TestHomeReadOnly:
    def test_a_rollback_needs_no_lock_and_says_so(self, world: World) -> None:
        world.start()
        shutil.rmtree(world.home / "locks")
        (world.home / "locks").write_text("no folder", encoding="utf-8")
        for refused in (world.tick, lambda: world.do(control.pause)):
            with pytest.raises(OutsideError) as caught:
                refused()
            assert "no_lock" == caught.value.code
        state = world.do(control.rollback)
        assert world.split is None
        assert ("rolled_back", "disk") == (state.status, alerts.alert_kind(state.alert))
        assert "complaints" in state.alert or "a reason" in state.alert
        assert shown.undone(state, LINE) is not None

    def test_one_who_holds_the_line_is_waited_for_all_the_same(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        world.start()
        monkeypatch.setattr(control, "_WAIT_SECONDS", 0.0)
        with locks.hold(world.home, f"rollout {LINE}"), pytest.raises(Refused) as caught:
            world.do(control.rollback)
        assert "locked" == caught.value.code


class TestDiskFull:
    def test_a_rollback_takes_the_traffic_and_is_saved_later(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        world.start()

        def full(*_: Any, **__: Any) -> None:
            raise OutsideError("files fit on the disk, but it is full", code="disk_full")

        monkeypatch.setattr(outputs, "write", full)
        state = world.do(control.rollback, reason="complaints")

        assert world.split is None
        assert (10.0, 0.0, "roll_back") == world.traffic()[-1]
        assert "disk" == state.alert.partition(":")[0]
        with pytest.raises(OutsideError):
            world.tick(1)
        assert world.split is None, "the state before is not gone by"
        monkeypatch.undo()

        world.tick(1)
        assert ("rolled_back", 0.0) == (world.state.status, world.state.percent), "as the ledger has it"
        assert T0 + 24 * HOUR == world.state.cooldown_until
        world.tick(1)
        assert "challenger" not in world.aliases
        assert 1 == len([one for one in world.entries("rollout") if one.evidence["action"] == "ended"])
        world.check()

    def test_a_disk_without_room_for_a_byte_stops_no_rollback(self, world: World) -> None:
        world.start()
        code, found = esteira(world.home, "rollback", LINE, "--reason", "complaints", full=True)
        assert not splits.path(world.home, LINE).exists()
        assert (2, "rollout") == (code, found["undone"])
        world.tick(1)
        assert 0.0 == world.traffic()[-1][1]
        world.tick(1)
        assert "challenger" not in world.aliases
        world.check()

    def test_more_traffic_waits_for_it(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        world.start()
        world.feed(24)

        def full(*_: Any, **__: Any) -> None:
            raise OutsideError("files fit on the disk, but it is full", code="disk_full")

        monkeypatch.setattr(outputs, "write", full)
        with pytest.raises(OutsideError):
            world.tick(24)
        assert 10.0 == world.split.percent  # type: ignore[union-attr]
        assert [(0, 10.0, "start")] == world.traffic()


class TestState:
    @pytest.mark.parametrize("by", ["a look", "a roll back"])
    def test_a_file_that_cannot_be_opened_gives_no_traffic(self, by: str, world: World) -> None:
        world.start()
        file = files.path(world.home, LINE)
        file.unlink()
        file.mkdir()
        if by == "a look":
            world.tick(1)
        else:
            world.do(control.rollback)
        assert world.split is None
        assert ("inconclusive", 0.0) == (world.state.status, world.state.percent)
        assert (10.0, 0.0, "state_lost") == world.traffic()[-1]
        world.check()

    @pytest.mark.parametrize(
        ("policy", "options"),
        [
            ("rules", {"rules": {"renamed": 1}}),
            ("sequential", {"sequential": {"stage": 0}}),
            ("thresholds", {"thresholds": {"failed": 5, "empty": {}}}),
            ("flags", {"units": 5}),
        ],
    )
    def test_a_policy_that_cannot_go_on_by_it_ends_the_rollout(
        self, policy: str, options: dict[str, Any], world: World
    ) -> None:
        world.start(policy=policy)
        world.feed(2)
        files.save(world.home, replace(world.state, options=options))
        assert shown.status(LINE, settings=world.settings, now=world.now + 2 * HOUR)["reason"] or policy == "flags"
        decision = world.tick(2)

        assert decision is not None
        assert world.split is None
        assert ("inconclusive", 0.0) == (world.state.status, world.state.percent)
        assert f"state: policy {policy}" in world.state.alert
        world.check()

    def test_a_state_that_goes_on_where_the_ledger_says_it_ended_gives_no_traffic(self, world: World) -> None:
        """An old copy of the folder that was put back."""
        world.start()
        kept = world.state
        world.do(control.rollback)
        world.tick(1)
        files.save(world.home, kept)
        told = len(world.traffic())

        world.tick(1)
        assert world.split is None
        assert ("rolled_back", told) == (world.state.status, len(world.traffic()))
        world.check()

    @pytest.mark.parametrize("gone", ["cut", "withdrawn"])
    def test_a_promotion_that_waits_is_not_made_after_it_was_rolled_back(
        self, gone: str, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The state before the roll back is the backup: approved, and its promotion waits."""
        gateway = Gateway()
        world.target = gateway
        world.start()

        def away(*_: Any, **__: Any) -> None:
            raise OutsideError("the platform store answers, but it does not", code="store_away")

        with monkeypatch.context() as patch:
            patch.setattr(Registry, "promote", away)
            world.do(control.promote)
            gateway.stuck = True
            world.do(control.rollback)
        assert "target" == alerts.alert_kind(world.state.alert)
        backup = files.load_backup(world.home, LINE)
        assert backup is not None
        assert under_way(backup)
        if gone == "cut":
            files.path(world.home, LINE).write_bytes(b"{")
        else:
            files.path(world.home, LINE).unlink()
        gateway.stuck = False
        world.tick(1)
        world.tick(1)

        assert 1 == world.aliases["champion"]
        assert ("rolled_back", 0.0) == (world.state.status, world.state.percent)
        assert 0.0 == gateway.percent
        assert is_settled(world.state)
        world.check()

    def test_a_promotion_that_was_made_stays_when_its_state_is_lost(self, world: World) -> None:
        world.target = Gateway()
        world.start()
        world.do(control.promote)
        # As a kill between the registry's move and its mark leaves it.
        bare = tuple(one for one in world.state.history if one["action"] != PROMOTED)
        files.path(world.home, LINE).with_suffix(".bak").write_bytes(files.encode(replace(world.state, history=bare)))
        files.path(world.home, LINE).write_bytes(b"{")
        world.tick(1)
        world.tick(1)
        assert ("approved", 2) == (world.state.status, world.aliases["champion"])
        told = [one.evidence.get("status") for one in world.entries("rollout") if one.evidence["action"] == "ended"]
        assert ["approved"] == told
        world.check()


def _unmarked(world: World) -> None:
    """The end as it was written before ends were marked."""
    bare = tuple(one for one in world.state.history if one["action"] != SETTLED)
    files.save(world.home, replace(world.state, history=bare))


class TestUnmarkedEnds:
    @pytest.mark.parametrize("end", [control.rollback, control.promote], ids=["rolled back", "approved"])
    def test_its_target_is_another_lines(self, end: Any, world: World) -> None:
        gateway = Gateway()
        world.target = gateway
        world.start()
        world.do(end)
        world.now += timedelta(seconds=61)
        world.tick()
        _unmarked(world)
        told, tries = len(world.entries("rollout", "traffic", "alias")), gateway.tries
        gateway.percent = 25.0
        world.tick(1)
        assert (25.0, tries) == (gateway.percent, gateway.tries)
        assert told == len(world.entries("rollout", "traffic", "alias"))
        assert is_settled(world.state), "and it is marked now"

    def test_one_whose_traffic_could_not_be_taken_is_not_through(self, world: World) -> None:
        gateway = Gateway()
        world.target = gateway
        world.start()
        gateway.stuck = True
        world.do(control.rollback)
        gateway.stuck = False
        world.tick(1)
        assert 0.0 == gateway.percent
        assert is_settled(world.state)

    def test_a_rollback_of_the_line_means_its_champion(self, world: World) -> None:
        world.start()
        world.do(control.rollback)
        _unmarked(world)
        assert world.do(control.rollback) is None

    def test_asked_again_where_it_was_stuck_it_is_still_the_rollout(self, world: World) -> None:
        gateway = Gateway()
        world.target = gateway
        world.start()
        gateway.stuck = True
        world.do(control.rollback)
        gateway.stuck = False
        assert "rolled_back" == world.do(control.rollback).status
        assert 0.0 == gateway.percent

    @pytest.mark.parametrize("point", ["rollout.before_shift", "rollout.before_state"])
    def test_asked_again_where_it_was_cut_off_it_is_still_the_rollout(self, point: str, world: World) -> None:
        """And not the champion, which who undoes a release would go on to move."""
        world.start()
        die_at(point, lambda: World(world.settings, now=world.now).do(control.rollback))
        assert "rolled_back" == world.do(control.rollback).status
        assert world.split is None

    def test_it_keeps_no_other_line_from_the_target(self, world: World) -> None:
        world.settings = world.settings.model_copy(update={"target": "gateway:ns/route"})
        world.target = Gateway()
        world.target.place = targets.make(world.settings, LINE).place
        world.start()
        world.do(control.rollback)
        _unmarked(world)
        run = Runtime("tabular@other", world.settings, world.registry, world.target, world.now, ANA)
        with control._target_of_its_own(run):
            pass


class TestSharedTarget:
    def test_an_ended_rollout_leaves_alone_what_another_line_splits_since(self, world: World) -> None:
        gateway = Gateway()
        world.target = gateway
        world.start()
        world.do(control.rollback)
        world.tick(1)
        assert is_settled(world.state)
        kept, told = world.state, len(world.entries("rollout", "traffic", "alias"))

        gateway.percent = 25.0  # another line's
        for _ in range(3):
            world.tick(1)
        assert world.do(control.rollback) is None
        assert 25.0 == gateway.percent
        assert (kept, told) == (world.state, len(world.entries("rollout", "traffic", "alias")))

    def test_an_approved_one_too(self, world: World) -> None:
        gateway = Gateway()
        world.target = gateway
        world.start()
        world.do(control.promote)
        world.now += timedelta(seconds=61)
        world.tick()
        assert 0.0 == gateway.percent
        gateway.percent = 25.0
        world.tick(1)
        assert 25.0 == gateway.percent

    @pytest.mark.parametrize("status", ["running", "rolled_back"])
    def test_a_start_waits_until_the_other_lines_is_through(self, status: str, world: World) -> None:
        world.settings = world.settings.model_copy(update={"target": "gateway:ns/route"})
        world.target = Gateway()
        world.target.place = targets.make(world.settings, LINE).place
        other = by_hand(world.home, "tabular@other", status=status)
        with pytest.raises(Refused) as caught:
            world.start()
        assert ("target_taken", True) == (caught.value.code, "tabular@other" in caught.value.message)
        assert "challenger" not in world.aliases

        mark = {"at": T0.isoformat(), "action": SETTLED, "from": 0.0, "to": 0.0, "actor": "ana", "reason": "r"}
        files.save(world.home, replace(other, status="rolled_back", history=(mark,)))
        splits.clear(world.home, "tabular@other")
        (world.home / "rollouts" / "tabular@third.bak").write_bytes(b"{")  # nothing that could still split
        world.start()
        assert 10.0 == world.target.percent

    @pytest.mark.parametrize(
        ("policy", "options", "fits"),
        [
            ("flags", {"units": {"internal": ["ana"]}}, False),
            ("ab", {"primaries": [{"name": "bought", "baseline": 0.1, "minimum_effect": 0.02}]}, False),
            ("flags", {}, True),
        ],
    )  # fmt: skip
    def test_a_policy_starts_only_where_it_can_be_carried_out(
        self, policy: str, options: dict[str, Any], fits: bool, world: World
    ) -> None:
        world.target = Gateway()
        if fits:
            world.start(policy=policy, options=options)
            return
        with pytest.raises(Refused) as caught:
            world.start(policy=policy, options=options)
        assert "target_unfit" == caught.value.code
        assert "challenger" not in world.aliases

    def test_a_candidate_that_is_down_is_not_asked_three_times(self, world: World) -> None:
        class Down(Gateway):
            def shift(self, split: Split | None, *, first: bool = False) -> None:
                self.tries += 1
                raise OutsideError("a candidate is up, but it is not", code="candidate_down")

        target = Down()
        run = Runtime(LINE, world.settings, world.registry, target, world.now, ANA)
        assert shifting.shift(run, None).startswith("target: ")
        assert 1 == target.tries


class TestCutOff:
    def test_a_stage_that_begins_late_takes_its_whole_time(self, world: World) -> None:
        world.start()
        world.feed(24)
        world.now += 24 * HOUR
        die_at("rollout.before_shift", world.tick)
        world.tick(71)
        assert (1, 25.0, world.now) == (world.state.stage, world.state.percent, world.state.stage_at)
        world.feed(72)
        world.tick(1)
        assert (1, 25.0) == (world.state.stage, world.state.percent), "it has had one hour of its 48"

    def test_a_start_that_was_cut_off_stands_in_nobodys_way(self, world: World) -> None:
        die_at("rollout.before_record", world.start)
        assert 2 == world.aliases["challenger"]
        other = register(world.registry, make_bundle(world.home.parent / "three", "three"))
        world.start(version=other)
        assert other == world.aliases["challenger"]
        world.check()

    def test_its_challenger_goes_at_the_next_look(self, world: World) -> None:
        die_at("rollout.before_record", world.start)
        assert [LINE] == files.lines(world.home)
        assert world.tick() is None
        assert "challenger" not in world.aliases
        assert [] == files.lines(world.home)

    def test_a_challenger_that_somebody_named_stays(self, world: World) -> None:
        world.start()
        world.do(control.rollback)
        other = register(world.registry, make_bundle(world.home.parent / "three", "three"))
        world.registry.set_alias(LINE, "challenger", other, actor=ANA, reason="to serve it beside", now=world.now)
        world.tick(1)
        assert other == world.aliases["challenger"]


class TestOptions:
    @pytest.mark.parametrize(
        ("policy", "options", "code"),
        [
            ("rules", {"approved_confidence": 0.5}, "unknown_option"),
            ("rules", {"mim_samples": 1}, "unknown_option"),
            ("rules", {"x": float("nan")}, "unknown_option"),
            ("rules", {"rules": {"negative_looks": 0}}, "bad_rule"),
            ("rules", {"rules": {"positive_chance": 80}}, "bad_rule"),
            ("rules", {"rules": {"approved_confidence": float("nan")}}, "bad_rule"),
            ("rules", {"rules": 0}, "bad_rule"),
            ("sequential", {"sequential": {}}, "unknown_option"),
            ("thresholds", {"accuracy": 0.9}, "unknown_option"),
            ("flags", {"unit": {}}, "unknown_option"),
            ("ab", {"planned_units": 5}, "unknown_option"),
        ],
        ids=str,
    )
    def test_what_a_policy_does_not_take_is_refused_before_anything_moves(
        self, policy: str, options: dict[str, Any], code: str, world: World
    ) -> None:
        with pytest.raises(ConfigError) as caught:
            world.start(policy=policy, options=options)
        assert code == caught.value.code or (code == "bad_rule" and caught.value.code == "bad_option")
        assert "challenger" not in world.aliases
        assert [] == files.lines(world.home)

    def test_what_a_line_says_of_its_own_policy_is_not_anothers(self, world: World) -> None:
        from tests.test_rollout_control import release

        said = release(rollout_policy="rules", rollout_options={"rules": {"margin": 0.03}, "min_samples": 12_001})
        with pytest.raises(Refused) as caught:
            world.start(policy="sequential", release=said)
        assert "preconditions" == caught.value.code, "the count of rows is the line's, whatever the policy"
        assert {} == world.start(policy="sequential", release=said, options={"min_samples": 10}).options

    def test_a_reason_is_one_line(self, world: World) -> None:
        with pytest.raises(ConfigError) as caught:
            world.start(reason="ok\n7 approval by bob")
        assert "no_reason" == caught.value.code


def test_a_settled_end_costs_no_look_at_the_target_or_the_ledger(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.start()
    world.do(control.rollback)
    assert is_settled(world.state)

    asked: list[Any] = []

    def share(*told: Any) -> float:
        asked.append(told)
        return 0.0

    monkeypatch.setattr(targets.make(world.settings, LINE).__class__, "share", share)
    kept = world.state
    away = Settings.model_copy(world.settings, update={"database_url": NOWHERE})
    assert engine.tick(LINE, settings=away, now=world.now + HOUR) is None
    assert ([], kept) == (asked, world.state)
