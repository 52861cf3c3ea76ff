"""Bundles in artefact storage, a folder or S3: put there whole, and fetched only from there, verified.

An artefact is `ROOT/NAME/MLFLOW_RUN/artifacts/model/`, with MLmodel beside the folder `bundle`: MLflow writes into `model`
when it downloads, and nothing but the bundle may lie in `bundle`.
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from esteira import bundle as bundles
from esteira import crash, locks
from esteira.errors import ConfigError, OutsideError, Refused, SourceError

_STALE_SECONDS = 24 * 3600
_SWAPPED = frozenset({errno.ELOOP, errno.ENOENT, errno.ENOTDIR})
_GONE = frozenset({"NoSuchKey", "NotFound", "404"})  # the ways of storages to say it


def bundle_uri(model: str) -> str:
    """Address of the bundle within an artefact's address."""
    return f"{model}/bundle"


def put(bundle: Path, bundle_id: str, *, root: str, name: str, run: str, mlmodel: str) -> str:
    """Copy a bundle into storage, verify the copy, and give it its name: a crash leaves nothing under that name.

    Args:
        root: a folder, `file://` or `s3://bucket/prefix`.
        name: registered name of the line.
        run: MLflow's run, which owns the artefact.
        mlmodel: text of the MLmodel file.

    Returns:
        Address of the artefact `model`.

    Raises:
        Refused: the copy is not the bundle.
        OutsideError: storage cannot be written.
    """
    files = [*bundles.verify(bundle, bundle_id)["files"], bundles.SEAL, bundles.MANIFEST]
    place = f"{name}/{run}/artifacts/model"
    if root.startswith("s3://"):
        return _put_s3(bundle, files, f"{root.rstrip('/')}/{place}", mlmodel)
    base = local_root(root)
    final = base / place
    staging = base / ".staging" / f"{run}.{os.getpid()}"
    try:
        _sweep(base / ".staging")
        (staging / "bundle").mkdir(parents=True)
        for number, file in enumerate(files):
            if number == 1:
                crash.point("artefact.half_written")
            (staging / "bundle" / file).parent.mkdir(parents=True, exist_ok=True)
            _copy(bundle / file, staging / "bundle" / file)
        bundles.verify(staging / "bundle", bundle_id)
        _write(staging / "MLmodel", mlmodel.encode())
        crash.point("artefact.before_rename")
        final.parent.mkdir(parents=True, exist_ok=True)
        staging.rename(final)
    except OSError as error:
        raise OutsideError(
            f"an artefact can be stored, but {error.strerror}",
            code="disk_full" if error.errno in {28, 122} else "artefacts_away",
            where="ESTEIRA_ARTIFACTS",
            cure="free space there, or correct the folder, then run again; nothing was registered",
        ) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return final.as_uri()


def fetch(uri: str, bundle_id: str, *, root: str, place: str, home: Path) -> Path:
    """A folder on this machine with exactly the bundle that is meant.

    Args:
        uri: what `put` gave, with `/bundle`.
        root: the present root of storage; an address outside of it is refused.
        place: where the bundle lies below the root, used when the folder of state was moved since.
        home: folder of state; keeps what was downloaded.

    Raises:
        Refused: the address lies outside of storage, or the content is not the bundle.
        SourceError: code `missing_bundle`; storage answers, and it is not there. Code `missing_storage`; there is no such
            storage, or it is empty, as the folder is of a disk that is not mounted.
        OutsideError: storage cannot be reached, or may not be read.
    """
    try:
        return (
            _fetch_s3(uri, bundle_id, root=root, home=home)
            if uri.startswith("s3://")
            else _fetch_file(uri, bundle_id, root, place)
        )
    except OSError as error:
        raise _unreadable(error) from error
    except Refused as error:
        # A name that became another kind of file, or was swapped for a link, tells of the bundle; all else of this machine.
        if isinstance(error.__cause__, OSError) and error.__cause__.errno not in _SWAPPED:
            raise _unreadable(error.__cause__) from error
        raise


def _fetch_file(uri: str, bundle_id: str, root: str, place: str) -> Path:
    if not uri.startswith("file://") or root.startswith("s3://"):
        raise _outside_storage(uri)
    base = local_root(root).resolve()
    folder = Path(unquote(urlsplit(uri).path))
    if not folder.exists() and (base / place).exists():
        folder = base / place
    # Resolved, so that neither `..` nor a link leads out.
    if not folder.resolve().is_relative_to(base):
        raise _outside_storage(uri)
    if not folder.exists() and not (base.is_dir() and any(base.iterdir())):
        raise _missing_storage(f"{root[:200]} is empty, or not there")
    bundles.verify(folder, bundle_id)
    return folder


def sealed_id(uri: str, *, root: str) -> str:
    """The bundle_id that is written beside a stored bundle's manifest; empty where there is none.

    It says which bundle lies there, not that it is whole: `fetch` verifies that.

    Raises:
        Refused: the address lies outside of storage.
        SourceError: code `missing_storage`; there is no such bucket.
        OutsideError: storage cannot be reached, or may not be read.
    """
    if uri.startswith("s3://"):
        _require_s3(uri, root)
        bucket, prefix = _split_s3(uri)
        client = _client()
        with _s3_errors(uri):
            try:
                content: bytes = client.get_object(Bucket=bucket, Key=f"{prefix}/{bundles.SEAL}")["Body"].read(100)
            except client.exceptions.NoSuchKey:
                return ""
        return content.decode("ascii", "replace").strip()
    if not uri.startswith("file://") or root.startswith("s3://"):
        raise _outside_storage(uri)
    folder = Path(unquote(urlsplit(uri).path))
    if not folder.resolve().is_relative_to(local_root(root).resolve()):
        raise _outside_storage(uri)
    seal = folder / bundles.SEAL
    return seal.read_text(encoding="ascii", errors="replace").strip()[:100] if seal.is_file() else ""


def local_root(root: str) -> Path:
    """The folder of a local root, absolute."""
    return Path(unquote(urlsplit(root).path) if root.startswith("file://") else root).absolute()


def check_root(root: str) -> None:
    """Refuse a root that is neither a folder nor S3.

    Raises:
        ConfigError: it has another scheme.
    """
    if "://" in root and not root.startswith(("s3://", "file://")):
        raise ConfigError(
            f"artefacts lie in a folder or in s3://bucket/prefix, but got {root[:200]!r}",
            code="bad_artifacts",
            where="ESTEIRA_ARTIFACTS",
            cure="correct it, or remove it to use a folder in ESTEIRA_HOME",
        )


def _unreadable(error: OSError) -> OutsideError:
    return OutsideError(
        f"an artefact can be read, but {error.strerror or error}",
        code="artefacts_away",
        where="ESTEIRA_ARTIFACTS",
        cure="see that this user may read the folder, and that disk and open files are not at their limit; then try again",
    )


def _outside_storage(uri: str) -> Refused:
    return Refused(
        f"a bundle is read only from artefact storage, but its address lies outside: {uri[:200]}",
        code="outside_storage",
        where="ESTEIRA_ARTIFACTS",
        cure="set ESTEIRA_ARTIFACTS to the storage that the version was registered in, or register it anew",
    )


def _missing_storage(found: str) -> SourceError:
    return SourceError(
        f"artefacts are read where they were stored, but {found}",
        code="missing_storage",
        where="ESTEIRA_ARTIFACTS",
        cure="see that the disk is mounted, or that the bucket and AWS_ENDPOINT_URL are right",
    )


def _copy(source: Path, target: Path) -> None:
    with source.open("rb") as stream, target.open("wb") as out:
        shutil.copyfileobj(stream, out, 1 << 20)
        out.flush()
        os.fsync(out.fileno())


def _write(target: Path, content: bytes) -> None:
    with target.open("wb") as out:
        out.write(content)
        out.flush()
        os.fsync(out.fileno())


def _sweep(staging: Path) -> None:
    """Remove what a process that was killed left behind, once nobody can be writing it any more."""
    for left in staging.glob("*"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > _STALE_SECONDS:
                shutil.rmtree(left, ignore_errors=True)


# S3


def _split_s3(uri: str) -> tuple[str, str]:
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, key.strip("/")


def _client() -> Any:
    try:
        import boto3
    except ModuleNotFoundError as error:
        raise ConfigError(
            "artefacts in s3:// need boto3, which is not installed",
            code="missing_extra",
            where="ESTEIRA_ARTIFACTS",
            cure="install esteira[pipeline], or boto3",
        ) from error
    return boto3.client("s3")


@contextlib.contextmanager
def _s3_errors(wanted: str = "") -> Iterator[None]:
    """What goes wrong with S3 in the block becomes one of our errors; `wanted` is the address of a bundle that is read there."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except (BotoCoreError, ClientError) as error:
        code = str(error.response.get("Error", {}).get("Code", "")) if isinstance(error, ClientError) else ""
        if wanted and code == "NoSuchBucket":
            raise _missing_storage(f"storage says {code} of {wanted[:200]}") from error
        if wanted and code in _GONE:
            raise SourceError(
                f"a bundle stays where it was stored, but storage says {code}",
                code="missing_bundle",
                where=wanted,
                cure="see that AWS_ENDPOINT_URL is right; if it is, register the version anew, or serve another one",
            ) from error
        raise OutsideError(
            f"artefact storage answers, but it said: {type(error).__name__}: {str(error)[:200]}",
            code="artefacts_away",
            where="ESTEIRA_ARTIFACTS",
            cure="see that the bucket exists, AWS_ENDPOINT_URL is right and the key may use it; then try again",
        ) from error


def _put_s3(bundle: Path, files: Sequence[str], model: str, mlmodel: str) -> str:
    bucket, prefix = _split_s3(model)
    client = _client()
    with _s3_errors():
        # The manifest goes last: without it nothing below this address is a bundle. `fetch` checks every hash.
        for number, name in enumerate(files):
            if number == 1:
                crash.point("artefact.half_written")
            client.put_object(Bucket=bucket, Key=f"{prefix}/bundle/{name}", Body=(bundle / name).read_bytes())
        client.put_object(Bucket=bucket, Key=f"{prefix}/MLmodel", Body=mlmodel.encode())
    return model


def _require_s3(uri: str, root: str) -> None:
    if not root.startswith("s3://") or not f"{uri}/".startswith(f"{root.rstrip('/')}/") or ".." in uri.split("/"):
        raise _outside_storage(uri)


def _fetch_s3(uri: str, bundle_id: str, *, root: str, home: Path) -> Path:
    _require_s3(uri, root)
    if re.fullmatch(r"[0-9a-f]{64}", bundle_id) is None:
        raise Refused(
            "a bundle_id is 64 hexadecimal digits", code="bundle_id", where=uri, cure="register the version anew"
        )
    kept = home / "cache" / "bundles" / bundle_id
    with locks.hold(home, f"fetch-{bundle_id[:16]}", what="fetching a bundle", wait=300):
        if kept.exists():
            try:
                bundles.verify(kept, bundle_id)
                return kept
            except Refused:  # spoiled since: what storage holds counts
                shutil.rmtree(kept)
        staging = kept.with_name(f".{bundle_id}.{os.getpid()}.tmp")
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        try:
            _download(uri, bundle_id, staging)
            bundles.verify(staging, bundle_id)
            crash.point("fetch.before_rename")
            staging.rename(kept)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    return kept


def _download(uri: str, bundle_id: str, folder: Path) -> None:
    bucket, prefix = _split_s3(uri)
    client = _client()

    def get(name: str) -> bytes:
        content: bytes = client.get_object(Bucket=bucket, Key=f"{prefix}/{name}")["Body"].read()
        return content

    with _s3_errors(uri):
        manifest = get(bundles.MANIFEST)
        if hashlib.sha256(manifest).hexdigest() != bundle_id:
            raise Refused(
                f"the manifest in storage must have bundle_id {bundle_id[:12]}, but it was changed",
                code="bundle_manifest",
                where=uri,
                cure="register the version anew, or serve another one",
            )
        (folder / bundles.MANIFEST).write_bytes(manifest)
        for name in [*json.loads(manifest)["files"], bundles.SEAL]:
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts or str(path) != name:
                raise Refused(
                    f"a file of a bundle lies in its folder, but one is named {name[:100]!r}",
                    code="bundle_path",
                    where=uri,
                    cure="do not use this bundle",
                )
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(get(name))
