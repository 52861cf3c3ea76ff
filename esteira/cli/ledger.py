"""`esteira ledger`: read, export and verify the append-only record."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from esteira.cli import emit, say

if TYPE_CHECKING:
    from esteira.store import Store


def _open() -> "Store":
    from esteira.settings import load_settings
    from esteira.store import Store

    settings = load_settings()
    return Store.open(settings.database_url, settings.tenant)


@click.group()
def ledger() -> None:
    """The append-only, hash-chained record of verdicts, registrations and alias moves.

    \b
    Example:
      esteira ledger log --line tabular
    """


@ledger.command()
@click.option("--line", help="Only entries of this line.")
@click.option("--limit", default=50, show_default=True, type=click.IntRange(1), help="At most this many, newest last.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def log(line: str | None, limit: int, as_json: bool) -> None:
    """Show entries.

    \b
    Example:
      esteira ledger log --line tabular --json
    """
    from esteira import ledger as record

    entries = record.log(_open(), line=line, limit=limit)
    if as_json:
        emit({"entries": [entry.to_dict() for entry in entries]})
        return
    for entry in entries:
        say(
            f"{entry.seq:>5}  {entry.at}  {entry.kind:<14} {entry.line} v{entry.version or '-'}  by {entry.actor}  {entry.hash[:12]}"
        )


@ledger.command()
@click.option(
    "--out", required=True, type=click.Path(dir_okay=False), help="File to write (JSON lines and a head line)."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def export(out: str, as_json: bool) -> None:
    """Write all entries as JSON lines that end with a head line.

    \b
    Example:
      esteira ledger export --out ledger.jsonl
    """
    from esteira import ledger as record

    head = record.export(_open(), Path(out))
    emit(head) if as_json else say(f"{out}: {head}")


@ledger.command()
@click.option("--file", "file", type=click.Path(dir_okay=False), help="An export to verify and compare with the store.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def verify(file: str | None, as_json: bool) -> int:
    """Check every hash; exits 1 at the first break and names the entry.

    \b
    Example:
      esteira ledger verify --file ledger.jsonl
    """
    from esteira import ledger as record

    verdict = record.verify(_open(), file=Path(file) if file else None)
    if as_json:
        emit({"ok": verdict.ok, "entries": verdict.entries, "broken_at": verdict.broken_at, "reason": verdict.reason})
    elif verdict.ok:
        say(f"ok: {verdict.entries} entries, unbroken")
    else:
        say(f"broken at entry {verdict.broken_at}: {verdict.reason}")
    return 0 if verdict.ok else 1
