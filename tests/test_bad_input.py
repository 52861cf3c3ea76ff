"""Each bad input that a step can see gets a message with rule, value, place and cure, the right exit code, and no output."""

import contextlib
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from components import ingest, validate
from esteira.errors import DataError, EsteiraError, SourceError

LINE = "tabular@t"
HEADER = "age,city,spent,y\n"


def _row(i: int) -> list[str]:
    return [str(20 + i % 40), ["Recife", "Olinda", "Natal"][i % 3], f"{(i * 37) % 101}.5", ["yes", "no"][(i // 2) % 2]]


def _table(change: Callable[[int, list[str]], list[str]] = lambda _, row: row, rows: int = 100) -> bytes:
    return (HEADER + "".join(",".join(change(i, _row(i))) + "\n" for i in range(rows))).encode()


def _with(column: int, value: str, when: Callable[[int], bool]) -> Callable[[int, list[str]], list[str]]:
    """A change that puts the value into the column of some rows."""
    return lambda i, row: [*row[:column], value, *row[column + 1 :]] if when(i) else row


def _steps(folder: Path, *, target: str = "y", **params: Any) -> validate.Report:
    """Both steps on `t.csv` of the folder."""
    reading = {name: params.pop(name) for name in ("max_rows", "delimiter") if name in params}
    ingest.run(
        source=str(folder / "t.csv"), target=target, line=LINE, out=folder / "in", params=ingest.Params(**reading)
    )
    return validate.run(
        rows=folder / "in" / "rows.parquet", dataset=folder / "in" / "dataset.json", target=target, line=LINE,
        out=folder / "out", params=validate.Params(expectations=False, **params),
    )  # fmt: skip


@dataclass(frozen=True)
class Bad:
    """A bad input and its letter: the rule and the value (parts of the message), the place, the cure, the exit code."""

    data: bytes | None
    error: type[EsteiraError]
    code: str
    says: tuple[str, ...]
    place: str
    cure: str
    exit_code: int
    target: str = "y"
    params: tuple[tuple[str, Any], ...] = ()


BAD = {
    "missing file": Bad(
        None, SourceError, "missing_file", ("must exist", "'t.csv'"), "t.csv", "did you mean 't.cvs'", 2,
    ),
    "empty file": Bad(b"", DataError, "empty_file", ("a header and at least one row", "0 bytes"), "t.csv", "check how", 1),
    "header only": Bad(
        HEADER.encode(), DataError, "header_only", ("at least one row", "only a header of 4 columns"), "t.csv", "check how", 1
    ),
    "wrong delimiter": Bad(
        _table().replace(b",", b";"), SourceError, "wrong_delimiter",
        ("separated by a comma", "3 times a semicolon: 'age;city;spent;y'"), "line 1", "--set ingest.delimiter=';'", 2,
    ),
    "one-class label": Bad(
        _table(_with(3, "yes", lambda _: True)), DataError, "one_class",
        ("at least two values", "'y' is 'yes' in all 100 rows"), "column 'y'", "add rows of another class", 1,
    ),
    "missing label column": Bad(
        _table(), DataError, "missing_label", ("must be in the table", "'Y' is not among its 4 columns"), "t.csv",
        "did you mean --target 'y'?", 1, target="Y",
    ),
    "label without any value": Bad(
        _table(_with(3, "", lambda _: True)), DataError, "empty_label",
        ("must have values", "every one of the 100 cells of 'y' is empty"), "column 'y'", "--target", 1,
    ),
    "duplicated column names": Bad(
        _table().replace(b"age,city,spent", b"age,city,age"), DataError, "duplicated_column",
        ("unique", "'age' is the name of columns 1 and 3"), "header", "rename or remove", 1,
    ),
    "too many infinite numbers": Bad(
        _table(_with(2, "inf", lambda i: i % 10 == 3)), DataError, "infinite",
        ("must be finite", "'spent' has 10 infinite ones in 100 cells (10.0%, limit 5.0%", "data rows 4, 14, 24, 34, 44"),
        "column 'spent', data row 4", "validate.max_bad_share", 1,
    ),
    "row limit exceeded": Bad(
        _table(), DataError, "too_many_rows", ("99 rows at most", "100"), "t.csv", "--set ingest.max_rows=N", 1,
        params=(("max_rows", 99),),
    ),
    "non-UTF-8 bytes": Bad(
        _table(_with(1, "São Paulo", lambda i: i == 41)).decode().encode("latin-1"), SourceError, "not_utf8",
        ("must be UTF-8", "is 0xe3 (read as Latin-1:", "São Paul"), "line 43", "iconv -f ISO-8859-1 -t UTF-8", 2,
    ),
    "ragged row": Bad(
        _table(lambda i, row: row[:3] if i == 41 else row), DataError, "ragged_row",
        ("as many fields as the header (4)", "data row 42 has 3: '21,Natal,2.5'"), "line 43", "correct the row", 1,
    ),
    "a row with a field too many": Bad(
        _table(lambda i, row: [*row, "x"] if i == 0 else row), DataError, "ragged_row",
        ("as many fields as the header (4)", "data row 1 has 5"), "line 2", "quote the cell", 1,
    ),
    "a column that changes type half-way": Bad(
        _table(_with(0, "unknown", lambda i: i >= 50)), DataError, "type_change",
        ("one type", "'age' changes type at row 51: numbers before, text from there on", "'unknown'"),
        "column age, row 51", "repair the source", 1,
    ),
    "too many rows without a label": Bad(
        _table(_with(3, "NaN", lambda i: i % 4 == 0)), DataError, "too_many_bad_rows",
        ("at most 5.0% of the rows may be bad", "25 of 100 (25.0%)", "rule 'label_missing' of column 'y'", "data row 1: 'NaN'"),
        "column 'y', data row 1", "quarantine.jsonl", 1,
    ),
    "too few rows": Bad(
        _table(rows=8), DataError, "too_few_rows", ("at least 10 good rows", "8 of 8"), "step validate", "add rows", 1
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_gets_a_letter_with_rule_value_place_and_cure_and_writes_no_rows(tmp_path: Path, name: str) -> None:
    bad = BAD[name]
    if bad.data is not None:
        (tmp_path / "t.csv").write_bytes(bad.data)
    else:
        (tmp_path / "t.cvs").write_bytes(_table())

    with pytest.raises(EsteiraError) as refused:
        _steps(tmp_path, target=bad.target, **dict(bad.params))

    error = refused.value
    assert (bad.error, bad.code, bad.exit_code) == (type(error), error.code, error.exit_code), str(error)
    for words in bad.says:
        assert words in error.message
    assert bad.place in error.where
    assert bad.cure in error.cure
    assert str(tmp_path.parent) not in str(error)
    assert len(error.message) < 600
    assert not (tmp_path / "out" / "rows.parquet").exists()
    assert not (tmp_path / "out" / "contract.yaml").exists()


@pytest.mark.parametrize("name", [name for name, bad in BAD.items() if bad.data is not None])
def test_bad_input_leaves_the_last_good_state_untouched(tmp_path: Path, name: str) -> None:
    """Ingest's last rows stay byte for byte when ingest refuses; validate's last rows and contract stay in any case."""
    (tmp_path / "t.csv").write_bytes(_table())
    _steps(tmp_path)
    watched = [tmp_path / "out" / "rows.parquet", tmp_path / "out" / "contract.yaml"]
    before = [path.read_bytes() for path in watched]
    ingested = {path.name: path.read_bytes() for path in (tmp_path / "in").iterdir()}
    (tmp_path / "t.csv").write_bytes(BAD[name].data or b"")

    with pytest.raises(EsteiraError) as refused:
        _steps(tmp_path, target=BAD[name].target, **dict(BAD[name].params))

    assert before == [path.read_bytes() for path in watched]
    if "step validate" not in refused.value.where and refused.value.code != "type_change":
        assert ingested == {path.name: path.read_bytes() for path in (tmp_path / "in").iterdir()}
    assert [] == [
        path.name for folder in ("in", "out") for path in (tmp_path / folder).iterdir() if path.suffix == ".tmp"
    ]


# ---------------------------------------------------------------- bad input that is not refused, but said


def _findings(folder: Path) -> dict[tuple[str, str], dict[str, Any]]:
    found = json.loads((folder / "out" / "findings.json").read_text())["findings"]
    return {(finding["rule"], finding["column"]): finding for finding in found}


def _quarantined(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "out" / "quarantine.jsonl").read_text().splitlines()]


def test_an_all_null_column_is_left_out_with_a_note(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(_table(_with(2, " ", lambda _: True)))

    report = _steps(tmp_path)

    assert (2, 1, 0) == (report.feature_columns, report.dropped_columns, report.quarantined_rows)
    assert "all cells are empty" in _findings(tmp_path)["dropped", "spent"]["message"]
    assert "100 of 100 cells of 'spent' are missing" in _findings(tmp_path)["mostly_missing", "spent"]["message"]


def test_a_few_infinite_numbers_are_set_aside(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(_table(_with(2, "-Infinity", lambda i: i == 7)))

    report = _steps(tmp_path)

    assert (99, 1) == (report.good_rows, report.quarantined_rows)
    assert [(8, "infinite", "spent", "-Infinity", "must be finite, but got '-Infinity'")] == [
        (entry["row"], *(reason[key] for key in ("rule", "column", "value", "message")))
        for entry in _quarantined(tmp_path)
        for reason in entry["reasons"]
    ]


def test_infinite_numbers_of_a_typed_source_are_seen_too(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    values = [float("inf") if i < 3 else i / 7 for i in range(100)]
    pq.write_table(pa.table({"spent": values, "y": [i % 2 for i in range(100)]}), tmp_path / "t.parquet")
    ingest.run(source=str(tmp_path / "t.parquet"), target="y", line=LINE, out=tmp_path / "in", params=ingest.Params())
    validate.run(
        rows=tmp_path / "in" / "rows.parquet", dataset=tmp_path / "in" / "dataset.json", target="y", line=LINE,
        out=tmp_path / "out", params=validate.Params(expectations=False),
    )  # fmt: skip

    assert [1, 2, 3] == [entry["row"] for entry in _quarantined(tmp_path)]
    assert "Infinity" == _quarantined(tmp_path)[0]["values"]["spent"]


def test_a_number_too_large_for_a_double_is_infinite(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(_table(_with(2, "1e999", lambda i: i == 7)))
    _steps(tmp_path)

    assert "infinite" == _quarantined(tmp_path)[0]["reasons"][0]["rule"]


def test_a_category_seen_once_stays_and_is_said(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(_table(_with(1, "Manaus", lambda i: i == 60)))

    report = _steps(tmp_path)

    assert (100, 0) == (report.good_rows, report.quarantined_rows)
    finding = _findings(tmp_path)["rare_category", "city"]
    assert ("warning", [{"row": 61, "value": "Manaus"}]) == (finding["severity"], finding["examples"])
    assert "seen once teaches nothing, but got 'Manaus'" in finding["message"]


def test_a_few_labels_that_are_nan_or_empty_are_set_aside(tmp_path: Path) -> None:
    blank = _with(3, "", lambda i: i == 5)
    nan = _with(3, "nan", lambda i: i == 90)
    (tmp_path / "t.csv").write_bytes(_table(lambda i, row: nan(i, blank(i, row))))

    report = _steps(tmp_path)

    assert 98 == report.good_rows
    assert [(6, "label_missing", None), (91, "label_missing", "nan")] == [
        (entry["row"], entry["reasons"][0]["rule"], entry["reasons"][0]["value"]) for entry in _quarantined(tmp_path)
    ]


def test_a_class_seen_once_is_said(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(_table(_with(3, "maybe", lambda i: i == 60)))
    _steps(tmp_path)

    assert "at least 5 rows, but 'maybe' has 1" in _findings(tmp_path)["small_class", "y"]["message"]


def test_the_last_class_may_be_lost_to_quarantine(tmp_path: Path) -> None:
    """The only rows of a class are bad for another reason: then one class is left."""
    only = _with(3, "no", lambda i: i == 60)
    bad = _with(0, "old", lambda i: i == 60)
    (tmp_path / "t.csv").write_bytes(_table(lambda i, row: bad(i, only(i, [*row[:3], "yes"]))))

    with pytest.raises(DataError, match="the 99 good rows all have 'y' = 'yes'") as refused:
        _steps(tmp_path)

    assert "one_class" == refused.value.code


def test_garbage_is_read_or_refused_in_words(tmp_path: Path) -> None:
    """200 seeded mutilations of a good file: never an exception that is not ours."""
    good = _table(rows=30)
    for seed in range(200):
        chance = random.Random(seed)
        data = bytearray(good)
        for _ in range(chance.randint(1, 4)):
            at = chance.randrange(len(data))
            match chance.randrange(4):
                case 0:
                    data[at] = chance.randrange(256)
                case 1:
                    del data[at : at + chance.randint(1, 40)]
                case 2:
                    data[at:at] = chance.choice([b'"', b",", b"\n", b"\x00", b"\xff", b"1e999", b"nan", b"\r", b'""'])
                case 3:
                    data[at:at] = data[chance.randrange(len(data)) :][:20]
        (tmp_path / "t.csv").write_bytes(bytes(data))
        with contextlib.suppress(EsteiraError):
            _steps(tmp_path, max_bad_share=1.0)
