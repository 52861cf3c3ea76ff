"""Writes a Bento that carries a sealed bundle and all code that answers from it, so that it serves on a machine without this repository."""

import errno
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from esteira.errors import OutsideError, Refused, SourceError
from serving.lifeline import sweep

PACKAGES = ("esteira", "families", "serving")
_NAME = "esteira"
_PREFIX = "esteira-build-"
# What a Bento needs when there is no lock beside the code: the direct requirements of the serving extra.
_DIRECT = (
    "alembic", "bentoml", "click", "msgspec", "numpy", "onnxruntime", "prometheus-client", "pydantic", "pyyaml", "rich",
    "sqlalchemy",
)  # fmt: skip


@dataclass(frozen=True)
class Built:
    """A Bento on disk.

    Attributes:
        folder: what `bentoml serve FOLDER` starts.
        tag: Bento's name and version; the version is made from the bundle and the code, so the same both give the same tag.
        bundle_id: the bundle that it carries.
        files: number of files in it.
    """

    folder: Path
    tag: str
    bundle_id: str
    files: int


def build(bundle: Path, out: Path, *, line: str = "", version: int | None = None) -> Built:
    """Build a Bento into `out`.

    The Bento holds no path of this machine; `bento.yaml` holds the time it was made, as Bento writes it.

    Args:
        bundle: a sealed bundle; verified before and after it was copied.
        out: the Bento's folder; replaced if it is a Bento, made if it is not there.
        line: line that it answers for; the bundle's own by default.
        version: the registry's number that it answers with, None when the bundle is not registered.

    Raises:
        Refused: the bundle is not what its identity says, or `out` is a folder that is no Bento.
        OutsideError: the Bento cannot be written, for example because the disk is full.
    """
    try:
        return _build(bundle, out, line, version)
    except OSError as error:
        raise OutsideError(
            f"a Bento of {bundle.name!r} must fit on the disk: {error.strerror or error}",
            code="disk_full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "cannot_write",
            where=f"{out.name}/", cure="free space where the temporary folder and build/ lie, then run again",
        ) from error  # fmt: skip


def _build(bundle: Path, out: Path, line: str, version: int | None) -> Built:
    from esteira.bundle import verify

    manifest = verify(bundle)
    bundle_id = (bundle / "manifest.sha256").read_text(encoding="utf-8").strip()
    if out.exists() and any(out.iterdir()) and not (out / "bento.yaml").is_file():
        raise Refused(
            "a Bento is written into a new folder or over a Bento, but this folder holds other things",
            code="not_a_bento", where=str(out), cure="give another --out",
        )  # fmt: skip
    out.parent.mkdir(parents=True, exist_ok=True)
    sweep(_PREFIX)
    with tempfile.TemporaryDirectory(prefix=f"{_PREFIX}{os.getpid()}-") as folder:
        work = Path(folder)
        context = work / "context"
        for package in PACKAGES:
            _copy_package(package, context / package)
        shutil.copytree(bundle, context / "model" / "bundle")
        verify(context / "model" / "bundle", bundle_id)
        deployment = {"line": line or manifest["line"], "version": version, "bundle_id": bundle_id}
        (context / "model" / "deployment.json").write_text(
            json.dumps(deployment, sort_keys=True) + "\n", encoding="utf-8"
        )
        locked = _requirements()
        (context / "requirements.txt").write_text(_without_hashes(locked), encoding="utf-8")
        revision = _hash(context)
        path = _bentoml_build(context, work / "home", f"{bundle_id[:12]}-{revision[:12]}", deployment)
        # Bento adds itself again without a hash, which an installer refuses beside hashes: the lock as it is goes there.
        for name in ("requirements.in", "requirements.txt"):
            (path / "env" / "python" / name).write_text(locked, encoding="utf-8")
        _refuse_paths(path, work)
        for left in out.parent.glob(f".{out.name}.*"):  # of a build that was killed
            shutil.rmtree(left, ignore_errors=True)
        waiting = out.with_name(f".{out.name}.{os.getpid()}.tmp")
        try:
            shutil.copytree(path, waiting)
            _replace(waiting, out)
        finally:
            shutil.rmtree(waiting, ignore_errors=True)
    return Built(out, f"{_NAME}:{bundle_id[:12]}-{revision[:12]}", bundle_id, sum(1 for _ in _files(out)))


def _bentoml_build(context: Path, home: Path, version: str, deployment: dict[str, object]) -> Path:
    # Bento reads its home when it is imported, and looks for uv on PATH.
    os.environ["BENTOML_HOME"] = str(home)
    os.environ["BENTOML_DO_NOT_TRACK"] = "true"
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    import bentoml

    built = bentoml.build(
        "serving.service:Esteira",
        name=_NAME,
        version=version,
        labels={"line": str(deployment["line"]), "bundle_id": str(deployment["bundle_id"])[:63]},
        description=f"Model line {deployment['line']}, version {deployment['version']}, bundle {deployment['bundle_id']}.",
        include=["*"],
        python={"requirements_txt": "requirements.txt", "lock_packages": False},
        build_ctx=str(context),
    )
    return Path(built.path)


def _copy_package(name: str, to: Path) -> None:
    spec = importlib.util.find_spec(name)
    places = list(spec.submodule_search_locations or []) if spec is not None else []
    if not places:
        raise SourceError(
            f"a Bento carries the package {name}, but it is not importable here",
            code="no_package", where=name, cure="run from the project's folder, or install it",
        )  # fmt: skip
    shutil.copytree(places[0], to, ignore=shutil.ignore_patterns("__pycache__", "*.pyc", "*.tmp", ".*"))


def _requirements() -> str:
    lock = Path(__file__).resolve().parent.parent / "requirements" / "serving.lock"
    if lock.is_file():
        return lock.read_text(encoding="utf-8")
    return "".join(f"{name}=={importlib.metadata.version(name)}\n" for name in _DIRECT)


def _without_hashes(lock: str) -> str:
    """`name==version ; marker` lines: what bento.yaml repeats and parses at every start, without 600 kB of hashes."""
    lines = [line.removesuffix("\\").rstrip() for line in lock.splitlines() if line[:1].isalnum()]
    return "\n".join(lines) + "\n"


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


def _hash(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in _files(folder):
        digest.update(f"{path.relative_to(folder)}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


def _refuse_paths(bento: Path, work: Path) -> None:
    """A Bento that names a folder of this machine is not self-contained; find out here rather than in production.

    Looked at is what the build wrote. The code was copied as it is, and Bento's container files have the container's paths.
    """
    needles = [str(work).encode(), str(Path(__file__).resolve().parent.parent).encode() + b"/"]
    code = [bento / "src" / package for package in PACKAGES]
    for path in _files(bento):
        if path.is_relative_to(bento / "env" / "docker") or any(path.is_relative_to(folder) for folder in code):
            continue
        content = path.read_bytes()
        if any(needle in content for needle in needles):
            raise Refused(
                f"a Bento names no folder of the machine that built it, but {path.relative_to(bento)} does",
                code="absolute_path", where=str(path.relative_to(bento)), cure="report this; it is a fault of the build",
            )  # fmt: skip


def _replace(new: Path, old: Path) -> None:
    """Put a folder in another's place: the old one is moved aside, so that at every moment one whole Bento is on disk."""
    aside = old.with_name(f".{old.name}.{os.getpid()}.old")
    if old.exists():
        old.rename(aside)
    new.rename(old)
    shutil.rmtree(aside, ignore_errors=True)
