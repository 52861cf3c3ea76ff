"""Which rows of a table can be learned from: a contract is made, cells are read by it, what breaks it is refused in words. Pure.

The step validate and AutoML without a project ask the same questions here, so that they say the same of the same table.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from esteira import checks
from esteira.checks import Fault, Typed
from esteira.errors import ConfigError, DataError
from esteira.family import Finding, Trainable
from esteira.features.contract import ContractOptions, TableContract
from esteira.features.decode import json_rows
from esteira.features.leaks import find_leaks
from esteira.features.parse import shown

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

_INFINITE = re.compile(r"[+-]?inf(inity)?", re.IGNORECASE)


@dataclass(frozen=True)
class Admission:
    """A table read by its contract.

    Attributes:
        typed: cells in the contract's types, with all faults, those of the family's own rules too.
        bad: mask of the rows that must be left out; shape (rows,).
    """

    typed: Typed
    bad: "NDArray[np.bool_]"

    @property
    def good(self) -> "pd.DataFrame":
        """The rows to learn from, in the table's order and with its positions as index."""
        return self.typed.frame[~self.bad]


def infer(
    family: Trainable, frame: "pd.DataFrame", target: str, line: str, options: ContractOptions, where: str
) -> tuple[TableContract, list[Finding]]:
    """The family's contract for these rows, and its notes for people.

    Args:
        family: what knows how such rows look.
        frame: raw rows, the label among them; not changed.
        target: name of the label column.
        line: the line the contract is for.
        options: what people know better than the cells.
        where: the place in messages.

    Raises:
        DataError: a column of numbers has more infinite ones than rows may be bad, or the family refuses the rows.
        ConfigError: an option names a column or a kind that there is not.
    """
    given = options.max_bad_share
    limit = TableContract.model_fields["max_bad_share"].default if given is None else given
    return family.contract(_without_infinite(frame, limit, where), target, line, options)


def require_flat(nested: Sequence[str], contract: TableContract, where: str) -> None:
    """Refuse nested cells where the contract takes a number, text, a boolean or a date.

    Raises:
        DataError: names the column.
    """
    objects = {column.name for column in contract.columns if column.kind == "object"}
    used = {column.name for column in contract.columns} | {contract.target.name}
    wrong = [name for name in nested if name in used - objects]
    if wrong:
        raise DataError(
            f"a cell is a number, text, a boolean or a date, but column {wrong[0]!r} holds objects or arrays",
            code="nested_column",
            where=f"{where}, column {wrong[0]!r}",
            cure=f"flatten the column into several, or leave it out with validate.drop: [{wrong[0]}]",
        )


def admit(family: Trainable, made: Typed, contract: TableContract) -> Admission:
    """Decide which rows are left out, by the faults of their cells and by the family's own rules.

    Args:
        family: its `row_rules` are asked of the rows whose cells have the contract's types.
        made: what `checks.typed` read.
        contract: of these rows.
    """
    import numpy as np

    made = replace(made, faults=(*made.faults, *_broken_rules(family, made, contract)))
    bad = np.zeros(len(made.frame), dtype=bool)
    for fault in made.faults:
        if fault.severity == "error":
            bad[fault.positions] = True
    return Admission(made, bad)


def refusal(
    admission: Admission, contract: TableContract, *, limit: float, min_rows: int, where: str, accepted: bool = False
) -> DataError | None:
    """Why these rows cannot be learned from; None when they can.

    Args:
        admission: the rows.
        contract: of these rows.
        limit: share of the rows in [0, 1] that may be bad.
        min_rows: the fewest good rows.
        where: the place in the message.
        accepted: whether the contract was there before these rows, which then may have drifted from it.
    """
    errors = [fault for fault in admission.typed.faults if fault.severity == "error"]
    count, rows = int(admission.bad.sum()), len(admission.bad)
    if count > limit * rows:
        worst = max(errors, key=lambda fault: len(fault.positions))
        examples = "; ".join(
            f"data row {int(at) + 1}: {shown(value)}"
            for at, value in zip(worst.positions[: checks.EXAMPLES], worst.values, strict=False)
        )
        share = f"{count:,} of {rows:,} ({count / rows:.1%})"
        drifted = accepted and worst.rule == "type"
        return DataError(
            f"at most {limit:.1%} of the rows may be bad, but {share} are; most often rule {worst.rule!r} of column"
            f" {worst.column!r}, in {len(worst.positions):,} rows"
            + (" (the column has another type than the line's contract says)" if drifted else "")
            + f": {examples}",
            code="type_drift" if drifted else "too_many_bad_rows",
            where=f"{where}, column {worst.column!r}, data row {int(worst.positions[0]) + 1}",
            cure="see quarantine.jsonl and report.html for every row and reason; correct the source, or raise"
            " validate.max_bad_share",
        )
    good = admission.good
    if len(good) < min_rows:
        return DataError(
            f"a model needs at least {min_rows} good rows, but there are {len(good)} of {rows}",
            code="too_few_rows",
            where=where,
            cure="add rows, or lower validate.min_rows",
        )
    label = contract.target.name
    if good[label].nunique() < 2:
        return DataError(
            f"the label must have at least two values, but the {len(good):,} good rows all have"
            f" {label!r} = {shown(good[label].iloc[0])}",
            code="one_class",
            where=f"{where}, column {label!r}",
            cure="see quarantine.jsonl for the rows of other classes and why they are bad",
        )
    return None


def leaks(good: "pd.DataFrame", contract: TableContract, allowed: Sequence[str] = ()) -> list[Finding]:
    """Columns that are near-copies of the label, but for those that a person allows.

    Raises:
        ConfigError: an allowed column is none of the contract.
    """
    unknown = [column for column in allowed if all(column != known.name for known in contract.columns)]
    if unknown:
        raise ConfigError(
            f"an allowed leak is a column of the contract, but {unknown[0]!r} is none",
            code="unknown_column",
            where="validate.allow_leak",
            cure=f"the columns are {', '.join(column.name for column in contract.columns[:10])}",
        )
    return [finding for finding in find_leaks(good, contract.target.name, contract) if finding.column not in allowed]


def _without_infinite(frame: "pd.DataFrame", limit: float, where: str) -> "pd.DataFrame":
    """The frame to infer from: a few infinite cells among numbers are missing here, and bad cells for the checks later.

    Left in, they would pass for text, and their column for a category or for one that changes its type.

    Raises:
        DataError: a column of numbers has more infinite ones than rows may be bad; names the column and the first rows.
    """
    import numpy as np

    finite = {}
    for name in frame.columns:
        series = frame[name]
        if series.dtype.kind == "f":
            infinite = np.isinf(series.to_numpy())
        elif series.dtype.kind in "OTU":
            words = [word for word in series.unique() if isinstance(word, str) and _INFINITE.fullmatch(word)]
            infinite = series.isin(words).to_numpy() if words else np.zeros(len(series), dtype=bool)
        else:
            continue
        count, present = int(infinite.sum()), int(series.notna().sum())
        if not count or (present > count and not _mostly_numbers(series[~infinite])):
            continue
        if count > limit * len(frame):
            at = [int(i) + 1 for i in np.flatnonzero(infinite)[: checks.EXAMPLES]]
            raise DataError(
                f"a number must be finite, but column {name!r} has {count:,} infinite ones in {present:,} cells"
                f" ({count / present:.1%}, limit {limit:.1%} of the rows); data rows {', '.join(map(str, at))}",
                code="infinite",
                where=f"{where}, column {name!r}, data row {at[0]}",
                cure="leave such cells empty in the source, correct what divides by zero, or raise validate.max_bad_share",
            )
        finite[name] = series.mask(infinite)
    return frame.assign(**finite) if finite else frame


def _mostly_numbers(series: "pd.Series[Any]") -> bool:
    import pandas as pd

    present = series[series.notna()].astype(object)
    return bool(pd.to_numeric(present, errors="coerce").notna().mean() >= 0.95)


def _broken_rules(family: Trainable, made: Typed, contract: TableContract) -> list[Fault]:
    """What the family's own rules find in the rows whose cells have the contract's types."""
    import numpy as np

    if family.row_rules is None:
        return []
    typed = np.ones(len(made.frame), dtype=bool)
    for fault in made.faults:
        if fault.severity == "error":
            typed[fault.positions] = False
    at = np.flatnonzero(typed)
    rows = json_rows(made.frame[typed], contract)
    return checks.own_faults(family.row_rules(rows), rows, at)
