"""From a body of rows to an encoded answer: checked, from the cache or the model, alone or with others', and in time.

The way of a small request that finds a slot is a straight line: no task, no timer, no thread.
"""

import asyncio
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any, TypeVar

import msgspec

from esteira.errors import DataError
from esteira.family import Answer, Finding
from serving.asgi import Receive
from serving.batching import Batcher, LateError
from serving.body import GoneError, hung_up, rows_of
from serving.cache import AnswerCache
from serving.gate import Gate
from serving.metrics import Metrics
from serving.predictor import Predictor
from serving.problems import Problem, encode

T = TypeVar("T")

LARGE = 50_000
"""Bytes of a body from which a thread reads, checks, answers and writes it: reading and checking alone take milliseconds."""
_DETAILS = 20
_NAME = 200  # characters of a field's name that are said back


@dataclass(frozen=True)
class Pace:
    """How answers are computed.

    Attributes:
        seconds: that an answer may take, the wait for a slot included.
        batch_rows: most rows of a call that answers several requests; 1 answers each alone.
        batch_seconds: that a request may wait for others.
    """

    seconds: float = 10.0
    batch_rows: int = 64
    batch_seconds: float = 0.0


class TimedOut(Problem):
    """504.

    Args:
        seconds: that an answer may take.
        call: that goes on all the same, done when it ends; None where there is none.
    """

    def __init__(self, seconds: float, call: "asyncio.Future[Any] | None" = None) -> None:
        super().__init__(504, "timeout", f"an answer takes at most {seconds:g} s, its wait included; send fewer rows")
        self.call = call


class Answering:
    """Answers bodies of rows.

    Args:
        gate: its slots. A call that goes on after its caller was told 504 keeps its slot until it ends.
        metrics: counts warnings.
        rows: most rows in one request.
        pace: how answers are computed.
        cache: of answers; None asks the model each time. Large bodies never ask it.
    """

    def __init__(
        self, gate: Gate, metrics: Metrics, rows: int, *, pace: Pace | None = None, cache: AnswerCache | None = None
    ) -> None:
        self.gate = gate
        self.cache = cache if cache is not None and cache.capacity > 0 else None
        self.rows = rows
        self.pace = pace or Pace()
        self._metrics = metrics
        # A body takes up to 25 times its size while it is read, so large ones are read by no more threads than help.
        self._large = ThreadPoolExecutor(max(2, os.cpu_count() or 2), thread_name_prefix="large-bodies")

    def close(self) -> None:
        """Take no more large bodies; those in flight are answered."""
        self._large.shutdown(wait=False)

    async def answer(
        self, predictor: Predictor, body: bytes, request_id: bytes, receive: Receive, spent: float = 0.0
    ) -> tuple[bytes, int]:
        """The encoded answer and the number of its rows.

        Args:
            spent: seconds of the request's that are gone already.

        Raises:
            Problem: body or rows are refused; 429 or 503 when there is too much at once.
            TimedOut: 504.
            GoneError: the caller hung up while it waited for a slot.
        """
        gate, left = self.gate, self.pace.seconds - spent
        if not gate.try_enter():
            left -= await self.wait(receive, left)
        running: asyncio.Future[Any] | None = None
        try:
            if len(body) > LARGE:
                return await self._by_thread(predictor, body, request_id, left)
            rows = rows_of(body, self.rows)
            keys: Sequence[bytes] = ()
            if self.cache is not None and predictor.deterministic:
                keys = self.cache.keys(predictor.deployment.bundle_id, rows)
                kept = self.cache.get_all(keys)
                if kept is not None:
                    return document(predictor, kept, request_id), len(rows)
            findings = predictor.check(rows)
            if findings:
                self.judge(predictor, findings)
            pace = self.pace
            batcher = Batcher.of(predictor, rows=pace.batch_rows, window=pace.batch_seconds, seconds=pace.seconds)
            answers: Sequence[Any]
            if len(rows) <= batcher.direct:
                answers = predictor.answer(rows, findings)
            else:
                answers = await batcher.answer(rows, findings, left)
            if keys:
                answers = self._keep(keys, answers)
            return document(predictor, answers, request_id), len(rows)
        except LateError as late:
            running = late.call
            raise TimedOut(self.pace.seconds, running) from None
        except DataError as error:  # what `check` let pass and the model cannot read
            raise Problem(422, error.code, error.message) from error
        finally:
            if running is None:
                gate.leave()
            else:
                running.add_done_callback(self.ended)

    async def wait(self, receive: Receive, left: float) -> float:
        """Wait for a slot, which is the caller's to give back; the seconds that it took.

        Raises:
            GoneError: the caller hung up meanwhile, and has no slot.
        """
        begun = time.monotonic()
        await self.gate.enter(partial(hung_up, receive), left)
        if hung_up(receive):
            self.gate.leave()
            raise GoneError
        return time.monotonic() - begun

    def ended(self, call: "asyncio.Future[Any]") -> None:
        """Give back the slot of a call that went on after its time was up."""
        self.gate.leave()
        if not call.cancelled():
            call.exception()  # looked at, so that nobody is told that it was not

    async def _by_thread(self, predictor: Predictor, body: bytes, request_id: bytes, left: float) -> tuple[bytes, int]:
        until = time.monotonic() + left
        return await within(self._large, left, partial(self._whole, predictor, body, request_id, until))

    def _whole(self, predictor: Predictor, body: bytes, request_id: bytes, until: float) -> tuple[bytes, int]:
        if time.monotonic() > until:  # it waited for a thread until nobody waited for it
            raise TimedOut(self.pace.seconds)
        rows = rows_of(body, self.rows)
        findings = predictor.check(rows)
        if findings:
            self.judge(predictor, findings)
        return document(predictor, predictor.answer(rows, findings), request_id), len(rows)

    def judge(self, predictor: Predictor, findings: Sequence[Finding]) -> None:
        """Count warnings.

        Raises:
            Problem: 422 where one is an error.
        """
        errors = [finding for finding in findings if finding.severity == "error"]
        if errors:
            raise _refused(errors)
        self._metrics.warned(predictor.deployment.line, len(findings))

    def _keep(self, keys: Sequence[bytes], answers: Sequence[Answer]) -> list[msgspec.Raw]:
        """The answers, encoded; kept but for those with warnings, which are counted each time."""
        assert self.cache is not None
        encoded = [msgspec.Raw(encode(answer)) for answer in answers]
        for key, answer, raw in zip(keys, answers, encoded, strict=True):
            if not answer.get("warnings"):
                self.cache.put(key, raw)
        return encoded


async def within(threads: ThreadPoolExecutor, left: float, work: Callable[[], T]) -> T:
    """What the work gives, done by one of the threads.

    Raises:
        LateError: it takes longer than `left` seconds; a call that was begun goes on, because a thread cannot be stopped.
        Exception: what the work raises.
    """
    if left <= 0:
        raise LateError
    job = threads.submit(work)
    call = asyncio.wrap_future(job)
    try:
        # Unlike `wait_for`, this leaves the call alone: its slot must not be given away while it goes on.
        done, _ = await asyncio.wait((call,), timeout=left)
    except asyncio.CancelledError:
        call.cancel()
        raise
    if done:
        return call.result()
    raise LateError(None if job.cancel() else call)


_second = (0, b"")  # and its text


def _stamp() -> bytes:
    """Now in UTC, to the millisecond; the text of a second is made once."""
    global _second
    now = time.time()
    whole = int(now)
    second, text = _second
    if second != whole:
        text = datetime.fromtimestamp(whole, UTC).strftime("%Y-%m-%dT%H:%M:%S").encode()
        _second = (whole, text)
    return b"%s.%03dZ" % (text, (now - whole) * 1000)


def document(predictor: Predictor, answers: Sequence[Any], request_id: bytes) -> bytes:
    """The encoded answer of a request."""
    return b"".join(
        (
            predictor.head,
            b',"request_id":"',
            request_id,
            b'","timestamp":"',
            _stamp(),
            b'","rows":',
            encode(answers),
            b"}",
        )
    )


def _refused(errors: Sequence[Finding]) -> Problem:
    first = errors[0]
    return Problem(
        422,
        first.rule,
        first.message,
        field=first.column[:_NAME],
        row=first.row,
        details=[
            {"code": found.rule, "message": found.message, "field": found.column[:_NAME], "row": found.row}
            for found in errors[:_DETAILS]
        ],
    )
