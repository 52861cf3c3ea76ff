"""A container engine, a base image and the product's images for the tests: what is there is used, what is missing is made.

As root with Debian's `docker.io` and `debootstrap` nothing else is needed, no registry either. What is made is kept in
`$CONTAINERS_HOME` (build/containers), so that a second run builds nothing. The engine is stopped by its process id.
"""

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import docker

from esteira import __version__
from esteira.errors import OutsideError
from pipelines.containers import reach_engine

ROOT = Path(__file__).resolve().parents[2]
BASE = "localhost/esteira-base:bookworm"
TARGETS = ("pipeline", "pipeline-torch", "serving", "serving-gpu")
# Python with its venv module is all that the Dockerfile asks of a base; the certificates are for the package index.
_DEBIAN = ("--variant=minbase", "--include=python3-minimal,python3-venv,ca-certificates", "bookworm")


class Missing(Exception):
    """What this machine lacks; the reason of a skip."""


def image(target: str) -> str:
    return f"localhost/esteira-{target}:{__version__}"


@contextmanager
def engine(home: Path) -> Iterator[docker.DockerClient]:
    """A client of the engine that answers already, else of one started here and stopped at the end."""
    try:
        reach_engine()
    except OutsideError:
        if os.getuid() != 0 or shutil.which("dockerd") is None:
            raise Missing(
                "needs a container engine: set DOCKER_HOST, or be root with dockerd on PATH (Debian: docker.io)"
            ) from None
        with _own_engine(home) as address:
            os.environ["DOCKER_HOST"] = address
            try:
                with closing(docker.from_env(timeout=600)) as client:
                    yield client
            finally:
                del os.environ["DOCKER_HOST"]
        return
    with closing(docker.from_env(timeout=600)) as client:
        yield client


@contextmanager
def _own_engine(home: Path) -> Iterator[str]:
    home.mkdir(parents=True, exist_ok=True)
    socket = home / "docker.sock"
    address = f"unix://{socket}"
    # Builds that take nothing from the cache fill it all the same, by some GB each time.
    settings = home / "daemon.json"
    settings.write_text(json.dumps({"builder": {"gc": {"enabled": True, "defaultKeepStorage": "20GB"}}}))
    with (home / "dockerd.log").open("wb") as log:
        # No network of its own: containers get the host's or none, and no rule of the machine's firewall is touched.
        process = subprocess.Popen(
            [
                "dockerd", "--config-file", str(settings), "--data-root", str(home / "docker"), "--exec-root", str(home / "exec"),
                "--pidfile", str(home / "docker.pid"), "--host", address, "--iptables=false", "--ip6tables=false",
                "--bridge=none", "--storage-driver=overlay2",
            ],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip
    try:
        until = time.monotonic() + 60
        while True:
            try:
                reach_engine(address)
                break
            except OutsideError:
                if process.poll() is not None or time.monotonic() > until:
                    tail = (home / "dockerd.log").read_text(errors="replace")[-500:]
                    raise Missing(f"needs a container engine, but dockerd does not start here: {tail}") from None
                time.sleep(0.2)
        yield address
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def base(client: docker.DockerClient, home: Path) -> str:
    """$BASE, else a Debian that is bootstrapped here once."""
    if os.environ.get("BASE"):
        return os.environ["BASE"]
    try:
        client.images.get(BASE)
        return BASE
    except docker.errors.ImageNotFound:
        pass
    if os.getuid() != 0 or shutil.which("debootstrap") is None:
        raise Missing("needs a base image: set BASE, or be root with debootstrap on PATH")
    folder = home / "base"
    shutil.rmtree(folder, ignore_errors=True)
    _call("debootstrap", *_DEBIAN, str(folder), log=home / "debootstrap.log")
    repository, tag = BASE.split(":")
    with subprocess.Popen(["tar", "--create", "--directory", str(folder), "."], stdout=subprocess.PIPE) as packed:
        client.api.import_image_from_stream(packed.stdout, repository=repository, tag=tag)
    assert 0 == packed.returncode
    shutil.rmtree(folder)
    return BASE


def build(home: Path, base: str, *targets: str, tree: Path = ROOT, **environment: str) -> float:
    """`make images` for these targets of a tree; returns its seconds."""
    began = time.monotonic()
    log = home / f"build-{'-'.join(targets)}.log"
    _call("bash", str(tree / "requirements" / "images.sh"), *targets, log=log, BASE=base, **environment)
    return time.monotonic() - began


def _call(*command: str, log: Path, **environment: str) -> None:
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as stream:
        done = subprocess.run(
            command, env={**os.environ, **environment}, stdout=stream, stderr=subprocess.STDOUT, check=False
        )
    assert 0 == done.returncode, f"{' '.join(command)}: {log.read_text(errors='replace')[-3000:]}"


def inside(client: docker.DockerClient, image: str, *command: str, **arguments: Any) -> str:
    """What a command prints in a fresh container: root file system read-only, no rights, no network."""
    container = client.containers.create(
        image,
        list(command),
        **{
            "read_only": True, "tmpfs": {"/tmp": "mode=1777"}, "network_mode": "none", "cap_drop": ["ALL"],
            "security_opt": ["no-new-privileges"], **arguments,
        },
    )  # fmt: skip
    try:
        container.start()
        code = container.wait()["StatusCode"]
        if code != 0:
            raise docker.errors.ContainerError(container, code, command, image, container.logs(stdout=False))
        output: bytes = container.logs(stderr=False)
    finally:
        # With its anonymous volume, which the client's own `run` leaves behind.
        container.remove(force=True, v=True)
    return output.decode()
