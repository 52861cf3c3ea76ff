"""Approvals: asked for, given by somebody else's key, for these very bytes and so many hours; used once, and void when anything changed."""

import shutil
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from esteira import ledger
from esteira.access import Actor
from esteira.errors import ConfigError, Refused, SourceError
from esteira.registry import Registry
from esteira.release import approvals
from esteira.release.policy import Asked, ReleasePolicy
from esteira.settings import Settings
from esteira.store import Store
from esteira.store.records import Approval
from tests.released import ADMIN, APPROVER, GUEST, LOCAL, NOW, SCIENTIST, VIEWER, Unshown, add, spoil, stored
from tests.stores import sqlite_template, store, store_url
from tests.test_registry import LINE

__all__ = ["sqlite_template", "store", "store_url"]

DAY = timedelta(hours=24)
WEEK = timedelta(hours=168)
POLICY = ReleasePolicy.of(Asked(), approval_mode="required", rollout="direct").model_dump(mode="json")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home")


@pytest.fixture
def registry(settings: Settings, store: Store) -> Registry:
    """A line with one version in staging for which nobody asked yet."""
    found = Unshown(settings.model_copy(update={"tenant": store.tenant}), store)
    add(store, settings, 1)
    found.set_alias(LINE, "staging", 1, actor="lia", now=NOW)
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

    for code in ("not_approved", "not_approved"):
        with pytest.raises(Refused) as caught:
            promote(registry)
        assert code == caught.value.code
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
    registry.set_alias(LINE, "staging", 2, actor="somebody", now=NOW)
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
    registry.set_alias(LINE, "staging", 2, actor="lia", now=NOW)
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


def test_an_artefact_that_is_gone_voids_it_too(registry: Registry, settings: Settings) -> None:
    ask(registry)
    shutil.rmtree(stored(settings, 1))

    with pytest.raises(Refused) as caught:
        approve(registry)
    assert "approval_void" == caught.value.code
    assert isinstance(caught.value.__cause__, SourceError | Refused)


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

    @pytest.mark.parametrize("actor", [LOCAL, GUEST, SCIENTIST])
    def test_who_could_not_approve_cannot_go_around_it(self, actor: Actor, registry: Registry) -> None:
        ask(registry)
        with pytest.raises(Refused) as caught:
            self.promote(registry, actor)
        assert "not_allowed" == caught.value.code

    def test_an_author_cannot_go_around_it(self, registry: Registry) -> None:
        ask(registry)
        with pytest.raises(Refused) as caught:
            self.promote(registry, replace(ADMIN, name="lia"))
        assert "own_work" == caught.value.code
