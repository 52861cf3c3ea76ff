"""Approvals: asked for, given by somebody else's key, for these very bytes and so many hours; used once, and void when anything changed."""

import errno
import os
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from esteira import ledger
from esteira.access import ENGINE, Actor
from esteira.errors import ConfigError, EsteiraError, GateHeld, OutsideError, Refused, SourceError
from esteira.ledger.chain import stamp
from esteira.registry import Registry
from esteira.release import approvals
from esteira.release.policy import ApprovalMode
from esteira.release.staging import stage
from esteira.settings import Settings
from esteira.store import Store
from esteira.store.records import Approval
from esteira.store.store import now as present
from tests.released import ADMIN, APPROVER, GUEST, LOCAL, NOW, SCIENTIST, VIEWER, Unshown, add, policy, spoil, stored
from tests.stores import sqlite_template, store, store_url
from tests.test_registry import LINE

__all__ = ["sqlite_template", "store", "store_url"]

DAY = timedelta(hours=24)
WEEK = timedelta(hours=168)
POLICY = policy("required").model_dump(mode="json")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home")


@pytest.fixture
def registry(settings: Settings, store: Store) -> Registry:
    """A line with one version in staging for which nobody asked yet."""
    found = Unshown(settings.model_copy(update={"tenant": store.tenant}), store)
    add(store, settings, 1)
    found.set_alias(LINE, "staging", 1, actor=SCIENTIST, now=NOW)
    return found


def ask(
    registry: Registry, *, actor: Actor = SCIENTIST, hours: float = 168.0, now: datetime = NOW, version: int = 1
) -> Approval:
    wanted = registry.must(LINE, version)
    return approvals.request(registry.store, wanted, actor=actor, policy=POLICY, hours=hours, now=now, reason="judged")


def approve(
    registry: Registry, *, actor: Actor = APPROVER, now: datetime = NOW, version: int | None = None
) -> Approval:
    return approvals.approve(registry, LINE, version, actor=actor, reason="seen on staging", now=now)


def promote(registry: Registry, *, now: datetime = NOW, version: int = 1) -> None:
    registry.promote(LINE, version, actor=APPROVER, reason="approved", evidence={"approval": True}, now=now)


def kinds(registry: Registry) -> list[str]:
    return [entry.kind for entry in ledger.log(registry.store, limit=None)]


def test_a_version_that_was_asked_for_and_approved_goes_to_production(registry: Registry) -> None:
    asked = ask(registry)
    given = approve(registry)
    promote(registry, now=NOW + DAY)

    assert ("requested", "approved") == (asked.state, given.state)
    assert (APPROVER.name, NOW, NOW + WEEK) == (given.approver, given.approved_at, given.expires_at)
    assert ["approval_request", "approval", "alias"] == kinds(registry)[-3:]
    request, approval, move = ledger.log(registry.store)[-3:]
    assert {("lia", 1), ("bob", 1)} == {(request.actor, request.version), (approval.actor, approval.version)}
    assert {request.bundle_id} == {approval.bundle_id, registry.must(LINE, 1).bundle_id}
    assert ("seen on staging", (NOW + WEEK).isoformat(), "lia") == (
        approval.evidence["reason"], approval.evidence["expires_at"], approval.evidence["author"],
    )  # fmt: skip
    assert (approval.seq, "bob", "approval") == (
        move.evidence["approval_entry"], move.evidence["approver"], move.evidence["basis"],
    )  # fmt: skip
    assert "used" == approvals.find(registry.store, registry.must(LINE, 1)).state  # type: ignore[union-attr]
    assert "production" == registry.must(LINE, 1).state
    assert ledger.verify(registry.store).ok


@pytest.mark.requirement("S-40")
def test_changing_the_artefact_voids_the_approval(registry: Registry, settings: Settings) -> None:
    """S-40 Done when: changing the artefact voids the approval."""
    ask(registry)
    approve(registry)
    spoil(settings, 1)

    with pytest.raises(Refused) as caught:
        promote(registry)

    assert "approval_void" == caught.value.code
    assert registry.resolve(LINE) is None
    entry = ledger.log(registry.store)[-1]
    assert ("approval_void", "approved") == (entry.kind, entry.evidence["was"])
    assert "decoder.json" in entry.evidence["reason"]
    # It stays void when the bytes come back: somebody has to look again.
    shutil.rmtree(stored(settings, 1))
    from tests.test_registry import make_bundle

    make_bundle(stored(settings, 1), text="1")
    assert registry.fetch(registry.must(LINE, 1)).is_dir()
    with pytest.raises(Refused) as caught:
        promote(registry)
    assert "approval_void" == caught.value.code


@pytest.mark.requirement("S-40")
def test_staging_takes_no_approval_and_production_a_manual_one(registry: Registry) -> None:
    """S-40: Staging automatic; production after manual approval. Done when: changing the artefact voids the approval (above)."""
    assert "staging" == registry.must(LINE, 1).state
    ask(registry)

    for basis in ({"approval": True}, {"policy": "automatic"}):
        with pytest.raises(Refused) as caught:
            registry.promote(LINE, 1, actor=APPROVER, reason="now", evidence=basis, now=NOW)
        assert "not_approved" == caught.value.code
    assert registry.resolve(LINE) is None


@pytest.mark.requirement("S-40")
def test_an_approver_is_not_the_author(registry: Registry, store: Store, settings: Settings) -> None:
    """S-40: approver != author; and an author without a key is anybody, so that is refused with its cure."""
    ask(registry)
    for actor, code in ((replace(APPROVER, name="lia"), "own_work"), (replace(ADMIN, name="lia"), "own_work")):
        with pytest.raises(Refused) as caught:
            approve(registry, actor=actor)
        assert code == caught.value.code

    add(store, settings, 2, author=LOCAL)
    registry.set_alias(LINE, "staging", 2, actor=LOCAL, now=NOW)
    ask(registry, version=2)
    with pytest.raises(Refused) as caught:
        approve(registry, version=2)
    assert "author_unknown" == caught.value.code
    assert "ESTEIRA_KEY" in caught.value.cure
    assert "requested" == approvals.find(registry.store, registry.must(LINE, 2)).state  # type: ignore[union-attr]


@pytest.mark.requirement("S-40")
@pytest.mark.parametrize("hours", [168.0, 72.0, 0.5])
def test_an_approval_expires(hours: float, registry: Registry) -> None:
    """S-40: expires in 7 days; a line may say another time (H-52: 72 hours)."""
    ask(registry, hours=hours)
    approve(registry)

    end = NOW + timedelta(hours=hours)
    with pytest.raises(Refused) as caught:
        promote(registry, now=end)
    assert "approval_expired" == caught.value.code
    assert end.isoformat(timespec="seconds") in caught.value.message
    approve(registry, now=end)
    promote(registry, now=end + timedelta(hours=hours) - timedelta(microseconds=1))
    assert "production" == registry.must(LINE, 1).state


@pytest.mark.parametrize("actor", [VIEWER, SCIENTIST, LOCAL, GUEST, Actor("eve", "engine", keyed=False)])
def test_who_may_not_approve_is_refused_and_the_ledger_knows(actor: Actor, registry: Registry) -> None:
    ask(registry)
    with pytest.raises(Refused) as caught:
        approve(registry, actor=actor)

    assert "not_allowed" == caught.value.code
    assert ("denied", actor.name) == (ledger.log(registry.store)[-1].kind, ledger.log(registry.store)[-1].actor)
    with pytest.raises(Refused):
        promote(registry)


def test_an_approval_answers_a_request(registry: Registry) -> None:
    for version in (None, 1):
        with pytest.raises(Refused) as caught:
            approve(registry, version=version)
        assert "not_requested" == caught.value.code
    with pytest.raises(Refused) as caught:
        promote(registry)
    assert "not_requested" == caught.value.code
    with pytest.raises(Refused) as caught:
        approve(registry, version=9)
    assert "unknown_version" == caught.value.code


def test_asking_again_changes_nothing_until_it_is_decided_against(registry: Registry) -> None:
    first = ask(registry)
    assert first == ask(registry, now=NOW + DAY)
    given = approve(registry, now=NOW + DAY)
    assert given == ask(registry, now=NOW + 2 * DAY)
    assert 1 == kinds(registry).count("approval_request")

    approvals.withdraw(registry, LINE, 1, actor=ADMIN, reason="a doubt", now=NOW + 2 * DAY)
    assert "requested" == ask(registry, now=NOW + 2 * DAY).state
    assert 2 == kinds(registry).count("approval_request")


def test_an_approval_that_was_withdrawn_says_why(registry: Registry) -> None:
    ask(registry)
    approve(registry)
    approvals.withdraw(registry, LINE, 1, actor=ADMIN, reason="its data were wrong", now=NOW)

    with pytest.raises(Refused, match="its data were wrong") as caught:
        promote(registry)
    assert "approval_void" == caught.value.code
    with pytest.raises(Refused):
        approvals.withdraw(registry, LINE, 1, actor=ADMIN, reason="again", now=NOW)
    with pytest.raises(Refused) as caught:
        approve(registry)
    assert "not_requested" == caught.value.code
    with pytest.raises(Refused) as caught:
        approve(registry, version=1)
    assert "approval_void" == caught.value.code


def test_an_approval_for_another_bundle_does_not_count(registry: Registry) -> None:
    given = replace(_approved(registry), bundle_id="00" * 32)

    assert "approval_void" == approvals.standing(given, registry.must(LINE, 1).bundle_id, NOW)


def _approved(registry: Registry) -> Approval:
    ask(registry)
    return approve(registry)


def test_a_clock_that_goes_back_lengthens_no_approval(registry: Registry) -> None:
    _approved(registry)

    with pytest.raises(Refused) as caught:
        promote(registry, now=NOW - timedelta(seconds=1))
    assert "clock_back" == caught.value.code


def test_an_approval_lets_a_version_into_production_once(registry: Registry, store: Store, settings: Settings) -> None:
    _approved(registry)
    promote(registry)
    add(store, settings, 2)
    registry.promote(LINE, 2, actor=APPROVER, reason="next", evidence={"policy": "automatic"}, now=NOW)

    with pytest.raises(Refused) as caught:
        promote(registry)
    assert "approval_used" == caught.value.code


def test_a_version_that_is_retired_or_rolled_back_loses_what_was_asked_for_it(
    registry: Registry, store: Store, settings: Settings
) -> None:
    ask(registry)
    add(store, settings, 2)
    registry.set_alias(LINE, "staging", 2, actor=SCIENTIST, now=NOW)
    registry.retire(LINE, 1, actor=SCIENTIST, reason="not wanted", now=NOW)

    assert "void" == approvals.find(registry.store, registry.must(LINE, 1)).state  # type: ignore[union-attr]
    with pytest.raises(Refused) as caught:
        approve(registry, version=1)
    assert "approval_void" == caught.value.code


@pytest.mark.parametrize("state", ["failed", "rolled_back", "retired"])
def test_what_is_not_on_its_way_to_production_is_not_approved(state: str, registry: Registry) -> None:
    ask(registry)
    with registry.store.begin() as connection:
        registry.store.set_version_state(connection, LINE, 1, state)

    with pytest.raises(Refused) as caught:
        approve(registry)
    assert "illegal_move" == caught.value.code


@pytest.mark.parametrize("reason", ["", "  "])
def test_a_decision_has_a_reason(reason: str, registry: Registry) -> None:
    ask(registry)
    with pytest.raises(ConfigError) as caught:
        approvals.approve(registry, LINE, 1, actor=APPROVER, reason=reason, now=NOW)
    assert "no_reason" == caught.value.code


def test_an_artefact_of_which_a_part_is_gone_was_changed(registry: Registry, settings: Settings) -> None:
    ask(registry)
    (stored(settings, 1) / "parts" / "decoder.json").unlink()

    with pytest.raises(Refused) as caught:
        approve(registry)
    assert "approval_void" == caught.value.code


def test_an_artefact_that_is_not_found_is_not_approved_until_it_is_back(registry: Registry, settings: Settings) -> None:
    ask(registry)
    place = stored(settings, 1)
    place.rename(settings.home / "kept")

    with pytest.raises(SourceError) as caught:
        approve(registry)
    assert "missing_bundle" == caught.value.code
    (settings.home / "kept").rename(place)
    assert "approved" == approve(registry).state


def _elsewhere(settings: Settings) -> Settings:
    return settings.model_copy(update={"artifacts": str(settings.home / "elsewhere")})


def _unmounted(settings: Settings, *, left: bool) -> Settings:
    """The disk of the artefacts is away, and its folder with it, or not."""
    Path(settings.artifacts).rename(settings.home / "disk")
    if left:
        Path(settings.artifacts).mkdir()
    return settings


def _unreadable(settings: Settings) -> Settings:
    (stored(settings, 1) / "parts" / "decoder.json").chmod(0)
    return settings


def _another_disk(settings: Settings) -> Settings:
    """Another disk lies where that of the artefacts was, with something on it."""
    (Path(_unmounted(settings, left=True).artifacts) / ".staging").mkdir()
    return settings


def test_files_that_run_out_tell_of_the_machine(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    ask(registry)

    def exhausted(*_: Any, **__: Any) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr("esteira.bundle.os.open", exhausted)
        with pytest.raises(OutsideError, match="Too many open files") as caught:
            approve(registry)
    assert "artefacts_away" == caught.value.code
    assert "approved" == approve(registry).state


@pytest.mark.parametrize(
    ("away", "code"),
    [
        (_elsewhere, "outside_storage"),
        (lambda settings: _unmounted(settings, left=False), "missing_storage"),
        (lambda settings: _unmounted(settings, left=True), "missing_storage"),
        (_another_disk, "missing_bundle"),
        pytest.param(
            _unreadable,
            "artefacts_away",
            marks=pytest.mark.skipif(os.geteuid() == 0, reason="root reads whatever it likes"),
        ),
    ],
    ids=["another storage", "no storage", "an empty storage", "another disk", "no right"],
)
def test_a_machine_that_does_not_come_by_the_artefact_voids_nothing(
    away: Callable[[Settings], Settings], code: str, registry: Registry, settings: Settings
) -> None:
    ask(registry)
    approve(registry)
    elsewhere = Unshown(away(settings).model_copy(update={"tenant": registry.store.tenant}), registry.store)

    for move in (lambda: promote(elsewhere), lambda: elsewhere.check_promote(LINE, 1, actor=ENGINE, now=NOW)):
        with pytest.raises(EsteiraError) as caught:
            move()
        assert code == caught.value.code
    assert "approved" == approvals.find(registry.store, registry.must(LINE, 1)).state  # type: ignore[union-attr]
    assert "approval_void" not in kinds(registry)


class TestOverride:
    """H-35: for production, an approved result or a recorded human override."""

    def promote(self, registry: Registry, actor: Actor) -> None:
        evidence = {"override": "the old one answers nothing"}
        registry.promote(LINE, 1, actor=actor, reason="emergency", evidence=evidence, now=NOW)

    def test_an_approver_may_go_around_an_approval_and_it_is_written_down(self, registry: Registry) -> None:
        ask(registry)
        self.promote(registry, APPROVER)

        entry = ledger.log(registry.store)[-1]
        assert ("bob", "override", "the old one answers nothing") == (
            entry.actor, entry.evidence["basis"], entry.evidence["override"],
        )  # fmt: skip
        assert ["approval_void", "alias"] == kinds(registry)[-2:]
        assert "void" == approvals.find(registry.store, registry.must(LINE, 1)).state  # type: ignore[union-attr]

    @pytest.mark.parametrize("asked", [True, False], ids=["asked", "not_asked"])
    @pytest.mark.parametrize(
        ("author", "actor", "code"),
        [
            (SCIENTIST, APPROVER, ""),
            (SCIENTIST, ADMIN, ""),
            (SCIENTIST, SCIENTIST, "not_allowed"),
            (SCIENTIST, LOCAL, "not_allowed"),
            (SCIENTIST, GUEST, "not_allowed"),
            (SCIENTIST, replace(ADMIN, name="lia"), "own_work"),
            (ADMIN, ADMIN, "own_work"),
            (LOCAL, LOCAL, "not_allowed"),
            (LOCAL, APPROVER, "author_unknown"),
            (LOCAL, replace(ADMIN, name="somebody"), "own_work"),
        ],
        ids=lambda value: f"{value.name}-{value.role}" if isinstance(value, Actor) else value or "goes",
    )
    def test_it_takes_an_approvers_key_and_not_the_authors(
        self, author: Actor, actor: Actor, code: str, asked: bool, settings: Settings, store: Store
    ) -> None:
        registry = Unshown(settings.model_copy(update={"tenant": store.tenant}), store)
        add(store, settings, 1, author=author)
        if asked:
            ask(registry)
        if not code:
            self.promote(registry, actor)
            assert 1 == registry.aliases(LINE)["champion"]
            return
        for attempt in (
            lambda: self.promote(registry, actor),
            lambda: registry.check_promote(LINE, 1, actor=actor, evidence={"override": "now"}, now=NOW),
        ):
            with pytest.raises(Refused) as caught:
                attempt()
            assert code == caught.value.code
        assert registry.resolve(LINE) is None


class TestWhatIsRecorded:
    """How a line is released stands in the registration of a version, and holds whoever asks from wherever."""

    @pytest.mark.parametrize(
        ("mode", "basis", "code"),
        [
            ("required", {"policy": "automatic"}, "not_requested"),
            ("required", {"policy": "notify"}, "not_requested"),
            ("required", {"approval": True}, "not_requested"),
            ("automatic", {"policy": "automatic"}, ""),
            ("notify", {"policy": "notify"}, ""),
            # The family's word, which is `automatic`.
            (None, {"policy": "automatic"}, ""),
        ],
    )
    def test_a_version_whose_line_requires_approval_is_not_promoted_without(
        self,
        mode: ApprovalMode | None,
        basis: dict[str, Any],
        code: str,
        registry: Registry,
        store: Store,
        settings: Settings,
    ) -> None:
        add(store, settings, 2, policy=None if mode is None else policy(mode))
        version = registry.must(LINE, 2)
        assert (mode == "required") == approvals.needed(store, version)
        recorded = approvals.terms(store, version)
        assert mode == (None if recorded is None else recorded.approval_mode)
        if not code:
            registry.promote(LINE, 2, actor=APPROVER, reason="go", evidence=basis, now=NOW)
            last = ledger.log(store)[-1]
            assert ("notice" if mode == "notify" else "alias") == last.kind
            assert mode != "notify" or "without asking" in last.evidence["what"]
            return
        for attempt in (
            lambda: registry.promote(LINE, 2, actor=APPROVER, reason="go", evidence=basis, now=NOW),
            lambda: registry.check_promote(LINE, 2, actor=APPROVER, now=NOW),
        ):
            with pytest.raises(Refused) as caught:
                attempt()
            assert code == caught.value.code
        assert registry.resolve(LINE) is None

    def test_a_rollout_needs_the_approval_too(self, registry: Registry, store: Store, settings: Settings) -> None:
        add(store, settings, 2, policy=policy("required"))
        wanted = registry.must(LINE, 2)
        ledger.append(
            store, kind="rollout", line=LINE, version=2, bundle_id=wanted.bundle_id, actor="rollout", evidence={"test_id": "t1"}
        )  # fmt: skip
        with pytest.raises(Refused) as caught:
            registry.promote(LINE, 2, actor=ENGINE, reason="100 %", evidence={"test_id": "t1"}, now=NOW)
        assert "not_requested" == caught.value.code

    def test_a_word_that_nobody_knows_requires_an_approval(self, registry: Registry, store: Store) -> None:
        wanted = registry.must(LINE, 1)
        evidence = {"release": {"approval_mode": "by_two"}}
        ledger.append(
            store, kind="registration", line=LINE, version=1, bundle_id=wanted.bundle_id, actor="lia", evidence=evidence
        )
        assert approvals.needed(store, wanted)


class TestHeldRehearsal:
    """What an approver saw is not what is so after a rehearsal that did not pass."""

    @pytest.fixture(autouse=True)
    def approved(self, registry: Registry) -> None:
        ask(registry)
        approve(registry)

    def hold(self, registry: Registry, settings: Settings) -> None:
        """A real rehearsal of a bundle without a request to replay: it is held at once."""
        with pytest.raises(GateHeld) as caught:
            stage(
                registry, LINE, 1, settings=settings, actor=SCIENTIST, policy=policy("required", rehearse=True), reason="again",
                now=NOW,
            )  # fmt: skip
        assert "rehearsal_failed" == caught.value.code

    def test_it_voids_the_approval(self, registry: Registry, settings: Settings) -> None:
        self.hold(registry, settings)

        assert ["rehearsal", "approval_void"] == kinds(registry)[-2:]
        last = ledger.log(registry.store)[-1]
        assert ("lia", "approved", "data_scientist") == (last.actor, last.evidence["was"], last.evidence["role"])
        assert "did not pass its rehearsal" in last.evidence["reason"]
        with pytest.raises(Refused) as caught:
            promote(registry)
        assert "approval_void" == caught.value.code

    @pytest.mark.parametrize("basis", [{"approval": True}, {"policy": "automatic"}], ids=["approval", "policy"])
    def test_an_approval_that_outlived_it_does_not_count(
        self, basis: dict[str, Any], registry: Registry, store: Store
    ) -> None:
        """As after a kill between the rehearsal's entry and the one that voids."""
        wanted = registry.must(LINE, 1)
        said: dict[str, Any] = {
            "line": LINE,
            "version": 1,
            "bundle_id": wanted.bundle_id,
            "actor": "lia",
            "kind": "rehearsal",
        }
        held = ledger.append(store, evidence={"verdict": "held", "summary": "2 requests broke"}, **said)
        with pytest.raises(Refused, match="2 requests broke") as caught:
            registry.promote(LINE, 1, actor=APPROVER, reason="go", evidence=basis, now=NOW)
        assert "not_rehearsed" == caught.value.code

        passed = ledger.append(store, evidence={"verdict": "pass"}, **said)
        assert passed.seq == held.seq + 1
        registry.promote(LINE, 1, actor=APPROVER, reason="go", evidence=basis, now=NOW)
        assert passed.seq == ledger.log(store)[-1].evidence["rehearsal"]

    def test_a_line_that_rehearses_is_approved_and_promoted_on_one_that_passed(
        self, registry: Registry, store: Store, settings: Settings
    ) -> None:
        add(store, settings, 2)
        wanted = registry.must(LINE, 2)
        terms = policy("required", rehearse=True).model_dump(mode="json")
        approvals.request(store, wanted, actor=SCIENTIST, policy=terms, hours=1, now=NOW)
        approve(registry, version=2)
        with pytest.raises(Refused, match="it was not rehearsed"):
            promote(registry, version=2)


@pytest.mark.parametrize("hours", [168.5, 8760.0, 0.0, -1.0])
def test_nobody_asks_for_more_than_seven_days(hours: float, registry: Registry) -> None:
    """S-40: expires in 7 days, whatever who asks for it would like."""
    with pytest.raises(ConfigError) as caught:
        ask(registry, hours=hours)
    assert "bad_hours" == caught.value.code
    assert approvals.find(registry.store, registry.must(LINE, 1)) is None


def test_every_entry_of_a_release_says_whether_a_key_acted_and_in_what_role(
    registry: Registry, store: Store, settings: Settings
) -> None:
    add(store, settings, 2)
    ask(registry)
    approvals.withdraw(registry, LINE, 1, actor=ADMIN, reason="a doubt", now=NOW)
    ask(registry)
    approve(registry)
    promote(registry)
    registry.set_alias(LINE, "challenger", 2, actor=APPROVER, now=NOW)
    registry.drop_alias(LINE, "challenger", actor=ENGINE, reason="over", now=NOW)
    registry.promote(LINE, 2, actor=ADMIN, reason="next", evidence={"policy": "notify"}, now=NOW)
    registry.roll_back(LINE, actor=SCIENTIST, reason="off", now=NOW)
    registry.retire(LINE, 2, actor=ADMIN, reason="old", now=NOW)

    told = [entry for entry in ledger.log(store, limit=None) if entry.kind != "verdict"]
    by = {actor.name: actor for actor in (SCIENTIST, APPROVER, ADMIN, ENGINE)}
    assert {
        "registration",
        "alias",
        "approval_request",
        "approval_void",
        "approval",
        "notice",
        "rollback",
        "archive",
    } == {entry.kind for entry in told}
    for entry in told:
        assert by[entry.actor].told().items() <= entry.evidence.items(), entry.kind
    given = next(entry for entry in told if entry.kind == "approval")
    assert (POLICY, None) == (given.evidence["policy"], given.evidence["rehearsal"])


class TestWhen:
    """An entry carries the moment of its transaction, however long that waited for another writer."""

    MOVES: Mapping[str, Callable[[Registry], object]] = {
        "promotion": lambda registry: registry.promote(
            LINE, 1, actor=ADMIN, reason="go", evidence={"override": "the old one answers nothing"}
        ),
        "roll_back": lambda registry: registry.roll_back(LINE, actor=ADMIN, reason="off"),
        "staging": lambda registry: registry.set_alias(LINE, "staging", 3, actor=SCIENTIST),
        "challenger": lambda registry: registry.drop_alias(LINE, "challenger", actor=ENGINE, reason="over"),
        "retirement": lambda registry: registry.retire(LINE, 5, actor=ADMIN, reason="old"),
        "request": lambda registry: approvals.request(
            registry.store, registry.must(LINE, 3), actor=SCIENTIST, policy=POLICY, hours=1
        ),
        "approval": lambda registry: approvals.approve(registry, LINE, 1, actor=APPROVER, reason="seen"),
        "withdrawal": lambda registry: approvals.withdraw(registry, LINE, 1, actor=APPROVER, reason="a doubt"),
    }

    @pytest.mark.parametrize("name", MOVES)
    def test_a_move_that_waited_is_later_than_the_move_it_waited_for(
        self, name: str, registry: Registry, store: Store, settings: Settings
    ) -> None:
        for number in (2, 3, 4, 5):
            add(store, settings, number)
        for number in (2, 4):
            registry.promote(LINE, number, actor=ADMIN, reason="go", evidence={"policy": "automatic"}, now=NOW)
        registry.set_alias(LINE, "challenger", 3, actor=APPROVER, now=NOW)
        ask(registry)

        released = waited(store, lambda: self.MOVES[name](registry))

        told = ledger.log(store)
        before = max(number for number, entry in enumerate(told) if entry.actor == "another writer")
        assert told[before].at < stamp(released)
        assert told[before + 1 :]
        assert all(entry.at >= stamp(released) for entry in told[before + 1 :])

    def test_an_approval_that_expired_while_a_promotion_waited_does_not_count(
        self, registry: Registry, store: Store
    ) -> None:
        now = present()
        ask(registry, now=now, hours=0.5 / 3600)
        approve(registry, now=now)

        with pytest.raises(Refused) as caught:
            waited(
                store,
                lambda: registry.promote(LINE, 1, actor=APPROVER, reason="go", evidence={"approval": True}),
                seconds=1.0,
            )
        assert "approval_expired" == caught.value.code
        assert registry.resolve(LINE) is None

    def test_staging_rehearsal_and_request_each_have_their_own_moment(
        self, registry: Registry, settings: Settings
    ) -> None:
        began = present()
        waited(
            registry.store,
            lambda: stage(
                registry, LINE, 1, settings=settings, actor=SCIENTIST, policy=policy("required"), reason="again"
            ),
        )

        asked = approvals.find(registry.store, registry.must(LINE, 1))
        assert asked is not None
        assert asked.requested_at > began + timedelta(seconds=0.3)


def waited(store: Store, move: Callable[[], object], seconds: float = 0.4) -> datetime:
    """Make a move while another writer has the store for so long; gives the moment just before that one let go."""
    has_it, refused = threading.Event(), []

    def work() -> None:
        has_it.wait(10)
        try:
            move()
        except Refused as error:
            refused.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    with store.begin() as connection:
        store.alone(connection)
        has_it.set()
        time.sleep(seconds / 2)
        ledger.append(store, kind="notice", line=LINE, actor="another writer", evidence={}, connection=connection)
        time.sleep(seconds / 2)
        released = present()
    thread.join()
    if refused:
        raise refused[0]
    return released
