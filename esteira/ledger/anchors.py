"""Heads of the ledger kept where whoever can write the store cannot reach: in a file elsewhere, in a git note.

A chain alone cannot know that its end is missing, nor that all of it was written anew. An anchor is its length and its last hash at
one time; `verify` holds the chain against it (L-34). Nothing is written to a repository unless asked for.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from esteira import outputs
from esteira.errors import OutsideError, Refused, SourceError
from esteira.ledger.chain import canonical, parse, stamp
from esteira.ledger.check import Verdict, verify

if TYPE_CHECKING:
    from esteira.store import Store

NOTES = "esteira-ledger"
"""git's notes that anchors go to: refs/notes/esteira-ledger."""


@dataclass(frozen=True)
class Anchor:
    """The ledger's length and last hash at one time. `at` is as in an entry: UTC, ISO 8601 with `Z`."""

    at: str
    count: int
    hash: str
    tenant: str

    def to_line(self) -> str:
        """One line of JSON."""
        return canonical({"anchor": asdict(self)}).decode("utf-8")


def anchor(store: "Store", *, now: datetime, former: Iterable[Anchor] = ()) -> Anchor:
    """The head of a ledger that holds, now.

    Args:
        now: aware.
        former: anchors that it must hold to as well.

    Raises:
        Refused: code `broken_ledger`; a head is not anchored over a break.
    """
    verdict = verify(store, anchors=tuple(former))
    if not verdict.ok:
        raise broken(verdict)
    return Anchor(stamp(now), verdict.entries, verdict.head, store.tenant)


def broken(verdict: Verdict) -> Refused:
    """A verdict that is not ok, as an error."""
    return Refused(
        f"the ledger must hold, but at entry {verdict.broken_at}: {verdict.reason}",
        code="broken_ledger",
        where=f"ledger, entry {verdict.broken_at}",
        cure="compare it with an export or a backup of the store (esteira ledger verify --file FILE)",
    )


def read_anchors(text: str, *, tenant: str, where: str) -> list[Anchor]:
    """Anchors of a file, a line each; empty lines count for nothing.

    Args:
        tenant: whose they must be.
        where: name of the file, for messages.

    Raises:
        Refused: code `bad_anchor` or `other_tenant`; names the line.
    """
    found = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        one = _must_read(line, where=where, number=number)
        if one.tenant != tenant:
            raise Refused(
                f"an anchor is held against its own tenant's ledger, but this is {one.tenant[:64]}'s and that {tenant}'s",
                code="other_tenant",
                where=f"{where}, line {number}",
                cure="set ESTEIRA_TENANT, or give this tenant's file",
            )
        found.append(one)
    return found


def _must_read(line: str, *, where: str, number: int) -> Anchor:
    one = _read(line)
    if one is None:
        raise Refused(
            f"an anchor is a line of JSON with at, count, hash and tenant, but line {number} is none",
            code="bad_anchor",
            where=f"{where}, line {number}",
            cure="give what `esteira ledger anchor` wrote, as it was",
        )
    return one


def _read(line: str) -> Anchor | None:
    try:
        said = parse(line)["anchor"]
        one = Anchor(**said)
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    texts = (one.at, one.hash, one.tenant)
    fits = type(one.count) is int and one.count >= 0 and all(isinstance(text, str) for text in texts)
    return one if fits and len(one.hash) == 64 else None


def no_anchor(where: str) -> Refused:
    """What was named to verify against holds no anchor, so nothing could be found missing."""
    return Refused(
        "a ledger is held against at least one anchor of its tenant, but there is none",
        code="no_anchor",
        where=where,
        cure="esteira ledger anchor --out FILE or --git-note makes one; where there were some, they are gone",
    )


def load_anchors(file: Path, *, tenant: str) -> list[Anchor]:
    """Anchors that a file holds.

    Raises:
        SourceError: it cannot be read.
        Refused: as `read_anchors`.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(
            f"a file of anchors can be read, but {getattr(error, 'strerror', None) or 'it is no text'}",
            code="no_anchors",
            where=str(file),
            cure="write one by `esteira ledger anchor --out FILE`",
        ) from error
    return read_anchors(text, tenant=tenant, where=file.name)


def add_anchor(store: "Store", file: Path, *, now: datetime, former: Iterable[Anchor] = ()) -> Anchor:
    """Anchor the head in a file, below those that it holds; the ledger must hold to them. The file is whole or as it was.

    Args:
        former: anchors of elsewhere that it must hold to as well.

    Raises:
        Refused: code `broken_ledger`; or the file holds anything else than anchors.
        OutsideError: it cannot be written.
    """
    kept = load_anchors(file, tenant=store.tenant) if file.exists() else []
    made = anchor(store, now=now, former=[*former, *kept])
    text = "".join(f"{one.to_line()}\n" for one in [*kept, made])
    outputs.write(file.parent, {file.name: text.encode("utf-8")})
    return made


def read_notes(folder: Path, *, tenant: str) -> list[Anchor]:
    """Anchors of all git notes of the repository around a folder, at whatever commit; another tenant's are left out.

    Raises:
        OutsideError: there is no git or no repository, or git refused.
        Refused: a note holds anything else (code `bad_anchor`).
    """
    found = []
    for line in _git(folder, "notes", f"--ref={NOTES}", "list").splitlines():
        blob, commit = line.split()
        for number, text in enumerate(_git(folder, "cat-file", "blob", blob).splitlines(), start=1):
            if text.strip():
                found.append(_must_read(text, where=f"the note of {commit[:12]}", number=number))
    return [one for one in found if one.tenant == tenant]


def add_note(made: Anchor, folder: Path) -> str:
    """Write an anchor as a git note at the last commit of the repository around a folder, below those that are there.

    Returns:
        The commit.

    Raises:
        OutsideError: there is no git, no repository, no commit, or git refused; nothing was written.
    """
    commit = _git(folder, "rev-parse", "--verify", "HEAD")
    _git(folder, "notes", f"--ref={NOTES}", "append", "-m", made.to_line(), commit)
    return commit


def _git(folder: Path, *arguments: str) -> str:
    import subprocess  # only here, so that a roll back does not wait for it

    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=False, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _no_note(str(getattr(error, "strerror", None) or "git did not end")) from error
    if done.returncode != 0:
        raise _no_note((done.stderr.strip().splitlines() or ["no reason"])[0][:200])
    return done.stdout.strip()


def _no_note(said: str) -> OutsideError:
    return OutsideError(
        f"anchors can be kept as git notes, but git said: {said}",
        code="git_note",
        where=f"refs/notes/{NOTES}",
        cure="run it in a repository that has a commit and a user.name, or anchor with --out FILE",
    )
