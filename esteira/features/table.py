"""Holds a table of features against what a model can learn from, before one does. Pure; it changes no feature."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from esteira.errors import DataError
from esteira.family import Finding
from esteira.features.decode import microseconds

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

    from esteira.features.contract import TableContract

FAR = 0.5  # difference of the missing shares of train and test from which a feature is another one there


def examine(
    names: Sequence[str],
    parts: "Mapping[str, tuple[NDArray[np.float32], NDArray[np.int64]]]",
    where: str,
) -> tuple[list[dict[str, Any]], list[Finding]]:
    """Look at the features of each part of the data.

    Args:
        names: one a feature.
        parts: `train` and `test` -> features (rows, len(names)), and the source's row number of each row, from 1.
        where: the place in messages.

    Returns:
        One record a feature: `name`, and for each part `missing_share` in [0, 1], `minimum`, `maximum` (null without a
        value); and findings, all of them warnings: a feature that is always missing or constant in the training rows, or
        missing much more often in one part than in the other.

    Raises:
        DataError: the features have another shape or type, two have one name, or one is infinite; names feature and row.
    """
    if len(set(names)) != len(names):
        twice = next(name for name in names if list(names).count(name) > 1)
        raise _wrong(f"each feature has a name of its own, but {twice!r} is there twice", where)
    seen: dict[str, list[dict[str, Any]]] = {}
    for part, (x, rows) in parts.items():
        if x.dtype != np.float32 or x.shape != (len(rows), len(names)):
            raise _wrong(
                f"features are float32 of shape (rows, features), ({len(rows)}, {len(names)}), but those of the {part} rows"
                f" are {x.dtype} of shape {x.shape}",
                where,
            )
        infinite = np.argwhere(np.isinf(x))
        if len(infinite):
            row, feature = (int(at) for at in infinite[0])
            raise _wrong(
                f"a feature is a finite number, or NaN where it is missing, but {names[feature]!r} is {x[row, feature]} in"
                f" data row {int(rows[row])} and in {len(infinite)} cells in all",
                f"{where}, feature {names[feature]!r}, data row {int(rows[row])}",
            )
        seen[part] = _columns(x)
    records = [{"name": name, **{part: seen[part][at] for part in parts}} for at, name in enumerate(names)]
    return records, [finding for record in records for finding in _findings(record)]


def _columns(x: "NDArray[np.float32]") -> list[dict[str, Any]]:
    missing = np.isnan(x)
    # Sentinels instead of nanmin, which warns about a column without a value.
    low = np.where(missing, np.float32(np.inf), x).min(axis=0, initial=np.inf)
    high = np.where(missing, np.float32(-np.inf), x).max(axis=0, initial=-np.inf)
    shares = missing.mean(axis=0) if len(x) else np.zeros(x.shape[1])
    return [
        {
            "missing_share": round(float(share), 6),
            "minimum": None if a > b else float(a),
            "maximum": None if a > b else float(b),
        }
        for share, a, b in zip(shares, low, high, strict=True)
    ]


def _findings(record: Mapping[str, Any]) -> list[Finding]:
    name, train, test = record["name"], record["train"], record["test"]
    if train["minimum"] is None:
        return [Finding("all_missing", name, None, "has no value in any training row", "warning")]
    found = []
    if train["minimum"] == train["maximum"] and not train["missing_share"]:
        message = f"is {train['minimum']:.15g} in every training row"
        found.append(Finding("constant", name, None, message, "warning"))
    apart = abs(train["missing_share"] - test["missing_share"])
    if apart > FAR:
        message = f"is missing in {train['missing_share']:.1%} of the training rows and {test['missing_share']:.1%} of the test rows"
        found.append(Finding("missing_apart", name, None, message, "warning"))
    return found


def record(
    names: Sequence[str],
    categorical: Sequence[int],
    groups: Mapping[str, Sequence[int]],
    files: Sequence[str],
    features: Sequence[Mapping[str, Any]],
    findings: Sequence[Finding],
) -> dict[str, Any]:
    """The document `features.json`.

    Returns:
        `{"version", "names", "categorical", "groups" (source column -> positions), "files" (of the featurizer, beside this
        one), "features" (see `examine`), "findings"}`.
    """
    return {
        "version": 1,
        "names": list(names),
        "categorical": list(categorical),
        "groups": {column: list(positions) for column, positions in groups.items()},
        "files": list(files),
        "findings": [{key: value for key, value in asdict(finding).items() if key != "row"} for finding in findings],
        "features": list(features),
    }


def _wrong(message: str, where: str) -> DataError:
    return DataError(message, code="bad_features", where=where, cure="correct what computes the family's features")


def together(
    rows: "pd.DataFrame", contract: "TableContract"
) -> tuple["NDArray[np.int64] | None", "NDArray[Any] | None"]:
    """Which rows may not be parted, and in which order they came, as far as the contract says so.

    Args:
        rows: typed rows.
        contract: names a column of time, one of groups, both or neither.

    Returns:
        Groups as one number a row, and moments as sortable numbers; shapes (rows,). Rows without a moment come first.
    """
    import pandas as pd

    groups: NDArray[np.int64] | None = None
    times: NDArray[Any] | None = None
    if contract.group_column:
        groups = pd.factorize(rows[contract.group_column], use_na_sentinel=False)[0].astype(np.int64)
    if contract.time_column:
        series = rows[contract.time_column]
        if series.dtype.kind in "iuf":
            times = series.to_numpy(np.float64, na_value=-np.inf)
        else:
            times = microseconds(series, contract.time_column)
    return groups, times


def word_columns(names: Sequence[str], groups: Mapping[str, Sequence[int]]) -> tuple[tuple[int, ...], ...]:
    """Positions of the word features of each text column, as the decoder names them; columns without words are left out.

    Args:
        names: one a feature.
        groups: source column -> positions of its features.
    """
    found = (
        tuple(at for at in positions if names[at].startswith(f"{column}.has.")) for column, positions in groups.items()
    )
    return tuple(positions for positions in found if positions)
