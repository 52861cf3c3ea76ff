"""Trials in MLflow: a child run each, in one transaction, just as MLflow's own way would write them."""

import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from esteira.registry import Registry, mlflow_mirror
from esteira.registry.mlflow_mirror import Mirror
from esteira.settings import Settings
from tests.stores import sqlite_template
from tests.test_registry import LINE, client, make_bundle, put, template

__all__ = ["sqlite_template", "template"]


def _trial(number: int) -> dict[str, Any]:
    """A row of the leaderboard as a search leaves it."""
    return {
        "number": number, "kind": "lightgbm", "params": {"num_leaves": 31, "bad:name": 0.1}, "recipe": {"ratios": 3},
        "origin": "tpe", "score": 0.9 + number / 1e4, "deviation": None, "folds": [0.9, None], "row_us": 12.5,
        "bytes": 1000, "state": "complete", "why": "", "weight": 0.0, "metric": "roc_auc",
    }  # fmt: skip


@pytest.fixture
def settings(tmp_path: Path, template: Path) -> Settings:
    home = tmp_path / "home"
    home.mkdir()
    shutil.copy(template, home / "mlflow.db")
    return Settings(home=home)


def _logged(settings: Settings, trials: list[dict[str, Any]], name: str) -> list[Any]:
    """The child runs of a new run, in the order of their names."""
    mirror = Mirror(settings)
    location = (settings.home / "artifacts").as_uri()
    experiment, parent = mirror.start_run(experiment=name, location=location, name="r", tags={}, params={}, metrics={})
    mirror.log_trials(experiment, parent, trials)
    found = client(settings).search_runs([experiment], f"tags.`mlflow.parentRunId` = '{parent}'")
    return sorted(found, key=lambda run: str(run.info.run_name))


def _said(run: Any) -> tuple[Any, ...]:
    """A run without what is its own: ids, times, its parent."""
    tags = {key: value for key, value in run.data.tags.items() if key != "mlflow.parentRunId"}
    place = run.info.artifact_uri.rpartition("/artifacts/")[2].replace(run.info.run_id, "RUN")
    info = run.info
    return (
        info.run_name,
        info.status,
        info.lifecycle_stage,
        info.user_id,
        place,
        tags,
        run.data.metrics,
        run.data.params,
    )


def test_a_trial_is_the_same_run_by_one_transaction_as_by_mlflows_own_way(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    trials = [_trial(1), {"number": 2, "kind": "constant", "params": {}, "score": None, "why": "no split"}]

    at_once = _logged(settings, trials, "once")
    monkeypatch.setattr(mlflow_mirror, "SqlAlchemyStore", type(None))
    one_by_one = _logged(settings, trials, "one-by-one")

    assert [_said(run) for run in one_by_one] == [_said(run) for run in at_once]
    first = at_once[0]
    assert {"num_leaves": "31", "bad_name": "0.1", "recipe.ratios": "3", "kind": "lightgbm"} == first.data.params
    assert {"score": 0.9001, "row_us": 12.5, "bytes": 1000.0, "weight": 0.0} == first.data.metrics
    assert "no split" == at_once[1].data.tags["esteira.why"]
    assert all(run.info.end_time >= run.info.start_time for run in at_once)
    history = client(settings).get_metric_history(first.info.run_id, "score")
    assert [0.9001] == [metric.value for metric in history]


def test_a_hundred_trials_take_less_than_two_seconds(settings: Settings) -> None:
    """Of this process's own time: what a busy machine adds is not ours."""
    mirror = Mirror(settings)
    location = (settings.home / "artifacts").as_uri()
    experiment, parent = mirror.start_run(experiment="e", location=location, name="r", tags={}, params={}, metrics={})

    began = time.process_time()
    mirror.log_trials(experiment, parent, [_trial(number) for number in range(1, 101)])
    took = time.process_time() - began

    assert took < 2.0
    assert 101 == len(client(settings).search_runs([experiment], max_results=500))


def test_the_run_of_a_search_points_at_the_version_that_its_best_trial_became(
    settings: Settings, tmp_path: Path
) -> None:
    version = put(Registry(settings), make_bundle(tmp_path / "bundle"), trials=[_trial(1), _trial(2)])

    mlflow = client(settings)
    run = mlflow.get_run(version.mlflow_run_id)
    name, number = run.data.tags["best_model_id"].removeprefix("models:/").split("/")
    assert (LINE.replace("@", "--"), str(version.version)) == (name, number)
    registered = mlflow.get_model_version(name, number)
    assert (run.info.run_id, version.bundle_id) == (registered.run_id, registered.tags["bundle_id"])
    assert {"roc_auc": 0.9} == run.data.metrics
