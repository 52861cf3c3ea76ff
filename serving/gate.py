"""How many requests are answered at once, and how many may wait: the rest is told to come back. Knows no model and no HTTP.

Belongs to one event loop; nothing here is safe from another thread.
"""

import asyncio
from collections import deque
from math import ceil

from serving.problems import Problem

LONGEST_RETRY = 30
_WEIGHT = 0.1  # of the newest wait in the mean


class Gate:
    """Slots, and a queue before them, first come first served.

    Args:
        limit: slots.
        queue: requests that may wait for one; 0 lets none wait.
        seconds: longest wait.

    Attributes:
        inside: slots that are taken.
        refused: requests that were told to come back, so far.
        late: requests that waited too long, so far.
    """

    def __init__(self, limit: int, queue: int, seconds: float) -> None:
        self.limit, self.queue, self.seconds = limit, queue, seconds
        self.inside = self.refused = self.late = 0
        self._waiting: deque[asyncio.Future[bool]] = deque()
        self._mean = 0.0  # seconds that those who had to wait waited

    @property
    def waiting(self) -> int:
        """Requests that wait now."""
        return len(self._waiting)

    def try_enter(self) -> bool:
        """Take a slot if one is free. While some wait none is: a slot that is left goes to the first of them."""
        if self.inside < self.limit:
            self.inside += 1
            return True
        return False

    async def enter(self) -> None:
        """Take a slot, after a wait if there must be one.

        Raises:
            Problem: 429 `busy` when the queue is full, 503 `waited` when the wait was too long.
        """
        if self.try_enter():
            return
        if len(self._waiting) >= self.queue:
            self.refused += 1
            raise Problem(
                429,
                "busy",
                f"{self.limit} requests are being answered and {len(self._waiting)} wait; try again later",
                headers=self._later(),
            )
        loop = asyncio.get_running_loop()
        slot: asyncio.Future[bool] = loop.create_future()
        self._waiting.append(slot)
        begun = loop.time()
        timer = loop.call_later(self.seconds, self._give_up, slot)
        try:
            got = await slot
        except asyncio.CancelledError:
            # A slot that was handed over in the same turn must not be lost.
            if slot.done() and not slot.cancelled() and slot.result():
                self.leave()
            elif slot in self._waiting:
                self._waiting.remove(slot)
            raise
        finally:
            timer.cancel()
            waited = loop.time() - begun
            self._mean += (waited - self._mean) * (_WEIGHT if self._mean else 1.0)
        if not got:
            self.late += 1
            raise Problem(
                503, "waited", f"no slot was free within {self.seconds:g} s; try again later", headers=self._later()
            )

    def leave(self) -> None:
        """Give a slot back; the first who waits gets it."""
        while self._waiting:
            slot = self._waiting.popleft()
            if not slot.done():
                slot.set_result(True)
                return
        self.inside -= 1

    def _give_up(self, slot: "asyncio.Future[bool]") -> None:
        if not slot.done():
            self._waiting.remove(slot)
            slot.set_result(False)

    def _later(self) -> list[tuple[bytes, bytes]]:
        """About as long as those waited who had to: a whole number of seconds, at least 1."""
        return [(b"retry-after", b"%d" % max(1, min(LONGEST_RETRY, ceil(self._mean))))]
