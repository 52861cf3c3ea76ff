"""Labels as numbers to learn from: class codes or values. It chooses no classes; the contract has them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from esteira.errors import DataError
from esteira.features import parse

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

    from esteira.features.contract import Target


def encode_labels(labels: "Sequence[Any] | pd.Series[Any]", target: "Target") -> "NDArray[Any]":
    """Labels as class codes (int64, index into `target.classes`) or values (float64).

    Raises:
        DataError: a label is empty, or is no class of the contract, or no finite number.
    """
    cells = list(labels)
    codes: dict[Any, int] = {(type(label), label): code for code, label in enumerate(target.classes or ())}
    memo: dict[Any, float] = {}
    out = np.empty(len(cells), dtype=np.float64 if target.classes is None else np.int64)
    for index, cell in enumerate(cells):
        key = (type(cell), cell)
        if key not in memo:
            try:
                label = parse.label(cell, target)
            except ValueError as error:
                raise _bad_label(str(error), target, index) from error
            if label is None:
                raise _bad_label("must have a value, but is empty", target, index)
            memo[key] = codes[type(label), label] if target.classes else float(label)
        out[index] = memo[key]
    return out


def _bad_label(message: str, target: "Target", row: int) -> DataError:
    return DataError(
        f"label {target.name!r} {message}",
        code="bad_label",
        where=f"column {target.name}, row {row}",
        cure="quarantine the row (`validate` does), or correct the label",
    )
