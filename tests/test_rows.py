"""A file of rows is read for answering: typed by the contract, in order, and nothing is guessed or dropped."""

import gzip
from pathlib import Path

import pytest

from esteira.errors import DataError, SourceError
from esteira.rows import read_rows

KINDS = {"age": "number", "member": "boolean", "city": "category"}


def _file(folder: Path, name: str, data: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def test_cells_of_csv_become_what_the_contract_says(tmp_path: Path) -> None:
    file = _file(tmp_path, "a.csv", "age,member,city\n31,true,Faro\n,False,\n x7 ,maybe,1\n1_0,,\n")

    rows = read_rows(file, KINDS)

    assert [
        {"age": 31.0, "member": True, "city": "Faro"},
        {"age": None, "member": False, "city": None},
        {"age": "x7", "member": "maybe", "city": "1"},
        {"age": "1_0", "member": None, "city": None},
    ] == rows


def test_gzip_and_a_byte_order_mark_are_read_as_what_they_hold(tmp_path: Path) -> None:
    file = _file(tmp_path, "a.csv.gz", gzip.compress("\ufeffage\n1\n".encode()))

    assert [{"age": 1.0}] == read_rows(file, KINDS)


def test_columns_have_the_names_that_training_gave_them(tmp_path: Path) -> None:
    file = _file(tmp_path, "a.csv", " age ,,city\n31,x,Faro\n")

    assert [{"age": 31.0, "unnamed_2": "x", "city": "Faro"}] == read_rows(file, KINDS)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.tsv", b"age\tcity\n31\tFaro, sul\n"),
        ("a.tsv.gz", gzip.compress(b"age\tcity\n31\tFaro, sul\n")),
        ("a.json", b' [{"age": 31, "city": "Faro, sul"}]'),
        ("a.ndjson.gz", gzip.compress(b'{"age": 31, "city": "Faro, sul"}\n')),
    ],
    ids=["tsv", "tsv.gz", "json", "ndjson.gz"],
)
def test_what_could_be_trained_on_can_be_answered(name: str, data: bytes, tmp_path: Path) -> None:
    assert [{"age": 31, "city": "Faro, sul"}] == read_rows(_file(tmp_path, name, data), KINDS)


def test_a_line_of_json_may_hold_any_sign_of_a_new_line_but_its_own(tmp_path: Path) -> None:
    file = _file(tmp_path, "a.jsonl", '{"city": "Faro\u2028sul\x85"}\n')

    assert [{"city": "Faro\u2028sul\x85"}] == read_rows(file, KINDS)


def test_json_lines_keep_nested_values(tmp_path: Path) -> None:
    file = _file(tmp_path, "a.jsonl", '{"tasks": [{"id": "a"}]}\n\n{"tasks": []}\n')

    assert [{"tasks": [{"id": "a"}]}, {"tasks": []}] == read_rows(file, {})


@pytest.mark.parametrize(
    ("name", "data", "code"),
    [
        ("a.csv", "age,city\n1,Faro,surplus\n", "ragged_row"),
        ("a.csv", "age,age\n1,2\n", "duplicate_column"),
        ("a.csv", "", "empty"),
        ("a.jsonl", "{}\n[1]\n", "bad_json"),
        ("a.json", "[1]", "bad_json"),
        ("a.json", "[{}", "bad_json"),
        ("a.jsonl", "{}\n{oops\n", "bad_json"),
    ],
)
def test_what_is_no_table_is_refused_with_its_place(name: str, data: str, code: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        read_rows(_file(tmp_path, name, data), KINDS)

    assert code == caught.value.code
    assert name in caught.value.where
    assert caught.value.cure


@pytest.mark.parametrize(
    ("name", "data", "code"),
    [
        ("a.csv", b"age\n\xe9\n", "not_utf8"),
        ("a.csv.gz", b"\x1f\x8bnope", "bad_gzip"),
        ("a.parquet", b"PAR?", "bad_parquet"),
    ],
)
def test_what_is_not_what_its_name_says_is_refused(name: str, data: bytes, code: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError) as caught:
        read_rows(_file(tmp_path, name, data), KINDS)

    assert code == caught.value.code


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"nowhere\.csv"):
        read_rows(tmp_path / "nowhere.csv", {})
