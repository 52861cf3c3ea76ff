"""`esteira ledger`: read, ask, export, anchor and verify the append-only record."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from esteira.cli import emit, show

if TYPE_CHECKING:
    from collections.abc import Mapping

    from esteira.store import Store


def _open(line: str | None = None) -> "Store":
    """The store, for who may read it."""
    from esteira import access
    from esteira.settings import load_settings
    from esteira.store import Store

    settings = load_settings()
    store = Store.open(settings.database_url, settings.tenant)
    access.reader(settings, line=line or access.EVERY_LINE, store=store)
    return store


def _shown(text: str) -> str:
    """A text that cannot make lines of its own, whatever somebody called themselves."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


@click.group()
def ledger() -> None:
    """The append-only, hash-chained record: verdicts, registrations, approvals, alias moves, traffic, rollbacks.

    \b
    Example:
      esteira ledger log --line tabular
      esteira ledger at 14:03
    """


@ledger.command()
@click.option("--line", help="Only entries of this line.")
@click.option("--limit", default=50, show_default=True, type=click.IntRange(1), help="At most this many, newest last.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def log(line: str | None, limit: int, as_json: bool) -> None:
    """Show entries, one a line: what was done, by whom, and why.

    \b
    Example:
      esteira ledger log --line tabular --json
    """
    from esteira import access
    from esteira import ledger as record
    from esteira.cli.known import require_line
    from esteira.family import Line

    # Entries of all lines, such as those about keys, have a name that is none.
    named = None if line == access.EVERY_LINE else line
    if named is not None:
        Line.parse(named)
    store = _open(line)
    entries = record.log(store, line=line, limit=limit)
    if named is not None and not entries:
        require_line(named, store)
    if as_json:
        emit({"entries": [entry.to_dict() for entry in entries]})
        return
    for entry in entries:
        said: Any = entry.evidence
        evidence: dict[str, Any] = said if isinstance(said, dict) else {}
        # Only the name of a key proves who it was.
        free = " (no key)" if evidence.get("keyed") is False else ""
        why = next((str(evidence[name]) for name in ("reason", "summary", "what") if evidence.get(name)), "")
        text = (
            f"{entry.seq:>5}  {entry.at}  {_shown(entry.kind):<16} {_shown(entry.line)} v{entry.version or '-'}"
            f"  {_shown(_done(entry.kind, evidence)):<20}  by {_shown(entry.actor)}{free}  {entry.hash[:12]}  {_shown(why)}"
        )
        show(text.rstrip())


def _done(kind: str, evidence: "Mapping[str, Any]") -> str:
    """What an entry says was done, in a few words: its action or verdict, and what went from where to where. Pure."""
    told = ("action", "status") if evidence.get("action") == "ended" else ("action", "verdict")
    words = [str(evidence[name]) for name in told if evidence.get(name)]
    moves = evidence.get("moves")
    if isinstance(moves, dict):
        ends = {str(alias): both for alias, both in moves.items() if isinstance(both, list) and len(both) == 2}
        words.append(", ".join(f"{alias} {_end(left)} -> {_end(taken)}" for alias, (left, taken) in ends.items()))
    elif "from" in evidence and "to" in evidence:
        unit = " %" if kind == "traffic" else ""
        words.append(f"{_end(evidence['from'])} -> {_end(evidence['to'])}{unit}")
    elif kind == "key":
        words.append(str(evidence.get("name")))
    return " ".join(word for word in words if word)


def _end(value: Any) -> str:
    return "-" if value is None else f"{value:g}" if isinstance(value, (int, float)) else str(value)


@ledger.command()
@click.argument("time")
@click.option("--line", help="Only this line.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def at(time: str, line: str | None, as_json: bool) -> None:
    """Say which version of each line took which share of its traffic at TIME.

    TIME is a date and time, or a time of today; UTC unless it names a zone. Before the first release the answer is empty.

    \b
    Example:
      esteira ledger at 2026-11-22T14:03
      esteira ledger at 14:03:07 --line tabular --json
    """
    from datetime import UTC, datetime

    from esteira import ledger as record
    from esteira.cli.known import require_line
    from esteira.family import Line

    now = datetime.now(UTC)
    if line is not None:
        Line.parse(line)
    asked = record.moment(time, now)
    store = _open(line)
    if time.strip().lower() == "now":
        asked = now = record.latest(store, now)
    serving = record.at(store, asked, line)
    if line is not None and not serving:
        require_line(line, store)
    told = asked.replace(microsecond=0) if asked.microsecond == 999_999 else asked
    document: dict[str, Any] = {"at": told.isoformat().replace("+00:00", "Z")}
    if told > now:
        document["note"] = "this time is yet to come; the answer is what serves now"
    document["serving"] = [vars(share) for share in serving]
    if as_json:
        emit(document)
        return
    show(f"at {document['at']}" + (f" ({document['note']})" if "note" in document else ""))
    for share in serving:
        show(f"  {share.line}  v{share.version}  {100 * share.share:g} %  bundle {share.bundle_id[:12]}")
    if not serving:
        show("  nothing served")


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
    emit(head) if as_json else show(f"{out}: {head}")


@ledger.command()
@click.option("--out", type=click.Path(dir_okay=False), help="File to add the head to, as a line of JSON.")
@click.option("--git-note", is_flag=True, help="Add it to the git notes of the last commit of the repository here.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def anchor(out: str | None, git_note: bool, as_json: bool) -> None:
    """Verify the ledger and print its length and last hash, to be kept where whoever writes the store cannot reach.

    Nothing is written unless --out or --git-note says where. The ledger must hold to the anchors that are there already.

    \b
    Example:
      esteira ledger anchor --out anchors.jsonl
      esteira ledger verify --anchor anchors.jsonl
    """
    from datetime import UTC, datetime

    from esteira import ledger as record

    store, now = _open(), datetime.now(UTC)
    former = record.read_notes(Path.cwd(), tenant=store.tenant) if git_note else []
    made = (
        record.add_anchor(store, Path(out), now=now, former=former)
        if out
        else record.anchor(store, now=now, former=former)
    )
    commit = record.add_note(made, Path.cwd()) if git_note else None
    if as_json:
        emit({**vars(made), "out": out, "git_note": commit})
        return
    show(f"{made.count} entries, head {made.hash}")
    if out:
        show(f"  kept in {out}")
    if commit:
        show(f"  kept as a git note of {commit[:12]} (esteira ledger verify --git-notes)")


@ledger.command()
@click.option("--file", "file", type=click.Path(dir_okay=False), help="An export to verify and compare with the store.")
@click.option(
    "--anchor",
    "anchors",
    multiple=True,
    type=click.Path(dir_okay=False, allow_dash=True),
    help="Anchors that the chain must still reach, a file or - for standard input; repeatable.",
)
@click.option("--git-notes", is_flag=True, help="And all anchors in the git notes of the repository here.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def verify(file: str | None, anchors: tuple[str, ...], git_notes: bool, as_json: bool) -> int:
    """Check every hash, and that aliases and approvals are as the ledger says; exits 1 at the first break and names the entry.

    \b
    Example:
      esteira ledger verify
      esteira ledger verify --file ledger.jsonl
      esteira ledger verify --git-notes
    """
    from esteira import ledger as record

    store = _open()
    kept: list[record.Anchor] = []
    for name in anchors:
        where = "standard input" if name == "-" else name
        found = (
            record.read_anchors(sys.stdin.read(), tenant=store.tenant, where=where)
            if name == "-"
            else record.load_anchors(Path(name), tenant=store.tenant)
        )
        if not found:
            raise record.no_anchor(where)
        kept += found
    if git_notes:
        found = record.read_notes(Path.cwd(), tenant=store.tenant)
        if not found:
            raise record.no_anchor(f"refs/notes/{record.NOTES}")
        kept += found
    verdict = record.verify(store, file=Path(file) if file else None, anchors=kept)
    if as_json:
        emit(
            {
                "ok": verdict.ok,
                "entries": verdict.entries,
                "broken_at": verdict.broken_at,
                "reason": verdict.reason,
                "head": verdict.head,
                "anchors": len(kept),
            }
        )
    elif verdict.ok:
        show(f"ok: {verdict.entries} entries, unbroken" + (f", as {len(kept)} anchors say" if kept else ""))
    else:
        show(f"broken at entry {verdict.broken_at}: {verdict.reason}")
    return 0 if verdict.ok else 1
