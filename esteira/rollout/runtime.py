"""What a rollout of one line is carried out with, and the lock that keeps everybody else out."""

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from esteira import locks
from esteira.access import Actor
from esteira.errors import OutsideError
from esteira.family import Line
from esteira.registry import Registry
from esteira.rollout import targets
from esteira.settings import Settings
from esteira.store import Store

_log = logging.getLogger("esteira.rollout")


@dataclass(frozen=True)
class Runtime:
    """What a rollout of one line is carried out with, at one moment.

    Attributes:
        now: aware.
        actor: whose name the ledger gets.
        unlocked: why nobody else is kept out, as an alert; empty where the line is locked.
    """

    line: str
    settings: Settings
    registry: Registry
    target: targets.Target
    now: datetime
    actor: Actor
    unlocked: str = ""

    @property
    def home(self) -> Path:
        """`$ESTEIRA_HOME`."""
        return self.settings.home

    @property
    def store(self) -> Store:
        """The platform store."""
        return self.registry.store

    @property
    def outside(self) -> bool:
        """Whether something before the service splits the traffic."""
        return self.target.name != "in-process"


@contextlib.contextmanager
def opened(
    line: str, *, settings: Settings, now: datetime, actor: Actor, what: str, wait: float = 0.0, way_out: bool = False,
    target: targets.Target | None = None, registry: Registry | None = None,
) -> Iterator[Runtime]:  # fmt: skip
    """A line's rollout, to be changed by nobody else while the block runs.

    Args:
        what: is being done, in words, for whoever finds it locked.
        wait: seconds to wait for another.
        way_out: go on without a lock where none can be made; what is taken away twice at once is taken away.
        target: what splits the traffic; the settings' by default.
        registry: an open one to use.

    Raises:
        Refused: code `locked`.
        ConfigError: there is no such line's name, or no such target.
        OutsideError: no lock can be made.
    """
    Line.parse(line)
    if now.tzinfo is None:
        raise ValueError("the time of a rollout says its zone")
    chosen = target or targets.make(settings, line)
    with contextlib.ExitStack() as held:
        unlocked = ""
        try:
            held.enter_context(locks.hold(settings.home, f"rollout {line}", what=what, wait=wait))
        except OutsideError as error:
            if not way_out:
                raise
            unlocked = f"disk: {error.message}"
            _log.error("%s: %s without a lock: %s", line, what, error.message)
        yield Runtime(line, settings, registry or Registry(settings), chosen, now, actor, unlocked)
