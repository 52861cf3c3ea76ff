"""Step `train`: searches for the best model within a number of trials and exports it; it measures nothing on test rows.

The native model's own answers to some rows (`golden.json`) and to all test rows (`native_test.npy`) are kept, so that
the exported model can be held to them.
"""

import io
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from esteira import outputs
from esteira.family import Finding, Line, Trainable, load_trainable
from esteira.features.contract import TableContract
from esteira.features.metrics import HIGHER_IS_BETTER

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray


class Params(BaseModel):
    """What a person may say about the search.

    Attributes:
        trials: how many parameter sets are tried; the portfolio comes first.
        metric: a score of the task; by default the family's primary one.
        kinds: which of the family's kinds are tried; empty means all.
        workers: how many make trials side by side, pods on a cluster and processes here; two runs with more than one may differ.
        golden_rows: test rows whose native answers travel with the model.
        max_row_ms: milliseconds that one answer may cost by the cost model; more lets more models answer together.
        reference_rows: training rows, at most, that travel with the model for comparison with later data.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    trials: int = Field(default=8, ge=1, le=10_000)
    metric: str = ""
    kinds: tuple[str, ...] = ()
    workers: int = Field(default=1, ge=1, le=64)
    max_row_ms: float = Field(default=0.1, gt=0, le=1000)
    golden_rows: int = Field(default=20, ge=1, le=1000)
    reference_rows: int = Field(default=1000, ge=0, le=10_000)


class Report(BaseModel):
    """What train found. `score` is on rows held back from the fit within the training part, not on the test part."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str
    params: dict[str, Any]
    metric: str
    score: float
    baseline: float | None
    higher_is_better: bool
    trials: int
    train_rows: int
    features: int
    graph_bytes: int


def run(
    *, features: Path, contract: Path, line: str, out: Path, params: Params | None = None, seed: int = 42
) -> Report:
    """Search, blend the best on all training rows, export.

    Args:
        features: featurize's folder.
        contract: validate's contract.yaml.
        line: `FAMILY` or `FAMILY@NAME`.
        out: folder for `model/` (graph.onnx, the featurizer's files, post.json, golden.json `{"rows", "answers"}`,
            reference.json, record.json), leaderboard.json (a list, best first), search.html and native_test.npy
            (probabilities (rows, classes), or values (rows,)). The same inputs, params and seed give the same bytes.
        params: the step's section of params.yaml.
        seed: of folds, proposals, fits and samples.

    Raises:
        ConfigError: unknown family, metric or kind, or a family that cannot run.
        DataError: too few rows for a search.
        OutsideError: the disk is full.
    """
    import pandas as pd

    from components.search import meeting
    from esteira.automl import model_files, search, search_page
    from esteira.automl.question import data_of

    params = params or Params()
    agreed = TableContract.from_yaml(contract.read_text(encoding="utf-8"))
    family = load_trainable(Line.parse(line).family)
    rows = pd.read_parquet(features / "rows_train.parquet")
    x, y, words = _question(features, rows, agreed, family, params, seed)
    with meeting(features=features, contract=contract, line=line, seed=seed, params=params) as storage:
        found = search(x, y, **words, storage=storage, progress=_say)
    held = pd.read_parquet(features / "rows_test.parquet")
    made = json.loads((features / "features.json").read_bytes())
    files = model_files.model_files(
        family,
        line,
        agreed,
        {file: (features / file).read_bytes() for file in made["files"]},
        found,
        y,
        rows=rows,
        held=held,
        seed=seed,
        golden=params.golden_rows,
        reference=params.reference_rows,
    )
    files["record.json"] = model_files.dumped(found.record)
    board = model_files.leaderboard(found)
    page = search_page.page(
        agreed,
        rows,
        y,
        x.shape[1],
        found,
        title=line,
        seed=seed,
        findings=[Finding(row=None, **finding).told for finding in made["findings"]],
        closer=search_page.closer_look(found, data_of(x, y, **words), words["folds"], made["groups"]),
    )
    outputs.write(out / "model", files)
    outputs.write(
        out,
        {
            "leaderboard.json": model_files.dumped(board),
            "search.html": page.encode(),
            "native_test.npy": _npy(found.predict(_load(features / "x_test.npy"))),
        },
    )
    constant = [row["score"] for row in board if row["kind"] == "constant"]
    return Report(
        kind=found.best["kind"],
        params=dict(found.best["params"]),
        metric=found.metric,
        score=found.best["score"],
        baseline=constant[0] if constant else None,
        higher_is_better=HIGHER_IS_BETTER[found.metric],
        trials=found.record["trials"],
        train_rows=len(y),
        features=x.shape[1],
        graph_bytes=len(files["graph.onnx"]),
    )


def question(
    features: Path, contract: Path, line: str, params: Params, seed: int
) -> "tuple[NDArray[np.float32], NDArray[Any], dict[str, Any]]":
    """What a search is asked: x, y and the words of `esteira.automl.search`, for every worker the same; see `run`."""
    import pandas as pd

    agreed = TableContract.from_yaml(contract.read_text(encoding="utf-8"))
    family = load_trainable(Line.parse(line).family)
    return _question(features, pd.read_parquet(features / "rows_train.parquet"), agreed, family, params, seed)


def _question(
    features: Path, rows: "pd.DataFrame", contract: TableContract, family: Trainable, params: Params, seed: int
) -> "tuple[NDArray[np.float32], NDArray[Any], dict[str, Any]]":
    from esteira.automl import plan_folds
    from esteira.automl.question import of_kinds
    from esteira.features.leaks import duplicates
    from esteira.features.table import together, word_columns

    groups, times = together(rows, contract)
    made = json.loads((features / "features.json").read_bytes())
    x, y = _load(features / "x_train.npy"), _load(features / "y_train.npy")
    target = contract.target
    return (
        x,
        y,
        {
            "task": target.task,
            "categorical": made["categorical"],
            "names": made["names"],
            "texts": word_columns(made["names"], made["groups"]),
            "candidates": of_kinds(
                family.candidates(target.task, len(y)), params.kinds, where="params.yaml, train.kinds"
            ),
            "metric": params.metric or family.metric(target.task),
            "trials": params.trials,
            "seed": seed,
            "classes": None if target.classes is None else len(target.classes),
            "folds": plan_folds(
                y, task=target.task, seed=seed, groups=groups, times=times, together=duplicates(x, y).records
            ),
            "max_row_us": params.max_row_ms * 1000,
        },
    )


def _say(done: int, trials: int, row: Mapping[str, Any]) -> None:
    score = "undefined" if row["score"] is None else f"{row['score']:.4f}"
    print(f"trial {done}/{trials} {row['kind']}: {score} in {row['fit_seconds']:.1f} s", file=sys.stderr, flush=True)


def _load(path: Path) -> "NDArray[Any]":
    array: NDArray[Any] = np.load(path, allow_pickle=False)
    return array


def _npy(array: "NDArray[Any]") -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


if __name__ == "__main__":
    from components.door import main

    main("train")
