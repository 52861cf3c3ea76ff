"""Rows answered in bulk by `esteira batch` against the same rows one by one: over HTTP, and in process.

python -m benchmarks.serving.batch                 # 1,000,000 rows; a table and one line of JSON
python -m benchmarks.serving.batch --rows 100000 --workers 2

The model and its 30 columns are those of `compare.py`. Of the rows one by one a sample is timed, on a connection that is kept.
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
from pathlib import Path

from benchmarks.serving.model import Subject, make

KEY = "benchmark-key"
WARM_UP = 200


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
    with tempfile.TemporaryDirectory(prefix="esteira-batch-benchmark-") as folder:
        work = Path(folder)
        found = {
            "over HTTP, one row a request": over_http(subject, options.singles),
            "in process, one row a call": in_process(subject, options.singles),
        }
        for name in options.formats:
            data = WRITERS[name](subject, options.rows, work / f"rows.{name}")
            for workers in options.workers:
                words = f"`esteira batch`, {name}" + (f", {workers} workers" if workers > 1 else "")
                found[words] = batch(subject, data, work / "out", options.rows, workers)
    print(table(found))
    singles = list(found.values())[:2]
    ratios = {name: [round(one / us, 1) for one in singles] for name, us in list(found.items())[2:]}
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


def in_process(subject: Subject, calls: int) -> float:
    """Microseconds of one row, checked and answered."""
    from esteira.bundle import answerer, open_bundle

    model = answerer(open_bundle(subject.folder / "bundle", "cpu"))
    rows = subject.rows

    def ask(count: int) -> None:
        for at in range(count):
            row = [rows[at % len(rows)]]
            model.check(row)
            model.answer(row)

    ask(WARM_UP)
    began = time.perf_counter()
    ask(calls)
    return (time.perf_counter() - began) / calls * 1e6


def over_http(subject: Subject, calls: int) -> float:
    """Microseconds of one request of one row, over one connection."""
    bodies = [json.dumps({"rows": [row]}).encode() for row in subject.rows]
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
    with served(subject) as address:
        connection = http.client.HTTPConnection(address, timeout=60)

        def ask(count: int) -> None:
            for at in range(count):
                connection.request("POST", "/v1/predict", bodies[at % len(bodies)], headers)
                answer = connection.getresponse()
                answer.read()
                if answer.status != 200:
                    raise SystemExit(f"a request ended with {answer.status}")

        ask(WARM_UP)
        began = time.perf_counter()
        ask(calls)
        taken = time.perf_counter() - began
        connection.close()
    return taken / calls * 1e6


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


def batch(subject: Subject, data: Path, out: Path, rows: int, workers: int) -> float:
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
    _compare(subject, out)
    return taken / rows * 1e6


def _compare(subject: Subject, out: Path) -> None:
    """The first part says what the native model says."""
    import pyarrow.parquet as pq

    found = pq.read_table(out / "parts" / "00000.parquet").slice(0, len(subject.rows)).to_pylist()
    for row, expected in zip(found, subject.expected, strict=True):
        if row["prediction"] != expected.label or abs(row[f"proba_{subject.classes[1]}"] - expected.probability) > 1e-6:
            raise SystemExit(f"row {row['row']} is {row['prediction']}, but the native model says {expected.label}")


def write_parquet(subject: Subject, rows: int, path: Path) -> Path:
    """The subject's rows, as often as it takes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    one = pa.Table.from_pylist(subject.rows)
    whole = pa.concat_tables([one] * -(-rows // one.num_rows)).slice(0, rows)
    pq.write_table(whole.combine_chunks(), path, row_group_size=100_000)
    return path


def write_csv(subject: Subject, rows: int, path: Path) -> Path:
    """The same as text."""
    names = list(subject.rows[0])
    lines = [",".join(repr(row[name]) for name in names) + "\n" for row in subject.rows]
    with path.open("w", encoding="utf-8") as file:
        file.write(",".join(names) + "\n")
        file.writelines(lines[at % len(lines)] for at in range(rows))
    return path


WRITERS = {"parquet": write_parquet, "csv": write_csv}


if __name__ == "__main__":
    main()
