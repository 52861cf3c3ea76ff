"""Whatever people, looks, kills, spoiled files and a gateway that comes and goes do to a rollout, in any order: what must hold holds."""

import os
import shutil
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, note, settings
from hypothesis import strategies as st

from esteira import crash, ledger
from esteira.errors import OutsideError, Refused
from esteira.registry import Registry
from esteira.rollout import control, files
from esteira.rollout.state import is_settled
from esteira.settings import Settings
from tests.rollouts import HOUR, LINE, Gateway, World, home_template, make_bundle, register, traffic

__all__ = ["home_template"]

POINTS = sorted(
    name
    for name in crash.POINTS
    if name.startswith(("rollout.", "promote.", "alias.")) or name == "outputs.before_rename"
)


@pytest.fixture(scope="session")
def four_versions(home_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same home with two more candidates."""
    folder = tmp_path_factory.mktemp("rollout-four")
    shutil.copytree(home_template, folder / "made")
    registry = Registry(Settings(home=folder / "made", actor="ana"))
    for text in ("three", "four"):
        register(registry, make_bundle(folder / text, text))
    return (folder / "made").rename(folder / "home")


def _start(version: int) -> Callable[[World], Any]:
    return lambda world: world.start(version=version)


def _hours(hours: float, accuracy: float, errors: float) -> Callable[[World], Any]:
    """Traffic for so long, then a look."""

    def work(world: World) -> None:
        state = files.load(world.home, LINE)
        if state is not None:
            known = state.arm("candidate").served / 100 + hours
            world.put(state.stage, "candidate", traffic(known, accuracy, errors=errors))
            world.put(state.stage, "control", traffic(known, 0.75))
        world.tick(hours)

    return work


def _spoil(suffix: str) -> Callable[[World], Any]:
    def work(world: World) -> None:
        file = files.path(world.home, LINE).with_suffix(suffix)
        if file.exists():
            file.write_bytes(file.read_bytes()[:40])

    return work


def _weights_moved(world: World) -> None:
    """By hand, while a rollout of ours splits there: after its end nobody of it looks there any more."""
    state = files.load(world.home, LINE)
    if state is not None and not is_settled(state):
        _gateway(percent=70.0)(world)


def _gateway(**change: Any) -> Callable[[World], Any]:
    def work(world: World) -> None:
        for name, value in change.items():
            if isinstance(world.target, Gateway):
                setattr(world.target, name, value)

    return work


def _rehearsed(verdict: str) -> Callable[[World], Any]:
    """Of all candidates: what the registry goes by when it is asked for a promotion."""

    def work(world: World) -> None:
        for version in (2, 3, 4):
            bundle_id = world.registry.must(LINE, version).bundle_id
            ledger.append(
                world.registry.store, kind="rehearsal", line=LINE, actor="ana", version=version, bundle_id=bundle_id,
                evidence={"verdict": verdict}, now=world.now,
            )  # fmt: skip

    return work


def _killed(point: str, work: Callable[[World], Any]) -> Callable[[World], Any]:
    """The same in a process that dies at a point, where it comes by it. What it told a gateway in its memory is lost."""

    def die(world: World) -> None:
        pid = os.fork()
        if pid == 0:
            try:
                os.environ["ESTEIRA_CRASH_AT"] = point
                work(world)
            finally:
                os._exit(0)
        found = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert found in {0, -signal.SIGKILL}
        world.now += HOUR

    return die


_COMMANDS: dict[str, Callable[[World], Any]] = {
    "start 2": _start(2),
    "start 3": _start(3),
    "start 4": _start(4),
    "pause": lambda world: world.do(control.pause),
    "resume": lambda world: world.do(control.resume),
    "promote": lambda world: world.do(control.promote),
    "roll back": lambda world: world.do(control.rollback),
    "roll the champion back": lambda world: world.registry.roll_back(
        LINE, actor=control.access.ENGINE, reason="complaints", now=world.now
    ),
    "a good day": _hours(25, 0.85, 0.0),
    "two good days": _hours(49, 0.85, 0.0),
    "three good days": _hours(73, 0.85, 0.0),
    "a bad hour": _hours(3, 0.75, 0.4),
    "a silent week": lambda world: world.tick(168),
    "a look": lambda world: world.tick(1),
}
_OTHERS: dict[str, Callable[[World], Any]] = {
    "the state is cut": _spoil(".json"),
    "the split is cut": _spoil(".split"),
    "the backup is cut": _spoil(".bak"),
    "the gateway is away": _gateway(away=True),
    "the gateway is stuck": _gateway(stuck=True),
    "the gateway is back": _gateway(away=False, stuck=False),
    "somebody moves the weights": _weights_moved,
    "the gateway begins anew": _gateway(percent=0.0),
    "their rehearsals hold them": _rehearsed("held"),
    "their rehearsals let them pass": _rehearsed("pass"),
}
_steps = st.one_of(
    st.sampled_from(sorted(_COMMANDS)),
    st.sampled_from(sorted(_COMMANDS)),
    st.sampled_from(sorted(_OTHERS)),
    st.tuples(st.sampled_from(POINTS), st.sampled_from(sorted(_COMMANDS))),
)


@pytest.mark.slow
@given(steps=st.lists(_steps, min_size=3, max_size=14), outside=st.booleans())
@settings(
    max_examples=int(os.environ.get("ROLLOUT_EXAMPLES", "40")), deadline=None, derandomize="ROLLOUT_EXAMPLES" not in os.environ,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),  # shrinking takes many minutes
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
def test_in_any_order_the_ledger_is_right_and_there_is_one_champion(
    steps: list[Any], outside: bool, four_versions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    note(f"{steps} outside={outside}")
    with tempfile.TemporaryDirectory() as folder:
        monkeypatch.chdir(folder)
        shutil.copytree(four_versions, Path(folder) / "home")
        world = World(Settings(home=Path(folder) / "home", actor="ana"), target=Gateway() if outside else None)
        for step in ["start 2", *steps]:
            work = {**_COMMANDS, **_OTHERS}[step] if isinstance(step, str) else _killed(step[0], _COMMANDS[step[1]])
            try:
                work(world)
            except (Refused, OutsideError):
                pass
            world.check()
        _gateway(away=False, stuck=False)(world)
        for _ in range(3):
            world.tick(1)
            world.check()
        _agrees(world)


def _agrees(world: World) -> None:
    """After a few looks with all up: traffic, state, aliases and ledger say the same."""
    state, aliases = files.load(world.home, LINE), world.aliases
    live = state is not None and state.status in {"running", "paused"}
    percent = state.percent if state is not None and live else 0.0
    share = world.target.percent if world.target else (world.split.percent if world.split else 0.0)
    assert percent == share
    assert (world.split is not None) == live
    champion = aliases["champion"]
    expected = {champion: 1 - percent / 100}
    if live and state is not None:
        assert state.challenger.version == aliases["challenger"]
        assert state.champion.version == champion
        expected[state.challenger.version] = percent / 100
    # A child that died took its clock along, so that the last entry may be later than this clock says.
    store = world.registry.store
    found = {one.version: one.share for one in ledger.at(store, ledger.latest(store, world.now), line=LINE)}
    assert {version: pytest.approx(part) for version, part in expected.items()} == found
