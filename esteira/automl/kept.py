"""Out-of-fold predictions of trials, kept beside the journal so that a resumed search need not fit again what it did.

A file that is missing, cut off or changed is as if it had never been: the trial is fitted again.
"""

import hashlib
import io
import json
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from esteira import outputs
from esteira.origin import dependencies

_DIGEST = 16


class Predictions:
    """Arrays of trials in one folder, by number and name."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @classmethod
    def beside(cls, storage: str, name: str) -> "Predictions | None":
        """Those of a search, beside its journal; None for a study that is not a file, whose trials are fitted again.

        Args:
            storage: as for `Study.open`.
            name: of the search.
        """
        if not storage or "://" in storage:
            return None
        journal = Path(storage.removeprefix("journal:")).expanduser()
        return cls(journal.with_name(journal.name + ".predictions") / re.sub(r"[^A-Za-z0-9._-]", "_", name))

    def put(self, number: int, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Keep a trial's arrays, whole or not at all.

        Args:
            number: of the proposal.
            arrays: name -> array; a name is a word of letters, digits and `_`.

        Raises:
            OutsideError: the disk is full, or the folder cannot be written.
        """
        files = {}
        for name, array in arrays.items():
            buffer = io.BytesIO()
            np.save(buffer, array, allow_pickle=False)
            data = buffer.getvalue()
            files[f"{number:05d}.{name}.{_digest(data)}.npy"] = data
        outputs.write(self._folder, files)

    def get(self, number: int, *names: str) -> dict[str, NDArray[Any]] | None:
        """A trial's arrays of these names; None when one is missing or not as it was written."""
        found: dict[str, NDArray[Any]] = {}
        for name in names:
            # Of a trial that two workers made there are two files, and both are its predictions.
            for path in sorted(self._folder.glob(f"{number:05d}.{name}.*.npy")):
                try:
                    data = path.read_bytes()
                except OSError:
                    continue
                if path.name.split(".")[2] == _digest(data):
                    found[name] = np.load(io.BytesIO(data), allow_pickle=False)
                    break
            else:
                return None
        return found


def search_name(arrays: Mapping[str, NDArray[Any] | None], settings: Mapping[str, Any]) -> str:
    """The name of a search: another table, another question or another version of the code has another name.

    Args:
        arrays: what it learns from: features, labels, rows of the folds.
        settings: all else that it depends on, as JSON: task, candidates, metric, seed. Not how long it may go on.
    """
    digest = hashlib.sha256(_code().encode())
    digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
    for name, array in sorted(arrays.items()):
        digest.update(f"\0{name}\0".encode())
        if array is not None:
            digest.update(f"{array.dtype.str}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()[:32]


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:_DIGEST]


@cache
def _code() -> str:
    """The sources of the search and of what it draws, and the versions of the libraries that fit."""
    digest = hashlib.sha256()
    package = Path(__file__).parents[1]
    for folder in ("automl", "onnx", "features"):
        for path in sorted((package / folder).rglob("*")):
            if path.suffix in {".py", ".json"}:
                digest.update(path.relative_to(package).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest() + json.dumps(dependencies(), sort_keys=True)
