"""Rollouts by hand: who may, what a candidate must have first, and that a pause holds."""

import subprocess
import sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from esteira import access
from esteira.access import Actor
from esteira.errors import ConfigError, Refused
from esteira.gate import Outcome
from esteira.release import approvals
from esteira.release.policy import Asked, ReleasePolicy
from esteira.rollout import control, engine, files, preconditions, shown
from esteira.rollout import split as splits
from esteira.rollout.preconditions import Known
from tests import keyholders
from tests.rollouts import ANA, HOUR, LINE, T0, World, die_at, home_template, make_bundle, register, traffic, world

__all__ = ["home_template", "world"]

GOOD = Known(samples=10_000, simulated=False, passed=True, rehearsed=True)


def release(**told: Any) -> ReleasePolicy:
    """A line's settings; automatic and direct but for what is told."""
    return ReleasePolicy.of(
        Asked(**{"rehearse": False, **told}), approval_mode=told.get("approval_mode", "automatic"), rollout="staged"
    )


class TestPreconditions:
    @pytest.mark.requirement("H-39")
    @pytest.mark.parametrize(
        ("known", "missing"),
        [
            (replace(GOOD, samples=9_999), "enough_samples"),
            (replace(GOOD, samples=None), "enough_samples"),
            (replace(GOOD, simulated=True), "real_data"),
            (replace(GOOD, simulated=None), "real_data"),
            (replace(GOOD, passed=False), "passed_its_gate"),
            (replace(GOOD, passed=None), "passed_its_gate"),
            (replace(GOOD, rehearsed=False), "rehearsed"),
            (replace(GOOD, rehearsed=None), "rehearsed"),
        ],
        ids=str,
    )
    def test_each_missing_condition_blocks_the_start(self, known: Known, missing: str) -> None:
        """H-39 Done when: each missing condition blocks the start. (On a real line: the next test.)"""
        found = preconditions.verdict(known, rehearsal=True)

        assert not found.released
        assert [missing] == [one.rule for one in found.held_by]
        assert preconditions.verdict(GOOD, rehearsal=True).released
        assert preconditions.verdict(replace(GOOD, rehearsed=None)).released, "only where the line rehearses"

    @pytest.mark.requirement("H-39")
    @pytest.mark.parametrize(
        ("spoil", "missing"),
        [
            ("rows", "enough_samples FAIL"),
            ("record", "enough_samples NO_DATA"),
            ("dataset", "real_data FAIL"),
            ("simulated", "real_data FAIL"),
            ("unsaid", "real_data NO_DATA"),
        ],
    )
    def test_a_start_names_what_is_missing_and_changes_nothing(self, spoil: str, missing: str, world: World) -> None:
        """H-39 Done when: each missing condition blocks the start. Decision: each refusal names what is missing."""
        registry = world.registry
        told: dict[str, Any] = {"data_hash": "ee" * 32}
        if spoil != "record":
            source = {"simulated": True} if spoil == "dataset" else {}
            registry.store.register_dataset(
                name="other", content_hash="ee" * 32, created_by="ana", row_count=569 if spoil == "rows" else 20_000,
                source_config=source,
            )  # fmt: skip
        simulated = {"simulated": True, "unsaid": None}.get(spoil, False)
        version = register(registry, make_bundle(world.home.parent / "b", "b", simulated=simulated), **told)
        before = len(world.entries("rollout", "traffic", "alias"))

        with pytest.raises(Refused) as caught:
            world.start(version=version)

        assert "preconditions" == caught.value.code
        assert missing in caught.value.message
        assert caught.value.cure
        assert files.load(world.home, LINE) is None
        assert world.split is None
        assert "challenger" not in world.aliases
        assert before == len(world.entries("rollout", "traffic", "alias"))

    def test_a_small_line_may_be_told_otherwise(self, world: World) -> None:
        with pytest.raises(Refused):
            world.start(options={"min_samples": 12_001})
        with pytest.raises(Refused):
            world.start(release=release(min_samples=12_001))
        assert "min_samples" not in world.start(release=release(min_samples=12_000)).options

    @pytest.mark.parametrize(
        ("deploy", "code"),
        [("approval_mode: required", "not_requested"), ("rehearse: true", "preconditions"), ("", "")],
    )
    def test_what_params_says_since_a_version_was_registered_counts_where_it_is_stricter(
        self, deploy: str, code: str, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        text = f"families:\n  tabular:\n    deploy: {{{deploy}}}\n"
        Path("params.yaml").write_text(text, encoding="utf-8")
        if not code:
            assert "running" == world.start().status, "what it leaves out is not held against the registration"
            return
        with pytest.raises(Refused) as caught:
            world.start()
        assert code == caught.value.code
        assert "challenger" not in world.aliases

    @pytest.mark.parametrize("least", [-1, 1.5, "many", True, None])
    def test_a_bad_count_is_refused(self, least: Any, world: World) -> None:
        with pytest.raises(ConfigError) as caught:
            world.start(options={"min_samples": least})
        assert "bad_params" == caught.value.code

    def test_a_line_that_rehearses_starts_only_after_a_rehearsal(self, world: World) -> None:
        from esteira import ledger

        with pytest.raises(Refused) as caught:
            world.start(release=release(rehearse=True))
        assert "rehearsed NO_DATA" in caught.value.message
        version = world.registry.get(LINE, 2)
        assert version is not None
        for verdict in ("pass", "held"):
            ledger.append(
                world.registry.store, kind="rehearsal", line=LINE, actor="ana", version=2, bundle_id=version.bundle_id,
                evidence={"verdict": verdict}, now=world.now,
            )  # fmt: skip
        with pytest.raises(Refused) as caught:
            world.start(release=release(rehearse=True))
        assert "rehearsed FAIL" in caught.value.message

    def test_a_line_that_asks_waits_for_an_approval(self, world: World) -> None:
        with pytest.raises(Refused) as caught:
            world.start(release=release(approval_mode="required"))
        assert caught.value.code in {"not_requested", "not_approved"}
        assert world.split is None


class TestStart:
    def test_a_second_start_waits_for_the_first_to_end(self, world: World) -> None:
        """And with it a second challenger (H-38)."""
        world.start()
        with pytest.raises(Refused) as caught:
            world.start()
        assert "rollout_running" == caught.value.code

    def test_a_candidate_that_was_rolled_back_cools_down(self, world: World) -> None:
        world.start()
        world.do(control.rollback)
        world.now += 23 * HOUR
        with pytest.raises(Refused) as caught:
            world.start(version=2)
        assert "cooldown" == caught.value.code
        other = register(world.registry, make_bundle(world.home.parent / "c", "c"))
        world.start(version=other)  # another may come at once, and the first one's rest is not forgotten over it
        world.do(control.rollback)
        with pytest.raises(Refused) as caught:
            world.start(version=2)
        assert "cooldown" == caught.value.code

    @pytest.mark.parametrize(("version", "code"), [(1, "same_version"), (9, "unknown_version")])
    def test_what_cannot_be_a_candidate_is_refused(self, version: int, code: str, world: World) -> None:
        with pytest.raises(Refused) as caught:
            world.start(version=version)
        assert code == caught.value.code
        assert files.load(world.home, LINE) is None

    def test_a_line_without_a_champion_has_nothing_to_compare_with(self, world: World) -> None:
        with pytest.raises(Refused) as caught:
            control.start("tabular@other", settings=world.settings, now=T0, actor=ANA, reason="r")
        assert "no_champion" == caught.value.code

    def test_an_unknown_policy_is_refused(self, world: World) -> None:
        with pytest.raises(ConfigError) as caught:
            world.start(policy="luck")
        assert "unknown_policy" == caught.value.code
        assert "challenger" not in world.aliases

    @pytest.mark.parametrize("line", ["Tabular", "../x", "tabular@", ""])
    def test_a_line_has_the_form_of_one(self, line: str, world: World) -> None:
        with pytest.raises(ConfigError) as caught:
            control.start(line, settings=world.settings, now=T0, actor=ANA, reason="r")
        assert "bad_line" == caught.value.code

    @pytest.mark.parametrize("reason", ["", "  ", "x" * 501])
    def test_what_is_done_by_hand_says_why(self, reason: str, world: World) -> None:
        for action in (control.start, control.rollback, control.pause, control.promote):
            with pytest.raises(ConfigError) as caught:
                world.do(action, reason=reason)
            assert "no_reason" == caught.value.code

    def test_what_was_said_stands_in_the_ledger(self, world: World) -> None:
        world.start(reason="the October data", options={"rules": {"margin": 0.03}})
        (entry,) = world.entries("rollout")

        assert ("ana", 2) == (entry.actor, entry.version)
        told = entry.evidence
        assert ("started", "the October data", "rules", {"rules": {"margin": 0.03}}) == (
            told["action"], told["reason"], told["policy"], told["options"],
        )  # fmt: skip
        assert {"enough_samples", "real_data", "passed_its_gate"} == {one["rule"] for one in told["findings"]}
        assert T0.strftime("%Y-%m-%dT%H:%M") == entry.at[:16]


class TestWho:
    @pytest.mark.parametrize("action", ["start", "pause", "resume", "promote", "rollback"])
    def test_a_key_of_another_role_is_refused_and_told(self, action: str, world: World) -> None:
        if action != "start":
            world.start()
        viewer = Actor("vera", "viewer", keyed=True)
        with pytest.raises(Refused) as caught:
            world.do(getattr(control, action), actor=viewer)
        assert "not_allowed" == caught.value.code
        assert "vera" == world.entries("denied")[-1].actor
        assert action == "start" or "running" == world.state.status

    def test_with_a_key_file_the_accounts_user_may_not(self, world: World) -> None:
        keyholders.add(world.home, "root", "admin")
        with pytest.raises(Refused):
            world.start(actor=access.who(world.settings))

    def test_a_data_scientist_may_roll_back_what_others_approved(self, world: World) -> None:
        world.start()
        world.do(control.rollback, actor=Actor("dora", "data_scientist", keyed=True))
        assert "rolled_back" == world.state.status
        assert "dora" == world.entries("traffic")[-1].actor
        assert "challenger" not in world.aliases


class TestManual:
    @pytest.mark.requirement("H-46")
    def test_paused_never_advances(self, world: World) -> None:
        """H-46 Done when: paused never advances. Its time does not count either (H-42)."""
        world.start()
        world.feed(23)
        world.tick(23)
        paused = world.do(control.pause, reason="holiday")
        assert ("paused", 10.0) == (paused.status, paused.percent)
        world.feed(400)
        for _ in range(20):
            decision = world.tick(24)
            assert decision is not None
            assert ("hold", 10.0) == (decision.action, decision.percent)
        assert 10.0 == world.split.percent  # type: ignore[union-attr]

        world.do(control.resume, reason="over")
        world.tick(0.9)
        assert 10.0 == world.state.percent, "23 h 54 min of its own"
        world.tick(0.2)
        assert 25.0 == world.state.percent
        assert ["started", "paused", "resumed"] == [one.evidence["action"] for one in world.entries("rollout")]
        assert ["holiday", "over"] == [one["reason"] for one in world.state.history if one["actor"] == "ana"][1:]
        world.check()

    def test_an_engine_does_not_trust_a_policy_with_a_pause(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from esteira.rollout import moves

        world.start()
        world.do(control.pause)

        class Eager:
            name = "eager"
            stages = (10.0, 50.0)

            def decide(self, state: Any, now: Any) -> Any:
                return moves.advance(state, now, 50.0, "now")

        monkeypatch.setattr(engine, "make", lambda _: Eager())
        decision = world.tick(1)
        assert decision is not None
        assert ("hold", "paused", 10.0) == (decision.action, world.state.status, world.state.percent)

    @pytest.mark.parametrize(
        ("first", "action", "code"),
        [
            (control.pause, control.pause, "paused"),
            (control.pause, control.promote, "paused"),
            (None, control.resume, "not_paused"),
            (control.rollback, control.pause, "no_rollout"),
            (control.rollback, control.promote, "no_rollout"),
        ],
    )
    def test_what_does_not_fit_is_refused(self, first: Any, action: Any, code: str, world: World) -> None:
        world.start()
        if first is not None:
            world.do(first)
        with pytest.raises(Refused) as caught:
            world.do(action)
        assert code == caught.value.code

    def test_a_promotion_by_hand_skips_what_is_left(self, world: World) -> None:
        world.start()
        state = world.do(control.promote, reason="the champion cannot stay")

        assert "approved" == state.status
        assert {"champion": 2, "production": 2, "previous": 1}.items() <= world.aliases.items()
        assert "challenger" not in world.aliases
        assert world.split is None
        moved = [one for one in world.entries("alias") if "champion" in one.evidence["moves"]][-1]
        assert ("ana", state.test_id) == (moved.actor, moved.evidence["test_id"])
        world.check()

    def test_a_promotion_without_a_passed_gate_is_refused_before_anything_moves(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from esteira.registry import Registry

        world.start()

        def refuse(*_: Any, **__: Any) -> None:
            raise Refused("a champion has a report", code="no_report")

        monkeypatch.setattr(Registry, "check_promote", refuse)
        with pytest.raises(Refused) as caught:
            world.do(control.promote)
        assert "no_report" == caught.value.code
        assert ("running", 10.0) == (world.state.status, world.split.percent)  # type: ignore[union-attr]

    @pytest.mark.parametrize("by", ["a look", "by hand"])
    def test_what_was_changed_since_it_was_approved_gets_no_more_traffic(self, by: str, world: World) -> None:
        lia, bob = (Actor(name, role, keyed=True) for name, role in (("lia", "data_scientist"), ("bob", "approver")))
        version = register(world.registry, make_bundle(world.home.parent / "three", "three"), actor=lia)
        wanted = world.registry.must(LINE, version)
        approvals.request(world.registry.store, wanted, actor=lia, policy={}, hours=168, now=world.now)
        approvals.approve(world.registry, LINE, version, actor=bob, reason="seen", now=world.now)
        world.to_last_stage()
        with (world.registry.fetch(wanted) / "card.json").open("a", encoding="utf-8") as card:
            card.write(" ")

        if by == "a look":
            for _ in range(2):
                decision = world.tick()
                assert decision is not None
                assert ("hold", "registry") == (decision.action, world.state.alert.partition(":")[0])
        else:
            with pytest.raises(Refused) as caught:
                world.do(control.promote)
            assert "approval_void" == caught.value.code
        assert ("running", 50.0) == (world.state.status, world.split.percent)  # type: ignore[union-attr]
        assert ["approval_void"] == [one.kind for one in world.entries("approval_void")]
        assert 1 == world.aliases["champion"]
        world.check()

    @pytest.mark.parametrize("by", ["a look", "by hand"])
    def test_what_the_registry_refuses_when_the_traffic_moved_goes_back_at_once(
        self, by: str, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from esteira.registry import Registry

        world.to_last_stage()

        def refuse(*_: Any, **__: Any) -> None:
            raise Refused("an approval counts for 72 hours, but it expired", code="approval_expired")

        monkeypatch.setattr(Registry, "promote", refuse)
        if by == "a look":
            decision = world.tick()
            assert decision is not None
            assert ("inconclusive", Outcome.NO_DATA, 0.0) == (decision.action, decision.outcome, decision.percent)
            assert "it expired" in decision.reason
        else:
            with pytest.raises(Refused) as caught:
                world.do(control.promote)
            assert ("not_promoted", True) == (caught.value.code, "it expired" in caught.value.message)
        assert ("inconclusive", 0.0) == (world.state.status, world.state.percent)
        assert world.split is None
        assert [(50.0, 100.0, "promote"), (100.0, 0.0, "inconclusive")] == world.traffic()[-2:]
        world.check()

    def test_a_clock_that_went_back_takes_no_promotion_back(self, world: World) -> None:
        lia, bob = (Actor(name, role, keyed=True) for name, role in (("lia", "data_scientist"), ("bob", "approver")))
        version = register(world.registry, make_bundle(world.home.parent / "three", "three"), actor=lia)
        wanted = world.registry.must(LINE, version)
        approvals.request(world.registry.store, wanted, actor=lia, policy={}, hours=168, now=world.now)
        approvals.approve(world.registry, LINE, version, actor=bob, reason="seen", now=world.now)
        began = world.now
        world.to_last_stage()
        die_at("rollout.before_registry", World(world.settings, now=world.now, target=world.target).tick)
        right, world.now = world.now, began - HOUR

        decision = world.tick()

        assert decision is not None
        assert ("settle", "registry") == (decision.action, decision.state.alert.partition(":")[0])
        assert ("approved", 100.0) == (world.state.status, world.split.percent)  # type: ignore[union-attr]
        world.now = right
        world.tick()
        assert version == world.aliases["champion"]
        world.check()

    @pytest.mark.parametrize("code", ["outside_storage", "locked", "clock_back"])
    def test_what_this_machine_does_not_come_by_says_nothing_of_a_candidate(
        self, code: str, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from esteira.registry import Registry

        world.start()

        def refuse(*_: Any, **__: Any) -> None:
            raise Refused("a bundle is read only from artefact storage, but it lies outside", code=code)

        with monkeypatch.context() as patch:
            patch.setattr(Registry, "promote", refuse)
            state = world.do(control.promote)
        assert ("approved", "registry") == (state.status, state.alert.partition(":")[0])
        world.tick()
        assert 2 == world.aliases["champion"], "another look makes it"
        world.check()

    def test_a_rollback_takes_the_traffic_and_tells_why(self, world: World) -> None:
        world.start()
        world.feed(3)
        state = world.do(control.rollback, reason="complaints")

        assert ("rolled_back", 0.0) == (state.status, state.percent)
        assert not splits.path(world.home, LINE).exists()
        assert "complaints" in state.alert
        assert 300 == state.arm("candidate").served, "with what was measured"
        told = [one.evidence for one in world.entries("traffic", "rollout")[-2:]]
        assert {"complaints"} == {one["reason"] for one in told}
        assert {"champion": 1}.items() <= world.aliases.items()
        world.check()

    def test_with_nothing_to_roll_back_nothing_happens(self, world: World) -> None:
        assert world.do(control.rollback) is None
        world.registry.set_alias(LINE, "challenger", 2, actor=ANA, reason="a start that was cut off", now=T0)
        assert world.do(control.rollback) is None
        assert "challenger" not in world.aliases, "what a start left that was cut off"

    def test_a_rollback_imports_nothing_heavy(self) -> None:
        script = (
            "import sys\nfrom esteira.rollout import control\n"
            "print([n for n in ('mlflow', 'pandas', 'scipy', 'numpy', 'sklearn', 'onnxruntime', 'tenacity', 'kubernetes')"
            " if n in sys.modules])"
        )
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        assert "[]" == done.stdout.strip()


class TestStatus:
    def test_it_shows_where_a_rollout_stands(self, world: World) -> None:
        world.start()
        world.feed(24)
        world.put(1, "candidate", traffic(1, 0.9))
        seen = shown.status(LINE, settings=world.settings, now=T0 + 24 * HOUR)

        assert ("running", 10.0, T0.isoformat()) == (seen["status"], seen["percent"], seen["since"])
        assert {"candidate", "control"} == set(seen["arms"])
        arm = seen["arms"]["candidate"]
        assert (2, 2400, 0.8, 0.0) == (arm["version"], arm["served"], arm["accuracy"], arm["error_rate"])
        assert 2500 == arm["all_stages"]["served"]
        assert ("PASS", "advance") == (seen["verdict"], seen["action"]), "what a look would say now"
        assert {"stable_served", "stable_errors", "stable_latency"} <= {one["rule"] for one in seen["findings"]}
        assert {"name": "in-process", "percent": 10.0} == seen["target"]
        assert 10.0 == world.state.percent, "and changes nothing"

    def test_it_says_so_when_there_is_none(self, world: World) -> None:
        seen = shown.status(LINE, settings=world.settings, now=T0)
        assert ("none", 0.0, None, {}, None) == tuple(
            seen[name] for name in ("status", "percent", "since", "arms", "verdict")
        )

    def test_an_ended_one_has_its_reason(self, world: World) -> None:
        world.start()
        world.do(control.rollback, reason="complaints")
        seen = shown.status(LINE, settings=world.settings, now=T0 + timedelta(days=2))
        assert ("rolled_back", None) == (seen["status"], seen["verdict"])
        assert "complaints" in seen["reason"]
        assert seen["cooldown_until"]

    @pytest.mark.parametrize("end", [control.rollback, control.promote])
    def test_an_ended_one_has_its_percent_since_it_ended(self, end: Any, world: World) -> None:
        world.start()
        world.now += HOUR
        if end is control.rollback:
            world.do(control.pause)
            world.now += HOUR
        world.do(end)
        ended = world.now
        world.tick(1)
        seen = shown.status(LINE, settings=world.settings, now=T0 + timedelta(days=2))
        assert ended.isoformat() == seen["since"]
        assert 3600 == seen["stage_seconds"], "of its stage, pauses left out, and none after its end"

    def test_before_any_unit_nothing_is_invented(self, world: World) -> None:
        world.start()
        seen = shown.status(LINE, settings=world.settings, now=T0 + HOUR)
        arm = seen["arms"]["control"]
        assert (0, None, None, None) == (arm["served"], arm["accuracy"], arm["error_rate"], arm["p95_ms"])
        assert str(Outcome.NO_DATA) == seen["verdict"]


def test_an_experiment_tells_services_what_it_measures(world: World) -> None:
    """By it they count each user once, and know which metric may be fed back (S-37, in part)."""
    primaries = [{"name": name, "baseline": 0.5, "minimum_effect": 0.1} for name in ("conversion", "satisfaction")]
    world.start(release=release(rollout_policy="ab", rollout_options={"primaries": primaries}))

    split = world.split
    assert split is not None
    assert (("conversion", "satisfaction"), True) == (split.primaries, split.truths)
    assert "users" == world.state.options["counts"]
