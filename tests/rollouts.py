"""A home with a line that can have a rollout: version 1 is the champion, version 2 waits; registered for real, on SQLite."""

import json
import os
import shutil
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

from esteira import bundle as bundles
from esteira import ledger
from esteira.access import ENGINE, Actor
from esteira.errors import OutsideError
from esteira.registry import Registry
from esteira.release.policy import Asked, ReleasePolicy
from esteira.rollout import carrying, control, engine, files, targets
from esteira.rollout import split as splits
from esteira.rollout.runtime import Runtime
from esteira.rollout.split import Split
from esteira.rollout.state import Decision, Rollout
from esteira.rollout.sums import ArmName, Sums
from esteira.settings import Settings
from esteira.store.rollouts import Rollouts

LINE = "tabular@churn"
T0 = datetime(2026, 1, 5, 9, 0, tzinfo=UTC)
HOUR = timedelta(hours=1)
ANA = Actor("ana", "local", keyed=False)
DATA = "da" * 32
VERDICT = {"verdict": "pass", "rules": [{"rule": "better", "outcome": "PASS", "value": 0.9, "bound": 0.5, "n": 100}]}
UNREHEARSED = ReleasePolicy.of(Asked(rehearse=False), approval_mode="automatic", rollout="direct")
"""What these lines are released by: nobody is asked, and no server of a rehearsal is started."""
_CARD = {
    "purpose": "who leaves",
    "data": {"name": "churn"},
    "metrics": {"segments": [{"segment": "all", "n": 10}]},
    "limits": ["small"],
    "contact": "ana",
    "licence": "MIT",
}


def make_bundle(folder: Path, text: str, *, simulated: bool | None = False) -> Path:
    """A sealed folder that differs by `text`."""
    (folder / "parts").mkdir(parents=True)
    (folder / "parts" / "decoder.json").write_text(json.dumps({"text": text}), encoding="utf-8")
    (folder / "card.json").write_text(json.dumps(_CARD), encoding="utf-8")
    (folder / "card.md").write_text("# Card\n", encoding="utf-8")
    manifest: dict[str, Any] = {
        "family": "tabular", "line": LINE, "stages": ["decode"], "schema": {"columns": [{"name": "age", "kind": "number"}]},
        "task": "binary",
    }  # fmt: skip
    bundles.seal(folder, manifest=manifest if simulated is None else {**manifest, "simulated": simulated})
    return folder


def register(registry: Registry, bundle: Path, **changes: Any) -> int:
    """Make a bundle the next version of LINE."""
    told: dict[str, Any] = {
        "run_id": f"run-{bundle.name}", "data_hash": DATA, "code_revision": "c0ffee", "params_hash": "ab" * 32,
        "metrics": {"roc_auc": 0.9}, "verdict": VERDICT, "policy": UNREHEARSED, "now": T0 - 48 * HOUR, **changes,
    }  # fmt: skip
    return registry.register(LINE, bundle, **told).version


@pytest.fixture(scope="session")
def home_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two registered versions, the first the champion; made once, because MLflow takes seconds."""
    folder = tmp_path_factory.mktemp("rollout-template")
    registry = Registry(Settings(home=folder / "made", actor="ana"))
    registry.store.register_dataset(name="churn", content_hash=DATA, created_by="ana", row_count=12_000)
    for text in ("one", "two"):
        register(registry, make_bundle(folder / text, text))
    registry.promote(LINE, 1, actor=ANA, reason="the first", evidence={"policy": "automatic"}, now=T0 - 24 * HOUR)
    # A copy finds its bundles by where they lie below it only when they are not where they were made.
    return (folder / "made").rename(folder / "home")


@dataclass
class World:
    """One home, one clock."""

    settings: Settings
    now: datetime = T0
    target: Any = None

    @property
    def home(self) -> Path:
        return self.settings.home

    @cached_property
    def registry(self) -> Registry:
        return Registry(self.settings)

    @property
    def state(self) -> Rollout:
        found = files.load(self.home, LINE)
        assert found is not None
        return found

    @property
    def split(self) -> Split | None:
        return splits.read(splits.path(self.home, LINE))

    @property
    def aliases(self) -> dict[str, int]:
        return self.registry.aliases(LINE)

    def start(self, **told: Any) -> Rollout:
        return self.do(control.start, **{"reason": "the gate released it", **told})

    def do(self, action: Callable[..., Any], **told: Any) -> Any:
        """One of `control`, by ana, now."""
        return action(
            LINE, settings=self.settings, now=self.now, target=self.target, registry=self.registry,
            **{"actor": ANA, "reason": "a reason", **told},
        )  # fmt: skip

    def tick(self, hours: float = 0.0) -> Decision | None:
        """Let so much time pass, then look."""
        self.now += timedelta(hours=hours)
        return engine.tick(
            LINE, settings=self.settings, now=self.now, target=self.target, registry=self.registry
        )  # fmt: skip

    def put(self, stage: int, arm: ArmName, sums: Sums) -> None:
        Rollouts(self.registry.store).put_all(self.state.test_id, "test", {(stage, arm): sums}, at=self.now)

    def feed(self, hours: float, *, candidate: float = 0.80, control: float = 0.75, stage: int | None = None) -> None:
        """So many hours of traffic in this stage: 100 labelled units an hour and arm, of these accuracies."""
        at = self.state.stage if stage is None else stage
        both: dict[tuple[int, ArmName], Sums] = {
            (at, "candidate"): traffic(hours, candidate), (at, "control"): traffic(hours, control),
        }  # fmt: skip
        Rollouts(self.registry.store).put_all(self.state.test_id, "test", both, at=self.now)

    def pass_stage(self, hours: int) -> Decision | None:
        """The hours of a stage, each with its look; the last decision."""
        decision = None
        for hour in range(1, hours + 1):
            self.feed(hour)
            decision = self.tick(1)
        return decision

    def to_last_stage(self) -> None:
        """Begin, and stand at the end of the last stage, with all that a promotion asks for."""
        self.start()
        state = replace(self.state, stage=2, percent=50.0, stage_at=self.now, looked_at=self.now)
        for stage in (1, 2):
            self.feed(72, stage=stage)
        target = self.target or targets.make(self.settings, LINE)
        run = Runtime(LINE, self.settings, self.registry, target, self.now, ENGINE)
        carrying.carry_out(run, self.state, state, action="advance", reason="a test")
        self.now += 72 * HOUR

    def entries(self, *kinds: str) -> list[ledger.Entry]:
        return [entry for entry in ledger.log(self.registry.store, LINE, limit=None) if entry.kind in kinds]

    def traffic(self) -> list[tuple[float, float, str]]:
        """From, to and action of every entry of the traffic."""
        told = [entry.evidence for entry in self.entries("traffic")]
        return [(one["from"], one["to"], one["action"]) for one in told]

    def check(self) -> None:
        """What holds at any moment, whatever was killed."""
        aliases = self.aliases
        assert aliases["champion"] == aliases["production"]
        assert aliases.get("previous") != aliases["champion"]
        told = self.traffic()
        given = self.split.percent if self.split else 0.0
        assert given <= max((to for _, to, _ in told), default=0.0), "no candidate traffic without an entry before it"
        for entry in self.entries("traffic"):
            assert abs(sum(one["share"] for one in entry.evidence["shares"]) - 1) < 1e-9
        assert ledger.verify(self.registry.store).ok


def traffic(hours: float, accuracy: float, *, errors: float = 0.0, confidence: float = 0.85) -> Sums:
    """What an arm did in so many hours at 100 labelled units an hour."""
    n = round(100 * hours)
    return Sums(
        served=n, errors=round(n * errors), labelled=n, outcome=round(n * accuracy), outcome_sq=round(n * accuracy),
        sure=n, confidence=n * confidence, confidence_sq=n * confidence**2, latency={40: n},
    )  # fmt: skip


@pytest.fixture
def world(tmp_path: Path, home_template: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """A fresh copy of the home; the working folder has no params.yaml."""
    shutil.copytree(home_template, tmp_path / "home")
    monkeypatch.chdir(tmp_path)
    return World(Settings(home=tmp_path / "home", actor="ana"))


class Gateway:
    """A splitter of the shape of the real ones, which can be away; it remembers what it was told.

    Attributes:
        away: shifts fail and the share cannot be read.
        stuck: shifts fail, but the share can be read.
    """

    name = "gateway"
    settle_seconds = 60.0
    sticky = named = asks_again = False
    place = "a gateway"

    def __init__(self) -> None:
        self.percent, self.away, self.stuck, self.tries = 0.0, False, False, 0

    def share(self) -> float | None:
        return None if self.away else self.percent

    def shift(self, split: Split | None, *, first: bool = False) -> None:
        self.tries += 1
        if self.away or self.stuck:
            raise OutsideError("a gateway answers, but it does not", code="gateway_away", where="test", cure="wait")
        self.percent = 0.0 if split is None else split.percent


def die_at(point: str, work: Callable[[], object]) -> None:
    """Do the work in a child that dies at a crash point."""
    pid = os.fork()
    if pid == 0:
        try:
            os.environ["ESTEIRA_CRASH_AT"] = point
            work()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    assert -9 == os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), f"{point} was not reached"
