"""Rollouts and versions through HTTP: the same moves as the commands', by named keys, beside predictions that do not wait for them."""

import asyncio
import json
import subprocess
import sys
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate
from pydantic import SecretStr

from esteira import access, locks
from esteira.registry import Registry
from esteira.release import approvals
from esteira.release.policy import Asked, ReleasePolicy
from esteira.rollout import alerts, shown
from serving import openapi, routes, shapes
from serving.control import _FAULTS, BODY, Control, _asked, _by_routes, _shown, _Start
from serving.http import Api
from serving.problems import Problem
from tests import keyholders
from tests.rollouts import LINE, Gateway, World, home_template, make_bundle, register, world
from tests.serving_fakes import FakeSource, ask, asked, fake_loading, make_api

__all__ = ["home_template", "world"]

ROLLOUT = f"/v1/{LINE}/rollout"
WHY = {"reason": "seen on the board"}


@dataclass
class Door:
    """A service of one line, its keys, and the home behind it."""

    world: World
    api: Api
    keys: dict[str, str] = field(default_factory=dict)

    def ask(self, path: str, document: Any = None, *, by: str | None = None, **options: Any) -> tuple[int, Any]:
        """Status and document; `by` is the name of a key that is sent along."""
        headers = {**({} if by is None else {"x-esteira-key": self.keys[by]}), **options.pop("headers", {})}
        body = document if isinstance(document, bytes) else b"" if document is None else json.dumps(document).encode()
        method = options.pop("method", "GET" if document is None else "POST")
        status, found, _ = ask(self.api, path, body, method=method, headers=headers, **options)
        return status, found

    def move(self, verb: str, by: str | None = "bob", **told: Any) -> tuple[int, Any]:
        return self.ask(f"{ROLLOUT}/{verb}", {**WHY, **told}, by=by)

    def actor(self, name: str) -> access.Actor:
        return access.who(self.world.settings.model_copy(update={"key": SecretStr(self.keys[name])}))

    def code(self, verb: str, by: str | None = "bob", **told: Any) -> tuple[int, str]:
        status, found = self.move(verb, by, **told)
        return status, found["error"]["code"] if "error" in found else ""


@pytest.fixture
def door(world: World, monkeypatch: pytest.MonkeyPatch) -> Door:
    fake_loading(monkeypatch)
    monkeypatch.setattr("tests.rollouts.T0", datetime.now(UTC))
    world.now = datetime.now(UTC)
    keys: dict[str, str] = {}
    for name, role in (("ana", "admin"), ("bob", "approver"), ("lia", "data_scientist"), ("vera", "viewer")):
        given: list[str] = []
        admin = world.settings.model_copy(update={"key": SecretStr(keys["ana"])} if keys else {})
        access.give(admin, name, role, store=world.registry.store, show=given.append)
        keys[name] = given[0]
    settings = world.settings.model_copy(update={"request_seconds": 5.0})
    return Door(world, make_api(FakeSource(LINE), control=Control(settings)), keys)


class TestMoves:
    @pytest.mark.requirement("H-46")
    def test_paused_never_advances_through_http(self, door: Door) -> None:
        """H-46 Done when: paused never advances. Decision: start, pause, ..., status through CLI and API, with actor and reason."""
        world = door.world
        assert (200, "running", 10.0) == _said(door.move("start", version=2))
        world.now = datetime.now(UTC)
        world.feed(23)
        world.tick(23)
        assert (200, "paused", 10.0) == _said(door.move("pause"))
        world.feed(400)
        for _ in range(20):
            decision = world.tick(24)
            assert decision is not None
            assert ("hold", 10.0) == (decision.action, decision.percent)
        assert (200, "paused", 10.0) == _said(door.ask(ROLLOUT))
        assert (409, "paused") == door.code("promote")
        assert 10.0 == world.split.percent  # type: ignore[union-attr]

    def test_each_move_is_in_the_ledger_with_the_name_of_the_key_and_the_door(self, door: Door) -> None:
        for verb, status in (
            ("start", "running"),
            ("pause", "paused"),
            ("resume", "running"),
            ("rollback", "rolled_back"),
        ):
            assert (200, status) == _said(door.move(verb, reason=f"{verb}, says bob"))[:2]
        told = door.world.entries("rollout")

        assert ["started", "paused", "resumed", "ended"] == [entry.evidence["action"] for entry in told]
        assert {("bob", "approver", True, "http")} == {
            (entry.actor, *(entry.evidence.get(name) for name in ("role", "keyed", "door"))) for entry in told
        }
        assert [f"{verb}, says bob" for verb in ("start", "pause", "resume", "rollback")] == [
            entry.evidence["reason"] for entry in told
        ]
        (moved,) = (
            entry
            for entry in door.world.entries("alias")
            if entry.evidence["alias"] == "challenger" and entry.evidence["to"]
        )
        assert ("bob", "http") == (moved.actor, moved.evidence.get("door"))
        door.world.check()

    def test_a_promotion_makes_the_candidate_the_champion(self, door: Door) -> None:
        door.move("start")
        assert (200, "approved") == _said(door.move("promote"))[:2]
        assert 2 == door.world.aliases["champion"]
        entry = [one for one in door.world.entries("alias") if "champion" in one.evidence["moves"]][-1]
        assert ("bob", "http") == (entry.actor, entry.evidence["door"])

    def test_the_answer_is_what_the_command_shows(self, door: Door) -> None:
        said = door.move("start", options={"rules": {"margin": 0.03}})[1]
        world = door.world
        world.feed(3)
        now = datetime.now(UTC)
        seen = shown.status(LINE, settings=world.settings, now=now, registry=world.registry)
        found = door.ask(ROLLOUT)[1]

        assert {"rules": {"margin": 0.03}} == said["options"]
        assert 300 == found["arms"]["candidate"]["served"]
        known = {name: value for name, value in seen.items() if name not in ("stage_seconds",)}
        assert known.items() <= found.items()
        Draft202012Validator(shapes.ROLLOUT).validate(found)

    def test_before_a_rollout_there_is_none(self, door: Door) -> None:
        assert (200, "none", 0) == _said(door.ask(ROLLOUT))
        Draft202012Validator(shapes.ROLLOUT).validate(door.ask(ROLLOUT)[1])
        assert (409, "no_rollout") == door.code("pause")
        assert (409, "no_rollout") == door.code("rollback"), "nothing was undone, and nobody is told that it was"

    def test_a_rollback_that_was_made_may_be_asked_for_again(self, door: Door) -> None:
        door.world.registry.set_alias(
            LINE, "challenger", 2, actor=door.actor("ana"), reason="a start that was cut off", now=datetime.now(UTC)
        )
        assert (200, "") == door.code("rollback"), "what a start that was cut off left is taken back, too"
        assert "challenger" not in door.world.aliases
        door.move("start")
        for _ in range(2):
            assert (200, "rolled_back") == _said(door.move("rollback"))[:2]

    def test_a_start_is_held_to_what_the_version_was_registered_under(self, door: Door) -> None:
        """Not to a params.yaml, which a service has not, nor to the family's word."""
        terms: dict[str, Any] = {"approval_mode": "required", "rollout": "staged"}
        plans = (Asked(rehearse=False), Asked(rehearse=True), Asked(rehearse=False, min_samples=12_001))
        for number, plan in enumerate(plans, 3):
            mode = terms if number == 3 else {**terms, "approval_mode": "automatic"}
            bundle = make_bundle(door.world.home.parent / f"b{number}", str(number))
            register(door.world.registry, bundle, policy=ReleasePolicy.of(plan, **mode), actor=door.actor("lia"))
        assert (409, "not_requested") == door.code("start", version=3)
        for number, missing in ((4, "rehearsed"), (5, "enough_samples")):
            status, found = door.move("start", version=number)
            assert (409, "preconditions") == (status, found["error"]["code"])
            assert missing in found["error"]["message"]
            assert [missing] == [word for word in ("rehearsed", "enough_samples") if word in found["error"]["message"]]

    def test_of_two_starts_at_once_one_is_refused(self, door: Door) -> None:
        async def both() -> list[tuple[int, Any, Any]]:
            body = json.dumps(WHY).encode()
            headers = [{"x-esteira-key": door.keys[name]} for name in ("ana", "bob")]
            starts = (asked(door.api, f"{ROLLOUT}/start", body, headers=one) for one in headers)
            return list(await asyncio.gather(*starts))

        found = sorted(asyncio.run(both()), key=lambda one: one[0])

        assert [200, 409] == [status for status, _, _ in found]
        assert "rollout_running" == found[1][1]["error"]["code"]
        assert found[1][1]["error"]["cure"]
        assert ["started"] == [entry.evidence["action"] for entry in door.world.entries("rollout")]
        door.world.check()


class TestWho:
    @pytest.mark.parametrize("verb", routes.VERBS)
    def test_only_a_key_that_may_moves_anything(self, verb: str, door: Door) -> None:
        """H-46's actor: the holder of a named key, by the matrix of roles."""
        if verb != "start":
            door.move("start", "ana")
        if verb == "resume":
            door.move("pause", "ana")
        before = door.world.entries("rollout", "traffic")
        assert (401, "no_named_key") == door.code(verb, None)
        assert before == door.world.entries("rollout", "traffic")
        assert (403, "not_allowed") == door.code(verb, "vera")
        denied = door.world.entries("denied")[-1]
        assert ("vera", "viewer", "http") == (denied.actor, denied.evidence["role"], denied.evidence.get("door"))
        assert before == door.world.entries("rollout", "traffic")
        expected = (200, "") if verb == "rollback" else (403, "not_allowed")
        assert expected == door.code(verb, "lia"), "who registers may roll back, and nothing else"
        if verb != "rollback":
            assert (200, "") == door.code(verb, "bob")

    def test_a_key_that_opens_nothing_does_nothing_and_is_not_shown(self, door: Door) -> None:
        door.keys |= {"wrong": "esk_wrong", "text": "bob", "empty": ""}
        keyholders.revoke(door.world.home, "bob")
        for by in ("wrong", "text", "empty", "bob"):
            for path, body in (
                (f"{ROLLOUT}/start", WHY),
                (ROLLOUT, None),
                ("/v1/models", None),
                ("/v1/models/x", None),
            ):
                status, found = door.ask(path, body, by=by)
                assert (401, "unknown_key") == (status, found["error"]["code"]), (by, path)
                assert door.keys[by] not in json.dumps(found).replace('"field":"x-esteira-key"', "") or by in (
                    "text",
                    "empty",
                )
        assert "none" == door.ask(ROLLOUT)[1]["status"]

    def test_a_named_key_is_no_key_of_the_service(self, door: Door) -> None:
        for path, body in ((f"{ROLLOUT}/start", WHY), (ROLLOUT, None), ("/v1/models", None)):
            assert 401 == door.ask(path, body, by="ana", key=door.keys["ana"])[0]
            assert 401 == door.ask(path, body, by="ana", key="wrong")[0]

    def test_free_text_is_nobody(self, door: Door) -> None:
        assert (422, "unknown_field") == door.code("start", actor="ana")
        status, found = door.ask(f"{ROLLOUT}/start", WHY, headers={"x-esteira-actor": "ana"})
        assert (401, "no_named_key") == (status, found["error"]["code"])

    def test_without_a_key_file_nobody_moves_anything(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        """The account's user may do it by the command; through HTTP there is no account."""
        fake_loading(monkeypatch)
        found = Door(world, make_api(FakeSource(LINE), control=Control(world.settings)), {"ana": "esk_ana"})
        assert (401, "no_named_key") == found.code("start", None)
        assert (401, "unknown_key") == found.code("start", "ana")
        assert (200, "none") == _said(found.ask(ROLLOUT))[:2]

    def test_a_key_file_that_others_may_read_is_the_services_trouble(self, door: Door) -> None:
        (door.world.home / "keys.json").chmod(0o644)
        assert (503, "open_keys") == door.code("start")
        assert str(door.world.home) not in json.dumps(door.move("start")[1])

    def test_a_key_of_another_home_opens_nothing_of_this_store(self, door: Door, tmp_path: Path) -> None:
        """Whoever may write a key file of their own is nobody here."""
        key = keyholders.add(tmp_path / "theirs", "ana", "admin")
        settings = door.world.settings.model_copy(update={"home": tmp_path / "theirs"})
        found = Door(door.world, make_api(FakeSource(LINE), control=Control(settings)), {"ana": key})
        assert (403, "other_keys") == found.code("start", "ana")
        assert 403 == found.ask("/v1/models", by="ana")[0]
        assert "none" == door.ask(ROLLOUT)[1]["status"]


class TestRefused:
    def test_artefacts_that_are_away_are_no_last_word(self, door: Door) -> None:
        world = door.world
        lia, bob = (
            access.who(world.settings.model_copy(update={"key": SecretStr(door.keys[name])})) for name in ("lia", "bob")
        )
        version = register(world.registry, make_bundle(world.home.parent / "three", "three"), actor=lia)
        wanted = world.registry.must(LINE, version)
        approvals.request(world.registry.store, wanted, actor=lia, policy={}, hours=168)
        approvals.approve(world.registry, LINE, version, actor=bob, reason="seen")
        door.move("start", version=version)
        storage = Path(world.settings.artifacts)
        storage.rename(world.home / "disk")

        assert (503, "missing_storage") == door.code("promote")
        assert (200, "running", 10) == _said(door.ask(ROLLOUT))

    @pytest.mark.parametrize(
        ("told", "status", "code"),
        [
            ({"reason": "x" * 501}, 422, "wrong_type"),
            ({"reason": ""}, 422, "wrong_type"),
            ({"reason": " \u3000 "}, 422, "wrong_type"),
            ({"reason": "a\nb"}, 422, "wrong_type"),
            ({"reason": "a\u0000b"}, 422, "wrong_type"),
            ({"reason": "\u202e"}, 422, "wrong_type"),
            ({"reason": None}, 422, "wrong_type"),
            ({"reason": 7}, 422, "wrong_type"),
            ({"version": 0}, 422, "wrong_type"),
            ({"version": "2"}, 422, "wrong_type"),
            ({"version": 10**9}, 422, "wrong_type"),
            ({"version": 9}, 404, "unknown_version"),
            ({"version": 1}, 409, "same_version"),
            ({"policy": "luck"}, 422, "unknown_policy"),
            ({"options": [1]}, 422, "wrong_type"),
            ({"options": {"min_samples": -1}}, 422, "bad_params"),
            ({"options": {"min_samples": 12_001}}, 409, "preconditions"),
            ({"tenant": "other"}, 422, "unknown_field"),
        ],
        ids=str,
    )
    def test_what_a_start_cannot_mean_is_refused_by_name_and_changes_nothing(
        self, told: dict[str, Any], status: int, code: str, door: Door
    ) -> None:
        assert (status, code) == door.code("start", **told)
        assert "none" == door.ask(ROLLOUT)[1]["status"]
        assert "challenger" not in door.world.aliases
        assert [] == door.world.entries("rollout", "traffic")

    @pytest.mark.parametrize(
        ("told", "where"),
        [
            ({"policy": "luck"}, "policy"),
            ({"options": {"luck": 1}}, "options.luck"),
            ({"options": {"rules": {"luck": 1}}}, "options.rules"),
            ({"options": {"min_samples": -1}}, "options.min_samples"),
        ],
        ids=str,
    )
    def test_what_a_start_says_wrongly_is_wrong_where_it_said_it(
        self, told: dict[str, Any], where: str, door: Door
    ) -> None:
        assert where == door.move("start", **told)[1]["error"]["where"]

    def test_what_helps_is_a_request_and_not_a_command(self, door: Door) -> None:
        for by, (status, found) in {by: door.move("start", by) for by in ("vera", None)}.items():
            assert (403 if by else 401) == status
            assert found["error"]["cure"].startswith("send such a key as 'X-Esteira-Key: KEY'")
        for query in ("status=great", "limit=0"):
            assert "--" not in str(door.ask("/v1/models", query=query)[1]["error"])
        assert f"see `GET {ROLLOUT}`, or start one" == door.move("pause")[1]["error"]["cure"]
        door.move("start")
        assert f"`POST {ROLLOUT}/rollback`" in door.move("start")[1]["error"]["cure"]
        door.move("pause")
        assert f"`POST {ROLLOUT}/resume`" == door.move("promote")[1]["error"]["cure"]

    @pytest.mark.parametrize(
        ("text", "told"),
        [
            ("esteira rollout resume a@b --reason TEXT", "`POST /v1/a@b/rollout/resume`"),
            ("esteira rollout start a --version 3 --reason TEXT, or wait", "`POST /v1/a/rollout/start`, or wait"),
            ("see `esteira rollout status a`", "see `GET /v1/a/rollout`"),
            ("see `esteira release ls a@b` for all", "see `GET /v1/models?line=a@b` for all"),
            ("`esteira release ls --json` has the ids", "`GET /v1/models` has the ids"),
            ("name another by --version", "name another by version"),
            ("say --option min_samples=N", "say options.min_samples=N"),
            ("--limit, --offset", "limit, offset"),
            ("esteira rollback a --reason TEXT", "esteira rollback a --reason TEXT"),
            ("`esteira release stage a 3 --reason TEXT` asks", "`esteira release stage a 3 --reason TEXT` asks"),
            ("esteira rollout tick a; --state", "esteira rollout tick a; status"),
        ],
    )
    def test_a_command_is_told_as_its_route_and_one_without_as_it_is(self, text: str, told: str) -> None:
        assert told == _by_routes(text)

    @pytest.mark.parametrize("elsewhere", [False, True])
    def test_an_artefact_that_was_changed_is_refused_without_its_place(self, elsewhere: bool, door: Door) -> None:
        stored = door.world.home / "artifacts"
        if elsewhere:
            stored = stored.rename(door.world.home.parent / "elsewhere")
            settings = door.world.settings.model_copy(update={"artifacts": str(stored)})
            door.api = make_api(FakeSource(LINE), control=Control(settings))
        (place,) = (path for path in stored.rglob("decoder.json") if '"two"' in path.read_text(encoding="utf-8"))
        place.write_text('{"text": "?"}', encoding="utf-8")
        status, found = door.move("start", version=2)
        assert 409 == status
        assert "bundle_changed" == found["error"]["code"]
        assert str(door.world.home.parent) not in json.dumps(found)

    @pytest.mark.parametrize("told", [{"version": 2}, {"policy": "rules"}, {"options": {}}], ids=str)
    def test_only_a_start_is_told_what_to_start(self, told: dict[str, Any], door: Door) -> None:
        assert (422, "unknown_field") == door.code("pause", **told)

    @pytest.mark.parametrize(
        ("body", "options", "status", "code"),
        [
            (b"{", {}, 400, "bad_json"),
            (b'{"reason": "\\ud800"}', {}, 400, "bad_json"),
            (b'{"reason": "a", "reason": "b"}', {}, 400, "duplicate_key"),
            (b"[]", {}, 422, "wrong_type"),
            (b"", {}, 400, "bad_json"),
            (b'{"reason": "' + b"x" * BODY + b'"}', {}, 413, "body_too_large"),
            (json.dumps(WHY).encode(), {"headers": {"content-type": "text/csv"}}, 415, "not_json"),
            (json.dumps(WHY).encode(), {"method": "GET"}, 405, "method"),
            (json.dumps(WHY).encode(), {"method": "DELETE"}, 405, "method"),
        ],
        ids=lambda value: str(value)[:40],
    )
    def test_a_body_is_sent_as_others_are(
        self, body: bytes, options: dict[str, Any], status: int, code: str, door: Door
    ) -> None:
        found = door.ask(f"{ROLLOUT}/start", body, by="bob", **options)
        assert (status, code) == (found[0], found[1]["error"]["code"])
        assert "none" == door.ask(ROLLOUT)[1]["status"]

    def test_a_line_that_is_not_served_has_no_rollout(self, door: Door) -> None:
        for path in ("/v1/tabular@other/rollout", "/v1/tabular@other/rollout/start"):
            status, found = door.ask(path, WHY, by="ana")
            assert (404, "unknown_line") == (status, found["error"]["code"])
        assert 404 == door.ask(f"{ROLLOUT}/delete", WHY, by="ana")[0]
        assert 405 == door.ask(ROLLOUT, WHY, by="ana")[0]

    def test_a_service_of_one_bundle_says_that_there_is_nothing_to_steer(self, monkeypatch: pytest.MonkeyPatch) -> None:
        fake_loading(monkeypatch)
        api = make_api(FakeSource(LINE))
        for path, method in (
            (ROLLOUT, "GET"),
            (f"{ROLLOUT}/start", "POST"),
            ("/v1/models", "GET"),
            ("/v1/models/x", "GET"),
        ):
            status, found, _ = ask(api, path, json.dumps(WHY).encode(), method=method)
            assert (404, "no_registry") == (status, found["error"]["code"])
            assert {"where", "cure"} <= set(found["error"])
        assert not any(
            "rollout" in path or path == "/v1/models" for path in ask(api, "/openapi.json", method="GET")[1]["paths"]
        )


class TestAway:
    AWAY = "postgresql+psycopg2://nobody:secret-word@127.0.0.1:1/none"

    def test_with_the_store_away_a_roll_back_is_made_and_all_else_is_503(self, door: Door) -> None:
        door.move("start")
        away = door.world.settings.model_copy(update={"database_url": self.AWAY, "request_seconds": 10.0})
        found = Door(door.world, make_api(FakeSource(LINE), control=Control(away)), door.keys)

        for path, body, by in (
            (f"{ROLLOUT}/pause", WHY, "bob"),
            ("/v1/models", None, None),
            ("/v1/models/x", None, None),
        ):
            status, said = found.ask(path, body, by=by)
            assert 503 == status
            assert not [word for word in ("secret", "psycopg", "127.0.0.1", "refused") if word in json.dumps(said)]
        looked = found.ask(ROLLOUT)
        assert (200, "running", 10.0) == _said(looked)
        assert "sums: what was measured cannot be read" == looked[1]["alert"]
        status, said = found.move("rollback", "lia")
        assert (503, "not_carried_out") == (status, said["error"]["code"]), "the ledger is yet to be told"
        assert "ledger: the ledger cannot be told" in said["error"]["message"]
        for told in (looked[1], said, found.ask(ROLLOUT)[1]):
            assert not [
                word for word in ("secret", "psycopg", "127.0.0.1", "refused", "port") if word in json.dumps(told)
            ]
        assert door.world.split is None
        assert "rolled_back" == door.world.state.status

    def test_a_target_that_is_away_is_told_and_not_taken_for_done(
        self, door: Door, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        gateway = Gateway()
        monkeypatch.setattr("esteira.rollout.targets.make", lambda *_: gateway)
        door.move("start")
        gateway.away = True
        assert (503, "not_carried_out") == door.code("rollback")
        assert "rolled_back" == door.ask(ROLLOUT)[1]["status"]

    @pytest.mark.parametrize(
        ("kept", "told"),
        [
            ("", ""),
            ("rolled_back: complaints", "rolled_back: complaints"),
            ("sums: at 10.0.0.7", "sums: what was measured cannot be read"),
            ("disk: /srv\n: is full | rolled_back: odd", "disk: the disk takes no write | rolled_back: odd"),
            ("inconclusive: state: at /srv", "inconclusive: state: the state cannot be gone by"),
            ("the margin is 3: wide", "the margin is 3: wide"),
        ],
    )
    def test_an_alert_is_told_by_its_kind_and_not_in_the_words_of_a_driver(self, kept: str, told: str) -> None:
        known = {"alert": kept, "reason": kept, "percent": 10.0, "history": [{"reason": kept, "from": 0.0}]}

        assert {**known, "alert": told, "reason": told, "history": [{"reason": told, "from": 0.0}]} == _shown(known)
        assert {"status": "none", "alert": told} == _shown({"status": "none", "alert": kept})
        assert set(_FAULTS) == alerts.ENGINE_ALERTS

    def test_a_setting_that_names_no_target_is_the_services_trouble(self, door: Door) -> None:
        settings = door.world.settings.model_copy(update={"target": "luck"})
        found = Door(door.world, make_api(FakeSource(LINE), control=Control(settings)), door.keys)
        assert (503, "bad_target") == found.code("start")


class TestBesidePredictions:
    def test_predictions_do_not_wait_for_a_move_and_a_late_one_says_so(self, door: Door) -> None:
        settings = door.world.settings.model_copy(update={"request_seconds": 0.5})
        api = make_api(FakeSource(LINE), control=Control(settings))
        door.move("start")

        async def during() -> tuple[float, Any, Any]:
            move = asyncio.create_task(
                asked(api, f"{ROLLOUT}/pause", json.dumps(WHY).encode(), headers={"x-esteira-key": door.keys["bob"]})
            )
            await asyncio.sleep(0.05)
            begun = time.perf_counter()
            predicted = await asked(api, "/v1/predict", b'{"rows": [{"a": 1}]}')
            return time.perf_counter() - begun, predicted, await move

        with locks.hold(door.world.home, f"rollout {LINE}", what="a test"):
            seconds, predicted, moved = asyncio.run(during())

        assert 200 == predicted[0]
        assert seconds < 0.2
        assert (503, "unfinished") == (moved[0], moved[1]["error"]["code"])
        assert "retry-after" in moved[2]
        end = time.monotonic() + 10
        while door.ask(ROLLOUT)[1]["status"] != "paused":  # it was still done, as it said that it may be
            assert time.monotonic() < end
            time.sleep(0.05)

    @pytest.mark.slow
    def test_a_move_imports_nothing_that_a_service_need_not_have(self, door: Door) -> None:
        """Neither MLflow, which is not in its image, nor the parts that train: their import would hold up predictions."""
        script = (
            "import asyncio, json, sys\n"
            "tried = set()\n"
            "class Missing:\n"
            "    def find_spec(self, name, *_):\n"
            "        if name.partition('.')[0] in ('mlflow', 'pandas', 'sklearn', 'scipy', 'kfp'):\n"
            "            tried.add(name)\n"
            "            raise ModuleNotFoundError(name)\n"
            "sys.meta_path.insert(0, Missing())\n"
            "from pathlib import Path\n"
            "from esteira.settings import Settings\n"
            "from serving.control import Control\n"
            "from serving.routes import Route\n"
            "home, line, key = sys.argv[1:]\n"
            "control = Control(Settings(home=Path(home)))\n"
            "async def receive():\n"
            "    return {'type': 'http.request', 'body': b'{\"reason\": \"r\"}'}\n"
            "async def move(verb):\n"
            "    scope = {'path': f'/v1/{line}/rollout/{verb}', 'method': 'POST'}\n"
            "    return await control.answer(Route('rollout', line), scope, {b'x-esteira-key': key.encode()}, receive)\n"
            "print([asyncio.run(move(verb))['status'] for verb in ('start', 'pause', 'resume', 'promote')], tried)\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", script, str(door.world.home), LINE, door.keys["bob"]],
            capture_output=True, text=True, cwd=Path(__file__).parents[1],
        )  # fmt: skip
        assert "['running', 'paused', 'running', 'approved'] set()" == done.stdout.strip(), done.stderr[-2000:]
        assert 2 == door.world.aliases["champion"]

    def test_those_who_look_take_no_place_of_those_who_roll_back(
        self, door: Door, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        door.move("start")
        settings = door.world.settings.model_copy(update={"request_seconds": 1.5})
        api = make_api(FakeSource(LINE), control=Control(settings))
        monkeypatch.setattr(Registry, "find", lambda *_, **__: time.sleep(2.5))

        async def during() -> tuple[int, Any, Any]:
            looks = [asyncio.create_task(asked(api, "/v1/models", method="GET")) for _ in range(20)]
            await asyncio.sleep(0.05)
            found = await asked(
                api, f"{ROLLOUT}/rollback", json.dumps(WHY).encode(), headers={"x-esteira-key": door.keys["bob"]}
            )
            assert {503} == {status for status, _, _ in await asyncio.gather(*looks)}
            return found

        assert (200, "rolled_back") == _said(asyncio.run(during())[:2])[:2]


class TestModels:
    @pytest.mark.requirement("K-54")
    def test_another_tenants_id_is_404(self, door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
        """K-54 Done when: another tenant's id gives 404. Returns the full model record; 404 if absent."""
        fake_loading(monkeypatch)
        ours = door.ask("/v1/models")[1]["models"]
        other = door.world.settings.model_copy(update={"tenant": "other"})
        theirs = Door(door.world, make_api(FakeSource(LINE), control=Control(other)), door.keys)

        assert [2, 1] == [model["version"] for model in ours]
        assert {"total": 0, "models": [], "limit": 50, "offset": 0} == theirs.ask("/v1/models")[1]
        for model in ours:
            status, whole = door.ask(f"/v1/models/{model['id']}")
            assert 200 == status
            assert {**model, "age_seconds": 0}.items() <= {**whole, "age_seconds": 0}.items()
            assert "params" in whole
            for by in (None, "ana"):
                status, found = theirs.ask(f"/v1/models/{model['id']}", by=by)
                assert (404, "unknown_model") == (status, found["error"]["code"])
        for identity in ("", "x", "1", LINE, "00000000-0000-0000-0000-000000000000", "%00", "é", "x" * 3000):
            assert 404 == door.ask(f"/v1/models/{identity}")[0]

    def test_where_a_model_is_stored_is_nobodys_business(self, door: Door) -> None:
        """K-54: hide the storage path."""
        text = json.dumps([door.ask(path)[1] for path in _all(door)])
        assert str(door.world.home) not in text
        assert "file://" not in text
        assert '"uri"' not in text

    def test_filters_and_pages_go_together(self, door: Door) -> None:
        """K-54: filters (status, type, framework) and paging."""
        door.move("start")

        def versions(query: str) -> list[int]:
            status, found = door.ask("/v1/models", query=query)
            assert 200 == status, found
            Draft202012Validator(shapes.VERSIONS).validate(found)
            return [model["version"] for model in found["models"]]

        assert [1] == versions("status=production") == versions("status=deployed") == versions("status=ACTIVE")
        assert [2, 1] == versions(f"line={LINE}") == versions("type=classification") == versions("")
        assert [] == versions("line=tabular") == versions("framework=xgboost") == versions("type=regression&limit=5")
        assert [2] == versions("limit=1")
        assert [1] == versions("limit=1&offset=1")
        assert [] == versions("offset=2")
        assert 2 == door.ask("/v1/models", query="limit=1")[1]["total"]

    @pytest.mark.parametrize("word", shapes.STATES)
    def test_every_word_for_a_state_that_is_described_may_be_asked_for(self, word: str, door: Door) -> None:
        assert 200 == door.ask("/v1/models", query=f"status={word}")[0]

    @pytest.mark.parametrize(
        ("query", "code"),
        [
            ("status=great", "unknown_state"), ("limit=0", "bad_page"), ("limit=1001", "bad_page"), ("limit=-1", "wrong_type"),
            ("limit=many", "wrong_type"), ("offset=%c2%b2", "wrong_type"), ("type=", "wrong_type"), ("line=%00", "wrong_type"),
            ("tenant=other", "unknown_field"), ("limit=1&limit=2", "duplicate_field"), ("line=" + "x" * 201, "wrong_type"),
        ],
    )  # fmt: skip
    def test_what_a_list_cannot_mean_is_refused_by_name(self, query: str, code: str, door: Door) -> None:
        status, found = door.ask("/v1/models", query=query)
        assert (422, code) == (status, found["error"]["code"])

    def test_the_list_takes_get_and_nothing_else(self, door: Door) -> None:
        for path in _all(door):
            assert 405 == door.ask(path, WHY, by="ana")[0]
            assert 200 == door.ask(path, method="HEAD")[0]
        assert 404 == door.ask("/v1/models/x/y")[0]


class TestDocument:
    def test_it_describes_what_is_there(self, door: Door) -> None:
        document = door.ask("/openapi.json")[1]
        validate(document)

        paths = set(document["paths"])
        assert {ROLLOUT, "/v1/models", "/v1/models/{id}", *(f"{ROLLOUT}/{verb}" for verb in routes.VERBS)} <= paths
        assert set(routes.VERBS) == set(openapi._VERBS)
        assert [{"key": [], "named": []}] == document["paths"][f"{ROLLOUT}/start"]["post"]["security"]
        for path in _all(door)[1:]:
            Draft202012Validator(shapes.WHOLE_RECORD).validate(door.ask(path)[1])

    @given(
        st.fixed_dictionaries(
            {},
            optional={
                "reason": st.one_of(
                    st.text(max_size=5), st.sampled_from(["why", " ", "\u3000", "x" * 500, "x" * 501, "\u2028", "a\x7f"]), st.none()
                ),
                "version": st.one_of(st.integers(-1, 3), st.sampled_from([2.0, 1.5, True, None, "2", 10**9])),
                "policy": st.sampled_from(["rules", "flags", None, 1]),
                "options": st.one_of(st.none(), st.dictionaries(st.text(max_size=2), st.integers(), max_size=2), st.just([])),
                "more": st.just(1),
            },
        )
    )  # fmt: skip
    def test_the_schema_of_a_start_takes_what_the_service_reads(self, told: dict[str, Any]) -> None:
        try:
            _asked(_Start, json.dumps(told).encode())
            read = True
        except Problem:
            read = False
        allowed = Draft202012Validator(shapes.START).is_valid(told)
        # Which of Unicode's characters are printable, a pattern cannot say.
        assert read is (allowed and str(told["reason"]).isprintable()), told


def _said(found: tuple[int, Any]) -> tuple[int, str, float]:
    status, document = found
    assert 200 == status, document
    return status, document["status"], document["percent"]


def _all(door: Door) -> list[str]:
    """The paths of the list and of each version."""
    return ["/v1/models", *(f"/v1/models/{model['id']}" for model in door.ask("/v1/models")[1]["models"])]
