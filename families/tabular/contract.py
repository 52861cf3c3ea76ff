"""Infers the contract of a table from its cells: kinds, ranges, categories, what is left out. It changes and keeps no data."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, cast, get_args

import numpy as np

from esteira.errors import ConfigError, DataError
from esteira.family import Finding
from esteira.features import parse
from esteira.features.contract import ClassLabel, Column, ColumnKind, Dropped, TableContract, Target, Task
from esteira.features.decode import MAX_LEVELS

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

MOSTLY = 0.95  # share of cells that must parse for a column to be of a kind
SWITCH_SHARE = 0.03  # of the cells on each side of a change of type
FEW_LEVELS, LEVEL_SHARE = 20, 0.05
CODE_SHARE = 0.01  # of the cells, from which a word among a few numbers is a code of its own
# Cells a level, from which a column of more levels still is a category: of single words, of phrases, of any above 1,000.
REPEATS_OF_WORDS, REPEATS_OF_PHRASES, MANY_REPEATS = 5, 10, 20
FEW_ROWS = 10  # below it nothing is called an identifier
UNIQUE = 0.99  # share of distinct codes from which a column of codes is an identifier
CLASS_VALUES = 20  # a whole-numbered label with more distinct values is a regression
MAX_CLASSES = 1000
KINDS = tuple(kind for kind in get_args(ColumnKind) if kind != "object")  # a nested cell has no features here

_PADDED = re.compile(r"0\d+", re.ASCII)
_SPACE = re.compile(r"\s")
# Camel case is matched by its capitals, or "paid" would end in "id".
_IDENTIFIER_NAME = re.compile(
    r"(?i:(?:^|[_\W])(?:id|uuid|guid|index|idx|rowid|row_?num(?:ber)?)$)|[a-z0-9](?:Id|ID|Uuid|UUID|Index)$|^$|^Unnamed: ?\d+$"
)


def infer(
    frame: "pd.DataFrame",
    target: str,
    line: str,
    *,
    kinds: Mapping[str, ColumnKind] | None = None,
    task: Task | None = None,
    drop: Sequence[str] = (),
    time_column: str | None = None,
    group_column: str | None = None,
    max_bad_share: float = 0.05,
) -> tuple[TableContract, list[Finding]]:
    """Infer what rows of a line look like.

    Args:
        frame: rows in source order, raw text or typed; empty cells are null or blank. Not changed.
        target: name of the label column.
        line: the line the contract is for.
        kinds: column -> kind where a person knows better than the cells; such a column is never dropped as an identifier.
        task: forces the task.
        drop: columns to leave out.
        time_column: the split goes by it, later rows to the test part; it stays a feature.
        group_column: rows of one value stay on one side of the split; it is no feature.
        max_bad_share: kept in the contract.

    Returns:
        The contract, and notes for people (severity `warning`): what was dropped and why, cells that do not parse,
        classes and columns to look at. A note's row is None.

    Raises:
        ConfigError: an option names a column or a kind that there is not.
        DataError: no rows, no usable column, no such label, a label of one class, a column that changes type half-way.
    """
    names = [str(name) for name in frame.columns]
    _check_options(
        names, target, {**dict.fromkeys(kinds or {}, "kinds"), **dict.fromkeys(drop, "drop")}, time_column, group_column
    )
    for name, kind in (kinds or {}).items():
        if kind not in KINDS:
            raise ConfigError(
                f"the kind of a column is one of {', '.join(KINDS)}, but column {name!r} has {kind!r}",
                code="bad_kind",
                where=f"kinds.{name}",
                cure="correct the parameter",
            )
    if not len(frame):
        raise DataError(
            "a table must have rows, but it has none", code="no_rows", where=line, cure="check the source and its query"
        )
    label, notes = _infer_target(_Cells.of(frame[target]), target, task)
    columns: list[Column] = []
    dropped: list[Dropped] = []
    for name in names:
        if name == target:
            continue
        if name == group_column:
            dropped.append(
                Dropped(name=name, reason="group column: it says which rows belong together and is no feature")
            )
            continue
        if name in drop:
            dropped.append(Dropped(name=name, reason="left out by the parameter `drop`"))
            continue
        given = (kinds or {}).get(name)
        column, why, found = _infer_column(_Cells.of(frame[name]), name, given, keep=name == time_column)
        notes += found
        if column is None:
            dropped.append(Dropped(name=name, reason=why))
            notes.append(Finding("dropped", name, None, f"left out: {why}", "warning"))
        else:
            columns.append(column)
    if not columns:
        raise DataError(
            f"a table needs at least one usable column beside the label, but all {len(dropped)} were left out: "
            + "; ".join(f"{d.name} ({d.reason})" for d in dropped[:5]),
            code="no_columns",
            where=line,
            cure="add informative columns, or name the kind of a column with the parameter `kinds`",
        )
    contract = TableContract(
        line=line,
        target=label,
        columns=tuple(columns),
        dropped=tuple(dropped),
        max_bad_share=max_bad_share,
        time_column=time_column,
        group_column=group_column,
    )
    return contract, notes


def _check_options(
    names: list[str], target: str, options: Mapping[str, str], time_column: str | None, group_column: str | None
) -> None:
    if target not in names:
        near = get_close_matches(target, names, n=1)
        raise DataError(
            f"the label must be a column of the table, but there is no {target!r} among {_few(names)}",
            code="missing_target",
            where=f"column {target}",
            cure=f"did you mean {near[0]!r}?" if near else "name one of the table's columns with --target",
        )
    wanted = dict(options)
    wanted.update(
        {name: option for name, option in ((time_column, "time_column"), (group_column, "group_column")) if name}
    )
    for name, option in wanted.items():
        if name not in names or name == target:
            raise ConfigError(
                f"`{option}` must name feature columns of the table, but got {name!r}; there are {_few(names)}",
                code="unknown_column",
                where=option,
                cure="correct the parameter",
            )


def _few(values: Sequence[Any]) -> str:
    return ", ".join(map(str, values[:8])) + (f" and {len(values) - 8} more" if len(values) > 8 else "")


@dataclass(frozen=True)
class _Cells:
    """A column's cells as their distinct values.

    Attributes:
        values: distinct values that are not empty, in order of first appearance.
        codes: for each row the index into `values`, -1 for an empty cell.
        counts: rows of each distinct value.
    """

    values: list[Any]
    codes: "NDArray[np.int64]"
    counts: "NDArray[np.int64]"

    @classmethod
    def of(cls, series: "pd.Series[Any]") -> "_Cells":
        import pandas as pd

        if series.dtype.kind == "O" and pd.api.types.infer_dtype(series, skipna=True) not in {"string", "empty"}:
            for row, value in enumerate(series):
                if isinstance(value, list | dict | tuple | set | np.ndarray):
                    raise DataError(
                        f"a cell holds one value, but column {series.name!r} holds {parse.shown(value)}",
                        code="nested_value",
                        where=f"column {series.name}, row {row + 1}",
                        cure="flatten the column before, or leave it out with the parameter `drop`",
                    )
            # 1 and True are one key of a dictionary; as text with their type they stay apart.
            keys = [
                None if parse.is_missing(v) else v.strip() if isinstance(v, str) else (type(v).__name__, str(v))
                for v in series
            ]
            codes, _ = pd.factorize(pd.Series(keys, dtype=object))
            present = np.flatnonzero(codes >= 0)
            first = np.unique(codes[present], return_index=True)[1]
            values = [series.iloc[int(present[i])] for i in first]
        else:
            codes, index = pd.factorize(series)
            values = index.tolist()
            if isinstance(series.dtype, np.dtype) and series.dtype.kind in "iuf":
                # Numbers have no blanks to strip, and no two of them are one text.
                return cls(values, codes, np.bincount(codes[codes >= 0], minlength=len(values)))
        values = [value.strip() if isinstance(value, str) else value for value in values]
        blank = np.array([parse.is_missing(value) for value in values], dtype=bool)
        if blank.any() or len(set(map(str, values))) < len(values):
            codes, values = _merge(np.asarray(codes, dtype=np.int64), values)
        codes = np.asarray(codes, dtype=np.int64)
        return cls(values, codes, np.bincount(codes[codes >= 0], minlength=len(values)))

    @property
    def n(self) -> int:
        """Rows whose cell is not empty."""
        return int(self.counts.sum())

    def without(self, empty: "NDArray[np.bool_]") -> "_Cells":
        """The cells with some distinct values taken as empty."""
        kept = np.flatnonzero(~empty)
        codes = np.full(len(self.values) + 1, -1, dtype=np.int64)
        codes[kept] = np.arange(len(kept))
        return _Cells([self.values[i] for i in kept], codes[self.codes], self.counts[kept])

    def share(self, mask: "NDArray[np.bool_]") -> float:
        """Share of the non-empty rows whose value is in the mask over `values`."""
        return float(self.counts[mask].sum()) / self.n if self.n else 0.0


def _merge(codes: "NDArray[np.int64]", values: list[Any]) -> tuple["NDArray[np.int64]", list[Any]]:
    """One code for values that are equal once stripped; -1 for blank ones."""
    kept: dict[str, int] = {}
    merged: list[Any] = []
    table = np.full(len(values) + 1, -1, dtype=np.int64)
    for code, value in enumerate(values):
        if parse.is_missing(value):
            continue
        key = f"{type(value).__name__} {value}"
        if key not in kept:
            kept[key] = len(merged)
            merged.append(value)
        table[code] = kept[key]
    return table[codes], merged


def _parsed(cells: _Cells, read: Callable[[Any], Any]) -> tuple[list[Any], "NDArray[np.bool_]", "NDArray[np.bool_]"]:
    """Each distinct value read; whether it can be read, and whether it is a word for an empty cell."""
    if read is parse.number and all(type(value) is float for value in cells.values):
        # A column of floats has nearly as many values as rows: looked at one by one they took most of a large table's time.
        values = np.array(cells.values, dtype=np.float64)
        return cells.values, ~np.isinf(values), np.isnan(values)
    found: list[Any] = []
    good = np.ones(len(cells.values), dtype=bool)
    empty = np.zeros(len(cells.values), dtype=bool)
    for index, value in enumerate(cells.values):
        try:
            result = read(value)
        except ValueError:
            good[index], result = False, None
        else:
            empty[index] = result is None or result != result
        found.append(result)
    return found, good, empty


def _infer_column(
    cells: _Cells, name: str, given: ColumnKind | None, *, keep: bool
) -> tuple[Column | None, str, list[Finding]]:
    """The column, or None and why it is left out; and notes."""
    notes: list[Finding] = []
    if cells.n == 0:
        return None, "all cells are empty", notes
    kind, cells = (given, _as_given(cells, given)) if given else _infer_kind(cells, name, notes)
    if cells.n == 0:
        return None, "all cells are empty", notes
    rows = len(cells.codes)
    if len(cells.values) == 1 and cells.n == rows and not keep:
        return None, f"constant: every cell is {parse.shown(cells.values[0])}", notes
    if given is None and not keep:
        why = _identifier(cells, name, kind)
        if why:
            return None, why, notes
    missing = 1 - cells.n / rows
    if missing > 0.5:
        notes.append(Finding("missing", name, None, f"{missing:.1%} of the cells are empty", "warning"))
    return _column(cells, name, kind, round(missing, 6), notes), "", notes


def _as_given(cells: _Cells, kind: ColumnKind) -> _Cells:
    if kind in {"category", "text"}:
        return cells
    _, good, empty = _parsed(cells, _READERS[kind])
    return cells.without(empty & good)


def _infer_kind(cells: _Cells, name: str, notes: list[Finding]) -> tuple[ColumnKind, _Cells]:
    """Kind of a column and its cells with words for "empty" taken out, where the kind knows such words."""
    if all(isinstance(value, bool) for value in cells.values):
        return "boolean", cells
    numbers, numeric, empty = _parsed(cells, parse.number)
    real = cells.without(empty)
    mask = numeric[~empty]
    if real.n == 0:
        return "category", cells
    row = _switch(real, mask)
    if row is not None:
        before, after = ("numbers", "text") if mask[real.codes[real.codes >= 0][0]] else ("text", "numbers")
        at = int(np.flatnonzero(real.codes >= 0)[row])
        example = real.values[int(real.codes[at])]
        raise DataError(
            f"a column has one type, but {name!r} changes type at row {at + 1}: {before} before, {after} from there on "
            f"(first {parse.shown(example)})",
            code="type_change",
            where=f"column {name}, row {at + 1}",
            cure=f"repair the source, or say what the column is with the parameter `kinds` ({name}: category)",
        )
    if real.share(mask) >= MOSTLY and not _codes_with_zeros(real, mask) and not _coded(real, mask):
        whole = all(
            value.is_integer() for value, good, none in zip(numbers, numeric, empty, strict=True) if good and not none
        )
        _note_bad(real, mask, name, "a number", notes)
        return "integer" if whole else "number", real
    words = {str(value).lower() for value in cells.values}
    if words <= {"true", "false"} or words == {"t", "f"}:
        return "boolean", cells
    _, dates, empty = _parsed(cells, parse.date_microseconds)
    real = cells.without(empty)
    mask = dates[~empty]
    if real.n and real.share(mask) >= MOSTLY:
        _note_bad(real, mask, name, "a date", notes)
        return "date", real
    return _category_or_text(cells), cells


def _switch(cells: _Cells, numeric: "NDArray[np.bool_]") -> int | None:
    """Index among the non-empty rows from which on all cells are of the other type; None if there is no such point."""
    kinds = numeric[cells.codes[cells.codes >= 0]]
    changes = np.flatnonzero(kinds[1:] != kinds[:-1])
    if len(changes) != 1:
        return None
    row = int(changes[0]) + 1
    return row if min(row, len(kinds) - row) >= max(SWITCH_SHARE * len(kinds), 2) else None


def _codes_with_zeros(cells: _Cells, numeric: "NDArray[np.bool_]") -> bool:
    """True for codes like postal codes: digits, some padded with zeros, all of one length."""
    words = [value for value, good in zip(cells.values, numeric, strict=True) if good and isinstance(value, str)]
    return (
        any(_PADDED.fullmatch(word) for word in words)
        and all(word.isdigit() for word in words)
        and len({*map(len, words)}) == 1
    )


def _coded(cells: _Cells, numeric: "NDArray[np.bool_]") -> bool:
    """True for a few codes of which some are numbers, like 1, 2, 3, U: the words repeat too much to be slips."""
    if len(cells.values) > FEW_LEVELS or numeric.all() or not numeric.any():
        return False
    return int(cells.counts[~numeric].min()) >= max(5, CODE_SHARE * cells.n)


def _note_bad(cells: _Cells, good: "NDArray[np.bool_]", name: str, what: str, notes: list[Finding]) -> None:
    if not good.all():
        bad = [parse.shown(value) for value, fine in zip(cells.values, good, strict=True) if not fine]
        count = int(cells.counts[~good].sum())
        notes.append(
            Finding("type", name, None, f"{count} of {cells.n} cells are not {what}: {_few(bad[:5])}", "warning")
        )


def _category_or_text(cells: _Cells) -> ColumnKind:
    distinct, rows = len(cells.values), len(cells.codes)
    worded = cells.share(np.array([bool(_SPACE.search(str(value))) for value in cells.values])) >= 0.5
    if distinct <= min(max(FEW_LEVELS, LEVEL_SHARE * rows), MAX_LEVELS):
        nearly_unique = cells.n >= FEW_ROWS and distinct > 0.9 * cells.n
        return "text" if nearly_unique and worded else "category"
    repeated = MANY_REPEATS if distinct > MAX_LEVELS else REPEATS_OF_PHRASES if worded else REPEATS_OF_WORDS
    return "category" if cells.n / distinct >= repeated else "text"


def _identifier(cells: _Cells, name: str, kind: ColumnKind) -> str:
    """Why the column is an identifier; empty if it is none."""
    distinct, n = len(cells.values), cells.n
    if n < FEW_ROWS or kind in {"number", "date", "boolean"}:
        return ""
    if kind == "integer":
        read, good, empty = _parsed(cells, parse.number)
        values = np.array([value for value, fine in zip(read, good & ~empty, strict=True) if fine])
        if distinct >= UNIQUE * n and _IDENTIFIER_NAME.search(name):
            return f"identifier: {distinct} distinct whole numbers in {n} cells, and its name says so"
        if distinct == n and n >= 2 * FEW_ROWS and np.ptp(values) == n - 1:
            return f"identifier: it counts the rows, {values.min():.0f} to {values.max():.0f}"
        return ""
    spaced = cells.share(np.array([bool(_SPACE.search(str(value))) for value in cells.values]))
    if distinct >= UNIQUE * n and spaced < 0.05:
        return f"identifier: {distinct} distinct codes in {n} cells"
    return ""


def _column(cells: _Cells, name: str, kind: ColumnKind, missing: float, notes: list[Finding]) -> Column:
    if kind in {"number", "integer"}:
        read, good, empty = _parsed(cells, parse.number)
        values = [value for value, fine in zip(read, good & ~empty, strict=True) if fine]
        low, high = (min(values), max(values)) if values else (None, None)
        return Column(name=name, kind=kind, minimum=low, maximum=high, missing_share=missing)
    if kind == "date":
        stamps = [stamp for stamp, good in zip(*_parsed(cells, parse.date_microseconds)[:2], strict=True) if good]
        bounds = (
            [str(np.datetime64(stamp, "us")).removesuffix("T00:00:00.000000") for stamp in (min(stamps), max(stamps))]
            if stamps
            else [None, None]
        )
        return Column(name=name, kind=kind, minimum=bounds[0], maximum=bounds[1], missing_share=missing)
    if kind == "category":
        order = sorted(range(len(cells.values)), key=lambda i: (-int(cells.counts[i]), str(cells.values[i])))
        levels = dict.fromkeys(str(cells.values[i]) for i in order)
        if len(levels) > MAX_LEVELS:
            notes.append(
                Finding(
                    "levels", name, None, f"{len(levels)} levels; the {MAX_LEVELS} most frequent are kept", "warning"
                )
            )
        once = int((cells.counts == 1).sum())
        if once:
            notes.append(Finding("rare", name, None, f"{once} of {len(levels)} categories are seen once", "warning"))
        return Column(name=name, kind=kind, categories=tuple(levels)[:MAX_LEVELS], missing_share=missing)
    return Column(name=name, kind=kind, missing_share=missing)


_READERS: Mapping[str, Callable[[Any], Any]] = {
    "number": parse.number,
    "integer": parse.number,
    "boolean": parse.boolean,
    "date": parse.date_microseconds,
}


def _infer_target(cells: _Cells, name: str, forced: Task | None) -> tuple[Target, list[Finding]]:
    where = f"column {name}"
    numbers, numeric, empty = _parsed(cells, parse.number)
    boolean = bool(cells.values) and all(isinstance(value, bool) for value in cells.values)
    named, mask = cells.without(empty), numeric[~empty]
    mostly = not boolean and named.n > 0 and named.share(mask) >= MOSTLY and not _coded(named, mask)
    if not mostly:
        empty = np.array([str(value).lower() == "nan" for value in cells.values], dtype=bool)
    real = cells.without(empty)
    notes: list[Finding] = []
    if real.n < len(cells.codes):
        count = len(cells.codes) - real.n
        notes.append(
            Finding("label_missing", name, None, f"{count} of {len(cells.codes)} rows have no label", "warning")
        )
    if real.n == 0:
        raise DataError(
            f"a label must have values, but every cell of {name!r} is empty",
            code="empty_target",
            where=where,
            cure="choose another label",
        )
    values = (
        [value for value, none in zip(numbers, empty, strict=True) if not none and value is not None] if mostly else []
    )
    whole = mostly and all(value.is_integer() for value in values)
    task: Task
    if forced:
        task = forced
    elif mostly and (not whole or len(set(values)) > CLASS_VALUES):
        task = "regression"
    else:
        task = "multiclass"
    if task == "regression":
        return _regression(name, values, mostly, where), notes
    classes, counts = _classes(real, whole, boolean, numeric[~empty])
    if len(classes) < 2:
        raise DataError(
            f"a label needs at least 2 classes, but {name!r} has only {parse.shown(classes[0])}",
            code="one_class",
            where=where,
            cure="choose another label, or rows of both classes",
        )
    if len(classes) > MAX_CLASSES or (len(classes) > CLASS_VALUES and len(classes) > 0.5 * real.n):
        raise DataError(
            f"a label of classes repeats itself, but {name!r} has {len(classes)} distinct values in {real.n} rows",
            code="too_many_classes",
            where=where,
            cure="choose another label; for numbers say `task: regression`",
        )
    if forced == "binary" and len(classes) != 2:
        raise DataError(
            f"a binary label has 2 classes, but {name!r} has {len(classes)}: {_few(classes)}",
            code="not_binary",
            where=where,
            cure="leave `task` out, or use `task: multiclass`",
        )
    rare = [str(value) for value, count in zip(classes, counts, strict=True) if count < 5]
    if rare:
        notes.append(Finding("rare_class", name, None, f"fewer than 5 rows: class {_few(rare)}", "warning"))
    final: Task = forced or ("binary" if len(classes) == 2 else "multiclass")
    return Target(name=name, task=final, classes=tuple(classes)), notes


def _regression(name: str, values: list[float], mostly: bool, where: str) -> Target:
    if not mostly:
        raise DataError(
            f"a label for regression is a number, but most cells of {name!r} are not",
            code="label_not_numeric",
            where=where,
            cure="choose another label, or leave `task` out",
        )
    if min(values) == max(values):
        raise DataError(
            f"a label must vary, but every value of {name!r} is {values[0]:g}",
            code="one_class",
            where=where,
            cure="choose another label",
        )
    return Target(name=name, task="regression", minimum=min(values), maximum=max(values))


def _classes(
    cells: _Cells, whole: bool, boolean: bool, numeric: "NDArray[np.bool_]"
) -> tuple[list[ClassLabel], list[int]]:
    """Classes in sorted order, in their own type, and the rows of each."""
    counts: dict[ClassLabel, int] = {}
    words = {str(value).lower() for value in cells.values}
    truths = boolean or words == {"true", "false"}
    for value, count, good in zip(cells.values, cells.counts.tolist(), numeric.tolist(), strict=True):
        key: ClassLabel
        if truths:
            key = parse.boolean(value) == 1.0
        elif whole:
            if not good:
                continue  # a stray word in a column of whole numbers is a bad cell
            key = int(parse.number(value))
        else:
            key = str(value)
        counts[key] = counts.get(key, 0) + count
    ordered = sorted(counts, key=lambda key: cast(Any, key))
    return ordered, [counts[key] for key in ordered]
