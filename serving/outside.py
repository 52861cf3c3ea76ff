"""Threads for what may hang: the registry, the store, files. No prediction waits for one of them, and whoever does, not for long."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
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


class Outside:
    """A few threads, each taken until its call ends, however long ago its caller was told to come back. Belongs to one event loop.

    Args:
        seconds: that a caller waits, for a free thread and for its call together.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._gate = Gate(THREADS, _QUEUE, seconds)
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="outside")

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
        call = asyncio.get_running_loop().run_in_executor(self._threads, work)
        call.add_done_callback(self._ended)
        done, _ = await asyncio.wait((call,), timeout=max(0.0, begun + self.seconds - time.monotonic()))
        if not done:
            raise away()
        return call.result()

    def close(self) -> None:
        """Begin no more; what hangs is not waited for."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _ended(self, call: "asyncio.Future[Any]") -> None:
        self._gate.leave()
        if not call.cancelled():
            call.exception()  # looked at, so that nobody is told that it was not
