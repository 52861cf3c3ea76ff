"""A search is shared by workers: pods of a loop before train on a cluster, processes beside train here; one worker changes nothing."""

import ast
import copy
import inspect
import json
import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from components import search, train
from esteira.automl import engine
from esteira.automl.engine import work
from esteira.errors import ConfigError
from esteira.project import read_project
from pipelines import ir_check, ops
from pipelines.compile import defaults, write
from pipelines.resources import read_resources
from pipelines.shape import SEARCH
from tests.test_train import LINE, _prepared

ROOT = Path(__file__).resolve().parents[1]
PARAMS = train.Params(trials=6, workers=2, kinds=("constant", "linear"), reference_rows=10)


class Documents(NamedTuple):
    """A compiled pipeline: pipeline spec and platform spec."""

    spec: Any
    platform: Any


def compiled(folder: Path, workers: int, **changed: Any) -> Documents:
    """The tabular line's pipeline with so many workers."""
    plan = defaults("tabular", read_project(ROOT / "params.yaml"))
    plan = plan.model_copy(update={"sections": {**plan.sections, "train": {"workers": workers} if workers > 1 else {}}})
    resources = read_resources("tabular")
    made = write(plan, folder, resources=resources.model_copy(update=changed))
    assert [] == ir_check.check(made.ir, made.native)
    return Documents(*yaml.safe_load_all(made.ir.read_text(encoding="utf-8")))


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Documents:
    return compiled(tmp_path_factory.mktemp("three"), 3)


def _asked(documents: Documents, step: str) -> Any:
    return documents.platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"][f"exec-{step}"]


def _container(documents: Documents, step: str) -> Any:
    return documents.spec["deploymentSpec"]["executors"][f"exec-{step}"]["container"]


def _loop(documents: Documents) -> Any:
    return next(task for _, task in ir_check._all_tasks(documents.spec) if "parameterIterator" in task)


def test_with_one_worker_the_pipeline_is_the_one_without_workers(tmp_path: Path) -> None:
    one = compiled(tmp_path, 1)
    golden = Documents(*yaml.safe_load_all((ROOT / "tests/golden/tabular.yaml").read_text(encoding="utf-8")))

    assert golden == one
    assert "search" not in json.dumps(one.platform)


def test_three_workers_are_three_pods_at_once_for_which_train_waits(three: Documents) -> None:
    tasks = three.spec["root"]["dag"]["tasks"]

    assert {"featurize", "validate"} == set(tasks["search"]["dependentTasks"])
    assert {"featurize", "validate", "search"} == set(tasks["train"]["dependentTasks"])
    assert [0, 1, 2] == json.loads(_loop(three)["parameterIterator"]["items"]["raw"])
    assert 3 == _loop(three)["iteratorPolicy"]["parallelismLimit"]


def test_a_worker_is_given_what_train_is_given_and_asks_for_what_train_asks_for(three: Documents) -> None:
    tasks = three.spec["root"]["dag"]["tasks"]
    assert tasks["train"]["inputs"]["artifacts"] == tasks["search"]["inputs"]["artifacts"]
    assert tasks["train"]["inputs"]["parameters"] == tasks["search"]["inputs"]["parameters"]

    assert _container(three, "train")["resources"] == _container(three, "search")["resources"]
    assert _container(three, "train")["image"] == _container(three, "search")["image"]
    assert _asked(three, "train") == _asked(three, "search")
    told = [one["secretName"] for one in _asked(three, "search")["secretAsEnv"]]
    assert ["esteira-study"] == told
    (worker,) = [task for name, task in ir_check._all_tasks(three.spec) if "retryPolicy" in task and name == "search"]
    assert tasks["train"]["retryPolicy"] == worker["retryPolicy"]


def test_a_worker_may_ask_for_something_of_its_own(tmp_path: Path) -> None:
    steps = read_resources("tabular").steps
    own = compiled(tmp_path, 2, steps={**steps, "search": steps["train"].model_copy(update={"cpu": 8.0})})

    assert "8" == _container(own, "search")["resources"]["resourceCpuLimit"]
    assert "2" == _container(own, "train")["resources"]["resourceCpuLimit"]


def test_workers_that_would_not_know_where_to_meet_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no secret gives ESTEIRA_STUDY_URL") as error:
        compiled(tmp_path / "out", 2, secrets=())
    assert "no_study_url" == error.value.code
    assert not (tmp_path / "out").exists()


BREACHES: dict[str, tuple[str, Callable[[Documents], Any]]] = {
    "one worker only": ("workers", lambda c: _loop(c)["parameterIterator"]["items"].update(raw="[0]")),
    "a loop over nothing": ("workers", lambda c: _loop(c)["parameterIterator"].update(items={})),
    "not all at once": ("workers", lambda c: _loop(c)["iteratorPolicy"].update(parallelismLimit=2)),
    "a worker that does not know where": ("workers", lambda c: _asked(c, "search").pop("secretAsEnv")),
    "a train that does not know where": ("workers", lambda c: _asked(c, "train").pop("secretAsEnv")),
    "a train that does not wait": (
        "steps", lambda c: c.spec["root"]["dag"]["tasks"]["train"].update(dependentTasks=["featurize", "validate"])
    ),
    "a cache within the loop": (
        "cache",
        lambda c: next(task for name, task in ir_check._all_tasks(c.spec) if "retryPolicy" in task and name == "search")
        .update(cachingOptions={"enableCache": True}),
    ),
    "no limit of memory": ("resources", lambda c: _container(c, "search")["resources"].pop("resourceMemoryLimit")),
}  # fmt: skip


@pytest.mark.parametrize("breach", BREACHES)
def test_a_breach_is_found_by_its_rule(breach: str, three: Documents) -> None:
    rule, change = BREACHES[breach]
    broken = copy.deepcopy(three)
    change(broken)

    found = ir_check.check_text("\n---\n".join(map(json.dumps, broken)))

    assert rule in {finding.rule for finding in found}, found


def test_the_kfp_door_of_a_worker_gives_the_step_what_it_takes() -> None:
    taken = set(inspect.signature(search.run).parameters)
    body = ast.parse(textwrap.dedent(inspect.getsource(ops.search.python_func)))
    (call,) = [node for node in ast.walk(body) if isinstance(node, ast.Call) and ast.unparse(node.func) == "step.run"]

    assert taken == {str(keyword.arg) for keyword in call.keywords}
    given = set(inspect.signature(ops.search.python_func).parameters)
    assert {"params", "out", "worker", *SEARCH.takes, *SEARCH.needs} == given


# The workers themselves, on rows.


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _prepared(tmp_path_factory.mktemp("prepared"), "binary")


def _words(folder: Path) -> dict[str, Any]:
    return {"features": folder / "features", "contract": folder / "contract.yaml", "line": LINE, "seed": 42}


def test_a_worker_that_is_not_told_where_to_meet_says_what_to_do(
    prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ESTEIRA_STUDY_URL", raising=False)

    with pytest.raises(ConfigError, match="ESTEIRA_STUDY_URL is not set") as error:
        search.run(**_words(prepared), params=PARAMS)
    assert "no_study_url" == error.value.code


def test_one_worker_meets_nobody(prepared: Path, monkeypatch: pytest.MonkeyPatch, esteira_home: Path) -> None:
    alone = PARAMS.model_copy(update={"workers": 1})

    with search.meeting(**_words(prepared), params=alone) as storage:
        assert "" == storage
    monkeypatch.setenv("ESTEIRA_STUDY_URL", "postgresql://db/studies")
    with search.meeting(**_words(prepared), params=PARAMS) as storage:
        assert "postgresql://db/studies" == storage
    assert not esteira_home.exists()


@pytest.mark.slow
@pytest.mark.parametrize("place", ["journal", "postgresql"])
def test_two_workers_make_the_trials_that_train_then_ends_on(
    place: str, prepared: Path, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Processes as the pods start them, a real storage, and the step train after them: it makes no trial of its own."""
    storage = request.getfixturevalue("postgres_url") if place == "postgresql" else str(tmp_path / "study.journal")
    monkeypatch.setenv("ESTEIRA_STUDY_URL", storage)
    words = _words(prepared)
    started = _start(2, words)
    told = [json.loads(process.communicate(timeout=120)[0]) for process in started]
    before = _told(storage)
    report = train.run(**words, out=tmp_path / "trained", params=PARAMS)

    assert [0, 1] == [one["worker"] for one in told]
    assert PARAMS.trials == sum(one["trials"] for one in told)
    assert PARAMS.trials == before == _told(storage)
    assert report.score > (report.baseline or 0)


@pytest.mark.slow
def test_train_makes_the_trials_of_a_worker_that_was_killed(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = str(tmp_path / "study.journal")
    monkeypatch.setenv("ESTEIRA_STUDY_URL", storage)
    words = _words(prepared)
    (worker,) = _start(1, words)
    deadline = time.monotonic() + 120
    # The portfolio is queued and its first trials are under way.
    while not Path(storage).exists() or Path(storage).read_bytes().count(b'"op_code":6') < 2:
        assert time.monotonic() < deadline
        assert worker.poll() is None
        time.sleep(0.002)
    worker.kill()
    worker.communicate()
    before = _told(storage)
    train.run(**words, out=tmp_path / "trained", params=PARAMS)

    assert before < PARAMS.trials
    assert PARAMS.trials == _told(storage)


def _start(count: int, words: dict[str, Any]) -> list[subprocess.Popen[str]]:
    """Workers, started as the pods start them."""
    command = [
        sys.executable, "-m", "components.search", "--json", "--params", PARAMS.model_dump_json(),
        *(part for name, value in words.items() for part in (f"--{name}", str(value))),
    ]  # fmt: skip
    return [
        subprocess.Popen([*command, "--worker", str(worker)], stdout=subprocess.PIPE, text=True, cwd=ROOT)
        for worker in range(count)
    ]


def _told(storage: str) -> int:
    import optuna

    from esteira.automl.trial_log import TrialLog

    with_name = optuna.get_all_study_names(_optuna(storage))
    logs = [TrialLog.open(storage, name) for name in with_name if len(name) == 32]
    counts = [sum(entry.state == "finished" for entry in log.entries()) for log in logs]
    for log in logs:
        log.close()
    return max(counts)


def _optuna(storage: str) -> Any:
    from optuna.storages import JournalStorage, RDBStorage
    from optuna.storages.journal import JournalFileBackend

    from esteira.automl import trial_log

    if "://" not in storage:
        return JournalStorage(JournalFileBackend(storage))
    return RDBStorage(storage, engine_kwargs={"connect_args": trial_log._CONNECT})


@pytest.mark.slow
def test_here_the_other_workers_are_processes_that_end_with_train(
    prepared: Path, esteira_home: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """One whose words are refused ends by itself, and a line says how."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    with search.meeting(**_words(prepared), params=PARAMS) as storage:
        assert str(esteira_home / "studies" / f"{LINE}.journal") == storage
        monkeypatch.setenv("ESTEIRA_STUDY_URL", storage)
        train.run(**_words(prepared), out=prepared / "here", params=PARAMS)
    assert "ended with" not in capfd.readouterr().err
    monkeypatch.delenv("ESTEIRA_STUDY_URL")

    wrong = PARAMS.model_copy(update={"kinds": ("oracle",)})
    with search.meeting(**_words(prepared), params=wrong):
        # Wait until it ended, and leave its end to be looked at.
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)
    assert "worker 1 ended with 2:" in capfd.readouterr().err


def _until(true: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_worker_that_dies_with_first_trials_in_its_hands_does_not_keep_the_others_waiting(tmp_path: Path) -> None:
    """What comes after the first trials is decided when all of them are told, and a dead worker tells nothing."""
    from tests.search_worker import WORDS, X, Y

    storage = str(tmp_path / "study.journal")
    told: list[int] = []
    words = [sys.executable, "-m", "tests.search_worker", storage, "3"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=ROOT) as lost:
        assert lost.stdout is not None
        assert "HANGS" == lost.stdout.readline().strip()
        other = threading.Thread(
            target=lambda: work(X, Y, **WORDS, storage=storage, progress=lambda done, _of, _row: told.append(done)),
            daemon=True,
        )
        other.start()
        _until(lambda: bool(told))
        lost.kill()
        lost.wait()
        other.join(timeout=120)

    assert not other.is_alive()
    found = engine.search(X, Y, **WORDS, storage=storage)
    assert set(range(1, 15)) == {row["number"] for row in found.leaderboard if row["kind"] != "blend"}
    assert {"recipe"} <= {row["origin"] for row in found.leaderboard}
