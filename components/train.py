"""Step `train`: searches for the best model within a number of trials and exports it; it measures nothing on test rows.

The native model's own answers to some rows (`golden.json`) and to all test rows (`native_test.npy`) are kept, so that
the exported model can be held to them.
"""

import io
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from esteira import outputs
from esteira.errors import ConfigError
from esteira.family import Answerer, Candidate, Line, load_trainable
from esteira.features.contract import TableContract
from esteira.features.metrics import HIGHER_IS_BETTER

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

    from esteira.automl import Folds, Result


class Params(BaseModel):
    """What a person may say about the search.

    Attributes:
        trials: how many parameter sets are tried; each kind's defaults come first.
        metric: a score of the task; by default the family's primary one.
        kinds: which of the family's kinds are tried; empty means all.
        golden_rows: test rows whose native answers travel with the model.
        reference_rows: training rows, at most, that travel with the model for comparison with later data.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    trials: int = Field(default=8, ge=1, le=10_000)
    metric: str = ""
    kinds: tuple[str, ...] = ()
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


def choose_candidates(offered: Sequence[Candidate], kinds: Sequence[str]) -> list[Candidate]:
    """The family's candidates of the wanted kinds, in the family's order; all when none is named.

    Raises:
        ConfigError: a kind that the family does not offer.
    """
    names = [candidate.kind for candidate in offered]
    unknown = [kind for kind in kinds if kind not in names]
    if unknown:
        raise ConfigError(
            f"train.kinds names kinds that the family offers ({', '.join(names)}), but got {unknown[0]!r}",
            code="unknown_kind", where="params.yaml, train.kinds", cure="take some of these, or leave it out",
        )  # fmt: skip
    return [candidate for candidate in offered if not kinds or candidate.kind in kinds]


class NativeBundle:
    """What a bundle will be, with the native model in the graph's place; satisfies `esteira.family.OpenBundle`."""

    def __init__(self, manifest: Mapping[str, Any], files: Mapping[str, bytes], found: "Result") -> None:
        self.manifest = manifest
        self._files = files
        self._found = found

    def read(self, name: str) -> bytes:
        """Bytes of a file of the bundle to be."""
        return self._files[name]

    def run(self, stage: str, x: "NDArray[np.float32]") -> "dict[str, NDArray[Any]]":
        """The native model's prediction, under the graph's name for it."""
        return {"y": self._found.predict(x)}


def golden_rows(
    rows: Sequence[Mapping[str, Any]], contract: TableContract, model: Answerer, count: int
) -> list[dict[str, Any]]:
    """Rows to hold an export to: rows with gaps, rows spread over all, one with an unseen category, one with no cell filled.

    Args:
        rows: JSON rows that obey the contract, at least one.
        contract: tells which columns are categories.
        model: tells which of the made-up rows must be answered at all.
        count: about how many are wanted.
    """
    gaps = [at for at, row in enumerate(rows) if any(value is None for value in row.values())][: max(1, count // 4)]
    others = [at for at in range(len(rows)) if at not in gaps]
    wanted = min(len(others), max(0, count - len(gaps)))
    chosen = [rows[at] for at in gaps + [others[place * len(others) // wanted] for place in range(wanted)]]
    first = chosen[0]
    unseen = {column.name: "never seen before" for column in contract.columns if column.kind == "category"}
    made = [*([{**first, **unseen}] if unseen else []), dict.fromkeys(first)]
    refused = {finding.row for finding in model.check(made) if finding.severity == "error"}
    return [*map(dict, chosen), *(row for at, row in enumerate(made) if at not in refused)]


def reference(rows: Sequence[Mapping[str, Any]], contract: TableContract, truths: Sequence[Any]) -> dict[str, Any]:
    """A sample of training rows by column, with their labels, for comparison with later data."""
    return {
        "version": 1,
        "rows": len(rows),
        "columns": [
            {"name": column.name, "kind": column.kind, "values": [row.get(column.name) for row in rows]}
            for column in contract.columns
        ],
        "label": {"name": contract.target.name, "values": list(truths)},
    }


def run(
    *, features: Path, contract: Path, line: str, out: Path, params: Params | None = None, seed: int = 42
) -> Report:
    """Search, fit the winner on all training rows, export.

    Args:
        features: featurize's folder.
        contract: validate's contract.yaml.
        line: `FAMILY` or `FAMILY@NAME`.
        out: folder for `model/` (graph.onnx, the featurizer's files, post.json, golden.json `{"rows", "answers"}`,
            reference.json), leaderboard.json (a list, best first) and native_test.npy (probabilities (rows, classes), or values (rows,)).
            The same inputs, params and seed give the same bytes.
        params: the step's section of params.yaml.
        seed: of folds, proposals, fits and samples.

    Raises:
        ConfigError: unknown family, metric or kind, or a family that cannot run.
        DataError: too few rows for a search.
        OutsideError: the disk is full.
    """
    import pandas as pd

    from esteira.automl import search
    from esteira.features.decode import json_rows

    params = params or Params()
    agreed = TableContract.from_yaml(contract.read_text(encoding="utf-8"))
    target = agreed.target
    name = Line.parse(line).family
    family = load_trainable(name)
    made = json.loads((features / "features.json").read_bytes())
    x, y = _load(features / "x_train.npy"), _load(features / "y_train.npy")
    train_rows = pd.read_parquet(features / "rows_train.parquet")
    found = search(
        x,
        y,
        task=target.task,
        categorical=made["categorical"],
        candidates=choose_candidates(family.candidates(target.task, len(y)), params.kinds),
        metric=params.metric or family.metric(target.task),
        trials=params.trials,
        seed=seed,
        classes=None if target.classes is None else len(target.classes),
        folds=_folds(train_rows, y, agreed, seed),
        progress=_say,
    )
    post = family.post(agreed, y, found.out_of_fold)
    files = {"graph.onnx": found.graph(), "post.json": _json(post)}
    files |= {file: (features / file).read_bytes() for file in made["files"]}
    manifest = {"family": name, "line": line, **family.manifest(agreed, post)}
    native = family.open(NativeBundle(manifest, files, found))
    test = json_rows(pd.read_parquet(features / "rows_test.parquet"), agreed)
    golden = golden_rows(test, agreed, native, params.golden_rows)
    files["golden.json"] = _json({"rows": golden, "answers": native.answer(golden)})
    picked = np.sort(np.random.default_rng(seed).permutation(len(y))[: params.reference_rows])
    sample = json_rows(train_rows.iloc[picked], agreed)
    truths = [target.classes[int(code)] for code in y[picked]] if target.classes else y[picked].tolist()
    files["reference.json"] = _json(reference(sample, agreed, truths))
    # A wall time would make every training's bytes different, so it stays out of what is kept.
    board = [
        {"metric": found.metric, **{key: value for key, value in row.items() if key != "fit_seconds"}}
        for row in found.leaderboard
    ]
    outputs.write(out / "model", files)
    outputs.write(
        out, {"leaderboard.json": _json(board), "native_test.npy": _npy(found.predict(_load(features / "x_test.npy")))}
    )
    constant = [row["score"] for row in board if row["kind"] == "constant"]
    return Report(
        kind=found.best["kind"],
        params=dict(found.best["params"]),
        metric=found.metric,
        score=found.best["score"],
        baseline=constant[0] if constant else None,
        higher_is_better=HIGHER_IS_BETTER[found.metric],
        trials=sum(row["kind"] != "blend" for row in board),
        train_rows=len(y),
        features=x.shape[1],
        graph_bytes=len(files["graph.onnx"]),
    )


def _folds(rows: "pd.DataFrame", y: "NDArray[Any]", contract: TableContract, seed: int) -> "Folds":
    """Folds within the training rows, by the rule that split off the test rows."""
    import pandas as pd

    from esteira.automl import plan_folds
    from esteira.features.decode import microseconds

    groups = times = None
    if contract.time_column:
        series = rows[contract.time_column]
        if series.dtype.kind in "iuf":
            times = series.to_numpy(np.float64, na_value=-np.inf)
        else:
            times = microseconds(series, contract.time_column)
    elif contract.group_column:
        groups, _ = pd.factorize(rows[contract.group_column], use_na_sentinel=False)
    return plan_folds(y, task=contract.target.task, seed=seed, groups=groups, times=times)


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


def _json(value: Any) -> bytes:
    return (json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n").encode()


if __name__ == "__main__":
    from components.door import main

    main("train")
