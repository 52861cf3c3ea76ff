"""A line that notifies is released without asking, and never without its notice: both are in one transaction, whatever is killed."""

import pytest

from esteira.registry import Registry
from esteira.release.policy import Asked, ReleasePolicy
from tests.rollouts import ANA, LINE, World, home_template, world
from tests.test_registry import _die_at

__all__ = ["home_template", "world"]


def release(mode: str) -> ReleasePolicy:
    asked = Asked.model_validate({"approval_mode": mode, "rollout": "staged", "rehearse": False})
    return ReleasePolicy.of(asked, approval_mode="required", rollout="staged")


@pytest.mark.parametrize(("point", "moved"), [("promote.before_commit", False), ("promote.before_beacon", True)])
def test_a_promotion_and_its_notice_happen_together_or_not_at_all(point: str, moved: bool, world: World) -> None:
    def promote() -> None:
        Registry(world.settings).promote(LINE, 2, actor=ANA, reason="go", evidence={"policy": "notify"})

    _die_at(point, promote)

    assert (2 if moved else 1) == world.aliases["champion"]
    assert [(2, "ana")] * moved == [(entry.version, entry.actor) for entry in world.entries("notice")]


@pytest.mark.parametrize(("point", "begun"), [("rollout.before_record", False), ("rollout.before_shift", True)])
def test_a_rollout_and_its_notice_begin_together_or_not_at_all(point: str, begun: bool, world: World) -> None:
    _die_at(point, lambda: World(world.settings).start(release=release("notify")))

    started = [entry.evidence["test_id"] for entry in world.entries("rollout")]
    assert int(begun) == len(started)
    assert started == [entry.evidence["test_id"] for entry in world.entries("notice")]


@pytest.mark.parametrize("mode", ["automatic", "notify"])
def test_only_a_line_that_notifies_leaves_notices(mode: str, world: World) -> None:
    world.start(release=release(mode))

    assert int(mode == "notify") == len(world.entries("notice"))
