"""The engine of rollouts on real files, store, ledger and registry, by a clock of its own: what it does and what a kill leaves."""

import json
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from esteira import crash, ledger, locks
from esteira.access import ENGINE
from esteira.errors import OutsideError, Refused
from esteira.gate import Outcome
from esteira.rollout import control, engine, files, shown, telling
from esteira.rollout import split as splits
from esteira.rollout.split import Split
from esteira.rollout.state import Decision, Rollout, Side
from esteira.store import Store
from tests.rollouts import ANA, HOUR, LINE, T0, Gateway, World, die_at, home_template, traffic, world

__all__ = ["home_template", "world"]


class TestCourse:
    @pytest.mark.slow
    @pytest.mark.requirement("H-50")
    def test_a_good_candidate_reaches_all_traffic_and_becomes_the_champion_without_help(self, world: World) -> None:
        """H-50 Done when: a simulated good candidate reaches 100 % and becomes champion without help."""
        started = world.start()
        assert (10.0, 0, "running") == (started.percent, started.stage, started.status)
        assert {"champion": 1, "challenger": 2}.items() <= world.aliases.items()

        for hours, percent in ((24, 25.0), (48, 50.0), (72, 100.0)):
            decision = world.pass_stage(hours)
            assert decision is not None
            assert percent == decision.percent, decision.reason
            world.check()

        assert "approved" == world.state.status
        assert {"champion": 2, "production": 2, "previous": 1}.items() <= world.aliases.items()
        assert "challenger" not in world.aliases
        assert world.split is None, "the champion answers all"
        assert [(0, 10.0, "start"), (10, 25, "advance"), (25, 50, "advance"), (50, 100, "promote")] == world.traffic()
        assert ["started", "ended"] == [entry.evidence["action"] for entry in world.entries("rollout")]
        moved = [e for e in world.entries("alias") if "champion" in e.evidence.get("moves", {})]
        assert world.entries("traffic")[-1].seq < moved[-1].seq, "the ledger has the traffic first"
        assert "rollout" == moved[-1].actor
        assert world.tick(1) is None
        assert {"champion": 2}.items() <= world.aliases.items()

    def test_the_ledger_says_for_every_second_who_took_which_share(self, world: World) -> None:
        world.start()
        world.pass_stage(24)
        store = world.registry.store

        def shares(at: Any) -> dict[int, float]:
            return {one.version: one.share for one in ledger.at(store, at, line=LINE)}

        assert {1: 1.0} == shares(T0 - HOUR)
        assert {1: 0.9, 2: 0.1} == shares(T0 + 23 * HOUR)
        assert {1: 0.75, 2: 0.25} == shares(T0 + 25 * HOUR)

    def test_a_bad_candidate_is_rolled_back_at_the_look_that_finds_it(self, world: World) -> None:
        """H-44 Decision: traffic 0 % within one decision cycle, status rolled_back with evidence, 24 h cool-down, alert. (That the
        next request is the champion's is tests/test_split.py and tests/test_split_served.py.)"""
        world.start()
        world.put(0, "control", traffic(5, 0.75))
        world.put(0, "candidate", traffic(5, 0.75, errors=0.2))
        decision = world.tick(5)

        assert decision is not None
        assert ("roll_back", Outcome.FAIL, 0.0) == (decision.action, decision.outcome, decision.percent)
        assert world.split is None
        assert not splits.path(world.home, LINE).exists()
        state = world.state
        assert "rolled_back" == state.status
        assert state.alert, "a person is told"
        assert world.now + 24 * HOUR == state.cooldown_until
        assert {"champion": 1}.items() <= world.aliases.items()
        assert "challenger" not in world.aliases
        assert "rolled_back" == world.registry.get(LINE, 2).state  # type: ignore[union-attr]
        assert (10.0, 0.0, "roll_back") == world.traffic()[-1]
        ended = world.entries("rollout")[-1].evidence
        assert ("ended", "rolled_back") == (ended["action"], ended["status"])
        assert ended["findings"], "with the rules that said so"
        world.check()

    def test_no_traffic_never_advances_and_ends_as_inconclusive(self, world: World) -> None:
        world.start()
        for _ in range(15):
            decision = world.tick(6)
            assert decision is not None
            assert ("hold", 10.0) == (decision.action, decision.percent)
        assert world.state.alert, "from twice the time on a person is told"
        alerts = [e for e in world.entries("rollout") if e.evidence["action"] == "alert"]
        assert 1 == len(alerts), "once"

        decision = world.tick(6)

        assert decision is not None
        assert ("inconclusive", Outcome.NO_DATA) == (decision.action, decision.outcome)
        assert ("inconclusive", 0.0) == (world.state.status, world.state.percent)
        assert {"champion": 1}.items() <= world.aliases.items()
        assert world.split is None
        world.check()

    def test_a_look_says_the_same_however_often_it_is_made(self, world: World) -> None:
        world.start()
        world.feed(24)
        world.tick(24)
        once = (world.state, world.traffic())
        for _ in range(3):
            world.tick()
        assert once == (world.state, world.traffic())

    def test_a_clock_that_goes_back_moves_nothing(self, world: World) -> None:
        world.start()
        world.feed(24)
        world.tick(23)
        world.now -= 10 * HOUR
        decision = world.tick()

        assert decision is not None
        assert ("hold", Outcome.NO_DATA) == (decision.action, decision.outcome)
        assert T0 + 23 * HOUR == world.state.looked_at
        world.now = T0
        world.tick(24)
        assert 25.0 == world.state.percent

    def test_two_looks_at_once_are_one(self, world: World) -> None:
        world.start()
        with locks.hold(world.home, f"rollout {LINE}"), pytest.raises(Refused) as caught:
            world.tick()
        assert "locked" == caught.value.code
        world.feed(24)
        world.now += 24 * HOUR
        done: list[Any] = []

        def look() -> None:
            try:
                done.append(engine.tick(LINE, settings=world.settings, now=world.now))
            except Refused as error:
                done.append(error.code)

        threads = [threading.Thread(target=look) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        moved = [one for one in done if isinstance(one, Decision) and one.action == "advance"]
        assert 1 == len(moved)
        assert 2 == len(world.traffic())
        world.check()

    def test_a_line_that_never_had_a_rollout_needs_no_look(self, world: World) -> None:
        assert world.tick() is None
        with pytest.raises(ValueError, match="zone"):
            engine.tick(LINE, settings=world.settings, now=T0.replace(tzinfo=None))

    def test_another_champion_ends_a_rollout(self, world: World) -> None:
        world.start()
        registry = world.registry
        from tests.rollouts import make_bundle, register

        register(registry, make_bundle(world.home.parent / "three", "three"))
        registry.promote(LINE, 3, actor=ANA, reason="urgent", evidence={"policy": "automatic"}, now=world.now)
        decision = world.tick(1)

        assert decision is not None
        assert "inconclusive" == decision.action
        assert "version 3" in decision.reason
        assert world.state.cooldown_until is None
        assert {"champion": 3}.items() <= world.aliases.items()
        world.check()

    def test_a_candidate_that_a_person_made_the_champion_is_through(self, world: World) -> None:
        world.start()
        world.registry.promote(LINE, 2, actor=ANA, reason="urgent", evidence={"policy": "automatic"}, now=world.now)
        world.tick(1)

        assert "approved" == world.state.status
        assert {"champion": 2}.items() <= world.aliases.items()
        assert "challenger" not in world.aliases
        assert world.split is None
        world.check()

    def test_a_promotion_that_was_undone_is_not_made_again(self, world: World) -> None:
        world.start()
        world.do(control.promote)
        # As if the notes that it is made and settled had not been kept, and somebody rolled back since.
        state = world.state
        files.save(world.home, replace(state, history=state.history[:-2]))
        world.registry.roll_back(LINE, actor=ENGINE, reason="complaints", now=world.now)

        world.tick(1)

        assert {"champion": 1}.items() <= world.aliases.items()
        world.check()

    def test_a_store_that_is_away_decides_nothing(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        world.start()
        world.feed(24)

        def away(*_: Any) -> Any:
            raise OutsideError("the platform store answers", code="store_away")

        monkeypatch.setattr(engine, "measured", away)
        decision = world.tick(24)
        assert decision is not None
        assert ("hold", 10.0) == (decision.action, decision.percent)
        assert world.state.alert.startswith("sums: ")
        monkeypatch.undo()
        world.tick()
        assert (25.0, "") == (world.state.percent, world.state.alert)

    def test_a_rollback_does_not_wait_for_a_ledger_that_is_away(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        world.start()

        def away(*_: Any, **__: Any) -> Any:
            raise OutsideError("the platform store answers, but it does not", code="store_away")

        monkeypatch.setattr(Store, "begin", away)
        world.do(control.rollback)
        assert world.split is None
        assert ("rolled_back", 0.0) == (world.state.status, world.state.percent)
        assert world.state.alert.startswith("ledger: ")
        monkeypatch.undo()

        world.tick(1)

        assert (10.0, 0.0, "restore") == world.traffic()[-1]
        assert "ended" == world.entries("rollout")[-1].evidence["action"]
        assert not world.state.alert.startswith("ledger: ")
        world.check()

    def test_an_advance_waits_for_a_ledger_that_is_away(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        world.start()
        world.feed(24)

        def away(*_: Any, **__: Any) -> Any:
            raise OutsideError("the platform store answers, but it does not", code="store_away")

        monkeypatch.setattr(telling, "append", away)
        with pytest.raises(OutsideError):
            world.tick(24)
        assert 10.0 == world.split.percent  # type: ignore[union-attr]
        monkeypatch.undo()
        world.tick()
        assert 25.0 == world.split.percent  # type: ignore[union-attr]
        world.check()

    def test_a_registry_that_refuses_the_champion_keeps_the_share(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from esteira.registry import Registry

        world.to_last_stage()

        def refuse(*_: Any, **__: Any) -> None:
            raise Refused("an approval counts for 72 hours, but it expired", code="approval_expired")

        monkeypatch.setattr(Registry, "check_promote", refuse)
        decision = world.tick()
        assert decision is not None
        assert ("hold", 50.0, "running") == (decision.action, world.state.percent, world.state.status)
        assert world.state.alert.startswith("registry: ")
        monkeypatch.undo()
        world.tick()
        assert "approved" == world.state.status
        assert {"champion": 2}.items() <= world.aliases.items()

    def test_a_candidate_that_the_registry_refuses_after_all_goes_back(self, world: World) -> None:
        _refused(world)
        assert 100.0 == world.split.percent  # type: ignore[union-attr]
        decision = world.tick()

        assert decision is not None
        assert ("inconclusive", 0.0) == (decision.action, decision.percent)
        assert "its last rehearsal says: slow" in decision.reason
        assert ("inconclusive", 0.0, None) == (world.state.status, world.state.percent, world.state.cooldown_until)
        assert world.split is None
        assert (100.0, 0.0, "inconclusive") == world.traffic()[-1]
        ended = world.entries("rollout")[-1].evidence
        assert ("ended", "inconclusive") == (ended["action"], ended["status"])
        assert "the registry refused the promotion" in ended["reason"]
        assert "its last rehearsal says: slow" in world.state.alert
        assert {"champion": 1, "production": 1}.items() <= world.aliases.items()
        assert "challenger" not in world.aliases
        world.check()
        assert world.tick(1) is None, "and it is over"


class TestLostState:
    @pytest.mark.parametrize("data", [b"", b'{"schema": 7}', b"{"], ids=["empty", "schema", "cut"])
    def test_a_state_that_cannot_be_read_gives_no_traffic(self, data: bytes, world: World) -> None:
        """H-45 Decision: corrupt file -> candidate traffic 0 % and alert."""
        test_id = world.start().test_id
        files.path(world.home, LINE).write_bytes(data)

        seen = shown.status(LINE, settings=world.settings, now=world.now)
        assert ("unreadable", 0.0) == (seen["status"], seen["percent"])
        assert "state" == seen["alert"].partition(":")[0]
        decision = world.tick(1)

        assert world.split is None
        assert decision is not None
        assert ("inconclusive", Outcome.NO_DATA, 0.0) == (decision.action, decision.outcome, decision.percent)
        state = world.state
        assert (test_id, "inconclusive", 0.0) == (state.test_id, state.status, state.percent)
        assert state.alert.startswith("state: ")
        assert (10.0, 0.0, "state_lost") == world.traffic()[-1]
        assert data == files.path(world.home, LINE).with_suffix(".bad").read_bytes(), "kept for who looks into it"
        assert world.tick(1) is None
        assert world.state.alert.startswith("state: "), "until a person starts another"
        assert "challenger" not in world.aliases
        world.check()
        world.start()
        assert 10.0 == world.split.percent  # type: ignore[union-attr]

    def test_without_a_backup_the_split_says_what_is_known(self, world: World) -> None:
        started = world.start()
        for suffix in (".json", ".bak"):
            files.path(world.home, LINE).with_suffix(suffix).write_bytes(b"{")
        world.tick(1)

        assert world.split is None
        assert (started.test_id, "inconclusive") == (world.state.test_id, world.state.status)
        assert (10.0, 0.0, "state_lost") == world.traffic()[-1]

    def test_a_split_whose_state_is_gone_ends(self, world: World) -> None:
        world.start()
        files.path(world.home, LINE).unlink()
        world.tick(1)

        assert world.split is None
        assert ("inconclusive", 0.0) == (world.state.status, world.state.percent)
        world.check()

    def test_with_no_file_left_the_ledger_says_what_is_known(self, world: World) -> None:
        started = world.start()
        for suffix in (".json", ".bak", ".split"):
            files.path(world.home, LINE).with_suffix(suffix).write_bytes(b"\0")
        world.tick(1)

        assert not splits.path(world.home, LINE).exists()
        assert (started.test_id, "inconclusive") == (world.state.test_id, world.state.status)
        assert (10.0, 0.0, "state_lost") == world.traffic()[-1]
        world.tick(1)
        assert "challenger" not in world.aliases

    def test_a_spoiled_state_that_the_ledger_knows_nothing_of_is_set_aside(self, world: World) -> None:
        files.save(world.home, replace(_stranger(), line=LINE))
        files.path(world.home, LINE).write_bytes(b"{")
        assert world.tick(1) is None
        assert files.load(world.home, LINE) is None
        seen = shown.status(LINE, settings=world.settings, now=world.now)
        assert ("none", "state") == (seen["status"], seen["alert"].partition(":")[0])

    @pytest.mark.parametrize("change", [{"policy": "none"}, {"stage": 9}], ids=str)
    def test_a_plan_that_nobody_knows_gives_no_traffic(self, change: dict[str, Any], world: World) -> None:
        world.start()
        files.save(world.home, replace(world.state, **change))
        world.tick(1)
        assert world.split is None
        assert "inconclusive" == world.state.status

    def test_a_rollback_gets_through_a_state_that_cannot_be_read(self, world: World) -> None:
        world.start()
        files.path(world.home, LINE).write_bytes(b"{")
        world.do(control.rollback)
        assert world.split is None
        assert "inconclusive" == world.state.status


def _stranger() -> Rollout:
    """A state of no rollout of this home."""
    side = Side(7, "f" * 64)
    return Rollout("strange", LINE, "rules", side, side, "salt", T0, T0)


class TestOutside:
    def test_services_hear_whose_a_request_is_only_behind_what_asks_them_again(self, world: World) -> None:
        class Asking(Gateway):
            name = "haproxy"
            asks_again = True

        world.target = Asking()
        world.start()
        assert world.split is not None
        assert world.split.asks_again

    @pytest.fixture
    def gateway(self, world: World) -> Gateway:
        world.target = Gateway()
        return world.target  # type: ignore[no-any-return]

    def test_a_good_candidate_is_handed_over_when_the_champions_service_had_its_time(
        self, world: World, gateway: Gateway
    ) -> None:
        world.to_last_stage()
        assert 50.0 == gateway.percent
        assert world.split is not None
        assert world.split.outside, "the services count and do not split"
        assert not world.split.asks_again, "no gateway takes the header from its callers' hands"
        world.tick()
        assert {"champion": 2, "challenger": 2}.items() <= world.aliases.items()
        assert 100.0 == gateway.percent, "the champion's service is loading"
        world.now += timedelta(seconds=61)
        world.tick()
        assert 0.0 == gateway.percent
        assert world.split is None
        assert "challenger" not in world.aliases
        assert "" == world.state.alert

    def test_a_roll_back_right_after_a_promotion_does_not_wait_for_the_hand_over(
        self, world: World, gateway: Gateway
    ) -> None:
        world.start()
        world.do(control.promote)
        assert 100.0 == gateway.percent
        assert world.do(control.rollback) is None, "there is no rollout any more, the champion is rolled back next"
        assert 0.0 == gateway.percent
        assert "challenger" not in world.aliases
        world.registry.roll_back(LINE, actor=ENGINE, reason="complaints", now=world.now)
        world.tick(1)
        assert 1 == world.aliases["champion"]

    def test_a_candidate_that_was_refused_since_gets_no_more_by_finishing_what_was_cut_off(
        self, world: World, gateway: Gateway
    ) -> None:
        _refused(world, "rollout.before_shift")
        given: list[float] = []
        plain = gateway.shift

        def shift(split: Split | None, *, first: bool = False) -> None:
            given.append(0.0 if split is None else split.percent)
            plain(split, first=first)

        gateway.percent, gateway.shift = 50.0, shift  # type: ignore[method-assign]
        decision = world.tick()

        assert decision is not None
        assert "inconclusive" == decision.action
        assert {0.0} == set(given)
        assert ("inconclusive", 0.0, 1) == (world.state.status, gateway.percent, world.aliases["champion"])
        world.check()

    def test_a_rollback_does_not_finish_a_promotion_that_was_cut_off(self, world: World, gateway: Gateway) -> None:
        world.to_last_stage()
        gateway.percent = 50.0
        die_at("rollout.before_shift", World(world.settings, now=world.now, target=world.target).tick)
        given: list[float] = []
        plain = gateway.shift

        def shift(split: Split | None, *, first: bool = False) -> None:
            given.append(0.0 if split is None else split.percent)
            plain(split, first=first)

        gateway.shift = shift  # type: ignore[method-assign]
        state = world.do(control.rollback, only=True)

        assert {0.0} == set(given)
        assert ("rolled_back", 0.0) == (state.status, gateway.percent)
        assert 1 == world.aliases["champion"]
        world.tick(1)
        assert ("rolled_back", 1) == (world.state.status, world.aliases["champion"])
        world.check()

    def test_an_approved_candidate_whose_promotion_waits_can_be_rolled_back(
        self, world: World, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from esteira.registry import Registry

        world.start()

        def away(*_: Any, **__: Any) -> None:
            raise OutsideError("the platform store answers, but it does not", code="store_away")

        monkeypatch.setattr(Registry, "promote", away)
        world.do(control.promote)
        assert ("approved", 100.0) == (world.state.status, gateway.percent)
        assert world.state.alert.startswith("registry: ")
        assert world.do(control.rollback) is not None
        assert ("rolled_back", 0.0) == (world.state.status, gateway.percent)
        monkeypatch.undo()
        world.tick(1)
        assert 1 == world.aliases["champion"]
        world.check()

    def test_traffic_that_a_refused_candidate_keeps_is_taken_when_it_can_be(
        self, world: World, gateway: Gateway
    ) -> None:
        _refused(world)
        gateway.percent, gateway.stuck = 100.0, True
        world.tick()
        letter = shown.undone(world.state, LINE)
        assert letter is not None
        assert letter["message"].startswith("the candidate may still take traffic: target: ")
        gateway.stuck = False
        world.tick(1)
        assert ("inconclusive", 0.0, 1) == (world.state.status, gateway.percent, world.aliases["champion"])
        world.check()

    def test_a_gateway_that_is_away_in_the_middle_of_a_shift_holds_and_is_seen(
        self, world: World, gateway: Gateway
    ) -> None:
        world.start()
        world.feed(24)
        gateway.stuck = True
        tries = gateway.tries
        decision = world.tick(24)

        assert tries + 3 <= gateway.tries, "three tries"
        assert decision is not None
        assert ("hold", "running", 0, 10.0) == (
            decision.action, world.state.status, world.state.stage, world.state.percent,
        )  # fmt: skip
        assert world.state.alert.startswith("target: ")
        assert [(10, 25, "advance"), (25, 10, "hold")] == world.traffic()[-2:], "the ledger says what is so"
        assert 10.0 == world.split.percent  # type: ignore[union-attr]
        world.check()

        gateway.stuck = False
        world.tick(0.5)
        assert (1, 25.0, "") == (world.state.stage, world.state.percent, world.state.alert)
        assert 25.0 == gateway.percent

    def test_while_it_cannot_be_read_nothing_goes_up(self, world: World, gateway: Gateway) -> None:
        world.start()
        world.feed(24)
        gateway.away = True
        before = world.traffic()
        for _ in range(3):
            world.tick(12)
        assert before == world.traffic()
        assert world.state.alert.startswith("target: ")
        assert (0, 10.0) == (world.state.stage, world.state.percent)
        alerts = [e for e in world.entries("rollout") if e.evidence["action"] == "alert"]
        assert 1 == len(alerts), "once, not at every look"

    def test_a_roll_back_that_cannot_reach_it_is_tried_at_every_look(self, world: World, gateway: Gateway) -> None:
        world.start()
        gateway.away = True
        world.do(control.rollback)

        assert ("rolled_back", 0.0) == (world.state.status, world.state.percent)
        assert world.state.alert.startswith("target: ")
        assert {"challenger": 2}.items() <= world.aliases.items(), "it still serves"
        gateway.away, gateway.stuck = False, True
        world.tick(1)
        assert (0.0, 10.0, "hold") == world.traffic()[-1], "the ledger says what is so"
        world.tick(1)
        gateway.stuck = False
        world.tick(1)

        assert 0.0 == gateway.percent
        assert (10.0, 0.0, "restore") == world.traffic()[-1]
        assert "challenger" not in world.aliases
        assert "target" not in world.state.alert
        assert world.state.alert, "the reason of the roll back is still told"
        world.check()

    def test_a_start_that_cannot_give_traffic_did_not_happen(self, world: World, gateway: Gateway) -> None:
        gateway.stuck = True
        with pytest.raises(OutsideError) as caught:
            world.start()
        assert "target_away" == caught.value.code
        assert files.load(world.home, LINE) is None
        assert world.split is None
        assert "challenger" not in world.aliases
        assert (10.0, 0.0, "hold") == world.traffic()[-1]
        gateway.stuck = False
        world.start()
        assert 10.0 == gateway.percent

    @pytest.mark.parametrize("moved", [0.0, 60.0])
    def test_traffic_that_somebody_else_moved_is_moved_back_and_told(
        self, moved: float, world: World, gateway: Gateway
    ) -> None:
        world.start()
        gateway.percent = moved
        world.tick(1)
        assert 10.0 == gateway.percent
        assert (moved, 10.0, "restore") == world.traffic()[-1]
        world.check()

    def test_a_candidate_that_gets_no_traffic_is_not_tried_at_every_look(self, world: World, gateway: Gateway) -> None:
        world.start()
        gateway.percent, gateway.stuck = 0.0, True
        world.tick(1)
        tries, told = gateway.tries, len(world.traffic())
        world.tick(1 / 60)
        assert (tries, told) == (gateway.tries, len(world.traffic()))
        gateway.stuck = False
        world.tick(1)
        assert 10.0 == gateway.percent
        assert "" == world.state.alert

    def test_a_promotion_by_hand_that_cannot_move_the_traffic_moves_nothing(
        self, world: World, gateway: Gateway
    ) -> None:
        world.start()
        gateway.stuck = True
        with pytest.raises(OutsideError):
            world.do(control.promote)
        assert ("running", 10.0) == (world.state.status, world.state.percent)
        assert {"champion": 1}.items() <= world.aliases.items()


def _snapshot(world: World) -> dict[str, Any]:
    """What must not depend on a kill."""
    document = json.loads(files.encode(world.state))
    for name in ("test_id", "salt"):
        del document[name]
    for line in document["history"]:
        del line["actor"]  # who finishes a move is not who began it
    registry = world.registry
    split = None if world.split is None else (world.split.percent, world.split.stage, world.split.challenger)
    return {
        "state": document,
        "split": split,
        "aliases": registry.aliases(LINE),
        "versions": {one.version: one.state for one in registry.versions(LINE)},
        "at": sorted((one.version, one.share) for one in ledger.at(registry.store, world.now, line=LINE)),
    }


def _up(world: World) -> None:
    world.start()
    world.feed(24)
    world.now += 24 * HOUR


def _bad(world: World) -> None:
    world.start()
    world.put(0, "control", traffic(5, 0.75))
    world.put(0, "candidate", traffic(5, 0.75, errors=0.2))
    world.now += 5 * HOUR


def _refused(world: World, point: str = "rollout.before_registry") -> None:
    """All traffic is the candidate's, and meanwhile a rehearsal held it: the registry refuses what it allowed before."""
    world.to_last_stage()
    die_at(point, World(world.settings, now=world.now, target=world.target).tick)
    store, bundle_id = world.registry.store, world.registry.must(LINE, 2).bundle_id
    ledger.append(
        store, kind="rehearsal", line=LINE, actor="ana", version=2, bundle_id=bundle_id,
        evidence={"verdict": "held", "summary": "slow"}, now=world.now,
    )  # fmt: skip


def _running(world: World) -> None:
    world.start()
    world.tick(1)


Move = tuple[Callable[[World], None], Callable[[World], Any]]
MOVES: dict[str, Move] = {
    "start": (lambda _: None, lambda world: world.start()),
    "advance": (_up, lambda world: world.tick()),
    "promote": (World.to_last_stage, lambda world: world.tick()),
    "roll_back": (_bad, lambda world: world.tick()),
    "refused": (_refused, lambda world: world.tick()),
    "pause": (_running, lambda world: world.do(control.pause)),
    "promote_by_hand": (_running, lambda world: world.do(control.promote)),
    "roll_back_by_hand": (_running, lambda world: world.do(control.rollback)),
}
_ALWAYS = ("outputs.before_rename", "rollout.before_record", "rollout.before_shift", "rollout.before_state")
_ENDS = ("rollout.before_registry", "alias.before_commit", "alias.before_mirror")
_PROMOTES = (
    "rollout.before_registry", "promote.before_commit", "promote.before_beacon", "promote.before_mirror",
    "rollout.before_handover", "alias.before_commit", "alias.before_mirror",
)  # fmt: skip


def _slow(move: str, point: str) -> Any:
    return pytest.param(move, point, marks=pytest.mark.slow, id=f"{move}-{point}")


KILLS = [
    *[("start", point) for point in (*_ALWAYS, *_ENDS)],
    *[("advance", point) for point in (*_ALWAYS, "rollout.before_registry")],
    *[("promote", point) for point in (*_ALWAYS, *_PROMOTES)],
    *[("roll_back", point) for point in (*_ALWAYS, *_ENDS)],
    *[("refused", point) for point in (*_ALWAYS, *_ENDS)],
    *[_slow("pause", point) for point in _ALWAYS],
    *[_slow("promote_by_hand", point) for point in ("rollout.before_shift", "promote.before_commit")],
    *[_slow("roll_back_by_hand", point) for point in (*_ALWAYS, *_ENDS)],
]
ROLLOUT_POINTS = {name for name in crash.POINTS if name.startswith("rollout.")}


class TestKilled:
    def test_every_point_of_a_rollout_is_killed_at(self) -> None:
        assert ROLLOUT_POINTS <= {one[1] for one in KILLS if isinstance(one, tuple) and len(one) == 2}

    @pytest.mark.parametrize(("move", "point"), KILLS, ids=lambda word: word)
    def test_after_a_kill_the_next_look_ends_where_it_would_have_ended(
        self, move: str, point: str, world: World, tmp_path: Path
    ) -> None:
        prepare, act = MOVES[move]
        prepare(world)
        shutil.copytree(world.home, tmp_path / "other" / "home")
        other = World(world.settings.model_copy(update=_addresses(tmp_path / "other" / "home")), now=world.now)
        act(world)
        expected = _snapshot(world)

        die_at(point, lambda: act(other))
        other.check()
        other.tick()
        other.check()
        if files.load(other.home, LINE) is None or not _same(_snapshot(other), expected):
            # A command that was killed before the ledger had it did not happen; who gave it gives it again.
            assert move in {"start", "pause", "promote_by_hand", "roll_back_by_hand"}, point
            assert point in {
                "outputs.before_rename",
                "rollout.before_record",
                "alias.before_commit",
                "alias.before_mirror",
            }
            act(other)
            other.tick()

        other.check()
        found = _snapshot(other)
        assert expected == found or _same(found, expected)


def _addresses(home: Path) -> dict[str, Any]:
    return {
        "home": home, "database_url": f"sqlite:///{home / 'esteira.db'}", "mlflow_uri": f"sqlite:///{home / 'mlflow.db'}",
        "artifacts": str(home / "artifacts"),
    }  # fmt: skip


def _same(found: dict[str, Any], expected: dict[str, Any]) -> bool:
    """Equal but for when it was looked at: a command has no look after it, a recovery has."""
    plain = [json.loads(json.dumps(one, default=str)) for one in (found, expected)]
    for one in plain:
        one["state"]["looked_at"] = None
    return bool(plain[0] == plain[1])
