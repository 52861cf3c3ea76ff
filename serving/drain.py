"""Ends a worker gently: not ready at once, still answering while load balancers hear of it, then done when all are answered.

Uvicorn alone would close its sockets at the signal, while others still send to them.
"""

import asyncio
import logging
import os
import signal
import threading
from typing import Any, Protocol

from esteira.settings import Settings, load_settings
from serving.lifeline import hurried

# Seconds. A service manager may signal a whole group, and Bento's master passes the signal on: that is one signal, not two.
SAME = 1.0
# What was accepted a moment ago has to be read before it counts as in flight.
_BEAT = 0.2
# Life span, threads and exit handlers, after the last answer.
_REST = 12.0

_log = logging.getLogger("serving")


class Drained(Protocol):
    """What is drained: serving.http.Api."""

    @property
    def in_flight(self) -> int:
        """Requests whose answer is not yet sent."""
        ...

    def drain(self) -> None:
        """Be not ready, and close each connection with its next answer."""
        ...


def to_the_end(settings: Settings, *, hurry: bool = False) -> float:
    """Seconds from the signal to the end of a worker, at most; who kills it earlier cuts answers off.

    Args:
        settings: of the service.
        hurry: nobody waits for a load balancer.
    """
    return (0.0 if hurry else settings.drain_seconds) + _patience(settings) + _REST


def _patience(settings: Settings) -> float:
    """Seconds for requests in flight once nothing new is taken: a little more than an answer may take."""
    return settings.request_seconds + 2.0


def watch(api: Drained, settings: Settings | None = None) -> None:
    """Take SIGTERM over from uvicorn; called in the event loop's thread once the server started.

    The first signal drains for ESTEIRA_DRAIN_SECONDS, or not at all when whoever stops the service is in a hurry; then
    sockets are closed, requests in flight answered, and the worker ends with 0. A second signal ends it now, with 143.
    Does nothing where no uvicorn waits for the signal.
    """
    server = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    if not hasattr(server, "should_exit") or threading.current_thread() is not threading.main_thread():
        return
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, _Drain(api, server, loop, settings or load_settings(file=None)).signalled)


class _Drain:
    def __init__(self, api: Drained, server: Any, loop: asyncio.AbstractEventLoop, settings: Settings) -> None:
        self._api, self._server, self._loop, self._settings = api, server, loop, settings
        self._since: float | None = None
        self._task: asyncio.Task[None] | None = None

    def signalled(self) -> None:
        if self._since is None:
            self._since = self._loop.time()
            self._api.drain()
            self._task = self._loop.create_task(self._end())
            # Whatever hangs, Bento's master would wait for us for a day.
            last = threading.Timer(to_the_end(self._settings), os._exit, (1,))
            last.daemon = True
            last.start()
        elif self._loop.time() - self._since >= SAME:
            os._exit(128 + signal.SIGTERM)

    async def _end(self) -> None:
        seconds = self._settings.drain_seconds
        _log.info("told to end: not ready; requests are taken for another %g s", seconds)
        until = self._loop.time() + seconds
        while self._loop.time() < until and not hurried():
            await asyncio.sleep(min(0.1, seconds))
        for listening in getattr(self._server, "servers", ()):
            listening.close()
        until = self._loop.time() + _patience(self._settings)
        await asyncio.sleep(_BEAT)
        while self._api.in_flight and self._loop.time() < until:
            await asyncio.sleep(0.05)
        # As its own handler would, but without noting the signal: that would kill this process once the loop has ended.
        self._server.config.timeout_graceful_shutdown = max(1, round(until - self._loop.time()))
        self._server.should_exit = True
