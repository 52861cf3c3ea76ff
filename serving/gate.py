"""How many requests are answered at once, and how many may wait: the rest is told to come back. Knows no model and no HTTP.

Belongs to one event loop; nothing here is safe from another thread.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from math import ceil, inf

from serving.body import GoneError
from serving.problems import Problem

LONGEST_RETRY = 30
_WEIGHT = 0.1  # of the newest wait in the mean
_LOOK = 0.1  # seconds between two looks at who has gone: a flood must not make us look at all who wait for each

Gone = Callable[[], bool]


def _stays() -> bool:
    return False


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
        # True: the slot is yours; False: you waited too long; None: you have gone.
        self._waiting: OrderedDict[asyncio.Future[bool | None], Gone] = OrderedDict()
        self._mean = 0.0  # seconds that those who had to wait waited
        self._looked = -inf

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

    async def enter(self, gone: Gone = _stays, left: float = inf) -> None:
        """Take a slot, after a wait if there must be one.

        Args:
            gone: whether the caller has hung up; asked when others need its place in the queue. Must not wait.
            left: seconds that it may wait, where that is less than the longest wait.

        Raises:
            Problem: 429 `busy` when the queue is full, 503 `waited` when the wait was too long.
            GoneError: the caller had hung up.
        """
        if self.try_enter():
            return
        loop = asyncio.get_running_loop()
        begun = loop.time()
        if len(self._waiting) >= self.queue:
            self._send_away(begun)
        if len(self._waiting) >= self.queue:
            self.refused += 1
            raise Problem(
                429,
                "busy",
                f"{self.limit} requests are being answered and {len(self._waiting)} wait; try again later",
                headers=self._later(),
            )
        slot: asyncio.Future[bool | None] = loop.create_future()
        self._waiting[slot] = gone
        timer = loop.call_later(max(0.0, min(self.seconds, left)), self._give_up, slot)
        try:
            got = await slot
        except asyncio.CancelledError:
            # A slot that was handed over in the same turn must not be lost.
            if slot.done() and not slot.cancelled() and slot.result():
                self.leave()
            else:
                self._waiting.pop(slot, None)
            raise
        finally:
            timer.cancel()
            waited = loop.time() - begun
            self._mean += (waited - self._mean) * (_WEIGHT if self._mean else 1.0)
        if got is None:
            raise GoneError
        if not got:
            self.late += 1
            raise Problem(
                503, "waited", f"no slot was free within {self.seconds:g} s; try again later", headers=self._later()
            )

    def leave(self) -> None:
        """Give a slot back; the first who waits gets it."""
        while self._waiting:
            slot, _ = self._waiting.popitem(last=False)
            if not slot.done():
                slot.set_result(True)
                return
        self.inside -= 1

    def _give_up(self, slot: "asyncio.Future[bool | None]") -> None:
        if not slot.done():
            self._waiting.pop(slot, None)
            slot.set_result(False)

    def _send_away(self, now: float) -> None:
        """Take those out of the queue who have gone."""
        if now - self._looked < _LOOK:
            return
        self._looked = now
        for slot in [slot for slot, gone in self._waiting.items() if gone()]:
            del self._waiting[slot]
            if not slot.done():
                slot.set_result(None)

    def _later(self) -> list[tuple[bytes, bytes]]:
        """About as long as those waited who had to: a whole number of seconds, at least 1."""
        return [(b"retry-after", b"%d" % max(1, min(LONGEST_RETRY, ceil(self._mean))))]
