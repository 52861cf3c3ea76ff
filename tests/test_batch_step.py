"""The pipeline of one step that answers rows in bulk: it compiles, asks the cluster for what it needs, and goes on after a try."""

import ast
import asyncio
import inspect
import json
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import click
import pytest
import yaml

from components import batch, door
from esteira.batch import Job, Stopped, Summary
from esteira.batch import run as answer
from esteira.cli import main
from esteira.errors import Refused
from esteira.registry import Registry
from esteira.registry.reference import version_of
from esteira.settings import load_settings
from pipelines import ir_check, ops
from pipelines.compile import Compiled, write_batch
from pipelines.resources import read_resources
from serving.deployments import FromRegistry
from serving.jobs import Jobs
from tests.batches import answered, contents, some_rows, write
from tests.small_bundle import make_bundle
from tests.test_registry import lead

LINE = "tabular@shop-buys"
PASSED = {"verdict": "pass", "rules": [{"rule": "made up", "outcome": "PASS", "value": 1, "bound": 0, "n": 2}]}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    return write_batch(LINE, tmp_path_factory.mktemp("ir"), prefix="registry.example.org/ml")


def _documents(compiled: Compiled) -> list[Any]:
    return list(yaml.safe_load_all(compiled.ir.read_text(encoding="utf-8")))


def test_it_is_one_step_that_holds_together(compiled: Compiled) -> None:
    spec, platform = _documents(compiled)

    assert [] == ir_check.check(compiled.ir, compiled.native, prefix="registry.example.org/ml")
    assert {"batch"} == set(spec["root"]["dag"]["tasks"])
    parameters = spec["root"]["inputDefinitions"]["parameters"]
    assert {"line", "source", "destination", "champion", "batch"} == set(parameters)
    assert (LINE, "@champion") == (parameters["line"]["defaultValue"], parameters["champion"]["defaultValue"])
    asked = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]["exec-batch"]
    given = {one["secretName"] for one in asked["secretAsEnv"]}
    assert {"esteira-pipeline", "esteira-s3"} == given
    retries = read_resources("tabular").steps["batch"].retries
    assert retries == spec["root"]["dag"]["tasks"]["batch"]["retryPolicy"]["maxRetryCount"]
    assert 0 < retries, "a try goes on where the one before it ended"


def test_the_same_line_gives_the_same_bytes_and_the_name_of_the_release_stays_its_own(
    compiled: Compiled, tmp_path: Path
) -> None:
    again = write_batch(LINE, tmp_path, prefix="registry.example.org/ml")

    assert compiled.ir.read_bytes() == again.ir.read_bytes()
    assert compiled.native.read_bytes() == again.native.read_bytes()
    assert again.name.endswith("-batch")
    assert ["tabular--shop-buys.batch.k8s.yaml", "tabular--shop-buys.batch.yaml"] == sorted(
        path.name for path in tmp_path.iterdir()
    )


def test_the_kfp_door_and_the_command_line_take_what_the_function_takes() -> None:
    taken = set(inspect.signature(batch.run).parameters)
    body = ast.parse(textwrap.dedent(inspect.getsource(ops.batch.python_func)))
    (call,) = [node for node in ast.walk(body) if isinstance(node, ast.Call) and ast.unparse(node.func) == "step.run"]
    options = {one.name for one in door.command("batch", "x").params if isinstance(one, click.Option)}

    assert taken == {str(keyword.arg) for keyword in call.keywords}
    assert taken - {"params"} == options - {"section", "pairs", "as_json"}


def _begin(job: Job) -> None:
    """Two parts of it."""
    told: list[Summary] = []
    with pytest.raises(Stopped):
        answer(job, stop=lambda: len(told) >= 2, tell=told.append)


def test_a_try_goes_on_where_the_one_before_it_ended(tmp_path: Path, esteira_home: Path) -> None:
    make_bundle(tmp_path / "bundle")
    data = write(tmp_path / "rows.csv", some_rows(500))
    job = Job(bundle=tmp_path / "bundle", data=str(data), out=str(tmp_path / "answers"), rows_per_part=100)
    _begin(job)
    assert 200 == len(answered(tmp_path / "answers"))

    report = batch.run(
        source=str(data), line=LINE, champion=str(tmp_path / "bundle"), destination=str(tmp_path / "answers"),
        out=tmp_path / "out", params=batch.Params(rows_per_part=100),
    )  # fmt: skip

    assert (500, 500, 0, 5, 1) == (report.rows, report.processed, report.error, report.parts, report.windows)
    assert report.model_dump(mode="json") == json.loads((tmp_path / "out" / "batch.json").read_text(encoding="utf-8"))
    assert list(range(1, 501)) == [row["row"] for row in answered(tmp_path / "answers")]


def test_without_a_destination_the_answers_are_the_steps_own_output(tmp_path: Path, esteira_home: Path) -> None:
    make_bundle(tmp_path / "bundle")
    data = write(tmp_path / "rows.jsonl", some_rows(20))

    report = batch.run(source=str(data), line=LINE, champion=str(tmp_path / "bundle"), out=tmp_path / "out")

    assert ("", 20) == (report.answers, len(answered(tmp_path / "out" / "answers")))


def test_a_line_without_a_champion_is_refused(tmp_path: Path, esteira_home: Path) -> None:
    with pytest.raises(Refused) as refused:
        batch.run(source="rows.csv", line=LINE, out=tmp_path / "out")
    assert "no_champion" == refused.value.code


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """Two versions of the line."""
    folder = tmp_path_factory.mktemp("registry")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ESTEIRA_HOME", str(folder / "home"))
        registry = Registry(load_settings())
        for number in (1, 2):
            make_bundle(folder / f"bundle{number}", weight=0.05 * number, card=True)
            registry.register(
                LINE, folder / f"bundle{number}", run_id=f"run{number}", data_hash="d" * 64, code_revision="unknown",
                params_hash="p" * 64, metrics={"roc_auc": 0.9}, verdict=PASSED,
            )  # fmt: skip
        yield registry


@pytest.fixture
def released(registry: Registry) -> Registry:
    """The first version is the champion."""
    lead(registry, 1, line=LINE)
    return registry


@pytest.mark.slow
def test_a_lines_champion_answers_by_every_door(
    released: Registry, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    champion = released.resolve(LINE)
    assert champion is not None
    data = write(tmp_path / "rows.csv", some_rows(50))

    report = batch.run(source=str(data), line=LINE, destination=str(tmp_path / "answers"), out=tmp_path / "out")
    with pytest.raises(SystemExit) as ended:
        main(["batch", "--line", LINE, "--data", str(data), "--out", str(tmp_path / "command"), "--json"])

    assert 0 == ended.value.code
    assert champion.bundle_id == report.bundle_id == json.loads(capsys.readouterr().out)["bundle_id"]
    assert answered(tmp_path / "answers") == answered(tmp_path / "command")
    with pytest.raises(SystemExit) as ended:
        main(["batch", "--line", "tabular@other", "--data", str(data), "--out", str(tmp_path / "no"), "--json"])
    assert 1 == ended.value.code
    assert "no_champion" == json.loads(capsys.readouterr().out)["error"]["code"]


@pytest.mark.slow
def test_a_try_after_a_promotion_goes_on_with_the_version_that_the_batch_began_with(
    released: Registry, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = released.resolve(LINE)
    assert first is not None
    data = write(tmp_path / "rows.csv", some_rows(500))
    answer(Job(bundle=released.fetch(first), data=str(data), out=str(tmp_path / "whole"), rows_per_part=100))
    for name in ("step", "command"):
        _begin(Job(bundle=released.fetch(first), data=str(data), out=str(tmp_path / name), rows_per_part=100))

    lead(released, 2, line=LINE)
    report = batch.run(source=str(data), line=LINE, destination=str(tmp_path / "step"), out=tmp_path / "out")
    with pytest.raises(SystemExit) as ended:
        main(["batch", "--line", LINE, "--data", str(data), "--out", str(tmp_path / "command"), "--json"])

    assert 0 == ended.value.code
    said = capsys.readouterr()
    assert first.bundle_id == report.bundle_id == json.loads(said.out)["bundle_id"]
    assert "goes on with version 1, which it began with; the champion is version 2 now" in said.err
    assert contents(tmp_path / "whole") == contents(tmp_path / "step") == contents(tmp_path / "command")
    champion = released.resolve(LINE)
    assert champion is not None
    anew = batch.run(source=str(data), line=LINE, destination=str(tmp_path / "anew"), out=tmp_path / "out")
    assert champion.bundle_id == anew.bundle_id, "what begins now, begins with the champion of now"


def test_only_a_version_of_the_line_that_did_not_fail_is_taken_instead_of_the_alias() -> None:
    def version(number: int, state: str) -> Any:
        return SimpleNamespace(version=number, bundle_id=f"b{number}", state=state)

    known = [version(4, "validated"), version(3, "production"), version(2, "rolled_back"), version(1, "failed")]
    registry = Mock(spec_set=Registry)
    registry.resolve.return_value = known[1]
    registry.versions.return_value = known

    for bundle_id, number in {"": 3, "b1": 3, "b2": 2, "b3": 3, "b4": 4, "other": 3}.items():
        assert known[4 - number] is version_of(registry, LINE, begun=bundle_id)
    registry.resolve.return_value = None
    registry.versions.return_value = []
    assert version_of(registry, LINE, begun="b1") is None


@pytest.mark.slow
def test_a_job_is_answered_by_the_model_it_was_asked_of_though_the_line_has_moved_on(
    released: Registry, tmp_path: Path
) -> None:
    settings = load_settings().model_copy(update={"batch_roots": (str(tmp_path),)})
    source = FromRegistry(released, [LINE])
    first = source.current(LINE)
    assert first is not None
    deployed: Any = SimpleNamespace(now={LINE: first}, lines=(LINE,))
    jobs = Jobs(deployed, source, settings, period=0.05)
    asked = json.dumps({"data": str(write(tmp_path / "rows.csv", some_rows(50)))}).encode()
    _, job = asyncio.run(jobs.handle("POST", f"/v1/models/{LINE}/batch-predict", asked, "caller"))

    lead(released, 2, line=LINE)
    jobs.start()
    until = time.monotonic() + 60
    while job["state"] in ("queued", "running") and time.monotonic() < until:
        time.sleep(0.05)
        _, job = asyncio.run(jobs.handle("GET", f"/v1/batch-predictions/{job['id']}", b"", "caller"))
    jobs.stop()

    assert ("done", 1, first.bundle_id) == (job["state"], job["version"], job["bundle_id"])
    said = json.loads((Path(job["out"]) / "journal.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert first.bundle_id == said["bundle_id"]
