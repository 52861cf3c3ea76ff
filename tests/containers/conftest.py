"""Collected only when asked for (`-m containers`, `-m requirement`, or by its path): these tests build images for minutes."""

import os
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest

from tests.containers import engine as engines

HERE = Path(__file__).resolve().parent


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    asked = any(word in config.getoption("markexpr") for word in ("containers", "requirement")) or any(
        HERE in (path := Path(argument.split("::")[0]).resolve()).parents or path == HERE
        for argument in config.invocation_params.args
        if not str(argument).startswith("-")
    )
    return None if asked else True


@pytest.fixture(scope="session")
def containers_home() -> Path:
    return Path(os.environ.get("CONTAINERS_HOME") or engines.ROOT / "build" / "containers").resolve()


@pytest.fixture(scope="session")
def client(containers_home: Path) -> Iterator[docker.DockerClient]:
    """The engine; a skip that says why where there can be none."""
    try:
        with engines.engine(containers_home) as found:
            yield found
    except engines.Missing as missing:
        pytest.skip(str(missing))


@pytest.fixture(scope="session")
def base(client: docker.DockerClient, containers_home: Path) -> str:
    try:
        return engines.base(client, containers_home)
    except engines.Missing as missing:
        pytest.skip(str(missing))


@pytest.fixture(scope="session")
def images(client: docker.DockerClient, base: str, containers_home: Path) -> docker.DockerClient:
    """The engine with all four images of this tree."""
    engines.build(containers_home, base, *engines.TARGETS)
    return client
