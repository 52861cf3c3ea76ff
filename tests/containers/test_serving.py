"""The serving image answers as this process does, says when it is healthy, drains, and needs no training library."""

import json
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import docker
import pytest

from esteira.datasets import write_data
from esteira.project import Project
from esteira.registry import Registry
from esteira.settings import load_settings
from pipelines.containers import IMAGE_USER, run_in_containers
from pipelines.plan import decide
from tests.containers.engine import image, inside
from tests.serving_process import KEY, Service
from tests.small_bundle import make_bundle

pytestmark = pytest.mark.containers

ANSWER = """
import json, sys
from pathlib import Path
from esteira.bundle import answerer, open_bundle
golden = json.loads((Path("/bundle") / "golden.json").read_text())
print(json.dumps({
    "answers": answerer(open_bundle(Path("/bundle"), "cpu")).answer(golden["rows"]),
    "training": sorted({"sklearn", "xgboost", "lightgbm", "optuna", "pandas", "kfp", "mlflow", "torch"} & set(sys.modules)),
}))
"""


class Released:
    """A line that was released by steps in containers: its home, its version, its bundle."""

    def __init__(self, home: Path, line: str, bundle: Path) -> None:
        self.home, self.line, self.bundle = home, line, bundle
        self.golden: dict[str, Any] = json.loads((bundle / "golden.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def released(images: docker.DockerClient, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Released]:
    work = tmp_path_factory.mktemp("released")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(work)
        patch.setenv("ESTEIRA_HOME", str(work / "home"))
        settings = load_settings(file=None)
        write_data(Path("data"))
        plan = decide(
            "tabular", project=Project(), source="data/breast_cancer.csv", target="diagnosis",
            settings={"train": {"trials": 4}},
        )  # fmt: skip
        run_in_containers(plan, settings, run_id="run-1", folder=work / "run-1")
        registry = Registry(settings)
        version = registry.resolve(plan.line)
        assert version is not None
        yield Released(settings.home, plan.line, registry.fetch(version))


class Asked(Service):
    """A service that somebody else started."""

    def __init__(self, address: str) -> None:
        self.address = address


@contextmanager
def _serving(
    client: docker.DockerClient, target: str, home: Path, environment: Mapping[str, str], **arguments: Any
) -> Iterator[tuple[Any, Service]]:
    """A container of a serving image, and how to ask it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    container = client.containers.create(
        image(target),
        environment={"ESTEIRA_API_KEY": KEY, "ESTEIRA_PORT": str(port), "ESTEIRA_HOME": str(home), **environment},
        network_mode="host",
        read_only=True,
        tmpfs={"/tmp": "mode=1777"},
        cap_drop=["ALL"],
        security_opt=["no-new-privileges"],
        **arguments,
    )
    asked = Asked(f"127.0.0.1:{port}")
    try:
        container.start()
        yield container, asked
    finally:
        container.remove(force=True, v=True)


def _ready(container: Any, asked: Service, seconds: float = 60) -> float:
    began = time.monotonic()
    while time.monotonic() < began + seconds:
        container.reload()
        assert "running" == container.status, container.logs().decode()[-2000:]
        try:
            if 200 == asked.ask("/readyz", key=None)[0]:
                return time.monotonic() - began
        except OSError:
            pass
        time.sleep(0.05)
    raise AssertionError(container.logs().decode()[-2000:])


def _mount(*paths: Path, mode: str = "ro") -> dict[str, dict[str, str]]:
    return {str(path): {"bind": str(path), "mode": mode} for path in paths}


@pytest.mark.requirement("K-105")
def test_the_service_container_answers_as_this_machine_does_reports_healthy_and_drains(
    images: docker.DockerClient, released: Released, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """K-105: the image builds reproducibly, runs as non-root, and reports healthy. Here: reports healthy, and by itself.

    Only the interval of its own check is shortened, so that the test does not wait half a minute.
    """
    rows = released.golden["rows"]
    local = Service(["--bundle", str(released.bundle), "--port", "0"], env={}, log=tmp_path / "log").wait_ready()
    try:
        status, here = local.predict(*rows)
    finally:
        local.stop()
    assert 200 == status
    check = images.images.get(image("serving")).attrs["Config"]["Healthcheck"]

    with _serving(
        images, "serving", released.home, {"ESTEIRA_LINES": released.line}, volumes=_mount(released.home, mode="rw"),
        healthcheck={"test": check["Test"], "interval": 500_000_000, "timeout": check["Timeout"], "retries": 5},
    ) as (container, asked):  # fmt: skip
        seconds = _ready(container, asked)
        status, there = asked.predict(*rows)
        until = time.monotonic() + 30
        while "healthy" != _health(container) and time.monotonic() < until:
            time.sleep(0.1)
        health = _health(container)
        began = time.monotonic()
        container.stop(timeout=20)
        stopped = time.monotonic() - began
        container.reload()
        code = container.attrs["State"]["ExitCode"]

    with capfd.disabled():
        print(f"\nserving: ready after {seconds:.2f} s, stopped after {stopped:.2f} s")
    assert 200 == status
    assert here["rows"] == there["rows"]
    assert len(rows) == len(there["rows"])
    assert (released.line, 1) == (there["line"], there["version"])
    assert "healthy" == health
    assert 0 == code
    assert stopped < 15


def _health(container: Any) -> str:
    container.reload()
    return str(container.attrs["State"]["Health"]["Status"])


def test_a_request_in_flight_is_answered_when_the_container_is_told_to_stop(
    images: docker.DockerClient, released: Released
) -> None:
    import http.client

    rows = [released.golden["rows"][0]]
    with _serving(
        images, "serving", released.home, {"ESTEIRA_LINES": released.line}, volumes=_mount(released.home, mode="rw")
    ) as (container, asked):
        _ready(container, asked)
        body = json.dumps({"rows": rows}).encode()
        connection = http.client.HTTPConnection(asked.address, timeout=20)
        connection.putrequest("POST", "/v1/predict")
        for name, value in (
            ("Authorization", f"Bearer {KEY}"), ("Content-Type", "application/json"), ("Content-Length", str(len(body))),
        ):  # fmt: skip
            connection.putheader(name, value)
        connection.endheaders(body[:5])
        time.sleep(0.5)
        container.kill("SIGTERM")
        time.sleep(0.5)
        connection.send(body[5:])
        status = connection.getresponse().status
        connection.close()
        code = container.wait(timeout=30)["StatusCode"]

    assert 200 == status
    assert 0 == code


def test_the_export_answers_where_only_the_serving_lock_is_installed(
    images: docker.DockerClient, released: Released
) -> None:
    """K-04: the exported artefact loaded in a process without the training libraries reproduces reference predictions.

    The reference is the golden pair, written by the native model at training; the image is built from serving.lock alone.
    """
    volumes = {str(released.bundle): {"bind": "/bundle", "mode": "ro"}}

    said = json.loads(inside(images, image("serving"), "python", "-c", ANSWER, volumes=volumes))

    assert [] == said["training"]
    assert len(said["answers"]) == len(released.golden["answers"]) > 0
    for expected, answer in zip(released.golden["answers"], said["answers"], strict=True):
        assert expected["prediction"] == answer["prediction"]
        assert pytest.approx(expected["probabilities"], abs=1e-9) == answer["probabilities"]


@pytest.mark.parametrize("device", ["cpu", "auto"])
def test_the_gpu_image_answers_without_a_gpu_where_it_may(
    images: docker.DockerClient, tmp_path: Path, device: str
) -> None:
    bundle = _small_bundle(tmp_path)
    with _serving(
        images, "serving-gpu", Path("/var/lib/esteira"), {"ESTEIRA_BUNDLE": str(bundle), "ESTEIRA_DEVICE": device},
        volumes=_mount(bundle),
    ) as (container, asked):  # fmt: skip
        _ready(container, asked)
        status, document = asked.predict(json.loads((bundle / "golden.json").read_text())["rows"][0])

    assert 200 == status
    assert "cpu" == document["device"]


def test_the_gpu_image_refuses_cuda_without_a_gpu_at_its_start(images: docker.DockerClient, tmp_path: Path) -> None:
    bundle = _small_bundle(tmp_path)
    with _serving(
        images, "serving-gpu", Path("/var/lib/esteira"), {"ESTEIRA_BUNDLE": str(bundle), "ESTEIRA_DEVICE": "cuda"},
        volumes=_mount(bundle),
    ) as (container, _):  # fmt: skip
        container.wait(timeout=60)
        said = container.logs().decode()

    assert "device cuda needs an NVIDIA GPU that ONNX Runtime can use, but there is none here" in said


def _small_bundle(folder: Path) -> Path:
    bundle = folder / "bundle"
    make_bundle(bundle)
    if os.getuid() == 0:
        for path in (bundle, *bundle.iterdir()):
            os.chown(path, IMAGE_USER, IMAGE_USER)
    return bundle
