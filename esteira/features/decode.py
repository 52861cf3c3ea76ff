"""The typed decoder: a row becomes one float32 vector, by the same code in the batch step and in the service.

It only decodes (numbers, dates and their parts, booleans, category to code, words of a short text); scaling and imputing
are in the model's graph. What it learns (category maps, vocabularies, ranges) comes from training rows only and is JSON.
"""

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from difflib import get_close_matches
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np

from esteira.errors import ConfigError, DataError
from esteira.family import Finding, Row
from esteira.features import columns as by_column
from esteira.features import parse
from esteira.features.parse import LARGEST, NAN, shown

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

    from esteira.features.contract import ColumnKind, TableContract

VERSION = 1
MAX_LEVELS = 1000  # of a category; rarer ones count as unknown
# Of a text. On 6,000 reviews trees reach ROC AUC 0.939 with 32 words a column, 0.953 with 128, 0.957 with 256 and with 400;
# a row of three texts decodes in 20, 26 and 31 us.
MAX_TOKENS = 256
MAX_HINTS = 10  # unknown columns that are named of a row, and findings after which no nearest name is looked for
MIN_TOKEN_ROWS, MIN_TOKEN_SHARE = 5, 0.01  # of the training rows that have text
DATE_PARTS = ("days", "year", "month", "day", "weekday", "hour")
DAY = 86_400_000_000.0  # microseconds

_ABSENT = object()
# Runs of letters or of digits, so that cabin "C22" gives its deck `c` and its number.
_TOKEN = re.compile(r"[^\W\d_]+|\d+")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

Problem = tuple[str, Literal["error", "warning"], str]


@dataclass(frozen=True)
class ColumnDecoder:
    """How one column decodes, as data.

    Attributes:
        required: a row without this column is refused.
        minimum, maximum: range of the training rows; of a date in microseconds since 1970 UTC.
        levels: of a category, most frequent first; the code of `levels[i]` is i + 1, unknown is 0, missing is NaN.
        parts: of a date, the DATE_PARTS that vary in the training rows; `days` always.
        tokens: of a text, the words whose presence (1 or 0) is a feature, beside `length` and `words`.
    """

    name: str
    kind: "ColumnKind"
    required: bool = True
    minimum: float | None = None
    maximum: float | None = None
    levels: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()
    tokens: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the features this column gives; none for a nested one, which only a family's own code can read."""
        if self.kind == "object":
            return ()
        if self.kind == "date":
            return tuple(f"{self.name}.{part}" for part in self.parts)
        if self.kind == "text":
            return (f"{self.name}.length", f"{self.name}.words", *(f"{self.name}.has.{token}" for token in self.tokens))
        return (self.name,)


@dataclass(frozen=True)
class Decoder:
    """Decodes rows of one line. Values only; safe to share between threads.

    Attributes:
        columns: in the order of the contract; features follow it.
        label: name of the label column, ignored in rows.
        ignored: other columns that rows may carry without effect (those the contract dropped).
        declared: ranges and categories are what the contract says, not what training rows had; only words differ.
        names: feature names, one a feature.
        categorical: indexes of the features that are category codes.
        groups: column -> indexes of its features.
    """

    columns: tuple[ColumnDecoder, ...]
    label: str
    ignored: tuple[str, ...] = ()
    declared: bool = False
    names: tuple[str, ...] = field(init=False)
    categorical: tuple[int, ...] = field(init=False)
    groups: Mapping[str, tuple[int, ...]] = field(init=False, compare=False)
    _decoders: "tuple[tuple[str, Callable[[Any], Any], bool], ...]" = field(init=False, repr=False, compare=False)
    _inspectors: "tuple[tuple[str, Callable[[Any], Problem | None]], ...]" = field(
        init=False, repr=False, compare=False
    )
    _columns: "tuple[tuple[Callable[[Sequence[Any]], bool], Callable[[Sequence[Any]], NDArray[Any] | None]], ...]" = (
        field(init=False, repr=False, compare=False)
    )
    _allowed: frozenset[str] = field(init=False, repr=False, compare=False)
    _optional: frozenset[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        names = [name for column in self.columns for name in column.names]
        starts = np.cumsum([0] + [len(column.names) for column in self.columns]).tolist()
        put: Callable[[str, Any], None] = lambda name, value: object.__setattr__(self, name, value)  # noqa: E731
        put("names", tuple(names))
        put(
            "groups",
            {c.name: tuple(range(start, start + len(c.names))) for c, start in zip(self.columns, starts, strict=False)},
        )
        put("categorical", tuple(starts[i] for i, column in enumerate(self.columns) if column.kind == "category"))
        put(
            "_decoders",
            tuple((c.name, _decoder(c), c.kind not in {"date", "text", "object"}) for c in self.columns),
        )
        put("_inspectors", tuple((c.name, _inspector(c, self.declared)) for c in self.columns))
        put("_columns", tuple((_screen(c), _reader(c)) for c in self.columns))
        put("_allowed", frozenset({c.name for c in self.columns} | {self.label} | set(self.ignored)))
        put("_optional", frozenset(c.name for c in self.columns if not c.required))

    def rows(self, rows: Sequence[Row]) -> "NDArray[np.float32]":
        """Decode rows; an absent column counts as missing.

        Args:
            rows: n mappings column -> JSON value (or what `parse` takes for the column's kind).

        Returns:
            Features of shape (n, len(names)); NaN is missing.

        Raises:
            DataError: a value cannot be decoded; names row (from 0) and column.
        """
        if len(rows) >= by_column.MANY:
            found = self._rows_by_column(rows)
            if found is not None:
                return found
        flat: list[float] = []
        add, extend = flat.append, flat.extend
        for row in rows:
            get = row.get
            for name, decode, single in self._decoders:
                try:
                    if single:
                        add(decode(get(name)))
                    else:
                        extend(decode(get(name)))
                except (ValueError, TypeError) as error:
                    raise _undecodable(
                        str(error), name, next(i for i, other in enumerate(rows) if other is row)
                    ) from error
        return np.array(flat, dtype=np.float32).reshape(len(rows), len(self.names))

    def _rows_by_column(self, rows: Sequence[Row]) -> "NDArray[np.float32] | None":
        """The same a column at a time; None when it must be done row by row, because a column or a cell is not as it should be."""
        table = by_column.cells_of(rows, [column.name for column in self.columns])
        if table is None:
            return None
        out = np.empty((len(rows), len(self.names)), dtype=np.float32)
        at = 0
        for (_, decode, single), (_, read), column, cells in zip(
            self._decoders, self._columns, self.columns, table, strict=True
        ):
            width = len(column.names)
            values = read(cells)
            if values is None:
                try:
                    values = np.array([decode(cell) for cell in cells], dtype=np.float32)
                except (ValueError, TypeError):
                    return None
            if single:
                out[:, at] = values
            else:
                out[:, at : at + width] = values.reshape(len(rows), width)
            at += width
        return out

    def frame(self, frame: "pd.DataFrame") -> "NDArray[np.float32]":
        """Decode a table; equal bit for bit to `rows` of the same cells.

        Args:
            frame: n rows; columns typed (double, boolean, text, timestamp in UTC) or raw text, other columns are ignored.

        Returns:
            Features of shape (n, len(names)); NaN is missing.

        Raises:
            DataError: a required column is absent or a value cannot be decoded.
        """
        out = np.empty((len(frame), len(self.names)), dtype=np.float32)
        at = 0
        for column, (_, decode, _) in zip(self.columns, self._decoders, strict=True):
            width = len(column.names)
            if column.name in frame.columns:
                out[:, at : at + width] = _decode_series(frame[column.name], column, decode)
            elif column.required:
                raise DataError(
                    f"every row must have column {column.name!r}, but the table has no such column",
                    code="missing_column",
                    where=f"column {column.name}",
                    cure="add the column (its cells may be empty)",
                )
            else:
                out[:, at : at + width] = np.asarray(decode(None), dtype=np.float32)
            at += width
        return out

    def check(self, rows: Sequence[Row]) -> list[Finding]:
        """What is wrong with rows: errors (missing or unknown column, undecodable type) and warnings.

        Warnings are an unseen category, a number or date out of the training rows' range, an empty cell, a fraction in a
        column of whole numbers. The label and dropped columns may be sent and are ignored.
        """
        if len(rows) >= by_column.MANY:
            found = self._check_by_column(rows)
            if found is not None:
                return found
        findings: list[Finding] = []
        for index, row in enumerate(rows):
            if type(row) is not dict and not isinstance(cast(object, row), Mapping):
                findings.append(Finding("type", "", index, f"a row must be an object, but got {shown(row)}"))
                continue
            get = row.get
            present = len(self._inspectors)
            for name, inspect in self._inspectors:
                value = get(name, _ABSENT)
                if value is _ABSENT:
                    present -= 1
                    findings.append(self._absent(name, index))
                    continue
                problem = inspect(value)
                if problem is not None:
                    rule, severity, message = problem
                    findings.append(Finding(rule, name, index, message, severity))
            if len(row) != present and not row.keys() <= self._allowed:
                unknown = [name for name in row if name not in self._allowed]
                # A hint costs milliseconds where there are many columns, so a large bad request gets none.
                hints = len(findings) < MAX_HINTS
                findings.extend(self._unknown(name, index, hints=hints) for name in unknown[:MAX_HINTS])
        return findings

    def _check_by_column(self, rows: Sequence[Row]) -> list[Finding] | None:
        """The same a column at a time, where every row has all columns and no unknown one; else None."""
        table = by_column.cells_of(rows, [column.name for column in self.columns])
        if table is None or (max(map(len, rows)) > len(table) and not all(map(self._allowed.issuperset, rows))):
            return None
        found: list[tuple[int, Finding]] = []
        for (name, inspect), (plain, _), cells in zip(self._inspectors, self._columns, table, strict=True):
            if plain(cells):
                continue
            for index, cell in enumerate(cells):
                problem = inspect(cell)
                if problem is not None:
                    rule, severity, message = problem
                    found.append((index, Finding(rule, name, index, message, severity)))
        found.sort(key=itemgetter(0))  # of one row, columns stay in their order
        return [finding for _, finding in found]

    def _absent(self, name: str, index: int) -> Finding:
        if name in self._optional:
            return Finding("empty", name, index, "column is absent and counts as missing", "warning")
        return Finding("required", name, index, f"column {name!r} must be in every row, but it is absent")

    def _unknown(self, name: str, index: int, *, hints: bool) -> Finding:
        near = get_close_matches(str(name)[:80], [c.name for c in self.columns[:200]], n=1) if hints else []
        hint = f"; did you mean {near[0]!r}?" if near else ""
        return Finding("unknown", str(name), index, f"column {shown(name)} is not in the contract{hint}")

    def files(self) -> dict[str, bytes]:
        """What of it travels in a bundle: `decoder.json`."""
        return {"decoder.json": self.to_json().encode()}

    def to_json(self) -> str:
        """The decoder as canonical JSON text, the same bytes for the same decoder."""
        columns = []
        for column in self.columns:
            document = asdict(column)
            columns.append(
                {key: value for key, value in document.items() if value not in (None, ()) or key == "required"}
            )
        document = {"version": VERSION, "label": self.label, "ignored": self.ignored, "columns": columns}
        return json.dumps(document, ensure_ascii=False, indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> "Decoder":
        """Read what `to_json` wrote.

        Raises:
            ConfigError: it is not a decoder of a version this code knows.
        """
        try:
            document = json.loads(text)
            if document["version"] != VERSION:
                raise ConfigError(
                    f"this code reads decoders of version {VERSION}, but got version {shown(document['version'])}",
                    code="decoder_version",
                    where="decoder.json",
                    cure="serve the bundle with the esteira that wrote it, or train the line again",
                )
            columns = tuple(_column_of(column) for column in document["columns"])
            return cls(columns, document["label"], tuple(document["ignored"]))
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"a decoder must be JSON with version, label, ignored and columns, but reading it failed: {error}",
                code="bad_decoder",
                where="decoder.json",
                cure="fetch the bundle again, or train the line again",
            ) from error


def _column_of(document: Mapping[str, Any]) -> ColumnDecoder:
    values: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in document.items()}
    return ColumnDecoder(**values)


def checker(contract: "TableContract") -> Decoder:
    """What holds rows against a declared contract: a decoder that has learned nothing but what the contract says."""
    columns = []
    for column in contract.columns:
        low, high = (None if end is None else _bound(end, column.kind) for end in (column.minimum, column.maximum))
        parts = ("days",) if column.kind == "date" else ()
        columns.append(
            ColumnDecoder(column.name, column.kind, column.required, low, high, column.categories or (), parts)
        )
    return Decoder(
        tuple(columns), contract.target.name, tuple(dropped.name for dropped in contract.dropped), declared=True
    )


def _bound(end: float | str, kind: str) -> float:
    if kind == "date":
        stamp = parse.date_microseconds(str(end))
        return NAN if stamp is None else float(stamp)
    return float(end)


def fit_decoder(frame: "pd.DataFrame", contract: "TableContract") -> Decoder:
    """Learn category maps, vocabularies and ranges from training rows, and from nothing else.

    Args:
        frame: the training rows, typed or raw text.
        contract: which columns there are and of what kind.

    Raises:
        DataError: a required column is absent or a value cannot be decoded.
    """
    columns = []
    for column in contract.columns:
        if column.name not in frame.columns:
            raise DataError(
                f"training rows must have every column of the contract, but {column.name!r} is absent",
                code="missing_column",
                where=f"column {column.name}",
                cure="add the column, or take it out of the contract",
            )
        learned: dict[str, Any] = {}
        series = frame[column.name]
        if column.kind in {"number", "integer"}:
            learned = _range(_numbers(series, column.name))
        elif column.kind == "category":
            counts = Counter(_map(parse.text, series, column.name))
            del counts[None]
            learned = {"levels": tuple(sorted(counts, key=lambda level: (-counts[level], level))[:MAX_LEVELS])}
        elif column.kind == "date":
            stamps = microseconds(series, column.name)
            present = stamps[stamps != MISSING_DATE]
            learned = {"parts": _varying_parts(present)}
            if len(present):
                learned |= {"minimum": int(present.min()), "maximum": int(present.max())}
        elif column.kind == "text":
            learned = {"tokens": _vocabulary(_map(parse.text, series, column.name))}
        columns.append(ColumnDecoder(column.name, column.kind, column.required, **learned))
    return Decoder(tuple(columns), contract.target.name, tuple(dropped.name for dropped in contract.dropped))


def json_rows(frame: "pd.DataFrame", columns: "Decoder | TableContract") -> list[dict[str, Any]]:
    """Rows of a table as JSON objects of the columns of a decoder or contract; None is an empty cell."""
    cells: dict[str, list[Any]] = {}
    for column in columns.columns:
        if column.kind == "date" and frame[column.name].dtype.kind == "M":
            stamps = microseconds(frame[column.name], column.name).tolist()
            cells[column.name] = [None if stamp == MISSING_DATE else _iso(stamp) for stamp in stamps]
        else:
            cells[column.name] = _map(_JSON_CELLS[column.kind], frame[column.name], column.name)
    return [dict(zip(cells, values, strict=True)) for values in zip(*cells.values(), strict=True)]


def clean_rows(rows: Sequence[Row], contract: "TableContract") -> list[dict[str, Any]]:
    """Rows as `json_rows` gives them, from JSON rows that obey the contract: numbers are numbers, dates ISO text in UTC.

    So code that computes features sees the same cells in a batch and in the service. Other columns are left out.

    Raises:
        DataError: a value is not of its column's kind; names row (from 0) and column.
    """
    readers = [(column.name, _JSON_CELLS[column.kind]) for column in contract.columns]
    cleaned = []
    for index, row in enumerate(rows):
        made = {}
        for name, read in readers:
            try:
                made[name] = read(row.get(name))
            except (ValueError, TypeError) as error:
                raise _undecodable(str(error), name, index) from error
        cleaned.append(made)
    return cleaned


# How a cell decodes: one small function a column, made once.


def _decoder(column: ColumnDecoder) -> Callable[[Any], Any]:
    if column.kind in {"number", "integer"}:
        return _number_cell
    if column.kind == "boolean":
        return parse.boolean
    if column.kind == "category":
        return _category_cell(column.levels)
    if column.kind == "date":
        return _date_cell(column.parts)
    if column.kind == "object":
        return lambda _: ()
    return _text_cell(column.tokens)


def _number_cell(value: Any) -> float:
    kind = type(value)
    if (kind is float or kind is int) and -LARGEST <= value <= LARGEST:
        return float(value)
    result = parse.number(value)
    if -LARGEST <= result <= LARGEST or result != result:
        return result
    return LARGEST if result > 0 else -LARGEST


def _category_cell(levels: Sequence[str]) -> Callable[[Any], float]:
    codes = _codes(levels)

    def decode(value: Any) -> float:
        if type(value) is str:
            code = codes.get(value)
            if code is not None:
                return code
        word = parse.text(value)
        return NAN if word is None else codes.get(word, 0.0)

    return decode


def _codes(levels: Sequence[str]) -> dict[str, float]:
    return {level: float(code) for code, level in enumerate(levels, 1)}


def _date_cell(parts: Sequence[str]) -> Callable[[Any], tuple[float, ...]]:
    missing = (NAN,) * len(parts)
    getters: list[Callable[[int, datetime], float]] = [_DATE_GETTERS[part] for part in parts]

    def decode(value: Any) -> tuple[float, ...]:
        stamp = parse.date_microseconds(value)
        if stamp is None:
            return missing
        moment = _EPOCH + timedelta(microseconds=stamp)
        return tuple([get(stamp, moment) for get in getters])

    return decode


_DATE_GETTERS: Mapping[str, Callable[[int, datetime], float]] = {
    "days": lambda stamp, _: stamp / DAY,
    "year": lambda _, moment: float(moment.year),
    "month": lambda _, moment: float(moment.month),
    "day": lambda _, moment: float(moment.day),
    "weekday": lambda _, moment: float(moment.weekday()),
    "hour": lambda _, moment: float(moment.hour),
}


def _text_cell(tokens: Sequence[str]) -> Callable[[Any], list[float]]:
    missing = [NAN, NAN] + [0.0] * len(tokens)
    at = {token: index for index, token in enumerate(tokens, 2)}

    def decode(value: Any) -> list[float]:
        word = parse.text(value)
        if word is None:
            return missing
        folded = fold(word)
        found = _TOKEN.findall(folded)
        result = [0.0] * len(missing)
        result[0] = float(len(folded))
        result[1] = float(len(found))
        for token in found:
            index = at.get(token)
            if index is not None:
                result[index] = 1.0
        return result

    return decode


def fold(text: str) -> str:
    """Unicode NFKC, case folded: texts that read the same become the same."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())


# What is odd about a cell: None in the ordinary case, at once.


def _inspector(column: ColumnDecoder, declared: bool) -> Callable[[Any], Problem | None]:
    if column.kind in {"number", "integer"}:
        return _inspect_number(column, declared)
    if column.kind == "category":
        return _inspect_category(column, declared)
    read: Callable[[Any], Any] = {
        "boolean": parse.boolean, "date": parse.date_microseconds, "text": parse.text, "object": parse.nested,
    }[column.kind]  # fmt: skip
    low, high = column.minimum, column.maximum
    span = "" if low is None or high is None else f"{_iso(low)} to {_iso(high)}"
    span = f"should be {span}" if declared else f"was {span} in training"

    def inspect(value: Any) -> Problem | None:
        try:
            found = read(value)
        except ValueError as error:
            return "type", "error", str(error)
        if found is None or found != found:
            return _EMPTY
        if low is not None and high is not None and not low <= found <= high:
            return "range", "warning", f"{span}, but got {shown(value)}"
        return None

    return inspect


_EMPTY: Problem = ("empty", "warning", "cell is empty and counts as missing")


def _inspect_number(column: ColumnDecoder, declared: bool) -> Callable[[Any], Problem | None]:
    low, high = _span(column)
    whole = column.kind == "integer"
    span = f"should be {low:.15g} to {high:.15g}" if declared else f"was {low:.15g} to {high:.15g} in training"
    integral = "should be a whole number" if declared else "was a whole number in training"

    def inspect(value: Any) -> Problem | None:
        kind = type(value)
        if (kind is int or (kind is float and not whole)) and low <= value <= high:
            return None
        try:
            found = parse.number(value)
        except ValueError as error:
            return "type", "error", str(error)
        if found != found:
            return _EMPTY
        if not low <= found <= high:
            return "range", "warning", f"{span}, but got {shown(value)}"
        if whole and not found.is_integer():
            return "whole", "warning", f"{integral}, but got {shown(value)}"
        return None

    return inspect


def _span(column: ColumnDecoder) -> tuple[float, float]:
    low = -LARGEST if column.minimum is None else column.minimum
    return low, LARGEST if column.maximum is None else column.maximum


def _inspect_category(column: ColumnDecoder, declared: bool) -> Callable[[Any], Problem | None]:
    levels = frozenset(column.levels)
    place = "is not in the contract" if declared else "was not in training"

    def inspect(value: Any) -> Problem | None:
        if type(value) is str and value in levels:
            return None
        try:
            word = parse.text(value)
        except ValueError as error:
            return "type", "error", str(error)
        if word is None:
            return _EMPTY
        if word in levels:
            return None
        return "category", "warning", f"category {shown(word)} {place} and counts as unknown"

    return inspect


# What holds of many cells at once, so that most columns of a large request need no look at each cell.


def _screen(column: ColumnDecoder) -> Callable[[Sequence[Any]], bool]:
    if column.kind in {"number", "integer"}:
        return by_column.numbers_within(*_span(column), whole=column.kind == "integer")
    if column.kind == "category":
        return by_column.texts_of(frozenset(column.levels))
    return {"boolean": by_column.booleans, "text": by_column.texts}.get(column.kind, by_column.unsure)


def _reader(column: ColumnDecoder) -> "Callable[[Sequence[Any]], NDArray[Any] | None]":
    if column.kind in {"number", "integer"}:
        return by_column.read_numbers
    if column.kind == "category":
        return by_column.read_codes(_codes(column.levels))
    return by_column.read_booleans if column.kind == "boolean" else by_column.read_nothing


# A whole column at once, by the same rules.

MISSING_DATE = int(np.iinfo(np.int64).min)


def _decode_series(
    series: "pd.Series[Any]", column: ColumnDecoder, decode: Callable[[Any], Any]
) -> "NDArray[np.float32]":
    kind = series.dtype.kind
    if column.kind in {"number", "integer"} and kind in "iuf":
        return np.clip(_numbers(series, column.name), -LARGEST, LARGEST).astype(np.float32)[:, None]
    if column.kind == "boolean" and kind == "b":
        return np.asarray(series.to_numpy(dtype=np.float32, na_value=NAN))[:, None]
    if column.kind == "date":
        return _date_parts(microseconds(series, column.name), column.parts)
    return np.array(_map(decode, series, column.name), dtype=np.float32).reshape(len(series), len(column.names))


def _numbers(series: "pd.Series[Any]", name: str) -> "NDArray[np.float64]":
    """The column as finite float64, NaN where it is empty."""
    if series.dtype.kind not in "iuf":
        return np.array(_map(parse.number, series, name), dtype=np.float64)
    values = np.asarray(series.to_numpy(dtype=np.float64, na_value=NAN))
    infinite = np.flatnonzero(np.isinf(values))
    if len(infinite):
        raise _undecodable("must be a finite number, but got inf", name, int(infinite[0]))
    return values


def _map(function: Callable[[Any], Any], series: "pd.Series[Any]", name: str) -> list[Any]:
    """The function of each cell; a repeated text is worked out once."""
    values = series.astype(object).where(series.notna(), None).tolist()
    memo: dict[str, Any] = {}
    out = []
    for index, value in enumerate(values):
        try:
            if type(value) is str:
                if value in memo:
                    out.append(memo[value])
                    continue
                memo[value] = found = function(value)
            else:
                found = function(value)
            out.append(found)
        except (ValueError, TypeError) as error:
            raise _undecodable(str(error), name, index) from error
    return out


def microseconds(series: "pd.Series[Any]", name: str) -> "NDArray[np.int64]":
    """A column of dates as microseconds since 1970 UTC, the least int64 where it is empty.

    Raises:
        DataError: a cell is no date; names row (from 0) and column.
    """
    if series.dtype.kind == "M":
        zone = getattr(series.dtype, "tz", None)
        naive = series if zone is None else series.dt.tz_convert("UTC").dt.tz_localize(None)
        # NaT is the least int64, which is MISSING_DATE
        return np.asarray(naive.to_numpy(dtype="datetime64[us]")).astype(np.int64)
    stamps = _map(parse.date_microseconds, series, name)
    return np.array([MISSING_DATE if stamp is None else stamp for stamp in stamps], dtype=np.int64)


def _date_parts(stamps: "NDArray[np.int64]", parts: Sequence[str]) -> "NDArray[np.float32]":
    """Parts of shape (rows, parts) from microseconds since 1970 UTC."""
    missing = stamps == MISSING_DATE
    moments = np.where(missing, 0, np.clip(stamps, parse.EARLIEST, parse.LATEST)).astype("datetime64[us]")
    days, months = moments.astype("datetime64[D]"), moments.astype("datetime64[M]")
    whole: dict[str, Callable[[], NDArray[Any]]] = {
        "days": lambda: stamps.astype(np.float64) / DAY,
        "year": lambda: months.astype("datetime64[Y]").astype(np.int64) + 1970,
        "month": lambda: months.astype(np.int64) % 12 + 1,
        "day": lambda: (days - months.astype("datetime64[D]")).astype(np.int64) + 1,
        "weekday": lambda: (days.astype(np.int64) + 3) % 7,
        "hour": lambda: (moments - days).astype(np.int64) // 3_600_000_000,
    }
    out = np.empty((len(stamps), len(parts)), dtype=np.float32)
    for index, part in enumerate(parts):
        out[:, index] = whole[part]()
    out[missing] = np.nan
    return out


def _varying_parts(stamps: "NDArray[np.int64]") -> tuple[str, ...]:
    values = _date_parts(stamps, DATE_PARTS)
    return tuple(
        part for index, part in enumerate(DATE_PARTS) if index == 0 or (len(stamps) and np.ptp(values[:, index]) > 0)
    )


def _vocabulary(texts: Iterable[str | None]) -> tuple[str, ...]:
    present = [text for text in texts if text is not None]
    counts = Counter(token for text in present for token in set(_TOKEN.findall(fold(text))))
    least = max(MIN_TOKEN_ROWS, MIN_TOKEN_SHARE * len(present))
    kept = [token for token, count in counts.items() if least <= count < len(present)]
    return tuple(sorted(kept, key=lambda token: (-counts[token], token))[:MAX_TOKENS])


def _range(values: "NDArray[np.float64]") -> dict[str, float | None]:
    present = values[~np.isnan(values)]
    return {"minimum": float(present.min()), "maximum": float(present.max())} if len(present) else {}


def _iso(stamp: float) -> str:
    moment = _EPOCH + timedelta(microseconds=int(stamp))
    return moment.strftime("%Y-%m-%d").rjust(10, "0") if int(stamp) % int(DAY) == 0 else moment.isoformat()


def _json_number(value: Any) -> float | None:
    found = parse.number(value)
    return None if found != found else found


def _json_integer(value: Any) -> float | int | None:
    found = parse.number(value)
    if found != found:
        return None
    return int(found) if found.is_integer() else found


def _json_boolean(value: Any) -> bool | None:
    found = parse.boolean(value)
    return None if found != found else found == 1.0


def _json_date(value: Any) -> str | None:
    stamp = parse.date_microseconds(value)
    return None if stamp is None else _iso(stamp)


_JSON_CELLS: Mapping[str, Callable[[Any], Any]] = {
    "date": _json_date,
    "number": _json_number,
    "integer": _json_integer,
    "boolean": _json_boolean,
    "category": parse.text,
    "text": parse.text,
    "object": parse.nested,
}


def _undecodable(message: str, column: str, row: int) -> DataError:
    return DataError(
        f"column {column!r} {message}",
        code="undecodable",
        where=f"column {column}, row {row}",
        cure="correct the value, or quarantine the row (`validate` does)",
    )
