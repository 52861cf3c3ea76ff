"""Infers the contract of a table from its cells: kinds, ranges, categories, what is left out. It changes and keeps no data."""

import re
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from esteira.errors import ConfigError, DataError
from esteira.family import Finding
from esteira.features import parse
from esteira.features.contract import Column, ColumnKind, Dropped, TableContract, Task
from esteira.features.decode import MAX_LEVELS
from families.tabular.cells import FEW_LEVELS, MOSTLY, Cells, coded, few, parsed
from families.tabular.target import infer_target

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

SWITCH_SHARE = 0.03  # of the cells on each side of a change of type
LEVEL_SHARE = 0.05
# Cells a level, from which a column of more levels still is a category: of single words, of phrases, of any above 1,000.
REPEATS_OF_WORDS, REPEATS_OF_PHRASES, MANY_REPEATS = 5, 10, 20
FEW_ROWS = 10  # below it nothing is called an identifier
UNIQUE = 0.99  # share of distinct codes from which a column of codes is an identifier
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
    label, notes = infer_target(Cells.of(frame[target]), target, task)
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
        column, why, found = _infer_column(Cells.of(frame[name]), name, given, keep=name == time_column)
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
            f"the label must be a column of the table, but there is no {target!r} among {few(names)}",
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
                f"`{option}` must name feature columns of the table, but got {name!r}; there are {few(names)}",
                code="unknown_column",
                where=option,
                cure="correct the parameter",
            )


def _infer_column(
    cells: Cells, name: str, given: ColumnKind | None, *, keep: bool
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


def _as_given(cells: Cells, kind: ColumnKind) -> Cells:
    if kind in {"category", "text"}:
        return cells
    _, good, empty = parsed(cells, _READERS[kind])
    return cells.without(empty & good)


def _infer_kind(cells: Cells, name: str, notes: list[Finding]) -> tuple[ColumnKind, Cells]:
    """Kind of a column and its cells with words for "empty" taken out, where the kind knows such words."""
    if all(isinstance(value, bool) for value in cells.values):
        return "boolean", cells
    numbers, numeric, empty = parsed(cells, parse.number)
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
    if real.share(mask) >= MOSTLY and not _codes_with_zeros(real, mask) and not coded(real, mask):
        whole = all(
            value.is_integer() for value, good, none in zip(numbers, numeric, empty, strict=True) if good and not none
        )
        _note_bad(real, mask, name, "a number", notes)
        return "integer" if whole else "number", real
    words = {str(value).lower() for value in cells.values}
    if words <= {"true", "false"} or words == {"t", "f"}:
        return "boolean", cells
    _, dates, empty = parsed(cells, parse.date_microseconds)
    real = cells.without(empty)
    mask = dates[~empty]
    if real.n and real.share(mask) >= MOSTLY:
        _note_bad(real, mask, name, "a date", notes)
        return "date", real
    return _category_or_text(cells), cells


def _switch(cells: Cells, numeric: "NDArray[np.bool_]") -> int | None:
    """Index among the non-empty rows from which on all cells are of the other type; None if there is no such point."""
    kinds = numeric[cells.codes[cells.codes >= 0]]
    changes = np.flatnonzero(kinds[1:] != kinds[:-1])
    if len(changes) != 1:
        return None
    row = int(changes[0]) + 1
    return row if min(row, len(kinds) - row) >= max(SWITCH_SHARE * len(kinds), 2) else None


def _codes_with_zeros(cells: Cells, numeric: "NDArray[np.bool_]") -> bool:
    """True for codes like postal codes: digits, some padded with zeros, all of one length."""
    words = [value for value, good in zip(cells.values, numeric, strict=True) if good and isinstance(value, str)]
    return (
        any(_PADDED.fullmatch(word) for word in words)
        and all(word.isdigit() for word in words)
        and len({*map(len, words)}) == 1
    )


def _note_bad(cells: Cells, good: "NDArray[np.bool_]", name: str, what: str, notes: list[Finding]) -> None:
    if not good.all():
        bad = [parse.shown(value) for value, fine in zip(cells.values, good, strict=True) if not fine]
        count = int(cells.counts[~good].sum())
        notes.append(
            Finding("type", name, None, f"{count} of {cells.n} cells are not {what}: {few(bad[:5])}", "warning")
        )


def _category_or_text(cells: Cells) -> ColumnKind:
    distinct, rows = len(cells.values), len(cells.codes)
    worded = cells.share(np.array([bool(_SPACE.search(str(value))) for value in cells.values])) >= 0.5
    if distinct <= min(max(FEW_LEVELS, LEVEL_SHARE * rows), MAX_LEVELS):
        nearly_unique = cells.n >= FEW_ROWS and distinct > 0.9 * cells.n
        return "text" if nearly_unique and worded else "category"
    repeated = MANY_REPEATS if distinct > MAX_LEVELS else REPEATS_OF_PHRASES if worded else REPEATS_OF_WORDS
    return "category" if cells.n / distinct >= repeated else "text"


def _identifier(cells: Cells, name: str, kind: ColumnKind) -> str:
    """Why the column is an identifier; empty if it is none."""
    distinct, n = len(cells.values), cells.n
    if n < FEW_ROWS or kind in {"number", "date", "boolean"}:
        return ""
    if kind == "integer":
        read, good, empty = parsed(cells, parse.number)
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


def _column(cells: Cells, name: str, kind: ColumnKind, missing: float, notes: list[Finding]) -> Column:
    if kind in {"number", "integer"}:
        read, good, empty = parsed(cells, parse.number)
        values = [value for value, fine in zip(read, good & ~empty, strict=True) if fine]
        low, high = (min(values), max(values)) if values else (None, None)
        return Column(name=name, kind=kind, minimum=low, maximum=high, missing_share=missing)
    if kind == "date":
        stamps = [stamp for stamp, good in zip(*parsed(cells, parse.date_microseconds)[:2], strict=True) if good]
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
