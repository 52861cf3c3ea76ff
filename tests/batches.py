"""Sources and results of batches for tests: rows of the small bundle in every form, and what a folder of results says."""

import gzip
import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.small_bundle import ROW

CITIES = ("Porto", "Lisboa", "Faro")


def some_rows(count: int, seed: int = 1) -> list[dict[str, Any]]:
    """Good rows that differ; some have a warning."""
    drawn = random.Random(seed)
    return [
        {
            **ROW,
            "age": round(drawn.uniform(10, 95), 2) if drawn.random() > 0.05 else None,
            "visits": drawn.randrange(60),
            "member": drawn.random() < 0.5,
            "city": drawn.choice(CITIES),
            "since": f"20{drawn.randrange(18, 26)}-0{drawn.randrange(1, 10)}-1{drawn.randrange(10)}",
            "note": drawn.choice(["call before noon", "no call", "", 'says "later", maybe']),
        }
        for _ in range(count)
    ]


def write(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Rows as the file that the name says: .csv, .jsonl, .parquet, also .gz."""
    kind = path.name.removesuffix(".gz").rpartition(".")[2]
    if kind == "parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(list(rows)), path, row_group_size=700)
        return path
    if kind == "jsonl":
        data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    else:
        data = csv_of(rows).encode()
    path.write_bytes(gzip.compress(data, mtime=0) if path.name.endswith(".gz") else data)
    return path


def csv_of(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as CSV with a header."""
    import csv
    import io

    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(list(rows[0]))
    writer.writerows([["" if cell is None else cell for cell in row.values()] for row in rows])
    return text.getvalue()


def answered(out: Path) -> list[dict[str, Any]]:
    """The rows of all parts, in order."""
    found: list[dict[str, Any]] = []
    for part in sorted((out / "parts").iterdir()):
        if part.suffix == ".parquet":
            import pyarrow.parquet as pq

            found += pq.read_table(part).to_pylist()
        else:
            found += [json.loads(line) for line in part.read_text(encoding="utf-8").splitlines()]
    return found


def errors(out: Path) -> list[dict[str, Any]]:
    """The lines of errors.jsonl."""
    path = out / "errors.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def contents(out: Path) -> dict[str, bytes]:
    """Every result of a folder: parts, errors and journal; not how long it took."""
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.name != "progress.json" and ".state" not in path.parts
    }
