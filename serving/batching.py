"""Answers requests of one model together where that is faster: those of one turn of the event loop share a call. Knows no HTTP.

A call costs more than the rows in it, even of the smallest model: measured at 16 connections, sharing it takes a third off what a
request costs the processor. Nobody waits for company that is not there: a request that comes alone is answered at once.
"""

import asyncio
import os
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from math import inf
from typing import Any, Protocol
from weakref import WeakKeyDictionary, ref

from esteira.family import Answer, Finding, Row

INLINE_US = 2_000.0
"""A call that costs more runs in a thread, so that the loop goes on reading; while it runs, the next rows gather."""
INLINE_ROWS = 8
"""The same, of a model that does not say what a row costs."""
CALL_US = 5_000.0
"""What a call of several requests may cost: with the one before it, a request waits twice that, 10 ms, for others' rows."""
LONGEST_WINDOW = 0.010
# uvloop's timers are of whole milliseconds, and fire up to half of one early.
_SLACK = 0.001
# Of this process, and of nothing but models: a registry that hangs must not take a thread that a prediction needs.
_threads = ThreadPoolExecutor(min(32, (os.cpu_count() or 1) + 4), thread_name_prefix="models")


class LateError(Exception):
    """A request's time is up.

    Args:
        call: that it is part of, done when it ends: it goes on, since a thread cannot be stopped. None where there is none.
    """

    def __init__(self, call: "asyncio.Future[Any] | None" = None) -> None:
        super().__init__("its time is up")
        self.call = call


class Model(Protocol):
    """What is called: a Predictor."""

    @property
    def cost_us(self) -> float | None:
        """Microseconds of one row by the manifest; None when it does not say."""
        ...

    def answer(self, rows: Sequence[Row], findings: Sequence[Finding] | None = None) -> list[Answer]:
        """One answer a row, in order; `findings` are those of `check` on these rows."""
        ...


@dataclass(eq=False, slots=True)
class _Request:
    model: Model  # held, because the batcher holds it weakly
    rows: Sequence[Row]
    findings: Sequence[Finding] | None
    until: float  # by the loop's clock
    future: "asyncio.Future[list[Answer]]"


class Batcher:
    """The requests of one model. Belongs to one event loop at a time.

    Args:
        model: held weakly, so that a model that was swapped goes.
        rows: most rows of a call that answers several requests; 1 answers each request alone.
        window: seconds that a request may wait for others once requests come together, at most 0.010; 0 waits for the end of
            the turn only.
        seconds: that a request may take where it does not say.

    Attributes:
        direct: up to so many rows `answer` would call the model at once and not look for company: call it yourself.
        busy: calls that run in threads now.
    """

    def __init__(self, model: Model, *, rows: int = 64, window: float = 0.0, seconds: float = 10.0) -> None:
        cost = model.cost_us
        self.busy = 0
        self._model = ref(model)
        self._window = min(window, LONGEST_WINDOW)
        self._seconds = seconds
        self._inline = INLINE_ROWS if cost is None else int(INLINE_US / max(cost, 1.0))
        self._most = rows if cost is None else min(rows, max(1, int(CALL_US / max(cost, 1.0))))
        self._gathers = self._most > 1
        self.direct = 0 if self._gathers else self._inline
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiting: deque[_Request] = deque()
        self._gathered = 0  # rows that wait
        self._seen = 0  # requests of this turn
        self._open = False  # this turn has had a request
        self._timed = False  # a window is open
        self._company = False  # the last turn, or window, had more than one request
        self._running = False  # a call of several requests runs in a thread
        self._timer: asyncio.TimerHandle | None = None  # of the one that may wait no longer, due at:
        self._due = inf

    @classmethod
    def of(cls, model: Model, *, rows: int = 64, window: float = 0.0, seconds: float = 10.0) -> "Batcher":
        """The batcher of a model, made when it is first asked for."""
        found = _batchers.get(model)
        if found is None:
            found = _batchers[model] = cls(model, rows=rows, window=window, seconds=seconds)
        return found

    async def answer(
        self, rows: Sequence[Row], findings: Sequence[Finding] | None = None, left: float | None = None
    ) -> list[Answer]:
        """One answer a row, in order.

        Args:
            rows: rows that `check` found no error in.
            findings: what it found; None lets the model look again.
            left: seconds that the request may still take, its wait for a call included. What is answered in the loop is not timed.

        Raises:
            LateError: it took longer.
            Exception: what the model raises on these rows; never what it raises on another request's.
        """
        model = self._model()
        if model is None:
            raise RuntimeError("a batcher answers as long as its model is held, but it is gone")
        alone = not self._gathers or len(rows) >= self._most
        if alone and len(rows) <= self._inline:
            _count(1, len(rows))
            return model.answer(rows, findings)
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._begin(loop)
        if not alone:
            self._seen += 1
            if not self._open:
                self._open = True
                loop.call_soon(self._close, loop)
                if not (self._company or self._waiting or self._running) and len(rows) <= self._inline:
                    _count(1, len(rows))
                    return model.answer(rows, findings)
        seconds = self._seconds if left is None else left
        if seconds <= 0:
            raise LateError
        until = loop.time() + seconds
        request = _Request(model, rows, findings, until, loop.create_future())
        if alone:
            _count(1, len(rows))
            self._run([request], loop)
            return await request.future
        self._waiting.append(request)
        self._gathered += len(rows)
        if until < self._due:
            self._watch(until, loop)
        if self._window:
            if not self._timed:
                self._timed = True
                loop.call_later(self._window, self._time, loop)
            if self._gathered >= self._most:
                self._flush(loop)
        return await request.future

    def _begin(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start in another loop; what waited in the one before, which has ended, waits no more."""
        self._loop = loop
        self._waiting.clear()
        self._gathered = self._seen = 0
        self._open = self._timed = self._company = self._running = False
        self._timer, self._due = None, inf

    def _watch(self, until: float, loop: asyncio.AbstractEventLoop) -> None:
        """Look then at who waits. One timer serves all who come and go meanwhile; a timer each would cost more than their rows."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._due = loop.call_at(until, self._expire, loop), until

    def _expire(self, loop: asyncio.AbstractEventLoop) -> None:
        """Tell those whose time is up that no call was made for them."""
        if loop is not self._loop:
            return
        self._timer, self._due = None, inf
        now = loop.time() + _SLACK
        kept: deque[_Request] = deque()
        for request in self._waiting:
            if request.until <= now:
                self._gathered -= len(request.rows)
                _tell_late(request, None)
            else:
                kept.append(request)
        self._waiting = kept
        if kept:
            self._watch(min(request.until for request in kept), loop)

    def _close(self, loop: asyncio.AbstractEventLoop) -> None:
        """The turn ends: what came in it is answered, unless it is to wait for what comes in the next ones."""
        if loop is not self._loop:
            return
        several = self._seen > 1
        self._open, self._seen = False, 0
        if not self._window:
            self._company = several
            self._flush(loop)
        elif several:
            self._company = True

    def _time(self, loop: asyncio.AbstractEventLoop) -> None:
        """The window closes."""
        if loop is self._loop:
            self._timed = False
            self._company = len(self._waiting) > 1
            self._flush(loop)

    def _flush(self, loop: asyncio.AbstractEventLoop) -> None:
        """Answer what waits, first come first, as far as one call goes; the rest follows when its answers are on their way."""
        if loop is not self._loop or self._running or not self._waiting:
            return
        batch, count = self._take(loop.time() + _SLACK)
        if not batch:
            return
        _count(len(batch), count)
        if count > self._inline:
            self._running = True
            self._run(batch, loop, gathered=True)
            return
        _deliver(batch, self._outcomes(batch))
        if self._waiting:
            loop.call_soon(self._flush, loop)

    def _take(self, now: float) -> tuple[list[_Request], int]:
        """The next requests of one call, and their rows. Left out is whose caller has gone, and whose time is up, who is told."""
        batch: list[_Request] = []
        count = 0
        while self._waiting:
            request = self._waiting[0]
            size = len(request.rows)
            if batch and count + size > self._most:
                break
            self._waiting.popleft()
            self._gathered -= size
            if request.until <= now:
                _tell_late(request, None)
            elif not request.future.done():
                batch.append(request)
                count += size
        return batch, count

    def _run(self, batch: Sequence[_Request], loop: asyncio.AbstractEventLoop, *, gathered: bool = False) -> None:
        self.busy += 1
        job = _threads.submit(self._outcomes, batch)
        call = asyncio.wrap_future(job, loop=loop)
        timer = loop.call_at(min(request.until for request in batch), lambda: late())

        def go_on() -> None:
            nonlocal gathered
            if gathered and loop is self._loop:
                gathered = self._running = False
                self._flush(loop)

        def late() -> None:
            nonlocal timer
            now = loop.time() + _SLACK
            for request in batch:
                if request.until <= now:
                    _tell_late(request, call)
            waiting = [request.until for request in batch if not request.future.done()]
            if waiting:
                timer = loop.call_at(min(waiting), late)
                return
            job.cancel()  # if no thread has begun it; then none does any more
            go_on()

        def ran(call: "asyncio.Future[list[list[Answer] | Exception]]") -> None:
            timer.cancel()
            self.busy -= 1
            error: BaseException | None = asyncio.CancelledError() if call.cancelled() else call.exception()
            if error is None:
                _deliver(batch, call.result())
            else:
                _deliver(batch, [_settable(error)] * len(batch))
            go_on()

        call.add_done_callback(ran)

    @staticmethod
    def _outcomes(batch: Sequence[_Request]) -> list[list[Answer] | Exception]:
        """What each request gets; may run in a thread. Where the call of all fails, each is answered alone and gets its own."""
        if len(batch) > 1:
            try:
                rows = [row for request in batch for row in request.rows]
                answers = batch[0].model.answer(rows, _joined(batch))
            except Exception:  # noqa: BLE001 - whose it is shows below, where each is alone
                pass
            else:
                parts: list[list[Answer] | Exception] = []
                start = 0
                for request in batch:
                    stop = start + len(request.rows)
                    parts.append(answers[start:stop])
                    start = stop
                return parts
        outcomes: list[list[Answer] | Exception] = []
        for request in batch:
            try:
                outcomes.append(request.model.answer(request.rows, request.findings))
            except Exception as error:  # noqa: BLE001 - it is raised where the request waits
                outcomes.append(_settable(error))
        return outcomes


_batchers: "WeakKeyDictionary[Model, Batcher]" = WeakKeyDictionary()
_counted = [0, 0, 0]


def totals() -> tuple[int, int, int]:
    """Calls, rows and requests of all batchers of this process so far."""
    calls, rows, requests = _counted
    return calls, rows, requests


def _count(requests: int, rows: int) -> None:
    _counted[0] += 1
    _counted[1] += rows
    _counted[2] += requests


def _joined(batch: Sequence[_Request]) -> list[Finding] | None:
    """The findings of all rows of a batch, at the rows' places in it; None when a request brought none."""
    joined: list[Finding] = []
    start = 0
    for request in batch:
        if request.findings is None:
            return None
        if request.findings:
            joined += [
                found if found.row is None else replace(found, row=found.row + start) for found in request.findings
            ]
        start += len(request.rows)
    return joined


def _deliver(batch: Sequence[_Request], outcomes: Sequence[list[Answer] | Exception]) -> None:
    for request, outcome in zip(batch, outcomes, strict=True):
        if request.future.done():  # the caller has gone meanwhile
            continue
        if isinstance(outcome, Exception):
            request.future.set_exception(outcome)
        else:
            request.future.set_result(outcome)


def _tell_late(request: _Request, call: "asyncio.Future[Any] | None") -> None:
    if not request.future.done():
        request.future.set_exception(LateError(call))


def _settable(error: BaseException) -> Exception:
    """The error as one that a future takes: StopIteration, of a `next` that found nothing, would leave it waiting for ever."""
    if isinstance(error, Exception) and not isinstance(error, StopIteration):
        return error
    wrapped = RuntimeError(f"the model raised {type(error).__name__}")
    wrapped.__cause__ = error
    return wrapped
