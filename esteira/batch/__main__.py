"""The process of one job of a service: `python -m esteira.batch` reads the job as one JSON line and lives while its input is open.

Standard output gets a JSON document a line: a summary after every part and at the end, or the error.
"""

import contextlib
import json
import os
import signal
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

from esteira.batch import Job, Stopped, Summary, run
from esteira.errors import EsteiraError

_NICE = 5  # requests come first


def main() -> int:
    """Run the job; SIGTERM, SIGINT and the end of the input stop it where it may go on later."""
    asked = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: asked.set())
    words = json.loads(sys.stdin.readline())
    threading.Thread(target=_watch, args=(asked,), daemon=True).start()
    with contextlib.suppress(OSError):
        os.nice(_NICE)
    try:
        _tell(run(_job(words), stop=asked.is_set, tell=_tell))
    except Stopped as stopped:
        _tell(stopped.summary)
    except EsteiraError as error:
        _say({"error": error.to_dict()})
        return error.exit_code
    except Exception as error:  # noqa: BLE001 - the log gets its place and not its words, which may hold cells of a row
        sys.stderr.write(f"{type(error).__name__}\n{''.join(traceback.format_tb(error.__traceback__))}")
        _say({"error": {"code": "internal", "message": "this is our fault; the service's log says where"}})
        return 2
    return 0


def _job(words: dict[str, Any]) -> Job:
    lists = {name: tuple(value) for name, value in words.items() if isinstance(value, list)}
    return Job(**{**words, **lists, "bundle": Path(words["bundle"])})


def _tell(summary: Summary) -> None:
    _say({"summary": vars(summary)})


def _say(document: dict[str, Any]) -> None:
    with contextlib.suppress(BrokenPipeError):  # nobody listens any more; the input ends too
        print(json.dumps(document), flush=True)


def _watch(asked: threading.Event) -> None:
    """The input ends when whoever started us does, however it ends."""
    while sys.stdin.read(4096):
        pass
    asked.set()


if __name__ == "__main__":
    sys.exit(main())
