"""Ingest stores the rows as they are, names their bytes, and leaves what was there before when it cannot finish."""

import hashlib
import json
import sqlite3
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from components import ingest
from esteira.errors import DataError, OutsideError, Refused

ROOT = Path(__file__).resolve().parents[1]
CSV = "age,city,since,paid\n31,Recife,2024-01-31,yes\n45,,2024-02-01,no\n27.5,Olinda,,yes\n"


def _ingest(source: str, out: Path, *, target: str = "paid", **params: Any) -> ingest.Report:
    return ingest.run(source=source, target=target, line="tabular@t", out=out, params=ingest.Params(**params))


def _csv(folder: Path, text: str = CSV) -> str:
    (folder / "t.csv").write_text(text)
    return str(folder / "t.csv")


def test_rows_are_stored_in_order_as_text_and_described(tmp_path: Path) -> None:
    report = _ingest(_csv(tmp_path), tmp_path / "out")
    document = json.loads((tmp_path / "out" / "dataset.json").read_text())

    assert ["31", "45", "27.5"] == pq.read_table(tmp_path / "out" / "rows.parquet")["age"].to_pylist()
    assert hashlib.sha256(CSV.encode()).hexdigest() == document["content_hash"] == report.content_hash
    assert ("t", "csv", "upload", len(CSV), 3, 4) == tuple(
        document[key] for key in ("name", "data_format", "source_type", "file_size", "row_count", "column_count")
    )
    assert [
        {"name": "age", "type": "text", "looks_like": "number", "missing": 0, "distinct": 3},
        {"name": "city", "type": "text", "looks_like": "text", "missing": 1, "distinct": 2},
        {"name": "since", "type": "text", "looks_like": "date", "missing": 1, "distinct": 2},
        {"name": "paid", "type": "text", "looks_like": "text", "missing": 0, "distinct": 2},
    ] == document["columns"]


def test_typed_sources_keep_their_types(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"n": 1, "x": 0.5, "b": true, "paid": "yes"}\n{"n": 2, "x": 1, "paid": "no"}\n')
    _ingest(str(tmp_path / "t.jsonl"), tmp_path / "out")
    document = json.loads((tmp_path / "out" / "dataset.json").read_text())

    assert ["integer", "number", "boolean", "text"] == [column["type"] for column in document["columns"]]
    assert [True, None] == pq.read_table(tmp_path / "out" / "rows.parquet")["b"].to_pylist()


def test_the_same_source_gives_the_same_bytes_wherever_it_is_written(tmp_path: Path) -> None:
    """No wall time and no folder of this machine is in what is hashed."""
    source = _csv(tmp_path)
    for name in ("one", "two/three"):
        _ingest(source, tmp_path / name)

    for file in ("rows.parquet", "dataset.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / "three" / file).read_bytes()
    assert str(tmp_path) not in (tmp_path / "one" / "dataset.json").read_text()


def test_a_database_is_described_by_its_query(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "t.db") as connection:
        connection.execute("create table people (age integer, paid text)")
        connection.execute("insert into people values (31, 'yes'), (45, 'no')")
    connection.close()
    query = "select age, paid from people order by age"

    _ingest(f"sqlite:///{tmp_path / 't.db'}", tmp_path / "out", query=query)
    document = json.loads((tmp_path / "out" / "dataset.json").read_text())

    assert (query, "database", 2) == (document["provenance"]["query"], document["source_type"], document["row_count"])


def test_a_registered_hash_refuses_other_bytes_and_keeps_the_last_good_rows(tmp_path: Path) -> None:
    source = _csv(tmp_path)
    registered = _ingest(source, tmp_path / "out").content_hash
    before = _snapshot(tmp_path / "out")
    _csv(tmp_path, CSV.replace("31", "32"))

    with pytest.raises(Refused, match="its bytes have been changed"):
        _ingest(source, tmp_path / "out", expect_hash=registered)

    assert before == _snapshot(tmp_path / "out")


def test_a_missing_label_column_is_named_with_what_is_near(tmp_path: Path) -> None:
    with pytest.raises(DataError) as refused:
        _ingest(_csv(tmp_path), tmp_path / "out", target="Payd")

    assert "'Payd' is not among its 4 columns: 'age', 'city', 'since', 'paid'" in refused.value.message
    assert "did you mean --target 'paid'?" == refused.value.cure
    assert ("missing_label", 1) == (refused.value.code, refused.value.exit_code)


@pytest.mark.parametrize("params", [{"max_row": 3}, {"max_rows": 0}, {"expect_hash": "abc"}])
def test_unknown_and_impossible_params_are_refused(params: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ingest.Params(**params)


# ---------------------------------------------------------------- disk full, for real

_RUN = textwrap.dedent(
    """
    import sys
    from pathlib import Path
    from components import ingest
    from esteira.errors import OutsideError
    try:
        ingest.run(source=sys.argv[1], target="paid", line="tabular@t", out=Path(sys.argv[2]), params=ingest.Params())
    except OutsideError as error:
        print(error.code, "|", error, flush=True)
        sys.exit(error.exit_code)
    """
)
_LIMITED = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n" + _RUN


def _many_rows(folder: Path) -> str:
    rows = (f"{i},{hashlib.sha256(str(i).encode()).hexdigest()},,{'yes' if i % 2 else 'no'}\n" for i in range(4000))
    return _csv(folder, "age,city,since,paid\n" + "".join(rows))


def _snapshot(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_a_file_that_cannot_grow_leaves_the_last_good_rows_untouched(tmp_path: Path) -> None:
    """The kernel refuses to write past 4 KiB (RLIMIT_FSIZE) in a process of its own."""
    _ingest(_csv(tmp_path), tmp_path / "out")
    before = _snapshot(tmp_path / "out")
    source = _many_rows(tmp_path)

    done = subprocess.run(
        [sys.executable, "-c", _LIMITED, source, str(tmp_path / "out")],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        cwd=ROOT,
    )

    assert 2 == done.returncode, done.stderr
    assert done.stdout.startswith("disk_full | 2 files of ")
    assert "must fit on the disk, but it is full: File too large (out/ (rows.parquet, dataset.json))" in done.stdout
    assert "cure: free space" in done.stdout
    assert before == _snapshot(tmp_path / "out")


def test_a_full_disk_leaves_the_last_good_rows_untouched(tmp_path: Path) -> None:
    """A file system of 64 KiB (tmpfs in a mount namespace of its own) that really is full."""
    disk = tmp_path / "disk"
    disk.mkdir()
    small, big = tmp_path / "small", tmp_path / "big"
    small.mkdir()
    big.mkdir()
    script = textwrap.dedent(
        f"""
        mount -t tmpfs -o size=64k tmpfs {disk} || exit 77
        {sys.executable} -c "$RUN" {_csv(small)} {disk}/out || exit 78
        sha256sum {disk}/out/*
        {sys.executable} -c "$RUN" {_many_rows(big)} {disk}/out
        echo "exit $?"
        ls -A {disk}/out
        sha256sum {disk}/out/*
        """
    )
    done = subprocess.run(
        ["unshare", "--map-root-user", "--mount", "sh", "-c", script],
        capture_output=True, text=True, check=False, timeout=60, cwd=ROOT, env={"RUN": _RUN, "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
    )  # fmt: skip
    if done.returncode == 77 or "unshare failed" in done.stderr:
        pytest.skip("needs the right to mount a tmpfs in a namespace of its own")

    lines = done.stdout.splitlines()
    at = lines.index("exit 2")
    assert any(line.startswith("disk_full | ") and "No space left on device" in line for line in lines), done.stdout
    assert ["dataset.json", "rows.parquet"] == lines[at + 1 : at + 3]
    assert lines[:2] == lines[at + 3 :]


def test_a_folder_that_is_a_file_is_an_outside_failure(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("here is a file")

    with pytest.raises(OutsideError, match="must be able to write its outputs") as failed:
        _ingest(_csv(tmp_path), tmp_path / "out")

    assert "cannot_write" == failed.value.code
    assert "here is a file" == (tmp_path / "out").read_text()
