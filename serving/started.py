"""Starts a coroutine by hand: most of ours are done before they would first wait, and those need no timer and no task."""

from collections.abc import Awaitable, Coroutine, Generator
from typing import Any, Generic, TypeVar, cast

T = TypeVar("T")


class Resumed(Generic[T]):
    """A coroutine that was started, to be awaited from where it waits."""

    __slots__ = ("_coroutine", "_paused")

    def __init__(self, coroutine: Coroutine[Any, Any, T], paused: Any) -> None:
        self._coroutine, self._paused = coroutine, paused

    def __await__(self) -> Generator[Any, Any, T]:
        paused = self._paused
        while True:
            try:
                try:
                    sent = yield paused
                except BaseException as error:  # noqa: BLE001 - cancelled: the coroutine must hear of it
                    paused = self._coroutine.throw(error)
                else:
                    paused = self._coroutine.send(sent)
            except StopIteration as done:
                return cast(T, done.value)

    def close(self) -> None:
        """Give it up."""
        self._coroutine.close()


def begin(work: Awaitable[T]) -> T | Resumed[T]:
    """What the coroutine gives if it gives it without waiting; else the coroutine, started.

    Args:
        work: a coroutine of `async def`, which must not ask for its task before it first waits.
    """
    coroutine = cast(Coroutine[Any, Any, T], work)
    try:
        paused = coroutine.send(None)
    except StopIteration as done:
        return cast(T, done.value)
    return Resumed(coroutine, paused)
