"""What every target must do, and the real engine over each: the process itself, the real HAProxy, a gateway's API."""

import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest

from esteira.errors import OutsideError
from esteira.rollout import control
from esteira.rollout.split import Split
from esteira.rollout.state import Side
from esteira.rollout.targets import Target, make
from esteira.settings import load_settings
from tests.gateway_fake import NAME, NAMESPACE, Cluster, running
from tests.rollouts import LINE, World, home_template, traffic, world
from tests.test_haproxy import Behind
from tests.test_rollout_haproxy import Front, wait

__all__ = ["home_template", "world"]


class Place(Protocol):
    """A target, and what it is the target of."""

    target: Target

    def leave(self) -> None:
        """Be away from now on."""

    def come_back(self) -> None:
        """Be there again."""


class InProcess:
    """A file of this machine, which is never away."""

    def __init__(self, home: Path) -> None:
        self.target = make(load_settings({"ESTEIRA_HOME": str(home)}, None), LINE)

    def leave(self) -> None:
        raise NotImplementedError

    come_back = leave


class Proxied:
    def __init__(self, front: Front) -> None:
        self.front, self.target = (
            front,
            make(load_settings({"ESTEIRA_TARGET": f"haproxy:{front.socket}#rollout"}, None), LINE),
        )
        self._up()

    def _up(self) -> None:
        for name in ("champion", "challenger"):
            self.front.wait_up(name)

    def leave(self) -> None:
        self.front.stop()

    def come_back(self) -> None:
        """Started again, it has the weights of its file."""
        self.front.start()
        self._up()


class Routed:
    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.target = make(load_settings({"ESTEIRA_TARGET": f"gateway:{NAMESPACE}/{NAME}"}, None), LINE)

    def leave(self) -> None:
        self.cluster.failures.extend([503] * 1000)

    def come_back(self) -> None:
        self.cluster.failures.clear()


@pytest.fixture(params=["in-process", "haproxy", "gateway"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    if request.param == "in-process":
        yield InProcess(tmp_path / "home")
    elif request.param == "haproxy":
        if shutil.which("haproxy") is None or shutil.which("openssl") is None:
            pytest.skip("needs haproxy and openssl on PATH")
        services = Behind(), Behind()
        front = Front(tmp_path / "front", services[0].address, services[1].address)
        try:
            yield Proxied(front)
        finally:
            front.stop()
            for service in services:
                service.stop()
    else:
        with running(tmp_path / "kubeconfig") as cluster:
            monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
            monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
            yield Routed(cluster)


# Those that can be away.
outside = pytest.mark.parametrize("place", ["haproxy", "gateway"], indirect=True)


def split(percent: float) -> Split:
    return Split("test-1", "salt", percent, 0, Side(1, "a" * 64), Side(2, "b" * 64))


def test_a_target_begins_with_nothing_for_the_candidate_and_gives_what_it_is_told_once_or_twice(place: Place) -> None:
    target = place.target
    assert target.settle_seconds >= 0
    assert target.asks_again is (target.name == "haproxy"), (
        "of the three only its file takes x-esteira-arm from callers"
    )
    assert 0.0 == target.share()
    target.shift(None)
    for percent in (10, 10, 25, 50, 100, 5, 12.5):
        target.shift(split(percent))
        share = target.share()
        assert share is not None
        assert math.isclose(percent, share, abs_tol=0.1)
    for _ in range(2):
        target.shift(None)
        assert 0.0 == target.share()


@outside
def test_a_target_that_is_away_says_none_and_raises_with_a_cure_and_is_itself_again_afterwards(place: Place) -> None:
    place.target.shift(split(10))
    place.leave()

    assert place.target.share() is None
    for shift in (split(25), None):
        with pytest.raises(OutsideError) as away:
            place.target.shift(shift)
        assert away.value.cure
        assert away.value.where

    place.come_back()
    place.target.shift(split(25))
    assert 25.0 == place.target.share()


@pytest.mark.slow
def test_the_engine_grows_the_share_of_a_good_candidate_and_takes_all_from_one_that_turned_bad(
    place: Place, world: World
) -> None:
    target: Any = place.target
    world.target = target
    world.start()
    assert 10.0 == target.share()
    decision = world.pass_stage(24)
    assert decision is not None
    assert (25.0, 25.0) == (decision.percent, target.share()), decision.reason

    world.put(1, "control", traffic(5, 0.75))
    world.put(1, "candidate", traffic(5, 0.75, errors=0.2))
    decision = world.tick(5)

    assert decision is not None
    assert "roll_back" == decision.action
    assert 0.0 == target.share()
    assert "rolled_back" == world.state.status
    world.check()


@outside
@pytest.mark.slow
def test_a_target_that_is_away_holds_the_rollout_visibly_and_gets_its_share_back(place: Place, world: World) -> None:
    target: Any = place.target
    world.target = target
    world.start()
    place.leave()
    decision = world.tick(1)

    assert decision is not None
    assert "hold" == decision.action
    assert target.name in world.state.alert

    place.come_back()
    world.tick(1)
    assert 10.0 == target.share(), "also where it began anew"
    assert not world.state.alert
    assert "running" == world.state.status
    world.check()


@outside
@pytest.mark.slow
def test_a_roll_back_that_cannot_reach_the_target_is_tried_again_at_every_look(place: Place, world: World) -> None:
    target: Any = place.target
    world.target = target
    world.start()
    place.leave()
    world.do(control.rollback)
    assert "rolled_back" == world.state.status
    assert world.state.alert
    world.tick(0.1)
    place.come_back()
    target.shift(split(10))  # as if it had kept its share
    world.tick(0.1)

    assert 0.0 == target.share()
    wait(lambda: not world.split, "the split is gone")
    world.check()
