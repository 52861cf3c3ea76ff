"""A toy family with nested rows: how long will a plan of tasks take? The engine searches; the graph answers.

Its words are written by hand, without `DeclaredFamily`, so that the protocol is what holds. The folder is a whole family:
copied below families/ it runs the DAG.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from esteira.family import (
    Answer,
    Answerer,
    ArtefactKind,
    Candidate,
    Finding,
    Fitted,
    OpenBundle,
    Row,
    Sample,
    Score,
    Search,
    Searched,
)
from esteira.features.contract import Column, ContractOptions, TableContract, Target, Task
from esteira.features.decode import json_rows

GOLDEN = Path(__file__).parent / "answers.jsonl"
CONTRACT = TableContract(
    line="nested",
    target=Target(name="seconds", task="regression", unit="seconds"),
    columns=(Column(name="plan_id", kind="text"), Column(name="tasks", kind="object", unit="milliseconds each")),
)
NAMES = ("tasks", "sum_s", "longest_s")


class Params(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    trials: int = 1


def check(rows: Sequence[Row]) -> list[Finding]:
    """Findings name the field by its dotted path, such as `tasks.2.ms`."""
    found = []
    for index, row in enumerate(rows):
        tasks = row.get("tasks")
        if not isinstance(tasks, list) or not tasks:
            found.append(Finding("required", "tasks", index, f"must be a list of at least one task, but got {tasks!r}"))
            continue
        for place, task in enumerate(tasks):
            ms = task.get("ms") if isinstance(task, Mapping) else None
            if isinstance(ms, bool) or not isinstance(ms, int | float):
                found.append(Finding("type", f"tasks.{place}.ms", index, f"must be milliseconds, but got {ms!r}"))
            elif ms < 0:
                found.append(Finding("range", f"tasks.{place}.ms", index, f"must be at least 0, but got {ms!r}"))
    return found


def features(rows: Sequence[Row]) -> NDArray[np.float32]:
    """Number of tasks, their sum and their maximum in seconds: shape (rows, 3)."""
    return np.array(
        [
            [len(row["tasks"]), sum(t["ms"] for t in row["tasks"]) / 1000, max(t["ms"] for t in row["tasks"]) / 1000]
            for row in rows
        ],
        dtype=np.float32,
    ).reshape(len(rows), 3)


class Plans:
    """The featurizer: nothing is fitted, nothing travels in the bundle."""

    names = NAMES
    categorical: tuple[int, ...] = ()
    groups: Mapping[str, Sequence[int]] = {"plan_id": (), "tasks": (0, 1, 2)}

    def rows(self, rows: Sequence[Row]) -> NDArray[np.float32]:
        return features(rows)

    def frame(self, frame: Any) -> NDArray[np.float32]:
        return features(json_rows(frame, CONTRACT))

    def files(self) -> Mapping[str, bytes]:
        return {}


class Answering:
    def __init__(self, predict: Any) -> None:
        self._predict = predict

    def check(self, rows: Sequence[Row]) -> list[Finding]:
        return check(rows)

    def answer(self, rows: Sequence[Row]) -> list[Answer]:
        return [
            {"prediction": y, "interval": None, "confidence": None, "confidence_kind": "heuristic", "warnings": []}
            for y in np.asarray(self._predict(features(rows))).tolist()
        ]


class NestedFitted(Answering):
    def __init__(self, searched: Searched) -> None:
        super().__init__(searched.predict)
        self.searched = searched

    def export(self) -> dict[str, bytes]:
        return {"graph.onnx": self.searched.graph()}

    def manifest(self) -> dict[str, Any]:
        return FAMILY.manifest(CONTRACT, {})


def plans(count: int, seed: int) -> tuple[list[dict[str, Any]], list[float]]:
    """Made-up plans and the seconds that each took."""
    rng = np.random.default_rng(seed)
    rows = [
        {"plan_id": f"p{i}", "tasks": [{"ms": int(ms)} for ms in rng.integers(10, 2000, int(rng.integers(1, 9)))]}
        for i in range(count)
    ]
    return rows, [0.2 * len(row["tasks"]) + sum(t["ms"] for t in row["tasks"]) / 1000 for row in rows]


@dataclass(frozen=True)
class Nested:
    name: str = "nested"
    artefact_kind: ArtefactKind = "onnx"
    deterministic: bool = True
    params: type[BaseModel] = field(default=Params)

    @property
    def row_rules(self) -> Callable[[Sequence[Row]], list[Finding]]:
        return check

    def sample(self) -> Sample:
        rows, truths = plans(48, seed=3)
        broken = [
            ({"plan_id": "empty", "tasks": []}, "tasks"),
            ({"plan_id": "word", "tasks": [{"ms": 5}, {"ms": "long"}]}, "tasks.1.ms"),
            ({"plan_id": "past", "tasks": [{"ms": -1}]}, "tasks.0.ms"),
        ]
        return Sample(rows, truths, broken)

    def golden(self) -> Sequence[Answer]:
        return [json.loads(line) for line in GOLDEN.read_text().splitlines()]

    def fit(self, rows: Any, truths: Sequence[Any], *, params: BaseModel, seed: int, search: Search) -> Fitted:
        settings = Params.model_validate(params.model_dump())
        searched = search(
            features(rows),
            np.asarray(truths, dtype=np.float64),
            task="regression",
            categorical=(),
            candidates=[Candidate("linear", defaults={"alpha": 1e-3})],
            metric="r2",
            trials=settings.trials,
            seed=seed,
        )
        return NestedFitted(searched)

    def baseline(self, rows: Any, truths: Sequence[Any]) -> Answerer:
        mean = float(np.mean(truths))
        return Answering(lambda x: np.full(len(x), mean))

    def features(self, rows: Any, fitted: Fitted) -> NDArray[np.float32]:
        return features(rows)

    def open(self, bundle: OpenBundle) -> Answerer:
        return Answering(lambda x: bundle.run("graph.onnx", x)["y"])

    def contract(
        self, frame: Any, target: str, line: str, options: ContractOptions
    ) -> tuple[TableContract, list[Finding]]:
        return CONTRACT.model_copy(update={"line": line}), []

    def featurizer(self, frame: Any, contract: TableContract) -> Plans:
        return Plans()

    def candidates(self, task: Task, n_rows: int) -> list[Candidate]:
        return [Candidate("linear", defaults={"alpha": 1e-3}), Candidate("constant")]

    def metric(self, task: Task) -> str:
        return "mae"

    def post(self, contract: TableContract, truth: NDArray[Any], out_of_fold: NDArray[np.float64]) -> dict[str, Any]:
        return {}

    def manifest(self, contract: TableContract, post: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "task": "regression",
            "schema": contract.model_dump(mode="json", exclude_defaults=True),
            "units": {"ms": "milliseconds", "seconds": "seconds"},
            "stages": ["features", "graph.onnx"],
            "post": dict(post),
        }

    def metrics(self, truths: Sequence[Any], answers: Sequence[Answer]) -> dict[str, Score]:
        error = np.abs(np.asarray(truths) - np.array([answer["prediction"] for answer in answers]))
        return {"mae": Score(float(error.mean()), higher_is_better=False)}

    def outcome(self, truth: Any, answer: Answer) -> float:
        return max(0.0, 1.0 - abs(truth - answer["prediction"]) / max(abs(truth), 1.0))


FAMILY = Nested()
