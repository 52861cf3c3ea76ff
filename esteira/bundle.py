"""Seals, verifies and opens a model's folder; every file is named by its hash, and what is not named is refused.

`bundle_id` is the SHA-256 of manifest.json's bytes. Nothing here unpickles, and nothing here needs a training library.
"""

import hashlib
import json
import os
import re
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from esteira import crash
from esteira.errors import ConfigError, Refused, SourceError
from esteira.family import Answerer, load_family
from esteira.onnx.session import Started, start

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MANIFEST = "manifest.json"
SEAL = "manifest.sha256"
SAFE_TYPES = frozenset({".onnx", ".json", ".md", ".safetensors", ".ubj", ".txt"})
REQUIRED = ("family", "line", "stages")
FORMAT = 1

_BLOCK = 1 << 20
_MANIFEST_LIMIT = 32 << 20
_FAMILY = re.compile(r"[a-z][a-z0-9_]*")
_ID = re.compile(r"[0-9a-f]{64}")
# A text pickle (protocol 0) opens with GLOBAL: "c", module, newline, name, newline; it ends with the STOP opcode ".".
_TEXT_PICKLE = re.compile(rb"\(?[ci][A-Za-z_][\w.]*\r?\n[A-Za-z_][\w.]*\r?\n")


def seal(folder: Path, *, manifest: Mapping[str, Any]) -> str:
    """Write manifest.json, which names every file of the folder by hash and size, and manifest.sha256.

    The same files and the same manifest give the same bytes, and so the same id, on every machine; so keep wall times and
    paths out of both.

    Args:
        folder: holds the stages and nothing else; a sealed folder never changes again.
        manifest: `family`, `line`, `stages` (ordered; those ending in `.onnx` are files that `Bundle.run` runs), and
            whatever else the family and the steps say: schema, units, data hash, code revision. `files` and `format` are
            added here.

    Returns:
        The bundle_id: 64 hexadecimal digits.

    Raises:
        SourceError: there is no such folder.
        Refused: it is sealed already, or holds a link, a special file, a type that is not on the list, or pickled content.
        ConfigError: the manifest lacks a required key or names a stage that is not there.
    """
    _must_be_folder(folder)
    if (folder / MANIFEST).exists() or (folder / SEAL).exists():
        raise Refused(
            "a bundle is sealed once, but this folder already has a manifest",
            code="bundle_sealed", where=str(folder), cure="write the new model into a new folder",
        )  # fmt: skip
    files = {name: _measure(folder, name) for name in sorted(_walk(folder))}
    document = {**manifest, "format": FORMAT, "files": files}
    _check_words(document, str(folder), ConfigError)
    try:
        text = json.dumps(document, sort_keys=True, ensure_ascii=False, allow_nan=False, indent=1) + "\n"
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"a manifest holds JSON values only: {error}",
            code="bundle_manifest", where=str(folder), cure="pass strings, finite numbers, booleans, lists and objects",
        ) from error  # fmt: skip
    raw = text.encode()
    bundle_id = hashlib.sha256(raw).hexdigest()
    # The seal comes last: a crash in between leaves a folder that verify refuses as unsealed, never a half bundle.
    _write(folder / MANIFEST, raw)
    crash.point("bundle.before_seal")
    _write(folder / SEAL, f"{bundle_id}\n".encode())
    return bundle_id


def verify(folder: Path, bundle_id: str | None = None) -> dict[str, Any]:
    """The manifest of a folder whose every byte is what was sealed.

    Args:
        folder: a sealed bundle.
        bundle_id: when given, the one identity that is wanted; otherwise the folder's own manifest.sha256 counts.

    Raises:
        SourceError: there is no such folder.
        Refused: code `bundle_unsealed`, `bundle_id` (another bundle than wanted), `bundle_manifest` (changed or malformed),
            `bundle_path` (a name that leaves the folder), `bundle_type`, `bundle_link`, `bundle_missing`,
            `bundle_changed`, `bundle_unlisted`, or `bundle_pickle`.
    """
    manifest, _, _ = _verified(folder, bundle_id, keep=False)
    return manifest


def open_bundle(
    folder: Path, device: Literal["auto", "cpu", "cuda"] | str = "auto", bundle_id: str | None = None
) -> "Bundle":
    """Verify a folder and make it ready to answer; the verified bytes stay in memory, so the folder may go afterwards.

    Args:
        folder: a sealed bundle.
        device: `auto` takes a GPU where it has a kernel for all of the graph, and the CPU otherwise.
        bundle_id: as for `verify`.

    Raises:
        SourceError, Refused: as `verify`.
        ConfigError: an unknown device, `cuda` without a usable GPU, or a graph that ONNX Runtime cannot load.
    """
    if device not in {"auto", "cpu", "cuda"}:
        raise ConfigError(
            f"a device is auto, cpu or cuda, but got {device!r}",
            code="bad_device", where="ESTEIRA_DEVICE", cure="set one of the three",
        )  # fmt: skip
    manifest, identity, contents = _verified(folder, bundle_id, keep=True)
    return Bundle(folder=folder, manifest=manifest, bundle_id=identity, contents=contents, device=device)


def answerer(bundle: "Bundle") -> Answerer:
    """What answers rows from this bundle: its family, loaded by the manifest's name.

    Raises:
        ConfigError: this installation has no such family.
    """
    return load_family(bundle.manifest["family"]).open(bundle)


class Bundle:
    """A verified bundle, open: satisfies `esteira.family.OpenBundle`. Safe to use from several threads.

    Attributes:
        folder: where it was read from; it is not read again.
        manifest: read-only.
        bundle_id: SHA-256 of manifest.json's bytes.
        device: `cpu` or `cuda`, where the stages really run.
    """

    def __init__(
        self,
        *,
        folder: Path,
        manifest: Mapping[str, Any],
        bundle_id: str,
        contents: Mapping[str, bytes],
        device: str,
    ) -> None:
        self.folder = folder
        self.manifest: Mapping[str, Any] = MappingProxyType(dict(manifest))
        self.bundle_id = bundle_id
        self._contents = contents
        self._sessions: dict[str, Started] = {}
        self.device = "cpu"
        for stage in manifest["stages"]:
            if stage.endswith(".onnx"):
                import onnxruntime

                started = start(onnxruntime, contents[stage], folder=folder, stage=stage, device=device)
                self._sessions[stage] = started
                if started.device == "cuda":
                    self.device = "cuda"

    def read(self, name: str) -> bytes:
        """The verified bytes of a listed file.

        Raises:
            KeyError: the manifest lists no such file.
        """
        return self._contents[name]

    def run(self, stage: str, x: "NDArray[np.float32]") -> "dict[str, NDArray[Any]]":
        """Run an ONNX stage on x of shape (rows, features); output name -> array with rows first.

        Raises:
            KeyError: the manifest has no such ONNX stage.
        """
        started = self._sessions[stage]
        return dict(zip(started.outputs, started.run(started.outputs, {started.entry: x}, None), strict=True))


def _verified(folder: Path, wanted: str | None, *, keep: bool) -> tuple[dict[str, Any], str, dict[str, bytes]]:
    _must_be_folder(folder)
    for name in (MANIFEST, SEAL):
        if not (folder / name).is_file():
            raise Refused(
                f"a bundle has a {name}, but this folder has none",
                code="bundle_unsealed", where=str(folder), cure="train again, or fetch the bundle from the registry again",
            )  # fmt: skip
        if (folder / name).is_symlink():
            raise _refusal("bundle_link", f"{name} is a symbolic link", folder)
    if (folder / MANIFEST).stat().st_size > _MANIFEST_LIMIT:
        raise _refusal("bundle_manifest", f"{MANIFEST} is larger than {_MANIFEST_LIMIT} bytes", folder)
    raw = (folder / MANIFEST).read_bytes()
    identity = hashlib.sha256(raw).hexdigest()
    sealed = (folder / SEAL).read_bytes()[:100].decode("ascii", "replace").strip()
    if identity != sealed:
        raise _refusal("bundle_manifest", f"{MANIFEST} hashes to {identity[:12]}, {SEAL} says {sealed[:12]!r}", folder)
    if wanted is not None and identity != wanted:
        raise Refused(
            f"bundle {wanted[:12]} was asked for, but this folder holds {identity[:12]}",
            code="bundle_id", where=str(folder), cure="fetch the bundle from the registry again",
        )  # fmt: skip
    manifest = _parse(raw, folder)
    files: dict[str, Any] = manifest["files"]
    for name in files:
        _check_name(name, folder)
    present = set(_walk(folder)) - {MANIFEST, SEAL}
    unlisted, missing = sorted(present - files.keys()), sorted(files.keys() - present)
    if missing:
        raise _refusal("bundle_missing", f"{missing[0]!r} is listed and not there", folder, missing[0])
    if unlisted:
        raise _refusal("bundle_unlisted", f"{unlisted[0]!r} is there and not listed", folder, unlisted[0])
    contents: dict[str, bytes] = {}
    for name, listed in files.items():
        kept: list[bytes] | None = [] if keep else None
        found = _measure(folder, name, kept)
        if found != listed:
            raise _refusal(
                "bundle_changed",
                f"{name!r} has {found['size']} bytes hashing to {found['sha256'][:12]}, but was sealed otherwise",
                folder,
                name,
            )
        if kept is not None:
            contents[name] = b"".join(kept)
    return manifest, identity, contents


def _parse(raw: bytes, folder: Path) -> dict[str, Any]:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a key stands twice in one object")
        return found

    try:
        document = json.loads(raw.decode("utf-8"), object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise _refusal("bundle_manifest", f"{MANIFEST} is not JSON: {error}", folder) from error
    if (
        not isinstance(document, dict)
        or document.get("format") != FORMAT
        or not isinstance(document.get("files"), dict)
    ):
        raise _refusal("bundle_manifest", f"{MANIFEST} is not an object of format {FORMAT} with files", folder)
    _check_words(document, str(folder), Refused)
    return document


def _check_words(document: Mapping[str, Any], where: str, kind: type[ConfigError] | type[Refused]) -> None:
    problem = ""
    absent = [key for key in REQUIRED if key not in document]
    if absent:
        problem = f"it has no {absent[0]!r}"
    elif not isinstance(document["family"], str) or not _FAMILY.fullmatch(document["family"]):
        problem = f"its family is {document['family']!r}"
    elif not isinstance(document["stages"], list | tuple) or not all(isinstance(s, str) for s in document["stages"]):
        problem = "its stages are not a list of names"
    else:
        lost = [s for s in document["stages"] if s.endswith(".onnx") and s not in document["files"]]
        problem = f"its stage {lost[0]!r} is not among the files" if lost else ""
    if problem:
        raise kind(
            f"a manifest names family, line and stages that exist, but {problem}",
            code="bundle_manifest", where=where, cure="see DESIGN section 4 for what a manifest says",
        )  # fmt: skip


def _check_name(name: str, folder: Path) -> None:
    path = PurePosixPath(name)
    if not name or path.is_absolute() or "\\" in name or "\0" in name or ".." in path.parts or str(path) != name:
        raise _refusal("bundle_path", f"{name!r} is not a plain path inside the folder", folder)
    if name in {MANIFEST, SEAL}:
        raise _refusal("bundle_path", f"{name!r} may not list itself", folder)
    if path.suffix not in SAFE_TYPES:
        raise _refusal("bundle_type", f"{name!r} is not one of {', '.join(sorted(SAFE_TYPES))}", folder, name)


def _walk(folder: Path, prefix: str = "") -> Iterator[str]:
    """POSIX names of all files below, refusing on the way whatever is neither a plain file nor a folder with files."""
    with os.scandir(folder) as entries:
        found = sorted(entries, key=lambda entry: entry.name)
    if prefix and not found:
        raise _refusal("bundle_unlisted", f"{prefix!r} is an empty folder", folder, prefix)
    for entry in found:
        name = prefix + entry.name
        if entry.is_symlink():
            raise _refusal("bundle_link", f"{name!r} is a symbolic link", folder, name)
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(Path(entry.path), name + "/")
        elif entry.is_file(follow_symlinks=False):
            yield name
        else:
            raise _refusal("bundle_type", f"{name!r} is not a plain file", folder, name)


def _measure(folder: Path, name: str, kept: list[bytes] | None = None) -> dict[str, Any]:
    """Hash and size of one file, whose type and first bytes must be safe; its blocks go to `kept` when given."""
    _check_name(name, folder)
    digest, size = hashlib.sha256(), 0
    # O_NOFOLLOW: a file swapped for a link after the walk is refused too.
    try:
        handle = os.open(folder / name, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
    except OSError as error:
        raise _refusal("bundle_missing", f"{name!r} cannot be read: {error.strerror}", folder, name) from error
    with os.fdopen(handle, "rb") as stream:
        if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
            raise _refusal("bundle_type", f"{name!r} is not a plain file", folder, name)
        head = tail = b""
        while block := stream.read(_BLOCK):
            head = head or block
            tail = block
            digest.update(block)
            size += len(block)
            if kept is not None:
                kept.append(block)
    if _looks_pickled(head, tail, PurePosixPath(name).suffix):
        raise _refusal("bundle_pickle", f"{name!r} does not hold what its type says; it may be a pickle", folder, name)
    return {"sha256": digest.hexdigest(), "size": size}


def _looks_pickled(head: bytes, tail: bytes, suffix: str) -> bool:
    """Whether the first bytes are not those of the type: binary pickles start with 0x80, archives with PK or 0x1f8b."""
    match suffix:
        case ".onnx":  # protobuf, field 1 (ir_version)
            return not head.startswith(b"\x08")
        case ".json":  # neither character is an opcode that a pickle could start with
            return not head.lstrip(b" \t\r\n").startswith((b"{", b"["))
        case ".ubj":
            return not head.startswith(b"{")
        case ".safetensors":
            return head[8:9] != b"{"
        case _:  # text: no control characters but white space, and no text pickle
            control = bytes(range(9)) + b"\x0b\x0c" + bytes(range(14, 32)) + b"\x7f"
            unreadable = head.translate(None, control) != head or head.startswith(b"\x80")
            return unreadable or (_TEXT_PICKLE.match(head) is not None and tail.endswith(b"."))


def _must_be_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise SourceError(
            "a bundle is a folder, but there is none",
            code="missing_bundle", where=str(folder), cure="check the path; `esteira run` makes one",
        )  # fmt: skip


def _refusal(code: str, what: str, folder: Path, name: str = "") -> Refused:
    return Refused(
        f"a bundle holds exactly what was sealed, in safe formats, but {what}",
        code=code,
        where=f"{folder}/{name}" if name else str(folder),
        cure="do not mend it: train again, or fetch the bundle from the registry again",
    )


def _write(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(temporary, path)
