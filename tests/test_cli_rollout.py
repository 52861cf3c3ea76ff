"""`esteira rollout` and `esteira tick`: what scripts rely on, and how a loop begins, goes on and ends."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from esteira import ledger, locks
from esteira.cli import main
from esteira.errors import OutsideError
from esteira.rollout import control, files
from esteira.rollout import split as splits
from tests.rollouts import ANA, LINE, Gateway, World, die_at, home_template, world

NOWHERE = "postgresql://nobody@127.0.0.1:1/nothing?connect_timeout=1"

__all__ = ["home_template", "world"]


@pytest.fixture
def live(world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    """The world as a command sees it: by the environment, at the present time."""
    from datetime import UTC, datetime

    monkeypatch.setenv("ESTEIRA_HOME", str(world.home))
    world.now = datetime.now(UTC)
    return world


def ask(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> Any:
    """The JSON document of a command."""
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--json"])
    out = capsys.readouterr().out
    assert code == ended.value.code, out
    (line,) = out.splitlines()
    return json.loads(line)


class TestRollout:
    def test_a_course_by_commands(self, live: World, capsys: pytest.CaptureFixture[str]) -> None:
        assert "none" == ask(capsys, "rollout", "status", LINE)["status"]
        found = ask(capsys, "rollout", "start", LINE, "--reason", "October", "--option", "min_samples=100")
        assert ("running", 10.0) == (found["status"], found["percent"])
        assert {"status", "percent", "since", "arms", "verdict"} <= set(found)
        assert "hold" == ask(capsys, "rollout", "tick", LINE)["done"]
        assert "paused" == ask(capsys, "rollout", "pause", LINE, "--reason", "holiday")["status"]
        assert "running" == ask(capsys, "rollout", "resume", LINE, "--reason", "over")["status"]
        found = ask(capsys, "rollout", "rollback", LINE, "--reason", "complaints")
        assert ("rolled_back", 0.0, None) == (found["status"], found["percent"], found["verdict"])

    def test_a_promotion_by_command(self, live: World, capsys: pytest.CaptureFixture[str]) -> None:
        ask(capsys, "rollout", "start", LINE, "--version", "2", "--policy", "rules", "--reason", "r")
        assert "approved" == ask(capsys, "rollout", "promote", LINE, "--reason", "urgent")["status"]
        assert 2 == live.aliases["champion"]

    @pytest.mark.parametrize(
        ("arguments", "code", "name"),
        [
            (("rollout", "start", LINE), 2, "usage"),
            (("rollout", "start", LINE, "--reason", " "), 2, "no_reason"),
            (("rollout", "start", LINE, "--reason", "r", "--option", "x"), 2, "usage"),
            (("rollout", "start", LINE, "--reason", "r", "--option", "x=1", "--option", "x=2"), 2, "usage"),
            (("rollout", "start", LINE, "--reason", "r", "--version", "1"), 1, "same_version"),
            (("rollout", "start", LINE, "--reason", "r", "--policy", "luck"), 2, "unknown_policy"),
            (("rollout", "status", "No Line"), 2, "bad_line"),
            (("rollout", "status", "tabular@nosuch"), 1, "unknown_line"),
            (("rollout", "tick", "tabular@nosuch"), 1, "unknown_line"),
            (("ledger", "at", "now", "--line", "tabular@nosuch"), 1, "unknown_line"),
            (("ledger", "log", "--line", "tabular@nosuch"), 1, "unknown_line"),
            (("ledger", "log", "--line", "bad name"), 2, "bad_line"),
            (("release", "ls", "tabular@nosuch"), 1, "unknown_line"),
            (("release", "ls", "--family", "zz"), 2, "unknown_family"),
            (("rollout", "tick", "../etc"), 2, "bad_line"),
            (("rollout", "pause", LINE, "--reason", "r"), 1, "no_rollout"),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
    )
    def test_what_is_wrong_is_said_as_a_letter(
        self, arguments: tuple[str, ...], code: int, name: str, live: World, capsys: pytest.CaptureFixture[str]
    ) -> None:
        error = ask(capsys, *arguments, code=code)["error"]
        assert name == error["code"]
        assert error["cure"]

    @pytest.mark.parametrize("command", [("rollout", "rollback"), ("rollback",)], ids=" ".join)
    def test_traffic_that_could_not_be_taken_back_is_no_success(
        self, command: tuple[str, ...], live: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        live.do(control.start)
        monkeypatch.setenv("ESTEIRA_TARGET", f"haproxy:{live.home}/nobody.sock#rollout")
        found = ask(capsys, *command, LINE, "--reason", "complaints", code=2)
        assert "not_carried_out" == found["error"]["code"]
        assert "target: " in found["error"]["message"]
        again = ask(capsys, *command, LINE, "--reason", "complaints", code=2)
        assert "target: " in again["error"]["message"]
        assert 1 == live.aliases["champion"], "asked again, it is still the rollout that is undone"
        monkeypatch.delenv("ESTEIRA_TARGET")
        ask(capsys, "tick")
        assert live.split is None
        assert "target" not in live.state.alert

    @pytest.mark.parametrize(
        "command", [("rollout", "rollback"), ("rollback",), ("rollback", "--to", "1")], ids=" ".join
    )
    def test_a_hand_over_that_is_stuck_is_no_success_and_keeps_no_champion(
        self, command: tuple[str, ...], live: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        live.target = Gateway()
        live.do(control.start)
        live.do(control.promote)
        assert (100.0, 2) == (live.target.percent, live.aliases["champion"])
        monkeypatch.setenv("ESTEIRA_TARGET", f"haproxy:{live.home}/nobody.sock#rollout")
        found = ask(capsys, *command, LINE, "--reason", "complaints", code=2)
        assert "not_carried_out" == found["error"]["code"]
        assert "target: " in found["error"]["message"]
        if command[0] == "rollback":
            assert ("release", 2, 1) == (found["undone"], found["from"], found["to"])
            assert 1 == live.aliases["champion"]
        else:
            assert 2 == live.aliases["champion"], "that command moves no champion"
        live.tick(1)
        assert 0.0 == live.target.percent

    def test_a_rollback_of_no_rollout_is_no_success(self, live: World, capsys: pytest.CaptureFixture[str]) -> None:
        """A release is taken back by another command, which the cure names; the champion stays."""
        undo = ("rollout", "rollback", LINE, "--reason", "undo")
        error = ask(capsys, *undo, code=1)["error"]
        assert ("no_rollout", True) == (error["code"], "there is none" in error["message"])
        live.do(control.start)
        live.do(control.promote)
        error = ask(capsys, *undo, code=1)["error"]
        assert ("no_rollout", True) == (error["code"], "ended as approved" in error["message"])
        assert f"`esteira rollback {LINE} --reason TEXT`" in error["cure"]
        assert 2 == live.aliases["champion"]

    def test_asked_again_for_a_rollback_that_was_made_it_is_shown(
        self, live: World, capsys: pytest.CaptureFixture[str]
    ) -> None:
        live.do(control.start)
        for _ in range(2):
            assert "rolled_back" == ask(capsys, "rollout", "rollback", LINE, "--reason", "complaints")["status"]

    def test_an_alert_of_what_goes_on_is_no_letter_of_a_pause(
        self, live: World, capsys: pytest.CaptureFixture[str]
    ) -> None:
        live.do(control.start)
        files.save(live.home, replace(live.state, alert="registry: it was away"))
        for word in ("pause", "resume"):
            found = ask(capsys, "rollout", word, LINE, "--reason", "r")
            assert "error" not in found
            assert "registry: it was away" == found["alert"]

    @pytest.mark.parametrize(
        ("told", "where"),
        [
            (("--policy", "canary"), "--policy"),
            (("--option", "foo=1"), "--option foo"),
            (("--option", "rules=7"), "--option rules"),
            (("--option", "min_samples=-1"), "--option min_samples"),
        ],
    )
    def test_what_an_option_says_wrongly_is_wrong_at_that_option(
        self, told: tuple[str, str], where: str, live: World, capsys: pytest.CaptureFixture[str]
    ) -> None:
        found = ask(capsys, "rollout", "start", LINE, "--reason", "r", *told, code=2)["error"]
        assert where == found["where"]

    def test_a_rollback_to_no_version_ends_no_rollout(self, live: World, capsys: pytest.CaptureFixture[str]) -> None:
        live.do(control.start)
        for to, code in (("99", "unknown_version"), ("2", "never_served")):
            error = ask(capsys, "rollback", LINE, "--to", to, "--reason", "r", code=1)["error"]
            assert code == error["code"]
        assert ("running", 10.0) == (live.state.status, live.split.percent)  # type: ignore[union-attr]
        assert "rollout" == ask(capsys, "rollback", LINE, "--to", "1", "--reason", "r")["undone"]
        assert not splits.path(live.home, LINE).exists()

    def test_where_nothing_is_to_be_seen_of_a_line_that_is_there_is_no_error(
        self, live: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert [] == ask(capsys, "ledger", "at", "2020-01-01T00:00", "--line", LINE)["serving"]
        assert [] == ask(capsys, "release", "ls", LINE, "--state", "retired")["models"]
        assert [] == ask(capsys, "ledger", "log", "--line", "*")["entries"]
        monkeypatch.setenv("ESTEIRA_DATABASE_URL", NOWHERE)
        assert "none" == ask(capsys, "rollout", "status", LINE)["status"], "whether it is there nobody can be asked"

    def test_the_lines_tell_of_a_rollout(self, live: World, capsys: pytest.CaptureFixture[str]) -> None:
        (found,) = ask(capsys, "lines")
        assert (LINE, 1, None) == tuple(found[name] for name in ("line", "champion", "rollout"))
        live.do(control.start)
        assert {"version": 2, "status": "running", "percent": 10.0} == ask(capsys, "lines")[0]["rollout"]
        with pytest.raises(SystemExit):
            main(["lines"])
        assert "champion 1      production  rollout of version 2: running at 10 %" in capsys.readouterr().out
        files.path(live.home, LINE).write_text("{", encoding="utf-8")
        unread = {"version": None, "status": "unreadable", "percent": None}
        assert unread == ask(capsys, "lines")[0]["rollout"]
        live.tick(1)
        assert None is ask(capsys, "lines")[0]["rollout"]

    def test_the_ledger_is_read_a_line_an_entry_with_what_was_done_and_why(
        self, live: World, capsys: pytest.CaptureFixture[str]
    ) -> None:
        live.do(control.start, reason="October")
        live.do(control.pause, reason="holiday")
        live.do(control.rollback, reason="complaints")
        with pytest.raises(SystemExit):
            main(["ledger", "log", "--line", LINE])
        rows = capsys.readouterr().out.splitlines()
        assert len(list(ledger.entries(live.registry.store, LINE))) == len(rows)
        for kind, words, why in (
            ("verdict", "pass", ""),
            ("alias", "champion - -> 1, production - -> 1", "the first"),
            ("rollout", "started", "October"),
            ("traffic", "start 0 -> 10 %", "October"),
            ("rollout", "paused", "holiday"),
            ("traffic", "roll_back 10 -> 0 %", "complaints"),
            ("rollout", "ended rolled_back", "complaints"),
        ):
            assert [row for row in rows if f"  {kind} " in row and f"  {words} " in row and row.endswith(why)], words

    def test_a_person_reads_a_few_lines(self, live: World, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit):
            main(["rollout", "start", LINE, "--reason", "October"])
        told = capsys.readouterr().out
        assert "running, candidate 10 %" in told
        assert "candidate v2" in told
        assert "control   v1" in told
        files.path(live.home, LINE).write_text("{", encoding="utf-8")
        with pytest.raises(SystemExit):
            main(["rollout", "status", LINE])
        assert "unreadable" in capsys.readouterr().out


class TestTick:
    def test_one_look_at_every_line(self, live: World, capsys: pytest.CaptureFixture[str]) -> None:
        assert {"lines": []} == ask(capsys, "tick")
        live.do(control.start)
        (found,) = ask(capsys, "tick")["lines"]
        assert (LINE, "hold", "running", 10.0) == tuple(found[name] for name in ("line", "action", "status", "percent"))

    def test_a_line_that_fails_is_told_and_does_not_stop_the_others(
        self, live: World, capsys: pytest.CaptureFixture[str]
    ) -> None:
        live.do(control.start)
        (live.home / "rollouts" / "No Line.json").write_text("{", encoding="utf-8")
        found = ask(capsys, "tick", code=2)["lines"]
        assert [("bad_line", 2)] == [(one["error"]["code"], one["exit_code"]) for one in found if "error" in one]
        assert [LINE] == [one["line"] for one in found if "error" not in one]

    @pytest.mark.parametrize("command", [("tick",), ("rollout", "tick", LINE)], ids=" ".join)
    def test_a_look_without_the_database_is_no_success(
        self, command: tuple[str, ...], live: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        live.do(control.start)
        with monkeypatch.context() as away:
            away.setenv("ESTEIRA_DATABASE_URL", NOWHERE)
            found = ask(capsys, *command, code=2)
        told = found["lines"][0] if command == ("tick",) else found
        assert ("running", 10.0) == (told["status"], told["percent"])
        assert "registry: " in told["alert"]
        ask(capsys, *command)
        assert "" == live.state.alert

    def test_an_end_that_is_not_carried_out_is_heard_at_every_look(
        self, live: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        live.do(control.start)
        monkeypatch.setenv("ESTEIRA_TARGET", f"haproxy:{live.home}/nobody.sock#rollout")
        ask(capsys, "rollout", "rollback", LINE, "--reason", "complaints", code=2)
        for _ in range(2):
            (found,) = ask(capsys, "tick", code=2)["lines"]
            assert (LINE, "settle", "rolled_back", "complaints", 2) == tuple(
                found[name] for name in ("line", "action", "status", "reason", "exit_code")
            )
            assert found["alert"].startswith("target: ")
        assert "target: " in ask(capsys, "rollout", "tick", LINE, code=2)["alert"]
        monkeypatch.delenv("ESTEIRA_TARGET")
        assert [] == ask(capsys, "tick")["lines"]

    def test_an_end_that_no_disk_takes_is_heard_too(
        self, live: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        live.start()
        die_at("rollout.before_registry", lambda: live.do(control.promote))

        def full(*_: Any, **__: Any) -> None:
            raise OutsideError("a file can be written, but No space left on device", code="disk_full")

        with monkeypatch.context() as patch:
            patch.setattr(files, "save", full)
            for _ in range(2):
                (found,) = ask(capsys, "tick", code=2)["lines"]
                assert ("settle", "approved") == (found["action"], found["status"])
                assert found["alert"].startswith("disk: ")
        ask(capsys, "tick")
        assert (2, "approved") == (live.aliases["champion"], live.state.status)

    def test_what_a_lost_state_ended_as_is_heard_once(self, live: World, capsys: pytest.CaptureFixture[str]) -> None:
        live.do(control.start)
        files.path(live.home, LINE).write_text("{", encoding="utf-8")
        (found,) = ask(capsys, "tick", code=2)["lines"]
        assert found["alert"].startswith("state: ")
        ask(capsys, "tick")

    def test_a_line_that_somebody_changes_now_is_left_out_with_a_word(
        self, live: World, capsys: pytest.CaptureFixture[str]
    ) -> None:
        live.do(control.start)
        with locks.hold(live.home, f"rollout {LINE}", what="promoting it"):
            (found,) = ask(capsys, "tick")["lines"]
        assert LINE == found["line"]
        assert "once at a time" in found["skipped"]

    def test_answers_of_rollouts_that_ended_are_forgotten(
        self, live: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from esteira.store.rollouts import KEPT, Rollouts

        asked: list[Any] = []
        monkeypatch.setattr(Rollouts, "prune", lambda _, before: asked.append(before) or 0)
        live.do(control.start)
        live.do(control.rollback)
        ask(capsys, "tick")
        (before,) = asked
        assert abs(live.now - KEPT - before) < timedelta(hours=1)

    def test_a_store_that_refuses_to_forget_hides_no_look(
        self, live: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from esteira.store.rollouts import Rollouts

        def spoiled(*_: Any) -> int:
            raise ValueError("a row that nobody can read")

        monkeypatch.setattr(Rollouts, "prune", spoiled)
        live.do(control.start)
        assert "hold" == ask(capsys, "tick")["lines"][0]["action"]

    def test_a_second_leader_is_refused(self, live: World, capsys: pytest.CaptureFixture[str]) -> None:
        with locks.hold(live.home, "tick"):
            assert "locked" == ask(capsys, "tick", code=1)["error"]["code"]

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["term", "int"])
    def test_a_loop_looks_again_and_ends_cleanly_when_told(self, number: signal.Signals, live: World) -> None:
        live.do(control.start, actor=ANA)
        loop = subprocess.Popen(
            [sys.executable, "-m", "esteira.cli", "tick", "--every", "1", "--json"],
            env={**os.environ, "ESTEIRA_HOME": str(live.home)}, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            assert loop.stdout is not None
            seen = [json.loads(loop.stdout.readline()) for _ in range(2)]
            assert [LINE, LINE] == [one["lines"][0]["line"] for one in seen]
            loop.send_signal(number)
            assert 0 == loop.wait(timeout=60)
        finally:
            loop.kill()
            loop.communicate()

    def test_a_loop_that_was_killed_leaves_nothing_that_stops_the_next(
        self, live: World, capsys: pytest.CaptureFixture[str]
    ) -> None:
        live.do(control.start)
        loop = subprocess.Popen(
            [sys.executable, "-m", "esteira.cli", "tick", "--every", "600"],
            env={**os.environ, "ESTEIRA_HOME": str(live.home)}, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        deadline = time.monotonic() + 60
        while "pid" not in _lock(live.home) and time.monotonic() < deadline:
            time.sleep(0.05)
        loop.kill()
        loop.wait()
        assert "running" == ask(capsys, "tick")["lines"][0]["status"]


def _lock(home: Path) -> str:
    file = home / "locks" / "tick.lock"
    return file.read_text(encoding="utf-8") if file.exists() else ""
