"""What a careful person would write in one file with the same libraries, without Esteira. Prints one JSON line of seconds and scores.

It imports nothing of Esteira; the server that it boots is another process.
"""

import os

# The cure for spinning OpenMP threads belongs to a careful script as well.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

import argparse
import http.client
import json
import secrets
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

CLOCK: dict[str, float] = {}
Spaces = list[dict[str, Any]]


class Timed:
    """Adds the seconds of a block to CLOCK."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> None:
        self.began = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        CLOCK[self.name] = CLOCK.get(self.name, 0.0) + time.perf_counter() - self.began


with Timed("imports"), warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import great_expectations as gx
    import mlflow
    import numpy as np
    import optuna
    import pandas as pd
    import xgboost
    from sklearn.compose import make_column_transformer
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.metrics import accuracy_score, f1_score, log_loss, mean_absolute_error, r2_score, roc_auc_score
    from sklearn.model_selection import KFold as PlainKFold
    from sklearn.model_selection import StratifiedKFold, train_test_split
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import LabelEncoder, OneHotEncoder, OrdinalEncoder, StandardScaler


def read(path: Path, target: str) -> tuple[pd.DataFrame, pd.Series]:
    """The table and its label."""
    frame = pd.read_csv(path, skipinitialspace=True)
    return frame.drop(columns=[target]), frame[target]


def check(x: pd.DataFrame, y: pd.Series) -> int:
    """A Great Expectations suite: types, ranges, categories, a label in every row. Returns how many expectations held."""
    whole = x.assign(**{str(y.name): y})
    expectations: list[Any] = [gx.expectations.ExpectColumnValuesToNotBeNull(column=str(y.name))]
    for column in x:
        expectations.append(gx.expectations.ExpectColumnToExist(column=column))
        if pd.api.types.is_numeric_dtype(x[column]):
            low, high = float(x[column].min()), float(x[column].max())
            expectations.append(
                gx.expectations.ExpectColumnValuesToBeBetween(column=column, min_value=low, max_value=high)
            )
        else:
            known = sorted(x[column].dropna().unique())
            expectations.append(gx.expectations.ExpectColumnValuesToBeInSet(column=column, value_set=known))
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False}
    batch = (
        context.data_sources.add_pandas("rows").add_dataframe_asset("rows").add_batch_definition_whole_dataframe("all")
    )
    suite = context.suites.add(gx.ExpectationSuite(name="suite", expectations=expectations))
    definition = context.validation_definitions.add(gx.ValidationDefinition(name="all", data=batch, suite=suite))
    outcome = definition.run(batch_parameters={"dataframe": whole})
    return sum(bool(result.success) for result in outcome.results)


def build(kind: str, params: dict[str, Any], x: pd.DataFrame, classes: int, seed: int) -> Any:
    """A pipeline of one kind; category columns as codes for trees, one-hot for the linear model."""
    words = [name for name in x if not pd.api.types.is_numeric_dtype(x[name])]
    numbers = [name for name in x if name not in words]
    codes = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=np.nan, encoded_missing_value=np.nan)
    if kind == "linear":
        one_hot = make_pipeline(
            SimpleImputer(strategy="constant", fill_value="missing"), OneHotEncoder(handle_unknown="ignore")
        )
        scaled = make_pipeline(SimpleImputer(strategy="median", add_indicator=True), StandardScaler())
        model = LogisticRegression(max_iter=1000, **params) if classes else Ridge(**params)
        return make_pipeline(make_column_transformer((scaled, numbers), (one_hot, words)), model)
    prepared = make_column_transformer((codes, words), ("passthrough", numbers))
    if kind == "xgboost":
        booster = xgboost.XGBClassifier if classes else xgboost.XGBRegressor
        return make_pipeline(prepared, booster(**params, random_state=seed, n_jobs=-1))
    histogram = HistGradientBoostingClassifier if classes else HistGradientBoostingRegressor
    model = histogram(**params, categorical_features=list(range(len(words))), early_stopping=False, random_state=seed)
    if max((x[name].nunique() for name in words), default=0) > 250:
        model.set_params(categorical_features=None)
    return make_pipeline(prepared, model)


def score(y: Any, answers: Any, classes: int) -> float:
    """ROC-AUC for two classes, macro F1 for more, R2 for numbers."""
    if classes == 0:
        return float(r2_score(y, answers))
    if classes == 2:
        return float(roc_auc_score(y, answers[:, 1]))
    return float(f1_score(y, answers.argmax(1), average="macro"))


def answers_of(model: Any, x: pd.DataFrame, classes: int) -> Any:
    return model.predict_proba(x) if classes else model.predict(x)


def search(
    x: pd.DataFrame, y: Any, spaces: Spaces, classes: int, trials: int, seed: int
) -> tuple[Any, list[dict[str, Any]]]:
    """Seeded TPE over the kinds and their spaces, each kind's defaults first; the constant is the baseline, not a trial's guess.

    Small tables are scored on three folds, larger ones on the first. Returns the winner fitted on all rows, and the trials.
    """
    splitter = (StratifiedKFold if classes else PlainKFold)(3, shuffle=True, random_state=seed)
    folds = list(splitter.split(x, y))[: 3 if len(x) < 3000 else 1]
    tried: list[dict[str, Any]] = []

    def objective(trial: optuna.Trial) -> float:
        kind = trial.suggest_categorical("kind", [space["kind"] for space in spaces])
        space = next(space for space in spaces if space["kind"] == kind)
        params = dict(space["defaults"])
        for name, (form, *bounds) in space["space"].items():
            if form == "int":
                params[name] = trial.suggest_int(f"{kind}.{name}", *bounds)
            elif form == "choice":
                params[name] = trial.suggest_categorical(f"{kind}.{name}", bounds[0])
            else:
                params[name] = trial.suggest_float(f"{kind}.{name}", *bounds, log=form == "log")
        scores = []
        for rows, held in folds:
            if kind == "constant":
                scores.append(0.0 if classes == 0 else 0.5 if classes == 2 else 1 / classes)
                continue
            model = build(kind, params, x.iloc[rows], classes, seed).fit(x.iloc[rows], y[rows])
            scores.append(score(y[held], answers_of(model, x.iloc[held], classes), classes))
        tried.append({"kind": kind, "params": params, "score": float(np.mean(scores))})
        return float(np.mean(scores))

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed, warn_independent_sampling=False)
    )
    for space in spaces:
        study.enqueue_trial(
            {"kind": space["kind"], **{f"{space['kind']}.{name}": value for name, value in space["defaults"].items()}}
        )
    study.optimize(objective, n_trials=trials)
    best = max(tried, key=lambda trial: trial["score"])
    return build(best["kind"], best["params"], x, classes, seed).fit(x, y), tried


def evaluate(y: Any, answers: Any, y_train: Any, classes: int, seed: int) -> dict[str, float]:
    """Scores, and the 95 % interval of the advantage over the constant: 1,000 paired resamples of each row's own loss."""
    found = {"primary": score(y, answers, classes)}
    if classes:
        found["accuracy"] = float(accuracy_score(y, answers.argmax(1)))
        found["log_loss"] = float(log_loss(y, answers, labels=np.arange(classes)))
        found["f1_macro"] = float(f1_score(y, answers.argmax(1), average="macro"))
        constant = np.bincount(y_train, minlength=classes) / len(y_train)
        own = -np.log(np.clip(answers[np.arange(len(y)), y], 1e-15, 1))
        advantage = -np.log(constant[y]) - own
    else:
        found["mae"] = float(mean_absolute_error(y, answers))
        advantage = np.abs(y - np.mean(y_train)) - np.abs(y - answers)
    rng = np.random.default_rng(seed)
    means = np.array([advantage[rng.integers(0, len(y), len(y))].mean() for _ in range(1000)])
    found["advantage_low"], found["advantage_high"] = (float(value) for value in np.percentile(means, [2.5, 97.5]))
    primary = [score(y[rows], answers[rows], classes) for rows in (rng.integers(0, len(y), len(y)) for _ in range(200))]
    found["primary_low"], found["primary_high"] = (float(value) for value in np.percentile(primary, [2.5, 97.5]))
    return found


def register(folder: Path, name: str, model: Any, tried: list[dict[str, Any]], metrics: dict[str, float]) -> str:
    """A run with a child a trial, metrics, the model as an artefact, a registered version and an alias."""
    mlflow.set_tracking_uri(f"sqlite:///{folder / 'mlflow.db'}")
    mlflow.create_experiment(name, artifact_location=str(folder / "artefacts"))
    mlflow.set_experiment(name)
    client = mlflow.MlflowClient()
    with mlflow.start_run() as run:
        mlflow.log_metrics(metrics)
        for number, trial in enumerate(tried):
            with mlflow.start_run(nested=True, run_name=f"trial {number}"):
                mlflow.log_params({"kind": trial["kind"], **trial["params"]})
                mlflow.log_metric("score", trial["score"])
        last = model[-1]
        saved = folder / "model.json"
        if hasattr(last, "save_model"):
            last.save_model(saved)
        else:
            saved.write_text(
                json.dumps({"kind": type(last).__name__, "params": str(last.get_params())}), encoding="utf-8"
            )
        mlflow.log_artifact(str(saved), "model")
    client.create_registered_model(name)
    version = client.create_model_version(name, f"{run.info.artifact_uri}/model", run_id=run.info.run_id)
    client.set_registered_model_alias(name, "champion", version.version)
    return str(version.version)


def ask(bundle: Path) -> dict[str, Any]:
    """Boot the server, wait until it is ready, ask one row, end it."""
    key = secrets.token_hex(16)
    server = subprocess.Popen(
        [sys.executable, "-m", "serving", "serve", "--bundle", str(bundle), "--port", "0"],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env={**os.environ, "ESTEIRA_API_KEY": key},
    )  # fmt: skip
    try:
        assert server.stdout is not None
        address = next(line.split("http://")[1].strip() for line in server.stdout if line.startswith("READY "))
        row = json.loads((bundle / "golden.json").read_text(encoding="utf-8"))["rows"][0]
        connection = http.client.HTTPConnection(address, timeout=30)
        connection.request("POST", "/v1/predict", json.dumps({"rows": [row]}), {"Authorization": f"Bearer {key}"})
        answer: dict[str, Any] = json.loads(connection.getresponse().read())
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(30)
    return answer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--target", required=True)
    parser.add_argument("--candidates", type=Path, required=True, help="JSON: kinds with their spaces and defaults")
    parser.add_argument("--bundle", type=Path, required=True, help="what the server serves")
    parser.add_argument(
        "--test-rows", type=Path, help="JSON: rows to hold back, from 0, so that scores can be compared"
    )
    parser.add_argument("--out", type=Path, required=True, help="a fresh folder for MLflow's state")
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--seed", type=int, default=42)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    warnings.simplefilter("ignore")

    with Timed("read"):
        x, labels = read(options.data, options.target)
    with Timed("check"):
        held = check(x, labels)
    with Timed("split"):
        many = labels.nunique() > 20 and pd.api.types.is_numeric_dtype(labels)
        y = labels.to_numpy(np.float64) if many else LabelEncoder().fit_transform(labels)
        classes = 0 if many else int(y.max()) + 1
        train, test = train_test_split(
            np.arange(len(x)), test_size=0.2, random_state=options.seed, stratify=None if many else y
        )
        if options.test_rows is not None:
            test = np.array(json.loads(options.test_rows.read_text(encoding="utf-8")))
            train = np.setdiff1d(np.arange(len(x)), test)
        x_train, x_test, y_train, y_test = x.iloc[train], x.iloc[test], y[train], y[test]
    with Timed("train"):
        spaces = json.loads(options.candidates.read_text(encoding="utf-8"))
        model, tried = search(x_train, y_train, spaces, classes, options.trials, options.seed)
    with Timed("evaluate"):
        metrics = evaluate(y_test, answers_of(model, x_test, classes), y_train, classes, options.seed)
    with Timed("server"):
        answer = ask(options.bundle)
    with Timed("register"):
        version = register(options.out, "plain", model, tried, metrics)
    print(
        json.dumps(
            {
                "seconds": {name: round(value, 3) for name, value in CLOCK.items()},
                "metrics": metrics,
                "expectations_held": held,
                "best": max(tried, key=lambda trial: trial["score"])["kind"],
                "version": version,
                "answer": answer["rows"][0]["prediction"],
            }
        ),
        flush=True,
    )


if __name__ == "__main__":
    main()
