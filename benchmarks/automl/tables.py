"""The public tables of the comparison and their splits; reads `$ESTEIRA_TEST_DATA`, writes only where it is told to."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

Task = Literal["binary", "multiclass", "regression"]

ROOT = Path(__file__).resolve().parents[2]
TEST_SHARE = 0.25
SMALL = 5000  # rows below which one split says little, so that several seeds are run


@dataclass(frozen=True)
class Table:
    """A public table.

    Attributes:
        name: of the folder, without `tabular_`.
        rows: how many there are, as its SOURCE.md says.
    """

    name: str
    target: str
    task: Task
    rows: int


TABLES: Mapping[str, Table] = {
    table.name: table
    for table in (
        Table("vehicle", "Class", "multiclass", 846),
        Table("anneal", "class", "multiclass", 898),
        Table("credit_g", "class", "binary", 1_000),
        Table("concrete", "strength", "regression", 1_030),
        Table("titanic", "survived", "binary", 1_309),
        Table("kr_vs_kp", "class", "binary", 3_196),
        Table("abalone", "Rings", "regression", 4_177),
        Table("phoneme", "class", "binary", 5_404),
        Table("telco_churn", "Churn", "binary", 7_043),
        Table("mammography", "class", "binary", 11_183),
        Table("letter", "letter", "multiclass", 20_000),
        Table("california_housing", "median_house_value", "regression", 20_640),
        Table("adult", "income", "binary", 32_561),
        Table("diamonds", "price", "regression", 53_940),
    )
}


def place() -> Path:
    """The folder of the public sets."""
    return Path(os.environ.get("ESTEIRA_TEST_DATA", ROOT.parent / "shared" / "data"))


def read(table: Table) -> "pd.DataFrame":
    """The whole table, its label last.

    Raises:
        FileNotFoundError: it is not there.
    """
    import pandas as pd

    folder = place() / f"tabular_{table.name}"
    found = next((folder / name for name in ("data.csv", "data.csv.gz") if (folder / name).exists()), None)
    if found is None:
        raise FileNotFoundError(
            f"a public table lies at tabular_{table.name}/data.csv below ESTEIRA_TEST_DATA, but not here"
        )
    return pd.read_csv(found)


def split(frame: "pd.DataFrame", table: Table, seed: int) -> "tuple[pd.DataFrame, pd.DataFrame]":
    """Training and test rows; a quarter is test rows, class by class, drawn by the seed."""
    rng = np.random.default_rng([seed, 20_261_121])
    test = np.zeros(len(frame), bool)
    labels = np.zeros(len(frame)) if table.task == "regression" else frame[table.target].astype(str).to_numpy()
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        test[members[: round(len(members) * TEST_SHARE)]] = True
    return frame[~test], frame[test]


def seeds(table: Table, count: int) -> range:
    """Seeds 1.. of a small table; one of a larger one."""
    return range(1, (count if table.rows < SMALL else 1) + 1)
