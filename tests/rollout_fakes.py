"""A line whose traffic is split, for tests in process: two stand-in models, a real store, real split files, one API."""

import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from esteira.family import Answer, Finding, Row
from esteira.rollout import split as splits
from esteira.rollout.split import Split
from esteira.rollout.state import Side
from esteira.store import Store
from esteira.store.rollouts import Rollouts
from serving.answering import Pace
from serving.arms import Arms
from serving.body import Limits
from serving.deployed import Deployed
from serving.deployments import Deployment
from serving.feedback import Feedback
from serving.http import Api
from serving.keys import Keys
from serving.metrics import Metrics
from serving.predictor import Predictor
from serving.splits import Splits
from tests.serving_fakes import LINE, FakeSource, ask, bento

EMPTY: Row = {}
TEST = "shop-7"
CHAMPION, CHALLENGER = Side(1, "1" * 64), Side(2, "2" * 64)
MANIFEST: Mapping[str, Any] = {
    "family": "tabular",
    "schema": {"columns": []},
    "post": {"classes": ["no", "yes"]},
}


def split_of(percent: float, **changed: Any) -> Split:
    given = {"test_id": TEST, "salt": "s", "stage": 0, "champion": CHAMPION, "challenger": CHALLENGER, "options": {}}
    return Split(percent=percent, **{**given, **changed})


class Model:
    """Answers `yes` with confidence 0.75, unless a test has it do something else with a row."""

    def __init__(self) -> None:
        self.does: Callable[[Row], Any] = lambda _: "yes"
        self.finds: Callable[[Row], bool] = lambda row: "bad" in row
        self.sure: Any = 0.75
        self.asked = 0

    def check(self, rows: Sequence[Row]) -> list[Finding]:
        return [Finding("type", "bad", number, "no number") for number, row in enumerate(rows) if self.finds(row)]

    def answer(self, rows: Sequence[Row]) -> list[Answer]:
        self.asked += 1
        return [{"prediction": self.does(row), "confidence": self.sure, "warnings": []} for row in rows]


class Line:
    """The line, its API and everything around it; `look` is one look of what follows splits, whose thread does not run."""

    def __init__(
        self, home: Path, store: Store, *, models: Mapping[int, Model], alias: str = "champion", **options: Any
    ):
        self.home = home
        self.models = models
        self.rollouts = Rollouts(store)
        self.source = FakeSource(LINE)
        self.registry = CollectorRegistry()
        metrics = Metrics(self.registry)
        self.troubles: list[str] = []
        self.deployed = Deployed(self.source)
        self.deployed.start(period=3600)
        self.splits = Splits(self.deployed, home, alias=alias, report=lambda _, error: self.troubles.append(str(error)))
        self.arms = Arms(lambda: self.rollouts, period=0.01, source="worker-1")
        self.arms.start()
        metrics.watch_splits(self.splits.percents)
        self.api = Api(
            self.deployed, Keys(b"caller", b"operator"), bento, metrics=metrics, limits=Limits(rows=50),
            pace=options.pop("pace", Pace(seconds=2.0)), splits=self.splits, arms=self.arms,
            feedback=Feedback(lambda: self.rollouts, self.arms, metrics, self.splits.of), **options,
        )  # fmt: skip
        self.metrics = metrics

    def write(self, percent: float, *, look: bool = True, **changed: Any) -> None:
        splits.write(self.home, LINE, split_of(percent, **changed))
        if look:
            self.splits.look()

    def clear(self) -> None:
        splits.clear(self.home, LINE)

    def ask(
        self, row: Row | Sequence[Row] = EMPTY, *, unit: str | None = None, **options: Any
    ) -> tuple[int, Any, dict[str, str]]:
        rows = [row] if isinstance(row, Mapping) else list(row)
        headers = {**({"x-unit-id": unit} if unit is not None else {}), **options.pop("headers", {})}
        return ask(self.api, "/v1/predict", json.dumps({"rows": rows}).encode(), headers=headers, **options)

    def version(self, row: Row = EMPTY, *, unit: str | None = None) -> int:
        status, document, _ = self.ask(row, unit=unit)
        assert 200 == status, document
        return int(document["version"])

    def label(self, **truth: Any) -> tuple[int, Any]:
        status, document, _ = ask(self.api, "/v1/feedback", json.dumps(truth).encode())
        return status, document

    def sums(self) -> Any:
        assert self.arms.flush(10)
        return self.rollouts.sums(TEST)

    def page(self) -> str:
        self.metrics.flush()
        return generate_latest(self.registry).decode()

    def stop(self) -> None:
        self.splits.stop()
        self.arms.stop()
        self.deployed.stop()


def load_models(monkeypatch: pytest.MonkeyPatch, models: Mapping[int, Model], **manifest: Any) -> list[int | None]:
    """Loading makes the stand-in of the version; the list grows by what was loaded."""
    made: list[int | None] = []

    def load(folder: Path, deployment: Deployment, device: str) -> Predictor:
        made.append(deployment.version)
        assert deployment.version is not None
        return Predictor(deployment, models[deployment.version], {**MANIFEST, **manifest}, "cpu")

    monkeypatch.setattr("serving.predictor.load", load)
    return made


class Hangs:
    """What a model does that does not come back before it is told to."""

    def __init__(self) -> None:
        self.free = threading.Event()

    def __call__(self, row: Row) -> str:
        self.free.wait(30)
        return "late"


def slow(seconds: float) -> Callable[[Row], str]:
    def does(row: Row) -> str:
        time.sleep(seconds)
        return "late"

    return does
