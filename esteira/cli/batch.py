"""`esteira batch`: many rows answered in parts that survive a kill; the same command again goes on."""

import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from esteira.cli import emit, say, show
from esteira.console import interruptible

if TYPE_CHECKING:
    from esteira.batch import Summary

_EVERY = 10.0  # seconds between two lines, where there is no terminal


@click.command()
@click.option("--bundle", type=click.Path(file_okay=False), help="Bundle folder that answers.")
@click.option("--line", help="Instead: a line, by its champion.")
@click.option(
    "--data", required=True, metavar="URI", help="File, folder or s3://: CSV, JSON lines, Parquet; plain or gzip."
)
@click.option(
    "--out", required=True, metavar="URI", help="Folder or s3://bucket/prefix for the parts: new, or one to go on in."
)
@click.option(
    "--rows-per-part", type=click.IntRange(1), metavar="N", help="Rows of a part; default 60,000, which is the most."
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["parquet", "csv", "jsonl"]),
    default="parquet",
    show_default=True,
    help="Of the parts.",
)
@click.option("--keep", multiple=True, metavar="COL", help="Carry a column of the rows along; repeatable.")
@click.option("--delimiter", default="", metavar="SIGN", help="Of CSV; default a comma, and a tab for .tsv.")
@click.option(
    "--max-bad-share",
    type=click.FloatRange(0, 1),
    default=0.05,
    show_default=True,
    help="More bad rows fail the batch.",
)
@click.option("--rate", type=click.FloatRange(1), metavar="ROWS", help="At most so many rows a second.")
@click.option("--workers", type=click.IntRange(1, 256), default=1, show_default=True, help="Processes that answer.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def batch(
    bundle: str | None,
    line: str | None,
    data: str,
    out: str,
    rows_per_part: int | None,
    form: Any,
    keep: tuple[str, ...],
    delimiter: str,
    max_bad_share: float,
    rate: float | None,
    workers: int,
    as_json: bool,
) -> int:
    """Answer every row of URI. Bad rows go to errors.jsonl; Ctrl-C stops, and the same command goes on.

    \b
    Example:
      esteira batch --bundle build/b --data rows.parquet --out answers
      esteira batch --line tabular --data s3://lake/rows/ --out s3://lake/answers --workers 4
    """
    from esteira.batch import Job, Stopped, run
    from esteira.settings import load_settings

    settings = load_settings()
    job = Job(
        bundle=_bundle(bundle, line, out), data=data, out=out, rows_per_part=rows_per_part, form=form, keep=keep, delimiter=delimiter,
        max_bad_share=max_bad_share, rate=rate, workers=workers, device=settings.device,
    )  # fmt: skip
    with interruptible(numbers=(signal.SIGINT, signal.SIGTERM)) as stop, _progress(quiet=as_json) as tell:
        try:
            summary = run(job, stop=stop, tell=tell)
        except Stopped as stopped:
            summary = stopped.summary
    if as_json:
        emit(vars(summary))
    else:
        _tell(summary)
    return 0 if summary.state == "done" else 1


def _bundle(bundle: str | None, line: str | None, out: str) -> Path:
    """The folder that is named, or of the line's champion; a batch that was begun there goes on with what it began with."""
    from esteira.errors import ConfigError, Refused

    if (bundle is None) == (line is None):
        raise ConfigError(
            "batch takes --bundle DIR or --line LINE", code="usage", where="esteira batch", cure="name one of them"
        )
    if bundle is not None:
        return Path(bundle)
    from esteira.batch import begun
    from esteira.family import Line
    from esteira.registry import Registry
    from esteira.registry.reference import version_of
    from esteira.settings import load_settings

    registry, name, before = Registry(load_settings()), str(Line.parse(str(line))), begun(out)
    champion = registry.resolve(name)
    version = version_of(registry, name, begun=before.bundle_id if before and before.line == name else "")
    if version is None:
        raise Refused(
            f"only a released line answers, but {line} has no champion",
            code="no_champion", where=str(line), cure=f"`esteira run {line}` trains and releases one",
        )  # fmt: skip
    if champion is not None and champion.version != version.version:
        say(
            f"goes on with version {version.version}, which it began with; the champion is version {champion.version} now"
        )
    return registry.fetch(version)


@contextmanager
def _progress(*, quiet: bool) -> "Iterator[Callable[[Summary], None]]":
    """What tells of every part: a bar with pace and time left on a terminal, else a line now and then."""
    if quiet or not sys.stderr.isatty():
        said = time.monotonic()

        def tell(summary: "Summary") -> None:
            nonlocal said
            if not quiet and summary.state == "running" and time.monotonic() - said > _EVERY:
                said = time.monotonic()
                say(_told(summary))

        yield tell
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (BarColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("reading", total=None)

        def draw(summary: "Summary") -> None:
            done = summary.processed + summary.error
            bar.update(task, completed=done, total=summary.rows, description=_told(summary))

        yield draw


def _told(summary: "Summary") -> str:
    rows = f"{summary.processed + summary.error:,}" + (f" of {summary.rows:,} rows" if summary.rows else " rows")
    bad = f", {summary.error:,} bad" if summary.error else ""
    pace = f", {summary.rows_per_second:,.0f}/s" if summary.rows_per_second else ""
    left = f", {summary.seconds_left:,.0f} s left" if summary.seconds_left is not None else ""
    return f"{rows}{bad}{pace}{left}"


def _tell(summary: "Summary") -> None:
    rows = summary.processed + summary.error
    show(
        f"{summary.state}: {rows:,} rows, {summary.processed:,} answered, {summary.error:,} bad, {summary.parts} parts in"
        f" {summary.out}; {summary.seconds:.1f} s"
    )
    for column, rules in summary.warnings.items():
        show(f"  {column}: {', '.join(f'{rows:,} {rule}' for rule, rows in rules.items())}")
    if summary.errors:
        show(f"bad rows: {summary.errors}")
    if summary.state == "stopped":
        say("the same command goes on from there")
