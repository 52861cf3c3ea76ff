"""The DAG is said once: the compiled pipeline, the local runner and the command line all follow `pipelines.shape`."""

import importlib
import inspect
from pathlib import Path
from typing import Any

import pytest
import yaml

from esteira.project import read_project
from pipelines import ops
from pipelines.compile import defaults, write
from pipelines.forkserver import PRELOAD
from pipelines.shape import NAMES, STEPS

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Any:
    plan = defaults("tabular", read_project(ROOT / "params.yaml"))
    text = write(plan, tmp_path_factory.mktemp("ir")).ir.read_text(encoding="utf-8")
    return next(iter(yaml.safe_load_all(text)))


def test_the_compiled_pipeline_has_the_steps_of_the_shape_and_waits_for_what_they_need(compiled: Any) -> None:
    tasks = compiled["root"]["dag"]["tasks"]

    assert set(NAMES) == set(tasks)
    for step in STEPS:
        assert sorted(set(step.needs.values())) == sorted(tasks[step.name].get("dependentTasks", []))


def test_no_step_trusts_a_cache_that_keys_on_names(compiled: Any) -> None:
    assert all(
        not task["cachingOptions"].get("enableCache", False) for task in compiled["root"]["dag"]["tasks"].values()
    )


def test_a_gate_step_is_never_tried_again(compiled: Any) -> None:
    assert "retryPolicy" not in compiled["root"]["dag"]["tasks"]["evaluate"]


def test_the_lines_defaults_stand_in_the_compiled_file(compiled: Any) -> None:
    parameters = compiled["root"]["inputDefinitions"]["parameters"]

    assert "data/breast_cancer.csv" == parameters["source"]["defaultValue"]
    assert "diagnosis" == parameters["target"]["defaultValue"]


@pytest.mark.parametrize("step", STEPS, ids=NAMES)
def test_the_kfp_door_of_a_step_takes_what_the_shape_gives_it(step: Any) -> None:
    taken = set(inspect.signature(getattr(ops, step.name).python_func).parameters)

    assert {"params", "out", *step.takes, *step.needs} == taken - {"page", "metrics", "classification"}


@pytest.mark.parametrize("step", STEPS, ids=NAMES)
def test_every_step_has_params_that_refuse_unknown_keys_and_a_group_to_start_from(step: Any) -> None:
    params = importlib.import_module(f"components.{step.name}").Params

    assert "forbid" == params.model_config["extra"]
    assert params.model_config["frozen"]
    assert f"components.{step.name}" in PRELOAD[step.imports]
