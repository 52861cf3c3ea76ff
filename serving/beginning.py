"""How a worker's start ends: it serves, and says so once; or it cannot, says why without a secret, and leaves no counters behind."""

import json
import logging
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from esteira.errors import EsteiraError
from esteira.settings import redact
from serving.faults import worded
from serving.lifeline import STATE, forget_counters, has_served

MASTER = "_SERVING_MASTER"
"""The variable that names the process of Bento's master; no setting, so it is not spelled ESTEIRA_."""

_log = logging.getLogger("serving")


class Beginning:
    """Calls `note` once, when this worker takes requests and has a model, whichever comes last. Safe from any thread."""

    def __init__(self, note: Callable[[], None]) -> None:
        self._note = note
        self._missing = {"requests", "model"}
        self._lock = threading.Lock()

    def takes_requests(self) -> None:
        """It takes requests."""
        self._came("requests")

    def has_model(self) -> None:
        """One of its lines has a model; may be said again."""
        self._came("model")

    def _came(self, what: str) -> None:
        with self._lock:
            last = self._missing == {what}
            self._missing.discard(what)
        if last:
            self._note()


def tell(state: dict[str, Any]) -> None:
    """Tell the process that started us, if one waits for it."""
    name = os.environ.get(STATE)
    if name:
        temporary = Path(f"{name}.{os.getpid()}.tmp")
        temporary.write_text(json.dumps(state), encoding="utf-8")
        temporary.replace(name)


def give_up(error: Exception) -> None:
    """Say why this worker cannot start; where that is a letter, stop the master, which would start workers for ever.

    Not where others served before: a database that is away when a worker is started again is no reason to stop them.
    """
    _log.error("a worker cannot start: %s", worded(error))
    forget_counters()
    if has_served() or not isinstance(error, EsteiraError):
        return
    letter = {name: redact(words) for name, words in error.to_dict().items()}
    tell({"state": "failed", "error": letter, "exit_code": error.exit_code})
    master = os.environ.get(MASTER)
    if master is not None and os.getppid() == int(master):
        os.kill(int(master), signal.SIGTERM)
