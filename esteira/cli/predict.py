"""`esteira predict`: answers for a file of rows, or the latency of single rows, from one bundle and no server."""

import csv
import io
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from esteira.cli import emit, show


@click.command()
@click.option("--bundle", required=True, type=click.Path(file_okay=False), help="Bundle folder.")
@click.option("--data", "data", required=True, type=click.Path(), help="Rows: CSV, gzip CSV, JSON lines or Parquet.")
@click.option("--out", type=click.Path(dir_okay=False), help="Answers: .csv, or .jsonl for whole answers.")
@click.option("--latency", type=click.IntRange(1), metavar="N", help="Instead: time N single rows, in microseconds.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def predict(bundle: str, data: str, out: str | None, latency: int | None, as_json: bool) -> None:
    """Answer every row of a file, in order; a row that breaks the contract stops it and nothing is written.

    \b
    Example:
      esteira predict --bundle build/b --data rows.csv --out answers.csv
      esteira predict --bundle build/b --data rows.csv --latency 1000
    """
    from esteira.bundle import answerer, open_bundle
    from esteira.errors import ConfigError, DataError
    from esteira.rows import answered, read_rows

    if (out is None) == (latency is None):
        raise ConfigError(
            "predict takes --out FILE or --latency N", code="usage", where="esteira predict", cure="name one of them"
        )
    opened = open_bundle(Path(bundle))
    model = answerer(opened)
    schema = opened.manifest.get("schema", {})
    rows = read_rows(Path(data), {column["name"]: column["kind"] for column in schema.get("columns", [])})
    if not rows:
        raise DataError("answers need rows, but there is none", code="empty", where=data, cure="check the file")
    if latency is not None:
        figures = measure(model, rows, latency)
        emit(figures) if as_json else click.echo("LATENCY " + json.dumps(figures))
        return
    answers = answered(model, rows, where=data)
    assert out is not None
    write_answers(Path(out), answers)
    summary = {"rows": len(answers), "out": out, "bundle_id": opened.bundle_id}
    emit(summary) if as_json else show(f"{len(answers)} answers in {out}")


def measure(model: Any, rows: Sequence[dict[str, Any]], calls: int) -> dict[str, float]:
    """Median and 95th percentile of answering one row in process, in microseconds, over `calls` calls after a warm-up."""
    import numpy as np

    for row in rows[:20]:
        model.answer([row])
    seconds = []
    for call in range(calls):
        row = rows[call % len(rows)]
        began = time.perf_counter()
        model.answer([row])
        seconds.append(time.perf_counter() - began)
    median, p95 = np.percentile(np.array(seconds) * 1e6, [50, 95])
    return {"median": round(float(median), 2), "p95": round(float(p95), 2), "calls": calls}


def write_answers(path: Path, answers: Sequence[dict[str, Any]]) -> None:
    """Write answers whole or not at all: `.jsonl` keeps everything, `.csv` has prediction, proba_<class> or low and high."""
    from esteira import outputs

    if path.name.endswith(".jsonl"):
        text = "".join(json.dumps(answer, ensure_ascii=False) + "\n" for answer in answers)
    else:
        first = answers[0]
        classes = list(first.get("probabilities") or {})
        header = ["prediction", *(f"proba_{name}" for name in classes)]
        interval = first.get("interval") is not None
        header += ["low", "high"] if interval else []
        buffer = io.StringIO(newline="")
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(header)
        for answer in answers:
            cells = [answer["prediction"], *(repr(answer["probabilities"][name]) for name in classes)]
            writer.writerow(cells + (list(answer["interval"]) if interval else []))
        text = buffer.getvalue()
    outputs.write(path.parent, {path.name: text.encode()})
