"""`esteira automl`: a table in, the best model within the budget out, as one sealed bundle; no project around it."""

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import click

from esteira.cli import emit, say, show
from esteira.console import interruptible

_SHOWN = 10  # rows of the leaderboard, and warnings, that a person is shown


@click.command()
@click.option(
    "--train", required=True, metavar="FILE", help="Rows: CSV, Parquet or JSON lines, plain or gzip; s3:// too."
)
@click.option("--target", required=True, metavar="COL", help="Column that holds the label.")
@click.option(
    "--budget", type=float, metavar="SECONDS",
    help="Wall time in all; 60 where --max-trials is not given either. Without a budget, equal trials give equal models.",
)  # fmt: skip
@click.option("--out", required=True, type=click.Path(file_okay=False), help="Folder for the bundle: new or empty.")
@click.option("--metric", default="", help="What to search for; by default roc_auc, log_loss or rmse.")
@click.option(
    "--seed", type=click.IntRange(0, 2**31 - 1), default=42, show_default=True, help="Of every random choice."
)
@click.option("--max-trials", type=click.IntRange(1), metavar="N", help="At most so many trials.")
@click.option("--max-row-ms", type=float, metavar="X", help="What one answer may cost; default 0.1, with --best 1.")
@click.option("--best", is_flag=True, help="Allow answers of a millisecond for a better model.")
@click.option("--kinds", default="", metavar="A,B", help="Kinds of models to try; by default all.")
@click.option("--task", type=click.Choice(["binary", "multiclass", "regression"]), help="Where the labels do not say.")
@click.option("--drop", multiple=True, metavar="COL", help="Leave a column out; repeatable.")
@click.option("--time-column", metavar="COL", help="Judge on later rows than those that were learned from.")
@click.option("--group-column", metavar="COL", help="Rows of one value are learned from together or not at all.")
@click.option(
    "--storage", default="", metavar="URL", help="Where trials are kept, to go on with: a file, or PostgreSQL."
)
@click.option("--report", type=click.Path(dir_okay=False), help="Also write the search as an HTML page, to this file.")
@click.option("--force", is_flag=True, help="Replace a bundle that lies in the folder.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def automl(
    train: str,
    target: str,
    budget: float | None,
    out: str,
    metric: str,
    seed: int,
    max_trials: int | None,
    max_row_ms: float | None,
    best: bool,
    kinds: str,
    task: Literal["binary", "multiclass", "regression"] | None,
    drop: tuple[str, ...],
    time_column: str | None,
    group_column: str | None,
    storage: str,
    report: str | None,
    force: bool,
    as_json: bool,
) -> None:
    """Find the best model of a table within the budget, and write it as a bundle. Ctrl-C keeps the best so far.

    \b
    Example:
      esteira automl --train customers.csv --target churned --budget 60 --out churn
      esteira predict --bundle churn --data new.csv --out answers.csv
    """
    began = time.perf_counter()
    from esteira.automl import api, bundle_files
    from esteira.family import Line

    row_ms = max_row_ms if max_row_ms is not None else 1.0 if best else 0.1
    api.check_budget(budget, max_trials, row_ms * 1000)
    budget = api.SECONDS if budget is None and max_trials is None else budget
    folder = Path(out)
    bundle_files.check_place(folder, force=force)
    if report is not None:
        bundle_files.check_page(Path(report), folder)
    from esteira import outputs, sources

    table = sources.read(train)
    frame = table.data.to_pandas()
    known = table.provenance
    # An address may hold a password, so it names nothing.
    local = Path(train).exists()
    line = str(Line.opened_by("tabular", train if local else known.name, target))
    note = "stopping with the best so far; once more to leave with nothing"
    with interruptible(note) as stop, _progress(budget, began, quiet=as_json) as progress:
        model = api.fit(
            frame, target, seconds=budget, trials=max_trials, metric=metric, seed=seed, task=task, drop=drop,
            time_column=time_column, group_column=group_column, kinds=[kind.strip() for kind in kinds.split(",") if kind.strip()],
            max_row_us=row_ms * 1000, storage=storage or _journal(), stop=stop, progress=progress, line=line,
            source={"name": known.name, "source": Path(train).name if local else known.source, "content_hash": known.content_hash},
            nested=_nested(table.data), began=began,
        )  # fmt: skip
        files, manifest = bundle_files.sealed_files(model.table, model.found, line=line, seed=seed, source=model.source)
        bundle_id = bundle_files.write(folder, files, manifest, force=force)
        if report is not None:
            within = None if budget is None else max(0.0, 1.1 * budget - (time.perf_counter() - began))
            outputs.write(Path(report).absolute().parent, {Path(report).name: model.page(within=within).encode()})
    for warning in model.warnings[:_SHOWN]:
        say(f"{click.style('warning:', fg='yellow')} {warning}")
    seconds = round(time.perf_counter() - began, 3)
    document = {
        "best": dict(model.best),
        "score": model.best["score"],
        "metric": model.metric,
        "task": model.task,
        "leaderboard": model.leaderboard,
        "bundle_id": bundle_id,
        "bundle": out,
        "seconds": seconds,
        "row_us": model.found.record["row_us"],
        "bytes": sum(map(len, files.values())),
        "warnings": model.warnings,
    }
    emit(document) if as_json else _tell(document)


def _nested(table: Any) -> list[str]:
    """Columns whose cells are JSON text of nested values, which a source marks by their type."""
    import pyarrow as pa

    return [field.name for field in table.schema if pa.types.is_large_string(field.type)]


def _journal() -> str:
    """Where the home is there, a search is kept in it; without one nothing is written but the bundle."""
    from esteira.settings import load_settings

    home = load_settings().home
    if not home.is_dir():
        return ""
    (home / "automl").mkdir(exist_ok=True)
    return str(home / "automl" / "journal")


@contextmanager
def _progress(
    budget: float | None, began: float, *, quiet: bool
) -> Iterator[Callable[[int, int, Mapping[str, Any]], None]]:
    """What tells of every trial: a bar with best score and time left on a terminal, else a line where it gets better."""
    leader: list[float | None] = [None]

    def is_better(row: Mapping[str, Any]) -> bool:
        """Whether this trial is the new best of those that were scored whole, which the engine knows."""
        former, leader[0] = leader[0], row["best"]
        return row["best"] is not None and former != row["best"]

    if quiet or not sys.stderr.isatty():

        def tell(done: int, _trials: int, row: Mapping[str, Any]) -> None:
            if is_better(row):
                at = time.perf_counter() - began
                say(f"{at:6.1f} s  trial {done:<4} {row['kind']:<24} {row['metric']} {row['best']:.5f}")

        yield tell
        return
    from rich.console import Console
    from rich.progress import Progress, ProgressColumn, SpinnerColumn, TextColumn
    from rich.text import Text

    class Left(ProgressColumn):
        """Seconds that go by between trials too."""

        def render(self, task: Any) -> Text:
            passed = time.perf_counter() - began
            return Text(f"{passed:.0f} s" if budget is None else f"{max(0.0, budget - passed):.0f} s left")

    words = TextColumn("{task.fields[trials]} trials  best {task.fields[best]}")
    with Progress(SpinnerColumn(), Left(), words, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None, trials=0, best="-")

        def draw(done: int, _trials: int, row: Mapping[str, Any]) -> None:
            if is_better(row):
                bar.update(task, best=f"{row['metric']} {row['best']:.5f} ({row['kind']})")
            bar.update(task, trials=done)

        yield draw


def _tell(document: Mapping[str, Any]) -> None:
    best = document["best"]
    show(f"{click.style(best['kind'], bold=True)}: {document['metric']} {document['score']:.5f} out of fold")
    # Kinds that were not tried have no number.
    tried = [row for row in document["leaderboard"] if row["number"] is not None]
    for row in tried[:_SHOWN]:
        score = "undefined" if row["score"] is None else f"{row['score']:.5f}"
        show(f"  {row['number']:>4}  {row['kind']:<24} {score}")
    cost = f"{document['bytes']:,} bytes, about {document['row_us']:.0f} us a row"
    show(f"bundle {document['bundle_id'][:12]} in {document['bundle']}: {cost}; {document['seconds']:.1f} s")
    say(f"next: esteira predict --bundle {document['bundle']} --data FILE --out answers.csv")
