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
    file = _file(tmp_path, "a.csv", "age,member,city\n31,true,Faro\n,False,\n x7 ,maybe,1\n")

    rows = read_rows(file, KINDS)

    assert [
        {"age": 31.0, "member": True, "city": "Faro"},
        {"age": None, "member": False, "city": None},
        {"age": "x7", "member": "maybe", "city": "1"},
    ] == rows


def test_gzip_and_a_byte_order_mark_are_read_as_what_they_hold(tmp_path: Path) -> None:
    file = _file(tmp_path, "a.csv.gz", gzip.compress("\ufeffage\n1\n".encode()))

    assert [{"age": 1.0}] == read_rows(file, KINDS)


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
