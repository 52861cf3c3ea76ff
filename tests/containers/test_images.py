"""Every image runs as nobody in particular, on a read-only root, with what its lock says and no compiler; built twice it is the same."""

import hashlib
import json
import re
import shutil
import stat
import tarfile
from pathlib import Path
from typing import Any

import docker
import pytest

from esteira import __version__
from tests.containers.engine import ROOT, TARGETS, build, image, inside

pytestmark = pytest.mark.containers

WORKS = {
    "pipeline": "import components.train, components.validate, kfp.dsl.executor_main, mlflow, great_expectations, xgboost",
    "pipeline-torch": "import components.train, torch; assert 6.0 == float(torch.ones(2, 3).sum())",
    "serving": "import serving.service, onnxruntime; assert ['CPUExecutionProvider'] == onnxruntime.get_available_providers()[-1:]",
    "serving-gpu": "import serving.service, onnxruntime; assert 'CUDAExecutionProvider' in onnxruntime.get_available_providers()",
}
TRAINING = (
    "sklearn",
    "xgboost",
    "lightgbm",
    "optuna",
    "pandas",
    "kfp",
    "mlflow",
    "torch",
    "great_expectations",
    "skl2onnx",
)
FOUND = "import importlib.util, json, sys; print(json.dumps([n for n in sys.argv[1:] if importlib.util.find_spec(n)]))"
LISTED = "import importlib.metadata as m, json, sys; print(json.dumps({d.name: d.version for d in m.distributions(path=sys.argv[1:])}))"
NEEDED = (
    "for each in /opt/venv/lib/python3.*/site-packages/onnxruntime/capi/libonnxruntime_providers_cuda.so"
    " /opt/venv/nvidia/cudnn/lib/libcudnn*.so.9; do ldd $each; done | awk '/not found/ {print $1}'"
)
UNWANTED = (
    "command -v gcc cc c++ g++ clang make ld as;"
    r" find / -xdev \( -path '*/.cache/*' -o -path '/run/secrets/*' -o -name 'uv.lock' \) -print 2>/dev/null; true"
)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.requirement("K-105")
def test_every_image_runs_as_non_root_on_a_read_only_root(images: docker.DockerClient, target: str) -> None:
    """K-105: the image builds reproducibly, runs as non-root, and reports healthy. Here: runs as non-root."""
    assert "10001:10001" == images.images.get(image(target)).attrs["Config"]["User"]
    assert "10001 10001" == inside(images, image(target), "sh", "-c", "echo $(id -u) $(id -g)").strip()
    with pytest.raises(docker.errors.ContainerError, match=r"[Rr]ead-only|Permission denied"):
        inside(images, image(target), "sh", "-c", "touch /opt/esteira/x")

    inside(images, image(target), "python", "-W", "ignore", "-c", WORKS[target])


@pytest.mark.parametrize("target", TARGETS)
def test_no_image_holds_a_compiler_a_package_cache_or_a_secret_of_its_build(
    images: docker.DockerClient, target: str
) -> None:
    history = json.dumps(images.images.get(image(target)).history())

    assert "" == inside(images, image(target), "sh", "-c", UNWANTED)
    assert [] == re.findall(r"https?://(?!127\.0\.0\.1)\S+|file://\S+|/run/secrets", history)


@pytest.mark.parametrize(
    ("target", "lock", "folder"),
    [
        ("pipeline", "pipeline", "/opt/venv/lib/python3.11/site-packages"),
        ("pipeline-torch", "torch", "/opt/torch"),
        ("serving", "serving", "/opt/venv/lib/python3.11/site-packages"),
        ("serving-gpu", "serving-gpu", "/opt/venv/lib/python3.11/site-packages"),
    ],
)
def test_every_image_says_what_it_is_and_installs_exactly_its_lock(
    images: docker.DockerClient, target: str, lock: str, folder: str
) -> None:
    labels = images.images.get(image(target)).labels
    text = (ROOT / "requirements" / f"{lock}.lock").read_text(encoding="utf-8")
    # A name may stand twice, for different Pythons.
    locked = {(_plain(name), version) for name, version in re.findall(r"^([A-Za-z0-9._-]+)==([^ ;\\\s]+)", text, re.M)}

    listed = json.loads(inside(images, image(target), "python", "-c", LISTED, folder))
    # Torch's wheel without CUDA adds `+cpu` to the version that the lock names.
    installed = {_plain(name): version.split("+")[0] for name, version in listed.items()}

    assert f"esteira-{target}" == labels["org.opencontainers.image.title"]
    assert __version__ == labels["org.opencontainers.image.version"]
    assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?|unknown", labels["org.opencontainers.image.revision"])
    assert set() == set(installed.items()) - locked
    assert {"pipeline": "kfp", "torch": "torch", "serving": "bentoml", "serving-gpu": "onnxruntime-gpu"}[
        lock
    ] in installed


@pytest.mark.parametrize("target", ["serving", "serving-gpu"])
def test_the_images_that_answer_carry_no_training_library(images: docker.DockerClient, target: str) -> None:
    assert [] == json.loads(inside(images, image(target), "python", "-c", FOUND, *TRAINING))
    assert ["bentoml", "onnxruntime"] == json.loads(
        inside(images, image(target), "python", "-c", FOUND, "bentoml", "onnxruntime")
    )


def test_the_gpu_image_brings_all_that_cuda_needs_but_the_driver(images: docker.DockerClient) -> None:
    missing = inside(images, image("serving-gpu"), "sh", "-c", NEEDED)

    assert {"libcuda.so.1"} == set(missing.split())


@pytest.mark.parametrize("target", ["serving", "pipeline"])
@pytest.mark.requirement("K-105")
def test_an_image_built_twice_holds_the_same_files(
    images: docker.DockerClient, base: str, containers_home: Path, target: str, tmp_path: Path
) -> None:
    """K-105: the image builds reproducibly, runs as non-root, and reports healthy. Here: builds reproducibly.

    Both builds are of one copy of the tree, which nobody edits meanwhile; the second takes nothing from the first but
    downloaded packages, whose bytes the lock's hashes fix.
    """
    tree = tmp_path / "tree"
    for name in ("components", "esteira", "families", "pipelines", "serving", "requirements"):
        shutil.copytree(ROOT / name, tree / name)
    for name in ("Dockerfile", ".dockerignore", "params.yaml"):
        shutil.copy(ROOT / name, tree)
    names = [f"localhost/{folder}/esteira-{target}:{__version__}" for folder in ("once", "again")]
    found = []
    for name, flags in zip(names, ("", "--no-cache"), strict=True):
        build(containers_home, base, target, tree=tree, PREFIX=name.rsplit("/", 1)[0], BUILD_FLAGS=flags)
        found.append(_files(images, name))
        images.images.remove(name)
    first, second = found

    assert 5_000 < len(first)
    differing = {name for name in first.keys() | second.keys() if first.get(name) != second.get(name)}
    # Written by the engine into every container: its name, its resolver.
    assert set() == differing - {"etc/hostname", "etc/hosts", "etc/resolv.conf", ".dockerenv"}


def _files(client: docker.DockerClient, name: str) -> dict[str, tuple[Any, ...]]:
    """Every file of an image: kind, mode, owner, time (below /opt), target of a link, SHA-256 of the content."""
    container = client.containers.create(name, ["true"])
    found: dict[str, tuple[Any, ...]] = {}
    try:
        with tarfile.open(fileobj=_Stream(container.export()), mode="r|") as archive:
            for member in archive:
                content = archive.extractfile(member) if member.isfile() else None
                digest = hashlib.file_digest(content, "sha256").hexdigest() if content is not None else ""  # type: ignore[arg-type]
                # Folders that the engine itself touches carry the time of the build.
                ours = member.name.startswith(("opt/venv/", "opt/esteira/")) and member.isfile()
                found[member.name] = (
                    member.type, stat.S_IMODE(member.mode), member.uid, member.gid, member.mtime if ours else 0,
                    member.linkname, digest,
                )  # fmt: skip
    finally:
        container.remove(v=True)
    return found


class _Stream:
    """Chunks as a file that can only be read on."""

    def __init__(self, chunks: Any) -> None:
        self._chunks, self._rest = iter(chunks), b""

    def read(self, size: int) -> bytes:
        while len(self._rest) < size:
            chunk = next(self._chunks, b"")
            if not chunk:
                break
            self._rest += chunk
        taken, self._rest = self._rest[:size], self._rest[size:]
        return taken


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
