"""The journal of a batch: what was asked for, a note a finished part, a last one at the end. What it does not say did not happen."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from esteira import crash
from esteira.batch.blocks import Place as Row
from esteira.batch.files import Watch
from esteira.batch.place import ERRORS, JOURNAL, Place, errors_of, place_of
from esteira.batch.windows import WINDOW_ROWS, parts
from esteira.errors import ConfigError, Refused

FORMAT = 1
MOST_PARTS = 99_999
"""Parts of a batch: their names have five digits, and so the order of the rows."""


@dataclass
class Noted:
    """What is done.

    Attributes:
        parts: how many.
        place: where the next part starts.
        bad: rows with an error.
        errors: bytes of their lines.
        warnings: column and rule -> rows.
        done: no row is left.
    """

    parts: int = 0
    place: Row = field(default_factory=Row)
    bad: int = 0
    errors: int = 0
    warnings: Counter[tuple[str, str]] = field(default_factory=Counter)
    done: bool = False

    @property
    def rows(self) -> int:
        return self.place.row

    def add(self, document: Mapping[str, Any]) -> None:
        """Add what a note says."""
        if document.get("done"):
            self.done = True
            return
        self.parts = document["part"] + 1
        self.place = Row(*document["next"])
        self.bad += document["bad"]
        self.errors += document["errors"]
        for column, rules in document["warnings"].items():
            for rule, rows in rules.items():
                self.warnings[column, rule] += rows


class Journal:
    """The journal in a place that this run has for itself."""

    def __init__(
        self,
        place: Place,
        asked: Mapping[str, Any],
        *,
        rows_per_part: int | None,
        usual: tuple[int, int],
        rows: int | None = None,
        watch: Watch = lambda: None,
    ) -> None:
        """Read it, or begin it.

        Args:
            place: where it lies.
            asked: what makes another batch: source, bundle, form of the results.
            rows_per_part: the same; None takes what it began with.
            usual: what it begins with then, and the rows of a block.
            rows: of the source, where their number is exact: so many must fit into the parts that there may be.
            watch: called between the parts that it notes, which are all read.

        Raises:
            Refused: code `another_batch`, it is of another one; `part_lost`, a part or errors that it notes are changed or gone;
                `locked`, another run begins it just now.
            ConfigError: code `too_many_parts`.
        """
        self._place = place
        self._end = 0
        self.noted = Noted()
        self._suffix = str(asked["form"])
        self.rows_per_part, self.block_rows = rows_per_part or usual[0], usual[1]
        self._asked = {"format": FORMAT, **asked}
        if rows_per_part is not None:
            self._asked["rows_per_part"] = rows_per_part
        found = place.read(JOURNAL)
        if found is None:
            if rows is not None and parts(rows, self.rows_per_part) > MOST_PARTS:
                raise _too_many(self.rows_per_part)
            line = _line({**self._asked, "rows_per_part": self.rows_per_part, "block_rows": self.block_rows})
            crash.point("batch.before_start")
            place.put(JOURNAL, line)
            self._end = len(line)
            return
        for number, (line, document) in enumerate(_documents(found)):
            watch()
            if number == 0:
                self._must_be_asked(document)
            else:
                self._must_be_there(document)
                self.noted.add(document)
            self._end += len(line)
        if not self._end:
            raise Refused(
                "a journal begins with what was asked for, but this one does not",
                code="bad_journal", where=f"{place.where}/{JOURNAL}", cure="give another --out",
            )  # fmt: skip
        if place.grows and (place.size(ERRORS) or 0) < self.noted.errors:
            raise self._lost(ERRORS)

    def _must_be_asked(self, document: Mapping[str, Any]) -> None:
        other = [key for key, value in self._asked.items() if document.get(key) != value]
        if other:
            key = other[0]
            raise Refused(
                f"a batch goes on with what it began with, but its {key} was {_shown(document.get(key))} and now is"
                f" {_shown(self._asked[key])}",
                code="another_batch", where=self._place.where, cure="give another --out, or the former words",
            )  # fmt: skip
        self.rows_per_part, self.block_rows = int(document["rows_per_part"]), int(document["block_rows"])

    def _must_be_there(self, document: Mapping[str, Any]) -> None:
        """Hold what lies there against a note."""
        if document.get("done"):
            return
        name = self.name(document["part"])
        if not self._place.holds(name, document["bytes"], document["sha256"]):
            raise self._lost(name)
        told = errors_of(document["part"])
        if document["errors"] and not self._place.grows and self._place.size(told) != document["errors"]:
            raise self._lost(told)

    def _lost(self, name: str) -> Refused:
        return Refused(
            f"what was finished stays as it is, but {name} is changed or gone",
            code="part_lost", where=self._place.where, cure="put it back, or start again with another --out",
        )  # fmt: skip

    def name(self, part: int) -> str:
        """The file of a part."""
        return f"parts/{part:05d}.{self._suffix}"

    def commit(
        self, data: bytes, sha256: str, *, following: Row, bad: int, errors: bytes, warnings: Counter[tuple[str, str]]
    ) -> None:
        """Write the next part and note it; a run that is cut off before the note does it again.

        Args:
            data: the part's file.
            sha256: of it.
            following: where the next part starts.
            bad: rows of it with an error.
            errors: their lines.
            warnings: column and rule -> rows.

        Raises:
            ConfigError: code `too_many_parts`.
            Refused: code `locked`, another run goes on with this batch.
        """
        noted, number = self.noted, self.noted.parts
        if number >= MOST_PARTS:
            raise _too_many(self.rows_per_part)
        self._place.must_be_ours()
        crash.point("batch.before_errors")
        if errors:
            self._place.add_errors(number, errors, noted.errors)
        crash.point("batch.before_part")
        self._place.put(self.name(number), data)
        crash.point("batch.before_note")
        self._note(
            {
                "part": number, "rows": following.row - noted.rows, "bad": bad, "bytes": len(data), "sha256": sha256,
                "errors": len(errors), "warnings": nested(warnings), "next": list(following),
            }
        )  # fmt: skip
        noted.parts, noted.place = number + 1, following
        noted.bad += bad
        noted.errors += len(errors)
        noted.warnings += warnings
        crash.point("batch.after_note")

    def end(self) -> None:
        """Note that no row is left."""
        crash.point("batch.before_end")
        self._note({"done": True})
        self.noted.done = True

    def _note(self, document: Mapping[str, Any]) -> None:
        line = _line(document)
        self._place.note(line, self._end)
        self._end += len(line)


def nested(warnings: Mapping[tuple[str, str], int]) -> dict[str, dict[str, int]]:
    """Column -> rule -> rows, in the order of the names."""
    found: dict[str, dict[str, int]] = {}
    for (column, rule), rows in sorted(warnings.items()):
        found.setdefault(column, {})[rule] = rows
    return found


class Begun(NamedTuple):
    """What answers a batch that was begun."""

    line: str
    bundle_id: str


def begun(out: str) -> Begun | None:
    """What answers the batch that was begun at an address; None where none was.

    Raises:
        EsteiraError: as `esteira.batch.place.place_of`; or S3 does not answer.
    """
    try:
        found = place_of(out).read(JOURNAL)
    except OSError:  # whoever writes there is told why
        return None
    first = next(_documents(found or b""), None)
    return None if first is None else Begun(str(first[1].get("line")), str(first[1].get("bundle_id")))


def noted_at(place: Place) -> Noted:
    """What the journal of a place notes, whatever batch it is of; none notes nothing."""
    found = Noted()
    for number, (_, document) in enumerate(_documents(place.read(JOURNAL) or b"")):
        if number:
            found.add(document)
    return found


def _too_many(rows_per_part: int) -> ConfigError:
    return ConfigError(
        f"a batch has {MOST_PARTS:,} parts at most, but with {rows_per_part:,} rows a part it takes more",
        code="too_many_parts", where="--rows-per-part",
        cure=f"give another --out and more rows a part, {WINDOW_ROWS:,} at most; or split the source",
    )  # fmt: skip


def _documents(journal: bytes) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """The notes, each with its line, up to one that was being written when the run died."""
    for line in journal.splitlines(keepends=True):
        document = _read(line)
        if document is None:
            return
        yield line, document


def _line(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, ensure_ascii=False).encode("utf-8", "replace") + b"\n"


def _read(line: bytes) -> dict[str, Any] | None:
    if not line.endswith(b"\n"):
        return None
    try:
        document = json.loads(line)
    except ValueError:
        return None
    return document if isinstance(document, dict) else None


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}..."
