"""From a table to what a search takes: contract, featurizer, x, y, groups and times. No project around it; it writes nothing.

What the steps ingest, validate and featurize ask of rows is asked here too, by the same functions and in the same words, but
for a column that nearly copies the label: the steps refuse it, and here it is a finding that people are told of.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from esteira import admission, checks
from esteira.errors import ConfigError, DataError
from esteira.family import Featurizer, Finding, Trainable, load_trainable
from esteira.features.contract import ContractOptions, TableContract
from esteira.features.labels import encode_labels
from esteira.features.leaks import duplicates, find_suspicions
from esteira.features.table import together

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

FAMILY = "tabular"
FEWEST = 4  # rows that a search can hold some back of
LARGEST_LABEL = 1e100
_WHERE = "AutoML"
# What a person at this door can do; the steps' own cures name files and parameters that are not here.
_CURES: Mapping[str, str] = {
    "too_many_bad_rows": "correct these cells, or take the rows out, and run again",
    "too_few_rows": "add rows",
    "one_class": "add rows of another class, or name another label",
    "infinite": "leave such cells empty in the source, or correct what divides by zero",
    "nested_column": "flatten the column into several, or leave it out with --drop",
    "no_columns": "add informative columns, or drop fewer of them",
    "too_many_classes": "name another label, or say --task regression where it is a number",
    "undecodable": "correct the cell, or name another column",
    "type_change": "repair the source, or leave the column out with --drop",
}


@dataclass(frozen=True)
class Table:
    """Rows that a model can learn from, and what is known of them.

    Attributes:
        family: what infers contracts and makes features.
        contract: of the rows.
        featurizer: fitted on all of them.
        rows: good rows in the contract's types, the label among them.
        x: features (rows, features) float32, NaN missing.
        y: class codes int64, or values float64; shape (rows,).
        groups: one number a row where rows belong together, else None.
        times: a sortable moment a row where the contract names a column of time, else None.
        copies: one number a row, the same for copies of one record, where there are such (`Duplicates.records`), else None.
        findings: what people should know, the label's near-copies (rule `leak`) first.
        left_out: rows of the source that broke the contract and are not among `rows`.
    """

    family: Trainable
    contract: TableContract
    featurizer: Featurizer
    rows: "pd.DataFrame"
    x: "NDArray[np.float32]"
    y: "NDArray[Any]"
    groups: "NDArray[Any] | None"
    times: "NDArray[Any] | None"
    copies: "NDArray[np.int64] | None"
    findings: tuple[Finding, ...]
    left_out: int

    @property
    def classes(self) -> int | None:
        """How many classes the label has; None for regression."""
        classes = self.contract.target.classes
        return None if classes is None else len(classes)


def read(
    frame: "pd.DataFrame",
    target: str,
    *,
    line: str = FAMILY,
    options: ContractOptions | None = None,
    nested: Sequence[str] = (),
    where: str = _WHERE,
) -> Table:
    """Infer the contract, leave out rows that break it, make features.

    Args:
        frame: rows of raw text or typed cells, the label among them; not changed.
        target: name of the label column.
        line: what the model will be called.
        options: what people know better than the cells.
        nested: columns whose cells are JSON text of nested values.
        where: the place in messages.

    Raises:
        DataError: no such label, fewer than 4 good rows, a label of one value, too many bad rows, no usable column, a
            nested column, an infinite feature, a label beyond 1e100.
        ConfigError: an option names a column that is not there.
    """
    try:
        return _read(frame, target, line, options or ContractOptions(), nested, where)
    except DataError as error:
        cure = _CURES.get(error.code, error.cure)
        raise DataError(error.message, code=error.code, where=error.where, cure=cure) from error


def _read(
    frame: "pd.DataFrame", target: str, line: str, options: ContractOptions, nested: Sequence[str], where: str
) -> Table:
    family = load_trainable(FAMILY)
    checks.require_target(list(frame.columns), target, where)
    checks.require_classes(frame[target], target, f"{where}, column {target!r}")
    contract, notes = admission.infer(family, frame, target, line, options, where)
    admission.require_flat(nested, contract, where)
    admitted = admission.admit(family, checks.typed(frame, contract), contract)
    refused = admission.refusal(admitted, contract, limit=contract.max_bad_share, min_rows=FEWEST, where=where)
    if refused is not None:
        raise refused
    rows = admitted.good.reset_index(drop=True)
    contract = _occurring(contract, rows)
    faults = [
        Finding("bad_rows", fault.column, None, f"rows that break rule {fault.rule!r} are left out: {len(fault.positions):,}", "warning")
        for fault in admitted.typed.faults
        if fault.severity == "error"
    ]  # fmt: skip
    y = encode_labels(rows[target], contract.target)
    _require_squares(y, target, where)
    leaks = [replace(finding, severity="warning") for finding in admission.leaks(rows, contract)]
    featurizer = family.featurizer(rows, contract)
    x = featurizer.frame(rows)
    repeated = duplicates(x, y)
    suspicions = [*find_suspicions(rows, target, contract), *repeated.findings()]
    _require_finite(x, featurizer.names, where)
    groups, times = together(rows, contract)
    return Table(
        family=family,
        contract=contract,
        featurizer=featurizer,
        rows=rows,
        x=x,
        y=y,
        groups=groups,
        times=times,
        copies=repeated.records,
        findings=(*leaks, *suspicions, *faults, *notes),
        left_out=int(admitted.bad.sum()),
    )


def _occurring(contract: TableContract, rows: "pd.DataFrame") -> TableContract:
    """The contract without classes whose rows were all bad: nothing could be learned of them."""
    target = contract.target
    if target.classes is None:
        return contract
    present = {(type(label), label) for label in rows[target.name].unique().tolist()}
    kept = tuple(label for label in target.classes if (type(label), label) in present)
    if len(kept) == len(target.classes):
        return contract
    task = "binary" if len(kept) == 2 else target.task
    return contract.model_copy(update={"target": target.model_copy(update={"classes": kept, "task": task})})


def _require_squares(y: "NDArray[Any]", target: str, where: str) -> None:
    """Errors are squared and added up, which a value of more than half of a double's exponent does not survive."""
    largest = float(np.abs(y).max())
    if largest > LARGEST_LABEL:
        raise DataError(
            f"a value to learn is at most {LARGEST_LABEL:.0e} in size, but {target!r} has one of {largest:.2e}",
            code="label_too_large", where=f"{where}, column {target!r}", cure="give it in a larger unit, or as its logarithm",
        )  # fmt: skip


def _require_finite(x: "NDArray[np.float32]", names: Sequence[str], where: str) -> None:
    infinite = np.argwhere(np.isinf(x))
    if len(infinite):
        row, feature = (int(at) for at in infinite[0])
        raise DataError(
            f"a feature is a finite number, or missing, but {names[feature]!r} is infinite in {len(infinite)} cells",
            code="bad_features", where=f"{where}, feature {names[feature]!r}, row {row + 1}", cure="correct the source",
        )  # fmt: skip


def plain(frame: Any) -> "pd.DataFrame":
    """A frame of any origin with text names, rows counted from 0, and columns of the types that contracts know.

    Categories become their values, nullable numbers float64, nullable booleans objects, durations seconds; the frame that
    was given stays as it is.

    Raises:
        ConfigError: it is no DataFrame, or its header has several levels.
        DataError: two columns have one name, or hold complex numbers.
    """
    import pandas as pd

    if not isinstance(frame, pd.DataFrame) or frame.columns.nlevels != 1:
        what = type(frame).__name__ if not isinstance(frame, pd.DataFrame) else "a header of several levels"
        raise ConfigError(
            f"rows are a pandas DataFrame with one header, but got {what}",
            code="bad_frame", where=_WHERE, cure="pass pd.DataFrame(rows)",
        )  # fmt: skip
    names = [str(name) for name in frame.columns]
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(
            f"column names are unique, but {twice!r} stands twice",
            code="duplicated_column", where=_WHERE, cure="rename one of them",
        )  # fmt: skip
    made = {name: _plain_series(frame.iloc[:, at], name) for at, name in enumerate(names)}
    return pd.DataFrame(made, index=pd.RangeIndex(len(frame)))


def _plain_series(series: "pd.Series[Any]", name: str) -> Any:
    import pandas as pd

    series = series.reset_index(drop=True)
    if isinstance(series.dtype, pd.CategoricalDtype):
        series = series.astype(object)
    elif isinstance(series.dtype, pd.SparseDtype):
        series = pd.Series(np.asarray(series))
    elif isinstance(series.dtype, pd.PeriodDtype):
        series = series.dt.to_timestamp()
    kind = series.dtype.kind
    if kind == "c":
        raise DataError(
            f"Complex data not supported: a number is real, but column {name!r} holds complex ones",
            code="complex_column", where=f"{_WHERE}, column {name!r}", cure="split it into two columns",
        )  # fmt: skip
    if kind == "m":
        return series.dt.total_seconds()
    if isinstance(series.dtype, pd.api.extensions.ExtensionDtype) and kind in "iuf":
        return series.to_numpy(np.float64, na_value=np.nan)
    if isinstance(series.dtype, pd.api.extensions.ExtensionDtype) and kind == "b":
        return series.astype(object).where(series.notna(), None)
    return series
