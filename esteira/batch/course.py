"""A batch from end to end: the source read, its parts answered here or by workers, each written and noted before the next counts.

It may be killed at any moment and started again with the same words: nothing is lost, nothing is there twice.
"""

import hashlib
import json
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import wait
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from esteira import crash
from esteira.batch import files as sources
from esteira.batch.answering import Answering, Part
from esteira.batch.blocks import ROWS, Block, Place, Reader, most_rows, names_of
from esteira.batch.files import Files, Watch, must_be_unchanged
from esteira.batch.forms import Form, must_be_writable, written
from esteira.batch.journal import Journal, Noted, nested, noted_at
from esteira.batch.place import ERRORS, place_of
from esteira.batch.place import Place as Results
from esteira.batch.windows import WINDOW_ROWS, part_end, windows
from esteira.errors import ConfigError, DataError, EsteiraError

if TYPE_CHECKING:
    from concurrent.futures import Future

    from esteira.batch.workers import Failed

PROGRESS = "progress.json"

Stop = Callable[[], bool]


@dataclass(frozen=True)
class Job:
    """What a batch is asked for.

    Attributes:
        bundle: folder of the bundle.
        data: a file, a folder or `s3://bucket/key`, `s3://bucket/folder/`: CSV, JSON lines or Parquet.
        out: a folder or `s3://bucket/prefix`.
        bundle_id: when given, the one identity that is wanted.
        rows_per_part: at most WINDOW_ROWS; None for a window, or with `rate` for what a minute brings.
        form: of the parts.
        keep: columns of the source that travel with the answers.
        delimiter: of CSV.
        max_bad_share: share of bad rows in [0, 1] above which the batch fails.
        rate: rows a second at most, 1 or more; None for no bound.
        workers: processes that answer.
        device: `auto`, `cpu` or `cuda`.
        within: folders and `s3://bucket/prefix/` that data and out may lie in; empty for anywhere.
        wait: seconds to wait for another run into the same folder.
    """

    bundle: Path
    data: str
    out: str
    bundle_id: str = ""
    rows_per_part: int | None = None
    form: Form = "parquet"
    keep: tuple[str, ...] = ()
    delimiter: str = ""
    max_bad_share: float = 0.05
    rate: float | None = None
    workers: int = 1
    device: str = "auto"
    within: tuple[str, ...] = ()
    wait: float = 0.0

    def __post_init__(self) -> None:
        rules = {
            f"rows_per_part is 1 to {WINDOW_ROWS:,}": self.rows_per_part is None
            or 1 <= self.rows_per_part <= WINDOW_ROWS,
            "max_bad_share is 0 to 1": 0 <= self.max_bad_share <= 1,
            "rate is 1 or more": self.rate is None or self.rate >= 1,
            "workers are 1 or more": self.workers >= 1,
            "delimiter is one character, no quote and no line end": not self.delimiter
            or (len(self.delimiter) == 1 and self.delimiter.isascii() and self.delimiter not in '"\r\n'),
        }
        for rule, kept in rules.items():
            if not kept:
                word = rule.split()[0]
                raise ConfigError(
                    f"{rule}, but got {getattr(self, word)!r}",
                    code="bad_batch", where=f"--{word.replace('_', '-')}", cure="correct it",
                )  # fmt: skip


def usual(rate: float | None) -> tuple[int, int]:
    """Rows of a part and of a block: with a rate (rows a second) what a minute and a second bring, of a part 100 at least."""
    if rate is None:
        return WINDOW_ROWS, ROWS
    return min(WINDOW_ROWS, max(100, round(rate * 60))), min(ROWS, max(1, round(rate)))


@dataclass(frozen=True)
class Summary:
    """How far a batch is.

    Attributes:
        state: `running`, `done`, `stopped` or `failed`.
        rows: of the source; while it runs a number that is not exceeded, or None where that is not known.
        processed: good rows, which have an answer.
        error: bad rows.
        progress: percent, 100 at the end only.
        window: the one it is in, from 1; of `windows`, None where that is not known.
        rows_per_second, seconds_left: by this run's pace; None where nothing is known.
        warnings: column -> rule -> rows.
        errors: where the bad rows are told; None without one.
    """

    state: str
    rows: int | None
    processed: int
    error: int
    progress: int
    parts: int
    window: int
    windows: int | None
    seconds: float
    rows_per_second: float | None
    seconds_left: float | None
    line: str
    bundle_id: str
    content_hash: str
    out: str
    errors: str | None
    warnings: dict[str, dict[str, int]]


class Stopped(Exception):
    """The batch was stopped; `summary` says how far it came."""

    def __init__(self, summary: Summary) -> None:
        super().__init__(f"stopped after {summary.processed + summary.error} rows")
        self.summary = summary


class _Asked(Exception):
    """Somebody asked to stop."""


def run(job: Job, *, stop: Stop = lambda: False, tell: Callable[[Summary], None] = lambda _: None) -> Summary:
    """Answer all rows that were not answered yet.

    Args:
        job: what is asked for.
        stop: asked between blocks, and while files are copied and hashed, also from other threads; True ends the run, and
            what was noted stays.
        tell: told of every part.

    Raises:
        Stopped: `stop` said so.
        DataError: code `too_many_bad_rows`; or the source breaks a rule of form.
        Refused: the folder holds another batch, other things or links, what was finished there is changed, another run writes
            there, an address leaves `within`, the bundle was changed, or the source is being changed.
        SourceError, ConfigError, OutsideError: the source, the bundle or the words cannot be used, or the disk is full.
    """

    def watch() -> None:
        if stop():
            raise _Asked

    must_be_writable(job.form)
    answering = Answering(job.bundle, bundle_id=job.bundle_id, device=job.device, keep=job.keep)
    place = place_of(job.out, job.within)
    with place.alone(job.wait):
        try:
            with sources.opened(job.data, within=job.within, watch=watch) as source:
                return _run(job, answering, source, place, watch, tell)
        except _Asked:
            raise Stopped(_summary(job, answering, place, noted_at(place), "stopped")) from None


def _run(
    job: Job, answering: Answering, source: Files, place: Results, watch: Watch, tell: Callable[[Summary], None]
) -> Summary:
    names = names_of(source, job.delimiter)
    columns = None if names is None else answering.columns_of(names, source.where)
    asked = {
        "line": answering.line,
        "bundle_id": answering.bundle_id,
        "source": source.content_hash,
        "form": job.form,
        "keep": list(job.keep),
        "delimiter": job.delimiter,
    }
    most = most_rows(source)
    # Of text there are lines, which are more than its rows where cells have line ends or lines are empty.
    exact = most if source.form == "parquet" else None
    journal = Journal(place, asked, rows_per_part=job.rows_per_part, usual=usual(job.rate), rows=exact, watch=watch)
    course = _Course(job, answering, source, place, journal, most, tell)
    try:
        course.judge()
        if not journal.noted.done:
            reader = Reader(source, journal.noted.place, columns=columns, delimiter=job.delimiter)
            with closing(_parts(job, answering, reader, watch, journal)) as parts:
                for part, following in parts:
                    course.commit(part, following)
            if not journal.noted.rows:
                raise DataError(
                    "a batch needs at least one row, but the source has none",
                    code="no_rows", where=source.where, cure="check how it was written, or name another source",
                )  # fmt: skip
            course.judge(last=True)
            course.must_be_unchanged(0, len(source.files))
            journal.end()
        return course.say("done")
    except _Asked:
        raise Stopped(course.say("stopped")) from None
    except EsteiraError as error:
        if error.code != "locked":  # another run goes on here, and tells how far it is
            with suppress(EsteiraError):  # the disk may be full
                course.say("failed")
        raise


class _Course:
    """What a run notes and tells on its way."""

    def __init__(
        self, job: Job, answering: Answering, source: Files, place: Results, journal: Journal, most: int | None,
        tell: Callable[[Summary], None],
    ) -> None:  # fmt: skip
        self._job, self._answering, self._source, self._place = job, answering, source, place
        self._journal, self._most, self._tell = journal, most, tell
        self._began, self._before = time.monotonic(), journal.noted.rows

    def commit(self, part: Part, following: Place) -> None:
        about = {
            "esteira.line": self._answering.line,
            "esteira.bundle_id": self._answering.bundle_id,
            "esteira.rows": f"{self._journal.noted.rows + 1}-{following.row}",
        }
        data = written(part, self._job.form, self._answering.prediction, about)
        self.must_be_unchanged(self._journal.noted.place.file, following.file + 1)
        self._journal.commit(
            data, hashlib.sha256(data).hexdigest(), following=following, bad=part.bad, errors=b"".join(part.errors),
            warnings=part.warnings,
        )  # fmt: skip
        self.say("running")
        self.judge()

    def must_be_unchanged(self, first: int, end: int) -> None:
        """Refuse the source when one of these files is not what was hashed: one that is open may have given other rows."""
        for file in self._source.files[first:end]:
            must_be_unchanged(file, self._source.where)

    def judge(self, *, last: bool = False) -> None:
        """Refuse too many bad rows, as soon as good ones that may still come cannot make up for them."""
        noted = self._journal.noted
        if last or noted.done:
            of = noted.rows
        elif self._most is None:
            return
        else:
            of = max(self._most, noted.rows)
        if noted.bad > self._job.max_bad_share * of:
            raise DataError(
                f"at most {self._job.max_bad_share:.1%} of the rows may be bad, but {noted.bad:,} of"
                f" {noted.rows:,} that were read are",
                code="too_many_bad_rows", where=f"{self._place.where}/{ERRORS}",
                cure="mend the rows, or allow more with --max-bad-share; what was answered stays and the same command goes on",
            )  # fmt: skip

    def say(self, state: str) -> Summary:
        """Write `progress.json`, and tell."""
        noted = self._journal.noted
        rows = noted.rows if noted.done else self._most
        summary = _summary(
            self._job, self._answering, self._place, noted, state, rows=rows, content_hash=self._source.content_hash,
            made=noted.rows - self._before, seconds=time.monotonic() - self._began,
        )  # fmt: skip
        crash.point("batch.before_progress")
        self._place.put(PROGRESS, json.dumps(vars(summary), ensure_ascii=False, indent=1).encode() + b"\n")
        self._tell(summary)
        return summary


def _summary(
    job: Job, answering: Answering, place: Results, noted: Noted, state: str, *, rows: int | None = None,
    content_hash: str = "", made: int = 0, seconds: float = 0.0,
) -> Summary:  # fmt: skip
    """How far a batch is, `made` rows of it in this run's seconds."""
    pace = made / seconds if made and seconds > 0 else None
    left = None if rows is None or pace is None else max(0.0, rows - noted.rows) / pace
    return Summary(
        state=state,
        rows=rows,
        processed=noted.rows - noted.bad,
        error=noted.bad,
        progress=100 if noted.done else min(99, 100 * noted.rows // rows) if rows else 0,
        parts=noted.parts,
        window=windows(noted.rows),
        windows=None if rows is None else windows(rows),
        seconds=round(seconds, 3),
        rows_per_second=None if pace is None else round(pace, 1),
        seconds_left=None if left is None else round(left, 1),
        line=answering.line,
        bundle_id=answering.bundle_id,
        content_hash=content_hash,
        out=job.out,
        errors=f"{job.out.rstrip('/')}/{ERRORS if place.grows else 'errors/'}" if noted.bad else None,
        warnings=nested(noted.warnings),
    )


class _Pace:
    """Lets so many rows a second go by, on average."""

    def __init__(self, rate: float | None, watch: Watch) -> None:
        self._rate, self._watch = rate, watch
        self._began, self._rows = time.monotonic(), 0

    def let(self, rows: int) -> None:
        """Wait until these rows may be answered; raises when somebody asks to stop."""
        self._watch()
        if self._rate is None:
            return
        until = self._began + self._rows / self._rate
        self._rows += rows
        while (left := until - time.monotonic()) > 0:
            time.sleep(min(left, 0.1))
            self._watch()


def _parts(
    job: Job, answering: Answering, reader: Reader, watch: Watch, journal: Journal
) -> Generator[tuple[Part, Place], None, None]:
    """Parts in order, each with the place where the next one starts."""
    pace = _Pace(job.rate, watch)

    def blocks() -> Iterator[tuple[str, Block]]:
        """Those of the next part."""
        end = part_end(reader.place.row, journal.rows_per_part)
        while reader.place.row < end:
            block = reader.take(min(journal.block_rows, end - reader.place.row))
            if block is None:
                return
            pace.let(len(block))
            yield reader.file.name, block

    if job.workers == 1:
        while True:
            part = answering.part(blocks(), reader.place.row)
            if not part.rows:
                return
            yield part, reader.place
    from esteira.batch.workers import Workers

    with Workers(job.workers, job.bundle, answering.bundle_id, job.device, job.keep) as workers:
        waiting: deque[tuple[Future[Part | Failed], Place]] = deque()
        while True:
            # Enough that no worker waits, and no more than memory bears.
            while len(waiting) <= job.workers:
                first = reader.place.row
                read = list(blocks())
                if not read:
                    break
                waiting.append((workers.submit(read, first), reader.place))
            if not waiting:
                return
            future, following = waiting.popleft()
            yield _result(future, watch), following


def _result(future: "Future[Part | Failed]", watch: Watch) -> Part:
    # Not by the future's own TimeoutError, which the task may have raised.
    while not wait([future], 0.2).done:
        watch()
    answered = future.result()
    if isinstance(answered, Part):
        return answered
    raise answered.error()
