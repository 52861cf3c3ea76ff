"""What is true of a table and which cells break its contract: typing, faults, profile, quality score. It reads and writes nothing.

A cell's meaning is decided by `esteira.features.parse` alone, so validation, training and serving agree. Row numbers that
people see count data rows from 1; the header is not counted.
"""

import difflib
import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from esteira.errors import ConfigError, DataError
from esteira.family import Finding, Row
from esteira.features import parse
from esteira.features.parse import shown

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

    from esteira.features.contract import Column, TableContract, Target

    Positions = NDArray[np.int64]

EXAMPLES = 5
TOP = 5
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
MOSTLY_MISSING = 0.5
FEW_OF_A_CLASS = 5
# Rules on the type and the range of a cell: what the quality score's validity counts.
CELL_RULES = frozenset({"type", "infinite", "whole", "range", "category", "label_class"})
WEIGHTS = {"completeness": 0.4, "validity": 0.3, "uniqueness": 0.2, "consistency": 0.1}

Severity = Literal["error", "warning"]


@dataclass(frozen=True)
class Fault:
    """The cells of one column that break one rule.

    Attributes:
        rule: `type`, `infinite`, `whole`, `range`, `category`, `rare_category`, `label_missing`, `label_class`, `cross_column`.
        column: the column, or the text of a cross-column rule.
        severity: an `error` puts its rows into quarantine.
        positions: rows from 0, ascending.
        values: the raw value at each position.
        messages: the rule and the value in words, one a position.
        checked: how many cells the rule looked at.
    """

    rule: str
    column: str
    severity: Severity
    positions: "Positions"
    values: tuple[Any, ...]
    messages: tuple[str, ...]
    checked: int


@dataclass(frozen=True)
class Typed:
    """A table whose cells have the contract's types, and what was found on the way.

    Attributes:
        frame: the contract's columns, the label, then time and group columns that are no features; float64, object (text,
            booleans, labels; None is missing) or datetime64[us, UTC]. A cell that cannot be read is missing here.
        faults: in the order of the columns.
        unread: column -> boolean mask of its cells that have a value and cannot be read.
    """

    frame: "pd.DataFrame"
    faults: tuple[Fault, ...]
    unread: Mapping[str, "NDArray[np.bool_]"]


@dataclass(frozen=True)
class Quality:
    """Quality of a table: four parts and their weighted sum, each in [0, 1]; all 0 for a table without rows.

    The score has four decimals, as the platform store keeps it.
    """

    score: float
    completeness: float
    validity: float
    uniqueness: float
    consistency: float

    def to_dict(self) -> dict[str, float]:
        """As files and reports have it."""
        return {
            "quality_score": self.score,
            "completeness": self.completeness,
            "validity": self.validity,
            "uniqueness": self.uniqueness,
            "consistency": self.consistency,
        }


@dataclass(frozen=True)
class CrossRule:
    """A rule between two columns of one row, e.g. `start <= end`; a row with one of them missing passes."""

    left: str
    sign: str
    right: str

    @classmethod
    def parse(cls, text: str) -> "CrossRule":
        """Read `LEFT SIGN RIGHT` with spaces around the sign (<, <=, >, >=, ==, !=).

        Raises:
            ConfigError: the text has another form.
        """
        match = re.fullmatch(r"(.+?)\s+(<=|>=|==|!=|<|>)\s+(.+)", text.strip())
        if match is None:
            raise ConfigError(
                f"a cross-column rule is 'LEFT SIGN RIGHT' with one of {' '.join(_SIGNS)}, but got {shown(text)}",
                code="bad_rule",
                where="validate.rules",
                cure="write for example 'start <= end', with spaces around the sign",
            )
        return cls(match[1], match[2], match[3])

    def __str__(self) -> str:
        return f"{self.left} {self.sign} {self.right}"


_SIGNS: Mapping[str, Callable[[Any, Any], Any]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}


# ---------------------------------------------------------------- the label


def require_target(names: Sequence[str], target: str, where: str) -> None:
    """Refuse a table without its label column.

    Raises:
        DataError: no column has that name; says which names are near.
    """
    if target in names:
        return
    folded = {name.casefold(): name for name in reversed(names)}
    near = [folded[name] for name in difflib.get_close_matches(target.casefold(), list(folded), n=3)]
    listed = ", ".join(repr(name) for name in names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
    raise DataError(
        f"the label column must be in the table, but {target!r} is not among its {len(names)} columns: {listed}",
        code="missing_label",
        where=where,
        cure=f"did you mean --target {' or '.join(repr(name) for name in near)}?"
        if near
        else "name it with --target COL",
    )


def require_classes(series: "pd.Series[Any]", target: str, where: str) -> None:
    """Refuse a label that has no value, or the same one in every row.

    Raises:
        DataError: fewer than two distinct labels.
    """
    present = series[~_no_label(series)]
    distinct = present.unique().tolist()
    if not distinct:
        raise DataError(
            f"the label must have values, but every one of the {len(series):,} cells of {target!r} is empty",
            code="empty_label",
            where=where,
            cure="check how the column was written, or name another one with --target",
        )
    if len(distinct) == 1:
        raise DataError(
            f"the label must have at least two values, but {target!r} is {shown(distinct[0])} in all {len(present):,} rows"
            " that have one",
            code="one_class",
            where=where,
            cure="add rows of another class, or name another label with --target",
        )


def _no_label(series: "pd.Series[Any]") -> "NDArray[np.bool_]":
    missing = series.isna().to_numpy()
    if series.dtype.kind in "OTU":
        missing = missing | (series.astype(object).str.lower() == "nan").to_numpy()
    return missing


# ---------------------------------------------------------------- typing and faults


def typed(frame: "pd.DataFrame", contract: "TableContract", *, rules: Sequence[CrossRule] = ()) -> Typed:
    """Read every cell as the contract says, and collect what breaks its rules.

    Args:
        frame: raw rows: text, numbers, booleans or timestamps, as ingest stored them.
        contract: the columns and the label; `require_columns` has been satisfied.
        rules: rules between columns.

    Raises:
        ConfigError: a cross-column rule names a column that is not in the contract, or compares text with numbers.
    """
    import pandas as pd

    made: dict[str, Any] = {}
    faults: list[Fault] = []
    unread: dict[str, NDArray[np.bool_]] = {}
    for column in contract.columns:
        if column.name not in frame.columns:  # optional, and absent
            made[column.name] = [None] * len(frame)
            continue
        made[column.name], found, unread[column.name] = _column(frame[column.name], column)
        faults.extend(found)
    made[contract.target.name], found = _label(frame[contract.target.name], contract.target)
    faults.extend(found)
    for name, kind in ((contract.time_column, "date"), (contract.group_column, "text")):
        if name is not None and name not in made and name in frame.columns:
            made[name], found, unread[name] = _column(frame[name], _plain(name, kind))
            faults.extend(found)
    result = pd.DataFrame(made, index=pd.RangeIndex(len(frame)))
    faults.extend(_cross(result, frame, rule) for rule in rules)
    return Typed(result, tuple(fault for fault in faults if len(fault.positions)), unread)


def own_faults(findings: Sequence[Finding], rows: Sequence[Row], positions: "Positions") -> list[Fault]:
    """A family's findings as faults, one a rule and column.

    Args:
        findings: of its own rules; `row` counts in `rows`, a finding without one is about them all.
        rows: the JSON rows that it was asked about.
        positions: of these rows in the table, from 0.
    """
    import numpy as np

    kept: dict[tuple[str, str, Severity], list[Finding]] = {}
    for finding in findings:
        kept.setdefault((finding.rule, finding.column, finding.severity), []).append(finding)
    faults = []
    for (rule, column, severity), found in kept.items():
        broken = {at: one.message for one in found for at in ([one.row] if one.row is not None else range(len(rows)))}
        order = sorted(broken)
        # A dotted path, such as `tasks.2.ms`, lies in the cell of its first column.
        values = [rows[at].get(column, rows[at].get(column.split(".")[0])) for at in order]
        words = tuple(broken[at] for at in order)
        clipped = tuple(shown(value) if isinstance(value, dict | list) else plain(value) for value in values)
        faults.append(Fault(rule, column, severity, positions[np.array(order)], clipped, words, len(rows)))
    return faults


def _plain(name: str, kind: str) -> "Column":
    from esteira.features.contract import Column

    return Column.model_validate({"name": name, "kind": kind})


def require_columns(names: Sequence[str], contract: "TableContract") -> list[str]:
    """Hold a table against an accepted contract; returns the columns that the contract does not know.

    Raises:
        DataError: a required column is missing.
    """
    missing = [column.name for column in contract.columns if column.required and column.name not in names]
    known = {column.name for column in contract.columns} | {dropped.name for dropped in contract.dropped}
    extra = [name for name in names if name not in known and name != contract.target.name]
    if missing:
        raise DataError(
            f"a table must have every column of its line's contract, but {len(missing)} of {len(contract.columns)} are"
            f" missing: {', '.join(map(repr, missing[:EXAMPLES]))}"
            + (f"; the table has {', '.join(map(repr, extra[:EXAMPLES]))} instead" if extra else ""),
            code="missing_column",
            where=f"contract of {contract.line}, column {missing[0]!r}",
            cure="add the columns (their cells may be empty), or open another line with --as NAME",
        )
    return extra


def _column(series: "pd.Series[Any]", column: "Column") -> tuple["pd.Series[Any]", list[Fault], "NDArray[np.bool_]"]:
    """Typed values, faults, and the mask of cells that cannot be read."""
    import numpy as np
    import pandas as pd

    values: Any
    if column.kind in {"number", "integer"}:
        values, bad = _numbers(series)
    else:
        reader: Callable[[Any], Any] = {
            "boolean": parse.boolean, "date": parse.date_microseconds, "category": parse.text, "text": parse.text,
            "object": parse.nested_text,
        }[column.kind]  # fmt: skip
        values, bad = _read(series, reader)
    unread = np.zeros(len(series), dtype=bool)
    unread[list(bad)] = True
    faults = []
    infinite, other = _split_infinite(series, bad)
    present = int(series.notna().sum())
    faults.append(_fault("type", column.name, "error", other, series, present, [bad[at] for at in other]))
    faults.append(_fault("infinite", column.name, "error", infinite, series, present, "must be finite, but got {}"))

    if column.kind in {"number", "integer"}:
        numbers = np.asarray(values, dtype=np.float64)
        if column.kind == "integer":
            at = np.flatnonzero(np.isfinite(numbers) & (numbers != np.floor(numbers)))
            faults.append(
                _fault("whole", column.name, "warning", at, series, present, "was a whole number, but got {}")
            )
        low, high = _bounds(column)
        # NaN compares false with everything, so a missing cell passes.
        at = np.flatnonzero((numbers < low) | (numbers > high))
        text = f"was {low:.15g} to {high:.15g}, but got {{}}"
        faults.append(_fault("range", column.name, "warning", at, series, present, text))
        return pd.Series(numbers), faults, unread
    if column.kind == "boolean":
        booleans = [None if value is None or value != value else value == 1.0 for value in values]
        return pd.Series(booleans, dtype=object), faults, unread
    if column.kind == "date":
        stamps = np.array([_NAT if value is None else value for value in values], dtype=np.int64).view("datetime64[us]")
        dates = pd.Series(stamps).dt.tz_localize("UTC")
        if column.minimum is not None and column.maximum is not None:
            first, last = (parse.date_microseconds(str(end)) for end in (column.minimum, column.maximum))
            whole = stamps.view(np.int64)
            at = np.flatnonzero((whole != _NAT) & ((whole < (first or 0)) | (whole > (last or 0))))
            text = f"was {column.minimum} to {column.maximum}, but got {{}}"
            faults.append(_fault("range", column.name, "warning", at, series, present, text))
        return dates, faults, unread
    texts = pd.Series(values, dtype=object)
    if column.kind == "category" and column.categories is not None:
        seen = texts.isin([*column.categories, None]).to_numpy() | texts.isna().to_numpy()
        text = f"must be one of the {len(column.categories)} categories seen, but got {{}}"
        faults.append(_fault("category", column.name, "warning", np.flatnonzero(~seen), series, present, text))
        counts = texts.value_counts()
        once = texts.isin(counts.index[counts == 1]).to_numpy() & seen
        text = "a category that is seen once teaches nothing, but got {} in one row only"
        faults.append(_fault("rare_category", column.name, "warning", np.flatnonzero(once), series, present, text))
    return texts, faults, unread


_NAT = -(2**63)


def _bounds(column: "Column") -> tuple[float, float]:
    low = -math.inf if column.minimum is None else float(column.minimum)
    return low, math.inf if column.maximum is None else float(column.maximum)


def _numbers(series: "pd.Series[Any]") -> tuple["NDArray[np.float64]", dict[int, str]]:
    """Numbers with NaN for missing and unreadable cells; position -> why it cannot be read."""
    import numpy as np
    import pyarrow as pa

    if series.dtype.kind in "iuf":
        values = series.to_numpy(dtype=np.float64, na_value=np.nan)
    else:
        try:
            # Arrow reads decimal text as exactly as Python does, and much faster; whatever it refuses goes the slow way.
            values = pa.array(series, from_pandas=True).cast(pa.float64()).to_numpy(zero_copy_only=False)
        except (pa.ArrowException, ValueError):
            found, bad = _read(series, parse.number)
            return np.array([math.nan if value is None else value for value in found], dtype=np.float64), bad
        if series.dtype.kind == "b" or not np.isfinite(values[series.notna().to_numpy()]).all():
            found, bad = _read(series, parse.number)
            return np.array([math.nan if value is None else value for value in found], dtype=np.float64), bad
    infinite = np.isinf(values)
    bad = {int(at): f"must be a finite number, but got {values[at]}" for at in np.flatnonzero(infinite)}
    return np.where(infinite, np.nan, values), bad


def _read(series: "pd.Series[Any]", read: Callable[[Any], Any]) -> tuple[list[Any], dict[int, str]]:
    """Each cell read, None where missing or unreadable; position -> why it cannot be read. A repeated cell is read once."""
    import numpy as np
    import pandas as pd

    cells: list[Any]
    if isinstance(series.dtype, pd.StringDtype):
        codes, uniques = pd.factorize(series)
        cells = [*uniques.tolist(), None]  # a missing cell has code -1, the last one
    else:
        # Here 1, 1.0 and True may stand in one column, which pandas takes for the same.
        objects = series.astype(object).where(series.notna(), None).tolist()
        at = {key: code for code, key in enumerate(dict.fromkeys((type(cell), cell) for cell in objects))}
        codes = np.array([at[type(cell), cell] for cell in objects], dtype=np.int64)
        cells = [cell for _, cell in at]
    values: list[Any] = []
    why: dict[int, str] = {}
    for code, cell in enumerate(cells):
        try:
            values.append(read(cell))
        except ValueError as error:
            values.append(None)
            why[code] = str(error)
    bad = {int(row): why[codes[row]] for row in np.flatnonzero(np.isin(codes, list(why)))} if why else {}
    return [values[code] for code in codes.tolist()], bad


def _label(series: "pd.Series[Any]", target: "Target") -> tuple["pd.Series[Any]", list[Fault]]:
    import numpy as np
    import pandas as pd

    values, bad = _read(series, lambda cell: parse.label(cell, target))
    empty = [at for at, value in enumerate(values) if value is None and at not in bad]
    infinite, strange = _split_infinite(series, bad)
    present = len(series) - len(empty)
    rule = "type" if target.classes is None else "label_class"
    faults = [
        _fault("label_missing", target.name, "error", empty, series, len(series), "must have a label, but got {}"),
        _fault(rule, target.name, "error", strange, series, present, [bad[at] for at in strange]),
        _fault("infinite", target.name, "error", infinite, series, present, "must be finite, but got {}"),
    ]
    if target.classes is None:
        numbers = np.array([math.nan if value is None else value for value in values], dtype=np.float64)
        low = -math.inf if target.minimum is None else target.minimum
        high = math.inf if target.maximum is None else target.maximum
        at = np.flatnonzero((numbers < low) | (numbers > high))
        text = f"was {low:.15g} to {high:.15g}, but got {{}}"
        faults.append(_fault("range", target.name, "warning", at, series, present, text))
        return pd.Series(numbers), faults
    return pd.Series(values, dtype=object), faults


def _cross(frame: "pd.DataFrame", raw: "pd.DataFrame", rule: CrossRule) -> Fault:
    import numpy as np

    for name in (rule.left, rule.right):
        if name not in frame.columns:
            near = difflib.get_close_matches(name, list(frame.columns), n=1)
            raise ConfigError(
                f"a cross-column rule names columns of the contract, but {name!r} is none",
                code="bad_rule",
                where=f"validate.rules, {rule}",
                cure=f"did you mean {near[0]!r}?" if near else "see contract.yaml for the columns",
            )
    left, right = frame[rule.left], frame[rule.right]
    both = (left.notna() & right.notna()).to_numpy()
    try:
        holds = np.asarray(_SIGNS[rule.sign](left[both], right[both]), dtype=bool)
    except TypeError as error:
        raise ConfigError(
            f"a cross-column rule compares columns of one kind, but: {error}",
            code="bad_rule",
            where=f"validate.rules, {rule}",
            cure="compare numbers with numbers, dates with dates, text with text",
        ) from error
    at = np.flatnonzero(both)[~holds]
    pairs = zip(raw[rule.left].iloc[at].tolist(), raw[rule.right].iloc[at].tolist(), strict=True)
    values = [f"{plain(one)} and {plain(other)}" for one, other in pairs]
    words = tuple(f"{rule} must hold, but got {value}" for value in values)
    return Fault("cross_column", str(rule), "error", at, tuple(values), words, int(both.sum()))


def _fault(
    rule: str,
    column: str,
    severity: Severity,
    positions: "Sequence[int] | Positions",
    series: "pd.Series[Any]",
    checked: int,
    messages: str | Sequence[str],
) -> Fault:
    import numpy as np

    at = np.asarray(positions, dtype=np.int64)
    values = tuple(map(plain, series.iloc[at].tolist()))
    if isinstance(messages, str):
        messages = [messages.format(shown(value)) for value in values]
    return Fault(rule, column, severity, at, values, tuple(messages), checked)


def _split_infinite(series: "pd.Series[Any]", bad: Mapping[int, str]) -> tuple[list[int], list[int]]:
    """Positions of unreadable cells: the infinite numbers, and all others."""
    values = series.iloc[list(bad)].tolist()
    infinite = [at for at, value in zip(bad, values, strict=True) if _is_infinite(value)]
    known = set(infinite)
    return infinite, [at for at in bad if at not in known]


def _is_infinite(value: Any) -> bool:
    if isinstance(value, str):
        if re.fullmatch(r"[+-]?inf(inity)?", value, re.IGNORECASE):
            return True
        if not re.fullmatch(r"[+-]?[\d.]+[eE]?[+-]?\d*", value):
            return False
        try:
            value = float(value)
        except ValueError:
            return False
    return isinstance(value, float) and math.isinf(value)


def plain(value: Any) -> Any:
    """A cell as JSON has it: None, bool, int, float, text; infinity is the text `Infinity`."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        if value != value:
            return None
        return value if math.isfinite(value) else ("Infinity" if value > 0 else "-Infinity")
    if type(value).__name__ in {"NaTType", "NAType"}:
        return None
    if hasattr(value, "isoformat"):
        return str(value.isoformat())
    item = getattr(value, "item", None)
    return plain(item()) if callable(item) else str(value)


# ---------------------------------------------------------------- findings


def findings(faults: Sequence[Fault]) -> list[dict[str, Any]]:
    """Faults in words for people and files, errors first: bounded, five examples each.

    Returns:
        `{"rule", "column", "severity", "count", "share" (of the cells checked), "message", "examples": [{"row", "value"}]}`
        with rows from 1.
    """
    ordered = sorted(faults, key=lambda fault: fault.severity)
    return [
        {
            "rule": fault.rule,
            "column": fault.column,
            "severity": fault.severity,
            "count": len(fault.positions),
            "share": len(fault.positions) / fault.checked if fault.checked else 0.0,
            "message": fault.messages[0],
            "examples": [
                {"row": int(at) + 1, "value": value}
                for at, value in zip(fault.positions[:EXAMPLES].tolist(), fault.values, strict=False)
            ],
        }
        for fault in ordered
    ]


def table_findings(
    frame: "pd.DataFrame", typed_frame: "pd.DataFrame", contract: "TableContract"
) -> list[dict[str, Any]]:
    """Warnings about whole columns and rows: constant, mostly missing, duplicated rows, a class with few rows."""
    found = []

    def warn(rule: str, column: str, count: int, share: float, message: str, examples: Sequence[Any] = ()) -> None:
        found.append(
            {
                "rule": rule, "column": column, "severity": "warning", "count": count, "share": share,
                "message": message, "examples": list(examples)[:EXAMPLES],
            }
        )  # fmt: skip

    rows = len(frame)
    for name in frame.columns:
        series = typed_frame[name] if name in typed_frame.columns else frame[name]
        present = series[series.notna()]
        missing = rows - len(present)
        if rows and missing / rows > MOSTLY_MISSING:
            text = f"more than half of a column should have values, but {missing:,} of {rows:,} cells of {name!r} are missing"
            warn("mostly_missing", name, missing, missing / rows, text)
        if len(present) and rows > 1 and present.nunique() == 1:
            text = (
                f"a column should vary, but {name!r} is {shown(plain(present.iloc[0]))} in every row that has a value"
            )
            warn("constant", name, len(present), len(present) / rows, text)
    twice = frame.duplicated().to_numpy()
    if twice.any():
        at = [int(i) + 1 for i in twice.nonzero()[0][:EXAMPLES]]
        text = f"rows should differ, but {int(twice.sum()):,} of {rows:,} repeat an earlier row"
        warn(
            "duplicated_rows",
            "",
            int(twice.sum()),
            float(twice.mean()),
            text,
            [{"row": row, "value": None} for row in at],
        )
    if contract.target.classes is not None:
        counts = typed_frame[contract.target.name].value_counts()
        for label in contract.target.classes:
            count = int(counts.get(label, 0))
            if count < FEW_OF_A_CLASS:
                text = f"a class should have at least {FEW_OF_A_CLASS} rows, but {shown(label)} has {count}"
                warn("small_class", contract.target.name, count, count / rows if rows else 0.0, text)
    return found


# ---------------------------------------------------------------- quality and profile


def quality(frame: "pd.DataFrame", made: Typed, rules: Sequence[CrossRule] = ()) -> Quality:
    """The quality score: 0.4 completeness + 0.3 validity + 0.2 uniqueness + 0.1 consistency.

    completeness = non-missing cells / all cells; validity = cells passing type and range rules / non-missing cells;
    uniqueness = distinct rows / rows; consistency = share of cross-column rules that hold in every row (1 if there are none).

    Args:
        frame: the raw rows, all columns of the source.
        made: what `typed` made of them; decides which words count as an empty cell.
        rules: the cross-column rules that `typed` was given.
    """
    cells = frame.shape[0] * frame.shape[1]
    if cells == 0:
        return Quality(0.0, 0.0, 0.0, 0.0, 0.0)
    missing = sum(int(_missing(frame, made, name).sum()) for name in frame.columns)
    present = cells - missing
    broken = {(fault.column, int(at)) for fault in made.faults if fault.rule in CELL_RULES for at in fault.positions}
    failed = {fault.column for fault in made.faults if fault.rule == "cross_column"}
    parts = {
        "completeness": present / cells,
        "validity": (present - len(broken)) / present if present else 0.0,
        "uniqueness": 1.0 - float(frame.duplicated().mean()),
        "consistency": 1.0 - len(failed) / len(rules) if rules else 1.0,
    }
    return Quality(round(sum(WEIGHTS[name] * value for name, value in parts.items()), 4), **parts)


def _missing(frame: "pd.DataFrame", made: Typed, name: str) -> "NDArray[np.bool_]":
    if name in made.unread:
        return made.frame[name].isna().to_numpy() & ~made.unread[name]
    return frame[name].isna().to_numpy()


def profile(frame: "pd.DataFrame", made: Typed, contract: "TableContract") -> list[dict[str, Any]]:
    """What every column of the source looks like.

    Returns:
        One dict a column, in source order: `name`, `role` (feature, label, dropped, extra), `type`, `count` (cells with a
        value), `missing`, `missing_share`, `distinct`, `minimum`, `maximum`, `mean`, `standard_deviation` (of the sample),
        `quantiles` (0.05 to 0.95), `top` (most frequent values, five at most), `histogram` (`{"low", "high", "counts"}`, 20
        equal bins). What a type does not have is null; a standard deviation needs two values.
    """
    dropped = {column.name for column in contract.dropped}
    kinds = {column.name: column.kind for column in contract.columns}
    documents = []
    for name in frame.columns:
        role = "dropped" if name in dropped else "extra"
        kind: str = _stored(frame[name])
        series = frame[name]
        if name in kinds:
            role, kind, series = "feature", kinds[name], made.frame[name]
        elif name == contract.target.name:
            role, kind, series = (
                "label",
                "number" if contract.target.task == "regression" else "category",
                made.frame[name],
            )
        missing = int(_missing(frame, made, name).sum())
        documents.append(
            {"name": name, "role": role, "type": kind, **_column_profile(series, kind, len(frame), missing)}
        )
    return documents


def _stored(series: "pd.Series[Any]") -> str:
    return {"f": "number", "i": "integer", "u": "integer", "b": "boolean", "M": "date"}.get(series.dtype.kind, "text")


def _column_profile(series: "pd.Series[Any]", kind: str, rows: int, missing: int) -> dict[str, Any]:
    import numpy as np

    present = series[series.notna()]
    counts = present.value_counts()
    # Ties in the order of their text, so that the same table gives the same bytes.
    most = sorted(counts.head(200).items(), key=lambda item: (-item[1], str(item[0])))[:TOP]
    document: dict[str, Any] = {
        "count": rows - missing,
        "missing": missing,
        "missing_share": missing / rows if rows else 0.0,
        "distinct": len(counts),
        "minimum": None,
        "maximum": None,
        "mean": None,
        "standard_deviation": None,
        "quantiles": None,
        "top": [] if kind == "object" else [{"value": plain(value), "count": int(count)} for value, count in most],
        "histogram": None,
    }
    if kind == "date" and len(present):
        document |= {"minimum": plain(present.min()), "maximum": plain(present.max())}
    if kind in {"number", "integer"}:
        values = present.to_numpy(dtype=np.float64)
        values = values[np.isfinite(values)]
        if len(values):
            document |= {
                "minimum": float(values.min()),
                "maximum": float(values.max()),
                "mean": _finite(np.mean(values)),
                "standard_deviation": _finite(np.std(values, ddof=1)) if len(values) > 1 else None,
                "quantiles": {str(q): float(v) for q, v in zip(QUANTILES, np.quantile(values, QUANTILES), strict=True)},
                "histogram": _histogram(values),
            }
    return document


def _finite(value: Any) -> float | None:
    return float(value) if math.isfinite(value) else None


def _histogram(values: "NDArray[np.float64]") -> dict[str, Any] | None:
    import numpy as np

    low, high = float(values.min()), float(values.max())
    if not (low < high and math.isfinite(high - low)):
        return None
    counts, _ = np.histogram(values, bins=20, range=(low, high))
    return {"low": low, "high": high, "counts": counts.tolist()}
