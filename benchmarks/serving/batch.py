"""Rows answered in bulk by `esteira batch` against the same rows one by one: over HTTP, and in process.

python -m benchmarks.serving.batch                 # 1,000,000 rows; a table and one line of JSON
python -m benchmarks.serving.batch --rows 100000 --workers 2

The model and its 30 columns are those of `compare.py`; its rows are varied so that no two are alike. Of the rows
one by one a sample is timed, on a connection that is kept. Some rows of every part are held against what the bundle answers
them one by one.
"""

import argparse
import contextlib
import http.client
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.serving.model import Subject, make
from benchmarks.serving.peers import Row

KEY = "benchmark-key"
WARM_UP = 200
CHUNK = 50_000
"""Rows that are made at once."""
COMPARED = 25
"""Rows of a part that are held against single answers."""


class Rows:
    """As many rows as wanted, each a row of the subject with every cell varied by about a thousandth; the same at every run."""

    def __init__(self, subject: Subject) -> None:
        self.names = list(subject.rows[0])
        self._base = np.array([list(row.values()) for row in subject.rows], dtype=np.float64)

    @lru_cache(maxsize=4)  # noqa: B019 - there is one of these
    def chunk(self, number: int) -> Any:
        """Rows `number * CHUNK` and on, (CHUNK, columns)."""
        drawn = np.random.default_rng([42, number])
        at = np.arange(number * CHUNK, (number + 1) * CHUNK) % len(self._base)
        return self._base[at] * (1 + 1e-3 * drawn.standard_normal((CHUNK, len(self.names))))

    def row(self, at: int) -> Row:
        """One, counted from 0."""
        number, within = divmod(at, CHUNK)
        return dict(zip(self.names, self.chunk(number)[within].tolist(), strict=True))

    def chunks(self, rows: int) -> Iterator[Any]:
        """The first so many, piece by piece."""
        for first in range(0, rows, CHUNK):
            yield self.chunk(first // CHUNK)[: rows - first]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of the batch")
    parser.add_argument("--singles", type=int, default=5_000, help="rows that are asked one by one")
    parser.add_argument(
        "--workers", type=int, nargs="*", default=[1, 2], help="processes of `esteira batch`, each measured"
    )
    parser.add_argument("--formats", nargs="*", default=list(WRITERS), choices=list(WRITERS), help="of the rows")
    options = parser.parse_args(arguments)
    subject = make()
    rows = Rows(subject)
    singles = [rows.row(at) for at in range(min(options.singles, CHUNK))]
    with tempfile.TemporaryDirectory(prefix="esteira-batch-benchmark-") as folder:
        work = Path(folder)
        found = {
            "over HTTP, one row a request": over_http(subject, singles),
            "in process, one row a call": in_process(subject, singles),
        }
        for name in options.formats:
            data = WRITERS[name](rows, options.rows, work / f"rows.{name}")
            for workers in options.workers:
                words = f"`esteira batch`, {name}" + (f", {workers} workers" if workers > 1 else "")
                found[words] = batch(subject, rows, data, work / "out", options.rows, workers)
    print(table(found))
    ones = list(found.values())[:2]
    ratios = {name: [round(one / us, 1) for one in ones] for name, us in list(found.items())[2:]}
    document = {
        "rows": options.rows,
        "us_a_row": {name: round(us, 3) for name, us in found.items()},
        "times_faster": ratios,
    }
    print(json.dumps(document))


def table(found: dict[str, float]) -> str:
    """Markdown: microseconds a row, rows a second, times faster than each of the first two."""
    http_us, process_us = list(found.values())[:2]
    lines = ["| rows | us a row | rows/s | times HTTP | times in process |", "|---|---|---|---|---|"]
    lines += [
        f"| {name} | {us:.2f} | {1e6 / us:,.0f} | {http_us / us:.1f} | {process_us / us:.1f} |"
        for name, us in found.items()
    ]
    return "\n".join(lines)


def in_process(subject: Subject, rows: Sequence[Row]) -> float:
    """Microseconds of one row, checked and answered."""
    from esteira.bundle import answerer, open_bundle

    model = answerer(open_bundle(subject.folder / "bundle", "cpu"))

    def ask(some: Sequence[Row]) -> None:
        for row in some:
            model.check([row])
            model.answer([row])

    ask(rows[:WARM_UP])
    began = time.perf_counter()
    ask(rows)
    return (time.perf_counter() - began) / len(rows) * 1e6


def over_http(subject: Subject, rows: Sequence[Row]) -> float:
    """Microseconds of one request of one row, over one connection."""
    bodies = [json.dumps({"rows": [row]}).encode() for row in rows]
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
    with served(subject) as address:
        connection = http.client.HTTPConnection(address, timeout=60)

        def ask(some: Sequence[bytes]) -> None:
            for body in some:
                connection.request("POST", "/v1/predict", body, headers)
                answer = connection.getresponse()
                answer.read()
                if answer.status != 200:
                    raise SystemExit(f"a request ended with {answer.status}")

        ask(bodies[:WARM_UP])
        began = time.perf_counter()
        ask(bodies)
        taken = time.perf_counter() - began
        connection.close()
    return taken / len(bodies) * 1e6


@contextlib.contextmanager
def served(subject: Subject) -> Iterator[str]:
    """The address of a service of the bundle."""
    process = subprocess.Popen(
        [sys.executable, "-m", "serving", "serve", "--bundle", str(subject.folder / "bundle"), "--port", "0"],
        env={**os.environ, "ESTEIRA_API_KEY": KEY}, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        said = process.stdout.readline()
        if not said.startswith("READY http://"):
            raise SystemExit(f"the service said {said!r}")
        yield said.split("http://")[1].strip()
    finally:
        process.terminate()
        process.wait(60)
        process.stdout.close()


def batch(subject: Subject, made: Rows, data: Path, out: Path, rows: int, workers: int) -> float:
    """Microseconds a row of the whole command, from its start to its end."""
    shutil.rmtree(out, ignore_errors=True)
    words = ["batch", "--bundle", str(subject.folder / "bundle"), "--data", str(data), "--out", str(out), "--json"]
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "esteira.cli", *words, "--workers", str(workers)],
        capture_output=True,
        text=True,
        check=False,
    )
    taken = time.perf_counter() - began
    if done.returncode != 0 or json.loads(done.stdout)["processed"] != rows:
        raise SystemExit(done.stdout + done.stderr)
    compare(subject, made, out, rows)
    return taken / rows * 1e6


def compare(subject: Subject, made: Rows, out: Path, rows: int) -> None:
    """Every row is there once, and some of every part say what the bundle answers them one by one."""
    import pyarrow.parquet as pq

    from esteira.bundle import answerer, open_bundle

    model = answerer(open_bundle(subject.folder / "bundle", "cpu"))
    before = 0
    for part in sorted((out / "parts").iterdir()):
        table = pq.read_table(part)
        if table.column("row").to_pylist() != list(range(before + 1, before + table.num_rows + 1)):
            raise SystemExit(f"{part.name} has other rows than those behind {before}")
        before += table.num_rows
        drawn = np.random.default_rng(before)
        places = sorted(drawn.choice(table.num_rows, min(COMPARED, table.num_rows), replace=False).tolist())
        for found in table.take(places).to_pylist():
            (expected,) = model.answer([made.row(found["row"] - 1)])
            off = [abs(found[f"proba_{key}"] - value) for key, value in expected["probabilities"].items()]
            if found["prediction"] != expected["prediction"] or max(off) > 1e-6:
                raise SystemExit(
                    f"row {found['row']} is {found['prediction']}, but alone it is {expected['prediction']}"
                )
    if before != rows:
        raise SystemExit(f"{rows:,} rows were asked and {before:,} answered")


def write_parquet(made: Rows, rows: int, path: Path) -> Path:
    """The rows as plain columns: a dictionary would be read faster than cells that differ."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([(name, pa.float64()) for name in made.names])
    with pq.ParquetWriter(path, schema, use_dictionary=False) as writer:
        for chunk in made.chunks(rows):
            writer.write_table(pa.table(list(chunk.T.copy()), schema=schema), row_group_size=CHUNK)
    return path


def write_csv(made: Rows, rows: int, path: Path) -> Path:
    """The same as text, every digit of it."""
    with path.open("w", encoding="utf-8") as file:
        file.write(",".join(made.names) + "\n")
        for chunk in made.chunks(rows):
            file.writelines(",".join(map(repr, row)) + "\n" for row in chunk.tolist())
    return path


WRITERS = {"parquet": write_parquet, "csv": write_csv}


if __name__ == "__main__":
    main()
