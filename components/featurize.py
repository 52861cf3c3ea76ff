"""Step `featurize`: splits the good rows, makes float32 features of them, holds the features against what can be learned from.

What is fitted sees training rows only.
"""

import io
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from esteira import outputs
from esteira.errors import DataError
from esteira.family import Line, load_trainable
from esteira.features import table
from esteira.features.answers import class_key
from esteira.features.contract import TableContract
from esteira.features.labels import encode_labels
from esteira.features.leaks import duplicates, find_suspicions

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

ROW = "__row__"
_SAID = 10  # findings that go into the log; features.json has them all
Method = Literal["stratified", "random", "time", "group"]


class Params(BaseModel):
    """What a person may say about the split.

    Attributes:
        test_size: share of the rows that is held back, in (0, 1).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    test_size: float = Field(default=0.2, gt=0, lt=1)


class Report(BaseModel):
    """What featurize did.

    Attributes:
        method: stratified (classes), random (regression), time or group (the contract says so).
        train_rows, test_rows: rows of each part.
        features: number of features a row.
        classes: class as text -> rows in [train, test]; None for regression.
        boundary: by time: the first moment of the test part, ISO text in UTC; None for a column of numbers.
        groups: by group: number of groups in [train, test].
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: Method
    seed: int
    test_size: float
    train_rows: int
    test_rows: int
    features: int
    classes: dict[str, tuple[int, int]] | None = None
    boundary: str | None = None
    groups: tuple[int, int] | None = None


@dataclass(frozen=True)
class Split:
    """Which rows train and which are held back, as positions: in source order, by time in time order."""

    method: Method
    train: "NDArray[np.int64]"
    test: "NDArray[np.int64]"
    boundary: str | None = None
    groups: tuple[int, int] | None = None

    @classmethod
    def of(cls, method: Method, held: "NDArray[np.bool_]", **more: Any) -> "Split":
        return cls(method, np.flatnonzero(~held), np.flatnonzero(held), **more)


def split(frame: "pd.DataFrame", y: "NDArray[Any]", contract: TableContract, *, test_size: float, seed: int) -> Split:
    """Choose the test rows: by time or group when the contract names such a column, else by class, else at random.

    Args:
        frame: n typed rows.
        y: class codes or values of shape (n,).
        contract: of the line.
        test_size: share of the rows to hold back.
        seed: of the random choice; the split by time has none.

    Returns:
        Each row in one part. Rows of one moment, or of one group, are on one side.

    Raises:
        DataError: the column of time or group is absent, or a part would be empty.
    """
    rng = np.random.default_rng(seed)
    chosen: Split
    if contract.time_column:
        chosen = _by_time(_moments(frame, contract, contract.time_column), test_size)
    elif contract.group_column:
        chosen = _by_group(_column(frame, contract, contract.group_column, "group_column"), test_size, rng)
    elif contract.target.classes is not None:
        chosen = Split.of("stratified", _stratified(y, test_size, rng))
    else:
        chosen = Split.of("random", rng.permutation(len(y)) < round(test_size * len(y)))
    if not (len(chosen.train) and len(chosen.test)):
        raise DataError(
            f"both parts of a split need rows, but holding back {test_size:g} of {len(y)} rows ({chosen.method}) gives "
            f"{len(chosen.train)} to train on and {len(chosen.test)} to test on",
            code="too_few_rows",
            where=contract.line,
            cure="bring more rows, or more distinct times or groups",
        )
    return chosen


def _column(frame: "pd.DataFrame", contract: TableContract, name: str, option: str) -> "pd.Series[Any]":
    if name not in frame.columns:
        raise DataError(
            f"the contract's {option} must be in the rows, but {name!r} is absent",
            code="missing_column",
            where=f"{contract.line}, column {name}",
            cure=f"keep the column in the source, or take {option} out of the contract",
        )
    return frame[name]


def _stratified(y: "NDArray[Any]", test_size: float, rng: np.random.Generator) -> "NDArray[np.bool_]":
    """Of each class its share, by largest remainder; of 5 rows or more one at least, and never a class's only row."""
    _, codes, counts = np.unique(y, return_inverse=True, return_counts=True)
    exact = counts * test_size
    take = np.floor(exact).astype(np.int64)
    left = round(len(y) * test_size) - int(take.sum())
    take[np.argsort(take - exact, kind="stable")[: max(left, 0)]] += 1
    take = np.clip(take, np.where(counts >= 5, 1, 0), np.maximum(counts - 1, 0))
    held = np.zeros(len(y), dtype=bool)
    for index, count in enumerate(take):
        held[rng.permutation(np.flatnonzero(codes == index))[:count]] = True
    return held


def _moments(frame: "pd.DataFrame", contract: TableContract, name: str) -> "tuple[NDArray[np.int64], bool]":
    """A sortable whole number a row, the least one where there is no time; and whether these are dates."""
    from esteira.features.decode import MISSING_DATE, microseconds

    series = _column(frame, contract, name, "time_column")
    if series.dtype.kind not in "iuf":
        return microseconds(series, name), True
    values = series.to_numpy(dtype=np.float64, na_value=np.nan)
    ranks = np.unique(values[~np.isnan(values)])
    return np.where(np.isnan(values), MISSING_DATE, np.searchsorted(ranks, values)), False


def _by_time(timed: "tuple[NDArray[np.int64], bool]", test_size: float) -> Split:
    """The latest rows; rows without a time train, and so do all of the boundary's moment."""
    moments, dated = timed
    order = np.argsort(moments, kind="stable")
    ordered = moments[order]
    first = len(order) - max(1, round(test_size * len(order)))
    # One moment stays on one side: the test part begins with a moment's first row, later if it can, else earlier.
    begin = int(np.searchsorted(ordered, ordered[max(first - 1, 0)], side="right"))
    if begin == len(order):
        begin = int(np.searchsorted(ordered, ordered[-1], side="left"))
    boundary = str(np.datetime64(int(ordered[begin]), "us")) + "Z" if dated else None
    return Split("time", order[:begin], order[begin:], boundary=boundary)


def _by_group(series: "pd.Series[Any]", test_size: float, rng: np.random.Generator) -> Split:
    """Whole groups in random order, each held back if that comes nearer to the share; rows without a group are one."""
    import pandas as pd

    codes, levels = pd.factorize(series.astype(object).where(series.notna(), None), use_na_sentinel=False)
    counts = np.bincount(codes, minlength=len(levels))
    wanted, held, chosen = test_size * len(series), 0, list[int]()
    order = rng.permutation(len(levels)).tolist()
    for group in order:
        if abs(held + counts[group] - wanted) < abs(held - wanted):
            chosen.append(group)
            held += int(counts[group])
    if not chosen and len(levels) > 1:
        chosen = [min(order, key=lambda group: int(counts[group]))]
    return Split.of("group", np.isin(codes, chosen), groups=(len(levels) - len(chosen), len(chosen)))


def run(*, rows: Path, contract: Path, out: Path, params: Params | None = None, seed: int = 42) -> Report:
    """Split, fit the family's featurizer on the training rows, make the features of both parts and look at them.

    Args:
        rows: validate's rows.parquet.
        contract: validate's contract.yaml.
        out: folder for x_train.npy, y_train.npy, x_test.npy, y_test.npy (x float32 (rows, features); y class codes int64
            or values float64), rows_train.parquet, rows_test.parquet, split.json, features.json (names, groups by
            source column, findings; see `esteira.features.table`) and the featurizer's own files, such as decoder.json.
            Rows keep the source's order; split by time, they are in time order.
        params: the step's section of params.yaml.
        seed: of the split.

    Raises:
        ConfigError: the family cannot run.
        DataError: too few rows, an absent column, a cell that cannot be decoded, an infinite feature.
        OutsideError: the disk is full.
    """
    import pandas as pd

    params = params or Params()
    agreed = TableContract.from_yaml(contract.read_text(encoding="utf-8"))
    family = load_trainable(Line.parse(agreed.line).family)
    frame = pd.read_parquet(rows)
    y = encode_labels(frame[agreed.target.name], agreed.target)
    chosen = split(frame, y, agreed, test_size=params.test_size, seed=seed)
    train, test = frame.iloc[chosen.train], frame.iloc[chosen.test]
    y_train, y_test = y[chosen.train], y[chosen.test]
    classes = agreed.target.classes
    if classes is not None and len(np.unique(y_train)) < 2:
        raise DataError(
            f"training needs 2 classes, but the split by {chosen.method} leaves 1 in {len(train)} rows",
            code="one_class",
            where=f"{agreed.line}, column {agreed.target.name}",
            cure="bring more rows, or split another way",
        )
    featurizer = family.featurizer(train, agreed)
    x_train, x_test, files = featurizer.frame(train), featurizer.frame(test), featurizer.files()
    parts = {"train": (x_train, _numbers(train, chosen.train)), "test": (x_test, _numbers(test, chosen.test))}
    records, findings = table.examine(featurizer.names, parts, f"{agreed.line}, step featurize")
    findings += [*find_suspicions(train, agreed.target.name, agreed), *duplicates(x_train, y_train).findings()]
    for finding in findings[:_SAID]:
        print(finding.told, file=sys.stderr)
    made = table.record(featurizer.names, featurizer.categorical, featurizer.groups, list(files), records, findings)
    report = Report(
        method=chosen.method,
        seed=seed,
        test_size=params.test_size,
        train_rows=len(train),
        test_rows=len(test),
        features=len(featurizer.names),
        classes=None if classes is None else {
            class_key(name): (int((y_train == code).sum()), int((y_test == code).sum()))
            for code, name in enumerate(classes)
        },
        boundary=chosen.boundary,
        groups=chosen.groups,
    )  # fmt: skip
    outputs.write(
        out,
        {
            **files,
            "x_train.npy": _npy(x_train),
            "y_train.npy": _npy(y_train),
            "x_test.npy": _npy(x_test),
            "y_test.npy": _npy(y_test),
            "rows_train.parquet": _parquet(train),
            "rows_test.parquet": _parquet(test),
            "split.json": _json(report.model_dump(mode="json")),
            "features.json": _json(made),
        },
    )
    return report


def _numbers(part: "pd.DataFrame", positions: "NDArray[np.int64]") -> "NDArray[np.int64]":
    """The source's row numbers, from 1."""
    return part[ROW].to_numpy(np.int64) if ROW in part.columns else positions + 1


def _json(document: Any) -> bytes:
    return (json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _npy(array: "NDArray[Any]") -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def _parquet(frame: "pd.DataFrame") -> bytes:
    buffer = io.BytesIO()
    frame.reset_index(drop=True).to_parquet(buffer, index=False)
    return buffer.getvalue()


if __name__ == "__main__":
    from components.door import main

    main("featurize")
