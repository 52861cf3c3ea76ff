"""Every format gives the same table; every source names its bytes; what is not a table is refused with its place."""

import gzip
import io
import json
import os
import sqlite3
import time
from collections.abc import Iterator
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esteira import sources
from esteira.errors import ConfigError, DataError, EsteiraError, OutsideError, Refused, SourceError

ROWS: list[dict[str, Any]] = [
    {"age": 31, "city": "Recife", "paid": True, "share": 0.5},
    {"age": 45, "city": None, "paid": False, "share": 0.25},
    {"age": 27, "city": "São Paulo", "paid": True, "share": None},
]
CSV = "age,city,paid,share\n31,Recife,true,0.5\n45,,false,0.25\n27,São Paulo,true,\n"


def _parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


def _database(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("create table people (age integer, city text, paid integer, share real)")
        connection.executemany("insert into people values (:age, :city, :paid, :share)", ROWS)
    connection.close()


def _write(folder: Path, kind: str) -> str:
    """The same three rows in a format; returns the URI."""
    lines = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    files = {
        "csv": ("t.csv", CSV.encode()),
        "csv.gz": ("t.csv.gz", gzip.compress(CSV.encode(), mtime=0)),
        "tsv": ("t.tsv", CSV.replace(",", "\t").encode()),
        "jsonl": ("t.jsonl", lines),
        "jsonl.gz": ("t.jsonl.gz", gzip.compress(lines, mtime=0)),
        "json": ("t.json", json.dumps(ROWS).encode()),
        "parquet": ("t.parquet", _parquet(pa.Table.from_pylist(ROWS))),
    }
    if kind == "folder":
        head, *body = CSV.splitlines(keepends=True)
        (folder / "t").mkdir()
        (folder / "t" / "1.csv").write_text(head + body[0])
        (folder / "t" / "2.csv").write_text(head + "".join(body[1:]))
        (folder / "t" / "README.md").write_text("not a table")
        return str(folder / "t")
    if kind == "database":
        _database(folder / "t.db")
        return f"sqlite:///{folder / 't.db'}#select * from people order by rowid"
    name, data = files[kind]
    (folder / name).write_bytes(data)
    return str(folder / name)


FORMATS = ["csv", "csv.gz", "tsv", "jsonl", "jsonl.gz", "json", "parquet", "folder", "database"]


@pytest.mark.parametrize("kind", FORMATS)
def test_each_format_round_trips_with_the_same_rows_and_columns(tmp_path: Path, kind: str) -> None:
    table = sources.read(_write(tmp_path, kind))

    assert (3, 4) == table.data.shape
    assert ["age", "city", "paid", "share"] == table.data.column_names
    assert ["Recife", None, "São Paulo"] == table.data["city"].to_pylist()
    assert [31, 45, 27] == [int(value) for value in table.data["age"].to_pylist()]
    assert [0.5, 0.25, None] == [None if value is None else float(value) for value in table.data["share"].to_pylist()]
    assert "t" == table.provenance.name
    assert 64 == len(table.provenance.content_hash)
    assert table.provenance.content_hash == sources.fingerprint(_write_again(tmp_path, kind))


def _write_again(folder: Path, kind: str) -> str:
    return {
        "folder": str(folder / "t"),
        "database": f"sqlite:///{folder / 't.db'}#select * from people order by rowid",
    }.get(kind, str(folder / f"t.{kind}"))


@pytest.mark.parametrize("kind", FORMATS)
def test_a_tampered_source_is_refused_by_its_content_hash(tmp_path: Path, kind: str) -> None:
    uri = _write(tmp_path, kind)
    registered = sources.read(uri).provenance.content_hash
    assert registered == sources.read(uri, expect_hash=registered).provenance.content_hash
    _tamper(tmp_path, kind)

    with pytest.raises(Refused, match=f"must have content hash {registered}") as refused:
        sources.read(uri, expect_hash=registered)

    assert ("content_hash", 1) == (refused.value.code, refused.value.exit_code)


def _tamper(folder: Path, kind: str) -> None:
    if kind == "database":
        with sqlite3.connect(folder / "t.db") as connection:
            connection.execute("update people set age = 32 where age = 31")
        connection.close()
        return
    path = folder / "t" / "2.csv" if kind == "folder" else folder / f"t.{kind}"
    data = path.read_bytes()
    plain = gzip.decompress(data) if kind.endswith(".gz") else data
    if kind == "parquet":
        changed = _parquet(pa.Table.from_pylist([{**ROWS[0], "age": 32}, *ROWS[1:]]))
    else:
        changed = plain.replace(b"45", b"46")
    path.write_bytes(gzip.compress(changed, mtime=0) if kind.endswith(".gz") else changed)


def test_a_file_that_is_moved_or_touched_keeps_its_content_hash(tmp_path: Path) -> None:
    first = Path(_write(tmp_path, "csv"))
    before = sources.read(str(first)).provenance.content_hash
    moved = first.rename(tmp_path / "other.csv")
    os.utime(moved, (time.time() - 9999, time.time() - 9999))

    assert before == sources.read(str(moved)).provenance.content_hash


def test_a_renamed_file_changes_the_hash_of_its_folder(tmp_path: Path) -> None:
    uri = _write(tmp_path, "folder")
    before = sources.fingerprint(uri)
    (tmp_path / "t" / "2.csv").rename(tmp_path / "t" / "3.csv")

    assert before != sources.fingerprint(uri)


def test_a_folder_says_what_it_left_out(tmp_path: Path) -> None:
    table = sources.read(_write(tmp_path, "folder"))

    assert ("left out, no table: 'README.md'",) == table.provenance.notes
    assert ["1.csv", "2.csv"] == [file.name for file in table.provenance.files]


def test_a_file_uri_is_a_path(tmp_path: Path) -> None:
    (tmp_path / "with space.csv").write_text(CSV)

    assert (3, 4) == sources.read(f"file://{tmp_path}/with%20space.csv").data.shape


# ---------------------------------------------------------------- CSV in its forms


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        pytest.param(b"\xef\xbb\xbfa,b\n1,2\n", {"a": ["1"], "b": ["2"]}, id="byte order mark"),
        pytest.param(b"a,b\r\n1,2\r\n", {"a": ["1"], "b": ["2"]}, id="Windows line ends"),
        pytest.param(b"a,b\r1,2\r", {"a": ["1"], "b": ["2"]}, id="old Macintosh line ends"),
        pytest.param(b"\n\na , b\n1,2\n\n3,4", {"a": ["1", "3"], "b": ["2", "4"]}, id="blank lines, no last line end"),
        pytest.param(b"a,b\n 1 ,\n  ,x\n", {"a": ["1", None], "b": [None, "x"]}, id="blank cells are missing"),
        pytest.param(b'a,b\n"x,\n""y""",2\n', {"a": ['x,\n"y"'], "b": ["2"]}, id="quoted delimiter, line end, quote"),
        pytest.param(b'"a\nb",c\n1,2\n', {"a\nb": ["1"], "c": ["2"]}, id="line end in the header"),
        pytest.param(b'a,b\n5" pipe,1\n', {"a": ['5" pipe'], "b": ["1"]}, id="a lone quote inside a cell"),
        pytest.param(b"a,b\nNA,null\n", {"a": ["NA"], "b": ["null"]}, id="words stay words"),
        pytest.param(b"a\n1\n2\n", {"a": ["1", "2"]}, id="one column"),
    ],
)
def test_csv_is_read_as_it_is_written(tmp_path: Path, data: bytes, expected: dict[str, Any]) -> None:
    (tmp_path / "t.csv").write_bytes(data)

    assert expected == sources.read(str(tmp_path / "t.csv")).data.to_pydict()


@given(
    st.lists(
        st.lists(
            st.text(st.characters(codec="utf-8", exclude_characters="\x00\r"), max_size=8), min_size=2, max_size=2
        ),
        min_size=1,
        max_size=12,
    )
)
@settings(max_examples=60, deadline=None)
def test_any_text_survives_a_csv_up_to_blanks_at_its_ends(rows: list[list[str]]) -> None:
    """What Python's csv module writes is read back, cell by cell."""
    import csv
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t.csv"
        with path.open("w", newline="", encoding="utf-8") as stream:
            csv.writer(stream, quoting=csv.QUOTE_ALL, lineterminator="\n").writerows([["a", "b"], *rows])
        table = sources.read(str(path)).data

    assert len(rows) == table.num_rows
    for at, name in enumerate(["a", "b"]):
        for row, cell in zip(rows, table[name].to_pylist(), strict=True):
            assert row[at].strip().replace("\x1c", "") == (cell or "").strip().replace("\x1c", "")


def test_a_column_without_a_name_gets_one_and_a_note(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(",b\n0,x\n1,y\n")
    table = sources.read(str(tmp_path / "t.csv"))

    assert ["unnamed_1", "b"] == table.data.column_names
    assert ("column 1 has no name; it is called 'unnamed_1'",) == table.provenance.notes


# ---------------------------------------------------------------- typed formats


def test_parquet_types_become_five(tmp_path: Path) -> None:
    table = pa.table(
        {
            "small": pa.array([1, None], pa.int8()),
            "exact": pa.array([Decimal("1.50"), None]),
            "day": pa.array([date(2024, 1, 31), None]),
            "word": pa.array(["x", " "]).dictionary_encode(),
            "half": pa.array([float("nan"), float("inf")], pa.float32()),
            "none": pa.nulls(2),
            "at": pa.array([datetime(2024, 1, 1, 12, tzinfo=UTC), None], pa.timestamp("ns", "America/Recife")),
        }
    )
    (tmp_path / "t.parquet").write_bytes(_parquet(table))

    read = sources.read(str(tmp_path / "t.parquet")).data

    assert {
        "small": pa.int64(), "exact": pa.float64(), "day": pa.timestamp("us", "UTC"), "word": pa.string(),
        "half": pa.float64(), "none": pa.string(), "at": pa.timestamp("us", "UTC"),
    } == {field.name: field.type for field in read.schema}  # fmt: skip
    assert ["x", None] == read["word"].to_pylist()
    assert [None, float("inf")] == read["half"].to_pylist()
    assert [datetime(2024, 1, 1, 12, tzinfo=UTC), None] == read["at"].to_pylist()


def test_pandas_index_column_is_left_out_with_a_note(tmp_path: Path) -> None:
    (tmp_path / "t.parquet").write_bytes(_parquet(pa.table({"a": [1], "__index_level_0__": [7]})))
    table = sources.read(str(tmp_path / "t.parquet"))

    assert ["a"] == table.data.column_names
    assert "left out, pandas' index: '__index_level_0__'" in table.provenance.notes


def test_rows_of_json_may_lack_keys_and_mix_whole_and_broken_numbers(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"a": 1}\n\n{"a": 2.5, "b": "x"}\n{"a": NaN, "b": ""}\n')

    assert {"a": [1.0, 2.5, None], "b": [None, "x", None]} == sources.read(str(tmp_path / "t.jsonl")).data.to_pydict()


# ---------------------------------------------------------------- what is no table


def _refused(path: Path, data: bytes, **options: Any) -> EsteiraError:
    path.write_bytes(data)
    with pytest.raises(EsteiraError) as refused:
        sources.read(str(path), **options)
    return refused.value


@pytest.mark.parametrize(
    ("name", "data", "kind", "code", "place"),
    [
        pytest.param("t.csv", b'a,b\n1,2\n3,"4\n5,6\n', DataError, "open_quote", "line 3", id="a quote never closed"),
        pytest.param("t.csv", b"PK\x03\x04\x00", SourceError, "not_text", "t.csv", id="a spreadsheet called CSV"),
        pytest.param("t.csv", "a,b\n1,2\n".encode("utf-16"), SourceError, "not_text", "t.csv", id="UTF-16"),
        pytest.param("t.csv.gz", b"a,b\n1,2\n", SourceError, "bad_gzip", "t.csv.gz", id="not gzip"),
        pytest.param(
            "t.csv.gz", gzip.compress(b"a,b\n" * 999)[:-9], SourceError, "bad_gzip", "t.csv.gz", id="cut gzip"
        ),
        pytest.param("t.parquet", b"PAR1....PAR1", SourceError, "bad_parquet", "t.parquet", id="broken Parquet"),
        pytest.param("t.jsonl", b'{"a": 1}\n{"a": \n', SourceError, "bad_json", "line 2", id="broken JSON"),
        pytest.param("t.jsonl", b'{"a": 1}\n[2]\n', DataError, "not_an_object", "line 2", id="JSON, but no row"),
        pytest.param("t.jsonl", b'{"a": 1, "a": 2}\n', DataError, "duplicated_column", "line 1", id="a key twice"),
        pytest.param("t.jsonl", b'{"a": [1]}\n{"a": 2}\n', DataError, "changes_type", "line 2", id="at times nested"),
        pytest.param(
            "t.jsonl", b'{"a": [1]}\n{"a": [NaN]}\n', DataError, "nested_infinite", "line 2", id="NaN in a nested value"
        ),
        pytest.param("t.jsonl", b'{"a": 1}\n{"a": "x"}\n', DataError, "changes_type", "line 2", id="a changed type"),
        pytest.param("t.csv", b"a,__row__\n1,2\n", DataError, "reserved_column", "header", id="a name of ours"),
        pytest.param("t.xlsx", b"x", SourceError, "unknown_format", "t.xlsx", id="an unknown ending"),
    ],
)
def test_what_is_no_table_is_refused_with_its_place(
    tmp_path: Path, name: str, data: bytes, kind: type[EsteiraError], code: str, place: str
) -> None:
    error = _refused(tmp_path / name, data)

    assert (kind, code) == (type(error), error.code)
    assert place in error.where
    assert error.cure


def test_the_line_of_a_ragged_row_counts_blank_lines_and_long_cells(tmp_path: Path) -> None:
    error = _refused(tmp_path / "t.csv", b'a,b\n1,2\n\n"x\ny",2\n3,4,5\n')

    assert "data row 3 has 3: '3,4,5'" in error.message
    assert error.where.endswith("line 6")


def test_a_small_gzip_that_grows_past_the_limit_is_refused(tmp_path: Path) -> None:
    error = _refused(tmp_path / "t.csv.gz", gzip.compress(b"a\n" + b"1\n" * 500_000), max_bytes=100_000)

    assert "too_many_bytes" == error.code


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ("a,c\n1,2\n", "2.csv lacks 'b' and adds 'c' beside 1.csv"),
        ("a,b,c\n1,2,3\n", "2.csv lacks nothing and adds 'c' beside 1.csv"),
    ],
)
def test_files_of_a_folder_have_the_same_columns(tmp_path: Path, second: str, message: str) -> None:
    (tmp_path / "1.csv").write_text("a,b\n1,2\n")
    (tmp_path / "2.csv").write_text(second)

    with pytest.raises(DataError, match=message):
        sources.read(str(tmp_path))


def test_a_folder_without_a_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="found none"):
        sources.read(str(tmp_path))


@pytest.mark.parametrize("uri", ["http://example.org/t.csv", "gs://b/t.csv", "", "nosuch://x#select 1"])
def test_an_uri_that_cannot_be_read_is_a_wrong_argument(uri: str) -> None:
    with pytest.raises(ConfigError) as refused:
        sources.read(uri)

    assert 2 == refused.value.exit_code


# ---------------------------------------------------------------- databases


def test_a_query_may_hold_colons_and_percent_signs(tmp_path: Path) -> None:
    _database(tmp_path / "t.db")
    query = "select city, '10:30' as hour from people where city like 'S%'"

    table = sources.read(f"sqlite:///{tmp_path / 't.db'}", query=query)

    assert {"city": ["São Paulo"], "hour": ["10:30"]} == table.data.to_pydict()
    assert "no ORDER BY" in table.provenance.notes[0]
    assert query == table.provenance.query


@pytest.mark.parametrize(
    ("query", "kind", "code"),
    [
        pytest.param("", ConfigError, "missing_query", id="no query"),
        pytest.param("delete from people", ConfigError, "bad_query", id="a query that writes"),
        pytest.param("select nothing from people", SourceError, "bad_query", id="an unknown column"),
        pytest.param("select * from people where age > 99", DataError, "header_only", id="no row"),
        pytest.param("select age, age from people", DataError, "duplicated_column", id="a name twice"),
        pytest.param("select city from people union all select 1", DataError, "changes_type", id="a changed type"),
    ],
)
def test_a_query_that_gives_no_table_is_refused(
    tmp_path: Path, query: str, kind: type[EsteiraError], code: str
) -> None:
    _database(tmp_path / "t.db")

    with pytest.raises(kind) as refused:
        sources.read(f"sqlite:///{tmp_path / 't.db'}", query=query)

    assert code == refused.value.code


def test_a_missing_sqlite_file_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"no 't\.db'"):
        sources.read(f"sqlite:///{tmp_path / 't.db'}#select 1")

    assert not (tmp_path / "t.db").exists()


def test_a_database_that_is_away_is_worth_a_retry_and_its_password_is_not_shown() -> None:
    with pytest.raises(OutsideError) as failed:
        sources.read("postgresql+psycopg2://ana:s3cret@127.0.0.1:1/shop#select 1")

    assert "s3cret" not in f"{failed.value}{failed.value.__cause__}"
    assert "ana:***@127.0.0.1:1/shop" in failed.value.where


def test_postgresql_answers_as_sqlite_does(postgres_url: str, tmp_path: Path) -> None:
    query = "select 1.50 as price, date '2024-01-31' as day, 'x' as word, true as flag, null as nothing order by 1"

    table = sources.read(f"{postgres_url}#{query}")

    assert [1.5, datetime(2024, 1, 31, tzinfo=UTC), "x", True, None] == [
        column[0].as_py() for column in table.data.columns
    ]
    assert "database" == table.provenance.source_type


# ---------------------------------------------------------------- S3, on moto's server


@pytest.fixture(scope="module")
def s3() -> Iterator[Any]:
    """A client of a real S3-shaped server on loopback, with a bucket `lake`."""
    boto3 = pytest.importorskip("boto3")
    server_module = pytest.importorskip("moto.server")
    server = server_module.ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    patch = pytest.MonkeyPatch()
    patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    client = boto3.client("s3")
    client.create_bucket(Bucket="lake")
    yield client
    client.close()
    patch.undo()
    server.stop()


@pytest.mark.parametrize("kind", ["csv", "csv.gz", "jsonl", "parquet"])
def test_an_object_of_s3_is_the_file_it_was_made_from(s3: Any, tmp_path: Path, kind: str) -> None:
    path = Path(_write(tmp_path, kind))
    s3.put_object(Bucket="lake", Key=f"raw/{path.name}", Body=path.read_bytes())

    table = sources.read(f"s3://lake/raw/{path.name}")

    assert table.data.equals(sources.read(str(path)).data)
    assert sources.fingerprint(str(path)) == table.provenance.content_hash
    assert ("api", f"s3://lake/raw/{path.name}", "t") == (
        table.provenance.source_type, table.provenance.source, table.provenance.name,
    )  # fmt: skip


def test_a_folder_of_s3_is_the_folder_it_was_made_from(s3: Any, tmp_path: Path) -> None:
    folder = Path(_write(tmp_path, "folder"))
    for path in folder.iterdir():
        s3.put_object(Bucket="lake", Key=f"parts/{path.name}", Body=path.read_bytes())

    table = sources.read("s3://lake/parts/")

    assert table.data.equals(sources.read(str(folder)).data)
    assert sources.fingerprint(str(folder)) == table.provenance.content_hash


@pytest.mark.parametrize("uri", ["s3://lake/raw/absent.csv", "s3://nobucket/t.csv"])
def test_a_missing_object_is_a_missing_source(s3: Any, uri: str) -> None:
    with pytest.raises(SourceError) as refused:
        sources.read(uri)

    assert ("missing_file", uri) == (refused.value.code, refused.value.where)


def test_an_object_past_the_limit_is_not_fetched(s3: Any) -> None:
    s3.put_object(Bucket="lake", Key="big.csv", Body=b"a\n" + b"1\n" * 1000)

    with pytest.raises(DataError, match="100 bytes at most"):
        sources.read("s3://lake/big.csv", max_bytes=100)


def test_s3_that_is_away_is_worth_a_retry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")

    with pytest.raises(OutsideError) as failed:
        sources.read("s3://lake/t.csv")

    assert "s3_unreachable" == failed.value.code


# ---------------------------------------------------------------- names without secrets


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("postgresql+psycopg2://ana:p@db:5432/shop?sslmode=require&sslpassword=x#select 1",
         "postgresql+psycopg2://ana:***@db:5432/shop?sslmode=require&sslpassword=***"),
        ("mysql://db/shop", "mysql://db/shop"),
        ("/home/ana/secret-project/tables/churn.csv", ".../tables/churn.csv"),
        ("sqlite:////home/ana/work/shop.db#select 1", "sqlite:///.../work/shop.db"),
        ("s3://lake/raw/t.csv", "s3://lake/raw/t.csv"),
        ("data/t.csv", "data/t.csv"),
    ],
)  # fmt: skip
def test_a_source_is_named_without_password_and_without_folders_of_this_machine(uri: str, expected: str) -> None:
    assert expected == sources.redact(uri)


def test_a_file_below_the_working_directory_has_its_relative_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    assert "data/t.csv" == sources.redact(str(tmp_path / "data" / "t.csv"))


def test_public_tables_are_read_whole(public_data: Path) -> None:
    for name, shape in {
        "tabular_adult": (32_561, 15),
        "tabular_titanic": (1309, 12),
        "tabular_diamonds": (53_940, 10),
    }.items():
        path = next((public_data / name).glob("data.csv*"))

        assert shape == sources.read(str(path)).data.shape, name
        assert name == sources.read(str(path)).provenance.name
