"""Promotion and roll back: on what they stand, what they move together, what they leave after a kill, and how they are found again."""

import json
import logging
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from esteira import crash, ledger, locks
from esteira.access import ENGINE, Actor
from esteira.errors import ConfigError, EsteiraError, OutsideError, Refused
from esteira.gate import Fact, Facts, judge, read_rules
from esteira.project import Project
from esteira.registry import Registry, beacon, catalogue
from esteira.release import approvals
from esteira.release.lifecycle import legal
from esteira.release.record import record
from esteira.settings import Settings
from esteira.store import Store
from pipelines.plan import decide
from tests.released import ADMIN, APPROVER, AUTOMATIC, LOCAL, NOW, SCIENTIST, VIEWER, Unshown, add, spoil
from tests.stores import sqlite_template, store, store_url
from tests.test_approvals import POLICY
from tests.test_registry import LINE, PASS, _die_at, make_bundle, put, shown, template

__all__ = ["sqlite_template", "store", "store_url", "template"]

ROOT = Path(__file__).resolve().parents[1]
_POINTS = [name for name in crash.POINTS if name.split(".")[0] in {"promote", "rollback"}]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home")


@pytest.fixture
def registry(settings: Settings, store: Store) -> Registry:
    """A line with three versions of which none serves."""
    found = Unshown(settings.model_copy(update={"tenant": store.tenant}), store)
    for number in (1, 2, 3):
        add(store, settings, number)
    return found


def promote(registry: Registry, *versions: int, actor: Actor = ADMIN) -> None:
    for version in versions:
        registry.promote(LINE, version, actor=actor, reason=f"take {version}", evidence=AUTOMATIC, now=NOW)


def states(registry: Registry, line: str = LINE) -> dict[int, str]:
    return {version.version: version.state for version in registry.versions(line)}


def entries(registry: Registry, *kinds: str) -> list[ledger.Entry]:
    return [entry for entry in ledger.log(registry.store, limit=None) if not kinds or entry.kind in kinds]


class TestPromote:
    def test_champion_and_production_move_together_and_the_former_one_becomes_previous(
        self, registry: Registry
    ) -> None:
        promote(registry, 1)
        moved = registry.promote(LINE, 2, actor=APPROVER, reason="better", evidence={**AUTOMATIC, "why": [1]}, now=NOW)

        assert {"champion": 2, "production": 2, "previous": 1} == registry.aliases(LINE)
        assert {1: "retired", 2: "production", 3: "validated"} == states(registry)
        assert (2, "production", NOW) == (moved.version, moved.state, moved.deployed_at)
        entry = entries(registry, "alias")[-1]
        assert ("bob", 2, moved.bundle_id) == (entry.actor, entry.version, entry.bundle_id)
        assert {
            "policy": "automatic", "why": [1], "basis": "policy", "rehearsal": None, "role": "approver", "keyed": True, "alias": "champion",
            "from": 1, "to": 2, "reason": "better",
            "moves": {"champion": [1, 2], "production": [1, 2], "previous": [None, 1]},
        } == entry.evidence  # fmt: skip

    @pytest.mark.parametrize("verdict", ["pass", "held", ""])
    @pytest.mark.parametrize("basis", ["approval", "test_id", "override", "policy"])
    def test_on_whatever_it_stands_it_says_which_rehearsal_it_passed(
        self, basis: str, verdict: str, registry: Registry
    ) -> None:
        """S-20: null where there was none, so that the record can say so. Only an override goes past one that held it back."""
        wanted, common = registry.must(LINE, 1), {"line": LINE, "version": 1, "actor": "lia", "now": NOW}
        common["bundle_id"] = wanted.bundle_id
        told = {"approval": True, "test_id": "t-1", "override": "all is down", "policy": "automatic"}
        ledger.append(registry.store, kind="rollout", evidence={"test_id": "t-1"}, **common)
        seq = (
            ledger.append(registry.store, kind="rehearsal", evidence={"verdict": verdict}, **common).seq
            if verdict
            else None
        )
        if basis == "approval":
            approvals.request(registry.store, wanted, actor=SCIENTIST, policy=POLICY, hours=1, now=NOW)
            approvals.approve(registry, LINE, 1, actor=APPROVER, reason="seen", now=NOW)

        def go() -> None:
            registry.promote(LINE, 1, actor=APPROVER, reason="go", evidence={basis: told[basis]}, now=NOW)

        if verdict == "held" and basis != "override":
            with pytest.raises(Refused) as caught:
                go()
            assert "not_rehearsed" == caught.value.code
            return
        go()
        evidence = entries(registry, "alias")[-1].evidence
        assert (basis, seq if verdict == "pass" else None) == (evidence["basis"], evidence["rehearsal"])
        why = {"pass": ""}.get(
            verdict, "overridden: all is down" if basis == "override" else "the line says rehearse: false"
        )
        assert why == record(registry, LINE, 1)["unrehearsed"]

    def test_promoting_the_champion_again_moves_nothing(self, registry: Registry) -> None:
        promote(registry, 1)
        before = len(entries(registry))
        promote(registry, 1)

        assert before == len(entries(registry))
        assert {"champion": 1, "production": 1} == registry.aliases(LINE)

    @pytest.mark.requirement("H-35")
    def test_a_version_without_a_report_is_not_promoted(
        self, registry: Registry, store: Store, settings: Settings
    ) -> None:
        """H-35 Done when: promotion without report is refused."""
        held = {"verdict": "held", "rules": PASS["rules"]}
        add(store, settings, 4, verdict=None)
        add(store, settings, 5, verdict=held)
        for number in (4, 5):
            for ask in (
                lambda number=number: registry.promote(
                    LINE, number, actor=ADMIN, reason="now", evidence={"override": "now"}, now=NOW
                ),
                lambda number=number: promote(registry, number),
                lambda number=number: registry.check_promote(LINE, number, actor=ADMIN, now=NOW),
            ):
                with pytest.raises(Refused) as caught:
                    ask()
                assert "no_report" == caught.value.code
        assert {} == registry.aliases(LINE)

    @pytest.mark.requirement("H-35")
    @pytest.mark.parametrize(
        "evidence",
        [
            {},
            {"why": "better"},
            {"approval": False},
            {"approval": "bob's"},
            {"override": " "},
            {"override": True},
            {"test_id": ""},
            {"policy": None},
            {"policy": "required"},
            {"policy": True},
            {"policy": "anything"},
            {"policy": ["automatic"]},
        ],
    )
    def test_a_promotion_stands_on_a_result_or_on_somebodys_word(
        self, evidence: dict[str, Any], registry: Registry
    ) -> None:
        """H-35: promotion needs a passing report and, for Production, an approved A/B result or a recorded human override. Done
        when: promotion without report is refused (above)."""
        with pytest.raises(Refused) as caught:
            registry.promote(LINE, 1, actor=ADMIN, reason="now", evidence=evidence, now=NOW)
        assert "no_basis" == caught.value.code
        assert registry.resolve(LINE) is None

    def test_a_rollout_that_the_ledger_does_not_know_is_no_basis(self, registry: Registry) -> None:
        with pytest.raises(Refused) as caught:
            registry.promote(LINE, 1, actor=ENGINE, reason="100 %", evidence={"test_id": "t1"}, now=NOW)
        assert "no_basis" == caught.value.code

        said: dict[str, Any] = {"line": LINE, "actor": "rollout", "evidence": {"test_id": "t1", "action": "started"}}
        ledger.append(registry.store, kind="rollout", version=2, bundle_id=registry.must(LINE, 2).bundle_id, **said)
        with pytest.raises(Refused):
            registry.promote(LINE, 1, actor=ENGINE, reason="100 %", evidence={"test_id": "t1"}, now=NOW)
        registry.promote(LINE, 2, actor=ENGINE, reason="100 %", evidence={"test_id": "t1"}, now=NOW)
        assert "test_id" == entries(registry, "alias")[-1].evidence["basis"]

    def test_a_rollouts_candidate_keeps_its_name_until_the_rollout_takes_it_away(self, registry: Registry) -> None:
        promote(registry, 1)
        registry.set_alias(LINE, "challenger", 2, actor=APPROVER)
        promote(registry, 2)

        assert 2 == registry.aliases(LINE)["challenger"]

    @pytest.mark.parametrize("actor", [VIEWER, SCIENTIST, replace(LOCAL, role="guest"), replace(LOCAL, role="nobody")])
    def test_who_may_not_promote_is_refused_and_told(self, actor: Actor, registry: Registry) -> None:
        with pytest.raises(Refused) as caught:
            promote(registry, 1, actor=actor)
        assert "not_allowed" == caught.value.code
        assert ["denied"] == [entry.kind for entry in entries(registry)[-1:]]
        with pytest.raises(Refused):
            registry.check_promote(LINE, 1, actor=actor, now=NOW)

    def test_checking_moves_nothing_and_says_what_promoting_would(self, registry: Registry, settings: Settings) -> None:
        """The engine asks this before it gives a candidate all the traffic."""
        before = len(entries(registry))
        registry.check_promote(LINE, 1, actor=ENGINE, now=NOW)
        registry.check_promote(LINE, 1, actor=ADMIN, evidence=AUTOMATIC, now=NOW)
        assert before == len(entries(registry))

        wanted = registry.must(LINE, 1)
        approvals.request(registry.store, wanted, actor=SCIENTIST, policy=POLICY, hours=1, now=NOW)
        with pytest.raises(Refused) as caught:
            registry.check_promote(LINE, 1, actor=ENGINE, now=NOW)
        assert "not_approved" == caught.value.code
        registry.check_promote(LINE, 1, actor=APPROVER, evidence={"override": "now"}, now=NOW)
        approvals.approve(registry, LINE, 1, actor=APPROVER, reason="seen", now=NOW)
        registry.check_promote(LINE, 1, actor=ENGINE, now=NOW)
        with pytest.raises(Refused) as caught:
            registry.check_promote(LINE, 1, actor=ENGINE, now=NOW + timedelta(hours=2))
        assert "approval_expired" == caught.value.code
        spoil(settings, 1)
        registry.check_promote(LINE, 1, actor=APPROVER, evidence={"override": "now"}, now=NOW)
        for _ in range(2):
            with pytest.raises(Refused) as caught:
                registry.check_promote(LINE, 1, actor=ENGINE, now=NOW)
            assert "approval_void" == caught.value.code

    @pytest.mark.parametrize(
        ("state", "code"),
        [("failed", "failed_version"), ("training", "failed_version"), ("rolled_back", "illegal_move")],
    )
    def test_a_version_that_may_not_serve_is_not_promoted(self, state: str, code: str, registry: Registry) -> None:
        with registry.store.begin() as connection:
            registry.store.set_version_state(connection, LINE, 1, state)
        with pytest.raises(Refused) as caught:
            promote(registry, 1)
        assert code == caught.value.code

    def test_what_is_not_there_or_put_away_is_not_promoted(self, registry: Registry) -> None:
        registry.retire(LINE, 1, actor=SCIENTIST, reason="old", now=NOW)
        for number, code in ((1, "archived"), (9, "unknown_version")):
            with pytest.raises(Refused) as caught:
                promote(registry, number)
            assert code == caught.value.code
        assert 404 == caught.value.http_status

    def test_a_move_has_a_reason(self, registry: Registry) -> None:
        promote(registry, 1, 2)
        for move in (
            lambda: registry.promote(LINE, 3, actor=ADMIN, reason=" ", evidence=AUTOMATIC),
            lambda: registry.roll_back(LINE, actor=ADMIN, reason=""),
            lambda: registry.drop_alias(LINE, "challenger", actor=ADMIN, reason=""),
            lambda: registry.retire(LINE, 3, actor=ADMIN, reason=""),
        ):
            with pytest.raises(ConfigError) as caught:
                move()
            assert "no_reason" == caught.value.code


@pytest.mark.requirement("K-53")
def test_a_model_that_scores_079_is_refused_with_the_reason(registry: Registry, tmp_path: Path) -> None:
    """K-53 Done when: a model scoring 0.79 is refused with the reason; rollback returns the previous version to service (below)."""
    rules = read_rules((ROOT / "families" / "tabular" / "gate.yaml").read_text(encoding="utf-8")).select("kryonix")
    good = [rule for rule in rules if rule.rule == "good_enough"]
    for score, released in ((0.79, False), (0.8, True)):
        verdict = judge(good, Facts(primary="accuracy", metrics={"accuracy": Fact(value=score, n=100)}))
        assert released == verdict.released
        if released:
            continue
        assert "accuracy is 0.79 and must be >= 0.8" in verdict.summary()
        bundle = make_bundle(tmp_path / "bundle", text="0.79")
        with pytest.raises(Refused) as caught:
            put(registry, bundle, verdict=verdict.to_json())
        assert "no_verdict" == caught.value.code
        assert "good_enough" in caught.value.message
        assert [3, 2, 1] == [version.version for version in registry.versions(LINE)]


class TestRollBack:
    @pytest.mark.requirement("K-53")
    def test_one_call_returns_the_previous_version_to_service(self, registry: Registry) -> None:
        """K-53 Done when: ...; rollback returns the previous version to service. One deployed version per line; deploying stamps
        deployed_at, archiving archived_at."""
        promote(registry, 1, 2)
        later = NOW + timedelta(hours=1)

        done = registry.roll_back(LINE, actor=SCIENTIST, reason="prices are off", now=later)

        assert (2, 1) == (done.from_version, done.to_version)
        assert {"champion": 1, "production": 1} == registry.aliases(LINE)
        assert {1: "production", 2: "rolled_back", 3: "validated"} == states(registry)
        assert later == registry.must(LINE, 1).deployed_at
        note, move = entries(registry)[-2:]
        assert ("rollback", done.ledger_seq, 1, "lia") == (note.kind, note.seq, note.version, note.actor)
        assert {
            "from": 2,
            "to": 1,
            "reason": "prices are off",
            "role": "data_scientist",
            "keyed": True,
        } == note.evidence
        assert {"champion": [2, 1], "production": [2, 1], "previous": [1, None]} == move.evidence["moves"]
        assert ("alias", 1, registry.must(LINE, 1).bundle_id) == (move.kind, move.version, move.bundle_id)
        assert ledger.verify(registry.store).ok
        assert registry.retire(LINE, 2, actor=SCIENTIST, reason="bad", now=later).archived_at == later

    @pytest.mark.requirement("H-37")
    def test_two_roll_backs_reach_the_version_before_the_previous(self, registry: Registry) -> None:
        """H-37 Done when: two successive rollbacks reach the version before the previous."""
        promote(registry, 1, 2, 3)

        first = registry.roll_back(LINE, actor=ADMIN, reason="3 is off", now=NOW)
        assert {"champion": 2, "production": 2, "previous": 1} == registry.aliases(LINE)
        second = registry.roll_back(LINE, actor=ADMIN, reason="2 is off, too", now=NOW)

        assert [(3, 2), (2, 1)] == [(done.from_version, done.to_version) for done in (first, second)]
        assert {1: "production", 2: "rolled_back", 3: "rolled_back"} == states(registry)
        with pytest.raises(Refused) as caught:
            registry.roll_back(LINE, actor=ADMIN, reason="1 is off, as well", now=NOW)
        assert "nothing_before" == caught.value.code
        assert 1 == registry.aliases(LINE)["champion"]

    @pytest.mark.requirement("H-37")
    def test_a_version_that_was_rolled_back_is_nobodys_default_until_it_served_again(self, registry: Registry) -> None:
        """H-37: default target = last version that was production and not itself rolled back. Done when: two successive rollbacks
        reach the version before the previous (above)."""
        promote(registry, 1, 2)
        registry.roll_back(LINE, actor=ADMIN, reason="2 is off", now=NOW)
        promote(registry, 3)
        assert 1 == registry.roll_back(LINE, actor=ADMIN, reason="3 is off", now=NOW).to_version

        with pytest.raises(Refused) as caught:
            promote(registry, 2)
        assert "illegal_move" == caught.value.code
        assert "release stage" in caught.value.cure
        registry.set_alias(LINE, "staging", 2, actor=SCIENTIST)
        promote(registry, 2)
        promote(registry, 1)
        assert 2 == registry.roll_back(LINE, actor=ADMIN, reason="1 is off", now=NOW).to_version

    def test_a_version_may_be_named(self, registry: Registry) -> None:
        promote(registry, 1, 2, 3)
        done = registry.roll_back(LINE, to=1, actor=ADMIN, reason="2 and 3 share it", evidence={"ticket": 7}, now=NOW)

        assert (3, 1) == (done.from_version, done.to_version)
        assert {"champion": 1, "production": 1, "previous": 2} == registry.aliases(LINE)
        assert 7 == entries(registry, "rollback")[-1].evidence["ticket"]

    @pytest.mark.parametrize(
        ("to", "code"), [(3, "never_served"), (9, "unknown_version"), (2, "already_champion"), (1, "not_to_return")]
    )
    def test_a_version_that_cannot_be_returned_to_is_refused(self, to: int, code: str, registry: Registry) -> None:
        promote(registry, 1, 2)
        registry.retire(LINE, 1, actor=ADMIN, reason="old", now=NOW) if code == "not_to_return" else None
        before = entries(registry)
        with pytest.raises(Refused) as caught:
            registry.roll_back(LINE, to=to, actor=ADMIN, reason="off", now=NOW)

        assert code == caught.value.code
        assert before == entries(registry)

    def test_a_line_without_a_champion_has_nothing_to_roll_back(self, registry: Registry) -> None:
        with pytest.raises(Refused) as caught:
            registry.roll_back(LINE, actor=ADMIN, reason="off", now=NOW)
        assert "no_champion" == caught.value.code

    @pytest.mark.parametrize("actor", [VIEWER, replace(LOCAL, role="guest")])
    def test_who_may_not_roll_back_is_refused_and_told(self, actor: Actor, registry: Registry) -> None:
        promote(registry, 1, 2)
        with pytest.raises(Refused) as caught:
            registry.roll_back(LINE, actor=actor, reason="off", now=NOW)
        assert ("not_allowed", "denied") == (caught.value.code, entries(registry)[-1].kind)

    def test_it_waits_for_nobody_who_writes_to_mlflow(
        self, settings: Settings, registry: Registry, caplog: pytest.LogCaptureFixture
    ) -> None:
        promote(registry, 1, 2)
        with locks.hold(settings.home, "registry"), caplog.at_level(logging.WARNING, "esteira.registry"):
            begun = time.monotonic()
            done = registry.roll_back(LINE, actor=ADMIN, reason="off", now=NOW)
            assert time.monotonic() - begun < 10, "who waits in silence repeats it, and is back one version more"

        assert 1 == done.to_version == registry.aliases(LINE)["champion"]
        assert "does not show the aliases" in caplog.text

    def test_it_imports_nothing_heavy_before_it_is_done(
        self, store: Store, settings: Settings, registry: Registry
    ) -> None:
        if store.dialect != "sqlite":
            pytest.skip("the import of a driver is no difference")
        promote(registry, 1, 2)
        code = (
            "import sys; from datetime import UTC, datetime; from pathlib import Path\n"
            "from esteira import access; from esteira.registry import Registry; from esteira.settings import Settings\n"
            "class Told(Registry):\n"
            "    def _show_soon(self, line, *, always=False):\n"
            "        heavy = ('mlflow', 'alembic', 'pandas', 'numpy', 'onnxruntime', 'kfp', 'sklearn', 'yaml')\n"
            "        print(self.resolve(line).version, [name for name in heavy if name in sys.modules])\n"
            "settings = Settings(home=Path(sys.argv[1]), database_url=sys.argv[2], tenant=sys.argv[3])\n"
            "Told(settings).roll_back(sys.argv[4], actor=access.ENGINE, reason='off', now=datetime.now(UTC))"
        )
        url = store.engine.url.render_as_string(hide_password=False)
        done = subprocess.run(
            [sys.executable, "-c", code, str(settings.home), url, store.tenant, LINE],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip

        assert "1 []" == done.stdout.strip(), done.stderr


class TestChallenger:
    @pytest.mark.requirement("H-38")
    def test_a_second_challenger_is_refused_while_one_runs(self, registry: Registry) -> None:
        """H-38 Done when: a second challenger is refused while a test is running."""
        promote(registry, 1)
        registry.set_alias(LINE, "challenger", 2, actor=APPROVER, now=NOW)
        registry.set_alias(LINE, "challenger", 2, actor=APPROVER, now=NOW)

        with pytest.raises(Refused) as caught:
            registry.set_alias(LINE, "challenger", 3, actor=APPROVER, now=NOW)
        assert "challenger_running" == caught.value.code
        assert 2 == registry.aliases(LINE)["challenger"]

        assert registry.drop_alias(LINE, "challenger", actor=ENGINE, reason="it ended", now=NOW)
        assert not registry.drop_alias(LINE, "challenger", actor=ENGINE, reason="it ended", now=NOW)
        registry.set_alias(LINE, "challenger", 3, actor=APPROVER, now=NOW)
        assert {"champion": 1, "production": 1, "challenger": 3} == registry.aliases(LINE)

    def test_the_champion_is_not_its_own_challenger(self, registry: Registry) -> None:
        promote(registry, 1)
        with pytest.raises(Refused) as caught:
            registry.set_alias(LINE, "challenger", 1, actor=APPROVER)
        assert "same_version" == caught.value.code

    def test_a_test_that_went_back_leaves_a_version_that_was_rolled_back(self, registry: Registry) -> None:
        promote(registry, 1)
        registry.set_alias(LINE, "challenger", 2, actor=APPROVER, now=NOW)
        registry.drop_alias(LINE, "challenger", actor=ENGINE, reason="worse", state="rolled_back", now=NOW)

        assert "rolled_back" == registry.must(LINE, 2).state
        entry = entries(registry)[-1]
        assert ("alias", 2, {"challenger": [2, None]}) == (entry.kind, entry.version, entry.evidence["moves"])

    def test_only_a_challengers_name_is_taken_away(self, registry: Registry) -> None:
        promote(registry, 1)
        for alias in ("champion", "production", "staging", "previous", "x"):
            with pytest.raises(ConfigError) as caught:
                registry.drop_alias(LINE, alias, actor=ADMIN, reason="x")
            assert "bad_alias" == caught.value.code


def test_what_leaves_staging_for_another_is_validated_again(registry: Registry) -> None:
    registry.set_alias(LINE, "staging", 1, actor=SCIENTIST)
    registry.set_alias(LINE, "staging", 2, actor=SCIENTIST)
    assert {1: "validated", 2: "staging", 3: "validated"} == states(registry)
    promote(registry, 2)
    registry.set_alias(LINE, "staging", 3, actor=SCIENTIST)
    assert {1: "validated", 2: "production", 3: "staging"} == states(registry)
    # The champion, too, may be looked at in staging.
    registry.set_alias(LINE, "staging", 2, actor=SCIENTIST)
    assert {1: "validated", 2: "production", 3: "validated"} == states(registry)


@pytest.mark.parametrize(
    ("alias", "actor", "may"),
    [
        ("staging", SCIENTIST, True), ("staging", APPROVER, True), ("staging", VIEWER, False), ("staging", ENGINE, False),
        ("challenger", APPROVER, True), ("challenger", LOCAL, True), ("challenger", SCIENTIST, False), ("challenger", VIEWER, False),
    ],
    ids=lambda value: value.role if isinstance(value, Actor) else str(value),
)  # fmt: skip
def test_an_alias_is_set_by_who_may(alias: str, actor: Actor, may: bool, registry: Registry) -> None:
    if may:
        registry.set_alias(LINE, alias, 1, actor=actor)
        assert actor.told().items() <= entries(registry, "alias")[-1].evidence.items()
        return
    with pytest.raises(Refused) as caught:
        registry.set_alias(LINE, alias, 1, actor=actor)
    assert ("not_allowed", "denied") == (caught.value.code, entries(registry)[-1].kind)
    assert {} == registry.aliases(LINE)


class TestUnshown:
    """What holds is not undone, nor told as failed, because MLflow could not be shown it."""

    FAULTS = (
        ModuleNotFoundError("No module named 'mlflow'"),
        Refused("a database is opened once at a time", code="locked", where="lock mlflow.lock", cure="wait"),
        OutsideError(
            "MLflow can be opened", code="mlflow_away", where="ESTEIRA_MLFLOW_URI", cure="see that it is there"
        ),
        PermissionError(13, "Permission denied"),
    )

    @pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: type(fault).__name__)
    def test_every_move_holds_and_is_shown_by_a_later_one(
        self,
        fault: Exception,
        settings: Settings,
        template: Path,
        sqlite_template: Path,
        tmp_path: Path,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        settings.home.mkdir()
        shutil.copy(template, settings.home / "mlflow.db")
        shutil.copy(sqlite_template, settings.home / "esteira.db")

        class Away(Registry):
            """One whose MLflow is there for a registration's number, and then is not."""

            def _show_aliases(self, line: str, *, always: bool = False) -> None:
                self.__dict__["_align_numbers"] = self._fail
                super()._show_aliases(line, always=always)
                del self.__dict__["_align_numbers"]

            def _fail(self, *_: object) -> None:
                raise fault

        away = Away(settings)
        for text in "abc":
            put(away, make_bundle(tmp_path / text, text=text), actor=SCIENTIST)
        moves: tuple[Any, ...] = (
            lambda: away.set_alias(LINE, "staging", 1, actor=SCIENTIST),
            lambda: promote(away, 1, 2),
            lambda: away.roll_back(LINE, actor=ADMIN, reason="off"),
            lambda: away.set_alias(LINE, "challenger", 3, actor=APPROVER),
            lambda: away.drop_alias(LINE, "challenger", actor=ENGINE, reason="over"),
            lambda: away.retire(LINE, 3, actor=SCIENTIST, reason="old"),
        )
        for move in moves:
            caplog.clear()
            with caplog.at_level(logging.WARNING, "esteira.registry"):
                move()
            assert "does not show the aliases" in caplog.text

        wanted = {"champion": 1, "production": 1, "staging": 1}
        assert wanted == away.aliases(LINE)
        assert set(wanted) == {alias.alias for alias in away.store.list_aliases(LINE, mirrored=False)}
        assert {} == shown(settings)
        Registry(settings).set_alias(LINE, "staging", 1, actor=SCIENTIST)
        assert wanted == shown(settings)

    def test_a_process_without_a_mirror_moves_and_registers_nothing(
        self, store: Store, settings: Settings, registry: Registry, tmp_path: Path
    ) -> None:
        plain = Registry(settings.model_copy(update={"tenant": store.tenant}), store, mirror=False)
        promote(plain, 1, 2)
        plain.roll_back(LINE, actor=ADMIN, reason="off")
        plain.retire(LINE, 3, actor=ADMIN, reason="old")

        assert {"champion": 1, "production": 1} == registry.aliases(LINE)
        assert not (settings.home / "mlflow.db").exists()
        with pytest.raises(Refused) as caught:
            put(plain, make_bundle(tmp_path / "bundle"), actor=SCIENTIST)
        assert "no_mirror" == caught.value.code


class TestBeacon:
    def test_every_move_is_told_once_it_holds(self, registry: Registry, settings: Settings) -> None:
        seen = [beacon.stamp(settings.home)]
        for move in (
            lambda: registry.set_alias(LINE, "staging", 1, actor=SCIENTIST),
            lambda: promote(registry, 1),
            lambda: promote(registry, 2),
            lambda: registry.roll_back(LINE, actor=ADMIN, reason="off"),
            lambda: registry.set_alias(LINE, "challenger", 3, actor=APPROVER),
            lambda: registry.drop_alias(LINE, "challenger", actor=ADMIN, reason="over"),
        ):
            move()
            seen.append(beacon.stamp(settings.home))

        assert 0 == seen[0]
        assert sorted(set(seen)) == seen, "each is later than the one before"

    def test_two_moves_within_one_tick_of_the_clock_are_two(self, tmp_path: Path) -> None:
        seen = []
        for _ in range(200):
            beacon.touch(tmp_path)
            seen.append(beacon.stamp(tmp_path))

        assert 200 == len(set(seen))
        assert ["beacon"] == [path.name for path in tmp_path.iterdir()]

    def test_a_clock_that_goes_back_hides_no_move(self, tmp_path: Path) -> None:
        beacon.touch(tmp_path)
        ahead = beacon.stamp(tmp_path) + 10**15
        os.utime(tmp_path / "beacon", ns=(ahead, ahead))
        beacon.touch(tmp_path)

        assert beacon.stamp(tmp_path) > ahead

    def test_where_it_cannot_be_written_the_move_holds(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        (tmp_path / "file").touch()
        with caplog.at_level(logging.WARNING, "esteira.registry"):
            beacon.touch(tmp_path / "file")

        assert "followers hear of a move later" in caplog.text
        assert 0 == beacon.stamp(tmp_path / "file")

    def test_a_move_is_told_before_mlflow_is_shown_it(self, store: Store, settings: Settings) -> None:
        seen: list[tuple[int, int]] = []

        class Watched(Unshown):
            def _show_aliases(self, line: str, *, always: bool = False) -> None:
                champion = self.resolve(line)
                seen.append((beacon.stamp(settings.home), 0 if champion is None else champion.version))

        watched = Watched(settings.model_copy(update={"tenant": store.tenant}), store)
        add(store, settings, 1)
        promote(watched, 1)

        assert seen[-1][0] > 0
        assert 1 == seen[-1][1]


class TestFind:
    @pytest.fixture
    def many(self, registry: Registry, store: Store, settings: Settings) -> Registry:
        add(store, settings, 1, line="tabular", model_type="regression", framework="xgboost", algorithm="xgboost")
        add(store, settings, 4, model_type="classification", framework="scikit-learn", algorithm="linear")
        add(store, settings, 1, line="prices", model_type="regression", framework="scikit-learn", algorithm="linear")
        promote(registry, 1, 2)
        registry.set_alias(LINE, "staging", 3, actor=SCIENTIST)
        return registry

    def names(self, registry: Registry, **filters: Any) -> set[tuple[str, int]]:
        return {(model["line"], model["version"]) for model in registry.find(**filters).models}

    @pytest.mark.requirement("H-36")
    def test_filters_by_specialist_and_stage_work(self, many: Registry) -> None:
        """H-36 Done when: filters by specialist and stage work. (A specialist is a family or a line; a stage a state or an alias.)"""
        churn = {(LINE, number) for number in (1, 2, 3, 4)}
        assert churn == self.names(many, line=LINE)
        assert churn | {("tabular", 1)} == self.names(many, family="tabular")
        assert {("prices", 1)} == self.names(many, family="prices")
        assert {(LINE, 2)} == self.names(many, state="production") == self.names(many, state="Production")
        assert {(LINE, 3)} == self.names(many, line=LINE, state="Staging") == self.names(many, alias="staging")
        assert {(LINE, 1)} == self.names(many, alias="previous") == self.names(many, state="DEPRECATED")
        assert set() == self.names(many, line="prices", state="production")
        (found,) = many.find(line=LINE, state="production", now=NOW + timedelta(days=2)).models
        assert (["champion", "production"], {"roc_auc": 0.9}) == (found["aliases"], found["metrics"])
        assert found["age_seconds"] >= 0
        assert {"kryonix": "deployed", "famachat": "ACTIVE", "hivemind": "Production"} == found["words"]

    def test_every_kind_that_a_search_tries_has_a_framework(self) -> None:
        from esteira.automl.kinds import KINDS
        from esteira.registry.catalogue import FRAMEWORKS

        assert set() == KINDS.keys() - FRAMEWORKS.keys()

    def test_filters_by_type_and_framework_go_together(self, many: Registry) -> None:
        """K-54: filters (status, type, framework) and paging."""
        assert {("tabular", 1), ("prices", 1)} == self.names(many, model_type="regression")
        assert {("prices", 1)} == self.names(many, model_type="regression", framework="scikit-learn")
        assert {(LINE, 4)} == self.names(many, model_type="classification", state="validated")

    def test_pages_follow_one_another_and_count_all(self, many: Registry) -> None:
        pages = [many.find(limit=2, offset=offset) for offset in (0, 2, 4, 6)]

        assert [6, 6, 6, 6] == [page.total for page in pages]
        assert [2, 2, 2, 0] == [len(page.models) for page in pages]
        shown = [model["id"] for page in pages for model in page.models]
        assert 6 == len(set(shown))
        assert shown == [model["id"] for model in many.find(limit=1000).models]

    @pytest.mark.parametrize(("limit", "offset"), [(0, 0), (-1, 0), (1001, 0), (1, -1)])
    def test_a_page_that_is_none_is_refused(self, limit: int, offset: int, registry: Registry) -> None:
        with pytest.raises(ConfigError) as caught:
            registry.find(limit=limit, offset=offset)
        assert "bad_page" == caught.value.code

    def test_another_tenants_id_is_not_found(self, many: Registry, store: Store, settings: Settings) -> None:
        """K-54, the registry's side: the error that the route answers 404 by (tests/test_control_api.py)."""
        other = Store(store.engine, f"{store.tenant}-2")
        theirs = Unshown(settings.model_copy(update={"tenant": other.tenant}), other)
        add(other, settings, 1)
        (ours,) = (model for model in many.find(line=LINE).models if model["version"] == 1)
        (foreign,) = theirs.find(line=LINE).models

        assert ours["id"] != foreign["id"], "the same line and number, and yet another id"
        assert ours["bundle_id"] == many.model(ours["id"])["bundle_id"]
        for identity in (foreign["id"], "", "1", LINE, "00000000-0000-0000-0000-000000000000", "x" * 1000):
            with pytest.raises(EsteiraError) as caught:
                many.model(identity)
            assert (404, "unknown_model") == (caught.value.http_status, caught.value.code)
        assert foreign["id"] == theirs.model(foreign["id"])["id"]

    def test_a_model_is_whole_and_says_nothing_of_where_it_is_stored(self, many: Registry, settings: Settings) -> None:
        """K-54: returns the full model record; hide the storage path."""
        for listed in many.find().models:
            whole = many.model(listed["id"])
            more = {"params": {}, "primary_score": None, "model_size": None, "training_time": None}
            assert {**listed, **more, "age_seconds": whole["age_seconds"]} == whole
            text = json.dumps(whole)
            assert str(settings.home) not in text
            assert "file://" not in text
            assert "uri" not in whole

    def test_of_a_runs_plan_only_its_training_is_told(self, store: Store, settings: Settings) -> None:
        """Its source is a path or a database's address, and its other sections may name more of them."""
        source, model = "postgresql://ana:secret@10.0.0.7/crm", {"kind": "xgboost", "params": {"max_depth": 6}}
        project = Project.model_validate({"families": {"tabular": {"source": source, "target": "y", "seed": 7}}})
        asked = {"train": {"trials": 3}, "deploy": {"reason": "/srv/crm/customers.csv"}}
        plan = decide(LINE, project=project, source=source, target="y", settings=asked)
        registry = Unshown(settings.model_copy(update={"tenant": store.tenant}), store)
        add(store, settings, 1, params={**plan.model_dump(mode="json"), "model": model})
        (listed,) = registry.find().models

        found = registry.model(listed["id"])
        assert {"seed": 7, "train": {"trials": 3}, "model": model} == found["params"]
        assert not [word for word in ("secret", "10.0.0.7", "/srv") if word in json.dumps(found)]


def test_a_registration_records_what_it_is_and_what_it_learned_from(
    settings: Settings, template: Path, tmp_path: Path
) -> None:
    """H-34 and K-05, in part: type, algorithm and framework; feature schema version, data window, validator's report."""
    from esteira import bundle as bundles

    settings.home.mkdir()
    shutil.copy(template, settings.home / "mlflow.db")
    folder = make_bundle(tmp_path / "bundle")
    for name in (bundles.MANIFEST, bundles.SEAL):
        (folder / name).unlink()
    columns = [
        {"name": "since", "kind": "date", "minimum": "2024-01-01", "maximum": "2025-06-30"},
        {"name": "age", "kind": "number", "minimum": 1, "maximum": 9},
    ]
    manifest = {
        "family": "tabular", "line": LINE, "stages": [], "task": "binary", "schema": {"version": 1, "columns": columns},
        "model": {"kind": "random_forest", "params": {}},
    }  # fmt: skip
    bundles.seal(folder, manifest=manifest)
    registry = Unshown(settings)

    version = put(registry, folder, record={"validator": {"quality_score": 0.9}}, actor=SCIENTIST)

    assert ("classification", "random_forest", "scikit-learn", "lia") == (
        version.model_type, version.algorithm, version.framework, version.actor,
    )  # fmt: skip
    (entry,) = entries(registry, "registration")
    said = entry.evidence
    assert ({"since": ["2024-01-01", "2025-06-30"]}, 1, {"quality_score": 0.9}) == (
        said["data_window"], said["schema"]["version"], said["validator"],
    )  # fmt: skip
    assert 64 == len(said["schema"]["sha256"])
    assert (True, "data_scientist") == (said["keyed"], said["role"])
    with pytest.raises(Refused) as caught:
        put(registry, folder, actor=VIEWER)
    assert "not_allowed" == caught.value.code


def test_the_whole_record_of_a_version_has_its_scores_its_size_and_its_time(
    settings: Settings, template: Path, tmp_path: Path
) -> None:
    """K-05, in part (values of the record, no columns): a trained classifier has all four scores populated; seconds are whole."""
    settings.home.mkdir()
    shutil.copy(template, settings.home / "mlflow.db")
    registry = Unshown(settings)
    scores = {"roc_auc": 0.97, "accuracy": 0.912345, "precision": 0.5, "recall": 1, "f1": 2 / 3, "log_loss": None}
    bundles = [make_bundle(tmp_path / name, text=name) for name in ("a", "b")]
    size = sum(file.stat().st_size for file in bundles[0].rglob("*") if file.is_file() and file.parent != bundles[0])
    size += sum((bundles[0] / name).stat().st_size for name in ("card.json", "card.md"))
    for run_id, status in (("r1", "ran"), ("r2", "reused")):
        registry.store.start_run(run_id=run_id, line=LINE)
        registry.store.record_step(run_id=run_id, name="train", status=status, seconds=61.6)
    put(registry, bundles[0], run_id="r1", metrics=scores, record={"primary": "roc_auc"})
    put(registry, bundles[1], run_id="r2", metrics={"mae": 3.0, "accuracy": "high"})

    second, first = (registry.model(one["id"]) for one in registry.find().models)

    assert (0.9123, 0.5, 1.0, 0.6667) == tuple(first[f"{name}_score"] for name in catalogue.SCORES)
    assert ({"metric": "roc_auc", "value": 0.97}, size, 62) == (
        first["primary_score"], first["model_size"], first["training_time"],
    )  # fmt: skip
    assert scores == first["metrics"]
    assert {None} == {second[f"{name}_score"] for name in catalogue.SCORES}, "what was not measured is null"
    assert (None, None) == (second["primary_score"], second["training_time"]), "a step that was reused trained nothing"


@pytest.mark.parametrize(
    ("kind", "framework"),
    [("xgboost", "xgboost"), ("lightgbm", "lightgbm"), ("linear", "scikit-learn"), ("neural_network", "numpy"), ("constant", "numpy"),
     ("blend", "onnx"),
     ("made_up", None), ("", None)],
)  # fmt: skip
def test_the_framework_of_a_kind_is_what_fits_it(kind: str, framework: str | None) -> None:
    assert framework == catalogue.kind_of({"model": {"kind": kind}, "task": "regression"})["framework"]


class TestCutOff:
    """kill -9 at each declared point of a promotion and of a roll back: it happened whole or not at all, and the next one ends it."""

    @pytest.fixture
    def home(self, settings: Settings, template: Path, sqlite_template: Path, tmp_path: Path) -> Registry:
        """Three versions, shown by MLflow; the second is the champion."""
        settings.home.mkdir()
        shutil.copy(template, settings.home / "mlflow.db")
        shutil.copy(sqlite_template, settings.home / "esteira.db")
        registry = Registry(settings)
        for text in "abc":
            put(registry, make_bundle(tmp_path / text, text=text))
        promote(registry, 1, 2)
        return registry

    @pytest.mark.parametrize("point", _POINTS)
    def test_a_move_that_is_cut_off_happened_whole_or_not_at_all(
        self, point: str, home: Registry, settings: Settings
    ) -> None:
        happened = not point.endswith("before_commit")
        promoting = point.startswith("promote")
        before, count = home.aliases(LINE), len(entries(home))

        def move() -> None:
            registry = Registry(settings)
            promote(registry, 3) if promoting else registry.roll_back(LINE, actor=ADMIN, reason="off", now=NOW)

        _die_at(point, move)

        after = home.aliases(LINE)
        wanted = {"champion": 3, "production": 3, "previous": 2} if promoting else {"champion": 1, "production": 1}
        assert (wanted if happened else before) == {name: after[name] for name in after if name != "candidate"} | (
            {} if happened else {"candidate": 3}
        )
        assert (count if not happened else count + (1 if promoting else 2)) == len(entries(home))
        assert_whole(home)
        assert before == shown(settings), "MLflow was not shown it yet"
        if happened:
            promote(home, after["champion"])  # nothing to move, and MLflow is shown what was
        else:
            move()
        final = home.aliases(LINE)
        assert wanted == {name: final[name] for name in final if name != "candidate"}
        assert final == shown(settings)
        assert_whole(home)

    def test_every_point_of_an_approval_is_whole_too(self, home: Registry, settings: Settings) -> None:
        registered = home.must(LINE, 3)
        with home.store.begin() as connection:
            ledger.append(
                home.store, kind="registration", line=LINE, version=3, bundle_id=registered.bundle_id, actor="lia",
                evidence={"keyed": True}, connection=connection,
            )  # fmt: skip
        steps = (
            lambda: approvals.request(
                Registry(settings).store, registered, actor=SCIENTIST, policy=POLICY, hours=1, now=NOW
            ),
            lambda: approvals.approve(Registry(settings), LINE, 3, actor=APPROVER, reason="seen", now=NOW),
            lambda: approvals.withdraw(Registry(settings), LINE, 3, actor=APPROVER, reason="a doubt", now=NOW),
        )
        for step, state in zip(steps, ("requested", "approved", "void"), strict=True):
            before, count = approvals.find(home.store, registered), len(entries(home))
            _die_at("approval.before_commit", step)
            assert (before, count) == (approvals.find(home.store, registered), len(entries(home)))
            step()
            found = approvals.find(home.store, registered)
            assert found is not None
            assert (state, count + 1) == (found.state, len(entries(home)))


def assert_whole(registry: Registry, line: str = LINE) -> None:
    """What holds after any sequence of commands and any kill."""
    aliases = registry.aliases(line)
    serving = [number for number, state in states(registry, line).items() if state == "production"]
    assert aliases.get("champion") == aliases.get("production")
    assert serving == ([aliases["champion"]] if "champion" in aliases else [])
    if "previous" in aliases:
        previous = registry.must(line, aliases["previous"])
        assert previous.version != aliases["champion"]
        assert ("retired", None) == (previous.state, previous.archived_at)
    for alias, number in aliases.items():
        if alias not in {"candidate", "previous"}:
            assert registry.must(line, number).archived_at is None
    moves = [
        entry.evidence["moves"]["champion"][1]
        for entry in entries(registry, "alias")
        if entry.line == line and "champion" in entry.evidence["moves"]
    ]
    assert aliases.get("champion") == (moves[-1] if moves else None), "the ledger says what is so"
    assert ledger.verify(registry.store).ok


_ACTORS = st.sampled_from([ADMIN, APPROVER, SCIENTIST, VIEWER, LOCAL, ENGINE])
_NUMBERS = st.integers(1, 5)
_COMMANDS = st.lists(
    st.one_of(
        st.tuples(st.just("add")),
        st.tuples(st.just("stage"), _NUMBERS),
        st.tuples(st.just("challenge"), _NUMBERS),
        st.tuples(st.just("drop"), st.sampled_from([None, "rolled_back"])),
        st.tuples(st.just("request"), _NUMBERS, _ACTORS),
        st.tuples(st.just("approve"), _NUMBERS, _ACTORS),
        st.tuples(st.just("withdraw"), _NUMBERS, _ACTORS),
        st.tuples(st.just("promote"), _NUMBERS, _ACTORS, st.sampled_from(["approval", "policy", "override"])),
        st.tuples(st.just("promote"), _NUMBERS, st.just(ADMIN), st.just("policy")),
        st.tuples(st.just("roll_back"), st.one_of(st.none(), _NUMBERS), _ACTORS),
        st.tuples(st.just("retire"), _NUMBERS, _ACTORS),
        st.tuples(st.just("spoil"), _NUMBERS),
        st.tuples(st.just("wait"), st.sampled_from([-1, 1, 30, 200])),
    ),
    max_size=16,
)


class _World:
    """One line in a store of its own, and a clock that goes where it is told."""

    def __init__(self, settings: Settings) -> None:
        self.settings, self.now = settings, NOW
        self.registry = Unshown(settings, Store.open(settings.database_url))

    def do(self, name: str, *words: Any) -> None:
        registry, at = self.registry, self.now
        if name == "add":
            number = len(registry.versions(LINE)) + 1
            if number <= 5:
                add(registry.store, self.settings, number, author=SCIENTIST if number % 4 else LOCAL, at=at)
        elif name in {"stage", "challenge"}:
            alias = {"stage": "staging", "challenge": "challenger"}[name]
            registry.set_alias(LINE, alias, words[0], actor=ADMIN, now=at)
        elif name == "drop":
            registry.drop_alias(LINE, "challenger", actor=ENGINE, reason="over", state=words[0], now=at)
        elif name == "request":
            wanted = registry.must(LINE, words[0])
            approvals.request(registry.store, wanted, actor=words[1], policy=POLICY, hours=48, now=at)
        elif name == "approve":
            approvals.approve(registry, LINE, words[0], actor=words[1], reason="seen", now=at)
        elif name == "withdraw":
            approvals.withdraw(registry, LINE, words[0], actor=words[1], reason="doubt", now=at)
        elif name == "promote":
            evidence = {"approval": {"approval": True}, "policy": AUTOMATIC, "override": {"override": "now"}}[words[2]]
            registry.promote(LINE, words[0], actor=words[1], reason="go", evidence=evidence, now=at)
        elif name == "roll_back":
            registry.roll_back(LINE, to=words[0], actor=words[1], reason="off", now=at)
        elif name == "retire":
            registry.retire(LINE, words[0], actor=words[1], reason="old", now=at)
        elif name == "spoil":
            if registry.get(LINE, words[0]) is not None:
                spoil(self.settings, words[0])
        else:
            self.now += timedelta(hours=words[0])

    def seen(self) -> tuple[Any, ...]:
        return self.registry.versions(LINE), self.registry.aliases(LINE)


@contextmanager
def _fresh(folder: Path, template: Path) -> Iterator[_World]:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    shutil.copy(template, folder / "esteira.db")
    yield _World(Settings(home=folder))


@pytest.mark.slow
# No shrinking: every step opens a database, and the commands of a failure are few enough to read.
@hypothesis_settings(
    max_examples=80,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
)
@given(commands=_COMMANDS)
def test_any_sequence_of_commands_keeps_what_must_hold(
    commands: list[Any], tmp_path: Path, sqlite_template: Path
) -> None:
    """One champion that is production, a previous one that is another, legal moves only, and a chain that says all of it."""
    with _fresh(tmp_path / "world", sqlite_template) as world:
        for _ in range(3):
            world.do("add")
        for name, *words in commands:
            before, told = world.seen(), len(entries(world.registry))
            try:
                world.do(name, *words)
            except EsteiraError:
                assert before == world.seen(), "a refusal moves nothing"
                kinds = {entry.kind for entry in entries(world.registry)[told:]}
                assert kinds <= {"denied", "approval_void"}
            after = {version.version: version.state for version in world.seen()[0]}
            for version in before[0]:
                assert legal(version.state, after[version.version])
            champion = world.registry.resolve(LINE)
            asked = None if champion is None else approvals.find(world.registry.store, champion)
            assert asked is None or asked.state in {"used", "void"} or name == "request", "nobody serves unapproved"
        assert_whole(world.registry)


def test_threads_that_promote_and_roll_back_at_once_leave_one_champion(
    settings: Settings, sqlite_template: Path
) -> None:
    with _fresh(settings.home, sqlite_template) as world:
        for _ in range(3):
            world.do("add")
        registry = world.registry
        promote(registry, 1, 2)

        refused: set[str] = set()

        def work(number: int) -> None:
            try:
                promote(registry, 1 + number % 3) if number % 2 else registry.roll_back(LINE, actor=ADMIN, reason="off")
            except Refused as error:
                refused.add(error.code)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert refused <= {"illegal_move", "nothing_before"}
        assert_whole(registry)


def test_a_roll_back_is_kept_soon(
    settings: Settings, sqlite_template: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No bound in seconds; the figure is told."""
    with _fresh(settings.home, sqlite_template) as world:
        for _ in range(3):
            world.do("add")
        promote(world.registry, 1, 2, 3)
        began = time.perf_counter()
        world.registry.roll_back(LINE, actor=ADMIN, reason="off")
        print(f"a roll back was kept after {1000 * (time.perf_counter() - began):.1f} ms")

    assert "kept after" in capsys.readouterr().out
