"""Threads for what may hang: the registry, the store, files. No prediction waits for one of them, and whoever does, not for long."""

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from serving.gate import Gate
from serving.problems import Problem

T = TypeVar("T")

THREADS = 8
_QUEUE = 200


def away() -> Problem:
    """What a caller is told when something outside fails or hangs."""
    return Problem(
        503, "outside", "something that this service needs is away; try again", headers=[(b"retry-after", b"5")]
    )


def in_thread(work: Callable[[], T]) -> "Future[T]":
    """Make a call in a thread of its own, for which a process that ends does not wait: those of a pool are joined at exit."""
    call: Future[T] = Future()

    def run() -> None:
        try:
            found = work()
        except BaseException as error:  # noqa: BLE001 - whoever asked is told
            call.set_exception(error)
        else:
            call.set_result(found)

    call.set_running_or_notify_cancel()
    threading.Thread(target=run, name="outside", daemon=True).start()
    return call


class Outside:
    """A few calls at once, each in a thread until it ends, however long ago its caller was told to come back. Of one event loop.

    Args:
        seconds: that a caller waits, for its turn and for its call together.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._gate = Gate(THREADS, _QUEUE, seconds)

    async def ask(self, work: Callable[[], T]) -> T:
        """What the work gives.

        Raises:
            Problem: 503 when that takes too long, or too many wait already.
            Exception: what the work raises.
        """
        begun = time.monotonic()
        if not self._gate.try_enter():
            try:
                await self._gate.enter()
            except Problem as problem:
                raise away() from problem
        try:
            call = asyncio.wrap_future(in_thread(work))
        except RuntimeError:  # no thread can be had
            self._gate.leave()
            raise
        call.add_done_callback(self._ended)
        done, _ = await asyncio.wait((call,), timeout=max(0.0, begun + self.seconds - time.monotonic()))
        if not done:
            raise away()
        return call.result()

    def _ended(self, call: "asyncio.Future[Any]") -> None:
        self._gate.leave()
        if not call.cancelled():
            call.exception()  # looked at, so that nobody is told that it was not
