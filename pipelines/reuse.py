"""Whether a step must run again, and why: content-keyed receipts of what steps left. Imports nothing heavy; runs nothing.

A receipt says from what (parameters, data, inputs, code, packages) a step made which files. A step is reused when a receipt
has the very same basis, its files are what they were, and what it did to the world still stands.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pipelines.code import changed

_SHOWN = 6
_TEXT = 60


def canonical(value: Any) -> str:
    """JSON with sorted keys: equal values, equal text."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=str)


def digest(value: Any) -> str:
    """SHA-256 of the canonical JSON of a value."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


@dataclass(frozen=True)
class Basis:
    """All that decides what a step leaves.

    Attributes:
        params: the step's own section of params.yaml; what it does not say is decided by the code.
        arguments: of the whole pipeline, as far as the step takes them, and settings that it reads.
        data: name of a source -> hash of its content.
        inputs: step whose output is needed -> digest of that output.
        code: file -> SHA-256.
        packages: distribution -> version.
    """

    params: Mapping[str, Any] = field(default_factory=dict)
    arguments: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, str] = field(default_factory=dict)
    inputs: Mapping[str, str] = field(default_factory=dict)
    code: Mapping[str, str] = field(default_factory=dict)
    packages: Mapping[str, str] = field(default_factory=dict)

    @property
    def key(self) -> str:
        return digest(asdict(self))


@dataclass(frozen=True)
class Receipt:
    """What a step left, from what.

    Attributes:
        run_id: the run that executed the step; others that reused it keep the receipt too, with their own folder.
        outputs: file below `folder` -> SHA-256.
        folder: of the outputs, relative to the folder of the receipts' owner.
        notes: what the owner of the DAG keeps beside it, e.g. which champion a model was compared with.
        moved: what of the basis changed while the step ran, so that nobody knows which of the two it read; empty as a rule.
    """

    step: str
    run_id: str
    folder: str
    basis: Basis
    outputs: Mapping[str, str]
    seconds: float
    notes: Mapping[str, str] = field(default_factory=dict)
    moved: str = ""

    @property
    def digest(self) -> str:
        return digest(dict(self.outputs))


@dataclass(frozen=True)
class Decision:
    """`receipt` is what to reuse, or None when the step must run; `why` is for people."""

    receipt: Receipt | None
    why: str


class Receipts:
    """The receipts of one line, one file each below `folder/receipts`; a file appears whole or not at all."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def put(self, receipt: Receipt) -> None:
        """Keep a receipt under the run in whose folder the outputs lie. Its name sorts by time: the newest is the last."""
        path = self.folder / "receipts" / receipt.step / f"{_holder(receipt)}.{receipt.basis.key[:16]}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(asdict(receipt), ensure_ascii=False), encoding="utf-8")
        temporary.replace(path)

    def newest(self, step: str) -> Receipt | None:
        """What the last run that had this step at its end was made from or reused, as far as it can be read."""
        return next(self._read(step, "*.json"), None)

    def matching(self, step: str, key: str) -> list[Receipt]:
        """Receipts of a step with this key, newest first."""
        return [receipt for receipt in self._read(step, f"*.{key[:16]}.json") if receipt.basis.key == key]

    def all(self, step: str) -> list[Receipt]:
        """Receipts of a step, newest first."""
        return list(self._read(step, "*.json"))

    def _read(self, step: str, pattern: str) -> Iterator[Receipt]:
        for path in sorted((self.folder / "receipts" / step).glob(pattern), reverse=True):
            try:
                told = json.loads(path.read_text(encoding="utf-8"))
                receipt = Receipt(**{**told, "basis": Basis(**told["basis"])})
            except (OSError, ValueError, TypeError, KeyError):
                continue  # cut short or of another version: as if it were not there, and the step runs
            if _sound(receipt):
                yield receipt

    def fault(self, receipt: Receipt) -> str:
        """Why the files of a receipt cannot be used; empty when they are what they were."""
        if receipt.moved:
            return f"{receipt.moved} while run {receipt.run_id} ran it"
        place = self.folder / receipt.folder
        if not place.exists():
            return f"the output of run {_holder(receipt)} is gone"
        for name, how in changed(receipt.outputs, tree(place)):
            return f"{(Path(receipt.step) / name).as_posix()} of run {_holder(receipt)} was {how}"
        return ""


def _holder(receipt: Receipt) -> str:
    """The run in whose folder the outputs lie."""
    return Path(receipt.folder).parts[0]


def _sound(receipt: Receipt) -> bool:
    """Whether every field is of its kind, so that a file which somebody wrote into is as none."""
    texts = (receipt.step, receipt.run_id, receipt.folder, receipt.moved)
    maps = (receipt.outputs, receipt.notes, *vars(receipt.basis).values())
    kinds = all(isinstance(text, str) for text in texts) and all(isinstance(one, Mapping) for one in maps)
    return kinds and bool(Path(receipt.folder).parts)


def tree(top: Path) -> dict[str, str]:
    """File below a folder -> SHA-256 of its bytes; a symbolic link counts by where it points. A file alone is called `.`."""
    if not top.is_dir():
        return {".": _hash(top)}
    found: dict[str, str] = {}
    for place, folders, names in os.walk(top):
        for name in [*names, *(name for name in folders if (Path(place) / name).is_symlink())]:
            path = Path(place) / name
            told = f"link {path.readlink()}" if path.is_symlink() else _hash(path)
            found[path.relative_to(top).as_posix()] = told
    return dict(sorted(found.items()))


def _hash(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def share(source: Path, to: Path) -> None:
    """Make `to` the same file or folder as `source`: by hard links, which cost nothing, or copies on another file system.

    Every writer replaces files and never writes into them, so what one run has, another cannot change by accident; whoever
    does so by hand is noticed, because a receipt's files are hashed before they are used.
    """
    temporary = to.with_name(f".{to.name}.tmp")
    temporary.parent.mkdir(parents=True, exist_ok=True)
    for copy in (os.link, shutil.copy2):
        _remove(temporary)
        try:
            if source.is_dir():
                shutil.copytree(source, temporary, symlinks=True, copy_function=copy)
            else:
                copy(source, temporary)
            break
        except (OSError, shutil.Error):
            if copy is shutil.copy2:
                raise
    _remove(to)
    temporary.replace(to)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def decide(
    step: str,
    basis: Basis,
    receipts: Receipts,
    *,
    stands: Callable[[Receipt], str] = lambda _: "",
) -> Decision:
    """Decide about one step whose inputs are known.

    Args:
        stands: why a receipt does not stand any more although its basis is the same; empty when it does.
    """
    faults = []
    for receipt in receipts.matching(step, basis.key):
        fault = stands(receipt) or receipts.fault(receipt)
        if not fault:
            return Decision(receipt, f"nothing it depends on changed since run {receipt.run_id}")
        faults.append(fault)
    if faults:
        return Decision(None, faults[0])
    newest = receipts.newest(step)
    if newest is None:
        return Decision(None, "it never ran to its end here")
    changes = differences(step, newest.basis, basis)
    more = [f"and {len(changes) - _SHOWN} more"] if len(changes) > _SHOWN else []
    return Decision(None, "; ".join([*changes[:_SHOWN], *more]))


def differences(step: str, before: Basis, now: Basis) -> list[str]:
    """What differs between two bases of a step, in words: parameters first, then data, code, inputs and packages."""
    old, new = _flat(before.params), _flat(now.params)
    found = [
        f"{step}.{name} changed from {_shown(old, name)} to {_shown(new, name)}"
        for name in sorted({*old, *new})
        # As text, as the key has it: 10 and 10.0 are equal numbers, and other text in what a step writes.
        if _text(old, name) != _text(new, name)
    ]
    found += [
        f"{name} changed from {_shown(before.arguments, name)} to {_shown(now.arguments, name)}"
        for name in sorted({*before.arguments, *now.arguments})
        if _text(before.arguments, name) != _text(now.arguments, name)
    ]
    found += [
        f"the content of {name} changed from {str(before.data[name])[:12]} to {now.data[name][:12]}"
        for name, how in changed(before.data, now.data)
        if how == "changed"
    ]
    found += [f"{name} {how}" for name, how in changed(before.code, now.code)]
    found += [f"the output of {name} {how}" for name, how in changed(before.inputs, now.inputs)]
    found += [
        f"package {name} {how} from {before.packages[name]} to {now.packages[name]}"
        if how == "changed"
        else f"package {name} {how}"
        for name, how in changed(before.packages, now.packages)
    ]
    return found or ["how receipts are written changed"]


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, Mapping) or (prefix and not value):
        return {prefix: value}
    return {
        name: leaf
        for key, inner in value.items()
        for name, leaf in _flat(inner, f"{prefix}.{key}" if prefix else str(key)).items()
    }


def _text(values: Mapping[str, Any], name: str) -> str:
    return canonical(values[name]) if name in values else "its default"


def _shown(values: Mapping[str, Any], name: str) -> str:
    text = _text(values, name)
    return text if len(text) <= _TEXT else text[:_TEXT] + "..."
