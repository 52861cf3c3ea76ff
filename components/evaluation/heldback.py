"""The rows that were held back, as JSON rows with their truths: what a model is measured on. It measures nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from esteira.features import parse
from esteira.features.contract import TableContract


@dataclass(frozen=True)
class TestTable:
    """The held-back rows. `rows` are JSON values without the label, `truths` labels in their own type."""

    __test__ = False  # not a test class, whatever its name

    rows: list[dict[str, Any]]
    truths: list[Any]
    x: NDArray[np.float32]
    y_train: NDArray[Any]
    groups: NDArray[Any] | None


def read_table(features: Path, contract: TableContract) -> TestTable:
    """The held-back rows as featurize left them."""
    import pyarrow.parquet

    # Not `read_table`, which imports pandas (0.5 s); one thread, because two cores are shared with the server.
    file = pyarrow.parquet.ParquetFile(features / "rows_test.parquet")
    columns = [column.name for column in contract.columns]
    extra = [contract.group_column] if contract.group_column and contract.group_column not in columns else []
    read = file.read(columns=[*columns, *extra], use_threads=False)
    codes = np.load(features / "y_test.npy", allow_pickle=False)
    classes = contract.target.classes
    return TestTable(
        rows=json_rows({name: _cells(read.column(name).to_pylist(), contract.column(name).kind) for name in columns}),
        truths=codes.tolist() if classes is None else [classes[code] for code in codes.tolist()],
        x=np.load(features / "x_test.npy", allow_pickle=False),
        y_train=np.load(features / "y_train.npy", allow_pickle=False),
        groups=_groups(read.column(contract.group_column).to_pylist()) if contract.group_column else None,
    )


def _cells(values: list[Any], kind: str) -> list[Any]:
    return [parse.nested(value) for value in values] if kind == "object" else values


def json_rows(columns: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Columns of typed cells as JSON rows: dates become ISO text, NaN becomes null."""
    plain = [[_json_cell(cell) for cell in cells] for cells in columns.values()]
    keys = tuple(columns)
    return [dict(zip(keys, cells, strict=True)) for cells in zip(*plain, strict=True)]


def _json_cell(cell: Any) -> Any:
    if cell is None or cell != cell:
        return None
    return cell.isoformat() if hasattr(cell, "isoformat") else cell


def _groups(values: Sequence[Any]) -> NDArray[np.int64]:
    codes: dict[Any, int] = {}
    return np.array([codes.setdefault(value, len(codes)) for value in values], dtype=np.int64)
