"""Runs within a peer's own environment: fits it as its users would, or answers rows with what that left. Imports nothing of ours.

python inside.py fit PEER --train FILE.csv --target COL --task TASK --budget SECONDS --seed N --out DIR
python inside.py predict PEER --bundle DIR --data FILE.csv [--out FILE.csv] [--latency N]
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd

CORES = 2
LATENCY_SECONDS = 60.0  # a peer that takes a second a row is measured on fewer rows
WARM_UP = 10

Predict = Callable[[pd.DataFrame], pd.DataFrame]
"""Rows -> one column `prediction` for regression, or one column a class, named as the class is."""


class Peer(Protocol):
    """One way to make a model of a table, and to answer with it later."""

    def fit(self, train: pd.DataFrame, target: str, task: str, budget: float, seed: int, out: Path) -> None:
        """Fit on rows with their label, and leave the model in the folder `out`."""

    def load(self, out: Path) -> Predict:
        """The model of that folder, ready to answer."""


class LightGBM:
    """LightGBM with its defaults; categories as codes, as many a script does it."""

    def fit(self, train: pd.DataFrame, target: str, task: str, budget: float, seed: int, out: Path) -> None:
        """A hundred rounds, whatever the budget."""
        import lightgbm

        x, y = train.drop(columns=target), train[target]
        levels = {
            name: sorted(x[name].dropna().astype(str).unique())
            for name in x.columns
            if not pd.api.types.is_numeric_dtype(x[name])
        }
        classes = None if task == "regression" else sorted(y.astype(str).unique())
        objective: dict[str, Any] = {"regression": {"objective": "regression"}, "binary": {"objective": "binary"}}.get(
            task, {"objective": "multiclass", "num_class": len(classes or ())}
        )
        label = y.to_numpy(np.float64) if classes is None else pd.Categorical(y.astype(str), classes).codes
        data = lightgbm.Dataset(_coded(x, levels), label=label)
        booster = lightgbm.train({**objective, "seed": seed, "num_threads": CORES, "verbosity": -1}, data)
        booster.save_model(str(out / "model.txt"))
        (out / "meta.json").write_text(json.dumps({"levels": levels, "classes": classes}), encoding="utf-8")

    def load(self, out: Path) -> Predict:
        """The booster behind the same codes."""
        import lightgbm

        booster = lightgbm.Booster(model_file=str(out / "model.txt"))
        meta = json.loads((out / "meta.json").read_bytes())

        def predict(rows: pd.DataFrame) -> pd.DataFrame:
            raw = np.asarray(booster.predict(_coded(rows, meta["levels"]), num_threads=1 if len(rows) == 1 else CORES))
            if meta["classes"] is None:
                return pd.DataFrame({"prediction": raw}, index=rows.index)
            both = np.column_stack([1.0 - raw, raw]) if raw.ndim == 1 else raw
            return pd.DataFrame(both, columns=meta["classes"], index=rows.index)

        return predict


def _coded(x: pd.DataFrame, levels: Mapping[str, list[str]]) -> np.ndarray[Any, np.dtype[np.float64]]:
    coded = np.empty(x.shape)
    for at, name in enumerate(x.columns):
        if name in levels:
            codes = {level: float(code) for code, level in enumerate(levels[name])}
            coded[:, at] = [codes.get(str(cell), np.nan) for cell in x[name].tolist()]
        else:
            coded[:, at] = x[name].to_numpy(np.float64)
    return coded


class Flaml:
    """FLAML's AutoML with its defaults, told the budget and the metric."""

    def fit(self, train: pd.DataFrame, target: str, task: str, budget: float, seed: int, out: Path) -> None:
        """Search for `budget` seconds; FLAML then fits its best again on all rows."""
        from flaml import AutoML  # type: ignore[import-not-found]  # lives in the peer's environment

        metric = {"binary": "roc_auc", "multiclass": "log_loss", "regression": "rmse"}[task]
        automl = AutoML()
        automl.fit(
            dataframe=train, label=target, task="regression" if task == "regression" else "classification",
            metric=metric, time_budget=budget, seed=seed, n_jobs=CORES, verbose=0,
        )  # fmt: skip
        automl.pickle(str(out / "automl.pkl"))
        print(json.dumps({"best": automl.best_estimator, "trials": len(automl.config_history or ())}), file=sys.stderr)

    def load(self, out: Path) -> Predict:
        """What FLAML's own `pickle` wrote, which nothing but FLAML ever reads."""
        from flaml import AutoML

        automl = AutoML.load_pickle(str(out / "automl.pkl"))

        found = getattr(automl, "classes_", None)
        classes = [] if found is None else [str(each) for each in found]

        def predict(rows: pd.DataFrame) -> pd.DataFrame:
            if not classes:
                return pd.DataFrame({"prediction": automl.predict(rows)}, index=rows.index)
            return pd.DataFrame(automl.predict_proba(rows), columns=classes, index=rows.index)

        return predict


class AutoGluon:
    """AutoGluon's tabular predictor with one of its presets."""

    def __init__(self, preset: str) -> None:
        self.preset = preset

    def fit(self, train: pd.DataFrame, target: str, task: str, budget: float, seed: int, out: Path) -> None:
        """Fit for at most `budget` seconds. The predictor has no seed of its own: each split is another draw."""
        from autogluon.tabular import TabularPredictor  # type: ignore[import-not-found]  # lives in the peer's environment

        metric = {"binary": "roc_auc", "multiclass": "log_loss", "regression": "root_mean_squared_error"}[task]
        predictor = TabularPredictor(label=target, problem_type=task, eval_metric=metric, path=str(out), verbosity=1)
        predictor.fit(train, presets=self.preset, time_limit=budget, num_cpus=CORES, num_gpus=0)
        print(json.dumps({"best": predictor.model_best, "models": predictor.model_names()}), file=sys.stderr)

    def load(self, out: Path) -> Predict:
        """The predictor with its models kept in memory, as its documentation advises for single rows."""
        from autogluon.tabular import TabularPredictor

        predictor = TabularPredictor.load(str(out))
        predictor.persist()
        regression = predictor.problem_type == "regression"

        def predict(rows: pd.DataFrame) -> pd.DataFrame:
            if regression:
                return pd.DataFrame({"prediction": predictor.predict(rows)})
            found: pd.DataFrame = predictor.predict_proba(rows)
            return found.rename(columns=str)

        return predict


PEERS: Mapping[str, Peer] = {
    "lightgbm": LightGBM(),
    "flaml": Flaml(),
    "autogluon_medium": AutoGluon("medium_quality"),
    "autogluon_best": AutoGluon("best_quality"),
}


def latency(predict: Predict, rows: pd.DataFrame, calls: int) -> dict[str, float]:
    """Microseconds of one row, given as a frame that was made before; fewer calls than asked when they take a minute."""
    # Made of a dict, a row would lose its columns' types, and some peers then fail on a missing category.
    singles = [rows.iloc[[at % len(rows)]] for at in range(WARM_UP + calls)]
    taken: list[float] = []
    began = time.perf_counter()
    for at, single in enumerate(singles):
        before = time.perf_counter()
        predict(single)
        after = time.perf_counter()
        if at >= WARM_UP:
            taken.append(1e6 * (after - before))
            if after - began > LATENCY_SECONDS:
                break
    return {
        "median": round(float(np.median(taken)), 1),
        "p95": round(float(np.percentile(taken, 95)), 1),
        "calls": len(taken),
    }


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    fit, predict = verbs.add_parser("fit"), verbs.add_parser("predict")
    for verb in (fit, predict):
        verb.add_argument("peer", choices=PEERS)
    fit.add_argument("--train", type=Path, required=True)
    fit.add_argument("--target", required=True)
    fit.add_argument("--task", choices=("binary", "multiclass", "regression"), required=True)
    fit.add_argument("--budget", type=float, required=True)
    fit.add_argument("--seed", type=int, required=True)
    fit.add_argument("--out", type=Path, required=True)
    predict.add_argument("--bundle", type=Path, required=True)
    predict.add_argument("--data", type=Path, required=True)
    predict.add_argument("--out", type=Path)
    predict.add_argument("--latency", type=int, default=0)
    asked = parser.parse_args()
    peer = PEERS[asked.peer]
    if asked.verb == "fit":
        asked.out.mkdir(parents=True, exist_ok=True)
        peer.fit(pd.read_csv(asked.train), asked.target, asked.task, asked.budget, asked.seed, asked.out)
        return
    rows, answer = pd.read_csv(asked.data), peer.load(asked.bundle)
    if asked.out is not None:
        found = answer(rows)
        found.columns = [name if name == "prediction" else f"proba_{name}" for name in found.columns]
        found.to_csv(asked.out, index=False)
    if asked.latency:
        print("LATENCY " + json.dumps(latency(answer, rows, asked.latency)))


if __name__ == "__main__":
    _main()
