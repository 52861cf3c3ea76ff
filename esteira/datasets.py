"""Writes the real tables that scikit-learn bundles as CSV: the same bytes on every machine, no network, nothing invented."""

import csv
import hashlib
import io
from pathlib import Path
from typing import Any, TypedDict

from esteira import outputs
from esteira.errors import DataError


class Written(TypedDict):
    """One data set that was written; `path` is the folder as it was given and the file's name."""

    name: str
    path: str
    label: str
    task: str
    rows: int
    sha256: str


# What the files must be, byte for byte. A new scikit-learn that bundles other numbers is found here, not in a model.
SHA256 = {
    "breast_cancer.csv": "518936fa92ca3d8a78c420aee22030c4e519ffcba3be15dd23e83f2fc22e20e5",
    "diabetes.csv": "9193026b7622ff944f0a6855a10107b24caf50dad69787c46e6890e69c27faca",
    "wine.csv": "154df176f00535b64551ff301a42b1eed9c9ddc72037cca9f5d7e35ea8bd9495",
}


def write_data(folder: Path) -> list[Written]:
    """Write breast_cancer.csv (label `diagnosis`), wine.csv (`cultivar`) and diabetes.csv (`progression`).

    Args:
        folder: where to; it is created. All three files appear, or none.

    Returns:
        What was written, by name.

    Raises:
        DataError: the installed scikit-learn bundles other data than this project was written for.
        OutsideError: the disk is full.
    """
    files = {"breast_cancer.csv": _breast_cancer(), "diabetes.csv": _diabetes(), "wine.csv": _wine()}
    written: list[Written] = []
    contents: dict[str, bytes] = {}
    for file, (label, task, header, rows) in files.items():
        contents[file] = _csv(header, rows)
        digest = hashlib.sha256(contents[file]).hexdigest()
        if digest != SHA256[file]:
            raise DataError(
                f"{file} must have sha256 {SHA256[file][:12]}..., but the bundled data give {digest[:12]}...",
                code="other_data",
                where=f"data/{file}",
                cure="install the locked scikit-learn (`make setup`)",
            )
        name, path = file.removesuffix(".csv"), str(folder / file)
        written.append({"name": name, "path": path, "label": label, "task": task, "rows": len(rows), "sha256": digest})
    outputs.write(folder, contents)
    return written


Table = tuple[str, str, list[str], list[list[Any]]]


def _breast_cancer() -> Table:
    from sklearn.datasets import load_breast_cancer

    bunch = load_breast_cancer()
    names = [str(name).replace(" ", "_") for name in bunch.feature_names]
    labels = [str(bunch.target_names[code]) for code in bunch.target]
    return "diagnosis", "binary", [*names, "diagnosis"], _rows(bunch.data, labels)


def _wine() -> Table:
    from sklearn.datasets import load_wine

    bunch = load_wine()
    names = [str(name).replace("/", "_") for name in bunch.feature_names]
    labels = [f"cultivar_{int(code) + 1}" for code in bunch.target]
    return "cultivar", "multiclass", [*names, "cultivar"], _rows(bunch.data, labels)


def _diabetes() -> Table:
    from sklearn.datasets import load_diabetes

    bunch = load_diabetes(scaled=False)
    names = [str(name) for name in bunch.feature_names]
    return "progression", "regression", [*names, "progression"], _rows(bunch.data, bunch.target.tolist())


def _rows(data: Any, labels: list[Any]) -> list[list[Any]]:
    return [
        [*(_number(value) for value in row), _number(label)] for row, label in zip(data.tolist(), labels, strict=True)
    ]


def _number(value: Any) -> Any:
    """Whole numbers without a point; the shortest text of any other."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _csv(header: list[str], rows: list[list[Any]]) -> bytes:
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return buffer.getvalue().encode()
