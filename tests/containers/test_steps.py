"""Steps in their containers, through kfp's DockerRunner: the whole DAG ends released, and a step that fails fails the run, always."""

import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest

from esteira.datasets import write_data
from esteira.errors import ConfigError, OutsideError
from esteira.project import Project
from esteira.registry import Registry
from esteira.settings import Settings, load_settings
from pipelines.containers import ContainerFailed, Containers, run_in_containers
from pipelines.plan import Plan, decide
from pipelines.shape import NAMES
from tests.containers import components
from tests.containers.engine import image

pytestmark = pytest.mark.containers


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("ESTEIRA_HOME", str(tmp_path / "home"))
    return load_settings(file=None)


def _plan(**sections: dict[str, object]) -> Plan:
    plan: Plan = decide(
        "tabular", project=Project(), source="data/breast_cancer.csv", target="diagnosis", settings=sections
    )
    return plan


def _left(client: docker.DockerClient) -> set[str]:
    return {str(container.id) for container in client.containers.list(all=True)}


def test_the_compiled_pipeline_runs_step_by_step_in_containers_and_ends_released(
    images: docker.DockerClient, settings: Settings, capfd: pytest.CaptureFixture[str]
) -> None:
    from kfp import components as kfp_components

    from pipelines.compile import write

    write_data(Path("data"))
    plan = _plan(train={"trials": 4})
    before = _left(images)
    compiled = kfp_components.load_component_from_file(str(write(plan, Path("build/kfp")).ir))
    folder = Path("build") / plan.line / "run-1"

    ended = run_in_containers(plan, settings, run_id="run-1", folder=folder, pipeline=compiled)

    with capfd.disabled():
        print("\n" + "\n".join(f"{one.step:<10} {one.seconds:6.2f} s" for one in ended))
    assert list(NAMES) == [one.step for one in ended]
    assert {0} == {one.code for one in ended}
    assert {image("pipeline")} == {one.image for one in ended}
    serving = Registry(settings).resolve(plan.line)
    assert serving is not None
    assert 1 == serving.version == json.loads((folder / "register" / "receipt.json").read_text())["version"]
    assert "pass" == json.loads((folder / "evaluate" / "gate.json").read_text())["verdict"]
    assert before == _left(images)


def test_a_step_that_fails_ends_the_run_with_its_letter(images: docker.DockerClient, settings: Settings) -> None:
    write_data(Path("data"))
    plan = _plan().model_copy(update={"target": "no_such_column"})

    with pytest.raises(ContainerFailed, match="no_such_column") as caught:
        run_in_containers(plan, settings, run_id="run-1", folder=Path("build/run-1"))

    error = caught.value.error
    assert error["kind"] in {"DataError", "SourceError", "ConfigError"}
    assert error["cure"] != ""
    assert f"step {caught.value.ended.step}" in error["where"]
    assert Registry(settings).resolve(plan.line) is None


def test_a_failing_step_fails_the_run_20_times_of_20(images: docker.DockerClient, settings: Settings) -> None:
    """kfp's own runner took 13 of 20 for successes (kubeflow/pipelines#13332)."""
    before = _left(images)
    with Containers(Path("run"), settings) as containers:
        outcomes = []
        for code in range(1, 21):
            try:
                components.ends_with(code=code)
                outcomes.append("success")
            except RuntimeError:
                outcomes.append("failure")

    assert ["failure"] * 20 == outcomes
    assert list(range(1, 21)) == [ended.code for ended in containers.ended]
    assert before == _left(images)


def test_a_step_that_succeeds_says_what_it_did(images: docker.DockerClient, settings: Settings) -> None:
    lines: list[str] = []

    with Containers(Path("run"), settings, on_line=lambda _, line: lines.append(line)) as containers:
        task = components.ends_with(code=0)

    assert f"who {os.getuid() or 10001}" in lines
    assert "ended" == task.output
    assert [0] == [ended.code for ended in containers.ended]


def test_a_step_killed_for_memory_fails_the_run_and_137_is_told(
    images: docker.DockerClient, settings: Settings
) -> None:
    write_data(Path("data"))
    limits = {"mem_limit": "64m", "memswap_limit": "64m"}

    with pytest.raises(ContainerFailed, match=r"memory limit \(exit status 137\)") as caught:
        run_in_containers(_plan(), settings, run_id="run-1", folder=Path("build/run-1"), limits=limits)

    assert 137 == caught.value.ended.code
    assert caught.value.ended.out_of_memory
    assert "step_killed" == caught.value.error["code"]


def test_a_container_removed_behind_our_back_is_no_success(images: docker.DockerClient, settings: Settings) -> None:
    def remove(_step: str, line: str) -> None:
        if "who" in line:
            (running,) = images.containers.list()
            running.remove(force=True)

    with (
        Containers(Path("run"), settings, on_line=remove),
        pytest.raises(OutsideError, match="must tell how the container of step ends_with ended"),
    ):
        components.ends_with(code=0, seconds=30)


def test_an_image_that_is_not_here_is_named_with_the_command_that_builds_it(
    images: docker.DockerClient, settings: Settings
) -> None:
    with Containers(Path("run"), settings), pytest.raises(ConfigError, match="esteira-nowhere:0") as caught:
        components.nowhere()

    assert "make images" in caught.value.cure


def test_no_engine_is_said_before_anything_runs(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix:///nowhere-{secrets.token_hex(4)}.sock")

    with pytest.raises(OutsideError, match="none answers"), Containers(Path("run"), settings):
        pass


@pytest.fixture(autouse=True)
def _kfp_warns_about_what_is_for_a_cluster(recwarn: pytest.WarningsRecorder) -> Iterator[None]:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
